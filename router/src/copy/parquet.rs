//! Parquet files: columns by name, cast without loss, one row group after the other.

use super::decoder::copy_schema;
use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use std::path::PathBuf;
use tessera_proto::table::ColumnDef;
use tessera_proto::{Error, Result};

/// Batches decoded ahead of the writer; when full, decoding waits.
const BATCHES_AHEAD: usize = 4;

/// Rows of a Parquet file, decoded on a thread of their own.
///
/// # Errors
/// The file cannot be opened or is no Parquet (22P04), a column is missing (42703) or has a type that does not fit (42804).
pub fn parquet_rows(path: PathBuf, columns: &[ColumnDef]) -> Result<SendableRecordBatchStream> {
    let shown = path.display().to_string();
    let damaged = move |e: ::parquet::errors::ParquetError| {
        Error::new("22P04", format!("file {shown} is not readable as Parquet: {e}"))
    };
    let file = std::fs::File::open(&path).map_err(|e| Error::io(&format!("opening {}", path.display()), &e))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(&damaged)?;
    let order = match_columns(builder.schema(), columns)?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), order.iter().copied());
    // The reader gives the projected columns in file order; `order` says where each of ours is among them.
    let mut in_file = order.clone();
    in_file.sort_unstable();
    let positions: Vec<_> = order.iter().map(|i| in_file.partition_point(|j| j < i)).collect();
    let reader = builder
        .with_projection(mask)
        .with_batch_size(super::BATCH_ROWS)
        .build()
        .map_err(&damaged)?;
    let schema = copy_schema(columns);
    let mut stream = RecordBatchReceiverStreamBuilder::new(schema.clone(), BATCHES_AHEAD);
    let sender = stream.tx();
    stream.spawn_blocking(move || {
        for batch in reader {
            let batch = batch.map_err(|e| {
                DataFusionError::from(Error::new("22P04", format!("file {} is damaged: {e}", path.display())))
            })?;
            let converted = convert(&batch, &positions, &schema)?;
            if sender.blocking_send(Ok(converted)).is_err() {
                break;
            }
        }
        Ok(())
    });
    Ok(stream.build())
}

/// File positions of the COPY columns; names compare without case.
fn match_columns(file: &SchemaRef, columns: &[ColumnDef]) -> Result<Vec<usize>> {
    columns
        .iter()
        .map(|column| {
            let found = file
                .fields()
                .iter()
                .position(|f| f.name().eq_ignore_ascii_case(&column.name));
            let index = found.ok_or_else(|| {
                let names: Vec<_> = file.fields().iter().map(|f| f.name().as_str()).collect();
                Error::new(
                    "42703",
                    format!("column \"{}\" is not in the Parquet file", column.name),
                )
                .with_hint(format!("the file has: {}", names.join(", ")))
            })?;
            let from = file.field(index).data_type();
            if fits(from, &column.sql_type.arrow()) {
                return Ok(index);
            }
            Err(Error::new(
                "42804",
                format!(
                    "column \"{}\" is of type {} but the file has {from}",
                    column.name, column.sql_type
                ),
            ))
        })
        .collect()
}

/// Whether every value of `from` has a place in `to`, or is refused value by value (numbers out of range).
fn fits(from: &DataType, to: &DataType) -> bool {
    use DataType::*;
    let text = |t: &DataType| matches!(t, Utf8 | LargeUtf8 | Utf8View);
    let bytes = |t: &DataType| matches!(t, Binary | LargeBinary | BinaryView);
    match (from, to) {
        (a, b) if a == b => true,
        (Dictionary(_, value), to) => fits(value, to),
        (a, b) if text(a) && text(b) => true,
        (a, b) if bytes(a) && bytes(b) => true,
        (a, b) if a.is_integer() && (b.is_integer() || matches!(b, Decimal128(_, _))) => true,
        (Float32, Float64) => true,
        (Decimal32(_, s) | Decimal64(_, s) | Decimal128(_, s), Decimal128(_, t)) => s <= t,
        (Date64, Date32) | (Timestamp(_, _), Timestamp(_, _)) | (Time32(_) | Time64(_), Time64(_)) => true,
        _ => false,
    }
}

fn convert(batch: &RecordBatch, positions: &[usize], schema: &SchemaRef) -> Result<RecordBatch, DataFusionError> {
    let strict = CastOptions {
        safe: false,
        ..Default::default()
    };
    let arrays = positions.iter().zip(schema.fields()).map(|(&i, field)| {
        let array = batch.column(i);
        if array.data_type() == field.data_type() {
            return Ok(array.clone());
        }
        cast_with_options(array, field.data_type(), &strict)
            .map_err(|e| Error::new("22003", format!("column \"{}\" of the Parquet file: {e}", field.name())).into())
    });
    let arrays: Vec<ArrayRef> = arrays.collect::<Result<_, DataFusionError>>()?;
    Ok(RecordBatch::try_new(schema.clone(), arrays)?)
}
