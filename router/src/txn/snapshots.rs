//! Which snapshots this router reads at just now: the nodes keep what the oldest of them sees.
//!
//! ```text
//!   statement    hold() ── before its timestamp is drawn ──▶ at(S) ─────────────▶ dropped with its last row
//!   poll         now drawn ──▶ oldest(now) = min(held, now) ──▶ every node (StatusRequest.running)
//! ```
//!
//! Nothing that begins after `oldest` was computed reads below its answer. A statement that has not drawn its timestamp yet holds the
//! last answer given, which is below whatever it draws; one that comes later draws a timestamp above `now`. So a statement whose
//! timestamp is known to nobody for a moment is never forgotten.
//!
//! Not here: tickets of Flight SQL, which a client may redeem for as long as the usual retention.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tessera_proto::Timestamp;

/// See the module. A clone is the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshots(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// How many hold each.
    held: BTreeMap<Timestamp, usize>,
    /// The last answer given.
    told: Timestamp,
}

impl State {
    fn add(&mut self, at: Timestamp) {
        *self.held.entry(at).or_default() += 1;
    }

    fn remove(&mut self, at: Timestamp) {
        if let Some(count) = self.held.get_mut(&at) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(&at);
            }
        }
    }
}

/// A snapshot that is read at until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    snapshots: Snapshots,
    at: Timestamp,
}

impl Snapshots {
    /// Holds what is about to be drawn.
    pub(crate) fn hold(&self) -> Held {
        let mut state = self.0.lock();
        let at = state.told;
        state.add(at);
        Held {
            snapshots: self.clone(),
            at,
        }
    }

    /// Holds a snapshot that is known; an old one may be gone already.
    pub(crate) fn hold_at(&self, at: Timestamp) -> Held {
        let mut held = self.hold();
        held.at(at);
        held
    }

    /// The oldest that is read at now, or will be from now on; `now` was just drawn.
    pub(crate) fn oldest(&self, now: Timestamp) -> Timestamp {
        let mut state = self.0.lock();
        let oldest = state.held.keys().next().map_or(now, |held| now.min(*held));
        state.told = oldest;
        oldest
    }
}

impl Held {
    /// It is this one.
    pub(crate) fn at(&mut self, at: Timestamp) {
        let mut state = self.snapshots.0.lock();
        state.remove(self.at);
        state.add(at);
        drop(state);
        self.at = at;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.snapshots.0.lock().remove(self.at);
    }
}

/// What one statement holds. A clone is the same, and lives as long as the statement's rows are read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holds(Arc<Mutex<Vec<Held>>>);

impl Holds {
    /// Adds one.
    pub(crate) fn add(&self, held: Held) {
        let mut all = self.0.lock();
        if !all.iter().any(|other| other.at == held.at) {
            all.push(held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_never_above_what_is_read() {
        let snapshots = Snapshots::default();
        assert_eq!(snapshots.oldest(Timestamp(10)), Timestamp(10));
        // Between its beginning and its timestamp it holds what was told before.
        let mut first = snapshots.hold();
        assert_eq!(snapshots.oldest(Timestamp(20)), Timestamp(10));
        first.at(Timestamp(15));
        assert_eq!(snapshots.oldest(Timestamp(30)), Timestamp(15));
        let old = snapshots.hold_at(Timestamp(3));
        let again = snapshots.hold_at(Timestamp(3));
        drop(old);
        assert_eq!(snapshots.oldest(Timestamp(31)), Timestamp(3));
        drop((first, again));
        assert_eq!(snapshots.oldest(Timestamp(32)), Timestamp(32));
        assert!(snapshots.0.lock().held.is_empty());
    }

    #[test]
    fn a_statement_holds_until_its_last_clone_goes() {
        let snapshots = Snapshots::default();
        let holds = Holds::default();
        (0..3).for_each(|_| holds.add(snapshots.hold_at(Timestamp(7))));
        assert_eq!(snapshots.0.lock().held.get(&Timestamp(7)), Some(&1));
        let rows = holds.clone();
        drop(holds);
        assert_eq!(snapshots.oldest(Timestamp(9)), Timestamp(7));
        drop(rows);
        assert_eq!(snapshots.oldest(Timestamp(9)), Timestamp(9));
    }
}
