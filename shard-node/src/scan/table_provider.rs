//! One table over several shards at one snapshot, as DataFusion sees it: visible columns only.
//!
//! ```text
//!   UnionExec
//!     DataSourceExec: SegmentScan    rows in files that are visible at S
//!     DataSourceExec: memory         rows in memory
//! ```
//!
//! Parts that are empty are left out. Filters are `Inexact`: they prune here and are evaluated above. Statistics are
//! inexact, because other snapshots' rows are counted. No ordering is claimed: delta and segments overlap.

use crate::scan::segment_scan::{RowGroup, SegmentScan, row_groups};
use crate::storage::ShardStore;
use crate::storage::statistics::TableSummary;
use crate::storage::version::{Segment, TableVersion};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::memory::{DataSourceExec, MemorySourceConfig};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, DFSchema, Result, ScalarValue, Statistics};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::union::UnionExec;
use std::sync::{Arc, OnceLock};
use tessera_proto::Timestamp;
use tessera_proto::table::TableDef;

/// Rows of a batch in memory given to operators at a time: DataFusion's own batch size.
const BATCH_ROWS: usize = 8_192;
/// Rows in memory that make another partition worth its cost.
const PARTITION_ROWS: usize = 65_536;

/// The rows of `def` in `stores` that are visible at `snapshot`; the columns users see, and the hidden row id if asked for.
pub fn shard_table(
    def: Arc<TableDef>,
    stores: Vec<ShardStore>,
    snapshot: Timestamp,
    row_id: bool,
) -> Arc<dyn TableProvider> {
    let versions = stores
        .iter()
        .filter_map(|s| s.version().tables.get(&def.id).cloned())
        .collect();
    Arc::new(ShardTable::new(def, versions, snapshot, row_id))
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
    /// The rows of `versions`, one of each shard, that are visible at `snapshot`; see [`shard_table`].
    pub fn new(def: Arc<TableDef>, versions: Vec<Arc<TableVersion>>, snapshot: Timestamp, row_id: bool) -> Self {
        Self {
            schema: if row_id {
                def.arrow_schema()
            } else {
                def.visible_schema()
            },
            def,
            versions,
            snapshot,
            summary: OnceLock::new(),
        }
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

    /// Scans the segments that have visible rows; nothing when there are none. Blocking where a footer is not in memory.
    fn files(&self, scan: &Scan<'_>, partitions: usize) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let (mut segments, mut deletes) = (vec![], vec![]);
        for version in &self.versions {
            for segment in version.segments.iter().filter(|s| s.meta.min_cts <= self.snapshot) {
                deletes.push(version.deletes_of(segment).cloned());
                segments.push(segment.clone());
            }
        }
        let segments: Arc<[Arc<Segment>]> = segments.into();
        let groups: Arc<[RowGroup]> = row_groups(&segments)?.into();
        if groups.is_empty() {
            return Ok(None);
        }
        let source = SegmentScan {
            partitions: partitions.clamp(1, groups.len()),
            segments,
            deletes: deletes.into(),
            groups,
            table: self.schema.clone(),
            projection: match scan.projection {
                Some(columns) => columns.clone(),
                None => (0..self.schema.fields().len()).collect(),
            },
            schema: scan.schema.clone(),
            snapshot: self.snapshot,
            filters: scan.predicate.iter().cloned().collect(),
            statistics: Arc::new(self.estimates()),
            fetch: scan.limit,
            metrics: ExecutionPlanMetricsSet::new(),
        };
        Ok(Some(DataSourceExec::from_data_source(source)))
    }

    /// Rows in memory; nothing when there are none.
    fn memory(&self, scan: &Scan<'_>, partitions: usize) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let mut batches = Vec::new();
        for version in &self.versions {
            for chunk in &version.chunks {
                if let Some(batch) = chunk.visible(&version.removed, self.snapshot)? {
                    batches.push(self.shape(scan, &batch)?);
                }
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

    /// The filters, over the visible columns.
    fn predicate(&self, state: &dyn Session, filters: &[Expr]) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let Some(filter) = conjunction(filters.iter().cloned()) else {
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
        for version in &self.versions {
            version.check_readable(self.snapshot)?;
        }
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
        let partitions = state.config().target_partitions();
        let mut parts: Vec<_> = self.files(&scan, partitions)?.into_iter().collect();
        parts.extend(self.memory(&scan, partitions)?);
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

/// Rough memory of one row: texts count as 32 bytes.
fn row_bytes(schema: &SchemaRef) -> usize {
    schema
        .fields()
        .iter()
        .map(|f| f.data_type().primitive_width().unwrap_or(32))
        .sum()
}
