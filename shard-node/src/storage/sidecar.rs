//! Hashes of a segment's row keys, sorted, in a file beside it: answers "which row may have this key" with one small read.
//! Also the checksums of the segment's blocks.
//!
//! ```text
//!   x.pk   "TESSPK02" | rows u64 | segment bytes u64 | bits of a gap u8 | bits of a row u8 | 0 u16
//!             | crc of fences and sums u32 | crc of this header u32
//!          fences: first hash of every block, u64 each                  (in memory: 8 KiB per million rows)
//!          sums: crc32c of every 16 KiB of the segment file, u32 each   (in memory: 16 KiB per 64 MiB)
//!          blocks of 1,024: gaps between hashes, packed | rows, packed | crc32c u32
//! ```
//!
//! 6 bytes a row: of a hash 44 bits are kept, sorted ones are 27 bits apart in a segment of 100,000 rows, and 17 bits number its
//! rows. Two keys of a segment of a million rows share their 44 bits once in 17 million; a hash that is found is only a
//! candidate anyway: the caller compares the key. The file is derived from its segment and can be built anew from it.

use crate::storage::checked_file::{self, Written, read_error};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tessera_proto::{Error, Result};

const MAGIC: [u8; 8] = *b"TESSPK02";
const HEADER_BYTES: usize = 36;
/// Entries of a block: one read of about 6 KiB.
const BLOCK: usize = 1_024;
/// Bits of a hash that are not kept.
const HASH_DROPPED: u32 = 20;

/// A key's hash and the row that has it. As read, a hash is what [`kept`] leaves of it.
pub(crate) type Entry = (u64, u32);

/// What is kept of a hash; in the same order.
fn kept(hash: u64) -> u64 {
    hash >> HASH_DROPPED
}

/// Bits of each value, and what they come to in blocks.
#[derive(Debug, Clone, Copy)]
struct Widths {
    gap: u32,
    row: u32,
}

impl Widths {
    /// Bytes of a block, checksum included.
    fn block_bytes(self, entries: usize) -> usize {
        packed_bytes(entries, self.gap) + packed_bytes(entries, self.row) + 4
    }

    /// Bytes of all blocks.
    fn bytes(self, rows: usize) -> usize {
        let last = rows % BLOCK;
        rows / BLOCK * self.block_bytes(BLOCK) + if last > 0 { self.block_bytes(last) } else { 0 }
    }
}

/// The file's bytes for entries in any order, of a segment as written.
pub(crate) fn encode(mut entries: Vec<Entry>, segment: &Written) -> Vec<u8> {
    entries.iter_mut().for_each(|(hash, _)| *hash = kept(*hash));
    entries.sort_unstable();
    let mut tables: Vec<u8> = entries
        .chunks(BLOCK)
        .flat_map(|block| block[0].0.to_le_bytes())
        .collect();
    tables.extend(segment.sums.iter().flat_map(|sum| sum.to_le_bytes()));
    let widest_gap = entries.windows(2).map(|pair| pair[1].0 - pair[0].0).max();
    let widths = Widths {
        gap: bits(widest_gap.unwrap_or(0)),
        row: bits(entries.iter().map(|(_, row)| u64::from(*row)).max().unwrap_or(0)),
    };
    let mut out = Vec::with_capacity(HEADER_BYTES + tables.len() + widths.bytes(entries.len()));
    out.extend(MAGIC);
    out.extend((entries.len() as u64).to_le_bytes());
    out.extend(segment.bytes.to_le_bytes());
    out.extend([widths.gap as u8, widths.row as u8, 0, 0]);
    out.extend(crc32c::crc32c(&tables).to_le_bytes());
    out.extend(crc32c::crc32c(&out).to_le_bytes());
    out.extend(tables);
    for block in entries.chunks(BLOCK) {
        let start = out.len();
        let mut before = block[0].0;
        let gaps = block
            .iter()
            .map(|(hash, _)| hash - std::mem::replace(&mut before, *hash));
        pack(gaps, widths.gap, &mut out);
        pack(block.iter().map(|(_, row)| u64::from(*row)), widths.row, &mut out);
        let crc = crc32c::crc32c(&out[start..]);
        out.extend(crc.to_le_bytes());
    }
    out
}

/// Bits that hold `value`.
fn bits(value: u64) -> u32 {
    u64::BITS - value.leading_zeros()
}

fn packed_bytes(values: usize, bits: u32) -> usize {
    (values * bits as usize).div_ceil(8)
}

/// Appends the low `bits` of each value, least significant first.
fn pack(values: impl Iterator<Item = u64>, bits: u32, out: &mut Vec<u8>) {
    let (mut waiting, mut have) = (0_u128, 0);
    for value in values {
        waiting |= u128::from(value) << have;
        have += bits;
        while have >= 8 {
            out.push(waiting as u8);
            (waiting, have) = (waiting >> 8, have - 8);
        }
    }
    if have > 0 {
        out.push(waiting as u8);
    }
}

/// What [`pack`] wrote.
fn unpack(packed: &[u8], bits: u32) -> impl Iterator<Item = u64> {
    let mut bytes = packed.iter();
    let (mut waiting, mut have) = (0_u128, 0);
    std::iter::repeat_with(move || {
        while have < bits {
            waiting |= u128::from(*bytes.next().unwrap_or(&0)) << have;
            have += 8;
        }
        let value = waiting & ((1 << bits) - 1);
        (waiting, have) = (waiting >> bits, have - bits);
        value as u64
    })
}

/// A sidecar. Keeps its tables in memory and no file open, because a node may have thousands.
#[derive(Debug)]
pub(crate) struct Sidecar {
    path: PathBuf,
    rows: usize,
    segment_bytes: u64,
    widths: Widths,
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
        if header[..8] != MAGIC || le(&header[32..]) != u64::from(crc32c::crc32c(&header[..32])) {
            return Err(damaged());
        }
        let (rows, segment_bytes) = (le(&header[8..16]) as usize, le(&header[16..24]));
        let (blocks, sums) = (
            rows.div_ceil(BLOCK),
            segment_bytes.div_ceil(checked_file::BLOCK_BYTES) as usize,
        );
        let widths = Widths {
            gap: header[24].into(),
            row: header[25].into(),
        };
        // The header's checksum holds, but sizes still must fit the file before memory is taken for them.
        if widths.gap > u64::BITS || widths.row > u32::BITS || rows > u32::MAX as usize {
            return Err(damaged());
        }
        let expected = HEADER_BYTES + blocks * 8 + sums * 4 + widths.bytes(rows);
        if file.metadata().map_err(io)?.len() != expected as u64 {
            return Err(damaged());
        }
        let mut bytes = vec![0; blocks * 8 + sums * 4];
        file.read_exact_at(&mut bytes, HEADER_BYTES as u64).map_err(io)?;
        if u64::from(crc32c::crc32c(&bytes)) != le(&header[28..32]) {
            return Err(damaged());
        }
        let (fences, sums) = bytes.split_at(blocks * 8);
        let fences = fences.chunks_exact(8).map(le).collect();
        let sums = sums.chunks_exact(4).map(|b| le(b) as u32).collect();
        Ok(Self {
            path: path.to_path_buf(),
            rows,
            segment_bytes,
            widths,
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
        Ok(self.entries(at, &self.read(at)?).collect())
    }

    /// One block as it is stored, its checksum compared and left out. Blocking.
    ///
    /// # Errors
    /// XX001 or 58030.
    pub fn read(&self, at: usize) -> Result<Vec<u8>> {
        let entries = self.entries_of(at);
        let tables = self.fences.len() * 8 + self.sums.len() * 4;
        let offset = HEADER_BYTES + tables + at * self.widths.block_bytes(BLOCK);
        let mut bytes = vec![0; self.widths.block_bytes(entries)];
        let name = self.path.display();
        File::open(&self.path)
            .and_then(|file| file.read_exact_at(&mut bytes, offset as u64))
            .map_err(|e| read_error(&format!("reading key sidecar \"{name}\""), &e))?;
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        if crc32c::crc32c(body).to_le_bytes() != crc {
            return Err(Error::corrupt(format!(
                "key sidecar \"{name}\" is damaged at offset {offset}"
            )));
        }
        bytes.truncate(bytes.len() - 4);
        Ok(bytes)
    }

    fn entries_of(&self, block: usize) -> usize {
        BLOCK.min(self.rows - block * BLOCK)
    }

    /// Entries of a block as [`Self::read`] returned it, ascending.
    fn entries<'a>(&self, at: usize, block: &'a [u8]) -> impl Iterator<Item = Entry> + use<'a> {
        let entries = self.entries_of(at);
        let (gaps, rows) = block.split_at(packed_bytes(entries, self.widths.gap));
        let hashes = unpack(gaps, self.widths.gap).scan(self.fences[at], |hash, gap| {
            *hash = hash.wrapping_add(gap);
            Some(*hash)
        });
        let rows = unpack(rows, self.widths.row).map(|row| row as u32);
        hashes.zip(rows).take(entries)
    }

    /// Rows whose key may be one of `hashes` (ascending): pairs of position in `hashes` and row. `read` returns a block as
    /// [`Self::read`] does and is asked for each once; when it has none of one, neither has this.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn find<B: AsRef<[u8]>>(
        &self,
        hashes: &[u64],
        mut read: impl FnMut(usize) -> Result<Option<B>>,
    ) -> Result<Option<Vec<(usize, u32)>>> {
        let mut found = Vec::new();
        let mut current: Option<(usize, Vec<Entry>)> = None;
        for (at, hash) in hashes.iter().map(|hash| kept(*hash)).enumerate() {
            // Equal hashes may begin at the end of the block before the first fence that equals them.
            let first = self.fences.partition_point(|f| *f < hash).saturating_sub(1);
            for number in first..self.fences.len() {
                if self.fences[number] > hash {
                    break;
                }
                let block = match current.take() {
                    Some((n, block)) if n == number => block,
                    _ => {
                        let Some(block) = read(number)? else { return Ok(None) };
                        let entries = self.entries(number, block.as_ref());
                        match hashes {
                            // The usual read by key: nothing but the one wanted is worth keeping.
                            [_] => entries
                                .skip_while(|(h, _)| *h < hash)
                                .take_while(|(h, _)| *h == hash)
                                .collect(),
                            _ => entries.collect(),
                        }
                    }
                };
                let start = block.partition_point(|(h, _)| *h < hash);
                let equal = block[start..].iter().take_while(|(h, _)| *h == hash);
                found.extend(equal.map(|(_, row)| (at, *row)));
                current = Some((number, block));
            }
        }
        Ok(Some(found))
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

    fn find(sidecar: &Sidecar, hashes: &[u64]) -> Result<Vec<(usize, u32)>> {
        let found = sidecar.find(hashes, |at| sidecar.read(at).map(Some))?;
        Ok(found.unwrap_or_default())
    }

    #[test]
    fn finds_every_key_and_no_other() {
        let entries: Vec<Entry> = (0..5_000u32).map(|row| (hash_key(&row.to_le_bytes()), row)).collect();
        let (_dir, sidecar) = sidecar(entries);
        for row in (0..5_000u32).step_by(37) {
            assert_eq!(find(&sidecar, &[hash_key(&row.to_le_bytes())]).unwrap(), [(0, row)]);
        }
        assert_eq!(find(&sidecar, &[hash_key(&5_000u32.to_le_bytes())]).unwrap(), []);
    }

    #[test]
    fn finds_equal_hashes_across_blocks() {
        let hash = |n: u32| u64::from(n) << HASH_DROPPED;
        let mut entries: Vec<Entry> = (0..1_020).map(|row| (hash(row), row)).collect();
        entries.extend((1_020..2_060).map(|row| (hash(7_000), row)));
        entries.push((hash(9_000), 9));
        let (_dir, sidecar) = sidecar(entries);
        let found = find(&sidecar, &[hash(5), hash(7_000), hash(9_000), hash(9_001)]);
        assert_eq!(found.unwrap().len(), 1 + 1_040 + 1);
        assert_eq!(find(&sidecar, &[hash(7_000)]).unwrap().len(), 1_040);
        assert_eq!((sidecar.rows(), sidecar.blocks(), sidecar.sums().len()), (2_061, 3, 3));
    }

    #[test]
    fn finds_nothing_without_the_block() {
        let (_dir, sidecar) = sidecar((0..2_000).map(|row| (u64::from(row) << HASH_DROPPED, row)).collect());
        let only = |have: usize| move |at: usize, from: &Sidecar| (at == have).then(|| from.read(at)).transpose();
        let last = 1_999 << HASH_DROPPED;
        assert_eq!(sidecar.find(&[last], |at| only(0)(at, &sidecar)).unwrap(), None);
        assert_eq!(
            sidecar.find(&[last], |at| only(1)(at, &sidecar)).unwrap(),
            Some(vec![(0, 1_999)])
        );
    }

    #[test]
    fn values_of_any_width_come_back() {
        for bits in 0..=64 {
            let values: Vec<u64> = (0..70)
                .map(|n| hash_key(&[n]).checked_shr(64 - bits).unwrap_or(0))
                .collect();
            let mut packed = vec![];
            pack(values.iter().copied(), bits, &mut packed);
            assert_eq!(packed.len(), packed_bytes(values.len(), bits));
            assert_eq!(
                unpack(&packed, bits).take(70).collect::<Vec<_>>(),
                values,
                "{bits} bits"
            );
        }
    }

    #[test]
    fn no_rows_and_one_row_and_the_last_row_number() {
        for rows in [vec![], vec![0], vec![u32::MAX - 1], vec![0, u32::MAX - 1]] {
            let entries: Vec<Entry> = rows.iter().map(|row| (hash_key(&row.to_le_bytes()), *row)).collect();
            let (_dir, sidecar) = sidecar(entries.clone());
            for (hash, row) in entries {
                assert_eq!(find(&sidecar, &[hash]).unwrap(), [(0, row)]);
            }
        }
    }

    #[test]
    fn a_row_takes_about_six_bytes() {
        let entries: Vec<Entry> = (0..100_000u32).map(|row| (hash_key(&row.to_le_bytes()), row)).collect();
        let bytes = encode(entries, &written()).len();
        assert!((550_000..650_000).contains(&bytes), "{bytes} bytes");
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
            let read = Sidecar::open(&path).and_then(|s| find(&s, &[3 << 40]));
            assert_eq!(read.unwrap_err().code, "XX001", "bit {bit}");
        }
    }
}
