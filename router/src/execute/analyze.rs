//! ANALYZE: the statistics that plans are made by, as of now.
//!
//! ```text
//!   ANALYZE t      row counts, distinct and common values, bounds and NULLs, kept with every segment, asked of every leader and added up
//! ```
//!
//! Nothing is read again: segments carry their statistics from when they were written, and rows in memory are counted when
//! asked. So it costs one message to each node, renews all tables whichever it names, and is only needed by who will not wait
//! for the next poll, a few seconds. Columns in parentheses are checked and otherwise ignored.

use crate::cluster::catalog::StatementCatalog;
use crate::ingest::insert::find_table;
use crate::outcome::Outcome;
use crate::session::StatementContext;
use tessera_parser::AnalyzeTable;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result};

/// Runs it.
///
/// # Errors
/// 42P01 and 42703 for what does not exist, 08006 when the leader of a shard of one of the tables does not answer.
pub(crate) async fn run(context: &StatementContext, tables: &[AnalyzeTable]) -> Result<Outcome> {
    let catalog = StatementCatalog::new(context);
    let mut named = vec![];
    for table in tables {
        let def = find_table(&catalog, &table.name)?;
        let unknown = table.columns.iter().find(|c| !has_column(&def, c));
        if let Some(column) = unknown {
            let message = format!("column \"{column}\" of relation \"{}\" does not exist", def.name);
            return Err(Error::new("42703", message));
        }
        named.push(def);
    }
    let refresh = async {
        // What is acknowledged may still be on its way to shards that only took part in it.
        let snapshot = context.engine.oracle().draw().await?;
        context.engine.refresh_statistics(Some(snapshot)).await;
        Ok(())
    };
    context.bounded(refresh).await?;
    let statistics = context.engine.statistics();
    for def in named {
        let mut leaders = catalog
            .view()
            .group_shards(def.group)
            .map(|(_, entry)| entry.config.leader.node);
        if let Some(silent) = leaders.find(|node| !statistics.is_alive(*node)) {
            let message = format!(
                "node {silent} does not answer: statistics of \"{}\" are as they were",
                def.name
            );
            return Err(Error::new("08006", message).with_hint("SELECT * FROM tessera.nodes shows who is there"));
        }
    }
    Ok(Outcome::done("ANALYZE"))
}

fn has_column(def: &TableDef, name: &str) -> bool {
    def.column(name).is_some_and(|at| !def.columns[at].hidden)
}
