//! COPY FROM: bytes of CSV, text or Parquet in, batches of the named columns out.
//!
//! ```text
//!   bytes ─▶ split.rs: records and fields ─▶ value.rs: one typed builder per column ─▶ RecordBatch of ≤ 8,192 rows
//!   files below --files-root: file.rs; Parquet: parquet.rs
//! ```
//!
//! The splitter is our own: PostgreSQL tells a quoted empty field (the empty string) from an unquoted one (NULL), and the
//! CSV crates do not. Not here: COPY TO, the binary format.

mod decoder;
pub mod file;
pub mod parquet;
mod split;
pub mod value;

pub use decoder::CopyDecoder;

/// Rows of one decoded batch.
const BATCH_ROWS: usize = 8_192;
