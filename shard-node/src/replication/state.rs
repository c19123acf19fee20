//! One replica of one shard as a state machine: events in, effects out. No clock, socket, disk, or randomness of its own.
//!
//! ```text
//!              config names me leader                in-sync members' logs adopted
//!   Idle ──▶ Follower ───────────────▶ Recovering ──────────────────────────────▶ Leading
//!              ▲                           │                                          │
//!              └──── a higher epoch, or a config that names another leader ◀──────────┘
//! ```
//!
//! Invariants (asserted by `simulation`): one leader per epoch; a committed entry is on every in-sync member and on every
//! later leader; equal (epoch, index) means equal prefixes; only in-sync replicas lead; promises never fall; only committed
//! entries are applied. They hold without trusting clocks: time only decides *when* to probe, shrink or give up.
//!
//! An epoch is led only after this replica's own promise of it is durable, so a replica that finds its promise at the
//! configured epoch knows that it may have written in it before a crash, and takes a new epoch first.

use super::leader::Leader;
use super::log_shape::{LogShape, Position};
use super::message::*;
use super::recovery::Recovery;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tessera_proto::shard_map::ShardConfig;
use tessera_proto::{Epoch, LogIndex, NodeId, ReplicaId};
use uuid::Uuid;

/// What a replica finds on its disk.
#[derive(Debug, Clone, Default)]
pub struct Restored {
    /// Highest epoch promised.
    pub promised: Epoch,
    /// The durable log.
    pub log: LogShape,
    /// Rows up to here are in files; never truncated.
    pub applied: LogIndex,
    /// Rows and log do not belong together (an interrupted snapshot): start from the leader's snapshot.
    pub wants_snapshot: bool,
}

/// A replica. See the module.
#[derive(Debug)]
pub struct ReplicaState {
    pub(super) me: ReplicaId,
    pub(super) timings: Timings,
    pub(super) now: Duration,
    pub(super) config: Option<ShardConfig>,
    pub(super) revision: u64,
    pub(super) promised: Epoch,
    promised_durable: Epoch,
    /// The log including writes under way.
    pub(super) log: LogShape,
    /// Everything up to here is on disk.
    pub(super) durable: LogIndex,
    pub(super) commit: LogIndex,
    reported: LogIndex,
    pub(super) wants_snapshot: bool,
    writes: VecDeque<PendingWrite>,
    tickets: u64,
    /// The disk may hold entries after the log's end: the next append truncates first.
    dirty_tail: bool,
    pub(super) role: Role,
    cas: Option<Cas>,
    pub(super) alive: BTreeSet<NodeId>,
    pub(super) disks: BTreeMap<NodeId, Uuid>,
    pub(super) effects: Vec<Effect>,
    /// Bugs planted to show that the simulation finds them.
    #[cfg(test)]
    pub(super) bug: Option<super::simulation::Bug>,
}

#[derive(Debug)]
struct PendingWrite {
    ticket: u64,
    /// Last index it makes durable.
    last: LogIndex,
    promised: Epoch,
}

#[derive(Debug)]
struct Cas {
    config: ShardConfig,
    /// When to send it again: set once its outcome is unknown.
    again: Option<Duration>,
}

/// What this replica is doing.
#[derive(Debug)]
pub(super) enum Role {
    /// No configuration that includes this replica is known.
    Idle,
    Follower(Follower),
    Recovering(Recovery),
    Leading(Leader),
}

/// A replica that takes entries from a leader.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// Who led the last message, if any came since the role began.
    pub leader: Option<ReplicaId>,
    /// Known to equal the leader's log up to here.
    pub matched: LogIndex,
    /// Reply with the log's shape once all writes are durable.
    pub owes_shape: bool,
    /// Reply with an Ack once something became durable.
    pub owes_ack: bool,
    /// What the last Ack said.
    pub acked: LogIndex,
    /// A snapshot is being fetched; appends wait.
    pub fetching: bool,
    /// The next entries name files that the leader has no more: its snapshot is needed, though rows and log here are sound.
    pub files_gone: bool,
}

impl ReplicaState {
    /// A replica as its disk has it; it does nothing until it learns a configuration.
    pub fn new(me: ReplicaId, restored: Restored, timings: Timings) -> Self {
        let durable = restored.log.last().index;
        Self {
            me,
            timings,
            now: Duration::ZERO,
            config: None,
            revision: 0,
            promised: restored.promised,
            promised_durable: restored.promised,
            log: restored.log,
            durable,
            commit: restored.applied,
            reported: restored.applied,
            wants_snapshot: restored.wants_snapshot,
            writes: VecDeque::new(),
            tickets: 0,
            dirty_tail: false,
            role: Role::Idle,
            cas: None,
            alive: BTreeSet::new(),
            disks: BTreeMap::new(),
            effects: Vec::new(),
            #[cfg(test)]
            bug: None,
        }
    }

    /// Takes one event at a time that never runs backwards and returns what is to be done, in order.
    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        self.now = self.now.max(now);
        match event {
            Event::Message { from, message } => self.on_message(from, message),
            Event::Durable { ticket } => self.on_durable(ticket),
            Event::WriteFailed { ticket, gone } => self.on_write_failed(ticket, gone),
            Event::Propose { token, entries } => self.on_propose(token, entries),
            Event::ConfigChanged { config, revision } => self.on_config(config, revision),
            Event::CasResult(result) => self.on_cas(result),
            Event::LogRead { peer, entries } => self.on_log_read(peer, entries),
            Event::Released { upto } => self.log.release(upto.min(self.commit)),
            Event::SnapshotFetched { at } => self.on_snapshot_fetched(at),
            Event::SnapshotInstalled { at } => self.on_snapshot_installed(at),
            Event::SnapshotFailed => self.on_snapshot_failed(),
            Event::PeerLost { node } => self.on_peer_lost(node),
            Event::Peers { alive, disks } => {
                self.alive = alive.into_iter().collect();
                self.disks = disks;
            }
            Event::Operator { token, operation } => self.on_operator(token, operation),
            Event::Tick => self.on_tick(),
        }
        self.settle();
        std::mem::take(&mut self.effects)
    }

    /// The epoch this replica leads in, once it does.
    pub fn leads(&self) -> Option<Epoch> {
        match &self.role {
            Role::Leading(leader) => Some(leader.epoch),
            _ => None,
        }
    }

    /// The configuration it acts on, and its revision.
    pub fn config(&self) -> Option<(&ShardConfig, u64)> {
        self.config.as_ref().map(|c| (c, self.revision))
    }

    /// Last entry, durable index, commit index.
    pub fn positions(&self) -> (Position, LogIndex, LogIndex) {
        (self.log.last(), self.durable, self.commit)
    }

    /// What the role is called in `SHOW SHARDS`.
    pub fn role_name(&self) -> &'static str {
        let learner = || self.config.as_ref().is_some_and(|c| c.learners.contains(&self.me));
        match &self.role {
            Role::Idle => "offline",
            Role::Recovering(_) => "recovering",
            Role::Leading(_) => "serving",
            Role::Follower(_) if learner() => "learner",
            Role::Follower(_) => "follower",
        }
    }

    fn on_message(&mut self, from: ReplicaId, message: Message) {
        match message {
            Message::Probe { epoch } => self.on_probe(from, epoch),
            Message::Append {
                epoch,
                prev,
                entries,
                commit,
            } => self.on_append(from, epoch, prev, entries, commit),
            Message::Offer { epoch } => self.on_offer(from, epoch),
            Message::Pull { epoch, from: first } => self.on_pull(from, epoch, first),
            Message::Shape {
                epoch,
                log,
                wants_snapshot,
            } => self.on_shape(from, epoch, log, wants_snapshot),
            Message::Ack { epoch, durable, commit } => self.on_ack(from, epoch, durable, commit),
            Message::Nack { promised } => self.on_nack(from, promised),
            Message::Pulled { epoch, entries } => self.on_pulled(from, epoch, entries),
        }
    }

    /// After every event: follow up on what became possible.
    fn settle(&mut self) {
        self.settle_follower();
        self.settle_recovery();
        self.settle_leader();
        self.report_committed();
    }

    fn report_committed(&mut self) {
        let upto = self.commit.min(self.durable);
        if upto > self.reported {
            self.reported = upto;
            self.effects.push(Effect::Committed { upto });
        }
    }

    fn on_tick(&mut self) {
        let again = self.cas.as_ref().and_then(|c| c.again).is_some_and(|at| self.now >= at);
        if let (true, Some(cas)) = (again, &mut self.cas) {
            // The first attempt may still arrive; both compare with the same revision, so at most one is written.
            cas.again = None;
            self.effects.push(Effect::Cas {
                config: cas.config.clone(),
                expected: self.revision,
            });
        }
        self.tick_recovery();
        self.tick_leader();
    }

    // ---- durable writes

    /// Writes entries after the log's end; they must fit.
    pub(super) fn append(&mut self, entries: Vec<Entry>, source: Option<ReplicaId>) {
        let mut writes = Vec::with_capacity(2);
        if std::mem::take(&mut self.dirty_tail) {
            writes.push(LogWrite::TruncateAfter(self.log.last().index));
        }
        for entry in &entries {
            assert!(
                self.log.push(entry.at),
                "entries fit after the log's end: checked by the caller"
            );
        }
        writes.push(LogWrite::Append(entries));
        self.write(writes, source);
    }

    /// Cuts the log; never below what was committed.
    pub(super) fn truncate_after(&mut self, index: LogIndex) {
        assert!(index >= self.commit, "committed entries are never truncated");
        self.log.truncate_after(index);
        self.durable = self.durable.min(index);
        self.writes.iter_mut().for_each(|w| w.last = w.last.min(index));
        self.dirty_tail = false;
        self.write(vec![LogWrite::TruncateAfter(index)], None);
    }

    /// Never takes part in an epoch below this one again.
    pub(super) fn promise(&mut self, epoch: Epoch) {
        if epoch > self.promised {
            self.promised = epoch;
            self.write(vec![LogWrite::Promise(epoch)], None);
        }
    }

    fn write(&mut self, writes: Vec<LogWrite>, source: Option<ReplicaId>) {
        self.tickets += 1;
        self.writes.push_back(PendingWrite {
            ticket: self.tickets,
            last: self.log.last().index,
            promised: self.promised,
        });
        self.effects.push(Effect::Write {
            ticket: self.tickets,
            writes,
            source,
        });
    }

    fn on_durable(&mut self, ticket: u64) {
        while let Some(write) = self.writes.front().filter(|w| w.ticket <= ticket) {
            self.durable = self.durable.max(write.last);
            self.promised_durable = self.promised_durable.max(write.promised);
            self.writes.pop_front();
        }
    }

    /// The disk stays as the last durable write left it; what was to follow never came.
    fn on_write_failed(&mut self, ticket: u64, gone: bool) {
        if self.writes.front().is_none_or(|w| w.ticket > ticket) && self.writes.back().is_none_or(|w| w.ticket < ticket)
        {
            return;
        }
        self.writes.clear();
        self.log.truncate_after(self.durable);
        self.dirty_tail = true;
        if let Role::Follower(follower) = &mut self.role {
            follower.matched = follower.matched.min(self.durable);
            // These entries can never be written here: only the leader's rows lead past them.
            follower.files_gone |= gone;
            follower.owes_shape |= gone && follower.leader.is_some();
        }
        if self.promised > self.promised_durable {
            self.write(vec![LogWrite::Promise(self.promised)], None);
        }
    }

    /// Whether everything written so far is on disk.
    pub(super) fn all_durable(&self) -> bool {
        self.writes.is_empty()
    }

    /// Whether the highest promise is on disk: before that, nothing may be said in its epoch.
    pub(super) fn promise_is_durable(&self) -> bool {
        #[cfg(test)]
        if self.bug == Some(super::simulation::Bug::SpeakBeforePromise) {
            return true;
        }
        self.promised_durable == self.promised
    }

    // ---- configuration

    /// Starts a compare-and-swap to the next epoch, unless one is under way.
    pub(super) fn change_config(&mut self, change: impl FnOnce(&mut ShardConfig)) {
        let (None, Some(config)) = (&self.cas, &self.config) else {
            return;
        };
        let mut next = config.clone();
        change(&mut next);
        next.epoch = Epoch(config.epoch.0 + 1);
        self.effects.push(Effect::Cas {
            config: next.clone(),
            expected: self.revision,
        });
        self.cas = Some(Cas {
            config: next,
            again: None,
        });
    }

    /// The configuration this replica asked for and has no answer about.
    pub(super) fn wanted_config(&self) -> Option<&ShardConfig> {
        self.cas.as_ref().map(|c| &c.config)
    }

    fn on_cas(&mut self, result: CasResult) {
        match result {
            CasResult::Won { config, revision } => self.on_config(config, revision),
            // Kept until a newer configuration arrives, so that whatever depends on it stays on the safe side.
            CasResult::Lost | CasResult::Unknown => {
                if let Some(cas) = &mut self.cas {
                    cas.again = Some(self.now + self.timings.retry);
                }
                self.effects.push(Effect::RefreshConfig);
            }
        }
    }

    fn on_config(&mut self, config: ShardConfig, revision: u64) {
        if revision <= self.revision {
            return;
        }
        self.revision = revision;
        let own = self.cas.take().is_some_and(|c| c.config == config);
        let before = self.config.replace(config.clone());
        if config.replicas().all(|r| r != self.me) {
            return self.become_role(Role::Idle);
        }
        if config.leader != self.me {
            if !matches!(self.role, Role::Follower(_)) {
                self.become_role(Role::Follower(Follower::default()));
            }
            return;
        }
        if self.wants_snapshot {
            // Named leader, but its rows are not whole: only another copy can help.
            return self.become_role(Role::Follower(Follower::default()));
        }
        match &self.role {
            Role::Leading(leader) if leader.epoch == config.epoch => {}
            Role::Leading(leader) if leader.epoch.0 + 1 == config.epoch.0 => {
                // Whoever changed it may have resigned because its disk lost what it acknowledged.
                let in_sync = before.map(|b| b.in_sync).unwrap_or_default();
                self.lead_on(config.epoch, |r| {
                    !own || in_sync.contains(&r) && !config.in_sync.contains(&r)
                });
            }
            // Its own promise is below the epoch, so it wrote nothing in it: it may begin at once.
            _ if self.promised < config.epoch => self.start_recovery(config.epoch),
            // It may have led this epoch before a restart, or others led in between.
            _ => {
                self.become_role(Role::Follower(Follower::default()));
                self.change_config(|_| {});
            }
        }
    }

    /// The rows and the log were replaced.
    pub(super) fn install_base(&mut self, log: LogShape) {
        let at = log.last().index;
        self.log = log;
        self.dirty_tail = false;
        (self.durable, self.commit, self.reported) = (at, at, at);
        self.writes.iter_mut().for_each(|w| w.last = at);
    }

    /// Leaves the present role.
    pub(super) fn become_role(&mut self, role: Role) {
        let led = matches!(self.role, Role::Leading(_));
        self.role = role;
        if led && !matches!(self.role, Role::Leading(_)) {
            self.effects.push(Effect::SteppedDown);
        }
    }

    fn on_operator(&mut self, token: u64, operation: Operation) {
        let Some(config) = self.config.clone() else {
            return self.refuse(token, "the shard's configuration is not known here yet");
        };
        match operation {
            Operation::Switch(target) => self.start_switch(token, target),
            _ if config.leader == self.me => self.refuse(token, "this replica leads already"),
            _ if self.cas.is_some() => self.refuse(token, "another change of this shard is under way"),
            _ if self.wants_snapshot => self.refuse(token, "this copy is incomplete: a snapshot was being installed"),
            Operation::Promote if !config.in_sync.contains(&self.me) => self.refuse(
                token,
                "this replica is not in sync: promoting it would lose acknowledged rows",
            ),
            Operation::Promote => self.take_over(|r, old| r != old.leader && old.in_sync.contains(&r)),
            Operation::ForcePromote if config.replicas().all(|r| r != self.me) => {
                self.refuse(token, "this node has no copy of the shard")
            }
            Operation::ForcePromote => {
                let me = self.me;
                self.take_over(|r, _| r == me);
            }
        }
    }

    fn take_over(&mut self, stays_in_sync: impl Fn(ReplicaId, &ShardConfig) -> bool) {
        let me = self.me;
        self.change_config(|config| {
            let old = config.clone();
            (config.in_sync, config.learners) = old.replicas().partition(|r| stays_in_sync(*r, &old));
            config.leader = me;
        });
    }

    pub(super) fn refuse(&mut self, token: u64, reason: &'static str) {
        self.effects.push(Effect::Refused { token, reason });
    }

    pub(super) fn send(&mut self, to: ReplicaId, message: Message) {
        self.effects.push(Effect::Send { to, message });
    }
}
