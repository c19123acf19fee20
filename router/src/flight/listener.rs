//! The port: connections, their bounds, and its end.
//!
//! ```text
//!   accept ──▶ at most connections_max, each holding a permit ──▶ HTTP/2 with keepalive ──▶ BodyWatch ──▶ FlightService
//!   stop   ──▶ streams end with 57P01, calls may end, after the grace the rest is dropped
//! ```
//!
//! Beside it gRPC health (`grpc.health.v1`) and reflection (v1 and v1alpha), for probes and for tools like grpcurl.
//!
//! A request stream that its client cancels looks to tonic's decoder like one that ended. For an ingest the two must not be the
//! same: [`BodyWatch`] notes below the decoder that the body broke.

use super::FlightLimits;
use super::service::Flight;
use crate::Engine;
use arrow_flight::flight_service_server::FlightServiceServer;
use futures::Stream;
use http_body::{Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tessera_proto::{DESCRIPTORS, Error, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tonic_reflection::server::Builder;

/// Pause after a failed accept (out of file descriptors, mostly): trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Quiet time after which a client is asked whether it still lives, and how long it has to answer: its statements end then.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Bytes of headers of one request: a token and a few more.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// See [`super::serve`].
pub(super) async fn serve(
    listener: TcpListener,
    engine: Arc<Engine>,
    limits: Arc<FlightLimits>,
    stop: CancellationToken,
) -> Result<()> {
    let flight = FlightServiceServer::new(Flight::new(engine, limits.clone(), stop.clone()))
        .max_decoding_message_size(limits.message_bytes_max);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<FlightServiceServer<Flight>>().await;
    let reflection = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("arrow.flight.protocol.FlightService")
            .with_service_name("grpc.health.v1.Health")
    };
    let broken = |e| Error::internal(format!("gRPC reflection: {e}"));
    let server = tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .concurrency_limit_per_connection(limits.calls_per_connection)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .add_service(reflection().build_v1().map_err(broken)?)
        .add_service(reflection().build_v1alpha().map_err(broken)?)
        .add_service(health)
        .add_service(Watch(flight));
    let incoming = incoming(listener, limits.connections_max);
    let serving = server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let grace = async {
        stop.cancelled().await;
        tokio::time::sleep(limits.shutdown_grace).await;
    };
    tokio::select! {
        served = serving => served.map_err(|e| Error::internal(format!("the Flight SQL server ended: {e}"))),
        () = grace => {
            tracing::warn!(grace = ?limits.shutdown_grace, "Flight SQL calls did not end in time");
            Ok(())
        }
    }
}

/// Accepted connections, each with its permit; those beyond the bound are closed at once.
fn incoming(listener: TcpListener, connections_max: usize) -> impl Stream<Item = io::Result<Counted>> {
    let permits = Arc::new(Semaphore::new(connections_max));
    futures::stream::unfold((listener, permits), |(listener, permits)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let Ok(permit) = permits.clone().try_acquire_owned() else {
                        tracing::warn!("Flight SQL connection refused: too many");
                        continue;
                    };
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "socket options");
                    }
                    let counted = Counted {
                        stream,
                        _permit: permit,
                    };
                    return Some((Ok(counted), (listener, permits)));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// A connection that counts.
struct Counted {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Counted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Whether a request's body broke before its end; in the request's extensions.
#[derive(Debug, Clone, Default)]
pub(super) struct BodyBroke(Arc<AtomicBool>);

impl BodyBroke {
    /// True once the client is gone, or cancelled.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Puts a [`BodyBroke`] into every request.
#[derive(Clone)]
struct Watch<S>(S);

impl<S: NamedService> NamedService for Watch<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Watch<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        let broke = BodyBroke::default();
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(broke.clone());
        self.0
            .call(Request::from_parts(parts, Body::new(BodyWatch { body, broke })))
    }
}

struct BodyWatch {
    body: Body,
    broke: BodyBroke,
}

impl http_body::Body for BodyWatch {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<bytes::Bytes>, tonic::Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Err(_))) = &frame {
            self.broke.0.store(true, Ordering::Release);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
