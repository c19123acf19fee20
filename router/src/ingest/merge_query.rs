//! The two queries of a MERGE: pairs of rows of target and source, and rows of the source that are in none.
//!
//! ```text
//!   MERGE INTO t USING s ON t.k = s.k  WHEN MATCHED AND s.n = 0 THEN DELETE  WHEN MATCHED THEN UPDATE SET n = s.n / t.n
//!                                      WHEN NOT MATCHED THEN INSERT VALUES (s.k, n)
//!     SELECT CASE WHEN s.n = 0 THEN 1 ELSE 2 END, t.k, t.n, ..., CASE WHEN s.n = 0 THEN NULL ELSE s.n / t.n END
//!       FROM <target> AS t, s WHERE t.k = s.k
//!     SELECT 3, s.k, n FROM s WHERE NOT EXISTS (SELECT 1 FROM <target> AS t WHERE t.k = s.k)
//! ```
//!
//! The first column is the number of the clause that fits first, or 0. Values are computed for the rows of their clause only: one that
//! an earlier clause keeps from dividing by zero must not divide. In the second query no column of the target can be named, as the
//! standard has it. Both read one snapshot, so a row of the source is in one of them, unless the source is volatile (`random()`).

use super::change_query::{check_rowwise, filled, new_values, parameter_types, quoted, target_query, whole};
use super::{cast, insert};
use crate::cluster::catalog::StatementCatalog;
use datafusion::arrow::datatypes::DataType;
use datafusion::catalog::TableProvider;
use datafusion::logical_expr::LogicalPlan;
use sqlparser::ast::helpers::attached_token::AttachedToken;
use sqlparser::ast::{CaseWhen, Expr, Query, SelectItem, UnaryOperator, Value};
use std::sync::Arc;
use tessera_parser::{Assignment, Merge, MergeAction, MergeClause};
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result};

/// A MERGE with its names resolved.
#[derive(Debug)]
pub(crate) struct MergeSearch {
    /// The table that rows are merged into.
    pub table: Arc<TableDef>,
    /// What its name in the queries stands for.
    pub target: Arc<dyn TableProvider>,
    /// Pairs; `None` where nothing is done with them. After the number come all columns of the target.
    pub pairs: Option<Half>,
    /// Rows of the source that are in no pair; `None` where nothing is done with them.
    pub rest: Option<Half>,
}

/// One of the queries.
#[derive(Debug)]
pub(crate) struct Half {
    /// The query.
    pub query: Query,
    /// Types that parameters get from the columns they are assigned to.
    pub types: Vec<Option<DataType>>,
    /// What the clauses do, by number; those that do nothing are left out.
    pub steps: Vec<Step>,
}

/// What a clause does with its rows.
#[derive(Debug)]
pub(crate) struct Step {
    /// The clause's number.
    pub number: i64,
    /// What it does.
    pub kind: StepKind,
    /// Table columns that get values, in order.
    pub columns: Vec<usize>,
    /// Where the first of these values is in the query's columns.
    pub first: usize,
}

/// See [`Step::kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StepKind {
    /// The target's row gets new values.
    Update,
    /// The target's row goes.
    Delete,
    /// A row is added.
    Insert,
}

impl MergeSearch {
    /// Resolves a MERGE.
    ///
    /// # Errors
    /// 42P01, 42703 and 42601 for the target and its columns; 42712 when the source is called as it.
    pub(crate) fn new(catalog: &StatementCatalog, merge: &Merge) -> Result<Self> {
        let table = insert::find_table(catalog, &merge.table)?;
        let name = merge.alias.as_deref().unwrap_or(&merge.table.name);
        super::change_query::check_names(name, std::slice::from_ref(&merge.source))?;
        let clauses: Vec<(i64, &MergeClause)> = (1..).zip(&merge.clauses).collect();
        let of = |matched: bool| -> Vec<(i64, &MergeClause)> {
            let fits = |(_, clause): &&(i64, &MergeClause)| clause.matched == matched;
            clauses.iter().filter(fits).copied().collect()
        };
        let (matched, others) = (of(true), of(false));
        let column = |column: usize| {
            let path = vec![quoted(name), quoted(&table.columns[column].name)];
            let alias = quoted(&format!("__tessera_old_{column}"));
            SelectItem::ExprWithAlias {
                expr: Expr::CompoundIdentifier(path),
                alias,
            }
        };
        let old = (0..table.columns.len()).map(column).collect();
        let pairs = half(&table, &matched, old, |projection| {
            target_query(name, |select| {
                select.projection = projection;
                select.from.push(merge.source.clone());
                select.selection = Some(merge.on.clone());
            })
        })?;
        let rest = half(&table, &others, vec![], |projection| {
            let pair = target_query(name, |select| select.selection = Some(merge.on.clone()))?;
            filled("SELECT 1", |select| {
                select.projection = projection;
                select.from.push(merge.source.clone());
                select.selection = Some(Expr::Exists {
                    subquery: Box::new(pair),
                    negated: true,
                });
            })
        })?;
        Ok(Self {
            target: whole(catalog, &table),
            table,
            pairs,
            rest,
        })
    }
}

impl Half {
    /// Whether the bound query gives values that the columns take.
    ///
    /// # Errors
    /// 42804; 42803, 42P20 and 0A000 for expressions that have no meaning for a single row.
    pub(crate) fn check(&self, table: &TableDef, plan: &LogicalPlan) -> Result<()> {
        check_rowwise(plan, "MERGE")?;
        for step in &self.steps {
            for (position, column) in (step.first..).zip(&step.columns) {
                let literal = insert::is_literal(plan, position);
                let data_type = plan.schema().field(position).data_type();
                cast::check_assignable(&table.columns[*column], data_type, literal)?;
            }
        }
        Ok(())
    }
}

/// The query for some clauses, and where their values are in it. `before` are columns between the number and the values.
fn half(
    table: &TableDef,
    clauses: &[(i64, &MergeClause)],
    before: Vec<SelectItem>,
    query: impl FnOnce(Vec<SelectItem>) -> Result<Query>,
) -> Result<Option<Half>> {
    let acts = |(_, clause): &&(i64, &MergeClause)| clause.action != MergeAction::Nothing;
    if !clauses.iter().any(|clause| acts(&clause)) {
        return Ok(None);
    }
    let fits = |clause: &MergeClause| clause.condition.clone();
    let numbers = clauses.iter().map(|(number, clause)| {
        let number = if clause.action == MergeAction::Nothing {
            0
        } else {
            *number
        };
        (fits(clause), integer(number))
    });
    let mut projection = vec![SelectItem::ExprWithAlias {
        expr: first_that_fits(numbers.collect(), Some(integer(0))),
        alias: quoted("__tessera_clause"),
    }];
    projection.extend(before);
    let (mut steps, mut types) = (vec![], vec![]);
    for (at, (number, clause)) in clauses.iter().enumerate().filter(|(_, clause)| acts(clause)) {
        let (kind, assignments) = values(table, clause)?;
        let names: Vec<String> = assignments.iter().map(|a| a.column.clone()).collect();
        let columns = match names.is_empty() {
            true => vec![],
            false => insert::targets(table, &names)?,
        };
        let known = parameter_types(table, &assignments, &columns);
        types.resize(types.len().max(known.len()), None);
        known.into_iter().enumerate().for_each(|(i, known)| {
            types[i] = types[i].take().or(known);
        });
        let first = projection.len();
        for item in new_values(table, &assignments, &columns) {
            let item = item?;
            let SelectItem::ExprWithAlias { expr, alias } = item else {
                return Err(Error::internal("a value without a name"));
            };
            // Others' rows: of clauses before this one, and those that its own condition leaves out.
            let others = clauses[..at].iter().map(|(_, clause)| (fits(clause), null()));
            let expr = match is_constant(&expr) {
                true => expr,
                false => first_that_fits(others.chain([(fits(clause), expr)]).collect(), None),
            };
            let alias = quoted(&format!("{}_{number}", alias.value));
            projection.push(SelectItem::ExprWithAlias { expr, alias });
        }
        steps.push(Step {
            number: *number,
            kind,
            columns,
            first,
        });
    }
    let query = query(projection)?;
    Ok(Some(Half { query, types, steps }))
}

/// What a clause does, and the values of columns.
fn values(table: &TableDef, clause: &MergeClause) -> Result<(StepKind, Vec<Assignment>)> {
    match &clause.action {
        MergeAction::Update { assignments } => Ok((StepKind::Update, assignments.clone())),
        MergeAction::Insert { columns, values } => {
            let Some(values) = values else {
                return Ok((StepKind::Insert, vec![]));
            };
            let mut targets = insert::targets(table, columns)?;
            insert::check_width(values.len(), columns.is_empty(), &mut targets)?;
            let assignment = |(column, value): (usize, &Expr)| Assignment {
                column: table.columns[column].name.clone(),
                value: value.clone(),
            };
            let assignments = targets.into_iter().zip(values).map(assignment);
            Ok((StepKind::Insert, assignments.collect()))
        }
        MergeAction::Delete | MergeAction::Nothing => Ok((StepKind::Delete, vec![])),
    }
}

/// `CASE WHEN condition THEN value ... ELSE otherwise END`; a value without a condition fits all that are left.
fn first_that_fits(cases: Vec<(Option<Expr>, Expr)>, mut otherwise: Option<Expr>) -> Expr {
    let mut conditions = vec![];
    for (condition, result) in cases {
        match condition {
            Some(condition) => conditions.push(CaseWhen { condition, result }),
            None => {
                otherwise = Some(result);
                break;
            }
        }
    }
    match (conditions.is_empty(), otherwise) {
        (true, otherwise) => otherwise.unwrap_or_else(null),
        (false, otherwise) => Expr::Case {
            case_token: AttachedToken::empty(),
            end_token: AttachedToken::empty(),
            operand: None,
            conditions,
            else_result: otherwise.map(Box::new),
        },
    }
}

fn integer(number: i64) -> Expr {
    Expr::Value(Value::Number(number.to_string(), false).into())
}

fn null() -> Expr {
    Expr::Value(Value::Null.into())
}

/// Computing it cannot fail. As it stands, it takes the type of its column.
fn is_constant(expr: &Expr) -> bool {
    match expr {
        Expr::Value(_) => true,
        Expr::Nested(inner) => is_constant(inner),
        Expr::UnaryOp {
            op: UnaryOperator::Minus,
            expr,
        } => matches!(expr.as_ref(), Expr::Value(_)),
        _ => false,
    }
}
