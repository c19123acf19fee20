//! Rows in use by transactions that are not decided yet, at a shard's leader, and who waits for them in which order.
//!
//! ```text
//!   table 7   row (1)  held by A: update           queue: C update, D share            D came after C, so it waits for C too
//!             row (2)  held by A: share, B: share  queue: A no key update, C update    A holds the row: it goes before the queue
//!             itself   held by A, B: share         queue: E update                     E adds segments: no writer beside it
//! ```
//!
//! A request takes all of its locks at once or none. One that cannot waits in the queues of all its rows, and is granted when nobody
//! holds a lock that conflicts with one of its own and nobody who came before waits for one: so it is granted in the order of
//! arrival, shared locks that come later do not overtake an exclusive one, and whoever waits holds nothing of its request. Who asks
//! for more of a row that it holds goes before the queue, since everybody in it waits for that one anyway.
//!
//! Modes and conflicts are PostgreSQL's four. A waiting request watches one of those it waits for, and is looked at again when that
//! one gives something back or leaves the queue; no other event can let it through before.
//!
//! Transactions over several shards, and those of several statements, hold locks while they wait and may wait in circles, through the
//! queues of one shard or of many. Routers look for circles and break them (router/src/txn/watch.rs). No clock, no sockets: who is
//! granted is returned to the caller.

mod report;
mod request;
mod row;

pub use report::Listed;
pub use request::{Acquired, Asker, Key, Limits, Mode, Refused, Wanted};

use row::Lock;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tessera_proto::{TableId, TxnId};

/// See the module.
#[derive(Debug, Default)]
pub struct Locks {
    tables: BTreeMap<TableId, HashMap<Key, Lock>>,
    held: BTreeMap<TxnId, Held>,
    waiting: BTreeMap<TxnId, Request>,
    /// By the transaction that they watch: those that wait, in their order.
    watchers: BTreeMap<TxnId, BTreeSet<(u64, TxnId)>>,
    next: u64,
    limits: Limits,
    /// Bugs planted to show that the test of invariants finds them.
    #[cfg(test)]
    bug: Option<tests::Bug>,
}

#[derive(Debug, Default)]
struct Held {
    count: usize,
    taken: Vec<Taken>,
}

/// What one request took in one table.
#[derive(Debug)]
struct Taken {
    sequence: u64,
    table: TableId,
    /// Not held before.
    fresh: Vec<Key>,
    /// Held in this weaker mode before.
    raised: Vec<(Key, Mode)>,
}

#[derive(Debug)]
struct Request {
    asker: Asker,
    order: u64,
    wanted: Vec<Wanted>,
    /// One of those that it waits for.
    witness: TxnId,
}

impl Locks {
    /// None held, with these limits.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Takes all or stands in line for all, beside what it holds already.
    ///
    /// # Errors
    /// Nothing is taken, nobody stands in line.
    pub fn acquire(&mut self, asker: Asker, wanted: Vec<Wanted>) -> Result<Acquired, Refused> {
        self.check(asker, &wanted)?;
        let Some(witness) = self.blocker(asker.txn, self.next, &wanted) else {
            self.take(asker, wanted);
            return Ok(Acquired::Yes);
        };
        if self.waiting.len() >= self.limits.waiting {
            return Err(Refused::Queue);
        }
        self.enqueue(asker, wanted, witness);
        Ok(Acquired::Wait)
    }

    /// Takes all or none, without standing in line. The table in which one is not free, if one is not.
    ///
    /// # Errors
    /// Nothing is taken.
    pub fn try_acquire(&mut self, asker: Asker, wanted: Vec<Wanted>) -> Result<Option<TableId>, Refused> {
        self.check(asker, &wanted)?;
        let blocked = |want: &&Wanted| {
            let one = std::slice::from_ref(*want);
            self.blocker(asker.txn, self.next, one).is_some()
        };
        if let Some(want) = wanted.iter().find(blocked) {
            return Ok(Some(want.table));
        }
        self.take(asker, wanted);
        Ok(None)
    }

    /// Takes those that are free; which, in the order of the keys.
    ///
    /// # Errors
    /// Nothing is taken.
    pub fn acquire_free(&mut self, asker: Asker, wanted: Wanted) -> Result<Vec<bool>, Refused> {
        self.check(asker, std::slice::from_ref(&wanted))?;
        let Wanted { table, mode, keys } = wanted;
        let locks = self.tables.get(&table);
        let is_free = |key: &Key| {
            let lock = locks.and_then(|locks| locks.get(key));
            lock.is_none_or(|lock| lock.blockers(asker.txn, self.next, mode).next().is_none())
        };
        let free: Vec<bool> = keys.iter().map(is_free).collect();
        let taken = keys.into_iter().zip(&free).filter(|(_, free)| **free);
        let keys = taken.map(|(key, _)| key).collect();
        self.take(asker, vec![Wanted { table, mode, keys }]);
        Ok(free)
    }

    fn check(&self, asker: Asker, wanted: &[Wanted]) -> Result<(), Refused> {
        if self.waiting.contains_key(&asker.txn) {
            return Err(Refused::Twice);
        }
        let count = self.held.get(&asker.txn).map_or(0, |held| held.count);
        let all = || wanted.iter().flat_map(|want| want.keys.iter().map(move |key| (want.table, key)));
        if count + all().count() <= self.limits.locks {
            return Ok(());
        }
        // Counted exactly only where it matters: those held already are no more than they were.
        let is_new = |(table, key): &(TableId, &Key)| {
            let lock = self.tables.get(table).and_then(|locks| locks.get(*key));
            lock.and_then(|lock| lock.mode_of(asker.txn)).is_none()
        };
        match count + all().filter(is_new).count() <= self.limits.locks {
            true => Ok(()),
            false => Err(Refused::Locks),
        }
    }

    /// One of those that a request must wait for.
    fn blocker(&self, txn: TxnId, order: u64, wanted: &[Wanted]) -> Option<TxnId> {
        #[cfg(test)]
        let order = if self.bug == Some(tests::Bug::Overtakes) { 0 } else { order };
        wanted.iter().find_map(|want| {
            let locks = self.tables.get(&want.table)?;
            #[cfg(not(test))]
            let mode = want.mode;
            #[cfg(test)]
            let mode = match self.bug {
                Some(tests::Bug::TwoHolders) if want.mode == Mode::NoKeyUpdate => Mode::KeyShare,
                _ => want.mode,
            };
            let blocker = |key| locks.get(key)?.blockers(txn, order, mode).next();
            want.keys.iter().find_map(blocker)
        })
    }

    fn take(&mut self, asker: Asker, wanted: Vec<Wanted>) {
        let held = self.held.entry(asker.txn).or_default();
        for Wanted { table, mode, keys } in wanted {
            let locks = self.tables.entry(table).or_default();
            let mut taken = Taken {
                sequence: asker.sequence,
                table,
                fresh: Vec::with_capacity(keys.len()),
                raised: vec![],
            };
            for key in keys {
                let lock = match locks.get_mut(&key) {
                    Some(lock) => lock,
                    None => locks.entry(key.clone()).or_default(),
                };
                match lock.hold(asker.txn, mode) {
                    None => taken.fresh.push(key),
                    Some(before) if before < mode => taken.raised.push((key, before)),
                    Some(_) => {}
                }
            }
            held.count += taken.fresh.len();
            if !taken.fresh.is_empty() || !taken.raised.is_empty() {
                held.taken.push(taken);
            }
        }
    }

    fn enqueue(&mut self, asker: Asker, wanted: Vec<Wanted>, witness: TxnId) {
        let order = self.next;
        self.next += 1;
        for want in &wanted {
            let locks = self.tables.entry(want.table).or_default();
            for key in &want.keys {
                let lock = locks.entry(key.clone()).or_default();
                lock.enqueue(asker.txn, order, want.mode);
            }
        }
        self.watch(witness, (order, asker.txn));
        let request = Request {
            asker,
            order,
            wanted,
            witness,
        };
        self.waiting.insert(asker.txn, request);
    }

    fn watch(&mut self, witness: TxnId, waiter: (u64, TxnId)) {
        #[cfg(test)]
        if self.bug == Some(tests::Bug::ForgetsToWatch) && waiter.0 % 8 == 7 {
            return;
        }
        self.watchers.entry(witness).or_default().insert(waiter);
    }

    /// Looks again at those that watch a transaction; whoever gets its locks.
    fn wake(&mut self, txn: TxnId) -> Vec<TxnId> {
        let mut granted = vec![];
        for (order, waiter) in self.watchers.remove(&txn).unwrap_or_default() {
            let Some(request) = self.waiting.get(&waiter) else { continue };
            match self.blocker(waiter, request.order, &request.wanted) {
                Some(witness) => {
                    self.watch(witness, (order, waiter));
                    if let Some(request) = self.waiting.get_mut(&waiter) {
                        request.witness = witness;
                    }
                }
                None => {
                    if let Some(request) = self.leave(waiter) {
                        self.take(request.asker, request.wanted);
                        granted.push(waiter);
                    }
                }
            }
        }
        granted
    }

    /// Takes a request out of its queues.
    fn leave(&mut self, txn: TxnId) -> Option<Request> {
        let request = self.waiting.remove(&txn)?;
        for want in &request.wanted {
            let Some(locks) = self.tables.get_mut(&want.table) else {
                continue;
            };
            for key in &want.keys {
                if let Some(lock) = locks.get_mut(key) {
                    lock.dequeue(txn);
                    if lock.is_unused() {
                        locks.remove(key);
                    }
                }
            }
            if locks.is_empty() {
                self.tables.remove(&want.table);
            }
        }
        if let Some(watchers) = self.watchers.get_mut(&request.witness) {
            watchers.remove(&(request.order, txn));
            if watchers.is_empty() {
                self.watchers.remove(&request.witness);
            }
        }
        Some(request)
    }

    /// Ends a transaction's wait, if it waits. Those whose turn it is then.
    #[must_use = "they wait to be told"]
    pub fn withdraw(&mut self, txn: TxnId) -> Vec<TxnId> {
        match self.leave(txn) {
            Some(_) => self.wake(txn),
            None => vec![],
        }
    }

    /// Ends all locks of a transaction, and its wait. Those whose turn it is then.
    #[must_use = "they wait to be told"]
    pub fn release(&mut self, txn: TxnId) -> Vec<TxnId> {
        self.leave(txn);
        for taken in self.held.remove(&txn).into_iter().flat_map(|held| held.taken) {
            #[cfg(test)]
            if self.bug == Some(tests::Bug::KeepsLocks) && taken.fresh.len() > 2 {
                continue;
            }
            for key in &taken.fresh {
                self.let_go(txn, taken.table, key);
            }
        }
        self.wake(txn)
    }

    fn let_go(&mut self, txn: TxnId, table: TableId, key: &Key) {
        let Some(locks) = self.tables.get_mut(&table) else {
            return;
        };
        if let Some(lock) = locks.get_mut(key) {
            lock.let_go(txn);
            if lock.is_unused() {
                locks.remove(key);
            }
        }
        if locks.is_empty() {
            self.tables.remove(&table);
        }
    }

    /// Gives back what a transaction took for the requests (by their numbers), tables and keys that `back` tells; what it held before
    /// in a weaker mode it holds in that again. Those whose turn it is then.
    #[must_use = "they wait to be told"]
    pub fn give_back(&mut self, txn: TxnId, back: impl Fn(u64, TableId, &Key) -> bool) -> Vec<TxnId> {
        let Some(mut held) = self.held.remove(&txn) else {
            return vec![];
        };
        // The latest first: a lock may have been raised several times.
        for taken in held.taken.iter_mut().rev() {
            let (sequence, table) = (taken.sequence, taken.table);
            taken.raised.retain(|(key, before)| {
                let goes = back(sequence, table, key);
                if goes && let Some(lock) = self.tables.get_mut(&table).and_then(|locks| locks.get_mut(key)) {
                    lock.weaken(txn, *before);
                }
                !goes
            });
            let (gone, kept) = std::mem::take(&mut taken.fresh)
                .into_iter()
                .partition::<Vec<_>, _>(|key| back(sequence, table, key));
            taken.fresh = kept;
            held.count -= gone.len();
            gone.iter().for_each(|key| self.let_go(txn, table, key));
        }
        held.taken.retain(|taken| !taken.fresh.is_empty() || !taken.raised.is_empty());
        if !held.taken.is_empty() {
            self.held.insert(txn, held);
        }
        self.wake(txn)
    }

    /// Whether a transaction waits.
    pub fn waits(&self, txn: TxnId) -> bool {
        self.waiting.contains_key(&txn)
    }

    /// Whether a transaction holds any lock.
    pub fn holds(&self, txn: TxnId) -> bool {
        self.held.contains_key(&txn)
    }

    /// Locks that a transaction holds.
    pub fn count(&self, txn: TxnId) -> usize {
        self.held.get(&txn).map_or(0, |held| held.count)
    }

    /// Forgets everything: this replica leads no more.
    pub fn clear(&mut self) {
        *self = Self {
            limits: self.limits,
            next: self.next,
            #[cfg(test)]
            bug: self.bug,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests;
