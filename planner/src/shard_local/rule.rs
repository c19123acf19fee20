//! Cuts an optimised plan into leaves: the largest subtrees that are local, and below every cut what still can run there.
//!
//! ```text
//!   Sort fetch=10            Sort fetch=10                     Aggregate[c] sum(v)      Projection
//!     Join on key              ShardLocal                        scan t (key a)           Aggregate[c] sum(p)
//!       orders                   Sort fetch=10        and                       ──>         ShardLocal
//!       lineitem      ──>          Join on key                                                Aggregate[c] sum(v) AS p
//! ```
//!
//! One walk from the leaves up: an operator that is local with its inputs changes nothing; the first one that is not turns
//! each local input into a leaf. Inputs that read no stored table stay on the router.

use super::locality::{Kind, Locality, derive};
use super::partial_aggregate;
use crate::cluster::{Cluster, table_of};
use crate::leaf::{LeafBuilder, TOO_DEEP};
use datafusion::common::Result as DfResult;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion, TreeNodeRewriter, TreeNodeVisitor};
use datafusion::logical_expr::{Aggregate, FetchType, Limit, LogicalPlan, SkipType, Sort, TableScan, lit};
use std::sync::Arc;
use tessera_proto::Result;

/// `plan` with its tables inside leaves. With `fuse` off every leaf is one scan and nothing else.
///
/// # Errors
/// See [`LeafBuilder::build`].
pub fn cut(plan: LogicalPlan, cluster: &Cluster, leaves: &mut LeafBuilder<'_>, fuse: bool) -> Result<LogicalPlan> {
    let mut cutter = Cutter {
        cluster,
        leaves,
        fuse,
        localities: vec![],
    };
    let plan = plan.rewrite(&mut cutter)?.data;
    match cutter.localities.pop().flatten() {
        Some(locality) if !locality.is_constant() => Ok(cutter.leaf(plan, &locality)?),
        _ => Ok(plan),
    }
}

/// Locality of a whole subtree; `None` if it would be cut somewhere.
pub fn locality(plan: &LogicalPlan, cluster: &Cluster) -> Option<Locality> {
    let mut localities: Vec<Option<Locality>> = vec![];
    let walked = plan.visit(&mut Derivation {
        cluster,
        localities: &mut localities,
    });
    walked.ok().and(localities.pop().flatten())
}

struct Derivation<'a> {
    cluster: &'a Cluster,
    localities: &'a mut Vec<Option<Locality>>,
}

impl<'n> TreeNodeVisitor<'n> for Derivation<'_> {
    type Node = LogicalPlan;

    fn f_up(&mut self, node: &'n LogicalPlan) -> DfResult<TreeNodeRecursion> {
        let inputs = self.localities.split_off(self.localities.len() - node.inputs().len());
        let inputs = inputs.into_iter().collect::<Option<Vec<_>>>();
        self.localities
            .push(inputs.and_then(|inputs| derive(node, &inputs, self.cluster)));
        Ok(TreeNodeRecursion::Continue)
    }
}

struct Cutter<'a, 'b> {
    cluster: &'a Cluster,
    leaves: &'a mut LeafBuilder<'b>,
    fuse: bool,
    /// Localities of finished subtrees that have no parent yet; `None`: it was cut.
    localities: Vec<Option<Locality>>,
}

impl TreeNodeRewriter for Cutter<'_, '_> {
    type Node = LogicalPlan;

    fn f_up(&mut self, node: LogicalPlan) -> DfResult<Transformed<LogicalPlan>> {
        let inputs = self.localities.split_off(self.localities.len() - node.inputs().len());
        let local = inputs.iter().cloned().collect::<Option<Vec<_>>>();
        let locality = local
            .filter(|_| self.fuse || is_scan(&node))
            .and_then(|l| derive(&node, &l, self.cluster));
        if locality.is_some() {
            self.localities.push(locality);
            return Ok(Transformed::no(node));
        }
        self.localities.push(None);
        Ok(Transformed::yes(self.cut_below(node, &inputs)?))
    }
}

impl Cutter<'_, '_> {
    /// `plan` as a leaf, or, where it is nested more deeply than a node can decode, with its scans as leaves.
    fn leaf(&mut self, plan: LogicalPlan, locality: &Locality) -> DfResult<LogicalPlan> {
        match self.leaves.build(plan.clone(), locality) {
            Err(error) if error.code == TOO_DEEP => match plan {
                // The filters of a scan are copies: the originals stand above it.
                LogicalPlan::TableScan(scan) if !scan.filters.is_empty() => {
                    let bare = LogicalPlan::TableScan(TableScan {
                        filters: vec![],
                        ..scan
                    });
                    Ok(self.leaves.build(bare, locality)?)
                }
                LogicalPlan::TableScan(_) => Err(error.into()),
                plan => Ok(cut(plan, self.cluster, self.leaves, false)?),
            },
            built => Ok(built?),
        }
    }

    /// `plan` as a leaf, unless it is nested too deeply.
    fn shallow_leaf(&mut self, plan: LogicalPlan, locality: &Locality) -> DfResult<Option<LogicalPlan>> {
        match self.leaves.build(plan, locality) {
            Err(error) if error.code == TOO_DEEP => Ok(None),
            built => Ok(Some(built?)),
        }
    }

    /// Turns the local inputs of `node` into leaves.
    fn cut_below(&mut self, node: LogicalPlan, inputs: &[Option<Locality>]) -> DfResult<LogicalPlan> {
        if let ([Some(input)], true) = (inputs, self.fuse)
            && matches!(input.kind, Kind::Keyed(..))
            && let Some(node) = self.with_part_below(&node, input)?
        {
            return Ok(node);
        }
        let mut position = 0;
        let changed = node.map_children(|child| {
            let locality = inputs.get(position).cloned().flatten();
            position += 1;
            match locality {
                Some(locality) if !locality.is_constant() => Ok(Transformed::yes(self.leaf(child, &locality)?)),
                _ => Ok(Transformed::no(child)),
            }
        })?;
        Ok(changed.data)
    }

    /// Operators of which a part can run below the cut.
    fn with_part_below(&mut self, node: &LogicalPlan, input: &Locality) -> DfResult<Option<LogicalPlan>> {
        match node {
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate, input),
            LogicalPlan::Sort(sort) if sort.fetch.is_some() => {
                let leaf = self.shallow_leaf(node.clone(), input)?;
                Ok(leaf.map(|leaf| {
                    LogicalPlan::Sort(Sort {
                        input: Arc::new(leaf),
                        ..sort.clone()
                    })
                }))
            }
            LogicalPlan::Limit(limit) => {
                let Some(copy) = limit_copy(limit)? else {
                    return Ok(None);
                };
                let leaf = self.shallow_leaf(LogicalPlan::Limit(copy), input)?;
                Ok(leaf.map(|leaf| {
                    LogicalPlan::Limit(Limit {
                        input: Arc::new(leaf),
                        ..limit.clone()
                    })
                }))
            }
            _ => Ok(None),
        }
    }

    fn aggregate(&mut self, aggregate: &Aggregate, input: &Locality) -> DfResult<Option<LogicalPlan>> {
        if !super::expressions::can_run_on_nodes(&LogicalPlan::Aggregate(aggregate.clone())) {
            return Ok(None);
        }
        let Some(split) = partial_aggregate::split(aggregate)? else {
            return Ok(None);
        };
        let leaf = self.shallow_leaf(LogicalPlan::Aggregate(split.partial.clone()), input)?;
        leaf.map(|leaf| split.finish(aggregate, leaf)).transpose()
    }
}

/// With the rule switched off only tables themselves are leaves.
fn is_scan(node: &LogicalPlan) -> bool {
    matches!(node, LogicalPlan::TableScan(scan) if table_of(&scan.source).is_some())
}

/// `LIMIT n OFFSET m` lets each node stop after n + m rows.
fn limit_copy(limit: &Limit) -> DfResult<Option<Limit>> {
    let (SkipType::Literal(skip), FetchType::Literal(Some(fetch))) = (limit.get_skip_type()?, limit.get_fetch_type()?)
    else {
        return Ok(None);
    };
    let Some(rows) = skip.checked_add(fetch).and_then(|rows| i64::try_from(rows).ok()) else {
        return Ok(None);
    };
    Ok(Some(Limit {
        skip: None,
        fetch: Some(Box::new(lit(rows))),
        input: limit.input.clone(),
    }))
}
