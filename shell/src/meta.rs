//! Backslash commands.
//!
//! ```text
//! \d "My Table"   -->  name "d", arguments ["\"My Table\""]      names keep their double quotes, for patterns
//! \i 'a b.sql'    -->  name "i", arguments ["a b.sql"]
//! ```
//!
//! Not done: psql's variables, conditionals and pipes. `\set` knows ON_ERROR_STOP, because scripts begin with it.

use std::io::Write;

use crate::copy::backslash_copy;
use crate::describe::{self, literal};
use crate::error::{Error, Result};
use crate::session::Session;

/// What the caller does after a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Goes on.
    Continue,
    /// Ends the shell.
    Quit,
    /// Runs the unfinished statement, expanded or not: `\g`, `\gx`.
    Execute {
        /// Whether the result is printed expanded.
        expanded: bool,
    },
    /// Runs a file: `\i`.
    Include(String),
}

/// What `\?` prints.
const HELP: &str = "\
General
  \\copy ...              copy between a table and a file on this machine
  \\g, \\gx                execute the statement; \\gx prints it expanded
  \\r                     forget the statement
  \\q                     quit (or Ctrl-D)

Files
  \\i FILE                run the statements in FILE
  \\echo TEXT             print TEXT

Information
  \\d [NAME]              list tables and views, or describe one
  \\dt, \\dv [PATTERN]     list tables, views
  \\dn [PATTERN]          list schemas
  \\l                     list databases
  \\conninfo              show where this shell is connected
  \\nodes                 show the nodes of the cluster
  \\shards [TABLE]        show shards, their leaders and followers

Settings
  \\timing [on|off]       show how long statements take
  \\x [on|off]            expanded output
  \\set ON_ERROR_STOP on  end a script at its first error
";

/// Runs the command `text`, which comes without its backslash.
///
/// # Errors
/// `Command` for an unknown command or bad arguments; else as [`Session::execute`].
pub async fn run(session: &mut Session, text: &str) -> Result<Next> {
    let (name, rest) = text.split_at(text.find(char::is_whitespace).unwrap_or(text.len()));
    if name == "copy" {
        backslash_copy(session, rest).await?;
        return Ok(Next::Continue);
    }
    let arguments = arguments(rest)?;
    let first = arguments.first().map(String::as_str);
    match name.trim_end_matches(';') {
        "q" | "quit" => return Ok(Next::Quit),
        "g" => return Ok(Next::Execute { expanded: false }),
        "gx" => return Ok(Next::Execute { expanded: true }),
        "i" | "include" => {
            let file = first.ok_or_else(|| Error::Command("\\i: missing file name".to_owned()))?;
            return Ok(Next::Include(file.to_owned()));
        }
        "r" | "reset" => writeln!(session.out, "Query buffer reset (cleared).")?,
        "?" | "h" | "help" => session.out.write_all(HELP.as_bytes())?,
        "echo" => writeln!(session.out, "{}", arguments.join(" "))?,
        "conninfo" => {
            let line = session.connection_info();
            writeln!(session.out, "{line}")?;
        }
        "timing" => {
            session.settings.timing = switch("timing", first, session.settings.timing)?;
            announce(session, "Timing", session.settings.timing)?;
        }
        "x" => {
            session.settings.expanded = switch("x", first, session.settings.expanded)?;
            announce(session, "Expanded display", session.settings.expanded)?;
        }
        "set" => set(session, &arguments)?,
        "d" => match first {
            Some(pattern) => describe::describe(session, pattern).await?,
            None => describe::list_relations(session, &["r", "p", "v", "m", "S"], None).await?,
        },
        "dt" => describe::list_relations(session, &["r", "p"], first).await?,
        "dv" => describe::list_relations(session, &["v", "m"], first).await?,
        "dn" => describe::list_schemas(session, first).await?,
        "l" | "list" => describe::list_databases(session).await?,
        "nodes" => session.execute("SELECT * FROM tessera.nodes").await?,
        "shards" => match first {
            Some(table) => {
                let table = literal(table.trim_matches('"'));
                session
                    .execute(&format!("SELECT * FROM tessera.shards WHERE table_name = {table}"))
                    .await?;
            }
            None => session.execute("SELECT * FROM tessera.shards").await?,
        },
        other => return Err(Error::Command(format!("invalid command \\{other}\nTry \\? for help."))),
    }
    session.out.flush()?;
    Ok(Next::Continue)
}

/// Words apart; single quotes keep blanks and vanish, double quotes keep blanks and stay.
fn arguments(text: &str) -> Result<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in text.trim_end().trim_end_matches(';').chars() {
        match (quote, c) {
            (Some(open), close) if open == close => {
                quote = None;
                if close == '"' {
                    word.get_or_insert_default().push('"');
                }
            }
            (None, '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '"') => {
                quote = Some(c);
                word.get_or_insert_default().push(c);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(Error::Command("unterminated quoted string".to_owned()));
    }
    words.extend(word);
    Ok(words)
}

/// The new state of a setting: as said, or the other one.
fn switch(name: &str, argument: Option<&str>, current: bool) -> Result<bool> {
    match argument {
        None => Ok(!current),
        Some("on" | "true" | "1") => Ok(true),
        Some("off" | "false" | "0") => Ok(false),
        Some(other) => Err(Error::Command(format!(
            "unrecognized value \"{other}\" for \"\\{name}\": Boolean expected"
        ))),
    }
}

fn announce(session: &mut Session, what: &str, on: bool) -> Result<()> {
    if !session.settings.quiet {
        writeln!(session.out, "{what} is {}.", if on { "on" } else { "off" })?;
    }
    Ok(())
}

fn set(session: &mut Session, arguments: &[String]) -> Result<()> {
    match arguments {
        [name, value @ ..] if name == "ON_ERROR_STOP" => {
            session.settings.stop_on_error = switch("set", Some(value.first().map_or("on", String::as_str)), false)?;
            Ok(())
        }
        _ => Err(Error::Command("\\set: only ON_ERROR_STOP can be set".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_taken_apart() {
        let check =
            |text: &str, expected: &[&str]| assert_eq!(arguments(text).expect("closed quotes"), expected, "{text}");
        check("", &[]);
        check(" a  b;", &["a", "b"]);
        check(" 'a b.sql' ''", &["a b.sql", ""]);
        check(" s.\"My T\"", &["s.\"My T\""]);
        assert!(arguments("'open").is_err());
        assert!(matches!(switch("x", Some("maybe"), true), Err(Error::Command(_))));
        assert_eq!(switch("x", None, true).ok(), Some(false));
    }
}
