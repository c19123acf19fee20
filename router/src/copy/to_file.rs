//! COPY TO 'file': a file below `--files-root`, complete or not there.
//!
//! ```text
//!   batches ──▶ channel of 4 ──▶ thread: encode, write .name.<uuid>.tmp ──▶ fsync ──▶ rename to name ──▶ fsync folder
//!                                       error, cancel, dropped: the temporary file goes
//! ```
//!
//! A file that exists is replaced, as PostgreSQL does. CSV, text, and Parquet (zstd 1, row groups of 128 Ki rows).

use super::encoder::CopyEncoder;
use bytes::BytesMut;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use tessera_proto::{Error, Result};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Batches ahead of the file; when full, the query waits.
const BATCHES_AHEAD: usize = 4;
/// Text encoded before it is written.
const WRITE_BYTES: usize = 1 << 20;
/// Rows of a row group.
const ROW_GROUP_ROWS: usize = 128 << 10;

/// How the rows are written.
pub(crate) enum Format {
    /// CSV or text.
    Lines(Box<CopyEncoder>),
    /// Parquet with these columns.
    Parquet(SchemaRef),
}

/// A file being written.
pub(crate) struct FileTarget {
    sender: Option<mpsc::Sender<Option<RecordBatch>>>,
    writing: AbortOnDropHandle<Result<u64>>,
}

impl FileTarget {
    /// Starts the file that `path` names below `root`.
    ///
    /// # Errors
    /// 42501 without a root or outside it, 58P01 for a folder that is not there, 0A000 for a type Parquet does not have.
    pub(crate) fn create(root: Option<&Path>, path: &str, format: Format) -> Result<Self> {
        let target = resolve(root, path)?;
        if let Format::Parquet(schema) = &format {
            check_types(schema)?;
        }
        let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
        let writing = tokio::task::spawn_blocking(move || write(&target, format, receiver));
        Ok(Self {
            sender: Some(sender),
            writing: AbortOnDropHandle::new(writing),
        })
    }

    /// Adds rows.
    ///
    /// # Errors
    /// The file's, such as 53100 for a full disk.
    pub(crate) async fn write(&mut self, batch: RecordBatch) -> Result<()> {
        let sender = self
            .sender
            .as_ref()
            .ok_or_else(|| Error::internal("the file is finished"))?;
        if sender.send(Some(batch)).await.is_ok() {
            return Ok(());
        }
        // The thread gave up: it says why.
        self.sender = None;
        self.end().await?;
        Err(Error::internal("the file ended before its rows"))
    }

    /// Makes the file durable under its name; the rows in it.
    ///
    /// # Errors
    /// The file's.
    pub(crate) async fn finish(mut self) -> Result<u64> {
        if let Some(sender) = self.sender.take() {
            let _ = sender.send(None).await;
        }
        self.end().await
    }

    async fn end(&mut self) -> Result<u64> {
        let ended = (&mut self.writing).await;
        ended.map_err(|e| Error::internal(format!("writing a file: {e}")))?
    }
}

/// The place below `root` that a path names; its folder must be there.
fn resolve(root: Option<&Path>, path: &str) -> Result<PathBuf> {
    let Some(root) = root else {
        return Err(Error::new("42501", "COPY to a server-side file is not allowed")
            .with_hint("start the server with --files-root DIR, or use COPY ... TO STDOUT (\\copy in psql)"));
    };
    let root = root
        .canonicalize()
        .map_err(|e| Error::io(&format!("opening --files-root {}", root.display()), &e))?;
    let whole = root.join(path);
    let outside = || {
        Error::new(
            "42501",
            format!("file \"{path}\" is outside the folder that COPY may write"),
        )
        .with_hint(format!("put it below {}", root.display()))
    };
    let (Some(folder), Some(name)) = (whole.parent(), whole.file_name()) else {
        return Err(outside());
    };
    let folder = folder.canonicalize().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::new(
            "58P01",
            format!("could not open file \"{path}\" for writing: its folder does not exist"),
        ),
        _ => Error::io(&format!("opening the folder of \"{path}\""), &e),
    })?;
    // A link in the file's place is replaced, not followed.
    let file = folder.join(name);
    match (folder.starts_with(&root), file.is_dir()) {
        (false, _) => Err(outside()),
        (true, true) => Err(Error::new("42809", format!("\"{path}\" is a directory"))),
        (true, false) => Ok(file),
    }
}

fn check_types(schema: &SchemaRef) -> Result<()> {
    let interval = |t: &DataType| matches!(t, DataType::Interval(_));
    match schema.fields().iter().find(|f| interval(f.data_type())) {
        Some(field) => Err(Error::unsupported(
            format!("column \"{}\" is an interval, which Parquet cannot hold", field.name()),
            "cast it to text in the query",
        )),
        None => Ok(()),
    }
}

fn write(target: &Path, format: Format, rows: mpsc::Receiver<Option<RecordBatch>>) -> Result<u64> {
    let folder = target.parent().unwrap_or(target);
    let io = |e: &std::io::Error| Error::io(&format!("writing \"{}\"", target.display()), e);
    // Gone when dropped before it has its name.
    let mut temporary = tempfile::Builder::new()
        .prefix(".copy-")
        .suffix(".tmp")
        .tempfile_in(folder)
        .map_err(|e| io(&e))?;
    let written = match format {
        Format::Lines(encoder) => write_lines(encoder, temporary.as_file_mut(), rows, io),
        Format::Parquet(schema) => write_parquet(schema, temporary.as_file_mut(), rows),
    };
    let count = written?;
    temporary.as_file().sync_all().map_err(|e| io(&e))?;
    readable(temporary.as_file()).map_err(|e| io(&e))?;
    temporary.persist(target).map_err(|e| io(&e.error))?;
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| io(&e))?;
    Ok(count)
}

/// Temporary files are for their owner alone; what COPY leaves is for others to read.
#[cfg(unix)]
fn readable(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable(_: &File) -> std::io::Result<()> {
    Ok(())
}

/// The next rows; `None` at the end, which the query says. Without it the statement was given up.
fn next(rows: &mut mpsc::Receiver<Option<RecordBatch>>) -> Result<Option<RecordBatch>> {
    rows.blocking_recv()
        .ok_or_else(|| Error::cancelled("COPY was given up"))
}

fn write_lines(
    mut encoder: Box<CopyEncoder>,
    file: &mut File,
    mut rows: mpsc::Receiver<Option<RecordBatch>>,
    io: impl Fn(&std::io::Error) -> Error,
) -> Result<u64> {
    let mut buffer = BytesMut::with_capacity(WRITE_BYTES);
    let mut count = 0;
    encoder.header(&mut buffer);
    while let Some(batch) = next(&mut rows)? {
        let columns = encoder.prepare(&batch)?;
        for row in 0..batch.num_rows() {
            encoder.line(&columns, row, &mut buffer)?;
            if buffer.len() >= WRITE_BYTES {
                file.write_all(&buffer).map_err(|e| io(&e))?;
                buffer.clear();
            }
        }
        count += batch.num_rows() as u64;
    }
    file.write_all(&buffer).map_err(|e| io(&e))?;
    Ok(count)
}

fn write_parquet(schema: SchemaRef, file: &mut File, mut rows: mpsc::Receiver<Option<RecordBatch>>) -> Result<u64> {
    let failed = |e: parquet::errors::ParquetError| match e {
        parquet::errors::ParquetError::External(e) => match e.downcast_ref::<std::io::Error>() {
            Some(io) => Error::io("writing a Parquet file", io),
            None => Error::internal(format!("writing a Parquet file: {e}")),
        },
        other => Error::internal(format!("writing a Parquet file: {other}")),
    };
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .build();
    let mut writer = ArrowWriter::try_new(BufWriter::new(file), schema.clone(), Some(properties)).map_err(failed)?;
    let mut count = 0;
    while let Some(batch) = next(&mut rows)? {
        count += batch.num_rows() as u64;
        writer
            .write(&tessera_proto::ipc::relabel(&schema, batch)?)
            .map_err(failed)?;
    }
    writer.close().map_err(failed)?;
    Ok(count)
}
