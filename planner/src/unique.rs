//! Names in a SELECT list that DataFusion can tell apart.
//!
//! ```text
//!   SELECT k, k, *                      SELECT k, k AS "k 2", *                  clients see k, k: crate::names
//!   SELECT sum(x::int), sum(x::text)    sum(__tessera_as(x::int, 'int')), ...    DataFusion's names do not show casts
//!   FROM (SELECT count(*) FROM t) s     (SELECT count(*) AS count FROM t)        s.count is a column
//! ```
//!
//! The function is gone when the plan is optimised. Not here: two columns of one name behind an asterisk.

use crate::names::item_name;
use crate::rewrite::folded;
use crate::types::Length;
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr as PlanExpr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use sqlparser::ast::{
    DataType as SqlType, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Ident, ObjectName, Query,
    Select, SelectItem, SetExpr, Value, Visit, VisitMut, Visitor, VisitorMut,
};
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Stands between a name and the position that makes it unique: a space that does not break. [`crate::names`] takes both off.
pub(crate) const MARK: char = '\u{a0}';

/// Name of the function that shows a cast's type in the names of expressions.
const SHOWN: &str = "__tessera_as";

/// Which items of a SELECT list get names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// Those that are there twice.
    Repeated,
    /// All that are not columns: something else looks into them.
    All,
}

/// PostgreSQL's names of the items without one.
pub(crate) fn item_names(select: &Select) -> Vec<Option<String>> {
    select.projection.iter().map(item_name).collect()
}

/// Names items of a SELECT list; `names` are PostgreSQL's.
pub(crate) fn make_unique(select: &mut Select, names: &[Option<String>], naming: Naming) {
    // With one table in FROM, `a` and `t.a` are the same.
    let single = matches!(select.from.as_slice(), [only] if only.joins.is_empty());
    let is_wildcard = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
    let wildcard = select.projection.iter().any(is_wildcard);
    let counts = names.iter().flatten().fold(HashMap::new(), |mut counts, name| {
        *counts.entry(name.as_str()).or_insert(0) += 1;
        counts
    });
    let mut seen = HashSet::new();
    for (position, item) in select.projection.iter_mut().enumerate() {
        let name = names.get(position).and_then(Option::as_deref).unwrap_or("?column?");
        let unique = counts.get(name) == Some(&1) && name != "?column?";
        let (expr, key, is_column, to_name) = match item {
            SelectItem::ExprWithAlias { expr, alias } => (expr, format!("as {}", folded(alias)), false, false),
            SelectItem::UnnamedExpr(expr) => {
                let column = match expr {
                    Expr::Identifier(ident) => Some(folded(ident)),
                    Expr::CompoundIdentifier(parts) if single => parts.last().map(folded),
                    _ => None,
                };
                let is_column = matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
                // A cast of a column has the column's name where no other item has it: ORDER BY means it then.
                let named = !is_column && unique && !wildcard && (naming == Naming::All || casts_column(expr));
                if named {
                    let alias = Ident::with_quote('"', name);
                    seen.insert(format!("as {name}"));
                    *item = SelectItem::ExprWithAlias {
                        expr: expr.clone(),
                        alias,
                    };
                    continue;
                }
                let key = column.unwrap_or_else(|| spelled(expr).to_lowercase());
                (expr, key, is_column, naming == Naming::All && !is_column)
            }
            _ => continue,
        };
        let new = seen.insert(key);
        if !new || (wildcard && is_column) || to_name {
            *item = SelectItem::ExprWithAlias {
                expr: expr.clone(),
                alias: Ident::with_quote('"', format!("{name}{MARK}{}", position + 1)),
            };
        }
    }
}

fn casts_column(expr: &Expr) -> bool {
    let inner = match expr {
        Expr::Cast { expr, .. } => expr.as_ref(),
        expr => match shown(expr) {
            Some(Expr::Cast { expr, .. }) => expr.as_ref(),
            _ => return false,
        },
    };
    matches!(inner, Expr::Identifier(_) | Expr::CompoundIdentifier(_))
}

/// One spelling for expressions that DataFusion gives one name.
fn spelled(expr: &Expr) -> String {
    let cast = |inner: String, data_type: &SqlType| match data_type {
        SqlType::Text => format!("CAST({inner} AS text)"),
        sized if Length::of(sized).is_some() => format!("CAST({inner} AS text)"),
        other => format!("CAST({inner} AS {other})"),
    };
    match expr {
        Expr::Cast { expr, data_type, .. } => cast(expr.to_string(), data_type),
        Expr::TypedString(typed) => cast(typed.value.to_string(), &typed.data_type),
        other => other.to_string(),
    }
}

/// Shows the types of casts where expressions of a SELECT differ in nothing else.
pub(crate) fn show_casts(query: &mut Query) {
    let SetExpr::Select(select) = query.body.as_ref() else {
        return;
    };
    let mut named = Named::default();
    for item in &select.projection {
        if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
            named.note(expr);
        }
    }
    if let GroupByExpr::Expressions(items, _) = &select.group_by {
        items.iter().for_each(|item| named.note(item));
    }
    // Never breaks.
    let _ = Visit::visit(select, &mut named);
    let _ = Visit::visit(&query.order_by, &mut named);
    if !named.collides {
        return;
    }
    let mut show = Show;
    let _ = VisitMut::visit(&mut query.order_by, &mut show);
    let _ = VisitMut::visit(&mut query.body, &mut show);
}

/// Expressions whose names become columns of some plan.
#[derive(Default)]
struct Named {
    /// By their spelling without casts, as they are written.
    seen: HashMap<String, String>,
    collides: bool,
}

impl Named {
    fn note(&mut self, expr: &Expr) {
        if self.collides || !has_cast(expr) && matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_)) {
            return;
        }
        let written = expr.to_string();
        let without = match has_cast(expr) {
            true => {
                let mut without = expr.clone();
                let _ = VisitMut::visit(&mut without, &mut Strip);
                without.to_string()
            }
            false => written.clone(),
        };
        let before = self.seen.entry(without).or_insert_with(|| written.clone());
        self.collides = *before != written;
    }
}

impl Visitor for Named {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr
            && !is_shown(&function.name)
        {
            self.note(expr);
        }
        ControlFlow::Continue(())
    }
}

fn has_cast(expr: &Expr) -> bool {
    struct Casts;
    impl Visitor for Casts {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            match expr {
                Expr::Cast { .. } | Expr::TypedString(_) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        }
    }
    Visit::visit(expr, &mut Casts).is_break()
}

/// Takes casts off, and types of constants.
struct Strip;

impl VisitorMut for Strip {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let inner = match expr {
            Expr::Cast { expr, .. } | Expr::Nested(expr) => {
                std::mem::replace(expr.as_mut(), Expr::Value(Value::Null.into()))
            }
            Expr::TypedString(typed) => Expr::Value(typed.value.clone()),
            _ => return ControlFlow::Continue(()),
        };
        *expr = inner;
        ControlFlow::Continue(())
    }
}

/// Puts every cast into [`SHOWN`].
struct Show;

impl VisitorMut for Show {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let data_type = match expr {
            Expr::Cast { data_type, .. } => data_type.to_string(),
            Expr::TypedString(typed) => typed.data_type.to_string(),
            _ => return ControlFlow::Continue(()),
        };
        let cast = std::mem::replace(expr, Expr::Value(Value::Null.into()));
        let data_type = Expr::Value(Value::SingleQuotedString(data_type).into());
        *expr = crate::rewrite::call(SHOWN, vec![cast, data_type]);
        ControlFlow::Continue(())
    }
}

fn is_shown(name: &ObjectName) -> bool {
    matches!(name.0.as_slice(), [part] if part.as_ident().is_some_and(|ident| ident.value == SHOWN))
}

/// What stands in [`SHOWN`].
fn shown(expr: &Expr) -> Option<&Expr> {
    let Expr::Function(function) = expr else { return None };
    let FunctionArguments::List(list) = &function.args else {
        return None;
    };
    match list.args.first() {
        Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(inner))) if is_shown(&function.name) => Some(inner),
        _ => None,
    }
}

/// The function of this name, if it is ours.
pub(crate) fn function(name: &str) -> Option<Arc<ScalarUDF>> {
    let signature = Signature::any(2, Volatility::Immutable);
    (name == SHOWN).then(|| Arc::new(ScalarUDF::from(Shown { signature })))
}

/// Its first argument.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Shown {
    signature: Signature,
}

impl ScalarUDFImpl for Shown {
    fn name(&self) -> &str {
        SHOWN
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        internal_err!("{SHOWN} has the type of its field")
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        match args.arg_fields.first() {
            Some(field) => Ok(field.clone()),
            None => internal_err!("{SHOWN} without an argument"),
        }
    }

    fn simplify(&self, mut args: Vec<PlanExpr>, _: &SimplifyContext) -> Result<ExprSimplifyResult> {
        Ok(ExprSimplifyResult::Simplified(args.swap_remove(0)))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(args.args.swap_remove(0))
    }
}
