//! What every request must pass: deadline, epoch and leadership, catalog, free disk, and rows that belong here.

use super::ShardNode;
use super::shard::{Shard, Status};
use super::writes::decode;
use crate::storage::Write;
use crate::txn::entry;
use datafusion::arrow::array::RecordBatch;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tessera_meta::view::ClusterView;
use tessera_proto::table::TableDef;
use tessera_proto::token::{canonical_keys, tokens};
use tessera_proto::{Epoch, Error, Result, ShardId, TableId, TxnId, v1};
use tokio::time::Instant;

/// Longest wait for news that a request has and this node does not: a newer epoch, a leader that is getting ready.
const NEWS_TIMEOUT: Duration = Duration::from_secs(2);
/// Disk that stays free of writes, so that seals, manifests and the log's own files still fit.
const DISK_RESERVE_BYTES: u64 = 16 << 20;

/// End of a request's time.
///
/// # Errors
/// 08P01 without a deadline.
pub fn until(deadline_ms: u64) -> Result<Instant> {
    Ok(Instant::now() + tessera_proto::service::deadline(deadline_ms)?)
}

/// What a status says about a request at an epoch; `None` = not decided yet.
fn judge(status: &Status, shard: ShardId, epoch: Epoch) -> Option<Result<()>> {
    if let Some(damage) = &status.damage {
        return Some(Err(
            Error::corrupt(format!("shard {shard} is offline on this node")).with_detail(damage.message.clone())
        ));
    }
    let known = status.config.as_ref().map_or(Epoch(0), |c| c.epoch);
    if known < epoch {
        return None;
    }
    if known > epoch {
        return Some(Err(Error::stale_map(format!(
            "shard {shard} is at epoch {known}, the request at {epoch}"
        ))));
    }
    match &status.leads {
        Some(leads) if leads.epoch == epoch => (leads.ready && !status.paused).then_some(Ok(())),
        // Named leader, but not there yet.
        _ if matches!(status.role, "recovering" | "starting") => None,
        _ => Some(Err(Error::stale_map(format!("shard {shard} is not led by this node")))),
    }
}

impl ShardNode {
    /// The shard, if this node leads it in exactly that epoch; waits briefly for what it may not know yet.
    ///
    /// # Errors
    /// TS001: nothing happened, refresh the map. XX001: the copy is damaged.
    pub(super) async fn leading(&self, reference: Option<v1::ShardRef>, until: Instant) -> Result<Arc<Shard>> {
        let reference = reference.ok_or_else(|| Error::protocol("request names no shard"))?;
        let (id, epoch) = (reference.id(), Epoch(reference.epoch));
        let shard = self.shard_soon(id, until).await?;
        let soon = (Instant::now() + NEWS_TIMEOUT).min(until);
        match shard.wait_status(soon, |s| judge(s, id, epoch)).await {
            Some(verdict) => verdict.map(|()| shard),
            None => Err(Error::stale_map(format!(
                "shard {id} does not serve epoch {epoch} on this node"
            ))),
        }
    }

    /// A shard of this node; waits briefly, because it may just be created.
    pub(super) async fn shard_soon(&self, id: ShardId, until: Instant) -> Result<Arc<Shard>> {
        let soon = (Instant::now() + NEWS_TIMEOUT).min(until);
        let mut opened = self.opened.subscribe();
        loop {
            opened.borrow_and_update();
            if let Some(shard) = self.shard(id) {
                return Ok(shard);
            }
            if let Some(error) = self.offline_error(id) {
                return Err(error);
            }
            if !matches!(tokio::time::timeout_at(soon, opened.changed()).await, Ok(Ok(()))) {
                return Err(Error::stale_map(format!("shard {id} is not on this node")));
            }
        }
    }

    /// The shard and its present epoch, for this node's own requests.
    pub(super) fn reference(&self, shard: ShardId) -> v1::ShardRef {
        let epoch = self.shard(shard).and_then(|s| s.status.borrow().leads.map(|l| l.epoch));
        v1::ShardRef::new(shard, epoch.unwrap_or_default())
    }

    /// A catalog at least this new.
    ///
    /// # Errors
    /// Retryable: the meta store cannot be reached.
    pub(super) async fn catalog(&self, revision: u64, until: Instant) -> Result<Arc<ClusterView>> {
        self.views
            .at_least(revision, until.saturating_duration_since(Instant::now()))
            .await
    }

    /// The newest definition of a table; rows here came under a catalog at most as new as this answer's.
    pub(super) fn definition(&self, table: TableId) -> Option<Arc<TableDef>> {
        self.views.current().tables.get(&table).cloned()
    }

    /// The definition of a table.
    ///
    /// # Errors
    /// TS001 when it is gone or has another version: plan again.
    pub async fn table(
        &self,
        table: TableId,
        version: u64,
        meta_revision: u64,
        until: Instant,
    ) -> Result<Arc<TableDef>> {
        let view = self.catalog(meta_revision, until).await?;
        let def = view.tables.get(&table).filter(|d| version == 0 || d.version == version);
        def.cloned()
            .ok_or_else(|| Error::stale_map(format!("table {table} changed or was dropped")))
    }

    /// Refuses writes before the disk is full, so that what is under way can end.
    ///
    /// # Errors
    /// 53100.
    pub(super) fn check_disk(&self, bytes: usize) -> Result<()> {
        let free = fs2::available_space(&self.dir).map_err(|e| Error::io("asking for free disk space", &e))?;
        if free < DISK_RESERVE_BYTES + 2 * bytes as u64 {
            return Err(Error::disk_full(format!(
                "node {} has {free} bytes of disk left",
                self.id.node
            )));
        }
        Ok(())
    }

    /// Staged files that writes name must be here, and staged for this very transaction. Blocking.
    pub(super) fn check_staged(&self, shard: &Shard, txn: TxnId, writes: &[Write]) -> Result<()> {
        for write in writes {
            let Write::Staged { segments, .. } = write else {
                continue;
            };
            if !segments
                .iter()
                .all(|s| self.staged.has(shard.id, txn, &s.file) && shard.store.has_segment(&s.file))
            {
                return Err(
                    Error::new("40001", format!("rows staged for transaction {txn} are gone"))
                        .with_detail(format!("shard {} moved or restarted since", shard.id))
                        .with_hint("run the statement again"),
                );
            }
        }
        Ok(())
    }
}

/// Writes of a request, checked against the catalog and against the shard's token range. Blocking.
///
/// # Errors
/// TS001 when a table changed; XX000 when a row belongs elsewhere (the router computed another shard); 08P01.
pub fn decode_request(view: &ClusterView, shard: ShardId, writes: &[v1::TableWrite]) -> Result<Vec<Write>> {
    let mut out = Vec::with_capacity(writes.len());
    for write in writes {
        let table = TableId(write.table);
        let def = view
            .tables
            .get(&table)
            .filter(|d| d.version == write.schema_version && d.group == shard.group);
        let def = def
            .ok_or_else(|| Error::stale_map(format!("table {table} changed or was dropped")))?
            .clone();
        for decoded in decode(write, def)? {
            match &decoded {
                Write::Removed { keys, table } if has_duplicates(keys)? => {
                    let message = format!("a row of table \"{}\" is removed twice", table.name);
                    return Err(Error::protocol(message));
                }
                // The key of a row that goes need not say where it lives; elsewhere it is not found.
                Write::Truncated { .. } | Write::Removed { .. } | Write::Staged { .. } => {}
                Write::Rows { table, batch } => check_home(view, shard, table, batch)?,
            }
            out.push(decoded);
        }
    }
    entry::segments(writes).iter().try_for_each(|s| {
        if s.checksum.len() == 16 {
            Ok(())
        } else {
            Err(Error::protocol("segment without checksum"))
        }
    })?;
    Ok(out)
}

fn has_duplicates(keys: &RecordBatch) -> Result<bool> {
    let mut seen = HashSet::with_capacity(keys.num_rows());
    Ok(canonical_keys(keys.columns())?.into_iter().any(|key| !seen.insert(key)))
}

/// Every row's token lies in the shard's range.
///
/// # Errors
/// XX000.
pub fn check_home(view: &ClusterView, shard: ShardId, table: &TableDef, batch: &RecordBatch) -> Result<()> {
    let group = view
        .groups
        .get(&shard.group)
        .ok_or_else(|| Error::stale_map(format!("colocation group {} is gone", shard.group)))?;
    let key: Vec<_> = table.shard_key().iter().map(|c| batch.column(*c).clone()).collect();
    if key.is_empty() || group.ranges.len() < 2 {
        return Ok(());
    }
    match tokens(&key)?.into_iter().find(|t| group.shard_of(*t) != shard.index) {
        None => Ok(()),
        Some(token) => Err(Error::internal(format!(
            "a row of table \"{}\" with token {token} was sent to shard {shard}",
            table.name
        ))),
    }
}
