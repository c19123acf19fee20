//! CREATE TABLE ... AS: a table of the columns and rows of a query.
//!
//! ```text
//!   query runs ──▶ its columns ──▶ table without a name ──▶ rows ──▶ name        (fill.rs)
//!   WITH NO DATA: the query is only described, the table is made as by CREATE TABLE
//! ```
//!
//! Columns may be NULL and have no defaults, as in PostgreSQL. Types are those that the query's columns come from, else the
//! ones of their values; text where there are none. Without SHARD BY, rows are placed by a hidden row id.

use super::fill::{self, Filling};
use super::{create, schema_for};
use crate::execute::describe;
use crate::execute::query::{self, Request, Shortcut};
use crate::outcome::Outcome;
use crate::session::StatementContext;
use datafusion::arrow::datatypes::Schema;
use datafusion::scalar::ScalarValue;
use futures::TryStreamExt;
use tessera_parser::{CreateTable, CreateTableAs};
use tessera_proto::sql_type::SqlType;
use tessera_proto::{Error, Result};

/// Runs it.
pub(crate) async fn run(
    context: &StatementContext,
    statement: &CreateTableAs,
    params: Vec<ScalarValue>,
) -> Result<Outcome> {
    let schema = schema_for(context, &statement.name)?;
    if create::exists(context, &schema, &statement.name) {
        return taken(statement);
    }
    if !statement.with_data {
        let described = describe::query(context, &statement.query, &[]).await?;
        let columns = described.columns.unwrap_or_else(|| Schema::empty().into());
        let create = table_of(statement, &columns, &described.declared)?;
        return match create::table(context, &create).await {
            Ok(Outcome::Done { notices, .. }) => Ok(Outcome::Done {
                tag: TAG.into(),
                notices,
            }),
            Err(error) if error.code == "42P07" => taken(statement),
            other => other,
        };
    }
    let request = Request {
        shortcut: Shortcut::Never,
        ..Request::new(&statement.query, params)
    };
    let mut rows = query::open(context, request).await?;
    let create = table_of(statement, &rows.schema, &rows.declared)?;
    let filled = async {
        let mut table = Filling::create(context, &create, &schema).await?;
        while let Some(batch) = context.bounded(async { Ok(rows.stream.try_next().await?) }).await? {
            table.write(&batch).await?;
        }
        table.finish().await
    };
    match filled.await {
        Ok((count, notices)) => Ok(Outcome::Done {
            tag: format!("SELECT {count}"),
            notices,
        }),
        Err(error) if error.code == "42P07" => taken(statement),
        Err(error) => Err(error),
    }
}

/// Command tag where no rows were written.
const TAG: &str = "CREATE TABLE AS";

fn taken(statement: &CreateTableAs) -> Result<Outcome> {
    if statement.if_not_exists {
        return Ok(create::skip(TAG, &statement.name));
    }
    let message = format!("relation \"{}\" already exists", statement.name.name);
    Err(Error::new("42P07", message))
}

/// The table for rows of these columns.
fn table_of(statement: &CreateTableAs, rows: &Schema, declared: &[Option<SqlType>]) -> Result<CreateTable> {
    let mut columns = fill::columns(rows, declared, false)?;
    if statement.columns.len() > columns.len() {
        return Err(Error::new("42601", "too many column names were specified"));
    }
    for (column, name) in columns.iter_mut().zip(&statement.columns) {
        column.name = name.clone();
    }
    Ok(CreateTable {
        name: statement.name.clone(),
        // Looked at here: the command tag is another.
        if_not_exists: false,
        reference: statement.reference,
        columns,
        primary_key: vec![],
        sharding: statement.sharding.clone(),
        cluster_by: statement.cluster_by.clone(),
    })
}
