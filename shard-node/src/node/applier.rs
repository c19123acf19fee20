//! Applies one shard's committed entries in order, and does what must not run beside that.
//!
//! ```text
//!   committed ≤ 57, applied 41:  42..57 ─▶ rows into the store ─▶ ledger ─▶ locks end ─▶ applied = 57, wake waiters
//!                                          └── readers see rows before they see a transaction as decided ──┘
//! ```
//!
//! An entry that cannot be applied (a damaged staged file) stops the shard here, loudly; it is tried again every second.

use super::ShardNode;
use super::open::write_ledger;
use super::shard::{Chore, Leads, Shard};
use super::writes;
use crate::replication::catch_up::Snapshot;
use crate::replication::log_shape::Position;
use crate::replication::message::{Entry, Event};
use crate::txn::entry::{Logged, segments};
use crate::txn::ledger::Consequences;
use crate::txn::locks::{Acquired, Span};
use bytes::Bytes;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tessera_meta::view::ClusterView;
use tessera_proto::{Error, LogIndex, Result, TxnId, v1};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Entries applied in one turn.
const TURN_BYTES_MAX: usize = 16 << 20;
/// Pause before an entry that could not be applied is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long files of a snapshot stay for the copy that fetches them.
const PIN: Duration = Duration::from_secs(600);
/// Longest wait for a catalog that knows an entry's tables, per attempt.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs until `stop`.
pub async fn run(node: Arc<ShardNode>, shard: Arc<Shard>, mut chores: mpsc::Receiver<Chore>, stop: CancellationToken) {
    let mut applier = Applier {
        node,
        shard,
        sealing: None,
    };
    let mut committed = applier.shard.committed.subscribe();
    let mut status = applier.shard.status.subscribe();
    loop {
        let upto = *committed.borrow_and_update();
        status.borrow_and_update();
        let applied = *applier.shard.applied.borrow();
        if applied < upto
            && let Err(error) = applier.apply(applied, upto).await
        {
            applier.fail(&error);
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(PAUSE) => continue,
            }
        }
        if let Err(error) = applier.get_ready().await {
            applier.fail(&error);
        }
        if *applier.shard.applied.borrow() < *committed.borrow() {
            if stop.is_cancelled() {
                break;
            }
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = committed.changed() => if changed.is_err() { break },
            changed = status.changed() => if changed.is_err() { break },
            chore = chores.recv() => match chore {
                Some(chore) => applier.chore(chore).await,
                None => break,
            },
        }
    }
    if let Some(sealing) = applier.sealing.take() {
        let _ = sealing.await;
    }
}

struct Applier {
    node: Arc<ShardNode>,
    shard: Arc<Shard>,
    sealing: Option<JoinHandle<()>>,
}

impl Applier {
    fn fail(&self, error: &Error) {
        let news = self.shard.status.borrow().damage.as_ref().map(|d| d.message.clone()) != Some(error.message.clone());
        if news {
            tracing::error!(%error, shard = %self.shard.id, "a committed log entry cannot be applied; this copy stops there");
            self.shard.status.send_modify(|s| s.damage = Some(error.clone()));
        }
        let _: Result<()> = self.node.watch(&[self.shard.id], Err(error.clone()));
    }

    /// Applies entries after `applied`, at most one turn's worth.
    async fn apply(&self, applied: LogIndex, upto: LogIndex) -> Result<()> {
        let _gate = self.shard.apply_gate.lock().await;
        // A snapshot may have come first.
        let applied = applied.max(*self.shard.applied.borrow());
        if applied >= upto {
            return Ok(());
        }
        let mut entries = self.entries(LogIndex(applied.0 + 1), upto).await?.into_iter();
        let mut work = Vec::with_capacity(entries.len());
        for entry in entries.by_ref() {
            let logged = Logged::decode(entry.kind, entry.payload)?;
            let consequences = self.consequences_of(&work, entry.at.index, &logged)?;
            work.push(Work {
                index: entry.at.index,
                logged,
                consequences,
            });
            // What later entries of the turn entail may depend on this one.
            if work
                .last()
                .is_some_and(|w| !matches!(w.logged, Logged::CommitRecord(_)))
            {
                break;
            }
        }
        self.shard.remember(&entries.collect::<Vec<_>>());
        self.carry_out(work).await?;
        self.shard.status.send_if_modified(|s| s.damage.take().is_some());
        Ok(())
    }

    /// Several commit records in a row are independent unless they decide the same transaction.
    fn consequences_of(&self, work: &[Work], index: LogIndex, logged: &Logged) -> Result<Consequences> {
        let mut consequences = self.shard.ledger.lock().consequences(index, logged)?;
        let repeated = |t: &TxnId| work.iter().any(|w| w.consequences.unlocked.contains(t));
        if !work.is_empty() && consequences.unlocked.iter().any(repeated) {
            let mut ledger = self.shard.ledger.lock().clone();
            work.iter().try_for_each(|w| ledger.apply(w.index, &w.logged))?;
            consequences = ledger.consequences(index, logged)?;
        }
        Ok(consequences)
    }

    async fn entries(&self, from: LogIndex, upto: LogIndex) -> Result<Vec<Entry>> {
        let entries = self.shard.recall(from, upto, TURN_BYTES_MAX);
        if !entries.is_empty() {
            return Ok(entries);
        }
        let (wal, id) = (self.node.wal.clone(), self.shard.id);
        let read = tokio::task::spawn_blocking(move || wal.read(id, from, TURN_BYTES_MAX)).await;
        let records = read.map_err(|e| Error::internal(format!("reading the log: {e}")))??;
        if records.is_empty() {
            return Err(Error::corrupt(format!(
                "log entry {from} of shard {id} is committed, but not in the log"
            )));
        }
        let records = records.into_iter().filter(|r| r.index <= upto);
        Ok(records
            .map(|r| Entry {
                at: Position {
                    epoch: r.epoch,
                    index: r.index,
                },
                kind: r.kind as u8,
                payload: r.payload,
            })
            .collect())
    }

    async fn carry_out(&self, work: Vec<Work>) -> Result<()> {
        let needed = work
            .iter()
            .flat_map(|w| &w.consequences.visible)
            .map(|v| v.meta_revision)
            .max()
            .unwrap_or(0);
        let view = self.node.views.at_least(needed, CATALOG_TIMEOUT).await?;
        let (node, shard) = (self.node.clone(), self.shard.clone());
        let done =
            tokio::task::spawn_blocking(move || work.into_iter().try_for_each(|w| apply_one(&node, &shard, &view, w)));
        done.await
            .map_err(|e| Error::internal(format!("applying log entries: {e}")))?
    }

    /// A new leader serves once everything before its epoch is applied and prepared rows are locked again.
    async fn get_ready(&self) -> Result<()> {
        let applied = *self.shard.applied.borrow();
        let waits = |l: &Leads| !l.ready && applied >= l.start;
        let Some(leads) = self.shard.status.borrow().leads.filter(waits) else {
            return Ok(());
        };
        let (term, shard) = (self.shard.status.borrow().term, self.shard.clone());
        let prepared: Vec<_> = shard
            .ledger
            .lock()
            .prepared()
            .iter()
            .map(|(t, p)| (*t, p.writes.clone(), p.meta_revision))
            .collect();
        let view = self
            .node
            .views
            .at_least(prepared.iter().map(|p| p.2).max().unwrap_or(0), CATALOG_TIMEOUT)
            .await?;
        let here = shard.clone();
        let locked = tokio::task::spawn_blocking(move || {
            for (txn, payloads, _) in prepared {
                let wanted = writes::wanted(&here.store, &writes::decode_applied(&view, &payloads)?)?;
                if here.participant.lock().locks.acquire(txn, Span::Many, wanted) != Acquired::Yes {
                    return Err(Error::internal(format!(
                        "prepared transactions of shard {} write the same rows",
                        here.id
                    )));
                }
            }
            Ok(())
        });
        locked
            .await
            .map_err(|e| Error::internal(format!("locking prepared rows: {e}")))??;
        tracing::info!(shard = %shard.id, epoch = %leads.epoch, "leads");
        shard.status.send_modify(|s| {
            if s.term == term {
                s.leads = s.leads.map(|l| Leads { ready: true, ..l });
                s.damage = None;
            }
        });
        Ok(())
    }

    async fn chore(&mut self, chore: Chore) {
        if let Some(sealing) = self.sealing.take() {
            let _ = sealing.await;
        }
        match chore {
            // Beside applying: a seal of 32 MiB takes longer than commits like to wait.
            Chore::Seal(reply) => self.sealing = Some(tokio::spawn(seal(self.node.clone(), self.shard.clone(), reply))),
            Chore::Snapshot(reply) => {
                let _ = reply.send(self.snapshot().await);
            }
        }
    }

    /// Applying rests meanwhile, so that store and ledger are of one log position.
    async fn snapshot(&self) -> Result<Bytes> {
        let _gate = self.shard.apply_gate.lock().await;
        let (shard, node) = (self.shard.clone(), self.node.clone());
        let ledger = shard.ledger.lock().clone();
        let taken = tokio::task::spawn_blocking(move || {
            let manifest = shard.store.snapshot(&|id| node.definition(id))?;
            let at = manifest.checkpoint;
            let epoch = node.wal.epoch_at(shard.id, at).unwrap_or_default();
            if at != ledger.applied() {
                return Err(Error::internal(format!(
                    "snapshot is of log index {at}, the ledger of {}",
                    ledger.applied()
                )));
            }
            let mut files = manifest.files.clone();
            files.extend(ledger.prepared().values().flat_map(|p| segments(&p.writes)));
            let bytes = Snapshot {
                epoch: epoch.0,
                index: at.0,
                manifest: manifest.manifest.clone(),
                ledger: ledger.to_image(),
                files,
            };
            let mut pinned = shard.pinned.lock();
            pinned.retain(|(since, _)| since.elapsed() < PIN);
            pinned.push((Instant::now(), manifest));
            Ok(Bytes::from(bytes.encode_to_vec()))
        });
        taken
            .await
            .map_err(|e| Error::internal(format!("taking a snapshot: {e}")))?
    }
}

struct Work {
    index: LogIndex,
    logged: Logged,
    consequences: Consequences,
}

/// Rows, then the ledger, then whoever waits. Blocking.
fn apply_one(node: &ShardNode, shard: &Shard, view: &ClusterView, work: Work) -> Result<()> {
    let Work {
        index,
        logged,
        consequences,
    } = work;
    if !consequences.visible.is_empty() {
        node.failpoints.hit("apply.before_rows")?;
    }
    let timestamp = consequences.visible.first().map(|v| v.timestamp);
    let payloads: Vec<v1::TableWrite> = consequences.visible.into_iter().flat_map(|v| v.writes).collect();
    match timestamp.filter(|_| index > shard.store.applied()) {
        Some(timestamp) => shard
            .store
            .apply(index, timestamp, &writes::decode_applied(view, &payloads)?)?,
        None => shard.store.advance(index),
    }
    if timestamp.is_some() {
        node.failpoints.hit("apply.after_rows")?;
    }
    shard.ledger.lock().apply(index, &logged)?;
    let mut participant = shard.participant.lock();
    for txn in &consequences.unlocked {
        participant.locks.release(*txn);
    }
    if let Logged::AbortRecord(txn) = &logged {
        participant.refused_durably(*txn);
    }
    drop(participant);
    let mut unused = node.staged.settle(shard.id, &consequences.owned, &logged.segments());
    unused.extend(consequences.discard);
    if !unused.is_empty() {
        shard.store.discard(&unused);
    }
    shard.applied.send_replace(index);
    shard.wake_all();
    Ok(())
}

async fn seal(node: Arc<ShardNode>, shard: Arc<Shard>, reply: oneshot::Sender<Result<()>>) {
    let (ledger, here) = (shard.ledger.lock().clone(), shard.clone());
    let catalog = node.clone();
    let sealed = tokio::task::spawn_blocking(move || {
        // Asked anew for each table: a catalog older than the rows would drop them.
        here.store.seal(&|id| catalog.definition(id))?;
        write_ledger(&here.dir, &ledger.to_image())?;
        Ok(ledger.applied().min(here.store.checkpoint()))
    });
    let sealed = sealed
        .await
        .unwrap_or_else(|e| Err(Error::internal(format!("sealing: {e}"))));
    if let Ok(upto) = &sealed {
        release(&node, &shard, *upto);
    }
    let _ = reply.send(sealed.map(drop));
}

/// Everything up to `upto` is in files and committed, so every in-sync copy has it; learners may need a snapshot now.
fn release(node: &ShardNode, shard: &Shard, upto: LogIndex) {
    node.wal.release(shard.id, upto);
    let gone = LogIndex(node.wal.first(shard.id).0.saturating_sub(1));
    shard.post(Event::Released { upto: gone });
}
