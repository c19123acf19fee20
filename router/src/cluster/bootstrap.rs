//! The first things in an empty meta store, and ids for everything after.
//!
//! ```text
//!   /cluster   {"cluster_id": "..", "format_version": 2}      one compare-and-swap: all absent, or somebody was first
//!   /schema/public   {}
//!   /next-id   16384
//! ```

use tessera_meta::{Change, Entry, Expect, MetaStore, Op};
use tessera_proto::shard_map::ClusterInfo;
use tessera_proto::{Error, FORMAT_VERSION, Result, Retry, keys};
use uuid::Uuid;

/// The schema every database has.
pub const PUBLIC: &str = "public";
/// Compare-and-swaps lost in a row before giving up: each loss means that somebody else made progress.
pub(crate) const CAS_ATTEMPTS_MAX: usize = 32;

/// Creates the cluster unless it exists.
///
/// # Errors
/// The store's; 0A000 for another format version.
pub async fn ensure_cluster(store: &dyn MetaStore) -> Result<()> {
    let Some(entry) = read(store, keys::CLUSTER).await? else {
        return create(store).await;
    };
    let info: ClusterInfo = serde_json::from_slice(&entry.value)
        .map_err(|e| Error::corrupt(format!("the cluster's identity is malformed: {e}")))?;
    if info.format_version != FORMAT_VERSION {
        let message = format!(
            "the cluster has format version {}, this program writes version {FORMAT_VERSION}",
            info.format_version
        );
        return Err(Error::unsupported(message, "run the version of Tessera that wrote it"));
    }
    Ok(())
}

async fn create(store: &dyn MetaStore) -> Result<()> {
    let info = ClusterInfo {
        cluster_id: Uuid::new_v4(),
        format_version: FORMAT_VERSION,
    };
    let ops = vec![
        put(keys::CLUSTER.into(), Expect::Absent, &info)?,
        put(keys::schema(PUBLIC), Expect::Any, &serde_json::json!({}))?,
        put(keys::NEXT_ID.into(), Expect::Absent, &keys::FIRST_ID)?,
    ];
    match store.cas(ops).await {
        // Not applied: another router was faster, which is as good.
        Ok(_) => Ok(()),
        Err(error) if error.retry == Retry::OutcomeUnknown && read(store, keys::CLUSTER).await?.is_some() => Ok(()),
        Err(error) => Err(error),
    }
}

/// One id that nobody else gets.
///
/// # Errors
/// The store's; 40001 when others took ids too fast.
pub async fn reserve_id(store: &dyn MetaStore) -> Result<u64> {
    for _ in 0..CAS_ATTEMPTS_MAX {
        let (id, op) = next_ids(store, 1).await?;
        // An unknown outcome wastes an id, no more.
        if store.cas(vec![op]).await?.applied {
            return Ok(id);
        }
    }
    Err(Error::new(
        "40001",
        "ids are taken faster than this statement can; try again",
    ))
}

/// The first of `count` ids, and the operation that takes them.
///
/// # Errors
/// The store's; XX001 when the counter is malformed.
pub async fn next_ids(store: &dyn MetaStore, count: u64) -> Result<(u64, Op)> {
    let (id, expect) = match read(store, keys::NEXT_ID).await? {
        Some(entry) => {
            let id: u64 = serde_json::from_slice(&entry.value)
                .map_err(|e| Error::corrupt(format!("the id counter is malformed: {e}")))?;
            (id, Expect::Revision(entry.revision))
        }
        None => (keys::FIRST_ID, Expect::Absent),
    };
    Ok((id, put(keys::NEXT_ID.into(), expect, &(id + count))?))
}

/// A key's entry.
///
/// # Errors
/// The store's.
pub async fn read(store: &dyn MetaStore, key: &str) -> Result<Option<Entry>> {
    let (entries, _) = store.range(key).await?;
    // A key is a prefix of others, too.
    Ok(entries.into_iter().find(|e| e.key == key))
}

/// The operation that writes a value as JSON.
///
/// # Errors
/// None is expected: our own types serialize.
pub fn put<T: serde::Serialize>(key: String, expect: Expect, value: &T) -> Result<Op> {
    let value = serde_json::to_vec(value).map_err(|e| Error::internal(format!("encoding {key}: {e}")))?;
    Ok(Op {
        key,
        expect,
        change: Change::Put(value),
    })
}
