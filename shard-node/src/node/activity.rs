//! What transactions have and wait for in the shards led here, for people: `pg_locks` and `tessera.transactions`.
//!
//! ```text
//!   open        in memory, statement by statement            (participant)
//!   prepared    in the log ── silent for long ──▶ in doubt   (ledger)
//!   committed   home: participants may not know yet          (ledger)
//! ```

use super::ShardNode;
use super::shard::Shard;
use crate::txn::entry;
use crate::txn::locks::{Listed, Mode};
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::v1::transaction_activity::State;
use tessera_proto::{Epoch, ShardId, TxnId, v1};
use xxhash_rust::xxh3::xxh3_64;

impl ShardNode {
    /// See `ShardService::activity`.
    pub(super) fn list_activity(&self, locks_max: usize) -> v1::ActivityReply {
        let mut reply = v1::ActivityReply::default();
        for shard in self.shards() {
            if shard.status.borrow().leads.is_some() {
                self.transactions(&shard, &mut reply);
                self.locks(&shard, locks_max, &mut reply);
            }
        }
        reply
    }

    fn transactions(&self, shard: &Arc<Shard>, reply: &mut v1::ActivityReply) {
        let (ledger, participant) = (shard.ledger.lock(), shard.participant.lock());
        let now = self.begun.elapsed();
        let one = |txn: TxnId, state: State, home: Option<ShardId>, silent: Duration, bytes: usize| {
            v1::TransactionActivity {
                shard: Some(shard.reference()),
                txn: txn.to_wire(),
                state: state.into(),
                home: home.map(|home| v1::ShardRef::new(home, Epoch(0))),
                silent_ms: silent.as_millis() as u64,
                bytes: bytes as u64,
                locks: participant.locks().count(txn) as u64,
            }
        };
        for (txn, open) in participant.all_open() {
            let silent = now.saturating_sub(open.heard);
            reply.transactions.push(one(txn, State::Open, None, silent, open.rows.bytes()));
        }
        for (txn, prepared) in ledger.prepared() {
            let silent = participant.silent(*txn, now);
            let state = match silent >= self.in_doubt_after {
                true => State::InDoubt,
                false => State::Prepared,
            };
            let bytes = entry::bytes(&prepared.writes);
            reply.transactions.push(one(*txn, state, Some(prepared.home), silent, bytes));
        }
        for (txn, ..) in ledger.unfinished() {
            let silent = participant.silent(txn, now);
            reply.transactions.push(one(txn, State::Committed, Some(shard.id), silent, 0));
        }
    }

    fn locks(&self, shard: &Arc<Shard>, max: usize, reply: &mut v1::ActivityReply) {
        if max == 0 {
            return;
        }
        let participant = shard.participant.lock();
        let now = self.begun.elapsed();
        let one = |listed: Listed| {
            let since = participant.waits_since(listed.txn).filter(|_| !listed.granted);
            v1::LockActivity {
                shard: Some(shard.reference()),
                txn: listed.txn.to_wire(),
                table: listed.table.0,
                whole: listed.key.is_none(),
                row: listed.key.as_deref().map_or(0, xxh3_64),
                mode: mode(listed.mode).into(),
                granted: listed.granted,
                waited_ms: since.map_or(0, |since| now.saturating_sub(since).as_millis() as u64),
            }
        };
        reply.locks.extend(participant.locks().list(max).into_iter().map(one));
        reply.waits.extend(participant.locks().edges().map(|(waiter, holder)| v1::Wait {
            waiter: waiter.to_wire(),
            holder: holder.to_wire(),
            shard: Some(shard.reference()),
        }));
    }
}

fn mode(mode: Mode) -> v1::RowLockMode {
    match mode {
        Mode::KeyShare => v1::RowLockMode::KeyShare,
        Mode::Share => v1::RowLockMode::Share,
        Mode::NoKeyUpdate => v1::RowLockMode::NoKeyUpdate,
        Mode::Update => v1::RowLockMode::Update,
    }
}
