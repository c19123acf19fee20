//! Bytes of log files.
//!
//! ```text
//!   file    "TESSWAL1" | version u32 | salt u32 | file number u64 | disk 16 | length u16, cluster | crc32c u32 | group ...
//!   group   magic u64 | body length u32 | sequence u64 | durable file u64 | durable offset u64 | crc32c u32 | record ...
//!   record  length u32 | crc32c u32 | type u8 | shard: group u64, index u32 | by type:
//!             1..=7 entry: epoch u64, index u64, payload        16 promise: epoch         17 truncate: index
//!             18 reset: epoch, index        19 forget           20 state: promised, base, n u32, n x (epoch, last index)
//! ```
//!
//! Everything little endian. The salt is random per file and seeds the group's checksum, so that bytes of another file that
//! happen to lie in a payload are never taken for a group. The first group of a file holds the state of every shard, so
//! that older files can go. Never change a layout: add a version.

use crate::storage::Identity;
use crate::storage::wal::state::Tip;
use crate::storage::wal::{EntryKind, LogRecord, Record};
use bytes::Bytes;
use tessera_proto::{Epoch, Error, FORMAT_VERSION, GroupId, LogIndex, Result, ShardId};

const FILE_MAGIC: [u8; 8] = *b"TESSWAL1";
const GROUP_MAGIC: [u8; 8] = *b"\xF1tesgrp\x1F";
/// Bytes of a group's header.
pub(super) const GROUP_HEADER_BYTES: usize = 40;
/// Bytes before a record's body.
const RECORD_PREFIX_BYTES: usize = 8;
/// Type and shard.
const RECORD_HEAD_BYTES: usize = 13;
/// Largest record body: an inline write set of 64 MiB with its envelope, and room for several tables.
pub(super) const RECORD_BYTES_MAX: usize = 256 << 20;

/// Position in the file sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub file: u64,
    pub offset: u64,
}

/// What a record says, as read back; the payload is a range of the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Decoded {
    Change(Record),
    State(ShardId, Tip),
}

/// Header of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupHeader {
    pub body_bytes: u32,
    pub sequence: u64,
    pub durable: Position,
}

/// Header of file `number`.
pub(super) fn file_header(identity: &Identity, number: u64, salt: u32) -> Vec<u8> {
    let mut out = FILE_MAGIC.to_vec();
    out.extend(FORMAT_VERSION.to_le_bytes());
    out.extend(salt.to_le_bytes());
    out.extend(number.to_le_bytes());
    out.extend(identity.disk.as_bytes());
    out.extend((identity.cluster_id.len() as u16).to_le_bytes());
    out.extend(identity.cluster_id.as_bytes());
    out.extend(crc32c::crc32c(&out).to_le_bytes());
    out
}

/// Salt and length of a file's header.
///
/// # Errors
/// XX001 when the file is damaged or not ours; 55000 when another version of this program wrote it.
pub(super) fn read_file_header(bytes: &[u8], identity: &Identity, number: u64) -> Result<(u32, usize)> {
    let mut reader = Reader { bytes };
    let damaged = || Error::corrupt("damaged header");
    if reader.take(8).ok_or_else(damaged)? != FILE_MAGIC {
        return Err(Error::corrupt("not a log file"));
    }
    let version = reader.u32().ok_or_else(damaged)?;
    if version != FORMAT_VERSION {
        let what = format!("format version {version}, this program reads {FORMAT_VERSION}");
        return Err(Error::new("55000", what));
    }
    let salt = reader.u32().ok_or_else(damaged)?;
    let found_number = reader.u64().ok_or_else(damaged)?;
    let disk = reader.take(16).ok_or_else(damaged)?;
    let cluster_bytes = reader.take(2).ok_or_else(damaged)?;
    let cluster = reader
        .take(usize::from(u16::from_le_bytes([cluster_bytes[0], cluster_bytes[1]])))
        .ok_or_else(damaged)?;
    let header_bytes = bytes.len() - reader.bytes.len();
    if reader.u32().ok_or_else(damaged)? != crc32c::crc32c(&bytes[..header_bytes]) {
        return Err(damaged());
    }
    if cluster != identity.cluster_id.as_bytes() || disk != identity.disk.as_bytes() {
        return Err(Error::corrupt("written by another cluster or data directory"));
    }
    if found_number != number {
        return Err(Error::corrupt(format!("is file number {found_number}, renamed")));
    }
    Ok((salt, header_bytes + 4))
}

/// Appends a group's header.
pub(super) fn group_header(header: GroupHeader, salt: u32, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend(GROUP_MAGIC);
    out.extend(header.body_bytes.to_le_bytes());
    out.extend(header.sequence.to_le_bytes());
    out.extend(header.durable.file.to_le_bytes());
    out.extend(header.durable.offset.to_le_bytes());
    let crc = crc32c::crc32c_append(salt, &out[start..]);
    out.extend(crc.to_le_bytes());
}

/// A group's header, if the bytes begin with a sound one.
pub(super) fn read_group_header(bytes: &[u8], salt: u32) -> Option<GroupHeader> {
    let mut reader = Reader { bytes };
    if reader.take(8)? != GROUP_MAGIC {
        return None;
    }
    let header = GroupHeader {
        body_bytes: reader.u32()?,
        sequence: reader.u64()?,
        durable: Position {
            file: reader.u64()?,
            offset: reader.u64()?,
        },
    };
    let crc = crc32c::crc32c_append(salt, &bytes[..GROUP_HEADER_BYTES - 4]);
    (reader.u32()? == crc).then_some(header)
}

/// Where the next group header may begin at or after `from`.
pub(super) fn find_group_magic(bytes: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    rest.windows(GROUP_MAGIC.len())
        .position(|w| w == GROUP_MAGIC)
        .map(|at| from + at)
}

/// Appends a record.
///
/// # Errors
/// 54000 when it is larger than a log record may be.
pub(super) fn record(record: &Record, out: &mut Vec<u8>) -> Result<()> {
    let start = begin(out);
    match record {
        Record::Entry { shard, record } => {
            head(out, record.kind as u8, *shard);
            out.extend(record.epoch.0.to_le_bytes());
            out.extend(record.index.0.to_le_bytes());
            out.extend_from_slice(&record.payload);
        }
        Record::Promise { shard, epoch } => {
            head(out, 16, *shard);
            out.extend(epoch.0.to_le_bytes());
        }
        Record::TruncateAfter { shard, index } => {
            head(out, 17, *shard);
            out.extend(index.0.to_le_bytes());
        }
        Record::Reset { shard, epoch, index } => {
            head(out, 18, *shard);
            out.extend(epoch.0.to_le_bytes());
            out.extend(index.0.to_le_bytes());
        }
        Record::Forget { shard } => head(out, 19, *shard),
    }
    end(out, start)
}

/// Appends a shard's state.
///
/// # Errors
/// 54000: millions of epochs.
pub(super) fn state(shard: ShardId, tip: &Tip, out: &mut Vec<u8>) -> Result<()> {
    let start = begin(out);
    head(out, 20, shard);
    out.extend(tip.promised.0.to_le_bytes());
    out.extend(tip.base.0.to_le_bytes());
    out.extend((tip.boundaries.len() as u32).to_le_bytes());
    for (epoch, index) in &tip.boundaries {
        out.extend(epoch.0.to_le_bytes());
        out.extend(index.0.to_le_bytes());
    }
    end(out, start)
}

fn begin(out: &mut Vec<u8>) -> usize {
    out.extend([0; RECORD_PREFIX_BYTES]);
    out.len() - RECORD_PREFIX_BYTES
}

fn head(out: &mut Vec<u8>, kind: u8, shard: ShardId) {
    out.push(kind);
    out.extend(shard.group.0.to_le_bytes());
    out.extend(shard.index.to_le_bytes());
}

/// Fills in length and checksum; the checksum covers the length too.
fn end(out: &mut Vec<u8>, start: usize) -> Result<()> {
    let body_bytes = out.len() - start - RECORD_PREFIX_BYTES;
    if body_bytes > RECORD_BYTES_MAX {
        out.truncate(start);
        return Err(Error::new(
            "54000",
            format!("log record of {body_bytes} bytes is larger than {RECORD_BYTES_MAX}"),
        ));
    }
    let length = (body_bytes as u32).to_le_bytes();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&length), &out[start + RECORD_PREFIX_BYTES..]);
    out[start..start + 4].copy_from_slice(&length);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// The record at the start of `bytes` and its size; `None` when there is no sound one.
pub(super) fn read_record(bytes: &Bytes) -> Option<(Decoded, usize)> {
    let mut reader = Reader { bytes };
    let length = reader.take(4)?;
    let crc = reader.u32()?;
    let body_bytes = u32::from_le_bytes(length.try_into().ok()?) as usize;
    let body = reader.take(body_bytes)?;
    if crc32c::crc32c_append(crc32c::crc32c(length), body) != crc {
        return None;
    }
    let size = RECORD_PREFIX_BYTES + body_bytes;
    let payload =
        (body_bytes >= RECORD_HEAD_BYTES + 16).then(|| bytes.slice(RECORD_PREFIX_BYTES + RECORD_HEAD_BYTES + 16..size));
    Some((decode(body, payload)?, size))
}

fn decode(body: &[u8], payload: Option<Bytes>) -> Option<Decoded> {
    let mut reader = Reader { bytes: body };
    let kind = reader.take(1)?[0];
    let shard = ShardId {
        group: GroupId(reader.u64()?),
        index: reader.u32()?,
    };
    let record = match kind {
        1..=7 => {
            let (epoch, index) = (Epoch(reader.u64()?), LogIndex(reader.u64()?));
            let record = LogRecord {
                epoch,
                index,
                kind: EntryKind::from_u8(kind)?,
                payload: payload?,
            };
            return Some(Decoded::Change(Record::Entry { shard, record }));
        }
        16 => Record::Promise {
            shard,
            epoch: Epoch(reader.u64()?),
        },
        17 => Record::TruncateAfter {
            shard,
            index: LogIndex(reader.u64()?),
        },
        18 => Record::Reset {
            shard,
            epoch: Epoch(reader.u64()?),
            index: LogIndex(reader.u64()?),
        },
        19 => Record::Forget { shard },
        20 => return Some(Decoded::State(shard, read_tip(&mut reader)?)),
        _ => return None,
    };
    reader.bytes.is_empty().then_some(Decoded::Change(record))
}

fn read_tip(reader: &mut Reader<'_>) -> Option<Tip> {
    let (promised, base, count) = (Epoch(reader.u64()?), LogIndex(reader.u64()?), reader.u32()? as usize);
    if reader.bytes.len() != count.checked_mul(16)? {
        return None;
    }
    let boundaries = (0..count)
        .map(|_| Some((Epoch(reader.u64()?), LogIndex(reader.u64()?))))
        .collect::<Option<Vec<_>>>()?;
    Some(Tip {
        promised,
        base,
        boundaries,
    })
}

/// Takes bytes off the front; `None` past the end.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}
