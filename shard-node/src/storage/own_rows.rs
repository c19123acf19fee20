//! What a transaction that has not ended changed in one shard, and the table as only it sees it.
//!
//! ```text
//!   step 1  insert k=7              net   comes {7: row''}   goes {5}
//!   step 2  k=5 removed              ▲
//!   step 3  k=7 replaced ────────────┘    a savepoint forgets the last steps: the net is made again from those before
//!   step 4  truncated               net   all goes, nothing comes
//!
//!   view:   committed version  − goes  + comes (commit timestamp 0)     every snapshot of this transaction sees it
//!   log:    truncated, removed = goes, rows = comes                      once, when it is prepared or committed
//! ```
//!
//! In memory, at the shard's leader only, bounded by what a log entry can carry; a transaction whose leader dies is aborted.
//! Staged segments may be added to a table, but then nothing else in it: their keys are not in memory.

use crate::storage::delta;
use crate::storage::keys::{for_each_key, key_columns};
use crate::storage::staging::conform;
use crate::storage::version::{Segment, TableVersion};
use crate::storage::{Access, Going, ShardStore, Write, locate, point_read};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::{concat_batches, interleave_record_batch};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tessera_proto::ipc::INLINE_BYTES_MAX;
use tessera_proto::table::TableDef;
use tessera_proto::token::canonical_keys;
use tessera_proto::{Error, Result, TableId, Timestamp, ipc, v1};

/// A row in one of several batches: which, and where in it.
type At = (usize, usize);

/// See the module.
#[derive(Debug, Default, Clone)]
pub struct OwnRows {
    steps: Vec<Step>,
    tables: BTreeMap<TableId, OwnTable>,
    bytes: usize,
}

/// What one statement changed.
#[derive(Debug, Clone)]
struct Step {
    statement: u64,
    writes: Vec<Write>,
    /// Bytes of its rows and keys.
    bytes: usize,
}

/// The net change of one table.
#[derive(Debug, Clone)]
struct OwnTable {
    def: Arc<TableDef>,
    /// All committed rows go.
    truncated: bool,
    /// Committed rows that go, by key; none where all do.
    goes: HashMap<Box<[u8]>, At>,
    /// Their keys.
    keys: Vec<RecordBatch>,
    /// Rows that come, by key.
    comes: HashMap<Box<[u8]>, At>,
    /// They and those that were replaced since.
    rows: Vec<RecordBatch>,
    /// Files that come.
    staged: Vec<v1::SegmentRef>,
}

impl OwnRows {
    /// Bytes of all that is remembered.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether rows of a table are changed.
    pub fn touches(&self, table: TableId) -> bool {
        self.tables.contains_key(&table)
    }

    /// Adds what a statement changes, all of it or nothing. The caller has checked that rows that go are there and that those that
    /// come have keys of their own; see [`Self::conflict`].
    ///
    /// # Errors
    /// 54000 when it is more than a log entry can carry; 0A000 for a table with staged segments.
    pub fn add(&mut self, statement: u64, writes: Vec<Write>, bytes: usize) -> Result<()> {
        if self.bytes + bytes > INLINE_BYTES_MAX {
            let limit = format!("the limit is {} MiB in one shard", INLINE_BYTES_MAX >> 20);
            return Err(Error::new("54000", "the transaction changes too many rows")
                .with_detail(limit)
                .with_hint("commit more often, or load the rows with COPY"));
        }
        writes.iter().try_for_each(|write| self.check_staged(write))?;
        // Keys of every write can be computed before any is taken over: canonical keys fail by type only.
        for write in &writes {
            self.take(write)?;
        }
        self.bytes += bytes;
        self.steps.push(Step {
            statement,
            writes,
            bytes,
        });
        Ok(())
    }

    fn check_staged(&self, write: &Write) -> Result<()> {
        let Some(own) = self.tables.get(&write.table().id) else {
            return Ok(());
        };
        let in_memory = !own.goes.is_empty() || !own.comes.is_empty();
        let mixed = match write {
            Write::Truncated { .. } => false,
            Write::Staged { .. } => in_memory,
            Write::Removed { .. } | Write::Rows { .. } => !own.staged.is_empty(),
        };
        match mixed {
            false => Ok(()),
            true => Err(Error::unsupported(
                format!(
                    "table \"{}\" cannot get many rows at once and be changed row by row in one transaction",
                    own.def.name
                ),
                "COMMIT between the two",
            )),
        }
    }

    fn take(&mut self, write: &Write) -> Result<()> {
        let def = write.table();
        let own = self.tables.entry(def.id).or_insert_with(|| OwnTable {
            def: def.clone(),
            truncated: false,
            goes: HashMap::new(),
            keys: vec![],
            comes: HashMap::new(),
            rows: vec![],
            staged: vec![],
        });
        match write {
            Write::Truncated { .. } => {
                own.truncated = true;
                own.goes.clear();
                own.keys.clear();
                own.comes.clear();
                own.rows.clear();
                own.staged.clear();
            }
            Write::Removed { keys, .. } => {
                let batch = own.keys.len();
                for (row, key) in canonical_keys(keys.columns())?.into_iter().enumerate() {
                    // A row of our own just goes; under it there may be a committed one, which is in `goes` already.
                    if own.comes.remove(&key).is_none() && !own.truncated {
                        own.goes.insert(key, (batch, row));
                    }
                }
                own.keys.push(keys.clone());
            }
            Write::Rows { table, batch } => {
                let (number, rows) = (own.rows.len(), conform(table, batch)?);
                for_each_key(&key_columns(table, &rows)?, |row, key| {
                    own.comes.insert(key.into(), (number, row));
                })?;
                own.rows.push(rows);
            }
            Write::Staged { segments, .. } => own.staged.extend(segments.iter().cloned()),
        }
        Ok(())
    }

    /// Forgets what statements from this one on changed.
    ///
    /// # Errors
    /// None is expected.
    pub fn forget_from(&mut self, statement: u64) -> Result<()> {
        let kept = self.steps.partition_point(|step| step.statement < statement);
        if kept == self.steps.len() {
            return Ok(());
        }
        let mut steps = std::mem::take(&mut self.steps);
        steps.truncate(kept);
        *self = Self::default();
        steps
            .into_iter()
            .try_for_each(|step| self.add(step.statement, step.writes, step.bytes))
    }

    /// Of rows that a write removes: those that are committed rows, so that their present state must be checked; `None` when
    /// there are none.
    ///
    /// # Errors
    /// A column type that cannot be a key.
    pub fn committed(&self, write: &Write) -> Result<Option<Write>> {
        let Write::Removed { table, keys } = write else {
            return Ok(Some(write.clone()));
        };
        let Some(own) = self.tables.get(&table.id) else {
            return Ok(Some(write.clone()));
        };
        let others: Vec<At> = canonical_keys(keys.columns())?
            .iter()
            .enumerate()
            .filter(|(_, key)| !own.comes.contains_key(*key))
            .map(|(row, _)| (0, row))
            .collect();
        if others.is_empty() {
            return Ok(None);
        }
        Ok(Some(Write::Removed {
            table: table.clone(),
            keys: gather(std::slice::from_ref(keys), &others)?,
        }))
    }

    /// Adds the committed rows that go: their keys are free for new rows.
    pub fn add_going(&self, table: TableId, going: &mut Going) {
        if let Some(own) = self.tables.get(&table) {
            going.all |= own.truncated;
            going.keys.extend(own.goes.keys().cloned());
        }
    }

    /// The key among `keys` that a row of our own has, except for those that are `going`.
    pub fn conflict(&self, table: TableId, keys: &[Box<[u8]>], going: &Going) -> Option<usize> {
        let own = self.tables.get(&table).filter(|_| !going.all)?;
        keys.iter()
            .position(|key| own.comes.contains_key(key) && !going.keys.contains(key))
    }

    /// Files that come to a table.
    pub fn staged(&self, table: TableId) -> &[v1::SegmentRef] {
        self.tables.get(&table).map_or(&[], |own| &own.staged)
    }

    /// What is to be logged, table by table.
    ///
    /// # Errors
    /// None is expected.
    pub fn to_wire(&self) -> Result<Vec<v1::TableWrite>> {
        let mut out = vec![];
        for own in self.tables.values() {
            let removed = encode(&own.keys, own.goes.values())?;
            let rows = encode(&own.rows, own.comes.values())?;
            if rows.is_empty() && removed.is_empty() && own.staged.is_empty() && !own.truncated {
                continue;
            }
            let payload = match own.staged.is_empty() {
                false => Some(v1::table_write::Payload::Staged(v1::StagedSegments {
                    segments: own.staged.clone(),
                })),
                true => Some(v1::table_write::Payload::Rows(rows)).filter(|_| !own.comes.is_empty()),
            };
            out.push(v1::TableWrite {
                table: own.def.id.0,
                schema_version: own.def.version,
                payload,
                removed,
                truncated: own.truncated,
            });
        }
        Ok(out)
    }

    /// A table as this transaction sees it; `None` when it changed nothing there. Blocking: looks up where rows are.
    ///
    /// # Errors
    /// XX001 or 58030 when segments cannot be read.
    pub fn view(&self, store: &ShardStore, table: TableId) -> Result<Option<Arc<TableVersion>>> {
        let Some(own) = self.tables.get(&table) else {
            return Ok(None);
        };
        let mut version = match (own.truncated, own.goes.is_empty()) {
            (true, _) => TableVersion::default(),
            (false, true) => TableVersion::clone(&store.table_version(table)),
            (false, false) => {
                let keys = gather(&own.keys, &sorted(own.goes.values()))?;
                // A row that is gone by now was changed by somebody else: the commit will find that out.
                let (version, living) = store.locate(&own.def, keys.columns())?;
                let mut version = TableVersion::clone(&version);
                version.remove(&living, Timestamp(0));
                version
            }
        };
        for segment in &own.staged {
            let segment: Arc<Segment> = store.open_staged(table, segment, Timestamp(0))?;
            version.segments.push(segment);
        }
        if !own.comes.is_empty() {
            let rows = gather(&own.rows, &sorted(own.comes.values()))?;
            let first = version.next_position;
            version.next_position += rows.num_rows() as u64;
            // As if all before were being sealed: chunks of others are not copied together with ours.
            let frozen = version.chunks.len();
            delta::push(&mut version.chunks, frozen, first, rows, Timestamp(0))?;
        }
        Ok(Some(Arc::new(version)))
    }

    /// Rows by key, as [`ShardStore::point_read`] gives them, with our own in the place of committed ones; those in files
    /// come first.
    ///
    /// # Errors
    /// Those of [`ShardStore::point_read`].
    pub fn point_read(
        &self,
        store: &ShardStore,
        def: &TableDef,
        ts: Timestamp,
        keys: &RecordBatch,
        projection: &[usize],
        access: Access,
    ) -> Result<Option<RecordBatch>> {
        let mut found = vec![];
        if let Some(own) = self.tables.get(&def.id).filter(|own| !own.staged.is_empty()) {
            let mut staged = TableVersion::default();
            for segment in &own.staged {
                staged.segments.push(store.open_staged(def.id, segment, Timestamp(0))?);
            }
            let keys = locate::in_delta(keys.columns(), None)?;
            match point_read::read(def, &staged, ts, &keys, projection, access)? {
                Some(rows) => found.push(rows),
                None => return Ok(None),
            }
        }
        for (row, key) in canonical_keys(keys.columns())?.iter().enumerate() {
            match self.row(def.id, key) {
                Some(own) => found.extend(own.map(|own| point_read::shape(def, projection, &own)).transpose()?),
                None => match store.point_read(def, ts, &keys.slice(row, 1), projection, access)? {
                    Some(rows) => found.push(rows),
                    None => return Ok(None),
                },
            }
        }
        let schema = point_read::result_schema(def, projection)?;
        let rows = concat_batches(&schema, &found).map_err(|e| Error::internal(e.to_string()))?;
        Ok(Some(rows))
    }

    /// The row with this key among our own: `Some(None)` when it is gone, `None` when we did not touch it.
    fn row(&self, table: TableId, key: &[u8]) -> Option<Option<RecordBatch>> {
        let own = self.tables.get(&table)?;
        match (own.comes.get(key), own.truncated || own.goes.contains_key(key)) {
            (Some((batch, row)), _) => Some(Some(own.rows[*batch].slice(*row, 1))),
            (None, true) => Some(None),
            (None, false) => None,
        }
    }
}

/// In the order they came.
fn sorted<'a>(rows: impl Iterator<Item = &'a At>) -> Vec<At> {
    let mut rows: Vec<At> = rows.copied().collect();
    rows.sort_unstable();
    rows
}

fn gather(batches: &[RecordBatch], rows: &[At]) -> Result<RecordBatch> {
    let batches: Vec<&RecordBatch> = batches.iter().collect();
    interleave_record_batch(&batches, rows).map_err(|e| Error::internal(format!("gathering rows: {e}")))
}

fn encode<'a>(batches: &[RecordBatch], rows: impl Iterator<Item = &'a At>) -> Result<bytes::Bytes> {
    let rows = sorted(rows);
    if rows.is_empty() {
        return Ok(bytes::Bytes::new());
    }
    let whole = gather(batches, &rows)?;
    ipc::encode(&whole.schema(), &[whole])
}

#[cfg(test)]
mod tests;
