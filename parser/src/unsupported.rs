//! Statements we know by their first words and do not do, each with what to do instead.
//!
//! ```text
//!   TRUNCATE t           ->   Unsupported { what: "TRUNCATE", hint: "..." }   ->   0A000 at the router
//!   TRUNCTE t            ->   42601 syntax error at or near "TRUNCTE", did you mean "TRUNCATE"?
//! ```
//!
//! Their insides are not read: what cannot run need not be right. Clauses refused inside statements we do know are
//! refused where those are read.

use crate::cursor::Cursor;
use crate::error::{Stop, did_you_mean, unsupported};

/// First words and advice, longer ones before their own beginnings.
const STATEMENTS: &[(&[&str], &str)] = &[
    (
        &["MERGE"],
        "use UPDATE ... FROM, then INSERT INTO ... SELECT ... WHERE NOT EXISTS (...)",
    ),
    (&["TRUNCATE"], "use DELETE, or drop the table and create it again"),
    (
        &["PREPARE", "TRANSACTION"],
        "a transaction over many shards is prepared and committed by COMMIT",
    ),
    (
        &["PREPARE"],
        "prepare through the client library (the extended protocol)",
    ),
    (
        &["EXECUTE"],
        "execute through the client library (the extended protocol)",
    ),
    (
        &["DEALLOCATE"],
        "close the statement through the client library (the extended protocol)",
    ),
    (
        &["DECLARE"],
        "read the query's rows as they come; they are not kept in memory",
    ),
    (
        &["FETCH"],
        "read the query's rows as they come; they are not kept in memory",
    ),
    (
        &["MOVE"],
        "read the query's rows as they come; they are not kept in memory",
    ),
    (&["CLOSE"], "there are no cursors to close yet"),
    (
        &["ALTER", "TABLE"],
        "create a new table and fill it with INSERT INTO ... SELECT",
    ),
    (&["ALTER", "VIEW"], "use CREATE OR REPLACE VIEW"),
    (&["ALTER", "SYSTEM"], "change the configuration file and restart"),
    (&["ALTER", "ROLE"], ROLES),
    (&["ALTER", "USER"], ROLES),
    (&["ALTER"], "drop the object and create it again"),
    (&["GRANT"], ROLES),
    (&["REVOKE"], ROLES),
    (&["REASSIGN"], ROLES),
    (&["LISTEN"], "poll a table"),
    (&["NOTIFY"], "poll a table"),
    (&["UNLISTEN"], "poll a table"),
    (&["LOCK"], "leave it out; every statement sees one snapshot"),
    (&["CLUSTER"], "leave it out; rows are sorted when they are written"),
    (&["REINDEX"], "leave it out; there are no indexes to rebuild"),
    (&["CHECKPOINT"], "leave it out; a statement is durable when it returns"),
    (&["COMMENT"], "keep descriptions outside the database"),
    (&["SECURITY"], ROLES),
    (&["IMPORT"], "load files with COPY"),
    (&["LOAD"], "there are no extensions; to load data use COPY"),
    (&["CALL"], FUNCTIONS),
    (&["DO"], FUNCTIONS),
    (&["REFRESH"], "views are computed when they are read"),
];

const ROLES: &str = "roles and privileges are not there yet";
const FUNCTIONS: &str = "there are no procedures; run their statements from the client";
const EXTERNAL: &str = "load the data into a table with COPY";

/// What CREATE and DROP know of and we do not, and advice.
const OBJECTS: &[(&[&str], &str)] = &[
    (
        &["UNIQUE", "INDEX"],
        "make the columns the PRIMARY KEY; there are no other indexes",
    ),
    (
        &["INDEX"],
        "leave it out; scans skip what statistics and the shard key rule out",
    ),
    (&["SEQUENCE"], "use uuid with DEFAULT gen_random_uuid()"),
    (
        &["MATERIALIZED", "VIEW"],
        "create a table and fill it with INSERT INTO ... SELECT",
    ),
    (&["RECURSIVE", "VIEW"], "use CREATE VIEW v AS WITH RECURSIVE ..."),
    (&["UNLOGGED", "TABLE"], "leave out UNLOGGED"),
    (&["FOREIGN"], EXTERNAL),
    (&["EXTERNAL"], EXTERNAL),
    (&["SERVER"], EXTERNAL),
    (&["DATABASE"], "use CREATE SCHEMA; a cluster is one database"),
    (&["TABLESPACE"], "leave it out; shards are placed by the cluster"),
    (&["EXTENSION"], "leave it out; there are no extensions"),
    (&["LANGUAGE"], FUNCTIONS),
    (&["FUNCTION"], FUNCTIONS),
    (&["PROCEDURE"], FUNCTIONS),
    (&["ROUTINE"], FUNCTIONS),
    (&["AGGREGATE"], FUNCTIONS),
    (&["TRIGGER"], FUNCTIONS),
    (&["CONSTRAINT", "TRIGGER"], FUNCTIONS),
    (&["EVENT", "TRIGGER"], FUNCTIONS),
    (&["RULE"], "use a view"),
    (&["OPERATOR"], FUNCTIONS),
    (&["CAST"], FUNCTIONS),
    (&["CONVERSION"], FUNCTIONS),
    (&["TRANSFORM"], FUNCTIONS),
    (&["ACCESS"], "there is one table format"),
    (&["TYPE"], "use the built-in types"),
    (&["DOMAIN"], "use the built-in types"),
    (&["COLLATION"], "text is ordered by its bytes"),
    (&["TEXT", "SEARCH"], "use LIKE or a regular expression"),
    (
        &["STATISTICS"],
        "leave it out; statistics are gathered while data is loaded",
    ),
    (&["PUBLICATION"], "tables are replicated by the cluster"),
    (&["SUBSCRIPTION"], "tables are replicated by the cluster"),
    (&["POLICY"], ROLES),
    (&["ROLE"], ROLES),
    (&["USER"], ROLES),
    (&["GROUP"], ROLES),
    (&["OWNED"], ROLES),
];

/// First words of the statements we do.
const KNOWN: &[&str] = &[
    "SELECT", "WITH", "VALUES", "TABLE", "EXPLAIN", "CREATE", "DROP", "INSERT", "UPDATE", "DELETE", "COPY", "SET",
    "SHOW", "RESET", "DISCARD", "VERIFY", "ANALYZE", "VACUUM", "ALTER",
];

/// Objects CREATE and DROP do.
const KNOWN_OBJECTS: &[&str] = &["TABLE", "VIEW", "SCHEMA", "REFERENCE"];

/// Refuses a statement that starts with none of the words we read: as unsupported if PostgreSQL has it, else as wrong.
pub(crate) fn refuse_statement<T>(cursor: &Cursor<'_>) -> Result<T, Stop> {
    if let Some((words, hint)) = STATEMENTS.iter().find(|(words, _)| cursor.sees(words)) {
        return unsupported(words.join(" "), *hint);
    }
    let known: Vec<&str> = KNOWN
        .iter()
        .copied()
        .chain(STATEMENTS.iter().map(|(words, _)| words[0]))
        .collect();
    wrong_word(cursor, &known)
}

/// The same for the word behind `verb`, CREATE or DROP.
pub(crate) fn refuse_object<T>(cursor: &Cursor<'_>, verb: &str) -> Result<T, Stop> {
    if let Some((words, hint)) = OBJECTS.iter().find(|(words, _)| cursor.sees(words)) {
        return unsupported(format!("{verb} {}", words.join(" ")), *hint);
    }
    let known: Vec<&str> = KNOWN_OBJECTS
        .iter()
        .copied()
        .chain(OBJECTS.iter().map(|(words, _)| words[0]))
        .collect();
    wrong_word(cursor, &known)
}

fn wrong_word<T>(cursor: &Cursor<'_>, known: &[&str]) -> Result<T, Stop> {
    let error = cursor.syntax_error();
    let word = cursor.peek_word().unwrap_or_default();
    Err(match did_you_mean(&word, known) {
        Some(known) => error.with_hint(format!("did you mean \"{known}\"?")).into(),
        None => error.into(),
    })
}
