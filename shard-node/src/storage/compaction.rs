//! Takes removed rows out of files, and makes few large sorted files of many small or overlapping ones.
//!
//! ```text
//!   1 pick      segments with > 20 % dead rows · many of one size · > 10 that overlap                 pick.rs
//!   2 begin     their removed rows as the manifest knows them: those gone at the watermark stay out   (manifest lock)
//!   3 rewrite   sorted runs merged ──▶ new segments, fsynced, and where each row went                 merge.rs, rewrite.rs
//!   4 manifest  new segments for old ones, removed rows renumbered, watermark                         (manifest lock)
//!   5 publish   a version with the new segments; removals since 2 follow their rows                   (apply lock, no I/O)
//! ```
//!
//! Applies, seals and readers go on during 3. A removal that is applied meanwhile is found in the old segments; at 5 all that the
//! version knows is replayed through the map of 3. What 4 writes is as of the manifest's own checkpoint, because later
//! entries are replayed from the log after a crash: only rows whose removal a manifest has are left out. A crash before 4 leaves
//! new files that nobody names, one after it old ones; the next start sweeps either.
//!
//! The watermark is the oldest snapshot that may still be read. Rows that went before are seen by nobody, and rows that came
//! before count as come at the same time, the latest of theirs: no column of times is needed, and a writer that read before
//! finds them changed rather than unchanged. Copies compact whenever they like; which rows a snapshot sees stays the same.
//!
//! Kudu calls the replay the second phase of a compaction (docs/design-docs/compaction.md there); ours has one publisher, so that
//! nothing must write to both sides.

mod merge;
pub(crate) mod pick;
mod rewrite;
#[cfg(test)]
mod tests;

use crate::storage::deletes::Deleted;
use crate::storage::deletes_file::{self, Deletes};
use crate::storage::durable;
use crate::storage::manifest::Manifest;
use crate::storage::shard_store::{Inner, ShardStore};
use crate::storage::version::{Segment, Version};
use datafusion::arrow::array::BooleanBufferBuilder;
use datafusion::arrow::buffer::BooleanBuffer;
use datafusion::execution::memory_pool::MemoryPool;
use pick::Reason;
pub use pick::{Eagerness, Job};
use rewrite::Rewritten;
use std::collections::HashSet;
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::{Result, Timestamp};

/// So many removals of a segment are folded at a time: the whole list is copied each time.
const FOLD_MIN: usize = 4_096;

/// How far a compaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many rows were written since the last time.
    Rows(usize),
    /// The new files are durable and nobody's.
    Written,
    /// The manifest names them.
    Stored,
}

/// Asked at each step; an error ends the compaction there.
pub type Steps<'a> = dyn Fn(Step) -> Result<()> + Sync + 'a;

/// What a compaction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Files it read and replaced.
    pub files_before: u64,
    /// Files it wrote.
    pub files_after: u64,
    /// Rows that it took out.
    pub rows_removed: u64,
    /// Bytes of the files it read.
    pub bytes_before: u64,
    /// Bytes of the files it wrote.
    pub bytes_after: u64,
}

impl Compacted {
    /// Both.
    pub fn and(self, other: Self) -> Self {
        Self {
            files_before: self.files_before + other.files_before,
            files_after: self.files_after + other.files_after,
            rows_removed: self.rows_removed + other.rows_removed,
            bytes_before: self.bytes_before + other.bytes_before,
            bytes_after: self.bytes_after + other.bytes_after,
        }
    }
}

/// How a compaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// As it should.
    Done(Compacted),
    /// Segments that it read were replaced or dropped meanwhile: nothing changed.
    Overtaken,
    /// No manifest knows enough of the removals yet that made it worth its while: seal first.
    Unsealed,
}

/// A segment that is rewritten.
struct Input {
    segment: Arc<Segment>,
    /// Rows that stay; `None` is all.
    kept: Option<BooleanBuffer>,
    rows_kept: u64,
}

impl Input {
    fn new(segment: &Arc<Segment>, removed: &[Deleted], watermark: Timestamp) -> Self {
        let rows = segment.meta.rows;
        let gone: Vec<u64> = removed.iter().filter(|d| d.ts <= watermark).map(|d| d.row).collect();
        let kept = (!gone.is_empty()).then(|| {
            let mut kept = BooleanBufferBuilder::new(rows as usize);
            kept.append_n(rows as usize, true);
            gone.iter().for_each(|row| kept.set_bit(*row as usize, false));
            kept.finish()
        });
        Self {
            segment: segment.clone(),
            kept,
            rows_kept: rows - gone.len() as u64,
        }
    }
}

impl ShardStore {
    /// What is worth compacting in this table, if anything. Blocking where statistics of segments are not in memory.
    pub fn to_compact(&self, def: &TableDef, watermark: Timestamp, eagerness: Eagerness) -> Option<Job> {
        // Before the version: what a seal puts into both at once is not missed for long.
        let known = self
            .inner
            .manifest
            .lock()
            .segments
            .iter()
            .map(|s| s.file.clone())
            .collect();
        pick::pick(def, &self.table_version(def.id), &known, watermark, eagerness)
    }

    /// Does it. Blocking, for as long as that takes; applies, seals and readers go on.
    ///
    /// # Errors
    /// XX001 when a segment is damaged; 53100, 53200 or 58030: nothing changed, try again later; those of `steps`.
    pub fn compact(
        &self,
        job: &Job,
        def: &Arc<TableDef>,
        memory: &Arc<dyn MemoryPool>,
        steps: &Steps<'_>,
    ) -> Result<Ended> {
        self.inner.compact(job, def, memory, steps)
    }

    /// Gives back the memory of removals whose time no snapshot that may be read can tell.
    pub fn fold_removals(&self, watermark: Timestamp) {
        self.inner.fold(watermark, FOLD_MIN);
    }
}

impl Inner {
    /// Rewrites what `job` names. Blocking, for as long as that takes; holds locks only at its ends.
    ///
    /// # Errors
    /// XX001 when a segment is damaged; 53100, 53200 or 58030: nothing changed, try again later; those of `steps`.
    pub(super) fn compact(
        &self,
        job: &Job,
        def: &Arc<TableDef>,
        memory: &Arc<dyn MemoryPool>,
        steps: &Steps<'_>,
    ) -> Result<Ended> {
        let Some(inputs) = self.begin(job)? else {
            return Ok(Ended::Overtaken);
        };
        let rows: u64 = inputs.iter().map(|i| i.segment.meta.rows).sum();
        let kept = inputs.iter().map(|i| i.rows_kept).sum();
        if job.reason == Reason::Dead && !pick::is_much(rows - kept, rows)
            || job.reason == Reason::AnyDead && rows == kept
        {
            return Ok(Ended::Unsealed);
        }
        let target = rewrite::Target {
            dir: &self.segments,
            cache: &self.cache,
            def,
            watermark: job.watermark,
        };
        let mut rewritten = rewrite::rewrite(target, &inputs, memory, steps)?;
        durable::sync_dir(&self.segments)?;
        steps(Step::Written)?;
        if !self.replace(job, &mut rewritten, steps)? {
            return Ok(Ended::Overtaken);
        }
        let bytes = |segments: &[Arc<Segment>]| segments.iter().map(|s| s.meta.bytes).sum();
        Ok(Ended::Done(Compacted {
            files_before: job.inputs.len() as u64,
            files_after: rewritten.segments.len() as u64,
            rows_removed: rows - kept,
            bytes_before: bytes(&job.inputs),
            bytes_after: bytes(&rewritten.segments),
        }))
    }

    /// The inputs with what the manifest knows of their removed rows; `None` when it does not have all of them.
    fn begin(&self, job: &Job) -> Result<Option<Vec<Input>>> {
        let manifest = self.manifest.lock();
        if !self.has_inputs(&manifest, job) {
            return Ok(None);
        }
        let removed = self.removed_rows(&manifest)?;
        drop(manifest);
        let input = |segment: &Arc<Segment>| {
            let removed = removed.get(&segment.meta.file).map_or(&[][..], Vec::as_slice);
            Input::new(segment, removed, job.watermark)
        };
        Ok(Some(job.inputs.iter().map(input).collect()))
    }

    /// Whether the manifest and the present version have these very segments: not others under their names.
    fn has_inputs(&self, manifest: &Manifest, job: &Job) -> bool {
        let version = self.version.load();
        let Some(table) = version.tables.get(&job.table) else {
            return false;
        };
        let visible: HashSet<u64> = table.segments.iter().map(|s| s.number).collect();
        let named: HashSet<&str> = manifest.segments.iter().map(|s| s.file.as_str()).collect();
        let there = |s: &Arc<Segment>| visible.contains(&s.number) && named.contains(s.meta.file.as_str());
        job.inputs.iter().all(there)
    }

    fn removed_rows(&self, manifest: &Manifest) -> Result<Deletes> {
        let bytes = deletes_file::load(&self.dir, manifest.sequence, manifest.deletes.as_ref())?;
        deletes_file::decode(&bytes)
    }

    /// Makes the new segments take the place of the old ones; false when those are not there any more.
    fn replace(&self, job: &Job, rewritten: &mut Rewritten, steps: &Steps<'_>) -> Result<bool> {
        let mut manifest = self.manifest.lock();
        if !self.has_inputs(&manifest, job) {
            return Ok(false);
        }
        let mut next = Manifest {
            sequence: manifest.sequence + 1,
            ..manifest.clone()
        };
        let old: HashSet<&str> = job.inputs.iter().map(|s| s.meta.file.as_str()).collect();
        next.segments.retain(|s| !old.contains(s.file.as_str()));
        next.segments.extend(rewritten.segments.iter().map(|s| s.meta.clone()));
        if job.watermark > Timestamp(0) {
            let watermark = next.watermarks.entry(job.table).or_default();
            *watermark = job.watermark.max(*watermark);
        }
        let mut removed = self.removed_rows(&manifest)?;
        let mut moved = rewritten.nowhere();
        for (number, segment) in job.inputs.iter().enumerate() {
            let rows = removed.remove(&segment.meta.file).unwrap_or_default();
            rewritten.follow(number, rows, &mut moved);
        }
        for (segment, mut rows) in rewritten.segments.iter().zip(moved) {
            rows.sort_unstable();
            removed.insert(segment.meta.file.clone(), rows);
        }
        self.store_manifest(&mut next, &removed)?;
        *manifest = next;
        rewritten.keep();
        steps(Step::Stored)?;
        self.publish_compacted(job, rewritten);
        Ok(true)
    }

    fn publish_compacted(&self, job: &Job, rewritten: &Rewritten) {
        let _apply = self.apply.lock();
        let mut next = Version::clone(&self.version.load());
        // The caller holds the manifest: nobody drops a table or replaces its segments.
        let Some(table) = next.tables.get_mut(&job.table) else {
            return;
        };
        let table = Arc::make_mut(table);
        let mut moved = rewritten.nowhere();
        for (number, segment) in job.inputs.iter().enumerate() {
            if let Some(removed) = table.deletes.remove(&segment.number) {
                rewritten.follow(number, removed.sorted(), &mut moved);
            }
        }
        let old: HashSet<u64> = job.inputs.iter().map(|s| s.number).collect();
        let first = table.segments.iter().position(|s| old.contains(&s.number)).unwrap_or(0);
        table.segments.retain(|s| !old.contains(&s.number));
        drop(table.segments.splice(first..first, rewritten.segments.iter().cloned()));
        for (segment, rows) in rewritten.segments.iter().zip(moved) {
            table.delete_in(segment, rows);
        }
        table.watermark = table.watermark.max(job.watermark);
        self.version.store(Arc::new(next));
        // Gone once no reader holds them.
        job.inputs.iter().for_each(|s| s.doom());
    }

    /// Forgets when rows went, where no snapshot that may be read tells the difference: of every segment with at least `least`
    /// such rows.
    pub(super) fn fold(&self, watermark: Timestamp, least: usize) {
        let seen = self.version.load_full();
        for (id, table) in &seen.tables {
            for (number, removed) in &table.deletes {
                let Some(folded) = removed.folded(watermark, least) else {
                    continue;
                };
                let _apply = self.apply.lock();
                let mut next = Version::clone(&self.version.load());
                let Some(table) = next.tables.get_mut(id) else { continue };
                // More went meanwhile: next time.
                if !table.deletes.get(number).is_some_and(|now| Arc::ptr_eq(now, removed)) {
                    continue;
                }
                let table = Arc::make_mut(table);
                table.watermark = table.watermark.max(folded.base_ts());
                table.deletes.insert(*number, Arc::new(folded));
                self.version.store(Arc::new(next));
            }
        }
    }
}
