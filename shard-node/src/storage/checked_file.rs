//! Segment files under checksums: of the whole file for shipping, of every 16 KiB block for reading.
//!
//! ```text
//!   write    bytes ─▶ file, xxh3_128, crc32c of each block ─▶ sidecar
//!   read     range ─▶ the blocks that cover it ─▶ crc32c compared ─▶ the range, or XX001
//! ```
//!
//! Parquet's own page checksums are optional and not written, and its decoder may panic on damaged pages; so it never sees
//! any. The crc runs at memory speed; a range costs at most two blocks more than it asks for.

use crate::storage::durable;
use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use tessera_proto::{Error, Result};
use xxhash_rust::xxh3::Xxh3;

/// The error of reading a file that must be there whole: gone, cut short, or on a bad place of the disk, it is damage that
/// another copy can mend.
pub(crate) fn read_error(doing: &str, error: &std::io::Error) -> Error {
    /// EIO.
    const BAD_PLACE: i32 = 5;
    let gone = matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::UnexpectedEof
    );
    if gone || error.raw_os_error() == Some(BAD_PLACE) {
        Error::corrupt(format!("{doing}: {error}"))
    } else {
        Error::io(doing, error)
    }
}

/// Bytes under one checksum.
pub(crate) const BLOCK_BYTES: u64 = 16 << 10;

/// What was written.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub bytes: u64,
    /// xxh3_128 of everything.
    pub checksum: u128,
    /// crc32c of each block.
    pub sums: Vec<u32>,
}

/// A file being written, checksums computed on the way.
pub(crate) struct HashingFile {
    file: BufWriter<File>,
    hash: Box<Xxh3>,
    bytes: u64,
    sums: Vec<u32>,
}

impl HashingFile {
    /// A new file.
    pub fn new(file: File) -> Self {
        let file = BufWriter::with_capacity(1 << 20, file);
        Self {
            file,
            hash: Box::new(Xxh3::new()),
            bytes: 0,
            sums: vec![],
        }
    }

    /// Makes the contents durable.
    pub fn finish(self) -> std::io::Result<Written> {
        let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        durable::sync(&file);
        Ok(Written {
            bytes: self.bytes,
            checksum: self.hash.digest128(),
            sums: self.sums,
        })
    }

    fn add(&mut self, mut bytes: &[u8]) {
        self.hash.update(bytes);
        while !bytes.is_empty() {
            let used = self.bytes % BLOCK_BYTES;
            let (now, later) = bytes.split_at(bytes.len().min((BLOCK_BYTES - used) as usize));
            match self.sums.last_mut().filter(|_| used > 0) {
                Some(sum) => *sum = crc32c::crc32c_append(*sum, now),
                None => self.sums.push(crc32c::crc32c(now)),
            }
            self.bytes += now.len() as u64;
            bytes = later;
        }
    }
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.add(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// A file being read. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct CheckedFile {
    file: Arc<File>,
    name: Arc<str>,
    bytes: u64,
    sums: Arc<[u32]>,
}

impl CheckedFile {
    /// # Errors
    /// 58030 when it cannot be opened.
    pub fn open(path: &Path, bytes: u64, sums: Arc<[u32]>) -> Result<Self> {
        let name: Arc<str> = path.display().to_string().into();
        let file = File::open(path).map_err(|e| read_error(&format!("opening segment \"{name}\""), &e))?;
        Ok(Self {
            file: Arc::new(file),
            name,
            bytes,
            sums,
        })
    }

    /// Bytes of a range.
    ///
    /// # Errors
    /// XX001 when they are damaged or outside the file, 58030.
    pub fn read(&self, range: Range<u64>) -> Result<Bytes> {
        if range.start > range.end || range.end > self.bytes {
            return Err(self.damaged(range.start, "is too short"));
        }
        let first = range.start / BLOCK_BYTES;
        let (from, to) = (
            first * BLOCK_BYTES,
            (range.end.div_ceil(BLOCK_BYTES) * BLOCK_BYTES).min(self.bytes),
        );
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let mut buffer = vec![0; (to - from) as usize];
        let io = |e: std::io::Error| read_error(&format!("reading segment \"{}\"", self.name), &e);
        self.file.read_exact_at(&mut buffer, from).map_err(io)?;
        for (block, number) in buffer.chunks(BLOCK_BYTES as usize).zip(first..) {
            if self.sums.get(number as usize) != Some(&crc32c::crc32c(block)) {
                return Err(self.damaged(number * BLOCK_BYTES, "is damaged"));
            }
        }
        Ok(Bytes::from(buffer).slice((range.start - from) as usize..(range.end - from) as usize))
    }

    /// Reads everything.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn check(&self) -> Result<()> {
        let step = BLOCK_BYTES * 64;
        let mut at = 0;
        while at < self.bytes {
            self.read(at..(at + step).min(self.bytes))?;
            at += step;
        }
        Ok(())
    }

    fn damaged(&self, offset: u64, what: &str) -> Error {
        Error::corrupt(format!("segment \"{}\" {what} at offset {offset}", self.name))
            .with_hint("this copy cannot be trusted; rebuild it from another copy")
    }
}

impl Length for CheckedFile {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for CheckedFile {
    type T = CheckedReader;

    fn get_read(&self, start: u64) -> parquet::errors::Result<CheckedReader> {
        Ok(CheckedReader {
            file: self.clone(),
            at: start,
            block: Bytes::new(),
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let end = start.saturating_add(length as u64);
        self.read(start..end).map_err(|e| ParquetError::External(Box::new(e)))
    }
}

/// Reads a file from some position on, block by block.
pub(crate) struct CheckedReader {
    file: CheckedFile,
    at: u64,
    block: Bytes,
}

impl Read for CheckedReader {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.block.is_empty() && self.at < self.file.bytes {
            let end = ((self.at / BLOCK_BYTES + 1) * BLOCK_BYTES).min(self.file.bytes);
            self.block = self.file.read(self.at..end).map_err(std::io::Error::other)?;
            self.at = end;
        }
        let count = out.len().min(self.block.len());
        out[..count].copy_from_slice(&self.block.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_any_range_and_refuses_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes: Vec<u8> = (0..50_000u32).map(|n| ((n * n) >> 3) as u8).collect();
        let mut file = HashingFile::new(File::create(&path).unwrap());
        bytes.chunks(777).for_each(|c| file.write_all(c).unwrap());
        let written = file.finish().unwrap();
        assert_eq!((written.bytes, written.sums.len()), (50_000, 4));
        assert_eq!(written.checksum, xxhash_rust::xxh3::xxh3_128(&bytes));
        let file = CheckedFile::open(&path, written.bytes, written.sums.into()).unwrap();
        for (from, to) in [
            (0, 0),
            (0, 1),
            (16_383, 16_385),
            (20_000, 49_999),
            (49_999, 50_000),
            (50_000, 50_000),
            (0, 50_000),
        ] {
            assert_eq!(file.read(from..to).unwrap(), bytes[from as usize..to as usize]);
        }
        assert_eq!(file.read(49_999..50_001).unwrap_err().code, "XX001");
        let mut rest = Vec::new();
        file.get_read(15_000).unwrap().read_to_end(&mut rest).unwrap();
        assert_eq!(rest, bytes[15_000..]);
        let mut damaged = bytes.clone();
        damaged[20_000] ^= 4;
        std::fs::write(&path, damaged).unwrap();
        let file = CheckedFile::open(&path, 50_000, file.sums.clone()).unwrap();
        assert_eq!(file.read(16_384..16_385).unwrap_err().code, "XX001");
        assert_eq!(file.read(0..16_384).unwrap(), bytes[..16_384]);
        assert!(file.get_read(0).unwrap().read_to_end(&mut rest).is_err());
    }
}
