//! What others may know of the locks: who waits for whom, and lists for people.
//!
//! ```text
//!   C wants (1) and (2); A holds (1); B came before C and wants (2)        edges: C ─▶ A, C ─▶ B
//! ```

use super::{Key, Locks, Mode};
use std::collections::BTreeSet;
use tessera_proto::{TableId, TxnId};

/// Transactions that one waiting request is reported to wait for, and locks that are looked at for that: what is beyond is found
/// when the first of them have ended.
const BLOCKERS_MAX: usize = 64;
const BLOCKERS_LOCKS_MAX: usize = 4_096;

/// A lock that is held or waited for, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// By whom.
    pub txn: TxnId,
    /// In which table.
    pub table: TableId,
    /// Of what.
    pub key: Key,
    /// How.
    pub mode: Mode,
    /// Held, not waited for.
    pub granted: bool,
}

impl Locks {
    /// Those that a transaction waits for: who holds what it wants, and who came before and wants it too.
    pub fn blockers(&self, txn: TxnId) -> BTreeSet<TxnId> {
        let mut found = BTreeSet::new();
        let Some(request) = self.waiting.get(&txn) else {
            return found;
        };
        let all = request.wanted.iter().flat_map(|want| {
            let locks = self.tables.get(&want.table);
            let lock = move |key| locks.and_then(|locks| locks.get(key));
            want.keys.iter().filter_map(lock).map(|lock| (lock, want.mode))
        });
        for (lock, mode) in all.take(BLOCKERS_LOCKS_MAX) {
            found.extend(lock.blockers(txn, request.order, mode));
            if found.len() >= BLOCKERS_MAX {
                break;
            }
        }
        // The one that it watches is one of them, however many locks are looked at.
        found.insert(request.witness);
        found
    }

    /// Who waits for whom.
    pub fn edges(&self) -> impl Iterator<Item = (TxnId, TxnId)> {
        let blockers = |txn: &TxnId| self.blockers(*txn).into_iter().map({
            let txn = *txn;
            move |blocker| (txn, blocker)
        });
        self.waiting.keys().flat_map(blockers)
    }

    /// Locks for people, at most so many: of each transaction those that it holds, then those that it waits for.
    pub fn list(&self, max: usize) -> Vec<Listed> {
        let held = self.held.iter().flat_map(|(txn, held)| {
            let keys = held.taken.iter().flat_map(|taken| taken.fresh.iter().map(|key| (taken.table, key)));
            keys.filter_map(|(table, key)| {
                Some(Listed {
                    txn: *txn,
                    table,
                    key: key.clone(),
                    mode: self.tables.get(&table)?.get(key)?.mode_of(*txn)?,
                    granted: true,
                })
            })
        });
        let waiting = self.waiting.iter().flat_map(|(txn, request)| {
            let wanted = request.wanted.iter();
            wanted.flat_map(|want| {
                want.keys.iter().map(|key| Listed {
                    txn: *txn,
                    table: want.table,
                    key: key.clone(),
                    mode: want.mode,
                    granted: false,
                })
            })
        });
        // Waits first: they are what people look for, and bounded by themselves.
        waiting.take(max / 2).chain(held).take(max).collect()
    }
}
