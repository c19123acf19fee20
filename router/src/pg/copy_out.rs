//! COPY ... TO STDOUT.
//!
//! ```text
//!   ◀── CopyOutResponse   CopyData (a line) ...   CopyDone   CommandComplete "COPY n"
//! ```
//!
//! Lines are sent as they are made, so a client that reads slowly holds the query back. An error in the middle comes instead of
//! CopyDone: what was sent is not the whole.

use super::connection::{Connection, Stop};
use super::rows::{Encoder, RowSource, Sent, copy_data};
use super::session::SqlSession;
use crate::outcome::{CopyOut, RowsTag};
use bytes::BytesMut;
use pgwire::messages::PgWireBackendMessage as Message;
use pgwire::messages::copy::{CopyDone, CopyOutResponse};
use tessera_proto::Error;
use tokio_util::sync::CancellationToken;

impl<S: SqlSession> Connection<S> {
    /// Sends the lines of a COPY to their end, and its tag.
    pub(super) async fn copy_out(&mut self, copy: CopyOut, token: &CancellationToken) -> Result<(), Stop> {
        let CopyOut { mut encoder, stream } = copy;
        let columns = i16::try_from(encoder.columns()).map_err(|_| Error::new("54011", "too many columns"))?;
        let formats = vec![0; encoder.columns()];
        self.put(&Message::CopyOutResponse(CopyOutResponse::new(0, columns, formats)))?;
        let mut header = BytesMut::new();
        if encoder.header(&mut header) {
            copy_data(&mut self.channel.output, |out| {
                out.extend_from_slice(&header);
                Ok(())
            })?;
        }
        let mut source = RowSource::new(stream, Encoder::Lines(encoder), token.clone(), RowsTag::Copy);
        let sent = source.send(&mut self.channel, &self.shutdown, 0).await?;
        let rows = if let Sent::All(rows) = sent { rows } else { 0 };
        self.put(&Message::CopyDone(CopyDone::new()))?;
        self.complete(source.tag(rows))
    }
}
