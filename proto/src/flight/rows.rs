//! Rows for clients: one schema whoever sends them, in messages that drivers take.
//!
//! ```text
//!   inside      k: Int64   name: Utf8View   data: BinaryView   tag: Dictionary(Int32, Utf8)
//!   to clients  k: Int64   name: Utf8       data: Binary       tag: Utf8
//! ```
//!
//! All endpoints of a result must send exactly the schema of its FlightInfo; views and dictionaries are how some node happens
//! to hold a column. A view also points into buffers far larger than the rows sent, which IPC would send along.

use super::status::{status, stream_status};
use crate::error::{Error, Result};
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::{FlightData, IpcMessage, SchemaAsIpc};
use arrow_ipc::writer::IpcWriteOptions;
use bytes::Bytes;
use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use std::collections::HashMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Target size of one message. The encoder's estimate is not exact, and 4 MiB is gRPC's usual limit.
const FLIGHT_DATA_BYTES: usize = 2 << 20;
/// Values of one column in one piece of a batch: the offsets of `Utf8` and `Binary` end at 2 GiB.
const COLUMN_BYTES_MAX: usize = 64 << 20;

/// The schema that clients see of rows of `schema`.
pub fn client_schema(schema: &Schema) -> SchemaRef {
    let fields: Vec<Field> = schema.fields().iter().map(|f| client_field(f)).collect();
    Arc::new(Schema::new(fields))
}

fn client_field(field: &Field) -> Field {
    Field::new(field.name(), client_type(field.data_type()), field.is_nullable()).with_metadata(HashMap::new())
}

fn client_type(data_type: &DataType) -> DataType {
    let inner = |field: &FieldRef| Arc::new(client_field(field));
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, value) => client_type(value),
        DataType::RunEndEncoded(_, value) => client_type(value.data_type()),
        DataType::List(field) | DataType::ListView(field) => DataType::List(inner(field)),
        DataType::LargeList(field) | DataType::LargeListView(field) => DataType::LargeList(inner(field)),
        DataType::FixedSizeList(field, size) => DataType::FixedSizeList(inner(field), *size),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect()),
        other => other.clone(),
    }
}

/// A schema as tickets, FlightInfo and prepared statements carry it.
///
/// # Errors
/// None is expected.
pub fn schema_bytes(schema: &Schema) -> Result<Bytes> {
    let message: IpcMessage = SchemaAsIpc::new(schema, &IpcWriteOptions::default())
        .try_into()
        .map_err(|e| Error::internal(format!("encoding a schema: {e}")))?;
    Ok(message.0)
}

/// The inverse of [`schema_bytes`]; `bytes` may be anything.
///
/// # Errors
/// 08P01.
pub fn read_schema(bytes: Bytes) -> Result<SchemaRef> {
    let schema = Schema::try_from(IpcMessage(bytes));
    Ok(Arc::new(
        schema.map_err(|e| Error::protocol(format!("malformed schema: {e}")))?,
    ))
}

/// A batch stream as the messages of DoGet: `schema` first, also when there are no rows. Columns are matched by position.
/// Dropping it drops the input; when `stop` fires it ends with 57P01.
pub fn to_flight(
    schema: SchemaRef,
    rows: SendableRecordBatchStream,
    stop: CancellationToken,
) -> BoxStream<'static, std::result::Result<FlightData, Status>> {
    let external = |e: DataFusionError| FlightError::ExternalError(Box::new(e));
    let target = schema.clone();
    let batches = rows.flat_map(move |batch| {
        let pieces: Vec<_> = match batch {
            Ok(batch) => pieces(batch).into_iter().map(|piece| cast(&target, piece)).collect(),
            Err(error) => vec![Err(error)],
        };
        futures::stream::iter(pieces).map(move |piece| piece.map_err(external))
    });
    let messages = FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .with_max_flight_data_size(FLIGHT_DATA_BYTES)
        .build(batches)
        .map(|message| message.map_err(stream_status));
    until_stopped(messages, stop).boxed()
}

fn until_stopped(
    messages: impl Stream<Item = std::result::Result<FlightData, Status>> + Send + 'static,
    stop: CancellationToken,
) -> impl Stream<Item = std::result::Result<FlightData, Status>> + Send + 'static {
    let state = (messages.boxed(), false);
    futures::stream::unfold(state, move |(mut messages, ended)| {
        let stop = stop.clone();
        async move {
            if ended {
                return None;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    let error = Error::new("57P01", "the server is shutting down").with_hint("run the query again");
                    Some((Err(status(&error)), (futures::stream::empty().boxed(), true)))
                }
                next = messages.next() => Some((next?, (messages, false))),
            }
        }
    })
}

fn cast(schema: &SchemaRef, batch: RecordBatch) -> std::result::Result<RecordBatch, DataFusionError> {
    if batch.num_columns() != schema.fields().len() {
        let message = format!("{} columns for {}", batch.num_columns(), schema.fields().len());
        return Err(Error::internal(message).into());
    }
    crate::ipc::relabel(schema, batch)
}

/// The batch in halves until no column of views has more than [`COLUMN_BYTES_MAX`]: casting one beyond 2 GiB panics.
fn pieces(batch: RecordBatch) -> Vec<RecordBatch> {
    let rows = batch.num_rows();
    let fits = |column: &Arc<dyn Array>| view_bytes(column.as_ref()) <= COLUMN_BYTES_MAX;
    if rows < 2 || batch.columns().iter().all(fits) {
        return vec![batch];
    }
    let half = rows / 2;
    let (left, right) = (batch.slice(0, half), batch.slice(half, rows - half));
    [left, right].into_iter().flat_map(pieces).collect()
}

/// Bytes that the values of a view array take; 0 for other types.
fn view_bytes(array: &dyn Array) -> usize {
    // The low half of a view is its length.
    let lengths = |views: &[u128]| views.iter().map(|view| *view as u32 as usize).sum();
    match array.data_type() {
        DataType::Utf8View => lengths(array.as_string_view().views()),
        DataType::BinaryView => lengths(array.as_binary_view().views()),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{ArrayRef, Int32Array, StringViewArray};
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use futures::TryStreamExt;

    fn batch() -> RecordBatch {
        let names: ArrayRef = Arc::new(StringViewArray::from(vec![
            Some("a"),
            None,
            Some("a name of more than 12 bytes"),
        ]));
        let keys: ArrayRef = Arc::new(Int32Array::from(vec![1, 2, 3]));
        RecordBatch::try_from_iter([("k", keys), ("name", names)]).expect("a batch")
    }

    fn stream(batches: Vec<RecordBatch>) -> SendableRecordBatchStream {
        let schema = batch().schema();
        Box::pin(RecordBatchStreamAdapter::new(
            schema,
            futures::stream::iter(batches.into_iter().map(Ok)),
        ))
    }

    async fn decoded(batches: Vec<RecordBatch>, stop: CancellationToken) -> Result<Vec<RecordBatch>, String> {
        let schema = client_schema(&batch().schema());
        let messages = to_flight(schema, stream(batches), stop).map_err(FlightError::from);
        let rows = arrow_flight::decode::FlightRecordBatchStream::new_from_flight_data(messages);
        rows.try_collect().await.map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn views_become_plain_and_an_empty_result_has_a_schema() {
        let rows = decoded(vec![batch()], CancellationToken::new()).await.expect("decodes");
        assert_eq!(rows[0].schema(), client_schema(&batch().schema()));
        assert_eq!(*rows[0].column(1).data_type(), DataType::Utf8);
        assert_eq!(
            rows[0].column(1).as_string::<i32>().value(2),
            "a name of more than 12 bytes"
        );
        let messages: Vec<_> = to_flight(
            client_schema(&batch().schema()),
            stream(vec![]),
            CancellationToken::new(),
        )
        .try_collect()
        .await
        .expect("encodes");
        assert_eq!(messages.len(), 1);
    }

    #[tokio::test]
    async fn a_stop_is_an_error_and_never_a_short_result() {
        let stop = CancellationToken::new();
        stop.cancel();
        let error = decoded(vec![batch()], stop).await.expect_err("stopped");
        assert!(error.contains("57P01"), "{error}");
    }

    #[test]
    fn schemas_survive_their_way_and_garbage_does_not_panic() {
        let schema = client_schema(&batch().schema());
        let bytes = schema_bytes(&schema).expect("encodes");
        assert_eq!(read_schema(bytes.clone()).expect("reads"), schema);
        for cut in 0..bytes.len() {
            let _ = read_schema(bytes.slice(..cut));
        }
        assert_eq!(
            read_schema(Bytes::from_static(b"garbage")).expect_err("garbage").code,
            "08P01"
        );
    }

    #[test]
    fn large_columns_go_in_pieces() {
        let wide = "x".repeat(1 << 20);
        let views: StringViewArray = std::iter::repeat_n(Some(wide.as_str()), 200).collect();
        let batch = RecordBatch::try_from_iter([("v", Arc::new(views) as ArrayRef)]).expect("a batch");
        let pieces = pieces(batch);
        assert_eq!(pieces.iter().map(RecordBatch::num_rows).sum::<usize>(), 200);
        assert!(pieces.iter().all(|p| view_bytes(p.column(0)) <= COLUMN_BYTES_MAX));
    }
}
