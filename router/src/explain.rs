//! EXPLAIN and EXPLAIN ANALYZE.
//!
//! ```text
//!   EXPLAIN           what the planner prints: strategy, operators, leaves with nodes and shards
//!   EXPLAIN ANALYZE   the query runs; then every node tells what its leaves did and what it read from others:
//!                       router's operators · leaves by node · rows and bytes from whom to whom · times · snapshot
//! ```
//!
//! Nodes are asked after the last row, each for [`TELL_TIMEOUT`] at most: a node that does not answer leaves a gap that is
//! named, and nothing hangs. Operators of stages between leaves and router have no counters of their own here.

use crate::execute::{query, stream};
use crate::locking;
use crate::outcome::{Outcome, RowsTag};
use crate::session::StatementContext;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::scalar::ScalarValue;
use futures::{StreamExt, TryStreamExt};
use sqlparser::ast::Query;
use std::time::{Duration, Instant};
use tessera_parser::ExplainFormat;
use tessera_planner::Planned;
use tessera_proto::profile::spilled_bytes;
use tessera_proto::v1::transfer::Source;
use tessera_proto::v1::{LeafProfile, ProfileReply, ProfileRequest, Transfer};
use tessera_proto::{Error, NodeId, Result};

/// How long a node may take to tell what it did.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a node is asked again for leaves it has not told of. One whose reader had enough ends by itself soon after; one that
/// was never begun has nothing to tell.
const LEAVES_TIMEOUT: Duration = Duration::from_millis(300);
/// Pause between these.
const LEAVES_PAUSE: Duration = Duration::from_millis(5);
/// Nodes asked at the same time.
const ASKED_AT_ONCE: usize = 16;

/// What kind of EXPLAIN.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Explain {
    pub analyze: bool,
    pub verbose: bool,
    pub format: ExplainFormat,
}

/// What running it showed.
struct Measured {
    rows: usize,
    planning: Duration,
    running: Duration,
    snapshot: u64,
    /// What each node told; `None` for one that did not.
    nodes: Vec<(NodeId, Option<ProfileReply>)>,
    /// What the router read.
    router: ProfileReply,
}

impl Measured {
    /// What the nodes did for a leaf.
    fn leaf(&self, number: usize) -> Vec<(NodeId, &LeafProfile)> {
        let told = self.nodes.iter().flat_map(|(node, p)| p.iter().map(|p| (*node, p)));
        told.flat_map(|(node, p)| p.leaves.iter().map(move |leaf| (node, leaf)))
            .filter(|(_, leaf)| leaf.leaf as usize == number)
            .collect()
    }

    /// All transfers, with who read; `None` is the router.
    fn transfers(&self) -> Vec<(Option<NodeId>, &Transfer)> {
        let told = self
            .nodes
            .iter()
            .flat_map(|(node, p)| p.iter().map(|p| (Some(*node), p)));
        let all = told.chain([(None, &self.router)]);
        let mut transfers: Vec<_> = all
            .flat_map(|(to, p)| p.transfers.iter().map(move |t| (to, t)))
            .collect();
        transfers.sort_by_key(|(to, t)| (name(t), t.from, *to));
        transfers
    }

    /// Bytes that left the node where they were made.
    fn moved(&self) -> u64 {
        let moved = |(to, t): &(Option<NodeId>, &Transfer)| to.is_none_or(|to| to.0 != t.from);
        self.transfers().iter().filter(|t| moved(t)).map(|(_, t)| t.bytes).sum()
    }
}

fn name(transfer: &Transfer) -> String {
    match transfer.source {
        Some(Source::Leaf(leaf)) => format!("leaf {leaf}"),
        Some(Source::Stage(stage)) => format!("stage {stage}"),
        None => "unknown".into(),
    }
}

/// The largest node's share of the rows against an even one: 1 is even, the number of nodes the worst.
fn skew(nodes: &[(NodeId, &LeafProfile)]) -> Option<f64> {
    let rows: u64 = nodes.iter().map(|(_, l)| l.rows).sum();
    let most = nodes.iter().map(|(_, l)| l.rows).max()?;
    (rows > 0).then(|| most as f64 * nodes.len() as f64 / rows as f64)
}

fn milliseconds(micros: u64) -> f64 {
    micros as f64 / 1e3
}

/// The only column.
pub(crate) fn schema() -> SchemaRef {
    stream::text_schema(&["QUERY PLAN"])
}

/// Runs it.
pub(crate) async fn run(
    context: &StatementContext,
    explain: Explain,
    query: &Query,
    params: Vec<ScalarValue>,
) -> Result<Outcome> {
    let context = &StatementContext {
        profile: true,
        ..context.clone()
    };
    let (planned, measured) = if explain.analyze {
        let (planned, measured) = measure(context, query, params).await?;
        (planned, Some(measured))
    } else {
        let locked = match context.may_lock {
            true => locking::explain(context, query)?,
            false => vec![],
        };
        let (mut planned, point) = query::plan_only(context, query, params).await?;
        planned.explain.extend(locked);
        if point {
            planned
                .explain
                .push("Read by primary key: one call to the shard's leader, none of the above runs".into());
        }
        (planned, None)
    };
    let lines = match explain.format {
        ExplainFormat::Text => text(&planned, measured.as_ref(), explain.verbose),
        ExplainFormat::Json => json(&planned, measured.as_ref(), explain.verbose)?,
    };
    let rows: Vec<_> = lines.into_iter().map(|line| vec![Some(line)]).collect();
    let schema = schema();
    let batch = stream::text_batch(&schema, &rows)?;
    Ok(Outcome::Rows {
        stream: stream::ready(schema.clone(), vec![batch]),
        schema,
        columns: vec![None],
        tag: RowsTag::Explain,
    })
}

async fn measure(context: &StatementContext, query: &Query, params: Vec<ScalarValue>) -> Result<(Planned, Measured)> {
    let begin = Instant::now();
    let request = query::Request {
        shortcut: query::Shortcut::Never,
        ..query::Request::new(query, params)
    };
    let mut running = query::open(context, request).await?;
    // Until here it was planned and ran up to its first batch.
    let planning = begin.elapsed();
    let mut rows = 0;
    while let Some(batch) = running.stream.try_next().await? {
        rows += batch.num_rows();
    }
    let running_time = begin.elapsed();
    let planned = running
        .planned
        .ok_or_else(|| Error::internal("a planned query has no plan"))?;
    // Ends what still runs of it, which then is told as incomplete.
    drop(running.stream);
    let measured = Measured {
        rows,
        planning,
        running: running_time,
        snapshot: running.snapshot.0,
        nodes: told(context, &planned, running.query_id).await,
        router: context.engine.profiles().take(&running.query_id),
    };
    Ok((planned, measured))
}

/// What each node did for the query.
async fn told(
    context: &StatementContext,
    planned: &Planned,
    query_id: [u8; 16],
) -> Vec<(NodeId, Option<ProfileReply>)> {
    let ask = |node: NodeId| async move {
        let request = ProfileRequest {
            query_id: query_id.to_vec().into(),
            deadline_ms: TELL_TIMEOUT.as_millis() as u64,
        };
        let asked = async {
            let service = context.engine.directory().node(node)?;
            let expected = planned.fragments.iter().filter(|f| f.nodes.contains(&node)).count();
            let (begun, mut all) = (Instant::now(), ProfileReply::default());
            loop {
                // What is told is forgotten there.
                let more = service.profile(request.clone()).await?;
                all.leaves.extend(more.leaves);
                all.transfers.extend(more.transfers);
                if all.leaves.len() >= expected || begun.elapsed() >= LEAVES_TIMEOUT {
                    return Ok(all);
                }
                tokio::time::sleep(LEAVES_PAUSE).await;
            }
        };
        match tokio::time::timeout(TELL_TIMEOUT, asked).await {
            Ok(Ok(profile)) => (node, Some(profile)),
            Ok(Err::<_, Error>(error)) => {
                tracing::debug!(%node, %error, "a node did not tell what it did");
                (node, None)
            }
            Err(_) => (node, None),
        }
    };
    let answers = futures::stream::iter(planned.nodes()).map(ask).buffered(ASKED_AT_ONCE);
    answers.collect().await
}

fn operators(planned: &Planned, verbose: bool) -> Vec<String> {
    let shown = DisplayableExecutionPlan::with_metrics(planned.physical.as_ref())
        .indent(verbose)
        .to_string();
    shown.lines().map(str::to_owned).collect()
}

fn text(planned: &Planned, measured: Option<&Measured>, verbose: bool) -> Vec<String> {
    let mut lines = planned.explain.clone();
    if verbose && measured.is_none() {
        lines.push("Operators:".into());
        let shown = DisplayableExecutionPlan::new(planned.physical.as_ref())
            .indent(true)
            .to_string();
        lines.extend(shown.lines().map(|l| format!("  {l}")));
        let estimates = planned.fragments.iter().enumerate();
        lines.extend(estimates.map(|(leaf, f)| format!("Leaf {leaf}: estimated rows {}", estimated(f.rows))));
    }
    if let Some(measured) = measured {
        lines.push("Measured:".into());
        lines.extend(operators(planned, verbose).into_iter().map(|l| format!("  {l}")));
        lines.extend(leaves(planned, measured, verbose));
        lines.extend(transfers(measured));
        lines.push(format!("Rows: {}", measured.rows));
        lines.push(format!("Snapshot: {}", measured.snapshot));
        lines.push(format!(
            "First Row Time: {:.3} ms",
            measured.planning.as_secs_f64() * 1e3
        ));
        lines.push(format!(
            "Execution Time: {:.3} ms",
            measured.running.as_secs_f64() * 1e3
        ));
    }
    lines
}

fn estimated(rows: Option<usize>) -> String {
    rows.map_or("unknown".into(), |rows| rows.to_string())
}

fn leaves(planned: &Planned, measured: &Measured, verbose: bool) -> Vec<String> {
    let mut lines = vec![];
    for (number, fragment) in planned.fragments.iter().enumerate() {
        let nodes = measured.leaf(number);
        let rows: u64 = nodes.iter().map(|(_, l)| l.rows).sum();
        lines.push(format!(
            "Leaf {number}: shards={}/{} estimated rows={} actual rows={rows}{}",
            fragment.shards,
            fragment.shards_total,
            estimated(fragment.rows),
            skew(&nodes).map_or(String::new(), |skew| format!(" skew={skew:.2}")),
        ));
        for (node, leaf) in nodes {
            lines.push(format!(
                "  node {node}: rows={} bytes={} time={:.3} ms spilled={}{}",
                leaf.rows,
                leaf.bytes,
                milliseconds(leaf.micros),
                leaf.spilled_bytes,
                if leaf.complete { "" } else { " (its reader had enough)" },
            ));
            if verbose {
                lines.extend(leaf.plan.iter().map(|line| format!("    {line}")));
            }
        }
    }
    let silent = measured.nodes.iter().filter(|(_, told)| told.is_none());
    lines.extend(silent.map(|(node, _)| format!("Node {node} did not tell what it did")));
    lines
}

fn transfers(measured: &Measured) -> Vec<String> {
    let mut lines = vec!["Transfers:".to_owned()];
    for (to, transfer) in measured.transfers() {
        lines.push(format!(
            "  {} of node {} to {}: rows={} bytes={} time={:.3} ms",
            name(transfer),
            transfer.from,
            to.map_or("the router".into(), |node| format!("node {node}")),
            transfer.rows,
            transfer.bytes,
            milliseconds(transfer.micros),
        ));
    }
    lines.push(format!("Moved: {} bytes", measured.moved()));
    lines
}

fn json_leaves(planned: &Planned, measured: &Measured) -> serde_json::Value {
    let leaf = |(number, fragment): (usize, &tessera_planner::FragmentInfo)| {
        let nodes = measured.leaf(number);
        serde_json::json!({
            "Leaf": number,
            "Estimated Rows": fragment.rows,
            "Rows": nodes.iter().map(|(_, l)| l.rows).sum::<u64>(),
            "Skew": skew(&nodes),
            "Nodes": nodes.iter().map(|(node, l)| serde_json::json!({
                "Node": node.0,
                "Rows": l.rows,
                "Bytes": l.bytes,
                "Time": milliseconds(l.micros),
                "Spilled Bytes": l.spilled_bytes,
                "Complete": l.complete,
                "Operators": l.plan,
            })).collect::<Vec<_>>(),
        })
    };
    planned.fragments.iter().enumerate().map(leaf).collect()
}

fn json_transfers(measured: &Measured) -> serde_json::Value {
    let transfer = |(to, t): (Option<NodeId>, &Transfer)| {
        serde_json::json!({
            "Source": name(t),
            "From Node": t.from,
            "To Node": to.map(|node| node.0),
            "Rows": t.rows,
            "Bytes": t.bytes,
            "Time": milliseconds(t.micros),
        })
    };
    measured.transfers().into_iter().map(transfer).collect()
}

fn json(planned: &Planned, measured: Option<&Measured>, verbose: bool) -> Result<Vec<String>> {
    let fragment = |f: &tessera_planner::FragmentInfo| {
        serde_json::json!({
            "Nodes": f.nodes.iter().map(|n| n.0).collect::<Vec<_>>(),
            "Shards": f.shards,
            "Shards Total": f.shards_total,
            "Plan": f.plan.lines().collect::<Vec<_>>(),
        })
    };
    let mut document = serde_json::json!({
        "Strategy": planned.strategy.name(),
        "Plan": planned.explain,
        "Fragments": planned.fragments.iter().map(fragment).collect::<Vec<_>>(),
    });
    if let Some(measured) = measured {
        document["Operators"] = operators(planned, verbose).into();
        document["Leaves"] = json_leaves(planned, measured);
        document["Transfers"] = json_transfers(measured);
        document["Moved Bytes"] = measured.moved().into();
        document["Spilled Bytes"] = spilled_bytes(planned.physical.as_ref()).into();
        document["Silent Nodes"] = measured
            .nodes
            .iter()
            .filter(|(_, told)| told.is_none())
            .map(|(node, _)| node.0)
            .collect();
        document["Rows"] = measured.rows.into();
        document["Snapshot"] = measured.snapshot.into();
        document["First Row Time"] = (measured.planning.as_secs_f64() * 1e3).into();
        document["Execution Time"] = (measured.running.as_secs_f64() * 1e3).into();
    }
    let text =
        serde_json::to_string_pretty(&serde_json::json!([document])).map_err(|e| Error::internal(e.to_string()))?;
    Ok(vec![text])
}
