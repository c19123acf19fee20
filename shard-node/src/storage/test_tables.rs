//! Tables, rows and stores for the tests of this crate.

use crate::storage::{ColumnCache, Identity, MetadataCache, ShardStore, Write};
use datafusion::arrow::array::{Array, ArrayRef, RecordBatch, new_null_array};
use datafusion::arrow::array::{
    Decimal128Array, FixedSizeBinaryArray, Int64Array, IntervalMonthDayNanoArray, StringViewArray,
};
use datafusion::arrow::datatypes::{DataType, Field, IntervalMonthDayNano, Schema};
use std::path::Path;
use std::sync::Arc;
use tessera_proto::sql_type::SqlType;
use tessera_proto::table::{ColumnDef, Distribution, TableDef};
use tessera_proto::{GroupId, NodeId, ShardId, TableId};

/// Shard 3/0.
pub(crate) const SHARD: ShardId = ShardId {
    group: GroupId(3),
    index: 0,
};

/// How many seeds a random test takes: `TESSERA_COMPACTION_SEEDS` where it is set, for long runs.
pub(crate) fn seeds(everyday: u64) -> u64 {
    let asked = std::env::var("TESSERA_COMPACTION_SEEDS").ok();
    asked.map_or(everyday, |n| n.parse().expect("TESSERA_COMPACTION_SEEDS is a number"))
}

/// A fixed identity.
pub(crate) fn identity() -> Identity {
    Identity {
        cluster_id: "test".into(),
        disk: uuid::Uuid::from_u128(42),
        node: NodeId(1),
    }
}

/// The store of [`SHARD`] in `dir`.
pub(crate) fn store(dir: &Path) -> ShardStore {
    ShardStore::open(
        dir,
        SHARD,
        &identity(),
        MetadataCache::new(64 << 20, ColumnCache::new(64 << 20)),
    )
    .unwrap()
}

fn column(name: &str, sql_type: SqlType, nullable: bool) -> ColumnDef {
    ColumnDef {
        name: name.into(),
        sql_type,
        nullable,
        default: None,
        hidden: false,
    }
}

/// `t (id int8 primary key, name text, price numeric(12,2), tag uuid, span interval)`.
pub(crate) fn table(id: u64) -> Arc<TableDef> {
    Arc::new(TableDef {
        id: TableId(id),
        schema: "public".into(),
        name: "t".into(),
        columns: vec![
            column("id", SqlType::Int8, false),
            column("name", SqlType::Text, true),
            column(
                "price",
                SqlType::Numeric {
                    precision: 12,
                    scale: 2,
                },
                true,
            ),
            column("tag", SqlType::Uuid, true),
            column("span", SqlType::Interval, true),
        ],
        primary_key: vec![0],
        cluster_by: vec![],
        distribution: Distribution::Sharded { key: vec![0] },
        group: SHARD.group,
        version: 1,
    })
}

/// Rows with these ids; the other columns follow from the id, with some NULLs.
pub(crate) fn rows(def: &TableDef, ids: &[i64]) -> RecordBatch {
    let name = ids
        .iter()
        .map(|id| (id % 7 != 0).then(|| format!("name of row number {id}")));
    let price = ids.iter().map(|id| Some(i128::from(id % 1_000) * 101));
    let tag: Vec<[u8; 16]> = ids.iter().map(|id| u128::from(*id as u64).to_le_bytes()).collect();
    let span = ids
        .iter()
        .map(|id| (id % 5 != 0).then(|| IntervalMonthDayNano::new(*id as i32 % 12, 3, *id)));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(ids.to_vec())),
        Arc::new(name.collect::<StringViewArray>()),
        Arc::new(
            price
                .collect::<Decimal128Array>()
                .with_precision_and_scale(12, 2)
                .unwrap(),
        ),
        Arc::new(FixedSizeBinaryArray::try_from_iter(tag.into_iter()).unwrap_or_else(|_| empty_tags())),
        Arc::new(span.collect::<IntervalMonthDayNanoArray>()),
    ];
    RecordBatch::try_new(def.arrow_schema(), columns).unwrap()
}

fn empty_tags() -> FixedSizeBinaryArray {
    let nothing = new_null_array(&SqlType::Uuid.arrow(), 0);
    nothing.as_any().downcast_ref::<FixedSizeBinaryArray>().unwrap().clone()
}

/// Keys of rows of [`table`].
pub(crate) fn keys(ids: &[i64]) -> RecordBatch {
    let schema = Schema::new(vec![Field::new("id", DataType::Int64, false)]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(Int64Array::from(ids.to_vec()))]).unwrap()
}

/// Rows of [`table`] that go.
pub(crate) fn removed(def: &Arc<TableDef>, ids: &[i64]) -> Write {
    Write::Removed {
        table: def.clone(),
        keys: keys(ids),
    }
}

/// Rows of [`table`] that come, all of one price (in hundredths).
pub(crate) fn added(def: &Arc<TableDef>, ids: &[i64], price: i128) -> Write {
    let mut columns: Vec<ArrayRef> = rows(def, ids).columns().to_vec();
    let prices = Decimal128Array::from(vec![price; ids.len()]);
    columns[2] = Arc::new(prices.with_precision_and_scale(12, 2).unwrap());
    Write::Rows {
        table: def.clone(),
        batch: RecordBatch::try_new(def.arrow_schema(), columns).unwrap(),
    }
}
