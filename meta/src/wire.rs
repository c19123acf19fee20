//! Messages of `meta.proto` to and from our own types.

use crate::{Change, Entry, Expect, Op};
use tessera_proto::{Error, Result, v1};

/// Largest message to the store: a full compare-and-swap and its envelopes, 4,096 times at most 32 bytes.
pub(crate) const REQUEST_BYTES_MAX: usize = crate::limits::CAS_BYTES_MAX + (1 << 20);
/// Largest message from the store: all of it, with 50 % for envelopes of small entries.
pub(crate) const REPLY_BYTES_MAX: usize = crate::limits::STORE_BYTES_MAX / 2 * 3;

/// An operation for the wire, where an absent key is revision 0.
pub(crate) fn to_wire(op: Op) -> v1::CasOp {
    let expected_revision = match op.expect {
        Expect::Any | Expect::Absent => 0,
        Expect::Revision(revision) => revision,
    };
    let check_only = op.change == Change::Check;
    let value = match op.change {
        Change::Put(value) => Some(value.into()),
        Change::Check | Change::Delete => None,
    };
    v1::CasOp {
        key: op.key,
        expected_revision,
        unconditional: op.expect == Expect::Any,
        value,
        check_only,
    }
}

/// An operation from the wire.
///
/// # Errors
/// 08P01 when its fields contradict each other.
pub(crate) fn from_wire(op: v1::CasOp) -> Result<Op> {
    let expect = match (op.unconditional, op.expected_revision) {
        (true, 0) => Expect::Any,
        (true, _) => return Err(contradiction("compares a revision and is unconditional")),
        (false, 0) => Expect::Absent,
        (false, revision) => Expect::Revision(revision),
    };
    let change = match (op.value, op.check_only) {
        (Some(_), true) => return Err(contradiction("has a value and only compares")),
        (Some(value), false) => Change::Put(value.into()),
        (None, true) => Change::Check,
        (None, false) => Change::Delete,
    };
    Ok(Op {
        key: op.key,
        expect,
        change,
    })
}

fn contradiction(what: &str) -> Error {
    Error::protocol(format!("operation of a compare-and-swap {what}"))
}

/// An entry for the wire.
pub(crate) fn entry_to_wire(entry: Entry) -> v1::KeyValue {
    v1::KeyValue {
        key: entry.key,
        value: entry.value.into(),
        revision: entry.revision,
    }
}

/// An entry from the wire.
pub(crate) fn entry_from_wire(item: v1::KeyValue) -> Entry {
    Entry {
        key: item.key,
        value: item.value.into(),
        revision: item.revision,
    }
}
