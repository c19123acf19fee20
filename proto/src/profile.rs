//! What a query did on this process, kept until EXPLAIN ANALYZE asks for it.
//!
//! ```text
//!   leaf 0 on node 2 ends ──▶ LeafProfile { rows, bytes, time, spill, operators }  ─┐
//!   task on node 2 has read stage 1 of node 3 ──▶ Transfer { rows, bytes, time }   ─┴▶ Profiles[query id] ──Profile──▶ router
//! ```
//!
//! Only for queries that ask for it. Collected apart from the query: a lost profile loses counters, never rows, and nobody waits
//! for one (datafusion-distributed, which does, may hang: its issue 739). Bounded in queries and entries; the oldest goes.

use crate::v1::{LeafProfile, ProfileReply, Transfer, transfer::Source};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, ByteView, RecordBatch};
use datafusion::arrow::datatypes::DataType;
use datafusion::error::DataFusionError;
use datafusion::physical_plan::ExecutionPlan;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Queries whose profiles are kept.
const QUERIES_MAX: usize = 32;
/// Entries of one query.
const ENTRIES_MAX: usize = 4_096;
/// Bytes of operators' text of one leaf.
const PLAN_BYTES_MAX: usize = 64 << 10;

/// Profiles of the queries that ran last; shared by all that records and tells them.
#[derive(Debug, Clone, Default)]
pub struct Profiles(Arc<Mutex<Kept>>);

/// By query, the oldest first.
type Kept = VecDeque<(Vec<u8>, ProfileReply)>;

impl Profiles {
    /// Adds a leaf that ended.
    pub fn leaf(&self, query: &[u8], mut leaf: LeafProfile) {
        let mut room = PLAN_BYTES_MAX;
        leaf.plan.retain(|line| {
            let fits = line.len() <= room;
            room = room.saturating_sub(line.len());
            fits
        });
        self.update(query, |profile| {
            if profile.leaves.len() < ENTRIES_MAX {
                profile.leaves.push(leaf);
            }
        });
    }

    /// Adds rows that were read; what came before from the same source is added up.
    fn transfer(&self, query: &[u8], transfer: Transfer) {
        self.update(query, |profile| {
            let same = |t: &Transfer| t.source == transfer.source && t.from == transfer.from;
            if let Some(at) = profile.transfers.iter().position(same) {
                let known = &mut profile.transfers[at];
                known.rows += transfer.rows;
                known.bytes += transfer.bytes;
                known.micros = known.micros.max(transfer.micros);
            } else if profile.transfers.len() < ENTRIES_MAX {
                profile.transfers.push(transfer);
            }
        });
    }

    fn update(&self, query: &[u8], change: impl FnOnce(&mut ProfileReply)) {
        let mut queries = self.0.lock();
        if !queries.iter().any(|(id, _)| id == query) {
            if queries.len() >= QUERIES_MAX {
                queries.pop_front();
            }
            queries.push_back((query.to_vec(), ProfileReply::default()));
        }
        if let Some((_, profile)) = queries.iter_mut().find(|(id, _)| id == query) {
            change(profile);
        }
    }

    /// What is known of a query, which is forgotten.
    pub fn take(&self, query: &[u8]) -> ProfileReply {
        let mut queries = self.0.lock();
        let found = queries.iter().position(|(id, _)| id == query);
        found
            .and_then(|at| queries.remove(at))
            .map(|(_, p)| p)
            .unwrap_or_default()
    }

    /// The same stream, whose rows are counted for `query` as coming from `source` of node `from`. Counted at its end, or
    /// when it is dropped.
    pub fn count<S>(
        &self,
        query: Vec<u8>,
        source: Source,
        from: u32,
        rows: S,
    ) -> impl Stream<Item = Result<RecordBatch, DataFusionError>> + Send + use<S>
    where
        S: Stream<Item = Result<RecordBatch, DataFusionError>> + Send,
    {
        let mut counter = Counter {
            profiles: self.clone(),
            query,
            started: Instant::now(),
            transfer: Some(Transfer {
                source: Some(source),
                from,
                ..Transfer::default()
            }),
        };
        let end = futures::stream::once(std::future::ready(None));
        rows.map(Some).chain(end).filter_map(move |item| {
            match &item {
                Some(Ok(batch)) => counter.add(batch),
                Some(Err(_)) => {}
                None => counter.end(),
            }
            std::future::ready(item)
        })
    }
}

struct Counter {
    profiles: Profiles,
    query: Vec<u8>,
    started: Instant,
    transfer: Option<Transfer>,
}

impl Counter {
    fn add(&mut self, batch: &RecordBatch) {
        if let Some(transfer) = &mut self.transfer {
            transfer.rows += batch.num_rows() as u64;
            transfer.bytes += bytes(batch);
        }
    }

    fn end(&mut self) {
        if let Some(mut transfer) = self.transfer.take() {
            transfer.micros = self.started.elapsed().as_micros() as u64;
            self.profiles.transfer(&self.query, transfer);
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.end();
    }
}

/// Bytes that a plan's operators wrote to disk because memory was short.
pub fn spilled_bytes(plan: &dyn ExecutionPlan) -> u64 {
    let own = plan.metrics().and_then(|m| m.spilled_bytes()).unwrap_or_default() as u64;
    own + plan
        .children()
        .into_iter()
        .map(|child| spilled_bytes(child.as_ref()))
        .sum::<u64>()
}

/// Bytes of a batch's values as Arrow, without what its buffers hold besides; a view is 16 bytes and the text it stands for.
pub fn bytes(batch: &RecordBatch) -> u64 {
    batch.columns().iter().map(array_bytes).sum()
}

fn array_bytes(array: &ArrayRef) -> u64 {
    // The length is the low half of a view; up to 12 bytes stand in the view itself.
    let views = |views: &[u128]| {
        let text = |view: &u128| match ByteView::from(*view).length {
            length @ 13.. => u64::from(length),
            _ => 0,
        };
        views.iter().map(|view| 16 + text(view)).sum()
    };
    match array.data_type() {
        DataType::Utf8View => views(array.as_string_view().views()),
        DataType::BinaryView => views(array.as_binary_view().views()),
        _ => array.to_data().get_slice_memory_size().unwrap_or_default() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{Int64Array, StringViewArray};
    use datafusion::arrow::datatypes::{Field, Schema};

    fn batch() -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("a", DataType::Int64, false),
            Field::new("b", DataType::Utf8View, false),
        ]);
        let text = StringViewArray::from(vec!["short", "longer than twelve bytes", "x"]);
        RecordBatch::try_new(
            Arc::new(schema),
            vec![Arc::new(Int64Array::from(vec![1, 2, 3])), Arc::new(text)],
        )
        .unwrap()
    }

    #[test]
    fn bytes_are_those_of_the_rows_alone() {
        assert_eq!(bytes(&batch()), 3 * 8 + 3 * 16 + 24);
        assert_eq!(bytes(&batch().slice(2, 1)), 8 + 16);
    }

    #[tokio::test]
    async fn streams_are_counted_at_their_end_or_when_dropped() {
        let profiles = Profiles::default();
        let rows = || futures::stream::iter(vec![Ok(batch()), Ok(batch())]);
        let counted = profiles.count(vec![1], Source::Leaf(0), 2, rows());
        assert_eq!(counted.count().await, 2);
        let mut dropped = Box::pin(profiles.count(vec![1], Source::Leaf(0), 2, rows()));
        dropped.next().await;
        drop(dropped);
        let told = profiles.take(&[1]);
        assert_eq!(told.transfers.len(), 1);
        assert_eq!((told.transfers[0].rows, told.transfers[0].bytes), (9, 288));
        assert_eq!(profiles.take(&[1]), ProfileReply::default(), "told once");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let profiles = Profiles::default();
        for query in 0..100u8 {
            profiles.leaf(&[query], LeafProfile::default());
        }
        assert_eq!(profiles.0.lock().len(), QUERIES_MAX);
        assert!(profiles.take(&[0]).leaves.is_empty() && profiles.take(&[99]).leaves.len() == 1);
    }
}
