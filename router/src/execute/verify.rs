//! VERIFY TABLE: every copy of every shard computes a digest of the rows visible at one snapshot, and they must agree.
//!
//! ```text
//!   shard | node | role     | rows | digest   | match
//!       0 |    1 | leader   | 1234 | 5f1c...  | t
//!       0 |    2 | follower | 1234 | 5f1c...  | t
//! ```
//!
//! A copy that cannot answer has no digest, and `match` is NULL; one that differs is false. Digests are sums over rows, so
//! they do not depend on files or order.

use super::stream;
use crate::cluster::catalog::StatementCatalog;
use crate::ingest::insert::find_table;
use crate::outcome::{Outcome, RowsTag};
use crate::session::StatementContext;
use datafusion::arrow::array::{ArrayRef, BooleanArray, Int32Array, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use futures::StreamExt;
use std::sync::Arc;
use tessera_meta::view::ShardEntry;
use tessera_parser::ObjectName;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, NodeId, Result, ShardId, Timestamp, v1};

/// Shards verified at the same time: each reads all its rows.
const SHARDS_AT_ONCE: usize = 4;

/// One copy's answer.
struct Copy {
    shard: u32,
    node: NodeId,
    role: &'static str,
    answer: Result<v1::DigestReply>,
    matches: Option<bool>,
}

/// Columns of the result.
pub(crate) fn schema() -> SchemaRef {
    let field = |name: &str, data_type| Field::new(name, data_type, true);
    Arc::new(Schema::new(vec![
        field("shard", DataType::Int32),
        field("node", DataType::Int32),
        field("role", DataType::Utf8),
        field("rows", DataType::Int64),
        field("digest", DataType::Utf8),
        field("match", DataType::Boolean),
        field("error", DataType::Utf8),
    ]))
}

/// Runs it.
pub(crate) async fn run(context: &StatementContext, name: &ObjectName) -> Result<Outcome> {
    let catalog = StatementCatalog::new(context);
    let table = find_table(&catalog, name)?;
    let snapshot = context.new_snapshot().await?;
    let shards: Vec<(ShardId, ShardEntry)> = catalog
        .view()
        .group_shards(table.group)
        .map(|(id, entry)| (id, entry.clone()))
        .collect();
    let verify = |(id, entry)| verify(context, &table, id, entry, snapshot);
    let all = async {
        Ok(futures::stream::iter(shards.into_iter().map(verify))
            .buffered(SHARDS_AT_ONCE)
            .collect::<Vec<_>>()
            .await)
    };
    let copies: Vec<Copy> = context.bounded(all).await?.into_iter().flatten().collect();
    let (schema, batch) = (schema(), batch(&copies)?);
    let columns = vec![None; schema.fields().len()];
    Ok(Outcome::Rows {
        stream: stream::ready(schema.clone(), vec![batch]),
        schema,
        columns,
        tag: RowsTag::Select,
    })
}

async fn verify(
    context: &StatementContext,
    table: &TableDef,
    id: ShardId,
    entry: ShardEntry,
    snapshot: Timestamp,
) -> Vec<Copy> {
    let config = &entry.config;
    let shard = v1::ShardRef::new(id, config.epoch);
    let index = covering(context, config.leader.node, shard, snapshot).await;
    let mut copies = vec![];
    for replica in config.in_sync.iter().chain(&config.learners) {
        let role = match (*replica == config.leader, config.in_sync.contains(replica)) {
            (true, _) => "leader",
            (false, true) => "follower",
            (false, false) => "learner",
        };
        let answer = match &index {
            Ok(index) => digest(context, replica.node, table, shard, snapshot, *index).await,
            Err(error) => Err(error.clone()),
        };
        copies.push(Copy {
            shard: id.index,
            node: replica.node,
            role,
            answer,
            matches: None,
        });
    }
    let expected = copies
        .iter()
        .find(|c| c.role == "leader")
        .and_then(|c| c.answer.as_ref().ok())
        .map(|r| (r.digest.clone(), r.rows));
    for copy in &mut copies {
        let found = copy.answer.as_ref().ok().map(|r| (r.digest.clone(), r.rows));
        copy.matches = expected.as_ref().zip(found).map(|(e, f)| *e == f);
    }
    copies
}

async fn covering(context: &StatementContext, leader: NodeId, shard: v1::ShardRef, snapshot: Timestamp) -> Result<u64> {
    let request = v1::ReadIndexRequest {
        shard: Some(shard),
        snapshot: snapshot.0,
        deadline_ms: context.deadline_ms(),
    };
    Ok(context
        .engine
        .directory()
        .node(leader)?
        .read_index(request)
        .await?
        .log_index)
}

async fn digest(
    context: &StatementContext,
    node: NodeId,
    table: &TableDef,
    shard: v1::ShardRef,
    snapshot: Timestamp,
    log_index: u64,
) -> Result<v1::DigestReply> {
    let request = v1::DigestRequest {
        shard: Some(shard),
        table: table.id.0,
        snapshot: snapshot.0,
        deadline_ms: context.deadline_ms(),
        log_index,
    };
    context.engine.directory().node(node)?.digest(request).await
}

fn batch(copies: &[Copy]) -> Result<RecordBatch> {
    let reply = |c: &Copy| c.answer.as_ref().ok().cloned();
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from_iter_values(copies.iter().map(|c| c.shard as i32))),
        Arc::new(Int32Array::from_iter_values(copies.iter().map(|c| c.node.0 as i32))),
        Arc::new(StringArray::from_iter_values(copies.iter().map(|c| c.role))),
        Arc::new(
            copies
                .iter()
                .map(|c| reply(c).map(|r| r.rows as i64))
                .collect::<Int64Array>(),
        ),
        Arc::new(
            copies
                .iter()
                .map(|c| reply(c).map(|r| hex(&r.digest)))
                .collect::<StringArray>(),
        ),
        Arc::new(copies.iter().map(|c| c.matches).collect::<BooleanArray>()),
        Arc::new(
            copies
                .iter()
                .map(|c| c.answer.as_ref().err().map(Error::to_string))
                .collect::<StringArray>(),
        ),
    ];
    RecordBatch::try_new(schema(), columns).map_err(|e| Error::internal(e.to_string()))
}
