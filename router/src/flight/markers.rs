//! Parameters written `?`, as JDBC and many Python programs write them, numbered as `$1`, `$2`, ...
//!
//! ```text
//!   SELECT '?', "a?" FROM t WHERE k = ? AND v = ?  -- ?      ──▶  SELECT '?', "a?" FROM t WHERE k = $1 AND v = $2  -- ?
//! ```
//!
//! A text with `$1` in it is left as it is: there a `?` is something else. Tessera has no operators with a question mark.

use std::borrow::Cow;

/// The text with numbered parameters.
pub(super) fn numbered(sql: &str) -> Cow<'_, str> {
    if !sql.contains('?') {
        return Cow::Borrowed(sql);
    }
    let (mut out, mut count, mut copied, mut at) = (String::with_capacity(sql.len() + 16), 0, 0, 0);
    while at < sql.len() {
        match piece(&sql[at..]) {
            Piece::Marker => {
                count += 1;
                out.push_str(&sql[copied..at]);
                out.push_str(&format!("${count}"));
                at += 1;
                copied = at;
            }
            Piece::Numbered => return Cow::Borrowed(sql),
            Piece::Other(length) => at += length,
        }
    }
    if count == 0 {
        return Cow::Borrowed(sql);
    }
    out.push_str(&sql[copied..]);
    Cow::Owned(out)
}

enum Piece {
    /// `?`
    Marker,
    /// `$1`
    Numbered,
    /// So many bytes of something else: at least the first character.
    Other(usize),
}

/// What a text begins with.
fn piece(text: &str) -> Piece {
    let mut chars = text.chars();
    let Some(first) = chars.next() else {
        return Piece::Other(0);
    };
    let rest = chars.as_str();
    Piece::Other(match first {
        '?' => return Piece::Marker,
        '$' if rest.starts_with(|c: char| c.is_ascii_digit()) => return Piece::Numbered,
        '$' => dollar_quoted(text).unwrap_or(1),
        '\'' => quoted(text, '\'', false),
        '"' => quoted(text, '"', false),
        'e' | 'E' if rest.starts_with('\'') => 1 + quoted(rest, '\'', true),
        '-' if rest.starts_with('-') => text.find('\n').unwrap_or(text.len()),
        '/' if rest.starts_with('*') => comment(text),
        // A name as a whole, so that its letters begin nothing; it may contain `$`.
        c if c.is_alphanumeric() || c == '_' => text
            .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'))
            .unwrap_or(text.len()),
        c => c.len_utf8(),
    })
}

/// Bytes of a quoted text; all that is left when it does not end. A doubled quote is the end of one and the start of another.
fn quoted(text: &str, quote: char, backslashes: bool) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' if backslashes => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Bytes of `$tag$ ... $tag$`.
fn dollar_quoted(text: &str) -> Option<usize> {
    let tag = 2 + text[1..].find('$')?;
    let name = &text[1..tag - 1];
    if !name.chars().all(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let end = text[tag..].find(&text[..tag]);
    Some(end.map_or(text.len(), |end| tag + end + tag))
}

/// Bytes of a comment, with those inside it.
fn comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[track_caller]
    fn check(sql: &str, expected: &str) {
        assert_eq!(numbered(sql), expected);
    }

    #[test]
    fn markers_are_numbered_outside_of_quotes_and_comments() {
        check("SELECT 1", "SELECT 1");
        check("k = ? AND v=?", "k = $1 AND v=$2");
        check("'?' \"?\" ? 'it''s ?' ?", "'?' \"?\" $1 'it''s ?' $2");
        check(r"E'\'?' ? 'a\' ?", r"E'\'?' $1 'a\' $2");
        check("name'?' ?", "name'?' $1");
        check("-- ?\n? /* ? /* ? */ ? */ ?", "-- ?\n$1 /* ? /* ? */ ? */ $2");
        check("$$?$$ $a$ $$ ? $a$ ?", "$$?$$ $a$ $$ ? $a$ $1");
        check("a$b? ä?", "a$b$1 ä$2");
        check("$1 ?", "$1 ?");
        for open in ["'?", "\"?", "/* ?", "$a$ ?", "E'\\"] {
            check(open, open);
        }
    }
}
