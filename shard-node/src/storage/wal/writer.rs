//! The thread that writes the log: takes all waiting appends, writes them as one group, fdatasyncs once, answers.
//!
//! ```text
//!   append ─┐                  ┌─ group n being fdatasynced ─┐
//!   append ─┼─ bounded queue ─▶│  meanwhile n+1 gathers       │─▶ publish to readers ─▶ answers
//!   append ─┘                  └──────────────────────────────┘
//! ```
//!
//! No artificial delay. A failed write (disk full) takes the group back and fails its appends; a failed fdatasync aborts the
//! process, because Linux drops dirty pages after reporting the error once, so nobody knows what is on disk.

use crate::storage::Identity;
use crate::storage::wal::Record;
use crate::storage::wal::format::{self, GroupHeader, Position};
use crate::storage::wal::state::{LogFile, LogState, Tip};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tessera_proto::{Error, Result, ShardId};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// A file is finished by the first group that ends above this: small enough to free space in steps, large enough to make
/// file creation (two fsyncs) rare.
pub(super) const FILE_BYTES: u64 = 64 << 20;
/// A group stops gathering above this, to bound latency and memory.
const GROUP_BYTES: usize = 8 << 20;

/// One append on its way.
#[derive(Debug)]
pub(super) struct Append {
    pub records: Vec<Record>,
    /// The records encoded, one after the other.
    pub body: Vec<u8>,
    /// Size of each record in `body`.
    pub sizes: Vec<u32>,
    pub reply: oneshot::Sender<Result<()>>,
    /// Holds this append's share of the queue's memory.
    pub _permit: OwnedSemaphorePermit,
}

/// The writing end of the log.
#[derive(Debug)]
pub(super) struct Writer {
    pub dir: PathBuf,
    pub identity: Identity,
    pub state: Arc<RwLock<LogState>>,
    pub file: Arc<File>,
    pub salt: u32,
    pub end: Position,
    pub sequence: u64,
    pub file_bytes: u64,
    #[cfg(test)]
    pub full: Arc<std::sync::atomic::AtomicBool>,
}

impl Writer {
    /// Runs until every sender is gone, then marks the log as cleanly closed.
    pub fn run(mut self, mut queue: mpsc::Receiver<Append>) {
        while let Some(first) = queue.blocking_recv() {
            let mut bytes = first.body.len();
            let mut group = vec![first];
            while bytes < GROUP_BYTES {
                let Ok(next) = queue.try_recv() else { break };
                bytes += next.body.len();
                group.push(next);
            }
            self.commit(group);
        }
        // An empty group carries the durable position past everything, so that damage to the last group is told from a torn write.
        if let Err(error) = self.write_group(&[]) {
            tracing::warn!(%error, "log not marked as cleanly closed");
        }
    }

    fn commit(&mut self, group: Vec<Append>) {
        let mut tips = BTreeMap::new();
        let (mut body, mut accepted) = (Vec::new(), Vec::with_capacity(group.len()));
        for append in group {
            match self.check(&mut tips, &append.records) {
                Ok(()) => {
                    body.extend_from_slice(&append.body);
                    accepted.push(append);
                }
                Err(reason) => answer(append, Err(Error::internal(format!("log append refused: {reason}")))),
            }
        }
        if accepted.is_empty() {
            return;
        }
        match self.write_group(&body) {
            Ok(start) => self.publish(accepted, start),
            Err(error) => accepted
                .into_iter()
                .for_each(|append| answer(append, Err(error.clone()))),
        }
    }

    /// Whether the records continue their logs, given what this group holds so far in `tips`.
    fn check(&self, tips: &mut BTreeMap<ShardId, Tip>, records: &[Record]) -> std::result::Result<(), String> {
        let mut changed: BTreeMap<ShardId, Tip> = BTreeMap::new();
        let state = self.state.read();
        for record in records {
            let shard = record.shard();
            let tip = changed.entry(shard).or_insert_with(|| {
                let known = tips
                    .get(&shard)
                    .or_else(|| state.shards.get(&shard).map(|log| &log.tip));
                known.cloned().unwrap_or_default()
            });
            tip.apply(record).map_err(|reason| format!("shard {shard}: {reason}"))?;
        }
        tips.append(&mut changed);
        Ok(())
    }

    /// Writes one group durably; returns where its body begins.
    fn write_group(&mut self, body: &[u8]) -> Result<Position> {
        if self.end.offset > self.file_bytes {
            self.next_file()?;
        }
        let header = GroupHeader {
            body_bytes: body.len() as u32,
            sequence: self.sequence + 1,
            durable: self.end,
        };
        let mut bytes = Vec::with_capacity(format::GROUP_HEADER_BYTES + body.len());
        format::group_header(header, self.salt, &mut bytes);
        bytes.extend_from_slice(body);
        if let Err(error) = self.write_at_end(&bytes) {
            // Best effort: what stays behind the end is overwritten by the next group, or cut as a torn write.
            let _ = self.file.set_len(self.end.offset);
            return Err(Error::io("writing the log", &error));
        }
        sync_or_abort(&self.file);
        let start = Position {
            file: self.end.file,
            offset: self.end.offset + format::GROUP_HEADER_BYTES as u64,
        };
        self.end.offset += bytes.len() as u64;
        self.sequence += 1;
        Ok(start)
    }

    fn write_at_end(&self, bytes: &[u8]) -> std::io::Result<()> {
        #[cfg(test)]
        if self.full.load(std::sync::atomic::Ordering::SeqCst) {
            self.file.write_all_at(&bytes[..bytes.len() / 2], self.end.offset)?;
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.file.write_all_at(bytes, self.end.offset)
    }

    fn next_file(&mut self) -> Result<()> {
        let number = self.end.file + 1;
        let tips: Vec<(ShardId, Tip)> = self
            .state
            .read()
            .shards
            .iter()
            .map(|(s, log)| (*s, log.tip.clone()))
            .collect();
        let created = create_file(&self.dir, &self.identity, number, self.sequence + 1, self.end, &tips)?;
        self.state.write().files.insert(number, created.log_file.clone());
        self.file = created.log_file.file;
        self.salt = created.salt;
        self.end = Position {
            file: number,
            offset: created.log_file.bytes,
        };
        self.sequence += 1;
        // The file just finished may already be free to go.
        remove_files(self.state.write().take_unneeded());
        Ok(())
    }

    fn publish(&self, accepted: Vec<Append>, start: Position) {
        let mut offset = start.offset;
        let mut state = self.state.write();
        for append in &accepted {
            for (record, size) in append.records.iter().zip(&append.sizes) {
                if let Err(reason) = state.apply(
                    record,
                    Position {
                        file: start.file,
                        offset,
                    },
                    *size,
                ) {
                    // `check` accepted it against the same state, so memory and disk would disagree from here on.
                    tracing::error!(reason, "log state broken");
                    std::process::abort();
                }
                offset += u64::from(*size);
            }
        }
        if let Some(file) = state.files.get_mut(&start.file) {
            file.bytes = self.end.offset;
        }
        drop(state);
        accepted.into_iter().for_each(|append| answer(append, Ok(())));
    }
}

fn answer(append: Append, result: Result<()>) {
    // The caller may have gone; the records stand all the same.
    let _ = append.reply.send(result);
}

fn sync_or_abort(file: &File) {
    if let Err(error) = file.sync_data() {
        tracing::error!(%error, "fdatasync of the log failed; what is on disk is unknown, so this process ends");
        std::process::abort();
    }
}

/// A file just created.
pub(super) struct Created {
    pub log_file: LogFile,
    pub salt: u32,
}

/// Creates file `number` durably, with every shard's state in its first group.
///
/// # Errors
/// 53100 or 58030; no file by that name exists then.
pub(super) fn create_file(
    dir: &Path,
    identity: &Identity,
    number: u64,
    sequence: u64,
    durable: Position,
    tips: &[(ShardId, Tip)],
) -> Result<Created> {
    let mut body = Vec::new();
    for (shard, tip) in tips {
        format::state(*shard, tip, &mut body)?;
    }
    let salt = rand::random();
    let mut bytes = format::file_header(identity, number, salt);
    format::group_header(
        GroupHeader {
            body_bytes: body.len() as u32,
            sequence,
            durable,
        },
        salt,
        &mut bytes,
    );
    bytes.extend(body);
    let path = file_path(dir, number);
    let tmp = path.with_extension("tmp");
    let file = write_new(&tmp, &bytes)
        .and_then(|file| std::fs::rename(&tmp, &path).map(|()| file))
        .and_then(|file| File::open(dir)?.sync_all().map(|()| file))
        .map_err(|e| {
            let _ = std::fs::remove_file(&tmp);
            Error::io("creating a log file", &e)
        })?;
    Ok(Created {
        log_file: LogFile {
            path,
            file: Arc::new(file),
            bytes: bytes.len() as u64,
        },
        salt,
    })
}

fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.write_all(bytes)?;
    sync_or_abort(&file);
    Ok(file)
}

/// Path of file `number`.
pub(super) fn file_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016}.wal"))
}

/// Removes files no one needs. One that stays is removed after the next start.
pub(super) fn remove_files(files: Vec<LogFile>) {
    for file in files {
        if let Err(error) = std::fs::remove_file(&file.path) {
            tracing::warn!(path = %file.path.display(), %error, "log file not removed");
        }
    }
}
