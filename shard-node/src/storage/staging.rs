//! Writes a load's rows to durable, invisible segments while they stream in.
//!
//! ```text
//!   batch in order, behind the last one ──▶ straight into the row group (no copy)
//!   any other batch ──▶ buffer ── 128 Ki rows or 32 MiB ──▶ sort ──▶ a row group of its own
//!   1 Mi rows ──▶ next segment file
//! ```
//!
//! So memory is bounded by one buffer and one row group, whatever the load's size; rows are sorted within each row group,
//! which is what pruning by keys needs. Sorted input (the usual load) costs one comparison of neighbours. The order is that of
//! CLUSTER BY and then the key. Values of CLUSTER BY columns are anywhere in the input, so of such a table as many rows as the
//! buffer holds are sorted at once and cut into smaller row groups, each with a part of the values.

use crate::storage::delta::batch_bytes;
use crate::storage::durable;
use crate::storage::keys::order_columns;
use crate::storage::segment::{ROW_GROUP_ROWS, SEGMENT_ROWS_MAX, SegmentWriter};
use crate::storage::version::remove_segment_files;
use datafusion::arrow::array::{Array, ArrayRef, RecordBatch, UInt64Array, make_comparator};
use datafusion::arrow::compute::{
    SortColumn, SortOptions, concat_batches, lexsort_to_indices, take, take_record_batch,
};
use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result, ipc, v1};

/// Bytes of unsorted rows held at most.
const BUFFER_BYTES: usize = 32 << 20;
/// Rows given to the encoder at a time.
const WRITE_ROWS: usize = 8_192;
/// Ascending, NULL first.
const ORDER: SortOptions = SortOptions {
    descending: false,
    nulls_first: true,
};

/// Writes rows to segments. Dropping it unfinished removes what it wrote.
pub struct StageWriter {
    dir: PathBuf,
    def: Arc<TableDef>,
    segment: Option<SegmentWriter>,
    finished: Vec<v1::SegmentRef>,
    buffer: Vec<RecordBatch>,
    buffer_rows: usize,
    buffer_bytes: usize,
    /// What the last row written is sorted by: one row each.
    last: Option<Vec<ArrayRef>>,
}

impl std::fmt::Debug for StageWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StageWriter({}, {} segments)", self.def.name, self.finished.len())
    }
}

impl StageWriter {
    /// Writes below the segment folder `dir`.
    pub(crate) fn new(dir: &Path, def: Arc<TableDef>) -> Self {
        Self {
            dir: dir.to_path_buf(),
            def,
            segment: None,
            finished: vec![],
            buffer: vec![],
            buffer_rows: 0,
            buffer_bytes: 0,
            last: None,
        }
    }

    /// Adds rows (all columns of the table, in its order). Blocking.
    ///
    /// # Errors
    /// 23502 for NULL in a NOT NULL column, 53100 when the disk is full; drop the writer then.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let batch = conform(&self.def, batch)?;
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let keys = order_columns(&self.def, &batch)?;
        if self.buffer.is_empty() && is_sorted(self.last.as_deref(), &keys)? {
            return self.append(&batch, &keys);
        }
        self.buffer_rows += batch.num_rows();
        self.buffer_bytes += batch_bytes(&batch);
        self.buffer.push(batch);
        if self.buffer_rows >= self.run_rows() || self.buffer_bytes >= BUFFER_BYTES {
            self.flush_buffer()?;
        }
        Ok(())
    }

    /// Rows sorted at once, at most.
    fn run_rows(&self) -> usize {
        match self.def.cluster_by.is_empty() {
            true => ROW_GROUP_ROWS,
            false => SEGMENT_ROWS_MAX,
        }
    }

    /// Makes everything durable. Blocking.
    ///
    /// # Errors
    /// 53100 or 58030; nothing stays then.
    pub fn finish(mut self) -> Result<Vec<v1::SegmentRef>> {
        self.flush_buffer()?;
        self.end_segment()?;
        durable::sync_dir(&self.dir)?;
        Ok(std::mem::take(&mut self.finished))
    }

    /// Sorts what is buffered into row groups of its own.
    fn flush_buffer(&mut self) -> Result<()> {
        let batches = std::mem::take(&mut self.buffer);
        (self.buffer_rows, self.buffer_bytes) = (0, 0);
        let Some(first) = batches.first() else { return Ok(()) };
        let all = concat_batches(&first.schema(), &batches).map_err(internal)?;
        drop(batches);
        let keys = order_columns(&self.def, &all)?;
        let sorted = take_record_batch(&all, &sort_order(&keys)?).map_err(internal)?;
        let sorted_keys = order_columns(&self.def, &sorted)?;
        if let Some(segment) = &mut self.segment {
            segment.end_row_group()?;
        }
        self.append(&sorted, &sorted_keys)?;
        if let Some(segment) = &mut self.segment {
            segment.end_row_group()?;
        }
        Ok(())
    }

    /// Writes rows in order.
    fn append(&mut self, batch: &RecordBatch, keys: &[ArrayRef]) -> Result<()> {
        let mut at = 0;
        while at < batch.num_rows() {
            let segment = match &mut self.segment {
                Some(segment) => segment,
                None => self.segment.insert(SegmentWriter::create(&self.dir, &self.def, false)?),
            };
            let rows = WRITE_ROWS
                .min(batch.num_rows() - at)
                .min(SEGMENT_ROWS_MAX - segment.rows());
            segment.write(&batch.slice(at, rows), None)?;
            at += rows;
            if segment.rows() >= SEGMENT_ROWS_MAX {
                self.end_segment()?;
            }
        }
        // A copy: a slice would keep the batch.
        let last_row = UInt64Array::from(vec![batch.num_rows() as u64 - 1]);
        self.last = Some(
            keys.iter()
                .map(|k| take(k, &last_row, None).map_err(internal))
                .collect::<Result<_>>()?,
        );
        Ok(())
    }

    fn end_segment(&mut self) -> Result<()> {
        if let Some(segment) = self.segment.take() {
            self.finished.push(segment.finish()?);
        }
        Ok(())
    }
}

impl Drop for StageWriter {
    fn drop(&mut self) {
        for segment in &self.finished {
            remove_segment_files(&self.dir.join(&segment.file));
        }
    }
}

fn internal(error: datafusion::arrow::error::ArrowError) -> Error {
    Error::internal(format!("sorting rows: {error}"))
}

/// Rows under the table's own schema.
///
/// # Errors
/// 23502 for NULL in a NOT NULL column, 08P01 when the columns are not the table's.
pub(crate) fn conform(def: &TableDef, batch: &RecordBatch) -> Result<RecordBatch> {
    if batch.num_columns() != def.columns.len() {
        let (found, expected) = (batch.num_columns(), def.columns.len());
        return Err(Error::protocol(format!(
            "rows for table \"{}\" have {found} columns instead of {expected}",
            def.name
        )));
    }
    if let Some((column, _)) = def
        .columns
        .iter()
        .zip(batch.columns())
        .find(|(c, a)| !c.nullable && a.null_count() > 0)
    {
        return Err(Error::new(
            "23502",
            format!(
                "null value in column \"{}\" of relation \"{}\" violates not-null constraint",
                column.name, def.name
            ),
        ));
    }
    let malformed =
        |e: datafusion::error::DataFusionError| Error::protocol(format!("rows for table \"{}\": {e}", def.name));
    ipc::relabel(&def.arrow_schema(), batch.clone()).map_err(malformed)
}

/// Positions of the rows in the order of these columns.
pub(crate) fn sort_order(keys: &[ArrayRef]) -> Result<datafusion::arrow::array::UInt32Array> {
    let columns: Vec<SortColumn> = keys
        .iter()
        .map(|k| SortColumn {
            values: k.clone(),
            options: Some(ORDER),
        })
        .collect();
    lexsort_to_indices(&columns, None).map_err(internal)
}

/// Whether rows are in order, and behind `last`.
pub(crate) fn is_sorted(last: Option<&[ArrayRef]>, keys: &[ArrayRef]) -> Result<bool> {
    if let Some(last) = last
        && !ordered(last, keys, |_| (0, 0), 1)?
    {
        return Ok(false);
    }
    let rows = keys.first().map_or(0, |k| k.len());
    ordered(keys, keys, |row| (row, row + 1), rows.saturating_sub(1))
}

/// Whether `left[i] <= right[j]` for the pairs (i, j) of `count` rows.
fn ordered(
    left: &[ArrayRef],
    right: &[ArrayRef],
    pair: impl Fn(usize) -> (usize, usize),
    count: usize,
) -> Result<bool> {
    let compare = left
        .iter()
        .zip(right)
        .map(|(l, r)| make_comparator(l, r, ORDER).map_err(internal))
        .collect::<Result<Vec<_>>>()?;
    Ok((0..count).map(pair).all(|(i, j)| {
        let order = compare.iter().map(|c| c(i, j)).find(|o| *o != Ordering::Equal);
        order.unwrap_or(Ordering::Equal) != Ordering::Greater
    }))
}
