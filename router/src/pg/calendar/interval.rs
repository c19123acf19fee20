//! Intervals from text.
//!
//! ```text
//!   1 year 2 mons 3 days 04:05:06.789   -1 days +02:03:04   1-2   3 04:05:06   1.5 hours ago   P1Y2M3DT4H5M6.7S
//! ```
//!
//! As PostgreSQL's `interval_in`: a number without a unit is seconds, or days when a time of day follows; fractions go to the
//! next smaller units with 12 months a year, 30 days a month and 24 hours a day.
//!
//! Not here: the alternative ISO form `P0001-02-03T04:05:06` and `interval '1' day`'s field restrictions (22007).

use datafusion::arrow::array::types::IntervalMonthDayNano;
use tessera_proto::{Error, Result};

const SECOND: i128 = 1_000_000;
const HOUR: i128 = 3_600 * SECOND;
const DAY: i128 = 24 * HOUR;

/// Sums of the parts; wide enough that 18 digits of any unit fit.
#[derive(Debug, Default)]
struct Sum {
    months: i128,
    days: i128,
    micros: i128,
}

/// A number as written: digits before and after the point.
#[derive(Debug, Clone, Copy)]
struct Number {
    negative: bool,
    whole: i128,
    /// 0 to 1.
    fraction: f64,
}

impl Number {
    /// `whole` of a unit that is `size` smaller ones, its fraction rounded to those.
    fn times(self, size: i128) -> i128 {
        let total = self.whole * size + (self.fraction * size as f64).round() as i128;
        if self.negative { -total } else { total }
    }

    fn whole(self) -> i128 {
        if self.negative { -self.whole } else { self.whole }
    }

    fn fraction(self) -> f64 {
        if self.negative { -self.fraction } else { self.fraction }
    }
}

impl Sum {
    /// Adds a quantity of a unit; `None` for an unknown unit.
    fn add(&mut self, number: Number, unit: &str) -> Option<()> {
        match unit.to_ascii_lowercase().as_str() {
            "us" | "usec" | "usecs" | "usecond" | "useconds" | "microsecond" | "microseconds" | "microsecon" => {
                self.micros += number.times(1)
            }
            "ms" | "msec" | "msecs" | "msecond" | "mseconds" | "millisecond" | "milliseconds" | "millisecon" => {
                self.micros += number.times(1_000)
            }
            "s" | "sec" | "secs" | "second" | "seconds" => self.micros += number.times(SECOND),
            "m" | "min" | "mins" | "minute" | "minutes" => self.micros += number.times(60 * SECOND),
            "h" | "hr" | "hrs" | "hour" | "hours" => self.micros += number.times(HOUR),
            "d" | "day" | "days" => self.add_days(number, 1),
            "w" | "week" | "weeks" => self.add_days(number, 7),
            "mon" | "mons" | "month" | "months" => self.add_months(number),
            "y" | "yr" | "yrs" | "year" | "years" => self.months += number.times(12),
            "dec" | "decs" | "decade" | "decades" => self.months += number.times(120),
            "c" | "cent" | "century" | "centuries" => self.months += number.times(1_200),
            "mil" | "mils" | "millennium" | "millennia" => self.months += number.times(12_000),
            _ => return None,
        }
        Some(())
    }

    fn add_months(&mut self, number: Number) {
        self.months += number.whole();
        self.add_fraction_of_days(number.fraction() * 30.0);
    }

    fn add_days(&mut self, number: Number, size: i128) {
        self.days += number.whole() * size;
        self.add_fraction_of_days(number.fraction() * size as f64);
    }

    fn add_fraction_of_days(&mut self, days: f64) {
        self.days += days.trunc() as i128;
        self.micros += (days.fract() * DAY as f64).round() as i128;
    }

    fn negated(self) -> Self {
        Self {
            months: -self.months,
            days: -self.days,
            micros: -self.micros,
        }
    }
}

/// Reads an interval.
///
/// # Errors
/// 22007 for what is none, 22008 for one out of range.
pub(crate) fn read_interval(text: &str) -> Result<IntervalMonthDayNano> {
    let bad = || Error::new("22007", format!("invalid input syntax for type interval: \"{text}\""));
    let range = || Error::new("22008", "interval out of range");
    let trimmed = text.trim();
    let sum = match trimmed.strip_prefix(['P', 'p']) {
        Some(iso) => read_iso(iso),
        None => read_words(trimmed.strip_prefix('@').unwrap_or(trimmed)),
    };
    let sum = sum.ok_or_else(bad)?;
    Ok(IntervalMonthDayNano {
        months: i32::try_from(sum.months).map_err(|_| range())?,
        days: i32::try_from(sum.days).map_err(|_| range())?,
        nanoseconds: i64::try_from(sum.micros * 1_000).map_err(|_| range())?,
    })
}

fn read_words(text: &str) -> Option<Sum> {
    let (mut sum, mut rest, mut found) = (Sum::default(), text.trim_start(), false);
    while !rest.is_empty() {
        if rest.eq_ignore_ascii_case("ago") && found {
            return Some(sum.negated());
        }
        if let Some((micros, after)) = read_clock(rest) {
            sum.micros += micros;
            rest = after;
        } else if let Some((months, after)) = read_year_month(rest) {
            sum.months += months;
            rest = after;
        } else {
            let (number, after) = read_number(rest)?;
            let after = after.trim_start();
            let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
            let (unit, after) = after.split_at(end);
            match unit {
                "" if after.is_empty() => sum.add(number, "s")?,
                "" if read_clock(after).is_some() => sum.add(number, "d")?,
                unit => sum.add(number, unit)?,
            }
            rest = after;
        }
        found = true;
        // Parts are set apart by blanks, except that a unit ends where the next number begins.
        rest = rest.trim_start();
    }
    found.then_some(sum)
}

/// `1Y2M3DT4H5M6.7S`, after the P.
fn read_iso(text: &str) -> Option<Sum> {
    let (mut sum, mut rest, mut in_time, mut found) = (Sum::default(), text, false, false);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix(['T', 't']).filter(|_| !in_time) {
            (in_time, rest) = (true, after);
            continue;
        }
        let (number, after) = read_number(rest)?;
        let unit = match (after.chars().next()?.to_ascii_uppercase(), in_time) {
            ('Y', false) => "year",
            ('M', false) => "month",
            ('W', false) => "week",
            ('D', false) => "day",
            ('H', true) => "hour",
            ('M', true) => "minute",
            ('S', true) => "second",
            _ => return None,
        };
        sum.add(number, unit)?;
        rest = &after[1..];
        found = true;
    }
    found.then_some(sum)
}

/// `-1.5` at the start of a text, and what follows.
fn read_number(text: &str) -> Option<(Number, &str)> {
    let (negative, body) = sign(text);
    let end = body.find(|c: char| !c.is_ascii_digit()).unwrap_or(body.len());
    let (whole, rest) = body.split_at(end);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(after) => {
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            after.split_at(end)
        }
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let number = Number {
        negative,
        whole: digits(whole)?,
        fraction: format!("0.{fraction}0").parse().ok()?,
    };
    Some((number, rest))
}

fn sign(text: &str) -> (bool, &str) {
    match text.strip_prefix('-') {
        Some(body) => (true, body),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// At most 18 digits; none are 0.
fn digits(text: &str) -> Option<i128> {
    match text {
        "" => Some(0),
        text if text.len() > 18 || !text.bytes().all(|b| b.is_ascii_digit()) => None,
        text => text.parse().ok(),
    }
}

/// `+04:05:06.7`, `04:05` or `05:06.7` (minutes and seconds) at the start of a text, in microseconds, and what follows.
fn read_clock(text: &str) -> Option<(i128, &str)> {
    let (negative, body) = sign(text);
    let end = body
        .find(|c: char| !c.is_ascii_digit() && c != ':' && c != '.')
        .unwrap_or(body.len());
    let (clock, rest) = body.split_at(end);
    let parts: Vec<&str> = clock.split(':').collect();
    let last = parts.last()?;
    let (seconds, fraction) = last.split_once('.').unwrap_or((last, ""));
    let (hours, minutes, seconds) = match parts.as_slice() {
        [minutes, _] if last.contains('.') => ("0", *minutes, seconds),
        [hours, minutes] => (*hours, *minutes, "0"),
        [hours, minutes, _] => (*hours, *minutes, seconds),
        _ => return None,
    };
    if [hours, minutes, seconds].iter().any(|part| part.is_empty()) || fraction.contains('.') {
        return None;
    }
    let (hours, minutes, seconds) = (digits(hours)?, digits(minutes)?, digits(seconds)?);
    let fraction: f64 = format!("0.{fraction}0").parse().ok()?;
    if minutes >= 60 || seconds > 60 {
        return None;
    }
    let micros = hours * HOUR + (minutes * 60 + seconds) * SECOND + (fraction * SECOND as f64).round() as i128;
    Some((if negative { -micros } else { micros }, rest))
}

/// `1-2`: a year and two months.
fn read_year_month(text: &str) -> Option<(i128, &str)> {
    let (negative, body) = sign(text);
    let (years, rest) = body.split_once('-')?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (months, rest) = rest.split_at(end);
    if years.is_empty() || months.is_empty() {
        return None;
    }
    let total = digits(years)? * 12 + digits(months).filter(|m| *m < 12)?;
    Some((if negative { -total } else { total }, rest))
}

#[cfg(test)]
mod tests {
    use super::read_interval;

    #[track_caller]
    fn check(text: &str, expected: Result<(i32, i32, i64), &str>) {
        let got = read_interval(text).map(|i| (i.months, i.days, i.nanoseconds / 1_000));
        assert_eq!(
            got.as_ref().map_err(|e| e.code.as_str()),
            expected.as_ref().map_err(|c| *c),
            "{text}"
        );
    }

    /// The answers are PostgreSQL 15's.
    #[test]
    fn as_postgresql_reads_them() {
        check("00:00:00", Ok((0, 0, 0)));
        check("1 year 2 mons 3 days 04:05:06.789", Ok((14, 3, 14_706_789_000)));
        check("-1 days +02:03:04", Ok((0, -1, 7_384_000_000)));
        check("-00:00:00.000001", Ok((0, 0, -1)));
        check("1-2", Ok((14, 0, 0)));
        check("-1-2", Ok((-14, 0, 0)));
        check("3 04:05:06", Ok((0, 3, 14_706_000_000)));
        check("3 04:05", Ok((0, 3, 14_700_000_000)));
        check("04:05.5", Ok((0, 0, 245_500_000)));
        check("90", Ok((0, 0, 90_000_000)));
        check("1.5 months", Ok((1, 15, 0)));
        check("1.5 years", Ok((18, 0, 0)));
        check("1.5 weeks", Ok((0, 10, 43_200_000_000)));
        check("-1.5 days", Ok((0, -1, -43_200_000_000)));
        check("@ 1 hour 2 minutes ago", Ok((0, 0, -3_720_000_000)));
        check("1h30m", Ok((0, 0, 5_400_000_000)));
        check("P1Y2M3DT4H5M6.7S", Ok((14, 3, 14_706_700_000)));
        check("PT-1.5H", Ok((0, 0, -5_400_000_000)));
        check("2 weeks 1 d", Ok((0, 15, 0)));
        check("178000000 years", Ok((2_136_000_000, 0, 0)));
        for text in ["", "soon", "1 parsec", "ago", "P", "1 2", "1..2", ":", "1 day x"] {
            check(text, Err("22007"));
        }
        check("179000000 years", Err("22008"));
        // PostgreSQL counts microseconds; we count nanoseconds of an i64, 292 years.
        check("3000000 hours", Err("22008"));
    }
}
