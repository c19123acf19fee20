//! SHOW: settings, and the cluster's shards and nodes.

use super::{query, stream};
use crate::outcome::{Outcome, RowsTag};
use crate::session::StatementContext;
use datafusion::arrow::datatypes::SchemaRef;
use sqlparser::ast::Query;
use tessera_parser::Statement;
use tessera_proto::{Error, Result};

/// Runs it.
pub(crate) async fn run(context: &StatementContext, name: &str) -> Result<Outcome> {
    if is_query(name) {
        return query::run(context, &query(name)?, "", vec![], RowsTag::Show).await;
    }
    let schema = schema(name);
    let rows: Vec<Vec<Option<String>>> = match name {
        "all" => context
            .settings
            .all()
            .into_iter()
            .map(|(name, value, about)| vec![Some(name), Some(value), Some(about)])
            .collect(),
        _ => vec![vec![Some(context.settings.show(name)?)]],
    };
    let batch = stream::text_batch(&schema, &rows)?;
    let columns = vec![None; schema.fields().len()];
    Ok(Outcome::Rows {
        stream: stream::ready(schema.clone(), vec![batch]),
        schema,
        columns,
        tag: RowsTag::Show,
    })
}

/// Whether SHOW of this is a query of a system table.
pub(crate) fn is_query(name: &str) -> bool {
    matches!(name, "shards" | "nodes")
}

/// The query that SHOW SHARDS and SHOW NODES stand for.
pub(crate) fn query(name: &str) -> Result<Query> {
    let text = match name {
        "nodes" => "SELECT * FROM tessera.nodes ORDER BY node",
        _ => "SELECT * FROM tessera.shards ORDER BY schema_name, table_name, shard, node",
    };
    let parsed = tessera_parser::parse(text).map_err(crate::error::from_parse)?;
    match parsed.into_iter().next().map(|s| s.statement) {
        Some(Statement::Query(query)) => Ok(*query),
        _ => Err(Error::internal(format!("SHOW {name} is not a query"))),
    }
}

/// Columns of SHOW of a setting.
pub(crate) fn schema(name: &str) -> SchemaRef {
    match name {
        "all" => stream::text_schema(&["name", "setting", "description"]),
        name => stream::text_schema(&[name]),
    }
}
