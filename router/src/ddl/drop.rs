//! DROP TABLE, DROP VIEW, DROP SCHEMA, with what depends on them.

use super::notice;
use crate::cluster::{catalog_store, depends};
use crate::engine::VIEW_WAIT;
use crate::error::did_you_mean;
use crate::outcome::Outcome;
use crate::session::StatementContext;
use crate::views::SCHEMAS;
use std::collections::BTreeSet;
use tessera_meta::view::ClusterView;
use tessera_parser::ObjectName;
use tessera_proto::{Error, Result, TableId};

/// What is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Table,
    View,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::View => "view",
        }
    }
}

/// DROP TABLE and DROP VIEW.
pub(super) async fn relations(
    context: &StatementContext,
    kind: Kind,
    names: &[ObjectName],
    if_exists: bool,
    cascade: bool,
) -> Result<Outcome> {
    let view = context.engine.views().refresh().await?;
    let tag = format!("DROP {}", kind.word().to_uppercase());
    let (mut targets, mut notices) = (BTreeSet::new(), vec![]);
    for name in names {
        match find(context, &view, kind, name)? {
            Some(id) => drop(targets.insert(id)),
            None if if_exists => notices.push(notice(
                "00000",
                format!("{} \"{name}\" does not exist, skipping", kind.word()),
            )),
            None => return Err(missing(&view, kind, name)),
        }
    }
    if targets.is_empty() {
        return Ok(Outcome::Done { tag, notices });
    }
    notices.extend(with_dependents(&view, &mut targets, cascade)?);
    let revision = catalog_store::drop_all(context.engine.views(), &targets, None).await?;
    context.engine.views().at_least(revision, VIEW_WAIT).await?;
    Ok(Outcome::Done { tag, notices })
}

fn find(context: &StatementContext, view: &ClusterView, kind: Kind, name: &ObjectName) -> Result<Option<TableId>> {
    let path = match &name.schema {
        Some(schema) => vec![schema.clone()],
        None => context.settings.search_path(),
    };
    if path
        .iter()
        .any(|s| name.schema.is_some() && SCHEMAS.contains(&s.as_str()))
    {
        return Err(Error::new(
            "42501",
            format!("permission denied: \"{name}\" belongs to the system"),
        ));
    }
    let Some(id) = path
        .into_iter()
        .find_map(|schema| view.names.get(&(schema, name.name.clone())).copied())
    else {
        return Ok(None);
    };
    let is_table = view.tables.contains_key(&id);
    match (kind, is_table) {
        (Kind::Table, false) => Err(Error::new("42809", format!("\"{}\" is not a table", name.name))
            .with_hint("use DROP VIEW to remove a view")),
        (Kind::View, true) => Err(Error::new("42809", format!("\"{}\" is not a view", name.name))
            .with_hint("use DROP TABLE to remove a table")),
        _ => Ok(Some(id)),
    }
}

fn missing(view: &ClusterView, kind: Kind, name: &ObjectName) -> Error {
    let error = Error::new("42P01", format!("{} \"{name}\" does not exist", kind.word()));
    match did_you_mean(&name.name, view.names.keys().map(|(_, n)| n.as_str())) {
        Some(near) => error.with_hint(format!("did you mean \"{near}\"?")),
        None => error,
    }
}

/// Adds the views that read the targets, or refuses.
fn with_dependents(view: &ClusterView, targets: &mut BTreeSet<TableId>, cascade: bool) -> Result<Vec<Error>> {
    let others = depends::dependents(view, targets);
    let Some(first) = others.first() else { return Ok(vec![]) };
    if !cascade {
        let list = others
            .iter()
            .map(|v| format!("view \"{}\"", v.name))
            .collect::<Vec<_>>()
            .join(", ");
        let error = Error::new(
            "2BP01",
            format!("cannot drop because view \"{}\" depends on it", first.name),
        );
        return Err(error
            .with_detail(format!("dependent: {list}"))
            .with_hint("use DROP ... CASCADE to drop the dependent objects too"));
    }
    targets.extend(others.iter().map(|v| v.id));
    Ok(others
        .iter()
        .map(|v| notice("00000", format!("drop cascades to view \"{}\"", v.name)))
        .collect())
}

/// DROP SCHEMA.
pub(super) async fn schema(context: &StatementContext, name: &str, if_exists: bool, cascade: bool) -> Result<Outcome> {
    let view = context.engine.views().refresh().await?;
    let tag = "DROP SCHEMA".to_owned();
    if SCHEMAS.contains(&name) {
        return Err(Error::new(
            "42501",
            format!("permission denied: schema \"{name}\" belongs to the system"),
        ));
    }
    if !view.schemas.contains(name) {
        return match if_exists {
            true => Ok(Outcome::Done {
                tag,
                notices: vec![notice("00000", format!("schema \"{name}\" does not exist, skipping"))],
            }),
            false => Err(Error::new("3F000", format!("schema \"{name}\" does not exist"))),
        };
    }
    let mut targets: BTreeSet<TableId> = view
        .names
        .iter()
        .filter(|((s, _), _)| s == name)
        .map(|(_, id)| *id)
        .collect();
    if !targets.is_empty() && !cascade {
        let error = Error::new(
            "2BP01",
            format!("cannot drop schema \"{name}\" because other objects depend on it"),
        );
        return Err(error
            .with_detail(format!("it contains {} tables and views", targets.len()))
            .with_hint("use DROP SCHEMA ... CASCADE to drop them too"));
    }
    let notices = with_dependents(&view, &mut targets, cascade)?;
    let revision = catalog_store::drop_all(context.engine.views(), &targets, Some(name)).await?;
    context.engine.views().at_least(revision, VIEW_WAIT).await?;
    Ok(Outcome::Done { tag, notices })
}
