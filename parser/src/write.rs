//! INSERT, UPDATE, DELETE and TRUNCATE: a target and clauses of our own around sqlparser's queries and expressions.
//!
//! ```text
//!   UPDATE s.t AS x SET a = x.a + 1, (b, c) = ROW(2, 3) FROM u WHERE x.k = u.k RETURNING x.*, a AS new
//!   └ target        └ assignments: a, b, c              └ tables    └ expression └ projection
//! ```
//!
//! Where a clause ends is found in the tokens, outside parentheses and brackets: the words that end one are reserved in
//! PostgreSQL. sqlparser then reads the clause alone, and an error in it names its own place.
//!
//! ONLY before a table and `*` behind it are read and have no effect: no table inherits from another.
//!
//! Not here: ON CONFLICT (conflict.rs), MERGE (merge.rs), whether the columns exist, and what may not stand in which clause (an aggregate in
//! RETURNING). Not done:
//! `(a, b) = (SELECT ...)`, since a subquery in an expression has one column, and WITH before UPDATE and DELETE.

use sqlparser::ast::{Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectNamePart};
use sqlparser::tokenizer::Token;

use crate::conflict::{read_conflict, sees_conflict};
use crate::cursor::{Cursor, is_word};
use crate::define::sees_query;
use crate::error::{ParseError, Stop, did_you_mean, unsupported};
use crate::query::{parse_expression, parse_projection, parse_query_of, parse_tables};
use crate::split::Tok;
use crate::statement::{Assignment, Delete, Insert, ObjectName, Returning, Statement, Update};

/// PostgreSQL's MaxTupleAttributeNumber, which bounds its lists of assignments too. No table has that many columns.
const ASSIGNMENTS_MAX: usize = 1664;

/// What may follow assignments: of UPDATE the first three, of ON CONFLICT two of them, of MERGE the last.
const AFTER_ASSIGNMENTS: &[&str] = &["FROM", "WHERE", "RETURNING", "WHEN"];

/// What may follow the target of DELETE.
const AFTER_DELETED: &[&str] = &["USING", "WHERE", "RETURNING"];

/// Reads what follows `INSERT`.
pub(crate) fn parse_insert(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    cursor.expect(&["INTO"])?;
    let table = cursor.object_name()?;
    let alias = if cursor.take(&["AS"]) {
        Some(cursor.name()?)
    } else {
        None
    };
    let mut columns = Vec::new();
    if cursor.sees_symbol(&Token::LParen) {
        let mut inside = *cursor;
        inside.skip(1);
        if !sees_query(&inside) {
            columns = cursor.distinct_names_in_parentheses()?;
        }
    }
    refuse_insert_clauses(cursor)?;
    if !sees_query(cursor) {
        return Err(cursor
            .syntax_error()
            .with_hint("expected VALUES (...) or a query")
            .into());
    }
    let length = length_until(cursor.rest(), |toks| {
        is_word(&toks[0], "RETURNING") || sees_conflict(toks)
    });
    let source = parse_query_of(cursor, length)?;
    let conflict = read_conflict(cursor)?;
    let returning = read_returning(cursor)?;
    cursor.finish()?;
    Ok(Statement::Insert(Insert {
        table,
        alias,
        columns,
        source,
        conflict,
        returning,
    }))
}

fn refuse_insert_clauses(cursor: &Cursor<'_>) -> Result<(), Stop> {
    if cursor.sees(&["OVERRIDING"]) {
        return unsupported(
            "INSERT ... OVERRIDING",
            "leave the clause out; there are no IDENTITY columns",
        );
    }
    if cursor.sees(&["DEFAULT", "VALUES"]) {
        return unsupported("INSERT ... DEFAULT VALUES", "name a column and write VALUES (DEFAULT)");
    }
    Ok(())
}

/// Reads what follows `UPDATE`.
pub(crate) fn parse_update(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    let (table, alias) = read_target(cursor)?;
    if !cursor.take(&["SET"]) {
        return Err(clause_missing(cursor, alias.as_deref(), &["SET"]));
    }
    let assignments = read_assignments(cursor)?;
    let from = if cursor.take(&["FROM"]) {
        parse_tables(cursor, clause_length(cursor.rest(), &["WHERE", "RETURNING"]))?
    } else {
        Vec::new()
    };
    let selection = read_selection(cursor)?;
    let returning = read_returning(cursor)?;
    cursor.finish()?;
    Ok(Statement::Update(Update {
        table,
        alias,
        assignments,
        from,
        selection,
        returning,
    }))
}

/// Reads what follows `DELETE`.
pub(crate) fn parse_delete(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    cursor.expect(&["FROM"])?;
    let (table, alias) = read_target(cursor)?;
    if !cursor.is_done() && !AFTER_DELETED.iter().any(|word| cursor.sees(&[word])) {
        return Err(clause_missing(cursor, alias.as_deref(), AFTER_DELETED));
    }
    let using = if cursor.take(&["USING"]) {
        parse_tables(cursor, clause_length(cursor.rest(), &["WHERE", "RETURNING"]))?
    } else {
        Vec::new()
    };
    let selection = read_selection(cursor)?;
    let returning = read_returning(cursor)?;
    cursor.finish()?;
    Ok(Statement::Delete(Delete {
        table,
        alias,
        using,
        selection,
        returning,
    }))
}

/// Reads what follows `TRUNCATE`. There are no sequences that RESTART IDENTITY would set back, and no foreign keys that CASCADE
/// would follow.
pub(crate) fn parse_truncate(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    cursor.take(&["TABLE"]);
    let mut tables = vec![read_table(cursor)?];
    while cursor.take_symbol(&Token::Comma) {
        tables.push(read_table(cursor)?);
    }
    if cursor.take(&["RESTART"]) || cursor.take(&["CONTINUE"]) {
        cursor.expect(&["IDENTITY"])?;
    }
    if !cursor.take(&["CASCADE"]) {
        cursor.take(&["RESTRICT"]);
    }
    cursor.finish()?;
    Ok(Statement::Truncate { tables })
}

/// `[ONLY] table [*]`.
fn read_table(cursor: &mut Cursor<'_>) -> Result<ObjectName, Stop> {
    let only = cursor.take(&["ONLY"]);
    let in_parentheses = only && cursor.take_symbol(&Token::LParen);
    let table = cursor.object_name()?;
    if in_parentheses {
        cursor.expect_symbol(&Token::RParen)?;
    } else if !only {
        cursor.take_symbol(&Token::Mul);
    }
    Ok(table)
}

/// `[ONLY] table [*] [[AS] alias]`.
pub(crate) fn read_target(cursor: &mut Cursor<'_>) -> Result<(ObjectName, Option<String>), Stop> {
    let table = read_table(cursor)?;
    // SET is not reserved, so `UPDATE t SET ...` could name an alias; PostgreSQL decides against it without AS.
    let ends = cursor.sees(&["SET"]) || AFTER_DELETED.iter().any(|word| cursor.sees(&[word]));
    let named = cursor.take(&["AS"]) || (!ends && matches!(cursor.peek(), Some(Token::Word(_))));
    let alias = if named { Some(cursor.name()?) } else { None };
    Ok((table, alias))
}

/// The error where none of `words` follows the target. A misspelt one was taken for the alias.
fn clause_missing(cursor: &Cursor<'_>, alias: Option<&str>, words: &[&str]) -> Stop {
    let hint = match alias.and_then(|alias| Some((alias, did_you_mean(alias, words)?))) {
        Some((alias, word)) => format!("did you mean \"{word}\" instead of \"{alias}\"?"),
        None => format!("expected {}", words.join(" or ")),
    };
    cursor.syntax_error().with_hint(hint).into()
}

/// `a = value, (b, c) = row`: what stands behind SET.
pub(crate) fn read_assignments(cursor: &mut Cursor<'_>) -> Result<Vec<Assignment>, Stop> {
    let mut assignments = Vec::new();
    loop {
        if cursor.sees_symbol(&Token::LParen) {
            read_row_assignment(cursor, &mut assignments)?;
        } else {
            let before = *cursor;
            let column = read_column(cursor)?;
            cursor.expect_symbol(&Token::Eq)?;
            let (value, _) = parse_expression(cursor, value_length(cursor.rest()))?;
            assign(&before, &mut assignments, column, value)?;
        }
        if !cursor.take_symbol(&Token::Comma) {
            return Ok(assignments);
        }
        if let Some(word) = AFTER_ASSIGNMENTS.iter().find(|word| cursor.sees(&[word])) {
            return Err(cursor
                .syntax_error()
                .with_hint(format!("the comma before \"{word}\" may be one too many"))
                .into());
        }
    }
}

/// `(a, b) = (1, 2)` and `(a, b) = ROW(1, 2)`.
fn read_row_assignment(cursor: &mut Cursor<'_>, assignments: &mut Vec<Assignment>) -> Result<(), Stop> {
    cursor.expect_symbol(&Token::LParen)?;
    let mut columns = vec![(*cursor, read_column(cursor)?)];
    while cursor.take_symbol(&Token::Comma) {
        columns.push((*cursor, read_column(cursor)?));
    }
    cursor.expect_symbol(&Token::RParen)?;
    cursor.expect_symbol(&Token::Eq)?;
    let before = *cursor;
    let (row, _) = parse_expression(cursor, value_length(cursor.rest()))?;
    let values = row_values(&before, row)?;
    if values.len() != columns.len() {
        let message = "number of columns does not match number of values";
        return Err(before.error("42601", message).into());
    }
    for ((at, column), value) in columns.into_iter().zip(values) {
        assign(&at, assignments, column, value)?;
    }
    Ok(())
}

/// A column behind SET, which has nothing before its name and nothing behind it.
fn read_column(cursor: &mut Cursor<'_>) -> Result<String, Stop> {
    let column = cursor.name()?;
    if cursor.sees_symbol(&Token::Period) {
        return unsupported(
            "UPDATE ... SET with a qualified column",
            "leave out the table before the column; the columns behind SET are always the updated table's",
        );
    }
    if cursor.sees_symbol(&Token::LBracket) {
        return unsupported("UPDATE ... SET with a subscript", "there are no columns of arrays");
    }
    Ok(column)
}

/// Adds an assignment of the column that stands at `at`.
fn assign(at: &Cursor<'_>, assignments: &mut Vec<Assignment>, column: String, value: Expr) -> Result<(), Stop> {
    if assignments.iter().any(|other| other.column == column) {
        let message = format!("multiple assignments to same column \"{column}\"");
        return Err(at.error("42601", message).into());
    }
    if assignments.len() == ASSIGNMENTS_MAX {
        let message = format!("target lists can have at most {ASSIGNMENTS_MAX} entries");
        return Err(at.error("54011", message).into());
    }
    assignments.push(Assignment { column, value });
    Ok(())
}

/// The values of a row constructor, which stands at `at`.
fn row_values(at: &Cursor<'_>, row: Expr) -> Result<Vec<Expr>, Stop> {
    let values = match row {
        Expr::Nested(row) => return row_values(at, *row),
        Expr::Subquery(_) => {
            return unsupported(
                "UPDATE ... SET (columns) = (SELECT ...)",
                "write one assignment for each column, with a subquery of one column each",
            );
        }
        Expr::Tuple(values) => Some(values),
        Expr::Function(function) => row_arguments(function),
        _ => None,
    };
    values.ok_or_else(|| not_a_row(at).into())
}

fn not_a_row(at: &Cursor<'_>) -> ParseError {
    at.error(
        "0A000",
        "source for a multiple-column UPDATE item must be a sub-SELECT or ROW() expression",
    )
    .with_hint("write (a, b) = (1, 2), or one assignment for each column")
}

/// The values of `ROW(...)`, which sqlparser takes for a call; `None` for any other call.
fn row_arguments(function: Function) -> Option<Vec<Expr>> {
    let is_row = |name: &Ident| name.quote_style.is_none() && name.value.eq_ignore_ascii_case("row");
    let is_plain = matches!(function.name.0.as_slice(), [ObjectNamePart::Identifier(name)] if is_row(name));
    match function {
        Function {
            uses_odbc_syntax: false,
            parameters: FunctionArguments::None,
            args: FunctionArguments::List(list),
            filter: None,
            null_treatment: None,
            over: None,
            within_group,
            ..
        } if is_plain && within_group.is_empty() && list.duplicate_treatment.is_none() && list.clauses.is_empty() => {
            list.args.into_iter().map(plain_argument).collect()
        }
        _ => None,
    }
}

fn plain_argument(argument: FunctionArg) -> Option<Expr> {
    match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) => Some(value),
        _ => None,
    }
}

/// `[WHERE condition]`.
pub(crate) fn read_selection(cursor: &mut Cursor<'_>) -> Result<Option<Expr>, Stop> {
    if !cursor.take(&["WHERE"]) {
        return Ok(None);
    }
    if cursor.sees(&["CURRENT", "OF"]) {
        return unsupported("WHERE CURRENT OF", "there are no cursors yet; name the row by its key");
    }
    let length = clause_length(cursor.rest(), &["RETURNING"]);
    let (condition, _) = parse_expression(cursor, length)?;
    Ok(Some(condition))
}

/// `[RETURNING projection]`, the last clause of all three.
fn read_returning(cursor: &mut Cursor<'_>) -> Result<Option<Returning>, Stop> {
    if !cursor.take(&["RETURNING"]) {
        return Ok(None);
    }
    let projection = parse_projection(cursor, cursor.rest().len())?;
    Ok(Some(Returning { projection }))
}

/// Tokens of one assignment's value.
fn value_length(toks: &[Tok]) -> usize {
    length_until(toks, |toks| {
        toks[0].token.token == Token::Comma || AFTER_ASSIGNMENTS.iter().any(|word| is_word(&toks[0], word))
    })
}

/// Tokens before the first of these words.
fn clause_length(toks: &[Tok], words: &[&str]) -> usize {
    length_until(toks, |toks| words.iter().any(|word| is_word(&toks[0], word)))
}

/// Tokens before the first one with which what `ends` a clause begins: outside parentheses, brackets and CASE, and no name (`x.from`,
/// `1 AS returning`) nor part of an operator (`IS DISTINCT FROM`).
pub(crate) fn length_until(toks: &[Tok], ends: impl Fn(&[Tok]) -> bool) -> usize {
    let mut depth = 0_usize;
    for (at, tok) in toks.iter().enumerate() {
        let is_name = continues(&toks[..at], tok);
        match &tok.token.token {
            _ if depth == 0 && !is_name && ends(&toks[at..]) => return at,
            Token::LParen | Token::LBracket => depth += 1,
            Token::RParen | Token::RBracket => depth = depth.saturating_sub(1),
            _ if !is_name && is_word(tok, "CASE") => depth += 1,
            _ if !is_name && is_word(tok, "END") => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    toks.len()
}

/// `tok` belongs to the token before it.
fn continues(before: &[Tok], tok: &Tok) -> bool {
    before.last().is_some_and(|before| {
        before.token.token == Token::Period
            || is_word(before, "AS")
            || (is_word(before, "DISTINCT") && is_word(tok, "FROM"))
    })
}
