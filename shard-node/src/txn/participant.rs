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

use super::locks::Locks;
use crate::storage::OwnRows;
use datafusion::execution::memory_pool::MemoryReservation;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::{Timestamp, TxnId};

/// State of a transaction whose home is here and which is not decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undecided {
    /// No timestamp was asked for yet.
    Pending,
    /// A timestamp may have been drawn.
    Committing,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Participant {
    /// Rows in use.
    pub locks: Locks,
    active: BTreeSet<TxnId>,
    refused: BTreeSet<TxnId>,
    groups: BTreeMap<u64, Group>,
    next_group: u64,
    open_since: BTreeMap<TxnId, Duration>,
    open: BTreeMap<TxnId, OpenTxn>,
    /// Who waits for whose rows.
    waits: BTreeMap<TxnId, TxnId>,
    /// Told to give up waiting.
    victims: BTreeSet<TxnId>,
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

    /// An open transaction.
    pub fn opened(&mut self, txn: TxnId) -> Option<&mut OpenTxn> {
        self.open.get_mut(&txn)
    }

    /// It is decided, or prepared: what it wrote is in the log or given up.
    pub fn close(&mut self, txn: TxnId) -> Option<OpenTxn> {
        self.open.remove(&txn)
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

    /// It waits for another one's rows from now on, or (`None`) no more.
    pub fn waits(&mut self, txn: TxnId, holder: Option<TxnId>) {
        match holder {
            Some(holder) => drop(self.waits.insert(txn, holder)),
            None => {
                self.waits.remove(&txn);
                self.victims.remove(&txn);
            }
        }
    }

    /// Who waits for whom.
    pub fn waiting(&self) -> impl Iterator<Item = (TxnId, TxnId)> {
        self.waits.iter().map(|(waiter, holder)| (*waiter, *holder))
    }

    /// Makes a transaction that waits give up.
    pub fn give_up(&mut self, txn: TxnId) {
        if self.waits.contains_key(&txn) {
            self.victims.insert(txn);
        }
    }

    /// Whether it was told to give up.
    pub fn gives_up(&self, txn: TxnId) -> bool {
        self.victims.contains(&txn)
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

    /// Its router still works on it.
    pub fn still_alive(&mut self, txn: TxnId, now: Duration) {
        self.open_since.insert(txn, now);
    }

    /// This replica leads no more, or not yet.
    pub fn clear(&mut self) {
        let next_group = self.next_group;
        // Requests that still run end by themselves and find leadership gone.
        let active = std::mem::take(&mut self.active);
        *self = Self {
            next_group,
            active,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
