//! EXPLAIN and EXPLAIN ANALYZE.
//!
//! ```text
//!   EXPLAIN           what the planner prints: strategy, operators, leaves with nodes and shards
//!   EXPLAIN ANALYZE   the query runs; the operators' own counters, rows, times and the snapshot are added
//! ```
//!
//! Counters of operators inside a leaf stay on its node: the leaf shows what it delivered.

use crate::execute::{query, stream};
use crate::outcome::{Outcome, RowsTag};
use crate::session::StatementContext;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::scalar::ScalarValue;
use futures::TryStreamExt;
use sqlparser::ast::Query;
use std::time::{Duration, Instant};
use tessera_parser::ExplainFormat;
use tessera_planner::Planned;
use tessera_proto::{Error, Result};

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
    let (planned, measured) = if explain.analyze {
        let (planned, measured) = measure(context, query, params).await?;
        (planned, Some(measured))
    } else {
        let (mut planned, point) = query::plan_only(context, query, params).await?;
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
    let measured = Measured {
        rows,
        planning,
        running: begin.elapsed(),
        snapshot: running.snapshot.0,
    };
    let planned = running
        .planned
        .ok_or_else(|| Error::internal("a planned query has no plan"))?;
    Ok((planned, measured))
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
    }
    if let Some(measured) = measured {
        lines.push("Measured:".into());
        lines.extend(operators(planned, verbose).into_iter().map(|l| format!("  {l}")));
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
        document["Rows"] = measured.rows.into();
        document["Snapshot"] = measured.snapshot.into();
        document["First Row Time"] = (measured.planning.as_secs_f64() * 1e3).into();
        document["Execution Time"] = (measured.running.as_secs_f64() * 1e3).into();
    }
    let text =
        serde_json::to_string_pretty(&serde_json::json!([document])).map_err(|e| Error::internal(e.to_string()))?;
    Ok(vec![text])
}
