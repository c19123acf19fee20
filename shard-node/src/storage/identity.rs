//! Who a data directory belongs to. Stands in the header of every log file and manifest; files of others are refused.

use tessera_proto::NodeId;
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

impl Identity {
    /// Reads `dir/identity.json`, or writes a new one durably if there is none.
    ///
    /// # Errors
    /// The directory belongs to another cluster or node, or has another format version.
    pub fn load_or_create(dir: &std::path::Path, cluster_id: &str, node: NodeId) -> tessera_proto::Result<Self> {
        let _ = (dir, cluster_id, node);
        todo!()
    }
}
