//! The prompt: line editing, history, statements over several lines.
//!
//! ```text
//! tessera=> select *          Enter: not finished, so the editor stays open
//! tessera->   from nation;    Enter: finished, runs
//! ```
//!
//! A whole statement is one entry of the history and can be edited as one. Ctrl-C forgets what was typed, or cancels
//! what runs; Ctrl-D on an empty line quits. Not done: completion and highlighting, which need the catalog.

use std::borrow::Cow;
use std::io::Write;
use std::path::PathBuf;

use reedline::{
    FileBackedHistory, Prompt, PromptEditMode, PromptHistorySearch, Reedline, Signal, ValidationResult, Validator,
};

use crate::error::{Error, Exit};
use crate::script::{Flow, report, run_piece};
use crate::session::{Session, warn};
use crate::split::Splitter;

/// Statements kept in the history file.
const HISTORY_MAX: usize = 10_000;

/// Reads and runs statements until the user quits.
pub async fn run(session: &mut Session) -> Exit {
    if !session.settings.quiet {
        let banner = writeln!(
            session.out,
            "tessera {} (server {})\nType \"\\?\" for help, \"\\q\" to quit.\n",
            env!("CARGO_PKG_VERSION"),
            session.server_version,
        );
        if banner.and_then(|()| session.out.flush()).is_err() {
            return Exit::Failed;
        }
    }
    let mut editor = editor();
    loop {
        let prompt = ShellPrompt {
            database: session.database().to_owned(),
        };
        // The editor blocks its thread; the connection's task must not share it.
        let read = tokio::task::spawn_blocking(move || {
            let signal = editor.read_line(&prompt);
            (editor, signal)
        });
        let signal = match read.await {
            Ok((returned, signal)) => {
                editor = returned;
                signal
            }
            Err(_) => return Exit::Failed,
        };
        match signal {
            Ok(Signal::Success(text)) => match run_text(session, &text).await {
                Ok(Flow::Continue) => {}
                Ok(Flow::Quit) => return Exit::Done,
                Err(exit) => return exit,
            },
            Ok(Signal::CtrlD) => return Exit::Done,
            Ok(_) => {}
            Err(error) => {
                warn(&format!("tessera: error: cannot read from the terminal: {error}"));
                return Exit::Failed;
            }
        }
    }
}

async fn run_text(session: &mut Session, text: &str) -> Result<Flow, Exit> {
    let mut splitter = Splitter::default();
    text.lines().for_each(|line| splitter.push_line(line));
    splitter.finish();
    while let Some(piece) = splitter.next_piece() {
        match run_piece(session, piece, None).await {
            Ok(Flow::Continue) => {}
            Ok(Flow::Quit) => return Ok(Flow::Quit),
            Err(Error::Lost(reason)) => {
                warn(&format!(
                    "{reason}\nThe connection to the server was lost. Attempting reset: "
                ));
                return reset(session).await;
            }
            Err(error @ Error::Output(_)) => {
                report(&error, "");
                return Err(Exit::Failed);
            }
            Err(error) => {
                report(&error, "");
                // The rest of the line was typed in the belief that this would work.
                return Ok(Flow::Continue);
            }
        }
    }
    Ok(Flow::Continue)
}

/// Connects again; should that fail, the prompt stays and the next statement tries once more.
async fn reset(session: &mut Session) -> Result<Flow, Exit> {
    match session.reconnect().await {
        Ok(()) => warn("Succeeded."),
        Err(error) => warn(&format!("Failed.\n{error}")),
    }
    Ok(Flow::Continue)
}

fn editor() -> Reedline {
    let editor = Reedline::create().with_validator(Box::new(StatementValidator));
    let Some(path) = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".tessera_history")) else {
        return editor;
    };
    match FileBackedHistory::with_file(HISTORY_MAX, path) {
        Ok(history) => editor.with_history(Box::new(history)),
        Err(error) => {
            warn(&format!("tessera: could not read history: {error}"));
            editor
        }
    }
}

/// Keeps the editor open until the text ends with a statement or is a command.
struct StatementValidator;

impl Validator for StatementValidator {
    fn validate(&self, text: &str) -> ValidationResult {
        let mut splitter = Splitter::default();
        text.lines().for_each(|line| splitter.push_line(line));
        match splitter.is_between_statements() {
            true => ValidationResult::Complete,
            false => ValidationResult::Incomplete,
        }
    }
}

/// psql's prompts.
struct ShellPrompt {
    database: String,
}

impl Prompt for ShellPrompt {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.database)
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_indicator(&self, _: PromptEditMode) -> Cow<'_, str> {
        Cow::Borrowed("=> ")
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        Cow::Owned(format!("{}-> ", self.database))
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        Cow::Owned(format!(" (search: {}) ", search.term))
    }
}
