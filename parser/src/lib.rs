//! SQL text to [`Statement`]s, with positions. Knows no schema.
//!
//! ```text
//!   text ── split.rs ──> tokens of each statement ── first words ──> one reader each
//!                                                    │
//!     SELECT VALUES TABLE WITH (        query.rs (spelling.rs, desugar.rs)
//!                                                    │  SET SHOW RESET DISCARD           admin.rs
//!     EXPLAIN CREATE DROP               define.rs    │  VERIFY TABLE, ALTER SHARD        admin.rs
//!     INSERT UPDATE DELETE              write.rs     │
//!     CREATE [REFERENCE] TABLE          create_table.rs, types.rs
//!     COPY                              copy.rs      │  BEGIN COMMIT ROLLBACK SAVEPOINT  transaction.rs
//!                                                    │  everything else                  unsupported.rs
//! ```
//!
//! The dialect is PostgreSQL's, plus
//!
//! ```sql
//! CREATE TABLE t (...) SHARD BY HASH (column, ...) [SHARDS n] [COLOCATE WITH other] [CLUSTER BY (column, ...)];
//! CREATE REFERENCE TABLE t (...);
//! ALTER SHARD n OF t SWITCH LEADER | PROMOTE | FORCE PROMOTE ACCEPT DATA LOSS;
//! VERIFY TABLE t;
//! SHOW SHARDS; SHOW NODES;
//! COPY t FROM 'file' WITH (FORMAT parquet);
//! ```
//!
//! None of these words is reserved: `shard`, `shards` and `reference` stay good names for columns.
//!
//! Statements around queries are read here, token by token; queries and expressions are sqlparser's. That keeps our
//! clauses out of a fork of it, and lets every statement refuse, by name, what it does not do: nothing is ignored.
//!
//! Bounds: [`TEXT_BYTES_MAX`], [`TOKENS_MAX`], [`CHAIN_DEPTH_MAX`] and sqlparser's limit on recursion.

mod admin;
mod copy;
mod create_table;
mod cursor;
mod define;
mod desugar;
mod dialect;
mod error;
mod query;
mod spelling;
mod split;
mod statement;
#[cfg(test)]
mod tests;
mod transaction;
mod types;
mod unsupported;
mod write;

pub use error::ParseError;
pub use query::is_default;
pub use spelling::TIES;
pub use split::{CHAIN_DEPTH_MAX, TEXT_BYTES_MAX, TOKENS_MAX};
pub use statement::*;

use cursor::{Cursor, text_of};
use error::Stop;

/// Reads all statements of `sql`.
///
/// Empty for a text without any (blank, comments, lone semicolons). A statement that is right and not there yet is
/// [`Statement::Unsupported`], so that those before it can run.
///
/// # Errors
/// The first statement that is wrong, with its place in `sql`; then nothing of the text is to run, as in PostgreSQL.
/// 42601 for syntax, 54000 and 54001 for a text too long or too deep, 22023 and the like for a value out of its range.
pub fn parse(sql: &str) -> Result<Vec<ParsedStatement>, ParseError> {
    let toks = split::tokenize(sql)?;
    let pieces = split::split(sql, &toks);
    pieces
        .iter()
        .map(|piece| {
            let text = text_of(sql, piece.toks).to_owned();
            let statement = match parse_statement(Cursor::new(sql, piece)) {
                Ok(statement) => statement,
                Err(Stop::Unsupported(unsupported)) => Statement::Unsupported(unsupported),
                Err(Stop::Error(error)) => return Err(error),
            };
            Ok(ParsedStatement { text, statement })
        })
        .collect()
}

fn parse_statement(mut cursor: Cursor<'_>) -> Result<Statement, Stop> {
    let cursor = &mut cursor;
    if define::sees_query(cursor) {
        return query::parse_query(cursor).map(Statement::Query);
    }
    let start = *cursor;
    let word = cursor.peek_word().unwrap_or_default();
    cursor.skip(1);
    match word.as_str() {
        "EXPLAIN" => define::parse_explain(cursor),
        "CREATE" => define::parse_create(cursor),
        "DROP" => define::parse_drop(cursor),
        "INSERT" => write::parse_insert(cursor),
        "UPDATE" => write::parse_update(cursor),
        "DELETE" => write::parse_delete(cursor),
        "COPY" => copy::parse_copy(cursor),
        "SET" => admin::parse_set(cursor),
        "SHOW" => admin::parse_show(cursor),
        "RESET" => admin::parse_reset(cursor),
        "DISCARD" => admin::parse_discard(cursor),
        "VERIFY" => admin::parse_verify(cursor),
        "ANALYZE" | "ANALYSE" => admin::parse_analyze(cursor),
        "BEGIN" => transaction::parse_begin(cursor),
        "START" => transaction::parse_start(cursor),
        "COMMIT" | "END" => transaction::parse_commit(cursor),
        "ROLLBACK" | "ABORT" => transaction::parse_rollback(cursor),
        "SAVEPOINT" => transaction::parse_savepoint(cursor),
        "RELEASE" => transaction::parse_release(cursor),
        "ALTER" if cursor.take(&["SHARD"]) => admin::parse_alter_shard(cursor),
        _ => unsupported::refuse_statement(&start),
    }
}
