//! SELECT, from text to rows.
//!
//! ```text
//!   1 catalog snapshot   2 timestamp   3 bind, fill parameters   4 log indexes of reference tables
//!   5 plan               6 run on the query threads              7 first batch ──▶ the client gets columns and rows
//!         an error before 7 that says "stale map" or "node unreachable": newer view, again from 1, at most 3 times
//! ```
//!
//! After the first batch nothing is repeated: the client may have seen rows.

use super::admission::{Entry, Place};
use super::declared::declared;
use super::point::{self, PointRead, Template};
use super::prepare::{self, Bound};
use super::stream;
use crate::cluster::catalog::StatementCatalog;
use crate::outcome::{Outcome, RowsTag};
use crate::session::StatementContext;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::LogicalPlan;
use datafusion::scalar::ScalarValue;
use futures::TryStreamExt;
use sqlparser::ast::Query;
use std::sync::Arc;
use std::time::Duration;
use tessera_meta::view::Retries;
use tessera_planner::Planned;
use tessera_planner::names::result_schema;
use tessera_proto::frugal::{BATCH_ROWS, BATCH_ROWS_DEFAULT, BATCH_ROWS_LEAST, HASH_JOIN};
use tessera_proto::sql_type::SqlType;
use tessera_proto::{Error, Result, Timestamp};

/// Each further attempt of a query that ran out of memory: the pause before it, because nodes let go of what the one before held
/// within about a second, and the rows of its batches.
const FRUGAL_ATTEMPTS: [(Duration, usize); 3] = [
    (Duration::ZERO, BATCH_ROWS_DEFAULT),
    (Duration::from_secs(1), BATCH_ROWS_LEAST),
    (Duration::from_secs(2), BATCH_ROWS_LEAST),
];

/// A query that runs.
pub(crate) struct Running {
    /// Columns.
    pub schema: SchemaRef,
    /// Declared types, one per column.
    pub declared: Vec<Option<SqlType>>,
    /// Rows.
    pub stream: SendableRecordBatchStream,
    /// The plan that produces them; `None` for a read by primary key.
    pub planned: Option<Planned>,
    /// What they are read at.
    pub snapshot: Timestamp,
    /// Names the query on the nodes.
    pub query_id: [u8; 16],
}

/// What is asked of [`open`].
pub(crate) struct Request<'a> {
    /// The query.
    pub query: &'a Query,
    /// As its client wrote it, where it may come again with other parameters.
    pub text: Option<&'a str>,
    /// Values of its parameters.
    pub params: Vec<ScalarValue>,
    /// Types of its parameters, where known.
    pub types: Vec<Option<DataType>>,
    /// Sees the bound plan before anything runs.
    pub check: &'a (dyn Fn(&LogicalPlan) -> Result<()> + Send + Sync),
    /// Whether a read by primary key may go without a plan.
    pub shortcut: Shortcut,
    /// What to read at; `None` draws a new timestamp.
    pub snapshot: Option<Timestamp>,
    /// What [`crate::cluster::catalog::TARGET`] stands for, in queries that a statement makes which changes rows.
    pub target: Option<Arc<dyn TableProvider>>,
}

/// See [`Request::shortcut`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortcut {
    /// It may.
    Point,
    /// Everything is planned.
    Never,
}

impl<'a> Request<'a> {
    /// A query as its client sent it.
    pub(crate) fn new(query: &'a Query, params: Vec<ScalarValue>) -> Self {
        let types = types_of(&params);
        Self {
            query,
            text: None,
            params,
            types,
            check: &|_| Ok(()),
            shortcut: Shortcut::Point,
            snapshot: None,
            target: None,
        }
    }
}

/// Runs a query for its client.
pub(crate) async fn run(
    context: &StatementContext,
    query: &Query,
    text: &str,
    params: Vec<ScalarValue>,
    tag: RowsTag,
) -> Result<Outcome> {
    let request = Request {
        text: Some(text).filter(|_| !params.is_empty()),
        ..Request::new(query, params)
    };
    let running = open(context, request).await?;
    Ok(Outcome::Rows {
        schema: running.schema,
        columns: running.declared,
        stream: running.stream,
        tag,
    })
}

/// Types of parameter values; an untyped NULL has none.
fn types_of(params: &[ScalarValue]) -> Vec<Option<DataType>> {
    params
        .iter()
        .map(|p| Some(p.data_type()).filter(|t| *t != DataType::Null))
        .collect()
}

/// Starts a query and waits for its first batch. A query that runs out of memory before it runs once more: as it was planned,
/// when it shared the memory with others, then with joins that spill.
///
/// # Errors
/// The planner's, the nodes', 57014, 53200.
pub(crate) async fn open(context: &StatementContext, request: Request<'_>) -> Result<Running> {
    let mut opened = open_as_set(context, &request, Entry::Usual).await;
    if out_of_memory(&opened) && context.engine.admission().is_shared() {
        // Alone it may fit; a hash join that does is several times as fast as one that spills.
        opened = open_as_set(context, &request, Entry::Alone).await;
    }
    if out_of_memory(&opened) && context.settings.is_on(HASH_JOIN) {
        let mut frugal = context.clone();
        frugal.settings.set(HASH_JOIN, "off")?;
        for (wait, rows) in FRUGAL_ATTEMPTS {
            tracing::info!(
                rows,
                "planning a query once more, with joins that spill and small batches"
            );
            frugal.settings.set(BATCH_ROWS, &rows.to_string())?;
            let pause = async {
                tokio::time::sleep(wait).await;
                Ok(())
            };
            context.bounded(pause).await?;
            opened = open_as_set(&frugal, &request, Entry::Alone).await;
            if !out_of_memory(&opened) {
                break;
            }
        }
    }
    opened
}

fn out_of_memory(opened: &Result<Running>) -> bool {
    opened.as_ref().err().is_some_and(|error| error.code == "53200")
}

async fn open_as_set(context: &StatementContext, request: &Request<'_>, entry: Entry) -> Result<Running> {
    let mut retries = Retries::default();
    loop {
        let catalog = StatementCatalog::new(context).with_target(request.target.clone());
        let revision = catalog.view().revision;
        match context.bounded(attempt(context, &catalog, request, entry)).await {
            Err(error) => {
                let again = retries.after(error, context.engine.views(), revision);
                context.bounded(again).await?;
            }
            running => return running,
        }
    }
}

async fn attempt(
    context: &StatementContext,
    catalog: &StatementCatalog,
    request: &Request<'_>,
    entry: Entry,
) -> Result<Running> {
    let Request { query, params, .. } = request;
    let templates = context.engine.templates();
    if let Some(text) = request.text
        && let Some((template, read)) = templates.get(context, catalog, text, &request.types, params)
    {
        let snapshot = snapshot_of(context, request.snapshot).await?;
        return point(context, catalog, &template, &read, snapshot).await;
    }
    let snapshot = snapshot_of(context, request.snapshot).await?;
    let mut bound = prepare::bind(context, catalog, query, &request.types, snapshot).await?;
    if request.shortcut == Shortcut::Point
        && let Some(template) = point::recognise(query, &bound.plan, catalog.view().revision)
    {
        let read = template.read(params);
        let template = Arc::new(template);
        if let Some(text) = request.text {
            templates.put(context, text, &request.types, template.clone());
        }
        if let Some(read) = read {
            return point(context, catalog, &template, &read, snapshot).await;
        }
    }
    bound.plan = prepare::fill(context, bound.plan, params.clone())?;
    (request.check)(&bound.plan)?;
    let declared = declared(query, &bound.plan);
    let place = context
        .engine
        .admission()
        .enter(context, catalog, &bound.plan, entry)
        .await?;
    let ready = plan(context, catalog, bound).await?;
    first(context, query, ready, declared, place).await
}

async fn point(
    context: &StatementContext,
    catalog: &StatementCatalog,
    template: &Template,
    read: &PointRead,
    snapshot: Timestamp,
) -> Result<Running> {
    let schema = template.schema.clone();
    let rows = read.run(context, catalog, snapshot, &schema).await?;
    Ok(Running {
        stream: stream::ready(schema.clone(), rows),
        schema,
        declared: template.declared.clone(),
        planned: None,
        snapshot,
        query_id: [0; 16],
    })
}

async fn snapshot_of(context: &StatementContext, given: Option<Timestamp>) -> Result<Timestamp> {
    match given {
        Some(snapshot) => Ok(snapshot),
        None => context.snapshot().await,
    }
}

/// A plan and what it reads.
struct Ready {
    planned: Planned,
    snapshot: Timestamp,
    query_id: [u8; 16],
}

async fn plan(context: &StatementContext, catalog: &StatementCatalog, bound: Bound) -> Result<Ready> {
    let Bound { state, options, plan } = bound;
    let groups = prepare::reference_groups(&plan)?;
    if let Some(transaction) = &context.transaction
        && groups.iter().any(|group| transaction.wrote_group(*group))
    {
        // Every node reads its own copy of a reference table, and the rows are at its leader only.
        return Err(Error::unsupported(
            "a transaction cannot query a reference table that it has changed itself",
            "COMMIT first",
        ));
    }
    catalog
        .cover(
            &groups,
            options.snapshot,
            options.deadline_ms,
            context.engine.directory().as_ref(),
        )
        .await;
    let planned = tessera_planner::plan(&state, plan, catalog, &options).await?;
    Ok(Ready {
        planned,
        snapshot: options.snapshot,
        query_id: options.query_id,
    })
}

/// Plans a query without running it, for EXPLAIN. Also whether it would have been read by primary key.
///
/// # Errors
/// The planner's.
pub(crate) async fn plan_only(
    context: &StatementContext,
    query: &Query,
    params: Vec<ScalarValue>,
) -> Result<(Planned, bool)> {
    let catalog = StatementCatalog::new(context);
    let types = types_of(&params);
    let planned = async {
        let snapshot = context.snapshot().await?;
        let mut bound = prepare::bind(context, &catalog, query, &types, snapshot).await?;
        let template = point::recognise(query, &bound.plan, catalog.view().revision);
        let point = template.is_some_and(|template| template.read(&params).is_some());
        bound.plan = prepare::fill(context, bound.plan, params)?;
        Ok((plan(context, &catalog, bound).await?.planned, point))
    };
    context.bounded(planned).await
}

/// A query that could run: what its client must know before it asks for the rows.
pub(crate) struct Prospect {
    /// Columns.
    pub schema: SchemaRef,
    /// The plan; `None` for a read by primary key.
    pub planned: Option<Planned>,
    /// What it was planned at.
    pub snapshot: Timestamp,
}

/// Plans a query without running it, for a client that fetches the rows later, perhaps from the nodes. Waits for the map to
/// change, as [`open`] does, where a shard has no leader.
///
/// # Errors
/// The planner's, 57014.
pub(crate) async fn prospect(context: &StatementContext, query: &Query, params: Vec<ScalarValue>) -> Result<Prospect> {
    let types = types_of(&params);
    let mut retries = Retries::default();
    loop {
        let catalog = StatementCatalog::new(context);
        let attempt = async {
            let snapshot = context.engine.oracle().draw().await?;
            let mut bound = prepare::bind(context, &catalog, query, &types, snapshot).await?;
            let template = point::recognise(query, &bound.plan, catalog.view().revision);
            if let Some(template) = template.filter(|template| template.read(&params).is_some()) {
                return Ok((template.schema, None, snapshot));
            }
            bound.plan = prepare::fill(context, bound.plan, params.clone())?;
            let planned = plan(context, &catalog, bound).await?.planned;
            Ok((result_schema(query, &planned.schema), Some(planned), snapshot))
        };
        match context.bounded(attempt).await {
            Err(error) => {
                let again = retries.after(error, context.engine.views(), catalog.view().revision);
                context.bounded(again).await?;
            }
            Ok((schema, planned, snapshot)) => {
                return Ok(Prospect {
                    schema,
                    planned,
                    snapshot,
                });
            }
        }
    }
}

async fn first(
    context: &StatementContext,
    query: &Query,
    ready: Ready,
    declared: Vec<Option<SqlType>>,
    place: Place,
) -> Result<Running> {
    let Ready {
        planned,
        snapshot,
        query_id,
    } = ready;
    let schema = result_schema(query, &planned.schema);
    let mut rows = stream::start(
        context,
        planned.physical.clone(),
        planned.task.clone(),
        schema.clone(),
        place,
    );
    let first = rows.try_next().await?;
    Ok(Running {
        schema,
        declared,
        stream: stream::with_first(first, rows),
        planned: Some(planned),
        snapshot,
        query_id,
    })
}
