//! The shard-local rule on real clusters: one case or more for every sentence of it, as the design states the rule.
//!
//! ```text
//!   rows:   { 1 node, 3 nodes } x { rule on, rule off }   ==   DataFusion in one process over the same rows
//!   plan:   on 3 nodes with the rule on, as many leaves as the case says
//! ```
//!
//! The rows have NULL keys, one key with a quarter of all rows, keys without partners, shards without rows, and a table
//! without any. `planner/src/shard_local/tests.rs` has more shapes, on clusters that are fakes.

use crate::cluster;
use crate::oracle::{self, Order, Table, expected, found};

/// The rule, sentence by sentence.
mod rule {
    pub const INHERIT: &str = "scan, filter, projection inherit";
    pub const KEY_COLUMNS: &str = "key columns: bare, or lossless casts within one key class";
    pub const JOIN_WHOLE_KEY: &str = "joins of one group with equality on all shard-key columns";
    pub const INNER_BOTH: &str = "inner keeps both sides' key";
    pub const OUTER_PRESERVED: &str = "left/right/semi/anti only the preserved side's";
    pub const FULL_NONE: &str = "full join: no key after it";
    pub const NOT_IN: &str = "null-aware anti join (NOT IN) of two sharded sides: cut unless both keys are NOT NULL";
    pub const REPLICATED_INNER: &str = "sharded x replicated: inner (any condition)";
    pub const REPLICATED_OUTER: &str = "sharded x replicated: outer/semi/anti with the sharded side preserved";
    pub const AGGREGATES: &str = "aggregates (every grouping set) must contain the whole key";
    pub const DISTINCT: &str = "DISTINCT [ON] must contain the whole key";
    pub const WINDOWS: &str = "every window's PARTITION BY must contain the whole key";
    pub const SET_OPERATIONS: &str = "INTERSECT/EXCEPT must contain the whole key";
    pub const UNION: &str = "UNION ALL of one group; with a replicated branch: cut";
    pub const OVER_REPLICATED: &str = "LIMIT, TopK, row_number, DISTINCT ON over replicated run on one node";
    pub const GLOBAL_LIMIT: &str = "a global LIMIT always stays above, its copy may be pushed down";
    pub const VOLATILE: &str = "volatile functions and subquery expressions cut";
    pub const STABLE: &str = "stable ones (now()) are folded at the router";
    pub const PRUNING: &str = "pruning casts the literal losslessly to the key's type, or prunes nothing";
    pub const NOT_LISTED: &str = "what is not listed here cuts";

    pub const SENTENCES: &[&str] = &[
        INHERIT,
        KEY_COLUMNS,
        JOIN_WHOLE_KEY,
        INNER_BOTH,
        OUTER_PRESERVED,
        FULL_NONE,
        NOT_IN,
        REPLICATED_INNER,
        REPLICATED_OUTER,
        AGGREGATES,
        DISTINCT,
        WINDOWS,
        SET_OPERATIONS,
        UNION,
        OVER_REPLICATED,
        GLOBAL_LIMIT,
        VOLATILE,
        STABLE,
        PRUNING,
        NOT_LISTED,
    ];
}

/// What the plan looks like on three nodes with the rule on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// The whole query is one leaf.
    Whole,
    /// The whole query is one leaf that asks so many shards of 8.
    Pruned(usize),
    /// So many leaves, with something above them.
    Cut(usize),
    /// One leaf with this in it, and the same again or more above it.
    Below(&'static str),
}

use Plan::{Below, Cut, Pruned, Whole};

use Order::{Any, Total};

/// Sentence, query, order, plan.
type Case = (&'static str, &'static str, Order, Plan);

/// t, u, n, e and few are colocated by one column, c and d by two; o is alone; ref1 and ref2 are reference tables.
#[rustfmt::skip]
const CASES: &[Case] = &[
    (rule::INHERIT, "SELECT k, v * 2 FROM t WHERE a > 1", Any, Whole),
    (rule::INHERIT, "SELECT * FROM (SELECT k + 1 AS k1, b FROM t) s WHERE k1 % 2 = 0", Any, Whole),
    (rule::INHERIT, "SELECT * FROM e", Any, Whole),
    (rule::INHERIT, "SELECT k, count(*) FROM (SELECT x, k FROM u WHERE x > 2) s GROUP BY k", Any, Whole),
    (rule::INHERIT, "SELECT j, m FROM (SELECT k AS j, m FROM few) s WHERE j IS NULL OR m > 1", Any, Whole),

    (rule::KEY_COLUMNS, "SELECT k, count(*) FROM (SELECT CAST(k AS bigint) AS k FROM n) s GROUP BY k", Any, Whole),
    (rule::KEY_COLUMNS, "SELECT t.k, y FROM t JOIN n ON t.k = n.k", Any, Whole),
    (rule::KEY_COLUMNS, "SELECT j, count(*) FROM (SELECT k + 0 AS j FROM t) s GROUP BY j", Any, Cut(1)),
    (rule::KEY_COLUMNS, "SELECT j, count(*) FROM (SELECT CAST(k AS double precision) AS j FROM u) s GROUP BY j", Any, Cut(1)),
    (rule::KEY_COLUMNS, "SELECT j, count(*) FROM (SELECT CAST(k AS text) AS j FROM u) s GROUP BY j", Any, Cut(1)),
    (rule::KEY_COLUMNS, "SELECT j, count(*) FROM (SELECT CAST(k AS int) AS j FROM u) s GROUP BY j", Any, Cut(1)),

    (rule::JOIN_WHOLE_KEY, "SELECT t.k, x FROM t JOIN u ON t.k = u.k", Any, Whole),
    (rule::JOIN_WHOLE_KEY, "SELECT t.k, m FROM t JOIN few ON t.k = few.k AND t.a < few.m", Any, Whole),
    (rule::JOIN_WHOLE_KEY, "SELECT t.k, e.x FROM t JOIN e ON t.k = e.k", Any, Whole),
    (rule::JOIN_WHOLE_KEY, "SELECT c.z, d.z FROM c JOIN d ON c.p = d.p AND c.q = d.q", Any, Whole),
    (rule::JOIN_WHOLE_KEY, "SELECT c.z, d.z FROM c JOIN d ON c.p = d.p", Any, Cut(2)),
    (rule::JOIN_WHOLE_KEY, "SELECT c.z, d.z FROM c JOIN d ON c.q = d.q AND c.z = d.z", Any, Cut(2)),
    (rule::JOIN_WHOLE_KEY, "SELECT t.k, u.k FROM t JOIN u ON t.a = u.x", Any, Cut(2)),
    (rule::JOIN_WHOLE_KEY, "SELECT t.k, o.s FROM t JOIN o ON t.k = o.id", Any, Cut(2)),
    (rule::JOIN_WHOLE_KEY, "SELECT t.k, o.s FROM t JOIN o ON t.k = o.k", Any, Cut(2)),
    (rule::JOIN_WHOLE_KEY, "SELECT l.k, r.k FROM u l JOIN u r ON l.k = r.x AND l.x = r.x AND l.w = r.w", Any, Cut(2)),
    (rule::JOIN_WHOLE_KEY, "SELECT l.k, r.w FROM u l JOIN u r ON (l.k IS NOT DISTINCT FROM r.k) AND l.x = r.x AND l.w < r.w", Any, Whole),
    (rule::JOIN_WHOLE_KEY, "SELECT t.k, u.x FROM t JOIN u ON t.k < u.k AND t.a = u.x AND u.k < 9", Any, Cut(2)),

    (rule::INNER_BOTH, "SELECT t.k, count(*), sum(v) FROM t JOIN u ON t.k = u.k GROUP BY t.k", Any, Whole),
    (rule::INNER_BOTH, "SELECT u.k, count(*), sum(v) FROM t JOIN u ON t.k = u.k GROUP BY u.k", Any, Whole),
    (rule::INNER_BOTH, "SELECT t.k, u.x, n.y FROM t JOIN u ON t.k = u.k JOIN n ON u.k = n.k", Any, Whole),
    (rule::INNER_BOTH, "SELECT d.p, c.q, count(*) FROM c JOIN d ON c.p = d.p AND c.q = d.q GROUP BY d.p, c.q", Any, Whole),

    (rule::OUTER_PRESERVED, "SELECT t.k, count(x) FROM t LEFT JOIN u ON t.k = u.k GROUP BY t.k", Any, Whole),
    (rule::OUTER_PRESERVED, "SELECT u.k, count(*) FROM t LEFT JOIN u ON t.k = u.k GROUP BY u.k", Any, Cut(1)),
    (rule::OUTER_PRESERVED, "SELECT u.k, count(a) FROM t RIGHT JOIN u ON t.k = u.k GROUP BY u.k", Any, Whole),
    (rule::OUTER_PRESERVED, "SELECT t.k, count(*) FROM t RIGHT JOIN u ON t.k = u.k GROUP BY t.k", Any, Cut(1)),
    (rule::OUTER_PRESERVED, "SELECT few.k, count(*) FROM t LEFT JOIN few ON t.k = few.k GROUP BY few.k", Any, Cut(1)),
    (rule::OUTER_PRESERVED, "SELECT t.k, e.x FROM t LEFT JOIN e ON t.k = e.k", Any, Whole),
    (rule::OUTER_PRESERVED, "SELECT t.k, e.x FROM e LEFT JOIN t ON t.k = e.k", Any, Whole),
    (rule::OUTER_PRESERVED, "SELECT k FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.k = t.k AND x > 3)", Any, Whole),
    (rule::OUTER_PRESERVED, "SELECT k FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.k = t.k)", Any, Whole),
    (rule::OUTER_PRESERVED, "SELECT k, count(*) FROM u WHERE NOT EXISTS (SELECT 1 FROM t WHERE u.k = t.k) GROUP BY k", Any, Whole),
    (rule::OUTER_PRESERVED, "SELECT k, x FROM u WHERE k IN (SELECT k FROM t WHERE a = 2)", Any, Whole),
    (rule::OUTER_PRESERVED, "SELECT k FROM t WHERE k IN (SELECT k FROM n WHERE y = 1) OR a = 1", Any, Whole),
    (rule::OUTER_PRESERVED, "SELECT k FROM t WHERE a IN (SELECT x FROM u)", Any, Cut(2)),

    (rule::FULL_NONE, "SELECT t.k, u.k, x FROM t FULL JOIN u ON t.k = u.k", Any, Whole),
    (rule::FULL_NONE, "SELECT t.k, count(*) FROM t FULL JOIN u ON t.k = u.k GROUP BY t.k", Any, Cut(1)),
    (rule::FULL_NONE, "SELECT u.k, count(*) FROM t FULL JOIN u ON t.k = u.k GROUP BY u.k", Any, Cut(1)),
    (rule::FULL_NONE, "SELECT s.k, n.y FROM (SELECT u.k FROM t FULL JOIN u ON t.k = u.k) s JOIN n ON s.k = n.k", Any, Cut(2)),
    (rule::FULL_NONE, "SELECT few.m, e.x FROM few FULL JOIN e ON few.k = e.k", Any, Whole),

    (rule::NOT_IN, "SELECT k FROM t WHERE k NOT IN (SELECT k FROM n)", Any, Whole),
    (rule::NOT_IN, "SELECT k FROM t WHERE k NOT IN (SELECT k FROM u)", Any, Cut(2)),
    (rule::NOT_IN, "SELECT k FROM t WHERE k NOT IN (SELECT k FROM few)", Any, Cut(2)),
    (rule::NOT_IN, "SELECT k FROM u WHERE k NOT IN (SELECT k FROM n)", Any, Cut(2)),
    (rule::NOT_IN, "SELECT k FROM u WHERE k NOT IN (SELECT k FROM e)", Any, Cut(2)),

    (rule::REPLICATED_INNER, "SELECT t.k, name FROM t JOIN ref1 ON t.k = ref1.k", Any, Whole),
    (rule::REPLICATED_INNER, "SELECT t.k, name FROM t JOIN ref1 ON t.k < ref1.k", Any, Whole),
    (rule::REPLICATED_INNER, "SELECT t.k, name FROM t JOIN ref1 ON t.b = ref1.name OR t.a = ref1.k", Any, Whole),
    (rule::REPLICATED_INNER, "SELECT t.k, g FROM t CROSS JOIN ref2", Any, Whole),
    (rule::REPLICATED_INNER, "SELECT ref1.k, count(*) FROM t JOIN ref1 ON t.k = ref1.k GROUP BY ref1.k", Any, Whole),
    (rule::REPLICATED_INNER, "SELECT name, g FROM ref1 JOIN ref2 ON ref1.k = ref2.x", Any, Whole),
    (rule::REPLICATED_INNER, "SELECT t.k, l.i FROM t JOIN (VALUES (1), (5)) AS l(i) ON t.k = l.i", Any, Whole),

    (rule::REPLICATED_OUTER, "SELECT t.k, name FROM t LEFT JOIN ref1 ON t.k = ref1.k", Any, Whole),
    (rule::REPLICATED_OUTER, "SELECT t.k, name FROM ref1 RIGHT JOIN t ON t.k = ref1.k", Any, Whole),
    (rule::REPLICATED_OUTER, "SELECT t.k, name FROM ref1 LEFT JOIN t ON t.k = ref1.k", Any, Cut(2)),
    (rule::REPLICATED_OUTER, "SELECT t.a, ref1.k FROM t RIGHT JOIN ref1 ON t.k = ref1.k", Any, Cut(2)),
    (rule::REPLICATED_OUTER, "SELECT few.m, name FROM ref1 LEFT JOIN few ON few.k = ref1.k", Any, Cut(2)),
    (rule::REPLICATED_OUTER, "SELECT t.k, name FROM t FULL JOIN ref1 ON t.k = ref1.k", Any, Cut(2)),
    (rule::REPLICATED_OUTER, "SELECT k, x FROM u WHERE k IN (SELECT k FROM ref1)", Any, Whole),
    (rule::REPLICATED_OUTER, "SELECT x FROM u WHERE x NOT IN (SELECT x FROM ref2)", Any, Whole),
    (rule::REPLICATED_OUTER, "SELECT x FROM u WHERE x NOT IN (SELECT x FROM ref2 WHERE x IS NOT NULL)", Any, Whole),
    (rule::REPLICATED_OUTER, "SELECT k FROM ref1 WHERE k IN (SELECT k FROM u)", Any, Cut(2)),
    (rule::REPLICATED_OUTER, "SELECT k FROM ref1 WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.k = ref1.k AND a = 1)", Any, Cut(2)),
    (rule::REPLICATED_OUTER, "SELECT x FROM ref2 WHERE x NOT IN (SELECT x FROM e)", Any, Cut(2)),

    (rule::AGGREGATES, "SELECT k, sum(w), round(avg(w), 4), count(DISTINCT x), min(x) FROM u GROUP BY k", Any, Whole),
    (rule::AGGREGATES, "SELECT k, median(x) FROM few JOIN u USING (k) GROUP BY k", Any, Whole),
    (rule::AGGREGATES, "SELECT p, q, sum(z) FROM c GROUP BY p, q", Any, Whole),
    (rule::AGGREGATES, "SELECT p, sum(z) FROM c GROUP BY p", Any, Cut(1)),
    (rule::AGGREGATES, "SELECT k, x, count(*) FROM u GROUP BY GROUPING SETS ((k, x), (k))", Any, Whole),
    (rule::AGGREGATES, "SELECT k, x, count(*) FROM u GROUP BY GROUPING SETS ((k, x), (x))", Any, Cut(1)),
    (rule::AGGREGATES, "SELECT k, x, count(*) FROM u GROUP BY ROLLUP (k, x)", Any, Cut(1)),
    (rule::AGGREGATES, "SELECT k, x, count(*), grouping(k, x) FROM u GROUP BY CUBE (k, x)", Any, Cut(1)),
    (rule::AGGREGATES, "SELECT max(s), count(*) FROM (SELECT k, sum(w) AS s FROM u GROUP BY k) q", Any, Cut(1)),
    (rule::AGGREGATES, "SELECT count(*), sum(w), round(avg(w), 4), min(x) FROM e", Any, Cut(1)),
    (rule::AGGREGATES, "SELECT x, count(*) FILTER (WHERE w > 50), round(avg(w), 4) FROM u GROUP BY x HAVING count(*) > 3", Any, Cut(1)),

    (rule::DISTINCT, "SELECT DISTINCT k, x FROM u", Any, Whole),
    (rule::DISTINCT, "SELECT DISTINCT x FROM u", Any, Cut(1)),
    (rule::DISTINCT, "SELECT DISTINCT p FROM c", Any, Cut(1)),
    (rule::DISTINCT, "SELECT DISTINCT ON (k) k, x, w FROM u ORDER BY k, x, w", Any, Cut(1)),
    (rule::DISTINCT, "SELECT DISTINCT ON (x) x, k, w FROM u WHERE w IS NOT NULL ORDER BY x, w, k", Any, Cut(1)),

    (rule::WINDOWS, "SELECT k, w, row_number() OVER (PARTITION BY k ORDER BY w, x) FROM u WHERE k <> 7 AND w IS NOT NULL", Any, Whole),
    (rule::WINDOWS, "SELECT k, x, sum(w) OVER (PARTITION BY k, x) FROM u", Any, Whole),
    (rule::WINDOWS, "SELECT k, count(*) OVER (PARTITION BY k), count(*) OVER (PARTITION BY x) FROM u", Any, Cut(1)),
    (rule::WINDOWS, "SELECT k, x, count(*) OVER (PARTITION BY x) FROM u", Any, Cut(1)),
    (rule::WINDOWS, "SELECT k, rank() OVER (ORDER BY v, k) FROM t", Any, Cut(1)),
    (rule::WINDOWS, "SELECT p, q, count(*) OVER (PARTITION BY q) FROM c", Any, Cut(1)),

    (rule::SET_OPERATIONS, "SELECT k FROM u INTERSECT SELECT k FROM t", Any, Whole),
    (rule::SET_OPERATIONS, "SELECT k FROM u INTERSECT SELECT k FROM few", Any, Whole),
    (rule::SET_OPERATIONS, "SELECT k FROM u EXCEPT SELECT k FROM t", Any, Whole),
    (rule::SET_OPERATIONS, "SELECT x FROM u INTERSECT SELECT a FROM t", Any, Cut(2)),
    (rule::SET_OPERATIONS, "SELECT x FROM u EXCEPT SELECT a FROM t", Any, Cut(2)),

    (rule::UNION, "SELECT k, x FROM u UNION ALL SELECT k, a FROM t", Any, Whole),
    (rule::UNION, "SELECT k, count(*) FROM (SELECT k FROM u UNION ALL SELECT k FROM t UNION ALL SELECT k FROM e) s GROUP BY k", Any, Whole),
    (rule::UNION, "SELECT k, count(*) FROM (SELECT k, x FROM u UNION ALL SELECT x, k FROM u) s GROUP BY k", Any, Cut(1)),
    (rule::UNION, "SELECT k FROM u UNION ALL SELECT k FROM ref1", Any, Cut(2)),
    (rule::UNION, "SELECT k FROM t UNION ALL SELECT id FROM o", Any, Cut(2)),
    (rule::UNION, "SELECT k FROM ref1 UNION ALL SELECT x FROM ref2", Any, Whole),
    (rule::UNION, "SELECT k FROM u UNION SELECT k FROM t", Any, Whole),

    (rule::OVER_REPLICATED, "SELECT k, name FROM ref1 ORDER BY k LIMIT 3", Total, Whole),
    (rule::OVER_REPLICATED, "SELECT t.k, r.name FROM t JOIN (SELECT * FROM ref1 ORDER BY k LIMIT 4) r ON t.k = r.k", Any, Cut(2)),
    (rule::OVER_REPLICATED, "SELECT count(*) FROM t CROSS JOIN (SELECT * FROM ref1 LIMIT 4) r", Any, Cut(2)),
    (rule::OVER_REPLICATED, "SELECT t.k, r.n FROM t JOIN (SELECT k, row_number() OVER (ORDER BY k) n FROM ref1) r ON t.k = r.k", Any, Cut(2)),
    (rule::OVER_REPLICATED, "SELECT t.k, r.k FROM t JOIN (SELECT DISTINCT ON (name) name, k FROM ref1 ORDER BY name, k) r ON t.k = r.k", Any, Cut(2)),

    (rule::GLOBAL_LIMIT, "SELECT k, v FROM t ORDER BY v DESC NULLS LAST, k LIMIT 5", Total, Below("fetch=5")),
    (rule::GLOBAL_LIMIT, "SELECT k FROM t ORDER BY k LIMIT 5 OFFSET 7", Total, Below("fetch=12")),
    (rule::GLOBAL_LIMIT, "SELECT count(*) FROM (SELECT k FROM u LIMIT 50) s", Any, Below("fetch=50")),
    (rule::GLOBAL_LIMIT, "SELECT count(*) FROM (SELECT k FROM u LIMIT 50 OFFSET 170) s", Any, Below("fetch=220")),
    (rule::GLOBAL_LIMIT, "SELECT k, sum(w) AS s FROM u GROUP BY k ORDER BY s DESC NULLS LAST, k LIMIT 3", Total, Below("fetch=3")),
    (rule::GLOBAL_LIMIT, "SELECT m FROM few ORDER BY m LIMIT 1000", Total, Below("fetch=1000")),

    (rule::VOLATILE, "SELECT k, random() < 2 FROM t", Any, Cut(1)),
    (rule::VOLATILE, "SELECT k FROM t WHERE random() < 2", Any, Cut(1)),
    (rule::VOLATILE, "SELECT k FROM t WHERE v > (SELECT avg(v) FROM t)", Any, Cut(2)),
    (rule::VOLATILE, "SELECT k, (SELECT count(*) FROM u WHERE u.x = t.a) AS m FROM t", Any, Cut(2)),

    (rule::STABLE, "SELECT k FROM t WHERE now() > TIMESTAMP '2020-01-01 00:00:00'", Any, Whole),
    (rule::STABLE, "SELECT k, now() IS NOT NULL FROM t", Any, Whole),
    (rule::STABLE, "SELECT count(DISTINCT s) FROM (SELECT CAST(now() AS text) AS s FROM u) q", Any, Cut(1)),

    (rule::PRUNING, "SELECT k, b FROM t WHERE k = 7", Any, Pruned(1)),
    (rule::PRUNING, "SELECT k, x FROM u WHERE k = 7", Any, Pruned(1)),
    (rule::PRUNING, "SELECT k, x FROM u WHERE k = CAST(7 AS smallint)", Any, Pruned(1)),
    (rule::PRUNING, "SELECT k, x FROM u WHERE k IS NULL", Any, Pruned(1)),
    (rule::PRUNING, "SELECT x FROM u WHERE k = NULL", Any, Cut(0)),
    (rule::PRUNING, "SELECT k, y FROM n WHERE k = 3000000000", Any, Whole),
    (rule::PRUNING, "SELECT k, x FROM u WHERE k = 7.5", Any, Whole),
    (rule::PRUNING, "SELECT k, x FROM u WHERE k = 7.0", Any, Pruned(1)),
    (rule::PRUNING, "SELECT p, z FROM c WHERE p = 3 AND q = 'q1'", Any, Pruned(1)),
    (rule::PRUNING, "SELECT p, z FROM c WHERE p = 3", Any, Pruned(8)),
    (rule::PRUNING, "SELECT t.k, u.x FROM t JOIN u ON t.k = u.k WHERE u.k = 7", Any, Pruned(1)),
    (rule::PRUNING, "SELECT t.k, u.x FROM t LEFT JOIN u ON t.k = u.k AND u.k = 7", Any, Pruned(8)),
    (rule::PRUNING, "SELECT t.k, u.x FROM t FULL JOIN u ON t.k = u.k AND u.k = 7 WHERE t.k < 5 OR u.x = 1", Any, Whole),

    (rule::NOT_LISTED, "SELECT k, unnest(make_array(1, 2)) FROM t", Any, Cut(1)),
    (rule::NOT_LISTED, "SELECT k, x FROM u ORDER BY k, x, w", Any, Cut(1)),
    (rule::NOT_LISTED, "SELECT t.k FROM t JOIN generate_series(3, 9) AS g(i) ON t.k = g.i", Any, Cut(1)),
];

/// Name, columns, where the rows live, rows.
type Row = (&'static str, &'static str, &'static str, Vec<String>);

/// NULLs, one frequent value, and keys that `t` lacks.
fn skewed(i: i64) -> String {
    match i {
        i if i % 11 == 0 => "NULL".into(),
        i if i % 4 == 0 => "7".into(),
        i => (i % 90).to_string(),
    }
}

/// NULL where `is_null`.
fn or_null(is_null: bool, value: impl std::fmt::Display) -> String {
    if is_null { "NULL".into() } else { value.to_string() }
}

fn cents(i: i64) -> String {
    format!("{}{}.{:02}", if i < 0 { "-" } else { "" }, i.abs() / 100, i.abs() % 100)
}

fn tables() -> Vec<Table> {
    let table = |(name, columns, place, rows): Row| Table {
        name: name.to_owned(),
        columns,
        place: place.to_owned(),
        rows,
    };
    rows_of_tables().into_iter().map(table).collect()
}

fn rows_of_tables() -> Vec<Row> {
    let rows = |count: i64, row: &dyn Fn(i64) -> String| (0..count).map(row).collect::<Vec<_>>();
    let pair = |step: i64| {
        move |i: i64| {
            let (p, q) = (i * step % 6, format!("'q{}'", i * step % 4));
            format!("({}, {}, {i})", or_null(i % 17 == 0, p), or_null(i % 19 == 0, q))
        }
    };
    vec![
        (
            "t",
            "k bigint NOT NULL, a int, b text, v numeric(12,2), f double precision",
            "SHARD BY HASH(k) SHARDS 8",
            rows(60, &|i| {
                let (a, b, v) = (i % 5, format!("'b{}'", i % 6), cents(i * 37 - 500));
                let (a, b, v) = (or_null(i % 13 == 0, a), or_null(i % 7 == 0, b), or_null(i % 9 == 0, v));
                format!("({i}, {a}, {b}, {v}, {})", i as f64 * 0.5)
            }),
        ),
        (
            "u",
            "k bigint, x int, w numeric(12,2)",
            "SHARD BY HASH(k) SHARDS 8 COLOCATE WITH t",
            rows(200, &|i| {
                format!("({}, {}, {})", skewed(i), i % 8, or_null(i % 10 == 3, cents(i * 101)))
            }),
        ),
        (
            "n",
            "k int NOT NULL, y int",
            "SHARD BY HASH(k) SHARDS 8 COLOCATE WITH t",
            rows(20, &|i| format!("({}, {})", i * 3, i % 4)),
        ),
        (
            // Two keys and NULL: most of the 8 shards have no row.
            "few",
            "k bigint, m int",
            "SHARD BY HASH(k) SHARDS 8 COLOCATE WITH t",
            rows(30, &|i| format!("({}, {i})", or_null(i % 10 == 0, i % 2 * 20 + 2))),
        ),
        (
            "e",
            "k bigint, x int, w numeric(12,2)",
            "SHARD BY HASH(k) SHARDS 8 COLOCATE WITH t",
            vec![],
        ),
        (
            "c",
            "p int, q text, z bigint",
            "SHARD BY HASH(p, q) SHARDS 8",
            rows(70, &pair(1)),
        ),
        (
            "d",
            "p int, q text, z bigint",
            "SHARD BY HASH(p, q) SHARDS 8 COLOCATE WITH c",
            rows(50, &pair(5)),
        ),
        (
            "o",
            "id bigint NOT NULL, k bigint, s text",
            "SHARD BY HASH(id) SHARDS 5",
            rows(80, &|i| format!("({i}, {}, 's{}')", skewed(i * 3), i % 9)),
        ),
        (
            "ref1",
            "k bigint, name text",
            "REFERENCE",
            rows(10, &|i| format!("({}, 'name{}')", i * 3, i % 4)),
        ),
        (
            "ref2",
            "x int, g int",
            "REFERENCE",
            rows(9, &|i| format!("({}, {})", or_null(i == 4, i), i % 2)),
        ),
    ]
}

/// What is wrong with the plan, if anything.
fn judge(explain: &[String], plan: Plan) -> Result<(), String> {
    let leaves: Vec<&String> = explain
        .iter()
        .filter(|l| l.trim_start().starts_with("ShardLocal"))
        .collect();
    // After the strategy and the number of nodes.
    let whole = explain.get(2).is_some_and(|l| l.starts_with("ShardLocal"));
    let fine = match plan {
        Whole => whole,
        Pruned(shards) => whole && leaves[0].contains(&format!("shards={shards}/8")),
        Cut(n) => !whole && leaves.len() == n,
        Below(what) => {
            let leaf = explain.iter().position(|l| l.trim_start().starts_with("ShardLocal"));
            !whole && leaves.len() == 1 && leaf.is_some_and(|i| explain[i + 1].contains(what))
        }
    };
    match fine {
        true => Ok(()),
        false => Err(format!("expected {plan:?}, but the plan is\n{}", explain.join("\n"))),
    }
}

/// All cases on a cluster of `nodes`; what went wrong.
async fn failures(nodes: u32, answers: &[Vec<String>]) -> Vec<String> {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = cluster::embedded(dir.path(), nodes).await;
    let (on, off, exchanging) = (
        cluster::connect(&cluster.url()).await,
        cluster::connect(&cluster.url()).await,
        cluster::connect(&cluster.url()).await,
    );
    off.simple_query("SET tessera.shard_local = off").await.expect("set");
    let set = exchanging.simple_query("SET tessera.distributed = on").await;
    set.expect("set");
    oracle::fill(&on, &tables()).await;
    let mut failures = vec![];
    for ((sentence, sql, order, plan), answer) in CASES.iter().zip(answers) {
        let mut fail = |what: String| failures.push(format!("{sentence}\n  {sql}\n  on {nodes} nodes: {what}"));
        for (rule, client) in [("on", &on), ("off", &off), ("on, exchanging", &exchanging)] {
            match found(client, sql, *order).await {
                Ok(rows) if rows == *answer => {}
                Ok(rows) => fail(format!("rule {rule}: got {rows:?}, expected {answer:?}")),
                Err(error) => fail(format!("rule {rule}: {error:?}")),
            }
        }
        if nodes > 1 {
            let explain = cluster::rows(&on, &format!("EXPLAIN {sql}")).await;
            let explain = explain.map(|rows| rows.into_iter().filter_map(|mut r| r.remove(0)).collect::<Vec<_>>());
            let judged = explain
                .map_err(|e| format!("{e:?}"))
                .and_then(|lines| judge(&lines, *plan));
            if let Err(what) = judged {
                fail(what);
            }
        }
    }
    drop((on, off, exchanging));
    cluster.shutdown().await.expect("stops");
    failures
}

#[test]
fn every_sentence_has_a_case() {
    for sentence in rule::SENTENCES {
        assert!(CASES.iter().any(|case| case.0 == *sentence), "{sentence}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_gives_the_rows_of_one_process() {
    let oracle = oracle::datafusion(&tables()).await;
    let mut answers = vec![];
    for (_, sql, order, _) in CASES {
        let answer = expected(&oracle, sql, *order).await;
        answers.push(answer.unwrap_or_else(|e| panic!("{sql}: {e}")));
    }
    let (one, three) = tokio::join!(failures(1, &answers), failures(3, &answers));
    let failures: Vec<_> = one.into_iter().chain(three).collect();
    assert!(
        failures.is_empty(),
        "{} failures\n{}",
        failures.len(),
        failures.join("\n")
    );
}
