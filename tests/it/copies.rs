//! Copies stay equal through everything an operator or a machine does to them, with writers running.
//!
//! Every statement's fate is in the book of `workload.rs`. Every day one short round; `TESSERA_ROUNDS` asks for whole ones.

use crate::cluster::{self, PATIENCE, Processes, rows, setting};
use crate::workload::{Counts, Workload, Writers};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

const SHARDS: usize = 6;

struct Scene {
    processes: Processes,
    client: Client,
    workload: std::sync::Arc<Workload>,
    seed: u64,
}

impl Scene {
    fn writers(&mut self) -> Writers {
        self.seed += 1;
        self.workload.write(self.processes.url(), self.seed)
    }

    /// Until so many more statements were acknowledged: writers are really at work then.
    async fn progress(&self, statements: u64) {
        let goal = self.workload.acknowledged() + statements;
        let start = Instant::now();
        while self.workload.acknowledged() < goal {
            assert!(start.elapsed() < PATIENCE, "writers make no progress");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Copies are equal while writers run, and once more, with the book, when they rest.
    async fn equal(&self, writers: Writers, what: &str) -> Counts {
        cluster::until_verified(&self.client, &self.workload.table, SHARDS, 2).await;
        writers.stop().await;
        let counts = self.workload.verify(&self.client).await;
        println!("equal {what}: {counts:?}");
        counts
    }

    async fn leader(&self, shard: usize) -> u32 {
        let sql = format!(
            "SELECT DISTINCT leader FROM tessera.shards WHERE table_name = '{}' AND shard = {shard}",
            self.workload.table
        );
        let found = rows(&self.client, &sql).await.expect("the map is read");
        found[0][0].as_ref().and_then(|n| n.parse().ok()).expect("a node")
    }

    async fn alter(&self, shard: usize, action: &str) -> Result<(), String> {
        let sql = format!("ALTER SHARD {shard} OF {} {action}", self.workload.table);
        match self.client.simple_query(&sql).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error
                .as_db_error()
                .map_or(error.to_string(), |e| format!("{} {}", e.code().code(), e.message()))),
        }
    }

    /// Asks again while the shard is on its way between leaders.
    async fn alter_until(&self, shard: usize, action: &str) {
        let start = Instant::now();
        while let Err(error) = self.alter(shard, action).await {
            assert!(start.elapsed() < PATIENCE, "{action} of shard {shard}: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn switch_all(&self) {
        for shard in 0..SHARDS {
            let before = self.leader(shard).await;
            self.alter_until(shard, "SWITCH LEADER").await;
            assert_ne!(self.leader(shard).await, before, "shard {shard} kept its leader");
        }
    }

    async fn taken_out(&self, node: u32) {
        let sql = format!("SELECT count(*) FROM tessera.shards WHERE node = {node} AND in_sync AND leader <> {node}");
        cluster::until(&self.client, &sql, |rows| rows[0][0].as_deref() == Some("0")).await;
    }
    /// Everything stops, cleanly, and starts; a follower is silent for a while; a follower is stopped for a while.
    async fn pauses(self, dir: &std::path::Path, node: u32) -> Self {
        let Scene {
            processes,
            workload,
            seed,
            ..
        } = self;
        processes.stop();
        let processes = Processes::start(dir, 3).await;
        let client = cluster::connect(processes.url()).await;
        let mut scene = Scene {
            processes,
            client,
            workload,
            seed,
        };
        let writers = scene.writers();
        scene.equal(writers, "after a restart").await;

        // A node stands still for a while: not dead, just silent. Its shards get other leaders first.
        for shard in 0..SHARDS {
            if scene.leader(shard).await == node {
                scene.alter_until(shard, "SWITCH LEADER").await;
            }
        }
        let writers = scene.writers();
        scene.processes.freeze_node(node);
        scene.taken_out(node).await;
        scene.progress(5).await;
        scene.processes.thaw_node(node);
        scene.equal(writers, "after a follower stood still for a while").await;

        let writers = scene.writers();
        scene.processes.kill_node(node);
        scene.taken_out(node).await;
        scene.progress(5).await;
        scene.processes.start_node(node);
        scene.equal(writers, "after a follower was stopped for a while").await;
        scene
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_equal_after_every_change_of_the_cluster() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let processes = Processes::start(dir.path(), 3).await;
    let client = cluster::connect(processes.url()).await;
    let workload = Workload::create(&client, "c", SHARDS, 4).await;
    let mut scene = Scene {
        processes,
        client,
        workload,
        seed: setting("TESSERA_SEED", 1) * 1_000,
    };
    let mut total = Counts::default();
    let rounds = setting("TESSERA_ROUNDS", 0);
    let whole = rounds > 0;
    for round in 0..rounds.max(1) {
        let node = (round % 3 + 1) as u32;
        let writers = scene.writers();
        scene.progress(5).await;
        scene.switch_all().await;
        scene.progress(5).await;
        scene
            .equal(writers, "after load and SWITCH LEADER of every shard under it")
            .await;
        if whole {
            scene = scene.pauses(dir.path(), node).await;
        }

        // Half of the shards are led there again, then its disk is gone.
        let mut led = 0;
        for shard in 0..SHARDS {
            if led < 2 && scene.alter(shard, "SWITCH LEADER").await.is_ok() && scene.leader(shard).await == node {
                led += 1;
            }
        }
        let writers = scene.writers();
        scene.processes.kill_node(node);
        std::fs::remove_dir_all(scene.processes.path(node)).expect("wiped");
        scene.processes.start_node(node);
        scene
            .equal(
                writers,
                &format!("after the disk of a node that led {led} shards was wiped"),
            )
            .await;

        // A leader dies and its followers are promoted while it is away.
        let dead = scene.leader(0).await;
        let mut promoted = 0;
        let writers = scene.writers();
        scene.progress(2).await;
        scene.processes.kill_node(dead);
        for shard in 0..SHARDS {
            if scene.leader(shard).await == dead {
                scene.alter_until(shard, "PROMOTE").await;
                promoted += 1;
            } else {
                let refused = scene.alter(shard, "PROMOTE").await;
                assert!(refused.is_err(), "shard {shard} has a leader that is alive");
            }
        }
        scene.progress(5).await;
        scene.processes.start_node(dead);
        let what = format!("after PROMOTE of {promoted} shards under load");
        total = scene.equal(writers, &what).await;
        println!("refused: {:?}", scene.workload.refusals());
    }
    assert!(total.acknowledged > 0);
}
