//! Both directions against what PostgreSQL 15 prints and reads.

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
