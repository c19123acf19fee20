//! Which rows of a file, or of the rows in memory, are gone, and since which commit: a delete vector.
//!
//! ```text
//!   runs   [ 3@50 7@51 9@50 ... ][ 4@60 8@60 ][ 5@61 ]      row@timestamp, ascending by row within a run
//!            each at least twice as long as all behind it
//!   cuts   100@70  140@90                                   TRUNCATE: all rows before 100 that were left went at 70
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

/// All rows before a position that were left are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// The first row that stays.
    pub before: u64,
    /// Readers at this timestamp and later do not see the others.
    pub ts: Timestamp,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteVector {
    runs: Vec<Arc<[Deleted]>>,
    /// Ascending, by position and by timestamp.
    cuts: Vec<Cut>,
}

impl DeleteVector {
    /// Of these rows.
    pub fn new(rows: Vec<Deleted>) -> Self {
        let mut vector = Self::default();
        vector.add(rows);
        vector
    }

    /// Number of rows in a range that are gone.
    pub fn count(&self, rows: &Range<u64>) -> u64 {
        let cut = self.cuts.last().map_or(0, |cut| cut.before).clamp(rows.start, rows.end);
        cut - rows.start + self.within(&(cut..rows.end)).count() as u64
    }

    /// Whether no row of a range is there at `ts`, as far as TRUNCATE tells.
    pub fn is_cut(&self, rows: &Range<u64>, ts: Timestamp) -> bool {
        self.cut_at(ts) >= rows.end
    }

    /// The first row that no TRUNCATE up to `ts` took.
    fn cut_at(&self, ts: Timestamp) -> u64 {
        let cuts = self.cuts.partition_point(|cut| cut.ts <= ts);
        cuts.checked_sub(1).map_or(0, |last| self.cuts[last].before)
    }

    /// Removes all rows before a position.
    pub fn cut(&mut self, cut: Cut) {
        // No row came since the last one: none is left to go.
        if self.cuts.last().is_none_or(|last| last.before < cut.before) {
            self.cuts.push(cut);
        }
    }

    /// The cuts, ascending.
    pub fn cuts(&self) -> &[Cut] {
        &self.cuts
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
        let by_itself = self.runs.iter().find_map(|run| {
            let at = run.binary_search_by_key(&row, |d| d.row).ok()?;
            Some(run[at].ts)
        });
        // One that went by itself was not there any more at a cut.
        by_itself.or_else(|| {
            let first = self.cuts.partition_point(|cut| cut.before <= row);
            self.cuts.get(first).map(|cut| cut.ts)
        })
    }

    /// Of the rows in a range, those that are there at `ts`; `None` when all of them are.
    pub fn alive(&self, rows: Range<u64>, ts: Timestamp) -> Option<BooleanArray> {
        let cut = self.cut_at(ts).clamp(rows.start, rows.end);
        let all = || vec![true; (rows.end - rows.start) as usize];
        let mut alive: Option<Vec<bool>> = (cut > rows.start).then(|| {
            let mut alive = all();
            alive[..(cut - rows.start) as usize].fill(false);
            alive
        });
        for deleted in self.within(&rows).filter(|d| d.ts <= ts) {
            let alive = alive.get_or_insert_with(all);
            alive[(deleted.row - rows.start) as usize] = false;
        }
        alive.map(|alive| BooleanArray::new(BooleanBuffer::from(alive), None))
    }

    /// The rows of a range that went by themselves, in no order.
    pub fn within(&self, rows: &Range<u64>) -> impl Iterator<Item = Deleted> {
        self.runs.iter().flat_map(move |run| {
            let from = run.partition_point(|d| d.row < rows.start);
            let to = run.partition_point(|d| d.row < rows.end);
            run[from..to.max(from)].iter().copied()
        })
    }

    /// All rows that went by themselves, ascending.
    pub fn sorted(&self) -> Vec<Deleted> {
        let mut all: Vec<Deleted> = self.runs.iter().flat_map(|run| run.iter().copied()).collect();
        all.sort_unstable();
        all
    }

    /// Without the rows below a position.
    pub fn without_below(&self, row: u64) -> Self {
        let cuts = self.cuts.iter().copied().filter(|cut| cut.before > row);
        Self {
            cuts: cuts.collect(),
            ..Self::new(self.within(&(row..u64::MAX)).collect())
        }
    }

    /// What is gone of a range of rows that are written to a file: `rows` tells where each is there. A cut through the middle
    /// becomes single rows.
    pub fn moved(&self, first: u64, rows: &[u32]) -> Self {
        let range = first..first + rows.len() as u64;
        let place = |row: u64| u64::from(rows[(row - first) as usize]);
        let mut moved: Vec<Deleted> = self
            .within(&range)
            .map(|deleted| Deleted {
                row: place(deleted.row),
                ..deleted
            })
            .collect();
        let mut left = range.start;
        let mut cuts = vec![];
        for cut in &self.cuts {
            if cut.before >= range.end {
                let before = rows.len() as u64;
                cuts.push(Cut { before, ts: cut.ts });
                break;
            }
            let alone = |row: &u64| {
                self.runs
                    .iter()
                    .all(|run| run.binary_search_by_key(row, |d| d.row).is_err())
            };
            let went = (left..cut.before).filter(alone).map(|row| Deleted {
                row: place(row),
                ts: cut.ts,
            });
            moved.extend(went);
            left = left.max(cut.before);
        }
        Self {
            cuts,
            ..Self::new(moved)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_at_their_time_and_runs_stay_few() {
        let mut vector = DeleteVector::default();
        let kept = DeleteVector::new(vec![]);
        assert!(kept.count(&(0..9)) == 0 && kept.alive(0..9, Timestamp::MAX).is_none());
        // 7 has no common factor with 10,000: every row once, in a mixed order.
        for n in 0..10_000u64 {
            let deleted = Deleted {
                row: n * 7 % 10_000,
                ts: Timestamp(n + 1),
            };
            vector.add(vec![deleted]);
        }
        assert_eq!(vector.count(&(0..20_000)), 10_000);
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
        assert_eq!((later.count(&(0..20_000)), later.since(9_989)), (10, None));
        assert!(vector.sorted().windows(2).all(|w| w[0].row < w[1].row));
        let part = vector.alive(10..20, Timestamp::MAX).unwrap();
        assert_eq!(part.true_count(), 0);
    }

    /// Since when each of the rows is gone.
    fn sinces(vector: &DeleteVector, rows: Range<u64>) -> Vec<u64> {
        rows.map(|row| vector.since(row).map_or(0, |ts| ts.0)).collect()
    }

    #[test]
    fn a_cut_takes_the_rows_that_are_left() {
        let cut = |before, ts| Cut {
            before,
            ts: Timestamp(ts),
        };
        let row = |row, ts| Deleted { row, ts: Timestamp(ts) };
        let mut vector = DeleteVector::new(vec![row(1, 5)]);
        vector.cut(cut(3, 10));
        vector.cut(cut(3, 20));
        vector.add(vec![row(4, 25)]);
        vector.cut(cut(6, 30));
        assert_eq!(sinces(&vector, 0..8), [10, 5, 10, 30, 25, 30, 0, 0]);
        assert_eq!(
            (vector.count(&(0..8)), vector.count(&(2..7)), vector.count(&(6..8))),
            (6, 4, 0)
        );
        for (ts, alive) in [
            (4, "11111111"),
            (5, "10111111"),
            (10, "00011111"),
            (29, "00010111"),
            (30, "00000011"),
        ] {
            let mask = vector.alive(0..8, Timestamp(ts));
            let shown: String = (0..8)
                .map(|i| {
                    if mask.as_ref().is_none_or(|m| m.value(i)) {
                        '1'
                    } else {
                        '0'
                    }
                })
                .collect();
            assert_eq!(shown, alive, "at {ts}");
        }
        assert!(vector.is_cut(&(0..3), Timestamp(10)) && !vector.is_cut(&(0..4), Timestamp(29)));
        assert!(vector.is_cut(&(0..6), Timestamp(30)) && !vector.is_cut(&(0..7), Timestamp::MAX));
        assert_eq!(sinces(&vector.without_below(3), 3..8), [30, 25, 30, 0, 0]);
        assert!(vector.without_below(6).cuts().is_empty());
        // Rows 2 to 5 in a file, backwards: all of them are gone, some by the first cut.
        let moved = vector.moved(2, &[3, 2, 1, 0]);
        assert_eq!(sinces(&moved, 0..4), [30, 25, 30, 10]);
        assert_eq!(moved.cuts(), [cut(4, 30)]);
        // Rows 4 to 7: the second cut goes through the middle.
        let moved = vector.moved(4, &[0, 1, 2, 3]);
        assert_eq!(
            (sinces(&moved, 0..4), moved.cuts()),
            (vec![25, 30, 0, 0], [].as_slice())
        );
        // Rows 0 to 2 were gone as a whole at the first cut.
        let moved = vector.moved(0, &[2, 0, 1]);
        assert_eq!(
            (sinces(&moved, 0..3), moved.cuts()),
            (vec![5, 10, 10], [cut(3, 10)].as_slice())
        );
    }
}
