//! Clusters for tests: embedded in this process, or the real binary as child processes that can be killed.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tessera::embedded::{Embedded, EmbeddedOptions};
use tessera_proto::memory::query_pool;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// Longest a test waits for something that should take moments.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An embedded cluster in a folder, with files below `dir/files` readable by COPY.
pub async fn embedded(dir: &Path, nodes: u32) -> Embedded {
    let mut options = EmbeddedOptions::local(dir, nodes);
    options.files_root = Some(dir.to_path_buf());
    options.flight = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    options.query_memory = query_pool(600 << 20);
    options.column_bytes = 400 << 20;
    Embedded::start(options).await.expect("the cluster starts")
}

/// A connection; its task ends with the server or the client.
pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("connects");
    tokio::spawn(async move {
        // The test sees a lost connection as an error of its next statement.
        let _ = connection.await;
    });
    client
}

/// Rows of a statement as text; NULL is `None`.
pub async fn rows(client: &Client, sql: &str) -> Result<Vec<Vec<Option<String>>>, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    Ok(messages
        .iter()
        .filter_map(|m| match m {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
            _ => None,
        })
        .collect())
}

/// The single value of a statement.
pub async fn value(client: &Client, sql: &str) -> String {
    let rows = rows(client, sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    rows[0][0].clone().unwrap_or_else(|| "NULL".into())
}

/// SQLSTATE of a statement that must fail.
pub async fn code(client: &Client, sql: &str) -> String {
    match client.simple_query(sql).await {
        Ok(_) => panic!("{sql}: succeeded"),
        Err(e) => e
            .code()
            .unwrap_or_else(|| panic!("{sql}: no SQLSTATE: {e}"))
            .code()
            .to_owned(),
    }
}

/// A `tessera` child process; killed when dropped.
pub struct Process(Child);

impl Process {
    /// `tessera start` on a folder. Returns when it accepts connections.
    pub async fn start(dir: &Path, nodes: u32) -> (Self, String) {
        let (mut process, url) = Self::begin(dir, nodes);
        process.until_ready(&url).await;
        (process, url)
    }

    /// `tessera start` on a folder; it is still starting.
    pub fn begin(dir: &Path, nodes: u32) -> (Self, String) {
        let (pg, flight, http) = (free_address(), free_address(), free_address());
        let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
        command
            .args([
                "start",
                "--nodes",
                &nodes.to_string(),
                "--pg",
                &pg.to_string(),
                "--flight",
                &flight.to_string(),
                "--http",
                &http.to_string(),
                "--data",
            ])
            .arg(dir);
        (Self::spawn(command), format!("postgres://tessera@{pg}/tessera"))
    }

    /// `tessera router` or `tessera shard-node` with this configuration.
    pub fn with_config(subcommand: &str, config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
        command.args([subcommand, "--config"]).arg(config);
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        Self(command.stdout(Stdio::null()).spawn().expect("the binary runs"))
    }

    /// Polls until a statement succeeds: readiness is the server's to say, so there is nothing else to wait for.
    pub async fn until_ready(&mut self, url: &str) {
        let start = Instant::now();
        loop {
            if let Ok((client, connection)) = tokio_postgres::connect(url, NoTls).await {
                let task = tokio::spawn(connection);
                let ready = client.simple_query("SELECT 1").await.is_ok();
                drop(client);
                task.abort();
                if ready {
                    return;
                }
            }
            assert!(
                self.0.try_wait().expect("child").is_none(),
                "the process ended while starting"
            );
            assert!(start.elapsed() < PATIENCE, "not ready in {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args(["-s", signal, &self.0.id().to_string()])
            .status();
        assert!(sent.expect("kill runs").success(), "the process is gone already");
    }

    /// Until it ends by itself.
    pub fn wait(mut self) {
        self.0.wait().expect("reaped");
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("reaped");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A router and shard nodes as processes of their own, each with its folder below `dir`.
pub struct Processes {
    dir: PathBuf,
    url: String,
    flight: SocketAddr,
    grpc: SocketAddr,
    router: Option<Process>,
    nodes: BTreeMap<u32, Process>,
}

impl Processes {
    /// Configured and not running.
    pub fn configure(dir: &Path, nodes: u32) -> Self {
        let write = |name: String, text: String| std::fs::write(dir.join(name), text).expect("configuration written");
        let (pg, flight, grpc, http) = (free_address(), free_address(), free_address(), free_address());
        for id in 1..=nodes {
            let (data, listen) = (dir.join(format!("node-{id}")), free_address());
            write(
                format!("node-{id}.toml"),
                format!("id = {id}\ndata = {data:?}\nlisten = \"{listen}\"\nrouter = \"{grpc}\"\nmemory_mib = 256\n"),
            );
        }
        let data = dir.join("router");
        write(
            "router.toml".into(),
            format!(
                "data = {data:?}\npg = \"{pg}\"\nflight = \"{flight}\"\ngrpc = \"{grpc}\"\nhttp = \"{http}\"\nmemory_mib = 256\n"
            ),
        );
        Self {
            dir: dir.to_path_buf(),
            url: format!("postgres://tessera@{pg}/tessera"),
            flight,
            grpc,
            router: None,
            nodes: BTreeMap::new(),
        }
    }

    /// All running, and all nodes known to the router.
    pub async fn start(dir: &Path, nodes: u32) -> Self {
        Self::configure(dir, nodes).run(nodes).await
    }

    async fn run(mut self, nodes: u32) -> Self {
        let all = &mut self;
        (1..=nodes).for_each(|id| all.start_node(id));
        all.start_router().await;
        let client = connect(&all.url).await;
        until(&client, "SELECT node FROM tessera.nodes", |rows| {
            rows.len() == nodes as usize
        })
        .await;
        self
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where Flight SQL clients connect.
    pub fn flight(&self) -> SocketAddr {
        self.flight
    }

    /// Where the router serves the meta store.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// A node's data directory.
    pub fn path(&self, id: u32) -> PathBuf {
        self.dir.join(format!("node-{id}"))
    }

    pub fn start_node(&mut self, id: u32) {
        let config = self.dir.join(format!("node-{id}.toml"));
        let old = self.nodes.insert(id, Process::with_config("shard-node", &config));
        assert!(old.is_none(), "node {id} runs already");
    }

    pub async fn start_router(&mut self) {
        let mut router = Process::with_config("router", &self.dir.join("router.toml"));
        router.until_ready(&self.url).await;
        self.router = Some(router);
    }

    pub fn kill_node(&mut self, id: u32) {
        self.nodes.remove(&id).expect("the node runs").kill();
    }

    /// SIGTERM, and its end.
    pub fn terminate_node(&mut self, id: u32) {
        let node = self.nodes.remove(&id).expect("the node runs");
        node.terminate();
        node.wait();
    }

    /// SIGSTOP: it neither runs nor ends.
    pub fn freeze_node(&self, id: u32) {
        self.nodes[&id].signal("STOP");
    }

    /// SIGCONT.
    pub fn thaw_node(&self, id: u32) {
        self.nodes[&id].signal("CONT");
    }

    pub fn kill_router(&mut self) {
        self.router.take().expect("the router runs").kill();
    }

    /// SIGTERM to the nodes, so that they seal what they have, then the end of the router.
    pub fn stop(mut self) {
        let nodes = std::mem::take(&mut self.nodes);
        nodes.values().for_each(Process::terminate);
        nodes.into_values().for_each(Process::wait);
        self.kill_router();
    }
}

/// Repeats a statement that may fail while something comes back. Nothing announces that to a client, so it has to ask.
pub async fn until(client: &Client, sql: &str, done: impl Fn(&[Vec<Option<String>>]) -> bool) {
    let start = Instant::now();
    loop {
        // A statement that hangs is a failure, too.
        let left = PATIENCE.saturating_sub(start.elapsed());
        let found = tokio::time::timeout(left, rows(client, sql)).await;
        let found = found.unwrap_or_else(|_| panic!("{sql}: no answer in {PATIENCE:?}"));
        if found.as_ref().is_ok_and(|rows| done(rows)) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{sql}: {found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Every copy of every shard of a table answers and has its leader's rows; each of `shards` has `copies` of them in sync.
pub async fn until_verified(client: &Client, table: &str, shards: usize, copies: usize) {
    until(client, &format!("VERIFY TABLE {table}"), |rows| {
        let sound = |row: &&Vec<Option<String>>| row[5].as_deref() == Some("t") && row[2].as_deref() != Some("learner");
        rows.len() == shards * copies && rows.iter().filter(sound).count() == rows.len()
    })
    .await;
}

/// A number from the environment: everyday runs are short, acceptance runs long.
pub fn setting(name: &str, everyday: u64) -> u64 {
    std::env::var(name).map_or(everyday, |n| {
        n.parse().unwrap_or_else(|_| panic!("{name} is not a number: {n}"))
    })
}

/// A loopback address that nobody listens on, given once. Below the ports that the kernel gives to clients: it would give one
/// of those to a connection before its server comes to listen on it.
pub fn free_address() -> SocketAddr {
    const PORTS: std::ops::Range<u32> = 12_000..32_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(97);
    let free = PORTS.map(|_| {
        let step = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + step % (PORTS.end - PORTS.start);
        SocketAddr::from(([127, 0, 0, 1], port as u16))
    });
    let mut free = free.filter(|address| TcpListener::bind(address).is_ok());
    free.next().expect("a free port")
}
