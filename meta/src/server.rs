//! Serves a meta store to other processes.
//!
//! ```text
//!   RemoteMeta ──Range, Cas, Wait──▶ MetaServer ──▶ Arc<dyn MetaStore>
//! ```
//!
//! Checks all input before the store sees it. Errors travel whole, in the details of the status. Who may connect is
//! decided where the listener is set up, not here.

use crate::MetaStore;
use crate::limits::{WAIT_MAX, check_ops, check_prefix};
use crate::wire::{self, REQUEST_BYTES_MAX};
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::{Error, v1};
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status};

/// Open waits: one per watching process, so this is far above any cluster; further ones are refused.
const WAITS_MAX: usize = 1_024;
/// Ranges and compare-and-swaps at once, from all peers: bounds their replies in memory. Further ones queue in their connection.
const CALLS_MAX: usize = 64;

/// The gRPC face of a meta store.
#[derive(Debug)]
pub struct MetaServer {
    store: Arc<dyn MetaStore>,
    waits: Semaphore,
    calls: Semaphore,
    ended: watch::Receiver<bool>,
}

/// Ends open waits, which else keep a server from stopping for as long as they may last.
#[derive(Debug)]
pub struct EndWaits(watch::Sender<bool>);

impl EndWaits {
    /// Every open and later wait is answered at once.
    pub fn end(&self) {
        self.0.send_replace(true);
    }
}

impl MetaServer {
    /// Serves `store`. Who stops the server ends its waits first.
    pub fn new(store: Arc<dyn MetaStore>) -> (Self, EndWaits) {
        let (end, ended) = watch::channel(false);
        let server = Self {
            store,
            waits: Semaphore::new(WAITS_MAX),
            calls: Semaphore::new(CALLS_MAX),
            ended,
        };
        (server, EndWaits(end))
    }

    /// The tonic service with its message limits, ready for `Server::add_service`.
    pub fn into_service(self) -> v1::meta_server::MetaServer<Self> {
        v1::meta_server::MetaServer::new(self).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    async fn call(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Status> {
        self.calls
            .acquire()
            .await
            .map_err(|_| Error::unavailable("the meta store is closed").into())
    }
}

#[tonic::async_trait]
impl v1::meta_server::Meta for MetaServer {
    async fn range(&self, request: Request<v1::RangeRequest>) -> Result<Response<v1::RangeReply>, Status> {
        let request = request.into_inner();
        check_prefix(&request.prefix)?;
        let _permit = self.call().await?;
        let (entries, revision) = self.store.range(&request.prefix).await?;
        let items = entries.into_iter().map(wire::entry_to_wire).collect();
        Ok(Response::new(v1::RangeReply { items, revision }))
    }

    async fn cas(&self, request: Request<v1::CasRequest>) -> Result<Response<v1::CasReply>, Status> {
        let ops = request
            .into_inner()
            .ops
            .into_iter()
            .map(wire::from_wire)
            .collect::<Result<Vec<_>, Error>>()?;
        check_ops(&ops)?;
        let _permit = self.call().await?;
        let outcome = self.store.cas(ops).await?;
        Ok(Response::new(v1::CasReply {
            applied: outcome.applied,
            revision: outcome.revision,
        }))
    }

    async fn wait(&self, request: Request<v1::WaitRequest>) -> Result<Response<v1::WaitReply>, Status> {
        let request = request.into_inner();
        let limit = Duration::from_millis(request.timeout_ms).min(WAIT_MAX);
        let Ok(_permit) = self.waits.try_acquire() else {
            return Err(Error::new("53400", format!("more than {WAITS_MAX} waits at the meta store")).into());
        };
        let mut ended = self.ended.clone();
        tokio::select! {
            revision = self.store.wait(request.after, limit) => Ok(Response::new(v1::WaitReply { revision: revision? })),
            Ok(_) = ended.wait_for(|e| *e) => Err(Error::unavailable("the meta store is stopping").into()),
        }
    }
}
