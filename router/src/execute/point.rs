//! SELECT of columns by the whole primary key: one RPC to the shard's leader, no planning.
//!
//! ```text
//!   SELECT b, a FROM t WHERE a = $1     Template { key: [$1], projection: [1, 0] }     kept with the text, for the next time
//!                                         └─ [42] ─▶ PointRead ── token(42) ─▶ shard 3 ─▶ { keys: [42], projection: [1, 0] }
//! ```
//!
//! Recognised on the bound plan: columns over a conjunction of `key column = constant or parameter` over one table. Anything
//! more is the planner's. A value of another type counts only if it has the column's value exactly.

use super::declared::declared;
use super::prepare;
use crate::cluster::catalog::StatementCatalog;
use crate::session::StatementContext;
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, LogicalPlan, Operator};
use datafusion::scalar::ScalarValue;
use moka::sync::Cache;
use sqlparser::ast::Query;
use std::sync::Arc;
use tessera_planner::names::result_schema;
use tessera_proto::sql_type::SqlType;
use tessera_proto::table::TableDef;
use tessera_proto::token::tokens;
use tessera_proto::{Error, Result, ShardId, Timestamp, ipc, v1};

/// Texts whose template is kept, of all sessions.
const TEMPLATES_MAX: u64 = 4_096;
/// Longer texts are not kept.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// What a text is bound to besides the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    text: Box<str>,
    types: Vec<Option<DataType>>,
    search_path: Option<String>,
    time_zone: Option<String>,
}

/// Templates of texts that ran before, of all sessions: what runs again with other parameters is not bound again until the
/// catalog changes.
#[derive(Debug, Clone)]
pub(crate) struct Templates(Cache<Key, Arc<Template>>);

impl Default for Templates {
    fn default() -> Self {
        Self(Cache::new(TEMPLATES_MAX))
    }
}

impl Templates {
    /// The read that `text` with these parameters is, if it was recognised before at this revision of the catalog.
    pub(crate) fn get(
        &self,
        context: &StatementContext,
        catalog: &StatementCatalog,
        text: &str,
        types: &[Option<DataType>],
        params: &[ScalarValue],
    ) -> Option<(Arc<Template>, PointRead)> {
        let template = self.0.get(&key(context, text, types)?)?;
        let read = (template.revision == catalog.view().revision).then(|| template.read(params))??;
        Some((template, read))
    }

    /// Keeps a template.
    pub(crate) fn put(
        &self,
        context: &StatementContext,
        text: &str,
        types: &[Option<DataType>],
        template: Arc<Template>,
    ) {
        if let Some(key) = key(context, text, types) {
            self.0.insert(key, template);
        }
    }
}

fn key(context: &StatementContext, text: &str, types: &[Option<DataType>]) -> Option<Key> {
    (text.len() <= TEXT_BYTES_MAX).then(|| Key {
        text: text.into(),
        types: types.to_vec(),
        search_path: context.settings.get("search_path"),
        time_zone: context.settings.get("timezone"),
    })
}

/// A read by primary key whose values may be parameters.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    /// Of the catalog that it was bound to.
    revision: u64,
    table: Arc<TableDef>,
    /// In key order.
    key: Vec<Operand>,
    /// Columns of the table, in result order.
    projection: Vec<u32>,
    /// Columns of the result.
    pub schema: SchemaRef,
    /// Their declared types.
    pub declared: Vec<Option<SqlType>>,
}

/// What a key column is compared with.
#[derive(Debug, Clone)]
enum Operand {
    /// A constant, as the column's type.
    Value(ScalarValue),
    /// Position of a parameter.
    Parameter(usize),
}

/// A read by primary key.
#[derive(Debug, Clone)]
pub(crate) struct PointRead {
    table: Arc<TableDef>,
    /// In key order.
    key: Vec<ScalarValue>,
    /// Columns of the table, in result order.
    projection: Vec<u32>,
}

/// The read by primary key that a bound plan is, if it is one.
pub(crate) fn recognise(query: &Query, plan: &LogicalPlan, revision: u64) -> Option<Template> {
    let LogicalPlan::Projection(projection) = plan else {
        return None;
    };
    let LogicalPlan::Filter(filter) = projection.input.as_ref() else {
        return None;
    };
    let source = Source::of(&filter.input)?;
    // Sharded tables only: any copy of a reference table answers as fast.
    if source.table.primary_key.is_empty() || source.table.is_reference() {
        return None;
    }
    let mut found: Vec<Option<Operand>> = vec![None; source.table.primary_key.len()];
    for predicate in split_conjunction(&filter.predicate) {
        let (column, operand) = equality(predicate, &source)?;
        let position = source.table.primary_key.iter().position(|k| *k == column)?;
        // Twice the same column may contradict itself: the planner's.
        if found[position].replace(operand).is_some() {
            return None;
        }
    }
    let columns = projection
        .expr
        .iter()
        .map(|e| source.column(e).map(|i| i as u32))
        .collect::<Option<Vec<_>>>()?;
    if columns.is_empty() {
        return None;
    }
    Some(Template {
        revision,
        key: found.into_iter().collect::<Option<Vec<_>>>()?,
        projection: columns,
        table: source.table,
        schema: result_schema(query, plan.schema().as_arrow()),
        declared: declared(query, plan),
    })
}

impl Template {
    /// The read with these parameters; `None` where a value is not exactly one of its column's type.
    pub(crate) fn read(&self, params: &[ScalarValue]) -> Option<PointRead> {
        let value = |(operand, column): (&Operand, &usize)| match operand {
            Operand::Value(value) => Some(value.clone()),
            Operand::Parameter(position) => exact(params.get(*position)?, self.table.columns.get(*column)?.sql_type),
        };
        Some(PointRead {
            key: self
                .key
                .iter()
                .zip(&self.table.primary_key)
                .map(value)
                .collect::<Option<Vec<_>>>()?,
            table: self.table.clone(),
            projection: self.projection.clone(),
        })
    }
}

/// A table without anything done to its rows.
struct Source<'a> {
    table: Arc<TableDef>,
    input: &'a LogicalPlan,
    projection: Option<Vec<usize>>,
}

impl<'a> Source<'a> {
    fn of(input: &'a LogicalPlan) -> Option<Self> {
        let mut plan = input;
        while let LogicalPlan::SubqueryAlias(alias) = plan {
            plan = &alias.input;
        }
        let LogicalPlan::TableScan(scan) = plan else {
            return None;
        };
        if !scan.filters.is_empty() || scan.fetch.is_some() {
            return None;
        }
        Some(Self {
            table: prepare::stub(scan)?.def,
            input,
            projection: scan.projection.clone(),
        })
    }

    /// The table column that an expression is.
    fn column(&self, expr: &Expr) -> Option<usize> {
        match expr {
            Expr::Alias(alias) => self.column(&alias.expr),
            Expr::Column(column) => {
                let index = self.input.schema().maybe_index_of_column(column)?;
                self.projection.as_ref().map_or(Some(index), |p| p.get(index).copied())
            }
            _ => None,
        }
    }
}

fn equality(predicate: &Expr, source: &Source) -> Option<(usize, Operand)> {
    let Expr::BinaryExpr(binary) = predicate else {
        return None;
    };
    if binary.op != Operator::Eq {
        return None;
    }
    let (column, other) = match source.column(&binary.left) {
        Some(column) => (column, binary.right.as_ref()),
        None => (source.column(&binary.right)?, binary.left.as_ref()),
    };
    let operand = match other {
        Expr::Literal(value, _) => Operand::Value(exact(value, source.table.columns[column].sql_type)?),
        Expr::Placeholder(placeholder) => {
            let number: usize = placeholder.id.strip_prefix('$')?.parse().ok()?;
            Operand::Parameter(number.checked_sub(1)?)
        }
        _ => return None,
    };
    Some((column, operand))
}

/// The constant as the column's type, if that is the very same value.
fn exact(value: &ScalarValue, sql_type: SqlType) -> Option<ScalarValue> {
    let (from, to) = (value.data_type(), sql_type.arrow());
    let text = |t: &DataType| matches!(t, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    // char(n) compares without trailing blanks, whatever the constant has.
    let same = from == to || (from.is_integer() && to.is_integer()) || (text(&from) && text(&to));
    if value.is_null() || !same || matches!(sql_type, SqlType::Char(_)) {
        return None;
    }
    let cast = value.cast_to(&to).ok()?;
    (!cast.is_null() && cast.cast_to(&from).ok()? == *value).then_some(cast)
}

/// Rows of one shard that are asked for by their keys.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// Whose rows.
    pub table: &'a TableDef,
    /// Where they are.
    pub shard: ShardId,
    /// Row keys, columns in key order.
    pub keys: RecordBatch,
    /// Columns of the table, in result order.
    pub projection: &'a [u32],
}

impl Wanted<'_> {
    /// Those that are there at `snapshot`, at most one per key, in the order of the keys; what the transaction changed itself too.
    /// Batches have the columns of `schema`, which may differ from the table's in name only.
    ///
    /// # Errors
    /// The shard's; retryable ones before anything happened, for it is a read.
    pub(crate) async fn read(
        self,
        context: &StatementContext,
        catalog: &StatementCatalog,
        snapshot: Timestamp,
        schema: &SchemaRef,
    ) -> Result<Vec<RecordBatch>> {
        let shard = self.shard;
        let entry = catalog
            .view()
            .shards
            .get(&shard)
            .ok_or_else(|| Error::stale_map(format!("shard {shard} is unknown")))?;
        let own = context.transaction.as_ref().and_then(|transaction| transaction.own());
        let own = own.filter(|own| own.shards.contains(&shard));
        let request = v1::PointReadRequest {
            shard: Some(v1::ShardRef {
                own: own.is_some(),
                ..v1::ShardRef::new(shard, entry.config.epoch)
            }),
            txn: own.map(|own| own.txn.into()).unwrap_or_default(),
            table: self.table.id.0,
            snapshot: snapshot.0,
            meta_revision: catalog.view().revision,
            deadline_ms: context.deadline_ms(),
            keys: ipc::encode(&self.keys.schema(), &[self.keys])?,
            projection: self.projection.to_vec(),
        };
        let reply = context
            .engine
            .directory()
            .node(entry.config.leader.node)?
            .point_read(request)
            .await?;
        let rows = ipc::decode(&reply.rows)?;
        let width = schema.fields().len();
        if rows.iter().any(|b| b.num_columns() != width) {
            return Err(Error::protocol(format!("a point read did not return {width} columns")));
        }
        rows.into_iter().map(|b| Ok(ipc::relabel(schema, b)?)).collect()
    }
}

impl PointRead {
    /// The row, or none. Batches have the columns of `schema`, which may differ from the table's in name only.
    ///
    /// # Errors
    /// The shard's; retryable ones before anything happened, for it is a read.
    pub(crate) async fn run(
        &self,
        context: &StatementContext,
        catalog: &StatementCatalog,
        snapshot: Timestamp,
        schema: &SchemaRef,
    ) -> Result<Vec<RecordBatch>> {
        let wanted = Wanted {
            table: &self.table,
            shard: self.shard(catalog)?,
            keys: self.keys()?,
            projection: &self.projection,
        };
        wanted.read(context, catalog, snapshot, schema).await
    }

    fn keys(&self) -> Result<RecordBatch> {
        let columns: Vec<_> = self.table.primary_key.iter().map(|i| &self.table.columns[*i]).collect();
        let fields: Vec<Field> = columns
            .iter()
            .map(|c| Field::new(&c.name, c.sql_type.arrow(), c.nullable))
            .collect();
        let arrays = self
            .key
            .iter()
            .map(|v| v.to_array())
            .collect::<std::result::Result<Vec<ArrayRef>, _>>()?;
        RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
            .map_err(|e| Error::internal(format!("building a key: {e}")))
    }

    /// The shard that owns the key: the primary key contains the shard key.
    fn shard(&self, catalog: &StatementCatalog) -> Result<ShardId> {
        let group = catalog
            .view()
            .groups
            .get(&self.table.group)
            .ok_or_else(|| Error::stale_map("the table's group is unknown"))?;
        let part = |column: &usize| {
            let position = self.table.primary_key.iter().position(|k| k == column);
            let value = position
                .and_then(|p| self.key.get(p))
                .ok_or_else(|| Error::internal("shard key outside the primary key"))?;
            Ok(value.to_array()?)
        };
        let keys = self.table.shard_key().iter().map(part).collect::<Result<Vec<_>>>()?;
        let token = tokens(&keys)?
            .first()
            .copied()
            .ok_or_else(|| Error::internal("a key without a token"))?;
        Ok(ShardId {
            group: group.id,
            index: group.shard_of(token),
        })
    }
}
