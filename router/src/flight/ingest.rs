//! CommandStatementIngest: a client's rows into a table, through the same staged path as COPY.
//!
//! ```text
//!   create          a table for the Arrow schema, no primary key; it gets its name with its rows (ddl/fill.rs)
//!   append          columns by name; those the client leaves out get their defaults
//!   stream of batches ──▶ CopyIn::write ──▶ invisible segments on every copy ──▶ end of the stream: one commit
//! ```
//!
//! All rows become visible together or none does: an error, a cancelled stream and a vanished client all drop them. Not here:
//! replacing a table, temporary tables.

use super::listener::BodyBroke;
use super::service::Flight;
use super::sessions::{DATABASE, FlightSession};
use crate::cluster::catalog::StatementCatalog;
use crate::ddl;
use crate::ddl::fill::{self, Filling};
use crate::outcome::Outcome;
use crate::{CopyIn, Session};
use arrow_flight::FlightData;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::sql::{CommandStatementIngest, TableExistsOption, TableNotExistOption};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::Schema;
use futures::{FutureExt, Stream, StreamExt};
use std::panic::AssertUnwindSafe;
use tessera_parser::{
    CopyFormat, CopyFrom, CopyOptions, CopySource, CreateTable, ObjectName, ParsedStatement, Statement,
};
use tessera_planner::Catalog;
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
        let mut target = target(&session, &command, &table, &schema).await?;
        let mut next = first;
        while let Some(batch) = next {
            target.write(batch).await?;
            next = within(deadline, batches.next()).await?;
        }
        Ok(target.finish().await? as i64)
    }
}

/// Where the rows go. Dropping it drops them.
enum Target {
    Existing(CopyIn),
    New(Filling),
}

impl Target {
    async fn write(&mut self, batch: RecordBatch) -> Result<()> {
        match self {
            Self::Existing(copy) => copy.write(batch).await,
            Self::New(table) => table.write(&batch).await.map_err(crate::error::give_up),
        }
    }

    async fn finish(self) -> Result<u64> {
        match self {
            Self::Existing(copy) => copy.finish().await,
            Self::New(table) => Ok(table.finish().await.map_err(crate::error::give_up)?.0),
        }
    }
}

/// The table, or a new one, as far as the command allows either.
async fn target(
    session: &Session,
    command: &CommandStatementIngest,
    table: &ObjectName,
    schema: &Schema,
) -> Result<Target> {
    let options = command.table_definition_options.as_ref();
    let context = session.context(CancellationToken::new());
    let catalog = StatementCatalog::new(&context);
    if catalog.resolve(table.schema.as_deref(), &table.name).is_some() {
        return match options.map(|o| o.if_exists()) {
            Some(TableExistsOption::Fail) => Err(Error::new("42P07", format!("relation \"{table}\" already exists"))
                .with_hint("ingest with mode append")),
            Some(TableExistsOption::Replace) => Err(Error::unsupported(
                "an ingest that replaces a table is not supported",
                "DROP TABLE first, then ingest with mode create",
            )),
            _ => Ok(Target::Existing(open(session, table, schema).await?)),
        };
    }
    if options.map(|o| o.if_not_exist()) != Some(TableNotExistOption::Create) {
        return Err(crate::error::no_relation(
            &table.to_string(),
            catalog.names().iter().map(String::as_str),
        ));
    }
    let create = CreateTable {
        name: table.clone(),
        if_not_exists: false,
        reference: false,
        columns: fill::columns(schema, &[], true)?,
        primary_key: vec![],
        sharding: None,
        cluster_by: vec![],
    };
    let place = ddl::schema_for(&context, table)?;
    let made = Filling::create(&context, &create, &place).await;
    Ok(Target::New(made.map_err(crate::error::give_up)?))
}

async fn open(session: &Session, table: &ObjectName, schema: &Schema) -> Result<CopyIn> {
    let statement = ParsedStatement {
        text: format!("COPY {} FROM STDIN", quoted(table)),
        as_of: None,
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
