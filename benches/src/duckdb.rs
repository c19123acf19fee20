//! DuckDB as a peer, run by Python's `duckdb` module: linking it would take longer to build than all of this program.
//!
//! ```text
//!   program ── "select ..."  one JSON string a line ──▶ python3 -c SCRIPT ──▶ DuckDB, 2 threads
//!           ◀── {"seconds": 0.012} or {"error": "..."} ──┘
//! ```
//!
//! Times are taken in Python, from the text to the last row as Python values: what a client of DuckDB waits for. Not here:
//! checking its answers; single-process DataFusion judges those.

use crate::error::{Error, Result};
use crate::oracle::TARGET_PARTITIONS;
use crate::workload::{Query, Workload};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

/// Longest wait for one answer, the loading of all tables included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3_600);

const SCRIPT: &str = r#"
import json, sys, time
import duckdb
threads, kind, database, tables = json.loads(sys.argv[1])
connection = duckdb.connect(database)
connection.execute(f"SET threads = {threads}")
for name, path in tables:
    text = path.replace("'", "''")
    connection.execute(f"CREATE {kind} {name} AS FROM read_parquet('{text}')")
print(json.dumps({"version": duckdb.__version__}), flush=True)
for line in sys.stdin:
    try:
        query = json.loads(line)
        start = time.perf_counter()
        connection.execute(query).fetchall()
        answer = {"seconds": time.perf_counter() - start}
    except Exception as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"#;

/// What DuckDB reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tables {
    /// A database file, filled from the Parquet files before the first query.
    Native,
    /// The Parquet files.
    Parquet,
}

/// A running DuckDB with the workload's tables. Its process ends with this.
pub struct DuckDb {
    /// `None` once an answer did not come: a later one would be taken for another query's.
    pipes: Mutex<Option<Pipes>>,
    _process: Child,
    /// Holds the database file.
    _dir: tempfile::TempDir,
}

struct Pipes {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl DuckDb {
    /// Starts it over the files that [`Workload::write_parquet`] wrote to `files`.
    ///
    /// # Errors
    /// `Usage` without Python, its module or the files; what it said is printed to standard error.
    pub async fn start(workload: &Workload, files: &Path, tables: Tables) -> Result<Self> {
        let dir = tempfile::tempdir().map_err(Error::file(std::env::temp_dir()))?;
        let named: Vec<_> = workload
            .tables
            .iter()
            .map(|table| (table.name(), table.parquet_path(files)))
            .collect();
        let (kind, database) = match tables {
            Tables::Native => ("TABLE", dir.path().join("duckdb")),
            Tables::Parquet => ("VIEW", ":memory:".into()),
        };
        let arguments = serde_json::json!([TARGET_PARTITIONS, kind, database, named]);
        let mut process = Command::new("python3")
            .args(["-c", SCRIPT, &arguments.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| Error::Usage(format!("cannot start python3, which runs DuckDB: {e}")))?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(Error::Task("python3 has no pipes".into()));
        };
        let mut pipes = Pipes {
            input,
            output: BufReader::new(output).lines(),
        };
        let greeting = pipes.answer().await;
        greeting.map_err(|_| {
            let what = "DuckDB did not start: install it with \"pip install duckdb\", and see what python3 said above";
            Error::Usage(what.into())
        })?;
        Ok(Self {
            pipes: Mutex::new(Some(pipes)),
            _process: process,
            _dir: dir,
        })
    }

    /// The time of one run.
    ///
    /// # Errors
    /// `Task` when it cannot run the query, or is gone.
    pub async fn time(&self, query: &Query) -> Result<Duration> {
        let mut slot = self.pipes.lock().await;
        let gone = || Error::Task("DuckDB is gone".into());
        let mut pipes = slot.take().ok_or_else(gone)?;
        let answer = pipes.ask(query.sql).await?;
        *slot = Some(pipes);
        match answer["seconds"].as_f64() {
            Some(seconds) => Ok(Duration::from_secs_f64(seconds.max(0.0))),
            None => Err(Error::Task(format!(
                "DuckDB, query {}: {}",
                query.name(),
                answer["error"]
            ))),
        }
    }
}

impl Pipes {
    async fn ask(&mut self, sql: &str) -> Result<serde_json::Value> {
        let line = format!("{}\n", serde_json::json!(sql));
        let gone = |e: std::io::Error| Error::Task(format!("DuckDB is gone: {e}"));
        self.input.write_all(line.as_bytes()).await.map_err(gone)?;
        self.input.flush().await.map_err(gone)?;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<serde_json::Value> {
        let line = tokio::time::timeout(ANSWER_TIMEOUT, self.output.next_line()).await;
        match line {
            Ok(Ok(Some(line))) => {
                serde_json::from_str(&line).map_err(|e| Error::Task(format!("DuckDB answered no JSON: {e}")))
            }
            Ok(_) => Err(Error::Task("DuckDB ended".into())),
            Err(_) => Err(Error::Task("DuckDB gave no answer in an hour".into())),
        }
    }
}
