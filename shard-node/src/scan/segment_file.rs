//! How DataFusion's Parquet scan reads our segments: positioned reads of the local file, footers from the node's cache.
//!
//! The segment travels as an extension of the `PartitionedFile`, so it stays on disk for as long as the plan lives.

use crate::storage::version::Segment;
use bytes::Bytes;
use datafusion::common::internal_err;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{ParquetFileMetrics, ParquetFileReaderFactory};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ParquetMetaData;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Opens segments.
#[derive(Debug)]
pub(super) struct SegmentFiles;

impl ParquetFileReaderFactory for SegmentFiles {
    fn create_reader(
        &self,
        partition_index: usize,
        file: PartitionedFile,
        _: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> datafusion::common::Result<Box<dyn AsyncFileReader + Send>> {
        let Some(segment) = file.extension::<Arc<Segment>>() else {
            return internal_err!("a scanned file is not a segment");
        };
        let metrics = ParquetFileMetrics::new(partition_index, file.object_meta.location.as_ref(), metrics);
        Ok(Box::new(SegmentFile {
            segment: segment.clone(),
            file: None,
            metrics,
        }))
    }
}

/// One segment being read.
struct SegmentFile {
    segment: Arc<Segment>,
    /// Opened at the first read.
    file: Option<Arc<File>>,
    metrics: ParquetFileMetrics,
}

impl SegmentFile {
    fn open(&mut self) -> Result<Arc<File>> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(&self.segment.path)?);
        self.file = Some(file.clone());
        Ok(file)
    }
}

impl AsyncFileReader for SegmentFile {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        async move {
            let mut ranges = self.get_byte_ranges(vec![range]).await?;
            ranges
                .pop()
                .ok_or_else(|| ParquetError::General("no bytes read".into()))
        }
        .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        async move {
            let file = self.open()?;
            self.metrics
                .bytes_scanned
                .add(ranges.iter().map(|r| (r.end - r.start) as usize).sum());
            let read =
                tokio::task::spawn_blocking(move || ranges.into_iter().map(|range| read_range(&file, range)).collect());
            read.await.map_err(|e| ParquetError::External(Box::new(e)))?
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        async move {
            if let Some(metadata) = self.segment.cache().lookup(&self.segment.path) {
                return Ok(metadata);
            }
            let segment = self.segment.clone();
            let read = tokio::task::spawn_blocking(move || segment.cache().get(&segment.path));
            let read = read.await.map_err(|e| ParquetError::External(Box::new(e)))?;
            read.map_err(|e| ParquetError::External(Box::new(e)))
        }
        .boxed()
    }
}

fn read_range(file: &File, range: Range<u64>) -> Result<Bytes> {
    let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.into())
}
