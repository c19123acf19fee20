//! What a node keeps on disk: one log for all its shards, and per shard the rows in memory and in Parquet segments.
//!
//! ```text
//!   DIR/identity.json                 cluster, node, disk            identity.rs
//!   DIR/wal/0000000000000001.wal ...  one log for all shards         wal.rs
//!   DIR/shards/7-3/MANIFEST-12.json   which segments, up to where    manifest.rs
//!   DIR/shards/7-3/seg/*.parquet|pk   rows, and hashes of their keys segment.rs, sidecar.rs
//!
//!   log entry ── committed ──▶ apply ──▶ delta (Arrow, in memory) ── seal ──▶ segments + manifest ──▶ log may be cut
//!   large load ── stage ──▶ segments, durable but invisible ── commit entry ──▶ apply makes them visible
//! ```
//!
//! A row has one commit timestamp and is visible at a snapshot S when it is not above S. Readers take an immutable
//! [`version::Version`]; nothing they hold ever changes. A row that is removed stays where it is; a delete vector says since when
//! it is gone (deletes.rs), and the vectors of files are kept beside the manifest (deletes_file.rs).
//!
//! Not here: who may write (replication, transactions), and taking removed rows out of files.

pub mod cache;
#[cfg(test)]
mod change_tests;
pub(crate) mod checked_file;
mod column_reader;
pub(crate) mod columns;
mod common_values;
pub(crate) mod deletes;
mod deletes_file;
pub mod delta;
mod digest;
pub(crate) mod durable;
pub mod identity;
mod keys;
mod locate;
pub mod manifest;
mod own_rows;
mod point_read;
mod row_sample;
mod seal;
pub mod segment;
mod segment_files;
mod segment_reader;
pub mod shard_store;
mod sidecar;
mod sketch;
mod snapshot;
pub mod staging;
pub(crate) mod statistics;
#[cfg(test)]
pub(crate) mod test_tables;
#[cfg(test)]
mod tests;
mod unique;
mod values;
pub mod version;
pub mod wal;

pub use cache::MetadataCache;
pub use column_reader::Access;
pub(crate) use column_reader::ZoneMap;
pub use columns::ColumnCache;
pub(crate) use deletes::DeleteVector;
pub use identity::Identity;
pub use own_rows::OwnRows;
pub use shard_store::{ShardStore, Write};
pub use snapshot::SnapshotManifest;
pub use staging::StageWriter;
