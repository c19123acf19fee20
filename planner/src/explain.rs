//! The plan as EXPLAIN and the golden files print it: what the router does, and below it what each leaf does.
//!
//! ```text
//!   Strategy: gather
//!   Nodes: 3
//!   Sort: sum DESC
//!     ShardLocal nodes=3 shards=16/16
//!       Aggregate: groupBy=[[t.k]], aggr=[[sum(t.v)]]
//!         TableScan: t projection=[k, v]
//! ```
//!
//! No addresses, times or node-dependent order: the same query over the same catalog prints the same lines.

use crate::leaf::{ShardLocalNode, as_leaf};
use crate::{FragmentInfo, Strategy};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use std::sync::Arc;

/// Lines of the whole tree; `nodes` run some leaf of it.
pub fn lines(strategy: Strategy, nodes: usize, plan: &LogicalPlan) -> Vec<String> {
    let mut lines = vec![format!("Strategy: {}", strategy.name()), format!("Nodes: {nodes}")];
    append(plan, 0, &mut lines);
    lines
}

/// Lines of the stages of an exchanged plan: a box each, with the number of its tasks.
pub fn stages(plan: &Arc<dyn ExecutionPlan>) -> Vec<String> {
    let text = datafusion_distributed::display_plan_ascii(plan.as_ref(), false);
    std::iter::once("Stages:".to_owned())
        .chain(text.lines().map(|line| format!("  {}", line.trim_end())))
        .collect()
}

/// Lines of a leaf whose keys are read before the others begin.
pub fn keys(number: u32, keys: Option<usize>, leaf: &ShardLocalNode) -> Vec<String> {
    let expected = keys.map_or("unknown".into(), |keys| keys.to_string());
    let mut lines = vec![
        format!("Filter {number}: estimated keys={expected}, read first"),
        format!("  ShardLocal {}", leaf.summary()),
    ];
    append(&leaf.plan, 2, &mut lines);
    lines
}

/// Leaves in the order in which the tree shows them.
pub fn leaves(plan: &LogicalPlan) -> Vec<&ShardLocalNode> {
    let mut found = vec![];
    let mut open = vec![plan];
    while let Some(node) = open.pop() {
        if let LogicalPlan::Extension(extension) = node
            && let Some(leaf) = as_leaf(extension.node.as_ref())
        {
            found.push(leaf);
        }
        open.extend(node.inputs().into_iter().rev());
    }
    found
}

/// What the outside may know of a leaf.
pub fn fragment(leaf: &ShardLocalNode) -> FragmentInfo {
    FragmentInfo {
        nodes: leaf.owners.iter().map(|owner| owner.node).collect(),
        shards: leaf.shards(),
        shards_total: leaf.shards_total,
        plan: leaf.plan.display_indent().to_string(),
        rows: None,
    }
}

fn append(root: &LogicalPlan, depth: usize, lines: &mut Vec<String>) {
    // A stack of our own: plans may be deeper than a thread's stack bears.
    let mut open = vec![(root, depth)];
    while let Some((node, depth)) = open.pop() {
        lines.push(format!("{:indent$}{}", "", node.display(), indent = depth * 2));
        let leaf = match node {
            LogicalPlan::Extension(extension) => as_leaf(extension.node.as_ref()),
            _ => None,
        };
        match leaf {
            Some(leaf) => open.push((leaf.plan.as_ref(), depth + 1)),
            None => open.extend(node.inputs().into_iter().rev().map(|input| (input, depth + 1))),
        }
    }
}
