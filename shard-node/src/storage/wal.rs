//! The node's log: one append-only file sequence for all shards, one fdatasync per group of waiting appends.
//!
//! ```text
//!   0000000000000007.wal   7/0 entry 41 | 7/3 entry 12 | 7/0 promise 5 | 7/0 entry 42 | ...
//!   0000000000000008.wal   state of all shards | 7/3 entry 13 | ...
//! ```
//!
//! One log for all shards, because 64 clients on 64 logs would wait for 64 fdatasyncs. Entries are found through an index in
//! memory (20 bytes each). Cutting a shard's log is a record like any other; space comes back by whole files, oldest first.
//! Bytes: [`format`]; writing: [`writer`]; reading back: [`recovery`]. Not here: what entries mean.

mod format;
mod record;
mod recovery;
mod state;
#[cfg(test)]
mod tests;
mod writer;

use crate::storage::Identity;
use parking_lot::{Mutex, RwLock};
pub use record::{EntryKind, LogRecord, Record};
use state::{Location, LogFile, LogState};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use tessera_proto::{Epoch, Error, LogIndex, Result, ShardId};
use tokio::sync::{Semaphore, mpsc, oneshot};
use writer::{Append, Writer};

/// Appends that may wait; more block their callers.
const QUEUE_APPENDS: usize = 1_024;
/// Memory that waiting appends may hold, in KiB: four of the largest write sets.
const QUEUE_KIB: usize = 256 << 10;

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
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Arc<RwLock<LogState>>,
    queue: Mutex<Option<mpsc::Sender<Append>>>,
    queue_kib: Arc<Semaphore>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    #[cfg(test)]
    full: Arc<std::sync::atomic::AtomicBool>,
}

impl Wal {
    /// Opens or creates the log in `dir`.
    ///
    /// # Errors
    /// XX001 naming file and offset when bytes that were once durable are damaged, or the files belong to another directory.
    pub fn open(dir: &Path, identity: &Identity) -> Result<(Wal, WalReport)> {
        Self::open_with(dir, identity, writer::FILE_BYTES)
    }

    fn open_with(dir: &Path, identity: &Identity, file_bytes: u64) -> Result<(Wal, WalReport)> {
        if identity.cluster_id.len() > 256 {
            return Err(Error::new("22023", "cluster id is longer than 256 bytes"));
        }
        std::fs::create_dir_all(dir).map_err(|e| Error::io("creating the log folder", &e))?;
        let mut recovered = recovery::recover(dir, identity)?;
        let tail = match recovered.tail {
            Some(tail) => tail,
            None => {
                let start = format::Position { file: 0, offset: 0 };
                let created = writer::create_file(dir, identity, 1, 1, start, &[])?;
                let end = format::Position {
                    file: 1,
                    offset: created.log_file.bytes,
                };
                recovered.state.files.insert(1, created.log_file);
                recovery::Tail {
                    salt: created.salt,
                    end,
                    sequence: 1,
                }
            }
        };
        let report = WalReport {
            shards: recovered
                .state
                .shards
                .iter()
                .map(|(shard, log)| (*shard, log.state()))
                .collect(),
            files: recovered.state.files.len(),
            cut_bytes: recovered.cut_bytes,
        };
        let file = recovered.state.files.get(&tail.end.file).map(|f| f.file.clone());
        let file = file.ok_or_else(|| Error::internal("log has no last file"))?;
        let state = Arc::new(RwLock::new(recovered.state));
        #[cfg(test)]
        let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let writer = Writer {
            dir: dir.to_path_buf(),
            identity: identity.clone(),
            state: state.clone(),
            file,
            salt: tail.salt,
            end: tail.end,
            sequence: tail.sequence,
            file_bytes,
            #[cfg(test)]
            full: full.clone(),
        };
        let (sender, receiver) = mpsc::channel(QUEUE_APPENDS);
        let thread = std::thread::Builder::new()
            .name("wal".into())
            .spawn(move || writer.run(receiver));
        let thread = thread.map_err(|e| Error::io("starting the log writer", &e))?;
        let inner = Inner {
            state,
            queue: Mutex::new(Some(sender)),
            queue_kib: Arc::new(Semaphore::new(QUEUE_KIB)),
            thread: Mutex::new(Some(thread)),
            #[cfg(test)]
            full,
        };
        Ok((Wal { inner: Arc::new(inner) }, report))
    }

    /// Appends all records or none; durable on return. Dropping the future does not take the records back.
    ///
    /// # Errors
    /// 53100 when the disk is full: nothing was appended, later appends may succeed. XX000 when the records do not continue
    /// their shard's log. 54000 when they are too large for one append.
    pub async fn append(&self, records: Vec<Record>) -> Result<()> {
        let closed = || Error::unavailable("the log is closed");
        let (mut body, mut sizes) = (Vec::new(), Vec::with_capacity(records.len()));
        for record in &records {
            let start = body.len();
            format::record(record, &mut body)?;
            sizes.push((body.len() - start) as u32);
        }
        if body.len() > format::RECORD_BYTES_MAX {
            return Err(Error::new(
                "54000",
                format!(
                    "log append of {} bytes is larger than {}",
                    body.len(),
                    format::RECORD_BYTES_MAX
                ),
            ));
        }
        let kib = (body.len() / 1_024 + 1).min(QUEUE_KIB) as u32;
        let permit = self
            .inner
            .queue_kib
            .clone()
            .acquire_many_owned(kib)
            .await
            .map_err(|_| closed())?;
        let queue = self.inner.queue.lock().clone().ok_or_else(closed)?;
        let (reply, answer) = oneshot::channel();
        queue
            .send(Append {
                records,
                body,
                sizes,
                reply,
                _permit: permit,
            })
            .await
            .map_err(|_| closed())?;
        drop(queue);
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Durable entries from `from` on, until `max_bytes` are exceeded (at least one if there is one). Blocking.
    ///
    /// # Errors
    /// XX001 when stored bytes are damaged; 58030 on I/O errors; XX000 when `from` is below [`Wal::first`].
    pub fn read(&self, shard: ShardId, from: LogIndex, max_bytes: usize) -> Result<Vec<LogRecord>> {
        let found = self.locate(shard, from, max_bytes)?;
        found
            .into_iter()
            .enumerate()
            .map(|(at, (location, file))| {
                let index = LogIndex(from.0 + at as u64);
                read_entry(shard, index, location, &file)
            })
            .collect()
    }

    /// Where the entries lie; the files stay readable even when they are removed meanwhile.
    fn locate(&self, shard: ShardId, from: LogIndex, max_bytes: usize) -> Result<Vec<(Location, LogFile)>> {
        let state = self.inner.state.read();
        let Some(log) = state.shards.get(&shard) else {
            return Ok(vec![]);
        };
        let skip = from.0.checked_sub(log.start.0);
        let skip = skip.ok_or_else(|| {
            Error::internal(format!(
                "log entry {from} of shard {shard} is gone, the first is {}",
                log.start
            ))
        })?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        for location in log.entries.iter().skip(skip as usize) {
            if !found.is_empty() && bytes + location.bytes as usize > max_bytes {
                break;
            }
            bytes += location.bytes as usize;
            let file = state
                .files
                .get(&location.file)
                .ok_or_else(|| Error::internal("log file of a live entry is gone"))?;
            found.push((*location, file.clone()));
        }
        Ok(found)
    }

    /// Greatest epoch promised; 0 for unknown shards.
    pub fn promised(&self, shard: ShardId) -> Epoch {
        self.inner
            .state
            .read()
            .shards
            .get(&shard)
            .map_or(Epoch(0), |log| log.tip.promised)
    }

    /// Epoch and index of the last durable entry; zeros when there never was one.
    pub fn last(&self, shard: ShardId) -> (Epoch, LogIndex) {
        self.inner
            .state
            .read()
            .shards
            .get(&shard)
            .map_or_else(Default::default, |log| log.tip.last())
    }

    /// First entry that can be read; `last + 1` when there is none.
    pub fn first(&self, shard: ShardId) -> LogIndex {
        self.inner
            .state
            .read()
            .shards
            .get(&shard)
            .map_or(LogIndex(1), |log| log.start)
    }

    /// Epoch of an entry, also of one whose bytes are gone; index 0 has epoch 0; `None` outside the log.
    pub fn epoch_at(&self, shard: ShardId, index: LogIndex) -> Option<Epoch> {
        match self.inner.state.read().shards.get(&shard) {
            Some(log) => log.tip.epoch_at(index),
            None => (index.0 == 0).then_some(Epoch(0)),
        }
    }

    /// (epoch, its last index) of every epoch in the log, ascending; begins at the last [`Record::Reset`].
    pub fn boundaries(&self, shard: ShardId) -> Vec<(Epoch, LogIndex)> {
        self.inner
            .state
            .read()
            .shards
            .get(&shard)
            .map_or_else(Vec::new, |log| log.tip.boundaries.clone())
    }

    /// Entries up to `upto` are in durable segments. Whole files go when all their entries are released. Not kept over a
    /// restart: release again after opening.
    pub fn release(&self, shard: ShardId, upto: LogIndex) {
        let mut state = self.inner.state.write();
        if let Some(log) = state.shards.get_mut(&shard) {
            log.released = log.released.max(upto.min(log.tip.last().1));
        }
        let gone = state.take_unneeded();
        drop(state);
        writer::remove_files(gone);
    }

    /// All shards that have a log, ascending.
    pub fn shards(&self) -> Vec<ShardId> {
        self.inner.state.read().shards.keys().copied().collect()
    }

    /// Bytes of log files on disk, and the shard whose unreleased entries hold the oldest file (seal it to free space).
    pub fn retained(&self) -> (u64, Option<ShardId>) {
        let state = self.inner.state.read();
        (
            state.files.values().map(|f| f.bytes).sum(),
            state.oldest_needed().map(|(_, shard)| shard),
        )
    }

    /// Finishes queued appends, marks the log as cleanly closed and joins the writer. Later appends fail. Blocking.
    pub fn close(&self) {
        self.inner.close();
    }
}

impl Inner {
    fn close(&self) {
        self.queue.lock().take();
        self.queue_kib.close();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("log writer panicked");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// Reads one record and checks that it is the entry looked for.
fn read_entry(shard: ShardId, index: LogIndex, location: Location, file: &LogFile) -> Result<LogRecord> {
    let mut bytes = vec![0; location.bytes as usize];
    let at = || format!("log file \"{}\" at offset {}", file.path.display(), location.offset);
    file.file
        .read_exact_at(&mut bytes, u64::from(location.offset))
        .map_err(|e| Error::io(&format!("reading {}", at()), &e))?;
    match format::read_record(&bytes.into()) {
        Some((format::Decoded::Change(Record::Entry { shard: s, record }), _))
            if s == shard && record.index == index =>
        {
            Ok(record)
        }
        _ => Err(Error::corrupt(format!(
            "{}: entry {index} of shard {shard} is damaged",
            at()
        ))),
    }
}
