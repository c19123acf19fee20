//! Hashes of a segment's row keys, sorted, in a file beside it: answers "which row may have this key" with one small read.
//! Also the checksums of the segment's blocks.
//!
//! ```text
//!   x.pk   "TESSPK01" | rows u64 | segment bytes u64 | crc of fences and sums u32 | crc of this header u32
//!          fences: first hash of every block, u64 each                  (in memory: 8 KiB per million rows)
//!          sums: crc32c of every 16 KiB of the segment file, u32 each   (in memory: 16 KiB per 64 MiB)
//!          blocks of 1,024: hashes u64 x n | rows u32 x n | crc32c u32
//! ```
//!
//! 12 bytes a row. A hash that is found is only a candidate: the caller compares the key. The file is derived from its
//! segment and can be built anew from it.

use crate::storage::checked_file::{self, Written, read_error};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tessera_proto::{Error, Result};

const MAGIC: [u8; 8] = *b"TESSPK01";
const HEADER_BYTES: usize = 32;
/// Entries of a block: one 12 KiB read.
const BLOCK: usize = 1_024;
const BLOCK_BYTES: usize = BLOCK * 12 + 4;

/// A key's hash and the row that has it.
pub(crate) type Entry = (u64, u32);

/// The file's bytes for entries in any order, of a segment as written.
pub(crate) fn encode(mut entries: Vec<Entry>, segment: &Written) -> Vec<u8> {
    entries.sort_unstable();
    let mut tables: Vec<u8> = entries
        .chunks(BLOCK)
        .flat_map(|block| block[0].0.to_le_bytes())
        .collect();
    tables.extend(segment.sums.iter().flat_map(|sum| sum.to_le_bytes()));
    let mut out = Vec::with_capacity(HEADER_BYTES + tables.len() + entries.len() * 12 + entries.len() / BLOCK * 4 + 4);
    out.extend(MAGIC);
    out.extend((entries.len() as u64).to_le_bytes());
    out.extend(segment.bytes.to_le_bytes());
    out.extend(crc32c::crc32c(&tables).to_le_bytes());
    out.extend(crc32c::crc32c(&out).to_le_bytes());
    out.extend(tables);
    for block in entries.chunks(BLOCK) {
        let start = out.len();
        block.iter().for_each(|(hash, _)| out.extend(hash.to_le_bytes()));
        block.iter().for_each(|(_, row)| out.extend(row.to_le_bytes()));
        let crc = crc32c::crc32c(&out[start..]);
        out.extend(crc.to_le_bytes());
    }
    out
}

/// A sidecar. Keeps its tables in memory and no file open, because a node may have thousands.
#[derive(Debug)]
pub(crate) struct Sidecar {
    path: PathBuf,
    rows: usize,
    segment_bytes: u64,
    fences: Vec<u64>,
    sums: Arc<[u32]>,
}

impl Sidecar {
    /// # Errors
    /// XX001 when it is damaged, 58030 when it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |e: std::io::Error| read_error(&format!("reading key sidecar \"{}\"", path.display()), &e);
        let damaged = || Error::corrupt(format!("key sidecar \"{}\" is damaged", path.display()));
        let file = File::open(path).map_err(io)?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0).map_err(|_| damaged())?;
        if header[..8] != MAGIC || le(&header[28..]) != u64::from(crc32c::crc32c(&header[..28])) {
            return Err(damaged());
        }
        let (rows, segment_bytes) = (le(&header[8..16]) as usize, le(&header[16..24]));
        let (blocks, sums) = (
            rows.div_ceil(BLOCK),
            segment_bytes.div_ceil(checked_file::BLOCK_BYTES) as usize,
        );
        // The header's checksum holds, but sizes still must fit the file before memory is taken for them.
        let expected = HEADER_BYTES as u64 + blocks as u64 * 12 + sums as u64 * 4 + rows as u64 * 12;
        if file.metadata().map_err(io)?.len() != expected {
            return Err(damaged());
        }
        let mut bytes = vec![0; blocks * 8 + sums * 4];
        file.read_exact_at(&mut bytes, HEADER_BYTES as u64).map_err(io)?;
        if u64::from(crc32c::crc32c(&bytes)) != le(&header[24..28]) {
            return Err(damaged());
        }
        let (fences, sums) = bytes.split_at(blocks * 8);
        let fences = fences.chunks_exact(8).map(le).collect();
        let sums = sums.chunks_exact(4).map(|b| le(b) as u32).collect();
        Ok(Self {
            path: path.to_path_buf(),
            rows,
            segment_bytes,
            fences,
            sums,
        })
    }

    /// Size of the segment file.
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Checksums of the segment file's blocks.
    pub fn sums(&self) -> Arc<[u32]> {
        self.sums.clone()
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
        let offset = HEADER_BYTES + self.fences.len() * 8 + self.sums.len() * 4 + at * BLOCK_BYTES;
        let mut bytes = vec![0; entries * 12 + 4];
        let name = self.path.display();
        File::open(&self.path)
            .and_then(|file| file.read_exact_at(&mut bytes, offset as u64))
            .map_err(|e| read_error(&format!("reading key sidecar \"{name}\""), &e))?;
        let (body, crc) = bytes.split_at(entries * 12);
        if crc32c::crc32c(body).to_le_bytes() != crc {
            return Err(Error::corrupt(format!(
                "key sidecar \"{name}\" is damaged at offset {offset}"
            )));
        }
        let (hashes, rows) = body.split_at(entries * 8);
        let rows = rows.chunks_exact(4).map(|b| le(b) as u32);
        Ok(hashes.chunks_exact(8).map(le).zip(rows).collect())
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

/// Little endian, at most eight bytes.
fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::keys::hash_key;

    fn written() -> Written {
        Written {
            bytes: 40_000,
            checksum: 0,
            sums: vec![1, 2, 3],
        }
    }

    fn sidecar(entries: Vec<Entry>) -> (tempfile::TempDir, Sidecar) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pk");
        std::fs::write(&path, encode(entries, &written())).unwrap();
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
        assert_eq!((sidecar.rows(), sidecar.blocks(), sidecar.sums().len()), (2_061, 3, 3));
    }

    #[test]
    fn refuses_any_flipped_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pk");
        let sound = encode((0..40).map(|row| (u64::from(row) << 40, row)).collect(), &written());
        for bit in 0..sound.len() * 8 {
            let mut bytes = sound.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bytes).unwrap();
            let read = Sidecar::open(&path).and_then(|s| s.find(&[3 << 40]));
            assert_eq!(read.unwrap_err().code, "XX001", "bit {bit}");
        }
    }
}
