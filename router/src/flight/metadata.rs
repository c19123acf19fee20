//! Metadata calls: catalogs, schemas, tables, keys, types, from one snapshot of the catalog.
//!
//! ```text
//!   GetFlightInfo(CommandGetTables ...) ──▶ the answer's schema, and the command itself as ticket
//!   DoGet(CommandGetTables ...)         ──▶ one batch
//! ```
//!
//! Drivers check these schemas strictly, nullability included; arrow-flight's builders have them. There are no foreign keys, so
//! imported and exported keys are empty. Not here: the computed tables of `pg_catalog` and its kin, which SQL can read.

use super::sessions::{DATABASE, FlightSession};
use super::sql_info;
use crate::views::SCHEMAS;
use arrow_flight::error::FlightError;
use arrow_flight::sql::metadata::{GetDbSchemasBuilder, GetTablesBuilder};
use arrow_flight::sql::{
    Command, CommandGetCatalogs, CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetTableTypes, CommandGetTables,
};
use datafusion::arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use std::collections::HashMap;
use std::sync::Arc;
use tessera_meta::view::ClusterView;
use tessera_proto::flight::rows::client_schema;
use tessera_proto::sql_type::SqlType;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result};

/// What tables and views are called.
const TABLE: &str = "TABLE";
const VIEW: &str = "VIEW";
/// Most filters or numbers in one command: each is compared with every row.
const LIST_MAX: usize = 1_000;
/// Longest name pattern.
const PATTERN_BYTES_MAX: usize = 1_000;

/// The answer's schema, without making it; `None` for what is no metadata command.
///
/// # Errors
/// None is expected.
pub(super) fn schema(command: &Command) -> Result<Option<SchemaRef>> {
    Ok(Some(match command {
        Command::CommandGetCatalogs(_) => CommandGetCatalogs {}.into_builder().schema(),
        Command::CommandGetDbSchemas(command) => command.clone().into_builder().schema(),
        Command::CommandGetTables(command) => command.clone().into_builder().schema(),
        Command::CommandGetTableTypes(_) => CommandGetTableTypes {}.into_builder().schema(),
        Command::CommandGetPrimaryKeys(_) => primary_keys_schema(),
        Command::CommandGetExportedKeys(_)
        | Command::CommandGetImportedKeys(_)
        | Command::CommandGetCrossReference(_) => foreign_keys_schema(),
        Command::CommandGetSqlInfo(_) => sql_info::sql_info()?.schema(),
        Command::CommandGetXdbcTypeInfo(_) => sql_info::types()?.schema(),
        _ => return Ok(None),
    }))
}

/// The answer; `None` for what is no metadata command.
///
/// # Errors
/// 54000 for lists too long.
pub(super) async fn batch(
    view: &ClusterView,
    session: &FlightSession,
    command: Command,
) -> Result<Option<RecordBatch>> {
    Ok(Some(match command {
        Command::CommandGetCatalogs(command) => {
            let mut builder = command.into_builder();
            builder.append(DATABASE);
            builder.build().map_err(building)?
        }
        Command::CommandGetDbSchemas(command) => schemas(view, command)?,
        Command::CommandGetTables(command) => tables(view, session, command).await?,
        Command::CommandGetTableTypes(command) => {
            let mut builder = command.into_builder();
            [TABLE, VIEW].into_iter().for_each(|name| builder.append(name));
            builder.build().map_err(building)?
        }
        Command::CommandGetPrimaryKeys(command) => primary_keys(view, session, &command)?,
        Command::CommandGetExportedKeys(_)
        | Command::CommandGetImportedKeys(_)
        | Command::CommandGetCrossReference(_) => RecordBatch::new_empty(foreign_keys_schema()),
        Command::CommandGetSqlInfo(command) => {
            check_list(command.info.len())?;
            command.into_builder(sql_info::sql_info()?).build().map_err(building)?
        }
        Command::CommandGetXdbcTypeInfo(command) => {
            command.into_builder(sql_info::types()?).build().map_err(building)?
        }
        _ => return Ok(None),
    }))
}

fn building(error: FlightError) -> Error {
    match error {
        // A LIKE pattern that ends in its escape, for instance.
        FlightError::Arrow(error) => Error::new("22025", format!("invalid filter: {error}")),
        other => Error::internal(format!("building metadata: {other}")),
    }
}

fn check_list(length: usize) -> Result<()> {
    match length {
        0..=LIST_MAX => Ok(()),
        _ => Err(Error::new(
            "54000",
            format!("{length} filters in one command; the limit is {LIST_MAX}"),
        )),
    }
}

fn check_pattern(pattern: Option<&String>) -> Result<()> {
    match pattern.map_or(0, String::len) {
        0..=PATTERN_BYTES_MAX => Ok(()),
        _ => Err(Error::new(
            "54000",
            format!("a name pattern has at most {PATTERN_BYTES_MAX} bytes"),
        )),
    }
}

fn schemas(view: &ClusterView, command: CommandGetDbSchemas) -> Result<RecordBatch> {
    check_pattern(command.db_schema_filter_pattern.as_ref())?;
    let mut builder: GetDbSchemasBuilder = command.into_builder();
    let names = view.schemas.iter().map(String::as_str).chain(SCHEMAS);
    names.for_each(|name| builder.append(DATABASE, name));
    builder.build().map_err(building)
}

async fn tables(view: &ClusterView, session: &FlightSession, command: CommandGetTables) -> Result<RecordBatch> {
    check_list(command.table_types.len())?;
    check_pattern(command.db_schema_filter_pattern.as_ref())?;
    check_pattern(command.table_name_filter_pattern.as_ref())?;
    let mut builder: GetTablesBuilder = command.into_builder();
    for def in view.named_tables() {
        let added = builder.append(DATABASE, &def.schema, &def.name, TABLE, &table_schema(def));
        added.map_err(building)?;
    }
    for def in view.views.values() {
        let schema = match builder.include_schema() {
            true => view_schema(session, &def.schema, &def.name).await,
            false => Schema::empty(),
        };
        let added = builder.append(DATABASE, &def.schema, &def.name, VIEW, &schema);
        added.map_err(building)?;
    }
    builder.build().map_err(building)
}

/// The table's columns as a query returns them, with what drivers show of their types.
fn table_schema(def: &TableDef) -> Schema {
    let plain = client_schema(&def.visible_schema());
    let columns = def.columns.iter().filter(|c| !c.hidden);
    let fields = plain.fields().iter().zip(columns).map(|(field, column)| {
        let mut about = HashMap::new();
        let mut put = |name: &str, value: String| about.insert(format!("ARROW:FLIGHT:SQL:{name}"), value);
        let full = column.sql_type.to_string();
        put("TYPE_NAME", full.split('(').next().unwrap_or_default().to_owned());
        match column.sql_type {
            SqlType::Numeric { precision, scale } => {
                put("PRECISION", precision.to_string());
                put("SCALE", scale.to_string());
            }
            SqlType::Char(length) | SqlType::Varchar(Some(length)) => drop(put("PRECISION", length.to_string())),
            _ => {}
        }
        field.as_ref().clone().with_metadata(about)
    });
    Schema::new(fields.collect::<Vec<_>>())
}

/// The view's columns; none when its query cannot be planned any more.
async fn view_schema(session: &FlightSession, schema: &str, name: &str) -> Schema {
    let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let sql = format!("SELECT * FROM {}.{}", quote(schema), quote(name));
    let described = async {
        let statement = super::statement::parse_one(&sql).await?;
        session.copy().describe(&statement, &[]).await
    };
    match described.await.map(|d| d.columns) {
        Ok(Some(columns)) => client_schema(&columns).as_ref().clone(),
        _ => Schema::empty(),
    }
}

fn primary_keys_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("key_name", DataType::Utf8, true),
    ]))
}

fn foreign_keys_schema() -> SchemaRef {
    let side = |side: &str| {
        [
            ("catalog_name", true),
            ("db_schema_name", true),
            ("table_name", false),
            ("column_name", false),
        ]
        .map(|(name, nullable)| Field::new(format!("{side}_{name}"), DataType::Utf8, nullable))
    };
    let rest = [
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("fk_key_name", DataType::Utf8, true),
        Field::new("pk_key_name", DataType::Utf8, true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ];
    let fields: Vec<Field> = side("pk").into_iter().chain(side("fk")).chain(rest).collect();
    Arc::new(Schema::new(fields))
}

fn primary_keys(view: &ClusterView, session: &FlightSession, command: &CommandGetPrimaryKeys) -> Result<RecordBatch> {
    let here = command.catalog.as_deref().is_none_or(|c| c == DATABASE);
    let schema = match &command.db_schema {
        Some(schema) => Some(schema.clone()),
        None => session.copy().setting("search_path").and_then(|path| {
            let mut names = path.split(',').map(|s| s.trim().trim_matches('"').to_owned());
            names.find(|schema| view.table(schema, &command.table).is_some())
        }),
    };
    let def = schema
        .filter(|_| here)
        .and_then(|schema| view.table(&schema, &command.table));
    let keys: Vec<&str> = def
        .map(|def| def.primary_key.iter().map(|i| def.columns[*i].name.as_str()).collect())
        .unwrap_or_default();
    let same = |value: Option<String>| -> ArrayRef { Arc::new(StringArray::from(vec![value; keys.len()])) };
    let columns: Vec<ArrayRef> = vec![
        same(Some(DATABASE.to_owned())),
        same(def.map(|d| d.schema.clone())),
        same(def.map(|d| d.name.clone())),
        Arc::new(StringArray::from(keys.clone())),
        Arc::new(Int32Array::from_iter_values(1..=keys.len() as i32)),
        same(def.map(|d| format!("{}_pkey", d.name))),
    ];
    RecordBatch::try_new(primary_keys_schema(), columns).map_err(|e| Error::internal(format!("building metadata: {e}")))
}
