//! Merged rows to new segments, and the map from where each row was to where it is.
//!
//! ```text
//!   whence   a:0 a:2 b:0 a:3 b:1 ...            map of a: [0, -, 1, 3, ...]   map of b: [2, 4, ...]
//!   new rows  0   1   2   3   4  | 5 ...        numbered through all new segments, which are of equal length
//! ```

use super::merge::merge;
use super::{Input, Step, Steps};
use crate::storage::MetadataCache;
use crate::storage::deletes::Deleted;
use crate::storage::segment::{SEGMENT_ROWS_MAX, SegmentWriter};
use crate::storage::version::{Segment, SegmentMeta};
use datafusion::arrow::array::{AsArray, RecordBatch, UInt64Array};
use datafusion::arrow::datatypes::UInt64Type;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool};
use futures::StreamExt;
use std::path::Path;
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result, Timestamp};

/// A row that is in no new segment.
const NOWHERE: u32 = u32::MAX;
/// Memory of the writer at least.
const WRITER_BYTES_MIN: usize = 1 << 20;
/// A row group, encoded: no more than this, and no more than the files that are read.
const ROW_GROUP_BYTES: u64 = 32 << 20;
/// The hash of a key and its row, kept until the segment ends.
const KEY_BYTES: usize = 16;

/// Where new segments go.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub dir: &'a Path,
    pub cache: &'a Arc<MetadataCache>,
    pub def: &'a Arc<TableDef>,
    /// Rows committed up to here need no times of their own.
    pub watermark: Timestamp,
}

/// New segments that nobody names yet: dropping them removes their files, until they are kept.
pub(super) struct Rewritten {
    pub segments: Vec<Arc<Segment>>,
    /// Number of the first row of each.
    firsts: Vec<u32>,
    /// New number of each row, by input.
    maps: Vec<Vec<u32>>,
    kept: bool,
}

impl Rewritten {
    /// The manifest names them.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// No removed rows yet, for [`Self::follow`].
    pub fn nowhere(&self) -> Vec<Vec<Deleted>> {
        vec![vec![]; self.segments.len()]
    }

    /// Adds the removed rows of an input where they are now, by new segment. Those that stayed out are nowhere.
    pub fn follow(&self, input: usize, removed: Vec<Deleted>, moved: &mut [Vec<Deleted>]) {
        let map = &self.maps[input];
        for deleted in removed {
            let Some(number) = map.get(deleted.row as usize).filter(|n| **n != NOWHERE) else {
                continue;
            };
            let segment = self.firsts.partition_point(|first| first <= number) - 1;
            moved[segment].push(Deleted {
                row: (number - self.firsts[segment]).into(),
                ts: deleted.ts,
            });
        }
    }
}

impl Drop for Rewritten {
    fn drop(&mut self) {
        if !self.kept {
            self.segments.iter().for_each(|s| s.doom());
        }
    }
}

/// Writes what stays of the inputs; durable apart from the folder. Blocking.
///
/// # Errors
/// As [`super::Inner::compact`]; no file stays then.
pub(super) fn rewrite(
    target: Target<'_>,
    inputs: &[Input],
    pool: &Arc<dyn MemoryPool>,
    steps: &Steps<'_>,
) -> Result<Rewritten> {
    let rows: u64 = inputs.iter().map(|i| i.segment.meta.rows).sum();
    let memory = MemoryConsumer::new("compaction, rows' places").register(pool);
    let bytes: u64 = inputs.iter().map(|i| i.segment.meta.bytes).sum();
    let keys = KEY_BYTES * (rows as usize).min(SEGMENT_ROWS_MAX);
    let writer = WRITER_BYTES_MIN + bytes.min(ROW_GROUP_BYTES) as usize + keys;
    memory.try_grow(writer + rows as usize * size_of::<u32>())?;
    let mut writer = Writer::new(target, inputs);
    let mut merged = merge(target.def, inputs, pool)?;
    while let Some(batch) = futures::executor::block_on(merged.rows.next()) {
        let batch = batch?;
        let mut at = 0;
        while at < batch.num_rows() {
            at += writer.write(&batch.slice(at, batch.num_rows() - at))?;
        }
        steps(Step::Rows(batch.num_rows()))?;
    }
    writer.finish()
}

struct Writer<'a> {
    target: Target<'a>,
    /// Rows of each new segment, but the last.
    segment_rows: usize,
    /// Set when all rows count as committed at one time.
    settled: Option<Timestamp>,
    current: Option<(SegmentWriter, Timestamp, Timestamp)>,
    written: u32,
    done: Rewritten,
}

impl<'a> Writer<'a> {
    fn new(target: Target<'a>, inputs: &[Input]) -> Self {
        let kept = inputs.iter().map(|i| i.rows_kept).sum::<u64>() as usize;
        let last = inputs.iter().map(|i| i.segment.meta.max_cts).max();
        Self {
            target,
            segment_rows: kept.div_ceil(kept.div_ceil(SEGMENT_ROWS_MAX).max(1)).max(1),
            settled: last.filter(|last| *last <= target.watermark),
            current: None,
            written: 0,
            done: Rewritten {
                segments: vec![],
                firsts: vec![],
                maps: inputs
                    .iter()
                    .map(|i| vec![NOWHERE; i.segment.meta.rows as usize])
                    .collect(),
                kept: false,
            },
        }
    }

    /// Writes rows from the front, as many as the present segment takes; returns their number.
    fn write(&mut self, batch: &RecordBatch) -> Result<usize> {
        let none = (Timestamp::MAX, Timestamp(0));
        let (writer, min, max) = match &mut self.current {
            Some(current) => current,
            None => {
                let writer = SegmentWriter::create(self.target.dir, self.target.def, self.settled.is_none())?;
                self.done.firsts.push(self.written);
                self.current.insert((writer, none.0, none.1))
            }
        };
        let batch = batch.slice(0, batch.num_rows().min(self.segment_rows - writer.rows()));
        let columns = batch.num_columns() - 2;
        let own = |column: usize| -> Result<&UInt64Array> {
            let array = batch.column(column).as_primitive_opt::<UInt64Type>();
            array.ok_or_else(|| Error::internal("merged rows lack a column"))
        };
        let (times, whence) = (own(columns)?, own(columns + 1)?);
        for time in times.values() {
            (*min, *max) = ((*min).min(Timestamp(*time)), (*max).max(Timestamp(*time)));
        }
        let rows = RecordBatch::try_new(self.target.def.arrow_schema(), batch.columns()[..columns].to_vec())
            .map_err(|e| Error::internal(format!("compacting rows of an older definition: {e}")))?;
        writer.write(&rows, Some(times).filter(|_| self.settled.is_none()))?;
        for place in whence.values() {
            let row = self.done.maps[(place >> 32) as usize].get_mut(*place as u32 as usize);
            *row.ok_or_else(|| Error::internal("a row from nowhere"))? = self.written;
            self.written += 1;
        }
        if writer.rows() >= self.segment_rows {
            self.end_segment()?;
        }
        Ok(batch.num_rows())
    }

    fn end_segment(&mut self) -> Result<()> {
        let Some((writer, min, max)) = self.current.take() else {
            return Ok(());
        };
        let (min, max) = self.settled.map_or((min, max), |at| (at, at));
        let meta = SegmentMeta {
            max_cts: max,
            ..SegmentMeta::new(self.target.def.id, &writer.finish()?, min)
        };
        let segment = Segment::open(self.target.dir, meta, self.target.cache)?;
        self.done.segments.push(segment);
        Ok(())
    }

    fn finish(mut self) -> Result<Rewritten> {
        self.end_segment()?;
        Ok(self.done)
    }
}
