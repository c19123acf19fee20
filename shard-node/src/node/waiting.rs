//! Waiting for rows that others have: in line, until one's turn comes or something ends the wait.
//!
//! ```text
//!   wait_for_locks ─▶ all free? ─▶ yes
//!                 └─▶ in line ── rung ──▶ granted | deadlock: 40P01 | cancelled: 57014 | leadership over: TS001
//!                             └─ by the clock ──▶ lock_timeout: 55P03 | deadline: 57014
//!   dropped        ─▶ out of the line
//! ```

use super::ShardNode;
use super::checks;
use super::committer::aborted;
use super::shard::Shard;
use crate::txn::locks::{Asker, Refused, Wanted};
use crate::txn::participant::{GaveUp, Participant, WaitState};
use std::time::Duration;
use tessera_proto::{Error, Result, TxnId};
use tokio::time::{Instant, timeout_at};

/// Longest work of a request apart from waiting for rows of others, which may take as long as its statement.
const WORK_MAX: Duration = Duration::from_secs(30);

/// How long a request may take, and how long it may wait for rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// The end of its time.
    until: Instant,
    /// `None` is without limit.
    lock_timeout: Option<Duration>,
}

impl Patience {
    /// That of a request.
    ///
    /// # Errors
    /// 08P01 without a deadline.
    pub(super) fn of(deadline_ms: u64, lock_timeout_ms: u64) -> Result<Self> {
        Ok(Self {
            until: checks::until(deadline_ms)?,
            lock_timeout: (lock_timeout_ms > 0).then(|| Duration::from_millis(lock_timeout_ms)),
        })
    }

    /// When work must be done that begins now.
    pub(super) fn work(&self) -> Instant {
        self.until.min(Instant::now() + WORK_MAX)
    }

    /// When a wait for rows ends that begins now, and with what.
    fn wait(&self, shard: &Shard) -> (Instant, Error) {
        // An hour is the longest that any request may take.
        let limit = self.lock_timeout.and_then(|limit| Instant::now().checked_add(limit));
        match limit.filter(|limit| *limit < self.until) {
            Some(limit) => (limit, Error::new("55P03", "canceling statement due to lock timeout")),
            None => {
                let late = format!("rows in shard {} stayed locked until the deadline", shard.id);
                (self.until, Error::cancelled(late))
            }
        }
    }
}

/// Takes a transaction out of the line, should it still stand there.
struct Waiting<'a> {
    shard: &'a Shard,
    txn: TxnId,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shard.participant.lock().stop_waiting(self.txn);
    }
}

impl ShardNode {
    /// Waits for all locks; returns the leadership they belong to.
    ///
    /// # Errors
    /// Those in the module's drawing; 53200 and 53400 when there are too many locks, or too many that wait.
    pub(super) async fn wait_for_locks(
        &self,
        shard: &Shard,
        asker: Asker,
        wanted: Vec<Wanted>,
        patience: &Patience,
    ) -> Result<u64> {
        let txn = asker.txn;
        let (waiting, bell) = {
            let mut participant = shard.participant.lock();
            let term = may_lock(shard, &participant, txn)?;
            let asked = participant.ask(asker, wanted, self.begun.elapsed());
            match asked.map_err(|refused| too_many(refused, shard))? {
                None => return Ok(term),
                Some(bell) => (Waiting { shard, txn }, bell),
            }
        };
        let (end, late) = patience.wait(shard);
        loop {
            let rung = timeout_at(end, bell.notified()).await.is_ok();
            let participant = shard.participant.lock();
            match participant.wait_state(txn) {
                WaitState::Granted => {
                    let term = may_lock(shard, &participant, txn)?;
                    drop(participant);
                    drop(waiting);
                    return Ok(term);
                }
                WaitState::GaveUp(why) => {
                    drop(participant);
                    return Err(gave_up(shard, txn, why));
                }
                WaitState::Waiting if rung => {}
                WaitState::Waiting => {
                    drop(participant);
                    return Err(late);
                }
            }
        }
    }
}

/// Whether locks may be taken here now, and in which leadership.
///
/// # Errors
/// 40001 when recovery aborts the transaction, TS001 when the shard is led elsewhere.
pub(super) fn may_lock(shard: &Shard, participant: &Participant, txn: TxnId) -> Result<u64> {
    if participant.is_refused(txn) {
        return Err(aborted(txn));
    }
    let status = shard.status.borrow();
    // Before it is ready, rows of prepared transactions are not locked again.
    match status.leads {
        Some(leads) if leads.ready => Ok(status.term),
        _ => Err(Error::stale_map(format!("shard {} is led elsewhere now", shard.id))),
    }
}

/// A request that was not taken, for the user.
pub(super) fn too_many(refused: Refused, shard: &Shard) -> Error {
    match refused {
        Refused::Locks => Error::new("53200", format!("the transaction locks too many rows in shard {}", shard.id))
            .with_hint("lock or change fewer rows at a time"),
        Refused::Queue => Error::new(
            "53400",
            format!("too many transactions wait for rows in shard {}", shard.id),
        )
        .with_hint("run the transaction again later"),
        Refused::Twice => Error::new("55000", format!("the transaction waits in shard {} already", shard.id)),
    }
}

fn gave_up(shard: &Shard, txn: TxnId, why: GaveUp) -> Error {
    match why {
        GaveUp::Deadlock => Error::new("40P01", "deadlock detected")
            .with_detail(format!(
                "transaction {txn} is the youngest of those that wait for each other"
            ))
            .with_hint("run the transaction again"),
        GaveUp::Cancelled => Error::cancelled("canceling statement due to user request"),
        GaveUp::Refused => aborted(txn),
        GaveUp::Over => Error::stale_map(format!("shard {} is led elsewhere now", shard.id)),
    }
}
