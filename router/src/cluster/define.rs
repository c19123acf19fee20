//! From a parsed CREATE TABLE to a definition, with every rule about keys.
//!
//! ```text
//!   PRIMARY KEY (a, b) SHARD BY HASH (a)     key rows {a, b}, placed by a
//!   PRIMARY KEY (a, b)                       placed by (a, b)
//!   (no key)                                 hidden int8 __tessera_row_id, placed by it
//!   SHARD BY HASH (b), no primary key        hidden row id identifies rows, b places them
//! ```
//!
//! A primary key must contain the shard key, for uniqueness is checked within a shard.

use std::collections::HashSet;
use tessera_parser::{ColumnSpec, CreateTable, TypeName};
use tessera_proto::sql_type::{KeyClass, SqlType};
use tessera_proto::table::{COLUMNS_MAX, ColumnDef, Distribution, ROW_ID_COLUMN, SHARDS_DEFAULT, SHARDS_MAX, TableDef};
use tessera_proto::{Error, GroupId, Result, TableId};

/// A definition without ids, and how its group must look.
#[derive(Debug, Clone)]
pub struct Draft {
    /// `id` and `group` are 0 until the catalog gives them.
    pub table: TableDef,
    /// Shards asked for; `None` leaves it to the default or the colocated table.
    pub shards: Option<u32>,
    /// Classes of the shard key.
    pub key_classes: Vec<KeyClass>,
}

/// Builds the definition.
///
/// # Errors
/// 42P16, 42P17, 42701, 0A000 and 22023 for keys and counts that cannot be.
pub fn draft(create: &CreateTable, schema: &str) -> Result<Draft> {
    let mut columns: Vec<ColumnDef> = create.columns.iter().map(column).collect();
    check_columns(create)?;
    let position = |name: &String| {
        columns
            .iter()
            .position(|c| c.name == *name)
            .ok_or_else(|| Error::new("42703", format!("column \"{name}\" named in key does not exist")))
    };
    let primary_key = create.primary_key.iter().map(position).collect::<Result<Vec<_>>>()?;
    let sharded = create
        .sharding
        .as_ref()
        .map(|s| s.columns.iter().map(position).collect::<Result<Vec<_>>>())
        .transpose()?;
    let cluster_by = create.cluster_by.iter().map(|name| {
        let found = columns.iter().position(|c| c.name == *name);
        found.ok_or_else(|| Error::new("42703", format!("column \"{name}\" named in CLUSTER BY does not exist")))
    });
    let cluster_by = cluster_by.collect::<Result<Vec<_>>>()?;
    for index in &primary_key {
        check_primary_key(&columns[*index])?;
    }
    if primary_key.is_empty() {
        columns.push(ColumnDef {
            name: ROW_ID_COLUMN.into(),
            sql_type: SqlType::Int8,
            nullable: false,
            default: None,
            hidden: true,
        });
    }
    let distribution = match sharded {
        _ if create.reference => Distribution::Reference,
        Some(key) => Distribution::Sharded { key },
        None if primary_key.is_empty() => Distribution::Sharded {
            key: vec![columns.len() - 1],
        },
        None => Distribution::Sharded {
            key: primary_key.clone(),
        },
    };
    let table = TableDef {
        id: TableId(0),
        schema: schema.into(),
        name: create.name.name.clone(),
        columns,
        primary_key,
        distribution,
        cluster_by,
        group: GroupId(0),
        version: 1,
    };
    check_contains(&table)?;
    let key_classes = table
        .shard_key()
        .iter()
        .map(|i| key_class(&table.columns[*i], create.sharding.is_some()))
        .collect::<Result<Vec<_>>>()?;
    let shards = create.sharding.as_ref().and_then(|s| s.shards);
    if let Some(count) = shards.filter(|n| !(1..=SHARDS_MAX).contains(n)) {
        return Err(Error::new(
            "22023",
            format!("{count} shards asked for: 1 to {SHARDS_MAX} are possible"),
        ));
    }
    Ok(Draft {
        table,
        shards,
        key_classes,
    })
}

impl Draft {
    /// Shards of a group of its own.
    pub fn shard_count(&self) -> u32 {
        self.shards.unwrap_or(SHARDS_DEFAULT)
    }
}

fn column(spec: &ColumnSpec) -> ColumnDef {
    ColumnDef {
        name: spec.name.clone(),
        sql_type: sql_type(spec.data_type),
        nullable: !spec.not_null,
        default: spec.default_text.clone(),
        hidden: false,
    }
}

/// A column of a table that was not written as SQL.
pub fn column_spec(name: &str, stored: SqlType, not_null: bool) -> ColumnSpec {
    let data_type = match stored {
        SqlType::Bool => TypeName::Bool,
        SqlType::Int2 => TypeName::Int2,
        SqlType::Int4 => TypeName::Int4,
        SqlType::Int8 => TypeName::Int8,
        SqlType::Float4 => TypeName::Float4,
        SqlType::Float8 => TypeName::Float8,
        SqlType::Numeric { precision, scale } => TypeName::Numeric { precision, scale },
        SqlType::Text => TypeName::Text,
        SqlType::Varchar(length) => TypeName::Varchar(length),
        SqlType::Char(length) => TypeName::Char(length),
        SqlType::Date => TypeName::Date,
        SqlType::Time => TypeName::Time,
        SqlType::Timestamp => TypeName::Timestamp,
        SqlType::TimestampTz => TypeName::TimestampTz,
        SqlType::Interval => TypeName::Interval,
        SqlType::Bytea => TypeName::Bytea,
        SqlType::Uuid => TypeName::Uuid,
    };
    ColumnSpec {
        name: name.to_owned(),
        data_type,
        not_null,
        default: None,
        default_text: None,
        position: 0,
    }
}

/// The stored type of a parsed one.
pub fn sql_type(name: TypeName) -> SqlType {
    match name {
        TypeName::Bool => SqlType::Bool,
        TypeName::Int2 => SqlType::Int2,
        TypeName::Int4 => SqlType::Int4,
        TypeName::Int8 => SqlType::Int8,
        TypeName::Float4 => SqlType::Float4,
        TypeName::Float8 => SqlType::Float8,
        TypeName::Numeric { precision, scale } => SqlType::Numeric { precision, scale },
        TypeName::Text => SqlType::Text,
        TypeName::Varchar(length) => SqlType::Varchar(length),
        TypeName::Char(length) => SqlType::Char(length),
        TypeName::Date => SqlType::Date,
        TypeName::Time => SqlType::Time,
        TypeName::Timestamp => SqlType::Timestamp,
        TypeName::TimestampTz => SqlType::TimestampTz,
        TypeName::Interval => SqlType::Interval,
        TypeName::Bytea => SqlType::Bytea,
        TypeName::Uuid => SqlType::Uuid,
    }
}

fn check_columns(create: &CreateTable) -> Result<()> {
    if create.columns.is_empty() {
        return Err(Error::unsupported(
            "a table without columns is not supported",
            "give it at least one column",
        ));
    }
    // One place is for the hidden row id.
    if create.columns.len() >= COLUMNS_MAX {
        return Err(Error::new(
            "54011",
            format!("tables can have at most {} columns", COLUMNS_MAX - 1),
        ));
    }
    let at = |spec: &ColumnSpec, message: String| {
        let mut error = Error::new("42701", message);
        error.position = Some(spec.position).filter(|position| *position > 0);
        Err(error)
    };
    let mut seen = HashSet::new();
    for spec in &create.columns {
        if spec.name == ROW_ID_COLUMN {
            return at(spec, format!("column name \"{ROW_ID_COLUMN}\" is used by the system"));
        }
        if !seen.insert(&spec.name) {
            return at(spec, format!("column \"{}\" specified more than once", spec.name));
        }
    }
    Ok(())
}

fn check_primary_key(column: &ColumnDef) -> Result<()> {
    match column.sql_type {
        SqlType::Float4 | SqlType::Float8 | SqlType::Interval => {
            let message = format!(
                "column \"{}\" of type {} cannot be part of a primary key",
                column.name, column.sql_type
            );
            Err(Error::unsupported(
                message,
                "use an integer, numeric, text, date, timestamp, uuid or bytea column",
            ))
        }
        _ => Ok(()),
    }
}

fn key_class(column: &ColumnDef, declared: bool) -> Result<KeyClass> {
    column.sql_type.key_class().ok_or_else(|| {
        let hint = if declared {
            "choose another column for SHARD BY HASH"
        } else {
            "name other columns with SHARD BY HASH (column); they must be part of the primary key"
        };
        Error::unsupported(
            format!(
                "column \"{}\" of type {} cannot be part of a shard key",
                column.name, column.sql_type
            ),
            hint,
        )
    })
}

fn check_contains(table: &TableDef) -> Result<()> {
    if table.primary_key.is_empty() {
        return Ok(());
    }
    let Some(missing) = table.shard_key().iter().find(|i| !table.primary_key.contains(i)) else {
        return Ok(());
    };
    let name = &table.columns[*missing].name;
    let message = format!(
        "primary key of table \"{}\" must contain the shard key column \"{name}\"",
        table.name
    );
    Err(Error::new("42P16", message)
        .with_detail("uniqueness is checked within one shard")
        .with_hint(format!(
            "add \"{name}\" to the primary key, or shard by columns of the primary key"
        )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_parser::Statement;

    fn build(sql: &str) -> Result<Draft> {
        match &tessera_parser::parse(sql).unwrap()[0].statement {
            Statement::CreateTable(create) => draft(create, "public"),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn check(sql: &str, expected: Result<(&[usize], &[usize]), &str>) {
        let got = build(sql);
        let got = got
            .as_ref()
            .map(|d| (d.table.primary_key.as_slice(), d.table.shard_key()))
            .map_err(|e| e.code.as_str());
        assert_eq!(got, expected, "{sql}");
    }

    #[test]
    fn keys_decide_placement_and_must_fit_together() {
        check(
            "create table t (a int8, b text, primary key (b, a)) shard by hash (a)",
            Ok((&[1, 0], &[0])),
        );
        check(
            "create table t (a int8, b text, primary key (b, a))",
            Ok((&[1, 0], &[1, 0])),
        );
        check("create table t (a int8, b text)", Ok((&[], &[2])));
        check("create table t (a int8, b text) shard by hash (b)", Ok((&[], &[1])));
        check("create reference table t (a int8 primary key, b text)", Ok((&[0], &[])));
        check(
            "create table t (a int8 primary key, b text) shard by hash (b)",
            Err("42P16"),
        );
        check("create table t (a float8 primary key)", Err("0A000"));
        check("create table t (a float8) shard by hash (a)", Err("0A000"));
        check("create table t (a time primary key)", Err("0A000"));
        check("create table t (a int) shard by hash (a) shards 1025", Err("22023"));
        check("create table t (__tessera_row_id int)", Err("42701"));
    }
}
