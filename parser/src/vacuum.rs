//! VACUUM, as PostgreSQL 15 has it.
//!
//! ```text
//!   VACUUM [(option [, ...])] [table [(column, ...)], ...]            option = VERBOSE | ANALYZE | FULL | FREEZE [boolean]
//!   VACUUM [FULL] [FREEZE] [VERBOSE] [ANALYZE] [table ...]
//! ```
//!
//! FULL and FREEZE change nothing: files are always written anew, and rows need no freezing. Options that would change something and
//! that we do not have are refused.

use sqlparser::tokenizer::Token;

use crate::admin::analyze_tables;
use crate::cursor::Cursor;
use crate::define::read_switch;
use crate::error::{Stop, unsupported};
use crate::statement::{Statement, Vacuum};

/// Reads what follows `VACUUM`.
pub(crate) fn parse_vacuum(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    let mut vacuum = Vacuum::default();
    match cursor.take_symbol(&Token::LParen) {
        true => read_options(cursor, &mut vacuum)?,
        false => {
            cursor.take(&["FULL"]);
            cursor.take(&["FREEZE"]);
            vacuum.verbose = cursor.take(&["VERBOSE"]);
            vacuum.analyze = cursor.take(&["ANALYZE"]) || cursor.take(&["ANALYSE"]);
        }
    }
    let before = *cursor;
    vacuum.tables = analyze_tables(cursor)?;
    if !vacuum.analyze && vacuum.tables.iter().any(|table| !table.columns.is_empty()) {
        let message = "ANALYZE option must be specified when a column list is provided";
        return Err(before.error("0A000", message).into());
    }
    Ok(Statement::Vacuum(vacuum))
}

fn read_options(cursor: &mut Cursor<'_>, vacuum: &mut Vacuum) -> Result<(), Stop> {
    loop {
        let before = *cursor;
        let option = cursor.peek_word().unwrap_or_default().to_ascii_lowercase();
        cursor.skip(1);
        match option.as_str() {
            "verbose" => vacuum.verbose = read_switch(cursor, "verbose")?,
            "analyze" | "analyse" => vacuum.analyze = read_switch(cursor, "analyze")?,
            "full" | "freeze" => drop(read_switch(cursor, &option)?),
            "disable_page_skipping" | "skip_locked" | "index_cleanup" | "process_toast" | "truncate" | "parallel" => {
                return unsupported(
                    format!("VACUUM option {option}"),
                    "options are VERBOSE, ANALYZE, FULL and FREEZE",
                );
            }
            "" => return Err(before.syntax_error().with_hint("expected an option of VACUUM").into()),
            _ => {
                let message = format!("unrecognized VACUUM option \"{option}\"");
                return Err(before.error("42601", message).into());
            }
        }
        if cursor.take_symbol(&Token::RParen) {
            return Ok(());
        }
        cursor.expect_symbol(&Token::Comma)?;
    }
}
