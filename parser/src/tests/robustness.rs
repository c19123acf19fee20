//! Texts made to break the reader: too deep, cut off, or shuffled. Each must be answered, soon and without a panic.
//!
//! Nothing here says what the answer is, only what holds of any: a SQLSTATE, a place inside the text. The texts are the
//! same in every run.

use super::print;
use crate::*;

#[test]
fn deep_texts_are_errors_and_not_overflows() {
    for depth in [150, 4_000] {
        for (open, middle, close) in [
            ("SELECT ", "1", ""),
            ("(", "SELECT 1", ")"),
            ("SELECT (", "1", ")"),
            ("SELECT * FROM (", "SELECT 1", ") x"),
            ("SELECT CASE WHEN ", "1", " THEN 1 END"),
            ("SELECT f(", "1", ")"),
            ("SELECT NOT ", "true", ""),
            ("SELECT - ", "1", ""),
            ("SELECT 1 IN (SELECT ", "1", ")"),
            ("SELECT 1", "", " + 1"),
            ("SELECT 1", "", " UNION SELECT 1"),
            ("SELECT 1", "", "::int"),
            ("SELECT a", "", "[1]"),
            ("SELECT a", "", ".b"),
            ("SELECT a", "", "(1)"),
            ("SELECT ARRAY[", "", "]"),
            ("SELECT 1", "", " AT TIME ZONE 'x'"),
            ("SELECT 1", "", " COLLATE x"),
            ("SELECT 1", "", " - WHEN"),
            ("SELECT 1", "", " BETWEEN 1 AND 2"),
            ("SELECT a FROM b", "", " JOIN b"),
            ("SELECT a FROM b", "", ", LATERAL b"),
            ("SELECT 1", "", " OPERATOR(pg_catalog.+) 1"),
            ("SELECT 1 ", "", "ESCAPE 1 "),
            ("SELECT DATE ", "'x'", ""),
            ("SELECT INTERVAL ", "'x'", ""),
            ("SELECT a -> ", "1", ""),
            ("SELECT EXISTS (", "SELECT 1", ")"),
            ("SELECT CAST(", "1", " AS int)"),
            ("CREATE TABLE t (a int DEFAULT (", "1", "))"),
            ("SELECT a::int[", "", "]"),
            ("SELECT 1 LIMIT ", "1", ""),
            ("SELECT a x(", "", ")"),
            ("SELECT PRIOR ", "1", ""),
            ("SELECT STRUCT<", "a", ">"),
            ("SELECT a::ARRAY<", "a", ">"),
            ("SELECT 1", "", " IS NULL"),
            ("SELECT * FROM (((((", "t", ")))))"),
            ("WITH x AS (", "SELECT 1", ") SELECT 1"),
            ("EXPLAIN ", "SELECT 1", ""),
            ("DELETE FROM t WHERE NOT ", "a", ""),
            ("UPDATE t SET a = (", "1", ")"),
            ("UPDATE t SET (a) = ROW(", "1", ")"),
        ] {
            let (first, again) = open.split_once(' ').unwrap_or(("", open));
            let repeated = if again.is_empty() { open } else { again };
            for sql in [
                format!("{}{middle}{}", open.repeat(depth), close.repeat(depth)),
                format!("{first} {}{middle}{}", repeated.repeat(depth), close.repeat(depth)),
                open.repeat(depth),
            ] {
                // Only that it returns, and that what it returns can be walked and freed, matters.
                check_answer(&sql);
            }
        }
    }
    for inner in ["(".repeat(15) + "1" + &")".repeat(15), "NOT ".repeat(400) + "a"] {
        check_answer(&format!(
            "UPDATE t SET a = {inner}, (b, c) = ({inner}, {inner}) FROM (SELECT {inner}) u WHERE {inner} RETURNING {inner}"
        ));
    }
    let at_limit = format!("SELECT 1{}", " + 1".repeat(CHAIN_DEPTH_MAX));
    assert!(parse(&at_limit).is_ok(), "at the limit");
    check_answer(&at_limit);
}

/// Statements of every kind, to break.
const SEEDS: &[&str] = &[
    "SELECT a, count(*) FILTER (WHERE b > 1) OVER (PARTITION BY c ORDER BY d) FROM s.t JOIN u USING (a) WHERE x IN (1, 2) GROUP BY 1 HAVING max(b) > $1 ORDER BY 1 DESC LIMIT 3",
    "WITH RECURSIVE r (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT CASE WHEN n = 1 THEN 'é' ELSE E'\\n' END::text, interval '1 day', date '2020-01-01' FROM r",
    "CREATE TABLE IF NOT EXISTS s.\"T\" (a int8 NOT NULL DEFAULT (1 + 2), b numeric(15, 2), c varchar(10) DEFAULT 'x', PRIMARY KEY (a, b)) WITH (fillfactor = 70) SHARD BY HASH (a) SHARDS 4 COLOCATE WITH o",
    "COPY s.t (a, b) FROM STDIN WITH (FORMAT csv, HEADER match, DELIMITER '|', NULL '', QUOTE '\"', FORCE_NULL (a))",
    "COPY t FROM '/f' WITH CSV HEADER DELIMITER AS '|' NULL AS 'n' FORCE NOT NULL a, b",
    "INSERT INTO s.t (a, b) VALUES (1, $$x;y$$), (DEFAULT, NULL), ($1, -2.5e10)",
    "INSERT INTO s.t AS x (a) SELECT b AS returning FROM u WHERE c RETURNING x.*, a + 1 AS \"A\"",
    "UPDATE ONLY s.t AS x SET a = DEFAULT, (b, c) = ROW($1, x.b IS DISTINCT FROM 'é'), d = (SELECT max(e) FROM w) FROM u, v JOIN w USING (k) WHERE x.k = u.k RETURNING *, a AS b",
    "DELETE FROM s.t * x USING u, LATERAL (SELECT 1) v WHERE x.a IN (1, 2) AND EXISTS (SELECT 1 FROM v) RETURNING x.*",
    "EXPLAIN (ANALYZE, VERBOSE off, FORMAT json) SELECT * FROM a, LATERAL (SELECT 1) b /* c */ -- d",
    "CREATE OR REPLACE VIEW v (a, b) AS SELECT extract(year FROM d), substring('a' FROM 1 FOR 2) FROM t",
    "SET SESSION search_path TO \"A\", b; SHOW TIME ZONE; DISCARD ALL; SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "ALTER SHARD 3 OF s.t FORCE PROMOTE ACCEPT DATA LOSS; VERIFY TABLE t; DROP TABLE IF EXISTS a, b CASCADE",
];

/// Splitmix64: texts differ from run to run only if the seed does.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound.max(1) as u64).unwrap_or(0)
    }
}

/// Checks what holds of every answer.
fn check_answer(sql: &str) {
    match parse(sql) {
        Ok(statements) => {
            for statement in statements {
                assert!(sql.contains(&statement.text), "{sql}");
                print(&statement.statement);
            }
        }
        Err(error) => {
            assert_eq!(error.sqlstate.len(), 5, "{sql}");
            assert!(
                !error.message.is_empty() && !error.message.contains('\n') || sql.contains('\n'),
                "{sql}"
            );
            assert!(
                error.position.is_none_or(|at| at >= 1 && at <= sql.chars().count() + 1),
                "{sql}: {error:?}"
            );
        }
    }
}

#[test]
fn broken_texts_are_answered() {
    let words: Vec<Vec<&str>> = SEEDS
        .iter()
        .map(|sql| sql.split_inclusive([' ', '(', ')', ',', '\'']).collect())
        .collect();
    for seed in SEEDS {
        for (end, _) in seed.char_indices() {
            check_answer(&seed[..end]);
        }
    }
    let mut random = Random(54);
    for _ in 0..6_000 {
        let mut sql = words[random.below(words.len())].clone();
        for _ in 0..=random.below(3) {
            let at = random.below(sql.len());
            let other = &words[random.below(words.len())];
            match random.below(4) {
                0 => drop(sql.remove(at)),
                1 => sql.insert(at, other[random.below(other.len())]),
                2 => {
                    sql[at] = ["'", "\"", "$", "(", ")", ";", "é", "\\", "\0", ".", "--", "/*", "$$"][random.below(13)]
                }
                _ => {
                    let to = random.below(sql.len());
                    sql.swap(at, to);
                }
            }
            if sql.is_empty() {
                break;
            }
        }
        check_answer(&sql.concat());
    }
}

#[test]
fn errors_deep_inside_take_no_exponential_time() {
    for (open, close) in [
        ("ARRAY[", "]"),
        ("CAST(", " AS int)"),
        ("f(", ")"),
        ("(", ")"),
        ("CASE WHEN ", " THEN 1 END"),
        ("EXTRACT(year FROM ", ")"),
        ("NOT ", ""),
        ("EXISTS (SELECT ", ")"),
        ("a IN (", ")"),
        ("substring(", ")"),
        ("INTERVAL (", ")"),
        ("(SELECT * FROM (SELECT ", ") x)"),
    ] {
        for middle in ["x y z", "1 +", ")", "'a' FROM FROM"] {
            check_answer(&format!("SELECT {}{middle}{}", open.repeat(50), close.repeat(50)));
        }
    }
    let factors = format!("SELECT * FROM {}t u v{}", "(".repeat(60), ")".repeat(60));
    check_answer(&factors);
    check_answer(&factors.replace("(", "(a JOIN "));
}

#[test]
fn the_unbroken_texts_are_right() {
    for sql in SEEDS {
        for statement in parse(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}")) {
            assert!(!matches!(statement.statement, Statement::Unsupported(_)), "{sql}");
        }
    }
}
