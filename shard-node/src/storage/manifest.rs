//! Which segments a shard has and up to which log entry they hold everything; a new file at every change.
//!
//! ```text
//!   MANIFEST-12.json    tessera-manifest 1 <crc32c of the rest> \n {"cluster_id":...,"checkpoint":41,"segments":[...]}
//! ```
//!
//! Written tmp -> fsync -> rename -> fsync(folder), so a manifest is whole or absent; the greatest number counts, older ones
//! go after it. One that does not check is damage, never skipped: an older one would bring back removed rows. Not here: a
//! copy in sled; it would only repeat this file.

use crate::storage::Identity;
use crate::storage::deletes_file::{self, DeletesMeta};
use crate::storage::durable;
use crate::storage::version::SegmentMeta;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tessera_proto::{Error, FORMAT_VERSION, LogIndex, Result, ShardId, TableId, Timestamp};

const MAGIC: &str = "tessera-manifest";

/// A manifest's contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The cluster.
    pub cluster_id: String,
    /// The data directory.
    pub disk: String,
    /// The shard.
    pub shard: ShardId,
    /// Number in the file name.
    pub sequence: u64,
    /// Everything up to this log entry is in the segments.
    pub checkpoint: LogIndex,
    /// Greatest commit timestamp in them.
    pub max_timestamp: Timestamp,
    /// All visible segments.
    pub segments: Vec<SegmentMeta>,
    /// The file of their removed rows, under this number; none when no row is gone.
    #[serde(default)]
    pub deletes: Option<DeletesMeta>,
    /// Older snapshots of a table cannot be read: what they see may be removed. Tables without an entry have all their rows.
    #[serde(default)]
    pub watermarks: BTreeMap<TableId, Timestamp>,
}

/// Why bytes are not a manifest that can be used.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// They are not what was written.
    #[error("{0}")]
    Damaged(String),
    /// Another version of this program wrote them.
    #[error("format version {0}, this program reads {FORMAT_VERSION}")]
    Version(u32),
}

impl From<&str> for Refused {
    fn from(why: &str) -> Self {
        Self::Damaged(why.into())
    }
}

impl Manifest {
    /// The manifest of a shard without rows; not on disk.
    pub fn empty(shard: ShardId, identity: &Identity) -> Self {
        Self {
            cluster_id: identity.cluster_id.clone(),
            disk: identity.disk.to_string(),
            shard,
            sequence: 0,
            checkpoint: LogIndex(0),
            max_timestamp: Timestamp(0),
            segments: vec![],
            deletes: None,
            watermarks: BTreeMap::new(),
        }
    }

    /// The newest manifest in the shard's folder.
    ///
    /// # Errors
    /// XX001 when it is damaged or of another data directory or shard; 58030.
    pub fn load(dir: &Path, shard: ShardId, identity: &Identity) -> Result<Self> {
        let Some(sequence) = sequences(dir)?.into_iter().max() else {
            return Ok(Self::empty(shard, identity));
        };
        let path = path(dir, sequence);
        let bytes = std::fs::read(&path).map_err(|e| Error::io("reading a manifest", &e))?;
        let refused = |why: String| Error::corrupt(format!("manifest \"{}\" refused: {why}", path.display()));
        let manifest = Self::parse(&bytes).map_err(|why| match why {
            Refused::Damaged(why) => refused(why),
            // Not damage: fetching everything again would throw away what the other program can read.
            Refused::Version(_) => Error::new("55000", format!("manifest \"{}\" refused: {why}", path.display())),
        })?;
        if manifest.cluster_id != identity.cluster_id || manifest.disk != identity.disk.to_string() {
            return Err(refused("written by another cluster or data directory".into()));
        }
        if manifest.shard != shard || manifest.sequence != sequence {
            return Err(refused(format!(
                "is number {} of shard {}",
                manifest.sequence, manifest.shard
            )));
        }
        Ok(manifest)
    }

    /// Bytes for a file or another copy.
    ///
    /// # Errors
    /// XX000: not expressible as JSON.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let body = serde_json::to_string(self).map_err(|e| Error::internal(e.to_string()))?;
        Ok(format!(
            "{MAGIC} {FORMAT_VERSION} {:08x}\n{body}",
            crc32c::crc32c(body.as_bytes())
        )
        .into_bytes())
    }

    /// The inverse of [`Self::to_bytes`]; input may be anything.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refused> {
        let text = std::str::from_utf8(bytes).map_err(|_| "not text")?;
        let (head, body) = text.split_once('\n').ok_or("no header")?;
        let mut words = head.split(' ');
        if words.next() != Some(MAGIC) {
            return Err("not a manifest".into());
        }
        let version = words
            .next()
            .and_then(|v| v.parse::<u32>().ok())
            .ok_or("no format version")?;
        if version != FORMAT_VERSION {
            return Err(Refused::Version(version));
        }
        if words.next() != Some(format!("{:08x}", crc32c::crc32c(body.as_bytes())).as_str()) || words.next().is_some() {
            return Err("checksum differs".into());
        }
        serde_json::from_str(body).map_err(|e| Refused::Damaged(e.to_string()))
    }

    /// Makes this the newest manifest of the folder; durable on return. Older ones are removed. The file of removed rows, if it
    /// has one, is there before.
    ///
    /// # Errors
    /// 53100 or 58030; the older manifest stands then.
    pub fn store(&self, dir: &Path) -> Result<()> {
        durable::write_file(&path(dir, self.sequence), &self.to_bytes()?)?;
        for old in sequences(dir)?.into_iter().filter(|s| *s < self.sequence) {
            if let Err(error) = std::fs::remove_file(path(dir, old)) {
                tracing::warn!(%error, shard = %self.shard, "old manifest not removed");
            }
        }
        deletes_file::remove_others(dir, self.sequence);
        Ok(())
    }
}

fn path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("MANIFEST-{sequence}.json"))
}

fn sequences(dir: &Path) -> Result<Vec<u64>> {
    let reading = |e: std::io::Error| Error::io("reading a shard's folder", &e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(reading)? {
        let name = entry.map_err(reading)?.file_name();
        let name = name
            .to_str()
            .and_then(|n| n.strip_prefix("MANIFEST-"))
            .and_then(|n| n.strip_suffix(".json"));
        found.extend(name.and_then(|n| n.parse::<u64>().ok()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_proto::{GroupId, NodeId, TableId};

    fn manifest() -> (Manifest, Identity) {
        let identity = Identity {
            cluster_id: "c".into(),
            disk: uuid::Uuid::from_u128(7),
            node: NodeId(1),
        };
        let shard = ShardId {
            group: GroupId(3),
            index: 2,
        };
        let mut manifest = Manifest {
            sequence: 4,
            checkpoint: LogIndex(9),
            ..Manifest::empty(shard, &identity)
        };
        let meta = v1_segment();
        manifest
            .segments
            .push(SegmentMeta::new(TableId(5), &meta, Timestamp(6)));
        manifest.watermarks.insert(TableId(5), Timestamp(u64::MAX - 1));
        (manifest, identity)
    }

    fn v1_segment() -> tessera_proto::v1::SegmentRef {
        tessera_proto::v1::SegmentRef {
            file: "f.parquet".into(),
            rows: 1,
            bytes: 2,
            checksum: vec![0xab; 16].into(),
        }
    }

    #[test]
    fn newest_counts_and_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (mut manifest, identity) = manifest();
        manifest.store(dir.path()).unwrap();
        manifest.sequence = 5;
        manifest.store(dir.path()).unwrap();
        assert_eq!(sequences(dir.path()).unwrap(), [5]);
        assert_eq!(Manifest::load(dir.path(), manifest.shard, &identity).unwrap(), manifest);
        assert_eq!(manifest.segments[0].to_ref(), v1_segment());
        let other = Identity {
            disk: uuid::Uuid::from_u128(8),
            ..identity.clone()
        };
        assert_eq!(
            Manifest::load(dir.path(), manifest.shard, &other).unwrap_err().code,
            "XX001"
        );
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let sound = manifest().0.to_bytes().unwrap();
        for bit in 0..sound.len() * 8 {
            let mut bytes = sound.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::parse(&bytes).is_err(), "bit {bit}");
        }
        (0..sound.len()).for_each(|end| assert!(Manifest::parse(&sound[..end]).is_err()));
    }
}
