//! Brings a batch of some columns to all columns of the table, in declared types, checked.
//!
//! ```text
//!   INSERT INTO t (b, a) ...        input  b a        table  a b c(default 7) __tessera_row_id
//!                                   plan   a ← 1, b ← 0, c ← default, row id ← counter
//! ```

use super::cast;
use super::defaults::{self, Default};
use crate::cluster::catalog::StatementCatalog;
use crate::session::StatementContext;
use datafusion::arrow::array::{Array, ArrayRef, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::SchemaRef;
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result};

/// Where a table column's values come from.
#[derive(Debug, Clone)]
enum Source {
    /// This column of the input.
    Input(usize),
    /// The column's default.
    Default(Default),
    /// The row id counter.
    RowId,
}

/// Shapes batches for one table.
#[derive(Debug, Clone)]
pub(super) struct RowShaper {
    table: Arc<TableDef>,
    schema: SchemaRef,
    sources: Vec<Source>,
    zone: String,
}

impl RowShaper {
    /// `targets[i]` is the table column that input column `i` goes to.
    ///
    /// # Errors
    /// What planning a default finds.
    pub(super) async fn new(context: &StatementContext, table: Arc<TableDef>, targets: &[usize]) -> Result<Self> {
        let zone = context.settings.get("timezone").unwrap_or_default();
        let catalog = StatementCatalog::new(context);
        let now = context.engine.oracle().draw().await?;
        let mut sources = Vec::with_capacity(table.columns.len());
        for (i, column) in table.columns.iter().enumerate() {
            sources.push(match targets.iter().position(|t| *t == i) {
                Some(input) => Source::Input(input),
                None if column.hidden => Source::RowId,
                None => Source::Default(defaults::plan(context, &catalog, column, &zone, now).await?),
            });
        }
        Ok(Self {
            schema: table.arrow_schema(),
            table,
            sources,
            zone,
        })
    }

    /// For batches that have every column: `inputs[i]` is where table column `i` is.
    pub(super) fn complete(context: &StatementContext, table: Arc<TableDef>, inputs: &[usize]) -> Self {
        Self {
            schema: table.arrow_schema(),
            table,
            sources: inputs.iter().copied().map(Source::Input).collect(),
            zone: context.settings.get("timezone").unwrap_or_default(),
        }
    }

    /// Whether rows need ids of their own.
    pub(super) fn needs_row_ids(&self) -> bool {
        self.sources.iter().any(|s| matches!(s, Source::RowId))
    }

    /// The schema of shaped batches: all stored columns.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Shapes a batch; its rows get the ids from `first_id` on.
    ///
    /// # Errors
    /// Those of casts; 23502 for a NULL where none may be.
    pub(super) fn shape(&self, batch: &RecordBatch, first_id: i64) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        let mut columns = Vec::with_capacity(self.sources.len());
        for (column, source) in self.table.columns.iter().zip(&self.sources) {
            let array: ArrayRef = match source {
                Source::Input(i) => cast::assign(column, batch.column(*i), &self.zone)?,
                Source::Default(default) => default.column(column, rows, &self.zone)?,
                Source::RowId => Arc::new(Int64Array::from_iter_values(first_id..first_id + rows as i64)),
            };
            if !column.nullable && array.null_count() > 0 {
                return Err(self.not_null(&column.name));
            }
            columns.push(array);
        }
        RecordBatch::try_new(self.schema.clone(), columns)
            .map_err(|e| Error::internal(format!("shaping rows of table \"{}\": {e}", self.table.name)))
    }

    fn not_null(&self, column: &str) -> Error {
        let message = format!(
            "null value in column \"{column}\" of relation \"{}\" violates not-null constraint",
            self.table.name
        );
        Error::new("23502", message)
    }
}
