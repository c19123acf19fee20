//! Digest of a table in a shard: the sum modulo 2^128 of xxh3_128 over the canonical bytes of every visible row.
//!
//! ```text
//!   row bytes = per column: 0 for NULL, else 1 | length u32 | value bytes (values.rs)
//! ```
//!
//! No order, timestamps or files, so copies that seal at different times compare equal. The hidden row id is a column like
//! any other. Bulk reading, nothing kept.

use crate::storage::values::for_each_value;
use crate::storage::version::TableVersion;
use datafusion::arrow::array::{ArrayRef, RecordBatch, new_null_array};
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::{Result, Timestamp};
use xxhash_rust::xxh3::xxh3_128;

/// Digest and number of the rows visible at `ts`. Blocking.
///
/// # Errors
/// 72000 when the snapshot is too old; XX001 or 58030 when segments cannot be read.
pub(crate) fn digest(def: &TableDef, version: &TableVersion, ts: Timestamp) -> Result<(u128, u64)> {
    version.check_readable(ts)?;
    let mut digest = Digest {
        sum: 0,
        rows: 0,
        buffers: vec![],
    };
    let columns: Vec<usize> = (0..def.columns.len()).collect();
    for segment in &version.segments {
        // Not needed for the sum: whoever verifies wants to know about every damaged byte.
        segment.check_keys()?;
        for batch in segment.visible_rows(def, &columns, version.deletes_of(segment).map(Arc::as_ref), ts)? {
            digest.add(batch?.columns())?;
        }
    }
    for chunk in &version.chunks {
        if let Some(batch) = chunk.visible(&version.removed, ts)? {
            digest.add(&columns_by_name(def, &columns, &batch))?;
        }
    }
    Ok((digest.sum, digest.rows))
}

/// Columns of the table from rows written under an older definition too.
pub(crate) fn columns_by_name(def: &TableDef, columns: &[usize], batch: &RecordBatch) -> Vec<ArrayRef> {
    let column = |c: &usize| {
        let column = &def.columns[*c];
        batch
            .column_by_name(&column.name)
            .cloned()
            .unwrap_or_else(|| new_null_array(&column.sql_type.arrow(), batch.num_rows()))
    };
    columns.iter().filter(|c| **c < def.columns.len()).map(column).collect()
}

struct Digest {
    sum: u128,
    rows: u64,
    /// One per row of a batch, kept between batches.
    buffers: Vec<Vec<u8>>,
}

impl Digest {
    fn add(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let rows = columns.first().map_or(0, |c| c.len());
        self.buffers.resize_with(rows.max(self.buffers.len()), Vec::new);
        self.buffers.iter_mut().for_each(Vec::clear);
        for column in columns {
            for_each_value(column, &mut |row, value| match value {
                None => self.buffers[row].push(0),
                Some(bytes) => {
                    self.buffers[row].push(1);
                    self.buffers[row].extend((bytes.len() as u32).to_le_bytes());
                    self.buffers[row].extend(bytes);
                }
            })?;
        }
        self.sum = self.buffers[..rows]
            .iter()
            .fold(self.sum, |sum, row| sum.wrapping_add(xxh3_128(row)));
        self.rows += rows as u64;
        Ok(())
    }
}
