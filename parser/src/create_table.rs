//! CREATE TABLE, with our clauses.
//!
//! ```text
//!   CREATE [REFERENCE] TABLE [IF NOT EXISTS] name (
//!       column type [NOT NULL | NULL | DEFAULT expression | PRIMARY KEY] ... ,
//!       [CONSTRAINT name] PRIMARY KEY (column, ...)
//!   ) [WITH (fillfactor = n)] [SHARD BY HASH (column, ...) [SHARDS n] [COLOCATE WITH table]] [CLUSTER BY (column, ...)]
//!
//!   CREATE [REFERENCE] TABLE [IF NOT EXISTS] name [(column, ...)] [options as above] AS query [WITH [NO] DATA]
//! ```
//!
//! Of PostgreSQL's storage parameters only `fillfactor` is accepted, since load tools write it: it is checked and has no
//! effect, rows being stored in columns. All others are refused. Every constraint we cannot enforce is refused too.

use sqlparser::tokenizer::Token;

use crate::cursor::{Cursor, first_duplicate, is_word, starts_with};
use crate::error::{ParseError, Stop, unsupported};
use crate::locking::may_lock;
use crate::query::{parse_expression, parse_query_of};
use crate::split::Tok;
use crate::statement::{ColumnSpec, CreateTable, CreateTableAs, ObjectName, Sharding, Statement};
use crate::types::parse_type;

/// PostgreSQL's MaxHeapAttributeNumber.
const COLUMNS_MAX: usize = 1600;

/// Words that end a DEFAULT expression. PostgreSQL's grammar says the same by allowing only a `b_expr` there.
const AFTER_DEFAULT: &[&str] = &[
    "NOT",
    "NULL",
    "DEFAULT",
    "PRIMARY",
    "UNIQUE",
    "CHECK",
    "REFERENCES",
    "CONSTRAINT",
    "GENERATED",
    "COLLATE",
    "DEFERRABLE",
    "INITIALLY",
];

/// Reads what follows `CREATE TABLE` or `CREATE REFERENCE TABLE`.
pub(crate) fn parse_create_table(cursor: &mut Cursor<'_>, reference: bool) -> Result<Statement, Stop> {
    let if_not_exists = cursor.take(&["IF", "NOT", "EXISTS"]);
    let name = cursor.object_name()?;
    refuse_other_forms(cursor)?;
    if cursor
        .find_outside_parentheses(|toks| is_word(&toks[0], "AS"))
        .is_some()
    {
        return parse_create_table_as(cursor, name, if_not_exists, reference);
    }
    let mut body = Body::default();
    read_body(cursor, &mut body)?;
    let Options { sharding, cluster_by } = read_options(cursor, reference)?;
    cursor.finish()?;
    body.check(cursor.sql(), &name.name, sharding.as_ref())?;
    let primary_key = body.primary_key.map(|key| key.columns).unwrap_or_default();
    for column in &mut body.columns {
        column.not_null |= primary_key.contains(&column.name);
    }
    let sharding = sharding.map(|(sharding, _)| sharding);
    Ok(Statement::CreateTable(CreateTable {
        name,
        if_not_exists,
        reference,
        columns: body.columns,
        primary_key,
        sharding,
        cluster_by,
    }))
}

fn refuse_other_forms(cursor: &Cursor<'_>) -> Result<(), Stop> {
    if cursor.sees(&["PARTITION", "OF"]) || cursor.sees(&["OF"]) {
        return unsupported(
            "CREATE TABLE OF",
            "list the columns; tables are spread with SHARD BY HASH",
        );
    }
    Ok(())
}

/// Reads what follows the name in CREATE TABLE ... AS.
fn parse_create_table_as(
    cursor: &mut Cursor<'_>,
    name: ObjectName,
    if_not_exists: bool,
    reference: bool,
) -> Result<Statement, Stop> {
    let columns = if cursor.sees_symbol(&Token::LParen) {
        cursor.distinct_names_in_parentheses()?
    } else {
        Vec::new()
    };
    let Options { sharding, cluster_by } = read_options(cursor, reference)?;
    if let Some((sharding, offset)) = &sharding
        && let Some(name) = first_duplicate(&sharding.columns)
    {
        let message = format!("column \"{name}\" appears twice in shard key");
        return Err(ParseError::at(cursor.sql(), *offset, "42701", message).into());
    }
    cursor.expect(&["AS"])?;
    if cursor.sees(&["EXECUTE"]) {
        return unsupported("CREATE TABLE AS EXECUTE", "write the query itself");
    }
    let toks = cursor.rest();
    let ends = |words: &[&str]| toks.len() > words.len() && starts_with(&toks[toks.len() - words.len()..], words);
    let (behind, with_data): (&[&str], bool) = if ends(&["WITH", "NO", "DATA"]) {
        (&["WITH", "NO", "DATA"], false)
    } else if ends(&["WITH", "DATA"]) {
        (&["WITH", "DATA"], true)
    } else {
        (&[], true)
    };
    if may_lock(toks) {
        return unsupported(
            "FOR UPDATE or its like in CREATE TABLE AS",
            "create the table first, then use INSERT INTO ... SELECT ... FOR UPDATE",
        );
    }
    let query = parse_query_of(cursor, toks.len() - behind.len())?;
    cursor.expect(behind)?;
    cursor.finish()?;
    Ok(Statement::CreateTableAs(CreateTableAs {
        name,
        if_not_exists,
        reference,
        columns,
        sharding: sharding.map(|(sharding, _)| sharding),
        cluster_by,
        query,
        with_data,
    }))
}

/// What stands between the parentheses.
#[derive(Default)]
struct Body {
    columns: Vec<ColumnSpec>,
    primary_key: Option<Key>,
}

struct Key {
    columns: Vec<String>,
    offset: usize,
}

impl Body {
    fn set_primary_key(&mut self, cursor: &Cursor<'_>, columns: Vec<String>, offset: usize) -> Result<(), Stop> {
        if self.primary_key.is_some() {
            let message = "multiple primary keys for one table are not allowed";
            let hint = "for a key of several columns write PRIMARY KEY (a, b) once";
            return Err(ParseError::at(cursor.sql(), offset, "42P16", message)
                .with_hint(hint)
                .into());
        }
        self.primary_key = Some(Key { columns, offset });
        Ok(())
    }

    fn check(&self, sql: &str, table: &str, sharding: Option<&(Sharding, usize)>) -> Result<(), ParseError> {
        let names: Vec<String> = self.columns.iter().map(|column| column.name.clone()).collect();
        if names.len() > COLUMNS_MAX {
            let message = format!("table \"{table}\" can have at most {COLUMNS_MAX} columns");
            return Err(ParseError::whole("54011", message));
        }
        if let Some(name) = first_duplicate(&names) {
            let second = self
                .columns
                .iter()
                .rev()
                .find(|column| column.name == *name)
                .map(|column| column.position);
            let offset = second
                .and_then(|position| sql.char_indices().nth(position - 1))
                .map_or(0, |(at, _)| at);
            return Err(ParseError::at(
                sql,
                offset,
                "42701",
                format!("column \"{name}\" specified more than once"),
            ));
        }
        let key = self
            .primary_key
            .iter()
            .map(|key| (&key.columns, key.offset, "primary key"));
        let shard_key = sharding
            .iter()
            .map(|(sharding, offset)| (&sharding.columns, *offset, "shard key"));
        for (columns, offset, what) in key.chain(shard_key) {
            if let Some(name) = columns.iter().find(|name| !names.contains(name)) {
                let message = format!("column \"{name}\" named in {what} does not exist");
                return Err(ParseError::at(sql, offset, "42703", message));
            }
            if let Some(name) = first_duplicate(columns) {
                let message = format!("column \"{name}\" appears twice in {what}");
                return Err(ParseError::at(sql, offset, "42701", message));
            }
        }
        Ok(())
    }
}

fn read_body(cursor: &mut Cursor<'_>, body: &mut Body) -> Result<(), Stop> {
    cursor.expect_symbol(&Token::LParen)?;
    if cursor.take_symbol(&Token::RParen) {
        return Ok(());
    }
    loop {
        if !read_table_constraint(cursor, body)? {
            read_column(cursor, body)?;
        }
        if cursor.take_symbol(&Token::RParen) {
            return Ok(());
        }
        if !cursor.take_symbol(&Token::Comma) {
            let error = cursor.syntax_error();
            return Err(match cursor.peek() {
                Some(Token::Word(_)) => error.with_hint("a comma may be missing before this, or it is no constraint"),
                Some(_) => error.with_hint("expected \",\" or \")\""),
                None => error.with_hint("the list of columns is never closed with \")\""),
            }
            .into());
        }
        if cursor.sees_symbol(&Token::RParen) {
            return Err(cursor
                .syntax_error()
                .with_hint("the comma before \")\" is one too many")
                .into());
        }
    }
}

/// `CONSTRAINT name`, whose name we do not keep: a primary key is called after its table.
fn skip_constraint_name(cursor: &mut Cursor<'_>) -> Result<(), Stop> {
    if cursor.take(&["CONSTRAINT"]) {
        cursor.name()?;
    }
    Ok(())
}

fn read_table_constraint(cursor: &mut Cursor<'_>, body: &mut Body) -> Result<bool, Stop> {
    let named = cursor.sees(&["CONSTRAINT"]);
    skip_constraint_name(cursor)?;
    let offset = cursor.offset();
    if cursor.take(&["PRIMARY", "KEY"]) {
        let columns = cursor.names_in_parentheses()?;
        refuse_key_options(cursor)?;
        body.set_primary_key(cursor, columns, offset)?;
        return Ok(true);
    }
    if cursor.sees(&["UNIQUE"]) || cursor.sees(&["CHECK"]) || cursor.sees(&["FOREIGN", "KEY"]) {
        refuse_constraint(cursor)?;
    }
    if cursor.sees(&["LIKE"]) {
        return unsupported("CREATE TABLE (LIKE ...)", "list the columns");
    }
    if cursor.sees(&["EXCLUDE"])
        && cursor
            .rest()
            .get(1)
            .is_some_and(|tok| is_word(tok, "USING") || tok.token.token == Token::LParen)
    {
        return unsupported("EXCLUDE constraints", "check before writing");
    }
    if named {
        return Err(cursor.syntax_error().with_hint("expected PRIMARY KEY").into());
    }
    Ok(false)
}

fn refuse_key_options(cursor: &Cursor<'_>) -> Result<(), Stop> {
    if ["INCLUDE", "WITH", "USING", "DEFERRABLE", "INITIALLY"]
        .iter()
        .any(|word| cursor.sees(&[word]))
    {
        return unsupported(
            "an option of PRIMARY KEY",
            "write PRIMARY KEY alone; it is checked at every statement's end",
        );
    }
    Ok(())
}

fn refuse_constraint(cursor: &Cursor<'_>) -> Result<(), Stop> {
    let word = cursor.peek_word().unwrap_or_default();
    match word.as_str() {
        "UNIQUE" => unsupported(
            "UNIQUE constraints",
            "make the columns the PRIMARY KEY, or check before writing",
        ),
        "CHECK" => unsupported("CHECK constraints", "check values before writing them"),
        "REFERENCES" | "FOREIGN" => unsupported(
            "FOREIGN KEY constraints",
            "leave the clause out; references are not checked",
        ),
        "GENERATED" => unsupported(
            "IDENTITY and GENERATED columns",
            "give the values yourself, or use uuid with DEFAULT gen_random_uuid()",
        ),
        "COLLATE" => unsupported("COLLATE", "leave the clause out; text is ordered by its bytes"),
        "DEFERRABLE" | "INITIALLY" => unsupported("deferrable constraints", "leave the clause out"),
        "STORAGE" | "COMPRESSION" => unsupported(format!("{word} of a column"), "leave the clause out"),
        _ => Ok(()),
    }
}

fn read_column(cursor: &mut Cursor<'_>, body: &mut Body) -> Result<(), Stop> {
    let position = cursor.position();
    let name = cursor.name()?;
    let data_type = parse_type(cursor)?;
    let mut column = ColumnSpec {
        name,
        data_type,
        not_null: false,
        default: None,
        default_text: None,
        position,
    };
    let mut nullable = false;
    loop {
        skip_constraint_name(cursor)?;
        refuse_constraint(cursor)?;
        let before = *cursor;
        if cursor.take(&["NOT", "NULL"]) {
            column.not_null = true;
        } else if cursor.take(&["NULL"]) {
            nullable = true;
        } else if cursor.take(&["PRIMARY", "KEY"]) {
            refuse_key_options(cursor)?;
            body.set_primary_key(cursor, vec![column.name.clone()], before.offset())?;
        } else if cursor.take(&["DEFAULT"]) {
            if column.default.is_some() {
                let message = format!("multiple default values specified for column \"{}\"", column.name);
                return Err(before.error("42601", message).into());
            }
            let (expression, text) = parse_expression(cursor, default_length(cursor.rest()))?;
            (column.default, column.default_text) = (Some(expression), Some(text));
        } else {
            break;
        }
        if nullable && column.not_null {
            let message = format!("conflicting NULL/NOT NULL declarations for column \"{}\"", column.name);
            return Err(before.error("42601", message).into());
        }
    }
    body.columns.push(column);
    Ok(())
}

/// Tokens of a DEFAULT expression: up to the comma or parenthesis that ends the column, or the next constraint.
fn default_length(toks: &[Tok]) -> usize {
    let mut depth = 0_usize;
    for (at, tok) in toks.iter().enumerate() {
        match &tok.token.token {
            Token::LParen | Token::LBracket => depth += 1,
            Token::RParen | Token::RBracket | Token::Comma if depth == 0 => return at,
            Token::RParen | Token::RBracket => depth -= 1,
            _ if is_word(tok, "CASE") => depth += 1,
            _ if is_word(tok, "END") => depth = depth.saturating_sub(1),
            // The first token is the expression's even if it is NULL or NOT.
            _ if depth == 0 && at > 0 && AFTER_DEFAULT.iter().any(|word| is_word(tok, word)) => {
                return at;
            }
            _ => {}
        }
    }
    toks.len()
}

/// What follows the parentheses.
#[derive(Default)]
struct Options {
    /// With the place of the shard key.
    sharding: Option<(Sharding, usize)>,
    cluster_by: Vec<String>,
}

fn read_options(cursor: &mut Cursor<'_>, reference: bool) -> Result<Options, Stop> {
    let mut options = Options::default();
    let mut with = false;
    loop {
        let before = *cursor;
        if cursor.take(&["SHARD", "BY"]) {
            if reference {
                let hint = "leave out SHARD BY, or REFERENCE";
                return Err(before
                    .error("42P16", "a reference table cannot be sharded")
                    .with_hint(hint)
                    .into());
            }
            if options.sharding.is_some() {
                return Err(before.error("42601", "SHARD BY specified more than once").into());
            }
            options.sharding = Some((read_sharding(cursor)?, before.offset()));
        } else if cursor.take(&["CLUSTER", "BY"]) {
            if !options.cluster_by.is_empty() {
                return Err(before.error("42601", "CLUSTER BY specified more than once").into());
            }
            options.cluster_by = cursor.distinct_names_in_parentheses()?;
        } else if !with && cursor.take(&["WITH"]) {
            with = true;
            read_storage_parameters(cursor)?;
        } else {
            refuse_options(cursor)?;
            return Ok(options);
        }
    }
}

fn refuse_options(cursor: &Cursor<'_>) -> Result<(), Stop> {
    let refused: [(&[&str], &str); 6] = [
        (&["PARTITION", "BY"], "use SHARD BY HASH (column)"),
        (&["INHERITS"], "list all columns"),
        (&["TABLESPACE"], "leave the clause out"),
        (&["ON", "COMMIT"], "temporary tables are not there yet"),
        (&["USING"], "leave the clause out; there is one table format"),
        (&["WITHOUT", "OIDS"], "leave the clause out; no table has them"),
    ];
    for (words, hint) in refused {
        if starts_with(cursor.rest(), words) {
            return unsupported(format!("CREATE TABLE ... {}", words.join(" ")), hint);
        }
    }
    let hint = if cursor.sees(&["SHARDS"]) || cursor.sees(&["COLOCATE"]) {
        "SHARDS and COLOCATE WITH stand behind SHARD BY HASH (column)"
    } else {
        "what may follow is WITH (fillfactor = n), SHARD BY HASH (column) [SHARDS n] [COLOCATE WITH table] and CLUSTER BY (column)"
    };
    if cursor.is_done() || cursor.sees(&["AS"]) {
        Ok(())
    } else {
        Err(cursor.syntax_error().with_hint(hint).into())
    }
}

fn read_sharding(cursor: &mut Cursor<'_>) -> Result<Sharding, Stop> {
    cursor.expect(&["HASH"])?;
    let columns = cursor.names_in_parentheses()?;
    let (mut shards, mut colocate_with) = (None, None);
    loop {
        let before = *cursor;
        if shards.is_none() && cursor.take(&["SHARDS"]) {
            let at = *cursor;
            let count = cursor.number("number of shards")?;
            if count == 0 {
                return Err(at.error("22023", "number of shards must be at least 1").into());
            }
            shards = Some(count);
        } else if colocate_with.is_none() && cursor.take(&["COLOCATE"]) {
            cursor.expect(&["WITH"])?;
            colocate_with = Some(cursor.object_name()?);
        } else if before.sees(&["SHARDS"]) || before.sees(&["COLOCATE"]) {
            return Err(before.syntax_error().with_hint("this clause is there already").into());
        } else {
            return Ok(Sharding {
                columns,
                shards,
                colocate_with,
            });
        }
    }
}

fn read_storage_parameters(cursor: &mut Cursor<'_>) -> Result<(), Stop> {
    cursor.expect_symbol(&Token::LParen)?;
    loop {
        let name = cursor.name()?;
        if name != "fillfactor" {
            return unsupported(
                format!("storage parameter {name}"),
                "only fillfactor is accepted, and it has no effect",
            );
        }
        cursor.expect_symbol(&Token::Eq)?;
        let before = *cursor;
        let percent = cursor.number("fillfactor")?;
        if !(10..=100).contains(&percent) {
            let message = format!("value {percent} out of bounds for option \"fillfactor\"");
            return Err(before
                .error("22023", message)
                .with_hint("valid values are between 10 and 100")
                .into());
        }
        if !cursor.take_symbol(&Token::Comma) {
            return cursor.expect_symbol(&Token::RParen);
        }
    }
}
