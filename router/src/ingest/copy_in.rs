//! COPY ... FROM: rows that the client sends, or a file below the server's files root.
//!
//! ```text
//!   wire bytes ──CopyDecoder (copy/)──▶ batches of the COPY columns ──▶ CopyIn::write ──▶ TableWriter ──▶ finish: commit
//! ```
//!
//! One transaction, however long: rows are staged on the shards while they come, and become visible together or never.

use super::cast;
use super::insert::{find_table, targets};
use super::writer::TableWriter;
use crate::cluster::catalog::StatementCatalog;
use crate::copy;
use crate::outcome::Outcome;
use crate::session::StatementContext;
use datafusion::arrow::array::RecordBatch;
use futures::TryStreamExt;
use tessera_parser::{CopyFormat, CopyFrom, CopyOptions};
use tessera_proto::table::ColumnDef;
use tessera_proto::{Error, Result};

/// A COPY under way. Dropping it aborts it.
#[derive(Debug)]
pub struct CopyIn {
    context: StatementContext,
    columns: Vec<ColumnDef>,
    options: CopyOptions,
    writer: TableWriter,
}

impl CopyIn {
    /// The columns that the data has, in order.
    pub fn columns(&self) -> &[ColumnDef] {
        &self.columns
    }

    /// Format and its options.
    pub fn options(&self) -> &CopyOptions {
        &self.options
    }

    /// Adds rows: the COPY columns in order. Waits while shards are busy, so the client is slowed down too.
    ///
    /// # Errors
    /// Casts, NULLs, a shard that gave up, 57014: abort then.
    pub async fn write(&mut self, batch: RecordBatch) -> Result<()> {
        if batch.num_columns() != self.columns.len() {
            return Err(Error::internal(format!(
                "{} columns for a COPY of {}",
                batch.num_columns(),
                self.columns.len()
            )));
        }
        for (column, array) in self.columns.iter().zip(batch.columns()) {
            cast::check_assignable(column, array.data_type(), true)?;
        }
        self.context
            .bounded(self.writer.write(&batch))
            .await
            .map_err(crate::error::give_up)
    }

    /// Commits; returns the number of rows, all durable and visible.
    ///
    /// # Errors
    /// 23505 and whatever else a shard refuses with: then no row remains. 40003: nobody knows.
    pub async fn finish(self) -> Result<u64> {
        let engine = self.context.engine.clone();
        let rows = self.writer.finish().await.map_err(crate::error::give_up)?.0;
        refresh_soon(&engine);
        Ok(rows)
    }

    /// Drops all rows.
    pub async fn abort(self) {
        self.writer.abort();
    }
}

/// Statistics as of now, in the background: plans after a load should know about it.
pub(crate) fn refresh_soon(engine: &std::sync::Arc<crate::engine::Engine>) {
    let engine_of_task = engine.clone();
    engine.tasks().spawn(async move {
        tokio::select! {
            () = engine_of_task.refresh_statistics(None) => {}
            () = engine_of_task.stop().cancelled() => {}
        }
    });
}

async fn open(context: &StatementContext, statement: &CopyFrom) -> Result<CopyIn> {
    let catalog = StatementCatalog::new(context);
    let table = find_table(&catalog, &statement.table)?;
    let targets = targets(&table, &statement.columns)?;
    let columns = targets.iter().map(|i| table.columns[*i].clone()).collect();
    let writer = TableWriter::new(context, table, &targets).await?;
    Ok(CopyIn {
        context: context.clone(),
        columns,
        options: statement.options.clone(),
        writer,
    })
}

/// COPY FROM STDIN: the client sends next.
pub(crate) async fn start(context: &StatementContext, statement: &CopyFrom) -> Result<Outcome> {
    if statement.options.format == CopyFormat::Parquet {
        return Err(Error::unsupported(
            "COPY FROM STDIN in parquet format is not supported",
            "put the file below the server's files root and use COPY ... FROM 'file', or send CSV",
        ));
    }
    Ok(Outcome::CopyIn(Box::new(open(context, statement).await?)))
}

/// COPY FROM 'file'.
pub(crate) async fn from_file(context: &StatementContext, statement: &CopyFrom, path: &str) -> Result<Outcome> {
    let path = copy::file::open_below(context.engine.files_root(), path)?;
    let mut target = open(context, statement).await?;
    let mut rows = match statement.options.format {
        CopyFormat::Parquet => copy::parquet::parquet_rows(path, &target.columns)?,
        CopyFormat::Csv | CopyFormat::Text => {
            let zone = context.settings.get("timezone").unwrap_or_default();
            copy::file::text_rows(path, &target.columns, &target.options, &zone)?
        }
    };
    while let Some(batch) = context.bounded(async { Ok(rows.try_next().await?) }).await? {
        target.write(batch).await?;
    }
    let count = target.finish().await?;
    Ok(Outcome::done(format!("COPY {count}")))
}
