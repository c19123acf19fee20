//! The workload derived from TPC-H: its tables, rows and queries. Not comparable with published results.

pub mod data;
pub mod queries;
pub mod schema;

use self::queries::Direction;
use crate::workload::{self, Batches, Query, SortKey, Workload};

/// The eight tables and 22 queries.
pub fn workload() -> Workload {
    Workload {
        title: "derived from TPC-H, not comparable with published results",
        tables: schema::TABLES
            .iter()
            .map(|table| table as &dyn workload::Table)
            .collect(),
        queries: queries::QUERIES.iter().map(shared).collect(),
        scale_max: data::SCALE_MAX,
    }
}

fn shared(query: &queries::Query) -> Query {
    let key = |(column, direction): &(usize, Direction)| {
        // PostgreSQL's defaults: NULL is larger than everything.
        let descending = *direction == Direction::Descending;
        SortKey {
            column: *column,
            descending,
            nulls_first: descending,
        }
    };
    Query {
        number: query.number,
        part: None,
        sql: query.sql,
        order: query.order.iter().map(key).collect(),
        limit: None,
    }
}

impl workload::Table for schema::Table {
    fn name(&self) -> &'static str {
        (*self).name()
    }

    fn ddl(&self, shards: u32) -> String {
        (*self).ddl(shards)
    }

    fn plain_ddl(&self) -> String {
        (*self).plain_ddl()
    }

    fn batches(&self, scale: f64) -> Batches {
        data::batches(*self, scale)
    }

    fn expected_rows(&self, scale: f64) -> u64 {
        data::expected_rows(*self, scale)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{data, workload};
    use crate::{csv, oracle::Oracle, verify};

    /// The oracle, over memory and over files, gives the answers another database gave for the same data.
    #[tokio::test]
    async fn the_oracle_gives_the_stored_answers() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let workload = workload();
        workload.write_parquet(dir.path(), 0.01).expect("files written");
        let in_memory = Oracle::in_memory(&workload, 0.01).await.expect("oracle");
        let parquet = Oracle::parquet(&workload, dir.path()).await.expect("oracle");
        let answers = Path::new("answers/sf0.01");
        let mut wrong = Vec::new();
        for query in &workload.queries {
            let expected = csv::read_answer(&answers.join(format!("q{}.csv", query.number))).expect("answer file");
            for (name, oracle) in [("memory", &in_memory), ("parquet", &parquet)] {
                let ours = oracle.answer(query).await.expect("query runs");
                if let Err(difference) = verify::compare_rows(&ours, &expected) {
                    wrong.push(format!("query {} ({name}): {difference}", query.number));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// Parts cut a table without losing or repeating rows.
    #[test]
    fn parts_make_the_whole() {
        let rows = |parts: i32| -> Vec<String> {
            let mut text = String::new();
            for table in super::schema::TABLES {
                for part in 1..=parts {
                    for batch in data::part_batches(table, 0.001, part, parts) {
                        csv::encode(&batch.expect("batch"), &mut text).expect("known types");
                    }
                }
            }
            text.lines().map(str::to_owned).collect()
        };
        assert_eq!(rows(1), rows(3));
    }
}
