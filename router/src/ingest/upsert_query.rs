//! ON CONFLICT with its names resolved, and the query that gives rows that exist their new values.
//!
//! ```text
//!   INSERT INTO t AS x ... ON CONFLICT (id) DO UPDATE SET n = x.n + excluded.n WHERE x.n < 9
//!     SELECT x.number, x.n + excluded.n FROM <rows that exist> AS x, <rows left out> AS excluded
//!      WHERE (x.n < 9) AND x.number = excluded.number
//! ```
//!
//! Both are tables in memory, of the same length, so the query runs in the router; subqueries read the statement's snapshot. The
//! only unique key of a table is its primary key, so ON CONFLICT can mean no other.

use super::change_query::{check_rowwise, filled, new_values, parameter_types, quoted};
use super::returning::{ChangedRows, NUMBER};
use super::{cast, insert};
use crate::cluster::catalog::{EXCLUDED, TARGET, Targets};
use crate::error::no_column;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::DataType;
use datafusion::logical_expr::LogicalPlan;
use sqlparser::ast::{BinaryOperator, Expr, Query, Select, SelectItem};
use std::collections::BTreeSet;
use std::sync::Arc;
use tessera_parser::{Assignment, ConflictAction, ConflictTarget, Insert};
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result};

/// What expressions call the rows that were left out.
const ALIAS: &str = "excluded";

/// Whether a conflict can happen: a table without a primary key has no keys that could exist.
///
/// # Errors
/// 42P10 and 42704 when the target is not the primary key, 42703 for a column that does not exist.
pub(crate) fn has_key(table: &TableDef, target: &ConflictTarget) -> Result<bool> {
    let has_key = !table.primary_key.is_empty();
    match target {
        ConflictTarget::Any => Ok(has_key),
        ConflictTarget::Constraint(name) if has_key && *name == format!("{}_pkey", table.name) => Ok(true),
        ConflictTarget::Constraint(name) => Err(Error::new(
            "42704",
            format!("constraint \"{name}\" for table \"{}\" does not exist", table.name),
        )),
        ConflictTarget::Columns(names) => {
            let visible = || table.columns.iter().filter(|column| !column.hidden);
            let find = |name: &String| {
                let found = table.column(name).filter(|column| !table.columns[*column].hidden);
                found.ok_or_else(|| no_column(name, &table.name, visible().map(|column| column.name.as_str())))
            };
            let named = names.iter().map(find).collect::<Result<BTreeSet<usize>>>()?;
            let key: BTreeSet<usize> = table.primary_key.iter().copied().collect();
            match has_key && named == key {
                true => Ok(true),
                false => Err(Error::new(
                    "42P10",
                    "there is no unique or exclusion constraint matching the ON CONFLICT specification",
                )
                .with_hint("name the columns of the primary key; there are no other unique keys")),
            }
        }
    }
}

/// DO UPDATE of an INSERT into `table`, if it has one.
///
/// # Errors
/// Those of [`has_key`] and [`Update::new`].
pub(crate) fn describe(table: &TableDef, insert: &Insert) -> Result<Option<Update>> {
    let Some(conflict) = &insert.conflict else {
        return Ok(None);
    };
    has_key(table, &conflict.target)?;
    match &conflict.action {
        ConflictAction::Nothing => Ok(None),
        ConflictAction::Update { assignments, selection } => {
            Update::new(table, insert, assignments, selection.as_ref()).map(Some)
        }
    }
}

/// DO UPDATE with its names resolved.
#[derive(Debug)]
pub(crate) struct Update {
    /// Table columns that are assigned, in order.
    pub new: Vec<usize>,
    /// The query: a number of [`Self::targets`], then the new values.
    pub query: Query,
    /// Types that parameters get from the columns they are assigned to.
    pub types: Vec<Option<DataType>>,
}

impl Update {
    /// Of an INSERT into `table`.
    ///
    /// # Errors
    /// 42703 for columns; 42712 when the table is called `excluded`.
    pub(crate) fn new(
        table: &TableDef,
        insert: &Insert,
        assignments: &[Assignment],
        selection: Option<&Expr>,
    ) -> Result<Self> {
        let name = insert.alias.as_deref().unwrap_or(&insert.table.name);
        if name == ALIAS {
            let message = format!("table name \"{ALIAS}\" specified more than once");
            return Err(Error::new("42712", message).with_hint("give the table an alias"));
        }
        let names: Vec<String> = assignments.iter().map(|a| a.column.clone()).collect();
        let new = insert::targets(table, &names)?;
        let values = new_values(table, assignments, &new).collect::<Result<Vec<_>>>()?;
        let number = |of: &str| Expr::CompoundIdentifier(vec![quoted(of), quoted(NUMBER)]);
        let fill = |select: &mut Select| {
            select.projection = vec![SelectItem::UnnamedExpr(number(name))];
            select.projection.extend(values);
            let same = binary(number(name), BinaryOperator::Eq, number(ALIAS));
            select.selection = Some(match selection {
                Some(condition) => {
                    let condition = Expr::Nested(Box::new(condition.clone()));
                    binary(condition, BinaryOperator::And, same)
                }
                None => same,
            });
        };
        let text = format!("SELECT 1 FROM {TARGET} AS {}, {EXCLUDED} AS {ALIAS}", quoted(name));
        Ok(Self {
            query: filled(&text, fill)?,
            types: parameter_types(table, assignments, &new),
            new,
        })
    }

    /// What the query reads: rows that exist, and for each the one left out.
    ///
    /// # Errors
    /// None is expected.
    pub(crate) fn targets(table: &Arc<TableDef>, existing: &RecordBatch, excluded: &RecordBatch) -> Result<Targets> {
        Ok(vec![
            (TARGET, Arc::new(ChangedRows::numbered(table.clone(), existing)?)),
            (EXCLUDED, Arc::new(ChangedRows::numbered(table.clone(), excluded)?)),
        ])
    }

    /// Whether the bound query gives values that the columns take.
    ///
    /// # Errors
    /// 42804; 42803, 42P20 and 0A000 for expressions that have no meaning for a single row.
    pub(crate) fn check(&self, table: &TableDef, plan: &LogicalPlan) -> Result<()> {
        check_rowwise(plan, "UPDATE")?;
        for (position, column) in (1..).zip(&self.new) {
            let literal = insert::is_literal(plan, position);
            let data_type = plan.schema().field(position).data_type();
            cast::check_assignable(&table.columns[*column], data_type, literal)?;
        }
        Ok(())
    }
}

fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp {
        left: Box::new(left),
        op,
        right: Box::new(right),
    }
}
