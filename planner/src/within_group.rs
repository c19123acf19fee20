//! Ordered-set aggregates as calls of the functions that compute them; see [`tessera_proto::functions::ordered`].
//!
//! ```text
//!   percentile_disc(0.5) WITHIN GROUP (ORDER BY x DESC)   __tessera_percentile_disc('df', x, 0.5)
//!   rank(7, 'b') WITHIN GROUP (ORDER BY x, y)             __tessera_rank('al,al', x, y, 7, 'b')
//! ```
//!
//! DataFusion's own WITHIN GROUP takes one column and constant fractions, and interpolates to six digits.

use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident, ObjectName, Value,
};
use tessera_proto::functions::ordered::{named, order_text};

/// The call; `None` for other functions.
pub(crate) fn rewritten(function: &Function) -> Option<Function> {
    let [part] = function.name.0.as_slice() else {
        return None;
    };
    if function.within_group.is_empty() {
        return None;
    }
    let name = named(&part.as_ident()?.value.to_lowercase())?;
    let FunctionArguments::List(list) = &function.args else {
        return None;
    };
    let order = function.within_group.iter().map(|column| {
        let descending = column.options.asc == Some(false);
        (descending, column.options.nulls_first.unwrap_or(descending))
    });
    let order = Expr::Value(Value::SingleQuotedString(order_text(order)).into());
    let columns = function.within_group.iter().map(|column| column.expr.clone());
    let args = std::iter::once(order).chain(columns);
    let args = args.map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg)));
    Some(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        args: FunctionArguments::List(FunctionArgumentList {
            args: args.chain(list.args.iter().cloned()).collect(),
            ..list.clone()
        }),
        within_group: vec![],
        ..function.clone()
    })
}
