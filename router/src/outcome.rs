//! What a statement gives back to the protocol that carried it.
//!
//! ```text
//!   execute ─┬─ Rows { schema, columns, stream, tag }    SELECT, EXPLAIN, SHOW, VERIFY TABLE, and writes with RETURNING
//!            ├─ Done { tag: "INSERT 0 5", notices }      everything that returns no rows
//!            ├─ CopyIn(..)                               COPY ... FROM STDIN: the client now sends data
//!            ├─ CopyOut(..)                              COPY ... TO STDOUT: the client now gets data
//!            └─ Empty                                    an empty statement
//! ```

use crate::copy::encoder::CopyEncoder;
use crate::ingest::CopyIn;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use tessera_proto::Error;
use tessera_proto::sql_type::SqlType;

/// What a statement will look like once executed.
#[derive(Debug, Clone)]
pub struct Described {
    /// Arrow types of `$1`, `$2`, ...; the declared or inferred ones.
    pub params: Vec<DataType>,
    /// The columns of its rows; `None` for statements without rows.
    pub columns: Option<SchemaRef>,
    /// Declared types where a column comes straight from a table; as long as `columns`, empty when there are none.
    pub declared: Vec<Option<SqlType>>,
}

/// Which command tag the rows end with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsTag {
    /// `SELECT n`
    Select,
    /// `EXPLAIN`
    Explain,
    /// `SHOW`
    Show,
    /// `COPY n`
    Copy,
    /// `INSERT 0 n`, whatever part of the rows the client fetches.
    Insert(u64),
    /// `UPDATE n`, likewise.
    Update(u64),
    /// `DELETE n`, likewise.
    Delete(u64),
}

/// A COPY ... TO STDOUT under way.
pub struct CopyOut {
    /// Makes lines of the rows.
    pub(crate) encoder: Box<CopyEncoder>,
    /// The rows.
    pub(crate) stream: SendableRecordBatchStream,
}

/// Result of a statement.
pub enum Outcome {
    /// Rows, streamed. Dropping the stream ends the work behind it, on every node.
    Rows {
        /// Columns, in order.
        schema: SchemaRef,
        /// Declared types where a column comes straight from a table; as long as `schema`.
        columns: Vec<Option<SqlType>>,
        /// Batches of `schema`.
        stream: SendableRecordBatchStream,
        /// Command tag.
        tag: RowsTag,
    },
    /// Done, without rows.
    Done {
        /// Complete command tag, such as `INSERT 0 5`.
        tag: String,
        /// Things worth knowing that were no errors.
        notices: Vec<Error>,
    },
    /// The client sends rows next.
    CopyIn(Box<CopyIn>),
    /// The client gets lines. Dropping it ends the work behind it.
    CopyOut(CopyOut),
    /// Nothing was asked.
    Empty,
}

impl Outcome {
    /// Done without notices.
    pub fn done(tag: impl Into<String>) -> Self {
        Self::Done {
            tag: tag.into(),
            notices: vec![],
        }
    }
}
