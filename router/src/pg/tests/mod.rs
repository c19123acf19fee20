//! The protocol against a scripted engine: a real driver where it can say what is meant, raw bytes where it cannot.

mod fake;
mod garbage;
mod raw;

use super::PgLimits;
use super::server::serve;
use fake::{FakeEngine, Seen};
use futures::{SinkExt, StreamExt, pin_mut};
use raw::Raw;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes; a test that hangs fails by this.
const PATIENCE: Duration = Duration::from_secs(30);

struct Server {
    address: SocketAddr,
    engine: Arc<FakeEngine>,
    stop: CancellationToken,
    task: JoinHandle<tessera_proto::Result<()>>,
}

impl Server {
    async fn start(limits: PgLimits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (engine, stop) = (Arc::new(FakeEngine::default()), CancellationToken::new());
        let task = tokio::spawn(serve(listener, engine.clone(), limits, stop.clone()));
        Self {
            address,
            engine,
            stop,
            task,
        }
    }

    async fn client(&self) -> Client {
        self.try_client().await.expect("a connection")
    }

    async fn try_client(&self) -> Result<Client, tokio_postgres::Error> {
        let text = format!("host=127.0.0.1 port={} user=ann dbname=test", self.address.port());
        let (client, connection) = tokio_postgres::connect(&text, NoTls).await?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(client)
    }
}

fn code(error: &tokio_postgres::Error) -> &str {
    error.code().map_or("none", |c| c.code())
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

#[tokio::test]
async fn a_text_runs_statement_by_statement() {
    let server = Server::start(PgLimits::default()).await;
    let client = server.client().await;
    let messages = client
        .simple_query("SELECT upto(2); INSERT INTO t VALUES (1); SELECT upto(0)")
        .await
        .expect("runs");
    let shown: Vec<String> = messages
        .iter()
        .map(|m| match m {
            SimpleQueryMessage::Row(row) => format!("{:?}/{:?}", row.get(0), row.get(1)),
            SimpleQueryMessage::CommandComplete(n) => format!("done {n}"),
            _ => "columns".into(),
        })
        .collect();
    let expected = [
        "columns",
        "Some(\"0\")/None",
        "Some(\"1\")/Some(\"v1\")",
        "done 2",
        "done 1",
        "columns",
        "done 0",
    ];
    assert_eq!(shown, expected);
    // The first result is read to its end before the next statement starts.
    let order = [
        Seen::Started("SELECT upto(2)"),
        Seen::Ended(2),
        Seen::Started("INSERT INTO t VALUES (1)"),
    ];
    assert_eq!(server.engine.seen()[..3], order.map(|s| s.to_string()));
    let failed = client
        .simple_query("INSERT INTO t VALUES (1); SELECT fail(); INSERT INTO t VALUES (2)")
        .await;
    assert_eq!(code(&failed.expect_err("the second fails")), "22012");
    assert!(!server.engine.seen().contains(&"INSERT INTO t VALUES (2)".to_owned()));
    let wrong = client
        .simple_query("INSERT INTO t VALUES (3); SELEKT 1")
        .await
        .expect_err("does not parse");
    assert_eq!(code(&wrong), "42601");
    assert!(!server.engine.seen().contains(&"INSERT INTO t VALUES (3)".to_owned()));
    assert!(client.simple_query(" ; -- nothing").await.is_ok());
}

#[tokio::test]
async fn parameters_and_results_go_through_the_extended_protocol() {
    let server = Server::start(PgLimits::default()).await;
    let client = server.client().await;
    let echo = client
        .prepare_typed("SELECT echo($1)", &[tokio_postgres::types::Type::INT4])
        .await
        .expect("prepared");
    for value in [Some(i32::MIN), Some(42), None] {
        let row = client.query_one(&echo, &[&value]).await.expect("one row");
        assert_eq!(row.get::<_, Option<i32>>(0), value);
    }
    // Without a declared type the inferred one holds: text, in this fake.
    let row = client.query_one("SELECT echo($1)", &[&"naïve"]).await.expect("one row");
    assert_eq!(row.get::<_, &str>(0), "naïve");
    let numeric = client
        .prepare_typed("SELECT echo($1)", &[tokio_postgres::types::Type::NUMERIC])
        .await
        .expect("prepared");
    let price: rust_decimal::Decimal = "-12345.670".parse().expect("a number");
    assert_eq!(
        client
            .query_one(&numeric, &[&price])
            .await
            .expect("one row")
            .get::<_, rust_decimal::Decimal>(0),
        price
    );
    assert_eq!(
        client.execute("INSERT INTO t VALUES (1)", &[]).await.expect("inserted"),
        1
    );
    let missing = client
        .prepare("SELECT missing()")
        .await
        .expect_err("described when parsed");
    assert_eq!(code(&missing), "42883");
    let failed = client
        .query("SELECT fail()", &[])
        .await
        .expect_err("fails while running");
    assert_eq!(code(&failed), "22012");
    let panicked = client.query("SELECT boom()", &[]).await.expect_err("panics");
    assert_eq!(code(&panicked), "XX000");
    assert_eq!(
        client.query("SELECT upto(20000)", &[]).await.expect("goes on").len(),
        20_000
    );
}

#[tokio::test]
async fn settings_reach_the_session_and_changes_are_reported() {
    let server = Server::start(PgLimits::default()).await;
    let mut raw = Raw::start(
        server.address,
        &[
            ("user", "ann"),
            ("TimeZone", "Asia/Kolkata"),
            ("client_encoding", "SQL_ASCII"),
        ],
    )
    .await;
    let greeting = raw.until(b'Z').await;
    let parameters = greeting
        .iter()
        .filter(|(kind, _)| *kind == b'S')
        .map(|(_, body)| String::from_utf8_lossy(body).into_owned());
    let parameters: Vec<String> = parameters.collect();
    for expected in [
        "TimeZone\0Asia/Kolkata\0",
        "server_encoding\0UTF8\0",
        "integer_datetimes\0on\0",
    ] {
        assert!(
            parameters.iter().any(|p| p == expected),
            "{expected:?} in {parameters:?}"
        );
    }
    raw.query("SET timezone = 'UTC'").await;
    let answer = raw.until(b'Z').await;
    assert_eq!(answer[0], (b'S', b"TimeZone\0UTC\0".to_vec()));
    assert!(
        answer[1].0 == b'N' && answer[1].1.starts_with(b"SNOTICE\0"),
        "{answer:?}"
    );
    assert_eq!(answer[2], (b'C', b"SET\0".to_vec()));
}

#[tokio::test]
async fn portals_give_rows_in_portions_and_errors_skip_to_sync() {
    let server = Server::start(PgLimits::default()).await;
    let mut raw = Raw::start(server.address, &[("user", "ann")]).await;
    raw.until(b'Z').await;
    raw.parse("s", "SELECT upto(5)").await;
    raw.bind("p", "s").await;
    for rows in [2, 2, 2, 0] {
        raw.execute("p", rows).await;
    }
    raw.sync().await;
    let kinds: String = raw
        .until(b'Z')
        .await
        .iter()
        .map(|(kind, _)| char::from(*kind))
        .collect();
    assert_eq!(kinds, "12DDsDDsDCCZ");
    // The portal died with Sync, the statement did not; what follows the error is skipped.
    raw.execute("p", 0).await;
    raw.parse("never", "SELECT upto(1)").await;
    raw.sync().await;
    let answer = raw.until(b'Z').await;
    assert_eq!(
        answer.iter().map(|(kind, _)| char::from(*kind)).collect::<String>(),
        "EZ"
    );
    assert!(String::from_utf8_lossy(&answer[0].1).contains("C34000\0"));
    raw.describe(b'S', "never").await;
    raw.sync().await;
    assert!(String::from_utf8_lossy(&raw.until(b'Z').await[0].1).contains("C26000\0"));
    raw.parse("", "").await;
    raw.bind("", "").await;
    raw.describe(b'P', "").await;
    raw.execute("", 0).await;
    raw.sync().await;
    let kinds: String = raw
        .until(b'Z')
        .await
        .iter()
        .map(|(kind, _)| char::from(*kind))
        .collect();
    assert_eq!(kinds, "12nIZ");
}

#[tokio::test]
async fn prepared_statements_are_bounded() {
    let limits = PgLimits {
        statements_max: 2,
        statement_bytes_max: 100,
        ..PgLimits::default()
    };
    let server = Server::start(limits).await;
    let client = server.client().await;
    let _kept = (
        client.prepare("SELECT upto(1)").await.expect("first"),
        client.prepare("SELECT upto(2)").await.expect("second"),
    );
    assert_eq!(
        code(&client.prepare("SELECT upto(3)").await.expect_err("third")),
        "53400"
    );
}

#[tokio::test]
async fn copy_streams_aborts_and_stays_in_step() {
    let server = Server::start(PgLimits::default()).await;
    let client = server.client().await;
    let send = async |pieces: &[&'static [u8]]| {
        let sink = client.copy_in("COPY t FROM STDIN").await?;
        pin_mut!(sink);
        for piece in pieces {
            sink.send(bytes::Bytes::from_static(piece)).await?;
        }
        sink.finish().await
    };
    assert_eq!(
        in_time(send(&[b"1\tone\n2\t", b"two\n3\t\\N\n"]))
            .await
            .expect("copied"),
        3
    );
    assert_eq!(server.engine.copied(), (3, 0));
    let bad = in_time(send(&[b"1\tone\nnot a number\tx\n", b"2\ttwo\n"]))
        .await
        .expect_err("bad data");
    assert_eq!(code(&bad), "22P02");
    assert_eq!(server.engine.copied(), (3, 1));
    {
        // Dropping the sink sends CopyFail.
        let sink = client
            .copy_in::<_, bytes::Bytes>("COPY t FROM STDIN")
            .await
            .expect("begins");
        drop(sink);
    }
    assert_eq!(
        in_time(client.query("SELECT upto(1)", &[]))
            .await
            .expect("in step")
            .len(),
        1
    );
    assert_eq!(server.engine.copied(), (3, 2));
    let mut raw = Raw::start(server.address, &[("user", "ann")]).await;
    raw.until(b'Z').await;
    raw.query("COPY t FROM STDIN").await;
    raw.until(b'G').await;
    raw.send(b'd', b"x\n").await;
    raw.send(b'd', b"1\tlate\n").await;
    raw.send(b'c', b"").await;
    raw.query("SELECT upto(1)").await;
    let kinds = |messages: Vec<(u8, Vec<u8>)>| messages.iter().map(|(kind, _)| char::from(*kind)).collect::<String>();
    assert_eq!(
        kinds(raw.until(b'Z').await),
        "EZ",
        "the late data of a failed COPY is dropped"
    );
    assert_eq!(kinds(raw.until(b'Z').await), "TDCZ");
    assert_eq!(server.engine.copied(), (3, 3));
}

#[tokio::test]
async fn cancel_requests_end_statements_before_and_during_their_rows() {
    let server = Server::start(PgLimits::default()).await;
    let client = server.client().await;
    let cancel = client.cancel_token();
    let (rows, ()) = in_time(async {
        tokio::join!(client.query("SELECT stuck()", &[]), async {
            server.engine.stuck.notified().await;
            cancel.cancel_query(NoTls).await.expect("sent");
        })
    })
    .await;
    assert_eq!(code(&rows.expect_err("cancelled")), "57014");
    let rows = client
        .query_raw("SELECT endless()", Vec::<String>::new())
        .await
        .expect("begins");
    pin_mut!(rows);
    assert!(in_time(rows.next()).await.is_some_and(|row| row.is_ok()));
    cancel.cancel_query(NoTls).await.expect("sent");
    let end = in_time(async { while let Some(Ok(_)) = rows.next().await {} });
    end.await;
    assert_eq!(client.query("SELECT upto(1)", &[]).await.expect("goes on").len(), 1);
    assert!(
        server.engine.seen().contains(&"dropped".to_owned()),
        "the stream is dropped"
    );
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_its_statement() {
    let server = Server::start(PgLimits::default()).await;
    let mut raw = Raw::start(server.address, &[("user", "ann")]).await;
    raw.until(b'Z').await;
    raw.query("SELECT stuck()").await;
    in_time(server.engine.stuck.notified()).await;
    drop(raw);
    in_time(server.engine.freed.notified()).await;
}

#[tokio::test]
async fn connections_are_bounded_and_end_at_shutdown() {
    let server = Server::start(PgLimits {
        connections_max: 1,
        ..PgLimits::default()
    })
    .await;
    let mut raw = Raw::start(server.address, &[("user", "ann")]).await;
    raw.until(b'Z').await;
    assert_eq!(code(&server.try_client().await.expect_err("one too many")), "53300");
    raw.query("SELECT stuck()").await;
    server.engine.stuck.notified().await;
    server.stop.cancel();
    let last = in_time(raw.rest()).await;
    assert!(
        last.iter()
            .any(|(kind, body)| *kind == b'E' && String::from_utf8_lossy(body).contains("57P01")),
        "{last:?}"
    );
    assert!(in_time(server.task).await.is_ok_and(|r| r.is_ok()));
}
