//! SELECT ... FOR UPDATE, FOR NO KEY UPDATE, FOR SHARE and FOR KEY SHARE.
//!
//! ```text
//!   SELECT x.a FROM t x WHERE b FOR UPDATE                     clauses.rs   which tables, how; what PostgreSQL refuses
//!     SELECT x.a, x.k FROM t x WHERE b        at a snapshot    rewrite.rs   with the row keys of those tables
//!     k of every row, shard by shard ──▶ leaders lock          rows.rs      one of them changed since: again, the locks stay
//!     the rows without k ──▶ client
//!   ... SKIP LOCKED LIMIT 2                                    skip.rs      as many rows as needed, those that are free
//!   ... WHERE k IN (SELECT ... FOR UPDATE)                     inside.rs    the inner query first, its rows in its place
//! ```
//!
//! The rows are held in memory and are at most so many as UPDATE may change. Locks belong to the transaction, or to the
//! transaction that a statement alone is given (session.rs). As an UPDATE, a statement that finds a changed row is run again at
//! a new snapshot, where PostgreSQL looks at the one row again; with REPEATABLE READ it fails with 40001.
//!
//! Not done, and refused: views and queries in FROM that the clause would reach into.

mod clauses;
mod inside;
mod rewrite;
mod rows;
mod skip;
mod steps;

pub(crate) use clauses::check;

use crate::cluster::catalog::StatementCatalog;
use crate::execute::query::{self, Request, Running};
use crate::execute::stream;
use crate::ingest::change::{ATTEMPTS_MAX, pause};
use crate::session::StatementContext;
use crate::txn::open::{Isolation, OpenTransaction};
use clauses::Locked;
use datafusion::arrow::array::RecordBatch;
use rewrite::LockQuery;
use sqlparser::ast::{Query, SetExpr, Visit, Visitor};
use std::ops::ControlFlow;
use std::sync::Arc;
use tessera_parser::{LockStrength, LockWait, row_locks};
use tessera_proto::{Error, Result, Retry};

/// Runs a query that may lock rows, itself or in queries inside it, and waits for its first batch.
///
/// # Errors
/// Those of any query; 0A000 for what cannot be locked; 55P03 for a lock that is not to be waited for; 40P01; 40001.
pub(crate) async fn open(context: &StatementContext, request: Request<'_>) -> Result<Running> {
    let (query, tables) = inside::rows_of_inner(context, &request).await?;
    let request = Request {
        query: &query,
        // What it is depends on those rows.
        text: request.text.filter(|_| tables.rows.is_empty()),
        tables: Arc::new(tables),
        ..request
    };
    match row_locks(&query).is_empty() {
        true => query::open_unlocked(context, request).await,
        false => locked(context, &request).await,
    }
}

async fn locked(context: &StatementContext, request: &Request<'_>) -> Result<Running> {
    let transaction = context.transaction.as_ref();
    let transaction = transaction.ok_or_else(|| Error::internal("rows are locked outside a transaction"))?;
    let again = transaction.isolation() == Isolation::ReadCommitted;
    let mut attempt = 1;
    loop {
        match once(context, request, transaction).await {
            Err(error) if error.retry == Retry::Restart && again && attempt < ATTEMPTS_MAX => {
                tracing::debug!(attempt, %error, "running a query again: rows that it locks changed");
                context.bounded(pause(attempt)).await?;
                attempt += 1;
            }
            other => return other,
        }
    }
}

async fn once(
    context: &StatementContext,
    request: &Request<'_>,
    transaction: &Arc<OpenTransaction>,
) -> Result<Running> {
    let catalog = StatementCatalog::new(context).with_tables(request.tables.clone());
    let targets = clauses::targets(&catalog, request.query)?;
    let wait = targets.iter().map(|target| target.wait).max().unwrap_or(LockWait::Block);
    let locking = LockQuery::new(&catalog, request.query, targets)?;
    if let Some(check) = request.check {
        query::check(context, &request.with_query(&unlocked(request.query)), check).await?;
    }
    let read_at = context.bounded(context.snapshot()).await?;
    let request = Request {
        snapshot: Some(read_at),
        tables: locking.tables(&request.tables),
        ..request.with_query(&locking.query)
    };
    let work = rows::Work {
        context,
        transaction,
        view: catalog.view().clone(),
        locking: &locking,
        read_at,
    };
    let (mut running, rows) = match wait {
        LockWait::Block | LockWait::NoWait => rows::lock(&work, request, wait).await?,
        LockWait::SkipLocked => skip::lock(&work, request).await?,
    };
    let shown = locking.shown(&running.schema)?;
    let schema = running.schema.project(&shown).map_err(|e| Error::internal(e.to_string()))?;
    running.schema = Arc::new(schema);
    running.declared = shown.iter().map(|column| running.declared[*column]).collect();
    let without_keys = |batch: &RecordBatch| {
        let rows = batch.project(&shown);
        rows.map_err(|e| Error::internal(format!("rows without their keys: {e}")))
    };
    let rows = rows.iter().map(without_keys).collect::<Result<Vec<_>>>()?;
    running.stream = stream::ready(running.schema.clone(), rows);
    Ok(running)
}

/// A query without its locking clauses.
pub(crate) fn unlocked(query: &Query) -> Query {
    Query {
        locks: vec![],
        ..query.clone()
    }
}

/// How a query locks rows, or the first of those inside it that does.
pub(crate) fn first(query: &Query) -> Option<LockStrength> {
    struct First;
    impl Visitor for First {
        type Break = LockStrength;
        fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<LockStrength> {
            let has_tables = !matches!(query.body.as_ref(), SetExpr::Select(select) if select.from.is_empty());
            match row_locks(query).first() {
                Some(lock) if has_tables => ControlFlow::Break(lock.strength),
                _ => ControlFlow::Continue(()),
            }
        }
    }
    query.visit(&mut First).break_value()
}

/// What EXPLAIN says of the locks of a query.
///
/// # Errors
/// Those of [`check`].
pub(crate) fn explain(context: &StatementContext, query: &Query) -> Result<Vec<String>> {
    let catalog = StatementCatalog::new(context);
    check(&catalog, query)?;
    let line = |target: &Locked| {
        let wait = match target.wait {
            LockWait::Block => "",
            LockWait::SkipLocked => " SKIP LOCKED",
            LockWait::NoWait => " NOWAIT",
        };
        let name = clauses::folded(&target.name);
        format!("Lock rows: {} OF {name}{wait}, at the leaders of their shards", target.strength)
    };
    Ok(clauses::targets(&catalog, query)?.iter().map(line).collect())
}
