//! The keys in memory, and changes staged on top of them until they are durable.
//!
//! ```text
//!   State  { /a → "1" @7, /b → "2" @9 }  revision 9         what readers see
//!   Staged { /a → "5" @10, /b → gone }   revision 10        compares see this first, then the state
//! ```

use crate::limits::STORE_BYTES_MAX;
use crate::{Change, Entry, Expect, Op, Outcome};
use std::collections::BTreeMap;
use tessera_proto::{Error, Result};

/// A value and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) value: Vec<u8>,
    pub(super) revision: u64,
}

/// All keys, as of the last barrier.
#[derive(Debug, Default)]
pub(super) struct State {
    entries: BTreeMap<String, Stored>,
    revision: u64,
    /// Keys and values together.
    bytes: usize,
}

impl State {
    /// What was read from disk.
    pub(super) fn new(entries: BTreeMap<String, Stored>, revision: u64) -> Self {
        let bytes = entries.iter().map(|(key, stored)| size(key, stored)).sum();
        Self {
            entries,
            revision,
            bytes,
        }
    }

    /// The store's revision.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Entries below a prefix, ascending, and the store's revision.
    pub(super) fn range(&self, prefix: &str) -> (Vec<Entry>, u64) {
        let from = self
            .entries
            .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded));
        let entries = from
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, stored)| Entry {
                key: key.clone(),
                value: stored.value.clone(),
                revision: stored.revision,
            })
            .collect();
        (entries, self.revision)
    }

    /// Takes over what was staged on this very state.
    pub(super) fn apply(&mut self, staged: Staged) {
        for (key, stored) in staged.changes {
            match stored {
                Some(stored) => self.entries.insert(key, stored),
                None => self.entries.remove(&key),
            };
        }
        self.revision = staged.revision;
        self.bytes = staged.bytes;
    }
}

fn size(key: &str, stored: &Stored) -> usize {
    key.len() + stored.value.len()
}

/// Changes of one group of compare-and-swaps; later ones of the group see earlier ones.
#[derive(Debug)]
pub(super) struct Staged {
    changes: BTreeMap<String, Option<Stored>>,
    revision: u64,
    bytes: usize,
}

impl Staged {
    /// Nothing yet.
    pub(super) fn new(state: &State) -> Self {
        Self {
            changes: BTreeMap::new(),
            revision: state.revision,
            bytes: state.bytes,
        }
    }

    /// Revision after these changes.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Keys to write (`Some`) or to remove (`None`).
    pub(super) fn changes(&self) -> &BTreeMap<String, Option<Stored>> {
        &self.changes
    }

    /// Compares, and stages the changes if everything holds. Without changes the revision stays.
    ///
    /// # Errors
    /// 54000 when the store would grow beyond its limit.
    pub(super) fn cas(&mut self, state: &State, ops: Vec<Op>) -> Result<Outcome> {
        if !ops.iter().all(|op| self.holds(state, op)) {
            return Ok(Outcome {
                applied: false,
                revision: self.revision,
            });
        }
        let bytes = self.bytes_after(state, &ops);
        if bytes > STORE_BYTES_MAX && bytes > self.bytes {
            return Err(Error::new(
                "54000",
                format!("the meta store is limited to {STORE_BYTES_MAX} bytes"),
            ));
        }
        self.bytes = bytes;
        self.revision += u64::from(ops.iter().any(|op| op.change != Change::Check));
        for op in ops {
            let stored = match op.change {
                Change::Check => continue,
                Change::Put(value) => Some(Stored {
                    value,
                    revision: self.revision,
                }),
                Change::Delete => None,
            };
            self.changes.insert(op.key, stored);
        }
        Ok(Outcome {
            applied: true,
            revision: self.revision,
        })
    }

    fn get<'a>(&'a self, state: &'a State, key: &str) -> Option<&'a Stored> {
        match self.changes.get(key) {
            Some(staged) => staged.as_ref(),
            None => state.entries.get(key),
        }
    }

    fn holds(&self, state: &State, op: &Op) -> bool {
        let revision = self.get(state, &op.key).map(|stored| stored.revision);
        match op.expect {
            Expect::Any => true,
            Expect::Absent => revision.is_none(),
            Expect::Revision(expected) => revision == Some(expected),
        }
    }

    fn bytes_after(&self, state: &State, ops: &[Op]) -> usize {
        let changed = |op: &&Op| op.change != Change::Check;
        let old: usize = ops
            .iter()
            .filter(changed)
            .filter_map(|op| Some(size(&op.key, self.get(state, &op.key)?)))
            .sum();
        let new: usize = ops
            .iter()
            .filter(|op| matches!(op.change, Change::Put(_)))
            .map(crate::limits::op_bytes)
            .sum();
        self.bytes - old + new
    }
}
