//! A transaction of several statements, as its router sees it: which shards it wrote, and what it reads at.
//!
//! ```text
//!   statement ──▶ snapshot()            READ COMMITTED: a new one each; REPEATABLE READ: that of the first
//!             ──▶ own()                 shards whose leaders overlay what it wrote
//!             ──▶ write(rows by shard)  locked, checked and kept at the leaders (ShardService::write)
//!             ──▶ lock(keys by shard)   locked and checked there (ShardService::lock)
//!   savepoint     mark() ... undo(mark) rows of later statements are taken back, and their locks
//!   end           commit(): two phases over the shards it wrote, the first of them home;  abandon(): everything is dropped
//! ```
//!
//! Shards where it only holds locks have no part in the two phases: they are asked whether they hold them still before, and told that
//! it is over after. While it has anything at a shard it is registered with the engine, whose watch (watch.rs) keeps it alive at the
//! nodes. Dropping it drops what it wrote. Not here: the session's side, such as the failed state (session/control.rs).

use crate::engine::Engine;
use crate::session::StatementContext;
use crate::txn::coordinator::Order;
use crate::txn::driver::{self, CallTime, ShardWrites, Transaction, at_leader, at_leader_for};
use futures::future::{BoxFuture, join_all};
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tessera_planner::OwnWrites;
use tessera_proto::service::ShardService;
use tessera_proto::v1::lock_request::Wait;
use tessera_proto::{Error, GroupId, Result, Retry, ShardId, Timestamp, TxnId, v1};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How long the end of a transaction waits for shards to let its rows go: long enough for a call, short where a node is gone.
const GONE_MAX: Duration = Duration::from_secs(1);

/// What statements see of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// A snapshot for each statement.
    ReadCommitted,
    /// One snapshot for all: snapshot isolation.
    RepeatableRead,
}

impl Isolation {
    /// As the setting has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ReadCommitted => "read committed",
            Self::RepeatableRead => "repeatable read",
        }
    }
}

/// What ends a statement early.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Fires when the user cancels.
    pub(super) cancel: CancellationToken,
    /// When the statement must have ended.
    pub(super) deadline: Instant,
    /// Longest wait for rows of others; 0 is none.
    pub(super) lock_timeout_ms: u64,
    /// The number of its session.
    pub(super) session: i32,
}

impl Limits {
    /// Those of a statement.
    pub(crate) fn of(context: &StatementContext) -> Self {
        let lock_timeout = context.settings.get("lock_timeout");
        Self {
            cancel: context.cancel.clone(),
            deadline: context.deadline,
            lock_timeout_ms: lock_timeout.and_then(|ms| ms.parse().ok()).unwrap_or(0),
            session: context.params.number,
        }
    }

    /// A shard's error, as the statement's: what ended because the time is over.
    pub(super) fn explain(&self, error: Error) -> Error {
        match error.code == "57014" && Instant::now() >= self.deadline {
            true => crate::error::timed_out(),
            false => error,
        }
    }
}

/// Rows to lock in one shard.
#[derive(Debug, Clone)]
pub(crate) struct ShardLocks {
    /// The shard.
    pub shard: ShardId,
    /// By table and mode.
    pub locks: Vec<v1::RowLocks>,
}

/// What becomes of locks when statements are taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undone {
    /// They stay: the statement runs again.
    KeepLocks,
    /// They go.
    ReleaseLocks,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct OpenTransaction {
    engine: Arc<Engine>,
    id: TxnId,
    isolation: Isolation,
    /// The number of its session.
    session: i32,
    order: Order,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    snapshot: Option<Timestamp>,
    /// In the order of their first requests.
    shards: Vec<Part>,
    sequence: u64,
    meta_revision: u64,
    over: bool,
    /// Told when shards have let go of what it had there.
    gone: Option<oneshot::Receiver<()>>,
}

/// A shard that it has to do with.
#[derive(Debug, Clone, Copy)]
struct Part {
    shard: ShardId,
    /// The last request sent.
    last: u64,
    /// A request was acknowledged. One that was not may have been done all the same.
    open: bool,
    /// Rows were sent, not only locks taken.
    wrote: bool,
    /// The last request that put rows there.
    written: u64,
    /// Nobody knows what became of a request.
    unsure: bool,
}

impl OpenTransaction {
    /// A transaction that has done nothing yet.
    pub(crate) fn begin(engine: &Arc<Engine>, isolation: Isolation, session: i32) -> Arc<Self> {
        Self::begin_ordered(engine, isolation, session, Order::AtOnce)
    }

    /// The same, with the order in which a statement's shards are written.
    pub(crate) fn begin_ordered(
        engine: &Arc<Engine>,
        isolation: Isolation,
        session: i32,
        order: Order,
    ) -> Arc<Self> {
        Arc::new(Self {
            engine: engine.clone(),
            id: TxnId::generate(),
            isolation,
            session,
            order,
            state: Mutex::default(),
        })
    }

    /// Its id.
    pub(crate) fn id(&self) -> TxnId {
        self.id
    }

    /// What its statements see of others.
    pub(crate) fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// What the next statement reads at.
    ///
    /// # Errors
    /// The oracle's.
    pub(crate) async fn snapshot(&self) -> Result<Timestamp> {
        let fixed = self.state.lock().snapshot;
        if let Some(snapshot) = fixed {
            return Ok(snapshot);
        }
        let drawn = self.engine.oracle().draw().await?;
        if self.isolation == Isolation::RepeatableRead {
            self.state.lock().snapshot = Some(drawn);
        }
        Ok(drawn)
    }

    /// What reads must tell the shards; `None` while it has written nothing.
    pub(crate) fn own(&self) -> Option<OwnWrites> {
        let state = self.state.lock();
        let written = state.shards.iter().filter(|part| part.open && part.wrote);
        let shards: BTreeSet<ShardId> = written.map(|part| part.shard).collect();
        (!shards.is_empty()).then(|| OwnWrites {
            txn: self.id.to_wire().to_vec(),
            shards,
        })
    }

    /// Whether it wrote rows of a colocation group.
    pub(crate) fn wrote_group(&self, group: GroupId) -> bool {
        let state = self.state.lock();
        state.shards.iter().any(|part| part.wrote && part.shard.group == group)
    }

    /// Whether it wrote anything.
    pub(crate) fn wrote(&self) -> bool {
        self.state.lock().shards.iter().any(|part| part.wrote)
    }

    /// Where it stands, for [`Self::undo`].
    pub(crate) fn mark(&self) -> u64 {
        self.state.lock().sequence
    }

    /// Adds a statement's rows, shards at once or one after the other.
    ///
    /// # Errors
    /// `Retry::Restart` when a row that goes changed since it was read at `read_at`; 23505 and whatever else a shard refuses with;
    /// 40001 when a shard lost what was written before. Some shards may have done their part: undo it, or give up.
    pub(crate) async fn write(
        &self,
        mut writes: Vec<ShardWrites>,
        meta_revision: u64,
        read_at: Timestamp,
        limits: &Limits,
    ) -> Result<()> {
        if self.order == Order::OneByOne && writes.len() > 1 {
            writes.sort_by_key(|part| part.shard);
            for part in writes {
                self.write_at_once(vec![part], meta_revision, read_at, limits).await?;
            }
            return Ok(());
        }
        self.write_at_once(writes, meta_revision, read_at, limits).await
    }

    async fn write_at_once(
        &self,
        writes: Vec<ShardWrites>,
        meta_revision: u64,
        read_at: Timestamp,
        limits: &Limits,
    ) -> Result<()> {
        let mut running = FuturesUnordered::new();
        for part in writes {
            let (sequence, own) = self.sending(part.shard, meta_revision, true)?;
            let request = v1::WriteRequest {
                shard: None,
                txn: self.id.to_wire(),
                sequence,
                meta_revision,
                deadline_ms: 0,
                writes: part.writes,
                read_at: read_at.0,
                lock_timeout_ms: limits.lock_timeout_ms,
            };
            running.push(self.send((part.shard, sequence), limits, move |service, reference, deadline_ms| {
                let request = v1::WriteRequest {
                    shard: Some(v1::ShardRef { own, ..reference }),
                    deadline_ms,
                    ..request.clone()
                };
                Box::pin(async move { service.write(request).await })
            }));
        }
        let all = async {
            let mut result = Ok(());
            while let Some(done) = running.next().await {
                result = result.and(done.map(drop));
            }
            result
        };
        tokio::select! {
            biased;
            () = limits.cancel.cancelled() => Err(crate::error::cancelled_by_user()),
            result = all => result,
        }
    }

    /// Locks rows that were read at `read_at`, shards at once; the answers in the order of the shards.
    ///
    /// # Errors
    /// `Retry::Restart` when a row changed since; then all of them are locked all the same, unless they were not to be waited for.
    /// What else a shard refuses with; 40001 when a shard lost what was written or locked before.
    pub(crate) async fn lock(
        &self,
        locks: Vec<ShardLocks>,
        wait: Wait,
        meta_revision: u64,
        read_at: Timestamp,
        limits: &Limits,
    ) -> Result<Vec<v1::LockReply>> {
        let mut sent = vec![];
        for part in locks {
            let (sequence, own) = self.sending(part.shard, meta_revision, false)?;
            let request = v1::LockRequest {
                shard: None,
                txn: self.id.to_wire(),
                sequence,
                meta_revision,
                deadline_ms: 0,
                locks: part.locks,
                read_at: read_at.0,
                lock_timeout_ms: limits.lock_timeout_ms,
                wait: wait.into(),
            };
            sent.push(self.send((part.shard, 0), limits, move |service, reference, deadline_ms| {
                let request = v1::LockRequest {
                    shard: Some(v1::ShardRef { own, ..reference }),
                    deadline_ms,
                    ..request.clone()
                };
                Box::pin(async move { service.lock(request).await })
            }));
        }
        tokio::select! {
            biased;
            () = limits.cancel.cancelled() => Err(crate::error::cancelled_by_user()),
            // All of them, not only up to the first that fails: what runs on would be busy when the next request comes.
            replies = join_all(sent) => replies.into_iter().collect(),
        }
    }

    fn sending(&self, shard: ShardId, meta_revision: u64, writes: bool) -> Result<(u64, bool)> {
        let mut state = self.state.lock();
        if state.over {
            return Err(Error::internal("the transaction is over"));
        }
        if state.shards.is_empty() {
            self.engine.open_transactions().insert(self.id, self.session);
        }
        state.sequence += 1;
        state.meta_revision = state.meta_revision.max(meta_revision);
        let sequence = state.sequence;
        match state.shards.iter_mut().find(|part| part.shard == shard) {
            Some(part) => {
                part.last = sequence;
                part.wrote |= writes;
                Ok((sequence, part.open))
            }
            None => {
                state.shards.push(Part {
                    shard,
                    last: sequence,
                    open: false,
                    wrote: writes,
                    written: 0,
                    unsure: false,
                });
                Ok((sequence, false))
            }
        }
    }

    /// Sends a request that may wait for rows of others, as long as its statement may; with its number if it writes.
    async fn send<T, F>(&self, (shard, write): (ShardId, u64), limits: &Limits, call: F) -> Result<T>
    where
        F: Fn(Arc<dyn ShardService>, v1::ShardRef, u64) -> BoxFuture<'static, Result<T>> + Send + Sync,
    {
        let time = CallTime::Until(limits.deadline);
        let sent = at_leader_for(&self.engine, shard, limits.deadline, time, call).await;
        if let Some(part) = self.state.lock().shards.iter_mut().find(|part| part.shard == shard) {
            match &sent {
                Ok(_) => {
                    part.open = true;
                    part.written = part.written.max(write);
                }
                // Locked, but nothing else: it is to be read again.
                Err(error) if error.retry == Retry::Restart => part.open = true,
                Err(_) => part.unsure = true,
            }
        }
        sent.map_err(|error| limits.explain(error))
    }

    /// Takes back what was written since `mark`.
    ///
    /// # Errors
    /// 40001 when a shard lost what was written before; then the transaction must be given up.
    pub(crate) async fn undo(&self, mark: u64, locks: Undone, deadline: Instant) -> Result<()> {
        let (later, last): (Vec<Part>, u64) = {
            let state = self.state.lock();
            let is_later = |part: &Part| match locks {
                Undone::ReleaseLocks => part.last > mark,
                Undone::KeepLocks => part.last > mark && (part.written > mark || part.unsure),
            };
            let later = state.shards.iter().copied().filter(is_later);
            (later.collect(), state.sequence)
        };
        for written in later {
            let request = v1::UndoRequest {
                shard: None,
                txn: self.id.to_wire(),
                sequence: mark + 1,
                deadline_ms: 0,
                last,
                release: locks == Undone::ReleaseLocks,
            };
            let undone = at_leader(
                &self.engine,
                written.shard,
                deadline,
                |service, reference, deadline_ms| {
                    let request = v1::UndoRequest {
                        shard: Some(reference),
                        deadline_ms,
                        ..request.clone()
                    };
                    Box::pin(async move { service.undo(request).await.map(drop) })
                },
            );
            let undone = undone.await;
            let mut state = self.state.lock();
            match undone {
                Ok(()) => state
                    .shards
                    .iter_mut()
                    .filter(|w| w.shard == written.shard)
                    .for_each(|w| {
                        if locks == Undone::ReleaseLocks {
                            w.last = mark;
                        }
                        w.unsure = false;
                        w.written = w.written.min(mark);
                        w.open = true;
                    }),
                // It never came there.
                Err(error) if error.code == "40001" && !written.open => {
                    state.shards.retain(|w| w.shard != written.shard);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Commits; durable and visible on return. Nothing is left of it in either case.
    ///
    /// # Errors
    /// 40001 when a shard lost what was written or locked; 40003 when nobody can tell the outcome.
    pub(crate) async fn commit(&self, deadline: Instant) -> Result<()> {
        let (shards, meta_revision) = {
            let state = self.state.lock();
            (state.shards.clone(), state.meta_revision)
        };
        let (wrote, locked): (Vec<Part>, Vec<Part>) = shards.into_iter().partition(|part| part.wrote);
        let locked: Vec<ShardId> = locked.into_iter().map(|part| part.shard).collect();
        let asked = locked.iter().map(|shard| self.ask_for_locks(*shard, deadline));
        if let Some(Err(error)) = join_all(asked).await.into_iter().find(Result::is_err) {
            self.abandon();
            return Err(error);
        }
        {
            let mut state = self.state.lock();
            state.over = true;
            state.shards.clear();
        }
        if wrote.is_empty() && locked.is_empty() {
            return Ok(());
        }
        let transaction = (!wrote.is_empty()).then(|| self.transaction(&wrote, meta_revision, deadline));
        // Kept alive to its end, also when nobody waits for that any more.
        let (engine, id) = (self.engine.clone(), self.id);
        let (reply, told) = oneshot::channel();
        self.engine.tasks().spawn(async move {
            let committed = match transaction {
                Some(transaction) => driver::commit(&engine, transaction).await.map(drop),
                None => Ok(()),
            };
            engine.open_transactions().remove(id);
            // Others may lock those rows when the client knows that it is over.
            let gone = driver::abandon(&engine, id, locked);
            let _ = timeout(GONE_MAX, gone).await;
            let _ = reply.send(committed);
        });
        let unknown = |_| Err(Error::outcome_unknown("the commit ended without an answer"));
        told.await.unwrap_or_else(unknown)
    }

    fn transaction(&self, wrote: &[Part], meta_revision: u64, deadline: Instant) -> Transaction {
        let (home, others) = wrote.split_at(1);
        let mut others: Vec<ShardId> = others.iter().map(|part| part.shard).collect();
        others.sort_unstable();
        let shards = home.iter().map(|part| part.shard).chain(others);
        Transaction {
            id: self.id,
            meta_revision,
            read_at: Timestamp(0),
            open: true,
            shards: shards.map(|shard| ShardWrites { shard, writes: vec![] }).collect(),
            deadline,
            limits: None,
        }
    }

    /// Whether a shard still has the locks that it was asked for, and nothing else of this transaction.
    async fn ask_for_locks(&self, shard: ShardId, deadline: Instant) -> Result<()> {
        at_leader(&self.engine, shard, deadline, |service, reference, deadline_ms| {
            let request = v1::PrepareRequest {
                shard: Some(reference),
                txn: self.id.to_wire(),
                home: Some(reference),
                deadline_ms,
                open: true,
                ..v1::PrepareRequest::default()
            };
            Box::pin(async move { service.prepare(request).await.map(drop) })
        })
        .await
    }

    /// Drops everything it wrote and locked, in the background.
    pub(crate) fn abandon(&self) {
        let mut state = self.state.lock();
        state.over = true;
        let shards = std::mem::take(&mut state.shards);
        if shards.is_empty() {
            return;
        }
        self.engine.open_transactions().remove(self.id);
        let shards = shards.into_iter().map(|part| part.shard).collect();
        state.gone = Some(driver::abandon(&self.engine, self.id, shards));
    }

    /// Waits until shards have let go of what [`Self::abandon`] dropped, but not for long.
    pub(crate) async fn gone(&self) {
        let gone = self.state.lock().gone.take();
        if let Some(gone) = gone {
            let _ = timeout(GONE_MAX, gone).await;
        }
    }
}

impl Drop for OpenTransaction {
    fn drop(&mut self) {
        self.abandon();
    }
}
