//! What a run found: figures per query, as a table for people and JSON for scripts.
//!
//! ```text
//! query   rows     min   median      max  nodes  strategy              match   datafusion  ratio
//!     1      4    12.3     12.9     14.0      3  scatter-gather        yes           10.1   1.28
//! total                   340.2                                        22/22        301.0
//! geomean                  11.0                                                       9.7   1.13
//! ```
//!
//! Times are milliseconds from sending the text to receiving the last row.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::load::{LoadReport, megabytes};
use crate::error::{Error, Result};

/// Smallest, middle and largest of several times, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The fastest run.
    pub min_ms: f64,
    /// The middle run, or the mean of the two in the middle.
    pub median_ms: f64,
    /// The slowest run.
    pub max_ms: f64,
}

impl Spread {
    /// The spread of at least one time; all zero for none.
    pub fn of(times: &[Duration]) -> Self {
        let mut ms: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        ms.sort_by(f64::total_cmp);
        let (Some(&min_ms), Some(&max_ms)) = (ms.first(), ms.last()) else {
            return Self {
                min_ms: 0.0,
                median_ms: 0.0,
                max_ms: 0.0,
            };
        };
        let median_ms = (ms[(ms.len() - 1) / 2] + ms[ms.len() / 2]) / 2.0;
        Self {
            min_ms,
            median_ms,
            max_ms,
        }
    }
}

/// What was found about one query.
#[derive(Debug, Clone, Serialize)]
pub struct QueryReport {
    /// Number, and part if it has several.
    pub query: String,
    /// Rows of the answer.
    pub rows: usize,
    /// Our times.
    #[serde(flatten)]
    pub spread: Spread,
    /// Nodes that took part, if EXPLAIN says.
    pub nodes: Option<String>,
    /// How the query was run, if EXPLAIN says.
    pub strategy: Option<String>,
    /// Whether the answer was right; `None` if it was not checked.
    pub matched: Option<bool>,
    /// The first difference, or the server's error.
    pub difference: Option<String>,
    /// Why DataFusion gave no answer to compare with, if it was asked and did not.
    pub no_oracle: Option<String>,
    /// Times of the peers, taken in turns with ours; `None` for one that cannot run it.
    pub peers: Vec<Option<Spread>>,
    /// What left the node that made it, if that was asked.
    pub moved: Option<Moved>,
}

/// What a query moves.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moved {
    /// Bytes, as Arrow.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
    /// Every leaf ends in an aggregation of its own rows: nothing else leaves a node.
    pub partial_aggregates_only: bool,
    /// What its leaves and stages gave to the next ones, also to those on their own node.
    pub sources: Vec<Source>,
}

/// What one leaf or stage gave to the next, over all its tasks.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Source {
    /// As EXPLAIN ANALYZE calls it.
    pub name: String,
    /// Rows.
    pub rows: u64,
    /// Bytes, as Arrow.
    pub bytes: u64,
    /// From the first request to the last row, of the slowest reader.
    pub ms: f64,
}

/// What a whole run found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The kind of workload and its caveat.
    pub workload: &'static str,
    /// Scale factor.
    pub scale: f64,
    /// Timed runs per query.
    pub runs: usize,
    /// Cores of this machine.
    pub cores: usize,
    /// Version of this program.
    pub version: &'static str,
    /// What loading took; empty if nothing was loaded.
    pub load: Vec<LoadReport>,
    /// Names of the peers.
    pub peers: Vec<String>,
    /// By query number.
    pub queries: Vec<QueryReport>,
}

impl Report {
    /// An empty report about this machine.
    pub(crate) fn new(
        workload: &'static str,
        scale: f64,
        runs: usize,
        load: Vec<LoadReport>,
        peers: Vec<String>,
    ) -> Self {
        Self {
            workload,
            scale,
            runs,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            version: env!("CARGO_PKG_VERSION"),
            load,
            peers,
            queries: Vec::new(),
        }
    }

    /// Whether every query ran and no checked answer was wrong.
    pub fn ok(&self) -> bool {
        self.queries
            .iter()
            .all(|query| query.difference.is_none() && query.matched != Some(false))
    }

    /// Queries whose answer was checked and right.
    pub fn matches(&self) -> usize {
        self.queries.iter().filter(|query| query.matched == Some(true)).count()
    }

    /// Sum of our medians, in milliseconds.
    pub fn total_ms(&self) -> f64 {
        self.medians().sum()
    }

    /// Geometric mean of our medians, in milliseconds.
    pub fn geometric_mean_ms(&self) -> f64 {
        geometric_mean(self.medians())
    }

    /// Geometric mean of ours over each peer's, over the queries that both ran.
    pub fn ratios(&self) -> Vec<Option<f64>> {
        let of = |peer: usize| {
            let ratios: Vec<f64> = self.queries.iter().filter_map(|q| ratio(q, peer)).collect();
            (!ratios.is_empty()).then(|| geometric_mean(ratios.into_iter()))
        };
        (0..self.peers.len()).map(of).collect()
    }

    /// Writes the report and its summary as JSON.
    ///
    /// # Errors
    /// `File` when the file cannot be written.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        let document = serde_json::json!({
            "report": self,
            "ok": self.ok(),
            "matches": self.matches(),
            "total_ms": self.total_ms(),
            "geometric_mean_ms": self.geometric_mean_ms(),
            "ratios": self.peers.iter().cloned().zip(self.ratios()).collect::<std::collections::BTreeMap<_, _>>(),
        });
        std::fs::write(path, format!("{document:#}\n")).map_err(Error::file(path))
    }

    /// Ours over a peer's, for a query that both ran.
    pub(crate) fn ratio(&self, query: &QueryReport, peer: usize) -> Option<f64> {
        ratio(query, peer)
    }

    fn medians(&self) -> impl Iterator<Item = f64> + '_ {
        self.queries
            .iter()
            .filter(|query| query.difference.is_none() || query.matched.is_some())
            .map(|q| q.spread.median_ms)
    }

    fn write_load(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.load.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "{:<22} {:>11} {:>9} {:>11} {:>8}",
            "table", "rows", "seconds", "rows/s", "MB/s"
        )?;
        for load in &self.load {
            let seconds = load.seconds.max(1e-6);
            let (rows_rate, rate) = (load.rows as f64 / seconds, megabytes(load.bytes) / seconds);
            writeln!(
                f,
                "{:<22} {:>11} {:>9.2} {rows_rate:>11.0} {rate:>8.1}",
                load.table, load.rows, load.seconds
            )?;
        }
        writeln!(f)
    }

    fn write_query(&self, f: &mut fmt::Formatter<'_>, query: &QueryReport) -> fmt::Result {
        let matched = match query.matched {
            Some(true) => "yes",
            Some(false) => "NO",
            None if query.difference.is_some() => "failed",
            None => "-",
        };
        let Spread {
            min_ms,
            median_ms,
            max_ms,
        } = query.spread;
        write!(
            f,
            "{:>7} {:>6} {min_ms:>9.1} {median_ms:>9.1} {max_ms:>9.1}",
            query.query, query.rows
        )?;
        let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        write!(
            f,
            "  {:>5}  {:<20} {matched:<7}",
            dash(&query.nodes),
            dash(&query.strategy)
        )?;
        for (peer, width) in self.widths().enumerate() {
            match (query.peers.get(peer).copied().flatten(), ratio(query, peer)) {
                (Some(times), Some(ratio)) => write!(f, " {:>width$.1} {ratio:>6.2}", times.median_ms)?,
                _ => write!(f, " {:>width$} {:>6}", "-", "-")?,
            }
        }
        if let Some(moved) = &query.moved {
            let what = if moved.partial_aggregates_only {
                "  partial aggregates only"
            } else {
                ""
            };
            write!(f, " {:>12} {:>12}{what}", moved.bytes, moved.rows)?;
        }
        writeln!(f)
    }

    /// Widths of the peers' columns.
    fn widths(&self) -> impl Iterator<Item = usize> + '_ {
        self.peers.iter().map(|name| name.len().max(10))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_load(f)?;
        write!(
            f,
            "{:>7} {:>6} {:>9} {:>9} {:>9}  ",
            "query", "rows", "min ms", "median", "max"
        )?;
        write!(f, "{:>5}  {:<20} {:<7}", "nodes", "strategy", "match")?;
        for (name, width) in self.peers.iter().zip(self.widths()) {
            write!(f, " {name:>width$}  ratio")?;
        }
        let analyzed = self.queries.iter().any(|q| q.moved.is_some());
        writeln!(f, "{}", if analyzed { "  moved bytes   moved rows" } else { "" })?;
        for query in &self.queries {
            self.write_query(f, query)?;
        }
        writeln!(f, "{:>7} {:>26.1} ms", "total", self.total_ms())?;
        writeln!(f, "{:>7} {:>26.1} ms", "geomean", self.geometric_mean_ms())?;
        for (name, ratio) in self.peers.iter().zip(self.ratios()) {
            let what = match name.as_str() {
                "datafusion" => "single-process DataFusion on Parquet",
                "datafusion-memory" => "single-process DataFusion on tables in memory",
                "duckdb" => "DuckDB on its own tables",
                "duckdb-parquet" => "DuckDB on Parquet",
                other => other,
            };
            match ratio {
                Some(ratio) => writeln!(f, "{ratio:.2} x {what} (geometric mean)")?,
                None => writeln!(f, "{what} ran none of the queries")?,
            }
        }
        let checked = self.queries.iter().filter(|query| query.matched.is_some()).count();
        if checked > 0 {
            writeln!(f, "{}/{checked} match", self.matches())?;
        }
        for query in &self.queries {
            if let Some(difference) = &query.difference {
                writeln!(f, "query {}: {difference}", query.query)?;
            }
            if let Some(reason) = &query.no_oracle {
                writeln!(f, "query {} not compared: {reason}", query.query)?;
            }
        }
        writeln!(f, "scale {}, {} cores; {}", self.scale, self.cores, self.workload)
    }
}

fn ratio(query: &QueryReport, peer: usize) -> Option<f64> {
    let baseline = query.peers.get(peer).copied().flatten()?.median_ms;
    (baseline > 0.0 && query.spread.median_ms > 0.0).then(|| query.spread.median_ms / baseline)
}

pub(crate) fn geometric_mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), value| {
        (sum + value.max(1e-6).ln(), count + 1)
    });
    if count == 0 {
        0.0
    } else {
        (sum / f64::from(count)).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_and_means() {
        let ms = |values: &[u64]| values.iter().map(|v| Duration::from_millis(*v)).collect::<Vec<_>>();
        assert_eq!(
            Spread::of(&ms(&[9, 1, 2])),
            Spread {
                min_ms: 1.0,
                median_ms: 2.0,
                max_ms: 9.0
            }
        );
        assert_eq!(Spread::of(&ms(&[4, 2])).median_ms, 3.0);
        assert!((geometric_mean([2.0, 8.0].into_iter()) - 4.0).abs() < 1e-9);
    }
}
