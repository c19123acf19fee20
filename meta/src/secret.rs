//! The cluster's secret, which signs tokens and tickets of Flight SQL.
//!
//! ```text
//!   /secret absent ──▶ 32 random bytes, compare-and-swap on "absent" ──▶ read what is there now: mine, or the winner's
//! ```
//!
//! Made once and never changed; whoever starts first makes it. Everyone who reads the meta store knows it: the gRPC port that
//! serves the store is for the cluster's own processes. Not here: changing it.

use crate::{Change, Expect, MetaStore, Op};
use tessera_proto::flight::seal::Secret;
use tessera_proto::{Error, Result, Retry, keys};
use uuid::Uuid;

/// The secret, made if there is none.
///
/// # Errors
/// The store's; XX001 when what is stored is no secret.
pub async fn cluster_secret(store: &dyn MetaStore) -> Result<Secret> {
    if let Some(secret) = read(store).await? {
        return Ok(secret);
    }
    // Two random UUIDs have 244 random bits.
    let text = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    let op = Op {
        key: keys::SECRET.to_owned(),
        expect: Expect::Absent,
        change: Change::Put(serde_json::to_vec(&text).map_err(|e| Error::internal(e.to_string()))?),
    };
    match store.cas(vec![op]).await {
        // Not applied: another process was faster. Unknown: reading tells.
        Ok(_) => {}
        Err(error) if error.retry == Retry::OutcomeUnknown => {}
        Err(error) => return Err(error),
    }
    let missing = || Error::unavailable("the cluster's secret could not be made");
    read(store).await?.ok_or_else(missing)
}

async fn read(store: &dyn MetaStore) -> Result<Option<Secret>> {
    let (entries, _) = store.range(keys::SECRET).await?;
    let Some(entry) = entries.into_iter().find(|e| e.key == keys::SECRET) else {
        return Ok(None);
    };
    let corrupt = || Error::corrupt("the cluster's secret is malformed");
    let text: String = serde_json::from_slice(&entry.value).map_err(|_| corrupt())?;
    let digits: Vec<u8> = text.chars().map_while(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    let bytes: [u8; 32] = bytes.try_into().map_err(|_| corrupt())?;
    if digits.len() != text.len() {
        return Err(corrupt());
    }
    Ok(Some(Secret::new(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::LocalMeta;
    use tessera_proto::flight::seal::{BEARER_LIFE, expires_in};
    use tessera_proto::v1::BearerToken;

    #[tokio::test]
    async fn everyone_has_the_same_one() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let store = LocalMeta::open(&dir.path().join("meta")).expect("opens");
        let both = tokio::join!(cluster_secret(store.as_ref()), cluster_secret(store.as_ref()));
        let (a, b) = (both.0.expect("a secret"), both.1.expect("a secret"));
        let token = BearerToken {
            expires_ms: expires_in(BEARER_LIFE),
            ..BearerToken::default()
        };
        b.open::<BearerToken>(&a.seal(&token)).expect("the same secret");
        store.close().await;
    }
}
