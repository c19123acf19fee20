//! The same queries on clusters of several sizes: what more nodes change in time, bytes moved and time per stage.
//!
//! ```text
//!   query   1 node: ms  moved   2 nodes: ms  moved   4 nodes: ms  moved
//!       9        120.1      0         130.5  4.1 M         151.0  6.2 M
//!         stage 1                      40.2  4.1 M          61.3  6.2 M       what it gave on, its slowest reader's time
//! ```
//!
//! On one machine the nodes share its cores, so time can only grow with their number: by what distribution costs. Bytes moved
//! are those that would cross a network. Not here: starting clusters (the `tessera` program does).

use crate::error::{Error, Result};
use crate::report::{QueryReport, Report, Source};
use serde::Serialize;
use std::fmt::{self, Write};
use std::path::Path;

/// Reports of one workload at one scale, by number of nodes.
#[derive(Debug, Default, Serialize)]
pub struct ScaleReport {
    /// Nodes, and what was found on a cluster of so many. Every report has the same queries in the same order.
    pub clusters: Vec<(u32, Report)>,
}

impl ScaleReport {
    /// Whether every query ran everywhere and no checked answer was wrong.
    pub fn ok(&self) -> bool {
        self.clusters.iter().all(|(_, report)| report.ok())
    }

    /// Writes all reports as JSON.
    ///
    /// # Errors
    /// `File` when the file cannot be written.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        let document = serde_json::json!({ "ok": self.ok(), "clusters": self.clusters });
        std::fs::write(path, format!("{document:#}\n")).map_err(Error::file(path))
    }

    /// Writes the table for people as Markdown.
    ///
    /// # Errors
    /// `File` when the file cannot be written.
    pub fn write_markdown(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.markdown()).map_err(Error::file(path))
    }

    /// A row per query and below it one per leaf or stage; two columns per cluster.
    pub fn markdown(&self) -> String {
        let mut text = String::from("| query |");
        for (nodes, _) in &self.clusters {
            let _ = write!(text, " {} ms | moved |", count(*nodes));
        }
        let _ = write!(text, "\n|---|{}", "--:|--:|".repeat(self.clusters.len()));
        for row in self.rows() {
            let _ = write!(text, "\n| {} |", row.name);
            for cell in row.cells {
                let _ = write!(text, " {} | {} |", cell.0, cell.1);
            }
        }
        text.push('\n');
        text
    }

    fn rows(&self) -> Vec<Row> {
        let queries = self.clusters.first().map_or(0, |(_, report)| report.queries.len());
        let mut rows = vec![];
        for at in 0..queries {
            let all: Vec<Option<&QueryReport>> = self.clusters.iter().map(|(_, r)| r.queries.get(at)).collect();
            rows.push(Row {
                name: all
                    .iter()
                    .flatten()
                    .next()
                    .map_or_else(String::new, |q| q.query.clone()),
                cells: all.iter().map(|query| query.map_or_else(none, of_query)).collect(),
            });
            let sources = |q: Option<&QueryReport>| q.and_then(|q| q.moved.clone()).map_or(vec![], |m| m.sources);
            let sources: Vec<Vec<Source>> = all.into_iter().map(sources).collect();
            let mut names: Vec<&str> = sources.iter().flatten().map(|s| s.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                let find = |sources: &Vec<Source>| sources.iter().find(|s| s.name == name).map_or_else(none, of_source);
                rows.push(Row {
                    name: format!("– {name}"),
                    cells: sources.iter().map(find).collect(),
                });
            }
        }
        let means = self
            .clusters
            .iter()
            .map(|(_, report)| (format!("{:.1}", report.geometric_mean_ms()), String::new()));
        rows.push(Row {
            name: "geometric mean".into(),
            cells: means.collect(),
        });
        rows
    }
}

/// A line of the table: time and bytes on each cluster.
struct Row {
    name: String,
    cells: Vec<(String, String)>,
}

fn none() -> (String, String) {
    ("–".into(), "–".into())
}

fn of_query(query: &QueryReport) -> (String, String) {
    let time = match query.difference {
        None => format!("{:.1}", query.spread.median_ms),
        Some(_) => "failed".into(),
    };
    (time, query.moved.as_ref().map_or("–".into(), |moved| size(moved.bytes)))
}

fn of_source(source: &Source) -> (String, String) {
    (format!("{:.1}", source.ms), size(source.bytes))
}

/// Bytes in at most four digits.
fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

fn count(nodes: u32) -> String {
    format!("{nodes} node{}", if nodes == 1 { "" } else { "s" })
}

impl fmt::Display for ScaleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<24}", "query")?;
        for (nodes, _) in &self.clusters {
            write!(f, " {:>13} {:>9}", format!("{} ms", count(*nodes)), "moved")?;
        }
        for row in self.rows() {
            write!(f, "\n{:<24}", row.name)?;
            for (time, bytes) in row.cells {
                write!(f, " {time:>13} {bytes:>9}")?;
            }
        }
        writeln!(f)?;
        for (nodes, report) in &self.clusters {
            for query in &report.queries {
                if let Some(difference) = &query.difference {
                    writeln!(f, "{}, query {}: {difference}", count(*nodes), query.query)?;
                }
            }
        }
        match self.clusters.first() {
            Some((_, report)) => writeln!(
                f,
                "scale {}, {} runs, {} cores for all nodes; {}",
                report.scale, report.runs, report.cores, report.workload
            ),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Moved, Spread};
    use std::time::Duration;

    fn report(ms: u64, bytes: u64, stage: &str) -> Report {
        let mut report = Report::new("w", 1.0, 3, vec![], vec![]);
        let source = Source {
            name: stage.into(),
            rows: 5,
            bytes,
            ms: 1.5,
        };
        report.queries.push(QueryReport {
            query: "9".into(),
            rows: 1,
            spread: Spread::of(&[Duration::from_millis(ms)]),
            nodes: None,
            strategy: None,
            matched: None,
            difference: None,
            no_oracle: None,
            peers: vec![],
            moved: Some(Moved {
                bytes,
                rows: 5,
                partial_aggregates_only: false,
                sources: vec![source],
            }),
        });
        report
    }

    #[test]
    fn clusters_stand_side_by_side() {
        let clusters = vec![(1, report(10, 0, "leaf 0")), (2, report(12, 20_500, "stage 1"))];
        let report = ScaleReport { clusters };
        assert!(report.ok());
        let lines = [
            "| query | 1 node ms | moved | 2 nodes ms | moved |",
            "|---|--:|--:|--:|--:|",
            "| 9 | 10.0 | 0 B | 12.0 | 20 kB |",
            "| – leaf 0 | 1.5 | 0 B | – | – |",
            "| – stage 1 | – | – | 1.5 | 20 kB |",
            "| geometric mean | 10.0 |  | 12.0 |  |",
        ];
        assert_eq!(report.markdown(), lines.join("\n") + "\n");
    }
}
