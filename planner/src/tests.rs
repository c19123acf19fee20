//! Binding, pruning, naming and EXPLAIN over the test cluster of the shard-local rule.

use crate::shard_local::tests::cluster;
use crate::testing::{Bench, query};
use crate::{DistributedMode, Strategy, bind, names, parameter_types, session_state};
use datafusion::arrow::datatypes::DataType;

fn error(sql: &str) -> (String, String, String) {
    let error = Bench::new(cluster(3)).rows(sql).expect_err(sql);
    (error.code, error.message, error.hint.unwrap_or_default())
}

#[track_caller]
fn fails(sql: &str, code: &str, message: &str, hint: &str) {
    let (got_code, got_message, got_hint) = error(sql);
    assert_eq!(got_code, code, "{sql}: {got_message}");
    assert!(got_message.contains(message), "{sql}: {got_message}");
    assert!(got_hint.contains(hint), "{sql}: {got_hint}");
}

#[test]
fn errors_are_postgresqls() {
    fails(
        "SELECT * FROM ref3",
        "42P01",
        "relation \"ref3\" does not exist",
        "did you mean \"ref1\"?",
    );
    fails(
        "SELECT * FROM nowhere.t",
        "42P01",
        "relation \"nowhere.t\" does not exist",
        "",
    );
    fails("SELECT * FROM other.public.t", "0A000", "cross-database", "");
    fails(
        "SELECT nme FROM ref1",
        "42703",
        "column \"nme\" does not exist",
        "did you mean \"name\"?",
    );
    fails(
        "SELECT q.k FROM t",
        "42P01",
        "missing FROM-clause entry for table \"q\"",
        "",
    );
    fails(
        "SELECT k FROM t JOIN u ON t.k = u.k",
        "42702",
        "column reference \"k\" is ambiguous",
        "alias",
    );
    fails("SELECT lenght(b) FROM t", "42883", "function lenght does not exist", "");
    fails("SELECT a, sum(v) FROM t", "42803", "must be in GROUP BY", "");
    fails("SELECT a FROM t UNION SELECT a, b FROM t", "42601", "", "");
    fails("SELECT k FROM t WHERE b > ARRAY[1]", "42883", "", "");
    fails("SELECT k FROM t WHERE a", "42804", "", "");
    fails(
        "SELECT (SELECT sum(t.a) FROM u) FROM t",
        "0A000",
        "an aggregate of outer columns alone",
        "join",
    );
    fails(
        "SELECT k, s.y FROM (SELECT k, random() AS x FROM t) q, LATERAL (SELECT count(*) AS y FROM u WHERE u.x > q.x) s",
        "0A000",
        "may not come out the same twice",
        "a volatile function",
    );
    fails("SELECT 1 / 0", "22012", "division by zero", "");
    fails("SELECT CAST('x' AS int)", "22P02", "", "");
}

#[test]
fn views_expand_with_their_own_names() {
    let views = |nodes| {
        cluster(nodes)
            .view("totals", &["key"], "SELECT k, count(*) FROM u GROUP BY k")
            .view("big", &[], "SELECT key, count FROM totals WHERE count > 3")
            .view("loop", &[], "SELECT * FROM loop")
    };
    let bench = Bench::new(views(3));
    let mut rows = bench
        .rows("SELECT key, count FROM big b WHERE key IS NOT NULL")
        .unwrap();
    rows.sort();
    assert_eq!(rows, ["7|47"]);
    assert_eq!(bench.plan("SELECT * FROM big").unwrap().strategy, Strategy::Gather);
    assert_eq!(
        bench.plan("SELECT * FROM big WHERE key = 7").unwrap().strategy,
        Strategy::SingleNode
    );
    assert_eq!(bench.plan("SELECT * FROM loop").unwrap_err().code, "54001");
}

/// Shards that the first leaf of the plan reads, of 8.
fn shards(sql: &str) -> usize {
    Bench::new(cluster(3)).plan(sql).unwrap().fragments[0].shards
}

#[test]
fn predicates_on_the_key_prune() {
    let cases = [
        ("SELECT * FROM t WHERE k = 5", 1),
        ("SELECT * FROM t WHERE 5 = k AND a > 1", 1),
        ("SELECT * FROM n WHERE k = 5::bigint", 1),
        ("SELECT * FROM u WHERE k IS NULL", 1),
        ("SELECT * FROM u WHERE k = 5.0", 1),
        ("SELECT * FROM u WHERE k = 5.5", 8),
        ("SELECT * FROM u WHERE k > 5", 8),
        ("SELECT * FROM u WHERE k <> 5", 8),
        ("SELECT * FROM u WHERE k = 5 OR x = 1", 8),
        ("SELECT * FROM u WHERE k = 5 OR (k = 5 AND x = 1)", 1),
        ("SELECT * FROM c WHERE p = 1 AND q = 'q1'", 1),
        ("SELECT * FROM c WHERE p = 1", 8),
        (
            "SELECT * FROM c WHERE (p = 1 AND q = 'q1') OR (p = 1 AND q = 'q1' AND z > 4)",
            1,
        ),
        ("SELECT * FROM t WHERE k NOT IN (1, 2, 3, 4, 5)", 8),
        ("SELECT * FROM t JOIN u ON t.k = u.k WHERE t.k = 5", 1),
        ("SELECT * FROM t LEFT JOIN u ON t.k = u.k WHERE t.k = 5", 1),
        (
            "SELECT * FROM (SELECT k AS kk, count(*) FROM u GROUP BY k) s WHERE kk = 5",
            1,
        ),
    ];
    for (sql, expected) in cases {
        assert_eq!(shards(sql), expected, "{sql}");
    }
    let some = shards("SELECT * FROM t WHERE k IN (1, 2)");
    assert!((1..=2).contains(&some), "{some}");
}

#[test]
fn parameters_get_types_from_their_use() {
    let bench = Bench::new(cluster(3));
    let types = |sql: &str, declared: &[Option<DataType>]| {
        let state = session_state(&bench.template, &bench.options)?;
        let plan = futures::executor::block_on(bind(&state, &query(sql), bench.cluster.as_ref(), declared))?;
        parameter_types(&plan)
    };
    let found = types("SELECT $2 FROM t WHERE k = $1", &[]).unwrap();
    assert_eq!(found, [Some(DataType::Int64), None]);
    let found = types("SELECT $1 FROM t WHERE a < $3", &[Some(DataType::Float64)]).unwrap();
    assert_eq!(found, [Some(DataType::Float64), None, Some(DataType::Int32)]);
    assert_eq!(types("SELECT $99999999", &[]).unwrap_err().code, "42P02");
}

#[test]
fn columns_are_named_as_postgresql_names_them() {
    let named = |sql: &str| {
        let planned = Bench::new(cluster(1)).plan(sql).unwrap();
        let schema = names::result_schema(&query(sql), &planned.schema);
        schema.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        named("SELECT count(*), sum(v), a + 1, t.b, k::text, 'x' FROM t GROUP BY a, b, k"),
        ["count", "sum", "?column?", "b", "k", "?column?"]
    );
    assert_eq!(
        named("SELECT max(k), *, -k FROM ref1 GROUP BY k, name"),
        ["max", "k", "name", "?column?"]
    );
    assert_eq!(
        named("SELECT CASE WHEN a > 1 THEN 1 END, extract(year FROM now()), \"k\" AS \"K\" FROM t"),
        ["case", "extract", "K"]
    );
    assert_eq!(named("(SELECT upper(b) FROM t) UNION ALL SELECT 'x'"), ["upper"]);
}

/// Prints what EXPLAIN prints; `TESSERA_REWRITE=1` writes the file anew.
#[test]
fn plans_match_the_golden_file() {
    let path = "src/testscripts/plans.txt";
    let golden = std::fs::read_to_string(path).unwrap();
    let queries = golden
        .split("\n\n")
        .filter_map(|case| case.lines().next())
        .filter(|line| !line.is_empty());
    let bench = Bench::new(cluster(3));
    let print = |sql: &str| format!("{sql}\n{}\n", bench.plan(sql).unwrap().explain.join("\n"));
    let printed = queries.map(print).collect::<Vec<_>>().join("\n");
    if std::env::var_os("TESSERA_REWRITE").is_some() {
        std::fs::write(path, &printed).unwrap();
    }
    assert_eq!(printed, golden, "run with TESSERA_REWRITE=1 to accept");
}

#[test]
fn strategies() {
    let strategy = |sql: &str| Bench::new(cluster(3)).plan(sql).unwrap().strategy;
    assert_eq!(strategy("SELECT 1"), Strategy::Router);
    assert_eq!(strategy("SELECT count(*) FROM ref1"), Strategy::SingleNode);
    assert_eq!(strategy("SELECT sum(w) FROM u WHERE k = 7"), Strategy::SingleNode);
    assert_eq!(strategy("SELECT * FROM u"), Strategy::Gather);
    assert_eq!(strategy("SELECT sum(w) FROM u"), Strategy::Gather);
}

#[test]
fn exchanges_cut_stages_with_a_task_on_every_node() {
    let bench = |mode| Bench::new(cluster(3)).exchanging(mode);
    let sql = "SELECT t.k, u.k FROM t JOIN u ON t.a = u.x";
    let planned = bench(DistributedMode::On).plan(sql).unwrap();
    assert_eq!(planned.strategy, Strategy::Exchange);
    let text = planned.explain.join("\n");
    assert!(
        text.contains("tasks=3") && text.contains("t2: ShardLocalExec: nodes=1"),
        "{text}"
    );
    // Little to gather: not worth a stage.
    assert_eq!(
        bench(DistributedMode::Auto).plan(sql).unwrap().strategy,
        Strategy::Gather
    );
    // Nothing to exchange with.
    let one = Bench::new(cluster(1))
        .exchanging(DistributedMode::On)
        .plan("SELECT sum(w) FROM u")
        .unwrap();
    assert_ne!(one.strategy, Strategy::Exchange);
}

#[test]
fn what_cannot_travel_is_gathered_and_says_so() {
    let bench = Bench::new(cluster(3)).exchanging(DistributedMode::On);
    let joins: String = (1..40)
        .map(|i| format!(" JOIN t a{i} ON a{}.a = a{i}.k", i - 1))
        .collect();
    let planned = bench.plan(&format!("SELECT count(*) FROM t a0{joins}")).unwrap();
    let text = planned.explain.join("\n");
    assert_eq!(planned.strategy, Strategy::Gather, "{text}");
    assert!(text.contains("Gathered: it is nested too deeply"), "{text}");
}

#[test]
fn instants_are_shown_in_the_sessions_zone() {
    use datafusion::arrow::array::{ArrayRef, Int64Array, TimestampMicrosecondArray};
    use tessera_proto::sql_type::SqlType::{Int8, TimestampTz};
    let micros = |text: &str| chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros();
    let at = [micros("2024-01-31T23:30:00Z"), micros("2024-07-01T12:00:00Z")];
    let rows: Vec<ArrayRef> = vec![
        std::sync::Arc::new(Int64Array::from(vec![1, 2])),
        std::sync::Arc::new(TimestampMicrosecondArray::from(at.to_vec()).with_timezone("+00:00")),
    ];
    let events = cluster(3).table("events", 9, &[("id!", Int8), ("at", TimestampTz)], &[1], rows);
    let mut bench = Bench::new(events);
    let sql = "SELECT id, date_trunc('month', at)::date, extract(hour FROM at)::int FROM events ORDER BY id";
    assert_eq!(bench.rows(sql).unwrap(), ["1|2024-01-01|23", "2|2024-07-01|12"]);
    bench.options.settings.insert("timezone".into(), "Europe/Berlin".into());
    assert_eq!(bench.rows(sql).unwrap(), ["1|2024-02-01|0", "2|2024-07-01|14"]);
    // Above the leaf, on another node: the zone travels with the stage.
    bench.options.distributed = DistributedMode::On;
    let sql = "SELECT date_trunc('month', at)::date, count(*) FROM events GROUP BY 1 ORDER BY 1";
    let planned = bench.plan(sql).unwrap();
    assert_eq!(planned.strategy, Strategy::Exchange, "{}", planned.explain.join("\n"));
    assert_eq!(bench.rows(sql).unwrap(), ["2024-02-01|1", "2024-07-01|1"]);
    let sql = "SELECT id FROM events WHERE at = '2024-02-01 00:30:00'::timestamptz";
    assert_eq!(bench.rows(sql).unwrap(), ["1"]);
    assert_eq!(bench.plan(sql).unwrap().fragments[0].shards, 1);
    bench.options.settings.insert("timezone".into(), "Nowhere/Land".into());
    assert_eq!(bench.plan(sql).unwrap_err().code, "22023");
}

#[test]
fn only_what_is_above_a_leaf_asks_for_its_statistics() {
    let bytes = |sql: &str| Bench::new(cluster(3)).plan(sql).unwrap().gather_bytes;
    assert_eq!(bytes("SELECT * FROM u"), None);
    assert!(bytes("SELECT * FROM u ORDER BY w").is_some_and(|bytes| bytes > 0));
}

#[test]
fn a_leaf_of_unknown_size_does_not_hide_another() {
    assert_eq!(crate::sum_of_known([Some(7), None, Some(5)]), Some(12));
    assert_eq!(crate::sum_of_known([None, None]), None);
}

#[test]
fn constants_have_postgresqls_types() {
    use DataType::{Decimal128, Int32, Int64};
    let bench = Bench::new(cluster(1));
    let types = |sql: &str| -> Vec<DataType> {
        let planned = bench.plan(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        planned.schema.fields().iter().map(|f| f.data_type().clone()).collect()
    };
    assert_eq!(
        types("SELECT 1, -2147483648, 2147483648, 9223372036854775808"),
        [Int32, Int32, Int64, Decimal128(19, 0)]
    );
    assert_eq!(types("SELECT 1 + 1, 1 + 2147483648"), [Int32, Int64]);
    assert_eq!(types("SELECT x FROM (VALUES (1), (2)) v(x)"), [Int32]);
    assert_eq!(types("SELECT * FROM generate_series(1, 2)"), [Int32]);
    assert_eq!(types("SELECT * FROM generate_series(1, 2147483648)"), [Int64]);
    assert_eq!(
        types("WITH RECURSIVE r(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT n FROM r"),
        [Int32]
    );
    // Positions stay positions.
    assert_eq!(
        bench.rows("SELECT a FROM (VALUES (2), (1)) v(a) ORDER BY 1").unwrap(),
        ["1", "2"]
    );
    assert_eq!(
        bench
            .rows("SELECT a, count(*) FROM (VALUES (2), (2)) v(a) GROUP BY 1")
            .unwrap(),
        ["2|2"]
    );
}

#[test]
fn names_may_be_there_twice() {
    let bench = Bench::new(cluster(3));
    for (sql, rows) in [
        ("SELECT 1::text, 1::boolean, 1, 1", "1|true|1|1"),
        ("SELECT count(*) FROM (SELECT 1, 1, 2::text, 2::bigint) s", "1"),
        (
            "SELECT sum(x::int), sum(x::bigint), every(x > 0), bool_and(x > 0) FROM (VALUES (1), (2)) v(x)",
            "3|3|true|true",
        ),
        (
            "SELECT s.max, s.min FROM (SELECT max(x), min(x) FROM (VALUES (1), (2)) v(x)) s",
            "2|1",
        ),
        ("SELECT substr('abc', 2), substring('abc' FROM 2)", "bc|bc"),
    ] {
        assert_eq!(
            bench.rows(sql).unwrap_or_else(|e| panic!("{sql}: {e}")),
            [rows],
            "{sql}"
        );
    }
    let shown = |sql: &str| names::result_names(&query(sql), bench.plan(sql).unwrap().schema.as_ref());
    assert_eq!(
        shown("SELECT * FROM (SELECT 1, 1, k, k FROM t) s"),
        ["?column?", "?column?", "k", "k"]
    );
}

#[test]
fn ties_follow_the_last_row_wanted() {
    let bench = Bench::new(cluster(3));
    let rows = |sql: &str| bench.rows(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    let v = "FROM (VALUES (1), (2), (2), (3)) v(x)";
    assert_eq!(
        rows(&format!("SELECT x {v} ORDER BY x FETCH FIRST 2 ROWS WITH TIES")),
        ["1", "2", "2"]
    );
    assert_eq!(
        rows(&format!("SELECT x {v} ORDER BY x OFFSET 2 FETCH FIRST ROW WITH TIES")),
        ["2"]
    );
    assert_eq!(
        rows(&format!("SELECT -x {v} ORDER BY x DESC FETCH FIRST 1 ROW WITH TIES")),
        ["-3"]
    );
    assert_eq!(
        rows(&format!("SELECT x {v} ORDER BY x FETCH FIRST 0 ROWS WITH TIES")),
        [""; 0]
    );
    fails("SELECT 1 FETCH FIRST ROW WITH TIES", "42601", "without ORDER BY", "");
    fails("SELECT k FROM t LIMIT -1", "2201W", "LIMIT must not be negative", "");
    fails("SELECT k FROM t OFFSET -1", "2201X", "OFFSET must not be negative", "");
}

#[test]
fn rows_as_values_and_printed_trees_are_refused_in_words() {
    fails("SELECT t FROM t", "0A000", "a whole row as a value (\"t\")", "t.*");
    fails("SELECT xmin FROM t", "0A000", "system column \"xmin\"", "primary key");
    for sql in [
        "SELECT k FROM t WHERE b IS NORMALIZED",
        "SELECT (b).x.y FROM t",
        "SELECT t.b.c.d.e FROM t",
    ] {
        let (code, message, _) = error(sql);
        assert!(
            !message.contains("Ident") && !message.contains("Span"),
            "{sql}: {code} {message}"
        );
    }
}
