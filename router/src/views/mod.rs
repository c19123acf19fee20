//! Tables that are computed, not stored: `pg_catalog`, `information_schema` and `tessera`.
//!
//! ```text
//!   SELECT .. FROM pg_class        rewrite.rs   PostgreSQL-only syntax of catalog queries → what DataFusion plans
//!                                  functions.rs pg_get_userbyid, format_type, ... over the catalog snapshot
//!        SystemSource ───────────▶ pg_catalog.rs, pg_stats.rs, information_schema.rs, cluster.rs   rows from the catalog snapshot
//! ```
//!
//! OIDs are the stable ids of the meta store, so they are equal on every router and after a restart. Catalog queries run in
//! the router and are never distributed. Catalogs of things Tessera does not have (triggers, policies, foreign keys,
//! inheritance, publications) exist and are empty.

mod cluster;
mod functions;
mod information_schema;
mod pg_catalog;
mod pg_stats;
mod rewrite;
mod rows;

pub use functions::functions;
pub use rewrite::rewrite;

use crate::cluster::statistics::ClusterStatistics;
use datafusion::catalog::TableProvider;
use std::collections::BTreeMap;
use std::sync::Arc;
use tessera_meta::view::ClusterView;
use tessera_proto::{NodeId, TableId, v1};

/// Schemas whose tables are computed.
pub const SCHEMAS: [&str; 3] = ["pg_catalog", "information_schema", "tessera"];

/// OID of the schema `pg_catalog`, as in PostgreSQL.
const PG_CATALOG_OID: i64 = 11;
/// OID of the schema `public`, as in PostgreSQL.
const PUBLIC_OID: i64 = 2200;
/// OID of the schema `information_schema`; PostgreSQL's differs by installation.
const INFORMATION_SCHEMA_OID: i64 = 13_000;
/// OID of the schema `tessera`.
const TESSERA_OID: i64 = 13_001;
/// OID of the only role.
const OWNER_OID: i64 = 10;

/// What computed tables are computed from: one snapshot per statement.
#[derive(Debug, Clone)]
pub struct SystemSource {
    /// The catalog.
    pub view: Arc<ClusterView>,
    /// The last status of every node that answered.
    pub statuses: Arc<BTreeMap<NodeId, v1::StatusReply>>,
    /// What the planner believes of the tables.
    pub statistics: Arc<ClusterStatistics>,
    /// Name of the database the session is connected to.
    pub database: String,
    /// Name of the session's user.
    pub user: String,
}

/// A computed table; without a schema, one of `pg_catalog`, as PostgreSQL's search path has it first.
pub fn system_table(source: &SystemSource, schema: Option<&str>, name: &str) -> Option<Arc<dyn TableProvider>> {
    match schema.unwrap_or("pg_catalog") {
        "pg_catalog" => pg_catalog::table(source, name),
        "information_schema" => information_schema::table(source, name),
        "tessera" => cluster::table(source, name),
        _ => None,
    }
}

/// OID of a schema. User schemas have no stored id: theirs is made from the name, stable everywhere.
fn schema_oid(name: &str) -> i64 {
    match name {
        "pg_catalog" => PG_CATALOG_OID,
        "public" => PUBLIC_OID,
        "information_schema" => INFORMATION_SCHEMA_OID,
        "tessera" => TESSERA_OID,
        _ => 0x4000_0000 + i64::from(xxhash_rust::xxh3::xxh3_64(name.as_bytes()) as u32 >> 2),
    }
}

/// OID of the index behind a table's primary key: above every table id that can come, stable.
fn primary_key_oid(table: TableId) -> i64 {
    (table.0 as i64) + (1 << 32)
}
