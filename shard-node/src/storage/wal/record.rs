//! What the log holds: entries of shards, and changes of their logs.

use bytes::Bytes;
use tessera_proto::{Epoch, LogIndex, ShardId};

/// What a log entry means; the payload is opaque here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// A leader began its epoch.
    EpochStart = 1,
    /// A participant's write set.
    Prepare = 2,
    /// The decision of a transaction at its home.
    CommitRecord = 3,
    /// A prepared transaction committed here.
    Commit = 4,
    /// A prepared transaction aborted here.
    Abort = 5,
    /// The decision of home to abort.
    AbortRecord = 6,
    /// All participants know the decision.
    End = 7,
}

impl EntryKind {
    /// From the byte on disk or wire.
    pub fn from_u8(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::EpochStart,
            2 => Self::Prepare,
            3 => Self::CommitRecord,
            4 => Self::Commit,
            5 => Self::Abort,
            6 => Self::AbortRecord,
            7 => Self::End,
            _ => return None,
        })
    }
}

/// One entry of one shard's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Epoch of the leader that wrote it.
    pub epoch: Epoch,
    /// Position, dense from 1.
    pub index: LogIndex,
    /// Kind.
    pub kind: EntryKind,
    /// Contents.
    pub payload: Bytes,
}

/// One change of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Appends an entry: its index is the shard's last + 1, its epoch not below the last one's.
    Entry {
        /// The shard.
        shard: ShardId,
        /// The entry.
        record: LogRecord,
    },
    /// The shard promised never to follow an epoch below this one.
    Promise {
        /// The shard.
        shard: ShardId,
        /// The epoch.
        epoch: Epoch,
    },
    /// Entries above `index` never were.
    TruncateAfter {
        /// The shard.
        shard: ShardId,
        /// Last entry to keep.
        index: LogIndex,
    },
    /// The log restarts behind (`epoch`, `index`): a snapshot holds everything up to there.
    Reset {
        /// The shard.
        shard: ShardId,
        /// Epoch of the last entry in the snapshot.
        epoch: Epoch,
        /// Index of the last entry in the snapshot.
        index: LogIndex,
    },
    /// The shard lives here no more.
    Forget {
        /// The shard.
        shard: ShardId,
    },
}

impl Record {
    /// The shard it belongs to.
    pub fn shard(&self) -> ShardId {
        match self {
            Self::Entry { shard, .. }
            | Self::Promise { shard, .. }
            | Self::TruncateAfter { shard, .. }
            | Self::Reset { shard, .. }
            | Self::Forget { shard } => *shard,
        }
    }
}
