//! What log entries carry, as protobuf: part of the on-disk format, so fields are only ever added.
//!
//! ```text
//!   EpochStart    (empty)                         a leader began
//!   Prepare       txn, home, writes               at a participant: durable, locked, invisible
//!   CommitRecord  ts, [txn, participants, writes] at home: the commit point of every transaction of one commit group
//!   Commit        txn, ts                         at a participant: the prepared writes become visible
//!   Abort         txn                             at a participant
//!   AbortRecord   txn                             at home: a tombstone; a later CommitRecord of it is void
//!   End           txn                             at home: all participants know
//! ```
//!
//! Writes carry rows or names of staged segments, never positions; everything volatile was evaluated before.

use crate::storage::wal::EntryKind;
use bytes::Bytes;
use prost::Message;
use tessera_proto::{Error, GroupId, Result, ShardId, Timestamp, TxnId, v1};

/// A shard, without epoch.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct ShardKey {
    /// Colocation group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// Shard number.
    #[prost(uint32, tag = "2")]
    pub index: u32,
}

impl From<ShardId> for ShardKey {
    fn from(shard: ShardId) -> Self {
        Self {
            group: shard.group.0,
            index: shard.index,
        }
    }
}

impl From<ShardKey> for ShardId {
    fn from(key: ShardKey) -> Self {
        Self {
            group: GroupId(key.group),
            index: key.index,
        }
    }
}

/// Payload of Prepare.
#[derive(Clone, PartialEq, Message)]
pub struct Prepare {
    /// Transaction, 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub txn: Bytes,
    /// Where its outcome is decided.
    #[prost(message, optional, tag = "2")]
    pub home: Option<ShardKey>,
    /// Rows.
    #[prost(message, repeated, tag = "3")]
    pub writes: Vec<v1::TableWrite>,
    /// The catalog that knows the tables is at least this new.
    #[prost(uint64, tag = "4")]
    pub meta_revision: u64,
}

/// One transaction of a CommitRecord.
#[derive(Clone, PartialEq, Message)]
pub struct Committed {
    /// Transaction, 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub txn: Bytes,
    /// Prepared shards other than home.
    #[prost(message, repeated, tag = "2")]
    pub participants: Vec<ShardKey>,
    /// Home's own rows.
    #[prost(message, repeated, tag = "3")]
    pub writes: Vec<v1::TableWrite>,
    /// The catalog that knows the tables is at least this new.
    #[prost(uint64, tag = "4")]
    pub meta_revision: u64,
}

/// Payload of CommitRecord: one commit group.
#[derive(Clone, PartialEq, Message)]
pub struct CommitRecord {
    /// Commit timestamp of all of them.
    #[prost(uint64, tag = "1")]
    pub timestamp: u64,
    /// At least one.
    #[prost(message, repeated, tag = "2")]
    pub commits: Vec<Committed>,
}

/// Payload of Commit, Abort, AbortRecord and End.
#[derive(Clone, PartialEq, Message)]
pub struct Decision {
    /// Transaction, 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub txn: Bytes,
    /// In a Commit; else 0.
    #[prost(uint64, tag = "2")]
    pub timestamp: u64,
}

/// A decoded entry.
#[derive(Debug, Clone, PartialEq)]
pub enum Logged {
    /// A leader began.
    EpochStart,
    /// See the module.
    Prepare(Prepare),
    /// See the module.
    CommitRecord(CommitRecord),
    /// See the module.
    Commit(TxnId, Timestamp),
    /// See the module.
    Abort(TxnId),
    /// See the module.
    AbortRecord(TxnId),
    /// See the module.
    End(TxnId),
}

impl Logged {
    /// Kind byte and payload for the log.
    pub fn encode(&self) -> (u8, Bytes) {
        let decision = |txn: &TxnId, timestamp| {
            Bytes::from(
                Decision {
                    txn: txn.to_wire(),
                    timestamp,
                }
                .encode_to_vec(),
            )
        };
        let (kind, payload) = match self {
            Self::EpochStart => (EntryKind::EpochStart, Bytes::new()),
            Self::Prepare(prepare) => (EntryKind::Prepare, prepare.encode_to_vec().into()),
            Self::CommitRecord(record) => (EntryKind::CommitRecord, record.encode_to_vec().into()),
            Self::Commit(txn, timestamp) => (EntryKind::Commit, decision(txn, timestamp.0)),
            Self::Abort(txn) => (EntryKind::Abort, decision(txn, 0)),
            Self::AbortRecord(txn) => (EntryKind::AbortRecord, decision(txn, 0)),
            Self::End(txn) => (EntryKind::End, decision(txn, 0)),
        };
        (kind as u8, payload)
    }

    /// From the log.
    ///
    /// # Errors
    /// XX001: not what any version of this program wrote.
    pub fn decode(kind: u8, payload: Bytes) -> Result<Self> {
        let damaged = |what: &str| Error::corrupt(format!("log entry of kind {kind} cannot be read: {what}"));
        let undecodable = |e: prost::DecodeError| damaged(&e.to_string());
        let kind = EntryKind::from_u8(kind).ok_or_else(|| damaged("unknown kind"))?;
        Ok(match kind {
            EntryKind::EpochStart => Self::EpochStart,
            EntryKind::Prepare => Self::Prepare(Prepare::decode(payload).map_err(undecodable)?),
            EntryKind::CommitRecord => Self::CommitRecord(CommitRecord::decode(payload).map_err(undecodable)?),
            EntryKind::Commit | EntryKind::Abort | EntryKind::AbortRecord | EntryKind::End => {
                let decision = Decision::decode(payload).map_err(undecodable)?;
                let txn = TxnId::from_wire(&decision.txn).map_err(|e| damaged(&e.message))?;
                match kind {
                    EntryKind::Commit => Self::Commit(txn, Timestamp(decision.timestamp)),
                    EntryKind::Abort => Self::Abort(txn),
                    EntryKind::AbortRecord => Self::AbortRecord(txn),
                    _ => Self::End(txn),
                }
            }
        })
    }

    /// The staged segments that must be on a disk before the entry may be.
    pub fn segments(&self) -> Vec<v1::SegmentRef> {
        match self {
            Self::Prepare(prepare) => segments(&prepare.writes),
            Self::CommitRecord(record) => record.commits.iter().flat_map(|c| segments(&c.writes)).collect(),
            _ => Vec::new(),
        }
    }
}

/// Staged segments named by writes.
pub fn segments(writes: &[v1::TableWrite]) -> Vec<v1::SegmentRef> {
    let staged = |w: &v1::TableWrite| match &w.payload {
        Some(v1::table_write::Payload::Staged(staged)) => staged.segments.clone(),
        _ => Vec::new(),
    };
    writes.iter().flat_map(staged).collect()
}

/// Payload bytes that writes bring into an entry.
pub fn bytes(writes: &[v1::TableWrite]) -> usize {
    writes.iter().map(Message::encoded_len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_round_trip() {
        let txn = TxnId::generate();
        let staged = v1::StagedSegments {
            segments: vec![v1::SegmentRef {
                file: "a".into(),
                ..Default::default()
            }],
        };
        let write = v1::TableWrite {
            table: 7,
            schema_version: 1,
            payload: Some(v1::table_write::Payload::Staged(staged)),
            ..Default::default()
        };
        let home = Some(ShardKey { group: 3, index: 4 });
        let prepare = Logged::Prepare(Prepare {
            txn: txn.to_wire(),
            home,
            writes: vec![write],
            meta_revision: 9,
        });
        for entry in [
            prepare.clone(),
            Logged::EpochStart,
            Logged::Commit(txn, Timestamp(5)),
            Logged::End(txn),
            Logged::Abort(txn),
        ] {
            let (kind, payload) = entry.encode();
            assert_eq!(Logged::decode(kind, payload).unwrap(), entry);
        }
        assert_eq!(prepare.segments().len(), 1);
        assert_eq!(Logged::decode(99, Bytes::new()).unwrap_err().code, "XX001");
        assert_eq!(Logged::decode(4, Bytes::from_static(b"x")).unwrap_err().code, "XX001");
    }
}
