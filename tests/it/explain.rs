//! EXPLAIN of queries derived from TPC-H on a cluster of three nodes with rows at scale 0.01: what moves and what stays.
//!
//! ```text
//!   plans/q3.txt    strategy and leaves of Q3, as EXPLAIN prints them; what is above the leaves is free to change
//! ```
//!
//! `UPDATE_PLANS=1 cargo test --test it explain` rewrites the files. Whatever they say, lineitem and orders are joined inside
//! a leaf, no reference table is a leaf of its own beside others, and one key asks one shard.

use crate::cluster;
use std::path::PathBuf;
use tessera_benches::tpch::queries::query;
use tessera_benches::{BenchOptions, Load, run, tpch};
use tokio_postgres::Client;

/// Queries that join lineitem and orders, by the statement of what must be shown; Q1 reads lineitem alone.
const QUERIES: [u8; 7] = [1, 3, 4, 5, 12, 18, 21];
/// Tables with a copy on every node.
const REFERENCES: [&str; 3] = ["nation", "region", "supplier"];

async fn explain(client: &Client, sql: &str) -> Vec<String> {
    let rows = cluster::rows(client, &format!("EXPLAIN {sql}"))
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    rows.into_iter().filter_map(|mut row| row.remove(0)).collect()
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Leaves with what is in them, each brought to the left edge.
fn leaves(lines: &[String]) -> Vec<Vec<String>> {
    let mut leaves = vec![];
    for (i, line) in lines.iter().enumerate() {
        if line.trim_start().starts_with("ShardLocal") {
            let inside = lines[i + 1..].iter().take_while(|l| indent(l) > indent(line));
            let all = std::iter::once(line).chain(inside);
            leaves.push(all.map(|l| l[indent(line)..].to_owned()).collect());
        }
    }
    leaves
}

/// Names that the optimiser numbers through the life of a process, numbered from 1 in each plan.
fn renumbered(text: &str) -> String {
    let mut out = text.to_owned();
    for prefix in ["__common_expr_", "__correlated_sq_", "__scalar_sq_"] {
        let mut seen: Vec<String> = vec![];
        for (at, _) in text.match_indices(prefix) {
            let number: String = text[at + prefix.len()..]
                .chars()
                .take_while(char::is_ascii_digit)
                .collect();
            if !seen.contains(&number) {
                seen.push(number);
            }
        }
        // Longest first, so that 1 is not found in 12.
        let mut order: Vec<_> = seen.iter().enumerate().collect();
        order.sort_by_key(|(_, number)| std::cmp::Reverse(number.len()));
        for (i, number) in order {
            out = out.replace(&format!("{prefix}{number}"), &format!("{prefix}#{}", i + 1));
        }
    }
    out
}

fn reads(leaf: &[String], table: &str) -> bool {
    let scan = format!("TableScan: {table} ");
    leaf.iter().any(|line| line.trim_start().starts_with(&scan))
}

/// Equality of the order keys, in a join of any kind.
fn joins_orders(leaf: &[String]) -> bool {
    leaf.iter().any(|line| {
        line.contains(" Join: ") && line.matches("orderkey").count() >= 2 && !line.trim_start().starts_with("Cross")
    })
}

/// A server on three nodes with the rows loaded and counted.
async fn loaded(dir: &std::path::Path) -> (tessera::embedded::Embedded, Client) {
    let cluster = cluster::embedded(dir, 3).await;
    let mut options = BenchOptions::new(cluster.url(), 0.01);
    options.load = Load::Stream;
    options.queries = Some(vec![6]);
    run(&tpch::workload(), options).await.expect("loaded");
    cluster.engine().refresh_statistics(None).await;
    let client = cluster::connect(&cluster.url()).await;
    client.simple_query("SET tessera.distributed = off").await.expect("set");
    (cluster, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_keep_joins_on_the_nodes() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (cluster, client) = loaded(dir.path()).await;
    let mut wrong = vec![];
    for number in QUERIES {
        let lines = explain(&client, query(number).expect("a query").sql).await;
        let leaves = leaves(&lines);
        if let Err(what) = judge(number, &lines, &leaves) {
            wrong.push(format!("Q{number}: {what}\n{}", lines.join("\n")));
        }
        let blocks = leaves.iter().map(|leaf| leaf.join("\n"));
        let text = std::iter::once(lines[0].clone()).chain(blocks).collect::<Vec<_>>();
        let text = renumbered(&format!("{}\n", text.join("\n\n")));
        let file = PathBuf::from(format!("tests/it/plans/q{number}.txt"));
        if std::env::var_os("UPDATE_PLANS").is_some() {
            std::fs::write(&file, &text).expect("plan written");
        }
        let stored = std::fs::read_to_string(&file).unwrap_or_default();
        if stored != text {
            wrong.push(format!("Q{number} differs from {}:\n{text}", file.display()));
        }
    }
    one_key_asks_one_shard(&client).await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    drop(client);
    cluster.shutdown().await.expect("stops");
}

/// What must hold whatever the files say.
fn judge(number: u8, lines: &[String], leaves: &[Vec<String>]) -> Result<(), String> {
    if lines[0] != "Strategy: gather" {
        return Err("nothing but leaves is gathered with exchanges off".into());
    }
    if lines.iter().filter(|l| l.contains("TableScan:")).count()
        != leaves.iter().flatten().filter(|l| l.contains("TableScan:")).count()
    {
        return Err("a table is scanned outside of a leaf".into());
    }
    let moved = leaves
        .iter()
        .find(|leaf| REFERENCES.iter().any(|t| reads(leaf, t)) && leaf[0].contains("reference"));
    if let Some(leaf) = moved {
        return Err(format!("a reference table moves:\n{}", leaf.join("\n")));
    }
    let lineitem: Vec<_> = leaves.iter().filter(|leaf| reads(leaf, "lineitem")).collect();
    if lineitem.is_empty() {
        return Err("no leaf reads lineitem".into());
    }
    if number != 1 && !lineitem.iter().any(|leaf| reads(leaf, "orders") && joins_orders(leaf)) {
        return Err("lineitem and orders are not joined in a leaf".into());
    }
    // Q18 aggregates lineitem once more, also in a leaf; else nothing of either table comes to the router unjoined.
    let alone = leaves.iter().find(|leaf| {
        reads(leaf, "lineitem") != reads(leaf, "orders") && !leaf.iter().any(|l| l.contains("Aggregate:"))
    });
    match alone {
        Some(leaf) => Err(format!(
            "a side of the join leaves the nodes alone:\n{}",
            leaf.join("\n")
        )),
        None => Ok(()),
    }
}

async fn one_key_asks_one_shard(client: &Client) {
    for (sql, whole) in [
        ("SELECT * FROM orders WHERE o_orderkey = 7", true),
        ("SELECT sum(l_quantity) FROM lineitem WHERE l_orderkey = 7", true),
        (
            "SELECT o_orderdate, sum(l_quantity) FROM lineitem JOIN orders ON l_orderkey = o_orderkey \
             WHERE o_orderkey = 7 GROUP BY o_orderdate ORDER BY o_orderdate LIMIT 3",
            true,
        ),
        (
            "SELECT c_name FROM customer JOIN orders ON c_custkey = o_custkey WHERE o_orderkey = 7",
            false,
        ),
    ] {
        let lines = explain(client, sql).await;
        let found = lines
            .iter()
            .find(|l| l.trim_start().starts_with("ShardLocal") && l.contains("shards=1/16"));
        assert!(found.is_some(), "{sql}\n{}", lines.join("\n"));
        assert_eq!(
            lines[0] == "Strategy: single node",
            whole,
            "{sql}\n{}",
            lines.join("\n")
        );
    }
    let lines = explain(
        client,
        "SELECT n_name FROM nation, region WHERE n_regionkey = r_regionkey",
    )
    .await;
    assert_eq!(lines[0], "Strategy: single node", "{}", lines.join("\n"));
}
