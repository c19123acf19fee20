//! The generator: a seed to one typed SELECT over a few small tables.
//!
//! Only what has one right answer: a window without a total order gets functions that treat peers alike, LIMIT comes behind
//! an ORDER BY of every output column, and nothing adds floating-point numbers. Values are small, so nothing overflows, and
//! divisors are never zero.
//!
//! Not done: floating point, time stamps, arrays; functions with a result per type of their own are the scalar tests' matter.

use crate::oracle::{Order, Table};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Relations in one FROM: more would multiply the few frequent keys into too many rows.
const RELATIONS_MAX: usize = 3;

/// Tables with every shape of data a shard may have: NULL keys, one frequent key, shards without rows, one row, none.
pub fn tables() -> Vec<Table> {
    let table = |name: &str, columns, place: &str, count: i64, row: &dyn Fn(i64) -> String| Table {
        name: name.to_owned(),
        columns,
        place: place.to_owned(),
        rows: (0..count).map(row).collect(),
    };
    vec![
        table(
            "t",
            "id int NOT NULL, k bigint, a int, b text, v numeric(8,2), d date",
            "SHARD BY HASH(k) SHARDS 8",
            48,
            &|i| {
                let (a, b) = (or_null(i % 13 == 0, i % 5), or_null(i % 7 == 0, text(i % 6)));
                let v = or_null(i % 9 == 0, format!("{}.{:02}", i * 3 % 17, i % 4 * 25));
                format!(
                    "({i}, {}, {a}, {b}, {v}, {})",
                    skewed(i),
                    or_null(i % 10 == 3, date(i % 12))
                )
            },
        ),
        table(
            "u",
            "k bigint, x int, w text, d date",
            "SHARD BY HASH(k) SHARDS 8 COLOCATE WITH t",
            40,
            &|i| {
                let (x, w) = (or_null(i % 8 == 5, i % 7), or_null(i % 11 == 0, text(i % 5)));
                format!("({}, {x}, {w}, {})", skewed(i * 5 + 1), date(i % 9))
            },
        ),
        table(
            "n",
            "k int NOT NULL, y int, s text",
            "SHARD BY HASH(k) SHARDS 8 COLOCATE WITH t",
            15,
            &|i| format!("({i}, {}, {})", or_null(i % 6 == 0, i % 4), text(i % 3)),
        ),
        table(
            "few",
            "k bigint, m int",
            "SHARD BY HASH(k) SHARDS 8 COLOCATE WITH t",
            18,
            &|i| format!("({}, {})", or_null(i % 9 == 0, i % 2 * 5 + 2), i % 6),
        ),
        table(
            "one",
            "k bigint, z int, q text",
            "SHARD BY HASH(k) SHARDS 8 COLOCATE WITH t",
            1,
            &|_| "(7, 3, 'b1')".into(),
        ),
        table(
            "e",
            "k bigint, x int, v numeric(8,2)",
            "SHARD BY HASH(k) SHARDS 8 COLOCATE WITH t",
            0,
            &|_| String::new(),
        ),
        table(
            "o",
            "id bigint NOT NULL, k bigint, s text",
            "SHARD BY HASH(id) SHARDS 5",
            25,
            &|i| format!("({i}, {}, {})", skewed(i * 3), or_null(i % 12 == 4, text(i % 7))),
        ),
        table("r", "k bigint, name text, g int", "REFERENCE", 8, &|i| {
            format!(
                "({}, {}, {})",
                or_null(i == 5, i * 2),
                text(i % 4),
                or_null(i == 2, i % 3)
            )
        }),
    ]
}

/// NULL, one frequent value, and a few others.
fn skewed(i: i64) -> String {
    match i {
        i if i % 11 == 0 => "NULL".into(),
        i if i % 3 == 0 => "7".into(),
        i => (i % 20).to_string(),
    }
}

fn or_null(is_null: bool, value: impl std::fmt::Display) -> String {
    if is_null { "NULL".into() } else { value.to_string() }
}

fn text(i: i64) -> String {
    format!("'b{i}'")
}

fn date(i: i64) -> String {
    format!("DATE '2024-{:02}-{:02}'", i + 1, i * 2 + 1)
}

/// Types of expressions; all integers are one, because every operator takes them mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Integer,
    Numeric,
    Text,
    Date,
}

use Type::{Date, Integer, Numeric, Text};

/// A column that can be named here.
#[derive(Debug, Clone)]
struct Column {
    sql: String,
    kind: Type,
}

/// Base tables as the generator sees them.
const BASE: [(&str, &[(&str, Type)]); 8] = [
    (
        "t",
        &[
            ("id", Integer),
            ("k", Integer),
            ("a", Integer),
            ("b", Text),
            ("v", Numeric),
            ("d", Date),
        ],
    ),
    ("u", &[("k", Integer), ("x", Integer), ("w", Text), ("d", Date)]),
    ("n", &[("k", Integer), ("y", Integer), ("s", Text)]),
    ("few", &[("k", Integer), ("m", Integer)]),
    ("one", &[("k", Integer), ("z", Integer), ("q", Text)]),
    ("e", &[("k", Integer), ("x", Integer), ("v", Numeric)]),
    ("o", &[("id", Integer), ("k", Integer), ("s", Text)]),
    ("r", &[("k", Integer), ("name", Text), ("g", Integer)]),
];

/// A sum of integers as one: PostgreSQL's is numeric, DataFusion's is not, and they divide differently.
fn as_bigint(sum: &str) -> String {
    format!("CAST({sum} AS bigint)")
}

/// Makes one statement from one seed.
pub struct Generator {
    random: StdRng,
    /// Aliases given so far: every one is unique in its statement.
    aliases: usize,
    /// WITH queries that may be read: name and types of c1, c2, ...
    with: Vec<(String, Vec<Type>)>,
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            aliases: 0,
            with: vec![],
        }
    }

    /// A whole statement, and whether its rows come in one order only.
    pub fn statement(mut self) -> (String, Order) {
        let mut sql = String::new();
        if self.chance(12) {
            let (query, types) = self.select(1);
            let name = self.alias();
            sql = format!("WITH {name} AS ({query}) ");
            self.with.push((name, types));
        }
        let (query, types) = if self.chance(12) {
            self.set_operation()
        } else {
            self.select(2)
        };
        sql += &query;
        if self.chance(50) {
            return (sql, Order::Any);
        }
        let keys: Vec<_> = (1..=types.len()).map(|i| self.sort_key(&i.to_string())).collect();
        sql += &format!(" ORDER BY {}", keys.join(", "));
        if self.chance(50) {
            sql += &format!(" LIMIT {}", self.random.random_range(0..12));
        }
        if self.chance(20) {
            sql += &format!(" OFFSET {}", self.random.random_range(0..5));
        }
        (sql, Order::Total)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of.choose(&mut self.random).expect("not empty")
    }

    fn alias(&mut self) -> String {
        self.aliases += 1;
        format!("q{}", self.aliases)
    }

    fn sort_key(&mut self, what: &str) -> String {
        let direction = self.one(&["", "", " DESC"]);
        format!(
            "{what}{direction}{}",
            self.one(&["", "", " NULLS FIRST", " NULLS LAST"])
        )
    }

    /// Two SELECTs of the same types.
    fn set_operation(&mut self) -> (String, Vec<Type>) {
        let types: Vec<_> = (0..self.random.random_range(1..3)).map(|_| self.any_type()).collect();
        let operator = self.one(&[
            "UNION ALL",
            "UNION",
            "INTERSECT",
            "EXCEPT",
            "INTERSECT ALL",
            "EXCEPT ALL",
        ]);
        let sides = [self.select_types(&types), self.select_types(&types)];
        (sides.join(&format!(" {operator} ")), types)
    }

    fn any_type(&mut self) -> Type {
        *[Integer, Integer, Integer, Numeric, Text, Text, Date]
            .choose(&mut self.random)
            .expect("not empty")
    }

    /// A plain SELECT of these types.
    fn select_types(&mut self, types: &[Type]) -> String {
        let (from, columns) = self.from(0);
        let filter = self.filter(&columns, 0);
        let mut item = |(i, kind): (usize, &Type)| format!("{} AS c{}", self.expression(&columns, *kind, 1), i + 1);
        let items: Vec<_> = types.iter().enumerate().map(&mut item).collect();
        format!("SELECT {} FROM {from}{filter}", items.join(", "))
    }

    /// A SELECT whose columns are called c1, c2, ...; subqueries nest `depth` deep.
    fn select(&mut self, depth: usize) -> (String, Vec<Type>) {
        let (from, columns) = self.from(depth);
        let filter = self.filter(&columns, depth);
        let (distinct, items, tail) = match self.random.random_range(0..100) {
            0..35 => ("", self.plain(&columns), String::new()),
            35..45 => ("DISTINCT ", self.plain(&columns), String::new()),
            45..80 => {
                let (items, tail) = self.aggregate(&columns);
                ("", items, tail)
            }
            _ => ("", self.windows(&columns), String::new()),
        };
        let named = |(i, item): (usize, &(String, Type))| format!("{} AS c{}", item.0, i + 1);
        let list: Vec<_> = items.iter().enumerate().map(named).collect();
        let sql = format!("SELECT {distinct}{} FROM {from}{filter}{tail}", list.join(", "));
        (sql, items.into_iter().map(|item| item.1).collect())
    }

    fn plain(&mut self, columns: &[Column]) -> Vec<(String, Type)> {
        let count = self.random.random_range(1..5);
        (0..count).map(|_| self.item(columns)).collect()
    }

    fn item(&mut self, columns: &[Column]) -> (String, Type) {
        if self.chance(60) {
            let column = self.column(columns);
            return (column.sql, column.kind);
        }
        let kind = self.any_type();
        (self.expression(columns, kind, 2), kind)
    }

    fn column(&mut self, columns: &[Column]) -> Column {
        columns
            .choose(&mut self.random)
            .expect("every relation has columns")
            .clone()
    }

    /// Select items and what follows WHERE.
    fn aggregate(&mut self, columns: &[Column]) -> (Vec<(String, Type)>, String) {
        let mut groups: Vec<(String, Type)> = vec![];
        for _ in 0..self.random.random_range(0..4) {
            let group = match self.chance(85) {
                true => {
                    let column = self.column(columns);
                    (column.sql, column.kind)
                }
                // Not a constant: that would be an output position.
                false => (format!("({} + 1)", self.column_of(columns, Integer)), Integer),
            };
            if !groups.iter().any(|other| other.0 == group.0) {
                groups.push(group);
            }
        }
        let keys: Vec<_> = groups.iter().map(|group| group.0.clone()).collect();
        let mut tail = match (keys.as_slice(), self.random.random_range(0..100)) {
            ([], _) => String::new(),
            (keys, 0..8) => format!(" GROUP BY ROLLUP ({})", keys.join(", ")),
            (keys, 8..12) => format!(" GROUP BY CUBE ({})", keys.join(", ")),
            ([first, ..], 12..16) => format!(" GROUP BY GROUPING SETS (({}), ({first}), ())", keys.join(", ")),
            (keys, _) => format!(" GROUP BY {}", keys.join(", ")),
        };
        let mut items = groups;
        for _ in 0..self.random.random_range(1..4) {
            items.push(self.aggregate_call(columns));
        }
        if self.chance(25) {
            let (call, kind) = self.aggregate_call(columns);
            tail += &format!(" HAVING {call} {} {}", self.comparison(), self.literal(kind));
        }
        (items, tail)
    }

    fn aggregate_call(&mut self, columns: &[Column]) -> (String, Type) {
        let any = self.column(columns);
        let number = *[Integer, Integer, Numeric].choose(&mut self.random).expect("not empty");
        let (call, kind) = match self.random.random_range(0..8) {
            0 | 1 => ("count(*)".to_owned(), Integer),
            2 => (format!("count({})", any.sql), Integer),
            3 => (format!("count(DISTINCT {})", any.sql), Integer),
            4 => (format!("sum({})", self.expression(columns, number, 1)), number),
            5 => (format!("min({})", any.sql), any.kind),
            6 => (format!("max({})", any.sql), any.kind),
            // Through integers, because engines give averages different types and scales; times a prime, so that no
            // average is so near to a half that only one of them rounds it up.
            _ => (
                format!("CAST(round(avg({}) * 97) AS bigint)", self.column_of(columns, Integer)),
                Integer,
            ),
        };
        let filtered = match !call.starts_with("CAST") && self.chance(12) {
            true => format!("{call} FILTER (WHERE {})", self.simple_predicate(columns)),
            false => call,
        };
        match filtered.starts_with("sum") && kind == Integer {
            true => (as_bigint(&filtered), kind),
            false => (filtered, kind),
        }
    }

    fn windows(&mut self, columns: &[Column]) -> Vec<(String, Type)> {
        let mut items = vec![self.item(columns)];
        // Rows that are equal in every column have no order among each other: one function that tells them apart has one
        // right answer, as a multiset; two together have several.
        let mut kinds = 9;
        for _ in 0..self.random.random_range(1..3) {
            let partition = match self.chance(65) {
                true => format!("PARTITION BY {} ", self.column(columns).sql),
                false => String::new(),
            };
            let by = self.column(columns).sql;
            let by = self.sort_key(&by);
            let everything: Vec<_> = columns.iter().map(|column| self.sort_key(&column.sql)).collect();
            let everything = everything.join(", ");
            let number = self.column_of(columns, Integer);
            let any = self.column(columns);
            let choice = self.random.random_range(0..kinds);
            if choice >= 5 {
                kinds = 5;
            }
            items.push(match choice {
                0 => (format!("rank() OVER ({partition}ORDER BY {by})"), Integer),
                1 => (format!("dense_rank() OVER ({partition}ORDER BY {by})"), Integer),
                2 => (format!("count(*) OVER ({partition})"), Integer),
                3 => (
                    as_bigint(&format!("sum({number}) OVER ({partition}ORDER BY {by})")),
                    Integer,
                ),
                4 => (format!("max({}) OVER ({partition})", any.sql), any.kind),
                5 => (format!("row_number() OVER ({partition}ORDER BY {everything})"), Integer),
                6 => (
                    format!("lag({}) OVER ({partition}ORDER BY {everything})", any.sql),
                    any.kind,
                ),
                7 => (
                    format!("first_value({}) OVER ({partition}ORDER BY {everything})", any.sql),
                    any.kind,
                ),
                _ => {
                    let frame = self.one(&["2 PRECEDING AND CURRENT ROW", "1 PRECEDING AND 1 FOLLOWING"]);
                    let call = format!("sum({number}) OVER ({partition}ORDER BY {everything} ROWS BETWEEN {frame})");
                    (as_bigint(&call), Integer)
                }
            });
        }
        items
    }

    /// What follows FROM, and the columns it has.
    fn from(&mut self, depth: usize) -> (String, Vec<Column>) {
        let (mut sql, mut columns) = self.relation(depth);
        let relations = *[1, 1, 2, 2, RELATIONS_MAX].choose(&mut self.random).expect("not empty");
        for _ in 1..relations {
            let (right, right_columns) = self.relation(depth);
            let kind = self.one(&[
                "JOIN",
                "JOIN",
                "JOIN",
                "LEFT JOIN",
                "LEFT JOIN",
                "RIGHT JOIN",
                "FULL JOIN",
            ]);
            let condition = self.join_condition(&columns, &right_columns, kind);
            sql += &format!(" {kind} {right} ON {condition}");
            columns.extend(right_columns);
        }
        (sql, columns)
    }

    fn join_condition(&mut self, left: &[Column], right: &[Column], kind: &str) -> String {
        let is_key = |column: &&Column| column.sql.ends_with(".k");
        let keys = (
            left.iter().filter(is_key).collect::<Vec<_>>(),
            right.iter().find(is_key),
        );
        let (l, r) = match (keys, self.chance(60)) {
            ((keys, Some(key)), true) if !keys.is_empty() => (
                (*keys.choose(&mut self.random).expect("not empty")).clone(),
                key.clone(),
            ),
            _ => {
                let kind = self.column(right).kind;
                match left.iter().any(|column| column.kind == kind) {
                    true => (self.column_with(left, kind), self.column_with(right, kind)),
                    false => (self.column_with(left, Integer), self.column_with(right, Integer)),
                }
            }
        };
        let mut condition = match self.chance(5) {
            true => format!("({} IS NOT DISTINCT FROM {})", l.sql, r.sql),
            false => format!("{} = {}", l.sql, r.sql),
        };
        if self.chance(25) {
            let both: Vec<_> = left.iter().chain(right).cloned().collect();
            condition += &format!(" AND {}", self.simple_predicate(&both));
        }
        if kind == "JOIN" && self.chance(15) {
            let (l, r) = (self.column_with(left, Integer), self.column_with(right, Integer));
            condition += &format!(" AND {} {} {}", l.sql, self.comparison(), r.sql);
        }
        condition
    }

    fn relation(&mut self, depth: usize) -> (String, Vec<Column>) {
        let alias = self.alias();
        let numbered = |types: &[Type]| -> Vec<Column> {
            let column = |(i, kind): (usize, &Type)| Column {
                sql: format!("{alias}.c{}", i + 1),
                kind: *kind,
            };
            types.iter().enumerate().map(column).collect()
        };
        if !self.with.is_empty() && self.chance(50) {
            let (name, types) = &self.with[0];
            return (format!("{name} AS {alias}"), numbered(types));
        }
        if depth > 0 && self.chance(22) {
            let (query, types) = self.select(depth - 1);
            return (format!("({query}) AS {alias}"), numbered(&types));
        }
        // The tables with rows more often than the others.
        let index = *[0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5, 6, 6, 7, 7]
            .choose(&mut self.random)
            .expect("not empty");
        let (table, columns) = BASE[index];
        let column = |(name, kind): &(&str, Type)| Column {
            sql: format!("{alias}.{name}"),
            kind: *kind,
        };
        (format!("{table} AS {alias}"), columns.iter().map(column).collect())
    }

    fn filter(&mut self, columns: &[Column], depth: usize) -> String {
        match self.random.random_range(0..100) {
            0..35 => String::new(),
            35..75 => format!(" WHERE {}", self.predicate(columns, 2)),
            75..90 => format!(" WHERE {}", self.subquery_predicate(columns, depth)),
            90..95 => format!(
                " WHERE {} AND {}",
                self.predicate(columns, 1),
                self.subquery_predicate(columns, depth)
            ),
            _ => format!(
                " WHERE {} OR {}",
                self.predicate(columns, 1),
                self.subquery_predicate(columns, depth)
            ),
        }
    }

    /// A predicate of at most `depth` levels of AND, OR and NOT.
    fn predicate(&mut self, columns: &[Column], depth: usize) -> String {
        match self.random.random_range(0..10) {
            0 | 1 if depth > 0 => {
                format!(
                    "({} AND {})",
                    self.predicate(columns, depth - 1),
                    self.predicate(columns, depth - 1)
                )
            }
            2 | 3 if depth > 0 => {
                format!(
                    "({} OR {})",
                    self.predicate(columns, depth - 1),
                    self.predicate(columns, depth - 1)
                )
            }
            4 if depth > 0 => format!("NOT ({})", self.predicate(columns, depth - 1)),
            _ => self.simple_predicate(columns),
        }
    }

    fn simple_predicate(&mut self, columns: &[Column]) -> String {
        let column = self.column(columns);
        let (sql, kind) = (column.sql, column.kind);
        match self.random.random_range(0..10) {
            0 => format!("{sql} IS NULL"),
            1 => format!("{sql} IS NOT NULL"),
            2 => format!("{sql} BETWEEN {} AND {}", self.literal(kind), self.literal(kind)),
            3 => {
                let not = self.one(&["", "", "NOT "]);
                let list: Vec<_> = (0..self.random.random_range(1..4))
                    .map(|_| self.literal(kind))
                    .collect();
                format!("{sql} {not}IN ({})", list.join(", "))
            }
            4 if kind == Text => format!("{sql} LIKE {}", self.one(&["'b%'", "'%1'", "'b_'", "'%x%'"])),
            // Parentheses, because DataFusion's parser lets AND bind tighter.
            5 => format!("({sql} IS DISTINCT FROM {})", self.literal(kind)),
            6 => {
                let other = self.column_with(columns, kind);
                format!("{sql} {} {}", self.comparison(), other.sql)
            }
            7 => format!(
                "{} {} {}",
                self.expression(columns, kind, 1),
                self.comparison(),
                self.literal(kind)
            ),
            _ => format!("{sql} {} {}", self.comparison(), self.literal(kind)),
        }
    }

    /// EXISTS, IN and scalar subqueries, correlated or not.
    fn subquery_predicate(&mut self, columns: &[Column], depth: usize) -> String {
        let outer = self.column(columns);
        let (inner, inner_columns) = self.relation(depth.min(1));
        let mut filters = vec![];
        if self.chance(55) {
            let outer = self.column_with(columns, Integer);
            let inner = self.column_with(&inner_columns, Integer);
            filters.push(format!("{} = {}", inner.sql, outer.sql));
        }
        if self.chance(40) {
            filters.push(self.simple_predicate(&inner_columns));
        }
        let filter = match filters.is_empty() {
            true => String::new(),
            false => format!(" WHERE {}", filters.join(" AND ")),
        };
        let not = self.one(&["", "", "NOT "]);
        match self.random.random_range(0..3) {
            0 => format!("{not}EXISTS (SELECT 1 FROM {inner}{filter})"),
            1 => {
                let item = self.expression(&inner_columns, outer.kind, 0);
                format!("{} {not}IN (SELECT {item} FROM {inner}{filter})", outer.sql)
            }
            _ => {
                let outer = self.column_with(columns, Integer);
                let number = self.column_with(&inner_columns, Integer);
                let call = self.one(&["min", "max", "count", "sum"]);
                format!(
                    "{} {} (SELECT {call}({}) FROM {inner}{filter})",
                    outer.sql,
                    self.comparison(),
                    number.sql
                )
            }
        }
    }

    fn comparison(&mut self) -> &'static str {
        self.one(&["=", "=", "<>", "<", "<=", ">", ">="])
    }

    fn literal(&mut self, kind: Type) -> String {
        match kind {
            Integer => self.random.random_range(-1..12).to_string(),
            Numeric => format!(
                "{}.{:02}",
                self.random.random_range(0..15),
                self.random.random_range(0..4) * 25
            ),
            Text => text(self.random.random_range(0..8)),
            Date => date(self.random.random_range(0..12)),
        }
    }

    /// A column of this type if there is one, else a column of another type: `kind` tells.
    fn column_with(&mut self, columns: &[Column], kind: Type) -> Column {
        let of_kind: Vec<_> = columns.iter().filter(|column| column.kind == kind).cloned().collect();
        match of_kind.choose(&mut self.random) {
            Some(column) => column.clone(),
            None => Column {
                sql: self.literal(kind),
                kind,
            },
        }
    }

    fn column_of(&mut self, columns: &[Column], kind: Type) -> String {
        self.column_with(columns, kind).sql
    }

    /// An expression of this type, at most `depth` operators deep.
    fn expression(&mut self, columns: &[Column], kind: Type, depth: usize) -> String {
        if depth == 0 || self.chance(30) {
            return self.column_of(columns, kind);
        }
        let choice = self.random.random_range(0..10);
        let mut inner = |kind| self.expression(columns, kind, depth - 1);
        match (kind, choice) {
            (_, 0) => {
                let (then, other) = (inner(kind), inner(kind));
                format!(
                    "CASE WHEN {} THEN {then} ELSE {other} END",
                    self.simple_predicate(columns)
                )
            }
            (_, 1) => {
                let value = inner(kind);
                format!("coalesce({value}, {})", self.literal(kind))
            }
            (_, 2) => {
                let value = inner(kind);
                format!("nullif({value}, {})", self.literal(kind))
            }
            (Integer, 3) => format!("({} + {})", inner(Integer), inner(Integer)),
            (Integer, 4) => format!("({} - {})", inner(Integer), inner(Integer)),
            (Integer, 5) => format!("({} * 3)", inner(Integer)),
            (Integer, 6) => format!("({} % 4)", inner(Integer)),
            (Integer, 7) => format!("({} / 2)", inner(Integer)),
            (Integer, 8) => format!("abs({})", inner(Integer)),
            (Integer, 9) => format!("length({})", inner(Text)),
            (Numeric, 3 | 4) => format!("({} + {})", inner(Numeric), inner(Numeric)),
            (Numeric, 5) => format!("({} - {})", inner(Numeric), inner(Integer)),
            (Numeric, 6) => format!("({} * 2)", inner(Numeric)),
            (Text, 3 | 4) => format!("({} || {})", inner(Text), inner(Text)),
            (Text, 5) => format!("upper({})", inner(Text)),
            (Text, 6) => format!("substr({}, 1, 2)", inner(Text)),
            (Text, 7) => format!("CAST({} AS text)", inner(Integer)),
            _ => self.column_of(columns, kind),
        }
    }
}
