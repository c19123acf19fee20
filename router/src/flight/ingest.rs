//! CommandStatementIngest: a client's rows into a table, through the same staged path as COPY.
//!
//! ```text
//!   create          CREATE TABLE from the Arrow schema, no primary key       fails: the new table is dropped again
//!   append          columns by name; those the client leaves out get their defaults
//!   stream of batches ──▶ CopyIn::write ──▶ invisible segments on every copy ──▶ end of the stream: one commit
//! ```
//!
//! All rows become visible together or none does: an error, a cancelled stream and a vanished client all drop them. Creating the
//! table is a step of its own: others see it empty until the rows are there. Not here: replacing a table, temporary tables.

use super::listener::BodyBroke;
use super::service::Flight;
use super::sessions::{DATABASE, FlightSession};
use crate::cluster::catalog::StatementCatalog;
use crate::outcome::Outcome;
use crate::{CopyIn, Session};
use arrow_flight::FlightData;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::sql::{CommandStatementIngest, TableExistsOption, TableNotExistOption};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Schema};
use futures::{FutureExt, Stream, StreamExt};
use std::panic::AssertUnwindSafe;
use tessera_parser::{CopyFormat, CopyFrom, CopyOptions, CopySource, ObjectName, ParsedStatement, Statement};
use tessera_planner::Catalog;
use tessera_proto::sql_type::SqlType;
use tessera_proto::{Error, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// The batches of a client's stream. What they are made of is the client's word: decoding may fail in any way.
pub(super) struct Batches {
    stream: FlightRecordBatchStream,
    broke: BodyBroke,
}

impl Batches {
    /// Decodes `messages`; `broke` tells a stream that was cut off from one that ended.
    pub(super) fn new(
        messages: impl Stream<Item = std::result::Result<FlightData, Status>> + Send + 'static,
        broke: BodyBroke,
    ) -> Self {
        let messages = messages.map(|m| m.map_err(FlightError::from));
        Self {
            stream: FlightRecordBatchStream::new_from_flight_data(messages),
            broke,
        }
    }

    /// The next batch; `None` only at an end that the client meant.
    ///
    /// # Errors
    /// 08P01 for what is no Arrow stream, 57014 when the client cancelled or is gone.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let decoded = AssertUnwindSafe(self.stream.next()).catch_unwind().await;
        let malformed = |what: String| Error::protocol(format!("malformed rows: {what}"));
        match decoded {
            Ok(Some(Ok(batch))) => Ok(Some(batch)),
            _ if self.broke.is_set() => Err(Error::cancelled("the client ended the stream of rows early")),
            Ok(None) => Ok(None),
            // What tonic says of a message beyond the port's bound.
            Ok(Some(Err(FlightError::Tonic(status)))) if status.code() == Code::OutOfRange => {
                Err(Error::new("53400", status.message()).with_hint("send smaller batches"))
            }
            Ok(Some(Err(FlightError::Tonic(status)))) => Err(Error::new(
                "08006",
                format!("the stream of rows broke: {}", status.message()),
            )),
            Ok(Some(Err(error))) => Err(malformed(error.to_string())),
            // Arrow's decoder checks much, but not everything.
            Err(_) => Err(malformed("the decoder gave up".into())),
        }
    }

    /// All batches, at most `bytes_max` of memory.
    ///
    /// # Errors
    /// Those of [`Self::next`], and 53400.
    pub(super) async fn all(mut self, bytes_max: usize) -> Result<Vec<RecordBatch>> {
        let (mut batches, mut bytes) = (vec![], 0_usize);
        while let Some(batch) = self.next().await? {
            bytes = bytes.saturating_add(batch.get_array_memory_size());
            if bytes > bytes_max {
                return Err(
                    Error::new("53400", format!("more than {bytes_max} bytes of parameters"))
                        .with_hint("send fewer rows at a time, or use an ingest"),
                );
            }
            batches.push(batch);
        }
        Ok(batches)
    }
}

impl Flight {
    /// See the module; returns the rows written.
    pub(super) async fn ingest(
        &self,
        session: &FlightSession,
        command: CommandStatementIngest,
        mut batches: Batches,
    ) -> Result<i64> {
        check(&command)?;
        let _permit = self.permit()?;
        let session = session.copy();
        let deadline = session.context(CancellationToken::new()).deadline;
        let first = within(deadline, batches.next()).await?;
        let schema = batches.stream.schema().cloned();
        let schema = schema.ok_or_else(|| Error::protocol("an ingest begins with its schema"))?;
        let table = ObjectName {
            schema: command.schema.clone(),
            name: command.table.clone(),
        };
        let created = self.ready(&session, &command, &table, &schema).await?;
        let loaded = async {
            let mut copy = open(&session, &table, &schema).await?;
            let mut next = first;
            while let Some(batch) = next {
                copy.write(batch).await?;
                next = within(deadline, batches.next()).await?;
            }
            copy.finish().await
        };
        match loaded.await {
            Ok(rows) => {
                created.keep();
                Ok(rows as i64)
            }
            Err(error) => {
                created.undo().await;
                Err(error)
            }
        }
    }

    /// Makes the table unless it is there, as far as the command allows either.
    async fn ready(
        &self,
        session: &Session,
        command: &CommandStatementIngest,
        table: &ObjectName,
        schema: &Schema,
    ) -> Result<Created> {
        let options = command.table_definition_options.as_ref();
        let catalog = StatementCatalog::new(&session.context(CancellationToken::new()));
        if catalog.resolve(table.schema.as_deref(), &table.name).is_some() {
            return match options.map(|o| o.if_exists()) {
                Some(TableExistsOption::Fail) => {
                    Err(Error::new("42P07", format!("relation \"{table}\" already exists"))
                        .with_hint("ingest with mode append"))
                }
                Some(TableExistsOption::Replace) => Err(Error::unsupported(
                    "an ingest that replaces a table is not supported",
                    "DROP TABLE first, then ingest with mode create",
                )),
                _ => Ok(Created(None)),
            };
        }
        if options.map(|o| o.if_not_exist()) != Some(TableNotExistOption::Create) {
            return Err(crate::error::no_relation(
                &table.to_string(),
                catalog.names().iter().map(String::as_str),
            ));
        }
        let statement = parsed(&create_table(table, schema)?)?;
        let created = Created(Some(Undo {
            session: session.clone(),
            table: table.clone(),
        }));
        match session
            .clone()
            .execute(&statement, vec![], CancellationToken::new())
            .await
        {
            Ok(_) => Ok(created),
            Err(error) => {
                // 42P07: somebody else was faster, and the table is theirs.
                created.keep();
                Err(error)
            }
        }
    }
}

/// A table that an ingest made; dropped with it unless [`Created::keep`] was called.
struct Created(Option<Undo>);

struct Undo {
    session: Session,
    table: ObjectName,
}

impl Created {
    fn keep(mut self) {
        self.0 = None;
    }

    async fn undo(mut self) {
        if let Some(undo) = self.0.take() {
            undo.run().await;
        }
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        // The call was dropped: its client is gone.
        if let Some(undo) = self.0.take() {
            let engine = undo.session.engine().clone();
            engine.tasks().spawn(undo.run());
        }
    }
}

impl Undo {
    async fn run(mut self) {
        let dropped = async {
            let statement = parsed(&format!("DROP TABLE {}", quoted(&self.table)))?;
            self.session.execute(&statement, vec![], CancellationToken::new()).await
        };
        if let Err(error) = dropped.await {
            tracing::warn!(table = %self.table, %error, "the table of a failed ingest could not be dropped");
        }
    }
}

async fn open(session: &Session, table: &ObjectName, schema: &Schema) -> Result<CopyIn> {
    let statement = ParsedStatement {
        text: format!("COPY {} FROM STDIN", quoted(table)),
        statement: Statement::CopyFrom(CopyFrom {
            table: table.clone(),
            columns: schema.fields().iter().map(|f| f.name().clone()).collect(),
            source: CopySource::Stdin,
            // The rows come as Arrow: nothing reads these.
            options: CopyOptions {
                format: CopyFormat::Csv,
                delimiter: ',',
                null: String::new(),
                header: false,
                header_match: false,
                quote: '"',
                escape: '"',
                force_not_null: vec![],
                force_null: vec![],
                encoding: None,
                freeze: false,
            },
        }),
    };
    match session
        .clone()
        .execute(&statement, vec![], CancellationToken::new())
        .await?
    {
        Outcome::CopyIn(copy) => Ok(*copy),
        _ => Err(Error::internal("COPY FROM STDIN did not begin")),
    }
}

/// What an ingest asks for that is not done.
fn check(command: &CommandStatementIngest) -> Result<()> {
    if command.temporary {
        return Err(Error::unsupported("temporary tables are not supported", "use a table"));
    }
    super::service::check_transaction(command.transaction_id.as_ref())?;
    if let Some(catalog) = command.catalog.as_ref().filter(|c| *c != DATABASE) {
        return Err(Error::new("3D000", format!("catalog \"{catalog}\" does not exist"))
            .with_hint(format!("there is one catalog, \"{DATABASE}\"")));
    }
    if let Some(name) = command.options.keys().next() {
        let what = format!("the ingest option \"{name}\" is not supported");
        return Err(Error::unsupported(what, "leave it out"));
    }
    if command.table.is_empty() {
        return Err(Error::new("42601", "an ingest names its table"));
    }
    Ok(())
}

async fn within<T>(deadline: Instant, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout_at(deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(crate::error::timed_out()),
    }
}

fn parsed(sql: &str) -> Result<ParsedStatement> {
    let mut parsed = tessera_parser::parse(sql).map_err(crate::error::from_parse)?;
    parsed
        .pop()
        .ok_or_else(|| Error::internal(format!("no statement: {sql}")))
}

/// The table as SQL names it.
fn quoted(table: &ObjectName) -> String {
    match &table.schema {
        Some(schema) => format!("{}.{}", quote(schema), quote(&table.name)),
        None => quote(&table.name),
    }
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table for rows of `schema`.
///
/// # Errors
/// 0A000 for types that no column has.
fn create_table(table: &ObjectName, schema: &Schema) -> Result<String> {
    let column = |field: &std::sync::Arc<datafusion::arrow::datatypes::Field>| {
        let not_null = if field.is_nullable() { "" } else { " NOT NULL" };
        Ok(format!(
            "{} {}{not_null}",
            quote(field.name()),
            sql_type(field.name(), field.data_type())?
        ))
    };
    let columns: Vec<String> = schema.fields().iter().map(column).collect::<Result<_>>()?;
    Ok(format!("CREATE TABLE {} ({})", quoted(table), columns.join(", ")))
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
                "create the table first and ingest with mode append, or cast the column",
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::datatypes::{Field, TimeUnit};

    #[test]
    fn tables_are_made_for_what_comes() {
        let table = ObjectName {
            schema: Some("s".into()),
            name: "a \"b\"".into(),
        };
        let schema = Schema::new(vec![
            Field::new("k", DataType::Int64, false),
            Field::new("Name", DataType::LargeUtf8, true),
            Field::new(
                "at",
                DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
                true,
            ),
            Field::new("price", DataType::Decimal128(12, 2), true),
        ]);
        assert_eq!(
            create_table(&table, &schema).expect("a table"),
            "CREATE TABLE \"s\".\"a \"\"b\"\"\" (\"k\" bigint NOT NULL, \"Name\" text, \
             \"at\" timestamp with time zone, \"price\" numeric(12,2))"
        );
        let list = DataType::new_list(DataType::Int32, true);
        let error = create_table(&table, &Schema::new(vec![Field::new("l", list, true)])).expect_err("no type");
        assert_eq!(error.code, "0A000");
    }
}
