//! The scan of a table's segments: whole row groups, decoded once and kept, left out where their zone map says so.
//!
//! ```text
//!   row groups of all segments ─▶ prune by filters ─▶ queue ─▶ partition 0: columns from the cache, or decoded ─▶ batches
//!                                   ▲                    └───▶ partition 1
//!                                   └─ again when a join or TopK above has tightened its dynamic filter
//! ```
//!
//! Partitions take row groups from one queue, so a slow one does not hold the others up. Filters prune row groups here and
//! are evaluated row by row above. Where columns have to be decoded, those of the filters come first, and the others only if
//! a row is left. Queries with little memory (`tessera_proto::frugal`) decode a block of 8,192 rows at a time instead of a row
//! group, or a part of one. Rows committed after the snapshot, or gone before it, are dropped. Statistics are inexact, because other snapshots' rows are
//! counted; no ordering is claimed: delta and segments overlap.

use crate::scan::pruning::Pruning;
use crate::storage::DeleteVector;
use crate::storage::segment::CTS_COLUMN;
use crate::storage::version::Segment;
use datafusion::arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::{and, filter_record_batch};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, SchemaRef, UInt64Type};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics, internal_err};
use datafusion::config::ConfigOptions;
use datafusion::datasource::source::{DataSource, OpenArgs};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::utils::{collect_columns, conjunction, reassign_expr_columns};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::DisplayFormatType;
use datafusion::physical_plan::filter_pushdown::{FilterPushdownPropagation, PushedDown};
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use tessera_proto::{Error, Timestamp, frugal};

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct SegmentScan {
    pub segments: Arc<[Arc<Segment>]>,
    /// Rows of each segment that are gone.
    pub deletes: Arc<[Option<Arc<DeleteVector>>]>,
    pub groups: Arc<[RowGroup]>,
    /// The table's visible columns; filters are over these.
    pub table: SchemaRef,
    pub projection: Vec<usize>,
    /// What comes out.
    pub schema: SchemaRef,
    pub snapshot: Timestamp,
    pub filters: Vec<Arc<dyn PhysicalExpr>>,
    /// Of the whole table.
    pub statistics: Arc<Statistics>,
    pub partitions: usize,
    pub fetch: Option<usize>,
    pub metrics: ExecutionPlanMetricsSet,
}

/// One row group of one of the segments.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowGroup {
    /// Position among the segments.
    pub segment: usize,
    /// Position in the file.
    pub number: usize,
    /// Position of its first row in the file.
    pub first: u64,
    pub rows: usize,
}

/// All row groups of these segments. Blocking where a footer is not in memory.
///
/// # Errors
/// XX001 or 58030.
pub(super) fn row_groups(segments: &[Arc<Segment>]) -> tessera_proto::Result<Vec<RowGroup>> {
    let mut groups = Vec::new();
    for (segment, file) in segments.iter().enumerate() {
        let mut first = 0;
        for (number, rows) in file.row_groups()?.iter().copied().enumerate() {
            groups.push(RowGroup {
                segment,
                number,
                first,
                rows,
            });
            first += rows as u64;
        }
    }
    Ok(groups)
}

impl SegmentScan {
    /// Position in the table of each output column named by `columns`, if those are all the projection is.
    fn narrowed(&self, columns: &ProjectionExprs) -> Option<Vec<usize>> {
        let exprs = columns.iter().map(|p| {
            let column = p.expr.downcast_ref::<Column>()?;
            (column.name() == p.alias).then(|| self.projection.get(column.index()).copied())?
        });
        exprs.collect()
    }

    fn stream(&self, work: Arc<Work>, partition: usize, context: &TaskContext) -> Result<SendableRecordBatchStream> {
        let reader = Reader::new(self, work, partition, context)?;
        let rows = futures::stream::try_unfold(reader, |mut reader| async move {
            let batch = reader.next().await?;
            Ok(batch.map(|b| (b, reader)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), rows)))
    }
}

impl DataSource for SegmentScan {
    /// Without the other partitions' help: every n-th row group.
    fn open(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let groups = (partition..self.groups.len()).step_by(self.partitions.max(1));
        self.stream(Arc::new(Work::new(self, groups.collect())), partition, &context)
    }

    fn create_sibling_state(&self, _: &ConfigOptions) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Arc::new(Work::new(self, (0..self.groups.len()).collect())))
    }

    fn open_with_args(&self, args: OpenArgs) -> Result<SendableRecordBatchStream> {
        match args.sibling_state.and_then(|s| s.downcast::<Work>().ok()) {
            Some(work) => self.stream(work, args.partition, &args.context),
            None => self.open(args.partition, args.context),
        }
    }

    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if format == DisplayFormatType::TreeRender {
            return writeln!(f, "segments={}", self.segments.len());
        }
        let names: Vec<_> = self.schema.fields().iter().map(|f| f.name().as_str()).collect();
        write!(
            f,
            "segments={}, row_groups={}, projection=[{}]",
            self.segments.len(),
            self.groups.len(),
            names.join(", ")
        )?;
        if let Some(fetch) = self.fetch {
            write!(f, ", fetch={fetch}")?;
        }
        if !self.filters.is_empty() {
            write!(f, ", predicate={}", conjunction(self.filters.iter().cloned()))?;
        }
        Ok(())
    }

    fn output_partitioning(&self) -> Partitioning {
        Partitioning::UnknownPartitioning(self.partitions)
    }

    fn eq_properties(&self) -> EquivalenceProperties {
        EquivalenceProperties::new(self.schema.clone())
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Arc<Statistics>> {
        let all = self.statistics.as_ref().clone().project(Some(&self.projection));
        let statistics = match partition {
            None => all,
            Some(_) => Statistics {
                num_rows: all.num_rows.map(|rows| rows / self.partitions.max(1)).to_inexact(),
                ..Statistics::new_unknown(&self.schema)
            },
        };
        Ok(Arc::new(statistics))
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn DataSource>> {
        Some(Arc::new(Self {
            fetch: limit,
            ..self.clone()
        }))
    }

    fn fetch(&self) -> Option<usize> {
        self.fetch
    }

    fn metrics(&self) -> ExecutionPlanMetricsSet {
        self.metrics.clone()
    }

    fn try_swapping_with_projection(&self, projection: &ProjectionExprs) -> Result<Option<Arc<dyn DataSource>>> {
        let Some(projection) = self.narrowed(projection) else {
            return Ok(None);
        };
        let schema = Arc::new(self.table.project(&projection)?);
        Ok(Some(Arc::new(Self {
            projection,
            schema,
            ..self.clone()
        })))
    }

    /// They prune; whoever asked evaluates them as well.
    fn try_pushdown_filters(
        &self,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        _: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn DataSource>>> {
        let answers = vec![PushedDown::No; filters.len()];
        let mut all = self.filters.clone();
        for filter in filters {
            all.push(reassign_expr_columns(filter, &self.table)?);
        }
        let source: Arc<dyn DataSource> = Arc::new(Self {
            filters: all,
            ..self.clone()
        });
        Ok(FilterPushdownPropagation::with_parent_pushdown_result(answers).with_updated_node(source))
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        for filter in &self.filters {
            if f(filter)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }
}

/// Row groups still to be read, shared by the partitions of one execution.
struct Work {
    queue: Mutex<(VecDeque<usize>, Pruning)>,
}

impl Work {
    fn new(scan: &SegmentScan, groups: VecDeque<usize>) -> Self {
        let pruned = MetricBuilder::new(&scan.metrics).global_counter("row_groups_pruned");
        let pruning = Pruning::new(scan, pruned);
        Self {
            queue: Mutex::new((groups, pruning)),
        }
    }

    /// The next row group that may have rows for the filters as they are now. Blocking where a footer is not in memory.
    fn next(&self) -> Option<usize> {
        let (queue, pruning) = &mut *self.queue.lock();
        pruning.retain(queue);
        queue.pop_front()
    }
}

/// What is read at once.
#[derive(Debug, Clone, Copy)]
struct Part {
    group: RowGroup,
    /// Position in the row group.
    first: usize,
    /// Where memory is short, no more rows than this.
    rows_max: Option<usize>,
}

impl Part {
    fn rows(self) -> usize {
        let rest = self.group.rows.saturating_sub(self.first);
        self.rows_max.map_or(rest, |max| rest.min(max))
    }

    /// The next part of the row group.
    fn following(self) -> Option<Self> {
        let first = self.first + self.rows();
        (first < self.group.rows).then_some(Self { first, ..self })
    }

    /// Blocking.
    fn columns(self, segment: &Segment, fields: &[FieldRef]) -> tessera_proto::Result<Vec<ArrayRef>> {
        match self.rows_max {
            None => segment.read_columns(self.group.number, fields),
            Some(_) => segment.read_rows(self.group.number, self.first..self.first + self.rows(), fields),
        }
    }
}

/// One partition being read.
struct Reader {
    scan: SegmentScan,
    work: Arc<Work>,
    rows_max: Option<usize>,
    /// Of the row group that is being read.
    rest: Option<Part>,
    fields: Vec<FieldRef>,
    filter: Option<RowFilter>,
    left: usize,
    memory: MemoryReservation,
    metrics: BaselineMetrics,
    cached: Count,
    decoded: Count,
}

/// Filters, and the columns that they need.
#[derive(Debug, Clone)]
struct RowFilter {
    fields: Vec<FieldRef>,
    schema: SchemaRef,
    predicate: Arc<dyn PhysicalExpr>,
}

impl RowFilter {
    /// `None` without filters, or when they need every column anyway.
    fn new(scan: &SegmentScan) -> Result<Option<Self>> {
        if scan.filters.is_empty() {
            return Ok(None);
        }
        let predicate = conjunction(scan.filters.iter().cloned());
        let needed: std::collections::BTreeSet<usize> = collect_columns(&predicate).iter().map(Column::index).collect();
        if needed.is_empty() || scan.projection.iter().all(|c| needed.contains(c)) {
            return Ok(None);
        }
        let schema = Arc::new(scan.table.project(&needed.into_iter().collect::<Vec<_>>())?);
        Ok(Some(Self {
            fields: schema.fields().iter().cloned().collect(),
            predicate: reassign_expr_columns(predicate, &schema)?,
            schema,
        }))
    }

    /// Whether a row may be wanted. A filter that fails (on a row that is not visible yet, or that a LIMIT
    /// never comes to) does not decide: it is evaluated again above, on the rows that count. Blocking.
    fn may_match(&self, segment: &Segment, part: Part) -> Result<bool> {
        let batch = batch(&self.schema, part.columns(segment, &self.fields)?, part.rows())?;
        let matches = self.predicate.evaluate(&batch).and_then(|m| m.into_array(part.rows()));
        Ok(matches.map_or(true, |m| m.as_boolean().true_count() > 0))
    }
}

impl Reader {
    fn new(scan: &SegmentScan, work: Arc<Work>, partition: usize, context: &TaskContext) -> Result<Self> {
        let memory = MemoryConsumer::new(format!("SegmentScan[{partition}]")).register(context.memory_pool());
        let counter = |name: &'static str| MetricBuilder::new(&scan.metrics).counter(name, partition);
        Ok(Self {
            fields: scan.schema.fields().iter().cloned().collect(),
            filter: RowFilter::new(scan)?,
            left: scan.fetch.unwrap_or(usize::MAX),
            memory,
            metrics: BaselineMetrics::new(&scan.metrics, partition),
            cached: counter("row_groups_cached"),
            decoded: counter("row_groups_decoded"),
            scan: scan.clone(),
            work,
            rows_max: frugal::scan_rows(context.session_config().options()),
            rest: None,
        })
    }

    /// The next rows, at least one; `None` at the end.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while self.left > 0 {
            let Some(part) = self.next_part() else { break };
            let Some(rows) = self.read(part).await? else {
                continue;
            };
            let rows = rows.slice(0, rows.num_rows().min(self.left));
            if rows.num_rows() > 0 {
                self.left -= rows.num_rows();
                self.metrics.record_output(rows.num_rows());
                return Ok(Some(rows));
            }
        }
        self.memory.free();
        self.metrics.done();
        Ok(None)
    }

    fn next_part(&mut self) -> Option<Part> {
        let part = self.rest.take().or_else(|| {
            let group = self.scan.groups[self.work.next()?];
            Some(Part {
                group,
                first: 0,
                rows_max: self.rows_max,
            })
        });
        self.rest = part.and_then(Part::following);
        part
    }

    /// The visible rows of a part; `None` when no filter wants any.
    async fn read(&mut self, part: Part) -> Result<Option<RecordBatch>> {
        let segment = self.scan.segments[part.group.segment].clone();
        let mut fields = self.fields.clone();
        let in_part = segment.meta.max_cts > self.scan.snapshot;
        if in_part {
            fields.push(Arc::new(Field::new(CTS_COLUMN, DataType::UInt64, false)));
        }
        let timer = self.metrics.elapsed_compute().timer();
        let columns = match segment.cached_columns(part.group.number, &fields) {
            Some(columns) => {
                self.memory.free();
                self.cached.add(1);
                columns.iter().map(|c| c.slice(part.first, part.rows())).collect()
            }
            None => {
                let filter = self.filter.clone();
                let reading = tokio::task::spawn_blocking(move || {
                    if let Some(filter) = filter
                        && !filter.may_match(&segment, part)?
                    {
                        return Ok(None);
                    }
                    // Of what is in the cache a part is no more memory.
                    let cached = |f| {
                        segment
                            .cached_columns(part.group.number, std::slice::from_ref(f))
                            .is_some()
                    };
                    let cached: Vec<bool> = fields.iter().map(cached).collect();
                    let columns = part.columns(&segment, &fields)?;
                    let decoded = columns.iter().zip(cached).filter(|(_, cached)| !cached);
                    let bytes: usize = decoded.map(|(c, _)| c.get_array_memory_size()).sum();
                    Ok::<_, datafusion::error::DataFusionError>(Some((columns, bytes)))
                });
                self.decoded.add(1);
                let read = reading
                    .await
                    .map_err(|e| Error::internal(format!("reading a segment: {e}")))?;
                let Some((columns, bytes)) = read? else { return Ok(None) };
                // The cache may not keep what was decoded: it counts as this query's until the next part.
                self.memory.resize(bytes);
                columns
            }
        };
        drop(timer);
        self.visible(columns, part, in_part).map(Some)
    }

    /// The rows of a part that are visible at the snapshot.
    fn visible(&self, mut columns: Vec<ArrayRef>, part: Part, in_part: bool) -> Result<RecordBatch> {
        let snapshot = self.scan.snapshot;
        let first = part.group.first + part.first as u64;
        let deletes = self.scan.deletes[part.group.segment].as_ref();
        let mut mask = deletes.and_then(|d| d.alive(first..first + part.rows() as u64, snapshot));
        if in_part {
            let Some(times) = columns.pop() else {
                return internal_err!("a row group was read without its commit timestamps");
            };
            let times = times.as_primitive::<UInt64Type>().values();
            let begun: BooleanArray = times.iter().map(|t| Some(*t <= snapshot.0)).collect();
            mask = Some(match mask {
                Some(alive) => and(&begun, &alive)?,
                None => begun,
            });
        }
        let rows = batch(&self.scan.schema, columns, part.rows())?;
        match mask {
            Some(mask) => Ok(filter_record_batch(&rows, &mask)?),
            None => Ok(rows),
        }
    }
}

fn batch(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}
