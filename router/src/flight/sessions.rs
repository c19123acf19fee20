//! Sessions of clients whose calls come one by one: settings and prepared statements, by who calls.
//!
//! ```text
//!   Bearer token  ──▶ (user, session of the token)          all connections that carry it
//!   otherwise     ──▶ (user, address and port of the peer)  one connection
//! ```
//!
//! A session that has neither settings nor prepared statements is worth nothing and may be forgotten at any time. Statements of one
//! session may run side by side: each runs on a copy of the session, and only SET and its kin change the session itself.

use super::FlightLimits;
use super::prepared::Prepared;
use crate::{Engine, Session, SessionParams};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tessera_proto::flight::caller::Caller;
use tessera_proto::{Error, Result};
use tokio::time::Instant;
use uuid::Uuid;

/// The one database, as metadata calls it.
pub(super) const DATABASE: &str = "tessera";

/// Whose session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Token(Uuid),
    Peer(Option<SocketAddr>),
}

/// All sessions, bounded.
pub(super) struct Sessions {
    limits: Arc<FlightLimits>,
    by_key: Mutex<HashMap<(String, Key), Arc<FlightSession>>>,
}

/// One client's session.
pub(super) struct FlightSession {
    limits: Arc<FlightLimits>,
    state: Mutex<State>,
}

struct State {
    session: Session,
    prepared: HashMap<Uuid, Arc<Prepared>>,
    used: Instant,
}

impl Sessions {
    pub(super) fn new(limits: Arc<FlightLimits>) -> Self {
        Self {
            limits,
            by_key: Mutex::default(),
        }
    }

    /// The caller's session, new if there is none.
    ///
    /// # Errors
    /// 53300 when there are too many that were used lately.
    pub(super) fn of(
        &self,
        engine: &Arc<Engine>,
        caller: &Caller,
        peer: Option<SocketAddr>,
    ) -> Result<Arc<FlightSession>> {
        let key = (caller.user.clone(), key(caller, peer));
        let mut sessions = self.by_key.lock();
        if let Some(session) = sessions.get(&key) {
            session.state.lock().used = Instant::now();
            return Ok(session.clone());
        }
        if sessions.len() >= self.limits.sessions_max {
            self.forget_one(&mut sessions)?;
        }
        let session = Arc::new(FlightSession {
            limits: self.limits.clone(),
            state: Mutex::new(State {
                session: session(engine, &caller.user, DATABASE),
                prepared: HashMap::new(),
                used: Instant::now(),
            }),
        });
        sessions.insert(key, session.clone());
        Ok(session)
    }

    fn forget_one(&self, sessions: &mut HashMap<(String, Key), Arc<FlightSession>>) -> Result<()> {
        let oldest = sessions
            .iter()
            .map(|(key, session)| {
                let state = session.state.lock();
                // A session begins with an application name, which is empty.
                let plain = state.session.changed_settings().values().all(String::is_empty);
                let empty = state.prepared.is_empty() && plain;
                (!empty, state.used, key)
            })
            .min_by_key(|(kept, used, _)| (*kept, *used));
        let idle_min = self.limits.session_idle_min;
        match oldest.map(|(kept, used, key)| (kept && used.elapsed() < idle_min, key.clone())) {
            Some((false, key)) => drop(sessions.remove(&key)),
            _ => {
                return Err(Error::new("53300", "too many Flight SQL sessions")
                    .with_hint(format!("the limit is {}; close sessions", self.limits.sessions_max)));
            }
        }
        Ok(())
    }

    /// Forgets the caller's session.
    pub(super) fn close(&self, caller: &Caller, peer: Option<SocketAddr>) {
        let key = (caller.user.clone(), key(caller, peer));
        self.by_key.lock().remove(&key);
    }
}

fn key(caller: &Caller, peer: Option<SocketAddr>) -> Key {
    caller.session.map_or(Key::Peer(peer), Key::Token)
}

/// A new session of the engine.
pub(super) fn session(engine: &Arc<Engine>, user: &str, database: &str) -> Session {
    engine.session(SessionParams {
        user: user.to_owned(),
        database: database.to_owned(),
        application_name: String::new(),
        number: 0,
    })
}

impl FlightSession {
    /// A copy to run one statement with.
    pub(super) fn copy(&self) -> Session {
        self.state.lock().session.clone()
    }

    /// Keeps the settings of `changed`, which ran SET.
    pub(super) fn keep_settings(&self, changed: Session) {
        self.state.lock().session = changed;
    }

    /// Keeps a prepared statement; returns its handle.
    ///
    /// # Errors
    /// 53400 when the session holds too many.
    pub(super) fn prepare(&self, prepared: Prepared) -> Result<Uuid> {
        let handle = Uuid::new_v4();
        self.put(handle, prepared)?;
        Ok(handle)
    }

    /// Replaces a prepared statement, or keeps a new one.
    ///
    /// # Errors
    /// 53400 when the session holds too many.
    pub(super) fn put(&self, handle: Uuid, prepared: Prepared) -> Result<()> {
        let mut state = self.state.lock();
        let others = || state.prepared.iter().filter(|(h, _)| **h != handle);
        let (count, held) = (others().count(), others().map(|(_, p)| p.bytes()).sum::<usize>());
        if count >= self.limits.prepared_max || held.saturating_add(prepared.bytes()) > self.limits.prepared_bytes_max {
            let what = format!("session holds {count} prepared statements of {held} bytes");
            return Err(Error::new("53400", what).with_hint("close statements that are no longer needed"));
        }
        state.prepared.insert(handle, Arc::new(prepared));
        Ok(())
    }

    /// The prepared statement of a handle.
    ///
    /// # Errors
    /// 26000.
    pub(super) fn prepared(&self, handle: &[u8]) -> Result<(Uuid, Arc<Prepared>)> {
        let handle = Uuid::from_slice(handle).ok();
        let found = handle.and_then(|h| Some((h, self.state.lock().prepared.get(&h).cloned()?)));
        found.ok_or_else(|| {
            Error::new("26000", "prepared statement does not exist")
                .with_hint("handles are good in the session that made them, until it is closed or the router restarts")
        })
    }

    /// Forgets a prepared statement. What does not exist is closed already.
    pub(super) fn close(&self, handle: &[u8]) {
        if let Ok(handle) = Uuid::from_slice(handle) {
            self.state.lock().prepared.remove(&handle);
        }
    }
}
