//! A meta store in memory.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tessera_meta::{Change, Entry, Expect, MetaStore, Op, Outcome};
use tessera_proto::Result;

type Values = BTreeMap<String, (Vec<u8>, u64)>;

/// Everything in a map.
#[derive(Debug, Default)]
pub(crate) struct MemoryMeta {
    /// Values with their revisions, and the store's revision.
    state: Mutex<(Values, u64)>,
}

impl MemoryMeta {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }
}

#[async_trait::async_trait]
impl MetaStore for MemoryMeta {
    async fn range(&self, prefix: &str) -> Result<(Vec<Entry>, u64)> {
        let state = self.state.lock();
        let entry = |(key, (value, revision)): (&String, &(Vec<u8>, u64))| Entry {
            key: key.clone(),
            value: value.clone(),
            revision: *revision,
        };
        Ok((
            state
                .0
                .iter()
                .filter(|(k, _)| k.starts_with(prefix))
                .map(entry)
                .collect(),
            state.1,
        ))
    }

    async fn cas(&self, ops: Vec<Op>) -> Result<Outcome> {
        let mut state = self.state.lock();
        let holds = ops.iter().all(|op| match (op.expect, state.0.get(&op.key)) {
            (Expect::Any, _) | (Expect::Absent, None) => true,
            (Expect::Revision(r), Some((_, revision))) => r == *revision,
            _ => false,
        });
        if !holds {
            return Ok(Outcome {
                applied: false,
                revision: state.1,
            });
        }
        state.1 += 1;
        let revision = state.1;
        for op in ops {
            match op.change {
                Change::Check => {}
                Change::Put(value) => drop(state.0.insert(op.key, (value, revision))),
                Change::Delete => drop(state.0.remove(&op.key)),
            }
        }
        Ok(Outcome {
            applied: true,
            revision,
        })
    }

    async fn wait(&self, after: u64, timeout: Duration) -> Result<u64> {
        let revision = self.state.lock().1;
        if revision <= after {
            // The tests' clock is paused or nobody waits for it.
            tokio::time::sleep(timeout).await;
        }
        Ok(self.state.lock().1)
    }
}
