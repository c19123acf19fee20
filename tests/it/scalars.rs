//! Scalars as in PostgreSQL 15: recorded answers, and random expressions beside a living one.
//!
//! ```text
//!   scalars/postgres15.txt   expression, what PostgreSQL 15 (C collation) answers for the rows of `sc`; where Tessera answers
//!                            otherwise, that answer and why
//!   generator.rs             a seed --> a typed expression --> the same rows, or the same SQLSTATE, from both
//! ```
//!
//! `TESSERA_POSTGRES=postgres://...` is a PostgreSQL 15 to compare with: the recorded answers are asked for again, and
//! `TESSERA_RANDOM_SCALARS` expressions (300) are tried. Without it only the recorded answers count, and the test says so.
//! Numbers are compared as numbers: numerics of one column have one scale here.

mod generator;

use crate::cluster::{self, setting};
use generator::Generator;
use std::collections::BTreeMap;
use tokio_postgres::{Client, SimpleQueryMessage};

const RECORDED: &str = include_str!("scalars/postgres15.txt");

const TABLE: &str = "CREATE TABLE sc (k int PRIMARY KEY, i int, b bigint, s smallint, n numeric(10,2), f double precision, \
    t text, d date, ts timestamp, bo boolean)";

const ROWS: &str = "INSERT INTO sc VALUES \
    (1, 2147483647, 9223372036854775807, 32767, 1.55, 1.5, 'Hello', '2024-02-29', '2024-02-29 12:34:56.789', true), \
    (2, -7, -7, -7, -2.50, -2.5, '', '1999-12-31', '1999-12-31 23:59:59', false), \
    (3, 7, 7, 7, 7, 7, 'äöü b', '2021-01-03', '2021-01-03 00:00:00', null), \
    (4, null, null, null, null, null, null, null, null, null)";

/// An expression with PostgreSQL's answer, and ours where it is another.
struct Recorded {
    sql: &'static str,
    answer: &'static str,
    here: Option<&'static str>,
}

fn recorded() -> Vec<Recorded> {
    let mut all: Vec<Recorded> = vec![];
    for line in RECORDED.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        match (line.strip_prefix("  here "), line.strip_prefix("  ")) {
            (Some(here), _) => {
                let (answer, why) = here.split_once(" -- ").expect("a reason");
                assert!(!why.is_empty());
                all.last_mut().expect("an expression").here = Some(answer);
            }
            (None, Some(answer)) => all.last_mut().expect("an expression").answer = answer,
            (None, None) => all.push(Recorded {
                sql: line,
                answer: "",
                here: None,
            }),
        }
    }
    all
}

/// Values of the rows of `sc` in the order of k, or the error's SQLSTATE.
async fn answer(client: &Client, sql: &str) -> String {
    let sql = format!("SELECT {sql} AS value FROM sc ORDER BY k");
    match client.simple_query(&sql).await {
        Ok(messages) => {
            let values = messages.iter().filter_map(|m| match m {
                SimpleQueryMessage::Row(row) => Some(match row.get(0) {
                    None => "NULL",
                    Some("") => "(empty)",
                    Some(value) => value,
                }),
                _ => None,
            });
            values.collect::<Vec<_>>().join(" ~ ")
        }
        Err(error) => format!("ERROR {}", error.code().map_or("", |code| code.code())),
    }
}

/// Equal as text, or as numbers to twelve digits.
fn same(ours: &str, theirs: &str) -> bool {
    let (ours, theirs): (Vec<_>, Vec<_>) = (ours.split(" ~ ").collect(), theirs.split(" ~ ").collect());
    let equal = |a: &str, b: &str| match (a.parse::<f64>(), b.parse::<f64>()) {
        _ if a == b => true,
        (Ok(a), Ok(b)) => (a - b).abs() <= 1e-12 * a.abs().max(b.abs()).max(1e-3),
        _ => false,
    };
    ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| equal(a, b))
}

async fn fill(client: &Client) {
    for sql in ["DROP TABLE IF EXISTS sc", TABLE, ROWS] {
        client
            .simple_query(sql)
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scalars_are_those_of_postgresql() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = cluster::embedded(dir.path(), 3).await;
    let client = cluster::connect(&cluster.url()).await;
    fill(&client).await;
    let recorded = recorded();
    assert!(recorded.len() > 200);
    let mut wrong = vec![];
    for settings in [
        "",
        "SET tessera.shard_local = off",
        "SET tessera.shard_local = on; SET tessera.distributed = on",
    ] {
        client.simple_query(settings).await.expect("settings");
        for Recorded {
            sql,
            answer: theirs,
            here,
        } in &recorded
        {
            let wanted = here.unwrap_or(theirs);
            let ours = answer(&client, sql).await;
            if !same(&ours, wanted) {
                wrong.push(format!("{settings} {sql}\n  {ours}\n  instead of {wanted}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
    match std::env::var("TESSERA_POSTGRES") {
        Ok(url) => beside_postgresql(&client, &url, &recorded).await,
        Err(_) => println!("skipped: random expressions; set TESSERA_POSTGRES to a PostgreSQL 15 to compare with"),
    }
    cluster.shutdown().await.expect("stops");
}

async fn beside_postgresql(ours: &Client, url: &str, recorded: &[Recorded]) {
    let theirs = cluster::connect(url).await;
    let version = cluster::value(&theirs, "SHOW server_version").await;
    assert!(version.starts_with("15."), "{version}");
    fill(&theirs).await;
    let mut wrong = vec![];
    for Recorded { sql, answer: kept, .. } in recorded {
        let now = answer(&theirs, sql).await;
        if !same(&now, kept) {
            wrong.push(format!("{sql}\n  PostgreSQL says {now}\n  recorded is {kept}"));
        }
    }
    let (first, count) = (
        setting("TESSERA_RANDOM_SEED", 1),
        setting("TESSERA_RANDOM_SCALARS", 300),
    );
    let mut tally: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in first..first + count {
        let sql = Generator::new(seed).expression();
        let (ours, theirs) = (answer(ours, &sql).await, answer(&theirs, &sql).await);
        let kind = match (ours.starts_with("ERROR"), same(&ours, &theirs)) {
            (false, true) => "equal",
            (true, true) => "the same error",
            _ => {
                wrong.push(format!("seed {seed}: {sql}\n  {ours}\n  PostgreSQL: {theirs}"));
                "different"
            }
        };
        *tally.entry(kind).or_default() += 1;
    }
    println!("scalars, seeds {first} to {}: {tally:?}", first + count - 1);
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}
