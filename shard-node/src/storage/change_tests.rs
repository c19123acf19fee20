//! Rows that are added, replaced and removed, on two copies that seal whenever they like, against a map per timestamp.

use crate::storage::shard_store::{ShardStore, Write};
use crate::storage::test_tables::{added, keys, removed, rows, store, table};
use crate::storage::{Access, Going, deletes_file};
use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{Decimal128Type, Int64Type};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::{LogIndex, TableId, Timestamp};

/// Id and price of every row.
type State = BTreeMap<i64, i128>;

fn tables(def: &Arc<TableDef>) -> impl Fn(TableId) -> Option<Arc<TableDef>> + use<> {
    let def = def.clone();
    move |id| (id == def.id).then(|| def.clone())
}

fn read(store: &ShardStore, def: &TableDef, ts: u64, ids: &[i64]) -> State {
    let found = store
        .point_read(def, Timestamp(ts), &keys(ids), &[0, 2], Access::Disk)
        .unwrap()
        .unwrap();
    let ids = found.column(0).as_primitive::<Int64Type>().values().to_vec();
    let prices = found.column(1).as_primitive::<Decimal128Type>().values().to_vec();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "a key twice");
    ids.into_iter().zip(prices).collect()
}

/// One commit: some rows go, some change, some come; now and then all go first.
fn commit(random: &mut StdRng, state: &mut State, def: &Arc<TableDef>, ts: u64) -> Vec<Write> {
    let mut writes = vec![];
    if random.random_bool(0.1) {
        writes.push(Write::Truncated { table: def.clone() });
        state.clear();
    }
    let mut living: Vec<i64> = state.keys().copied().collect();
    living.shuffle(random);
    let gone: Vec<i64> = living.drain(..random.random_range(0..=3.min(living.len()))).collect();
    let changed: Vec<i64> = living.drain(..random.random_range(0..=4.min(living.len()))).collect();
    let free: Vec<i64> = (0..60).filter(|id| !state.contains_key(id)).collect();
    let new: Vec<i64> = free.choose_multiple(random, 5).copied().collect();
    for id in &gone {
        state.remove(id);
    }
    let come = [changed.clone(), new].concat();
    for id in &come {
        state.insert(*id, ts.into());
    }
    let going = [gone, changed].concat();
    if !going.is_empty() {
        writes.push(removed(def, &going));
    }
    if !come.is_empty() {
        writes.push(added(def, &come, ts.into()));
    }
    writes
}

#[test]
fn copies_that_seal_at_different_times_agree_at_every_timestamp() {
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(seed);
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let def = table(20_000);
        let mut stores = [store(dirs[0].path()), store(dirs[1].path())];
        let mut history = vec![State::new()];
        let mut log: Vec<Vec<Write>> = vec![vec![]];
        for ts in 1..=60u64 {
            let mut state = history.last().unwrap().clone();
            log.push(commit(&mut random, &mut state, &def, ts));
            history.push(state);
            for (copy, dir) in stores.iter_mut().zip(&dirs) {
                copy.apply(LogIndex(ts), Timestamp(ts), &log[ts as usize]).unwrap();
                match random.random_range(0..10) {
                    0 | 1 => drop(copy.seal(&tables(&def)).unwrap()),
                    // The log is replayed from the checkpoint.
                    2 => {
                        *copy = store(dir.path());
                        for again in copy.checkpoint().0 + 1..=ts {
                            copy.apply(LogIndex(again), Timestamp(again), &log[again as usize])
                                .unwrap();
                        }
                    }
                    _ => {}
                }
            }
        }
        let all: Vec<i64> = (0..60).collect();
        for (ts, state) in history.iter().enumerate() {
            let digests = stores.each_ref().map(|s| s.digest(&def, Timestamp(ts as u64)).unwrap());
            assert_eq!(digests[0], digests[1], "seed {seed}, timestamp {ts}");
            assert_eq!(digests[0].1, state.len() as u64, "seed {seed}, timestamp {ts}");
            for copy in &stores {
                assert_eq!(read(copy, &def, ts as u64, &all), *state, "seed {seed}, timestamp {ts}");
            }
        }
        let rows = stores.each_ref().map(|s| s.statistics(&def).rows);
        assert_eq!(rows, [history.last().unwrap().len() as u64; 2]);
        stores.iter().for_each(|s| s.check().unwrap());
    }
}

#[test]
fn only_rows_that_are_there_and_unchanged_may_go() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let store = store(dir.path());
    let apply = |index: u64, writes: &[Write]| store.apply(LogIndex(index), Timestamp(index * 10), writes).unwrap();
    apply(1, &[added(&def, &[1, 2, 3], 0)]);
    store.seal(&tables(&def)).unwrap();
    apply(2, &[removed(&def, &[2]), added(&def, &[2], 5)]);
    apply(3, &[removed(&def, &[3])]);
    let unchanged = |ids: &[i64], ts| store.unchanged_since(&removed(&def, ids), Timestamp(ts)).unwrap();
    assert!(unchanged(&[1], 10) && unchanged(&[1, 2], 20));
    // Changed since, gone since, never there, not yet there.
    for (ids, ts) in [(&[2], 19), (&[3], 99), (&[4], 99), (&[1], 9)] {
        assert!(!unchanged(ids, ts), "{ids:?} at {ts}");
    }
    let missing = store.apply(LogIndex(4), Timestamp(40), &[removed(&def, &[3])]);
    assert_eq!(
        (missing.unwrap_err().code.as_str(), store.applied()),
        ("XX001", LogIndex(3))
    );
    // A key is free once its row went, or goes in the same write.
    let none = Going::default();
    let conflict = |id: i64, gone: &Going| store.unique_conflict(&added(&def, &[id], 1), gone).unwrap();
    let mut two = Going::default();
    two.add(&removed(&def, &[2])).unwrap();
    assert!(conflict(3, &none).is_none() && conflict(2, &two).is_none());
    let found = |id| conflict(id, &none).map(|found| (found.detail, found.since));
    let expected = |id: i64, since| Some((format!("Key (id)=({id}) already exists."), Some(Timestamp(since))));
    assert_eq!((found(1), found(2)), (expected(1, 10), expected(2, 20)));
    let mut load = store.stage(&def);
    load.write(&rows(&def, &[3, 9])).unwrap();
    let load = Write::Staged {
        table: def.clone(),
        segments: load.finish().unwrap(),
    };
    assert!(store.unique_conflict(&load, &none).unwrap().is_none());
    store.seal(&tables(&def)).unwrap();
    assert!(store.unique_conflict(&load, &none).unwrap().is_none());
    assert!(conflict(3, &none).is_none() && unchanged(&[2], 20));
}

#[test]
fn removed_rows_travel_with_a_snapshot_and_go_with_their_table() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let def = table(20_000);
    let (ahead, behind) = (store(dirs[0].path()), store(dirs[1].path()));
    let ids: Vec<i64> = (0..1_000).collect();
    ahead.apply(LogIndex(1), Timestamp(1), &[added(&def, &ids, 0)]).unwrap();
    ahead.seal(&tables(&def)).unwrap();
    ahead
        .apply(LogIndex(2), Timestamp(2), &[removed(&def, &ids[10..20])])
        .unwrap();
    let snapshot = ahead.snapshot(&tables(&def)).unwrap();
    for segment in &snapshot.files {
        let bytes = std::fs::read(ahead.segment_path(&segment.file).unwrap()).unwrap();
        behind
            .install_segment(segment, &mut std::iter::once(Ok(bytes.into())))
            .unwrap();
    }
    for cut in [0, 7, 8, 40, snapshot.manifest.len() - 1] {
        assert_eq!(
            behind.install_snapshot(&snapshot.manifest[..cut]).unwrap_err().code,
            "08P01"
        );
    }
    behind.install_snapshot(&snapshot.manifest).unwrap();
    drop(behind);
    let behind = store(dirs[1].path());
    for ts in [1, 2] {
        let digest = behind.digest(&def, Timestamp(ts)).unwrap();
        assert_eq!(digest, ahead.digest(&def, Timestamp(ts)).unwrap());
        assert_eq!(digest.1, [1_000, 990][ts as usize - 1]);
    }
    let files = |dir: &std::path::Path| {
        let names = std::fs::read_dir(dir.join("3-0"))
            .unwrap()
            .flatten()
            .map(|e| e.file_name());
        names.filter(|n| n.to_string_lossy().starts_with("DELETES-")).count()
    };
    assert_eq!(files(dirs[1].path()), 1);
    // A damaged file is refused at the start, and found by a check.
    let path = deletes_file::path(&dirs[0].path().join("3-0"), 2);
    let sound = std::fs::read(&path).unwrap();
    let mut flipped = sound.clone();
    flipped[20] ^= 1;
    std::fs::write(&path, flipped).unwrap();
    assert_eq!(ahead.check().unwrap_err().code, "XX001");
    std::fs::write(&path, sound).unwrap();
    ahead.check().unwrap();
    behind.drop_table(def.id).unwrap();
    assert_eq!(
        (files(dirs[1].path()), behind.digest(&def, Timestamp(2)).unwrap().1),
        (0, 0)
    );
    drop(behind);
    assert!(store(dirs[1].path()).tables().is_empty());
}

#[test]
fn a_truncated_table_is_empty_from_then_on_and_whole_before() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let mut copy = store(dir.path());
    let ids: Vec<i64> = (0..3_000).collect();
    let truncate = || Write::Truncated { table: def.clone() };
    let mut load = copy.stage(&def);
    load.write(&rows(&def, &ids[..1_000])).unwrap();
    let staged = Write::Staged {
        table: def.clone(),
        segments: load.finish().unwrap(),
    };
    // Rows in a loaded file, in a sealed one, and in memory; one of each is gone by itself.
    let log: Vec<Vec<Write>> = vec![
        vec![staged],
        vec![added(&def, &ids[1_000..2_000], 1)],
        vec![added(&def, &ids[2_000..], 1), removed(&def, &[0, 1_000])],
        vec![removed(&def, &[2_000])],
        vec![truncate(), added(&def, &[7, 5_000], 2)],
        vec![truncate()],
        vec![added(&def, &[8], 3)],
    ];
    let counts = [0, 1_000, 2_000, 2_998, 2_997, 2, 0, 1];
    let apply = |copy: &ShardStore, index: usize| {
        let at = index as u64;
        copy.apply(LogIndex(at), Timestamp(at * 10), &log[index - 1]).unwrap();
    };
    for index in 1..=log.len() {
        apply(&copy, index);
        if index == 2 || index == 6 {
            copy.seal(&tables(&def)).unwrap();
        }
        if index == 5 {
            // Replayed from the log.
            copy = store(dir.path());
            (3..=5).for_each(|again| apply(&copy, again));
        }
        let check = |copy: &ShardStore| {
            for (at, count) in counts.iter().enumerate().take(index + 1) {
                for ts in [at * 10, at * 10 + 9] {
                    let digest = copy.digest(&def, Timestamp(ts as u64)).unwrap();
                    assert_eq!(digest.1, *count, "at {ts} after {index}");
                }
            }
            assert_eq!(copy.statistics(&def).rows, counts[index], "after {index}");
        };
        check(&copy);
        let read_at = Timestamp(index as u64 * 10);
        let unchanged = |id: i64| copy.unchanged_since(&removed(&def, &[id]), read_at).unwrap();
        let free = |id: i64| {
            copy.unique_conflict(&added(&def, &[id], 0), &Going::default())
                .unwrap()
                .is_none()
        };
        for id in [1, 7, 8, 1_500, 2_500, 5_000] {
            let there = read(&copy, &def, read_at.0, &[id]).len() == 1;
            assert_eq!((unchanged(id), free(id)), (there, !there), "{id} after {index}");
        }
    }
    // Everything is in files.
    copy.seal(&tables(&def)).unwrap();
    let old = copy.digest(&def, Timestamp(49)).unwrap();
    copy = store(dir.path());
    assert_eq!(
        (copy.digest(&def, Timestamp(49)).unwrap(), copy.statistics(&def).rows),
        (old, 1)
    );
    copy.check().unwrap();
    // A load meets the rows that are there, and none where all go.
    let mut load = copy.stage(&def);
    load.write(&rows(&def, &[7, 8])).unwrap();
    let load = Write::Staged {
        table: def.clone(),
        segments: load.finish().unwrap(),
    };
    let mut going = Going::default();
    assert!(copy.unique_conflict(&load, &going).unwrap().is_some());
    going.add(&truncate()).unwrap();
    assert!(copy.unique_conflict(&load, &going).unwrap().is_none());
    assert!(copy.unique_conflict(&added(&def, &[8], 0), &going).unwrap().is_none());
    assert!(
        copy.unique_conflict(&added(&def, &[9, 9], 0), &going)
            .unwrap()
            .is_some()
    );
}

#[test]
fn rows_truncated_while_they_are_sealed_stay_gone() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let copy = store(dir.path());
    let apply = |index: u64, writes: &[Write]| copy.apply(LogIndex(index), Timestamp(index), writes).unwrap();
    apply(1, &[added(&def, &[1, 2, 3], 0)]);
    // Definitions are asked for between freezing and publishing.
    let asked = std::cell::Cell::new(false);
    let while_sealing = |id: TableId| {
        if !asked.replace(true) {
            apply(2, &[Write::Truncated { table: def.clone() }, added(&def, &[2, 9], 1)]);
            apply(3, &[removed(&def, &[9])]);
        }
        (id == def.id).then(|| def.clone())
    };
    assert_eq!(copy.seal(&while_sealing).unwrap(), Some(LogIndex(1)));
    for again in [false, true] {
        let counts = [1, 2, 3].map(|ts| copy.digest(&def, Timestamp(ts)).unwrap().1);
        assert_eq!(
            (counts, copy.statistics(&def).rows),
            ([3, 2, 1], 1),
            "sealed again: {again}"
        );
        copy.seal(&tables(&def)).unwrap();
    }
    drop(copy);
    let copy = store(dir.path());
    assert_eq!(
        [1, 2, 3].map(|ts| copy.digest(&def, Timestamp(ts)).unwrap().1),
        [3, 2, 1]
    );
}
