//! Health and metrics over HTTP.
//!
//! ```text
//!   GET /healthz   200 while the process runs
//!   GET /readyz    200 when statements can be served: the catalog is known and every shard has a leader on a known node
//!   GET /metrics   Prometheus text format
//! ```
//!
//! Not here: the web console.

use crate::engine::Engine;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::sync::{Arc, OnceLock};
use tessera_proto::{Error, Result};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

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
/// The listener fails.
pub async fn serve(listener: TcpListener, engine: Arc<Engine>, stop: CancellationToken) -> Result<()> {
    recorder();
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(engine);
    let served = axum::serve(listener, app)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await;
    served.map_err(|e| Error::io("serving http", &e))
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
