//! What a meta store accepts, checked by every implementation before anything else happens.
//!
//! ```text
//!   key    1 ..= 1 KiB, begins with '/', no NUL      value   ..= 1 MiB
//!   cas    ..= 4,096 operations, each key once, ..= 8 MiB together
//!   store  ..= 128 MiB of keys and values, all of it in memory
//! ```

use crate::{Change, Expect, OPS_MAX, Op};
use std::collections::HashSet;
use std::time::Duration;
use tessera_proto::{Error, Result};

/// Longest key: two names of 63 characters, each fully escaped, take 800 bytes.
pub const KEY_BYTES_MAX: usize = 1 << 10;
/// Largest value: a table of 1,600 columns with long defaults stays below a quarter of it.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Keys and values of one compare-and-swap: 1,024 shards at 1 KiB each fit eight times.
pub const CAS_BYTES_MAX: usize = 8 << 20;
/// Keys and values of the whole store: `LocalMeta` keeps them in memory, and sled is at ease below 100 MB or so.
pub const STORE_BYTES_MAX: usize = 128 << 20;
/// Longest wait for a change.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// Checks the prefix of a range; the empty one means everything.
///
/// # Errors
/// 54000 when it is too long.
pub fn check_prefix(prefix: &str) -> Result<()> {
    if prefix.len() > KEY_BYTES_MAX {
        return Err(too_large(format!("prefix of {} bytes", prefix.len()), KEY_BYTES_MAX));
    }
    Ok(())
}

/// Checks the operations of one compare-and-swap.
///
/// # Errors
/// 54000 when something is too large, 22023 when a key is malformed or appears twice.
pub fn check_ops(ops: &[Op]) -> Result<()> {
    if ops.len() > OPS_MAX {
        return Err(Error::new(
            "54000",
            format!(
                "compare-and-swap of {} operations exceeds the limit of {OPS_MAX}",
                ops.len()
            ),
        ));
    }
    let mut keys = HashSet::with_capacity(ops.len());
    for op in ops {
        check_key(&op.key)?;
        check_op(op)?;
        if !keys.insert(op.key.as_str()) {
            return Err(Error::new(
                "22023",
                format!("key \"{}\" appears twice in a compare-and-swap", op.key),
            ));
        }
    }
    let bytes = ops.iter().map(op_bytes).sum::<usize>();
    if bytes > CAS_BYTES_MAX {
        return Err(too_large(format!("compare-and-swap of {bytes} bytes"), CAS_BYTES_MAX));
    }
    Ok(())
}

/// Size of an operation's key and value.
pub(crate) fn op_bytes(op: &Op) -> usize {
    op.key.len()
        + if let Change::Put(value) = &op.change {
            value.len()
        } else {
            0
        }
}

fn check_key(key: &str) -> Result<()> {
    if key.len() > KEY_BYTES_MAX {
        return Err(too_large(format!("key of {} bytes", key.len()), KEY_BYTES_MAX));
    }
    if !key.starts_with('/') || key.contains('\0') {
        return Err(Error::new(
            "22023",
            format!("key {key:?} of the meta store must begin with / and contain no NUL"),
        ));
    }
    Ok(())
}

fn check_op(op: &Op) -> Result<()> {
    if op.expect == Expect::Revision(0) {
        return Err(
            Error::new("22023", format!("key \"{}\" cannot have revision 0", op.key))
                .with_hint("expect it to be absent"),
        );
    }
    match &op.change {
        Change::Put(value) if value.len() > VALUE_BYTES_MAX => Err(too_large(
            format!("value of {} bytes for key \"{}\"", value.len(), op.key),
            VALUE_BYTES_MAX,
        )),
        _ => Ok(()),
    }
}

fn too_large(what: String, limit: usize) -> Error {
    Error::new(
        "54000",
        format!("{what} exceeds the limit of {limit} bytes in the meta store"),
    )
}
