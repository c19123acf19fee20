//! `pg_catalog`: the tables that psql and drivers read, from the catalog snapshot.
//!
//! Populated: pg_class, pg_namespace, pg_attribute, pg_attrdef, pg_index, pg_constraint, pg_type, pg_database, pg_roles,
//! pg_am, pg_tables, pg_views, pg_stats (pg_stats.rs), pg_settings, pg_description. Present and empty: what Tessera does not have.

use super::rows::{Kind, Value, row, table as build};
use super::{OWNER_OID, SystemSource, primary_key_oid, schema_oid};
use Kind::{Bool, Int, Text};
use datafusion::catalog::TableProvider;
use std::sync::Arc;
use tessera_proto::sql_type::SqlType;
use tessera_proto::table::TableDef;

/// Catalogs of things that do not exist here.
pub(super) const EMPTY: [&str; 18] = [
    "pg_trigger",
    "pg_policy",
    "pg_policies",
    "pg_publication",
    "pg_publication_rel",
    "pg_publication_namespace",
    "pg_statistic_ext",
    "pg_inherits",
    "pg_partitioned_table",
    "pg_foreign_table",
    "pg_foreign_server",
    "pg_extension",
    "pg_sequence",
    "pg_sequences",
    "pg_matviews",
    "pg_event_trigger",
    "pg_enum",
    "pg_range",
];

pub(super) fn table(source: &SystemSource, name: &str) -> Option<Arc<dyn TableProvider>> {
    match name {
        "pg_class" => class(source),
        "pg_namespace" => namespace(source),
        "pg_attribute" => attribute(source),
        "pg_attrdef" => attrdef(source),
        "pg_index" => index(source),
        "pg_constraint" => constraint(source),
        "pg_type" => types(),
        "pg_database" => database(source),
        "pg_roles" | "pg_user" | "pg_authid" => roles(source),
        "pg_am" => build(
            &[("oid", Int), ("amname", Text), ("amtype", Text)],
            &[row![2_i64, "heap", "t"], row![403_i64, "btree", "i"]],
        ),
        "pg_collation" => build(
            &[("oid", Int), ("collname", Text), ("collnamespace", Int)],
            &[row![950_i64, "C", super::PG_CATALOG_OID]],
        ),
        "pg_tables" => tables(source),
        "pg_views" => views(source),
        "pg_stats" => super::pg_stats::table(source),
        "pg_description" => build(
            &[
                ("objoid", Int),
                ("classoid", Int),
                ("objsubid", Int),
                ("description", Text),
            ],
            &[],
        ),
        "pg_auth_members" => build(
            &[
                ("roleid", Int),
                ("member", Int),
                ("grantor", Int),
                ("admin_option", Bool),
            ],
            &[],
        ),
        "pg_settings" => build(
            &[("name", Text), ("setting", Text)],
            &[
                row!["server_version", crate::settings::SERVER_VERSION],
                row!["server_version_num", "150000"],
            ],
        ),
        name if EMPTY.contains(&name) => build(&[("oid", Int)], &[]),
        _ => None,
    }
}

fn class(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let columns = [
        ("oid", Int),
        ("relname", Text),
        ("relnamespace", Int),
        ("reltype", Int),
        ("reloftype", Int),
        ("relowner", Int),
        ("relam", Int),
        ("relfilenode", Int),
        ("reltablespace", Int),
        ("relpages", Int),
        ("reltuples", Int),
        ("reltoastrelid", Int),
        ("relhasindex", Bool),
        ("relisshared", Bool),
        ("relpersistence", Text),
        ("relkind", Text),
        ("relnatts", Int),
        ("relchecks", Int),
        ("relhasrules", Bool),
        ("relhastriggers", Bool),
        ("relhassubclass", Bool),
        ("relrowsecurity", Bool),
        ("relforcerowsecurity", Bool),
        ("relispopulated", Bool),
        ("relreplident", Text),
        ("relispartition", Bool),
        ("relpartbound", Text),
        ("relacl", Text),
    ];
    let relation = |oid: i64, name: &str, schema: &str, kind: &str, columns: usize, indexed: bool, rows: i64| {
        let am = match kind {
            "r" => 2_i64,
            "i" => 403,
            _ => 0,
        };
        row![
            oid,
            name,
            schema_oid(schema),
            0_i64,
            0_i64,
            OWNER_OID,
            am,
            oid,
            0_i64,
            0_i64,
            rows,
            0_i64,
            indexed,
            false,
            "p",
            kind,
            columns as i64,
            0_i64,
            false,
            false,
            false,
            false,
            false,
            true,
            "d",
            false,
            Value::Null,
            Value::Null,
        ]
    };
    let mut rows = vec![];
    for def in source.view.named_tables() {
        let visible = def.columns.iter().filter(|c| !c.hidden).count();
        let keyed = !def.primary_key.is_empty();
        rows.push(relation(
            def.id.0 as i64,
            &def.name,
            &def.schema,
            "r",
            visible,
            keyed,
            row_count(source, def),
        ));
        if keyed {
            let name = format!("{}_pkey", def.name);
            rows.push(relation(
                primary_key_oid(def.id),
                &name,
                &def.schema,
                "i",
                def.primary_key.len(),
                false,
                0,
            ));
        }
    }
    for view in source.view.views.values() {
        rows.push(relation(
            view.id.0 as i64,
            &view.name,
            &view.schema,
            "v",
            view.columns.len(),
            false,
            0,
        ));
    }
    build(&columns, &rows)
}

/// Rows of a table as its shards' leaders last told; -1 as PostgreSQL's "never counted".
fn row_count(source: &SystemSource, def: &TableDef) -> i64 {
    let counts = source
        .statuses
        .values()
        .flat_map(|s| &s.shards)
        .filter(|s| s.leader)
        .flat_map(|s| &s.tables)
        .filter(|t| t.table == def.id.0);
    counts.map(|t| t.rows as i64).reduce(|a, b| a + b).unwrap_or(-1)
}

fn namespace(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let names = source.view.schemas.iter().map(String::as_str).chain(super::SCHEMAS);
    let rows: Vec<_> = names
        .map(|name| row![schema_oid(name), name, OWNER_OID, Value::Null])
        .collect();
    build(
        &[("oid", Int), ("nspname", Text), ("nspowner", Int), ("nspacl", Text)],
        &rows,
    )
}

fn attribute(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let columns = [
        ("attrelid", Int),
        ("attname", Text),
        ("atttypid", Int),
        ("attlen", Int),
        ("attnum", Int),
        ("attndims", Int),
        ("atttypmod", Int),
        ("attnotnull", Bool),
        ("atthasdef", Bool),
        ("attidentity", Text),
        ("attgenerated", Text),
        ("attisdropped", Bool),
        ("attislocal", Bool),
        ("attcollation", Int),
        ("attacl", Text),
        // Not in PostgreSQL: the default's text, so that psql's correlated subquery over pg_attrdef can be a column.
        (DEFAULT_COLUMN, Text),
    ];
    let mut rows = vec![];
    for def in source.view.named_tables() {
        for (i, column) in def.columns.iter().enumerate().filter(|(_, c)| !c.hidden) {
            let (oid, typmod) = type_oid(column.sql_type);
            let default = column.default.clone();
            rows.push(row![
                def.id.0,
                column.name.as_str(),
                oid,
                -1_i64,
                i as i64 + 1,
                0_i64,
                typmod,
                !column.nullable,
                default.is_some(),
                "",
                "",
                false,
                true,
                0_i64,
                Value::Null,
                default,
            ]);
        }
    }
    build(&columns, &rows)
}

/// See [`attribute`].
pub(super) const DEFAULT_COLUMN: &str = "tessera_default";

fn attrdef(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let mut rows = vec![];
    for def in source.view.named_tables() {
        for (i, column) in def.columns.iter().enumerate().filter(|(_, c)| c.default.is_some()) {
            rows.push(row![
                def.id.0 * 2_000 + i as u64,
                def.id.0,
                i as i64 + 1,
                column.default.clone()
            ]);
        }
    }
    build(
        &[("oid", Int), ("adrelid", Int), ("adnum", Int), ("adbin", Text)],
        &rows,
    )
}

fn index(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let columns = [
        ("indexrelid", Int),
        ("indrelid", Int),
        ("indnatts", Int),
        ("indisunique", Bool),
        ("indisprimary", Bool),
        ("indisclustered", Bool),
        ("indisvalid", Bool),
        ("indisready", Bool),
        ("indislive", Bool),
        ("indisreplident", Bool),
        ("indkey", Text),
    ];
    let keyed = source.view.named_tables().filter(|t| !t.primary_key.is_empty());
    let rows: Vec<_> = keyed
        .map(|def| {
            let key: Vec<_> = def.primary_key.iter().map(|c| (c + 1).to_string()).collect();
            let width = def.primary_key.len() as i64;
            row![
                primary_key_oid(def.id),
                def.id.0,
                width,
                true,
                true,
                false,
                true,
                true,
                true,
                false,
                key.join(" ")
            ]
        })
        .collect();
    build(&columns, &rows)
}

fn constraint(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let columns = [
        ("oid", Int),
        ("conname", Text),
        ("connamespace", Int),
        ("contype", Text),
        ("condeferrable", Bool),
        ("condeferred", Bool),
        ("convalidated", Bool),
        ("conrelid", Int),
        ("conindid", Int),
        ("conparentid", Int),
        ("confrelid", Int),
        ("conkey", Text),
    ];
    let keyed = source.view.named_tables().filter(|t| !t.primary_key.is_empty());
    let rows: Vec<_> = keyed
        .map(|def| {
            let key: Vec<_> = def.primary_key.iter().map(|c| (c + 1).to_string()).collect();
            let (oid, name) = (primary_key_oid(def.id), format!("{}_pkey", def.name));
            row![
                oid,
                name,
                schema_oid(&def.schema),
                "p",
                false,
                false,
                true,
                def.id.0,
                oid,
                0_i64,
                0_i64,
                format!("{{{}}}", key.join(","))
            ]
        })
        .collect();
    build(&columns, &rows)
}

/// PostgreSQL's OID and type modifier of a column type.
pub(super) fn type_oid(sql_type: SqlType) -> (i64, i64) {
    match sql_type {
        SqlType::Bool => (16, -1),
        SqlType::Bytea => (17, -1),
        SqlType::Int8 => (20, -1),
        SqlType::Int2 => (21, -1),
        SqlType::Int4 => (23, -1),
        SqlType::Text => (25, -1),
        SqlType::Float4 => (700, -1),
        SqlType::Float8 => (701, -1),
        SqlType::Char(n) => (1042, i64::from(n) + 4),
        SqlType::Varchar(n) => (1043, n.map_or(-1, |n| i64::from(n) + 4)),
        SqlType::Date => (1082, -1),
        SqlType::Time => (1083, -1),
        SqlType::Timestamp => (1114, -1),
        SqlType::TimestampTz => (1184, -1),
        SqlType::Interval => (1186, -1),
        SqlType::Numeric { precision, scale } => {
            (1700, ((i64::from(precision) << 16) | (i64::from(scale) & 0x7ff)) + 4)
        }
        SqlType::Uuid => (2950, -1),
    }
}

/// Name of a type by its OID and modifier, as `format_type` prints it.
pub(super) fn type_name(oid: i64, typmod: i64) -> Option<String> {
    let length = u32::try_from(typmod - 4).ok();
    let sql_type = match oid {
        16 => SqlType::Bool,
        17 => SqlType::Bytea,
        20 => SqlType::Int8,
        21 => SqlType::Int2,
        23 => SqlType::Int4,
        25 => SqlType::Text,
        700 => SqlType::Float4,
        701 => SqlType::Float8,
        1042 => SqlType::Char(length.unwrap_or(1)),
        1043 => SqlType::Varchar(length),
        1082 => SqlType::Date,
        1083 => SqlType::Time,
        1114 => SqlType::Timestamp,
        1184 => SqlType::TimestampTz,
        1186 => SqlType::Interval,
        1700 => match length {
            None => return Some("numeric".into()),
            Some(packed) => SqlType::Numeric {
                precision: (packed >> 16) as u8,
                scale: (packed & 0x7ff) as i8,
            },
        },
        2950 => SqlType::Uuid,
        _ => return None,
    };
    Some(sql_type.to_string())
}

fn types() -> Option<Arc<dyn TableProvider>> {
    let columns = [
        ("oid", Int),
        ("typname", Text),
        ("typnamespace", Int),
        ("typowner", Int),
        ("typlen", Int),
        ("typbyval", Bool),
        ("typtype", Text),
        ("typcategory", Text),
        ("typisdefined", Bool),
        ("typdelim", Text),
        ("typrelid", Int),
        ("typelem", Int),
        ("typarray", Int),
        ("typinput", Text),
        ("typreceive", Text),
        ("typbasetype", Int),
        ("typtypmod", Int),
        ("typcollation", Int),
    ];
    // oid, name, length, category, array type
    let known: [(i64, &str, i64, &str, i64); 19] = [
        (16, "bool", 1, "B", 1000),
        (17, "bytea", -1, "U", 1001),
        (19, "name", 64, "S", 1003),
        (20, "int8", 8, "N", 1016),
        (21, "int2", 2, "N", 1005),
        (23, "int4", 4, "N", 1007),
        (25, "text", -1, "S", 1009),
        (26, "oid", 4, "N", 1028),
        (700, "float4", 4, "N", 1021),
        (701, "float8", 8, "N", 1022),
        (1042, "bpchar", -1, "S", 1014),
        (1043, "varchar", -1, "S", 1015),
        (1082, "date", 4, "D", 1182),
        (1083, "time", 8, "D", 1183),
        (1114, "timestamp", 8, "D", 1115),
        (1184, "timestamptz", 8, "D", 1185),
        (1186, "interval", 16, "T", 1187),
        (1700, "numeric", -1, "N", 1231),
        (2950, "uuid", 16, "U", 2951),
    ];
    let rows: Vec<_> = known
        .iter()
        .map(|&(oid, name, length, category, array)| {
            row![
                oid,
                name,
                super::PG_CATALOG_OID,
                OWNER_OID,
                length,
                (1..=8).contains(&length),
                "b",
                category,
                true,
                ",",
                0_i64,
                0_i64,
                array,
                format!("{name}in"),
                format!("{name}recv"),
                0_i64,
                -1_i64,
                0_i64,
            ]
        })
        .collect();
    build(&columns, &rows)
}

fn database(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let columns = [
        ("oid", Int),
        ("datname", Text),
        ("datdba", Int),
        ("encoding", Int),
        ("datlocprovider", Text),
        ("datistemplate", Bool),
        ("datallowconn", Bool),
        ("datcollate", Text),
        ("datctype", Text),
        ("daticulocale", Text),
        ("datacl", Text),
    ];
    build(
        &columns,
        &[row![
            5_i64,
            source.database.as_str(),
            OWNER_OID,
            6_i64,
            "c",
            false,
            true,
            "C",
            "C",
            Value::Null,
            Value::Null
        ]],
    )
}

fn roles(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let columns = [
        ("oid", Int),
        ("rolname", Text),
        ("rolsuper", Bool),
        ("rolinherit", Bool),
        ("rolcreaterole", Bool),
        ("rolcreatedb", Bool),
        ("rolcanlogin", Bool),
        ("rolreplication", Bool),
        ("rolbypassrls", Bool),
        ("rolconnlimit", Int),
        ("rolvaliduntil", Text),
    ];
    build(
        &columns,
        &[row![
            OWNER_OID,
            source.user.as_str(),
            true,
            true,
            true,
            true,
            true,
            true,
            true,
            -1_i64,
            Value::Null
        ]],
    )
}

fn tables(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let columns = [
        ("schemaname", Text),
        ("tablename", Text),
        ("tableowner", Text),
        ("hasindexes", Bool),
    ];
    let rows = source.view.named_tables().map(|t| {
        row![
            t.schema.as_str(),
            t.name.as_str(),
            source.user.as_str(),
            !t.primary_key.is_empty()
        ]
    });
    build(&columns, &rows.collect::<Vec<_>>())
}

fn views(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let columns = [
        ("schemaname", Text),
        ("viewname", Text),
        ("viewowner", Text),
        ("definition", Text),
    ];
    let rows = source.view.views.values().map(|v| {
        row![
            v.schema.as_str(),
            v.name.as_str(),
            source.user.as_str(),
            v.query.as_str()
        ]
    });
    build(&columns, &rows.collect::<Vec<_>>())
}
