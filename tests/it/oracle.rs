//! Single-process DataFusion over the same rows, and one spelling of answers on both sides.
//!
//! ```text
//!   CREATE TABLE, INSERT  --> Oracle (DataFusion, 2 partitions)  --> rows --+
//!                         --> cluster (PostgreSQL wire)          --> rows --+--> normal() --> compared as lines
//! ```

use crate::cluster;
use datafusion::arrow::array::Array;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::error::DataFusionError;
use datafusion::prelude::{SessionConfig, SessionContext};
use tokio_postgres::Client;

/// Rows in this order, or in any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Any,
    Total,
}

/// A table both sides have.
pub struct Table {
    pub name: String,
    /// Column definitions, comma separated.
    pub columns: &'static str,
    /// The SHARD BY clause, or `REFERENCE`.
    pub place: String,
    /// Rows as SQL tuples.
    pub rows: Vec<String>,
}

/// Creates and fills the tables on a cluster.
pub async fn fill(client: &Client, tables: &[Table]) {
    for Table {
        name,
        columns,
        place,
        rows,
    } in tables
    {
        let create = match place.as_str() {
            "REFERENCE" => format!("CREATE REFERENCE TABLE {name} ({columns})"),
            place => format!("CREATE TABLE {name} ({columns}) {place}"),
        };
        let run = async |sql: String| {
            client
                .simple_query(&sql)
                .await
                .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        };
        run(create).await;
        if !rows.is_empty() {
            run(format!("INSERT INTO {name} VALUES {}", rows.join(", "))).await;
        }
    }
}

/// DataFusion alone, with the same rows.
pub async fn datafusion(tables: &[Table]) -> SessionContext {
    let config = SessionConfig::new()
        .with_target_partitions(2)
        .set_bool("datafusion.sql_parser.parse_float_as_decimal", true)
        .set_str("datafusion.sql_parser.dialect", "postgresql");
    let context = SessionContext::new_with_config(config);
    // Ours that DataFusion lacks: here over rows in one place.
    for function in tessera_proto::functions::aggregates() {
        context.register_udaf(function.as_ref().clone());
    }
    let run = async |sql: String| {
        let frame = context.sql(&sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        frame.collect().await.unwrap_or_else(|e| panic!("{sql}: {e}"))
    };
    for Table {
        name, columns, rows, ..
    } in tables
    {
        run(format!("CREATE TABLE {name} ({columns})")).await;
        if !rows.is_empty() {
            run(format!("INSERT INTO {name} VALUES {}", rows.join(", "))).await;
        }
    }
    context
}

/// Rows as lines, sorted unless their order matters.
fn lines(mut rows: Vec<String>, order: Order) -> Vec<String> {
    if order == Order::Any {
        rows.sort();
    }
    rows
}

/// One spelling for equal values: `true` is `t`, 1.50 is 1.5.
fn normal(value: Option<&str>) -> String {
    match value {
        None => "NULL".into(),
        Some("true") => "t".into(),
        Some("false") => "f".into(),
        Some(text) => match text.parse::<f64>() {
            // No minus in front of what rounds to nothing.
            Ok(number) => format!("{:.9}", number + 0.0).replace("-0.000000000", "0.000000000"),
            Err(_) => text.to_owned(),
        },
    }
}

/// The oracle's rows.
pub async fn expected(context: &SessionContext, sql: &str, order: Order) -> Result<Vec<String>, DataFusionError> {
    let batches = context.sql(sql).await?.collect().await?;
    let options = FormatOptions::default();
    let mut rows = vec![];
    for batch in &batches {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|c| (c, ArrayFormatter::try_new(c, &options).expect("shown")))
            .collect();
        rows.extend((0..batch.num_rows()).map(|row| {
            let values = columns
                .iter()
                .map(|(c, f)| normal(c.is_valid(row).then(|| f.value(row).to_string()).as_deref()));
            values.collect::<Vec<_>>().join(" ")
        }));
    }
    Ok(lines(rows, order))
}

/// A server's rows.
pub async fn found(client: &Client, sql: &str, order: Order) -> Result<Vec<String>, tokio_postgres::Error> {
    let rows = cluster::rows(client, sql).await?;
    let rows = rows.iter().map(|row| {
        let values = row.iter().map(|v| normal(v.as_deref()));
        values.collect::<Vec<_>>().join(" ")
    });
    Ok(lines(rows.collect(), order))
}
