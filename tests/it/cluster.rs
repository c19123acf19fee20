//! Clusters for tests: embedded in this process, or the real binary as child processes that can be killed.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tessera::embedded::{Embedded, EmbeddedOptions};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// Longest a test waits for something that should take moments.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An embedded cluster in a folder, with files below `dir/files` readable by COPY.
pub async fn embedded(dir: &Path, nodes: u32) -> Embedded {
    let mut options = EmbeddedOptions::local(dir, nodes);
    options.files_root = Some(dir.to_path_buf());
    options.memory_bytes = 1 << 30;
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
        let (pg, http) = (free_address(), free_address());
        let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
        command
            .args([
                "start",
                "--nodes",
                &nodes.to_string(),
                "--pg",
                &pg.to_string(),
                "--http",
                &http.to_string(),
                "--data",
            ])
            .arg(dir);
        let mut process = Self::spawn(command);
        let url = format!("postgres://tessera@{pg}/tessera");
        process.until_ready(&url).await;
        (process, url)
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

/// A loopback address that was free a moment ago.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address")
}
