//! What two Tessera processes must agree on, and nothing else.
//!
//! ```text
//!   router ──ShardService──▶ shard-node ──ReplicationService──▶ shard-node
//!      │                         │
//!      └────────── meta keys, table definitions, shard map, token function, leaf ─────────┘
//! ```
//!
//! Ids, the token function, table and shard-map definitions, error codes, the `ShardLocal` leaf with its codec, and the
//! generated messages (`v1`). No I/O except the gRPC client twin of [`service::ShardService`].

pub mod broadcast;
pub mod client;
pub mod clock;
pub mod common_values;
pub mod error;
pub mod exchange;
pub mod flight;
pub mod fragment;
pub mod frugal;
pub mod functions;
pub mod ids;
pub mod ipc;
pub mod keys;
pub mod memory;
pub mod order;
pub mod outer_sides;
pub mod physical;
pub mod profile;
pub mod pushdown;
pub mod service;
pub mod shard_map;
pub mod spill_files;
pub mod sql_type;
pub mod table;
pub mod token;
pub mod yielding;

/// Messages and services generated from `proto/*.proto`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("tessera.v1");
}

/// Descriptors of all services here and of Arrow Flight, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub use error::{Error, Result, Retry};
pub use ids::{Epoch, GroupId, LogIndex, NodeId, ReplicaId, ShardId, TableId, Timestamp, TxnId};

/// Version of everything two processes exchange or a disk keeps; a mismatch is refused at the handshake.
pub const FORMAT_VERSION: u32 = 4;
