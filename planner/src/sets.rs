//! Functions that return sets, as arrays that are unnested; and `json_agg`, which is a `string_agg`.
//!
//! ```text
//!   SELECT json_object_keys(j)             SELECT unnest(__tessera_json_keys(j))
//!   FROM json_each('{..}') AS e            FROM unnest(__tessera_json_keys(..), __tessera_json_values(..)) AS e(key, value)
//!   FROM unnest(a) WITH ORDINALITY u       FROM unnest(a, __tessera_array_ordinals(a)) AS u(u, ordinality)
//!   json_agg(x ORDER BY y)                 __tessera_json_array(string_agg(__json_element(x), ', ' ORDER BY y))
//! ```
//!
//! A document's array is in memory as a whole. Not here: `json_each` in a SELECT list, which would be a row.

use crate::rewrite::call;
use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident, ObjectName,
    TableAlias, TableAliasColumnDef, TableFactor, Value,
};

/// The array of a series; in SELECT lists it is a set ([`crate::series`]).
const SERIES: &str = "generate_series";

/// A call of such a function in an expression, in other words.
pub(crate) fn rewritten(function: &Function) -> Option<Expr> {
    let name = name_of(&function.name)?;
    if let "json_agg" | "json_object_agg" = name.as_str() {
        return aggregate(&name, function);
    }
    // In SELECT lists only, and that is done.
    if name == SERIES {
        return None;
    }
    let args = plain(&function.args)?;
    let (mut arrays, _) = arrays_of(&name, &args)?;
    let array = arrays.pop().filter(|_| arrays.is_empty())?;
    Some(call("unnest", vec![array]))
}

/// A function in FROM, in other words.
pub(crate) fn rewritten_table(factor: &TableFactor) -> Option<TableFactor> {
    let (arrays, names, alias, numbered, default) = match factor {
        TableFactor::UNNEST {
            alias,
            array_exprs,
            with_offset: false,
            with_ordinality: true,
            ..
        } => (array_exprs.clone(), vec![], alias, true, "unnest".to_owned()),
        TableFactor::Table {
            name,
            alias,
            args: Some(args),
            with_ordinality,
            ..
        } => {
            let name = name_of(name)?;
            if name == "generate_series" && !with_ordinality {
                return None;
            }
            let args = args.args.iter().map(expr_of).collect::<Option<Vec<_>>>()?;
            let (arrays, names) = arrays_of(&name, &args).or_else(|| each_of(&name, &args))?;
            (arrays, names, alias, *with_ordinality, name)
        }
        _ => return None,
    };
    let mut alias = alias.clone().unwrap_or_else(|| TableAlias {
        explicit: true,
        name: Ident::new(&default),
        columns: vec![],
        at: None,
    });
    let mut arrays = arrays;
    for at in alias.columns.len()..arrays.len() {
        let name = match (names.get(at), at) {
            (Some(name), _) => Ident::new(*name),
            (None, 0) => alias.name.clone(),
            (None, _) => Ident::with_quote('"', format!("{default} {}", at + 1)),
        };
        alias.columns.push(column(name));
    }
    if numbered {
        if alias.columns.len() == arrays.len() {
            alias.columns.push(column(Ident::new("ordinality")));
        }
        let ordinals = tessera_proto::functions::arrays::named("WITH ORDINALITY")?;
        arrays.push(call(ordinals, arrays.clone()));
    }
    Some(TableFactor::UNNEST {
        alias: Some(alias),
        array_exprs: arrays,
        with_offset: false,
        with_offset_alias: None,
        with_ordinality: false,
    })
}

fn column(name: Ident) -> TableAliasColumnDef {
    TableAliasColumnDef { name, data_type: None }
}

/// The arrays that a function's columns are unnested from, and the names of the columns where it has any.
fn arrays_of(name: &str, args: &[Expr]) -> Option<(Vec<Expr>, Vec<&'static str>)> {
    let of = |function: &str| vec![call(function, args.to_vec())];
    Some(match (name, args.len()) {
        ("json_array_elements", 1) => (of("__tessera_json_elements"), vec!["value"]),
        ("json_array_elements_text", 1) => (of("__tessera_json_elements_text"), vec!["value"]),
        ("json_object_keys", 1) => (of("__tessera_json_keys"), vec![]),
        ("string_to_table", 2 | 3) => (of("string_to_array"), vec![]),
        ("regexp_split_to_table", 2 | 3) => (of("regexp_split_to_array"), vec![]),
        ("regexp_matches", 2 | 3) => (of("__tessera_regexp_matches"), vec![]),
        ("generate_series", 2 | 3) => (of(SERIES), vec![]),
        ("generate_subscripts", 2) => {
            let one = Expr::Value(Value::Number("1".to_owned(), false).into());
            let length = call(tessera_proto::functions::arrays::named("array_length")?, args.to_vec());
            (vec![call(SERIES, vec![one, length])], vec![])
        }
        _ => return None,
    })
}

fn each_of(name: &str, args: &[Expr]) -> Option<(Vec<Expr>, Vec<&'static str>)> {
    let values = match name {
        "json_each" => "__tessera_json_values",
        "json_each_text" => "__tessera_json_values_text",
        _ => return None,
    };
    let arrays = ["__tessera_json_keys", values].map(|function| call(function, args.to_vec()));
    (args.len() == 1).then(|| (arrays.to_vec(), vec!["key", "value"]))
}

fn aggregate(name: &str, function: &Function) -> Option<Expr> {
    let FunctionArguments::List(list) = &function.args else {
        return None;
    };
    let args = list.args.iter().map(expr_of).collect::<Option<Vec<_>>>()?;
    let (part, whole) = match (name, args.len()) {
        ("json_agg", 1) => ("__json_element", "__tessera_json_array"),
        ("json_object_agg", 2) => ("__json_member", "__tessera_json_object"),
        _ => return None,
    };
    let between = Expr::Value(Value::SingleQuotedString(", ".to_owned()).into());
    let parts = [call(part, args), between].map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg)));
    let joined = Function {
        name: ObjectName::from(vec![Ident::new("string_agg")]),
        args: FunctionArguments::List(FunctionArgumentList {
            args: parts.to_vec(),
            ..list.clone()
        }),
        ..function.clone()
    };
    Some(call(whole, vec![Expr::Function(joined)]))
}

fn name_of(name: &ObjectName) -> Option<String> {
    match name.0.as_slice() {
        [part] => Some(part.as_ident()?.value.to_lowercase()),
        _ => None,
    }
}

fn expr_of(arg: &FunctionArg) -> Option<Expr> {
    match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    }
}

/// Arguments without names or clauses.
fn plain(args: &FunctionArguments) -> Option<Vec<Expr>> {
    match args {
        FunctionArguments::List(list) if list.clauses.is_empty() => list.args.iter().map(expr_of).collect(),
        _ => None,
    }
}
