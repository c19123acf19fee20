//! A leader's beginning: promise the new epoch, hear every in-sync member's log, adopt the longest, then lead.
//!
//! ```text
//!   promise e durably ─▶ Probe all in-sync ─▶ Shapes ─▶ longer log there? Pull it ─▶ EpochStart(e)
//!                          │ silent for `recovery`: compare-and-swap them out, begin again in e+1
//! ```
//!
//! Adopting is not needed for entries this disk still has; it brings back a tail that this disk lost (a torn or damaged
//! last group) and saves what was under way. Every in-sync log holds every committed entry, so any choice is safe.

use super::log_shape::{LogShape, Position};
use super::message::*;
use super::state::{ReplicaState, Role};
use std::collections::BTreeMap;
use std::time::Duration;
use tessera_proto::{Epoch, LogIndex, ReplicaId};

/// State of a starting leader.
#[derive(Debug)]
pub(super) struct Recovery {
    pub epoch: Epoch,
    since: Option<Duration>,
    asked: Duration,
    shapes: BTreeMap<ReplicaId, LogShape>,
    pull: Option<(ReplicaId, Position)>,
}

impl ReplicaState {
    pub(super) fn start_recovery(&mut self, epoch: Epoch) {
        let recovery = Recovery {
            epoch,
            since: None,
            asked: self.now,
            shapes: BTreeMap::new(),
            pull: None,
        };
        self.become_role(Role::Recovering(recovery));
        self.promise(epoch);
    }

    /// In-sync members other than this one.
    pub(super) fn others_in_sync(&self) -> Vec<ReplicaId> {
        let config = self.config.iter();
        config
            .flat_map(|c| c.in_sync.iter().copied())
            .filter(|r| *r != self.me)
            .collect()
    }

    pub(super) fn settle_recovery(&mut self) {
        let now = self.now;
        if !self.promise_is_durable() || self.wanted_config().is_some() {
            return;
        }
        let members = self.others_in_sync();
        let Role::Recovering(recovery) = &mut self.role else {
            return;
        };
        if recovery.since.is_none() {
            (recovery.since, recovery.asked) = (Some(now), now);
            let probe = Message::Probe { epoch: recovery.epoch };
            members.iter().for_each(|m| self.send(*m, probe.clone()));
            if !members.is_empty() {
                return;
            }
        }
        self.adopt_or_lead(&members);
    }

    fn adopt_or_lead(&mut self, members: &[ReplicaId]) {
        let (last, all_durable, commit) = (self.log.last(), self.all_durable(), self.commit);
        let Role::Recovering(recovery) = &mut self.role else {
            return;
        };
        if members.iter().any(|m| !recovery.shapes.contains_key(m)) || !all_durable {
            return;
        }
        if let Some((_, target)) = recovery.pull {
            if last < target {
                return;
            }
            recovery.pull = None;
        }
        let longest = recovery
            .shapes
            .iter()
            .filter(|(r, _)| members.contains(r))
            .max_by_key(|(r, s)| (s.last(), **r));
        let Some((source, theirs)) = longest.filter(|(_, s)| s.last() > last) else {
            let (epoch, shapes) = (recovery.epoch, std::mem::take(&mut recovery.shapes));
            return self.start_leading(epoch, shapes);
        };
        let (source, target) = (*source, theirs.last());
        if target.epoch >= recovery.epoch {
            // This epoch was led before, by this very replica, whose disk has lost that and its promise since: entries written
            // in it now would have the same names as those.
            return self.change_config(|_| {});
        }
        match self.log.common(theirs).filter(|c| *c >= commit) {
            Some(common) => {
                recovery.pull = Some((source, target));
                recovery.asked = self.now;
                let pull = Message::Pull {
                    epoch: recovery.epoch,
                    from: LogIndex(common.0 + 1),
                };
                if common < last.index {
                    self.truncate_after(common);
                }
                self.send(source, pull);
            }
            // Its rows continue beyond anything this log can be extended to: that member shall lead.
            None => self.change_config(|config| config.leader = source),
        }
    }

    pub(super) fn on_recovery_shape(&mut self, from: ReplicaId, epoch: Epoch, log: LogShape, wants_snapshot: bool) {
        let Role::Recovering(recovery) = &mut self.role else {
            return;
        };
        if recovery.epoch == epoch {
            // A copy that wants a snapshot has nothing to adopt.
            recovery
                .shapes
                .insert(from, if wants_snapshot { LogShape::default() } else { log });
        }
    }

    pub(super) fn on_pulled(&mut self, from: ReplicaId, epoch: Epoch, entries: Vec<Entry>) {
        let next = LogIndex(self.log.last().index.0 + 1);
        let last = self.log.last();
        let Role::Recovering(recovery) = &mut self.role else {
            return;
        };
        let Some((source, target)) = recovery.pull.filter(|_| recovery.epoch == epoch) else {
            return;
        };
        let fresh: Vec<_> = entries.into_iter().skip_while(|e| e.at.index < next).collect();
        let fits = fresh
            .first()
            .is_some_and(|e| e.at.index == next && e.at.epoch >= last.epoch)
            && fresh
                .windows(2)
                .all(|w| w[1].at.index.0 == w[0].at.index.0 + 1 && w[1].at.epoch >= w[0].at.epoch)
            && fresh.iter().all(|e| e.at.epoch < epoch);
        if source != from || !fits {
            return;
        }
        recovery.asked = self.now;
        let more = fresh.last().is_some_and(|e| e.at < target);
        let following = LogIndex(next.0 + fresh.len() as u64);
        self.append(fresh, Some(from));
        if more {
            self.send(from, Message::Pull { epoch, from: following });
        }
    }

    pub(super) fn tick_recovery(&mut self) {
        let (now, timings, next) = (self.now, self.timings, LogIndex(self.log.last().index.0 + 1));
        let members = self.others_in_sync();
        let Role::Recovering(recovery) = &mut self.role else {
            return;
        };
        let Some(since) = recovery
            .since
            .filter(|_| now.saturating_sub(recovery.asked) >= timings.retry)
        else {
            return;
        };
        let epoch = recovery.epoch;
        if let Some((source, _)) = recovery.pull {
            if now.saturating_sub(recovery.asked) >= timings.recovery {
                // It went away: it counts as silent from here on.
                recovery.pull = None;
                recovery.shapes.remove(&source);
            } else {
                self.send(source, Message::Pull { epoch, from: next });
            }
            return;
        }
        recovery.asked = now;
        let missing: Vec<_> = members
            .into_iter()
            .filter(|m| !recovery.shapes.contains_key(m))
            .collect();
        if !missing.is_empty() && now.saturating_sub(since) >= timings.recovery {
            return self.change_config(|config| {
                config.in_sync.retain(|r| !missing.contains(r));
                config.learners.extend(missing);
            });
        }
        missing.iter().for_each(|m| self.send(*m, Message::Probe { epoch }));
    }
}
