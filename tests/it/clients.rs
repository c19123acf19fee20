//! What PostgreSQL clients do: every type in both formats, prepared statements, cancel, `\copy`.
//!
//! ```text
//!   SELECT 'text'::type   simple protocol ──▶ the canonical text
//!                         extended        ──▶ binary ──▶ $1 of SELECT and INSERT ──▶ the same binary, the same text
//! ```
//!
//! `scripts/accept 2 6` runs psql and psycopg against a release build; `tests/clients/psycopg_types.py` has more values.

use crate::cluster::{self, code, value};
use bytes::{Bytes, BytesMut};
use futures::SinkExt;
use std::time::{Duration, Instant};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type};
use tokio_postgres::{Client, NoTls};

/// Type, and values in their canonical text: extremes, infinities, blanks.
const TYPES: &[(&str, &[&str])] = &[
    ("boolean", &["t", "f"]),
    ("smallint", &["-32768", "32767"]),
    ("integer", &["-2147483648", "2147483647"]),
    ("bigint", &["-9223372036854775808", "9223372036854775807"]),
    (
        "real",
        &["0.1", "-0", "3.4028235e+38", "1e-45", "Infinity", "-Infinity", "NaN"],
    ),
    (
        "double precision",
        &[
            "0.1",
            "1.7976931348623157e+308",
            "5e-324",
            "Infinity",
            "-Infinity",
            "NaN",
        ],
    ),
    (
        "numeric(38,10)",
        &["0.0000000001", "-9999999999999999999999999999.9999999999"],
    ),
    ("numeric(38,0)", &["99999999999999999999999999999999999999"]),
    ("text", &["", " grüezi 🦀 ", "tab\tand\nline"]),
    ("varchar(5)", &["", "grüzi"]),
    ("char(5)", &["ab   ", "grüzi"]),
    (
        "date",
        &["4714-11-24 BC", "2024-02-29", "5874897-12-31", "infinity", "-infinity"],
    ),
    ("time", &["00:00:00", "23:59:59.999999", "24:00:00"]),
    (
        "timestamp",
        &[
            "4714-11-24 00:00:00 BC",
            "2024-02-29 12:00:00.5",
            "infinity",
            "-infinity",
        ],
    ),
    (
        "timestamptz",
        &[
            "4714-11-24 00:00:00+00 BC",
            "2024-02-29 12:00:00.5+00",
            "infinity",
            "-infinity",
        ],
    ),
    (
        "interval",
        &[
            "00:00:00",
            "1 year 2 mons 3 days 04:05:06.789",
            "-1 days +02:03:04",
            "178000000 years",
        ],
    ),
    ("bytea", &["\\x", "\\x00ff5c"]),
    (
        "uuid",
        &[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ],
    ),
];

/// Bytes as they are on the wire, of any type.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Raw(Vec<u8>);

impl ToSql for Raw {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    tokio_postgres::types::to_sql_checked!();
}

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

async fn binary(client: &Client, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Option<Raw> {
    let row = client.query_one(sql, params).await;
    row.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_in_both_formats() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = cluster::embedded(dir.path(), 2).await;
    let client = cluster::connect(&cluster.url()).await;
    let mut id = 0;
    for (number, (name, values)) in TYPES.iter().enumerate() {
        let table = format!("t{number}");
        let create = format!("CREATE TABLE {table} (id int PRIMARY KEY, v {name})");
        client
            .simple_query(&create)
            .await
            .unwrap_or_else(|e| panic!("{create}: {e:?}"));
        let select = format!("SELECT $1::{name}");
        let insert = format!("INSERT INTO {table} VALUES ($1, $2)");
        for text in *values {
            id += 1;
            let constant = format!("SELECT '{text}'::{name}");
            assert_eq!(value(&client, &constant).await, *text, "{name}");
            let sent = binary(&client, &constant, &[])
                .await
                .unwrap_or_else(|| panic!("{constant}: NULL"));
            let back = binary(&client, &select, &[&sent]).await;
            assert_eq!(back.as_ref(), Some(&sent), "{name} {text:?}");
            client
                .execute(&insert, &[&id, &sent])
                .await
                .unwrap_or_else(|e| panic!("{name} {text:?}: {e:?}"));
            // By key, and by a scan of all shards.
            for sql in [
                format!("SELECT v FROM {table} WHERE id = {id}"),
                format!("SELECT v FROM {table} ORDER BY id DESC LIMIT 1"),
            ] {
                assert_eq!(value(&client, &sql).await, *text, "{name}: {sql}");
                assert_eq!(
                    binary(&client, &sql, &[]).await.as_ref(),
                    Some(&sent),
                    "{name} {text:?}: {sql}"
                );
            }
        }
        assert_eq!(binary(&client, &select, &[&None::<Raw>]).await, None, "{name}");
        client
            .execute(&insert, &[&0, &None::<Raw>])
            .await
            .unwrap_or_else(|e| panic!("{name} NULL: {e:?}"));
        let null = format!("SELECT v IS NULL FROM {table} WHERE id = 0");
        assert_eq!(value(&client, &null).await, "t", "{name}");
    }
    drop(client);
    cluster.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_cancel_and_copy() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = cluster::embedded(dir.path(), 2).await;
    let client = cluster::connect(&cluster.url()).await;
    let rows = "CREATE TABLE many (k int PRIMARY KEY, v text)";
    client.simple_query(rows).await.expect("created");

    // What psql's \copy sends.
    let sink = client
        .copy_in::<_, Bytes>("COPY many FROM STDIN (FORMAT csv)")
        .await
        .expect("copy starts");
    let mut sink = std::pin::pin!(sink);
    let lines: String = (0..3000).map(|k| format!("{k},v{k}\n")).collect();
    sink.send(lines.into()).await.expect("sent");
    assert_eq!(sink.finish().await.expect("copied"), 3000);

    // Types come from use, from casts, and from the table; one statement, many values.
    let by_key = client
        .prepare("SELECT v FROM many WHERE k = $1")
        .await
        .expect("prepared");
    assert_eq!(by_key.params(), [Type::INT4]);
    for k in [0, 1, 2999] {
        let row = client.query_one(&by_key, &[&k]).await.expect("found");
        assert_eq!(row.get::<_, String>(0), format!("v{k}"));
    }
    assert!(client.query_opt(&by_key, &[&3000]).await.expect("reads").is_none());
    let typed = client
        .prepare("SELECT $1::date, $2::uuid, $3::numeric(10,2), k FROM many WHERE v = $4 AND k BETWEEN $5 AND $5")
        .await
        .expect("prepared");
    assert_eq!(typed.params()[..3], [Type::DATE, Type::UUID, Type::NUMERIC]);
    assert_eq!(typed.params()[4], Type::INT4);

    // A query of 27 thousand million row pairs ends within moments of the wish, and the connection goes on.
    let long = "SELECT count(*) FROM many a, many b, many c WHERE a.k + b.k + c.k = -1";
    for _ in 0..2 {
        let token = client.cancel_token();
        let cancel = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            token.cancel_query(NoTls).await.expect("sent");
            Instant::now()
        };
        let (result, wished) = tokio::join!(client.simple_query(long), cancel);
        let error = result.expect_err("cancelled");
        assert_eq!(error.code().map(|c| c.code()), Some("57014"));
        assert!(wished.elapsed() < Duration::from_secs(10), "{:?}", wished.elapsed());
        assert_eq!(value(&client, "SELECT count(*) FROM many").await, "3000");
    }
    client
        .simple_query("SET statement_timeout = '200ms'")
        .await
        .expect("set");
    assert_eq!(code(&client, long).await, "57014");
    client.simple_query("DISCARD ALL").await.expect("discarded");
    assert_eq!(value(&client, "SHOW statement_timeout").await, "0");
    drop(client);
    cluster.shutdown().await.expect("stops");
}

/// The greeting, SHOW and the views say the same; `version()` starts as drivers expect.
#[tokio::test(flavor = "multi_thread")]
async fn one_version_everywhere() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = cluster::embedded(dir.path(), 1).await;
    let client = cluster::connect(&cluster.url()).await;
    let shown = value(&client, "SHOW server_version").await;
    assert!(shown.starts_with("15.0 (Tessera "), "{shown}");
    assert_eq!(
        value(&client, "SELECT setting FROM pg_settings WHERE name = 'server_version'").await,
        shown
    );
    assert_eq!(value(&client, "SELECT version()").await, format!("PostgreSQL {shown}"));
    drop(client);
    cluster.shutdown().await.expect("stops");
}

/// Planning must neither overflow a stack nor take for ever, whatever a client nests.
#[tokio::test(flavor = "multi_thread")]
async fn deep_nesting_is_planned_or_refused() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = cluster::embedded(dir.path(), 1).await;
    let client = cluster::connect(&cluster.url()).await;
    client
        .simple_query("CREATE TABLE d (k int PRIMARY KEY)")
        .await
        .expect("created");
    client.simple_query("INSERT INTO d VALUES (1)").await.expect("inserted");
    let nest = |levels: i32, start: &str, level: &dyn Fn(&str, i32) -> String| {
        (0..levels).fold(start.to_owned(), |inner, i| level(&inner, i))
    };
    let start = Instant::now();
    let numbers = nest(60, "k", &|e, i| {
        format!("CASE WHEN k = {} THEN {i} ELSE {e} END", i + 5)
    });
    assert_eq!(value(&client, &format!("SELECT {numbers} FROM d")).await, "1");
    let booleans = |levels| {
        nest(levels, "k = 0", &|e, i| {
            format!("CASE WHEN {e} THEN k = {i} ELSE k > {i} END")
        })
    };
    assert_eq!(
        value(&client, &format!("SELECT count(*) FROM d WHERE {}", booleans(8))).await,
        "0"
    );
    for levels in [20, 60] {
        assert_eq!(
            code(&client, &format!("SELECT {} FROM d", booleans(levels))).await,
            "54001"
        );
    }
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_eq!(value(&client, "SELECT count(*) FROM d").await, "1");
    drop(client);
    cluster.shutdown().await.expect("stops");
}
