//! Flight SQL as its clients meet it: the same answers as on the PostgreSQL port, in columns, and rows straight from the nodes.
//!
//! ```text
//!   embedded    statements, prepared statements, metadata, ingest, cancel, garbage          one address
//!   processes   one endpoint per node; each ticket redeemed at its leader, its follower and the router
//! ```
//!
//! `tests/clients/adbc_flight.py` does what Python programs do, with the ADBC driver.

use crate::cluster::{self, Processes, rows};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    Any, CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetTables, CommandGetXdbcTypeInfo, CommandStatementIngest,
    ProstMessageExt, SqlInfo, TableDefinitionOptions, TableExistsOption, TableNotExistOption, TicketStatementQuery,
};
use arrow_flight::{Action, FlightData, FlightDescriptor, FlightInfo, Ticket};
use bytes::Bytes;
use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::Schema;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tessera::embedded::Embedded;
use tessera_meta::remote::RemoteMeta;
use tessera_meta::secret::cluster_secret;
use tessera_proto::flight::seal::{TICKET_LIFE, expires_in};
use tessera_proto::v1::LeafTicket;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

type Client = FlightSqlServiceClient<Channel>;

async fn channel(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("connects")
}

/// A client of this user, after its handshake.
async fn connect(address: SocketAddr, user: &str) -> Client {
    let mut client = Client::new(channel(&address.to_string()).await);
    client.handshake(user, "not looked at").await.expect("shakes hands");
    assert!(client.token().is_some_and(|token| !token.is_empty()));
    client
}

async fn embedded(dir: &std::path::Path, nodes: u32) -> (Embedded, Client) {
    let cluster = cluster::embedded(dir, nodes).await;
    let client = connect(cluster.flight_address().expect("serves Flight SQL"), "ann").await;
    (cluster, client)
}

async fn execute(client: &mut Client, sql: &str) -> FlightInfo {
    let info = client.execute(sql.to_owned(), None).await;
    info.unwrap_or_else(|e| panic!("{sql}: {e}"))
}

async fn redeem(client: &mut Client, ticket: Ticket) -> Result<Vec<RecordBatch>, FlightError> {
    client.do_get(ticket).await?.try_collect().await
}

/// All rows of all endpoints, by this client's connection, as text.
async fn fetch(client: &mut Client, info: FlightInfo) -> Vec<Vec<Option<String>>> {
    let mut out = vec![];
    for endpoint in info.endpoint {
        let batches = redeem(client, endpoint.ticket.expect("a ticket")).await.expect("rows");
        out.extend(batches.iter().flat_map(text));
    }
    out
}

async fn query(client: &mut Client, sql: &str) -> Vec<Vec<Option<String>>> {
    let info = execute(client, sql).await;
    fetch(client, info).await
}

fn text(batch: &RecordBatch) -> Vec<Vec<Option<String>>> {
    let options = FormatOptions::default();
    let cell = |column: &ArrayRef, row: usize| {
        let format = ArrayFormatter::try_new(column.as_ref(), &options).expect("formats");
        column.is_valid(row).then(|| format.value(row).to_string())
    };
    let row = |row| batch.columns().iter().map(|column| cell(column, row)).collect();
    (0..batch.num_rows()).map(row).collect()
}

/// The status of a call that must fail.
fn failed<T>(result: Result<T, FlightError>) -> Status {
    match result {
        Err(FlightError::Tonic(status)) => *status,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("succeeded"),
    }
}

#[track_caller]
fn refused<T>(result: Result<T, FlightError>, code: Code, sqlstate: &str) {
    let status = failed(result);
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().starts_with(&format!("[{sqlstate}]")), "{status}");
}

const TABLE: &str =
    "CREATE TABLE t (k bigint PRIMARY KEY, v text, price numeric(10,2), at timestamptz) SHARD BY HASH(k) SHARDS 6";

async fn fill(client: &mut Client, rows: i64) {
    let info = execute(client, TABLE).await;
    assert!(info.endpoint.is_empty());
    let values: Vec<_> = (1..=rows)
        .map(|k| format!("({k}, 'v{k}', {k}.25, '2024-02-29 12:00:00+00')"))
        .collect();
    let info = execute(client, &format!("INSERT INTO t VALUES {}", values.join(","))).await;
    assert_eq!((info.total_records, info.endpoint.len()), (rows, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_and_errors() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (cluster, mut client) = embedded(dir.path(), 3).await;
    fill(&mut client, 500).await;
    let pg = cluster::connect(&cluster.url()).await;
    for sql in [
        "SELECT k, v, price FROM t ORDER BY k LIMIT 20",
        "SELECT v, k FROM t WHERE k = 77",
        "SELECT count(*), sum(price), max(v) FROM t",
        "SELECT count(*) FROM t a JOIN t b ON a.k = b.k + 1",
        "SELECT k, NULL::text FROM t WHERE k < 0",
        "SELECT relname FROM pg_class WHERE relname = 't'",
        "SHOW statement_timeout",
    ] {
        assert_eq!(query(&mut client, sql).await, rows(&pg, sql).await.expect(sql), "{sql}");
    }
    // A whole leaf: an endpoint per node, in any order.
    let sql = "SELECT k, v, price FROM t";
    let info = execute(&mut client, sql).await;
    assert_eq!(info.endpoint.len(), 3);
    let (mut here, mut there) = (fetch(&mut client, info).await, rows(&pg, sql).await.expect(sql));
    here.sort();
    there.sort();
    assert_eq!(here, there);
    // The schema that was announced is the one that is sent, also without rows.
    for sql in ["SELECT v, at FROM t", "SELECT v, at FROM t WHERE k < 0 ORDER BY v"] {
        let info = execute(&mut client, sql).await;
        let told = info.clone().try_decode_schema().expect("a schema");
        for endpoint in info.endpoint {
            let mut stream = client.do_get(endpoint.ticket.expect("a ticket")).await.expect("rows");
            while let Some(batch) = stream.next().await {
                assert_eq!(*batch.expect("rows").schema(), told);
            }
            assert_eq!(**stream.schema().expect("a schema"), told);
        }
    }

    let bad = async |client: &mut Client, sql: &str| client.execute(sql.to_owned(), None).await;
    refused(bad(&mut client, "SELECT * FROM tt").await, Code::NotFound, "42P01");
    assert!(
        failed(bad(&mut client, "SELECT * FROM tt").await)
            .message()
            .contains("HINT: did you mean \"t\"?")
    );
    refused(bad(&mut client, "SELEC 1").await, Code::InvalidArgument, "42601");
    refused(
        bad(&mut client, "SELECT 1; SELECT 2").await,
        Code::InvalidArgument,
        "42601",
    );
    refused(bad(&mut client, "BEGIN").await, Code::Unimplemented, "0A000");
    refused(
        bad(&mut client, "COPY t FROM STDIN").await,
        Code::Unimplemented,
        "0A000",
    );
    refused(
        bad(&mut client, "INSERT INTO t VALUES (1)").await,
        Code::AlreadyExists,
        "23505",
    );
    let info = execute(&mut client, "SELECT 1 / (k - k) FROM t").await;
    refused(
        redeem(&mut client, info.endpoint[0].ticket.clone().expect("a ticket")).await,
        Code::InvalidArgument,
        "22012",
    );
    // Settings belong to the token's session, whatever connection it comes by.
    execute(&mut client, "SET statement_timeout = '200ms'").await;
    let long = "SELECT count(*) FROM t a, t b, t c, t d WHERE a.k + b.k + c.k + d.k = -1";
    let info = execute(&mut client, long).await;
    refused(
        redeem(&mut client, info.endpoint[0].ticket.clone().expect("a ticket")).await,
        Code::Cancelled,
        "57014",
    );
    let mut other = Client::new(channel(&cluster.flight_address().expect("an address").to_string()).await);
    other.set_token(client.token().expect("a token").clone());
    assert_eq!(
        query(&mut other, "SHOW statement_timeout").await,
        [[Some("200ms".to_owned())]]
    );
    other.set_token("bm90IGEgdG9rZW4".into());
    refused(
        other.execute("SELECT 1".into(), None).await,
        Code::Unauthenticated,
        "28000",
    );
    // Without a handshake.
    other.clear_token();
    assert_eq!(
        query(&mut other, "SELECT current_user").await,
        [[Some("tessera".to_owned())]]
    );
    drop(pg);
    cluster.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (cluster, mut client) = embedded(dir.path(), 2).await;
    fill(&mut client, 100).await;
    let mut by_key = client
        .prepare("SELECT v, price FROM t WHERE k = $1".into(), None)
        .await
        .expect("prepared");
    let names = |schema: &Schema| -> Vec<String> {
        schema
            .fields()
            .iter()
            .map(|f| format!("{} {}", f.name(), f.data_type()))
            .collect()
    };
    assert_eq!(names(by_key.parameter_schema().expect("a schema")), ["$1 Int64"]);
    assert_eq!(
        names(by_key.dataset_schema().expect("a schema")),
        ["v Utf8", "price Decimal128(10, 2)"]
    );
    let one = |values: Vec<i64>| {
        RecordBatch::try_from_iter([("0", Arc::new(Int64Array::from(values)) as ArrayRef)]).expect("a batch")
    };
    for k in [1, 50, 100] {
        by_key.set_parameters(one(vec![k])).expect("set");
        let info = by_key.execute().await.expect("runs");
        assert_eq!(
            fetch(&mut client, info).await,
            [[Some(format!("v{k}")), Some(format!("{k}.25"))]]
        );
    }
    let mut marked = client
        .prepare("SELECT '?', k FROM t WHERE k = ?".into(), None)
        .await
        .expect("prepared");
    marked.set_parameters(one(vec![7])).expect("set");
    let info = marked.execute().await.expect("runs");
    assert_eq!(
        fetch(&mut client, info).await,
        [[Some("?".to_owned()), Some("7".to_owned())]]
    );
    by_key.set_parameters(one(vec![1, 2])).expect("set");
    refused(by_key.execute().await, Code::Unimplemented, "0A000");

    // An update has no columns, takes many rows at once, and all of them or none.
    let mut insert = client
        .prepare("INSERT INTO t (k, v) VALUES ($1, $2)".into(), None)
        .await
        .expect("prepared");
    assert!(insert.dataset_schema().expect("a schema").fields().is_empty());
    let pairs = |keys: std::ops::Range<i64>| {
        let names: StringArray = keys.clone().map(|k| Some(format!("new{k}"))).collect();
        let keys: Int64Array = keys.map(Some).collect();
        RecordBatch::try_from_iter([("0", Arc::new(keys) as ArrayRef), ("1", Arc::new(names) as ArrayRef)])
            .expect("a batch")
    };
    insert.set_parameters(pairs(1_000..3_000)).expect("set");
    assert_eq!(insert.execute_update().await.expect("runs"), 2_000);
    insert.set_parameters(pairs(2_999..4_000)).expect("set");
    refused(insert.execute_update().await, Code::AlreadyExists, "23505");
    insert.set_parameters(one(vec![1])).expect("set");
    refused(insert.execute_update().await, Code::InvalidArgument, "08P01");
    // Of ON CONFLICT each row of parameters sees those before it.
    let upsert = "INSERT INTO t (k, v) VALUES ($1, $2) ON CONFLICT (k) DO UPDATE SET v = t.v || '!'";
    let mut upsert = client.prepare(upsert.into(), None).await.expect("prepared");
    let twice = RecordBatch::try_from_iter([
        ("0", Arc::new(Int64Array::from(vec![2_999, 6_000, 6_000])) as ArrayRef),
        ("1", Arc::new(StringArray::from(vec!["a", "b", "c"])) as ArrayRef),
    ]);
    upsert.set_parameters(twice.expect("a batch")).expect("set");
    assert_eq!(upsert.execute_update().await.expect("runs"), 3);
    assert_eq!(
        query(&mut client, "SELECT v FROM t WHERE k IN (2999, 6000) ORDER BY k").await,
        [[Some("new2999!".to_owned())], [Some("b!".to_owned())]]
    );
    execute(&mut client, "DELETE FROM t WHERE k = 6000").await;
    assert_eq!(
        query(&mut client, "SELECT count(*), max(k), max(v) FROM t").await,
        [[Some("2100".to_owned()), Some("2999".to_owned()), Some("v99".to_owned())]]
    );
    assert_eq!(
        client
            .execute_update("INSERT INTO t VALUES (5000)".into(), None)
            .await
            .expect("runs"),
        1
    );
    refused(
        client.execute_update("SELECT 1".into(), None).await,
        Code::Unimplemented,
        "0A000",
    );

    // A handle belongs to its session and ends with it.
    let mut stranger = connect(cluster.flight_address().expect("an address"), "bob").await;
    let close = client.prepare("SELECT 1".into(), None).await.expect("prepared");
    close.close().await.expect("closed");
    let unknown = arrow_flight::sql::CommandPreparedStatementQuery {
        prepared_statement_handle: Bytes::from_static(&[7; 16]),
    };
    let descriptor = FlightDescriptor::new_cmd(unknown.as_any().encode_to_vec());
    let status = stranger
        .inner_mut()
        .get_flight_info(descriptor)
        .await
        .expect_err("unknown");
    assert!(status.message().starts_with("[26000]"), "{status}");
    cluster.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (cluster, mut client) = embedded(dir.path(), 1).await;
    execute(&mut client, TABLE).await;
    execute(&mut client, "CREATE VIEW w AS SELECT k, v FROM t").await;
    let some = |texts: &[&str]| -> Vec<Option<String>> { texts.iter().map(|t| Some((*t).to_owned())).collect() };
    let info = client.get_catalogs().await.expect("an answer");
    assert_eq!(fetch(&mut client, info).await, [some(&["tessera"])]);
    let schemas = CommandGetDbSchemas {
        catalog: None,
        db_schema_filter_pattern: Some("pub%".into()),
    };
    let info = client.get_db_schemas(schemas).await.expect("an answer");
    // ADBC checks nullability too.
    assert!(
        !info
            .clone()
            .try_decode_schema()
            .expect("a schema")
            .field(1)
            .is_nullable()
    );
    assert_eq!(fetch(&mut client, info).await, [some(&["tessera", "public"])]);
    let tables = CommandGetTables {
        table_name_filter_pattern: Some("_".into()),
        include_schema: true,
        ..CommandGetTables::default()
    };
    let info = client.get_tables(tables).await.expect("an answer");
    let batches = redeem(&mut client, info.endpoint[0].ticket.clone().expect("a ticket"))
        .await
        .expect("rows");
    let names: Vec<_> = text(&batches[0]).into_iter().map(|row| row[..4].to_vec()).collect();
    assert_eq!(
        names,
        [
            some(&["tessera", "public", "t", "TABLE"]),
            some(&["tessera", "public", "w", "VIEW"])
        ]
    );
    let schemas = batches[0]
        .column(4)
        .as_any()
        .downcast_ref::<datafusion::arrow::array::BinaryArray>();
    let columns: Vec<Vec<String>> = schemas
        .expect("schemas")
        .iter()
        .map(|bytes| {
            let bytes = Bytes::copy_from_slice(bytes.expect("a schema"));
            let schema = Schema::try_from(arrow_flight::IpcMessage(bytes)).expect("a schema");
            schema.fields().iter().map(|f| f.name().clone()).collect()
        })
        .collect();
    assert_eq!(columns, [vec!["k", "v", "price", "at"], vec!["k", "v"]]);
    let keys = CommandGetPrimaryKeys {
        catalog: None,
        db_schema: None,
        table: "t".into(),
    };
    let info = client.get_primary_keys(keys).await.expect("an answer");
    assert_eq!(
        fetch(&mut client, info).await,
        [some(&["tessera", "public", "t", "k", "1", "t_pkey"])]
    );
    let info = client.get_table_types().await.expect("an answer");
    assert_eq!(fetch(&mut client, info).await, [some(&["TABLE"]), some(&["VIEW"])]);
    let asked = vec![SqlInfo::FlightSqlServerName, SqlInfo::FlightSqlServerTransaction];
    let info = client.get_sql_info(asked).await.expect("an answer");
    assert_eq!(fetch(&mut client, info).await.len(), 2);
    let info = client
        .get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: None })
        .await
        .expect("an answer");
    assert!(fetch(&mut client, info).await.len() > 10);
    assert!(client.begin_transaction().await.is_err());
    cluster.shutdown().await.expect("stops");
}

fn ingest(table: &str, create: TableNotExistOption, exists: TableExistsOption) -> CommandStatementIngest {
    CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: create as i32,
            if_exists: exists as i32,
        }),
        table: table.into(),
        ..CommandStatementIngest::default()
    }
}

fn pairs(keys: std::ops::Range<i64>) -> RecordBatch {
    let names: StringArray = keys.clone().map(|k| Some(format!("a name for {k}"))).collect();
    let keys: Int64Array = keys.map(Some).collect();
    RecordBatch::try_from_iter([("k", Arc::new(keys) as ArrayRef), ("v", Arc::new(names) as ArrayRef)])
        .expect("a batch")
}

fn stream(batches: Vec<RecordBatch>) -> impl futures::Stream<Item = Result<RecordBatch, FlightError>> + Send {
    futures::stream::iter(batches.into_iter().map(Ok))
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_is_atomic() {
    use TableExistsOption as E;
    use TableNotExistOption as N;
    let dir = tempfile::tempdir().expect("temporary folder");
    let (cluster, mut client) = embedded(dir.path(), 2).await;
    let batches = |from: i64| {
        (0..10)
            .map(|i| pairs(from + i * 1_000..from + (i + 1) * 1_000))
            .collect::<Vec<_>>()
    };
    let created = ingest("made", N::Create, E::Fail);
    assert_eq!(
        client
            .execute_ingest(created.clone(), stream(batches(0)))
            .await
            .expect("ingests"),
        10_000
    );
    refused(
        client.execute_ingest(created, stream(batches(0))).await,
        Code::AlreadyExists,
        "42P07",
    );
    let append = ingest("made", N::Fail, E::Append);
    assert_eq!(
        client
            .execute_ingest(append, stream(batches(10_000)))
            .await
            .expect("ingests"),
        10_000
    );
    let count = "SELECT count(*), sum(k), count(DISTINCT v) FROM made";
    let all = [[
        Some("20000".to_owned()),
        Some("199990000".to_owned()),
        Some("20000".to_owned()),
    ]];
    assert_eq!(query(&mut client, count).await, all);
    let missing = ingest("missing", N::Fail, E::Append);
    refused(
        client.execute_ingest(missing, stream(batches(0))).await,
        Code::NotFound,
        "42P01",
    );
    let replace = ingest("made", N::Create, E::Replace);
    refused(
        client.execute_ingest(replace, stream(batches(0))).await,
        Code::Unimplemented,
        "0A000",
    );

    // Large enough to be staged; the last row is a duplicate.
    execute(
        &mut client,
        "CREATE TABLE keyed (k bigint PRIMARY KEY, v text) SHARD BY HASH(k) SHARDS 4",
    )
    .await;
    let append = || ingest("keyed", N::Fail, E::Append);
    let mut bad: Vec<_> = (0..30).map(|i| pairs(i * 10_000..(i + 1) * 10_000)).collect();
    bad.push(pairs(299_999..300_000));
    refused(
        client.execute_ingest(append(), stream(bad)).await,
        Code::AlreadyExists,
        "23505",
    );
    // A client that cancels: to tonic a cancelled request stream looks like one that ended.
    let endless = stream(vec![pairs(0..1_000)]).chain(futures::stream::pending());
    let waited = tokio::time::timeout(Duration::from_millis(500), client.execute_ingest(append(), endless)).await;
    assert!(waited.is_err());
    assert_eq!(
        query(&mut client, "SELECT count(*) FROM keyed").await,
        [[Some("0".to_owned())]]
    );
    assert_eq!(
        client
            .execute_ingest(append(), stream(batches(0)))
            .await
            .expect("ingests"),
        10_000
    );
    // A table that was made for rows that cannot be had is gone again: they are malformed, or the client is gone.
    let fresh = ingest("fresh", N::Create, E::Fail);
    let command = FlightDescriptor::new_cmd(fresh.as_any().encode_to_vec());
    let mut messages: Vec<FlightData> = arrow_flight::encode::FlightDataEncoderBuilder::new()
        .with_flight_descriptor(Some(command))
        .build(stream(vec![pairs(0..1_000)]))
        .try_collect()
        .await
        .expect("encodes");
    messages.push(FlightData::new().with_data_header(Bytes::from_static(b"garbage")));
    let status = client
        .inner_mut()
        .do_put(futures::stream::iter(messages))
        .await
        .expect_err("malformed");
    assert!(status.message().starts_with("[08P01]"), "{status}");
    let count = "SELECT count(*) FROM information_schema.tables WHERE table_name = 'fresh'";
    assert_eq!(query(&mut client, count).await, [[Some("0".to_owned())]]);
    let endless = stream(vec![pairs(0..1_000)]).chain(futures::stream::pending());
    let waited = tokio::time::timeout(Duration::from_millis(500), client.execute_ingest(fresh, endless)).await;
    assert!(waited.is_err());
    let pg = cluster::connect(&cluster.url()).await;
    cluster::until(&pg, count, |rows| rows[0][0].as_deref() == Some("0")).await;
    drop(pg);
    cluster.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_leaves_every_node_idle() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (cluster, mut client) = embedded(dir.path(), 3).await;
    fill(&mut client, 4_000).await;
    let busy = || cluster.engine().query_tasks() + cluster.nodes().iter().map(|n| n.query_tasks()).sum::<usize>();
    let until = async |what: &str, wanted: &(dyn Fn(usize) -> bool + Sync)| {
        let start = Instant::now();
        while !wanted(busy()) {
            assert!(start.elapsed() < Duration::from_secs(20), "{what}: {} tasks", busy());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        start.elapsed()
    };
    until("before", &|n| n == 0).await;
    for (sql, first) in [
        // Rows stream, from the router and from the nodes.
        ("SELECT a.k, b.v FROM t a, t b", true),
        (
            "SELECT v FROM t a WHERE (SELECT count(*) FROM t b, t c WHERE b.k + c.k = -1) = 0",
            false,
        ),
        // Nothing ever comes.
        ("SELECT count(*) FROM t a, t b, t c WHERE a.k + b.k + c.k = -1", false),
    ] {
        let Ok(info) = client.execute(sql.to_owned(), None).await else {
            continue;
        };
        let ticket = info.endpoint[0].ticket.clone().expect("a ticket");
        let mut stream: Option<FlightRecordBatchStream> = None;
        {
            let reading = async {
                let opened = stream.insert(client.do_get(ticket).await.expect("rows"));
                if first {
                    opened.next().await.expect("a batch").expect("a batch");
                } else {
                    std::future::pending::<()>().await;
                }
            };
            // Read until it runs, and for one batch where there are rows.
            let running = async {
                until("running", &|n| n > 0).await;
                if first {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = reading => {}
                () = running => {}
            }
        }
        drop(stream);
        let took = until(sql, &|n| n == 0).await;
        println!("{sql}: idle after {took:?}");
    }
    cluster.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_straight_from_the_nodes() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let processes = Processes::start(dir.path(), 3).await;
    let mut client = connect(processes.flight(), "ann").await;
    fill(&mut client, 900).await;
    let sql = "SELECT k, v FROM t WHERE k > 100";
    let info = execute(&mut client, sql).await;
    assert_eq!(info.endpoint.len(), 3);
    // What is written from here on is not at the snapshot.
    execute(&mut client, "INSERT INTO t VALUES (100000, 'late')").await;
    let told = info.clone().try_decode_schema().expect("a schema");
    let mut read = [vec![], vec![], vec![]];
    for endpoint in &info.endpoint {
        let ticket = endpoint.ticket.clone().expect("a ticket");
        assert_eq!(endpoint.location.len(), 2, "{endpoint:?}");
        let expires = endpoint.expiration_time.as_ref().expect("an expiry").seconds;
        assert!(expires <= (expires_in(TICKET_LIFE) / 1000) as i64);
        // The leader, the follower, and the router, which gave the ticket out.
        let addresses = endpoint
            .location
            .iter()
            .map(|l| l.uri.trim_start_matches("grpc+tcp://").to_owned());
        let mut sizes = vec![];
        for (place, address) in addresses.chain([processes.flight().to_string()]).enumerate() {
            // The token of the router's handshake is good at every node.
            let mut node = Client::new(channel(&address).await);
            node.set_token(client.token().expect("a token").clone());
            let batches = redeem(&mut node, ticket.clone()).await.expect("rows");
            batches.iter().for_each(|batch| assert_eq!(*batch.schema(), told));
            sizes.push(batches.iter().map(RecordBatch::num_rows).sum::<usize>());
            read[place].extend(batches.iter().flat_map(text));
            // Again, and all the same.
            assert_eq!(
                redeem(&mut node, ticket.clone())
                    .await
                    .expect("rows")
                    .iter()
                    .map(RecordBatch::num_rows)
                    .sum::<usize>(),
                sizes[0]
            );
        }
        assert!(sizes[0] > 0 && sizes.iter().all(|size| *size == sizes[0]), "{sizes:?}");
    }
    read.iter_mut().for_each(|rows| rows.sort());
    let pg = cluster::connect(processes.url()).await;
    let mut expected = rows(&pg, "SELECT k, v FROM t WHERE k > 100 AND k < 100000")
        .await
        .expect("rows");
    expected.sort();
    for rows in &read {
        assert_eq!(*rows, expected);
    }

    // Aggregates by the shard key are whole leaves, too; a sort is the router's.
    assert_eq!(
        execute(&mut client, "SELECT k, count(*) FROM t GROUP BY k")
            .await
            .endpoint
            .len(),
        3
    );
    assert_eq!(
        execute(&mut client, "SELECT k FROM t ORDER BY k").await.endpoint.len(),
        1
    );

    tickets(&processes, &mut client, &info).await;
    let node = info.endpoint[0].location[0].uri.trim_start_matches("grpc+tcp://");
    health_and_reflection(node).await;
    health_and_reflection(&processes.flight().to_string()).await;

    // A shard that moved since: its ticket is good all the same.
    for shard in 0..6 {
        let moved = pg
            .simple_query(&format!("ALTER SHARD {shard} OF t SWITCH LEADER"))
            .await;
        moved.expect("moved");
    }
    let mut count = 0;
    for endpoint in &info.endpoint {
        let address = endpoint.location[0].uri.trim_start_matches("grpc+tcp://").to_owned();
        let mut node = Client::new(channel(&address).await);
        node.set_token(client.token().expect("a token").clone());
        let batches = redeem(&mut node, endpoint.ticket.clone().expect("a ticket"))
            .await
            .expect("rows");
        count += batches.iter().map(RecordBatch::num_rows).sum::<usize>();
    }
    assert_eq!(count, 800);
    drop(pg);
    processes.stop();
}

/// Probes and tools find the service, at the router and at a node.
async fn health_and_reflection(address: &str) {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
    const FLIGHT: &str = "arrow.flight.protocol.FlightService";
    let channel = channel(address).await;
    for service in ["", FLIGHT] {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let answer = HealthClient::new(channel.clone())
            .check(request)
            .await
            .expect("an answer");
        assert_eq!(answer.into_inner().status, 1, "{address} {service:?}");
    }
    let ask = async |question: MessageRequest| -> ServerReflectionResponse {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(question),
        };
        let mut client = ServerReflectionClient::new(channel.clone());
        let answers = client
            .server_reflection_info(futures::stream::iter([request]))
            .await
            .expect("an answer");
        answers
            .into_inner()
            .message()
            .await
            .expect("an answer")
            .expect("an answer")
    };
    let listed = ask(MessageRequest::ListServices(String::new())).await.message_response;
    let Some(MessageResponse::ListServicesResponse(listed)) = listed else {
        panic!("{listed:?}");
    };
    let names: Vec<&str> = listed.service.iter().map(|s| s.name.as_str()).collect();
    assert!(
        names.contains(&FLIGHT) && names.contains(&"grpc.health.v1.Health"),
        "{names:?}"
    );
    let file = ask(MessageRequest::FileContainingSymbol(FLIGHT.into()))
        .await
        .message_response;
    assert!(
        matches!(file, Some(MessageResponse::FileDescriptorResponse(_))),
        "{file:?}"
    );
}

/// Tickets that are not good are refused, by nodes and by the router.
async fn tickets(processes: &Processes, client: &mut Client, info: &FlightInfo) {
    let endpoint = &info.endpoint[0];
    let ticket = endpoint.ticket.clone().expect("a ticket").ticket;
    let any = Any::decode(ticket).expect("an envelope");
    let sealed = any
        .unpack::<TicketStatementQuery>()
        .expect("a ticket")
        .expect("a ticket")
        .statement_handle;
    let envelope = |sealed: Bytes| {
        let query = TicketStatementQuery {
            statement_handle: sealed,
        };
        Ticket::new(query.as_any().encode_to_vec())
    };
    let node = endpoint.location[0].uri.trim_start_matches("grpc+tcp://").to_owned();
    let mut node = Client::new(channel(&node).await);
    node.set_token(client.token().expect("a token").clone());
    let store = RemoteMeta::new(&processes.grpc().to_string()).expect("an address");
    let secret = cluster_secret(&store).await.expect("the secret");
    let good: LeafTicket = secret.open(&sealed).expect("opens");
    let expired = secret.seal(&LeafTicket {
        expires_ms: 1,
        ..good.clone()
    });
    let somebody = secret.seal(&LeafTicket {
        user: "bob".into(),
        ..good.clone()
    });
    let foreign = tessera_proto::flight::seal::Secret::new([3; 32]).seal(&good);
    let mut tampered = sealed.to_vec();
    let last = tampered.len() - 1;
    tampered[last] ^= 1;
    for (what, bad) in [
        ("expired", expired),
        ("somebody else's", somebody),
        ("foreign", foreign),
        ("tampered", tampered.into()),
        ("cut off", sealed.slice(..sealed.len() / 2)),
    ] {
        for server in [&mut node, &mut *client] {
            let status = failed(redeem(server, envelope(bad.clone())).await);
            assert_eq!(status.code(), Code::PermissionDenied, "{what}: {status}");
            assert!(status.message().starts_with("[42501]"), "{what}: {status}");
        }
    }
    // Nodes serve tickets and nothing else.
    refused(
        node.execute("SELECT 1".into(), None).await,
        Code::Unimplemented,
        "0A000",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_answered_and_hurts_nobody() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (cluster, mut client) = embedded(dir.path(), 1).await;
    execute(&mut client, "CREATE TABLE g (k bigint, v text)").await;
    let address = cluster.flight_address().expect("an address").to_string();
    let mut raw = FlightServiceClient::new(channel(&address).await);
    let random = |length: usize| -> Vec<u8> { (0..length).map(|_| rand::random()).collect() };
    let command = ingest("g", TableNotExistOption::Fail, TableExistsOption::Append)
        .as_any()
        .encode_to_vec();
    for round in 0..200 {
        let noise = random(round);
        let wrapped = Any {
            type_url: "type.googleapis.com/arrow.flight.protocol.sql.TicketStatementQuery".into(),
            value: noise.clone().into(),
        };
        for bytes in [noise.clone(), wrapped.encode_to_vec()] {
            assert!(raw.do_get(Ticket::new(bytes.clone())).await.is_err());
            assert!(
                raw.get_flight_info(FlightDescriptor::new_cmd(bytes.clone()))
                    .await
                    .is_err()
            );
            assert!(raw.get_schema(FlightDescriptor::new_cmd(bytes.clone())).await.is_err());
            for kind in [
                "CreatePreparedStatement",
                "SetSessionOptions",
                "ClosePreparedStatement",
                "Nonsense",
            ] {
                // Some noise happens to be an empty message, which is fine to set nothing.
                let _ = raw.do_action(Action::new(kind, bytes.clone())).await;
            }
        }
        // A batch that is none, behind a command that is one: the real messages, damaged.
        let mut messages: Vec<FlightData> = arrow_flight::encode::FlightDataEncoderBuilder::new()
            .with_flight_descriptor(Some(FlightDescriptor::new_cmd(command.clone())))
            .build(stream(vec![pairs(0..100)]))
            .try_collect()
            .await
            .expect("encodes");
        let target = 1 % messages.len();
        let mut header = messages[target].data_header.to_vec();
        let at = rand::random_range(0..header.len());
        header[at] = header[at].wrapping_add(1 + rand::random::<u8>() % 255);
        messages[target].data_header = header.into();
        if round % 2 == 0 {
            let body = messages[target].data_body.clone();
            messages[target].data_body = body.slice(..rand::random_range(0..body.len()));
        }
        // Whatever was damaged may not matter; what matters is that an answer comes.
        if let Ok(answer) = raw.do_put(futures::stream::iter(messages)).await {
            let _ = answer.into_inner().message().await;
        }
    }
    assert_eq!(query(&mut client, "SELECT 1 + 1").await, [[Some("2".to_owned())]]);
    cluster.shutdown().await.expect("stops");
}
