//! What the log knows in memory: per shard its tip and where each entry lies; and which files exist.

use crate::storage::wal::format::Position;
use crate::storage::wal::{Record, ShardLogState};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use tessera_proto::{Epoch, LogIndex, ShardId};

/// Promise and epochs of one shard's log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Tip {
    pub promised: Epoch,
    /// The log before and at this index is not known entry by entry: 0, or where it was reset.
    pub base: LogIndex,
    /// (epoch, its last index), ascending.
    pub boundaries: Vec<(Epoch, LogIndex)>,
}

impl Tip {
    pub fn last(&self) -> (Epoch, LogIndex) {
        self.boundaries.last().copied().unwrap_or_default()
    }

    /// Epoch of the entry at `index`.
    pub fn epoch_at(&self, index: LogIndex) -> Option<Epoch> {
        if index.0 == 0 && self.base.0 == 0 {
            return Some(Epoch(0));
        }
        if index < self.base || index > self.last().1 {
            return None;
        }
        self.boundaries
            .get(self.boundaries.partition_point(|(_, last)| *last < index))
            .map(|(epoch, _)| *epoch)
    }

    /// Applies a record that is not `Forget`.
    ///
    /// # Errors
    /// A text saying why it does not continue this log; nothing changed then.
    pub fn apply(&mut self, record: &Record) -> Result<(), String> {
        let (last_epoch, last_index) = self.last();
        match record {
            Record::Entry { record, .. } => {
                if record.index.0 != last_index.0 + 1 || record.epoch < last_epoch || record.epoch.0 == 0 {
                    return Err(format!(
                        "entry {} of epoch {} does not follow entry {last_index} of epoch {last_epoch}",
                        record.index, record.epoch
                    ));
                }
                match self.boundaries.last_mut() {
                    Some(boundary) if boundary.0 == record.epoch => boundary.1 = record.index,
                    _ => self.boundaries.push((record.epoch, record.index)),
                }
            }
            Record::Promise { epoch, .. } => self.promised = self.promised.max(*epoch),
            Record::TruncateAfter { index, .. } => {
                let Some(epoch) = self.epoch_at(*index) else {
                    return Err(format!(
                        "log from {} to {last_index} cannot be cut after {index}",
                        self.base
                    ));
                };
                self.boundaries.retain(|(e, _)| *e <= epoch && e.0 > 0);
                if let Some(boundary) = self.boundaries.last_mut() {
                    boundary.1 = *index;
                }
                if index.0 == 0 {
                    self.boundaries.clear();
                }
            }
            Record::Reset { epoch, index, .. } => {
                self.base = *index;
                self.boundaries = if index.0 == 0 { vec![] } else { vec![(*epoch, *index)] };
            }
            Record::Forget { .. } => *self = Self::default(),
        }
        Ok(())
    }
}

/// Where an entry's record lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Location {
    pub file: u64,
    pub offset: u32,
    pub bytes: u32,
}

/// One shard's log.
#[derive(Debug, Default)]
pub(super) struct ShardLog {
    pub tip: Tip,
    /// Index of `entries[0]`; the next one to come when empty.
    pub start: LogIndex,
    pub entries: VecDeque<Location>,
    pub released: LogIndex,
}

impl ShardLog {
    pub fn new(tip: Tip) -> Self {
        let start = LogIndex(tip.last().1.0 + 1);
        Self {
            tip,
            start,
            entries: VecDeque::new(),
            released: LogIndex(0),
        }
    }

    pub fn state(&self) -> ShardLogState {
        ShardLogState {
            promised: self.tip.promised,
            first: self.start,
            last: self.tip.last(),
        }
    }

    /// As [`Tip::apply`], and keeps the entry's location.
    pub fn apply(&mut self, record: &Record, location: Location) -> Result<(), String> {
        self.tip.apply(record)?;
        match record {
            Record::Entry { .. } => self.entries.push_back(location),
            Record::TruncateAfter { index, .. } => {
                self.entries
                    .truncate((index.0 + 1).saturating_sub(self.start.0) as usize);
                self.start = self.start.min(LogIndex(index.0 + 1));
                self.released = self.released.min(*index);
            }
            Record::Reset { index, .. } => {
                self.entries.clear();
                self.start = LogIndex(index.0 + 1);
                self.released = *index;
            }
            Record::Promise { .. } | Record::Forget { .. } => {}
        }
        Ok(())
    }

    /// The file that holds the first entry still needed.
    pub fn oldest_needed(&self) -> Option<u64> {
        let skip = (self.released.0 + 1).saturating_sub(self.start.0) as usize;
        self.entries.get(skip).map(|l| l.file)
    }

    /// Forgets entries in files below `file`.
    pub fn drop_files_below(&mut self, file: u64) {
        while self.entries.front().is_some_and(|l| l.file < file) {
            self.entries.pop_front();
            self.start.0 += 1;
        }
    }
}

/// One log file, open for reading.
#[derive(Debug, Clone)]
pub(super) struct LogFile {
    pub path: PathBuf,
    pub file: Arc<File>,
    pub bytes: u64,
}

/// Everything readers see; changes only after fdatasync.
#[derive(Debug, Default)]
pub(super) struct LogState {
    pub shards: BTreeMap<ShardId, ShardLog>,
    pub files: BTreeMap<u64, LogFile>,
}

impl LogState {
    /// Applies a durable record at `position`.
    pub fn apply(&mut self, record: &Record, position: Position, bytes: u32) -> Result<(), String> {
        let shard = record.shard();
        if matches!(record, Record::Forget { .. }) {
            self.shards.remove(&shard);
            return Ok(());
        }
        let location = Location {
            file: position.file,
            offset: position.offset as u32,
            bytes,
        };
        self.shards
            .entry(shard)
            .or_insert_with(|| ShardLog::new(Tip::default()))
            .apply(record, location)
    }

    /// The shard that needs the oldest file, and that file.
    pub fn oldest_needed(&self) -> Option<(u64, ShardId)> {
        self.shards
            .iter()
            .filter_map(|(shard, log)| Some((log.oldest_needed()?, *shard)))
            .min()
    }

    /// Takes out the files that nobody needs; only from the front, because later files may cut what earlier ones hold. The
    /// last file is being written and stays.
    pub fn take_unneeded(&mut self) -> Vec<LogFile> {
        let Some(last) = self.files.keys().next_back().copied() else {
            return vec![];
        };
        let keep_from = self.oldest_needed().map_or(last, |(file, _)| file.min(last));
        let keep = self.files.split_off(&keep_from);
        let gone = std::mem::replace(&mut self.files, keep);
        if !gone.is_empty() {
            self.shards.values_mut().for_each(|log| log.drop_files_below(keep_from));
        }
        gone.into_values().collect()
    }
}
