//! What only a store on disk, or only one behind a network, can do wrong.

use super::{delete, put, serve};
use crate::local::LocalMeta;
use crate::remote::RemoteMeta;
use crate::{Entry, MetaStore};
use std::time::Duration;
use tessera_proto::Retry;
use tessera_proto::v1::{self, meta_client::MetaClient};

async fn everything(store: &dyn MetaStore) -> (Vec<Entry>, u64) {
    store.range("").await.unwrap()
}

#[tokio::test]
async fn keeps_everything_over_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/meta");
    let mut expected = (Vec::new(), 0);
    let blobs = || std::fs::read_dir(path.join("blobs")).unwrap().count();
    for round in 0..4_usize {
        let store = LocalMeta::open(&path).unwrap();
        assert_eq!(everything(&*store).await, expected, "round {round}");
        // Grows and shrinks over the borders of pieces, removes, and writes again what was removed.
        let size = [0, 200_000, 4_096, 1_000_000][round];
        store
            .cas(vec![put("/size", vec![7; size]), put("/stays", "same")])
            .await
            .unwrap();
        store
            .cas(
                (0..100)
                    .map(|i| put(&format!("/many/{i}"), format!("{round}")))
                    .collect(),
            )
            .await
            .unwrap();
        store
            .cas(
                (round * 10..round * 10 + 20)
                    .map(|i| delete(&format!("/many/{i}")))
                    .collect(),
            )
            .await
            .unwrap();
        expected = everything(&*store).await;
        assert_eq!(expected.0.len(), 82);
        assert_eq!(blobs(), 0, "sled never fsyncs what it puts there");
    }
}

#[tokio::test]
async fn removing_the_last_of_everything_persists() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalMeta::open(dir.path()).unwrap();
    store.cas(vec![put("/a", "1")]).await.unwrap();
    store.cas(vec![delete("/a")]).await.unwrap();
    store.close().await;
    assert_eq!(everything(&*LocalMeta::open(dir.path()).unwrap()).await, (vec![], 2));
}

#[tokio::test]
async fn opens_beside_an_unfinished_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    drop(LocalMeta::open(dir.path()).unwrap());
    let left = dir.path().join("snap.FFFFFFFFFFFFFFFF.generating");
    std::fs::write(&left, "half a snapshot").unwrap();
    LocalMeta::open(dir.path())
        .unwrap()
        .cas(vec![put("/a", "1")])
        .await
        .unwrap();
    assert!(!left.exists());
}

#[tokio::test]
async fn belongs_to_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalMeta::open(dir.path()).unwrap();
    assert_eq!(LocalMeta::open(dir.path()).unwrap_err().code, "55006");
    store.close().await;
    let next = LocalMeta::open(dir.path()).unwrap();
    next.cas(vec![put("/a", "1")]).await.unwrap();
    for error in [
        store.cas(vec![put("/a", "2")]).await.map(drop),
        store.range("/").await.map(drop),
    ] {
        assert_eq!(
            error.unwrap_err().retry,
            Retry::Elsewhere,
            "the closed one serves nobody"
        );
    }
}

#[tokio::test]
async fn says_when_it_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    for (value, part) in [(&b"short"[..], "slot 9"), (&[0; 14][..], "revision 0")] {
        drop(LocalMeta::open(dir.path()).unwrap());
        let db = until_released(dir.path());
        db.insert(b"e\0\0\0\0\0\0\0\x09\0\0", value).unwrap();
        db.flush().unwrap();
        drop(db);
        let error = LocalMeta::open(dir.path()).unwrap_err();
        assert_eq!(error.code, "XX001");
        assert!(error.detail.as_deref().unwrap_or_default().contains(part), "{error:?}");
        until_released(dir.path()).remove(b"e\0\0\0\0\0\0\0\x09\0\0").unwrap();
    }
}

/// Sled's own threads give its lock back a moment after the last handle is gone.
fn until_released(dir: &std::path::Path) -> sled::Db {
    loop {
        match sled::open(dir) {
            Ok(db) => return db,
            Err(error) => assert!(error.to_string().contains("acquire lock"), "{error}"),
        }
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn close_does_not_wait_for_idle_callers() {
    // One thread: if `close` blocked it, the queued callers could never take their answers.
    let dir = tempfile::tempdir().unwrap();
    let store = LocalMeta::open(dir.path()).unwrap();
    let queued: Vec<_> = (0..300)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move { store.cas(vec![put(&format!("/{i}"), "")]).await })
        })
        .collect();
    tokio::task::yield_now().await;
    store.close().await;
    let mut applied = 0;
    for task in queued {
        applied += u64::from(task.await.unwrap().is_ok_and(|outcome| outcome.applied));
    }
    let reopened = everything(&*LocalMeta::open(dir.path()).unwrap()).await;
    assert_eq!((reopened.0.len() as u64, reopened.1), (applied, applied));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_an_unknown_outcome() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let nobody = RemoteMeta::new(&closed.to_string()).unwrap();
    assert_eq!(
        nobody.cas(vec![put("/a", "1")]).await.unwrap_err().retry,
        Retry::Elsewhere,
        "never sent"
    );
    assert_eq!(nobody.range("/").await.unwrap_err().retry, Retry::Elsewhere);

    // Accepts, reads a little and hangs up, as a router that is killed.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let dying = tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 64];
            let _ = tokio::io::AsyncReadExt::read(&mut socket, &mut bytes).await;
        }
    });
    let store = RemoteMeta::new(&address.to_string()).unwrap();
    assert_eq!(
        store.cas(vec![put("/a", "1")]).await.unwrap_err().retry,
        Retry::OutcomeUnknown
    );
    assert_eq!(
        store.range("/").await.unwrap_err().retry,
        Retry::Elsewhere,
        "a read has no outcome"
    );
    dying.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_checks_what_the_client_would_have() {
    let (address, server) = serve(LocalMeta::memory()).await;
    let mut client = MetaClient::new(tessera_proto::client::channel(&address.to_string()).unwrap());
    let op = |key: &str| v1::CasOp {
        key: key.into(),
        unconditional: true,
        value: Some(Default::default()),
        ..Default::default()
    };
    let contradiction = v1::CasOp {
        check_only: true,
        ..op("/a")
    };
    for (code, ops) in [
        ("22023", vec![op("a")]),
        ("22023", vec![op("/a"), op("/a")]),
        ("08P01", vec![contradiction]),
    ] {
        let status = client.cas(v1::CasRequest { ops }).await.unwrap_err();
        assert_eq!(tessera_proto::Error::from(status).code, code);
    }
    let wait = v1::WaitRequest {
        after: 0,
        timeout_ms: 0,
    };
    let reply = tokio::time::timeout(Duration::from_secs(5), client.wait(wait))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(reply.into_inner().revision, 0);
    server.abort();
}
