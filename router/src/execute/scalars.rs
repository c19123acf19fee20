//! Casts, operators and functions that give other values in PostgreSQL than in DataFusion, put into other words.
//!
//! ```text
//!   2.5::int                  rounded, then cast        DataFusion cuts off
//!   n / 3                     __tessera_divide(n, 3)    of numerics, 16 digits after the point, rounded
//!   ceil(n), trunc(n, 1)      __tessera_ceil(n)         of the scale that is left
//!   ts::text, f || 'x'        __router_text(ts)         as a client would see it
//!   d + interval '1 day'      CAST(d AS timestamp) + interval; compared with a date it stays one, where that is the same
//!   round(f), round(n, 1)     halves to the even neighbour, of numerics away from zero (DataFusion's has two types)
//!   extract(second FROM ts)   with its fraction
//!   to_char(ts, 'YYYY-MM')    __router_to_char          DataFusion reads the pattern as strftime does
//!   ln(f), sqrt(f), f ^ g     __tessera_ln, ...          fail where DataFusion gives NaN or infinity
//!   tz AT TIME ZONE 'z'       to_local_time of it       DataFusion gives the same instant again
//!   2 = ANY (array)           __tessera_array_any       NULL where an element is, and none is equal
//!   a SIMILAR TO '(x|y)%'     a ~ '^(?:(x|y).*)$'
//! ```
//!
//! Types that stay other than PostgreSQL's: numerics of one column have one scale, roots and powers of numerics are double
//! precision.

use super::json;
use super::text::{joined, text_of};
use super::to_char::{constant, to_char};
use super::to_char_number::to_number;
use super::type_names;
use datafusion::arrow::array::Array;
use datafusion::arrow::datatypes::{DECIMAL128_MAX_SCALE, DataType, TimeUnit};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result as DfResult};
use datafusion::functions::datetime::to_local_time;
use datafusion::functions::expr_fn::{character_length, encode};
use datafusion::logical_expr::expr::{Between, Like, ScalarFunction};
use datafusion::logical_expr::{BinaryExpr, Cast, Expr, ExprSchemable, Operator, lit};
use datafusion::scalar::ScalarValue;
use tessera_planner::operators::is_extract;
use tessera_proto::functions;
use tessera_proto::functions::arrays::ArrayKind;
use tessera_proto::functions::division::divide;
use tessera_proto::functions::domain;
use tessera_proto::functions::rounding::{Mode, is_rounded, rounded, rounded_float, rounded_to};
use tessera_proto::{Error, Result};

const TIMESTAMP: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);
const MICROS_SECOND: f64 = 1e6;
/// Of EXTRACT (epoch FROM date).
const WHOLE_SECONDS: DataType = DataType::Decimal128(20, 0);

/// One expression, its operands done already. Text is written for a session in `zone`.
///
/// # Errors
/// 0A000 for patterns that are not known.
pub(super) fn rewrite(expr: Expr, schema: &DFSchema, zone: &str) -> DfResult<Transformed<Expr>> {
    Ok(match expr {
        Expr::Cast(cast) => cast_of(cast, schema, zone),
        Expr::BinaryExpr(binary) => binary_of(binary, schema, zone)?,
        Expr::Between(between) => between_of(between, schema),
        Expr::SimilarTo(similar) => Transformed::yes(similar_to(similar)?),
        Expr::ScalarFunction(call) => function_of(call, schema, zone)?,
        other => Transformed::no(other),
    })
}

fn type_of(expr: &Expr, schema: &DFSchema) -> DataType {
    expr.get_type(schema).unwrap_or(DataType::Null)
}

fn cast_to(expr: Expr, to: DataType) -> Expr {
    Expr::Cast(Cast::new(Box::new(expr), to))
}

fn cast_of(cast: Cast, schema: &DFSchema, zone: &str) -> Transformed<Expr> {
    let (from, to) = (type_of(&cast.expr, schema), cast.field.data_type().clone());
    if is_extract(&cast.field) {
        let of_date = matches!(cast.expr.as_ref(), Expr::ScalarFunction(part)
            if part.args.get(1).is_some_and(|of| type_of(of, schema) == DataType::Date32));
        let to = match of_date {
            true => WHOLE_SECONDS,
            false => to,
        };
        return Transformed::yes(cast_to(*cast.expr, to));
    }
    if to.is_signed_integer()
        && (from.is_floating() || matches!(from, DataType::Decimal128(..)))
        && !is_rounded(&cast.expr)
    {
        let expr = Box::new(rounded(*cast.expr));
        return Transformed::yes(Expr::Cast(Cast { expr, ..cast }));
    }
    // Only AT TIME ZONE makes nanoseconds: timestamptz has microseconds here.
    if let DataType::Timestamp(TimeUnit::Nanosecond, at @ Some(_)) = &to {
        let there = cast_to(*cast.expr, DataType::Timestamp(TimeUnit::Microsecond, at.clone()));
        return Transformed::yes(match from {
            DataType::Timestamp(_, Some(_)) => to_local_time().call(vec![there]),
            _ => there,
        });
    }
    if is_text(&to) && is_written_otherwise(&from) {
        let text = text_of(*cast.expr, zone);
        return Transformed::yes(match to {
            DataType::Utf8View => text,
            to => cast_to(text, to),
        });
    }
    Transformed::no(Expr::Cast(cast))
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8)
}

/// Types whose values DataFusion writes in another way than PostgreSQL.
fn is_written_otherwise(data_type: &DataType) -> bool {
    use DataType::*;
    let binary = matches!(data_type, Binary | BinaryView | LargeBinary | FixedSizeBinary(_));
    let time = matches!(
        data_type,
        Timestamp(..) | Time32(_) | Time64(_) | Interval(_) | Duration(_)
    );
    data_type.is_floating() || data_type.is_nested() || binary || time
}

fn binary_of(binary: BinaryExpr, schema: &DFSchema, zone: &str) -> DfResult<Transformed<Expr>> {
    use Operator::*;
    let (left, right) = (type_of(&binary.left, schema), type_of(&binary.right, schema));
    let BinaryExpr { left: l, op, right: r } = binary;
    Ok(match op {
        Divide if is_exact(&left) && is_exact(&right) && (is_decimal(&left) || is_decimal(&right)) => {
            Transformed::yes(divide(as_decimal(*l, &left), as_decimal(*r, &right)))
        }
        Plus | Minus if left == DataType::Date32 && matches!(right, DataType::Interval(_)) => {
            let left = Box::new(cast_to(*l, TIMESTAMP));
            Transformed::yes(Expr::BinaryExpr(BinaryExpr { left, op, right: r }))
        }
        Plus if right == DataType::Date32 && matches!(left, DataType::Interval(_)) => {
            let right = Box::new(cast_to(*r, TIMESTAMP));
            Transformed::yes(Expr::BinaryExpr(BinaryExpr { left: l, op, right }))
        }
        Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom => {
            let left_day = whole_days(&l, schema).filter(|_| right == DataType::Date32);
            let right_day = whole_days(&r, schema).filter(|_| left == DataType::Date32);
            let changed = left_day.is_some() || right_day.is_some();
            let expr = Expr::BinaryExpr(BinaryExpr {
                left: left_day.map_or(l, Box::new),
                op,
                right: right_day.map_or(r, Box::new),
            });
            Transformed::new_transformed(expr, changed)
        }
        StringConcat if is_text(&left) != is_text(&right) => {
            let written = |e: Box<Expr>, t: &DataType| match is_written_otherwise(t) && !t.is_nested() {
                true => Box::new(text_of(*e, zone)),
                false => e,
            };
            let (left, right) = (written(l, &left), written(r, &right));
            Transformed::yes(Expr::BinaryExpr(BinaryExpr { left, op, right }))
        }
        _ => Transformed::no(Expr::BinaryExpr(BinaryExpr { left: l, op, right: r })),
    })
}

fn is_decimal(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Decimal128(..))
}

fn is_exact(data_type: &DataType) -> bool {
    is_decimal(data_type) || data_type.is_signed_integer()
}

/// An exact number as a numeric; `data_type` is its type.
pub(super) fn as_decimal(expr: Expr, data_type: &DataType) -> Expr {
    let digits = match data_type {
        DataType::Decimal128(..) => return expr,
        DataType::Int8 | DataType::Int16 => 5,
        DataType::Int32 => 10,
        _ => 20,
    };
    // A cast of a constant, too: names of columns show constants, and not casts.
    cast_to(expr, DataType::Decimal128(digits, 0))
}

/// `CAST(date AS timestamp) + interval` as a date, if the interval is of whole days or months: the midnight it is compares
/// with dates as its day does, and segments are pruned by it.
fn whole_days(expr: &Expr, schema: &DFSchema) -> Option<Expr> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = expr else {
        return None;
    };
    let Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(interval)), _) = right.as_ref() else {
        return None;
    };
    let Expr::Cast(cast) = left.as_ref() else { return None };
    let date = matches!(op, Operator::Plus | Operator::Minus)
        && interval.nanoseconds == 0
        && *cast.field.data_type() == TIMESTAMP
        && type_of(&cast.expr, schema) == DataType::Date32;
    date.then(|| {
        Expr::BinaryExpr(BinaryExpr {
            left: cast.expr.clone(),
            op: *op,
            right: right.clone(),
        })
    })
}

fn between_of(mut between: Between, schema: &DFSchema) -> Transformed<Expr> {
    let mut changed = false;
    if type_of(&between.expr, schema) == DataType::Date32 {
        for bound in [&mut between.low, &mut between.high] {
            if let Some(date) = whole_days(bound, schema) {
                **bound = date;
                changed = true;
            }
        }
    }
    Transformed::new_transformed(Expr::Between(between), changed)
}

fn similar_to(similar: Like) -> Result<Expr> {
    let pattern = match similar.pattern.as_ref() {
        Expr::Literal(value, _) => value.try_as_str(),
        _ => None,
    };
    let (Some(pattern), None) = (pattern, similar.escape_char) else {
        let what = "SIMILAR TO with a pattern that is not constant, or with ESCAPE, is not supported";
        return Err(Error::unsupported(what, "use LIKE, or ~ with a regular expression"));
    };
    let op = match similar.negated {
        true => Operator::RegexNotMatch,
        false => Operator::RegexMatch,
    };
    let pattern = match pattern {
        Some(pattern) => lit(regular(pattern)),
        None => Expr::Literal(ScalarValue::Utf8(None), None),
    };
    Ok(Expr::BinaryExpr(BinaryExpr {
        left: similar.expr,
        op,
        right: Box::new(pattern),
    }))
}

/// A pattern of SQL's as a regular expression of the whole text.
fn regular(pattern: &str) -> String {
    let (mut regular, mut in_class) = (String::from("^(?s:"), false);
    let mut characters = pattern.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => {
                regular.push('\\');
                regular.extend(characters.next());
            }
            '[' | ']' => {
                in_class = c == '[';
                regular.push(c);
            }
            _ if in_class => regular.push(c),
            '%' => regular.push_str(".*"),
            '_' => regular.push('.'),
            '.' | '^' | '$' => {
                regular.push('\\');
                regular.push(c);
            }
            '(' => regular.push_str("(?:"),
            other => regular.push(other),
        }
    }
    regular.push_str(")$");
    regular
}

fn function_of(mut call: ScalarFunction, schema: &DFSchema, zone: &str) -> DfResult<Transformed<Expr>> {
    if let Some(built) = json::rewrite(&call, schema, zone)? {
        return Ok(Transformed::yes(built));
    }
    let first = call.args.first().map_or(DataType::Null, |arg| type_of(arg, schema));
    Ok(match (call.func.name(), first, call.args.len()) {
        (name, DataType::Decimal128(..), 1) if let Some(mode) = mode(name) => {
            Transformed::yes(rounded_to(call.args.swap_remove(0), 0, mode))
        }
        (name @ ("round" | "trunc"), DataType::Decimal128(..), 2)
            if let Some(mode) = mode(name)
                && let Some(digits) = digits(&call.args) =>
        {
            Transformed::yes(rounded_to(call.args.swap_remove(0), digits, mode))
        }
        ("round", first, 1) if first.is_floating() => Transformed::yes(rounded_float(call.args.swap_remove(0))),
        ("concat" | "concat_ws", ..) => {
            let mut changed = false;
            for arg in &mut call.args {
                if is_written_otherwise(&type_of(arg, schema)) {
                    *arg = text_of(std::mem::take(arg), zone);
                    changed = true;
                }
            }
            Transformed::new_transformed(Expr::ScalarFunction(call), changed)
        }
        ("date_part", _, 2) if is_constant(&call.args[0], "second") && has_seconds(&type_of(&call.args[1], schema)) => {
            call.args[0] = lit("microsecond");
            let micros = cast_to(Expr::ScalarFunction(call), DataType::Float64);
            Transformed::yes(Expr::BinaryExpr(BinaryExpr {
                left: Box::new(micros),
                op: Operator::Divide,
                right: Box::new(lit(MICROS_SECOND)),
            }))
        }
        (name, ..) if let Some(checked) = domain::checked(name, &call.args) => Transformed::yes(checked),
        ("format" | "quote_literal" | "quote_nullable" | "quote_ident", ..) => {
            let mut changed = false;
            for arg in &mut call.args {
                let data_type = type_of(arg, schema);
                if is_written_otherwise(&data_type) || !(is_text(&data_type) || data_type.is_null()) {
                    *arg = text_of(std::mem::take(arg), zone);
                    changed = true;
                }
            }
            Transformed::new_transformed(Expr::ScalarFunction(call), changed)
        }
        ("pg_typeof", _, 1) => Transformed::yes(lit(type_names::name_of(&call.args[0], schema))),
        ("length" | "character_length", first, 1) if first.is_binary() => {
            // DataFusion counts bytes of texts only.
            let digits = encode(call.args.swap_remove(0), lit("hex"));
            Transformed::yes(character_length(digits) / lit(2_i32))
        }
        // Seconds since 1970 are an instant.
        ("to_timestamp", first, 1) if first.is_numeric() => {
            let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()));
            let Some(seconds) = functions::rows::named("to_timestamp").and_then(functions::rewritten) else {
                return Ok(Transformed::no(Expr::ScalarFunction(call)));
            };
            let naive = ScalarFunction::new_udf(seconds, vec![cast_to(call.args.swap_remove(0), DataType::Float64)]);
            let instant = cast_to(Expr::ScalarFunction(naive), utc);
            let shown = match zone {
                "" | "UTC" | "Etc/UTC" | "GMT" | "+00:00" | "Z" => instant,
                zone => cast_to(instant, DataType::Timestamp(TimeUnit::Microsecond, Some(zone.into()))),
            };
            Transformed::yes(shown)
        }
        ("array_to_string", first, 2 | 3) if is_list_of_others(&first) => Transformed::yes(joined(call.args, zone)),
        // How `x = ANY (array)` is planned.
        ("array_has", first, 2) if !first.is_null() && may_have_null(&call.args[0]) => {
            Transformed::yes(ArrayKind::Any.call(call.args))
        }
        ("to_number", first, 2) if is_text(&first) || first.is_null() => {
            let pattern = constant(&call.args[1], "to_number")?;
            Transformed::yes(to_number(call.args.swap_remove(0), pattern)?)
        }
        ("to_char", first, 2) => Transformed::yes(to_char(call.args, &first)?),
        ("to_date" | "to_timestamp", _, 2..) => {
            let what = format!("{} with a pattern is not supported", call.func.name());
            return Err(Error::unsupported(what, "cast text in ISO form: '2024-02-29'::date").into());
        }
        _ => Transformed::no(Expr::ScalarFunction(call)),
    })
}

/// Arrays whose elements a client would see otherwise than DataFusion writes them.
fn is_list_of_others(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(field) | DataType::LargeList(field) => {
            let of = field.data_type();
            is_list_of_others(of) || *of == DataType::Boolean || (is_written_otherwise(of) && !of.is_nested())
        }
        _ => false,
    }
}

/// Whether an array may hold NULL. A parameter is looked at when its value is known.
fn may_have_null(array: &Expr) -> bool {
    match array {
        Expr::Literal(value, _) => match value {
            ScalarValue::List(list) => list.values().null_count() > 0,
            value => !value.is_null(),
        },
        Expr::ScalarFunction(call) if call.func.name() == "make_array" => {
            let constant = |arg: &Expr| matches!(arg, Expr::Literal(value, _) if !value.is_null());
            !call.args.iter().all(constant)
        }
        Expr::Cast(cast) => may_have_null(&cast.expr),
        Expr::Placeholder(_) => false,
        _ => true,
    }
}

fn mode(function: &str) -> Option<Mode> {
    Some(match function {
        "round" => Mode::Nearest,
        "ceil" => Mode::Up,
        "floor" => Mode::Down,
        "trunc" => Mode::Cut,
        _ => return None,
    })
}

/// The second argument, if it is a constant of so few digits that a numeric can have them.
fn digits(args: &[Expr]) -> Option<i8> {
    match args.get(1) {
        Some(Expr::Literal(ScalarValue::Int32(Some(digits)), _)) => i8::try_from(*digits)
            .ok()
            .filter(|d| (0..=DECIMAL128_MAX_SCALE).contains(d)),
        _ => None,
    }
}

fn has_seconds(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Timestamp(..) | DataType::Time64(_) | DataType::Interval(_)
    )
}

fn is_constant(expr: &Expr, text: &str) -> bool {
    matches!(expr, Expr::Literal(value, _) if matches!(value.try_as_str(), Some(Some(t)) if t.eq_ignore_ascii_case(text)))
}

#[cfg(test)]
mod tests {
    use super::regular;

    #[test]
    fn similar_patterns_are_of_the_whole_text() {
        assert_eq!(regular("a%"), "^(?s:a.*)$");
        assert_eq!(regular("(a|b)_.$"), "^(?s:(?:a|b).\\.\\$)$");
        assert_eq!(regular("[%_]\\%"), "^(?s:[%_]\\%)$");
    }
}
