//! A transaction's own rows against a plain map, read through the overlay; what it logs, applied, gives the same.

use super::*;
use crate::storage::test_tables::{added, removed, store, table};
use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array};
use datafusion::arrow::datatypes::{Decimal128Type, Int64Type};
use datafusion::prelude::SessionContext;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tessera_proto::LogIndex;

type State = BTreeMap<i64, i128>;

/// All rows at a snapshot, as a scan gives them.
async fn scan(def: &Arc<TableDef>, version: Arc<TableVersion>, ts: u64) -> State {
    let provider = Arc::new(crate::scan::ShardTable::new(
        def.clone(),
        vec![version],
        Timestamp(ts),
        false,
    ));
    let frame = SessionContext::new().read_table(provider).unwrap();
    let (task, plan) = (frame.task_ctx(), frame.create_physical_plan().await.unwrap());
    let batches = datafusion::physical_plan::collect(plan, Arc::new(task)).await.unwrap();
    let mut state = State::new();
    for batch in batches {
        let ids = batch.column(0).as_primitive::<Int64Type>().values().to_vec();
        let prices = batch.column(2).as_primitive::<Decimal128Type>().values().to_vec();
        for (id, price) in ids.into_iter().zip(prices) {
            assert_eq!(state.insert(id, price), None, "row {id} twice");
        }
    }
    state
}

fn decode(def: &Arc<TableDef>, wire: &[v1::TableWrite]) -> Vec<Write> {
    wire.iter()
        .flat_map(|w| crate::node::writes::decode(w, def.clone()).unwrap())
        .collect()
}

#[tokio::test]
async fn the_overlay_is_what_the_commit_will_be() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let (dir, def) = (tempfile::tempdir().unwrap(), table(7));
        let store = store(dir.path());
        let committed: Vec<i64> = (0..20).collect();
        store
            .apply(LogIndex(1), Timestamp(5), &[added(&def, &committed, 1)])
            .unwrap();
        let only = def.clone();
        let tables = move |id| (id == only.id).then(|| only.clone());
        if random.random_bool(0.5) {
            store.seal(&tables).unwrap();
        }
        let mut own = OwnRows::default();
        // The state before every statement, to go back to.
        let mut states: Vec<State> = vec![committed.iter().map(|id| (*id, 1)).collect()];
        for statement in 0..12u64 {
            let before = states.last().unwrap().clone();
            if statement > 2 && random.random_bool(0.15) {
                let back = random.random_range(0..states.len());
                own.forget_from(back as u64).unwrap();
                states.truncate(back + 1);
                continue;
            }
            let number = states.len() as u64 - 1;
            let (mut state, mut writes) = (before.clone(), vec![]);
            if random.random_bool(0.1) {
                writes.push(Write::Truncated { table: def.clone() });
                own.add(number, writes, 1).unwrap();
                states.push(State::new());
                continue;
            }
            let gone: Vec<i64> = before.keys().copied().filter(|_| random.random_bool(0.2)).collect();
            let back: Vec<i64> = gone.iter().copied().filter(|_| random.random_bool(0.7)).collect();
            let mut come = back.clone();
            come.extend((0..40).filter(|id| !before.contains_key(id) && random.random_bool(0.1)));
            for id in &gone {
                state.remove(id);
            }
            state.extend(come.iter().map(|id| (*id, i128::from(number) + 100)));
            if !gone.is_empty() {
                writes.push(removed(&def, &gone));
            }
            if !come.is_empty() {
                writes.push(added(&def, &come, i128::from(number) + 100));
            }
            own.add(number, writes, 10).unwrap();
            states.push(state);
            if random.random_bool(0.2) {
                store.seal(&tables).unwrap();
            }
            let view = own
                .view(&store, def.id)
                .unwrap()
                .unwrap_or_else(|| store.table_version(def.id));
            assert_eq!(
                &scan(&def, view, 5).await,
                states.last().unwrap(),
                "seed {seed}, statement {statement}"
            );
        }
        let wire = own.to_wire().unwrap();
        store.apply(LogIndex(2), Timestamp(9), &decode(&def, &wire)).unwrap();
        assert_eq!(
            &scan(&def, store.table_version(def.id), 9).await,
            states.last().unwrap(),
            "seed {seed}"
        );
        assert_eq!(
            scan(&def, store.table_version(def.id), 8).await,
            states[0],
            "seed {seed}"
        );
    }
}

#[test]
fn keys_of_own_rows_conflict_and_those_of_rows_that_go_are_free() {
    let def = table(7);
    let mut own = OwnRows::default();
    let key = |id: i64| canonical_keys(&[Arc::new(Int64Array::from(vec![id])) as ArrayRef]).unwrap();
    own.add(1, vec![removed(&def, &[3]), added(&def, &[4], 2)], 10).unwrap();
    let none = Going::default();
    let mut four = Going::default();
    four.add(&removed(&def, &[4])).unwrap();
    assert_eq!(own.conflict(def.id, &key(4), &none), Some(0));
    assert_eq!(own.conflict(def.id, &key(4), &four), None);
    assert_eq!(own.conflict(def.id, &key(3), &none), None);
    let mut going = Going::default();
    own.add_going(def.id, &mut going);
    assert!(!going.all && going.keys.iter().cloned().collect::<Vec<_>>() == key(3));
    assert!(own.committed(&removed(&def, &[4])).unwrap().is_none());
    assert!(
        matches!(own.committed(&removed(&def, &[4, 5])).unwrap(), Some(Write::Removed { keys, .. }) if keys.num_rows() == 1)
    );
    assert!(own.row(def.id, &key(3)[0]) == Some(None) && own.row(def.id, &key(9)[0]).is_none());
    assert_eq!(own.row(def.id, &key(4)[0]).unwrap().unwrap().num_rows(), 1);
    let staged = Write::Staged {
        table: def.clone(),
        segments: vec![v1::SegmentRef::default()],
    };
    assert_eq!(own.add(2, vec![staged], 1).unwrap_err().code, "0A000");
    assert_eq!(own.add(2, vec![], INLINE_BYTES_MAX).unwrap_err().code, "54000");
    own.forget_from(0).unwrap();
    assert!(own.steps.is_empty() && own.to_wire().unwrap().is_empty());
}

#[test]
fn rows_in_files_are_read_by_key_until_they_are_truncated() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(7));
    let store = store(dir.path());
    store
        .apply(LogIndex(1), Timestamp(5), &[added(&def, &[1, 2], 1)])
        .unwrap();
    let mut load = store.stage(&def);
    load.write(&crate::storage::test_tables::rows(&def, &[10, 11])).unwrap();
    let staged = Write::Staged {
        table: def.clone(),
        segments: load.finish().unwrap(),
    };
    let mut own = OwnRows::default();
    let read = |own: &OwnRows| {
        let keys = crate::storage::test_tables::keys(&[1, 2, 10, 11, 12]);
        let found = own.point_read(&store, &def, Timestamp(9), &keys, &[0], Access::Disk);
        let found = found.unwrap().unwrap();
        let mut ids = found.column(0).as_primitive::<Int64Type>().values().to_vec();
        ids.sort_unstable();
        ids
    };
    own.add(1, vec![staged.clone()], 1).unwrap();
    assert_eq!(read(&own), [1, 2, 10, 11]);
    own.add(2, vec![Write::Truncated { table: def.clone() }], 1).unwrap();
    assert!(read(&own).is_empty() && own.staged(def.id).is_empty());
    // Row by row is possible again, and a load after that is not.
    own.add(3, vec![added(&def, &[2, 12], 1)], 1).unwrap();
    assert_eq!(read(&own), [2, 12]);
    assert_eq!(own.add(4, vec![staged], 1).unwrap_err().code, "0A000");
    own.forget_from(2).unwrap();
    assert_eq!(read(&own), [1, 2, 10, 11]);
}
