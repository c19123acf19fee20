//! The sessions that queries are planned in.
//!
//! ```text
//!   template (functions, rules, memory: once a process) ──clone──> statement session (partitions, time zone, start time)
//! ```
//!
//! Some options are not the user's to choose, because leaves depend on them: see [`template_builder`].

use crate::PlanOptions;
use crate::arrays::ArrayOperators;
use crate::constants::Constants;
use crate::json::JsonOperators;
use crate::leaf::LeafQueryPlanner;
use crate::operators::Operators;
use crate::series::Series;
use crate::spelling::IntervalOperators;
use datafusion::arrow::array::timezone::Tz;
use datafusion::catalog::TableFunction;
use datafusion::config::ConfigOptions;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SessionState, SessionStateBuilder, SessionStateDefaults};
use datafusion::logical_expr::planner::ExprPlanner;
use datafusion::prelude::SessionConfig;
use std::sync::Arc;
use tessera_proto::fragment::LeafRuntime;
use tessera_proto::frugal;
use tessera_proto::physical;
use tessera_proto::{Error, Result};

/// Fewest partitions above the leaves. With one, every distribution counts as satisfied and no exchange is ever planned.
pub const PARTITIONS_MIN: usize = 2;

/// A session without physical optimiser rules, for statistics; travels in the configuration of the others.
#[derive(Debug)]
pub struct Bare(pub Arc<SessionState>);

/// The zone of stored instants, as it stands in the Arrow type of a `timestamptz` column.
pub(crate) const UTC: &str = "+00:00";

/// The session that all sessions of a process are cloned from; costs about a millisecond, make one.
pub fn template(runtime: Arc<RuntimeEnv>, leaves: Arc<LeafRuntime>) -> SessionState {
    template_builder(runtime, leaves).build()
}

/// The same, for a router that adds functions or wraps the query planner before building.
pub fn template_builder(runtime: Arc<RuntimeEnv>, leaves: Arc<LeafRuntime>) -> SessionStateBuilder {
    let bare = SessionStateBuilder::new()
        .with_config(config())
        .with_runtime_env(runtime.clone())
        .with_default_features()
        .with_physical_optimizer_rules(vec![])
        .build();
    let bare = Arc::new(bare);
    SessionStateBuilder::new()
        .with_config(
            config()
                .with_extension(leaves)
                .with_extension(Arc::new(Bare(bare.clone()))),
        )
        .with_runtime_env(runtime)
        .with_default_features()
        .with_table_function_list(table_functions())
        .with_expr_planners(expr_planners())
        .with_query_planner(Arc::new(LeafQueryPlanner { bare }))
        .with_physical_optimizer_rules(physical::rules())
}

/// Ours come first.
fn expr_planners() -> Vec<Arc<dyn ExprPlanner>> {
    let mut all: Vec<Arc<dyn ExprPlanner>> = vec![
        Arc::new(JsonOperators),
        Arc::new(Constants),
        Arc::new(ArrayOperators),
        Arc::new(IntervalOperators),
        Arc::new(Operators),
    ];
    all.extend(SessionStateDefaults::default_expr_planners());
    all
}

/// DataFusion's, with our own where PostgreSQL has one of the name.
fn table_functions() -> Vec<Arc<TableFunction>> {
    let ours = TableFunction::new("generate_series".into(), Arc::new(Series));
    let others = SessionStateDefaults::default_table_functions().into_iter();
    others
        .filter(|f| f.name() != ours.name())
        .chain([Arc::new(ours.clone())])
        .collect()
}

fn config() -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(PARTITIONS_MIN)
        .with_information_schema(false);
    let options = config.options_mut();
    // 0.1 is numeric, as in PostgreSQL; as a float, 0.06 + 0.01 would not be 0.07.
    options.sql_parser.parse_float_as_decimal = true;
    // Subqueries become joins, which the shard-local rule understands; a subquery expression would cut.
    options.optimizer.enable_physical_uncorrelated_scalar_subquery = false;
    // A leaf that sorts streams from one partition, in order; spreading it at random would lose the order.
    options.optimizer.enable_round_robin_repartition = false;
    config
}

/// The session of one statement: cheap.
///
/// # Errors
/// 22023 for a setting with an impossible value.
pub fn session_state(template: &SessionState, options: &PlanOptions) -> Result<SessionState> {
    let mut state = template.clone();
    let config = state.config_mut().options_mut();
    config.execution.target_partitions = options.target_partitions.max(PARTITIONS_MIN);
    if !options.hash_join {
        frugal::configure(config, options.batch_rows);
        // And no exchanges: those within a process can wait for each other for ever when two inputs spill (DataFusion #24883).
        config.execution.target_partitions = 1;
    }
    if let Some(zone) = options.settings.get("timezone") {
        check_time_zone(zone)?;
        config.execution.time_zone = Some(zone.clone());
    }
    // now() is the time of the snapshot: the same on every node, and in every row.
    let millis = i64::try_from(options.snapshot.millis()).ok();
    match millis.and_then(chrono::DateTime::from_timestamp_millis) {
        Some(start) => state.execution_props_mut().query_execution_start_time = Some(start),
        None => state.mark_start_execution(),
    }
    Ok(state)
}

/// Whether a session may have this time zone: an IANA name or an offset such as `+02:00`.
///
/// # Errors
/// 22023: no such zone.
pub fn check_time_zone(zone: &str) -> Result<()> {
    let known = zone.parse::<Tz>().is_ok();
    let error = || Error::new("22023", format!("time zone \"{zone}\" is not known"));
    known
        .then_some(())
        .ok_or_else(|| error().with_hint("use a name such as Europe/Berlin, or an offset such as +02:00"))
}

/// The zone of a session's `timestamptz` values; instants are stored in UTC.
pub(crate) fn zone(config: &ConfigOptions) -> Arc<str> {
    match config.execution.time_zone.as_deref() {
        None | Some("UTC" | "Etc/UTC" | "GMT" | "+00:00" | "Z") => UTC.into(),
        Some(zone) => zone.into(),
    }
}
