//! The gRPC face of a shard node: decode, call the node, encode. No decisions here.
//!
//! ```text
//!   routers ──▶ Shard        ──▶ ShardServer ──▶ ShardService (the node)      rows travel as Arrow IPC chunks
//!   routers, nodes ──▶ WorkerService ──▶ the node's worker, on the query threads (exchange.rs)
//!   clients ──▶ FlightService ──▶ tickets for this node's part of a result (flight.rs)
//!   probes, tools ──▶ gRPC health, reflection
//!   peers   ──▶ Replication  ──▶ PeerServer  ──▶ PeerHandler  (the node)      one stream per ordered pair, and files
//! ```

use crate::exchange::OnQueryThreads;
use crate::flight::NodeFlight;
use crate::node::ShardNode;
use crate::replication::transport::{PeerHandler, REPLICATION_BYTES_MAX, check_hello};
use arrow_flight::flight_service_server::FlightServiceServer;
use futures::{Stream, StreamExt, TryStreamExt};
use std::pin::Pin;
use std::sync::Arc;
use tessera_meta::secret::cluster_secret;
use tessera_proto::client::MESSAGE_BYTES_MAX;
use tessera_proto::exchange::{EXCHANGE_BYTES_MAX, TASK_PLAN_BYTES_MAX};
use tessera_proto::service::ShardService;
use tessera_proto::v1::replication_server::{Replication, ReplicationServer as ReplicationGrpc};
use tessera_proto::v1::shard_server::{Shard, ShardServer as ShardGrpc};
use tessera_proto::v1::{self, peer_message, stage_message::Message};
use tessera_proto::{DESCRIPTORS, Error, Result as NodeResult, ipc};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Calls running at once on one connection; more wait.
const CALLS_PER_CONNECTION: usize = 1_024;

/// Serves a node to routers and peers until `shutdown`, then lets running calls end.
///
/// # Errors
/// The listener failed.
pub async fn serve(node: Arc<ShardNode>, listener: TcpListener, shutdown: CancellationToken) -> NodeResult<()> {
    let secret = cluster_secret(node.views().store().as_ref()).await?;
    let flight = NodeFlight::service(node.clone(), secret, shutdown.clone());
    // Streams of peers never end by themselves.
    let peers = PeerServer {
        node: node.clone(),
        stop: shutdown.clone(),
    };
    let replication = ReplicationGrpc::new(peers)
        .max_decoding_message_size(REPLICATION_BYTES_MAX)
        .max_encoding_message_size(REPLICATION_BYTES_MAX);
    let worker = node.worker.clone().with_max_message_size(EXCHANGE_BYTES_MAX / 2);
    let worker = worker
        .into_worker_server()
        .max_decoding_message_size(TASK_PLAN_BYTES_MAX)
        .max_encoding_message_size(EXCHANGE_BYTES_MAX);
    let worker = OnQueryThreads::new(worker, node.executor.runtime().clone());
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<FlightServiceServer<NodeFlight>>().await;
    reporter.set_serving::<ShardGrpc<ShardServer>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|e| Error::internal(format!("gRPC reflection: {e}")))?;
    tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .add_service(worker)
        .add_service(ShardServer::service(node))
        .add_service(replication)
        .add_service(flight)
        .add_service(health)
        .add_service(reflection)
        .serve_with_incoming_shutdown(nodelay(listener), shutdown.cancelled_owned())
        .await
        .map_err(|e| Error::internal(format!("the gRPC server ended: {e}")))
}

/// The builder's own setting does not reach sockets that were accepted elsewhere.
fn nodelay(listener: TcpListener) -> impl Stream<Item = std::io::Result<tokio::net::TcpStream>> {
    TcpListenerStream::new(listener)
        .map(|accepted| accepted.and_then(|socket| socket.set_nodelay(true).map(|()| socket)))
}

/// Serves a node's calls to routers.
#[derive(Clone)]
pub struct ShardServer {
    node: Arc<ShardNode>,
}

impl ShardServer {
    /// The tonic service, with its message limits.
    pub fn service(node: Arc<ShardNode>) -> ShardGrpc<Self> {
        ShardGrpc::new(Self { node })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

type Chunks = Pin<Box<dyn Stream<Item = Result<v1::ArrowChunk, Status>> + Send>>;

#[tonic::async_trait]
impl Shard for ShardServer {
    type ExecuteStream = Chunks;

    async fn execute(&self, request: Request<v1::ExecuteRequest>) -> Result<Response<Chunks>, Status> {
        let request = request.into_inner();
        let schema = self.node.leaf_schema(&request).await?;
        let rows = self.node.execute(request, schema).await?;
        Ok(Response::new(Box::pin(ipc::to_chunks(rows))))
    }

    async fn stage(&self, request: Request<Streaming<v1::StageMessage>>) -> Result<Response<v1::StageReply>, Status> {
        let mut messages = request.into_inner();
        let begin = match messages.message().await?.and_then(|m| m.message) {
            Some(Message::Begin(begin)) => begin,
            _ => return Err(Error::protocol("a staging stream starts with its table").into()),
        };
        let schema = self.node.stage_schema(&begin).await?;
        let chunks = messages.map(|item| match item?.message {
            Some(Message::Chunk(chunk)) => Ok(chunk),
            _ => Err(Error::protocol("a staging stream goes on with rows").into()),
        });
        let rows = ipc::from_chunks(schema, chunks);
        Ok(Response::new(self.node.stage(begin, rows).await?))
    }

    async fn point_read(&self, request: Request<v1::PointReadRequest>) -> Result<Response<v1::PointReadReply>, Status> {
        Ok(Response::new(self.node.point_read(request.into_inner()).await?))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitReply>, Status> {
        Ok(Response::new(self.node.commit(request.into_inner()).await?))
    }

    async fn prepare(&self, request: Request<v1::PrepareRequest>) -> Result<Response<v1::PrepareReply>, Status> {
        Ok(Response::new(self.node.prepare(request.into_inner()).await?))
    }

    async fn write(&self, request: Request<v1::WriteRequest>) -> Result<Response<v1::WriteReply>, Status> {
        Ok(Response::new(self.node.write(request.into_inner()).await?))
    }

    async fn undo(&self, request: Request<v1::UndoRequest>) -> Result<Response<v1::UndoReply>, Status> {
        Ok(Response::new(self.node.undo(request.into_inner()).await?))
    }

    async fn keep_alive(&self, request: Request<v1::KeepAliveRequest>) -> Result<Response<v1::KeepAliveReply>, Status> {
        Ok(Response::new(self.node.keep_alive(request.into_inner()).await?))
    }

    async fn finish(&self, request: Request<v1::FinishRequest>) -> Result<Response<v1::FinishReply>, Status> {
        Ok(Response::new(self.node.finish(request.into_inner()).await?))
    }

    async fn outcome(&self, request: Request<v1::OutcomeRequest>) -> Result<Response<v1::OutcomeReply>, Status> {
        Ok(Response::new(self.node.outcome(request.into_inner()).await?))
    }

    async fn read_index(&self, request: Request<v1::ReadIndexRequest>) -> Result<Response<v1::ReadIndexReply>, Status> {
        Ok(Response::new(self.node.read_index(request.into_inner()).await?))
    }

    async fn digest(&self, request: Request<v1::DigestRequest>) -> Result<Response<v1::DigestReply>, Status> {
        Ok(Response::new(self.node.digest(request.into_inner()).await?))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        Ok(Response::new(self.node.status(request.into_inner()).await?))
    }

    async fn vacuum(&self, request: Request<v1::VacuumRequest>) -> Result<Response<v1::VacuumReply>, Status> {
        Ok(Response::new(self.node.vacuum(request.into_inner()).await?))
    }

    async fn profile(&self, request: Request<v1::ProfileRequest>) -> Result<Response<v1::ProfileReply>, Status> {
        Ok(Response::new(self.node.profile(request.into_inner()).await?))
    }

    async fn change_leader(
        &self,
        request: Request<v1::ChangeLeaderRequest>,
    ) -> Result<Response<v1::ChangeLeaderReply>, Status> {
        Ok(Response::new(self.node.change_leader(request.into_inner()).await?))
    }
}

/// Serves a node's calls to its peers.
#[derive(Clone)]
struct PeerServer {
    node: Arc<ShardNode>,
    stop: CancellationToken,
}

type Messages = Pin<Box<dyn Stream<Item = Result<v1::PeerMessage, Status>> + Send>>;
type FileChunks = Pin<Box<dyn Stream<Item = Result<v1::FileChunk, Status>> + Send>>;

fn file_chunks(chunks: crate::replication::transport::Chunks) -> Response<FileChunks> {
    Response::new(Box::pin(
        chunks.map_ok(|data| v1::FileChunk { data }).map_err(Status::from),
    ))
}

#[tonic::async_trait]
impl Replication for PeerServer {
    type ExchangeStream = Messages;
    type FetchFileStream = FileChunks;
    type FetchSnapshotStream = FileChunks;

    async fn exchange(&self, request: Request<Streaming<v1::PeerMessage>>) -> Result<Response<Messages>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|m| m.message);
        let Some(peer_message::Message::Hello(theirs)) = first else {
            return Err(Error::protocol("a replication stream starts with a greeting").into());
        };
        let hello = self.node.hello();
        let from = check_hello(&hello, &theirs)?;
        let (sender, replies) = mpsc::channel(1);
        let greeting = v1::PeerMessage {
            message: Some(peer_message::Message::Hello(hello)),
        };
        sender
            .try_send(Ok(greeting))
            .map_err(|_| Error::internal("a new channel is full"))?;
        let (node, stop) = (self.node.clone(), self.stop.clone());
        self.node.track(async move {
            // The reply stream lives as long as this does; its end tells the peer to connect again.
            let _sender = sender;
            loop {
                let next = tokio::select! {
                    () = stop.cancelled() => break,
                    next = messages.next() => next,
                };
                match next {
                    Some(Ok(message)) => node.deliver(from, message),
                    Some(Err(_)) | None => break,
                }
            }
            node.lost(from.node);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }

    async fn fetch_file(&self, request: Request<v1::FetchFileRequest>) -> Result<Response<FileChunks>, Status> {
        Ok(file_chunks(self.node.read_file(request.into_inner()).await?))
    }

    async fn fetch_snapshot(&self, request: Request<v1::FetchSnapshotRequest>) -> Result<Response<FileChunks>, Status> {
        Ok(file_chunks(self.node.read_snapshot(request.into_inner()).await?))
    }

    async fn prefetch(&self, request: Request<v1::PrefetchRequest>) -> Result<Response<v1::PrefetchReply>, Status> {
        self.node.prefetch(request.into_inner()).await?;
        Ok(Response::new(v1::PrefetchReply {}))
    }

    async fn discard(&self, request: Request<v1::DiscardRequest>) -> Result<Response<v1::DiscardReply>, Status> {
        PeerHandler::discard(&*self.node, request.into_inner()).await?;
        Ok(Response::new(v1::DiscardReply {}))
    }
}
