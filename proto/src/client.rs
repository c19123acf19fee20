//! The gRPC twin of [`ShardService`]: a lazily connected channel with connect timeout, keepalive, bounded messages, and the
//! request's own deadline on every call.

use crate::error::{Error, Result, Retry};
use crate::ids::{NodeId, Timestamp};
use crate::ipc;
use crate::service::{ShardService, TimestampOracle, deadline};
use crate::v1::{self, oracle_client::OracleClient, shard_client::ShardClient};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion_distributed::WorkerChannel;
use datafusion_distributed::grpc::{BoxCloneSyncChannel, create_worker_client};
use futures::StreamExt;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Largest gRPC message either way: an inline write set (64 MiB) plus its envelope.
pub const MESSAGE_BYTES_MAX: usize = ipc::INLINE_BYTES_MAX + (1 << 20);

/// A channel to `host:port` that connects at first use and notices a black-holed peer within about 10 s.
///
/// # Errors
/// The address is not a host and port.
pub fn channel(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| {
        Error::new("22023", format!("node address \"{address}\" is not host:port")).with_detail(e.to_string())
    })?;
    Ok(endpoint
        .connect_timeout(Duration::from_secs(1))
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .tcp_nodelay(true)
        .connect_lazy())
}

/// A shard node in another process.
#[derive(Debug, Clone)]
pub struct GrpcShard {
    node: NodeId,
    client: ShardClient<Channel>,
    channel: Channel,
}

impl GrpcShard {
    /// Does not connect yet.
    ///
    /// # Errors
    /// The address is not a host and port.
    pub fn new(node: NodeId, address: &str) -> Result<Self> {
        let channel = channel(address)?;
        let client = ShardClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self { node, client, channel })
    }

    /// One unary call under its deadline.
    async fn unary<T>(
        &self,
        deadline_ms: u64,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T> {
        let limit = deadline(deadline_ms)?;
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => Err(Error::from(status).with_node(self.node)),
            Err(_) => Err(Error::unavailable(format!(
                "node {} did not answer in {} ms",
                self.node,
                limit.as_millis()
            ))),
        }
    }
}

impl Error {
    /// Names the node in the detail, for errors that come from elsewhere.
    pub fn with_node(mut self, node: NodeId) -> Self {
        if self.detail.is_none() && self.is_retryable() {
            self.detail = Some(format!("node {node}"));
        }
        self
    }
}

/// Deadline of calls that carry none: they read only state in memory.
const STATUS_DEADLINE_MS: u64 = 5_000;

#[async_trait::async_trait]
impl ShardService for GrpcShard {
    async fn execute(&self, request: v1::ExecuteRequest, schema: SchemaRef) -> Result<SendableRecordBatchStream> {
        let limit = request.deadline_ms;
        let mut client = self.client.clone();
        let chunks = self.unary(limit, client.execute(request)).await?;
        // The whole stream lives under the same deadline, so that a stalled peer cannot hold a query for ever.
        let until = tokio::time::Instant::now() + deadline(limit)?;
        let node = self.node;
        let bounded = futures::stream::unfold(Some(chunks), move |state| async move {
            let mut chunks = state?;
            match tokio::time::timeout_at(until, chunks.next()).await {
                Ok(Some(item)) => Some((item, Some(chunks))),
                Ok(None) => None,
                Err(_) => Some((
                    Err(Error::cancelled(format!("node {node} did not finish before the deadline")).into()),
                    None,
                )),
            }
        });
        Ok(ipc::from_chunks(schema, bounded))
    }

    async fn point_read(&self, request: v1::PointReadRequest) -> Result<v1::PointReadReply> {
        self.unary(request.deadline_ms, self.client.clone().point_read(request))
            .await
    }

    async fn commit(&self, request: v1::CommitRequest) -> Result<v1::CommitReply> {
        let limit = deadline(request.deadline_ms)?;
        match tokio::time::timeout(limit, self.client.clone().commit(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            // A status with our details was answered by the node: it knows. Without, the answer was lost on the way.
            Ok(Err(status)) if !status.details().is_empty() => Err(status.into()),
            Ok(Err(status)) => Err(Error::outcome_unknown(format!(
                "node {} was lost during commit: {}",
                self.node,
                status.message()
            ))),
            Err(_) => Err(Error::outcome_unknown(format!(
                "node {} did not answer the commit in {} ms",
                self.node,
                limit.as_millis()
            ))),
        }
    }

    async fn prepare(&self, request: v1::PrepareRequest) -> Result<v1::PrepareReply> {
        self.unary(request.deadline_ms, self.client.clone().prepare(request))
            .await
    }

    async fn write(&self, request: v1::WriteRequest) -> Result<v1::WriteReply> {
        self.unary(request.deadline_ms, self.client.clone().write(request))
            .await
    }

    async fn undo(&self, request: v1::UndoRequest) -> Result<v1::UndoReply> {
        self.unary(request.deadline_ms, self.client.clone().undo(request)).await
    }

    async fn keep_alive(&self, request: v1::KeepAliveRequest) -> Result<v1::KeepAliveReply> {
        self.unary(request.deadline_ms, self.client.clone().keep_alive(request))
            .await
    }

    async fn finish(&self, request: v1::FinishRequest) -> Result<v1::FinishReply> {
        self.unary(request.deadline_ms, self.client.clone().finish(request))
            .await
    }

    async fn outcome(&self, request: v1::OutcomeRequest) -> Result<v1::OutcomeReply> {
        self.unary(request.deadline_ms, self.client.clone().outcome(request))
            .await
    }

    async fn stage(&self, begin: v1::StageBegin, rows: SendableRecordBatchStream) -> Result<v1::StageReply> {
        let limit = begin.deadline_ms;
        // gRPC carries no error upwards: an input error ends the upload and is reported in place of the reply.
        let failed = std::sync::Arc::new(std::sync::Mutex::new(None));
        let note = failed.clone();
        let head = v1::StageMessage {
            message: Some(v1::stage_message::Message::Begin(begin)),
        };
        let body = ipc::to_chunks(rows).scan((), move |(), item| {
            std::future::ready(match item {
                Ok(chunk) => Some(v1::StageMessage {
                    message: Some(v1::stage_message::Message::Chunk(chunk)),
                }),
                Err(status) => {
                    *note.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Error::from(status));
                    None
                }
            })
        });
        let messages = futures::stream::iter([head]).chain(body);
        let reply = self.unary(limit, self.client.clone().stage(messages)).await;
        match failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => reply,
        }
    }

    async fn read_index(&self, request: v1::ReadIndexRequest) -> Result<v1::ReadIndexReply> {
        self.unary(request.deadline_ms, self.client.clone().read_index(request))
            .await
    }

    async fn digest(&self, request: v1::DigestRequest) -> Result<v1::DigestReply> {
        self.unary(request.deadline_ms, self.client.clone().digest(request))
            .await
    }

    async fn status(&self, request: v1::StatusRequest) -> Result<v1::StatusReply> {
        self.unary(STATUS_DEADLINE_MS, self.client.clone().status(request))
            .await
    }

    async fn change_leader(&self, request: v1::ChangeLeaderRequest) -> Result<v1::ChangeLeaderReply> {
        self.unary(request.deadline_ms, self.client.clone().change_leader(request))
            .await
    }

    async fn vacuum(&self, request: v1::VacuumRequest) -> Result<v1::VacuumReply> {
        self.unary(request.deadline_ms, self.client.clone().vacuum(request))
            .await
    }

    async fn profile(&self, request: v1::ProfileRequest) -> Result<v1::ProfileReply> {
        self.unary(request.deadline_ms, self.client.clone().profile(request))
            .await
    }

    /// Calls have no deadline of their own: the coordinator's statement has, and dropping it ends them; keepalive finds a
    /// peer that is gone.
    fn worker(&self) -> Result<Box<dyn WorkerChannel>> {
        Ok(create_worker_client(BoxCloneSyncChannel::new(self.channel.clone())))
    }
}

/// The oracle of a router in another process.
#[derive(Debug, Clone)]
pub struct GrpcOracle {
    client: OracleClient<Channel>,
}

impl GrpcOracle {
    /// Does not connect yet.
    ///
    /// # Errors
    /// The address is not a host and port.
    pub fn new(address: &str) -> Result<Self> {
        Ok(Self {
            client: OracleClient::new(channel(address)?),
        })
    }
}

#[async_trait::async_trait]
impl TimestampOracle for GrpcOracle {
    async fn draw(&self) -> Result<Timestamp> {
        let mut client = self.client.clone();
        let call = client.draw(v1::DrawRequest { count: 1 });
        match tokio::time::timeout(Duration::from_millis(STATUS_DEADLINE_MS), call).await {
            Ok(Ok(reply)) => Ok(Timestamp(reply.into_inner().first)),
            Ok(Err(status)) => Err(Error::from(status).with_retry(Retry::Elsewhere)),
            Err(_) => Err(Error::unavailable("the timestamp oracle did not answer")),
        }
    }
}
