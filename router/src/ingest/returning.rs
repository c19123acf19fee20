//! RETURNING: expressions over the rows that a statement wrote, or removed.
//!
//! ```text
//!   UPDATE t AS x SET a = a + 1 RETURNING x.k, a * 2 AS twice
//!     rows as they will be stored ──▶ SELECT x.k, a * 2 AS twice FROM <those rows> AS x ──▶ held ──▶ commit ──▶ client
//!   new rows for INSERT and UPDATE, old ones for DELETE
//! ```
//!
//! It is a query like any other over a table in memory ([`ChangedRows`]), so that names, types, constants and functions are those
//! of SELECT; subqueries read the statement's snapshot. An error in it undoes the statement, so it is evaluated before the
//! commit; the client gets rows only after it.
//!
//! Not done: columns of the other tables of UPDATE ... FROM and DELETE ... USING, because the rows in memory are the target's alone.

use super::change_query::{check_rowwise, target_query};
use super::change_writer::Held;
use crate::cluster::catalog::TARGET;
use crate::execute::query::{self, Request, Shortcut};
use crate::execute::stream;
use crate::outcome::{Outcome, RowsTag};
use crate::session::StatementContext;
use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result as DfResult;
use datafusion::datasource::MemTable;
use datafusion::logical_expr::{Expr, LogicalPlan, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::scalar::ScalarValue;
use futures::TryStreamExt;
use sqlparser::ast::{Query, SelectItem, TableWithJoins};
use std::sync::Arc;
use tessera_parser::Returning;
use tessera_proto::sql_type::SqlType;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result, Timestamp};

/// The column of [`ChangedRows::numbered`]. Statements do not name it.
pub(super) const NUMBER: &str = "__tessera_number";

/// Rows of a table that a statement holds: visible columns in declared types.
#[derive(Debug)]
pub(crate) struct ChangedRows {
    /// Whose rows.
    pub def: Arc<TableDef>,
    rows: MemTable,
}

impl ChangedRows {
    /// The rows; batches of the table's visible columns.
    ///
    /// # Errors
    /// None is expected.
    pub(crate) fn new(def: Arc<TableDef>, rows: Vec<RecordBatch>) -> Result<Self> {
        let rows = MemTable::try_new(def.visible_schema(), vec![rows])?;
        Ok(Self { def, rows })
    }

    /// The same with the rows' numbers, from 0, in a column [`NUMBER`] behind the others.
    ///
    /// # Errors
    /// None is expected.
    pub(super) fn numbered(def: Arc<TableDef>, rows: &RecordBatch) -> Result<Self> {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows.num_rows() as i64));
        let mut fields: Vec<FieldRef> = def.visible_schema().fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new(NUMBER, DataType::Int64, false)));
        let columns = rows.columns().iter().cloned().chain([numbers]).collect();
        let schema = Arc::new(Schema::new(fields));
        let rows = RecordBatch::try_new(schema.clone(), columns)
            .map_err(|e| Error::internal(format!("rows of table \"{}\": {e}", def.name)))?;
        let rows = MemTable::try_new(schema, vec![vec![rows]])?;
        Ok(Self { def, rows })
    }
}

/// What users see of stored rows.
///
/// # Errors
/// None is expected.
pub(super) fn visible(table: &TableDef, rows: &RecordBatch) -> Result<RecordBatch> {
    let columns: Vec<usize> = (0..table.columns.len()).filter(|i| !table.columns[*i].hidden).collect();
    rows.project(&columns)
        .map_err(|e| Error::internal(format!("rows of table \"{}\": {e}", table.name)))
}

#[async_trait::async_trait]
impl TableProvider for ChangedRows {
    fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        self.rows.scan(session, projection, filters, limit).await
    }
}

/// A statement's RETURNING.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// What is returned.
    pub returning: &'a Returning,
    /// The table whose rows are.
    pub table: &'a Arc<TableDef>,
    /// What expressions call it.
    pub name: &'a str,
    /// Tables that the statement reads besides.
    pub from: &'a [TableWithJoins],
}

impl Asked<'_> {
    /// The query for it.
    ///
    /// # Errors
    /// 0A000 for `*` where it would be columns of other tables too.
    pub(crate) fn query(&self) -> Result<Query> {
        let all = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_));
        if !self.from.is_empty() && self.returning.projection.iter().any(all) {
            return Err(Error::unsupported(
                "RETURNING * of a statement that reads other tables is not supported",
                format!("write RETURNING {}.* for the columns of \"{}\"", self.name, self.name),
            ));
        }
        target_query(self.name, |select| {
            select.projection = self.returning.projection.clone();
        })
    }

    /// An error of binding the query, for the user.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match error.code.as_str() {
            "42P01" if !self.from.is_empty() => Error::unsupported(
                "RETURNING of other tables' columns is not supported",
                format!("return columns of \"{}\", and read the others by a SELECT", self.name),
            )
            .with_detail(error.message),
            "42703" if !self.from.is_empty() && error.hint.is_none() => {
                error.with_hint(format!("RETURNING sees the columns of \"{}\" only", self.name))
            }
            _ => error,
        }
    }
}

/// What RETURNING makes of the rows.
#[derive(Debug)]
pub(super) struct Returned {
    schema: SchemaRef,
    declared: Vec<Option<SqlType>>,
    rows: Vec<RecordBatch>,
}

impl Returned {
    /// The statement's outcome, once it is committed.
    pub(super) fn outcome(self, tag: RowsTag) -> Outcome {
        Outcome::Rows {
            stream: stream::ready(self.schema.clone(), self.rows),
            schema: self.schema,
            columns: self.declared,
            tag,
        }
    }
}

/// Evaluates RETURNING over `rows`, which are batches of the table's visible columns. Subqueries read `snapshot`, or a new one.
///
/// # Errors
/// The planner's, and what the expressions fail with; 54000 for too many bytes.
pub(super) async fn evaluate(
    context: &StatementContext,
    asked: &Asked<'_>,
    params: &[ScalarValue],
    snapshot: Option<Timestamp>,
    rows: Vec<RecordBatch>,
) -> Result<Returned> {
    let query = asked.query()?;
    let request = Request {
        check: &|plan: &LogicalPlan| check_rowwise(plan, "RETURNING"),
        shortcut: Shortcut::Never,
        snapshot,
        targets: vec![(TARGET, Arc::new(ChangedRows::new(asked.table.clone(), rows)?))],
        ..Request::new(&query, params.to_vec())
    };
    let opened = query::open(context, request).await;
    let mut running = opened.map_err(|error| asked.explain(error))?;
    let (mut held, mut rows) = (Held::default(), vec![]);
    while let Some(batch) = context.bounded(async { Ok(running.stream.try_next().await?) }).await? {
        held.add(&batch)?;
        rows.push(batch);
    }
    Ok(Returned {
        schema: running.schema,
        declared: running.declared,
        rows,
    })
}
