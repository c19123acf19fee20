//! Every feature of SELECT over every shape of data on every cluster shape: the same rows as in one process.
//!
//! ```text
//!   { 103 features } x { NULL keys, skewed key, empty shards, one row } x { 1, 2, 3 nodes } x { in process, gRPC }
//!                   x { as it is, no leaves, no join order, exchanges }
//! ```
//!
//! Everyday runs take three nodes in process; `TESSERA_SQL_MATRIX=all` takes all shapes. No cell is left out: a feature that
//! is refused somewhere fails the test.

use crate::cluster::{self, Processes};
use crate::oracle::{self, Order, Table, expected, found};
use tokio_postgres::Client;

use Order::{Any, Total};

/// Name, query over {t} and {u} (colocated by k), {o} (by id) and the reference table {r}, order.
type Feature = (&'static str, &'static str, Order);

#[rustfmt::skip]
const FEATURES: &[Feature] = &[
    ("columns", "SELECT id, k, a, b, v, d FROM {t}", Any),
    ("expressions", "SELECT id + 1, a * 2 - k, -a, a % 3, v + 1.5, b || '-' || a FROM {t}", Any),
    ("where", "SELECT id FROM {t} WHERE a > 1 AND (b <> 'b2' OR v < 3)", Any),
    ("where on the shard key", "SELECT id, k FROM {t} WHERE k = 7", Any),
    ("where on NULL keys", "SELECT id FROM {t} WHERE k IS NULL", Any),
    ("in list of keys", "SELECT id, k FROM {t} WHERE k IN (2, 7, 11)", Any),
    ("between", "SELECT id FROM {t} WHERE k BETWEEN 3 AND 9 AND d BETWEEN DATE '2024-02-01' AND DATE '2024-06-30'", Any),
    ("like", "SELECT id, b FROM {t} WHERE b LIKE 'b%' AND b NOT LIKE '%3'", Any),
    ("is distinct from", "SELECT id FROM {t} WHERE (k IS DISTINCT FROM 7) AND (a IS NOT DISTINCT FROM 2)", Any),
    ("case", "SELECT id, CASE WHEN k = 7 THEN 'hot' WHEN k IS NULL THEN 'none' ELSE b END FROM {t}", Any),
    ("coalesce and nullif", "SELECT coalesce(k, -1), nullif(a, 2) FROM {t}", Any),
    ("cast", "SELECT CAST(k AS text), CAST(round(v) AS int), CAST(id AS numeric(10,2)) FROM {t}", Any),
    ("text functions", "SELECT upper(b), length(b), substr(b, 2, 1), replace(b, 'b', 'c'), trim('  x ') FROM {t}", Any),
    ("date functions", "SELECT extract(month FROM d), CAST(date_trunc('month', d) AS date) FROM {t} WHERE d IS NOT NULL", Any),
    ("order by", "SELECT id, k FROM {t} ORDER BY k DESC NULLS LAST, id", Total),
    ("order by, defaults", "SELECT a, id FROM {t} ORDER BY a, id DESC", Total),
    ("limit", "SELECT id FROM {t} ORDER BY id LIMIT 5", Total),
    ("limit and offset", "SELECT id FROM {t} ORDER BY id DESC LIMIT 4 OFFSET 2", Total),
    ("limit 0", "SELECT id FROM {t} LIMIT 0", Any),
    ("distinct", "SELECT DISTINCT a FROM {t}", Any),
    ("distinct keys", "SELECT DISTINCT k, a FROM {t}", Any),
    ("distinct on", "SELECT DISTINCT ON (a) a, id FROM {t} ORDER BY a, id", Total),
    ("aggregates", "SELECT count(*), count(k), sum(a), min(b), max(d), sum(v) FROM {t}", Any),
    ("aggregates of nothing", "SELECT count(*), sum(a), max(b) FROM {t} WHERE id < 0", Any),
    ("average", "SELECT CAST(round(avg(a) * 997) AS bigint) FROM {t}", Any),
    ("group by key", "SELECT k, count(*), sum(a) FROM {t} GROUP BY k", Any),
    ("group by another", "SELECT a, count(*), min(k), max(b) FROM {t} GROUP BY a", Any),
    ("group by expression", "SELECT a + 1, count(*) FROM {t} GROUP BY a + 1", Any),
    ("having", "SELECT a, count(*) FROM {t} GROUP BY a HAVING count(*) > 2", Any),
    ("count distinct", "SELECT count(DISTINCT a), count(DISTINCT k) FROM {t}", Any),
    ("count distinct by group", "SELECT b, count(DISTINCT k) FROM {t} GROUP BY b", Any),
    ("filter clause", "SELECT count(*) FILTER (WHERE a > 1), sum(id) FILTER (WHERE k = 7) FROM {t}", Any),
    ("percentile of the key's groups", "SELECT k, percentile_cont(0.5) WITHIN GROUP (ORDER BY id) FROM {t} GROUP BY k", Any),
    ("mode", "SELECT b, __tessera_mode('al', a), __tessera_mode('df', k) FROM {t} GROUP BY b", Any),
    ("mode of all", "SELECT __tessera_mode('al', a), __tessera_mode('al', d) FILTER (WHERE a > 1) FROM {t}", Any),
    ("percentile_disc", "SELECT k, __tessera_percentile_disc('dl', v, 0.3) FROM {t} GROUP BY k", Any),
    ("percentile_disc of nothing", "SELECT __tessera_percentile_disc('al', v, 0.3) FROM {t} WHERE id < 0", Any),
    ("hypothetical ranks", "SELECT a, __tessera_rank('al', k, 7), __tessera_dense_rank('dl', id, 20) FROM {t} GROUP BY a", Any),
    ("hypothetical ranks of all", "SELECT __tessera_percent_rank('al,dl', a, id, 2, 9), __tessera_cume_dist('al', k, 7) FROM {t}", Any),
    ("array_agg with an order", "SELECT a, array_to_string(array_agg(id ORDER BY id DESC), ',') FROM {t} GROUP BY a", Any),
    ("string_agg with an order", "SELECT string_agg(b, ',' ORDER BY b, id) FROM {t}", Any),
    ("sets beside aggregates", "SELECT k, __tessera_mode('al', b), count(*), sum(a), min(d) FROM {t} GROUP BY k", Any),
    ("rollup", "SELECT a, b, count(*) FROM {t} GROUP BY ROLLUP (a, b)", Any),
    ("cube", "SELECT k, a, sum(id) FROM {t} GROUP BY CUBE (k, a)", Any),
    ("grouping sets", "SELECT a, b, grouping(a), count(*) FROM {t} GROUP BY GROUPING SETS ((a), (b), ())", Any),
    ("inner join, colocated", "SELECT t.id, u.x FROM {t} t JOIN {u} u ON t.k = u.k", Any),
    ("inner join, elsewhere", "SELECT t.id, o.id FROM {t} t JOIN {o} o ON t.k = o.k", Any),
    ("left join, colocated", "SELECT t.id, u.x FROM {t} t LEFT JOIN {u} u ON t.k = u.k AND u.x > 2", Any),
    ("left join, elsewhere", "SELECT t.id, o.s FROM {t} t LEFT JOIN {o} o ON t.a = o.id", Any),
    ("right join", "SELECT t.id, u.x FROM {t} t RIGHT JOIN {u} u ON t.k = u.k", Any),
    ("full join, colocated", "SELECT t.id, u.x FROM {t} t FULL JOIN {u} u ON t.k = u.k", Any),
    ("full join, elsewhere", "SELECT t.id, o.id FROM {t} t FULL JOIN {o} o ON t.a = o.id", Any),
    ("cross join", "SELECT u.x, r.g FROM {u} u CROSS JOIN {r} r", Any),
    ("join with inequality", "SELECT u.x, o.id FROM {u} u JOIN {o} o ON u.x < o.id AND o.id < 4", Any),
    ("join with reference table", "SELECT t.id, r.name FROM {t} t JOIN {r} r ON t.a = r.g", Any),
    ("reference table preserved", "SELECT r.name, t.id FROM {r} r LEFT JOIN {t} t ON r.k = t.k", Any),
    ("self join", "SELECT l.id, r.id FROM {t} l JOIN {t} r ON l.k = r.k AND l.a < r.a", Any),
    ("three tables", "SELECT t.id, u.x, o.s FROM {t} t JOIN {u} u ON t.k = u.k JOIN {o} o ON u.x = o.id", Any),
    ("in subquery", "SELECT id FROM {t} WHERE k IN (SELECT k FROM {u} WHERE x > 1)", Any),
    ("not in subquery", "SELECT id FROM {t} WHERE a NOT IN (SELECT x FROM {u} WHERE x IS NOT NULL)", Any),
    ("not in with NULLs", "SELECT id FROM {t} WHERE k NOT IN (SELECT k FROM {u})", Any),
    ("exists", "SELECT id FROM {t} t WHERE EXISTS (SELECT 1 FROM {u} u WHERE u.k = t.k AND u.x > 2)", Any),
    ("not exists", "SELECT id FROM {t} t WHERE NOT EXISTS (SELECT 1 FROM {o} o WHERE o.id = t.a)", Any),
    ("scalar subquery", "SELECT id FROM {t} WHERE a = (SELECT max(a) FROM {t})", Any),
    ("correlated scalar subquery", "SELECT id, (SELECT count(*) FROM {u} u WHERE u.k = t.k) FROM {t} t", Any),
    ("derived table", "SELECT q.a, q.n FROM (SELECT a, count(*) AS n FROM {t} GROUP BY a) q WHERE q.n > 1", Any),
    ("aggregate of aggregate", "SELECT n, count(*) FROM (SELECT a, count(*) AS n FROM {t} GROUP BY a) q GROUP BY n", Any),
    ("with", "WITH q AS (SELECT k, sum(a) AS s FROM {t} GROUP BY k) SELECT l.k, r.s FROM q l JOIN q r ON l.k = r.k", Any),
    ("recursive with", "WITH RECURSIVE q AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM q WHERE n < 4) SELECT n, id FROM q JOIN {t} t ON t.a = n", Any),
    ("union all", "SELECT k FROM {t} UNION ALL SELECT k FROM {u}", Any),
    ("union", "SELECT k FROM {t} UNION SELECT k FROM {o}", Any),
    ("intersect", "SELECT k FROM {t} INTERSECT SELECT k FROM {u}", Any),
    ("except", "SELECT k FROM {t} EXCEPT SELECT k FROM {u}", Any),
    ("rank by key", "SELECT id, rank() OVER (PARTITION BY k ORDER BY a) FROM {t}", Any),
    ("row_number by another", "SELECT id, row_number() OVER (PARTITION BY a ORDER BY id) FROM {t}", Any),
    ("running sum", "SELECT id, sum(a) OVER (ORDER BY id) FROM {t}", Any),
    ("frame", "SELECT id, sum(a) OVER (ORDER BY id ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING) FROM {t}", Any),
    ("lag and lead", "SELECT id, lag(a) OVER (ORDER BY id), lead(a, 2) OVER (PARTITION BY k ORDER BY id) FROM {t}", Any),
    ("window over aggregate", "SELECT a, sum(count(*)) OVER () FROM {t} GROUP BY a", Any),
    ("values", "SELECT t.id, w.n FROM {t} t JOIN (VALUES (1, 'x'), (2, 'y')) AS w(a, n) ON t.a = w.a", Any),
];

/// Features that DataFusion does not read, or reads as something else: name, query, the same query in its words, order.
type Spelled = (&'static str, &'static str, &'static str, Order);

#[rustfmt::skip]
const SPELLED: &[Spelled] = &[
    ("table", "TABLE {u}", "SELECT * FROM {u}", Any),
    ("only", "SELECT t.id FROM ONLY {t} t JOIN ONLY {u} u ON t.k = u.k", "SELECT t.id FROM {t} t JOIN {u} u ON t.k = u.k", Any),
    ("casts of one column", "SELECT a::int, a::bigint, sum(a::int), sum(a::bigint) FROM {t} GROUP BY a::int, a::bigint",
        "SELECT a, a AS y, sum(a) AS s, sum(a) AS t FROM {t} GROUP BY a", Any),
    ("repeated names in a subquery", "SELECT count(*) FROM (SELECT id, id, a + 1, a + 1 FROM {t}) s", "SELECT count(*) FROM {t}", Any),
    ("unnamed columns of a subquery", "SELECT s.k, s.count, s.max FROM (SELECT k, count(*), max(a) FROM {t} GROUP BY k) s",
        "SELECT k, count(*) AS n, max(a) AS m FROM {t} GROUP BY k", Any),
    ("fetch", "SELECT id FROM {t} ORDER BY id OFFSET 2 ROWS FETCH NEXT 3 ROWS ONLY", "SELECT id FROM {t} ORDER BY id LIMIT 3 OFFSET 2", Total),
    ("fetch with ties", "SELECT a FROM {t} ORDER BY a FETCH FIRST 3 ROWS WITH TIES",
        "SELECT a FROM (SELECT a, rank() OVER (ORDER BY a) AS r FROM {t}) q WHERE r <= 3 ORDER BY a", Total),
    ("fetch with ties of groups", "SELECT a, count(*) FROM {t} GROUP BY a ORDER BY count(*) DESC FETCH FIRST 2 ROWS WITH TIES",
        "SELECT a, n FROM (SELECT a, count(*) AS n, rank() OVER (ORDER BY count(*) DESC) AS r FROM {t} GROUP BY a) q WHERE r <= 2", Any),
    ("limit by expression", "SELECT id FROM {t} ORDER BY id LIMIT 1 + 2 OFFSET 2 - 1", "SELECT id FROM {t} ORDER BY id LIMIT 3 OFFSET 1", Total),
    ("order by using", "SELECT id FROM {t} ORDER BY id USING >", "SELECT id FROM {t} ORDER BY id DESC", Total),
    ("between symmetric", "SELECT id FROM {t} WHERE a BETWEEN SYMMETRIC 3 AND 1", "SELECT id FROM {t} WHERE a BETWEEN 1 AND 3", Any),
    ("collate", "SELECT id FROM {t} WHERE b COLLATE \"C\" > 'b1' ORDER BY b COLLATE \"C\", id", "SELECT id FROM {t} WHERE b > 'b1' ORDER BY b, id", Total),
    ("grouping sets multiplied", "SELECT a, b, count(*) FROM {t} GROUP BY DISTINCT ROLLUP (a), ROLLUP (b), ()",
        "SELECT a, b, count(*) FROM {t} GROUP BY CUBE (a, b)", Any),
    ("any of a constant array", "SELECT id FROM {t} WHERE k = ANY ('{2,7}') OR a <> ALL ('{0,1,2}'::int[])",
        "SELECT id FROM {t} WHERE k IN (2, 7) OR a NOT IN (0, 1, 2)", Any),
    ("range of days", "SELECT id, count(*) OVER (ORDER BY d RANGE BETWEEN '1 month' PRECEDING AND CURRENT ROW EXCLUDE NO OTHERS) FROM {t}",
        "SELECT id, count(*) OVER (ORDER BY d RANGE BETWEEN INTERVAL '1 month' PRECEDING AND CURRENT ROW) FROM {t}", Any),
    ("column of a row", "SELECT (t).id, (t).k FROM {t} t", "SELECT id, k FROM {t}", Any),
    ("sample", "SELECT count(*) FROM {t} TABLESAMPLE BERNOULLI (100)", "SELECT count(*) FROM {t}", Any),
    ("integer constants", "SELECT id + 1, CASE WHEN a = 1 THEN 1 ELSE 0 END, k + 2147483648 FROM {t}",
        "SELECT id + 1, CASE WHEN a = 1 THEN 1 ELSE 0 END, k + 2147483648 FROM {t}", Any),
    ("lateral without from", "SELECT t.id, s.x FROM {t} t, LATERAL (SELECT t.a * 2 AS x) s",
        "SELECT id, a * 2 FROM {t}", Any),
    ("lateral values", "SELECT t.id, s.x FROM {t} t CROSS JOIN LATERAL (VALUES (t.a), (t.a + 1)) s(x)",
        "SELECT id, a FROM {t} UNION ALL SELECT id, a + 1 FROM {t}", Any),
    ("lateral limit", "SELECT t.id, s.x FROM {t} t LEFT JOIN LATERAL (SELECT x FROM {u} u WHERE u.k = t.k ORDER BY x DESC LIMIT 1) s ON true",
        "SELECT t.id, s.x FROM {t} t LEFT JOIN (SELECT k, x, row_number() OVER (PARTITION BY k ORDER BY x DESC) AS n FROM {u}) s ON s.k = t.k AND s.n = 1", Any),
    ("lateral aggregate, inequality", "SELECT t.id, s.c FROM {t} t, LATERAL (SELECT count(*) AS c FROM {u} u WHERE u.x > t.a) s",
        "SELECT t.id, count(u.x) FROM {t} t LEFT JOIN {u} u ON u.x > t.a GROUP BY t.id", Any),
    ("lateral aggregate, two columns", "SELECT t.id, s.m FROM {t} t, LATERAL (SELECT sum(x) AS m FROM {u} u WHERE u.k = t.k AND u.x < t.a) s",
        "SELECT t.id, sum(u.x) FROM {t} t LEFT JOIN {u} u ON u.k = t.k AND u.x < t.a GROUP BY t.id", Any),
    ("exists as a value", "SELECT id, EXISTS (SELECT 1 FROM {u} u WHERE u.k = t.k AND u.x > 2) FROM {t} t",
        "SELECT t.id, count(u.k) > 0 FROM {t} t LEFT JOIN {u} u ON u.k = t.k AND u.x > 2 GROUP BY t.id", Any),
    ("in as a value", "SELECT id, k IN (SELECT k FROM {u}) FROM {t}",
        "SELECT t.id, CASE WHEN count(u.k) > 0 THEN true WHEN (SELECT count(*) FROM {u}) = 0 THEN false WHEN min(t.k) IS NULL OR (SELECT count(*) FROM {u} WHERE k IS NULL) > 0 THEN NULL ELSE false END FROM {t} t LEFT JOIN {u} u ON u.k = t.k GROUP BY t.id", Any),
    ("not in, correlated", "SELECT id FROM {t} t WHERE a NOT IN (SELECT x FROM {u} u WHERE u.k = t.k)",
        "SELECT t.id FROM {t} t LEFT JOIN {u} u ON u.k = t.k AND (u.x = t.a OR u.x IS NULL OR t.a IS NULL) GROUP BY t.id HAVING count(u.k) = 0", Any),
    ("row in", "SELECT id FROM {t} WHERE (k, a) IN (SELECT k, x FROM {u})",
        "SELECT DISTINCT t.id FROM {t} t JOIN {u} u ON u.k = t.k AND u.x = t.a", Any),
    ("order by a subquery", "SELECT id FROM {t} t ORDER BY (SELECT count(*) FROM {u} u WHERE u.k = t.k) DESC, id",
        "SELECT t.id FROM {t} t LEFT JOIN {u} u ON u.k = t.k GROUP BY t.id ORDER BY count(u.k) DESC, t.id", Total),
    ("two levels", "SELECT id FROM {t} t WHERE EXISTS (SELECT 1 FROM {u} u WHERE u.k = t.k AND EXISTS (SELECT 1 FROM {o} o WHERE o.id = u.x AND o.id >= t.a))",
        "SELECT DISTINCT t.id FROM {t} t JOIN {u} u ON u.k = t.k JOIN {o} o ON o.id = u.x AND o.id >= t.a", Any),
    ("lateral union", "SELECT t.id, s.x FROM {t} t, LATERAL (SELECT x FROM {u} u WHERE u.k = t.k UNION ALL SELECT t.a) s",
        "SELECT t.id, u.x FROM {t} t JOIN {u} u ON u.k = t.k UNION ALL SELECT id, a FROM {t}", Any),
    ("lateral window", "SELECT t.id, s.x, s.r FROM {t} t, LATERAL (SELECT x, rank() OVER (ORDER BY x) AS r FROM {u} u WHERE u.k = t.k) s",
        "SELECT t.id, u.x, rank() OVER (PARTITION BY t.id ORDER BY u.x) FROM {t} t JOIN {u} u ON u.k = t.k", Any),
    ("lateral distinct", "SELECT t.id, s.x FROM {t} t, LATERAL (SELECT DISTINCT x FROM {u} u WHERE u.k = t.k) s",
        "SELECT DISTINCT t.id, u.x FROM {t} t JOIN {u} u ON u.k = t.k", Any),
    ("lateral series", "SELECT t.id, g FROM {t} t, generate_series(1, t.a) g",
        "SELECT t.id, g.n FROM {t} t JOIN (VALUES (1), (2), (3), (4)) g(n) ON g.n <= t.a", Any),
];

/// A shape of data: its name, rows of {t}, and the key of row `i` of {t}, {u} and {o}.
type Data = (&'static str, i64, fn(i64) -> Option<i64>);

const DATA: [Data; 4] = [
    ("nulls", 40, |i| (i % 2 == 0).then_some(i % 13)),
    ("skewed", 60, |i| Some(if i % 10 == 0 { i % 13 } else { 7 })),
    ("empty", 30, |i| Some(if i % 2 == 0 { 2 } else { 7 })),
    ("single", 1, |_| Some(7)),
];

const MODES: [(&str, &[&str]); 4] = [
    ("as it is", &[]),
    ("no leaves", &["SET tessera.shard_local = off"]),
    ("no join order", &["SET tessera.join_order = off"]),
    ("exchanges", &["SET tessera.distributed = on"]),
];

fn tables() -> Vec<Table> {
    DATA.iter().flat_map(tables_of).collect()
}

fn tables_of((data, rows, key): &Data) -> Vec<Table> {
    let null = |value: Option<i64>| value.map_or("NULL".to_owned(), |value| value.to_string());
    let table = |name: &str, columns, place: &str, rows: i64, row: &dyn Fn(i64) -> String| Table {
        name: format!("{name}_{data}"),
        columns,
        place: place.to_owned(),
        rows: (0..rows).map(row).collect(),
    };
    vec![
        table(
            "t",
            "id int NOT NULL, k bigint, a int, b text, v numeric(8,2), d date",
            "SHARD BY HASH(k) SHARDS 8",
            *rows,
            &|i| {
                let a = null((i % 7 != 3).then_some(i % 5));
                let d = format!("DATE '2024-{:02}-{:02}'", i % 12 + 1, i % 28 + 1);
                format!(
                    "({i}, {}, {a}, 'b{}', {}.{:02}, {d})",
                    null(key(i)),
                    i % 4,
                    i % 9,
                    i * 7 % 100
                )
            },
        ),
        table(
            "u",
            "k bigint, x int",
            &format!("SHARD BY HASH(k) SHARDS 8 COLOCATE WITH t_{data}"),
            (*rows).min(20),
            &|i| format!("({}, {})", null(key(i * 3)), null((i % 6 != 5).then_some(i % 6))),
        ),
        table(
            "o",
            "id bigint NOT NULL, k bigint, s text",
            "SHARD BY HASH(id) SHARDS 5",
            (*rows).min(15),
            &|i| format!("({i}, {}, 's{}')", null(key(i + 1)), i % 3),
        ),
        table("r", "k bigint, name text, g int", "REFERENCE", (*rows).min(6), &|i| {
            format!("({}, 'r{i}', {})", null(key(i)), i % 3)
        }),
    ]
}

/// The feature's query over the tables with these data.
fn query(sql: &str, data: &str) -> String {
    ["t", "u", "o", "r"].iter().fold(sql.to_owned(), |sql, table| {
        sql.replace(&format!("{{{table}}}"), &format!("{table}_{data}"))
    })
}

struct Cell {
    feature: &'static str,
    data: &'static str,
    sql: String,
    order: Order,
    answer: Vec<String>,
}

/// All cells in all modes; what went wrong.
async fn failures(url: &str, shape: &str, cells: &[Cell]) -> Vec<String> {
    let client = cluster::connect(url).await;
    oracle::fill(&client, &tables()).await;
    let mut failures = vec![];
    for (mode, settings) in MODES {
        let client: Client = cluster::connect(url).await;
        for set in settings {
            client.simple_query(set).await.expect("is set");
        }
        for Cell {
            feature,
            data,
            sql,
            order,
            answer,
        } in cells
        {
            let what = match found(&client, sql, *order).await {
                Ok(rows) if rows == *answer => continue,
                Ok(rows) => format!("got {rows:?}, expected {answer:?}"),
                Err(error) => format!("{error:?}"),
            };
            failures.push(format!("{shape}, {mode}, {data}, {feature}: {what}\n  {sql}"));
        }
    }
    println!(
        "{shape}: {} features x {} shapes of data x {} modes, {} failures",
        FEATURES.len() + SPELLED.len(),
        DATA.len(),
        MODES.len(),
        failures.len()
    );
    failures
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cell_gives_the_rows_of_one_process() {
    let oracle = oracle::datafusion(&tables()).await;
    let mut cells = vec![];
    let features = FEATURES.iter().map(|(feature, sql, order)| (feature, sql, sql, order));
    let spelled = SPELLED
        .iter()
        .map(|(feature, sql, plain, order)| (feature, sql, plain, order));
    for (feature, sql, plain, order) in features.chain(spelled) {
        for (data, ..) in DATA {
            let (sql, plain) = (query(sql, data), query(plain, data));
            let answer = expected(&oracle, &plain, *order).await;
            let answer = answer.unwrap_or_else(|e| panic!("{plain}: {e}"));
            cells.push(Cell {
                feature,
                data,
                sql,
                order: *order,
                answer,
            });
        }
    }
    let all = std::env::var_os("TESSERA_SQL_MATRIX").is_some();
    let mut wrong = vec![];
    for nodes in if all { 1..=3 } else { 3..=3 } {
        let dir = tempfile::tempdir().expect("temporary folder");
        let cluster = cluster::embedded(dir.path(), nodes).await;
        wrong.extend(failures(&cluster.url(), &format!("{nodes} nodes in process"), &cells).await);
        cluster.shutdown().await.expect("stops");
        if !all {
            continue;
        }
        let dir = tempfile::tempdir().expect("temporary folder");
        let processes = Processes::start(dir.path(), nodes).await;
        wrong.extend(failures(processes.url(), &format!("{nodes} nodes over gRPC"), &cells).await);
        processes.stop();
    }
    assert!(wrong.is_empty(), "{} failures\n{}", wrong.len(), wrong.join("\n"));
}
