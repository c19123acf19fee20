//! What clients send: frames of bytes to [`Frontend`] messages.
//!
//! ```text
//!   'P' | length i32 | name \0 | query \0 | count i16 | oid i32 ...
//!   └ type byte        └──────── body: exactly length - 4 bytes ────────
//! ```
//!
//! Written here rather than taken from pgwire, whose readers panic when a body is shorter than its counts say and replace
//! invalid UTF-8 instead of refusing it (22021). A body is cut to its length before it is read, so a reader cannot run into
//! the next message; every count is checked against what is left.
//!
//! Not here: replication messages and password messages (authentication is trust for now).
//! Source: PostgreSQL 15 manual, "Message Formats".

use bytes::{Buf, Bytes};
use tessera_proto::{Error, Result};

/// One frame after startup.
#[derive(Debug)]
pub(crate) struct Frame {
    /// Type byte.
    pub(crate) kind: u8,
    /// Without type and length.
    pub(crate) body: Bytes,
}

/// A message of the client after startup.
#[derive(Debug, PartialEq)]
pub(crate) enum Frontend {
    /// Simple protocol: any number of statements.
    Query(String),
    /// Prepares a statement.
    Parse {
        /// Empty for the unnamed one.
        name: String,
        /// One statement, or none.
        query: String,
        /// Declared parameter types; 0 leaves it to us.
        oids: Vec<u32>,
    },
    /// Makes a portal of a statement.
    Bind(Bind),
    /// Asks for types.
    Describe(Target),
    /// Runs a portal.
    Execute {
        /// Empty for the unnamed one.
        portal: String,
        /// 0 for all.
        rows_max: usize,
    },
    /// Forgets a statement or portal.
    Close(Target),
    /// Asks for what is buffered.
    Flush,
    /// Ends a pipeline.
    Sync,
    /// A piece of COPY data, cut anywhere.
    CopyData(Bytes),
    /// The end of COPY data.
    CopyDone,
    /// The client gives up a COPY.
    CopyFail(String),
    /// The obsolete function call.
    FunctionCall,
    /// Good bye.
    Terminate,
}

/// Parameters for a statement.
#[derive(Debug, PartialEq)]
pub(crate) struct Bind {
    /// Empty for the unnamed one.
    pub(crate) portal: String,
    /// Empty for the unnamed one.
    pub(crate) statement: String,
    /// 0 text, 1 binary; none, one for all, or one each.
    pub(crate) formats: Vec<i16>,
    /// Values, `None` is NULL.
    pub(crate) values: Vec<Option<Bytes>>,
    /// 0 text, 1 binary; none, one for all, or one for each result column.
    pub(crate) result_formats: Vec<i16>,
}

/// What Describe and Close speak of.
#[derive(Debug, PartialEq)]
pub(crate) enum Target {
    /// A prepared statement.
    Statement(String),
    /// A portal.
    Portal(String),
}

impl Frontend {
    /// Reads one frame.
    ///
    /// # Errors
    /// 08P01 for a body that is not what its type says, 22021 for text that is not UTF-8.
    pub(crate) fn read(frame: Frame) -> Result<Self> {
        let mut body = Body(frame.body);
        let message = match frame.kind {
            b'Q' => Self::Query(body.text()?),
            b'P' => Self::Parse {
                name: body.text()?,
                query: body.text()?,
                oids: body.list(|b| b.u32())?,
            },
            b'B' => Self::Bind(read_bind(&mut body)?),
            b'D' => Self::Describe(read_target(&mut body)?),
            b'E' => Self::Execute {
                portal: body.text()?,
                rows_max: usize::try_from(body.i32()?).unwrap_or(0),
            },
            b'C' => Self::Close(read_target(&mut body)?),
            b'H' => Self::Flush,
            b'S' => Self::Sync,
            b'd' => return Ok(Self::CopyData(body.0)),
            b'c' => Self::CopyDone,
            b'f' => Self::CopyFail(body.text()?),
            b'F' => return Ok(Self::FunctionCall),
            b'X' => Self::Terminate,
            other => return Err(Error::protocol(format!("invalid frontend message type {other}"))),
        };
        match body.0.is_empty() {
            true => Ok(message),
            false => Err(malformed()),
        }
    }

    /// Whether an error in it makes us skip to the next Sync.
    pub(crate) fn kind_is_extended(kind: u8) -> bool {
        matches!(kind, b'P' | b'B' | b'D' | b'E' | b'C' | b'H' | b'S')
    }

    /// Whether a frame may have this type byte at all. Checked before its length is believed.
    pub(crate) fn kind_is_known(kind: u8) -> bool {
        Self::kind_is_extended(kind) || matches!(kind, b'Q' | b'd' | b'c' | b'f' | b'F' | b'X')
    }
}

fn read_bind(body: &mut Body) -> Result<Bind> {
    Ok(Bind {
        portal: body.text()?,
        statement: body.text()?,
        formats: body.list(|b| b.i16())?,
        values: body.list(Body::value)?,
        result_formats: body.list(|b| b.i16())?,
    })
}

fn read_target(body: &mut Body) -> Result<Target> {
    match body.u8()? {
        b'S' => Ok(Target::Statement(body.text()?)),
        b'P' => Ok(Target::Portal(body.text()?)),
        other => Err(Error::protocol(format!("invalid target type {other}, expected S or P"))),
    }
}

/// A body being read, every step checked.
pub(crate) struct Body(pub(crate) Bytes);

impl Body {
    fn need(&self, bytes: usize) -> Result<()> {
        if self.0.len() < bytes { Err(malformed()) } else { Ok(()) }
    }

    fn u8(&mut self) -> Result<u8> {
        self.need(1)?;
        Ok(self.0.get_u8())
    }

    fn i16(&mut self) -> Result<i16> {
        self.need(2)?;
        Ok(self.0.get_i16())
    }

    /// Four bytes, signed.
    pub(crate) fn i32(&mut self) -> Result<i32> {
        self.need(4)?;
        Ok(self.0.get_i32())
    }

    fn u32(&mut self) -> Result<u32> {
        self.need(4)?;
        Ok(self.0.get_u32())
    }

    /// Up to the next zero byte, which is dropped.
    pub(crate) fn text(&mut self) -> Result<String> {
        let end = self.0.iter().position(|b| *b == 0).ok_or_else(malformed)?;
        let bytes = self.0.split_to(end);
        self.0.advance(1);
        String::from_utf8(bytes.to_vec())
            .map_err(|_| Error::new("22021", "invalid byte sequence for encoding \"UTF8\""))
    }

    fn value(&mut self) -> Result<Option<Bytes>> {
        let length = self.i32()?;
        let Ok(length) = usize::try_from(length) else {
            return Ok(None);
        };
        self.need(length)?;
        Ok(Some(self.0.split_to(length)))
    }

    /// A count of 16 bits and so many elements, each of at least two bytes: nothing is allocated for a count that lies.
    fn list<T>(&mut self, read: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let count = usize::from(self.i16()?.cast_unsigned());
        self.need(count.saturating_mul(2))?;
        (0..count).map(|_| read(self)).collect()
    }
}

fn malformed() -> Error {
    Error::protocol("invalid message format")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: u8, body: &[u8]) -> Result<Frontend> {
        Frontend::read(Frame {
            kind,
            body: Bytes::copy_from_slice(body),
        })
    }

    #[test]
    fn bodies_are_read_whole_or_refused() {
        assert_eq!(read(b'Q', b"select 1\0").ok(), Some(Frontend::Query("select 1".into())));
        let parse = Frontend::Parse {
            name: "s".into(),
            query: "q".into(),
            oids: vec![23],
        };
        assert_eq!(read(b'P', b"s\0q\0\0\x01\0\0\0\x17").ok(), Some(parse));
        let bind = Frontend::Bind(Bind {
            portal: String::new(),
            statement: "s".into(),
            formats: vec![1],
            values: vec![None, Some(Bytes::from_static(b"ab"))],
            result_formats: vec![],
        });
        assert_eq!(
            read(b'B', b"\0s\0\0\x01\0\x01\0\x02\xff\xff\xff\xff\0\0\0\x02ab\0\0").ok(),
            Some(bind)
        );
        for (kind, body) in [
            (b'Q', &b"no end"[..]),
            (b'Q', b"two\0three\0"),
            (b'P', b"s\0q\0\xff\xff"),
            (b'B', b"\0\0\0\0\0\x01\x7f\xff\xff\xff"),
            (b'D', b"Xname\0"),
            (b'E', b"\0\0\0"),
            (b'S', b"x"),
            (b'z', b""),
        ] {
            assert_eq!(
                read(kind, body).map_err(|e| e.code).err().as_deref(),
                Some("08P01"),
                "{kind} {body:?}"
            );
        }
        assert_eq!(
            read(b'Q', b"\xff\0").map_err(|e| e.code).err().as_deref(),
            Some("22021")
        );
    }
}
