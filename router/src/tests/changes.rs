//! UPDATE, DELETE and RETURNING.

use super::Cluster;
use crate::outcome::{Outcome, RowsTag};
use datafusion::arrow::datatypes::DataType;
use datafusion::scalar::ScalarValue;
use tessera_proto::sql_type::SqlType;

async fn accounts() -> Cluster {
    let mut c = Cluster::start(3).await;
    c.check(
        "create table a (id int8 primary key, owner varchar(8) default 'nobody', money numeric(8,2) not null, since date) \
         shard by hash (id) shards 4",
        Ok(&["CREATE TABLE"]),
    )
    .await;
    c.check(
        "insert into a values (1, 'ann', 10, '2024-01-01'), (2, 'bob', 20, null), (3, 'cid', 30, '2024-03-03'), (4, null, 40, null)",
        Ok(&["INSERT 0 4"]),
    )
    .await;
    c
}

const ALL: &str = "select * from a order by id";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_get_new_values() {
    let mut c = accounts().await;
    c.check("update a set money = money + 0.5 where id = 2", Ok(&["UPDATE 1"]))
        .await;
    c.check(
        "update a x set owner = upper(x.owner), since = '2025-05-05' where money > 25",
        Ok(&["UPDATE 2"]),
    )
    .await;
    c.check(
        "update public.a set money = default, owner = default where a.id = 1",
        Err("23502"),
    )
    .await;
    c.check("update public.a set owner = default where a.id = 1", Ok(&["UPDATE 1"]))
        .await;
    c.check("update a set money = 1 where id = 99", Ok(&["UPDATE 0"])).await;
    c.check("update a set money = 1 where false", Ok(&["UPDATE 0"])).await;
    c.check(
        ALL,
        Ok(&[
            "1|nobody|10.00|2024-01-01",
            "2|bob|20.50|NULL",
            "3|CID|30.00|2025-05-05",
            "4|NULL|40.00|2025-05-05",
        ]),
    )
    .await;
    c.check("select owner from a where id = 3", Ok(&["CID"])).await;
    c.check("update a set (owner, since) = (null, null)", Ok(&["UPDATE 4"]))
        .await;
    c.check("select count(*), count(owner), count(since) from a", Ok(&["4|0|0"]))
        .await;
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_assigned_changes_nothing() {
    let mut c = accounts().await;
    for (sql, code) in [
        ("update a set money = null", "23502"),
        ("update a set monney = 1", "42703"),
        ("update a set money = 1 where monney = 1", "42703"),
        ("update a set money = 'x'", "22P02"),
        ("update a set money = 10000000 where id = 3", "22003"),
        ("update a set owner = 'far too long'", "22001"),
        ("update a set since = 5", "42804"),
        ("update a set since = owner", "42804"),
        ("update a set money = sum(money)", "42803"),
        ("update a set money = row_number() over ()", "42P20"),
        ("update a set money = 1 where sum(money) > 1", "42803"),
        ("update a set money = 1 where owner", "42804"),
        ("update a set id = 2 where id = 1", "23505"),
        ("update a set id = 7", "23505"),
        ("update a b set money = a.money", "42P01"),
        ("update a set money = $1", "42P02"),
        ("update nope set a = 1", "42P01"),
        ("update pg_class set relname = 'x'", "42501"),
        ("delete from a where monney = 1", "42703"),
        ("delete from nope", "42P01"),
        ("update a set money = 1 from a where true", "42712"),
    ] {
        c.check(sql, Err(code)).await;
    }
    let unknown = c.error("update a set monney = 1").await;
    assert_eq!(unknown.hint.as_deref(), Some("did you mean \"money\"?"));
    c.check("create view v as select * from a", Ok(&["CREATE VIEW"])).await;
    c.check("update v set money = 1", Err("0A000")).await;
    c.check("delete from v", Err("0A000")).await;
    c.check("select count(*), sum(money), sum(id) from a", Ok(&["4|100.00|10"]))
        .await;
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_go() {
    let mut c = accounts().await;
    c.check("delete from a where owner is null or owner = 'bob'", Ok(&["DELETE 2"]))
        .await;
    c.check("select id from a order by id", Ok(&["1", "3"])).await;
    c.check("select id from a where id = 2", Ok(&[])).await;
    c.check("delete from a x where x.id = 2", Ok(&["DELETE 0"])).await;
    // The key is free again.
    c.check("insert into a (id, money) values (2, 2)", Ok(&["INSERT 0 1"]))
        .await;
    c.check("delete from a where id = (select max(id) from a)", Ok(&["DELETE 1"]))
        .await;
    c.check("delete from a", Ok(&["DELETE 2"])).await;
    c.check("select count(*) from a", Ok(&["0"])).await;
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_change_and_rows_move() {
    let mut c = accounts().await;
    // Every new key is that of another row, which goes at the same time.
    c.check("update a set id = id + 1", Ok(&["UPDATE 4"])).await;
    c.check(
        "select id, owner from a order by id",
        Ok(&["2|ann", "3|bob", "4|cid", "5|NULL"]),
    )
    .await;
    for id in 2..=5 {
        c.check(&format!("select id from a where id = {id}"), Ok(&[&id.to_string()]))
            .await;
    }
    c.check("update a set id = id * 100 where id > 3", Ok(&["UPDATE 2"]))
        .await;
    c.check("select id from a where id = 400 or id = 4", Ok(&["400"])).await;
    c.check(
        "create table moves (k text, n int8, v text) shard by hash (k) shards 5",
        Ok(&["CREATE TABLE"]),
    )
    .await;
    c.check(
        "insert into moves values ('a', 1, 'x'), ('b', 2, 'y'), ('a', 3, 'z'), (null, 4, 'n')",
        Ok(&["INSERT 0 4"]),
    )
    .await;
    c.check(
        "update moves set k = k || n::text where k is not null",
        Ok(&["UPDATE 3"]),
    )
    .await;
    for (k, v) in [("a1", "x"), ("b2", "y"), ("a3", "z")] {
        c.check(&format!("select v from moves where k = '{k}'"), Ok(&[v])).await;
    }
    c.check("update moves set k = 'same'", Ok(&["UPDATE 4"])).await;
    c.check(
        "select n from moves where k = 'same' order by n",
        Ok(&["1", "2", "3", "4"]),
    )
    .await;
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_without_a_key() {
    let mut c = Cluster::start(2).await;
    c.check("create table t (x int, y text)", Ok(&["CREATE TABLE"])).await;
    c.check("create reference table r (x int, y text)", Ok(&["CREATE TABLE"]))
        .await;
    for table in ["t", "r"] {
        let fill = format!("insert into {table} values (1, 'a'), (1, 'a'), (2, 'b'), (null, null)");
        c.check(&fill, Ok(&["INSERT 0 4"])).await;
        c.check(&format!("update {table} set y = 'c' where x = 1"), Ok(&["UPDATE 2"]))
            .await;
        c.check(
            &format!("select * from {table} order by x"),
            Ok(&["1|c", "1|c", "2|b", "NULL|NULL"]),
        )
        .await;
        // The row id is seen nowhere, neither by a subquery over the same table.
        c.check(
            &format!(
                "delete from {table} where x in (select x from (select * from {table}) s where s.y = 'b') returning *"
            ),
            Ok(&["2|b"]),
        )
        .await;
        c.check(
            &format!("update {table} set x = 5 where x is null returning {table}.*"),
            Ok(&["5|NULL"]),
        )
        .await;
        c.check(&format!("update {table} set __tessera_row_id = 1"), Err("42703"))
            .await;
        c.check(
            &format!("insert into {table} values (7, 'g') returning __tessera_row_id"),
            Err("42703"),
        )
        .await;
        c.check(&format!("select count(*) from {table}"), Ok(&["3"])).await;
        c.check(
            &format!("delete from {table} where y = 'c' returning y"),
            Ok(&["c", "c"]),
        )
        .await;
    }
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_tables_are_read() {
    let mut c = accounts().await;
    c.check(
        "create table p (id int8, owner text, gift numeric(8,2))",
        Ok(&["CREATE TABLE"]),
    )
    .await;
    c.check(
        "insert into p values (1, 'ann', 1), (1, 'ann', 1), (3, 'cid', 3), (9, 'zoe', 9)",
        Ok(&["INSERT 0 4"]),
    )
    .await;
    // A row with several matches is changed once.
    let gifts = "update a set money = money + p.gift from p where a.id = p.id returning a.id, money, since is null";
    let mut changed = c.try_run(gifts, vec![]).await.unwrap();
    changed.sort();
    assert_eq!(changed, ["1|11.00|false", "3|33.00|false"]);
    c.check(
        "update a set owner = (select max(p.owner) from p where p.id = a.id) where id in (select id from p)",
        Ok(&["UPDATE 2"]),
    )
    .await;
    c.check(
        "update a x set money = y.money from a y where y.id = x.id + 1 and x.id = 3",
        Ok(&["UPDATE 1"]),
    )
    .await;
    c.check("select money from a where id = 3", Ok(&["40.00"])).await;
    c.check(
        "update a set money = 1 from p where a.id = p.id returning *",
        Err("0A000"),
    )
    .await;
    c.check("delete from a using p where a.id = p.id returning p.gift", Err("0A000"))
        .await;
    c.check(
        "delete from a using p, (values (3)) as v (n) where a.id = p.id and p.id = v.n returning a.*",
        Ok(&["3|cid|40.00|2024-03-03"]),
    )
    .await;
    c.check("delete from a using p where a.id = p.id", Ok(&["DELETE 1"]))
        .await;
    c.check("select id from a order by id", Ok(&["2", "4"])).await;
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_returned() {
    let mut c = accounts().await;
    c.check(
        "insert into a (id, money) values (5, 50.005), (6, 60) returning id, owner, money, money * 2 as twice",
        Ok(&["5|nobody|50.01|100.02", "6|nobody|60.00|120.00"]),
    )
    .await;
    c.check(
        "insert into a as new select id + 10, owner, money, since from a where id = 1 returning new.id, new.since",
        Ok(&["11|2024-01-01"]),
    )
    .await;
    c.check("insert into a as new values (12) returning a.id", Err("23502"))
        .await;
    c.check(
        "insert into a as new (id, money) values (12, 1) returning a.id",
        Err("42P01"),
    )
    .await;
    c.check(
        "update a set money = 1 where id = 5 returning *",
        Ok(&["5|nobody|1.00|NULL"]),
    )
    .await;
    c.check(
        "update a set money = 2 where id = 5 returning (select count(*) from a b where b.id = a.id), 'x'",
        Ok(&["1|x"]),
    )
    .await;
    c.check("delete from a where id = 11 returning id + 1", Ok(&["12"]))
        .await;
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn returning_fails_before_anything_is_written() {
    let mut c = accounts().await;
    for (sql, code) in [
        (
            "insert into a (id, money) values (9, 1) returning 1 / (id - 9)",
            "22012",
        ),
        ("insert into a (id, money) values (9, 1) returning nope", "42703"),
        ("update a set money = 0 returning 1 / money", "22012"),
        ("delete from a returning count(*)", "42803"),
        ("delete from a returning id, count(*)", "42803"),
        ("update a set money = 0 returning row_number() over ()", "42P20"),
        ("delete from a returning nope.id", "42P01"),
    ] {
        c.check(sql, Err(code)).await;
    }
    c.check("select count(*), sum(money) from a", Ok(&["4|100.00"])).await;
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_count_the_rows_changed() {
    let mut c = accounts().await;
    for (sql, expected) in [
        (
            "insert into a (id, money) values (8, 1), (9, 1) returning id",
            RowsTag::Insert(2),
        ),
        ("update a set money = 3 where id > 4 returning id", RowsTag::Update(2)),
        ("update a set money = 3 where id > 100 returning id", RowsTag::Update(0)),
        ("delete from a where id > 4 returning id", RowsTag::Delete(2)),
    ] {
        let Outcome::Rows { tag, columns, .. } = c.outcome(sql, vec![]).await.unwrap() else {
            panic!("{sql} returns rows");
        };
        assert_eq!((tag, columns), (expected, vec![Some(SqlType::Int8)]), "{sql}");
    }
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_take_the_types_of_columns() {
    let mut c = accounts().await;
    let describe = async |c: &Cluster, sql: &str| {
        let parsed = tessera_parser::parse(sql).unwrap();
        c.session.describe(&parsed[0], &[]).await.unwrap()
    };
    let update = "update a set owner = $1, money = money + $2, since = $3 where id = $4 returning owner, id + $5 as n";
    let described = describe(&c, update).await;
    assert_eq!(described.params[0], DataType::Utf8View);
    assert_eq!(described.params[2..4], [DataType::Date32, DataType::Int64]);
    assert_eq!(described.params.len(), 5);
    assert_eq!(described.declared, [Some(SqlType::Varchar(Some(8))), None]);
    let columns = described.columns.unwrap();
    assert_eq!(
        (columns.field(0).name().as_str(), columns.field(1).name().as_str()),
        ("owner", "n")
    );
    let params = vec![
        ScalarValue::Utf8View(Some("dan".into())),
        ScalarValue::Decimal128(Some(125), 10, 2),
        ScalarValue::Null,
        ScalarValue::Int64(Some(1)),
        ScalarValue::Int64(Some(41)),
    ];
    assert_eq!(c.try_run(update, params).await.unwrap(), ["dan|42"]);
    c.check("select * from a where id = 1", Ok(&["1|dan|11.25|NULL"])).await;
    let delete = "delete from a where owner = $1";
    let described = describe(&c, delete).await;
    assert_eq!((described.params, described.columns), (vec![DataType::Utf8View], None));
    let by = |owner: &str| vec![ScalarValue::Utf8View(Some(owner.into()))];
    assert_eq!(c.try_run(delete, by("dan")).await.unwrap(), ["DELETE 1"]);
    assert_eq!(c.try_run(delete, by("dan")).await.unwrap(), ["DELETE 0"]);
    let insert = describe(&c, "insert into a (id, money) values ($1, $2) returning id, money").await;
    assert_eq!(insert.params.len(), 2);
    assert_eq!(insert.columns.unwrap().fields().len(), 2);
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instants_keep_their_value_in_every_zone() {
    let mut c = Cluster::start(2).await;
    c.check(
        "create table z (id int primary key, t timestamptz, d date)",
        Ok(&["CREATE TABLE"]),
    )
    .await;
    c.check(
        "insert into z values (1, '2026-06-01 23:30:00+00')",
        Ok(&["INSERT 0 1"]),
    )
    .await;
    c.check("set timezone = 'Europe/Berlin'", Ok(&["SET"])).await;
    c.check(
        "update z set d = date_trunc('day', t)::date returning date_trunc('day', t)::date, d",
        Ok(&["2026-06-02|2026-06-02"]),
    )
    .await;
    c.check(
        "update z set t = '2026-06-05 12:00' where d = '2026-06-02'",
        Ok(&["UPDATE 1"]),
    )
    .await;
    c.check("reset timezone", Ok(&["RESET"])).await;
    c.check("select t = '2026-06-05 10:00:00+00' from z", Ok(&["true"]))
        .await;
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_row_begins_the_statement_again() {
    let mut c = accounts().await;
    c.nodes.change_rows(3);
    c.check(
        "update a set money = money + 1 where id = 1 returning money",
        Ok(&["11.00"]),
    )
    .await;
    c.nodes.change_rows(2);
    c.check("delete from a where id > 2", Ok(&["DELETE 2"])).await;
    c.nodes.change_rows(usize::MAX);
    let error = c.error("update a set money = 0").await;
    assert_eq!(error.code, "40001");
    c.nodes.change_rows(0);
    c.check("select id, money from a order by id", Ok(&["1|11.00", "2|20.00"]))
        .await;
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_update_is_lost() {
    const WRITERS: usize = 6;
    const UPDATES: usize = 10;
    let mut c = accounts().await;
    let writers = (0..WRITERS).map(|writer| {
        let mut session = c.session.clone();
        tokio::spawn(async move {
            // One row, and two rows of different shards.
            let sql = match writer % 2 {
                0 => "update a set money = money + 1 where id = 1",
                _ => "update a set money = money + 1 where id in (1, 2)",
            };
            let parsed = tessera_parser::parse(sql).unwrap();
            for _ in 0..UPDATES {
                let done = session.execute(&parsed[0], vec![], Default::default()).await;
                done.expect("tries often enough");
            }
        })
    });
    for writer in futures::future::join_all(writers).await {
        writer.unwrap();
    }
    c.check(
        "select id, money from a where id < 3 order by id",
        Ok(&["1|70.00", "2|50.00"]),
    )
    .await;
    c.engine.shutdown().await;
}
