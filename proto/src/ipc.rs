//! Record batches as Arrow IPC bytes (in log entries and requests) and as chunk streams (between processes).

use crate::error::{Error, Result};
use crate::v1::ArrowChunk;
use arrow_flight::FlightData;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{Stream, StreamExt, TryStreamExt};

/// Largest IPC payload accepted in one request or log entry; larger write sets are staged as segments.
pub const INLINE_BYTES_MAX: usize = 64 << 20;
/// Target size of one streamed chunk: well under clients' default message limits.
const CHUNK_BYTES: usize = 2 << 20;

/// Batches of one schema as an Arrow IPC stream.
///
/// # Errors
/// Types that Arrow IPC cannot carry.
pub fn encode(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Bytes> {
    let mut out = Vec::new();
    let internal = |e: datafusion::arrow::error::ArrowError| Error::internal(format!("encoding rows: {e}"));
    let mut writer = arrow_ipc::writer::StreamWriter::try_new(&mut out, schema).map_err(internal)?;
    for batch in batches {
        writer.write(batch).map_err(internal)?;
    }
    writer.finish().map_err(internal)?;
    drop(writer);
    Ok(out.into())
}

/// The inverse of [`encode`]; input may be anything.
///
/// # Errors
/// 08P01 when the bytes are not an Arrow IPC stream.
pub fn decode(bytes: &[u8]) -> Result<Vec<RecordBatch>> {
    let malformed = |e: datafusion::arrow::error::ArrowError| Error::protocol(format!("malformed rows: {e}"));
    arrow_ipc::reader::StreamReader::try_new(bytes, None)
        .map_err(malformed)?
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(malformed)
}

/// A batch stream as chunks for gRPC: the schema first, also when there are no rows. Dropping it drops the input.
pub fn to_chunks(
    stream: SendableRecordBatchStream,
) -> impl Stream<Item = std::result::Result<ArrowChunk, tonic::Status>> + Send {
    let schema = stream.schema();
    FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .with_max_flight_data_size(CHUNK_BYTES)
        .build(stream.map_err(|e| FlightError::ExternalError(Box::new(e))))
        .map(|item| match item {
            Ok(data) => Ok(ArrowChunk {
                header: data.data_header,
                body: data.data_body,
            }),
            Err(FlightError::ExternalError(e)) => Err(match e.downcast::<DataFusionError>() {
                Ok(e) => Error::from(*e).into(),
                Err(e) => Error::internal(e.to_string()).into(),
            }),
            Err(e) => Err(Error::internal(format!("encoding rows: {e}")).into()),
        })
}

/// The inverse of [`to_chunks`]. `schema` is what the caller expects; columns are matched by position, and batches are
/// re-labelled with it, because peers may differ in nullability and metadata.
pub fn from_chunks<S>(schema: SchemaRef, chunks: S) -> SendableRecordBatchStream
where
    S: Stream<Item = std::result::Result<ArrowChunk, tonic::Status>> + Send + 'static,
{
    let data = chunks.map(|chunk| match chunk {
        Ok(c) => Ok(FlightData {
            data_header: c.header,
            data_body: c.body,
            ..Default::default()
        }),
        Err(status) => Err(FlightError::ExternalError(Box::new(Error::from(status)))),
    });
    let expected = schema.clone();
    let batches = FlightRecordBatchStream::new_from_flight_data(data)
        .map_err(flight_error)
        .and_then(move |batch| std::future::ready(relabel(&expected, batch)));
    Box::pin(RecordBatchStreamAdapter::new(schema, batches))
}

fn flight_error(error: FlightError) -> DataFusionError {
    match error {
        FlightError::ExternalError(e) => match e.downcast::<Error>() {
            Ok(ours) => DataFusionError::External(ours),
            Err(e) => DataFusionError::External(e),
        },
        other => Error::protocol(format!("malformed rows from a node: {other}")).into(),
    }
}

/// The same columns under another schema of equal types; keeps the row count of batches without columns.
///
/// # Errors
/// Types differ.
pub fn relabel(schema: &SchemaRef, batch: RecordBatch) -> std::result::Result<RecordBatch, DataFusionError> {
    use datafusion::arrow::array::RecordBatchOptions;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let mut columns = batch.columns().to_vec();
    for (column, field) in columns.iter_mut().zip(schema.fields()) {
        if column.data_type() != field.data_type() {
            *column = datafusion::arrow::compute::cast(column, field.data_type())?;
        }
    }
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}
