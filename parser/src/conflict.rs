//! ON CONFLICT of INSERT: which keys count, and what becomes of rows that have one which exists.
//!
//! ```text
//!   INSERT INTO t VALUES (1, 2) ON CONFLICT (id) DO UPDATE SET n = t.n + excluded.n WHERE t.n < 9 RETURNING n
//!                                           └ target       └ assignments            └ expression
//!   target: nothing | (columns) | ON CONSTRAINT name          action: DO NOTHING | DO UPDATE SET ...
//! ```
//!
//! Not here: whether a unique key of those columns or of that name exists. Not done: expressions, collations and operator classes
//! in the target and a WHERE behind it, because there are no indexes that they could mean.

use sqlparser::tokenizer::Token;

use crate::cursor::{Cursor, starts_with};
use crate::error::{Stop, unsupported};
use crate::split::Tok;
use crate::statement::{ConflictAction, ConflictTarget, OnConflict};
use crate::write::{read_assignments, read_selection};

/// The clause starts here. `conflict` is a good name for a table, which may stand behind the ON of a join.
pub(crate) fn sees_conflict(toks: &[Tok]) -> bool {
    let follows = |toks: &[Tok]| {
        let parenthesis = toks.first().is_some_and(|tok| tok.token.token == Token::LParen);
        parenthesis || starts_with(toks, &["DO"]) || starts_with(toks, &["ON", "CONSTRAINT"])
    };
    starts_with(toks, &["ON", "CONFLICT"]) && follows(&toks[2..])
}

/// Reads the clause, if it is there.
pub(crate) fn read_conflict(cursor: &mut Cursor<'_>) -> Result<Option<OnConflict>, Stop> {
    if !sees_conflict(cursor.rest()) {
        return Ok(None);
    }
    let before = *cursor;
    cursor.skip(2);
    let target = read_conflict_target(cursor)?;
    cursor.expect(&["DO"])?;
    if cursor.take(&["NOTHING"]) {
        let action = ConflictAction::Nothing;
        return Ok(Some(OnConflict { target, action }));
    }
    if !cursor.take(&["UPDATE"]) {
        return Err(cursor.syntax_error().with_hint("expected NOTHING or UPDATE").into());
    }
    if target == ConflictTarget::Any {
        let message = "ON CONFLICT DO UPDATE requires inference specification or constraint name";
        let hint = "for example, ON CONFLICT (column_name)";
        return Err(before.error("42601", message).with_hint(hint).into());
    }
    cursor.expect(&["SET"])?;
    let assignments = read_assignments(cursor)?;
    let selection = read_selection(cursor)?;
    Ok(Some(OnConflict {
        target,
        action: ConflictAction::Update { assignments, selection },
    }))
}

fn read_conflict_target(cursor: &mut Cursor<'_>) -> Result<ConflictTarget, Stop> {
    if cursor.take(&["ON", "CONSTRAINT"]) {
        return cursor.name().map(ConflictTarget::Constraint);
    }
    if !cursor.take_symbol(&Token::LParen) {
        return Ok(ConflictTarget::Any);
    }
    let mut columns = vec![];
    loop {
        if !matches!(cursor.peek(), Some(Token::Word(_))) {
            return not_a_column();
        }
        columns.push(cursor.name()?);
        if cursor.take_symbol(&Token::RParen) {
            break;
        }
        if !cursor.take_symbol(&Token::Comma) {
            return not_a_column();
        }
    }
    if cursor.sees(&["WHERE"]) {
        return unsupported(
            "a WHERE behind the columns of ON CONFLICT",
            "leave it out; there are no partial indexes",
        );
    }
    Ok(ConflictTarget::Columns(columns))
}

fn not_a_column<T>() -> Result<T, Stop> {
    unsupported(
        "ON CONFLICT with anything but columns in parentheses",
        "name the columns of the primary key alone",
    )
}
