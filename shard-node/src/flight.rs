//! Flight at a shard node: a client fetches this node's part of a result straight from it.
//!
//! ```text
//!   router: GetFlightInfo ──▶ ticket {shards 0,3 · snapshot · plan · user · expiry} signed with the cluster's secret
//!   client: DoGet(ticket) ──▶ here: signature, expiry, user ──▶ leaf over the shards led here; the rest from who leads it
//! ```
//!
//! Tickets are all that is served: statements, metadata and uploads are the router's, and a refusal says so. A ticket may be redeemed
//! any number of times until it expires, here or at any other node. Dropping the stream ends the work.

use crate::node::ShardNode;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::{Any, Command};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse,
    PollInfo, PutResult, SchemaResult, Ticket,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use prost::Message;
use std::sync::Arc;
use tessera_meta::leaf;
use tessera_proto::flight::caller::{bearer, caller, check_user};
use tessera_proto::flight::rows::{read_schema, to_flight};
use tessera_proto::flight::seal::{Secret, TICKET_BYTES_MAX};
use tessera_proto::flight::status::status;
use tessera_proto::{Error, Result as NodeResult, v1};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Streams of rows to clients at a time; one more is refused with 53300.
const STREAMS_MAX: usize = 128;
/// A ticket in its envelope.
const MESSAGE_BYTES_MAX: usize = TICKET_BYTES_MAX + (64 << 10);

/// The service.
pub(crate) struct NodeFlight {
    node: Arc<ShardNode>,
    secret: Secret,
    stop: CancellationToken,
    streams: Arc<Semaphore>,
}

type Stream<T> = BoxStream<'static, Result<T, Status>>;

impl NodeFlight {
    /// The tonic service, with its message limit.
    pub(crate) fn service(node: Arc<ShardNode>, secret: Secret, stop: CancellationToken) -> FlightServiceServer<Self> {
        let streams = Arc::new(Semaphore::new(STREAMS_MAX));
        FlightServiceServer::new(Self {
            node,
            secret,
            stop,
            streams,
        })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    async fn rows(&self, request: Request<Ticket>) -> NodeResult<Stream<FlightData>> {
        let caller = caller(request.metadata(), &self.secret)?;
        let malformed = |what: String| Error::protocol(format!("malformed ticket: {what}"));
        let any = Any::decode(request.get_ref().ticket.clone()).map_err(|e| malformed(e.to_string()))?;
        let Command::TicketStatementQuery(ticket) = Command::try_from(any).map_err(|e| malformed(e.to_string()))?
        else {
            return Err(elsewhere("this ticket"));
        };
        let ticket: v1::LeafTicket = self.secret.open(&ticket.statement_handle)?;
        check_user(&caller, &ticket.user)?;
        let permit = self.streams.clone().try_acquire_owned().map_err(|_| {
            let what = format!("{STREAMS_MAX} streams are running on node {}", self.node.id());
            Error::new("53300", what).with_hint("wait for one to end, or drop it")
        })?;
        let schema = read_schema(ticket.schema)?;
        let request = ticket.request.unwrap_or_default();
        let (views, directory) = (self.node.views(), self.node.directory.as_ref());
        let rows = leaf::rows(views, directory, Some(self.node.id()), request, schema.clone()).await?;
        let messages = to_flight(schema, rows, self.stop.clone());
        let held = messages.map(move |message| {
            let _held = &permit;
            message
        });
        Ok(held.boxed())
    }
}

fn elsewhere(what: &str) -> Error {
    Error::unsupported(
        format!("{what} is not served by shard nodes"),
        "connect to the router; nodes serve the tickets of endpoints that name them",
    )
}

fn refuse<T>(what: &str) -> Result<T, Status> {
    Err(status(&elsewhere(what)))
}

#[tonic::async_trait]
impl FlightService for NodeFlight {
    type HandshakeStream = Stream<HandshakeResponse>;
    type ListFlightsStream = Stream<FlightInfo>;
    type DoGetStream = Stream<FlightData>;
    type DoPutStream = Stream<PutResult>;
    type DoActionStream = Stream<arrow_flight::Result>;
    type ListActionsStream = Stream<ActionType>;
    type DoExchangeStream = Stream<FlightData>;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        let caller = caller(request.metadata(), &self.secret).map_err(|e| status(&e))?;
        let token = bearer(&caller.user, &self.secret);
        let value = token
            .parse()
            .map_err(|_| status(&Error::internal("a token is no header")))?;
        let answer = futures::stream::iter([Ok(HandshakeResponse::default())]).boxed();
        let mut response = Response::new(answer);
        response.metadata_mut().insert("authorization", value);
        Ok(response)
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let rows = self.rows(request).await;
        rows.map(Response::new).map_err(|e| status(&e))
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        refuse("ListFlights")
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        refuse("GetFlightInfo")
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        refuse("PollFlightInfo")
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        refuse("GetSchema")
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        refuse("DoPut")
    }

    async fn do_action(&self, _: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        refuse("DoAction")
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Ok(Response::new(futures::stream::empty().boxed()))
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        refuse("DoExchange")
    }
}
