//! Rows of one table that are only in memory (and in the log): Arrow chunks in commit order.
//!
//! ```text
//!   chunks   [ 0..4096 | 4096..8200 | ... ][ 9000..9512 | 9512..9520 | 9520 ]      row positions: unbroken, never reused
//!             frozen: being sealed            each at least twice as large as all behind it
//! ```
//!
//! Small commits would make a chunk per row. A new chunk takes in those before it that are not at least twice its size, as
//! in a binary counter: about 60 chunks for 128 Ki rows, and a row is copied at most twelve times. Chunks are immutable.

use crate::storage::common_values::Summary;
use crate::storage::deletes::DeleteVector;
use crate::storage::statistics::ColumnSummary;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt64Array};
use datafusion::arrow::compute::{and, concat_batches, filter_record_batch};
use datafusion::arrow::datatypes::DataType;
use std::sync::{Arc, OnceLock};
use tessera_proto::{Error, Result, Timestamp};

/// Chunks this large stay as they are.
const MERGED_ROWS: usize = 4_096;
/// Rough cost of a key in the delta's key index beside its rows: hash slot, allocation.
pub const KEY_BYTES: usize = 80;

/// Some rows with their commit timestamps.
#[derive(Debug)]
pub struct Chunk {
    /// Position of the first row in the table's delta.
    pub first: u64,
    /// All columns of the table.
    pub batch: RecordBatch,
    cts: CommitTimes,
    bytes: usize,
    /// One summary per column, computed at the first call.
    pub(crate) summaries: OnceLock<Vec<ColumnSummary>>,
    /// The most common values of each column, counted at the first call: by who reports, never by a query.
    pub(crate) common: OnceLock<Vec<Summary>>,
}

#[derive(Debug, Clone)]
enum CommitTimes {
    All(Timestamp),
    Each {
        times: UInt64Array,
        min: Timestamp,
        max: Timestamp,
    },
}

impl Chunk {
    /// Rows of one commit.
    pub fn new(first: u64, batch: RecordBatch, ts: Timestamp) -> Self {
        let bytes = batch_bytes(&batch);
        Self {
            first,
            batch,
            cts: CommitTimes::All(ts),
            bytes,
            summaries: OnceLock::new(),
            common: OnceLock::new(),
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    /// Memory of the rows, without their keys.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Least and greatest commit timestamp.
    pub fn cts_range(&self) -> (Timestamp, Timestamp) {
        match self.cts {
            CommitTimes::All(ts) => (ts, ts),
            CommitTimes::Each { min, max, .. } => (min, max),
        }
    }

    /// The commit timestamp of every row.
    pub fn cts(&self) -> UInt64Array {
        match &self.cts {
            CommitTimes::All(ts) => UInt64Array::from_value(ts.0, self.rows()),
            CommitTimes::Each { times, .. } => times.clone(),
        }
    }

    /// The commit timestamp of one row.
    pub fn cts_of(&self, row: usize) -> Timestamp {
        match &self.cts {
            CommitTimes::All(all) => *all,
            CommitTimes::Each { times, .. } => Timestamp(times.value(row)),
        }
    }

    /// The rows visible at `ts` and not in `removed`, which is by position; `None` when there are none.
    ///
    /// # Errors
    /// XX000: Arrow could not filter.
    pub(crate) fn visible(&self, removed: &DeleteVector, ts: Timestamp) -> Result<Option<RecordBatch>> {
        let internal = |e: datafusion::arrow::error::ArrowError| Error::internal(e.to_string());
        let (min, max) = self.cts_range();
        if min > ts {
            return Ok(None);
        }
        let mut mask = removed.alive(self.first..self.first + self.rows() as u64, ts);
        if let CommitTimes::Each { times, .. } = &self.cts
            && max > ts
        {
            let begun: BooleanArray = times.values().iter().map(|t| Some(*t <= ts.0)).collect();
            mask = Some(match mask {
                Some(alive) => and(&begun, &alive).map_err(internal)?,
                None => begun,
            });
        }
        let Some(mask) = mask else {
            return Ok(Some(self.batch.clone()));
        };
        match mask.true_count() {
            0 => Ok(None),
            _ => filter_record_batch(&self.batch, &mask).map(Some).map_err(internal),
        }
    }

    fn merge(chunks: &[Arc<Chunk>]) -> Result<Chunk> {
        let internal =
            |e: datafusion::arrow::error::ArrowError| Error::internal(format!("merging rows in memory: {e}"));
        let batch = concat_batches(&chunks[0].batch.schema(), chunks.iter().map(|c| &c.batch)).map_err(internal)?;
        let columns = batch.columns().iter().map(compact).collect();
        let batch = RecordBatch::try_new(batch.schema(), columns).map_err(internal)?;
        let (min, max) = chunks
            .iter()
            .map(|c| c.cts_range())
            .fold((Timestamp::MAX, Timestamp(0)), |(a, b), (c, d)| (a.min(c), b.max(d)));
        let cts = if min == max {
            CommitTimes::All(min)
        } else {
            let times = chunks.iter().flat_map(|c| c.cts().values().to_vec());
            CommitTimes::Each {
                times: UInt64Array::from_iter_values(times),
                min,
                max,
            }
        };
        let bytes = batch_bytes(&batch);
        Ok(Chunk {
            first: chunks[0].first,
            batch,
            cts,
            bytes,
            summaries: OnceLock::new(),
            common: OnceLock::new(),
        })
    }
}

/// Views of many small buffers as views of one, so that a merged chunk lets go of the messages it came from.
fn compact(array: &ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Utf8View => Arc::new(array.as_string_view().gc()),
        DataType::BinaryView => Arc::new(array.as_binary_view().gc()),
        _ => array.clone(),
    }
}

/// Bytes that rows really use: buffers shared with other batches count once, by what is referenced.
pub(crate) fn batch_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(array_bytes).sum()
}

fn array_bytes(array: &ArrayRef) -> usize {
    let outside = |lengths: &mut dyn Iterator<Item = usize>| lengths.filter(|l| *l > 12).sum::<usize>();
    let views = match array.data_type() {
        DataType::Utf8View => outside(&mut array.as_string_view().lengths().map(|l| l as usize)),
        DataType::BinaryView => outside(&mut array.as_binary_view().lengths().map(|l| l as usize)),
        _ => 0,
    };
    let fixed = match array.data_type() {
        DataType::Utf8View | DataType::BinaryView | DataType::Decimal128(_, _) | DataType::Interval(_) => 16,
        DataType::FixedSizeBinary(width) => *width as usize,
        other => other.primitive_width().unwrap_or(1),
    };
    views + array.len() * (fixed + usize::from(array.null_count() > 0))
}

/// Appends rows of one commit behind `chunks`, and merges small chunks behind the first `frozen` ones.
///
/// # Errors
/// XX000: Arrow could not concatenate.
pub fn push(chunks: &mut Vec<Arc<Chunk>>, frozen: usize, first: u64, batch: RecordBatch, ts: Timestamp) -> Result<()> {
    let mut rows = batch.num_rows();
    chunks.push(Arc::new(Chunk::new(first, batch, ts)));
    let mut tail = chunks.len() - 1;
    let schema = chunks[tail].batch.schema();
    while tail > frozen && rows < MERGED_ROWS {
        let before = &chunks[tail - 1];
        if before.rows() >= MERGED_ROWS.min(2 * rows) || before.batch.schema() != schema {
            break;
        }
        rows += before.rows();
        tail -= 1;
    }
    if tail + 1 < chunks.len() {
        let merged = Chunk::merge(&chunks[tail..])?;
        chunks.truncate(tail);
        chunks.push(Arc::new(merged));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{Int64Array, StringViewArray};
    use datafusion::arrow::datatypes::{Field, Schema};

    fn row(n: i64) -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("a", DataType::Int64, false),
            Field::new("b", DataType::Utf8View, false),
        ]);
        let text = StringViewArray::from(vec![format!("row number {n} is long")]);
        RecordBatch::try_new(
            Arc::new(schema),
            vec![Arc::new(Int64Array::from(vec![n])), Arc::new(text)],
        )
        .unwrap()
    }

    #[test]
    fn single_rows_merge_and_stay_visible_by_time() {
        let mut chunks = vec![];
        for n in 0..5_000 {
            push(&mut chunks, 0, n as u64, row(n), Timestamp(n as u64 + 1)).unwrap();
        }
        assert!(chunks.len() < 40, "{} chunks", chunks.len());
        let positions: Vec<u64> = chunks.iter().map(|c| c.first).collect();
        assert!(positions.windows(2).all(|w| w[0] < w[1]));
        for ts in [0, 1, 8, 9, 4_096, 4_097, 5_000, 9_999] {
            let visible: usize = chunks
                .iter()
                .filter_map(|c| c.visible(&DeleteVector::default(), Timestamp(ts)).unwrap())
                .map(|b| b.num_rows())
                .sum();
            assert_eq!(visible as u64, ts.min(5_000));
        }
    }

    #[test]
    fn frozen_chunks_stay() {
        let mut chunks = vec![];
        for n in 0..7 {
            push(&mut chunks, n, n as u64, row(n as i64), Timestamp(1)).unwrap();
        }
        (7..30).for_each(|n| push(&mut chunks, 7, n as u64, row(n), Timestamp(1)).unwrap());
        assert!(chunks[..7].iter().all(|c| c.rows() == 1));
        assert_eq!(chunks.iter().map(|c| c.rows()).sum::<usize>(), 30);
    }
}
