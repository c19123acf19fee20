//! Power loss and full disks: what needs a disk of its own, and root to make one.
//!
//! These run only when asked for (`TESSERA_POWER_CYCLES`, `TESSERA_FULL_DISK`), and say so otherwise. `scripts/faults/power`
//! makes the disk with a volatile write cache; the full disk is a tmpfs that grows later.

use crate::cluster::{self, Process, setting, until_verified, value};
use crate::workload::Workload;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Cycles after which a new table is begun: keeps checks short.
const CYCLES_PER_TABLE: u64 = 10;

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    let status = status.unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

/// A disk that loses what was not flushed.
struct Disk(PathBuf);

impl Disk {
    fn new(dir: &Path) -> Self {
        let disk = Self(dir.to_path_buf());
        disk.power("new");
        disk
    }

    fn power(&self, verb: &str) {
        let script = Path::new("scripts/faults/power").canonicalize().expect("the script");
        run(script.to_str().expect("text"), &[verb, self.0.to_str().expect("text")]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.power("end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn power_loss_loses_nothing_that_was_acknowledged() {
    let cycles = setting("TESSERA_POWER_CYCLES", 0);
    if cycles == 0 {
        eprintln!(
            "SKIPPED: power loss; set TESSERA_POWER_CYCLES=30 as root with nbdkit, libnbd-bin and fuse3 installed"
        );
        return;
    }
    let seed = setting("TESSERA_SEED", 1);
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().expect("temporary folder");
    let (mount, mut acknowledged) = (dir.path().join("mount"), 0);
    let disk = Disk::new(&mount);
    let data = mount.join("data");
    let mut workload: Option<std::sync::Arc<Workload>> = None;
    for cycle in 0..cycles {
        let (process, url) = Process::start(&data, 3).await;
        let client = cluster::connect(&url).await;
        if let Some(workload) = &workload {
            let counts = workload.verify(&client).await;
            println!("after cut {cycle}: {counts:?}");
        }
        if cycle % CYCLES_PER_TABLE == 0 {
            acknowledged += workload.take().map_or(0, |w| w.acknowledged());
            workload = Some(Workload::create(&client, &format!("t{cycle}"), 4, 4).await);
        }
        let writers = workload.as_ref().expect("a table").write(&url, seed * 1_000 + cycle);
        // The moment of the fault: it waits for nothing.
        tokio::time::sleep(Duration::from_millis(rng.random_range(200..2_500))).await;
        disk.power("cut");
        process.kill();
        writers.stop().await;
        disk.power("on");
    }
    let (process, url) = Process::start(&data, 3).await;
    let workload = workload.expect("a table");
    workload.verify(&cluster::connect(&url).await).await;
    acknowledged += workload.acknowledged();
    process.kill();
    println!("{cycles} power losses, {acknowledged} statements acknowledged, none lost");
    assert!(acknowledged > 0);
}

/// A small tmpfs.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(dir: &Path, megabytes: u32) -> Self {
        std::fs::create_dir_all(dir).expect("mount point");
        let size = format!("size={megabytes}m");
        run(
            "mount",
            &["-t", "tmpfs", "-o", &size, "tmpfs", dir.to_str().expect("text")],
        );
        Self(dir.to_path_buf())
    }

    fn resize(&self, megabytes: u32) {
        let size = format!("remount,size={megabytes}m");
        run("mount", &["-o", &size, self.0.to_str().expect("text")]);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", &["-l", self.0.to_str().expect("text")]);
    }
}

/// Writes are refused with 53100 while the disk is full, reads go on, and writes resume by themselves when there is space.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_and_recovers() {
    if setting("TESSERA_FULL_DISK", 0) == 0 {
        eprintln!("SKIPPED: full disk; set TESSERA_FULL_DISK=1 as root");
        return;
    }
    let dir = tempfile::tempdir().expect("temporary folder");
    let disk = SmallDisk::new(&dir.path().join("mount"), 160);
    let (process, url) = Process::start(&disk.0.join("data"), 3).await;
    let client = cluster::connect(&url).await;
    client
        .simple_query("CREATE TABLE f (k bigint PRIMARY KEY, v text) SHARD BY HASH(k) SHARDS 4")
        .await
        .expect("created");
    // Text that does not compress, in statements small enough to be inline and large enough to fill the disk soon.
    let mut rng = StdRng::seed_from_u64(7);
    let mut statement = |number: u64| {
        let values: Vec<_> = (0..400u64)
            .map(|i| {
                let text: String = (0..125).map(|_| format!("{:016x}", rng.random::<u64>())).collect();
                format!("({}, '{text}')", number * 1_000 + i)
            })
            .collect();
        format!("INSERT INTO f VALUES {}", values.join(","))
    };
    let mut acknowledged = 0u64;
    let refusal = loop {
        match client.simple_query(&statement(acknowledged)).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1_000, "the disk never fills");
    };
    assert_eq!(refusal.code().map(|c| c.code()), Some("53100"), "{refusal:?}");
    let count = || async { value(&client, "SELECT count(*) FROM f").await };
    assert_eq!(count().await, (acknowledged * 400).to_string());
    for _ in 0..5 {
        assert_eq!(cluster::code(&client, &statement(900_000)).await, "53100");
    }
    assert_eq!(count().await, (acknowledged * 400).to_string(), "reads go on");

    disk.resize(2_000);
    for number in 0..3 {
        client
            .simple_query(&statement(acknowledged + number))
            .await
            .expect("writes resume");
    }
    acknowledged += 3;
    assert_eq!(count().await, (acknowledged * 400).to_string());
    until_verified(&client, "f", 4, 2).await;
    process.kill();
    let (_process, url) = Process::start(&disk.0.join("data"), 3).await;
    let client = cluster::connect(&url).await;
    assert_eq!(
        value(&client, "SELECT count(*) FROM f").await,
        (acknowledged * 400).to_string()
    );
    until_verified(&client, "f", 4, 2).await;
    println!(
        "full after {} statements, all of them and three later ones are there",
        acknowledged - 3
    );
}
