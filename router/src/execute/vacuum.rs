//! VACUUM: every copy of every shard of a table takes dead rows out of its files and merges small ones, now.
//!
//! ```text
//!   VACUUM t     shard 0: node 1, node 2     each compacts by itself, one thing at a time      tessera.compactions shows how far
//!                shard 1: node 2, node 3
//! ```
//!
//! It waits until all have ended. Rows that went within the retention stay, because older snapshots may be read. A copy that is
//! not there compacts by itself once it is back: a warning says so. Cancelling it ends the compactions.

use super::analyze;
use crate::cluster::catalog::StatementCatalog;
use crate::ingest::insert::find_table;
use crate::outcome::Outcome;
use crate::session::StatementContext;
use futures::StreamExt;
use std::sync::Arc;
use tessera_parser::Vacuum;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, NodeId, Result, ShardId, v1};

/// Copies that are asked at the same time; a node does one thing after the other.
const COPIES_AT_ONCE: usize = 64;

/// One copy of one shard of one table.
struct Copy {
    table: Arc<TableDef>,
    shard: ShardId,
    node: NodeId,
    leads: bool,
}

/// Runs it.
///
/// # Errors
/// 42P01 and 42703 for what does not exist, 08006 when the leader of a shard does not answer, and what a leader fails with.
pub(crate) async fn run(context: &StatementContext, vacuum: &Vacuum) -> Result<Outcome> {
    let catalog = StatementCatalog::new(context);
    let tables: Vec<Arc<TableDef>> = match vacuum.tables.is_empty() {
        true => catalog.view().named_tables().cloned().collect(),
        false => {
            let named = vacuum.tables.iter().map(|table| find_table(&catalog, &table.name));
            named.collect::<Result<_>>()?
        }
    };
    let mut copies = vec![];
    for table in tables {
        for (shard, entry) in catalog.view().group_shards(table.group) {
            copies.extend(entry.config.replicas().map(|replica| Copy {
                table: table.clone(),
                shard,
                node: replica.node,
                leads: replica == entry.config.leader,
            }));
        }
    }
    let running = context.engine.running().await.0;
    let all = futures::stream::iter(copies.into_iter().map(|copy| async move {
        let done = compact(context, &copy, running).await;
        (copy, done)
    }));
    let all = async { Ok(all.buffered(COPIES_AT_ONCE).collect::<Vec<_>>().await) };
    let mut notices = vec![];
    for (copy, done) in context.bounded(all).await? {
        match done {
            Ok(done) if vacuum.verbose => notices.push(told(&copy, &done)),
            Ok(_) => {}
            Err(error) if copy.leads => return Err(error),
            Err(error) => {
                let message = format!(
                    "node {} did not vacuum its copy of shard {} of \"{}\"",
                    copy.node, copy.shard.index, copy.table.name
                );
                notices.push(Error::new("01000", message).with_detail(error.message));
            }
        }
    }
    if vacuum.analyze {
        analyze::run(context, &vacuum.tables).await?;
    }
    let tag = "VACUUM".to_owned();
    Ok(Outcome::Done { tag, notices })
}

async fn compact(context: &StatementContext, copy: &Copy, running: u64) -> Result<v1::VacuumReply> {
    let request = v1::VacuumRequest {
        shard: Some(v1::ShardRef {
            group: copy.shard.group.0,
            index: copy.shard.index,
            ..v1::ShardRef::default()
        }),
        table: copy.table.id.0,
        deadline_ms: context.deadline_ms(),
        running,
    };
    context.engine.directory().node(copy.node)?.vacuum(request).await
}

/// What VERBOSE says.
fn told(copy: &Copy, done: &v1::VacuumReply) -> Error {
    let message = format!(
        "vacuumed shard {} of \"{}\" on node {}: removed {} dead rows, {} remain",
        copy.shard.index, copy.table.name, copy.node, done.rows_removed, done.dead_rows
    );
    Error::new("00000", message).with_detail(format!(
        "{} files of {} bytes became {} of {} bytes",
        done.files_before, done.bytes_before, done.files_after, done.bytes_after
    ))
}
