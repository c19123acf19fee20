//! Every kind of damage to a node's disk: with another copy alive it is mended, without one the shard says so.

use super::cluster::{Cluster, GROUP, PATIENCE, code};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Files below `dir` whose name ends so.
fn files(dir: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        if path.is_dir() && !path.ends_with("damaged") {
            found.extend(files(&path, end));
        } else if path.to_str().unwrap().ends_with(end) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

fn flip_all(dir: &Path, end: &str) {
    let found = files(dir, end);
    assert!(!found.is_empty(), "no {end} in {dir:?}");
    found.iter().for_each(|f| flip(f));
}

fn remove_all(dir: &Path, end: &str) {
    let found = files(dir, end);
    assert!(!found.is_empty(), "no {end} in {dir:?}");
    found.iter().for_each(|f| std::fs::remove_file(f).unwrap());
}

type Damage = (&'static str, fn(&Path));

const DAMAGES: [Damage; 11] = [
    ("log flipped", |d| flip_all(d, ".wal")),
    ("log gone", |d| remove_all(d, ".wal")),
    ("identity damaged", |d| flip_all(d, "identity.json")),
    ("identity gone", |d| remove_all(d, "identity.json")),
    ("manifests flipped", |d| flip_all(d, ".json")),
    ("manifests gone", |d| {
        let found = files(d, ".json");
        let manifests = found.iter().filter(|f| f.to_str().unwrap().contains("MANIFEST"));
        manifests.for_each(|f| std::fs::remove_file(f).unwrap());
    }),
    ("ledgers flipped", |d| flip_all(d, "LEDGER")),
    ("segments flipped", |d| flip_all(d, ".parquet")),
    ("segments gone", |d| remove_all(d, ".parquet")),
    ("sidecars flipped", |d| flip_all(d, ".pk")),
    ("sidecars gone", |d| remove_all(d, ".pk")),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_disk_is_mended_from_the_other_copies() {
    let mut cluster = Cluster::new(3, 3).await;
    let mut rows = 0;
    for (round, (what, damage)) in DAMAGES.into_iter().enumerate() {
        let first = round as i64 * 1_000;
        cluster.insert(first..first + 300).await.unwrap();
        rows += 300;
        // Over the rounds leaders and followers of every shard are hit.
        let node = 1 + round as u32 % 3;
        cluster.shut_down(node).await;
        damage(&cluster.path(node));
        cluster.start(node).await;
        healthy(&cluster, what).await;
        assert_eq!(cluster.rows().await, rows, "{what}");
        assert_eq!(code(cluster.insert(first..first + 1).await), "23505", "{what}");
    }
}

/// All copies in sync and equal. Reading finds damage that opening does not, so the first looks may fail.
async fn healthy(cluster: &Cluster, what: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let differences = cluster.differences().await;
        let mut in_sync = true;
        let view = cluster.views.refresh().await.unwrap();
        for index in 0..view.group_shards(GROUP).count() as u32 {
            in_sync &= cluster.config(index).await.in_sync.len() == 2;
        }
        if in_sync && differences.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "{what}: {differences:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_copy_is_never_thrown_away() {
    let mut cluster = Cluster::new(1, 2).await;
    cluster.insert(0..300).await.unwrap();
    cluster.shut_down(1).await;
    let log = files(&cluster.path(1), ".wal").pop().unwrap();
    let sound = std::fs::read(&log).unwrap();
    flip(&log);
    assert_eq!(code(cluster.try_start(1, String::new()).await), "XX001");
    std::fs::write(&log, sound).unwrap();

    let manifests: Vec<_> = files(&cluster.path(1), ".json");
    let damaged = manifests
        .iter()
        .find(|m| m.to_str().unwrap().contains("-0/MANIFEST"))
        .unwrap();
    let sound = std::fs::read(damaged).unwrap();
    flip(damaged);
    cluster.start(1).await;
    let (zero, one) = (cluster.keys_of(0, 1_000..1_100)[0], cluster.keys_of(1, 1_000..1_100)[0]);
    assert_eq!(code(cluster.insert(zero..zero + 1).await), "XX001");
    cluster.insert(one..one + 1).await.unwrap();
    std::fs::write(damaged, sound).unwrap();
    // It is looked at again by itself.
    let end = Instant::now() + PATIENCE;
    while cluster.insert(zero..zero + 1).await.is_err() {
        assert!(Instant::now() < end, "the shard stays offline");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(cluster.rows().await, 302);
}

/// Bytes of the last groups of a log: cut anywhere there, or with any bit flipped, a node comes back with everything, from
/// its own disk or from its peer. `TESSERA_DAMAGE_CYCLES` takes so many places instead of a few.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_damaged_anywhere_in_its_last_groups_loses_nothing() {
    let places = std::env::var("TESSERA_DAMAGE_CYCLES").map_or(6, |n| n.parse().unwrap());
    let mut rng = StdRng::seed_from_u64(11);
    let mut cluster = Cluster::new(2, 2).await;
    cluster.insert(0..100).await.unwrap();
    let (mut next, mut refused) = (1_000, 0);
    for place in 0..places {
        for _ in 0..3 {
            cluster.insert(next..next + 2).await.unwrap();
            next += 2;
        }
        let node = 1 + place % 2;
        cluster.halt(node).await;
        let log = files(&cluster.path(node), ".wal").pop().unwrap();
        let mut bytes = std::fs::read(&log).unwrap();
        let magic = b"\xF1tesgrp\x1F";
        let groups: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(magic)).collect();
        let from = groups[groups.len().saturating_sub(4)];
        let at = rng.random_range(from..bytes.len());
        if rng.random() {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1 << rng.random_range(0..8);
        }
        std::fs::write(&log, bytes).unwrap();
        cluster.start(node).await;
        refused += usize::from(cluster.path(node).join("damaged").exists());
        let _ = std::fs::remove_dir_all(cluster.path(node).join("damaged"));
        let what = format!("place {place}, offset {at}");
        healthy(&cluster, &what).await;
        assert_eq!(cluster.rows().await, 100 + (next - 1_000) as u64, "{what}");
    }
    println!(
        "{places} places in the log damaged: {refused} logs refused and fetched again, the others cut; nothing lost"
    );
}

/// A log that lost its end, its promise of the present epoch included, gets everything back from its follower.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_log_lost_its_end_adopts_its_followers() {
    let mut cluster = Cluster::new(2, 1).await;
    for cut in 1..6 {
        cluster.insert(cut * 100..cut * 100 + 50).await.unwrap();
        cluster.halt(1).await;
        let log = files(&cluster.path(1), ".wal").pop().unwrap();
        let bytes = std::fs::read(&log).unwrap();
        std::fs::write(&log, &bytes[..bytes.len() - bytes.len() * cut as usize / 6]).unwrap();
        cluster.start(1).await;
        assert_eq!(cluster.rows().await, cut as u64 * 50, "cut {cut}");
        cluster
            .until_config(0, "both are in sync", |c| c.in_sync.len() == 2)
            .await;
        cluster.assert_copies_equal().await;
    }
}
