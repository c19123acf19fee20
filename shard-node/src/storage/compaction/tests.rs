//! Compactions of one table under everything that goes on beside them, against a model; crashes at each step; what is picked.

use super::pick::Reason;
use super::{Eagerness, Ended, Job, Step};
use crate::storage::shard_store::{ShardStore, Write};
use crate::storage::test_tables::{added, keys, removed, rows, store, table};
use crate::storage::version::TableVersion;
use crate::storage::{Access, digest};
use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{Decimal128Type, Int64Type};
use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryPool, UnboundedMemoryPool};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, LogIndex, Result, TableId, Timestamp};

const IDS: i64 = 80;

fn tables(def: &Arc<TableDef>) -> impl Fn(TableId) -> Option<Arc<TableDef>> + use<> {
    let def = def.clone();
    move |id| (id == def.id).then(|| def.clone())
}

fn pool() -> Arc<dyn MemoryPool> {
    Arc::new(UnboundedMemoryPool::default())
}

/// What a commit does: rows that go, rows that come (of the price of its timestamp).
#[derive(Debug, Clone)]
struct Change {
    ts: u64,
    gone: Vec<i64>,
    come: Vec<i64>,
}

impl Change {
    fn writes(&self, def: &Arc<TableDef>) -> Vec<Write> {
        let mut writes = vec![];
        if !self.gone.is_empty() {
            writes.push(removed(def, &self.gone));
        }
        if !self.come.is_empty() {
            writes.push(added(def, &self.come, self.ts.into()));
        }
        writes
    }
}

/// The log, and a transaction that drew its timestamp and is not in the log yet: its rows are locked.
#[derive(Default)]
struct Model {
    log: Vec<Change>,
    pending: Option<Change>,
    clock: u64,
}

impl Model {
    /// Id and price of the rows at a timestamp.
    fn at(&self, ts: u64) -> BTreeMap<i64, i128> {
        let mut changes: Vec<&Change> = self.log.iter().filter(|c| c.ts <= ts).collect();
        changes.sort_by_key(|c| c.ts);
        let mut state = BTreeMap::new();
        for change in changes {
            change.gone.iter().for_each(|id| drop(state.remove(id)));
            state.extend(change.come.iter().map(|id| (*id, i128::from(change.ts))));
        }
        state
    }

    /// Some rows that nobody has locked go, change and come.
    fn draw(&mut self, random: &mut StdRng) -> Change {
        let locked: HashSet<i64> = self
            .pending
            .iter()
            .flat_map(|c| c.gone.iter().chain(&c.come).copied())
            .collect();
        let state = self.at(u64::MAX);
        let mut living: Vec<i64> = state.keys().filter(|id| !locked.contains(id)).copied().collect();
        living.shuffle(random);
        let mut take = |most: usize| {
            let count = random.random_range(0..=most.min(living.len()));
            living.drain(..count).collect::<Vec<i64>>()
        };
        let (gone, changed) = (take(4), take(6));
        let mut free: Vec<i64> = (0..IDS)
            .filter(|id| !state.contains_key(id) && !locked.contains(id))
            .collect();
        free.shuffle(random);
        free.truncate(random.random_range(0..=8));
        self.clock += 1;
        Change {
            ts: self.clock,
            gone: [gone, changed.clone()].concat(),
            come: [changed, free].concat(),
        }
    }

    /// The next entry of the log: a new commit, or one that was pending for a while, or nothing.
    fn commit(&mut self, random: &mut StdRng) {
        match (random.random_range(0..8), self.pending.take()) {
            (0, None) => self.pending = Some(self.draw(random)),
            (0..=1, Some(pending)) => self.log.push(pending),
            (_, pending) => {
                self.pending = pending;
                let change = self.draw(random);
                self.log.push(change);
            }
        }
    }
}

/// One copy, which seals, compacts and crashes whenever it likes.
struct Copy {
    dir: tempfile::TempDir,
    store: ShardStore,
    watermark: u64,
}

impl Copy {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        Self {
            dir,
            store,
            watermark: 0,
        }
    }

    /// Everything in the log that is not applied.
    fn catch_up(store: &ShardStore, model: &Model, def: &Arc<TableDef>) {
        for index in store.applied().0 + 1..=model.log.len() as u64 {
            let change = &model.log[index as usize - 1];
            store
                .apply(LogIndex(index), Timestamp(change.ts), &change.writes(def))
                .unwrap();
        }
    }

    fn restart(&mut self, model: &Model, def: &Arc<TableDef>) {
        self.store = store(self.dir.path());
        self.store.sweep(&HashSet::new());
        Self::catch_up(&self.store, model, def);
    }

    /// Compacts some segments, whatever is picked or at random; the world goes on at every step, and ends at `crash`.
    fn compact(&mut self, model: &Mutex<Model>, def: &Arc<TableDef>, random: &mut StdRng, crash: Option<usize>) {
        let clock = model.lock().clock;
        self.watermark = random.random_range(self.watermark..=clock);
        let watermark = Timestamp(self.watermark);
        let eagerness = [Eagerness::Usual, Eagerness::Asked][random.random_range(0..2usize)];
        let job = match random.random_range(0..3) {
            0 => self.store.to_compact(def, watermark, eagerness),
            _ => self.any_job(def, watermark, random),
        };
        let Some(job) = job else { return };
        let (store, random, steps) = (self.store.clone(), Mutex::new(random), Mutex::new(0));
        let result = self.store.compact(&job, def, &pool(), &|step| {
            let mut steps = steps.lock();
            *steps += 1;
            if crash == Some(*steps) {
                return Err(Error::internal("crash"));
            }
            let random = &mut *random.lock();
            if random.random_bool(0.5) {
                let mut model = model.lock();
                model.commit(random);
                Self::catch_up(&store, &model, def);
            }
            // The manifest is in use when it was just written.
            if step != Step::Stored && random.random_bool(0.3) {
                store.seal(&tables(def)).unwrap();
            }
            Ok(())
        });
        match result {
            Ok(_) => {}
            Err(error) if error.message == "crash" => self.restart(&model.lock(), def),
            Err(error) => panic!("{error}"),
        }
    }

    fn any_job(&self, def: &Arc<TableDef>, watermark: Timestamp, random: &mut StdRng) -> Option<Job> {
        let known: HashSet<String> = {
            let manifest = self.store.inner.manifest.lock();
            manifest.segments.iter().map(|s| s.file.clone()).collect()
        };
        let version = self.store.table_version(def.id);
        let mut inputs: Vec<_> = version
            .segments
            .iter()
            .filter(|s| known.contains(&s.meta.file))
            .collect();
        inputs.shuffle(random);
        let count = random.random_range(0..=inputs.len().min(5));
        (count > 0).then(|| Job {
            table: def.id,
            watermark,
            reason: Reason::Small,
            inputs: inputs.into_iter().take(count).cloned().collect(),
        })
    }

    /// Reads at `ts` as the model says, or says that it is too old.
    fn check(&self, model: &Model, def: &Arc<TableDef>, ts: u64) {
        let all: Vec<i64> = (0..IDS).collect();
        let read = self
            .store
            .point_read(def, Timestamp(ts), &keys(&all), &[0, 2], Access::Disk);
        let digest = self.store.digest(def, Timestamp(ts));
        if Timestamp(ts) < self.store.table_version(def.id).watermark {
            assert!(self.watermark > ts, "refused without a reason");
            assert_eq!(read.unwrap_err().code, "72000");
            assert_eq!(digest.unwrap_err().code, "72000");
            return;
        }
        let (read, expected) = (read.unwrap().unwrap(), model.at(ts));
        let ids = read.column(0).as_primitive::<Int64Type>().values().to_vec();
        let prices = read.column(1).as_primitive::<Decimal128Type>().values().to_vec();
        let found: BTreeMap<i64, i128> = ids.iter().copied().zip(prices).collect();
        assert_eq!((found.len(), &found), (ids.len(), &expected), "at {ts}");
        assert_eq!(digest.unwrap(), model_digest(def, &expected), "digest at {ts}");
    }

    fn files(&self) -> HashSet<String> {
        files(self.dir.path())
    }
}

fn files(dir: &Path) -> HashSet<String> {
    let entries = std::fs::read_dir(dir.join("3-0/seg")).unwrap().flatten();
    entries.map(|e| e.file_name().into_string().unwrap()).collect()
}

/// Digest of rows that were never changed.
fn model_digest(def: &Arc<TableDef>, state: &BTreeMap<i64, i128>) -> (u128, u64) {
    let mut version = TableVersion::default();
    for (id, price) in state {
        let Write::Rows { batch, .. } = added(def, &[*id], *price) else {
            unreachable!("rows that come")
        };
        let first = version.next_position;
        version.next_position += 1;
        crate::storage::delta::push(&mut version.chunks, 0, first, batch, Timestamp(0)).unwrap();
    }
    digest::digest(def, &version, Timestamp(0)).unwrap()
}

#[test]
fn snapshots_that_may_be_read_see_the_same_rows_whatever_is_compacted() {
    for seed in 0..crate::storage::test_tables::seeds(30) {
        let mut random = StdRng::seed_from_u64(seed);
        let (def, model) = (table(20_000), Mutex::new(Model::default()));
        let mut copies = [Copy::new(), Copy::new()];
        let context = format!("seed {seed}");
        let run = std::panic::AssertUnwindSafe(|| {
            for _ in 0..60 {
                model.lock().commit(&mut random);
                for copy in &mut copies {
                    Copy::catch_up(&copy.store, &model.lock(), &def);
                    match random.random_range(0..12) {
                        0..=2 => drop(copy.store.seal(&tables(&def)).unwrap()),
                        3 => copy.restart(&model.lock(), &def),
                        4..=6 => copy.compact(&model, &def, &mut random, None),
                        7 => {
                            let crash = Some(random.random_range(1..6));
                            copy.compact(&model, &def, &mut random, crash);
                        }
                        8 => {
                            // The node's watermark only ascends, whoever uses it.
                            copy.watermark = random.random_range(copy.watermark..=model.lock().clock);
                            copy.store.inner.fold(Timestamp(copy.watermark), 1);
                        }
                        _ => {
                            let ts = random.random_range(0..=model.lock().clock);
                            copy.check(&model.lock(), &def, ts);
                        }
                    }
                }
            }
            let model = model.lock();
            for copy in &copies {
                Copy::catch_up(&copy.store, &model, &def);
                (0..=model.clock).for_each(|ts| copy.check(&model, &def, ts));
                assert_eq!(copy.store.statistics(&def).rows, model.at(u64::MAX).len() as u64);
                copy.store.check().unwrap();
            }
            for copy in &mut copies {
                vacuum(&copy.store, &def, model.clock);
                copy.watermark = model.clock;
                copy.check(&model, &def, model.clock);
                let version = copy.store.table_version(def.id);
                let stored: u64 = version.segments.iter().map(|s| s.meta.rows).sum();
                assert_eq!(
                    stored,
                    model.at(u64::MAX).len() as u64,
                    "no row is left that nobody sees"
                );
                copy.restart(&model, &def);
                copy.check(&model, &def, model.clock);
                assert_eq!(copy.files().len(), 2 * version.segments.len());
            }
        });
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("{context}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Everything that can go does.
fn vacuum(store: &ShardStore, def: &Arc<TableDef>, watermark: u64) -> super::Compacted {
    store.seal(&tables(def)).unwrap();
    let mut all = super::Compacted::default();
    while let Some(job) = store.to_compact(def, Timestamp(watermark), Eagerness::Asked) {
        match store.compact(&job, def, &pool(), &|_| Ok(())).unwrap() {
            Ended::Done(done) => all = all.and(done),
            other => panic!("{other:?}"),
        }
    }
    all
}

/// One segment of 1,000 rows, of which the first 300 went at 2 and the next 100 at 9, and one of 10 rows.
fn prepared(dir: &Path) -> (ShardStore, Arc<TableDef>) {
    let (store, def) = (store(dir), table(20_000));
    let ids: Vec<i64> = (0..1_000).collect();
    let apply = |index: u64, ts: u64, write: Write| store.apply(LogIndex(index), Timestamp(ts), &[write]).unwrap();
    apply(1, 1, added(&def, &ids, 1));
    store.seal(&tables(&def)).unwrap();
    apply(2, 2, removed(&def, &ids[..300]));
    apply(3, 9, removed(&def, &ids[300..400]));
    apply(4, 9, added(&def, &(2_000..2_010).collect::<Vec<_>>(), 1));
    store.seal(&tables(&def)).unwrap();
    (store, def)
}

/// What is on disk now, as a crash would leave it.
fn copied(dir: &Path) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => copy(&entry.path(), &to.join(entry.file_name())),
                false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
            }
        }
    }
    let target = tempfile::tempdir().unwrap();
    copy(dir, target.path());
    target
}

#[test]
fn a_crash_at_any_step_leaves_the_old_state_or_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let (running, def) = prepared(dir.path());
    let before = files(dir.path());
    let job = running.to_compact(&def, Timestamp(5), Eagerness::Usual).unwrap();
    assert_eq!((job.reason, job.inputs.len()), (Reason::Dead, 1));
    let crashes = Mutex::new(vec![]);
    let ended = running.compact(&job, &def, &pool(), &|step| {
        crashes.lock().push((step, copied(dir.path())));
        Ok(())
    });
    assert!(matches!(ended, Ok(Ended::Done(_))));
    let crashes = crashes.into_inner();
    let steps: Vec<Step> = crashes.iter().map(|c| c.0).collect();
    assert_eq!(steps, [Step::Rows(700), Step::Written, Step::Stored]);
    for (step, left) in crashes {
        assert!(
            files(left.path()).len() > before.len(),
            "{step:?}: there is something to sweep"
        );
        let reopened = store(left.path());
        reopened.sweep(&HashSet::new());
        let now = files(left.path());
        let count = |at| reopened.digest(&def, Timestamp(at)).map(|d| d.1);
        assert_eq!((count(9).unwrap(), count(5).unwrap()), (610, 700), "{step:?}");
        match step {
            Step::Stored => {
                assert!(now.len() == 4 && !before.is_subset(&now));
                assert_eq!(count(1).unwrap_err().code, "72000");
                let version = reopened.table_version(def.id);
                let dead = version
                    .segments
                    .iter()
                    .map(|s| version.deletes_of(s).map_or(0, |d| d.len()));
                assert_eq!(dead.sum::<usize>(), 100);
            }
            _ => assert!(now == before && count(1).unwrap() == 1_000, "{step:?}"),
        }
        reopened.check().unwrap();
        // The log goes on where it was.
        let next = removed(&def, &(400..500).collect::<Vec<_>>());
        reopened.apply(LogIndex(5), Timestamp(20), &[next]).unwrap();
        assert_eq!(reopened.digest(&def, Timestamp(20)).unwrap().1, 510, "{step:?}");
    }
}

#[test]
fn a_dropped_table_or_a_snapshot_overtakes_a_compaction() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (dropped, def) = prepared(dirs[0].path());
    let job = dropped.to_compact(&def, Timestamp(5), Eagerness::Usual).unwrap();
    let ended = dropped.compact(&job, &def, &pool(), &|step| match step {
        Step::Written => dropped.drop_table(def.id),
        _ => Ok(()),
    });
    assert_eq!(ended.unwrap(), Ended::Overtaken);
    drop(job);
    assert!(files(dirs[0].path()).is_empty() && dropped.tables().is_empty());
    // The same files under the same names, opened anew, are other segments.
    let (replaced, def) = prepared(dirs[1].path());
    let job = replaced.to_compact(&def, Timestamp(5), Eagerness::Usual).unwrap();
    let before = files(dirs[1].path());
    let ended = replaced.compact(&job, &def, &pool(), &|step| match step {
        Step::Written => {
            let snapshot = replaced.snapshot(&tables(&def))?;
            replaced.install_snapshot(&snapshot.manifest).map(drop)
        }
        _ => Ok(()),
    });
    assert_eq!(ended.unwrap(), Ended::Overtaken);
    assert_eq!(
        (files(dirs[1].path()), replaced.digest(&def, Timestamp(1)).unwrap().1),
        (before, 1_000)
    );
}

#[test]
fn readers_keep_what_they_hold_and_files_go_with_the_last_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let (store, def) = prepared(dir.path());
    let (held, old) = (store.table_version(def.id), files(dir.path()));
    let done = vacuum(&store, &def, 9);
    assert_eq!(
        (done.rows_removed, store.table_version(def.id).segments.len()),
        (400, 1)
    );
    assert!(old.is_subset(&files(dir.path())));
    assert_eq!(digest::digest(&def, &held, Timestamp(1)).unwrap().1, 1_000);
    assert_eq!(store.digest(&def, Timestamp(8)).unwrap_err().code, "72000");
    assert_eq!(store.digest(&def, Timestamp(9)).unwrap().1, 610);
    drop(held);
    assert_eq!(files(dir.path()).len(), 2);
    // A writer that read before is told that its rows changed, not that they did not.
    let row = removed(&def, &[700]);
    assert!(!store.unchanged_since(&row, Timestamp(8)).unwrap() && store.unchanged_since(&row, Timestamp(9)).unwrap());
}

#[test]
fn a_file_that_was_to_go_stays_when_a_snapshot_brings_it_back() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (ahead, def) = prepared(dirs[0].path());
    let snapshot = ahead.snapshot(&tables(&def)).unwrap();
    let behind = store(dirs[1].path());
    let fetch = || {
        for segment in &snapshot.files {
            if !behind.keep_segment(&segment.file) {
                let bytes = std::fs::read(ahead.segment_path(&segment.file).unwrap()).unwrap();
                let mut chunks = std::iter::once(Ok(bytes.into()));
                behind.install_segment(segment, &mut chunks).unwrap();
            }
        }
        behind.install_snapshot(&snapshot.manifest).unwrap();
    };
    fetch();
    let reader = behind.table_version(def.id);
    vacuum(&behind, &def, 9);
    assert_eq!(behind.digest(&def, Timestamp(1)).unwrap_err().code, "72000");
    // The copy fell behind, and its leader's files are those that it compacted away and a reader holds.
    fetch();
    drop(reader);
    assert_eq!(
        behind.digest(&def, Timestamp(1)).unwrap(),
        ahead.digest(&def, Timestamp(1)).unwrap()
    );
    behind.check().unwrap();
    vacuum(&behind, &def, 9);
    assert_eq!(files(dirs[1].path()).len(), 2);
}

#[test]
fn a_snapshot_taken_from_a_compacted_copy_carries_its_watermark() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (ahead, def) = prepared(dirs[0].path());
    let behind = store(dirs[1].path());
    vacuum(&ahead, &def, 5);
    let snapshot = ahead.snapshot(&tables(&def)).unwrap();
    for segment in &snapshot.files {
        let bytes = std::fs::read(ahead.segment_path(&segment.file).unwrap()).unwrap();
        let mut chunks = std::iter::once(Ok(bytes.into()));
        behind.install_segment(segment, &mut chunks).unwrap();
    }
    behind.install_snapshot(&snapshot.manifest).unwrap();
    for at in [5, 8, 9] {
        let digests = [&ahead, &behind].map(|s| s.digest(&def, Timestamp(at)).unwrap());
        assert_eq!(digests[0], digests[1]);
    }
    assert_eq!(behind.digest(&def, Timestamp(4)).unwrap_err().code, "72000");
}

#[test]
fn memory_that_is_not_there_and_a_stop_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, def) = prepared(dir.path());
    let before = files(dir.path());
    let job = store.to_compact(&def, Timestamp(9), Eagerness::Usual).unwrap();
    let little: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(1 << 20));
    let short = store.compact(&job, &def, &little, &|_| Ok(()));
    assert_eq!(short.unwrap_err().code, "53200");
    let stopped = store.compact(&job, &def, &pool(), &|_| Err(Error::cancelled("stop")));
    assert_eq!(stopped.unwrap_err().code, "57014");
    assert_eq!((files(dir.path()), little.reserved()), (before, 0));
}

#[test]
fn what_no_manifest_knows_is_not_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let (store, def) = prepared(dir.path());
    vacuum(&store, &def, 9);
    let ids: Vec<i64> = (400..1_000).collect();
    store.apply(LogIndex(5), Timestamp(20), &[removed(&def, &ids)]).unwrap();
    let job = store.to_compact(&def, Timestamp(30), Eagerness::Usual).unwrap();
    assert_eq!(
        store.compact(&job, &def, &pool(), &|_| Ok(())).unwrap(),
        Ended::Unsealed
    );
    // The removal is replayed from the log, so its rows must be there.
    let again = crate::storage::test_tables::store(dir.path());
    again.apply(LogIndex(5), Timestamp(20), &[removed(&def, &ids)]).unwrap();
    assert_eq!(again.digest(&def, Timestamp(20)).unwrap().1, 10);
    again.seal(&tables(&def)).unwrap();
    let job = again.to_compact(&def, Timestamp(30), Eagerness::Usual).unwrap();
    let Ended::Done(done) = again.compact(&job, &def, &pool(), &|_| Ok(())).unwrap() else {
        panic!("not done")
    };
    assert_eq!((done.rows_removed, done.files_after), (600, 1));
}

/// Segments of so many rows each, by key ranges.
fn segments(dir: &Path, ranges: &[std::ops::Range<i64>], step: usize) -> (ShardStore, Arc<TableDef>) {
    let (store, def) = (store(dir), table(20_000));
    for (number, range) in ranges.iter().enumerate() {
        let ids: Vec<i64> = range.clone().step_by(step).map(|id| id + number as i64).collect();
        let at = number as u64 + 1;
        store
            .apply(LogIndex(at), Timestamp(at), &[added(&def, &ids, 1)])
            .unwrap();
        store.seal(&tables(&def)).unwrap();
    }
    (store, def)
}

#[test]
fn small_and_overlapping_segments_are_merged_in_order() {
    let check = |ranges: &[std::ops::Range<i64>], step: usize, expected: Option<(Reason, usize)>| {
        let dir = tempfile::tempdir().unwrap();
        let (store, def) = segments(dir.path(), ranges, step);
        let job = store.to_compact(&def, Timestamp(0), Eagerness::Usual);
        assert_eq!(job.as_ref().map(|j| (j.reason, j.inputs.len())), expected);
        let Some(job) = job else { return };
        let last = Timestamp(ranges.len() as u64);
        let before = store.digest(&def, last).unwrap();
        store.compact(&job, &def, &pool(), &|_| Ok(())).unwrap();
        assert_eq!(store.digest(&def, last).unwrap(), before);
        // Without a watermark every snapshot can still be read.
        assert_eq!(
            store.digest(&def, Timestamp(1)).unwrap().1,
            (ranges[0].clone().step_by(step).len()) as u64
        );
        assert!(
            store.to_compact(&def, Timestamp(0), Eagerness::Usual).is_none(),
            "merged for ever"
        );
        let version = store.table_version(def.id);
        for segment in &version.segments {
            let batches = segment.all_rows(&def, (0..segment.row_groups().unwrap().len()).collect());
            let ids = batches
                .unwrap()
                .flat_map(|b| b.unwrap().0.column(0).as_primitive::<Int64Type>().values().to_vec());
            assert!(ids.collect::<Vec<_>>().is_sorted());
        }
    };
    check(&[0..10, 10..20, 20..30], 1, None);
    check(&[0..10, 10..20, 20..30, 30..40], 1, Some((Reason::Small, 4)));
    // Three classes of size, three of each.
    let mixed = [
        0..10,
        10..20,
        20..30,
        100..200,
        200..300,
        300..400,
        1_000..3_000,
        3_000..5_000,
        5_000..7_000,
    ];
    check(&mixed, 1, None);
    // Twelve that overlap: three of each of four classes, so that none is merged for its size.
    let lengths = [20, 20, 20, 100, 100, 100, 400, 400, 400, 1_500, 1_500, 1_500];
    let wide: Vec<_> = lengths.iter().map(|n| 0..n * 16).collect();
    check(&wide, 16, Some((Reason::Overlap, 12)));
    // As many that only touch: the column has few values.
    let dir = tempfile::tempdir().unwrap();
    let (store, def) = segments(dir.path(), &wide, 16);
    let mut clustered = TableDef::clone(&def);
    clustered.cluster_by = vec![2];
    assert!(store.to_compact(&clustered, Timestamp(0), Eagerness::Usual).is_none());
}

#[test]
fn a_segment_of_several_runs_comes_out_sorted() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let store = store(dir.path());
    let mut ids: Vec<i64> = (0..150_000).collect();
    ids.shuffle(&mut StdRng::seed_from_u64(7));
    let mut load = store.stage(&def);
    load.write(&rows(&def, &ids[..140_000])).unwrap();
    load.write(&rows(&def, &ids[140_000..])).unwrap();
    let load = Write::Staged {
        table: def.clone(),
        segments: load.finish().unwrap(),
    };
    store.apply(LogIndex(1), Timestamp(1), &[load]).unwrap();
    store
        .apply(LogIndex(2), Timestamp(2), &[removed(&def, &ids[..10])])
        .unwrap();
    // Not in a manifest yet: the log still names its file.
    assert!(store.to_compact(&def, Timestamp(2), Eagerness::Asked).is_none());
    let done = vacuum(&store, &def, 2);
    assert_eq!((done.rows_removed, done.files_after), (10, 1));
    let version = store.table_version(def.id);
    let segment = &version.segments[0];
    assert_eq!(
        (segment.meta.min_cts, segment.meta.max_cts),
        (Timestamp(1), Timestamp(1))
    );
    let batches = segment.all_rows(&def, (0..segment.row_groups().unwrap().len()).collect());
    let found = batches
        .unwrap()
        .flat_map(|b| b.unwrap().0.column(0).as_primitive::<Int64Type>().values().to_vec());
    let mut expected = ids.split_off(10);
    expected.sort_unstable();
    assert_eq!(found.collect::<Vec<_>>(), expected);
}
