//! The extended protocol: statements prepared once, bound and run many times.
//!
//! ```text
//!   Parse "s"  ──▶ Prepared { statement, parameter types, columns }      until Close, or Parse again if unnamed
//!   Bind "s"   ──▶ Portal { values, formats }                            until Sync
//!   Execute 10 ──▶ 10 rows, PortalSuspended ── Execute 0 ──▶ the rest, CommandComplete
//! ```
//!
//! Statements up to Sync are one transaction, as several in one text of the simple protocol are (simple.rs).
//!
//! A statement is described when it is parsed, so that its errors come then. What was described is what is sent: if a table
//! changed since, Execute fails with PostgreSQL's "cached plan must not change result type".
//!
//! Bounds per session: `statements_max`, `statement_bytes_max`, `portals_max`. Nothing is evicted: a driver would not know.

use super::connection::{Connection, Stop, attend, is_about_transactions, parse};
use super::encode::RowEncoder;
use super::message::{Bind, Target};
use super::params;
use super::rows::{Encoder, RowSource, Sent};
use super::session::{Reply, SqlSession};
use super::types::{self, Column, check_formats, format_of, hint_of};
use crate::outcome::Described;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use pgwire::messages::PgWireBackendMessage as Message;
use pgwire::messages::data::{NoData, ParameterDescription};
use pgwire::messages::extendedquery::{BindComplete, CloseComplete, ParseComplete, PortalSuspended};
use pgwire::messages::response::EmptyQueryResponse;
use postgres_types::Type;
use std::sync::Arc;
use tessera_parser::ParsedStatement;
use tessera_proto::{Error, Result};
use tokio_util::sync::CancellationToken;

/// A prepared statement.
pub(super) struct Prepared {
    /// `None` for an empty text.
    statement: Option<ParsedStatement>,
    /// Parameter types as clients know them: declared, else inferred.
    params: Vec<Type>,
    /// Parameter types as the engine knows them; may be fewer.
    arrow_params: Vec<DataType>,
    /// Result columns; `None` for a statement without rows.
    columns: Option<Vec<Column>>,
    /// Bytes of its text.
    bytes: usize,
}

/// A statement with values.
pub(super) struct Portal {
    prepared: Arc<Prepared>,
    values: Vec<ScalarValue>,
    formats: Vec<i16>,
    state: State,
}

enum State {
    /// Not yet run.
    Bound,
    /// Run, with rows left.
    Suspended(Box<RowSource>),
    /// Rows all sent.
    Drained(String),
    /// Done, and cannot be run again.
    Done,
}

impl<S: SqlSession> Connection<S> {
    /// Parse.
    pub(super) async fn parse(&mut self, name: String, query: String, oids: &[u32]) -> Result<(), Stop> {
        if name.is_empty() {
            self.statements.remove("");
        } else if self.statements.contains_key(&name) {
            return Err(Error::new("42P05", format!("prepared statement \"{name}\" already exists")).into());
        }
        let bytes = query.len();
        self.check_room(bytes)?;
        let mut parsed = parse(query).await?;
        let statement = parsed.pop();
        if !parsed.is_empty() {
            return Err(Error::new("42601", "cannot insert multiple commands into a prepared statement").into());
        }
        let described = match &statement {
            Some(statement) => self.describe_statement(statement, oids).await?,
            None => Described {
                params: vec![],
                columns: None,
                declared: vec![],
            },
        };
        let prepared = Prepared {
            statement,
            params: param_types(oids, &described.params)?,
            arrow_params: described.params,
            columns: described
                .columns
                .map(|schema| types::columns(&schema, &described.declared))
                .transpose()?,
            bytes,
        };
        self.statements.insert(name, Arc::new(prepared));
        self.put(&Message::ParseComplete(ParseComplete::new()))
    }

    fn check_room(&self, bytes: usize) -> Result<()> {
        let held: usize = self.statements.values().map(|s| s.bytes).sum();
        if self.statements.len() >= self.limits.statements_max
            || held.saturating_add(bytes) > self.limits.statement_bytes_max
        {
            return Err(Error::new(
                "53400",
                format!(
                    "session holds {} prepared statements of {held} bytes",
                    self.statements.len()
                ),
            )
            .with_hint("close statements that are no longer needed"));
        }
        Ok(())
    }

    async fn describe_statement(&mut self, statement: &ParsedStatement, oids: &[u32]) -> Result<Described, Stop> {
        let hints: Vec<_> = oids.iter().map(|oid| hint_of(*oid)).collect();
        let token = CancellationToken::new();
        self.key.begin(token.clone());
        let session = &self.session;
        // Describing changes nothing, so it may just be dropped.
        let work = async {
            tokio::select! {
                biased;
                () = token.cancelled() => Err(crate::error::cancelled_by_user()),
                described = session.describe(statement, &hints) => described,
            }
        };
        let described = attend(&mut self.channel, &self.shutdown, &token, work).await;
        self.key.end();
        described
    }

    /// Bind.
    pub(super) fn bind(&mut self, bind: Bind) -> Result<(), Stop> {
        let prepared = self.statement(&bind.statement)?.clone();
        if bind.portal.is_empty() {
            self.portals.remove("");
        } else if self.portals.contains_key(&bind.portal) {
            return Err(Error::new("42P03", format!("cursor \"{}\" already exists", bind.portal)).into());
        }
        if self.portals.len() >= self.limits.portals_max {
            return Err(
                Error::new("53400", format!("session holds {} portals", self.portals.len()))
                    .with_hint("send Sync")
                    .into(),
            );
        }
        let (given, wanted) = (bind.values.len(), prepared.params.len());
        if given != wanted {
            return Err(Error::protocol(format!(
                "bind message supplies {given} parameters, but prepared statement \"{}\" requires {wanted}",
                bind.statement
            ))
            .into());
        }
        check_formats(&bind.formats, wanted, "parameter")?;
        check_formats(
            &bind.result_formats,
            prepared.columns.as_ref().map_or(0, Vec::len),
            "result column",
        )?;
        let style = self.style();
        let decode = |(i, value)| {
            params::decode(
                value,
                format_of(&bind.formats, i),
                &prepared.params[i],
                prepared.arrow_params.get(i),
                &style,
            )
            .map_err(|e| Error {
                message: format!("parameter ${}: {}", i + 1, e.message),
                ..e
            })
        };
        let values = bind.values.into_iter().enumerate().map(decode).collect::<Result<_>>()?;
        let portal = Portal {
            prepared,
            values,
            formats: bind.result_formats,
            state: State::Bound,
        };
        self.portals.insert(bind.portal, portal);
        self.put(&Message::BindComplete(BindComplete::new()))
    }

    fn statement(&self, name: &str) -> Result<&Arc<Prepared>> {
        self.statements.get(name).ok_or_else(|| {
            Error::new(
                "26000",
                match name {
                    "" => "unnamed prepared statement does not exist".to_owned(),
                    name => format!("prepared statement \"{name}\" does not exist"),
                },
            )
        })
    }

    /// Describe.
    pub(super) fn describe(&mut self, target: &Target) -> Result<(), Stop> {
        let (prepared, formats) = match target {
            Target::Statement(name) => {
                let prepared = self.statement(name)?.clone();
                let oids = prepared.params.iter().map(Type::oid).collect();
                self.put(&Message::ParameterDescription(ParameterDescription::new(oids)))?;
                (prepared, vec![])
            }
            Target::Portal(name) => {
                let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
                (portal.prepared.clone(), portal.formats.clone())
            }
        };
        match &prepared.columns {
            Some(columns) => self.put(&Message::RowDescription(types::row_description(columns, &formats))),
            None => self.put(&Message::NoData(NoData::new())),
        }
    }

    /// Execute. A portal whose run fails is gone.
    pub(super) async fn execute(&mut self, name: String, rows_max: usize) -> Result<(), Stop> {
        let mut portal = self.portals.remove(&name).ok_or_else(|| no_portal(&name))?;
        let result = match std::mem::replace(&mut portal.state, State::Done) {
            State::Bound => self.run_portal(&mut portal, rows_max).await,
            State::Suspended(source) => {
                self.key.begin(source.token.clone());
                self.send_rows(&mut portal, source, rows_max).await
            }
            State::Drained(tag) => {
                portal.state = State::Drained(tag.clone());
                self.complete(tag)
            }
            State::Done => Err(Error::new("55000", format!("portal \"{name}\" cannot be run")).into()),
        };
        self.key.end();
        result?;
        self.portals.insert(name, portal);
        Ok(())
    }

    async fn run_portal(&mut self, portal: &mut Portal, rows_max: usize) -> Result<(), Stop> {
        let prepared = portal.prepared.clone();
        let Some(statement) = &prepared.statement else {
            portal.state = State::Bound;
            return self.put(&Message::EmptyQueryResponse(EmptyQueryResponse::new()));
        };
        // Statements up to Sync are one transaction. With Sync right behind it this one is all there is.
        if self.channel.next_kind() != Some(b'S') && !is_about_transactions(statement) {
            self.session.begin_implicit();
        }
        let token = CancellationToken::new();
        self.key.begin(token.clone());
        let work = self
            .session
            .execute(statement, std::mem::take(&mut portal.values), token.clone());
        let reply = attend(&mut self.channel, &self.shutdown, &token, work).await?;
        self.after(statement)?;
        match reply {
            Reply::Rows {
                schema,
                declared,
                stream,
                tag,
            } => {
                let columns = types::columns(&schema, &declared)?;
                check_unchanged(prepared.columns.as_deref(), &columns)?;
                let encoder = RowEncoder::new(columns, portal.formats.clone(), self.style());
                self.send_rows(
                    portal,
                    Box::new(RowSource::new(stream, Encoder::Rows(encoder), token, tag)),
                    rows_max,
                )
                .await
            }
            Reply::Done { tag, notices } => {
                self.notices(&notices)?;
                self.complete(tag)
            }
            Reply::CopyIn(sink) => {
                let rows = self.copy_in(sink, &token).await?;
                self.complete(format!("COPY {rows}"))
            }
            Reply::CopyOut(copy) => self.copy_out(copy, &token).await,
            Reply::Empty => self.put(&Message::EmptyQueryResponse(EmptyQueryResponse::new())),
        }
    }

    async fn send_rows(
        &mut self,
        portal: &mut Portal,
        mut source: Box<RowSource>,
        rows_max: usize,
    ) -> Result<(), Stop> {
        match source.send(&mut self.channel, &self.shutdown, rows_max).await? {
            Sent::All(rows) => {
                portal.state = State::Drained(source.tag(0));
                self.complete(source.tag(rows))
            }
            Sent::Some => {
                portal.state = State::Suspended(source);
                self.put(&Message::PortalSuspended(PortalSuspended::new()))
            }
        }
    }

    /// Close. What does not exist is closed already.
    pub(super) fn close(&mut self, target: &Target) -> Result<(), Stop> {
        match target {
            Target::Statement(name) => drop(self.statements.remove(name)),
            Target::Portal(name) => drop(self.portals.remove(name)),
        }
        self.put(&Message::CloseComplete(CloseComplete::new()))
    }
}

fn no_portal(name: &str) -> Error {
    Error::new("34000", format!("portal \"{name}\" does not exist"))
}

/// Declared types where the client declared them, else the inferred ones, else text.
fn param_types(oids: &[u32], inferred: &[DataType]) -> Result<Vec<Type>> {
    let unknown = Type::UNKNOWN.oid();
    (0..oids.len().max(inferred.len()))
        .map(|i| {
            match (
                oids.get(i).copied().filter(|oid| *oid != 0 && *oid != unknown),
                inferred.get(i),
            ) {
                (Some(oid), _) => Type::from_oid(oid)
                    .ok_or_else(|| Error::new("42704", format!("type with OID {oid} does not exist"))),
                (None, Some(inferred)) => types::type_of(inferred),
                (None, None) => Ok(Type::TEXT),
            }
        })
        .collect()
}

/// What the client was told about the columns must hold.
fn check_unchanged(described: Option<&[Column]>, now: &[Column]) -> Result<()> {
    let same = |a: &Column, b: &Column| a.pg_type == b.pg_type && a.name == b.name;
    match described {
        Some(described) if described.len() == now.len() && described.iter().zip(now).all(|(a, b)| same(a, b)) => Ok(()),
        Some(_) => Err(Error::unsupported(
            "cached plan must not change result type",
            "prepare the statement again",
        )),
        None => Err(Error::internal("statement returned rows and was described without")),
    }
}
