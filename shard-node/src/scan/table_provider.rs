//! One table over several shards at one snapshot, as DataFusion sees it: visible columns only.
//!
//! ```text
//!   UnionExec
//!     DataSourceExec: ParquetSource            segments wholly visible at S: exactly a Parquet scan
//!     FilterExec __cts <= S ─ DataSourceExec   segments visible in part (rare: sealed across S)
//!     DataSourceExec: memory                   rows in memory
//! ```
//!
//! Parts that are empty are left out. Pruning by row group, page and bloom filter and dynamic filters are DataFusion's own.
//! Filters are `Inexact`: they prune here and are evaluated above. Statistics are inexact, because other snapshots' rows are
//! counted. No ordering is claimed: delta and segments overlap. Not yet: decoded column cache, late materialisation.

use crate::scan::interval::with_intervals;
use crate::scan::segment_file::SegmentFiles;
use crate::storage::ShardStore;
use crate::storage::segment::{CTS_COLUMN, stored_schema};
use crate::storage::statistics::TableSummary;
use crate::storage::version::{Segment, TableVersion};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::memory::{DataSourceExec, MemorySourceConfig};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::config::TableParquetOptions;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, DFSchema, Result, ScalarValue, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::expressions::{BinaryExpr, Column, lit};
use datafusion::physical_plan::filter::FilterExecBuilder;
use datafusion::physical_plan::union::UnionExec;
use std::sync::{Arc, OnceLock};
use tessera_proto::Timestamp;
use tessera_proto::table::TableDef;

/// Rows of a batch in memory given to operators at a time: DataFusion's own batch size.
const BATCH_ROWS: usize = 8_192;
/// Rows in memory that make another partition worth its cost.
const PARTITION_ROWS: usize = 65_536;

/// The rows of `def` in `stores` that are visible at `snapshot`; visible columns only.
pub fn shard_table(def: Arc<TableDef>, stores: Vec<ShardStore>, snapshot: Timestamp) -> Arc<dyn TableProvider> {
    Arc::new(ShardTable::new(def, &stores, snapshot))
}

/// A table at a snapshot. Holds the versions it was made with, so that two scans of one query see the same rows.
#[derive(Debug)]
pub struct ShardTable {
    def: Arc<TableDef>,
    schema: SchemaRef,
    versions: Vec<Arc<TableVersion>>,
    snapshot: Timestamp,
    summary: OnceLock<TableSummary>,
}

impl ShardTable {
    /// See [`shard_table`].
    pub fn new(def: Arc<TableDef>, stores: &[ShardStore], snapshot: Timestamp) -> Self {
        let versions = stores
            .iter()
            .filter_map(|s| s.version().tables.get(&def.id).cloned())
            .collect();
        Self {
            schema: def.visible_schema(),
            def,
            versions,
            snapshot,
            summary: OnceLock::new(),
        }
    }

    fn segments(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.versions.iter().flat_map(|v| &v.segments)
    }

    fn estimates(&self) -> Statistics {
        let summary = self.summary.get_or_init(|| {
            let mut summary = TableSummary::empty(&self.def);
            self.versions.iter().for_each(|v| summary.add(&self.def, v));
            summary
        });
        let value = |v: &Option<ScalarValue>| v.clone().map_or(Precision::Absent, Precision::Inexact);
        let columns = summary
            .columns
            .iter()
            .take(self.schema.fields().len())
            .map(|c| ColumnStatistics {
                null_count: Precision::Inexact(c.nulls as usize),
                min_value: value(&c.min),
                max_value: value(&c.max),
                distinct_count: c
                    .sketch
                    .as_ref()
                    .map_or(Precision::Absent, |s| Precision::Inexact(s.count() as usize)),
                ..ColumnStatistics::new_unknown()
            });
        Statistics {
            num_rows: Precision::Inexact(summary.rows as usize),
            total_byte_size: Precision::Inexact(summary.rows as usize * row_bytes(&self.schema)),
            column_statistics: columns.collect(),
        }
    }

    /// Scans segments; those visible in part with their commit timestamps.
    fn parquet(
        &self,
        state: &dyn Session,
        scan: &Scan<'_>,
        segments: &[&Arc<Segment>],
        in_part: bool,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let stored = stored_schema(&self.schema, in_part);
        let options = TableParquetOptions {
            global: state.config_options().execution.parquet.clone(),
            ..Default::default()
        };
        let mut source = ParquetSource::new(&stored)
            .with_table_parquet_options(options)
            .with_parquet_file_reader_factory(Arc::new(SegmentFiles));
        if let Some(predicate) = &scan.predicate {
            source = source.with_predicate(predicate.clone());
        }
        let mut statistics = self.estimates();
        let mut columns: Vec<usize> = match scan.projection {
            Some(columns) => columns.clone(),
            None => (0..self.schema.fields().len()).collect(),
        };
        if in_part {
            statistics.column_statistics.push(ColumnStatistics::new_unknown());
            columns.push(self.schema.fields().len());
        }
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), Arc::new(source))
            .with_file_groups(file_groups(segments, state.config().target_partitions()))
            .with_statistics(statistics)
            .with_projection_indices(Some(columns))?
            .with_limit(scan.limit.filter(|_| !in_part))
            .build();
        let plan: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(config);
        let plan = if in_part { self.only_visible(plan)? } else { plan };
        with_intervals(plan, &scan.schema)
    }

    /// Drops rows committed after the snapshot, and the commit timestamps, which stand last.
    fn only_visible(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        let last = plan.schema().fields().len() - 1;
        let cts: Arc<dyn PhysicalExpr> = Arc::new(Column::new(CTS_COLUMN, last));
        let visible = Arc::new(BinaryExpr::new(cts, Operator::LtEq, lit(self.snapshot.0)));
        let filter = FilterExecBuilder::new(visible, plan)
            .apply_projection(Some((0..last).collect()))?
            .build()?;
        Ok(Arc::new(filter))
    }

    /// Rows in memory; nothing when there are none.
    fn memory(&self, scan: &Scan<'_>, partitions: usize) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let mut batches = Vec::new();
        for chunk in self.versions.iter().flat_map(|v| &v.chunks) {
            if let Some(batch) = chunk.visible(self.snapshot)? {
                batches.push(self.shape(scan, &batch)?);
            }
        }
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        if rows == 0 {
            return Ok(None);
        }
        let mut parts = vec![Vec::new(); rows.div_ceil(PARTITION_ROWS).min(partitions).max(1)];
        let slices = batches.iter().flat_map(|b| {
            (0..b.num_rows())
                .step_by(BATCH_ROWS)
                .map(|at| b.slice(at, BATCH_ROWS.min(b.num_rows() - at)))
        });
        let count = parts.len();
        slices.enumerate().for_each(|(at, slice)| parts[at % count].push(slice));
        let source = MemorySourceConfig::try_new(&parts, scan.schema.clone(), None)?.with_limit(scan.limit);
        Ok(Some(DataSourceExec::from_data_source(source)))
    }

    /// The projected columns, also of rows written under an older definition.
    fn shape(&self, scan: &Scan<'_>, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns = scan
            .schema
            .fields()
            .iter()
            .map(|f| match batch.column_by_name(f.name()) {
                Some(column) => column.clone(),
                None => datafusion::arrow::array::new_null_array(f.data_type(), batch.num_rows()),
            });
        let options = datafusion::arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(
            scan.schema.clone(),
            columns.collect(),
            &options,
        )?)
    }

    /// The filters that can prune segments, over the visible columns.
    fn predicate(&self, state: &dyn Session, filters: &[Expr]) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let stored_otherwise = |e: &&Expr| {
            e.column_refs().iter().any(|c| {
                self.schema
                    .field_with_name(&c.name)
                    .is_ok_and(|f| matches!(f.data_type(), DataType::Interval(_)))
            })
        };
        let Some(filter) = conjunction(filters.iter().filter(|e| !stored_otherwise(e)).cloned()) else {
            return Ok(None);
        };
        let schema = DFSchema::try_from(self.schema.as_ref().clone())?;
        state.create_physical_expr(filter, &schema).map(Some)
    }
}

/// What one scan asks for.
struct Scan<'a> {
    projection: Option<&'a Vec<usize>>,
    schema: SchemaRef,
    predicate: Option<Arc<dyn PhysicalExpr>>,
    limit: Option<usize>,
}

#[async_trait::async_trait]
impl TableProvider for ShardTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => self.schema.clone(),
        };
        // Filters are evaluated above this scan: a limit would count rows that they drop.
        let limit = limit.filter(|_| filters.is_empty());
        let scan = Scan {
            projection,
            schema,
            predicate: self.predicate(state, filters)?,
            limit,
        };
        let visible = self.segments().filter(|s| s.meta.min_cts <= self.snapshot);
        let (whole, in_part): (Vec<_>, Vec<_>) = visible.partition(|s| s.meta.max_cts <= self.snapshot);
        let mut parts = Vec::new();
        if !whole.is_empty() {
            parts.push(self.parquet(state, &scan, &whole, false)?);
        }
        if !in_part.is_empty() {
            parts.push(self.parquet(state, &scan, &in_part, true)?);
        }
        parts.extend(self.memory(&scan, state.config().target_partitions())?);
        match parts.len() {
            0 => Ok(DataSourceExec::from_data_source(MemorySourceConfig::try_new(
                &[vec![]],
                scan.schema,
                None,
            )?)),
            1 => Ok(parts.remove(0)),
            _ => UnionExec::try_new(parts),
        }
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    fn statistics(&self) -> Option<Statistics> {
        Some(self.estimates())
    }
}

/// Spreads files over at most `partitions` groups of about equal bytes: largest first, each to the smallest group.
fn file_groups(segments: &[&Arc<Segment>], partitions: usize) -> Vec<FileGroup> {
    let mut sorted = segments.to_vec();
    sorted.sort_by_key(|s| std::cmp::Reverse(s.meta.bytes));
    let mut groups = vec![(0u64, Vec::new()); partitions.clamp(1, segments.len().max(1))];
    for segment in sorted {
        let file = PartitionedFile::new(segment.path.to_string_lossy(), segment.meta.bytes)
            .with_extension::<Arc<Segment>>((*segment).clone());
        if let Some(smallest) = groups.iter_mut().min_by_key(|(bytes, _)| *bytes) {
            smallest.0 += segment.meta.bytes;
            smallest.1.push(file);
        }
    }
    groups.into_iter().map(|(_, files)| FileGroup::new(files)).collect()
}

/// Rough memory of one row: texts count as 32 bytes.
fn row_bytes(schema: &SchemaRef) -> usize {
    schema
        .fields()
        .iter()
        .map(|f| f.data_type().primitive_width().unwrap_or(32))
        .sum()
}
