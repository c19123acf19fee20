//! Replication messages to and from the wire. Everything from outside is checked here.

use super::log_shape::{LogShape, Position};
use super::message::{Entry, Message};
use tessera_proto::v1::{self, peer_message, shard_message};
use tessera_proto::{Epoch, Error, GroupId, LogIndex, Result, ShardId};

/// Most epochs in one log's outline: one per leadership, and a release forgets old ones.
const EPOCHS_MAX: usize = 1 << 20;

/// For the wire.
pub fn to_wire(shard: ShardId, message: Message) -> v1::PeerMessage {
    let (epoch, message) = match message {
        Message::Probe { epoch } => (epoch, shard_message::Message::Probe(v1::Probe {})),
        Message::Shape {
            epoch,
            log,
            wants_snapshot,
        } => (epoch, shard_message::Message::Shape(shape(&log, wants_snapshot))),
        Message::Append {
            epoch,
            prev,
            entries,
            commit,
        } => {
            let entries = entries.into_iter().map(entry).collect();
            let (prev_epoch, prev_index) = (prev.epoch.0, prev.index.0);
            (
                epoch,
                shard_message::Message::Append(v1::Append {
                    prev_epoch,
                    prev_index,
                    entries,
                    commit_index: commit.0,
                }),
            )
        }
        Message::Ack { epoch, durable, commit } => (
            epoch,
            shard_message::Message::Ack(v1::Ack {
                durable_index: durable.0,
                commit_index: commit.0,
            }),
        ),
        Message::Nack { promised } => (promised, shard_message::Message::Nack(v1::Nack {})),
        Message::Pull { epoch, from } => (epoch, shard_message::Message::Pull(v1::Pull { from_index: from.0 })),
        Message::Pulled { epoch, entries } => (
            epoch,
            shard_message::Message::Pulled(v1::Pulled {
                entries: entries.into_iter().map(entry).collect(),
            }),
        ),
        Message::Offer { epoch } => (epoch, shard_message::Message::Offer(v1::Offer {})),
    };
    let message = v1::ShardMessage {
        group: shard.group.0,
        index: shard.index,
        epoch: epoch.0,
        message: Some(message),
    };
    v1::PeerMessage {
        message: Some(peer_message::Message::Shard(message)),
    }
}

/// From the wire.
///
/// # Errors
/// 08P01: not a message of this protocol.
pub fn from_wire(message: v1::ShardMessage) -> Result<(ShardId, Message)> {
    let shard = ShardId {
        group: GroupId(message.group),
        index: message.index,
    };
    let epoch = Epoch(message.epoch);
    let message = match message
        .message
        .ok_or_else(|| Error::protocol("empty replication message"))?
    {
        shard_message::Message::Probe(_) => Message::Probe { epoch },
        shard_message::Message::Shape(s) => Message::Shape {
            epoch,
            wants_snapshot: s.wants_snapshot,
            log: log_shape(s)?,
        },
        shard_message::Message::Append(a) => Message::Append {
            epoch,
            prev: Position::new(a.prev_epoch, a.prev_index),
            entries: entries(a.entries)?,
            commit: LogIndex(a.commit_index),
        },
        shard_message::Message::Ack(a) => Message::Ack {
            epoch,
            durable: LogIndex(a.durable_index),
            commit: LogIndex(a.commit_index),
        },
        shard_message::Message::Nack(_) => Message::Nack { promised: epoch },
        // Entries are numbered from 1.
        shard_message::Message::Pull(p) => Message::Pull {
            epoch,
            from: LogIndex(p.from_index.max(1)),
        },
        shard_message::Message::Pulled(p) => Message::Pulled {
            epoch,
            entries: entries(p.entries)?,
        },
        shard_message::Message::Offer(_) => Message::Offer { epoch },
    };
    Ok((shard, message))
}

fn entry(entry: Entry) -> v1::LogEntry {
    v1::LogEntry {
        epoch: entry.at.epoch.0,
        index: entry.at.index.0,
        kind: u32::from(entry.kind),
        payload: entry.payload,
    }
}

fn entries(entries: Vec<v1::LogEntry>) -> Result<Vec<Entry>> {
    let read = |e: v1::LogEntry| {
        let kind =
            u8::try_from(e.kind).map_err(|_| Error::protocol(format!("log entry of unknown kind {}", e.kind)))?;
        Ok(Entry {
            at: Position::new(e.epoch, e.index),
            kind,
            payload: e.payload,
        })
    };
    entries.into_iter().map(read).collect()
}

fn shape(log: &LogShape, wants_snapshot: bool) -> v1::Shape {
    v1::Shape {
        base_epoch: log.base().epoch.0,
        base_index: log.base().index.0,
        epochs: log.runs().iter().map(|r| r.epoch.0).collect(),
        last_indexes: log.runs().iter().map(|r| r.index.0).collect(),
        wants_snapshot,
    }
}

fn log_shape(shape: v1::Shape) -> Result<LogShape> {
    let malformed = || Error::protocol("malformed outline of a log");
    if shape.epochs.len() != shape.last_indexes.len() || shape.epochs.len() > EPOCHS_MAX {
        return Err(malformed());
    }
    let runs = shape
        .epochs
        .iter()
        .zip(&shape.last_indexes)
        .map(|(e, i)| Position::new(*e, *i))
        .collect();
    LogShape::new(Position::new(shape.base_epoch, shape.base_index), runs).ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn messages_round_trip_and_nonsense_is_refused() {
        let shard = ShardId {
            group: GroupId(5),
            index: 2,
        };
        let epoch = Epoch(3);
        let entries = vec![Entry {
            at: Position::new(3, 8),
            kind: 2,
            payload: Bytes::from_static(b"x"),
        }];
        let log = LogShape::new(Position::new(1, 2), vec![Position::new(1, 4), Position::new(3, 8)]).unwrap();
        for message in [
            Message::Probe { epoch },
            Message::Shape {
                epoch,
                log,
                wants_snapshot: true,
            },
            Message::Append {
                epoch,
                prev: Position::new(1, 7),
                entries: entries.clone(),
                commit: LogIndex(6),
            },
            Message::Ack {
                epoch,
                durable: LogIndex(8),
                commit: LogIndex(6),
            },
            Message::Nack { promised: epoch },
            Message::Pull {
                epoch,
                from: LogIndex(9),
            },
            Message::Pulled { epoch, entries },
            Message::Offer { epoch },
        ] {
            let Some(peer_message::Message::Shard(wire)) = to_wire(shard, message.clone()).message else {
                panic!("a shard message")
            };
            assert_eq!(from_wire(wire).unwrap(), (shard, message));
        }
        let bad = v1::Shape {
            epochs: vec![2, 1],
            last_indexes: vec![1, 2],
            ..Default::default()
        };
        assert_eq!(log_shape(bad).unwrap_err().code, "08P01");
        assert_eq!(from_wire(v1::ShardMessage::default()).unwrap_err().code, "08P01");
    }
}
