//! Damage found on this disk, and the way back: from another in-sync copy, by itself, or not at all and loudly.
//!
//! ```text
//!   log, identity       at the start: DIR/{identity.json, wal, shards} ─▶ DIR/damaged/disk-<id>, begin as a new disk
//!   manifest, ledger    at opening ─┐
//!   segment, staged     when read ──┴▶ resign ─▶ DIR/shards/7-3 ─▶ DIR/damaged/7-3 ─▶ ask the leader for a snapshot
//!   resign              compare-and-swap: another in-sync copy leads if this one did; this one becomes a learner
//! ```
//!
//! Resigning comes first and fences: no change that still counts on this copy can succeed after it. A copy that is the last
//! in sync is never put aside: its shard stays offline here, and only an operator may decide to lose rows. What was put
//! aside is kept for people to look at, the last one of each shard and every disk; nothing reads it. The rule is Kafka's
//! "last replica standing" (KIP-966): a copy that lost what it acknowledged is not a copy.

use super::{ShardNode, open};
use crate::replication::catch_up::INSTALLING;
use crate::storage::wal::{Wal, WalReport};
use crate::storage::{Identity, durable};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use std::path::Path;
use std::sync::Arc;
use tessera_meta::view::ClusterView;
use tessera_meta::{Change, Expect, Op};
use tessera_proto::shard_map::ShardConfig;
use tessera_proto::{Epoch, Error, NodeId, ReplicaId, Result, ShardId, keys};

/// Where damaged files are kept.
const DAMAGED: &str = "damaged";
/// Attempts to resign when others change the configuration at the same time.
const RESIGN_ATTEMPTS: usize = 20;

/// Whether files are not what was written.
fn is_damage(error: &Error) -> bool {
    error.code == "XX001"
}

// ---- the whole disk

/// Opens identity and log. A damaged disk is put aside and begun anew if other copies can bring back what it had. Blocking.
///
/// # Errors
/// XX001 when no other copy could help; 55000, 58030.
pub(super) fn open_disk(
    dir: &Path,
    cluster: &str,
    id: NodeId,
    view: &ClusterView,
) -> Result<(Identity, Wal, WalReport)> {
    let open = || {
        let identity = Identity::load_or_create(dir, cluster, id)?;
        let (wal, report) = Wal::open(&dir.join("wal"), &identity)?;
        if report.shards.is_empty() && has_shards(dir) {
            // With it went the promises that keep an epoch from being led twice.
            wal.close();
            return Err(Error::corrupt(format!(
                "the log of node {id} is gone, its shards are not"
            )));
        }
        Ok((identity, wal, report))
    };
    match open() {
        Err(error) if is_damage(&error) => {
            let (elsewhere, only_here) = copies(view, id);
            if elsewhere.is_empty() && !only_here.is_empty() {
                return Err(error.with_hint(
                    "there is no other copy of this node's shards; put the files back from a backup, or give the rows up by moving the data directory away",
                ));
            }
            tracing::error!(
                %error, node = %id, shards = elsewhere.len(), offline = only_here.len(),
                "this disk is damaged: it is put aside, and its shards are fetched again from their other copies"
            );
            put_disk_aside(dir)?;
            open()
        }
        result => result,
    }
}

fn has_shards(dir: &Path) -> bool {
    std::fs::read_dir(dir.join("shards")).is_ok_and(|mut entries| entries.next().is_some())
}

/// Shards with a copy on this node that have an in-sync copy elsewhere, and those that have not.
fn copies(view: &ClusterView, id: NodeId) -> (Vec<ShardId>, Vec<ShardId>) {
    let here = view
        .shards
        .iter()
        .filter(|(_, e)| e.config.replicas().any(|r| r.node == id));
    let (elsewhere, only_here): (Vec<_>, Vec<_>) =
        here.partition(|(_, e)| e.config.in_sync.iter().any(|r| r.node != id));
    let ids = |entries: Vec<(&ShardId, _)>| entries.into_iter().map(|(shard, _)| *shard).collect();
    (ids(elsewhere), ids(only_here))
}

/// The identity goes first: a start that finds the log without it takes none of the rest for its own.
fn put_disk_aside(dir: &Path) -> Result<()> {
    let aside = dir.join(DAMAGED).join(format!("disk-{}", uuid::Uuid::now_v7()));
    durable::create_dir(&dir.join(DAMAGED))?;
    durable::create_dir(&aside)?;
    for name in ["identity.json", "wal", "shards"] {
        move_to(&dir.join(name), &aside.join(name))?;
        durable::sync_dir(&aside)?;
        durable::sync_dir(dir)?;
    }
    Ok(())
}

fn move_to(from: &Path, to: &Path) -> Result<()> {
    match std::fs::rename(from, to) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(&format!("putting \"{}\" aside", from.display()), &e))
        }
        _ => Ok(()),
    }
}

// ---- one shard

/// Puts a shard's folder aside and leaves an empty one with the mark that makes it ask for a snapshot. Blocking.
fn put_shard_aside(dir: &Path, id: ShardId) -> Result<()> {
    let name = format!("{}-{}", id.group, id.index);
    let (shards, damaged) = (dir.join("shards"), dir.join(DAMAGED));
    let (fresh, aside) = (shards.join(format!("{name}.fresh")), damaged.join(&name));
    durable::create_dir(&damaged)?;
    for old in [&fresh, &aside] {
        match std::fs::remove_dir_all(old) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(&format!("removing \"{}\"", old.display()), &e));
            }
            _ => {}
        }
    }
    durable::create_dir(&fresh)?;
    durable::write_file(&fresh.join(INSTALLING), b"")?;
    move_to(&shards.join(&name), &aside)?;
    move_to(&fresh, &shards.join(&name))?;
    durable::sync_dir(&damaged)?;
    durable::sync_dir(&shards)
}

/// The configuration without `gone`, whose node goes on as the learner `now`; `None` when nobody else is in sync.
fn resigned(config: &ShardConfig, gone: ReplicaId, now: ReplicaId) -> Option<ShardConfig> {
    let mut next = config.clone();
    next.in_sync.retain(|r| *r != gone);
    next.learners.retain(|r| *r != gone && *r != now);
    let heir = *next.in_sync.first()?;
    if next.leader == gone {
        next.leader = heir;
    }
    next.learners.push(now);
    next.epoch = Epoch(config.epoch.0 + 1);
    Some(next)
}

impl ShardNode {
    /// Shards that name an earlier disk of this node: that disk resigns for good, this one begins as a learner.
    ///
    /// # Errors
    /// The meta store's.
    pub(super) async fn replace_old_disks(&self) -> Result<()> {
        let view = self.views.refresh().await?;
        for (id, entry) in &view.shards {
            let old = |r: &ReplicaId| r.node == self.id.node && r.disk != self.id.disk;
            for gone in entry.config.replicas().filter(old) {
                if self.resign(*id, gone).await? {
                    tracing::warn!(shard = %id, %gone, "an earlier disk of this node is replaced");
                    continue;
                }
                let error = Error::corrupt(format!(
                    "shard {id} is offline: its only copy was on an earlier disk of node {}",
                    self.id.node
                ))
                .with_hint(
                    "put that disk back, or ALTER SHARD ... FORCE PROMOTE ACCEPT DATA LOSS if another copy is left",
                );
                tracing::error!(%error, shard = %id, "a shard is offline");
                self.note_offline(*id, &error);
            }
        }
        Ok(())
    }

    /// Takes a copy out of the in-sync set and out of leadership. False when no other copy is in sync: nothing changed.
    async fn resign(&self, shard: ShardId, gone: ReplicaId) -> Result<bool> {
        for _ in 0..RESIGN_ATTEMPTS {
            let view = self.views.refresh().await?;
            let Some(entry) = view
                .shards
                .get(&shard)
                .filter(|e| e.config.replicas().any(|r| r == gone))
            else {
                return Ok(true);
            };
            let Some(next) = resigned(&entry.config, gone, self.id) else {
                return Ok(false);
            };
            let op = Op {
                key: keys::shard(shard),
                expect: Expect::Revision(entry.revision),
                change: Change::Put(serde_json::to_vec(&next).map_err(|e| Error::internal(e.to_string()))?),
            };
            if self.views.store().cas(vec![op]).await?.applied {
                self.views.refresh().await?;
                return Ok(true);
            }
        }
        Err(Error::unavailable(format!(
            "the configuration of shard {shard} keeps changing"
        )))
    }

    /// Makes way for a fresh copy of a damaged shard that is not open.
    ///
    /// # Errors
    /// `damage` when there is no other copy to fetch it from; the meta store's; 53100.
    pub(super) async fn begin_anew(&self, shard: ShardId, damage: Error) -> Result<()> {
        if !self.resign(shard, self.id).await? {
            return Err(damage.with_detail("no other copy is in sync, so this shard stays offline"));
        }
        tracing::error!(error = %damage, %shard, "this copy is damaged: it is put aside and fetched again from another one");
        let dir = self.dir.clone();
        let aside = tokio::task::spawn_blocking(move || put_shard_aside(&dir, shard));
        aside
            .await
            .map_err(|e| Error::internal(format!("putting a shard aside: {e}")))?
    }

    /// Notes damage that a request met; files of the shards are checked in the background, and damaged copies rebuilt.
    pub(super) fn watch<T>(&self, shards: &[ShardId], result: Result<T>) -> Result<T> {
        if let Some(error) = result.as_ref().err().filter(|e| is_damage(e)) {
            self.suspect(shards, error);
        }
        result
    }

    /// [`Self::watch`] for rows still to come.
    pub(super) fn watch_rows(
        &self,
        shards: Vec<ShardId>,
        rows: SendableRecordBatchStream,
    ) -> SendableRecordBatchStream {
        let (schema, node) = (rows.schema(), self.myself.clone());
        let watched = rows.inspect(move |item| {
            if let (Err(error), Some(node)) = (item, node.upgrade()) {
                let mut cause = Some(error as &(dyn std::error::Error + 'static));
                while let Some(error) = cause {
                    if let Some(error) = error.downcast_ref::<Error>().filter(|e| is_damage(e)) {
                        return node.suspect(&shards, error);
                    }
                    cause = error.source();
                }
            }
        });
        Box::pin(RecordBatchStreamAdapter::new(schema, watched))
    }

    /// Checks the files of these shards in the background, each once at a time.
    pub(super) fn suspect(&self, shards: &[ShardId], error: &Error) {
        let Some(node) = self.myself.upgrade() else { return };
        for shard in shards.iter().copied().filter(|s| self.shard(*s).is_some()) {
            if !self.suspects.lock().insert(shard) {
                continue;
            }
            tracing::warn!(%error, %shard, "damage was met; the files of this copy are checked");
            let checker = node.clone();
            self.track(async move {
                if let Err(error) = checker.check(shard).await {
                    tracing::error!(%error, %shard, "a damaged copy is not repaired for now");
                }
                checker.suspects.lock().remove(&shard);
            });
        }
    }

    async fn check(self: &Arc<Self>, id: ShardId) -> Result<()> {
        let Some(shard) = self.shard(id) else { return Ok(()) };
        let found = shard.status.borrow().damage.clone().filter(is_damage);
        let damage = match found {
            Some(damage) => damage,
            None => {
                let store = shard.store.clone();
                let checked = tokio::task::spawn_blocking(move || store.check());
                match checked
                    .await
                    .map_err(|e| Error::internal(format!("checking files: {e}")))?
                {
                    Err(error) if is_damage(&error) => error,
                    other => return other,
                }
            }
        };
        drop(shard);
        self.rebuild(id, damage).await
    }

    /// Closes a shard, puts it aside, and opens it to be fetched again.
    async fn rebuild(self: &Arc<Self>, id: ShardId, damage: Error) -> Result<()> {
        let _alone = self.opening.write().await;
        let view = self.views.refresh().await?;
        let other = |e: &tessera_meta::view::ShardEntry| e.config.in_sync.iter().any(|r| *r != self.id);
        if !view.shards.get(&id).is_some_and(other) {
            return Err(damage.with_detail("no other copy is in sync; what can be read is served"));
        }
        self.close_shard(id).await;
        let begun = self.begin_anew(id, damage).await;
        let dir = self.dir.join("shards");
        let opened = open::open(&dir, id, self.id, &self.identity, &self.cache, &self.wal).await?;
        self.host(id, opened);
        begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn replica(node: u32, disk: u128) -> ReplicaId {
        ReplicaId {
            node: NodeId(node),
            disk: Uuid::from_u128(disk),
        }
    }

    #[test]
    fn the_last_in_sync_copy_does_not_resign() {
        let (a, b, new) = (replica(1, 1), replica(2, 2), replica(1, 9));
        let config = |in_sync: &[ReplicaId], learners: &[ReplicaId]| ShardConfig {
            epoch: Epoch(4),
            leader: in_sync[0],
            in_sync: in_sync.to_vec(),
            learners: learners.to_vec(),
        };
        assert_eq!(resigned(&config(&[a], &[b]), a, new), None);
        let next = resigned(&config(&[a, b], &[]), a, new).unwrap();
        assert_eq!((next.epoch, next.leader), (Epoch(5), b));
        assert_eq!((next.in_sync, next.learners), (vec![b], vec![new]));
        let next = resigned(&config(&[b], &[a]), a, a).unwrap();
        assert_eq!((next.in_sync, next.learners, next.epoch), (vec![b], vec![a], Epoch(5)));
    }

    #[test]
    fn a_shard_put_aside_leaves_one_that_wants_a_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let id = ShardId {
            group: tessera_proto::GroupId(7),
            index: 3,
        };
        for round in ["one", "two"] {
            let shard = dir.path().join("shards").join("7-3");
            std::fs::create_dir_all(&shard).unwrap();
            std::fs::write(shard.join(round), b"").unwrap();
            put_shard_aside(dir.path(), id).unwrap();
            let names = |dir: &Path| -> Vec<String> {
                let entries = std::fs::read_dir(dir).unwrap();
                entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
            };
            assert_eq!(names(&shard), [INSTALLING]);
            assert!(names(&dir.path().join("damaged/7-3")).contains(&round.to_string()));
        }
    }
}
