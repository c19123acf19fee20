//! A meta store that another process serves.
//!
//! ```text
//!   cas ──▶ connection refused            Retry::Elsewhere: it was never sent
//!       ──▶ status with our details       the store answered: its own error
//!       ──▶ anything else, or silence     Retry::OutcomeUnknown
//! ```
//!
//! Keeps nothing: every read is linearizable because the store answers it. Connects at first use and again by itself.

use crate::limits::{WAIT_MAX, check_ops, check_prefix};
use crate::wire::{self, REPLY_BYTES_MAX, REQUEST_BYTES_MAX};
use crate::{Entry, MetaStore, Op, Outcome};
use std::time::Duration;
use tessera_proto::v1::{self, meta_client::MetaClient};
use tessera_proto::{Error, Result, client};
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;

/// Deadline of a range.
const RANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Deadline of a compare-and-swap: above the store's own (10 s in the queue, 30 s for the disk), which know more.
const CAS_TIMEOUT: Duration = Duration::from_secs(45);
/// What a wait may take beyond its own timeout.
const WAIT_SLACK: Duration = Duration::from_secs(5);

/// The client twin of [`crate::server::MetaServer`].
#[derive(Debug, Clone)]
pub struct RemoteMeta {
    address: String,
    client: MetaClient<Channel>,
}

impl RemoteMeta {
    /// A client of the store at `host:port`; does not connect yet. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The address is not a host and port.
    pub fn new(address: &str) -> Result<Self> {
        let client = MetaClient::new(client::channel(address)?)
            .max_decoding_message_size(REPLY_BYTES_MAX)
            .max_encoding_message_size(REQUEST_BYTES_MAX);
        Ok(Self {
            address: address.to_owned(),
            client,
        })
    }

    /// The error of a call without effects.
    fn lost(&self, status: Status) -> Error {
        if answered(&status) {
            return status.into();
        }
        Error::unavailable(format!("the meta store at {} cannot be reached", self.address))
            .with_detail(status.message())
    }

    /// The error of a call that may have had effects.
    fn lost_change(&self, status: Status) -> Error {
        if answered(&status) || never_sent(&status) {
            return self.lost(status);
        }
        Error::outcome_unknown(format!(
            "the meta store at {} was lost during a compare-and-swap",
            self.address
        ))
        .with_detail(status.message())
    }

    fn silent(&self, limit: Duration) -> String {
        format!(
            "the meta store at {} did not answer in {} s",
            self.address,
            limit.as_secs()
        )
    }
}

#[async_trait::async_trait]
impl MetaStore for RemoteMeta {
    async fn range(&self, prefix: &str) -> Result<(Vec<Entry>, u64)> {
        check_prefix(prefix)?;
        let mut client = self.client.clone();
        let reply = timeout(
            RANGE_TIMEOUT,
            client.range(v1::RangeRequest {
                prefix: prefix.to_owned(),
            }),
        )
        .await;
        let reply = reply.map_err(|_| Error::unavailable(self.silent(RANGE_TIMEOUT)))?;
        let reply = reply.map_err(|status| self.lost(status))?.into_inner();
        Ok((
            reply.items.into_iter().map(wire::entry_from_wire).collect(),
            reply.revision,
        ))
    }

    async fn cas(&self, ops: Vec<Op>) -> Result<Outcome> {
        check_ops(&ops)?;
        let mut client = self.client.clone();
        let request = v1::CasRequest {
            ops: ops.into_iter().map(wire::to_wire).collect(),
        };
        let reply = timeout(CAS_TIMEOUT, client.cas(request)).await;
        let reply = reply.map_err(|_| Error::outcome_unknown(self.silent(CAS_TIMEOUT)))?;
        let reply = reply.map_err(|status| self.lost_change(status))?.into_inner();
        Ok(Outcome {
            applied: reply.applied,
            revision: reply.revision,
        })
    }

    async fn wait(&self, after: u64, limit: Duration) -> Result<u64> {
        let mut client = self.client.clone();
        let limit = limit.min(WAIT_MAX);
        let request = v1::WaitRequest {
            after,
            timeout_ms: limit.as_millis() as u64,
        };
        let reply = timeout(limit + WAIT_SLACK, client.wait(request)).await;
        let reply = reply.map_err(|_| Error::unavailable(self.silent(limit + WAIT_SLACK)))?;
        Ok(reply.map_err(|status| self.lost(status))?.into_inner().revision)
    }
}

/// Whether the store itself answered with one of our errors, which say what happened.
fn answered(status: &Status) -> bool {
    !status.details().is_empty()
}

/// Whether there was no connection to send anything on.
fn never_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}
