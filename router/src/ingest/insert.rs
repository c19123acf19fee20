//! INSERT: VALUES and SELECT alike are a query whose rows go to a [`TableWriter`]; RETURNING is evaluated over them before the
//! commit.
//!
//! ```text
//!   INSERT INTO t (a, b) VALUES ($1, DEFAULT)     DEFAULT ──▶ the column's expression; $1 gets a's type
//!   INSERT INTO t SELECT ...                      reads one snapshot, never its own rows
//!   INSERT ... ON CONFLICT ...                    upsert.rs
//! ```

use super::returning::{self, Asked, Returned};
use super::writer::TableWriter;
use super::{cast, upsert, upsert_query, values};
use crate::cluster::catalog::StatementCatalog;
use crate::error::{no_column, no_relation};
use crate::execute::{prepare, query};
use crate::outcome::{Outcome, RowsTag};
use crate::session::StatementContext;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::DataType;
use datafusion::logical_expr::{Expr as DfExpr, LogicalPlan};
use datafusion::scalar::ScalarValue;
use futures::TryStreamExt;
use sqlparser::ast::{CastKind, Expr, Query, SetExpr, Value};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use tessera_parser::{Insert, ObjectName, Statement, is_default};
use tessera_planner::{Catalog, Relation};
use tessera_proto::sql_type::SqlType;
use tessera_proto::table::{ColumnDef, TableDef};
use tessera_proto::{Error, Result, Timestamp};

/// Runs it.
pub(crate) async fn run(context: &StatementContext, insert: &Insert, params: Vec<ScalarValue>) -> Result<Outcome> {
    let catalog = StatementCatalog::new(context);
    let table = find_table(&catalog, &insert.table)?;
    if let Some(conflict) = &insert.conflict
        && upsert_query::has_key(&table, &conflict.target)?
    {
        let (count, returned) = upsert::run(context, insert, &params).await?;
        return Ok(outcome(count, returned));
    }
    let targets = targets(&table, &insert.columns)?;
    let (source, targets) = source(&table, insert, targets)?;
    let mut writer = TableWriter::new(context, table.clone(), &targets).await?;
    if insert.returning.is_some() {
        writer.keep_rows();
    }
    match values::constants(&table, &targets, &source, &params) {
        Some(batch) => context.bounded(writer.write(&batch)).await?,
        None => from_query(context, &table, &targets, &source, params.clone(), &mut writer).await?,
    }
    let returned = match asked(insert, &table) {
        Some(asked) => Some(returning::evaluate(context, &asked, &params, None, writer.kept_rows()).await?),
        None => None,
    };
    let (count, _) = writer.finish().await?;
    Ok(outcome(count, returned))
}

fn outcome(count: u64, returned: Option<Returned>) -> Outcome {
    match returned {
        Some(returned) => returned.outcome(RowsTag::Insert(count)),
        None => Outcome::done(format!("INSERT 0 {count}")),
    }
}

/// What RETURNING asks for.
pub(crate) fn asked<'a>(insert: &'a Insert, table: &'a Arc<TableDef>) -> Option<Asked<'a>> {
    insert.returning.as_ref().map(|returning| Asked {
        returning,
        table,
        name: insert.alias.as_deref().unwrap_or(&insert.table.name),
        from: &[],
    })
}

/// Rows of constants joined before they are written.
const JOINED_MAX: usize = 1_024;

/// Runs it once for each of `rows`, the values of its parameters, as one transaction. Returns the rows written.
///
/// # Errors
/// Those of any row: then nothing of any remains.
pub(crate) async fn run_many(
    context: &StatementContext,
    insert: &Insert,
    rows: impl Iterator<Item = Result<Vec<ScalarValue>>>,
) -> Result<u64> {
    let catalog = StatementCatalog::new(context);
    let table = find_table(&catalog, &insert.table)?;
    if let Some(conflict) = &insert.conflict
        && upsert_query::has_key(&table, &conflict.target)?
    {
        return upsert::run_many(context, insert, rows).await;
    }
    let targets = targets(&table, &insert.columns)?;
    let (source, targets) = source(&table, insert, targets)?;
    let mut writer = TableWriter::new(context, table.clone(), &targets).await?;
    let mut joined: Vec<RecordBatch> = vec![];
    for params in rows {
        let params = params?;
        match values::constants(&table, &targets, &source, &params) {
            Some(batch) => {
                let other = joined.first().is_some_and(|first| first.schema() != batch.schema());
                if other || joined.len() >= JOINED_MAX {
                    write_joined(context, &mut writer, &mut joined).await?;
                }
                joined.push(batch);
            }
            None => from_query(context, &table, &targets, &source, params, &mut writer).await?,
        }
    }
    write_joined(context, &mut writer, &mut joined).await?;
    Ok(writer.finish().await?.0)
}

async fn write_joined(
    context: &StatementContext,
    writer: &mut TableWriter,
    joined: &mut Vec<RecordBatch>,
) -> Result<()> {
    let Some(first) = joined.first() else { return Ok(()) };
    let batch = concat_batches(&first.schema(), joined.iter());
    let batch = batch.map_err(|e| Error::internal(format!("joining rows: {e}")))?;
    joined.clear();
    context.bounded(writer.write(&batch)).await
}

async fn from_query(
    context: &StatementContext,
    table: &TableDef,
    targets: &[usize],
    source: &Query,
    params: Vec<ScalarValue>,
    writer: &mut TableWriter,
) -> Result<()> {
    let mut rows = open_source(context, table, targets, source, params, None).await?;
    while let Some(batch) = context.bounded(async { Ok(rows.stream.try_next().await?) }).await? {
        context.bounded(writer.write(&batch)).await?;
    }
    Ok(())
}

/// Starts the query that rows come from. It reads `snapshot`, or a new one.
///
/// # Errors
/// The planner's and the query's; 42601 and 42804 when its columns are not the table's.
pub(super) async fn open_source(
    context: &StatementContext,
    table: &TableDef,
    targets: &[usize],
    source: &Query,
    params: Vec<ScalarValue>,
    snapshot: Option<Timestamp>,
) -> Result<query::Running> {
    let source = typed(table, targets, source)?;
    let source = source.as_ref();
    let types = declared_types(&params, &placeholders(table, source, targets));
    let check = |plan: &LogicalPlan| check(table, targets, plan);
    let request = query::Request {
        types,
        check: &check,
        shortcut: query::Shortcut::Never,
        snapshot,
        ..query::Request::new(source, params)
    };
    query::open(context, request).await
}

/// The client's types for the parameters, or those of the columns they go to where the client sent an untyped NULL.
pub(super) fn declared_types(params: &[ScalarValue], columns: &[Option<DataType>]) -> Vec<Option<DataType>> {
    let columns = columns.iter().cloned().chain(std::iter::repeat(None));
    let declared = |(param, column): (&ScalarValue, Option<DataType>)| {
        Some(param.data_type()).filter(|t| *t != DataType::Null).or(column)
    };
    params.iter().zip(columns).map(declared).collect()
}

/// The table that a statement writes to.
pub(crate) fn find_table(catalog: &StatementCatalog, name: &ObjectName) -> Result<Arc<TableDef>> {
    match catalog.resolve(name.schema.as_deref(), &name.name) {
        Some(Relation::Table(table, _)) => Ok(table),
        Some(Relation::View(_)) => Err(Error::unsupported(
            format!("writing to view \"{}\" is not supported", name.name),
            "write to the table behind it",
        )),
        Some(Relation::System(_)) => Err(Error::new(
            "42501",
            format!("permission denied: \"{name}\" is computed by the system"),
        )),
        Some(Relation::Target(_)) | None => Err(no_relation(
            &name.to_string(),
            catalog.names().iter().map(String::as_str),
        )),
    }
}

/// The table columns that input columns go to: those named, else all visible ones from the left.
pub(crate) fn targets(table: &TableDef, columns: &[String]) -> Result<Vec<usize>> {
    let visible: Vec<usize> = (0..table.columns.len()).filter(|i| !table.columns[*i].hidden).collect();
    if columns.is_empty() {
        return Ok(visible);
    }
    let mut seen = HashSet::new();
    let find = |name: &String| {
        let found = visible.iter().copied().find(|i| table.columns[*i].name == *name);
        let index = found.ok_or_else(|| {
            no_column(
                name,
                &table.name,
                visible.iter().map(|i| table.columns[*i].name.as_str()),
            )
        })?;
        match seen.insert(index) {
            true => Ok(index),
            false => Err(Error::new(
                "42701",
                format!("column \"{name}\" specified more than once"),
            )),
        }
    };
    columns.iter().map(find).collect()
}

/// The query with every DEFAULT replaced, and the targets it really gives values for.
pub(crate) fn source<'a>(
    table: &TableDef,
    insert: &'a Insert,
    mut targets: Vec<usize>,
) -> Result<(Cow<'a, Query>, Vec<usize>)> {
    let SetExpr::Values(values) = insert.source.body.as_ref() else {
        return Ok((Cow::Borrowed(&insert.source), targets));
    };
    let widths: HashSet<usize> = values.rows.iter().map(|r| r.content.len()).collect();
    let width = match widths.iter().collect::<Vec<_>>()[..] {
        [width] => *width,
        _ => return Err(Error::new("42601", "VALUES lists must all be the same length")),
    };
    check_width(width, insert.columns.is_empty(), &mut targets)?;
    if !values.rows.iter().any(|r| r.content.iter().any(is_default)) {
        return Ok((Cow::Borrowed(&insert.source), targets));
    }
    let mut query = insert.source.as_ref().clone();
    each_cell(&mut query, &targets, |expr, target| {
        if is_default(expr) {
            *expr = default_of(table, target)?;
        }
        Ok(())
    })?;
    Ok((Cow::Owned(query), targets))
}

/// Every expression of VALUES with the table column it goes to.
fn each_cell(query: &mut Query, targets: &[usize], mut f: impl FnMut(&mut Expr, usize) -> Result<()>) -> Result<()> {
    if let SetExpr::Values(values) = query.body.as_mut() {
        for row in &mut values.rows {
            for (expr, target) in row.content.iter_mut().zip(targets) {
                f(expr, *target)?;
            }
        }
    }
    Ok(())
}

/// Quoted constants of several rows, cast to their columns: each is of the column's type by itself, whatever type the rows'
/// other expressions have in common.
fn typed<'a>(table: &TableDef, targets: &[usize], source: &'a Query) -> Result<Cow<'a, Query>> {
    if !matches!(source.body.as_ref(), SetExpr::Values(values) if values.rows.len() > 1) {
        return Ok(Cow::Borrowed(source));
    }
    let mut query = source.clone();
    each_cell(&mut query, targets, |expr, target| {
        let sql_type = table.columns[target].sql_type;
        let quoted = matches!(expr, Expr::Value(v) if matches!(v.value, Value::SingleQuotedString(_)));
        // Text stays text: a cast would cut what is too long for the column.
        if quoted && !matches!(sql_type, SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_)) {
            *expr = Expr::Cast {
                kind: CastKind::Cast,
                expr: Box::new(expr.clone()),
                data_type: Parser::new(&PostgreSqlDialect {})
                    .try_with_sql(&sql_type.to_string())
                    .and_then(|mut parser| parser.parse_data_type())
                    .map_err(|e| Error::internal(format!("type {sql_type}: {e}")))?,
                array: false,
                format: None,
            };
        }
        Ok(())
    })?;
    Ok(Cow::Owned(query))
}

/// Without names, fewer values than columns are fine: the rest gets defaults.
///
/// # Errors
/// 42601 for more values than columns, and for fewer than were named.
pub(super) fn check_width(width: usize, unnamed: bool, targets: &mut Vec<usize>) -> Result<()> {
    if width > targets.len() {
        return Err(Error::new("42601", "INSERT has more expressions than target columns"));
    }
    if width < targets.len() {
        if !unnamed {
            return Err(Error::new("42601", "INSERT has more target columns than expressions"));
        }
        targets.truncate(width);
    }
    Ok(())
}

/// The expression of a column's default, NULL if it has none.
pub(super) fn default_of(table: &TableDef, column: usize) -> Result<Expr> {
    let null = || Expr::Value(Value::Null.into());
    let Some(text) = &table.columns[column].default else {
        return Ok(null());
    };
    let parsed = tessera_parser::parse(&format!("SELECT {text}")).map_err(crate::error::from_parse)?;
    let Some(Statement::Query(query)) = parsed.into_iter().next().map(|s| s.statement) else {
        return Ok(null());
    };
    match *query.body {
        SetExpr::Select(select) => match select.projection.into_iter().next() {
            Some(sqlparser::ast::SelectItem::UnnamedExpr(expr)) => Ok(Expr::Nested(Box::new(expr))),
            _ => Ok(null()),
        },
        _ => Ok(null()),
    }
}

/// The types that bare `$n` in VALUES or in a SELECT list get from the columns they go to.
pub(crate) fn placeholders(table: &TableDef, query: &Query, targets: &[usize]) -> Vec<Option<DataType>> {
    let mut types: Vec<Option<DataType>> = vec![];
    let mut note = |expr: &Expr, target: usize| note_placeholder(&mut types, expr, &table.columns[target]);
    match query.body.as_ref() {
        SetExpr::Values(values) => {
            for row in &values.rows {
                row.content
                    .iter()
                    .zip(targets)
                    .for_each(|(expr, target)| note(expr, *target));
            }
        }
        SetExpr::Select(select) => {
            for (item, target) in select.projection.iter().zip(targets) {
                if let sqlparser::ast::SelectItem::UnnamedExpr(expr) = item {
                    note(expr, *target);
                }
            }
        }
        _ => {}
    }
    types
}

/// Gives `$n` the column's type, if it is all that the expression is.
pub(super) fn note_placeholder(types: &mut Vec<Option<DataType>>, expr: &Expr, column: &ColumnDef) {
    let mut inner = expr;
    while let Expr::Nested(nested) = inner {
        inner = nested;
    }
    let Expr::Value(value) = inner else { return };
    let Value::Placeholder(name) = &value.value else { return };
    // The wire's own bound on parameters is an int2.
    let number = name.strip_prefix('$').and_then(|n| n.parse::<usize>().ok());
    let Some(number) = number.filter(|n| (1..=65_535).contains(n)) else {
        return;
    };
    if types.len() < number {
        types.resize(number, None);
    }
    types[number - 1].get_or_insert(column.sql_type.arrow());
}

/// Whether the query's columns fit the table's, by number and type.
fn check(table: &TableDef, targets: &[usize], plan: &LogicalPlan) -> Result<()> {
    let fields = plan.schema().fields();
    if fields.len() != targets.len() {
        let (more, than) = if fields.len() > targets.len() {
            ("expressions", "target columns")
        } else {
            ("target columns", "expressions")
        };
        return Err(Error::new("42601", format!("INSERT has more {more} than {than}")));
    }
    for (i, (field, target)) in fields.iter().zip(targets).enumerate() {
        cast::check_assignable(&table.columns[*target], field.data_type(), is_literal(plan, i))?;
    }
    Ok(())
}

/// Whether an output column is made of constants, whose text takes any type.
pub(super) fn is_literal(plan: &LogicalPlan, column: usize) -> bool {
    match plan {
        LogicalPlan::Values(values) => values
            .values
            .iter()
            .all(|row| row.get(column).is_some_and(prepare::is_literal)),
        LogicalPlan::Projection(projection) => match projection.expr.get(column).map(|e| e.clone().unalias()) {
            Some(DfExpr::Column(c)) => projection
                .input
                .schema()
                .maybe_index_of_column(&c)
                .is_some_and(|i| is_literal(&projection.input, i)),
            Some(expr) => prepare::is_literal(&expr),
            None => false,
        },
        LogicalPlan::SubqueryAlias(alias) => is_literal(&alias.input, column),
        LogicalPlan::Sort(sort) => is_literal(&sort.input, column),
        LogicalPlan::Limit(limit) => is_literal(&limit.input, column),
        LogicalPlan::Union(union) => union.inputs.iter().all(|input| is_literal(input, column)),
        _ => false,
    }
}

/// What can be told of an INSERT by its table.
pub(crate) struct Described {
    /// The table.
    pub table: Arc<TableDef>,
    /// Where rows come from, every DEFAULT replaced.
    pub source: Query,
    /// Types of the parameters that are values of columns.
    pub types: Vec<Option<DataType>>,
}

/// Describes an INSERT as far as its table tells.
pub(crate) fn describe(catalog: &StatementCatalog, insert: &Insert) -> Result<Described> {
    let table = find_table(catalog, &insert.table)?;
    let targets = targets(&table, &insert.columns)?;
    let (source, targets) = source(&table, insert, targets)?;
    let types = placeholders(&table, &source, &targets);
    let source = source.into_owned();
    Ok(Described { table, source, types })
}
