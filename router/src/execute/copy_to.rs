//! COPY ... TO: the rows of a query, to the client or into a file.
//!
//! ```text
//!   COPY t (a, b) TO STDOUT      SELECT a, b FROM t ──▶ rows ──▶ CopyEncoder ──▶ CopyOut: the wire sends its lines
//!   COPY (SELECT ...) TO 'f'     ────────────────────▶ rows ──▶ FileTarget ──▶ COPY n
//! ```

use super::query::{self, Request};
use crate::cluster::catalog::StatementCatalog;
use crate::copy::encoder::CopyEncoder;
use crate::copy::to_file::{FileTarget, Format};
use crate::error::no_relation;
use crate::outcome::{CopyOut, Outcome};
use crate::pg::TextRows;
use crate::session::StatementContext;
use futures::TryStreamExt;
use sqlparser::ast::Query;
use tessera_parser::{CopyFormat, CopyRows, CopyTarget, CopyTo, ObjectName, Statement};
use tessera_planner::{Catalog, Relation};
use tessera_proto::{Error, Result};

/// Runs it.
pub(crate) async fn run(context: &StatementContext, copy: &CopyTo) -> Result<Outcome> {
    if copy.target == CopyTarget::Stdout && copy.options.format == CopyFormat::Parquet {
        return Err(Error::unsupported(
            "COPY TO STDOUT in parquet format is not supported",
            "name a file below the server's files root (COPY ... TO 'file'), or take CSV",
        ));
    }
    let query = match &copy.source {
        CopyRows::Query(query) => query.clone(),
        CopyRows::Table { name, columns } => all_rows(context, name, columns)?,
    };
    let mut running = query::open(context, Request::new(&query, vec![])).await?;
    let encoder = || {
        let rows = TextRows::new(
            &running.schema,
            &running.declared,
            context.settings.get("timezone").as_deref(),
            context.settings.get("extra_float_digits").as_deref(),
        )?;
        CopyEncoder::new(rows, copy.options.clone(), &copy.force_quote)
    };
    let path = match &copy.target {
        CopyTarget::Stdout => {
            return Ok(Outcome::CopyOut(CopyOut {
                encoder: Box::new(encoder()?),
                stream: running.stream,
            }));
        }
        CopyTarget::File(path) => path,
    };
    let format = match copy.options.format {
        CopyFormat::Parquet => Format::Parquet(running.schema.clone()),
        CopyFormat::Csv | CopyFormat::Text => Format::Lines(Box::new(encoder()?)),
    };
    let mut file = FileTarget::create(context.engine.files_root(), path, format)?;
    while let Some(batch) = context.bounded(async { Ok(running.stream.try_next().await?) }).await? {
        context.bounded(file.write(batch)).await?;
    }
    Ok(Outcome::done(format!("COPY {}", file.finish().await?)))
}

/// A query for a table's rows.
fn all_rows(context: &StatementContext, name: &ObjectName, columns: &[String]) -> Result<Box<Query>> {
    let catalog = StatementCatalog::new(context);
    match catalog.resolve(name.schema.as_deref(), &name.name) {
        Some(Relation::Table(..) | Relation::System(_)) => {}
        Some(Relation::View(_)) => {
            return Err(Error::new("42809", format!("cannot copy from view \"{}\"", name.name))
                .with_hint("try the COPY (SELECT ...) TO variant"));
        }
        Some(Relation::Target(_)) | None => {
            return Err(no_relation(
                &name.to_string(),
                catalog.names().iter().map(String::as_str),
            ));
        }
    }
    let quoted = |name: &String| format!("\"{}\"", name.replace('"', "\"\""));
    let items: Vec<String> = columns.iter().map(quoted).collect();
    let items = if items.is_empty() {
        "*".to_owned()
    } else {
        items.join(", ")
    };
    let schema = name
        .schema
        .as_ref()
        .map(|s| format!("{}.", quoted(s)))
        .unwrap_or_default();
    let text = format!("SELECT {items} FROM {schema}{}", quoted(&name.name));
    let parsed = tessera_parser::parse(&text).map_err(crate::error::from_parse)?;
    match parsed.into_iter().next().map(|s| s.statement) {
        Some(Statement::Query(query)) => Ok(query),
        _ => Err(Error::internal("a table's rows are no query")),
    }
}
