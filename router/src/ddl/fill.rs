//! A table that gets its rows before its name: CREATE TABLE AS, and ingests that make their table.
//!
//! ```text
//!   create: /table, /pending ──▶ write rows, staged on the shards ──▶ commit ──▶ publish: /pending gone, /name there
//!                dropped, failed, client gone: dropped by its id          router gone: dropped when it expires
//! ```
//!
//! Others see the table with all of its rows, or not at all. The name is taken last: when somebody else was faster, the
//! statement fails and theirs stays.

use super::create;
use crate::cluster::catalog_store::{self, Begin};
use crate::cluster::define::{self, Draft};
use crate::engine::{Engine, VIEW_WAIT};
use crate::ingest::insert::targets;
use crate::ingest::{TableWriter, copy_in};
use crate::session::StatementContext;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use std::sync::Arc;
use tessera_parser::{ColumnSpec, CreateTable};
use tessera_proto::clock::now_ms;
use tessera_proto::sql_type::SqlType;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result};

/// What a statement may take beyond its own time: a commit that was begun, and clocks that differ.
const EXPIRY_SLACK_MS: u64 = 300_000;

/// A table being filled. Dropping it drops the table.
#[derive(Debug)]
pub(crate) struct Filling {
    context: StatementContext,
    made: Made,
    writer: TableWriter,
    notices: Vec<Error>,
}

impl Filling {
    /// Makes the table; nobody else finds it.
    ///
    /// # Errors
    /// Those of CREATE TABLE.
    pub(crate) async fn create(context: &StatementContext, create: &CreateTable, schema: &str) -> Result<Self> {
        let draft: Draft = define::draft(create, schema)?;
        let expires = now_ms() + context.deadline_ms() + EXPIRY_SLACK_MS;
        let (table, notices) = create::make(context, create, &draft, Begin::Pending(expires)).await?;
        let made = Made {
            engine: context.engine.clone(),
            table: table.clone(),
        };
        let columns = targets(&table, &[])?;
        let writer = TableWriter::new(context, table, &columns).await?;
        Ok(Self {
            context: context.clone(),
            made,
            writer,
            notices,
        })
    }

    /// Adds rows: the table's columns in order. Waits while shards are busy.
    ///
    /// # Errors
    /// Casts, NULLs, a shard that gave up, 57014.
    pub(crate) async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.context.bounded(self.writer.write(batch)).await
    }

    /// Makes the rows durable and the table visible; the number of rows, and what is worth knowing.
    ///
    /// # Errors
    /// 42P07 when the name was taken meanwhile; 40003: nobody knows.
    pub(crate) async fn finish(self) -> Result<(u64, Vec<Error>)> {
        let (rows, _) = self.writer.finish().await?;
        let views = self.made.engine.views();
        let revision = catalog_store::publish(views, self.made.table.id).await?;
        views.at_least(revision, VIEW_WAIT).await?;
        copy_in::refresh_soon(&self.made.engine);
        Ok((rows, self.notices))
    }
}

/// Drops the table, unless it got its name.
#[derive(Debug)]
struct Made {
    engine: Arc<Engine>,
    table: Arc<TableDef>,
}

impl Drop for Made {
    fn drop(&mut self) {
        let (engine, table) = (self.engine.clone(), self.table.clone());
        self.engine.tasks().spawn(async move {
            if let Err(error) = catalog_store::drop_pending(engine.views(), table.id).await {
                tracing::warn!(table = %table.name, %error, "a table that was not filled is dropped when it expires");
            }
        });
    }
}

/// Columns for rows of `schema`; `declared[i]` is the SQL type where it is known better than from Arrow.
///
/// # Errors
/// 0A000 for types that no column has.
pub(crate) fn columns(schema: &Schema, declared: &[Option<SqlType>], not_null: bool) -> Result<Vec<ColumnSpec>> {
    let declared = declared.iter().copied().chain(std::iter::repeat(None));
    let fields = schema.fields().iter().zip(declared);
    let column = |(field, declared): (&Arc<Field>, Option<SqlType>)| {
        let stored = declared.map_or_else(|| sql_type(field.name(), field.data_type()), Ok)?;
        Ok(define::column_spec(
            field.name(),
            stored,
            not_null && !field.is_nullable(),
        ))
    };
    fields.map(column).collect()
}

/// The smallest type that holds every value.
fn sql_type(column: &str, data_type: &DataType) -> Result<SqlType> {
    let numeric = |precision: u8, scale: i8| SqlType::Numeric { precision, scale };
    Ok(match data_type {
        DataType::Dictionary(_, value) => sql_type(column, value)?,
        DataType::RunEndEncoded(_, value) => sql_type(column, value.data_type())?,
        DataType::Boolean => SqlType::Bool,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => SqlType::Int2,
        DataType::Int32 | DataType::UInt16 => SqlType::Int4,
        DataType::Int64 | DataType::UInt32 => SqlType::Int8,
        DataType::UInt64 => numeric(20, 0),
        DataType::Float16 | DataType::Float32 => SqlType::Float4,
        DataType::Float64 => SqlType::Float8,
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) | DataType::Decimal128(p, s)
            if *s >= 0 && (*s).unsigned_abs() <= *p =>
        {
            numeric(*p, *s)
        }
        DataType::Null | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => SqlType::Text,
        DataType::FixedSizeBinary(16) => SqlType::Uuid,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            SqlType::Bytea
        }
        DataType::Date32 | DataType::Date64 => SqlType::Date,
        DataType::Time32(_) | DataType::Time64(_) => SqlType::Time,
        DataType::Timestamp(_, None) => SqlType::Timestamp,
        DataType::Timestamp(_, Some(_)) => SqlType::TimestampTz,
        DataType::Interval(_) | DataType::Duration(_) => SqlType::Interval,
        other => {
            return Err(Error::unsupported(
                format!("column \"{column}\": no SQL type holds values of type {other}"),
                "cast the column to a type that tables have",
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::datatypes::TimeUnit;
    use tessera_parser::TypeName;

    #[test]
    fn tables_are_made_for_what_comes() {
        let zoned = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
        let schema = Schema::new(vec![
            Field::new("k", DataType::Int64, false),
            Field::new("Name", DataType::LargeUtf8, true),
            Field::new("at", zoned, true),
            Field::new("price", DataType::Decimal128(12, 2), true),
            Field::new("code", DataType::Utf8View, true),
        ]);
        let declared = [None, None, None, None, Some(SqlType::Char(3))];
        let made = columns(&schema, &declared, true).expect("columns");
        let shown: Vec<_> = made
            .iter()
            .map(|c| (c.name.as_str(), c.data_type, c.not_null))
            .collect();
        let price = TypeName::Numeric {
            precision: 12,
            scale: 2,
        };
        assert_eq!(
            shown,
            [
                ("k", TypeName::Int8, true),
                ("Name", TypeName::Text, false),
                ("at", TypeName::TimestampTz, false),
                ("price", price, false),
                ("code", TypeName::Char(3), false),
            ]
        );
        assert!(
            columns(&schema, &[], false)
                .expect("columns")
                .iter()
                .all(|c| !c.not_null)
        );
        let list = DataType::new_list(DataType::Int32, true);
        let error = columns(&Schema::new(vec![Field::new("l", list, true)]), &[], true).expect_err("no type");
        assert_eq!(error.code, "0A000");
    }
}
