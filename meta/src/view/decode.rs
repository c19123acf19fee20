//! Entries of the meta store to a [`ClusterView`].
//!
//! ```text
//!   previous view at 41        entries at 42                 new view at 42
//!   table 16384 ───────────▶   /table/…16384  revision 40    the same Arc: written at or before 41
//!                              /table/…16390  revision 42    decoded
//!   shard 16385/0 ─────────▶   (absent)                      gone
//! ```
//!
//! Only what changed since the previous view is decoded: after one shard of thousands moved, one JSON text is parsed.
//! Whatever does not decode fails the whole view with the key in the message; half a catalog would be worse than an old one.

use super::{ClusterView, ShardEntry};
use crate::Entry;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tessera_proto::table::PendingTable;
use tessera_proto::{Error, GroupId, NodeId, Result, TableId, keys};

/// The view of `entries`, which were read at `revision`, later than `previous`.
///
/// # Errors
/// XX001 naming the first key whose name or value is malformed.
pub(super) fn decode(previous: &ClusterView, entries: &[Entry], revision: u64) -> Result<ClusterView> {
    let mut view = ClusterView {
        revision,
        ..ClusterView::default()
    };
    for entry in entries {
        add(&mut view, previous, entry)?;
    }
    Ok(view)
}

/// Adds one entry under the rule of its first path element.
fn add(view: &mut ClusterView, previous: &ClusterView, entry: &Entry) -> Result<()> {
    let Some((kind, rest)) = entry
        .key
        .strip_prefix('/')
        .map(|k| k.split_once('/').unwrap_or((k, "")))
    else {
        return Ok(());
    };
    let known = entry.revision <= previous.revision;
    match kind {
        "cluster" if rest.is_empty() => view.cluster = Some(json(entry)?),
        "schema" => {
            view.schemas.insert(unescape(rest).ok_or_else(|| bad_key(entry))?);
        }
        "name" => {
            let (schema, name) = rest.split_once('/').ok_or_else(|| bad_key(entry))?;
            let name = unescape(schema).zip(unescape(name)).ok_or_else(|| bad_key(entry))?;
            view.names.insert(name, json(entry)?);
        }
        "table" => {
            let id = TableId(number(entry, rest)?);
            let old = previous.tables.get(&id).filter(|_| known).cloned();
            view.tables
                .insert(id, shared(entry, old, |table| keys::table(table.id))?);
        }
        "pending" => {
            let pending: PendingTable = json(entry)?;
            same_key(entry, &keys::pending(pending.id))?;
            view.pending.insert(pending.id, pending);
        }
        "view" => {
            let id = TableId(number(entry, rest)?);
            let old = previous.views.get(&id).filter(|_| known).cloned();
            view.views.insert(id, shared(entry, old, |view| keys::view(view.id))?);
        }
        "group" => {
            let id = GroupId(number(entry, rest)?);
            let old = previous.groups.get(&id).filter(|_| known).cloned();
            view.groups
                .insert(id, shared(entry, old, |group| keys::group(group.id))?);
        }
        "shard" => {
            let id = keys::parse_shard(&entry.key)
                .filter(|id| keys::shard(*id) == entry.key)
                .ok_or_else(|| bad_key(entry))?;
            let shard = match previous.shards.get(&id).filter(|_| known) {
                Some(old) => old.clone(),
                None => ShardEntry {
                    config: json(entry)?,
                    revision: entry.revision,
                },
            };
            view.shards.insert(id, shard);
        }
        "node" => {
            let id = u32::try_from(number(entry, rest)?)
                .map(NodeId)
                .map_err(|_| bad_key(entry))?;
            let info: tessera_proto::shard_map::NodeInfo = json(entry)?;
            same_key(entry, &keys::node(info.id))?;
            view.nodes.insert(id, info);
        }
        _ => {}
    }
    Ok(())
}

/// The old value if there is one, else the decoded one, whose own id must lead back to its key.
fn shared<T: DeserializeOwned>(entry: &Entry, old: Option<Arc<T>>, key: impl Fn(&T) -> String) -> Result<Arc<T>> {
    if let Some(old) = old {
        return Ok(old);
    }
    let value: T = json(entry)?;
    same_key(entry, &key(&value))?;
    Ok(Arc::new(value))
}

fn json<T: DeserializeOwned>(entry: &Entry) -> Result<T> {
    serde_json::from_slice(&entry.value).map_err(|e| {
        Error::corrupt(format!("value of key \"{}\" in the meta store is malformed", entry.key))
            .with_detail(e.to_string())
    })
}

fn number(entry: &Entry, text: &str) -> Result<u64> {
    text.parse().map_err(|_| bad_key(entry))
}

fn same_key(entry: &Entry, own: &str) -> Result<()> {
    if own == entry.key {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "value of key \"{}\" in the meta store belongs to key \"{own}\"",
        entry.key
    )))
}

fn bad_key(entry: &Entry) -> Error {
    Error::corrupt(format!("key \"{}\" in the meta store is malformed", entry.key))
}

/// Undoes the escaping of [`keys::name`]; `None` for what it never produces.
fn unescape(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut name = parts.next()?.to_owned();
    for part in parts {
        let (plain, rest) = part
            .strip_prefix("2F")
            .map(|rest| ('/', rest))
            .or_else(|| Some(('%', part.strip_prefix("25")?)))?;
        name.push(plain);
        name.push_str(rest);
    }
    (!name.contains('\0') && !text.contains('/')).then_some(name)
}
