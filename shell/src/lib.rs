//! `tessera sql`: a terminal client with the habits of psql.
//!
//! ```text
//! tessera sql [URL]                     prompt, or a script from a pipe
//! tessera sql -c "select 1" -f a.sql    one after the other
//!
//! interactive.rs --+                          +--> session.rs --> server
//! script.rs -------+--> split.rs --> piece ---+--> meta.rs --> describe.rs, copy.rs
//!                                             format.rs, table.rs <-- rows
//! ```
//!
//! It speaks the PostgreSQL protocol and nothing else, so it works against a plain PostgreSQL too, and it prints what
//! psql would print, so that scripts which read psql's output go on working.

mod copy;
mod describe;
mod error;
mod format;
mod interactive;
mod message;
mod meta;
mod script;
mod session;
mod split;
mod table;

use std::io::{BufReader, BufWriter, IsTerminal};

pub use error::Exit;
pub use format::Format;

use error::Error;
use script::{Ended, Flow, Lines};
use session::{Session, Settings, warn};
use split::Piece;

/// Where to connect when no URL is given.
pub const DEFAULT_URL: &str = "postgres://tessera@127.0.0.1:5433/tessera";

/// What the command line asks for.
#[derive(Debug, Clone, Default)]
pub struct ShellOptions {
    /// Address of the server; [`DEFAULT_URL`] when `None`.
    pub url: Option<String>,
    /// `-c` and `-f` in their order; none means standard input, a prompt if it is a terminal.
    pub actions: Vec<Action>,
    /// `--csv`, `--json`, or the default.
    pub format: Format,
    /// `-q`: neither banner nor command tags.
    pub quiet: bool,
    /// `-v ON_ERROR_STOP=1`: end at the first error.
    pub stop_on_error: bool,
}

/// Something to run instead of reading standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `-c`: one backslash command, or statements sent to the server as one.
    Command(String),
    /// `-f`: a script; `-` is standard input.
    File(String),
}

/// Runs the shell and returns its exit code: 0 done, 1 failed, 2 connection lost, 3 script stopped at an error.
pub async fn run(options: ShellOptions) -> i32 {
    let settings = Settings {
        format: options.format,
        stop_on_error: options.stop_on_error,
        quiet: options.quiet,
        ..Settings::default()
    };
    let url = options.url.as_deref().unwrap_or(DEFAULT_URL);
    let out = Box::new(BufWriter::new(std::io::stdout()));
    let mut session = match Session::connect(url, settings, out).await {
        Ok(session) => session,
        Err(Error::Lost(reason)) => {
            warn(&format!("tessera: error: {reason}"));
            return Exit::BadConnection as i32;
        }
        Err(error) => {
            warn(&format!("tessera: error: {error}"));
            return Exit::Failed as i32;
        }
    };
    let exit = if !options.actions.is_empty() {
        run_actions(&mut session, &options.actions).await
    } else if std::io::stdin().is_terminal() {
        interactive::run(&mut session).await
    } else {
        let mut input = BufReader::new(std::io::stdin());
        exit_of(script::run_lines(&mut session, Lines::new(&mut input, None)).await)
    };
    exit as i32
}

async fn run_actions(session: &mut Session, actions: &[Action]) -> Exit {
    let mut exit = Exit::Done;
    for action in actions {
        let ended = match action {
            Action::File(path) => script::run_file(session, path).await,
            Action::Command(text) => run_command(session, text).await,
        };
        exit = exit_of(ended);
        let fatal = exit == Exit::BadConnection || (exit != Exit::Done && session.settings.stop_on_error);
        if fatal || ended == Ok(Flow::Quit) {
            break;
        }
    }
    exit
}

/// `-c`: unlike a script, its statements go to the server together, and a failure counts without ON_ERROR_STOP.
async fn run_command(session: &mut Session, text: &str) -> Ended {
    let mut input = BufReader::new(std::io::stdin());
    let mut lines = Lines::new(&mut input, None);
    let piece = match text.trim().strip_prefix('\\') {
        Some(command) => Piece::Command {
            query: String::new(),
            text: command.to_owned(),
        },
        None => Piece::Statement(text.to_owned()),
    };
    let result = script::run_piece(session, piece, Some(&mut lines)).await;
    result.map_err(|error| {
        script::report(&error, "");
        match error {
            Error::Lost(_) => Exit::BadConnection,
            _ => Exit::Failed,
        }
    })
}

fn exit_of(ended: Ended) -> Exit {
    ended.map_or_else(|exit| exit, |_| Exit::Done)
}
