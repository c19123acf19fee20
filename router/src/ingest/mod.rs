//! Rows on their way into shards: INSERT and COPY; and what happens to rows that are there: UPDATE, DELETE and TRUNCATE.
//!
//! ```text
//!   VALUES of constants ──values.rs──▶ batch, without planning
//!   batch of some columns ──rows.rs──▶ all columns, declared types     (defaults.rs, cast.rs)
//!                         ──split.rs─▶ one batch per shard             token of the shard key
//!                         ──writer.rs▶ small: kept, sent inline        large: streamed to each shard's leader (staging.rs)
//!                  finish ──txn/driver.rs──▶ one transaction over all shards
//!   UPDATE, DELETE ──change_query.rs──▶ rows found at a snapshot ──change_writer.rs──▶ old keys and new rows per shard
//!                  commit ──txn/driver.rs──▶ one transaction; refused if a row changed: again (change.rs)
//!   ON CONFLICT    ──lookup.rs──▶ rows that exist ──upsert_query.rs──▶ their new values ──upsert.rs──▶ change_writer.rs
//!   MERGE          ──merge_query.rs──▶ pairs and rows without a partner ──merge.rs──▶ change_writer.rs
//!   RETURNING      ──returning.rs──▶ evaluated over the rows before the commit
//! ```
//!
//! An error anywhere aborts everything: staged segments are dropped, nothing becomes visible.

mod cast;
pub(crate) mod change;
pub(crate) mod change_query;
mod change_writer;
pub mod copy_in;
mod defaults;
pub(crate) use defaults::check as check_default;
pub(crate) mod insert;
mod lookup;
pub(crate) mod merge;
pub(crate) mod merge_query;
mod parse;
pub(crate) mod returning;
mod rows;
mod split;
mod staging;
pub(crate) mod truncate;
mod upsert;
pub(crate) mod upsert_query;
mod values;
pub mod writer;

pub use copy_in::CopyIn;
pub(crate) use returning::ChangedRows;
pub use writer::TableWriter;
