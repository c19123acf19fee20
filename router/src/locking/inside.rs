//! Locking queries inside others: in FROM, in WITH, in expressions.
//!
//! ```text
//!   UPDATE job SET taken = true WHERE id IN (SELECT id FROM job WHERE NOT taken ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
//!     1  SELECT id FROM job ... FOR UPDATE SKIP LOCKED     as a query of its own ──▶ {17}
//!     2  UPDATE job SET taken = true WHERE id IN (SELECT * FROM __tessera_locked_0)
//! ```
//!
//! The innermost come first, each once. So they cannot refer to the query around them, nor to names of its WITH; that is refused.

use super::locked;
use crate::cluster::catalog::Tables;
use crate::execute::query::Request;
use crate::ingest::Held;
use crate::session::StatementContext;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use futures::TryStreamExt;
use sqlparser::ast::{Ident, ObjectName, ObjectNamePart, Query, SetExpr, TableFactor, VisitMut, VisitorMut};
use std::ops::ControlFlow;
use std::sync::Arc;
use tessera_parser::Statement;
use tessera_proto::{Error, Result};

/// Beginning of the names of their rows.
const ROWS: &str = "__tessera_locked_";

/// The query with the rows of locking queries inside it in their place, and those rows.
///
/// # Errors
/// Those of the queries; 0A000 when one refers to what is around it; 54000 for too many rows.
pub(super) async fn rows_of_inner(context: &StatementContext, request: &Request<'_>) -> Result<(Query, Tables)> {
    let mut tables = Tables::clone(&request.tables);
    let mut query = request.query.clone();
    let mut take = Take {
        depth: 0,
        first: tables.rows.len(),
        taken: vec![],
        failed: None,
    };
    let _ = VisitMut::visit(&mut query, &mut take);
    if let Some(error) = take.failed {
        return Err(error);
    }
    let mut held = Held::default();
    for inner in take.taken {
        let given = Arc::new(tables.clone());
        let request = Request {
            tables: given,
            types: request.types.clone(),
            ..Request::new(&inner, request.params.clone())
        };
        let mut running = Box::pin(locked(context, &request)).await.map_err(explain)?;
        let mut rows = vec![];
        while let Some(batch) = running.stream.try_next().await? {
            held.add(&batch)?;
            rows.push(batch);
        }
        let rows = MemTable::try_new(running.schema, vec![rows])?;
        let name = format!("{ROWS}{}", tables.rows.len());
        tables.rows.push((name, Arc::new(rows) as Arc<dyn TableProvider>));
    }
    Ok((query, tables))
}

/// A name that is not found may be one of the query around it.
fn explain(error: Error) -> Error {
    match error.code.as_str() {
        "42P01" | "42703" => Error::unsupported(
            "FOR UPDATE in a query that refers to the query around it is not supported",
            "lock the rows first, in a query of its own",
        )
        .with_detail(error.message),
        _ => error,
    }
}

/// Takes locking queries out, the innermost first.
struct Take {
    depth: usize,
    first: usize,
    taken: Vec<Query>,
    failed: Option<Error>,
}

impl VisitorMut for Take {
    type Break = ();

    fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        self.depth -= 1;
        if self.depth == 0 || query.locks.is_empty() {
            return ControlFlow::Continue(());
        }
        match rows_query(self.first + self.taken.len()) {
            Ok(rows) => {
                self.taken.push(std::mem::replace(query, rows));
                ControlFlow::Continue(())
            }
            Err(error) => {
                self.failed = Some(error);
                ControlFlow::Break(())
            }
        }
    }
}

/// Whether a query stands in the place of one that was taken out.
pub(super) fn is_rows(query: &Query) -> bool {
    let SetExpr::Select(select) = query.body.as_ref() else {
        return false;
    };
    let name = select.from.first().map(|from| &from.relation);
    matches!(name, Some(TableFactor::Table { name, .. }) if name.to_string().starts_with(ROWS))
}

/// `SELECT * FROM` the rows of a query that was taken out.
fn rows_query(number: usize) -> Result<Query> {
    let parsed = tessera_parser::parse("SELECT * FROM t").map_err(crate::error::from_parse)?;
    if let Some(Statement::Query(mut query)) = parsed.into_iter().next().map(|s| s.statement)
        && let SetExpr::Select(select) = query.body.as_mut()
        && let Some(TableFactor::Table { name, .. }) = select.from.first_mut().map(|from| &mut from.relation)
    {
        *name = ObjectName(vec![ObjectNamePart::Identifier(Ident::new(format!("{ROWS}{number}")))]);
        return Ok(*query);
    }
    Err(Error::internal("a query for rows in memory is no SELECT"))
}
