//! MERGE: a target, a source, the condition that pairs their rows, and what becomes of pairs and of what is left over.
//!
//! ```text
//!   MERGE INTO t AS x USING s ON x.k = s.k
//!     WHEN MATCHED AND s.n = 0 THEN DELETE
//!     WHEN MATCHED THEN UPDATE SET n = x.n + s.n
//!     WHEN NOT MATCHED THEN INSERT (k, n) VALUES (s.k, DEFAULT)
//! ```
//!
//! The condition begins at the last ON before the first WHEN: those before it belong to joins of the source. A WHEN between CASE
//! and END is an expression's. As in PostgreSQL 15: no RETURNING, no NOT MATCHED BY SOURCE.

use sqlparser::tokenizer::Token;

use crate::cursor::{Cursor, is_word};
use crate::error::{Stop, unsupported};
use crate::query::{parse_expression, parse_tables};
use crate::split::Tok;
use crate::statement::{Merge, MergeAction, MergeClause, Statement};
use crate::write::{length_until, read_assignments, read_target};

/// Clauses of one statement: each repeats the conditions of those before it.
const CLAUSES_MAX: usize = 32;

/// Reads what follows `MERGE`.
pub(crate) fn parse_merge(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    cursor.expect(&["INTO"])?;
    let (table, alias) = read_target(cursor)?;
    cursor.expect(&["USING"])?;
    let length = length_until(cursor.rest(), |toks| is_word(&toks[0], "WHEN"));
    let on = last_on(&cursor.rest()[..length]);
    let before = *cursor;
    let mut source = parse_tables(cursor, on)?;
    let source = match (source.pop(), source.is_empty()) {
        (Some(source), true) => source,
        _ => {
            let hint = "there is one source; write a join or a subquery";
            return Err(before.syntax_error().with_hint(hint).into());
        }
    };
    cursor.expect(&["ON"])?;
    let (on, _) = parse_expression(cursor, length.saturating_sub(on + 1))?;
    let mut clauses = vec![];
    while cursor.sees(&["WHEN"]) {
        if clauses.len() == CLAUSES_MAX {
            let message = format!("MERGE has at most {CLAUSES_MAX} WHEN clauses");
            return Err(cursor.error("54001", message).into());
        }
        clauses.push(read_clause(cursor, &clauses)?);
    }
    if clauses.is_empty() {
        return Err(cursor.syntax_error().with_hint("expected WHEN").into());
    }
    cursor.finish()?;
    Ok(Statement::Merge(Merge {
        table,
        alias,
        source,
        on,
        clauses,
    }))
}

/// Tokens before the last ON; all if there is none.
fn last_on(toks: &[Tok]) -> usize {
    let (mut from, mut last) = (0, toks.len());
    loop {
        let on = from + length_until(&toks[from..], |toks| is_word(&toks[0], "ON"));
        if on == toks.len() {
            return last;
        }
        (from, last) = (on + 1, on);
    }
}

fn read_clause(cursor: &mut Cursor<'_>, before: &[MergeClause]) -> Result<MergeClause, Stop> {
    let start = *cursor;
    cursor.expect(&["WHEN"])?;
    let matched = !cursor.take(&["NOT"]);
    cursor.expect(&["MATCHED"])?;
    let unreachable = |other: &MergeClause| other.matched == matched && other.condition.is_none();
    if before.iter().any(unreachable) {
        let message = "unreachable WHEN clause specified after unconditional WHEN clause";
        return Err(start.error("42601", message).into());
    }
    let condition = if cursor.take(&["AND"]) {
        let length = length_until(cursor.rest(), |toks| is_word(&toks[0], "THEN"));
        Some(parse_expression(cursor, length)?.0)
    } else {
        None
    };
    cursor.expect(&["THEN"])?;
    let action = if cursor.take(&["DO", "NOTHING"]) {
        MergeAction::Nothing
    } else if matched && cursor.take(&["UPDATE"]) {
        cursor.expect(&["SET"])?;
        MergeAction::Update {
            assignments: read_assignments(cursor)?,
        }
    } else if matched && cursor.take(&["DELETE"]) {
        MergeAction::Delete
    } else if !matched && cursor.take(&["INSERT"]) {
        read_insert(cursor)?
    } else {
        let hint = match matched {
            true => "expected UPDATE SET, DELETE or DO NOTHING",
            false => "expected INSERT or DO NOTHING",
        };
        return Err(cursor.syntax_error().with_hint(hint).into());
    };
    Ok(MergeClause {
        matched,
        condition,
        action,
    })
}

/// `[(columns)] { VALUES (values) | DEFAULT VALUES }`.
fn read_insert(cursor: &mut Cursor<'_>) -> Result<MergeAction, Stop> {
    let columns = match cursor.sees_symbol(&Token::LParen) {
        true => cursor.distinct_names_in_parentheses()?,
        false => vec![],
    };
    if cursor.sees(&["OVERRIDING"]) {
        return unsupported(
            "INSERT ... OVERRIDING",
            "leave the clause out; there are no IDENTITY columns",
        );
    }
    if columns.is_empty() && cursor.take(&["DEFAULT", "VALUES"]) {
        return Ok(MergeAction::Insert { columns, values: None });
    }
    if !cursor.take(&["VALUES"]) {
        return Err(cursor.syntax_error().with_hint("expected VALUES (...)").into());
    }
    cursor.expect_symbol(&Token::LParen)?;
    let mut values = vec![];
    loop {
        let end = |toks: &[Tok]| matches!(toks[0].token.token, Token::Comma | Token::RParen);
        values.push(parse_expression(cursor, length_until(cursor.rest(), end))?.0);
        if cursor.take_symbol(&Token::RParen) {
            break;
        }
        cursor.expect_symbol(&Token::Comma)?;
    }
    Ok(MergeAction::Insert {
        columns,
        values: Some(values),
    })
}
