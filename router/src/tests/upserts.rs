//! INSERT ... ON CONFLICT.

use super::Cluster;
use crate::outcome::{Outcome, RowsTag};
use datafusion::arrow::datatypes::DataType;
use datafusion::scalar::ScalarValue;

async fn counters() -> Cluster {
    let mut c = Cluster::start(3).await;
    c.check(
        "create table k (id int8 primary key, n int not null default 0, s text) shard by hash (id) shards 4",
        Ok(&["CREATE TABLE"]),
    )
    .await;
    c.check("insert into k values (1, 10, 'a'), (2, 20, 'b')", Ok(&["INSERT 0 2"]))
        .await;
    c
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_and_rows_are_those_added_and_changed() {
    let mut c = counters().await;
    c.check(
        "insert into k values (1, 1), (3, 3), (3, 4) on conflict do nothing",
        Ok(&["INSERT 0 1"]),
    )
    .await;
    c.check(
        "insert into k as x (id, n) values (4, 4), (2, 2), (1, 1) on conflict (id) \
         do update set n = x.n + excluded.n where x.id <> 1 returning id, n, s",
        Ok(&["4|4|NULL", "2|22|b"]),
    )
    .await;
    let sql = "insert into k (id) values (1), (5) on conflict (id) do update set n = 7 returning id";
    let Outcome::Rows { tag, .. } = c.outcome(sql, vec![]).await.unwrap() else {
        panic!("{sql} returns rows");
    };
    assert_eq!(tag, RowsTag::Insert(2));
    c.check(
        "select id, n from k order by id",
        Ok(&["1|7", "2|22", "3|3", "4|4", "5|0"]),
    )
    .await;
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_take_the_types_of_columns() {
    let mut c = counters().await;
    let sql = "insert into k (id, s) values ($1, $2) on conflict (id) do update set n = $3, s = excluded.s || $4 \
               where k.n < $5 returning n, s";
    let parsed = tessera_parser::parse(sql).unwrap();
    let described = c.session.describe(&parsed[0], &[]).await.unwrap();
    assert_eq!(
        described.params,
        [
            DataType::Int64,
            DataType::Utf8View,
            DataType::Int32,
            DataType::Utf8View,
            DataType::Int32
        ]
    );
    assert_eq!(described.columns.unwrap().fields().len(), 2);
    let text = |text: &str| ScalarValue::Utf8View(Some(text.into()));
    let params = |id: i64, limit: i32| {
        let (n, limit) = (ScalarValue::Int32(Some(5)), ScalarValue::Int32(Some(limit)));
        vec![ScalarValue::Int64(Some(id)), text("x"), n, text("y"), limit]
    };
    assert_eq!(c.try_run(sql, params(1, 11)).await.unwrap(), ["5|xy"]);
    assert!(c.try_run(sql, params(2, 11)).await.unwrap().is_empty());
    assert_eq!(c.try_run(sql, params(9, 11)).await.unwrap(), ["0|x"]);
    for sql in [
        "insert into k (id) values ($1) on conflict (s) do nothing",
        "insert into k (id) values ($1) on conflict (id) do update set n = nope",
        "insert into k as excluded (id) values ($1) on conflict (id) do update set n = 1",
    ] {
        let parsed = tessera_parser::parse(sql).unwrap();
        assert!(c.session.describe(&parsed[0], &[]).await.is_err(), "{sql}");
    }
    c.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_row_begins_the_statement_again() {
    let mut c = counters().await;
    c.nodes.change_rows(3);
    c.check(
        "insert into k (id) values (1) on conflict (id) do update set n = k.n + 1 returning n",
        Ok(&["11"]),
    )
    .await;
    c.engine.shutdown().await;
}

/// Nobody's addition is lost, and nobody fails, whoever inserts the key first.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_upserts_of_new_keys_add_up() {
    const WRITERS: usize = 6;
    const ROUNDS: usize = 10;
    let mut c = counters().await;
    let writers = (0..WRITERS).map(|writer| {
        let mut session = c.session.clone();
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                let key = 100 + round / 2;
                let sql = match writer % 2 {
                    0 => format!("insert into k values ({key}, 1) on conflict (id) do update set n = k.n + excluded.n"),
                    _ => format!("insert into k select {key}, 1 on conflict (id) do update set n = k.n + 1"),
                };
                let parsed = tessera_parser::parse(&sql).unwrap();
                let done = session.execute(&parsed[0], vec![], Default::default()).await;
                done.expect("tries often enough");
            }
        })
    });
    for writer in futures::future::join_all(writers).await {
        writer.unwrap();
    }
    let all = (WRITERS * ROUNDS).to_string();
    c.check("select sum(n) from k where id >= 100", Ok(&[&all])).await;
    c.engine.shutdown().await;
}
