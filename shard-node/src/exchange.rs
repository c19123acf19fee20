//! Where a node's worker runs: on the query threads, whoever calls it.
//!
//! ```text
//!   RPC runtime                               query runtime
//!   WorkerService call ── OnQueryThreads ───▶ decode task ─ run: leaves read here, rows of other stages come by gRPC
//!        ◀── frames ◀── bounded channel ◀──────────┘              dropping the response ends the task at its next yield
//! ```
//!
//! Not here: the worker itself (`tessera_proto::exchange`), and what a task is and where it goes (planner).

use crate::execute::QueryRuntime;
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;

/// Response frames between a task and its connection; a slow reader fills it and stops the task.
const FRAMES: usize = 2;

/// Runs a gRPC service on the query threads: what it computes must not delay heartbeats, replication and commits.
#[derive(Clone)]
pub struct OnQueryThreads<S> {
    service: S,
    runtime: Arc<QueryRuntime>,
}

impl<S> OnQueryThreads<S> {
    /// Runs `service` on `runtime`.
    pub fn new(service: S, runtime: Arc<QueryRuntime>) -> Self {
        Self { service, runtime }
    }
}

impl<S: NamedService> NamedService for OnQueryThreads<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for OnQueryThreads<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let mut service = self.service.clone();
        let runtime = self.runtime.clone();
        Box::pin(async move {
            let called = match runtime.spawn(async move { service.call(request).await }) {
                Ok(called) => called.await,
                Err(error) => return Ok(Status::from(error).into_http()),
            };
            let response = match called {
                Ok(Ok(response)) => response,
                Err(error) => return Ok(crashed(&error).into_http()),
            };
            Ok(pumped(response, &runtime))
        })
    }
}

/// The same response, whose body is produced on the query threads.
fn pumped(response: Response<Body>, runtime: &Arc<QueryRuntime>) -> Response<Body> {
    let (head, mut body) = response.into_parts();
    let (sender, receiver) = mpsc::channel(FRAMES);
    let pump = runtime.spawn(async move {
        while let Some(frame) = body.frame().await {
            if sender.send(frame).await.is_err() {
                return;
            }
        }
    });
    let pump = match pump {
        Ok(pump) => pump,
        Err(error) => return Status::from(error).into_http(),
    };
    let frames = ReceiverStream::new(receiver).chain(futures::stream::once(ended(pump)).filter_map(std::future::ready));
    Response::from_parts(head, Body::new(StreamBody::new(frames)))
}

type Frame = Result<http_body::Frame<Bytes>, Status>;

/// Nothing when the pump came to its end; a pump that died must not look like the end of the rows.
async fn ended(pump: AbortOnDropHandle<()>) -> Option<Frame> {
    pump.await.err().map(|error| Err(crashed(&error)))
}

fn crashed(error: &tokio::task::JoinError) -> Status {
    tracing::error!(%error, "a task of a query crashed");
    Status::internal("a task of a query crashed on a node; its log says where")
}
