//! Reads rows of one segment without DataFusion: for digests, point reads, key checks, compaction and rebuilding sidecars.
//!
//! Columns are matched by name; a column that the file does not have (added to the table later) is NULL. Blocking.

use crate::storage::checked_file::CheckedFile;
use crate::storage::column_reader::{Access, BLOCK_ROWS, alone};
use crate::storage::deletes::DeleteVector;
use crate::storage::keys::{for_each_key, hash_key};
use crate::storage::segment::{self, CTS_COLUMN, KEY_ENTRY};
use crate::storage::sidecar;
use crate::storage::version::Segment;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, UInt64Array, new_null_array,
};
use datafusion::arrow::compute::{concat_batches, filter_record_batch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::file::reader::ChunkReader;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result, Timestamp};

/// Rows decoded at a time.
const BATCH_ROWS: usize = 8_192;

impl Segment {
    /// The rows visible at `ts` and not in `deletes`, with these columns of the table, in file order.
    ///
    /// # Errors
    /// XX001 or 58030; also items may fail so.
    pub(crate) fn visible_rows(
        &self,
        def: &TableDef,
        columns: &[usize],
        deletes: Option<&DeleteVector>,
        ts: Timestamp,
    ) -> Result<Box<dyn Iterator<Item = Result<RecordBatch>> + '_>> {
        if self.meta.min_cts > ts {
            return Ok(Box::new(std::iter::empty()));
        }
        let wanted = self.wanted(def, columns, self.meta.max_cts > ts)?;
        let builder = self.builder()?;
        let reader = build(builder, &wanted.names, &self.path)?;
        let deletes = deletes.cloned().unwrap_or_default();
        let mut first = 0;
        Ok(Box::new(reader.map(move |batch| {
            let batch = batch.map_err(|e| damaged(&self.path, &e.to_string()))?;
            let rows = first..first + batch.num_rows() as u64;
            first = rows.end;
            wanted.assemble(&batch, deletes.alive(rows, ts), ts)
        })))
    }

    /// All rows of these row groups in file order, visible or not: all columns of the table, and their commit timestamps.
    ///
    /// # Errors
    /// XX001 or 58030; also items may fail so.
    pub(crate) fn all_rows(
        self: &Arc<Self>,
        def: &TableDef,
        row_groups: Vec<usize>,
    ) -> Result<impl Iterator<Item = Result<(RecordBatch, UInt64Array)>> + Send + use<>> {
        let columns: Vec<usize> = (0..def.columns.len()).collect();
        let (all_at, segment) = (self.meta.min_cts, self.clone());
        let wanted = self.wanted(def, &columns, self.meta.max_cts > all_at)?;
        let builder = self.builder()?.with_row_groups(row_groups);
        let reader = build(builder, &wanted.names, &self.path)?;
        Ok(reader.map(move |batch| {
            let batch = batch.map_err(|e| damaged(&segment.path, &e.to_string()))?;
            let times = batch.column_by_name(CTS_COLUMN);
            let times = match times.and_then(|c| c.as_primitive_opt::<UInt64Type>()) {
                Some(times) => times.clone(),
                None if segment.meta.max_cts > all_at => {
                    return Err(damaged(&segment.path, "no commit timestamps"));
                }
                None => UInt64Array::from_value(all_at.0, batch.num_rows()),
            };
            Ok((wanted.shape(&batch)?, times))
        }))
    }

    /// Rows at these positions (ascending, no doubles), with these columns of the table. All of them, visible or not.
    ///
    /// # Errors
    /// XX001 or 58030.
    pub(crate) fn rows_at(
        &self,
        def: &TableDef,
        columns: &[usize],
        rows: &[u32],
        access: Access,
    ) -> Result<Option<RecordBatch>> {
        let wanted = self.wanted(def, columns, false)?;
        self.gather(&wanted.schema, rows, access)
    }

    /// The commit timestamp of the rows at these positions (ascending, no doubles).
    ///
    /// # Errors
    /// XX001 or 58030.
    pub(crate) fn cts_at(&self, rows: &[u32], access: Access) -> Result<Option<Vec<Timestamp>>> {
        if self.meta.min_cts == self.meta.max_cts {
            return Ok(Some(vec![self.meta.min_cts; rows.len()]));
        }
        let schema = Arc::new(Schema::new(vec![Field::new(CTS_COLUMN, DataType::UInt64, true)]));
        let Some(batch) = self.gather(&schema, rows, access)? else {
            return Ok(None);
        };
        let times = batch.columns().first().and_then(|c| c.as_primitive_opt::<UInt64Type>());
        let times = times.filter(|times| times.null_count() == 0);
        let times = times.ok_or_else(|| damaged(&self.path, "no commit timestamps"))?;
        Ok(Some(times.values().iter().map(|t| Timestamp(*t)).collect()))
    }

    /// These columns of single rows (ascending).
    fn gather(&self, schema: &SchemaRef, rows: &[u32], access: Access) -> Result<Option<RecordBatch>> {
        if access == Access::Memory && self.row_groups.get().is_none() {
            return Ok(None);
        }
        let none = || damaged(&self.path, "its key sidecar names rows it does not have");
        let mut pieces = Vec::with_capacity(rows.len());
        let mut groups = self.row_groups()?.iter().copied().enumerate();
        let (mut group, mut first, mut end) = (0, 0, 0);
        let mut read: Option<((usize, usize), Vec<ArrayRef>)> = None;
        for row in rows.iter().map(|r| *r as usize) {
            while row >= end {
                let (number, size) = groups.next().ok_or_else(none)?;
                (group, first, end) = (number, end, end + size);
            }
            let block = (row - first) / BLOCK_ROWS;
            let arrays = match read.take() {
                Some((at, arrays)) if at == (group, block) => arrays,
                _ => match self.read_block(group, block, schema.fields(), access)? {
                    Some(arrays) => arrays,
                    None => return Ok(None),
                },
            };
            let place = (row - first) % BLOCK_ROWS;
            if arrays.iter().any(|a| a.len() <= place) {
                return Err(none());
            }
            let columns = arrays.iter().map(|a| alone(a.slice(place, 1))).collect();
            let options = RecordBatchOptions::new().with_row_count(Some(1));
            let piece = RecordBatch::try_new_with_options(schema.clone(), columns, &options);
            pieces.push(piece.map_err(|e| damaged(&self.path, &e.to_string()))?);
            read = Some(((group, block), arrays));
        }
        let rows = concat_batches(schema, &pieces).map_err(|e| Error::internal(e.to_string()))?;
        Ok(Some(rows))
    }

    fn builder(&self) -> Result<ParquetRecordBatchReaderBuilder<CheckedFile>> {
        let metadata = ArrowReaderMetadata::try_new(self.footer()?, ArrowReaderOptions::new());
        let metadata = metadata.map_err(|e| damaged(&self.path, &e.to_string()))?;
        Ok(ParquetRecordBatchReaderBuilder::new_with_metadata(
            self.open_file()?,
            metadata,
        ))
    }

    fn wanted(&self, def: &TableDef, columns: &[usize], filter: bool) -> Result<Wanted> {
        let schema = def
            .arrow_schema()
            .project(columns)
            .map_err(|e| Error::protocol(e.to_string()))?;
        // A column added later is NULL in old rows, whatever the definition says now.
        let fields: Vec<Field> = schema
            .fields()
            .iter()
            .map(|f| f.as_ref().clone().with_nullable(true))
            .collect();
        let mut names: Vec<String> = fields.iter().map(|f| f.name().clone()).collect();
        names.extend(filter.then(|| CTS_COLUMN.to_string()));
        Ok(Wanted {
            schema: Arc::new(Schema::new(fields)),
            names,
        })
    }
}

/// The columns a caller wants.
struct Wanted {
    schema: SchemaRef,
    names: Vec<String>,
}

impl Wanted {
    /// A batch as read from the file in the wanted shape.
    fn shape(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns = self
            .schema
            .fields()
            .iter()
            .map(|f| match batch.column_by_name(f.name()) {
                Some(column) => segment::from_stored(column.clone(), f.data_type()),
                None => Ok(new_null_array(f.data_type(), batch.num_rows())),
            });
        let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
            .map_err(|e| Error::internal(e.to_string()))
    }

    /// The same, and only its rows visible at `ts` and `alive`.
    fn assemble(&self, batch: &RecordBatch, alive: Option<BooleanArray>, ts: Timestamp) -> Result<RecordBatch> {
        let shaped = self.shape(batch)?;
        let filter =
            |mask: &BooleanArray| filter_record_batch(&shaped, mask).map_err(|e| Error::internal(e.to_string()));
        let Some(times) = batch
            .column_by_name(CTS_COLUMN)
            .and_then(|c| c.as_primitive_opt::<UInt64Type>())
        else {
            return alive.as_ref().map_or_else(|| Ok(shaped.clone()), filter);
        };
        let there = |row: usize| alive.as_ref().is_none_or(|a| a.value(row));
        let visible = times.values().iter().enumerate();
        let mask: BooleanArray = visible.map(|(row, t)| Some(*t <= ts.0 && there(row))).collect();
        filter(&mask)
    }
}

fn build<T: ChunkReader + 'static>(
    builder: ParquetRecordBatchReaderBuilder<T>,
    names: &[String],
    path: &Path,
) -> Result<ParquetRecordBatchReader> {
    let found = names.iter().filter_map(|name| builder.schema().index_of(name).ok());
    let mask = ProjectionMask::roots(builder.parquet_schema(), found);
    let builder = builder.with_projection(mask).with_batch_size(BATCH_ROWS);
    builder.build().map_err(|e| damaged(path, &e.to_string()))
}

fn damaged(path: &Path, reason: &str) -> Error {
    Error::corrupt(format!("segment \"{}\" is damaged: {reason}", path.display()))
        .with_hint("this copy cannot be trusted; rebuild it from another copy")
}

/// Hashes of the keys of a segment that was fetched from another copy, read from the file itself.
///
/// # Errors
/// XX001 when it is not a segment, 58030.
pub(crate) fn read_keys(path: &Path) -> Result<Vec<sidecar::Entry>> {
    let file = File::open(path).map_err(|e| Error::io(&format!("opening segment \"{}\"", path.display()), &e))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(path, &e.to_string()))?;
    let entries = builder.metadata().file_metadata().key_value_metadata();
    let text = entries
        .and_then(|e| e.iter().find(|kv| kv.key == KEY_ENTRY))
        .and_then(|kv| kv.value.as_deref());
    let columns: Vec<usize> = text
        .and_then(|t| serde_json::from_str(t).ok())
        .ok_or_else(|| damaged(path, "no key columns"))?;
    let fields = builder.schema().fields();
    let names: Option<Vec<String>> = columns
        .iter()
        .map(|c| fields.get(*c).map(|f| f.name().clone()))
        .collect();
    let names = names.ok_or_else(|| damaged(path, "key columns do not exist"))?;
    let mut keys = Vec::with_capacity(builder.metadata().file_metadata().num_rows().clamp(0, 1 << 21) as usize);
    let mut base = 0;
    for batch in build(builder, &names, path)? {
        let batch = batch.map_err(|e| damaged(path, &e.to_string()))?;
        let columns: Option<Vec<ArrayRef>> = names.iter().map(|n| batch.column_by_name(n).cloned()).collect();
        let columns = columns.ok_or_else(|| damaged(path, "key columns do not exist"))?;
        for_each_key(&columns, |row, key| keys.push((hash_key(key), base + row as u32)))?;
        base += batch.num_rows() as u32;
    }
    Ok(keys)
}
