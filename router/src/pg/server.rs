//! The listener: one task per connection, bounded, joined at the end.
//!
//! ```text
//!   accept ──▶ opening (at most OPENINGS_MAX) ──▶ CancelRequest: fire, close
//!                                             └─▶ session (at most connections_max, else 53300) ──▶ connection.rs
//!   shutdown token ──▶ every connection says 57P01 and closes ──▶ serve returns
//! ```
//!
//! Opening and serving are bounded apart, so that a full server can still be told to cancel.

use super::PgLimits;
use super::cancel::CancelRegistry;
use super::channel::Channel;
use super::connection::{Connection, Stop, farewell, shutting_down};
use super::session::SqlEngine;
use super::startup::{Opening, Startup, apply_settings, greet, open};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::{Error, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Connections that have not said yet what they want. More are closed at once; a client tries again.
const OPENINGS_MAX: usize = 256;

/// Pause after a failed accept (out of file descriptors, mostly): trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Quiet time after which the kernel asks whether a peer still lives.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What connections share.
struct Server<E> {
    engine: Arc<E>,
    limits: Arc<PgLimits>,
    registry: Arc<CancelRegistry>,
    openings: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    shutdown: CancellationToken,
}

/// Serves until `shutdown` fires and all connections have ended.
pub(super) async fn serve<E: SqlEngine>(
    listener: TcpListener,
    engine: Arc<E>,
    limits: PgLimits,
    shutdown: CancellationToken,
) -> Result<()> {
    let server = Arc::new(Server {
        engine,
        registry: Arc::default(),
        openings: Arc::new(Semaphore::new(OPENINGS_MAX)),
        connections: Arc::new(Semaphore::new(limits.connections_max)),
        limits: Arc::new(limits),
        shutdown: shutdown.clone(),
    });
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = tasks.join_next() => log_panic(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if let Ok(permit) = server.openings.clone().try_acquire_owned() {
                        let server = server.clone();
                        tasks.spawn(async move { server.connection(stream, permit).await });
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let grace = server.limits.shutdown_grace;
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            log_panic(ended);
        }
    };
    if tokio::time::timeout(grace, all).await.is_err() {
        tracing::warn!(?grace, "connections did not end in time");
        tasks.shutdown().await;
    }
    Ok(())
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "connection ended by a panic");
    }
}

impl<E: SqlEngine> Server<E> {
    async fn connection(&self, stream: TcpStream, opening: tokio::sync::OwnedSemaphorePermit) {
        // Small messages must not wait for each other, and a peer whose machine died must not hold its place for ever.
        let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
        let options = stream
            .set_nodelay(true)
            .and_then(|()| socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive));
        if let Err(error) = options {
            tracing::debug!(%error, "socket options");
        }
        let mut channel = Channel::new(stream, self.limits.message_bytes_max);
        let opened = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(Stop::Fatal(shutting_down())),
            opened = tokio::time::timeout(self.limits.startup_timeout, open(&mut channel)) => match opened {
                Ok(opened) => opened,
                Err(_) => Err(Stop::Fatal(Error::new("08006", "startup took too long"))),
            },
        };
        drop(opening);
        match opened {
            Ok(Opening::Cancel { number, secret }) => self.registry.cancel(number, secret),
            Ok(Opening::Session(startup)) => self.session(channel, startup).await,
            Err(Stop::Fatal(error)) => farewell(channel, &error).await,
            Err(_) => {}
        }
    }

    async fn session(&self, mut channel: Channel, startup: Startup) {
        let Ok(_permit) = self.connections.try_acquire() else {
            let error = Error::new("53300", "sorry, too many clients already");
            return farewell(
                channel,
                &error.with_hint(format!("the limit is {}", self.limits.connections_max)),
            )
            .await;
        };
        let Startup {
            user,
            database,
            application_name,
            ..
        } = &startup;
        let key = self.registry.register();
        let mut session =
            self.engine
                .open(user.clone(), database.clone(), application_name.clone(), key.number);
        let greeted =
            apply_settings(&mut session, &startup).and_then(|()| greet(&mut channel, &session, &startup, &key));
        let told = match greeted {
            Ok(told) => told,
            Err(error) => return farewell(channel, &error).await,
        };
        if channel.flush().await.is_err() {
            return;
        }
        tracing::debug!(user = %startup.user, number = key.number, "session begins");
        let connection = Connection {
            channel,
            session,
            key,
            limits: self.limits.clone(),
            shutdown: self.shutdown.clone(),
            statements: HashMap::new(),
            portals: HashMap::new(),
            told,
            skipping: false,
        };
        connection.run().await;
    }
}
