//! INSERT ... ON CONFLICT: which of the rows are added, which change a row that exists, which are left out.
//!
//! ```text
//!   draw a timestamp ──▶ rows to add ──▶ which keys exist at it (lookup.rs)
//!     new key                 added
//!     key exists, NOTHING     left out
//!     key exists, UPDATE      new values (upsert_query.rs) ──▶ old key goes, new row comes         WHERE not true: left out
//!   ──▶ RETURNING ──▶ commit ── a key came, or a row changed, since: nothing happened, all of it again (change.rs)
//! ```
//!
//! So it is exact under concurrent writers: the leaders lock the keys and check that what was looked up is still so. A row that is
//! left out is not locked: it was there at the snapshot. PostgreSQL locks it where a WHERE leaves it out, which only SELECT ... FOR
//! UPDATE would tell apart.
//!
//! An assignment may change the key and the shard key: the row moves, as by UPDATE. Everything is held in memory until the commit.

use super::change::{again, until_unchanged};
use super::change_writer::{ChangeWriter, Held};
use super::insert;
use super::lookup;
use super::returning::{self, Returned};
use super::rows::RowShaper;
use super::upsert_query::{self, Update};
use super::values;
use crate::cluster::catalog::StatementCatalog;
use crate::execute::prepare;
use crate::execute::query::{self, Request, Shortcut};
use crate::session::StatementContext;
use crate::txn::driver::Basis;
use crate::txn::open::{Isolation, OpenTransaction};
use datafusion::arrow::array::{ArrayRef, AsArray, RecordBatch, UInt64Array};
use datafusion::arrow::compute::{concat_batches, take_record_batch};
use datafusion::arrow::datatypes::{FieldRef, Int64Type, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::logical_expr::LogicalPlan;
use datafusion::scalar::ScalarValue;
use futures::TryStreamExt;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tessera_parser::Insert;
use tessera_proto::table::TableDef;
use tessera_proto::token::canonical_keys;
use tessera_proto::{Error, Result, Timestamp};

/// Runs it: the number of rows added and changed, and what RETURNING makes of them.
///
/// # Errors
/// Those of INSERT and UPDATE; 21000 when a row would be changed twice; 40001 when keys come and go faster than they can be looked up;
/// 54000 when the rows are too many.
pub(super) async fn run(
    context: &StatementContext,
    insert: &Insert,
    params: &[ScalarValue],
) -> Result<(u64, Option<Returned>)> {
    until_unchanged(context, || once(context, insert, params)).await
}

/// Runs it once for each of `rows`, the values of its parameters, as one transaction: each sees the rows of those before. Returns the
/// rows added and changed.
///
/// # Errors
/// Those of any row: then nothing of any remains.
pub(super) async fn run_many(
    context: &StatementContext,
    insert: &Insert,
    rows: impl Iterator<Item = Result<Vec<ScalarValue>>>,
) -> Result<u64> {
    let transaction = OpenTransaction::begin(&context.engine, Isolation::ReadCommitted);
    let context = StatementContext {
        transaction: Some(transaction.clone()),
        ..context.clone()
    };
    let mut count = 0;
    for params in rows {
        count += run(&context, insert, &params?).await?.0;
    }
    transaction.commit(context.deadline).await?;
    Ok(count)
}

async fn once(context: &StatementContext, insert: &Insert, params: &[ScalarValue]) -> Result<(u64, Option<Returned>)> {
    let catalog = StatementCatalog::new(context);
    let table = insert::find_table(&catalog, &insert.table)?;
    let update = upsert_query::describe(&table, insert)?;
    let read_at = context.bounded(context.snapshot()).await?;
    let upsert = Upsert {
        context,
        catalog: &catalog,
        params,
        read_at,
        proposed: propose(context, &table, insert, params, read_at).await?,
        table,
        update,
    };
    upsert.run(insert).await
}

/// Rows that are to be added, whole, as one batch.
async fn propose(
    context: &StatementContext,
    table: &Arc<TableDef>,
    insert: &Insert,
    params: &[ScalarValue],
    read_at: Timestamp,
) -> Result<RecordBatch> {
    let targets = insert::targets(table, &insert.columns)?;
    let (source, targets) = insert::source(table, insert, targets)?;
    let shaper = RowShaper::new(context, table.clone(), &targets).await?;
    let (mut held, mut rows) = (Held::default(), vec![]);
    let mut take = |batch: &RecordBatch| {
        // Of a table with a primary key, which has no row ids.
        let shaped = shaper.shape(batch, 0)?;
        held.add(&shaped)?;
        rows.push(shaped);
        Ok::<_, Error>(())
    };
    match values::constants(table, &targets, &source, params) {
        Some(batch) => take(&batch)?,
        None => {
            let opened = insert::open_source(context, table, &targets, &source, params.to_vec(), Some(read_at));
            let mut found = opened.await?;
            loop {
                let next = context.bounded(async { Ok(found.stream.try_next().await?) }).await;
                let Some(batch) = next.map_err(again)? else { break };
                take(&batch)?;
            }
        }
    }
    concat_batches(shaper.schema(), &rows).map_err(internal)
}

/// One attempt.
struct Upsert<'a> {
    context: &'a StatementContext,
    catalog: &'a StatementCatalog,
    params: &'a [ScalarValue],
    read_at: Timestamp,
    table: Arc<TableDef>,
    /// `None` is DO NOTHING.
    update: Option<Update>,
    proposed: RecordBatch,
}

/// What becomes of the rows proposed.
#[derive(Debug, Default)]
struct Fates {
    /// Those that are added.
    added: Vec<u64>,
    /// Those whose keys exist, and which row of those found it is.
    met: Vec<(u64, u64)>,
}

/// Rows that exist and what becomes of them, as long as each other.
struct Changed {
    /// The row of [`Upsert::proposed`] that each met.
    met: Vec<u64>,
    old: RecordBatch,
    new: RecordBatch,
}

impl Upsert<'_> {
    async fn run(&self, insert: &Insert) -> Result<(u64, Option<Returned>)> {
        let keys = canonical_keys(&columns(&self.proposed, &self.table.primary_key))?;
        let found = self.existing(&keys).await?;
        let fates = self.fates(&keys, &found)?;
        let changed = match &self.update {
            Some(update) => Some(self.changed(update, &keys, &found, &fates.met).await?),
            None => None,
        };
        let added = pick(&self.proposed, &fates.added)?;
        let basis = Basis {
            read_at: self.read_at,
            upsert: true,
        };
        let mut writer = ChangeWriter::new(self.catalog.view(), self.table.clone(), basis)?;
        if let Some(changed) = &changed {
            let old = |of: &[usize]| columns(&changed.old, of);
            writer.remove(old(&self.table.primary_key), &old(self.table.shard_key()))?;
            writer.add(changed.new.clone())?;
        }
        writer.add(added.clone())?;
        let count = added.num_rows() + changed.as_ref().map_or(0, |changed| changed.new.num_rows());
        let returned = match insert::asked(insert, &self.table) {
            Some(asked) => {
                let rows = self.in_order(&fates.added, added, changed)?;
                writer.held.add(&rows)?;
                let rows = vec![returning::visible(&self.table, &rows)?];
                let at = Some(self.read_at);
                Some(returning::evaluate(self.context, &asked, self.params, at, rows).await?)
            }
            None => None,
        };
        writer.commit(self.context).await?;
        Ok((count as u64, returned))
    }

    /// Rows that have a key of those proposed: whole ones if they may change, else their keys.
    async fn existing(&self, keys: &[Box<[u8]>]) -> Result<RecordBatch> {
        let mut seen = HashSet::new();
        let first = keys.iter().enumerate().filter(|(_, key)| seen.insert(*key));
        let first: Vec<u64> = first.map(|(row, _)| row as u64).collect();
        let key = self.proposed.project(&self.table.primary_key).map_err(internal)?;
        let projection = match &self.update {
            Some(_) => (0..self.table.columns.len()).collect(),
            None => self.table.primary_key.clone(),
        };
        lookup::rows(
            self.context,
            &self.table,
            &pick(&key, &first)?,
            &projection,
            self.read_at,
        )
        .await
    }

    fn fates(&self, keys: &[Box<[u8]>], found: &RecordBatch) -> Result<Fates> {
        let key = match &self.update {
            Some(_) => columns(found, &self.table.primary_key),
            None => found.columns().to_vec(),
        };
        let existing: HashMap<Box<[u8]>, u64> = canonical_keys(&key)?.into_iter().zip(0..).collect();
        let (mut fates, mut seen) = (Fates::default(), HashSet::new());
        for (row, key) in (0..).zip(keys) {
            match existing.get(key) {
                Some(found) => fates.met.push((row, *found)),
                None if seen.insert(key) => fates.added.push(row),
                None if self.update.is_some() => return Err(twice()),
                None => {}
            }
        }
        Ok(fates)
    }

    /// The rows that change. One that several proposed rows met is offered to each in turn, until one changes it; that one must be the
    /// last.
    async fn changed(
        &self,
        update: &Update,
        keys: &[Box<[u8]>],
        found: &RecordBatch,
        met: &[(u64, u64)],
    ) -> Result<Changed> {
        if met.is_empty() {
            let none = RecordBatch::new_empty(self.table.arrow_schema());
            self.check(update, &none).await?;
            return Ok(Changed {
                met: vec![],
                old: none.clone(),
                new: none,
            });
        }
        let (rows, places): (Vec<u64>, Vec<u64>) = met.iter().copied().unzip();
        let (existing, excluded) = (pick(found, &places)?, pick(&self.proposed, &rows)?);
        let (numbers, values) = self.new_values(update, &existing, &excluded).await?;
        // Where the new values of each are, of those that the condition chose.
        let chosen: HashMap<u64, u64> = numbers.into_iter().zip(0..).collect();
        let (mut done, mut numbers, mut order) = (HashSet::new(), vec![], vec![]);
        for (number, row) in (0..).zip(&rows) {
            let key = &keys[*row as usize];
            if done.contains(key) {
                return Err(twice());
            }
            if let Some(place) = chosen.get(&number) {
                done.insert(key);
                numbers.push(number);
                order.push(*place);
            }
        }
        let old = pick(&existing, &numbers)?;
        let values = pick(&values, &order)?;
        let new = self.shape(update, &old, &values)?;
        let met = numbers.iter().map(|number| rows[*number as usize]).collect();
        Ok(Changed { met, old, new })
    }

    /// Tells what is wrong with the expressions where no row needs them.
    async fn check(&self, update: &Update, none: &RecordBatch) -> Result<()> {
        let types = insert::declared_types(self.params, &update.types);
        let targets = Update::targets(&self.table, none, none)?;
        let catalog = StatementCatalog::new(self.context).with_targets(targets);
        let bound = prepare::bind(self.context, &catalog, &update.query, &types, self.read_at).await?;
        let plan = prepare::fill(self.context, bound.plan, self.params.to_vec())?;
        update.check(&self.table, &plan)?;
        tessera_planner::analyze(&bound.state, plan).map(drop)
    }

    /// Numbers of the rows that the condition chooses, in any order, and their new values.
    async fn new_values(
        &self,
        update: &Update,
        existing: &RecordBatch,
        excluded: &RecordBatch,
    ) -> Result<(Vec<u64>, RecordBatch)> {
        let check = |plan: &LogicalPlan| update.check(&self.table, plan);
        let types = insert::declared_types(self.params, &update.types);
        let targets = Update::targets(&self.table, existing, excluded)?;
        let request = Request {
            types,
            check: &check,
            shortcut: Shortcut::Never,
            snapshot: Some(self.read_at),
            targets,
            ..Request::new(&update.query, self.params.to_vec())
        };
        let mut running = query::open(self.context, request).await?;
        let (mut held, mut rows) = (Held::default(), vec![]);
        loop {
            let next = async { Ok(running.stream.try_next().await?) };
            let next = self.context.bounded(next).await;
            let Some(batch) = next.map_err(again)? else { break };
            held.add(&batch)?;
            rows.push(batch);
        }
        let schema: SchemaRef = rows.first().map_or_else(|| running.schema.clone(), RecordBatch::schema);
        let rows = concat_batches(&schema, &rows).map_err(internal)?;
        let numbers = rows.column(0).as_primitive_opt::<Int64Type>();
        let numbers = numbers.ok_or_else(|| Error::internal("rows without numbers"))?;
        let values: Vec<usize> = (1..rows.num_columns()).collect();
        let values = rows.project(&values).map_err(internal)?;
        Ok((numbers.values().iter().map(|number| *number as u64).collect(), values))
    }

    /// Whole rows of old ones and new values, in declared types.
    fn shape(&self, update: &Update, old: &RecordBatch, values: &RecordBatch) -> Result<RecordBatch> {
        let width = old.num_columns();
        let latest = |column: usize| {
            let new = update.new.iter().position(|new| *new == column);
            new.map_or(column, |new| width + new)
        };
        let inputs: Vec<usize> = (0..width).map(latest).collect();
        let (before, after) = (old.schema(), values.schema());
        let fields: Vec<FieldRef> = before.fields().iter().chain(after.fields()).cloned().collect();
        let schema = Arc::new(Schema::new(fields));
        let all = old.columns().iter().chain(values.columns()).cloned().collect();
        let both = RecordBatch::try_new(schema, all).map_err(internal)?;
        RowShaper::complete(self.context, self.table.clone(), &inputs).shape(&both, 0)
    }

    /// Rows added and changed in the order in which they were proposed.
    fn in_order(&self, at: &[u64], added: RecordBatch, changed: Option<Changed>) -> Result<RecordBatch> {
        let Some(changed) = changed.filter(|changed| changed.new.num_rows() > 0) else {
            return Ok(added);
        };
        let all = concat_batches(&self.table.arrow_schema(), [&added, &changed.new]).map_err(internal)?;
        let mut places: Vec<(u64, u64)> = at.iter().chain(&changed.met).copied().zip(0..).collect();
        places.sort_unstable();
        pick(&all, &places.into_iter().map(|(_, place)| place).collect::<Vec<_>>())
    }
}

fn twice() -> Error {
    Error::new("21000", "ON CONFLICT DO UPDATE command cannot affect row a second time")
        .with_hint("no two rows proposed by one statement may have the same key")
}

fn columns(rows: &RecordBatch, of: &[usize]) -> Vec<ArrayRef> {
    of.iter().map(|column| rows.column(*column).clone()).collect()
}

/// Some rows of a batch, in this order.
fn pick(rows: &RecordBatch, which: &[u64]) -> Result<RecordBatch> {
    take_record_batch(rows, &UInt64Array::from(which.to_vec())).map_err(internal)
}

fn internal(error: ArrowError) -> Error {
    Error::internal(format!("rows of ON CONFLICT: {error}"))
}
