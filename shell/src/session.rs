//! One connection and what is run over it.
//!
//! ```text
//! text --(prepare: column types)--> server          only for a lone SELECT, WITH, VALUES or TABLE
//! text --(simple query)-----------> server --> rows as text --> ResultWriter --> output
//!                 Ctrl-C ---------> cancel request on a second connection
//! ```
//!
//! The simple protocol has every type printed by the server, so the shell knows no type; but the driver hides the types
//! it names, so alignment and JSON ask for them beforehand. Not done: TLS, which comes with the server's.

use std::future::Future;
use std::io::Write;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, SimpleQueryMessage};

use crate::error::{Error, Result};
use crate::format::{Format, ResultWriter};
use crate::message;
use crate::split;
use crate::table::{Column, Kind, Row};

/// How long a connection may take: long enough for a far server, short enough to say "no" to a person.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a cancel request may take before the shell goes back to waiting for the statement.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// What `\timing`, `\x`, `\set` and the command line decide.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings {
    /// How results are printed; `Expanded` is held apart.
    pub format: Format,
    /// `\x`: expanded instead of aligned.
    pub expanded: bool,
    /// `\timing`: print how long each statement took.
    pub timing: bool,
    /// `\set ON_ERROR_STOP on`: end a script at its first error.
    pub stop_on_error: bool,
    /// `-q`: no command tags.
    pub quiet: bool,
}

impl Settings {
    /// The format for the next result.
    pub fn result_format(&self) -> Format {
        match self.format {
            Format::Aligned if self.expanded => Format::Expanded,
            format => format,
        }
    }

    /// Whether tags and footers for people belong into the output.
    fn prints_tags(&self) -> bool {
        !self.quiet && matches!(self.format, Format::Aligned | Format::Expanded)
    }
}

/// A connection with its settings and output.
pub struct Session {
    config: Config,
    client: Client,
    /// The server's version, as it says itself.
    pub server_version: String,
    /// Changed by backslash commands.
    pub settings: Settings,
    /// Where results go; flushed after each statement.
    pub out: Box<dyn Write + Send + Sync>,
}

impl Session {
    /// Connects to `url`, a `postgres://` URL or a `key=value` string.
    ///
    /// # Errors
    /// `Command` when the URL is malformed, `Lost` when nobody answers or lets us in.
    pub async fn connect(url: &str, settings: Settings, out: Box<dyn Write + Send + Sync>) -> Result<Self> {
        let mut config: Config = url
            .parse()
            .map_err(|e| Error::Command(format!("bad connection URL: {}", chain(&e))))?;
        if config.get_application_name().is_none() {
            config.application_name("tessera sql");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        let (client, server_version) = open(&config).await?;
        Ok(Self {
            config,
            client,
            server_version,
            settings,
            out,
        })
    }

    /// Replaces a lost connection by a new one; settings stay, server-side state is gone.
    ///
    /// # Errors
    /// `Lost` when that fails too.
    pub async fn reconnect(&mut self) -> Result<()> {
        (self.client, self.server_version) = open(&self.config).await?;
        Ok(())
    }

    /// The driver's client, for COPY.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// `\conninfo`: where we are connected.
    pub fn connection_info(&self) -> String {
        let user = self.config.get_user().unwrap_or("(default)");
        let database = self.config.get_dbname().unwrap_or(user);
        format!(
            "You are connected to database \"{database}\" as user \"{user}\" on {}.",
            address(&self.config)
        )
    }

    /// The database's name, for the prompt.
    pub fn database(&self) -> &str {
        self.config.get_dbname().or(self.config.get_user()).unwrap_or("tessera")
    }

    /// Runs one statement, or several as one simple query, and prints what comes back. Ctrl-C cancels it.
    ///
    /// # Errors
    /// `Statement`, `Lost` or `Output`.
    pub async fn execute(&mut self, text: &str) -> Result<()> {
        let statements = split::statements(text);
        let kinds = match statements.as_slice() {
            [] => return Ok(()),
            [only] if message::returns_rows(only) && self.settings.format != Format::Csv => {
                let work = self.client.prepare(text);
                let prepared = interruptible(&self.client, work)
                    .await
                    .map_err(|e| self.failure(e, text))?;
                prepared.columns().iter().map(|column| kind(column.type_())).collect()
            }
            _ => Vec::new(),
        };
        let start = Instant::now();
        let work = print_results(&self.client, text, &statements, &kinds, self.settings, &mut *self.out);
        let printed = interruptible(&self.client, work).await;
        let took = start.elapsed();
        let result = match printed {
            Ok(()) => Ok(()),
            Err(Failure::Server(error)) => Err(self.failure(error, text)),
            Err(Failure::Output(error)) => Err(Error::Output(error)),
        };
        if self.settings.timing && !matches!(result, Err(Error::Lost(_))) {
            writeln!(self.out, "{}", time_line(took))?;
        }
        self.out.flush()?;
        result
    }

    /// Runs a query of our own and returns its rows.
    ///
    /// # Errors
    /// `Statement` or `Lost`.
    pub async fn rows(&mut self, query: &str) -> Result<Vec<Row>> {
        let work = self.client.simple_query(query);
        let messages = interruptible(&self.client, work)
            .await
            .map_err(|e| self.failure(e, query))?;
        let row = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
            _ => None,
        };
        Ok(messages.iter().filter_map(row).collect())
    }

    /// Tells a refused statement from a lost connection.
    pub fn failure(&self, error: tokio_postgres::Error, statement: &str) -> Error {
        match error.as_db_error() {
            Some(db) => Error::Statement(message::describe(db, statement)),
            None if error.is_closed() || self.client.is_closed() => Error::Lost(chain(&error)),
            None => Error::Statement(format!("ERROR:  {}\n", chain(&error))),
        }
    }
}

/// Waits for `work`; Ctrl-C asks the server to cancel it, after which `work` ends with the server's answer.
pub async fn interruptible<T>(client: &Client, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            signal = tokio::signal::ctrl_c() => {
                if signal.is_err() {
                    return work.await;
                }
                // Should the request fail, the statement goes on and Ctrl-C can be pressed again.
                let request = client.cancel_token();
                let sent = tokio::time::timeout(CANCEL_TIMEOUT, request.cancel_query(NoTls)).await;
                if !matches!(sent, Ok(Ok(()))) {
                    warn("could not send cancel request");
                }
            }
        }
    }
}

/// Prints a line to standard error, whose failure nobody could be told of.
pub fn warn(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

enum Failure {
    Server(tokio_postgres::Error),
    Output(std::io::Error),
}

async fn print_results(
    client: &Client,
    text: &str,
    statements: &[String],
    kinds: &[Kind],
    settings: Settings,
    out: &mut (dyn Write + Send + Sync),
) -> Result<(), Failure> {
    let stream = client.simple_query_raw(text).await.map_err(Failure::Server)?;
    let mut stream = pin!(stream);
    let mut statements = statements.iter();
    let mut writer: Option<ResultWriter> = None;
    while let Some(message) = stream.try_next().await.map_err(Failure::Server)? {
        match message {
            SimpleQueryMessage::RowDescription(names) => {
                let kind = |index| kinds.get(index).copied().unwrap_or(Kind::Unknown);
                let column = |(index, name): (usize, &tokio_postgres::SimpleColumn)| Column {
                    name: name.name().to_owned(),
                    kind: kind(index),
                };
                let columns = names.iter().enumerate().map(column).collect();
                writer = Some(ResultWriter::new(columns, settings.result_format(), out).map_err(Failure::Output)?);
            }
            SimpleQueryMessage::Row(row) => {
                let row = (0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect();
                if let Some(writer) = &mut writer {
                    writer.push(row, out).map_err(Failure::Output)?;
                }
            }
            SimpleQueryMessage::CommandComplete(rows) => {
                let statement = statements.next().map_or("", String::as_str);
                complete(writer.take(), &message::tag(statement, rows), settings, out).map_err(Failure::Output)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Ends a statement: a table has its own last line, unless rows came back from a write.
fn complete(writer: Option<ResultWriter>, tag: &str, settings: Settings, out: &mut dyn Write) -> std::io::Result<()> {
    let is_write = ["INSERT", "UPDATE", "DELETE", "MERGE"]
        .iter()
        .any(|verb| tag.starts_with(verb));
    let wants_tag = settings.prints_tags() && (writer.is_none() || is_write) && !tag.is_empty();
    if let Some(writer) = writer {
        writer.finish(out)?;
    }
    if wants_tag { writeln!(out, "{tag}") } else { Ok(()) }
}

fn kind(type_: &Type) -> Kind {
    match *type_ {
        Type::INT2 | Type::INT4 | Type::INT8 | Type::FLOAT4 | Type::FLOAT8 | Type::NUMERIC | Type::OID => Kind::Number,
        Type::MONEY | Type::XID | Type::CID => Kind::Number,
        Type::BOOL => Kind::Bool,
        _ => Kind::Text,
    }
}

async fn open(config: &Config) -> Result<(Client, String)> {
    let refused = |error: tokio_postgres::Error| {
        let reason = error
            .as_db_error()
            .map_or_else(|| chain(&error), |db| message::describe(db, "").trim_end().to_owned());
        Error::Lost(format!("connection to server at {} failed: {reason}", address(config)))
    };
    let (client, mut connection) = config.connect(NoTls).await.map_err(refused)?;
    let server_version = connection.parameter("server_version").unwrap_or("unknown").to_owned();
    let mut messages = futures::stream::poll_fn(move |context| connection.poll_message(context));
    // Ends with the connection, whose error reaches whoever waits on the client.
    tokio::spawn(async move {
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notice(notice) = message {
                warn(message::describe(&notice, "").trim_end());
            }
        }
    });
    Ok((client, server_version))
}

fn address(config: &Config) -> String {
    let hosts = config.get_hosts().iter().map(|host| match host {
        tokio_postgres::config::Host::Tcp(name) => name.clone(),
        tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
    });
    let port = config.get_ports().first().copied().unwrap_or(5432);
    format!("host \"{}\" at port \"{port}\"", hosts.collect::<Vec<_>>().join(","))
}

fn time_line(took: Duration) -> String {
    let ms = took.as_secs_f64() * 1e3;
    if ms < 1000.0 {
        return format!("Time: {ms:.3} ms");
    }
    let seconds = ms / 1e3;
    let (minutes, rest) = ((seconds / 60.0).floor(), seconds % 60.0);
    format!("Time: {ms:.3} ms ({minutes:02.0}:{rest:06.3})")
}
