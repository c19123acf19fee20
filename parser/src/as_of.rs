//! AS OF SYSTEM TIME: a query of the past.
//!
//! ```text
//!   SELECT a FROM t JOIN u USING (a) AS OF SYSTEM TIME '-10s' WHERE ...
//!                                    └──── taken out ───────┘  the rest is sqlparser's
//! ```
//!
//! For a whole statement that reads: a query, its EXPLAIN, or COPY (query) TO. CockroachDB's clause, in its place behind the last
//! table of FROM. What the text means (a timestamp, or how long ago) is the session's to say: it knows the time zone.

use sqlparser::tokenizer::Token;

use crate::cursor::{Cursor, is_word, starts_with};
use crate::error::{Stop, unsupported};
use crate::split::{Piece, Tok, syntax_error_near};
use crate::statement::{AsOf, CopyRows, Statement};

const CLAUSE: [&str; 4] = ["AS", "OF", "SYSTEM", "TIME"];
const WHERE_ELSE: &str = "it is for the whole statement: write it behind the last table of the outermost FROM";
/// What may follow.
const FOLLOWING: [&str; 12] = [
    "WHERE",
    "GROUP",
    "HAVING",
    "WINDOW",
    "ORDER",
    "LIMIT",
    "OFFSET",
    "FETCH",
    "FOR",
    "UNION",
    "EXCEPT",
    "INTERSECT",
];

/// A clause, and the tokens of the statement without it.
pub(crate) struct Taken {
    pub(crate) as_of: AsOf,
    pub(crate) toks: Vec<Tok>,
}

/// Takes the clause out of a statement, if it has one.
pub(crate) fn take(sql: &str, piece: &Piece<'_>) -> Result<Option<Taken>, Stop> {
    let toks = piece.toks;
    let Some(at) = (0..toks.len()).find(|at| starts_with(&toks[*at..], &CLAUSE)) else {
        return Ok(None);
    };
    let mut cursor = Cursor::new(sql, piece);
    cursor.skip(at);
    let position = cursor.position();
    cursor.skip(CLAUSE.len());
    let depth = |toks: &[Tok]| {
        let count = |symbol: &Token| toks.iter().filter(|tok| tok.token.token == *symbol).count();
        count(&Token::LParen).saturating_sub(count(&Token::RParen))
    };
    // COPY has its query in parentheses.
    let outermost = usize::from(toks.first().is_some_and(|tok| is_word(tok, "COPY")));
    if depth(&toks[..at]) > outermost {
        return unsupported("AS OF SYSTEM TIME inside a query", WHERE_ELSE);
    }
    let Some(text) = cursor.take_string() else {
        return unsupported(
            "AS OF SYSTEM TIME of an expression",
            "write a constant in quotes: a timestamp, or how long ago, such as '-10s'",
        );
    };
    let rest = cursor.rest();
    if let Some(next) = rest.first()
        && next.token.token != Token::RParen
        && !FOLLOWING.iter().any(|word| is_word(next, word))
    {
        let hint = "AS OF SYSTEM TIME stands behind the last table of FROM";
        return Err(syntax_error_near(sql, next.start, next.end).with_hint(hint).into());
    }
    if (0..rest.len()).any(|at| starts_with(&rest[at..], &CLAUSE)) {
        return unsupported("AS OF SYSTEM TIME twice", WHERE_ELSE);
    }
    let kept = toks[..at].iter().chain(rest);
    Ok(Some(Taken {
        as_of: AsOf { text, position },
        toks: kept.cloned().collect(),
    }))
}

/// Refuses it in a statement that does more than read.
pub(crate) fn check(statement: &Statement) -> Result<(), Stop> {
    match statement {
        Statement::Query(query) if query.locks.is_empty() => Ok(()),
        Statement::Explain { .. } | Statement::Unsupported(_) => Ok(()),
        Statement::CopyTo(copy) if matches!(copy.source, CopyRows::Query(_)) => Ok(()),
        _ => unsupported(
            "AS OF SYSTEM TIME in a statement that is not a query",
            "read the rows with SELECT ... AS OF SYSTEM TIME first",
        ),
    }
}
