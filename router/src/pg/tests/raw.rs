//! A client that sends exactly what it is told.

use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection.
pub(super) struct Raw(pub(super) TcpStream);

impl Raw {
    /// Connects and sends a startup message.
    pub(super) async fn start(address: SocketAddr, parameters: &[(&str, &str)]) -> Self {
        let mut body = vec![0, 3, 0, 0];
        for (name, value) in parameters {
            body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
        }
        body.push(0);
        let mut raw = Self(TcpStream::connect(address).await.expect("connects"));
        let length = (body.len() as i32 + 4).to_be_bytes();
        raw.0.write_all(&[&length[..], &body].concat()).await.expect("writes");
        raw
    }

    /// Sends a message.
    pub(super) async fn send(&mut self, kind: u8, body: &[u8]) {
        let length = (body.len() as i32 + 4).to_be_bytes();
        self.0
            .write_all(&[&[kind][..], &length, body].concat())
            .await
            .expect("writes");
    }

    pub(super) async fn query(&mut self, text: &str) {
        self.send(b'Q', format!("{text}\0").as_bytes()).await;
    }

    pub(super) async fn parse(&mut self, name: &str, text: &str) {
        self.send(b'P', format!("{name}\0{text}\0\0\0").as_bytes()).await;
    }

    pub(super) async fn bind(&mut self, portal: &str, statement: &str) {
        self.send(b'B', format!("{portal}\0{statement}\0\0\0\0\0\0\0").as_bytes())
            .await;
    }

    pub(super) async fn describe(&mut self, kind: u8, name: &str) {
        self.send(b'D', &[&[kind][..], name.as_bytes(), b"\0"].concat()).await;
    }

    pub(super) async fn execute(&mut self, portal: &str, rows: i32) {
        self.send(b'E', &[portal.as_bytes(), b"\0", &rows.to_be_bytes()].concat())
            .await;
    }

    pub(super) async fn sync(&mut self) {
        self.send(b'S', b"").await;
    }

    /// The next message; `None` when the server has closed.
    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let kind = self.0.read_u8().await.ok()?;
        let length = self.0.read_i32().await.ok()?;
        let mut body = vec![0; usize::try_from(length - 4).expect("a length")];
        self.0.read_exact(&mut body).await.ok()?;
        Some((kind, body))
    }

    /// Messages up to one of this kind.
    pub(super) async fn until(&mut self, kind: u8) -> Vec<(u8, Vec<u8>)> {
        let mut messages = vec![];
        while messages.last().is_none_or(|(last, _)| *last != kind) {
            let next = tokio::time::timeout(super::PATIENCE, self.next())
                .await
                .expect("in time");
            messages.push(next.unwrap_or_else(|| panic!("closed after {messages:?}")));
        }
        messages
    }

    /// Messages up to the end of the connection.
    pub(super) async fn rest(&mut self) -> Vec<(u8, Vec<u8>)> {
        let mut messages = vec![];
        while let Some(message) = self.next().await {
            messages.push(message);
        }
        messages
    }
}
