//! What the nodes report about tables and themselves, added up for the planner.
//!
//! ```text
//!   node 1: shard 0 (leader) rows 10, a: 10 distinct      ┐
//!   node 2: shard 0 (follower) ... not counted            ├─▶ table: rows 30, a: 30 distinct (sum: nearly unique per shard,
//!           shard 1 (leader) rows 20, a: 20 distinct      ┘   or a is the shard key; else the largest shard's)
//! ```
//!
//! Everything is `Inexact`: rows come and go between two polls. The most common values: `common_values.rs`.

use super::common_values;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};
use datafusion_proto::protobuf;
use futures::StreamExt;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tessera_meta::view::ClusterView;
use tessera_proto::common_values::{CommonValues, TableCommonValues};
use tessera_proto::service::NodeDirectory;
use tessera_proto::table::TableDef;
use tessera_proto::{GroupId, NodeId, ShardId, TableId, Timestamp, v1};

/// Nodes asked at the same time.
const NODES_AT_ONCE: usize = 16;
/// A node that has not answered by then is not alive for placement.
const STATUS_WAIT: Duration = Duration::from_secs(5);
/// Distinct values of a shard against its rows: above this share, shards are taken to have different values.
const NEARLY_UNIQUE: f64 = 0.5;

/// All nodes' last answers, and the tables' statistics made of them.
#[derive(Debug, Clone, Default)]
pub struct ClusterStatistics {
    /// Status of every node that answered the last time it was asked.
    pub statuses: Arc<BTreeMap<NodeId, v1::StatusReply>>,
    /// Nodes that did not.
    pub silent: BTreeSet<NodeId>,
    /// By table.
    pub tables: HashMap<TableId, TableEstimates>,
}

/// What is believed of a table's rows, over its visible columns.
#[derive(Debug, Clone)]
pub struct TableEstimates {
    /// Rows, bytes; least, greatest, NULLs and distinct values of each column.
    pub statistics: Statistics,
    /// The most common values of each column.
    pub common: TableCommonValues,
}

impl ClusterStatistics {
    /// Whether a node answered when it was asked last; nodes never asked count as alive.
    pub fn is_alive(&self, node: NodeId) -> bool {
        !self.silent.contains(&node)
    }
}

/// Asks every node of the view, for statistics with what committed up to `snapshot` if there is one. Tables with a silent leader
/// keep their last statistics.
pub async fn collect(
    view: &ClusterView,
    directory: &dyn NodeDirectory,
    last: &ClusterStatistics,
    snapshot: Option<Timestamp>,
) -> ClusterStatistics {
    let request = v1::StatusRequest {
        statistics: true,
        snapshot: snapshot.map_or(0, |at| at.0),
    };
    let ask = |node: NodeId| async move { (node, ask(directory, node, request).await) };
    let answers: Vec<_> = futures::stream::iter(view.nodes.keys().copied().map(ask))
        .buffer_unordered(NODES_AT_ONCE)
        .collect()
        .await;
    let (mut statuses, mut silent) = (BTreeMap::new(), BTreeSet::new());
    for (node, answer) in answers {
        match answer {
            Some(status) => drop(statuses.insert(node, status)),
            None => drop(silent.insert(node)),
        }
    }
    let mut tables = tables(view, &statuses);
    for (id, old) in &last.tables {
        let group = view.tables.get(id).map(|t| t.group);
        let unheard = group.is_some_and(|g| {
            view.group_shards(g)
                .any(|(_, e)| silent.contains(&e.config.leader.node))
        });
        if unheard {
            tables.insert(*id, old.clone());
        }
    }
    ClusterStatistics {
        statuses: Arc::new(statuses),
        silent,
        tables,
    }
}

/// A node's status without statistics, or `None` when it does not answer in time.
pub async fn status(directory: &dyn NodeDirectory, node: NodeId) -> Option<v1::StatusReply> {
    ask(directory, node, v1::StatusRequest::default()).await
}

async fn ask(directory: &dyn NodeDirectory, node: NodeId, request: v1::StatusRequest) -> Option<v1::StatusReply> {
    let service = directory.node(node).ok()?;
    let call = service.status(request);
    match tokio::time::timeout(STATUS_WAIT, call).await {
        Ok(Ok(reply)) => Some(reply),
        Ok(Err(error)) => {
            tracing::debug!(%node, %error, "node status unknown");
            None
        }
        Err(_) => None,
    }
}

/// Adds up the leaders' reports per table.
fn tables(view: &ClusterView, statuses: &BTreeMap<NodeId, v1::StatusReply>) -> HashMap<TableId, TableEstimates> {
    let mut parts: HashMap<TableId, Vec<&v1::TableStatistics>> = HashMap::new();
    for (node, status) in statuses {
        for shard in &status.shards {
            let id = shard.shard.as_ref().map(|s| ShardId {
                group: GroupId(s.group),
                index: s.index,
            });
            let leads = id
                .and_then(|id| view.shards.get(&id))
                .is_some_and(|e| e.config.leader.node == *node);
            if leads {
                for table in &shard.tables {
                    parts.entry(TableId(table.table)).or_default().push(table);
                }
            }
        }
    }
    let known = parts
        .into_iter()
        .filter_map(|(id, parts)| Some((id, sum(view.tables.get(&id)?, &parts))));
    known.collect()
}

fn sum(table: &TableDef, parts: &[&v1::TableStatistics]) -> TableEstimates {
    let rows: u64 = parts.iter().map(|p| p.rows).sum();
    let bytes: u64 = parts.iter().map(|p| p.bytes).sum();
    let visible = table.columns.iter().enumerate().filter(|(_, c)| !c.hidden);
    let spread = |i: usize| match table.shard_key() {
        [key] if *key == i => Spread::Disjoint,
        _ => Spread::Unknown,
    };
    let columns = visible.map(|(i, _)| {
        let mut known = column(i, rows, parts, spread(i));
        let common = common(i, parts, &known);
        // The shards' values overlap to an unknown part, but these are all different.
        known.distinct_count = known.distinct_count.max(&Precision::Inexact(common.len()));
        (known, common)
    });
    let (column_statistics, common): (Vec<_>, Vec<_>) = columns.unzip();
    let statistics = Statistics {
        num_rows: Precision::Inexact(rows as usize),
        total_byte_size: Precision::Inexact(bytes as usize),
        column_statistics,
    };
    TableEstimates {
        statistics,
        common: common.into(),
    }
}

fn common(index: usize, parts: &[&v1::TableStatistics], known: &ColumnStatistics) -> CommonValues {
    let told = parts.iter().filter_map(|p| Some((p.rows, p.columns.get(index)?)));
    let number = |known: &Precision<usize>| known.get_value().map(|n| *n as u64);
    match number(&known.distinct_count) {
        Some(distinct) => {
            let nulls = number(&known.null_count).unwrap_or(0);
            common_values::of_column(&told.collect::<Vec<_>>(), distinct, nulls)
        }
        None => CommonValues::default(),
    }
}

/// How a column's values are spread over the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spread {
    /// No value is in two shards: the column alone is the shard key.
    Disjoint,
    /// Nobody knows.
    Unknown,
}

fn column(index: usize, rows: u64, parts: &[&v1::TableStatistics], spread: Spread) -> ColumnStatistics {
    let columns: Vec<_> = parts
        .iter()
        .filter_map(|p| p.columns.get(index).map(|c| (p.rows, c)))
        .collect();
    let mut out = ColumnStatistics::new_unknown();
    if columns.is_empty() {
        return out;
    }
    out.null_count = Precision::Inexact(columns.iter().map(|(_, c)| c.nulls as usize).sum());
    if let Some(distinct) = distinct(rows, &columns, spread) {
        out.distinct_count = Precision::Inexact(distinct as usize);
    }
    // A shard without rows knows no bounds, and that is no gap; one with rows and no bounds is.
    let bounds = |pick: fn(&v1::ColumnStatistics) -> &[u8]| -> Option<Vec<ScalarValue>> {
        columns
            .iter()
            .filter(|(rows, c)| *rows > c.nulls)
            .map(|(_, c)| scalar(pick(c)))
            .collect()
    };
    let less = |a: &ScalarValue, b: &ScalarValue| a.partial_cmp(b) == Some(std::cmp::Ordering::Less);
    if let Some(low) = bounds(|c| &c.min).and_then(|v| v.into_iter().reduce(|a, b| if less(&b, &a) { b } else { a })) {
        out.min_value = Precision::Inexact(low);
    }
    if let Some(high) = bounds(|c| &c.max).and_then(|v| v.into_iter().reduce(|a, b| if less(&a, &b) { b } else { a })) {
        out.max_value = Precision::Inexact(high);
    }
    out
}

/// Distinct values in all shards, which tell how many each has; `None` if they have none. Shards that have a value for nearly every
/// row have different ones, and so have those of which that is true beside their common values.
fn distinct(rows: u64, parts: &[(u64, &v1::ColumnStatistics)], spread: Spread) -> Option<u64> {
    let (mut most, mut all) = (0_u64, 0_u64);
    let (mut common, mut others, mut rows_of_others) = (0_u64, 0_u64, 0_u64);
    for (rows, column) in parts {
        most = most.max(column.distinct);
        all = all.saturating_add(column.distinct);
        let valued = rows.saturating_sub(column.nulls);
        let told = column.common.iter().flat_map(|told| &told.values);
        let above = told.filter(|v| u128::from(v.rows) * u128::from(column.distinct) > u128::from(valued));
        let (values, of_them) = above.fold((0, 0_u64), |(n, sum), v| (n + 1, sum.saturating_add(v.rows)));
        common = common.max(values);
        others = others.saturating_add(column.distinct.saturating_sub(values));
        rows_of_others = rows_of_others.saturating_add(valued.saturating_sub(of_them));
    }
    let distinct = if spread == Spread::Disjoint || all as f64 > NEARLY_UNIQUE * rows as f64 {
        all
    } else if others as f64 > NEARLY_UNIQUE * rows_of_others as f64 {
        common.saturating_add(others)
    } else {
        most
    };
    (most > 0).then(|| distinct.clamp(1, rows.max(1)))
}

/// A value of a report.
pub(super) fn scalar(bytes: &[u8]) -> Option<ScalarValue> {
    if bytes.is_empty() {
        return None;
    }
    let message = protobuf::ScalarValue::decode(bytes).ok()?;
    ScalarValue::try_from(&message).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Orders of four lines each: few distinct values per row, but no order is in two shards.
    #[test]
    fn values_of_a_shard_key_are_never_counted_as_shared() {
        let column_statistics = v1::ColumnStatistics {
            distinct: 250,
            ..Default::default()
        };
        let shard = v1::TableStatistics {
            rows: 1_000,
            columns: vec![column_statistics],
            ..Default::default()
        };
        let parts = [&shard, &shard, &shard];
        let distinct = |spread| column(0, 3_000, &parts, spread).distinct_count;
        assert_eq!(distinct(Spread::Disjoint), Precision::Inexact(750));
        assert_eq!(distinct(Spread::Unknown), Precision::Inexact(250));
    }

    /// One value has 800 of 1,000 rows, and each of the others has one or ten.
    #[test]
    fn values_beside_common_ones_may_be_unique() {
        let shard = |others: u64| v1::ColumnStatistics {
            distinct: 1 + others,
            common: Some(v1::CommonValues {
                values: vec![v1::CommonValue {
                    rows: 800,
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        };
        let of = |others| {
            distinct(
                2_000,
                &[(1_000, &shard(others)), (1_000, &shard(others))],
                Spread::Unknown,
            )
        };
        assert_eq!(of(200), Some(401));
        assert_eq!(of(20), Some(21));
    }
}
