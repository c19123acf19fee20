//! Numbers in PostgreSQL's text forms, and numeric in its binary one.
//!
//! ```text
//!   float8   0.1  100000  1e+15  1.5e-05  -0  NaN  Infinity      shortest digits that read back as the same value
//!   numeric  Decimal128(10, 2) 1250 -> 12.50                      the scale is kept
//!   binary   12.50 -> 2 groups, weight 0, sign +, scale 2: 0012 5000   (groups of four digits, point between groups)
//! ```
//!
//! Source for floats: `d2s.c` and `f2s.c` of PostgreSQL 15, which switch to an exponent at 15 and 6 digits.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use datafusion::common::ScalarValue;
use std::fmt::{self, Write};
use tessera_proto::{Error, Result};

/// Digits before the point from which an exponent is written.
const FLOAT4_DIGITS: i32 = 6;
const FLOAT8_DIGITS: i32 = 15;
/// Most digits of a numeric here.
const NUMERIC_DIGITS_MAX: usize = 38;

/// Writes a float4.
pub(super) fn write_float4(out: &mut impl Write, value: f32, extra_digits: i32) -> fmt::Result {
    if !value.is_finite() {
        return write_special(out, f64::from(value));
    }
    match extra_digits {
        1.. => write_shortest(out, &format!("{value:e}"), FLOAT4_DIGITS),
        _ => write_rounded(out, f64::from(value), FLOAT4_DIGITS + extra_digits),
    }
}

/// Writes a float8.
pub(super) fn write_float8(out: &mut impl Write, value: f64, extra_digits: i32) -> fmt::Result {
    if !value.is_finite() {
        return write_special(out, value);
    }
    match extra_digits {
        1.. => write_shortest(out, &format!("{value:e}"), FLOAT8_DIGITS),
        _ => write_rounded(out, value, FLOAT8_DIGITS + extra_digits),
    }
}

fn write_special(out: &mut impl Write, value: f64) -> fmt::Result {
    out.write_str(match value {
        v if v.is_nan() => "NaN",
        v if v > 0.0 => "Infinity",
        _ => "-Infinity",
    })
}

/// As C's `%.*g`: so many significant digits, zeros at the end dropped.
fn write_rounded(out: &mut impl Write, value: f64, digits: i32) -> fmt::Result {
    let digits = digits.max(1);
    let text = format!("{value:.*e}", digits.unsigned_abs() as usize - 1);
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let mantissa = if mantissa.contains('.') {
        mantissa.trim_end_matches('0').trim_end_matches('.')
    } else {
        mantissa
    };
    write_shortest(out, &format!("{mantissa}e{exponent}"), digits)
}

/// Rewrites `-1.25e-7` the way PostgreSQL lays digits out.
fn write_shortest(out: &mut impl Write, scientific: &str, fixed_digits: i32) -> fmt::Result {
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |m| ("-", m));
    out.write_str(sign)?;
    if !(-4..fixed_digits).contains(&exponent) {
        let exponent_sign = if exponent < 0 { '-' } else { '+' };
        return write!(out, "{mantissa}e{exponent_sign}{:02}", exponent.abs());
    }
    let digits = mantissa.replace('.', "");
    match usize::try_from(exponent) {
        Err(_) => write!(out, "0.{:0<1$}{digits}", "", (-exponent - 1).unsigned_abs() as usize),
        Ok(whole) if digits.len() <= whole + 1 => write!(out, "{digits:0<0$}", whole + 1),
        Ok(whole) => write!(out, "{}.{}", &digits[..=whole], &digits[whole + 1..]),
    }
}

/// Sign and digits of an unscaled decimal, as `Display` prints it.
fn split_sign(unscaled: &str) -> (bool, &str) {
    unscaled
        .strip_prefix('-')
        .map_or((false, unscaled), |digits| (true, digits))
}

/// Whole digits (without leading zeros, possibly none) and fraction digits (exactly the scale).
fn split_point(digits: &str, scale: i8) -> (String, String) {
    let Ok(scale) = usize::try_from(scale) else {
        let zeros = "0".repeat(usize::from(scale.unsigned_abs()));
        return (
            if digits == "0" {
                String::new()
            } else {
                format!("{digits}{zeros}")
            },
            String::new(),
        );
    };
    let padded = format!("{digits:0>scale$}");
    let (whole, fraction) = padded.split_at(padded.len() - scale);
    (whole.trim_start_matches('0').to_owned(), fraction.to_owned())
}

/// Writes an unscaled decimal, such as `-1250` with scale 2, as numeric.
pub(super) fn write_numeric(out: &mut impl Write, unscaled: &str, scale: i8) -> fmt::Result {
    let (negative, digits) = split_sign(unscaled);
    let (whole, fraction) = split_point(digits, scale);
    out.write_str(if negative { "-" } else { "" })?;
    out.write_str(if whole.is_empty() { "0" } else { &whole })?;
    if fraction.is_empty() {
        Ok(())
    } else {
        write!(out, ".{fraction}")
    }
}

/// Writes an unscaled decimal in numeric's binary form.
pub(super) fn write_numeric_binary(out: &mut BytesMut, unscaled: &str, scale: i8) {
    let (negative, digits) = split_sign(unscaled);
    let (whole, fraction) = split_point(digits, scale);
    let scale = fraction.len();
    let whole_groups = whole.len().div_ceil(4);
    // Zeros on both ends bring the point between two groups.
    let aligned = format!("{whole:0>0$}{fraction:0<1$}", whole_groups * 4, scale.div_ceil(4) * 4);
    let mut groups: Vec<i16> = aligned.as_bytes().chunks(4).map(group).collect();
    let mut weight = whole_groups as i16 - 1;
    while groups.last() == Some(&0) {
        groups.pop();
    }
    let leading = groups.iter().take_while(|g| **g == 0).count();
    groups.drain(..leading);
    weight -= leading as i16;
    out.put_i16(groups.len() as i16);
    out.put_i16(if groups.is_empty() { 0 } else { weight });
    out.put_u16(if negative && !groups.is_empty() { 0x4000 } else { 0 });
    out.put_i16(scale as i16);
    groups.into_iter().for_each(|g| out.put_i16(g));
}

fn group(digits: &[u8]) -> i16 {
    digits
        .iter()
        .fold(0, |value, digit| value * 10 + i16::from(digit - b'0'))
}

fn invalid(text: &str) -> Error {
    Error::new("22P02", format!("invalid input syntax for type numeric: \"{text}\""))
}

fn too_wide() -> Error {
    Error::new("22003", format!("numeric has more than {NUMERIC_DIGITS_MAX} digits"))
}

/// Reads a numeric of its own precision and scale.
///
/// # Errors
/// 22P02 for other text, 22003 for more than 38 digits, 0A000 for NaN and infinity.
pub(crate) fn read_numeric(text: &str) -> Result<ScalarValue> {
    let body = text.trim();
    if matches!(
        body.trim_start_matches(['+', '-']).to_ascii_lowercase().as_str(),
        "nan" | "infinity" | "inf"
    ) {
        return Err(not_finite());
    }
    let (mantissa, exponent) = body.split_once(['e', 'E']).unwrap_or((body, "0"));
    let exponent: i32 = exponent.parse().map_err(|_| invalid(text))?;
    let (negative, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, mantissa.strip_prefix('+').unwrap_or(mantissa)),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid(text));
    }
    let scale = i32::try_from(fraction.len())
        .map_err(|_| too_wide())?
        .saturating_sub(exponent);
    decimal(negative, &digits, scale)
}

fn not_finite() -> Error {
    Error::unsupported("NaN and infinity are not supported for numeric", "use double precision")
}

/// A decimal of `digits` with `scale` of them after the point; more than there are, or less than none, add zeros.
fn decimal(negative: bool, digits: &str, scale: i32) -> Result<ScalarValue> {
    let zeros = usize::try_from(-scale.min(0)).map_err(|_| too_wide())?;
    let significant = digits.trim_start_matches('0');
    if significant.is_empty() {
        let scale = scale.clamp(0, NUMERIC_DIGITS_MAX as i32) as i8;
        return Ok(ScalarValue::Decimal128(Some(0), (scale as u8).max(1), scale));
    }
    let scale = usize::try_from(scale.max(0)).map_err(|_| too_wide())?;
    let width = significant.len().saturating_add(zeros).max(scale);
    if width > NUMERIC_DIGITS_MAX {
        return Err(too_wide());
    }
    let magnitude: i128 = format!("{significant}{}", "0".repeat(zeros))
        .parse()
        .map_err(|_| too_wide())?;
    let value = if negative { -magnitude } else { magnitude };
    Ok(ScalarValue::Decimal128(Some(value), width as u8, scale as i8))
}

/// Reads a numeric of the binary format.
///
/// # Errors
/// 22P03 for bytes that are none, 22003 for more than 38 digits, 0A000 for NaN and infinity.
pub(in crate::pg) fn read_numeric_binary(mut bytes: Bytes) -> Result<ScalarValue> {
    let bad = || Error::new("22P03", "invalid binary representation of numeric");
    if bytes.len() < 8 {
        return Err(bad());
    }
    let (count, weight) = (usize::from(bytes.get_u16()), i32::from(bytes.get_i16()));
    let (sign, scale) = (bytes.get_u16(), i32::from(bytes.get_u16()));
    if matches!(sign, 0xC000 | 0xD000 | 0xF000) {
        return Err(not_finite());
    }
    if !matches!(sign, 0 | 0x4000) || bytes.len() != count * 2 {
        return Err(bad());
    }
    let mut digits = String::new();
    for _ in 0..count {
        let group = bytes.get_u16();
        if group > 9_999 {
            return Err(bad());
        }
        write!(digits, "{group:04}").map_err(|_| bad())?;
    }
    // Digits after the point as they are; then cut or fill to the scale that the value claims.
    let after_point = (count as i32 - 1 - weight) * 4;
    let surplus = after_point - scale;
    match usize::try_from(surplus) {
        Ok(surplus) => digits.truncate(digits.len().saturating_sub(surplus)),
        Err(_) if digits.is_empty() => {}
        Err(_) if surplus < -(NUMERIC_DIGITS_MAX as i32) - 4 => return Err(too_wide()),
        Err(_) => digits.push_str(&"0".repeat(surplus.unsigned_abs() as usize)),
    }
    decimal(sign == 0x4000, &digits, scale)
}
