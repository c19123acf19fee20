//! Runs one shard's machine: gives it time, messages and finished work, and carries out what it asks for.
//!
//! ```text
//!   inbox ─┐                        ┌─▶ transport.send
//!   ticks ─┼─▶ ReplicaState::step ──┼─▶ writes queue ─▶ files present? ─▶ Wal::append (one at a time, batched)
//!   jobs ──┘                        └─▶ jobs: read the log, compare-and-swap, fetch a snapshot
//! ```
//!
//! One task per shard. Durable writes keep their order because one batch is under way at a time; what comes meanwhile
//! forms the next. An append that the disk refuses (full) is repeated: nothing is acknowledged until it succeeds.

use super::catch_up::{self, INSTALLING, Snapshot};
use super::log_shape::{LogShape, Position};
use super::message::*;
use super::state::{ReplicaState, Restored};
use super::transport::{FILE_GONE, PeerTransport};
use super::wire;
use crate::node::open;
use crate::node::shard::{Accepted, Input, Leads, Shard};
use crate::storage::durable;
use crate::storage::wal::{EntryKind, LogRecord, Record, Wal};
use crate::txn::entry::{Logged, segments};
use crate::txn::ledger::Ledger;
use futures::future::{BoxFuture, OptionFuture};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tessera_meta::view::ViewKeeper;
use tessera_meta::{Change, Expect, Op};
use tessera_proto::shard_map::ShardConfig;
use tessera_proto::{Epoch, Error, LogIndex, ReplicaId, Result, Retry, ShardId, keys};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// How often the machine is told that time passes.
const TICK: Duration = Duration::from_millis(100);
/// Inputs taken in one turn before durable writes get theirs.
const INPUTS_PER_TURN: usize = 64;
/// Bytes written in one append to the log.
const WRITE_BYTES_MAX: usize = 32 << 20;
/// Bytes waiting for the log before peers' entries are dropped.
const QUEUED_BYTES_MAX: usize = 256 << 20;
/// How long files named by an entry are looked for before its write fails.
const FILES_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause before an append that the disk refused is repeated.
const WRITE_PAUSE: Duration = Duration::from_millis(500);

/// What a driver works with.
#[derive(Debug, Clone)]
pub struct Ports {
    /// The shard.
    pub shard: Arc<Shard>,
    /// The node's log.
    pub wal: Wal,
    /// Configurations.
    pub views: Arc<ViewKeeper>,
    /// Peers.
    pub transport: Arc<dyn PeerTransport>,
    /// Waits and windows.
    pub timings: Timings,
}

/// What a shard's disk says at the start.
pub fn restored(wal: &Wal, shard: ShardId, applied: LogIndex, wants_snapshot: bool) -> Restored {
    let first = LogIndex(wal.first(shard).0.saturating_sub(1));
    let base = Position {
        epoch: wal.epoch_at(shard, first).unwrap_or_default(),
        index: first,
    };
    let runs = wal
        .boundaries(shard)
        .into_iter()
        .map(|(epoch, index)| Position { epoch, index })
        .filter(|r| r.index > first);
    // A log that is not one cannot be continued.
    let log = LogShape::new(base, runs.collect());
    let wants_snapshot = wants_snapshot || log.is_none();
    Restored {
        promised: wal.promised(shard),
        log: log.unwrap_or_default(),
        applied,
        wants_snapshot,
    }
}

struct Driver {
    ports: Ports,
    state: ReplicaState,
    begun: Instant,
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    writing: Option<BoxFuture<'static, Written>>,
    jobs: FuturesUnordered<BoxFuture<'static, Done>>,
    proposals: BTreeMap<u64, oneshot::Sender<Result<Accepted>>>,
    operations: BTreeMap<u64, oneshot::Sender<&'static str>>,
    tokens: u64,
    fetched: Option<Snapshot>,
    /// Files that came for entries which could not be written: a snapshot may make them nobody's.
    unplaced: BTreeSet<String>,
    refreshing: bool,
}

enum Queued {
    Write {
        ticket: u64,
        writes: Vec<LogWrite>,
        source: Option<ReplicaId>,
        bytes: usize,
    },
    Install(Snapshot),
}

enum Written {
    Durable(u64),
    /// Files that entries name did not come; `gone` when the source has them no more.
    Failed {
        ticket: u64,
        gone: bool,
        files: Vec<String>,
        error: Error,
    },
    Installed(Result<Position>),
}

enum Done {
    Event(Event),
    Fetched(Result<Snapshot>),
    Refreshed(Option<Event>),
}

/// Runs a shard's machine until `stop`.
pub async fn run(ports: Ports, restored: Restored, mut inbox: mpsc::Receiver<Input>, stop: CancellationToken) {
    let mut driver = Driver {
        state: ReplicaState::new(ports.shard.me, restored, ports.timings),
        ports,
        begun: Instant::now(),
        queue: VecDeque::new(),
        queued_bytes: 0,
        writing: None,
        jobs: FuturesUnordered::new(),
        proposals: BTreeMap::new(),
        operations: BTreeMap::new(),
        tokens: 0,
        fetched: None,
        unplaced: BTreeSet::new(),
        refreshing: false,
    };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            input = inbox.recv() => match input {
                Some(input) => driver.inputs(input, &mut inbox),
                None => break,
            },
            Some(done) = driver.jobs.next() => driver.done(done),
            Some(written) = OptionFuture::from(driver.writing.as_mut()), if driver.writing.is_some() => {
                driver.writing = None;
                driver.written(written);
            }
            _ = tick.tick() => driver.step(Event::Tick),
        }
        driver.write_next();
        driver.publish();
    }
    driver.end().await;
}

impl Driver {
    fn inputs(&mut self, first: Input, inbox: &mut mpsc::Receiver<Input>) {
        let mut next = Some(first);
        for _ in 0..INPUTS_PER_TURN {
            let Some(input) = next.take() else { break };
            self.input(input);
            next = inbox.try_recv().ok();
        }
        if let Some(input) = next {
            self.input(input);
        }
    }

    fn input(&mut self, input: Input) {
        self.tokens += 1;
        match input {
            Input::Event(event) => {
                self.ports.shard.taken(&event);
                let brings_entries = matches!(&event, Event::Message { message: Message::Append { entries, .. }, .. } if !entries.is_empty());
                if !(brings_entries && self.queued_bytes > QUEUED_BYTES_MAX) {
                    self.step(event);
                }
            }
            Input::Propose {
                term: Some(term),
                reply,
                ..
            } if term != self.ports.shard.status.borrow().term => {
                let id = self.ports.shard.id;
                let _ = reply.send(Err(Error::stale_map(format!("shard {id} changed its leader"))));
            }
            Input::Propose { entries, reply, .. } => {
                self.proposals.insert(self.tokens, reply);
                self.step(Event::Propose {
                    token: self.tokens,
                    entries,
                });
            }
            Input::Operator { operation, refused } => {
                self.operations.retain(|_, o| !o.is_closed());
                self.operations.insert(self.tokens, refused);
                self.step(Event::Operator {
                    token: self.tokens,
                    operation,
                });
            }
        }
    }

    fn step(&mut self, event: Event) {
        for effect in self.state.step(self.begun.elapsed(), event) {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let shard = self.ports.shard.clone();
        match effect {
            Effect::Send { to, message } => self.ports.transport.send(to.node, wire::to_wire(shard.id, message)),
            Effect::Write { ticket, writes, source } => self.enqueue(ticket, writes, source),
            Effect::ReadLog { peer, from, bytes_max } => self.read_log(peer, from, bytes_max),
            Effect::Cas { config, expected } => self
                .jobs
                .push(cas(self.ports.views.clone(), shard.id, config, expected).boxed()),
            Effect::RefreshConfig => {
                if !std::mem::replace(&mut self.refreshing, true) {
                    self.jobs.push(refresh(self.ports.views.clone(), shard.id).boxed());
                }
            }
            Effect::Committed { upto } => drop(shard.committed.send_replace(upto)),
            Effect::Accepted { token, last } => {
                let term = shard.status.borrow().term;
                self.answer(token, Ok(Accepted { term, index: last }));
            }
            Effect::Rejected { token } => {
                let message = format!("shard {} takes no writes on this node now", shard.id);
                self.answer(token, Err(Error::stale_map(message)));
            }
            Effect::Leads { epoch, start } => shard.status.send_modify(|s| {
                s.term += 1;
                s.paused = false;
                s.leads = Some(Leads {
                    epoch,
                    start,
                    ready: false,
                });
            }),
            Effect::LeadsOn { epoch } => shard
                .status
                .send_modify(|s| s.leads = s.leads.map(|l| Leads { epoch, ..l })),
            Effect::Pause(paused) => shard.status.send_modify(|s| s.paused = paused),
            Effect::SteppedDown => {
                shard.status.send_modify(|s| s.leads = None);
                shard.participant.lock().clear();
                shard.wake_all();
            }
            Effect::FetchSnapshot { from, epoch } => self.fetch(from, epoch),
            Effect::InstallSnapshot => match self.fetched.take() {
                Some(snapshot) => self.queue.push_back(Queued::Install(snapshot)),
                None => self.step(Event::SnapshotFailed),
            },
            Effect::Refused { token, reason } => {
                if let Some(operation) = self.operations.remove(&token) {
                    let _ = operation.send(reason);
                }
            }
        }
    }

    fn answer(&mut self, token: u64, answer: Result<Accepted>) {
        if let Some(reply) = self.proposals.remove(&token) {
            let _ = reply.send(answer);
        }
    }

    // ---- durable writes

    fn enqueue(&mut self, ticket: u64, writes: Vec<LogWrite>, source: Option<ReplicaId>) {
        let mut bytes = 0;
        for write in &writes {
            match write {
                LogWrite::Append(entries) => {
                    bytes += entries.iter().map(Entry::bytes).sum::<usize>();
                    self.ports.shard.remember(entries);
                }
                LogWrite::TruncateAfter(index) => self.ports.shard.forget_after(*index),
                LogWrite::Promise(_) => {}
            }
        }
        self.queued_bytes += bytes;
        self.queue.push_back(Queued::Write {
            ticket,
            writes,
            source,
            bytes,
        });
    }

    /// Starts the next batch when none is under way.
    fn write_next(&mut self) {
        if self.writing.is_some() {
            return;
        }
        let mut batch = Batch::default();
        while let Some(Queued::Write { bytes, .. }) = self.queue.front() {
            if batch.ticket.is_some() && batch.bytes + bytes > WRITE_BYTES_MAX {
                break;
            }
            let Some(Queued::Write {
                ticket,
                writes,
                source,
                bytes,
            }) = self.queue.pop_front()
            else {
                break;
            };
            self.queued_bytes -= bytes;
            batch.add(self.ports.shard.id, ticket, writes, source, bytes);
        }
        if batch.ticket.is_some() {
            self.writing = Some(write(self.ports.clone(), batch).boxed());
        } else if let Some(Queued::Install(snapshot)) = self.queue.pop_front() {
            self.writing = Some(
                install(self.ports.clone(), snapshot, std::mem::take(&mut self.unplaced))
                    .map(Written::Installed)
                    .boxed(),
            );
        }
    }

    fn written(&mut self, written: Written) {
        match written {
            Written::Durable(ticket) => self.step(Event::Durable { ticket }),
            Written::Installed(Ok(at)) => self.step(Event::SnapshotInstalled { at }),
            Written::Installed(Err(error)) => {
                tracing::error!(%error, shard = %self.ports.shard.id, "a snapshot could not be installed");
                self.step(Event::SnapshotFailed);
            }
            Written::Failed {
                ticket,
                gone,
                files,
                error,
            } => {
                self.unplaced.extend(files);
                let shard = self.ports.shard.id;
                if gone {
                    tracing::info!(%error, %shard, "log entries name files that their sender removed since; a snapshot is needed");
                } else {
                    tracing::warn!(%error, %shard, "log entries wait for files that cannot be fetched");
                }
                // Everything behind it continues a log that does not exist; the machine repeats promises and asks again.
                let dropped = std::mem::take(&mut self.queue);
                self.queued_bytes = 0;
                self.ports
                    .shard
                    .forget_after(self.ports.wal.last(self.ports.shard.id).1);
                self.step(Event::WriteFailed { ticket, gone });
                if dropped.iter().any(|q| matches!(q, Queued::Install(_))) {
                    self.step(Event::SnapshotFailed);
                }
            }
        }
    }

    // ---- jobs

    fn done(&mut self, done: Done) {
        match done {
            Done::Event(event) => self.step(event),
            Done::Refreshed(event) => {
                self.refreshing = false;
                event.into_iter().for_each(|e| self.step(e));
            }
            Done::Fetched(Ok(snapshot)) => {
                let at = snapshot.at();
                self.fetched = Some(snapshot);
                self.step(Event::SnapshotFetched { at });
            }
            Done::Fetched(Err(error)) => {
                tracing::warn!(%error, shard = %self.ports.shard.id, "fetching a snapshot failed");
                self.step(Event::SnapshotFailed);
            }
        }
    }

    fn read_log(&mut self, peer: ReplicaId, from: LogIndex, bytes_max: usize) {
        let (wal, shard) = (self.ports.wal.clone(), self.ports.shard.id);
        let read = move || {
            if from < wal.first(shard) {
                Ok(Vec::new())
            } else {
                wal.read(shard, from, bytes_max)
            }
        };
        self.jobs.push(
            async move {
                let records = match tokio::task::spawn_blocking(read).await {
                    Ok(Ok(records)) => records,
                    Ok(Err(error)) => {
                        tracing::error!(%error, %shard, "the log cannot be read for a peer; it gets a snapshot");
                        Vec::new()
                    }
                    Err(_) => Vec::new(),
                };
                let entry = |r: LogRecord| Entry {
                    at: Position {
                        epoch: r.epoch,
                        index: r.index,
                    },
                    kind: r.kind as u8,
                    payload: r.payload,
                };
                Done::Event(Event::LogRead {
                    peer,
                    entries: records.into_iter().map(entry).collect(),
                })
            }
            .boxed(),
        );
    }

    fn fetch(&mut self, from: ReplicaId, epoch: Epoch) {
        let (shard, transport) = (self.ports.shard.clone(), self.ports.transport.clone());
        self.jobs.push(
            async move { Done::Fetched(catch_up::fetch_snapshot(&shard, &*transport, from.node, epoch).await) }.boxed(),
        );
    }

    // ---- the outside

    fn publish(&mut self) {
        let (last, durable, commit) = self.state.positions();
        let role = self.state.role_name();
        let config = self.state.config().map(|(c, _)| c);
        self.ports.shard.status.send_if_modified(|s| {
            let same = s.role == role
                && (s.last, s.durable, s.commit) == (last.index, durable, commit)
                && s.config.as_ref() == config;
            if !same {
                (s.role, s.last, s.durable, s.commit) = (role, last.index, durable, commit);
                s.config = config.cloned();
            }
            !same
        });
    }

    /// A write under way may still become durable; nobody waits for it.
    async fn end(mut self) {
        for effect in self.state.resign() {
            self.carry_out(effect);
        }
        if let Some(writing) = self.writing.take() {
            let _ = tokio::time::timeout(Duration::from_secs(5), writing).await;
        }
        for (_, reply) in std::mem::take(&mut self.proposals) {
            let _ = reply.send(Err(Error::unavailable("the node is shutting down")));
        }
    }
}

#[derive(Default)]
struct Batch {
    ticket: Option<u64>,
    first: u64,
    records: Vec<Record>,
    /// Entries that may name files, and who has them.
    fetched_from: Vec<(ReplicaId, Vec<Entry>)>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, shard: ShardId, ticket: u64, writes: Vec<LogWrite>, source: Option<ReplicaId>, bytes: usize) {
        if self.ticket.is_none() {
            self.first = ticket;
        }
        self.ticket = Some(ticket);
        self.bytes += bytes;
        for write in writes {
            match write {
                LogWrite::Promise(epoch) => self.records.push(Record::Promise { shard, epoch }),
                LogWrite::TruncateAfter(index) => self.records.push(Record::TruncateAfter { shard, index }),
                LogWrite::Append(entries) => {
                    self.records.extend(entries.iter().filter_map(|e| record(shard, e)));
                    self.fetched_from.extend(source.map(|s| (s, entries)));
                }
            }
        }
    }
}

impl Batch {
    /// Names of the files that its entries need.
    fn files(&self) -> Vec<String> {
        let entries = self.fetched_from.iter().flat_map(|(_, entries)| entries);
        let logged = entries.filter_map(|e| Logged::decode(e.kind, e.payload.clone()).ok());
        logged.flat_map(|l| l.segments()).map(|s| s.file).collect()
    }
}

fn record(shard: ShardId, entry: &Entry) -> Option<Record> {
    // Unknown kinds were refused on arrival.
    let kind = EntryKind::from_u8(entry.kind)?;
    let record = LogRecord {
        epoch: entry.at.epoch,
        index: entry.at.index,
        kind,
        payload: entry.payload.clone(),
    };
    Some(Record::Entry { shard, record })
}

/// Files first, then the log.
async fn write(ports: Ports, batch: Batch) -> Written {
    let ticket = batch.ticket.unwrap_or_default();
    for (source, entries) in &batch.fetched_from {
        let fetched = tokio::time::timeout(FILES_TIMEOUT, ensure_files(&ports, *source, entries)).await;
        if let Err(error) =
            fetched.unwrap_or_else(|_| Err(Error::unavailable("files named by log entries did not come in time")))
        {
            return Written::Failed {
                ticket: batch.first,
                gone: error.code == FILE_GONE,
                files: batch.files(),
                error,
            };
        }
    }
    let mut reported = false;
    loop {
        match ports.wal.append(batch.records.clone()).await {
            Ok(()) => return Written::Durable(ticket),
            Err(error) => {
                if !std::mem::replace(&mut reported, true) {
                    tracing::error!(%error, shard = %ports.shard.id, "the log takes no entries; repeating");
                }
                if matches!(error.code.as_str(), "XX000" | "54000") {
                    ports.shard.status.send_modify(|s| s.damage = Some(error));
                }
                tokio::time::sleep(WRITE_PAUSE).await;
            }
        }
    }
}

async fn ensure_files(ports: &Ports, source: ReplicaId, entries: &[Entry]) -> Result<()> {
    for entry in entries {
        let segments = Logged::decode(entry.kind, entry.payload.clone())?.segments();
        catch_up::ensure_segments(&ports.shard, &*ports.transport, source.node, &segments).await?;
    }
    Ok(())
}

/// Replaces rows, ledger and log; the mark tells a restart that it was not complete. Staged files that only the replaced
/// ledger and log named, and those of `unplaced`, go unless the snapshot needs them.
async fn install(ports: Ports, snapshot: Snapshot, unplaced: BTreeSet<String>) -> Result<Position> {
    let shard = ports.shard.clone();
    let ledger = Ledger::from_image(&snapshot.ledger)?;
    let at = snapshot.at();
    let _gate = shard.apply_gate.lock().await;
    let (here, wal, before) = (shard.clone(), ports.wal.clone(), shard.ledger.lock().clone());
    let installed = tokio::task::spawn_blocking(move || {
        // A log that cannot be read is about to be replaced; what it names is swept at the next start.
        let named = open::named_files(&before, &wal, here.id, before.applied()).unwrap_or_default();
        durable::write_file(&here.dir.join(INSTALLING), b"")?;
        let index = here.store.install_snapshot(&snapshot.manifest)?;
        if index != at.index {
            return Err(Error::protocol(format!(
                "snapshot says log index {}, its manifest {index}",
                at.index
            )));
        }
        open::write_ledger(&here.dir, &snapshot.ledger)?;
        Ok(named)
    });
    let named = installed
        .await
        .map_err(|e| Error::internal(format!("installing a snapshot: {e}")))??;
    let records = vec![
        Record::Reset {
            shard: shard.id,
            epoch: at.epoch,
            index: at.index,
        },
        Record::Promise {
            shard: shard.id,
            epoch: ports.wal.promised(shard.id),
        },
    ];
    ports.wal.append(records).await?;
    let mark = shard.dir.join(INSTALLING);
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_file(mark)).await;
    removed
        .map_err(|e| Error::internal(e.to_string()))?
        .map_err(|e| Error::io("removing the mark of an installation", &e))?;
    let needed: HashSet<String> = ledger
        .prepared()
        .values()
        .flat_map(|p| segments(&p.writes))
        .map(|s| s.file)
        .collect();
    let left: Vec<String> = named
        .into_iter()
        .chain(unplaced)
        .filter(|f| !needed.contains(f))
        .collect();
    *shard.ledger.lock() = ledger;
    let here = shard.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || here.store.discard(&left)).await {
        tracing::error!(%error, shard = %shard.id, "removing files that a snapshot left behind failed");
    }
    shard.forget_until(at.index);
    shard.committed.send_replace(at.index);
    shard.applied.send_replace(at.index);
    shard.wake_all();
    Ok(at)
}

async fn cas(views: Arc<ViewKeeper>, shard: ShardId, config: ShardConfig, expected: u64) -> Done {
    let result = match serde_json::to_vec(&config) {
        Ok(value) => {
            let op = Op {
                key: keys::shard(shard),
                expect: Expect::Revision(expected),
                change: Change::Put(value),
            };
            views.store().cas(vec![op]).await
        }
        Err(e) => Err(Error::internal(e.to_string())),
    };
    Done::Event(Event::CasResult(match result {
        Ok(outcome) if outcome.applied => {
            tracing::info!(%shard, epoch = %config.epoch, leader = %config.leader, in_sync = config.in_sync.len(), "configuration changed");
            CasResult::Won {
                config,
                revision: outcome.revision,
            }
        }
        Ok(_) => CasResult::Lost,
        Err(error) => {
            if error.retry == Retry::No {
                tracing::error!(%error, %shard, "the configuration cannot be changed");
            }
            CasResult::Unknown
        }
    }))
}

async fn refresh(views: Arc<ViewKeeper>, shard: ShardId) -> Done {
    let view = views
        .refresh()
        .await
        .inspect_err(|error| tracing::debug!(%error, %shard, "the meta store cannot be read"));
    let entry = view.ok().and_then(|v| v.shards.get(&shard).cloned());
    Done::Refreshed(entry.map(|e| Event::ConfigChanged {
        config: e.config,
        revision: e.revision,
    }))
}
