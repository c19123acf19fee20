//! Which peers are alive, from heartbeats; and whether this node may still serve reads as a leader.
//!
//! ```text
//!   A ──Beat(seq 7, sent at 10.0 s)──▶ B      B may not promote itself over A before 10.0 s + grace (it heard A then)
//!   A ◀──────reply(seq 7)─────────── B      A's lease on B runs until 10.0 s + lease, counted from *sending*
//! ```
//!
//! grace > lease, so A stops serving before B can lead. One heartbeat a node pair carries all shards. Writes never
//! depend on this: they need B's durable acknowledgement. Not done: `CLOCK_BOOTTIME`; a machine that was suspended must
//! be treated as restarted by its operator, because the monotonic clock stands still meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tessera_proto::NodeId;

/// Beats remembered per peer: 5 s at the default interval; older replies extend nothing.
const BEATS_MAX: usize = 25;

/// Heartbeat intervals.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTimings {
    /// Between beats.
    pub beat: Duration,
    /// How long a reply keeps a lease, from the beat's sending.
    pub lease: Duration,
    /// How long a follower waits after it last heard the leader. Above `lease` by clock drift and delays.
    pub grace: Duration,
}

impl Default for LeaseTimings {
    fn default() -> Self {
        Self {
            beat: Duration::from_millis(200),
            lease: Duration::from_millis(1_200),
            grace: Duration::from_millis(1_600),
        }
    }
}

/// Leases of this node with all its peers.
#[derive(Debug)]
pub struct Leases {
    timings: LeaseTimings,
    /// Nothing heard before the start counts as heard at the start: another process may have replied in our name.
    started: Duration,
    boot: u64,
    sequence: u64,
    sent: BTreeMap<NodeId, VecDeque<(u64, Duration)>>,
    until: BTreeMap<NodeId, Duration>,
    heard: BTreeMap<NodeId, Duration>,
}

impl Leases {
    /// No peer is alive yet. `boot` tells this start's beats from those of earlier ones.
    pub fn new(timings: LeaseTimings, now: Duration, boot: u64) -> Self {
        let (sent, until, heard) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self {
            timings,
            started: now,
            boot,
            sequence: 0,
            sent,
            until,
            heard,
        }
    }

    /// Sequence number of a beat to send to a peer now.
    pub fn beat(&mut self, peer: NodeId, now: Duration) -> u64 {
        self.sequence += 1;
        let sent = self.sent.entry(peer).or_default();
        sent.push_back((self.sequence, now));
        if sent.len() > BEATS_MAX {
            sent.pop_front();
        }
        self.sequence
    }

    /// A peer's own beat arrived.
    pub fn heard(&mut self, peer: NodeId, now: Duration) {
        self.heard.insert(peer, now);
    }

    /// A peer answered a beat.
    pub fn answered(&mut self, peer: NodeId, boot: u64, sequence: u64) {
        let sent = self
            .sent
            .get(&peer)
            .and_then(|s| s.iter().find(|(q, _)| *q == sequence));
        if let Some((_, at)) = sent.filter(|_| boot == self.boot) {
            let until = self.until.entry(peer).or_default();
            *until = (*until).max(*at + self.timings.lease);
        }
    }

    /// Whether the lease with this peer is valid: it cannot have promoted itself over this node.
    pub fn holds(&self, peer: NodeId, now: Duration) -> bool {
        self.until.get(&peer).is_some_and(|until| now < *until)
    }

    /// Peers with a valid lease.
    pub fn alive(&self, now: Duration) -> Vec<NodeId> {
        self.until
            .iter()
            .filter(|(_, until)| now < **until)
            .map(|(n, _)| *n)
            .collect()
    }

    /// Whether the grace has passed since this peer was last heard, so that it surely serves nothing any more.
    pub fn may_replace(&self, peer: NodeId, now: Duration) -> bool {
        let heard = self.heard.get(&peer).copied().unwrap_or(self.started);
        now.saturating_sub(heard) > self.timings.grace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_before_the_peer_may_take_over() {
        let ms = Duration::from_millis;
        let (a, b) = (NodeId(1), NodeId(2));
        let mut on_a = Leases::new(LeaseTimings::default(), ms(0), 9);
        let mut on_b = Leases::new(LeaseTimings::default(), ms(0), 5);
        assert!(!on_a.holds(b, ms(0)) && !on_b.may_replace(a, ms(1_600)));
        let sequence = on_a.beat(b, ms(1_000));
        on_b.heard(a, ms(1_300));
        on_a.answered(b, 9, sequence);
        assert!(on_a.holds(b, ms(2_199)) && !on_a.holds(b, ms(2_200)));
        assert!(!on_b.may_replace(a, ms(2_900)) && on_b.may_replace(a, ms(2_901)));
        // A reply to an earlier start of this process extends nothing.
        let sequence = on_a.beat(b, ms(3_000));
        on_a.answered(b, 8, sequence);
        assert!(!on_a.holds(b, ms(3_000)) && on_a.alive(ms(3_000)).is_empty());
    }
}
