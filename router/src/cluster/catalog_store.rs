//! Definitions in the meta store: each CREATE and DROP is one compare-and-swap over all its keys.
//!
//! ```text
//!   CREATE TABLE s.t      /schema/s unchanged · /name/s/t absent · /next-id +2 · /table/.. · /group/.. · /shard/../0..n
//!   CREATE TABLE s.t AS   the same without /name, with /pending/..      then, filled: /pending/.. gone · /name/s/t absent
//!   DROP TABLE s.t        /name/s/t · /table/.. · and with the group's last table /group/.. · /shard/../*
//! ```
//!
//! A table that joins a group rewrites the group's key, so that a drop of the group's last table at the same time fails
//! its comparison and looks again. A lost compare-and-swap is tried again with fresh keys, a bounded number of times.

use crate::cluster::bootstrap::{CAS_ATTEMPTS_MAX, next_ids, put, read};
use crate::cluster::define::Draft;
use crate::cluster::placement;
use std::collections::BTreeSet;
use std::sync::Arc;
use tessera_meta::view::{ClusterView, ViewKeeper};
use tessera_meta::{Change, Expect, Op};
use tessera_proto::shard_map::{NodeInfo, ShardConfig};
use tessera_proto::table::{ColocationGroup, Distribution, PendingTable, TableDef, ViewDef};
use tessera_proto::token::equal_ranges;
use tessera_proto::{Error, GroupId, Result, Retry, ShardId, TableId, keys};

/// Applies the operations; `None` when somebody else was faster.
async fn apply(views: &ViewKeeper, ops: Vec<Op>) -> Result<Option<u64>> {
    match views.store().cas(ops).await {
        Ok(outcome) => Ok(outcome.applied.then_some(outcome.revision)),
        Err(error) if error.retry == Retry::OutcomeUnknown => {
            Err(error.with_hint("look whether the object exists before trying again"))
        }
        Err(error) => Err(error),
    }
}

fn busy() -> Error {
    Error::new(
        "40001",
        "definitions are changed faster than this statement can; try again",
    )
}

fn delete(key: String, expect: Expect) -> Op {
    Op {
        key,
        expect,
        change: Change::Delete,
    }
}

/// The operation that requires a schema to stay.
async fn check_schema(views: &ViewKeeper, schema: &str) -> Result<Op> {
    let key = keys::schema(schema);
    let entry = read(views.store().as_ref(), &key)
        .await?
        .ok_or_else(|| no_schema(schema))?;
    Ok(Op {
        key,
        expect: Expect::Revision(entry.revision),
        change: Change::Check,
    })
}

/// 3F000.
pub fn no_schema(schema: &str) -> Error {
    Error::new("3F000", format!("schema \"{schema}\" does not exist")).with_hint(format!("CREATE SCHEMA {schema}"))
}

/// Creates a schema; `None` if it exists, else the revision.
///
/// # Errors
/// The store's.
pub async fn create_schema(views: &ViewKeeper, name: &str) -> Result<Option<u64>> {
    for _ in 0..CAS_ATTEMPTS_MAX {
        if views.refresh().await?.schemas.contains(name) {
            return Ok(None);
        }
        if let Some(revision) = apply(
            views,
            vec![put(keys::schema(name), Expect::Absent, &serde_json::json!({}))?],
        )
        .await?
        {
            return Ok(Some(revision));
        }
    }
    Err(busy())
}

/// What [`create_table`] made.
#[derive(Debug, Clone)]
pub struct Created {
    /// The definition.
    pub table: Arc<TableDef>,
    /// New shards; empty when the table joined a group.
    pub shards: Vec<(ShardId, ShardConfig)>,
}

/// How a new table begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With its name: everybody finds it.
    Named,
    /// Without: see [`publish`]. Anybody may drop it at this time, milliseconds since 1970.
    Pending(u64),
}

/// Creates a table, with a group of its own unless `colocate_with` names a table of the same kind or it is a reference
/// table, which all share one. `nodes` are those alive. The name must be free even when the table does not take it yet.
///
/// # Errors
/// 42P07 when the name is taken, 3F000 without the schema, 42P16 for tables that cannot be colocated, 55000 without nodes.
pub async fn create_table(
    views: &ViewKeeper,
    draft: &Draft,
    colocate_with: Option<TableId>,
    nodes: &[NodeInfo],
    begin: Begin,
) -> Result<(Created, u64)> {
    for _ in 0..CAS_ATTEMPTS_MAX {
        let view = views.refresh().await?;
        let (created, ops) = build_table(views, &view, draft, colocate_with, nodes, begin).await?;
        if let Some(revision) = apply(views, ops).await? {
            return Ok((created, revision));
        }
    }
    Err(busy())
}

async fn build_table(
    views: &ViewKeeper,
    view: &ClusterView,
    draft: &Draft,
    colocate_with: Option<TableId>,
    nodes: &[NodeInfo],
    begin: Begin,
) -> Result<(Created, Vec<Op>)> {
    let (schema, name) = (draft.table.schema.as_str(), draft.table.name.as_str());
    check_free(view, schema, name)?;
    let mut ops = vec![check_schema(views, schema).await?];
    let (first, take) = next_ids(views.store().as_ref(), 2).await?;
    ops.push(take);
    let mut table = draft.table.clone();
    table.id = TableId(first);
    let mut shards = vec![];
    if let Some(group) = existing_group(view, draft, colocate_with)? {
        let key = keys::group(group.id);
        let expect = present(views, &key).await?;
        table.group = group.id;
        ops.push(put(key, expect, group.as_ref())?);
    } else {
        let group = new_group(draft, GroupId(first + 1));
        table.group = group.id;
        let configs = match group.reference {
            true => vec![placement::place_reference(view, nodes)?],
            false => placement::place(view, nodes, group.ranges.len() as u32)?,
        };
        ops.push(put(keys::group(group.id), Expect::Absent, &group)?);
        for (index, config) in (0..).zip(configs) {
            let id = ShardId { group: group.id, index };
            ops.push(put(keys::shard(id), Expect::Absent, &config)?);
            shards.push((id, config));
        }
    }
    ops.push(match begin {
        Begin::Named => put(keys::name(schema, name), Expect::Absent, &table.id.0)?,
        Begin::Pending(expires_ms) => {
            let id = table.id;
            put(keys::pending(id), Expect::Absent, &PendingTable { id, expires_ms })?
        }
    });
    ops.push(put(keys::table(table.id), Expect::Absent, &table)?);
    Ok((
        Created {
            table: Arc::new(table),
            shards,
        },
        ops,
    ))
}

/// Gives a table that began as [`Begin::Pending`] its name.
///
/// # Errors
/// 42P07 when somebody took the name meanwhile, 3F000 without the schema, 40001 when the table expired.
pub async fn publish(views: &ViewKeeper, id: TableId) -> Result<u64> {
    for _ in 0..CAS_ATTEMPTS_MAX {
        let view = views.refresh().await?;
        let (Some(table), Some(pending)) = (view.tables.get(&id), still_pending(views, id).await?) else {
            return Err(
                Error::new("40001", "filling the table took longer than the statement's time")
                    .with_hint("raise statement_timeout and try again"),
            );
        };
        check_free(&view, &table.schema, &table.name)?;
        let ops = vec![
            check_schema(views, &table.schema).await?,
            pending,
            put(keys::name(&table.schema, &table.name), Expect::Absent, &id.0)?,
        ];
        if let Some(revision) = apply(views, ops).await? {
            return Ok(revision);
        }
    }
    Err(busy())
}

/// The operation that ends a table's being pending; `None` when it is not.
async fn still_pending(views: &ViewKeeper, id: TableId) -> Result<Option<Op>> {
    let key = keys::pending(id);
    let entry = read(views.store().as_ref(), &key).await?;
    Ok(entry.map(|entry| delete(key, Expect::Revision(entry.revision))))
}

/// Drops a table if it has no name yet; whether it did.
///
/// # Errors
/// The store's.
pub async fn drop_pending(views: &ViewKeeper, id: TableId) -> Result<bool> {
    for _ in 0..CAS_ATTEMPTS_MAX {
        let view = views.refresh().await?;
        let Some(pending) = still_pending(views, id).await? else {
            return Ok(false);
        };
        let mut ops = build_drop(views, &view, &BTreeSet::from([id])).await?;
        ops.push(pending);
        if apply(views, ops).await?.is_some() {
            return Ok(true);
        }
    }
    Err(busy())
}

/// Drops the tables that whoever made them has forgotten at `now_ms`, milliseconds since 1970.
///
/// # Errors
/// The store's.
pub async fn drop_expired(views: &ViewKeeper, now_ms: u64) -> Result<()> {
    let view = views.current();
    for pending in view.pending.values().filter(|p| p.expires_ms < now_ms) {
        if drop_pending(views, pending.id).await? {
            tracing::info!(table = %pending.id, "a table whose statement never ended was dropped");
        }
    }
    Ok(())
}

fn check_free(view: &ClusterView, schema: &str, name: &str) -> Result<()> {
    if !view.schemas.contains(schema) {
        return Err(no_schema(schema));
    }
    match view.names.contains_key(&(schema.to_owned(), name.to_owned())) {
        true => Err(Error::new("42P07", format!("relation \"{name}\" already exists"))),
        false => Ok(()),
    }
}

fn new_group(draft: &Draft, id: GroupId) -> ColocationGroup {
    let reference = draft.table.distribution == Distribution::Reference;
    let shards = if reference { 1 } else { draft.shard_count() };
    ColocationGroup {
        id,
        key_classes: draft.key_classes.clone(),
        ranges: equal_ranges(shards),
        reference,
    }
}

/// The group a new table joins.
fn existing_group(
    view: &ClusterView,
    draft: &Draft,
    colocate_with: Option<TableId>,
) -> Result<Option<Arc<ColocationGroup>>> {
    if draft.table.distribution == Distribution::Reference {
        return Ok(view
            .groups
            .values()
            .filter(|g| g.reference)
            .min_by_key(|g| g.id)
            .cloned());
    }
    let Some(id) = colocate_with else { return Ok(None) };
    let gone = || Error::new("42P01", "the table to colocate with was just dropped");
    let other = view.tables.get(&id).ok_or_else(gone)?;
    let group = view.groups.get(&other.group).ok_or_else(gone)?;
    let refuse = |detail: String| {
        let message = format!(
            "table \"{}\" cannot be colocated with table \"{}\"",
            draft.table.name, other.name
        );
        Err(Error::new("42P16", message).with_detail(detail))
    };
    if group.reference {
        return refuse(format!(
            "\"{}\" is a reference table and is on every node already",
            other.name
        ));
    }
    if group.key_classes != draft.key_classes {
        return refuse(format!(
            "shard keys differ in type: {:?} and {:?}",
            draft.key_classes, group.key_classes
        ));
    }
    match draft.shards {
        Some(shards) if shards as usize != group.ranges.len() => refuse(format!(
            "{shards} shards were asked for, \"{}\" has {}",
            other.name,
            group.ranges.len()
        )),
        _ => Ok(Some(group.clone())),
    }
}

/// Creates a view, or replaces the one with `replaces`' id.
///
/// # Errors
/// 42P07 when the name is taken, 3F000 without the schema.
pub async fn create_view(views: &ViewKeeper, def: &ViewDef, replaces: Option<TableId>) -> Result<u64> {
    for _ in 0..CAS_ATTEMPTS_MAX {
        let view = views.refresh().await?;
        let ops = build_view(views, &view, def.clone(), replaces).await?;
        if let Some(revision) = apply(views, ops).await? {
            return Ok(revision);
        }
    }
    Err(busy())
}

async fn build_view(
    views: &ViewKeeper,
    view: &ClusterView,
    mut def: ViewDef,
    replaces: Option<TableId>,
) -> Result<Vec<Op>> {
    let schema = check_schema(views, &def.schema).await?;
    if let Some(id) = replaces {
        if view.view(&def.schema, &def.name).is_none_or(|v| v.id != id) {
            return Err(Error::new(
                "40001",
                format!("view \"{}\" was just changed by somebody else; try again", def.name),
            ));
        }
        def.id = id;
        let key = keys::view(id);
        let expect = present(views, &key).await?;
        return Ok(vec![schema, put(key, expect, &def)?]);
    }
    check_free(view, &def.schema, &def.name)?;
    let (first, take) = next_ids(views.store().as_ref(), 1).await?;
    def.id = TableId(first);
    let name = put(keys::name(&def.schema, &def.name), Expect::Absent, &first)?;
    Ok(vec![schema, take, name, put(keys::view(def.id), Expect::Absent, &def)?])
}

async fn present(views: &ViewKeeper, key: &str) -> Result<Expect> {
    let entry = read(views.store().as_ref(), key).await?;
    entry
        .map(|e| Expect::Revision(e.revision))
        .ok_or_else(|| Error::new("40001", "the object was just dropped by somebody else; try again"))
}

/// Drops tables and views; groups go with their last table. Also schemas, which must be empty otherwise.
///
/// # Errors
/// 40001 when one of them was dropped or the schema filled by somebody else; the store's.
pub async fn drop_all(views: &ViewKeeper, relations: &BTreeSet<TableId>, schema: Option<&str>) -> Result<u64> {
    for _ in 0..CAS_ATTEMPTS_MAX {
        let view = views.refresh().await?;
        let mut ops = build_drop(views, &view, relations).await?;
        if let Some(schema) = schema {
            ops.push(build_drop_schema(views, &view, relations, schema).await?);
        }
        if let Some(revision) = apply(views, ops).await? {
            return Ok(revision);
        }
    }
    Err(busy())
}

async fn build_drop(views: &ViewKeeper, view: &ClusterView, relations: &BTreeSet<TableId>) -> Result<Vec<Op>> {
    let (mut ops, mut groups) = (vec![], BTreeSet::new());
    for id in relations {
        let (schema, name, key) = match (view.tables.get(id), view.views.get(id)) {
            (Some(table), _) => {
                groups.insert(table.group);
                (&table.schema, &table.name, keys::table(*id))
            }
            (None, Some(v)) => (&v.schema, &v.name, keys::view(*id)),
            (None, None) => continue,
        };
        let expect = present(views, &key).await?;
        // Of a table without a name it may be somebody else's.
        if view.names.get(&(schema.clone(), name.clone())) == Some(id) {
            ops.push(delete(keys::name(schema, name), Expect::Any));
        }
        ops.push(delete(key, expect));
    }
    for group in groups {
        let used = view
            .tables
            .values()
            .any(|t| t.group == group && !relations.contains(&t.id));
        if !used {
            let key = keys::group(group);
            let expect = present(views, &key).await?;
            ops.push(delete(key, expect));
            ops.extend(
                view.group_shards(group)
                    .map(|(id, _)| delete(keys::shard(id), Expect::Any)),
            );
        }
    }
    Ok(ops)
}

async fn build_drop_schema(
    views: &ViewKeeper,
    view: &ClusterView,
    relations: &BTreeSet<TableId>,
    schema: &str,
) -> Result<Op> {
    let left = view
        .names
        .iter()
        .find(|((s, _), id)| s == schema && !relations.contains(id));
    if let Some(((_, name), _)) = left {
        return Err(Error::new(
            "40001",
            format!("relation \"{name}\" was just created in schema \"{schema}\"; try again"),
        ));
    }
    let key = keys::schema(schema);
    let expect = present(views, &key).await?;
    Ok(delete(key, expect))
}
