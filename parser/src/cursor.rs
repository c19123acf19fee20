//! A walk over the tokens of one statement, for the clauses we read ourselves.
//!
//! ```text
//!   ALTER SHARD 3 OF public.t PROMOTE
//!               ^ at: everything before is read, an error now is "at or near "3""
//! ```
//!
//! Words are compared without case and only when unquoted: `"shard"` is a name, never our keyword.
//!
//! Not here: expressions and queries, which sqlparser reads (`query.rs`).

use sqlparser::tokenizer::Token;

use crate::error::{ParseError, Stop};
use crate::split::{Piece, Tok, syntax_error_near};
use crate::statement::ObjectName;

/// PostgreSQL's NAMEDATALEN less one. PostgreSQL cuts longer names and says so; we refuse them, since the query engine
/// would not cut them the same way.
const NAME_BYTES_MAX: usize = 63;

/// PostgreSQL 15's fully reserved words: none is a name unless quoted. Sorted.
const RESERVED: &[&str] = &[
    "ALL",
    "ANALYSE",
    "ANALYZE",
    "AND",
    "ANY",
    "ARRAY",
    "AS",
    "ASC",
    "ASYMMETRIC",
    "BOTH",
    "CASE",
    "CAST",
    "CHECK",
    "COLLATE",
    "COLUMN",
    "CONSTRAINT",
    "CREATE",
    "CURRENT_CATALOG",
    "CURRENT_DATE",
    "CURRENT_ROLE",
    "CURRENT_TIME",
    "CURRENT_TIMESTAMP",
    "CURRENT_USER",
    "DEFAULT",
    "DEFERRABLE",
    "DESC",
    "DISTINCT",
    "DO",
    "ELSE",
    "END",
    "EXCEPT",
    "FALSE",
    "FETCH",
    "FOR",
    "FOREIGN",
    "FROM",
    "GRANT",
    "GROUP",
    "HAVING",
    "IN",
    "INITIALLY",
    "INTERSECT",
    "INTO",
    "LATERAL",
    "LEADING",
    "LIMIT",
    "LOCALTIME",
    "LOCALTIMESTAMP",
    "NOT",
    "NULL",
    "OFFSET",
    "ON",
    "ONLY",
    "OR",
    "ORDER",
    "PLACING",
    "PRIMARY",
    "REFERENCES",
    "RETURNING",
    "SELECT",
    "SESSION_USER",
    "SOME",
    "SYMMETRIC",
    "TABLE",
    "THEN",
    "TO",
    "TRAILING",
    "TRUE",
    "UNION",
    "UNIQUE",
    "USER",
    "USING",
    "VARIADIC",
    "WHEN",
    "WHERE",
    "WINDOW",
    "WITH",
];

/// What is left of a statement. Copying it remembers a place to come back to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<'a> {
    sql: &'a str,
    toks: &'a [Tok],
    at: usize,
    end: usize,
}

impl<'a> Cursor<'a> {
    /// At the first token of `piece`.
    pub(crate) fn new(sql: &'a str, piece: &Piece<'a>) -> Self {
        Self {
            sql,
            toks: piece.toks,
            at: 0,
            end: piece.end,
        }
    }

    /// The whole text.
    pub(crate) fn sql(&self) -> &'a str {
        self.sql
    }

    /// The tokens not read yet.
    pub(crate) fn rest(&self) -> &'a [Tok] {
        &self.toks[self.at..]
    }

    /// The next token.
    pub(crate) fn peek(&self) -> Option<&'a Token> {
        self.rest().first().map(|tok| &tok.token.token)
    }

    /// Where the next token starts.
    pub(crate) fn offset(&self) -> usize {
        self.rest().first().map_or(self.end, |tok| tok.start)
    }

    /// The same in characters of the whole text, from 1.
    pub(crate) fn position(&self) -> usize {
        self.sql[..self.offset()].chars().count() + 1
    }

    /// Everything is read.
    pub(crate) fn is_done(&self) -> bool {
        self.rest().is_empty()
    }

    /// Passes over `count` tokens.
    pub(crate) fn skip(&mut self, count: usize) {
        self.at = (self.at + count).min(self.toks.len());
    }

    /// The tokens from here to `count` further on, and as they were written.
    pub(crate) fn take_slice(&mut self, count: usize) -> (&'a [Tok], &'a str) {
        let from = self.at;
        self.skip(count);
        let toks = &self.toks[from..self.at];
        (toks, text_of(self.sql, toks))
    }

    /// The next tokens are these words.
    pub(crate) fn sees(&self, words: &[&str]) -> bool {
        let rest = self.rest();
        rest.len() >= words.len() && words.iter().zip(rest).all(|(word, tok)| is_word(tok, word))
    }

    /// Reads these words, all or none.
    pub(crate) fn take(&mut self, words: &[&str]) -> bool {
        let seen = self.sees(words);
        if seen {
            self.at += words.len();
        }
        seen
    }

    /// Reads these words or fails at the first that is missing.
    pub(crate) fn expect(&mut self, words: &[&str]) -> Result<(), Stop> {
        for word in words {
            if !self.take(&[word]) {
                return Err(self.syntax_error().with_hint(format!("expected {word}")).into());
            }
        }
        Ok(())
    }

    /// The next token is this one.
    pub(crate) fn sees_symbol(&self, symbol: &Token) -> bool {
        self.peek() == Some(symbol)
    }

    /// Reads this token, if it is next.
    pub(crate) fn take_symbol(&mut self, symbol: &Token) -> bool {
        let seen = self.sees_symbol(symbol);
        self.at += usize::from(seen);
        seen
    }

    /// Reads this token or fails.
    pub(crate) fn expect_symbol(&mut self, symbol: &Token) -> Result<(), Stop> {
        if self.take_symbol(symbol) {
            return Ok(());
        }
        Err(self.syntax_error().with_hint(format!("expected \"{symbol}\"")).into())
    }

    /// The next word in upper case, if it is an unquoted one.
    pub(crate) fn peek_word(&self) -> Option<String> {
        match self.peek() {
            Some(Token::Word(word)) if word.quote_style.is_none() => Some(word.value.to_ascii_uppercase()),
            _ => None,
        }
    }

    /// A name, folded.
    pub(crate) fn name(&mut self) -> Result<String, Stop> {
        let Some(Token::Word(word)) = self.peek() else {
            return Err(self.syntax_error().with_hint("expected a name").into());
        };
        let name = if word.quote_style.is_some() {
            word.value.clone()
        } else {
            word.value.to_ascii_lowercase()
        };
        if word.quote_style.is_none()
            && RESERVED
                .binary_search(&word.value.to_ascii_uppercase().as_str())
                .is_ok()
        {
            let hint = format!(
                "{} is a reserved word; as a name it needs quotes: \"{name}\"",
                word.value
            );
            return Err(self.syntax_error().with_hint(hint).into());
        }
        if name.is_empty() {
            return Err(self.error("42601", "zero-length delimited identifier").into());
        }
        if name.len() > NAME_BYTES_MAX {
            let hint = format!("names have at most {NAME_BYTES_MAX} bytes, this one has {}", name.len());
            return Err(self
                .error("42622", format!("identifier \"{name}\" is too long"))
                .with_hint(hint)
                .into());
        }
        self.at += 1;
        Ok(name)
    }

    /// `name` or `schema.name`.
    pub(crate) fn object_name(&mut self) -> Result<ObjectName, Stop> {
        let start = self.offset();
        let first = self.name()?;
        if !self.take_symbol(&Token::Period) {
            return Ok(ObjectName {
                schema: None,
                name: first,
            });
        }
        let name = self.name()?;
        if self.sees_symbol(&Token::Period) {
            let message = "cross-database references are not implemented: a name has at most a schema before it";
            return Err(ParseError::at(self.sql, start, "0A000", message).into());
        }
        Ok(ObjectName {
            schema: Some(first),
            name,
        })
    }

    /// `(a, b)`, at least one name.
    pub(crate) fn names_in_parentheses(&mut self) -> Result<Vec<String>, Stop> {
        self.expect_symbol(&Token::LParen)?;
        let mut names = vec![self.name()?];
        while self.take_symbol(&Token::Comma) {
            names.push(self.name()?);
        }
        if !self.sees_symbol(&Token::RParen) {
            return Err(self.syntax_error().with_hint("expected \",\" or \")\"").into());
        }
        self.at += 1;
        Ok(names)
    }

    /// `(a, b)` where every name occurs once.
    pub(crate) fn distinct_names_in_parentheses(&mut self) -> Result<Vec<String>, Stop> {
        let start = self.offset();
        let names = self.names_in_parentheses()?;
        match first_duplicate(&names) {
            None => Ok(names),
            Some(name) => {
                let message = format!("column \"{name}\" specified more than once");
                Err(ParseError::at(self.sql, start, "42701", message).into())
            }
        }
    }

    /// A string, in any quotes PostgreSQL has for one.
    pub(crate) fn take_string(&mut self) -> Option<String> {
        let text = match self.peek()? {
            Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) | Token::UnicodeStringLiteral(text) => {
                text
            }
            Token::DollarQuotedString(quoted) => &quoted.value,
            _ => return None,
        };
        self.at += 1;
        Some(text.clone())
    }

    /// A string or an error.
    pub(crate) fn string(&mut self) -> Result<String, Stop> {
        match self.take_string() {
            Some(text) => Ok(text),
            None => Err(self
                .syntax_error()
                .with_hint("expected a string in single quotes")
                .into()),
        }
    }

    /// An unsigned whole number that fits.
    pub(crate) fn number(&mut self, what: &str) -> Result<u32, Stop> {
        let Some(Token::Number(digits, _)) = self.peek() else {
            return Err(self
                .syntax_error()
                .with_hint(format!("expected a number: {what}"))
                .into());
        };
        let Ok(number) = digits.parse() else {
            let message = format!("{what} {digits} is out of range");
            return Err(self.error("22023", message).with_hint("expected a whole number").into());
        };
        self.at += 1;
        Ok(number)
    }

    /// Fails unless everything is read.
    pub(crate) fn finish(&self) -> Result<(), Stop> {
        if self.is_done() {
            Ok(())
        } else {
            Err(self.syntax_error().into())
        }
    }

    /// An error at the next token.
    pub(crate) fn error(&self, sqlstate: &'static str, message: impl Into<String>) -> ParseError {
        ParseError::at(self.sql, self.offset(), sqlstate, message)
    }

    /// `syntax error at or near` the next token.
    pub(crate) fn syntax_error(&self) -> ParseError {
        match self.rest().first() {
            Some(tok) => syntax_error_near(self.sql, tok.start, tok.end),
            None if self.end < self.sql.len() => syntax_error_near(self.sql, self.end, self.end + 1),
            None => ParseError::at(self.sql, self.end, "42601", "syntax error at end of input"),
        }
    }

    /// Tokens before the first one outside parentheses for which `found` holds; `None` if there is none.
    pub(crate) fn find_outside_parentheses(&self, found: impl Fn(&[Tok]) -> bool) -> Option<usize> {
        let rest = self.rest();
        let mut depth = 0_usize;
        for (at, tok) in rest.iter().enumerate() {
            match &tok.token.token {
                Token::LParen => depth += 1,
                Token::RParen => depth = depth.saturating_sub(1),
                _ if depth == 0 && found(&rest[at..]) => return Some(at),
                _ => {}
            }
        }
        None
    }
}

/// `tok` is this word, unquoted.
pub(crate) fn is_word(tok: &Tok, word: &str) -> bool {
    matches!(&tok.token.token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word))
}

/// The first tokens of `toks` are these words.
pub(crate) fn starts_with(toks: &[Tok], words: &[&str]) -> bool {
    toks.len() >= words.len() && words.iter().zip(toks).all(|(word, tok)| is_word(tok, word))
}

/// `toks` as they were written.
pub(crate) fn text_of<'a>(sql: &'a str, toks: &[Tok]) -> &'a str {
    match (toks.first(), toks.last()) {
        (Some(first), Some(last)) => &sql[first.start..last.end],
        _ => "",
    }
}

/// The first name that occurs a second time.
pub(crate) fn first_duplicate(names: &[String]) -> Option<&String> {
    let mut seen = std::collections::HashSet::new();
    names.iter().find(|name| !seen.insert(name.as_str()))
}
