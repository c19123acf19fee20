//! One client's socket with its two buffers.
//!
//! ```text
//!   socket ──▶ input  ──▶ frames          at most one message of `message_bytes_max`, or READ_AHEAD_BYTES_MAX while busy
//!   socket ◀── output ◀── messages, rows  flushed at FLUSH_BYTES, at Sync, and when a query ends
//! ```
//!
//! Every wait here is safe to drop: bytes already read or not yet written stay in the buffers, so waiting can always race
//! against a cancellation.

use super::message::{Frame, Frontend};
use bytes::{Buf, Bytes, BytesMut};
use pgwire::messages::PgWireBackendMessage;
use std::io;
use tessera_proto::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Rows are written to the socket in pieces of about this size: large enough that a system call costs little per row, small
/// enough that the first rows of a slow query leave early.
pub(super) const FLUSH_BYTES: usize = 64 << 10;

/// Input taken while a statement runs, to notice a client that hangs up. A pipeline longer than this waits in the kernel,
/// and then a hang-up shows only at the next write.
const READ_AHEAD_BYTES_MAX: usize = 256 << 10;

/// Longest startup packet, as PostgreSQL's `MAX_STARTUP_PACKET_LENGTH`.
const STARTUP_BYTES_MAX: usize = 10_000;

/// Why a conversation cannot go on.
#[derive(Debug)]
pub(super) enum Broken {
    /// The client is gone, or talks nonsense before it can be answered.
    Gone,
    /// The client broke the protocol: say so and close.
    Refused(Error),
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// The socket and its buffers.
#[derive(Debug)]
pub(super) struct Channel {
    stream: TcpStream,
    input: BytesMut,
    /// What is not yet sent. Rows are encoded straight into it.
    pub(super) output: BytesMut,
    message_bytes_max: usize,
}

impl Channel {
    /// Takes over a fresh connection.
    pub(super) fn new(stream: TcpStream, message_bytes_max: usize) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: BytesMut::new(),
            message_bytes_max,
        }
    }

    /// The next startup packet without its length: `code u32, rest`.
    pub(super) async fn read_startup(&mut self) -> Result<Bytes, Broken> {
        self.fill(4).await?;
        let length = (&self.input[..4]).get_u32() as usize;
        if !(8..=STARTUP_BYTES_MAX).contains(&length) {
            // Not our protocol (TLS, HTTP, noise): it would not understand an error either, but PostgreSQL's clients do.
            return Err(Broken::Refused(Error::protocol("invalid length of startup packet")));
        }
        self.fill(length).await?;
        let mut packet = self.input.split_to(length);
        packet.advance(4);
        Ok(packet.freeze())
    }

    /// The next frame.
    pub(super) async fn read(&mut self) -> Result<Frame, Broken> {
        self.fill(1).await?;
        let kind = self.input[0];
        if !Frontend::kind_is_known(kind) {
            return Err(Broken::Refused(Error::protocol(format!(
                "invalid frontend message type {kind}"
            ))));
        }
        self.fill(5).await?;
        let length = (&self.input[1..5]).get_i32();
        let Some(body) = usize::try_from(length).ok().and_then(|l| l.checked_sub(4)) else {
            return Err(Broken::Refused(Error::protocol(format!(
                "invalid message length {length}"
            ))));
        };
        if body > self.message_bytes_max {
            return Err(Broken::Refused(
                Error::new("54000", format!("message of {body} bytes is too long")).with_hint(format!(
                    "the limit is {} bytes; load larger data with COPY",
                    self.message_bytes_max
                )),
            ));
        }
        self.fill(5 + body).await?;
        self.input.advance(5);
        Ok(Frame {
            kind,
            body: self.input.split_to(body).freeze(),
        })
    }

    /// The kind of the next frame, if its first byte has come already.
    pub(super) fn next_kind(&self) -> Option<u8> {
        self.input.first().copied()
    }

    /// Waits until `bytes` are in the input. Room is made as bytes come, so a large length alone allocates nothing.
    async fn fill(&mut self, bytes: usize) -> Result<(), Broken> {
        while self.input.len() < bytes {
            self.input
                .reserve((bytes - self.input.len()).clamp(4 << 10, FLUSH_BYTES));
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(Broken::Gone);
            }
        }
        Ok(())
    }

    /// Resolves when the client has hung up. What it sends meanwhile is kept for later.
    pub(super) async fn hangup(&mut self) {
        while self.input.len() < READ_AHEAD_BYTES_MAX {
            self.input.reserve(4 << 10);
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        std::future::pending().await
    }

    /// Queues a message.
    ///
    /// # Errors
    /// XX000 for one that does not fit its type's limit; nothing is queued then.
    pub(super) fn put(&mut self, message: &PgWireBackendMessage) -> Result<(), Error> {
        let at = self.output.len();
        message.encode(&mut self.output).map_err(|e| {
            self.output.truncate(at);
            Error::internal(format!("message to the client: {e}"))
        })
    }

    /// Queues bytes as they are.
    pub(super) fn put_bytes(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// Writes everything queued.
    pub(super) async fn flush(&mut self) -> Result<(), Broken> {
        while !self.output.is_empty() {
            if self.stream.write_buf(&mut self.output).await? == 0 {
                return Err(Broken::Gone);
            }
        }
        // A buffer grown by one very large row is given back.
        if self.output.capacity() > 8 * FLUSH_BYTES {
            self.output = BytesMut::new();
        }
        Ok(())
    }

    /// Tells the client that no more comes, and reads off what it still sends, so that closing does not reset the
    /// connection before it has read the last error.
    pub(super) async fn close(mut self) {
        if self.flush().await.is_err() || self.stream.shutdown().await.is_err() {
            return;
        }
        let mut scrap = [0; 4 << 10];
        while matches!(self.stream.read(&mut scrap).await, Ok(n) if n > 0) {}
    }
}
