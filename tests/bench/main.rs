//! Criterion benchmarks of single steps: what a change to one of them costs or gains, before it shows in a workload.
//!
//! ```text
//!   parse   text ─▶ statement                        plan        text ─▶ distributed plan (EXPLAIN)
//!   wal     append, fdatasync                        point read  prepared SELECT by primary key, in process
//!   encode  rows ─▶ PostgreSQL text, over loopback   scan        sum over decoded columns, in process
//! ```
//!
//! `cargo bench --bench steps [-- NAME]`. One embedded cluster of three nodes with followers and the TPC-H tables at scale 0.01
//! serves them all. The disk decides the figure of `wal`.

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use datafusion::scalar::ScalarValue;
use futures::TryStreamExt;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;
use tessera::embedded::{Embedded, EmbeddedOptions};
use tessera_benches::{BenchOptions, Load, tpch};
use tessera_parser::ParsedStatement;
use tessera_proto::{Epoch, GroupId, LogIndex, NodeId, ShardId};
use tessera_router::{Outcome, Session, SessionParams};
use tessera_shard_node::storage::Identity;
use tessera_shard_node::storage::wal::{EntryKind, LogRecord, Record, Wal};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Of the cluster's tables.
const SCALE: f64 = 0.01;

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().thread_stack_size(tessera_router::STACK_BYTES);
    builder.build().expect("threads start")
}

fn statement(sql: &str) -> ParsedStatement {
    let mut statements = tessera_parser::parse(sql).expect("it is SQL");
    statements.pop().expect("one statement")
}

/// The text of one of the TPC-H queries.
fn query(number: u8) -> &'static str {
    let queries = tpch::workload().queries;
    let found = queries.iter().find(|q| q.number == number);
    found.expect("there are 22").sql
}

/// Runs a statement to its end; its rows.
async fn rows(session: &mut Session, statement: &ParsedStatement, params: Vec<ScalarValue>) -> usize {
    let outcome = session.execute(statement, params, CancellationToken::new()).await;
    let Outcome::Rows { stream, .. } = outcome.expect("it runs") else {
        panic!("no rows");
    };
    let batches: Vec<_> = stream.try_collect().await.expect("it ends");
    batches.iter().map(|b| b.num_rows()).sum()
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    for number in [1, 21] {
        let text = query(number);
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(format!("query {number}"), |b| b.iter(|| statement(black_box(text))));
    }
}

fn queries(c: &mut Criterion) {
    let (runtime, dir) = (runtime(), tempfile::tempdir().expect("temporary folder"));
    let cluster = runtime.block_on(async {
        let cluster = Embedded::start(EmbeddedOptions::local(dir.path(), 3))
            .await
            .expect("starts");
        let mut options = BenchOptions::new(cluster.url(), SCALE);
        options.load = Load::Stream;
        options.queries = Some(vec![6]);
        let report = tessera_benches::run(&tpch::workload(), options).await.expect("loads");
        assert!(report.ok(), "{report}");
        cluster
    });
    let mut session = cluster.engine().session(SessionParams::default());
    for number in [1, 5, 21] {
        let explain = statement(&format!("EXPLAIN {}", query(number)));
        let name = format!("plan/query {number}");
        c.bench_function(&name, |b| {
            b.iter(|| runtime.block_on(rows(&mut session, &explain, vec![])))
        });
    }
    let point = statement("SELECT o_totalprice FROM orders WHERE o_orderkey = $1");
    c.bench_function("point read", |b| {
        let mut key = 0;
        b.iter(|| {
            // Eight of 32 numbers are used.
            key = (key + 32) % 60_000;
            let found = runtime.block_on(rows(&mut session, &point, vec![ScalarValue::Int64(Some(key + 1))]));
            assert_eq!(found, 1);
        })
    });
    let mut group = c.benchmark_group("scan");
    let count = statement("SELECT l_orderkey FROM lineitem");
    group.throughput(Throughput::Elements(
        runtime.block_on(rows(&mut session, &count, vec![])) as u64,
    ));
    let sum = statement("SELECT sum(l_extendedprice), max(l_comment) FROM lineitem");
    group.bench_function("sum and max", |b| {
        b.iter(|| runtime.block_on(rows(&mut session, &sum, vec![])))
    });
    group.finish();
    encode(c, &runtime, &cluster);
    drop(session);
    runtime.block_on(cluster.shutdown()).expect("stops");
}

fn encode(c: &mut Criterion, runtime: &Runtime, cluster: &Embedded) {
    let (client, connection) = runtime
        .block_on(tokio_postgres::connect(&cluster.url(), tokio_postgres::NoTls))
        .expect("connects");
    let connection = runtime.spawn(connection);
    let text = "SELECT l_orderkey, l_extendedprice, l_shipdate, l_comment FROM lineitem";
    let read = || runtime.block_on(client.simple_query(text)).expect("it runs").len();
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Elements(read() as u64));
    group.bench_function("rows of four columns", |b| b.iter(read));
    group.finish();
    drop(client);
    let _ = runtime.block_on(connection);
}

fn wal(c: &mut Criterion) {
    let (runtime, dir) = (runtime(), tempfile::tempdir().expect("temporary folder"));
    let identity = Identity {
        cluster_id: "bench".into(),
        disk: Default::default(),
        node: NodeId(1),
    };
    let shard = ShardId {
        group: GroupId(1),
        index: 0,
    };
    let _guard = runtime.enter();
    let (wal, _) = Wal::open(dir.path(), &identity).expect("opens");
    let wal = Arc::new(wal);
    let mut group = c.benchmark_group("wal");
    let mut last = 0;
    for size in [128, 64 << 10] {
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("append {size} bytes"), |b| {
            b.iter_batched(
                || {
                    last += 1;
                    let record = LogRecord {
                        epoch: Epoch(1),
                        index: LogIndex(last),
                        kind: EntryKind::Commit,
                        payload: Bytes::from(vec![7; size]),
                    };
                    vec![Record::Entry { shard, record }]
                },
                |records| runtime.block_on(wal.append(records)).expect("is durable"),
                BatchSize::PerIteration,
            );
            // Else the log would keep it all.
            wal.release(shard, LogIndex(last));
        });
    }
    group.finish();
    wal.close();
}

criterion_group! {
    name = steps;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3));
    targets = parse, queries, wal
}
criterion_main!(steps);
