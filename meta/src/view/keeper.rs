//! Keeps the newest [`ClusterView`] at hand.
//!
//! ```text
//!   watcher task:   wait(above 41) ──▶ 42 ──▶ range("/") ──▶ decode ──▶ publish, wake `changes()`
//!   at_least(43):   current is 42 ──▶ range("/") itself, does not wait for the watcher
//! ```
//!
//! One load runs at a time; callers that queued behind it take its result if it is new enough. A store that cannot be
//! reached or holds a malformed value leaves the last good view in place and is reported once, not at every attempt.

use super::{ClusterView, decode::decode};
use crate::MetaStore;
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::{Error, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Every key of the store starts with this.
const EVERYTHING: &str = "/";
/// Length of one wait at the store: the longest it allows.
const POLL: Duration = Duration::from_secs(30);
/// First pause after a failure; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause: bounds how stale a view is after the store came back.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Holds the current view and the task that renews it.
#[derive(Debug)]
pub struct ViewKeeper {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    watcher: Mutex<Option<JoinHandle<()>>>,
}

/// What the watcher task and the callers have in common.
#[derive(Debug)]
struct Shared {
    store: Arc<dyn MetaStore>,
    view: RwLock<Arc<ClusterView>>,
    revision: watch::Sender<u64>,
    /// Held during a load, so that a burst of callers reads the store once.
    loading: tokio::sync::Mutex<()>,
}

impl ViewKeeper {
    /// Reads the first view and starts to watch the store.
    ///
    /// # Errors
    /// Those of [`MetaStore::range`]; XX001 when a value is malformed.
    pub async fn start(store: Arc<dyn MetaStore>) -> Result<Arc<Self>> {
        let (entries, at) = store.range(EVERYTHING).await?;
        let view = Arc::new(decode(&ClusterView::default(), &entries, at)?);
        let shared = Arc::new(Shared {
            store,
            view: RwLock::new(view),
            revision: watch::Sender::new(at),
            loading: tokio::sync::Mutex::new(()),
        });
        let (stop, stopped) = watch::channel(false);
        let watcher = tokio::spawn(watch_store(shared.clone(), stopped));
        Ok(Arc::new(Self {
            shared,
            stop,
            watcher: Mutex::new(Some(watcher)),
        }))
    }

    /// The newest view this process has; no I/O.
    pub fn current(&self) -> Arc<ClusterView> {
        self.shared.view.read().clone()
    }

    /// A view of at least this revision: what a statement needs after its own definition changed the store.
    ///
    /// # Errors
    /// `Retry::Elsewhere` when the store did not get there in time; XX001 when a value is malformed.
    pub async fn at_least(&self, revision: u64, timeout: Duration) -> Result<Arc<ClusterView>> {
        let until = Instant::now() + timeout;
        loop {
            let view = match timeout_at(until, self.shared.load_unless(revision)).await {
                Ok(Ok(view)) => view,
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(late(revision, self.current().revision)),
            };
            if view.revision >= revision {
                return Ok(view);
            }
            let left = until.saturating_duration_since(Instant::now());
            match timeout_at(until, self.shared.store.wait(view.revision, left.min(POLL))).await {
                Ok(reply) => reply?,
                Err(_) => return Err(late(revision, view.revision)),
            };
        }
    }

    /// Reads the store now, whatever is cached.
    ///
    /// # Errors
    /// Those of [`MetaStore::range`]; XX001 when a value is malformed.
    pub async fn refresh(&self) -> Result<Arc<ClusterView>> {
        let _one = self.shared.loading.lock().await;
        self.shared.load().await.map_err(|failure| failure.error)
    }

    /// Waits for a view newer than `revision`, at most `limit`; whether there is one.
    pub async fn newer(&self, revision: u64, limit: Duration) -> bool {
        let mut changes = self.changes();
        if self.refresh().await.is_ok_and(|view| view.revision > revision) {
            return true;
        }
        let newer = changes.wait_for(|at| *at > revision);
        matches!(timeout(limit, newer).await, Ok(Ok(_)))
    }

    /// Wakes whenever a newer view was published, with its revision.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.revision.subscribe()
    }

    /// The store behind.
    pub fn store(&self) -> &Arc<dyn MetaStore> {
        &self.shared.store
    }

    /// Ends the watcher task and waits for it. The last view stays readable.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        let watcher = self.watcher.lock().take();
        if let Some(watcher) = watcher
            && let Err(error) = watcher.await
        {
            tracing::error!(%error, "the watcher of the meta store failed");
        }
    }
}

/// A load that failed, and the revision it read if it got that far.
struct Failure {
    error: Error,
    revision: Option<u64>,
}

impl Shared {
    /// The current view if it is new enough, else one read now.
    async fn load_unless(&self, revision: u64) -> Result<Arc<ClusterView>> {
        let enough = || Some(self.view.read().clone()).filter(|view| view.revision >= revision);
        if let Some(view) = enough() {
            return Ok(view);
        }
        let _one = self.loading.lock().await;
        match enough() {
            Some(view) => Ok(view),
            None => self.load().await.map_err(|failure| failure.error),
        }
    }

    /// Reads, decodes and publishes; the caller holds `loading`.
    async fn load(&self) -> Result<Arc<ClusterView>, Failure> {
        let (entries, revision) = self
            .store
            .range(EVERYTHING)
            .await
            .map_err(|error| Failure { error, revision: None })?;
        let previous = self.view.read().clone();
        if revision <= previous.revision {
            // Equal: nothing changed. Lower: a store that went backwards is not to be believed.
            return Ok(previous);
        }
        let view = decode(&previous, &entries, revision).map_err(|error| Failure {
            error,
            revision: Some(revision),
        })?;
        let view = Arc::new(view);
        *self.view.write() = view.clone();
        self.revision.send_replace(revision);
        Ok(view)
    }
}

fn late(wanted: u64, have: u64) -> Error {
    Error::unavailable(format!(
        "the meta store did not reach revision {wanted} in time, it is at {have}"
    ))
}

/// The watcher task: ends when told to or when the keeper is gone.
async fn watch_store(shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    tokio::select! {
        () = follow(&shared) => {}
        // An error means that the keeper was dropped.
        _ = stopped.wait_for(|stop| *stop) => {}
    }
}

/// Follows the store for ever.
async fn follow(shared: &Shared) {
    let mut pause = PAUSE_MIN;
    let mut reported: Option<String> = None;
    // Not the view's revision: a malformed value must not make us read the same store again and again.
    let mut seen = shared.view.read().revision;
    loop {
        match next(shared, seen).await {
            Ok(revision) => {
                if reported.take().is_some() {
                    tracing::info!(revision, "the cluster view follows the meta store again");
                }
                pause = PAUSE_MIN;
                seen = revision;
            }
            Err(Failure { error, revision }) => {
                let text = error.to_string();
                if reported.as_ref() != Some(&text) {
                    tracing::error!(%error, view = shared.view.read().revision, "the cluster view cannot follow the meta store");
                    reported = Some(text);
                }
                seen = revision.unwrap_or(seen).max(seen);
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// Waits until the store is above `seen` and loads it. Returns the revision up to which there is nothing left to do.
async fn next(shared: &Shared, seen: u64) -> Result<u64, Failure> {
    let revision = shared
        .store
        .wait(seen, POLL)
        .await
        .map_err(|error| Failure { error, revision: None })?;
    if revision <= seen {
        return Ok(seen);
    }
    let _one = shared.loading.lock().await;
    let loaded = shared.view.read().revision;
    if loaded >= revision {
        return Ok(loaded);
    }
    shared.load().await.map(|view| view.revision.max(seen))
}
