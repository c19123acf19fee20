//! Whether rows to be written have keys that exist already: in memory, in segments, or twice among themselves.
//!
//! ```text
//!   inline rows   keys ──▶ delta's key index;  sorted hashes ──▶ sidecar blocks of each segment ──▶ compare real keys
//!   staged rows   sidecars of the staged and of the overlapping existing segments, merged by hash ──▶ compare real keys
//! ```
//!
//! The merge reads every sidecar once, front to back: 6 bytes a row, no rows. Equal hashes are only candidates, and nearly
//! always true duplicates. Segments whose range of the first key column does not meet that of the new rows are skipped, so
//! appending in key order reads nothing. What counts is the last committed state: rows not yet visible to a snapshot do, rows
//! that are gone, or that the same write removes, do not.

use crate::storage::column_reader::Access;
use crate::storage::keys::{self, for_each_key, key_columns};
use crate::storage::locate::{self, Located};
use crate::storage::sidecar::Entry;
use crate::storage::statistics::KeyRange;
use crate::storage::version::{Segment, TableVersion};
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use std::collections::HashSet;
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::token::canonical_keys;
use tessera_proto::{Error, Result, Timestamp};

/// A key that is there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The detail of the error.
    pub detail: String,
    /// Since when the other row is there; `None` when it is not known, or comes in the same write.
    pub since: Option<Timestamp>,
}

impl Conflict {
    /// Of rows that come together, or of files.
    pub(crate) fn inside(detail: String) -> Self {
        Self { detail, since: None }
    }
}

/// Inline rows with their keys.
pub(crate) struct InlineKeys<'a> {
    def: &'a TableDef,
    columns: Vec<ArrayRef>,
    keys: Vec<Box<[u8]>>,
}

impl<'a> InlineKeys<'a> {
    /// The keys of a batch of the table.
    ///
    /// # Errors
    /// A column type that cannot be a key.
    pub fn new(def: &'a TableDef, batch: &RecordBatch) -> Result<Self> {
        let columns = key_columns(def, batch)?;
        let mut keys = Vec::with_capacity(batch.num_rows());
        for_each_key(&columns, |_, key| keys.push(key.into()))?;
        Ok(Self { def, columns, keys })
    }

    /// The key columns.
    pub fn columns(&self) -> &[ArrayRef] {
        &self.columns
    }

    /// Detail of the first duplicate among the rows themselves.
    pub fn conflict_inside(&self) -> Option<String> {
        let mut seen = HashSet::with_capacity(self.keys.len());
        let row = self.keys.iter().position(|key| !seen.insert(key))?;
        Some(keys::duplicate_detail(self.def, &self.columns, row))
    }

    /// The first row whose key another row has now, unless that row is one of `removed`.
    ///
    /// # Errors
    /// XX001 or 58030 when segments cannot be read.
    pub fn conflict_with(
        &self,
        version: &TableVersion,
        located: &Located,
        removed: &HashSet<Box<[u8]>>,
    ) -> Result<Option<Conflict>> {
        let living = locate::living(self.def, version, &self.columns, located)?;
        let mut there = living
            .iter()
            .enumerate()
            .filter_map(|(row, found)| Some((row, found.as_ref()?.cts)));
        let first = there.find(|(row, _)| !removed.contains(&self.keys[*row]));
        Ok(first.map(|(row, since)| Conflict {
            detail: keys::duplicate_detail(self.def, &self.columns, row),
            since: Some(since),
        }))
    }
}

/// Detail of the first duplicate among staged segments; `delta` are hashes and keys in memory, ascending.
///
/// # Errors
/// XX001 or 58030 when segments cannot be read.
pub(crate) fn staged_conflict(
    def: &TableDef,
    staged: &[Arc<Segment>],
    delta: &[(u64, Box<[u8]>)],
    version: &TableVersion,
) -> Result<Option<String>> {
    let hashes: Vec<u64> = delta.iter().map(|(hash, _)| *hash).collect();
    for segment in staged {
        for (at, row) in segment.find_keys(&hashes, Access::Disk)?.unwrap_or_default() {
            let (columns, key) = key_at(segment, def, row)?;
            if key == delta[at].1 {
                return Ok(Some(keys::duplicate_detail(def, &columns, 0)));
            }
        }
    }
    let meets = |e: &&Arc<Segment>| {
        let mut ranges = staged.iter().map(|s| KeyRange(s.statistics().key_range));
        ranges.any(|range| e.statistics().overlaps(range))
    };
    let relevant = version.segments_at(Timestamp::MAX).filter(meets);
    let all: Vec<&Arc<Segment>> = staged.iter().chain(relevant).collect();
    Merge {
        def,
        segments: &all,
        staged: staged.len(),
        version,
    }
    .run()
}

/// One sidecar read front to back.
struct Cursor<'a> {
    segment: &'a Segment,
    next_block: usize,
    block: Vec<Entry>,
    at: usize,
}

impl Cursor<'_> {
    /// Greatest hash in memory; `None` at the end.
    fn fill(&mut self) -> Result<Option<u64>> {
        let sidecar = self.segment.sidecar()?;
        if self.at == self.block.len() {
            if self.next_block == sidecar.blocks() {
                return Ok(None);
            }
            self.block = sidecar.block(self.next_block)?;
            (self.at, self.next_block) = (0, self.next_block + 1);
        }
        Ok(self.block.last().map(|(hash, _)| *hash))
    }
}

/// Walks all sidecars by hash; two equal hashes count when at least one is of the first `staged` segments.
struct Merge<'a> {
    def: &'a TableDef,
    segments: &'a [&'a Arc<Segment>],
    staged: usize,
    version: &'a TableVersion,
}

impl Merge<'_> {
    fn run(&self) -> Result<Option<String>> {
        let cursors = self.segments.iter().map(|segment| Cursor {
            segment: segment.as_ref(),
            next_block: 0,
            block: vec![],
            at: 0,
        });
        let mut cursors: Vec<Cursor> = cursors.collect();
        let mut window: Vec<(u64, usize, u32)> = Vec::new();
        loop {
            // Up to the least of the blocks' last hashes everything is in memory.
            let mut limit = None;
            for cursor in &mut cursors {
                if let Some(last) = cursor.fill()? {
                    limit = Some(limit.map_or(last, |l: u64| l.min(last)));
                }
            }
            let Some(limit) = limit else { return Ok(None) };
            // Entries of the last window's greatest hash stay, in case a next block begins with the same one.
            let keep_from = window.last().map_or(0, |last| window.partition_point(|w| w.0 < last.0));
            window.drain(..keep_from);
            let kept = window.len();
            for (number, cursor) in cursors.iter_mut().enumerate() {
                let rest = &cursor.block[cursor.at..];
                let taken = rest.partition_point(|(hash, _)| *hash <= limit);
                window.extend(rest[..taken].iter().map(|(hash, row)| (*hash, number, *row)));
                cursor.at += taken;
            }
            window[kept..].sort_unstable();
            if let Some(detail) = self.first_duplicate(&window)? {
                return Ok(Some(detail));
            }
        }
    }

    fn first_duplicate(&self, window: &[(u64, usize, u32)]) -> Result<Option<String>> {
        for group in window
            .chunk_by(|a, b| a.0 == b.0)
            .filter(|g| g.len() > 1 && g.iter().any(|e| e.1 < self.staged))
        {
            let mut seen = HashSet::new();
            // New rows last, so that the first repetition involves one.
            for (_, number, row) in group.iter().rev() {
                if self.version.is_deleted(self.segments[*number], *row, Timestamp::MAX) {
                    continue;
                }
                let (columns, key) = key_at(self.segments[*number], self.def, *row)?;
                if !seen.insert(key) {
                    return Ok(Some(keys::duplicate_detail(self.def, &columns, 0)));
                }
            }
        }
        Ok(None)
    }
}

/// A row's key columns (one row) and canonical bytes.
fn key_at(segment: &Segment, def: &TableDef, row: u32) -> Result<(Vec<ArrayRef>, Box<[u8]>)> {
    let batch = segment.rows_at(def, &def.row_key(), &[row], Access::Disk)?;
    let batch = batch.ok_or_else(|| Error::internal("a key was not read"))?;
    let key = canonical_keys(batch.columns())?.pop().unwrap_or_default();
    Ok((batch.columns().to_vec(), key))
}
