//! COPY ... FROM and COPY ... TO, with PostgreSQL 15's options, defaults and rules, and Parquet.
//!
//! ```text
//!   COPY t (a, b) FROM STDIN WITH (FORMAT csv, HEADER, NULL 'x')      the list, since PostgreSQL 9.0
//!   COPY t (a, b) FROM STDIN CSV HEADER NULL AS 'x'                   before it, and still what scripts write
//!                       default    text   csv        rule
//!   delimiter                      tab    ,          one byte, not the quote, not in the null string
//!   null                           \N     (empty)    no line break
//!   quote, escape                  -      "          CSV only, one byte
//! ```
//!
//! Both forms become one [`CopyOptions`]; what contradicts itself is an error here, before any data is asked for.
//!
//! Not here: the binary format, which is not there yet. Source: `ProcessCopyOptions` in PostgreSQL's
//! `commands/copy.c`, described in its manual under COPY.

use sqlparser::ast::Query;
use sqlparser::tokenizer::Token;

use crate::cursor::Cursor;
use crate::error::{ParseError, Stop, unsupported};
use crate::query::parse_query_of;
use crate::statement::{
    CopyFormat, CopyFrom, CopyOptions, CopyRows, CopySource, CopyTarget, CopyTo, ForceQuote, Statement,
};

/// Delimiters that mean something else in the text format.
const NOT_A_TEXT_DELIMITER: &str = "\\.abcdefghijklmnopqrstuvwxyz0123456789";

/// Reads what follows `COPY`.
pub(crate) fn parse_copy(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    if cursor.sees(&["BINARY"]) {
        return unsupported("COPY BINARY", "use the text or the csv format");
    }
    if cursor.take_symbol(&Token::LParen) {
        let source = CopyRows::Query(parenthesised(cursor)?);
        cursor.expect(&["TO"])?;
        return parse_to(cursor, source);
    }
    let table = cursor.object_name()?;
    let columns = if cursor.sees_symbol(&Token::LParen) {
        cursor.distinct_names_in_parentheses()?
    } else {
        Vec::new()
    };
    if cursor.take(&["TO"]) {
        return parse_to(cursor, CopyRows::Table { name: table, columns });
    }
    cursor.expect(&["FROM"])?;
    if cursor.sees(&["PROGRAM"]) {
        return unsupported("COPY FROM PROGRAM", "pipe the program's output into COPY FROM STDIN");
    }
    let source = match cursor.take(&["STDIN"]) {
        true => CopySource::Stdin,
        false => CopySource::File(cursor.string()?),
    };
    let given = read_options(cursor)?;
    if cursor.sees(&["WHERE"]) {
        return unsupported(
            "COPY ... WHERE",
            "load into another table, then use INSERT INTO ... SELECT ... WHERE",
        );
    }
    cursor.finish()?;
    given.check_reading()?;
    let options = given.check(&columns)?;
    Ok(Statement::CopyFrom(CopyFrom {
        table,
        columns,
        source,
        options,
    }))
}

/// The query up to the parenthesis that closes it, and past that.
fn parenthesised(cursor: &mut Cursor<'_>) -> Result<Box<Query>, Stop> {
    let mut depth = 0usize;
    let closing = cursor.rest().iter().position(|tok| {
        match tok.token.token {
            Token::LParen => depth += 1,
            Token::RParen if depth == 0 => return true,
            Token::RParen => depth -= 1,
            _ => {}
        }
        false
    });
    let Some(count) = closing else {
        return Err(cursor.syntax_error().with_hint("a parenthesis is not closed").into());
    };
    let query = parse_query_of(cursor, count)?;
    cursor.expect_symbol(&Token::RParen)?;
    Ok(query)
}

/// Reads what follows `TO`.
fn parse_to(cursor: &mut Cursor<'_>, source: CopyRows) -> Result<Statement, Stop> {
    if cursor.sees(&["PROGRAM"]) {
        return unsupported("COPY TO PROGRAM", "write COPY TO STDOUT into the program's input");
    }
    let target = match cursor.take(&["STDOUT"]) {
        true => CopyTarget::Stdout,
        false => CopyTarget::File(cursor.string()?),
    };
    let mut given = read_options(cursor)?;
    cursor.finish()?;
    given.check_writing()?;
    let force_quote = given.force_quote.take().unwrap_or_default();
    let columns: &[String] = match &source {
        CopyRows::Table { columns, .. } => columns,
        CopyRows::Query(_) => &[],
    };
    if let ForceQuote::Columns(names) = &force_quote {
        referenced(Some(names.clone()), columns, "FORCE_QUOTE")?;
    }
    let options = given.check(columns)?;
    Ok(Statement::CopyTo(CopyTo {
        source,
        target,
        options,
        force_quote,
    }))
}

fn read_options(cursor: &mut Cursor<'_>) -> Result<Given, Stop> {
    let mut given = Given::default();
    let with = cursor.take(&["WITH"]);
    if cursor.take_symbol(&Token::LParen) {
        read_list(cursor, &mut given)?;
    } else {
        read_legacy(cursor, &mut given, with)?;
    }
    Ok(given)
}

/// The options as given, before defaults.
#[derive(Default)]
struct Given {
    format: Option<CopyFormat>,
    delimiter: Option<String>,
    null: Option<String>,
    header: Option<Header>,
    quote: Option<String>,
    escape: Option<String>,
    force_not_null: Option<Vec<String>>,
    force_null: Option<Vec<String>>,
    force_quote: Option<ForceQuote>,
    encoding: Option<String>,
    freeze: Option<bool>,
}

#[derive(Clone, Copy, PartialEq)]
enum Header {
    No,
    Yes,
    Match,
}

/// Sets an option that may be given once; `before` is its name.
fn set<T>(before: &Cursor<'_>, option: &mut Option<T>, value: T) -> Result<(), Stop> {
    if option.is_some() {
        return Err(before.error("42601", "conflicting or redundant options").into());
    }
    *option = Some(value);
    Ok(())
}

fn read_list(cursor: &mut Cursor<'_>, given: &mut Given) -> Result<(), Stop> {
    loop {
        let before = *cursor;
        // An option's name may be any word, reserved ones too: NULL is one of them.
        let Some(Token::Word(word)) = cursor.peek() else {
            return Err(cursor.syntax_error().with_hint("expected a COPY option").into());
        };
        let name = word.value.to_ascii_lowercase();
        cursor.skip(1);
        match name.as_str() {
            "format" => set(&before, &mut given.format, read_format(cursor)?)?,
            "delimiter" => set(&before, &mut given.delimiter, value(cursor)?)?,
            "null" => set(&before, &mut given.null, value(cursor)?)?,
            "quote" => set(&before, &mut given.quote, value(cursor)?)?,
            "escape" => set(&before, &mut given.escape, value(cursor)?)?,
            "encoding" => set(&before, &mut given.encoding, value(cursor)?)?,
            "header" => set(&before, &mut given.header, read_header(cursor)?)?,
            "freeze" => set(&before, &mut given.freeze, read_bool(cursor, "freeze")?)?,
            "force_not_null" => set(&before, &mut given.force_not_null, cursor.names_in_parentheses()?)?,
            "force_null" => set(&before, &mut given.force_null, cursor.names_in_parentheses()?)?,
            "force_quote" if cursor.take_symbol(&Token::Mul) => set(&before, &mut given.force_quote, ForceQuote::All)?,
            "force_quote" => {
                let names = ForceQuote::Columns(cursor.names_in_parentheses()?);
                set(&before, &mut given.force_quote, names)?;
            }
            _ => {
                return Err(before
                    .error("42601", format!("option \"{name}\" not recognized"))
                    .into());
            }
        }
        if cursor.take_symbol(&Token::RParen) {
            return Ok(());
        }
        cursor.expect_symbol(&Token::Comma)?;
    }
}

fn read_legacy(cursor: &mut Cursor<'_>, given: &mut Given, with: bool) -> Result<(), Stop> {
    if with && cursor.is_done() {
        return Err(cursor.syntax_error().with_hint("expected a COPY option").into());
    }
    loop {
        let before = *cursor;
        if cursor.take(&["CSV"]) {
            set(&before, &mut given.format, CopyFormat::Csv)?;
        } else if cursor.take(&["BINARY"]) {
            return unsupported("COPY BINARY", "use the text or the csv format");
        } else if cursor.take(&["HEADER"]) {
            set(&before, &mut given.header, Header::Yes)?;
        } else if cursor.take(&["FREEZE"]) {
            set(&before, &mut given.freeze, true)?;
        } else if cursor.take(&["DELIMITER"]) {
            set(&before, &mut given.delimiter, as_string(cursor)?)?;
        } else if cursor.take(&["NULL"]) {
            set(&before, &mut given.null, as_string(cursor)?)?;
        } else if cursor.take(&["QUOTE"]) {
            set(&before, &mut given.quote, as_string(cursor)?)?;
        } else if cursor.take(&["ESCAPE"]) {
            set(&before, &mut given.escape, as_string(cursor)?)?;
        } else if cursor.take(&["ENCODING"]) {
            set(&before, &mut given.encoding, cursor.string()?)?;
        } else if cursor.take(&["FORCE", "NOT", "NULL"]) {
            set(&before, &mut given.force_not_null, bare_names(cursor)?)?;
        } else if cursor.take(&["FORCE", "NULL"]) {
            set(&before, &mut given.force_null, bare_names(cursor)?)?;
        } else if cursor.take(&["FORCE", "QUOTE"]) {
            let names = match cursor.take_symbol(&Token::Mul) {
                true => ForceQuote::All,
                false => ForceQuote::Columns(bare_names(cursor)?),
            };
            set(&before, &mut given.force_quote, names)?;
        } else {
            return Ok(());
        }
    }
}

fn as_string(cursor: &mut Cursor<'_>) -> Result<String, Stop> {
    cursor.take(&["AS"]);
    cursor.string()
}

fn bare_names(cursor: &mut Cursor<'_>) -> Result<Vec<String>, Stop> {
    let mut names = vec![cursor.name()?];
    while cursor.take_symbol(&Token::Comma) {
        names.push(cursor.name()?);
    }
    Ok(names)
}

/// The value of an option: a string, a word or a number, all of them text.
fn value(cursor: &mut Cursor<'_>) -> Result<String, Stop> {
    if let Some(text) = cursor.take_string() {
        return Ok(text);
    }
    let text = match cursor.peek() {
        Some(Token::Word(word)) if word.quote_style.is_some() => word.value.clone(),
        Some(Token::Word(word)) => word.value.to_ascii_lowercase(),
        Some(Token::Number(digits, _)) => digits.clone(),
        _ => {
            return Err(cursor
                .syntax_error()
                .with_hint("expected a value in single quotes")
                .into());
        }
    };
    cursor.skip(1);
    Ok(text)
}

fn read_format(cursor: &mut Cursor<'_>) -> Result<CopyFormat, Stop> {
    let before = *cursor;
    match value(cursor)?.as_str() {
        "csv" => Ok(CopyFormat::Csv),
        "text" => Ok(CopyFormat::Text),
        "parquet" => Ok(CopyFormat::Parquet),
        "binary" => unsupported("COPY with the binary format", "use the text or the csv format"),
        other => Err(before
            .error("22023", format!("COPY format \"{other}\" not recognized"))
            .with_hint("formats are text, csv and parquet")
            .into()),
    }
}

fn has_value(cursor: &Cursor<'_>) -> bool {
    !cursor.sees_symbol(&Token::Comma) && !cursor.sees_symbol(&Token::RParen)
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "on" | "1" => Some(true),
        "false" | "off" | "0" => Some(false),
        _ => None,
    }
}

fn read_bool(cursor: &mut Cursor<'_>, name: &str) -> Result<bool, Stop> {
    if !has_value(cursor) {
        return Ok(true);
    }
    let before = *cursor;
    match boolean(&value(cursor)?) {
        Some(yes) => Ok(yes),
        None => Err(before.error("42601", format!("{name} requires a Boolean value")).into()),
    }
}

fn read_header(cursor: &mut Cursor<'_>) -> Result<Header, Stop> {
    if !has_value(cursor) {
        return Ok(Header::Yes);
    }
    let before = *cursor;
    let text = value(cursor)?;
    match boolean(&text) {
        Some(true) => Ok(Header::Yes),
        Some(false) => Ok(Header::No),
        None if text.eq_ignore_ascii_case("match") => Ok(Header::Match),
        None => Err(before
            .error("42601", "header requires a Boolean value or \"match\"")
            .into()),
    }
}

impl Given {
    /// Refuses what only COPY TO has.
    fn check_reading(&self) -> Result<(), ParseError> {
        match self.force_quote {
            Some(_) => Err(ParseError::whole(
                "0A000",
                "COPY force quote only available using COPY TO",
            )),
            None => Ok(()),
        }
    }

    /// Refuses what only COPY FROM has.
    fn check_writing(&self) -> Result<(), ParseError> {
        let reading = [
            (self.force_not_null.is_some(), "COPY force not null"),
            (self.force_null.is_some(), "COPY force null"),
            (self.freeze.is_some(), "COPY freeze"),
        ];
        if let Some((_, what)) = reading.iter().find(|(given, _)| *given) {
            return Err(ParseError::whole(
                "0A000",
                format!("{what} only available using COPY FROM"),
            ));
        }
        if self.header == Some(Header::Match) {
            return Err(ParseError::whole(
                "0A000",
                "cannot use \"match\" with HEADER in COPY TO",
            ));
        }
        if self.force_quote.is_some() && self.format != Some(CopyFormat::Csv) {
            return Err(ParseError::whole(
                "0A000",
                "COPY force quote available only in CSV mode",
            ));
        }
        Ok(())
    }

    /// Fills in the defaults and checks the options against each other, in PostgreSQL's order.
    fn check(self, columns: &[String]) -> Result<CopyOptions, ParseError> {
        let format = self.format.unwrap_or(CopyFormat::Text);
        self.check_format(format)?;
        let csv = format == CopyFormat::Csv;
        let delimiter = one_byte(
            self.delimiter.as_deref().unwrap_or(if csv { "," } else { "\t" }),
            "delimiter",
        )?;
        let null = self
            .null
            .unwrap_or_else(|| if csv { String::new() } else { "\\N".to_owned() });
        let quote = one_byte(self.quote.as_deref().unwrap_or("\""), "quote")?;
        let escape = one_byte(
            self.escape.as_deref().unwrap_or(quote.encode_utf8(&mut [0; 4])),
            "escape",
        )?;
        if matches!(delimiter, '\r' | '\n') {
            return Err(ParseError::whole(
                "22023",
                "COPY delimiter cannot be newline or carriage return",
            ));
        }
        if null.contains(['\r', '\n']) {
            return Err(ParseError::whole(
                "22023",
                "COPY null representation cannot use newline or carriage return",
            ));
        }
        if !csv && NOT_A_TEXT_DELIMITER.contains(delimiter) {
            return Err(ParseError::whole(
                "22023",
                format!("COPY delimiter cannot be \"{delimiter}\""),
            ));
        }
        if csv && delimiter == quote {
            return Err(ParseError::whole("22023", "COPY delimiter and quote must be different"));
        }
        if null.contains(delimiter) {
            return Err(ParseError::whole(
                "0A000",
                "COPY delimiter must not appear in the NULL specification",
            ));
        }
        if csv && null.contains(quote) {
            return Err(ParseError::whole(
                "0A000",
                "CSV quote character must not appear in the NULL specification",
            ));
        }
        let force_not_null = referenced(self.force_not_null, columns, "FORCE_NOT_NULL")?;
        let force_null = referenced(self.force_null, columns, "FORCE_NULL")?;
        let header = self.header.unwrap_or(Header::No);
        Ok(CopyOptions {
            format,
            delimiter,
            null,
            header: header != Header::No,
            header_match: header == Header::Match,
            quote,
            escape,
            force_not_null,
            force_null,
            encoding: self.encoding,
            freeze: self.freeze.unwrap_or(false),
        })
    }

    /// Refuses options that the format does not have.
    fn check_format(&self, format: CopyFormat) -> Result<(), ParseError> {
        let csv_only = [
            (self.quote.is_some(), "quote"),
            (self.escape.is_some(), "escape"),
            (self.force_not_null.is_some(), "force not null"),
            (self.force_null.is_some(), "force null"),
        ];
        let not_parquet = [
            (self.delimiter.is_some(), "delimiter"),
            (self.null.is_some(), "null"),
            (self.header.is_some(), "header"),
            (self.encoding.is_some(), "encoding"),
        ];
        let first = |options: &[(bool, &'static str)]| options.iter().find(|(given, _)| *given).map(|(_, name)| *name);
        if format != CopyFormat::Csv
            && let Some(name) = first(&csv_only)
        {
            return Err(ParseError::whole(
                "0A000",
                format!("COPY {name} available only in CSV mode"),
            ));
        }
        if format == CopyFormat::Parquet
            && let Some(name) = first(&not_parquet)
        {
            return Err(ParseError::whole(
                "0A000",
                format!("COPY {name} not available in Parquet mode"),
            ));
        }
        Ok(())
    }
}

fn one_byte(text: &str, what: &str) -> Result<char, ParseError> {
    match text.as_bytes() {
        [byte] => Ok(char::from(*byte)),
        _ => Err(ParseError::whole(
            "0A000",
            format!("COPY {what} must be a single one-byte character"),
        )),
    }
}

/// Columns of a FORCE option, which must be among those copied where the statement lists them.
fn referenced(names: Option<Vec<String>>, columns: &[String], option: &str) -> Result<Vec<String>, ParseError> {
    let names = names.unwrap_or_default();
    match names.iter().find(|name| !columns.is_empty() && !columns.contains(name)) {
        Some(name) => Err(ParseError::whole(
            "42P10",
            format!("{option} column \"{name}\" not referenced by COPY"),
        )),
        None => Ok(names),
    }
}
