//! SELECT, from text to rows.
//!
//! ```text
//!   1 catalog snapshot   2 timestamp   3 bind, fill parameters   4 log indexes of reference tables
//!   5 plan               6 run on the query threads              7 first batch ──▶ the client gets columns and rows
//!         an error before 7 that says "stale map" or "node unreachable": newer view, again from 1, at most 3 times
//! ```
//!
//! After the first batch nothing is repeated: the client may have seen rows.

use super::declared::declared;
use super::prepare::{self, Bound};
use super::stream;
use crate::cluster::catalog::StatementCatalog;
use crate::outcome::{Outcome, RowsTag};
use crate::session::StatementContext;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::LogicalPlan;
use datafusion::scalar::ScalarValue;
use futures::TryStreamExt;
use sqlparser::ast::Query;
use std::time::Duration;
use tessera_planner::Planned;
use tessera_proto::sql_type::SqlType;
use tessera_proto::{Result, Timestamp};

/// Repetitions of a read that lost a node before its first row.
const RETRIES: usize = 3;
/// Longest wait for the map to change before a repetition: a failover takes about 2 s.
const RETRY_WAIT: Duration = Duration::from_secs(2);

/// A query that runs.
pub(crate) struct Running {
    /// Columns.
    pub schema: SchemaRef,
    /// Declared types, one per column.
    pub declared: Vec<Option<SqlType>>,
    /// Rows.
    pub stream: SendableRecordBatchStream,
    /// The plan that produces them.
    pub planned: Planned,
    /// What they are read at.
    pub snapshot: Timestamp,
}

/// Runs a query for its client.
pub(crate) async fn run(context: &StatementContext, query: &Query, params: Vec<ScalarValue>, tag: RowsTag) -> Result<Outcome> {
    let types = types_of(&params);
    let running = open(context, query, params, &types, &|_| Ok(())).await?;
    Ok(Outcome::Rows { schema: running.schema, columns: running.declared, stream: running.stream, tag })
}

/// Types of parameter values; an untyped NULL has none.
pub(crate) fn types_of(params: &[ScalarValue]) -> Vec<Option<DataType>> {
    params.iter().map(|p| Some(p.data_type()).filter(|t| *t != DataType::Null)).collect()
}

/// Starts a query and waits for its first batch. `check` sees the bound plan first.
///
/// # Errors
/// The planner's, the nodes', 57014.
pub(crate) async fn open(
    context: &StatementContext,
    query: &Query,
    params: Vec<ScalarValue>,
    types: &[Option<DataType>],
    check: &(dyn Fn(&LogicalPlan) -> Result<()> + Send + Sync),
) -> Result<Running> {
    let mut retries = 0;
    loop {
        let catalog = StatementCatalog::new(context);
        let revision = catalog.view().revision;
        let attempt = async {
            let bound = bind(context, &catalog, query, params.clone(), types).await?;
            check(&bound.plan)?;
            let declared = declared(&bound.plan);
            let planned = plan(context, &catalog, bound).await?;
            first(context, planned, declared).await
        };
        match context.bounded(attempt).await {
            Err(error) if error.is_retryable() && retries < RETRIES => {
                tracing::debug!(%error, retries, "reading again with a newer shard map");
                retries += 1;
                context.bounded(async { Ok(context.engine.newer_view(revision, RETRY_WAIT).await) }).await?;
            }
            other => return other,
        }
    }
}

async fn bind(context: &StatementContext, catalog: &StatementCatalog, query: &Query, params: Vec<ScalarValue>, types: &[Option<DataType>]) -> Result<Bound> {
    let snapshot = context.engine.oracle().draw().await?;
    let mut bound = prepare::bind(context, catalog, query, types, snapshot).await?;
    bound.plan = prepare::fill(bound.plan, params)?;
    Ok(bound)
}

/// A plan and the state to run it.
pub(crate) struct Ready {
    state: datafusion::execution::SessionState,
    /// The plan.
    pub planned: Planned,
    snapshot: Timestamp,
}

async fn plan(context: &StatementContext, catalog: &StatementCatalog, bound: Bound) -> Result<Ready> {
    let Bound { state, options, plan } = bound;
    let groups = prepare::reference_groups(&plan)?;
    catalog.cover(&groups, options.snapshot, options.deadline_ms, context.engine.directory().as_ref()).await;
    let planned = tessera_planner::plan(&state, plan, catalog, &options).await?;
    Ok(Ready { state, planned, snapshot: options.snapshot })
}

/// Plans a query without running it, for EXPLAIN.
///
/// # Errors
/// The planner's.
pub(crate) async fn plan_only(context: &StatementContext, query: &Query, params: Vec<ScalarValue>) -> Result<Planned> {
    let catalog = StatementCatalog::new(context);
    let types = types_of(&params);
    context
        .bounded(async {
            let bound = bind(context, &catalog, query, params, &types).await?;
            Ok(plan(context, &catalog, bound).await?.planned)
        })
        .await
}

async fn first(context: &StatementContext, ready: Ready, declared: Vec<Option<SqlType>>) -> Result<Running> {
    let Ready { state, planned, snapshot } = ready;
    let schema = planned.schema.clone();
    let mut rows = stream::start(context, planned.physical.clone(), state.task_ctx(), schema.clone());
    let first = rows.try_next().await?;
    Ok(Running { schema, declared, stream: stream::with_first(first, rows), planned, snapshot })
}
