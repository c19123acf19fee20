//! Names and types of a query resolved against the catalog.
//!
//! ```text
//!   Query ── tables named anywhere in it ──catalog──> Table -> StubTable, View -> its query bound in place, others -> themselves
//!         ── DataFusion's SQL planner, with these and nothing else to find ──> LogicalPlan
//! ```
//!
//! All relations are looked up before planning starts, so that a missing one is reported as PostgreSQL does, with the
//! nearest name. Views expand at every use, at most [`VIEW_DEPTH_MAX`] deep.

use crate::catalog::{Catalog, Relation};
use crate::error::{bind_error, suggestion, whole_row};
use crate::rewrite::rewrite;
use crate::session::{UTC, zone};
use crate::types::SqlTypes;
use crate::unique::Naming;
use crate::{ties, unique, whole_rows};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, SchemaRef, TimeUnit};
use datafusion::catalog::cte_worktable::CteWorkTable;
use datafusion::catalog::{TableFunctionArgs, TableProvider};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result as DfResult, TableReference, plan_err};
use datafusion::config::ConfigOptions;
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::execution::SessionState;
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner, RelationPlanner, TypePlanner};
use datafusion::logical_expr::{
    AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, LogicalPlanBuilder, ScalarUDF, TableSource, WindowUDF, cast,
};
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use datafusion::sql::resolve::resolve_table_references;
use sqlparser::ast::{Query, Statement};
use std::collections::HashMap;
use std::sync::Arc;
use tessera_proto::fragment::StubTable;
use tessera_proto::functions;
use tessera_proto::table::ViewDef;
use tessera_proto::{Error, Result};

/// Views inside views.
const VIEW_DEPTH_MAX: usize = 32;
/// Parameters of one statement, as PostgreSQL's wire protocol allows.
const PARAMETERS_MAX: usize = 65_535;

/// Binds `query`; see [`crate::bind`].
pub(crate) fn bind_query(
    state: &SessionState,
    query: &Query,
    catalog: &dyn Catalog,
    parameters: &[Option<DataType>],
    depth: usize,
) -> Result<LogicalPlan> {
    let mut query = query.clone();
    crate::group_keys::complete(&mut query, catalog);
    crate::using::rewrite(&mut query, &|part| {
        let plan = bind_rewritten(state, part, catalog, parameters, depth)?;
        Ok(plan.schema().fields().iter().map(|f| f.name().clone()).collect())
    })?;
    bind_rewritten(state, &query, catalog, parameters, depth)
}

fn bind_rewritten(
    state: &SessionState,
    query: &Query,
    catalog: &dyn Catalog,
    parameters: &[Option<DataType>],
    depth: usize,
) -> Result<LogicalPlan> {
    let bound = bind_named(state, query, catalog, parameters, depth, Naming::Repeated);
    match bound {
        // Two items that DataFusion calls by one name though they are spelled in two ways: every item gets its own.
        Err(error) if error.code == "42712" && error.message.starts_with("projections require unique") => {
            bind_named(state, query, catalog, parameters, depth, Naming::All)
        }
        bound => bound,
    }
}

fn bind_named(
    state: &SessionState,
    query: &Query,
    catalog: &dyn Catalog,
    parameters: &[Option<DataType>],
    depth: usize,
    naming: Naming,
) -> Result<LogicalPlan> {
    let mut statement = Statement::Query(Box::new(query.clone()));
    let found = rewrite(&mut statement, state, naming)?;
    let normalize = state.config().options().sql_parser.enable_ident_normalization;
    let (references, _) = resolve_table_references(&DfStatement::Statement(Box::new(statement.clone())), normalize)?;
    let mut tables = HashMap::with_capacity(references.len());
    for reference in references {
        match source_of(state, &reference, catalog, depth) {
            Ok(source) => drop(tables.insert(reference, source)),
            // A function in FROM is named like a relation; it is looked up with its arguments.
            Err(_) if found.functions.iter().any(|name| name == reference.table()) => {}
            Err(error) => return Err(error),
        }
    }
    whole_rows::expand(&mut statement, &tables);
    let options = found.ordered.then(|| {
        let mut options = state.config_options().as_ref().clone();
        options.sql_parser.enable_subquery_sort_elimination = false;
        options
    });
    let names = Names { state, tables, options };
    let options = ParserOptions::from(&state.config().options().sql_parser);
    let fields = parameters.iter().map(|t| t.clone().map(parameter_field)).collect();
    let mut context = PlannerContext::new().with_prepare_param_data_types(fields);
    let plan = SqlToRel::new_with_options(&names, options)
        .sql_statement_to_plan_with_context(statement, &mut context)
        .map_err(|error| whole_row(&error, &found.tables).unwrap_or_else(|| bind_error(error)))?;
    match found.ties {
        true => ties::expand(plan).map_err(bind_error),
        false => Ok(plan),
    }
}

fn parameter_field(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("", data_type, true))
}

/// Types of `$1`, `$2`, ... as far as their use or the client tells; `None` where nothing does (PostgreSQL takes text).
///
/// # Errors
/// 42P02 for a number beyond the limit, 42P08 for one parameter used as two types.
pub fn parameter_types(plan: &LogicalPlan) -> Result<Vec<Option<DataType>>> {
    let mut types: Vec<Option<DataType>> = vec![];
    let mut failed = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|e| {
                let Expr::Placeholder(placeholder) = e else {
                    return Ok(TreeNodeRecursion::Continue);
                };
                let number = placeholder.id.strip_prefix('$').and_then(|n| n.parse::<usize>().ok());
                match number.filter(|n| (1..=PARAMETERS_MAX).contains(n)) {
                    Some(number) => {
                        types.resize(types.len().max(number), None);
                        let found = placeholder.field.as_ref().map(|f| f.data_type().clone());
                        failed = failed.take().or(note_type(&mut types[number - 1], found, number).err());
                    }
                    None => failed = Some(Error::new("42P02", format!("there is no parameter {}", placeholder.id))),
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    match failed {
        Some(error) => Err(error),
        None => Ok(types),
    }
}

fn note_type(known: &mut Option<DataType>, found: Option<DataType>, number: usize) -> Result<()> {
    match (known.as_ref(), found) {
        (Some(a), Some(b)) if *a != b => {
            let message = format!("parameter ${number} is used both as {a} and as {b}");
            Err(Error::new("42P08", message).with_hint("cast it where it is used: $1::type"))
        }
        (None, found) => {
            *known = found;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What a name in FROM stands for, as the SQL planner wants it.
fn source_of(
    state: &SessionState,
    reference: &TableReference,
    catalog: &dyn Catalog,
    depth: usize,
) -> Result<Arc<dyn TableSource>> {
    let database = &state.config().options().catalog.default_catalog;
    if reference.catalog().is_some_and(|named| named != database) {
        let what = format!("cross-database references are not supported: {reference}");
        return Err(Error::unsupported(
            what,
            "one connection sees one database; leave its name out",
        ));
    }
    let provider: Arc<dyn TableProvider> = match catalog.resolve(reference.schema(), reference.table()) {
        Some(Relation::Table(def, _)) => {
            let stub = StubTable {
                schema: def.visible_schema(),
                statistics: catalog.statistics(def.id),
                common: catalog.common_values(def.id),
                def: def.clone(),
            };
            in_zone(state, Arc::new(stub), &def.name)?
        }
        Some(Relation::View(view)) => Arc::new(expand(state, &view, catalog, depth)?),
        Some(Relation::System(provider)) => provider,
        Some(Relation::Target(provider)) => in_zone(state, provider, reference.table())?,
        None => return Err(no_relation(reference, catalog)),
    };
    Ok(provider_as_source(provider))
}

/// A stored table's rows. Where the session's zone is not UTC, instants are shown to functions such as `date_trunc` in that
/// zone; the cast keeps the value, so a shard key stays one.
fn in_zone(state: &SessionState, rows: Arc<dyn TableProvider>, name: &str) -> Result<Arc<dyn TableProvider>> {
    let (zone, schema) = (zone(state.config_options()), rows.schema());
    let is_instant = |data_type: &DataType| matches!(data_type, DataType::Timestamp(_, Some(_)));
    if *zone == *UTC || !schema.fields().iter().any(|f| is_instant(f.data_type())) {
        return Ok(rows);
    }
    let shown = DataType::Timestamp(TimeUnit::Microsecond, Some(zone));
    let exprs = schema.fields().iter().map(|field| {
        let column = Expr::Column(Column::new(Some(name), field.name()));
        if is_instant(field.data_type()) {
            cast(column, shown.clone()).alias(field.name())
        } else {
            column
        }
    });
    let exprs: Vec<Expr> = exprs.collect();
    let scan = LogicalPlanBuilder::scan(TableReference::bare(name), provider_as_source(rows), None);
    let plan = scan.and_then(|scan| scan.project(exprs)?.build()).map_err(bind_error)?;
    Ok(Arc::new(ViewTable::new(plan, None)))
}

fn no_relation(reference: &TableReference, catalog: &dyn Catalog) -> Error {
    let error = Error::new("42P01", format!("relation \"{reference}\" does not exist"));
    match suggestion(reference.table(), &catalog.names()) {
        Some(name) => error.with_hint(format!("did you mean \"{name}\"?")),
        None => error,
    }
}

/// A view's query, bound, with the view's own column names.
fn expand(state: &SessionState, view: &ViewDef, catalog: &dyn Catalog, depth: usize) -> Result<ViewTable> {
    if depth >= VIEW_DEPTH_MAX {
        let message = format!("view \"{}\" is nested more than {VIEW_DEPTH_MAX} deep", view.name);
        return Err(Error::new("54001", message).with_hint("a view may not, through others, read itself"));
    }
    let inside = |error: Error| error.with_detail(format!("in the query of view \"{}\"", view.name));
    let mut statements = tessera_parser::parse(&view.query).map_err(|e| {
        Error::internal(format!(
            "the stored query of view \"{}\" cannot be read: {e}",
            view.name
        ))
    })?;
    let Some(tessera_parser::Statement::Query(query)) = statements.pop().map(|parsed| parsed.statement) else {
        return Err(Error::internal(format!(
            "view \"{}\" does not store a query",
            view.name
        )));
    };
    let plan = bind_query(state, &query, catalog, &[], depth + 1).map_err(inside)?;
    let names = view_columns(view, &query, &plan);
    let plan = renamed(plan, &names).map_err(bind_error).map_err(inside)?;
    Ok(ViewTable::new(plan, Some(view.query.clone())))
}

/// The names in CREATE VIEW come first, the query's own after them.
fn view_columns(view: &ViewDef, query: &Query, plan: &LogicalPlan) -> Vec<String> {
    let own = crate::names::result_names(query, plan.schema().as_arrow());
    own.into_iter()
        .enumerate()
        .map(|(i, name)| view.columns.get(i).cloned().unwrap_or(name))
        .collect()
}

fn renamed(plan: LogicalPlan, names: &[String]) -> DfResult<LogicalPlan> {
    let columns = plan.schema().columns();
    if columns
        .iter()
        .zip(names)
        .all(|(column, name)| column.name == *name && column.relation.is_none())
    {
        return Ok(plan);
    }
    let exprs: Vec<Expr> = columns
        .into_iter()
        .zip(names)
        .map(|(c, name)| Expr::Column(c).alias(name))
        .collect();
    LogicalPlanBuilder::from(plan).project(exprs)?.build()
}

/// What the SQL planner may look up: the resolved tables, and the session's functions.
struct Names<'a> {
    state: &'a SessionState,
    tables: HashMap<TableReference, Arc<dyn TableSource>>,
    /// Other options than the state's.
    options: Option<ConfigOptions>,
}

impl ContextProvider for Names<'_> {
    fn get_table_source(&self, name: TableReference) -> DfResult<Arc<dyn TableSource>> {
        let found = self.tables.get(&name).cloned();
        found.ok_or_else(|| Error::new("42P01", format!("relation \"{name}\" does not exist")).into())
    }

    fn get_table_function_source(&self, name: &str, args: Vec<Expr>) -> DfResult<Arc<dyn TableSource>> {
        let unknown = || Error::new("42883", format!("function {name} does not exist as a table function"));
        let function = self.state.table_functions().get(name).cloned().ok_or_else(unknown)?;
        let args = args.into_iter().map(constant).collect::<DfResult<Vec<_>>>()?;
        let provider = function.create_table_provider_with_args(TableFunctionArgs::new(&args, self.state))?;
        Ok(provider_as_source(provider))
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> DfResult<Arc<dyn TableSource>> {
        Ok(provider_as_source(Arc::new(CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.state.expr_planners()
    }

    fn get_relation_planners(&self) -> &[Arc<dyn RelationPlanner>] {
        self.state.relation_planners()
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        let zone = zone(self.options());
        Some(Arc::new(SqlTypes { zone }))
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        let ours = || unique::function(name).or_else(|| ties::function(name));
        let known = self.state.scalar_functions().get(name).cloned();
        known
            .or_else(ours)
            .or_else(|| functions::subquery_marker(name))
            .or_else(|| functions::rewritten(name))
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.state.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        let known = self.state.aggregate_functions().get(name).cloned();
        known.or_else(|| functions::aggregate(name))
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.state.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.options.as_ref().unwrap_or_else(|| self.state.config_options())
    }

    fn udf_names(&self) -> Vec<String> {
        self.state.scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.state.higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.state.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.state.window_functions().keys().cloned().collect()
    }
}

/// Arguments of table functions must be constants.
fn constant(expr: Expr) -> DfResult<Expr> {
    use datafusion::common::DFSchema;
    use datafusion::logical_expr::simplify::SimplifyContext;
    use datafusion::optimizer::simplify_expressions::ExprSimplifier;
    let simplifier = ExprSimplifier::new(SimplifyContext::builder().build());
    let simplified = simplifier.simplify(simplifier.coerce(expr, &DFSchema::empty())?)?;
    match simplified {
        Expr::Literal(..) => Ok(simplified),
        other => plan_err!("argument {other} of a table function is not constant"),
    }
}
