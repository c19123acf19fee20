//! Newtypes for every id, so that two `u64` parameters never sit side by side.

use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
        #[serde(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id!(
    /// A shard node, 1-based; given by the operator, unique in the cluster.
    NodeId(u32)
);
id!(
    /// A table; never reused. Also its PostgreSQL OID (16,384 and up).
    TableId(u64)
);
id!(
    /// A colocation group: the unit that shard ranges, replicas and logs belong to. Every table is in exactly one.
    GroupId(u64)
);
id!(
    /// Version of one shard's configuration; +1 at every change. 0 is before the first.
    Epoch(u64)
);
id!(
    /// Position in one shard's log, 1-based and dense. 0 is before the first entry.
    LogIndex(u64)
);
id!(
    /// Commit or snapshot time: milliseconds since 1970 in the upper 46 bits, a counter in the lower 18. 0 is before everything.
    Timestamp(u64)
);

impl Timestamp {
    /// Bits of the logical counter: 2^18 timestamps a millisecond before the clock part must run ahead.
    pub const LOGICAL_BITS: u32 = 18;
    /// Sees every committed row.
    pub const MAX: Timestamp = Timestamp(u64::MAX);

    /// The first timestamp of a millisecond.
    pub fn from_millis(millis: u64) -> Self {
        Timestamp(millis << Self::LOGICAL_BITS)
    }

    /// Milliseconds since 1970.
    pub fn millis(self) -> u64 {
        self.0 >> Self::LOGICAL_BITS
    }
}

/// One shard of a colocation group: rows of all the group's tables whose token falls in the shard's range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId {
    /// The colocation group.
    pub group: GroupId,
    /// Shard number within the group, 0-based.
    pub index: u32,
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.index)
    }
}

/// A copy of a shard: the node *and* its disk, so that a wiped disk is a new replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId {
    /// The node.
    pub node: NodeId,
    /// Identity of the node's data directory.
    #[serde(with = "uuid_text")]
    pub disk: Uuid,
}

/// UUIDs as text in JSON.
pub(crate) mod uuid_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use uuid::Uuid;

    pub fn serialize<S: Serializer>(uuid: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(uuid)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.node, self.disk)
    }
}

/// A transaction: a UUIDv7, unique without coordination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TxnId(#[serde(with = "uuid_text")] pub Uuid);

impl TxnId {
    /// A new id.
    pub fn generate() -> Self {
        TxnId(Uuid::now_v7())
    }

    /// From the 16 bytes of the wire.
    pub fn from_wire(bytes: &[u8]) -> crate::Result<Self> {
        Uuid::from_slice(bytes)
            .map(TxnId)
            .map_err(|_| crate::Error::protocol("transaction id is not 16 bytes"))
    }

    /// For the wire.
    pub fn to_wire(self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(self.0.as_bytes())
    }
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl crate::v1::ShardRef {
    /// The shard, without the epoch.
    pub fn id(&self) -> ShardId {
        ShardId {
            group: GroupId(self.group),
            index: self.index,
        }
    }

    /// A shard at an epoch.
    pub fn new(shard: ShardId, epoch: Epoch) -> Self {
        Self {
            group: shard.group.0,
            index: shard.index,
            epoch: epoch.0,
            own: false,
        }
    }
}
