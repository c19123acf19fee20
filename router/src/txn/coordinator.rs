//! Two-phase commit as a step function: no sockets, no clock, so that a test can stop it between any two steps.
//!
//! ```text
//!   Start ──▶ Prepare(1) Prepare(2) ...                      all shards but home (0)
//!             all Prepared ──▶ Commit                        home draws the timestamp and writes the commit record
//!                              Committed(ts) ──▶ Reply(ts), Finish(1, ts) Finish(2, ts)
//!             any Refused  ──▶ Reply(error), Finish(all, abort)
//!                              CommitRefused ──▶ the same
//!                              CommitLost ──▶ AskOutcome ──▶ Resolved(ts | aborted | unknown)
//! ```
//!
//! Votes are asked for all at once, or ([`Order::OneByOne`]) each after the one before: transactions whose participants
//! ascend and whose home is the last of all then lock in one order everywhere, so that none waits in a circle.
//!
//! One shard: Start gives Commit at once. The commit point is home's log, never this process: if the coordinator dies
//! before it, recovery finds no record at home and aborts; after it, participants learn the timestamp from home. Gray and
//! Lamport 2006 call this two-phase commit with the last agent optimisation; presumed abort is Mohan et al. 1986.
//!
//! Not here: retries of one message (driver.rs); recovery of transactions whose router died (shard nodes).

use std::collections::BTreeSet;
use tessera_proto::{Error, Timestamp};

/// Number of a shard within its transaction; 0 is home.
pub type Participant = usize;

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Begin.
    Start,
    /// A participant voted yes.
    Prepared(Participant),
    /// A participant voted no, or was not reached and will not be asked again.
    Refused(Participant, Error),
    /// Home committed.
    Committed(Timestamp),
    /// Home did not commit and never will.
    CommitRefused(Error),
    /// The commit was sent and no answer came.
    CommitLost,
    /// What home says about it: the timestamp, or that it is aborted.
    Resolved(Option<Timestamp>),
    /// Home cannot be asked; nobody knows.
    Unresolved(Error),
}

/// What to do.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Ask for a vote. All may run at once.
    Prepare(Participant),
    /// Commit at home.
    Commit,
    /// Find out what became of a lost commit.
    AskOutcome,
    /// Tell the client.
    Reply(Result<Timestamp, Error>),
    /// Tell a shard: the timestamp, or `None` for abort. In the background, repeatedly, without an answer to wait for.
    Finish(Participant, Option<Timestamp>),
}

/// How votes are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// One round trip.
    AtOnce,
    /// As many as participants; never part of a deadlock among transactions that do the same.
    OneByOne,
}

/// Where the transaction stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    New,
    /// Votes that are still out; whether one was no.
    Preparing {
        waiting: BTreeSet<Participant>,
        refused: bool,
    },
    Committing,
    Asking,
    Done,
}

/// One transaction over `shards` shards.
#[derive(Debug, Clone)]
pub struct Coordinator {
    shards: usize,
    order: Order,
    phase: Phase,
}

impl Coordinator {
    /// A transaction over at least one shard.
    pub fn new(shards: usize, order: Order) -> Self {
        assert!(shards > 0, "a transaction has a home shard");
        Self {
            shards,
            order,
            phase: Phase::New,
        }
    }

    /// Whether the client has its answer.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Takes one event. Events that no longer matter have no effects.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match (&mut self.phase, event) {
            (Phase::New, Event::Start) if self.shards == 1 => self.commit(),
            (Phase::New, Event::Start) => {
                self.phase = Phase::Preparing {
                    waiting: (1..self.shards).collect(),
                    refused: false,
                };
                let first = match self.order {
                    Order::AtOnce => 1..self.shards,
                    Order::OneByOne => 1..2,
                };
                first.map(Effect::Prepare).collect()
            }
            (Phase::Preparing { waiting, refused }, Event::Prepared(who)) => {
                waiting.remove(&who);
                match (waiting.first(), *refused, self.order) {
                    (Some(next), _, Order::OneByOne) => vec![Effect::Prepare(*next)],
                    (Some(_), _, Order::AtOnce) => vec![],
                    (None, false, _) => self.commit(),
                    (None, true, _) => self.end_aborted(),
                }
            }
            (Phase::Preparing { waiting, refused }, Event::Refused(who, error)) => {
                waiting.remove(&who);
                let last = waiting.is_empty() || self.order == Order::OneByOne;
                let first = !std::mem::replace(refused, true);
                // The client learns at once; the shards when all votes are in, so that no abort overtakes a prepare.
                let mut effects: Vec<_> = first.then_some(Effect::Reply(Err(error))).into_iter().collect();
                if last {
                    effects.extend(self.end_aborted());
                }
                effects
            }
            (Phase::Committing, Event::Committed(timestamp)) | (Phase::Asking, Event::Resolved(Some(timestamp))) => {
                self.phase = Phase::Done;
                let tell = (1..self.shards).map(|i| Effect::Finish(i, Some(timestamp)));
                std::iter::once(Effect::Reply(Ok(timestamp))).chain(tell).collect()
            }
            (Phase::Committing, Event::CommitRefused(error)) => self.abort(error),
            (Phase::Committing, Event::CommitLost) => {
                self.phase = Phase::Asking;
                vec![Effect::AskOutcome]
            }
            (Phase::Asking, Event::Resolved(None)) => self.abort(
                Error::new(
                    "40001",
                    "the transaction was aborted because a node was lost during its commit",
                )
                .with_hint("nothing was written; run the statement again"),
            ),
            // Nobody may be told anything: the shards ask home themselves.
            (Phase::Asking, Event::Unresolved(error)) => {
                self.phase = Phase::Done;
                vec![Effect::Reply(Err(error))]
            }
            _ => vec![],
        }
    }

    fn commit(&mut self) -> Vec<Effect> {
        self.phase = Phase::Committing;
        vec![Effect::Commit]
    }

    fn abort(&mut self, error: Error) -> Vec<Effect> {
        std::iter::once(Effect::Reply(Err(error)))
            .chain(self.end_aborted())
            .collect()
    }

    /// Home too: it may hold staged segments.
    fn end_aborted(&mut self) -> Vec<Effect> {
        self.phase = Phase::Done;
        (0..self.shards).map(|i| Effect::Finish(i, None)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shards as a model: what each has durably, and home's log.
    #[derive(Debug, Clone, Default)]
    struct Model {
        prepared: BTreeSet<Participant>,
        applied: BTreeSet<Participant>,
        dropped: BTreeSet<Participant>,
        record: Option<Option<Timestamp>>,
    }

    /// Who votes no, and what becomes of the commit message.
    #[derive(Debug, Clone, Copy)]
    struct Fate {
        refuses: Option<Participant>,
        commit_arrives: bool,
        answer_arrives: bool,
    }

    const TS: Timestamp = Timestamp(7);

    impl Model {
        fn run(&mut self, effect: &Effect, fate: Fate, replies: &mut Vec<Result<Timestamp, Error>>) -> Option<Event> {
            match effect {
                Effect::Prepare(who) if fate.refuses == Some(*who) => {
                    Some(Event::Refused(*who, Error::new("23505", "duplicate")))
                }
                Effect::Prepare(who) => {
                    self.prepared.insert(*who);
                    Some(Event::Prepared(*who))
                }
                Effect::Commit => {
                    if fate.commit_arrives && self.record.is_none() {
                        self.record = Some(Some(TS));
                        self.applied.insert(0);
                    }
                    Some(if fate.answer_arrives && fate.commit_arrives {
                        Event::Committed(TS)
                    } else {
                        Event::CommitLost
                    })
                }
                Effect::AskOutcome => Some(Event::Resolved(self.resolve())),
                Effect::Reply(result) => {
                    replies.push(result.clone());
                    None
                }
                Effect::Finish(who, outcome) => {
                    self.finish(*who, *outcome);
                    None
                }
            }
        }

        /// Home's recovery: first record wins.
        fn resolve(&mut self) -> Option<Timestamp> {
            *self.record.get_or_insert(None)
        }

        fn finish(&mut self, who: Participant, outcome: Option<Timestamp>) {
            self.prepared.remove(&who);
            match outcome {
                Some(_) => self.applied.insert(who),
                None => self.dropped.insert(who),
            };
        }

        /// What shards do by themselves when the router is gone.
        fn recover(&mut self) {
            for who in std::mem::take(&mut self.prepared) {
                let outcome = self.resolve();
                self.finish(who, outcome);
            }
        }
    }

    /// Runs until the coordinator has nothing to do or `steps` effects were carried out, then lets the shards recover.
    fn play(shards: usize, order: Order, fate: Fate, steps: usize) -> (Model, Vec<Result<Timestamp, Error>>, bool) {
        let (mut coordinator, mut model, mut replies) = (Coordinator::new(shards, order), Model::default(), vec![]);
        let mut effects: std::collections::VecDeque<Effect> = coordinator.step(Event::Start).into();
        for _ in 0..steps {
            let Some(effect) = effects.pop_front() else { break };
            if let Some(event) = model.run(&effect, fate, &mut replies) {
                effects.extend(coordinator.step(event));
            }
        }
        let complete = effects.is_empty() && coordinator.is_done();
        model.recover();
        (model, replies, complete)
    }

    #[test]
    fn all_or_nothing_wherever_the_router_dies() {
        for shards in 1..=4 {
            for refuses in std::iter::once(None).chain((1..shards).map(Some)) {
                for (commit_arrives, answer_arrives) in [(true, true), (true, false), (false, false)] {
                    let fate = Fate {
                        refuses,
                        commit_arrives,
                        answer_arrives,
                    };
                    die_everywhere(shards, Order::AtOnce, fate);
                    die_everywhere(shards, Order::OneByOne, fate);
                }
            }
        }
    }

    fn die_everywhere(shards: usize, order: Order, fate: Fate) {
        for steps in 0..100 {
            let (model, replies, complete) = play(shards, order, fate, steps);
            let committed = matches!(model.record, Some(Some(_)));
            let case =
                format!("{shards} shards, {order:?}, {fate:?}, dead after {steps} effects: {model:?} {replies:?}");
            let all = committed && model.applied.len() == shards;
            assert!(model.applied.is_empty() || all, "{case}");
            assert!(replies.len() <= 1, "{case}");
            if let Some(reply) = replies.first() {
                assert_eq!(reply.is_ok(), committed, "{case}");
            }
            if complete {
                assert_eq!(replies.len(), 1, "{case}");
                return;
            }
        }
        panic!("{shards} shards, {order:?}, {fate:?}: never ends");
    }

    #[test]
    fn votes_one_by_one_ascend_and_stop_at_the_first_no() {
        let mut coordinator = Coordinator::new(4, Order::OneByOne);
        let shown = |effects: Vec<Effect>| effects.iter().map(|e| format!("{e:?}")).collect::<Vec<_>>();
        assert_eq!(shown(coordinator.step(Event::Start)), ["Prepare(1)"]);
        assert_eq!(shown(coordinator.step(Event::Prepared(1))), ["Prepare(2)"]);
        let ended = coordinator.step(Event::Refused(2, Error::new("23505", "duplicate")));
        assert!(
            matches!(ended[0], Effect::Reply(Err(_))) && ended.len() == 5,
            "{ended:?}"
        );
    }

    #[test]
    fn an_unknown_outcome_is_reported_and_nobody_is_told_anything() {
        let mut coordinator = Coordinator::new(1, Order::AtOnce);
        coordinator.step(Event::Start);
        coordinator.step(Event::CommitLost);
        let effects = coordinator.step(Event::Unresolved(Error::outcome_unknown("home is gone")));
        assert!(
            matches!(&effects[..], [Effect::Reply(Err(e))] if e.code == "40003"),
            "{effects:?}"
        );
    }
}
