//! Server-side files: only below `--files-root`, symbolic links and `..` included.

use super::CopyDecoder;
use super::decoder::copy_schema;
use datafusion::arrow::array::RecordBatch;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use std::io::Read;
use std::path::{Path, PathBuf};
use tessera_parser::CopyOptions;
use tessera_proto::table::ColumnDef;
use tessera_proto::{Error, Result};

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;
/// Batches decoded ahead of the writer; when full, reading waits.
const BATCHES_AHEAD: usize = 4;

/// Resolves a path of COPY to a file below `root`.
///
/// # Errors
/// 42501 without a root or outside it, 58P01 when there is no such file.
pub fn open_below(root: Option<&Path>, path: &str) -> Result<PathBuf> {
    let Some(root) = root else {
        return Err(Error::new("42501", "COPY from a server-side file is not allowed")
            .with_hint("start the server with --files-root DIR, or use COPY ... FROM STDIN (\\copy in psql)"));
    };
    let root = root
        .canonicalize()
        .map_err(|e| Error::io(&format!("opening --files-root {}", root.display()), &e))?;
    let missing = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => Error::new(
            "58P01",
            format!("could not open file \"{path}\" for reading: no such file"),
        ),
        _ => Error::io(&format!("opening file \"{path}\""), &e),
    };
    let file = root.join(path).canonicalize().map_err(missing)?;
    if !file.starts_with(&root) {
        return Err(Error::new(
            "42501",
            format!("file \"{path}\" is outside the folder that COPY may read"),
        )
        .with_hint(format!("put it below {}", root.display())));
    }
    if !file.is_file() {
        return Err(Error::new("42809", format!("\"{path}\" is not a file")));
    }
    Ok(file)
}

/// Rows of a CSV or text file, decoded on a thread of their own.
///
/// # Errors
/// Options that cannot be used; the stream carries what the file does wrong.
pub fn text_rows(
    path: PathBuf,
    columns: &[ColumnDef],
    options: &CopyOptions,
    zone: &str,
) -> Result<SendableRecordBatchStream> {
    let mut decoder = CopyDecoder::new(columns, options)?.in_zone(zone);
    let mut builder = RecordBatchReceiverStreamBuilder::new(copy_schema(columns), BATCHES_AHEAD);
    let sender = builder.tx();
    builder.spawn_blocking(move || {
        let io = |e: std::io::Error| DataFusionError::from(Error::io(&format!("reading {}", path.display()), &e));
        let mut file = std::fs::File::open(&path).map_err(io)?;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let mut batches: Vec<RecordBatch> = vec![];
            let read = file.read(&mut buffer).map_err(io)?;
            match read {
                0 => decoder.finish(&mut batches)?,
                n => decoder.push(&buffer[..n], &mut batches)?,
            }
            for batch in batches {
                // The reader is gone: the statement ended.
                if sender.blocking_send(Ok(batch)).is_err() {
                    return Ok(());
                }
            }
            if read == 0 {
                return Ok(());
            }
        }
    });
    Ok(builder.build())
}
