//! FOR UPDATE and its weaker kin behind a query, at any depth.
//!
//! ```text
//!   SELECT * FROM a, b FOR NO KEY UPDATE OF a SKIP LOCKED LIMIT 1       as PostgreSQL has it
//!   SELECT * FROM a, b LIMIT 1 FOR UPDATE OF no_key_update.a SKIP LOCKED     as sqlparser gets it, and keeps it in `Query::locks`
//! ```
//!
//! sqlparser reads two of the four strengths, one table, and the clause at the end only. So the clauses are read here, token by
//! token, and handed to it in a form that it has room for: strength and tables as the parts of one name. [`row_locks`] reads them
//! from there.

use sqlparser::ast::{Ident, NonBlock, ObjectNamePart, Query};
use sqlparser::tokenizer::{Token, TokenWithSpan, Word};
use std::borrow::Cow;
use std::fmt;

use crate::cursor::{is_word, starts_with};
use crate::error::{ParseError, Stop};
use crate::split::{Tok, syntax_error_near};

/// How rows are locked, from the weakest to the strongest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockStrength {
    /// FOR KEY SHARE
    KeyShare,
    /// FOR SHARE
    Share,
    /// FOR NO KEY UPDATE
    NoKeyUpdate,
    /// FOR UPDATE
    Update,
}

/// By their words: none is the beginning of another.
const STRENGTHS: [(LockStrength, &[&str], &str); 4] = [
    (LockStrength::KeyShare, &["KEY", "SHARE"], "key_share"),
    (LockStrength::Share, &["SHARE"], "share"),
    (LockStrength::NoKeyUpdate, &["NO", "KEY", "UPDATE"], "no_key_update"),
    (LockStrength::Update, &["UPDATE"], "update"),
];

impl fmt::Display for LockStrength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KeyShare => "FOR KEY SHARE",
            Self::Share => "FOR SHARE",
            Self::NoKeyUpdate => "FOR NO KEY UPDATE",
            Self::Update => "FOR UPDATE",
        })
    }
}

/// What to do about rows that others have locked; where two clauses name one table, the later of these counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockWait {
    /// Wait.
    Block,
    /// SKIP LOCKED: leave them out.
    SkipLocked,
    /// NOWAIT: fail.
    NoWait,
}

/// One locking clause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowLock {
    /// How.
    pub strength: LockStrength,
    /// The tables named, folded; none is all of them.
    pub of: Vec<String>,
    /// What to do about rows that others have locked.
    pub wait: LockWait,
}

/// The locking clauses behind a query, in their order; those of queries inside it are theirs.
pub fn row_locks(query: &Query) -> Vec<RowLock> {
    let locks = query.locks.iter().filter_map(|lock| {
        let mut parts = lock.of.iter().flat_map(|of| &of.0).filter_map(ObjectNamePart::as_ident);
        let marker = parts.next()?;
        let (strength, ..) = STRENGTHS.iter().find(|(.., marked)| marker.value == *marked)?;
        Some(RowLock {
            strength: *strength,
            of: parts.map(folded).collect(),
            wait: match lock.nonblock {
                None => LockWait::Block,
                Some(NonBlock::SkipLocked) => LockWait::SkipLocked,
                Some(NonBlock::Nowait) => LockWait::NoWait,
            },
        })
    });
    locks.collect()
}

fn folded(name: &Ident) -> String {
    match name.quote_style {
        Some(_) => name.value.clone(),
        None => name.value.to_lowercase(),
    }
}

/// Whether there may be a locking clause among the tokens, judged by two words.
pub(crate) fn may_lock(toks: &[Tok]) -> bool {
    (0..toks.len()).any(|at| is_clause(&toks[at..]))
}

fn is_clause(toks: &[Tok]) -> bool {
    let Some((first, rest)) = toks.split_first() else {
        return false;
    };
    is_word(first, "FOR") && STRENGTHS.iter().any(|(_, words, _)| starts_with(rest, words))
}

/// The tokens with every locking clause at the end of its query, in the form that sqlparser keeps.
pub(crate) fn to_the_end<'a>(sql: &str, toks: &'a [Tok]) -> Result<Cow<'a, [Tok]>, Stop> {
    if !may_lock(toks) {
        return Ok(Cow::Borrowed(toks));
    }
    let mut out = Vec::with_capacity(toks.len() + 8);
    // Of each parenthesis that is open: whether a query is in it, and its clauses so far.
    let mut open: Vec<(bool, Vec<Tok>)> = vec![(is_query(toks), vec![])];
    let mut at = 0;
    while let Some(tok) = toks.get(at) {
        match &tok.token.token {
            Token::LParen => open.push((is_query(&toks[at + 1..]), vec![])),
            Token::RParen if open.len() > 1 => out.extend(open.pop().map(|(_, clauses)| clauses).unwrap_or_default()),
            _ => {
                if let Some((true, clauses)) = open.last_mut()
                    && is_clause(&toks[at..])
                {
                    at += read(sql, &toks[at..], clauses)?;
                    continue;
                }
            }
        }
        out.push(tok.clone());
        at += 1;
    }
    open.into_iter().for_each(|(_, clauses)| out.extend(clauses));
    Ok(Cow::Owned(out))
}

/// Whether a query begins here, perhaps in parentheses.
fn is_query(toks: &[Tok]) -> bool {
    let first = toks.iter().find(|tok| tok.token.token != Token::LParen);
    first.is_some_and(|tok| ["SELECT", "WITH", "VALUES", "TABLE"].iter().any(|word| is_word(tok, word)))
}

/// Reads one clause into `clauses`; returns how many tokens it has.
fn read(sql: &str, toks: &[Tok], clauses: &mut Vec<Tok>) -> Result<usize, Stop> {
    let found = STRENGTHS.iter().find(|(_, words, _)| starts_with(&toks[1..], words));
    let Some((strength, words, marker)) = found else {
        return Ok(0);
    };
    let mut at = 1 + words.len();
    let like = |token: Token, tok: &Tok| Tok {
        token: TokenWithSpan::new(token, tok.token.span),
        ..tok.clone()
    };
    let word = |text: &str| Token::make_word(text, None);
    clauses.extend(["FOR", "UPDATE", "OF", marker].map(|text| like(word(text), &toks[0])));
    if toks.get(at).is_some_and(|tok| is_word(tok, "OF")) {
        loop {
            let Some(name) = toks.get(at + 1).filter(|tok| matches!(tok.token.token, Token::Word(_))) else {
                return Err(error_at(sql, toks, at + 1).into());
            };
            clauses.push(like(Token::Period, name));
            // As a name in quotes, whatever the word means elsewhere.
            clauses.push(like(quoted(&name.token.token), name));
            at += 2;
            match toks.get(at).map(|tok| &tok.token.token) {
                Some(Token::Comma) => {}
                Some(Token::Period) => {
                    let message = format!("{strength} must specify unqualified relation names");
                    return Err(ParseError::at(sql, name.start, "42601", message).into());
                }
                _ => break,
            }
        }
    }
    for (words, length) in [(&["NOWAIT"][..], 1), (&["SKIP", "LOCKED"][..], 2)] {
        if starts_with(&toks[at..], words) {
            clauses.extend_from_slice(&toks[at..at + length]);
            at += length;
            break;
        }
    }
    let ends = match toks.get(at) {
        None => true,
        Some(tok) if tok.token.token == Token::RParen => true,
        Some(tok) => ["LIMIT", "OFFSET", "FETCH"].iter().any(|word| is_word(tok, word)) || is_clause(&toks[at..]),
    };
    match ends {
        true => Ok(at),
        false => Err(error_at(sql, toks, at).into()),
    }
}

fn quoted(token: &Token) -> Token {
    match token {
        Token::Word(Word { value, quote_style, .. }) => {
            let name = match quote_style {
                Some(_) => value.clone(),
                None => value.to_lowercase(),
            };
            Token::make_word(&name, Some('"'))
        }
        other => other.clone(),
    }
}

fn error_at(sql: &str, toks: &[Tok], at: usize) -> ParseError {
    match (toks.get(at), toks.last()) {
        (Some(tok), _) => syntax_error_near(sql, tok.start, tok.end),
        (None, last) => {
            let end = last.map_or(sql.len(), |tok| tok.end);
            ParseError::at(sql, end, "42601", "syntax error at end of input")
        }
    }
}
