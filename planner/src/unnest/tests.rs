//! Subqueries over the test cluster of the shard-local rule, against the same in joins; the SQL files compare with PostgreSQL.

use crate::shard_local::tests::cluster;
use crate::testing::Bench;

#[track_caller]
fn same(sql: &str, joins: &str) {
    for nodes in [1, 3] {
        let bench = Bench::new(cluster(nodes));
        let rows = |sql: &str| {
            let mut rows = bench.rows(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
            rows.sort();
            rows
        };
        let (found, expected) = (rows(sql), rows(joins));
        assert!(!expected.is_empty(), "{joins}");
        assert_eq!(found, expected, "{sql} on {nodes} nodes");
    }
}

#[test]
fn a_limit_counts_the_rows_of_each_outer_row() {
    same(
        "SELECT t.k, s.x FROM t LEFT JOIN LATERAL (SELECT x FROM u WHERE u.k = t.k ORDER BY x DESC LIMIT 1) s ON true",
        "SELECT t.k, max(u.x) FROM t LEFT JOIN u ON u.k = t.k GROUP BY t.k",
    );
}

#[test]
fn no_rows_are_one_row_of_an_aggregate() {
    same(
        "SELECT t.k, s.c FROM t, LATERAL (SELECT count(*) AS c FROM u WHERE u.k = t.k AND u.x > t.a) s",
        "SELECT t.k, count(u.k) FROM t LEFT JOIN u ON u.k = t.k AND u.x > t.a GROUP BY t.k",
    );
    // Below a filter it is computed for each outer value, not only where there are rows.
    same(
        "SELECT t.k FROM t, LATERAL (SELECT count(*) AS c FROM u WHERE u.k = t.k AND u.x > t.a HAVING count(*) = 0) s",
        "SELECT t.k FROM t LEFT JOIN u ON u.k = t.k AND u.x > t.a GROUP BY t.k HAVING count(u.k) = 0",
    );
}

#[test]
fn an_outer_null_is_a_value() {
    same(
        "SELECT t.k, (SELECT count(*) FROM u WHERE u.x IS NOT DISTINCT FROM t.a OR t.a IS NULL) FROM t",
        "SELECT t.k, count(u.x) FROM t LEFT JOIN u ON u.x = t.a OR t.a IS NULL GROUP BY t.k",
    );
}

#[test]
fn references_go_up_two_levels() {
    same(
        "SELECT k FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.k = t.k AND EXISTS (SELECT 1 FROM o WHERE o.id = u.x AND o.id >= t.a))",
        "SELECT DISTINCT t.k FROM t JOIN u ON u.k = t.k JOIN o ON o.id = u.x AND o.id >= t.a",
    );
}

#[test]
fn a_subquery_of_two_rows_is_no_value() {
    for sql in [
        "SELECT (SELECT k FROM t)",
        "SELECT k, (SELECT x FROM u WHERE u.k = t.k) FROM t",
        "SELECT k FROM t WHERE a = (SELECT x FROM u WHERE u.k > t.k)",
    ] {
        let error = Bench::new(cluster(3)).rows(sql).expect_err(sql);
        assert_eq!(error.code, "21000", "{sql}: {}", error.message);
    }
}
