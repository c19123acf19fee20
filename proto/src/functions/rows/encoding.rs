//! Bytes as text and back.
//!
//! ```text
//!   encode('\x0061ff', 'hex')  0061ff     'base64'  AGH/     'escape'  \000a\377
//! ```
//!
//! base64 has lines of 76 characters, as PostgreSQL's has.

use super::{Out, Row, bytes, text};
use crate::error::{Error, Result};
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use std::fmt::Write;

const LINE: usize = 76;

fn base64() -> GeneralPurpose {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::RequireCanonical);
    GeneralPurpose::new(&STANDARD, config)
}

fn unknown(encoding: &str) -> Error {
    Error::new("22023", format!("unrecognized encoding: \"{encoding}\"")).with_hint("hex, base64 or escape")
}

pub(super) fn encode(row: Row<'_, '_>) -> Result<Out> {
    let (bytes, encoding) = (bytes(row, 0), text(row, 1));
    let mut out = String::new();
    match encoding.to_ascii_lowercase().as_str() {
        "hex" => bytes.iter().for_each(|byte| {
            // Writing to a String does not fail.
            let _ = write!(out, "{byte:02x}");
        }),
        "base64" => {
            let all = base64().encode(bytes);
            let mut rest = all.as_str();
            while rest.len() > LINE {
                let (line, more) = rest.split_at(LINE);
                out.push_str(line);
                out.push('\n');
                rest = more;
            }
            out.push_str(rest);
        }
        "escape" => bytes.iter().for_each(|byte| match byte {
            0 | 0x80.. => {
                let _ = write!(out, "\\{byte:03o}");
            }
            b'\\' => out.push_str("\\\\"),
            byte => out.push(char::from(*byte)),
        }),
        _ => return Err(unknown(encoding)),
    }
    Ok(Out::Text(out))
}

pub(super) fn decode(row: Row<'_, '_>) -> Result<Out> {
    let (given, encoding) = (text(row, 0), text(row, 1));
    Ok(Out::Bytes(match encoding.to_ascii_lowercase().as_str() {
        "hex" => {
            let digits = given.chars().filter(|c| !matches!(c, ' ' | '\n' | '\t' | '\r'));
            let digits = digits.map(|c| {
                let digit = c.to_digit(16).map(|digit| digit as u8);
                digit.ok_or_else(|| Error::new("22023", format!("invalid hexadecimal digit: \"{c}\"")))
            });
            let digits = digits.collect::<Result<Vec<u8>>>()?;
            if !digits.len().is_multiple_of(2) {
                return Err(Error::new("22023", "invalid hexadecimal data: odd number of digits"));
            }
            digits.chunks_exact(2).map(|pair| (pair[0] << 4) | pair[1]).collect()
        }
        "base64" => {
            let symbols: String = given
                .chars()
                .filter(|c| !matches!(c, ' ' | '\n' | '\t' | '\r'))
                .collect();
            let decoded = base64().decode(symbols);
            decoded
                .map_err(|e| Error::new("22023", "invalid base64 end sequence or symbol").with_detail(e.to_string()))?
        }
        "escape" => escaped(given.as_bytes())?,
        _ => return Err(unknown(encoding)),
    }))
}

fn escaped(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(rest.len());
    loop {
        match rest {
            [] => return Ok(out),
            [b'\\', b'\\', more @ ..] => {
                out.push(b'\\');
                rest = more;
            }
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', more @ ..] => {
                out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = more;
            }
            [b'\\', ..] => return Err(Error::new("22P02", "invalid input syntax for type bytea")),
            [byte, more @ ..] => {
                out.push(*byte);
                rest = more;
            }
        }
    }
}

fn check_utf8(encoding: &str) -> Result<()> {
    match encoding.to_ascii_lowercase().replace(['-', '_'], "").as_str() {
        "utf8" | "unicode" | "sqlascii" => Ok(()),
        _ => Err(Error::unsupported(
            format!("conversion of encoding {encoding} is not supported"),
            "text is UTF8",
        )),
    }
}

pub(super) fn convert_from(row: Row<'_, '_>) -> Result<Out> {
    check_utf8(text(row, 1))?;
    let text = std::str::from_utf8(bytes(row, 0));
    let text = text.map_err(|_| Error::new("22021", "invalid byte sequence for encoding \"UTF8\""))?;
    Ok(Out::Text(text.to_owned()))
}

pub(super) fn convert_to(row: Row<'_, '_>) -> Result<Out> {
    check_utf8(text(row, 1))?;
    Ok(Out::Bytes(text(row, 0).as_bytes().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::super::Value;
    use super::*;

    #[test]
    fn what_is_encoded_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        for encoding in ["hex", "base64", "escape"] {
            let Ok(Out::Text(text)) = encode(&[Some(Value::Bytes(&all)), Some(Value::Text(encoding))]) else {
                panic!("{encoding}");
            };
            let back = decode(&[Some(Value::Text(&text)), Some(Value::Text(encoding))]);
            assert_eq!(back.unwrap(), Out::Bytes(all.clone()), "{encoding}");
            assert_eq!(
                encoding == "base64",
                text.lines().all(|line| line.len() <= 76) && text.contains('\n')
            );
        }
        for (given, encoding) in [
            ("abc", "hex"),
            ("zz", "hex"),
            ("YWI", "base64"),
            ("\\9", "escape"),
            ("a", "rot13"),
        ] {
            assert!(
                decode(&[Some(Value::Text(given)), Some(Value::Text(encoding))]).is_err(),
                "{given}"
            );
        }
    }
}
