//! Dates and times of day from text.
//!
//! ```text
//!   2024-07-03T11:46:40.123+02   20240703   0044-03-15 BC   2024-07-03 11:46 Europe/Paris   infinity   epoch
//! ```

use super::{DAY_MICROS, Zone, days_of, offset_at, zone};
use chrono::{DateTime, LocalResult, Offset, TimeZone};
use datafusion::arrow::array::timezone::Tz;
use tessera_proto::{Error, Result};

/// Reads a date.
pub(crate) fn read_date(text: &str) -> Result<i32> {
    if let Some(days) = plain_date(text.as_bytes()) {
        return Ok(days);
    }
    let bad = || invalid("date", text);
    match special(text) {
        Some(i64::MAX) => return Ok(i32::MAX),
        Some(i64::MIN) => return Ok(i32::MIN),
        Some(_) => return Ok(0),
        None => {}
    }
    let (body, before_christ) = era(text);
    let (days, rest) = read_ymd(body, before_christ).ok_or_else(bad)??;
    // A time after the date is allowed and dropped, as in PostgreSQL.
    if !rest.is_empty() && read_clock(rest.trim_start_matches(['T', 't', ' '])).is_none() {
        return Err(bad());
    }
    i32::try_from(days)
        .ok()
        .filter(|d| *d < i32::MAX && *d > i32::MIN)
        .ok_or_else(|| out_of_range("date", text))
}

/// What nearly all dates look like, `2024-01-31`; `None` for anything else, right or wrong.
fn plain_date(text: &[u8]) -> Option<i32> {
    let [y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1] = text else {
        return None;
    };
    let number = |digits: &[&u8]| {
        let add = |n: i64, digit: &&u8| digit.is_ascii_digit().then(|| n * 10 + i64::from(**digit - b'0'));
        digits.iter().try_fold(0, add)
    };
    // There is no year 0.
    let year = number(&[y0, y1, y2, y3]).filter(|year| *year > 0)?;
    let days = days_of(year, number(&[m0, m1])?, number(&[d0, d1])?)?;
    i32::try_from(days).ok()
}

/// Reads a time of day.
pub(crate) fn read_time(text: &str) -> Result<i64> {
    match read_clock(text.trim()) {
        Some((micros, "")) => Ok(micros),
        _ => Err(invalid("time", text)),
    }
}

/// Reads a timestamp; one with a zone is brought to UTC, and without `session` (timestamp without time zone) a zone in the
/// text is ignored.
pub(crate) fn read_timestamp(text: &str, session: Zone<'_>) -> Result<i64> {
    let kind = if matches!(session, Zone::None) {
        "timestamp"
    } else {
        "timestamp with time zone"
    };
    let bad = || invalid(kind, text);
    if let Some(micros) = special(text) {
        return Ok(micros);
    }
    let (body, before_christ) = era(text);
    let (days, rest) = read_ymd(body, before_christ).ok_or_else(bad)??;
    let rest = rest.trim_start_matches(['T', 't', ' ']);
    let (clock, rest) = if rest.is_empty() {
        (0, "")
    } else {
        read_clock(rest).ok_or_else(bad)?
    };
    let local = i128::from(days) * i128::from(DAY_MICROS) + i128::from(clock);
    let range = || out_of_range(kind, text);
    let local = i64::try_from(local)
        .ok()
        .filter(|m| *m != i64::MAX && *m != i64::MIN)
        .ok_or_else(range)?;
    let given = rest.trim();
    let given = match given {
        "" => None,
        zone_text => Some(read_zone(zone_text, local).ok_or_else(bad)?),
    };
    match (session, given) {
        (Zone::None, _) | (Zone::Of(None), None) => Ok(local),
        (_, Some(offset)) => to_utc(local, offset).ok_or_else(range),
        (Zone::Of(Some(zone)), None) => to_utc(local, offset_of_local(zone, local)).ok_or_else(range),
    }
}

fn to_utc(local: i64, offset: i32) -> Option<i64> {
    local.checked_sub(i64::from(offset) * 1_000_000)
}

/// `infinity`, `-infinity` and `epoch`.
fn special(text: &str) -> Option<i64> {
    match text.trim().to_ascii_lowercase().as_str() {
        "infinity" | "+infinity" => Some(i64::MAX),
        "-infinity" => Some(i64::MIN),
        "epoch" => Some(0),
        _ => None,
    }
}

/// Cuts ` BC` or ` AD` off.
fn era(text: &str) -> (&str, bool) {
    let text = text.trim();
    let Some((body, last)) = text.rsplit_once(' ') else {
        return (text, false);
    };
    match last.to_ascii_uppercase().as_str() {
        "BC" => (body.trim_end(), true),
        "AD" => (body.trim_end(), false),
        _ => (text, false),
    }
}

/// `2024-01-31` or `20240131` at the start of a text, and what follows. The inner error is a date that does not exist.
fn read_ymd(text: &str, before_christ: bool) -> Option<Result<(i64, &str)>> {
    let (year, rest) = digits(text)?;
    let (year, month, day, rest) = match rest.strip_prefix('-') {
        Some(rest) => {
            let (month, rest) = digits(rest)?;
            let (day, rest) = digits(rest.strip_prefix('-')?)?;
            (number(year)?, number(month)?, number(day)?, rest)
        }
        None if year.len() == 8 => (number(&year[..4])?, number(&year[4..6])?, number(&year[6..])?, rest),
        None => return None,
    };
    if !rest.is_empty() && !rest.starts_with(['T', 't', ' ']) {
        return None;
    }
    let proleptic = if before_christ { 1 - year } else { year };
    let days = if year == 0 {
        None
    } else {
        days_of(proleptic, month, day)
    };
    Some(match days {
        Some(days) => Ok((days, rest)),
        None => Err(Error::new(
            "22008",
            format!("date/time field value out of range: \"{text}\""),
        )),
    })
}

/// `12:34`, `12:34:56.789` at the start of a text, in microseconds, and what follows.
fn read_clock(text: &str) -> Option<(i64, &str)> {
    let (hour, rest) = digits(text)?;
    let (minute, rest) = digits(rest.strip_prefix(':')?)?;
    let (second, rest) = match rest.strip_prefix(':') {
        Some(rest) => digits(rest)?,
        None => ("0", rest),
    };
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => digits(rest).unwrap_or(("0", rest)),
        None => ("0", rest),
    };
    let (hour, minute, second) = (number(hour)?, number(minute)?, number(second)?);
    // Half a microsecond rounds up, as PostgreSQL does it.
    let mut seven: String = fraction.chars().chain("0000000".chars()).take(7).collect();
    let round = seven.pop().is_some_and(|d| d >= '5');
    let micros = number(&seven)? + i64::from(round);
    let total = ((hour * 60 + minute) * 60 + second) * 1_000_000 + micros;
    let valid = hour <= 24 && minute < 60 && second <= 60 && total <= DAY_MICROS;
    valid.then_some((total, rest))
}

/// `Z`, `+05`, `-03:30`, `+0530`, `+05:30:15` or a name, as seconds east of UTC at a local time.
fn read_zone(text: &str, local: i64) -> Option<i32> {
    let (sign, body) = match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(body), _) => (1, body),
        (_, Some(body)) => (-1, body),
        _ => return Some(offset_of_local(&zone(text)?, local)),
    };
    let parts: Vec<&str> = match body.split(':').collect::<Vec<_>>() {
        whole if whole.len() == 1 && body.len() == 4 && body.is_ascii() => vec![&body[..2], &body[2..]],
        parts => parts,
    };
    if parts.len() > 3 || parts.iter().any(|p| p.len() > 2) {
        return None;
    }
    let mut seconds = 0;
    for (part, unit) in parts.iter().zip([3_600, 60, 1]) {
        let value = number(part).filter(|v| *v < 60)?;
        seconds += i32::try_from(value).ok()? * unit;
    }
    (seconds < 16 * 3_600).then_some(sign * seconds)
}

/// The offset of a local time; in the hour a clock jumps over or repeats, the one of standard time, as PostgreSQL takes it.
fn offset_of_local(zone: &Tz, local: i64) -> i32 {
    let Some(naive) = DateTime::from_timestamp_micros(local).map(|t| t.naive_utc()) else {
        return offset_at(zone, local);
    };
    match zone.offset_from_local_datetime(&naive) {
        LocalResult::Single(offset) => offset.fix().local_minus_utc(),
        LocalResult::Ambiguous(a, b) => a.fix().local_minus_utc().min(b.fix().local_minus_utc()),
        LocalResult::None => offset_at(zone, local.saturating_sub(DAY_MICROS)),
    }
}

fn digits(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// At most 18 digits, which fit.
fn number(text: &str) -> Option<i64> {
    if text.len() > 18 || text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn invalid(kind: &str, text: &str) -> Error {
    Error::new("22007", format!("invalid input syntax for type {kind}: \"{text}\""))
}

fn out_of_range(kind: &str, text: &str) -> Error {
    Error::new("22008", format!("{kind} out of range: \"{text}\""))
}
