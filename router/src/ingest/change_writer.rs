//! Collects what one UPDATE or DELETE does to its rows, shard by shard, and commits it as one transaction.
//!
//! ```text
//!   row k=7, shard 2      removed[2] ← key 7      added[2] ← the new row
//!   its shard key changes removed[2] ← key 7      added[5] ← the new row           one transaction over both
//!   commit                shards refuse it all if one of the rows changed after `read_at`
//! ```
//!
//! All of it is held in memory and travels inside the transaction, at most [`HELD_BYTES_MAX`]; staging is for rows that are added
//! only.

use super::split;
use super::writer::{COMMIT_MAX, ipc_size};
use crate::session::StatementContext;
use crate::txn::driver::{self, Basis, ShardWrites, Transaction};
use crate::txn::open::Limits;
use bytes::Bytes;
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::SchemaRef;
use std::collections::BTreeMap;
use std::sync::Arc;
use tessera_meta::view::ClusterView;
use tessera_proto::ipc::INLINE_BYTES_MAX;
use tessera_proto::table::{ColocationGroup, TableDef};
use tessera_proto::{Error, Result, ShardId, TxnId, ipc, v1};
use tokio::time::Instant;

/// Rows and keys that one statement holds until it commits. What one shard gets of it fits a log entry, which is checked again.
const HELD_BYTES_MAX: usize = INLINE_BYTES_MAX;

/// What a statement holds in memory until it commits.
#[derive(Debug, Default)]
pub(super) struct Held(usize);

impl Held {
    /// Counts a batch.
    ///
    /// # Errors
    /// 54000 when it is too much.
    pub(super) fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        self.add_bytes(ipc_size(batch))
    }

    /// Counts bytes.
    ///
    /// # Errors
    /// 54000 when it is too much.
    pub(super) fn add_bytes(&mut self, bytes: usize) -> Result<()> {
        self.0 += bytes;
        match self.0 <= HELD_BYTES_MAX {
            true => Ok(()),
            false => Err(too_much()),
        }
    }
}

fn too_much() -> Error {
    let limit = format!("the limit is {} MiB for one statement", HELD_BYTES_MAX >> 20);
    Error::new("54000", "the statement changes or returns too many rows")
        .with_detail(limit)
        .with_hint("change fewer rows at a time, by a condition on the primary key for instance")
}

/// One shard's part.
#[derive(Debug, Default)]
struct Part {
    removed: Vec<RecordBatch>,
    added: Vec<RecordBatch>,
}

/// See the module's text. Dropping it drops everything.
#[derive(Debug)]
pub(super) struct ChangeWriter {
    table: Arc<TableDef>,
    group: Arc<ColocationGroup>,
    meta_revision: u64,
    basis: Basis,
    /// What is held, by the caller too.
    pub(super) held: Held,
    key_schema: SchemaRef,
    schema: SchemaRef,
    parts: BTreeMap<u32, Part>,
}

impl ChangeWriter {
    /// A writer of a statement that saw `table` as `basis` says.
    ///
    /// # Errors
    /// 42P01 when the table is gone.
    pub(super) fn new(view: &ClusterView, table: Arc<TableDef>, basis: Basis) -> Result<Self> {
        let dropped = || Error::new("42P01", format!("table \"{}\" was dropped", table.name));
        let group = view.groups.get(&table.group).ok_or_else(dropped)?.clone();
        let schema = table.arrow_schema();
        let key_schema = schema
            .project(&table.row_key())
            .map_err(|e| Error::internal(format!("row key of table \"{}\": {e}", table.name)))?;
        Ok(Self {
            group,
            meta_revision: view.revision,
            basis,
            held: Held::default(),
            key_schema: Arc::new(key_schema),
            schema,
            parts: BTreeMap::new(),
            table,
        })
    }

    /// Removes rows: their row keys, and the shard keys that tell where they are.
    ///
    /// # Errors
    /// 54000 when the statement holds too much.
    pub(super) fn remove(&mut self, row_keys: Vec<ArrayRef>, shard_keys: &[ArrayRef]) -> Result<()> {
        let keys = RecordBatch::try_new(self.key_schema.clone(), row_keys)
            .map_err(|e| Error::internal(format!("row keys of table \"{}\": {e}", self.table.name)))?;
        self.held.add(&keys)?;
        for (index, part) in split::by_key(&self.group, shard_keys, keys)? {
            self.parts.entry(index).or_default().removed.push(part);
        }
        Ok(())
    }

    /// Adds rows of all of the table's columns.
    ///
    /// # Errors
    /// 54000 when the statement holds too much.
    pub(super) fn add(&mut self, rows: RecordBatch) -> Result<()> {
        self.held.add(&rows)?;
        for (index, part) in split::split(&self.table, &self.group, rows)? {
            self.parts.entry(index).or_default().added.push(part);
        }
        Ok(())
    }

    /// Commits: everything is durable and visible on return. In a transaction of several statements it is handed over to the shards,
    /// and visible to that transaction.
    ///
    /// # Errors
    /// `Retry::Restart` when what the statement saw changed since, 23505 and whatever else a shard refuses with: then nothing
    /// happened. 40003: nobody knows.
    pub(super) async fn commit(self, context: &StatementContext) -> Result<()> {
        let parts = self.parts.iter();
        let shards = parts
            .map(|(index, part)| self.writes(*index, part))
            .collect::<Result<Vec<_>>>()?;
        commit(context, self.meta_revision, self.basis, shards).await
    }

    fn writes(&self, index: u32, part: &Part) -> Result<ShardWrites> {
        let removed = encode(&self.key_schema, &part.removed)?;
        let added = encode(&self.schema, &part.added)?;
        if removed.len() + added.len() > INLINE_BYTES_MAX {
            return Err(too_much());
        }
        let write = v1::TableWrite {
            table: self.table.id.0,
            schema_version: self.table.version,
            payload: Some(added)
                .filter(|rows| !rows.is_empty())
                .map(v1::table_write::Payload::Rows),
            removed,
            truncated: false,
        };
        Ok(ShardWrites {
            shard: ShardId {
                group: self.group.id,
                index,
            },
            writes: vec![write],
        })
    }
}

/// Commits what a statement does in some shards, ascending; see [`ChangeWriter::commit`].
///
/// # Errors
/// Those of [`ChangeWriter::commit`].
pub(super) async fn commit(
    context: &StatementContext,
    meta_revision: u64,
    basis: Basis,
    mut shards: Vec<ShardWrites>,
) -> Result<()> {
    if shards.is_empty() {
        return Ok(());
    }
    if let Some(transaction) = &context.transaction {
        let limits = Limits::of(context);
        return transaction.write(shards, meta_revision, basis, &limits).await;
    }
    // Home is the last of the ascending shards.
    shards.rotate_right(1);
    let transaction = Transaction {
        id: TxnId::generate(),
        meta_revision,
        basis,
        open: false,
        shards,
        deadline: context.deadline.min(Instant::now() + COMMIT_MAX),
    };
    driver::commit(&context.engine, transaction).await.map(drop)
}

/// As one batch, because many small ones cost more than their rows; empty where there are none.
fn encode(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Bytes> {
    if batches.is_empty() {
        return Ok(Bytes::new());
    }
    let whole = concat_batches(schema, batches).map_err(|e| Error::internal(format!("joining rows: {e}")))?;
    ipc::encode(schema, &[whole])
}
