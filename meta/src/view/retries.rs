//! Reading again with a newer shard map, a bounded number of times.
//!
//! ```text
//!   error that another node may not give ──▶ wait for a newer view, 0.2 s, 1 s, 2 s at most ──▶ again
//!   any other error, or the fourth       ──▶ the caller's
//! ```

use super::ViewKeeper;
use std::time::Duration;
use tessera_proto::{Error, Result};

/// Longest waits for the map to change before each repetition of a read that lost a node before its first row. A hiccup is
/// over after the first, a failover (about 2 s) after all.
const WAITS: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// The repetitions that one read has left.
#[derive(Debug)]
pub struct Retries {
    waits: std::array::IntoIter<Duration, { WAITS.len() }>,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            waits: WAITS.into_iter(),
        }
    }
}

impl Retries {
    /// Waits until an attempt that failed at `revision` of the map may be repeated. Also repeated with the same map when no
    /// newer one came in time: a node may be back.
    ///
    /// # Errors
    /// `error` itself when it is not one to repeat after, or too often.
    pub async fn after(&mut self, error: Error, views: &ViewKeeper, revision: u64) -> Result<()> {
        let Some(wait) = self.waits.next().filter(|_| error.is_retryable()) else {
            return Err(error);
        };
        tracing::debug!(%error, left = self.waits.len(), "reading again with a newer shard map");
        views.newer(revision, wait).await;
        Ok(())
    }
}
