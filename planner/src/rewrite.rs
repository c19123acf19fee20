//! What PostgreSQL allows and DataFusion's SQL planner does not, or takes for something else, written in another way first.
//!
//! ```text
//!   FROM generate_series(1, 3)        FROM generate_series(1, 3) AS generate_series(generate_series)
//!   FROM generate_series(1, 3) AS i   FROM generate_series(1, 3) AS i(i)
//!   INTERVAL '1 day 02:03'            CAST('1 day 02:03' AS INTERVAL)       whoever binds reads it as PostgreSQL does
//!   f > 1e300                         f > CAST('1e300' AS double precision) more digits than numeric has here
//!   1e15                              CAST('1000000000000000' AS numeric(16, 0)): DataFusion's has 1 digit and scale -15
//!   SELECT generate_series(1, k)      SELECT unnest(generate_series(1, k))  a row each, not an array
//!   every(b), variance(f), sign(n)    bool_and(b), var_samp(f), signum(n)   the same by another name
//!   mod(a, b)                         a % b
//!   age(ts), div(a, b)                [`crate::spelling`]          json_agg(x), unnest             [`crate::sets`]
//!   a[1], array_remove(a, 1)          [`crate::arrays`]            mode() WITHIN GROUP (...)    [`crate::within_group`]
//! ```
//!
//! Names and constants: [`crate::unique`], [`crate::constants`]. Clients see the names of the query as it was written
//! ([`crate::names`]).

use crate::constants::{array, as_written, compared, integer};
use crate::unique::{Naming, item_names, make_unique, show_casts};
use crate::unnest::written;
use crate::{arrays, sets, spelling, within_group};
use datafusion::arrow::datatypes::DECIMAL128_MAX_PRECISION;
use datafusion::execution::SessionState;
use sqlparser::ast::{
    BinaryOperator, CastKind, DataType, Distinct, ExactNumberInfo, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArgumentList, FunctionArguments, GroupByExpr, Ident, Interval, LimitClause, NamedWindowExpr, ObjectName,
    OrderBy, OrderByKind, Query, Select, Statement, TableAlias, TableAliasColumnDef, TableFactor, Value, ValueWithSpan,
    VisitMut, VisitorMut, WindowFrameBound, WindowSpec, WindowType,
};
use std::collections::HashSet;
use std::ops::ControlFlow;
use tessera_parser::TIES;
use tessera_proto::{Error, Result};

/// Aggregates that show the order of their rows.
pub const ORDERED_AGGREGATES: [&str; 4] = ["array_agg", "string_agg", "json_agg", "json_object_agg"];

/// What there is in a statement, for whoever binds it.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Names of functions in FROM, folded.
    pub functions: Vec<String>,
    /// Names that tables have in it, folded.
    pub tables: Vec<String>,
    /// It says WITH TIES.
    pub ties: bool,
    /// It has an aggregate that shows the order of its rows.
    pub ordered: bool,
}

/// Rewrites a statement in place.
///
/// # Errors
/// 22P02: a constant array that is none.
pub(crate) fn rewrite(statement: &mut Statement, state: &SessionState, naming: Naming) -> Result<Found> {
    let mut rewriter = Rewriter {
        state,
        naming,
        found: Found::default(),
        looked_into: HashSet::new(),
        queries: vec![],
        names: vec![],
    };
    match statement.visit(&mut rewriter) {
        ControlFlow::Continue(()) => Ok(rewriter.found),
        ControlFlow::Break(error) => Err(error),
    }
}

struct Rewriter<'a> {
    state: &'a SessionState,
    naming: Naming,
    found: Found,
    /// Queries in FROM and WITH, by their place in memory: others see their columns.
    looked_into: HashSet<*const Query>,
    /// How items of the queries around are named.
    queries: Vec<Naming>,
    /// PostgreSQL's names of the items of the SELECTs around.
    names: Vec<Vec<Option<String>>>,
}

impl VisitorMut for Rewriter<'_> {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        let inside = self.looked_into.contains(&std::ptr::from_ref(query));
        self.queries.push(if inside { Naming::All } else { self.naming });
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            self.looked_into.insert(std::ptr::from_ref(cte.query.as_ref()));
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        self.queries.pop();
        if let Some(OrderBy {
            kind: OrderByKind::Expressions(items),
            ..
        }) = &mut query.order_by
        {
            items.iter_mut().for_each(|item| as_written(&mut item.expr));
        }
        if let Some(LimitClause::LimitOffset { limit, offset, .. }) = &mut query.limit_clause {
            let exprs = limit
                .iter_mut()
                .chain(offset.iter_mut().map(|offset| &mut offset.value));
            exprs.for_each(as_count);
        }
        show_casts(query);
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Error> {
        self.names.push(item_names(select));
        for item in &mut select.projection {
            crate::series::unnest_series(item);
        }
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<Error> {
        let names = self.names.pop().unwrap_or_default();
        if let GroupByExpr::Expressions(items, _) = &mut select.group_by {
            for item in items {
                match item {
                    Expr::Rollup(sets) | Expr::Cube(sets) | Expr::GroupingSets(sets) => {
                        sets.iter_mut().flatten().for_each(as_written);
                    }
                    item => as_written(item),
                }
            }
        }
        if let Some(Distinct::On(items)) = &mut select.distinct {
            items.iter_mut().for_each(as_written);
        }
        for window in &mut select.named_window {
            if let NamedWindowExpr::WindowSpec(window) = &mut window.1 {
                mend_frame(window);
            }
        }
        let naming = self.queries.last().copied().unwrap_or(self.naming);
        make_unique(select, &names, naming);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<Error> {
        written::table(factor);
        if let Some(other) = sets::rewritten_table(factor) {
            *factor = other;
            return ControlFlow::Continue(());
        }
        match factor {
            TableFactor::Table { name, alias, .. } => {
                let last = name.0.last().and_then(|part| part.as_ident());
                let alias = alias.as_ref().map(|alias| &alias.name);
                self.found.tables.extend(alias.or(last).map(folded));
            }
            TableFactor::Derived { subquery, alias, .. } => {
                self.looked_into.insert(std::ptr::from_ref(subquery.as_ref()));
                self.found
                    .tables
                    .extend(alias.as_ref().map(|alias| folded(&alias.name)));
            }
            _ => {}
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
        self.found.functions.push(function);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        written::expression(expr);
        if let Some(other) = arrays::rewritten(expr).or_else(|| spelling::rewritten(expr)) {
            *expr = other;
            return ControlFlow::Continue(());
        }
        let spelled = match expr {
            Expr::Function(function) => {
                self.found.ties |= is_ties(function);
                self.found.ordered |= shows_order(function);
                let other = within_group::rewritten(function).map(Expr::Function);
                Ok(other
                    .or_else(|| sets::rewritten(function))
                    .or_else(|| renamed(function)))
            }
            Expr::AnyOp { .. } | Expr::AllOp { .. } => compared(expr),
            Expr::Cast { .. } => array(expr),
            Expr::UnaryOp { .. } => Ok(integer(expr)),
            Expr::Value(ValueWithSpan {
                value: Value::Number(number, _),
                span,
            }) => Ok(match with_exponent(number) {
                Some((text, data_type)) => Some(cast(Value::SingleQuotedString(text).with_span(*span), data_type)),
                None => integer(expr),
            }),
            Expr::Interval(interval) => Ok(plain(interval).map(|text| {
                let to = DataType::Interval {
                    fields: None,
                    precision: None,
                };
                cast(text.clone(), to)
            })),
            _ => Ok(None),
        };
        match spelled {
            Ok(Some(other)) => *expr = other,
            Ok(None) => {}
            Err(error) => return ControlFlow::Break(error),
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        // DataFusion takes a row for one by its first value.
        if let Expr::Tuple(values) = expr
            && let Some(first) = values.first_mut()
        {
            as_written(first);
        }
        if let Expr::Function(function) = expr
            && let Some(WindowType::WindowSpec(window)) = &mut function.over
        {
            mend_frame(window);
        }
        ControlFlow::Continue(())
    }
}

/// What stands behind LIMIT or OFFSET: a bigint, parameters too.
fn as_count(expr: &mut Expr) {
    as_written(expr);
    let is_number = matches!(expr, Expr::Value(value) if matches!(&value.value, Value::Number(..)));
    let is_ties = matches!(expr, Expr::Function(function) if is_ties(function));
    if !is_number && !is_ties {
        let inner = std::mem::replace(expr, Expr::Value(Value::Null.into()));
        *expr = Expr::Cast {
            kind: CastKind::Cast,
            expr: Box::new(inner),
            data_type: DataType::BigInt(None),
            array: false,
            format: None,
        };
    }
}

/// Whether a function's value depends on the order of its rows.
fn shows_order(function: &Function) -> bool {
    let name = function.name.0.last().and_then(|part| part.as_ident());
    name.is_some_and(|name| {
        ORDERED_AGGREGATES
            .iter()
            .any(|known| name.value.eq_ignore_ascii_case(known))
    })
}

fn is_ties(function: &Function) -> bool {
    let name = function.name.0.last().and_then(|part| part.as_ident());
    name.is_some_and(|name| name.value == TIES)
}

/// The text of `INTERVAL 'text'`.
fn plain(interval: &Interval) -> Option<&ValueWithSpan> {
    let (None, None) = (&interval.leading_field, &interval.last_field) else {
        return None;
    };
    match interval.value.as_ref() {
        Expr::Value(text) if matches!(text.value, Value::SingleQuotedString(_)) => Some(text),
        _ => None,
    }
}

/// Offsets of a frame as DataFusion reads them: numbers, and intervals in place of quoted constants and casts of them.
fn mend_frame(window: &mut WindowSpec) {
    let Some(frame) = &mut window.window_frame else { return };
    for bound in [Some(&mut frame.start_bound), frame.end_bound.as_mut()]
        .into_iter()
        .flatten()
    {
        let (WindowFrameBound::Preceding(Some(offset)) | WindowFrameBound::Following(Some(offset))) = bound else {
            continue;
        };
        as_written(offset);
        let text = match offset.as_ref() {
            Expr::Cast {
                expr,
                data_type: DataType::Interval { .. },
                ..
            } => expr.as_ref(),
            other => other,
        };
        if let Expr::Value(text) = text
            && matches!(text.value, Value::SingleQuotedString(_))
        {
            **offset = Expr::Interval(Interval {
                value: Box::new(Expr::Value(text.clone())),
                leading_field: None,
                leading_precision: None,
                last_field: None,
                fractional_seconds_precision: None,
            });
        }
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

/// A call of a function.
pub(crate) fn call(name: &str, args: Vec<Expr>) -> Expr {
    let unnamed = |arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg));
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: args.into_iter().map(unnamed).collect(),
            clauses: vec![],
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: vec![],
    })
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

/// A constant with an exponent as digits, and its type: a numeric if its digits before and after its point fit one.
fn with_exponent(number: &str) -> Option<(String, DataType)> {
    let (mantissa, exponent) = number.split_once(['e', 'E'])?;
    let double = Some((number.to_owned(), DataType::DoublePrecision));
    let Ok(exponent) = exponent.parse::<i64>() else {
        // Not even a number's exponent fits; the cast says what is wrong.
        return double;
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let significant = whole.trim_start_matches('0').len() as i64;
    let before = significant.saturating_add(exponent).max(0);
    let after = (fraction.len() as i64).saturating_sub(exponent).max(0);
    if before.saturating_add(after) > i64::from(DECIMAL128_MAX_PRECISION) {
        return double;
    }
    // Where the point goes in the mantissa's digits; so few that padding them is harmless.
    let digits = format!("{whole}{fraction}");
    let point = whole.len() as i64 + exponent;
    let padded = match point {
        ..=0 => format!("{}{digits}", "0".repeat((1 - point) as usize)),
        _ => format!("{digits:0<width$}", width = point as usize),
    };
    let (whole, fraction) = padded.split_at(point.max(1) as usize);
    let text = match fraction {
        "" => whole.to_owned(),
        fraction => format!("{whole}.{fraction}"),
    };
    let precision = (before + after).max(1) as u64;
    let size = ExactNumberInfo::PrecisionAndScale(precision, after);
    Some((text, DataType::Numeric(size)))
}

pub(crate) fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        None => ident.value.to_lowercase(),
        Some(_) => ident.value.clone(),
    }
}
