//! The dialect, example by example: text on the left, what it means on the right.
//!
//! `check` prints a statement in one line, so that an example is one line too. Broken texts are in `robustness.rs`.

mod robustness;

use crate::*;

/// One line for a statement: enough to tell right from wrong.
fn print(statement: &Statement) -> String {
    match statement {
        Statement::Query(query) => format!("query {query}"),
        Statement::Explain {
            analyze,
            verbose,
            format,
            query,
        } => {
            format!("explain analyze={analyze} verbose={verbose} {format:?} {query}")
        }
        Statement::CreateSchema { name, if_not_exists } => format!("schema {name} if_not_exists={if_not_exists}"),
        Statement::CreateTable(table) => print_table(table),
        Statement::CreateTableAs(table) => print_table_as(table),
        Statement::CreateView {
            name,
            columns,
            query_text,
            or_replace,
            ..
        } => {
            format!("view {name} {columns:?} or_replace={or_replace} as [{query_text}]")
        }
        Statement::DropTable {
            names,
            if_exists,
            cascade,
        } => print_drop("table", names, *if_exists, *cascade),
        Statement::DropView {
            names,
            if_exists,
            cascade,
        } => print_drop("view", names, *if_exists, *cascade),
        Statement::DropSchema {
            name,
            if_exists,
            cascade,
        } => {
            format!("drop schema {name} if_exists={if_exists} cascade={cascade}")
        }
        Statement::Insert(insert) => {
            let target = print_target(&insert.table, insert.alias.as_ref());
            let returning = print_returning(insert.returning.as_ref());
            format!("insert {target} {:?} {}{returning}", insert.columns, insert.source)
        }
        Statement::Update(update) => print_update(update),
        Statement::Delete(delete) => {
            let target = print_target(&delete.table, delete.alias.as_ref());
            let using = print_list(" using ", &delete.using);
            let selection = print_list(" where ", delete.selection.as_slice());
            format!(
                "delete {target}{using}{selection}{}",
                print_returning(delete.returning.as_ref())
            )
        }
        Statement::CopyFrom(copy) => print_copy(copy),
        Statement::CopyTo(copy) => {
            let (rows, options) = (&copy.source, &copy.options);
            let rows = match rows {
                CopyRows::Table { name, columns } => format!("{name} {columns:?}"),
                CopyRows::Query(query) => format!("({query})"),
            };
            let force = &copy.force_quote;
            format!(
                "copy {rows} to {:?} {:?} header={} {force:?}",
                copy.target, options.format, options.header
            )
        }
        Statement::Set { local, name, value } => format!("set local={local} {name} = {value:?}"),
        Statement::Show { name } => format!("show {name}"),
        Statement::Reset { name } => format!("reset {name:?}"),
        Statement::Discard => "discard".to_owned(),
        Statement::Begin(modes) => format!("begin {:?} {:?}", modes.isolation, modes.read_only),
        Statement::Commit { chain } => format!("commit chain={chain}"),
        Statement::Rollback { chain } => format!("rollback chain={chain}"),
        Statement::Savepoint { name } => format!("savepoint {name}"),
        Statement::Release { name } => format!("release {name}"),
        Statement::RollbackTo { name } => format!("rollback to {name}"),
        Statement::VerifyTable { name } => format!("verify {name}"),
        Statement::Analyze { tables } => {
            let tables = tables.iter().map(|t| format!("{} {:?}", t.name, t.columns));
            format!("analyze {}", tables.collect::<Vec<_>>().join(", "))
        }
        Statement::AlterShard { shard, table, action } => format!("shard {shard} of {table}: {action:?}"),
        Statement::Unsupported(unsupported) => {
            assert!(!unsupported.hint.is_empty(), "every refusal has a hint");
            format!("unsupported {}", unsupported.what)
        }
    }
}

fn print_target(table: &ObjectName, alias: Option<&String>) -> String {
    alias.map_or_else(|| table.to_string(), |alias| format!("{table} as {alias}"))
}

fn print_update(update: &Update) -> String {
    let assignments = update.assignments.iter().map(|assignment| {
        let default = if is_default(&assignment.value) {
            " (default)"
        } else {
            ""
        };
        format!("{} = {}{default}", assignment.column, assignment.value)
    });
    format!(
        "update {} set {}{}{}{}",
        print_target(&update.table, update.alias.as_ref()),
        assignments.collect::<Vec<_>>().join(" & "),
        print_list(" from ", &update.from),
        print_list(" where ", update.selection.as_slice()),
        print_returning(update.returning.as_ref()),
    )
}

fn print_returning(returning: Option<&Returning>) -> String {
    returning.map_or_else(String::new, |returning| {
        print_list(" returning ", &returning.projection)
    })
}

/// The parts behind their word, or nothing.
fn print_list(word: &str, parts: &[impl ToString]) -> String {
    let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
    match parts.is_empty() {
        true => String::new(),
        false => format!("{word}{}", parts.join(" & ")),
    }
}

fn print_drop(kind: &str, names: &[ObjectName], if_exists: bool, cascade: bool) -> String {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    format!(
        "drop {kind} {} if_exists={if_exists} cascade={cascade}",
        names.join(" ")
    )
}

fn print_table(table: &CreateTable) -> String {
    let columns: Vec<String> = table
        .columns
        .iter()
        .map(|column| {
            let not_null = if column.not_null { " not null" } else { "" };
            let default = column
                .default_text
                .as_ref()
                .map(|text| format!(" default [{text}]"))
                .unwrap_or_default();
            format!("{} {}{not_null}{default}", column.name, column.data_type)
        })
        .collect();
    let kind = if table.reference { "reference" } else { "table" };
    let mut line = format!("{kind} {} ({})", table.name, columns.join(", "));
    if !table.primary_key.is_empty() {
        line += &format!(" key {:?}", table.primary_key);
    }
    if let Some(sharding) = &table.sharding {
        line += &format!(" shard {:?} {:?}", sharding.columns, sharding.shards);
        if let Some(other) = &sharding.colocate_with {
            line += &format!(" with {other}");
        }
    }
    if !table.cluster_by.is_empty() {
        line += &format!(" cluster {:?}", table.cluster_by);
    }
    line
}

fn print_table_as(table: &CreateTableAs) -> String {
    let kind = if table.reference { "reference" } else { "table" };
    let sharding = table.sharding.as_ref().map(|s| (&s.columns, s.shards));
    format!(
        "{kind} {} {:?} {sharding:?} as {} data={} exists={}",
        table.name, table.columns, table.query, table.with_data, table.if_not_exists
    )
}

fn print_copy(copy: &CopyFrom) -> String {
    let options = &copy.options;
    format!(
        "copy {} {:?} {:?} {:?} delimiter={:?} null={:?} header={}/{} quote={:?} escape={:?} fnn={:?} fn={:?}",
        copy.table,
        copy.columns,
        copy.source,
        options.format,
        options.delimiter,
        options.null,
        options.header,
        options.header_match,
        options.quote,
        options.escape,
        options.force_not_null,
        options.force_null,
    )
}

#[track_caller]
fn check(sql: &str, expected: &str) {
    let printed = match parse(sql) {
        Ok(statements) => statements
            .iter()
            .map(|s| print(&s.statement))
            .collect::<Vec<_>>()
            .join(" ;; "),
        Err(error) => format!("{} {} @{}", error.sqlstate, error, error.position.unwrap_or(0)),
    };
    assert_eq!(printed, expected, "{sql}");
}

#[track_caller]
fn check_hint(sql: &str, position: usize, expected: &str) {
    let error = parse(sql).expect_err("the text is wrong");
    let hint = error.hint.unwrap_or_default();
    assert_eq!((error.position, hint.as_str()), (Some(position), expected), "{sql}");
}

#[test]
fn queries_pass_through() {
    check("", "");
    check(" -- nothing\n ; /* still */ ;", "");
    check(
        "select A, \"B\" from T where x = $1",
        "query SELECT A, \"B\" FROM T WHERE x = $1",
    );
    check("VALUES (1, 'a'), (2, NULL)", "query VALUES (1, 'a'), (2, NULL)");
    check("TABLE t", "query SELECT * FROM t");
    check(
        "(SELECT 1) UNION ALL (SELECT 2)",
        "query (SELECT 1) UNION ALL (SELECT 2)",
    );
    check(
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "query WITH x AS (SELECT 1) SELECT * FROM x",
    );
    check("SELECT 1; SELECT 'a;b';", "query SELECT 1 ;; query SELECT 'a;b'");
    check(
        "SELECT shard, shards, reference FROM verify",
        "query SELECT shard, shards, reference FROM verify",
    );
    check("SELECT 'a'\n 'b'", "query SELECT 'ab'");
}

#[test]
fn statements_keep_their_own_text() {
    let statements = parse(" SELECT 1 ; -- one\n SHOW all -- two").expect("two statements");
    let texts: Vec<&str> = statements.iter().map(|statement| statement.text.as_str()).collect();
    assert_eq!(texts, ["SELECT 1", "SHOW all"]);
}

#[test]
fn explain_takes_words_or_a_list() {
    check("EXPLAIN SELECT 1", "explain analyze=false verbose=false Text SELECT 1");
    check(
        "explain analyze verbose select 1",
        "explain analyze=true verbose=true Text SELECT 1",
    );
    check(
        "EXPLAIN (ANALYZE, VERBOSE off, FORMAT JSON) SELECT 1",
        "explain analyze=true verbose=false Json SELECT 1",
    );
    check(
        "EXPLAIN (SELECT 1)",
        "explain analyze=false verbose=false Text (SELECT 1)",
    );
    check("EXPLAIN (COSTS OFF) SELECT 1", "unsupported EXPLAIN option costs");
    check("EXPLAIN INSERT INTO t VALUES (1)", "unsupported EXPLAIN INSERT");
    check(
        "EXPLAIN (FORMAT dot) SELECT 1",
        "22023 unrecognized value for EXPLAIN option \"format\": \"dot\" @17",
    );
    check("EXPLAIN (x) SELECT 1", "42601 unrecognized EXPLAIN option \"x\" @10");
}

#[test]
fn create_table_reads_columns_keys_and_our_clauses() {
    check("CREATE TABLE t ()", "table t ()");
    check(
        "CREATE TABLE IF NOT EXISTS S.\"T\" (A int8 PRIMARY KEY, b varchar(10) NOT NULL DEFAULT 'x', c numeric(15,2))",
        "table s.T (a bigint not null, b character varying(10) not null default ['x'], c numeric(15,2)) key [\"a\"]",
    );
    check(
        "CREATE TABLE o (k bigint, l int, CONSTRAINT pk PRIMARY KEY (k, l)) SHARD BY HASH (k) SHARDS 8 COLOCATE WITH s.p",
        "table o (k bigint not null, l integer not null) key [\"k\", \"l\"] shard [\"k\"] Some(8) with s.p",
    );
    check("CREATE REFERENCE TABLE n (k int)", "reference n (k integer)");
    check(
        "CREATE TABLE c (k int, d date) CLUSTER BY (D, k) SHARD BY HASH (k)",
        "table c (k integer, d date) shard [\"k\"] None cluster [\"d\", \"k\"]",
    );
    check(
        "CREATE REFERENCE TABLE c (k int) CLUSTER BY (k)",
        "reference c (k integer) cluster [\"k\"]",
    );
    check(
        "CREATE TABLE t (a int) WITH (fillfactor=70) SHARD BY HASH(a)",
        "table t (a integer) shard [\"a\"] None",
    );
    check(
        "CREATE TABLE t (a int DEFAULT -1 NOT NULL, b timestamp DEFAULT now(), c bool DEFAULT NULL, d int DEFAULT (1 + 2) NULL)",
        "table t (a integer not null default [-1], b timestamp without time zone default [now()], \
         c boolean default [NULL], d integer default [(1 + 2)])",
    );
    check(
        "CREATE TABLE t (a int DEFAULT CASE WHEN 1 IS NULL THEN 2 END NOT NULL)",
        "table t (a integer not null default [CASE WHEN 1 IS NULL THEN 2 END])",
    );
}

#[test]
fn every_type_has_its_names() {
    let cases = [
        ("bool boolean", "boolean"),
        ("int2 smallint", "smallint"),
        ("int int4 integer pg_catalog.int4", "integer"),
        ("int8 bigint", "bigint"),
        ("real float4 float(24)", "real"),
        ("float float8 float(25) double_precision", "double precision"),
        ("numeric decimal numeric(38,10)", "numeric(38,10)"),
        ("numeric(5) dec(5,0)", "numeric(5,0)"),
        ("text", "text"),
        ("varchar character_varying", "character varying"),
        ("char(3) character(3) bpchar(3)", "character(3)"),
        ("date", "date"),
        ("time time_without_time_zone time(6)", "time without time zone"),
        ("timestamp timestamp_without_time_zone", "timestamp without time zone"),
        ("timestamptz timestamp_with_time_zone", "timestamp with time zone"),
        ("interval", "interval"),
        ("bytea", "bytea"),
        ("uuid", "uuid"),
    ];
    for (names, expected) in cases {
        for name in names.split(' ') {
            let name = name.replace('_', " ").replace("pg ", "pg_");
            check(
                &format!("CREATE TABLE t (a {name})"),
                &format!("table t (a {expected})"),
            );
        }
    }
}

#[test]
fn create_table_refuses_what_it_cannot_keep() {
    check("CREATE TABLE t (a serial)", "unsupported type serial");
    check("CREATE TABLE t (a int[])", "unsupported array type integer[]");
    check("CREATE TABLE t (a int UNIQUE)", "unsupported UNIQUE constraints");
    check("CREATE TABLE t (a int CHECK (a > 0))", "unsupported CHECK constraints");
    check(
        "CREATE TABLE t (a int REFERENCES u)",
        "unsupported FOREIGN KEY constraints",
    );
    check(
        "CREATE TABLE t (a int, FOREIGN KEY (a) REFERENCES u)",
        "unsupported FOREIGN KEY constraints",
    );
    check(
        "CREATE TABLE t (a int GENERATED ALWAYS AS IDENTITY)",
        "unsupported IDENTITY and GENERATED columns",
    );
    check("CREATE TEMP TABLE t (a int)", "unsupported CREATE TEMPORARY");
    check("CREATE TABLE t AS EXECUTE q", "unsupported CREATE TABLE AS EXECUTE");
    check(
        "CREATE TABLE t (a int) PARTITION BY HASH (a)",
        "unsupported CREATE TABLE ... PARTITION BY",
    );
    check(
        "CREATE TABLE t (a int) WITH (oids)",
        "unsupported storage parameter oids",
    );
    check("CREATE TABLE t (a timestamp(3))", "unsupported timestamp(3)");
    check(
        "CREATE TABLE t (a numeric(39))",
        "22023 numeric precision 39 must be between 1 and 38 @27",
    );
    check(
        "CREATE TABLE t (a numeric(3,4))",
        "22023 numeric scale 4 must be between 0 and precision 3 @29",
    );
    check(
        "CREATE TABLE t (a int, A int)",
        "42701 column \"a\" specified more than once @24",
    );
    check(
        "CREATE TABLE t (a int, PRIMARY KEY (b))",
        "42703 column \"b\" named in primary key does not exist @24",
    );
    check(
        "CREATE TABLE t (a int) SHARD BY HASH (b)",
        "42703 column \"b\" named in shard key does not exist @24",
    );
    check(
        "CREATE TABLE t (a int PRIMARY KEY, b int PRIMARY KEY)",
        "42P16 multiple primary keys for one table are not allowed @42",
    );
    check(
        "CREATE REFERENCE TABLE t (a int) SHARD BY HASH (a)",
        "42P16 a reference table cannot be sharded @34",
    );
    check(
        "CREATE TABLE t (a int) SHARD BY HASH (a) SHARDS 0",
        "22023 number of shards must be at least 1 @49",
    );
    check(
        "CREATE TABLE t (a int) WITH (fillfactor=5)",
        "22023 value 5 out of bounds for option \"fillfactor\" @41",
    );
    check("CREATE TABLE t (a strnig)", "42704 type \"strnig\" does not exist @19");
    check(
        "CREATE TABLE select (a int)",
        "42601 syntax error at or near \"select\" @14",
    );
    check_hint("CREATE TABLE t (a intger)", 19, "did you mean \"integer\"?");
    check_hint(
        "CREATE TABLE t (a int b int)",
        23,
        "a comma may be missing before this, or it is no constraint",
    );
    check_hint("CREATE TABLE t (a int,)", 23, "the comma before \")\" is one too many");
    check_hint(
        "CREATE TABLE t (a int",
        22,
        "the list of columns is never closed with \")\"",
    );
}

#[test]
fn create_table_as_takes_names_and_our_clauses() {
    check(
        "CREATE TABLE t AS SELECT 1 AS data",
        "table t [] None as SELECT 1 AS data data=true exists=false",
    );
    check(
        "create table if not exists s.t (a, \"B\") with (fillfactor = 80) shard by hash (a) shards 4 as \
         table u with data",
        "table s.t [\"a\", \"B\"] Some(([\"a\"], Some(4))) as SELECT * FROM u data=true exists=true",
    );
    check(
        "CREATE REFERENCE TABLE t AS WITH w AS (SELECT 1) SELECT * FROM w WITH NO DATA",
        "reference t [] None as WITH w AS (SELECT 1) SELECT * FROM w data=false exists=false",
    );
    check(
        "CREATE TABLE t SHARD BY HASH (a, a) AS SELECT 1 AS a",
        "42701 column \"a\" appears twice in shard key @16",
    );
    check(
        "CREATE TABLE t (a int) AS SELECT 1",
        "42601 syntax error at or near \"int\" @19",
    );
    check("CREATE TABLE t AS", "42601 syntax error at end of input @18");
    check(
        "CREATE TABLE t AS INSERT INTO u VALUES (1)",
        "unsupported WITH before or around INSERT, UPDATE, DELETE or MERGE",
    );
}

#[test]
fn views_schemas_and_drops() {
    check("CREATE SCHEMA IF NOT EXISTS S", "schema s if_not_exists=true");
    check("CREATE SCHEMA pg_x", "42939 unacceptable schema name \"pg_x\" @15");
    check(
        "CREATE OR REPLACE VIEW s.v (A, b) AS SELECT  1, 2 ; SELECT 3",
        "view s.v [\"a\", \"b\"] or_replace=true as [SELECT  1, 2] ;; query SELECT 3",
    );
    check(
        "CREATE VIEW v AS SELECT 1 WITH CHECK OPTION",
        "unsupported WITH CHECK OPTION",
    );
    check(
        "CREATE VIEW v AS INSERT INTO t VALUES (1)",
        "unsupported WITH before or around INSERT, UPDATE, DELETE or MERGE",
    );
    check(
        "DROP TABLE IF EXISTS a, s.b CASCADE",
        "drop table a s.b if_exists=true cascade=true",
    );
    check("DROP VIEW v RESTRICT", "drop view v if_exists=false cascade=false");
    check("DROP SCHEMA s", "drop schema s if_exists=false cascade=false");
    check("DROP INDEX i", "unsupported DROP INDEX");
    check("CREATE UNIQUE INDEX i ON t (a)", "unsupported CREATE UNIQUE INDEX");
    check_hint("CREATE TABEL t (a int)", 8, "did you mean \"TABLE\"?");
}

#[test]
fn insert_splits_target_and_source() {
    check("INSERT INTO T VALUES (1, DEFAULT)", "insert t [] VALUES (1, DEFAULT)");
    check(
        "INSERT INTO s.t (A, b) SELECT 1, 2",
        "insert s.t [\"a\", \"b\"] SELECT 1, 2",
    );
    check("INSERT INTO t (SELECT 1)", "insert t [] (SELECT 1)");
    check(
        "INSERT INTO t (a, a) VALUES (1, 2)",
        "42701 column \"a\" specified more than once @15",
    );
    check(
        "INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING",
        "unsupported INSERT ... ON CONFLICT",
    );
    check(
        "INSERT INTO t AS \"X\" VALUES (1) RETURNING a AS b, x.*",
        "insert t as X [] VALUES (1) returning a AS b & x.*",
    );
    check(
        "INSERT INTO t SELECT a AS returning, u.returning FROM u RETURNING *",
        "insert t [] SELECT a AS returning, u.returning FROM u returning *",
    );
    check(
        "INSERT INTO t VALUES (1) RETURNING",
        "42601 syntax error at end of input @35",
    );
    check(
        "INSERT INTO t RETURNING a",
        "42601 syntax error at or near \"RETURNING\" @15",
    );
    check("INSERT INTO t DEFAULT VALUES", "unsupported INSERT ... DEFAULT VALUES");
    check("INSERT INTO t VALUES (1", "42601 syntax error at end of input @24");
    check_hint(
        "INSERT INTO t VALUES (1",
        24,
        "the \"(\" at line 1, column 22 is never closed",
    );
    let statements = parse("INSERT INTO t VALUES (DEFAULT, \"default\", 1)").expect("an insert");
    let Statement::Insert(insert) = &statements[0].statement else {
        panic!("an insert")
    };
    let sqlparser::ast::SetExpr::Values(values) = &*insert.source.body else {
        panic!("values")
    };
    let defaults: Vec<bool> = values.rows[0].content.iter().map(is_default).collect();
    assert_eq!(defaults, [true, false, false]);
}

#[test]
fn update_reads_assignments_and_clauses() {
    check("UPDATE T SET A = 1", "update t set a = 1");
    check(
        "update only (S.\"T\") as X set \"B\" = default, set = \"default\", c=-1 where true",
        "update s.T as x set B = default (default) & set = \"default\" & c = -1 where true",
    );
    check("UPDATE t * x SET a = 1", "update t as x set a = 1");
    check(
        "UPDATE t SET a = b IS DISTINCT FROM ARRAY[c, x.from], d = (SELECT max(e) FROM u WHERE f) + 1 FROM u x, \
         v JOIN w ON v.a = w.a WHERE t.k = x.k RETURNING *",
        "update t set a = b IS DISTINCT FROM ARRAY[c, x.from] & d = (SELECT max(e) FROM u WHERE f) + 1 \
         from u x & v JOIN w ON v.a = w.a where t.k = x.k returning *",
    );
    check(
        "UPDATE t SET (a, B) = (1, DEFAULT), (c) = ROW(2), (d, e) = ((SELECT 1), CASE WHEN f THEN 2 END) RETURNING a AS where",
        "update t set a = 1 & b = DEFAULT (default) & c = 2 & d = (SELECT 1) & e = CASE WHEN f THEN 2 END \
         returning a AS where",
    );
}

#[test]
fn update_refuses_by_name_and_place() {
    check(
        "UPDATE t SET (a, b) = (SELECT 1, 2)",
        "unsupported UPDATE ... SET (columns) = (SELECT ...)",
    );
    check(
        "UPDATE t SET t.a = 1",
        "unsupported UPDATE ... SET with a qualified column",
    );
    check(
        "UPDATE t SET (b, a[1]) = (1, 2)",
        "unsupported UPDATE ... SET with a subscript",
    );
    check("UPDATE t SET a = 1 WHERE CURRENT OF c", "unsupported WHERE CURRENT OF");
    check("EXPLAIN ANALYZE UPDATE t SET a = 1", "unsupported EXPLAIN UPDATE");
    check(
        "UPDATE t SET a = (SELECT 1 FOR UPDATE)",
        "unsupported SELECT ... FOR UPDATE/SHARE",
    );
    check(
        "UPDATE t SET a = 1, (b, A) = (1, 2)",
        "42601 multiple assignments to same column \"a\" @25",
    );
    check(
        "UPDATE t SET (a, b) = (1, 2, 3)",
        "42601 number of columns does not match number of values @23",
    );
    for row in ["1", "(1)", "f(1)", "\"row\"(1)", "ROW(t.*)", "ROW(1) + 2"] {
        check(
            &format!("UPDATE t SET (a) = {row}"),
            "0A000 source for a multiple-column UPDATE item must be a sub-SELECT or ROW() expression @20",
        );
    }
    let many: Vec<String> = (0..1665).map(|column| format!("c{column} = 1")).collect();
    let sql = format!("UPDATE t SET {}", many.join(", "));
    assert_eq!(parse(&sql).expect_err("too many").sqlstate, "54011");
    check("UPDATE t", "42601 syntax error at end of input @9");
    check("UPDATE t SET a", "42601 syntax error at end of input @15");
    check("UPDATE t SET a = 1 +", "42601 syntax error at end of input @21");
    check(
        "UPDATE t SET a = 1 + WHERE b",
        "42601 syntax error at or near \"WHERE\" @22",
    );
    check(
        "UPDATE t SET a = 1 WHERE b LIMIT 1",
        "42601 syntax error at or near \"LIMIT\" @28",
    );
    check(
        "UPDATE t SET a = 1 FROM WHERE b",
        "42601 syntax error at or near \"WHERE\" @25",
    );
    check(
        "UPDATE t SET a = 1 RETURNING a WHERE b",
        "42601 syntax error at or near \"WHERE\" @32",
    );
    check("UPDATE t, u SET a = 1", "42601 syntax error at or near \",\" @9");
    check("UPDATE ONLY t * SET a = 1", "42601 syntax error at or near \"*\" @15");
    check_hint("UPDATE t STE a = 1", 14, "did you mean \"SET\" instead of \"ste\"?");
    check_hint(
        "UPDATE t SET a = 1, WHERE b",
        21,
        "the comma before \"WHERE\" may be one too many",
    );
    check_hint(
        "UPDATE t SET a = 1 b = 2",
        20,
        "a comma or an operator may be missing before \"b\"",
    );
    check_hint(
        "UPDATE t SET a = (1, b = 2",
        27,
        "the \"(\" at line 1, column 18 is never closed",
    );
}

#[test]
fn delete_reads_its_clauses() {
    check("DELETE FROM T", "delete t");
    check(
        "delete from only s.t as X using u, v where x.k = u.k and x.a is not distinct from v.a returning X.*, a b",
        "delete s.t as x using u & v where x.k = u.k AND x.a IS NOT DISTINCT FROM v.a returning X.* & a AS b",
    );
    check("DELETE FROM t * \"X\" RETURNING 1", "delete t as X returning 1");
    check("DELETE FROM t WHERE CURRENT OF c", "unsupported WHERE CURRENT OF");
    check("EXPLAIN DELETE FROM t", "unsupported EXPLAIN DELETE");
    check("DELETE t", "42601 syntax error at or near \"t\" @8");
    check("DELETE FROM t WHERE", "42601 syntax error at end of input @20");
    check(
        "DELETE FROM t USING WHERE a",
        "42601 syntax error at or near \"WHERE\" @21",
    );
    check("DELETE FROM t WHERE a, b", "42601 syntax error at or near \",\" @22");
    check("DELETE FROM t RETURNING a,", "42601 syntax error at end of input @27");
    check(
        "DELETE FROM t ORDER BY a",
        "42601 syntax error at or near \"ORDER\" @15",
    );
    check("DELETE FROM t LIMIT 1", "42601 syntax error at or near \"LIMIT\" @15");
    check_hint("DELET FROM t", 1, "did you mean \"DELETE\"?");
    check_hint("DELETE FORM t", 8, "expected FROM");
    check_hint(
        "DELETE FROM t WHER a = 1",
        20,
        "did you mean \"WHERE\" instead of \"wher\"?",
    );
    check_hint("DELETE FROM t AS x 1", 20, "expected USING or WHERE or RETURNING");
}

#[test]
fn copy_has_postgresqls_defaults_and_both_forms() {
    let csv = "copy t [] Stdin Csv delimiter=',' null=\"\" header=true/false quote='\"' escape='\"' fnn=[] fn=[]";
    check("COPY t FROM STDIN CSV HEADER", csv);
    check("copy t from stdin with csv header", csv);
    check("COPY t FROM STDIN WITH (FORMAT csv, HEADER)", csv);
    check("COPY t FROM STDIN (FORMAT 'csv', HEADER on)", csv);
    check(
        "COPY s.t (A, b) FROM '/f'",
        "copy s.t [\"a\", \"b\"] File(\"/f\") Text delimiter='\\t' null=\"\\\\N\" header=false/false quote='\"' escape='\"' fnn=[] fn=[]",
    );
    check(
        "COPY t (a) FROM STDIN (FORMAT csv, DELIMITER '|', NULL 'x', HEADER match, QUOTE '''', FORCE_NOT_NULL (a), FORCE_NULL (a))",
        "copy t [\"a\"] Stdin Csv delimiter='|' null=\"x\" header=true/true quote='\\'' escape='\\'' fnn=[\"a\"] fn=[\"a\"]",
    );
    check(
        "COPY t FROM STDIN DELIMITER AS ',' NULL 'n' CSV FORCE NOT NULL a, b ESCAPE '\\'",
        "copy t [] Stdin Csv delimiter=',' null=\"n\" header=false/false quote='\"' escape='\\\\' fnn=[\"a\", \"b\"] fn=[]",
    );
    check(
        "COPY t FROM 'f' (FORMAT parquet)",
        "copy t [] File(\"f\") Parquet delimiter='\\t' null=\"\\\\N\" header=false/false quote='\"' escape='\"' fnn=[] fn=[]",
    );
}

#[test]
fn copy_refuses_options_that_contradict() {
    let cases = [
        (
            "DELIMITER 'ab'",
            "0A000 COPY delimiter must be a single one-byte character @0",
        ),
        (
            "DELIMITER 'é'",
            "0A000 COPY delimiter must be a single one-byte character @0",
        ),
        ("DELIMITER 'a'", "22023 COPY delimiter cannot be \"a\" @0"),
        (
            "DELIMITER E'\\n'",
            "22023 COPY delimiter cannot be newline or carriage return @0",
        ),
        (
            "NULL E'\\n'",
            "22023 COPY null representation cannot use newline or carriage return @0",
        ),
        ("QUOTE 'x'", "0A000 COPY quote available only in CSV mode @0"),
        (
            "FORMAT csv, QUOTE ','",
            "22023 COPY delimiter and quote must be different @0",
        ),
        (
            "FORMAT csv, NULL ','",
            "0A000 COPY delimiter must not appear in the NULL specification @0",
        ),
        (
            "FORMAT csv, NULL '\"'",
            "0A000 CSV quote character must not appear in the NULL specification @0",
        ),
        ("FORMAT csv, FORMAT csv", "42601 conflicting or redundant options @36"),
        (
            "FORMAT parquet, HEADER",
            "0A000 COPY header not available in Parquet mode @0",
        ),
        (
            "FORMAT csv, FORCE_NULL (b)",
            "42P10 FORCE_NULL column \"b\" not referenced by COPY @0",
        ),
        ("FORMAT xls", "22023 COPY format \"xls\" not recognized @31"),
        ("HEADER maybe", "42601 header requires a Boolean value or \"match\" @31"),
        ("FROBNICATE", "42601 option \"frobnicate\" not recognized @24"),
        ("FORMAT binary", "unsupported COPY with the binary format"),
    ];
    for (options, expected) in cases {
        check(&format!("COPY t (a) FROM STDIN ({options})"), expected);
    }
    check("COPY t TO STDOUT", "copy t [] to Stdout Text header=false None");
    check(
        "COPY s.t (a, b) TO '/f' (FORMAT csv, HEADER, FORCE_QUOTE (b))",
        "copy s.t [\"a\", \"b\"] to File(\"/f\") Csv header=true Columns([\"b\"])",
    );
    check(
        "COPY (SELECT (1) AS x) TO STDOUT CSV FORCE QUOTE *",
        "copy (SELECT (1) AS x) to Stdout Csv header=false All",
    );
    check(
        "COPY (SELECT 1 TO STDOUT",
        "42601 syntax error at or near \"SELECT\" @7",
    );
    check("COPY t TO PROGRAM 'ls'", "unsupported COPY TO PROGRAM");
    check(
        "COPY t TO STDOUT (FORCE_QUOTE *)",
        "0A000 COPY force quote available only in CSV mode @0",
    );
    check(
        "COPY t TO STDOUT CSV FORCE NOT NULL a",
        "0A000 COPY force not null only available using COPY FROM @0",
    );
    check(
        "COPY t FROM STDIN (FORMAT csv, FORCE_QUOTE *)",
        "0A000 COPY force quote only available using COPY TO @0",
    );
    check("COPY t FROM PROGRAM 'ls'", "unsupported COPY FROM PROGRAM");
    check("COPY t FROM STDIN WHERE a > 1", "unsupported COPY ... WHERE");
    check(
        "COPY t FROM STDIN CSV HEADER, NULL ''",
        "42601 syntax error at or near \",\" @29",
    );
}

#[test]
fn settings() {
    check("SET x TO 'Y'", "set local=false x = Some(\"Y\")");
    check("SET LOCAL Work_Mem = -1", "set local=true work_mem = Some(\"-1\")");
    check("SET SESSION tessera.x = on", "set local=false tessera.x = Some(\"on\")");
    check("SET x = DEFAULT", "set local=false x = None");
    check(
        "SET search_path = \"MySchema\", public",
        "set local=false search_path = Some(\"\\\"MySchema\\\", public\")",
    );
    check("SET TIME ZONE 'UTC'", "set local=false timezone = Some(\"UTC\")");
    check("SET TIME ZONE LOCAL", "set local=false timezone = None");
    check("SET NAMES 'UTF8'", "set local=false client_encoding = Some(\"UTF8\")");
    check(
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "set local=false default_transaction_isolation = Some(\"repeatable read\")",
    );
    check(
        "SET TRANSACTION READ ONLY",
        "set local=true transaction_read_only = Some(\"on\")",
    );
    check("SET ROLE r", "unsupported SET ROLE");
    check("SET role = r", "set local=false role = Some(\"r\")");
    check("SHOW ALL", "show all");
    check("SHOW TIME ZONE", "show timezone");
    check("SHOW transaction isolation level", "show transaction_isolation");
    check("SHOW SHARDS; show nodes", "show shards ;; show nodes");
    check(
        "RESET ALL; RESET x; DISCARD ALL",
        "reset None ;; reset Some(\"x\") ;; discard",
    );
    check("SET x 1", "42601 syntax error at or near \"1\" @7");
}

#[test]
fn cluster_commands() {
    check("VERIFY TABLE s.t", "verify s.t");
    check("ANALYZE", "analyze ");
    check("analyse verbose t", "analyze t []");
    check("ANALYZE s.t (a, B), u", "analyze s.t [\"a\", \"b\"], u []");
    check("ANALYZE t,", "42601 syntax error at end of input @11");
    check("ALTER SHARD 3 OF t SWITCH LEADER", "shard 3 of t: SwitchLeader");
    check("ALTER SHARD 0 OF TABLE s.t PROMOTE", "shard 0 of s.t: Promote");
    check(
        "alter shard 1 of t force promote accept data loss",
        "shard 1 of t: ForcePromoteAcceptDataLoss",
    );
    check(
        "ALTER SHARD 5000000000 OF t PROMOTE",
        "22023 shard 5000000000 is out of range @13",
    );
    check(
        "ALTER SHARD 1 OF t FORCE PROMOTE",
        "42601 syntax error at or near \"FORCE\" @20",
    );
}

#[test]
fn transactions() {
    check("BEGIN; end", "begin None None ;; commit chain=false");
    check(
        "begin work isolation level repeatable read, read only not deferrable",
        "begin Some(\"repeatable read\") Some(true)",
    );
    check(
        "START TRANSACTION READ WRITE ISOLATION LEVEL SERIALIZABLE",
        "begin Some(\"serializable\") Some(false)",
    );
    check("COMMIT WORK AND CHAIN", "commit chain=true");
    check("ABORT TRANSACTION AND NO CHAIN", "rollback chain=false");
    check("SAVEPOINT A; RELEASE a", "savepoint a ;; release a");
    check(
        "ROLLBACK TO SAVEPOINT \"A b\"; ROLLBACK WORK TO c",
        "rollback to A b ;; rollback to c",
    );
    check("BEGIN READ ONLY,", "42601 syntax error at end of input @17");
    check("BEGIN x", "42601 syntax error at or near \"x\" @7");
    check("START", "42601 syntax error at end of input @6");
    check("COMMIT AND", "42601 syntax error at or near \"AND\" @8");
    check("COMMIT PREPARED 'x'", "unsupported COMMIT PREPARED");
}

#[test]
fn what_is_not_there_yet_is_named() {
    for sql in [
        "MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE",
        "TRUNCATE t",
        "ALTER TABLE t ADD a int",
        "GRANT ALL ON t TO u",
        "CREATE INDEX i ON t (a)",
        "DECLARE c CURSOR FOR SELECT 1",
        "FETCH c",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "LISTEN c",
        "LOCK t",
        "VACUUM",
        "CREATE SEQUENCE s",
        "CREATE FUNCTION f() RETURNS int",
        "DO $$ x $$",
        "SELECT 1 FOR UPDATE",
        "SELECT * FROM (SELECT 1 FROM t FOR SHARE) x",
        "SELECT 1 INTO t",
        "WITH x AS (INSERT INTO t VALUES (1)) SELECT 1",
        "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x",
        "WITH x AS (SELECT 1) UPDATE t SET a = 1",
        "WITH x AS (SELECT 1) DELETE FROM t USING x",
        "WITH x AS (DELETE FROM t RETURNING a) SELECT * FROM x",
        "DELETE FROM t WHERE a IN (SELECT 1 FOR SHARE)",
        "UPDATE t SET a = 1 RETURNING (SELECT 1 INTO u)",
        "INSERT INTO t SELECT 1 FOR UPDATE",
        "SELECT * FROM t TABLESAMPLE BERNOULLI (1) REPEATABLE (7)",
        "CREATE MATERIALIZED VIEW v AS SELECT 1",
    ] {
        let statements = parse(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert!(
            print(&statements[0].statement).starts_with("unsupported "),
            "{sql}: {statements:?}"
        );
    }
}

#[test]
fn errors_have_a_place_and_advice() {
    check("SELECT 1 FORM t x", "42601 syntax error at or near \"t\" @15");
    check("SELECT 1;\nSELECT (1;", "42601 syntax error at or near \";\" @20");
    check("SELECT 'é', 1 +", "42601 syntax error at end of input @16");
    check("SELECT 'abc", "42601 unterminated quoted string at or near \"'abc\" @8");
    check(
        "SELECT \"abc",
        "42601 unterminated quoted identifier at or near \"\"abc\" @8",
    );
    check("SELECT 1 /* x", "42601 unterminated /* comment at or near \"/* x\" @10");
    check(
        "SELECT $a$ x",
        "42601 unterminated dollar-quoted string at or near \"$a$ x\" @8",
    );
    check(")", "42601 syntax error at or near \")\" @1");
    check_hint("SELCT 1", 1, "did you mean \"SELECT\"?");
    check_hint("UPDTE t SET a = 1", 1, "did you mean \"UPDATE\"?");
    check_hint("SELECT a FORM t", 15, "did you mean \"FROM\" instead of \"FORM\"?");
    check_hint("SELECT a, FROM t", 11, "the comma before \"FROM\" may be one too many");
    check_hint(
        "SELECT a b c FROM t",
        12,
        "a comma or an operator may be missing before \"c\"",
    );
    check_hint("SELECT (1", 10, "the \"(\" at line 1, column 8 is never closed");
    let error = parse("SELECT 1;\n\n  SELECT FROM WHERE").expect_err("no condition");
    assert_eq!((error.line, error.column), (3, 15));
}

#[test]
fn postgresql_spellings_reach_the_planner_in_common_words() {
    check("TABLE s.t ORDER BY 1", "query SELECT * FROM s.t ORDER BY 1");
    check(
        "WITH w AS (TABLE t) TABLE w",
        "query WITH w AS (SELECT * FROM t) SELECT * FROM w",
    );
    check("SELECT 1 FROM ONLY t, ONLY (s.u) x", "query SELECT 1 FROM t, s.u x");
    check(
        "SELECT a FROM t ORDER BY a USING >, b USING <",
        "query SELECT a FROM t ORDER BY a DESC, b ASC",
    );
    check(
        "SELECT a FROM t JOIN u USING (a)",
        "query SELECT a FROM t JOIN u USING(a)",
    );
    check("SELECT a FROM t FETCH FIRST ROW ONLY", "query SELECT a FROM t LIMIT 1");
    check(
        "SELECT a FROM t OFFSET 1 ROWS FETCH NEXT (1 + $1) ROWS ONLY",
        "query SELECT a FROM t LIMIT (1 + $1) OFFSET 1 ROWS",
    );
    check(
        "SELECT a FROM t ORDER BY a FETCH FIRST 2 ROWS WITH TIES",
        "query SELECT a FROM t ORDER BY a LIMIT __tessera_ties(2)",
    );
    check(
        "SELECT 1 FROM t GROUP BY DISTINCT ROLLUP (a), ROLLUP (a)",
        "query SELECT 1 FROM t GROUP BY GROUPING SETS ((a), ())",
    );
    check("SELECT 1 FROM t GROUP BY a, ()", "query SELECT 1 FROM t GROUP BY a");
    check("SELECT 1 FROM t GROUP BY ALL a", "query SELECT 1 FROM t GROUP BY a");
    check(
        "SELECT a BETWEEN SYMMETRIC b AND c OR d",
        "query SELECT (a BETWEEN b AND c OR a BETWEEN c AND b) OR d",
    );
    check(
        "SELECT a NOT BETWEEN SYMMETRIC 2 AND 1 AND d",
        "query SELECT (a NOT BETWEEN 2 AND 1 AND a NOT BETWEEN 1 AND 2) AND d",
    );
    check("SELECT a COLLATE \"C\" < b", "query SELECT a < b");
    check("SELECT U&'!0061!!' UESCAPE '!', N'b'", "query SELECT 'a!', 'b'");
    check(
        "SELECT |/ a, @ b, (t).c FROM t",
        "query SELECT +sqrt(a), +abs(b), t.c FROM t",
    );
    check(
        "SELECT 1 FROM s.t TABLESAMPLE SYSTEM (5)",
        "query SELECT 1 FROM (SELECT * FROM s.t WHERE random() * 100 < 5) AS t",
    );
    check(
        "SELECT sum(a) OVER (ORDER BY a ROWS 1 PRECEDING EXCLUDE NO OTHERS) FROM t",
        "query SELECT sum(a) OVER (ORDER BY a ROWS 1 PRECEDING) FROM t",
    );
    check(
        "SELECT exclude, group_by FROM t",
        "query SELECT exclude, group_by FROM t",
    );
}

#[test]
fn postgresql_spellings_that_are_wrong_or_refused() {
    let code = |sql: &str| parse(sql).map(|_| ()).map_err(|error| error.sqlstate);
    assert_eq!(code("SELECT 1_000"), Err("42601"));
    assert_eq!(code("SELECT 1x"), Err("42601"));
    assert_eq!(code("SELECT 1e5x"), Err("42601"));
    assert_eq!(code("SELECT a FROM t ORDER BY a USING ="), Err("42809"));
    assert_eq!(code("SELECT a FROM t FETCH FIRST 1 ROW"), Err("42601"));
    assert_eq!(code("SELECT a FROM t FETCH FIRST 1 PERCENT ROWS ONLY"), Err("42601"));
    assert_eq!(code("SELECT a COLLATE \"de_DE\""), Err("42704"));
    assert_eq!(code("SELECT U&'!00' UESCAPE '!'"), Err("42601"));
    assert_eq!(code("SELECT 1 FROM t TABLESAMPLE SYSTEM (101)"), Err("2202H"));
    let cubes = ["CUBE (a, b, c, d, e, f, g, h, i, j, k, l)"; 2].join(", ");
    assert_eq!(code(&format!("SELECT 1 FROM t GROUP BY {cubes}")), Err("54001"));
    check("SELECT X'1F'", "unsupported a bit string (B'...' or X'...')");
    check(
        "SELECT 1 FROM t TABLESAMPLE SYSTEM (1) REPEATABLE (2)",
        "unsupported TABLESAMPLE ... REPEATABLE",
    );
    check(
        "SELECT sum(a) OVER (ROWS 1 PRECEDING EXCLUDE TIES) FROM t",
        "unsupported a window frame with EXCLUDE TIES",
    );
}
