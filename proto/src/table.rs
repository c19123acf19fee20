//! Definitions of tables and colocation groups, as they stand in the meta store (JSON) and in every process's catalog.

use crate::ids::{GroupId, TableId};
use crate::sql_type::{KeyClass, SqlType};
use crate::token::TokenRange;
use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Name of the hidden row id of tables without a primary key: an int8, unique, and their shard key unless one is given.
pub const ROW_ID_COLUMN: &str = "__tessera_row_id";

/// Shards of a new table when SHARDS is not given.
pub const SHARDS_DEFAULT: u32 = 16;
/// Most shards a table may have: beyond this a shard of a laptop-sized table is too small to scan well.
pub const SHARDS_MAX: u32 = 1_024;
/// Most columns, as PostgreSQL's.
pub const COLUMNS_MAX: usize = 1_600;

/// One column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ColumnDef {
    /// Name, case as stored.
    pub name: String,
    /// Declared type.
    pub sql_type: SqlType,
    /// Whether NULL is allowed; false for primary key columns.
    pub nullable: bool,
    /// DEFAULT expression as SQL text.
    pub default: Option<String>,
    /// Hidden from `SELECT *` and from the catalog: only [`ROW_ID_COLUMN`].
    pub hidden: bool,
}

/// Where a table's rows live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Distribution {
    /// By hash of these columns (positions in [`TableDef::columns`]).
    Sharded {
        /// Shard key columns, in key order.
        key: Vec<usize>,
    },
    /// A full copy on every node: a group with one shard.
    Reference,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableDef {
    /// Id, also the PostgreSQL OID.
    pub id: TableId,
    /// Schema (`public` by default).
    pub schema: String,
    /// Name.
    pub name: String,
    /// Columns; a hidden row id stands last.
    pub columns: Vec<ColumnDef>,
    /// Primary key columns in key order; empty if none was declared.
    pub primary_key: Vec<usize>,
    /// Where rows live.
    pub distribution: Distribution,
    /// CLUSTER BY: what rows are sorted by where they are stored, before their key. Often empty.
    #[serde(default)]
    pub cluster_by: Vec<usize>,
    /// The colocation group.
    pub group: GroupId,
    /// +1 at every change of the definition.
    pub version: u64,
}

impl TableDef {
    /// All stored columns as an Arrow schema, hidden ones included.
    pub fn arrow_schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.columns.iter().map(field).collect::<Vec<_>>()))
    }

    /// The columns users see; always a prefix of [`Self::arrow_schema`].
    pub fn visible_schema(&self) -> SchemaRef {
        Arc::new(Schema::new(
            self.columns.iter().filter(|c| !c.hidden).map(field).collect::<Vec<_>>(),
        ))
    }

    /// Shard key columns; empty for a reference table.
    pub fn shard_key(&self) -> &[usize] {
        match &self.distribution {
            Distribution::Sharded { key } => key,
            Distribution::Reference => &[],
        }
    }

    /// The columns that identify a row: the primary key, else the hidden row id.
    pub fn row_key(&self) -> Vec<usize> {
        if self.primary_key.is_empty() {
            self.columns.iter().position(|c| c.hidden).into_iter().collect()
        } else {
            self.primary_key.clone()
        }
    }

    /// What stored rows are sorted by: CLUSTER BY, then the row key.
    pub fn storage_order(&self) -> Vec<usize> {
        let key = self
            .row_key()
            .into_iter()
            .filter(|column| !self.cluster_by.contains(column));
        self.cluster_by.iter().copied().chain(key).collect()
    }

    /// Position of a column by its exact name.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == name)
    }

    /// Whether every node has a full copy.
    pub fn is_reference(&self) -> bool {
        self.distribution == Distribution::Reference
    }
}

fn field(column: &ColumnDef) -> Field {
    Field::new(&column.name, column.sql_type.arrow(), column.nullable)
}

/// A table that is being filled and has no name yet (CREATE TABLE AS, an ingest): nobody finds it but who makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingTable {
    /// Its id.
    pub id: TableId,
    /// Milliseconds since 1970 after which whoever made it is gone, and any router drops it.
    pub expires_ms: u64,
}

/// A view: its query text, planned anew at every use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewDef {
    /// Id, also the PostgreSQL OID.
    pub id: TableId,
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// Column names given in CREATE VIEW; empty = the query's.
    pub columns: Vec<String>,
    /// The query.
    pub query: String,
}

/// Tables whose shards always live together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColocationGroup {
    /// Id.
    pub id: GroupId,
    /// Classes of the shard key columns; empty for a reference group.
    pub key_classes: Vec<KeyClass>,
    /// Token range of each shard, ascending and without holes; shard `i` owns `ranges[i]`.
    pub ranges: Vec<TokenRange>,
    /// One shard, a copy on every node.
    pub reference: bool,
}

impl ColocationGroup {
    /// The shard that owns a token.
    pub fn shard_of(&self, token: u16) -> u32 {
        self.ranges.partition_point(|r| r.end <= u32::from(token)) as u32
    }
}
