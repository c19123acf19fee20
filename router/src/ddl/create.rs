//! CREATE SCHEMA, CREATE TABLE, CREATE VIEW.

use super::{notice, ready, schema_for};
use crate::cluster::catalog::StatementCatalog;
use crate::cluster::catalog_store::Begin;
use crate::cluster::define::Draft;
use crate::cluster::{catalog_store, define, statistics};
use crate::engine::VIEW_WAIT;
use crate::execute::prepare;
use crate::ingest;
use crate::ingest::insert::find_table;
use crate::outcome::Outcome;
use crate::session::StatementContext;
use crate::views::SCHEMAS;
use futures::StreamExt;
use sqlparser::ast::Query;
use std::collections::HashSet;
use std::sync::Arc;
use tessera_parser::{CreateTable, ObjectName, Statement};
use tessera_planner::names::result_schema;
use tessera_proto::shard_map::NodeInfo;
use tessera_proto::table::{TableDef, ViewDef};
use tessera_proto::{Error, Result, ShardId, TableId, Timestamp};

/// Nodes asked at the same time.
const NODES_AT_ONCE: usize = 16;

/// CREATE SCHEMA.
pub(super) async fn schema(context: &StatementContext, name: &str, if_not_exists: bool) -> Result<Outcome> {
    let tag = "CREATE SCHEMA";
    if SCHEMAS.contains(&name) || name.starts_with("pg_") {
        let error = Error::new("42939", format!("unacceptable schema name \"{name}\""));
        return Err(error.with_detail(
            "the prefix \"pg_\" and the schemas information_schema and tessera are reserved for the system",
        ));
    }
    match (
        catalog_store::create_schema(context.engine.views(), name).await?,
        if_not_exists,
    ) {
        (Some(revision), _) => {
            context.engine.views().at_least(revision, VIEW_WAIT).await?;
            Ok(Outcome::done(tag))
        }
        (None, true) => Ok(Outcome::Done {
            tag: tag.into(),
            notices: vec![notice("42P06", format!("schema \"{name}\" already exists, skipping"))],
        }),
        (None, false) => Err(Error::new("42P06", format!("schema \"{name}\" already exists"))),
    }
}

/// CREATE TABLE.
pub(super) async fn table(context: &StatementContext, create: &CreateTable) -> Result<Outcome> {
    let schema = schema_for(context, &create.name)?;
    if create.if_not_exists && exists(context, &schema, &create.name) {
        return Ok(skip("CREATE TABLE", &create.name));
    }
    let draft = define::draft(create, &schema)?;
    for column in &draft.table.columns {
        ingest::check_default(context, column).await?;
    }
    match make(context, create, &draft, Begin::Named).await {
        Err(error) if error.code == "42P07" && create.if_not_exists => Ok(skip("CREATE TABLE", &create.name)),
        made => Ok(Outcome::Done {
            tag: "CREATE TABLE".into(),
            notices: made?.1,
        }),
    }
}

/// Whether the name is taken.
pub(super) fn exists(context: &StatementContext, schema: &str, name: &ObjectName) -> bool {
    let key = (schema.to_owned(), name.name.clone());
    context.engine.view().names.contains_key(&key)
}

/// What IF NOT EXISTS says.
pub(super) fn skip(tag: &str, name: &ObjectName) -> Outcome {
    let message = format!("relation \"{}\" already exists, skipping", name.name);
    Outcome::Done {
        tag: tag.into(),
        notices: vec![notice("42P07", message)],
    }
}

/// Makes the table, and waits until its shards are served; warnings when that takes long.
pub(super) async fn make(
    context: &StatementContext,
    create: &CreateTable,
    draft: &Draft,
    begin: Begin,
) -> Result<(Arc<TableDef>, Vec<Error>)> {
    let other = create.sharding.as_ref().and_then(|s| s.colocate_with.as_ref());
    let other = other
        .map(|name| find_table(&StatementCatalog::new(context), name))
        .transpose()?;
    let nodes = alive(context).await;
    let views = context.engine.views();
    let made = catalog_store::create_table(views, draft, other.map(|t| t.id), &nodes, begin);
    let (created, revision) = made.await?;
    let shards: Vec<ShardId> = created.shards.iter().map(|(id, _)| *id).collect();
    let notices = ready::wait(context, revision, &shards).await?;
    Ok((created.table, notices))
}

/// Nodes that answer now.
async fn alive(context: &StatementContext) -> Vec<NodeInfo> {
    let view = context.engine.view();
    let directory = context.engine.directory();
    let ask = |info: NodeInfo| async move { statistics::status(directory.as_ref(), info.id).await.map(|_| info) };
    let answers = futures::stream::iter(view.nodes.values().cloned().map(ask)).buffered(NODES_AT_ONCE);
    answers.filter_map(std::future::ready).collect().await
}

/// A parsed CREATE VIEW.
pub(super) struct NewView<'a> {
    pub name: &'a ObjectName,
    pub columns: &'a [String],
    pub query: &'a Query,
    pub query_text: &'a str,
    pub or_replace: bool,
}

/// CREATE VIEW.
pub(super) async fn view(context: &StatementContext, new: NewView<'_>) -> Result<Outcome> {
    let schema = schema_for(context, new.name)?;
    let catalog = StatementCatalog::new(context);
    let names = output(context, &catalog, new.query).await?;
    let columns = columns(new.columns, names)?;
    let key = (schema.clone(), new.name.name.clone());
    let existing = catalog.view().names.get(&key).copied();
    let replaces = match (existing, new.or_replace) {
        (None, _) => None,
        (Some(_), false) => {
            return Err(Error::new(
                "42P07",
                format!("relation \"{}\" already exists", new.name.name),
            ));
        }
        (Some(id), true) => Some(replaceable(context, &catalog, id, &columns).await?),
    };
    let def = ViewDef {
        id: TableId(0),
        schema,
        name: new.name.name.clone(),
        columns: new.columns.to_vec(),
        query: new.query_text.to_owned(),
    };
    let revision = catalog_store::create_view(context.engine.views(), &def, replaces).await?;
    context.engine.views().at_least(revision, VIEW_WAIT).await?;
    Ok(Outcome::done("CREATE VIEW"))
}

/// Names and types of a query's columns.
async fn output(
    context: &StatementContext,
    catalog: &StatementCatalog,
    query: &Query,
) -> Result<Vec<(String, String)>> {
    let bound = prepare::bind(context, catalog, query, &[], Timestamp(0)).await?;
    if !tessera_planner::parameter_types(&bound.plan)?.is_empty() {
        return Err(Error::new("42P02", "views must not contain parameters"));
    }
    let plan = tessera_planner::analyze(&bound.state, bound.plan)?;
    let schema = result_schema(query, plan.schema().as_arrow());
    Ok(schema
        .fields()
        .iter()
        .map(|f| (f.name().clone(), f.data_type().to_string()))
        .collect())
}

/// The view's columns: given names first, the query's for the rest.
fn columns(given: &[String], mut columns: Vec<(String, String)>) -> Result<Vec<(String, String)>> {
    if given.len() > columns.len() {
        return Err(Error::new(
            "42601",
            "CREATE VIEW specifies more column names than columns",
        ));
    }
    for (column, name) in columns.iter_mut().zip(given) {
        column.0 = name.clone();
    }
    let mut seen = HashSet::new();
    match columns.iter().find(|(name, _)| !seen.insert(name.clone())) {
        Some((name, _)) => Err(
            Error::new("42701", format!("column \"{name}\" specified more than once"))
                .with_hint("give the view's columns names of their own: CREATE VIEW v (a, b) AS ..."),
        ),
        None => Ok(columns),
    }
}

/// Whether a view may be replaced by one with these columns: others may use the ones it has.
async fn replaceable(
    context: &StatementContext,
    catalog: &StatementCatalog,
    id: TableId,
    new: &[(String, String)],
) -> Result<TableId> {
    let Some(old) = catalog.view().views.get(&id) else {
        return Err(Error::new("42809", "the name belongs to a table, not to a view").with_hint("choose another name"));
    };
    let parsed = tessera_parser::parse(&old.query).map_err(crate::error::from_parse)?;
    let Some(Statement::Query(query)) = parsed.into_iter().next().map(|s| s.statement) else {
        return Err(Error::corrupt(format!(
            "the definition of view \"{}\" is no query",
            old.name
        )));
    };
    // A view that is broken already (its tables were replaced) may be mended by any other.
    let Ok(had) = output(context, catalog, &query).await else {
        return Ok(id);
    };
    let had = columns(&old.columns, had)?;
    match had.iter().zip(new).all(|(a, b)| a == b) && had.len() <= new.len() {
        true => Ok(id),
        false => Err(Error::new(
            "42P16",
            format!("columns of view \"{}\" cannot be changed or dropped", old.name),
        )
        .with_hint("DROP VIEW, then create it again; new columns may only be added at the end")),
    }
}
