//! Tests of the crate. [`conformance`] runs the same contract against every implementation of [`crate::MetaStore`].

mod conformance;
mod directory;
mod disk;
mod view;

use crate::server::MetaServer;
use crate::{Change, Expect, MetaStore, Op};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Writes whatever is there.
fn put(key: &str, value: impl Into<Vec<u8>>) -> Op {
    Op {
        key: key.to_owned(),
        expect: Expect::Any,
        change: Change::Put(value.into()),
    }
}

/// Compares before the change.
fn expecting(expect: Expect, op: Op) -> Op {
    Op { expect, ..op }
}

fn delete(key: &str) -> Op {
    Op {
        key: key.to_owned(),
        expect: Expect::Any,
        change: Change::Delete,
    }
}

/// A store behind gRPC on a port of its own, until the handle is aborted.
async fn serve(store: Arc<dyn MetaStore>) -> (SocketAddr, JoinHandle<()>) {
    let (server, _) = MetaServer::new(store);
    serve_with(server, std::future::pending()).await
}

/// The same until `stop`, with everything that is open then.
async fn serve_with(
    server: MetaServer,
    stop: impl Future<Output = ()> + Send + 'static,
) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(server.into_service());
    let task = tokio::spawn(async move { server.serve_with_incoming_shutdown(incoming, stop).await.unwrap() });
    (address, task)
}
