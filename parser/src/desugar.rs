//! Trees that PostgreSQL has and the planner does not, put into others of the same meaning.
//!
//! ```text
//!   x COLLATE "C"                   x                        text is ordered by its bytes
//!   GROUP BY a, ()                  GROUP BY a
//!   GROUP BY ROLLUP (a), CUBE (b)   GROUP BY GROUPING SETS ((a, b), (a), (b), ())
//!   FROM t TABLESAMPLE SYSTEM (5)   FROM (SELECT * FROM t WHERE random() * 100 < 5) t
//!   (t).a                           t.a                      there are no columns of a row type
//!   |/ x, ||/ x, @ x, x ^ y, ~ x    +sqrt(x), +cbrt(x), +abs(x), +power(x, y), x # -1
//!   U&'\0061', N'a'                 'a'
//! ```
//!
//! Refused here: bit strings, other collations, samples that can be repeated.

use std::ops::ControlFlow;

use sqlparser::ast::{
    AccessExpr, BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments,
    GroupByExpr, Ident, ObjectName, Select, SetExpr, TableAlias, TableFactor, TableSample, TableSampleKind,
    TableSampleMethod, UnaryOperator, Value, ValueWithSpan, VisitMut, VisitorMut,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

use crate::error::{ParseError, Stop};
use crate::spelling::DISTINCT_SETS;
use crate::split::Tok;
use crate::statement::Unsupported;

/// Most sets of one GROUP BY, as in PostgreSQL.
const SETS_MAX: usize = 4096;

/// Rewrites `tree`, which was read from `toks`, in place.
pub(crate) fn desugar(sql: &str, toks: &[Tok], tree: &mut impl VisitMut) -> Result<(), Stop> {
    match tree.visit(&mut Desugar { sql, toks }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(stop) => Err(stop),
    }
}

struct Desugar<'a> {
    sql: &'a str,
    toks: &'a [Tok],
}

type Done = ControlFlow<Stop>;

fn refuse(what: impl Into<String>, hint: impl Into<String>) -> Done {
    let (what, hint) = (what.into(), hint.into());
    ControlFlow::Break(Stop::Unsupported(Unsupported { what, hint }))
}

impl VisitorMut for Desugar<'_> {
    type Break = Stop;

    fn post_visit_select(&mut self, select: &mut Select) -> Done {
        match &mut select.group_by {
            GroupByExpr::Expressions(items, modifiers) if modifiers.is_empty() => {
                match grouped(std::mem::take(items)) {
                    Ok(grouped) => {
                        *items = grouped;
                        ControlFlow::Continue(())
                    }
                    Err(error) => ControlFlow::Break(error.into()),
                }
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> Done {
        let TableFactor::Table {
            name, alias, sample, ..
        } = factor
        else {
            return ControlFlow::Continue(());
        };
        let Some(TableSampleKind::BeforeTableAlias(kind) | TableSampleKind::AfterTableAlias(kind)) = sample else {
            return ControlFlow::Continue(());
        };
        let percentage = match percentage(kind) {
            Ok(percentage) => percentage,
            Err(stop) => return ControlFlow::Break(stop),
        };
        let Some(last) = name.0.last().and_then(|part| part.as_ident()).cloned() else {
            return ControlFlow::Continue(());
        };
        let alias = alias.take().unwrap_or(TableAlias {
            explicit: true,
            name: last,
            columns: vec![],
            at: None,
        });
        *sample = None;
        match sampled(factor, alias, &percentage) {
            Some(derived) => *factor = derived,
            None => return refuse("TABLESAMPLE in this place", "filter with random() < fraction"),
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> Done {
        match expr {
            Expr::Collate { expr: inner, collation } => {
                if !is_byte_order(collation) {
                    return ControlFlow::Break(self.no_collation(collation).into());
                }
                *expr = std::mem::replace(inner.as_mut(), Expr::Value(Value::Null.into()));
            }
            Expr::UnaryOp {
                op: UnaryOperator::BitwiseNot,
                expr: operand,
            } => {
                let operand = std::mem::replace(operand.as_mut(), Expr::Value(Value::Null.into()));
                let one = Expr::Value(Value::Number("1".into(), false).into());
                *expr = Expr::Nested(Box::new(Expr::BinaryOp {
                    left: Box::new(Expr::Nested(Box::new(operand))),
                    op: BinaryOperator::PGBitwiseXor,
                    right: Box::new(Expr::UnaryOp {
                        op: UnaryOperator::Minus,
                        expr: Box::new(one),
                    }),
                }));
            }
            Expr::UnaryOp { op, expr: operand } => {
                let function = match op {
                    UnaryOperator::PGSquareRoot => "sqrt",
                    UnaryOperator::PGCubeRoot => "cbrt",
                    UnaryOperator::PGAbs => "abs",
                    _ => return ControlFlow::Continue(()),
                };
                let operand = std::mem::replace(operand.as_mut(), Expr::Value(Value::Null.into()));
                *expr = operator(function, vec![operand]);
            }
            Expr::BinaryOp {
                left,
                op: BinaryOperator::PGExp,
                right,
            } => {
                let take = |e: &mut Box<Expr>| std::mem::replace(e.as_mut(), Expr::Value(Value::Null.into()));
                *expr = operator("power", vec![take(left), take(right)]);
            }
            Expr::CompoundFieldAccess { root, access_chain } => {
                let (Expr::Nested(inner), [AccessExpr::Dot(Expr::Identifier(field)), ..]) =
                    (root.as_ref(), access_chain.as_slice())
                else {
                    return ControlFlow::Continue(());
                };
                let Expr::Identifier(table) = inner.as_ref() else {
                    return ControlFlow::Continue(());
                };
                let column = Expr::CompoundIdentifier(vec![table.clone(), field.clone()]);
                match access_chain.len() {
                    1 => *expr = column,
                    _ => {
                        access_chain.remove(0);
                        **root = column;
                    }
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_value(&mut self, value: &mut ValueWithSpan) -> Done {
        match &mut value.value {
            Value::UnicodeStringLiteral(text) | Value::NationalStringLiteral(text) => {
                value.value = Value::SingleQuotedString(std::mem::take(text));
            }
            Value::HexStringLiteral(_) | Value::SingleQuotedByteStringLiteral(_) => {
                return refuse(
                    "a bit string (B'...' or X'...')",
                    "there is no type bit; write bytes as '\\x1f'::bytea, and flags as an integer with & and |",
                );
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

impl Desugar<'_> {
    fn no_collation(&self, collation: &ObjectName) -> ParseError {
        let name = collation.0.last().and_then(|part| part.as_ident());
        let place = name.map(|name| name.span.start);
        let tok = place.and_then(|place| self.toks.iter().find(|tok| tok.token.span.start == place));
        let shown = name.map_or_else(|| collation.to_string(), folded);
        let message = format!("collation \"{shown}\" for encoding \"UTF8\" does not exist");
        let error = match tok {
            Some(tok) => ParseError::at(self.sql, tok.start, "42704", message),
            None => ParseError::whole("42704", message),
        };
        error.with_hint("text is ordered by its bytes: leave COLLATE out, or write COLLATE \"C\"")
    }
}

fn folded(name: &Ident) -> String {
    match name.quote_style {
        None => name.value.to_lowercase(),
        Some(_) => name.value.clone(),
    }
}

fn is_byte_order(collation: &ObjectName) -> bool {
    let names: Vec<String> = collation
        .0
        .iter()
        .filter_map(|part| part.as_ident())
        .map(folded)
        .collect();
    let name = match names.as_slice() {
        [name] => name,
        [schema, name] if schema == "pg_catalog" => name,
        _ => return false,
    };
    ["C", "POSIX", "default", "ucs_basic"].contains(&name.as_str())
}

/// A call that stands for an operator: the plus keeps its column from being named like the function.
fn operator(name: &str, args: Vec<Expr>) -> Expr {
    let unnamed = |arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg));
    let call = Expr::Function(Function {
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
    });
    Expr::UnaryOp {
        op: UnaryOperator::Plus,
        expr: Box::new(call),
    }
}

/// The items of a GROUP BY with at most one that stands for several sets.
fn grouped(mut items: Vec<Expr>) -> Result<Vec<Expr>, ParseError> {
    let is_mark =
        |e: &Expr| matches!(e, Expr::Identifier(name) if name.value == DISTINCT_SETS && name.quote_style.is_some());
    let distinct = items.first().is_some_and(is_mark);
    if distinct {
        items.remove(0);
    }
    let is_empty = |e: &Expr| matches!(e, Expr::Tuple(parts) if parts.is_empty());
    let has_empty = items.iter().any(is_empty);
    let several = items
        .iter()
        .filter(|e| matches!(e, Expr::GroupingSets(_) | Expr::Rollup(_) | Expr::Cube(_)))
        .count();
    if several == 0 {
        if has_empty {
            items.retain(|e| !is_empty(e));
            if items.is_empty() {
                items.push(Expr::GroupingSets(vec![vec![]]));
            }
        }
        return Ok(items);
    }
    if several == 1 && !has_empty && !distinct {
        return Ok(items);
    }
    let mut sets: Vec<Vec<Expr>> = vec![vec![]];
    for item in items {
        let others = sets_of(item)?;
        if sets.len().saturating_mul(others.len()) > SETS_MAX {
            return Err(too_many());
        }
        let joined = |set: &Vec<Expr>, other: &Vec<Expr>| {
            let mut all = set.clone();
            all.extend(other.iter().filter(|e| !set.contains(e)).cloned());
            all
        };
        sets = sets
            .iter()
            .flat_map(|set| others.iter().map(move |other| joined(set, other)))
            .collect();
    }
    if distinct {
        let mut seen: Vec<Vec<String>> = vec![];
        sets.retain(|set| {
            let mut spelled: Vec<String> = set.iter().map(ToString::to_string).collect();
            spelled.sort();
            let new = !seen.contains(&spelled);
            seen.push(spelled);
            new
        });
    }
    Ok(vec![Expr::GroupingSets(sets)])
}

fn too_many() -> ParseError {
    ParseError::whole("54001", format!("too many grouping sets present (maximum {SETS_MAX})"))
}

/// The sets that an item of a GROUP BY stands for.
fn sets_of(item: Expr) -> Result<Vec<Vec<Expr>>, ParseError> {
    Ok(match item {
        Expr::GroupingSets(sets) => sets,
        Expr::Tuple(parts) => vec![parts],
        Expr::Rollup(parts) => (0..=parts.len()).rev().map(|n| parts[..n].concat()).collect(),
        Expr::Cube(parts) => {
            if parts.len() > 12 {
                return Err(too_many());
            }
            let subset = |mask: usize| {
                let chosen = parts.iter().enumerate().filter(|(i, _)| mask & (1 << i) != 0);
                chosen.flat_map(|(_, part)| part.clone()).collect()
            };
            (0..1_usize << parts.len()).rev().map(subset).collect()
        }
        other => vec![vec![other]],
    })
}

/// The percentage of a sample.
fn percentage(sample: &TableSample) -> Result<String, Stop> {
    let unsupported = |what: &str, hint: &str| {
        Stop::Unsupported(Unsupported {
            what: what.into(),
            hint: hint.into(),
        })
    };
    if sample.seed.is_some() {
        return Err(unsupported(
            "TABLESAMPLE ... REPEATABLE",
            "filter by a hash of the key, as in id % 100 < 5, to see the same rows again",
        ));
    }
    let method = matches!(
        sample.name,
        Some(TableSampleMethod::Bernoulli | TableSampleMethod::System)
    );
    let plain = method && sample.bucket.is_none() && sample.offset.is_none();
    let quantity = sample
        .quantity
        .as_ref()
        .filter(|q| plain && q.unit.is_none() && q.parenthesized);
    let text = quantity.map(|quantity| quantity.value.to_string());
    let Some((text, number)) = text.and_then(|text| text.parse::<f64>().ok().map(|number| (text, number))) else {
        return Err(unsupported(
            "TABLESAMPLE other than BERNOULLI (percentage) and SYSTEM (percentage)",
            "the percentage is a number; or filter with random() < fraction",
        ));
    };
    if !(0.0..=100.0).contains(&number) {
        return Err(ParseError::whole("2202H", "sample percentage must be between 0 and 100").into());
    }
    Ok(text)
}

/// The table's rows, each with this chance.
fn sampled(table: &TableFactor, alias: TableAlias, percentage: &str) -> Option<TableFactor> {
    let text = format!("SELECT * FROM t WHERE random() * 100 < {percentage}");
    let mut parser = Parser::new(&PostgreSqlDialect {}).try_with_sql(&text).ok()?;
    let mut query = parser.parse_query().ok()?;
    let SetExpr::Select(select) = query.body.as_mut() else {
        return None;
    };
    select.from.first_mut()?.relation = table.clone();
    Some(TableFactor::Derived {
        lateral: false,
        subquery: query,
        alias: Some(alias),
        sample: None,
    })
}
