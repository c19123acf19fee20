//! Dates and times of day in PostgreSQL's ISO style, both ways.
//!
//! ```text
//!   days since 1970-01-01      19723        2024-01-01            i32::MAX  infinity
//!   days                       -719163      0001-12-31 BC          (year 0 of the proleptic calendar is 1 BC)
//!   microseconds, zone +05:30  0            1970-01-01 05:30:00+05:30
//! ```
//!
//! Own arithmetic for the calendar, since years beyond chrono's range are valid in PostgreSQL; zones are chrono's.
//! Not here: styles other than ISO, and inputs that need a calendar's words (`Jan 5`, `tomorrow`): 22007.
//! Source of the day count: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".

mod interval;
mod read;
#[cfg(test)]
mod tests;

pub(crate) use interval::read_interval;
pub(crate) use read::{read_date, read_time, read_timestamp};

use chrono::{DateTime, NaiveDateTime, Offset, TimeZone};
use datafusion::arrow::array::timezone::Tz;
use std::fmt::{self, Write};

/// Microseconds of a day.
pub(super) const DAY_MICROS: i64 = 86_400_000_000;
/// Days from 1970-01-01 (Arrow) to 2000-01-01 (PostgreSQL).
pub(super) const PG_EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
pub(super) const PG_EPOCH_MICROS: i64 = PG_EPOCH_DAYS as i64 * DAY_MICROS;

/// The zone a timestamp is of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Zone<'a> {
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
pub(crate) fn zone(name: &str) -> Option<Tz> {
    let name = name.trim();
    match name.to_ascii_lowercase().as_str() {
        "utc" | "gmt" | "z" | "zulu" | "etc/utc" => "+00:00".parse().ok(),
        _ => name.parse().ok(),
    }
}
