//! The outline of a log: which epochs it holds and where each ends. Enough to find where two logs agree.
//!
//! ```text
//!   index   1 2 3 | 4 5 | 6          runs  (e1,3) (e4,5) (e7,6)      base (e0,0): nothing released yet
//!   epoch   1 1 1 | 4 4 | 7
//! ```
//!
//! No (epoch, index) is ever written twice, so two logs that agree at one index agree before it.

use tessera_proto::{Epoch, LogIndex};

/// A place in a log: an index and the epoch of the entry there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// Epoch of the entry; compared first, so that a greater position is a newer log.
    pub epoch: Epoch,
    /// Its index.
    pub index: LogIndex,
}

impl Position {
    /// A position.
    pub fn new(epoch: u64, index: u64) -> Self {
        Self {
            epoch: Epoch(epoch),
            index: LogIndex(index),
        }
    }
}

/// Which epochs a log holds. Entries up to and including `base` are gone: they are in the shard's files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogShape {
    base: Position,
    runs: Vec<Position>,
}

impl LogShape {
    /// A log without entries that continues after `base`.
    pub fn starting_after(base: Position) -> Self {
        Self { base, runs: Vec::new() }
    }

    /// From what a disk or a peer says; `None` when epochs or indexes do not ascend.
    pub fn new(base: Position, runs: Vec<Position>) -> Option<Self> {
        let ascends = |a: &Position, b: &Position| a.epoch < b.epoch && a.index < b.index;
        let first = runs
            .first()
            .is_none_or(|r| r.index > base.index && r.epoch >= base.epoch);
        (first && runs.windows(2).all(|w| ascends(&w[0], &w[1]))).then_some(Self { base, runs })
    }

    /// The entry before the first one held.
    pub fn base(&self) -> Position {
        self.base
    }

    /// The last entry of every epoch, ascending.
    pub fn runs(&self) -> &[Position] {
        &self.runs
    }

    /// The last entry, or the base.
    pub fn last(&self) -> Position {
        self.runs.last().copied().unwrap_or(self.base)
    }

    /// Epoch of the entry at `index`; `None` before the base and after the end.
    pub fn epoch_at(&self, index: LogIndex) -> Option<Epoch> {
        if index == self.base.index {
            return Some(self.base.epoch);
        }
        if index < self.base.index {
            return None;
        }
        self.runs
            .get(self.runs.partition_point(|r| r.index < index))
            .map(|r| r.epoch)
    }

    /// Adds one entry right after the last; false when it does not fit there.
    pub fn push(&mut self, entry: Position) -> bool {
        let last = self.last();
        if entry.index.0 != last.index.0 + 1 || entry.epoch < last.epoch {
            return false;
        }
        match self.runs.last_mut() {
            Some(run) if run.epoch == entry.epoch => run.index = entry.index,
            _ => self.runs.push(entry),
        }
        true
    }

    /// Forgets everything after `index`, which is not before the base.
    pub fn truncate_after(&mut self, index: LogIndex) {
        let Some(epoch) = self.epoch_at(index) else { return };
        self.runs
            .retain(|r| r.epoch < epoch || (r.epoch == epoch && r.index <= index));
        if index > self.base.index && self.last().index < index {
            self.runs.push(Position { epoch, index });
        }
    }

    /// Forgets everything up to `index`, whose rows are in files now.
    pub fn release(&mut self, index: LogIndex) {
        let Some(epoch) = self.epoch_at(index) else { return };
        self.base = Position { epoch, index };
        self.runs.retain(|r| r.index > index);
    }

    /// The largest index at which both logs hold the same entry; `None` when a snapshot is the only way to agree.
    pub fn common(&self, other: &LogShape) -> Option<LogIndex> {
        let low = self.base.index.max(other.base.index);
        let high = self.last().index.min(other.last().index);
        let ends = self.runs.iter().chain(&other.runs).map(|r| r.index.min(high));
        ends.chain([low])
            .filter(|i| *i >= low && *i <= high)
            .filter(|i| self.epoch_at(*i).is_some() && self.epoch_at(*i) == other.epoch_at(*i))
            .max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(base: (u64, u64), runs: &[(u64, u64)]) -> LogShape {
        LogShape::new(
            Position::new(base.0, base.1),
            runs.iter().map(|r| Position::new(r.0, r.1)).collect(),
        )
        .unwrap()
    }

    #[test]
    fn agrees_at_the_largest_common_entry() {
        let check = |a: LogShape, b: LogShape, expected: Option<u64>| {
            assert_eq!(a.common(&b).map(|i| i.0), expected, "{a:?} {b:?}");
            assert_eq!(b.common(&a).map(|i| i.0), expected, "{b:?} {a:?}");
        };
        check(shape((0, 0), &[]), shape((0, 0), &[(1, 5)]), Some(0));
        check(shape((0, 0), &[(1, 3), (2, 7)]), shape((0, 0), &[(1, 5)]), Some(3));
        check(
            shape((0, 0), &[(1, 3), (4, 6)]),
            shape((0, 0), &[(1, 3), (2, 9)]),
            Some(3),
        );
        check(
            shape((0, 0), &[(1, 3), (4, 6)]),
            shape((0, 0), &[(1, 2), (4, 6)]),
            Some(6),
        );
        check(shape((1, 4), &[(2, 6)]), shape((0, 0), &[(1, 4)]), Some(4));
        check(shape((1, 4), &[(2, 6)]), shape((0, 0), &[(1, 3)]), None);
        check(shape((2, 4), &[(2, 6)]), shape((0, 0), &[(1, 8)]), None);
    }

    #[test]
    fn push_truncate_release() {
        let mut log = shape((0, 0), &[(1, 3), (2, 5)]);
        assert!(!log.push(Position::new(2, 7)) && !log.push(Position::new(1, 6)) && log.push(Position::new(3, 6)));
        log.truncate_after(LogIndex(4));
        assert_eq!((log.last(), log.runs().len()), (Position::new(2, 4), 2));
        log.truncate_after(LogIndex(2));
        assert_eq!(log.last(), Position::new(1, 2));
        log.release(LogIndex(1));
        assert_eq!(
            (log.base(), log.last(), log.epoch_at(LogIndex(0))),
            (Position::new(1, 1), Position::new(1, 2), None)
        );
    }
}
