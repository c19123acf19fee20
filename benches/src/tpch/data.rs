//! Generated rows as Arrow batches, Parquet files and CSV text.
//!
//! ```text
//! tpchgen --> RecordBatch (8,000 rows) --+--> MemTable of the oracle
//!                                        +--> <dir>/<table>.parquet    zstd 1, row groups of 128 K rows
//!                                        +--> CSV text                 for COPY ... FROM STDIN
//! ```
//!
//! The generator is deterministic: one scale factor means one data set, on every machine, equal to dbgen's. `parts`
//! cuts a table into that many consecutive pieces without changing its rows.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatchReader;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow, RegionArrow, SupplierArrow,
};

use super::schema::{TABLES, Table};
use crate::error::{Error, Result};

/// Largest scale factor accepted: above it a key no longer fits the generator's tested range.
pub const SCALE_MAX: f64 = 1000.0;

/// Rows per Parquet row group: 128 K, the smallest segment of our own storage, so both sides prune alike.
const ROW_GROUP_ROWS: usize = 128 * 1024;

/// Batches of one table, or of one of its parts; `Send`, so a thread can generate while another sends.
pub type Batches = Box<dyn RecordBatchReader + Send>;

/// Refuses scale factors the generator cannot serve.
///
/// # Errors
/// `Usage` when `scale` is not a number in `(0, SCALE_MAX]`.
pub fn check_scale(scale: f64) -> Result<()> {
    if scale.is_finite() && scale > 0.0 && scale <= SCALE_MAX {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "scale factor {scale} is not above 0 and at most {SCALE_MAX}"
    )))
}

/// The rows of `table`, in key order.
pub fn batches(table: Table, scale: f64) -> Batches {
    part_batches(table, scale, 1, 1)
}

/// Part `part` (from 1) of `parts` of `table`. Region and nation do not split: their rows are all in part 1.
pub fn part_batches(table: Table, scale: f64, part: i32, parts: i32) -> Batches {
    match table {
        // A batch size of 25 and more yields these whole; other parts are asked for no rows at all.
        Table::Region => Box::new(OnlyFirst {
            inner: RegionArrow::new(RegionGenerator::new(scale, 1, 1)),
            part,
        }),
        Table::Nation => Box::new(OnlyFirst {
            inner: NationArrow::new(NationGenerator::new(scale, 1, 1)),
            part,
        }),
        Table::Supplier => Box::new(SupplierArrow::new(SupplierGenerator::new(scale, part, parts))),
        Table::Part => Box::new(PartArrow::new(PartGenerator::new(scale, part, parts))),
        Table::PartSupp => Box::new(PartSuppArrow::new(PartSuppGenerator::new(scale, part, parts))),
        Table::Customer => Box::new(CustomerArrow::new(CustomerGenerator::new(scale, part, parts))),
        Table::Orders => Box::new(OrderArrow::new(OrderGenerator::new(scale, part, parts))),
        Table::LineItem => Box::new(LineItemArrow::new(LineItemGenerator::new(scale, part, parts))),
    }
}

/// Rows to expect: exact but for lineitem, which is within 0.1 % from scale 0.1 on. For progress only.
pub fn expected_rows(table: Table, scale: f64) -> u64 {
    let rows = match table {
        Table::Region => return 5,
        Table::Nation => return 25,
        Table::Supplier => SupplierGenerator::calculate_row_count(scale, 1, 1),
        Table::Part => PartGenerator::calculate_row_count(scale, 1, 1),
        Table::PartSupp => PartGenerator::calculate_row_count(scale, 1, 1).saturating_mul(4),
        Table::Customer => CustomerGenerator::calculate_row_count(scale, 1, 1),
        Table::Orders => OrderGenerator::calculate_row_count(scale, 1, 1),
        // Every order has 1 to 7 lines, evenly distributed.
        Table::LineItem => OrderGenerator::calculate_row_count(scale, 1, 1).saturating_mul(4),
    };
    u64::try_from(rows).unwrap_or(0)
}

/// The file of `table` below `dir`.
pub fn parquet_path(dir: &Path, table: Table) -> PathBuf {
    dir.join(format!("{}.parquet", table.name()))
}

/// Writes every table to `dir`, one Parquet file each, and returns the rows written.
///
/// Blocking: takes seconds per scale unit. A file appears under its name only when complete.
///
/// # Errors
/// `File` or `Parquet` when the folder is not writable or full.
pub fn write_parquet(dir: &Path, scale: f64) -> Result<u64> {
    check_scale(scale)?;
    fs::create_dir_all(dir).map_err(Error::file(dir))?;
    let mut rows = 0;
    for table in TABLES {
        rows += write_parquet_table(dir, table, scale)?;
    }
    Ok(rows)
}

fn write_parquet_table(dir: &Path, table: Table, scale: f64) -> Result<u64> {
    let path = parquet_path(dir, table);
    let unfinished = path.with_extension("parquet.unfinished");
    let file = File::create(&unfinished).map_err(Error::file(&unfinished))?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .build();
    let reader = batches(table, scale);
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

/// A reader that is empty unless it was asked for part 1.
struct OnlyFirst<R> {
    inner: R,
    part: i32,
}

impl<R: RecordBatchReader> Iterator for OnlyFirst<R> {
    type Item = R::Item;

    fn next(&mut self) -> Option<Self::Item> {
        if self.part == 1 { self.inner.next() } else { None }
    }
}

impl<R: RecordBatchReader> RecordBatchReader for OnlyFirst<R> {
    fn schema(&self) -> SchemaRef {
        self.inner.schema()
    }
}
