//! The embedded meta store: everything in memory, every change durable in sled before it is visible.
//!
//! ```text
//!   cas ──▶ bounded queue ──▶ thread "meta-writer":  compare ─▶ one sled batch ─▶ flush ─▶ fdatasync ─▶ publish ─▶ answers
//!   range ◀── BTreeMap ◀──────────────────────────────────────────────────────────────────┘
//!   wait  ◀── watch: revision ◀───────────────────────────────────────────────────────────┘
//! ```
//!
//! Everyone who queued while a barrier ran shares the next one (group commit). Reads see only what is durable, so a
//! revision once seen is never lost. Only one process can have a directory open.
//!
//! Not done: replication. One router holds this store; losing its disk loses the catalog, so back it up.

mod disk;
mod record;
mod state;
mod writer;

use crate::limits::{WAIT_MAX, check_ops, check_prefix};
use crate::{Entry, MetaStore, Op, Outcome};
use disk::Disk;
use parking_lot::{Mutex, RwLock};
use state::{Staged, State};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tessera_proto::{Error, Result};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use writer::Job;

/// Compare-and-swaps waiting for the writer; whoever finds the queue full waits up to [`QUEUE_TIMEOUT`].
const QUEUE_MAX: usize = 256;
/// Longest wait for a place in the queue: the disk is stuck then, and nothing happened yet.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the barrier, after which the outcome is unknown.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(30);

/// A meta store in this process, on disk or only in memory.
#[derive(Debug)]
pub struct LocalMeta {
    shared: Arc<Shared>,
    /// `None`: only in memory.
    writer: Option<Writer>,
}

/// What readers see; the writer replaces it after each barrier.
#[derive(Debug)]
struct Shared {
    state: RwLock<State>,
    revision: watch::Sender<u64>,
}

/// The writer thread, until it is closed.
#[derive(Debug)]
struct Writer {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl LocalMeta {
    /// Opens the store in `dir`, or creates it. Blocks: reads everything.
    ///
    /// # Errors
    /// 55006 when another process has it open, XX001 when it is damaged, 53100 or 58030 when the disk refuses.
    pub fn open(dir: &Path) -> Result<Arc<Self>> {
        let (disk, state) = Disk::open(dir)?;
        let shared = Shared::new(state);
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let work = shared.clone();
        let thread = std::thread::Builder::new()
            .name("meta-writer".into())
            .spawn(move || writer::run(queue, &work, disk))
            .map_err(|e| Error::io("starting the thread of the meta store", &e))?;
        let writer = Writer {
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
        };
        Ok(Arc::new(Self {
            shared,
            writer: Some(writer),
        }))
    }

    /// An empty store that is forgotten when dropped.
    pub fn memory() -> Arc<Self> {
        Arc::new(Self {
            shared: Shared::new(State::default()),
            writer: None,
        })
    }

    /// Finishes what is queued and gives the directory free; everything afterwards fails with `Retry::Elsewhere`.
    /// Dropping the store does the same, but blocks the thread that drops it.
    pub async fn close(&self) {
        let Some(thread) = self.writer.as_ref().and_then(Writer::stop) else {
            return;
        };
        // Not joined here: callers whose futures hold a place in the queue must still be able to run.
        if !matches!(tokio::task::spawn_blocking(move || thread.join()).await, Ok(Ok(()))) {
            tracing::error!("the thread of the meta store failed");
        }
    }

    fn check_open(&self) -> Result<()> {
        match &self.writer {
            Some(writer) => writer.queue().map(drop),
            None => Ok(()),
        }
    }
}

impl Drop for LocalMeta {
    fn drop(&mut self) {
        if let Some(thread) = self.writer.as_ref().and_then(Writer::stop)
            && thread.join().is_err()
        {
            tracing::error!("the thread of the meta store failed");
        }
    }
}

#[async_trait::async_trait]
impl MetaStore for LocalMeta {
    async fn range(&self, prefix: &str) -> Result<(Vec<Entry>, u64)> {
        check_prefix(prefix)?;
        self.check_open()?;
        Ok(self.shared.state.read().range(prefix))
    }

    async fn cas(&self, ops: Vec<Op>) -> Result<Outcome> {
        check_ops(&ops)?;
        match &self.writer {
            Some(writer) => writer.cas(ops).await,
            None => self.shared.cas_in_memory(ops),
        }
    }

    async fn wait(&self, after: u64, limit: Duration) -> Result<u64> {
        self.check_open()?;
        let mut revision = self.shared.revision.subscribe();
        let reached = timeout(limit.min(WAIT_MAX), revision.wait_for(|now| *now > after)).await;
        match reached {
            Ok(Ok(now)) => Ok(*now),
            // The sender lives in `self`, so this is the timeout.
            _ => Ok(*self.shared.revision.borrow()),
        }
    }
}

impl Shared {
    fn new(state: State) -> Arc<Self> {
        let revision = watch::Sender::new(state.revision());
        Arc::new(Self {
            state: RwLock::new(state),
            revision,
        })
    }

    /// Makes staged changes visible and wakes those who wait.
    fn publish(&self, staged: Staged) {
        let revision = staged.revision();
        self.state.write().apply(staged);
        self.revision.send_replace(revision);
    }

    fn cas_in_memory(&self, ops: Vec<Op>) -> Result<Outcome> {
        let mut state = self.state.write();
        let mut staged = Staged::new(&state);
        let outcome = staged.cas(&state, ops)?;
        state.apply(staged);
        // Under the lock, so that revisions are announced in their order.
        self.revision.send_replace(outcome.revision);
        Ok(outcome)
    }
}

impl Writer {
    fn queue(&self) -> Result<mpsc::Sender<Job>> {
        self.jobs.lock().clone().ok_or_else(closed)
    }

    /// Lets the thread end after its queue; returns it the first time.
    fn stop(&self) -> Option<JoinHandle<()>> {
        self.jobs.lock().take();
        self.thread.lock().take()
    }

    async fn cas(&self, ops: Vec<Op>) -> Result<Outcome> {
        let (reply, answer) = oneshot::channel();
        match timeout(QUEUE_TIMEOUT, self.queue()?.reserve_owned()).await {
            Ok(Ok(place)) => drop(place.send(Job { ops, reply })),
            Ok(Err(_)) => return Err(closed()),
            Err(_) => {
                return Err(Error::unavailable(format!(
                    "the queue of the meta store was full for {} s",
                    QUEUE_TIMEOUT.as_secs()
                )));
            }
        }
        match timeout(COMMIT_TIMEOUT, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Error::outcome_unknown("the meta store ended during a compare-and-swap")),
            Err(_) => Err(Error::outcome_unknown(format!(
                "the disk of the meta store did not answer in {} s",
                COMMIT_TIMEOUT.as_secs()
            ))),
        }
    }
}

fn closed() -> Error {
    Error::unavailable("the meta store is closed")
}
