//! The log under restarts, torn and damaged tails, full disks and file changes.

use super::*;
use crate::storage::test_tables::identity;
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use tessera_proto::GroupId;

fn shard(index: u32) -> ShardId {
    ShardId {
        group: GroupId(9),
        index,
    }
}

fn entry(shard: ShardId, epoch: u64, index: u64) -> Record {
    let payload = Bytes::from(vec![index as u8; 5 + index as usize % 40]);
    let record = LogRecord {
        epoch: Epoch(epoch),
        index: LogIndex(index),
        kind: EntryKind::Prepare,
        payload,
    };
    Record::Entry { shard, record }
}

fn indexes(wal: &Wal, shard: ShardId) -> Vec<u64> {
    wal.read(shard, wal.first(shard), usize::MAX)
        .unwrap()
        .iter()
        .map(|r| r.index.0)
        .collect()
}

/// Appends without waiting for a runtime of the test's own.
fn append(wal: &Wal, records: Vec<Record>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(wal.append(records))
}

fn open(dir: &Path) -> Result<(Wal, WalReport)> {
    Wal::open(dir, &identity())
}

fn only_file(dir: &Path) -> PathBuf {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files.pop().unwrap()
}

#[test]
fn keeps_everything_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, report) = open(dir.path()).unwrap();
    assert!(report.shards.is_empty());
    append(
        &wal,
        vec![
            entry(shard(1), 1, 1),
            entry(shard(1), 1, 2),
            Record::Promise {
                shard: shard(1),
                epoch: Epoch(4),
            },
        ],
    )
    .unwrap();
    append(
        &wal,
        vec![entry(shard(2), 2, 1), entry(shard(1), 3, 3), entry(shard(1), 3, 4)],
    )
    .unwrap();
    append(
        &wal,
        vec![Record::TruncateAfter {
            shard: shard(1),
            index: LogIndex(3),
        }],
    )
    .unwrap();
    append(
        &wal,
        vec![
            Record::Reset {
                shard: shard(3),
                epoch: Epoch(7),
                index: LogIndex(50),
            },
            entry(shard(3), 7, 51),
        ],
    )
    .unwrap();
    append(&wal, vec![entry(shard(4), 1, 1), Record::Forget { shard: shard(4) }]).unwrap();
    for round in 0..2 {
        let (wal, report) = if round == 0 {
            (wal.clone(), WalReport::default())
        } else {
            (wal.close(), open(dir.path()).unwrap()).1
        };
        assert_eq!(indexes(&wal, shard(1)), [1, 2, 3]);
        assert_eq!(indexes(&wal, shard(3)), [51]);
        assert_eq!(wal.shards(), [shard(1), shard(2), shard(3)]);
        assert_eq!(wal.promised(shard(1)), Epoch(4));
        assert_eq!(
            wal.boundaries(shard(1)),
            [(Epoch(1), LogIndex(2)), (Epoch(3), LogIndex(3))]
        );
        assert_eq!(
            (wal.first(shard(3)), wal.last(shard(3))),
            (LogIndex(51), (Epoch(7), LogIndex(51)))
        );
        let epochs: Vec<_> = [0, 1, 2, 3, 4]
            .iter()
            .map(|i| wal.epoch_at(shard(1), LogIndex(*i)).map(|e| e.0))
            .collect();
        assert_eq!(epochs, [Some(0), Some(1), Some(1), Some(3), None]);
        assert_eq!(
            [49, 50, 51].map(|i| wal.epoch_at(shard(3), LogIndex(i)).map(|e| e.0)),
            [None, Some(7), Some(7)]
        );
        assert_eq!(wal.read(shard(1), LogIndex(2), 1).unwrap().len(), 1);
        assert_eq!(
            (report.cut_bytes, wal.first(shard(4)), wal.last(shard(4)).1),
            (0, LogIndex(1), LogIndex(0))
        );
    }
}

#[test]
fn refuses_records_that_do_not_continue() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path()).unwrap();
    append(&wal, vec![entry(shard(1), 5, 1)]).unwrap();
    for bad in [
        entry(shard(1), 5, 3),
        entry(shard(1), 4, 2),
        entry(shard(1), 5, 1),
        Record::TruncateAfter {
            shard: shard(1),
            index: LogIndex(2),
        },
    ] {
        assert_eq!(
            append(&wal, vec![entry(shard(2), 1, 1), bad]).unwrap_err().code,
            "XX000"
        );
    }
    // All or nothing: the sound record beside the bad one is not there.
    assert_eq!(wal.last(shard(2)), (Epoch(0), LogIndex(0)));
    append(&wal, vec![entry(shard(1), 5, 2)]).unwrap();
    assert_eq!(indexes(&wal, shard(1)), [1, 2]);
}

/// A log whose last two groups are known: returns its bytes and where each group ends.
fn sample(dir: &Path) -> (Vec<u8>, Vec<u64>) {
    let (wal, _) = open(dir).unwrap();
    let mut ends = Vec::new();
    for index in 1..=4 {
        append(&wal, vec![entry(shard(1), 1, index), entry(shard(2), 1, index)]).unwrap();
        ends.push(std::fs::metadata(only_file(dir)).unwrap().len());
    }
    let bytes = std::fs::read(only_file(dir)).unwrap();
    wal.close();
    (bytes, ends)
}

/// Opens `bytes` as a log; a log that opens must hold a prefix of what was written, and take appends.
fn reopen(dir: &Path, bytes: &[u8]) -> Result<u64> {
    std::fs::write(only_file(dir), bytes).unwrap();
    let (wal, _) = open(dir)?;
    let kept = wal.last(shard(1)).1.0;
    assert_eq!(indexes(&wal, shard(1)), (1..=kept).collect::<Vec<_>>());
    assert_eq!(
        wal.read(shard(1), LogIndex(1), usize::MAX).unwrap()[0].payload,
        vec![1u8; 6]
    );
    assert_eq!(wal.last(shard(2)).1.0, kept, "a group is all or nothing");
    append(&wal, vec![entry(shard(1), 2, kept + 1)]).unwrap();
    wal.close();
    assert_eq!(open(dir)?.1.shards[&shard(1)].last, (Epoch(2), LogIndex(kept + 1)));
    Ok(kept)
}

#[test]
fn cuts_a_tail_torn_at_any_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, ends) = sample(dir.path());
    for end in ends[1]..=ends[3] {
        let complete = ends.iter().filter(|e| **e <= end).count() as u64;
        assert_eq!(
            reopen(dir.path(), &bytes[..end as usize]).unwrap(),
            complete,
            "cut at {end}"
        );
    }
    // Garbage and zeros behind the end are a torn write too.
    let mut longer = bytes.clone();
    longer.extend([0; 100]);
    longer.extend([0xA5; 100]);
    assert_eq!(reopen(dir.path(), &longer).unwrap(), 4);
}

#[test]
fn any_flipped_bit_is_cut_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, ends) = sample(dir.path());
    for bit in ends[1] * 8..ends[3] * 8 {
        let mut flipped = bytes.clone();
        flipped[bit as usize / 8] ^= 1 << (bit % 8);
        match reopen(dir.path(), &flipped) {
            // Group 4 says that group 3 was durable, so damage to 3 must be refused; nothing says so of 4.
            Err(error) => assert!(error.code == "XX001" && bit < ends[2] * 8, "bit {bit}: {error:?}"),
            Ok(kept) => assert!(kept == 3 && bit >= ends[2] * 8, "bit {bit}: {kept}"),
        }
    }
}

#[test]
fn after_a_clean_close_damage_to_the_last_group_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_, ends) = sample(dir.path());
    let mut bytes = std::fs::read(only_file(dir.path())).unwrap();
    bytes[ends[3] as usize - 3] ^= 1;
    std::fs::write(only_file(dir.path()), bytes).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert_eq!(error.code, "XX001");
    assert!(error.message.contains("offset"), "{}", error.message);
}

#[test]
fn random_bytes_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, _) = sample(dir.path());
    let mut seed = 0x9E37_79B9_7F4A_7C15u64;
    for _ in 0..300 {
        let mut damaged = bytes.clone();
        for _ in 0..4 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (seed >> 33) as usize % damaged.len();
            damaged[at] = (seed >> 20) as u8;
        }
        std::fs::write(only_file(dir.path()), damaged).unwrap();
        if let Ok((wal, _)) = open(dir.path()) {
            wal.shards()
                .iter()
                .for_each(|s| drop(wal.read(*s, wal.first(*s), usize::MAX)));
            wal.close();
        }
    }
}

#[test]
fn other_directories_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let mut other = identity();
    other.disk = uuid::Uuid::from_u128(1);
    assert_eq!(Wal::open(dir.path(), &other).unwrap_err().code, "XX001");
    other = identity();
    other.cluster_id = "other".into();
    assert_eq!(Wal::open(dir.path(), &other).unwrap_err().code, "XX001");
    std::fs::rename(only_file(dir.path()), dir.path().join("0000000000000002.wal")).unwrap();
    assert_eq!(open(dir.path()).unwrap_err().code, "XX001");
}

#[test]
fn a_full_disk_fails_the_append_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path()).unwrap();
    append(&wal, vec![entry(shard(1), 1, 1)]).unwrap();
    wal.inner.full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(append(&wal, vec![entry(shard(1), 1, 2)]).unwrap_err().code, "53100");
    }
    wal.inner.full.store(false, Ordering::SeqCst);
    append(&wal, vec![entry(shard(1), 1, 2)]).unwrap();
    wal.close();
    assert_eq!(append(&wal, vec![entry(shard(1), 1, 3)]).unwrap_err().code, "08006");
    let (wal, report) = open(dir.path()).unwrap();
    assert_eq!((indexes(&wal, shard(1)), report.cut_bytes), (vec![1, 2], 0));
}

#[test]
fn files_go_oldest_first_and_promises_outlive_them() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Wal::open_with(dir.path(), &identity(), 2_000).unwrap();
    let (wal, _) = open();
    append(
        &wal,
        vec![
            Record::Promise {
                shard: shard(1),
                epoch: Epoch(3),
            },
            Record::Promise {
                shard: shard(2),
                epoch: Epoch(8),
            },
        ],
    )
    .unwrap();
    append(&wal, vec![entry(shard(2), 1, 1)]).unwrap();
    (1..=200).for_each(|index| append(&wal, vec![entry(shard(1), 3, index)]).unwrap());
    let files = || std::fs::read_dir(dir.path()).unwrap().count();
    let before = files();
    assert!(before > 4);
    wal.release(shard(1), LogIndex(150));
    assert_eq!(
        (files(), wal.retained().1),
        (before, Some(shard(2))),
        "shard 2 still needs the first file"
    );
    wal.release(shard(2), LogIndex(1));
    assert!(files() < before / 2);
    assert_eq!(wal.retained().1, Some(shard(1)));
    let first = wal.first(shard(1));
    assert!(first > LogIndex(1) && first <= LogIndex(151));
    assert_eq!(wal.read(shard(1), LogIndex(1), 1).unwrap_err().code, "XX000");
    wal.close();
    let (wal, report) = open();
    assert_eq!(indexes(&wal, shard(1)), (first.0..=200).collect::<Vec<_>>());
    assert_eq!((wal.promised(shard(1)), wal.promised(shard(2))), (Epoch(3), Epoch(8)));
    assert_eq!(
        (wal.last(shard(2)), wal.first(shard(2))),
        ((Epoch(1), LogIndex(1)), LogIndex(2))
    );
    assert_eq!(report.files, files());
    append(&wal, vec![entry(shard(2), 8, 2)]).unwrap();
    // A file in the middle that vanished is damage, and so is a finished file cut short.
    wal.close();
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    paths.sort();
    let second = std::fs::read(&paths[1]).unwrap();
    std::fs::write(&paths[1], &second[..second.len() - 1]).unwrap();
    assert_eq!(Wal::open(dir.path(), &identity()).unwrap_err().code, "XX001");
    std::fs::remove_file(&paths[1]).unwrap();
    assert_eq!(Wal::open(dir.path(), &identity()).unwrap_err().code, "XX001");
}

#[tokio::test]
async fn concurrent_appends_share_groups() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path()).unwrap();
    let tasks = (0..64).map(|s| {
        let wal = wal.clone();
        tokio::spawn(async move {
            for index in 1..=8 {
                wal.append(vec![entry(shard(s), 1, index)]).await.unwrap();
            }
        })
    });
    futures::future::try_join_all(tasks).await.unwrap();
    assert!((0..64).all(|s| indexes(&wal, shard(s)) == (1..=8).collect::<Vec<_>>()));
}
