//! What is worth rewriting, if anything, in one table of one shard.
//!
//! ```text
//!   dead      > 20 % of a segment's rows were gone at the watermark            all such segments, the worst first
//!   small     4 segments of one size class (a factor of 4), below half a full one
//!   overlap   > 10 segments whose values of the first sort column meet at a place: scans and lookups there read them all
//! ```
//!
//! In this order, one job at a time. Each job ends its own reason: outputs have no dead rows, are one class up, or do not
//! overlap each other. Segments that only touch (the last value of one is the first of the next) do not overlap, so that a column
//! of few values is not rewritten for ever. Only segments of the manifest count: the log may still need the files of others.

use crate::storage::segment::SEGMENT_ROWS_MAX;
use crate::storage::version::{Segment, TableVersion};
use datafusion::scalar::ScalarValue;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::{TableId, Timestamp};

/// Dead rows in a hundred above which a segment is rewritten.
const DEAD_PERCENT_MAX: u64 = 20;
/// So many segments of one size class are merged.
const SMALL_MIN: usize = 4;
/// More segments than this at one place are merged.
const OVERLAP_MAX: usize = 10;
/// Segments of a job: each run of them is a file being read.
const INPUTS_MAX: usize = 64;
/// Rows of a job, beyond its first segment: the map of their new places takes 4 bytes a row.
const INPUT_ROWS_MAX: u64 = 8 * SEGMENT_ROWS_MAX as u64;
/// A segment with so many rows is not small.
const SMALL_ROWS: u64 = SEGMENT_ROWS_MAX as u64 / 2;
/// Parquet cuts longer texts in its statistics: bounds of so many bytes are not those of the values.
const CUT_BYTES: usize = 64;

/// Why segments are rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Many of their rows are dead.
    Dead,
    /// Some are, and somebody asked.
    AnyDead,
    /// They are small.
    Small,
    /// They overlap.
    Overlap,
}

/// How much must be in the way before it is cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eagerness {
    /// What pays off.
    Usual,
    /// Everything: VACUUM.
    Asked,
}

/// What is to be rewritten.
#[derive(Debug, Clone)]
pub struct Job {
    /// The table.
    pub table: TableId,
    /// Older snapshots cannot be read any more.
    pub watermark: Timestamp,
    /// Why.
    pub reason: Reason,
    /// What; at least one.
    pub(crate) inputs: Vec<Arc<Segment>>,
}

impl Job {
    /// Rows of its segments.
    pub fn rows(&self) -> u64 {
        self.inputs.iter().map(|s| s.meta.rows).sum()
    }

    /// Bytes of its segments.
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().map(|s| s.meta.bytes).sum()
    }
}

/// Whether so many dead rows are worth a rewrite of all.
pub(super) fn is_much(dead: u64, rows: u64) -> bool {
    dead * 100 > rows * DEAD_PERCENT_MAX
}

/// The next job; `known` are the files that the manifest names. Blocking where statistics are not in memory.
pub(crate) fn pick(
    def: &TableDef,
    version: &TableVersion,
    known: &HashSet<String>,
    watermark: Timestamp,
    eagerness: Eagerness,
) -> Option<Job> {
    let segments: Vec<&Arc<Segment>> = version
        .segments
        .iter()
        .filter(|s| known.contains(&s.meta.file))
        .collect();
    let (reason, chosen) = dead(version, &segments, watermark, eagerness)
        .or_else(|| small(&segments, eagerness))
        .or_else(|| overlapping(def, &segments))?;
    Some(Job {
        table: def.id,
        watermark,
        reason,
        inputs: chosen.into_iter().cloned().collect(),
    })
}

/// As many of these as one job may have, at least one.
fn limited<'a>(segments: impl Iterator<Item = &'a Arc<Segment>>) -> Vec<&'a Arc<Segment>> {
    let mut rows = 0;
    let fits = |s: &&Arc<Segment>| {
        rows += s.meta.rows;
        rows == s.meta.rows || rows <= INPUT_ROWS_MAX
    };
    segments.take(INPUTS_MAX).take_while(fits).collect()
}

type Chosen<'a> = Option<(Reason, Vec<&'a Arc<Segment>>)>;

fn dead<'a>(
    version: &TableVersion,
    segments: &[&'a Arc<Segment>],
    watermark: Timestamp,
    eagerness: Eagerness,
) -> Chosen<'a> {
    let dead = |s: &Segment| version.deletes_of(s).map_or(0, |d| d.gone_at(watermark)) as u64;
    let mut found: Vec<(u64, &Arc<Segment>)> = segments.iter().map(|s| (dead(s), *s)).collect();
    let reason = match eagerness {
        Eagerness::Usual => {
            found.retain(|(dead, s)| is_much(*dead, s.meta.rows));
            Reason::Dead
        }
        Eagerness::Asked => {
            found.retain(|(dead, _)| *dead > 0);
            Reason::AnyDead
        }
    };
    found.sort_by_key(|(dead, s)| std::cmp::Reverse(dead * 1_000 / s.meta.rows.max(1)));
    let chosen = limited(found.into_iter().map(|(_, s)| s));
    (!chosen.is_empty()).then_some((reason, chosen))
}

fn small<'a>(segments: &[&'a Arc<Segment>], eagerness: Eagerness) -> Chosen<'a> {
    let small = segments.iter().copied().filter(|s| s.meta.rows < SMALL_ROWS);
    let mut classes: BTreeMap<u32, Vec<&Arc<Segment>>> = BTreeMap::new();
    for segment in small {
        let class = match eagerness {
            Eagerness::Usual => segment.meta.rows.max(1).ilog(4),
            Eagerness::Asked => 0,
        };
        classes.entry(class).or_default().push(segment);
    }
    let least = match eagerness {
        Eagerness::Usual => SMALL_MIN,
        Eagerness::Asked => 2,
    };
    // The smallest first: they cost most for what they hold.
    let class = classes.into_values().find(|class| class.len() >= least)?;
    let chosen = limited(class.into_iter());
    (chosen.len() > 1).then_some((Reason::Small, chosen))
}

/// Least and greatest value of the first sort column; `None` where that is not known exactly or there is but one.
fn bounds(segment: &Segment, column: &str) -> Option<(ScalarValue, ScalarValue)> {
    let (low, high) = segment.statistics().bounds(column)?;
    let cut = |value: &ScalarValue| match value {
        ScalarValue::Utf8View(Some(text)) => text.len() >= CUT_BYTES,
        ScalarValue::BinaryView(Some(bytes)) => bytes.len() >= CUT_BYTES,
        _ => false,
    };
    let apart = low.partial_cmp(&high) == Some(Ordering::Less);
    (apart && !cut(&low) && !cut(&high)).then_some((low, high))
}

fn overlapping<'a>(def: &TableDef, segments: &[&'a Arc<Segment>]) -> Chosen<'a> {
    if segments.len() <= OVERLAP_MAX {
        return None;
    }
    let first = def.storage_order().first().and_then(|c| def.columns.get(*c))?;
    let ranges: Vec<_> = segments
        .iter()
        .filter_map(|s| Some((bounds(s, &first.name)?, *s)))
        .collect();
    // A place: just above the least value of one of them.
    let at = |low: &ScalarValue| {
        let covers = |((from, to), _): &&((ScalarValue, ScalarValue), &'a Arc<Segment>)| {
            from.partial_cmp(low).is_some_and(Ordering::is_le) && to.partial_cmp(low) == Some(Ordering::Greater)
        };
        ranges.iter().filter(covers).map(|(_, s)| *s).collect::<Vec<_>>()
    };
    let mut deepest = ranges.iter().map(|((low, _), _)| at(low)).max_by_key(Vec::len)?;
    if deepest.len() <= OVERLAP_MAX {
        return None;
    }
    deepest.sort_by_key(|s| s.meta.rows);
    let chosen = limited(deepest.into_iter());
    (chosen.len() > 1).then_some((Reason::Overlap, chosen))
}
