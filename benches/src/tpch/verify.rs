//! Are two answers the same?
//!
//! ```text
//! ours   A  F  25.5751546114546921        expected   A  F  25.575154       same: 6 decimals agree
//! ours   A  F  25.58                      expected   A  F  25.575154       same: 2 decimals agree
//! ours   A  F  26                         expected   A  F  27              different
//! ```
//!
//! - Numbers: within a millionth of each other; or, when one is printed with fewer decimals (at least two), within one
//!   unit of its last one. That is the "0.01 for rounded numbers" of the specification, kept from hiding small shares.
//! - Text: without trailing blanks, which `char(n)` adds.
//! - Rows: as a multiset; [`check_order`] then asks for the order that ORDER BY promises, ties in any order.

use std::cmp::Ordering;

use super::oracle::Answer;
use super::queries::{Direction, Query};

/// Largest relative difference of equal numbers: sums of floats in another order stay far below it.
const RELATIVE_TOLERANCE: f64 = 1e-6;
/// Largest unit of a last decimal that may differ.
const ROUNDING_UNIT_MAX: f64 = 0.01;

/// Compares `ours` with `expected` as multisets and checks the order of `ours`.
///
/// # Errors
/// The first difference, in words for the report.
pub fn compare(query: &Query, ours: &Answer, expected: &Answer) -> Result<(), String> {
    compare_rows(ours, expected)?;
    check_order(query, ours)
}

fn compare_rows(ours: &Answer, expected: &Answer) -> Result<(), String> {
    let width = expected.first().or(ours.first()).map_or(0, Vec::len);
    if let Some(row) = ours.iter().chain(expected).find(|row| row.len() != width) {
        return Err(format!("a row has {} columns, not {width}", row.len()));
    }
    if ours.len() != expected.len() {
        return Err(count_difference(ours, expected));
    }
    let keys = sort_columns(ours, expected, width);
    let (ours, expected) = (sorted(ours, &keys), sorted(expected, &keys));
    for (our_row, expected_row) in ours.iter().zip(&expected) {
        let differs = |column: &usize| !same_cell(&our_row[*column], &expected_row[*column]);
        if let Some(column) = (0..width).find(differs) {
            return Err(format!(
                "column {}: {} instead of {}, in row ({})",
                column + 1,
                show(&our_row[column]),
                show(&expected_row[column]),
                expected_row.iter().map(show).collect::<Vec<_>>().join(", "),
            ));
        }
    }
    Ok(())
}

/// Names the row count and one row that only the longer side has.
fn count_difference(ours: &Answer, expected: &Answer) -> String {
    let (longer, shorter, verb) = match ours.len() > expected.len() {
        true => (ours, expected, "unexpected"),
        false => (expected, ours, "missing"),
    };
    let same_row = |a: &[Option<String>], b: &[Option<String>]| a.iter().zip(b).all(|(a, b)| same_cell(a, b));
    let example = longer
        .iter()
        .find(|row| !shorter.iter().any(|other| same_row(row, other)));
    let example = example.map(|row| format!(", {verb}: ({})", row.iter().map(show).collect::<Vec<_>>().join(", ")));
    format!(
        "{} rows instead of {}{}",
        ours.len(),
        expected.len(),
        example.unwrap_or_default()
    )
}

/// Columns by which both sides sort alike: exact ones first, those with decimals after them.
fn sort_columns(ours: &Answer, expected: &Answer, width: usize) -> Vec<usize> {
    let inexact = |column: usize| {
        let mut cells = ours.iter().chain(expected).filter_map(|row| row[column].as_deref());
        cells.any(|cell| number(cell).is_some() && cell.contains(['.', 'e', 'E']))
    };
    let (last, mut first): (Vec<_>, Vec<_>) = (0..width).partition(|column| inexact(*column));
    first.extend(last);
    first
}

fn sorted<'a>(answer: &'a Answer, keys: &[usize]) -> Vec<&'a Vec<Option<String>>> {
    let mut rows: Vec<_> = answer.iter().collect();
    rows.sort_by(|a, b| {
        let by_key = keys.iter().map(|key| order_cells(&a[*key], &b[*key]));
        by_key.fold(Ordering::Equal, Ordering::then)
    });
    rows
}

/// Asks whether every row comes after or with the one before it, by the sort keys of `query`.
///
/// # Errors
/// The first pair of rows in the wrong order.
pub fn check_order(query: &Query, ours: &Answer) -> Result<(), String> {
    for (index, pair) in ours.windows(2).enumerate() {
        let by_key = query.order.iter().map(|(column, direction)| {
            let (Some(before), Some(after)) = (pair[0].get(*column), pair[1].get(*column)) else {
                return Ordering::Equal;
            };
            match direction {
                Direction::Ascending => order_cells(before, after),
                Direction::Descending => order_cells(after, before),
            }
        });
        if by_key.fold(Ordering::Equal, Ordering::then) == Ordering::Greater {
            return Err(format!(
                "rows {} and {} are not in the order of ORDER BY",
                index + 1,
                index + 2
            ));
        }
    }
    Ok(())
}

/// Whether two cells hold the same value, by the rules at the top of this file.
pub fn same_cell(ours: &Option<String>, expected: &Option<String>) -> bool {
    match (ours, expected) {
        (None, None) => true,
        (Some(ours), Some(expected)) => {
            let (ours, expected) = (ours.trim_end(), expected.trim_end());
            let numbers = number(ours).zip(number(expected));
            ours == expected || numbers.is_some_and(|pair| same_number(pair, decimals(ours), decimals(expected)))
        }
        _ => false,
    }
}

fn same_number((ours, expected): (f64, f64), our_decimals: u32, expected_decimals: u32) -> bool {
    let difference = (ours - expected).abs();
    if difference <= RELATIVE_TOLERANCE * ours.abs().max(expected.abs()) {
        return true;
    }
    let fewer = our_decimals.min(expected_decimals);
    let unit = 10f64.powi(-fewer.min(300).cast_signed());
    // One part in a thousand on top: 0.01 itself is not a binary number.
    our_decimals != expected_decimals && unit <= ROUNDING_UNIT_MAX && difference <= unit * 1.001
}

fn order_cells(a: &Option<String>, b: &Option<String>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => match number(a).zip(number(b)) {
            Some((a, b)) => a.total_cmp(&b),
            None => a.trim_end().cmp(b.trim_end()),
        },
        // NULL sorts last, as PostgreSQL does.
        _ => a.is_none().cmp(&b.is_none()),
    }
}

/// The value of a cell that is printed as a number; words such as `nan` stay text.
fn number(cell: &str) -> Option<f64> {
    let cell = cell.trim_end();
    let numeric = cell
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.'));
    if numeric {
        cell.parse().ok().filter(|value: &f64| value.is_finite())
    } else {
        None
    }
}

fn decimals(cell: &str) -> u32 {
    let fraction = cell.split_once('.').map_or("", |(_, fraction)| fraction);
    u32::try_from(fraction.bytes().take_while(u8::is_ascii_digit).count()).unwrap_or(u32::MAX)
}

fn show(cell: &Option<String>) -> String {
    cell.clone().unwrap_or_else(|| "NULL".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpch::queries::query;

    fn answer(rows: &[&str]) -> Answer {
        let cell = |cell: &str| (cell != "NULL").then(|| cell.to_owned());
        rows.iter().map(|row| row.split('|').map(cell).collect()).collect()
    }

    #[test]
    fn cells_compare_by_value() {
        let check = |a: &str, b: &str, same| {
            assert_eq!(same_cell(&Some(a.to_owned()), &Some(b.to_owned())), same, "{a} and {b}");
        };
        check("ABC  ", "ABC", true);
        check("ABC", "abc", false);
        check("0.050081", "0.05008133906964237698", true);
        check("25.58", "25.575154", true);
        check("25.60", "25.575154", false);
        check("100000000.00", "100000001.00", true);
        check("100.01", "100.02", false);
        check("5", "6", false);
        check("5", "5.0000", true);
        check("nan", "1", false);
        check("13-555", "13", false);
        assert!(!same_cell(&None, &Some("0".to_owned())));
    }

    #[test]
    fn a_difference_is_named() {
        let expected = answer(&["a|1.50", "b|2.50"]);
        assert_eq!(compare_rows(&answer(&["b|2.5", "a|1.500000"]), &expected), Ok(()));
        let message = compare_rows(&answer(&["a|1.50", "b|2.60"]), &expected).expect_err("differs");
        assert_eq!(message, "column 2: 2.60 instead of 2.50, in row (b, 2.50)");
        let message = compare_rows(&answer(&["a|1.50"]), &expected).expect_err("differs");
        assert_eq!(message, "1 rows instead of 2, missing: (b, 2.50)");
        assert!(compare_rows(&answer(&["a", "b"]), &expected).is_err());
        assert!(compare_rows(&answer(&["a|NULL", "b|2.50"]), &expected).is_err());
    }

    #[test]
    fn the_promised_order_is_checked() {
        // Query 13 orders by the second column, then the first, both descending.
        let query = query(13).expect("exists");
        assert_eq!(check_order(query, &answer(&["0|500", "11|68", "10|68"])), Ok(()));
        assert!(check_order(query, &answer(&["0|500", "10|68", "11|68"])).is_err());
        assert!(check_order(query, &answer(&["0|68", "1|500"])).is_err());
    }
}
