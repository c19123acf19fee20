//! Clients that send too much, too slowly, or nothing.

use super::{HttpLimits, serve_app};
use axum::Router;
use axum::routing::get;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const LIMITS: HttpLimits = HttpLimits {
    connections_max: 2,
    header_bytes_max: 8 << 10,
    body_bytes_max: 1 << 10,
    header_wait: Duration::from_millis(300),
    request_wait: Duration::from_millis(300),
};

/// The server's address, and what stops it.
async fn start() -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    let slow = get(|| async { std::future::pending::<&str>().await });
    let app = Router::new().route("/", get(|| async { "here" })).route("/slow", slow);
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve_app(listener, app, LIMITS, stop.clone()));
    (address, stop, server)
}

/// All that comes back for these bytes until the server closes; empty when it says nothing.
async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    // The server may have closed before it has read all.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = vec![];
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the server closes");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn clients_are_bounded() {
    let (address, stop, server) = start().await;
    let begin = Instant::now();
    let close = "Connection: close\r\n\r\n";
    let fine = ask(address, &format!("GET / HTTP/1.1\r\nHost: x\r\n{close}")).await;
    assert!(fine.starts_with("HTTP/1.1 200") && fine.ends_with("here"), "{fine}");
    let slow = ask(address, &format!("GET /slow HTTP/1.1\r\nHost: x\r\n{close}")).await;
    assert!(slow.starts_with("HTTP/1.1 503"), "{slow}");
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n{close}", "x".repeat(20_000));
    let long = ask(address, &long).await;
    assert!(long.is_empty() || long.starts_with("HTTP/1.1 431"), "{long}");
    let body = format!("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n{close}");
    let body = ask(address, &body).await;
    assert!(body.starts_with("HTTP/1.1 413"), "{body}");
    // Half a request, and none at all.
    for part in ["GET / HTTP/1.1\r\nHost:", ""] {
        let answer = ask(address, part).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    stop.cancel();
    server.await.expect("joined");
}

#[tokio::test]
async fn connections_are_counted_and_joined() {
    let (address, stop, server) = start().await;
    let mut held = vec![];
    for _ in 0..LIMITS.connections_max {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream
            .write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("sent");
        held.push(stream);
    }
    // Accepted in order, so those are held by now or before this one.
    let refused = ask(address, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert_eq!(refused, "");
    stop.cancel();
    server.await.expect("joined");
}
