//! Rows of one table by their primary keys, over all shards, as they are at a snapshot.
//!
//! ```text
//!   keys 7 2 9 4 ──split.rs──▶ shard 0: 2 9    shard 3: 7 4 ──▶ one read by key each, 4,096 keys at most ──▶ rows, in no order
//! ```
//!
//! A transaction sees what it changed itself. Shards that moved are asked again, as by any read.

use super::change_writer::Held;
use super::split;
use crate::cluster::catalog::StatementCatalog;
use crate::execute::point::Wanted;
use crate::session::StatementContext;
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::SchemaRef;
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;
use tessera_meta::view::Retries;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result, ShardId, Timestamp};

/// Keys of one read: with rows of 16 KiB the answer is as long as a message may be.
const KEYS_AT_ONCE: usize = 4_096;
/// Reads under way at a time.
const READS_AT_ONCE: usize = 16;

/// The rows with these primary keys that are there at `snapshot`, as one batch of the table's columns `projection`. `keys` has the
/// primary key columns in key order, no key twice.
///
/// # Errors
/// The shards'; 54000 when the rows are too many.
pub(super) async fn rows(
    context: &StatementContext,
    table: &TableDef,
    keys: &RecordBatch,
    projection: &[usize],
    snapshot: Timestamp,
) -> Result<RecordBatch> {
    let schema = table.arrow_schema().project(projection);
    let schema = Arc::new(schema.map_err(|e| Error::internal(format!("columns of table \"{}\": {e}", table.name)))?);
    let mut retries = Retries::default();
    loop {
        let catalog = StatementCatalog::new(context);
        let attempt = read(context, &catalog, table, keys, projection, snapshot, &schema);
        match context.bounded(attempt).await {
            Err(error) => {
                let again = retries.after(error, context.engine.views(), catalog.view().revision);
                context.bounded(again).await?;
            }
            Ok(found) => {
                return concat_batches(&schema, &found).map_err(|e| Error::internal(format!("joining rows: {e}")));
            }
        }
    }
}

async fn read(
    context: &StatementContext,
    catalog: &StatementCatalog,
    table: &TableDef,
    keys: &RecordBatch,
    projection: &[usize],
    snapshot: Timestamp,
    schema: &SchemaRef,
) -> Result<Vec<RecordBatch>> {
    let unknown = || Error::stale_map(format!("the group of table \"{}\" is unknown", table.name));
    let group = catalog.view().groups.get(&table.group).ok_or_else(unknown)?;
    let projection: Vec<u32> = projection.iter().map(|column| *column as u32).collect();
    let in_key = |column: &usize| -> Result<ArrayRef> {
        let position = table.primary_key.iter().position(|key| key == column);
        let position = position.ok_or_else(|| Error::internal("shard key outside the primary key"))?;
        Ok(keys.column(position).clone())
    };
    let shard_keys = table.shard_key().iter().map(in_key).collect::<Result<Vec<_>>>()?;
    let parts = split::by_key(group, &shard_keys, keys.clone())?;
    let wanted = parts.into_iter().flat_map(|(index, keys)| {
        let shard = ShardId { group: group.id, index };
        let slices = (0..keys.num_rows()).step_by(KEYS_AT_ONCE);
        slices.map(move |from| (shard, keys.slice(from, KEYS_AT_ONCE.min(keys.num_rows() - from))))
    });
    let reads = wanted.map(|(shard, keys)| {
        let wanted = Wanted {
            table,
            shard,
            keys,
            projection: &projection,
        };
        wanted.read(context, catalog, snapshot, schema)
    });
    let reads: Vec<_> = reads.collect();
    let (mut held, mut found) = (Held::default(), vec![]);
    let mut reads = futures::stream::iter(reads).buffer_unordered(READS_AT_ONCE);
    while let Some(rows) = reads.try_next().await? {
        for batch in rows {
            held.add(&batch)?;
            found.push(batch);
        }
    }
    Ok(found)
}
