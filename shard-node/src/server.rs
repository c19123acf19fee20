//! The gRPC face of a shard node: decode, call [`ShardService`], encode. No decisions here.
//!
//! ```text
//!   tonic ──▶ ShardServer ──▶ Arc<dyn ShardService> (the node)
//!             rows of Execute and Stage travel as Arrow IPC chunks
//! ```

use futures::Stream;
use futures::StreamExt;
use std::pin::Pin;
use std::sync::Arc;
use tessera_proto::client::MESSAGE_BYTES_MAX;
use tessera_proto::service::ShardService;
use tessera_proto::v1::shard_server::{Shard, ShardServer as ShardGrpc};
use tessera_proto::v1::{self, stage_message::Message};
use tessera_proto::{Error, ipc};
use tonic::{Request, Response, Status, Streaming};

/// Serves a node's calls.
#[derive(Clone)]
pub struct ShardServer {
    node: Arc<dyn SchemaAware>,
}

/// A node whose streamed rows need their schema known before the first batch.
pub trait SchemaAware: ShardService {
    /// The output schema of a leaf, from its plan.
    ///
    /// # Errors
    /// 08P01 when the plan is malformed; what the catalog says about its tables.
    fn leaf_schema(
        &self,
        request: &v1::ExecuteRequest,
    ) -> tessera_proto::Result<datafusion::arrow::datatypes::SchemaRef>;
    /// All stored columns of the table that rows are staged for.
    ///
    /// # Errors
    /// The table is unknown, or its definition changed.
    fn stage_schema(&self, begin: &v1::StageBegin) -> tessera_proto::Result<datafusion::arrow::datatypes::SchemaRef>;
}

impl ShardServer {
    /// The tonic service, with its message limits.
    pub fn service(node: Arc<dyn SchemaAware>) -> ShardGrpc<Self> {
        ShardGrpc::new(Self { node })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

type Chunks = Pin<Box<dyn Stream<Item = Result<v1::ArrowChunk, Status>> + Send>>;

/// A unary call that only passes through.
macro_rules! pass {
    ($name:ident, $request:ty, $reply:ty) => {
        async fn $name(&self, request: Request<$request>) -> Result<Response<$reply>, Status> {
            Ok(Response::new(self.node.$name(request.into_inner()).await?))
        }
    };
}

#[tonic::async_trait]
impl Shard for ShardServer {
    type ExecuteStream = Chunks;

    async fn execute(&self, request: Request<v1::ExecuteRequest>) -> Result<Response<Chunks>, Status> {
        let request = request.into_inner();
        let schema = self.node.leaf_schema(&request)?;
        let rows = self.node.execute(request, schema).await?;
        Ok(Response::new(Box::pin(ipc::to_chunks(rows))))
    }

    async fn stage(&self, request: Request<Streaming<v1::StageMessage>>) -> Result<Response<v1::StageReply>, Status> {
        let mut messages = request.into_inner();
        let begin = match messages.message().await?.and_then(|m| m.message) {
            Some(Message::Begin(begin)) => begin,
            _ => return Err(Error::protocol("a staging stream starts with its table").into()),
        };
        let schema = self.node.stage_schema(&begin)?;
        let chunks = messages.map(|item| match item?.message {
            Some(Message::Chunk(chunk)) => Ok(chunk),
            _ => Err(Error::protocol("a staging stream goes on with rows").into()),
        });
        let rows = ipc::from_chunks(schema, chunks);
        Ok(Response::new(self.node.stage(begin, rows).await?))
    }

    pass!(point_read, v1::PointReadRequest, v1::PointReadReply);
    pass!(commit, v1::CommitRequest, v1::CommitReply);
    pass!(prepare, v1::PrepareRequest, v1::PrepareReply);
    pass!(finish, v1::FinishRequest, v1::FinishReply);
    pass!(outcome, v1::OutcomeRequest, v1::OutcomeReply);
    pass!(read_index, v1::ReadIndexRequest, v1::ReadIndexReply);
    pass!(digest, v1::DigestRequest, v1::DigestReply);
    pass!(status, v1::StatusRequest, v1::StatusReply);
    pass!(change_leader, v1::ChangeLeaderRequest, v1::ChangeLeaderReply);
}
