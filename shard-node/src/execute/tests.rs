//! Leaves over in-memory tables: rows, deadline, cancel, memory, crash.

use super::*;
use datafusion::arrow::array::{AsArray, Int64Array};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, Schema};
use datafusion::catalog::TableProvider;
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::prelude::*;
use datafusion_proto::bytes::logical_plan_to_bytes_with_extension_codec;
use std::sync::atomic::{AtomicBool, Ordering};
use tessera_proto::TableId;
use tessera_proto::fragment::StubTable;
use tessera_proto::sql_type::SqlType;
use tessera_proto::table::{ColumnDef, Distribution, TableDef};

/// One table of one int8 column, and a flag that tells whether anything still holds it.
#[derive(Debug)]
struct OneTable {
    rows: i64,
    alive: Arc<AtomicBool>,
}

impl Drop for OneTable {
    fn drop(&mut self) {
        self.alive.store(false, Ordering::SeqCst);
    }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("i", DataType::Int64, false)]))
}

impl TableSource for OneTable {
    fn provider(&self, table: TableId, _: u64, _: bool) -> Result<Arc<dyn TableProvider>> {
        if table != TableId(1) {
            return Err(Error::stale_map(format!("table {table} is not known yet")));
        }
        let batch = RecordBatch::try_new(schema(), vec![Arc::new(Int64Array::from_iter_values(0..self.rows))]);
        Ok(Arc::new(MemTable::try_new(
            schema(),
            vec![vec![batch.map_err(DataFusionError::from)?]],
        )?))
    }
}

fn stub(id: u64) -> LogicalPlanBuilder {
    let def = TableDef {
        id: TableId(id),
        schema: "public".into(),
        name: "t".into(),
        columns: vec![ColumnDef {
            name: "i".into(),
            sql_type: SqlType::Int8,
            nullable: false,
            default: None,
            hidden: false,
        }],
        primary_key: vec![0],
        cluster_by: vec![],
        distribution: Distribution::Sharded { key: vec![0] },
        group: tessera_proto::GroupId(1),
        version: 1,
    };
    let stub = StubTable {
        schema: schema(),
        statistics: None,
        common: Arc::default(),
        def: Arc::new(def),
    };
    LogicalPlanBuilder::scan("t", provider_as_source(Arc::new(stub)), None).unwrap()
}

fn request(plan: &LogicalPlan, deadline_ms: u64) -> v1::ExecuteRequest {
    let plan = logical_plan_to_bytes_with_extension_codec(plan, &LeafPlanCodec { tables: None }).unwrap();
    v1::ExecuteRequest {
        plan,
        deadline_ms,
        ..Default::default()
    }
}

fn executor(memory_bytes: usize) -> Executor {
    let memory = query_memory(tessera_proto::memory::query_pool(memory_bytes), None).unwrap();
    Executor::new(memory, Arc::new(QueryRuntime::new(1).unwrap()), 2)
}

fn table(rows: i64) -> (Arc<OneTable>, Arc<AtomicBool>) {
    let alive = Arc::new(AtomicBool::new(true));
    (
        Arc::new(OneTable {
            rows,
            alive: alive.clone(),
        }),
        alive,
    )
}

/// Joins a table with itself on nothing: `rows` squared candidate pairs, of which none matches, so no batch ever comes.
fn endless() -> LogicalPlan {
    let (a, b) = (
        stub(1).alias("a").unwrap(),
        stub(1).alias("b").unwrap().build().unwrap(),
    );
    let filter = (col("a.i") + col("b.i")).lt(lit(0i64));
    let joined = a.join_on(b, datafusion::common::JoinType::Inner, [filter]).unwrap();
    joined.project([col("a.i")]).unwrap().build().unwrap()
}

async fn rows(mut stream: SendableRecordBatchStream) -> Result<Vec<i64>> {
    let mut all = vec![];
    while let Some(batch) = stream.next().await {
        all.extend(batch?.column(0).as_primitive::<Int64Type>().values());
    }
    all.sort_unstable();
    Ok(all)
}

#[tokio::test]
async fn streams_the_rows_under_the_callers_names() {
    let plan = stub(1).filter(col("i").gt_eq(lit(9_998i64))).unwrap().build().unwrap();
    let named: SchemaRef = Arc::new(Schema::new(vec![Field::new("renamed", DataType::Int64, true)]));
    // Dropping the last executor ends the runtime, and with it every stream.
    let executor = executor(1 << 20);
    let stream = executor
        .execute(table(10_000).0, request(&plan, 10_000), named.clone())
        .await
        .unwrap();
    assert_eq!(stream.schema(), named);
    assert_eq!(rows(stream).await.unwrap(), [9_998, 9_999]);
}

#[tokio::test]
async fn refuses_what_it_cannot_run() {
    let plan = stub(1).build().unwrap();
    let run = async |request| {
        executor(1 << 20)
            .execute(table(1).0, request, schema())
            .await
            .map(|_| ())
            .unwrap_err()
            .code
    };
    assert_eq!(run(request(&plan, 0)).await, "08P01");
    assert_eq!(
        run(v1::ExecuteRequest {
            partitions: 2,
            ..request(&plan, 1_000)
        })
        .await,
        "0A000"
    );
    assert_eq!(
        run(v1::ExecuteRequest {
            plan: "garbage".into(),
            ..request(&plan, 1_000)
        })
        .await,
        "08P01"
    );
    assert_eq!(run(request(&stub(2).build().unwrap(), 1_000)).await, "TS001");
    let settings = HashMap::from([("timezone".to_owned(), "Nowhere/Land".to_owned())]);
    let nowhere = v1::ExecuteRequest {
        settings,
        ..request(&plan, 1_000)
    };
    assert_eq!(run(nowhere).await, "22023");
    let deep = (0..40).fold(stub(1), |plan, i| {
        plan.filter(col("i").gt(lit(i))).unwrap().alias("t").unwrap()
    });
    assert_eq!(run(request(&deep.build().unwrap(), 1_000)).await, "54001");
}

#[tokio::test]
async fn ends_at_the_deadline_and_when_dropped() {
    let executor = executor(1 << 30);
    let (source, _) = table(20_000);
    let stream = executor
        .execute(source, request(&endless(), 300), schema())
        .await
        .unwrap();
    assert_eq!(rows(stream).await.unwrap_err().code, "57014");

    let (source, alive) = table(20_000);
    let stream = executor
        .execute(source, request(&endless(), 600_000), schema())
        .await
        .unwrap();
    drop(stream);
    // The runtime has one thread: it answers again only once the dropped query has let go of it.
    let plan = stub(1).build().unwrap();
    let stream = executor
        .execute(table(3).0, request(&plan, 60_000), schema())
        .await
        .unwrap();
    assert_eq!(rows(stream).await.unwrap(), [0, 1, 2]);
    assert!(!alive.load(Ordering::SeqCst));
}

#[tokio::test]
async fn too_little_memory_fails_the_query_only() {
    let executor = executor(64 << 10);
    let plan = stub(1).sort([col("i").sort(false, true)]).unwrap().build().unwrap();
    let stream = executor
        .execute(table(500_000).0, request(&plan, 60_000), schema())
        .await
        .unwrap();
    assert_eq!(rows(stream).await.unwrap_err().code, "53200");
    let stream = executor
        .execute(table(3).0, request(&plan, 60_000), schema())
        .await
        .unwrap();
    assert_eq!(rows(stream).await.unwrap(), [0, 1, 2]);
}
