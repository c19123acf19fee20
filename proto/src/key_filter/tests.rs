//! Sets of every form: what went in is in, on both sides of the wire, and little else is.

use super::*;
use datafusion::arrow::array::*;
use datafusion::arrow::datatypes::TimeUnit;
use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryPool, UnboundedMemoryPool};
use std::sync::Arc;

fn collected(columns: &[ArrayRef]) -> (KeySet, usize) {
    let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
    let mut collector = Collector::new(columns[0].data_type(), &pool).unwrap();
    for column in columns {
        assert!(collector.add(column).unwrap());
    }
    collector.finish()
}

/// The form of the keys' set, whose every key is in it after the way to a node, and NULL is unknown.
#[track_caller]
fn check(keys: impl Array + 'static, form: &str, others: impl Array + 'static, passing_max: usize) {
    let (keys, others): (ArrayRef, ArrayRef) = (Arc::new(keys), Arc::new(others));
    let (set, _) = collected(&[keys.clone()]);
    assert_eq!(set.form(), form);
    let set = {
        let there = KeySet::from_wire(&set.to_wire(3).unwrap()).unwrap();
        assert_eq!(there, set);
        there
    };
    let found = set.contains(&keys).unwrap();
    assert!((0..keys.len()).all(|row| keys.is_null(row) == found.is_null(row)));
    assert!(found.iter().flatten().all(|found| found));
    let passing = set.contains(&others).unwrap().true_count();
    assert!(passing <= passing_max, "{passing} of {}", others.len());
}

#[test]
fn integers_close_together_are_bits() {
    let keys = || Int64Array::from_iter((0..100).map(|i| (i % 7 > 0).then_some(i * 3 - 50)));
    check(keys(), "bits", Int64Array::from_iter_values((0..100).map(|i| i * 3 - 49)), 0);
    check(keys(), "bits", Int64Array::from(vec![i64::MIN, -51, 248, i64::MAX]), 0);
    check(
        Int32Array::from_iter_values(i32::MAX - 40..=i32::MAX),
        "bits",
        Int32Array::from_iter_values([i32::MIN, 0, i32::MAX - 41]),
        0,
    );
    check(
        Date32Array::from_iter_values(9_000..9_400),
        "bits",
        Date32Array::from_iter_values([8_999, 9_400]),
        0,
    );
    check(Int16Array::from_iter_values(-20..20), "bits", Int16Array::from(vec![-21, 20]), 0);
    let whole_range = Int64Array::from_iter_values((0..50).map(|i| i64::MIN + i * 0x0123_4567_89AB_CDEF));
    check(whole_range, "bloom", Int64Array::from_iter_values(0..1_000), 20);
}

#[test]
fn others_are_bloom_filters() {
    let text = |n: i32| format!("a text that does not fit into a view {n}");
    check(
        StringViewArray::from_iter((0..5_000).map(|n| (n % 10 > 0).then(|| text(n)))),
        "bloom",
        StringViewArray::from_iter_values((5_000..15_000).map(text)),
        50,
    );
    check(
        StringArray::from_iter_values((0..50).map(text)),
        "bloom",
        StringArray::from_iter_values((50..150).map(text)),
        5,
    );
    let decimals = |range: std::ops::Range<i128>| {
        let values = Decimal128Array::from_iter_values(range);
        values.with_precision_and_scale(30, 2).unwrap()
    };
    check(decimals(-500..500), "bloom", decimals(500..1_500), 20);
    let uuids = |range: std::ops::Range<u128>| {
        FixedSizeBinaryArray::try_from_iter(range.map(|n| n.to_be_bytes())).unwrap()
    };
    check(uuids(0..100), "bloom", uuids(100..200), 5);
    let instants = |range: std::ops::Range<i64>| {
        let values = TimestampMicrosecondArray::from_iter_values(range.map(|n| n * 1_000_000_000));
        values.with_timezone("+00:00")
    };
    check(instants(0..500), "bloom", instants(500..1_500), 20);
}

#[test]
fn few_are_listed_and_none_are_none() {
    let (set, keys) = collected(&[Arc::new(StringViewArray::from(vec![Some("b"), None, Some("a"), Some("b")]))]);
    assert_eq!((set.form(), keys), ("list", 2));
    assert_eq!(KeySet::from_wire(&set.to_wire(0).unwrap()).unwrap(), set);
    let zone: Option<Arc<str>> = Some("+00:00".into());
    for data_type in [
        DataType::Boolean,
        DataType::Int16,
        DataType::Date32,
        DataType::Time64(TimeUnit::Microsecond),
        DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Timestamp(TimeUnit::Microsecond, zone),
        DataType::Decimal128(38, 4),
        DataType::BinaryView,
        DataType::FixedSizeBinary(16),
    ] {
        let nulls = new_null_array(&data_type, 3);
        let (set, keys) = collected(&[nulls.clone()]);
        assert_eq!((set.form(), keys), ("none", 0), "{data_type}");
        let there = KeySet::from_wire(&set.to_wire(0).unwrap()).unwrap();
        assert_eq!(there.contains(&nulls).unwrap().null_count(), 3, "{data_type}");
    }
}

#[test]
fn batches_add_up() {
    let batches: Vec<ArrayRef> = (0..40)
        .map(|i| Arc::new(Int64Array::from(vec![i * 10, 400 - i, 7])) as ArrayRef)
        .collect();
    let (set, keys) = collected(&batches);
    assert_eq!(set.form(), "bits");
    let all: std::collections::BTreeSet<i64> = (0..40).flat_map(|i| [i * 10, 400 - i, 7]).collect();
    assert_eq!(keys, all.len());
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(-10..500));
    let found = set.contains(&numbers).unwrap();
    assert!((0..found.len()).all(|row| found.value(row) == all.contains(&(row as i64 - 10))));
}

#[test]
fn too_many_or_too_little_memory_is_any() {
    let many: ArrayRef = Arc::new(Int64Array::from_iter_values(0..=KEYS_MAX as i64));
    let pools: [Arc<dyn MemoryPool>; 2] = [
        Arc::new(UnboundedMemoryPool::default()),
        Arc::new(GreedyMemoryPool::new(1_000)),
    ];
    for pool in pools {
        let mut collector = Collector::new(&DataType::Int64, &pool).unwrap();
        assert!(collector.add(&many.slice(0, 100)).unwrap());
        assert!(!collector.add(&many).unwrap());
        let (set, _) = collector.finish();
        assert_eq!(set, KeySet::any());
        assert_eq!(set.contains(&many).unwrap().true_count(), many.len());
        assert_eq!(pool.reserved(), 0);
    }
    // As many as there may be fit.
    let (set, _) = collected(&[many.slice(0, KEYS_MAX)]);
    assert!(set.to_wire(0).unwrap().encoded_len() <= SET_BYTES_MAX + 100);
}

#[test]
fn floats_have_no_sets() {
    let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
    for data_type in [DataType::Float64, DataType::Float32, DataType::Decimal256(40, 2)] {
        assert!(!is_supported(&data_type) && Collector::new(&data_type, &pool).is_err());
    }
}

#[test]
fn broken_sets_are_refused() {
    let bad = |members, min: &[u8]| v1::KeySet {
        number: 1,
        min: Bytes::copy_from_slice(min),
        max: Bytes::copy_from_slice(min),
        members: Some(members),
    };
    for wire in [
        bad(Wire::Bits(vec![1].into()), &[]),
        bad(Wire::Bits(vec![1].into()), &[0xFF]),
        bad(Wire::Bloom(vec![1].into()), &[]),
        bad(Wire::Few(v1::KeyList { keys: vec![vec![7, 7].into()] }), &[]),
    ] {
        assert_eq!(KeySet::from_wire(&wire).unwrap_err().code, "08P01", "{wire:?}");
    }
}
