//! Forms commit groups: transactions that share one timestamp and one log entry.
//!
//! ```text
//!   queue  t1 t2 t3 | t4      group 1 = {t1,t2,t3}: open, draw ts, log, (next group starts) ... applied: close, answer
//! ```
//!
//! A group is open *before* it asks for its timestamp, so a reader that sees no open group below its snapshot has missed
//! nothing. Groups form by themselves: whatever came while the previous timestamp was drawn. Several may be under way. A group
//! is of one leadership: what was locked in an earlier one is refused.

use super::ShardNode;
use super::shard::{CommitJob, Shard, Submitted};
use crate::txn::entry::{CommitRecord, Logged};
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::{Error, Result, Retry, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// Transactions in one group.
const GROUP_TXNS_MAX: usize = 256;
/// Bytes of rows in one group, beyond its first transaction: keeps the entry under the log's limit.
const GROUP_BYTES_MAX: usize = 32 << 20;
/// Groups under way.
const GROUPS_MAX: usize = 32;
/// Longest wait for a timestamp; nothing has happened until then.
const DRAW_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a place in the log.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs until `stop`; what is queued then is answered as not done.
pub async fn run(
    node: Arc<ShardNode>,
    shard: Arc<Shard>,
    mut queue: mpsc::Receiver<CommitJob>,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(GROUPS_MAX));
    let mut waiting: Option<CommitJob> = None;
    loop {
        let place = tokio::select! {
            () = stop.cancelled() => break,
            Ok(place) = places.clone().acquire_owned() => place,
        };
        if waiting.is_none() {
            waiting = tokio::select! {
                () = stop.cancelled() => break,
                job = queue.recv() => job,
            };
        }
        let Some(first) = waiting.take() else { break };
        let mut jobs = vec![first];
        waiting = gather(&mut jobs, &mut queue);
        commit(&node, &shard, jobs, place).await;
    }
    queue.close();
    while let Some(job) = waiting.take().or_else(|| queue.try_recv().ok()) {
        finish(&shard, job, Err(Error::unavailable("the node is shutting down")));
    }
}

/// Draws and logs here, one group after the other, so that timestamps ascend with log positions; the rest is waited for
/// beside the next groups.
async fn commit(node: &Arc<ShardNode>, shard: &Arc<Shard>, jobs: Vec<CommitJob>, place: OwnedSemaphorePermit) {
    let term = shard.status.borrow().term;
    let (jobs, stale): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.term == term);
    for job in stale {
        let over = Error::stale_map(format!("shard {} changed its leader", shard.id));
        finish(shard, job, Err(over));
    }
    if jobs.is_empty() {
        return shard.wake_all();
    }
    let group = shard
        .participant
        .lock()
        .open_group(jobs.iter().map(|j| j.txn).collect());
    let (timestamp, submitted) = match log(node, shard, (group, term), &jobs).await {
        Ok(logged) => logged,
        Err(error) => return close(shard, group, jobs, Err(error)),
    };
    let (node, shard) = (node.clone(), shard.clone());
    node.clone().tasks.spawn(async move {
        let applied = shard
            .wait_submitted(submitted)
            .await
            .and_then(|_| node.failpoints.hit("commit.after_apply"));
        close(&shard, group, jobs, applied.map(|()| timestamp));
        drop(place);
    });
}

async fn log(
    node: &ShardNode,
    shard: &Shard,
    (group, term): (u64, u64),
    jobs: &[CommitJob],
) -> Result<(Timestamp, Submitted)> {
    let timestamp = draw(node, shard).await?;
    shard.participant.lock().drawn(group, timestamp);
    node.failpoints.hit("commit.before_propose")?;
    let commits = jobs.iter().map(|j| j.commit.clone()).collect();
    let entry = Logged::CommitRecord(CommitRecord {
        timestamp: timestamp.0,
        commits,
    })
    .encode();
    let until = Instant::now() + PROPOSE_TIMEOUT;
    Ok((timestamp, shard.submit(Some(term), entry, until).await?))
}

/// Adds what is queued already; returns a job that did not fit.
fn gather(jobs: &mut Vec<CommitJob>, queue: &mut mpsc::Receiver<CommitJob>) -> Option<CommitJob> {
    let mut bytes: usize = jobs.iter().map(|j| j.bytes).sum();
    while jobs.len() < GROUP_TXNS_MAX {
        let job = queue.try_recv().ok()?;
        bytes += job.bytes;
        if bytes > GROUP_BYTES_MAX {
            return Some(job);
        }
        jobs.push(job);
    }
    None
}

/// A timestamp above everything this shard has applied.
async fn draw(node: &ShardNode, shard: &Shard) -> Result<Timestamp> {
    node.failpoints.hit("commit.before_draw")?;
    let drawn = timeout(DRAW_TIMEOUT, async {
        loop {
            let timestamp = node.oracle.draw().await?;
            if timestamp > shard.store.max_timestamp() {
                return Ok(timestamp);
            }
        }
    });
    drawn
        .await
        .map_err(|_| Error::unavailable("the timestamp oracle did not answer"))?
}

/// The group is decided: readers need not wait for it any more.
fn close(shard: &Shard, group: u64, jobs: Vec<CommitJob>, result: Result<Timestamp>) {
    shard.participant.lock().close_group(group);
    for job in jobs {
        finish(shard, job, result.clone());
    }
    shard.wake_all();
}

fn finish(shard: &Shard, job: CommitJob, result: Result<Timestamp>) {
    // A tombstone may have come first: the log decides, not the proposal.
    let decided = shard.ledger.lock().outcome(job.txn).map(|o| o.timestamp);
    let result = match (result, decided) {
        (Ok(_), Some(Some(timestamp))) => Ok(timestamp),
        (Ok(_), Some(None)) => Err(aborted(job.txn)),
        (result, _) => result,
    };
    let mut participant = shard.participant.lock();
    participant.end(job.txn);
    participant.close(job.txn);
    // Applied: the applier released them. Unknown: it still will, or leadership and all locks are gone.
    if result.as_ref().is_err_and(|e| e.retry != Retry::OutcomeUnknown) {
        participant.release(job.txn);
    }
    drop(participant);
    let _ = job.reply.send(result);
}

/// 40001: recovery decided before the commit came.
pub fn aborted(txn: tessera_proto::TxnId) -> Error {
    Error::new(
        "40001",
        format!("transaction {txn} was aborted by recovery before it could commit"),
    )
    .with_hint("run the statement again")
}
