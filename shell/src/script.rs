//! Runs statements and commands that come from somewhere else than the prompt: `-c`, `-f`, `\i`, a pipe.
//!
//! ```text
//! line --> Splitter --> Piece::Statement --> Session::execute          error: "tessera:load.sql:3: ERROR:  ..."
//!                   --> Piece::Command ----> meta::run
//! ```
//!
//! A failed statement does not end a script unless ON_ERROR_STOP is set, as in psql. Rows for `COPY ... FROM STDIN` are
//! the lines after it, up to `\.`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::pin::Pin;

use crate::copy;
use crate::error::{Error, Exit, Result};
use crate::message::{CopyDirection, copy_direction};
use crate::meta::{self, Next};
use crate::session::{Session, warn};
use crate::split::{Piece, Splitter};

/// How deep files may include files; a file that includes itself would otherwise run until the stack ends.
const INCLUDES_MAX: usize = 16;

/// How a piece or a script ended, if it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The next one may run.
    Continue,
    /// `\q`.
    Quit,
}

/// How a script ended: normally, or with the exit code of the shell.
pub type Ended = std::result::Result<Flow, Exit>;

/// Lines of a script, with their number for messages.
pub struct Lines<'a> {
    input: &'a mut (dyn BufRead + Send),
    name: Option<&'a str>,
    number: u64,
    depth: usize,
}

impl<'a> Lines<'a> {
    /// A script of this name; one without a name has no place to point to in messages.
    pub fn new(input: &'a mut (dyn BufRead + Send), name: Option<&'a str>) -> Self {
        Self {
            input,
            name,
            number: 0,
            depth: 0,
        }
    }

    fn next(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        let read = self.input.read_until(b'\n', &mut line);
        let length = read.map_err(|e| Error::Command(format!("cannot read script: {e}")))?;
        self.number += 1;
        if length == 0 {
            return Ok(None);
        }
        let text = String::from_utf8(line).map_err(|_| Error::Command("script is not valid UTF-8".to_owned()))?;
        // A byte order mark is not part of the first statement.
        Ok(Some(text.trim_start_matches('\u{feff}').to_owned()))
    }

    /// `tessera:load.sql:3: `, or nothing for a pipe without a name.
    fn place(&self) -> String {
        self.name
            .map_or(String::new(), |name| format!("tessera:{name}:{}: ", self.number))
    }
}

/// Runs a file; `-` is standard input.
///
/// # Errors
/// The exit code, when the file cannot be read or the script cannot go on.
pub async fn run_file(session: &mut Session, path: &str) -> Ended {
    if path == "-" {
        return run_lines(
            session,
            Lines::new(&mut BufReader::new(std::io::stdin()), Some("<stdin>")),
        )
        .await;
    }
    let file = File::open(path).map_err(|error| {
        warn(&format!("tessera: error: {path}: {error}"));
        Exit::Failed
    })?;
    run_lines(session, Lines::new(&mut BufReader::new(file), Some(path))).await
}

/// Runs lines to their end, printing errors with their place.
///
/// # Errors
/// The exit code, when the script cannot go on.
pub async fn run_lines(session: &mut Session, mut lines: Lines<'_>) -> Ended {
    let mut splitter = Splitter::default();
    loop {
        let line = match lines.next() {
            Ok(line) => line,
            Err(error) => {
                warn(&format!("{}{}", lines.place(), error));
                return Err(Exit::Failed);
            }
        };
        match &line {
            Some(line) => splitter.push_line(line),
            None => splitter.finish(),
        }
        while let Some(piece) = splitter.next_piece() {
            let result = run_piece(session, piece, Some(&mut lines)).await;
            match result {
                Ok(Flow::Continue) => {}
                Ok(Flow::Quit) => return Ok(Flow::Quit),
                Err(error) => survive(session, &error, &lines.place())?,
            }
        }
        if line.is_none() {
            return Ok(Flow::Continue);
        }
    }
}

/// Prints an error and decides whether a script goes on after it.
fn survive(session: &Session, error: &Error, place: &str) -> std::result::Result<(), Exit> {
    report(error, place);
    match error {
        Error::Lost(_) => Err(Exit::BadConnection),
        Error::Output(_) => Err(Exit::Failed),
        _ if session.settings.stop_on_error => Err(Exit::Stopped),
        _ => Ok(()),
    }
}

/// Prints an error as psql does.
pub fn report(error: &Error, place: &str) {
    match error {
        Error::Statement(text) => warn(&format!("{place}{}", text.trim_end())),
        Error::Command(text) => warn(&format!("{place}error: {text}")),
        // Whoever reads us has gone, usually on purpose (`| head`).
        Error::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        other => warn(&format!("{place}error: {}", crate::session::chain(other))),
    }
}

/// Runs one piece; `lines` are where rows for COPY come from, and are missing at the prompt.
///
/// # Errors
/// As [`Session::execute`].
pub async fn run_piece(session: &mut Session, piece: Piece, lines: Option<&mut Lines<'_>>) -> Result<Flow> {
    match piece {
        Piece::Statement(statement) => run_statement(session, &statement, lines).await.map(|()| Flow::Continue),
        Piece::Command { query, text } => {
            let depth = lines.as_ref().map_or(0, |lines| lines.depth);
            match meta::run(session, &text).await? {
                Next::Continue => Ok(Flow::Continue),
                Next::Quit => Ok(Flow::Quit),
                Next::Include(path) => include(session, &path, depth + 1).await,
                Next::Execute { expanded } => {
                    let before = session.settings.expanded;
                    session.settings.expanded |= expanded;
                    let result = run_statement(session, &query, lines).await;
                    session.settings.expanded = before;
                    result.map(|()| Flow::Continue)
                }
            }
        }
    }
}

async fn run_statement(session: &mut Session, statement: &str, lines: Option<&mut Lines<'_>>) -> Result<()> {
    match (copy_direction(statement), lines) {
        (None, _) => session.execute(statement).await,
        (Some(CopyDirection::Out), _) => copy::copy_out(session, statement).await,
        (Some(CopyDirection::In), Some(lines)) => copy::copy_in(session, statement, lines.input).await,
        (Some(CopyDirection::In), None) => {
            let message = "rows for COPY FROM STDIN cannot be typed in\nUse \\copy TABLE FROM 'FILE'.";
            Err(Error::Command(message.to_owned()))
        }
    }
}

/// Runs an included file. Boxed, because a file may include another.
fn include<'a>(
    session: &'a mut Session,
    path: &'a str,
    depth: usize,
) -> Pin<Box<dyn Future<Output = Result<Flow>> + Send + 'a>> {
    Box::pin(async move {
        if depth > INCLUDES_MAX {
            return Err(Error::Command(format!(
                "{path}: files include each other more than {INCLUDES_MAX} deep"
            )));
        }
        let file = File::open(path).map_err(|error| Error::Command(format!("{path}: {error}")))?;
        let mut input = BufReader::new(file);
        let lines = Lines {
            input: &mut input,
            name: Some(path),
            number: 0,
            depth,
        };
        match run_lines(session, lines).await {
            // \q in an included file ends that file alone.
            Ok(_) => Ok(Flow::Continue),
            Err(Exit::BadConnection) => Err(Error::Lost(format!("while running {path}"))),
            Err(_) => Err(Error::Command(format!("{path}: stopped at an error"))),
        }
    })
}
