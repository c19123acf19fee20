//! Which keys are worth reading first.
//!
//! ```text
//!   keys     least of: rows of the leaf, distinct values of the column           1,300 of part
//!   share    keys / distinct values of the target's column                       1,300 / 200,000 of lineitem
//!   saved    (1 - share) of the target's rows and bytes
//!   spent    a round trip, the leaf's rows once more, the keys to every owner
//! ```
//!
//! Leaves are put in the order of their rows, and each may be filtered by smaller ones alone: so there are no circles, and
//! what a filter leaves of a leaf is known before its own keys are counted. Keys and values count as drawn from one
//! domain: a key of one side is one of the other.

use super::candidates::{Candidate, Keys, Target};
use super::sketch::{Sketch, Unit};
use crate::SemiJoinFilters;
use crate::cluster::{Cluster, table_of};
use crate::join_order::{distinct, estimate};
use datafusion::common::Statistics;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{LogicalPlan, TableScan};
use tessera_proto::broadcast::width;
use tessera_proto::key_filter::{KEYS_MAX, SET_BYTES_MAX};

/// Filters of all leaves of a query, so that a leaf's request grows by 8 MiB at most.
const FILTERS_MAX: usize = 8;
/// Asking all nodes for keys and waiting for them, nanoseconds.
const ROUND_NS: f64 = 2e6;
/// Reading a row once more, on one node.
const SCAN_NS: f64 = 15.0;
/// A key: made distinct, sent, put into a set.
const KEY_NS: f64 = 100.0;
/// A row that a join does not see, as in `join_order/cost.rs`; it is made and sent by one of the nodes.
const ROW_NS: f64 = 50.0;
/// A byte that is not sent.
const BYTE_NS: f64 = 0.7;
/// Estimates are rough: what is saved must be so many times what is spent.
const MARGIN: f64 = 2.0;
/// A filter that keeps more is not worth evaluating.
const SHARE_MAX: f64 = 0.7;

/// Keys to be read, and by which leaves they are waited for.
#[derive(Debug, Clone)]
pub struct Choice {
    pub source: Keys,
    /// Each with the share of its rows that is believed to stay.
    pub targets: Vec<(Target, f64)>,
    /// How many keys are expected.
    pub keys: Option<usize>,
    /// 0, or one more than the last of the filters on the source itself.
    pub wave: usize,
}

/// What is believed of one leaf.
struct Known {
    statistics: Statistics,
    rows: Option<f64>,
    /// Bytes of a row.
    width: f64,
    nodes: f64,
    wave: usize,
}

/// The choices, each after those that its source is filtered by.
pub async fn choose(
    sketch: &Sketch<'_>,
    candidates: Vec<Candidate>,
    mode: SemiJoinFilters,
    bare: &SessionState,
    cluster: &Cluster,
) -> Vec<Choice> {
    if mode == SemiJoinFilters::Auto && !candidates.iter().any(|c| is_conceivable(sketch, c)) {
        return vec![];
    }
    let mut known = vec![];
    for unit in &sketch.units {
        known.push(Known::of(unit, bare, cluster).await);
    }
    // Unknown ones last.
    let rank = |unit: usize| (known[unit].rows.map_or(u64::MAX, |rows| rows as u64), unit);
    let ranks: Vec<_> = (0..known.len()).map(rank).collect();
    let mut candidates = candidates;
    candidates.sort_by_key(|c| ranks[c.source.place.unit]);
    let (mut choices, mut filters) = (vec![], 0);
    for candidate in candidates {
        let source = candidate.source.place.unit;
        if mode == SemiJoinFilters::Auto && candidate.limited {
            continue;
        }
        let keys = known[source].values(&candidate.source);
        if keys.is_some_and(|keys| keys > KEYS_MAX as f64) {
            continue;
        }
        let larger = candidate.targets.into_iter().filter(|t| ranks[source] < ranks[t.keys.place.unit]);
        let mut targets: Vec<(Target, Option<f64>)> = larger
            .map(|target| {
                let there = known[target.keys.place.unit].values(&target.keys);
                let share = keys.zip(there).map(|(keys, there)| (keys / there.max(1.0)).min(1.0));
                (target, share)
            })
            .collect();
        if mode == SemiJoinFilters::Auto {
            targets.retain(|(_, share)| share.is_some_and(|share| share <= SHARE_MAX));
        }
        targets.truncate(FILTERS_MAX - filters);
        if targets.is_empty() {
            continue;
        }
        if mode == SemiJoinFilters::Auto {
            let saved: f64 = targets.iter().filter_map(|(t, share)| known[t.keys.place.unit].saved(*share)).sum();
            let unit = &sketch.units[source];
            if saved < MARGIN * known[source].spent(unit.plan, keys, targets.len()) {
                continue;
            }
        }
        filters += targets.len();
        let wave = known[source].wave;
        for (target, share) in &targets {
            known[target.keys.place.unit].filtered(*share, wave);
        }
        choices.push(Choice {
            source: candidate.source,
            targets: targets.into_iter().map(|(t, share)| (t, rounded(share))).collect(),
            keys: keys.map(|keys| keys as usize),
            wave,
        });
    }
    choices
}

/// Whether a candidate could pay if its targets gave all rows of their tables and none of them were wanted. Estimates cost a
/// fraction of a millisecond for each leaf; this costs nothing.
fn is_conceivable(sketch: &Sketch<'_>, candidate: &Candidate) -> bool {
    let most = candidate.targets.iter().map(|target| {
        let plan = sketch.units[target.keys.place.unit].plan;
        scanned(plan) * (ROW_NS + row_width(plan) * BYTE_NS)
    });
    !candidate.limited && most.sum::<f64>() >= MARGIN * ROUND_NS
}

/// Three digits are more than anybody knows.
fn rounded(share: Option<f64>) -> f64 {
    let share = share.unwrap_or(1.0).max(1e-6);
    let unit = 10f64.powf(2.0 - share.log10().floor());
    (share * unit).round() / unit
}

impl Known {
    async fn of(unit: &Unit<'_>, bare: &SessionState, cluster: &Cluster) -> Self {
        let statistics = estimate(unit.plan, bare).await;
        let nodes = cluster.owners(&unit.locality.reads.shards);
        Self {
            rows: statistics.num_rows.get_value().map(|rows| (*rows as f64).max(1.0)),
            width: row_width(unit.plan),
            nodes: nodes.map_or(1, |nodes| nodes.len().max(1)) as f64,
            wave: 0,
            statistics,
        }
    }

    /// Different values of a column.
    fn values(&self, keys: &Keys) -> Option<f64> {
        let rows = self.rows?;
        Some(distinct(&self.statistics, keys.place.column).map_or(rows, |values| values.clamp(1.0, rows.max(1.0))))
    }

    /// Nanoseconds that a filter saves.
    fn saved(&self, share: Option<f64>) -> Option<f64> {
        let gone = self.rows? * (1.0 - share?);
        Some(gone * (ROW_NS / self.nodes + self.width * BYTE_NS))
    }

    /// Nanoseconds that reading these keys takes, and sending them to so many leaves.
    fn spent(&self, plan: &LogicalPlan, keys: Option<f64>, targets: usize) -> f64 {
        let rounds = (self.wave + 1) as f64;
        let keys = keys.unwrap_or(KEYS_MAX as f64);
        let set = (keys * 2.0).min(SET_BYTES_MAX as f64) * self.nodes * targets as f64;
        rounds * ROUND_NS + scanned(plan) * SCAN_NS / self.nodes + keys * KEY_NS + set * BYTE_NS
    }

    /// After a filter of this wave.
    fn filtered(&mut self, share: Option<f64>, wave: usize) {
        if let Some(rows) = &mut self.rows {
            *rows = (*rows * share.unwrap_or(1.0)).max(1.0);
        }
        self.wave = self.wave.max(wave + 1);
    }
}

/// Bytes of a row of a subtree.
fn row_width(plan: &LogicalPlan) -> f64 {
    plan.schema().fields().iter().map(|f| width(f.data_type())).sum::<usize>() as f64
}

/// Rows of all tables of a subtree.
fn scanned(plan: &LogicalPlan) -> f64 {
    let mut rows = 0.0;
    // Never fails.
    let _ = plan.apply(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            rows += rows_of(scan);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    rows
}

fn rows_of(scan: &TableScan) -> f64 {
    let provider = datafusion::catalog::default_table_source::source_as_provider(&scan.source);
    let statistics = provider.ok().filter(|_| table_of(&scan.source).is_some()).and_then(|p| p.statistics());
    let rows = statistics.and_then(|s| s.num_rows.get_value().copied());
    rows.unwrap_or(0) as f64
}
