//! The contract of [`MetaStore`], for every implementation.

use super::{delete, expecting, put, serve, serve_with};
use crate::limits::VALUE_BYTES_MAX;
use crate::local::LocalMeta;
use crate::remote::RemoteMeta;
use crate::server::MetaServer;
use crate::{Change, Expect, MetaStore, OPS_MAX, Op};
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::Retry;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory() {
    conforms(LocalMeta::memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk() {
    let dir = tempfile::tempdir().unwrap();
    conforms(LocalMeta::open(dir.path()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remote() {
    let (address, server) = serve(LocalMeta::memory()).await;
    conforms(Arc::new(RemoteMeta::new(&address.to_string()).unwrap())).await;
    server.abort();
}

/// A server that stops is not held up by watchers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_waits_end_with_the_server() {
    let (server, waits) = MetaServer::new(LocalMeta::memory());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (address, task) = serve_with(server, async { drop(stopped.await) }).await;
    let client = RemoteMeta::new(&address.to_string()).unwrap();
    let (_, revision) = client.range("/").await.unwrap();
    let wait = tokio::spawn(async move { client.wait(revision, Duration::from_secs(30)).await });
    waits.end();
    // Nothing is written, so an answer could only be that of a wait that lasted its 30 s.
    assert_eq!(wait.await.unwrap().unwrap_err().code, "08006");
    drop(stop);
    task.await.unwrap();
}

/// Runs everything below on one store, each under a prefix of its own.
async fn conforms(store: Arc<dyn MetaStore>) {
    ranges_by_prefix(&*store).await;
    all_or_nothing(&*store).await;
    one_of_many_wins(store.clone()).await;
    counts_without_gaps(store.clone()).await;
    waits(store.clone()).await;
    carries_large_values(&*store).await;
    refuses(&*store).await;
}

async fn keys(store: &dyn MetaStore, prefix: &str) -> Vec<String> {
    store
        .range(prefix)
        .await
        .unwrap()
        .0
        .into_iter()
        .map(|entry| entry.key)
        .collect()
}

async fn ranges_by_prefix(store: &dyn MetaStore) {
    let ops = ["/r/b", "/r/a", "/r/a/1", "/ra", "/q"]
        .map(|key| put(key, key))
        .to_vec();
    let outcome = store.cas(ops).await.unwrap();
    assert!(outcome.applied);
    assert_eq!(keys(store, "/r/").await, ["/r/a", "/r/a/1", "/r/b"]);
    assert_eq!(
        keys(store, "/r/a").await,
        ["/r/a", "/r/a/1"],
        "a whole key is a prefix of itself"
    );
    assert_eq!(keys(store, "/nothing").await, [""; 0]);
    let (entries, revision) = store.range("/r/b").await.unwrap();
    assert_eq!(
        (entries[0].value.as_slice(), entries[0].revision, revision),
        (&b"/r/b"[..], outcome.revision, outcome.revision)
    );
}

async fn all_or_nothing(store: &dyn MetaStore) {
    let first = store
        .cas(vec![expecting(Expect::Absent, put("/c/a", "1"))])
        .await
        .unwrap();
    let lost = store
        .cas(vec![put("/c/b", "2"), expecting(Expect::Absent, put("/c/a", "2"))])
        .await
        .unwrap();
    assert_eq!((lost.applied, lost.revision), (false, first.revision));
    assert_eq!(keys(store, "/c/").await, ["/c/a"]);

    let check = Op {
        key: "/c/a".into(),
        expect: Expect::Revision(first.revision),
        change: Change::Check,
    };
    let only_checked = store.cas(vec![check.clone()]).await.unwrap();
    assert_eq!((only_checked.applied, only_checked.revision), (true, first.revision));

    let second = store.cas(vec![check.clone(), put("/c/b", "")]).await.unwrap();
    assert_eq!((second.applied, second.revision), (true, first.revision + 1));
    let entries = store.range("/c/").await.unwrap().0;
    assert_eq!(
        entries.iter().map(|e| e.revision).collect::<Vec<_>>(),
        [first.revision, second.revision]
    );
    assert!(entries[1].value.is_empty(), "an empty value is not an absent one");

    assert!(
        store
            .cas(vec![expecting(Expect::Revision(first.revision), delete("/c/a"))])
            .await
            .unwrap()
            .applied
    );
    assert!(
        !store.cas(vec![check]).await.unwrap().applied,
        "a removed key has no revision"
    );
    assert_eq!(keys(store, "/c/").await, ["/c/b"]);
}

async fn one_of_many_wins(store: Arc<dyn MetaStore>) {
    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..32_u8 {
        let store = store.clone();
        racers.spawn(async move {
            let op = expecting(Expect::Absent, put("/race", vec![racer]));
            (racer, store.cas(vec![op]).await.unwrap().applied)
        });
    }
    let results = racers.join_all().await;
    let winners: Vec<u8> = results
        .into_iter()
        .filter(|(_, applied)| *applied)
        .map(|(racer, _)| racer)
        .collect();
    assert_eq!(winners.len(), 1, "{winners:?}");
    assert_eq!(store.range("/race").await.unwrap().0[0].value, winners);
}

/// A counter incremented by compare-and-swap loops loses no increment.
async fn counts_without_gaps(store: Arc<dyn MetaStore>) {
    let before = store.cas(vec![put("/count", "0")]).await.unwrap().revision;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = store.clone();
        tasks.spawn(async move {
            for _ in 0..10 {
                increment(&*store).await;
            }
        });
    }
    tasks.join_all().await;
    let (entries, revision) = store.range("/count").await.unwrap();
    assert_eq!((entries[0].value.as_slice(), revision), (&b"40"[..], before + 40));
}

async fn increment(store: &dyn MetaStore) {
    loop {
        let entry = store.range("/count").await.unwrap().0.remove(0);
        let count: u32 = String::from_utf8(entry.value).unwrap().parse().unwrap();
        let op = expecting(Expect::Revision(entry.revision), put("/count", (count + 1).to_string()));
        if store.cas(vec![op]).await.unwrap().applied {
            return;
        }
    }
}

async fn waits(store: Arc<dyn MetaStore>) {
    let now = store.range("/").await.unwrap().1;
    assert_eq!(
        store.wait(now - 1, Duration::from_secs(30)).await.unwrap(),
        now,
        "it is above already"
    );
    assert_eq!(
        store.wait(now, Duration::ZERO).await.unwrap(),
        now,
        "the timeout is no error"
    );
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.wait(now, Duration::from_secs(30)).await.unwrap() }
    });
    let outcome = store.cas(vec![put("/woken", "")]).await.unwrap();
    assert_eq!(waiting.await.unwrap(), outcome.revision);
}

async fn carries_large_values(store: &dyn MetaStore) {
    let value: Vec<u8> = (0..VALUE_BYTES_MAX).map(|i| (i % 251) as u8).collect();
    let ops = (0..7).map(|i| put(&format!("/large/{i}"), value.clone())).collect();
    assert!(store.cas(ops).await.unwrap().applied);
    let entries = store.range("/large/").await.unwrap().0;
    assert!(entries.len() == 7 && entries.iter().all(|entry| entry.value == value));
}

async fn refuses(store: &dyn MetaStore) {
    let before = store.range("/").await.unwrap().1;
    let many = (0..=OPS_MAX).map(|i| put(&format!("/{i}"), "")).collect();
    let megabyte = || vec![0; VALUE_BYTES_MAX];
    let cases: Vec<(&str, Vec<Op>)> = vec![
        ("54000", vec![put("/x", vec![0; VALUE_BYTES_MAX + 1])]),
        ("54000", vec![put(&format!("/{}", "k".repeat(1_024)), "")]),
        ("54000", (0..9).map(|i| put(&format!("/{i}"), megabyte())).collect()),
        ("54000", many),
        ("22023", vec![put("/x", "1"), delete("/x")]),
        ("22023", vec![put("x", "1")]),
        ("22023", vec![expecting(Expect::Revision(0), put("/x", "1"))]),
    ];
    for (code, ops) in cases {
        let error = store.cas(ops).await.unwrap_err();
        assert_eq!((error.code.as_str(), error.retry), (code, Retry::No), "{error}");
    }
    assert_eq!(store.range(&"p".repeat(2_000)).await.unwrap_err().code, "54000");
    assert_eq!(store.range("/").await.unwrap().1, before);
}
