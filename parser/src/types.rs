//! Column types: PostgreSQL's names for them, and only those.
//!
//! ```text
//!   int, int4, integer                     -> Int4
//!   varchar(10), character varying(10)     -> Varchar(Some(10))
//!   timestamp with time zone, timestamptz  -> TimestampTz
//! ```
//!
//! A type PostgreSQL has and we do not is "not supported", with the nearest one we have; any other word is unknown.

use sqlparser::tokenizer::Token;

use crate::cursor::Cursor;
use crate::error::{ParseError, Stop, did_you_mean, unsupported};
use crate::statement::TypeName;

/// Digits of a 128-bit decimal.
const NUMERIC_PRECISION_MAX: u32 = 38;

/// numeric without arguments; the reason is at [`TypeName::Numeric`].
const NUMERIC_DEFAULT: TypeName = TypeName::Numeric {
    precision: 38,
    scale: 10,
};

/// PostgreSQL's bound on n of char(n) and varchar(n).
const CHARS_MAX: u32 = 10_485_760;

/// First words of the types there are, for "did you mean".
const KNOWN: &[&str] = &[
    "BOOL",
    "BOOLEAN",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "REAL",
    "DOUBLE",
    "FLOAT",
    "NUMERIC",
    "DECIMAL",
    "TEXT",
    "VARCHAR",
    "CHAR",
    "CHARACTER",
    "DATE",
    "TIME",
    "TIMESTAMP",
    "TIMESTAMPTZ",
    "INTERVAL",
    "BYTEA",
    "UUID",
];

/// Reads a type.
pub(crate) fn parse_type(cursor: &mut Cursor<'_>) -> Result<TypeName, Stop> {
    let before = *cursor;
    if cursor.sees(&["pg_catalog"]) {
        cursor.skip(1);
        cursor.expect_symbol(&Token::Period)?;
    }
    let start = cursor.offset();
    let Some(Token::Word(word)) = cursor.peek() else {
        return Err(before.syntax_error().with_hint("expected a type").into());
    };
    // A quoted type name is the catalog's own name: "int4" is one, "integer" is not. Reading both alike does no harm.
    let word = word.value.to_ascii_uppercase();
    cursor.skip(1);
    let data_type = match word.as_str() {
        "BOOL" | "BOOLEAN" => TypeName::Bool,
        "INT2" | "SMALLINT" => TypeName::Int2,
        "INT" | "INT4" | "INTEGER" => TypeName::Int4,
        "INT8" | "BIGINT" => TypeName::Int8,
        "REAL" | "FLOAT4" => TypeName::Float4,
        "FLOAT8" => TypeName::Float8,
        "DOUBLE" => {
            cursor.expect(&["PRECISION"])?;
            TypeName::Float8
        }
        "FLOAT" => float(cursor)?,
        "NUMERIC" | "DECIMAL" | "DEC" => numeric(cursor)?,
        "TEXT" => TypeName::Text,
        "VARCHAR" => TypeName::Varchar(length(cursor)?),
        "CHAR" | "CHARACTER" | "NCHAR" if cursor.take(&["VARYING"]) => TypeName::Varchar(length(cursor)?),
        "CHAR" | "CHARACTER" | "NCHAR" | "BPCHAR" => TypeName::Char(length(cursor)?.unwrap_or(1)),
        "DATE" => TypeName::Date,
        "TIME" => time(cursor)?,
        "TIMESTAMP" => timestamp(cursor)?,
        "TIMESTAMPTZ" => {
            microseconds(cursor, "timestamptz")?;
            TypeName::TimestampTz
        }
        "INTERVAL" => interval(cursor)?,
        "BYTEA" => TypeName::Bytea,
        "UUID" => TypeName::Uuid,
        _ => return unknown(cursor, start, &word.to_ascii_lowercase()),
    };
    if cursor.sees_symbol(&Token::LBracket) || cursor.sees(&["ARRAY"]) {
        return unsupported(
            format!("array type {data_type}[]"),
            "keep the elements in a table of their own",
        );
    }
    Ok(data_type)
}

fn unknown(cursor: &Cursor<'_>, start: usize, word: &str) -> Result<TypeName, Stop> {
    let hint = match word {
        "serial" | "serial4" | "bigserial" | "serial8" | "smallserial" | "serial2" => {
            "use int8 and give the values yourself, or uuid with DEFAULT gen_random_uuid()"
        }
        "json" | "jsonb" | "xml" => "keep it in a text column",
        "money" => "use numeric(19,2)",
        "timetz" => "use time, or timestamptz",
        "inet" | "cidr" | "macaddr" | "macaddr8" => "keep addresses in a text column",
        "bit" | "varbit" => "use bytea, or bool columns",
        "name" => "use varchar(63)",
        "oid" | "regclass" | "xid" => "use int8",
        "point" | "line" | "lseg" | "box" | "path" | "polygon" | "circle" => "keep the coordinates in float8 columns",
        "int4range" | "int8range" | "numrange" | "tsrange" | "tstzrange" | "daterange" => "keep both ends in columns",
        "tsvector" | "tsquery" => "keep the document in a text column",
        _ => {
            let error = ParseError::at(cursor.sql(), start, "42704", format!("type \"{word}\" does not exist"));
            return Err(match did_you_mean(word, KNOWN) {
                Some(known) => error
                    .with_hint(format!("did you mean \"{}\"?", known.to_ascii_lowercase()))
                    .into(),
                None => error.into(),
            });
        }
    };
    unsupported(format!("type {word}"), hint)
}

/// `(n)`, at least `min` and at most `max`.
fn argument(cursor: &mut Cursor<'_>, what: &str, min: u32, max: u32) -> Result<Option<u32>, Stop> {
    if !cursor.take_symbol(&Token::LParen) {
        return Ok(None);
    }
    let before = *cursor;
    let n = cursor.number(what)?;
    if n < min || n > max {
        return Err(before
            .error("22023", format!("{what} {n} must be between {min} and {max}"))
            .into());
    }
    cursor.expect_symbol(&Token::RParen)?;
    Ok(Some(n))
}

fn length(cursor: &mut Cursor<'_>) -> Result<Option<u32>, Stop> {
    argument(cursor, "length", 1, CHARS_MAX)
}

fn float(cursor: &mut Cursor<'_>) -> Result<TypeName, Stop> {
    Ok(match argument(cursor, "float precision", 1, 53)? {
        Some(1..=24) => TypeName::Float4,
        _ => TypeName::Float8,
    })
}

fn numeric(cursor: &mut Cursor<'_>) -> Result<TypeName, Stop> {
    if !cursor.take_symbol(&Token::LParen) {
        return Ok(NUMERIC_DEFAULT);
    }
    let before = *cursor;
    let precision = cursor.number("numeric precision")?;
    let Some(digits) = u8::try_from(precision)
        .ok()
        .filter(|_| (1..=NUMERIC_PRECISION_MAX).contains(&precision))
    else {
        let message = format!("numeric precision {precision} must be between 1 and {NUMERIC_PRECISION_MAX}");
        return Err(before.error("22023", message).into());
    };
    let mut scale = 0;
    if cursor.take_symbol(&Token::Comma) {
        let before = *cursor;
        if cursor.take_symbol(&Token::Minus) {
            return unsupported("a negative numeric scale", "round before storing");
        }
        let asked = cursor.number("numeric scale")?;
        scale = match i8::try_from(asked) {
            Ok(scale) if asked <= precision => scale,
            _ => {
                let message = format!("numeric scale {asked} must be between 0 and precision {precision}");
                return Err(before.error("22023", message).into());
            }
        };
    }
    cursor.expect_symbol(&Token::RParen)?;
    Ok(TypeName::Numeric {
        precision: digits,
        scale,
    })
}

/// `(p)` of a time type. We keep microseconds, which is p = 6; a smaller p would have to round every value.
fn microseconds(cursor: &mut Cursor<'_>, what: &str) -> Result<(), Stop> {
    match argument(cursor, "precision", 0, 6)? {
        None | Some(6) => Ok(()),
        Some(p) => unsupported(
            format!("{what}({p})"),
            format!("{what} keeps microseconds; round with date_trunc"),
        ),
    }
}

fn time(cursor: &mut Cursor<'_>) -> Result<TypeName, Stop> {
    microseconds(cursor, "time")?;
    if cursor.take(&["WITH", "TIME", "ZONE"]) {
        return unsupported("type time with time zone", "use time, or timestamptz");
    }
    cursor.take(&["WITHOUT", "TIME", "ZONE"]);
    Ok(TypeName::Time)
}

fn timestamp(cursor: &mut Cursor<'_>) -> Result<TypeName, Stop> {
    microseconds(cursor, "timestamp")?;
    if cursor.take(&["WITH", "TIME", "ZONE"]) {
        return Ok(TypeName::TimestampTz);
    }
    cursor.take(&["WITHOUT", "TIME", "ZONE"]);
    Ok(TypeName::Timestamp)
}

fn interval(cursor: &mut Cursor<'_>) -> Result<TypeName, Stop> {
    microseconds(cursor, "interval")?;
    if ["YEAR", "MONTH", "DAY", "HOUR", "MINUTE", "SECOND"]
        .iter()
        .any(|field| cursor.sees(&[field]))
    {
        return unsupported(
            "an interval of certain fields",
            "use interval; it keeps months, days and microseconds",
        );
    }
    Ok(TypeName::Interval)
}
