//! The delete vectors of a shard's files on disk, one file per manifest.
//!
//! ```text
//!   DELETES-12.bin   "TESSDV02" | per segment: name length u16, name, cut u64, rows u64, least timestamp u64, entries
//!                               | crc32c of all before it u32
//!                    cut: the timestamp at which all rows that were left went (TRUNCATE), or 0
//!                    entry: gap to the row before, timestamp since the segment's least one; both LEB128
//! ```
//!
//! Ascending by row, so that most gaps take one byte. The manifest of the same number says how long the file is and which checksum
//! it has; the file is durable before the manifest is. Rewritten as a whole by every seal that finds removed rows: as long as
//! compaction takes removed rows out of files, that is little beside the rows.

use crate::storage::deletes::{Cut, DeleteVector, Deleted};
use crate::storage::durable;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tessera_proto::{Error, Result, Timestamp};

const MAGIC: &[u8; 8] = b"TESSDV02";
/// A varint of 64 bits.
const VARINT_MAX: usize = 10;

/// Removed rows by segment file.
pub(crate) type Deletes = BTreeMap<String, Removed>;

/// Removed rows of one segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// Those that went by themselves, ascending.
    pub rows: Vec<Deleted>,
    /// When all that were left went.
    pub cut: Option<Timestamp>,
}

impl Removed {
    /// What a vector of a segment says.
    pub fn of(vector: &DeleteVector) -> Self {
        Self {
            rows: vector.sorted(),
            cut: vector.cuts().first().map(|cut| cut.ts),
        }
    }

    /// The vector of a segment with so many rows; `None` when it does not have them.
    pub fn vector(&self, rows: u64) -> Option<DeleteVector> {
        let ascending = self.rows.windows(2).all(|w| w[0].row < w[1].row);
        let there = self.rows.last().is_none_or(|last| last.row < rows);
        let mut vector = DeleteVector::new(self.rows.clone());
        if let Some(ts) = self.cut {
            vector.cut(Cut { before: rows, ts });
        }
        (ascending && there).then_some(vector)
    }

    /// Nothing is gone.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.cut.is_none()
    }
}

/// What a manifest knows of its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletesMeta {
    /// Bytes.
    pub bytes: u64,
    /// crc32c of all of them.
    pub checksum: u32,
}

impl DeletesMeta {
    /// Of a file's contents.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            checksum: crc32c::crc32c(bytes),
        }
    }

    /// Whether these are the contents.
    ///
    /// # Errors
    /// XX001.
    pub fn check(&self, bytes: &[u8]) -> Result<()> {
        match *self == Self::of(bytes) {
            true => Ok(()),
            false => Err(Error::corrupt("the file of removed rows does not have its checksum")
                .with_hint("this copy cannot be trusted; rebuild it from another copy")),
        }
    }
}

/// Path of the file that belongs to the manifest of this number.
pub(crate) fn path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("DELETES-{sequence}.bin"))
}

/// Writes the file durably.
///
/// # Errors
/// 53100 or 58030.
pub(crate) fn store(dir: &Path, sequence: u64, bytes: &[u8]) -> Result<()> {
    durable::write_file(&path(dir, sequence), bytes)
}

/// Contents of the file of a manifest, empty without one.
///
/// # Errors
/// XX001 when it is damaged or gone.
pub(crate) fn load(dir: &Path, sequence: u64, meta: Option<&DeletesMeta>) -> Result<Vec<u8>> {
    let Some(meta) = meta else { return Ok(vec![]) };
    let path = path(dir, sequence);
    let bytes = std::fs::read(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::corrupt(format!("\"{}\" is missing", path.display())),
        _ => Error::io(&format!("reading \"{}\"", path.display()), &e),
    })?;
    meta.check(&bytes)?;
    Ok(bytes)
}

/// Removes the files of other manifests.
pub(crate) fn remove_others(dir: &Path, sequence: u64) {
    let mine = path(dir, sequence);
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|e| e.path()).filter(|p| *p != mine) {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.starts_with("DELETES-")
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "old file of removed rows not removed");
        }
    }
}

/// The file's bytes; empty when nothing was removed.
pub(crate) fn encode(deletes: &Deletes) -> Vec<u8> {
    if deletes.values().all(Removed::is_empty) {
        return vec![];
    }
    let mut out = MAGIC.to_vec();
    for (file, Removed { rows, cut }) in deletes.iter().filter(|(_, removed)| !removed.is_empty()) {
        out.extend((file.len() as u16).to_le_bytes());
        out.extend(file.as_bytes());
        out.extend(cut.map_or(0, |ts| ts.0).to_le_bytes());
        out.extend((rows.len() as u64).to_le_bytes());
        let base = rows.iter().map(|d| d.ts.0).min().unwrap_or(0);
        out.extend(base.to_le_bytes());
        let mut before = 0;
        for deleted in rows {
            put(&mut out, deleted.row - std::mem::replace(&mut before, deleted.row));
            put(&mut out, deleted.ts.0 - base);
        }
    }
    let crc = crc32c::crc32c(&out);
    out.extend(crc.to_le_bytes());
    out
}

/// The inverse; input may be anything.
///
/// # Errors
/// XX001.
pub(crate) fn decode(bytes: &[u8]) -> Result<Deletes> {
    let damaged = || Error::corrupt("the file of removed rows is damaged");
    if bytes.is_empty() {
        return Ok(Deletes::new());
    }
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(damaged)?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return Err(damaged());
    }
    let mut rest = body.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let mut deletes = Deletes::new();
    while !rest.is_empty() {
        let (file, removed) = segment(&mut rest).ok_or_else(damaged)?;
        deletes.insert(file, removed);
    }
    Ok(deletes)
}

fn segment(rest: &mut &[u8]) -> Option<(String, Removed)> {
    let length = u16::from_le_bytes(fixed(rest)?);
    let (name, after) = rest.split_at_checked(length.into())?;
    *rest = after;
    let cut = Some(u64::from_le_bytes(fixed(rest)?)).filter(|ts| *ts > 0);
    let count = u64::from_le_bytes(fixed(rest)?);
    let base = u64::from_le_bytes(fixed(rest)?);
    // An entry has at least two bytes: nothing is allocated for what cannot be there.
    if count > rest.len() as u64 / 2 {
        return None;
    }
    let mut row = 0u64;
    let mut rows = Vec::with_capacity(count as usize);
    for _ in 0..count {
        row = row.checked_add(take(rest)?)?;
        let ts = Timestamp(base.checked_add(take(rest)?)?);
        rows.push(Deleted { row, ts });
    }
    let cut = cut.map(Timestamp);
    Some((String::from_utf8(name.to_vec()).ok()?, Removed { rows, cut }))
}

fn fixed<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*bytes)
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for at in 0..VARINT_MAX.min(rest.len()) {
        let byte = rest[at];
        value |= u64::from(byte & 0x7f).checked_shl(7 * at as u32)?;
        if byte < 0x80 {
            *rest = &rest[at + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Deletes {
        let rows = |n: u64| {
            (0..n).map(|i| Deleted {
                row: i * i,
                ts: Timestamp((1 << 50) | (i * 977 % 1_000)),
            })
        };
        let removed = |n: u64, cut: Option<u64>| Removed {
            rows: rows(n).collect(),
            cut: cut.map(Timestamp),
        };
        Deletes::from([
            ("t5-a.parquet".into(), removed(300, None)),
            ("t5-b.parquet".into(), removed(1, Some(1 << 51))),
            ("t5-c.parquet".into(), removed(0, Some(7))),
        ])
    }

    #[test]
    fn files_round_trip_and_any_flipped_bit_is_refused() {
        let deletes = sample();
        let bytes = encode(&deletes);
        assert_eq!(decode(&bytes).unwrap(), deletes);
        assert!(bytes.len() < 301 * 8, "{} bytes", bytes.len());
        assert!(encode(&Deletes::new()).is_empty() && decode(&[]).unwrap().is_empty());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped).is_err(), "bit {bit}");
        }
        (1..bytes.len()).for_each(|end| assert!(decode(&bytes[..end]).is_err()));
    }

    #[test]
    fn rows_that_a_segment_does_not_have_are_damage() {
        let sample = sample();
        for (file, rows) in [("t5-a.parquet", 299 * 299), ("t5-b.parquet", 0)] {
            assert!(sample[file].vector(rows + 1).is_some() && sample[file].vector(rows).is_none());
        }
        let cut = sample["t5-b.parquet"].vector(10).unwrap();
        assert_eq!(Removed::of(&cut), sample["t5-b.parquet"]);
        assert_eq!(
            (cut.count(&(0..10)), cut.since(0), cut.since(9)),
            (10, Some(Timestamp(1 << 50)), Some(Timestamp(1 << 51)))
        );
    }

    #[test]
    fn a_missing_or_foreign_file_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = encode(&sample());
        let meta = DeletesMeta::of(&bytes);
        assert_eq!(load(dir.path(), 4, Some(&meta)).unwrap_err().code, "XX001");
        store(dir.path(), 4, &bytes).unwrap();
        store(dir.path(), 5, &bytes[..9]).unwrap();
        assert_eq!(load(dir.path(), 4, Some(&meta)).unwrap(), bytes);
        assert_eq!(load(dir.path(), 5, Some(&meta)).unwrap_err().code, "XX001");
        remove_others(dir.path(), 5);
        assert!(!path(dir.path(), 4).exists() && path(dir.path(), 5).exists());
    }
}
