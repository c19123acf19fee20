//! The node's log: one append-only file sequence for all shards, one fdatasync per group of waiting appends.

use crate::storage::Identity;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tessera_proto::{Epoch, LogIndex, Result, ShardId};

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

/// State of one shard's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShardLogState {
    /// Greatest epoch promised.
    pub promised: Epoch,
    /// First entry that can be read; `last + 1` when there is none.
    pub first: LogIndex,
    /// Epoch and index of the last entry.
    pub last: (Epoch, LogIndex),
}

/// What [`Wal::open`] found.
#[derive(Debug, Clone, Default)]
pub struct WalReport {
    /// Per shard.
    pub shards: BTreeMap<ShardId, ShardLogState>,
    /// Log files read.
    pub files: usize,
    /// Bytes of an unfinished write cut off at the end.
    pub cut_bytes: u64,
}

/// The log. Cheap to clone; all clones are the same log.
#[derive(Debug, Clone)]
pub struct Wal {
    _inner: Arc<()>,
}

impl Wal {
    /// Opens or creates the log in `dir`.
    ///
    /// # Errors
    /// XX001 naming file and offset when bytes that were once durable are damaged, or the files belong to another directory.
    pub fn open(dir: &Path, identity: &Identity) -> Result<(Wal, WalReport)> {
        let _ = (dir, identity);
        todo!()
    }

    /// Appends all records or none; durable on return. Dropping the future does not take the records back.
    ///
    /// # Errors
    /// 53100 when the disk is full: nothing was appended, later appends may succeed. XX000 when the records do not continue
    /// their shard's log.
    pub async fn append(&self, records: Vec<Record>) -> Result<()> {
        let _ = records;
        todo!()
    }

    /// Durable entries from `from` on, until `max_bytes` are exceeded (at least one if there is one).
    ///
    /// # Errors
    /// XX001 when stored bytes are damaged; 58030 on I/O errors; XX000 when `from` is below [`Wal::first`].
    pub fn read(&self, shard: ShardId, from: LogIndex, max_bytes: usize) -> Result<Vec<LogRecord>> {
        let _ = (shard, from, max_bytes);
        todo!()
    }

    /// Greatest epoch promised; 0 for unknown shards.
    pub fn promised(&self, shard: ShardId) -> Epoch {
        let _ = shard;
        todo!()
    }

    /// Epoch and index of the last durable entry; zeros when there never was one.
    pub fn last(&self, shard: ShardId) -> (Epoch, LogIndex) {
        let _ = shard;
        todo!()
    }

    /// First entry that can be read; `last + 1` when there is none.
    pub fn first(&self, shard: ShardId) -> LogIndex {
        let _ = shard;
        todo!()
    }

    /// Epoch of an entry, also of one whose bytes are gone; index 0 has epoch 0; `None` outside the log.
    pub fn epoch_at(&self, shard: ShardId, index: LogIndex) -> Option<Epoch> {
        let _ = (shard, index);
        todo!()
    }

    /// (epoch, its last index) of every epoch in the log, ascending.
    pub fn boundaries(&self, shard: ShardId) -> Vec<(Epoch, LogIndex)> {
        let _ = shard;
        todo!()
    }

    /// Entries up to `upto` are in durable segments. Whole files go when all their entries are released.
    pub fn release(&self, shard: ShardId, upto: LogIndex) {
        let _ = (shard, upto);
        todo!()
    }

    /// All shards that have a log, ascending.
    pub fn shards(&self) -> Vec<ShardId> {
        todo!()
    }

    /// Bytes of log files on disk, and the shard whose unreleased entries hold the oldest file (seal it to free space).
    pub fn retained(&self) -> (u64, Option<ShardId>) {
        todo!()
    }

    /// Finishes queued appends, marks the log as cleanly closed and joins the writer. Later appends fail.
    pub fn close(&self) {
        todo!()
    }
}
