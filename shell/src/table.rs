//! Aligned and expanded output, letter for letter as psql prints it.
//!
//! ```text
//!   name  | n          -[ RECORD 1 ]
//! --------+----        name | lentil
//!  lentil | 12         n    | 12
//!  pea    |  3
//! (2 rows)
//! ```
//!
//! Rows are kept until their widths are known, but never more than `BUFFERED_ROWS_MAX`: a longer result is printed with
//! the widths of its beginning, so memory stays bounded. Width is counted in terminal cells, not characters.

use std::io::{self, Write};

use unicode_width::UnicodeWidthStr;

/// Rows kept to find the column widths: a few hundred MB of the widest rows, more than anyone reads.
const BUFFERED_ROWS_MAX: usize = 100_000;

/// A row as the simple protocol brings it.
pub type Row = Vec<Option<String>>;

/// A column: its name and how it is aligned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The heading.
    pub name: String,
    /// How its values are set and, in JSON, quoted.
    pub kind: Kind,
}

/// What the shell needs to know of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Right-aligned.
    Number,
    /// Left-aligned; a JSON boolean.
    Bool,
    /// Left-aligned.
    Text,
    /// The server did not say: right-aligned if every value looks like a number.
    Unknown,
}

/// Prints one result set as a table.
pub struct AlignedTable {
    columns: Vec<Column>,
    title: Option<String>,
    rows: Vec<Row>,
    widths: Option<Vec<usize>>,
    count: u64,
}

impl AlignedTable {
    /// A table with an optional centered title above it.
    pub fn new(columns: Vec<Column>, title: Option<String>) -> Self {
        Self {
            columns,
            title,
            rows: Vec::new(),
            widths: None,
            count: 0,
        }
    }

    /// Adds a row, printing what no longer needs to wait.
    ///
    /// # Errors
    /// What writing to `out` gave.
    pub fn push(&mut self, row: Row, out: &mut dyn Write) -> io::Result<()> {
        self.count += 1;
        if let Some(widths) = &self.widths {
            return write_row(&self.columns, widths, &row, out);
        }
        self.rows.push(row);
        if self.rows.len() < BUFFERED_ROWS_MAX {
            return Ok(());
        }
        self.print_buffered(out)
    }

    /// Prints the rest and the number of rows.
    ///
    /// # Errors
    /// What writing to `out` gave.
    pub fn finish(mut self, footer: Footer, out: &mut dyn Write) -> io::Result<()> {
        if self.widths.is_none() {
            self.print_buffered(out)?;
        }
        match footer {
            Footer::RowCount => writeln!(out, "({} row{})", self.count, if self.count == 1 { "" } else { "s" })?,
            Footer::Lines(lines) => lines.iter().try_for_each(|line| writeln!(out, "{line}"))?,
        }
        writeln!(out)
    }

    fn print_buffered(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let rows = std::mem::take(&mut self.rows);
        settle_kinds(&mut self.columns, &rows);
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|i| {
                let cells = rows.iter().filter_map(|row| row.get(i)?.as_deref());
                cells
                    .map(widest_line)
                    .max()
                    .unwrap_or(0)
                    .max(widest_line(&self.columns[i].name))
            })
            .collect();
        if let Some(title) = &self.title {
            let total = widths.iter().sum::<usize>() + 3 * widths.len().max(1) - 1;
            writeln!(out, "{}{title}", " ".repeat(total.saturating_sub(title.width()) / 2))?;
        }
        let headings: Row = self.columns.iter().map(|column| Some(column.name.clone())).collect();
        write_lines(&headings, &widths, out, |_, text, width, last| {
            center(text, width, last)
        })?;
        let rules: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
        writeln!(out, "{}", rules.join("+"))?;
        for row in &rows {
            write_row(&self.columns, &widths, row, out)?;
        }
        self.widths = Some(widths);
        Ok(())
    }
}

/// What stands below a table.
pub enum Footer {
    /// `(3 rows)`.
    RowCount,
    /// These lines, as `\d` has them.
    Lines(Vec<String>),
}

/// Prints one record of expanded output; `number` counts from 1. Blocks of rows share the widths given.
///
/// # Errors
/// What writing to `out` gave.
pub fn write_record(
    columns: &[Column],
    row: &Row,
    number: u64,
    data_width: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    let name_width = columns
        .iter()
        .map(|column| widest_line(&column.name))
        .max()
        .unwrap_or(0);
    writeln!(out, "{}", record_line(number, name_width, data_width))?;
    for (column, cell) in columns.iter().zip(row) {
        let lines: Vec<&str> = cell.as_deref().unwrap_or("").split('\n').collect();
        for (index, line) in lines.iter().enumerate() {
            let name = if index == 0 { column.name.as_str() } else { "" };
            let gap = " ".repeat(name_width.saturating_sub(name.width()));
            let more = index + 1 < lines.len();
            let after = if more {
                " ".repeat(data_width.saturating_sub(line.width())) + "+"
            } else {
                String::new()
            };
            writeln!(out, "{name}{gap} | {line}{after}")?;
        }
    }
    Ok(())
}

/// The widest value of these rows: the data width that [`write_record`] takes.
pub fn data_width(rows: &[Row]) -> usize {
    rows.iter()
        .flatten()
        .flatten()
        .map(|cell| widest_line(cell))
        .max()
        .unwrap_or(0)
}

/// `-[ RECORD 1 ]-+----`: a rule over both columns, the label in it, the crossing where it is not covered.
fn record_line(number: u64, name_width: usize, data_width: usize) -> String {
    let mut line = format!("-[ RECORD {number} ]");
    let crossing = name_width + 1;
    for at in line.len()..name_width + 3 + data_width {
        line.push(if at == crossing { '+' } else { '-' });
    }
    line
}

/// Decides the alignment of columns whose type is not known, from all rows at hand.
fn settle_kinds(columns: &mut [Column], rows: &[Row]) {
    for (index, column) in columns.iter_mut().enumerate() {
        if column.kind == Kind::Unknown {
            let mut cells = rows.iter().filter_map(|row| row.get(index)?.as_deref()).peekable();
            let numeric = cells.peek().is_some() && cells.all(|cell| cell.parse::<f64>().is_ok());
            column.kind = if numeric { Kind::Number } else { Kind::Text };
        }
    }
}

fn write_row(columns: &[Column], widths: &[usize], row: &Row, out: &mut dyn Write) -> io::Result<()> {
    write_lines(row, widths, out, |index, text, width, last| {
        let gap = " ".repeat(width.saturating_sub(text.width()));
        match columns[index].kind {
            Kind::Number => format!("{gap}{text}"),
            _ if last => text.to_owned(),
            _ => format!("{text}{gap}"),
        }
    })
}

/// Prints the lines of one row; a cell with further lines has a `+` behind it.
fn write_lines(
    row: &Row,
    widths: &[usize],
    out: &mut dyn Write,
    set: impl Fn(usize, &str, usize, bool) -> String,
) -> io::Result<()> {
    let cells: Vec<Vec<&str>> = row
        .iter()
        .map(|cell| cell.as_deref().unwrap_or("").split('\n').collect())
        .collect();
    let height = cells.iter().map(Vec::len).max().unwrap_or(1);
    for line in 0..height {
        let mut text = String::new();
        for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
            let (last, more) = (index + 1 == cells.len(), line + 1 < cell.len());
            text.push_str(if index == 0 { " " } else { "| " });
            // A cell that goes on is padded even in the last column, so that its mark lines up.
            text.push_str(&set(index, cell.get(line).unwrap_or(&""), *width, last && !more));
            match (more, last) {
                (true, _) => text.push('+'),
                (false, false) => text.push(' '),
                (false, true) => {}
            }
        }
        writeln!(out, "{text}")?;
    }
    Ok(())
}

fn center(text: &str, width: usize, last: bool) -> String {
    let gap = width.saturating_sub(text.width());
    // psql puts a blank behind the heading of the last column too, though not behind its values.
    format!(
        "{}{text}{}{}",
        " ".repeat(gap / 2),
        " ".repeat(gap - gap / 2),
        if last { " " } else { "" }
    )
}

fn widest_line(text: &str) -> usize {
    text.split('\n').map(UnicodeWidthStr::width).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, kind: Kind) -> Column {
        Column {
            name: name.to_owned(),
            kind,
        }
    }

    fn row(cells: &[&str]) -> Row {
        cells
            .iter()
            .map(|cell| (*cell != "NULL").then(|| (*cell).to_owned()))
            .collect()
    }

    /// The expected texts are what psql 15 printed for the same rows.
    #[test]
    fn aligned_output_is_that_of_psql() {
        let columns = vec![
            column("a", Kind::Number),
            column("bbbb", Kind::Text),
            column("m", Kind::Text),
        ];
        let mut table = AlignedTable::new(columns, None);
        let mut out = Vec::new();
        table.push(row(&["1", "x", "l1\nline2"]), &mut out).expect("memory");
        table.push(row(&["10", "NULL", "é日本"]), &mut out).expect("memory");
        table.finish(Footer::RowCount, &mut out).expect("memory");
        let expected = concat!(
            " a  | bbbb |   m   \n",
            "----+------+-------\n",
            "  1 | x    | l1   +\n",
            "    |      | line2\n",
            " 10 |      | é日本\n",
            "(2 rows)\n\n",
        );
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }

    #[test]
    fn expanded_output_is_that_of_psql() {
        let columns = vec![
            column("a", Kind::Number),
            column("some long heading for us", Kind::Text),
        ];
        let rows = [row(&["1", "l1\nline2"])];
        let mut out = Vec::new();
        write_record(&columns, &rows[0], 1, data_width(&rows), &mut out).expect("memory");
        let expected = concat!(
            "-[ RECORD 1 ]------------+------\n",
            "a                        | 1\n",
            "some long heading for us | l1   +\n",
            "                         | line2\n",
        );
        assert_eq!(String::from_utf8_lossy(&out), expected);
        assert_eq!(record_line(1, 1, 1), "-[ RECORD 1 ]");
    }

    #[test]
    fn columns_of_unknown_type_align_by_their_values() {
        let mut columns = vec![
            column("a", Kind::Unknown),
            column("b", Kind::Unknown),
            column("c", Kind::Unknown),
        ];
        settle_kinds(&mut columns, &[row(&["1", "1", "NULL"]), row(&["-2.5", "x", "NULL"])]);
        assert_eq!(
            columns.iter().map(|c| c.kind).collect::<Vec<_>>(),
            [Kind::Number, Kind::Text, Kind::Text]
        );
    }
}
