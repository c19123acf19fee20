//! What is wrong with a text, and where.
//!
//! ```text
//!   SELECT a, b FORM t          42601  syntax error at or near "t"
//!                    ^          position 18 (characters from 1), line 1, column 18
//! ```
//!
//! Messages are PostgreSQL's wherever PostgreSQL has one, since drivers and people match on them. Positions count
//! characters of the whole text that was sent, not of one statement, as field `P` of the wire protocol does.
//!
//! Not here: errors that need a catalog (unknown table, wrong type). Those are the planner's.

use std::fmt;

use crate::statement::Unsupported;

/// The text is not a statement: fix it and send it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParseError {
    /// Five characters of SQLSTATE, 42601 (syntax error) most of the time.
    pub sqlstate: &'static str,
    /// Lower case, one line, no full stop.
    pub message: String,
    /// What to try instead, where we can tell.
    pub hint: Option<String>,
    /// Characters from the start of the whole text, from 1; `None` when no single place is to blame.
    pub position: Option<usize>,
    /// Line of `position`, from 1; 0 without a position.
    pub line: usize,
    /// Character within `line`, from 1; 0 without a position.
    pub column: usize,
}

impl ParseError {
    /// An error about the statement as a whole.
    pub(crate) fn whole(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self {
            sqlstate,
            message: message.into(),
            hint: None,
            position: None,
            line: 0,
            column: 0,
        }
    }

    /// An error at byte `offset` of `sql`; an offset inside a character is moved to its start.
    pub(crate) fn at(sql: &str, offset: usize, sqlstate: &'static str, message: impl Into<String>) -> Self {
        let mut offset = offset.min(sql.len());
        while !sql.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &sql[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            position: Some(before.chars().count() + 1),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            ..Self::whole(sqlstate, message)
        }
    }

    /// The same error with advice.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Why reading a statement ended early: it is wrong, or it is right and we do not do it yet.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The text is refused.
    Error(ParseError),
    /// The statement is recognised and becomes [`crate::Statement::Unsupported`].
    Unsupported(Unsupported),
}

impl From<ParseError> for Stop {
    fn from(error: ParseError) -> Self {
        Self::Error(error)
    }
}

/// Stops with "recognised but not there yet".
pub(crate) fn unsupported<T>(what: impl Into<String>, hint: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Unsupported(Unsupported {
        what: what.into(),
        hint: hint.into(),
    }))
}

/// The word of `known` that `word` is most likely a misspelling of.
///
/// At most two letters may be wrong, and fewer than half of the word, so that `a` is never "did you mean AS".
pub(crate) fn did_you_mean<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    // Longer words are not misspelt keywords, and the distance costs the product of both lengths.
    if word.len() > 32 {
        return None;
    }
    let word = word.to_ascii_uppercase();
    known
        .iter()
        .map(|candidate| (edit_distance(&word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 2 && distance * 2 < candidate.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, delete, replace or swap with their neighbour to make one word of the other (Damerau 1964).
fn edit_distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=left.len() {
        for j in 1..=right.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[left.len()][right.len()]
}

/// Quotes a name for a message, shortened so that a message stays one line.
pub(crate) struct Near<'a>(pub(crate) &'a str);

/// Characters of a token shown in a message; a longer one (a pasted file) is cut.
const NEAR_CHARS_MAX: usize = 64;

impl fmt::Display for Near<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self
            .0
            .char_indices()
            .nth(NEAR_CHARS_MAX)
            .map_or(self.0.len(), |(at, _)| at);
        write!(f, "\"{}\"", &self.0[..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_of_the_whole_text() {
        let sql = "é\nß x";
        let error = ParseError::at(sql, sql.find('x').unwrap_or(0), "42601", "m");
        assert_eq!((error.position, error.line, error.column), (Some(5), 2, 3));
        let end = ParseError::at(sql, 1_000, "42601", "m");
        assert_eq!((end.position, end.line, end.column), (Some(6), 2, 4));
    }

    #[test]
    fn misspellings_are_recognised_and_short_words_are_left_alone() {
        assert_eq!(did_you_mean("selcet", &["INSERT", "SELECT"]), Some("SELECT"));
        assert_eq!(did_you_mean("slect", &["INSERT", "SELECT"]), Some("SELECT"));
        assert_eq!(did_you_mean("a", &["AS"]), None);
        assert_eq!(did_you_mean("frobnicate", &["INSERT", "SELECT"]), None);
    }
}
