//! A transaction of several statements, as its router sees it: which shards it wrote, and what it reads at.
//!
//! ```text
//!   statement ──▶ snapshot()            READ COMMITTED: a new one each; REPEATABLE READ: that of the first
//!             ──▶ own()                 shards whose leaders overlay what it wrote
//!             ──▶ write(rows by shard)  locked, checked and kept at the leaders (ShardService::write)
//!   savepoint     mark() ... undo(mark) rows of later statements are taken back, their locks stay
//!   end           commit(): two phases over the shards it wrote, the first of them home;  abandon(): everything is dropped
//! ```
//!
//! While it has written anything it is registered with the engine, whose watch (watch.rs) keeps it alive at the nodes. Dropping
//! it drops what it wrote. Not here: the session's side, such as the failed state (session/control.rs).

use crate::engine::Engine;
use crate::session::StatementContext;
use crate::txn::driver::{self, ShardWrites, Transaction, at_leader};
use crate::txn::snapshots::{Held, Holds};
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use tessera_planner::OwnWrites;
use tessera_proto::{Error, GroupId, Result, ShardId, Timestamp, TxnId, v1};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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
    cancel: CancellationToken,
    deadline: Instant,
    /// 0 is none.
    lock_timeout_ms: u64,
}

impl Limits {
    /// Those of a statement.
    pub(crate) fn of(context: &StatementContext) -> Self {
        let lock_timeout = context.settings.get("lock_timeout");
        Self {
            cancel: context.cancel.clone(),
            deadline: context.deadline,
            lock_timeout_ms: lock_timeout.and_then(|ms| ms.parse().ok()).unwrap_or(0),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct OpenTransaction {
    engine: Arc<Engine>,
    id: TxnId,
    isolation: Isolation,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    snapshot: Option<(Timestamp, Held)>,
    /// In the order of their first writes.
    shards: Vec<Written>,
    sequence: u64,
    meta_revision: u64,
    over: bool,
}

/// A shard that it wrote.
#[derive(Debug, Clone, Copy)]
struct Written {
    shard: ShardId,
    /// The last write sent.
    last: u64,
    /// A write was acknowledged. One that was not may have been done all the same.
    open: bool,
}

impl OpenTransaction {
    /// A transaction that has done nothing yet.
    pub(crate) fn begin(engine: &Arc<Engine>, isolation: Isolation) -> Arc<Self> {
        Arc::new(Self {
            engine: engine.clone(),
            id: TxnId::generate(),
            isolation,
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

    /// What the next statement reads at. Nodes keep what it sees as long as the statement holds it, or the transaction.
    ///
    /// # Errors
    /// The oracle's.
    pub(crate) async fn snapshot(&self, statement: &Holds) -> Result<Timestamp> {
        let fixed = self.state.lock().snapshot.as_ref().map(|(snapshot, _)| *snapshot);
        if let Some(snapshot) = fixed {
            return Ok(snapshot);
        }
        let (drawn, held) = self.engine.snapshot().await?;
        match self.isolation {
            Isolation::RepeatableRead => self.state.lock().snapshot = Some((drawn, held)),
            Isolation::ReadCommitted => statement.add(held),
        }
        Ok(drawn)
    }

    /// What reads must tell the shards; `None` while it has written nothing.
    pub(crate) fn own(&self) -> Option<OwnWrites> {
        let state = self.state.lock();
        let shards: BTreeSet<ShardId> = state.shards.iter().filter(|w| w.open).map(|w| w.shard).collect();
        (!shards.is_empty()).then(|| OwnWrites {
            txn: self.id.to_wire().to_vec(),
            shards,
        })
    }

    /// Whether it wrote rows of a colocation group.
    pub(crate) fn wrote_group(&self, group: GroupId) -> bool {
        self.state.lock().shards.iter().any(|w| w.shard.group == group)
    }

    /// Where it stands, for [`Self::undo`].
    pub(crate) fn mark(&self) -> u64 {
        self.state.lock().sequence
    }

    /// Adds a statement's rows, shards at once.
    ///
    /// # Errors
    /// `Retry::Restart` when a row that goes changed since it was read at `read_at`; 23505 and whatever else a shard refuses with;
    /// 40001 when a shard lost what was written before. Some shards may have done their part: undo it, or give up.
    pub(crate) async fn write(
        &self,
        writes: Vec<ShardWrites>,
        meta_revision: u64,
        read_at: Timestamp,
        limits: &Limits,
    ) -> Result<()> {
        let mut running = FuturesUnordered::new();
        for part in writes {
            let (sequence, own) = self.sending(part.shard, meta_revision)?;
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
            running.push(self.write_one(part.shard, own, request, limits.deadline));
        }
        let all = async {
            let mut result = Ok(());
            while let Some(done) = running.next().await {
                result = result.and(done);
            }
            result
        };
        tokio::select! {
            biased;
            () = limits.cancel.cancelled() => Err(crate::error::cancelled_by_user()),
            result = all => result,
        }
    }

    fn sending(&self, shard: ShardId, meta_revision: u64) -> Result<(u64, bool)> {
        let mut state = self.state.lock();
        if state.over {
            return Err(Error::internal("the transaction is over"));
        }
        if state.shards.is_empty() {
            self.engine.open_transactions().insert(self.id);
        }
        state.sequence += 1;
        state.meta_revision = state.meta_revision.max(meta_revision);
        let sequence = state.sequence;
        match state.shards.iter_mut().find(|w| w.shard == shard) {
            Some(written) => {
                written.last = sequence;
                Ok((sequence, written.open))
            }
            None => {
                state.shards.push(Written {
                    shard,
                    last: sequence,
                    open: false,
                });
                Ok((sequence, false))
            }
        }
    }

    async fn write_one(&self, shard: ShardId, own: bool, request: v1::WriteRequest, deadline: Instant) -> Result<()> {
        loop {
            let sent = at_leader(&self.engine, shard, deadline, |service, reference, deadline_ms| {
                let request = v1::WriteRequest {
                    shard: Some(v1::ShardRef { own, ..reference }),
                    deadline_ms,
                    ..request.clone()
                };
                Box::pin(async move { service.write(request).await.map(drop) })
            });
            match sent.await {
                // A single call waits for some seconds only; the holder of a row may take longer.
                Err(error) if error.code == "57014" && Instant::now() < deadline => {}
                other => break other?,
            }
        }
        let mut state = self.state.lock();
        if let Some(written) = state.shards.iter_mut().find(|w| w.shard == shard) {
            written.open = true;
        }
        Ok(())
    }

    /// Takes back what was written since `mark`.
    ///
    /// # Errors
    /// 40001 when a shard lost what was written before; then the transaction must be given up.
    pub(crate) async fn undo(&self, mark: u64, deadline: Instant) -> Result<()> {
        let (later, last): (Vec<Written>, u64) = {
            let state = self.state.lock();
            let later = state.shards.iter().copied().filter(|w| w.last > mark);
            (later.collect(), state.sequence)
        };
        for written in later {
            let request = v1::UndoRequest {
                shard: None,
                txn: self.id.to_wire(),
                sequence: mark + 1,
                deadline_ms: 0,
                last,
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
                        w.last = mark;
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
    /// 40001 when a shard lost what was written; 40003 when nobody can tell the outcome.
    pub(crate) async fn commit(&self, deadline: Instant) -> Result<()> {
        let (shards, meta_revision) = {
            let mut state = self.state.lock();
            state.over = true;
            state.snapshot = None;
            (std::mem::take(&mut state.shards), state.meta_revision)
        };
        let Some((home, others)) = shards.split_first() else {
            return Ok(());
        };
        let mut others: Vec<ShardId> = others.iter().map(|w| w.shard).collect();
        others.sort_unstable();
        let shards = std::iter::once(home.shard).chain(others);
        let transaction = Transaction {
            id: self.id,
            meta_revision,
            read_at: Timestamp(0),
            open: true,
            shards: shards.map(|shard| ShardWrites { shard, writes: vec![] }).collect(),
            deadline,
        };
        // Kept alive to its end, also when nobody waits for that any more.
        let (engine, id) = (self.engine.clone(), self.id);
        let (reply, told) = oneshot::channel();
        self.engine.tasks().spawn(async move {
            let committed = driver::commit(&engine, transaction).await;
            engine.open_transactions().remove(id);
            let _ = reply.send(committed);
        });
        let unknown = |_| Err(Error::outcome_unknown("the commit ended without an answer"));
        told.await.unwrap_or_else(unknown).map(drop)
    }

    /// Drops everything it wrote, in the background.
    pub(crate) fn abandon(&self) {
        let shards = {
            let mut state = self.state.lock();
            state.over = true;
            state.snapshot = None;
            std::mem::take(&mut state.shards)
        };
        if shards.is_empty() {
            return;
        }
        self.engine.open_transactions().remove(self.id);
        driver::abandon(&self.engine, self.id, shards.into_iter().map(|w| w.shard).collect());
    }
}

impl Drop for OpenTransaction {
    fn drop(&mut self) {
        self.abandon();
    }
}
