//! The leader's side of replication: send, count acknowledgements, commit, and keep the configuration true.
//!
//! ```text
//!   tail   17 18 19 20 21        entries not yet committed everywhere; older ones are read back from the log
//!   peer A matched 19, next 22   (20, 21 under way)
//!   learner B: close enough ─▶ wait for its acks as if in sync ─▶ compare-and-swap it in
//! ```

use super::follower::MESSAGE_ENTRIES_BYTES_MAX;
use super::log_shape::{LogShape, Position};
use super::message::*;
use super::state::{Follower, ReplicaState, Role};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tessera_proto::shard_map::ShardConfig;
use tessera_proto::{Epoch, LogIndex, ReplicaId};

/// A learner this close to the end may join: what remains is under way anyway.
const JOIN_LAG_ENTRIES_MAX: u64 = 64;

/// State of a leader.
#[derive(Debug)]
pub(super) struct Leader {
    pub epoch: Epoch,
    peers: BTreeMap<ReplicaId, Peer>,
    tail: VecDeque<Entry>,
    joining: Option<ReplicaId>,
    switching: Option<Switch>,
}

#[derive(Debug)]
struct Switch {
    token: u64,
    target: ReplicaId,
    since: Duration,
    /// The compare-and-swap was sent: nothing may be served until its outcome is known.
    decided: bool,
}

#[derive(Debug)]
struct Peer {
    flow: Flow,
    /// Acknowledgements of earlier epochs do not count: they may be of a disk that has lost the entries since.
    since: Epoch,
    next: LogIndex,
    matched: LogIndex,
    /// (last index, bytes) of Appends under way.
    in_flight: VecDeque<(LogIndex, usize)>,
    reading: bool,
    sent_commit: LogIndex,
    known_commit: LogIndex,
    heard: Duration,
    /// Since when something is unacknowledged without progress.
    waiting: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Its log must be asked for.
    Unknown,
    Probing {
        asked: Duration,
    },
    Streaming,
    Snapshot {
        offered: Duration,
    },
}

impl Peer {
    fn new(now: Duration, since: Epoch) -> Self {
        Self {
            flow: Flow::Unknown,
            since,
            next: LogIndex(0),
            matched: LogIndex(0),
            in_flight: VecDeque::new(),
            reading: false,
            sent_commit: LogIndex(0),
            known_commit: LogIndex(0),
            heard: now,
            waiting: None,
        }
    }

    fn lose(&mut self) {
        self.flow = Flow::Unknown;
        self.in_flight.clear();
        self.reading = false;
    }

    /// Nothing is known of its log any more.
    fn forget(&mut self, since: Epoch) {
        self.lose();
        (self.since, self.matched, self.waiting) = (since, LogIndex(0), None);
    }

    fn stream_from(&mut self, common: LogIndex) {
        self.lose();
        self.flow = Flow::Streaming;
        (self.matched, self.next) = (common, LogIndex(common.0 + 1));
        self.sent_commit = LogIndex(0);
    }

    fn in_flight_bytes(&self) -> usize {
        self.in_flight.iter().map(|(_, b)| b).sum()
    }
}

impl ReplicaState {
    /// All in-sync logs are known and none is longer: the epoch begins.
    pub(super) fn start_leading(&mut self, epoch: Epoch, shapes: BTreeMap<ReplicaId, LogShape>) {
        let mut peers = BTreeMap::new();
        for (replica, shape) in shapes {
            let mut peer = Peer::new(self.now, epoch);
            if let Some(common) = self.log.common(&shape) {
                peer.stream_from(common);
            }
            peers.insert(replica, peer);
        }
        let leader = Leader {
            epoch,
            peers,
            tail: VecDeque::new(),
            joining: None,
            switching: None,
        };
        self.become_role(Role::Leading(leader));
        let start = self.append_own(vec![(EPOCH_START, Bytes::new())]);
        self.effects.push(Effect::Leads { epoch, start });
    }

    /// The configuration changed by one epoch and still names this leader: its log stands, and what peers acknowledged
    /// unless `forgotten`.
    pub(super) fn lead_on(&mut self, epoch: Epoch, forgotten: impl Fn(ReplicaId) -> bool) {
        let Role::Leading(leader) = &mut self.role else { return };
        leader.epoch = epoch;
        // No compare-and-swap of an older revision can succeed any more, so a learner that is not in now will not be.
        leader.joining = None;
        for (_, peer) in leader.peers.iter_mut().filter(|(r, _)| forgotten(**r)) {
            peer.forget(epoch);
        }
        if leader.switching.take().is_some_and(|s| s.decided) {
            self.effects.push(Effect::Pause(false));
        }
        self.promise(epoch);
        self.effects.push(Effect::LeadsOn { epoch });
    }

    fn append_own(&mut self, payloads: Vec<(u8, Bytes)>) -> LogIndex {
        let last = self.log.last().index;
        let Role::Leading(leader) = &mut self.role else {
            return last;
        };
        let entries: Vec<_> = payloads
            .into_iter()
            .zip(last.0 + 1..)
            .map(|((kind, payload), index)| Entry {
                at: Position {
                    epoch: leader.epoch,
                    index: LogIndex(index),
                },
                kind,
                payload,
            })
            .collect();
        leader.tail.extend(entries.iter().cloned());
        self.append(entries, None);
        self.log.last().index
    }

    pub(super) fn on_propose(&mut self, token: u64, entries: Vec<(u8, Bytes)>) {
        let takes = matches!(&self.role, Role::Leading(l) if l.switching.is_none()) && !entries.is_empty();
        if !takes {
            return self.effects.push(Effect::Rejected { token });
        }
        let last = self.append_own(entries);
        self.effects.push(Effect::Accepted { token, last });
    }

    // ---- peers' answers

    pub(super) fn on_shape(&mut self, from: ReplicaId, epoch: Epoch, log: LogShape, wants_snapshot: bool) {
        self.on_recovery_shape(from, epoch, log.clone(), wants_snapshot);
        let (now, retry, common) = (self.now, self.timings.retry, self.log.common(&log));
        let Some(peer) = self.peer(from, epoch) else { return };
        if !matches!(peer.flow, Flow::Probing { .. } | Flow::Snapshot { .. }) {
            return;
        }
        match common.filter(|_| !wants_snapshot) {
            Some(common) => peer.stream_from(common),
            // What was offered failed at once, and would again: `tick_leader` asks later.
            None if matches!(peer.flow, Flow::Snapshot { offered } if now.saturating_sub(offered) < retry) => {}
            None => {
                peer.flow = Flow::Snapshot { offered: now };
                self.send(from, Message::Offer { epoch });
            }
        }
    }

    /// The peer, when this leads in exactly that epoch.
    fn peer(&mut self, from: ReplicaId, epoch: Epoch) -> Option<&mut Peer> {
        let now = self.now;
        match &mut self.role {
            Role::Leading(leader) if leader.epoch == epoch => {
                let peer = leader.peers.get_mut(&from)?;
                peer.heard = now;
                Some(peer)
            }
            _ => None,
        }
    }

    pub(super) fn on_ack(&mut self, from: ReplicaId, epoch: Epoch, durable: LogIndex, commit: LogIndex) {
        let (now, last) = (self.now, self.log.last().index);
        let Role::Leading(leader) = &mut self.role else { return };
        if epoch > leader.epoch || durable > last {
            return;
        }
        let Some(peer) = leader.peers.get_mut(&from).filter(|p| epoch >= p.since) else {
            return;
        };
        peer.heard = now;
        peer.known_commit = peer.known_commit.max(commit);
        if durable > peer.matched {
            peer.matched = durable;
            peer.waiting = (durable < last).then_some(now);
        }
        while peer.in_flight.front().is_some_and(|(index, _)| *index <= peer.matched) {
            peer.in_flight.pop_front();
        }
    }

    pub(super) fn on_nack(&mut self, from: ReplicaId, promised: Epoch) {
        let deposed = match &mut self.role {
            Role::Recovering(recovery) => promised > recovery.epoch,
            Role::Leading(leader) => {
                if let Some(peer) = leader.peers.get_mut(&from).filter(|p| p.flow == Flow::Streaming) {
                    peer.lose();
                }
                promised > leader.epoch
            }
            _ => false,
        };
        if deposed {
            self.effects.push(Effect::RefreshConfig);
        }
    }

    pub(super) fn on_read_for_peer(&mut self, to: ReplicaId, entries: Vec<Entry>) {
        let now = self.now;
        let Role::Leading(leader) = &mut self.role else { return };
        let epoch = leader.epoch;
        let Some(peer) = leader.peers.get_mut(&to).filter(|p| p.reading) else {
            return;
        };
        peer.reading = false;
        match entries.first() {
            Some(first) if first.at.index == peer.next => self.send_entries(to, entries),
            Some(_) => {}
            None => {
                peer.flow = Flow::Snapshot { offered: now };
                self.send(to, Message::Offer { epoch });
            }
        }
    }

    pub(super) fn on_peer_lost(&mut self, node: tessera_proto::NodeId) {
        if let Role::Leading(leader) = &mut self.role {
            leader
                .peers
                .iter_mut()
                .filter(|(r, _)| r.node == node)
                .for_each(|(_, p)| p.lose());
        }
    }

    // ---- sending

    fn send_entries(&mut self, to: ReplicaId, entries: Vec<Entry>) {
        let commit = self.commit;
        let Role::Leading(leader) = &mut self.role else { return };
        let epoch = leader.epoch;
        let Some(peer) = leader.peers.get_mut(&to) else { return };
        let before = LogIndex(peer.next.0 - 1);
        let Some(prev_epoch) = self.log.epoch_at(before) else {
            peer.flow = Flow::Snapshot { offered: self.now };
            return self.send(to, Message::Offer { epoch });
        };
        peer.next = LogIndex(peer.next.0 + entries.len() as u64);
        peer.sent_commit = commit;
        if let Some(last) = entries.last() {
            peer.in_flight
                .push_back((last.at.index, entries.iter().map(Entry::bytes).sum()));
            peer.waiting.get_or_insert(self.now);
        }
        let prev = Position {
            epoch: prev_epoch,
            index: before,
        };
        self.send(
            to,
            Message::Append {
                epoch,
                prev,
                entries,
                commit,
            },
        );
    }

    /// Fills the peer's window.
    fn pump(&mut self, to: ReplicaId) {
        loop {
            let last = self.log.last().index;
            let Role::Leading(leader) = &mut self.role else { return };
            let Some(peer) = leader.peers.get_mut(&to) else { return };
            if peer.flow != Flow::Streaming || peer.reading || peer.next > last {
                return;
            }
            let room = self.timings.window_bytes.saturating_sub(peer.in_flight_bytes());
            if room == 0 {
                return;
            }
            let tail_start = leader.tail.front().map_or(last.0 + 1, |e| e.at.index.0);
            if peer.next.0 < tail_start {
                peer.reading = true;
                let bytes_max = room.min(MESSAGE_ENTRIES_BYTES_MAX);
                return self.effects.push(Effect::ReadLog {
                    peer: to,
                    from: peer.next,
                    bytes_max,
                });
            }
            let entries = chunk(leader.tail.iter().skip((peer.next.0 - tail_start) as usize), room);
            self.send_entries(to, entries);
        }
    }

    pub(super) fn settle_leader(&mut self) {
        if !matches!(self.role, Role::Leading(_)) {
            return;
        }
        self.follow_config();
        self.advance_commit();
        if self.promise_is_durable() {
            for peer in self.peer_ids() {
                self.probe(peer);
                self.pump(peer);
                self.tell_commit(peer);
            }
        }
        self.keep_config_true();
        self.settle_switch();
    }

    fn peer_ids(&self) -> Vec<ReplicaId> {
        match &self.role {
            Role::Leading(leader) => leader.peers.keys().copied().collect(),
            _ => Vec::new(),
        }
    }

    fn follow_config(&mut self) {
        let (Role::Leading(leader), Some(config)) = (&mut self.role, &self.config) else {
            return;
        };
        let (me, now, epoch) = (self.me, self.now, leader.epoch);
        leader.peers.retain(|r, _| config.replicas().any(|c| c == *r));
        for replica in config.replicas().filter(|r| *r != me) {
            leader.peers.entry(replica).or_insert_with(|| Peer::new(now, epoch));
        }
    }

    fn probe(&mut self, to: ReplicaId) {
        let now = self.now;
        let Role::Leading(leader) = &mut self.role else { return };
        let epoch = leader.epoch;
        if let Some(peer) = leader.peers.get_mut(&to).filter(|p| p.flow == Flow::Unknown) {
            peer.flow = Flow::Probing { asked: now };
            self.send(to, Message::Probe { epoch });
        }
    }

    /// An empty Append when there is nothing else to carry the commit index.
    fn tell_commit(&mut self, to: ReplicaId) {
        let (commit, last) = (self.commit, self.log.last().index);
        let Role::Leading(leader) = &mut self.role else { return };
        let news = |p: &&mut Peer| {
            p.flow == Flow::Streaming && p.sent_commit < commit && p.next > last && p.matched >= p.sent_commit
        };
        if leader.peers.get_mut(&to).filter(news).is_some() {
            self.send_entries(to, Vec::new());
        }
    }

    // ---- committing and the configuration

    /// Replicas whose acknowledgement an entry needs: the in-sync set, and whoever may already be in it.
    fn required(&self) -> Vec<ReplicaId> {
        let mut required = self.others_in_sync();
        if let Role::Leading(Leader {
            joining: Some(joining), ..
        }) = &self.role
        {
            required.push(*joining);
        }
        #[cfg(test)]
        match self.bug {
            Some(super::simulation::Bug::CommitAlone) => required.clear(),
            Some(super::simulation::Bug::JoinWithoutWaiting) => required = self.others_in_sync(),
            _ => {}
        }
        required
    }

    fn advance_commit(&mut self) {
        let required = self.required();
        let Role::Leading(leader) = &mut self.role else { return };
        let matched = required
            .iter()
            .map(|r| leader.peers.get(r).map_or(LogIndex(0), |p| p.matched));
        let commit = matched.chain([self.durable]).min().unwrap_or_default();
        if commit > self.commit {
            self.commit = commit;
        }
        let keep = self.commit;
        while leader.tail.front().is_some_and(|e| e.at.index <= keep) {
            leader.tail.pop_front();
        }
    }

    fn keep_config_true(&mut self) {
        if self.wanted_config().is_some() {
            return;
        }
        let Some(config) = self.config.clone() else { return };
        let replaced: Vec<_> = config
            .replicas()
            .filter(|r| self.disks.get(&r.node).is_some_and(|d| *d != r.disk) && *r != self.me)
            .collect();
        if !replaced.is_empty() {
            let disks = self.disks.clone();
            return self.change_config(|next| replace(next, &replaced, &disks));
        }
        let dead = self.dead_members();
        if !dead.is_empty() {
            return self.change_config(|next| {
                next.in_sync.retain(|r| !dead.contains(r));
                next.learners.extend(dead);
            });
        }
        self.settle_joining(&config);
    }

    fn dead_members(&self) -> Vec<ReplicaId> {
        let Role::Leading(leader) = &self.role else {
            return Vec::new();
        };
        let dead = |peer: &Peer| {
            // It lost entries that it had acknowledged: nothing may rest on it until a snapshot made it whole.
            matches!(peer.flow, Flow::Snapshot { .. })
                || self.now.saturating_sub(peer.heard) > self.timings.silent
                || peer
                    .waiting
                    .is_some_and(|since| self.now.saturating_sub(since) > self.timings.stall)
        };
        self.others_in_sync()
            .into_iter()
            .filter(|r| leader.peers.get(r).is_some_and(dead))
            .collect()
    }

    fn settle_joining(&mut self, config: &ShardConfig) {
        let (commit, last, now, silent) = (self.commit, self.log.last().index, self.now, self.timings.silent);
        let Role::Leading(leader) = &mut self.role else { return };
        let present = |p: &Peer| p.flow == Flow::Streaming && now.saturating_sub(p.heard) <= silent;
        let Some(joining) = leader.joining else {
            let close = |p: &Peer| present(p) && p.matched.0 + JOIN_LAG_ENTRIES_MAX >= last.0 && p.next > last;
            leader.joining = config
                .learners
                .iter()
                .copied()
                .find(|r| leader.peers.get(r).is_some_and(close));
            return;
        };
        match leader.peers.get(&joining) {
            Some(peer) if present(peer) => {
                if peer.matched >= commit {
                    self.change_config(|next| {
                        next.learners.retain(|r| *r != joining);
                        next.in_sync.push(joining);
                    });
                }
            }
            // No compare-and-swap for it is under way (checked by the caller), so it may be let go.
            _ => leader.joining = None,
        }
    }

    pub(super) fn tick_leader(&mut self) {
        let (now, timings, last, commit) = (self.now, self.timings, self.log.last().index, self.commit);
        let alive = &self.alive;
        let Role::Leading(leader) = &mut self.role else { return };
        for (replica, peer) in &mut leader.peers {
            if alive.contains(&replica.node) {
                peer.heard = now;
            }
            if peer.matched >= last {
                peer.waiting = None;
            }
            let old = |since: Duration| now.saturating_sub(since) >= timings.retry;
            match peer.flow {
                Flow::Probing { asked } if old(asked) => peer.flow = Flow::Unknown,
                Flow::Snapshot { offered } if now.saturating_sub(offered) >= timings.retry * 4 => {
                    peer.flow = Flow::Unknown
                }
                // An Append or its Ack was lost.
                Flow::Streaming if !peer.in_flight.is_empty() && peer.waiting.is_some_and(old) => peer.lose(),
                Flow::Streaming if peer.known_commit < commit && peer.next > last => peer.sent_commit = LogIndex(0),
                _ => {}
            }
        }
        self.tick_switch();
    }

    // ---- handing over

    pub(super) fn start_switch(&mut self, token: u64, target: ReplicaId) {
        let in_sync = self.others_in_sync();
        let now = self.now;
        match &mut self.role {
            Role::Leading(leader) if in_sync.contains(&target) && leader.switching.is_none() => {
                leader.switching = Some(Switch {
                    token,
                    target,
                    since: now,
                    decided: false,
                });
            }
            Role::Leading(leader) if leader.switching.is_some() => {
                self.refuse(token, "a hand-over is under way already")
            }
            Role::Leading(_) => self.refuse(token, "the new leader must be another in-sync copy"),
            _ => self.refuse(token, "this replica does not lead"),
        }
    }

    fn settle_switch(&mut self) {
        let (commit, last, free) = (self.commit, self.log.last().index, self.wanted_config().is_none());
        let Role::Leading(leader) = &mut self.role else { return };
        let Some(switch) = leader.switching.as_mut().filter(|s| !s.decided && free) else {
            return;
        };
        let drained = commit == last && leader.peers.get(&switch.target).is_some_and(|p| p.matched == last);
        if drained {
            switch.decided = true;
            let target = switch.target;
            self.effects.push(Effect::Pause(true));
            self.change_config(|config| config.leader = target);
        }
    }

    fn tick_switch(&mut self) {
        let (now, limit) = (self.now, self.timings.switch);
        let Role::Leading(leader) = &mut self.role else { return };
        if let Some(switch) = leader
            .switching
            .take_if(|s| !s.decided && now.saturating_sub(s.since) > limit)
        {
            self.refuse(switch.token, "the new leader did not catch up in time");
        }
    }

    /// Forgets leadership at once (the node is shutting down).
    pub fn resign(&mut self) -> Vec<Effect> {
        if matches!(self.role, Role::Leading(_) | Role::Recovering(_)) {
            self.become_role(Role::Follower(Follower::default()));
        }
        std::mem::take(&mut self.effects)
    }
}

/// A wiped disk is a new replica: the old one leaves, the new one begins as a learner.
fn replace(config: &mut ShardConfig, replaced: &[ReplicaId], disks: &BTreeMap<tessera_proto::NodeId, uuid::Uuid>) {
    config.in_sync.retain(|r| !replaced.contains(r));
    config.learners.retain(|r| !replaced.contains(r));
    for old in replaced {
        let new = disks.get(&old.node).map(|disk| ReplicaId {
            node: old.node,
            disk: *disk,
        });
        config
            .learners
            .extend(new.filter(|n| config.in_sync.iter().chain(&config.learners).all(|r| r != n)));
    }
}

/// As many entries as fit in the room and in one message; at least one.
fn chunk<'a>(entries: impl Iterator<Item = &'a Entry>, room: usize) -> Vec<Entry> {
    let limit = room.min(MESSAGE_ENTRIES_BYTES_MAX);
    let mut bytes = 0;
    let mut out = Vec::new();
    for entry in entries {
        bytes += entry.bytes();
        if !out.is_empty() && bytes > limit {
            break;
        }
        out.push(entry.clone());
    }
    out
}
