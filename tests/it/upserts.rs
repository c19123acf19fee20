//! INSERT ... ON CONFLICT of several clients at once: nothing is lost, added twice, or refused for having come second.

use crate::cluster::{connect, embedded, until_verified, value};
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::{Client, SimpleQueryMessage};

/// Longest time anything here may take.
const PATIENCE: Duration = Duration::from_secs(120);
const CLIENTS: u64 = 8;

/// Rows that a statement says it changed; its SQLSTATE when it failed.
async fn affected(client: &Client, sql: &str) -> Result<u64, String> {
    let messages = client.simple_query(sql).await.map_err(|error| {
        let code = error.code().unwrap_or_else(|| panic!("{sql}: {error:?}"));
        code.code().to_owned()
    })?;
    let counts = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::CommandComplete(count) => Some(*count),
        _ => None,
    });
    Ok(counts.sum())
}

/// Lets clients run statements, `rounds` each, and returns the sum of what each statement gives.
async fn race(url: &str, rounds: u64, statement: impl Fn(u64, u64) -> Vec<String> + Send + Clone + 'static) -> u64 {
    let clients = (0..CLIENTS).map(|number| {
        let (url, statement) = (url.to_owned(), statement.clone());
        tokio::spawn(async move {
            let client = connect(&url).await;
            let mut sum = 0;
            for round in 0..rounds {
                let steps = statement(number, round);
                let mut done = 0;
                for step in &steps {
                    match affected(&client, step).await {
                        Ok(count) => done += count,
                        // A transaction may have to give up, which it says.
                        Err(code) if steps.len() > 1 && ["40001", "40P01"].contains(&code.as_str()) => {
                            done = 0;
                            affected(&client, "ROLLBACK").await.expect("rolls back");
                            break;
                        }
                        Err(code) => panic!("{step}: {code}"),
                    }
                }
                sum += done;
            }
            sum
        })
    });
    let clients: Vec<_> = clients.collect();
    let mut sum = 0;
    for client in clients {
        sum += timeout(PATIENCE, client).await.expect("ends").expect("works");
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn upserts_add_up() {
    const ROUNDS: u64 = 15;
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let (url, admin) = (cluster.url(), connect(&cluster.url()).await);
    let created = admin
        .simple_query("CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL) SHARD BY HASH (id) SHARDS 6")
        .await;
    created.expect("created");
    // One key, which nobody has inserted yet.
    let one = |_, _| vec!["INSERT INTO t VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET n = t.n + 1".to_owned()];
    assert_eq!(race(&url, ROUNDS, one).await, CLIENTS * ROUNDS);
    let total = (CLIENTS * ROUNDS).to_string();
    assert_eq!(value(&admin, "SELECT n FROM t WHERE id = 1").await, total);
    // Keys of several shards in one statement, in another order for each client, new ones in each round.
    let several = |client: u64, round: u64| {
        let mut keys = [100 + round, 200 + round, 300, 301];
        keys.rotate_left(client as usize % 4);
        let rows = keys.map(|key| format!("({key}, 1)")).join(", ");
        vec![format!(
            "INSERT INTO t VALUES {rows} ON CONFLICT (id) DO UPDATE SET n = t.n + excluded.n"
        )]
    };
    assert_eq!(race(&url, ROUNDS, several).await, 4 * CLIENTS * ROUNDS);
    let sum = value(&admin, "SELECT sum(n) FROM t WHERE id >= 100").await;
    assert_eq!(sum, (4 * CLIENTS * ROUNDS).to_string());
    assert_eq!(
        value(
            &admin,
            "SELECT min(n) || ' ' || max(n) FROM t WHERE id < 300 AND id >= 100"
        )
        .await,
        format!("{CLIENTS} {CLIENTS}")
    );
    // In transactions of both levels; what was acknowledged is there.
    let transaction = |client: u64, round: u64| {
        let level = ["READ COMMITTED", "REPEATABLE READ"][(client % 2) as usize];
        let upsert = |key: u64| format!("INSERT INTO t VALUES ({key}, 1) ON CONFLICT (id) DO UPDATE SET n = t.n + 1");
        vec![
            format!("BEGIN ISOLATION LEVEL {level}"),
            upsert(1_000 + round),
            upsert(2_000),
            "COMMIT".to_owned(),
        ]
    };
    let acknowledged = race(&url, ROUNDS, transaction).await;
    assert!(acknowledged >= 2 * ROUNDS, "{acknowledged} rows");
    let sum = value(&admin, "SELECT sum(n) FROM t WHERE id >= 1000").await;
    assert_eq!(sum, acknowledged.to_string());
    until_verified(&admin, "t", 6, 2).await;
    drop(admin);
    cluster.shutdown().await.expect("stops");
}

/// Every key is added once, by whoever comes first, and nobody fails.
#[tokio::test(flavor = "multi_thread")]
async fn of_racing_clients_one_adds_each_key() {
    const ROUNDS: u64 = 10;
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let (url, admin) = (cluster.url(), connect(&cluster.url()).await);
    let created = admin
        .simple_query("CREATE TABLE t (id bigint PRIMARY KEY, who bigint NOT NULL) SHARD BY HASH (id) SHARDS 6")
        .await;
    created.expect("created");
    let insert = |client: u64, round: u64| {
        let first = round * 20;
        let query = format!("SELECT {first} + g, {client} FROM generate_series(0, 19) AS s (g)");
        vec![format!("INSERT INTO t {query} ON CONFLICT DO NOTHING")]
    };
    assert_eq!(race(&url, ROUNDS, insert).await, 20 * ROUNDS);
    assert_eq!(
        value(&admin, "SELECT count(*) || ' ' || count(DISTINCT id) FROM t").await,
        format!("{0} {0}", 20 * ROUNDS)
    );
    until_verified(&admin, "t", 6, 2).await;
    drop(admin);
    cluster.shutdown().await.expect("stops");
}
