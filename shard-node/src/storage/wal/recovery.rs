//! Reads the log back at start, and tells an unfinished write (cut it) from damage to what was durable (refuse).
//!
//! ```text
//!   group 7 | group 8 | gr▒▒p 9 | end              torn: nothing after it claims that 9 was durable      -> cut at 9
//!   group 7 | gr▒▒p 8 | group 9 | end              9 was written after 8 was durable, its header says so -> XX001
//!   file 1 damaged anywhere, file 2 exists         file 2 was created after file 1 was durable           -> XX001
//! ```
//!
//! So damage to exactly the last group cannot be told from a torn write; a clean close adds an empty group after it.

use crate::storage::Identity;
use crate::storage::wal::Record;
use crate::storage::wal::format::{self, Decoded, GroupHeader, Position};
use crate::storage::wal::state::{LogFile, LogState, ShardLog};
use bytes::Bytes;
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;
use tessera_proto::{Error, Result};

/// The log as read back.
pub(super) struct Recovered {
    pub state: LogState,
    /// Salt of the last file and the end of the last sound group; `None` when there is no file.
    pub tail: Option<Tail>,
    pub cut_bytes: u64,
}

/// Where writing goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tail {
    pub salt: u32,
    pub end: Position,
    pub sequence: u64,
}

/// Reads all files of `dir`.
///
/// # Errors
/// XX001 naming file and offset; 58030.
pub(super) fn recover(dir: &Path, identity: &Identity) -> Result<Recovered> {
    let numbers = list(dir)?;
    let mut recovered = Recovered {
        state: LogState::default(),
        tail: None,
        cut_bytes: 0,
    };
    for (at, number) in numbers.iter().enumerate() {
        if at > 0 && numbers[at - 1] + 1 != *number {
            return Err(Error::corrupt(format!("log file {} is missing", numbers[at - 1] + 1)));
        }
        read_file(dir, identity, *number, at + 1 == numbers.len(), &mut recovered)?;
    }
    Ok(recovered)
}

/// Numbers of the log files, ascending; removes files whose creation was not finished.
fn list(dir: &Path) -> Result<Vec<u64>> {
    let reading = |e: std::io::Error| Error::io("reading the log folder", &e);
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(reading)? {
        let path = entry.map_err(reading)?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("tmp") => std::fs::remove_file(&path).map_err(reading)?,
            Some("wal") => {
                let number = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok());
                numbers.push(
                    number.ok_or_else(|| Error::corrupt(format!("\"{}\" is not a log file's name", path.display())))?,
                );
            }
            _ => {}
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn read_file(dir: &Path, identity: &Identity, number: u64, is_last: bool, recovered: &mut Recovered) -> Result<()> {
    let path = super::writer::file_path(dir, number);
    let doing = || format!("reading log file \"{}\"", path.display());
    let bytes = Bytes::from(std::fs::read(&path).map_err(|e| Error::io(&doing(), &e))?);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|e| Error::io(&doing(), &e))?;
    let (salt, header_bytes) = format::read_file_header(&bytes, identity, number).map_err(|e| {
        Error::new(
            &e.code,
            format!("log file \"{}\" refused: {}", path.display(), e.message),
        )
    })?;
    let mut scan = Scan {
        bytes: &bytes,
        salt,
        number,
        offset: header_bytes,
        sequence: recovered.tail.map(|t| t.sequence),
    };
    while scan.offset < bytes.len() {
        let Some((header, records)) = scan.group() else { break };
        for (decoded, offset, size) in records {
            apply(
                &mut recovered.state,
                decoded,
                Position {
                    file: number,
                    offset: offset as u64,
                },
                size as u32,
            )
            .map_err(|reason| damaged(&path, offset, &reason))?;
        }
        scan.offset += format::GROUP_HEADER_BYTES + header.body_bytes as usize;
        scan.sequence = Some(header.sequence);
    }
    // Files appear under their names with their first group, which holds every shard's state.
    if scan.offset == header_bytes {
        return Err(damaged(&path, header_bytes, "no first group"));
    }
    let cut = bytes.len() - scan.offset;
    if cut > 0 {
        if !is_last || scan.durable_beyond() {
            return Err(damaged(&path, scan.offset, "damaged after it was durable"));
        }
        file.set_len(scan.offset as u64)
            .and_then(|()| file.sync_all())
            .map_err(|e| Error::io("cutting the log", &e))?;
        tracing::warn!(path = %path.display(), offset = scan.offset, cut, "unfinished write at the end of the log cut off");
    }
    let sequence = scan.sequence.unwrap_or_default();
    recovered.cut_bytes += cut as u64;
    recovered.tail = Some(Tail {
        salt,
        end: Position {
            file: number,
            offset: scan.offset as u64,
        },
        sequence,
    });
    recovered.state.files.insert(
        number,
        LogFile {
            path,
            file: Arc::new(file),
            bytes: scan.offset as u64,
        },
    );
    Ok(())
}

fn damaged(path: &Path, offset: usize, reason: &str) -> Error {
    Error::corrupt(format!("log file \"{}\" at offset {offset}: {reason}", path.display()))
        .with_hint("this copy cannot be trusted; rebuild it from another copy")
}

/// A record, the offset it begins at, and its size.
type Found = (Decoded, usize, usize);

/// A file being read group by group.
struct Scan<'a> {
    bytes: &'a Bytes,
    salt: u32,
    number: u64,
    offset: usize,
    sequence: Option<u64>,
}

impl Scan<'_> {
    /// The group at `offset`, if all of it is sound and it is the one that comes next.
    fn group(&self) -> Option<(GroupHeader, Vec<Found>)> {
        let header = format::read_group_header(&self.bytes[self.offset..], self.salt)?;
        if self.sequence.is_some_and(|s| header.sequence != s + 1) {
            return None;
        }
        let mut at = self.offset + format::GROUP_HEADER_BYTES;
        let end = at
            .checked_add(header.body_bytes as usize)
            .filter(|end| *end <= self.bytes.len())?;
        let mut records = Vec::new();
        while at < end {
            let (decoded, size) = format::read_record(&self.bytes.slice(at..end))?;
            records.push((decoded, at, size));
            at += size;
        }
        Some((header, records))
    }

    /// Whether any group header after the bad place says that the bad place was durable.
    fn durable_beyond(&self) -> bool {
        let bad = Position {
            file: self.number,
            offset: self.offset as u64,
        };
        let mut from = self.offset + 1;
        while let Some(at) = format::find_group_magic(self.bytes, from) {
            if format::read_group_header(&self.bytes[at..], self.salt).is_some_and(|h| h.durable > bad) {
                return true;
            }
            from = at + 1;
        }
        false
    }
}

fn apply(state: &mut LogState, decoded: Decoded, position: Position, bytes: u32) -> std::result::Result<(), String> {
    match decoded {
        Decoded::Change(record) => state.apply(&without_payload(record), position, bytes),
        Decoded::State(shard, tip) => match state.shards.get(&shard) {
            Some(log) if log.tip == tip => Ok(()),
            Some(_) => Err(format!("state of shard {shard} differs from its records")),
            None => {
                state.shards.insert(shard, ShardLog::new(tip));
                Ok(())
            }
        },
    }
}

/// Lets go of the file's bytes.
fn without_payload(record: Record) -> Record {
    match record {
        Record::Entry { shard, mut record } => {
            record.payload = Bytes::new();
            Record::Entry { shard, record }
        }
        other => other,
    }
}
