//! TRUNCATE: all rows of some tables, in one transaction over all of their shards.
//!
//! ```text
//!   TRUNCATE a, b      shard 0 of a and b (colocated)   shard 1 ...   shard 0 of c      every shard, also those without rows
//!     ──▶ prepare: the leader locks the tables against all writers      ──▶ commit: what is there at that moment is gone
//! ```
//!
//! It costs as much for a table of a thousand rows as for one of a billion: shards note when their rows went, and look at none of
//! them. Snapshots before it see the rows, as they do before a DELETE; PostgreSQL's see none. So it needs no lock against readers.
//! Every row that was committed before goes, also one that the transaction's snapshot does not see, as in PostgreSQL.

use super::change_writer::commit;
use super::insert;
use crate::cluster::catalog::StatementCatalog;
use crate::outcome::Outcome;
use crate::session::StatementContext;
use crate::txn::driver::{Basis, ShardWrites};
use std::collections::{BTreeMap, BTreeSet};
use tessera_parser::ObjectName;
use tessera_planner::{Catalog, Relation};
use tessera_proto::{Error, Result, ShardId, v1};

/// Runs it.
///
/// # Errors
/// 42P01; 42809 for a view, 42501 for a system table; what shards refuse with: then nothing is gone.
pub(crate) async fn run(context: &StatementContext, names: &[ObjectName]) -> Result<Outcome> {
    let catalog = StatementCatalog::new(context);
    let (mut seen, mut shards) = (BTreeSet::new(), BTreeMap::<ShardId, Vec<v1::TableWrite>>::new());
    for name in names {
        if let Some(Relation::View(_)) = catalog.resolve(name.schema.as_deref(), &name.name) {
            return Err(Error::new("42809", format!("\"{}\" is not a table", name.name)));
        }
        let table = insert::find_table(&catalog, name)?;
        if !seen.insert(table.id) {
            continue;
        }
        let dropped = || Error::new("42P01", format!("table \"{}\" was dropped", table.name));
        let group = catalog.view().groups.get(&table.group).ok_or_else(dropped)?;
        let indexes = match group.reference {
            true => 0..1,
            false => 0..group.ranges.len() as u32,
        };
        for index in indexes {
            let write = v1::TableWrite {
                table: table.id.0,
                schema_version: table.version,
                truncated: true,
                ..v1::TableWrite::default()
            };
            shards
                .entry(ShardId { group: group.id, index })
                .or_default()
                .push(write);
        }
    }
    let shards = shards.into_iter().map(|(shard, writes)| ShardWrites { shard, writes });
    commit(context, catalog.view().revision, Basis::default(), shards.collect()).await?;
    Ok(Outcome::done("TRUNCATE TABLE"))
}
