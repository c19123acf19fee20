//! Which row groups a scan's filters can leave out, by the zone maps of all its segments at once.
//!
//! Evaluated when the scan reads its first rows (a join above has built its side by then, and knows what keys it wants), and
//! again whenever a dynamic filter has changed since. A row group that is left out has no row for which the filters are true.

use crate::scan::segment_scan::{RowGroup, SegmentScan};
use crate::storage::version::Segment;
use datafusion::arrow::array::{ArrayRef, BooleanArray, UInt64Array, new_null_array};
use datafusion::arrow::compute::concat;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::Column;
use datafusion::common::pruning::PruningStatistics;
use datafusion::physical_expr::utils::conjunction;
use datafusion::physical_expr::{DynamicFilterTracking, PhysicalExpr};
use datafusion::physical_optimizer::pruning::build_pruning_predicate;
use datafusion::physical_plan::metrics::Count;
use datafusion::scalar::ScalarValue;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// See the module.
pub(super) struct Pruning {
    segments: Arc<[Arc<Segment>]>,
    groups: Arc<[RowGroup]>,
    table: SchemaRef,
    predicate: Option<Arc<dyn PhysicalExpr>>,
    tracking: DynamicFilterTracking,
    begun: bool,
    pruned: Count,
}

impl Pruning {
    /// Of a scan; counts in `pruned`.
    pub fn new(scan: &SegmentScan, pruned: Count) -> Self {
        let predicate = (!scan.filters.is_empty()).then(|| conjunction(scan.filters.iter().cloned()));
        let tracking = predicate
            .as_ref()
            .map_or(DynamicFilterTracking::Static, DynamicFilterTracking::classify);
        Self {
            segments: scan.segments.clone(),
            groups: scan.groups.clone(),
            table: scan.table.clone(),
            predicate,
            tracking,
            begun: false,
            pruned,
        }
    }

    /// Removes what the filters as they are now leave out. Blocking where a footer is not in memory.
    pub fn retain(&mut self, queue: &mut VecDeque<usize>) {
        let first = !std::mem::replace(&mut self.begun, true);
        let changed = self.tracking.watcher().is_some_and(|w| w.changed());
        let Some(predicate) = self
            .predicate
            .as_ref()
            .filter(|_| (first || changed) && !queue.is_empty())
        else {
            return;
        };
        let Some(pruning) = build_pruning_predicate(predicate.clone(), &self.table, &Count::new()) else {
            return;
        };
        // Without an answer everything is read: what is pruned is never needed, and what is read is filtered above.
        let Ok(keep) = pruning.prune(&Zones(self)) else { return };
        let before = queue.len();
        queue.retain(|group| keep.get(*group).copied().unwrap_or(true));
        self.pruned.add(before - queue.len());
    }
}

/// Zone maps of all row groups, in order.
struct Zones<'a>(&'a Pruning);

impl Zones<'_> {
    fn of(&self, column: &Column, part: impl Fn(crate::storage::ZoneMap) -> ArrayRef) -> Option<ArrayRef> {
        let field = self.0.table.field_with_name(&column.name).ok()?;
        let arrays: Option<Vec<ArrayRef>> = self
            .0
            .segments
            .iter()
            .map(|segment| match segment.zone_map(field) {
                Some(zones) => Some(part(zones)),
                // Unknown here, perhaps known of others.
                None => Some(new_null_array(field.data_type(), segment.row_groups().ok()?.len())),
            })
            .collect();
        let arrays = arrays?;
        let parts: Vec<_> = arrays.iter().map(AsRef::as_ref).collect();
        concat(&parts).ok().filter(|all| all.len() == self.0.groups.len())
    }
}

impl PruningStatistics for Zones<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.of(column, |zones| zones.min)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.of(column, |zones| zones.max)
    }

    fn num_containers(&self) -> usize {
        self.0.groups.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let field = self.0.table.field_with_name(&column.name).ok()?;
        let zones: Option<Vec<_>> = self.0.segments.iter().map(|s| s.zone_map(field)).collect();
        let counts = zones?.into_iter().flat_map(|z| z.nulls.iter().collect::<Vec<_>>());
        let counts: UInt64Array = counts.collect();
        (counts.len() == self.0.groups.len()).then(|| Arc::new(counts) as ArrayRef)
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        let rows = self.0.groups.iter().map(|g| g.rows as u64);
        Some(Arc::new(rows.collect::<UInt64Array>()))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
