//! Single-process DataFusion over the same rows: the judge of our answers and the baseline of our times.
//!
//! ```text
//! Oracle::in_memory(0.01)        generated batches as MemTables        checks without touching the disk
//! Oracle::parquet(dir)           <dir>/<table>.parquet                 what "DataFusion on Parquet" means in reports
//!        |
//!        +-- answer(query) --> rows as text, comparable with what the PostgreSQL protocol prints
//! ```
//!
//! It always uses two partitions, whatever the machine, so that figures of one report compare with another's.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::record_batch::RecordBatch;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::datasource::MemTable;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};

use crate::error::{Error, Result};
use crate::workload::{Query, Table, Workload};

/// Rows as text, NULL as `None`; the order is the engine's.
pub type Answer = Vec<Vec<Option<String>>>;

/// Partitions of the comparison engines: the two cores our figures are given for.
pub(crate) const TARGET_PARTITIONS: usize = 2;

/// A DataFusion session with the workload's tables.
pub struct Oracle {
    session: SessionContext,
}

impl Oracle {
    /// Generates the tables into memory: about 0.9 GB per scale unit. Generation runs on a blocking thread.
    ///
    /// # Errors
    /// `Usage` for a bad scale, `Generate` and `Oracle` when the rows cannot be registered.
    pub async fn in_memory(workload: &Workload, scale: f64) -> Result<Self> {
        workload.check_scale(scale)?;
        let session = session();
        for &table in &workload.tables {
            let mem_table = tokio::task::spawn_blocking(move || memory_table(table, scale))
                .await
                .map_err(|e| Error::Task(e.to_string()))??;
            session
                .register_table(table.name(), Arc::new(mem_table))
                .map_err(Error::oracle(format!("table \"{}\"", table.name())))?;
        }
        Ok(Self { session })
    }

    /// Uses the files that [`Workload::write_parquet`] wrote to `dir`.
    ///
    /// # Errors
    /// `Oracle` when a file is missing or damaged.
    pub async fn parquet(workload: &Workload, dir: &Path) -> Result<Self> {
        let session = session();
        for table in &workload.tables {
            let path = table.parquet_path(dir);
            session
                .register_parquet(table.name(), path.to_string_lossy(), ParquetReadOptions::default())
                .await
                .map_err(Error::oracle(format!("table \"{}\"", table.name())))?;
        }
        Ok(Self { session })
    }

    /// The answer of one query.
    ///
    /// # Errors
    /// `Oracle` when the query fails.
    pub async fn answer(&self, query: &Query) -> Result<Answer> {
        to_text(&self.run(query).await?)
    }

    /// The wall time of one run from text to the last row, with rows kept as Arrow.
    ///
    /// # Errors
    /// `Oracle` when the query fails.
    pub async fn time(&self, query: &Query) -> Result<Duration> {
        let start = Instant::now();
        self.run(query).await?;
        Ok(start.elapsed())
    }

    async fn run(&self, query: &Query) -> Result<Vec<RecordBatch>> {
        let doing = format!("query {}", query.name());
        let frame = self
            .session
            .sql(query.sql)
            .await
            .map_err(Error::oracle(doing.clone()))?;
        frame.collect().await.map_err(Error::oracle(doing))
    }
}

fn session() -> SessionContext {
    // Decimals, because 0.06 + 0.01 in floating point is below 0.07 and loses rows of Q6.
    let config = SessionConfig::new()
        .with_target_partitions(TARGET_PARTITIONS)
        .set_bool("datafusion.sql_parser.parse_float_as_decimal", true)
        .set_str("datafusion.sql_parser.dialect", "postgresql");
    SessionContext::new_with_config(config)
}

fn memory_table(table: &dyn Table, scale: f64) -> Result<MemTable> {
    let reader = table.batches(scale);
    let schema = reader.schema();
    let mut partitions = vec![Vec::new(); TARGET_PARTITIONS];
    for (index, batch) in reader.enumerate() {
        partitions[index % TARGET_PARTITIONS].push(batch?);
    }
    MemTable::try_new(schema, partitions).map_err(Error::oracle(format!("table \"{}\"", table.name())))
}

fn to_text(batches: &[RecordBatch]) -> Result<Answer> {
    let options = FormatOptions::default();
    let mut rows = Vec::new();
    for batch in batches {
        let columns = batch
            .columns()
            .iter()
            .map(|array| Ok((array, ArrayFormatter::try_new(array, &options)?)))
            .collect::<Result<Vec<_>>>()?;
        rows.extend((0..batch.num_rows()).map(|row| {
            columns
                .iter()
                .map(|(array, formatter)| array.is_valid(row).then(|| formatter.value(row).to_string()))
                .collect::<Vec<_>>()
        }));
    }
    Ok(rows)
}
