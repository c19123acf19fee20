//! What only a shard's leader knows about transactions: locks, those under way, and commit groups.
//!
//! ```text
//!   begin(t) ─▶ locked ─▶ queued ─▶ open_group({t,u}) ── draws ts ──▶ drawn(ts) ── logged, applied ──▶ close_group
//!                            │            ▲                                              │
//!                 Outcome: Pending        └── from here to the end: Committing ──────────┘
//! ```
//!
//! A reader at S need not wait for a transaction that is not in a group yet: its timestamp will be drawn later, so it is
//! above S. Groups that may have drawn a timestamp up to S must end first. Volatile: a new leader starts empty and takes
//! the locks of prepared transactions again.
//!
//! An open transaction writes statement by statement before it is prepared or committed. It belongs to one leadership, and is
//! dropped when its router is not heard of for a while.

use super::locks::{Acquired, Asker, Key, Locks, Refused, Wanted};
use crate::storage::OwnRows;
use datafusion::execution::memory_pool::MemoryReservation;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::{Result, TableId, Timestamp, TxnId};
use tokio::sync::Notify;

/// What a lock takes: its key twice, and its places in two tables.
const LOCK_BYTES: usize = 192;

/// State of a transaction whose home is here and which is not decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undecided {
    /// No timestamp was asked for yet.
    Pending,
    /// A timestamp may have been drawn.
    Committing,
}

/// Why a wait for locks ends without them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GaveUp {
    /// It was the youngest of a circle.
    Deadlock,
    /// Its statement was cancelled, or its transaction dropped.
    Cancelled,
    /// Recovery aborts it.
    Refused,
    /// The leadership is over.
    Over,
}

/// Where a wait for locks stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitState {
    /// It stands in line.
    Waiting,
    /// It has its locks.
    Granted,
    /// It has none.
    GaveUp(GaveUp),
}

/// A request that waits for locks.
#[derive(Debug)]
struct Wait {
    state: WaitState,
    since: Duration,
    /// Rung when the state changes.
    bell: Arc<Notify>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Participant {
    /// Rows in use.
    locks: Locks,
    /// Who waits for them; until the waiting task leaves.
    waits: BTreeMap<TxnId, Wait>,
    active: BTreeSet<TxnId>,
    refused: BTreeSet<TxnId>,
    groups: BTreeMap<u64, Group>,
    next_group: u64,
    open_since: BTreeMap<TxnId, Duration>,
    open: BTreeMap<TxnId, OpenTxn>,
}

/// A transaction that writes statement by statement.
#[derive(Debug)]
pub struct OpenTxn {
    /// What it changed here.
    pub rows: Arc<OwnRows>,
    /// The leadership that its locks belong to.
    pub term: u64,
    /// The last request that was done.
    pub sequence: u64,
    /// The last that was taken back: what comes late up to here is not done any more.
    pub undone: u64,
    /// What its rows take of the memory for queries.
    pub memory: MemoryReservation,
    /// When its router was last heard of.
    pub heard: Duration,
}

#[derive(Debug)]
struct Group {
    timestamp: Option<Timestamp>,
    txns: Vec<TxnId>,
}

impl Participant {
    /// A request for this transaction starts; false when one runs already.
    pub fn begin(&mut self, txn: TxnId) -> bool {
        self.active.insert(txn)
    }

    /// The request ended.
    pub fn end(&mut self, txn: TxnId) {
        self.active.remove(&txn);
    }

    /// Whether a request for it runs here.
    pub fn is_active(&self, txn: TxnId) -> bool {
        self.active.contains(&txn)
    }

    /// Recovery decides to abort: from now on it may not join a group.
    pub fn refuse(&mut self, txn: TxnId) {
        self.refused.insert(txn);
        self.give_up(txn, GaveUp::Refused);
    }

    /// The abort record is in the ledger: nothing more to remember.
    pub fn refused_durably(&mut self, txn: TxnId) {
        self.refused.remove(&txn);
    }

    /// Whether recovery is aborting it.
    pub fn is_refused(&self, txn: TxnId) -> bool {
        self.refused.contains(&txn)
    }

    /// Begins or goes on with an open transaction.
    pub fn open(&mut self, txn: TxnId, make: impl FnOnce() -> OpenTxn) -> &mut OpenTxn {
        self.open.entry(txn).or_insert_with(make)
    }

    /// All open transactions.
    pub fn all_open(&self) -> impl Iterator<Item = (TxnId, &OpenTxn)> {
        self.open.iter().map(|(txn, open)| (*txn, open))
    }

    /// An open transaction.
    pub fn opened(&mut self, txn: TxnId) -> Option<&mut OpenTxn> {
        self.open.get_mut(&txn)
    }

    /// It is decided, or prepared: what it wrote is in the log or given up.
    pub fn close(&mut self, txn: TxnId) -> Option<OpenTxn> {
        self.open.remove(&txn)
    }

    /// Counts what an open transaction holds as memory of queries.
    ///
    /// # Errors
    /// 53200 when there is not so much.
    pub fn account(&mut self, txn: TxnId) -> Result<()> {
        let locks = self.locks.count(txn) * LOCK_BYTES;
        match self.open.get_mut(&txn) {
            Some(open) => Ok(open.memory.try_resize(open.rows.bytes() + locks)?),
            None => Ok(()),
        }
    }

    /// Its router is alive.
    pub fn heard(&mut self, txn: TxnId, now: Duration) {
        if let Some(open) = self.open.get_mut(&txn) {
            open.heard = now;
        }
    }

    /// Open transactions that nobody works on and whose routers were not heard of for `age`.
    pub fn expired(&self, now: Duration, age: Duration) -> Vec<TxnId> {
        let old = |(txn, open): &(&TxnId, &OpenTxn)| now.saturating_sub(open.heard) >= age && !self.is_active(**txn);
        self.open.iter().filter(old).map(|(txn, _)| *txn).collect()
    }

    /// Rows in use.
    pub fn locks(&self) -> &Locks {
        &self.locks
    }

    /// The same, to take locks without waiting.
    pub fn locks_mut(&mut self) -> &mut Locks {
        &mut self.locks
    }

    /// Takes all locks, or stands in line for them: then what is rung when that changes. See [`Self::wait_state`].
    ///
    /// # Errors
    /// Nothing is taken.
    pub fn ask(&mut self, asker: Asker, wanted: Vec<Wanted>, now: Duration) -> Result<Option<Arc<Notify>>, Refused> {
        match self.locks.acquire(asker, wanted)? {
            Acquired::Yes => Ok(None),
            Acquired::Wait => {
                let bell = Arc::new(Notify::new());
                let wait = Wait {
                    state: WaitState::Waiting,
                    since: now,
                    bell: bell.clone(),
                };
                self.waits.insert(asker.txn, wait);
                Ok(Some(bell))
            }
        }
    }

    /// How the wait of a transaction stands.
    pub fn wait_state(&self, txn: TxnId) -> WaitState {
        let over = WaitState::GaveUp(GaveUp::Over);
        self.waits.get(&txn).map_or(over, |wait| wait.state)
    }

    /// Since when a transaction stands in line.
    pub fn waits_since(&self, txn: TxnId) -> Option<Duration> {
        let wait = self.waits.get(&txn)?;
        (wait.state == WaitState::Waiting).then_some(wait.since)
    }

    /// Whoever waited does not look any more: out of the line, if it stands there still. What it was granted it keeps.
    pub fn stop_waiting(&mut self, txn: TxnId) {
        if self.waits.remove(&txn).is_some() {
            let granted = self.locks.withdraw(txn);
            self.ring(granted);
        }
    }

    /// Makes a transaction that waits give up.
    pub fn give_up(&mut self, txn: TxnId, why: GaveUp) {
        let waiting = |wait: &&mut Wait| wait.state == WaitState::Waiting;
        if let Some(wait) = self.waits.get_mut(&txn).filter(waiting) {
            wait.state = WaitState::GaveUp(why);
            wait.bell.notify_one();
            let granted = self.locks.withdraw(txn);
            self.ring(granted);
        }
    }

    /// Ends all locks of a transaction.
    pub fn release(&mut self, txn: TxnId) {
        let granted = self.locks.release(txn);
        self.ring(granted);
    }

    /// Gives back what a transaction took for some of its requests; see [`Locks::give_back`].
    pub fn give_back(&mut self, txn: TxnId, back: impl Fn(u64, TableId, &Key) -> bool) {
        let granted = self.locks.give_back(txn, back);
        self.ring(granted);
    }

    fn ring(&mut self, granted: Vec<TxnId>) {
        for txn in granted {
            if let Some(wait) = self.waits.get_mut(&txn) {
                wait.state = WaitState::Granted;
                wait.bell.notify_one();
            }
        }
    }

    /// A commit group is about to ask for its timestamp.
    pub fn open_group(&mut self, txns: Vec<TxnId>) -> u64 {
        self.next_group += 1;
        self.groups.insert(self.next_group, Group { timestamp: None, txns });
        self.next_group
    }

    /// Its timestamp is known.
    pub fn drawn(&mut self, group: u64, timestamp: Timestamp) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.timestamp = Some(timestamp);
        }
    }

    /// It is visible, or failed.
    pub fn close_group(&mut self, group: u64) {
        self.groups.remove(&group);
    }

    /// Groups whose transactions may be visible at a snapshot drawn before now.
    pub fn groups_at(&self, snapshot: Timestamp) -> Vec<u64> {
        self.groups
            .iter()
            .filter(|(_, g)| g.timestamp.is_none_or(|t| t <= snapshot))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Whether any of these groups is still open.
    pub fn any_open(&self, groups: &[u64]) -> bool {
        groups.iter().any(|g| self.groups.contains_key(g))
    }

    /// What may still become of a transaction that the ledger does not know.
    pub fn undecided(&self, txn: TxnId) -> Undecided {
        match self.groups.values().any(|g| g.txns.contains(&txn)) {
            true => Undecided::Committing,
            false => Undecided::Pending,
        }
    }

    /// Which of these were there for at least `age`: prepared ones to ask home about, committed ones to tell participants of.
    pub fn in_doubt<'a>(
        &mut self,
        prepared: impl Iterator<Item = &'a TxnId>,
        unfinished: impl Iterator<Item = TxnId>,
        now: Duration,
        age: Duration,
    ) -> BTreeSet<TxnId> {
        let present: BTreeSet<_> = prepared.copied().chain(unfinished).collect();
        self.open_since.retain(|t, _| present.contains(t));
        present
            .into_iter()
            .filter(|t| now.saturating_sub(*self.open_since.entry(*t).or_insert(now)) >= age)
            .collect()
    }

    /// For how long a prepared or committed transaction is known to be without a sign of its router.
    pub fn silent(&self, txn: TxnId, now: Duration) -> Duration {
        let since = self.open_since.get(&txn);
        since.map_or(Duration::ZERO, |since| now.saturating_sub(*since))
    }

    /// Its router still works on it.(&mut self, txn: TxnId, now: Duration) {
        self.open_since.insert(txn, now);
    }

    /// This replica leads no more, or not yet.
    pub fn clear(&mut self) {
        let next_group = self.next_group;
        // Requests that still run end by themselves and find leadership gone.
        let active = std::mem::take(&mut self.active);
        let mut waits = std::mem::take(&mut self.waits);
        for wait in waits.values_mut() {
            wait.state = WaitState::GaveUp(GaveUp::Over);
            wait.bell.notify_one();
        }
        *self = Self {
            next_group,
            active,
            waits,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::txn::locks::Mode;

    #[test]
    fn readers_wait_only_for_groups_that_may_be_below_them() {
        let (a, b) = (TxnId::generate(), TxnId::generate());
        let mut participant = Participant::default();
        assert!(participant.begin(a) && !participant.begin(a));
        assert_eq!(participant.undecided(a), Undecided::Pending);
        let first = participant.open_group(vec![a]);
        assert_eq!(
            (participant.undecided(a), participant.groups_at(Timestamp(5))),
            (Undecided::Committing, vec![first])
        );
        participant.drawn(first, Timestamp(9));
        assert!(participant.groups_at(Timestamp(8)).is_empty());
        let second = participant.open_group(vec![b]);
        assert_eq!(participant.groups_at(Timestamp(9)), vec![first, second]);
        participant.close_group(first);
        assert!(participant.any_open(&[first, second]) && !participant.any_open(&[first]));
        participant.clear();
        assert!(participant.groups_at(Timestamp::MAX).is_empty() && participant.is_active(a));
    }

    #[test]
    fn whoever_waits_is_told_what_became_of_it() {
        let table = TableId(1);
        let t: Vec<TxnId> = (0..6).map(|_| TxnId::generate()).collect();
        let mut participant = Participant::default();
        let ask = |participant: &mut Participant, txn: TxnId| {
            let asker = Asker {
                txn,
                sequence: 1,
            };
            let wanted = vec![Wanted::rows(table, Mode::Update, vec![Box::from([1].as_slice())])];
            let bell = participant.ask(asker, wanted, Duration::from_secs(3)).unwrap();
            bell.map(|bell| (txn, bell))
        };
        assert!(ask(&mut participant, t[0]).is_none());
        let bells: Vec<_> = t[1..].iter().map(|txn| ask(&mut participant, *txn).unwrap()).collect();
        let rung = |participant: &Participant| {
            let states = bells.iter().map(|(txn, _)| participant.wait_state(*txn));
            states.collect::<Vec<_>>()
        };
        participant.give_up(t[1], GaveUp::Deadlock);
        participant.refuse(t[2]);
        participant.give_up(t[0], GaveUp::Deadlock);
        participant.release(t[0]);
        let (gave_up, over) = (WaitState::GaveUp, WaitState::GaveUp(GaveUp::Over));
        assert_eq!(
            rung(&participant),
            [
                gave_up(GaveUp::Deadlock),
                gave_up(GaveUp::Refused),
                WaitState::Granted,
                WaitState::Waiting,
                WaitState::Waiting
            ]
        );
        assert_eq!(participant.waits_since(t[4]), Some(Duration::from_secs(3)));
        // One that was granted and is not looked for any more keeps its locks; one that waits leaves the line.
        participant.stop_waiting(t[3]);
        participant.stop_waiting(t[4]);
        participant.release(t[3]);
        assert_eq!(participant.wait_state(t[5]), WaitState::Granted);
        participant.clear();
        assert_eq!(rung(&participant)[4], over);
        assert!(!participant.locks().holds(t[5]));
    }

    #[test]
    fn prepared_transactions_come_into_doubt_after_a_while() {
        let ms = Duration::from_millis;
        let a = TxnId::generate();
        let mut participant = Participant::default();
        let mut ask = |prepared: &[TxnId], now| {
            participant
                .in_doubt(prepared.iter(), std::iter::empty(), ms(now), ms(10))
                .len()
        };
        assert_eq!((ask(&[a], 0), ask(&[a], 10), ask(&[], 20), ask(&[a], 30)), (0, 1, 0, 0));
    }
}
