//! The rows of several segments as one sorted stream, without those that stay out.
//!
//! ```text
//!   segment a: row groups 0 1 2 | 3 4      each run is sorted: a row group begins another one where it is not behind the last
//!   segment b: row groups 0                                                                        ─▶ merge of 3 streams
//!   out: columns of the table, __cts, and whence the row came: segment << 32 | row
//! ```
//!
//! A stream holds a page of each column, some ten thousand rows, whatever its length. Where memory does not suffice for all, runs
//! are read one behind the other: then rows are less in order, which costs pruning and is not wrong.

use super::Input;
use crate::storage::segment::{CTS_COLUMN, PAGE_ROWS};
use crate::storage::version::Segment;
use datafusion::arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, UInt64Array, make_comparator};
use datafusion::arrow::compute::{SortOptions, filter_record_batch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet};
use datafusion::physical_plan::sorts::streaming_merge::StreamingMergeBuilder;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use std::cmp::Ordering;
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result};

/// Memory for what is read and not merged yet. 128 MiB are 32 streams of rows of 250 bytes.
const BYTES_MAX: usize = 128 << 20;
/// A page of each column encoded, decoded, and once more in the merge.
const COPIES: usize = 3;
/// As stored rows are sorted.
const ORDER: SortOptions = SortOptions {
    descending: false,
    nulls_first: true,
};

/// Neighbouring row groups of an input, in order.
struct Run {
    /// Position among the inputs.
    input: usize,
    row_groups: Vec<usize>,
    /// Position of the first row in the file.
    first: u64,
}

/// The merged rows; memory is held until it is dropped.
pub(super) struct Merged {
    pub rows: SendableRecordBatchStream,
    _memory: MemoryReservation,
}

/// Merges what stays of these segments.
///
/// # Errors
/// 53200 when there is no memory; XX001 or 58030, also of the rows.
pub(super) fn merge(def: &Arc<TableDef>, inputs: &[Input], pool: &Arc<dyn MemoryPool>) -> Result<Merged> {
    let mut runs = vec![];
    for (number, input) in inputs.iter().enumerate() {
        runs_of(number, &input.segment, def, &mut runs)?;
    }
    let bytes = COPIES * inputs.iter().map(|i| page_bytes(&i.segment)).max().unwrap_or(0).max(1);
    let streams_max = (BYTES_MAX / bytes).clamp(2, 64);
    let behind = runs.len().div_ceil(streams_max).max(1);
    let mut lines: Vec<Vec<Run>> = vec![];
    for run in runs {
        match lines.last_mut().filter(|line| line.len() < behind) {
            Some(line) => line.push(run),
            None => lines.push(vec![run]),
        }
    }
    let memory = MemoryConsumer::new("compaction").register(pool);
    memory.try_grow(bytes * lines.len())?;
    let schema = merged_schema(def);
    let mut streams = vec![];
    for line in lines {
        streams.push(stream(def, inputs, line, &schema));
    }
    if streams.len() == 1
        && let Some(rows) = streams.pop()
    {
        return Ok(Merged { rows, _memory: memory });
    }
    let order = def.storage_order().into_iter().filter_map(|c| {
        let column = Column::new(&def.columns.get(c)?.name, c);
        Some(PhysicalSortExpr::new(Arc::new(column), ORDER))
    });
    let order = LexOrdering::new(order).ok_or_else(|| Error::internal("a table without a key"))?;
    let rows = StreamingMergeBuilder::new()
        .with_streams(streams)
        .with_schema(schema)
        .with_expressions(&order)
        .with_metrics(BaselineMetrics::new(&ExecutionPlanMetricsSet::new(), 0))
        .with_batch_size(PAGE_ROWS)
        .with_reservation(MemoryConsumer::new("compaction, merge").register(pool))
        .with_round_robin_tie_breaker(false)
        .build()?;
    Ok(Merged { rows, _memory: memory })
}

/// Columns of the table, all of which may be NULL in old rows, and the two of ours.
fn merged_schema(def: &TableDef) -> SchemaRef {
    let schema = def.arrow_schema();
    let own = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true));
    let ours = [CTS_COLUMN, "__at"].map(|name| Field::new(name, DataType::UInt64, false));
    Arc::new(Schema::new(own.chain(ours).collect::<Vec<_>>()))
}

/// Decoded bytes of a page of each column, roughly.
fn page_bytes(segment: &Segment) -> usize {
    let Ok(footer) = segment.footer() else { return 0 };
    let bytes: i64 = footer.row_groups().iter().map(|g| g.total_byte_size()).sum();
    bytes.max(0) as usize / (segment.meta.rows.max(1) as usize).div_ceil(PAGE_ROWS)
}

fn runs_of(number: usize, segment: &Segment, def: &TableDef, runs: &mut Vec<Run>) -> Result<()> {
    let groups = segment.row_groups()?;
    let column = def.storage_order().first().and_then(|c| def.columns.get(*c));
    let field = column.map(|c| Field::new(&c.name, c.sql_type.arrow(), true));
    let zones = field.and_then(|field| segment.zone_map(&field));
    // Whether row group i begins behind the end of the one before.
    let follows = |i: usize| {
        let zones = zones.as_ref()?;
        let compare = make_comparator(&zones.max, &zones.min, ORDER).ok()?;
        let known = zones.max.is_valid(i - 1) && zones.min.is_valid(i);
        Some(known && compare(i - 1, i) != Ordering::Greater)
    };
    let mut first = 0;
    for (group, rows) in groups.iter().enumerate() {
        match runs.last_mut().filter(|run| run.input == number) {
            Some(run) if follows(group) == Some(true) => run.row_groups.push(group),
            _ => runs.push(Run {
                input: number,
                row_groups: vec![group],
                first,
            }),
        }
        first += *rows as u64;
    }
    Ok(())
}

/// The rows of some runs, one behind the other.
fn stream(def: &Arc<TableDef>, inputs: &[Input], line: Vec<Run>, schema: &SchemaRef) -> SendableRecordBatchStream {
    let parts: Vec<_> = line
        .into_iter()
        .map(|run| {
            let input = &inputs[run.input];
            (run, input.segment.clone(), input.kept.clone())
        })
        .collect();
    let (def, columns) = (def.clone(), schema.clone());
    let rows = parts.into_iter().flat_map(move |(run, segment, kept)| {
        let columns = columns.clone();
        let (mut first, number) = (run.first, run.input as u64);
        // Opened when the one before is at its end.
        let batches: Box<dyn Iterator<Item = Result<(RecordBatch, UInt64Array)>> + Send> =
            match segment.all_rows(&def, run.row_groups) {
                Ok(batches) => Box::new(batches),
                Err(error) => Box::new(std::iter::once(Err(error))),
            };
        batches.map(move |item| -> Result<RecordBatch, DataFusionError> {
            let (batch, times) = item?;
            let rows = first..first + batch.num_rows() as u64;
            first = rows.end;
            let whence = UInt64Array::from_iter_values(rows.clone().map(|row| number << 32 | row));
            let ours: [ArrayRef; 2] = [Arc::new(times), Arc::new(whence)];
            let all = batch.columns().iter().cloned().chain(ours).collect();
            let batch = RecordBatch::try_new(columns.clone(), all)?;
            match &kept {
                None => Ok(batch),
                Some(kept) => {
                    let kept = kept.slice(rows.start as usize, batch.num_rows());
                    Ok(filter_record_batch(&batch, &BooleanArray::new(kept, None))?)
                }
            }
        })
    });
    let rows = rows.filter(|item: &Result<RecordBatch, DataFusionError>| !matches!(item, Ok(b) if b.num_rows() == 0));
    Box::pin(RecordBatchStreamAdapter::new(
        schema.clone(),
        futures::stream::iter(rows),
    ))
}
