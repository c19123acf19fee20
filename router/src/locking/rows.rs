//! Finds rows and locks them all: waiting for those that others have, or failing.
//!
//! ```text
//!   one shard       in line, all or none                                                nothing is held meanwhile
//!   several         all of them at once, without waiting ── one not free ──▶ all given back, then row by row in the rows' order,
//!                                                                            as PostgreSQL: who orders rows alike waits in no circle
//!   NOWAIT          all of them at once ── one not free ──▶ 55P03
//! ```

use super::rewrite::LockQuery;
use super::steps::RowKeys;
use crate::execute::query::{self, Request, Running};
use crate::ingest::Held;
use crate::session::StatementContext;
use crate::txn::open::{Limits, OpenTransaction, ShardLocks, Undone};
use datafusion::arrow::array::RecordBatch;
use futures::TryStreamExt;
use std::sync::Arc;
use tessera_meta::view::ClusterView;
use tessera_parser::LockWait;
use tessera_proto::v1::lock_request::Wait;
use tessera_proto::{Error, Result, Retry, Timestamp, v1};

/// Requests one after the other: more rows that change shards so often are locked shard by shard.
const STEPS_MAX: usize = 256;

/// What a statement locks rows with.
#[derive(Debug)]
pub(super) struct Work<'a> {
    pub context: &'a StatementContext,
    pub transaction: &'a Arc<OpenTransaction>,
    pub view: Arc<ClusterView>,
    pub locking: &'a LockQuery,
    pub read_at: Timestamp,
}

impl Work<'_> {
    /// Sends requests to their shards; the answers in their order.
    pub(super) async fn send(&self, requests: Vec<ShardLocks>, wait: Wait) -> Result<Vec<v1::LockReply>> {
        let limits = Limits::of(self.context);
        let sent = self.transaction.lock(requests, wait, self.view.revision, self.read_at, &limits);
        self.context.bounded(sent).await
    }

    /// The session's time zone.
    pub(super) fn zone(&self) -> String {
        self.context.settings.get("timezone").unwrap_or_default()
    }
}

/// Runs the query to its end and locks its rows; the rows with their keys.
///
/// # Errors
/// `Retry::Restart` when a row changed since it was read; 55P03 where it is not to be waited; 54000 for too many rows.
pub(super) async fn lock(work: &Work<'_>, request: Request<'_>, wait: LockWait) -> Result<(Running, Vec<RecordBatch>)> {
    let mut running = query::open_unlocked(work.context, request).await?;
    let (mut held, zone) = (Held::default(), work.zone());
    let mut keys = RowKeys::new(&work.locking.targets, &work.view, &zone)?;
    let first = work.locking.first_appended(&running.schema)?;
    let mut rows = vec![];
    while let Some(batch) = next(work, &mut running).await? {
        held.add(&batch)?;
        keys.add(&batch, first, &mut held)?;
        rows.push(batch);
    }
    if !keys.keys.is_empty() {
        lock_all(work, &keys, wait).await?;
    }
    Ok((running, rows))
}

/// The next rows of a query. They are not repeated once a client may have seen rows; here nobody saw any.
pub(super) async fn next(work: &Work<'_>, running: &mut Running) -> Result<Option<RecordBatch>> {
    let next = async { Ok(running.stream.try_next().await?) };
    let next = work.context.bounded(next).await;
    next.map_err(|error| match error.is_retryable() {
        true => error.with_retry(Retry::Restart),
        false => error,
    })
}

async fn lock_all(work: &Work<'_>, keys: &RowKeys<'_>, wait: LockWait) -> Result<()> {
    let all: Vec<usize> = (0..keys.keys.len()).collect();
    let (requests, _) = keys.requests(&all)?;
    if requests.len() == 1 && wait == LockWait::Block {
        return work.send(requests, Wait::Wait).await.map(drop);
    }
    let mark = work.transaction.mark();
    let replies = work.send(requests, Wait::Try).await?;
    let Some(blocked) = replies.iter().map(|reply| reply.blocked).find(|table| *table != 0) else {
        return Ok(());
    };
    if wait == LockWait::NoWait {
        let target = work.locking.targets.iter().find(|target| target.locked.table.id.0 == blocked);
        let name = target.map_or("", |target| &target.locked.table.name);
        let message = format!("could not obtain lock on row in relation \"{name}\"");
        return Err(Error::new("55P03", message));
    }
    let undone = work.transaction.undo(mark, Undone::ReleaseLocks, work.context.deadline);
    work.context.bounded(undone).await?;
    for step in keys.steps(STEPS_MAX) {
        let (requests, _) = keys.requests(&step)?;
        work.send(requests, Wait::Wait).await?;
    }
    Ok(())
}
