//! Runs a physical plan on the query threads and hands its batches to the session.
//!
//! ```text
//!   query thread: plan ──batches──▶ channel of 4 ──▶ session ──▶ client
//!        ends at: last batch · error · cancel · deadline · session dropped the stream
//! ```
//!
//! A client that reads slowly fills the channel and so stops the plan. An end that is not the plan's own is an error,
//! never a short result.

use super::admission::Place;
use crate::error::{cancelled_by_user, timed_out};
use crate::session::StatementContext;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::{Error, Result, ipc};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// How long a client may keep a query waiting before the next heavy one gets its place: what it computes meanwhile is little.
const PLACE_PATIENCE: Duration = Duration::from_secs(1);
/// Batches between the query threads and the session: at most 8,192 rows each.
const BATCHES: usize = 4;

type Item = std::result::Result<RecordBatch, DataFusionError>;

/// Starts the plan; its batches are labelled with `schema`. Dropping the stream ends it. `place` is given back at its end.
pub(crate) fn start(
    context: &StatementContext,
    physical: Arc<dyn ExecutionPlan>,
    task: Arc<TaskContext>,
    schema: SchemaRef,
    place: Place,
) -> SendableRecordBatchStream {
    let (sender, receiver) = mpsc::channel(BATCHES);
    let running = run(context.clone(), physical, task, sender, place);
    let running = context.engine.query_handle().spawn(running);
    let state = Running {
        receiver,
        task: Some(AbortOnDropHandle::new(running)),
        schema: schema.clone(),
    };
    let batches = futures::stream::unfold(state, |mut state| async move { Some((state.next().await?, state)) });
    Box::pin(RecordBatchStreamAdapter::new(schema, batches))
}

/// Rows that are known already.
pub(crate) fn ready(schema: SchemaRef, batches: Vec<RecordBatch>) -> SendableRecordBatchStream {
    let batches = futures::stream::iter(batches.into_iter().map(Ok));
    Box::pin(RecordBatchStreamAdapter::new(schema, batches))
}

/// The same stream, with its first item put back in front.
pub(crate) fn with_first(first: Option<RecordBatch>, rest: SendableRecordBatchStream) -> SendableRecordBatchStream {
    let schema = rest.schema();
    Box::pin(RecordBatchStreamAdapter::new(
        schema,
        futures::stream::iter(first.map(Ok)).chain(rest),
    ))
}

async fn run(
    context: StatementContext,
    physical: Arc<dyn ExecutionPlan>,
    task: Arc<TaskContext>,
    sender: mpsc::Sender<Item>,
    place: Place,
) {
    let mut place = Some(place);
    let work = async {
        let mut stream = match execute_stream(physical, task) {
            Ok(stream) => stream,
            Err(error) => {
                let _ = sender.send(Err(error)).await;
                return;
            }
        };
        while let Some(item) = stream.next().await {
            let failed = item.is_err();
            let room = match tokio::time::timeout(PLACE_PATIENCE, sender.reserve()).await {
                Ok(room) => room,
                Err(_) => {
                    place.take();
                    sender.reserve().await
                }
            };
            let Ok(room) = room else { return };
            room.send(item);
            if failed {
                return;
            }
        }
    };
    let stopped: Option<Error> = tokio::select! {
        biased;
        () = context.cancel.cancelled() => Some(cancelled_by_user()),
        () = sender.closed() => None,
        () = work => None,
        () = tokio::time::sleep_until(context.deadline) => Some(timed_out()),
    };
    // The plan is gone by now; only this item waits for a slow client.
    drop(place);
    if let Some(error) = stopped {
        let _ = sender.send(Err(error.into())).await;
    }
}

struct Running {
    receiver: mpsc::Receiver<Item>,
    task: Option<AbortOnDropHandle<()>>,
    schema: SchemaRef,
}

impl Running {
    async fn next(&mut self) -> Option<Item> {
        if let Some(item) = self.receiver.recv().await {
            return Some(item.and_then(|batch| ipc::relabel(&self.schema, batch)));
        }
        // A task that died must not look like one that ended.
        match self.task.take()?.await {
            Ok(()) => None,
            Err(error) => Some(Err(Error::internal(format!("the query ended early: {error}")).into())),
        }
    }
}

/// One batch of text columns, all rows known.
///
/// # Errors
/// None is expected.
pub(crate) fn text_batch(schema: &SchemaRef, rows: &[Vec<Option<String>>]) -> Result<RecordBatch> {
    use datafusion::arrow::array::{ArrayRef, StringArray};
    let column = |i: usize| {
        Arc::new(
            rows.iter()
                .map(|row| row.get(i).cloned().flatten())
                .collect::<StringArray>(),
        ) as ArrayRef
    };
    let columns = (0..schema.fields().len()).map(column).collect();
    RecordBatch::try_new(schema.clone(), columns).map_err(|e| Error::internal(e.to_string()))
}

/// A schema of text columns.
pub(crate) fn text_schema(names: &[&str]) -> SchemaRef {
    use datafusion::arrow::datatypes::{DataType, Field, Schema};
    Arc::new(Schema::new(
        names
            .iter()
            .map(|n| Field::new(*n, DataType::Utf8, true))
            .collect::<Vec<_>>(),
    ))
}
