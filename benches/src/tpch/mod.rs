//! The workload derived from TPC-H: its tables, rows, queries and right answers. Not comparable with published results.
//!
//! ```text
//! schema --+                     +--> report
//! data ----+--> load --> run ----+
//! queries -+              |
//!                         +--> verify <-- oracle (DataFusion) or answers/*.csv
//! ```

pub mod csv;
pub mod data;
pub mod load;
pub mod oracle;
pub mod queries;
pub mod report;
pub mod run;
pub mod schema;
pub mod verify;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{csv, data, oracle::Oracle, queries::QUERIES, verify};

    /// The oracle, over memory and over files, gives the answers another database gave for the same data.
    #[tokio::test]
    async fn the_oracle_gives_the_stored_answers() {
        let dir = tempfile::tempdir().expect("temporary folder");
        data::write_parquet(dir.path(), 0.01).expect("files written");
        let in_memory = Oracle::in_memory(0.01).await.expect("oracle");
        let parquet = Oracle::parquet(dir.path()).await.expect("oracle");
        let answers = Path::new("answers/sf0.01");
        let mut wrong = Vec::new();
        for query in &QUERIES {
            let expected = csv::read_answer(&answers.join(format!("q{}.csv", query.number))).expect("answer file");
            for (name, oracle) in [("memory", &in_memory), ("parquet", &parquet)] {
                let ours = oracle.answer(query).await.expect("query runs");
                if let Err(difference) = verify::compare(query, &ours, &expected) {
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
