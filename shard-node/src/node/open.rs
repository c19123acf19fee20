//! Opens one shard from disk, and saves the part of it that is not the store's: the transaction ledger.
//!
//! ```text
//!   DIR/shards/7-3/LEDGER        crc32c | image of the ledger at log index X
//!   order at a seal:   image at X ─▶ store seals up to C >= X ─▶ LEDGER ─▶ log may be cut up to X
//!   so replay from X + 1 finds every prepared write: in the image, or in the log
//! ```

use super::shard::{Ends, Shard};
use crate::replication::catch_up::INSTALLING;
use crate::replication::driver::restored;
use crate::replication::state::Restored;
use crate::storage::wal::{Record, Wal};
use crate::storage::{Identity, MetadataCache, ShardStore, durable};
use crate::txn::entry::{Logged, segments};
use crate::txn::ledger::Ledger;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use tessera_proto::{Error, LogIndex, ReplicaId, Result, ShardId};

const LEDGER: &str = "LEDGER";
/// Log bytes read at a time while looking for staged files.
const READ_BYTES: usize = 8 << 20;

/// Durable on return. Blocking.
///
/// # Errors
/// 53100 or 58030; the old image stands then.
pub fn write_ledger(dir: &Path, image: &[u8]) -> Result<()> {
    let mut bytes = crc32c::crc32c(image).to_le_bytes().to_vec();
    bytes.extend_from_slice(image);
    durable::write_file(&dir.join(LEDGER), &bytes)
}

fn read_ledger(dir: &Path) -> Result<Ledger> {
    let path = dir.join(LEDGER);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Ledger::default()),
        Err(e) => return Err(Error::io(&format!("reading \"{}\"", path.display()), &e)),
    };
    match bytes.split_first_chunk::<4>() {
        Some((crc, image)) if u32::from_le_bytes(*crc) == crc32c::crc32c(image) => Ledger::from_image(image),
        _ => Err(Error::corrupt(format!("file \"{}\" is damaged", path.display()))),
    }
}

/// A shard, its tasks' ends, and what its machine starts from.
pub type Opening = (Arc<Shard>, Ends, Restored);

/// Opens a shard.
///
/// # Errors
/// XX001 when something on disk is damaged; 58030.
pub async fn open(
    dir: &Path,
    id: ShardId,
    me: ReplicaId,
    identity: &Identity,
    cache: &Arc<MetadataCache>,
    wal: &Wal,
) -> Result<Opening> {
    let (root, identity, cache, log) = (dir.to_path_buf(), identity.clone(), cache.clone(), wal.clone());
    let opened = tokio::task::spawn_blocking(move || open_files(&root, id, &identity, cache, &log)).await;
    let opened = opened.map_err(|e| Error::internal(format!("opening shard {id}: {e}")))??;
    let (store, ledger, wants_snapshot) = (opened.store, opened.ledger, opened.wants_snapshot);
    let checkpoint = store.checkpoint();
    let (epoch, last) = wal.last(id);
    let (from, first) = (ledger.applied().min(checkpoint), wal.first(id));
    let lost = ledger.applied() > checkpoint || from.0 + 1 < first.0 && last >= checkpoint;
    if lost && !wants_snapshot {
        // A ledger is written after the manifest of the same seal, and the log is cut after both.
        return Err(Error::corrupt(format!(
            "shard {id} has a manifest of log entry {checkpoint}, a ledger of {}, and a log from {first}: one of them is not the last",
            ledger.applied()
        )));
    }
    if last < checkpoint && ledger.applied() < checkpoint && !wants_snapshot {
        return Err(Error::corrupt(format!(
            "the log of shard {id} ends at {last}, its files at {checkpoint}: it lost entries that the transaction ledger needs"
        )));
    }
    if last < checkpoint && !wants_snapshot {
        // The log lost an end that the files still have. Everything in files was committed, so the log restarts behind it;
        // if the guessed epoch is not the entry's, peers see no common entry and take or give a snapshot: safe.
        tracing::warn!(shard = %id, %last, %checkpoint, "the log ends before the shard's files");
        wal.append(vec![Record::Reset {
            shard: id,
            epoch: wal.promised(id).max(epoch),
            index: checkpoint,
        }])
        .await?;
    }
    let applied = if wants_snapshot {
        checkpoint
    } else {
        ledger.applied().min(checkpoint)
    };
    let (shard, ends) = Shard::new(id, me, dir.join(format!("{}-{}", id.group, id.index)), store, ledger);
    // Replay covers what either of the two does not have yet; both skip what they have.
    shard.applied.send_replace(applied);
    shard.committed.send_replace(checkpoint);
    let restored = restored(wal, id, checkpoint, wants_snapshot);
    Ok((shard, ends, restored))
}

struct Opened {
    store: ShardStore,
    ledger: Ledger,
    wants_snapshot: bool,
}

fn open_files(dir: &Path, id: ShardId, identity: &Identity, cache: Arc<MetadataCache>, wal: &Wal) -> Result<Opened> {
    let store = ShardStore::open(dir, id, identity, cache)?;
    let shard_dir = dir.join(format!("{}-{}", id.group, id.index));
    let wants_snapshot = shard_dir.join(INSTALLING).exists();
    let ledger = if wants_snapshot {
        Ledger::default()
    } else {
        read_ledger(&shard_dir)?
    };
    let keep = named_files(&ledger, wal, id, store.checkpoint().min(ledger.applied()))?;
    store.sweep(&keep);
    Ok(Opened {
        store,
        ledger,
        wants_snapshot,
    })
}

/// Files of prepared transactions, and those that log entries after `after` name. Blocking.
///
/// # Errors
/// XX001 or 58030 when the log cannot be read.
pub fn named_files(ledger: &Ledger, wal: &Wal, id: ShardId, after: LogIndex) -> Result<HashSet<String>> {
    let prepared = ledger.prepared().values().flat_map(|p| segments(&p.writes));
    let mut names: HashSet<String> = prepared.map(|s| s.file).collect();
    let mut next = LogIndex(after.0 + 1).max(wal.first(id));
    loop {
        let records = wal.read(id, next, READ_BYTES)?;
        let Some(last) = records.last() else {
            return Ok(names);
        };
        next = LogIndex(last.index.0 + 1);
        for record in records {
            names.extend(
                Logged::decode(record.kind as u8, record.payload)?
                    .segments()
                    .into_iter()
                    .map(|s| s.file),
            );
        }
    }
}
