//! From a parsed query to a bound plan: session state, catalog functions, parameters.
//!
//! ```text
//!   no stored table in FROM   PostgreSQL's catalog syntax rewritten, catalog functions registered
//!   else                      as written; computed tables may be joined, their functions may not be used
//! ```

use super::{arithmetic, averages, literals, scalars, sorted_input, unnested};
use crate::cluster::catalog::StatementCatalog;
use crate::cluster::depends;
use crate::ingest::ChangedRows;
use crate::session::StatementContext;
use crate::views;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::{FunctionRegistry, SessionState};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, LogicalPlan, TableScan};
use datafusion::optimizer::analyzer::type_coercion::TypeCoercionRewriter;
use datafusion::scalar::ScalarValue;
use sqlparser::ast::Query;
use std::collections::BTreeSet;
use std::sync::Arc;
use tessera_planner::{Catalog, DistributedMode, PlanOptions, Relation};
use tessera_proto::fragment::StubTable;
use tessera_proto::frugal::{BATCH_ROWS, BATCH_ROWS_DEFAULT, HASH_JOIN};
use tessera_proto::table::TableDef;
use tessera_proto::{Error, GroupId, Result, Timestamp};
use uuid::Uuid;

/// A query with its names and types resolved, and the state to plan and run it.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The statement's session state.
    pub state: SessionState,
    /// What it was made with.
    pub options: PlanOptions,
    /// The plan; parameters are filled in.
    pub plan: LogicalPlan,
}

/// What a statement's plan depends on besides the catalog.
pub(crate) fn options(context: &StatementContext, snapshot: Timestamp) -> PlanOptions {
    let settings = &context.settings;
    PlanOptions {
        snapshot,
        query_id: *Uuid::now_v7().as_bytes(),
        deadline_ms: context.deadline_ms(),
        profile: context.profile,
        shard_local: settings.is_on("tessera.shard_local"),
        join_order: settings.is_on("tessera.join_order"),
        hash_join: settings.is_on(HASH_JOIN),
        batch_rows: settings
            .get(BATCH_ROWS)
            .and_then(|rows| rows.parse().ok())
            .unwrap_or(BATCH_ROWS_DEFAULT),
        distributed: match settings.get("tessera.distributed").as_deref() {
            Some("on") => DistributedMode::On,
            Some("off") => DistributedMode::Off,
            _ => DistributedMode::Auto,
        },
        settings: settings.for_nodes(),
        target_partitions: context.engine.query_threads().max(2),
        own: context.transaction.as_ref().and_then(|transaction| transaction.own()),
    }
}

/// The state for expressions outside a query.
///
/// # Errors
/// A setting the planner refuses.
pub(crate) fn session_state(context: &StatementContext, snapshot: Timestamp) -> Result<SessionState> {
    tessera_planner::session_state(context.engine.template(), &options(context, snapshot))
}

/// Binds a query. `types[i]` is the type of `$i+1` where it is known.
///
/// # Errors
/// The planner's.
pub(crate) async fn bind(
    context: &StatementContext,
    catalog: &StatementCatalog,
    query: &Query,
    types: &[Option<DataType>],
    snapshot: Timestamp,
) -> Result<Bound> {
    let options = options(context, snapshot);
    let mut state = tessera_planner::session_state(context.engine.template(), &options)?;
    let plan = if reads_stored(catalog, query) {
        tessera_planner::bind(&state, query, catalog, types).await?
    } else {
        for function in views::functions(catalog.system()) {
            state.register_udf(Arc::new(function))?;
        }
        let mut query = query.clone();
        views::rewrite(&mut query);
        tessera_planner::bind(&state, &query, catalog, types).await?
    };
    let plan = read_literals(context, plan)?;
    Ok(Bound { state, options, plan })
}

/// Gives constants, operators, casts and functions the values they have in PostgreSQL; part of [`bind`], for those who bind by
/// themselves.
///
/// # Errors
/// 22P02, 22007 and the like.
pub(crate) fn read_literals(context: &StatementContext, plan: LogicalPlan) -> Result<LogicalPlan> {
    let zone = context.settings.get("timezone").unwrap_or_default();
    let read = plan.transform_up_with_subqueries(|node| {
        // Its type is that of all its branches; what is written around it depends on that.
        let node = match node {
            LogicalPlan::Union(union) => TypeCoercionRewriter::coerce_union(union)?,
            node => node,
        };
        unnested::check(&node)?;
        let preserver = NamePreserver::new(&node);
        let schema = merge_schema(&node.inputs());
        let rewrite = |expr| {
            literals::rewrite(expr, &schema, &zone)?
                .transform_data(|expr| scalars::rewrite(expr, &schema, &zone))?
                .transform_data(|expr| arithmetic::rewrite(expr, &schema))
        };
        let changed = node.map_expressions(|expr| {
            let name = preserver.save(&expr);
            let changed = expr.transform_up(rewrite)?;
            Ok(changed.update_data(|e| name.restore(e)))
        })?;
        // Always: a type below may have changed.
        changed
            .map_data(LogicalPlan::recompute_schema)?
            .transform_data(averages::rewrite)?
            .transform_data(sorted_input::rewrite)
    })?;
    Ok(read.data)
}

/// Whether a name in FROM stands for a table or view of the user.
fn reads_stored(catalog: &StatementCatalog, query: &Query) -> bool {
    let names = depends::names(query);
    names.iter().any(|(schema, name)| {
        matches!(
            catalog.resolve(schema.as_deref(), name),
            Some(Relation::Table(..) | Relation::View(_) | Relation::Target(_))
        )
    })
}

/// Puts values in the place of `$1`, `$2`, ...
///
/// # Errors
/// 42P02 when the plan has more parameters than there are values.
pub(crate) fn fill(context: &StatementContext, plan: LogicalPlan, params: Vec<ScalarValue>) -> Result<LogicalPlan> {
    let wanted = tessera_planner::parameter_types(&plan)?.len();
    if wanted == 0 {
        return Ok(plan);
    }
    if wanted > params.len() {
        return Err(Error::new("42P02", format!("there is no parameter ${wanted}")));
    }
    // Values that came as text are constants in quotes by now.
    read_literals(context, plan.with_param_values(params)?)
}

/// Reference groups that a plan reads.
pub(crate) fn reference_groups(plan: &LogicalPlan) -> Result<Vec<GroupId>> {
    let mut groups = BTreeSet::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Some(stub) = stub(scan)
            && stub.def.is_reference()
        {
            groups.insert(stub.def.group);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(groups.into_iter().collect())
}

/// The stored table behind a scan.
pub(crate) fn stub(scan: &TableScan) -> Option<StubTable> {
    let provider = datafusion::datasource::source_as_provider(&scan.source).ok()?;
    (provider.as_ref() as &dyn std::any::Any)
        .downcast_ref::<StubTable>()
        .cloned()
}

/// The stored table whose rows a scan reads: where they are stored, or in the router after a statement changed them.
pub(crate) fn definition(scan: &TableScan) -> Option<Arc<TableDef>> {
    if let Some(stub) = stub(scan) {
        return Some(stub.def);
    }
    let provider = datafusion::datasource::source_as_provider(&scan.source).ok()?;
    let rows = (provider.as_ref() as &dyn std::any::Any).downcast_ref::<ChangedRows>()?;
    Some(rows.def.clone())
}

/// Whether an expression is a constant as written, a cast or sign of one, or a parameter.
pub(crate) fn is_literal(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(..) | Expr::Placeholder(_) => true,
        Expr::Alias(alias) => is_literal(&alias.expr),
        Expr::Negative(inner) => is_literal(inner),
        _ => false,
    }
}

/// Whether an expression contains a query.
pub(crate) fn has_subquery(expr: &Expr) -> bool {
    expr.exists(|e| {
        Ok(matches!(
            e,
            Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_)
        ))
    })
    .unwrap_or(true)
}
