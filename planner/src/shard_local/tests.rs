//! One case for each sentence of the shard-local rule: how many leaves the plan has, and that its rows are those of one
//! process, with the rule on and off, on one node and on three. The data has NULL keys, one key with a quarter of all rows,
//! keys without partners, and an empty table.

use crate::DistributedMode::{Off, On};
use crate::SemiJoinFilters;
use crate::testing::{Bench, TestCluster, oracle};
use datafusion::arrow::array::{ArrayRef, Decimal128Array, Float64Array, Int32Array, Int64Array, StringViewArray};
use std::sync::Arc;
use tessera_proto::sql_type::SqlType::{Float8, Int4, Int8, Numeric, Text};

const MONEY: tessera_proto::sql_type::SqlType = Numeric {
    precision: 12,
    scale: 2,
};

fn int8(values: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(values.collect::<Int64Array>())
}

fn int4(values: impl Iterator<Item = Option<i32>>) -> ArrayRef {
    Arc::new(values.collect::<Int32Array>())
}

fn text(values: impl Iterator<Item = Option<String>>) -> ArrayRef {
    Arc::new(values.collect::<StringViewArray>())
}

fn money(values: impl Iterator<Item = Option<i128>>) -> ArrayRef {
    Arc::new(
        values
            .collect::<Decimal128Array>()
            .with_precision_and_scale(12, 2)
            .unwrap(),
    )
}

/// Every value of `u.k`: NULLs, a frequent one, and keys that `t` lacks.
fn skewed(i: i64) -> Option<i64> {
    match i {
        i if i % 11 == 0 => None,
        i if i % 4 == 0 => Some(7),
        i => Some(i % 90),
    }
}

pub fn cluster(nodes: u32) -> TestCluster {
    let t = [("k!", Int8), ("a", Int4), ("b", Text), ("v", MONEY), ("f", Float8)];
    let t_rows: Vec<ArrayRef> = vec![
        int8((0..60).map(Some)),
        int4((0..60).map(|i| (i % 13 != 0).then_some(i % 5))),
        text((0..60).map(|i| (i % 7 != 0).then(|| format!("b{}", i % 6)))),
        money((0..60).map(|i| (i % 9 != 0).then_some(i128::from(i) * 37 - 500))),
        Arc::new((0..60).map(|i| Some(f64::from(i) * 0.5)).collect::<Float64Array>()),
    ];
    let u = [("k", Int8), ("x", Int4), ("w", MONEY)];
    let u_rows = vec![
        int8((0..200).map(skewed)),
        int4((0..200).map(|i| Some(i % 8))),
        money((0..200).map(|i| (i % 10 != 3).then_some(i128::from(i) * 101))),
    ];
    let n = [("k!", Int4), ("y", Int4)];
    let n_rows = vec![
        int4((0..60).filter(|i| i % 3 == 0).map(Some)),
        int4((0..20).map(|i| Some(i % 4))),
    ];
    let pair = [("p", Int4), ("q", Text), ("z", Int8)];
    let pair_rows = |rows: i64, step: i64| {
        vec![
            int4((0..rows).map(move |i| (i % 17 != 0).then_some((i * step % 6) as i32))),
            text((0..rows).map(move |i| (i % 19 != 0).then(|| format!("q{}", i * step % 4)))),
            int8((0..rows).map(Some)),
        ]
    };
    let o = [("id!", Int8), ("k", Int8), ("s", Text)];
    let o_rows = vec![
        int8((0..80).map(Some)),
        int8((0..80).map(|i| skewed(i * 3))),
        text((0..80).map(|i| Some(format!("s{}", i % 9)))),
    ];
    let r1 = [("k!", Int8), ("name", Text)];
    let r1_rows = vec![
        int8((0..10).map(|i| Some(i * 3))),
        text((0..10).map(|i| Some(format!("name{}", i % 4)))),
    ];
    let r2 = [("x", Int4), ("g", Int4)];
    let r2_rows = vec![
        int4((0..9).map(|i| (i != 4).then_some(i))),
        int4((0..9).map(|i| Some(i % 2))),
    ];
    let none = |t: &[ArrayRef]| t.iter().map(|a| a.slice(0, 0)).collect::<Vec<_>>();
    TestCluster::new(nodes)
        .table("e", 1, &u, &[0], none(&u_rows))
        .table("t", 1, &t, &[0], t_rows)
        .table("u", 1, &u, &[0], u_rows)
        .table("n", 1, &n, &[0], n_rows)
        .table("c", 2, &pair, &[0, 1], pair_rows(70, 1))
        .table("d", 2, &pair, &[0, 1], pair_rows(50, 5))
        .table("o", 3, &o, &[0], o_rows)
        .table("ref1", 4, &r1, &[], r1_rows)
        .table("ref2", 5, &r2, &[], r2_rows)
}

/// The rows agree everywhere; returns the plan on three nodes with the rule on.
fn agrees(sql: &str) -> crate::Planned {
    let ordered = sql.contains("TOTAL ORDER");
    let sorted = |mut rows: Vec<String>| {
        if !ordered {
            rows.sort();
        }
        rows
    };
    let expected = sorted(oracle(&cluster(1), sql));
    let all = SemiJoinFilters::On;
    let auto = SemiJoinFilters::Auto;
    for (nodes, on, mode, filters) in [
        (1, true, Off, auto),
        (1, false, Off, auto),
        (3, true, Off, auto),
        (3, false, Off, auto),
        (3, true, On, auto),
        (3, false, On, auto),
        (3, true, Off, all),
        (3, true, On, all),
    ] {
        let case = format!("{sql}\nnodes={nodes} rule={on} exchange={mode:?} filters={filters:?}");
        let bench = Bench::new(cluster(nodes))
            .with_rule(on)
            .exchanging(mode)
            .filtering(filters);
        let rows = bench.rows(sql).unwrap_or_else(|e| panic!("{case}: {e:?}"));
        let explain = || bench.plan(sql).map(|p| p.explain.join("\n")).unwrap_or_default();
        assert_eq!(sorted(rows), expected, "{case}\n{}", explain());
    }
    Bench::new(cluster(3)).plan(sql).unwrap()
}

/// `leaves` of the plan on three nodes; 0 stands for "the whole query is one leaf".
#[track_caller]
fn check(sql: &str, leaves: usize) {
    let planned = agrees(sql);
    let whole = planned
        .explain
        .get(2)
        .is_some_and(|line| line.starts_with("ShardLocal"));
    let found = if whole { 0 } else { planned.fragments.len() };
    assert_eq!(found, leaves, "{sql}\n{}", planned.explain.join("\n"));
}

#[test]
fn scans_filters_and_projections_inherit() {
    check("SELECT k, v * 2 FROM t WHERE a > 1", 0);
    check("SELECT * FROM (SELECT k + 1 AS k1, b FROM t) s WHERE k1 % 2 = 0", 0);
    check("SELECT * FROM e", 0);
}

#[test]
fn lossless_casts_keep_the_key_others_lose_it() {
    check(
        "SELECT k, count(*) FROM (SELECT CAST(k AS bigint) AS k FROM n) s GROUP BY k",
        0,
    );
    check("SELECT t.k, y FROM t JOIN n ON t.k = n.k", 0);
    check("SELECT x, count(*) FROM (SELECT k + 0 AS x FROM t) s GROUP BY x", 1);
    check(
        "SELECT x, count(*) FROM (SELECT CAST(k AS double precision) AS x FROM t) s GROUP BY x",
        1,
    );
}

#[test]
fn colocated_joins_on_the_whole_key() {
    check("SELECT t.k, x FROM t JOIN u ON t.k = u.k", 0);
    check("SELECT c.z, d.z FROM c JOIN d ON c.p = d.p AND c.q = d.q", 0);
    check("SELECT c.z, d.z FROM c JOIN d ON c.p = d.p", 2);
    check("SELECT c.z, d.z FROM c JOIN d ON c.q = d.p::text AND c.p = d.p", 2);
    check("SELECT t.k, o.s FROM t JOIN o ON t.k = o.k", 2);
    check("SELECT t.k, o.s FROM t JOIN o ON t.k = o.id", 2);
    check("SELECT t.k, u.k FROM t JOIN u ON t.a = u.x", 2);
    check(
        "SELECT a.k, b.k FROM u a JOIN u b ON (a.k IS NOT DISTINCT FROM b.k) AND a.x = b.x AND a.w < b.w",
        0,
    );
    check("SELECT t.k, count(*) FROM t JOIN e ON t.k = e.k GROUP BY t.k", 0);
}

#[test]
fn inner_joins_keep_both_keys() {
    check(
        "SELECT u.k, count(*), sum(v) FROM t JOIN u ON t.k = u.k GROUP BY u.k",
        0,
    );
    check("SELECT t.k, u.x, n.y FROM t JOIN u ON t.k = u.k JOIN n ON u.k = n.k", 0);
}

#[test]
fn outer_joins_keep_the_preserved_sides_key() {
    check("SELECT t.k, count(x) FROM t LEFT JOIN u ON t.k = u.k GROUP BY t.k", 0);
    check("SELECT u.k, count(*) FROM t LEFT JOIN u ON t.k = u.k GROUP BY u.k", 1);
    check("SELECT u.k, count(a) FROM t RIGHT JOIN u ON t.k = u.k GROUP BY u.k", 0);
    check("SELECT t.k, count(*) FROM t RIGHT JOIN u ON t.k = u.k GROUP BY t.k", 1);
    check("SELECT t.k, u.k, x FROM t FULL JOIN u ON t.k = u.k", 0);
    check("SELECT t.k, count(*) FROM t FULL JOIN u ON t.k = u.k GROUP BY t.k", 1);
    check(
        "SELECT s.k, n.y FROM (SELECT u.k FROM t FULL JOIN u ON t.k = u.k) s JOIN n ON s.k = n.k",
        2,
    );
}

#[test]
fn semi_and_anti_joins() {
    check(
        "SELECT k FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.k = t.k AND x > 3)",
        0,
    );
    check("SELECT k FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.k = t.k)", 0);
    check("SELECT k FROM u WHERE k IN (SELECT k FROM t WHERE a = 2)", 0);
    check("SELECT k FROM t WHERE a IN (SELECT x FROM u)", 2);
    check("SELECT k FROM t WHERE k IN (SELECT k FROM n WHERE y = 1) OR a = 1", 0);
}

#[test]
fn not_in_is_local_only_without_nulls() {
    check("SELECT k FROM t WHERE k NOT IN (SELECT k FROM n)", 0);
    check("SELECT k FROM t WHERE k NOT IN (SELECT k FROM u)", 2);
    check("SELECT k FROM u WHERE k NOT IN (SELECT k FROM n)", 2);
    check("SELECT x FROM u WHERE x NOT IN (SELECT x FROM ref2)", 0);
    check(
        "SELECT x FROM u WHERE x NOT IN (SELECT x FROM ref2 WHERE x IS NOT NULL)",
        0,
    );
}

#[test]
fn replicated_joins() {
    check("SELECT t.k, name FROM t JOIN ref1 ON t.k = ref1.k", 0);
    check("SELECT t.k, name FROM t JOIN ref1 ON t.k < ref1.k", 0);
    check("SELECT t.k, g FROM t CROSS JOIN ref2", 0);
    check("SELECT t.k, name FROM t LEFT JOIN ref1 ON t.k = ref1.k", 0);
    check("SELECT t.k, name FROM ref1 LEFT JOIN t ON t.k = ref1.k", 2);
    check("SELECT t.k, name FROM ref1 RIGHT JOIN t ON t.k = ref1.k", 0);
    check("SELECT t.k, name FROM t FULL JOIN ref1 ON t.k = ref1.k", 2);
    check("SELECT k FROM t WHERE k IN (SELECT k FROM ref1)", 0);
    check("SELECT k FROM ref1 WHERE k IN (SELECT k FROM t)", 2);
    check(
        "SELECT k FROM ref1 WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.k = ref1.k AND a = 1)",
        2,
    );
    check(
        "SELECT ref1.k, count(*) FROM t JOIN ref1 ON t.k = ref1.k GROUP BY ref1.k",
        0,
    );
    check("SELECT name, g FROM ref1 JOIN ref2 ON ref1.k = ref2.x", 0);
    check("SELECT t.k FROM t JOIN (VALUES (1), (5)) AS l(i) ON t.k = l.i", 0);
}

#[test]
fn aggregates_over_the_key() {
    check(
        "SELECT k, sum(w), avg(w), count(DISTINCT x), min(x) FROM u GROUP BY k",
        0,
    );
    check("SELECT k, x, count(*) FROM u GROUP BY k, x", 0);
    check("SELECT k, median(x) FROM u GROUP BY k", 0);
    check("SELECT p, q, sum(z) FROM c GROUP BY p, q", 0);
    check("SELECT k, x, count(*) FROM u GROUP BY GROUPING SETS ((k, x), (k))", 0);
    check("SELECT k, x, count(*) FROM u GROUP BY ROLLUP (k, x)", 1);
    check("SELECT k, x, count(*), grouping(k, x) FROM u GROUP BY CUBE (k, x)", 1);
    check("SELECT max(s) FROM (SELECT k, sum(w) AS s FROM u GROUP BY k) q", 1);
}

#[test]
fn other_aggregates_run_in_two_parts() {
    let partial = |sql: &str| {
        let planned = agrees(sql);
        let below = planned
            .fragments
            .iter()
            .all(|f| f.plan.contains("__partial") || f.plan.contains("aggr=[[]]"));
        assert!(
            planned.fragments.len() == 1 && below,
            "{sql}\n{}",
            planned.explain.join("\n")
        );
    };
    partial("SELECT count(*), count(v), sum(v), min(v), max(v), avg(v) FROM t");
    partial("SELECT a, avg(v), avg(f), avg(a), sum(f), sum(a), count(b) FROM t GROUP BY a");
    partial("SELECT x, count(*) FILTER (WHERE w > 50), avg(w) FILTER (WHERE x > 2) FROM u GROUP BY x");
    partial("SELECT b, bool_and(a > 1), bool_or(a > 1), bit_or(a) FROM t GROUP BY b");
    partial("SELECT count(*), sum(w), avg(w) FROM e");
    partial("SELECT a, sum(w), avg(w) FROM t LEFT JOIN e ON t.k = e.k GROUP BY a");
    partial("SELECT count(DISTINCT x) FROM u");
    partial("SELECT DISTINCT x FROM u");
    partial("SELECT b, count(*) FROM t GROUP BY b HAVING count(*) > 3");
    partial("SELECT p, q, count(*), grouping(p) FROM c GROUP BY ROLLUP (p, q)");
    partial("SELECT a + 1, sum(v) * 2 FROM t GROUP BY a + 1 ORDER BY 1");
}

#[test]
fn what_does_not_split_is_gathered() {
    check("SELECT median(x) FROM u", 1);
    check("SELECT x, stddev(k) > 1 FROM u GROUP BY x", 1);
    check("SELECT count(DISTINCT x), count(DISTINCT k) FROM u", 1);
    check("SELECT string_agg(b, ',' ORDER BY k) FROM t", 1);
    check("SELECT avg(DISTINCT w) FROM u", 1);
}

#[test]
fn distinct_needs_the_key() {
    check("SELECT DISTINCT k, x FROM u", 0);
    check("SELECT DISTINCT ON (k) k, x, w FROM u ORDER BY k, x, w", 1);
    check(
        "SELECT DISTINCT ON (x) x, k, w FROM u WHERE w IS NOT NULL ORDER BY x, w",
        1,
    );
}

#[test]
fn windows_need_the_key_in_every_partition() {
    check(
        "SELECT k, w, row_number() OVER (PARTITION BY k ORDER BY w, x) FROM u WHERE k <> 7 AND w IS NOT NULL",
        0,
    );
    check("SELECT k, sum(w) OVER (PARTITION BY k, x) FROM u", 0);
    check(
        "SELECT k, count(*) OVER (PARTITION BY k), count(*) OVER (PARTITION BY x) FROM u",
        1,
    );
    check("SELECT k, rank() OVER (ORDER BY v, k) FROM t", 1);
}

#[test]
fn set_operations() {
    check("SELECT k, x FROM u UNION ALL SELECT k, a FROM t", 0);
    check(
        "SELECT k, count(*) FROM (SELECT k FROM u UNION ALL SELECT k FROM t) s GROUP BY k",
        0,
    );
    check(
        "SELECT k, count(*) FROM (SELECT k, x FROM u UNION ALL SELECT x, k FROM u) s GROUP BY k",
        1,
    );
    check("SELECT k FROM u UNION ALL SELECT k FROM ref1", 2);
    check("SELECT k FROM t UNION ALL SELECT id FROM o", 2);
    check("SELECT k FROM u INTERSECT SELECT k FROM t", 0);
    check("SELECT k FROM u EXCEPT SELECT k FROM t", 0);
    check("SELECT x FROM u INTERSECT SELECT a FROM t", 2);
    check("SELECT k FROM ref1 UNION ALL SELECT x FROM ref2", 0);
}

#[test]
fn limits_stay_above_and_go_below() {
    check(
        "SELECT k, v FROM t ORDER BY v DESC NULLS LAST, k LIMIT 5 -- TOTAL ORDER",
        1,
    );
    check("SELECT k FROM t ORDER BY k LIMIT 5 OFFSET 7 -- TOTAL ORDER", 1);
    check("SELECT count(*) FROM (SELECT k FROM u LIMIT 50) s", 1);
    check(
        "SELECT k, sum(w) AS s FROM u GROUP BY k ORDER BY s DESC NULLS LAST, k LIMIT 3 -- TOTAL ORDER",
        1,
    );
    let planned = Bench::new(cluster(3))
        .plan("SELECT k, v FROM t ORDER BY v LIMIT 5")
        .unwrap();
    assert!(planned.fragments[0].plan.contains("fetch=5"), "{:?}", planned.explain);
    let planned = Bench::new(cluster(3)).plan("SELECT k FROM t LIMIT 5 OFFSET 2").unwrap();
    assert!(planned.fragments[0].plan.contains("fetch=7"), "{:?}", planned.explain);
}

#[test]
fn what_depends_on_row_order_runs_once_over_replicated_tables() {
    check("SELECT k, name FROM ref1 ORDER BY k LIMIT 3 -- TOTAL ORDER", 0);
    check(
        "SELECT t.k, r.name FROM t JOIN (SELECT * FROM ref1 ORDER BY k LIMIT 4) r ON t.k = r.k",
        2,
    );
    check(
        "SELECT t.k, r.n FROM t JOIN (SELECT k, row_number() OVER (ORDER BY k) n FROM ref1) r ON t.k = r.k",
        2,
    );
    check(
        "SELECT t.k, r.c FROM t JOIN (SELECT name, count(*) c FROM ref1 GROUP BY name) r ON t.a = r.c",
        0,
    );
}

#[test]
fn one_node_makes_everything_local() {
    check("SELECT count(*), median(x) FROM u WHERE k = 7", 0);
    check(
        "SELECT k, v, rank() OVER (ORDER BY v) FROM t WHERE k = 11 ORDER BY k LIMIT 1",
        0,
    );
    check("SELECT x FROM u WHERE k = 7 UNION ALL SELECT g FROM ref2", 0);
    check("SELECT * FROM t WHERE k = 1 AND k = 2", 0);
    check(
        "SELECT u.k, string_agg(b, '-' ORDER BY x, u.w) FROM t RIGHT JOIN u ON t.k = u.k WHERE u.k = 9 GROUP BY u.k",
        0,
    );
}

#[test]
fn volatile_functions_and_the_routers_tables_cut() {
    check("SELECT k, random() < 2 FROM t", 1);
    check("SELECT k FROM t WHERE random() < 2", 1);
    let planned = Bench::new(cluster(3))
        .plan("SELECT t.k FROM t JOIN system ON t.k = system.k")
        .unwrap();
    assert_eq!(planned.fragments.len(), 1, "{:?}", planned.explain);
    let planned = Bench::new(cluster(3)).plan("SELECT k, now() FROM t").unwrap();
    assert!(planned.explain[2].starts_with("ShardLocal"), "{:?}", planned.explain);
}

#[test]
fn queries_without_tables_stay_on_the_router() {
    for sql in [
        "SELECT 1 + 1",
        "VALUES (1, 'a'), (2, 'b')",
        "SELECT count(*) FROM system",
        "SELECT * FROM t WHERE false",
    ] {
        let planned = Bench::new(cluster(3)).plan(sql).unwrap();
        assert_eq!(
            planned.strategy,
            crate::Strategy::Router,
            "{sql}: {:?}",
            planned.explain
        );
    }
    check(
        "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 5) SELECT r.i, t.a FROM r JOIN t ON t.k = r.i",
        1,
    );
}

#[test]
fn subqueries_are_joins_by_then() {
    check("SELECT k FROM t WHERE v > (SELECT avg(v) FROM t)", 2);
    check("SELECT k, (SELECT max(x) FROM u WHERE u.k = t.k) AS m FROM t", 0);
    check("SELECT k FROM t WHERE v > (SELECT sum(w) FROM u WHERE u.k = t.k)", 0);
    check("SELECT k, (SELECT count(*) FROM u WHERE u.x = t.a) AS m FROM t", 2);
}

#[test]
fn plans_too_deep_for_a_node_are_cut_smaller() {
    let joins: String = (1..40)
        .map(|i| format!(" JOIN t a{i} ON a{}.k = a{i}.k", i - 1))
        .collect();
    check(&format!("SELECT count(*), max(a39.v) FROM t a0{joins}"), 40);
}

#[test]
fn joins_are_ordered_by_what_stays_on_the_nodes() {
    // As written, t x o comes first and moves both; n and u could stay with t.
    let sql =
        "SELECT o.s, sum(u.w), count(n.y) FROM t, o, u, n WHERE t.a = o.id AND t.k = u.k AND u.k = n.k GROUP BY o.s";
    check(sql, 2);
    let mut written = Bench::new(cluster(3));
    written.options.join_order = false;
    assert_eq!(written.plan(sql).unwrap().fragments.len(), 4);
    check(
        "SELECT t.k, ref1.name, o.s FROM ref1, o, t, ref2 WHERE ref1.k = t.k AND t.a = o.k AND ref2.x = t.a AND ref2.g < o.id",
        2,
    );
    check(
        "SELECT count(*) FROM t x, t y, t z WHERE x.k = y.a AND y.k = z.k AND x.a + y.a + z.a > 3 AND x.v < 900",
        2,
    );
}

#[test]
fn semi_joins_go_below_inner_joins() {
    // o and the reference table stay outside; t, u and the filter on t are one leaf.
    let local = |sql: &str| {
        let planned = agrees(sql);
        let leaf = planned
            .fragments
            .iter()
            .find(|f| f.plan.contains("Semi Join") || f.plan.contains("Anti Join"));
        assert!(
            leaf.is_some_and(|f| f.plan.contains("TableScan: t")),
            "{sql}\n{}",
            planned.explain.join("\n")
        );
    };
    local("SELECT o.s, t.k, w FROM o, t, u WHERE o.id = t.a AND t.k = u.k AND t.k IN (SELECT k FROM n WHERE y > 1)");
    local(
        "SELECT o.s, t.k, w FROM o, t, u WHERE o.id = t.a AND t.k = u.k AND t.k IN (SELECT k FROM u GROUP BY k HAVING sum(w) > 90)",
    );
    local("SELECT o.s, t.k FROM o, t WHERE o.id = t.a AND NOT EXISTS (SELECT 1 FROM u WHERE u.k = t.k AND u.x <> t.a)");
    local("SELECT o.s, t.k FROM o, t WHERE o.id = t.a AND t.k NOT IN (SELECT k FROM n) AND t.k IN (SELECT k FROM u)");
    // The filter needs columns of both sides, or would not be local: it stays above.
    check(
        "SELECT o.s, t.k FROM o, t WHERE o.id = t.a AND EXISTS (SELECT 1 FROM u WHERE u.k = t.k AND u.x <> o.id)",
        3,
    );
    check(
        "SELECT o.s, t.k FROM o, t WHERE o.id = t.a AND t.k NOT IN (SELECT k FROM u)",
        3,
    );
    check(
        "SELECT o.s, t.k FROM o LEFT JOIN t ON o.id = t.a WHERE t.k IN (SELECT k FROM n)",
        3,
    );
}
