//! Records to batches: NULL rules, header, column count, and where an error happened.

use super::BATCH_ROWS;
use super::split::{Record, Splitter};
use super::value::ColumnBuilder;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use std::sync::Arc;
use tessera_parser::{CopyFormat, CopyOptions};
use tessera_proto::sql_type::SqlType;
use tessera_proto::table::ColumnDef;
use tessera_proto::{Error, Result};

/// The schema of decoded rows: the COPY columns in order, all nullable (NOT NULL is checked with the defaults in place).
pub fn copy_schema(columns: &[ColumnDef]) -> SchemaRef {
    Arc::new(Schema::new(
        columns
            .iter()
            .map(|c| Field::new(&c.name, c.sql_type.arrow(), true))
            .collect::<Vec<_>>(),
    ))
}

/// Decodes CSV or text, chunk by chunk.
pub struct CopyDecoder {
    splitter: Splitter,
    rows: Rows,
}

/// What a record goes through after it was cut.
struct Rows {
    csv: bool,
    null: Vec<u8>,
    header: Header,
    columns: Vec<Column>,
    schema: SchemaRef,
    count: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Header {
    None,
    Skip,
    Match,
}

struct Column {
    name: String,
    sql_type: SqlType,
    builder: ColumnBuilder,
    force_null: bool,
    force_not_null: bool,
}

impl CopyDecoder {
    /// For rows of `columns` in order.
    ///
    /// # Errors
    /// 0A000 for an encoding other than UTF-8, or Parquet, which is not a stream of records.
    pub fn new(columns: &[ColumnDef], options: &CopyOptions) -> Result<Self> {
        if options.format == CopyFormat::Parquet {
            return Err(Error::unsupported(
                "COPY FROM STDIN with FORMAT parquet is not supported",
                "copy from a file below --files-root",
            ));
        }
        if let Some(encoding) = options.encoding.as_deref()
            && !matches!(encoding.to_ascii_lowercase().as_str(), "utf8" | "utf-8" | "unicode")
        {
            return Err(Error::unsupported(
                format!("encoding \"{encoding}\" is not supported"),
                "convert the data to UTF-8",
            ));
        }
        let header = match (options.header_match, options.header) {
            (true, _) => Header::Match,
            (_, true) => Header::Skip,
            _ => Header::None,
        };
        let decode = |c: &ColumnDef| Column {
            name: c.name.clone(),
            sql_type: c.sql_type,
            builder: ColumnBuilder::new(c.sql_type),
            force_null: options.force_null.contains(&c.name),
            force_not_null: options.force_not_null.contains(&c.name),
        };
        Ok(Self {
            splitter: Splitter::new(options),
            rows: Rows {
                csv: options.format == CopyFormat::Csv,
                null: options.null.clone().into_bytes(),
                header,
                columns: columns.iter().map(decode).collect(),
                schema: copy_schema(columns),
                count: 0,
            },
        })
    }

    /// The same, with the session's zone: a timestamptz without one is of it.
    pub fn in_zone(mut self, zone: &str) -> Self {
        for column in &mut self.rows.columns {
            column.builder = ColumnBuilder::new(column.sql_type).in_zone(zone);
        }
        self
    }

    /// Takes the next bytes; full batches are appended to `out`.
    ///
    /// # Errors
    /// The first bad value, with line and column in the detail. The decoder must not be used afterwards.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<RecordBatch>) -> Result<()> {
        let rows = &mut self.rows;
        self.splitter.push(bytes, |record, line| rows.add(record, line, out))
    }

    /// The data is over; the last batch is appended to `out`.
    ///
    /// # Errors
    /// As [`Self::push`], and an open quote.
    pub fn finish(&mut self, out: &mut Vec<RecordBatch>) -> Result<()> {
        let rows = &mut self.rows;
        self.splitter.finish(|record, line| rows.add(record, line, out))?;
        self.rows.flush(out)
    }
}

fn append_bytes(builder: &mut ColumnBuilder, bytes: &[u8]) -> Result<()> {
    match std::str::from_utf8(bytes) {
        Ok(text) => builder.append(text),
        Err(_) => Err(Error::new("22021", "invalid byte sequence for encoding \"UTF8\"")),
    }
}

impl Rows {
    fn add(&mut self, record: &Record, line: u64, out: &mut Vec<RecordBatch>) -> Result<()> {
        let header = std::mem::replace(&mut self.header, Header::None);
        match header {
            Header::None => {}
            Header::Skip => return Ok(()),
            Header::Match => return self.check_header(record),
        }
        let at = |what: &str| format!("line {line}{what}");
        if record.len() != self.columns.len() {
            let message = match self.columns.get(record.len()) {
                Some(missing) => format!("missing data for column \"{}\"", missing.name),
                None => "extra data after last expected column".to_owned(),
            };
            return Err(Error::new("22P04", message).with_detail(at("")));
        }
        // Checked once for all fields; where it fails, the field that is to blame is looked for.
        let whole = std::str::from_utf8(record.bytes()).ok();
        for (i, column) in self.columns.iter_mut().enumerate() {
            let (place, marked) = record.place(i);
            let raw = &record.bytes()[place.clone()];
            let added = if column.is_null(raw, marked, self.csv, &self.null) {
                column.builder.append_null();
                Ok(())
            } else if !self.csv && marked {
                append_bytes(&mut column.builder, &unescape(raw))
            } else {
                match whole.and_then(|text| text.get(place)) {
                    Some(text) => column.builder.append(text),
                    None => append_bytes(&mut column.builder, raw),
                }
            };
            added.map_err(|e| {
                let place = at(&format!(", column \"{}\"", column.name));
                e.with_detail(place)
            })?;
        }
        self.count += 1;
        if self.count == BATCH_ROWS {
            self.flush(out)
        } else {
            Ok(())
        }
    }

    fn check_header(&self, record: &Record) -> Result<()> {
        let found = (0..record.len()).map(|i| String::from_utf8_lossy(record.field(i).0).into_owned());
        let found: Vec<_> = found.collect();
        if found.iter().eq(self.columns.iter().map(|c| &c.name)) {
            return Ok(());
        }
        let wanted: Vec<_> = self.columns.iter().map(|c| c.name.as_str()).collect();
        Err(
            Error::new("22P04", "header line does not match the columns").with_detail(format!(
                "line 1 has ({}), expected ({})",
                found.join(", "),
                wanted.join(", ")
            )),
        )
    }

    fn flush(&mut self, out: &mut Vec<RecordBatch>) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        self.count = 0;
        let arrays = self.columns.iter_mut().map(|c| c.builder.finish()).collect();
        let batch = RecordBatch::try_new(self.schema.clone(), arrays);
        out.push(batch.map_err(|e| Error::internal(format!("COPY made a malformed batch: {e}")))?);
        Ok(())
    }
}

impl Column {
    /// PostgreSQL's rules: text compares before escapes are undone; in CSV a quoted field is never NULL unless FORCE_NULL.
    fn is_null(&self, raw: &[u8], quoted: bool, csv: bool, null: &[u8]) -> bool {
        raw == null && (!csv || if quoted { self.force_null } else { !self.force_not_null })
    }
}

/// Undoes text-format backslash escapes.
fn unescape(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match bytes.next() {
            Some(b'b') => out.push(8),
            Some(b'f') => out.push(12),
            Some(b'n') => out.push(b'\n'),
            Some(b'r') => out.push(b'\r'),
            Some(b't') => out.push(b'\t'),
            Some(b'v') => out.push(11),
            Some(first @ b'0'..=b'7') => {
                let mut code = u32::from(first - b'0');
                for _ in 0..2 {
                    let Some(digit) = bytes.next_if(|b| (b'0'..=b'7').contains(b)) else {
                        break;
                    };
                    code = code * 8 + u32::from(digit - b'0');
                }
                out.push(code as u8);
            }
            Some(b'x') if bytes.peek().is_some_and(u8::is_ascii_hexdigit) => {
                let mut code = 0;
                for _ in 0..2 {
                    let Some(digit) = bytes.next_if(u8::is_ascii_hexdigit) else {
                        break;
                    };
                    code = code * 16 + char::from(digit).to_digit(16).unwrap_or(0);
                }
                out.push(code as u8);
            }
            Some(other) => out.push(other),
            None => out.push(b'\\'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::util::pretty::pretty_format_batches;

    fn columns() -> Vec<ColumnDef> {
        let column = |name: &str, sql_type| ColumnDef {
            name: name.into(),
            sql_type,
            nullable: true,
            default: None,
            hidden: false,
        };
        vec![
            column("i", SqlType::Int4),
            column("t", SqlType::Varchar(Some(6))),
            column("n", SqlType::Numeric { precision: 6, scale: 2 }),
        ]
    }

    fn options(sql: &str) -> CopyOptions {
        let mut parsed = tessera_parser::parse(sql).expect("parses");
        match parsed.pop().expect("one").statement {
            tessera_parser::Statement::CopyFrom(copy) => copy.options,
            other => panic!("{other:?}"),
        }
    }

    fn decode(sql: &str, data: &[u8], chunk: usize) -> Result<String> {
        let mut decoder = CopyDecoder::new(&columns(), &options(sql))?;
        let mut out = vec![];
        for part in data.chunks(chunk.max(1)) {
            decoder.push(part, &mut out)?;
        }
        decoder.finish(&mut out)?;
        Ok(pretty_format_batches(&out).expect("prints").to_string())
    }

    const CSV: &str = "COPY t FROM STDIN (FORMAT csv)";
    const TEXT: &str = "COPY t FROM STDIN";

    #[test]
    fn splitting_anywhere_gives_the_same_rows() {
        let csv: &[u8] = b"1,\"a\n\"\"b\",1.005\r\n,,\n3,\"\",-2\n\\.\ngarbage";
        let text: &[u8] = b"1\ta\\tb\\x41\t1.5\n\\N\t\\N\t\\N\n3\t\t7\n\\.\ngarbage";
        for (sql, data) in [(CSV, csv), (TEXT, text)] {
            let whole = decode(sql, data, data.len()).expect("decodes");
            for chunk in 1..data.len() {
                assert_eq!(decode(sql, data, chunk).expect("decodes"), whole, "{sql} by {chunk}");
            }
        }
        let rows = decode(CSV, csv, 7).expect("decodes");
        assert!(rows.contains("1.01") && rows.lines().count() >= 7, "{rows}");
    }

    #[test]
    fn errors_name_line_and_column() {
        let check = |sql, data: &[u8], code: &str, detail: &str| {
            let error = decode(sql, data, 5).expect_err("refused");
            assert_eq!(
                (error.code.as_str(), error.detail.as_deref()),
                (code, Some(detail)),
                "{}",
                error.message
            );
        };
        check(CSV, b"1,a,1\nx,a,1\n", "22P02", "line 2, column \"i\"");
        check(CSV, b"1,\"a\nb\",1\n2,seven77,1\n", "22001", "line 3, column \"t\"");
        check(CSV, b"1,a\n", "22P04", "line 1");
        check(CSV, b"1,a,2,3\n", "22P04", "line 1");
        check(CSV, b"1,\"a", "22P04", "line 1");
        check(TEXT, b"99999999999\ta\t1\n", "22003", "line 1, column \"i\"");
        check(TEXT, b"1\t\xff\t1\n", "22021", "line 1, column \"t\"");
        check(TEXT, b"1\ta\t12345\n", "22003", "line 1, column \"n\"");
    }
}
