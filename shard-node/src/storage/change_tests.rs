//! Rows that are added, replaced and removed, on two copies that seal whenever they like, against a map per timestamp.

use crate::storage::shard_store::{ShardStore, Write};
use crate::storage::test_tables::{added, keys, removed, rows, store, table};
use crate::storage::{Access, deletes_file};
use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{Decimal128Type, Int64Type};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::token::canonical_keys;
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

/// One commit: some rows go, some change, some come.
fn commit(random: &mut StdRng, state: &mut State, def: &Arc<TableDef>, ts: u64) -> Vec<Write> {
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
    let mut writes = vec![];
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
    let none = HashSet::new();
    let conflict = |id: i64, gone: &HashSet<Box<[u8]>>| store.unique_conflict(&added(&def, &[id], 1), gone).unwrap();
    let two: HashSet<Box<[u8]>> = canonical_keys(keys(&[2]).columns()).unwrap().into_iter().collect();
    assert!(conflict(3, &none).is_none() && conflict(2, &two).is_none());
    assert_eq!(conflict(2, &none).unwrap(), "Key (id)=(2) already exists.");
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
