//! Estimated rows of leaves over tables with common values, as EXPLAIN shows them.

use crate::testing::{Bench, TestCluster, columns};
use datafusion::arrow::array::new_null_array;
use datafusion::common::ScalarValue;
use tessera_proto::common_values::CommonValues;
use tessera_proto::sql_type::SqlType::{self, Bool, Int4, Int8, Text};

fn common<T>(values: &[(T, f64)]) -> CommonValues
where
    T: Copy,
    ScalarValue: From<T>,
{
    let typed = |value: T| match ScalarValue::from(value) {
        ScalarValue::Utf8(text) => ScalarValue::Utf8View(text),
        other => other,
    };
    CommonValues::new(values.iter().map(|(v, share)| (typed(*v), *share)).collect())
}

/// A million events and a hundred thousand jobs, of which 90 % and half are closed; one of 50 kinds is common.
pub fn cluster() -> TestCluster {
    let even = CommonValues::default;
    let events = [("id", Int8), ("status", Text), ("kind", Int4), ("done", Bool)];
    let jobs = [("id", Int8), ("status", Text), ("kind", Int8)];
    let rows = |spec: &[(&str, SqlType)]| {
        let types = columns(spec).into_iter().map(|c| c.sql_type.arrow());
        types.map(|t| new_null_array(&t, 1)).collect()
    };
    TestCluster::new(3)
        .table("events", 1, &events, &[0], rows(&events))
        .table("jobs", 1, &jobs, &[0], rows(&jobs))
        .believed(
            "events",
            1_000_000,
            vec![
                (1_000_000, 0, even()),
                (12, 20_000, common(&[("closed", 0.90), ("open", 0.05)])),
                (50, 0, common(&[(7_i32, 0.51)])),
                (2, 0, common(&[(true, 0.99), (false, 0.01)])),
            ],
        )
        .believed(
            "jobs",
            100_000,
            vec![
                (100_000, 0, even()),
                (11, 0, common(&[("closed", 0.50)])),
                (50, 0, common(&[(7_i64, 0.50)])),
            ],
        )
}

fn bench() -> Bench {
    let mut bench = Bench::new(cluster());
    bench.options.profile = true;
    bench
}

/// Estimated rows of the leaf that is the whole query.
#[track_caller]
fn check(sql: &str, expected: usize) {
    let planned = bench().plan(sql).unwrap();
    let rows: Vec<_> = planned.fragments.iter().map(|f| f.rows).collect();
    assert_eq!(rows, [Some(expected)], "{sql}\n{}", planned.explain.join("\n"));
}

#[test]
fn a_common_value_has_its_share() {
    check("SELECT id FROM events WHERE status = 'closed'", 900_000);
    check("SELECT id FROM events WHERE 'open' = status", 50_000);
    check("SELECT id FROM events WHERE kind = 7", 510_000);
    // Under another name, in a wider type, and where the session shows it.
    check(
        "SELECT id FROM (SELECT id, kind::bigint AS k FROM events) e WHERE k = 7",
        510_000,
    );
    check(
        "SELECT e.id FROM events e WHERE e.status = 'closed' AND e.kind = 7",
        459_000,
    );
}

#[test]
fn an_uncommon_value_has_what_is_left() {
    // 30,000 of ten others; 490,000 of 49.
    check("SELECT id FROM events WHERE status = 'lost'", 3_000);
    check("SELECT id FROM events WHERE kind = 8", 10_000);
    check("SELECT id FROM events WHERE id = 77", 1);
}

#[test]
fn lists_are_added_up_however_they_are_written() {
    check("SELECT id FROM events WHERE status IN ('closed', 'open')", 950_000);
    check(
        "SELECT id FROM events WHERE status = 'open' OR status = 'closed' OR status = 'open'",
        950_000,
    );
    check(
        "SELECT id FROM events WHERE status IN ('open', 'a', 'b', 'c', 'open')",
        59_000,
    );
    check("SELECT id FROM events WHERE status <> 'closed'", 80_000);
    check("SELECT id FROM events WHERE status NOT IN ('closed', 'open')", 30_000);
    check(
        "SELECT id FROM events WHERE status NOT IN ('closed', 'open', 'a', 'b', 'c', 'd')",
        18_000,
    );
}

#[test]
fn nulls_and_booleans() {
    check("SELECT id FROM events WHERE status IS NULL", 20_000);
    check("SELECT id FROM events WHERE status IS NOT NULL", 980_000);
    check("SELECT id FROM events WHERE done", 990_000);
    check("SELECT id FROM events WHERE NOT done", 10_000);
    check("SELECT id FROM events WHERE done = false", 10_000);
}

#[test]
fn ranges_know_common_values_and_bounds_of_both_sides() {
    let within = |sql: &str, low: usize, high: usize| {
        let rows = bench().plan(sql).unwrap().fragments[0].rows.unwrap();
        assert!((low..=high).contains(&rows), "{sql}: {rows}");
    };
    within("SELECT id FROM events WHERE kind > 6 AND kind < 8", 510_000, 530_000);
    within("SELECT id FROM events WHERE kind > 7 AND kind < 9", 1, 30_000);
    within("SELECT id FROM events WHERE kind <= 7", 510_000, 700_000);
    within("SELECT id FROM events WHERE kind < 7", 1, 100_000);
}

/// The condition of the join that comes last.
fn last_join(skewed: bool) -> String {
    let even = CommonValues::default;
    let sevens = || if skewed { common(&[(7_i64, 0.5)]) } else { even() };
    let spec = [("id", Int8), ("x", Int8), ("y", Int8)];
    let rows = || {
        columns(&spec)
            .into_iter()
            .map(|c| new_null_array(&c.sql_type.arrow(), 1))
            .collect()
    };
    let cluster = ["f", "g", "h"]
        .iter()
        .enumerate()
        .fold(TestCluster::new(3), |cluster, (group, name)| {
            cluster.table(name, 1 + group as u64, &spec, &[0], rows())
        });
    let cluster = cluster
        .believed(
            "f",
            1_000_000,
            vec![(1_000_000, 0, even()), (1_000_000, 0, sevens()), (1_000_000, 0, even())],
        )
        .believed(
            "g",
            1_000,
            vec![(1_000, 0, even()), (500, 0, sevens()), (1_000, 0, even())],
        )
        .believed(
            "h",
            300_000,
            vec![(300_000, 0, even()), (300_000, 0, even()), (300_000, 0, even())],
        );
    let sql = "SELECT f.id, g.id, h.id FROM f JOIN h ON f.y = h.y JOIN g ON f.x = g.x";
    let planned = Bench::new(cluster).plan(sql).unwrap();
    let line = planned.explain.iter().find(|line| line.contains("Join: "));
    line.unwrap_or_else(|| panic!("{:#?}", planned.explain))
        .trim()
        .to_owned()
}

#[test]
fn common_keys_change_the_order_of_joins() {
    // By distinct values, f and g have a thousand pairs, which h leaves three hundred of. By sevens, they have 250 million.
    assert_eq!(last_join(false).matches(".y").count(), 2, "{}", last_join(false));
    assert_eq!(last_join(true).matches(".x").count(), 2, "{}", last_join(true));
}
