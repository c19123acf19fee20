//! The state a far-behind copy starts from: a manifest and the files it names.
//!
//! ```text
//!   ahead   seal ─▶ SnapshotManifest { manifest, files } ── files by install_segment ──▶  behind   install_snapshot
//!
//!   bytes of `manifest`:  length u64 LE | MANIFEST | DELETES
//! ```

use crate::storage::deletes::DeleteVector;
use crate::storage::deletes_file::{self, Deletes};
use crate::storage::durable;
use crate::storage::manifest::Manifest;
use crate::storage::shard_store::Inner;
use crate::storage::version::{Segment, SegmentMeta, TableVersion, Version};
use bytes::Bytes;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tessera_proto::{Error, LogIndex, Result, TableId, v1};

/// State a far-behind copy starts from. The files stay on disk while this lives, even if the shard drops them.
#[derive(Debug)]
pub struct SnapshotManifest {
    /// For [`crate::storage::ShardStore::install_snapshot`]; opaque.
    pub manifest: Bytes,
    /// Everything up to here is in it.
    pub checkpoint: LogIndex,
    /// Files to fetch with [`crate::storage::ShardStore::install_segment`] first.
    pub files: Vec<v1::SegmentRef>,
    /// Keeps the files.
    pub(super) _pins: Vec<Arc<Segment>>,
}

impl Inner {
    /// What `manifest` names. The caller sealed just before and still holds the manifest.
    pub(super) fn snapshot_of(&self, manifest: &Manifest) -> Result<SnapshotManifest> {
        let named: HashSet<&str> = manifest.segments.iter().map(|s| s.file.as_str()).collect();
        let version = self.version.load();
        let visible = version.tables.values().flat_map(|t| &t.segments);
        let pins: Vec<Arc<Segment>> = visible
            .filter(|s| named.contains(s.meta.file.as_str()))
            .cloned()
            .collect();
        if pins.len() != manifest.segments.len() {
            return Err(Error::internal(format!(
                "manifest of shard {} names segments that are not visible",
                manifest.shard
            )));
        }
        Ok(SnapshotManifest {
            manifest: self.pack(manifest)?.into(),
            checkpoint: manifest.checkpoint,
            files: manifest.segments.iter().map(SegmentMeta::to_ref).collect(),
            _pins: pins,
        })
    }

    /// A manifest and the removed rows of its segments.
    fn pack(&self, manifest: &Manifest) -> Result<Vec<u8>> {
        let head = manifest.to_bytes()?;
        let mut bytes = (head.len() as u64).to_le_bytes().to_vec();
        bytes.extend(head);
        bytes.extend(deletes_file::load(
            &self.dir,
            manifest.sequence,
            manifest.deletes.as_ref(),
        )?);
        Ok(bytes)
    }

    /// See [`crate::storage::ShardStore::install_snapshot`].
    pub(super) fn install(&self, mine: &mut Manifest, bytes: &[u8]) -> Result<LogIndex> {
        let (theirs, deletes) = unpack(bytes)?;
        if theirs.cluster_id != mine.cluster_id || theirs.shard != mine.shard {
            return Err(Error::protocol(format!(
                "snapshot is of shard {} of cluster \"{}\"",
                theirs.shard, theirs.cluster_id
            )));
        }
        for segment in &theirs.segments {
            super::segment_files::check_file_name(&segment.file)?;
        }
        durable::sync_dir(&self.segments)?;
        let version = open_version(&self.segments, &theirs, &deletes, &self.cache)?;
        let mut next = Manifest {
            disk: mine.disk.clone(),
            sequence: mine.sequence + 1,
            ..theirs
        };
        self.store_manifest(&mut next, &deletes)?;
        *mine = next;
        self.checkpoint.store(mine.checkpoint.0, Ordering::Release);
        let apply = self.apply.lock();
        let old = self.version.swap(Arc::new(version));
        self.keys.write().clear();
        drop(apply);
        let kept: HashSet<&str> = mine.segments.iter().map(|s| s.file.as_str()).collect();
        let gone = old
            .tables
            .values()
            .flat_map(|t| &t.segments)
            .filter(|s| !kept.contains(s.meta.file.as_str()));
        gone.for_each(|s| s.doom());
        Ok(mine.checkpoint)
    }
}

/// The inverse of [`Inner::pack`]; input may be anything.
fn unpack(bytes: &[u8]) -> Result<(Manifest, Deletes)> {
    let malformed = |why: &str| Error::protocol(format!("malformed snapshot: {why}"));
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| malformed("too short"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (head, deletes) = rest.split_at_checked(length).ok_or_else(|| malformed("too short"))?;
    let manifest = Manifest::parse(head).map_err(|why| malformed(&why.to_string()))?;
    match &manifest.deletes {
        Some(meta) => meta.check(deletes).map_err(|e| malformed(&e.message))?,
        None if deletes.is_empty() => {}
        None => return Err(malformed("removed rows that its manifest does not know")),
    }
    let deletes = deletes_file::decode(deletes).map_err(|e| malformed(&e.message))?;
    Ok((manifest, deletes))
}

/// The version a manifest describes.
///
/// # Errors
/// XX001 when a file is missing, or a removed row is not in its file.
pub(super) fn open_version(
    segments: &Path,
    manifest: &Manifest,
    deletes: &Deletes,
    cache: &Arc<super::MetadataCache>,
) -> Result<Version> {
    let mut tables: BTreeMap<TableId, TableVersion> = BTreeMap::new();
    for meta in &manifest.segments {
        let table = tables.entry(meta.table).or_default();
        let segment = Segment::open(segments, meta.clone(), cache)?;
        if let Some(rows) = deletes.get(&meta.file).filter(|rows| !rows.is_empty()) {
            if rows.windows(2).any(|w| w[0].row >= w[1].row) || rows.iter().any(|d| d.row >= meta.rows) {
                let file = &meta.file;
                return Err(Error::corrupt(format!(
                    "segment \"{file}\" does not have the rows removed from it"
                )));
            }
            table
                .deletes
                .insert(segment.number, Arc::new(DeleteVector::new(rows.clone())));
        }
        table.segments.push(segment);
    }
    for (table, watermark) in &manifest.watermarks {
        tables.entry(*table).or_default().watermark = *watermark;
    }
    let tables = tables.into_iter().map(|(id, t)| (id, Arc::new(t))).collect();
    Ok(Version {
        applied: manifest.checkpoint,
        max_timestamp: manifest.max_timestamp,
        tables,
    })
}
