//! How DataFusion's Parquet scan reads our segments: positioned reads of the local file under its checksums, footers
//! from the node's cache.
//!
//! The segment travels as an extension of the `PartitionedFile`, so it stays on disk for as long as the plan lives.

use crate::storage::checked_file::CheckedFile;
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
use std::ops::Range;
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
    file: Option<CheckedFile>,
    metrics: ParquetFileMetrics,
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
            self.metrics
                .bytes_scanned
                .add(ranges.iter().map(|r| (r.end - r.start) as usize).sum());
            let (segment, file) = (self.segment.clone(), self.file.take());
            let (file, read) = blocking(move || {
                let file = file.map_or_else(|| segment.open_file(), Ok)?;
                let read = ranges
                    .into_iter()
                    .map(|range| file.read(range))
                    .collect::<tessera_proto::Result<Vec<_>>>()?;
                Ok((file, read))
            })
            .await?;
            self.file = Some(file);
            Ok(read)
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        async move {
            if let Some(footer) = self.segment.cached_footer() {
                return Ok(footer);
            }
            let segment = self.segment.clone();
            blocking(move || segment.footer()).await
        }
        .boxed()
    }
}

/// Runs file access off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> tessera_proto::Result<T> + Send + 'static) -> Result<T> {
    let result = tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| ParquetError::External(Box::new(e)))?;
    result.map_err(|e| ParquetError::External(Box::new(e)))
}
