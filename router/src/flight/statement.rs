//! Statements: what a client is told about one, and its rows.
//!
//! ```text
//!   FlightInfo of a query         plan ──▶ one leaf?  an endpoint per node      else  one ticket of ours, not run yet
//!              of SHOW, EXPLAIN   describe ──▶ one ticket of ours
//!              of all others      run now; no endpoint, total_records is the number of rows
//!   ticket of ours                statement, parameters, settings, snapshot: any router of the cluster can run it, repeatedly
//! ```
//!
//! A ticket reads the snapshot at which its FlightInfo was made, whenever and however often it is redeemed.

use super::endpoints;
use super::markers;
use super::service::Flight;
use super::sessions::{FlightSession, session};
use crate::execute::query;
use crate::outcome::Outcome;
use crate::stack::OnLargeStack;
use crate::{Session, error};
use arrow_flight::sql::{ProstMessageExt, TicketStatementQuery};
use arrow_flight::{FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, Ticket};
use bytes::Bytes;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::scalar::ScalarValue;
use futures::StreamExt;
use futures::stream::BoxStream;
use prost::Message;
use tessera_parser::{ParsedStatement, Statement};
use tessera_proto::flight::caller::{Caller, check_user};
use tessera_proto::flight::rows::{client_schema, read_schema, schema_bytes, to_flight};
use tessera_proto::flight::seal::{TICKET_BYTES_MAX, TICKET_LIFE, expires_in};
use tessera_proto::{Error, Result, Timestamp, ipc, v1};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Rows on their way to a client.
pub(super) type Rows = BoxStream<'static, std::result::Result<FlightData, Status>>;

/// The one statement of a text.
///
/// # Errors
/// 42601 for several, or none; 0A000 for RETURNING, and for what is about transactions.
pub(super) async fn parse_one(sql: &str) -> Result<ParsedStatement> {
    let mut parsed = crate::pg::parse(markers::numbered(sql).into_owned()).await?;
    match (parsed.pop(), parsed.is_empty()) {
        (Some(statement), true) => refuse_transactions(statement).and_then(refuse_returning),
        (None, _) => Err(Error::new("42601", "there is no statement in the text")),
        (Some(_), false) => Err(Error::new("42601", "several statements in one text")
            .with_hint("send one at a time; each is its own transaction")),
    }
}

/// Calls of one client may come in any order and by any connection.
fn refuse_transactions(statement: ParsedStatement) -> Result<ParsedStatement> {
    match statement.statement {
        Statement::Begin(_)
        | Statement::Commit { .. }
        | Statement::Rollback { .. }
        | Statement::Savepoint { .. }
        | Statement::Release { .. }
        | Statement::RollbackTo { .. } => Err(Error::unsupported(
            "transactions of several statements over Flight SQL are not supported",
            "send them over the PostgreSQL wire; here each statement is a transaction of its own",
        )),
        _ => Ok(statement),
    }
}

/// RETURNING would need a ticket, and one that writes would write again when it is redeemed again.
fn refuse_returning(statement: ParsedStatement) -> Result<ParsedStatement> {
    let returning = match &statement.statement {
        Statement::Insert(insert) => &insert.returning,
        Statement::Update(update) => &update.returning,
        Statement::Delete(delete) => &delete.returning,
        _ => &None,
    };
    match returning {
        None => Ok(statement),
        Some(_) => Err(Error::unsupported(
            "RETURNING over Flight SQL is not supported",
            "leave it out, or send the statement over the PostgreSQL wire",
        )),
    }
}

/// Whether a statement returns rows.
pub(super) fn returns_rows(statement: &Statement) -> bool {
    matches!(
        statement,
        Statement::Query(_) | Statement::Explain { .. } | Statement::Show { .. } | Statement::VerifyTable { .. }
    )
}

impl Flight {
    /// See the module.
    pub(super) async fn statement_info(
        &self,
        caller: &Caller,
        session: &FlightSession,
        statement: &ParsedStatement,
        params: Vec<ScalarValue>,
        descriptor: FlightDescriptor,
    ) -> Result<FlightInfo> {
        let _permit = self.permit()?;
        if !returns_rows(&statement.statement) {
            let rows = self.run_update(session, statement, params).await?;
            return info(&Schema::empty(), descriptor, vec![], rows);
        }
        let copy = session.copy();
        let (schema, planned, snapshot) = match &statement.statement {
            Statement::Query(query) => {
                let mut context = copy.context(CancellationToken::new());
                if let Some(as_of) = &statement.as_of {
                    context.read_as_of(as_of).await?;
                }
                let work = query::prospect(&context, query, params.clone());
                let prospect = OnLargeStack::new(work).await.map_err(error::give_up)?;
                (prospect.schema, prospect.planned, prospect.snapshot)
            }
            _ => (rows_schema(&copy, statement).await?, None, Timestamp(0)),
        };
        let schema = client_schema(&schema);
        let owners = planned.as_ref().and_then(|p| endpoints::whole_leaf(&p.physical));
        let endpoints = match owners {
            Some(owners) => self.leaf_endpoints(caller, owners, &schema)?,
            None => {
                let ticket = v1::StatementTicket {
                    user: caller.user.clone(),
                    expires_ms: expires_in(TICKET_LIFE),
                    sql: statement.text.clone(),
                    params: super::params::encode(&params)?,
                    snapshot: snapshot.0,
                    settings: copy.changed_settings().clone().into_iter().collect(),
                    schema: schema_bytes(&schema)?,
                    database: copy.params().database.clone(),
                };
                let sealed = self.engine.secret().seal(&ticket);
                vec![endpoint(sealed, ticket.expires_ms)?]
            }
        };
        info(&schema, descriptor, endpoints, -1)
    }

    /// Runs a statement that returns no rows; the number of rows it wrote, -1 where that says nothing.
    ///
    /// # Errors
    /// The statement's; 0A000 for COPY FROM STDIN, and for one that returns rows.
    pub(super) async fn run_update(
        &self,
        session: &FlightSession,
        statement: &ParsedStatement,
        params: Vec<ScalarValue>,
    ) -> Result<i64> {
        if returns_rows(&statement.statement) {
            return Err(Error::unsupported(
                "the statement returns rows and was sent as an update",
                "send it as a query",
            ));
        }
        let mut copy = session.copy();
        let outcome = copy.execute(statement, params, CancellationToken::new()).await?;
        if matches!(
            statement.statement,
            Statement::Set { .. } | Statement::Reset { .. } | Statement::Discard
        ) {
            session.keep_settings(copy);
        }
        match outcome {
            Outcome::Done { tag, .. } => Ok(rows_of_tag(&tag)),
            Outcome::Empty => Ok(-1),
            Outcome::CopyIn(_) => Err(Error::unsupported(
                "COPY FROM STDIN over Flight SQL is not supported",
                "send the rows as an ingest (adbc_ingest, CommandStatementIngest)",
            )),
            Outcome::CopyOut(_) => Err(Error::unsupported(
                "COPY TO STDOUT over Flight SQL is not supported",
                "send the query itself: its rows come in columns",
            )),
            Outcome::Rows { .. } => Err(Error::internal("an update returned rows")),
        }
    }

    /// Redeems one of our own tickets.
    pub(super) async fn statement_rows(&self, caller: &Caller, sealed: &[u8]) -> Result<Rows> {
        let ticket: v1::StatementTicket = self.engine.secret().open(sealed)?;
        check_user(caller, &ticket.user)?;
        let permit = self.permit()?;
        let schema = read_schema(ticket.schema)?;
        let params = super::params::decode(&ticket.params)?;
        let statement = parse_one(&ticket.sql).await?;
        let mut session = session(&self.engine, &ticket.user, &ticket.database);
        for (name, value) in &ticket.settings {
            session.set_initial(name, value)?;
        }
        let token = CancellationToken::new();
        let (found, stream) = match &statement.statement {
            Statement::Query(query) => {
                let context = session.context(token);
                let request = query::Request {
                    snapshot: Some(Timestamp(ticket.snapshot)),
                    text: Some(statement.text.as_str()).filter(|_| !params.is_empty()),
                    ..query::Request::new(query, params)
                };
                let opened = OnLargeStack::new(query::open(&context, request)).await;
                let running = opened.map_err(error::give_up)?;
                (running.schema, running.stream)
            }
            // Never one that writes: a ticket may be redeemed twice.
            other if returns_rows(other) => match session.execute(&statement, params, token).await? {
                Outcome::Rows { schema, stream, .. } => (schema, stream),
                _ => return Err(Error::internal("a query returned no rows")),
            },
            _ => return Err(Error::internal("a ticket holds a statement without rows")),
        };
        check_unchanged(&schema, &found)?;
        Ok(self.send(schema, stream, permit))
    }

    /// Rows as messages; the permit is given back when they end, or the client goes.
    pub(super) fn send(
        &self,
        schema: SchemaRef,
        rows: SendableRecordBatchStream,
        permit: OwnedSemaphorePermit,
    ) -> Rows {
        let messages = to_flight(schema, rows, self.stop.clone());
        messages
            .map(move |message| {
                let _held = &permit;
                message
            })
            .boxed()
    }
}

/// Columns of a statement that is not a query.
async fn rows_schema(session: &Session, statement: &ParsedStatement) -> Result<SchemaRef> {
    let described = session.describe(statement, &[]).await?;
    let missing = || Error::internal("a statement with rows was described without");
    described.columns.ok_or_else(missing)
}

/// What the client was told about the columns must hold.
fn check_unchanged(told: &Schema, found: &Schema) -> Result<()> {
    let found = client_schema(found);
    let same = told.fields().len() == found.fields().len()
        && told
            .fields()
            .iter()
            .zip(found.fields())
            .all(|(a, b)| a.name() == b.name() && a.data_type() == b.data_type());
    if same {
        return Ok(());
    }
    Err(Error::unsupported(
        "the statement's columns changed since its ticket was made",
        "run the query again for new tickets",
    ))
}

/// The count of a command tag: `INSERT 0 5`, `UPDATE 5`, `DELETE 5`, `COPY 5`.
fn rows_of_tag(tag: &str) -> i64 {
    let counted = ["INSERT ", "UPDATE ", "DELETE ", "COPY "]
        .iter()
        .any(|command| tag.starts_with(command));
    let count = tag.rsplit(' ').next().and_then(|n| n.parse().ok());
    count.filter(|_| counted).unwrap_or(-1)
}

/// A ticket as the protocol wants it: clients of other makers look for the type.
pub(super) fn ticket_bytes(sealed: Bytes) -> Bytes {
    let ticket = TicketStatementQuery {
        statement_handle: sealed,
    };
    ticket.as_any().encode_to_vec().into()
}

/// An endpoint without locations: to be redeemed where the FlightInfo came from.
///
/// # Errors
/// 54000 when the ticket is too large.
pub(super) fn endpoint(sealed: Bytes, expires_ms: u64) -> Result<FlightEndpoint> {
    if sealed.len() > TICKET_BYTES_MAX {
        let what = format!("the statement needs a ticket of {} bytes", sealed.len());
        return Err(Error::new("54000", what)
            .with_detail(format!("the limit is {TICKET_BYTES_MAX} bytes"))
            .with_hint("put long lists of constants into a table and join it"));
    }
    let mut endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket_bytes(sealed)));
    let at = endpoint.expiration_time.get_or_insert_default();
    at.seconds = (expires_ms / 1000) as i64;
    at.nanos = (expires_ms % 1000) as i32 * 1_000_000;
    Ok(endpoint)
}

/// A FlightInfo.
///
/// # Errors
/// None is expected.
pub(super) fn info(
    schema: &Schema,
    descriptor: FlightDescriptor,
    endpoints: Vec<FlightEndpoint>,
    rows: i64,
) -> Result<FlightInfo> {
    let info = FlightInfo::new()
        .try_with_schema(schema)
        .map_err(|e| Error::internal(format!("encoding a schema: {e}")))?
        .with_descriptor(descriptor)
        .with_total_records(rows)
        .with_total_bytes(-1);
    Ok(endpoints.into_iter().fold(info, FlightInfo::with_endpoint))
}

/// Rows that are known already.
///
/// # Errors
/// Types that Arrow IPC cannot carry.
pub(super) fn one_row_bytes(batch: &datafusion::arrow::array::RecordBatch) -> Result<Bytes> {
    ipc::encode(&batch.schema(), std::slice::from_ref(batch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_tell_how_many_rows_were_written() {
        assert_eq!(rows_of_tag("INSERT 0 5"), 5);
        assert_eq!(rows_of_tag("COPY 7"), 7);
        assert_eq!(rows_of_tag("UPDATE 2"), 2);
        assert_eq!(rows_of_tag("DELETE 0"), 0);
        assert_eq!(rows_of_tag("CREATE TABLE"), -1);
        assert_eq!(rows_of_tag(""), -1);
    }

    #[tokio::test]
    async fn a_text_is_one_statement() {
        assert!(parse_one("SELECT 1;").await.is_ok());
        for bad in ["", "-- nothing", "SELECT 1; SELECT 2", "SELEC 1"] {
            assert_eq!(parse_one(bad).await.expect_err(bad).code, "42601", "{bad}");
        }
        for returning in [
            "INSERT INTO t VALUES (1) RETURNING a",
            "UPDATE t SET a = 1 RETURNING a",
            "DELETE FROM t RETURNING a",
        ] {
            let refused = parse_one(returning).await.expect_err(returning);
            assert_eq!(refused.code, "0A000", "{returning}");
        }
    }

    #[test]
    fn large_tickets_are_refused() {
        let error = endpoint(vec![0; TICKET_BYTES_MAX + 1].into(), 0).expect_err("too large");
        assert_eq!(error.code, "54000");
    }
}
