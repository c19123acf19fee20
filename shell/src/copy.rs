//! COPY with its rows on this side: `\copy`, and `COPY ... FROM STDIN` or `TO STDOUT` in scripts.
//!
//! ```text
//! \copy t (a, b) from 'rows.csv' with (format csv, header)   -->   COPY t (a, b) FROM STDIN with (format csv, header)
//! \copy (select 1) to 'out.csv' csv                          -->   COPY (select 1) TO STDOUT csv
//! ```
//!
//! Files stream through in chunks, so their size does not matter. Ctrl-C abandons the COPY, of which nothing stays.
//! Not done: `program`, because a database shell need not start others.

use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::pin::pin;

use bytes::Bytes;
use futures::{SinkExt, TryStreamExt};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::{Error, Result};
use crate::session::Session;

/// Bytes per protocol message: large enough that its 5 bytes of header vanish.
const CHUNK_BYTES: usize = 256 * 1024;

/// Runs what stands behind `\copy`.
///
/// # Errors
/// `Command` when it is malformed or the file cannot be used; else as [`Session::execute`].
pub async fn backslash_copy(session: &mut Session, arguments: &str) -> Result<()> {
    let copy = parse(arguments).ok_or_else(|| {
        Error::Command(
            "\\copy: expected TABLE FROM 'FILE' [OPTIONS] or {TABLE | (QUERY)} TO 'FILE' [OPTIONS]".to_owned(),
        )
    })?;
    let unusable = |error: io::Error| Error::Command(format!("{}: {error}", copy.file));
    let rows = if copy.incoming {
        let mut file = File::open(&copy.file).map_err(unusable)?;
        let bar = progress(file.metadata().map_or(0, |metadata| metadata.len()));
        let chunk = move || {
            let chunk = read_chunk(&mut file)?;
            bar.inc(chunk.len() as u64);
            Ok(chunk)
        };
        send(
            session,
            &format!("COPY {} FROM STDIN {}", copy.target, copy.options),
            chunk,
        )
        .await?
    } else {
        let mut file = File::create(&copy.file).map_err(unusable)?;
        let statement = format!("COPY {} TO STDOUT {}", copy.target, copy.options);
        receive(session, &statement, |chunk| file.write_all(chunk).map_err(unusable)).await?;
        return Ok(());
    };
    report(session, rows)
}

/// Runs `COPY ... FROM STDIN` with the lines of `input` up to `\.` or its end.
///
/// # Errors
/// As [`Session::execute`]; `Command` when the input cannot be read.
pub async fn copy_in(session: &mut Session, statement: &str, input: &mut (dyn BufRead + Send)) -> Result<()> {
    let mut ended = false;
    let chunk = || {
        let mut chunk = Vec::new();
        while !ended && chunk.len() < CHUNK_BYTES {
            let start = chunk.len();
            let length = input.read_until(b'\n', &mut chunk)?;
            let line = chunk[start..].strip_suffix(b"\n").unwrap_or(&chunk[start..]);
            if length == 0 || line.strip_suffix(b"\r").unwrap_or(line) == b"\\." {
                chunk.truncate(start);
                ended = true;
            }
        }
        Ok(chunk)
    };
    let rows = send(session, statement, chunk).await?;
    report(session, rows)
}

/// Runs `COPY ... TO STDOUT` into the session's output.
///
/// # Errors
/// As [`Session::execute`].
pub async fn copy_out(session: &mut Session, statement: &str) -> Result<()> {
    let mut out = std::mem::replace(&mut session.out, Box::new(io::sink()));
    let received = receive(session, statement, |chunk| out.write_all(chunk).map_err(Error::Output)).await;
    session.out = out;
    session.out.flush()?;
    received
}

/// Sends chunks until an empty one; a chunk that cannot be read abandons the COPY.
async fn send(session: &Session, statement: &str, mut chunk: impl FnMut() -> io::Result<Vec<u8>>) -> Result<u64> {
    let failed = |error| session.failure(error, statement);
    let work = async {
        let mut sink = pin!(session.client().copy_in::<_, Bytes>(statement).await.map_err(failed)?);
        loop {
            let chunk = chunk().map_err(|e| Error::Command(format!("cannot read input: {e}")))?;
            if chunk.is_empty() {
                return sink.as_mut().finish().await.map_err(failed);
            }
            sink.send(chunk.into()).await.map_err(failed)?;
        }
    };
    or_interrupt(work).await
}

async fn receive(session: &Session, statement: &str, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let failed = |error| session.failure(error, statement);
    let work = async {
        let mut stream = pin!(session.client().copy_out(statement).await.map_err(failed)?);
        while let Some(chunk) = stream.try_next().await.map_err(failed)? {
            take(&chunk)?;
        }
        Ok(())
    };
    or_interrupt(work).await
}

/// Ctrl-C drops `work`, which has the driver tell the server that the COPY failed.
async fn or_interrupt<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        Ok(()) = tokio::signal::ctrl_c() => Err(Error::Command("copy cancelled".to_owned())),
    }
}

fn report(session: &mut Session, rows: u64) -> Result<()> {
    if !session.settings.quiet {
        writeln!(session.out, "COPY {rows}")?;
    }
    Ok(session.out.flush()?)
}

fn read_chunk(file: &mut File) -> io::Result<Vec<u8>> {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    file.take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}

fn progress(bytes: u64) -> ProgressBar {
    let target = match io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let template = "{bar:30} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} eta {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(bytes), target).with_style(style)
}

/// A `\copy`, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Copy {
    target: String,
    incoming: bool,
    file: String,
    options: String,
}

fn parse(arguments: &str) -> Option<Copy> {
    let arguments = arguments.trim().trim_end_matches(';').trim_end();
    let (at, incoming) = find_direction(arguments)?;
    let target = arguments[..at].trim();
    let rest = arguments[at..].trim_start();
    let rest = rest.split_once(char::is_whitespace)?.1.trim_start();
    let (file, options) = match rest.strip_prefix('\'') {
        Some(quoted) => unquote(quoted)?,
        None => {
            let (file, options) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            (file.to_owned(), options)
        }
    };
    let valid = !target.is_empty() && !file.is_empty();
    valid.then(|| Copy {
        target: target.to_owned(),
        incoming,
        file,
        options: options.trim().to_owned(),
    })
}

/// Where `from` or `to` stands outside quotes and brackets, and whether it is `from`.
fn find_direction(text: &str) -> Option<(usize, bool)> {
    let (mut depth, mut quote, mut word_start) = (0u32, None, None);
    for (at, c) in text.char_indices().chain([(text.len(), ' ')]) {
        let in_word = c.is_alphanumeric() || c == '_';
        match (quote, c) {
            (Some(open), close) if open == close => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if in_word && quote.is_none() && depth == 0 {
            word_start = word_start.or(Some(at));
            continue;
        }
        let Some(start) = word_start.take() else { continue };
        match text[start..at].to_lowercase().as_str() {
            "from" => return Some((start, true)),
            "to" => return Some((start, false)),
            _ => {}
        }
    }
    None
}

/// The text up to the closing quote, doubled ones undone, and what follows.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut text = String::new();
    let mut rest = quoted;
    loop {
        let (before, after) = rest.split_once('\'')?;
        text.push_str(before);
        match after.strip_prefix('\'') {
            Some(_) => text.push('\''),
            None => return Some((text, after)),
        }
        rest = &after[1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_commands_are_taken_apart() {
        let check = |text: &str, target: &str, incoming, file: &str, options: &str| {
            let copy = Copy {
                target: target.into(),
                incoming,
                file: file.into(),
                options: options.into(),
            };
            assert_eq!(parse(text), Some(copy), "{text}");
        };
        check("t from 'a b''c.csv' csv header;", "t", true, "a b'c.csv", "csv header");
        check(
            "t (a, b) FROM x.csv with (format csv)",
            "t (a, b)",
            true,
            "x.csv",
            "with (format csv)",
        );
        check("(select a from t) to 'o.csv'", "(select a from t)", false, "o.csv", "");
        check("\"from\" from f", "\"from\"", true, "f", "");
        assert_eq!(parse("t"), None);
        assert_eq!(parse("t from 'open"), None);
    }
}
