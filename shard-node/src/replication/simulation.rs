//! A seeded simulation of the replication machine: lost, late, repeated and reordered messages, crashes that lose what was
//! not yet on disk, wiped disks, released logs, racing and unanswered compare-and-swaps, operators' promotions.
//!
//! After every step it checks: one leader per epoch (I1); what a leader reported committed is on the disk of every in-sync
//! member, now and under every later configuration (I2); an (epoch, index) names one entry with one predecessor (I3); only
//! in-sync replicas lead (I4); promises never fall (I5); replicas apply only what was committed (I7). Then the network
//! heals, and the shard must serve again with equal copies. Planted bugs must be found.

use super::log_shape::{LogShape, Position};
use super::message::*;
use super::state::{ReplicaState, Restored};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tessera_proto::shard_map::ShardConfig;
use tessera_proto::{Epoch, LogIndex, NodeId, ReplicaId};
use uuid::Uuid;

/// A bug to plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    AckBeforeDurable,
    SpeakBeforePromise,
    CommitAlone,
    JoinWithoutWaiting,
}

type Check = Result<(), String>;

/// Enough for every planted bug (the slowest is found within a few hundred), in a few seconds unoptimised.
const SEEDS: u64 = 1_500;

/// Kinds of proposals: a plain one, one that names a file, and one whose application removes the files of all before it.
const PLAIN: u8 = 2;
const NAMES_FILE: u8 = 3;
const DROPS_FILES: u8 = 4;

const TIMINGS: Timings = Timings {
    retry: Duration::from_millis(80),
    silent: Duration::from_millis(300),
    stall: Duration::from_millis(600),
    recovery: Duration::from_millis(250),
    switch: Duration::from_millis(400),
    window_bytes: 200,
};

#[derive(Default)]
struct Disk {
    promised: Epoch,
    base: Position,
    log: Vec<Entry>,
    /// Rows in files: everything applied up to the checkpoint.
    files: Vec<Entry>,
    /// Files were found damaged and put aside; only a snapshot makes it whole.
    damaged: bool,
}

impl Disk {
    fn shape(&self) -> LogShape {
        let mut shape = LogShape::starting_after(self.base);
        assert!(self.log.iter().all(|e| shape.push(e.at)), "a disk's log is dense");
        shape
    }

    fn last(&self) -> Position {
        self.log.last().map_or(self.base, |e| e.at)
    }

    fn get(&self, index: LogIndex) -> Option<&Entry> {
        let at = |entries: &[Entry], first: u64| {
            index
                .0
                .checked_sub(first)
                .and_then(|i| entries.get(i as usize).cloned())
                .is_some()
        };
        if at(&self.files, 1) {
            return self.files.get(index.0 as usize - 1);
        }
        self.log.get(index.0.checked_sub(self.base.index.0 + 1)? as usize)
    }

    fn write(&mut self, write: LogWrite) -> Check {
        match write {
            LogWrite::Promise(epoch) if epoch < self.promised => {
                return Err(format!("I5: promise fell from {} to {epoch}", self.promised));
            }
            LogWrite::Promise(epoch) => self.promised = epoch,
            LogWrite::TruncateAfter(index) => self.log.retain(|e| e.at.index <= index),
            LogWrite::Append(entries) => self.log.extend(entries),
        }
        Ok(())
    }
}

struct Node {
    id: ReplicaId,
    boot: u64,
    state: Option<ReplicaState>,
    disk: Disk,
    writes: VecDeque<(u64, Vec<LogWrite>, Option<ReplicaId>)>,
    applied: Vec<Entry>,
    fetched: Vec<Entry>,
}

enum Item {
    Message { from: ReplicaId, message: Message },
    Cas { config: ShardConfig, expected: u64 },
    Event(Event),
    Snapshot { from: ReplicaId },
}

struct Sim {
    rng: StdRng,
    now: Duration,
    nodes: Vec<Node>,
    /// (when, to node, for this boot only, what)
    queue: Vec<(Duration, usize, Option<u64>, Item)>,
    meta: (ShardConfig, u64),
    history: BTreeMap<Epoch, ShardConfig>,
    leaders: BTreeMap<Epoch, ReplicaId>,
    written: BTreeMap<Position, (Entry, Position)>,
    committed: Vec<Entry>,
    loss: f64,
    proposals: u64,
    bug: Option<Bug>,
}

impl Sim {
    fn new(seed: u64, nodes: u32, bug: Option<Bug>) -> Self {
        let ids: Vec<_> = (1..=nodes)
            .map(|n| ReplicaId {
                node: NodeId(n),
                disk: Uuid::from_u128(u128::from(n)),
            })
            .collect();
        let config = ShardConfig {
            epoch: Epoch(1),
            leader: ids[0],
            in_sync: ids.clone(),
            learners: vec![],
        };
        let mut sim = Self {
            rng: StdRng::seed_from_u64(seed),
            now: Duration::ZERO,
            nodes: ids
                .iter()
                .map(|id| Node {
                    id: *id,
                    boot: 0,
                    state: None,
                    disk: Disk::default(),
                    writes: VecDeque::new(),
                    applied: vec![],
                    fetched: vec![],
                })
                .collect(),
            queue: vec![],
            history: BTreeMap::from([(Epoch(1), config.clone())]),
            meta: (config, 1),
            leaders: BTreeMap::new(),
            written: BTreeMap::new(),
            committed: vec![],
            loss: 0.1,
            proposals: 0,
            bug,
        };
        (0..sim.nodes.len()).for_each(|n| sim.start(n));
        sim
    }

    fn start(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.boot += 1;
        node.applied = node.disk.files.clone();
        let applied = LogIndex(node.applied.len() as u64);
        let log = node.disk.shape();
        let restored = Restored {
            promised: node.disk.promised,
            log,
            applied,
            wants_snapshot: node.disk.damaged,
        };
        let mut state = ReplicaState::new(node.id, restored, TIMINGS);
        state.bug = self.bug;
        node.state = Some(state);
        self.refresh(n);
    }

    fn crash(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.state = None;
        // A prefix of what was under way may have reached the disk.
        let survives = self.rng.random_range(0..=node.writes.len());
        for (_, writes, _) in node.writes.drain(..).take(survives) {
            writes
                .into_iter()
                .for_each(|w| node.disk.write(w).expect("a promise never falls"));
        }
        node.writes.clear();
    }

    fn refresh(&mut self, n: usize) {
        let event = Event::ConfigChanged {
            config: self.meta.0.clone(),
            revision: self.meta.1,
        };
        self.post(n, Item::Event(event), true);
    }

    fn post(&mut self, to: usize, item: Item, this_boot: bool) {
        let delay = if self.rng.random_bool(0.1) {
            self.rng.random_range(50..400)
        } else {
            self.rng.random_range(0..20)
        };
        let boot = this_boot.then_some(self.nodes[to].boot);
        self.queue
            .push((self.now + Duration::from_millis(delay), to, boot, item));
    }

    fn event(&mut self, n: usize, event: Event) -> Check {
        let Some(state) = &mut self.nodes[n].state else {
            return Ok(());
        };
        let effects = state.step(self.now, event);
        effects.into_iter().try_for_each(|e| self.effect(n, e))
    }

    fn effect(&mut self, n: usize, effect: Effect) -> Check {
        let id = self.nodes[n].id;
        match effect {
            Effect::Send { to, message } => {
                if let Message::Append { prev, entries, .. } = &message {
                    self.check_written(*prev, entries)?;
                }
                let Some(target) = self.nodes.iter().position(|x| x.id == to) else {
                    return Ok(());
                };
                for _ in 0..if self.rng.random_bool(self.loss / 3.0) { 2 } else { 1 } {
                    if !self.rng.random_bool(self.loss) {
                        self.post(
                            target,
                            Item::Message {
                                from: id,
                                message: message.clone(),
                            },
                            false,
                        );
                    }
                }
            }
            Effect::Write { ticket, writes, source } => self.nodes[n].writes.push_back((ticket, writes, source)),
            Effect::ReadLog { peer, from, .. } => {
                let disk = &self.nodes[n].disk;
                let skip = from.0.checked_sub(disk.base.index.0 + 1);
                let entries = skip
                    .map(|s| disk.log.iter().skip(s as usize).take(3).cloned().collect())
                    .unwrap_or_default();
                self.post(n, Item::Event(Event::LogRead { peer, entries }), true);
            }
            Effect::Cas { config, expected } => self.post(n, Item::Cas { config, expected }, false),
            Effect::RefreshConfig => self.refresh(n),
            Effect::Committed { upto } => self.apply(n, upto)?,
            Effect::Leads { epoch, .. } | Effect::LeadsOn { epoch } => self.check_leader(n, epoch)?,
            Effect::FetchSnapshot { from, .. } => self.post(n, Item::Snapshot { from }, true),
            Effect::InstallSnapshot => self.replace(n)?,
            Effect::SteppedDown
            | Effect::Accepted { .. }
            | Effect::Rejected { .. }
            | Effect::Pause(_)
            | Effect::Refused { .. } => {}
        }
        Ok(())
    }

    /// Notes entries that left memory, to a disk or to a peer: from then on they are written for ever.
    fn check_written(&mut self, mut before: Position, entries: &[Entry]) -> Check {
        for entry in entries {
            let (known, known_before) = self.written.entry(entry.at).or_insert_with(|| (entry.clone(), before));
            if known != entry || *known_before != before {
                return Err(format!(
                    "I3: written twice: {known:?} after {known_before:?}, {entry:?} after {before:?}"
                ));
            }
            before = entry.at;
        }
        Ok(())
    }

    fn check_leader(&mut self, n: usize, epoch: Epoch) -> Check {
        let id = self.nodes[n].id;
        let first = *self.leaders.entry(epoch).or_insert(id);
        if first != id {
            return Err(format!("I1: {first} and {id} lead in epoch {epoch}"));
        }
        match self.history.get(&epoch) {
            Some(config) if config.leader == id && config.in_sync.contains(&id) => Ok(()),
            config => Err(format!("I4: {id} leads in epoch {epoch} against {config:?}")),
        }
    }

    fn apply(&mut self, n: usize, upto: LogIndex) -> Check {
        let leads = self.nodes[n].state.as_ref().is_some_and(|s| s.leads().is_some());
        while (self.nodes[n].applied.len() as u64) < upto.0 {
            let node = &mut self.nodes[n];
            let index = LogIndex(node.applied.len() as u64 + 1);
            let Some(entry) = node.disk.get(index).cloned() else {
                return Err(format!("{} applies {index}, which is not on its disk", node.id));
            };
            match self.committed.get(index.0 as usize - 1) {
                Some(known) if *known != entry => {
                    return Err(format!("I2: {known:?} was committed, {} has {entry:?}", node.id));
                }
                Some(_) => {}
                None if leads => self.committed.push(entry.clone()),
                None => return Err(format!("I7: {} applies {entry:?}, which no leader committed", node.id)),
            }
            self.nodes[n].applied.push(entry);
        }
        if leads { self.check_copies() } else { Ok(()) }
    }

    /// Every in-sync member has every committed entry on its disk (a wiped disk excuses itself).
    fn check_copies(&self) -> Check {
        for member in &self.meta.0.in_sync {
            let Some(node) = self.nodes.iter().find(|n| n.id == *member) else {
                continue;
            };
            let recent = self.committed.len().saturating_sub(40);
            for entry in &self.committed[recent..] {
                if node.disk.get(entry.at.index) != Some(entry) {
                    return Err(format!(
                        "I2: {entry:?} is committed, but not on in-sync {member} (epoch {})",
                        self.meta.0.epoch
                    ));
                }
            }
        }
        Ok(())
    }

    fn deliver(&mut self, position: usize) -> Check {
        let (_, n, boot, item) = self.queue.swap_remove(position);
        let current = boot.is_none_or(|b| b == self.nodes[n].boot);
        match item {
            Item::Cas { config, expected } => self.cas(n, config, expected),
            Item::Message { from, message } => self.event(n, Event::Message { from, message }),
            Item::Event(event) if current => self.event(n, event),
            Item::Snapshot { from } if current => self.fetch(n, from),
            _ => Ok(()),
        }
    }

    fn cas(&mut self, n: usize, config: ShardConfig, expected: u64) -> Check {
        let applied = expected == self.meta.1;
        if applied {
            self.meta = (config.clone(), expected + 1);
            self.history.insert(config.epoch, config.clone());
            self.check_copies()?;
            (0..self.nodes.len()).for_each(|other| self.refresh(other));
        }
        let result = match applied {
            _ if self.rng.random_bool(self.loss) => CasResult::Unknown,
            true => CasResult::Won {
                config,
                revision: expected + 1,
            },
            false => CasResult::Lost,
        };
        self.post(n, Item::Event(Event::CasResult(result)), true);
        Ok(())
    }

    fn fetch(&mut self, n: usize, from: ReplicaId) -> Check {
        let source = self.nodes.iter().find(|x| x.id == from && x.state.is_some());
        let Some(rows) = source
            .map(|s| s.applied.clone())
            .filter(|_| !self.rng.random_bool(self.loss))
        else {
            return self.event(n, Event::SnapshotFailed);
        };
        let at = rows.last().map(|e| e.at).unwrap_or_default();
        self.nodes[n].fetched = rows;
        self.event(n, Event::SnapshotFetched { at })
    }

    /// Through the log's writer, so after every earlier write.
    fn replace(&mut self, n: usize) -> Check {
        self.flush(n, usize::MAX)?;
        let rows = std::mem::take(&mut self.nodes[n].fetched);
        let at = rows.last().map(|e| e.at).unwrap_or_default();
        let node = &mut self.nodes[n];
        (node.disk.base, node.disk.log, node.disk.files) = (at, vec![], rows.clone());
        node.disk.damaged = false;
        node.applied = rows;
        self.event(n, Event::SnapshotInstalled { at })
    }

    fn flush(&mut self, n: usize, count: usize) -> Check {
        for _ in 0..count {
            if self.front_lacks_files(n) {
                self.drop_writes(n, true)?;
                continue;
            }
            let Some((ticket, writes, _)) = self.nodes[n].writes.pop_front() else {
                break;
            };
            for write in writes {
                if let LogWrite::Append(entries) = &write {
                    self.check_written(self.nodes[n].disk.last(), entries)?;
                }
                self.nodes[n].disk.write(write)?;
            }
            self.event(n, Event::Durable { ticket })?;
        }
        Ok(())
    }

    /// Whether the next write names a file that its source has removed: what it applied says that nobody needs it.
    fn front_lacks_files(&self, n: usize) -> bool {
        let Some((_, writes, Some(source))) = self.nodes[n].writes.front() else {
            return false;
        };
        let number = |e: &Entry| std::str::from_utf8(&e.payload).ok().and_then(|t| t.parse::<u64>().ok());
        let source = self.nodes.iter().find(|x| x.id == *source);
        let dropped = source.and_then(|s| {
            s.applied
                .iter()
                .filter(|e| e.kind == DROPS_FILES)
                .filter_map(number)
                .max()
        });
        let entries = writes.iter().flat_map(|w| match w {
            LogWrite::Append(entries) => entries.as_slice(),
            _ => &[],
        });
        entries.filter(|e| e.kind == NAMES_FILE).any(|e| number(e) < dropped)
    }

    /// This and all later writes come to nothing.
    fn drop_writes(&mut self, n: usize, gone: bool) -> Check {
        let Some((ticket, _, _)) = self.nodes[n].writes.front() else {
            return Ok(());
        };
        let ticket = *ticket;
        self.nodes[n].writes.clear();
        self.event(n, Event::WriteFailed { ticket, gone })
    }

    /// Rows go to files and the log before them may go.
    fn seal(&mut self, n: usize) -> Check {
        let node = &mut self.nodes[n];
        let Some(last) = node.applied.last().filter(|_| node.writes.is_empty()) else {
            return Ok(());
        };
        let at = last.at;
        if at.index <= node.disk.base.index || node.disk.shape().epoch_at(at.index) != Some(at.epoch) {
            return Ok(());
        }
        node.disk.files = node.applied.clone();
        node.disk.log.retain(|e| e.at.index > at.index);
        node.disk.base = at;
        self.event(n, Event::Released { upto: at.index })
    }

    /// Rows turn out to be damaged: the copy resigns by compare-and-swap, then begins anew; its log stays.
    fn damage(&mut self, n: usize) {
        let (id, mut config) = (self.nodes[n].id, self.meta.0.clone());
        config.in_sync.retain(|r| *r != id);
        config.learners.retain(|r| *r != id);
        let Some(heir) = config.in_sync.iter().find(|r| self.nodes.iter().any(|x| x.id == **r)) else {
            return;
        };
        if config.leader == id {
            config.leader = *heir;
        }
        config.learners.push(id);
        config.epoch = Epoch(config.epoch.0 + 1);
        self.history.insert(config.epoch, config.clone());
        self.meta = (config, self.meta.1 + 1);
        self.crash(n);
        let disk = &mut self.nodes[n].disk;
        (disk.damaged, disk.files) = (true, vec![]);
        self.start(n);
    }

    fn wipe(&mut self, n: usize) {
        let others = |r: &&ReplicaId| **r != self.nodes[n].id && self.nodes.iter().any(|x| x.id == **r);
        // A shrink under way could leave this very disk as the last copy.
        let changing = self
            .queue
            .iter()
            .any(|(_, _, _, item)| matches!(item, Item::Cas { .. }));
        if changing || self.meta.0.in_sync.iter().filter(others).count() == 0 {
            return;
        }
        self.crash(n);
        let node = &mut self.nodes[n];
        node.id.disk = Uuid::from_u128(node.id.disk.as_u128() + 1_000);
        node.disk = Disk::default();
        self.start(n);
    }

    fn peers(&mut self, n: usize) -> Check {
        let alive = self
            .nodes
            .iter()
            .filter(|x| x.state.is_some())
            .map(|x| x.id.node)
            .collect();
        let disks = self.nodes.iter().map(|x| (x.id.node, x.id.disk)).collect();
        self.event(n, Event::Peers { alive, disks })
    }

    fn chaos(&mut self) -> Check {
        self.now += Duration::from_millis(self.rng.random_range(0..15));
        let n = self.rng.random_range(0..self.nodes.len());
        match self.rng.random_range(0..1_000) {
            0..400 => {
                let due: Vec<_> = (0..self.queue.len()).filter(|i| self.queue[*i].0 <= self.now).collect();
                if due.is_empty() {
                    return Ok(());
                }
                let chosen = due[self.rng.random_range(0..due.len())];
                self.deliver(chosen)
            }
            400..560 => self.flush(n, 1),
            560..700 => self.event(n, Event::Tick),
            700..880 => self.propose(n),
            880..900 => self.peers(n),
            900..915 => self.seal(n),
            915..925 => {
                let node = NodeId(self.rng.random_range(1..=self.nodes.len() as u32));
                self.event(n, Event::PeerLost { node })
            }
            925..930 => self.event(
                n,
                Event::Operator {
                    token: 0,
                    operation: Operation::Promote,
                },
            ),
            930..940 => {
                let target = self.nodes[self.rng.random_range(0..self.nodes.len())].id;
                self.event(
                    n,
                    Event::Operator {
                        token: 0,
                        operation: Operation::Switch(target),
                    },
                )
            }
            940..943 => {
                self.wipe(n);
                Ok(())
            }
            943..945 => {
                self.damage(n);
                Ok(())
            }
            945..955 if self.nodes[n].state.is_some() => {
                self.crash(n);
                Ok(())
            }
            955..985 if self.nodes[n].state.is_none() => {
                self.start(n);
                Ok(())
            }
            985..990 => self.fail_write(n),
            _ => Ok(()),
        }
    }

    /// Files that entries name could not be fetched.
    fn fail_write(&mut self, n: usize) -> Check {
        let role = self.nodes[n].state.as_ref().map(ReplicaState::role_name);
        match role {
            Some("follower" | "learner") => self.drop_writes(n, false),
            _ => Ok(()),
        }
    }

    fn propose(&mut self, n: usize) -> Check {
        self.proposals += 1;
        let payload = Bytes::from(format!("{}", self.proposals));
        let kind = match self.rng.random_range(0..10) {
            0 => DROPS_FILES,
            1..4 => NAMES_FILE,
            _ => PLAIN,
        };
        self.event(
            n,
            Event::Propose {
                token: self.proposals,
                entries: vec![(kind, payload)],
            },
        )
    }

    /// Without faults, the shard must serve again and all copies become equal.
    fn heal(&mut self) -> Check {
        self.loss = 0.0;
        for n in 0..self.nodes.len() {
            if self.nodes[n].state.is_none() {
                self.start(n);
            }
        }
        for round in 0..1_500 {
            self.now += Duration::from_millis(5);
            for n in 0..self.nodes.len() {
                if round % 4 == 0 {
                    self.event(n, Event::Tick)?;
                    self.peers(n)?;
                    self.refresh(n);
                }
                self.flush(n, usize::MAX)?;
                if round == 1_000 {
                    self.propose(n)?;
                }
            }
            while let Some(due) = (0..self.queue.len()).find(|i| self.queue[*i].0 <= self.now) {
                self.deliver(due)?;
            }
            if round == 900
                && !self.leader_is_wiped()
                && self
                    .nodes
                    .iter()
                    .all(|n| n.state.as_ref().is_none_or(|s| s.leads().is_none()))
            {
                let in_sync = self
                    .nodes
                    .iter()
                    .position(|n| self.meta.0.in_sync.contains(&n.id))
                    .ok_or("no in-sync copy is left")?;
                self.event(
                    in_sync,
                    Event::Operator {
                        token: 0,
                        operation: Operation::Promote,
                    },
                )?;
            }
            if round == 500 && self.leader_is_wiped() {
                let in_sync = self
                    .nodes
                    .iter()
                    .position(|n| self.meta.0.in_sync.contains(&n.id))
                    .ok_or("no in-sync copy is left")?;
                self.event(
                    in_sync,
                    Event::Operator {
                        token: 0,
                        operation: Operation::Promote,
                    },
                )?;
            }
        }
        let lengths: Vec<_> = self.nodes.iter().map(|n| n.applied.len()).collect();
        let complete = self
            .committed
            .last()
            .is_some_and(|e| e.payload == format!("{}", self.proposals).as_bytes() || e.kind != EPOCH_START);
        let equal = lengths.iter().all(|l| *l == self.committed.len());
        match complete && equal && self.meta.0.in_sync.len() == self.nodes.len() {
            true => Ok(()),
            false => Err(format!(
                "did not heal: {lengths:?} of {} applied, {:?}",
                self.committed.len(),
                self.meta
            )),
        }
    }

    fn leader_is_wiped(&self) -> bool {
        self.nodes.iter().all(|n| n.id != self.meta.0.leader)
    }
}

fn run(seed: u64, bug: Option<Bug>) -> Check {
    let mut sim = Sim::new(seed, 2 + (seed % 2) as u32, bug);
    for _ in 0..1_200 {
        sim.chaos()?;
    }
    sim.heal()
}

#[test]
fn invariants_hold_under_faults() {
    let seeds = std::env::var("TESSERA_SEEDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(SEEDS);
    let first = std::env::var("TESSERA_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(0);
    for seed in first..first + seeds {
        if let Err(violation) = run(seed, None) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn planted_bugs_are_found() {
    for bug in [
        Bug::AckBeforeDurable,
        Bug::SpeakBeforePromise,
        Bug::CommitAlone,
        Bug::JoinWithoutWaiting,
    ] {
        let found =
            (0..SEEDS).find(|seed| std::panic::catch_unwind(|| run(*seed, Some(bug))).map_or(true, |r| r.is_err()));
        assert!(found.is_some(), "{bug:?} was not found");
        println!("{bug:?} was found by seed {}", found.unwrap_or_default());
    }
}
