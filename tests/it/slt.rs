//! Every file of `slt/` on every cluster shape: one node, three nodes, three nodes with leaf fusion switched off, three nodes
//! that exchange rows wherever they can.
//! Same file, same answers.

use crate::cluster;
use async_trait::async_trait;
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};
use std::path::PathBuf;
use tokio_postgres::{Client, SimpleQueryMessage};

/// One connection as the runner wants it: simple protocol, everything as text, the empty string shown as `(empty)`.
struct Connection {
    client: Client,
}

/// A failed statement; the client's own text hides the SQLSTATE that files name.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{}: {}", .0.code().code(), .0.message())]
    Server(Box<tokio_postgres::error::DbError>),
    #[error(transparent)]
    Client(tokio_postgres::Error),
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) => Self::Server(Box::new(db.clone())),
            None => Self::Client(error),
        }
    }
}

#[async_trait]
impl AsyncDB for Connection {
    type Error = Failure;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Self::Error> {
        let mut output = vec![];
        let mut columns = None;
        let mut affected = 0;
        for message in self.client.simple_query(sql).await? {
            match message {
                SimpleQueryMessage::RowDescription(fields) => columns = Some(fields.len()),
                SimpleQueryMessage::Row(row) => output.push((0..row.len()).map(|i| show(row.get(i))).collect()),
                SimpleQueryMessage::CommandComplete(n) => affected = n,
                _ => {}
            }
        }
        Ok(match columns {
            Some(n) => DBOutput::Rows {
                types: vec![DefaultColumnType::Any; n],
                rows: output,
            },
            None => DBOutput::StatementComplete(affected),
        })
    }

    async fn shutdown(&mut self) {}

    fn error_sql_state(error: &Self::Error) -> Option<String> {
        match error {
            Failure::Server(db) => Some(db.code().code().to_owned()),
            Failure::Client(_) => None,
        }
    }
}

fn show(value: Option<&str>) -> String {
    match value {
        None => "NULL".into(),
        Some("") => "(empty)".into(),
        Some(text) => text.into(),
    }
}

async fn run_all(nodes: u32, before: &'static str) {
    let folder = PathBuf::from("tests/it/slt");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("slt folder")
        .map(|f| f.expect("entry").path())
        .collect();
    files.sort();
    let mut failures = vec![];
    for file in files {
        let dir = tempfile::tempdir().expect("temporary folder");
        let cluster = cluster::embedded(dir.path(), nodes).await;
        let url = cluster.url();
        let mut runner = Runner::new(|| {
            let url = url.clone();
            async move {
                let client = cluster::connect(&url).await;
                if !before.is_empty() {
                    client.simple_query(before).await?;
                }
                Ok(Connection { client })
            }
        });
        if let Err(e) = runner.run_file_async(&file).await {
            failures.push(format!("{}: {e}", file.display()));
        }
        drop(runner);
        cluster.shutdown().await.expect("stops");
    }
    assert!(
        failures.is_empty(),
        "on {nodes} nodes {before}:\n{}",
        failures.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node() {
    run_all(1, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes() {
    run_all(3, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_without_leaf_fusion() {
    run_all(3, "SET tessera.shard_local = off").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_exchanging() {
    run_all(3, "SET tessera.distributed = on").await;
}
