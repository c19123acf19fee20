//! COPY ... TO: what PostgreSQL 15 writes for the same rows, and files that come back as they went.

use crate::cluster::{self, code, value};
use futures::TryStreamExt;
use tokio_postgres::Client;

async fn copied(client: &Client, sql: &str) -> String {
    let stream = client.copy_out(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let lines: Vec<bytes::Bytes> = stream.try_collect().await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    String::from_utf8(lines.concat()).unwrap()
}

/// Lines in any order: shards answer as they please. The first stays where it is with `header`.
fn sorted(text: &str, header: bool) -> Vec<&str> {
    let mut lines: Vec<&str> = text.split('\n').collect();
    lines[usize::from(header)..].sort_unstable();
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_are_those_of_postgresql() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster::embedded(dir.path(), 3).await;
    let client = cluster::connect(&cluster.url()).await;
    for sql in [
        "CREATE TABLE c (k int, t text, b bytea, n numeric(10,2), at timestamptz, p char(4)) SHARD BY HASH(k) SHARDS 4",
        "INSERT INTO c VALUES (1, 'plain', '\\x00ff', 1.5, '2024-02-29 12:00:00+02', 'ab'),
         (2, E'tab\\there, \"quoted\"\\nline \\\\ end', '\\x', '-0.05', NULL, ''), (3, '', NULL, NULL, 'infinity', NULL),
         (4, '\\N', NULL, 7, NULL, 'x,y')",
        "CREATE VIEW v AS SELECT k FROM c",
    ] {
        client.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }
    // Written by PostgreSQL 15 for these rows.
    let text = "1\tplain\t\\\\x00ff\t1.50\t2024-02-29 10:00:00+00\tab  \n\
                2\ttab\\there, \"quoted\"\\nline \\\\ end\t\\\\x\t-0.05\t\\N\t    \n\
                3\t\t\\N\t\\N\tinfinity\t\\N\n\
                4\t\\\\N\t\\N\t7.00\t\\N\tx,y \n";
    assert_eq!(
        sorted(&copied(&client, "COPY c TO STDOUT").await, false),
        sorted(text, false)
    );
    let csv = "k,t,b,n,at,p\n1,plain,\\x00ff,1.50,2024-02-29 10:00:00+00,ab  \n\
               2,\"tab\there, \"\"quoted\"\"\nline \\ end\",\\x,-0.05,,    \n3,\"\",,,infinity,\n4,\\N,,7.00,,\"x,y \"\n";
    let got = copied(&client, "COPY c TO STDOUT (FORMAT csv, HEADER)").await;
    assert_eq!(sorted(&got, true), sorted(csv, true));
    let odd = "'plain';ab  \n'tab\there, \"quoted\"\nline \\\\ end';    \n'';nil\n'\\\\N';x,y \n";
    let options = "(FORMAT csv, DELIMITER ';', QUOTE '''', ESCAPE '\\', NULL 'nil', FORCE_QUOTE (t))";
    let got = copied(&client, &format!("COPY c (t, p) TO STDOUT {options}")).await;
    assert_eq!(sorted(&got, false), sorted(odd, false));
    for (sql, expected) in [
        (
            "COPY (SELECT t FROM c WHERE k > 2 ORDER BY k) TO STDOUT CSV",
            "\"\"\n\\N\n",
        ),
        ("COPY (SELECT '\\.') TO STDOUT CSV", "\"\\.\"\n"),
        (
            "COPY (SELECT k, t FROM c WHERE k = 1) TO STDOUT (HEADER)",
            "k\tt\n1\tplain\n",
        ),
        ("COPY (SELECT 1 AS a WHERE false) TO STDOUT CSV HEADER", "a\n"),
    ] {
        assert_eq!(copied(&client, sql).await, expected, "{sql}");
    }
    // The tag, in the simple protocol as psql sends it, and the session goes on.
    for (sql, sqlstate) in [
        ("COPY v TO STDOUT", "42809"),
        ("COPY nothing TO STDOUT", "42P01"),
        ("COPY c (nothing) TO STDOUT", "42703"),
        ("COPY (SELECT 1 / (k - k) FROM c) TO STDOUT", "22012"),
        ("COPY c TO STDOUT (FORMAT parquet)", "0A000"),
        ("COPY c TO STDOUT (FORMAT csv, FORCE_QUOTE (nothing))", "42P10"),
        ("COPY c TO '../out'", "42501"),
        ("COPY c TO '/etc/out'", "42501"),
        ("COPY c TO 'missing/out'", "58P01"),
    ] {
        assert_eq!(code(&client, sql).await, sqlstate, "{sql}");
    }
    cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_come_back_as_they_went() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster::embedded(dir.path(), 2).await;
    let client = cluster::connect(&cluster.url()).await;
    let columns = "(k bigint PRIMARY KEY, t text, n numeric(12,3), d date, at timestamptz, f double precision)";
    for sql in [
        &format!("CREATE TABLE a {columns}"),
        "INSERT INTO a SELECT i, CASE WHEN i % 3 = 0 THEN NULL ELSE 'row \"' || i || '\"' END, i * 0.125, date '2024-01-01' + i::int % 300,
         timestamptz '2024-01-01' , i / 7.0 FROM generate_series(1, 30000) AS s(i)",
    ] {
        client.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }
    let digest = "SELECT count(*) || ' ' || count(t) || ' ' || sum(n) || ' ' || min(d) || ' ' || max(at) || ' ' || sum(length(t)) || ' ' || round(sum(f)) FROM";
    let expected = value(&client, &format!("{digest} a")).await;
    for format in ["csv", "text", "parquet"] {
        // Twice: a file that is there is replaced.
        for _ in 0..2 {
            let sql = format!("COPY a TO 'a.{format}' (FORMAT {format})");
            client
                .simple_query(&sql)
                .await
                .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        }
        for sql in [
            format!("CREATE TABLE {format}_copy {columns}"),
            format!("COPY {format}_copy FROM 'a.{format}' (FORMAT {format})"),
        ] {
            client
                .simple_query(&sql)
                .await
                .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        }
        assert_eq!(
            value(&client, &format!("{digest} {format}_copy")).await,
            expected,
            "{format}"
        );
        let both = format!(
            "SELECT count(*) FROM a JOIN {format}_copy b ON a.k = b.k AND a.n = b.n AND a.f = b.f AND a.t IS NOT DISTINCT FROM b.t"
        );
        assert_eq!(value(&client, &both).await, "30000", "{format}");
    }
    // What fails leaves no file.
    assert_eq!(
        code(
            &client,
            "COPY (SELECT 1 / (k - 20000) FROM a) TO 'broken.csv' (FORMAT csv)"
        )
        .await,
        "22012"
    );
    assert_eq!(
        code(
            &client,
            "COPY (SELECT interval '1 day' AS i) TO 'broken.parquet' (FORMAT parquet)"
        )
        .await,
        "0A000"
    );
    let left = || {
        let names = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name());
        let names = names.filter_map(|n| n.into_string().ok());
        names
            .filter(|n| n.starts_with("broken") || n.starts_with(".copy-"))
            .count()
    };
    // The file's thread ends by itself.
    let start = std::time::Instant::now();
    while left() > 0 {
        assert!(start.elapsed() < cluster::PATIENCE, "a failed COPY left a file");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    cluster.shutdown().await.unwrap();
}
