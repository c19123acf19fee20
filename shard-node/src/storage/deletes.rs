//! Which rows of a file, or of the rows in memory, are gone, and since which commit: a delete vector.
//!
//! ```text
//!   base   [ 1 2 6 ] @40                                    gone for every reader there may be: rows alone
//!   runs   [ 3@50 7@51 9@50 ... ][ 4@60 8@60 ][ 5@61 ]      row@timestamp, ascending by row within a run
//!            each at least twice as long as all behind it
//! ```
//!
//! A row is removed once, so a vector only grows. Small commits would copy it again and again; a new run takes in those before
//! it that are not twice its length, as the chunks of the delta do (delta.rs): 20 runs for a million rows, and an entry is copied
//! at most as often. What no reader can tell apart any more, because the snapshots between are too old to be read, is folded into
//! the base: 4 bytes a row instead of 16. Vectors are immutable; who holds one sees what it saw.
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
    base: Base,
    runs: Vec<Arc<[Deleted]>>,
}

/// Rows that went before the oldest snapshot that may be read.
#[derive(Debug, Clone, Default)]
struct Base {
    /// Ascending.
    rows: Arc<[u32]>,
    /// When the last of them went; all are taken to have gone then.
    ts: Timestamp,
}

impl Base {
    fn within(&self, rows: &Range<u64>) -> impl Iterator<Item = Deleted> + use<'_> {
        let from = self.rows.partition_point(|row| u64::from(*row) < rows.start);
        let to = self.rows.partition_point(|row| u64::from(*row) < rows.end);
        let ts = self.ts;
        self.rows[from..to.max(from)].iter().map(move |row| Deleted {
            row: u64::from(*row),
            ts,
        })
    }
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
        self.base.rows.len() + self.runs.iter().map(|run| run.len()).sum::<usize>()
    }

    /// Number of rows that were gone at `ts`.
    pub fn gone_at(&self, ts: Timestamp) -> usize {
        let base = if self.base.ts <= ts { self.base.rows.len() } else { 0 };
        base + self
            .runs
            .iter()
            .flat_map(|run| run.iter())
            .filter(|d| d.ts <= ts)
            .count()
    }

    /// The same rows, those that went up to `ts` without their times, for readers at `ts` and later; `None` when that saves
    /// less than `least` times. Rows of a file only.
    pub fn folded(&self, ts: Timestamp, least: usize) -> Option<Self> {
        let old = |d: &&Deleted| d.ts <= ts;
        let tail = || self.runs.iter().flat_map(|run| run.iter());
        if tail().filter(old).count() < least.max(1) {
            return None;
        }
        let mut rows: Vec<u32> = self.base.rows.to_vec();
        let mut last = self.base.ts;
        for deleted in tail().filter(old) {
            rows.push(u32::try_from(deleted.row).ok()?);
            last = last.max(deleted.ts);
        }
        rows.sort_unstable();
        let mut folded = Self::new(tail().filter(|d| !old(d)).copied().collect());
        folded.base = Base {
            rows: rows.into(),
            ts: last,
        };
        Some(folded)
    }

    /// Since when all rows of the base are taken to be gone: older snapshots cannot be read.
    pub fn base_ts(&self) -> Timestamp {
        self.base.ts
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
        let in_run = |run: &Arc<[Deleted]>| {
            let at = run.binary_search_by_key(&row, |d| d.row).ok()?;
            Some(run[at].ts)
        };
        let in_base = || {
            let row = u32::try_from(row).ok()?;
            self.base.rows.binary_search(&row).ok().map(|_| self.base.ts)
        };
        self.runs.iter().find_map(in_run).or_else(in_base)
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
        let in_runs = self.runs.iter().flat_map(move |run| {
            let from = run.partition_point(|d| d.row < rows.start);
            let to = run.partition_point(|d| d.row < rows.end);
            run[from..to.max(from)].iter().copied()
        });
        in_runs.chain(self.base.within(rows))
    }

    /// All entries, ascending by row.
    pub fn sorted(&self) -> Vec<Deleted> {
        let mut all: Vec<Deleted> = self.within(&(0..u64::MAX)).collect();
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

    #[test]
    fn folded_rows_read_the_same_from_then_on() {
        let deleted = |n: u64| Deleted {
            row: n * 7 % 1_000,
            ts: Timestamp(n + 1),
        };
        let mut vector = DeleteVector::default();
        (0..500).for_each(|n| vector.add(vec![deleted(n)]));
        assert_eq!(vector.gone_at(Timestamp(300)), 300);
        assert!(vector.folded(Timestamp(300), 301).is_none() && vector.folded(Timestamp(0), 0).is_none());
        let mut folded = vector.folded(Timestamp(300), 1).unwrap();
        assert_eq!((folded.base_ts(), folded.base.rows.len()), (Timestamp(300), 300));
        for n in 500..700 {
            vector.add(vec![deleted(n)]);
            folded.add(vec![deleted(n)]);
        }
        let again = folded.folded(Timestamp(600), 1).unwrap();
        assert_eq!((again.base.rows.len(), again.gone_at(Timestamp(599))), (600, 0));
        for (vector, folded, from) in [(&vector, &folded, 300), (&vector, &again, 600)] {
            assert_eq!((folded.len(), folded.sorted().len()), (700, 700));
            for ts in (from..=700).map(Timestamp) {
                for rows in [0..1_000, 130..131, 40..777] {
                    assert_eq!(folded.alive(rows.clone(), ts), vector.alive(rows, ts));
                }
                assert_eq!(folded.gone_at(ts), vector.gone_at(ts));
                assert!((0..1_000).all(|row| folded.is_deleted(row, ts) == vector.is_deleted(row, ts)));
            }
        }
    }
}
