//! Requests that write: prepare, commit, finish, and the question how a transaction ended.
//!
//! ```text
//!   request ─▶ leader? ─▶ rows decoded, in this shard? ─▶ lock (waits) ─▶ unchanged, unique? ─▶ log ─▶ applied ─▶ answer
//!              └───────────── dropping the request here undoes all ─────────────┘   └── runs on without the request ──┘
//! ```
//!
//! The tail runs in a task of its own, so that a caller that goes away cannot leave a lock without its entry. What was checked
//! under locks holds only as long as the locks do, which end with the leadership: the entry is proposed for that term or not at
//! all. Rows that go must be as they were when they were read; if not, the statement is run again (`Retry::Restart`). An open
//! transaction has locked and checked its rows before (open_txn.rs): preparing and committing it starts with the log.

use super::committer::aborted;
use super::shard::{CommitJob, Shard};
use super::{ShardNode, checks};
use crate::storage::{Conflict, Going, ShardStore, Write};
use crate::txn::entry::{self, Committed, Logged, Prepare};
use crate::txn::locks::{Acquired, Span, Wanted};
use crate::txn::participant::Undecided;
use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::SchemaRef;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tessera_meta::view::ClusterView;
use tessera_proto::table::TableDef;
use tessera_proto::v1::table_write::Payload;
use tessera_proto::{Error, Result, ShardId, TableId, Timestamp, TxnId, ipc, v1};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// How long a younger transaction over several shards waits for an older one's rows before it gives up: PostgreSQL's
/// `deadlock_timeout`.
const CIRCLE_TIMEOUT: Duration = Duration::from_secs(1);
/// Tables written in one shard by one transaction.
const WRITES_MAX: usize = 1_024;

/// Writes of a committed entry, for the store; tables that were dropped meanwhile are left out.
pub fn decode_applied(view: &ClusterView, writes: &[v1::TableWrite]) -> Result<Vec<Write>> {
    let mut out = Vec::with_capacity(writes.len());
    for write in writes {
        if let Some(table) = view.tables.get(&TableId(write.table)) {
            out.extend(decode(write, table.clone())?);
        }
    }
    Ok(out)
}

/// What a write changes: rows that go, then rows that come.
pub(crate) fn decode(write: &v1::TableWrite, table: Arc<TableDef>) -> Result<Vec<Write>> {
    let mut out = vec![];
    if write.truncated {
        out.push(Write::Truncated { table: table.clone() });
    }
    let key = table
        .arrow_schema()
        .project(&table.row_key())
        .map_err(|e| Error::internal(format!("row key of table \"{}\": {e}", table.name)))?;
    if let Some(keys) = rows(&write.removed, &table, &Arc::new(key))? {
        let table = table.clone();
        out.push(Write::Removed { table, keys });
    }
    match &write.payload {
        None => {}
        Some(Payload::Staged(staged)) => out.push(Write::Staged {
            table,
            segments: staged.segments.clone(),
        }),
        Some(Payload::Rows(bytes)) => {
            if let Some(batch) = rows(bytes, &table, &table.arrow_schema())? {
                out.push(Write::Rows { table, batch });
            }
        }
    }
    Ok(out)
}

/// An Arrow IPC stream as one batch of this schema; `None` when it has no rows.
fn rows(bytes: &Bytes, table: &TableDef, schema: &SchemaRef) -> Result<Option<RecordBatch>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let batches = ipc::decode(bytes)?;
    let Some(first) = batches.first() else { return Ok(None) };
    let batch =
        concat_batches(&first.schema(), &batches).map_err(|e| Error::protocol(format!("malformed rows: {e}")))?;
    let batch = ipc::relabel(schema, batch)
        .map_err(|e| Error::protocol(format!("rows do not fit table \"{}\": {e}", table.name)))?;
    Ok(Some(batch).filter(|b| b.num_rows() > 0))
}

/// Locks that writes need.
pub fn wanted(store: &ShardStore, writes: &[Write]) -> Result<Vec<Wanted>> {
    let wanted = |write: &Write| match write {
        Write::Removed { table, .. } | Write::Rows { table, .. } => Ok(Wanted::Keys(table.id, store.keys(write)?)),
        Write::Truncated { table } | Write::Staged { table, .. } => Ok(Wanted::Whole(table.id)),
    };
    writes.iter().map(wanted).collect()
}

/// What a transaction wants to change in one shard.
pub(super) struct Wishes {
    pub(super) writes: Vec<v1::TableWrite>,
    /// The catalog that knows the tables is at least this new.
    pub(super) meta_revision: u64,
    /// What it saw.
    pub(super) basis: Basis,
}

/// What a statement saw before it wrote.
#[derive(Debug, Clone, Copy)]
pub(super) struct Basis {
    /// When the rows that go were read.
    pub(super) read_at: Timestamp,
    /// The statement does something with keys that exist: one that came since is a change like any other.
    pub(super) upsert: bool,
}

/// A transaction's locked and checked writes; dropping it gives the locks back unless they were handed on.
pub(super) struct Locked {
    pub(super) shard: Arc<Shard>,
    pub(super) txn: TxnId,
    /// The leadership that the locks belong to.
    pub(super) term: u64,
    pub(super) keep: bool,
}

impl Drop for Locked {
    fn drop(&mut self) {
        if !self.keep {
            let mut participant = self.shard.participant.lock();
            participant.locks.release(self.txn);
            participant.end(self.txn);
            participant.close(self.txn);
            drop(participant);
            self.shard.wake_all();
        }
    }
}

impl ShardNode {
    /// See `ShardService::prepare`.
    pub(super) async fn prepare_writes(self: &Arc<Self>, request: v1::PrepareRequest) -> Result<()> {
        let until = checks::until(request.deadline_ms)?;
        let txn = TxnId::from_wire(&request.txn)?;
        let home = request
            .home
            .ok_or_else(|| Error::protocol("prepare without a home shard"))?
            .id();
        let shard = self.leading(request.shard, until).await?;
        if shard.ledger.lock().prepared().contains_key(&txn) {
            shard.participant.lock().still_alive(txn, self.begun.elapsed());
            return Ok(());
        }
        if request.still {
            return Err(aborted(txn));
        }
        let wishes = Wishes {
            writes: request.writes,
            meta_revision: request.meta_revision,
            basis: Basis {
                read_at: Timestamp(request.read_at),
                upsert: request.upsert,
            },
        };
        let (locked, writes) = match request.open {
            true => self.take_open(&shard, txn).await?,
            false => self.lock_and_check(&shard, txn, Span::Many, wishes, until).await?,
        };
        let entry = Logged::Prepare(Prepare {
            txn: request.txn,
            home: Some(home.into()),
            writes,
            meta_revision: request.meta_revision,
        });
        let node = self.clone();
        let rest = self.tasks.spawn(async move {
            let mut locked = locked;
            node.failpoints.hit("prepare.before_propose")?;
            let proposed = locked.shard.propose_in(locked.term, entry.encode(), until).await;
            // Refused: nothing was written. Else the locks belong to the log, or leadership is gone with all locks.
            locked.keep = proposed
                .as_ref()
                .map_or_else(|e| e.retry == tessera_proto::Retry::OutcomeUnknown, |_| true);
            let mut participant = locked.shard.participant.lock();
            participant.end(locked.txn);
            participant.close(locked.txn);
            drop(participant);
            proposed?;
            node.failpoints.hit("prepare.after_apply")
        });
        match timeout_at(until, rest).await {
            Ok(Ok(result)) => result,
            Ok(Err(e)) => Err(Error::internal(format!("preparing: {e}"))),
            // No vote: the router aborts, and a late yes is resolved through home.
            Err(_) => Err(Error::cancelled(format!(
                "preparing on shard {} took too long",
                shard.id
            ))),
        }
    }

    /// See `ShardService::commit`.
    pub(super) async fn commit_writes(self: &Arc<Self>, request: v1::CommitRequest) -> Result<Timestamp> {
        let until = checks::until(request.deadline_ms)?;
        let txn = TxnId::from_wire(&request.txn)?;
        let shard = self.leading(request.home, until).await?;
        if let Some(outcome) = shard.ledger.lock().outcome(txn) {
            return outcome.timestamp.ok_or_else(|| aborted(txn));
        }
        let span = if request.participants.is_empty() {
            Span::One
        } else {
            Span::Many
        };
        let wishes = Wishes {
            writes: request.writes,
            meta_revision: request.meta_revision,
            basis: Basis {
                read_at: Timestamp(request.read_at),
                upsert: request.upsert,
            },
        };
        let (mut locked, writes) = match request.open {
            true => self.take_open(&shard, txn).await?,
            false => self.lock_and_check(&shard, txn, span, wishes, until).await?,
        };
        let participants = request.participants.iter().map(|p| p.id().into()).collect();
        let bytes = entry::bytes(&writes);
        let commit = Committed {
            txn: request.txn,
            participants,
            writes,
            meta_revision: request.meta_revision,
        };
        let (reply, answer) = oneshot::channel();
        shard
            .enqueue(
                CommitJob {
                    commit,
                    txn,
                    term: locked.term,
                    bytes,
                    reply,
                },
                until,
            )
            .await?;
        // From here on the committer ends the locks, with the entry or without.
        locked.keep = true;
        let unknown = || Error::outcome_unknown(format!("the commit on shard {} got no answer", shard.id));
        timeout_at(until, answer)
            .await
            .map_err(|_| unknown())?
            .map_err(|_| unknown())?
    }

    /// Writes as they came and as rows, and the locks they need.
    pub(super) async fn decode_and_want(
        self: &Arc<Self>,
        shard: &Arc<Shard>,
        txn: TxnId,
        wishes: Wishes,
        until: Instant,
    ) -> Result<(Vec<v1::TableWrite>, Vec<Write>, Vec<Wanted>)> {
        let payloads = wishes.writes;
        self.check_disk(entry::bytes(&payloads))?;
        if entry::bytes(&payloads) > ipc::INLINE_BYTES_MAX || payloads.len() > WRITES_MAX {
            return Err(Error::new("54000", "write set is too large for one log entry").with_hint("stage it"));
        }
        let view = self.catalog(wishes.meta_revision, until).await?;
        let (here, node) = (shard.clone(), self.clone());
        let decoded = tokio::task::spawn_blocking(move || {
            let writes = checks::decode_request(&view, here.id, &payloads)?;
            node.check_staged(&here, txn, &writes)?;
            let wanted = wanted(&here.store, &writes)?;
            Ok::<_, Error>((payloads, writes, wanted))
        });
        decoded
            .await
            .map_err(|e| Error::internal(format!("decoding rows: {e}")))?
    }

    /// Waits for locks of all writes, then checks keys against what is stored.
    async fn lock_and_check(
        self: &Arc<Self>,
        shard: &Arc<Shard>,
        txn: TxnId,
        span: Span,
        wishes: Wishes,
        until: Instant,
    ) -> Result<(Locked, Vec<v1::TableWrite>)> {
        let basis = wishes.basis;
        let (payloads, writes, wanted) = self.decode_and_want(shard, txn, wishes, until).await?;
        if !shard.participant.lock().begin(txn) {
            return Err(Error::new(
                "55000",
                format!("transaction {txn} is being decided on shard {} already", shard.id),
            ));
        }
        let mut locked = Locked {
            shard: shard.clone(),
            txn,
            term: 0,
            keep: false,
        };
        locked.term = lock(shard, txn, span, wanted, until).await?;
        let here = shard.clone();
        let checked = tokio::task::spawn_blocking(move || check(&here, &writes, basis));
        checked
            .await
            .map_err(|e| Error::internal(format!("checking keys: {e}")))??;
        Ok((locked, payloads))
    }

    /// See `ShardService::finish`.
    pub(super) async fn finish_txn(
        self: &Arc<Self>,
        shard: ShardId,
        reference: Option<v1::ShardRef>,
        txn: TxnId,
        timestamp: Timestamp,
        until: Instant,
    ) -> Result<()> {
        let reference = reference.unwrap_or_else(|| self.reference(shard));
        let shard = self.leading(Some(reference), until).await?;
        let prepared = shard.ledger.lock().prepared().contains_key(&txn);
        if timestamp == Timestamp(0) {
            shard.drop_open(txn);
            self.discard_staged(&shard, txn).await;
        }
        if !prepared {
            // Finished before, or never prepared: a late Prepare is resolved through home.
            return Ok(());
        }
        self.failpoints.hit("finish.before_propose")?;
        let entry = if timestamp == Timestamp(0) {
            Logged::Abort(txn)
        } else {
            Logged::Commit(txn, timestamp)
        };
        let (here, node) = (shard.clone(), self.clone());
        let rest = self.tasks.spawn(async move {
            here.propose(entry.encode(), until).await?;
            node.failpoints.hit("finish.after_apply")
        });
        match timeout_at(until, rest).await {
            Ok(Ok(result)) => result,
            Ok(Err(e)) => Err(Error::internal(format!("finishing: {e}"))),
            Err(_) => Err(Error::unavailable(format!(
                "finishing on shard {} took too long",
                shard.id
            ))),
        }
    }

    /// See `ShardService::outcome`.
    pub(super) async fn outcome_of(
        self: &Arc<Self>,
        home: Option<v1::ShardRef>,
        txn: TxnId,
        resolve: bool,
        until: Instant,
    ) -> Result<v1::OutcomeReply> {
        use v1::outcome_reply::State;
        let shard = self.leading(home, until).await?;
        let known = |s: &Shard| s.ledger.lock().outcome(txn).map(|o| o.timestamp);
        let reply = |state: State, timestamp: Timestamp| v1::OutcomeReply {
            state: state.into(),
            timestamp: timestamp.0,
        };
        let answer =
            |t: Option<Timestamp>| t.map_or(reply(State::Aborted, Timestamp(0)), |t| reply(State::Committed, t));
        let undecided = shard.participant.lock().undecided(txn);
        // Asked after the groups: a group that closed in between is in the ledger.
        if let Some(outcome) = known(&shard) {
            return Ok(answer(outcome));
        }
        if undecided == Undecided::Committing {
            return Ok(reply(State::Committing, Timestamp(0)));
        }
        if !resolve {
            // Only the leader of now may say so: another one could have committed it already.
            self.wait_lease(&shard, until).await?;
            return Ok(reply(State::Pending, Timestamp(0)));
        }
        self.failpoints.hit("outcome.before_tombstone")?;
        // Whatever comes first in the log counts: this, or a commit that is queued right now.
        shard.participant.lock().refuse(txn);
        let written = shard.propose(Logged::AbortRecord(txn).encode(), until).await;
        shard.participant.lock().refused_durably(txn);
        written?;
        known(&shard)
            .map(answer)
            .ok_or_else(|| Error::internal("an abort record left no outcome"))
    }
}

/// Waits for all locks; returns the leadership they belong to. Who else waits is told to routers, which look for circles with
/// open transactions; of two requests over several shards the younger gives up after a while.
pub(super) async fn lock(shard: &Shard, txn: TxnId, span: Span, wanted: Vec<Wanted>, until: Instant) -> Result<u64> {
    let _waiting = Waiting { shard, txn };
    let circle = (Instant::now() + CIRCLE_TIMEOUT).min(until);
    let patient = |s: &Shard| match try_lock(s, txn, span, &wanted) {
        Ok((Acquired::Yes, term)) => Some(Ok(term)),
        Ok((Acquired::Wait(_) | Acquired::GiveUpSoon(_), _)) => None,
        Err(error) => Some(Err(error)),
    };
    if let Some(result) = shard.wait_until(circle, patient).await {
        return result;
    }
    let impatient = |s: &Shard| match try_lock(s, txn, span, &wanted) {
        Ok((Acquired::GiveUpSoon(holder), _)) => Some(Err(circular(txn, holder))),
        _ => patient(s),
    };
    let late = || {
        Err(Error::cancelled(format!(
            "rows in shard {} stayed locked until the deadline",
            shard.id
        )))
    };
    shard.wait_until(until, impatient).await.unwrap_or_else(late)
}

/// Ends what others see of a wait.
struct Waiting<'a> {
    shard: &'a Shard,
    txn: TxnId,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shard.participant.lock().waits(self.txn, None);
    }
}

fn try_lock(shard: &Shard, txn: TxnId, span: Span, wanted: &[Wanted]) -> Result<(Acquired, u64)> {
    let mut participant = shard.participant.lock();
    if participant.is_refused(txn) {
        return Err(aborted(txn));
    }
    if participant.gives_up(txn) {
        return Err(Error::new("40P01", "deadlock detected")
            .with_detail(format!(
                "transaction {txn} is the youngest of those that wait for each other"
            ))
            .with_hint("run the transaction again"));
    }
    let status = shard.status.borrow();
    if status.leads.is_none() {
        return Err(Error::stale_map(format!("shard {} is led elsewhere now", shard.id)));
    }
    let acquired = participant.locks.acquire(txn, span, wanted.to_vec());
    match acquired {
        Acquired::Yes => participant.waits(txn, None),
        Acquired::Wait(holder) | Acquired::GiveUpSoon(holder) => participant.waits(txn, Some(holder)),
    }
    Ok((acquired, status.term))
}

fn circular(txn: TxnId, holder: TxnId) -> Error {
    Error::new(
        "40P01",
        format!("transaction {txn} waits for rows of the older transaction {holder}"),
    )
    .with_detail("both write several shards and may wait for each other")
    .with_hint("run the statement again")
}

/// Rows that go are as they were read, and rows that come have keys that no other row has. Blocking.
fn check(shard: &Shard, writes: &[Write], basis: Basis) -> Result<()> {
    let store = &shard.store;
    let mut going: HashMap<TableId, Going> = HashMap::new();
    for write in writes {
        let table = write.table();
        if !store.unchanged_since(write, basis.read_at)? {
            return Err(changed(table));
        }
        going.entry(table.id).or_default().add(write)?;
    }
    let none = Going::default();
    for write in writes {
        let table = write.table();
        if let Some(conflict) = store.unique_conflict(write, going.get(&table.id).unwrap_or(&none))? {
            return Err(refusal(table, conflict, basis));
        }
    }
    Ok(())
}

/// 40001: a row that goes is not as it was read.
pub(super) fn changed(table: &TableDef) -> Error {
    Error::changed(format!(
        "could not serialize access to table \"{}\" due to concurrent update",
        table.name
    ))
}

/// The error for a key that exists. A statement with ON CONFLICT saw those of its snapshot, so one that it gives a second time is a
/// duplicate all the same.
pub(super) fn refusal(table: &TableDef, conflict: Conflict, basis: Basis) -> Error {
    match basis.upsert && conflict.since.is_some_and(|since| since > basis.read_at) {
        true => changed(table),
        false => Error::duplicate_key(&table.name, conflict.detail),
    }
}
