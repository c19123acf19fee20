//! Who a data directory belongs to. Stands in the header of every log file and manifest; files of others are refused.
//!
//! ```text
//!   {"format_version":2,"cluster_id":"6f0c...","disk":"0193...","node":3}
//! ```

use crate::storage::durable;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tessera_proto::{Error, FORMAT_VERSION, NodeId, Result};
use uuid::Uuid;

/// Identity of a data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster; any text of at most 256 bytes.
    pub cluster_id: String,
    /// This directory: a wiped disk gets a new one, and so is a new replica.
    pub disk: Uuid,
    /// The node that owns it.
    pub node: NodeId,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format_version: u32,
    cluster_id: String,
    disk: String,
    node: NodeId,
    /// crc32c over the other fields; absent in files of early versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crc32c: Option<u32>,
}

impl Stored {
    fn sum(&self) -> u32 {
        let node = self.node;
        crc32c::crc32c(format!("{}|{}|{}|{node}", self.format_version, self.cluster_id, self.disk).as_bytes())
    }
}

impl Identity {
    /// Reads `dir/identity.json`, or writes a new one durably if there is none.
    ///
    /// # Errors
    /// The directory belongs to another cluster or node, or has another format version (all 55000); XX001 when damaged.
    pub fn load_or_create(dir: &Path, cluster_id: &str, node: NodeId) -> Result<Self> {
        let path = dir.join("identity.json");
        let identity = match std::fs::read(&path) {
            Ok(bytes) => Self::parse(&bytes)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let identity = Self {
                    cluster_id: cluster_id.into(),
                    disk: Uuid::now_v7(),
                    node,
                };
                durable::create_dir(dir)?;
                durable::write_file(&path, &identity.to_json()?)?;
                identity
            }
            Err(e) => return Err(Error::io("reading identity.json", &e)),
        };
        if identity.cluster_id != cluster_id || identity.node != node {
            return Err(Error::new(
                "55000",
                format!(
                    "data directory belongs to node {} of cluster \"{}\"",
                    identity.node, identity.cluster_id
                ),
            )
            .with_hint("start this node with its own data directory"));
        }
        Ok(identity)
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let stored: Stored =
            serde_json::from_slice(bytes).map_err(|e| Error::corrupt(format!("identity.json is damaged: {e}")))?;
        if stored.crc32c.is_some_and(|sum| sum != stored.sum()) {
            return Err(Error::corrupt("identity.json is damaged: checksum differs"));
        }
        if stored.format_version != FORMAT_VERSION {
            let found = stored.format_version;
            return Err(Error::new(
                "55000",
                format!("data directory has format version {found}, this program reads {FORMAT_VERSION}"),
            ));
        }
        let disk = stored
            .disk
            .parse()
            .map_err(|_| Error::corrupt("identity.json has no sound disk id"))?;
        Ok(Self {
            cluster_id: stored.cluster_id,
            disk,
            node: stored.node,
        })
    }

    fn to_json(&self) -> Result<Vec<u8>> {
        let mut stored = Stored {
            format_version: FORMAT_VERSION,
            cluster_id: self.cluster_id.clone(),
            disk: self.disk.to_string(),
            node: self.node,
            crc32c: None,
        };
        stored.crc32c = Some(stored.sum());
        serde_json::to_vec(&stored).map_err(|e| Error::internal(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_stable_and_refuses_others() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(dir.path(), "a", NodeId(1)).unwrap();
        assert_eq!(Identity::load_or_create(dir.path(), "a", NodeId(1)).unwrap(), first);
        assert_eq!(
            Identity::load_or_create(dir.path(), "b", NodeId(1)).unwrap_err().code,
            "55000"
        );
        assert_eq!(
            Identity::load_or_create(dir.path(), "a", NodeId(2)).unwrap_err().code,
            "55000"
        );
        let sound = std::fs::read(dir.path().join("identity.json")).unwrap();
        for bit in 0..sound.len() * 8 {
            let mut bytes = sound.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(dir.path().join("identity.json"), &bytes).unwrap();
            // Only the name of the checksum is not under it.
            if let Ok(found) = Identity::load_or_create(dir.path(), "a", NodeId(1)) {
                assert_eq!(found, first);
            }
        }
        std::fs::write(dir.path().join("identity.json"), b"{").unwrap();
        assert_eq!(
            Identity::load_or_create(dir.path(), "a", NodeId(1)).unwrap_err().code,
            "XX001"
        );
    }
}
