//! Clients that write while faults happen, and the book they keep about it.
//!
//! ```text
//!   writer   INSERT of 40 rows over all shards · INSERT of 1 row · COPY of few rows · COPY of many (staged)
//!   book     statement 17: 40 rows, acknowledged | refused | unknown
//!   check    acknowledged: all rows, once    refused: none    unknown: all or none    anything else: none
//! ```
//!
//! A statement that got an SQLSTATE other than 40003 was refused: none of its rows may ever show up. One whose connection
//! broke, or 40003, may be there, but whole.

use crate::cluster::{self, rows};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio_postgres::Client;

/// Rows of one kind of statement; a key is statement * KEYS + row.
const KEYS: u64 = 1_000_000;
/// Enough of these texts to go beyond what a statement keeps in memory (8 MiB), so that rows are staged.
const STAGED_ROWS: u64 = 9_000;
const STAGED_TEXT: usize = 1_000;

/// What became of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    UnderWay,
    Acknowledged,
    Refused,
    Unknown,
}

/// How many statements met which fate.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub acknowledged: u64,
    pub refused: u64,
    pub unknown: u64,
}

/// A table that is written to, and the book about it.
#[derive(Debug)]
pub struct Workload {
    pub table: String,
    pub shards: usize,
    next: AtomicU64,
    book: Mutex<BTreeMap<u64, (u64, Fate)>>,
    refusals: Mutex<BTreeMap<String, u64>>,
    /// One COPY in so many is a large one.
    large_every: u64,
}

/// Writers at work.
pub struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    /// Lets every writer end its statement.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.expect("a writer ends");
        }
    }
}

impl Workload {
    /// Creates the table.
    pub async fn create(client: &Client, table: &str, shards: usize, large_every: u64) -> Arc<Self> {
        client
            .simple_query(&format!(
                "CREATE TABLE {table} (k bigint PRIMARY KEY, statement bigint NOT NULL, v text) SHARD BY HASH(k) SHARDS {shards}"
            ))
            .await
            .expect("created");
        Arc::new(Self {
            table: table.into(),
            shards,
            next: AtomicU64::new(1),
            book: Mutex::default(),
            refusals: Mutex::default(),
            large_every,
        })
    }

    /// Starts writers with connections of their own; each ends when told to, or when its connection breaks.
    pub fn write(self: &Arc<Self>, url: &str, seed: u64) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..3).map(|writer| {
            let (workload, stop, url) = (self.clone(), stop.clone(), url.to_owned());
            let mut rng = StdRng::seed_from_u64(seed * 10 + writer);
            tokio::spawn(async move {
                let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await else {
                    return;
                };
                let connection = tokio::spawn(connection);
                while !stop.load(Ordering::SeqCst) && !client.is_closed() {
                    workload.statement(&client, writer, &mut rng).await;
                }
                drop(client);
                let _ = connection.await;
            })
        });
        Writers {
            tasks: tasks.collect(),
            stop,
        }
    }

    async fn statement(&self, client: &Client, writer: u64, rng: &mut StdRng) {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let copies = writer == 2;
        let large = copies && rng.random_range(0..self.large_every) == 0;
        let (count, text) = match (copies, large) {
            (true, true) => (STAGED_ROWS, STAGED_TEXT),
            (true, false) => (rng.random_range(50..500), 10),
            (false, _) if rng.random_range(0..4) == 0 => (1, 10),
            (false, _) => (40, 10),
        };
        self.book.lock().expect("book").insert(number, (count, Fate::UnderWay));
        let written = match copies {
            true => self.copy(client, number, count, text).await,
            false => self.insert(client, number, count).await,
        };
        let fate = match written {
            Ok(()) => Fate::Acknowledged,
            Err(error) => match error.code().map(|c| c.code()) {
                None | Some("40003") => Fate::Unknown,
                Some(code) => {
                    let text = error.as_db_error().map(|e| e.message().to_owned()).unwrap_or_default();
                    let text: String = text.chars().filter(|c| !c.is_ascii_digit()).take(60).collect();
                    *self
                        .refusals
                        .lock()
                        .expect("refusals")
                        .entry(format!("{code} {text}"))
                        .or_default() += 1;
                    Fate::Refused
                }
            },
        };
        self.book.lock().expect("book").insert(number, (count, fate));
    }

    async fn insert(&self, client: &Client, number: u64, count: u64) -> Result<(), tokio_postgres::Error> {
        let values: Vec<_> = (0..count)
            .map(|i| format!("({}, {number}, 'inserted')", number * KEYS + i))
            .collect();
        let sql = format!("INSERT INTO {} VALUES {}", self.table, values.join(","));
        client.simple_query(&sql).await.map(drop)
    }

    async fn copy(&self, client: &Client, number: u64, count: u64, text: usize) -> Result<(), tokio_postgres::Error> {
        use futures::SinkExt;
        let sql = format!("COPY {} FROM STDIN (FORMAT csv)", self.table);
        let mut sink = std::pin::pin!(client.copy_in::<_, bytes::Bytes>(&sql).await?);
        for first in (0..count).step_by(500) {
            let lines: String = (first..count.min(first + 500))
                .map(|i| format!("{},{number},{:0text$}\n", number * KEYS + i, i))
                .collect();
            sink.send(lines.into()).await?;
        }
        sink.finish().await.map(drop)
    }

    /// Checks the book against the table. Nothing may be under way.
    pub async fn check(&self, client: &Client) -> Counts {
        let sql = format!(
            "SELECT statement, count(*), count(DISTINCT k), min(k), max(k) FROM {} GROUP BY statement",
            self.table
        );
        let mut found: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for row in rows(client, &sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")) {
            let numbers: Vec<u64> = row
                .iter()
                .map(|v| v.as_ref().expect("a number").parse().expect("a number"))
                .collect();
            found.insert(numbers[0], numbers[1..].to_vec());
        }
        let mut counts = Counts::default();
        for (number, (count, fate)) in self.book.lock().expect("book").iter() {
            let there = found.remove(number);
            let whole = there
                .as_ref()
                .is_some_and(|t| *t == [*count, *count, number * KEYS, number * KEYS + count - 1]);
            let (sound, counter) = match fate {
                Fate::Acknowledged => (whole, &mut counts.acknowledged),
                Fate::Refused => (there.is_none(), &mut counts.refused),
                Fate::Unknown | Fate::UnderWay => (whole || there.is_none(), &mut counts.unknown),
            };
            *counter += 1;
            assert!(sound, "statement {number} of {count} rows, {fate:?}: found {there:?}");
        }
        assert!(found.is_empty(), "rows that nobody wrote: {found:?}");
        counts
    }

    /// Statements acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        let book = self.book.lock().expect("book");
        book.values().filter(|(_, fate)| *fate == Fate::Acknowledged).count() as u64
    }

    /// Why statements were refused, for the summary.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        self.refusals.lock().expect("refusals").clone()
    }

    /// All copies in sync and equal, then [`Self::check`].
    pub async fn verify(&self, client: &Client) -> Counts {
        cluster::until_verified(client, &self.table, self.shards, 2).await;
        self.check(client).await
    }
}
