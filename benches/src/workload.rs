//! What a workload is to the runner: tables that can be created and filled, and queries with the order they promise.
//!
//! ```text
//! Workload { tables: [Table], queries: [Query] }  --> load --> run --> verify <-- oracle or answer files
//!     ^ tpch::workload()   ^ tpcds::workload()                  |
//!                                                               +--> report
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use datafusion::arrow::record_batch::RecordBatchReader;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::error::{Error, Result};

/// Rows per Parquet row group: 128 K, the smallest segment of our own storage, so both sides prune alike.
const ROW_GROUP_ROWS: usize = 128 * 1024;

/// Batches of one table, or of one of its parts; `Send`, so a thread can generate while another sends.
pub type Batches = Box<dyn RecordBatchReader + Send>;

/// A table of a workload.
pub trait Table: Send + Sync {
    /// The SQL name, lower case.
    fn name(&self) -> &'static str;

    /// The CREATE statement; `shards` counts for tables that are neither reference nor colocated with another.
    fn ddl(&self, shards: u32) -> String;

    /// The same table in plain PostgreSQL, to run the workload against another server.
    fn plain_ddl(&self) -> String;

    /// All rows at this scale, the same on every machine.
    fn batches(&self, scale: f64) -> Batches;

    /// About how many rows those are; for progress only.
    fn expected_rows(&self, scale: f64) -> u64;

    /// The file of this table below `dir`.
    fn parquet_path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.parquet", self.name()))
    }
}

/// One sort key of a query's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SortKey {
    /// Output column, from 0.
    pub column: usize,
    /// Largest first.
    pub descending: bool,
    /// NULL before everything else.
    pub nulls_first: bool,
}

/// One statement and what its answer must look like.
#[derive(Debug, Clone)]
pub struct Query {
    /// As in the specification, from 1.
    pub number: u8,
    /// `a`, `b`, ... where the specification asks several statements under one number.
    pub part: Option<char>,
    /// The text, without a final semicolon.
    pub sql: &'static str,
    /// The order its rows come in, as far as the output shows it. Empty where there is no ORDER BY.
    pub order: Vec<SortKey>,
    /// The LIMIT behind that order; rows that tie with the last one are then any of several. `None`: no such freedom.
    pub limit: Option<usize>,
}

impl Query {
    /// The name in reports, such as `7` or `14b`.
    pub fn name(&self) -> String {
        match self.part {
            Some(part) => format!("{}{part}", self.number),
            None => self.number.to_string(),
        }
    }
}

/// Tables and queries under one name.
pub struct Workload {
    /// The kind of workload and its caveat, for reports.
    pub title: &'static str,
    /// In an order in which `COLOCATE WITH` finds what it names.
    pub tables: Vec<&'static dyn Table>,
    /// By number and part.
    pub queries: Vec<Query>,
    /// Largest scale factor the generator serves.
    pub scale_max: f64,
}

impl Workload {
    /// Refuses scale factors the generator cannot serve.
    ///
    /// # Errors
    /// `Usage` when `scale` is not a number in `(0, scale_max]`.
    pub fn check_scale(&self, scale: f64) -> Result<()> {
        if scale.is_finite() && scale > 0.0 && scale <= self.scale_max {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "scale factor {scale} is not above 0 and at most {}",
            self.scale_max
        )))
    }

    /// The queries with these numbers, with all their parts; all queries for `None`.
    ///
    /// # Errors
    /// `Usage` for a number no query has.
    pub fn select(&self, numbers: Option<&[u8]>) -> Result<Vec<&Query>> {
        let Some(numbers) = numbers else {
            return Ok(self.queries.iter().collect());
        };
        let mut selected = Vec::new();
        for number in numbers {
            let before = selected.len();
            selected.extend(self.queries.iter().filter(|query| query.number == *number));
            if selected.len() == before {
                let last = self.queries.last().map_or(0, |query| query.number);
                return Err(Error::Usage(format!("query {number} is not 1 to {last}")));
            }
        }
        Ok(selected)
    }

    /// Writes every table to `dir`, one Parquet file each, and returns the rows written.
    ///
    /// Blocking: takes seconds per scale unit. A file appears under its name only when complete.
    ///
    /// # Errors
    /// `File` or `Parquet` when the folder is not writable or full.
    pub fn write_parquet(&self, dir: &Path, scale: f64) -> Result<u64> {
        self.check_scale(scale)?;
        fs::create_dir_all(dir).map_err(Error::file(dir))?;
        let mut rows = 0;
        for table in &self.tables {
            rows += write_parquet_table(dir, *table, scale)?;
        }
        Ok(rows)
    }
}

fn write_parquet_table(dir: &Path, table: &dyn Table, scale: f64) -> Result<u64> {
    let path = table.parquet_path(dir);
    let unfinished = path.with_extension("parquet.unfinished");
    let file = File::create(&unfinished).map_err(Error::file(&unfinished))?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .build();
    let reader = table.batches(scale);
    let mut writer = ArrowWriter::try_new(file, reader.schema(), Some(properties))?;
    let mut rows = 0;
    for batch in reader {
        let batch = batch?;
        rows += batch.num_rows() as u64;
        writer.write(&batch)?;
    }
    writer.close()?;
    fs::rename(&unfinished, &path).map_err(Error::file(&path))?;
    Ok(rows)
}
