//! `pg_locks` and `tessera.transactions`: what transactions have and wait for at the shards' leaders.
//!
//! ```text
//!   SELECT ... FROM pg_locks ── scan ──▶ every node: Activity ──▶ rows
//!
//!   pg_locks   tuple           a row: relation, page = shard, tuple = hash of its key      mode as PostgreSQL maps FOR UPDATE & co.
//!              relation        writers of a table beside each other, or one against them   RowExclusiveLock, ShareRowExclusiveLock
//!              transactionid   of each transaction its own, held; and of each that it waits for, not granted
//! ```
//!
//! PostgreSQL keeps row locks in the rows and lists those only that are waited for; here all of them are in memory and listed, up to
//! [`LOCKS_MAX`] of each shard. Not there: relation locks of readers, which take none. Nodes that do not answer are left out.

use super::SystemSource;
use super::rows::{Kind, Value, in_memory, row, schema};
use crate::txn::watch::OpenTransactions;
use Kind::{Bool, Instant, Int, Text};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result as DfResult, exec_datafusion_err};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tessera_meta::view::ClusterView;
use tessera_proto::clock::now_ms;
use tessera_proto::service::NodeDirectory;
use tessera_proto::v1::transaction_activity::State;
use tessera_proto::{NodeId, TxnId, v1};

/// Locks listed of each shard.
const LOCKS_MAX: u32 = 1_000;
/// Longest wait for a node.
const ASK_MS: u64 = 1_000;
/// OID of the only database, as pg_database has it.
const DATABASE_OID: i64 = 1;

/// Who is asked.
#[derive(Debug, Clone)]
pub struct ActivitySource {
    /// Finds the nodes.
    pub directory: Arc<dyn NodeDirectory>,
    /// Which session a transaction of this router belongs to.
    pub(crate) transactions: Arc<OpenTransactions>,
}

const LOCKS: &[(&str, Kind)] = &[
    ("locktype", Text),
    ("database", Int),
    ("relation", Int),
    ("page", Int),
    ("tuple", Int),
    ("virtualxid", Text),
    ("transactionid", Text),
    ("classid", Int),
    ("objid", Int),
    ("objsubid", Int),
    ("virtualtransaction", Text),
    ("pid", Int),
    ("mode", Text),
    ("granted", Bool),
    ("fastpath", Bool),
    ("waitstart", Instant),
];

const TRANSACTIONS: &[(&str, Kind)] = &[
    ("transaction", Text),
    ("state", Text),
    ("shard", Text),
    ("node", Int),
    ("home", Text),
    ("silent_ms", Int),
    ("locks", Int),
    ("bytes", Int),
    ("waits_for", Text),
    ("pid", Int),
];

/// `pg_locks`.
pub(super) fn locks(source: &SystemSource) -> Arc<dyn TableProvider> {
    Arc::new(Activity::new(source, LOCKS, lock_rows))
}

/// `tessera.transactions`.
pub(super) fn transactions(source: &SystemSource) -> Arc<dyn TableProvider> {
    Arc::new(Activity::new(source, TRANSACTIONS, transaction_rows))
}

/// What the nodes told.
struct Asked {
    replies: Vec<(NodeId, v1::ActivityReply)>,
    sessions: BTreeMap<TxnId, i32>,
}

impl Asked {
    fn pid(&self, txn: &[u8]) -> Option<i64> {
        let txn = TxnId::from_wire(txn).ok()?;
        self.sessions.get(&txn).map(|session| i64::from(*session))
    }
}

type Rows = fn(&Asked) -> Vec<Vec<Value>>;

/// A table whose rows are asked for when it is read.
#[derive(Debug)]
struct Activity {
    view: Arc<ClusterView>,
    source: ActivitySource,
    columns: &'static [(&'static str, Kind)],
    rows: Rows,
}

impl Activity {
    fn new(source: &SystemSource, columns: &'static [(&'static str, Kind)], rows: Rows) -> Self {
        Self {
            view: source.view.clone(),
            source: source.activity.clone(),
            columns,
            rows,
        }
    }

    async fn ask(&self) -> Asked {
        let request = v1::ActivityRequest {
            deadline_ms: ASK_MS,
            locks_max: LOCKS_MAX,
        };
        let asked = self.view.nodes.keys().map(|node| async move {
            let reply = self.source.directory.node(*node)?.activity(request).await?;
            Ok::<_, tessera_proto::Error>((*node, reply))
        });
        let replies = futures::future::join_all(asked).await.into_iter();
        Asked {
            replies: replies.flatten().collect(),
            sessions: self.source.transactions.sessions(),
        }
    }
}

#[async_trait::async_trait]
impl TableProvider for Activity {
    fn schema(&self) -> SchemaRef {
        schema(self.columns)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let rows = (self.rows)(&self.ask().await);
        let rows = in_memory(self.columns, &rows);
        let rows = rows.ok_or_else(|| exec_datafusion_err!("rows of a system table do not fit it"))?;
        rows.scan(session, projection, filters, limit).await
    }
}

/// PostgreSQL's names for the lock of a row, and for that of a table that stands for all of its rows here.
fn mode_name(lock: &v1::LockActivity) -> &'static str {
    match (lock.whole, lock.mode()) {
        (false, v1::RowLockMode::KeyShare) => "AccessShareLock",
        (false, v1::RowLockMode::Share) => "RowShareLock",
        (false, v1::RowLockMode::NoKeyUpdate) => "ExclusiveLock",
        (false, v1::RowLockMode::Update) => "AccessExclusiveLock",
        (true, v1::RowLockMode::Update) => "ShareRowExclusiveLock",
        (true, _) => "RowExclusiveLock",
    }
}

fn id(txn: &[u8]) -> String {
    TxnId::from_wire(txn).map_or_else(|_| String::new(), |txn| txn.to_string())
}

/// As PostgreSQL prints it: the session, and a number of the transaction in it.
fn virtual_id(pid: Option<i64>, txn: &[u8]) -> String {
    let number = txn.iter().rev().take(4).fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    format!("{}/{number}", pid.unwrap_or(0))
}

fn lock_rows(asked: &Asked) -> Vec<Vec<Value>> {
    let now = i64::try_from(now_ms()).unwrap_or(i64::MAX);
    let mut rows = vec![];
    let mut holders = BTreeSet::new();
    for (_, reply) in &asked.replies {
        for lock in &reply.locks {
            let pid = asked.pid(&lock.txn);
            let since = (!lock.granted).then(|| now.saturating_sub(lock.waited_ms as i64).saturating_mul(1_000));
            rows.push(row![
                if lock.whole { "relation" } else { "tuple" },
                DATABASE_OID,
                lock.table,
                (!lock.whole).then(|| i64::from(lock.shard.map_or(0, |shard| shard.index))),
                // An int2 there.
                (!lock.whole).then_some((lock.row & 0x7fff) as i64),
                Value::Null,
                Value::Null,
                Value::Null,
                Value::Null,
                Value::Null,
                virtual_id(pid, &lock.txn),
                pid,
                mode_name(lock),
                lock.granted,
                false,
                since.map_or(Value::Null, Value::Instant),
            ]);
        }
        holders.extend(reply.transactions.iter().map(|transaction| transaction.txn.clone()));
    }
    let transaction = |of: &[u8], by: &[u8], granted: bool| {
        let pid = asked.pid(by);
        let (mode, none) = (if granted { "ExclusiveLock" } else { "ShareLock" }, Value::Null);
        row![
            "transactionid",
            none.clone(),
            none.clone(),
            none.clone(),
            none.clone(),
            none.clone(),
            id(of),
            none.clone(),
            none.clone(),
            none.clone(),
            virtual_id(pid, by),
            pid,
            mode,
            granted,
            false,
            none,
        ]
    };
    rows.extend(holders.iter().map(|txn| transaction(txn, txn, true)));
    let waits = asked.replies.iter().flat_map(|(_, reply)| &reply.waits);
    rows.extend(waits.map(|wait| transaction(&wait.holder, &wait.waiter, false)));
    rows
}

fn transaction_rows(asked: &Asked) -> Vec<Vec<Value>> {
    let mut waits: BTreeMap<&[u8], BTreeSet<String>> = BTreeMap::new();
    for wait in asked.replies.iter().flat_map(|(_, reply)| &reply.waits) {
        waits.entry(&wait.waiter).or_default().insert(id(&wait.holder));
    }
    let shard = |shard: Option<v1::ShardRef>| shard.map(|shard| shard.id().to_string());
    let one = |(node, transaction): (&NodeId, &v1::TransactionActivity)| {
        let state = match transaction.state() {
            State::Open => "open",
            State::Prepared => "prepared",
            State::InDoubt => "in doubt",
            State::Committed => "committed",
        };
        let waits = waits.get(&transaction.txn[..]);
        row![
            id(&transaction.txn),
            state,
            shard(transaction.shard),
            i64::from(node.0),
            shard(transaction.home),
            transaction.silent_ms,
            transaction.locks,
            transaction.bytes,
            waits.map(|waits| waits.iter().cloned().collect::<Vec<_>>().join(", ")),
            asked.pid(&transaction.txn),
        ]
    };
    let all = asked.replies.iter();
    all.flat_map(|(node, reply)| reply.transactions.iter().map(move |t| (node, t))).map(one).collect()
}
