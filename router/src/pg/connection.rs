//! One client: reads a message, does it, answers; until the client leaves, breaks the protocol, or the server stops.
//!
//! ```text
//!   Query ─▶ statement by statement ─▶ ReadyForQuery                                  simple.rs
//!   Parse Bind Describe Execute Close ─▶ buffered answers ─ Sync ─▶ ReadyForQuery      extended.rs
//!                 └─ error: skip everything up to Sync
//!   CopyData CopyDone CopyFail outside a COPY: dropped (what is left of one that failed)
//! ```
//!
//! While a statement runs, three things end it early: a cancel request, a client that hangs up, and the end of the server.
//! Each fires the statement's token. A panic inside a statement becomes XX000 for that statement.
//!
//! Each error puts the session's transaction into the failed state, whatever it was about.

use super::PgLimits;
use super::cancel::CancelKey;
use super::channel::{Broken, Channel};
use super::extended::{Portal, Prepared};
use super::message::{Frame, Frontend};
use super::report::{Severity, error_message, notice_message};
use super::session::SqlSession;
use super::startup::REPORTED;
use crate::session::TransactionStatus as Status;
use futures::FutureExt;
use pgwire::messages::PgWireBackendMessage as Message;
use pgwire::messages::response::{CommandComplete, ReadyForQuery, TransactionStatus};
use pgwire::messages::startup::ParameterStatus;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tessera_parser::{ParsedStatement, Statement};
use tessera_proto::{Error, Result};
use tokio_util::sync::CancellationToken;

/// Texts from this length on are parsed apart from the threads that serve sockets: at some 50 MB/s this is a millisecond.
const PARSE_INLINE_BYTES_MAX: usize = 64 << 10;

/// How long a client may take to read our last words.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Why what was asked for was not done to its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// Report it; the connection goes on.
    Statement(Error),
    /// Report it and close.
    Fatal(Error),
    /// Nobody is left to report to.
    Gone,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Statement(error)
    }
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Gone => Self::Gone,
            Broken::Refused(error) => Self::Fatal(error),
        }
    }
}

/// A connection after startup.
pub(super) struct Connection<S> {
    pub(super) channel: Channel,
    pub(super) session: S,
    pub(super) key: CancelKey,
    pub(super) limits: Arc<PgLimits>,
    pub(super) shutdown: CancellationToken,
    /// Prepared statements by name; the unnamed one has the empty name.
    pub(super) statements: HashMap<String, Arc<Prepared>>,
    /// Portals by name; they live until Sync.
    pub(super) portals: HashMap<String, Portal>,
    /// What the client was last told of each of [`REPORTED`].
    pub(super) told: Vec<Option<String>>,
    /// After an error in the extended protocol: everything up to Sync is dropped.
    pub(super) skipping: bool,
}

impl<S: SqlSession> Connection<S> {
    /// Serves the client to the end.
    pub(super) async fn run(mut self) {
        if let Stop::Fatal(error) = self.serve().await {
            farewell(self.channel, &error).await;
        }
    }

    async fn serve(&mut self) -> Stop {
        loop {
            let done = match self.next_frame().await {
                Ok(frame) if frame.kind == b'X' => return Stop::Gone,
                Ok(frame) => self.answer(frame).await,
                Err(stop) => Err(stop),
            };
            if let Err(stop) = done {
                return stop;
            }
        }
    }

    /// Waits for the next frame, the end of the server, or the end of patience.
    async fn next_frame(&mut self) -> Result<Frame, Stop> {
        let idle = async {
            match self.limits.idle_timeout {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        // Only then is the setting worth looking up: point reads come by here every quarter of a millisecond.
        let in_transaction = self.session.transaction_status() != Status::Idle;
        let limit = in_transaction.then(|| self.session.setting("idle_in_transaction_session_timeout"));
        let limit = limit.flatten().and_then(|ms| ms.parse().ok()).filter(|ms| *ms > 0);
        let idle_in_transaction = async {
            match limit {
                Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(Stop::Fatal(shutting_down())),
            frame = self.channel.read() => Ok(frame?),
            () = idle_in_transaction => Err(Stop::Fatal(Error::new(
                "25P03",
                "terminating connection due to idle-in-transaction timeout",
            ))),
            () = idle => Err(Stop::Fatal(Error::new("57P05", "terminating connection due to idle-session timeout"))),
        }
    }

    /// Does one frame and reports its error, if that is all there is to do about it.
    async fn answer(&mut self, frame: Frame) -> Result<(), Stop> {
        let kind = frame.kind;
        if self.skipping && kind != b'S' {
            return Ok(());
        }
        let result = match Frontend::read(frame) {
            Ok(message) => self.handle(message).await,
            // The frame was whole, so the next one is found; only its text is bad.
            Err(error) if error.code == "22021" => Err(Stop::Statement(error)),
            Err(error) => Err(Stop::Fatal(error)),
        };
        match result {
            Err(Stop::Statement(error)) => self.report(&error, kind).await,
            other => other,
        }
    }

    async fn report(&mut self, error: &Error, kind: u8) -> Result<(), Stop> {
        tracing::debug!(code = %error.code, message = %error.message, "statement failed");
        self.session.fail();
        self.put(&error_message(error, Severity::Error))?;
        // ROLLBACK changes settings back.
        self.report_settings()?;
        if Frontend::kind_is_extended(kind) {
            self.skipping = true;
        } else {
            self.ready()?;
        }
        Ok(self.channel.flush().await?)
    }

    async fn handle(&mut self, message: Frontend) -> Result<(), Stop> {
        match message {
            Frontend::Query(text) => {
                self.simple_query(text).await?;
                self.ready()?;
                self.channel.flush().await?;
            }
            Frontend::Parse { name, query, oids } => self.parse(name, query, &oids).await?,
            Frontend::Bind(bind) => self.bind(bind)?,
            Frontend::Describe(target) => self.describe(&target)?,
            Frontend::Execute { portal, rows_max } => self.execute(portal, rows_max).await?,
            Frontend::Close(target) => self.close(&target)?,
            Frontend::Flush => self.channel.flush().await?,
            Frontend::Sync => {
                self.skipping = false;
                self.portals.clear();
                if let Err(error) = self.session.end_implicit().await {
                    self.put(&error_message(&error, Severity::Error))?;
                }
                self.ready()?;
                self.channel.flush().await?;
            }
            Frontend::FunctionCall => {
                return Err(Error::unsupported("function calls are not supported", "use SELECT function(...)").into());
            }
            Frontend::CopyData(_) | Frontend::CopyDone | Frontend::CopyFail(_) | Frontend::Terminate => {}
        }
        Ok(())
    }

    /// Queues a message.
    pub(super) fn put(&mut self, message: &Message) -> Result<(), Stop> {
        self.channel.put(message).map_err(Stop::Fatal)
    }

    /// Queues a command tag.
    pub(super) fn complete(&mut self, tag: String) -> Result<(), Stop> {
        self.put(&Message::CommandComplete(CommandComplete::new(tag)))
    }

    /// Queues notices.
    pub(super) fn notices(&mut self, notices: &[Error]) -> Result<(), Stop> {
        notices.iter().try_for_each(|notice| self.put(&notice_message(notice)))
    }

    /// Queues ReadyForQuery.
    pub(super) fn ready(&mut self) -> Result<(), Stop> {
        let status = match self.session.transaction_status() {
            Status::Idle => TransactionStatus::Idle,
            Status::Open => TransactionStatus::Transaction,
            Status::Failed => TransactionStatus::Error,
        };
        self.put(&Message::ReadyForQuery(ReadyForQuery::new(status)))
    }

    /// Tells the client of settings that are not what it was told before.
    pub(super) fn report_settings(&mut self) -> Result<(), Stop> {
        for (i, name) in REPORTED.iter().enumerate() {
            let value = self.session.setting(name);
            if let Some(value) = value.filter(|v| self.told[i].as_ref() != Some(v)) {
                let message = ParameterStatus::new((*name).to_owned(), value.replace('\0', ""));
                self.put(&Message::ParameterStatus(message))?;
                self.told[i] = Some(value);
            }
        }
        Ok(())
    }

    /// What a statement that succeeded changes on this side.
    pub(super) fn after(&mut self, statement: &ParsedStatement) -> Result<(), Stop> {
        match &statement.statement {
            Statement::Discard => {
                self.statements.clear();
                self.portals.clear();
                self.report_settings()
            }
            Statement::Set { .. }
            | Statement::Reset { .. }
            | Statement::Commit { .. }
            | Statement::Rollback { .. }
            | Statement::RollbackTo { .. } => self.report_settings(),
            _ => Ok(()),
        }
    }
}

/// Whether a statement begins or ends a transaction itself: alone there is nothing to hold together.
pub(super) fn is_about_transactions(statement: &ParsedStatement) -> bool {
    matches!(
        statement.statement,
        Statement::Begin(_) | Statement::Commit { .. } | Statement::Rollback { .. }
    )
}

/// Says why the connection ends, and ends it.
pub(super) async fn farewell(mut channel: Channel, error: &Error) {
    if channel.put(&error_message(error, Severity::Fatal)).is_ok() {
        // Whoever does not read it in time does not want to know.
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, channel.close()).await;
    }
}

/// 57P01.
pub(super) fn shutting_down() -> Error {
    Error::new("57P01", "terminating connection due to administrator command")
}

/// Waits for `work` while watching for what ends it early; then `token` fires and `work` is waited for all the same, since
/// only it knows what it has done. A panic is an error.
pub(super) async fn attend<T>(
    channel: &mut Channel,
    shutdown: &CancellationToken,
    token: &CancellationToken,
    work: impl Future<Output = Result<T>>,
) -> Result<T, Stop> {
    let mut work = std::pin::pin!(AssertUnwindSafe(work).catch_unwind());
    let (mut gone, mut stopping) = (false, false);
    let result = loop {
        tokio::select! {
            biased;
            result = &mut work => break result.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))),
            () = shutdown.cancelled(), if !stopping => {
                stopping = true;
                token.cancel();
            }
            () = channel.hangup(), if !gone => {
                gone = true;
                token.cancel();
            }
        }
    };
    match result {
        _ if gone => Err(Stop::Gone),
        Err(_) if stopping => Err(Stop::Fatal(shutting_down())),
        other => other.map_err(Stop::Statement),
    }
}

/// XX000 for a panic, with what it said.
fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("no message");
    tracing::error!(panic = text, "statement panicked");
    Error::internal(format!("statement failed inside: {text}")).with_hint("this is a bug; the session goes on")
}

/// Parses a text, large ones apart from the threads that serve sockets.
pub(crate) async fn parse(text: String) -> Result<Vec<ParsedStatement>> {
    match text.len() {
        0..=PARSE_INLINE_BYTES_MAX => parse_here(&text),
        _ => tokio::task::spawn_blocking(move || parse_here(&text))
            .await
            .map_err(|e| Error::internal(format!("parser: {e}")))?,
    }
}

fn parse_here(text: &str) -> Result<Vec<ParsedStatement>> {
    match std::panic::catch_unwind(|| tessera_parser::parse(text)) {
        Ok(parsed) => parsed.map_err(crate::error::from_parse),
        Err(panic) => Err(panicked(panic.as_ref())),
    }
}
