//! Estimates for the planner: rows, bytes, and per column least, greatest, NULLs, distinct and most common values.
//!
//! A segment's come from its Parquet footer, a chunk's from its rows; both are computed once and kept. Rows that a
//! snapshot does not see yet are counted too, those that are gone only in the number of rows, and a footer that cannot be read gives no estimate: queries meet the error.
//! The most common values are added up for the router only: a node plans without them.

use crate::storage::common_values::{Counters, Summary, column_bytes_max};
use crate::storage::delta::Chunk;
use crate::storage::row_sample::RowSample;
use crate::storage::segment::{COMMON_VALUES_ENTRY, KEY_RANGE_ENTRY, SKETCHES_ENTRY};
use crate::storage::sketch::Sketch;
use crate::storage::version::{Segment, TableVersion};
use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::compute::{cast, max, min};
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::functions_aggregate::min_max::{MaxAccumulator, MinAccumulator};
use datafusion::logical_expr::Accumulator;
use datafusion::scalar::ScalarValue;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::parquet_to_arrow_schema;
use parquet::file::metadata::ParquetMetaData;
use prost::Message;
use std::collections::HashMap;
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::v1;

/// What the footer of a segment says about its rows.
#[derive(Debug, Default)]
pub(crate) struct SegmentStatistics {
    /// Range of an integer first key column.
    pub key_range: Option<(i64, i64)>,
    columns: HashMap<String, ColumnSummary>,
    common: HashMap<String, Summary>,
}

impl SegmentStatistics {
    /// Whether the segment may hold keys in a range; unknown ranges may.
    pub fn overlaps(&self, range: KeyRange) -> bool {
        match (self.key_range, range.0) {
            (Some((low, high)), Some((from, to))) => low <= to && from <= high,
            _ => true,
        }
    }
}

/// Least and greatest value of an integer first key column; `None` is not known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyRange(pub Option<(i64, i64)>);

impl KeyRange {
    /// Of key columns.
    pub fn of(columns: &[ArrayRef]) -> Self {
        let range = || {
            let first = columns.first().filter(|c| c.data_type().is_signed_integer())?;
            let values = cast(first, &DataType::Int64).ok()?;
            let values = values.as_primitive::<Int64Type>();
            Some((min(values)?, max(values)?))
        };
        Self(range())
    }
}

/// What is known of a column in some rows.
#[derive(Debug, Clone, Default)]
pub(crate) struct ColumnSummary {
    pub nulls: u64,
    pub min: Option<ScalarValue>,
    pub max: Option<ScalarValue>,
    pub sketch: Option<Sketch>,
}

/// Estimates of one table in one or more shards.
#[derive(Debug, Clone)]
pub(crate) struct TableSummary {
    pub rows: u64,
    pub bytes: u64,
    /// One per column of the table.
    pub columns: Vec<ColumnSummary>,
}

impl TableSummary {
    /// Of no rows.
    pub fn empty(def: &TableDef) -> Self {
        Self {
            rows: 0,
            bytes: 0,
            columns: vec![ColumnSummary::default(); def.columns.len()],
        }
    }

    /// Adds a shard's rows. Blocking at the first call for a segment.
    pub fn add(&mut self, def: &TableDef, version: &TableVersion) {
        self.rows += version.rows();
        for segment in &version.segments {
            self.bytes += segment.meta.bytes;
            let known = segment.statistics();
            for (column, summary) in def.columns.iter().zip(&mut self.columns) {
                match known.columns.get(&column.name) {
                    Some(found) => summary.merge(found),
                    None => summary.nulls += segment.meta.rows,
                }
            }
        }
        for chunk in &version.chunks {
            self.bytes += chunk.bytes() as u64;
            self.add_chunk(def, chunk);
        }
    }

    fn add_chunk(&mut self, def: &TableDef, chunk: &Chunk) {
        let known = chunk
            .summaries
            .get_or_init(|| chunk.batch.columns().iter().map(ColumnSummary::of).collect());
        for (column, summary) in def.columns.iter().zip(&mut self.columns) {
            match chunk
                .batch
                .schema_ref()
                .index_of(&column.name)
                .ok()
                .and_then(|at| known.get(at))
            {
                Some(found) => summary.merge(found),
                None => summary.nulls += chunk.rows() as u64,
            }
        }
    }

    /// For the wire, with the most common values of each column.
    pub fn to_wire(&self, def: &TableDef, common: Vec<Counters>) -> v1::TableStatistics {
        let bytes = column_bytes_max(def.columns.len());
        let columns = self.columns.iter().zip(&def.columns).zip(common);
        let columns = columns.map(|((c, column), common)| {
            let distinct = c.sketch.as_ref().map_or(0, Sketch::count);
            let encode_value = |value: &ScalarValue| encode(Some(value));
            let common = common
                .summary(bytes)
                .to_wire(&column.sql_type.arrow(), distinct, c.nulls, encode_value);
            v1::ColumnStatistics {
                distinct,
                nulls: c.nulls,
                min: encode(c.min.as_ref()),
                max: encode(c.max.as_ref()),
                common: Some(common),
            }
        });
        v1::TableStatistics {
            table: def.id.0,
            rows: self.rows,
            bytes: self.bytes,
            columns: columns.collect(),
        }
    }
}

/// Counters of each column's most common values in a shard's rows. Blocking at the first call for a segment.
pub(crate) fn common_values(def: &TableDef, version: &TableVersion) -> Vec<Counters> {
    let mut columns = vec![Counters::default(); def.columns.len()];
    for segment in &version.segments {
        let known = segment.statistics();
        for (column, counters) in def.columns.iter().zip(&mut columns) {
            match (known.common.get(&column.name), known.columns.get(&column.name)) {
                (Some(found), _) => counters.merge(found),
                // The column is younger than the segment.
                (None, None) if !known.columns.is_empty() => counters.add_nulls(segment.meta.rows),
                (None, _) => counters.add_unknown(segment.meta.rows),
            }
        }
    }
    for chunk in &version.chunks {
        let known = chunk.common.get_or_init(|| {
            let mut sample = RowSample::new(chunk.batch.num_columns());
            match sample.add(chunk.batch.columns()) {
                Ok(()) => sample.summaries(),
                Err(error) => {
                    tracing::error!(%error, "no common values");
                    vec![]
                }
            }
        });
        for (column, counters) in def.columns.iter().zip(&mut columns) {
            match chunk.batch.schema_ref().index_of(&column.name) {
                Ok(at) => match known.get(at) {
                    Some(found) => counters.merge(found),
                    None => counters.add_unknown(chunk.rows() as u64),
                },
                Err(_) => counters.add_nulls(chunk.rows() as u64),
            }
        }
    }
    columns
}

fn encode(value: Option<&ScalarValue>) -> bytes::Bytes {
    let message = value
        .filter(|v| !v.is_null())
        .and_then(|v| datafusion_proto::protobuf::ScalarValue::try_from(v).ok());
    message.map(|m| m.encode_to_vec().into()).unwrap_or_default()
}

impl ColumnSummary {
    /// Of values in memory.
    fn of(array: &ArrayRef) -> Self {
        let mut sketch = Sketch::default();
        let sketched = sketch.add(array).is_ok();
        let (min, max) = bounds(array, array);
        Self {
            nulls: array.null_count() as u64,
            min,
            max,
            sketch: sketched.then_some(sketch),
        }
    }

    fn merge(&mut self, other: &Self) {
        self.nulls += other.nulls;
        self.min = pick(self.min.take(), other.min.clone(), std::cmp::Ordering::Less);
        self.max = pick(self.max.take(), other.max.clone(), std::cmp::Ordering::Greater);
        match (&mut self.sketch, &other.sketch) {
            (Some(mine), Some(theirs)) => mine.merge(theirs),
            (mine @ None, Some(theirs)) => *mine = Some(theirs.clone()),
            (_, None) => {}
        }
    }
}

fn pick(left: Option<ScalarValue>, right: Option<ScalarValue>, keep: std::cmp::Ordering) -> Option<ScalarValue> {
    match (left, right) {
        (Some(l), Some(r)) => Some(if r.partial_cmp(&l) == Some(keep) { r } else { l }),
        (l, r) => l.or(r),
    }
}

/// Least of `mins` and greatest of `maxes`; nothing for types without an order.
fn bounds(mins: &ArrayRef, maxes: &ArrayRef) -> (Option<ScalarValue>, Option<ScalarValue>) {
    if matches!(mins.data_type(), DataType::Interval(_)) {
        return (None, None);
    }
    let min = MinAccumulator::try_new(mins.data_type())
        .and_then(|mut a| a.update_batch(std::slice::from_ref(mins)).and_then(|()| a.evaluate()));
    let max = MaxAccumulator::try_new(maxes.data_type())
        .and_then(|mut a| a.update_batch(std::slice::from_ref(maxes)).and_then(|()| a.evaluate()));
    (min.ok().filter(|v| !v.is_null()), max.ok().filter(|v| !v.is_null()))
}

impl Segment {
    /// What the footer says; nothing if it cannot be read. Blocking at first use.
    pub(crate) fn statistics(&self) -> &SegmentStatistics {
        self.statistics.get_or_init(|| match self.footer() {
            Ok(metadata) => Arc::new(from_footer(&metadata)),
            Err(error) => {
                tracing::error!(%error, "no statistics");
                Arc::default()
            }
        })
    }
}

fn from_footer(metadata: &ParquetMetaData) -> SegmentStatistics {
    let entries = metadata.file_metadata().key_value_metadata();
    let entry = |name: &str| {
        entries
            .and_then(|e| e.iter().find(|kv| kv.key == name))
            .and_then(|kv| kv.value.as_deref())
    };
    let range = entry(KEY_RANGE_ENTRY).and_then(|t| t.split_once(','));
    let key_range = range.and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
    let texts = |name: &str| -> Vec<String> {
        entry(name)
            .and_then(|t| serde_json::from_str(t).ok())
            .unwrap_or_default()
    };
    let (sketches, common) = (texts(SKETCHES_ENTRY), texts(COMMON_VALUES_ENTRY));
    let parquet_schema = metadata.file_metadata().schema_descr();
    let Ok(schema) = parquet_to_arrow_schema(parquet_schema, entries) else {
        return SegmentStatistics {
            key_range,
            ..Default::default()
        };
    };
    let columns = schema.fields().iter().enumerate().map(|(at, field)| {
        let mut summary = ColumnSummary {
            sketch: sketches.get(at).and_then(|t| Sketch::from_text(t)),
            ..Default::default()
        };
        if let Ok(converter) = StatisticsConverter::try_new(field.name(), &schema, parquet_schema) {
            if let (Ok(mins), Ok(maxes)) = (
                converter.row_group_mins(metadata.row_groups()),
                converter.row_group_maxes(metadata.row_groups()),
            ) {
                (summary.min, summary.max) = bounds(&mins, &maxes);
            }
            let nulls = converter.row_group_null_counts(metadata.row_groups());
            summary.nulls = nulls.map(|n| n.iter().flatten().sum()).unwrap_or(0);
        }
        (field.name().clone(), summary)
    });
    let names = schema.fields().iter().map(|field| field.name().clone());
    let common = names
        .zip(&common)
        .filter_map(|(n, t)| Some((n, Summary::from_text(t)?)));
    SegmentStatistics {
        key_range,
        columns: columns.collect(),
        common: common.collect(),
    }
}
