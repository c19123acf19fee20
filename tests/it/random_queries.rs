//! Seeded random queries: the same rows on every cluster shape and with each optimisation off as in one process.
//!
//! ```text
//!   seed + i --> generator --> SQL text --> DataFusion in one process ----------------------------+
//!                                       --> { 1, 2, 3 nodes } x { in process, gRPC }               +--> same rows
//!                                             x { as it is, no leaves, no join order, exchanges,   |
//!                                                 key filters, both }                             +
//! ```
//!
//! Everyday runs take a few queries in process; acceptance takes `TESSERA_RANDOM_QUERIES=5000` on all shapes. A failure
//! prints its seed: `TESSERA_RANDOM_SEED=n TESSERA_RANDOM_QUERIES=1` is that query alone.

mod generator;

use crate::cluster::{self, Processes, setting};
use crate::oracle::{self, Order, expected, found};
use generator::Generator;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_postgres::Client;

/// Queries of an everyday run: enough to meet every construct of the generator.
const QUERIES: u64 = 150;
/// Seeds beyond them that once gave other rows; their smallest forms are in `slt/random_finds.slt`.
const FOUND: [u64; 6] = [3017, 3576, 3707, 3831, 3913, 4725];
/// Mismatches after which a run gives up: the first few tell enough.
const MISMATCHES_MAX: usize = 10;
/// Longest a query over a few dozen rows may take, on a machine that is busy.
const QUERY_TIME_MAX: Duration = Duration::from_secs(60);

/// What is switched off, and how.
const MODES: [(&str, &[&str]); 7] = [
    ("as it is", &[]),
    ("no leaves", &["SET tessera.shard_local = off"]),
    ("no join order", &["SET tessera.join_order = off"]),
    (
        "exchanges, no key filters",
        &["SET tessera.distributed = on", "SET tessera.semi_join_filters = off"],
    ),
    ("key filters", &["SET tessera.semi_join_filters = on"]),
    (
        "exchanges, key filters",
        &["SET tessera.distributed = on", "SET tessera.semi_join_filters = on"],
    ),
    (
        "no leaves, exchanges",
        &["SET tessera.shard_local = off", "SET tessera.distributed = on"],
    ),
];

/// A query and what the oracle says to it.
struct Question {
    seed: u64,
    sql: String,
    order: Order,
    answer: Result<Vec<String>, String>,
}

/// What happened to all questions in one mode on one shape.
#[derive(Debug, Default)]
struct Tally {
    equal: usize,
    /// By message: Tessera said 0A000.
    refused: BTreeMap<String, usize>,
    /// By message: DataFusion cannot, so there is nothing to compare with.
    not_compared: BTreeMap<String, usize>,
    mismatches: Vec<String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn random_queries_give_the_rows_of_one_process() {
    let first = setting("TESSERA_RANDOM_SEED", 1);
    let count = setting("TESSERA_RANDOM_QUERIES", QUERIES);
    let everyday = std::env::var_os("TESSERA_RANDOM_QUERIES").is_none();
    let found = FOUND.into_iter().filter(|_| everyday);
    let questions = questions((first..first + count).chain(found)).await;
    println!("seeds {first} to {}", first + count - 1);
    let mut mismatches = vec![];
    for nodes in if everyday { 3..=3 } else { 1..=3 } {
        let dir = tempfile::tempdir().expect("temporary folder");
        let cluster = cluster::embedded(dir.path(), nodes).await;
        mismatches.extend(ask_all(&cluster.url(), &format!("{nodes} nodes in process"), &questions).await);
        cluster.shutdown().await.expect("stops");
        if everyday {
            continue;
        }
        let dir = tempfile::tempdir().expect("temporary folder");
        let processes = Processes::start(dir.path(), nodes).await;
        mismatches.extend(ask_all(processes.url(), &format!("{nodes} nodes over gRPC"), &questions).await);
        processes.stop();
    }
    assert!(
        mismatches.is_empty(),
        "{} mismatches\n{}",
        mismatches.len(),
        mismatches.join("\n\n")
    );
}

async fn questions(seeds: impl Iterator<Item = u64>) -> Vec<Question> {
    let oracle = oracle::datafusion(&generator::tables()).await;
    let mut questions = vec![];
    for seed in seeds {
        let (sql, order) = Generator::new(seed).statement();
        let answer = expected(&oracle, &sql, order).await.map_err(|e| e.strip_backtrace());
        questions.push(Question {
            seed,
            sql,
            order,
            answer,
        });
    }
    questions
}

/// All questions in all modes; prints a line for each mode and returns the mismatches.
async fn ask_all(url: &str, shape: &str, questions: &[Question]) -> Vec<String> {
    let client = cluster::connect(url).await;
    oracle::fill(&client, &generator::tables()).await;
    let mut mismatches = vec![];
    for (mode, settings) in MODES {
        let client = cluster::connect(url).await;
        for set in settings {
            client.simple_query(set).await.expect("is set");
        }
        let tally = ask(&client, questions).await;
        let count = |by_message: &BTreeMap<String, usize>| by_message.values().sum::<usize>();
        let (refused, not_compared) = (count(&tally.refused), count(&tally.not_compared));
        println!(
            "{shape}, {mode}: {} equal, {} different, {refused} refused, {not_compared} not compared",
            tally.equal,
            tally.mismatches.len(),
        );
        if mode == MODES[0].0 {
            for (message, count) in tally.refused.iter().chain(&tally.not_compared) {
                println!("  {count} x {message}");
            }
        }
        // A generator that asks for what nobody can do tests nothing.
        assert!((refused + not_compared) * 10 <= questions.len().max(100), "{tally:?}");
        mismatches.extend(tally.mismatches.into_iter().map(|m| format!("{shape}, {mode}: {m}")));
        if mismatches.len() >= MISMATCHES_MAX {
            break;
        }
    }
    mismatches
}

async fn ask(client: &Client, questions: &[Question]) -> Tally {
    let mut tally = Tally::default();
    for question in questions {
        let found = tokio::time::timeout(QUERY_TIME_MAX, found(client, &question.sql, question.order));
        let Question { seed, sql, .. } = question;
        let mismatches = &mut tally.mismatches;
        let mut mismatch = |what: String| mismatches.push(format!("seed {seed}: {what}\n  {sql}"));
        match (found.await, &question.answer) {
            (Err(_), _) => mismatch(format!("no answer in {QUERY_TIME_MAX:?}")),
            (Ok(Err(error)), answer) => {
                let db = error.as_db_error();
                let (code, message) = db.map_or(("", error.to_string()), |e| (e.code().code(), e.message().to_owned()));
                match answer {
                    Err(theirs) => *tally.not_compared.entry(shorten(theirs)).or_default() += 1,
                    Ok(_) if code == "0A000" => *tally.refused.entry(shorten(&message)).or_default() += 1,
                    Ok(_) => mismatch(format!("{code} {message}")),
                }
            }
            (Ok(Ok(_)), Err(theirs)) => *tally.not_compared.entry(shorten(theirs)).or_default() += 1,
            (Ok(Ok(rows)), Ok(answer)) if rows == *answer => tally.equal += 1,
            (Ok(Ok(rows)), Ok(answer)) => mismatch(difference(&rows, answer)),
        }
        if tally.mismatches.len() >= MISMATCHES_MAX {
            break;
        }
    }
    tally
}

fn difference(rows: &[String], answer: &[String]) -> String {
    let only = |of: &[String], other: &[String]| {
        let only = of.iter().filter(|row| !other.contains(row)).take(3).cloned();
        only.collect::<Vec<_>>().join(" | ")
    };
    format!(
        "{} rows, expected {}; only here: {}; missing: {}",
        rows.len(),
        answer.len(),
        only(rows, answer),
        only(answer, rows)
    )
}

/// The first words of a message: enough to tell kinds apart, without the names of columns.
fn shorten(message: &str) -> String {
    message.lines().next().unwrap_or_default().chars().take(90).collect()
}
