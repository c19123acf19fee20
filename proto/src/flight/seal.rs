//! Tokens and tickets that clients carry: signed with the cluster's secret, so that every process knows its own.
//!
//! ```text
//!   kind (1 byte) | HMAC-SHA256(secret, kind | payload) (32 bytes) | payload: a message of flight.proto
//! ```
//!
//! Signed, not encrypted: a client may read its own statement in it. Nothing is stored, so a ticket is good at every router
//! and node, and again after a restart, until its time is over. The secret lives in the meta store
//! (`tessera_meta::secret`). Not here: revoking one ticket, and changing the secret. Source: RFC 2104.

use crate::clock::now_ms;
use crate::error::{Error, Result};
use crate::v1;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use prost::Message;
use sha2::Sha256;
use std::time::Duration;

/// Largest ticket: a plan or a statement with its parameters. It travels to the client and back, once per endpoint, and
/// drivers take 16 MiB in one message.
pub const TICKET_BYTES_MAX: usize = 1 << 20;
/// How long a ticket is good: long enough to hand partitions to other processes.
pub const TICKET_LIFE: Duration = Duration::from_secs(600);
/// How long a bearer token is good. Drivers do not ask for another one during a connection.
pub const BEARER_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

const MAC_BYTES: usize = 32;

/// The cluster's secret.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// A message that can be sealed: each kind has a number of its own, so that none passes for another.
pub trait Sealable: Message + Default {
    /// First byte of the sealed form.
    const KIND: u8;
    /// What it is called in errors.
    const NAME: &'static str;
    /// SQLSTATE of one that is not good.
    const REFUSED: &'static str;
    /// Unix time in milliseconds at which it ends.
    fn expires_ms(&self) -> u64;
}

impl Sealable for v1::BearerToken {
    const KIND: u8 = 1;
    const NAME: &'static str = "bearer token";
    const REFUSED: &'static str = "28000";
    fn expires_ms(&self) -> u64 {
        self.expires_ms
    }
}

impl Sealable for v1::LeafTicket {
    const KIND: u8 = 2;
    const NAME: &'static str = "ticket";
    const REFUSED: &'static str = "42501";
    fn expires_ms(&self) -> u64 {
        self.expires_ms
    }
}

impl Sealable for v1::StatementTicket {
    const KIND: u8 = 3;
    const NAME: &'static str = "ticket";
    const REFUSED: &'static str = "42501";
    fn expires_ms(&self) -> u64 {
        self.expires_ms
    }
}

impl Secret {
    /// A secret of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Signs a message.
    pub fn seal<M: Sealable>(&self, message: &M) -> Bytes {
        let payload = message.encode_to_vec();
        let mut sealed = Vec::with_capacity(1 + MAC_BYTES + payload.len());
        sealed.push(M::KIND);
        sealed.extend_from_slice(&self.mac(M::KIND, &payload).finalize().into_bytes());
        sealed.extend_from_slice(&payload);
        sealed.into()
    }

    /// The message, if this cluster signed it and its time is not over. `sealed` may be anything.
    ///
    /// # Errors
    /// [`Sealable::REFUSED`] when it was changed, comes from another cluster, is of another kind, or has expired.
    pub fn open<M: Sealable>(&self, sealed: &[u8]) -> Result<M> {
        let refused = |why: &str| Error::new(M::REFUSED, format!("{} {why}", M::NAME));
        let foreign = || {
            refused("is not from this cluster, or was changed").with_hint(match M::KIND {
                v1::BearerToken::KIND => "connect again",
                _ => "run the query again for new tickets",
            })
        };
        let (kind, rest) = sealed.split_first().ok_or_else(foreign)?;
        let (mac, payload) = rest.split_at_checked(MAC_BYTES).ok_or_else(foreign)?;
        if *kind != M::KIND {
            return Err(foreign());
        }
        self.mac(*kind, payload).verify_slice(mac).map_err(|_| foreign())?;
        let message = M::decode(payload).map_err(|_| foreign())?;
        if message.expires_ms() <= now_ms() {
            return Err(refused("has expired").with_hint(match M::KIND {
                v1::BearerToken::KIND => "connect again".to_owned(),
                _ => format!("tickets are good for {} s; run the query again", TICKET_LIFE.as_secs()),
            }));
        }
        Ok(message)
    }

    fn mac(&self, kind: u8, payload: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(&[kind]);
        mac.update(payload);
        mac
    }
}

/// Kind of something sealed, without looking further.
pub fn kind_of(sealed: &[u8]) -> Option<u8> {
    sealed.first().copied()
}

/// When something sealed now for `life` ends, as Unix time in milliseconds.
pub fn expires_in(life: Duration) -> u64 {
    now_ms() + life.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(expires_ms: u64) -> v1::BearerToken {
        v1::BearerToken {
            user: "ann".into(),
            session: Bytes::from_static(&[7; 16]),
            expires_ms,
        }
    }

    #[test]
    fn only_what_was_sealed_here_opens_and_only_in_time() {
        let secret = Secret::new([1; 32]);
        let sealed = secret.seal(&token(expires_in(BEARER_LIFE)));
        assert_eq!(secret.open::<v1::BearerToken>(&sealed).expect("opens").user, "ann");
        // Every byte counts.
        for at in 0..sealed.len() {
            let mut changed = sealed.to_vec();
            changed[at] ^= 1;
            let error = secret.open::<v1::BearerToken>(&changed).expect_err("changed");
            assert_eq!(error.code, "28000", "byte {at}");
        }
        for cut in 0..sealed.len() {
            assert!(secret.open::<v1::BearerToken>(&sealed[..cut]).is_err());
        }
        let error = secret.open::<v1::StatementTicket>(&sealed).expect_err("another kind");
        assert_eq!(error.code, "42501");
        let foreign = Secret::new([2; 32]).open::<v1::BearerToken>(&sealed);
        assert!(
            foreign
                .expect_err("another cluster")
                .message
                .contains("not from this cluster")
        );
        let late = secret.open::<v1::BearerToken>(&secret.seal(&token(1)));
        assert!(late.expect_err("late").message.contains("expired"));
    }
}
