//! Rows in use by transactions that are not decided yet, at a shard's leader.
//!
//! ```text
//!   table 7   key (1) ─▶ txn A     key (2) ─▶ txn A     key (9) ─▶ txn B
//!   table 8   whole ───▶ txn C     (staged segments: nobody else writes the table in this shard meanwhile)
//! ```
//!
//! All locks of a request are taken at once or none, so a transaction of one request never holds while it waits and is always
//! safe to wait for. Of two that write several shards at once and could wait in a circle, the younger gives up. Open transactions
//! take locks statement by statement and keep them to their end; circles with them are looked for (see the router's deadlock.rs).

use std::collections::{BTreeMap, HashMap};
use tessera_proto::{TableId, TxnId};

/// What a write needs of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// These row keys.
    Keys(TableId, Vec<Box<[u8]>>),
    /// The table against all other writers in this shard.
    Whole(TableId),
}

/// Whether a transaction may hold locks elsewhere while it waits here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// One shard: holds nothing while waiting.
    One,
    /// Several.
    Many,
    /// Locks of earlier statements.
    Open,
}

/// Answer to [`Locks::acquire`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquired {
    /// All of them.
    Yes,
    /// None: wait until this transaction ends.
    Wait(TxnId),
    /// None: wait only briefly, because the older holder may in turn wait for locks of this one.
    GiveUpSoon(TxnId),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Locks {
    tables: BTreeMap<TableId, TableLocks>,
    held: BTreeMap<TxnId, Held>,
}

#[derive(Debug, Default)]
struct TableLocks {
    whole: Option<TxnId>,
    keys: HashMap<Box<[u8]>, TxnId>,
    /// Keys per transaction, for whoever wants the whole table.
    writers: BTreeMap<TxnId, usize>,
}

#[derive(Debug)]
struct Held {
    span: Span,
    wanted: Vec<Wanted>,
}

impl Locks {
    /// Takes all or none, beside those that it holds already.
    pub fn acquire(&mut self, txn: TxnId, span: Span, wanted: Vec<Wanted>) -> Acquired {
        if let Some(holder) = wanted.iter().find_map(|w| self.holder(txn, w)) {
            let many = |s: Option<Span>| s == Some(Span::Many);
            let circle = many(Some(span)) && many(self.held.get(&holder).map(|h| h.span));
            return if circle && txn > holder {
                Acquired::GiveUpSoon(holder)
            } else {
                Acquired::Wait(holder)
            };
        }
        let wanted: Vec<Wanted> = wanted.into_iter().map(|want| self.take(txn, want)).collect();
        let held = self.held.entry(txn).or_insert_with(|| Held { span, wanted: vec![] });
        held.wanted.extend(wanted);
        Acquired::Yes
    }

    fn holder(&self, txn: TxnId, wanted: &Wanted) -> Option<TxnId> {
        let other = |t: &TxnId| Some(*t).filter(|t| *t != txn);
        match wanted {
            Wanted::Keys(table, keys) => {
                let table = self.tables.get(table)?;
                table
                    .whole
                    .as_ref()
                    .and_then(other)
                    .or_else(|| keys.iter().find_map(|k| table.keys.get(k).and_then(other)))
            }
            Wanted::Whole(table) => {
                let table = self.tables.get(table)?;
                table
                    .whole
                    .as_ref()
                    .and_then(other)
                    .or_else(|| table.writers.keys().find_map(other))
            }
        }
    }

    /// Takes what is free or held already; returns what is new.
    fn take(&mut self, txn: TxnId, wanted: Wanted) -> Wanted {
        match wanted {
            Wanted::Keys(id, keys) => {
                let table = self.tables.entry(id).or_default();
                let new: Vec<_> = keys
                    .into_iter()
                    .filter(|k| table.keys.insert(k.clone(), txn).is_none())
                    .collect();
                *table.writers.entry(txn).or_default() += new.len();
                Wanted::Keys(id, new)
            }
            Wanted::Whole(id) => {
                self.tables.entry(id).or_default().whole = Some(txn);
                Wanted::Whole(id)
            }
        }
    }

    /// Ends all locks of a transaction; true if it held any.
    pub fn release(&mut self, txn: TxnId) -> bool {
        let Some(held) = self.held.remove(&txn) else {
            return false;
        };
        for wanted in held.wanted {
            let (Wanted::Keys(id, _) | Wanted::Whole(id)) = &wanted;
            let Some(table) = self.tables.get_mut(id) else { continue };
            match &wanted {
                Wanted::Keys(_, keys) => {
                    table.writers.remove(&txn);
                    for key in keys
                        .iter()
                        .filter(|k| table.keys.get(*k) == Some(&txn))
                        .collect::<Vec<_>>()
                    {
                        table.keys.remove(key);
                    }
                }
                Wanted::Whole(_) => table.whole = table.whole.filter(|t| *t != txn),
            }
            if table.whole.is_none() && table.keys.is_empty() && table.writers.is_empty() {
                self.tables.remove(id);
            }
        }
        true
    }

    /// Forgets everything: this replica leads no more.
    pub fn clear(&mut self) {
        self.tables.clear();
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(table: u64, keys: &[u8]) -> Vec<Wanted> {
        vec![Wanted::Keys(
            TableId(table),
            keys.iter().map(|k| Box::from([*k].as_slice())).collect(),
        )]
    }

    #[test]
    fn all_or_none_and_the_younger_gives_up() {
        let mut ids: Vec<_> = (0..3).map(|_| TxnId::generate()).collect();
        ids.sort();
        let (old, mid, young) = (ids[0], ids[1], ids[2]);
        let mut locks = Locks::default();
        assert_eq!(locks.acquire(mid, Span::Many, keys(1, &[1, 2])), Acquired::Yes);
        assert_eq!(locks.acquire(old, Span::Many, keys(1, &[2, 3])), Acquired::Wait(mid));
        assert_eq!(
            locks.acquire(young, Span::Many, keys(1, &[2])),
            Acquired::GiveUpSoon(mid)
        );
        assert_eq!(locks.acquire(young, Span::One, keys(1, &[2])), Acquired::Wait(mid));
        assert_eq!(locks.acquire(young, Span::One, keys(1, &[3])), Acquired::Yes);
        assert_eq!(
            locks.acquire(old, Span::One, vec![Wanted::Whole(TableId(1))]),
            Acquired::Wait(mid)
        );
        assert!(locks.release(mid) && locks.release(young) && !locks.release(mid));
        assert_eq!(
            locks.acquire(old, Span::One, vec![Wanted::Whole(TableId(1))]),
            Acquired::Yes
        );
        assert_eq!(locks.acquire(young, Span::One, keys(1, &[7])), Acquired::Wait(old));
        assert_eq!(locks.acquire(young, Span::One, keys(2, &[7])), Acquired::Yes);
        locks.release(old);
        assert_eq!(locks.tables.len(), 1);
    }

    #[test]
    fn an_open_transaction_adds_to_what_it_holds() {
        let (open, other) = (TxnId::generate(), TxnId::generate());
        let mut locks = Locks::default();
        assert_eq!(locks.acquire(open, Span::Open, keys(1, &[1])), Acquired::Yes);
        assert_eq!(locks.acquire(open, Span::Open, keys(1, &[1, 2])), Acquired::Yes);
        assert_eq!(
            locks.acquire(open, Span::Open, vec![Wanted::Whole(TableId(2))]),
            Acquired::Yes
        );
        assert_eq!(locks.acquire(other, Span::Many, keys(1, &[1])), Acquired::Wait(open));
        assert_eq!(locks.acquire(other, Span::Open, keys(2, &[1])), Acquired::Wait(open));
        assert_eq!(locks.acquire(open, Span::Open, keys(2, &[1])), Acquired::Yes);
        assert!(locks.release(open) && locks.tables.is_empty() && locks.held.is_empty());
        assert_eq!(locks.acquire(other, Span::Many, keys(1, &[1, 2])), Acquired::Yes);
    }
}
