//! From shards to a DataFusion table.

pub mod table_provider;

pub use table_provider::shard_table;
