//! Bytes of the embedded store on disk; all numbers big-endian.
//!
//! ```text
//!   sled key                    sled value
//!   'm'                         format u32 | revision u64
//!   'e' slot:u64 piece:u16      piece of: revision u64 | key length u16 | value length u32 | key | value
//! ```
//!
//! No checksums: sled has one on every page. What does not have exactly this form is refused.

use super::state::Stored;
use tessera_proto::FORMAT_VERSION;

/// Sled key of format and revision.
pub(super) const HEAD: &[u8] = b"m";
/// First byte of all pieces' sled keys.
pub(super) const ENTRY: u8 = b'e';
/// Length of a piece's sled key: tag, slot, piece.
const PIECE_KEY_BYTES: usize = 1 + 8 + 2;
/// Fixed part of a record: revision, key length, value length.
const RECORD_HEAD_BYTES: usize = 8 + 2 + 4;

/// The value of [`HEAD`].
pub(super) fn head(revision: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&FORMAT_VERSION.to_be_bytes());
    bytes[4..].copy_from_slice(&revision.to_be_bytes());
    bytes
}

/// Format and revision.
pub(super) fn parse_head(bytes: &[u8]) -> Option<(u32, u64)> {
    let (format, revision) = bytes.split_first_chunk::<4>()?;
    Some((
        u32::from_be_bytes(*format),
        u64::from_be_bytes(revision.try_into().ok()?),
    ))
}

/// Big-endian, so that the pieces of a slot follow each other.
pub(super) fn piece_key(slot: u64, piece: u16) -> [u8; PIECE_KEY_BYTES] {
    let mut key = [ENTRY; PIECE_KEY_BYTES];
    key[1..9].copy_from_slice(&slot.to_be_bytes());
    key[9..].copy_from_slice(&piece.to_be_bytes());
    key
}

/// Slot and piece.
pub(super) fn parse_piece_key(key: &[u8]) -> Option<(u64, u16)> {
    let (slot, piece) = key.get(1..)?.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*slot), u16::from_be_bytes(piece.try_into().ok()?)))
}

/// One entry as bytes; both lengths fit, the limits are checked when a compare-and-swap arrives.
pub(super) fn encode(key: &str, stored: &Stored) -> Vec<u8> {
    let mut record = Vec::with_capacity(RECORD_HEAD_BYTES + key.len() + stored.value.len());
    record.extend_from_slice(&stored.revision.to_be_bytes());
    record.extend_from_slice(&(key.len() as u16).to_be_bytes());
    record.extend_from_slice(&(stored.value.len() as u32).to_be_bytes());
    record.extend_from_slice(key.as_bytes());
    record.extend_from_slice(&stored.value);
    record
}

/// The reverse; `None` for anything [`encode`] does not produce.
pub(super) fn decode(record: &[u8]) -> Option<(String, Stored)> {
    let (revision, rest) = record.split_first_chunk::<8>()?;
    let (key_length, rest) = rest.split_first_chunk::<2>()?;
    let (value_length, rest) = rest.split_first_chunk::<4>()?;
    let (key, value) = rest.split_at_checked(usize::from(u16::from_be_bytes(*key_length)))?;
    if value.len() != u32::from_be_bytes(*value_length) as usize {
        return None;
    }
    let stored = Stored {
        value: value.to_vec(),
        revision: u64::from_be_bytes(*revision),
    };
    Some((std::str::from_utf8(key).ok()?.to_owned(), stored))
}
