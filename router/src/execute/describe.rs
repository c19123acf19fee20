//! Types of a statement's parameters and columns, without running it.

use super::prepare::{self, Bound};
use super::{declared::declared, show, verify};
use crate::cluster::catalog::StatementCatalog;
use crate::explain;
use crate::ingest::insert;
use crate::outcome::Described;
use crate::session::StatementContext;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::logical_expr::LogicalPlan;
use sqlparser::ast::Query;
use tessera_parser::Statement;
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
            let (source, types) = insert::describe(&StatementCatalog::new(context), insert)?;
            let count = hints.len().max(types.len());
            let known = |i: usize| {
                hints
                    .get(i)
                    .cloned()
                    .flatten()
                    .or_else(|| types.get(i).cloned().flatten())
            };
            let merged: Vec<Option<DataType>> = (0..count).map(known).collect();
            let (_, params) = bind(context, &source, &merged).await?;
            Ok(Described {
                params,
                columns: None,
                declared: vec![],
            })
        }
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
    let catalog = StatementCatalog::new(context);
    let Bound { state, plan, .. } = prepare::bind(context, &catalog, query, types, Timestamp(0)).await?;
    let inferred = tessera_planner::parameter_types(&plan)?;
    let plan = tessera_planner::analyze(&state, plan)?;
    let param = |i: usize| {
        let declared = types.get(i).cloned().flatten();
        declared
            .or_else(|| inferred.get(i).cloned().flatten())
            .unwrap_or(DataType::Utf8View)
    };
    Ok((plan, (0..inferred.len().max(types.len())).map(param).collect()))
}
