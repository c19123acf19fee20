//! The generator: a seed to one typed scalar expression over the columns of `sc`.
//!
//! Divisors are constants: which row fails first, and whether an operand that does not count is evaluated, is for each engine
//! to choose. Integer constants are cast, because they are bigint here and integer in PostgreSQL. Letters outside ASCII
//! are not changed in case: the C collation leaves them alone, Unicode does not.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Integer,
    Numeric,
    Float,
    Text,
    Date,
    Timestamp,
    Boolean,
}

use Type::*;

const DEPTH: usize = 3;

pub struct Generator {
    random: StdRng,
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// A whole expression.
    pub fn expression(&mut self) -> String {
        let types = [
            Integer, Integer, Numeric, Numeric, Float, Text, Text, Date, Timestamp, Boolean,
        ];
        let kind = *types.choose(&mut self.random).expect("not empty");
        let value = self.value(kind, DEPTH);
        match (kind, self.random.random_range(0..4)) {
            (Integer | Numeric | Date | Timestamp, 0) => format!("CAST({value} AS text)"),
            _ => value,
        }
    }

    fn one(&mut self, of: &[&'static str]) -> &'static str {
        of.choose(&mut self.random).expect("not empty")
    }

    fn value(&mut self, kind: Type, depth: usize) -> String {
        if depth == 0 || self.random.random_range(0..5) == 0 {
            return self.leaf(kind).to_owned();
        }
        match self.random.random_range(0..9) {
            0 => {
                let (condition, then, other) = (self.value(Boolean, depth - 1), self.leaf(kind), self.leaf(kind));
                format!("CASE WHEN {condition} THEN {then} ELSE {other} END")
            }
            1 => format!("coalesce({}, {})", self.value(kind, depth - 1), self.leaf(kind)),
            2 => format!("nullif({}, {})", self.value(kind, depth - 1), self.leaf(kind)),
            3 => {
                let function = self.one(&["greatest", "least"]);
                format!(
                    "{function}({}, {})",
                    self.value(kind, depth - 1),
                    self.value(kind, depth - 1)
                )
            }
            _ => self.operator(kind, depth - 1),
        }
    }

    fn leaf(&mut self, kind: Type) -> &'static str {
        self.one(match kind {
            Integer => &["i", "i", "k", "CAST(3 AS int)", "CAST(-2 AS int)", "CAST(0 AS int)"],
            Numeric => &["n", "n", "n", "2.50", "-0.75", "100.1"],
            Float => &["f", "f", "CAST(0.1 AS float8)", "CAST(-3.5 AS float8)"],
            Text => &["t", "t", "'abc'", "'x y'", "''"],
            Date => &["d", "d", "DATE '2024-02-29'", "DATE '1970-01-01'"],
            Timestamp => &["ts", "ts", "TIMESTAMP '2023-12-31 23:59:59.5'"],
            Boolean => &["bo", "i > 0", "t = 'Hello'", "n IS NULL", "true"],
        })
    }

    fn operator(&mut self, kind: Type, depth: usize) -> String {
        let choice = self.random.random_range(0..8);
        match kind {
            Integer => match choice {
                0..3 => {
                    let op = self.one(&["+", "-", "*"]);
                    format!("({} {op} {})", self.value(Integer, depth), self.value(Integer, depth))
                }
                3 => {
                    let op = self.one(&["/ CAST(3 AS int)", "% CAST(4 AS int)", "/ CAST(-2 AS int)"]);
                    format!("({} {op})", self.value(Integer, depth))
                }
                4 => format!("length({})", self.value(Text, depth)),
                5 => format!("CAST({} AS int)", self.value(Numeric, depth)),
                6 => {
                    let part = self.one(&["year", "month", "day", "doy", "dow", "quarter"]);
                    format!("CAST(extract({part} FROM {}) AS int)", self.value(Date, depth))
                }
                _ => format!("CAST({} AS int)", self.value(Float, depth)),
            },
            Numeric => match choice {
                0 | 1 => {
                    let op = self.one(&["+", "-"]);
                    format!("({} {op} {})", self.value(Numeric, depth), self.value(Numeric, depth))
                }
                2 => {
                    let by = self.leaf(Numeric);
                    format!("({} * {by})", self.value(Numeric, depth))
                }
                3 => {
                    let by = self.one(&["3", "2.5", "-7.0", "0.3"]);
                    format!("round({} / {by}, 6)", self.value(Numeric, depth))
                }
                4 => {
                    let function = self.one(&["round", "trunc", "ceil", "floor", "abs", "sign"]);
                    format!("{function}({})", self.value(Numeric, depth))
                }
                5 => format!("round({}, 1)", self.value(Numeric, depth)),
                6 => format!("CAST({} AS numeric(12,3))", self.value(Integer, depth)),
                _ => format!("({} % 0.7)", self.value(Numeric, depth)),
            },
            Float => match choice {
                0..4 => {
                    let op = self.one(&["+", "-", "*"]);
                    format!("({} {op} {})", self.value(Float, depth), self.value(Float, depth))
                }
                4 => {
                    let by = self.one(&["3", "0.7", "0"]);
                    format!("({} / CAST({by} AS float8))", self.value(Float, depth))
                }
                5 => {
                    let function = self.one(&["round", "ceil", "floor", "abs", "trunc"]);
                    format!("{function}({})", self.value(Float, depth))
                }
                _ => format!("CAST({} AS float8)", self.value(Numeric, depth)),
            },
            Text => match choice {
                0 | 1 => format!("({} || {})", self.value(Text, depth), self.value(Text, depth)),
                2 => {
                    let range = self.one(&["2", "2, 3", "0, 2", "-1, 4", "9"]);
                    format!("substr({}, {range})", self.value(Text, depth))
                }
                3 => {
                    let call = self.one(&[
                        "left(x, 2)",
                        "left(x, -2)",
                        "right(x, 2)",
                        "right(x, -1)",
                        "lpad(x, 6, '*')",
                    ]);
                    call.replacen('x', &self.value(Text, depth), 1)
                }
                4 => {
                    let call = self.one(&[
                        "reverse(x)",
                        "replace(x, 'l', 'LL')",
                        "btrim(x)",
                        "md5(x)",
                        "rpad(x, 3)",
                        "repeat(x, 2)",
                    ]);
                    call.replacen('x', &self.value(Text, depth), 1)
                }
                5 => {
                    let kind = *[Integer, Numeric, Date, Timestamp, Float]
                        .choose(&mut self.random)
                        .expect("not empty");
                    format!("CAST({} AS text)", self.leaf(kind))
                }
                6 => format!("concat({}, {}, NULL)", self.value(Text, depth), self.leaf(Integer)),
                _ => format!("split_part({}, 'l', 2)", self.value(Text, depth)),
            },
            Date => match choice {
                0..4 => {
                    let by = self.one(&["+ CAST(1 AS int)", "- CAST(40 AS int)"]);
                    format!("({} {by})", self.value(Date, depth))
                }
                _ => format!("CAST({} AS date)", self.value(Timestamp, depth)),
            },
            Timestamp => match choice {
                0..3 => {
                    let by = self.one(&[
                        "+ INTERVAL '1 month'",
                        "- INTERVAL '1 day 2 hours'",
                        "+ INTERVAL '90 seconds'",
                    ]);
                    format!("({} {by})", self.value(Timestamp, depth))
                }
                3 | 4 => {
                    let unit = self.one(&["hour", "day", "week", "month", "quarter", "year"]);
                    format!("date_trunc('{unit}', {})", self.value(Timestamp, depth))
                }
                5 => format!("({} + INTERVAL '1 month')", self.value(Date, depth)),
                _ => format!("CAST({} AS timestamp)", self.value(Date, depth)),
            },
            Boolean => match choice {
                0 | 1 => {
                    let op = self.one(&["AND", "OR"]);
                    format!("({} {op} {})", self.leaf(Boolean), self.leaf(Boolean))
                }
                2 => format!("(NOT {})", self.value(Boolean, depth)),
                3 => format!(
                    "({} LIKE {})",
                    self.value(Text, depth),
                    self.one(&["'%l%'", "'_e%'", "'abc'", "''"])
                ),
                4 => format!(
                    "({} SIMILAR TO {})",
                    self.value(Text, depth),
                    self.one(&["'%(l|b)%'", "'[A-Z]%'", "'abc'"])
                ),
                _ => {
                    let kinds = [Integer, Numeric, Float, Text, Date, Timestamp];
                    let kind = *kinds.choose(&mut self.random).expect("not empty");
                    let op = self.one(&["=", "<>", "<", "<=", ">", ">=", "IS DISTINCT FROM"]);
                    format!("({} {op} {})", self.value(kind, depth), self.leaf(kind))
                }
            },
        }
    }
}
