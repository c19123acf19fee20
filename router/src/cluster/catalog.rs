//! One statement's snapshot of the catalog, as the planner asks for it.
//!
//! ```text
//!   ClusterView (one revision) + statistics + search path + system tables  ──▶  impl planner::Catalog
//!                 reference groups: log indexes that cover the snapshot, fetched after binding
//! ```
//!
//! Immutable but for the log indexes, which are known only once it is known which reference tables are read.

use crate::cluster::statistics::ClusterStatistics;
use crate::session::StatementContext;
use crate::views::{SystemSource, system_table};
use datafusion::catalog::TableProvider;
use datafusion::common::Statistics;
use futures::StreamExt;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use tessera_meta::view::{ClusterView, ShardEntry};
use tessera_planner::{Catalog, ReferenceCopy, Relation};
use tessera_proto::common_values::TableCommonValues;
use tessera_proto::service::NodeDirectory;
use tessera_proto::{GroupId, LogIndex, NodeId, Result, ShardId, TableId, Timestamp, v1};

/// Leaders asked for a log index at the same time.
const READS_AT_ONCE: usize = 16;

/// Name of the table that a statement changes in the queries made for it, which give it the user's name as an alias: only there is
/// its hidden row id to be seen, and the same table named elsewhere in the statement is as always.
pub(crate) const TARGET: &str = "__tessera_target";

/// The snapshot.
#[derive(Debug)]
pub struct StatementCatalog {
    view: Arc<ClusterView>,
    statistics: Arc<ClusterStatistics>,
    search_path: Vec<String>,
    system: SystemSource,
    /// What [`TARGET`] stands for.
    target: Option<Arc<dyn TableProvider>>,
    /// Log index that covers the snapshot, by reference group.
    indexes: RwLock<HashMap<GroupId, LogIndex>>,
}

impl StatementCatalog {
    /// What a statement sees from here on.
    pub(crate) fn new(context: &StatementContext) -> Self {
        let view = context.engine.view();
        let statistics = context.engine.statistics();
        let system = SystemSource {
            view: view.clone(),
            statuses: statistics.statuses.clone(),
            statistics: statistics.clone(),
            database: context.params.database.clone(),
            user: context.params.user.clone(),
        };
        Self {
            view,
            statistics,
            search_path: context.settings.search_path(),
            system,
            target: None,
            indexes: RwLock::default(),
        }
    }

    /// The same for a query in which [`TARGET`] stands for `rows`.
    pub(crate) fn with_target(self, rows: Option<Arc<dyn TableProvider>>) -> Self {
        Self { target: rows, ..self }
    }

    /// The cluster as of this snapshot.
    pub fn view(&self) -> &Arc<ClusterView> {
        &self.view
    }

    /// What computed tables and functions are computed from.
    pub fn system(&self) -> &SystemSource {
        &self.system
    }

    /// Whether a name stands for a computed table.
    pub fn is_system(&self, schema: Option<&str>, name: &str) -> bool {
        matches!(self.resolve(schema, name), Some(Relation::System(_)))
    }

    /// Asks the leaders of reference groups for the log index that covers `snapshot`. Without one, only the leader's own
    /// copy is read.
    pub async fn cover(
        &self,
        groups: &[GroupId],
        snapshot: Timestamp,
        deadline_ms: u64,
        directory: &dyn NodeDirectory,
    ) {
        let ask =
            |group: GroupId| async move { (group, self.read_index(group, snapshot, deadline_ms, directory).await) };
        let answers = futures::stream::iter(groups.iter().copied().map(ask)).buffer_unordered(READS_AT_ONCE);
        let answers: Vec<_> = answers.collect().await;
        let mut indexes = self.indexes.write();
        for (group, answer) in answers {
            match answer {
                Ok(index) => drop(indexes.insert(group, index)),
                Err(error) => tracing::debug!(%group, %error, "reading reference tables at their leader only"),
            }
        }
    }

    async fn read_index(
        &self,
        group: GroupId,
        snapshot: Timestamp,
        deadline_ms: u64,
        directory: &dyn NodeDirectory,
    ) -> Result<LogIndex> {
        let id = ShardId { group, index: 0 };
        let entry = self
            .view
            .shards
            .get(&id)
            .ok_or_else(|| tessera_proto::Error::stale_map(format!("shard {id} is unknown")))?;
        let service = directory.node(entry.config.leader.node)?;
        let request = v1::ReadIndexRequest {
            shard: Some(v1::ShardRef::new(id, entry.config.epoch)),
            snapshot: snapshot.0,
            deadline_ms,
        };
        Ok(LogIndex(service.read_index(request).await?.log_index))
    }

    fn in_schema(&self, schema: &str, name: &str) -> Option<Relation> {
        if let Some(table) = self.view.table(schema, name) {
            return Some(Relation::Table(
                table.clone(),
                self.view.groups.get(&table.group)?.clone(),
            ));
        }
        if let Some(view) = self.view.view(schema, name) {
            return Some(Relation::View(view.clone()));
        }
        system_table(&self.system, Some(schema), name).map(Relation::System)
    }
}

impl Catalog for StatementCatalog {
    fn resolve(&self, schema: Option<&str>, name: &str) -> Option<Relation> {
        if let Some(schema) = schema {
            return self.in_schema(schema, name);
        }
        if let Some(rows) = self.target.as_ref().filter(|_| name == TARGET) {
            return Some(Relation::Target(rows.clone()));
        }
        // As in PostgreSQL, pg_catalog comes first unless the path names it.
        let implicit = (!self.search_path.iter().any(|s| s == "pg_catalog")).then_some("pg_catalog");
        implicit
            .into_iter()
            .chain(self.search_path.iter().map(String::as_str))
            .find_map(|schema| self.in_schema(schema, name))
    }

    fn names(&self) -> Vec<String> {
        let mine = self
            .view
            .names
            .keys()
            .filter(|(schema, _)| self.search_path.contains(schema));
        mine.map(|(_, name)| name.clone()).collect()
    }

    fn placement(&self, group: GroupId) -> Vec<(v1::ShardRef, NodeId)> {
        let place =
            |(id, entry): (ShardId, &ShardEntry)| (v1::ShardRef::new(id, entry.config.epoch), entry.config.leader.node);
        self.view.group_shards(group).map(place).collect()
    }

    fn reference_copies(&self, group: GroupId) -> Vec<ReferenceCopy> {
        let id = ShardId { group, index: 0 };
        let Some(entry) = self.view.shards.get(&id) else {
            return vec![];
        };
        let config = &entry.config;
        let copy = |node, log_index| ReferenceCopy {
            node,
            shard: v1::ShardRef::new(id, config.epoch),
            log_index,
        };
        let leader = std::iter::once(copy(config.leader.node, LogIndex(0)));
        match self.indexes.read().get(&group) {
            // Learners may lag by any amount, so only in-sync copies answer.
            Some(index) => {
                let others = config
                    .in_sync
                    .iter()
                    .map(|r| r.node)
                    .filter(|n| *n != config.leader.node && self.statistics.is_alive(*n));
                leader.chain(others.map(|node| copy(node, *index))).collect()
            }
            None => leader.collect(),
        }
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.view
            .nodes
            .keys()
            .copied()
            .filter(|n| self.statistics.is_alive(*n))
            .collect()
    }

    fn statistics(&self, table: TableId) -> Option<Statistics> {
        self.statistics.tables.get(&table).map(|known| known.statistics.clone())
    }

    fn common_values(&self, table: TableId) -> TableCommonValues {
        let known = self.statistics.tables.get(&table);
        known.map(|known| known.common.clone()).unwrap_or_default()
    }

    fn revision(&self) -> u64 {
        self.view.revision
    }
}
