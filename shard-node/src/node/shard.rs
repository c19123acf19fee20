//! One shard on this node: what its tasks share.
//!
//! ```text
//!   requests ──▶ inbox ──▶ driver (ReplicaState) ──committed──▶ applier ──▶ ShardStore, Ledger ──▶ wakes readers, writers
//!                             │                                    ▲
//!   commits ──▶ committer ────┘ one entry per commit group         └── seals, snapshots         compactor ──▶ ShardStore
//! ```
//!
//! Locks are short and never held over an await; waiting is done on watch channels, with deadlines.

use super::compactor::{Progress, Wish};
use crate::replication::message::{Entry, Event, Operation};
use crate::storage::ShardStore;
use crate::storage::compaction::Compacted;
use crate::txn::ledger::Ledger;
use crate::txn::participant::Participant;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tessera_proto::shard_map::ShardConfig;
use tessera_proto::{Epoch, Error, LogIndex, ReplicaId, Result, ShardId, TableId, v1};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

/// Inputs waiting for a shard's driver: more are dropped (messages) or waited for (requests).
const INBOX_MAX: usize = 1_024;
/// Wishes to compact that wait; whoever has another one waits too.
const WISHES_MAX: usize = 16;
/// Bytes of peers' entries waiting; more are dropped, the leader repeats them.
const BACKLOG_BYTES_MAX: usize = 256 << 20;
/// Bytes of own entries proposed and not yet applied; more wait.
const PROPOSED_BYTES_MAX: usize = 256 << 20;
/// Committed entries kept in memory for the applier; others are read back from the log.
const RECENT_BYTES_MAX: usize = 64 << 20;

/// Input of a driver.
#[derive(Debug)]
pub enum Input {
    /// For the machine.
    Event(Event),
    /// Append entries; answered with the term and the last index once they have one.
    Propose {
        entries: Vec<(u8, Bytes)>,
        /// Only in this leadership, for what was checked under its locks.
        term: Option<u64>,
        reply: oneshot::Sender<Result<Accepted>>,
    },
    /// An operator's wish; answered only when it is refused.
    Operator {
        operation: Operation,
        refused: oneshot::Sender<&'static str>,
    },
}

/// A proposal that has a place in the log.
#[derive(Debug, Clone, Copy)]
pub struct Accepted {
    /// Leadership it was accepted in.
    pub term: u64,
    /// Its last index.
    pub index: LogIndex,
}

/// An entry under way; holds its share of what may be.
#[derive(Debug)]
pub struct Submitted {
    accepted: Accepted,
    _permit: OwnedSemaphorePermit,
}

/// What a shard is doing, as its driver and applier publish it.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// For people.
    pub role: &'static str,
    /// The newest configuration known.
    pub config: Option<ShardConfig>,
    /// Set while this replica leads.
    pub leads: Option<Leads>,
    /// Counts this replica's leaderships since the start.
    pub term: u64,
    /// A hand-over is being decided: nothing may be served.
    pub paused: bool,
    /// Last log index.
    pub last: LogIndex,
    /// Durable log index.
    pub durable: LogIndex,
    /// Committed log index.
    pub commit: LogIndex,
    /// Why this copy serves nothing any more.
    pub damage: Option<Error>,
}

/// A leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leads {
    /// Its present epoch.
    pub epoch: Epoch,
    /// It may serve once this is applied.
    pub start: LogIndex,
    /// Everything before it is applied and locks of prepared transactions are taken.
    pub ready: bool,
}

/// What the applier does besides applying.
#[derive(Debug)]
pub enum Chore {
    /// Move the delta to segments and cut the log; answered with whether that worked.
    Seal(oneshot::Sender<Result<()>>),
    /// Everything a far-behind copy needs, at one log position.
    Snapshot(oneshot::Sender<Result<Bytes>>),
}

/// A transaction that is locked, checked and ready for a commit group.
#[derive(Debug)]
pub struct CommitJob {
    /// For the log.
    pub commit: crate::txn::entry::Committed,
    /// The transaction.
    pub txn: tessera_proto::TxnId,
    /// The leadership that its locks belong to.
    pub term: u64,
    /// Bytes of its writes.
    pub bytes: usize,
    /// Its commit timestamp.
    pub reply: oneshot::Sender<Result<tessera_proto::Timestamp>>,
}

/// See the module.
#[derive(Debug)]
pub struct Shard {
    /// Which.
    pub id: ShardId,
    /// This copy.
    pub me: ReplicaId,
    /// Its folder.
    pub dir: PathBuf,
    /// Rows.
    pub store: ShardStore,
    /// What the log says about transactions.
    pub ledger: Mutex<Ledger>,
    /// What only the leader knows about them.
    pub participant: Mutex<Participant>,
    /// Published state.
    pub status: watch::Sender<Status>,
    /// Everything up to here may be applied.
    pub committed: watch::Sender<LogIndex>,
    /// Everything up to here is applied.
    pub applied: watch::Sender<LogIndex>,
    /// Counts changes of locks, groups and prepared transactions.
    pub wake: watch::Sender<u64>,
    /// Held while rows and ledger change together.
    pub apply_gate: tokio::sync::Mutex<()>,
    /// Held while files are fetched.
    pub fetch_gate: tokio::sync::Mutex<()>,
    /// Snapshots whose files must stay while copies fetch them.
    pub pinned: Mutex<Vec<(Instant, crate::storage::SnapshotManifest)>>,
    /// What compactions did and do.
    pub compaction: Progress,
    inbox: mpsc::Sender<Input>,
    chores: mpsc::Sender<Chore>,
    wishes: mpsc::Sender<Wish>,
    commits: mpsc::Sender<CommitJob>,
    recent: Mutex<Recent>,
    backlog: AtomicUsize,
    proposed: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Recent {
    entries: BTreeMap<LogIndex, Entry>,
    bytes: usize,
}

/// The receiving ends, for the shard's tasks.
#[derive(Debug)]
pub struct Ends {
    /// Driver.
    pub inbox: mpsc::Receiver<Input>,
    /// Applier.
    pub chores: mpsc::Receiver<Chore>,
    /// Committer.
    pub commits: mpsc::Receiver<CommitJob>,
    /// Compactor.
    pub wishes: mpsc::Receiver<Wish>,
}

impl Shard {
    /// A shard as its disk has it.
    pub fn new(id: ShardId, me: ReplicaId, dir: PathBuf, store: ShardStore, ledger: Ledger) -> (Arc<Self>, Ends) {
        let (inbox, inputs) = mpsc::channel(INBOX_MAX);
        let (chores, chore_queue) = mpsc::channel(4);
        let (commits, commit_queue) = mpsc::channel(INBOX_MAX);
        let (wishes, wish_queue) = mpsc::channel(WISHES_MAX);
        let applied = store.applied();
        let shard = Self {
            id,
            me,
            dir,
            store,
            ledger: Mutex::new(ledger),
            participant: Mutex::default(),
            status: watch::Sender::new(Status {
                role: "starting",
                ..Status::default()
            }),
            committed: watch::Sender::new(applied),
            applied: watch::Sender::new(applied),
            wake: watch::Sender::new(0),
            apply_gate: tokio::sync::Mutex::new(()),
            fetch_gate: tokio::sync::Mutex::new(()),
            pinned: Mutex::default(),
            compaction: Progress::default(),
            inbox,
            chores,
            wishes,
            commits,
            recent: Mutex::default(),
            backlog: AtomicUsize::new(0),
            proposed: Arc::new(Semaphore::new(PROPOSED_BYTES_MAX >> 10)),
        };
        (
            Arc::new(shard),
            Ends {
                inbox: inputs,
                chores: chore_queue,
                commits: commit_queue,
                wishes: wish_queue,
            },
        )
    }

    /// A peer's message or news for the machine; dropped when the inbox is full: the machine asks again.
    pub fn post(&self, event: Event) {
        let bytes = entry_bytes(&event);
        if bytes > 0 && self.backlog.load(Ordering::Relaxed) + bytes > BACKLOG_BYTES_MAX {
            return;
        }
        if self.inbox.try_send(Input::Event(event)).is_ok() {
            self.backlog.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// The driver took an event out.
    pub fn taken(&self, event: &Event) {
        self.backlog.fetch_sub(entry_bytes(event), Ordering::Relaxed);
    }

    /// An operator's wish.
    pub async fn operate(&self, operation: Operation, until: Instant) -> Result<oneshot::Receiver<&'static str>> {
        let (refused, answer) = oneshot::channel();
        self.input(Input::Operator { operation, refused }, until).await?;
        Ok(answer)
    }

    async fn input(&self, input: Input, until: Instant) -> Result<()> {
        match timeout_at(until, self.inbox.send(input)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Error::unavailable(format!("shard {} is closed on this node", self.id))),
            Err(_) => Err(Error::unavailable(format!("shard {} is overloaded", self.id))),
        }
    }

    /// Appends one entry and waits until it is applied here.
    ///
    /// # Errors
    /// Retryable when it was not taken; `OutcomeUnknown` when leadership was lost before it was committed. No deadline
    /// once it is taken: it ends with leadership at the latest.
    pub async fn propose(&self, entry: (u8, Bytes), until: Instant) -> Result<LogIndex> {
        let submitted = self.submit(None, entry, until).await?;
        self.wait_submitted(submitted).await
    }

    /// The same, for what was checked under the locks of one leadership.
    ///
    /// # Errors
    /// Those of [`Self::propose`]; TS001 when that leadership is over: it was not taken.
    pub async fn propose_in(&self, term: u64, entry: (u8, Bytes), until: Instant) -> Result<LogIndex> {
        let submitted = self.submit(Some(term), entry, until).await?;
        self.wait_submitted(submitted).await
    }

    /// Gives an entry its place in the log, in one leadership only where `term` is given; it may still be lost with leadership.
    ///
    /// # Errors
    /// Retryable: it was not taken.
    pub async fn submit(&self, term: Option<u64>, entry: (u8, Bytes), until: Instant) -> Result<Submitted> {
        let kib = (entry.1.len() >> 10).clamp(1, PROPOSED_BYTES_MAX >> 10) as u32;
        let permit = timeout_at(until, self.proposed.clone().acquire_many_owned(kib)).await;
        let busy = || Error::unavailable(format!("shard {} has too much under way", self.id));
        let permit = permit.map_err(|_| busy())?.map_err(|_| busy())?;
        let (reply, answer) = oneshot::channel();
        self.input(
            Input::Propose {
                entries: vec![entry],
                term,
                reply,
            },
            until,
        )
        .await?;
        let lost = || Error::unavailable(format!("shard {} was closed", self.id));
        Ok(Submitted {
            accepted: answer.await.map_err(|_| lost())??,
            _permit: permit,
        })
    }

    /// Waits until a submitted entry is applied here.
    ///
    /// # Errors
    /// `OutcomeUnknown` when leadership was lost before.
    pub async fn wait_submitted(&self, submitted: Submitted) -> Result<LogIndex> {
        self.wait_accepted(submitted.accepted).await
    }

    async fn wait_accepted(&self, accepted: Accepted) -> Result<LogIndex> {
        let (mut applied, mut status) = (self.applied.subscribe(), self.status.subscribe());
        loop {
            let done = *applied.borrow_and_update() >= accepted.index;
            // Read after `applied`: in the same term the index holds what was proposed.
            let same = {
                let status = status.borrow_and_update();
                status.term == accepted.term && status.leads.is_some()
            };
            match (same, done) {
                (true, true) => return Ok(accepted.index),
                (false, _) => {
                    let message = format!("leadership of shard {} was lost before the answer", self.id);
                    return Err(Error::outcome_unknown(message));
                }
                (true, false) => {}
            }
            tokio::select! {
                changed = applied.changed() => changed,
                changed = status.changed() => changed,
            }
            .map_err(|_| Error::outcome_unknown(format!("shard {} was closed", self.id)))?;
        }
    }

    /// Waits until `done` holds; it is asked again whenever locks, groups or prepared transactions changed.
    pub async fn wait_until<T>(&self, until: Instant, mut done: impl FnMut(&Self) -> Option<T>) -> Option<T> {
        let mut wake = self.wake.subscribe();
        loop {
            wake.borrow_and_update();
            if let Some(value) = done(self) {
                return Some(value);
            }
            if !matches!(timeout_at(until, wake.changed()).await, Ok(Ok(()))) {
                return done(self);
            }
        }
    }

    /// Waits until the published state satisfies `done`.
    pub async fn wait_status<T>(&self, until: Instant, mut done: impl FnMut(&Status) -> Option<T>) -> Option<T> {
        let mut status = self.status.subscribe();
        loop {
            if let Some(value) = done(&status.borrow_and_update()) {
                return Some(value);
            }
            if !matches!(timeout_at(until, status.changed()).await, Ok(Ok(()))) {
                return None;
            }
        }
    }

    /// Waits until everything up to `index` is applied.
    pub async fn wait_applied(&self, index: LogIndex, until: Instant) -> Result<()> {
        let mut applied = self.applied.subscribe();
        match timeout_at(until, applied.wait_for(|a| *a >= index)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::unavailable(format!(
                "this copy of shard {} is behind log index {index}",
                self.id
            ))),
        }
    }

    /// Wakes everyone who waits for locks, groups or prepared transactions.
    pub fn wake_all(&self) {
        self.wake.send_modify(|n| *n += 1);
    }

    /// Hands a transaction to the committer.
    pub async fn enqueue(&self, job: CommitJob, until: Instant) -> Result<()> {
        match timeout_at(until, self.commits.send(job)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Error::unavailable(format!(
                "shard {} takes no more commits now",
                self.id
            ))),
        }
    }

    /// Asks the applier for a chore; `None` when it is busy with others.
    pub fn chore<T>(&self, chore: impl FnOnce(oneshot::Sender<T>) -> Chore) -> Option<oneshot::Receiver<T>> {
        let (reply, answer) = oneshot::channel();
        self.chores.try_send(chore(reply)).is_ok().then_some(answer)
    }

    /// Has a table compacted now. Dropping the future ends that.
    ///
    /// # Errors
    /// 57014 when it takes longer than that; those of compactions.
    pub async fn compact(&self, table: TableId, until: Instant) -> Result<Compacted> {
        let (reply, answer) = oneshot::channel();
        let closed = || Error::unavailable(format!("shard {} is closed on this node", self.id));
        let work = async {
            let sent = self.wishes.send(Wish { table, reply }).await;
            sent.map_err(|_| closed())?;
            answer.await.map_err(|_| closed())?
        };
        let late = || Error::cancelled(format!("compacting shard {} took too long", self.id));
        timeout_at(until, work).await.map_err(|_| late())?
    }

    /// Keeps an entry for the applier.
    pub fn remember(&self, entries: &[Entry]) {
        let mut recent = self.recent.lock();
        for entry in entries {
            if recent.bytes + entry.bytes() <= RECENT_BYTES_MAX || recent.entries.contains_key(&entry.at.index) {
                recent.bytes += entry.bytes();
                let old = recent.entries.insert(entry.at.index, entry.clone());
                recent.bytes -= old.map_or(0, |o| o.bytes());
            }
        }
    }

    /// Forgets entries after `index`.
    pub fn forget_after(&self, index: LogIndex) {
        let mut recent = self.recent.lock();
        let gone = recent.entries.split_off(&LogIndex(index.0 + 1));
        recent.bytes -= gone.values().map(Entry::bytes).sum::<usize>();
    }

    /// Takes entries from `from` to `upto` out, as far as they are there without a hole and fit in `bytes_max`.
    pub fn recall(&self, from: LogIndex, upto: LogIndex, bytes_max: usize) -> Vec<Entry> {
        let mut recent = self.recent.lock();
        let (mut out, mut bytes) = (Vec::new(), 0);
        for index in from.0..=upto.0 {
            if bytes >= bytes_max {
                break;
            }
            let Some(entry) = recent.entries.remove(&LogIndex(index)) else {
                break;
            };
            recent.bytes -= entry.bytes();
            bytes += entry.bytes();
            out.push(entry);
        }
        out
    }

    /// Drops entries that were applied meanwhile by other means.
    pub fn forget_until(&self, index: LogIndex) {
        let mut recent = self.recent.lock();
        let kept = recent.entries.split_off(&LogIndex(index.0 + 1));
        recent.bytes = kept.values().map(Entry::bytes).sum();
        recent.entries = kept;
    }

    /// For requests: the shard and the epoch its present configuration has.
    pub fn reference(&self) -> v1::ShardRef {
        let epoch = self.status.borrow().config.as_ref().map_or(Epoch(0), |c| c.epoch);
        v1::ShardRef::new(self.id, epoch)
    }
}

fn entry_bytes(event: &Event) -> usize {
    use crate::replication::message::Message;
    match event {
        Event::Message {
            message: Message::Append { entries, .. } | Message::Pulled { entries, .. },
            ..
        } => entries.iter().map(Entry::bytes).sum(),
        _ => 0,
    }
}
