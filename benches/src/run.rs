//! Runs the queries against a server: load, time, check, compare.
//!
//! ```text
//! for each query:   EXPLAIN (strategy, nodes)
//!                   run 1 .. runs:   ours, then each peer    in turns, so all see the same machine
//!                   check the last answer
//!                   EXPLAIN ANALYZE if asked: what moved between nodes
//! ```
//!
//! A query that fails or answers wrongly is a finding: it is reported and the others go on. Only a lost connection, or
//! a failure before the first query, ends the run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio_postgres::types::Type;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::duckdb::{DuckDb, Tables};
use crate::error::{Error, Result};
use crate::load::{self, Ddl, LoadReport, connect};
use crate::oracle::{Answer, Oracle};
use crate::report::{Moved, QueryReport, Report, Source, Spread};
use crate::workload::{Query, Workload};
use crate::{csv, tpch, verify};

/// Largest number of timed runs per query: keeps a slip of the finger from running for days.
pub const RUNS_MAX: usize = 1000;

/// Shards per table unless told otherwise: a few per node on the clusters we test, and few enough for small machines.
pub const SHARDS_DEFAULT: u32 = 16;

/// Up to this scale the oracle keeps its tables in memory (about 0.9 GB per unit), above it in temporary files.
const IN_MEMORY_SCALE_MAX: f64 = 0.2;

/// How the tables are filled before the queries run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Load {
    /// They are there already.
    Skip,
    /// Created, then streamed in by COPY FROM STDIN.
    Stream,
    /// Created, then read by the server from `<dir>/<table>.parquet`; written first if this folder is on this machine
    /// and lacks them.
    Files(PathBuf),
}

/// What answers are checked against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verify {
    /// Single-process DataFusion over the same generated rows.
    Oracle,
    /// A folder with `q1.csv`, `q2.csv` and so on, each with a header line.
    Answers(PathBuf),
}

/// What our times are compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Single-process DataFusion on Parquet files: one per table.
    Parquet,
    /// Single-process DataFusion on tables in memory: about 0.9 GB per scale unit.
    Memory,
    /// DuckDB, which Python's module of that name runs.
    DuckDb(Tables),
    /// A server that speaks the PostgreSQL protocol and has the tables already.
    Server(String),
}

impl Peer {
    /// As the report calls it: without who connects.
    fn name(&self) -> String {
        match self {
            Self::Parquet => "datafusion".into(),
            Self::Memory => "datafusion-memory".into(),
            Self::DuckDb(Tables::Native) => "duckdb".into(),
            Self::DuckDb(Tables::Parquet) => "duckdb-parquet".into(),
            Self::Server(url) => {
                let host = url.rsplit_once('@').map_or(url.as_str(), |(_, host)| host);
                host.split('?').next().unwrap_or(host).to_owned()
            }
        }
    }
}

impl std::str::FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "datafusion" => Ok(Self::Parquet),
            "datafusion-memory" => Ok(Self::Memory),
            "duckdb" => Ok(Self::DuckDb(Tables::Native)),
            "duckdb-parquet" => Ok(Self::DuckDb(Tables::Parquet)),
            url if url.starts_with("postgres://") || url.starts_with("postgresql://") => Ok(Self::Server(url.into())),
            other => Err(format!(
                "\"{other}\" is not datafusion, datafusion-memory, duckdb, duckdb-parquet or the postgres:// address of a server with the tables"
            )),
        }
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Address of the server, `postgres://user@host:port/database`.
    pub url: String,
    /// Scale factor: 1 is about 1 GB of text.
    pub scale: f64,
    /// How the tables are filled.
    pub load: Load,
    /// Statements that create the tables.
    pub ddl: Ddl,
    /// Queries by number, with all their parts; all when `None`.
    pub queries: Option<Vec<u8>>,
    /// Timed runs per query, 1 to [`RUNS_MAX`]; one more, untimed, comes first unless it is 1.
    pub runs: usize,
    /// What answers are checked against, if at all.
    pub verify: Option<Verify>,
    /// Whom to time in turns with ours.
    pub compare: Vec<Peer>,
    /// Whether to run each query once more under EXPLAIN ANALYZE, for what moves between nodes.
    pub analyze: bool,
    /// Parquet files for `compare`; generated into a temporary folder when `None`.
    pub parquet_dir: Option<PathBuf>,
    /// Where to write the report as JSON.
    pub json: Option<PathBuf>,
    /// Where to write it as a Markdown table.
    pub markdown: Option<PathBuf>,
    /// Where to write it as a chart, SVG.
    pub chart: Option<PathBuf>,
}

impl BenchOptions {
    /// One run of all queries at this scale, with nothing loaded or checked.
    pub fn new(url: impl Into<String>, scale: f64) -> Self {
        Self {
            url: url.into(),
            scale,
            load: Load::Skip,
            ddl: Ddl::Sharded(SHARDS_DEFAULT),
            queries: None,
            runs: 1,
            verify: None,
            compare: vec![],
            analyze: false,
            parquet_dir: None,
            json: None,
            markdown: None,
            chart: None,
        }
    }
}

/// Loads, runs and checks as `options` say, and prints the report to standard output.
///
/// # Errors
/// `Usage` for options that make no sense, `Connect`, or a failure of load or oracle. Wrong answers and failed queries
/// are in the report: ask [`Report::ok`].
pub async fn run(workload: &Workload, options: BenchOptions) -> Result<Report> {
    workload.check_scale(options.scale)?;
    let queries = workload.select(options.queries.as_deref())?;
    if !(1..=RUNS_MAX).contains(&options.runs) {
        return Err(Error::Usage(format!("{} runs are not 1 to {RUNS_MAX}", options.runs)));
    }
    let mut client = connect(&options.url).await?;
    let loaded = fill(&client, workload, &options).await?;
    let bench = Bench::prepare(workload, &options).await?;
    let peers = options.compare.iter().map(Peer::name).collect();
    let mut report = Report::new(workload.title, options.scale, options.runs, loaded, peers);
    for query in queries {
        if client.is_closed() {
            client = connect(&options.url).await?;
        }
        report.queries.push(bench.measure(&client, query).await?);
    }
    print!("{report}");
    if let Some(path) = &options.json {
        report.write_json(path)?;
    }
    if let Some(path) = &options.markdown {
        report.write_markdown(path)?;
    }
    if let Some(path) = &options.chart {
        report.write_chart(path)?;
    }
    Ok(report)
}

/// Loads the TPC-H tables at `scale` into the empty server at `url`, runs every query once and checks every answer.
///
/// # Errors
/// As [`run`].
pub async fn demo(url: &str, scale: f64, json: Option<&Path>) -> Result<Report> {
    let mut options = BenchOptions::new(url, scale);
    options.load = Load::Stream;
    options.verify = Some(Verify::Oracle);
    options.json = json.map(Path::to_owned);
    run(&tpch::workload(), options).await
}

async fn fill(client: &Client, workload: &Workload, options: &BenchOptions) -> Result<Vec<LoadReport>> {
    match &options.load {
        Load::Skip => Ok(Vec::new()),
        Load::Stream => {
            load::create_tables(client, workload, options.ddl).await?;
            load::load(&options.url, workload, options.scale).await
        }
        Load::Files(dir) => {
            ensure_parquet(workload, dir, options.scale).await?;
            load::create_tables(client, workload, options.ddl).await?;
            load::load_files(&options.url, workload, dir).await
        }
    }
}

/// Writes the files unless all are there; whoever points at a folder vouches for its scale.
async fn ensure_parquet(workload: &Workload, dir: &Path, scale: f64) -> Result<()> {
    if workload.tables.iter().all(|table| table.parquet_path(dir).exists()) {
        return Ok(());
    }
    tokio::task::block_in_place(|| workload.write_parquet(dir, scale)).map(drop)
}

/// Where expected answers come from.
enum Expected {
    Unchecked,
    Computed(Oracle),
    Files(PathBuf),
}

/// A peer ready to run.
enum Baseline {
    Oracle(Box<Oracle>),
    DuckDb(Box<DuckDb>),
    Server(Client),
}

impl Baseline {
    /// The time of one run; `None` when it cannot run the query.
    async fn time(&self, query: &Query) -> Option<Duration> {
        match self {
            Self::Oracle(oracle) => oracle.time(query).await.ok(),
            // Its answers are not checked, so nobody else tells.
            Self::DuckDb(duckdb) => duckdb.time(query).await.inspect_err(|e| eprintln!("{e}")).ok(),
            Self::Server(client) => answer(client, query).await.ok().map(|(_, time)| time),
        }
    }
}

/// Everything the measurement of one query needs.
struct Bench {
    runs: usize,
    expected: Expected,
    baselines: Vec<Baseline>,
    analyze: bool,
    /// Holds generated files until the run ends.
    _temporary: Vec<tempfile::TempDir>,
}

impl Bench {
    async fn prepare(workload: &Workload, options: &BenchOptions) -> Result<Self> {
        let mut temporary = Vec::new();
        let reads_files = |peer: &Peer| matches!(peer, Peer::Parquet | Peer::DuckDb(_));
        let needs_files = options.compare.iter().any(reads_files)
            || (options.verify == Some(Verify::Oracle) && options.scale > IN_MEMORY_SCALE_MAX);
        let dir = match (&options.parquet_dir, needs_files) {
            (Some(dir), _) => Some(dir.clone()),
            (None, true) => {
                let dir = tempfile::tempdir().map_err(Error::file(std::env::temp_dir()))?;
                let path = dir.path().to_owned();
                temporary.push(dir);
                Some(path)
            }
            (None, false) => None,
        };
        if let Some(dir) = &dir {
            ensure_parquet(workload, dir, options.scale).await?;
        }
        let expected = match (&options.verify, &dir) {
            (None, _) => Expected::Unchecked,
            (Some(Verify::Answers(dir)), _) => Expected::Files(dir.clone()),
            (Some(Verify::Oracle), Some(dir)) => Expected::Computed(Oracle::parquet(workload, dir).await?),
            (Some(Verify::Oracle), None) => Expected::Computed(Oracle::in_memory(workload, options.scale).await?),
        };
        let mut baselines = vec![];
        for peer in &options.compare {
            baselines.push(match (peer, &dir) {
                (Peer::Parquet, Some(dir)) => Baseline::Oracle(Box::new(Oracle::parquet(workload, dir).await?)),
                (Peer::DuckDb(tables), Some(dir)) => {
                    Baseline::DuckDb(Box::new(DuckDb::start(workload, dir, *tables).await?))
                }
                (Peer::Parquet | Peer::DuckDb(_), None) => {
                    return Err(Error::Usage("no folder for Parquet files".into()));
                }
                (Peer::Memory, _) => Baseline::Oracle(Box::new(Oracle::in_memory(workload, options.scale).await?)),
                (Peer::Server(url), _) => Baseline::Server(connect(url).await?),
            });
        }
        Ok(Self {
            runs: options.runs,
            expected,
            baselines,
            analyze: options.analyze,
            _temporary: temporary,
        })
    }

    async fn measure(&self, client: &Client, query: &Query) -> Result<QueryReport> {
        let (strategy, nodes) = explain(client, query).await;
        let mut times = Vec::new();
        let mut peer_times = vec![Vec::new(); self.baselines.len()];
        let mut outcome = Ok(Vec::new());
        // With several runs the first one warms caches on both sides and does not count.
        let warm_ups = usize::from(self.runs > 1);
        for run in 0..self.runs + warm_ups {
            outcome = answer(client, query).await.map(|(answer, time)| {
                times.push(time);
                answer
            });
            if outcome.is_err() {
                break;
            }
            for (baseline, times) in self.baselines.iter().zip(&mut peer_times) {
                // Queries it cannot run are listed by the check of answers; here they have no times.
                times.extend(baseline.time(query).await);
            }
            if run < warm_ups {
                times.clear();
                peer_times.iter_mut().for_each(Vec::clear);
            }
        }
        let (mut rows, mut matched, mut difference, mut no_oracle) = (0, None, None, None);
        match outcome {
            Err(error) => difference = Some(error.to_string()),
            Ok(answer) => {
                rows = answer.len();
                match self.expected(query).await {
                    Ok(None) => {}
                    Ok(Some(expected)) => {
                        let text = text_columns(client, query).await?;
                        let verdict = verify::compare(query, &answer, &expected, &text);
                        matched = Some(verdict.is_ok());
                        difference = verdict.err();
                    }
                    Err(error @ Error::Oracle { .. }) => no_oracle = Some(error.to_string()),
                    Err(error) => return Err(error),
                }
            }
        }
        let spread_of = |times: &Vec<Duration>| (!times.is_empty()).then(|| Spread::of(times));
        let peers = peer_times.iter().map(spread_of).collect();
        let moved = match self.analyze {
            true => Some(moved(client, query).await?),
            false => None,
        };
        let spread = Spread::of(&times);
        Ok(QueryReport {
            query: query.name(),
            rows,
            spread,
            nodes,
            strategy,
            matched,
            difference,
            no_oracle,
            peers,
            moved,
        })
    }

    /// The right answer, or `None` when answers are not checked.
    async fn expected(&self, query: &Query) -> Result<Option<Answer>> {
        match &self.expected {
            Expected::Unchecked => Ok(None),
            Expected::Computed(oracle) => oracle.answer(query).await.map(Some),
            Expected::Files(dir) => csv::read_answer(&dir.join(format!("q{}.csv", query.name()))).map(Some),
        }
    }
}

/// One run over the simple protocol, in which every type comes as text.
async fn answer(client: &Client, query: &Query) -> Result<(Answer, Duration)> {
    let start = Instant::now();
    let messages = client
        .simple_query(query.sql)
        .await
        .map_err(Error::server(format!("query {}", query.name())))?;
    let time = start.elapsed();
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
        _ => None,
    });
    Ok((rows.collect(), time))
}

/// Which columns of the answer are text, as the server describes it: digits in them sort as text.
async fn text_columns(client: &Client, query: &Query) -> Result<Vec<bool>> {
    let failed = Error::server(format!("description of query {}", query.name()));
    let statement = client.prepare(query.sql).await.map_err(failed)?;
    let is_text = |column: &tokio_postgres::Column| *column.type_() == Type::TEXT || *column.type_() == Type::VARCHAR;
    Ok(statement.columns().iter().map(is_text).collect())
}

/// What follows `Strategy:` and `Nodes:` in EXPLAIN; servers that do not say are not an error.
async fn explain(client: &Client, query: &Query) -> (Option<String>, Option<String>) {
    let messages = client
        .simple_query(&format!("EXPLAIN {}", query.sql))
        .await
        .unwrap_or_default();
    let mut text = String::new();
    for message in &messages {
        if let SimpleQueryMessage::Row(row) = message {
            text.extend((0..row.len()).filter_map(|i| row.get(i)));
            text.push('\n');
        }
    }
    (labelled(&text, "Strategy:"), labelled(&text, "Nodes:"))
}

/// What EXPLAIN ANALYZE says moved between nodes, or from them to the router.
async fn moved(client: &Client, query: &Query) -> Result<Moved> {
    let doing = || format!("EXPLAIN ANALYZE of query {}", query.name());
    let rows = client
        .simple_query(&format!("EXPLAIN (ANALYZE, FORMAT JSON) {}", query.sql))
        .await
        .map_err(Error::server(doing()))?;
    let text = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let documents: serde_json::Value = serde_json::from_str(text.unwrap_or_default())
        .map_err(|e| Error::Usage(format!("{}: the server's answer is no JSON: {e}", doing())))?;
    let document = &documents[0];
    let all = document["Transfers"].as_array().cloned().unwrap_or_default();
    let left = all.iter().filter(|t| t["From Node"] != t["To Node"]);
    let plans = document["Fragments"].as_array().cloned().unwrap_or_default();
    let mut sources: Vec<Source> = vec![];
    for transfer in &all {
        let name = transfer["Source"].as_str().unwrap_or_default();
        let at = sources.iter().position(|s| s.name == name).unwrap_or_else(|| {
            sources.push(Source {
                name: name.to_owned(),
                ..Source::default()
            });
            sources.len() - 1
        });
        let source = &mut sources[at];
        source.rows += transfer["Rows"].as_u64().unwrap_or_default();
        source.bytes += transfer["Bytes"].as_u64().unwrap_or_default();
        source.ms = source.ms.max(transfer["Time"].as_f64().unwrap_or_default());
    }
    let partial = |fragment: &serde_json::Value| {
        let root = fragment["Plan"][0].as_str().unwrap_or_default();
        root.trim_start().starts_with("Aggregate:")
    };
    Ok(Moved {
        bytes: document["Moved Bytes"].as_u64().unwrap_or_default(),
        rows: left.map(|t| t["Rows"].as_u64().unwrap_or_default()).sum(),
        partial_aggregates_only: !plans.is_empty() && plans.iter().all(partial),
        sources,
    })
}

fn labelled(text: &str, label: &str) -> Option<String> {
    let rest = text.lines().find_map(|line| line.trim_start().strip_prefix(label))?;
    Some(rest.trim().to_owned()).filter(|value| !value.is_empty())
}
