//! What goes into the replication machine (events, peers' messages) and what comes out of it (effects).
//!
//! ```text
//!   leader                     replica
//!     Probe(e) ─────────────▶    promise e, durably
//!     ◀───────────────── Shape   its log, all of it durable
//!     Append(prev, entries) ─▶   cut what differs, write
//!     ◀─────────────────── Ack   durable up to
//!     Offer ─────────────────▶   (log gone) fetch my snapshot, then Shape again
//!     Pull  ─────────────────▶   a starting leader adopts a longer log
//! ```

use super::log_shape::{LogShape, Position};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;
use tessera_proto::shard_map::ShardConfig;
use tessera_proto::{Epoch, LogIndex, NodeId, ReplicaId};
use uuid::Uuid;

/// One log entry; the payload's meaning belongs to [`crate::txn`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Epoch and index: never written twice.
    pub at: Position,
    /// Kind of payload, as in the WAL.
    pub kind: u8,
    /// Opaque here.
    pub payload: Bytes,
}

impl Entry {
    /// What it counts against windows: the payload and its envelope.
    pub fn bytes(&self) -> usize {
        self.payload.len() + 32
    }
}

/// The kind of the first entry of every leadership; its payload is empty.
pub const EPOCH_START: u8 = 1;

/// Between replicas of one shard. `epoch` is the epoch the leader of the exchange leads in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Leader: promise me this epoch and show me your log.
    Probe {
        /// The leader's epoch.
        epoch: Epoch,
    },
    /// Reply to Probe and Offer.
    Shape {
        /// Epoch promised to.
        epoch: Epoch,
        /// The durable log.
        log: LogShape,
        /// This copy cannot continue its log: it needs a snapshot.
        wants_snapshot: bool,
    },
    /// Leader: entries after `prev`.
    Append {
        /// The leader's epoch.
        epoch: Epoch,
        /// The entry before the first.
        prev: Position,
        /// Possibly none.
        entries: Vec<Entry>,
        /// Everything up to here is committed.
        commit: LogIndex,
    },
    /// Everything up to `durable` equals the leader's log and is durable.
    Ack {
        /// Epoch of the Append.
        epoch: Epoch,
        /// Durable and equal up to here.
        durable: LogIndex,
        /// Commit index known here.
        commit: LogIndex,
    },
    /// Not taken: the sender is deposed (`promised` above its epoch), or `prev` is not in this log.
    Nack {
        /// Highest epoch promised here.
        promised: Epoch,
    },
    /// A starting leader asks an in-sync member for entries it does not have itself.
    Pull {
        /// The leader's epoch.
        epoch: Epoch,
        /// First index wanted.
        from: LogIndex,
    },
    /// Reply to Pull.
    Pulled {
        /// Epoch of the Pull.
        epoch: Epoch,
        /// From the wanted index on, as many as fit.
        entries: Vec<Entry>,
    },
    /// Leader: the entries you need are gone, fetch my snapshot.
    Offer {
        /// The leader's epoch.
        epoch: Epoch,
    },
}

/// Result of a compare-and-swap of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CasResult {
    /// Written at this revision.
    Won {
        /// What was written.
        config: ShardConfig,
        /// Its revision.
        revision: u64,
    },
    /// Somebody else wrote first; a ConfigChanged follows.
    Lost,
    /// No answer: it may have been written, or may still be.
    Unknown,
}

/// What an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The leader hands over to this in-sync member.
    Switch(ReplicaId),
    /// This replica takes over from a dead leader; loses nothing.
    Promote,
    /// This replica takes over whatever is lost.
    ForcePromote,
}

/// Input of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// From a peer; may be late, repeated, or out of order.
    Message {
        /// The sender.
        from: ReplicaId,
        /// What it says.
        message: Message,
    },
    /// The write with this ticket, and so all before it, is on disk.
    Durable {
        /// From [`Effect::Write`].
        ticket: u64,
    },
    /// This write and all after it were dropped: files they name could not be fetched.
    WriteFailed {
        /// From [`Effect::Write`].
        ticket: u64,
        /// Its source has such a file no more, because it applied more of the log: the transaction that staged it was aborted.
        gone: bool,
    },
    /// Append these (kind, payload) pairs, if this is a leader that takes proposals.
    Propose {
        /// Returned in Accepted or Rejected.
        token: u64,
        /// At least one.
        entries: Vec<(u8, Bytes)>,
    },
    /// The configuration as the meta store has it; also after Lost and on request.
    ConfigChanged {
        /// The configuration.
        config: ShardConfig,
        /// Revision at which it was written.
        revision: u64,
    },
    /// Answer to [`Effect::Cas`].
    CasResult(CasResult),
    /// Answer to [`Effect::ReadLog`].
    LogRead {
        /// For whom it was read.
        peer: ReplicaId,
        /// From the wanted index on; empty when they are gone.
        entries: Vec<Entry>,
    },
    /// The log up to here is not needed any more and may be gone.
    Released {
        /// Included.
        upto: LogIndex,
    },
    /// A snapshot's files are here; nothing is replaced yet.
    SnapshotFetched {
        /// The last entry it contains.
        at: Position,
    },
    /// A fetched snapshot replaced this replica's rows and log.
    SnapshotInstalled {
        /// The last entry it contains.
        at: Position,
    },
    /// Fetching or installing failed; the leader will offer again.
    SnapshotFailed,
    /// A peer's connection broke: messages may be lost.
    PeerLost {
        /// The peer's node.
        node: NodeId,
    },
    /// Which nodes answer heartbeats, and the disk each registered with.
    Peers {
        /// Nodes heard of within the lease.
        alive: Vec<NodeId>,
        /// Present disks.
        disks: BTreeMap<NodeId, Uuid>,
    },
    /// An operator's wish; refused by [`Effect::Refused`] with the token.
    Operator {
        /// Returned in Refused.
        token: u64,
        /// What.
        operation: Operation,
    },
    /// Time passes; about every 100 ms.
    Tick,
}

/// One change of the durable log, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogWrite {
    /// Never take part in a lower epoch again.
    Promise(Epoch),
    /// Forget what comes after.
    TruncateAfter(LogIndex),
    /// Right after the last entry.
    Append(Vec<Entry>),
}

/// Output of the machine, to be carried out in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Best effort.
    Send {
        /// The receiver.
        to: ReplicaId,
        /// What to say.
        message: Message,
    },
    /// Make durable, in the order of tickets, then report Durable.
    Write {
        /// Ascending.
        ticket: u64,
        /// In order.
        writes: Vec<LogWrite>,
        /// Who has the files that the entries name; `None` = they are here.
        source: Option<ReplicaId>,
    },
    /// Read durable entries from the log, then report LogRead.
    ReadLog {
        /// For whom.
        peer: ReplicaId,
        /// First index.
        from: LogIndex,
        /// At least one entry, at most about this much.
        bytes_max: usize,
    },
    /// Write the configuration if it is still at `expected`.
    Cas {
        /// What to write.
        config: ShardConfig,
        /// Revision to replace.
        expected: u64,
    },
    /// Read the configuration and report ConfigChanged.
    RefreshConfig,
    /// Everything up to here may be applied: committed, and durable here.
    Committed {
        /// Included.
        upto: LogIndex,
    },
    /// A proposal took these indexes in this epoch.
    Accepted {
        /// From Propose.
        token: u64,
        /// Index of its last entry.
        last: LogIndex,
    },
    /// A proposal was not taken; nothing happened.
    Rejected {
        /// From Propose.
        token: u64,
    },
    /// This replica leads. It may serve once everything up to `start` is applied.
    Leads {
        /// The epoch.
        epoch: Epoch,
        /// Index of its EpochStart entry.
        start: LogIndex,
    },
    /// It still leads, in a higher epoch, without a break.
    LeadsOn {
        /// The epoch.
        epoch: Epoch,
    },
    /// Stop (true) or resume (false) serving reads and writes: leadership may be elsewhere at any moment.
    Pause(bool),
    /// It leads no more: what was accepted and is not committed has an unknown outcome.
    SteppedDown,
    /// Replace rows and log by the fetched snapshot, after all earlier writes; then report SnapshotInstalled or SnapshotFailed.
    InstallSnapshot,
    /// Fetch the leader's snapshot, then report SnapshotFetched or SnapshotFailed.
    FetchSnapshot {
        /// The leader.
        from: ReplicaId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// An operator's wish cannot be granted.
    Refused {
        /// From Operator.
        token: u64,
        /// Lower case, for the user.
        reason: &'static str,
    },
}

/// Waits and windows of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Timings {
    /// An unanswered probe or Append is repeated after this long.
    pub retry: Duration,
    /// An in-sync member not heard of for this long is taken out (the lease).
    pub silent: Duration,
    /// An in-sync member that is alive but acknowledges nothing for this long is taken out.
    pub stall: Duration,
    /// A starting leader waits this long for the in-sync members' logs before it goes on without them.
    pub recovery: Duration,
    /// A hand-over that is not complete after this long is given up.
    pub switch: Duration,
    /// Bytes sent to one peer and not yet acknowledged; one larger entry may always be under way.
    pub window_bytes: usize,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            retry: Duration::from_millis(500),
            silent: Duration::from_millis(1_200),
            stall: Duration::from_secs(10),
            // A whole cluster's nodes start within this time of each other; a copy that does not rejoins later.
            recovery: Duration::from_secs(4),
            switch: Duration::from_secs(5),
            // About 10 ms of a 400 MB/s disk: enough to keep it busy during one round trip.
            window_bytes: 4 << 20,
        }
    }
}
