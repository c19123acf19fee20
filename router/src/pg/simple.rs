//! The simple protocol: one text, any number of statements.
//!
//! ```text
//!   Query "a; b; c"   parse all; wrong somewhere: nothing runs
//!     a: rows streamed to the end, tag     b: runs only now, so it sees what a did     c: fails, so ErrorResponse
//!   ReadyForQuery     a, b and c are one transaction: nothing of them remains
//! ```
//!
//! Departure from PostgreSQL: a definition among them commits what is before it.

use super::connection::{Connection, Stop, attend, is_about_transactions, parse};
use super::encode::{RowEncoder, Style};
use super::rows::{Encoder, RowSource, Sent};
use super::session::{Reply, SqlSession};
use super::types;
use pgwire::messages::PgWireBackendMessage as Message;
use pgwire::messages::response::EmptyQueryResponse;
use tessera_parser::ParsedStatement;
use tokio_util::sync::CancellationToken;

impl<S: SqlSession> Connection<S> {
    /// Runs a text. The caller says ReadyForQuery.
    pub(super) async fn simple_query(&mut self, text: String) -> Result<(), Stop> {
        self.statements.remove("");
        self.portals.clear();
        let statements = parse(text).await?;
        if statements.is_empty() {
            return self.put(&Message::EmptyQueryResponse(EmptyQueryResponse::new()));
        }
        for statement in &statements {
            if statements.len() > 1 && !is_about_transactions(statement) {
                self.session.begin_implicit();
            }
            let token = CancellationToken::new();
            self.key.begin(token.clone());
            let result = self.simple_statement(statement, &token).await;
            self.key.end();
            result?;
        }
        self.session.end_implicit().await?;
        Ok(())
    }

    async fn simple_statement(&mut self, statement: &ParsedStatement, token: &CancellationToken) -> Result<(), Stop> {
        let work = self.session.execute(statement, vec![], token.clone());
        let reply = attend(&mut self.channel, &self.shutdown, token, work).await?;
        self.after(statement)?;
        match reply {
            Reply::Rows {
                schema,
                declared,
                stream,
                tag,
            } => {
                let encoder = RowEncoder::new(types::columns(&schema, &declared)?, vec![], self.style());
                self.put(&Message::RowDescription(types::row_description(encoder.columns(), &[])))?;
                let mut source = RowSource::new(stream, Encoder::Rows(encoder), token.clone(), tag);
                let sent = source.send(&mut self.channel, &self.shutdown, 0).await?;
                let rows = if let Sent::All(rows) = sent { rows } else { 0 };
                self.complete(source.tag(rows))
            }
            Reply::Done { tag, notices } => {
                self.notices(&notices)?;
                self.complete(tag)
            }
            Reply::CopyIn(sink) => {
                let rows = self.copy_in(sink, token).await?;
                self.complete(format!("COPY {rows}"))
            }
            Reply::CopyOut(copy) => self.copy_out(copy, token).await,
            Reply::Empty => self.put(&Message::EmptyQueryResponse(EmptyQueryResponse::new())),
        }
    }

    /// How values look in this session at this moment.
    pub(super) fn style(&self) -> Style {
        let (zone, digits) = (
            self.session.setting("timezone"),
            self.session.setting("extra_float_digits"),
        );
        Style::new(zone.as_deref(), digits.as_deref())
    }
}
