//! Health and metrics over HTTP.
//!
//! ```text
//!   GET /healthz   200 while the process runs
//!   GET /readyz    200 when statements can be served: the catalog is known and every shard has a leader on a known node
//!   GET /metrics   Prometheus text format
//! ```
//!
//! A client has [`HttpLimits`]: so many connections, bytes of headers and of a body, and so long for either to come and for
//! the answer to be made. Not here: the web console.

#[cfg(test)]
mod tests;

use crate::engine::Engine;
use axum::Router;
use axum::body::HttpBody;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tessera_proto::Result;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What one client may take.
#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// Connections at a time; more are closed at once.
    pub connections_max: usize,
    /// Bytes of a request's first line and headers; hyper reads them into one buffer of at least 8 KiB.
    pub header_bytes_max: usize,
    /// Bytes of a request's body. Nothing here reads one.
    pub body_bytes_max: u64,
    /// Longest until the headers are there, also on a connection that is kept alive.
    pub header_wait: Duration,
    /// Longest until the answer is made.
    pub request_wait: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections_max: 256,
            header_bytes_max: 16 << 10,
            body_bytes_max: 16 << 10,
            header_wait: Duration::from_secs(10),
            request_wait: Duration::from_secs(10),
        }
    }
}

/// Pause after an accept that failed, for want of file descriptors perhaps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The process-wide recorder: `metrics` has one per process, however many engines there are.
static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the metrics recorder once; later calls give the same handle. `None` if somebody else installed another.
pub fn recorder() -> Option<&'static PrometheusHandle> {
    RECORDER
        .get_or_init(|| PrometheusBuilder::new().install_recorder().ok())
        .as_ref()
}

/// Serves until `stop` fires.
///
/// # Errors
/// None is expected.
pub async fn serve(listener: TcpListener, engine: Arc<Engine>, stop: CancellationToken) -> Result<()> {
    recorder();
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(engine);
    serve_app(listener, app, HttpLimits::default(), stop).await;
    Ok(())
}

/// One handler per connection; all are waited for when `stop` fires.
async fn serve_app(listener: TcpListener, app: Router, limits: HttpLimits, stop: CancellationToken) {
    let app = app.layer(from_fn_with_state(limits, limited));
    let (permits, handlers) = (Arc::new(Semaphore::new(limits.connections_max)), TaskTracker::new());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "http connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Full: whoever asks for health then learns that there is none to be had.
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            continue;
        };
        let (app, stop) = (app.clone(), stop.clone());
        handlers.spawn(async move {
            serve_connection(stream, app, limits, stop).await;
            drop(permit);
        });
    }
    handlers.close();
    handlers.wait().await;
}

async fn serve_connection(stream: TcpStream, app: Router, limits: HttpLimits, stop: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_wait)
        .max_buf_size(limits.header_bytes_max)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "http connection ended");
    }
}

/// Refuses large bodies, and gives an answer up that takes too long.
async fn limited(State(limits): State<HttpLimits>, request: Request, next: Next) -> Response {
    if request.body().size_hint().lower() > limits.body_bytes_max {
        return (StatusCode::PAYLOAD_TOO_LARGE, "the body is too large\n").into_response();
    }
    match tokio::time::timeout(limits.request_wait, next.run(request)).await {
        Ok(response) => response,
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the answer took too long\n").into_response(),
    }
}

async fn ready(State(engine): State<Arc<Engine>>) -> impl IntoResponse {
    let view = engine.view();
    if view.cluster.is_none() || view.nodes.is_empty() {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "no shard node has joined\n".to_string(),
        );
    }
    let orphans = view
        .shards
        .values()
        .filter(|s| !view.nodes.contains_key(&s.config.leader.node))
        .count();
    if orphans > 0 {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{orphans} shards are led by unknown nodes\n"),
        );
    }
    (StatusCode::OK, "ok\n".to_string())
}

async fn metrics(State(engine): State<Arc<Engine>>) -> impl IntoResponse {
    let view = engine.view();
    metrics::gauge!("tessera_nodes").set(view.nodes.len() as f64);
    metrics::gauge!("tessera_shards").set(view.shards.len() as f64);
    let degraded = view.shards.values().filter(|s| s.config.in_sync.len() < 2).count();
    metrics::gauge!("tessera_shards_degraded").set(degraded as f64);
    let Some(recorder) = recorder() else {
        return (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(CONTENT_TYPE, "text/plain")],
            "no recorder\n".to_string(),
        );
    };
    (
        StatusCode::OK,
        [(CONTENT_TYPE, "text/plain; version=0.0.4")],
        recorder.render(),
    )
}
