//! CREATE and DROP: checks against the catalog, one compare-and-swap, then a wait until the nodes serve what was made.
//!
//! ```text
//!   create.rs       schemas, tables, views          drop.rs   tables, views, schemas, with dependents
//!   create_as.rs    tables of a query               fill.rs   rows first, then the name
//!   ready.rs        new shards' leaders serve       alter_shard.rs   ALTER SHARD
//! ```

pub(crate) mod alter_shard;
mod create;
pub(crate) mod create_as;
mod drop;
pub(crate) mod fill;
mod ready;

use crate::outcome::Outcome;
use crate::session::StatementContext;
use crate::views;
use tessera_parser::{ObjectName, Statement};
use tessera_proto::{Error, Result};

/// Runs a definition. Once its compare-and-swap is sent it is not taken back by a cancel.
pub(crate) async fn run(context: &StatementContext, statement: &Statement) -> Result<Outcome> {
    match statement {
        Statement::CreateSchema { name, if_not_exists } => create::schema(context, name, *if_not_exists).await,
        Statement::CreateTable(table) => create::table(context, table).await,
        Statement::CreateView {
            name,
            columns,
            query,
            query_text,
            or_replace,
        } => {
            let view = create::NewView {
                name,
                columns,
                query,
                query_text,
                or_replace: *or_replace,
            };
            create::view(context, view).await
        }
        Statement::DropTable {
            names,
            if_exists,
            cascade,
        } => drop::relations(context, drop::Kind::Table, names, *if_exists, *cascade).await,
        Statement::DropView {
            names,
            if_exists,
            cascade,
        } => drop::relations(context, drop::Kind::View, names, *if_exists, *cascade).await,
        Statement::DropSchema {
            name,
            if_exists,
            cascade,
        } => drop::schema(context, name, *if_exists, *cascade).await,
        _ => Err(Error::internal("not a definition")),
    }
}

/// The schema of a new object: as written, else the first of the search path that exists.
pub(crate) fn schema_for(context: &StatementContext, name: &ObjectName) -> Result<String> {
    let view = context.engine.view();
    let schema = match &name.schema {
        Some(schema) => schema.clone(),
        None => {
            let path = context.settings.search_path();
            let found = path.into_iter().find(|s| view.schemas.contains(s));
            found.ok_or_else(|| {
                Error::new("3F000", "no schema has been selected to create in").with_hint("SET search_path = public")
            })?
        }
    };
    match views::SCHEMAS.contains(&schema.as_str()) {
        true => Err(Error::new(
            "42501",
            format!("permission denied: schema \"{schema}\" belongs to the system"),
        )),
        false => Ok(schema),
    }
}

/// A notice: something that was no error.
fn notice(code: &str, message: String) -> Error {
    Error::new(code, message)
}
