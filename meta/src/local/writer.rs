//! The one thread that changes a store on disk.
//!
//! ```text
//!   queue: a b c ──▶ group {a b c} ──▶ staged, compared in order ──▶ one batch, one barrier ──▶ visible ──▶ 3 answers
//!          d e      (arrived meanwhile: the next group)
//! ```

use super::Shared;
use super::disk::Disk;
use super::state::Staged;
use crate::limits::{CAS_BYTES_MAX, op_bytes};
use crate::{Op, Outcome};
use tessera_proto::Result;
use tokio::sync::{mpsc, oneshot};

/// Most compare-and-swaps that share a barrier: what the queue can hold. Bounds the time until the first is answered.
const GROUP_MAX: usize = 256;

/// One compare-and-swap, checked, and where its answer goes.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) ops: Vec<Op>,
    pub(super) reply: oneshot::Sender<Result<Outcome>>,
}

/// Runs until all senders are gone.
pub(super) fn run(mut queue: mpsc::Receiver<Job>, shared: &Shared, mut disk: Disk) {
    while let Some(first) = queue.blocking_recv() {
        commit(group(first, &mut queue), shared, &mut disk);
    }
}

/// The first job and what is queued behind it, up to about twice the bytes of the largest job.
fn group(first: Job, queue: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let size = |job: &Job| job.ops.iter().map(op_bytes).sum::<usize>();
    let mut bytes = size(&first);
    let mut jobs = vec![first];
    while jobs.len() < GROUP_MAX && bytes < CAS_BYTES_MAX {
        let Ok(job) = queue.try_recv() else { break };
        bytes += size(&job);
        jobs.push(job);
    }
    jobs
}

/// Nobody is answered before the barrier, not even those who lost: what they lost against must be durable too.
fn commit(jobs: Vec<Job>, shared: &Shared, disk: &mut Disk) {
    let (staged, answers) = stage(jobs, shared);
    if !staged.changes().is_empty() {
        if let Err(error) = disk.write(staged.changes(), staged.revision()) {
            for (reply, _) in answers {
                // A caller that gave up meanwhile does not want to know.
                let _ = reply.send(Err(error.clone()));
            }
            return;
        }
        shared.publish(staged);
    }
    for (reply, outcome) in answers {
        let _ = reply.send(outcome);
    }
}

/// A caller and what it will be told.
type Answer = (oneshot::Sender<Result<Outcome>>, Result<Outcome>);

fn stage(jobs: Vec<Job>, shared: &Shared) -> (Staged, Vec<Answer>) {
    let state = shared.state.read();
    let mut staged = Staged::new(&state);
    let answers = jobs
        .into_iter()
        .map(|job| (job.reply, staged.cas(&state, job.ops)))
        .collect();
    (staged, answers)
}
