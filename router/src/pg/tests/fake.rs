//! An engine that knows a handful of statements by heart.

use crate::outcome::{Described, RowsTag};
use crate::pg::session::{CopySink, Reply, SqlEngine, SqlSession};
use crate::session::TransactionStatus;
use async_trait::async_trait;
use datafusion::arrow::array::{Int64Array, RecordBatch, StringViewArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use tessera_parser::{CopyOptions, ParsedStatement, Statement};
use tessera_proto::sql_type::SqlType;
use tessera_proto::table::ColumnDef;
use tessera_proto::{Error, Result};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What the engine remembers of what happened.
pub(super) enum Seen {
    /// A statement began.
    Started(&'static str),
    /// A result of so many rows was read to its end.
    Ended(usize),
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started(text) => f.write_str(text),
            Self::Ended(rows) => write!(f, "{rows} rows"),
        }
    }
}

#[derive(Default)]
struct Log {
    seen: Vec<String>,
    rows_copied: usize,
    copies_aborted: usize,
}

/// The engine.
#[derive(Default)]
pub(super) struct FakeEngine {
    log: Arc<Mutex<Log>>,
    /// A `stuck()` began.
    pub(super) stuck: Arc<Notify>,
    /// A `stuck()` was cancelled.
    pub(super) freed: Arc<Notify>,
}

impl FakeEngine {
    pub(super) fn seen(&self) -> Vec<String> {
        self.log.lock().seen.clone()
    }

    /// Rows of finished copies, and copies aborted.
    pub(super) fn copied(&self) -> (usize, usize) {
        let log = self.log.lock();
        (log.rows_copied, log.copies_aborted)
    }
}

impl SqlEngine for FakeEngine {
    type Session = FakeSession;

    fn open(self: &Arc<Self>, _user: String, _database: String, _application_name: String, _number: i32) -> FakeSession {
        FakeSession {
            engine: self.clone(),
            settings: BTreeMap::new(),
        }
    }
}

pub(super) struct FakeSession {
    engine: Arc<FakeEngine>,
    settings: BTreeMap<String, String>,
}

#[async_trait]
impl SqlSession for FakeSession {
    async fn describe(&self, statement: &ParsedStatement, hints: &[Option<SqlType>]) -> Result<Described> {
        let text = statement.text.as_str();
        if text.contains("missing()") {
            return Err(Error::new("42883", "function missing() does not exist"));
        }
        let echoed = hints
            .first()
            .copied()
            .flatten()
            .map_or(DataType::Utf8View, SqlType::arrow);
        let (params, columns) = match text {
            t if t.contains("echo(") => (vec![echoed.clone()], Some(one_column(&echoed))),
            t if t.starts_with("SELECT") => (vec![], Some(numbers_schema())),
            _ => (vec![], None),
        };
        Ok(Described {
            params,
            columns,
            declared: vec![],
        })
    }

    fn fail(&mut self) {}

    fn transaction_status(&self) -> TransactionStatus {
        TransactionStatus::Idle
    }

    fn begin_implicit(&mut self) {}

    async fn end_implicit(&mut self) -> Result<()> {
        Ok(())
    }

    async fn execute(
        &mut self,
        statement: &ParsedStatement,
        params: Vec<ScalarValue>,
        cancel: CancellationToken,
    ) -> Result<Reply> {
        let text = statement.text.as_str();
        self.engine.log.lock().seen.push(text.to_owned());
        match &statement.statement {
            Statement::Set { name, value, .. } => {
                self.set_initial(name, value.as_deref().unwrap_or_default())?;
                return Ok(done("SET"));
            }
            Statement::CopyFrom(copy) => return Ok(self.copy(copy.options.clone())),
            Statement::Insert(_) => return Ok(done("INSERT 0 1")),
            _ => {}
        }
        match text {
            t if t.contains("echo(") => echo(&params),
            t if t.contains("boom()") => panic!("boom"),
            t if t.contains("stuck()") => {
                self.engine.stuck.notify_one();
                cancel.cancelled().await;
                self.engine.freed.notify_one();
                Err(Error::cancelled("canceling statement due to user request"))
            }
            t if t.contains("fail()") => {
                let failing = stream::iter([Ok(numbers(0..3)), Err(Error::new("22012", "division by zero").into())]);
                Ok(rows(numbers_schema(), failing.boxed()))
            }
            t if t.contains("endless()") => {
                let guard = Dropped(self.engine.log.clone());
                let batches = stream::repeat_with(move || {
                    let _held = &guard;
                    Ok(numbers(0..100))
                });
                Ok(rows(numbers_schema(), batches.boxed()))
            }
            t => Ok(self.upto(t)),
        }
    }

    fn setting(&self, name: &str) -> Option<String> {
        self.settings.get(&name.to_ascii_lowercase()).cloned()
    }

    fn set_initial(&mut self, name: &str, value: &str) -> Result<()> {
        self.settings.insert(name.to_ascii_lowercase(), value.to_owned());
        Ok(())
    }
}

impl FakeSession {
    /// `upto(n)`: rows 0 to n - 1 in batches of 7.
    fn upto(&self, text: &str) -> Reply {
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        let end: i64 = digits.parse().unwrap_or(0);
        let log = self.engine.log.clone();
        let batches = (0..end)
            .step_by(7)
            .map(move |start| Ok(numbers(start..end.min(start + 7))));
        let ended = stream::once(async move {
            log.lock().seen.push(Seen::Ended(end as usize).to_string());
            Ok(numbers(0..0))
        });
        rows(
            numbers_schema(),
            stream::iter(batches.collect::<Vec<_>>()).chain(ended).boxed(),
        )
    }

    fn copy(&self, options: CopyOptions) -> Reply {
        let column = |name: &str, sql_type| ColumnDef {
            name: name.into(),
            sql_type,
            nullable: true,
            default: None,
            hidden: false,
        };
        let columns = vec![column("a", SqlType::Int4), column("b", SqlType::Text)];
        Reply::CopyIn(Box::new(FakeCopy {
            log: self.engine.log.clone(),
            columns,
            options,
            rows: 0,
        }))
    }
}

struct Dropped(Arc<Mutex<Log>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.lock().seen.push("dropped".into());
    }
}

struct FakeCopy {
    log: Arc<Mutex<Log>>,
    columns: Vec<ColumnDef>,
    options: CopyOptions,
    rows: usize,
}

#[async_trait]
impl CopySink for FakeCopy {
    fn columns(&self) -> &[ColumnDef] {
        &self.columns
    }

    fn options(&self) -> &CopyOptions {
        &self.options
    }

    async fn write(&mut self, batch: RecordBatch) -> Result<()> {
        self.rows += batch.num_rows();
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<u64> {
        self.log.lock().rows_copied += self.rows;
        Ok(self.rows as u64)
    }

    async fn abort(self: Box<Self>) {
        self.log.lock().copies_aborted += 1;
    }
}

fn done(tag: &str) -> Reply {
    Reply::Done {
        tag: tag.into(),
        notices: vec![Error::new("00000", "noted")],
    }
}

fn echo(params: &[ScalarValue]) -> Result<Reply> {
    let value = params.first().ok_or_else(|| Error::internal("no parameter"))?;
    let schema = one_column(&value.data_type());
    let batch =
        RecordBatch::try_new(schema.clone(), vec![value.to_array()?]).map_err(|e| Error::internal(e.to_string()))?;
    Ok(rows(schema, stream::iter([Ok(batch)]).boxed()))
}

type Batches = stream::BoxStream<'static, Result<RecordBatch, DataFusionError>>;

fn rows(schema: SchemaRef, batches: Batches) -> Reply {
    let stream: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema.clone(), batches));
    Reply::Rows {
        schema,
        declared: vec![],
        stream,
        tag: RowsTag::Select,
    }
}

fn one_column(data_type: &DataType) -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("value", data_type.clone(), true)]))
}

fn numbers_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("n", DataType::Int64, false),
        Field::new("v", DataType::Utf8View, true),
    ]))
}

fn numbers(range: std::ops::Range<i64>) -> RecordBatch {
    let texts: StringViewArray = range.clone().map(|n| (n != 0).then(|| format!("v{n}"))).collect();
    let columns = vec![Arc::new(Int64Array::from_iter_values(range)) as _, Arc::new(texts) as _];
    RecordBatch::try_new(numbers_schema(), columns).expect("two columns")
}
