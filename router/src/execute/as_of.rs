//! AS OF SYSTEM TIME: what a statement reads at when it says so itself.
//!
//! ```text
//!   '-10s', '-1 min'                    so long before now
//!   '2026-11-30 12:00:00[.5][+01]'      what was committed up to then; without a zone, in the session's
//! ```
//!
//! The node that is asked knows whether it still has the rows: 72000 when the snapshot is older than its retention. Tables, their
//! columns and views are those of now, and `now()` is the time that is read at. Timestamps are of the oracle, in whole milliseconds: all
//! that was committed within the one named is seen.

use crate::pg::calendar::{Zone, read_interval, read_timestamp};
use crate::session::StatementContext;
use datafusion::arrow::array::timezone::Tz;
use tessera_parser::AsOf;
use tessera_proto::{Error, Result, Timestamp};

const DAY_NANOS: i128 = 86_400_000_000_000;
/// As PostgreSQL compares intervals.
const MONTH_DAYS: i128 = 30;

impl StatementContext {
    /// Reads at this time from here on.
    ///
    /// # Errors
    /// 0A000 in a transaction that wrote something, 22007 for a text that is no time, 22023 for a time to come, 72000 for one
    /// before all.
    pub(crate) async fn read_as_of(&mut self, as_of: &AsOf) -> Result<()> {
        let wrote = self.transaction.as_ref().is_some_and(|t| t.own().is_some());
        if wrote {
            return Err(refused("after the transaction has changed rows"));
        }
        let now = self.new_snapshot().await?;
        let zone = self.settings.get("timezone").unwrap_or_default();
        let snapshot = snapshot_of(&as_of.text, &zone, now).map_err(|error| Error {
            position: Some(as_of.position),
            ..error
        })?;
        self.hold(snapshot);
        self.as_of = Some(snapshot);
        Ok(())
    }
}

/// 0A000.
pub(crate) fn refused(place: &str) -> Error {
    Error::unsupported(
        format!("AS OF SYSTEM TIME {place} is not supported"),
        "COMMIT first; a query of the past is a transaction of its own",
    )
}

fn snapshot_of(text: &str, zone: &str, now: Timestamp) -> Result<Timestamp> {
    let millis = match text.trim_start().starts_with(['-', '+', 'P', 'p']) {
        true => i128::from(now.millis()) + interval_millis(text)?,
        false => {
            let zone: Option<Tz> = zone.parse().ok();
            i128::from(read_timestamp(text, Zone::Of(zone.as_ref()))?.div_euclid(1_000))
        }
    };
    if millis > i128::from(now.millis()) {
        return Err(Error::new(
            "22023",
            format!("AS OF SYSTEM TIME: '{text}' is in the future"),
        ));
    }
    let Ok(millis) = u64::try_from(millis) else {
        return Err(Error::snapshot_too_old(Timestamp(0), now));
    };
    // The last one of that millisecond; not one that is not drawn yet.
    Ok(Timestamp(Timestamp::from_millis(millis + 1).0 - 1).min(now))
}

/// Milliseconds of an interval that must be negative.
fn interval_millis(text: &str) -> Result<i128> {
    let interval = read_interval(text)?;
    let days = i128::from(interval.months) * MONTH_DAYS + i128::from(interval.days);
    let nanos = days * DAY_NANOS + i128::from(interval.nanoseconds);
    if nanos > 0 {
        return Err(
            Error::new("22023", format!("AS OF SYSTEM TIME: '{text}' is in the future"))
                .with_hint("an interval is counted from now: write it with a minus"),
        );
    }
    Ok(nanos.div_euclid(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_times_of_the_past() {
        // 2026-11-30 12:00:00 UTC.
        let second = |s: u64| 1_796_040_000_000 + s * 1_000;
        let now = Timestamp(Timestamp::from_millis(second(0)).0 + 5);
        let check = |text: &str, zone: &str, expected: std::result::Result<u64, &str>| {
            let found = snapshot_of(text, zone, now);
            let found = found.map(|t| t.0).map_err(|e| e.code);
            assert_eq!(found, expected.map_err(str::to_owned), "{text}");
        };
        let end_of = |millis: u64| Ok(Timestamp::from_millis(millis + 1).0 - 1);
        check("-10s", "UTC", end_of(second(0) - 10_000));
        check("-1 minute -250ms", "UTC", end_of(second(0) - 60_250));
        check("-0s", "UTC", Ok(now.0));
        check("2026-11-30 11:59:59.5", "UTC", end_of(second(0) - 500));
        check("2026-11-30 12:59:59.5", "+01:00", end_of(second(0) - 500));
        check("2026-11-30 13:59:59+02", "UTC", end_of(second(0) - 1_000));
        check("2026-11-30 12:00:00", "UTC", Ok(now.0));
        check("2026-11-30 12:00:00.001", "UTC", Err("22023"));
        check("+5s", "UTC", Err("22023"));
        check("5s", "UTC", Err("22007"));
        check("yesterday", "UTC", Err("22007"));
        check("infinity", "UTC", Err("22023"));
        check("1969-12-31", "UTC", Err("72000"));
        check("-100 years", "UTC", Err("72000"));
    }
}
