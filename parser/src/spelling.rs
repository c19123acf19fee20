//! What PostgreSQL reads and sqlparser does not, spelled in another way before sqlparser sees it.
//!
//! ```text
//!   TABLE c                          SELECT * FROM c             where a query may start
//!   FROM ONLY o, JOIN ONLY (o)       FROM o, JOIN o              no table has children
//!   ORDER BY a USING >               ORDER BY a DESC
//!   FETCH FIRST n ROWS ONLY          LIMIT n
//!   FETCH FIRST n ROWS WITH TIES     LIMIT __tessera_ties(n)     the planner makes a window of it
//!   GROUP BY DISTINCT a              GROUP BY "GROUP BY DISTINCT", a     see `desugar.rs`
//!   EXCLUDE NO OTHERS                (nothing)                   the other exclusions are refused
//!   U&'d!0061' UESCAPE '!'           U&'da'
//! ```
//!
//! Every new token stands where the one it replaces stood, so errors keep their places. Not here: what needs a tree
//! (`desugar.rs`).

use sqlparser::tokenizer::{Span, Token, TokenWithSpan};

use crate::cursor::{is_word, starts_with};
use crate::error::{Near, ParseError, Stop, unsupported};
use crate::split::{Tok, syntax_error_near};

/// Name of the function that stands for WITH TIES in a LIMIT.
pub const TIES: &str = "__tessera_ties";

/// The first item of a GROUP BY whose sets are to be distinct.
pub(crate) const DISTINCT_SETS: &str = "GROUP BY DISTINCT";

/// The tokens as sqlparser is to see them.
pub(crate) fn respell(sql: &str, toks: &[Tok]) -> Result<Vec<TokenWithSpan>, Stop> {
    let mut out: Vec<TokenWithSpan> = Vec::with_capacity(toks.len());
    let mut at = 0;
    while let Some(tok) = toks.get(at) {
        refuse_junk(sql, tok, toks.get(at + 1))?;
        let before = at.checked_sub(1).and_then(|before| toks.get(before));
        let span = tok.token.span;
        let step = match &tok.token.token {
            Token::UnicodeStringLiteral(_) if is_escape(&toks[at + 1..]) => escaped(sql, &toks[at..], &mut out)?,
            Token::Word(word) if word.quote_style.is_none() => match word.value.to_ascii_uppercase().as_str() {
                "TABLE" if starts_query(before) => table(toks, at, span, &mut out),
                "ONLY" if before.is_some_and(names_table) => only(toks, at, &mut out),
                "USING" => using(sql, &toks[at..], &mut out)?,
                "FETCH" => fetch(sql, &toks[at..], &mut out)?,
                "DISTINCT" if ends_with(toks, at, &["GROUP", "BY"]) => {
                    out.extend([Token::make_word(DISTINCT_SETS, Some('"')), Token::Comma].map(|t| at_span(t, span)));
                    1
                }
                "ALL" if ends_with(toks, at, &["GROUP", "BY"]) => 1,
                "EXCLUDE" => exclusion(&toks[at..])?,
                _ => 0,
            },
            _ => 0,
        };
        if step == 0 {
            out.push(tok.token.clone());
        }
        at += step.max(1);
    }
    Ok(out)
}

fn at_span(token: Token, span: Span) -> TokenWithSpan {
    TokenWithSpan { token, span }
}

fn words<'a>(words: &'a [&'a str], span: Span) -> impl Iterator<Item = TokenWithSpan> + 'a {
    words.iter().map(move |word| at_span(Token::make_keyword(word), span))
}

/// `toks[..at]` ends with these words.
fn ends_with(toks: &[Tok], at: usize, words: &[&str]) -> bool {
    at >= words.len() && starts_with(&toks[at - words.len()..at], words)
}

/// `1_000` and `1x`: sqlparser reads the first as a number, and the second as one with an alias.
fn refuse_junk(sql: &str, tok: &Tok, next: Option<&Tok>) -> Result<(), ParseError> {
    let Token::Number(number, _) = &tok.token.token else {
        return Ok(());
    };
    let glued = next
        .filter(|next| next.start == tok.end && matches!(&next.token.token, Token::Word(w) if w.quote_style.is_none()));
    if !number.contains('_') && glued.is_none() {
        return Ok(());
    }
    let end = glued.map_or(tok.end, |next| next.end);
    let near = Near(&sql[tok.start..end]);
    Err(ParseError::at(
        sql,
        tok.start,
        "42601",
        format!("trailing junk after numeric literal at or near {near}"),
    ))
}

/// A query may start behind this token.
fn starts_query(before: Option<&Tok>) -> bool {
    let Some(before) = before else { return true };
    let word = |word| is_word(before, word);
    matches!(before.token.token, Token::LParen | Token::RParen)
        || ["UNION", "EXCEPT", "INTERSECT", "ALL", "DISTINCT"]
            .into_iter()
            .any(word)
}

/// A table may be named behind this token.
fn names_table(before: &Tok) -> bool {
    matches!(before.token.token, Token::Comma | Token::LParen)
        || ["FROM", "JOIN", "TABLE"].into_iter().any(|word| is_word(before, word))
}

/// `TABLE c`: tokens read.
fn table(toks: &[Tok], at: usize, span: Span, out: &mut Vec<TokenWithSpan>) -> usize {
    let named = toks
        .get(at + 1)
        .is_some_and(|next| matches!(next.token.token, Token::Word(_)));
    if !named {
        return 0;
    }
    out.extend(words(&["SELECT"], span));
    out.push(at_span(Token::Mul, span));
    out.extend(words(&["FROM"], span));
    1
}

/// `ONLY o` and `ONLY (o)`: tokens read.
fn only(toks: &[Tok], at: usize, out: &mut Vec<TokenWithSpan>) -> usize {
    let rest = &toks[at + 1..];
    match rest.first().map(|tok| &tok.token.token) {
        Some(Token::Word(_)) => 1,
        Some(Token::LParen) => {
            let close = rest.iter().position(|tok| tok.token.token == Token::RParen);
            let inside = close.map(|close| &rest[1..close]);
            let name = inside.filter(|name| {
                !name.is_empty()
                    && name
                        .iter()
                        .all(|t| matches!(t.token.token, Token::Word(_) | Token::Period))
            });
            match name {
                Some(name) => {
                    out.extend(name.iter().map(|tok| tok.token.clone()));
                    name.len() + 3
                }
                None => 0,
            }
        }
        _ => 0,
    }
}

/// `USING >` of ORDER BY: tokens read.
fn using(sql: &str, toks: &[Tok], out: &mut Vec<TokenWithSpan>) -> Result<usize, Stop> {
    let Some(operator) = toks.get(1) else { return Ok(0) };
    let direction = match &operator.token.token {
        Token::Lt => "ASC",
        Token::Gt => "DESC",
        Token::LtEq | Token::GtEq | Token::Eq | Token::Neq | Token::Plus | Token::Minus | Token::Tilde => {
            let text = &sql[operator.start..operator.end];
            let message = format!("operator {text} is not a valid ordering operator");
            let error = ParseError::at(sql, operator.start, "42809", message);
            return Err(error.with_hint("ordering operators are < and >").into());
        }
        _ => return Ok(0),
    };
    out.extend(words(&[direction], operator.token.span));
    Ok(2)
}

/// `FETCH FIRST n ROWS ONLY` or `WITH TIES`: tokens read.
fn fetch(sql: &str, toks: &[Tok], out: &mut Vec<TokenWithSpan>) -> Result<usize, Stop> {
    if !starts_with(&toks[1..], &["FIRST"]) && !starts_with(&toks[1..], &["NEXT"]) {
        return Ok(0);
    }
    let mut depth = 0_usize;
    let mut rows = None;
    for (at, tok) in toks.iter().enumerate().skip(2) {
        match &tok.token.token {
            Token::LParen => depth += 1,
            Token::RParen if depth == 0 => break,
            Token::RParen => depth -= 1,
            _ if depth == 0 && (is_word(tok, "ROW") || is_word(tok, "ROWS")) => {
                rows = Some(at);
                break;
            }
            _ => {}
        }
    }
    let Some(rows) = rows else { return Ok(0) };
    let count = &toks[2..rows];
    let behind = &toks[rows + 1..];
    let ties = starts_with(behind, &["WITH", "TIES"]);
    if !ties && !starts_with(behind, &["ONLY"]) {
        return Err(match behind.first() {
            Some(tok) => syntax_error_near(sql, tok.start, tok.end),
            None => ParseError::at(sql, toks[rows].end, "42601", "syntax error at end of input"),
        }
        .with_hint("expected ONLY or WITH TIES")
        .into());
    }
    if let Some(percent) = count.iter().find(|tok| is_word(tok, "PERCENT")) {
        return Err(syntax_error_near(sql, percent.start, percent.end).into());
    }
    let span = toks[0].token.span;
    out.extend(words(&["LIMIT"], span));
    if ties {
        out.extend([Token::make_word(TIES, None), Token::LParen].map(|token| at_span(token, span)));
    }
    match count {
        [] => out.push(at_span(Token::Number("1".into(), false), span)),
        count => out.extend(count.iter().map(|tok| tok.token.clone())),
    }
    if ties {
        out.push(at_span(Token::RParen, toks[rows].token.span));
    }
    Ok(rows + 1 + if ties { 2 } else { 1 })
}

/// The exclusion of a window's frame: tokens read.
fn exclusion(toks: &[Tok]) -> Result<usize, Stop> {
    let exclusions: [&[&str]; 4] = [&["NO", "OTHERS"], &["CURRENT", "ROW"], &["GROUP"], &["TIES"]];
    for words in exclusions {
        let end = toks.get(words.len() + 1);
        let closes = end.is_some_and(|tok| tok.token.token == Token::RParen);
        if starts_with(&toks[1..], words) && closes {
            return match words {
                ["NO", "OTHERS"] => Ok(3),
                _ => unsupported(
                    format!("a window frame with EXCLUDE {}", words.join(" ")),
                    "take the row's own value off the frame's aggregate, as in sum(x) OVER (...) - x, or join the table with itself",
                ),
            };
        }
    }
    Ok(0)
}

fn is_escape(toks: &[Tok]) -> bool {
    starts_with(toks, &["UESCAPE"])
        && matches!(
            toks.get(1).map(|tok| &tok.token.token),
            Some(Token::SingleQuotedString(_))
        )
}

/// `U&'...' UESCAPE 'c'`, read from the text because sqlparser has taken the backslash for the escape: tokens read.
fn escaped(sql: &str, toks: &[Tok], out: &mut Vec<TokenWithSpan>) -> Result<usize, Stop> {
    let [literal, _, escape, ..] = toks else { return Ok(0) };
    let Token::SingleQuotedString(character) = &escape.token.token else {
        return Ok(0);
    };
    let mut characters = character.chars();
    let escape = match (characters.next(), characters.next()) {
        (Some(c), None) if !c.is_ascii_hexdigit() && !matches!(c, '+' | '\'' | '"') && !c.is_whitespace() => c,
        _ => {
            let error = ParseError::at(sql, escape.start, "42601", "invalid Unicode escape character");
            return Err(error.into());
        }
    };
    let written = &sql[literal.start..literal.end];
    let inside = written.split_once('\'').and_then(|(_, rest)| rest.strip_suffix('\''));
    let text = inside.and_then(|inside| decode(&inside.replace("''", "'"), escape));
    let Some(text) = text else {
        let error = ParseError::at(sql, literal.start, "42601", "invalid Unicode escape");
        return Err(error.with_hint("Unicode escapes must be \\XXXX or \\+XXXXXX").into());
    };
    out.push(at_span(Token::SingleQuotedString(text), literal.token.span));
    Ok(3)
}

/// `d!0061!+000061!!` with the escape `!` is `daa!`; `None` for an escape that is none.
fn decode(text: &str, escape: char) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(escape) {
        out.push_str(&rest[..at]);
        rest = &rest[at + escape.len_utf8()..];
        if let Some(after) = rest.strip_prefix(escape) {
            out.push(escape);
            rest = after;
            continue;
        }
        let (digits, count) = rest.strip_prefix('+').map_or((rest, 4), |digits| (digits, 6));
        let code = digits
            .get(..count)
            .filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
        out.push(char::from_u32(u32::from_str_radix(code, 16).ok()?)?);
        rest = &digits[count..];
    }
    out.push_str(rest);
    Some(out)
}
