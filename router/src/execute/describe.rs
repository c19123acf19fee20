//! Types of a statement's parameters and columns, without running it.

use super::prepare::{self, Bound};
use super::{declared::declared, show, verify};
use crate::cluster::catalog::{StatementCatalog, TARGET};
use crate::explain;
use crate::ingest::change_query::{Change, Search};
use crate::ingest::merge_query::MergeSearch;
use crate::ingest::returning::Asked;
use crate::ingest::upsert_query::{self, Update};
use crate::ingest::{ChangedRows, insert};
use crate::outcome::Described;
use crate::session::StatementContext;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::logical_expr::LogicalPlan;
use sqlparser::ast::Query;
use std::sync::Arc;
use tessera_parser::{Merge, Statement};
use tessera_planner::names::result_schema;
use tessera_proto::sql_type::SqlType;
use tessera_proto::{Result, Timestamp};

/// Describes a statement.
pub(crate) async fn describe(
    context: &StatementContext,
    statement: &Statement,
    hints: &[Option<SqlType>],
) -> Result<Described> {
    let hints: Vec<Option<DataType>> = hints.iter().map(|h| h.map(SqlType::arrow)).collect();
    match statement {
        Statement::Query(select) => query(context, select, &hints).await,
        Statement::CreateTableAs(create) => Ok(Described {
            columns: None,
            declared: vec![],
            ..query(context, &create.query, &hints).await?
        }),
        Statement::Explain { query, .. } => {
            let (_, params) = bind(context, query, &hints).await?;
            Ok(rows(params, explain::schema()))
        }
        Statement::Insert(insert) => {
            let catalog = StatementCatalog::new(context);
            let described = insert::describe(&catalog, insert)?;
            let types = merged(&hints, &described.types);
            let (_, mut types) = bind_in(context, &catalog, &described.source, &types).await?;
            if let Some(update) = upsert_query::describe(&described.table, insert)? {
                let none = RecordBatch::new_empty(described.table.arrow_schema());
                let targets = Update::targets(&described.table, &none, &none)?;
                let known = merged(&types, &update.types);
                (_, types) = bind_in(context, &catalog.with_targets(targets), &update.query, &known).await?;
            }
            returned(context, insert::asked(insert, &described.table), types).await
        }
        Statement::Update(update) => change(context, &update.into(), &hints).await,
        Statement::Delete(delete) => change(context, &delete.into(), &hints).await,
        Statement::Merge(merge) => self::merge(context, merge, &hints).await,
        Statement::Show { name } if show::is_query(name) => {
            let query = show::query(name)?;
            let (plan, _) = bind(context, &query, &[]).await?;
            Ok(rows(vec![], columns(&query, &plan)))
        }
        Statement::Show { name } => Ok(rows(vec![], show::schema(name))),
        Statement::VerifyTable { .. } => Ok(rows(vec![], verify::schema())),
        _ => Ok(Described {
            params: vec![],
            columns: None,
            declared: vec![],
        }),
    }
}

/// Describes a query; `types[i]` is the type of `$i+1` where it is known.
///
/// # Errors
/// What binding finds.
pub(crate) async fn query(context: &StatementContext, query: &Query, types: &[Option<DataType>]) -> Result<Described> {
    let (plan, params) = bind(context, query, types).await?;
    Ok(Described {
        params,
        declared: declared(query, &plan),
        columns: Some(columns(query, &plan)),
    })
}

/// Describes an UPDATE or a DELETE.
async fn change(context: &StatementContext, change: &Change<'_>, hints: &[Option<DataType>]) -> Result<Described> {
    let catalog = StatementCatalog::new(context);
    let search = Search::new(&catalog, change)?;
    let catalog = catalog.with_targets(vec![(TARGET, search.target.clone())]);
    let types = merged(hints, &search.types);
    let (_, types) = bind_in(context, &catalog, &search.query, &types).await?;
    let asked = change.returning.map(|returning| Asked {
        returning,
        table: &search.table,
        name: change.name(),
        from: change.from,
    });
    returned(context, asked, types).await
}

/// Describes a MERGE, which returns nothing.
async fn merge(context: &StatementContext, merge: &Merge, hints: &[Option<DataType>]) -> Result<Described> {
    let catalog = StatementCatalog::new(context);
    let search = MergeSearch::new(&catalog, merge)?;
    let catalog = catalog.with_targets(vec![(TARGET, search.target.clone())]);
    let mut types = hints.to_vec();
    for half in search.pairs.iter().chain(&search.rest) {
        let known = merged(&types, &half.types);
        (_, types) = bind_in(context, &catalog, &half.query, &known).await?;
    }
    returned(context, None, types).await
}

/// Describes what a statement returns of the rows it changes; `types` are those of its parameters elsewhere.
async fn returned(
    context: &StatementContext,
    asked: Option<Asked<'_>>,
    types: Vec<Option<DataType>>,
) -> Result<Described> {
    let Some(asked) = asked else {
        return Ok(Described {
            params: settled(types),
            columns: None,
            declared: vec![],
        });
    };
    let query = asked.query()?;
    let no_rows = ChangedRows::new(asked.table.clone(), vec![])?;
    let catalog = StatementCatalog::new(context).with_targets(vec![(TARGET, Arc::new(no_rows))]);
    let bound = bind_in(context, &catalog, &query, &types).await;
    let (plan, types) = bound.map_err(|error| asked.explain(error))?;
    Ok(Described {
        params: settled(types),
        declared: declared(&query, &plan),
        columns: Some(columns(&query, &plan)),
    })
}

/// Types of parameters as the client declared them, else as `others` tell.
fn merged(hints: &[Option<DataType>], others: &[Option<DataType>]) -> Vec<Option<DataType>> {
    let known = |types: &[Option<DataType>], i: usize| types.get(i).cloned().flatten();
    (0..hints.len().max(others.len()))
        .map(|i| known(hints, i).or_else(|| known(others, i)))
        .collect()
}

/// Text where nothing tells the type.
fn settled(types: Vec<Option<DataType>>) -> Vec<DataType> {
    types
        .into_iter()
        .map(|known| known.unwrap_or(DataType::Utf8View))
        .collect()
}

fn rows(params: Vec<DataType>, columns: SchemaRef) -> Described {
    Described {
        params,
        declared: vec![None; columns.fields().len()],
        columns: Some(columns),
    }
}

fn columns(query: &Query, plan: &LogicalPlan) -> SchemaRef {
    result_schema(query, plan.schema().as_arrow())
}

/// The bound plan, types coerced, and the types of its parameters: declared, else inferred, else text.
async fn bind(
    context: &StatementContext,
    query: &Query,
    types: &[Option<DataType>],
) -> Result<(LogicalPlan, Vec<DataType>)> {
    let (plan, types) = bind_in(context, &StatementCatalog::new(context), query, types).await?;
    Ok((plan, settled(types)))
}

/// The same with a catalog, and with the types as far as they are known.
async fn bind_in(
    context: &StatementContext,
    catalog: &StatementCatalog,
    query: &Query,
    types: &[Option<DataType>],
) -> Result<(LogicalPlan, Vec<Option<DataType>>)> {
    let Bound { state, plan, .. } = prepare::bind(context, catalog, query, types, Timestamp(0)).await?;
    let inferred = tessera_planner::parameter_types(&plan)?;
    let plan = tessera_planner::analyze(&state, plan)?;
    Ok((plan, merged(types, &inferred)))
}
