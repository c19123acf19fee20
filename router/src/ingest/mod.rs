//! Rows on their way into shards: INSERT and COPY.
//!
//! ```text
//!   VALUES of constants ──values.rs──▶ batch, without planning
//!   batch of some columns ──rows.rs──▶ all columns, declared types     (defaults.rs, cast.rs)
//!                         ──split.rs─▶ one batch per shard             token of the shard key
//!                         ──writer.rs▶ small: kept, sent inline        large: streamed to each shard's leader (staging.rs)
//!                  finish ──txn/driver.rs──▶ one transaction over all shards
//! ```
//!
//! An error anywhere aborts everything: staged segments are dropped, nothing becomes visible.

mod cast;
pub mod copy_in;
mod defaults;
pub(crate) use defaults::check as check_default;
pub(crate) mod insert;
mod parse;
mod rows;
mod split;
mod staging;
mod values;
pub mod writer;

pub use copy_in::CopyIn;
pub use writer::TableWriter;
