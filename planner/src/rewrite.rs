//! What PostgreSQL allows and DataFusion's SQL planner does not, or takes for something else, written in another way first.
//!
//! ```text
//!   FROM generate_series(1, 3)        FROM generate_series(1, 3) AS generate_series(generate_series)
//!   FROM generate_series(1, 3) AS i   FROM generate_series(1, 3) AS i(i)
//!   INTERVAL '1 day 02:03'            CAST('1 day 02:03' AS INTERVAL)       whoever binds reads it as PostgreSQL does
//!   SELECT k, k, *                    SELECT k, k AS "k 2", *               names of a projection must be unique
//!   f > 1e300                         f > CAST('1e300' AS double precision) more digits than numeric has here
//!   every(b), variance(f), sign(n)    bool_and(b), var_samp(f), signum(n)   the same by another name
//!   mod(a, b)                         a % b
//!   age(ts), div(a, b)                [`crate::spelling`]          json_agg(x), unnest             [`crate::sets`]
//!   a[1], array_remove(a, 1)          [`crate::arrays`]            mode() WITHIN GROUP (...)    [`crate::within_group`]
//! ```
//!
//! Clients see the names of the query as it was written ([`crate::names`]).

use crate::arrays;
use crate::sets;
use crate::spelling;
use crate::types::Length;
use crate::within_group;
use datafusion::arrow::datatypes::DECIMAL128_MAX_PRECISION;
use datafusion::execution::SessionState;
use sqlparser::ast::{
    BinaryOperator, CastKind, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident,
    Interval, ObjectName, Select, SelectItem, Statement, TableAlias, TableAliasColumnDef, TableFactor, Value,
    ValueWithSpan, VisitMut, VisitorMut,
};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Rewrites a statement in place; returns the names of functions in FROM, folded.
pub fn rewrite(statement: &mut Statement, state: &SessionState) -> Vec<String> {
    let mut rewriter = Rewriter {
        state,
        functions: vec![],
    };
    // Never breaks.
    let _ = statement.visit(&mut rewriter);
    rewriter.functions
}

struct Rewriter<'a> {
    state: &'a SessionState,
    functions: Vec<String>,
}

impl VisitorMut for Rewriter<'_> {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        make_unique(select);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let Some(other) = sets::rewritten_table(factor) {
            *factor = other;
            return ControlFlow::Continue(());
        }
        let TableFactor::Table {
            name,
            alias,
            args: Some(_),
            ..
        } = factor
        else {
            return ControlFlow::Continue(());
        };
        let Some(function) = name.0.last().and_then(|part| part.as_ident()).map(folded) else {
            return ControlFlow::Continue(());
        };
        if self.state.table_functions().contains_key(&function) {
            let alias = alias.get_or_insert_with(|| TableAlias {
                explicit: true,
                name: Ident::new(&function),
                columns: vec![],
                at: None,
            });
            if alias.columns.is_empty() {
                alias.columns.push(TableAliasColumnDef {
                    name: alias.name.clone(),
                    data_type: None,
                });
            }
            // DataFusion looks the function up as it is written.
            *name = ObjectName::from(vec![Ident::new(&function)]);
        }
        self.functions.push(function);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Some(other) = arrays::rewritten(expr).or_else(|| spelling::rewritten(expr)) {
            *expr = other;
            return ControlFlow::Continue(());
        }
        if let Expr::Function(function) = expr
            && let Some(other) = within_group::rewritten(function)
        {
            *function = other;
            return ControlFlow::Continue(());
        }
        if let Expr::Function(function) = expr
            && let Some(other) = sets::rewritten(function)
        {
            *expr = other;
            return ControlFlow::Continue(());
        }
        if let Expr::Function(function) = expr
            && let Some(other) = renamed(function)
        {
            *expr = other;
            return ControlFlow::Continue(());
        }
        if let Expr::Value(ValueWithSpan {
            value: Value::Number(number, _),
            span,
        }) = expr
            && is_beyond_numeric(number)
        {
            let text = Value::SingleQuotedString(number.clone()).with_span(*span);
            *expr = cast(text, DataType::DoublePrecision);
            return ControlFlow::Continue(());
        }
        let Expr::Interval(Interval {
            value,
            leading_field: None,
            last_field: None,
            ..
        }) = expr
        else {
            return ControlFlow::Continue(());
        };
        if let Expr::Value(text) = value.as_ref()
            && matches!(text.value, Value::SingleQuotedString(_))
        {
            let to = DataType::Interval {
                fields: None,
                precision: None,
            };
            *expr = cast(text.clone(), to);
        }
        ControlFlow::Continue(())
    }
}

/// A call of a function that DataFusion has by another name, or as an operator.
fn renamed(function: &Function) -> Option<Expr> {
    let [part] = function.name.0.as_slice() else {
        return None;
    };
    let name = match folded(part.as_ident()?).as_str() {
        "every" => "bool_and",
        "variance" => "var_samp",
        "sign" => "signum",
        "mod" => {
            let FunctionArguments::List(list) = &function.args else {
                return None;
            };
            let operand = |arg: &FunctionArg| match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => {
                    Some(Box::new(Expr::Nested(Box::new(expr.clone()))))
                }
                _ => None,
            };
            let [left, right] = list.args.as_slice() else {
                return None;
            };
            return Some(Expr::Nested(Box::new(Expr::BinaryOp {
                left: operand(left)?,
                op: BinaryOperator::Modulo,
                right: operand(right)?,
            })));
        }
        _ => return None,
    };
    Some(Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        ..function.clone()
    }))
}

fn cast(constant: ValueWithSpan, data_type: DataType) -> Expr {
    Expr::Cast {
        kind: CastKind::Cast,
        expr: Box::new(Expr::Value(constant)),
        data_type,
        array: false,
        format: None,
    }
}

/// Whether a constant with an exponent has more digits before and after its point than a numeric can have.
fn is_beyond_numeric(number: &str) -> bool {
    let Some((mantissa, exponent)) = number.split_once(['e', 'E']) else {
        return false;
    };
    let Ok(exponent) = exponent.parse::<i64>() else {
        // Not even a number's exponent fits; the cast says what is wrong.
        return true;
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let whole = whole.trim_start_matches('0').len() as i64;
    let before = whole.saturating_add(exponent).max(0);
    let after = (fraction.len() as i64).saturating_sub(exponent).max(0);
    before.saturating_add(after) > i64::from(DECIMAL128_MAX_PRECISION)
}

/// Names repeated items of a SELECT list.
fn make_unique(select: &mut Select) {
    // With one table in FROM, `a` and `t.a` are the same.
    let single = matches!(select.from.as_slice(), [only] if only.joins.is_empty());
    let is_wildcard = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
    let wildcard = select.projection.iter().any(is_wildcard);
    let mut seen = HashSet::new();
    if !wildcard {
        name_casts(select);
    }
    for (position, item) in select.projection.iter_mut().enumerate() {
        let (expr, key, is_column) = match item {
            SelectItem::ExprWithAlias { expr, alias } => (expr, format!("as {}", folded(alias)), false),
            SelectItem::UnnamedExpr(expr) => {
                let column = match expr {
                    Expr::Identifier(ident) => Some(folded(ident)),
                    Expr::CompoundIdentifier(parts) if single => parts.last().map(folded),
                    _ => None,
                };
                let is_column = matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
                let key = column.unwrap_or_else(|| spelled(expr));
                (expr, key, is_column)
            }
            _ => continue,
        };
        if !seen.insert(key.clone()) || (wildcard && is_column) {
            *item = SelectItem::ExprWithAlias {
                expr: expr.clone(),
                alias: Ident::with_quote('"', format!("{key} {}", position + 1)),
            };
        }
    }
}

/// Gives casts of columns the column's name, as PostgreSQL does, where no other item has it: ORDER BY means them then.
fn name_casts(select: &mut Select) {
    let column = |expr: &Expr| match expr {
        Expr::Identifier(ident) => Some(folded(ident)),
        Expr::CompoundIdentifier(parts) => parts.last().map(folded),
        _ => None,
    };
    let name = |item: &SelectItem| match item {
        SelectItem::ExprWithAlias { alias, .. } => Some(folded(alias)),
        SelectItem::UnnamedExpr(Expr::Cast { expr, .. }) => column(expr),
        SelectItem::UnnamedExpr(expr) => column(expr),
        _ => None,
    };
    let names: Vec<_> = select.projection.iter().map(name).collect();
    for (item, name) in select.projection.iter_mut().zip(&names) {
        if let SelectItem::UnnamedExpr(expr @ Expr::Cast { .. }) = item
            && let Some(name) = name
            && names.iter().flatten().filter(|other| *other == name).count() == 1
        {
            *item = SelectItem::ExprWithAlias {
                expr: expr.clone(),
                alias: Ident::with_quote('"', name),
            };
        }
    }
}

/// One spelling for expressions that DataFusion gives one name.
fn spelled(expr: &Expr) -> String {
    let cast = |inner: String, data_type: &DataType| match data_type {
        DataType::Text => format!("CAST({inner} AS text)"),
        sized if Length::of(sized).is_some() => format!("CAST({inner} AS text)"),
        other => format!("CAST({inner} AS {other})"),
    };
    match expr {
        Expr::Cast { expr, data_type, .. } => cast(expr.to_string(), data_type),
        Expr::TypedString(typed) => cast(typed.value.to_string(), &typed.data_type),
        other => other.to_string(),
    }
}

fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        None => ident.value.to_lowercase(),
        Some(_) => ident.value.clone(),
    }
}
