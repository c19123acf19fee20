//! What the `tessera` binary is made of: configuration and the wiring of processes. No logic of its own.
//!
//! ```text
//!   tessera start      = meta store + router + N shard nodes in one process   (embedded.rs)
//!   tessera router     = meta store + router, serving both over gRPC          (processes.rs)
//!   tessera shard-node = one shard node that finds its router by address      (processes.rs)
//!   tessera bench scale = tessera start with 1, 2, 4, 8 nodes, measured       (bench_scale.rs)
//! ```

pub mod bench_scale;
pub mod config;
pub mod embedded;
pub mod processes;
