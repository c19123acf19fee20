//! Dates and times of day in PostgreSQL's ISO style, both ways.
//!
//! ```text
//!   days since 1970-01-01      19723        2024-01-01            i32::MAX  infinity
//!   days                       -719529      0001-12-31 BC          (year 0 of the proleptic calendar is 1 BC)
//!   microseconds, zone +05:30  0            1970-01-01 05:30:00+05:30
//! ```
//!
//! Own arithmetic for the calendar, since years beyond chrono's range are valid in PostgreSQL; zones are chrono's.
//! Not here: styles other than ISO, and inputs that need a calendar's words (`Jan 5`, `tomorrow`): 22007.
//! Source of the day count: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".

use chrono::{DateTime, LocalResult, NaiveDateTime, Offset, TimeZone};
use datafusion::arrow::array::timezone::Tz;
use std::fmt::{self, Write};
use tessera_proto::{Error, Result};

/// Microseconds of a day.
pub(super) const DAY_MICROS: i64 = 86_400_000_000;
/// Days from 1970-01-01 (Arrow) to 2000-01-01 (PostgreSQL).
pub(super) const PG_EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
pub(super) const PG_EPOCH_MICROS: i64 = PG_EPOCH_DAYS as i64 * DAY_MICROS;

/// The zone a timestamp is of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Zone<'a> {
    /// None: timestamp without time zone.
    None,
    /// The session's; without one, UTC.
    Of(Option<&'a Tz>),
}

/// Year, month and day of a day number.
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Day number of a date; `None` if there is no such date.
fn days_of(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(-5_000_000..=6_000_000).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let era = shifted_year.div_euclid(400);
    let year_of_era = shifted_year.rem_euclid(400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    (civil(days) == (year, month, day)).then_some(days)
}

/// Writes a date without its era; tells whether it is BC.
fn write_ymd(out: &mut impl Write, days: i64) -> Result<bool, fmt::Error> {
    let (year, month, day) = civil(days);
    let (year, before_christ) = if year <= 0 { (1 - year, true) } else { (year, false) };
    write!(out, "{year:04}-{month:02}-{day:02}")?;
    Ok(before_christ)
}

/// Writes a time of day, fraction without trailing zeros.
pub(super) fn write_time(out: &mut impl Write, micros: i64) -> fmt::Result {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    write!(
        out,
        "{:02}:{:02}:{:02}",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60
    )?;
    write_fraction(out, fraction)
}

/// Writes `.5` for 500,000 microseconds and nothing for none.
pub(super) fn write_fraction(out: &mut impl Write, mut micros: i64) -> fmt::Result {
    if micros == 0 {
        return Ok(());
    }
    let mut width = 6;
    while micros % 10 == 0 {
        micros /= 10;
        width -= 1;
    }
    write!(out, ".{micros:0width$}")
}

/// Writes a date of days since 1970.
pub(super) fn write_date(out: &mut impl Write, days: i64) -> fmt::Result {
    match days {
        d if d == i64::from(i32::MAX) => out.write_str("infinity"),
        d if d == i64::from(i32::MIN) => out.write_str("-infinity"),
        _ => match write_ymd(out, days)? {
            true => out.write_str(" BC"),
            false => Ok(()),
        },
    }
}

/// Writes a timestamp of microseconds since 1970.
pub(super) fn write_timestamp(out: &mut impl Write, micros: i64, zone: Zone<'_>) -> fmt::Result {
    match micros {
        i64::MAX => return out.write_str("infinity"),
        i64::MIN => return out.write_str("-infinity"),
        _ => {}
    }
    let offset = match zone {
        Zone::None => None,
        Zone::Of(zone) => Some(zone.map_or(0, |zone| offset_at(zone, micros))),
    };
    // In i128 because a zone may push the greatest timestamps over the edge.
    let local = i128::from(micros) + i128::from(offset.unwrap_or(0)) * 1_000_000;
    let days = local.div_euclid(i128::from(DAY_MICROS)) as i64;
    let before_christ = write_ymd(out, days)?;
    out.write_char(' ')?;
    write_time(out, local.rem_euclid(i128::from(DAY_MICROS)) as i64)?;
    if let Some(offset) = offset {
        write_offset(out, offset)?;
    }
    if before_christ { out.write_str(" BC") } else { Ok(()) }
}

fn write_offset(out: &mut impl Write, offset: i32) -> fmt::Result {
    let (sign, seconds) = if offset < 0 { ('-', -offset) } else { ('+', offset) };
    write!(out, "{sign}{:02}", seconds / 3_600)?;
    if seconds % 3_600 != 0 {
        write!(out, ":{:02}", seconds / 60 % 60)?;
    }
    if seconds % 60 != 0 {
        write!(out, ":{:02}", seconds % 60)?;
    }
    Ok(())
}

/// Seconds east of UTC at an instant; beyond chrono's years, what holds at their edge.
fn offset_at(zone: &Tz, micros: i64) -> i32 {
    let edge = if micros < 0 {
        NaiveDateTime::MIN
    } else {
        NaiveDateTime::MAX
    };
    let instant = DateTime::from_timestamp_micros(micros).map_or(edge, |utc| utc.naive_utc());
    zone.offset_from_utc_datetime(&instant).fix().local_minus_utc()
}

/// A zone by its name or offset; also PostgreSQL's spellings of UTC.
pub(super) fn zone(name: &str) -> Option<Tz> {
    let name = name.trim();
    match name.to_ascii_lowercase().as_str() {
        "utc" | "gmt" | "z" | "zulu" | "etc/utc" => "+00:00".parse().ok(),
        _ => name.parse().ok(),
    }
}

/// Reads a date.
pub(super) fn read_date(text: &str) -> Result<i32> {
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

/// Reads a time of day.
pub(super) fn read_time(text: &str) -> Result<i64> {
    match read_clock(text.trim()) {
        Some((micros, "")) => Ok(micros),
        _ => Err(invalid("time", text)),
    }
}

/// Reads a timestamp; one with a zone is brought to UTC, and without `session` (timestamp without time zone) a zone in the
/// text is ignored.
pub(super) fn read_timestamp(text: &str, session: Zone<'_>) -> Result<i64> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn date(days: i64) -> String {
        let mut out = String::new();
        write_date(&mut out, days).ok();
        out
    }

    fn timestamp(micros: i64, name: Option<&str>) -> String {
        let mut out = String::new();
        let zone = name.map(zone);
        write_timestamp(&mut out, micros, of(&zone)).ok();
        out
    }

    fn of(zone: &Option<Option<Tz>>) -> Zone<'_> {
        zone.as_ref().map_or(Zone::None, |zone| Zone::Of(zone.as_ref()))
    }

    #[test]
    fn dates_go_both_ways() {
        for (days, text) in [
            (0, "1970-01-01"),
            (19_782, "2024-02-29"),
            (-719_162, "0001-01-01"),
            (-719_163, "0001-12-31 BC"),
            (2_932_897, "10000-01-01"),
            (106_751_991, "294247-01-10"),
            (i64::from(i32::MAX), "infinity"),
            (i64::from(i32::MIN), "-infinity"),
        ] {
            assert_eq!(date(days), text);
            assert_eq!(read_date(text).map(i64::from).ok(), Some(days), "{text}");
        }
        for (text, code) in [
            ("2023-02-29", "22008"),
            ("0000-01-01", "22008"),
            ("2024-13-01", "22008"),
            ("9999999-01-01", "22008"),
            ("2024-01", "22007"),
            ("2024-01-01x", "22007"),
            ("yesterday", "22007"),
            ("", "22007"),
        ] {
            assert_eq!(read_date(text).map_err(|e| e.code), Err(code.into()), "{text}");
        }
        assert_eq!(read_date("20240229").ok(), Some(19_782));
    }

    #[test]
    fn timestamps_are_printed_in_the_zone_of_the_session() {
        let july = 1_720_000_000_123_000;
        for (micros, zone_name, text) in [
            (july, None, "2024-07-03 09:46:40.123"),
            (july, Some("UTC"), "2024-07-03 09:46:40.123+00"),
            (july, Some("Europe/Paris"), "2024-07-03 11:46:40.123+02"),
            (july, Some("Asia/Kolkata"), "2024-07-03 15:16:40.123+05:30"),
            (july, Some("-03:00"), "2024-07-03 06:46:40.123-03"),
            (-1, None, "1969-12-31 23:59:59.999999"),
            (-62_167_219_200_000_000, None, "0001-01-01 00:00:00 BC"),
            (i64::MAX, Some("UTC"), "infinity"),
            (i64::MIN, None, "-infinity"),
        ] {
            assert_eq!(timestamp(micros, zone_name), text);
            assert_eq!(
                read_timestamp(text, of(&zone_name.map(zone))).ok(),
                Some(micros),
                "{text}"
            );
        }
    }

    #[test]
    fn timestamps_without_a_zone_are_of_the_session() {
        let paris = zone("Europe/Paris");
        let read = |text| read_timestamp(text, Zone::Of(paris.as_ref())).map_err(|e| e.code);
        assert_eq!(read("2024-07-03 11:46:40.123"), Ok(1_720_000_000_123_000));
        assert_eq!(read("2024-07-03T09:46:40.123Z"), Ok(1_720_000_000_123_000));
        assert_eq!(read("2024-07-03 15:16:40.123 Asia/Kolkata"), Ok(1_720_000_000_123_000));
        assert_eq!(
            read("2024-10-27 02:30:00"),
            read("2024-10-27 02:30:00+01"),
            "twice: standard time"
        );
        assert_eq!(
            read("2024-03-31 02:30:00"),
            read("2024-03-31 02:30:00+01"),
            "never: as before the jump"
        );
        assert_eq!(read("2024-07-03 25:00:00"), Err("22007".into()));
        assert_eq!(read("2024-07-03 10:00:00+99"), Err("22007".into()));
        assert_eq!(
            read_timestamp("2024-07-03 09:46:40.123+02", Zone::None).ok(),
            Some(1_720_000_000_123_000)
        );
        assert_eq!(read_time("24:00:00").ok(), Some(DAY_MICROS));
        assert_eq!(read_time("12:34:56.7890126").ok(), Some(45_296_789_013));
    }
}
