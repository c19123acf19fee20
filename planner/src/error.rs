//! What DataFusion's SQL planner says, as PostgreSQL would: SQLSTATE, wording, and the nearest name.
//!
//! ```text
//!   SchemaError::FieldNotFound{nam, [name, ..]}      42703 column "nam" does not exist      hint: did you mean "name"?
//!   Plan("Invalid function 'lenght'. ..")            42883 function lenght does not exist   hint: did you mean "length"?
//! ```
//!
//! DataFusion tells most planning errors apart by their text only; the table below is what we recognise of it. Anything else
//! passes through `From<DataFusionError>` of the protocol crate.

use datafusion::common::utils::datafusion_strsim::levenshtein;
use datafusion::common::{Column, DataFusionError, SchemaError};
use tessera_proto::Error;

/// Beginnings of planning errors and their SQLSTATE.
const PLAN_ERRORS: &[(&str, &str)] = &[
    ("Column in SELECT must be in GROUP BY", "42803"),
    ("Column in HAVING must be in GROUP BY", "42803"),
    ("Column in ORDER BY must be in GROUP BY", "42803"),
    ("Column in DISTINCT ON must be in GROUP BY", "42803"),
    ("HAVING clause references", "42803"),
    ("Aggregate functions are not allowed", "42803"),
    ("No function matches the given name", "42883"),
    ("Failed to coerce arguments", "42883"),
    ("Function '", "42883"),
    ("Cannot infer common", "42883"),
    ("Cannot coerce arithmetic expression", "42883"),
    ("There isn't a common type to coerce", "42883"),
    ("Failed to coerce", "42804"),
    ("Cannot create filter with non-boolean predicate", "42804"),
    ("Cannot automatically convert", "42804"),
    ("Incompatible inputs for Union", "42804"),
    ("UNION queries have different number of columns", "42601"),
    ("Union queries must have the same number of columns", "42601"),
    ("Inconsistent data length across values list", "42601"),
    ("Projections require unique expression names", "42712"),
    ("table name \"", "42712"),
    ("Source table contains", "42P10"),
    ("ORDER BY position", "42P10"),
    ("Cannot find column with position", "42P10"),
    ("Too many columns! The subquery should", "42601"),
    ("Order by column out of bounds", "42P10"),
    ("Can't cast value", "22P02"),
    ("Unsupported CAST", "42846"),
    ("Unsupported", "0A000"),
];

/// Columns that every table of PostgreSQL has.
const SYSTEM_COLUMNS: [&str; 6] = ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];

/// The name of a table where a column's should be, if the error is that there is no such column.
pub(crate) fn whole_row(error: &DataFusionError, tables: &[String]) -> Option<Error> {
    let DataFusionError::SchemaError(schema, _) = error.find_root() else {
        return None;
    };
    let SchemaError::FieldNotFound { field, .. } = schema.as_ref() else {
        return None;
    };
    let name = &field.name;
    if field.relation.is_none() && tables.contains(name) {
        let what = format!("a whole row as a value (\"{name}\") is not supported");
        return Some(Error::unsupported(what, format!("name its columns, or write {name}.*")));
    }
    SYSTEM_COLUMNS.contains(&name.as_str()).then(|| {
        let what = format!("the system column \"{name}\" is not supported");
        Error::unsupported(what, "rows have no address or transaction number; use the primary key")
    })
}

/// Beginnings of PostgreSQL's functions that are known and not there, and what to do instead.
const REFUSED: &[(&str, &str)] = &[
    ("jsonb_", "there is no jsonb; the function of json is called json_..."),
    ("to_jsonb", "there is no jsonb; use to_json"),
    ("json_populate_", "take members out one by one: j ->> 'a'"),
    ("json_to_record", "take members out one by one: j ->> 'a'"),
    ("setseed", "random() cannot be repeated here"),
    ("clock_timestamp", "now() is the time of the statement's snapshot"),
    ("timeofday", "now() is the time of the statement's snapshot"),
    (
        "to_tsvector",
        "there is no text search; use LIKE or regular expressions",
    ),
    ("to_tsquery", "there is no text search; use LIKE or regular expressions"),
    ("lastval", "there are no sequences; gen_random_uuid() makes keys"),
    ("nextval", "there are no sequences; gen_random_uuid() makes keys"),
];

/// An error of binding or optimising, for the user.
pub fn bind_error(error: DataFusionError) -> Error {
    let known = match error.find_root() {
        DataFusionError::SchemaError(schema, _) => Some(schema_error(schema)),
        DataFusionError::Plan(message) => no_function(message).or_else(|| plan_error(message)),
        DataFusionError::Execution(message) => no_function(message),
        DataFusionError::NotImplemented(message) => not_implemented(message),
        _ => None,
    };
    known.unwrap_or_else(|| Error::from(error))
}

fn schema_error(error: &SchemaError) -> Error {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => no_column(field, valid_fields),
        SchemaError::AmbiguousReference { field } => {
            Error::new("42702", format!("column reference \"{}\" is ambiguous", field.name))
                .with_hint("put the table's name or alias before it")
        }
        SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
            Error::new("42701", format!("column \"{name}\" appears more than once"))
                .with_hint("give one of them another name with AS")
        }
    }
}

fn no_column(field: &Column, valid: &[Column]) -> Error {
    if let Some(relation) = &field.relation
        && !valid
            .iter()
            .any(|c| c.relation.as_ref().is_some_and(|r| r.resolved_eq(relation)))
    {
        let error = Error::new("42P01", format!("missing FROM-clause entry for table \"{relation}\""));
        let relations: Vec<String> = valid
            .iter()
            .filter_map(|c| c.relation.as_ref().map(ToString::to_string))
            .collect();
        return match suggestion(relation.table(), &relations) {
            Some(name) => error.with_hint(format!("did you mean \"{name}\"?")),
            None => error,
        };
    }
    let error = Error::new("42703", format!("column \"{}\" does not exist", field.flat_name()));
    let names: Vec<String> = valid.iter().map(|c| c.name.clone()).collect();
    match suggestion(&field.name, &names) {
        Some(name) => error.with_hint(format!("did you mean \"{name}\"?")),
        None => error,
    }
}

/// What no rule could turn into a join ends up in the physical planner, which prints the whole expression.
fn not_implemented(message: &str) -> Option<Error> {
    let Some(expression) = message.strip_prefix("Physical plan does not support logical expression ") else {
        return Some(not_there(message));
    };
    let subquery = [
        "InSubquery",
        "Exists",
        "ScalarSubquery",
        "SetComparison",
        "OuterReferenceColumn",
    ];
    if subquery.iter().any(|kind| expression.starts_with(kind)) {
        let hint = "move it to WHERE as a condition of its own, or write it as a join";
        return Some(Error::unsupported("this subquery is not supported in this place", hint));
    }
    Some(not_there(message))
}

/// DataFusion does not do it.
fn not_there(message: &str) -> Error {
    let hint = "write the query in another way; what is supported is in the README";
    let what = match without_tree(message) {
        None => message.to_owned(),
        Some("" | "Unsupported ast node in sqltorel") => "this kind of expression is not supported".to_owned(),
        Some(text) => text.to_owned(),
    };
    Error::unsupported(what, hint)
}

/// What marks the beginning of a tree printed for those who wrote DataFusion.
const TREES: [&str; 12] = [
    "Identifier(",
    "Ident {",
    "Span(",
    "Location(",
    "ValueWithSpan",
    "Literal(",
    "Column(",
    "Expr {",
    "ObjectName(",
    "Nested(",
    "Some(",
    " { ",
];

/// A message without the tree that is printed at its end; `None` if there is none.
fn without_tree(message: &str) -> Option<&str> {
    let tree = TREES.iter().filter_map(|mark| message.find(mark)).min()?;
    let before = message[..tree].rsplit_once(':').map_or("", |(before, _)| before);
    Some(before.trim_end_matches([' ', ':', '\'', '"']))
}

/// What a function of ours says of arguments that it does not take, without what DataFusion puts around it.
fn no_function(message: &str) -> Option<Error> {
    let (_, rest) = message.split_once("user-defined coercion failed with: External error: ")?;
    let (said, _) = rest.split_once(" does not exist")?;
    Some(Error::new("42883", format!("{said} does not exist")).with_hint("you might need to add explicit type casts"))
}

fn plan_error(message: &str) -> Option<Error> {
    if let Some(rest) = message.strip_prefix("Invalid function '") {
        let (name, rest) = rest.split_once('\'')?;
        if let Some((_, hint)) = REFUSED.iter().find(|(known, _)| name.starts_with(known)) {
            return Some(Error::unsupported(format!("function {name} is not supported"), *hint));
        }
        let error = Error::new("42883", format!("function {name} does not exist"));
        let near = rest
            .split_once("Did you mean '")
            .and_then(|(_, near)| near.split_once('\''))
            .map(|(near, _)| near);
        return Some(match near.and_then(|near| suggestion(name, &[near.to_owned()])) {
            Some(near) => error.with_hint(format!("did you mean \"{near}\"?")),
            None => error,
        });
    }
    for (start, code, what) in [
        ("LIMIT must be >= 0", "2201W", "LIMIT"),
        ("OFFSET must be >=0", "2201X", "OFFSET"),
    ] {
        if message.starts_with(start) {
            return Some(Error::new(code, format!("{what} must not be negative")));
        }
    }
    if let Some(text) = without_tree(message) {
        let text = if text.is_empty() {
            "this expression is not supported"
        } else {
            text
        };
        return Some(Error::unsupported(text, "write the query in another way"));
    }
    let (_, code) = PLAN_ERRORS.iter().find(|(start, _)| message.starts_with(start))?;
    let (first, more) = message.split_once('\n').unwrap_or((message, ""));
    let mut chars = first.chars();
    let lower: String = chars
        .next()
        .into_iter()
        .flat_map(char::to_lowercase)
        .chain(chars)
        .collect();
    let error = Error::new(code, lower.trim_end_matches('.'));
    Some(if more.is_empty() {
        error
    } else {
        error.with_detail(more.trim().to_owned())
    })
}

/// The candidate that `name` is likely a typing error of.
pub fn suggestion(name: &str, candidates: &[String]) -> Option<String> {
    let wanted = name.to_lowercase();
    // A third of the letters may be wrong; two names without a common letter are never near.
    let limit = (wanted.chars().count() / 3).max(1);
    candidates
        .iter()
        .map(|candidate| (levenshtein(&wanted, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate.clone())
}

#[cfg(test)]
mod tests {
    use super::suggestion;

    #[test]
    fn near_names_only() {
        let names = ["orders".to_owned(), "lineitem".to_owned()];
        assert_eq!(suggestion("order", &names).as_deref(), Some("orders"));
        assert_eq!(suggestion("Lineitems", &names).as_deref(), Some("lineitem"));
        assert_eq!(suggestion("nation", &names), None);
    }
}
