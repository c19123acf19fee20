//! Key layout of the meta store. Values are JSON of the named type.
//!
//! ```text
//!   /cluster                     ClusterInfo
//!   /next-id                     u64, next TableId/GroupId (16384 first)
//!   /schema/<name>               {}
//!   /table/<id, 20 digits>       TableDef            /name/<schema>/<name>   id of the table or view: uniqueness
//!   /view/<id>                   ViewDef             /group/<id>             ColocationGroup
//!   /shard/<group>/<index>       ShardConfig         /node/<id>              NodeInfo
//!   /pending/<id>                PendingTable: a table that has no /name yet
//!   /oracle                      high-water mark of timestamps, u64
//!   /secret                      32 bytes as hex: signs tokens and tickets of Flight SQL
//! ```

use crate::ids::{GroupId, NodeId, ShardId, TableId};

/// `ClusterInfo`.
pub const CLUSTER: &str = "/cluster";
/// Next id to give out.
pub const NEXT_ID: &str = "/next-id";
/// First id of user objects, as PostgreSQL's `FirstNormalObjectId`.
pub const FIRST_ID: u64 = 16_384;
/// High-water mark of the timestamp oracle.
pub const ORACLE: &str = "/oracle";
/// Signs tokens and tickets of Flight SQL.
pub const SECRET: &str = "/secret";

/// Key of a table definition.
pub fn table(id: TableId) -> String {
    format!("/table/{:020}", id.0)
}
/// Key of what is known of a table that is being filled.
pub fn pending(id: TableId) -> String {
    format!("/pending/{:020}", id.0)
}
/// Key of a view definition.
pub fn view(id: TableId) -> String {
    format!("/view/{:020}", id.0)
}
/// Key that makes a relation's name unique.
pub fn name(schema: &str, name: &str) -> String {
    format!("/name/{}/{}", escape(schema), escape(name))
}
/// Key of a schema.
pub fn schema(name: &str) -> String {
    format!("/schema/{}", escape(name))
}
/// Key of a colocation group.
pub fn group(id: GroupId) -> String {
    format!("/group/{:020}", id.0)
}
/// Key of a shard's configuration.
pub fn shard(id: ShardId) -> String {
    format!("/shard/{:020}/{:06}", id.group.0, id.index)
}
/// Key of a node.
pub fn node(id: NodeId) -> String {
    format!("/node/{:010}", id.0)
}

/// The shard of a key made by [`shard`].
pub fn parse_shard(key: &str) -> Option<ShardId> {
    let (group, index) = key.strip_prefix("/shard/")?.split_once('/')?;
    Some(ShardId {
        group: GroupId(group.parse().ok()?),
        index: index.parse().ok()?,
    })
}

/// `/` and `%` in names would break the key apart.
fn escape(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}
