//! One client's state and the dispatch of its statements. One session per connection; statements run one at a time.
//!
//! ```text
//!   parse (tessera_parser)  ──▶  describe: types of parameters and columns       extended protocol only
//!                           ──▶  execute:  Outcome { Rows | Done | CopyIn }
//! ```
//!
//! A statement is its own transaction unless it is in a block (control.rs).

mod control;

pub use control::TransactionStatus;

use crate::engine::Engine;
use crate::error::from_unsupported;
use crate::outcome::{Described, Outcome, RowsTag};
use crate::settings::Settings;
use crate::stack::OnLargeStack;
use crate::txn::open::OpenTransaction;
use crate::txn::snapshots::Holds;
use crate::{ddl, execute, explain, ingest};
use control::Control;
use datafusion::scalar::ScalarValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use tessera_parser::{CopySource, Insert, ParsedStatement, Statement};
use tessera_proto::sql_type::SqlType;
use tessera_proto::{Error, Result, Timestamp};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Who connects.
#[derive(Debug, Clone, Default)]
pub struct SessionParams {
    /// User name; shown, not yet checked.
    pub user: String,
    /// Database name; there is one database, whatever it is called.
    pub database: String,
    /// `application_name` of the startup message.
    pub application_name: String,
}

/// One client's session. A clone is a session of its own that begins with the same settings.
#[derive(Debug, Clone)]
pub struct Session {
    engine: Arc<Engine>,
    params: SessionParams,
    settings: Settings,
    control: Control,
}

/// What one statement runs with.
#[derive(Debug, Clone)]
pub(crate) struct StatementContext {
    /// Everything shared.
    pub engine: Arc<Engine>,
    /// The session's settings when the statement began.
    pub settings: Settings,
    /// User, database, application.
    pub params: SessionParams,
    /// Fires when the user cancels.
    pub cancel: CancellationToken,
    /// When the statement must have ended.
    pub deadline: Instant,
    /// Nodes keep what they do for it.
    pub profile: bool,
    /// The transaction it belongs to; `None` when it is one of its own.
    pub transaction: Option<Arc<OpenTransaction>>,
    /// What it reads at, where it says so itself (AS OF SYSTEM TIME).
    pub as_of: Option<Timestamp>,
    /// Snapshots that the nodes keep for it.
    pub holds: Holds,
}

impl StatementContext {
    /// Milliseconds left, at least 1.
    pub fn deadline_ms(&self) -> u64 {
        (self.deadline.saturating_duration_since(Instant::now()).as_millis() as u64).max(1)
    }

    /// What to read at.
    ///
    /// # Errors
    /// The oracle's.
    pub async fn snapshot(&self) -> Result<Timestamp> {
        match (self.as_of, &self.transaction) {
            (Some(snapshot), _) => Ok(snapshot),
            (None, Some(transaction)) => transaction.snapshot(&self.holds).await,
            (None, None) => self.new_snapshot().await,
        }
    }

    /// A snapshot of now, whatever the statement belongs to.
    ///
    /// # Errors
    /// The oracle's.
    pub async fn new_snapshot(&self) -> Result<Timestamp> {
        let (snapshot, held) = self.engine.snapshot().await?;
        self.holds.add(held);
        Ok(snapshot)
    }

    /// Makes the nodes keep what a snapshot sees, if they still have it.
    pub fn hold(&self, snapshot: Timestamp) {
        self.holds.add(self.engine.snapshots().hold_at(snapshot));
    }

    /// Runs `work` until it ends, the user cancels, or time is over. For work that leaves nothing behind when dropped.
    ///
    /// # Errors
    /// 57014, or the work's own.
    pub async fn bounded<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(crate::error::cancelled_by_user()),
            result = work => result,
            () = tokio::time::sleep_until(self.deadline) => Err(crate::error::timed_out()),
        }
    }
}

impl Session {
    pub(crate) fn new(engine: Arc<Engine>, params: SessionParams) -> Self {
        let mut settings = Settings::default();
        // A name that is too long for a setting is no reason to refuse the client.
        let _ = settings.set_initial("application_name", &params.application_name);
        Self {
            engine,
            params,
            settings,
            control: Control::default(),
        }
    }

    /// Everything shared by sessions.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Who is connected.
    pub fn params(&self) -> &SessionParams {
        &self.params
    }

    /// A setting's value; `None` when there is no such setting. Names ignore case.
    pub fn setting(&self, name: &str) -> Option<String> {
        self.settings.get(name)
    }

    /// Sets a value that the client's startup message carries (`options`, `TimeZone`, ...); RESET comes back to it.
    ///
    /// # Errors
    /// 42704 for an unknown name, 22023 for a bad value.
    pub fn set_initial(&mut self, name: &str, value: &str) -> Result<()> {
        self.settings.set_initial(name, value)
    }

    /// Types of a statement's parameters and columns, without running it. `hints[i]` is the type that the client
    /// declared for `$i+1`.
    ///
    /// # Errors
    /// What binding finds: unknown names, wrong types, parameters whose type cannot be told (42P18).
    pub async fn describe(&self, statement: &ParsedStatement, hints: &[Option<SqlType>]) -> Result<Described> {
        if self.transaction_status() == TransactionStatus::Failed && !control::is_control(&statement.statement) {
            return Err(control::aborted());
        }
        let context = self.context(CancellationToken::new());
        let described = execute::describe::describe(&context, &statement.statement, hints);
        OnLargeStack::new(context.bounded(described)).await
    }

    /// Runs a statement. `params` are the values of `$1`, `$2`, ..., of the types that `describe` told (NULLs typed).
    ///
    /// Dropping the future abandons the statement: reads stop, definitions and commits already sent may still happen.
    ///
    /// # Errors
    /// Anything a statement can fail with; nothing of it remains, except for 40003 (nobody knows).
    pub async fn execute(
        &mut self,
        statement: &ParsedStatement,
        params: Vec<ScalarValue>,
        cancel: CancellationToken,
    ) -> Result<Outcome> {
        let result = self.dispatch(statement, params, cancel).await;
        if result.is_err() {
            self.fail();
        }
        result.map_err(crate::error::give_up)
    }

    async fn dispatch(
        &mut self,
        statement: &ParsedStatement,
        params: Vec<ScalarValue>,
        cancel: CancellationToken,
    ) -> Result<Outcome> {
        if let Some(outcome) = self.control(&statement.statement).await? {
            return Ok(outcome);
        }
        if statement.statement == Statement::Discard {
            self.settings.reset_all();
            return Ok(Outcome::done("DISCARD ALL"));
        }
        let mut context = self.context(cancel);
        if let Some(as_of) = &statement.as_of {
            if self.in_block() {
                return Err(execute::as_of::refused("in a transaction block"));
            }
            context.read_as_of(as_of).await?;
        }
        OnLargeStack::new(run(&context, statement, params)).await
    }

    /// Runs an INSERT once for each of `rows`, the values of its parameters, as one transaction. Returns the rows written.
    ///
    /// # Errors
    /// Those of any row: then nothing of any remains, except for 40003 (nobody knows).
    pub(crate) async fn insert_many(
        &self,
        insert: &Insert,
        rows: impl Iterator<Item = Result<Vec<ScalarValue>>> + Send,
        cancel: CancellationToken,
    ) -> Result<u64> {
        let context = self.context(cancel);
        let work = ingest::insert::run_many(&context, insert, rows);
        OnLargeStack::new(work).await.map_err(crate::error::give_up)
    }

    /// Settings that are not the defaults, by name.
    pub(crate) fn changed_settings(&self) -> &BTreeMap<String, String> {
        self.settings.changed()
    }

    /// What one statement of this session runs with; its time begins now.
    pub(crate) fn context(&self, cancel: CancellationToken) -> StatementContext {
        let deadline = Instant::now() + self.settings.time_limit();
        StatementContext {
            engine: self.engine.clone(),
            settings: self.settings.clone(),
            params: self.params.clone(),
            cancel,
            deadline,
            profile: false,
            transaction: self.control.transaction(),
            as_of: None,
            holds: Holds::default(),
        }
    }
}

/// Every statement that does not change the session itself.
async fn run(context: &StatementContext, parsed: &ParsedStatement, params: Vec<ScalarValue>) -> Result<Outcome> {
    let statement = &parsed.statement;
    match statement {
        Statement::Query(query) => execute::query::run(context, query, &parsed.text, params, RowsTag::Select).await,
        Statement::Explain {
            analyze,
            verbose,
            format,
            query,
        } => {
            let what = explain::Explain {
                analyze: *analyze,
                verbose: *verbose,
                format: *format,
            };
            explain::run(context, what, query, params).await
        }
        Statement::Insert(insert) => ingest::insert::run(context, insert, params).await,
        Statement::Update(update) => ingest::change::run(context, &update.into(), params).await,
        Statement::Delete(delete) => ingest::change::run(context, &delete.into(), params).await,
        Statement::CreateTableAs(create) => ddl::create_as::run(context, create, params).await,
        Statement::CopyFrom(copy) => match &copy.source {
            CopySource::Stdin => ingest::copy_in::start(context, copy).await,
            CopySource::File(path) => ingest::copy_in::from_file(context, copy, path).await,
        },
        Statement::CopyTo(copy) => execute::copy_to::run(context, copy).await,
        Statement::Show { name } => execute::show::run(context, name).await,
        Statement::VerifyTable { name } => execute::verify::run(context, name).await,
        Statement::Analyze { tables } => execute::analyze::run(context, tables).await,
        Statement::Vacuum(vacuum) => execute::vacuum::run(context, vacuum).await,
        Statement::AlterShard { shard, table, action } => ddl::alter_shard::run(context, *shard, table, *action).await,
        Statement::CreateSchema { .. }
        | Statement::CreateTable(_)
        | Statement::CreateView { .. }
        | Statement::DropTable { .. }
        | Statement::DropView { .. }
        | Statement::DropSchema { .. } => ddl::run(context, statement).await,
        Statement::Unsupported(unsupported) => Err(from_unsupported(unsupported)),
        Statement::Set { .. }
        | Statement::Reset { .. }
        | Statement::Discard
        | Statement::Begin(_)
        | Statement::Commit { .. }
        | Statement::Rollback { .. }
        | Statement::Savepoint { .. }
        | Statement::Release { .. }
        | Statement::RollbackTo { .. } => Err(Error::internal("settings and transactions belong to the session")),
    }
}
