//! Reads the keys of a plan's filters, then runs it.
//!
//! ```text
//!   KeysFirstExec            1. leaves of the first wave, all at once ──▶ cells     2. the next wave ...     3. the plan
//!     plan
//!     ShardLocalExec: keys of filter 0
//!     ShardLocalExec: keys of filter 1
//! ```
//!
//! Always the root, on the router: no rule sees it, and it never travels. What ends the query's stream ends this too.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PhysicalExpr, PlanProperties, execute_stream,
};
use futures::{TryStreamExt, future::try_join_all};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;
use tessera_proto::key_filter::{Collector, KeyCell};

/// Keys of one filter.
#[derive(Debug, Clone)]
pub struct Step {
    /// Gives them in its only column.
    pub plan: Arc<dyn ExecutionPlan>,
    /// Where they go.
    pub cell: Arc<KeyCell>,
    /// After all steps of earlier waves.
    pub wave: usize,
}

impl Step {
    async fn run(&self, context: Arc<TaskContext>) -> Result<()> {
        if self.cell.get().is_some() {
            return Ok(());
        }
        let begun = Instant::now();
        let mut keys = Collector::new(&self.data_type()?, context.memory_pool())?;
        let mut rows = execute_stream(self.plan.clone(), context)?;
        while let Some(batch) = rows.try_next().await? {
            if !keys.add(batch.column(0))? {
                break;
            }
        }
        drop(rows);
        let (set, count) = keys.finish();
        Ok(self.cell.fill(&set, count, begun.elapsed())?)
    }

    fn data_type(&self) -> Result<DataType> {
        match self.plan.schema().fields().first() {
            Some(key) => Ok(key.data_type().clone()),
            None => internal_err!("a query for keys has no column"),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct KeysFirstExec {
    input: Arc<dyn ExecutionPlan>,
    steps: Vec<Step>,
    properties: Arc<PlanProperties>,
}

impl KeysFirstExec {
    /// `input`, after `steps`.
    pub fn new(input: Arc<dyn ExecutionPlan>, steps: Vec<Step>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self {
            input,
            steps,
            properties: Arc::new(properties),
        }
    }
}

impl DisplayAs for KeysFirstExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let numbers: Vec<_> = self.steps.iter().map(|step| step.cell.number.to_string()).collect();
        write!(f, "KeysFirstExec: filters=[{}]", numbers.join(", "))
    }
}

impl ExecutionPlan for KeysFirstExec {
    fn name(&self) -> &str {
        "KeysFirstExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        let steps = self.steps.iter().map(|step| &step.plan);
        std::iter::once(&self.input).chain(steps).collect()
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let mut children = children.into_iter();
        let Some(input) = children.next().filter(|_| children.len() == self.steps.len()) else {
            return internal_err!("KeysFirstExec has an input and a plan for each filter");
        };
        let steps = self.steps.iter().cloned().zip(children);
        let steps = steps.map(|(step, plan)| Step { plan, ..step }).collect();
        Ok(Arc::new(Self::new(input, steps)))
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition > 0 {
            return internal_err!("KeysFirstExec has one partition");
        }
        let (input, steps) = (self.input.clone(), self.steps.clone());
        let run = async move {
            let waves = steps.iter().map(|step| step.wave).max().unwrap_or(0);
            for wave in 0..=waves {
                let now = steps.iter().filter(|step| step.wave == wave);
                try_join_all(now.map(|step| step.run(context.clone()))).await?;
            }
            execute_stream(input, context)
        };
        let rows = futures::stream::once(run).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}
