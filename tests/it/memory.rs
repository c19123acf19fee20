//! Queries with little memory: spill, sort-merge joins instead of hash joins, and many at a time.
//!
//! ```text
//!   every query   without a limit: peak, answer ──▶ with a quarter of its peak: the same answer
//!   32 sessions   heavy joins at once, in a pool that a few of them would fill
//! ```
//!
//! `TESSERA_MEMORY_SCALE=1` runs all of TPC-H at that scale; without it one join and one sort stand for them.

use crate::cluster::{self, connect, rows};
use arc_swap::ArcSwap;
use datafusion::common::Result;
use datafusion::execution::memory_pool::{
    MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation, human_readable_size,
};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tessera::embedded::{Embedded, EmbeddedOptions};
use tessera_benches::{BenchOptions, Load, run, tpch};
use tessera_proto::memory::{BYTES_MIN, query_pool};
use tokio::sync::Notify;
use tokio_postgres::Client;

/// As good as none.
const UNLIMITED: usize = 16 << 30;

/// The product's pool, whose limit a test moves between queries; remembers the peak.
struct Adjustable {
    pool: ArcSwap<Arc<dyn MemoryPool>>,
    limit: AtomicUsize,
    consumers: AtomicUsize,
    /// Told when the last consumer goes.
    freed: Notify,
    peak: AtomicUsize,
    refused: AtomicUsize,
}

impl Adjustable {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            pool: ArcSwap::from_pointee(query_pool(UNLIMITED)),
            limit: AtomicUsize::new(UNLIMITED),
            consumers: AtomicUsize::new(0),
            freed: Notify::new(),
            peak: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        })
    }

    /// Sets the limit for what comes, and forgets the peak.
    async fn limit(&self, bytes: usize) {
        while self.consumers.load(Ordering::SeqCst) > 0 {
            let freed = tokio::time::timeout(cluster::PATIENCE, self.freed.notified()).await;
            assert!(freed.is_ok(), "the last query still has memory: {:?}", self.pool.load());
        }
        assert_eq!(self.reserved(), 0, "memory that nobody holds");
        self.pool.store(Arc::new(query_pool(bytes)));
        self.limit.store(bytes, Ordering::SeqCst);
        self.peak.store(0, Ordering::SeqCst);
        self.refused.store(0, Ordering::SeqCst);
    }

    fn noted(&self) {
        self.peak.fetch_max(self.reserved(), Ordering::SeqCst);
    }
}

impl MemoryPool for Adjustable {
    fn name(&self) -> &str {
        "adjustable"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.consumers.fetch_add(1, Ordering::SeqCst);
        self.pool.load().register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.pool.load().unregister(consumer);
        if self.consumers.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.freed.notify_one();
        }
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.pool.load().grow(reservation, additional);
        self.noted();
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.pool.load().shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let grown = self.pool.load().try_grow(reservation, additional);
        if grown.is_err() {
            self.refused.fetch_add(1, Ordering::SeqCst);
        }
        self.noted();
        grown
    }

    fn reserved(&self) -> usize {
        self.pool.load().reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.limit.load(Ordering::SeqCst))
    }
}

impl fmt::Debug for Adjustable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Adjustable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "adjustable, {}",
            human_readable_size(self.limit.load(Ordering::SeqCst))
        )
    }
}

async fn start(dir: &Path, memory: Arc<Adjustable>) -> Embedded {
    let mut options = EmbeddedOptions::local(dir, 3);
    options.query_memory = memory;
    options.column_bytes = 256 << 20;
    Embedded::start(options).await.expect("the cluster starts")
}

type Answer = Vec<Vec<Option<String>>>;

async fn answer(client: &Client, sql: &str) -> std::result::Result<Answer, tokio_postgres::Error> {
    let mut rows = rows(client, sql).await?;
    rows.sort();
    Ok(rows)
}

/// What a query took.
struct Taken {
    peak: usize,
    limit: usize,
    refused: usize,
    slower: f64,
}

/// Runs `sql` without a limit, and with a quarter of what it took then.
async fn in_a_quarter(client: &Client, memory: &Adjustable, sql: &str) -> std::result::Result<Taken, String> {
    memory.limit(UNLIMITED).await;
    let start = Instant::now();
    let wanted = answer(client, sql)
        .await
        .map_err(|e| format!("without a limit: {e:?}"))?;
    let unlimited = start.elapsed();
    let peak = memory.peak.load(Ordering::SeqCst);
    let limit = (peak / 4).max(BYTES_MIN);
    memory.limit(limit).await;
    let start = Instant::now();
    let got = answer(client, sql).await;
    let limited = start.elapsed();
    let got = got.map_err(|e| format!("{} of {}: {e:?}", human_readable_size(limit), human_readable_size(peak)))?;
    if got != wanted {
        return Err("another answer".to_owned());
    }
    Ok(Taken {
        peak,
        limit,
        refused: memory.refused.load(Ordering::SeqCst),
        slower: limited.as_secs_f64() / unlimited.as_secs_f64().max(1e-6),
    })
}

/// Rows enough for a hash join of 64 MB and more.
async fn fill(cluster: &Embedded, client: &Client) {
    let table = "CREATE TABLE t (k bigint PRIMARY KEY, other bigint, v text) SHARD BY HASH (k) SHARDS 6";
    client.batch_execute(table).await.expect("a table");
    let rows = "INSERT INTO t SELECT n, 240000 - n, repeat('x', 100) || n FROM generate_series(1, 240000) AS s (n)";
    client.batch_execute(rows).await.expect("rows");
    cluster.engine().refresh_statistics(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_complete_in_a_quarter_of_their_memory() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let memory = Adjustable::new();
    let cluster = start(dir.path(), memory.clone()).await;
    let client = connect(&cluster.url()).await;
    fill(&cluster, &client).await;
    for sql in [
        "SELECT count(*), max(a.v), max(b.v) FROM t a JOIN t b ON a.other = b.k",
        "SELECT count(*), max(a.v) FROM t a LEFT JOIN t b ON a.other = b.other + 1 AND a.v <> b.v WHERE b.k IS NULL",
        "SELECT count(*) FROM t a WHERE EXISTS (SELECT 1 FROM t b WHERE b.other = a.k AND b.v > a.v)",
        "SELECT max(n), sum(k) FROM (SELECT k, row_number() OVER (ORDER BY v, k) AS n FROM t) s",
        "SELECT count(*), max(c) FROM (SELECT v, count(*) AS c FROM t GROUP BY v) s",
    ] {
        for how in ["off", "on"] {
            let set = format!("SET tessera.distributed = {how}");
            client.batch_execute(&set).await.expect("a setting");
            println!("{sql}, distributed {how}");
            let taken = in_a_quarter(&client, &memory, sql)
                .await
                .unwrap_or_else(|e| panic!("{sql}, distributed {how}: {e}"));
            assert!(
                taken.peak > 4 * BYTES_MIN,
                "{sql}: {} are no test",
                human_readable_size(taken.peak)
            );
            assert!(taken.refused > 0, "{sql}: the limit was never reached");
        }
    }
    cluster.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_at_once_finish_in_the_limit() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let memory = Adjustable::new();
    let cluster = start(dir.path(), memory.clone()).await;
    let client = connect(&cluster.url()).await;
    fill(&cluster, &client).await;
    let sql = "SELECT count(*), max(a.v), max(b.v) FROM t a JOIN t b ON a.other = b.k";
    let wanted = answer(&client, sql).await.expect("an answer");
    let one = memory.peak.load(Ordering::SeqCst);
    memory.limit(2 * one).await;
    let url = cluster.url();
    let sessions = (0..32).map(|_| async {
        let client = connect(&url).await;
        answer(&client, sql).await
    });
    let all = tokio::time::timeout(Duration::from_secs(300), futures::future::join_all(sessions));
    for got in all.await.expect("in time") {
        assert_eq!(got.expect("an answer"), wanted);
    }
    assert!(
        memory.peak.load(Ordering::SeqCst) <= 2 * one + one / 4,
        "beyond the limit"
    );
    cluster.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn tpch_completes_in_a_quarter_of_its_memory() {
    let Ok(scale) = std::env::var("TESSERA_MEMORY_SCALE") else {
        println!("skipped: set TESSERA_MEMORY_SCALE");
        return;
    };
    let scale: f64 = scale.parse().expect("a scale factor");
    let dir = tempfile::tempdir().expect("temporary folder");
    let memory = Adjustable::new();
    let cluster = start(dir.path(), memory.clone()).await;
    let mut options = BenchOptions::new(cluster.url(), scale);
    (options.load, options.queries) = (Load::Stream, Some(vec![6]));
    run(&tpch::workload(), options).await.expect("loads");
    cluster.engine().refresh_statistics(None).await;
    let client = connect(&cluster.url()).await;
    let mut failed = vec![];
    println!("query      peak     limit  refused  time limited / unlimited");
    for query in &tpch::workload().queries {
        let name = query.name();
        match in_a_quarter(&client, &memory, query.sql).await {
            Ok(taken) => println!(
                "{name:>5} {:>9} {:>9} {:>8} {:>6.2}",
                human_readable_size(taken.peak),
                human_readable_size(taken.limit),
                taken.refused,
                taken.slower
            ),
            Err(error) => {
                println!("{name:>5} FAILED: {error}");
                failed.push(name);
            }
        }
    }
    cluster.shutdown().await.expect("stops");
    assert!(failed.is_empty(), "{failed:?}");
}
