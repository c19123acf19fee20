//! The query that finds the rows to lock: the user's, with the row keys of the locked tables behind its columns.
//!
//! ```text
//!   SELECT x.*, y.b FROM t x JOIN h y ON ... FOR UPDATE        h has no primary key
//!   SELECT x.*, y.b, x.k AS __tessera_lock_0_0, y.__tessera_lock_row_1 AS __tessera_lock_1_3
//!     FROM t x JOIN __tessera_lock_table_1 AS y ON ...         h with its hidden row id, under a name of its own
//! ```
//!
//! An asterisk shows that row id too; it is taken out of the rows again, together with the keys.

use super::clauses::Locked;
use crate::cluster::catalog::{StatementCatalog, Tables};
use crate::ingest::change_query::whole;
use datafusion::arrow::datatypes::Schema;
use datafusion::catalog::TableProvider;
use datafusion::common::{Column, TableReference};
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::logical_expr::{Expr as DfExpr, LogicalPlanBuilder};
use sqlparser::ast::{
    Expr, Ident, ObjectName, ObjectNamePart, Query, Select, SelectItem, SetExpr, TableAlias,
    TableAliasColumnDef, TableFactor, TableWithJoins,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use tessera_proto::table::{ROW_ID_COLUMN, TableDef};
use tessera_proto::{Error, Result};

/// Beginnings of names that nobody else uses.
const KEY: &str = "__tessera_lock_key_";
const ROW_ID: &str = "__tessera_lock_row_";
const TABLE: &str = "__tessera_lock_table_";

/// A locked table, and where its keys are.
#[derive(Debug)]
pub(super) struct Target {
    /// How it is locked.
    pub locked: Locked,
    /// Its columns that are read, row key and shard key, and how manieth of the appended columns each is.
    pub columns: Vec<(usize, usize)>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct LockQuery {
    /// Without locking clauses.
    pub query: Query,
    /// In the order of FROM.
    pub targets: Vec<Target>,
    /// Columns behind the user's.
    appended: usize,
    /// Tables that the query names besides.
    given: Vec<(String, Arc<dyn TableProvider>)>,
}

impl LockQuery {
    /// The query for a locking one.
    ///
    /// # Errors
    /// None is expected: the clauses were checked.
    pub(super) fn new(catalog: &StatementCatalog, query: &Query, locked: Vec<Locked>) -> Result<Self> {
        let mut query = query.clone();
        query.locks.clear();
        let (mut appended, mut given, mut targets, mut items) = (0, vec![], vec![], vec![]);
        for (number, locked) in locked.into_iter().enumerate() {
            let needed: BTreeSet<usize> = locked.table.row_key().into_iter().chain(locked.table.shard_key().iter().copied()).collect();
            let mut columns = vec![];
            for column in needed {
                let path = vec![locked.name.clone(), name_of(&locked, number, column)];
                items.push(SelectItem::ExprWithAlias {
                    expr: Expr::CompoundIdentifier(path),
                    alias: Ident::with_quote('"', format!("{KEY}{number}_{column}")),
                });
                columns.push((column, appended));
                appended += 1;
            }
            if locked.table.primary_key.is_empty() {
                given.push((format!("{TABLE}{number}"), with_row_id(catalog, &locked.table, number)?));
            }
            targets.push(Target { locked, columns });
        }
        if let Some(select) = select_of(&mut query) {
            let mut places = 0;
            for tables in &mut select.from {
                show_row_ids(tables, &targets, &mut places);
            }
            select.projection.extend(items);
        }
        Ok(Self {
            query,
            targets,
            appended,
            given,
        })
    }

    /// The tables that the query names, besides those given already.
    pub(super) fn tables(&self, given: &Arc<Tables>) -> Arc<Tables> {
        let mut tables = Tables::clone(given);
        tables.targets.extend(self.given.iter().cloned());
        Arc::new(tables)
    }

    /// Of the query's columns, those that the user asked for.
    ///
    /// # Errors
    /// XX000 when the keys are not among them.
    pub(super) fn shown(&self, schema: &Schema) -> Result<Vec<usize>> {
        let users = self.first_appended(schema)?;
        let is_shown = |column: &usize| !schema.field(*column).name().starts_with(ROW_ID);
        Ok((0..users).filter(is_shown).collect())
    }

    /// The place of the first appended column.
    ///
    /// # Errors
    /// XX000 when there is none.
    pub(super) fn first_appended(&self, schema: &Schema) -> Result<usize> {
        let columns = schema.fields().len().checked_sub(self.appended);
        columns.ok_or_else(|| Error::internal("a query that locks rows does not give their keys"))
    }
}

/// What expressions call a column of a locked table.
fn name_of(locked: &Locked, number: usize, column: usize) -> Ident {
    let definition = &locked.table.columns[column];
    if definition.hidden {
        return Ident::with_quote('"', format!("{ROW_ID}{number}"));
    }
    let renamed = locked.columns.get(column).cloned();
    renamed.unwrap_or_else(|| Ident::with_quote('"', &definition.name))
}

/// A table with its hidden row id, under a name that an asterisk or NATURAL JOIN confuses with no other.
fn with_row_id(catalog: &StatementCatalog, table: &Arc<TableDef>, number: usize) -> Result<Arc<dyn TableProvider>> {
    let columns = table.columns.iter().map(|column| {
        let read = DfExpr::Column(Column::new(Some(TABLE), &column.name));
        match column.hidden {
            true => read.alias(format!("{ROW_ID}{number}")),
            false => read,
        }
    });
    let columns: Vec<DfExpr> = columns.collect();
    let rows = provider_as_source(whole(catalog, table));
    let scan = LogicalPlanBuilder::scan(TableReference::bare(TABLE), rows, None);
    let plan = scan.and_then(|scan| scan.project(columns)?.build());
    let plan = plan.map_err(|e| Error::internal(format!("{ROW_ID_COLUMN} of table \"{}\": {e}", table.name)))?;
    Ok(Arc::new(ViewTable::new(plan, None)))
}

/// The SELECT that a query is, perhaps in parentheses.
fn select_of(query: &mut Query) -> Option<&mut Select> {
    match query.body.as_mut() {
        SetExpr::Select(select) => Some(select),
        SetExpr::Query(inner) => select_of(inner),
        _ => None,
    }
}

/// Puts tables that show their row ids in the place of those that have nothing else to name a row by. Places are counted as
/// clauses.rs does.
fn show_row_ids(tables: &mut TableWithJoins, targets: &[Target], places: &mut usize) {
    let joined = tables.joins.iter_mut().map(|join| &mut join.relation);
    for factor in std::iter::once(&mut tables.relation).chain(joined) {
        if let TableFactor::NestedJoin { table_with_joins, alias } = factor {
            *places += usize::from(alias.is_some());
            show_row_ids(table_with_joins, targets, places);
            continue;
        }
        let target = targets.iter().position(|target| target.locked.place == *places);
        *places += 1;
        let Some(number) = target.filter(|number| targets[*number].locked.table.primary_key.is_empty()) else {
            continue;
        };
        if let TableFactor::Table { name, alias, .. } = factor {
            let own = targets[number].locked.name.clone();
            *name = ObjectName(vec![ObjectNamePart::Identifier(Ident::new(format!("{TABLE}{number}")))]);
            let alias = alias.get_or_insert_with(|| TableAlias {
                explicit: true,
                name: own,
                columns: vec![],
                at: None,
            });
            // All columns have a name there, or none.
            if !alias.columns.is_empty() {
                let row_id = TableAliasColumnDef::from_name(format!("{ROW_ID}{number}"));
                alias.columns.push(row_id);
            }
        }
    }
}
