//! Cuts COPY data into records and fields, at any chunking of the input.
//!
//! ```text
//!   csv    1,"a,""b",,\n        fields  1 | a,"b (quoted) | (empty, unquoted)
//!   text   1\ta\\tb\t\N\n       fields  1 | a\tb          | \N, kept raw: escapes are undone after the NULL test
//! ```

use tessera_parser::{CopyFormat, CopyOptions};
use tessera_proto::{Error, Result};

/// Longest record: what is longer is most likely an unclosed quote.
const RECORD_BYTES_MAX: usize = 64 << 20;

/// One record: field bytes one after the other, and where each ends.
#[derive(Debug, Default)]
pub struct Record {
    bytes: Vec<u8>,
    ends: Vec<(usize, bool)>,
}

impl Record {
    /// Number of fields.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of all fields, one after the other.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where a field is in [`Self::bytes`], and whether it was quoted (CSV) or has escapes (text).
    pub fn place(&self, i: usize) -> (std::ops::Range<usize>, bool) {
        let start = if i == 0 { 0 } else { self.ends[i - 1].0 };
        let (end, marked) = self.ends[i];
        (start..end, marked)
    }

    /// Bytes of a field, and whether it was quoted (CSV) or has escapes (text).
    pub fn field(&self, i: usize) -> (&[u8], bool) {
        let (place, marked) = self.place(i);
        (&self.bytes[place], marked)
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first byte of a field.
    FieldStart,
    /// Inside an unquoted field, or after the closing quote of a quoted one.
    Plain,
    /// Inside quotes.
    Quoted,
    /// Inside quotes, after an escape that may instead be the closing quote.
    AfterEscape,
    /// Text: after a backslash.
    Backslash,
    /// After a carriage return that ended a record: a line feed belongs to it.
    AfterReturn,
    /// After `\.`: nothing more counts.
    Ended,
}

/// The splitter; `sink` gets every record with the number of the line it starts on, 1-based.
#[derive(Debug)]
pub struct Splitter {
    csv: bool,
    delimiter: u8,
    quote: u8,
    escape: u8,
    /// Bytes that mean something outside quotes, and inside; the others are copied in runs.
    outside: [bool; 256],
    inside: [bool; 256],
    state: State,
    marked: bool,
    record: Record,
    line: u64,
    record_line: u64,
}

impl Splitter {
    /// For CSV or text.
    pub fn new(options: &CopyOptions) -> Self {
        let csv = options.format == CopyFormat::Csv;
        let (delimiter, quote, escape) = (options.delimiter as u8, options.quote as u8, options.escape as u8);
        let table = |bytes: &[u8]| std::array::from_fn(|byte| bytes.contains(&(byte as u8)));
        Self {
            csv,
            delimiter,
            quote,
            escape,
            outside: table(&[b'\n', b'\r', delimiter, if csv { quote } else { b'\\' }]),
            inside: table(&[b'\n', quote, escape]),
            state: State::FieldStart,
            marked: false,
            record: Record::default(),
            line: 1,
            record_line: 1,
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// A record that is too long, and what `sink` says.
    pub fn push(&mut self, input: &[u8], mut sink: impl FnMut(&Record, u64) -> Result<()>) -> Result<()> {
        let mut rest = input;
        while let Some((&byte, behind)) = rest.split_first() {
            let special = match self.state {
                State::Ended => return Ok(()),
                State::FieldStart | State::Plain => &self.outside,
                State::Quoted => &self.inside,
                _ => &[true; 256],
            };
            let run = rest.iter().position(|b| special[usize::from(*b)]).unwrap_or(rest.len());
            if run > 0 {
                self.record.bytes.extend_from_slice(&rest[..run]);
                if self.state == State::FieldStart {
                    self.state = State::Plain;
                }
                rest = &rest[run..];
            } else {
                self.step(byte, &mut sink)?;
                rest = behind;
            }
            if self.record.bytes.len() > RECORD_BYTES_MAX {
                return Err(Error::new("54000", "COPY record is longer than 64 MiB")
                    .with_detail(format!("line {}", self.record_line))
                    .with_hint("look for a quote that is not closed"));
            }
        }
        Ok(())
    }

    /// The input is over.
    ///
    /// # Errors
    /// An open quote, and what `sink` says.
    pub fn finish(&mut self, mut sink: impl FnMut(&Record, u64) -> Result<()>) -> Result<()> {
        match self.state {
            State::Quoted => {
                Err(Error::new("22P04", "unterminated CSV quoted field")
                    .with_detail(format!("line {}", self.record_line)))
            }
            State::Ended => Ok(()),
            State::FieldStart | State::AfterReturn if self.record.ends.is_empty() => Ok(()),
            _ => self.end_record(&mut sink),
        }
    }

    fn step(&mut self, byte: u8, sink: &mut impl FnMut(&Record, u64) -> Result<()>) -> Result<()> {
        if self.state == State::AfterReturn {
            self.state = State::FieldStart;
            if byte == b'\n' {
                return Ok(());
            }
        }
        match self.state {
            State::Quoted => self.in_quotes(byte),
            State::AfterEscape if byte == self.quote || (byte == self.escape && self.escape != self.quote) => {
                self.record.bytes.push(byte);
                self.state = State::Quoted;
            }
            State::AfterEscape if self.escape != self.quote => {
                // Only an escape before a quote or itself escapes.
                self.record.bytes.push(self.escape);
                self.state = State::Quoted;
                self.in_quotes(byte);
            }
            State::Backslash => {
                self.record.bytes.push(byte);
                self.line += u64::from(byte == b'\n');
                self.state = State::Plain;
            }
            _ => return self.outside(byte, sink),
        }
        Ok(())
    }

    fn in_quotes(&mut self, byte: u8) {
        if byte == self.escape {
            self.state = State::AfterEscape;
        } else if byte == self.quote {
            self.state = State::Plain;
        } else {
            self.line += u64::from(byte == b'\n');
            self.record.bytes.push(byte);
        }
    }

    /// Outside quotes; an `AfterEscape` that gets here was the closing quote.
    fn outside(&mut self, byte: u8, sink: &mut impl FnMut(&Record, u64) -> Result<()>) -> Result<()> {
        match byte {
            b'\n' | b'\r' => {
                self.line += 1;
                self.end_record(sink)?;
                if byte == b'\r' && self.state != State::Ended {
                    self.state = State::AfterReturn;
                }
            }
            _ if byte == self.delimiter => {
                self.end_field();
                self.state = State::FieldStart;
            }
            _ if self.csv && byte == self.quote => {
                self.marked = true;
                self.state = State::Quoted;
            }
            b'\\' if !self.csv => {
                self.marked = true;
                self.record.bytes.push(byte);
                self.state = State::Backslash;
            }
            _ => {
                self.record.bytes.push(byte);
                self.state = State::Plain;
            }
        }
        Ok(())
    }

    fn end_field(&mut self) {
        self.record.ends.push((self.record.bytes.len(), self.marked));
        self.marked = false;
    }

    fn end_record(&mut self, sink: &mut impl FnMut(&Record, u64) -> Result<()>) -> Result<()> {
        self.end_field();
        let end_marker = self.record.len() == 1 && self.record.bytes == b"\\." && (!self.csv || !self.record.ends[0].1);
        if end_marker {
            self.state = State::Ended;
        } else {
            sink(&self.record, self.record_line)?;
            self.state = State::FieldStart;
        }
        self.record.clear();
        self.record_line = self.line;
        Ok(())
    }
}
