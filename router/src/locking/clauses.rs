//! Which tables the locking clauses of a query mean, as PostgreSQL's `transformLockingClause` tells it.
//!
//! ```text
//!   FROM a, b LEFT JOIN c ON ..   FOR SHARE OF a FOR UPDATE OF a, b     a: update   b: update
//!                                 FOR UPDATE                            0A000: c is the nullable side of an outer join
//! ```
//!
//! A clause without OF means every table in FROM; what is no table (functions, VALUES, names of WITH) it leaves alone. Named in OF,
//! each of these is refused. Of several clauses for one table the strongest counts, and the least patient.

use super::inside;
use crate::cluster::catalog::StatementCatalog;
use sqlparser::ast::{
    Expr, GroupByExpr, Ident, JoinOperator, Query, Select, SelectItem, SetExpr, TableAlias, TableFactor, TableWithJoins,
    Visit, Visitor,
};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use tessera_parser::{LockStrength, LockWait, RowLock, row_locks};
use tessera_planner::{Catalog, Relation};
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result};

/// A table whose rows are locked.
#[derive(Debug, Clone)]
pub(super) struct Locked {
    /// The table.
    pub table: Arc<TableDef>,
    /// What expressions call it.
    pub name: Ident,
    /// What expressions call its columns, from the left, where not by their names.
    pub columns: Vec<Ident>,
    /// Its place in FROM: the how manieth of the relations that are named there.
    pub place: usize,
    /// How.
    pub strength: LockStrength,
    /// What to do about rows that others have locked.
    pub wait: LockWait,
}

/// What stands in FROM.
#[derive(Debug)]
struct Named {
    name: Option<Ident>,
    columns: Vec<Ident>,
    what: What,
    place: usize,
    /// It may be missing from a row.
    nullable: bool,
}

#[derive(Debug)]
enum What {
    Table(Arc<TableDef>),
    View,
    System,
    Query,
    Join,
    Function,
    Values,
    With,
    /// Binding will tell.
    Unknown,
}

/// Whether the locking clauses of a query, and those inside it, may stand there.
///
/// # Errors
/// PostgreSQL's, and 0A000 for what is not done.
pub(crate) fn check(catalog: &StatementCatalog, query: &Query) -> Result<()> {
    struct Check<'a>(&'a StatementCatalog);
    impl Visitor for Check<'_> {
        type Break = Error;
        fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Error> {
            match targets(self.0, query) {
                Ok(_) => ControlFlow::Continue(()),
                Err(error) => ControlFlow::Break(error),
            }
        }
    }
    match query.visit(&mut Check(catalog)) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

/// The tables that a query locks, in the order of FROM; none without a clause.
///
/// # Errors
/// As [`check`], for this query alone.
pub(super) fn targets(catalog: &StatementCatalog, query: &Query) -> Result<Vec<Locked>> {
    let clauses = row_locks(query);
    let Some(first) = clauses.first() else {
        return Ok(vec![]);
    };
    let select = check_body(query, first.strength)?;
    let mut named = vec![];
    let mut places = 0;
    let from = From { catalog, with: names_of_with(query) };
    for tables in &select.from {
        from.read(tables, &mut places, &mut named);
    }
    let mut locked: Vec<Locked> = vec![];
    for clause in &clauses {
        for relation in meant(clause, &named)? {
            apply(clause, relation, &mut locked)?;
        }
    }
    locked.sort_by_key(|target| target.place);
    let waits: BTreeSet<LockWait> = locked.iter().map(|target| target.wait).collect();
    if waits.len() > 1 {
        return Err(Error::unsupported(
            "NOWAIT, SKIP LOCKED and neither of them in one query are not supported",
            "write the same for all tables",
        ));
    }
    Ok(locked)
}

/// The names that a query's WITH gives.
fn names_of_with(query: &Query) -> BTreeSet<String> {
    let tables = query.with.iter().flat_map(|with| &with.cte_tables);
    tables.map(|table| folded(&table.alias.name)).collect()
}

/// The relations that a clause means.
fn meant<'a>(clause: &RowLock, named: &'a [Named]) -> Result<Vec<&'a Named>> {
    if clause.of.is_empty() {
        let tables = named.iter().filter(|relation| {
            !matches!(relation.what, What::Function | What::Values | What::With | What::Join)
        });
        return Ok(tables.collect());
    }
    let find = |name: &String| {
        let called = |relation: &&Named| relation.name.as_ref().is_some_and(|known| folded(known) == *name);
        named.iter().find(called).ok_or_else(|| {
            let message = format!("relation \"{name}\" in {} clause not found in FROM clause", clause.strength);
            Error::new("42P01", message)
        })
    };
    clause.of.iter().map(find).collect()
}

fn apply(clause: &RowLock, relation: &Named, locked: &mut Vec<Locked>) -> Result<()> {
    let cannot = |what: &str| {
        let message = format!("{} cannot be applied to {what}", clause.strength);
        Err(Error::unsupported(message, "name the tables to lock behind OF"))
    };
    let table = match &relation.what {
        What::Table(table) => table,
        What::Join => return cannot("a join"),
        What::Function => return cannot("a function"),
        What::Values => return cannot("VALUES"),
        What::With => return cannot("a WITH query"),
        What::Unknown => return Ok(()),
        What::View | What::Query => {
            let what = match relation.what {
                What::View => "a view",
                _ => "a query in FROM",
            };
            return Err(Error::unsupported(
                format!("{} of {what} is not supported", clause.strength),
                "name the tables to lock behind OF, or write the clause inside the query in FROM",
            ));
        }
        What::System => {
            return Err(Error::unsupported(
                format!("{} of a relation that is computed by the system is not supported", clause.strength),
                "name the tables to lock behind OF",
            ));
        }
    };
    if relation.nullable {
        return cannot("the nullable side of an outer join");
    }
    if let Some(known) = locked.iter_mut().find(|known| known.place == relation.place) {
        known.strength = known.strength.max(clause.strength);
        known.wait = known.wait.max(clause.wait);
        return Ok(());
    }
    let Some(name) = relation.name.clone() else {
        return cannot("a table inside a join with a name of its own");
    };
    locked.push(Locked {
        table: table.clone(),
        name,
        columns: relation.columns.clone(),
        place: relation.place,
        strength: clause.strength,
        wait: clause.wait,
    });
    Ok(())
}

struct From<'a> {
    catalog: &'a StatementCatalog,
    with: BTreeSet<String>,
}

impl From<'_> {
    fn read(&self, tables: &TableWithJoins, places: &mut usize, named: &mut Vec<Named>) {
        let from = named.len();
        self.relation(&tables.relation, places, named);
        for join in &tables.joins {
            let right = named.len();
            self.relation(&join.relation, places, named);
            let (left_nullable, right_nullable) = match join.join_operator {
                JoinOperator::Left(_) | JoinOperator::LeftOuter(_) => (false, true),
                JoinOperator::Right(_) | JoinOperator::RightOuter(_) => (true, false),
                JoinOperator::FullOuter(_) => (true, true),
                _ => (false, false),
            };
            named[from..right].iter_mut().for_each(|relation| relation.nullable |= left_nullable);
            named[right..].iter_mut().for_each(|relation| relation.nullable |= right_nullable);
        }
    }

    fn relation(&self, factor: &TableFactor, places: &mut usize, named: &mut Vec<Named>) {
        let mut put = |name: Option<Ident>, alias: Option<&TableAlias>, what: What| {
            named.push(Named {
                name: alias.map(|alias| alias.name.clone()).or(name),
                columns: alias.map_or(vec![], |alias| alias.columns.iter().map(|c| c.name.clone()).collect()),
                what,
                place: *places,
                nullable: false,
            });
            *places += 1;
        };
        match factor {
            TableFactor::Table { name, alias, args, .. } => {
                let mut parts: Vec<&Ident> = name.0.iter().filter_map(|part| part.as_ident()).collect();
                let own = parts.pop().cloned();
                let what = match (args, &own) {
                    (Some(_), _) => What::Function,
                    (None, Some(own)) => self.table(parts.pop(), own),
                    (None, None) => What::Unknown,
                };
                put(own, alias.as_ref(), what);
            }
            TableFactor::Derived { subquery, alias, .. } => {
                let what = match subquery.body.as_ref() {
                    SetExpr::Values(_) => What::Values,
                    // It locks what it should by itself.
                    _ if !subquery.locks.is_empty() || inside::is_rows(subquery) => What::Function,
                    _ => What::Query,
                };
                put(None, alias.as_ref(), what);
            }
            TableFactor::NestedJoin { table_with_joins, alias } => {
                if let Some(alias) = alias {
                    put(None, Some(alias), What::Join);
                }
                let inner = named.len();
                self.read(table_with_joins, places, named);
                if alias.is_some() {
                    // Outside, they go by the name of the join only.
                    named[inner..].iter_mut().for_each(|relation| relation.name = None);
                }
            }
            TableFactor::UNNEST { alias, .. }
            | TableFactor::TableFunction { alias, .. }
            | TableFactor::Function { alias, .. } => put(None, alias.as_ref(), What::Function),
            _ => put(None, None, What::Unknown),
        }
    }

    fn table(&self, schema: Option<&Ident>, name: &Ident) -> What {
        let (schema, name) = (schema.map(folded), folded(name));
        if schema.is_none() && self.with.contains(&name) {
            return What::With;
        }
        match self.catalog.resolve(schema.as_deref(), &name) {
            Some(Relation::Table(table, _)) => What::Table(table),
            Some(Relation::View(_)) => What::View,
            Some(Relation::System(_)) if self.catalog.is_given(&name) => What::Function,
            Some(Relation::System(_)) => What::System,
            Some(Relation::Target(_)) | None => What::Unknown,
        }
    }
}

/// The SELECT that a query is, if its rows are rows of its tables.
fn check_body(query: &Query, strength: LockStrength) -> Result<&Select> {
    let not_allowed = |what: &str| {
        let message = format!("{strength} is not allowed with {what}");
        Err(Error::unsupported(message, "lock the rows of the tables in a query of its own"))
    };
    let select = match query.body.as_ref() {
        SetExpr::Select(select) => select,
        SetExpr::Query(inner) if inner.with.is_none() && inner.locks.is_empty() => return check_body(inner, strength),
        SetExpr::SetOperation { .. } => return not_allowed("UNION/INTERSECT/EXCEPT"),
        SetExpr::Values(_) => {
            let message = format!("{strength} cannot be applied to VALUES");
            return Err(Error::unsupported(message, "leave the clause out"));
        }
        _ => {
            let message = format!("{strength} of such a query is not supported");
            return Err(Error::unsupported(message, "write it as SELECT ... FROM ..."));
        }
    };
    if select.distinct.is_some() {
        return not_allowed("DISTINCT clause");
    }
    match &select.group_by {
        GroupByExpr::Expressions(keys, modifiers) if keys.is_empty() && modifiers.is_empty() => {}
        _ => return not_allowed("GROUP BY clause"),
    }
    if select.having.is_some() {
        return not_allowed("HAVING clause");
    }
    let mut functions = Functions::default();
    for item in &select.projection {
        if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
            let _ = expr.visit(&mut functions);
        }
    }
    match functions {
        Functions { aggregates: true, .. } => not_allowed("aggregate functions"),
        Functions { windows: true, .. } => not_allowed("window functions"),
        Functions { sets: true, .. } => not_allowed("set-returning functions in the target list"),
        _ => Ok(select),
    }
}

/// Aggregates of PostgreSQL 15 and of the engine, by name.
const AGGREGATES: &[&str] = &[
    "approx_distinct",
    "approx_median",
    "approx_percentile_cont",
    "array_agg",
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "corr",
    "count",
    "covar_pop",
    "covar_samp",
    "every",
    "json_agg",
    "json_object_agg",
    "jsonb_agg",
    "jsonb_object_agg",
    "max",
    "median",
    "min",
    "mode",
    "percentile_cont",
    "percentile_disc",
    "regr_avgx",
    "regr_avgy",
    "regr_count",
    "regr_intercept",
    "regr_r2",
    "regr_slope",
    "regr_sxx",
    "regr_sxy",
    "regr_syy",
    "stddev",
    "stddev_pop",
    "stddev_samp",
    "string_agg",
    "sum",
    "var_pop",
    "var_samp",
    "variance",
];

/// Functions that give several rows.
const SETS: &[&str] = &["generate_series", "generate_subscripts", "regexp_split_to_table", "unnest"];

/// What an expression calls, apart from what queries inside it call.
#[derive(Debug, Default)]
struct Functions {
    depth: usize,
    aggregates: bool,
    windows: bool,
    sets: bool,
}

impl Visitor for Functions {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr
            && self.depth == 0
            && let Some(name) = function.name.0.last().and_then(|part| part.as_ident())
        {
            let name = folded(name);
            let called = |known: &[&str]| known.contains(&name.as_str());
            self.windows |= function.over.is_some();
            self.aggregates |= function.over.is_none() && called(AGGREGATES);
            self.sets |= called(SETS);
        }
        ControlFlow::Continue(())
    }
}

/// A name as the catalog has it.
pub(super) fn folded(name: &Ident) -> String {
    match name.quote_style {
        Some(_) => name.value.clone(),
        None => name.value.to_lowercase(),
    }
}
