//! What users get wrong, the SQLSTATE they see, and that the session goes on afterwards.

use crate::cluster::{self, code, value};

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_right_sqlstate() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = cluster::embedded(dir.path(), 2).await;
    let client = cluster::connect(&cluster.url()).await;
    client
        .simple_query("CREATE TABLE orders (id bigint PRIMARY KEY, item varchar(5) NOT NULL, price numeric(6,2))")
        .await
        .expect("created");
    client
        .simple_query("INSERT INTO orders VALUES (1, 'a', 1.50)")
        .await
        .expect("inserted");
    for (sql, expected) in [
        ("SELEC 1", "42601"),
        ("SELECT * FROM nowhere", "42P01"),
        ("SELECT prize FROM orders", "42703"),
        ("SELECT no_such_function(1)", "42883"),
        ("CREATE TABLE orders (id bigint)", "42P07"),
        ("CREATE TABLE f (x float8 PRIMARY KEY)", "0A000"),
        ("CREATE TABLE f (x nosuchtype)", "42704"),
        ("INSERT INTO orders VALUES (1, 'b', 2)", "23505"),
        ("INSERT INTO orders VALUES (2, 'b', 2), (2, 'c', 3)", "23505"),
        ("INSERT INTO orders VALUES (3, NULL, 2)", "23502"),
        ("INSERT INTO orders VALUES (4, 'too long', 2)", "22001"),
        ("INSERT INTO orders VALUES (5, 'b', 123456)", "22003"),
        ("INSERT INTO orders VALUES ('x', 'b', 1)", "22P02"),
        ("UPDATE orders SET prize = 1", "42703"),
        ("UPDATE orders SET price = 123456", "22003"),
        ("DELETE FROM nowhere", "42P01"),
        ("LOCK TABLE orders", "0A000"),
        ("SELECT * FROM orders FOR UPDATE", "0A000"),
        ("CREATE TABLE s (id serial)", "0A000"),
        ("DROP TABLE nowhere", "42P01"),
        ("SET no_such_setting = 1", "42704"),
        ("COPY orders FROM '/etc/passwd'", "42501"),
    ] {
        assert_eq!(code(&client, sql).await, expected, "{sql}");
    }
    assert_eq!(value(&client, "SELECT count(*) FROM orders").await, "1");
    let error = client.simple_query("SELECT * FROM ordesr").await.expect_err("unknown");
    let db = error.as_db_error().expect("a server error");
    assert!(db.hint().unwrap_or("").contains("orders"), "{db:?}");
    drop(client);
    cluster.shutdown().await.expect("stops");
}

/// Of two racing INSERTs of one key exactly one wins.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_racing_inserts_wins() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = cluster::embedded(dir.path(), 3).await;
    let (a, b) = (
        cluster::connect(&cluster.url()).await,
        cluster::connect(&cluster.url()).await,
    );
    a.simple_query("CREATE TABLE r (k bigint PRIMARY KEY, who text)")
        .await
        .expect("created");
    for k in 0..30 {
        // Many-shard statements that overlap in one key, so that the race goes through prepare.
        let (left, right) = (
            format!(
                "INSERT INTO r VALUES ({k}, 'a'), ({}, 'a'), ({}, 'a')",
                1000 + k,
                2000 + k
            ),
            format!(
                "INSERT INTO r VALUES ({}, 'b'), ({k}, 'b'), ({}, 'b')",
                3000 + k,
                4000 + k
            ),
        );
        let (left, right) = tokio::join!(a.simple_query(&left), b.simple_query(&right));
        assert!(left.is_ok() != right.is_ok(), "key {k}: {left:?} {right:?}");
        let error = left.err().or(right.err()).expect("one failed");
        assert_eq!(error.code().map(|c| c.code()), Some("23505"));
    }
    assert_eq!(
        value(&a, "SELECT count(*) || ' ' || count(DISTINCT k) FROM r").await,
        "90 90"
    );
    drop((a, b));
    cluster.shutdown().await.expect("stops");
}
