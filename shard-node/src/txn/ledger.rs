//! What the log says about transactions, on every copy: which are prepared here, and how those with home here ended.
//!
//! ```text
//!   Prepare(t)            prepared {t}
//!   Commit(t, ts)         prepared {}          rows of t become visible at ts
//!   CommitRecord(ts,[u])  outcomes {u: ts}     rows of u become visible at ts, unless u is {aborted}: then void
//!   AbortRecord(v)        outcomes {v: aborted}, unless v is there already: the first record wins
//! ```
//!
//! Deterministic: the same entries give the same ledger. It is saved as an image next to each seal, so that the log may be
//! cut. Outcomes of finished transactions are kept for [`OUTCOMES_MAX`] more, so that a router that lost an answer can ask.

use super::entry::{CommitRecord, Committed, Logged, Prepare, ShardKey, segments};
use bytes::Bytes;
use prost::Message;
use std::collections::{BTreeMap, VecDeque};
use tessera_proto::{Error, LogIndex, Result, ShardId, Timestamp, TxnId, v1};

/// Outcomes kept after everybody knows: at 1,000 commits a second about four minutes, and 16 MB.
pub const OUTCOMES_MAX: usize = 262_144;

/// A prepared transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// Where it is decided.
    pub home: ShardId,
    /// Its rows.
    pub writes: Vec<v1::TableWrite>,
    /// The catalog that knows the tables is at least this new.
    pub meta_revision: u64,
    /// Its Prepare entry.
    pub index: LogIndex,
}

/// How a transaction with home here ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Commit timestamp; `None` = aborted.
    pub timestamp: Option<Timestamp>,
    /// Participants that may not know yet; empty after End.
    pub participants: Vec<ShardId>,
}

/// Rows that one entry makes visible.
#[derive(Debug, Clone, PartialEq)]
pub struct Visible {
    /// At which commit timestamp.
    pub timestamp: Timestamp,
    /// The rows.
    pub writes: Vec<v1::TableWrite>,
    /// The catalog that knows the tables is at least this new.
    pub meta_revision: u64,
}

/// What applying an entry entails besides the ledger.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Consequences {
    /// Rows to make visible, before anyone sees the new ledger.
    pub visible: Vec<Visible>,
    /// Transactions whose locks end.
    pub unlocked: Vec<TxnId>,
    /// Staged files that nobody will need.
    pub discard: Vec<String>,
    /// Transactions whose staged files now belong to the log.
    pub owned: Vec<TxnId>,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ledger {
    applied: LogIndex,
    prepared: BTreeMap<TxnId, Prepared>,
    outcomes: BTreeMap<TxnId, Outcome>,
    /// Outcomes that may be forgotten, oldest first.
    finished: VecDeque<TxnId>,
}

impl Ledger {
    /// Last entry taken in.
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// Prepared and undecided here.
    pub fn prepared(&self) -> &BTreeMap<TxnId, Prepared> {
        &self.prepared
    }

    /// How a transaction with home here ended, if it did.
    pub fn outcome(&self, txn: TxnId) -> Option<&Outcome> {
        self.outcomes.get(&txn)
    }

    /// Committed transactions whose participants may not know yet.
    pub fn unfinished(&self) -> impl Iterator<Item = (TxnId, Timestamp, &[ShardId])> {
        self.outcomes
            .iter()
            .filter(|(_, o)| !o.participants.is_empty())
            .filter_map(|(t, o)| Some((*t, o.timestamp?, o.participants.as_slice())))
    }

    /// What an entry entails, without changing anything: rows first, then [`Self::apply`].
    pub fn consequences(&self, index: LogIndex, entry: &Logged) -> Result<Consequences> {
        let mut out = Consequences::default();
        if index <= self.applied {
            return Ok(out);
        }
        match entry {
            Logged::EpochStart | Logged::AbortRecord(_) | Logged::End(_) => {}
            Logged::Prepare(prepare) => out.owned.push(TxnId::from_wire(&prepare.txn)?),
            Logged::CommitRecord(record) => self.commit_consequences(record, &mut out)?,
            Logged::Commit(txn, timestamp) => {
                out.unlocked.push(*txn);
                out.visible.extend(self.prepared.get(txn).map(|p| Visible {
                    timestamp: *timestamp,
                    writes: p.writes.clone(),
                    meta_revision: p.meta_revision,
                }));
            }
            Logged::Abort(txn) => {
                out.unlocked.push(*txn);
                out.discard = self
                    .prepared
                    .get(txn)
                    .iter()
                    .flat_map(|p| segments(&p.writes))
                    .map(|s| s.file)
                    .collect();
            }
        }
        Ok(out)
    }

    fn commit_consequences(&self, record: &CommitRecord, out: &mut Consequences) -> Result<()> {
        for commit in &record.commits {
            let txn = TxnId::from_wire(&commit.txn)?;
            out.unlocked.push(txn);
            if self.outcomes.contains_key(&txn) {
                out.discard.extend(segments(&commit.writes).into_iter().map(|s| s.file));
                continue;
            }
            out.owned.push(txn);
            let (writes, meta_revision) = (commit.writes.clone(), commit.meta_revision);
            out.visible.push(Visible {
                timestamp: Timestamp(record.timestamp),
                writes,
                meta_revision,
            });
        }
        Ok(())
    }

    /// Takes an entry in; nothing happens when it was before.
    pub fn apply(&mut self, index: LogIndex, entry: &Logged) -> Result<()> {
        if index <= self.applied {
            return Ok(());
        }
        self.applied = index;
        match entry {
            Logged::EpochStart => {}
            Logged::Prepare(prepare) => self.prepare(index, prepare)?,
            Logged::CommitRecord(record) => {
                for commit in &record.commits {
                    self.decide(Timestamp(record.timestamp), commit)?;
                }
            }
            Logged::Commit(txn, _) | Logged::Abort(txn) => drop(self.prepared.remove(txn)),
            Logged::AbortRecord(txn) => {
                if !self.outcomes.contains_key(txn) {
                    self.outcomes.insert(
                        *txn,
                        Outcome {
                            timestamp: None,
                            participants: Vec::new(),
                        },
                    );
                    self.forget_later(*txn);
                }
            }
            Logged::End(txn) => {
                if let Some(outcome) = self.outcomes.get_mut(txn).filter(|o| !o.participants.is_empty()) {
                    outcome.participants.clear();
                    self.forget_later(*txn);
                }
            }
        }
        Ok(())
    }

    fn prepare(&mut self, index: LogIndex, prepare: &Prepare) -> Result<()> {
        let home = prepare
            .home
            .ok_or_else(|| Error::corrupt("prepare entry without a home shard"))?
            .into();
        let (writes, meta_revision) = (prepare.writes.clone(), prepare.meta_revision);
        self.prepared.insert(
            TxnId::from_wire(&prepare.txn)?,
            Prepared {
                home,
                writes,
                meta_revision,
                index,
            },
        );
        Ok(())
    }

    fn decide(&mut self, timestamp: Timestamp, commit: &Committed) -> Result<()> {
        let txn = TxnId::from_wire(&commit.txn)?;
        if self.outcomes.contains_key(&txn) {
            return Ok(());
        }
        let participants: Vec<ShardId> = commit.participants.iter().map(|p| (*p).into()).collect();
        if participants.is_empty() {
            self.forget_later(txn);
        }
        self.outcomes.insert(
            txn,
            Outcome {
                timestamp: Some(timestamp),
                participants,
            },
        );
        Ok(())
    }

    fn forget_later(&mut self, txn: TxnId) {
        self.finished.push_back(txn);
        if self.finished.len() > OUTCOMES_MAX
            && let Some(oldest) = self.finished.pop_front()
        {
            self.outcomes.remove(&oldest);
        }
    }

    /// For the disk and for copies.
    pub fn to_image(&self) -> Bytes {
        let prepared = self.prepared.iter().map(|(txn, p)| PreparedImage {
            entry: Some(Prepare {
                txn: txn.to_wire(),
                home: Some(p.home.into()),
                writes: p.writes.clone(),
                meta_revision: p.meta_revision,
            }),
            index: p.index.0,
        });
        let outcome = |(txn, o): (&TxnId, &Outcome)| OutcomeImage {
            txn: txn.to_wire(),
            timestamp: o.timestamp.map_or(0, |t| t.0),
            participants: o.participants.iter().map(|p| (*p).into()).collect(),
        };
        let open = self
            .outcomes
            .iter()
            .filter(|(_, o)| !o.participants.is_empty())
            .map(outcome);
        let finished = self
            .finished
            .iter()
            .filter_map(|t| self.outcomes.get_key_value(t))
            .map(outcome);
        let image = Image {
            applied: self.applied.0,
            prepared: prepared.collect(),
            outcomes: open.chain(finished).collect(),
        };
        image.encode_to_vec().into()
    }

    /// The inverse of [`Self::to_image`]; input may be anything.
    ///
    /// # Errors
    /// XX001 when it is not an image.
    pub fn from_image(bytes: &[u8]) -> Result<Self> {
        let image =
            Image::decode(bytes).map_err(|e| Error::corrupt(format!("transaction ledger cannot be read: {e}")))?;
        let mut ledger = Self {
            applied: LogIndex(image.applied),
            ..Self::default()
        };
        for prepared in image.prepared {
            let entry = prepared
                .entry
                .ok_or_else(|| Error::corrupt("transaction ledger has a prepared entry without contents"))?;
            ledger.prepare(LogIndex(prepared.index), &entry)?;
        }
        for outcome in image.outcomes {
            let txn = TxnId::from_wire(&outcome.txn)?;
            let participants: Vec<ShardId> = outcome.participants.into_iter().map(Into::into).collect();
            if participants.is_empty() {
                ledger.forget_later(txn);
            }
            let timestamp = (outcome.timestamp != 0).then_some(Timestamp(outcome.timestamp));
            ledger.outcomes.insert(
                txn,
                Outcome {
                    timestamp,
                    participants,
                },
            );
        }
        Ok(ledger)
    }
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(uint64, tag = "1")]
    applied: u64,
    #[prost(message, repeated, tag = "2")]
    prepared: Vec<PreparedImage>,
    #[prost(message, repeated, tag = "3")]
    outcomes: Vec<OutcomeImage>,
}

#[derive(Clone, PartialEq, Message)]
struct PreparedImage {
    #[prost(message, optional, tag = "1")]
    entry: Option<Prepare>,
    #[prost(uint64, tag = "2")]
    index: u64,
}

#[derive(Clone, PartialEq, Message)]
struct OutcomeImage {
    #[prost(bytes = "bytes", tag = "1")]
    txn: Bytes,
    /// 0 = aborted.
    #[prost(uint64, tag = "2")]
    timestamp: u64,
    #[prost(message, repeated, tag = "3")]
    participants: Vec<ShardKey>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_proto::GroupId;

    fn shard(index: u32) -> ShardId {
        ShardId {
            group: GroupId(1),
            index,
        }
    }

    fn record(txn: TxnId, timestamp: u64, participants: &[u32]) -> Logged {
        let participants = participants.iter().map(|p| shard(*p).into()).collect();
        let commit = Committed {
            txn: txn.to_wire(),
            participants,
            writes: vec![v1::TableWrite::default()],
            meta_revision: 1,
        };
        Logged::CommitRecord(CommitRecord {
            timestamp,
            commits: vec![commit],
        })
    }

    fn apply(ledger: &mut Ledger, entry: Logged) -> Consequences {
        let index = LogIndex(ledger.applied().0 + 1);
        let consequences = ledger.consequences(index, &entry).unwrap();
        ledger.apply(index, &entry).unwrap();
        consequences
    }

    #[test]
    fn the_first_decision_wins() {
        let (a, b) = (TxnId::generate(), TxnId::generate());
        let mut ledger = Ledger::default();
        apply(&mut ledger, Logged::AbortRecord(a));
        assert!(apply(&mut ledger, record(a, 7, &[])).visible.is_empty());
        assert_eq!(ledger.outcome(a).unwrap().timestamp, None);
        assert_eq!(
            apply(&mut ledger, record(b, 8, &[2])).visible[0].timestamp,
            Timestamp(8)
        );
        apply(&mut ledger, Logged::AbortRecord(b));
        assert_eq!(ledger.outcome(b).unwrap().timestamp, Some(Timestamp(8)));
        assert_eq!(ledger.unfinished().count(), 1);
        apply(&mut ledger, Logged::End(b));
        assert_eq!(ledger.unfinished().count(), 0);
    }

    #[test]
    fn images_round_trip_and_replay_changes_nothing() {
        let (a, b, c) = (TxnId::generate(), TxnId::generate(), TxnId::generate());
        let prepare = |t: TxnId| {
            Logged::Prepare(Prepare {
                txn: t.to_wire(),
                home: Some(shard(0).into()),
                writes: vec![v1::TableWrite::default()],
                meta_revision: 3,
            })
        };
        let mut ledger = Ledger::default();
        for entry in [
            Logged::EpochStart,
            prepare(a),
            record(b, 5, &[3]),
            prepare(c),
            Logged::Abort(c),
        ] {
            apply(&mut ledger, entry);
        }
        let restored = Ledger::from_image(&ledger.to_image()).unwrap();
        assert_eq!(restored, ledger);
        let mut again = restored.clone();
        assert_eq!(
            again.consequences(LogIndex(2), &prepare(a)).unwrap(),
            Consequences::default()
        );
        again.apply(LogIndex(4), &prepare(c)).unwrap();
        assert_eq!(again, ledger);
        assert_eq!(apply(&mut again, Logged::Commit(a, Timestamp(9))).visible.len(), 1);
        assert!(Ledger::from_image(b"\xff").is_err());
    }
}
