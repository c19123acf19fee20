//! SELECT of columns by the whole primary key: one RPC to the shard's leader, no planning.
//!
//! ```text
//!   SELECT b, a FROM t WHERE a = 42     token(42) ──▶ shard 3 ──▶ PointRead { keys: [42], projection: [1, 0] }
//! ```
//!
//! Recognised on the bound plan: columns over a conjunction of `key column = constant` over one table. Anything more is the
//! planner's. A constant of another type counts only if it has the column's value exactly.

use super::prepare;
use crate::cluster::catalog::StatementCatalog;
use crate::session::StatementContext;
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, LogicalPlan, Operator};
use datafusion::scalar::ScalarValue;
use std::sync::Arc;
use tessera_proto::sql_type::SqlType;
use tessera_proto::table::TableDef;
use tessera_proto::token::tokens;
use tessera_proto::{Error, Result, ShardId, Timestamp, ipc, v1};

/// A read by primary key.
#[derive(Debug, Clone)]
pub(crate) struct PointRead {
    table: Arc<TableDef>,
    /// In key order.
    key: Vec<ScalarValue>,
    /// Columns of the table, in result order.
    projection: Vec<u32>,
}

/// The point read that a bound plan is, if it is one.
pub(crate) fn recognise(plan: &LogicalPlan) -> Option<PointRead> {
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
    let mut found: Vec<Option<ScalarValue>> = vec![None; source.table.primary_key.len()];
    for predicate in split_conjunction(&filter.predicate) {
        let (column, value) = equality(predicate, &source)?;
        let position = source.table.primary_key.iter().position(|k| *k == column)?;
        let slot = &mut found[position];
        // Twice the same column may contradict itself: the planner's.
        if slot
            .replace(exact(value, source.table.columns[column].sql_type)?)
            .is_some()
        {
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
    Some(PointRead {
        key: found.into_iter().collect::<Option<Vec<_>>>()?,
        projection: columns,
        table: source.table,
    })
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

fn equality<'a>(predicate: &'a Expr, source: &Source) -> Option<(usize, &'a ScalarValue)> {
    let Expr::BinaryExpr(binary) = predicate else {
        return None;
    };
    if binary.op != Operator::Eq {
        return None;
    }
    match (binary.left.as_ref(), binary.right.as_ref()) {
        (column, Expr::Literal(value, _)) | (Expr::Literal(value, _), column) => Some((source.column(column)?, value)),
        _ => None,
    }
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
        let shard = self.shard(catalog)?;
        let entry = catalog
            .view()
            .shards
            .get(&shard)
            .ok_or_else(|| Error::stale_map(format!("shard {shard} is unknown")))?;
        let keys = self.keys()?;
        let request = v1::PointReadRequest {
            shard: Some(v1::ShardRef::new(shard, entry.config.epoch)),
            table: self.table.id.0,
            snapshot: snapshot.0,
            meta_revision: catalog.view().revision,
            deadline_ms: context.deadline_ms(),
            keys: ipc::encode(&keys.schema(), &[keys])?,
            projection: self.projection.clone(),
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
