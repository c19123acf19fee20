//! The calls of FlightService, each to where it is done.
//!
//! ```text
//!   GetFlightInfo, GetSchema   Any ──▶ statement | prepared statement | metadata
//!   DoGet                      Any ──▶ sealed ticket: ours | a leaf's      metadata command
//!   DoPut                      Any ──▶ update | ingest | bind | prepared update
//!   DoAction                   prepare, close, session options
//! ```
//!
//! Whatever comes off the wire is decoded with errors, never trusted; every error leaves as a status with an SQLSTATE.

use super::ingest::Batches;
use super::listener::BodyBroke;
use super::sessions::{FlightSession, Sessions};
use super::statement::{Rows, info, parse_one};
use super::{FlightLimits, metadata, options};
use crate::Engine;
use crate::execute::stream;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, Any, Command,
    DoPutPreparedStatementResult, DoPutUpdateResult, ProstMessageExt,
};
use arrow_flight::{
    Action, ActionType, CancelFlightInfoResult, CancelStatus, Criteria, Empty, FlightData, FlightDescriptor,
    FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use prost::Message;
use std::net::SocketAddr;
use std::sync::Arc;
use tessera_proto::flight::caller::{Caller, bearer, caller};
use tessera_proto::flight::rows::schema_bytes;
use tessera_proto::flight::seal::{Sealable, kind_of};
use tessera_proto::flight::status::status;
use tessera_proto::{Error, Result, v1};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

const CREATE_PREPARED: &str = "CreatePreparedStatement";
const CLOSE_PREPARED: &str = "ClosePreparedStatement";
const CANCEL_INFO: &str = "CancelFlightInfo";

/// The service.
pub(super) struct Flight {
    pub(super) engine: Arc<Engine>,
    pub(super) limits: Arc<FlightLimits>,
    pub(super) stop: CancellationToken,
    sessions: Sessions,
    statements: Arc<Semaphore>,
}

type Stream<T> = BoxStream<'static, std::result::Result<T, Status>>;

impl Flight {
    pub(super) fn new(engine: Arc<Engine>, limits: Arc<FlightLimits>, stop: CancellationToken) -> Self {
        Self {
            engine,
            stop,
            sessions: Sessions::new(limits.clone()),
            statements: Arc::new(Semaphore::new(limits.statements_max)),
            limits,
        }
    }

    /// Leave to run a statement.
    ///
    /// # Errors
    /// 53300 when too many run.
    pub(super) fn permit(&self) -> Result<OwnedSemaphorePermit> {
        self.statements.clone().try_acquire_owned().map_err(|_| {
            let what = format!("{} Flight SQL statements are running", self.limits.statements_max);
            Error::new("53300", what).with_hint("wait for one to end, or drop its stream")
        })
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<(Caller, Option<SocketAddr>)> {
        let caller = caller(request.metadata(), self.engine.secret())?;
        Ok((caller, request.remote_addr()))
    }

    fn session<T>(&self, request: &Request<T>) -> Result<(Caller, Arc<FlightSession>)> {
        let (caller, peer) = self.caller(request)?;
        let session = self.sessions.of(&self.engine, &caller, peer)?;
        Ok((caller, session))
    }

    async fn flight_info(&self, request: Request<FlightDescriptor>) -> Result<FlightInfo> {
        let (caller, session) = self.session(&request)?;
        let descriptor = request.into_inner();
        match command(&descriptor.cmd)? {
            Command::CommandStatementQuery(query) => {
                check_transaction(query.transaction_id.as_ref())?;
                let statement = parse_one(&query.query).await?;
                self.statement_info(&caller, &session, &statement, vec![], descriptor)
                    .await
            }
            Command::CommandPreparedStatementQuery(query) => {
                let (_, prepared) = session.prepared(&query.prepared_statement_handle)?;
                let values = prepared.values()?;
                self.statement_info(&caller, &session, &prepared.statement, values, descriptor)
                    .await
            }
            other => {
                let schema = metadata::schema(&other)?.ok_or_else(|| not_supported(&other))?;
                // The command is its own ticket: it names nothing that is not asked again.
                let ticket = Ticket::new(descriptor.cmd.clone());
                info(&schema, descriptor, vec![FlightEndpoint::new().with_ticket(ticket)], -1)
            }
        }
    }

    async fn schema(&self, request: Request<FlightDescriptor>) -> Result<SchemaResult> {
        let (_, session) = self.session(&request)?;
        let schema = match command(&request.get_ref().cmd)? {
            Command::CommandStatementQuery(query) => self.statement_schema(&session, &query.query).await?,
            Command::CommandPreparedStatementQuery(query) => {
                self.prepared_schema(&session, &query.prepared_statement_handle).await?
            }
            other => metadata::schema(&other)?.ok_or_else(|| not_supported(&other))?,
        };
        Ok(SchemaResult {
            schema: schema_bytes(&schema)?,
        })
    }

    async fn rows(&self, request: Request<Ticket>) -> Result<Rows> {
        let (caller, session) = self.session(&request)?;
        match command(&request.get_ref().ticket)? {
            Command::TicketStatementQuery(ticket) => {
                let sealed = &ticket.statement_handle;
                match kind_of(sealed) {
                    Some(v1::LeafTicket::KIND) => self.leaf_rows(&caller, sealed).await,
                    _ => self.statement_rows(&caller, sealed).await,
                }
            }
            other => {
                let unknown = not_supported(&other);
                let permit = self.permit()?;
                let batch = metadata::batch(&self.engine.view(), &session, other).await?;
                let batch = batch.ok_or(unknown)?;
                let schema = batch.schema();
                Ok(self.send(schema.clone(), stream::ready(schema, vec![batch]), permit))
            }
        }
    }

    async fn put(&self, request: Request<Streaming<FlightData>>) -> Result<Bytes> {
        let (_, session) = self.session(&request)?;
        let broke = request.extensions().get::<BodyBroke>().cloned().unwrap_or_default();
        let mut messages = request.into_inner();
        let lost = |status: Status| Error::protocol(format!("malformed upload: {}", status.message()));
        let first = messages.message().await.map_err(lost)?;
        let first = first.ok_or_else(|| Error::protocol("an upload begins with its command"))?;
        let descriptor = first.flight_descriptor.clone();
        let descriptor = descriptor.ok_or_else(|| Error::protocol("an upload begins with its command"))?;
        let rows = |first: FlightData| Batches::new(futures::stream::iter([Ok(first)]).chain(messages), broke);
        let updated = |count: i64| {
            let record_count = count.max(0);
            DoPutUpdateResult { record_count }.encode_to_vec().into()
        };
        // Without a schema there are no rows: the client bound them before, or there are none.
        let has_rows = !first.data_header.is_empty();
        match command(&descriptor.cmd)? {
            Command::CommandStatementUpdate(update) => {
                check_transaction(update.transaction_id.as_ref())?;
                let _permit = self.permit()?;
                let statement = parse_one(&update.query).await?;
                Ok(updated(self.run_update(&session, &statement, vec![]).await?))
            }
            Command::CommandStatementIngest(ingest) => Ok(updated(self.ingest(&session, ingest, rows(first)).await?)),
            Command::CommandPreparedStatementQuery(query) => {
                let handle = query.prepared_statement_handle;
                let bound = rows(first).all(self.limits.prepared_bytes_max).await?;
                self.bind(&session, &handle, bound)?;
                let result = DoPutPreparedStatementResult {
                    prepared_statement_handle: Some(handle),
                };
                Ok(result.encode_to_vec().into())
            }
            Command::CommandPreparedStatementUpdate(update) => {
                let given = match has_rows {
                    true => rows(first).all(self.limits.prepared_bytes_max).await?,
                    false => vec![],
                };
                let handle = update.prepared_statement_handle;
                Ok(updated(self.run_prepared(&session, &handle, given).await?))
            }
            other => Err(not_supported(&other)),
        }
    }

    async fn action(&self, request: Request<Action>) -> Result<Vec<Vec<u8>>> {
        let (caller, peer) = self.caller(&request)?;
        let action = request.get_ref();
        if action.r#type == options::CLOSE {
            self.sessions.close(&caller, peer);
            return Ok(vec![options::closed()]);
        }
        let session = self.sessions.of(&self.engine, &caller, peer)?;
        match action.r#type.as_str() {
            CREATE_PREPARED => {
                let create: ActionCreatePreparedStatementRequest = unpack(&action.body)?;
                check_transaction(create.transaction_id.as_ref())?;
                let result = self.prepare(&session, &create.query).await?;
                Ok(vec![result.as_any().encode_to_vec()])
            }
            CLOSE_PREPARED => {
                let close: ActionClosePreparedStatementRequest = unpack(&action.body)?;
                session.close(&close.prepared_statement_handle);
                Ok(vec![])
            }
            CANCEL_INFO => {
                // A FlightInfo holds nothing here: what runs is a stream, and dropping it ends the work.
                let status = CancelStatus::NotCancellable as i32;
                Ok(vec![CancelFlightInfoResult { status }.encode_to_vec()])
            }
            options::SET => Ok(vec![options::set(&session, &action.body)?]),
            options::GET => Ok(vec![options::get(&session)]),
            "BeginTransaction" | "EndTransaction" | "BeginSavepoint" | "EndSavepoint" => Err(no_transactions()),
            "CancelQuery" => Err(Error::unsupported(
                "CancelQuery is not supported",
                "drop the stream: that ends the work on all nodes",
            )),
            other => Err(Error::unsupported(
                format!(
                    "the action \"{}\" is not supported",
                    other.chars().take(100).collect::<String>()
                ),
                "ListActions tells which are",
            )),
        }
    }
}

/// Refuses transactions.
///
/// # Errors
/// 0A000.
pub(super) fn check_transaction(transaction: Option<&Bytes>) -> Result<()> {
    match transaction.filter(|id| !id.is_empty()) {
        None => Ok(()),
        Some(_) => Err(no_transactions()),
    }
}

fn no_transactions() -> Error {
    Error::unsupported(
        "transactions over several statements are not supported",
        "use autocommit; every statement is its own transaction",
    )
}

/// A command off the wire.
fn command(bytes: &[u8]) -> Result<Command> {
    let any = Any::decode(bytes).map_err(|e| Error::protocol(format!("malformed command: {e}")))?;
    Command::try_from(any).map_err(|e| Error::protocol(format!("malformed command: {e}")))
}

fn unpack<M: ProstMessageExt>(bytes: &[u8]) -> Result<M> {
    let malformed = |what: &str| Error::protocol(format!("malformed action: {what}"));
    let any = Any::decode(bytes).map_err(|e| malformed(&e.to_string()))?;
    let message = any.unpack().map_err(|e| malformed(&e.to_string()))?;
    message.ok_or_else(|| malformed("another type is expected"))
}

fn not_supported(command: &Command) -> Error {
    let name: String = command
        .type_url()
        .rsplit('.')
        .next()
        .unwrap_or_default()
        .chars()
        .take(100)
        .collect();
    Error::unsupported(
        format!("the command \"{name}\" is not supported here"),
        "send SQL as a statement",
    )
}

fn reply<T: Send + 'static>(items: Vec<T>) -> Response<Stream<T>> {
    Response::new(futures::stream::iter(items.into_iter().map(Ok)).boxed())
}

fn refuse<T>(what: &str, hint: &str) -> std::result::Result<T, Status> {
    Err(status(&Error::unsupported(format!("{what} is not supported"), hint)))
}

#[tonic::async_trait]
impl FlightService for Flight {
    type HandshakeStream = Stream<HandshakeResponse>;
    type ListFlightsStream = Stream<FlightInfo>;
    type DoGetStream = Rows;
    type DoPutStream = Stream<PutResult>;
    type DoActionStream = Stream<arrow_flight::Result>;
    type ListActionsStream = Stream<ActionType>;
    type DoExchangeStream = Stream<FlightData>;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> std::result::Result<Response<Self::HandshakeStream>, Status> {
        let (caller, _) = self.caller(&request).map_err(|e| status(&e))?;
        let token = bearer(&caller.user, self.engine.secret());
        let value = token
            .parse()
            .map_err(|_| status(&Error::internal("a token is no header")))?;
        let mut response = reply(vec![HandshakeResponse::default()]);
        response.metadata_mut().insert("authorization", value);
        Ok(response)
    }

    async fn list_flights(
        &self,
        _: Request<Criteria>,
    ) -> std::result::Result<Response<Self::ListFlightsStream>, Status> {
        refuse("ListFlights", "CommandGetTables lists tables")
    }

    async fn get_flight_info(
        &self,
        request: Request<FlightDescriptor>,
    ) -> std::result::Result<Response<FlightInfo>, Status> {
        let info = self.flight_info(request).await;
        info.map(Response::new).map_err(|e| status(&e))
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> std::result::Result<Response<PollInfo>, Status> {
        refuse(
            "PollFlightInfo",
            "GetFlightInfo answers at once; rows come as they are made",
        )
    }

    async fn get_schema(
        &self,
        request: Request<FlightDescriptor>,
    ) -> std::result::Result<Response<SchemaResult>, Status> {
        let schema = self.schema(request).await;
        schema.map(Response::new).map_err(|e| status(&e))
    }

    async fn do_get(&self, request: Request<Ticket>) -> std::result::Result<Response<Self::DoGetStream>, Status> {
        let rows = self.rows(request).await;
        rows.map(Response::new).map_err(|e| status(&e))
    }

    async fn do_put(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> std::result::Result<Response<Self::DoPutStream>, Status> {
        let app_metadata = self.put(request).await.map_err(|e| status(&e))?;
        Ok(reply(vec![PutResult { app_metadata }]))
    }

    async fn do_action(&self, request: Request<Action>) -> std::result::Result<Response<Self::DoActionStream>, Status> {
        let bodies = self.action(request).await.map_err(|e| status(&e))?;
        let result = |body: Vec<u8>| arrow_flight::Result { body: body.into() };
        Ok(reply(bodies.into_iter().map(result).collect()))
    }

    async fn list_actions(&self, _: Request<Empty>) -> std::result::Result<Response<Self::ListActionsStream>, Status> {
        let actions = [
            (CREATE_PREPARED, "prepares a statement"),
            (CLOSE_PREPARED, "forgets a prepared statement"),
            (CANCEL_INFO, "answers that dropping the stream is how to cancel"),
            (options::SET, "changes settings of the session"),
            (options::GET, "tells settings of the session"),
            (options::CLOSE, "forgets the session"),
        ];
        let action = |(name, about): (&str, &str)| ActionType {
            r#type: name.to_owned(),
            description: about.to_owned(),
        };
        Ok(reply(actions.into_iter().map(action).collect()))
    }

    async fn do_exchange(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> std::result::Result<Response<Self::DoExchangeStream>, Status> {
        refuse("DoExchange", "use DoGet and DoPut")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_an_error() {
        for bytes in [&b"garbage"[..], b"\x0a\xff", b"\x0a\x04abcd\x12\x02\xff\xff", b"\x00"] {
            if let Ok(command) = command(bytes) {
                assert!(matches!(command, Command::Unknown(_)), "{bytes:?}");
            }
            assert!(
                unpack::<ActionCreatePreparedStatementRequest>(bytes).is_err(),
                "{bytes:?}"
            );
        }
        // The right type with the wrong bytes.
        let any = Any {
            type_url: "type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery".into(),
            value: Bytes::from_static(b"\xff\xff"),
        };
        assert_eq!(command(&any.encode_to_vec()).expect_err("malformed").code, "08P01");
    }
}
