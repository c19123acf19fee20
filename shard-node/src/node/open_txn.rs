//! Open transactions at a shard's leader: statement by statement, until they are prepared, committed or given up.
//!
//! ```text
//!   Write(n, rows) ─▶ lock (waits) ─▶ unchanged since it was read, unique ─▶ OwnRows      in memory, seen by the transaction only
//!   Undo(n)        ─▶ rows of statements from n on are forgotten, locks stay
//!   Prepare, Commit(open) ─▶ take_open ─▶ what OwnRows amounts to is logged
//!   no KeepAlive for a while ─▶ everything is dropped                                     its router is dead
//! ```
//!
//! All of it ends with the leadership: a transaction that wrote here before is refused with 40001 afterwards, on reads too.

use super::committer::aborted;
use super::shard::Shard;
use super::writes::{Basis, Locked, Wishes, changed, lock, refusal};
use super::{ShardNode, checks};
use crate::storage::version::TableVersion;
use crate::storage::{Going, OwnRows, ShardStore, Write};
use crate::txn::entry;
use crate::txn::locks::Span;
use crate::txn::participant::OpenTxn;
use datafusion::execution::memory_pool::MemoryConsumer;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::{Error, Result, ShardId, TableId, Timestamp, TxnId, v1};
use tokio::time::Instant;

/// How long after the last sign of its router an open transaction is dropped: eight signs.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// One shard as a read sees it.
#[derive(Debug, Clone)]
pub struct ReadStore {
    /// Everything committed.
    pub store: ShardStore,
    /// What the reading transaction changed itself.
    pub own: Option<Arc<OwnRows>>,
}

impl ReadStore {
    /// A table's rows as this read sees them; `None` when there are none. Blocking where rows go that are in files.
    ///
    /// # Errors
    /// XX001 or 58030 when segments cannot be read.
    pub fn table(&self, table: TableId) -> Result<Option<Arc<TableVersion>>> {
        if let Some(own) = &self.own
            && let Some(version) = own.view(&self.store, table)?
        {
            return Ok(Some(version));
        }
        Ok(self.store.version().tables.get(&table).cloned())
    }
}

/// 40001: what it wrote here is gone with the leader that had it.
pub(super) fn lost(shard: &Shard, txn: TxnId) -> Error {
    Error::new(
        "40001",
        format!(
            "transaction {txn} was aborted because shard {} changed its leader, or heard nothing of its router",
            shard.id
        ),
    )
    .with_hint("run the transaction again")
}

/// 55000: one request at a time.
fn busy(shard: &Shard, txn: TxnId) -> Error {
    let message = format!("transaction {txn} is busy on shard {} already", shard.id);
    Error::new("55000", message)
}

/// Ends the request of an open transaction; its locks stay.
struct Request<'a> {
    shard: &'a Shard,
    txn: TxnId,
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let mut participant = self.shard.participant.lock();
        participant.end(self.txn);
        // Dropped meanwhile: what it locked since must not stay.
        if participant.opened(self.txn).is_none() {
            participant.locks.release(self.txn);
        }
        drop(participant);
        self.shard.wake_all();
    }
}

impl Shard {
    /// Forgets an open transaction; a statement of it that waits gives up.
    pub fn drop_open(&self, txn: TxnId) {
        let mut participant = self.participant.lock();
        participant.give_up(txn);
        if participant.close(txn).is_some() {
            participant.locks.release(txn);
        }
        drop(participant);
        self.wake_all();
    }

    /// What a transaction changed here.
    ///
    /// # Errors
    /// 40001 when it is not open any more.
    pub fn own_rows(&self, txn: TxnId) -> Result<Arc<OwnRows>> {
        let mut participant = self.participant.lock();
        let term = self.status.borrow().term;
        match participant.opened(txn) {
            Some(open) if open.term == term => Ok(open.rows.clone()),
            _ => Err(lost(self, txn)),
        }
    }
}

impl ShardNode {
    /// See `ShardService::write`.
    pub(super) async fn write_open(self: &Arc<Self>, request: v1::WriteRequest) -> Result<()> {
        let until = checks::until(request.deadline_ms)?;
        let txn = TxnId::from_wire(&request.txn)?;
        let own = request.shard.is_some_and(|s| s.own);
        let shard = self.leading(request.shard, until).await?;
        let bytes = entry::bytes(&request.writes);
        let wishes = Wishes {
            writes: request.writes,
            meta_revision: request.meta_revision,
            basis: Basis {
                read_at: Timestamp(request.read_at),
                upsert: request.upsert,
            },
        };
        let basis = wishes.basis;
        let (_, writes, wanted) = self.decode_and_want(&shard, txn, wishes, until).await?;
        let request_of_it = self.begin_open(&shard, txn, own)?;
        let patience = Duration::from_millis(request.lock_timeout_ms);
        let lock_until = match request.lock_timeout_ms {
            0 => until,
            _ => until.min(Instant::now() + patience),
        };
        let term = match lock(&shard, txn, Span::Open, wanted, lock_until).await {
            Err(error) if error.code == "57014" && lock_until < until => {
                return Err(Error::new("55P03", "canceling statement due to lock timeout"));
            }
            other => other?,
        };
        let (rows, done) = {
            let mut participant = shard.participant.lock();
            match participant.opened(txn) {
                Some(open) if open.term == term => (open.rows.clone(), open.sequence >= request.sequence),
                _ => return Err(lost(&shard, txn)),
            }
        };
        if done {
            return Ok(());
        }
        let here = shard.clone();
        let checked = tokio::task::spawn_blocking(move || {
            check(&here, &rows, &writes, basis)?;
            Ok::<_, Error>(writes)
        });
        let writes = checked
            .await
            .map_err(|e| Error::internal(format!("checking rows: {e}")))??;
        let mut participant = shard.participant.lock();
        let Some(open) = participant.opened(txn).filter(|open| open.term == term) else {
            return Err(lost(&shard, txn));
        };
        if open.sequence >= request.sequence {
            return Ok(());
        }
        open.memory.try_grow(bytes)?;
        let added = Arc::make_mut(&mut open.rows).add(request.sequence, writes, bytes);
        open.memory.try_resize(open.rows.bytes())?;
        added?;
        open.sequence = request.sequence;
        drop(participant);
        drop(request_of_it);
        Ok(())
    }

    /// Begins a request of an open transaction, and the transaction itself with its first.
    fn begin_open<'a>(&self, shard: &'a Shard, txn: TxnId, own: bool) -> Result<Request<'a>> {
        let mut participant = shard.participant.lock();
        if participant.is_refused(txn) {
            return Err(aborted(txn));
        }
        let term = shard.status.borrow().term;
        let opened = participant.opened(txn).map(|open| open.term);
        if opened.is_some_and(|t| t != term) || opened.is_none() && own {
            return Err(lost(shard, txn));
        }
        if !participant.begin(txn) {
            return Err(busy(shard, txn));
        }
        let now = self.begun.elapsed();
        let make = || OpenTxn {
            rows: Arc::default(),
            term,
            sequence: 0,
            memory: MemoryConsumer::new("open transaction").register(self.executor.memory()),
            heard: now,
        };
        participant.open(txn, make).heard = now;
        Ok(Request { shard, txn })
    }

    /// See `ShardService::undo`.
    pub(super) async fn undo_open(self: &Arc<Self>, request: v1::UndoRequest) -> Result<()> {
        let until = checks::until(request.deadline_ms)?;
        let txn = TxnId::from_wire(&request.txn)?;
        let shard = self.leading(request.shard, until).await?;
        // A statement that was cancelled may not have noticed yet.
        shard.participant.lock().give_up(txn);
        shard.wake_all();
        let idle = |s: &Shard| (!s.participant.lock().is_active(txn)).then_some(());
        let busy = || Error::cancelled(format!("a statement of transaction {txn} did not end in time"));
        shard.wait_until(until, idle).await.ok_or_else(busy)?;
        let mut participant = shard.participant.lock();
        let term = shard.status.borrow().term;
        let Some(open) = participant.opened(txn).filter(|open| open.term == term) else {
            return Err(lost(&shard, txn));
        };
        open.sequence = open.sequence.max(request.last);
        Arc::make_mut(&mut open.rows).forget_from(request.sequence)?;
        let bytes = open.rows.bytes();
        open.memory.try_resize(bytes)?;
        Ok(())
    }

    /// See `ShardService::keep_alive`.
    pub(super) fn keep_open(&self, request: &v1::KeepAliveRequest) -> Result<v1::KeepAliveReply> {
        let now = self.begun.elapsed();
        let txns = request
            .txns
            .iter()
            .map(|txn| TxnId::from_wire(txn))
            .collect::<Result<Vec<_>>>()?;
        let mut waits = vec![];
        for shard in self.shards() {
            let mut participant = shard.participant.lock();
            txns.iter().for_each(|txn| participant.heard(*txn, now));
            waits.extend(participant.waiting().map(|(waiter, holder)| v1::Wait {
                waiter: waiter.to_wire(),
                holder: holder.to_wire(),
                shard: Some(shard.reference()),
            }));
        }
        Ok(v1::KeepAliveReply { waits })
    }

    /// Ends a transaction's wait in a shard, if it waits there. It may have got its locks meanwhile, and be prepared: that stands.
    pub(super) fn give_up(&self, shard: ShardId, txn: TxnId) -> Result<()> {
        let shard = self
            .shard(shard)
            .ok_or_else(|| Error::stale_map(format!("shard {shard} is not on this node")))?;
        shard.participant.lock().give_up(txn);
        shard.wake_all();
        Ok(())
    }

    /// Takes an open transaction to its end: its locks, and what is to be logged of it.
    ///
    /// # Errors
    /// 40001 when it is not open any more, 55000 when a statement of it still runs.
    pub(super) async fn take_open(&self, shard: &Arc<Shard>, txn: TxnId) -> Result<(Locked, Vec<v1::TableWrite>)> {
        let (rows, term) = {
            let mut participant = shard.participant.lock();
            if participant.is_refused(txn) {
                return Err(aborted(txn));
            }
            let term = shard.status.borrow().term;
            let rows = match participant.opened(txn) {
                Some(open) if open.term == term => open.rows.clone(),
                _ => return Err(lost(shard, txn)),
            };
            if !participant.begin(txn) {
                return Err(busy(shard, txn));
            }
            (rows, term)
        };
        let locked = Locked {
            shard: shard.clone(),
            txn,
            term,
            keep: false,
        };
        let writes = tokio::task::spawn_blocking(move || rows.to_wire());
        let writes = writes
            .await
            .map_err(|e| Error::internal(format!("encoding rows: {e}")))??;
        Ok((locked, writes))
    }

    /// Drops open transactions whose routers are not heard of any more.
    pub(super) async fn drop_expired(self: &Arc<Self>, shard: &Arc<Shard>) {
        let expired = shard.participant.lock().expired(self.begun.elapsed(), OPEN_TIMEOUT);
        for txn in expired {
            tracing::info!(shard = %shard.id, %txn, "an open transaction is dropped: its router is silent");
            shard.drop_open(txn);
            self.discard_staged(shard, txn).await;
        }
    }
}

/// Rows that go are as they were read, or the transaction's own; rows that come have keys that no other row has. Blocking.
fn check(shard: &Shard, own: &OwnRows, writes: &[Write], basis: Basis) -> Result<()> {
    let store = &shard.store;
    let mut going: HashMap<TableId, Going> = HashMap::new();
    for write in writes {
        let table = write.table();
        let is_changed = match own.committed(write)? {
            Some(committed) => !store.unchanged_since(&committed, basis.read_at)?,
            None => false,
        };
        if is_changed {
            return Err(changed(table));
        }
        going.entry(table.id).or_default().add(write)?;
    }
    for write in writes {
        let table = write.table();
        let mut free = going.get(&table.id).cloned().unwrap_or_default();
        let keys = match write {
            Write::Rows { .. } => store.keys(write)?,
            Write::Truncated { .. } | Write::Removed { .. } | Write::Staged { .. } => vec![],
        };
        if let Some(row) = own.conflict(table.id, &keys, &free) {
            let detail = store.key_detail(write, row)?;
            return Err(Error::duplicate_key(&table.name, detail));
        }
        own.add_going(table.id, &mut free);
        let write = with_own_staged(own, write);
        if let Some(conflict) = store.unique_conflict(&write, &free)? {
            return Err(refusal(table, conflict, basis));
        }
    }
    Ok(())
}

/// Staged segments are compared with those that the transaction added before, too.
fn with_own_staged(own: &OwnRows, write: &Write) -> Write {
    match write {
        Write::Staged { table, segments } => Write::Staged {
            table: table.clone(),
            segments: segments.iter().chain(own.staged(table.id)).cloned().collect(),
        },
        other => other.clone(),
    }
}
