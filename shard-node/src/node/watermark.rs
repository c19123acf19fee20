//! The oldest snapshot that may still be read on this node: what compaction must keep, and what reads below are refused.
//!
//! ```text
//!   watermark = min( now − retention,  max( oldest running snapshot that the router told, now − an hour ) )
//!
//!   ──────┬───────────────┬──────────────────┬───────────▶ now        of the oracle, never of this machine's clock
//!      watermark      running S       now − retention                 it only ascends
//! ```
//!
//! A running query or transaction holds the watermark back, for an hour at most: the longest a statement may take, and longer than
//! any transaction should stay open. A router that is silent tells of no snapshot, and its last word counts until then. So
//! the rule is safe by itself: a read below is refused, here and by the files (storage keeps, durably, the watermark that each
//! table was compacted at), and never gets wrong rows.
//!
//! Not here: more than one router. Each would need its own entry.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tessera_proto::{Error, Result, Timestamp};

/// How long removed rows are kept at least, unless configured otherwise.
pub const RETENTION_DEFAULT: Duration = Duration::from_secs(600);
/// How long a running snapshot holds the watermark back at most.
const HOLD_MAX: Duration = Duration::from_secs(3_600);

/// See the module.
#[derive(Debug)]
pub(crate) struct Watermark {
    retention: Duration,
    /// Oldest running snapshot, or one drawn when there was none; 0 before the first word.
    running: AtomicU64,
    current: AtomicU64,
}

/// So much earlier.
fn before(ts: Timestamp, age: Duration) -> Timestamp {
    Timestamp(ts.0.saturating_sub(Timestamp::from_millis(age.as_millis() as u64).0))
}

impl Watermark {
    /// Nothing may be forgotten yet.
    pub fn new(retention: Duration) -> Self {
        Self {
            retention,
            running: AtomicU64::new(0),
            current: AtomicU64::new(0),
        }
    }

    /// Older snapshots cannot be read.
    pub fn current(&self) -> Timestamp {
        Timestamp(self.current.load(Ordering::Acquire))
    }

    /// A router says which of its snapshots is the oldest, now and from now on; 0 is from one that does not say.
    pub fn told(&self, running: Timestamp) {
        if running > Timestamp(0) {
            self.running.store(running.0, Ordering::Release);
        }
    }

    /// Time has passed; `now` was just drawn.
    pub fn advance(&self, now: Timestamp) -> Timestamp {
        let running = Timestamp(self.running.load(Ordering::Acquire));
        let held = running.max(before(now, HOLD_MAX.max(self.retention)));
        let next = before(now, self.retention).min(held);
        Timestamp(self.current.fetch_max(next.0, Ordering::AcqRel)).max(next)
    }

    /// # Errors
    /// 72000 for a snapshot below.
    pub fn check(&self, snapshot: Timestamp) -> Result<()> {
        match self.current() {
            oldest if snapshot < oldest => Err(Error::snapshot_too_old(snapshot, oldest)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_snapshots_hold_it_back_for_an_hour() {
        let at = |s: u64| Timestamp::from_millis(s * 1_000);
        let watermark = Watermark::new(Duration::from_secs(600));
        // Nobody said what runs.
        assert_eq!(watermark.advance(at(10_000)), at(10_000 - 3_600));
        watermark.told(at(9_990));
        assert_eq!(watermark.advance(at(10_000)), at(9_400));
        watermark.told(at(9_500));
        assert_eq!(watermark.advance(at(12_000)), at(9_500));
        assert!(watermark.check(at(9_500)).is_ok());
        assert_eq!(watermark.check(Timestamp(at(9_500).0 - 1)).unwrap_err().code, "72000");
        watermark.told(Timestamp(0));
        assert_eq!(watermark.advance(at(14_000)), at(14_000 - 3_600));
        // It never goes back.
        watermark.told(at(1));
        assert_eq!(
            (watermark.advance(at(13_000)), watermark.current()),
            (at(10_400), at(10_400))
        );
    }

    #[test]
    fn without_a_retention_what_runs_decides() {
        let watermark = Watermark::new(Duration::ZERO);
        watermark.told(Timestamp(70));
        assert_eq!(watermark.advance(Timestamp(90)), Timestamp(70));
        watermark.told(Timestamp(95));
        assert_eq!(watermark.advance(Timestamp(90)), Timestamp(90));
    }
}
