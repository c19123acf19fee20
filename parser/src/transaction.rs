//! Statements that begin and end transactions, and the points within them to go back to.
//!
//! ```text
//!   BEGIN [WORK | TRANSACTION] [mode, ...]    START TRANSACTION [mode, ...]
//!   { COMMIT | END | ROLLBACK | ABORT } [WORK | TRANSACTION] [AND [NO] CHAIN]
//!   SAVEPOINT s    RELEASE [SAVEPOINT] s    ROLLBACK [WORK | TRANSACTION] TO [SAVEPOINT] s
//!   mode = ISOLATION LEVEL level | READ ONLY | READ WRITE | [NOT] DEFERRABLE      commas between modes may be left out
//! ```
//!
//! DEFERRABLE means something for serializable transactions only, which the session refuses. Not here: SET TRANSACTION (admin.rs).

use sqlparser::tokenizer::Token;

use crate::admin::isolation_level;
use crate::cursor::Cursor;
use crate::error::{Stop, unsupported};
use crate::statement::{Statement, TransactionModes};

/// Reads what follows `BEGIN`.
pub(crate) fn parse_begin(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    skip_noise(cursor);
    modes(cursor).map(Statement::Begin)
}

/// Reads what follows `START`.
pub(crate) fn parse_start(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    if !cursor.take(&["TRANSACTION"]) {
        return Err(cursor.syntax_error().with_hint("expected TRANSACTION").into());
    }
    modes(cursor).map(Statement::Begin)
}

/// Reads what follows `COMMIT` or `END`.
pub(crate) fn parse_commit(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    if cursor.sees(&["PREPARED"]) {
        return unsupported(
            "COMMIT PREPARED",
            "a transaction over many shards is prepared and committed by COMMIT",
        );
    }
    skip_noise(cursor);
    let chain = chain(cursor)?;
    cursor.finish()?;
    Ok(Statement::Commit { chain })
}

/// Reads what follows `ROLLBACK` or `ABORT`.
pub(crate) fn parse_rollback(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    if cursor.sees(&["PREPARED"]) {
        return unsupported("ROLLBACK PREPARED", "roll back with ROLLBACK");
    }
    skip_noise(cursor);
    if cursor.take(&["TO"]) {
        cursor.take(&["SAVEPOINT"]);
        let name = cursor.name()?;
        cursor.finish()?;
        return Ok(Statement::RollbackTo { name });
    }
    let chain = chain(cursor)?;
    cursor.finish()?;
    Ok(Statement::Rollback { chain })
}

/// Reads what follows `SAVEPOINT`.
pub(crate) fn parse_savepoint(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    let name = cursor.name()?;
    cursor.finish()?;
    Ok(Statement::Savepoint { name })
}

/// Reads what follows `RELEASE`.
pub(crate) fn parse_release(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    cursor.take(&["SAVEPOINT"]);
    let name = cursor.name()?;
    cursor.finish()?;
    Ok(Statement::Release { name })
}

fn skip_noise(cursor: &mut Cursor<'_>) {
    if !cursor.take(&["WORK"]) {
        cursor.take(&["TRANSACTION"]);
    }
}

fn chain(cursor: &mut Cursor<'_>) -> Result<bool, Stop> {
    if cursor.take(&["AND", "NO", "CHAIN"]) {
        return Ok(false);
    }
    Ok(cursor.take(&["AND", "CHAIN"]))
}

/// Modes up to the end of the statement; of two that contradict each other the later counts, as in PostgreSQL.
fn modes(cursor: &mut Cursor<'_>) -> Result<TransactionModes, Stop> {
    let mut modes = TransactionModes::default();
    while !cursor.is_done() {
        if cursor.take(&["ISOLATION", "LEVEL"]) {
            modes.isolation = Some(isolation_level(cursor)?.to_owned());
        } else if cursor.take(&["READ", "ONLY"]) {
            modes.read_only = Some(true);
        } else if cursor.take(&["READ", "WRITE"]) {
            modes.read_only = Some(false);
        } else if !cursor.take(&["NOT", "DEFERRABLE"]) && !cursor.take(&["DEFERRABLE"]) {
            let hint = "expected ISOLATION LEVEL, READ ONLY, READ WRITE or DEFERRABLE";
            return Err(cursor.syntax_error().with_hint(hint).into());
        }
        if cursor.take_symbol(&Token::Comma) && cursor.is_done() {
            return Err(cursor.syntax_error().into());
        }
    }
    Ok(modes)
}
