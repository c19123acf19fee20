//! Patterns of numbers, for `to_char` and `to_number`.
//!
//! ```text
//!   9 0         digits: blank or zero where there are none        . D    the point      , G    of thousands
//!   S SG MI PL  the sign, at its place       PR   <12>            FM     without blanks      L   a blank
//! ```
//!
//! Numbers come as text, `-1234.5`. Of PostgreSQL 15's patterns (table 9.30) V, EEEE, RN, TH and B are refused. Source:
//! formatting.c, of the C locale.

use tessera_proto::{Error, Result};

/// A pattern that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    items: Vec<Item>,
    fill: bool,
    sign: Sign,
    /// Digits before the point, and behind it.
    before: usize,
    after: usize,
    /// The first place, from the left, from which zeros are written.
    zeros_from: Option<usize>,
    /// The last place behind the point that is written though it is zero and blanks are not.
    zeros_to: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    Digit,
    Point,
    Comma,
    Sign,
    Minus,
    Plus,
    Currency,
    Text(String),
}

/// Where the sign stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// Before the first digit, and a blank for +.
    Usual,
    /// Before the first digit.
    Leading,
    /// Behind the last one.
    Trailing,
    /// `<12>`.
    Angle,
    /// Written by the pattern's own items.
    Own,
}

const KEYWORDS: [&str; 17] = [
    "FM", "SG", "MI", "PL", "PR", "EEEE", "TH", "RN", "9", "0", ".", "D", ",", "G", "S", "L", "V",
];

impl Pattern {
    /// # Errors
    /// 0A000 for what is refused, 42601 for a second point.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut pattern = Self {
            items: vec![],
            fill: true,
            sign: Sign::Usual,
            before: 0,
            after: 0,
            zeros_from: None,
            zeros_to: 0,
        };
        let mut point = false;
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            if let Some(quoted) = rest.strip_prefix('"') {
                let (inside, after) = quoted.split_once('"').unwrap_or((quoted, ""));
                pattern.items.push(Item::Text(inside.to_owned()));
                rest = after;
                continue;
            }
            let keyword = KEYWORDS.iter().find(|word| {
                rest.get(..word.len())
                    .is_some_and(|start| start.eq_ignore_ascii_case(word))
            });
            let Some(keyword) = keyword else {
                if first.eq_ignore_ascii_case(&'b') {
                    return Err(refused("B"));
                }
                pattern.items.push(Item::Text(first.to_string()));
                rest = &rest[first.len_utf8()..];
                continue;
            };
            rest = &rest[keyword.len()..];
            match *keyword {
                "FM" => pattern.fill = false,
                "9" | "0" => {
                    if point {
                        pattern.after += 1;
                        if *keyword == "0" {
                            pattern.zeros_to = pattern.after;
                        }
                    } else {
                        if *keyword == "0" && pattern.zeros_from.is_none() {
                            pattern.zeros_from = Some(pattern.before);
                        }
                        pattern.before += 1;
                    }
                    pattern.items.push(Item::Digit);
                }
                "." | "D" => {
                    if point {
                        return Err(Error::new("42601", "multiple decimal points"));
                    }
                    point = true;
                    pattern.items.push(Item::Point);
                }
                "," | "G" => pattern.items.push(Item::Comma),
                "S" => {
                    pattern.sign = match pattern.before + pattern.after {
                        0 => Sign::Leading,
                        _ => Sign::Trailing,
                    };
                }
                "SG" => {
                    pattern.sign = Sign::Own;
                    pattern.items.push(Item::Sign);
                }
                "MI" => {
                    pattern.sign = Sign::Own;
                    pattern.items.push(Item::Minus);
                }
                // Beside the usual sign.
                "PL" => pattern.items.push(Item::Plus),
                "PR" => pattern.sign = Sign::Angle,
                "L" => pattern.items.push(Item::Currency),
                other => return Err(refused(other)),
            }
        }
        Ok(pattern)
    }

    /// Digits behind the point.
    pub(super) fn scale(&self) -> usize {
        self.after
    }

    /// The number, which has as many digits behind its point as the pattern.
    pub(super) fn write(&self, number: &str) -> String {
        let negative = number.starts_with('-');
        let digits = number.trim_start_matches(['-', '+']);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let whole = whole.trim_start_matches('0');
        let is_zero = whole.is_empty() && fraction.bytes().all(|b| b == b'0');
        let negative = negative && !is_zero;
        let last = match self.fill {
            true => self.after,
            false => fraction.trim_end_matches('0').len().max(self.zeros_to),
        };
        let too_long = whole.len() > self.before || self.before == 0;
        // Places before the first digit that there is; a zero alone is written where there is no fraction.
        let alone = whole.is_empty() && last == 0;
        let start = self.before.saturating_sub(if alone { 1 } else { whole.len() });
        let whole = format!("{whole:0>width$}", width = self.before);
        let start = self.zeros_from.map_or(start, |zeros| start.min(zeros));
        let (mut out, mut place, mut behind, mut signed) = (String::new(), 0, 0, false);
        let sign = match (self.sign, negative) {
            (Sign::Usual, false) if self.fill => " ",
            (Sign::Usual | Sign::Leading, true) => "-",
            (Sign::Leading, false) => "+",
            (Sign::Angle, true) => "<",
            (Sign::Angle, false) if self.fill => " ",
            _ => "",
        };
        let mut point = false;
        for item in &self.items {
            match item {
                Item::Digit if !point => {
                    if place >= start || too_long {
                        if !std::mem::replace(&mut signed, true) {
                            out.push_str(sign);
                        }
                        out.push(if too_long {
                            '#'
                        } else {
                            char::from(whole.as_bytes()[place])
                        });
                    } else if self.fill {
                        out.push(' ');
                    }
                    place += 1;
                }
                Item::Digit => {
                    if !std::mem::replace(&mut signed, true) {
                        out.push_str(sign);
                    }
                    if too_long {
                        out.push('#');
                    } else if behind < last {
                        out.push(fraction.as_bytes().get(behind).map_or('0', |b| char::from(*b)));
                    }
                    behind += 1;
                }
                Item::Point => {
                    if !std::mem::replace(&mut signed, true) {
                        out.push_str(sign);
                    }
                    out.push_str(if self.after > 0 || too_long { "." } else { "" });
                    point = true;
                }
                Item::Comma if !signed => out.push_str(if self.fill { " " } else { "" }),
                Item::Comma => out.push(','),
                Item::Sign => out.push(if negative { '-' } else { '+' }),
                Item::Minus if negative => out.push('-'),
                Item::Plus if !negative => out.push('+'),
                Item::Minus | Item::Plus | Item::Currency => out.push_str(if self.fill { " " } else { "" }),
                Item::Text(text) => out.push_str(text),
            }
        }
        match (self.sign, negative) {
            (Sign::Trailing, true) => out.push('-'),
            (Sign::Trailing, false) => out.push('+'),
            (Sign::Angle, true) => out.push('>'),
            (Sign::Angle, false) if self.fill => out.push(' '),
            _ => {}
        }
        out
    }

    /// The number that `text` has in this pattern, as text.
    ///
    /// # Errors
    /// 22P02 where there is none.
    pub(super) fn read(&self, text: &str) -> Result<String> {
        let mut out = String::new();
        let (mut negative, mut rest) = (false, text.chars().peekable());
        let sign = |rest: &mut std::iter::Peekable<std::str::Chars<'_>>, negative: &mut bool| {
            while rest.next_if(|c| *c == ' ').is_some() {}
            if let Some(c) = rest.next_if(|c| matches!(c, '-' | '+' | '<')) {
                *negative |= c != '+';
            }
        };
        sign(&mut rest, &mut negative);
        for item in &self.items {
            match item {
                Item::Digit => {
                    while rest.next_if_eq(&' ').is_some() {}
                    out.extend(rest.next_if(char::is_ascii_digit));
                }
                Item::Point => {
                    // More digits than the pattern has are not read.
                    while rest.next_if(char::is_ascii_digit).is_some() {}
                    out.extend(rest.next_if_eq(&'.'));
                }
                Item::Comma => {
                    rest.next_if_eq(&',');
                }
                Item::Sign | Item::Minus | Item::Plus => sign(&mut rest, &mut negative),
                Item::Currency => {
                    rest.next_if(|c| !c.is_ascii_digit() && *c != '.' && *c != ',');
                }
                Item::Text(text) => text.chars().for_each(|_| {
                    rest.next();
                }),
            }
        }
        sign(&mut rest, &mut negative);
        let digits = out.bytes().any(|b| b.is_ascii_digit());
        if !digits {
            return Err(Error::new(
                "22P02",
                format!("invalid input syntax for type numeric: \"{text}\""),
            ));
        }
        Ok(if negative { format!("-{out}") } else { out })
    }
}

fn refused(keyword: &str) -> Error {
    let what = format!("pattern \"{keyword}\" of numbers is not supported");
    Error::unsupported(what, "put literal text into double quotes")
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    /// As PostgreSQL 15 writes and reads them.
    #[test]
    fn numbers_are_those_of_postgresql() {
        for (pattern, number, wanted) in [
            ("9,999.99", "1234.50", " 1,234.50"),
            ("999", "-5", "  -5"),
            ("9.99", "0.50", "  .50"),
            ("0.99", "0.50", " 0.50"),
            ("999", "12345", " ###"),
            ("FM9999.00", "1234.57", "1234.57"),
            ("FM0000", "12", "0012"),
            ("S99.9", "-12.3", "-12.3"),
            ("99.9S", "12.3", "12.3+"),
            ("99PR", "-12", "<12>"),
            ("99MI", "-12", "12-"),
            ("L9999", "1234", "  1234"),
            ("FM999.99", "0.00", "0."),
            ("FM990.09", "0.50", "0.5"),
            ("0999", "-12", "-0012"),
            ("FM9,999,999", "1234", "1,234"),
            (".99", "0.50", " .##"),
            ("\"x\"99", "5", "x  5"),
        ] {
            assert_eq!(
                Pattern::parse(pattern).unwrap().write(number),
                wanted,
                "{pattern} of {number}"
            );
        }
        for (pattern, text, wanted) in [
            ("9,999.9", "1,234.5", "1234.5"),
            ("99G999D9S", "12,454.8-", "-12454.8"),
            ("99PR", "<12>", "-12"),
            ("L999", "$123", "123"),
            ("9999", "12 3", "123"),
            ("9", "123", "1"),
        ] {
            assert_eq!(
                Pattern::parse(pattern).unwrap().read(text).unwrap(),
                wanted,
                "{pattern} of {text}"
            );
        }
        assert_eq!(Pattern::parse("99").unwrap().read("a").unwrap_err().code, "22P02");
        for pattern in ["9.99EEEE", "RN", "9V9", "99TH", "B99"] {
            assert_eq!(Pattern::parse(pattern).unwrap_err().code, "0A000", "{pattern}");
        }
        assert_eq!(Pattern::parse("9.9.9").unwrap_err().code, "42601");
    }
}
