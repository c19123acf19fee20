//! Scans through DataFusion: visibility, projection, filters, intervals, partitions.

use crate::scan::shard_table;
use crate::storage::columns::{ChunkKey, Part};
use crate::storage::test_tables::{rows, store, table};
use crate::storage::{ShardStore, Write};
use datafusion::arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch};
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use std::sync::Arc;
use tessera_proto::frugal::{BATCH_ROWS_DEFAULT, BATCH_ROWS_LEAST};
use tessera_proto::sql_type::SqlType;
use tessera_proto::table::TableDef;
use tessera_proto::{LogIndex, TableId, Timestamp};

/// 1..=3 sealed with different times, 4 and 5 loaded, 6 in memory.
fn filled(dir: &std::path::Path, def: &Arc<TableDef>) -> ShardStore {
    let store = store(dir);
    let insert = |index: u64, ids: &[i64]| {
        store
            .apply(
                LogIndex(index),
                Timestamp(index * 10),
                &[Write::Rows {
                    table: def.clone(),
                    batch: rows(def, ids),
                }],
            )
            .unwrap();
    };
    insert(1, &[1, 2]);
    insert(2, &[3]);
    let tables = |id: TableId| (id == def.id).then(|| def.clone());
    store.seal(&tables).unwrap();
    let mut writer = store.stage(def);
    writer.write(&rows(def, &[4, 5])).unwrap();
    let segments = writer.finish().unwrap();
    store
        .apply(
            LogIndex(3),
            Timestamp(30),
            &[Write::Staged {
                table: def.clone(),
                segments,
            }],
        )
        .unwrap();
    insert(4, &[6]);
    store
}

async fn query(store: &ShardStore, def: &Arc<TableDef>, ts: u64, sql: &str) -> String {
    query_in(SessionConfig::new().with_target_partitions(2), store, def, ts, sql).await
}

async fn query_in(config: SessionConfig, store: &ShardStore, def: &Arc<TableDef>, ts: u64, sql: &str) -> String {
    let context = SessionContext::new_with_config(config);
    context
        .register_table("t", shard_table(def.clone(), vec![store.clone()], Timestamp(ts), false))
        .unwrap();
    let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
    let text = pretty_format_batches(&batches).unwrap().to_string();
    text.lines()
        .filter(|l| !l.starts_with('+'))
        .skip(1)
        .map(|l| l.replace(' ', ""))
        .collect()
}

#[tokio::test]
async fn sees_what_the_snapshot_sees() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let store = filled(dir.path(), &def);
    for (ts, ids) in [
        (9, "||"),
        (10, "|1,2|"),
        (20, "|1,2,3|"),
        (29, "|1,2,3|"),
        (30, "|1,2,3,4,5|"),
        (40, "|1,2,3,4,5,6|"),
    ] {
        let sql = "select coalesce(string_agg(cast(id as varchar), ',' order by id), '') from t";
        assert_eq!(query(&store, &def, ts, sql).await, ids, "at {ts}");
        let counted = query(&store, &def, ts, "select count(*) from t").await;
        assert_eq!(
            counted,
            format!("|{}|", ids.matches(|c: char| c.is_ascii_digit()).count()),
            "at {ts}"
        );
    }
}

#[tokio::test]
async fn filters_project_and_give_back_every_type() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let store = filled(dir.path(), &def);
    assert_eq!(
        query(&store, &def, 99, "select price, id from t where id = 5").await,
        "|5.05|5|"
    );
    assert_eq!(
        query(&store, &def, 99, "select id from t where name like '%number 4'").await,
        "|4|"
    );
    assert_eq!(query(&store, &def, 15, "select id from t where id > 1").await, "|2|");
    assert_eq!(
        query(&store, &def, 99, "select count(*) from t where span is null").await,
        "|1|"
    );
    let months = query(
        &store,
        &def,
        99,
        "select date_part('month', span) from t where id = 4 or id = 6 order by 1",
    )
    .await;
    assert_eq!(months, "|4||6|");
    assert_eq!(
        query(&store, &def, 99, "select id from t order by id desc limit 2").await,
        "|6||5|"
    );
    assert_eq!(
        query(&store, &def, 99, "select count(*) from (select * from t limit 3)").await,
        "|3|"
    );
    let context = SessionContext::new();
    let provider = shard_table(def.clone(), vec![store], Timestamp(99), false);
    assert_eq!(provider.schema(), def.visible_schema());
    let frame = context.read_table(provider).unwrap();
    let batches = frame.collect().await.unwrap();
    assert!(batches.iter().all(|b| {
        b.schema().fields().iter().map(|f| f.data_type()).eq(def
            .visible_schema()
            .fields()
            .iter()
            .map(|f| f.data_type()))
    }));
}

#[tokio::test]
async fn prunes_row_groups_and_decodes_once() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let store = two_row_groups(dir.path(), &def);
    for expected in [
        "row_groups_cached=0,row_groups_decoded=1",
        "row_groups_cached=1,row_groups_decoded=0",
    ] {
        let plan = query(&store, &def, 1, "explain analyze select name from t where id = 139999").await;
        assert!(
            plan.contains("row_groups_pruned=1") && plan.contains(expected),
            "{plan}"
        );
    }
    assert_eq!(
        query(&store, &def, 1, "select count(*), min(id), max(id) from t").await,
        "|140000|0|139999|"
    );
}

/// What is above a scan tells it what it needs when it knows: keys of a join's other side, the last row of a TopK.
#[tokio::test]
async fn dynamic_filters_prune() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let store = two_row_groups(dir.path(), &def);
    let joined = "explain analyze select count(t.name) from (values (139998), (139999)) v(k) join t on t.id = v.k";
    let plan = query(&store, &def, 1, joined).await;
    assert!(plan.contains("row_groups_pruned=1"), "{plan}");
    let last = "explain analyze select name from t order by id limit 3";
    let plan = query(&store, &def, 1, last).await;
    assert!(plan.contains("predicate=DynamicFilter"), "{plan}");
    assert_eq!(
        query(&store, &def, 1, "select id from t order by id desc limit 2").await,
        "|139999||139998|"
    );
}

/// Nothing but the filter's column is decoded where the filter leaves no row.
#[tokio::test]
async fn decodes_only_what_a_filter_leaves() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let store = two_row_groups(dir.path(), &def);
    assert_eq!(
        query(&store, &def, 1, "select id, price, span from t where name like '%zzz'").await,
        ""
    );
    let segment = store.version().tables[&def.id].segments[0].clone();
    let name = |key: &ChunkKey| match &key.part {
        Part::Column { name, .. } => name.to_string(),
        Part::Keys(block) => format!("block {block} of the keys"),
    };
    let decoded: std::collections::BTreeSet<_> = segment.kept.lock().iter().map(name).collect();
    assert_eq!(decoded, ["name".to_string()].into());
}

/// With little memory a scan holds 8,192 rows of a row group, not all of it.
#[tokio::test]
async fn scans_in_blocks_with_little_memory() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let store = two_row_groups(dir.path(), &def);
    let scan = |config: SessionConfig, sql: &'static str| {
        let runtime = RuntimeEnvBuilder::new().with_memory_limit(3 << 20, 1.0);
        let context = SessionContext::new_with_config_rt(config, runtime.build_arc().unwrap());
        let table = shard_table(def.clone(), vec![store.clone()], Timestamp(1), false);
        context.register_table("t", table).unwrap();
        async move { context.sql(sql).await.unwrap().collect().await }
    };
    let plain = SessionConfig::new().with_target_partitions(2);
    let with_batches = |rows| {
        let mut little = plain.clone();
        tessera_proto::frugal::configure(little.options_mut(), rows);
        little
    };
    let little = with_batches(BATCH_ROWS_DEFAULT);
    let all = "select count(*), sum(id), max(name), count(span), sum(price), max(tag) from t";
    let got = pretty_format_batches(&scan(little.clone(), all).await.unwrap()).unwrap();
    let segment = store.version().tables[&def.id].segments[0].clone();
    let of_block = |key: &ChunkKey| matches!(key.part, Part::Column { block: Some(_), .. });
    assert!(segment.kept.lock().iter().all(of_block));
    // Parts of blocks, from the cache and decoded.
    let least = pretty_format_batches(&scan(with_batches(BATCH_ROWS_LEAST), all).await.unwrap()).unwrap();
    assert_eq!(least.to_string(), got.to_string());
    segment.kept.lock().iter().for_each(|key| segment.columns.remove(key));
    let least = pretty_format_batches(&scan(with_batches(BATCH_ROWS_LEAST), all).await.unwrap()).unwrap();
    assert_eq!(least.to_string(), got.to_string());
    let error = scan(plain.clone(), all).await.unwrap_err();
    assert_eq!(tessera_proto::Error::from(error).code, "53200");
    let wanted = query(&store, &def, 1, all).await;
    let got = got.to_string();
    let row = got.lines().nth(3).unwrap().replace(' ', "");
    assert_eq!(row, wanted);
    for sql in [
        "select count(*) from t where name like '%99'",
        "select count(*) from t where id >= 8190 and id < 8194",
        "select count(*) from (select id from t limit 9000) as s",
    ] {
        let wanted = query(&store, &def, 1, sql).await;
        for rows in [BATCH_ROWS_DEFAULT, BATCH_ROWS_LEAST, 100] {
            let got = query_in(with_batches(rows), &store, &def, 1, sql).await;
            assert_eq!(got, wanted, "{sql}, {rows}");
        }
    }
}

/// A table (id, f float8) with these values of f in one segment.
fn floats(dir: &std::path::Path, values: &[f64]) -> (ShardStore, Arc<TableDef>) {
    let mut def = table(20_000).as_ref().clone();
    def.columns.truncate(2);
    (def.columns[1].name, def.columns[1].sql_type) = ("f".into(), SqlType::Float8);
    let (store, def) = (store(dir), Arc::new(def));
    let ids = Int64Array::from_iter_values(0..values.len() as i64);
    let columns: Vec<ArrayRef> = vec![Arc::new(ids), Arc::new(Float64Array::from(values.to_vec()))];
    let mut writer = store.stage(&def);
    writer
        .write(&RecordBatch::try_new(def.arrow_schema(), columns).unwrap())
        .unwrap();
    let (segments, table) = (writer.finish().unwrap(), def.clone());
    store
        .apply(LogIndex(1), Timestamp(1), &[Write::Staged { table, segments }])
        .unwrap();
    (store, def)
}

/// The statistics of a file leave NaN out, which is greater than every other number.
#[tokio::test]
async fn nan_is_not_pruned() {
    let dir = tempfile::tempdir().unwrap();
    let (store, def) = floats(dir.path(), &[1.0, f64::NAN, 2.0]);
    assert_eq!(query(&store, &def, 1, "select id from t where f > 1e300").await, "|1|");
    assert_eq!(query(&store, &def, 1, "select id from t where f < 1.5").await, "|0|");
}

/// A row that the snapshot does not show must not fail a filter.
#[tokio::test]
async fn a_filter_does_not_fail_on_invisible_rows() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let store = store(dir.path());
    for (index, id) in [(1, 1), (2, 0)] {
        let (table, batch) = (def.clone(), rows(&def, &[id]));
        store
            .apply(LogIndex(index), Timestamp(index), &[Write::Rows { table, batch }])
            .unwrap();
    }
    let tables = |id: TableId| (id == def.id).then(|| def.clone());
    store.seal(&tables).unwrap();
    assert_eq!(
        query(&store, &def, 1, "select name from t where 1 / id = 1").await,
        "|nameofrownumber1|"
    );
}

/// A segment of 140,000 rows: one row group is full, the other is not.
fn two_row_groups(dir: &std::path::Path, def: &Arc<TableDef>) -> ShardStore {
    let store = store(dir);
    let mut writer = store.stage(def);
    for start in (0..140_000).step_by(20_000) {
        writer
            .write(&rows(def, &(start..start + 20_000).collect::<Vec<_>>()))
            .unwrap();
    }
    let segments = writer.finish().unwrap();
    store
        .apply(
            LogIndex(1),
            Timestamp(1),
            &[Write::Staged {
                table: def.clone(),
                segments,
            }],
        )
        .unwrap();
    store
}

#[tokio::test]
async fn damage_is_an_error_with_its_code() {
    let (dir, def) = (tempfile::tempdir().unwrap(), table(20_000));
    let store = filled(dir.path(), &def);
    for segment in &store.version().tables[&def.id].segments {
        let mut bytes = std::fs::read(&segment.path).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&segment.path, bytes).unwrap();
    }
    let frame = SessionContext::new()
        .read_table(shard_table(def, vec![store], Timestamp(99), false))
        .unwrap();
    let error = tessera_proto::Error::from(frame.collect().await.unwrap_err());
    assert_eq!(error.code, "XX001", "{error}");
}
