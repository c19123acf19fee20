//! `tessera.nodes`, `tessera.shards` and `tessera.compactions`: who leads what, how far every copy is, how big it is, what is written
//! anew just now.
//!
//! A row of `tessera.shards` is one copy of one shard of one table. Configuration (leader, epoch, in-sync set) comes from the
//! meta store and is exact; positions, rows and bytes come from the nodes' last status and are NULL for a node that is silent.

use super::SystemSource;
use super::rows::{Kind, Value, row, table as build};
use Kind::{Bool, Int, Text};
use datafusion::catalog::TableProvider;
use std::sync::Arc;
use tessera_meta::view::ShardEntry;
use tessera_proto::table::TableDef;
use tessera_proto::{ReplicaId, ShardId, TableId, v1};

pub(super) fn table(source: &SystemSource, name: &str) -> Option<Arc<dyn TableProvider>> {
    match name {
        "nodes" => nodes(source),
        "shards" => shards(source),
        "compactions" => compactions(source),
        _ => None,
    }
}

fn nodes(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let columns = [
        ("node", Int),
        ("address", Text),
        ("state", Text),
        ("shards_led", Int),
        ("shards_followed", Int),
        ("rows", Int),
        ("bytes", Int),
        ("query_memory_bytes", Int),
        ("query_tasks", Int),
        ("disk_free_bytes", Int),
        ("disk", Text),
    ];
    let rows: Vec<_> = source
        .view
        .nodes
        .values()
        .map(|node| {
            let configs = || source.view.shards.values().map(|s| &s.config);
            let led = configs().filter(|c| c.leader.node == node.id).count() as i64;
            let held = configs().filter(|c| c.replica_on(node.id).is_some()).count() as i64;
            let status = source.statuses.get(&node.id);
            let tables = || status.into_iter().flat_map(|s| &s.shards).flat_map(|s| &s.tables);
            let known = |value: u64| {
                if status.is_some() {
                    Value::Int(value as i64)
                } else {
                    Value::Null
                }
            };
            row![
                i64::from(node.id.0),
                if node.address.is_empty() {
                    "in process"
                } else {
                    node.address.as_str()
                },
                if status.is_some() { "serving" } else { "silent" },
                led,
                held - led,
                known(tables().map(|t| t.rows).sum()),
                known(tables().map(|t| t.bytes).sum()),
                known(status.map_or(0, |s| s.memory_bytes)),
                known(status.map_or(0, |s| s.query_tasks)),
                known(status.map_or(0, |s| s.disk_free_bytes)),
                node.disk.to_string(),
            ]
        })
        .collect();
    build(&columns, &rows)
}

fn shards(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let columns = [
        ("schema_name", Text),
        ("table_name", Text),
        ("shard", Int),
        ("node", Int),
        ("role", Text),
        ("in_sync", Bool),
        ("epoch", Int),
        ("leader", Int),
        ("state", Text),
        ("last_index", Int),
        ("commit_index", Int),
        ("applied_index", Int),
        ("lag", Int),
        ("in_doubt", Int),
        ("rows", Int),
        ("bytes", Int),
        ("degraded", Bool),
        ("dead_rows", Int),
        ("files", Int),
        ("compactions", Int),
        ("compacted_bytes", Int),
    ];
    let mut defs: Vec<_> = source.view.named_tables().collect();
    defs.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
    let mut rows = vec![];
    for def in defs {
        for (shard, entry) in source.view.group_shards(def.group) {
            rows.extend(
                entry
                    .config
                    .replicas()
                    .map(|replica| copy(source, def, shard, entry, replica)),
            );
        }
    }
    build(&columns, &rows)
}

/// One copy of one shard of one table.
fn copy(source: &SystemSource, def: &TableDef, shard: ShardId, entry: &ShardEntry, replica: ReplicaId) -> Vec<Value> {
    let config = &entry.config;
    let status = status_of(source, shard, replica);
    let leader = status_of(source, shard, config.leader);
    let stored = status.and_then(|s| s.tables.iter().find(|t| t.table == def.id.0));
    let in_sync = config.in_sync.contains(&replica);
    let role = match (replica == config.leader, in_sync) {
        (true, _) => "leader",
        (false, true) => "follower",
        (false, false) => "learner",
    };
    row![
        def.schema.as_str(),
        def.name.as_str(),
        i64::from(shard.index),
        i64::from(replica.node.0),
        role,
        in_sync,
        config.epoch.0,
        i64::from(config.leader.node.0),
        status.map_or("silent", |s| s.state.as_str()),
        status.map(|s| s.last_index),
        status.map(|s| s.commit_index),
        status.map(|s| s.applied_index),
        status
            .zip(leader)
            .map(|(s, l)| l.commit_index.saturating_sub(s.applied_index)),
        status.map(|s| s.prepared),
        status.map(|_| stored.map_or(0, |t| t.rows)),
        status.map(|_| stored.map_or(0, |t| t.bytes)),
        config.in_sync.len() < wanted_copies(source, def),
        status.map(|_| stored.map_or(0, |t| t.dead_rows)),
        status.map(|_| stored.map_or(0, |t| t.segments)),
        status.map(|s| s.compactions),
        status.map(|s| s.compacted_bytes),
    ]
}

/// Compactions that ran when the nodes were asked last.
fn compactions(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let columns = [
        ("node", Int),
        ("schema_name", Text),
        ("table_name", Text),
        ("shard", Int),
        ("rows", Int),
        ("rows_done", Int),
    ];
    let mut rows = vec![];
    for (node, status) in source.statuses.iter() {
        for shard in &status.shards {
            let Some((running, shard)) = shard.compaction.as_ref().zip(shard.shard.as_ref()) else {
                continue;
            };
            let def = source.view.tables.get(&TableId(running.table));
            rows.push(row![
                i64::from(node.0),
                def.map(|d| d.schema.as_str()),
                def.map(|d| d.name.as_str()),
                i64::from(shard.index),
                running.rows,
                running.rows_done,
            ]);
        }
    }
    build(&columns, &rows)
}

/// Copies a shard should have: two, or one per node for reference tables.
fn wanted_copies(source: &SystemSource, def: &TableDef) -> usize {
    let nodes = source.view.nodes.len();
    if def.is_reference() { nodes } else { nodes.min(2) }
}

fn status_of(source: &SystemSource, shard: ShardId, replica: ReplicaId) -> Option<&v1::ShardStatus> {
    let status = source.statuses.get(&replica.node)?;
    status
        .shards
        .iter()
        .find(|s| s.shard.as_ref().is_some_and(|r| r.id() == shard))
}
