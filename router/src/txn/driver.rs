//! Carries a [`Coordinator`]'s effects out: requests to the shards' leaders, retries where nothing happened, and the
//! outcome of a lost commit.
//!
//! ```text
//!   prepare, commit   TS001 (stale epoch) or unreachable: nothing happened ──▶ newer view, same request at the new leader
//!   commit            no answer ──▶ ask home with resolve until Committed or Aborted, else 40003
//!   40P01             everything aborted ──▶ once more, votes one by one in ascending order
//!   prepared          a sign of life to every prepared shard each 250 ms, else it would ask home, which would abort
//!   finish            in the background, bounded in number and attempts; shards that miss it ask home
//! ```

use crate::engine::Engine;
use crate::txn::coordinator::{Coordinator, Effect, Event, Order, Participant};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::service::ShardService;
use tessera_proto::v1::outcome_reply::State;
use tessera_proto::v1::table_write::Payload;
use tessera_proto::{Error, Result, Retry, ShardId, Timestamp, TxnId, v1};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Longest single call of prepare or commit.
const CALL_MAX: Duration = Duration::from_secs(30);
/// Longest search for the outcome of a lost commit: a failover takes about 2 s, so this is several.
const OUTCOME_MAX: Duration = Duration::from_secs(20);
/// Pause between two attempts, and longest wait for a newer shard map.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Attempts to tell a shard the outcome: about 10 s, then it has asked home long since.
const FINISH_ATTEMPTS: u32 = 20;
/// Between two signs of life to shards that are prepared: they resolve a transaction 1 s after the last.
const SIGN_OF_LIFE: Duration = Duration::from_millis(250);
/// Longest single sign of life.
const SIGN_MAX: Duration = Duration::from_secs(1);
/// Shards told at the same time by one transaction.
const FINISH_AT_ONCE: usize = 16;

/// What a transaction does in one shard.
#[derive(Debug, Clone)]
pub struct ShardWrites {
    /// The shard.
    pub shard: ShardId,
    /// Rows added and removed.
    pub writes: Vec<v1::TableWrite>,
}

/// What a statement saw before it wrote: shards refuse with `Retry::Restart` what changed since.
#[derive(Debug, Clone, Copy, Default)]
pub struct Basis {
    /// The snapshot at which the removed rows were read; 0 when none are removed.
    pub read_at: Timestamp,
    /// It looked for keys that exist, as ON CONFLICT does: one that came since is a change like any other.
    pub upsert: bool,
}

/// A transaction ready to commit.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// Id.
    pub id: TxnId,
    /// Revision of the meta store that the writes were made for.
    pub meta_revision: u64,
    /// What the statement saw; nothing where it only adds rows, or where the shards have its rows already.
    pub basis: Basis,
    /// It was written statement by statement: the shards have its rows already, and no more come.
    pub open: bool,
    /// At least one; the first is home, the others ascend. With home above them all, transactions lock in one order.
    pub shards: Vec<ShardWrites>,
    /// When to give up.
    pub deadline: Instant,
}

/// Commits; durable and visible on return.
///
/// Runs to its end even if the future is dropped: a commit once begun is not abandoned half way. A transaction that waited
/// in a circle with others is run again, locking in one order, as long as its rows travel with it.
///
/// # Errors
/// What a shard refuses with (23505, 23502, ...); `Retry::Restart` when a row to be removed changed since it was read; 40003
/// when nobody can tell the outcome.
pub async fn commit(engine: &Arc<Engine>, mut transaction: Transaction) -> Result<Timestamp> {
    let staged = |write: &v1::TableWrite| matches!(write.payload, Some(Payload::Staged(_)));
    // What was staged belongs to this transaction id and is gone once it is aborted.
    let again = !transaction.open && !transaction.shards.iter().flat_map(|s| &s.writes).any(staged);
    match once(engine, transaction.clone(), Order::AtOnce).await {
        Err(error) if error.code == "40P01" && again => {
            tracing::debug!(txn = %transaction.id, %error, "running a transaction again, shard by shard");
            transaction.id = TxnId::generate();
            once(engine, transaction, Order::OneByOne).await
        }
        other => other,
    }
}

async fn once(engine: &Arc<Engine>, transaction: Transaction, order: Order) -> Result<Timestamp> {
    let (reply, told) = oneshot::channel();
    let work = drive(engine.clone(), Arc::new(transaction), order, reply);
    engine.tasks().spawn(work);
    let unknown = |_| Err(Error::outcome_unknown("the commit ended without an answer"));
    told.await.unwrap_or_else(unknown)
}

/// Forgets what was staged for a transaction, in the background.
pub fn abandon(engine: &Arc<Engine>, id: TxnId, shards: Vec<ShardId>) {
    if !shards.is_empty() {
        finish(engine, id, shards.into_iter().map(|s| (s, None)).collect());
    }
}

/// Runs the machine until nothing is left to do; the client is told as soon as there is something to tell.
async fn drive(
    engine: Arc<Engine>,
    transaction: Arc<Transaction>,
    order: Order,
    reply: oneshot::Sender<Result<Timestamp>>,
) {
    let mut machine = Coordinator::new(transaction.shards.len(), order);
    let mut effects = machine.step(Event::Start);
    let mut running = FuturesUnordered::new();
    let (mut reply, mut told) = (Some(reply), vec![]);
    let mut prepared = BTreeSet::new();
    let mut signs = tokio::time::interval(SIGN_OF_LIFE);
    signs.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    signs.reset();
    let mut signing = FuturesUnordered::new();
    loop {
        for effect in effects.drain(..) {
            match effect {
                // The client may have gone.
                Effect::Reply(result) => drop(reply.take().map(|reply| reply.send(result))),
                Effect::Finish(who, outcome) => told.push((transaction.shards[who].shard, outcome)),
                other => running.push(perform(engine.clone(), transaction.clone(), other)),
            }
        }
        let event = loop {
            tokio::select! {
                event = running.next() => break event,
                Some(()) = signing.next(), if !signing.is_empty() => {}
                // One round at a time: a shard that does not answer gets no more of them meanwhile.
                _ = signs.tick(), if signing.is_empty() && !machine.is_done() => {
                    signing.extend(prepared.iter().map(|who| sign_of_life(&engine, &transaction, *who)));
                }
            }
        };
        let Some(event) = event else { break };
        if let Event::Prepared(who) = &event {
            prepared.insert(*who);
        }
        effects = machine.step(event);
    }
    if !told.is_empty() {
        finish(&engine, transaction.id, told);
    }
}

async fn perform(engine: Arc<Engine>, transaction: Arc<Transaction>, effect: Effect) -> Event {
    match effect {
        Effect::Prepare(who) => match prepare(&engine, &transaction, who).await {
            Ok(()) => Event::Prepared(who),
            Err(error) => Event::Refused(who, error),
        },
        Effect::Commit => match commit_home(&engine, &transaction).await {
            Ok(timestamp) => Event::Committed(timestamp),
            Err(error) if error.retry == Retry::OutcomeUnknown => Event::CommitLost,
            Err(error) => Event::CommitRefused(error),
        },
        Effect::AskOutcome => match outcome(&engine, &transaction).await {
            Ok(resolved) => Event::Resolved(resolved),
            Err(error) => Event::Unresolved(error),
        },
        Effect::Reply(_) | Effect::Finish(..) => unreachable!("handled by the caller"),
    }
}

/// Calls a shard's leader, again with a newer view while nothing happened and time is left.
pub(super) async fn at_leader<T, F>(engine: &Engine, shard: ShardId, until: Instant, call: F) -> Result<T>
where
    F: Fn(Arc<dyn ShardService>, v1::ShardRef, u64) -> BoxFuture<'static, Result<T>> + Send + Sync,
{
    let mut pause = PAUSE;
    loop {
        let view = engine.view();
        let attempt = match view.shards.get(&shard) {
            Some(entry) => match engine.directory().node(entry.config.leader.node) {
                Ok(service) => {
                    let left = until.saturating_duration_since(Instant::now()).min(CALL_MAX);
                    let reference = v1::ShardRef::new(shard, entry.config.epoch);
                    call(service, reference, (left.as_millis() as u64).max(1)).await
                }
                Err(error) => Err(error),
            },
            None => Err(Error::new(
                "42P01",
                format!("shard {shard} is gone: its tables were dropped"),
            )),
        };
        match attempt {
            Err(error) if error.is_retryable() && Instant::now() + pause < until => {
                engine.views().newer(view.revision, pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            other => return other,
        }
    }
}

async fn prepare(engine: &Engine, transaction: &Transaction, who: Participant) -> Result<()> {
    let ShardWrites { shard, writes } = &transaction.shards[who];
    at_leader(
        engine,
        *shard,
        transaction.deadline,
        |service, reference, deadline_ms| {
            let request = v1::PrepareRequest {
                writes: writes.clone(),
                ..prepare_request(engine, transaction, reference, deadline_ms)
            };
            Box::pin(async move { service.prepare(request).await.map(|_| ()) })
        },
    )
    .await
}

fn prepare_request(
    engine: &Engine,
    transaction: &Transaction,
    shard: v1::ShardRef,
    deadline_ms: u64,
) -> v1::PrepareRequest {
    v1::PrepareRequest {
        shard: Some(shard),
        txn: transaction.id.to_wire(),
        home: Some(reference_of(engine, transaction.shards[0].shard)),
        meta_revision: transaction.meta_revision,
        deadline_ms,
        writes: vec![],
        router: 0,
        still: false,
        read_at: transaction.basis.read_at.0,
        upsert: transaction.basis.upsert,
        open: transaction.open,
    }
}

/// Tells a prepared shard that this router still works on the transaction. One that misses it asks home, which may abort.
async fn sign_of_life(engine: &Engine, transaction: &Transaction, who: Participant) {
    let shard = transaction.shards[who].shard;
    let view = engine.view();
    let Some(entry) = view.shards.get(&shard) else { return };
    let reference = v1::ShardRef::new(shard, entry.config.epoch);
    let request = v1::PrepareRequest {
        still: true,
        ..prepare_request(engine, transaction, reference, SIGN_MAX.as_millis() as u64)
    };
    let told = match engine.directory().node(entry.config.leader.node) {
        Ok(service) => service.prepare(request).await.map(drop),
        Err(error) => Err(error),
    };
    if let Err(error) = told {
        tracing::debug!(txn = %transaction.id, %shard, %error, "a prepared shard was not reached");
    }
}

async fn commit_home(engine: &Engine, transaction: &Transaction) -> Result<Timestamp> {
    let ShardWrites { shard, writes } = &transaction.shards[0];
    at_leader(
        engine,
        *shard,
        transaction.deadline,
        |service, reference, deadline_ms| {
            let participants = transaction.shards[1..]
                .iter()
                .map(|s| reference_of(engine, s.shard))
                .collect();
            let request = v1::CommitRequest {
                home: Some(reference),
                txn: transaction.id.to_wire(),
                meta_revision: transaction.meta_revision,
                deadline_ms,
                participants,
                writes: writes.clone(),
                read_at: transaction.basis.read_at.0,
                upsert: transaction.basis.upsert,
                open: transaction.open,
            };
            Box::pin(async move { Ok(Timestamp(service.commit(request).await?.timestamp)) })
        },
    )
    .await
}

/// `Some(timestamp)` if committed, `None` if aborted for good.
async fn outcome(engine: &Engine, transaction: &Transaction) -> Result<Option<Timestamp>> {
    let home = transaction.shards[0].shard;
    let until = Instant::now() + OUTCOME_MAX;
    loop {
        let asked = at_leader(engine, home, until, |service, reference, deadline_ms| {
            // Resolving makes home refuse the commit if it is still on its way, so the answer is final.
            let request = v1::OutcomeRequest {
                home: Some(reference),
                txn: transaction.id.to_wire(),
                resolve: true,
                deadline_ms,
            };
            Box::pin(async move { service.outcome(request).await })
        });
        let unknown = |why: String| {
            Error::outcome_unknown("nobody can tell whether the transaction was committed")
                .with_detail(why)
                .with_hint("look at the data before running it again")
        };
        let reply = asked.await.map_err(|e| unknown(format!("home shard {home}: {e}")))?;
        match State::try_from(reply.state) {
            Ok(State::Committed) => return Ok(Some(Timestamp(reply.timestamp))),
            Ok(State::Aborted) => return Ok(None),
            _ if Instant::now() >= until => return Err(unknown(format!("home shard {home} has not decided"))),
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// The shard at the epoch known now; epoch 0 when it is gone.
fn reference_of(engine: &Engine, shard: ShardId) -> v1::ShardRef {
    let epoch = engine
        .view()
        .shards
        .get(&shard)
        .map(|e| e.config.epoch)
        .unwrap_or_default();
    v1::ShardRef::new(shard, epoch)
}

/// Tells shards the outcome in the background. With too many under way nobody is told: they ask home.
fn finish(engine: &Arc<Engine>, id: TxnId, shards: Vec<(ShardId, Option<Timestamp>)>) {
    let Ok(permit) = engine.finishing().clone().try_acquire_owned() else {
        tracing::debug!(txn = %id, "too many transactions are being finished; shards will ask for the outcome");
        return;
    };
    let engine_of_task = engine.clone();
    engine.tasks().spawn(async move {
        let engine = engine_of_task;
        let tell = futures::stream::iter(shards)
            .for_each_concurrent(FINISH_AT_ONCE, |(shard, outcome)| tell(&engine, id, shard, outcome));
        tokio::select! {
            () = tell => {}
            // A stopping router gives what is under way a moment, not more.
            () = async { engine.stop().cancelled().await; tokio::time::sleep(PAUSE_MAX).await } => {}
        }
        drop(permit);
    });
}

async fn tell(engine: &Engine, id: TxnId, shard: ShardId, outcome: Option<Timestamp>) {
    let mut pause = PAUSE;
    for _ in 0..FINISH_ATTEMPTS {
        let view = engine.view();
        let Some(entry) = view.shards.get(&shard) else { return };
        let request = v1::FinishRequest {
            shard: Some(v1::ShardRef::new(shard, entry.config.epoch)),
            txn: id.to_wire(),
            commit_timestamp: outcome.map_or(0, |t| t.0),
            deadline_ms: CALL_MAX.as_millis() as u64,
            give_up: false,
        };
        let result = match engine.directory().node(entry.config.leader.node) {
            Ok(service) => service.finish(request).await.map(|_| ()),
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => return,
            Err(error) => tracing::debug!(txn = %id, %shard, %error, "a shard does not know the outcome yet"),
        }
        engine.views().newer(view.revision, pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
