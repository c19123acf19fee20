//! Owns rows: a node's shards, their logs, their copies, and the transactions that write them.

pub mod exchange;
pub mod execute;
mod flight;
pub mod node;
pub mod replication;
pub mod scan;
pub mod server;
pub mod storage;
mod text_extremes;
pub mod txn;
