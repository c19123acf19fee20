//! Dates, times and intervals out of parts, and what is between moments.
//!
//! ```text
//!   age('2026-03-01', '2026-01-15')    1 mon 17 days      whole months first; the days of the earlier month
//!   justify_days('35 days')            1 mon 5 days       justify_hours('27 hours')     1 day 03:00:00
//!   '1 month' * 0.5                    15 days            what is left of months is days, of days is time
//! ```
//!
//! Source: timestamp.c and date.c.

use super::{Out, Row, Value, float, int, interval};
use crate::error::{Error, Result};
use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, NaiveTime, Timelike};
use datafusion::arrow::datatypes::IntervalMonthDayNano;

const NANOS_DAY: i64 = 86_400_000_000_000;
const MICROS_DAY: i64 = 86_400_000_000;
const DAYS_MONTH: i32 = 30;

fn range(what: &str) -> Error {
    Error::new("22008", format!("{what} out of range"))
}

/// Years before our era are negative; there is no year 0.
fn date(year: i64, month: i64, day: i64) -> Result<NaiveDate> {
    let wrong = || {
        let text = format!("date field value out of range: {year}-{month:02}-{day:02}");
        Error::new("22008", text)
    };
    let astronomical = match year {
        0 => return Err(wrong()),
        year if year < 0 => year + 1,
        year => year,
    };
    let parts = (i32::try_from(astronomical), u32::try_from(month), u32::try_from(day));
    let (Ok(year), Ok(month), Ok(day)) = parts else {
        return Err(wrong());
    };
    NaiveDate::from_ymd_opt(year, month, day).ok_or_else(wrong)
}

/// Microseconds since midnight; up to 24:00.
fn time(hour: i64, minute: i64, second: f64) -> Result<i64> {
    let micros = (second * 1e6).round_ties_even();
    let whole = hour * 3_600_000_000 + minute * 60_000_000;
    let fits = (0..=24).contains(&hour) && (0..60).contains(&minute) && (0.0..=60.0).contains(&second);
    let total = fits.then(|| whole + micros as i64).filter(|total| *total <= MICROS_DAY);
    total.ok_or_else(|| {
        let text = format!("time field value out of range: {hour}:{minute:02}:{second:02}");
        Error::new("22008", text)
    })
}

fn days(date: NaiveDate) -> i32 {
    date.num_days_from_ce() - 719_163
}

pub(super) fn make_date(row: Row<'_, '_>) -> Result<Out> {
    Ok(Out::Date(days(date(int(row, 0), int(row, 1), int(row, 2))?)))
}

pub(super) fn make_time(row: Row<'_, '_>) -> Result<Out> {
    Ok(Out::Time(time(int(row, 0), int(row, 1), float(row, 2))?))
}

pub(super) fn make_timestamp(row: Row<'_, '_>) -> Result<Out> {
    let date = date(int(row, 0), int(row, 1), int(row, 2))?;
    let time = time(int(row, 3), int(row, 4), float(row, 5))?;
    Ok(Out::Moment(i64::from(days(date)) * MICROS_DAY + time))
}

/// `to_timestamp(seconds)`, in UTC.
pub(super) fn since_1970(row: Row<'_, '_>) -> Result<Out> {
    let micros = (float(row, 0) * 1e6).round_ties_even();
    match micros.abs() < 9e18 {
        true => Ok(Out::Moment(micros as i64)),
        false => Err(range("timestamp")),
    }
}

/// Years, months, weeks, days, hours, minutes, seconds; 0 where there are fewer.
pub(super) fn make_interval(row: Row<'_, '_>) -> Result<Out> {
    let part = |at| int(row, at);
    let months = part(0).checked_mul(12).and_then(|months| months.checked_add(part(1)));
    let days = part(2).checked_mul(7).and_then(|days| days.checked_add(part(3)));
    let seconds = (float(row, 6) * 1e6).round_ties_even();
    let minutes = part(4).checked_mul(60).and_then(|minutes| minutes.checked_add(part(5)));
    let nanos = minutes.and_then(|minutes| minutes.checked_mul(60_000_000_000));
    let nanos = nanos.filter(|_| seconds.abs() < 9e15);
    let nanos = nanos.and_then(|nanos| nanos.checked_add((seconds as i64).checked_mul(1_000)?));
    let fit = |n: Option<i64>| n.and_then(|n| i32::try_from(n).ok());
    let (Some(months), Some(days), Some(nanoseconds)) = (fit(months), fit(days), nanos) else {
        return Err(range("interval"));
    };
    Ok(Out::Interval(IntervalMonthDayNano::new(months, days, nanoseconds)))
}

fn days_to_months(mut i: IntervalMonthDayNano) -> Result<IntervalMonthDayNano> {
    let whole = i.days / DAYS_MONTH;
    i.days -= whole * DAYS_MONTH;
    i.months = i.months.checked_add(whole).ok_or_else(|| range("interval"))?;
    if i.months > 0 && i.days < 0 {
        i.days += DAYS_MONTH;
        i.months -= 1;
    } else if i.months < 0 && i.days > 0 {
        i.days -= DAYS_MONTH;
        i.months += 1;
    }
    Ok(i)
}

fn time_to_days(mut i: IntervalMonthDayNano) -> Result<IntervalMonthDayNano> {
    let whole = i.nanoseconds / NANOS_DAY;
    i.nanoseconds -= whole * NANOS_DAY;
    let more = i32::try_from(whole).ok();
    i.days = more
        .and_then(|more| i.days.checked_add(more))
        .ok_or_else(|| range("interval"))?;
    if i.days > 0 && i.nanoseconds < 0 {
        i.nanoseconds += NANOS_DAY;
        i.days -= 1;
    } else if i.days < 0 && i.nanoseconds > 0 {
        i.nanoseconds -= NANOS_DAY;
        i.days += 1;
    }
    Ok(i)
}

pub(super) fn justify_days(row: Row<'_, '_>) -> Result<Out> {
    Ok(Out::Interval(days_to_months(interval(row, 0))?))
}

pub(super) fn justify_hours(row: Row<'_, '_>) -> Result<Out> {
    Ok(Out::Interval(time_to_days(interval(row, 0))?))
}

/// Both, and all parts of one sign.
pub(super) fn justify_interval(row: Row<'_, '_>) -> Result<Out> {
    let mut i = interval(row, 0);
    let whole = i.nanoseconds / NANOS_DAY;
    i.nanoseconds -= whole * NANOS_DAY;
    let more = i32::try_from(whole).ok();
    i.days = more
        .and_then(|more| i.days.checked_add(more))
        .ok_or_else(|| range("interval"))?;
    let whole = i.days / DAYS_MONTH;
    i.days -= whole * DAYS_MONTH;
    i.months = i.months.checked_add(whole).ok_or_else(|| range("interval"))?;
    if i.months > 0 && (i.days < 0 || (i.days == 0 && i.nanoseconds < 0)) {
        i.days += DAYS_MONTH;
        i.months -= 1;
    } else if i.months < 0 && (i.days > 0 || (i.days == 0 && i.nanoseconds > 0)) {
        i.days -= DAYS_MONTH;
        i.months += 1;
    }
    if i.days > 0 && i.nanoseconds < 0 {
        i.nanoseconds += NANOS_DAY;
        i.days -= 1;
    } else if i.days < 0 && i.nanoseconds > 0 {
        i.nanoseconds -= NANOS_DAY;
        i.days += 1;
    }
    Ok(Out::Interval(i))
}

pub(super) fn times(row: Row<'_, '_>) -> Result<Out> {
    let (i, factor) = (interval(row, 0), float(row, 1));
    let months = f64::from(i.months) * factor;
    let days = f64::from(i.days) * factor;
    // To the microsecond, so that 0.1 of a month is 3 days.
    let cut = |part: f64| (part * 1e6).round_ties_even() / 1e6;
    let month_days = cut(months.fract() * f64::from(DAYS_MONTH));
    let rest = cut((days.fract() + month_days.fract()) * 86_400.0);
    let whole_rest_days = (rest / 86_400.0).trunc();
    let rest = rest - whole_rest_days * 86_400.0;
    let total_days = days.trunc() + month_days.trunc() + whole_rest_days;
    let micros = (i.nanoseconds as f64 / 1e3 * factor + rest * 1e6).round_ties_even();
    let fits = [months, total_days].iter().all(|n| n.abs() < f64::from(i32::MAX)) && micros.abs() < 9e15;
    if !fits || factor.is_nan() {
        return Err(range("interval"));
    }
    let nanos = (micros as i64).checked_mul(1_000).ok_or_else(|| range("interval"))?;
    Ok(Out::Interval(IntervalMonthDayNano::new(
        months as i32,
        total_days as i32,
        nanos,
    )))
}

fn moment(row: Row<'_, '_>, at: usize) -> Option<i64> {
    match row.get(at) {
        Some(Some(Value::Moment(micros))) => Some(*micros),
        _ => None,
    }
}

fn fields(micros: i64) -> Result<NaiveDateTime> {
    let at = DateTime::from_timestamp_micros(micros).ok_or_else(|| range("timestamp"))?;
    Ok(at.naive_utc())
}

fn days_in_month(at: &NaiveDateTime) -> i64 {
    let (year, month) = match at.month() {
        12 => (at.year() + 1, 1),
        month => (at.year(), month + 1),
    };
    let last = NaiveDate::from_ymd_opt(year, month, 1).and_then(|next| next.pred_opt());
    last.map_or(31, |last| i64::from(last.day()))
}

fn micros_of_day(time: NaiveTime) -> i64 {
    i64::from(time.num_seconds_from_midnight()) * 1_000_000 + i64::from(time.nanosecond() / 1_000)
}

pub(super) fn age(row: Row<'_, '_>) -> Result<Out> {
    let (Some(later), Some(earlier)) = (moment(row, 0), moment(row, 1)) else {
        return Ok(Out::Null);
    };
    // Of two in the other order, the negative of what it is in this one; but the days of the month of the first.
    let negative = later < earlier;
    let (first, second) = (fields(later)?, fields(earlier)?);
    let sign = if negative { -1 } else { 1 };
    let mut micros = sign * (micros_of_day(first.time()) - micros_of_day(second.time()));
    let mut days = sign * (i64::from(first.day()) - i64::from(second.day()));
    let months = |at: &NaiveDateTime| i64::from(at.year()) * 12 + i64::from(at.month0());
    let mut months = sign * (months(&first) - months(&second));
    if micros < 0 {
        micros += MICROS_DAY;
        days -= 1;
    }
    while days < 0 {
        days += days_in_month(if negative { &first } else { &second });
        months -= 1;
    }
    let interval = IntervalMonthDayNano::new((sign * months) as i32, (sign * days) as i32, sign * micros * 1_000);
    Ok(Out::Interval(interval))
}

/// `(a, b) OVERLAPS (c, d)` with SQL's NULLs: an end that is not known is the other.
pub(super) fn overlaps(row: Row<'_, '_>) -> Result<Out> {
    // The earlier end first; one that is NULL is as the other.
    let ends = |a: Option<i64>, b: Option<i64>| match (a, b) {
        (Some(a), Some(b)) => Some((a.min(b), Some(a.max(b)))),
        (Some(only), None) | (None, Some(only)) => Some((only, None)),
        (None, None) => None,
    };
    let (Some((from, to)), Some((other_from, other_to))) = (
        ends(moment(row, 0), moment(row, 1)),
        ends(moment(row, 2), moment(row, 3)),
    ) else {
        return Ok(Out::Null);
    };
    let inside = |start: i64, to: Option<i64>, longer: Option<i64>| match to {
        Some(to) if start < to => Out::Bool(true),
        // With an end that is not known, it may reach beyond; else it does not.
        None => Out::Null,
        Some(_) if longer.is_none() => Out::Null,
        Some(_) => Out::Bool(false),
    };
    Ok(match from.cmp(&other_from) {
        std::cmp::Ordering::Greater => inside(from, other_to, to),
        std::cmp::Ordering::Less => inside(other_from, to, other_to),
        std::cmp::Ordering::Equal if to.is_none() || other_to.is_none() => Out::Null,
        std::cmp::Ordering::Equal => Out::Bool(true),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(text: &str) -> i64 {
        text.parse::<NaiveDateTime>().unwrap().and_utc().timestamp_micros()
    }

    #[test]
    fn ages_count_months_first() {
        for (later, earlier, months, days) in [
            ("2026-03-01T00:00:00", "2026-01-15T00:00:00", 1, 17),
            ("2026-01-15T00:00:00", "2026-03-01T00:00:00", -1, -17),
            ("2026-03-01T00:00:00", "2024-02-29T00:00:00", 24, 1),
            ("2026-03-31T00:00:00", "2026-02-28T00:00:00", 1, 3),
        ] {
            let row = [later, earlier].map(|at| Some(Value::Moment(micros(at))));
            assert_eq!(
                age(&row).unwrap(),
                Out::Interval(IntervalMonthDayNano::new(months, days, 0)),
                "{later}"
            );
        }
    }

    #[test]
    fn parts_carry_down_and_up() {
        let hour = NANOS_DAY / 24;
        let i = |months, days, nanos| IntervalMonthDayNano::new(months, days, nanos);
        let row = |i| [Some(Value::Interval(i))];
        assert_eq!(justify_days(&row(i(0, 35, 0))).unwrap(), Out::Interval(i(1, 5, 0)));
        assert_eq!(
            justify_hours(&row(i(0, 0, 27 * hour))).unwrap(),
            Out::Interval(i(0, 1, 3 * hour))
        );
        assert_eq!(
            justify_interval(&row(i(1, 0, -hour))).unwrap(),
            Out::Interval(i(0, 29, 23 * hour))
        );
        let by = |i, factor| times(&[Some(Value::Interval(i)), Some(Value::Float(factor))]).unwrap();
        assert_eq!(by(i(1, 0, 0), 0.5), Out::Interval(i(0, 15, 0)));
        assert_eq!(by(i(0, 1, 2 * hour), 2.0), Out::Interval(i(0, 2, 4 * hour)));
        assert_eq!(by(i(0, 1, 0), 1.5), Out::Interval(i(0, 1, 12 * hour)));
    }
}
