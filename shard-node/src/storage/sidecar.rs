//! Hashes of a segment's row keys, sorted, in a file beside it: answers "which row may have this key" with one small read.
//!
//! ```text
//!   x.pk   "TESSPK01" | rows u64 | crc of fences u32 | crc of this header u32
//!          fences: first hash of every block, u64 each            (in memory: 8 KiB per million rows)
//!          blocks of 1,024: hashes u64 x n | rows u32 x n | crc32c u32
//! ```
//!
//! 12 bytes a row. A hash that is found is only a candidate: the caller compares the key. The file is derived from its
//! segment and can be built anew from it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tessera_proto::{Error, Result};

const MAGIC: [u8; 8] = *b"TESSPK01";
const HEADER_BYTES: usize = 24;
/// Entries of a block: one 12 KiB read.
const BLOCK: usize = 1_024;
const BLOCK_BYTES: usize = BLOCK * 12 + 4;

/// A key's hash and the row that has it.
pub(crate) type Entry = (u64, u32);

/// The file's bytes for entries in any order.
pub(crate) fn encode(mut entries: Vec<Entry>) -> Vec<u8> {
    entries.sort_unstable();
    let fences: Vec<u8> = entries
        .chunks(BLOCK)
        .flat_map(|block| block[0].0.to_le_bytes())
        .collect();
    let mut out = Vec::with_capacity(HEADER_BYTES + fences.len() + entries.len() * 12 + entries.len() / BLOCK * 4 + 4);
    out.extend(MAGIC);
    out.extend((entries.len() as u64).to_le_bytes());
    out.extend(crc32c::crc32c(&fences).to_le_bytes());
    out.extend(crc32c::crc32c(&out).to_le_bytes());
    out.extend(fences);
    for block in entries.chunks(BLOCK) {
        let start = out.len();
        block.iter().for_each(|(hash, _)| out.extend(hash.to_le_bytes()));
        block.iter().for_each(|(_, row)| out.extend(row.to_le_bytes()));
        let crc = crc32c::crc32c(&out[start..]);
        out.extend(crc.to_le_bytes());
    }
    out
}

/// An open sidecar.
#[derive(Debug)]
pub(crate) struct Sidecar {
    file: File,
    name: String,
    rows: usize,
    fences: Vec<u64>,
}

impl Sidecar {
    /// # Errors
    /// XX001 when it is damaged, 58030 when it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let io = |e: std::io::Error| Error::io(&format!("reading key sidecar \"{name}\""), &e);
        let damaged = || Error::corrupt(format!("key sidecar \"{name}\" is damaged"));
        let file = File::open(path).map_err(io)?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0).map_err(|_| damaged())?;
        let number =
            |range: std::ops::Range<usize>| header[range].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        if header[..8] != MAGIC || number(20..24) != u64::from(crc32c::crc32c(&header[..20])) {
            return Err(damaged());
        }
        let rows = number(8..16) as usize;
        let blocks = rows.div_ceil(BLOCK);
        // The header's checksum holds, but sizes still must fit the file before memory is taken for them.
        let expected = HEADER_BYTES as u64 + blocks as u64 * 12 + rows as u64 * 12;
        if file.metadata().map_err(io)?.len() != expected {
            return Err(damaged());
        }
        let mut bytes = vec![0; blocks * 8];
        file.read_exact_at(&mut bytes, HEADER_BYTES as u64).map_err(io)?;
        if u64::from(crc32c::crc32c(&bytes)) != number(16..20) {
            return Err(damaged());
        }
        let fences = bytes.chunks_exact(8).map(le64).collect();
        Ok(Self {
            file,
            name,
            rows,
            fences,
        })
    }

    /// Number of keys.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of blocks; block 0 has the smallest hashes.
    pub fn blocks(&self) -> usize {
        self.fences.len()
    }

    /// One block's entries, ascending.
    ///
    /// # Errors
    /// XX001 or 58030.
    pub fn block(&self, at: usize) -> Result<Vec<Entry>> {
        let entries = BLOCK.min(self.rows - at * BLOCK);
        let offset = HEADER_BYTES + self.fences.len() * 8 + at * BLOCK_BYTES;
        let mut bytes = vec![0; entries * 12 + 4];
        self.file
            .read_exact_at(&mut bytes, offset as u64)
            .map_err(|e| Error::io(&format!("reading key sidecar \"{}\"", self.name), &e))?;
        let (body, crc) = bytes.split_at(entries * 12);
        if crc32c::crc32c(body).to_le_bytes() != crc {
            return Err(Error::corrupt(format!(
                "key sidecar \"{}\" is damaged at offset {offset}",
                self.name
            )));
        }
        let (hashes, rows) = body.split_at(entries * 8);
        let rows = rows
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(hashes.chunks_exact(8).map(le64).zip(rows).collect())
    }

    /// Rows whose key may be one of `hashes` (ascending): pairs of position in `hashes` and row. Each block is read once.
    ///
    /// # Errors
    /// XX001 or 58030.
    pub fn find(&self, hashes: &[u64]) -> Result<Vec<(usize, u32)>> {
        let mut found = Vec::new();
        let mut current: Option<(usize, Vec<Entry>)> = None;
        for (at, hash) in hashes.iter().enumerate() {
            // Equal hashes may begin at the end of the block before the first fence that equals them.
            let first = self.fences.partition_point(|f| f < hash).saturating_sub(1);
            for number in first..self.fences.len() {
                if self.fences[number] > *hash {
                    break;
                }
                let block = match current.take() {
                    Some((n, block)) if n == number => block,
                    _ => self.block(number)?,
                };
                let start = block.partition_point(|(h, _)| h < hash);
                found.extend(
                    block[start..]
                        .iter()
                        .take_while(|(h, _)| h == hash)
                        .map(|(_, row)| (at, *row)),
                );
                current = Some((number, block));
            }
        }
        Ok(found)
    }
}

fn le64(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::keys::hash_key;

    fn sidecar(entries: Vec<Entry>) -> (tempfile::TempDir, Sidecar) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pk");
        std::fs::write(&path, encode(entries)).unwrap();
        let sidecar = Sidecar::open(&path).unwrap();
        (dir, sidecar)
    }

    #[test]
    fn finds_every_key_and_no_other() {
        let entries: Vec<Entry> = (0..5_000u32).map(|row| (hash_key(&row.to_le_bytes()), row)).collect();
        let (_dir, sidecar) = sidecar(entries);
        for row in (0..5_000u32).step_by(37) {
            assert_eq!(sidecar.find(&[hash_key(&row.to_le_bytes())]).unwrap(), [(0, row)]);
        }
        assert_eq!(sidecar.find(&[hash_key(&5_000u32.to_le_bytes())]).unwrap(), []);
    }

    #[test]
    fn finds_equal_hashes_across_blocks() {
        let mut entries: Vec<Entry> = (0..1_020).map(|row| (u64::from(row), row)).collect();
        entries.extend((1_020..2_060).map(|row| (7_000, row)));
        entries.push((9_000, 9));
        let (_dir, sidecar) = sidecar(entries);
        assert_eq!(sidecar.find(&[5, 7_000, 9_000, 9_001]).unwrap().len(), 1 + 1_040 + 1);
        assert_eq!((sidecar.rows(), sidecar.blocks()), (2_061, 3));
    }

    #[test]
    fn refuses_any_flipped_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pk");
        let sound = encode((0..40).map(|row| (u64::from(row) << 40, row)).collect());
        for bit in 0..sound.len() * 8 {
            let mut bytes = sound.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bytes).unwrap();
            let read = Sidecar::open(&path).and_then(|s| s.find(&[3 << 40]));
            assert_eq!(read.unwrap_err().code, "XX001", "bit {bit}");
        }
    }
}
