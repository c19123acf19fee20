//! Rows on their way from a stream to a client, a whole result or a number of rows at a time.
//!
//! ```text
//!   stream ──▶ batch (at most one held) ──▶ rows encoded into the output ──▶ flushed at FLUSH_BYTES
//! ```
//!
//! The stream is asked for its next batch only when the last one is encoded, so a client that reads slowly holds the query
//! back. Cancelling works at every wait: for the next batch and for the client to read.

use super::channel::{Channel, FLUSH_BYTES};
use super::connection::{Stop, attend, shutting_down};
use super::encode::RowEncoder;
use crate::copy::encoder::CopyEncoder;
use crate::outcome::RowsTag;
use bytes::{BufMut, BytesMut};
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use tessera_proto::{Error, Result};
use tokio_util::sync::CancellationToken;

/// What rows are made into.
pub(super) enum Encoder {
    /// DataRow messages.
    Rows(RowEncoder),
    /// CopyData messages, one a line.
    Lines(Box<CopyEncoder>),
}

impl Encoder {
    fn prepare(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        match self {
            Self::Rows(rows) => rows.prepare(batch),
            Self::Lines(lines) => lines.prepare(batch),
        }
    }

    fn encode(&mut self, columns: &[ArrayRef], row: usize, out: &mut BytesMut) -> Result<()> {
        match self {
            Self::Rows(rows) => rows.encode(columns, row, out),
            Self::Lines(lines) => copy_data(out, |out| lines.line(columns, row, out)),
        }
    }
}

/// One CopyData message of what `write` writes; nothing if it fails.
pub(super) fn copy_data(out: &mut BytesMut, write: impl FnOnce(&mut BytesMut) -> Result<()>) -> Result<()> {
    let start = out.len();
    out.put_u8(b'd');
    out.put_i32(0);
    let written = write(out).and_then(|()| {
        let length = i32::try_from(out.len() - start - 1);
        length.map_err(|_| Error::new("54000", "row is too long for a message"))
    });
    match written {
        Ok(length) => {
            out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// A result that is being sent.
pub(super) struct RowSource {
    stream: SendableRecordBatchStream,
    encoder: Encoder,
    /// What cancels the statement.
    pub(super) token: CancellationToken,
    tag: RowsTag,
    batch: Vec<ArrayRef>,
    rows: usize,
    next: usize,
}

/// How far sending came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// All of it: so many rows now.
    All(u64),
    /// As many as asked for; there may be more.
    Some,
}

impl RowSource {
    /// A result of which nothing is sent yet.
    pub(super) fn new(
        stream: SendableRecordBatchStream,
        encoder: Encoder,
        token: CancellationToken,
        tag: RowsTag,
    ) -> Self {
        Self {
            stream,
            encoder,
            token,
            tag,
            batch: vec![],
            rows: 0,
            next: 0,
        }
    }

    /// The tag that ends it.
    pub(super) fn tag(&self, rows: u64) -> String {
        match self.tag {
            RowsTag::Select => format!("SELECT {rows}"),
            RowsTag::Explain => "EXPLAIN".to_owned(),
            RowsTag::Show => "SHOW".to_owned(),
            RowsTag::Copy => format!("COPY {rows}"),
            RowsTag::Insert(written) => format!("INSERT 0 {written}"),
            RowsTag::Update(changed) => format!("UPDATE {changed}"),
            RowsTag::Delete(removed) => format!("DELETE {removed}"),
        }
    }

    /// Sends rows: `rows_max` of them at most, or all for 0.
    pub(super) async fn send(
        &mut self,
        channel: &mut Channel,
        shutdown: &CancellationToken,
        rows_max: usize,
    ) -> Result<Sent, Stop> {
        let mut sent = 0;
        loop {
            while self.next < self.rows {
                if rows_max != 0 && sent == rows_max {
                    return Ok(Sent::Some);
                }
                self.encoder.encode(&self.batch, self.next, &mut channel.output)?;
                self.next += 1;
                sent += 1;
                if channel.output.len() >= FLUSH_BYTES {
                    self.flush(channel, shutdown).await?;
                }
            }
            if rows_max != 0 && sent == rows_max {
                return Ok(Sent::Some);
            }
            if !self.fetch(channel, shutdown).await? {
                return Ok(Sent::All(sent as u64));
            }
        }
    }

    /// Gets the next batch; false at the end.
    async fn fetch(&mut self, channel: &mut Channel, shutdown: &CancellationToken) -> Result<bool, Stop> {
        let (stream, token) = (&mut self.stream, &self.token);
        let next = async {
            tokio::select! {
                biased;
                () = token.cancelled() => Err(crate::error::cancelled_by_user()),
                batch = stream.next() => batch.transpose().map_err(Error::from),
            }
        };
        let Some(batch) = attend(channel, shutdown, token, next).await? else {
            return Ok(false);
        };
        // Free the last batch before the next one is unpacked.
        self.batch.clear();
        (self.rows, self.next) = (0, 0);
        self.batch = self.encoder.prepare(&batch)?;
        self.rows = batch.num_rows();
        Ok(true)
    }

    async fn flush(&mut self, channel: &mut Channel, shutdown: &CancellationToken) -> Result<(), Stop> {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Err(Stop::Fatal(shutting_down())),
            () = self.token.cancelled() => Err(crate::error::cancelled_by_user().into()),
            flushed = channel.flush() => Ok(flushed?),
        }
    }
}
