//! The `tessera` binary: subcommands and wiring. Everything it starts lives in `tessera` (this package's library) and below.

use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tessera::config::{self, FLIGHT_ADDRESS_DEFAULT, HTTP_ADDRESS_DEFAULT, NODES_DEFAULT, PG_ADDRESS_DEFAULT};
use tessera::embedded::{Embedded, EmbeddedOptions};
use tessera::processes;
use tessera_benches::run::SHARDS_DEFAULT;
use tessera_benches::workload::Workload;
use tessera_benches::{BenchOptions, Ddl, Load, Peer, Verify, tpcds, tpch};
use tessera_proto::Error;
use tessera_proto::memory::query_pool;
use tessera_shell::{Action, Format, ShellOptions};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A sharded, replicated, distributed SQL database.
#[derive(Debug, Parser)]
#[command(name = "tessera", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster in a temporary folder, load TPC-H data, run the 22 queries and check every result
    Demo(DemoArgs),
    /// Start router and shard nodes in this process, durable in one folder
    Start(StartArgs),
    /// Start a router that shard nodes in other processes join
    Router(ConfigArg),
    /// Start one shard node
    ShardNode(ConfigArg),
    /// Open the shell
    Sql(SqlArgs),
    /// Measure
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// TPC-H scale factor; 1 is about 1 GB of text
    #[arg(long, default_value_t = 0.1)]
    scale: f64,
    /// Shard nodes
    #[arg(long, default_value_t = NODES_DEFAULT)]
    nodes: u32,
    /// Keep the data in this folder
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Write the results to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct StartArgs {
    /// Data folder
    #[arg(long)]
    data: PathBuf,
    /// Shard nodes
    #[arg(long, default_value_t = NODES_DEFAULT)]
    nodes: u32,
    /// PostgreSQL wire address
    #[arg(long, default_value = PG_ADDRESS_DEFAULT)]
    pg: SocketAddr,
    /// Flight SQL address
    #[arg(long, default_value = FLIGHT_ADDRESS_DEFAULT)]
    flight: SocketAddr,
    /// Health and metrics address
    #[arg(long, default_value = HTTP_ADDRESS_DEFAULT)]
    http: SocketAddr,
    /// Folder below which COPY FROM 'file' may read
    #[arg(long)]
    files_root: Option<PathBuf>,
    /// Memory for queries and decoded columns, MiB (default: half of the machine's)
    #[arg(long)]
    memory_mib: Option<usize>,
    /// Seconds for which removed rows are kept, so that snapshots of that time can be read
    #[arg(long, default_value_t = config::RETENTION_S_DEFAULT)]
    retention_s: u64,
    /// Listen beyond this machine without TLS or passwords
    #[arg(long)]
    insecure: bool,
}

#[derive(Debug, Args)]
struct ConfigArg {
    /// Settings as TOML; see config/ for examples
    #[arg(long)]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// The 22 queries derived from TPC-H
    Tpch(BenchArgs),
    /// The 99 queries derived from TPC-DS
    Tpcds(BenchArgs),
    /// The 22 queries derived from TPC-H on clusters of several sizes, started here one after the other
    Scale(ScaleArgs),
}

/// What every measurement has.
#[derive(Debug, Args)]
struct WorkArgs {
    /// Scale factor; 1 is about 1 GB of text
    #[arg(long, default_value_t = 0.1)]
    scale: f64,
    /// Queries by number, separated by commas; all by default
    #[arg(long, value_delimiter = ',')]
    queries: Option<Vec<u8>>,
    /// Compare every answer with single-process DataFusion over the same rows
    #[arg(long)]
    verify: bool,
    /// Shards of each sharded table
    #[arg(long, default_value_t = SHARDS_DEFAULT)]
    shards: u32,
    /// Write the results to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write them to this file as a Markdown table
    #[arg(long)]
    markdown: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ScaleArgs {
    /// Sizes of the clusters, in shard nodes, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    nodes: Vec<u32>,
    #[command(flatten)]
    work: WorkArgs,
    /// Timed runs of each query, after one untimed
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

#[derive(Debug, Args)]
struct SqlArgs {
    /// Server, postgres://user@host:port/database
    url: Option<String>,
    /// Run this command and end; may be given several times
    #[arg(short = 'c', long = "command")]
    commands: Vec<String>,
    /// Run the statements of this file and end; may be given several times, after the commands
    #[arg(short = 'f', long = "file")]
    files: Vec<String>,
    /// Print rows as CSV
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Print rows as JSON, one object a line
    #[arg(long)]
    json: bool,
    /// No greeting
    #[arg(short, long)]
    quiet: bool,
    /// End at the first error, with exit code 3
    #[arg(long)]
    stop_on_error: bool,
}

impl SqlArgs {
    fn options(self) -> ShellOptions {
        let commands = self.commands.into_iter().map(Action::Command);
        let format = match (self.csv, self.json) {
            (true, _) => Format::Csv,
            (_, true) => Format::Json,
            _ => Format::Aligned,
        };
        ShellOptions {
            url: self.url,
            actions: commands.chain(self.files.into_iter().map(Action::File)).collect(),
            format,
            quiet: self.quiet,
            stop_on_error: self.stop_on_error,
        }
    }
}

#[derive(Debug, Args)]
struct BenchArgs {
    /// Server to measure
    #[arg(long, default_value = "postgres://tessera@127.0.0.1:5433/tessera")]
    url: String,
    #[command(flatten)]
    work: WorkArgs,
    /// Create and load the tables first
    #[arg(long)]
    load: bool,
    /// Folder of Parquet files: what --load loads (it must be below the server's --files-root) and --compare reads; written first
    /// if they are missing
    #[arg(long)]
    files: Option<PathBuf>,
    /// Timed runs of each query, after one untimed
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// Compare every answer with qN.csv in this folder instead
    #[arg(long, conflicts_with = "verify")]
    answers: Option<PathBuf>,
    /// Time peers in turns with the server and print the ratios: datafusion (on Parquet; alone if no name is given),
    /// datafusion-memory (tables in memory), duckdb (its own tables), duckdb-parquet (both need Python with "pip install duckdb"),
    /// postgres://... (a server that has the tables)
    #[arg(long, value_name = "LIST", value_delimiter = ',', num_args = 0..=1, default_missing_value = "datafusion")]
    compare: Vec<Peer>,
    /// Run each query once more under EXPLAIN ANALYZE and print what moved between nodes
    #[arg(long)]
    analyze: bool,
    /// Write the medians to this file as a bar chart (SVG)
    #[arg(long)]
    chart: Option<PathBuf>,
}

impl WorkArgs {
    fn options(self, url: String) -> BenchOptions {
        let mut options = BenchOptions::new(url, self.scale);
        options.ddl = Ddl::Sharded(self.shards);
        options.queries = self.queries;
        options.verify = self.verify.then_some(Verify::Oracle);
        options.json = self.json;
        options.markdown = self.markdown;
        options
    }
}

impl BenchArgs {
    fn options(self) -> BenchOptions {
        let mut options = self.work.options(self.url);
        options.parquet_dir = self.files.clone();
        options.load = match (self.load, self.files) {
            (false, _) => Load::Skip,
            (true, None) => Load::Stream,
            (true, Some(dir)) => Load::Files(dir),
        };
        options.runs = self.runs;
        options.verify = self.answers.map(Verify::Answers).or(options.verify);
        options.compare = self.compare;
        options.analyze = self.analyze;
        options.chart = self.chart;
        options
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(tessera_router::STACK_BYTES)
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => return report(&Error::io("starting threads", &e)),
    };
    match runtime.block_on(run(cli.command)) {
        Ok(code) => code,
        Err(error) => report(&error),
    }
}

async fn run(command: Command) -> Result<ExitCode, Error> {
    match command {
        Command::Demo(args) => demo(args).await,
        Command::Start(args) => start(args).await,
        Command::Router(arg) => {
            let config = config::read(&arg.config).map_err(|e| Error::new("22023", e.0))?;
            processes::run_router(config, stop_on_signal())
                .await
                .map(|()| ExitCode::SUCCESS)
        }
        Command::ShardNode(arg) => {
            let config = config::read(&arg.config).map_err(|e| Error::new("22023", e.0))?;
            processes::run_shard_node(config, stop_on_signal())
                .await
                .map(|()| ExitCode::SUCCESS)
        }
        Command::Sql(args) => Ok(exit_code(tessera_shell::run(args.options()).await)),
        Command::Bench(Bench::Tpch(args)) => bench(&tpch::workload(), args).await,
        Command::Bench(Bench::Tpcds(args)) => bench(&tpcds::workload(), args).await,
        Command::Bench(Bench::Scale(args)) => bench_scale(args).await,
    }
}

async fn bench(workload: &Workload, args: BenchArgs) -> Result<ExitCode, Error> {
    let report = tessera_benches::run(workload, args.options())
        .await
        .map_err(|e| Error::new("58000", e.to_string()))?;
    Ok(if report.ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn bench_scale(args: ScaleArgs) -> Result<ExitCode, Error> {
    let mut options = args.work.options(String::new());
    options.runs = args.runs;
    // Of all clusters together, not of each.
    let (json, markdown) = (options.json.take(), options.markdown.take());
    let report = tessera::bench_scale::run(&tpch::workload(), &args.nodes, &options).await?;
    print!("{report}");
    let written = json.iter().try_for_each(|file| report.write_json(file));
    let written = written.and_then(|()| markdown.iter().try_for_each(|file| report.write_markdown(file)));
    written.map_err(|e| Error::new("58000", e.to_string()))?;
    Ok(if report.ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn demo(args: DemoArgs) -> Result<ExitCode, Error> {
    let temporary = tempfile::tempdir().map_err(|e| Error::io("creating a temporary folder", &e))?;
    let dir = args.keep.clone().unwrap_or_else(|| temporary.path().to_path_buf());
    println!("starting {} shard nodes in {}", args.nodes, dir.display());
    let cluster = Embedded::start(EmbeddedOptions::local(dir, args.nodes)).await?;
    let report = tessera_benches::demo(&cluster.url(), args.scale, args.json.as_deref()).await;
    let ok = match &report {
        Ok(report) => report.ok(),
        Err(_) => false,
    };
    if ok && std::io::IsTerminal::is_terminal(&std::io::stdin()) && std::io::IsTerminal::is_terminal(&std::io::stdout())
    {
        println!("the cluster is running; type SQL, \\? for help, \\q to end");
        let options = ShellOptions {
            url: Some(cluster.url()),
            ..ShellOptions::default()
        };
        tessera_shell::run(options).await;
    }
    cluster.shutdown().await?;
    report.map_err(|e| Error::new("58000", e.to_string()))?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn start(args: StartArgs) -> Result<ExitCode, Error> {
    let stop = stop_on_signal();
    let (queries, columns) = config::memory_shares(config::memory_bytes(args.memory_mib));
    let options = EmbeddedOptions {
        dir: args.data.clone(),
        nodes: args.nodes,
        pg: args.pg,
        flight: Some(args.flight),
        http: Some(args.http),
        files_root: args.files_root,
        query_memory: query_pool(queries),
        column_bytes: columns,
        retention: config::retention(args.retention_s).map_err(|e| Error::new("22023", e.0))?,
        insecure: args.insecure,
    };
    let mut cluster = Embedded::start(options).await?;
    println!(
        "tessera: {} shard nodes, data in {}",
        cluster.nodes().len(),
        args.data.display()
    );
    println!(
        "  SQL     {}   (psql '{}' or: tessera sql)",
        cluster.pg_address(),
        cluster.url()
    );
    if let Some(flight) = cluster.flight_address() {
        println!("  Flight  grpc://{flight}   (ADBC, Flight SQL)");
    }
    if let Some(http) = cluster.http_address() {
        println!("  health  http://{http}/healthz   metrics http://{http}/metrics");
    }
    let failed = tokio::select! {
        () = stop.cancelled() => Ok(()),
        result = cluster.failed() => result,
    };
    cluster.shutdown().await?;
    failed.map(|()| ExitCode::SUCCESS)
}

/// Fires at SIGINT or SIGTERM; a second signal ends the process at once.
fn stop_on_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let fired = stop.clone();
    tokio::spawn(async move {
        signal().await;
        eprintln!("stopping; again to stop at once");
        fired.cancel();
        signal().await;
        std::process::exit(130);
    });
    stop
}

async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

fn exit_code(code: i32) -> ExitCode {
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}

fn report(error: &Error) -> ExitCode {
    eprintln!("tessera: {} ({})", error.message, error.code);
    if let Some(detail) = &error.detail {
        eprintln!("  detail: {detail}");
    }
    if let Some(hint) = &error.hint {
        eprintln!("  hint: {hint}");
    }
    ExitCode::FAILURE
}
