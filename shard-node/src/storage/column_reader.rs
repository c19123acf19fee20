//! Row groups of a segment as arrays, from the column cache or the file; and what their footer says to leave some out.
//!
//! ```text
//!   row group 3, (l_orderkey, l_shipdate)   l_orderkey cached ─┐
//!                                           l_shipdate decoded ┴▶ [array, array], the second now cached too
//! ```
//!
//! A block of 8,192 rows is read where all of the row group would be too much: for rows by key, and for scans of queries that
//! have little memory.
//!
//! Columns are matched by name; one that the file does not have (added to the table later) is NULL.

use crate::storage::columns::{ChunkKey, Part};
use crate::storage::segment::{PAGE_ROWS, from_stored, parquet_error};
use crate::storage::sidecar::Sidecar;
use crate::storage::version::Segment;
use datafusion::arrow::array::{ArrayRef, AsArray, RecordBatch, UInt8Array, UInt64Array, new_null_array};
use datafusion::arrow::buffer::ScalarBuffer;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, UInt8Type};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use parquet::arrow::parquet_to_arrow_schema;
use std::ops::Range;
use std::sync::Arc;
use tessera_proto::{Error, Result};

/// Rows that are decoded where a row group would be too much: a page of the file.
pub(crate) const BLOCK_ROWS: usize = PAGE_ROWS;

/// Where what is read may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// What is in memory already, without waiting; `None` when something is not.
    Memory,
    /// Files too. Blocking; never `None`.
    Disk,
}

/// Least and greatest value and number of NULLs of a column, one per row group (a zone map). Bounds may be wider than the
/// values, never narrower.
#[derive(Debug, Clone)]
pub(crate) struct ZoneMap {
    pub min: ArrayRef,
    pub max: ArrayRef,
    pub nulls: UInt64Array,
}

impl Segment {
    /// Rows of each row group. Blocking at first use.
    ///
    /// # Errors
    /// XX001 or 58030.
    pub(crate) fn row_groups(&self) -> Result<&[usize]> {
        if let Some(known) = self.row_groups.get() {
            return Ok(known);
        }
        let footer = self.footer()?;
        let rows = footer.row_groups().iter().map(|g| g.num_rows().max(0) as usize);
        Ok(self.row_groups.get_or_init(|| rows.collect()))
    }

    /// These columns of a row group, if all are in memory.
    pub(crate) fn cached_columns(&self, row_group: usize, fields: &[FieldRef]) -> Option<Vec<ArrayRef>> {
        fields.iter().map(|f| self.cached_column(row_group, f)).collect()
    }

    fn cached_column(&self, row_group: usize, field: &Field) -> Option<ArrayRef> {
        let array = self.columns.get(&self.chunk_key(row_group, None, field))?;
        (array.data_type() == field.data_type()).then_some(array)
    }

    fn chunk_key(&self, row_group: usize, block: Option<usize>, field: &Field) -> ChunkKey {
        let name = field.name().as_str().into();
        ChunkKey {
            segment: self.number,
            part: Part::Column { row_group, block, name },
        }
    }

    /// These columns of a block of [`BLOCK_ROWS`] rows of a row group, the last one shorter; what is not in memory is read
    /// and decoded, the block and no more, if `access` allows.
    ///
    /// # Errors
    /// XX001 or 58030.
    pub(crate) fn read_block(
        &self,
        row_group: usize,
        block: usize,
        fields: &[FieldRef],
        access: Access,
    ) -> Result<Option<Vec<ArrayRef>>> {
        let end = self.row_groups()?.get(row_group).copied().unwrap_or(0);
        let first = (block * BLOCK_ROWS).min(end);
        let rows = first..(first + BLOCK_ROWS).min(end);
        match access {
            Access::Memory => Ok(fields.iter().map(|f| self.cached_rows(row_group, &rows, f)).collect()),
            Access::Disk => self.read_rows(row_group, rows, fields).map(Some),
        }
    }

    /// Rows whose key may be one of `hashes` (ascending): pairs of position in `hashes` and row.
    ///
    /// # Errors
    /// XX001 or 58030.
    pub(crate) fn find_keys(&self, hashes: &[u64], access: Access) -> Result<Option<Vec<(usize, u32)>>> {
        let sidecar = match access {
            Access::Memory => self.opened_sidecar(),
            Access::Disk => Some(self.sidecar()?),
        };
        let Some(sidecar) = sidecar else { return Ok(None) };
        sidecar.find(hashes, |block| self.key_block(sidecar, block, access))
    }

    fn key_block(&self, sidecar: &Sidecar, block: usize, access: Access) -> Result<Option<ScalarBuffer<u8>>> {
        let key = ChunkKey {
            segment: self.number,
            part: Part::Keys(block),
        };
        let cached = self.columns.get(&key);
        if let Some(bytes) = cached.as_ref().and_then(|c| c.as_primitive_opt::<UInt8Type>()) {
            return Ok(Some(bytes.values().clone()));
        }
        if access == Access::Memory {
            return Ok(None);
        }
        let bytes = ScalarBuffer::from(sidecar.read(block)?);
        self.keep(key, Arc::new(UInt8Array::new(bytes.clone(), None)));
        Ok(Some(bytes))
    }

    /// These columns of neighbouring rows of a row group; what is not in memory is read and decoded, those rows and no more.
    /// Kept when they are a block. Blocking.
    ///
    /// # Errors
    /// XX001 or 58030.
    pub(crate) fn read_rows(&self, row_group: usize, rows: Range<usize>, fields: &[FieldRef]) -> Result<Vec<ArrayRef>> {
        let cached: Vec<_> = fields.iter().map(|f| self.cached_rows(row_group, &rows, f)).collect();
        let missing = fields.iter().zip(&cached).filter(|(_, c)| c.is_none());
        let missing: Vec<_> = missing.map(|(f, _)| f).collect();
        let mut decoded = self.decode(row_group, Some(rows), &missing)?.into_iter();
        let arrays = cached.into_iter().map(|c| c.or_else(|| decoded.next()));
        let arrays: Option<Vec<_>> = arrays.collect();
        arrays.ok_or_else(|| Error::internal("a column was not decoded"))
    }

    fn cached_rows(&self, row_group: usize, rows: &Range<usize>, field: &Field) -> Option<ArrayRef> {
        if let Some(whole) = self.cached_column(row_group, field) {
            return (rows.end <= whole.len()).then(|| whole.slice(rows.start, rows.len()));
        }
        let (block, first) = (rows.start / BLOCK_ROWS, rows.start % BLOCK_ROWS);
        let array = self.columns.get(&self.chunk_key(row_group, Some(block), field))?;
        let fits = array.data_type() == field.data_type() && first + rows.len() <= array.len();
        fits.then(|| array.slice(first, rows.len()))
    }

    /// These columns of a row group; what is not in memory is read and decoded. Blocking.
    ///
    /// # Errors
    /// XX001 or 58030.
    pub(crate) fn read_columns(&self, row_group: usize, fields: &[FieldRef]) -> Result<Vec<ArrayRef>> {
        let cached: Vec<_> = fields.iter().map(|f| self.cached_column(row_group, f)).collect();
        let missing: Vec<_> = fields
            .iter()
            .zip(&cached)
            .filter(|(_, c)| c.is_none())
            .map(|(f, _)| f)
            .collect();
        let mut decoded = self.decode(row_group, None, &missing)?.into_iter();
        let arrays = cached.into_iter().map(|c| c.or_else(|| decoded.next()));
        let arrays: Option<Vec<_>> = arrays.collect();
        arrays.ok_or_else(|| Error::internal("a column was not decoded"))
    }

    fn decode(&self, row_group: usize, part: Option<Range<usize>>, fields: &[&FieldRef]) -> Result<Vec<ArrayRef>> {
        if fields.is_empty() {
            return Ok(Vec::new());
        }
        let all = *self
            .row_groups()?
            .get(row_group)
            .ok_or_else(|| Error::internal("no such row group"))?;
        let (skipped, rows) = part.as_ref().map_or((0, all), |part| (part.start, part.len()));
        let end = skipped + rows;
        let is_block = skipped.is_multiple_of(BLOCK_ROWS) && (rows == BLOCK_ROWS || end == all && rows < BLOCK_ROWS);
        // Where it is kept; pieces of a block are not.
        let kept_as = match part {
            None => Some(None),
            Some(_) => is_block.then_some(Some(skipped / BLOCK_ROWS)),
        };
        let broken = |e| {
            parquet_error(
                &format!("reading segment \"{}\"", self.path.display()),
                e,
                Error::corrupt,
            )
        };
        let metadata = ArrowReaderMetadata::try_new(self.footer()?, ArrowReaderOptions::new()).map_err(broken)?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(self.open_file()?, metadata);
        let found = fields.iter().filter_map(|f| builder.schema().index_of(f.name()).ok());
        let mask = ProjectionMask::roots(builder.parquet_schema(), found);
        let mut reader = builder
            .with_projection(mask)
            .with_row_groups(vec![row_group])
            .with_batch_size(rows.max(1));
        if part.is_some() {
            let selectors = vec![RowSelector::skip(skipped), RowSelector::select(rows)];
            reader = reader.with_row_selection(RowSelection::from(selectors));
        }
        let batches = reader
            .build()
            .map_err(broken)?
            .collect::<std::result::Result<Vec<_>, _>>();
        let batches = batches.map_err(|e| broken(e.into()))?;
        let batch = match batches.as_slice() {
            [one] => one.clone(),
            // Nothing but columns that the file does not have.
            [] => RecordBatch::new_empty(Arc::new(datafusion::arrow::datatypes::Schema::empty())),
            _ => return Err(Error::internal("a row group came in pieces")),
        };
        let column = |field: &&FieldRef| -> Result<ArrayRef> {
            let array = match batch.column_by_name(field.name()) {
                Some(stored) if part.is_some() => alone(from_stored(stored.clone(), field.data_type())?),
                Some(stored) => from_stored(stored.clone(), field.data_type())?,
                None => new_null_array(field.data_type(), rows),
            };
            if array.len() != rows {
                let path = self.path.display();
                return Err(Error::corrupt(format!(
                    "segment \"{path}\" has fewer rows than its footer says"
                )));
            }
            if let Some(block) = kept_as {
                self.keep(self.chunk_key(row_group, block, field), array.clone());
            }
            Ok(array)
        };
        fields.iter().map(column).collect()
    }

    fn keep(&self, key: ChunkKey, array: ArrayRef) {
        self.kept.lock().insert(key.clone());
        self.columns.insert(key, array);
    }

    /// What the footer says about a column, computed once; `None` when it says nothing. Blocking at first use.
    pub(crate) fn zone_map(&self, field: &Field) -> Option<ZoneMap> {
        if let Some(known) = self.zone_maps.lock().get(field.name()) {
            return known.clone();
        }
        let found = self.read_zone_map(field);
        self.zone_maps.lock().insert(field.name().clone(), found.clone());
        found
    }

    fn read_zone_map(&self, field: &Field) -> Option<ZoneMap> {
        if matches!(field.data_type(), DataType::Interval(_)) {
            return None;
        }
        let footer = self.footer().ok()?;
        let file = footer.file_metadata();
        let schema = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata()).ok()?;
        let groups = footer.row_groups();
        let converter = StatisticsConverter::try_new(field.name(), &schema, file.schema_descr()).ok()?;
        let max = match field.data_type() {
            // Parquet leaves NaN out of its statistics; PostgreSQL sorts it above everything.
            DataType::Float32 | DataType::Float64 => new_null_array(field.data_type(), groups.len()),
            _ => from_stored(converter.row_group_maxes(groups).ok()?, field.data_type()).ok()?,
        };
        Some(ZoneMap {
            min: from_stored(converter.row_group_mins(groups).ok()?, field.data_type()).ok()?,
            max,
            nulls: converter.row_group_null_counts(groups).ok()?,
        })
    }
}

/// The same values in memory of their own: views hold the text of their neighbours, and the dictionary of the row group.
pub(crate) fn alone(array: ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Utf8View => Arc::new(array.as_string_view().gc()),
        DataType::BinaryView => Arc::new(array.as_binary_view().gc()),
        _ => array,
    }
}
