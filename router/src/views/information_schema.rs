//! `information_schema`: tables, columns, schemata, views, as the SQL standard and PostgreSQL name them.

use super::SystemSource;
use super::rows::{Kind, Value, row, table as build};
use Kind::{Int, Text};
use datafusion::catalog::TableProvider;
use std::sync::Arc;
use tessera_proto::sql_type::SqlType;

pub(super) fn table(source: &SystemSource, name: &str) -> Option<Arc<dyn TableProvider>> {
    match name {
        "tables" => tables(source),
        "columns" => columns(source),
        "schemata" => schemata(source),
        "views" => views(source),
        _ => None,
    }
}

fn tables(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let database = source.database.as_str();
    let base = source
        .view
        .named_tables()
        .map(|t| row![database, t.schema.as_str(), t.name.as_str(), "BASE TABLE"]);
    let views = source
        .view
        .views
        .values()
        .map(|v| row![database, v.schema.as_str(), v.name.as_str(), "VIEW"]);
    build(
        &[
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("table_type", Text),
        ],
        &base.chain(views).collect::<Vec<_>>(),
    )
}

fn columns(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let names = [
        ("table_catalog", Text),
        ("table_schema", Text),
        ("table_name", Text),
        ("column_name", Text),
        ("ordinal_position", Int),
        ("column_default", Text),
        ("is_nullable", Text),
        ("data_type", Text),
        ("character_maximum_length", Int),
        ("numeric_precision", Int),
        ("numeric_scale", Int),
    ];
    let mut rows = vec![];
    for def in source.view.named_tables() {
        for (i, column) in def.columns.iter().enumerate().filter(|(_, c)| !c.hidden) {
            let length = match column.sql_type {
                SqlType::Char(n) | SqlType::Varchar(Some(n)) => Value::Int(i64::from(n)),
                _ => Value::Null,
            };
            let (precision, scale) = match column.sql_type {
                SqlType::Numeric { precision, scale } => {
                    (Value::Int(i64::from(precision)), Value::Int(i64::from(scale)))
                }
                _ => (Value::Null, Value::Null),
            };
            let full = column.sql_type.to_string();
            let bare = full.split('(').next().unwrap_or_default().to_owned();
            rows.push(vec![
                Value::from(source.database.as_str()),
                def.schema.as_str().into(),
                def.name.as_str().into(),
                column.name.as_str().into(),
                Value::Int(i as i64 + 1),
                column.default.clone().into(),
                if column.nullable { "YES" } else { "NO" }.into(),
                bare.into(),
                length,
                precision,
                scale,
            ]);
        }
    }
    build(&names, &rows)
}

fn schemata(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let names = source.view.schemas.iter().map(String::as_str).chain(super::SCHEMAS);
    let rows: Vec<_> = names
        .map(|name| row![source.database.as_str(), name, source.user.as_str()])
        .collect();
    build(
        &[("catalog_name", Text), ("schema_name", Text), ("schema_owner", Text)],
        &rows,
    )
}

fn views(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let rows = source.view.views.values().map(|v| {
        row![
            source.database.as_str(),
            v.schema.as_str(),
            v.name.as_str(),
            v.query.as_str()
        ]
    });
    build(
        &[
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("view_definition", Text),
        ],
        &rows.collect::<Vec<_>>(),
    )
}
