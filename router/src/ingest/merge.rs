//! MERGE: pairs of rows of target and source change or go, rows of the source without a partner are added, in one transaction.
//!
//! ```text
//!   draw a timestamp ──▶ pairs, rows without a partner (merge_query.rs)
//!     clause 1 DELETE   old key goes      clause 2 UPDATE   old key goes, new row comes      clause 3 INSERT   row comes
//!   ──▶ commit ── a row of the target changed, or a key came, since: nothing happened, all of it again (change.rs)
//! ```
//!
//! A row of the target that two rows of the source would change is an error, 21000, as in the standard. In PostgreSQL a key that comes
//! meanwhile is a duplicate; here the statement meets it as a pair when it runs again.

use super::cast;
use super::change::{SEEN_BYTES, again, until_unchanged};
use super::change_writer::ChangeWriter;
use super::insert;
use super::merge_query::{Half, MergeSearch, Step, StepKind};
use super::rows::RowShaper;
use crate::cluster::catalog::{StatementCatalog, TARGET};
use crate::execute::query::{self, Request, Shortcut};
use crate::outcome::Outcome;
use crate::session::StatementContext;
use crate::txn::driver::Basis;
use datafusion::arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::Int64Type;
use datafusion::logical_expr::LogicalPlan;
use datafusion::scalar::ScalarValue;
use futures::TryStreamExt;
use std::collections::HashSet;
use tessera_parser::Merge;
use tessera_proto::token::canonical_keys;
use tessera_proto::{Error, Result, Timestamp};

/// Columns of the queries before the target's.
const BEFORE: usize = 1;

/// Runs it.
///
/// # Errors
/// Those of INSERT, UPDATE and DELETE; 21000 when a row would be changed twice.
pub(crate) async fn run(context: &StatementContext, merge: &Merge, params: Vec<ScalarValue>) -> Result<Outcome> {
    let count = until_unchanged(context, || once(context, merge, &params)).await?;
    Ok(Outcome::done(format!("MERGE {count}")))
}

async fn once(context: &StatementContext, merge: &Merge, params: &[ScalarValue]) -> Result<u64> {
    let catalog = StatementCatalog::new(context);
    let search = MergeSearch::new(&catalog, merge)?;
    let read_at = context.bounded(context.snapshot()).await?;
    let basis = Basis { read_at, upsert: true };
    let mut merging = Merging {
        context,
        search: &search,
        zone: context.settings.get("timezone").unwrap_or_default(),
        seen: HashSet::new(),
        count: 0,
        writer: ChangeWriter::new(catalog.view(), search.table.clone(), basis)?,
    };
    for half in search.pairs.iter().chain(&search.rest) {
        merging.find(half, params, read_at).await?;
    }
    let count = merging.count;
    merging.writer.commit(context).await?;
    Ok(count)
}

/// What becomes of the rows that are found.
struct Merging<'a> {
    context: &'a StatementContext,
    search: &'a MergeSearch,
    zone: String,
    /// Keys of the target's rows that change.
    seen: HashSet<Box<[u8]>>,
    count: u64,
    writer: ChangeWriter,
}

impl Merging<'_> {
    async fn find(&mut self, half: &Half, params: &[ScalarValue], read_at: Timestamp) -> Result<()> {
        let check = |plan: &LogicalPlan| half.check(&self.search.table, plan);
        let request = Request {
            types: insert::declared_types(params, &half.types),
            check: &check,
            shortcut: Shortcut::Never,
            snapshot: Some(read_at),
            targets: vec![(TARGET, self.search.target.clone())],
            ..Request::new(&half.query, params.to_vec())
        };
        let mut shapers = vec![];
        for step in &half.steps {
            shapers.push(self.shaper(step).await?);
        }
        let mut found = query::open(self.context, request).await?;
        loop {
            let next = async { Ok(found.stream.try_next().await?) };
            let next = self.context.bounded(next).await;
            let Some(batch) = next.map_err(again)? else {
                return Ok(());
            };
            for (step, shaper) in half.steps.iter().zip(&shapers) {
                let rows = of_step(&batch, step)?;
                if rows.num_rows() > 0 {
                    self.take(step, shaper.as_ref(), rows).await?;
                }
            }
        }
    }

    /// What makes whole rows of a clause's values; a clause that removes rows makes none.
    async fn shaper(&self, step: &Step) -> Result<Option<RowShaper>> {
        let table = &self.search.table;
        match step.kind {
            StepKind::Delete => Ok(None),
            StepKind::Insert => {
                let shaper = RowShaper::new(self.context, table.clone(), &step.columns);
                shaper.await.map(Some)
            }
            StepKind::Update => {
                let latest = |column: usize| {
                    let new = step.columns.iter().position(|new| *new == column);
                    new.map_or(BEFORE + column, |new| step.first + new)
                };
                let inputs: Vec<usize> = (0..table.columns.len()).map(latest).collect();
                Ok(Some(RowShaper::complete(self.context, table.clone(), &inputs)))
            }
        }
    }

    /// Takes rows of one clause.
    async fn take(&mut self, step: &Step, shaper: Option<&RowShaper>, rows: RecordBatch) -> Result<()> {
        self.count += rows.num_rows() as u64;
        if step.kind != StepKind::Insert {
            self.remove(&rows)?;
        }
        let Some(shaper) = shaper else { return Ok(()) };
        let shaped = match step.kind {
            StepKind::Insert => {
                let values: Vec<usize> = (step.first..step.first + step.columns.len()).collect();
                let values = rows.project(&values).map_err(internal)?;
                let first_id = match shaper.needs_row_ids() {
                    true => self.context.engine.row_ids(rows.num_rows()).await?,
                    false => 0,
                };
                shaper.shape(&values, first_id)?
            }
            StepKind::Update | StepKind::Delete => shaper.shape(&rows, 0)?,
        };
        self.writer.add(shaped)
    }

    fn remove(&mut self, rows: &RecordBatch) -> Result<()> {
        let table = &self.search.table;
        let old = |columns: &[usize]| -> Result<Vec<ArrayRef>> {
            let value = |column: &usize| {
                let values = rows.column(BEFORE + column);
                cast::assign(&table.columns[*column], values, &self.zone)
            };
            columns.iter().map(value).collect()
        };
        let row_keys = old(&table.row_key())?;
        for key in canonical_keys(&row_keys)? {
            let length = key.len();
            if !self.seen.insert(key) {
                return Err(Error::new("21000", "MERGE command cannot affect row a second time")
                    .with_hint("ensure that not more than one source row matches any one target row"));
            }
            self.writer.held.add_bytes(length + SEEN_BYTES)?;
        }
        self.writer.remove(row_keys, &old(table.shard_key())?)
    }
}

/// The rows that a clause fits.
fn of_step(batch: &RecordBatch, step: &Step) -> Result<RecordBatch> {
    let numbers = batch.column(0).as_primitive_opt::<Int64Type>();
    let numbers = numbers.ok_or_else(|| Error::internal("rows without the number of a clause"))?;
    let mask: BooleanArray = numbers.iter().map(|number| Some(number == Some(step.number))).collect();
    filter_record_batch(batch, &mask).map_err(internal)
}

fn internal(error: datafusion::arrow::error::ArrowError) -> Error {
    Error::internal(format!("rows of MERGE: {error}"))
}
