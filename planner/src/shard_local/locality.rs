//! Which operators the nodes can run each on its own shards alone. Derived bottom-up, one operator from its inputs.
//!
//! ```text
//!   kind         meaning                                                    operators that keep it
//!   Replicated   every node with the copies computes the same rows          all whose result does not depend on row order
//!   OneCopy      one node computes it; which one does not matter            all
//!   Keyed(key)   each owner computes its part; parts are disjoint           see below
//!   OneNode      all shards read are led by one node                        all
//!
//!   Keyed        scan, filter, projection, alias      inherit the key
//!                aggregate, DISTINCT [ON], window     keys, every grouping set, every PARTITION BY hold the whole key
//!                join Keyed x Keyed, one group        equality on the whole key; inner keeps both keys, outer/semi/anti the
//!                                                     preserved side's, full none; NOT IN only if no side can be NULL
//!                join Keyed x Replicated              inner, or the keyed side is the preserved one
//!                UNION ALL of one group               the key columns common to all branches
//! ```
//!
//! What is not listed cuts. A wrong entry here is a wrong answer, so every line has a test (`tests.rs`).

use super::key::{Key, key_column};
use crate::cluster::{Cluster, table_of};
use crate::prune::{ShardSet, prune};
use crate::shard_local::expressions;
use datafusion::common::{DFSchema, JoinType};
use datafusion::logical_expr::utils::{grouping_set_to_exprlist, split_conjunction};
use datafusion::logical_expr::{Aggregate, BinaryExpr, Distinct, Expr, Join, LogicalPlan, Operator, TableScan, Window};
use std::collections::{BTreeMap, BTreeSet};
use tessera_proto::GroupId;

/// What a subtree reads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reads {
    /// Shards of sharded groups, after pruning; never an empty set.
    pub shards: BTreeMap<GroupId, ShardSet>,
    /// Reference groups.
    pub references: BTreeSet<GroupId>,
}

/// See the table above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Same rows wherever the copies are.
    Replicated,
    /// Has to be computed once, anywhere.
    OneCopy,
    /// Each owner has its part; all sharded tables read belong to this group.
    Keyed(GroupId, Key),
    /// All on one node.
    OneNode,
}

/// Locality of a subtree that is local.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locality {
    /// How its rows are spread.
    pub kind: Kind,
    /// What it reads.
    pub reads: Reads,
}

impl Locality {
    /// Reads no stored table at all.
    pub fn is_constant(&self) -> bool {
        self.reads.shards.is_empty() && self.reads.references.is_empty()
    }
}

/// Locality of `node` given its inputs', all of them local; `None` cuts.
pub fn derive(node: &LogicalPlan, inputs: &[Locality], cluster: &Cluster) -> Option<Locality> {
    if !expressions::can_run_on_nodes(node) {
        return None;
    }
    let local = everywhere(node, inputs, cluster).filter(|l| cluster.can_serve(&l.reads));
    local.or_else(|| in_one_place(node, inputs, cluster))
}

/// The operator runs on every node that has a part of its inputs.
fn everywhere(node: &LogicalPlan, inputs: &[Locality], cluster: &Cluster) -> Option<Locality> {
    match (node, inputs) {
        (LogicalPlan::TableScan(scan), []) => table_scan(scan, cluster),
        (LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_), []) => Some(Locality {
            kind: Kind::Replicated,
            reads: Reads::default(),
        }),
        (LogicalPlan::Union(_), inputs) => union(inputs),
        (LogicalPlan::Join(join), [left, right]) => self::join(join, left, right),
        (node, [input]) => unary(node, input, cluster),
        _ => None,
    }
}

fn table_scan(scan: &TableScan, cluster: &Cluster) -> Option<Locality> {
    let def = table_of(&scan.source)?;
    let mut reads = Reads::default();
    if def.is_reference() {
        reads.references.insert(def.group);
        return Some(Locality {
            kind: Kind::Replicated,
            reads,
        });
    }
    // Position of each key column in the full schema, then in the projection.
    let full = Key(def.shard_key().iter().map(|c| BTreeSet::from([*c])).collect());
    let output = |column: &usize| match &scan.projection {
        Some(columns) => columns.iter().position(|c| c == column),
        None => Some(*column).filter(|c| *c < scan.projected_schema.fields().len()),
    };
    let key = Key(def
        .shard_key()
        .iter()
        .map(|c| output(c).into_iter().collect())
        .collect());
    let shards = scan_shards(scan, &full, def.group, cluster)?;
    reads.shards.insert(def.group, shards);
    Some(Locality {
        kind: Kind::Keyed(def.group, key),
        reads,
    })
}

/// Filters inside a scan refer to the table's columns, projected or not.
fn scan_shards(scan: &TableScan, key: &Key, group: GroupId, cluster: &Cluster) -> Option<ShardSet> {
    let all = cluster.all_shards(group);
    if scan.filters.is_empty() {
        return Some(all);
    }
    let schema = DFSchema::try_from_qualified_schema(scan.table_name.clone(), &scan.source.schema()).ok()?;
    let pruned = prune(&scan.filters, key, &schema, &cluster.placement(group)?.group);
    Some(pruned.unwrap_or(all))
}

fn unary(node: &LogicalPlan, input: &Locality, cluster: &Cluster) -> Option<Locality> {
    match &input.kind {
        Kind::Keyed(group, key) => keyed_unary(node, *group, key, &input.reads, cluster),
        Kind::Replicated => is_deterministic(node).then(|| input.clone()),
        Kind::OneCopy | Kind::OneNode => None,
    }
}

fn keyed_unary(node: &LogicalPlan, group: GroupId, key: &Key, reads: &Reads, cluster: &Cluster) -> Option<Locality> {
    let schema = node.inputs().first()?.schema().clone();
    let mut reads = reads.clone();
    let key = match node {
        LogicalPlan::Projection(projection) => key.through(&projection.expr, &schema),
        LogicalPlan::SubqueryAlias(_) => key.clone(),
        LogicalPlan::Filter(filter) => {
            let placement = cluster.placement(group)?;
            if let Some(pruned) = prune([&filter.predicate], key, &schema, &placement.group) {
                restrict(&mut reads, group, &pruned);
            }
            key.clone()
        }
        LogicalPlan::Aggregate(aggregate) => aggregate_key(aggregate, key)?,
        LogicalPlan::Window(window) => partitioned_by(window, key).then(|| key.clone())?,
        LogicalPlan::Distinct(Distinct::All(input)) => {
            let all = (0..input.schema().fields().len()).collect();
            key.is_within(&all).then(|| key.clone())?
        }
        LogicalPlan::Distinct(Distinct::On(on)) => key
            .is_within_exprs(&on.on_expr, &schema)
            .then(|| key.through(&on.select_expr, &schema))?,
        _ => return None,
    };
    Some(Locality {
        kind: Kind::Keyed(group, key),
        reads,
    })
}

/// The key after an aggregate whose every grouping set holds the whole key.
fn aggregate_key(aggregate: &Aggregate, key: &Key) -> Option<Key> {
    let schema = aggregate.input.schema();
    for set in grouping_sets(&aggregate.group_expr) {
        if !key.is_within_exprs(set, schema) {
            return None;
        }
    }
    let output = grouping_set_to_exprlist(&aggregate.group_expr).ok()?;
    Some(key.through(output, schema))
}

/// The sets of grouping expressions an aggregate computes; plain GROUP BY is one set. Unknown shapes give an empty set,
/// which holds no key.
fn grouping_sets(group_expr: &[Expr]) -> Vec<Vec<&Expr>> {
    use datafusion::logical_expr::GroupingSet;
    match group_expr {
        [Expr::GroupingSet(GroupingSet::GroupingSets(sets))] => sets.iter().map(|set| set.iter().collect()).collect(),
        exprs if exprs.iter().any(|e| matches!(e, Expr::GroupingSet(_))) => vec![vec![]],
        exprs => vec![exprs.iter().collect()],
    }
}

fn partitioned_by(window: &Window, key: &Key) -> bool {
    let schema = window.input.schema();
    window.window_expr.iter().all(|expr| match expr.clone().unalias() {
        Expr::WindowFunction(function) => key.is_within_exprs(&function.params.partition_by, schema),
        _ => false,
    })
}

/// Same rows in, same rows out, in whatever order they come.
pub(crate) fn is_deterministic(node: &LogicalPlan) -> bool {
    match node {
        LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => true,
        LogicalPlan::Distinct(Distinct::All(_)) => true,
        LogicalPlan::Aggregate(aggregate) => {
            let schema = aggregate.input.schema();
            aggregate
                .aggr_expr
                .iter()
                .all(|e| expressions::is_order_independent(e, schema))
        }
        _ => false,
    }
}

fn union(inputs: &[Locality]) -> Option<Locality> {
    let (first, rest) = inputs.split_first()?;
    let mut all = first.clone();
    for input in rest {
        all.reads.references.extend(&input.reads.references);
        all.kind = match (&all.kind, &input.kind) {
            (Kind::Replicated, Kind::Replicated) => Kind::Replicated,
            (Kind::Keyed(a, key), Kind::Keyed(b, other)) if a == b => {
                let shards = all.reads.shards.entry(*a).or_default();
                shards.extend(input.reads.shards.get(b)?);
                Kind::Keyed(*a, key.or(other))
            }
            _ => return None,
        };
    }
    Some(all)
}

fn join(join: &Join, left: &Locality, right: &Locality) -> Option<Locality> {
    use JoinType::*;
    let mut reads = left.reads.clone();
    reads.references.extend(&right.reads.references);
    let width = join.left.schema().fields().len();
    let kind = match (&left.kind, &right.kind) {
        (Kind::Replicated, Kind::Replicated) => Kind::Replicated,
        (Kind::Keyed(group, key), Kind::Replicated) => match join.join_type {
            Inner => Kind::Keyed(*group, equated(key.clone(), join, width)),
            Left | LeftSemi | LeftAnti | LeftMark => Kind::Keyed(*group, key.clone()),
            Right | Full | RightSemi | RightAnti | RightMark => return None,
        },
        (Kind::Replicated, Kind::Keyed(group, key)) => {
            reads.shards = right.reads.shards.clone();
            match join.join_type {
                Inner => Kind::Keyed(*group, equated(key.shifted(width), join, width)),
                Right => Kind::Keyed(*group, key.shifted(width)),
                RightSemi | RightAnti | RightMark => Kind::Keyed(*group, key.clone()),
                Left | Full | LeftSemi | LeftAnti | LeftMark => return None,
            }
        }
        (Kind::Keyed(a, left_key), Kind::Keyed(b, right_key)) if a == b => {
            if !joins_on_key(join, left_key, right_key) || !is_null_safe(join) {
                return None;
            }
            let shards = joined_shards(join.join_type, left.reads.shards.get(a)?, right.reads.shards.get(a)?);
            reads.shards = BTreeMap::from([(*a, shards)]);
            let key = match join.join_type {
                Inner => equated(left_key.and(&right_key.shifted(width)), join, width),
                Left | LeftSemi | LeftAnti | LeftMark => left_key.clone(),
                Right => right_key.shifted(width),
                RightSemi | RightAnti | RightMark => right_key.clone(),
                Full => Key::lost(left_key.0.len()),
            };
            Kind::Keyed(*a, key)
        }
        _ => return None,
    };
    Some(Locality { kind, reads })
}

/// Adds to the key what an inner join says is equal to it. Both schemas side by side, as the join puts them out.
fn equated(mut key: Key, join: &Join, width: usize) -> Key {
    for (left, right) in equal_columns(join) {
        key.equate(left, right + width);
    }
    key
}

/// Equality on every column of the key.
fn joins_on_key(join: &Join, left_key: &Key, right_key: &Key) -> bool {
    let pairs = equal_columns(join);
    let is_equated =
        |l: &BTreeSet<usize>, r: &BTreeSet<usize>| pairs.iter().any(|(a, b)| l.contains(a) && r.contains(b));
    left_key
        .0
        .iter()
        .zip(&right_key.0)
        .all(|(left, right)| is_equated(left, right))
}

/// Columns of the left and the right side that are equal in every pair of rows that matches; NULL may equal NULL, which has
/// a token of its own. Pairs of another class than the key's are cross-class casts, which `key_column` does not look
/// through.
fn equal_columns(join: &Join) -> Vec<(usize, usize)> {
    let columns = |l: &Expr, r: &Expr| key_column(l, join.left.schema()).zip(key_column(r, join.right.schema()));
    let on = join.on.iter().filter_map(|(l, r)| columns(l, r));
    let filter = join
        .filter
        .iter()
        .flat_map(split_conjunction)
        .filter_map(|conjunct| match conjunct {
            Expr::BinaryExpr(BinaryExpr {
                left,
                op: Operator::Eq | Operator::IsNotDistinctFrom,
                right,
            }) => columns(left, right).or_else(|| columns(right, left)),
            _ => None,
        });
    on.chain(filter).collect()
}

/// NOT IN over two sharded sides: one NULL anywhere empties the result everywhere, so there must be none.
fn is_null_safe(join: &Join) -> bool {
    use datafusion::logical_expr::ExprSchemable;
    let never_null = |e: &Expr, schema: &DFSchema| e.nullable(schema).is_ok_and(|nullable| !nullable);
    !join.null_aware
        || join
            .on
            .iter()
            .all(|(l, r)| never_null(l, join.left.schema()) && never_null(r, join.right.schema()))
}

/// Shards that can contribute to a join on the key.
fn joined_shards(join_type: JoinType, left: &ShardSet, right: &ShardSet) -> ShardSet {
    use JoinType::*;
    match join_type {
        Inner => {
            let both: ShardSet = left & right;
            // No shard has both sides, so no row matches: ask any one.
            if both.is_empty() {
                left.iter().take(1).copied().collect()
            } else {
                both
            }
        }
        Left | LeftSemi | LeftAnti | LeftMark => left.clone(),
        Right | RightSemi | RightAnti | RightMark => right.clone(),
        Full => left | right,
    }
}

fn restrict(reads: &mut Reads, group: GroupId, pruned: &ShardSet) {
    if let Some(shards) = reads.shards.get_mut(&group) {
        let both: ShardSet = &*shards & pruned;
        // Two predicates that exclude each other: one shard is enough to find nothing.
        *shards = if both.is_empty() {
            shards.iter().take(1).copied().collect()
        } else {
            both
        };
    }
}

/// The operator runs on the one node that has all its inputs.
fn in_one_place(node: &LogicalPlan, inputs: &[Locality], cluster: &Cluster) -> Option<Locality> {
    if inputs.is_empty() || !runs_in_one_place(node) {
        return None;
    }
    let mut reads = Reads::default();
    for input in inputs {
        for (group, shards) in &input.reads.shards {
            reads.shards.entry(*group).or_default().extend(shards);
        }
        reads.references.extend(&input.reads.references);
    }
    if !cluster.can_serve(&reads) {
        return None;
    }
    if reads.shards.is_empty() {
        return Some(Locality {
            kind: Kind::OneCopy,
            reads,
        });
    }
    cluster.single_owner(&reads.shards)?;
    Some(Locality {
        kind: Kind::OneNode,
        reads,
    })
}

fn runs_in_one_place(node: &LogicalPlan) -> bool {
    matches!(
        node,
        LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::Window(_)
            | LogicalPlan::Aggregate(_)
            | LogicalPlan::Sort(_)
            | LogicalPlan::Limit(_)
            | LogicalPlan::Join(_)
            | LogicalPlan::Union(_)
            | LogicalPlan::Distinct(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Unnest(_)
    )
}
