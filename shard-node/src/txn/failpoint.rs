//! Named places at which a test may stop the world: between every two steps of a commit or a compaction.
//!
//! ```text
//!   commit.before_draw  commit.before_propose  commit.after_apply  prepare.before_propose  prepare.after_apply
//!   finish.before_propose  finish.after_apply  outcome.before_tombstone  apply.before_rows  apply.after_rows
//!   compact.before_manifest  compact.after_manifest
//! ```
//!
//! Always compiled, so that what is tested is what runs; without a hook a point costs one relaxed load.

use parking_lot::RwLock;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tessera_proto::Result;

/// Called at each point; an error ends the step there, as if the process had died.
pub type Hook = dyn Fn(&'static str) -> Result<()> + Send + Sync;

/// The failpoints of one node.
#[derive(Default)]
pub struct Failpoints {
    enabled: AtomicBool,
    hook: RwLock<Option<Arc<Hook>>>,
}

impl Failpoints {
    /// Installs a hook, or removes it.
    pub fn set(&self, hook: Option<Arc<Hook>>) {
        self.enabled.store(hook.is_some(), Ordering::SeqCst);
        *self.hook.write() = hook;
    }

    /// A point.
    ///
    /// # Errors
    /// Only the hook's.
    pub fn hit(&self, point: &'static str) -> Result<()> {
        if !self.enabled.load(Ordering::Relaxed) {
            return Ok(());
        }
        let hook = self.hook.read().clone();
        hook.map_or(Ok(()), |hook| hook(point))
    }
}

impl fmt::Debug for Failpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failpoints").field("enabled", &self.enabled).finish()
    }
}
