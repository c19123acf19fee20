//! The `\d` family: what exists, and how one table is made.
//!
//! ```text
//! \dt ord*      pg_class, pg_namespace                    relname LIKE 'ord%'
//! \d orders     + information_schema.columns, pg_constraint for the primary key
//! ```
//!
//! The queries are plain joins on columns every PostgreSQL has, so the shell works against one too. Not done: foreign
//! keys, triggers and the like, which the server does not have.

use crate::error::{Error, Result};
use crate::format::{Format, ResultWriter};
use crate::session::Session;
use crate::table::{AlignedTable, Column, Footer, Kind, Row};

/// Schemas that are listed only when asked for by name.
const SYSTEM_SCHEMAS: &str = "('pg_catalog', 'information_schema', 'pg_toast')";

/// Lists relations of these kinds (`r` table, `v` view, ...) that match a pattern.
///
/// # Errors
/// As [`Session::rows`].
pub async fn list_relations(session: &mut Session, kinds: &[&str], pattern: Option<&str>) -> Result<()> {
    let kinds: Vec<String> = kinds.iter().map(|kind| literal(kind)).collect();
    let query = format!(
        "SELECT n.nspname, c.relname, CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' \
         WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence' ELSE 'other' END \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ({}) AND {} ORDER BY 1, 2",
        kinds.join(", "),
        pattern_condition(pattern),
    );
    let rows = session.rows(&query).await?;
    if rows.is_empty() {
        let message = match pattern {
            Some(pattern) => format!("Did not find any relation named \"{pattern}\"."),
            None => "Did not find any relations.".to_owned(),
        };
        return Err(Error::Command(message));
    }
    print(
        session,
        "List of relations",
        &["Schema", "Name", "Type"],
        rows,
        Footer::RowCount,
    )
}

/// Lists schemas that match a pattern.
///
/// # Errors
/// As [`Session::rows`].
pub async fn list_schemas(session: &mut Session, pattern: Option<&str>) -> Result<()> {
    let condition = match pattern {
        Some(pattern) => format!("nspname LIKE {}", like(pattern)),
        None => format!("nspname NOT IN {SYSTEM_SCHEMAS}"),
    };
    let query = format!("SELECT nspname FROM pg_catalog.pg_namespace WHERE {condition} ORDER BY 1");
    let rows = session.rows(&query).await?;
    print(session, "List of schemas", &["Name"], rows, Footer::RowCount)
}

/// Lists databases.
///
/// # Errors
/// As [`Session::rows`].
pub async fn list_databases(session: &mut Session) -> Result<()> {
    let rows = session
        .rows("SELECT datname FROM pg_catalog.pg_database ORDER BY 1")
        .await?;
    print(session, "List of databases", &["Name"], rows, Footer::RowCount)
}

/// Describes every relation that matches a pattern.
///
/// # Errors
/// `Command` when none does; else as [`Session::rows`].
pub async fn describe(session: &mut Session, pattern: &str) -> Result<()> {
    let query = format!(
        "SELECT n.nspname, c.relname, c.relkind, c.oid \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p', 'v', 'm') AND {} ORDER BY 1, 2",
        pattern_condition(Some(pattern)),
    );
    let relations = session.rows(&query).await?;
    if relations.is_empty() {
        return Err(Error::Command(format!(
            "Did not find any relation named \"{pattern}\"."
        )));
    }
    for relation in &relations {
        describe_one(session, relation).await?;
    }
    Ok(())
}

async fn describe_one(session: &mut Session, relation: &Row) -> Result<()> {
    let (schema, name, kind) = (text(relation, 0), text(relation, 1), text(relation, 2));
    let query = format!(
        "SELECT column_name, data_type, is_nullable, column_default, character_maximum_length, numeric_precision, \
         numeric_scale FROM information_schema.columns WHERE table_schema = {} AND table_name = {} \
         ORDER BY ordinal_position",
        literal(schema),
        literal(name),
    );
    let columns = session.rows(&query).await?;
    let rows = columns.iter().map(|column| {
        let nullable = if text(column, 2) == "NO" { "not null" } else { "" };
        [text(column, 0), &column_type(column), "", nullable, text(column, 3)]
            .map(|cell| Some(cell.to_owned()))
            .to_vec()
    });
    let rows = rows.collect();
    let footer = Footer::Lines(primary_key(session, text(relation, 3)).await);
    let title = match kind {
        "v" => format!("View \"{schema}.{name}\""),
        "m" => format!("Materialized view \"{schema}.{name}\""),
        _ => format!("Table \"{schema}.{name}\""),
    };
    print(
        session,
        &title,
        &["Column", "Type", "Collation", "Nullable", "Default"],
        rows,
        footer,
    )
}

/// psql's line about the primary key; none where the server does not say.
async fn primary_key(session: &mut Session, oid: &str) -> Vec<String> {
    if oid.is_empty() || !oid.bytes().all(|b| b.is_ascii_digit()) {
        return Vec::new();
    }
    let query = format!(
        "SELECT conname, pg_catalog.pg_get_constraintdef(oid) FROM pg_catalog.pg_constraint \
         WHERE conrelid = {oid} AND contype = 'p'"
    );
    let Ok(rows) = session.rows(&query).await else {
        return Vec::new();
    };
    let line = |row: &Row| {
        let definition = text(row, 1).replacen("PRIMARY KEY (", "PRIMARY KEY, btree (", 1);
        format!("    \"{}\" {definition}", text(row, 0))
    };
    let lines: Vec<String> = rows.iter().map(line).collect();
    if lines.is_empty() {
        lines
    } else {
        [vec!["Indexes:".to_owned()], lines].concat()
    }
}

/// The type with its modifiers, from a row of information_schema.columns.
fn column_type(column: &Row) -> String {
    let (name, length) = (text(column, 1), text(column, 4));
    let (precision, scale) = (text(column, 5), text(column, 6));
    match name {
        "character varying" | "character" if !length.is_empty() => format!("{name}({length})"),
        "numeric" if !precision.is_empty() => {
            format!("numeric({precision},{})", if scale.is_empty() { "0" } else { scale })
        }
        name => name.to_owned(),
    }
}

fn print(session: &mut Session, title: &str, names: &[&str], rows: Vec<Row>, footer: Footer) -> Result<()> {
    let columns: Vec<Column> = names
        .iter()
        .map(|name| Column {
            name: (*name).to_owned(),
            kind: Kind::Text,
        })
        .collect();
    let (format, out) = (session.settings.format, &mut *session.out);
    if format == Format::Aligned {
        let mut table = AlignedTable::new(columns, Some(title.to_owned()));
        rows.into_iter().try_for_each(|row| table.push(row, out))?;
        table.finish(footer, out)?;
    } else {
        let mut writer = ResultWriter::new(columns, format, out)?;
        rows.into_iter().try_for_each(|row| writer.push(row, out))?;
        writer.finish(out)?;
    }
    Ok(out.flush()?)
}

/// The condition of a psql pattern on `n.nspname` and `c.relname`.
fn pattern_condition(pattern: Option<&str>) -> String {
    let Some(pattern) = pattern else {
        return format!("n.nspname NOT IN {SYSTEM_SCHEMAS}");
    };
    match split_name(pattern) {
        (Some(schema), name) => format!("n.nspname LIKE {} AND c.relname LIKE {}", like(&schema), like(&name)),
        (None, name) => format!("c.relname LIKE {} AND n.nspname NOT IN {SYSTEM_SCHEMAS}", like(&name)),
    }
}

/// `schema.name` at the first dot outside double quotes. Parts keep their quotes.
fn split_name(pattern: &str) -> (Option<String>, String) {
    let mut quoted = false;
    for (at, c) in pattern.char_indices() {
        quoted ^= c == '"';
        if c == '.' && !quoted {
            return (Some(pattern[..at].to_owned()), pattern[at + 1..].to_owned());
        }
    }
    (None, pattern.to_owned())
}

/// A LIKE literal: outside double quotes letters fold and `*` and `?` are wildcards, as in psql.
fn like(pattern: &str) -> String {
    let (mut out, mut quoted) = (String::new(), false);
    for c in pattern.chars() {
        match c {
            '"' => quoted = !quoted,
            '*' if !quoted => out.push('%'),
            '?' if !quoted => out.push('_'),
            '%' | '_' | '\\' => out.extend(['\\', c]),
            c if quoted => out.push(c),
            c => out.extend(c.to_lowercase()),
        }
    }
    literal(&out)
}

/// A string literal for servers with `standard_conforming_strings`.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn text(row: &Row, column: usize) -> &str {
    row.get(column).and_then(Option::as_deref).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_become_conditions() {
        assert_eq!(like("Ord*"), "'ord%'");
        assert_eq!(like("a_b?"), "'a\\_b_'");
        assert_eq!(like("\"A*'\""), "'A*'''");
        assert_eq!(split_name("s.t"), (Some("s".to_owned()), "t".to_owned()));
        assert_eq!(split_name("\"a.b\""), (None, "\"a.b\"".to_owned()));
    }
}
