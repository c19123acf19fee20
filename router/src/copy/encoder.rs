//! COPY TO: rows as lines of PostgreSQL's text format or of CSV.
//!
//! ```text
//!   (1, 'a,b', NULL)      text   1 TAB a,b TAB \N LF         CSV   1,"a,b", LF
//!   (2, 'x\', '')                2 TAB x\\ TAB    LF               2,x\,""  LF       "" is not NULL
//! ```
//!
//! Source: `CopyAttributeOutText` and `CopyAttributeOutCSV` in PostgreSQL's `commands/copyto.c`. Values look as in the session
//! that copies (time zone, `extra_float_digits`).

use crate::pg::TextRows;
use bytes::{BufMut, BytesMut};
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use tessera_parser::{CopyFormat, CopyOptions, ForceQuote};
use tessera_proto::{Error, Result};

/// Writes the lines of one COPY.
#[derive(Debug)]
pub struct CopyEncoder {
    rows: TextRows,
    options: CopyOptions,
    /// One per column.
    quoted: Vec<bool>,
    value: BytesMut,
}

impl CopyEncoder {
    /// For these rows.
    ///
    /// # Errors
    /// 42703 for a FORCE_QUOTE column that is not there.
    pub(crate) fn new(rows: TextRows, options: CopyOptions, force_quote: &ForceQuote) -> Result<Self> {
        let names = rows.names();
        let quoted = match force_quote {
            ForceQuote::None => vec![false; names.len()],
            ForceQuote::All => vec![true; names.len()],
            ForceQuote::Columns(forced) => {
                if let Some(name) = forced.iter().find(|name| !names.contains(&name.as_str())) {
                    return Err(Error::new(
                        "42P10",
                        format!("FORCE_QUOTE column \"{name}\" not referenced by COPY"),
                    ));
                }
                names.iter().map(|name| forced.iter().any(|f| f == name)).collect()
            }
        };
        Ok(Self {
            quoted,
            rows,
            options,
            value: BytesMut::new(),
        })
    }

    /// Columns of a line.
    pub(crate) fn columns(&self) -> usize {
        self.quoted.len()
    }

    /// The first line, where names are asked for.
    pub(crate) fn header(&mut self, out: &mut BytesMut) -> bool {
        if !self.options.header {
            return false;
        }
        let names: Vec<String> = self.rows.names().into_iter().map(str::to_owned).collect();
        for (i, name) in names.iter().enumerate() {
            if i > 0 {
                out.put_u8(self.options.delimiter as u8);
            }
            self.put(name.as_bytes(), false, out);
        }
        out.put_u8(b'\n');
        true
    }

    /// A batch ready for [`Self::line`].
    ///
    /// # Errors
    /// XX000 if it has other columns than announced.
    pub(crate) fn prepare(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        self.rows.prepare(batch)
    }

    /// One row of prepared columns, with its line feed.
    ///
    /// # Errors
    /// 22003 and 22008 for values PostgreSQL has no text for.
    pub(crate) fn line(&mut self, columns: &[ArrayRef], row: usize, out: &mut BytesMut) -> Result<()> {
        let mut value = std::mem::take(&mut self.value);
        for (i, column) in columns.iter().enumerate() {
            if i > 0 {
                out.put_u8(self.options.delimiter as u8);
            }
            value.clear();
            match self.rows.field(column, row, i, &mut value)? {
                true => self.put(&value, self.quoted[i], out),
                false => out.put_slice(self.options.null.as_bytes()),
            }
        }
        out.put_u8(b'\n');
        self.value = value;
        Ok(())
    }

    fn put(&self, value: &[u8], quoted: bool, out: &mut BytesMut) {
        match self.options.format {
            CopyFormat::Csv => self.put_csv(value, quoted, out),
            _ => self.put_text(value, out),
        }
    }

    fn put_text(&self, value: &[u8], out: &mut BytesMut) {
        let delimiter = self.options.delimiter as u8;
        for byte in value {
            let escaped = match byte {
                0x08 => b'b',
                0x0c => b'f',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                0x0b => b'v',
                b'\\' => b'\\',
                other if *other == delimiter => delimiter,
                other => {
                    out.put_u8(*other);
                    continue;
                }
            };
            out.put_slice(&[b'\\', escaped]);
        }
    }

    fn put_csv(&self, value: &[u8], quoted: bool, out: &mut BytesMut) {
        let (delimiter, quote, escape) = (
            self.options.delimiter as u8,
            self.options.quote as u8,
            self.options.escape as u8,
        );
        let special = |byte: &u8| [delimiter, quote, b'\n', b'\r'].contains(byte);
        let quoted = quoted
            || value == self.options.null.as_bytes()
            // Alone on a line it would end the data.
            || (self.quoted.len() == 1 && value == b"\\.")
            || value.iter().any(special);
        if !quoted {
            return out.put_slice(value);
        }
        out.put_u8(quote);
        for byte in value {
            if *byte == quote || *byte == escape {
                out.put_u8(escape);
            }
            out.put_u8(*byte);
        }
        out.put_u8(quote);
    }
}
