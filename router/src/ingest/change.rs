//! UPDATE and DELETE: find the rows at a snapshot, remove them, add what they become, all in one transaction.
//!
//! ```text
//!   draw a timestamp ──▶ find rows at it (change_query.rs) ──▶ old keys, new rows (change_writer.rs) ──▶ RETURNING ──▶ commit
//!          ▲                                                                                                      │
//!          └────────────────────── one of the rows changed since: nothing happened, all of it again ──────────────┘
//! ```
//!
//! That gives what PostgreSQL calls READ COMMITTED. There a statement that meets a changed row waits for the other transaction
//! and checks this row again in its new version (EvalPlanQual); here all rows are looked for again, at a later snapshot that is
//! the same for all of them. Neither loses an update, nor changes a row that no longer qualifies. With REPEATABLE READ the statement
//! fails with 40001 instead.
//!
//! A row that FROM or USING matches several times is changed once, by any of its matches, as in PostgreSQL.

use super::change_query::{Change, Kind, Search};
use super::change_writer::ChangeWriter;
use super::insert;
use super::returning::{self, Asked, Returned};
use super::rows::RowShaper;
use crate::cluster::catalog::{StatementCatalog, TARGET};
use crate::execute::query::{self, Request, Shortcut};
use crate::outcome::{Outcome, RowsTag};
use crate::session::StatementContext;
use crate::txn::driver::Basis;
use crate::txn::open::Isolation;
use datafusion::arrow::array::{BooleanArray, RecordBatch};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::logical_expr::LogicalPlan;
use datafusion::scalar::ScalarValue;
use futures::TryStreamExt;
use std::collections::HashSet;
use std::time::Duration;
use tessera_proto::token::canonical_keys;
use tessera_proto::{Error, Result, Retry, Timestamp};

/// Attempts of one statement. Each that fails means that another statement changed one of the rows and was committed, so the rows are
/// of the hottest if they do not suffice.
const ATTEMPTS_MAX: u32 = 100;
/// The pause before an attempt grows by so much at most with each, up to the longest: a row that everybody changes is changed sooner
/// by all if they do not come all at once.
const PAUSE: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// What remembering a row costs beside its key.
pub(super) const SEEN_BYTES: usize = 48;

/// Runs it.
///
/// # Errors
/// Those of any query and of INSERT; 40001 when the rows change faster than they can be read; 54000 when they are too many.
pub(crate) async fn run(context: &StatementContext, change: &Change<'_>, params: Vec<ScalarValue>) -> Result<Outcome> {
    until_unchanged(context, || once(context, change, &params)).await
}

/// Runs a statement until nothing of what it saw changed before it was committed. With REPEATABLE READ it runs once.
///
/// # Errors
/// The statement's; 40001 when the rows change faster than they can be read.
pub(super) async fn until_unchanged<T, F>(context: &StatementContext, once: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut attempt = 1;
    let transaction = context.transaction.as_ref();
    let (mark, again) = transaction.map_or((0, true), |t| (t.mark(), t.isolation() == Isolation::ReadCommitted));
    loop {
        match once().await {
            Err(error) if error.retry == Retry::Restart && again && attempt < ATTEMPTS_MAX => {
                if let Some(transaction) = transaction {
                    // Locks stay, so those rows are as they were found now.
                    transaction.undo(mark, context.deadline).await?;
                }
                tracing::debug!(attempt, %error, "running a statement again: its rows changed");
                context.bounded(pause(attempt)).await?;
                attempt += 1;
            }
            other => return other,
        }
    }
}

async fn pause(attempt: u32) -> Result<()> {
    let longest = (PAUSE * attempt).min(PAUSE_MAX);
    tokio::time::sleep(longest.mul_f64(rand::random())).await;
    Ok(())
}

async fn once(context: &StatementContext, change: &Change<'_>, params: &[ScalarValue]) -> Result<Outcome> {
    let catalog = StatementCatalog::new(context);
    let search = Search::new(&catalog, change)?;
    let read_at = context.bounded(context.snapshot()).await?;
    let basis = Basis { read_at, upsert: false };
    let writer = ChangeWriter::new(catalog.view(), search.table.clone(), basis)?;
    let mut changes = Changes::new(context, change, &search, writer);
    find(context, &search, params, read_at, &mut changes).await?;
    let returned = match change.returning {
        Some(returning) => {
            let asked = Asked {
                returning,
                table: &search.table,
                name: change.name(),
                from: change.from,
            };
            let rows = changes.kept.take().unwrap_or_default();
            Some(returning::evaluate(context, &asked, params, Some(read_at), rows).await?)
        }
        None => None,
    };
    let count = changes.count;
    changes.writer.commit(context).await?;
    Ok(outcome(change.kind, count, returned))
}

fn outcome(kind: Kind, count: u64, returned: Option<Returned>) -> Outcome {
    match (returned, kind) {
        (None, kind) => Outcome::done(format!("{} {count}", kind.name())),
        (Some(returned), Kind::Update) => returned.outcome(RowsTag::Update(count)),
        (Some(returned), Kind::Delete) => returned.outcome(RowsTag::Delete(count)),
    }
}

async fn find(
    context: &StatementContext,
    search: &Search,
    params: &[ScalarValue],
    read_at: Timestamp,
    changes: &mut Changes<'_>,
) -> Result<()> {
    let check = |plan: &LogicalPlan| search.check(plan);
    let request = Request {
        types: insert::declared_types(params, &search.types),
        check: &check,
        shortcut: Shortcut::Never,
        snapshot: Some(read_at),
        targets: vec![(TARGET, search.target.clone())],
        ..Request::new(&search.query, params.to_vec())
    };
    let mut found = query::open(context, request).await?;
    loop {
        let next = context.bounded(async { Ok(found.stream.try_next().await?) }).await;
        let Some(batch) = next.map_err(again)? else {
            return Ok(());
        };
        changes.take(batch)?;
    }
}

/// A query is not repeated once its client may have seen rows. Here nobody saw any.
pub(super) fn again(error: Error) -> Error {
    match error.is_retryable() {
        true => error.with_retry(Retry::Restart),
        false => error,
    }
}

/// What becomes of the rows that were found.
struct Changes<'a> {
    search: &'a Search,
    kind: Kind,
    zone: String,
    /// Makes whole rows in their declared types: those after an UPDATE, those before a DELETE that returns them.
    shaper: Option<RowShaper>,
    /// Keys of the rows so far, where one may be found twice.
    seen: Option<HashSet<Box<[u8]>>>,
    /// Rows for RETURNING, where it is asked for.
    kept: Option<Vec<RecordBatch>>,
    count: u64,
    writer: ChangeWriter,
}

impl<'a> Changes<'a> {
    fn new(context: &StatementContext, change: &Change<'_>, search: &'a Search, writer: ChangeWriter) -> Self {
        let whole = change.kind == Kind::Update || change.returning.is_some();
        let shaper = || RowShaper::complete(context, search.table.clone(), &search.latest());
        Self {
            search,
            kind: change.kind,
            zone: context.settings.get("timezone").unwrap_or_default(),
            shaper: whole.then(shaper),
            seen: (!change.from.is_empty()).then(HashSet::new),
            kept: change.returning.map(|_| vec![]),
            count: 0,
            writer,
        }
    }

    /// Takes a batch of the search.
    fn take(&mut self, batch: RecordBatch) -> Result<()> {
        let batch = self.first_matches(batch)?;
        self.count += batch.num_rows() as u64;
        let table = &self.search.table;
        let row_keys = self.search.old_values(&table.row_key(), &batch, &self.zone)?;
        let shard_keys = self.search.old_values(table.shard_key(), &batch, &self.zone)?;
        self.writer.remove(row_keys, &shard_keys)?;
        let Some(shaper) = &self.shaper else { return Ok(()) };
        let rows = shaper.shape(&batch, 0)?;
        if let Some(kept) = &mut self.kept {
            let visible = returning::visible(table, &rows)?;
            self.writer.held.add(&visible)?;
            kept.push(visible);
        }
        match self.kind {
            Kind::Update => self.writer.add(rows),
            Kind::Delete => Ok(()),
        }
    }

    /// The rows that were not found before.
    fn first_matches(&mut self, batch: RecordBatch) -> Result<RecordBatch> {
        let Some(seen) = &mut self.seen else { return Ok(batch) };
        let row_key = self.search.table.row_key();
        let keys = self.search.old_values(&row_key, &batch, &self.zone)?;
        let (mut first, mut bytes) = (Vec::with_capacity(batch.num_rows()), 0);
        for key in canonical_keys(&keys)? {
            let length = key.len();
            let new = seen.insert(key);
            bytes += if new { length + SEEN_BYTES } else { 0 };
            first.push(new);
        }
        self.writer.held.add_bytes(bytes)?;
        filter_record_batch(&batch, &BooleanArray::from(first))
            .map_err(|e| Error::internal(format!("choosing rows: {e}")))
    }
}
