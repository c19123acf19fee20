//! The timestamp oracle: 64-bit numbers, `milliseconds << 18 | counter`, each above all before it, cluster-wide.
//!
//! ```text
//!   meta store   /oracle = 1005000          nobody before us handed out anything at or above this millisecond
//!   start        last = max(1005000, now) ms
//!   draw         last = max(last + 1, now << 18), served from memory while below the mark
//!   mark near    compare-and-swap /oracle to now + 3 s *before* drawing above the old mark
//! ```
//!
//! Durable high-water mark first, timestamps second: whoever starts next begins above everything ever handed out, even if
//! the clock went backwards. A lost compare-and-swap means that somebody else serves the oracle, and ends our service.
//! The scheme is TiDB's; the two-phase window is that of Percolator's oracle (Peng and Dabek 2010, section 2.3).

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tessera_meta::{Change, Expect, MetaStore, Op};
use tessera_proto::clock::now_ms;
use tessera_proto::service::TimestampOracle;
use tessera_proto::v1::{self, oracle_server};
use tessera_proto::{Error, Result, Retry, Timestamp, keys};

/// How far the durable mark runs ahead: a crash skips at most so much time, and an idle oracle writes nothing.
const WINDOW_MS: u64 = 3_000;
/// With less than this left, the next mark is written in the background, so that no draw waits for it.
const RENEW_BELOW_MS: u64 = 1_500;
/// A clock further ahead of the mark than this is more likely wrong than right: 10 years.
const LEAP_MS_MAX: u64 = 10 * 366 * 24 * 3_600_000;

/// The oracle of this process.
#[derive(Clone)]
pub struct Oracle {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn MetaStore>,
    window: Mutex<Window>,
    /// Held while the mark is moved; guards the revision of its key.
    mark: tokio::sync::Mutex<Mark>,
    renewing: AtomicBool,
    lost: AtomicBool,
    clock: fn() -> u64,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    /// Handed out last.
    last: u64,
    /// Durable: timestamps stay below the start of this millisecond.
    limit_ms: u64,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    revision: u64,
    value_ms: u64,
}

impl Oracle {
    /// Takes over from whoever served before.
    ///
    /// # Errors
    /// The store's; 58000 when the stored mark is absurdly far in the future.
    pub async fn start(store: Arc<dyn MetaStore>) -> Result<Self> {
        Self::start_with(store, now_ms).await
    }

    async fn start_with(store: Arc<dyn MetaStore>, clock: fn() -> u64) -> Result<Self> {
        let mark = read_mark(store.as_ref()).await?;
        let now = clock();
        if mark.value_ms > now.saturating_add(LEAP_MS_MAX) {
            return Err(
                Error::new("58000", "the oracle's mark is more than ten years in the future")
                    .with_hint("check the clock of this machine"),
            );
        }
        // First draw is the start of the millisecond after both.
        let first = Timestamp::from_millis(mark.value_ms.max(now) + 1).0;
        let window = Window {
            last: first - 1,
            limit_ms: 0,
        };
        let shared = Shared {
            store,
            window: Mutex::new(window),
            mark: tokio::sync::Mutex::new(mark),
            renewing: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            clock,
        };
        let oracle = Self {
            shared: Arc::new(shared),
        };
        oracle.shared.extend().await?;
        Ok(oracle)
    }
}

#[async_trait::async_trait]
impl TimestampOracle for Oracle {
    async fn draw(&self) -> Result<Timestamp> {
        loop {
            if self.shared.lost.load(Ordering::Acquire) {
                return Err(lost());
            }
            if let Some((timestamp, left_ms)) = self.shared.take() {
                if left_ms < RENEW_BELOW_MS && !self.shared.renewing.swap(true, Ordering::AcqRel) {
                    let shared = self.shared.clone();
                    // One at a time, and bounded by the store's own deadline; holds nothing that shutdown waits for.
                    tokio::spawn(async move {
                        if let Err(error) = shared.extend().await {
                            tracing::warn!(%error, "the oracle's mark could not be moved ahead of time");
                        }
                        shared.renewing.store(false, Ordering::Release);
                    });
                }
                return Ok(timestamp);
            }
            self.shared.extend().await?;
        }
    }
}

impl Shared {
    /// The next timestamp if the mark allows it, and what is left of the window.
    fn take(&self) -> Option<(Timestamp, u64)> {
        let now = (self.clock)();
        let mut window = self.window.lock();
        let next = (window.last + 1).max(Timestamp::from_millis(now).0);
        let limit = Timestamp::from_millis(window.limit_ms).0;
        if next >= limit {
            return None;
        }
        window.last = next;
        Some((Timestamp(next), window.limit_ms - Timestamp(next).millis()))
    }

    /// Moves the durable mark to a window from now, unless somebody did while we waited.
    async fn extend(&self) -> Result<()> {
        let mut mark = self.mark.lock().await;
        let last_ms = Timestamp(self.window.lock().last).millis();
        let base = (self.clock)().max(last_ms);
        if mark.value_ms >= base + RENEW_BELOW_MS && self.window.lock().limit_ms == mark.value_ms {
            return Ok(());
        }
        let value_ms = base.max(mark.value_ms) + WINDOW_MS;
        let expect = if mark.revision == 0 {
            Expect::Absent
        } else {
            Expect::Revision(mark.revision)
        };
        let value = serde_json::to_vec(&value_ms).map_err(|e| Error::internal(e.to_string()))?;
        let op = Op {
            key: keys::ORACLE.into(),
            expect,
            change: Change::Put(value),
        };
        let moved = match self.store.cas(vec![op]).await {
            Ok(outcome) if outcome.applied => Some(Mark {
                revision: outcome.revision,
                value_ms,
            }),
            Ok(_) => None,
            // Only the store knows whether ours went through.
            Err(error) if error.retry == Retry::OutcomeUnknown => {
                let found = read_mark(self.store.as_ref()).await?;
                match (found.revision == mark.revision, found.value_ms == value_ms) {
                    (true, _) => return Err(error.with_retry(Retry::Elsewhere)),
                    (false, true) => Some(found),
                    (false, false) => None,
                }
            }
            Err(error) => return Err(error),
        };
        let Some(moved) = moved else {
            self.lost.store(true, Ordering::Release);
            tracing::error!("another process took over the timestamp oracle; this one stops serving it");
            return Err(lost());
        };
        *mark = moved;
        self.window.lock().limit_ms = moved.value_ms;
        Ok(())
    }
}

fn lost() -> Error {
    Error::unavailable("the timestamp oracle is served by another router")
}

async fn read_mark(store: &dyn MetaStore) -> Result<Mark> {
    let (entries, _) = store.range(keys::ORACLE).await?;
    let Some(entry) = entries.iter().find(|e| e.key == keys::ORACLE) else {
        return Ok(Mark {
            revision: 0,
            value_ms: 0,
        });
    };
    let value_ms = serde_json::from_slice(&entry.value)
        .map_err(|e| Error::corrupt(format!("the oracle's mark is malformed: {e}")))?;
    Ok(Mark {
        revision: entry.revision,
        value_ms,
    })
}

impl std::fmt::Debug for Oracle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Oracle")
            .field("window", &*self.shared.window.lock())
            .finish_non_exhaustive()
    }
}

/// The oracle over gRPC, for shard nodes in other processes. One timestamp a call.
#[derive(Clone)]
pub struct OracleServer {
    oracle: Arc<dyn TimestampOracle>,
}

impl OracleServer {
    /// Serves `oracle`; wrap it with [`OracleServer::into_service`].
    pub fn new(oracle: Arc<dyn TimestampOracle>) -> Self {
        Self { oracle }
    }

    /// The service to add to a tonic server.
    pub fn into_service(self) -> oracle_server::OracleServer<Self> {
        oracle_server::OracleServer::new(self)
    }
}

#[async_trait::async_trait]
impl oracle_server::Oracle for OracleServer {
    async fn draw(
        &self,
        request: tonic::Request<v1::DrawRequest>,
    ) -> Result<tonic::Response<v1::DrawReply>, tonic::Status> {
        let count = request.into_inner().count;
        if count != 1 {
            let error = Error::unsupported(
                format!("drawing {count} timestamps at once is not supported"),
                "draw them one by one",
            );
            return Err(error.into());
        }
        let first = self.oracle.draw().await?.0;
        Ok(tonic::Response::new(v1::DrawReply { first, oracle_epoch: 0 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryMeta;

    #[tokio::test]
    async fn timestamps_rise_across_restarts_even_if_the_clock_stands_still() {
        let store = MemoryMeta::new();
        let clock: fn() -> u64 = || 1_000;
        let first = Oracle::start_with(store.clone(), clock).await.unwrap();
        let mut last = first.draw().await.unwrap();
        for _ in 0..1_000 {
            let next = first.draw().await.unwrap();
            assert!(next > last);
            last = next;
        }
        let second = Oracle::start_with(store.clone(), clock).await.unwrap();
        assert!(
            second.draw().await.unwrap() > last,
            "a new holder begins above the old one's mark"
        );
    }

    #[tokio::test]
    async fn the_mark_is_durable_before_a_timestamp_reaches_it() {
        let store = MemoryMeta::new();
        let oracle = Oracle::start_with(store.clone(), || 1_000).await.unwrap();
        // Jump to the end of the window by hand: the next draw must first move the mark.
        let limit = oracle.shared.window.lock().limit_ms;
        oracle.shared.window.lock().last = Timestamp::from_millis(limit).0 - 1;
        let drawn = oracle.draw().await.unwrap();
        let mark = read_mark(store.as_ref()).await.unwrap();
        assert!(drawn.millis() < mark.value_ms, "{} < {}", drawn.millis(), mark.value_ms);
    }

    #[tokio::test]
    async fn a_holder_that_was_replaced_stops() {
        let store = MemoryMeta::new();
        let old = Oracle::start_with(store.clone(), || 1_000).await.unwrap();
        let _new = Oracle::start_with(store.clone(), || 1_000).await.unwrap();
        let limit = old.shared.window.lock().limit_ms;
        old.shared.window.lock().last = Timestamp::from_millis(limit).0 - 1;
        assert_eq!(old.draw().await.unwrap_err().retry, Retry::Elsewhere);
    }
}
