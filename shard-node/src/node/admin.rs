//! What operators see and do: status of the shards here, and moves of leadership.

use super::shard::{Shard, Status};
use super::{ShardNode, checks};
use crate::replication::message::Operation;
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::shard_map::ShardConfig;
use tessera_proto::v1::change_leader_request::Action;
use tessera_proto::{Epoch, Error, ReplicaId, Result, Timestamp, v1};
use tokio::time::Instant;

/// Longest wait for a shard's configuration on a node that just started.
const CONFIG_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a report waits for commits under way, for all shards together; it must not make a node look dead.
const SETTLE_WAIT: Duration = Duration::from_secs(1);
/// Bytes of common values in one report, a quarter of the largest message: thousands of shards of tables have more, and
/// those that come last then go without.
const COMMON_BYTES_MAX: usize = 16 << 20;

impl ShardNode {
    /// See `ShardService::status`.
    pub(super) async fn report(self: &Arc<Self>, request: v1::StatusRequest) -> Result<v1::StatusReply> {
        let (mut shards, mut common_bytes) = (Vec::new(), COMMON_BYTES_MAX);
        let until = Instant::now() + SETTLE_WAIT;
        for shard in self.shards() {
            if request.snapshot != 0 && shard.status.borrow().leads.is_some() {
                let settled = self.settle(&shard, Timestamp(request.snapshot), until).await;
                if let Err(error) = settled {
                    tracing::debug!(shard = %shard.id, %error, "statistics without the newest commits");
                }
            }
            let mut status = describe(&shard);
            if request.statistics {
                status.tables = self.statistics(&shard).await?;
                cap_common_values(&mut status.tables, &mut common_bytes);
            }
            shards.push(status);
        }
        Ok(v1::StatusReply {
            node: self.id.node.0,
            shards,
            memory_bytes: self.query_memory_reserved(),
            disk_free_bytes: fs2::available_space(&self.dir).unwrap_or(0),
            query_tasks: self.query_tasks() as u64,
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

/// Takes out common values that do not fit what is left for them.
fn cap_common_values(tables: &mut [v1::TableStatistics], left: &mut usize) {
    for column in tables.iter_mut().flat_map(|t| &mut t.columns) {
        let bytes = column.common.as_ref().map_or(0, prost::Message::encoded_len);
        match left.checked_sub(bytes) {
            Some(rest) => *left = rest,
            None => column.common = None,
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_so_many_bytes_of_common_values() {
        let column = v1::ColumnStatistics {
            common: Some(v1::CommonValues {
                rows: 100,
                ..Default::default()
            }),
            ..Default::default()
        };
        let table = v1::TableStatistics {
            columns: vec![column; 3],
            ..Default::default()
        };
        let (mut tables, mut left) = (vec![table], 5);
        cap_common_values(&mut tables, &mut left);
        let kept: Vec<bool> = tables[0].columns.iter().map(|c| c.common.is_some()).collect();
        assert_eq!((kept, left), (vec![true, true, false], 1));
    }
}
