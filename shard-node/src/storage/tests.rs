//! The store as a whole against a simple model, and its edges.

use crate::storage::shard_store::{ShardStore, Write};
use crate::storage::staging::StageWriter;
use crate::storage::test_tables::{SHARD, identity, rows, store, table};
use crate::storage::wal::{EntryKind, LogRecord, Record, Wal};
use crate::storage::{Access, Going};
use bytes::Bytes;
use datafusion::arrow::array::{AsArray, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, Schema};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::{Epoch, LogIndex, TableId, Timestamp, v1};

fn inline(def: &Arc<TableDef>, ids: &[i64]) -> Write {
    Write::Rows {
        table: def.clone(),
        batch: rows(def, ids),
    }
}

fn staged(def: &Arc<TableDef>, segments: Vec<v1::SegmentRef>) -> Write {
    Write::Staged {
        table: def.clone(),
        segments,
    }
}

fn write_all(mut writer: StageWriter, def: &TableDef, batches: &[&[i64]]) -> Vec<v1::SegmentRef> {
    batches.iter().for_each(|ids| writer.write(&rows(def, ids)).unwrap());
    writer.finish().unwrap()
}

fn tables(def: &Arc<TableDef>) -> impl Fn(TableId) -> Option<Arc<TableDef>> + use<> {
    let def = def.clone();
    move |id| (id == def.id).then(|| def.clone())
}

fn key_batch(ids: &[i64]) -> RecordBatch {
    let schema = Schema::new(vec![Field::new("id", DataType::Int64, false)]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(Int64Array::from(ids.to_vec()))]).unwrap()
}

fn read_ids(store: &ShardStore, def: &TableDef, ts: u64, ids: &[i64]) -> Vec<i64> {
    let read = |access| {
        store
            .point_read(def, Timestamp(ts), &key_batch(ids), &[0], access)
            .unwrap()
    };
    let found = read(Access::Disk).unwrap();
    assert!(read(Access::Memory).is_none_or(|cached| cached == found));
    found.column(0).as_primitive::<Int64Type>().values().to_vec()
}

/// What was committed: index -> (timestamp, ids, staged segments).
type Committed = BTreeMap<u64, (u64, Vec<i64>, Option<Vec<v1::SegmentRef>>)>;

/// Applies one entry of the model.
fn apply(store: &ShardStore, def: &Arc<TableDef>, index: u64, entry: &(u64, Vec<i64>, Option<Vec<v1::SegmentRef>>)) {
    let write = match &entry.2 {
        Some(segments) => staged(def, segments.clone()),
        None => inline(def, &entry.1),
    };
    store.apply(LogIndex(index), Timestamp(entry.0), &[write]).unwrap();
}

/// Copies a staged file from one store to another in small chunks.
fn ship(from: &ShardStore, to: &ShardStore, segment: &v1::SegmentRef) {
    let bytes = std::fs::read(from.segment_path(&segment.file).unwrap()).unwrap();
    let mut chunks = bytes.chunks(1_000).map(|c| Ok(Bytes::copy_from_slice(c)));
    to.install_segment(segment, &mut chunks).unwrap();
}

/// Digest of the model's rows visible at `ts`, by a fresh store that got them in one piece.
fn expected_digest(def: &Arc<TableDef>, committed: &Committed, ts: u64) -> (u128, u64) {
    let dir = tempfile::tempdir().unwrap();
    let model = store(dir.path());
    let ids: Vec<i64> = committed
        .values()
        .filter(|(t, _, _)| *t <= ts)
        .flat_map(|(_, ids, _)| ids.clone())
        .collect();
    model.apply(LogIndex(1), Timestamp(1), &[inline(def, &ids)]).unwrap();
    model.digest(def, Timestamp(1)).unwrap()
}

/// Random inserts, loads, seals and restarts on two copies that seal at different times; the log is real.
fn simulate(seed: u64, steps: usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let (dirs, def) = (
        [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()],
        table(20_000),
    );
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (mut wal, _) = Wal::open(&dirs[0].path().join("wal"), &identity()).unwrap();
    let mut stores = [store(dirs[0].path()), store(dirs[1].path())];
    let mut committed = Committed::new();
    let mut fresh: Vec<i64> = (0..200_000).collect();
    fresh.shuffle(&mut random);
    for _ in 0..steps {
        match random.random_range(0..10) {
            0..=5 => {
                let index = committed.len() as u64 + 1;
                let count = *[1, 3, 40, 700].get(random.random_range(0..4usize)).unwrap();
                let ids = fresh.split_off(fresh.len() - count);
                let segments = random
                    .random_bool(0.3)
                    .then(|| write_all(stores[0].stage(&def), &def, &[&ids]));
                segments.iter().flatten().for_each(|s| ship(&stores[0], &stores[1], s));
                // Two-phase commits may apply out of timestamp order.
                let entry = (index * 10 + random.random_range(0..25), ids, segments);
                let record = LogRecord {
                    epoch: Epoch(1),
                    index: LogIndex(index),
                    kind: EntryKind::Commit,
                    payload: Bytes::new(),
                };
                runtime
                    .block_on(wal.append(vec![Record::Entry { shard: SHARD, record }]))
                    .unwrap();
                stores.iter().for_each(|s| apply(s, &def, index, &entry));
                let again = inline(&def, &entry.1[..1]);
                assert!(
                    stores
                        .iter()
                        .all(|s| s.unique_conflict(&again, &Going::default()).unwrap().is_some()),
                    "seed {seed}"
                );
                committed.insert(index, entry);
            }
            6 => {
                let copy = random.random_range(0..2usize);
                let sealed = stores[copy].seal(&tables(&def)).unwrap();
                if copy == 0
                    && let Some(checkpoint) = sealed
                {
                    assert_eq!(checkpoint, stores[0].applied());
                    wal.release(SHARD, checkpoint);
                }
            }
            7 => {
                wal.close();
                wal = Wal::open(&dirs[0].path().join("wal"), &identity()).unwrap().0;
                for (copy, dir) in dirs.iter().enumerate() {
                    stores[copy] = store(dir.path());
                    let from = stores[copy].checkpoint();
                    assert!(wal.first(SHARD).0 <= from.0 + 1, "seed {seed}");
                    committed
                        .range(from.0 + 1..)
                        .for_each(|(index, entry)| apply(&stores[copy], &def, *index, entry));
                    stores[copy].sweep(&Going::default());
                }
                assert_eq!(wal.last(SHARD).1.0, committed.len() as u64, "seed {seed}");
            }
            _ => {
                let ts = random.random_range(0..committed.len() as u64 * 10 + 30);
                let expected = expected_digest(&def, &committed, ts);
                stores
                    .iter()
                    .for_each(|s| assert_eq!(s.digest(&def, Timestamp(ts)).unwrap(), expected, "seed {seed} at {ts}"));
                let (sample, visible) = sample(&committed, ts, &mut random);
                stores
                    .iter()
                    .for_each(|s| assert_eq!(read_ids(s, &def, ts, &sample), visible, "seed {seed} at {ts}"));
            }
        }
    }
    let new = inline(&def, &fresh[..5]);
    assert!(
        stores
            .iter()
            .all(|s| s.unique_conflict(&new, &Going::default()).unwrap().is_none())
    );
    assert!(
        stores
            .iter()
            .all(|s| s.statistics(&def).rows == committed.values().map(|c| c.1.len() as u64).sum::<u64>())
    );
}

/// Some ids, among them unknown ones, and those of them visible at `ts`.
fn sample(committed: &Committed, ts: u64, random: &mut StdRng) -> (Vec<i64>, Vec<i64>) {
    let mut picked: Vec<(i64, bool)> = vec![(-1, false), (1_000_000, false)];
    for (time, ids, _) in committed.values() {
        picked.push((ids[random.random_range(0..ids.len())], *time <= ts));
    }
    picked.shuffle(random);
    picked.truncate(12);
    (
        picked.iter().map(|p| p.0).collect(),
        picked.iter().filter(|p| p.1).map(|p| p.0).collect(),
    )
}

#[test]
fn behaves_like_a_model() {
    (0..6).for_each(|seed| simulate(seed, 60));
}

#[test]
fn loads_are_sorted_split_and_complete() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let store = store(dir.path());
    // In order, then out of order, then behind everything.
    let segments = write_all(
        store.stage(&def),
        &def,
        &[&[1, 2, 3], &[4, 5], &[9, 7, 8], &[6], &[20, 21]],
    );
    assert_eq!(segments.iter().map(|s| s.rows).sum::<u64>(), 11);
    assert_eq!(
        store.digest(&def, Timestamp::MAX).unwrap().1,
        0,
        "staged rows are invisible"
    );
    store
        .apply(LogIndex(1), Timestamp(5), &[staged(&def, segments)])
        .unwrap();
    assert_eq!(store.digest(&def, Timestamp(4)).unwrap().1, 0);
    let ids = [1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 21];
    assert_eq!(read_ids(&store, &def, 5, &ids), ids);
    let statistics = store.statistics(&def);
    assert_eq!(
        (
            statistics.rows,
            statistics.columns[0].distinct,
            statistics.columns[1].nulls
        ),
        (11, 11, 2)
    );
    assert!(!statistics.columns[2].min.is_empty());
}

#[test]
fn clustered_rows_are_stored_by_value() {
    let clustered = |id| {
        let mut def = TableDef::clone(&table(id));
        def.cluster_by = vec![2];
        Arc::new(def)
    };
    // Prices go round every thousand ids: each 16 Ki rows as they come have all of them.
    let (dir, def) = (tempfile::tempdir().unwrap(), clustered(20_000));
    let store = store(dir.path());
    let ids: Vec<i64> = (0..50_000).collect();
    let parts: Vec<&[i64]> = ids.chunks(7_000).collect();
    let segments = write_all(store.stage(&def), &def, &parts);
    assert_eq!(segments.len(), 1);
    let prices = price_ranges(dir.path());
    assert_eq!(prices.len(), 4, "{prices:?}");
    assert!(prices.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{prices:?}");
    store
        .apply(LogIndex(1), Timestamp(5), &[staged(&def, segments)])
        .unwrap();
    assert_eq!(read_ids(&store, &def, 5, &[0, 49_999, 50_000]), [0, 49_999]);
    // What comes in small pieces is sorted so when it leaves the delta.
    let (dir, def) = (tempfile::tempdir().unwrap(), clustered(20_000));
    let store = self::store(dir.path());
    for (at, ids) in ids.chunks(10_000).enumerate() {
        let at = at as u64 + 1;
        store.apply(LogIndex(at), Timestamp(at), &[inline(&def, ids)]).unwrap();
    }
    store.seal(&|_| Some(def.clone())).unwrap();
    let prices = price_ranges(dir.path());
    assert_eq!(prices.len(), 4, "{prices:?}");
    assert!(prices.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{prices:?}");
}

/// Least and greatest price of each row group of the only segment below `dir`.
fn price_ranges(dir: &std::path::Path) -> Vec<(i64, i64)> {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::file::statistics::Statistics;
    let mut folders = vec![dir.to_path_buf()];
    let mut files = vec![];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            match entry.extension().and_then(|e| e.to_str()) {
                _ if entry.is_dir() => folders.push(entry),
                Some("parquet") => files.push(entry),
                _ => {}
            }
        }
    }
    let [file] = &files[..] else { panic!("{files:?}") };
    let reader = SerializedFileReader::new(std::fs::File::open(file).unwrap()).unwrap();
    let groups = reader.metadata().row_groups().iter();
    let range = |statistics: &Statistics| match statistics {
        Statistics::Int64(s) => (*s.min_opt().unwrap(), *s.max_opt().unwrap()),
        other => panic!("{other:?}"),
    };
    groups
        .map(|group| range(group.column(2).statistics().unwrap()))
        .collect()
}

#[test]
fn duplicates_are_found_wherever_they_are() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let store = store(dir.path());
    let first: Vec<i64> = (0..3_000).collect();
    let loaded = write_all(store.stage(&def), &def, &[&first]);
    store
        .apply(
            LogIndex(1),
            Timestamp(5),
            &[staged(&def, loaded.clone()), inline(&def, &[5_000, 5_001])],
        )
        .unwrap();
    let conflict = |write: &Write| {
        let found = store.unique_conflict(write, &Going::default()).unwrap();
        found.map(|found| found.detail)
    };
    assert_eq!(
        conflict(&inline(&def, &[9_000, 9_000])).unwrap(),
        "Key (id)=(9000) already exists."
    );
    assert_eq!(
        conflict(&inline(&def, &[9_000, 5_001])).unwrap(),
        "Key (id)=(5001) already exists."
    );
    assert_eq!(
        conflict(&inline(&def, &[9_000, 2_999])).unwrap(),
        "Key (id)=(2999) already exists."
    );
    assert_eq!(conflict(&inline(&def, &[3_000, 4_999])), None);
    let load = |batches: &[&[i64]]| staged(&def, write_all(store.stage(&def), &def, batches));
    assert_eq!(
        conflict(&load(&[&[7_000, 7_001], &[7_001]])).unwrap(),
        "Key (id)=(7001) already exists."
    );
    assert_eq!(
        conflict(&load(&[&[6_000, 5_000]])).unwrap(),
        "Key (id)=(5000) already exists."
    );
    assert_eq!(
        conflict(&load(&[&[2_500, 8_000]])).unwrap(),
        "Key (id)=(2500) already exists."
    );
    assert_eq!(conflict(&load(&[&[8_000, 3_500, 4_999]])), None);
    assert!(conflict(&load(&[&first])).is_some());
    let twice = [
        write_all(store.stage(&def), &def, &[&[7_500]]),
        write_all(store.stage(&def), &def, &[&[7_500]]),
    ]
    .concat();
    assert_eq!(
        conflict(&staged(&def, twice)).unwrap(),
        "Key (id)=(7500) already exists."
    );
    store.seal(&tables(&def)).unwrap();
    assert_eq!(
        conflict(&inline(&def, &[5_000])).unwrap(),
        "Key (id)=(5000) already exists."
    );
}

#[test]
fn null_in_not_null_column_is_refused() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let store = store(dir.path());
    let mut loose = TableDef::clone(&def);
    loose.columns[0].nullable = true;
    let mut columns = rows(&def, &[1]).columns().to_vec();
    columns[0] = Arc::new(Int64Array::from(vec![None::<i64>]));
    let batch = RecordBatch::try_new(loose.arrow_schema(), columns).unwrap();
    assert_eq!(store.stage(&def).write(&batch).unwrap_err().code, "23502");
    assert_eq!(
        store
            .unique_conflict(&Write::Rows { table: def, batch }, &Going::default())
            .unwrap_err()
            .code,
        "23502"
    );
}

#[test]
fn aborted_and_forgotten_files_go() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let files = |dir: &Path| std::fs::read_dir(dir.join("3-0/seg")).unwrap().count();
    let opened = store(dir.path());
    drop(opened.stage(&def));
    let mut unfinished = opened.stage(&def);
    unfinished.write(&rows(&def, &[1, 2])).unwrap();
    drop(unfinished);
    assert_eq!(files(dir.path()), 0);
    let load = |ids: &[i64]| write_all(opened.stage(&def), &def, &[ids]);
    let (visible, prepared, lost, aborted) = (load(&[1]), load(&[2]), load(&[3]), load(&[4]));
    opened
        .apply(LogIndex(1), Timestamp(1), &[staged(&def, visible.clone())])
        .unwrap();
    opened.discard(&[
        aborted[0].file.clone(),
        visible[0].file.clone(),
        "../../etc/passwd".into(),
    ]);
    assert_eq!(files(dir.path()), 6);
    opened.seal(&tables(&def)).unwrap();
    drop(opened);
    let reopened = store(dir.path());
    assert_eq!(reopened.checkpoint(), LogIndex(1));
    reopened.sweep(&HashSet::from([prepared[0].file.clone()]));
    assert!(reopened.has_segment(&prepared[0].file) && !reopened.has_segment(&lost[0].file));
    let reader = reopened.version();
    reopened.drop_table(def.id).unwrap();
    assert!(reopened.has_segment(&visible[0].file), "a reader holds it");
    drop(reader);
    assert!(!reopened.has_segment(&visible[0].file));
    drop(reopened);
    assert_eq!(store(dir.path()).digest(&def, Timestamp::MAX).unwrap(), (0, 0));
}

#[test]
fn snapshots_replace_everything() {
    let (dirs, def) = (
        [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()],
        table(20_000),
    );
    let (ahead, behind) = (store(dirs[0].path()), store(dirs[1].path()));
    ahead
        .apply(LogIndex(7), Timestamp(3), &[inline(&def, &[1, 2, 3])])
        .unwrap();
    ahead.apply(LogIndex(8), Timestamp(4), &[inline(&def, &[4])]).unwrap();
    behind.apply(LogIndex(2), Timestamp(1), &[inline(&def, &[77])]).unwrap();
    behind.seal(&tables(&def)).unwrap();
    let snapshot = ahead.snapshot(&tables(&def)).unwrap();
    assert_eq!(
        behind.install_snapshot(&snapshot.manifest).unwrap_err().code,
        "XX001",
        "its files are not here yet"
    );
    let mut damaged = std::fs::read(ahead.segment_path(&snapshot.files[0].file).unwrap()).unwrap();
    damaged[100] ^= 1;
    let refused = behind.install_segment(&snapshot.files[0], &mut std::iter::once(Ok(Bytes::from(damaged))));
    assert_eq!(refused.unwrap_err().code, "XX001");
    snapshot.files.iter().for_each(|f| ship(&ahead, &behind, f));
    assert_eq!(behind.install_snapshot(&snapshot.manifest).unwrap(), LogIndex(8));
    drop(behind);
    let behind = store(dirs[1].path());
    for ts in [3, 4] {
        assert_eq!(
            behind.digest(&def, Timestamp(ts)).unwrap(),
            ahead.digest(&def, Timestamp(ts)).unwrap()
        );
    }
    assert_eq!(
        (behind.applied(), read_ids(&behind, &def, 4, &[77, 4])),
        (LogIndex(8), vec![4])
    );
    assert!(
        behind
            .unique_conflict(&inline(&def, &[2]), &Going::default())
            .unwrap()
            .is_some(),
        "the sidecar was rebuilt"
    );
}

#[test]
fn rows_read_by_key_before_are_in_memory() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let cache = crate::storage::MetadataCache::new(1 << 20, crate::storage::ColumnCache::new(8 << 20));
    let opened = ShardStore::open(dir.path(), SHARD, &identity(), cache).unwrap();
    let ids: Vec<i64> = (0..3_000).collect();
    opened.apply(LogIndex(1), Timestamp(1), &[inline(&def, &ids)]).unwrap();
    opened.seal(&tables(&def)).unwrap();
    opened
        .apply(LogIndex(2), Timestamp(2), &[inline(&def, &[5_000])])
        .unwrap();
    let read = |ids: &[i64], access| {
        let read = opened.point_read(&def, Timestamp::MAX, &key_batch(ids), &[0, 2], access);
        read.unwrap()
    };
    assert_eq!(read(&[5_000], Access::Memory), read(&[5_000], Access::Disk));
    assert_eq!(read(&[7], Access::Memory), None, "nothing of the segment was read yet");
    let row = read(&[7], Access::Disk);
    assert_eq!(row.as_ref().map(RecordBatch::num_rows), Some(1));
    assert_eq!(read(&[7], Access::Memory), row);
    // The same block of rows, but perhaps another block of keys.
    let others = read(&[2_999, 9_999, 8], Access::Disk);
    assert_eq!(others.as_ref().map(RecordBatch::num_rows), Some(2));
    assert_eq!(read(&[2_999, 9_999, 8], Access::Memory), others);
}

#[test]
fn missing_or_damaged_files_are_refused_at_open() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let opened = store(dir.path());
    opened.apply(LogIndex(1), Timestamp(1), &[inline(&def, &[1])]).unwrap();
    opened.seal(&tables(&def)).unwrap();
    let path = opened.version().tables[&def.id].segments[0].path.clone();
    drop(opened);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[1..]).unwrap();
    let cache = crate::storage::MetadataCache::new(1 << 20, crate::storage::ColumnCache::new(0));
    assert_eq!(
        ShardStore::open(dir.path(), SHARD, &identity(), cache.clone())
            .unwrap_err()
            .code,
        "XX001"
    );
    // A flipped bit keeps the size: it is met when read, as an error.
    for at in (0..bytes.len()).step_by(13) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        std::fs::write(&path, flipped).unwrap();
        let opened = store(dir.path());
        assert_eq!(opened.digest(&def, Timestamp::MAX).unwrap_err().code, "XX001");
        let read = opened.point_read(&def, Timestamp::MAX, &key_batch(&[1]), &[1, 2, 3, 4], Access::Disk);
        assert_eq!(read.unwrap_err().code, "XX001");
        assert_eq!(opened.statistics(&def).rows, 1);
    }
}

#[test]
fn applies_and_reads_go_on_while_sealing() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let opened = store(dir.path());
    let entries: Committed = (1..=60)
        .map(|index| {
            let ids: Vec<i64> = (index as i64 * 100..index as i64 * 100 + 50).collect();
            let segments = (index % 4 == 0).then(|| write_all(opened.stage(&def), &def, &[&ids]));
            (index, (index, ids, segments))
        })
        .collect();
    std::thread::scope(|scope| {
        let (opened, def) = (&opened, &def);
        let applied = scope.spawn(|| {
            entries
                .iter()
                .for_each(|(index, entry)| apply(opened, def, *index, entry))
        });
        let sealer = scope.spawn(move || {
            while !applied.is_finished() {
                opened.seal(&tables(def)).unwrap();
            }
        });
        while !sealer.is_finished() {
            // One version is one log position, wherever its rows are, and a point read finds what that position holds.
            let seen = opened.applied().0;
            let rows = opened.digest(def, Timestamp(seen)).unwrap().1;
            assert_eq!(rows, seen * 50);
            let ids: Vec<i64> = (1..=seen as i64).map(|index| index * 100 + 7).collect();
            assert_eq!(read_ids(opened, def, seen, &ids), ids);
        }
    });
    let expected = opened.digest(&def, Timestamp::MAX).unwrap();
    assert_eq!(expected, expected_digest(&def, &entries, u64::MAX));
    drop(opened);
    let reopened = store(dir.path());
    let from = reopened.checkpoint().0;
    entries
        .range(from + 1..)
        .for_each(|(index, entry)| apply(&reopened, &def, *index, entry));
    assert_eq!(
        reopened.digest(&def, Timestamp::MAX).unwrap(),
        expected,
        "replayed after {from}"
    );
}
