//! From shards to a DataFusion table: [`shard_table`] is what a leaf's plan scans on a node.

mod pruning;
mod segment_scan;
pub mod table_provider;
#[cfg(test)]
mod tests;

pub use table_provider::{ShardTable, shard_table};
