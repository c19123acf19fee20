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
//! - LIMIT: rows that tie with the last one by ORDER BY may be others of the same rank, where a query says so.

use std::cmp::Ordering;

use crate::oracle::Answer;
use crate::workload::Query;

/// One row of an [`Answer`].
type Row = Vec<Option<String>>;

/// Largest relative difference of equal numbers: sums of floats in another order stay far below it.
const RELATIVE_TOLERANCE: f64 = 1e-6;
/// Largest unit of a last decimal that may differ.
const ROUNDING_UNIT_MAX: f64 = 0.01;

/// Compares `ours` with `expected` as multisets and checks the order of `ours`; `text` tells which columns are text.
///
/// # Errors
/// The first difference, in words for the report.
pub fn compare(query: &Query, ours: &Answer, expected: &Answer, text: &[bool]) -> Result<(), String> {
    check_order(query, ours, text)?;
    let Err(difference) = compare_rows(ours, expected) else {
        return Ok(());
    };
    let full = query
        .limit
        .is_some_and(|limit| ours.len() == limit && expected.len() == limit);
    let (Some(our_last), Some(expected_last), true) = (ours.last(), expected.last(), full && !query.order.is_empty())
    else {
        return Err(difference);
    };
    let ties = |a: &Row, b: &Row| {
        let mut keys = query.order.iter().map(|key| key.column);
        keys.all(|column| same_cell(&a[column], &b[column]))
    };
    let before = |rows: &Answer| -> Answer { rows.iter().filter(|row| !ties(row, expected_last)).cloned().collect() };
    match ties(our_last, expected_last) {
        true => compare_rows(&before(ours), &before(expected)),
        false => Err(difference),
    }
}

/// Compares the rows of two answers, whatever their order.
///
/// # Errors
/// The first difference, in words for the report.
pub fn compare_rows(ours: &Answer, expected: &Answer) -> Result<(), String> {
    let width = expected.first().or(ours.first()).map_or(0, Vec::len);
    if let Some(row) = ours.iter().chain(expected).find(|row| row.len() != width) {
        return Err(format!("a row has {} columns, not {width}", row.len()));
    }
    if ours.len() != expected.len() {
        return Err(count_difference(ours, expected));
    }
    let text: Vec<bool> = (0..width).map(|column| !all_numbers(ours, expected, column)).collect();
    let keys = sort_columns(ours, expected, width);
    let (ours, expected) = (sorted(ours, &keys, &text), sorted(expected, &keys, &text));
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

/// Whether every cell of the column is a number on both sides: only then may it sort as one.
fn all_numbers(ours: &Answer, expected: &Answer, column: usize) -> bool {
    let mut cells = ours.iter().chain(expected).filter_map(|row| row[column].as_deref());
    cells.all(|cell| number(cell).is_some())
}

fn sorted<'a>(answer: &'a Answer, keys: &[usize], text: &[bool]) -> Vec<&'a Row> {
    let mut rows: Vec<_> = answer.iter().collect();
    rows.sort_by(|a, b| {
        let by_key = keys
            .iter()
            .map(|key| order_cells(&a[*key], &b[*key], text[*key], false));
        by_key.fold(Ordering::Equal, Ordering::then)
    });
    rows
}

/// Asks whether every row comes after or with the one before it, by the sort keys of `query`.
///
/// # Errors
/// The first pair of rows in the wrong order.
pub fn check_order(query: &Query, ours: &Answer, text: &[bool]) -> Result<(), String> {
    for (index, pair) in ours.windows(2).enumerate() {
        let by_key = query.order.iter().map(|key| {
            let (Some(before), Some(after)) = (pair[0].get(key.column), pair[1].get(key.column)) else {
                return Ordering::Equal;
            };
            let text = text.get(key.column).copied().unwrap_or(false);
            match key.descending {
                false => order_cells(before, after, text, key.nulls_first),
                true => order_cells(after, before, text, !key.nulls_first),
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

fn order_cells(a: &Option<String>, b: &Option<String>, text: bool, nulls_first: bool) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => match number(a).zip(number(b)) {
            Some((a, b)) if !text => a.total_cmp(&b),
            // With their trailing blanks: they count where they are not padding, and padding is equally long.
            _ => a.cmp(b),
        },
        _ if nulls_first => b.is_none().cmp(&a.is_none()),
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
    use crate::tpch;
    use crate::workload::SortKey;

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
        let workload = tpch::workload();
        let query = workload.select(Some(&[13])).expect("exists")[0];
        let check = |rows: &[&str]| check_order(query, &answer(rows), &[false, false]);
        assert_eq!(check(&["0|500", "11|68", "10|68"]), Ok(()));
        assert!(check(&["0|500", "10|68", "11|68"]).is_err());
        assert!(check(&["0|68", "1|500"]).is_err());
    }

    fn ordered_by_the_first_column(descending: bool, nulls_first: bool, limit: Option<usize>) -> Query {
        let key = SortKey {
            column: 0,
            descending,
            nulls_first,
        };
        Query {
            number: 1,
            part: None,
            sql: "",
            order: vec![key],
            limit,
        }
    }

    #[test]
    fn text_and_null_have_their_places() {
        let check = |descending, nulls_first, text, rows: &[&str]| {
            let query = ordered_by_the_first_column(descending, nulls_first, None);
            check_order(&query, &answer(rows), &[text]).is_ok()
        };
        assert!(check(false, false, true, &["10", "9"]), "digits in a text column");
        assert!(check(false, false, true, &["absolute", "absolute ", "absolute x"]));
        assert!(!check(false, false, false, &["10", "9"]));
        assert!(check(false, false, false, &["9", "10", "NULL"]));
        assert!(!check(false, true, false, &["9", "10", "NULL"]));
        assert!(check(false, true, false, &["NULL", "9", "10"]));
        assert!(check(true, true, false, &["NULL", "10", "9"]));
        assert!(check(true, false, false, &["10", "9", "NULL"]));
        assert!(!check(true, false, false, &["NULL", "10", "9"]));
    }

    #[test]
    fn only_ties_with_the_last_row_are_free() {
        let check = |limit, ours: &[&str], expected: &[&str]| {
            let query = ordered_by_the_first_column(false, false, limit);
            compare(&query, &answer(ours), &answer(expected), &[false, true]).is_ok()
        };
        assert!(check(Some(3), &["1|a", "2|b", "2|c"], &["1|a", "2|c", "2|d"]));
        assert!(!check(None, &["1|a", "2|b", "2|c"], &["1|a", "2|c", "2|d"]));
        assert!(
            !check(Some(4), &["1|a", "2|b", "2|c"], &["1|a", "2|c", "2|d"]),
            "there was room for all"
        );
        assert!(!check(Some(3), &["1|x", "2|b", "2|c"], &["1|a", "2|c", "2|d"]));
        assert!(!check(Some(3), &["1|a", "2|b", "3|c"], &["1|a", "2|b", "2|c"]));
        assert!(!check(Some(3), &["1|a", "1|b", "2|c"], &["1|a", "2|b", "2|c"]));
    }
}
