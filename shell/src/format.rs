//! Result sets on their way out: aligned, expanded, CSV or JSON.
//!
//! ```text
//! columns --> ResultWriter::new     row, row, row --> push     end --> finish
//! ```
//!
//! CSV and JSON print each row as it comes, so results of any size pass through; aligned output keeps rows for a while,
//! see [`crate::table`].

use std::io::{self, Write};

use serde_json::Value;

use crate::table::{AlignedTable, Column, Footer, Kind, Row, data_width, write_record};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// psql's table.
    #[default]
    Aligned,
    /// One line per column, `\x`.
    Expanded,
    /// RFC 4180 with a header line.
    Csv,
    /// One array of objects per result.
    Json,
}

/// Records of expanded output that share one width; the rule between records depends on the widest of them.
const EXPANDED_BLOCK_ROWS: usize = 1_000;

/// Prints one result set.
pub struct ResultWriter {
    columns: Vec<Column>,
    style: Style,
    count: u64,
}

enum Style {
    Aligned(AlignedTable),
    Expanded(Vec<Row>),
    Csv,
    Json,
}

impl ResultWriter {
    /// Prints what comes before the first row.
    ///
    /// # Errors
    /// What writing to `out` gave; so in the other methods.
    pub fn new(columns: Vec<Column>, format: Format, out: &mut dyn Write) -> io::Result<Self> {
        let style = match format {
            Format::Aligned => Style::Aligned(AlignedTable::new(columns.clone(), None)),
            Format::Expanded => Style::Expanded(Vec::new()),
            Format::Json => Style::Json,
            Format::Csv => {
                let names: Vec<_> = columns.iter().map(|column| csv_field(&column.name)).collect();
                writeln!(out, "{}", names.join(","))?;
                Style::Csv
            }
        };
        Ok(Self {
            columns,
            style,
            count: 0,
        })
    }

    /// Takes a row.
    ///
    /// # Errors
    /// As in [`ResultWriter::new`].
    pub fn push(&mut self, row: Row, out: &mut dyn Write) -> io::Result<()> {
        self.count += 1;
        match &mut self.style {
            Style::Aligned(table) => table.push(row, out),
            Style::Expanded(rows) => {
                rows.push(row);
                if rows.len() < EXPANDED_BLOCK_ROWS {
                    return Ok(());
                }
                let rows = std::mem::take(rows);
                write_records(&self.columns, &rows, self.count, out)
            }
            Style::Csv => {
                let fields: Vec<_> = row
                    .iter()
                    .map(|cell| csv_field(cell.as_deref().unwrap_or("")))
                    .collect();
                writeln!(out, "{}", fields.join(","))
            }
            Style::Json => {
                let opening = if self.count == 1 { "[" } else { "," };
                write!(out, "{opening}\n  {}", json_object(&self.columns, &row))
            }
        }
    }

    /// Prints what comes after the last row.
    ///
    /// # Errors
    /// As in [`ResultWriter::new`].
    pub fn finish(self, out: &mut dyn Write) -> io::Result<()> {
        match self.style {
            Style::Aligned(table) => table.finish(Footer::RowCount, out),
            Style::Expanded(_) if self.count == 0 => writeln!(out, "(0 rows)\n"),
            Style::Expanded(rows) => {
                write_records(&self.columns, &rows, self.count, out)?;
                writeln!(out)
            }
            Style::Csv => Ok(()),
            Style::Json if self.count == 0 => writeln!(out, "[]"),
            Style::Json => writeln!(out, "\n]"),
        }
    }
}

/// Prints `rows`, the last of which is record `last_number`.
fn write_records(columns: &[Column], rows: &[Row], last_number: u64, out: &mut dyn Write) -> io::Result<()> {
    let width = data_width(rows);
    let first = last_number + 1 - rows.len() as u64;
    (first..)
        .zip(rows)
        .try_for_each(|(number, row)| write_record(columns, row, number, width, out))
}

fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) || text == "\\." {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.to_owned()
}

/// Numbers keep their digits, so that no `numeric` loses precision; a name used twice gets a suffix, so no value is lost.
fn json_object(columns: &[Column], row: &Row) -> String {
    let mut fields = Vec::new();
    for (index, (column, cell)) in columns.iter().zip(row).enumerate() {
        let uses = columns[..index]
            .iter()
            .filter(|other| other.name == column.name)
            .count();
        let name = if uses == 0 {
            column.name.clone()
        } else {
            format!("{}_{}", column.name, uses + 1)
        };
        fields.push(format!(
            "{}: {}",
            Value::from(name),
            json_value(column.kind, cell.as_deref())
        ));
    }
    format!("{{{}}}", fields.join(", "))
}

fn json_value(kind: Kind, cell: Option<&str>) -> String {
    let Some(text) = cell else { return "null".to_owned() };
    match (kind, text) {
        (Kind::Bool, "t") => "true".to_owned(),
        (Kind::Bool, "f") => "false".to_owned(),
        // What JSON does not count among its numbers, such as NaN, stays a string.
        (Kind::Number, number) if serde_json::from_str::<Value>(number).is_ok_and(|v| v.is_number()) => {
            number.to_owned()
        }
        _ => Value::from(text).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(format: Format, rows: &[&[Option<&str>]]) -> String {
        let column = |name: &str, kind| Column {
            name: name.to_owned(),
            kind,
        };
        let columns = vec![
            column("n", Kind::Number),
            column("b", Kind::Bool),
            column("n", Kind::Text),
        ];
        let mut out = Vec::new();
        let mut writer = ResultWriter::new(columns, format, &mut out).expect("memory");
        for row in rows {
            writer
                .push(row.iter().map(|cell| cell.map(str::to_owned)).collect(), &mut out)
                .expect("memory");
        }
        writer.finish(&mut out).expect("memory");
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn every_format_prints_the_same_rows() {
        let rows: &[&[Option<&str>]] = &[
            &[Some("12345678901234567890.10"), Some("t"), Some("a,\"b\"")],
            &[Some("NaN"), None, Some("")],
        ];
        assert_eq!(
            print(Format::Csv, rows),
            "n,b,n\n12345678901234567890.10,t,\"a,\"\"b\"\"\"\nNaN,,\n"
        );
        let json = "[\n  {\"n\": 12345678901234567890.10, \"b\": true, \"n_2\": \"a,\\\"b\\\"\"},\n  \
                    {\"n\": \"NaN\", \"b\": null, \"n_2\": \"\"}\n]\n";
        assert_eq!(print(Format::Json, rows), json);
        assert_eq!(print(Format::Json, &[]), "[]\n");
        assert_eq!(print(Format::Expanded, &[]), "(0 rows)\n\n");
    }
}
