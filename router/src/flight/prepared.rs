//! Prepared statements: described once, bound and run many times.
//!
//! ```text
//!   CreatePreparedStatement ──▶ handle, columns (none: an update), parameters
//!   DoPut(query, 1 row)     ──▶ bound         GetFlightInfo(handle) ──▶ statement.rs with the bound row
//!   DoPut(update, n rows)   ──▶ runs with each row; INSERT takes all rows in one transaction
//! ```
//!
//! A handle is good in its session. Parameters bound to it stay until others are bound.

use super::params;
use super::service::Flight;
use super::sessions::FlightSession;
use super::statement::{parse_one, returns_rows};
use arrow_flight::sql::ActionCreatePreparedStatementResult;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::scalar::ScalarValue;
use tessera_parser::{ParsedStatement, Statement};
use tessera_proto::flight::rows::{client_schema, schema_bytes};
use tessera_proto::{Error, Result};
use tokio_util::sync::CancellationToken;

/// A prepared statement.
pub(super) struct Prepared {
    /// What it says.
    pub(super) statement: ParsedStatement,
    /// Types of its parameters.
    params: Vec<DataType>,
    /// Rows that were bound, at most one for a query.
    bound: Vec<RecordBatch>,
}

impl Prepared {
    /// What it holds in memory.
    pub(super) fn bytes(&self) -> usize {
        let bound: usize = self.bound.iter().map(RecordBatch::get_array_memory_size).sum();
        self.statement.text.len() + bound
    }

    /// The values that were bound, for a query.
    ///
    /// # Errors
    /// 08P01 when they do not fit the statement; 42P02 when none were bound and some are needed.
    pub(super) fn values(&self) -> Result<Vec<ScalarValue>> {
        let rows: usize = self.bound.iter().map(RecordBatch::num_rows).sum();
        match self.bound.iter().find(|b| b.num_rows() > 0) {
            Some(batch) if rows == 1 => {
                params::check_count(batch.num_columns(), self.params.len())?;
                params::values(batch, 0, &self.params)
            }
            None if self.params.is_empty() => Ok(vec![]),
            None => {
                Err(Error::new("42P02", "there is no parameter $1").with_hint("bind values to the statement first"))
            }
            Some(_) => Err(Error::unsupported(
                format!("running a query with {rows} rows of parameters is not supported"),
                "run it once for each row",
            )),
        }
    }
}

impl Flight {
    /// CreatePreparedStatement.
    pub(super) async fn prepare(
        &self,
        session: &FlightSession,
        sql: &str,
    ) -> Result<ActionCreatePreparedStatementResult> {
        let statement = parse_one(sql).await?;
        if let Statement::Unsupported(unsupported) = &statement.statement {
            return Err(crate::error::from_unsupported(unsupported));
        }
        let described = session.copy().describe(&statement, &[]).await?;
        let columns = described.columns.as_deref().map(client_schema);
        let result = ActionCreatePreparedStatementResult {
            // Clients take a statement without columns for an update.
            dataset_schema: match &columns {
                Some(columns) => schema_bytes(columns)?,
                None => bytes::Bytes::new(),
            },
            parameter_schema: schema_bytes(&parameter_schema(&described.params))?,
            prepared_statement_handle: bytes::Bytes::new(),
        };
        let handle = session.prepare(Prepared {
            statement,
            params: described.params,
            bound: vec![],
        })?;
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: handle.as_bytes().to_vec().into(),
            ..result
        })
    }

    /// DoPut of a prepared query: binds rows.
    pub(super) fn bind(&self, session: &FlightSession, handle: &[u8], rows: Vec<RecordBatch>) -> Result<()> {
        let (handle, prepared) = session.prepared(handle)?;
        if let Some(batch) = rows.first() {
            params::check_count(batch.num_columns(), prepared.params.len())?;
        }
        session.put(
            handle,
            Prepared {
                statement: prepared.statement.clone(),
                params: prepared.params.clone(),
                bound: rows,
            },
        )
    }

    /// DoPut of a prepared update: runs it with each row given, else with those bound; the rows written.
    pub(super) async fn run_prepared(
        &self,
        session: &FlightSession,
        handle: &[u8],
        rows: Vec<RecordBatch>,
    ) -> Result<i64> {
        let _permit = self.permit()?;
        let (_, prepared) = session.prepared(handle)?;
        let rows = if rows.is_empty() { &prepared.bound } else { &rows };
        let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
        if returns_rows(&prepared.statement.statement) || count == 0 {
            let values = prepared.values()?;
            return self.run_update(session, &prepared.statement, values).await;
        }
        for batch in rows {
            params::check_count(batch.num_columns(), prepared.params.len())?;
        }
        if let Statement::Insert(insert) = &prepared.statement.statement {
            let each = |batch: &RecordBatch| {
                let (batch, types) = (batch.clone(), prepared.params.clone());
                (0..batch.num_rows()).map(move |row| params::values(&batch, row, &types))
            };
            let written = session
                .copy()
                .insert_many(insert, rows.iter().flat_map(each), CancellationToken::new())
                .await?;
            return Ok(written as i64);
        }
        if count > 1 {
            return Err(Error::unsupported(
                "running a statement with several rows of parameters is supported for INSERT only",
                "run it once for each row",
            ));
        }
        let values = rows.iter().find(|b| b.num_rows() > 0);
        let values = values
            .map(|batch| params::values(batch, 0, &prepared.params))
            .transpose()?;
        self.run_update(session, &prepared.statement, values.unwrap_or_default())
            .await
    }

    /// Columns of a statement that is not prepared, for GetSchema.
    pub(super) async fn statement_schema(&self, session: &FlightSession, sql: &str) -> Result<SchemaRef> {
        let statement = parse_one(sql).await?;
        let described = session.copy().describe(&statement, &[]).await?;
        Ok(described
            .columns
            .as_deref()
            .map_or_else(|| Schema::empty().into(), client_schema))
    }

    /// Columns of a prepared statement, for GetSchema.
    pub(super) async fn prepared_schema(&self, session: &FlightSession, handle: &[u8]) -> Result<SchemaRef> {
        let (_, prepared) = session.prepared(handle)?;
        let described = session.copy().describe(&prepared.statement, &[]).await?;
        Ok(described
            .columns
            .as_deref()
            .map_or_else(|| Schema::empty().into(), client_schema))
    }
}

fn parameter_schema(params: &[DataType]) -> SchemaRef {
    let field = |(i, data_type): (usize, &DataType)| Field::new(format!("${}", i + 1), data_type.clone(), true);
    client_schema(&Schema::new(params.iter().enumerate().map(field).collect::<Vec<_>>()))
}
