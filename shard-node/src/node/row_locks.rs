//! Rows that an open transaction locks without changing them: SELECT ... FOR UPDATE and its weaker kin.
//!
//! ```text
//!   Lock(keys, read_at)   WAIT  in line until all are locked                 a row changed since it was read: Restart, locks stay
//!                         TRY   all or none, at once                         the same
//!                         SKIP  those that are free and did not change       the others are named in the answer
//! ```
//!
//! A row that is left out because it changed had a lock on it at some moment after `read_at`, which is as if that moment were now.
//! In memory, as all locks: they end with the transaction or the leadership.

use super::open_txn::lost;
use super::shard::Shard;
use super::waiting::{Patience, may_lock, too_many};
use super::{ShardNode, checks, writes};
use crate::storage::OwnRows;
use crate::txn::locks::{Asker, Key, Mode, Wanted};
use datafusion::arrow::array::ArrayRef;
use std::collections::HashSet;
use std::sync::Arc;
use tessera_meta::view::ClusterView;
use tessera_proto::table::TableDef;
use tessera_proto::token::canonical_keys;
use tessera_proto::v1::lock_request::Wait;
use tessera_proto::{Error, GroupId, Result, TableId, Timestamp, TxnId, ipc, v1};

/// Tables in one request.
const TABLES_MAX: usize = 1_024;

/// Rows of one table, as they came and as locks.
struct Rows {
    table: Arc<TableDef>,
    mode: Mode,
    columns: Vec<ArrayRef>,
    keys: Vec<Box<[u8]>>,
}

impl Rows {
    fn wanted(&self) -> Wanted {
        Wanted::rows(self.table.id, self.mode, self.keys.clone())
    }
}

impl ShardNode {
    /// See `ShardService::lock`.
    pub(super) async fn lock_rows(self: &Arc<Self>, request: v1::LockRequest) -> Result<v1::LockReply> {
        let patience = Patience::of(request.deadline_ms, request.lock_timeout_ms)?;
        let until = patience.work();
        let asker = Asker {
            txn: TxnId::from_wire(&request.txn)?,
            sequence: request.sequence,
        };
        let (wait, read_at) = (request.wait(), Timestamp(request.read_at));
        let own = request.shard.is_some_and(|s| s.own);
        let shard = self.leading(request.shard, until).await?;
        let view = self.catalog(request.meta_revision, until).await?;
        let group = shard.id.group;
        let rows = blocking(move || decode(&view, group, &request.locks)).await?;
        let request_of_it = self.begin_open(&shard, asker.txn, own)?;
        begin_statement(&shard, asker)?;
        let mut reply = v1::LockReply::default();
        let mut left_out = vec![v1::lock_reply::LeftOut::default(); rows.len()];
        let wanted = || rows.iter().map(Rows::wanted).collect();
        let term = match wait {
            Wait::Wait => self.wait_for_locks(&shard, asker, wanted(), &patience).await?,
            Wait::Try => {
                let mut participant = shard.participant.lock();
                let term = may_lock(&shard, &participant, asker.txn)?;
                let blocked = participant.locks_mut().try_acquire(asker, wanted());
                reply.blocked = blocked.map_err(|refused| too_many(refused, &shard))?.map_or(0, |t| t.0);
                term
            }
            Wait::Skip => {
                let mut participant = shard.participant.lock();
                let term = may_lock(&shard, &participant, asker.txn)?;
                for (rows, left_out) in rows.iter().zip(&mut left_out) {
                    let free = participant.locks_mut().acquire_free(asker, rows.wanted());
                    let free = free.map_err(|refused| too_many(refused, &shard))?;
                    left_out.keys = (0..).zip(free).filter(|(_, free)| !free).map(|(position, _)| position).collect();
                }
                term
            }
        };
        if reply.blocked != 0 {
            return Ok(reply);
        }
        let own_rows = self.still_open(&shard, asker.txn, term)?;
        let here = shard.clone();
        let (rows, changed) = blocking(move || {
            let changed = rows.iter().map(|rows| changed(&here, &own_rows, rows, read_at));
            let changed = changed.collect::<Result<Vec<_>>>()?;
            Ok((rows, changed))
        })
        .await?;
        self.still_open(&shard, asker.txn, term)?;
        shard.participant.lock().account(asker.txn)?;
        for ((rows, left_out), mut changed) in rows.iter().zip(&mut left_out).zip(changed) {
            changed.retain(|position| left_out.keys.binary_search(position).is_err());
            if changed.is_empty() {
                continue;
            }
            if wait != Wait::Skip {
                return Err(Error::changed("could not serialize access due to concurrent update")
                    .with_detail(format!("a row of table \"{}\" changed since it was read", rows.table.name)));
            }
            let keys: HashSet<Key> = changed.iter().map(|position| Some(rows.keys[*position as usize].clone())).collect();
            let goes = |sequence, table, key: &Key| {
                sequence == asker.sequence && table == rows.table.id && keys.contains(key)
            };
            shard.participant.lock().give_back(asker.txn, goes);
            left_out.changed = changed;
        }
        if wait == Wait::Skip {
            reply.left_out = left_out;
        }
        drop(request_of_it);
        Ok(reply)
    }

    /// What the transaction wrote, if it is open still, in the leadership that its locks belong to.
    fn still_open(&self, shard: &Shard, txn: TxnId, term: u64) -> Result<Arc<OwnRows>> {
        match shard.participant.lock().opened(txn) {
            Some(open) if open.term == term => Ok(open.rows.clone()),
            _ => Err(lost(shard, txn)),
        }
    }
}

/// # Errors
/// 57014 for a statement that was taken back before this request came.
fn begin_statement(shard: &Shard, asker: Asker) -> Result<()> {
    let mut participant = shard.participant.lock();
    let Some(open) = participant.opened(asker.txn) else {
        return Err(lost(shard, asker.txn));
    };
    if asker.sequence <= open.undone {
        return Err(Error::cancelled("the statement was taken back"));
    }
    open.sequence = open.sequence.max(asker.sequence);
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::internal(format!("looking at rows to lock: {e}")))?
}

/// Rows of a request, checked against the catalog. Blocking.
fn decode(view: &ClusterView, group: GroupId, locks: &[v1::RowLocks]) -> Result<Vec<Rows>> {
    let bytes: usize = locks.iter().map(|locks| locks.keys.len()).sum();
    if bytes > ipc::INLINE_BYTES_MAX || locks.len() > TABLES_MAX {
        return Err(Error::new("54000", "a statement locks too many rows").with_hint("lock fewer rows at a time"));
    }
    let one = |locks: &v1::RowLocks| {
        let id = TableId(locks.table);
        let table = view.tables.get(&id);
        let table = table.filter(|table| table.version == locks.schema_version && table.group == group);
        let table = table.ok_or_else(|| Error::stale_map(format!("table {id} changed or was dropped")))?;
        let key = table
            .arrow_schema()
            .project(&table.row_key())
            .map_err(|e| Error::internal(format!("row key of table \"{}\": {e}", table.name)))?;
        let rows = writes::rows(&locks.keys, table, &Arc::new(key))?;
        let columns = rows.map_or_else(Vec::new, |rows| rows.columns().to_vec());
        Ok(Rows {
            table: table.clone(),
            mode: mode(locks.mode()),
            keys: canonical_keys(&columns)?,
            columns,
        })
    };
    locks.iter().map(one).collect()
}

fn mode(mode: v1::RowLockMode) -> Mode {
    match mode {
        v1::RowLockMode::KeyShare => Mode::KeyShare,
        v1::RowLockMode::Share => Mode::Share,
        v1::RowLockMode::NoKeyUpdate => Mode::NoKeyUpdate,
        v1::RowLockMode::Update => Mode::Update,
    }
}

/// Positions of rows that are not as they were read, and not the transaction's own. Blocking.
fn changed(shard: &Shard, own: &OwnRows, rows: &Rows, read_at: Timestamp) -> Result<Vec<u32>> {
    if rows.keys.is_empty() {
        return Ok(vec![]);
    }
    if !own.staged(rows.table.id).is_empty() {
        return Err(Error::unsupported(
            format!(
                "table \"{}\" cannot get many rows at once and have rows locked in one transaction",
                rows.table.name
            ),
            "COMMIT between the two",
        ));
    }
    let changed = shard.store.changed_since(&rows.table, &rows.columns, read_at)?.into_iter();
    let others = changed.filter(|position| !own.is_own(rows.table.id, &rows.keys[*position]));
    Ok(others.map(|position| position as u32).collect())
}
