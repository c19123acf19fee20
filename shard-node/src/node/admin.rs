//! What operators see and do: status of the shards here, compaction, and moves of leadership.

use super::shard::{Shard, Status};
use super::{ShardNode, checks};
use crate::replication::message::Operation;
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::shard_map::ShardConfig;
use tessera_proto::v1::change_leader_request::Action;
use tessera_proto::{Epoch, Error, ReplicaId, Result, TableId, Timestamp, v1};
use tokio::time::{Instant, timeout_at};

/// Longest wait for a shard's configuration on a node that just started.
const CONFIG_TIMEOUT: Duration = Duration::from_secs(2);

impl ShardNode {
    /// See `ShardService::status`.
    pub(super) async fn report(self: &Arc<Self>, request: v1::StatusRequest) -> Result<v1::StatusReply> {
        self.watermark.told(Timestamp(request.running));
        let mut shards = Vec::new();
        for shard in self.shards() {
            let mut status = describe(&shard);
            if request.statistics {
                status.tables = self.statistics(&shard).await?;
            }
            shards.push(status);
        }
        Ok(v1::StatusReply {
            node: self.id.node.0,
            shards,
            memory_bytes: self.query_memory_reserved(),
            disk_free_bytes: fs2::available_space(&self.dir).unwrap_or(0),
            query_tasks: self.query_tasks() as u64,
            watermark: self.watermark.current().0,
        })
    }

    /// See `ShardService::vacuum`.
    pub(super) async fn vacuum_shard(self: &Arc<Self>, request: v1::VacuumRequest) -> Result<v1::VacuumReply> {
        let until = checks::until(request.deadline_ms)?;
        let reference = request.shard.ok_or_else(|| Error::protocol("vacuum names no shard"))?;
        self.watermark.told(Timestamp(request.running));
        let now = timeout_at(until, self.oracle.draw()).await;
        self.watermark
            .advance(now.map_err(|_| Error::unavailable("the timestamp oracle did not answer"))??);
        let (shard, table) = (self.shard_soon(reference.id(), until).await?, TableId(request.table));
        let done = shard.compact(table, until).await?;
        Ok(v1::VacuumReply {
            files_before: done.files_before,
            files_after: done.files_after,
            rows_removed: done.rows_removed,
            bytes_before: done.bytes_before,
            bytes_after: done.bytes_after,
            dead_rows: shard.store.table_version(table).dead() as u64,
        })
    }

    async fn statistics(&self, shard: &Arc<Shard>) -> Result<Vec<v1::TableStatistics>> {
        let (view, here) = (self.views.current(), shard.clone());
        let collected = tokio::task::spawn_blocking(move || {
            let tables = here.store.tables();
            let known = tables.iter().filter_map(|t| view.tables.get(t));
            known.map(|def| here.store.statistics(def)).collect()
        });
        collected
            .await
            .map_err(|e| Error::internal(format!("collecting statistics: {e}")))
    }

    /// See `ShardService::change_leader`.
    pub(super) async fn move_leader(self: &Arc<Self>, request: v1::ChangeLeaderRequest) -> Result<Epoch> {
        let until = checks::until(request.deadline_ms)?;
        let reference = request.shard.ok_or_else(|| Error::protocol("request names no shard"))?;
        let shard = self.shard_soon(reference.id(), until).await?;
        let known = |s: &Status| s.config.clone();
        let config = shard
            .wait_status(until.min(Instant::now() + CONFIG_TIMEOUT), known)
            .await;
        let config = config
            .ok_or_else(|| Error::unavailable(format!("the configuration of shard {} is not known yet", shard.id)))?;
        if reference.epoch != 0 && reference.epoch != config.epoch.0 {
            return Err(Error::stale_map(format!(
                "shard {} is at epoch {}, the request at {}",
                shard.id, config.epoch, reference.epoch
            )));
        }
        let operation = match request.action() {
            Action::Switch => Operation::Switch(self.switch_target(&shard, &config, until).await?),
            Action::Promote => {
                self.check_leader_gone(&shard, &config)?;
                Operation::Promote
            }
            Action::ForcePromote => {
                self.check_leader_gone(&shard, &config)?;
                Operation::ForcePromote
            }
        };
        let led_by = match operation {
            Operation::Switch(target) => target,
            _ => self.id,
        };
        self.await_leader(&shard, operation, led_by, config.epoch, until).await
    }

    /// Another in-sync copy that is alive; one that just started may need a moment to show that.
    async fn switch_target(&self, shard: &Shard, config: &ShardConfig, until: Instant) -> Result<ReplicaId> {
        if config.leader != self.id {
            return Err(Error::stale_map(format!(
                "shard {} is led by node {}",
                shard.id, config.leader.node
            )));
        }
        let soon = (Instant::now() + self.lease_timings.lease).min(until);
        loop {
            let target = config
                .in_sync
                .iter()
                .find(|r| **r != self.id && self.holds_lease(r.node));
            if let Some(target) = target {
                return Ok(*target);
            }
            if Instant::now() >= soon {
                return Err(Error::new(
                    "55000",
                    format!("shard {} has no other in-sync copy to lead it", shard.id),
                )
                .with_hint("wait until a follower is in sync"));
            }
            tokio::time::sleep(self.lease_timings.beat).await;
        }
    }

    fn check_leader_gone(&self, shard: &Shard, config: &ShardConfig) -> Result<()> {
        if config.leader == self.id
            || self.may_replace(config.leader.node)
            || self
                .views
                .current()
                .nodes
                .get(&config.leader.node)
                .is_some_and(|n| n.disk != config.leader.disk)
        {
            return Ok(());
        }
        Err(Error::new(
            "55000",
            format!(
                "the leader of shard {}, node {}, is alive",
                shard.id, config.leader.node
            ),
        )
        .with_detail("it was heard within the grace time")
        .with_hint("use SWITCH LEADER, or stop the node first"))
    }

    async fn await_leader(
        &self,
        shard: &Arc<Shard>,
        operation: Operation,
        led_by: ReplicaId,
        before: Epoch,
        until: Instant,
    ) -> Result<Epoch> {
        let mut refused = shard.operate(operation, until).await?;
        let me = self.id;
        let moved = shard.wait_status(until, move |s| {
            let config = s.config.as_ref().filter(|c| c.epoch > before && c.leader == led_by)?;
            let ready = led_by != me || s.leads.is_some_and(|l| l.ready);
            ready.then_some(config.epoch)
        });
        tokio::select! {
            moved = moved => moved.ok_or_else(|| Error::outcome_unknown(format!("shard {} did not change its leader in time", shard.id))),
            Ok(reason) = &mut refused => {
                Err(Error::new("55000", format!("the leader of shard {} cannot be changed: {reason}", shard.id)))
            }
        }
    }
}

fn describe(shard: &Shard) -> v1::ShardStatus {
    let status = shard.status.borrow();
    let state = match (&status.damage, &status.leads) {
        (Some(_), _) => "offline",
        (None, Some(leads)) if !leads.ready => "recovering",
        _ => status.role,
    };
    let (compactions, compacted_bytes) = shard.compaction.finished();
    v1::ShardStatus {
        shard: Some(v1::ShardRef::new(
            shard.id,
            status.config.as_ref().map_or(Epoch(0), |c| c.epoch),
        )),
        leader: status.leads.is_some(),
        last_index: status.last.0,
        durable_index: status.durable.0,
        commit_index: status.commit.0,
        applied_index: shard.applied.borrow().0,
        prepared: shard.ledger.lock().prepared().len() as u64,
        state: state.to_owned(),
        tables: Vec::new(),
        compactions,
        compacted_bytes,
        compaction: shard.compaction.running(),
    }
}
