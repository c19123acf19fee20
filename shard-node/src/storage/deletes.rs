//! Which rows of a file, or of the rows in memory, are gone, and since which commit: a delete vector.
//!
//! ```text
//!   runs   [ 3@50 7@51 9@50 ... ][ 4@60 8@60 ][ 5@61 ]      row@timestamp, ascending by row within a run
//!            each at least twice as long as all behind it
//! ```
//!
//! A row is removed once, so a vector only grows. Small commits would copy it again and again; a new run takes in those before
//! it that are not twice its length, as the chunks of the delta do (delta.rs): 20 runs for a million rows, and an entry is copied
//! at most as often. Vectors are immutable; who holds one sees what it saw.
//!
//! Not here: forgetting the rows themselves, that is compaction's.

use datafusion::arrow::array::BooleanArray;
use datafusion::arrow::buffer::BooleanBuffer;
use std::ops::Range;
use std::sync::Arc;
use tessera_proto::Timestamp;

/// A row that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Deleted {
    /// Position in the file, or in the delta's unbroken numbering.
    pub row: u64,
    /// Readers at this timestamp and later do not see it.
    pub ts: Timestamp,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteVector {
    runs: Vec<Arc<[Deleted]>>,
}

impl DeleteVector {
    /// Of these rows.
    pub fn new(rows: Vec<Deleted>) -> Self {
        let mut vector = Self::default();
        vector.add(rows);
        vector
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.runs.iter().map(|run| run.len()).sum()
    }

    /// Adds rows that are not in it yet, in any order.
    pub fn add(&mut self, mut rows: Vec<Deleted>) {
        if rows.is_empty() {
            return;
        }
        while let Some(before) = self.runs.pop_if(|run| run.len() < 2 * rows.len()) {
            rows.extend(before.iter());
        }
        rows.sort_unstable();
        self.runs.push(rows.into());
    }

    /// Whether a row is gone at `ts`.
    pub fn is_deleted(&self, row: u64, ts: Timestamp) -> bool {
        self.since(row).is_some_and(|since| since <= ts)
    }

    /// When a row went, if it did.
    pub fn since(&self, row: u64) -> Option<Timestamp> {
        self.runs.iter().find_map(|run| {
            let at = run.binary_search_by_key(&row, |d| d.row).ok()?;
            Some(run[at].ts)
        })
    }

    /// Of the rows in a range, those that are there at `ts`; `None` when all of them are.
    pub fn alive(&self, rows: Range<u64>, ts: Timestamp) -> Option<BooleanArray> {
        let mut alive: Option<Vec<bool>> = None;
        for deleted in self.within(&rows).filter(|d| d.ts <= ts) {
            let alive = alive.get_or_insert_with(|| vec![true; (rows.end - rows.start) as usize]);
            alive[(deleted.row - rows.start) as usize] = false;
        }
        alive.map(|alive| BooleanArray::new(BooleanBuffer::from(alive), None))
    }

    /// The entries of a range of rows, in no order.
    pub fn within(&self, rows: &Range<u64>) -> impl Iterator<Item = Deleted> {
        self.runs.iter().flat_map(move |run| {
            let from = run.partition_point(|d| d.row < rows.start);
            let to = run.partition_point(|d| d.row < rows.end);
            run[from..to.max(from)].iter().copied()
        })
    }

    /// All entries, ascending by row.
    pub fn sorted(&self) -> Vec<Deleted> {
        let mut all: Vec<Deleted> = self.runs.iter().flat_map(|run| run.iter().copied()).collect();
        all.sort_unstable();
        all
    }

    /// Without the rows below a position.
    pub fn without_below(&self, row: u64) -> Self {
        Self::new(self.within(&(row..u64::MAX)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_at_their_time_and_runs_stay_few() {
        let mut vector = DeleteVector::default();
        let kept = DeleteVector::new(vec![]);
        assert!(kept.len() == 0 && kept.alive(0..9, Timestamp::MAX).is_none());
        // 7 has no common factor with 10,000: every row once, in a mixed order.
        for n in 0..10_000u64 {
            let deleted = Deleted {
                row: n * 7 % 10_000,
                ts: Timestamp(n + 1),
            };
            vector.add(vec![deleted]);
        }
        assert_eq!(vector.len(), 10_000);
        assert!(vector.runs.len() < 20, "{} runs", vector.runs.len());
        for ts in [0, 1, 5_000, 10_000] {
            let gone = (0..10_000).filter(|row| vector.is_deleted(*row, Timestamp(ts))).count();
            assert_eq!(gone as u64, ts);
            let alive = vector.alive(0..10_000, Timestamp(ts));
            assert_eq!(alive.map_or(10_000, |a| a.true_count() as u64), 10_000 - ts);
        }
        assert_eq!(vector.since(7), Some(Timestamp(2)));
        assert_eq!(vector.since(10_000), None);
        let later = vector.without_below(9_990);
        assert_eq!((later.len(), later.since(9_989)), (10, None));
        assert!(vector.sorted().windows(2).all(|w| w[0].row < w[1].row));
        let part = vector.alive(10..20, Timestamp::MAX).unwrap();
        assert_eq!((part.true_count(), DeleteVector::new(vec![]).len()), (0, 0));
    }
}
