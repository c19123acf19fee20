//! The query that finds the rows of an UPDATE or a DELETE, with their new values.
//!
//! ```text
//!   UPDATE t AS x SET a = x.a + u.n FROM u WHERE x.k = u.k RETURNING x.a
//!     SELECT x.k, x.b, x.<row id>, x.a + u.n  FROM <target> AS x, u  WHERE x.k = u.k
//!            └ old: what is kept, and keys   └ new: the assigned columns, in order
//!   DELETE FROM t WHERE b                     SELECT t.k FROM <target> AS t WHERE t.b
//! ```
//!
//! The target is the table with its hidden row id, under a name that nobody else uses ([`TARGET`]). Everything else is a query
//! like any other: FROM is joined without a condition of its own, predicates prune shards, subqueries read the same snapshot.

use super::{cast, insert};
use crate::cluster::catalog::{StatementCatalog, TARGET};
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::datatypes::DataType;
use datafusion::catalog::TableProvider;
use datafusion::common::ColumnStatistics;
use datafusion::logical_expr::LogicalPlan;
use sqlparser::ast::{Expr, Ident, Query, Select, SelectItem, SetExpr, TableFactor, TableWithJoins};
use std::collections::BTreeSet;
use std::sync::Arc;
use tessera_parser::{Assignment, Delete, ObjectName, Returning, Statement, Update, is_default};
use tessera_planner::Catalog;
use tessera_proto::fragment::StubTable;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result};

/// An UPDATE or a DELETE.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change<'a> {
    /// Which of the two.
    pub kind: Kind,
    /// The table.
    pub table: &'a ObjectName,
    /// What expressions call it, where not by its name.
    pub alias: Option<&'a str>,
    /// New values; none of a DELETE.
    pub assignments: &'a [Assignment],
    /// Tables read besides.
    pub from: &'a [TableWithJoins],
    /// Which rows.
    pub selection: Option<&'a Expr>,
    /// What to answer with.
    pub returning: Option<&'a Returning>,
}

/// What becomes of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// They get new values.
    Update,
    /// They go.
    Delete,
}

impl Kind {
    /// As it is written.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

impl<'a> From<&'a Update> for Change<'a> {
    fn from(update: &'a Update) -> Self {
        Self {
            kind: Kind::Update,
            table: &update.table,
            alias: update.alias.as_deref(),
            assignments: &update.assignments,
            from: &update.from,
            selection: update.selection.as_ref(),
            returning: update.returning.as_ref(),
        }
    }
}

impl<'a> From<&'a Delete> for Change<'a> {
    fn from(delete: &'a Delete) -> Self {
        Self {
            kind: Kind::Delete,
            table: &delete.table,
            alias: delete.alias.as_deref(),
            assignments: &[],
            from: &delete.using,
            selection: delete.selection.as_ref(),
            returning: delete.returning.as_ref(),
        }
    }
}

impl Change<'_> {
    /// What expressions call the table.
    pub(crate) fn name(&self) -> &str {
        self.alias.unwrap_or(&self.table.name)
    }
}

/// The query, and what its columns are.
#[derive(Debug)]
pub(crate) struct Search {
    /// The table whose rows it finds.
    pub table: Arc<TableDef>,
    /// The query.
    pub query: Query,
    /// What [`TARGET`] stands for in it.
    pub target: Arc<dyn TableProvider>,
    /// Table columns whose old values come first, ascending.
    pub old: Vec<usize>,
    /// Table columns whose new values come after them.
    pub new: Vec<usize>,
    /// Types that parameters get from the columns they are assigned to.
    pub types: Vec<Option<DataType>>,
    kind: Kind,
}

impl Search {
    /// The query for a change.
    ///
    /// # Errors
    /// 42P01, 42703 for the target and its columns; 42712 when another table is called as it; 0A000 for views.
    pub(crate) fn new(catalog: &StatementCatalog, change: &Change<'_>) -> Result<Self> {
        let table = insert::find_table(catalog, change.table)?;
        check_names(change)?;
        let names: Vec<String> = change.assignments.iter().map(|a| a.column.clone()).collect();
        let new = match change.kind {
            Kind::Update => insert::targets(&table, &names)?,
            Kind::Delete => vec![],
        };
        let old = old_columns(&table, change, &new);
        let types = parameter_types(&table, change.assignments, &new);
        let items = items(&table, change, &old, &new)?;
        let query = target_query(change.name(), |select| {
            select.projection = items;
            select.from.extend(change.from.iter().cloned());
            select.selection = change.selection.cloned();
        })?;
        Ok(Self {
            target: whole(catalog, &table),
            table,
            query,
            old,
            new,
            types,
            kind: change.kind,
        })
    }

    /// Whether the bound query gives values that the columns take.
    ///
    /// # Errors
    /// 42804; 42P20 and 0A000 for expressions that have no meaning for a single row.
    pub(crate) fn check(&self, plan: &LogicalPlan) -> Result<()> {
        check_rowwise(plan, self.kind.name())?;
        for (position, column) in (self.old.len()..).zip(&self.new) {
            let literal = insert::is_literal(plan, position);
            let data_type = plan.schema().field(position).data_type();
            cast::check_assignable(&self.table.columns[*column], data_type, literal)?;
        }
        Ok(())
    }

    /// For each of the table's columns, where the query has its new value, or its old one if it keeps it.
    ///
    /// # Panics
    /// The query reads keys only.
    pub(super) fn latest(&self) -> Vec<usize> {
        let new = |column: usize| self.new.iter().position(|new| *new == column);
        let latest = |column: usize| new(column).map_or_else(|| self.position(column), |new| self.old.len() + new);
        (0..self.table.columns.len()).map(latest).collect()
    }

    /// Old values of these table columns in a batch of the query, in their declared types.
    ///
    /// # Errors
    /// None is expected: the values were stored.
    ///
    /// # Panics
    /// The query does not read one of the columns.
    pub(super) fn old_values(&self, columns: &[usize], found: &RecordBatch, zone: &str) -> Result<Vec<ArrayRef>> {
        let value = |column: &usize| {
            let values = found.column(self.position(*column));
            cast::assign(&self.table.columns[*column], values, zone)
        };
        columns.iter().map(value).collect()
    }

    fn position(&self, column: usize) -> usize {
        let position = self.old.iter().position(|old| *old == column);
        position.expect("keys and kept columns are read")
    }
}

/// # Errors
/// 42712 when a table of FROM or USING is called as the target.
fn check_names(change: &Change<'_>) -> Result<()> {
    let relations = change.from.iter().flat_map(|from| {
        let joined = from.joins.iter().map(|join| &join.relation);
        std::iter::once(&from.relation).chain(joined)
    });
    let called = |relation: &TableFactor| {
        let (name, alias) = match relation {
            TableFactor::Table { name, alias, .. } => (name.0.last().and_then(|part| part.as_ident()), alias),
            TableFactor::Derived { alias, .. } => (None, alias),
            _ => (None, &None),
        };
        let ident = alias.as_ref().map(|alias| &alias.name).or(name)?;
        Some(match ident.quote_style {
            Some(_) => ident.value.clone(),
            None => ident.value.to_lowercase(),
        })
    };
    match relations.filter_map(called).find(|name| name == change.name()) {
        Some(name) => Err(
            Error::new("42712", format!("table name \"{name}\" specified more than once"))
                .with_hint("give the other one an alias"),
        ),
        None => Ok(()),
    }
}

/// What must be known of the old row: its keys, and what it keeps.
fn old_columns(table: &TableDef, change: &Change<'_>, new: &[usize]) -> Vec<usize> {
    let keys = table.row_key().into_iter().chain(table.shard_key().iter().copied());
    let mut old: BTreeSet<usize> = keys.collect();
    if change.kind == Kind::Update || change.returning.is_some() {
        old.extend((0..table.columns.len()).filter(|column| !new.contains(column)));
    }
    old.into_iter().collect()
}

fn items(table: &TableDef, change: &Change<'_>, old: &[usize], new: &[usize]) -> Result<Vec<SelectItem>> {
    let named = |kind: &str, column: usize, expr: Expr| SelectItem::ExprWithAlias {
        expr,
        alias: quoted(&format!("__tessera_{kind}_{column}")),
    };
    let read = |column: &usize| {
        let path = vec![quoted(change.name()), quoted(&table.columns[*column].name)];
        named("old", *column, Expr::CompoundIdentifier(path))
    };
    let mut items: Vec<SelectItem> = old.iter().map(read).collect();
    for (assignment, column) in change.assignments.iter().zip(new) {
        let value = match is_default(&assignment.value) {
            true => insert::default_of(table, *column)?,
            false => assignment.value.clone(),
        };
        items.push(named("new", *column, value));
    }
    Ok(items)
}

fn parameter_types(table: &TableDef, assignments: &[Assignment], new: &[usize]) -> Vec<Option<DataType>> {
    let mut types = vec![];
    for (assignment, column) in assignments.iter().zip(new) {
        insert::note_placeholder(&mut types, &assignment.value, &table.columns[*column]);
    }
    types
}

/// The table with all of its columns.
fn whole(catalog: &StatementCatalog, table: &Arc<TableDef>) -> Arc<dyn TableProvider> {
    let known = catalog.statistics(table.id).map(|mut known| {
        // Nobody counts row ids.
        let columns = table.columns.len();
        known.column_statistics.resize(columns, ColumnStatistics::new_unknown());
        known
    });
    Arc::new(StubTable {
        schema: table.arrow_schema(),
        def: table.clone(),
        statistics: known,
        common: catalog.common_values(table.id),
    })
}

/// A SELECT from [`TARGET`] under a name, filled in by the caller.
///
/// # Errors
/// None is expected.
pub(super) fn target_query(name: &str, fill: impl FnOnce(&mut Select)) -> Result<Query> {
    let text = format!("SELECT 1 FROM {TARGET} AS {}", quoted(name));
    let parsed = tessera_parser::parse(&text).map_err(crate::error::from_parse)?;
    if let Some(Statement::Query(mut query)) = parsed.into_iter().next().map(|s| s.statement)
        && let SetExpr::Select(select) = query.body.as_mut()
    {
        fill(select);
        return Ok(*query);
    }
    Err(Error::internal(format!("not a SELECT: {text}")))
}

fn quoted(name: &str) -> Ident {
    Ident::with_quote('"', name)
}

/// Refuses what makes other rows than one for each of the target's; `place` is where it stands.
///
/// # Errors
/// 42803, 42P20, 0A000.
pub(super) fn check_rowwise(plan: &LogicalPlan, place: &str) -> Result<()> {
    match plan {
        LogicalPlan::Projection(projection) => check_rowwise(&projection.input, place),
        LogicalPlan::Aggregate(_) => Err(Error::new(
            "42803",
            format!("aggregate functions are not allowed in {place}"),
        )),
        LogicalPlan::Window(_) => Err(Error::new(
            "42P20",
            format!("window functions are not allowed in {place}"),
        )),
        LogicalPlan::Unnest(_) => Err(Error::unsupported(
            format!("set-returning functions are not allowed in {place}"),
            "write a value for each row",
        )),
        _ => Ok(()),
    }
}
