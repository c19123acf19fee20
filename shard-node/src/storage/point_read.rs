//! Rows by key without DataFusion: the delta's key index, then the sidecars.
//!
//! ```text
//!   keys ──▶ delta index, last before S ──▶ chunk, row         if it is visible: gather
//!        └─▶ sidecar of each segment ──▶ rows ──▶ one page per column, key compared     found: gather
//! ```

use crate::storage::column_reader::Access;
use crate::storage::digest::columns_by_name;
use crate::storage::keys::hash_key;
use crate::storage::locate::Located;
use crate::storage::version::{Segment, TableVersion};
use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt64Array};
use datafusion::arrow::compute::{concat_batches, take_record_batch};
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use std::collections::BTreeMap;
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::token::canonical_keys;
use tessera_proto::{Error, Result, Timestamp};

/// The rows of `version`, in which the keys were located at `ts`; `None` when `access` does not reach them.
///
/// # Errors
/// 72000 when the snapshot is too old; 08P01 for columns that do not exist; XX001 or 58030 when segments cannot be read.
pub(crate) fn read(
    def: &TableDef,
    version: &TableVersion,
    ts: Timestamp,
    keys: &Located,
    projection: &[usize],
    access: Access,
) -> Result<Option<RecordBatch>> {
    version.check_readable(ts)?;
    let schema = result_schema(def, projection)?;
    let mut search = Search {
        def,
        version,
        ts,
        keys,
        projection,
        schema,
        missing: vec![],
        pieces: BTreeMap::new(),
    };
    for (at, (key, last)) in keys.iter().enumerate() {
        let visible = last.filter(|position| !version.removed.is_deleted(*position, ts));
        match visible.and_then(|position| version.chunk_row(position)) {
            Some((chunk, row)) => {
                let columns = columns_by_name(def, projection, &chunk.batch.slice(row, 1));
                search.pieces.insert(at, reshape(&search.schema, columns)?);
            }
            // A snapshot before the last changes may see the row as it is in a file.
            None => search.missing.push((hash_key(key), at)),
        }
    }
    search.missing.sort_unstable();
    for segment in version.segments.iter().filter(|s| s.meta.min_cts <= ts) {
        if search.missing.is_empty() {
            break;
        }
        if search.read_segment(segment, access)?.is_none() {
            return Ok(None);
        }
    }
    let rows = concat_batches(&search.schema, search.pieces.values()).map_err(|e| Error::internal(e.to_string()))?;
    Ok(Some(rows))
}

/// A point read under way.
struct Search<'a> {
    def: &'a TableDef,
    version: &'a TableVersion,
    ts: Timestamp,
    keys: &'a Located,
    projection: &'a [usize],
    schema: SchemaRef,
    /// Keys not found yet: hash and position in `keys`, sorted.
    missing: Vec<(u64, usize)>,
    /// Rows found, one each, by position in `keys`.
    pieces: BTreeMap<usize, RecordBatch>,
}

impl Search<'_> {
    fn read_segment(&mut self, segment: &Segment, access: Access) -> Result<Option<()>> {
        let hashes: Vec<u64> = self.missing.iter().map(|(hash, _)| *hash).collect();
        let Some(candidates) = segment.find_keys(&hashes, access)? else {
            return Ok(None);
        };
        let mut found: Vec<(u32, usize)> = candidates
            .into_iter()
            .filter(|(_, row)| !self.version.is_deleted(segment, *row, self.ts))
            .map(|(at, row)| (row, self.missing[at].1))
            .collect();
        if found.is_empty() {
            return Ok(Some(()));
        }
        found.sort_unstable();
        let mut rows: Vec<u32> = found.iter().map(|(row, _)| *row).collect();
        rows.dedup();
        let mut columns = self.def.row_key();
        let key_columns = columns.len();
        columns.extend(self.projection);
        let Some(batch) = segment.rows_at(self.def, &columns, &rows, access)? else {
            return Ok(None);
        };
        let Some(times) = segment.cts_at(&rows, access)? else {
            return Ok(None);
        };
        let stored = canonical_keys(&batch.columns()[..key_columns])?;
        for (row, at) in found {
            let Ok(place) = rows.binary_search(&row) else { continue };
            if stored[place] != self.keys[at].0 || times[place] > self.ts {
                continue;
            }
            self.missing.retain(|(_, m)| *m != at);
            let one = take_record_batch(&batch, &UInt64Array::from(vec![place as u64]))
                .map_err(|e| Error::internal(e.to_string()))?;
            self.pieces
                .insert(at, reshape(&self.schema, one.columns()[key_columns..].to_vec())?);
        }
        Ok(Some(()))
    }
}

/// Columns of the result.
///
/// # Errors
/// 08P01 for columns that do not exist.
pub(crate) fn result_schema(def: &TableDef, projection: &[usize]) -> Result<SchemaRef> {
    let schema = def
        .arrow_schema()
        .project(projection)
        .map_err(|e| Error::protocol(format!("point read: {e}")))?;
    Ok(Arc::new(Schema::new(
        schema
            .fields()
            .iter()
            .map(|f| f.as_ref().clone().with_nullable(true))
            .collect::<Vec<_>>(),
    )))
}

/// One row of the table as the result shows it.
///
/// # Errors
/// 08P01 for columns that do not exist.
pub(crate) fn shape(def: &TableDef, projection: &[usize], row: &RecordBatch) -> Result<RecordBatch> {
    reshape(&result_schema(def, projection)?, columns_by_name(def, projection, row))
}

/// One row under the result's schema.
fn reshape(schema: &SchemaRef, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options).map_err(|e| Error::internal(e.to_string()))
}
