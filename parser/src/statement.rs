//! What a text can say: the statements, as plain data.
//!
//! ```text
//!   CREATE TABLE s.t (a int8 PRIMARY KEY, b text) SHARD BY HASH (a) SHARDS 4
//!                │    └─ columns: ColumnSpec …        └─ sharding: Sharding { columns: ["a"], shards: Some(4), .. }
//!                └─ name: ObjectName { schema: Some("s"), name: "t" }
//! ```
//!
//! Names in our own structs are folded as PostgreSQL folds them. Queries and expressions stay sqlparser's tree, with
//! unquoted identifiers as written: the engine folds those itself.
//!
//! Not here: what the names mean. Nothing in this crate has seen a catalog.

use std::fmt;

pub use sqlparser::ast::{Expr, Query, SelectItem, TableWithJoins};

/// What BEGIN asks for; `None` where the session's defaults are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TransactionModes {
    /// `read committed` and so on, lower case.
    pub isolation: Option<String>,
    /// READ ONLY or READ WRITE.
    pub read_only: Option<bool>,
}

/// One statement of a text, with the characters it was written in.
#[derive(Debug, Clone, PartialEq)]
pub struct ParsedStatement {
    /// From the first token to the last, without the semicolon and the comments around it.
    pub text: String,
    /// What it says.
    pub statement: Statement,
    /// AS OF SYSTEM TIME; only of what reads: a query, EXPLAIN, COPY (query) TO.
    pub as_of: Option<AsOf>,
}

/// AS OF SYSTEM TIME 'text'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AsOf {
    /// A timestamp, or how long ago.
    pub text: String,
    /// Where the clause stands: characters of the whole text, from 1.
    pub position: usize,
}

/// One statement.
#[derive(Debug, Clone, PartialEq)]
pub enum Statement {
    /// SELECT, VALUES, TABLE, WITH, in parentheses or not; never locking rows, never writing.
    Query(Box<Query>),
    /// EXPLAIN of a query.
    Explain {
        /// Run it, and show what happened.
        analyze: bool,
        /// Show more of each operator.
        verbose: bool,
        /// How to print the plan.
        format: ExplainFormat,
        /// The query to explain.
        query: Box<Query>,
    },
    /// CREATE SCHEMA.
    CreateSchema {
        /// The new schema.
        name: String,
        /// An existing schema is no error.
        if_not_exists: bool,
    },
    /// CREATE TABLE and CREATE REFERENCE TABLE.
    CreateTable(CreateTable),
    /// CREATE [REFERENCE] TABLE ... AS.
    CreateTableAs(CreateTableAs),
    /// CREATE VIEW.
    CreateView {
        /// The new view.
        name: ObjectName,
        /// Names for the query's columns from the left; may be fewer than it has.
        columns: Vec<String>,
        /// What the view stands for.
        query: Box<Query>,
        /// The same as it was written, for the catalog.
        query_text: String,
        /// Replace a view of that name.
        or_replace: bool,
    },
    /// DROP TABLE.
    DropTable {
        /// At least one.
        names: Vec<ObjectName>,
        /// A missing table is no error.
        if_exists: bool,
        /// Drop what depends on them too.
        cascade: bool,
    },
    /// DROP VIEW.
    DropView {
        /// At least one.
        names: Vec<ObjectName>,
        /// A missing view is no error.
        if_exists: bool,
        /// Drop what depends on them too.
        cascade: bool,
    },
    /// DROP SCHEMA.
    DropSchema {
        /// The schema.
        name: String,
        /// A missing schema is no error.
        if_exists: bool,
        /// Drop what it contains too.
        cascade: bool,
    },
    /// INSERT ... VALUES and INSERT ... SELECT.
    Insert(Insert),
    /// UPDATE.
    Update(Update),
    /// DELETE.
    Delete(Delete),
    /// COPY ... TO
    CopyTo(CopyTo),
    /// COPY ... FROM.
    CopyFrom(CopyFrom),
    /// SET, also in its spelled-out forms (`SET TIME ZONE`, `SET NAMES`, `SET TRANSACTION ...`).
    Set {
        /// Until the end of the transaction only.
        local: bool,
        /// Lower case; `timezone`, `client_encoding`, `transaction_isolation` for the spelled-out forms.
        name: String,
        /// `None` is DEFAULT. Elements of a list are joined with `, `, quoted where they need it.
        value: Option<String>,
    },
    /// BEGIN, START TRANSACTION.
    Begin(TransactionModes),
    /// COMMIT, END.
    Commit {
        /// Begin another transaction with the same modes.
        chain: bool,
    },
    /// ROLLBACK, ABORT.
    Rollback {
        /// Begin another transaction with the same modes.
        chain: bool,
    },
    /// SAVEPOINT.
    Savepoint {
        /// Its name; an older one of the same name is hidden by it.
        name: String,
    },
    /// RELEASE SAVEPOINT.
    Release {
        /// Its name.
        name: String,
    },
    /// ROLLBACK TO SAVEPOINT.
    RollbackTo {
        /// Its name.
        name: String,
    },
    /// SHOW; `all` for SHOW ALL, `shards` and `nodes` for the cluster's own.
    Show {
        /// Lower case.
        name: String,
    },
    /// RESET.
    Reset {
        /// Lower case; `None` is everything.
        name: Option<String>,
    },
    /// DISCARD ALL: the session as it began, without prepared statements.
    Discard,
    /// VERIFY TABLE: compare the digests of all copies.
    VerifyTable {
        /// The table.
        name: ObjectName,
    },
    /// ANALYZE.
    Analyze {
        /// The tables named; none is all of them.
        tables: Vec<AnalyzeTable>,
    },
    /// VACUUM.
    Vacuum(Vacuum),
    /// ALTER SHARD n OF t.
    AlterShard {
        /// Number of the shard within its table.
        shard: u32,
        /// The table.
        table: ObjectName,
        /// What to do.
        action: ShardAction,
    },
    /// Recognised and not done: the router answers 0A000.
    Unsupported(Unsupported),
}

/// How EXPLAIN prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExplainFormat {
    /// Indented lines.
    Text,
    /// One JSON document.
    Json,
}

/// CREATE TABLE. Every column of `primary_key` and `sharding` is one of `columns`, and no name occurs twice.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateTable {
    /// The new table.
    pub name: ObjectName,
    /// An existing table is no error.
    pub if_not_exists: bool,
    /// CREATE REFERENCE TABLE: a full copy on every node; then `sharding` is `None`.
    pub reference: bool,
    /// In order, possibly none.
    pub columns: Vec<ColumnSpec>,
    /// In key order; empty without a primary key.
    pub primary_key: Vec<String>,
    /// `None` where the text has no SHARD BY.
    pub sharding: Option<Sharding>,
    /// CLUSTER BY: what rows are sorted by where they are stored, before the key; often empty.
    pub cluster_by: Vec<String>,
}

/// CREATE TABLE ... AS: a table of the columns and rows of a query.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateTableAs {
    /// The new table.
    pub name: ObjectName,
    /// An existing table is no error.
    pub if_not_exists: bool,
    /// CREATE REFERENCE TABLE.
    pub reference: bool,
    /// Names for the query's columns from the left; may be fewer than it has.
    pub columns: Vec<String>,
    /// `None` where the text has no SHARD BY.
    pub sharding: Option<Sharding>,
    /// See [`CreateTable::cluster_by`].
    pub cluster_by: Vec<String>,
    /// Whose rows it gets.
    pub query: Box<Query>,
    /// False for WITH NO DATA: only its columns.
    pub with_data: bool,
}

/// One column of CREATE TABLE.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnSpec {
    /// Folded.
    pub name: String,
    /// Its type.
    pub data_type: TypeName,
    /// NOT NULL, or part of the primary key.
    pub not_null: bool,
    /// DEFAULT.
    pub default: Option<Expr>,
    /// DEFAULT as it was written, for the catalog.
    pub default_text: Option<String>,
    /// Where the name stands: characters of the whole text, from 1.
    pub position: usize,
}

/// A column type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TypeName {
    /// boolean
    Bool,
    /// smallint
    Int2,
    /// integer
    Int4,
    /// bigint
    Int8,
    /// real, and float(1) to float(24)
    Float4,
    /// double precision, float, and float(25) to float(53)
    Float8,
    /// numeric(p, s). Without arguments (38, 10): the widest we store, with a scale that leaves 28 digits before the
    /// point. PostgreSQL's bare numeric has no bounds; ours has these, and a value outside is an error, not rounded off.
    Numeric {
        /// Digits in all, 1 to 38.
        precision: u8,
        /// Digits after the point, 0 to `precision`.
        scale: i8,
    },
    /// text
    Text,
    /// varchar, varchar(n)
    Varchar(Option<u32>),
    /// char(n); char alone is char(1)
    Char(u32),
    /// date
    Date,
    /// time without time zone
    Time,
    /// timestamp without time zone
    Timestamp,
    /// timestamp with time zone
    TimestampTz,
    /// interval
    Interval,
    /// bytea
    Bytea,
    /// uuid
    Uuid,
}

impl fmt::Display for TypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("boolean"),
            Self::Int2 => f.write_str("smallint"),
            Self::Int4 => f.write_str("integer"),
            Self::Int8 => f.write_str("bigint"),
            Self::Float4 => f.write_str("real"),
            Self::Float8 => f.write_str("double precision"),
            Self::Numeric { precision, scale } => write!(f, "numeric({precision},{scale})"),
            Self::Text => f.write_str("text"),
            Self::Varchar(None) => f.write_str("character varying"),
            Self::Varchar(Some(length)) => write!(f, "character varying({length})"),
            Self::Char(length) => write!(f, "character({length})"),
            Self::Date => f.write_str("date"),
            Self::Time => f.write_str("time without time zone"),
            Self::Timestamp => f.write_str("timestamp without time zone"),
            Self::TimestampTz => f.write_str("timestamp with time zone"),
            Self::Interval => f.write_str("interval"),
            Self::Bytea => f.write_str("bytea"),
            Self::Uuid => f.write_str("uuid"),
        }
    }
}

/// SHARD BY HASH (columns) [SHARDS shards] [COLOCATE WITH table].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharding {
    /// The shard key, at least one column.
    pub columns: Vec<String>,
    /// At least 1; `None` leaves it to the cluster.
    pub shards: Option<u32>,
    /// Place equal keys where this table's are.
    pub colocate_with: Option<ObjectName>,
}

/// A table or view, as the text names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// `None` where the text names none: the search path decides.
    pub schema: Option<String>,
    /// Folded: unquoted lower-cased, quoted kept.
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// INSERT INTO table [AS alias] [(columns)] source [RETURNING ...].
#[derive(Debug, Clone, PartialEq)]
pub struct Insert {
    /// The table.
    pub table: ObjectName,
    /// Another name for the table in `returning`, folded; then its own is none there.
    pub alias: Option<String>,
    /// Empty where the text names none: the table's columns from the left.
    pub columns: Vec<String>,
    /// VALUES or a query. In VALUES the word DEFAULT is an identifier; [`crate::is_default`] recognises it.
    pub source: Box<Query>,
    /// What to answer with; `None` is the number of rows alone.
    pub returning: Option<Returning>,
}

/// UPDATE table [[AS] alias] SET assignments [FROM from] [WHERE selection] [RETURNING ...].
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// The table.
    pub table: ObjectName,
    /// Another name for the table in all expressions, folded; then its own is none there.
    pub alias: Option<String>,
    /// At least one, and none of a column twice.
    pub assignments: Vec<Assignment>,
    /// Tables the expressions read besides; often empty.
    pub from: Vec<TableWithJoins>,
    /// Which rows; `None` is all.
    pub selection: Option<Expr>,
    /// What to answer with; `None` is the number of rows alone.
    pub returning: Option<Returning>,
}

/// One column and its new value; `(a, b) = (1, 2)` and `(a, b) = ROW(1, 2)` are two of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// Folded.
    pub column: String,
    /// Its value. The word DEFAULT is an identifier; [`crate::is_default`] recognises it.
    pub value: Expr,
}

/// DELETE FROM table [[AS] alias] [USING using] [WHERE selection] [RETURNING ...].
#[derive(Debug, Clone, PartialEq)]
pub struct Delete {
    /// The table.
    pub table: ObjectName,
    /// Another name for the table in all expressions, folded; then its own is none there.
    pub alias: Option<String>,
    /// Tables the expressions read besides; often empty.
    pub using: Vec<TableWithJoins>,
    /// Which rows; `None` is all.
    pub selection: Option<Expr>,
    /// What to answer with; `None` is the number of rows alone.
    pub returning: Option<Returning>,
}

/// RETURNING: expressions over the rows written or removed.
#[derive(Debug, Clone, PartialEq)]
pub struct Returning {
    /// At least one, as behind SELECT.
    pub projection: Vec<SelectItem>,
}

/// COPY table [(columns)] FROM source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyFrom {
    /// The table.
    pub table: ObjectName,
    /// Empty where the text names none.
    pub columns: Vec<String>,
    /// Where the data is.
    pub source: CopySource,
    /// Checked against each other as PostgreSQL 15 does.
    pub options: CopyOptions,
}

/// COPY table [(columns)] TO target, COPY (query) TO target.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyTo {
    /// What is written.
    pub source: CopyRows,
    /// Where it goes.
    pub target: CopyTarget,
    /// Checked against each other as PostgreSQL 15 does; what concerns reading only is not set.
    pub options: CopyOptions,
    /// Columns whose values are always quoted; CSV only.
    pub force_quote: ForceQuote,
}

/// What COPY TO writes.
#[derive(Debug, Clone, PartialEq)]
pub enum CopyRows {
    /// A table's rows.
    Table {
        /// The table.
        name: ObjectName,
        /// Empty where the text names none.
        columns: Vec<String>,
    },
    /// A query's rows.
    Query(Box<Query>),
}

/// Where COPY writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyTarget {
    /// The client gets it.
    Stdout,
    /// A file of the server, as written; whether it may be written is the router's to decide.
    File(String),
}

/// FORCE_QUOTE.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ForceQuote {
    /// Quotes only where they are needed.
    #[default]
    None,
    /// All values but NULL.
    All,
    /// Those of these columns.
    Columns(Vec<String>),
}

/// Where COPY reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySource {
    /// The client sends it.
    Stdin,
    /// A file of the server, as written; whether it may be read is the router's to decide.
    File(String),
}

/// A file format of COPY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyFormat {
    /// Comma-separated values.
    Csv,
    /// PostgreSQL's tab-separated text with backslash escapes.
    Text,
    /// Apache Parquet; none of the other options applies.
    Parquet,
}

/// How COPY reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOptions {
    /// Text unless said otherwise.
    pub format: CopyFormat,
    /// ASCII. `,` for CSV, tab for text.
    pub delimiter: char,
    /// Empty for CSV, `\N` for text.
    pub null: String,
    /// The first line is names.
    pub header: bool,
    /// The first line must be the names of the columns; then `header` holds too.
    pub header_match: bool,
    /// ASCII. `"`; CSV only.
    pub quote: char,
    /// ASCII. `quote` unless said otherwise; CSV only.
    pub escape: char,
    /// Columns whose unquoted null string is an empty string; CSV only.
    pub force_not_null: Vec<String>,
    /// Columns whose quoted null string is NULL; CSV only.
    pub force_null: Vec<String>,
    /// As written; `None` is the client's encoding.
    pub encoding: Option<String>,
    /// FREEZE, which asks for rows that need no vacuum: true of all of ours.
    pub freeze: bool,
}

/// What ALTER SHARD does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardAction {
    /// Hand over to the follower, both alive.
    SwitchLeader,
    /// The leader is dead: the in-sync follower leads.
    Promote,
    /// Lead with whatever is there: FORCE PROMOTE ACCEPT DATA LOSS.
    ForcePromoteAcceptDataLoss,
}

/// A statement or clause we know and do not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// The statement or clause, fit for `{what} is not supported`.
    pub what: String,
    /// What to do instead.
    pub hint: String,
}

/// VACUUM: take dead rows out of files now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vacuum {
    /// The tables named; none is all of them. Columns only with `analyze`.
    pub tables: Vec<AnalyzeTable>,
    /// Tell what was done on each copy.
    pub verbose: bool,
    /// ANALYZE them, too.
    pub analyze: bool,
}

/// A table of ANALYZE or VACUUM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnalyzeTable {
    /// The table.
    pub name: ObjectName,
    /// The columns named; none is all of them.
    pub columns: Vec<String>,
}
