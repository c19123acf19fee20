//! One text to the tokens of its statements.
//!
//! ```text
//!   text     SELECT 'a;b' ; -- one; two
//!            INSERT INTO t VALUES (1)
//!   tokens   [SELECT] ['a;b'] ; [INSERT] [INTO] [t] [VALUES] [(] [1] [)]
//!   pieces   └───────────────┘  └─────────────────────────────────────┘
//! ```
//!
//! The whole text is read into tokens once, so a semicolon in a string, a comment or a dollar quote splits nothing, and
//! every place is known in the whole text. Comments and white space are dropped here.
//!
//! Here too are the bounds on what a text may cost: its length, its tokens, and how deep a tree it can grow.

use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer, TokenizerError, Whitespace};

use crate::error::{Near, ParseError};

/// Longest text, in bytes. A token costs about 130 bytes while it is read, so the worst text, all one-character tokens,
/// needs 2 GiB for a moment; a real one of this size a tenth of that. Larger data comes in through COPY.
pub const TEXT_BYTES_MAX: usize = 16 << 20;

/// Most tokens in a text, white space not counted. The tree is some three times the size of its tokens.
pub const TOKENS_MAX: usize = 4 << 20;

/// Deepest tree an expression or a set operation may grow without parentheses: `a + a + ...` and `UNION` chains nest to
/// the left, one level an operator, and every later walk over the tree, even freeing it, recurses that far. Reading,
/// visiting, printing and freeing 500 levels fits the 2 MiB of a thread's stack. Copying takes up to 14 KiB a level in a
/// debug build: a thread that clones trees of strangers wants 8 MiB.
pub const CHAIN_DEPTH_MAX: usize = 500;

/// One token and its bytes in the whole text.
#[derive(Debug, Clone)]
pub(crate) struct Tok {
    /// What it is, with its line and column for sqlparser.
    pub(crate) token: TokenWithSpan,
    /// First byte.
    pub(crate) start: usize,
    /// One past the last byte.
    pub(crate) end: usize,
}

/// The tokens of one statement, at least one.
#[derive(Debug)]
pub(crate) struct Piece<'t> {
    /// Without the semicolon.
    pub(crate) toks: &'t [Tok],
    /// First byte of the semicolon, or the end of the text.
    pub(crate) end: usize,
}

/// Reads `sql` into tokens, without comments and white space.
pub(crate) fn tokenize(sql: &str) -> Result<Vec<Tok>, ParseError> {
    if sql.len() > TEXT_BYTES_MAX {
        return Err(
            ParseError::whole("54000", format!("statement text of {} bytes is too long", sql.len())).with_hint(
                format!("the limit is {TEXT_BYTES_MAX} bytes; load larger data with COPY"),
            ),
        );
    }
    let mut spans = Vec::new();
    let dialect = PostgreSqlDialect {};
    let result = Tokenizer::new(&dialect, sql).tokenize_with_location_into_buf(&mut spans);
    if let Err(error) = result {
        return Err(lexical_error(sql, spans.last(), &error));
    }
    let mut places = Places::new(sql);
    let mut toks: Vec<Tok> = Vec::new();
    let mut newline_since_last = false;
    for token in spans {
        if let Token::Whitespace(space) = &token.token {
            newline_since_last |= matches!(space, Whitespace::Newline | Whitespace::SingleLineComment { .. });
            continue;
        }
        let start = places.advance_to(token.span.start);
        let end = places.advance_to(token.span.end);
        if let (Some(last), Token::SingleQuotedString(more)) = (toks.last_mut(), &token.token)
            && let Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) = &mut last.token.token
        {
            // The SQL standard's continuation: 'a' and 'b' on separate lines are one string. On one line they are an
            // error, which sqlparser would take for a column alias.
            if !newline_since_last {
                return Err(syntax_error_near(sql, start, end));
            }
            text.push_str(more);
            last.end = end;
            last.token.span.end = token.span.end;
        } else {
            if toks.len() == TOKENS_MAX {
                return Err(
                    ParseError::at(sql, start, "54000", "statement text has too many tokens")
                        .with_hint(format!("the limit is {TOKENS_MAX}; load larger data with COPY")),
                );
            }
            toks.push(Tok { token, start, end });
        }
        newline_since_last = false;
    }
    Ok(toks)
}

/// Splits at semicolons. Empty statements (`;;`) vanish, as in PostgreSQL.
pub(crate) fn split<'t>(sql: &str, toks: &'t [Tok]) -> Vec<Piece<'t>> {
    let mut pieces = Vec::new();
    let mut from = 0;
    for (at, tok) in toks.iter().enumerate() {
        if tok.token.token == Token::SemiColon {
            pieces.push(Piece {
                toks: &toks[from..at],
                end: tok.start,
            });
            from = at + 1;
        }
    }
    pieces.push(Piece {
        toks: &toks[from..],
        end: sql.len(),
    });
    pieces.retain(|piece| !piece.toks.is_empty());
    pieces
}

/// PostgreSQL's most frequent message.
pub(crate) fn syntax_error_near(sql: &str, start: usize, end: usize) -> ParseError {
    ParseError::at(
        sql,
        start,
        "42601",
        format!("syntax error at or near {}", Near(&sql[start..end])),
    )
}

/// Checks that no tree made of `toks` is deeper than [`CHAIN_DEPTH_MAX`], not counting sqlparser's own recursion, which
/// it bounds itself.
pub(crate) fn check_depth(sql: &str, toks: &[Tok]) -> Result<(), ParseError> {
    let mut outer: Vec<Level> = Vec::new();
    let mut level = Level::default();
    for (at, tok) in toks.iter().enumerate() {
        if at > 0 && nests_without_bound(&toks[at - 1].token.token, &tok.token.token) {
            return Err(syntax_error_near(sql, tok.start, tok.end));
        }
        match &tok.token.token {
            Token::LParen | Token::LBracket => {
                outer.push(level);
                level = Level::default();
            }
            Token::RParen | Token::RBracket => {
                // A subscript nests what stands before it, like an operator; a call or a group does not.
                let subscript = usize::from(tok.token.token == Token::RBracket);
                let inner = level.depth();
                level = outer.pop().unwrap_or_default();
                // One level for the parentheses, one for the operator they stand under.
                level.run = (level.run + subscript).max(inner + 2);
                level.after_operand = true;
            }
            token => level.read(token),
        }
        if level.depth() > CHAIN_DEPTH_MAX {
            return Err(ParseError::at(
                sql,
                tok.start,
                "54001",
                "statement is too complex: too many operators in a row",
            )
            .with_hint(format!(
                "the limit is {CHAIN_DEPTH_MAX}; write long OR chains as IN (...), long UNION chains as VALUES"
            )));
        }
    }
    Ok(())
}

/// `INTERVAL INTERVAL` and `ARRAY <`: wrong in PostgreSQL, and read by sqlparser with a recursion it does not bound.
fn nests_without_bound(before: &Token, token: &Token) -> bool {
    let is = |token: &Token, name: &str| matches!(token, Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(name));
    (is(before, "INTERVAL") && is(token, "INTERVAL")) || (is(before, "ARRAY") && *token == Token::Lt)
}

/// How deep the tree of one pair of parentheses can be, so far.
#[derive(Default)]
struct Level {
    /// Set operations and joins: each nests everything before it.
    sets: usize,
    /// Operators since the last place where a new expression starts.
    run: usize,
    /// The largest `run` before that.
    longest_run: usize,
    /// The last token ended an operand. After an operator even `WHEN` is an operand: sqlparser takes it for a name.
    after_operand: bool,
}

impl Level {
    fn depth(&self) -> usize {
        self.sets + self.run.max(self.longest_run)
    }

    fn read(&mut self, token: &Token) {
        match token {
            Token::Word(word) if word.quote_style.is_none() => self.read_word(&word.value.to_ascii_uppercase()),
            Token::Comma => self.start_expression(),
            Token::Word(_) | Token::Number(..) | Token::SingleQuotedString(_) => self.after_operand = true,
            Token::Period => {}
            // All other tokens are operators, or literals so rare that counting them does not matter.
            _ => self.read_operator(),
        }
    }

    fn read_word(&mut self, word: &str) {
        match word {
            "UNION" | "EXCEPT" | "INTERSECT" | "JOIN" => self.sets += 1,
            "SELECT" | "FROM" | "WHERE" | "HAVING" | "ON" | "WHEN" | "THEN" | "ELSE" if self.after_operand => {
                self.start_expression();
            }
            "AND" | "OR" | "NOT" | "IS" | "IN" | "LIKE" | "ILIKE" | "SIMILAR" | "BETWEEN" | "COLLATE" | "AT"
            | "ISNULL" | "NOTNULL" | "OVERLAPS" | "OPERATOR" | "REGEXP" | "RLIKE" | "ESCAPE" | "XOR" | "DIV"
            | "MATCH" | "MEMBER" | "MINUS" => self.read_operator(),
            _ => self.after_operand = true,
        }
    }

    fn read_operator(&mut self) {
        self.run += 1;
        self.after_operand = false;
    }

    fn start_expression(&mut self) {
        self.longest_run = self.longest_run.max(self.run);
        self.run = 0;
    }
}

/// Lines and columns to bytes, in one pass: questions must come in ascending order.
struct Places<'a> {
    chars: std::str::CharIndices<'a>,
    line: u64,
    column: u64,
}

impl<'a> Places<'a> {
    fn new(sql: &'a str) -> Self {
        Self {
            chars: sql.char_indices(),
            line: 1,
            column: 1,
        }
    }

    fn advance_to(&mut self, place: Location) -> usize {
        while (self.line, self.column) < (place.line, place.column) {
            match self.chars.next() {
                Some((_, '\n')) => {
                    self.line += 1;
                    self.column = 1;
                }
                Some(_) => self.column += 1,
                None => break,
            }
        }
        self.chars.offset()
    }
}

/// sqlparser's complaint about a token, as PostgreSQL words it: the place is where the unfinished token starts.
fn lexical_error(sql: &str, last: Option<&TokenWithSpan>, error: &TokenizerError) -> ParseError {
    let mut places = Places::new(sql);
    let start = last.map_or(0, |token| places.advance_to(token.span.end));
    let blamed = places.advance_to(error.location);
    let message = error.message.to_ascii_lowercase();
    let (what, hint) = if message.contains("dollar") {
        (
            "unterminated dollar-quoted string",
            "the opening $tag$ needs the same $tag$ at the end",
        )
    } else if message.contains("comment") {
        ("unterminated /* comment", "close the comment with */")
    } else if message.contains("close delimiter") {
        (
            "unterminated quoted identifier",
            "close the name with \"; a quote inside a name is written \"\"",
        )
    } else if message.contains("untermin") {
        (
            "unterminated quoted string",
            "close the string with '; a quote inside a string is written ''",
        )
    } else {
        return syntax_error_near(
            sql,
            start,
            sql[start..].find(char::is_whitespace).map_or(sql.len(), |n| start + n),
        )
        .with_hint(message);
    };
    // The tokenizer blames the start of some tokens and the end of others; the end of the last good token is right for all.
    let start = if start < sql.len() { start } else { blamed };
    let end = sql[start..].find('\n').map_or(sql.len(), |newline| start + newline);
    ParseError::at(
        sql,
        start,
        "42601",
        format!("{what} at or near {}", Near(&sql[start..end])),
    )
    .with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sql: &str, expected: &[&str]) {
        let toks = tokenize(sql).expect("the text is made of tokens");
        let texts: Vec<&str> = split(sql, &toks)
            .iter()
            .map(|piece| &sql[piece.toks[0].start..piece.toks[piece.toks.len() - 1].end])
            .collect();
        assert_eq!(texts, expected, "{sql}");
    }

    #[test]
    fn semicolons_split_only_between_tokens() {
        check("", &[]);
        check(" ;; -- nothing;\n /* no; /* thing */ ; */ ;", &[]);
        check("a;b ;c", &["a", "b", "c"]);
        check(
            "SELECT 'a;b', \"c;d\", $$e;f$$, E'\\';' ; x",
            &["SELECT 'a;b', \"c;d\", $$e;f$$, E'\\';'", "x"],
        );
        check("-- é;\n é ; ß -- x", &["é", "ß"]);
    }

    #[test]
    fn strings_continue_on_the_next_line() {
        let toks = tokenize("'a' -- c\n  'b'").expect("one string");
        assert_eq!(toks.len(), 1);
        assert_eq!(toks[0].token.token, Token::SingleQuotedString("ab".into()));
        assert_eq!(tokenize("SELECT 'a' 'b'").expect_err("two strings").position, Some(12));
    }

    #[test]
    fn long_chains_are_refused_and_long_lists_are_not() {
        let depth = |sql: &str| check_depth(sql, &tokenize(sql).expect("tokens")).map_err(|error| error.sqlstate);
        assert_eq!(
            depth(&format!("SELECT 1{}", " + 1".repeat(CHAIN_DEPTH_MAX + 1))),
            Err("54001")
        );
        assert_eq!(
            depth(&format!("SELECT 1{}", " + 1".repeat(CHAIN_DEPTH_MAX / 2))),
            Ok(())
        );
        assert_eq!(depth(&format!("VALUES (1 + 1){}", ", (-1 * 2)".repeat(20_000))), Ok(()));
        assert_eq!(
            depth(&format!("CASE{} END", " WHEN a = 1 THEN 2".repeat(20_000))),
            Ok(())
        );
        let nested = (0..20).fold("1".to_owned(), |inner, _| format!("({inner}){}", " + 1".repeat(60)));
        assert_eq!(depth(&format!("SELECT {nested}")), Err("54001"));
    }

    #[test]
    fn limits_have_their_own_sqlstate() {
        let error = tokenize(&" ".repeat(TEXT_BYTES_MAX + 1)).expect_err("too long");
        assert_eq!(error.sqlstate, "54000");
    }
}
