//! Which leaves tell their keys to which, and that the rows are those of one process all the same: gathered and exchanged, with
//! all filters that are right. The data are those of the shard-local rule's tests: NULL keys, a key of a quarter of the
//! rows, keys without partners, an empty table.

use crate::DistributedMode;
use crate::SemiJoinFilters::{Auto, Off, On};
use crate::shard_local::tests::cluster;
use crate::testing::{Bench, oracle};

/// `source -> leaves`, in the order in which keys are read: `o.id -> 0, 2`.
fn filters(sql: &str) -> Vec<String> {
    let planned = Bench::new(cluster(3)).filtering(On).plan(sql).unwrap();
    let shown = planned.keys.iter().map(|keys| {
        let plan = &planned.fragments[keys.leaf].plan;
        let key = plan.split_once("groupBy=[[").unwrap().1.split_once("]]").unwrap().0;
        let targets: Vec<_> = keys.targets.iter().map(ToString::to_string).collect();
        format!("{key} -> {}", targets.join(", "))
    });
    shown.collect()
}

#[track_caller]
fn check(sql: &str, expected: &[&str]) {
    let sorted = |mut rows: Vec<String>| {
        rows.sort();
        rows
    };
    let answer = sorted(oracle(&cluster(1), sql));
    for (nodes, mode, filters) in [
        (3, DistributedMode::Off, On),
        (3, DistributedMode::On, On),
        (3, DistributedMode::Off, Off),
        (1, DistributedMode::Off, On),
    ] {
        let bench = Bench::new(cluster(nodes)).exchanging(mode).filtering(filters);
        let explain = || bench.plan(sql).map(|p| p.explain.join("\n")).unwrap_or_default();
        let rows = bench.rows(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}\n{}", explain()));
        let case = format!("{sql}\nnodes={nodes} exchange={mode:?} filters={filters:?}");
        assert_eq!(sorted(rows), answer, "{case}\n{}", explain());
    }
    assert_eq!(filters(sql), expected, "{sql}");
}

#[test]
fn the_smaller_side_tells_the_larger() {
    check("SELECT t.k, o.s FROM t JOIN o ON t.k = o.k", &["t.k -> 1"]);
    check("SELECT t.k, u.k FROM t JOIN u ON t.a = u.x", &["t.a -> 1"]);
    check("SELECT u.k, o.id FROM u JOIN o ON u.k = o.id WHERE o.s = 's1'", &["o.id -> 0"]);
    check("SELECT c.z, d.z FROM c JOIN d ON c.p = d.p", &["d.p -> 0"]);
}

#[test]
fn preserved_sides_keep_their_rows() {
    check("SELECT o.id, u.k FROM o LEFT JOIN u ON o.id = u.k", &["o.id -> 1"]);
    check("SELECT o.id, u.k FROM u LEFT JOIN o ON o.id = u.k", &[]);
    check("SELECT o.id, u.k FROM u RIGHT JOIN o ON o.id = u.k", &["o.id -> 0"]);
    check("SELECT o.id, u.k FROM u FULL JOIN o ON o.id = u.k", &[]);
    check("SELECT k, x FROM u WHERE x IN (SELECT a FROM t WHERE b = 'b1')", &["t.a -> 0"]);
    check("SELECT k FROM o WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.x = o.id)", &["o.id -> 1"]);
    check("SELECT k FROM u WHERE NOT EXISTS (SELECT 1 FROM o WHERE u.x = o.id)", &[]);
    check("SELECT id, k IN (SELECT x FROM u WHERE x > 3) OR id > 70 FROM o WHERE id > 60", &[]);
    check("SELECT id FROM o WHERE EXISTS (SELECT 1 FROM u WHERE u.x = o.id) OR id > 70", &["o.id -> 1"]);
}

#[test]
fn not_in_sees_every_null() {
    check("SELECT id FROM o WHERE id NOT IN (SELECT k FROM u)", &[]);
    check("SELECT id FROM o WHERE id NOT IN (SELECT k FROM u WHERE k IS NOT NULL)", &[]);
    check("SELECT id FROM o WHERE k NOT IN (SELECT a FROM t WHERE a > 2)", &[]);
}

#[test]
fn nulls_that_equal_each_other_stay() {
    check(
        "SELECT t.k, o.id FROM t JOIN o ON (t.a IS NOT DISTINCT FROM o.k) WHERE t.k < 30",
        &["t.k -> 1"],
    );
    check("SELECT k FROM o INTERSECT SELECT x FROM u", &["o.k -> 1"]);
    check("SELECT a FROM t EXCEPT SELECT x FROM u", &["t.a -> 1"]);
}

#[test]
fn keys_are_of_one_type() {
    check("SELECT t.k, o.id FROM t JOIN o ON t.a = o.id", &["CAST(t.a AS Int64) -> 1"]);
    check("SELECT n.y, o.id FROM n JOIN o ON n.k = o.k", &["CAST(n.k AS Int64) -> 1"]);
    check("SELECT t.k, u.w FROM t JOIN u ON t.v = u.w", &["t.v -> 1"]);
    check("SELECT t.k, o.id FROM t JOIN o ON t.f = o.id", &[]);
    check("SELECT a.k, b.k FROM t a JOIN t b ON a.f = b.f", &[]);
    check("SELECT t.k, o.id FROM t JOIN o ON t.b = o.s", &["t.b -> 1"]);
    check("SELECT t.k, o.id FROM t JOIN o ON t.k + 1 = o.id", &[]);
}

#[test]
fn an_empty_side_leaves_nothing() {
    check("SELECT e.x, o.id FROM e JOIN o ON e.k = o.id", &["e.k -> 1"]);
    check("SELECT e.x, o.id FROM e RIGHT JOIN o ON e.k = o.id", &[]);
    check("SELECT count(*) FROM o WHERE id IN (SELECT x FROM e)", &["CAST(e.x AS Int64) -> 0"]);
}

#[test]
fn equal_columns_of_other_leaves_are_filtered_too() {
    check(
        "SELECT t.k, o.id, c.z FROM t JOIN o ON t.k = o.id JOIN c ON o.id = c.z WHERE t.a = 1",
        &["t.k -> 1, 2", "c.z -> 1"],
    );
}

#[test]
fn filters_go_through_what_keeps_their_column() {
    // Below an aggregate, a window and a DISTINCT that are not local.
    check(
        "SELECT n.k, q.s FROM n JOIN (SELECT x, sum(w) AS s FROM u GROUP BY x) q ON n.k = q.x",
        &["n.k -> 1"],
    );
    check(
        "SELECT n.k, q.r FROM n JOIN (SELECT x, rank() OVER (PARTITION BY x ORDER BY w, k) AS r FROM u) q ON n.k = q.x",
        &["n.k -> 1"],
    );
    check(
        "SELECT n.k, q.r FROM n JOIN (SELECT x, rank() OVER (ORDER BY w, k, x) AS r FROM u) q ON n.k = q.x",
        &[],
    );
    check("SELECT n.k, q.x FROM n JOIN (SELECT DISTINCT x FROM u) q ON n.k = q.x", &["n.k -> 1"]);
    check(
        "SELECT n.k, q.s FROM n JOIN (SELECT x, k, sum(w) AS s FROM u GROUP BY ROLLUP (x, k)) q ON n.k = q.x",
        &[],
    );
    check(
        "SELECT n.k, q.id FROM n JOIN (SELECT id, id AS x FROM o UNION ALL SELECT z, z FROM c) q ON n.k = q.x",
        &["CAST(n.k AS Int64) -> 1, 2"],
    );
    check(
        "SELECT n.k, q.x FROM n JOIN (SELECT x FROM u ORDER BY x, k LIMIT 50) q ON n.k = q.x",
        &[],
    );
}

#[test]
fn a_leaf_that_may_give_other_rows_next_time_tells_nothing() {
    // One shard: the whole subquery runs on its node.
    let limited = "SELECT q.k, o.id FROM (SELECT k FROM u WHERE k = 7 LIMIT 3) q JOIN o ON q.k = o.id";
    check(limited, &[]);
    let summed = "SELECT q.k, o.id FROM (SELECT k FROM t GROUP BY k HAVING sum(f) > 10) q JOIN o ON q.k = o.id";
    check(summed, &[]);
    let counted = "SELECT q.k, o.id FROM (SELECT k FROM t GROUP BY k HAVING count(*) > 0) q JOIN o ON q.k = o.id";
    check(counted, &["t.k -> 1"]);
}

#[test]
fn a_filtered_leaf_tells_fewer_keys() {
    let sql = "SELECT n.k, o.id, u.x FROM n JOIN o ON n.y = o.id JOIN u ON o.k = u.k";
    check(sql, &["CAST(n.y AS Int64) -> 1, 4", "o.k -> 2"]);
    let explain = Bench::new(cluster(3)).filtering(On).plan(sql).unwrap().explain.join("\n");
    assert!(explain.contains("Filter 1: estimated keys=80, read first\n  ShardLocal nodes=3 shards=8/8 filters=[0]"), "{explain}");
}

#[test]
fn explain_shows_filters_and_what_is_read_first() {
    let sql = "SELECT t.b, o.s FROM t JOIN o ON t.a = o.id WHERE t.b = 'b1'";
    let bench = Bench::new(cluster(3)).filtering(On);
    let explain = bench.plan(sql).unwrap().explain;
    let expected = "";
    assert_eq!(explain.join("\n"), expected);
    assert!(Bench::new(cluster(3)).filtering(Off).plan(sql).unwrap().keys.is_empty());
    let scans = Bench::new(cluster(3)).filtering(On).with_rule(false);
    assert!(scans.plan(sql).unwrap().keys.is_empty());
}

#[test]
fn little_is_not_worth_it() {
    let sql = "SELECT t.b, o.s FROM t JOIN o ON t.a = o.id WHERE t.b = 'b1'";
    assert!(Bench::new(cluster(3)).filtering(Auto).plan(sql).unwrap().keys.is_empty());
}

/// A plan nested too deeply for the nodes is cut at its scans; a filter above them must not stay on the router.
#[test]
fn a_leaf_that_is_cut_again_loses_its_filter() {
    let nested = (0..60).fold("SELECT id, k FROM o".to_owned(), |sql, i| {
        format!("SELECT id, max(k + {i}) AS k FROM ({sql}) q{i} GROUP BY id")
    });
    let sql = format!("SELECT t.k, q.k FROM t JOIN ({nested}) q ON t.a = q.id");
    let bench = Bench::new(cluster(3)).filtering(On);
    let mut rows = bench.rows(&sql).unwrap();
    let mut expected = oracle(&cluster(1), &sql);
    rows.sort();
    expected.sort();
    assert_eq!(rows, expected);
}
