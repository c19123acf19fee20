//! Where the rows with given keys are now, for those who want to remove or replace them.
//!
//! ```text
//!   keys ──▶ delta index, the newest ──▶ alive?  ─▶ position             cts from the chunk
//!        └─▶ sidecar of each segment whose key range fits ──▶ alive, key equal? ─▶ segment, row, cts
//! ```
//!
//! "Now" is after everything that is applied: at most one row per key is there. Reads one page per key column and row; rows of
//! one request that are near each other share theirs.

use crate::storage::column_reader::Access;
use crate::storage::keys::{DeltaKeys, for_each_key, hash_key};
use crate::storage::statistics::KeyRange;
use crate::storage::version::{Segment, TableVersion};
use datafusion::arrow::array::ArrayRef;
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::token::canonical_keys;
use tessera_proto::{Error, Result, Timestamp};

/// A row that is there.
#[derive(Debug, Clone)]
pub(crate) struct Living {
    /// Where.
    pub place: Place,
    /// Since when.
    pub cts: Timestamp,
}

/// Where a row is.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// In memory, at this position.
    Delta(u64),
    /// In this row of a file.
    Segment(Arc<Segment>, u32),
}

/// Keys, each with the position in memory of the last row that came with it up to some timestamp, whether it is gone by then or not.
pub(crate) type Located = Vec<(Box<[u8]>, Option<u64>)>;

/// Looks keys up in the delta of a version that was taken while `delta` was locked: then it knows all rows of the version that are in
/// memory, and what the version has in a file already counts as not in memory.
///
/// # Errors
/// A column type that cannot be a key.
pub(crate) fn in_delta(
    keys: &[ArrayRef],
    delta: Option<&DeltaKeys>,
    version: &TableVersion,
    ts: Timestamp,
) -> Result<Located> {
    let mut found = Vec::new();
    for_each_key(keys, |_, key| {
        let come = |position: &u64| {
            version
                .chunk_row(*position)
                .is_none_or(|(chunk, row)| chunk.cts_of(row) <= ts)
        };
        let last = delta.and_then(|delta| delta.positions(key).find(come));
        found.push((
            key.into(),
            last.filter(|position| version.chunk_row(*position).is_some()),
        ));
    })?;
    Ok(found)
}

/// The row of each key that is there now, in the keys' order. `columns` are the key columns that `located` came from, at the end of
/// time.
///
/// # Errors
/// XX001 or 58030 when segments cannot be read.
pub(crate) fn living(
    def: &TableDef,
    version: &TableVersion,
    columns: &[ArrayRef],
    located: &Located,
) -> Result<Vec<Option<Living>>> {
    let mut found: Vec<Option<Living>> = located
        .iter()
        .map(|(_, last)| {
            let position = last.filter(|p| version.removed.since(*p).is_none())?;
            let (chunk, row) = version.chunk_row(position)?;
            Some(Living {
                place: Place::Delta(position),
                cts: chunk.cts_of(row),
            })
        })
        .collect();
    let missing = found.iter().enumerate().filter(|(_, f)| f.is_none());
    let mut missing: Vec<(u64, usize)> = missing.map(|(at, _)| (hash_key(&located[at].0), at)).collect();
    missing.sort_unstable();
    let range = KeyRange::of(columns);
    for segment in version.segments.iter().rev() {
        if missing.is_empty() {
            break;
        }
        if segment.statistics().overlaps(range) {
            search(def, version, segment, located, &mut missing, &mut found)?;
        }
    }
    Ok(found)
}

fn search(
    def: &TableDef,
    version: &TableVersion,
    segment: &Arc<Segment>,
    located: &Located,
    missing: &mut Vec<(u64, usize)>,
    found: &mut [Option<Living>],
) -> Result<()> {
    let hashes: Vec<u64> = missing.iter().map(|(hash, _)| *hash).collect();
    let candidates = segment
        .find_keys(&hashes, Access::Disk)?
        .unwrap_or_default()
        .into_iter();
    let mut candidates: Vec<(u32, usize)> = candidates
        .filter(|(_, row)| !version.is_deleted(segment, *row, Timestamp::MAX))
        .map(|(at, row)| (row, missing[at].1))
        .collect();
    if candidates.is_empty() {
        return Ok(());
    }
    candidates.sort_unstable();
    let mut rows: Vec<u32> = candidates.iter().map(|(row, _)| *row).collect();
    rows.dedup();
    let (Some(batch), Some(times)) = (
        segment.rows_at(def, &def.row_key(), &rows, Access::Disk)?,
        segment.cts_at(&rows, Access::Disk)?,
    ) else {
        return Err(Error::internal("rows were not read"));
    };
    let stored = canonical_keys(batch.columns())?;
    for (row, at) in candidates {
        let Ok(place) = rows.binary_search(&row) else { continue };
        if stored[place] == located[at].0 {
            found[at] = Some(Living {
                place: Place::Segment(segment.clone(), row),
                cts: times[place],
            });
        }
    }
    missing.retain(|(_, at)| found[*at].is_none());
    Ok(())
}
