//! Cuts input into statements and backslash commands, line by line, as psql does.
//!
//! ```text
//! push "select ';', $$a;b$$ -- x;"      no piece yet: all three semicolons are quoted or commented
//! push "from t; select 2 \gx"           Statement("select ... from t;"), then Command { query: "select 2 ", text: "gx" }
//! ```
//!
//! Known: quoted strings and names, `E''` escapes, dollar quotes, nested block comments, parentheses (a semicolon inside
//! them does not end a statement). Every byte is looked at once, however long the statement. Not done: the bodies of
//! `BEGIN ATOMIC` functions, because the server has none.

use std::collections::VecDeque;

/// What a line of input amounts to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A statement with its semicolon, without blanks around it.
    Statement(String),
    /// A backslash command.
    Command {
        /// The unfinished statement before it, empty for a command on its own.
        query: String,
        /// The command to the end of its line, without the backslash.
        text: String,
    },
}

/// The state between lines. See the module's example.
#[derive(Debug, Default)]
pub struct Splitter {
    statement: String,
    state: State,
    depth: u32,
    /// Whether the statement has anything but blanks and comments.
    has_content: bool,
    pieces: VecDeque<Piece>,
}

/// What the next character is part of.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
enum State {
    #[default]
    Plain,
    Single {
        escapes: bool,
    },
    Double,
    Dollar(String),
    Comment(u32),
}

impl Splitter {
    /// Takes a line, with or without its line feed; a statement may go on in the next one.
    pub fn push_line(&mut self, line: &str) {
        let line = line.strip_suffix('\n').unwrap_or(line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        let mut rest = line;
        while !rest.is_empty() {
            rest = self.step(rest);
        }
        if !self.statement.is_empty() {
            self.statement.push('\n');
        }
    }

    /// The next finished piece, in order of input.
    pub fn next_piece(&mut self) -> Option<Piece> {
        self.pieces.pop_front()
    }

    /// Makes a piece of what is left without a semicolon, at the end of input.
    pub fn finish(&mut self) {
        self.end_statement();
        self.state = State::Plain;
    }

    /// Whether nothing is unfinished: blanks and comments do not count.
    pub fn is_between_statements(&self) -> bool {
        self.state == State::Plain && !self.has_content
    }

    /// Consumes at least one character of a non-empty `rest` and returns what remains.
    fn step<'a>(&mut self, rest: &'a str) -> &'a str {
        match self.state.clone() {
            State::Plain => self.step_plain(rest),
            State::Single { escapes } => self.step_quoted(rest, '\'', escapes),
            State::Double => self.step_quoted(rest, '"', false),
            State::Dollar(tag) => match rest.find(&tag) {
                Some(at) => self.leave(rest, at + tag.len()),
                None => self.take(rest, rest.len()),
            },
            State::Comment(level) => self.step_comment(rest, level),
        }
    }

    fn step_plain<'a>(&mut self, rest: &'a str) -> &'a str {
        if rest.starts_with("--") {
            return self.take(rest, rest.len());
        }
        if rest.starts_with("/*") {
            self.state = State::Comment(1);
            return self.take(rest, 2);
        }
        if let Some(command) = rest.strip_prefix('\\') {
            return self.command(command);
        }
        if let Some(tag) = dollar_tag(rest).filter(|_| !self.statement.ends_with(is_name_char)) {
            self.state = State::Dollar(tag.to_owned());
            self.has_content = true;
            return self.take(rest, tag.len());
        }
        let c = rest.chars().next().unwrap_or(' ');
        match c {
            '\'' => {
                self.state = State::Single {
                    escapes: self.after_escape_prefix(),
                }
            }
            '"' => self.state = State::Double,
            '(' => self.depth = self.depth.saturating_add(1),
            ')' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        if c == ';' && self.depth == 0 {
            let remaining = self.take(rest, 1);
            self.end_statement();
            return remaining;
        }
        self.has_content |= !c.is_whitespace();
        self.take(rest, c.len_utf8())
    }

    /// Inside quotes; a doubled quote needs no care, since it leaves and enters again.
    fn step_quoted<'a>(&mut self, rest: &'a str, quote: char, escapes: bool) -> &'a str {
        let end = rest.find(|c| c == quote || (escapes && c == '\\'));
        match end {
            None => self.take(rest, rest.len()),
            Some(at) if rest[at..].starts_with('\\') => {
                let escaped = rest[at + 1..].chars().next().map_or(0, char::len_utf8);
                self.take(rest, at + 1 + escaped)
            }
            Some(at) => self.leave(rest, at + 1),
        }
    }

    fn step_comment<'a>(&mut self, rest: &'a str, level: u32) -> &'a str {
        let (opening, closing) = (rest.find("/*"), rest.find("*/"));
        match (opening, closing) {
            (Some(open), close) if close.is_none_or(|close| open < close) => {
                self.state = State::Comment(level.saturating_add(1));
                self.take(rest, open + 2)
            }
            (_, Some(close)) if level <= 1 => self.leave(rest, close + 2),
            (_, Some(close)) => {
                self.state = State::Comment(level - 1);
                self.take(rest, close + 2)
            }
            _ => self.take(rest, rest.len()),
        }
    }

    /// A backslash in plain text: the rest of the line belongs to the command.
    fn command<'a>(&mut self, command: &'a str) -> &'a str {
        let query = if self.has_content {
            std::mem::take(&mut self.statement)
        } else {
            String::new()
        };
        self.clear_statement();
        self.pieces.push_back(Piece::Command {
            query,
            text: command.trim_end().to_owned(),
        });
        &command[command.len()..]
    }

    fn end_statement(&mut self) {
        if self.has_content {
            self.pieces
                .push_back(Piece::Statement(self.statement.trim().to_owned()));
        }
        self.clear_statement();
    }

    fn clear_statement(&mut self) {
        self.statement.clear();
        self.depth = 0;
        self.has_content = false;
    }

    fn leave<'a>(&mut self, rest: &'a str, length: usize) -> &'a str {
        self.state = State::Plain;
        self.take(rest, length)
    }

    /// Moves `length` bytes into the statement; blanks before it are dropped, so that positions count from its start.
    fn take<'a>(&mut self, rest: &'a str, length: usize) -> &'a str {
        let (taken, remaining) = rest.split_at(length);
        if self.statement.is_empty() {
            self.statement.push_str(taken.trim_start());
        } else {
            self.statement.push_str(taken);
        }
        remaining
    }

    /// Whether the quote to come follows a lone `E`.
    fn after_escape_prefix(&self) -> bool {
        let mut last = self.statement.chars().rev();
        matches!(last.next(), Some('e' | 'E')) && !last.next().is_some_and(is_name_char)
    }
}

/// All statements of a text, the last one with or without semicolon; backslash commands are left out.
pub fn statements(text: &str) -> Vec<String> {
    let mut splitter = Splitter::default();
    text.lines().for_each(|line| splitter.push_line(line));
    splitter.finish();
    let statement = |piece| match piece {
        Piece::Statement(statement) => Some(statement),
        Piece::Command { .. } => None,
    };
    std::iter::from_fn(|| splitter.next_piece())
        .filter_map(statement)
        .collect()
}

fn is_name_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

/// `$$` or `$name$` at the start of `rest`; `$1` is a parameter.
fn dollar_tag(rest: &str) -> Option<&str> {
    let name = &rest.strip_prefix('$')?;
    let end = name.find('$')?;
    let word = &name[..end];
    let valid =
        word.chars().all(|c| c.is_alphanumeric() || c == '_') && !word.starts_with(|c: char| c.is_ascii_digit());
    valid.then(|| &rest[..end + 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(statements(text), expected, "{text}");
    }

    #[test]
    fn statements_end_at_plain_semicolons_only() {
        check("select 1; select 2", &["select 1;", "select 2"]);
        check("  ;;\n -- nothing;\n/* ; */ ;", &[]);
        check("select ';', \"a;b\";", &["select ';', \"a;b\";"]);
        check("select 'it''s;'; select 2;", &["select 'it''s;';", "select 2;"]);
        check(
            r"select E'\';'; select '\'; select 3",
            &[r"select E'\';';", r"select '\';", "select 3"],
        );
        check(
            "select $$a;b$$, $x$ $$; $x$; select $1;",
            &["select $$a;b$$, $x$ $$; $x$;", "select $1;"],
        );
        check("select a$b$c; select 2;", &["select a$b$c;", "select 2;"]);
        check("select /* /* ; */ ; */ 1;", &["select /* /* ; */ ; */ 1;"]);
        check("select (1;\n2); x;", &["select (1;\n2);", "x;"]);
        check("select 'é;', 1;", &["select 'é;', 1;"]);
    }

    #[test]
    fn commands_take_the_rest_of_their_line() {
        let mut splitter = Splitter::default();
        splitter.push_line("\\d orders;");
        splitter.push_line("select 1 \\gx");
        splitter.push_line("select '\\d';");
        let command = |query: &str, text: &str| {
            Some(Piece::Command {
                query: query.into(),
                text: text.into(),
            })
        };
        assert_eq!(splitter.next_piece(), command("", "d orders;"));
        assert_eq!(splitter.next_piece(), command("select 1 ", "gx"));
        assert_eq!(splitter.next_piece(), Some(Piece::Statement("select '\\d';".into())));
        assert!(splitter.is_between_statements());
    }

    #[test]
    fn what_is_open_is_unfinished() {
        let check = |text: &str, finished| {
            let mut splitter = Splitter::default();
            splitter.push_line(text);
            assert_eq!(splitter.is_between_statements(), finished, "{text}");
        };
        check("", true);
        check("select 1;", true);
        check("-- note", true);
        check("select 1", false);
        check("select 1; select 'a", false);
        check("/* a", false);
        check("do $x$", false);
    }
}
