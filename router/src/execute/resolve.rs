//! `SELECT tessera.resolve_transaction('...')`: a statement that looks like a query, as PostgreSQL's administration functions do.
//!
//! It stands alone, with its argument as a constant or a parameter: anywhere else the function is not known.

use crate::execute::stream;
use crate::outcome::{Outcome, RowsTag};
use crate::session::StatementContext;
use crate::txn::resolve;
use datafusion::scalar::ScalarValue;
use sqlparser::ast::{Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Query, SelectItem, SetExpr, Value};
use tessera_proto::{Error, Result, TxnId};
use uuid::Uuid;

/// The argument of the function, if that is all that a query calls.
pub(crate) fn argument(query: &Query) -> Option<&Value> {
    let SetExpr::Select(select) = query.body.as_ref() else {
        return None;
    };
    let [SelectItem::UnnamedExpr(Expr::Function(Function { name, args, .. }))] = select.projection.as_slice() else {
        return None;
    };
    let parts: Vec<&str> = name.0.iter().filter_map(|part| Some(part.as_ident()?.value.as_str())).collect();
    let named = matches!(parts.as_slice(), [schema, name] if schema.eq_ignore_ascii_case("tessera")
        && name.eq_ignore_ascii_case("resolve_transaction"));
    let FunctionArguments::List(list) = args else {
        return None;
    };
    match list.args.as_slice() {
        [FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value)))] if named && select.from.is_empty() => {
            Some(&value.value)
        }
        _ => None,
    }
}

/// Runs it.
///
/// # Errors
/// 22P02 for what is no transaction's id; those of [`resolve::resolve`].
pub(crate) async fn run(context: &StatementContext, argument: &Value, params: &[ScalarValue]) -> Result<Outcome> {
    let text = match argument {
        Value::SingleQuotedString(text) => Some(text.clone()),
        Value::Placeholder(_) => params.first().map(ToString::to_string),
        _ => None,
    };
    let id = text.as_deref().and_then(|text| Uuid::parse_str(text).ok());
    let id = id.ok_or_else(|| Error::new("22P02", "resolve_transaction takes the id of a transaction"))?;
    let work = resolve::resolve(&context.engine, TxnId(id), context.deadline);
    let resolved = context.bounded(work).await?;
    let schema = stream::text_schema(&["resolve_transaction"]);
    let batch = stream::text_batch(&schema, &[vec![Some(resolved.name().to_owned())]])?;
    Ok(Outcome::Rows {
        stream: stream::ready(schema.clone(), vec![batch]),
        schema,
        columns: vec![None],
        tag: RowsTag::Select,
    })
}
