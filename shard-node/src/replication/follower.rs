//! The replica's side of replication: promise, compare, cut, write, acknowledge what is durable.

use super::log_shape::{LogShape, Position};
use super::message::*;
use super::state::{Follower, ReplicaState, Role};
use tessera_proto::{Epoch, LogIndex, ReplicaId};

/// Bytes of entries in one Pulled or Append message; one larger entry may stand alone.
pub(super) const MESSAGE_ENTRIES_BYTES_MAX: usize = 4 << 20;

impl ReplicaState {
    /// Accepts a leader's message, or refuses a deposed one. The same epoch has one leader only (compare-and-swap).
    fn follow(&mut self, from: ReplicaId, epoch: Epoch) -> Option<&mut Follower> {
        if epoch < self.promised {
            self.send(
                from,
                Message::Nack {
                    promised: self.promised,
                },
            );
            return None;
        }
        let leads_itself = match &self.role {
            Role::Leading(leader) => leader.epoch == epoch,
            Role::Recovering(recovery) => recovery.epoch == epoch,
            _ => false,
        };
        if leads_itself || from == self.me {
            return None;
        }
        let begins = epoch > self.promised || !matches!(&self.role, Role::Follower(f) if f.leader == Some(from));
        if begins {
            self.promise(epoch);
            // A fetch under way goes on: its result is checked against whoever leads then.
            let fetching = matches!(&self.role, Role::Follower(f) if f.fetching);
            self.become_role(Role::Follower(Follower {
                leader: Some(from),
                fetching,
                ..Follower::default()
            }));
        }
        match &mut self.role {
            Role::Follower(follower) => Some(follower),
            _ => None,
        }
    }

    pub(super) fn on_probe(&mut self, from: ReplicaId, epoch: Epoch) {
        if let Some(follower) = self.follow(from, epoch) {
            follower.matched = LogIndex(0);
            follower.owes_shape = true;
        }
    }

    pub(super) fn on_append(
        &mut self,
        from: ReplicaId,
        epoch: Epoch,
        prev: Position,
        entries: Vec<Entry>,
        commit: LogIndex,
    ) {
        let wants_snapshot = self.wants_snapshot;
        let Some(follower) = self.follow(from, epoch) else {
            return;
        };
        if follower.fetching {
            return;
        }
        if wants_snapshot || follower.files_gone {
            follower.owes_shape = true;
            return;
        }
        let contiguous = entries
            .iter()
            .enumerate()
            .all(|(i, e)| e.at.index.0 == prev.index.0 + 1 + i as u64 && e.at.epoch <= epoch);
        if !contiguous || self.log.epoch_at(prev.index) != Some(prev.epoch) {
            // A gap, or older than what is in files: the leader looks at the whole log again.
            return self.send(
                from,
                Message::Nack {
                    promised: self.promised,
                },
            );
        }
        let upto = LogIndex(prev.index.0 + entries.len() as u64);
        if !self.take(from, entries) {
            return;
        }
        if let Role::Follower(follower) = &mut self.role {
            follower.matched = follower.matched.max(upto);
            follower.owes_ack = true;
            self.commit = self.commit.max(commit.min(follower.matched));
        }
    }

    /// Writes what is new, cutting what differs. False when a cut would lose applied rows: then only a snapshot helps.
    fn take(&mut self, source: ReplicaId, mut entries: Vec<Entry>) -> bool {
        let known = entries
            .iter()
            .take_while(|e| self.log.epoch_at(e.at.index) == Some(e.at.epoch))
            .count();
        let new = entries.split_off(known);
        let Some(first) = new.first() else { return true };
        let before = LogIndex(first.at.index.0 - 1);
        if before < self.log.last().index {
            if before < self.commit {
                self.wants_snapshot = true;
                if let Role::Follower(follower) = &mut self.role {
                    follower.owes_shape = true;
                }
                return false;
            }
            self.truncate_after(before);
        }
        if new.windows(2).any(|w| w[1].at.epoch < w[0].at.epoch) || first.at.epoch < self.log.last().epoch {
            return false;
        }
        self.append(new, Some(source));
        true
    }

    pub(super) fn on_offer(&mut self, from: ReplicaId, epoch: Epoch) {
        let me = self.me;
        let in_sync = self.config.as_ref().is_some_and(|c| c.in_sync.contains(&me));
        let Some(follower) = self.follow(from, epoch) else {
            return;
        };
        if in_sync {
            // A snapshot may end before what this copy once acknowledged, and in sync it could be made leader like that: the
            // leader takes it out first and offers again.
            return;
        }
        if std::mem::replace(&mut follower.fetching, true) {
            return;
        }
        self.effects.push(Effect::FetchSnapshot { from, epoch });
    }

    /// A late or repeated offer may have led to a snapshot older than this log, which holds acknowledged entries: keep the log.
    pub(super) fn on_snapshot_fetched(&mut self, at: Position) {
        let contained = at.index <= self.log.base().index || self.log.epoch_at(at.index) == Some(at.epoch);
        if contained && !self.wants_snapshot {
            return self.on_snapshot_failed();
        }
        // Rows are about to be replaced: until that is complete, this log must not be continued.
        self.wants_snapshot = true;
        self.effects.push(Effect::InstallSnapshot);
    }

    pub(super) fn on_snapshot_installed(&mut self, at: Position) {
        self.wants_snapshot = false;
        self.install_base(LogShape::starting_after(at));
        if let Role::Follower(follower) = &mut self.role {
            (follower.fetching, follower.files_gone) = (false, false);
            follower.matched = LogIndex(0);
            follower.owes_shape = follower.leader.is_some();
        }
    }

    pub(super) fn on_snapshot_failed(&mut self) {
        if let Role::Follower(follower) = &mut self.role {
            follower.fetching = false;
            follower.owes_shape = follower.leader.is_some();
        }
    }

    /// A starting leader adopts a log longer than its own from here.
    pub(super) fn on_pull(&mut self, from: ReplicaId, epoch: Epoch, first: LogIndex) {
        if self.follow(from, epoch).is_some() && first <= self.durable && self.promise_is_durable() {
            self.effects.push(Effect::ReadLog {
                peer: from,
                from: first,
                bytes_max: MESSAGE_ENTRIES_BYTES_MAX,
            });
        }
    }

    /// What was read for a peer: for the leader's Pull, or by the leader for a peer that is far behind.
    pub(super) fn on_log_read(&mut self, peer: ReplicaId, entries: Vec<Entry>) {
        match &self.role {
            Role::Follower(follower) if follower.leader == Some(peer) => {
                self.send(
                    peer,
                    Message::Pulled {
                        epoch: self.promised,
                        entries,
                    },
                );
            }
            Role::Leading(_) => self.on_read_for_peer(peer, entries),
            _ => {}
        }
    }

    pub(super) fn settle_follower(&mut self) {
        let (durable, promised, commit) = (self.durable, self.promised, self.commit);
        let (all_durable, fenced) = (self.all_durable(), self.promise_is_durable());
        #[cfg(test)]
        let durable = match self.bug {
            Some(super::simulation::Bug::AckBeforeDurable) => self.log.last().index,
            _ => durable,
        };
        let Role::Follower(follower) = &mut self.role else {
            return;
        };
        let Some(leader) = follower.leader else { return };
        if follower.owes_shape && all_durable && fenced {
            follower.owes_shape = false;
            let (log, wants_snapshot) = (self.log.clone(), self.wants_snapshot || follower.files_gone);
            return self.send(
                leader,
                Message::Shape {
                    epoch: promised,
                    log,
                    wants_snapshot,
                },
            );
        }
        let durable = follower.matched.min(durable);
        // While entries are under way, only progress is worth a message; the last of them always is.
        if follower.owes_ack && fenced && (all_durable || durable > follower.acked) {
            follower.owes_ack = !all_durable;
            follower.acked = durable;
            self.send(
                leader,
                Message::Ack {
                    epoch: promised,
                    durable,
                    commit,
                },
            );
        }
    }
}
