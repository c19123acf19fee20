//! Filling the tables through the PostgreSQL wire, as any client would.
//!
//! ```text
//! generator thread --[ 4 chunks of 256 KB ]--> COPY t FROM STDIN (FORMAT csv)      one connection per table,
//! generator thread --[ 4 chunks of 256 KB ]--> COPY u FROM STDIN (FORMAT csv)      two tables at a time
//! ```
//!
//! Memory is bounded by the chunks: when the server reads slowly, the channel fills and the generator waits. A table is
//! one COPY and so appears whole or not at all. Not done: retrying a failed load, because a half-known outcome is the
//! user's to look at.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use futures::{SinkExt, StreamExt, TryStreamExt};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::csv;
use crate::error::{Error, Result};
use crate::workload::{Table, Workload};

/// Tables loading at once: one generator and one server core each on the smallest machine we support.
const LOADS_MAX: usize = 2;
/// Size at which encoded rows are handed on; large enough that the protocol's 5 bytes per message vanish.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks between generator and socket: 1 MB per table. When full, the generator waits.
const CHUNKS_MAX: usize = 4;

/// What loading one table took.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// The table's name.
    pub table: &'static str,
    /// Rows the server acknowledged.
    pub rows: u64,
    /// Wall time from the COPY statement to its acknowledgement, tables of the same time overlapping.
    pub seconds: f64,
    /// CSV bytes sent, or Parquet bytes read.
    pub bytes: u64,
}

/// Opens a connection; its socket is driven by a task that ends when the client is dropped.
///
/// # Errors
/// `Connect`, with the URL but not its password.
pub async fn connect(url: &str) -> Result<Client> {
    let failed = |source| Error::Connect {
        url: without_password(url),
        source,
    };
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.map_err(failed)?;
    // Its error reaches whoever waits on the client as "connection closed".
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

/// How the server wants its tables described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ddl {
    /// Tessera's, distributed over this many shards.
    Sharded(u32),
    /// Plain PostgreSQL, for comparisons.
    Plain,
}

/// Creates the workload's tables, never replacing any.
///
/// # Errors
/// `Usage` when one exists already; `Server` when the server refuses one.
pub async fn create_tables(client: &Client, workload: &Workload, ddl: Ddl) -> Result<()> {
    for table in &workload.tables {
        let statement = match ddl {
            Ddl::Sharded(shards) => table.ddl(shards),
            Ddl::Plain => table.plain_ddl(),
        };
        let Err(error) = client.simple_query(&statement).await else {
            continue;
        };
        if error.code() == Some(&SqlState::DUPLICATE_TABLE) {
            let message = format!(
                "table \"{}\" exists already: drop it, or run without loading",
                table.name()
            );
            return Err(Error::Usage(message));
        }
        return Err(Error::server(format!("creation of table \"{}\"", table.name()))(error));
    }
    Ok(())
}

/// Generates all tables and streams them in; they must exist and be empty.
///
/// # Errors
/// The first failure; tables that were complete by then stay.
pub async fn load(url: &str, workload: &Workload, scale: f64) -> Result<Vec<LoadReport>> {
    workload.check_scale(scale)?;
    // Generators build their pools of words once: not the server's time, so not in the reports.
    let tables = workload.tables.clone();
    tokio::task::spawn_blocking(move || tables.iter().for_each(|table| drop(table.batches(scale).next())))
        .await
        .map_err(|e| Error::Task(e.to_string()))?;
    let progress = progress();
    // Largest first, so that the smaller ones fill the other connection meanwhile.
    let tables = workload.tables.iter().copied().rev();
    let mut reports: Vec<_> = futures::stream::iter(tables)
        .map(|table| load_table(url, table, scale, progress.clone()))
        .buffer_unordered(LOADS_MAX)
        .try_collect()
        .await?;
    let position = |report: &LoadReport| workload.tables.iter().position(|table| table.name() == report.table);
    reports.sort_by_key(position);
    Ok(reports)
}

async fn load_table(url: &str, table: &'static dyn Table, scale: f64, progress: MultiProgress) -> Result<LoadReport> {
    let doing = format!("load of table \"{}\"", table.name());
    let client = connect(url).await?;
    let bar = progress.add(table_bar(table, scale));
    let start = Instant::now();
    let copy = format!("COPY {} FROM STDIN (FORMAT csv)", table.name());
    let sink = client
        .copy_in::<_, Bytes>(&copy)
        .await
        .map_err(Error::server(doing.clone()))?;
    let (sender, mut receiver) = mpsc::channel(CHUNKS_MAX);
    let generator = tokio::task::spawn_blocking(move || generate(table, scale, &sender));
    let mut sink = std::pin::pin!(sink);
    let mut bytes = 0;
    while let Some(Chunk { text, rows }) = receiver.recv().await {
        bytes += text.len() as u64;
        sink.send(text).await.map_err(Error::server(doing.clone()))?;
        bar.set_message(format!(
            "{:.0} MB/s",
            megabytes(bytes) / start.elapsed().as_secs_f64().max(1e-3)
        ));
        bar.inc(rows);
    }
    // Before `finish`: rows that failed to generate must abort the COPY, which dropping the sink does.
    generator.await.map_err(|e| Error::Task(e.to_string()))??;
    let rows = sink.as_mut().finish().await.map_err(Error::server(doing))?;
    bar.finish();
    Ok(LoadReport {
        table: table.name(),
        rows,
        seconds: start.elapsed().as_secs_f64(),
        bytes,
    })
}

/// Encoded rows and their number.
struct Chunk {
    text: Bytes,
    rows: u64,
}

/// Runs on its own thread and stops early, without error, when nobody receives any more.
fn generate(table: &dyn Table, scale: f64, sender: &mpsc::Sender<Chunk>) -> Result<()> {
    let mut text = String::with_capacity(CHUNK_BYTES * 2);
    let mut rows = 0;
    for batch in table.batches(scale) {
        let batch = batch?;
        // A batch of 8,000 lines is 1 MB: smaller slices keep chunks near their size.
        for offset in (0..batch.num_rows()).step_by(1024) {
            let slice = batch.slice(offset, (batch.num_rows() - offset).min(1024));
            csv::encode(&slice, &mut text)?;
            rows += slice.num_rows() as u64;
            if text.len() >= CHUNK_BYTES {
                let full = std::mem::replace(&mut text, String::with_capacity(CHUNK_BYTES * 2));
                let chunk = Chunk {
                    text: full.into(),
                    rows: std::mem::take(&mut rows),
                };
                if sender.blocking_send(chunk).is_err() {
                    return Ok(());
                }
            }
        }
    }
    // Nobody receiving means the load has failed already, with an error of its own.
    drop(sender.blocking_send(Chunk {
        text: text.into(),
        rows,
    }));
    Ok(())
}

/// Has the server read the Parquet files in `dir`, a folder as the server sees it (below its `--files-root`).
///
/// # Errors
/// The first failure; tables that were complete by then stay.
pub async fn load_files(url: &str, workload: &Workload, dir: &Path) -> Result<Vec<LoadReport>> {
    let client = connect(url).await?;
    let mut reports = Vec::new();
    for table in &workload.tables {
        let path = table.parquet_path(dir);
        // The server may be another machine: then the size is unknown here, and reported as 0.
        let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let path = path.to_string_lossy().replace('\'', "''");
        let start = Instant::now();
        let name = table.name();
        let copy = format!("COPY {name} FROM '{path}' (FORMAT parquet)");
        let messages = client
            .simple_query(&copy)
            .await
            .map_err(Error::server(format!("load of table \"{name}\"")))?;
        let rows = messages.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
            _ => None,
        });
        let seconds = start.elapsed().as_secs_f64();
        reports.push(LoadReport {
            table: name,
            rows: rows.unwrap_or(0),
            seconds,
            bytes,
        });
    }
    Ok(reports)
}

/// Bytes as the megabytes (10^6) that reports speak of.
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn progress() -> MultiProgress {
    match std::io::stderr().is_terminal() {
        true => MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
        false => MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
    }
}

fn table_bar(table: &dyn Table, scale: f64) -> ProgressBar {
    let template = "{prefix:<22} {bar:30} {human_pos:>11} rows {rate:>9} rows/s {msg:>8}  eta {eta}";
    // The template is a constant; should it ever not parse, a plain bar is better than no load.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = write!(out, "{:.0}", state.per_sec());
    };
    let bar = ProgressBar::new(table.expected_rows(scale));
    bar.set_style(style.with_key("rate", rate));
    bar.set_prefix(table.name());
    bar
}

/// `postgres://user:secret@host/db` without the secret; a URL that cannot be read is not shown at all.
fn without_password(url: &str) -> String {
    let Ok(config) = url.parse::<tokio_postgres::Config>() else {
        return "(not a valid URL)".to_owned();
    };
    let hosts = config.get_hosts().iter().map(|host| match host {
        tokio_postgres::config::Host::Tcp(name) => name.clone(),
        tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
    });
    let port = config.get_ports().first().copied().unwrap_or(5432);
    format!("{}:{port}", hosts.collect::<Vec<_>>().join(","))
}
