//! Queries and expressions: sqlparser reads them, we check what it let through and word its errors.
//!
//! ```text
//!   sqlparser   "Expected: end of statement, found: t at Line: 1, Column: 18"
//!   ours        syntax error at or near "t", position 18, hint
//! ```
//!
//! sqlparser accepts more than PostgreSQL does, and clauses the engine would quietly ignore. A clause that changes the
//! answer and that nobody downstream looks at is refused here (`refuse_leniency`).

use std::ops::ControlFlow;

use sqlparser::ast::{
    Expr, Ident, ObjectName, ObjectNamePart, Query, Select, SelectItem, SetExpr, Statement, TableFactor,
    TableWithJoins, Visit, VisitMut, Visitor,
};
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Token};

use crate::cursor::{Cursor, is_word, starts_with};
use crate::desugar::desugar;
use crate::dialect::BoundedDialect;
use crate::error::{ParseError, Stop, did_you_mean, unsupported};
use crate::spelling::respell;
use crate::split::{Tok, check_depth, syntax_error_near};
use crate::statement::Unsupported;

/// Calls into each other that sqlparser may make; a pair of parentheses takes one to three. Parsing moves to a larger
/// stack by itself, but later walks over the tree do not: 150 nested queries overflow 2 MiB when a debug build copies
/// them, so we stay close to sqlparser's own default of 50.
const RECURSION_MAX: usize = 64;

/// Stack that must be left when sqlparser calls itself; with less it moves to a new one. Its own default of 128 KiB is
/// less than the frames between two such calls can take in a debug build (`INTERVAL (INTERVAL (...`). The setting is
/// the process's, and the engine's recursive functions obey it too.
const STACK_BYTES_MIN: usize = 512 << 10;

/// Row locks: what and advice.
const ROW_LOCKS: (&str, &str) = (
    "SELECT ... FOR UPDATE/SHARE",
    "row locks need transactions, which are not there yet; leave the clause out",
);

/// Words that start a clause. sqlparser takes them for names where one is missing, and then blames a later token or
/// none at all (`SELECT a FROM WHERE`).
const CLAUSES: &[&str] = &[
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP",
    "ORDER",
    "HAVING",
    "LIMIT",
    "OFFSET",
    "UNION",
    "EXCEPT",
    "INTERSECT",
    "ON",
    "USING",
    "AS",
    "AND",
    "OR",
    "WHEN",
    "THEN",
    "ELSE",
    "END",
    "INTO",
    "WINDOW",
    "FETCH",
    "FOR",
    "IN",
];

/// Words a query consists of, for "did you mean".
const QUERY_WORDS: &[&str] = &[
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP",
    "ORDER",
    "HAVING",
    "LIMIT",
    "OFFSET",
    "UNION",
    "EXCEPT",
    "INTERSECT",
    "JOIN",
    "INNER",
    "CROSS",
    "BETWEEN",
    "VALUES",
    "DISTINCT",
    "FETCH",
    "WINDOW",
    "NATURAL",
];

/// Reads all of `cursor`, which must be one query.
pub(crate) fn parse_query(cursor: &mut Cursor<'_>) -> Result<Box<Query>, Stop> {
    parse_query_of(cursor, cursor.rest().len())
}

/// Reads the next `count` tokens, which must be one query.
pub(crate) fn parse_query_of(cursor: &mut Cursor<'_>, count: usize) -> Result<Box<Query>, Stop> {
    parse_next(cursor, count, "a query", |parser| parser.parse_query())
}

/// Reads the next `count` tokens, which must be one expression; returns it and its text.
pub(crate) fn parse_expression(cursor: &mut Cursor<'_>, count: usize) -> Result<(Expr, String), Stop> {
    let mut ahead = *cursor;
    let (_, text) = ahead.take_slice(count);
    let expression = parse_next(cursor, count, "an expression", |parser| parser.parse_expr())?;
    Ok((expression, text.to_owned()))
}

/// Reads the next `count` tokens, which must be what may stand behind FROM.
pub(crate) fn parse_tables(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<TableWithJoins>, Stop> {
    parse_next(cursor, count, "a table", |parser| {
        parser.parse_comma_separated(Parser::parse_table_and_joins)
    })
}

/// Reads the next `count` tokens, which must be what may stand behind SELECT, at least one expression.
pub(crate) fn parse_projection(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<SelectItem>, Stop> {
    parse_next(cursor, count, "an expression", |parser| parser.parse_projection())
}

/// Reads the next `count` tokens by one of sqlparser's rules and checks what it let through.
fn parse_next<T: Visit + VisitMut>(
    cursor: &mut Cursor<'_>,
    count: usize,
    what: &str,
    rule: impl FnOnce(&mut Parser<'_>) -> Result<T, ParserError>,
) -> Result<T, Stop> {
    let start = *cursor;
    let (toks, _) = cursor.take_slice(count);
    if toks.is_empty() {
        return Err(start.syntax_error().with_hint(format!("expected {what}")).into());
    }
    let mut tree = read(&start, toks, cursor.offset(), rule)?;
    desugar(cursor.sql(), toks, &mut tree)?;
    refuse_leniency(cursor.sql(), toks, &tree)?;
    Ok(tree)
}

/// The expression is the word DEFAULT, as it stands in the rows of an INSERT and behind the `=` of an UPDATE.
pub fn is_default(expression: &Expr) -> bool {
    matches!(expression, Expr::Identifier(name) if name.quote_style.is_none() && name.value.eq_ignore_ascii_case("default"))
}

fn read<T>(
    cursor: &Cursor<'_>,
    toks: &[Tok],
    end: usize,
    rule: impl FnOnce(&mut Parser<'_>) -> Result<T, ParserError>,
) -> Result<T, Stop> {
    check_depth(cursor.sql(), toks)?;
    recursive::set_minimum_stack_size(STACK_BYTES_MIN);
    let dialect = BoundedDialect::new(toks.len());
    let tokens = respell(cursor.sql(), toks)?;
    let mut parser = Parser::new(&dialect)
        .with_recursion_limit(RECURSION_MAX)
        .with_tokens_with_locations(tokens);
    let result = rule(&mut parser).and_then(|tree| match &parser.peek_token_ref().token {
        Token::EOF => Ok(tree),
        _ => parser.expected("end of statement", parser.peek_token()),
    });
    result.map_err(|error| match locks_rows(toks) {
        // sqlparser takes the FOR of `SELECT 1 FOR UPDATE` for an alias, and then fails at UPDATE.
        true => Stop::Unsupported(Unsupported {
            what: ROW_LOCKS.0.into(),
            hint: ROW_LOCKS.1.into(),
        }),
        false => translate(cursor, toks, end, error).into(),
    })
}

/// sqlparser's error as PostgreSQL would put it.
fn translate(cursor: &Cursor<'_>, toks: &[Tok], end: usize, error: ParserError) -> ParseError {
    let sql = cursor.sql();
    let message = match error {
        ParserError::ParserError(message) | ParserError::TokenizerError(message) => message,
        ParserError::RecursionLimitExceeded => {
            let start = toks.first().map_or(end, |tok| tok.start);
            return ParseError::at(sql, start, "54001", "statement is nested too deeply")
                .with_hint("use fewer levels of parentheses and subqueries");
        }
    };
    let (what, place) = split_place(&message);
    let expected = what
        .strip_prefix("Expected: ")
        .and_then(|rest| rest.split(", found: ").next());
    let Some((line, column)) = place else {
        // No place is sqlparser's way to say that the tokens ran out.
        let error = match (what.ends_with("EOF"), toks.last()) {
            (true, _) | (_, None) => end_error(cursor, end),
            (false, Some(last)) => syntax_error_near(sql, last.start, last.end),
        };
        let hint = unclosed_parenthesis(sql, toks).unwrap_or_else(|| hint_from(expected, what));
        return error.with_hint(hint);
    };
    let mut at = toks.partition_point(|tok| (tok.token.span.start.line, tok.token.span.start.column) < (line, column));
    if at >= 2
        && at < toks.len()
        && CLAUSES.iter().any(|word| is_word(&toks[at - 1], word))
        && toks[at - 2].token.token == Token::Comma
    {
        at -= 1;
    }
    let Some(tok) = toks.get(at) else {
        let hint = unclosed_parenthesis(sql, toks).unwrap_or_else(|| hint_from(expected, what));
        return end_error(cursor, end).with_hint(hint);
    };
    let error = syntax_error_near(sql, tok.start, tok.end);
    let before = at.checked_sub(1).and_then(|before| toks.get(before));
    error.with_hint(neighbour_hint(sql, before, tok).unwrap_or_else(|| hint_from(expected, what)))
}

/// An error behind the last token: at the semicolon or whatever our own clauses left there, else at the end of the text.
fn end_error(cursor: &Cursor<'_>, end: usize) -> ParseError {
    let sql = cursor.sql();
    if let Some(tok) = cursor.rest().iter().find(|tok| tok.start == end) {
        return syntax_error_near(sql, tok.start, tok.end);
    }
    match sql[end..].chars().next() {
        Some(next) => syntax_error_near(sql, end, end + next.len_utf8()),
        None => ParseError::at(sql, end, "42601", "syntax error at end of input"),
    }
}

/// `"message at Line: 3, Column: 7"` to `("message", Some((3, 7)))`.
fn split_place(message: &str) -> (&str, Option<(u64, u64)>) {
    let place = message.rsplit_once(" at Line: ").and_then(|(what, place)| {
        let (line, column) = place.split_once(", Column: ")?;
        Some((what, (line.parse().ok()?, column.parse().ok()?)))
    });
    match place {
        Some((what, place)) => (what, Some(place)),
        None => (message, None),
    }
}

fn hint_from(expected: Option<&str>, what: &str) -> String {
    match expected {
        Some("end of statement") => "the statement could have ended before this".to_owned(),
        Some(expected) => format!("expected {expected}"),
        None => what.to_owned(),
    }
}

/// What is likely wrong, judged by the token before the one that does not fit.
fn neighbour_hint(sql: &str, before: Option<&Tok>, tok: &Tok) -> Option<String> {
    let before = before?;
    let (text, text_before) = (&sql[tok.start..tok.end], &sql[before.start..before.end]);
    if before.token.token == Token::Comma {
        return Some(format!("the comma before \"{text}\" may be one too many"));
    }
    for suspect in [text, text_before] {
        if let Some(word) = did_you_mean(suspect, QUERY_WORDS).filter(|word| !suspect.eq_ignore_ascii_case(word)) {
            return Some(format!("did you mean \"{word}\" instead of \"{suspect}\"?"));
        }
    }
    let starts_value = matches!(
        &tok.token.token,
        Token::Word(_) | Token::Number(..) | Token::SingleQuotedString(_)
    );
    let ends_value = matches!(
        &before.token.token,
        Token::Word(_) | Token::Number(..) | Token::SingleQuotedString(_) | Token::RParen
    );
    (starts_value && ends_value).then(|| format!("a comma or an operator may be missing before \"{text}\""))
}

/// The innermost parenthesis that is never closed.
fn unclosed_parenthesis(sql: &str, toks: &[Tok]) -> Option<String> {
    let mut open = Vec::new();
    for tok in toks {
        match tok.token.token {
            Token::LParen => open.push(tok),
            Token::RParen => drop(open.pop()),
            _ => {}
        }
    }
    let place = ParseError::at(sql, open.last()?.start, "42601", "");
    Some(format!(
        "the \"(\" at line {}, column {} is never closed",
        place.line, place.column
    ))
}

/// The tokens hold a locking clause, judged by its words.
fn locks_rows(toks: &[Tok]) -> bool {
    let clauses: [&[&str]; 4] = [
        &["FOR", "UPDATE"],
        &["FOR", "SHARE"],
        &["FOR", "NO", "KEY", "UPDATE"],
        &["FOR", "KEY", "SHARE"],
    ];
    (0..toks.len()).any(|at| clauses.iter().any(|words| starts_with(&toks[at..], words)))
}

fn refuse_leniency(sql: &str, toks: &[Tok], tree: &impl Visit) -> Result<(), Stop> {
    match tree.visit(&mut Leniency) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(Refusal::Clause((what, hint))) => unsupported(what, hint),
        ControlFlow::Break(Refusal::Reserved(place)) => {
            let at = toks.partition_point(|tok| tok.token.span.start < place);
            let Some(tok) = toks.get(at) else { return Ok(()) };
            let before = at.checked_sub(1).and_then(|before| toks.get(before));
            let word = &sql[tok.start..tok.end];
            let hint = neighbour_hint(sql, before.filter(|before| before.token.token == Token::Comma), tok)
                .unwrap_or_else(|| format!("a name or an expression is missing before \"{word}\""));
            Err(syntax_error_near(sql, tok.start, tok.end).with_hint(hint).into())
        }
    }
}

/// Functions in FROM whose rows come from an array, and can be numbered.
fn is_unnested(name: &ObjectName) -> bool {
    const NAMES: [&str; 9] = [
        "unnest",
        "generate_series",
        "json_array_elements",
        "json_array_elements_text",
        "json_object_keys",
        "json_each",
        "json_each_text",
        "string_to_table",
        "regexp_split_to_table",
    ];
    let last = name.0.last().and_then(|part| part.as_ident());
    last.is_some_and(|name| NAMES.iter().any(|known| name.value.eq_ignore_ascii_case(known)))
}

/// Finds what sqlparser reads and should not: clauses that would have no effect, and reserved words as names.
struct Leniency;

enum Refusal {
    /// What, and advice.
    Clause((&'static str, &'static str)),
    /// Where the word stands.
    Reserved(Location),
}

type Refused = ControlFlow<Refusal>;

fn check_name(name: &Ident) -> Refused {
    let reserved = name.quote_style.is_none() && CLAUSES.iter().any(|word| name.value.eq_ignore_ascii_case(word));
    if reserved && name.span.start.line > 0 {
        return ControlFlow::Break(Refusal::Reserved(name.span.start));
    }
    ControlFlow::Continue(())
}

impl Visitor for Leniency {
    type Break = Refusal;

    fn pre_visit_query(&mut self, query: &Query) -> Refused {
        let foreign = "this clause belongs to another database's SQL; PostgreSQL has none like it";
        if !query.locks.is_empty() {
            return ControlFlow::Break(Refusal::Clause(ROW_LOCKS));
        }
        if query.for_clause.is_some()
            || query.settings.is_some()
            || query.format_clause.is_some()
            || !query.pipe_operators.is_empty()
        {
            return ControlFlow::Break(Refusal::Clause(("FOR XML/JSON, SETTINGS, FORMAT or |>", foreign)));
        }
        match &*query.body {
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
                ControlFlow::Break(Refusal::Clause((
                    "WITH before or around INSERT, UPDATE, DELETE or MERGE",
                    "write INSERT INTO t WITH ... SELECT ...; in UPDATE and DELETE write the query as (...) x in FROM or USING",
                )))
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_select(&mut self, select: &Select) -> Refused {
        if select.into.is_some() {
            return ControlFlow::Break(Refusal::Clause((
                "SELECT ... INTO",
                "create the table first, then use INSERT INTO ... SELECT",
            )));
        }
        let foreign = select.top.is_some()
            || !select.lateral_views.is_empty()
            || select.prewhere.is_some()
            || !select.connect_by.is_empty()
            || !select.cluster_by.is_empty()
            || !select.distribute_by.is_empty()
            || !select.sort_by.is_empty();
        if foreign {
            let hint = "this clause belongs to another database's SQL; PostgreSQL has none like it";
            return ControlFlow::Break(Refusal::Clause((
                "TOP, LATERAL VIEW, PREWHERE, CONNECT BY or CLUSTER BY",
                hint,
            )));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> Refused {
        match factor {
            TableFactor::Table { sample: Some(_), .. } | TableFactor::Derived { sample: Some(_), .. } => {
                ControlFlow::Break(Refusal::Clause((
                    "TABLESAMPLE of anything but a table",
                    "filter with random() < fraction",
                )))
            }
            TableFactor::Table {
                with_ordinality: true,
                args: Some(_),
                name,
                ..
            } if is_unnested(name) => ControlFlow::Continue(()),
            TableFactor::Table {
                with_ordinality: true, ..
            }
            | TableFactor::Function {
                with_ordinality: true, ..
            } => ControlFlow::Break(Refusal::Clause((
                "WITH ORDINALITY",
                "number the rows with row_number() OVER ()",
            ))),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_expr(&mut self, expression: &Expr) -> Refused {
        match expression {
            Expr::Identifier(name) => check_name(name),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> Refused {
        match relation.0.as_slice() {
            [ObjectNamePart::Identifier(name)] => check_name(name),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_statement(&mut self, _: &Statement) -> Refused {
        ControlFlow::Break(Refusal::Clause((
            "a writing statement inside a query",
            "run it as a statement of its own",
        )))
    }
}
