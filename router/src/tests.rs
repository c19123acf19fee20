//! Sessions against nodes in memory: every path of the router from text to rows and back.

mod admission;
mod changes;
mod pending;
mod upserts;

use crate::engine::{Engine, RouterOptions};
use crate::outcome::Outcome;
use crate::session::{Session, SessionParams};
use crate::testing::{FakeCluster, MemoryMeta};
use datafusion::arrow::array::{Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::scalar::ScalarValue;
use futures::TryStreamExt;
use std::sync::Arc;
use tessera_proto::sql_type::SqlType;
use tessera_proto::{Error, Result};
use tokio_util::sync::CancellationToken;

struct Cluster {
    engine: Arc<Engine>,
    nodes: Arc<FakeCluster>,
    session: Session,
}

impl Cluster {
    async fn start(nodes: u32) -> Self {
        let store = MemoryMeta::new();
        let nodes = FakeCluster::new(store.clone(), nodes).await;
        let options = RouterOptions {
            meta: store,
            directory: nodes.directory(),
            files_root: None,
            memory: tessera_proto::memory::query_pool(256 << 20),
            query_threads: 2,
        };
        let engine = Engine::start(options).await.unwrap();
        nodes.set_oracle(engine.oracle());
        let session = engine.session(SessionParams {
            user: "u".into(),
            database: "d".into(),
            application_name: String::new(),
        });
        Self { engine, nodes, session }
    }

    async fn outcome(&mut self, sql: &str, params: Vec<ScalarValue>) -> Result<Outcome> {
        let parsed = tessera_parser::parse(sql).map_err(crate::error::from_parse)?;
        self.session.execute(&parsed[0], params, CancellationToken::new()).await
    }

    /// Rows as `a|b`, or the tag.
    async fn try_run(&mut self, sql: &str, params: Vec<ScalarValue>) -> Result<Vec<String>> {
        match self.outcome(sql, params).await? {
            Outcome::Rows { schema, stream, .. } => {
                let batches: Vec<RecordBatch> = stream.try_collect().await?;
                let mut out = vec![];
                for batch in &batches {
                    assert_eq!(batch.schema(), schema);
                    out.extend((0..batch.num_rows()).map(|row| line(batch, row)));
                }
                Ok(out)
            }
            Outcome::Done { tag, .. } => Ok(vec![tag]),
            _ => Ok(vec![]),
        }
    }

    #[track_caller]
    fn check(&mut self, sql: &str, expected: Result<&[&str], &str>) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let got = self.try_run(sql, vec![]).await;
            if let Err(error) = &got {
                // Shown when the check fails.
                println!("{sql}: {error:?}");
            }
            let got = got
                .as_ref()
                .map(|rows| rows.iter().map(String::as_str).collect::<Vec<_>>())
                .map_err(|e| e.code.as_str());
            assert_eq!(got, expected.map(<[&str]>::to_vec), "{sql} at {caller}");
        }
    }

    async fn error(&mut self, sql: &str) -> Error {
        self.try_run(sql, vec![]).await.unwrap_err()
    }
}

fn line(batch: &RecordBatch, row: usize) -> String {
    let options = FormatOptions::default().with_null("NULL");
    let cells = batch.columns().iter().map(|c| {
        ArrayFormatter::try_new(c.as_ref(), &options)
            .unwrap()
            .value(row)
            .to_string()
    });
    cells.collect::<Vec<_>>().join("|")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_rows_and_queries() {
    let mut c = Cluster::start(3).await;
    c.check("create table t (a int8 primary key, b varchar(5) default 'dflt', n numeric(6,2) not null default 1.5) shard by hash (a) shards 4", Ok(&["CREATE TABLE"])).await;
    c.check(
        "insert into t values (1, 'x', 2), (2, default, default), (-3, null, 0.005)",
        Ok(&["INSERT 0 3"]),
    )
    .await;
    c.check(
        "select * from t order by a",
        Ok(&["-3|NULL|0.01", "1|x|2.00", "2|dflt|1.50"]),
    )
    .await;
    c.check(
        "insert into t (n, a) select a * 10, a + 10 from t where a > 0",
        Ok(&["INSERT 0 2"]),
    )
    .await;
    c.check("select a, b, n from t where a = 12", Ok(&["12|dflt|20.00"]))
        .await;
    c.check("select count(*), sum(n) from t", Ok(&["5|33.51"])).await;
    // Nothing of a failed statement stays, whichever shard refuses.
    c.check(
        "insert into t (a) select * from (values (100), (101), (102), (103), (1)) v",
        Err("23505"),
    )
    .await;
    c.check("select count(*) from t", Ok(&["5"])).await;
    c.check("insert into t values (7, 'too long')", Err("22001")).await;
    c.check("insert into t (a, n) values (7, null)", Err("23502")).await;
    c.check("insert into t (n) values (7)", Err("23502")).await;
    c.check("insert into t (a, n) values (7, 100000)", Err("22003")).await;
    c.check("insert into t (a) values ('7x')", Err("22P02")).await;
    c.check("insert into t (a) values (true)", Err("42804")).await;
    c.check("insert into t (a, a) values (1, 2)", Err("42701")).await;
    c.check("insert into t (a, z) values (1, 2)", Err("42703")).await;
    c.check("insert into t values (1, 'a', 2, 3)", Err("42601")).await;
    c.check("insert into t (a) select 'x' || b from t", Err("42804")).await;
    c.check("insert into nope values (1)", Err("42P01")).await;
    c.check("select * from nope", Err("42P01")).await;
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions() {
    let mut c = Cluster::start(2).await;
    c.check(
        "create table a (k int primary key, v text) shard by hash (k) shards 3",
        Ok(&["CREATE TABLE"]),
    )
    .await;
    c.check(
        "create table b (k int8, w text) shard by hash (k) colocate with a",
        Ok(&["CREATE TABLE"]),
    )
    .await;
    c.check(
        "create table c (k text primary key) shard by hash (k) colocate with a",
        Err("42P16"),
    )
    .await;
    c.check(
        "create table c (k int primary key) shard by hash (k) shards 4 colocate with a",
        Err("42P16"),
    )
    .await;
    c.check("create table a (k int)", Err("42P07")).await;
    c.check("create table if not exists a (k int)", Ok(&["CREATE TABLE"]))
        .await;
    c.check("create table s.x (k int)", Err("3F000")).await;
    c.check("create table x (k int default (select 1))", Err("42P17")).await;
    c.check("create table x (k int default k + 1)", Err("42703")).await;
    c.check("create table x (k int default 'abc')", Err("22P02")).await;
    let view = c.engine.view();
    assert_eq!(
        view.table("public", "a").unwrap().group,
        view.table("public", "b").unwrap().group
    );
    assert!(view.shards.values().all(|s| s.config.in_sync.len() == 2));

    c.check("insert into a values (1, 'one'), (2, 'two')", Ok(&["INSERT 0 2"]))
        .await;
    c.check(
        "insert into b values (1, 'eins'), (1, 'un'), (2, 'zwei')",
        Ok(&["INSERT 0 3"]),
    )
    .await;
    c.check(
        "create view ab as select a.k, v, w from a join b on a.k = b.k",
        Ok(&["CREATE VIEW"]),
    )
    .await;
    c.check(
        "select * from ab order by k, w",
        Ok(&["1|one|eins", "1|one|un", "2|two|zwei"]),
    )
    .await;
    c.check("create view n (total) as select count(*) from ab", Ok(&["CREATE VIEW"]))
        .await;
    c.check("select total from n", Ok(&["3"])).await;
    c.check("create or replace view n as select 'x' as total", Err("42P16"))
        .await;
    c.check(
        "create or replace view n (total, more) as select count(*), max(w) from ab",
        Ok(&["CREATE VIEW"]),
    )
    .await;
    c.check("select * from n", Ok(&["3|zwei"])).await;
    c.check("insert into ab values (1)", Err("0A000")).await;
    c.check("drop view a", Err("42809")).await;
    c.check("drop table b", Err("2BP01")).await;
    c.check("drop table b cascade", Ok(&["DROP TABLE"])).await;
    c.check("select * from n", Err("42P01")).await;
    assert_eq!(c.engine.view().shards.len(), 3, "the group stays for its other table");
    c.check("create schema s", Ok(&["CREATE SCHEMA"])).await;
    c.check("create table s.t (x text)", Ok(&["CREATE TABLE"])).await;
    c.check("insert into s.t values ('a'), ('a')", Ok(&["INSERT 0 2"]))
        .await;
    c.check("select * from s.t", Ok(&["a", "a"])).await;
    c.check("drop schema s", Err("2BP01")).await;
    c.check("drop schema s cascade", Ok(&["DROP SCHEMA"])).await;
    c.check("drop table a, nope", Err("42P01")).await;
    c.check("drop table if exists a, nope", Ok(&["DROP TABLE"])).await;
    assert!(c.engine.view().shards.is_empty() && c.engine.view().groups.is_empty());
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reference_tables_are_read_everywhere() {
    let mut c = Cluster::start(3).await;
    c.check(
        "create reference table r (id int primary key, name text)",
        Ok(&["CREATE TABLE"]),
    )
    .await;
    c.check("create reference table q (id int primary key)", Ok(&["CREATE TABLE"]))
        .await;
    c.check("create table f (id int8 primary key, r int) shards 6", Err("42601"))
        .await;
    c.check(
        "create table f (id int8 primary key, r int) shard by hash (id) shards 6",
        Ok(&["CREATE TABLE"]),
    )
    .await;
    let view = c.engine.view();
    assert_eq!(
        view.groups.values().filter(|g| g.reference).count(),
        1,
        "reference tables share a group"
    );
    c.check("insert into r values (1, 'a'), (2, 'b')", Ok(&["INSERT 0 2"]))
        .await;
    c.check("insert into r values (2, 'b')", Err("23505")).await;
    c.check(
        "insert into f select x, x % 2 + 1 from (values (1), (2), (3), (4), (5)) v (x)",
        Ok(&["INSERT 0 5"]),
    )
    .await;
    c.check(
        "select name, count(*) from f join r on f.r = r.id group by name order by name",
        Ok(&["a|2", "b|3"]),
    )
    .await;
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_are_typed_and_filled() {
    let mut c = Cluster::start(1).await;
    c.check(
        "create table t (a int2 primary key, b text, c timestamptz default now())",
        Ok(&["CREATE TABLE"]),
    )
    .await;
    let describe = async |c: &Cluster, sql: &str| {
        let parsed = tessera_parser::parse(sql).unwrap();
        c.session.describe(&parsed[0], &[]).await.unwrap()
    };
    let insert = "insert into t (a, b) values ($1, $2)";
    let described = describe(&c, insert).await;
    assert_eq!(
        (described.params, described.columns),
        (vec![DataType::Int16, DataType::Utf8View], None)
    );
    let select = "select a, b, upper(b) from t where a = $1 and b like $2";
    let described = describe(&c, select).await;
    assert_eq!(described.params[0], DataType::Int16);
    assert_eq!(described.declared, [Some(SqlType::Int2), Some(SqlType::Text), None]);
    let text = |s: &str| ScalarValue::Utf8View(Some(s.into()));
    assert_eq!(
        c.try_run(insert, vec![ScalarValue::Int16(Some(5)), text("five")])
            .await
            .unwrap(),
        ["INSERT 0 1"]
    );
    assert_eq!(
        c.try_run(insert, vec![ScalarValue::Int16(Some(6)), ScalarValue::Null])
            .await
            .unwrap(),
        ["INSERT 0 1"]
    );
    assert_eq!(
        c.try_run(select, vec![ScalarValue::Int16(Some(5)), text("f%")])
            .await
            .unwrap(),
        ["5|five|FIVE"]
    );
    assert_eq!(
        c.try_run(select, vec![ScalarValue::Int16(Some(5))])
            .await
            .unwrap_err()
            .code,
        "42P02"
    );
    assert_eq!(
        c.try_run(
            "select count(*) from t where c > now() - interval '1 hour' and b is not null",
            vec![]
        )
        .await
        .unwrap(),
        ["1"]
    );
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_stages_what_is_large_and_drops_what_fails() {
    let mut c = Cluster::start(2).await;
    c.check(
        "create table t (id int8 primary key, filler text) shard by hash (id) shards 4",
        Ok(&["CREATE TABLE"]),
    )
    .await;
    let batch = |from: i64, rows: i64| {
        let ids = Int64Array::from_iter_values(from..from + rows);
        let text = StringArray::from_iter_values((from..from + rows).map(|i| format!("{i:0>1000}")));
        RecordBatch::try_from_iter([("id", Arc::new(ids) as _), ("filler", Arc::new(text) as _)]).unwrap()
    };
    let copy = async |c: &mut Cluster, ends: &[(i64, i64)]| {
        let Outcome::CopyIn(mut copy) = c.outcome("copy t from stdin with (format csv)", vec![]).await.unwrap() else {
            panic!()
        };
        for (from, rows) in ends {
            copy.write(batch(*from, *rows)).await.unwrap();
        }
        copy
    };
    let small = copy(&mut c, &[(0, 10)]).await;
    assert_eq!(small.finish().await.unwrap(), 10);
    assert_eq!(c.nodes.segments(), (0, 0), "a small load travels in its commit");
    let large = copy(&mut c, &[(1_000, 10_000), (20_000, 10_000)]).await;
    c.check("select count(*) from t", Ok(&["10"])).await;
    assert_eq!(large.finish().await.unwrap(), 20_000);
    assert!(c.nodes.segments().0 >= 4, "a large load is staged on every shard");
    c.check("select count(*), min(id), max(id) from t", Ok(&["20010|0|29999"]))
        .await;
    let duplicate = copy(&mut c, &[(100_000, 20_000), (5, 1)]).await;
    assert_eq!(duplicate.finish().await.unwrap_err().code, "23505");
    c.check("select count(*) from t", Ok(&["20010"])).await;
    drop(copy(&mut c, &[(200_000, 20_000)]).await);
    c.check("select count(*) from t", Ok(&["20010"])).await;
    // Shutdown waits for what drops the staged rows.
    c.engine.shutdown().await;
    assert_eq!(c.nodes.segments().1, 0, "nothing invisible is left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_by_primary_key_are_one_call() {
    let mut c = Cluster::start(3).await;
    c.check(
        "create table t (b text, a int4, c char(3), primary key (a, b)) shard by hash (b) shards 5",
        Ok(&["CREATE TABLE"]),
    )
    .await;
    c.check(
        "insert into t values ('x', 1, 'p'), ('y', 1, 'q'), ('x', 2, 'r')",
        Ok(&["INSERT 0 3"]),
    )
    .await;
    for (sql, rows) in [
        ("select c, a as n from t where a = 1 and 'y' = b", &["q|1"][..]),
        ("select * from t u where u.b = 'x' and u.a = 2", &["x|2|r"]),
        ("select a from t where a = 3 and b = 'x'", &[]),
    ] {
        let before = c.nodes.point_reads();
        c.check(sql, Ok(rows)).await;
        assert_eq!(c.nodes.point_reads(), before + 1, "{sql}");
    }
    for (sql, rows) in [
        ("select a from t where a = 1", &["1", "1"][..]),
        ("select a from t where a = 1 and b = 'x' and c = 'z'", &[]),
        ("select a + 1 from t where a = 1 and b = 'x'", &["2"]),
        ("select a from t where a = 1 and a = 2 and b = 'x'", &[]),
        ("select a from t where a = 1.5 and b = 'x'", &[]),
        ("select count(*) from t where a = 1 and b = 'x'", &["1"]),
        ("select a from t where a = 1 or b = 'x'", &["1", "1", "2"]),
    ] {
        let before = c.nodes.point_reads();
        let mut got = c.try_run(sql, vec![]).await.unwrap();
        got.sort();
        assert_eq!(
            (
                got.iter().map(String::as_str).collect::<Vec<_>>(),
                c.nodes.point_reads()
            ),
            (rows.to_vec(), before),
            "{sql}"
        );
    }
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_with_parameters_are_bound_once_for_a_catalog() {
    let mut c = Cluster::start(2).await;
    let sql = "select v, k from t where k = $1";
    let make = |order: &str| format!("create table t ({order}) shard by hash (k) shards 3");
    c.check(&make("k int8 primary key, v text"), Ok(&["CREATE TABLE"]))
        .await;
    c.check("insert into t values (1, 'a'), (2, 'b')", Ok(&["INSERT 0 2"]))
        .await;
    let by = |k: i64| vec![ScalarValue::Int64(Some(k))];
    let cases = [
        (by(1), vec!["a|1"]),
        (by(2), vec!["b|2"]),
        (by(3), vec![]),
        (vec![ScalarValue::Int32(Some(2))], vec!["b|2"]),
        // A NULL and a fraction are no key: the planner answers.
        (vec![ScalarValue::Int64(None)], vec![]),
        (vec![ScalarValue::Float64(Some(1.5))], vec![]),
        (vec![ScalarValue::Float64(Some(2.0))], vec!["b|2"]),
    ];
    for round in 0..2 {
        for (params, rows) in &cases {
            assert_eq!(
                c.try_run(sql, params.clone()).await.unwrap(),
                *rows,
                "{params:?} {round}"
            );
        }
    }
    let before = c.nodes.point_reads();
    c.try_run(sql, by(1)).await.unwrap();
    assert_eq!(c.nodes.point_reads(), before + 1);
    // The same text over another table of that name, and over another schema of the path.
    c.check("drop table t", Ok(&["DROP TABLE"])).await;
    c.check(&make("v int, x text, k int8 primary key"), Ok(&["CREATE TABLE"]))
        .await;
    c.check("insert into t values (7, 'x', 1)", Ok(&["INSERT 0 1"])).await;
    assert_eq!(c.try_run(sql, by(1)).await.unwrap(), ["7|1"]);
    c.check("create schema other", Ok(&["CREATE SCHEMA"])).await;
    c.check(
        "create table other.t (k int8 primary key, v int)",
        Ok(&["CREATE TABLE"]),
    )
    .await;
    c.check("insert into other.t values (1, 8)", Ok(&["INSERT 0 1"])).await;
    c.check("set search_path = other, public", Ok(&["SET"])).await;
    assert_eq!(c.try_run(sql, by(1)).await.unwrap(), ["8|1"]);
    c.check("reset search_path", Ok(&["RESET"])).await;
    assert_eq!(c.try_run(sql, by(1)).await.unwrap(), ["7|1"]);
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_nodes_and_lost_answers() {
    let mut c = Cluster::start(2).await;
    c.check("create table t (id int8 primary key)", Ok(&["CREATE TABLE"]))
        .await;
    c.check(
        "insert into t select * from (values (1), (2), (3), (4), (5), (6)) v",
        Ok(&["INSERT 0 6"]),
    )
    .await;
    c.nodes.fail_reads(1);
    c.check("select count(*) from t", Ok(&["6"])).await;
    // The commit arrived, its answer did not: home is asked and knows.
    c.nodes.lose_commits(1);
    c.check(
        "insert into t select * from (values (11), (12), (13), (14)) v",
        Ok(&["INSERT 0 4"]),
    )
    .await;
    c.check("select count(*) from t", Ok(&["10"])).await;
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_of_the_session() {
    let mut c = Cluster::start(2).await;
    c.check(
        "create table t (id int8 primary key, v text) shard by hash (id) shards 2",
        Ok(&["CREATE TABLE"]),
    )
    .await;
    c.check("insert into t values (1, 'a'), (2, 'b'), (3, 'c')", Ok(&["INSERT 0 3"]))
        .await;
    c.check("show server_version", Ok(&[crate::settings::SERVER_VERSION]))
        .await;
    c.check("set statement_timeout = '5s'", Ok(&["SET"])).await;
    c.check("show statement_timeout", Ok(&["5s"])).await;
    c.check("reset all", Ok(&["RESET"])).await;
    c.check(
        "create table z (t timestamptz, u uuid default gen_random_uuid())",
        Ok(&["CREATE TABLE"]),
    )
    .await;
    c.check("set timezone = '+02:00'", Ok(&["SET"])).await;
    c.check("insert into z values ('2026-06-01 12:00')", Ok(&["INSERT 0 1"]))
        .await;
    c.check("insert into z (t) select '2026-06-01 12:00:00Z'", Ok(&["INSERT 0 1"]))
        .await;
    c.check("select count(distinct u), count(distinct t) from z", Ok(&["2|2"]))
        .await;
    c.check("select count(*) from z where t = '2026-06-01 10:00:00+00'", Ok(&["1"]))
        .await;
    c.check("drop table z", Ok(&["DROP TABLE"])).await;
    c.check("reset timezone", Ok(&["RESET"])).await;
    c.check("set fsync = off", Err("42704")).await;
    // Outside a block: a warning, and nothing changes.
    c.check("set local timezone = 'Asia/Tokyo'", Ok(&["SET"])).await;
    c.check("show timezone", Ok(&["UTC"])).await;
    c.check("select relname from pg_class where relname = 't'", Ok(&["t"]))
        .await;
    c.check(
        "select count(*) from information_schema.tables where table_name = 't'",
        Ok(&["1"]),
    )
    .await;
    assert_eq!(c.try_run("show nodes", vec![]).await.unwrap().len(), 2);
    assert_eq!(c.try_run("show shards", vec![]).await.unwrap().len(), 4);
    let verified = c.try_run("verify table t", vec![]).await.unwrap();
    assert_eq!(verified.len(), 4);
    assert!(verified.iter().all(|row| row.ends_with("|true|NULL")), "{verified:?}");
    let explained = c
        .try_run("explain select * from t where id = 1", vec![])
        .await
        .unwrap()
        .join("\n");
    assert!(
        explained.contains("1 of 2") || explained.contains("1/2") || explained.contains("shards"),
        "{explained}"
    );
    let analyzed = c
        .try_run("explain analyze select v, count(*) from t group by v", vec![])
        .await
        .unwrap()
        .join("\n");
    assert!(analyzed.contains("Rows: 3"), "{analyzed}");
    assert!(
        c.error("alter shard 9 of t switch leader")
            .await
            .hint
            .unwrap()
            .contains("0 to 1")
    );
    c.check("set tessera.shard_local = off", Ok(&["SET"])).await;
    c.check("select count(*) from t a join t b on a.id = b.id", Ok(&["3"]))
        .await;
    // Cancelled before it begins, and by the clock.
    let cancel = CancellationToken::new();
    cancel.cancel();
    let parsed = tessera_parser::parse("select count(*) from t").unwrap();
    assert_eq!(
        c.session.execute(&parsed[0], vec![], cancel).await.err().unwrap().code,
        "57014"
    );
    c.check("set statement_timeout = 200", Ok(&["SET"])).await;
    let endless = "with recursive n (x) as (select 1 as x union all select x + 1 from n) select count(*) from n";
    assert_eq!(c.error(endless).await.code, "57014");
    c.engine.shutdown().await;
}
