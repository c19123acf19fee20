//! One table over several shards at one snapshot, as DataFusion sees it.

use crate::storage::ShardStore;
use datafusion::catalog::TableProvider;
use std::sync::Arc;
use tessera_proto::Timestamp;
use tessera_proto::table::TableDef;

/// The rows of `def` in `stores` that are visible at `snapshot`; visible columns only.
pub fn shard_table(def: Arc<TableDef>, stores: Vec<ShardStore>, snapshot: Timestamp) -> Arc<dyn TableProvider> {
    let _ = (def, stores, snapshot);
    todo!()
}
