//! Writes one segment: a Parquet file of sorted rows with everything else about them in its footer, and its key sidecar.
//!
//! ```text
//!   t16384-0193a1...parquet    row groups of 128 Ki rows, zstd 1, statistics and page index     columns of the table [+ __cts]
//!                              footer: tessera.key [0,1] | tessera.key_range 1,900 | tessera.sketches ["0110..",...]
//!                                      tessera.common_values ["CJBO..",...]
//!   t16384-0193a1...pk         sidecar.rs
//! ```
//!
//! Interval has no Parquet type and is kept as 16 bytes. `__cts` exists only when rows have different commit timestamps.
//! Bloom filters only on text, uuid and bytea key columns: for sorted numbers the statistics prune as well.

use crate::storage::checked_file::{HashingFile, Written};
use crate::storage::common_values::Summary;
use crate::storage::keys::{for_each_key, hash_key, key_columns};
use crate::storage::row_sample::RowSample;
use crate::storage::sketch::Sketch;
use crate::storage::values::{interval_bytes, interval_of};
use crate::storage::{durable, sidecar, version};
use datafusion::arrow::array::{Array, IntervalMonthDayNanoArray};
use datafusion::arrow::array::{
    ArrayRef, AsArray, FixedSizeBinaryArray, FixedSizeBinaryBuilder, Int64Array, RecordBatch, UInt64Array,
};
use datafusion::arrow::compute::{cast, max, min};
use datafusion::arrow::datatypes::{DataType, Field, IntervalMonthDayNanoType, IntervalUnit, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result, v1};

/// Name of the commit timestamp column.
pub const CTS_COLUMN: &str = "__cts";
/// Rows of a row group: the unit of pruning and of sorting.
pub const ROW_GROUP_ROWS: usize = 128 * 1_024;
/// The same of a table with CLUSTER BY: of a sorted run, each has a part of the values.
pub const CLUSTERED_ROW_GROUP_ROWS: usize = 16 * 1_024;
/// Rows of a segment at most: eight row groups.
pub const SEGMENT_ROWS_MAX: usize = 1_024 * 1_024;
/// Rows of a page: what reading one row costs.
pub(crate) const PAGE_ROWS: usize = 8_192;
/// Footer entry: positions of the row key columns.
pub(crate) const KEY_ENTRY: &str = "tessera.key";
/// Footer entry: least and greatest value of an integer first key column.
pub(crate) const KEY_RANGE_ENTRY: &str = "tessera.key_range";
/// Footer entry: one sketch per column.
pub(crate) const SKETCHES_ENTRY: &str = "tessera.sketches";
/// Footer entry: the most common values of each column.
pub(crate) const COMMON_VALUES_ENTRY: &str = "tessera.common_values";

/// The Parquet-able type of a column.
fn stored_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Interval(IntervalUnit::MonthDayNano) => DataType::FixedSizeBinary(16),
        other => other.clone(),
    }
}

/// A table's schema as it stands in segments.
pub fn stored_schema(schema: &Schema, with_cts: bool) -> SchemaRef {
    let stored = |f: &Arc<Field>| Arc::new(f.as_ref().clone().with_data_type(stored_type(f.data_type())));
    let cts = with_cts.then(|| Arc::new(Field::new(CTS_COLUMN, DataType::UInt64, false)));
    Arc::new(Schema::new(
        schema.fields().iter().map(stored).chain(cts).collect::<Vec<_>>(),
    ))
}

fn to_stored(array: &ArrayRef) -> Result<ArrayRef> {
    let DataType::Interval(IntervalUnit::MonthDayNano) = array.data_type() else {
        return Ok(array.clone());
    };
    let values = array.as_primitive::<IntervalMonthDayNanoType>();
    let mut builder = FixedSizeBinaryBuilder::with_capacity(values.len(), 16);
    for value in values {
        match value {
            Some(v) => builder
                .append_value(interval_bytes(v))
                .map_err(|e| Error::internal(e.to_string()))?,
            None => builder.append_null(),
        }
    }
    Ok(Arc::new(builder.finish()))
}

/// A column read from a segment as the type the table has.
///
/// # Errors
/// XX001: the file has a column of another type.
pub fn from_stored(array: ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    if array.data_type() == data_type {
        return Ok(array);
    }
    match (array.as_any().downcast_ref::<FixedSizeBinaryArray>(), data_type) {
        (Some(bytes), DataType::Interval(IntervalUnit::MonthDayNano)) if bytes.value_length() == 16 => Ok(Arc::new(
            bytes
                .iter()
                .map(|v| v.and_then(|bytes| bytes.try_into().ok()).map(interval_of))
                .collect::<IntervalMonthDayNanoArray>(),
        )),
        _ => cast(&array, data_type)
            .map_err(|e| Error::corrupt(format!("segment column of type {}: {e}", array.data_type()))),
    }
}

/// A Parquet error met while `doing`: our own errors inside stay what they are, and a full disk keeps its code.
pub(crate) fn parquet_error(doing: &str, error: ParquetError, otherwise: fn(String) -> Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(ours) = current.downcast_ref::<Error>() {
            return ours.clone();
        }
        let Some(io) = current.downcast_ref::<std::io::Error>() else {
            cause = current.source();
            continue;
        };
        match io.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(ours) => return ours.clone(),
            None => return Error::io(doing, io),
        }
    }
    otherwise(format!("{doing}: {error}"))
}

/// A segment being written. Dropping it unfinished removes its files.
pub(crate) struct SegmentWriter {
    dir: PathBuf,
    stem: String,
    def: Arc<TableDef>,
    schema: SchemaRef,
    writer: Option<ArrowWriter<HashingFile>>,
    keys: Vec<sidecar::Entry>,
    key_range: Option<(i64, i64)>,
    sketches: Vec<Sketch>,
    sample: RowSample,
    rows: usize,
}

impl SegmentWriter {
    /// Starts a file in folder `dir`.
    ///
    /// # Errors
    /// 53100 or 58030.
    pub fn create(dir: &Path, def: &Arc<TableDef>, with_cts: bool) -> Result<Self> {
        let stem = format!("t{}-{}", def.id, uuid::Uuid::now_v7().simple());
        let schema = stored_schema(&def.arrow_schema(), with_cts);
        let tmp = dir.join(format!("{stem}.parquet.tmp"));
        let file = File::create(&tmp).map_err(|e| Error::io(&format!("creating \"{}\"", tmp.display()), &e))?;
        let sink = HashingFile::new(file);
        let writer = ArrowWriter::try_new(sink, schema.clone(), Some(properties(def)))
            .map_err(|e| parquet_error("creating a segment", e, Error::internal))?;
        Ok(Self {
            dir: dir.to_path_buf(),
            stem,
            def: def.clone(),
            schema,
            writer: Some(writer),
            keys: Vec::new(),
            key_range: None,
            sketches: vec![Sketch::default(); def.columns.len()],
            sample: RowSample::new(def.columns.len()),
            rows: 0,
        })
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Appends rows: all columns of the table, sorted by the caller; `cts` if and only if the file has that column.
    ///
    /// # Errors
    /// 53100 or 58030; drop the writer then.
    pub fn write(&mut self, batch: &RecordBatch, cts: Option<&UInt64Array>) -> Result<()> {
        let keys = key_columns(&self.def, batch)?;
        let base = self.rows;
        self.keys.reserve(batch.num_rows());
        for_each_key(&keys, |row, key| self.keys.push((hash_key(key), (base + row) as u32)))?;
        self.widen_key_range(keys.first())?;
        for (sketch, column) in self.sketches.iter_mut().zip(batch.columns()) {
            sketch.add(column)?;
        }
        self.sample.add(batch.columns())?;
        let mut columns = batch.columns().iter().map(to_stored).collect::<Result<Vec<_>>>()?;
        columns.extend(cts.map(|c| Arc::new(c.clone()) as ArrayRef));
        let stored = RecordBatch::try_new(self.schema.clone(), columns).map_err(|e| Error::internal(e.to_string()))?;
        self.rows += batch.num_rows();
        let writer = self
            .writer
            .as_mut()
            .ok_or_else(|| Error::internal("segment is finished"))?;
        writer
            .write(&stored)
            .map_err(|e| parquet_error("writing a segment", e, Error::internal))
    }

    /// Ends the current row group.
    ///
    /// # Errors
    /// 53100 or 58030; drop the writer then.
    pub fn end_row_group(&mut self) -> Result<()> {
        let writer = self
            .writer
            .as_mut()
            .ok_or_else(|| Error::internal("segment is finished"))?;
        writer
            .flush()
            .map_err(|e| parquet_error("writing a segment", e, Error::internal))
    }

    fn widen_key_range(&mut self, key: Option<&ArrayRef>) -> Result<()> {
        let Some(key) = key.filter(|k| k.data_type().is_signed_integer()) else {
            return Ok(());
        };
        let key = cast(key, &DataType::Int64).map_err(|e| Error::internal(e.to_string()))?;
        let values: &Int64Array = key.as_primitive();
        if let (Some(low), Some(high)) = (min(values), max(values)) {
            self.key_range = Some(self.key_range.map_or((low, high), |(l, h)| (l.min(low), h.max(high))));
        }
        Ok(())
    }

    /// Makes file and sidecar durable under their names; the folder is for the caller to sync.
    ///
    /// # Errors
    /// 53100 or 58030; no file stays then.
    pub fn finish(mut self) -> Result<v1::SegmentRef> {
        let mut writer = self
            .writer
            .take()
            .ok_or_else(|| Error::internal("segment is finished"))?;
        for (key, value) in self.footer()? {
            writer.append_key_value_metadata(KeyValue::new(key.to_string(), value));
        }
        let result = writer
            .into_inner()
            .map_err(|e| parquet_error("finishing a segment", e, Error::internal))
            .and_then(|sink| sink.finish().map_err(|e| Error::io("finishing a segment", &e)))
            .and_then(|written| self.publish(&written).map(|()| written));
        let written = result.inspect_err(|_| self.remove())?;
        Ok(v1::SegmentRef {
            file: format!("{}.parquet", self.stem),
            rows: self.rows as u64,
            bytes: written.bytes,
            checksum: written.checksum.to_be_bytes().to_vec().into(),
        })
    }

    fn footer(&mut self) -> Result<Vec<(&'static str, String)>> {
        let json = |e: serde_json::Error| Error::internal(e.to_string());
        let sketches: Vec<String> = self.sketches.iter().map(Sketch::to_text).collect();
        let sample = std::mem::replace(&mut self.sample, RowSample::new(0));
        let common: Vec<String> = sample.summaries().iter().map(Summary::to_text).collect();
        let mut footer = vec![
            (KEY_ENTRY, serde_json::to_string(&self.def.row_key()).map_err(json)?),
            (SKETCHES_ENTRY, serde_json::to_string(&sketches).map_err(json)?),
            (COMMON_VALUES_ENTRY, serde_json::to_string(&common).map_err(json)?),
        ];
        footer.extend(
            self.key_range
                .map(|(low, high)| (KEY_RANGE_ENTRY, format!("{low},{high}"))),
        );
        Ok(footer)
    }

    /// Sidecar first: a segment under its name always has one.
    fn publish(&mut self, written: &Written) -> Result<()> {
        let path = self.dir.join(format!("{}.parquet", self.stem));
        write_sidecar(&path, std::mem::take(&mut self.keys), written)?;
        std::fs::rename(self.dir.join(format!("{}.parquet.tmp", self.stem)), &path)
            .map_err(|e| Error::io("renaming a segment", &e))
    }

    fn remove(&self) {
        let _ = std::fs::remove_file(self.dir.join(format!("{}.parquet.tmp", self.stem)));
        version::remove_segment_files(&self.dir.join(format!("{}.parquet", self.stem)));
    }
}

impl Drop for SegmentWriter {
    fn drop(&mut self) {
        if self.writer.take().is_some() {
            self.remove();
        }
    }
}

/// Writes the sidecar of the segment at `path` durably, apart from its folder.
///
/// # Errors
/// 53100 or 58030.
pub(crate) fn write_sidecar(path: &Path, keys: Vec<sidecar::Entry>, segment: &Written) -> Result<()> {
    let target = path.with_extension("pk");
    let tmp = path.with_extension("pk.tmp");
    let bytes = sidecar::encode(keys, segment);
    let written = File::create(&tmp).and_then(|mut file| file.write_all(&bytes).map(|()| file));
    let result = written
        .map(|file| durable::sync(&file))
        .and_then(|()| std::fs::rename(&tmp, &target));
    result.map_err(|e| {
        let _ = std::fs::remove_file(&tmp);
        Error::io("writing a key sidecar", &e)
    })
}

/// Rows of a row group, at most.
fn row_group_rows(def: &TableDef) -> usize {
    match def.cluster_by.is_empty() {
        true => ROW_GROUP_ROWS,
        false => CLUSTERED_ROW_GROUP_ROWS,
    }
}

fn properties(def: &TableDef) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(row_group_rows(def)))
        .set_data_page_row_count_limit(PAGE_ROWS);
    for column in def.row_key().into_iter().filter_map(|c| def.columns.get(c)) {
        if matches!(
            column.sql_type.arrow(),
            DataType::Utf8View | DataType::BinaryView | DataType::FixedSizeBinary(_)
        ) {
            let path = ColumnPath::new(vec![column.name.clone()]);
            properties = properties
                .set_column_bloom_filter_enabled(path.clone(), true)
                .set_column_bloom_filter_max_ndv(path, ROW_GROUP_ROWS as u64);
        }
    }
    properties.build()
}
