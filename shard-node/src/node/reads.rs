//! What must hold before a shard is read at a snapshot, and the reads that need no plan.
//!
//! ```text
//!   readable(S):  S not too old? ─▶ led here, at that epoch? ─▶ commit groups that may be ≤ S ended ─▶ prepared rows resolved through home
//!                 ─▶ lease with every in-sync peer valid ─▶ the store's present version has everything up to S
//! ```
//!
//! Whoever could commit below S elsewhere would have had to lead before S was drawn, so one lease check after the request
//! arrived is enough: later commits get timestamps above S. Rows are filtered by S again in the scan.

use super::open_txn::ReadStore;
use super::shard::Shard;
use super::{ShardNode, checks};
use crate::storage::{Access, ShardStore};
use datafusion::arrow::array::RecordBatch;
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::v1::outcome_reply::State;
use tessera_proto::{Error, LogIndex, Result, ShardId, TableId, Timestamp, TxnId, ipc, v1};
use tokio::time::Instant;

/// Prepared transactions of one shard resolved at the same time.
const RESOLVE_AT_ONCE: usize = 16;
/// Pause before home is asked again about a transaction that is committing just now.
const RESOLVE_PAUSE: Duration = Duration::from_millis(2);
/// Pause while a lease is renewed.
const LEASE_PAUSE: Duration = Duration::from_millis(20);
/// How long a copy that is not in sync is waited for: it may be far behind.
const LEARNER_TIMEOUT: Duration = Duration::from_millis(500);
/// Keys of more bytes than this are looked up apart from the threads that serve sockets, in memory or not.
const INLINE_KEY_BYTES_MAX: usize = 4 << 10;
/// How long a copy may take to catch up with what it is compared at.
const COPY_TIMEOUT: Duration = Duration::from_secs(20);

impl ShardNode {
    /// The stores of shards led here and of reference copies, each with everything up to `snapshot`, and with what transaction
    /// `txn` changed itself in those that say so.
    ///
    /// # Errors
    /// TS001 when a shard is not led here at that epoch, 08006 when a lease or a copy does not get there in time, 72000 when
    /// the snapshot is too old.
    pub async fn readable(
        self: &Arc<Self>,
        shards: &[v1::ShardRef],
        references: &[v1::ReferenceRead],
        snapshot: Timestamp,
        txn: &[u8],
        until: Instant,
    ) -> Result<Vec<(ShardId, ReadStore)>> {
        self.watermark.check(snapshot)?;
        let led = futures::stream::iter(shards.to_vec())
            .map(|r| self.readable_shard(r, snapshot, txn, until))
            .buffered(RESOLVE_AT_ONCE);
        let mut out: Vec<(ShardId, ReadStore)> = led.try_collect().await?;
        for reference in references {
            let shard = reference
                .shard
                .ok_or_else(|| Error::protocol("reference read names no shard"))?
                .id();
            let store = self.readable_copy(shard, LogIndex(reference.log_index), until).await?;
            out.push((shard, ReadStore { store, own: None }));
        }
        Ok(out)
    }

    async fn readable_shard(
        self: &Arc<Self>,
        reference: v1::ShardRef,
        snapshot: Timestamp,
        txn: &[u8],
        until: Instant,
    ) -> Result<(ShardId, ReadStore)> {
        let shard = self.leading(Some(reference), until).await?;
        self.settle(&shard, snapshot, until).await?;
        let own = match reference.own {
            true => Some(shard.own_rows(TxnId::from_wire(txn)?)?),
            false => None,
        };
        let store = shard.store.clone();
        Ok((shard.id, ReadStore { store, own }))
    }

    /// Everything that may have committed up to `snapshot` is applied.
    pub(super) async fn settle(
        self: &Arc<Self>,
        shard: &Arc<Shard>,
        snapshot: Timestamp,
        until: Instant,
    ) -> Result<()> {
        let term = shard.status.borrow().term;
        let groups = shard.participant.lock().groups_at(snapshot);
        let ended = |s: &Shard| (groups.is_empty() || !s.participant.lock().any_open(&groups)).then_some(());
        shard
            .wait_until(until, ended)
            .await
            .ok_or_else(|| Error::cancelled(format!("a commit on shard {} did not end in time", shard.id)))?;
        self.resolve_prepared(shard, snapshot, until).await?;
        self.wait_lease(shard, until).await?;
        let status = shard.status.borrow();
        match status.term == term && status.leads.is_some() && !status.paused {
            true => Ok(()),
            false => Err(Error::stale_map(format!("shard {} changed its leader", shard.id))),
        }
    }

    async fn resolve_prepared(self: &Arc<Self>, shard: &Arc<Shard>, snapshot: Timestamp, until: Instant) -> Result<()> {
        let prepared: Vec<(TxnId, ShardId)> = shard
            .ledger
            .lock()
            .prepared()
            .iter()
            .map(|(t, p)| (*t, p.home))
            .collect();
        let resolved =
            futures::stream::iter(prepared).map(|(txn, home)| self.resolve(shard, txn, home, snapshot, until));
        resolved.buffer_unordered(RESOLVE_AT_ONCE).try_collect().await
    }

    /// Asks home until it is known whether the transaction is visible at the snapshot; makes it visible here if it is.
    async fn resolve(
        self: &Arc<Self>,
        shard: &Arc<Shard>,
        txn: TxnId,
        home: ShardId,
        snapshot: Timestamp,
        until: Instant,
    ) -> Result<()> {
        loop {
            if !shard.ledger.lock().prepared().contains_key(&txn) {
                return Ok(());
            }
            let reply = self.ask_home(home, txn, false, until).await?;
            match reply.state() {
                // Its timestamp will be above every snapshot there is now.
                State::Pending | State::Aborted => return Ok(()),
                State::Committed if Timestamp(reply.timestamp) > snapshot => return Ok(()),
                State::Committed => {
                    return self
                        .finish_txn(shard.id, None, txn, Timestamp(reply.timestamp), until)
                        .await;
                }
                State::Committing if Instant::now() >= until => {
                    return Err(Error::cancelled(format!("transaction {txn} did not end in time")));
                }
                State::Committing => tokio::time::sleep(RESOLVE_PAUSE).await,
            }
        }
    }

    /// The outcome of a transaction, from its home's leader.
    pub(super) async fn ask_home(
        self: &Arc<Self>,
        home: ShardId,
        txn: TxnId,
        resolve: bool,
        until: Instant,
    ) -> Result<v1::OutcomeReply> {
        loop {
            let view = self.views.current();
            let entry = view
                .shards
                .get(&home)
                .ok_or_else(|| Error::stale_map(format!("home shard {home} of transaction {txn} is gone")))?;
            let reference = v1::ShardRef::new(home, entry.config.epoch);
            let left = until.saturating_duration_since(Instant::now()).as_millis() as u64;
            let request = v1::OutcomeRequest {
                home: Some(reference),
                txn: txn.to_wire(),
                resolve,
                deadline_ms: left.max(1),
            };
            let asked = match entry.config.leader == self.id {
                true => self.outcome_of(Some(reference), txn, resolve, until).await,
                false => self.directory.node(entry.config.leader.node)?.outcome(request).await,
            };
            match asked {
                Err(error) if error.is_retryable() && Instant::now() < until => {
                    tokio::time::sleep(LEASE_PAUSE).await;
                    self.views.refresh().await?;
                }
                other => return other,
            }
        }
    }

    /// No other replica can have taken over: every in-sync peer answered a heartbeat sent within the lease.
    pub(super) async fn wait_lease(&self, shard: &Shard, until: Instant) -> Result<()> {
        loop {
            let (leads, peers) = {
                let status = shard.status.borrow();
                let peers: Vec<_> = status
                    .config
                    .iter()
                    .flat_map(|c| &c.in_sync)
                    .filter(|r| **r != self.id)
                    .map(|r| r.node)
                    .collect();
                (status.leads.is_some(), peers)
            };
            if !leads {
                return Err(Error::stale_map(format!("shard {} is led elsewhere now", shard.id)));
            }
            if peers.iter().all(|p| self.holds_lease(*p)) {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(Error::unavailable(format!(
                    "shard {} has no valid lease with its in-sync copies",
                    shard.id
                )));
            }
            tokio::time::sleep(LEASE_PAUSE).await;
        }
    }

    async fn readable_copy(&self, id: ShardId, index: LogIndex, until: Instant) -> Result<ShardStore> {
        let missing = || Error::unavailable(format!("node {} has no copy of reference shard {id}", self.id.node));
        let shard = self.shard(id).ok_or_else(missing)?;
        let in_sync = shard
            .status
            .borrow()
            .config
            .as_ref()
            .is_some_and(|c| c.in_sync.contains(&self.id));
        let until = if in_sync {
            until
        } else {
            until.min(Instant::now() + LEARNER_TIMEOUT)
        };
        shard.wait_applied(index, until).await?;
        Ok(shard.store.clone())
    }

    /// See `ShardService::read_index`.
    pub(super) async fn index_for(self: &Arc<Self>, request: v1::ReadIndexRequest) -> Result<LogIndex> {
        let until = checks::until(request.deadline_ms)?;
        let shard = self.leading(request.shard, until).await?;
        self.settle(&shard, Timestamp(request.snapshot), until).await?;
        Ok(*shard.applied.borrow())
    }

    /// See `ShardService::digest`: also asked of followers, with the leader's index.
    pub(super) async fn digest_of(self: &Arc<Self>, request: v1::DigestRequest) -> Result<v1::DigestReply> {
        let until = checks::until(request.deadline_ms)?;
        let reference = request.shard.ok_or_else(|| Error::protocol("digest names no shard"))?;
        let shard = self.shard_soon(reference.id(), until).await?;
        let caught_up = until.min(Instant::now() + COPY_TIMEOUT);
        shard.wait_applied(LogIndex(request.log_index), caught_up).await?;
        let known = self.definition(TableId(request.table));
        // A copy's catalog may be older than the table.
        let revision = if known.is_some() {
            0
        } else {
            self.views.refresh().await?.revision
        };
        let def = self.table(TableId(request.table), 0, revision, until).await?;
        let snapshot = Timestamp(request.snapshot);
        self.watermark.check(snapshot)?;
        let digest = tokio::task::spawn_blocking(move || shard.store.digest(&def, snapshot));
        let (digest, rows) = digest.await.map_err(|e| Error::internal(format!("digest: {e}")))??;
        Ok(v1::DigestReply {
            digest: digest.to_be_bytes().to_vec().into(),
            rows,
        })
    }

    /// See `ShardService::point_read`.
    pub(super) async fn read_points(self: &Arc<Self>, request: v1::PointReadRequest) -> Result<v1::PointReadReply> {
        let until = checks::until(request.deadline_ms)?;
        let reference = request
            .shard
            .ok_or_else(|| Error::protocol("point read names no shard"))?;
        self.watermark.check(Timestamp(request.snapshot))?;
        let (_, ReadStore { store, own }) = self
            .readable_shard(reference, Timestamp(request.snapshot), &request.txn, until)
            .await?;
        let def = self
            .table(TableId(request.table), 0, request.meta_revision, until)
            .await?;
        let few = request.keys.len() <= INLINE_KEY_BYTES_MAX;
        let read = move |access| {
            let keys = one_batch(&request.keys)?;
            let projection: Vec<usize> = request.projection.iter().map(|c| *c as usize).collect();
            let at = Timestamp(request.snapshot);
            let rows = match own.as_ref().filter(|own| own.touches(def.id)) {
                Some(own) => own.point_read(&store, &def, at, &keys, &projection, access)?,
                None => store.point_read(&def, at, &keys, &projection, access)?,
            };
            rows.map(|rows| ipc::encode(&rows.schema(), &[rows])).transpose()
        };
        // Handing a few microseconds of work to another thread and waiting for it costs a multiple of that.
        let here = if few { read(Access::Memory)? } else { None };
        let rows = match here {
            Some(rows) => rows,
            None => tokio::task::spawn_blocking(move || read(Access::Disk))
                .await
                .map_err(|e| Error::internal(format!("point read: {e}")))??
                .ok_or_else(|| Error::internal("a row was not read"))?,
        };
        Ok(v1::PointReadReply { rows })
    }
}

fn one_batch(bytes: &[u8]) -> Result<RecordBatch> {
    let mut batches = ipc::decode(bytes)?;
    match (batches.pop(), batches.is_empty()) {
        (Some(batch), true) => Ok(batch),
        _ => Err(Error::protocol("keys are not one batch")),
    }
}
