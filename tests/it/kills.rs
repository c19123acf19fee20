//! kill -9 at random moments: of the whole process, of single nodes of a cluster of processes, and now and then the router.
//!
//! `TESSERA_KILL_CYCLES` sets the number of kills of each test, `TESSERA_SEED` the moments.

use crate::cluster::{self, Process, Processes, setting, value};
use crate::workload::{Counts, Workload};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Kills after which a table is checked for the last time and a new one begun: keeps checks short.
const KILLS_PER_TABLE: u64 = 20;

fn seed() -> u64 {
    let seed = setting("TESSERA_SEED", 1);
    println!("TESSERA_SEED={seed}");
    seed
}

/// The kill's moment is the fault itself: it waits for nothing.
async fn random_moment(rng: &mut StdRng, most: u64) {
    tokio::time::sleep(Duration::from_millis(rng.random_range(0..most))).await;
}

fn add(total: &mut Counts, counts: Counts) {
    total.acknowledged += counts.acknowledged;
    total.refused += counts.refused;
    total.unknown += counts.unknown;
}

/// Whole process: killed during INSERT, COPY and restart.
#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_of_the_whole_process() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (cycles, seed) = (setting("TESSERA_KILL_CYCLES", 3), seed());
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut total, mut while_starting) = (Counts::default(), 0);
    let mut workload = None;
    for cycle in 0..cycles {
        if rng.random_range(0..4) == 0 {
            let (process, _) = Process::begin(dir.path(), 3);
            random_moment(&mut rng, 400).await;
            process.kill();
            while_starting += 1;
        }
        let (process, url) = Process::start(dir.path(), 3).await;
        let client = cluster::connect(&url).await;
        if cycle % KILLS_PER_TABLE == 0 {
            finish(&client, workload.take(), &mut total).await;
            workload = Some(Workload::create(&client, &format!("t{cycle}"), 4, 3).await);
        }
        let workload = workload.as_ref().expect("a table");
        workload.verify(&client).await;
        let writers = workload.write(&url, seed * 1_000 + cycle);
        random_moment(&mut rng, 1_500).await;
        process.kill();
        writers.stop().await;
    }
    let (process, url) = Process::start(dir.path(), 3).await;
    let client = cluster::connect(&url).await;
    finish(&client, workload, &mut total).await;
    println!("whole process: {cycles} kills while writing, {while_starting} while starting: {total:?}");
    process.terminate();
    process.wait();
    for node in 1..=3 {
        no_staged_files_left(&dir.path().join(format!("node-{node}")));
    }
}

async fn finish(client: &tokio_postgres::Client, workload: Option<std::sync::Arc<Workload>>, total: &mut Counts) {
    if let Some(workload) = workload {
        add(total, workload.verify(client).await);
        until_settled(client).await;
        if !workload.refusals().is_empty() {
            println!("{}: refused: {:?}", workload.table, workload.refusals());
        }
    }
}

/// Single nodes of a cluster of processes, while the others and the writers go on; every tenth time the router.
#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_of_single_nodes() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (cycles, seed) = (setting("TESSERA_KILL_CYCLES", 2), seed());
    let mut rng = StdRng::seed_from_u64(seed);
    let mut processes = Processes::start(dir.path(), 3).await;
    let (mut total, mut routers) = (Counts::default(), 0);
    let mut workload = None;
    for cycle in 0..cycles {
        let client = cluster::connect(processes.url()).await;
        if cycle % KILLS_PER_TABLE == 0 {
            finish(&client, workload.take(), &mut total).await;
            workload = Some(Workload::create(&client, &format!("t{cycle}"), 6, 3).await);
        }
        let workload = workload.as_ref().expect("a table");
        let writers = workload.write(processes.url(), seed * 1_000 + cycle);
        random_moment(&mut rng, 800).await;
        let router = rng.random_range(0..10) == 0;
        if router {
            routers += 1;
            processes.kill_router();
            processes.start_router().await;
        } else {
            let node = rng.random_range(1..=3);
            processes.kill_node(node);
            // Sometimes long enough to be taken out of the in-sync sets, sometimes not.
            random_moment(&mut rng, 3_000).await;
            processes.start_node(node);
        }
        random_moment(&mut rng, 500).await;
        writers.stop().await;
        let client = cluster::connect(processes.url()).await;
        let counts = workload.verify(&client).await;
        println!("kill {}: {counts:?}", cycle + 1);
    }
    let client = cluster::connect(processes.url()).await;
    let rows = value(&client, "SELECT count(*) FROM tessera.nodes").await;
    assert_eq!(rows, "3");
    finish(&client, workload, &mut total).await;
    println!(
        "single nodes: {} kills of nodes, {routers} of the router: {total:?}",
        cycles - routers
    );
    let paths: Vec<PathBuf> = (1..=3).map(|n| processes.path(n)).collect();
    processes.stop();
    // What a killed router had staged stays until its node starts again.
    let processes = Processes::start(dir.path(), 3).await;
    until_settled(&cluster::connect(processes.url()).await).await;
    processes.stop();
    paths.iter().for_each(|p| no_staged_files_left(p));
}

/// Until no transaction is in doubt any more: then nothing but rows needs files.
pub async fn until_settled(client: &tokio_postgres::Client) {
    let sql = "SELECT sum(in_doubt) + sum(lag), count(*) - count(in_doubt) FROM tessera.shards";
    cluster::until(client, sql, |rows| rows[0].iter().all(|v| v.as_deref() == Some("0"))).await;
}

/// After a clean stop every row is in files that the newest manifest names; what else there is was left behind, unless the
/// ledger has a transaction for it.
pub fn no_staged_files_left(node: &Path) {
    for shard in std::fs::read_dir(node.join("shards")).expect("shards").flatten() {
        let names = |dir: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(dir).expect("a folder").flatten();
            entries.map(|e| e.file_name().into_string().expect("text")).collect()
        };
        let manifests = names(&shard.path());
        let newest = manifests
            .iter()
            .filter_map(|n| n.strip_prefix("MANIFEST-")?.strip_suffix(".json")?.parse::<u64>().ok())
            .max();
        let manifest = newest.map_or_else(String::new, |n| {
            std::fs::read_to_string(shard.path().join(format!("MANIFEST-{n}.json"))).expect("a manifest")
        });
        let ledger = std::fs::read(shard.path().join("LEDGER")).unwrap_or_default();
        let undecided = |name: &str| ledger.windows(name.len()).any(|w| w == name.as_bytes());
        for file in names(&shard.path().join("seg")) {
            let segment = file.replace(".pk", ".parquet");
            assert!(
                manifest.contains(&segment) || undecided(&segment),
                "{file} in {:?} belongs to nothing",
                shard.path()
            );
        }
    }
}
