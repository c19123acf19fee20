//! COPY ... FROM STDIN.
//!
//! ```text
//!   ◀── CopyInResponse      CopyData CopyData ... CopyDone ──▶   decoder ──▶ batches ──▶ CopySink::write ──▶ finish ──▶ COPY n
//!                           CopyFail, bad data, cancel     ──▶   CopySink::abort ──▶ error
//! ```
//!
//! Nothing is read from the socket while a batch is being written, so the shards' pace reaches the client through TCP; what
//! is held is one message and the decoder's unfinished batch. After an error the rest of the data may still be on its
//! way: outside a COPY such messages are dropped, so both sides stay in step.

use super::connection::{Connection, Stop, attend, shutting_down};
use super::message::Frontend;
use super::session::{CopySink, SqlSession};
use crate::copy::CopyDecoder;
use datafusion::arrow::array::RecordBatch;
use futures::FutureExt;
use pgwire::messages::PgWireBackendMessage as Message;
use pgwire::messages::copy::CopyInResponse;
use std::panic::AssertUnwindSafe;
use tessera_proto::{Error, Result};
use tokio_util::sync::CancellationToken;

/// A large CopyData message is decoded in pieces of this size, so that few batches wait at a time.
const PIECE_BYTES: usize = 64 << 10;

impl<S: SqlSession> Connection<S> {
    /// Receives the data of a COPY to its end and tells how many rows it was.
    pub(super) async fn copy_in(
        &mut self,
        mut sink: Box<dyn CopySink>,
        token: &CancellationToken,
    ) -> Result<u64, Stop> {
        match self.receive_all(sink.as_mut(), token).await {
            Ok(()) => attend(&mut self.channel, &self.shutdown, token, sink.finish()).await,
            Err(stop) => {
                // A panic while giving up must not hide why we give up.
                let _ = AssertUnwindSafe(sink.abort()).catch_unwind().await;
                Err(stop)
            }
        }
    }

    async fn receive_all(&mut self, sink: &mut dyn CopySink, token: &CancellationToken) -> Result<(), Stop> {
        let zone = self.session.setting("timezone").unwrap_or_default();
        let mut decoder = CopyDecoder::new(sink.columns(), sink.options())?.in_zone(&zone);
        let columns = i16::try_from(sink.columns().len()).map_err(|_| Error::new("54011", "too many columns"))?;
        let text_formats = vec![0; sink.columns().len()];
        self.put(&Message::CopyInResponse(CopyInResponse::new(0, columns, text_formats)))?;
        self.channel.flush().await?;
        loop {
            match self.next_copy_message(token).await? {
                Frontend::CopyData(data) => {
                    for piece in data.chunks(PIECE_BYTES) {
                        self.decode(sink, token, |batches| decoder.push(piece, batches)).await?;
                    }
                }
                Frontend::CopyDone => return self.decode(sink, token, |batches| decoder.finish(batches)).await,
                Frontend::CopyFail(reason) => {
                    return Err(Error::cancelled(format!("COPY from stdin failed: {reason}")).into());
                }
                Frontend::Terminate => return Err(Stop::Gone),
                // Clients send them right after Execute, before the data.
                Frontend::Flush | Frontend::Sync => {}
                _ => return Err(Error::protocol("unexpected message type during COPY from stdin").into()),
            }
        }
    }

    /// Runs the decoder and writes what it has finished.
    async fn decode(
        &mut self,
        sink: &mut dyn CopySink,
        token: &CancellationToken,
        step: impl FnOnce(&mut Vec<RecordBatch>) -> Result<()>,
    ) -> Result<(), Stop> {
        let mut batches = vec![];
        let work = async {
            step(&mut batches)?;
            for batch in batches {
                sink.write(batch).await?;
            }
            Ok(())
        };
        attend(&mut self.channel, &self.shutdown, token, work).await
    }

    async fn next_copy_message(&mut self, token: &CancellationToken) -> Result<Frontend, Stop> {
        let frame = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => return Err(Stop::Fatal(shutting_down())),
            () = token.cancelled() => return Err(crate::error::cancelled_by_user().into()),
            frame = self.channel.read() => frame?,
        };
        Frontend::read(frame).map_err(Stop::Fatal)
    }
}
