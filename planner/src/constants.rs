//! Constants with PostgreSQL's types.
//!
//! ```text
//!   7, -2147483648            integer          {__tessera_constant: '7'} in the tree, for DataFusion reads bigint only
//!   2147483648                bigint
//!   9223372036854775808       numeric
//!   '{1,2}'::int[]            CAST(ARRAY['1'::int, '2'::int] AS int[])
//!   x = ANY ('{1,2}')         x IN ('1', '2')
//!   x > ALL ('{1,2}'::int[])  x > '1'::int AND x > '2'::int
//! ```
//!
//! Positions (ORDER BY 1), limits and frames keep their numbers as they are written: [`as_written`].

use datafusion::arrow::datatypes::DECIMAL128_MAX_PRECISION;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawDictionaryExpr};
use datafusion::logical_expr::{Expr as PlanExpr, lit};
use sqlparser::ast::{
    Array, ArrayElemTypeDef, BinaryOperator, CastKind, DataType, DictionaryField, Expr, Ident, UnaryOperator, Value,
};
use tessera_proto::Error;

/// What stands for a constant in a tree.
const CONSTANT: &str = "__tessera_constant";

/// Most values of a constant array that a comparison is spelled out for.
const COMPARED_MAX: usize = 100;

/// Reads what [`integer`] wrote.
#[derive(Debug)]
pub struct Constants;

impl ExprPlanner for Constants {
    fn plan_dictionary_literal(
        &self,
        expr: RawDictionaryExpr,
        _: &DFSchema,
    ) -> Result<PlannerResult<RawDictionaryExpr>> {
        let text = |expr: &PlanExpr| match expr {
            PlanExpr::Literal(value, _) => value.try_as_str().flatten().map(str::to_owned),
            _ => None,
        };
        if let ([key], [value]) = (expr.keys.as_slice(), expr.values.as_slice())
            && text(key).as_deref() == Some(CONSTANT)
            && let Some(value) = text(value).and_then(|text| value_of(&text))
        {
            return Ok(PlannerResult::Planned(lit(value)));
        }
        Ok(PlannerResult::Original(expr))
    }
}

/// A whole number of the smallest of PostgreSQL's types for constants that has it.
fn value_of(text: &str) -> Option<ScalarValue> {
    let digits = text.trim_start_matches(['-', '0']).len().max(1);
    if let Ok(value) = text.parse::<i32>() {
        return Some(ScalarValue::Int32(Some(value)));
    }
    if let Ok(value) = text.parse::<i64>() {
        return Some(ScalarValue::Int64(Some(value)));
    }
    let value = text.parse::<i128>().ok()?;
    let precision = u8::try_from(digits).ok().filter(|d| *d <= DECIMAL128_MAX_PRECISION)?;
    Some(ScalarValue::Decimal128(Some(value), precision, 0))
}

/// A whole number, or the negative of one, so that [`Constants`] gives it its type; `None` for anything else.
pub(crate) fn integer(expr: &Expr) -> Option<Expr> {
    let number = |expr: &Expr| match expr {
        Expr::Value(value) => match &value.value {
            Value::Number(text, _) if text.bytes().all(|b| b.is_ascii_digit()) => Some(text.clone()),
            _ => None,
        },
        _ => None,
    };
    let text = match expr {
        Expr::UnaryOp {
            op: UnaryOperator::Minus,
            expr,
        } => format!("-{}", number(expr)?),
        expr => number(expr)?,
    };
    value_of(&text)?;
    Some(Expr::Dictionary(vec![DictionaryField {
        key: Ident::new(CONSTANT),
        value: Box::new(Expr::Value(Value::SingleQuotedString(text).into())),
    }]))
}

/// Undoes [`integer`], and the cast that stands for an interval.
pub(crate) fn as_written(expr: &mut Expr) {
    let Expr::Dictionary(fields) = expr else { return };
    let [field] = fields.as_slice() else { return };
    let Expr::Value(value) = field.value.as_ref() else {
        return;
    };
    let Value::SingleQuotedString(text) = &value.value else {
        return;
    };
    if field.key.value == CONSTANT {
        let number = |text: &str| Expr::Value(Value::Number(text.to_owned(), false).into());
        *expr = match text.strip_prefix('-') {
            Some(text) => Expr::UnaryOp {
                op: UnaryOperator::Minus,
                expr: Box::new(number(text)),
            },
            None => number(text),
        };
    }
}

fn quoted(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

fn element_type(data_type: &DataType) -> Option<&DataType> {
    match data_type {
        DataType::Array(ArrayElemTypeDef::SquareBracket(element, _)) => Some(element),
        _ => None,
    }
}

fn cast(expr: Expr, data_type: DataType) -> Expr {
    Expr::Cast {
        kind: CastKind::Cast,
        expr: Box::new(expr),
        data_type,
        array: false,
        format: None,
    }
}

/// `'{1,2}'::int[]` as an array of casts; `None` for anything else.
///
/// # Errors
/// 22P02: the text is no array.
pub(crate) fn array(expr: &Expr) -> std::result::Result<Option<Expr>, Error> {
    let Expr::Cast { expr, data_type, .. } = expr else {
        return Ok(None);
    };
    let (Some(text), Some(element)) = (quoted(expr), element_type(data_type)) else {
        return Ok(None);
    };
    // Of more dimensions: INT[][] is an array of arrays.
    let innermost = std::iter::successors(Some(element), |t| element_type(t))
        .last()
        .unwrap_or(element);
    let mut dimensions = 0;
    let array = built(&read(text)?, innermost, 1, &mut dimensions);
    let data_type = (1..dimensions).fold(
        DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(innermost.clone()), None)),
        |t, _| DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(t), None)),
    );
    Ok(Some(cast(array, data_type)))
}

fn built(item: &Item, element: &DataType, depth: usize, dimensions: &mut usize) -> Expr {
    match item {
        Item::Null => Expr::Value(Value::Null.into()),
        Item::Text(text) => cast(
            Expr::Value(Value::SingleQuotedString(text.clone()).into()),
            element.clone(),
        ),
        Item::List(items) => {
            *dimensions = (*dimensions).max(depth);
            Expr::Array(Array {
                elem: items
                    .iter()
                    .map(|item| built(item, element, depth + 1, dimensions))
                    .collect(),
                named: true,
            })
        }
    }
}

/// A comparison with ANY or ALL of a constant array, spelled out; `None` for anything else.
///
/// # Errors
/// 22P02: the text is no array.
pub(crate) fn compared(expr: &Expr) -> std::result::Result<Option<Expr>, Error> {
    let (left, op, right, any) = match expr {
        Expr::AnyOp {
            left,
            compare_op,
            right,
            ..
        } => (left, compare_op, right, true),
        Expr::AllOp {
            left,
            compare_op,
            right,
        } => (left, compare_op, right, false),
        _ => return Ok(None),
    };
    let Some(values) = values(right)? else { return Ok(None) };
    if values.is_empty() {
        return Ok(Some(Expr::Value(Value::Boolean(!any).into())));
    }
    let negated = match (op, any) {
        (BinaryOperator::Eq, true) => Some(false),
        (BinaryOperator::NotEq, false) => Some(true),
        _ => None,
    };
    if let Some(negated) = negated {
        return Ok(Some(Expr::Nested(Box::new(Expr::InList {
            expr: left.clone(),
            list: values,
            negated,
        }))));
    }
    if values.len() > COMPARED_MAX {
        return Ok(None);
    }
    let junction = match any {
        true => BinaryOperator::Or,
        false => BinaryOperator::And,
    };
    let comparison = |value: Expr| Expr::BinaryOp {
        left: left.clone(),
        op: op.clone(),
        right: Box::new(value),
    };
    let all = values.into_iter().map(comparison).reduce(|left, right| Expr::BinaryOp {
        left: Box::new(left),
        op: junction.clone(),
        right: Box::new(right),
    });
    Ok(all.map(|all| Expr::Nested(Box::new(all))))
}

/// The values of a constant array of one dimension.
fn values(expr: &Expr) -> std::result::Result<Option<Vec<Expr>>, Error> {
    let (text, element) = match expr {
        Expr::Nested(inner) => return values(inner),
        Expr::Array(array) if array.elem.iter().all(|e| matches!(e, Expr::Value(_))) && !array.elem.is_empty() => {
            return Ok(Some(array.elem.clone()));
        }
        Expr::Cast { expr, data_type, .. } => (quoted(expr), element_type(data_type)),
        expr => (quoted(expr), None),
    };
    let is_cast = matches!(expr, Expr::Cast { .. });
    let Some(text) = text.filter(|_| element.is_some() || !is_cast) else {
        return Ok(None);
    };
    let Item::List(items) = read(text)? else {
        return Ok(None);
    };
    let value = |item: &Item| match item {
        Item::Null => Some(Expr::Value(Value::Null.into())),
        Item::Text(text) => {
            let text = Expr::Value(Value::SingleQuotedString(text.clone()).into());
            Some(match element {
                Some(element) => cast(text, element.clone()),
                None => text,
            })
        }
        Item::List(_) => None,
    };
    Ok(items.iter().map(value).collect())
}

/// A part of an array's text.
#[derive(Debug, PartialEq)]
enum Item {
    Null,
    Text(String),
    List(Vec<Item>),
}

/// Nested lists of one array, as in PostgreSQL.
const DIMENSIONS_MAX: usize = 6;

/// `{1,"a b",NULL,{2}}`, as PostgreSQL's input function reads it.
fn read(text: &str) -> std::result::Result<Item, Error> {
    let malformed = || {
        let shown: String = text.chars().take(64).collect();
        Error::new("22P02", format!("malformed array literal: \"{shown}\""))
            .with_hint("an array is written as {1,2,3}, text with commas or braces in double quotes")
    };
    let mut characters = text.trim().chars().peekable();
    if characters.next() != Some('{') {
        return Err(malformed());
    }
    // Lists that are open, the innermost last; each with its items.
    let mut open: Vec<Vec<Item>> = vec![vec![]];
    // Something must follow: the list is new (and may end), or a comma was read.
    let (mut after_comma, mut after_item) = (false, false);
    while let Some(c) = characters.next() {
        match c {
            c if c.is_whitespace() => {}
            '{' if !after_item && open.len() < DIMENSIONS_MAX => {
                open.push(vec![]);
                after_comma = false;
            }
            '}' if !after_comma => {
                let list = open.pop().ok_or_else(malformed)?;
                match open.last_mut() {
                    Some(outer) => outer.push(Item::List(list)),
                    None if characters.all(char::is_whitespace) => return Ok(Item::List(list)),
                    None => return Err(malformed()),
                }
                after_item = true;
            }
            ',' if after_item => (after_comma, after_item) = (true, false),
            ',' | '{' | '}' => return Err(malformed()),
            first if !after_item => {
                let item = match first {
                    '"' => Item::Text(in_quotes(&mut characters).ok_or_else(malformed)?),
                    first => bare(first, &mut characters).ok_or_else(malformed)?,
                };
                open.last_mut().ok_or_else(malformed)?.push(item);
                (after_comma, after_item) = (false, true);
            }
            _ => return Err(malformed()),
        }
    }
    Err(malformed())
}

type Characters<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn in_quotes(characters: &mut Characters<'_>) -> Option<String> {
    let mut text = String::new();
    loop {
        match characters.next()? {
            '"' => return Some(text),
            '\\' => text.push(characters.next()?),
            c => text.push(c),
        }
    }
}

fn bare(first: char, characters: &mut Characters<'_>) -> Option<Item> {
    let (mut text, mut next) = (String::new(), Some(first));
    let mut escaped = false;
    while let Some(c) = next {
        match c {
            '\\' => {
                text.push(characters.next()?);
                escaped = true;
            }
            '"' => return None,
            c => text.push(c),
        }
        next = characters.next_if(|c| !matches!(c, ',' | '{' | '}'));
    }
    let text = text.trim_end();
    Some(match text.eq_ignore_ascii_case("null") && !escaped {
        true => Item::Null,
        false => Item::Text(text.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_have_the_smallest_type() {
        assert_eq!(value_of("2147483647"), Some(ScalarValue::Int32(Some(i32::MAX))));
        assert_eq!(value_of("-2147483648"), Some(ScalarValue::Int32(Some(i32::MIN))));
        assert_eq!(value_of("2147483648"), Some(ScalarValue::Int64(Some(2_147_483_648))));
        assert_eq!(
            value_of("-9223372036854775808"),
            Some(ScalarValue::Int64(Some(i64::MIN)))
        );
        let beyond = ScalarValue::Decimal128(Some(9_223_372_036_854_775_808), 19, 0);
        assert_eq!(value_of("9223372036854775808"), Some(beyond));
        assert_eq!(value_of(&"9".repeat(39)), None);
    }

    #[test]
    fn arrays_are_read_as_postgresql_reads_them() {
        let text = |t: &str| Item::Text(t.to_owned());
        let read = |t: &str| read(t).ok();
        assert_eq!(read("{}"), Some(Item::List(vec![])));
        assert_eq!(
            read(r#" { 1 , "a,b" , NULL , "NULL" , x\,y } "#),
            Some(Item::List(vec![
                text("1"),
                text("a,b"),
                Item::Null,
                text("NULL"),
                text("x,y")
            ]))
        );
        assert_eq!(
            read("{{1},{2}}"),
            Some(Item::List(vec![
                Item::List(vec![text("1")]),
                Item::List(vec![text("2")])
            ]))
        );
        for wrong in [
            "",
            "1",
            "{",
            "{1",
            "{1,}",
            "{,1}",
            "{1}}",
            "{1} x",
            "{\"a}",
            "{{{{{{{1}}}}}}}",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
