//! Every setting of the processes: its unit, default and bound. Files are TOML; an unknown key is an error that names it.

use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tessera_shard_node::node::watermark::RETENTION_DEFAULT;

/// Where PostgreSQL clients connect.
pub const PG_ADDRESS_DEFAULT: &str = "127.0.0.1:5433";
/// Where shard nodes find a router's meta store and oracle.
pub const ROUTER_GRPC_DEFAULT: &str = "127.0.0.1:50050";
/// Where Flight SQL clients connect.
pub const FLIGHT_ADDRESS_DEFAULT: &str = "127.0.0.1:50051";
/// Where health and metrics are served.
pub const HTTP_ADDRESS_DEFAULT: &str = "127.0.0.1:8080";
/// Shard nodes of an embedded cluster.
pub const NODES_DEFAULT: u32 = 3;
/// Most shard nodes in one process: each has its own WAL and threads.
pub const NODES_MAX: u32 = 32;

/// Seconds for which removed rows are kept.
pub const RETENTION_S_DEFAULT: u64 = RETENTION_DEFAULT.as_secs();
/// Most of them: thirty days. Until then every change of a row is stored.
pub const RETENTION_S_MAX: u64 = 30 * 24 * 3_600;

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// `tessera router --config F`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterConfig {
    /// Folder of the meta store.
    pub data: PathBuf,
    /// PostgreSQL wire.
    #[serde(default = "pg_address")]
    pub pg: SocketAddr,
    /// Flight SQL.
    #[serde(default = "flight_address")]
    pub flight: SocketAddr,
    /// Meta store and oracle for shard nodes.
    #[serde(default = "router_grpc")]
    pub grpc: SocketAddr,
    /// Health and metrics.
    #[serde(default = "http_address")]
    pub http: SocketAddr,
    /// `COPY ... FROM 'file'` reads below this folder; without it such statements are refused.
    pub files_root: Option<PathBuf>,
    /// Memory for queries and decoded columns, MiB; default half of the machine's.
    pub memory_mib: Option<usize>,
    /// Listen on addresses that are not loopback although there is neither TLS nor a password yet.
    #[serde(default)]
    pub insecure: bool,
}

/// `tessera shard-node --config F`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardNodeConfig {
    /// Number of this node, unique in the cluster, from 1.
    pub id: u32,
    /// Folder of this node's data.
    pub data: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// How others reach it, `host:port`; default `listen`.
    pub advertise: Option<String>,
    /// The router's gRPC address, `host:port`.
    pub router: String,
    /// Memory for queries and decoded columns, MiB; default half of the machine's.
    pub memory_mib: Option<usize>,
    /// Seconds for which removed rows are kept, so that snapshots of that time can be read; at most [`RETENTION_S_MAX`].
    #[serde(default = "retention_s")]
    pub retention_s: u64,
    /// See [`RouterConfig::insecure`].
    #[serde(default)]
    pub insecure: bool,
}

fn retention_s() -> u64 {
    RETENTION_S_DEFAULT
}
fn pg_address() -> SocketAddr {
    loopback(5433)
}
fn flight_address() -> SocketAddr {
    loopback(50_051)
}
fn router_grpc() -> SocketAddr {
    loopback(50_050)
}
fn http_address() -> SocketAddr {
    loopback(8080)
}
fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Reads a TOML file.
///
/// # Errors
/// The file is missing, is not TOML, has an unknown key or a value of the wrong type; the message names file and place.
pub fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|e| ConfigError(format!("config file {}: {e}", path.display())))?;
    toml::from_str(&text).map_err(|e| ConfigError(format!("config file {}: {e}", path.display())))
}

/// Refuses to listen beyond this machine until TLS and passwords exist.
///
/// # Errors
/// The address is not loopback and `insecure` is not set.
pub fn check_listen(address: SocketAddr, insecure: bool) -> Result<(), ConfigError> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    if !insecure {
        return Err(ConfigError(format!(
            "refusing to listen on {address}: there is no TLS and no password yet; listen on 127.0.0.1, or pass --insecure in a network you trust"
        )));
    }
    tracing::warn!(%address, "listening beyond this machine without TLS or passwords: everyone who can connect may read and write everything");
    Ok(())
}

/// How long removed rows are kept.
///
/// # Errors
/// It is too long.
pub fn retention(seconds: u64) -> Result<Duration, ConfigError> {
    match seconds {
        0..=RETENTION_S_MAX => Ok(Duration::from_secs(seconds)),
        _ => Err(ConfigError(format!(
            "retention_s is {seconds}; at most {RETENTION_S_MAX} (30 days) is possible"
        ))),
    }
}

/// How a process with shard nodes divides its memory, bytes: first what running queries may use, then decoded columns.
pub fn memory_shares(bytes: usize) -> (usize, usize) {
    let columns = bytes / 5 * 2;
    (bytes - columns, columns)
}

/// Memory for queries and decoded columns in bytes: what was asked for, else half of the machine's, at least 256 MiB.
pub fn memory_bytes(asked_mib: Option<usize>) -> usize {
    asked_mib
        .map_or_else(|| machine_memory() / 2, |mib| mib << 20)
        .max(256 << 20)
}

/// Total memory of the machine as Linux tells it; 4 GiB where it does not.
fn machine_memory() -> usize {
    let kib = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<usize>().ok()
    });
    kib.map_or(4 << 30, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_named() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("router.toml");
        std::fs::write(&path, "data = \"x\"\npgg = 1\n").expect("write");
        let error = read::<RouterConfig>(&path).expect_err("unknown key").to_string();
        assert!(error.contains("pgg") && error.contains("router.toml"), "{error}");
    }

    #[test]
    fn only_loopback_without_insecure() {
        assert!(check_listen(loopback(1), false).is_ok());
        let open = SocketAddr::from(([0, 0, 0, 0], 5433));
        assert!(check_listen(open, false).expect_err("refused").0.contains("--insecure"));
        assert!(check_listen(open, true).is_ok());
    }
}
