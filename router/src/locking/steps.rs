//! Row keys in the order of the rows that they are of, and the requests that lock them.
//!
//! ```text
//!   rows    1: a.k=7 (shard 2)   2: a.k=3 (shard 0)   3: a.k=7 (again)   4: a.k=9 (shard 2)
//!   keys    7, 3, 9
//!   at once            shard 0: {3}    shard 2: {7, 9}
//!   one by one         shard 2: {7}    shard 0: {3}    shard 2: {9}          the order in which PostgreSQL locks them
//! ```

use super::rewrite::Target;
use crate::ingest::split::shards_of;
use crate::ingest::{Held, assign};
use crate::txn::open::ShardLocks;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::interleave_record_batch;
use datafusion::arrow::datatypes::SchemaRef;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tessera_meta::view::ClusterView;
use tessera_parser::LockStrength;
use tessera_proto::table::ColocationGroup;
use tessera_proto::token::canonical_keys;
use tessera_proto::{Error, Result, ShardId, ipc, v1};

/// What remembering a key costs beside its bytes.
const KEY_BYTES: usize = 96;

/// A row of a locked table.
#[derive(Debug)]
pub(super) struct RowKey {
    /// Number of the table among the locked ones.
    pub target: usize,
    /// Where the row is.
    pub shard: ShardId,
    /// Where its key is: which batch of that table, and where in it.
    at: (usize, usize),
}

/// Keys of one locked table.
#[derive(Debug)]
struct Table {
    group: Arc<ColocationGroup>,
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    /// Numbers of the keys, by their bytes.
    numbers: HashMap<Box<[u8]>, usize>,
}

/// Row keys that a query found, each once.
#[derive(Debug)]
pub(super) struct RowKeys<'a> {
    targets: &'a [Target],
    tables: Vec<Table>,
    /// In the order of the rows that have them first.
    pub keys: Vec<RowKey>,
    zone: &'a str,
}

impl<'a> RowKeys<'a> {
    /// None yet.
    ///
    /// # Errors
    /// 42P01 when a table is gone.
    pub(super) fn new(targets: &'a [Target], view: &ClusterView, zone: &'a str) -> Result<Self> {
        let table = |target: &Target| {
            let table = &target.locked.table;
            let dropped = || Error::new("42P01", format!("table \"{}\" was dropped", table.name));
            let schema = table.arrow_schema();
            let schema = schema.project(&table.row_key());
            Ok(Table {
                group: view.groups.get(&table.group).ok_or_else(dropped)?.clone(),
                schema: Arc::new(schema.map_err(|e| Error::internal(format!("row key of table \"{}\": {e}", table.name)))?),
                batches: vec![],
                numbers: HashMap::new(),
            })
        };
        Ok(Self {
            targets,
            tables: targets.iter().map(table).collect::<Result<_>>()?,
            keys: vec![],
            zone,
        })
    }

    /// Adds the keys of rows, whose appended columns begin at `first`; for each row the numbers of its keys, one of each table.
    ///
    /// # Errors
    /// 54000 when they are too many.
    pub(super) fn add(&mut self, rows: &RecordBatch, first: usize, held: &mut Held) -> Result<Vec<Vec<usize>>> {
        let mut numbers: Vec<Vec<usize>> = vec![Vec::with_capacity(self.targets.len()); rows.num_rows()];
        let mut found = vec![];
        for (target, table) in self.targets.iter().zip(&mut self.tables) {
            let definition = &target.locked.table;
            let values = |columns: &[usize]| {
                let value = |column: &usize| {
                    let place = target.columns.iter().find(|(read, _)| read == column);
                    let (_, place) = place.ok_or_else(|| Error::internal("a key column was not read"))?;
                    assign(&definition.columns[*column], rows.column(first + place), self.zone)
                };
                columns.iter().map(value).collect::<Result<Vec<_>>>()
            };
            let keys = values(&definition.row_key())?;
            let bytes = canonical_keys(&keys)?;
            let shards = shards_of(&table.group, &values(definition.shard_key())?, rows.num_rows())?;
            let batch = RecordBatch::try_new(table.schema.clone(), keys);
            let batch = batch.map_err(|e| Error::internal(format!("row keys of table \"{}\": {e}", definition.name)))?;
            held.add(&batch)?;
            found.push((bytes, shards));
            table.batches.push(batch);
        }
        for (row, numbers) in numbers.iter_mut().enumerate() {
            for (target, (bytes, shards)) in found.iter_mut().enumerate() {
                let table = &mut self.tables[target];
                let key = std::mem::take(&mut bytes[row]);
                let number = match table.numbers.get(&key) {
                    Some(number) => *number,
                    None => {
                        let number = self.keys.len();
                        held.add_bytes(key.len() + KEY_BYTES)?;
                        table.numbers.insert(key, number);
                        let group = table.group.id;
                        self.keys.push(RowKey {
                            target,
                            shard: ShardId {
                                group,
                                index: shards[row],
                            },
                            at: (table.batches.len() - 1, row),
                        });
                        number
                    }
                };
                numbers.push(number);
            }
        }
        Ok(numbers)
    }

    /// Requests for these keys, one for each shard; with the numbers of the keys of each table in it, in their order.
    ///
    /// # Errors
    /// None is expected.
    pub(super) fn requests(&self, numbers: &[usize]) -> Result<(Vec<ShardLocks>, Vec<Vec<Vec<usize>>>)> {
        let mut shards: BTreeMap<ShardId, BTreeMap<usize, Vec<usize>>> = BTreeMap::new();
        for number in numbers {
            let key = &self.keys[*number];
            shards.entry(key.shard).or_default().entry(key.target).or_default().push(*number);
        }
        let mut requests = vec![];
        let mut asked = vec![];
        for (shard, tables) in shards {
            let locks = tables.iter().map(|(target, numbers)| self.locks(*target, numbers));
            requests.push(ShardLocks {
                shard,
                locks: locks.collect::<Result<_>>()?,
            });
            asked.push(tables.into_values().collect());
        }
        Ok((requests, asked))
    }

    fn locks(&self, target: usize, numbers: &[usize]) -> Result<v1::RowLocks> {
        let (table, locked) = (&self.tables[target], &self.targets[target].locked);
        let at: Vec<(usize, usize)> = numbers.iter().map(|number| self.keys[*number].at).collect();
        let batches: Vec<&RecordBatch> = table.batches.iter().collect();
        let keys = interleave_record_batch(&batches, &at);
        let keys = keys.map_err(|e| Error::internal(format!("gathering row keys: {e}")))?;
        Ok(v1::RowLocks {
            table: locked.table.id.0,
            schema_version: locked.table.version,
            mode: mode(locked.strength).into(),
            keys: ipc::encode(&table.schema, &[keys])?,
        })
    }

    /// The keys in their order, cut where the shard changes; by shard where that is more than `steps_max` pieces.
    pub(super) fn steps(&self, steps_max: usize) -> Vec<Vec<usize>> {
        let mut steps: Vec<Vec<usize>> = vec![];
        for (number, key) in self.keys.iter().enumerate() {
            match steps.last_mut() {
                Some(step) if self.keys[step[0]].shard == key.shard => step.push(number),
                _ => steps.push(vec![number]),
            }
        }
        if steps.len() <= steps_max {
            return steps;
        }
        let mut shards: BTreeMap<ShardId, Vec<usize>> = BTreeMap::new();
        for (number, key) in self.keys.iter().enumerate() {
            shards.entry(key.shard).or_default().push(number);
        }
        shards.into_values().collect()
    }
}

fn mode(strength: LockStrength) -> v1::RowLockMode {
    match strength {
        LockStrength::KeyShare => v1::RowLockMode::KeyShare,
        LockStrength::Share => v1::RowLockMode::Share,
        LockStrength::NoKeyUpdate => v1::RowLockMode::NoKeyUpdate,
        LockStrength::Update => v1::RowLockMode::Update,
    }
}
