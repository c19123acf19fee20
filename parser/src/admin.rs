//! Settings and cluster commands.
//!
//! ```text
//!   SET [SESSION | LOCAL] name { TO | = } { value, ... | DEFAULT }      SHOW name | ALL | SHARDS | NODES
//!   SET TIME ZONE 'UTC'  ->  timezone = UTC                             RESET name | ALL      DISCARD ALL
//!   SET NAMES 'UTF8'     ->  client_encoding = UTF8
//!   SET TRANSACTION ISOLATION LEVEL SERIALIZABLE  ->  LOCAL transaction_isolation = serializable
//!   ALTER SHARD n OF table { SWITCH LEADER | PROMOTE | FORCE PROMOTE ACCEPT DATA LOSS }     VERIFY TABLE table
//!   ANALYZE [VERBOSE] [table [(column, ...)], ...]
//! ```
//!
//! Names are not checked here: which settings exist is the session's business.

use sqlparser::tokenizer::Token;

use crate::cursor::Cursor;
use crate::error::{Stop, unsupported};
use crate::statement::{AnalyzeTable, ShardAction, Statement};

/// Settings whose value is a list of names, so that quotes around a name are part of it (PostgreSQL's GUC_LIST_QUOTE).
const LISTS_OF_NAMES: &[&str] = &[
    "search_path",
    "temp_tablespaces",
    "session_preload_libraries",
    "local_preload_libraries",
];

/// Reads what follows `SET`.
pub(crate) fn parse_set(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    if cursor.take(&["SESSION", "CHARACTERISTICS", "AS", "TRANSACTION"]) {
        return transaction_mode(cursor, "default_transaction", false);
    }
    if cursor.take(&["TRANSACTION"]) {
        return transaction_mode(cursor, "transaction", true);
    }
    let local = cursor.take(&["LOCAL"]);
    if !local && !is_assignment(cursor) {
        cursor.take(&["SESSION"]);
    }
    let refused: [(&[&str], &str); 4] = [
        (&["AUTHORIZATION"], "connect as the other user"),
        (&["ROLE"], "connect as the other user"),
        (&["CONSTRAINTS"], "leave the statement out; no constraint is deferrable"),
        (&["XML", "OPTION"], "leave the statement out; there is no xml type"),
    ];
    for (words, hint) in refused {
        if cursor.sees(words) && !is_assignment(cursor) {
            return unsupported(format!("SET {}", words.join(" ")), hint);
        }
    }
    let (name, value) = if cursor.take(&["TIME", "ZONE"]) {
        (String::from("timezone"), time_zone(cursor)?)
    } else if cursor.take(&["NAMES"]) {
        let default = cursor.is_done() || cursor.take(&["DEFAULT"]);
        (
            String::from("client_encoding"),
            if default { None } else { Some(cursor.string()?) },
        )
    } else if cursor.sees(&["SCHEMA"]) && !is_assignment(cursor) {
        cursor.skip(1);
        (String::from("search_path"), Some(quoted(&cursor.string()?)))
    } else {
        let name = setting_name(cursor)?;
        if !cursor.take(&["TO"]) {
            if !cursor.sees_symbol(&Token::Eq) {
                return Err(cursor.syntax_error().with_hint("expected TO or \"=\"").into());
            }
            cursor.skip(1);
        }
        let value = setting_value(cursor, &name)?;
        (name, value)
    };
    cursor.finish()?;
    Ok(Statement::Set { local, name, value })
}

/// The word here is a setting's name, not a keyword of SET: `TO`, `=` or a period follows.
fn is_assignment(cursor: &Cursor<'_>) -> bool {
    let mut next = *cursor;
    next.skip(1);
    next.sees(&["TO"]) || next.sees_symbol(&Token::Eq) || next.sees_symbol(&Token::Period)
}

/// `name` or `extension.name`, lower case even if quoted: settings ignore case.
fn setting_name(cursor: &mut Cursor<'_>) -> Result<String, Stop> {
    let mut name = cursor.name()?.to_ascii_lowercase();
    while cursor.take_symbol(&Token::Period) {
        name.push('.');
        name.push_str(&cursor.name()?.to_ascii_lowercase());
    }
    Ok(name)
}

fn setting_value(cursor: &mut Cursor<'_>, name: &str) -> Result<Option<String>, Stop> {
    if cursor.take(&["DEFAULT"]) {
        return Ok(None);
    }
    let mut values = vec![one_value(cursor)?];
    while cursor.take_symbol(&Token::Comma) {
        values.push(one_value(cursor)?);
    }
    if values.len() > 1 || LISTS_OF_NAMES.contains(&name) {
        let values: Vec<String> = values.iter().map(|value| quoted(value)).collect();
        return Ok(Some(values.join(", ")));
    }
    Ok(values.pop())
}

/// A string, a number with its sign, or a word such as `on`.
fn one_value(cursor: &mut Cursor<'_>) -> Result<String, Stop> {
    if let Some(text) = cursor.take_string() {
        return Ok(text);
    }
    let before = *cursor;
    let sign = if cursor.take_symbol(&Token::Minus) { "-" } else { "" };
    let signed = !sign.is_empty() || cursor.take_symbol(&Token::Plus);
    let text = match cursor.peek() {
        Some(Token::Number(digits, _)) => format!("{sign}{digits}"),
        Some(Token::Word(_)) if !signed => {
            // TRUE, FALSE and ON are reserved as names and yet values.
            let reserved = ["TRUE", "FALSE", "ON"].into_iter().find(|word| cursor.sees(&[word]));
            match reserved {
                Some(word) => word.to_ascii_lowercase(),
                None => return cursor.name(),
            }
        }
        _ => return Err(before.syntax_error().with_hint("expected a value").into()),
    };
    cursor.skip(1);
    Ok(text)
}

/// A name in quotes unless it reads the same without, as PostgreSQL's `quote_identifier`.
fn quoted(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

fn time_zone(cursor: &mut Cursor<'_>) -> Result<Option<String>, Stop> {
    if cursor.take(&["LOCAL"]) || cursor.take(&["DEFAULT"]) {
        return Ok(None);
    }
    if cursor.sees(&["INTERVAL"]) {
        return unsupported(
            "SET TIME ZONE INTERVAL",
            "name the zone ('Europe/Berlin') or its offset ('+02:00')",
        );
    }
    one_value(cursor).map(Some)
}

/// ISOLATION LEVEL ..., READ ONLY, READ WRITE, [NOT] DEFERRABLE: one of them.
fn transaction_mode(cursor: &mut Cursor<'_>, prefix: &str, local: bool) -> Result<Statement, Stop> {
    let (suffix, value) = if cursor.take(&["ISOLATION", "LEVEL"]) {
        ("isolation", isolation_level(cursor)?)
    } else if cursor.take(&["READ", "ONLY"]) {
        ("read_only", "on")
    } else if cursor.take(&["READ", "WRITE"]) {
        ("read_only", "off")
    } else if cursor.take(&["DEFERRABLE"]) {
        ("deferrable", "on")
    } else if cursor.take(&["NOT", "DEFERRABLE"]) {
        ("deferrable", "off")
    } else if cursor.sees(&["SNAPSHOT"]) {
        return unsupported("SET TRANSACTION SNAPSHOT", "run the statements in one session");
    } else {
        let hint = "expected ISOLATION LEVEL, READ ONLY, READ WRITE or DEFERRABLE";
        return Err(cursor.syntax_error().with_hint(hint).into());
    };
    if !cursor.is_done() && (cursor.sees_symbol(&Token::Comma) || cursor.peek_word().is_some()) {
        return unsupported("several transaction modes in one SET", "write one SET for each");
    }
    cursor.finish()?;
    Ok(Statement::Set {
        local,
        name: format!("{prefix}_{suffix}"),
        value: Some(value.to_owned()),
    })
}

/// The name of a level, as the setting has it.
pub(crate) fn isolation_level(cursor: &mut Cursor<'_>) -> Result<&'static str, Stop> {
    let levels: [(&[&str], &str); 4] = [
        (&["SERIALIZABLE"], "serializable"),
        (&["REPEATABLE", "READ"], "repeatable read"),
        (&["READ", "COMMITTED"], "read committed"),
        (&["READ", "UNCOMMITTED"], "read uncommitted"),
    ];
    match levels.into_iter().find(|(words, _)| cursor.take(words)) {
        Some((_, level)) => Ok(level),
        None => {
            let hint = "levels are SERIALIZABLE, REPEATABLE READ, READ COMMITTED and READ UNCOMMITTED";
            Err(cursor.syntax_error().with_hint(hint).into())
        }
    }
}

/// Reads what follows `SHOW`.
pub(crate) fn parse_show(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    if cursor.sees(&["TABLES"]) || cursor.sees(&["COLUMNS"]) || cursor.sees(&["DATABASES"]) {
        return unsupported(
            "SHOW of a catalog",
            "query information_schema.tables and information_schema.columns",
        );
    }
    let name = spelled_out_name(cursor)?;
    cursor.finish()?;
    Ok(Statement::Show { name })
}

/// Reads what follows `RESET`.
pub(crate) fn parse_reset(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    if cursor.sees(&["ROLE"]) {
        return unsupported("RESET ROLE", "connect as the other user");
    }
    let name = spelled_out_name(cursor)?;
    cursor.finish()?;
    Ok(Statement::Reset {
        name: Some(name).filter(|name| name != "all"),
    })
}

/// Reads what follows `DISCARD`.
pub(crate) fn parse_discard(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    for word in ["PLANS", "SEQUENCES", "TEMP", "TEMPORARY"] {
        if cursor.sees(&[word]) {
            return unsupported(format!("DISCARD {word}"), "use DISCARD ALL");
        }
    }
    cursor.expect(&["ALL"])?;
    cursor.finish()?;
    Ok(Statement::Discard)
}

fn spelled_out_name(cursor: &mut Cursor<'_>) -> Result<String, Stop> {
    let spelled_out: [(&[&str], &str); 3] = [
        (&["ALL"], "all"),
        (&["TIME", "ZONE"], "timezone"),
        (&["TRANSACTION", "ISOLATION", "LEVEL"], "transaction_isolation"),
    ];
    if cursor.sees(&["SESSION", "AUTHORIZATION"]) {
        return unsupported(
            "SESSION AUTHORIZATION",
            "use current_user, or connect as the other user",
        );
    }
    match spelled_out.into_iter().find(|(words, _)| cursor.take(words)) {
        Some((_, name)) => Ok(name.to_owned()),
        None => setting_name(cursor),
    }
}

/// Reads what follows `VERIFY`.
pub(crate) fn parse_verify(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    cursor.expect(&["TABLE"])?;
    let name = cursor.object_name()?;
    cursor.finish()?;
    Ok(Statement::VerifyTable { name })
}

/// Reads what follows `ANALYZE`. VERBOSE changes nothing.
pub(crate) fn parse_analyze(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    if cursor.sees_symbol(&Token::LParen) {
        return unsupported("ANALYZE with options in parentheses", "leave them out");
    }
    cursor.take(&["VERBOSE"]);
    let tables = analyze_tables(cursor)?;
    Ok(Statement::Analyze { tables })
}

/// The tables of ANALYZE and VACUUM, to the end.
pub(crate) fn analyze_tables(cursor: &mut Cursor<'_>) -> Result<Vec<AnalyzeTable>, Stop> {
    let mut tables = vec![];
    while !cursor.is_done() {
        let name = cursor.object_name()?;
        let columns = match cursor.sees_symbol(&Token::LParen) {
            true => cursor.distinct_names_in_parentheses()?,
            false => vec![],
        };
        tables.push(AnalyzeTable { name, columns });
        if !cursor.take_symbol(&Token::Comma) {
            break;
        }
        if cursor.is_done() {
            return Err(cursor.syntax_error().into());
        }
    }
    cursor.finish()?;
    Ok(tables)
}

/// Reads what follows `ALTER SHARD`.
pub(crate) fn parse_alter_shard(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    let shard = cursor.number("shard")?;
    cursor.expect(&["OF"])?;
    cursor.take(&["TABLE"]);
    let table = cursor.object_name()?;
    let actions: [(&[&str], ShardAction); 3] = [
        (&["SWITCH", "LEADER"], ShardAction::SwitchLeader),
        (&["PROMOTE"], ShardAction::Promote),
        (
            &["FORCE", "PROMOTE", "ACCEPT", "DATA", "LOSS"],
            ShardAction::ForcePromoteAcceptDataLoss,
        ),
    ];
    let Some((_, action)) = actions.into_iter().find(|(words, _)| cursor.take(words)) else {
        let hint = "expected SWITCH LEADER, PROMOTE or FORCE PROMOTE ACCEPT DATA LOSS";
        return Err(cursor.syntax_error().with_hint(hint).into());
    };
    cursor.finish()?;
    Ok(Statement::AlterShard { shard, table, action })
}
