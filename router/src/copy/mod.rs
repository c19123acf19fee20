//! COPY FROM: bytes of CSV, text or Parquet in, batches of the named columns out. COPY TO: the other way.
//!
//! ```text
//!   bytes ─▶ split.rs: records and fields ─▶ value.rs: one typed builder per column ─▶ RecordBatch of ≤ 8,192 rows
//!   files below --files-root: file.rs; Parquet: parquet.rs
//!   batches ─▶ encoder.rs: lines ─▶ the wire, or to_file.rs: CSV, text and Parquet files
//! ```
//!
//! The splitter is our own: PostgreSQL tells a quoted empty field (the empty string) from an unquoted one (NULL), and the
//! CSV crates do not. Not here: the binary format.

mod decoder;
pub(crate) mod encoder;
pub mod file;
pub mod parquet;
mod split;
pub(crate) mod to_file;
pub mod value;

pub use decoder::CopyDecoder;

/// Rows of one decoded batch.
const BATCH_ROWS: usize = 8_192;
