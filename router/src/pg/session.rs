//! The seam between the wire and what executes statements.
//!
//! ```text
//!   Connection ── SqlSession ──┬── tessera_router::Session (the engine)
//!                              └── a scripted fake (tests of the protocol alone)
//! ```
//!
//! The wire needs little of a session and nothing else of the engine: describe, execute, and settings. A COPY is
//! a [`CopySink`] because the engine's `CopyIn` cannot exist without a cluster.

use crate::outcome::{CopyOut, Described, Outcome, RowsTag};
use crate::session::TransactionStatus;
use crate::{CopyIn, Engine, Session, SessionParams};
use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::ScalarValue;
use datafusion::execution::SendableRecordBatchStream;
use std::sync::Arc;
use tessera_parser::{CopyOptions, ParsedStatement};
use tessera_proto::Result;
use tessera_proto::sql_type::SqlType;
use tessera_proto::table::ColumnDef;
use tokio_util::sync::CancellationToken;

/// Makes sessions, one per connection.
pub(crate) trait SqlEngine: Send + Sync + 'static {
    /// What it makes.
    type Session: SqlSession + 'static;
    /// A session for a client that has finished its startup; `number` is its process id, as clients see it.
    fn open(self: &Arc<Self>, user: String, database: String, application_name: String, number: i32) -> Self::Session;
}

/// One client's session.
#[async_trait]
pub(crate) trait SqlSession: Send + Sync {
    /// Parameter and column types of a statement that is not run. A hint is a type the client declared.
    async fn describe(&self, statement: &ParsedStatement, hints: &[Option<SqlType>]) -> Result<Described>;
    /// Runs one statement. When `cancel` fires the future ends soon, with 57014 unless the statement was past saving.
    async fn execute(
        &mut self,
        statement: &ParsedStatement,
        params: Vec<ScalarValue>,
        cancel: CancellationToken,
    ) -> Result<Reply>;
    /// A statement failed after `execute` returned, or before it was called: its transaction has failed.
    fn fail(&mut self);
    /// Where the session stands.
    fn transaction_status(&self) -> TransactionStatus;
    /// Makes the statements that follow one transaction, unless they are in one.
    fn begin_implicit(&mut self);
    /// Commits what [`Self::begin_implicit`] began.
    async fn end_implicit(&mut self) -> Result<()>;
    /// A setting's value.
    fn setting(&self, name: &str) -> Option<String>;
    /// Sets a value of the startup message; RESET comes back to it.
    fn set_initial(&mut self, name: &str, value: &str) -> Result<()>;
}

/// An [`Outcome`], with COPY behind a trait.
pub(crate) enum Reply {
    /// Rows, streamed.
    Rows {
        /// Columns in order.
        schema: SchemaRef,
        /// Declared types, as long as `schema` or empty.
        declared: Vec<Option<SqlType>>,
        /// Batches of `schema`.
        stream: SendableRecordBatchStream,
        /// Command tag.
        tag: RowsTag,
    },
    /// No rows.
    Done {
        /// Complete command tag.
        tag: String,
        /// Things worth knowing.
        notices: Vec<tessera_proto::Error>,
    },
    /// The client sends rows next.
    CopyIn(Box<dyn CopySink>),
    /// The client gets lines.
    CopyOut(CopyOut),
    /// Nothing was asked.
    Empty,
}

/// Takes the rows of one COPY ... FROM STDIN.
#[async_trait]
pub(crate) trait CopySink: Send {
    /// The columns that are copied, in the order of the data.
    fn columns(&self) -> &[ColumnDef];
    /// How the data is written.
    fn options(&self) -> &CopyOptions;
    /// Takes a batch of those columns; waits while the shards are behind, which is what holds the client back.
    async fn write(&mut self, batch: RecordBatch) -> Result<()>;
    /// Commits; the rows copied.
    async fn finish(self: Box<Self>) -> Result<u64>;
    /// Leaves nothing behind.
    async fn abort(self: Box<Self>);
}

impl SqlEngine for Engine {
    type Session = Session;

    fn open(self: &Arc<Self>, user: String, database: String, application_name: String, number: i32) -> Session {
        self.session(SessionParams {
            user,
            database,
            application_name,
            number,
        })
    }
}

#[async_trait]
impl SqlSession for Session {
    async fn describe(&self, statement: &ParsedStatement, hints: &[Option<SqlType>]) -> Result<Described> {
        Session::describe(self, statement, hints).await
    }

    async fn execute(
        &mut self,
        statement: &ParsedStatement,
        params: Vec<ScalarValue>,
        cancel: CancellationToken,
    ) -> Result<Reply> {
        Session::execute(self, statement, params, cancel).await.map(Reply::from)
    }

    fn fail(&mut self) {
        Session::fail(self);
    }

    fn transaction_status(&self) -> TransactionStatus {
        Session::transaction_status(self)
    }

    fn begin_implicit(&mut self) {
        Session::begin_implicit(self);
    }

    async fn end_implicit(&mut self) -> Result<()> {
        Session::end_implicit(self).await
    }

    fn setting(&self, name: &str) -> Option<String> {
        Session::setting(self, name)
    }

    fn set_initial(&mut self, name: &str, value: &str) -> Result<()> {
        Session::set_initial(self, name, value)
    }
}

impl From<Outcome> for Reply {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Rows {
                schema,
                columns,
                stream,
                tag,
            } => Self::Rows {
                schema,
                declared: columns,
                stream,
                tag,
            },
            Outcome::Done { tag, notices } => Self::Done { tag, notices },
            Outcome::CopyIn(copy) => Self::CopyIn(copy),
            Outcome::CopyOut(copy) => Self::CopyOut(copy),
            Outcome::Empty => Self::Empty,
        }
    }
}

#[async_trait]
impl CopySink for CopyIn {
    fn columns(&self) -> &[ColumnDef] {
        CopyIn::columns(self)
    }

    fn options(&self) -> &CopyOptions {
        CopyIn::options(self)
    }

    async fn write(&mut self, batch: RecordBatch) -> Result<()> {
        CopyIn::write(self, batch).await
    }

    async fn finish(self: Box<Self>) -> Result<u64> {
        CopyIn::finish(*self).await
    }

    async fn abort(self: Box<Self>) {
        CopyIn::abort(*self).await;
    }
}
