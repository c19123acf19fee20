//! Lets joins yield, so that a cancelled or late query gives its core back.
//!
//! ```text
//!   CooperativeExec            counts batches that come out, and gives the runtime a turn now and then
//!     HashJoinExec
//!       build side
//!       YieldExec              gives the runtime a turn at every batch that goes in: a join whose condition drops all pairs
//!         probe side           puts nothing out, and would not stop until it is done
//! ```
//!
//! A nested-loop join compares each row with the whole build side, however large, so it gets one row at first and twice as many
//! after each piece that was quick; any join gets fewer after one that was slow. Used on routers and nodes.

use datafusion::arrow::array::{ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array};
use datafusion::arrow::compute::take;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec, SymmetricHashJoinExec,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PhysicalExpr, PlanProperties};
use futures::StreamExt;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a join should take for the rows it gets at once: a cancel is noticed after it.
const PIECE_TIME: Duration = Duration::from_millis(20);

/// The physical rule. Put it last: it must see the joins that other rules leave.
#[derive(Debug)]
pub struct YieldInJoins;

impl PhysicalOptimizerRule for YieldInJoins {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(plan.transform_up(wrap)?.data)
    }

    fn name(&self) -> &str {
        "yield_in_joins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn wrap(node: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
    let nested = node.is::<NestedLoopJoinExec>() || node.is::<CrossJoinExec>();
    let joins =
        nested || node.is::<HashJoinExec>() || node.is::<SortMergeJoinExec>() || node.is::<SymmetricHashJoinExec>();
    let [build, probe] = node.children()[..] else {
        return Ok(Transformed::no(node));
    };
    if !joins {
        return Ok(Transformed::no(node));
    }
    let rows = if nested { 1 } else { usize::MAX };
    let probe: Arc<dyn ExecutionPlan> = Arc::new(YieldExec::new(probe.clone(), rows));
    let sides = vec![build.clone(), probe];
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    let join = node.replace_children(sides, options)?;
    Ok(Transformed::yes(Arc::new(CooperativeExec::new(join))))
}

/// Passes batches on in pieces that its reader is done with in about [`PIECE_TIME`], each after giving the runtime a turn.
#[derive(Debug, Clone)]
pub struct YieldExec {
    input: Arc<dyn ExecutionPlan>,
    rows: usize,
    compact: bool,
}

impl YieldExec {
    /// Over `input`; the first piece has at most `rows` rows.
    pub fn new(input: Arc<dyn ExecutionPlan>, rows: usize) -> Self {
        Self {
            input,
            rows: rows.max(1),
            compact: false,
        }
    }

    /// Over `input`, not to be sent to other processes; no piece has more than `rows` rows, and each is a copy: it holds no memory but that of its rows.
    pub fn compacting(input: Arc<dyn ExecutionPlan>, rows: usize) -> Self {
        Self {
            compact: true,
            ..Self::new(input, rows)
        }
    }

    /// Most rows of the first piece, or of any if they are copies.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// How many rows the next piece has.
#[derive(Debug)]
struct Pace {
    rows: usize,
    /// When the last piece went out, and its rows.
    given: Option<(Instant, usize)>,
}

impl Pace {
    /// The reader asks for more: it is done with the last piece.
    fn asked(&mut self, now: Instant) {
        let Some((at, given)) = self.given.take() else { return };
        let took = now - at;
        if took > 2 * PIECE_TIME {
            let share = PIECE_TIME.as_secs_f64() / took.as_secs_f64();
            self.rows = ((given as f64 * share) as usize).max(1);
        } else if given >= self.rows && took < PIECE_TIME / 2 {
            self.rows = self.rows.saturating_mul(2);
        }
    }
}

/// A stream being cut.
struct Cutting {
    input: SendableRecordBatchStream,
    rest: Option<RecordBatch>,
    pace: Pace,
    /// Most rows of a copy.
    compact: Option<usize>,
}

impl Cutting {
    async fn next(&mut self) -> Option<Result<RecordBatch>> {
        self.pace.asked(Instant::now());
        let batch = match self.rest.take() {
            Some(rest) => rest,
            None => match self.input.next().await? {
                Ok(batch) => batch,
                Err(error) => return Some(Err(error)),
            },
        };
        tokio::task::yield_now().await;
        let (rows, wanted) = (batch.num_rows(), self.pace.rows.min(self.compact.unwrap_or(usize::MAX)));
        let piece = if wanted < rows {
            self.rest = Some(batch.slice(wanted, rows - wanted));
            batch.slice(0, wanted)
        } else {
            batch
        };
        self.pace.given = Some((Instant::now(), piece.num_rows()));
        Some(if self.compact.is_some() {
            copied(&piece)
        } else {
            Ok(piece)
        })
    }
}

/// The same rows in memory of their own.
fn copied(batch: &RecordBatch) -> Result<RecordBatch> {
    let all = UInt32Array::from_iter_values(0..batch.num_rows() as u32);
    let column = |array: &ArrayRef| {
        let taken = take(array, &all, None)?;
        // Views still point into the buffers of the whole.
        Ok(match taken.data_type() {
            DataType::Utf8View => Arc::new(taken.as_string_view().gc()) as ArrayRef,
            DataType::BinaryView => Arc::new(taken.as_binary_view().gc()),
            _ => taken,
        })
    };
    let columns = batch.columns().iter().map(column).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(batch.schema(), columns, &options)?)
}

impl DisplayAs for YieldExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(if self.compact {
            "YieldExec: compact"
        } else {
            "YieldExec"
        })
    }
}

impl ExecutionPlan for YieldExec {
    fn name(&self) -> &str {
        "YieldExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = &children[..] else {
            return internal_err!("YieldExec has one input");
        };
        Ok(Arc::new(Self {
            input: input.clone(),
            ..Self::clone(&self)
        }))
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let cutting = Cutting {
            input: self.input.execute(partition, context)?,
            rest: None,
            pace: Pace {
                rows: self.rows,
                given: None,
            },
            compact: self.compact.then_some(self.rows),
        };
        let pieces = futures::stream::unfold(cutting, async |mut cutting| {
            let piece = cutting.next().await?;
            Some((piece, cutting))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), pieces)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{Array, Int64Array, StringViewArray};

    #[test]
    fn a_copy_of_a_piece_holds_only_its_rows() {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..10_000));
        let texts = (0..10_000).map(|n| (n % 3 > 0).then(|| format!("a text that is not inlined {n}")));
        let texts: ArrayRef = Arc::new(StringViewArray::from_iter(texts));
        let whole = RecordBatch::try_from_iter([("n", numbers), ("t", texts)]).unwrap();
        let piece = whole.slice(5_000, 10);
        let copy = copied(&piece).unwrap();
        assert_eq!(copy, piece);
        assert!(copy.get_array_memory_size() < 2_000, "{}", copy.get_array_memory_size());
        assert!(piece.column(1).get_array_memory_size() > 100_000);
    }

    #[test]
    fn pieces_shrink_when_slow_and_grow_when_quick() {
        let mut pace = Pace { rows: 1, given: None };
        let start = Instant::now();
        let mut took = |rows, pieces: f64| {
            pace.given = Some((start, rows));
            pace.asked(start + PIECE_TIME.mul_f64(pieces));
            pace.rows
        };
        for rows in [1, 2, 4, 8] {
            assert_eq!(took(rows, 0.25), 2 * rows);
        }
        // Fewer than it might have had say nothing about more.
        assert_eq!(took(3, 0.1), 16);
        assert_eq!(took(16, 1.5), 16);
        assert_eq!(took(16, 4.0), 4);
        assert_eq!(took(4, 1_000.0), 1);
        // A large batch went out whole.
        pace.rows = usize::MAX;
        pace.given = Some((start, 8_192));
        pace.asked(start + 4 * PIECE_TIME);
        assert_eq!(pace.rows, 2_048);
    }
}
