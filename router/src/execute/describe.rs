//! Types of a statement's parameters and columns, without running it.

use super::{declared::declared, prepare, show, verify};
use crate::cluster::catalog::StatementCatalog;
use crate::explain;
use crate::ingest::insert;
use crate::outcome::Described;
use crate::session::StatementContext;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::logical_expr::LogicalPlan;
use sqlparser::ast::Query;
use std::sync::Arc;
use tessera_parser::Statement;
use tessera_proto::sql_type::SqlType;
use tessera_proto::{Result, Timestamp};

/// Describes a statement.
pub(crate) async fn describe(context: &StatementContext, statement: &Statement, hints: &[Option<SqlType>]) -> Result<Described> {
    let hints: Vec<Option<DataType>> = hints.iter().map(|h| h.map(SqlType::arrow)).collect();
    match statement {
        Statement::Query(query) => {
            let (plan, params) = bind(context, query, &hints).await?;
            let columns: SchemaRef = Arc::new(plan.schema().as_arrow().clone());
            Ok(Described { params, declared: declared(&plan), columns: Some(columns) })
        }
        Statement::Explain { query, .. } => {
            let (_, params) = bind(context, query, &hints).await?;
            Ok(rows(params, explain::schema()))
        }
        Statement::Insert(insert) => {
            let (source, types) = insert::describe(&StatementCatalog::new(context), insert)?;
            let count = hints.len().max(types.len());
            let known = |i: usize| hints.get(i).cloned().flatten().or_else(|| types.get(i).cloned().flatten());
            let merged: Vec<Option<DataType>> = (0..count).map(known).collect();
            let (_, params) = bind(context, &source, &merged).await?;
            Ok(Described { params, columns: None, declared: vec![] })
        }
        Statement::Show { name } if show::is_query(name) => {
            let (plan, _) = bind(context, &show::query(name)?, &[]).await?;
            Ok(rows(vec![], Arc::new(plan.schema().as_arrow().clone())))
        }
        Statement::Show { name } => Ok(rows(vec![], show::schema(name))),
        Statement::VerifyTable { .. } => Ok(rows(vec![], verify::schema())),
        _ => Ok(Described { params: vec![], columns: None, declared: vec![] }),
    }
}

fn rows(params: Vec<DataType>, columns: SchemaRef) -> Described {
    Described { params, declared: vec![None; columns.fields().len()], columns: Some(columns) }
}

/// The bound plan and the types of its parameters: declared, else inferred, else text.
async fn bind(context: &StatementContext, query: &Query, types: &[Option<DataType>]) -> Result<(LogicalPlan, Vec<DataType>)> {
    let catalog = StatementCatalog::new(context);
    let bound = prepare::bind(context, &catalog, query, types, Timestamp(0)).await?;
    let inferred = bound.plan.get_parameter_types()?;
    let number = |name: &String| name.trim_start_matches('$').parse::<usize>().unwrap_or(0);
    let count = inferred.keys().map(number).max().unwrap_or(0).max(types.len());
    let param = |i: usize| {
        let declared = types.get(i).cloned().flatten();
        declared.or_else(|| inferred.get(&format!("${}", i + 1)).cloned().flatten()).unwrap_or(DataType::Utf8View)
    };
    Ok((bound.plan, (0..count).map(param).collect()))
}

