//! Cancel requests: they come on a connection of their own and name a statement's connection by number and secret.
//!
//! ```text
//!   connection 7 ── BackendKeyData(7, secret) ──▶ client
//!   connection 7: begin(token) ... statement runs, rows stream ... end
//!   other connection ── CancelRequest(7, secret) ──▶ token.cancel()
//! ```
//!
//! A wrong secret and a finished statement are ignored without an answer, as the protocol asks: the sender learns nothing.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// All connections that can be cancelled. Bounded by the number of connections.
#[derive(Debug, Default)]
pub(super) struct CancelRegistry {
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    next: i32,
    by_number: HashMap<i32, Slot>,
}

#[derive(Debug)]
struct Slot {
    secret: i32,
    running: Option<CancellationToken>,
}

impl CancelRegistry {
    /// Gives a connection its number and secret, until the key is dropped.
    pub(super) fn register(self: &Arc<Self>) -> CancelKey {
        let secret = rand::random();
        let mut slots = self.slots.lock();
        loop {
            // Positive and never 0, so that it looks like a process id. Free numbers abound: connections are few.
            slots.next = slots.next.checked_add(1).unwrap_or(1);
            let number = slots.next;
            if let Entry::Vacant(free) = slots.by_number.entry(number) {
                free.insert(Slot { secret, running: None });
                return CancelKey {
                    registry: Arc::clone(self),
                    number,
                    secret,
                };
            }
        }
    }

    /// Handles a cancel request.
    pub(super) fn cancel(&self, number: i32, secret: i32) {
        let slots = self.slots.lock();
        if let Some(slot) = slots.by_number.get(&number)
            && slot.secret == secret
            && let Some(running) = &slot.running
        {
            running.cancel();
        }
    }
}

/// One connection's place in the registry.
#[derive(Debug)]
pub(super) struct CancelKey {
    registry: Arc<CancelRegistry>,
    /// The number clients know as the backend's process id.
    pub(super) number: i32,
    /// What a cancel request must know.
    pub(super) secret: i32,
}

impl CancelKey {
    /// From now on a cancel request fires `token`.
    pub(super) fn begin(&self, token: CancellationToken) {
        self.set(Some(token));
    }

    /// From now on there is nothing to cancel.
    pub(super) fn end(&self) {
        self.set(None);
    }

    fn set(&self, token: Option<CancellationToken>) {
        if let Some(slot) = self.registry.slots.lock().by_number.get_mut(&self.number) {
            slot.running = token;
        }
    }
}

impl Drop for CancelKey {
    fn drop(&mut self) {
        self.registry.slots.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_secret_cancels_and_only_what_runs() {
        let registry = Arc::new(CancelRegistry::default());
        let (key, other) = (registry.register(), registry.register());
        assert_ne!(key.number, other.number);
        registry.cancel(key.number, key.secret);
        let token = CancellationToken::new();
        key.begin(token.clone());
        registry.cancel(key.number, key.secret.wrapping_add(1));
        registry.cancel(other.number, other.secret);
        assert!(!token.is_cancelled());
        registry.cancel(key.number, key.secret);
        assert!(token.is_cancelled());
        let late = CancellationToken::new();
        key.begin(late.clone());
        key.end();
        registry.cancel(key.number, key.secret);
        assert!(!late.is_cancelled());
    }
}
