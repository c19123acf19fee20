//! The store on disk: a bag of small records in sled, read once at the start and only written afterwards.
//!
//! ```text
//!   /node/…2 → 9,000 bytes      slot 17:  [piece 0: 4 KiB][piece 1: 4 KiB][piece 2: the rest]      see `record`
//!   store's revision            one more record, in the same batch as what it counts
//! ```
//!
//! Every entry owns a slot, cut into pieces of 4 KiB. sled would put larger pages into files of their own that it never
//! fsyncs; short keys and small pieces keep all its pages far below that (131,052 bytes: 17 pieces on a leaf).
//!
//! What sled 0.34.7 does not do by itself, and is done here: its `flush` does not reach the medium, so the barrier adds an
//! fdatasync of its file; a crash while it writes a snapshot leaves a file that stops it from opening, so that is removed;
//! one thread writes, because concurrent writers can deadlock; and a failed barrier ends the process, because Linux drops
//! dirty pages after a failed fsync and a second one would succeed without them.

use super::record::{ENTRY, HEAD, decode, encode, head, parse_head, parse_piece_key, piece_key};
use super::state::{State, Stored};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tessera_proto::{Error, FORMAT_VERSION, Result};

/// Largest piece; 257 of them hold the largest entry.
const PIECE_BYTES: usize = 4 << 10;
/// Page cache of sled. The store itself is in our memory, so this only serves writes.
const CACHE_BYTES: u64 = 64 << 20;
/// Space that must be free besides four times the written bytes: sled's garbage collection rewrites half-megabyte segments.
const SPARE_BYTES: u64 = 16 << 20;
/// How long a sled of this process that was just dropped may keep its file locked.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// An open store. Fields are dropped in this order: the lock goes last.
pub(super) struct Disk {
    db: sled::Db,
    /// Sled's file, open as long as the store: a descriptor opened later would miss write errors reported before.
    file: File,
    dir: PathBuf,
    slots: HashMap<String, Slot>,
    next_slot: u64,
    _lock: File,
}

/// Where an entry is.
#[derive(Clone, Copy)]
struct Slot {
    id: u64,
    pieces: u16,
}

impl Disk {
    /// Opens or creates the store in `dir` and reads all of it.
    ///
    /// # Errors
    /// See [`super::LocalMeta::open`].
    pub(super) fn open(dir: &Path) -> Result<(Self, State)> {
        create(dir)?;
        let lock = lock(dir)?;
        remove_unfinished_snapshots(dir)?;
        let db = open_sled(dir)?;
        let file = File::options()
            .read(true)
            .write(true)
            .open(dir.join("db"))
            .map_err(|e| Error::io("opening the meta store's file", &e))?;
        sync_folder(dir)?;
        let mut disk = Self {
            db,
            file,
            dir: dir.to_owned(),
            slots: HashMap::new(),
            next_slot: 0,
            _lock: lock,
        };
        let state = disk.load()?;
        Ok((disk, state))
    }

    /// Writes all changes or none; durable on return.
    ///
    /// # Errors
    /// 53100 when there is too little space left: nothing happened.
    ///
    /// Any later failure ends the process: what is on disk is then only known after a restart.
    pub(super) fn write(&mut self, changes: &BTreeMap<String, Option<Stored>>, revision: u64) -> Result<()> {
        self.check_space(changes.values().flatten().map(|stored| stored.value.len() as u64).sum())?;
        let mut batch = sled::Batch::default();
        batch.insert(HEAD, head(revision).as_slice());
        for (key, stored) in changes {
            self.add(&mut batch, key, stored.as_ref());
        }
        self.db.apply_batch(batch).unwrap_or_else(|e| die("writing", &e));
        self.db.flush().unwrap_or_else(|e| die("flushing", &e));
        self.file.sync_data().unwrap_or_else(|e| die("syncing", &e));
        Ok(())
    }

    /// Adds one change to a batch that will be written.
    fn add(&mut self, batch: &mut sled::Batch, key: &str, stored: Option<&Stored>) {
        let old = self.slots.remove(key).unwrap_or_else(|| self.new_slot());
        let record = stored.map(|stored| encode(key, stored)).unwrap_or_default();
        let mut slot = Slot { id: old.id, pieces: 0 };
        for piece in record.chunks(PIECE_BYTES) {
            batch.insert(piece_key(slot.id, slot.pieces).as_slice(), piece);
            slot.pieces += 1;
        }
        for piece in slot.pieces..old.pieces {
            batch.remove(piece_key(slot.id, piece).as_slice());
        }
        if slot.pieces > 0 {
            self.slots.insert(key.to_owned(), slot);
        }
    }

    fn new_slot(&mut self) -> Slot {
        self.next_slot += 1;
        Slot {
            id: self.next_slot,
            pieces: 0,
        }
    }

    fn check_space(&self, bytes: u64) -> Result<()> {
        let free = fs2::available_space(&self.dir)
            .map_err(|e| Error::io("asking for the free space of the meta store", &e))?;
        if free < SPARE_BYTES + 4 * bytes {
            return Err(Error::disk_full(format!(
                "the disk of the meta store has only {free} bytes left"
            )));
        }
        Ok(())
    }

    /// Reads everything and remembers who is in which slot.
    fn load(&mut self) -> Result<State> {
        let revision = self.load_head()?;
        let mut entries = BTreeMap::new();
        let mut record: Option<(Slot, Vec<u8>)> = None;
        for item in self.db.scan_prefix([ENTRY]) {
            let (key, piece) = item.map_err(|e| failed("reading", e))?;
            let (id, number) =
                parse_piece_key(&key).ok_or_else(|| damaged(format!("key of {} bytes in its file", key.len())))?;
            if let Some((slot, bytes)) = record
                .as_mut()
                .filter(|(slot, _)| slot.id == id && slot.pieces == number)
            {
                slot.pieces += 1;
                bytes.extend_from_slice(&piece);
                continue;
            }
            if let Some((slot, bytes)) = record.take() {
                self.take(&mut entries, slot, &bytes)?;
            }
            if number != 0 {
                return Err(damaged(format!("slot {id} has no piece before {number}")));
            }
            record = Some((Slot { id, pieces: 1 }, piece.to_vec()));
        }
        if let Some((slot, bytes)) = record {
            self.take(&mut entries, slot, &bytes)?;
        }
        match entries
            .iter()
            .find(|(_, stored)| stored.revision == 0 || stored.revision > revision)
        {
            Some((key, stored)) => Err(damaged(format!(
                "key \"{key}\" has revision {}, the store {revision}",
                stored.revision
            ))),
            None => Ok(State::new(entries, revision)),
        }
    }

    fn load_head(&self) -> Result<u64> {
        let Some(value) = self.db.get(HEAD).map_err(|e| failed("reading", e))? else {
            return Ok(0);
        };
        let (format, revision) = parse_head(&value).ok_or_else(|| damaged("its head is malformed".into()))?;
        if format != FORMAT_VERSION {
            return Err(Error::new(
                "0A000",
                format!("the meta store has format {format}, this program reads {FORMAT_VERSION}"),
            )
            .with_hint("start the version that wrote it"));
        }
        Ok(revision)
    }

    /// Takes one record over from disk.
    fn take(&mut self, entries: &mut BTreeMap<String, Stored>, slot: Slot, record: &[u8]) -> Result<()> {
        let (key, stored) = decode(record).ok_or_else(|| damaged(format!("slot {} is malformed", slot.id)))?;
        self.next_slot = self.next_slot.max(slot.id);
        if self.slots.insert(key.clone(), slot).is_some() {
            return Err(damaged(format!("key \"{key}\" stands in two slots")));
        }
        entries.insert(key, stored);
        Ok(())
    }
}

/// Makes the folder, durably.
fn create(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir).map_err(|e| Error::io(&format!("creating folder {}", dir.display()), &e))?;
    match dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_folder(parent),
        None => sync_folder(Path::new(".")),
    }
}

fn sync_folder(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| Error::io(&format!("syncing folder {}", dir.display()), &e))
}

/// Our own lock, because sled's cannot be told from other failures.
fn lock(dir: &Path) -> Result<File> {
    let doing = format!("locking the meta store in {}", dir.display());
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("LOCK"))
        .map_err(|e| Error::io(&doing, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::new(
            "55006",
            format!("the meta store in {} is in use", dir.display()),
        )
        .with_hint("another process, or another part of this one, has it open")),
        Err(TryLockError::Error(e)) => Err(Error::io(&doing, &e)),
    }
}

/// The snapshot before is still there: sled removes it only after the new one has its final name.
fn remove_unfinished_snapshots(dir: &Path) -> Result<()> {
    let doing = |e| Error::io("removing unfinished snapshots of the meta store", &e);
    for file in fs::read_dir(dir).map_err(doing)? {
        let file = file.map_err(doing)?;
        let name = file.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::warn!(file = %name, "removed a snapshot of the meta store that a crash left unfinished");
            fs::remove_file(file.path()).map_err(doing)?;
        }
    }
    Ok(())
}

/// Opens sled. We have the lock, so if sled's own is taken, threads of an instance just dropped are still ending.
fn open_sled(dir: &Path) -> Result<sled::Db> {
    let until = Instant::now() + RELEASE_TIMEOUT;
    loop {
        let config = sled::Config::new()
            .path(dir)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(Some(500));
        // Damage that sled does not expect makes it panic.
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| config.open()));
        match opened {
            Ok(Ok(db)) => return Ok(db),
            Ok(Err(error)) if is_locked(&error) && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20))
            }
            Ok(Err(error)) => return Err(failed("opening", error)),
            Err(_) => return Err(damaged("opening it failed, see the message printed before".into())),
        }
    }
}

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(e) if e.to_string().starts_with("could not acquire lock"))
}

fn failed(doing: &str, error: sled::Error) -> Error {
    match error {
        sled::Error::Io(e) => Error::io(&format!("{doing} the meta store"), &e),
        other => damaged(format!("{doing} it failed: {other}")),
    }
}

fn damaged(detail: String) -> Error {
    Error::corrupt("the meta store is damaged")
        .with_detail(detail)
        .with_hint("restore its folder from a backup")
}

/// Ends the process: see the head of this file.
fn die(doing: &str, error: &dyn std::error::Error) -> ! {
    tracing::error!(%error, "{doing} the meta store failed; the process ends, because what reached the disk is unknown");
    std::process::abort()
}
