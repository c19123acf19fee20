//! SKIP LOCKED: rows whose locks are free, as many as LIMIT says.
//!
//! ```text
//!   ... ORDER BY a LIMIT 2 SKIP LOCKED     the first 20 rows by a      1 2 3 4 ...
//!     2 are needed: lock {1, 2}            1 is not free               ▶ 2
//!     1 is needed:  lock {3}                                           ▶ 2 3        done: 4 was never locked
//!     all 20 looked at and too few         the first 80 rows, those known from before not asked for again, and so on
//! ```
//!
//! As in PostgreSQL the limit counts rows that could be locked, and no row is locked that is not needed: a worker that took more than
//! its share, if for a moment, would show others an empty queue. Rows that OFFSET passes over are locked and counted. A row that
//! changed since the snapshot was locked at some moment in between, and is left out; with REPEATABLE READ it fails the statement.

use super::rows::{Work, next};
use super::steps::RowKeys;
use crate::execute::query::{self, Request, Running};
use crate::ingest::Held;
use crate::txn::open::Isolation;
use datafusion::arrow::array::{BooleanArray, RecordBatch};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::scalar::ScalarValue;
use sqlparser::ast::{Expr, LimitClause, Query, SetExpr, UnaryOperator, Value};
use std::collections::{BTreeSet, HashMap};
use tessera_proto::v1::lock_request::Wait;
use tessera_proto::{Error, Result};

/// Rows read at first beyond those needed, for each row needed, and beyond that.
const SPARE: usize = 16;
/// More rows with each further read.
const GROWTH: usize = 4;

/// Runs the query and locks its rows as far as they are free; those, with their keys.
///
/// # Errors
/// 0A000 for a limit that is not known before the query runs; those of rows.rs.
pub(super) async fn lock(work: &Work<'_>, request: Request<'_>) -> Result<(Running, Vec<RecordBatch>)> {
    let bounds = Bounds::of(request.query, &request.params)?;
    let zone = work.zone();
    let mut held = Held::default();
    let mut chosen = Chosen {
        keys: RowKeys::new(&work.locking.targets, &work.view, &zone)?,
        free: HashMap::new(),
        rows: vec![],
        count: 0,
    };
    let mut least = bounds.limit.map(|limit| limit.saturating_mul(2).saturating_add(SPARE));
    loop {
        let query = bounds.apply(request.query, least);
        let mut running = query::open_unlocked(work.context, request.with_query(&query)).await?;
        let first = work.locking.first_appended(&running.schema)?;
        let mut read = 0;
        // Rows of a query that is run again come in any order of equal ones: it is looked at from its start.
        chosen.rows.clear();
        chosen.count = 0;
        while let Some(batch) = next(work, &mut running).await? {
            read += batch.num_rows();
            held.add(&batch)?;
            chosen.take(work, batch, first, bounds.limit, &mut held).await?;
            if chosen.is_enough(bounds.limit) {
                break;
            }
        }
        match least {
            Some(rows) if read >= rows && !chosen.is_enough(bounds.limit) => {
                least = Some(rows.saturating_mul(GROWTH));
            }
            _ => return Ok((running, chosen.after(bounds.offset))),
        }
    }
}

/// Rows that were locked.
struct Chosen<'a> {
    keys: RowKeys<'a>,
    /// Whether a key was free, by its number.
    free: HashMap<usize, bool>,
    rows: Vec<RecordBatch>,
    count: usize,
}

impl Chosen<'_> {
    fn is_enough(&self, limit: Option<usize>) -> bool {
        limit.is_some_and(|limit| self.count >= limit)
    }

    /// Locks rows of a batch in their order until there are enough.
    async fn take(
        &mut self,
        work: &Work<'_>,
        batch: RecordBatch,
        first: usize,
        limit: Option<usize>,
        held: &mut Held,
    ) -> Result<()> {
        let numbers = self.keys.add(&batch, first, held)?;
        let mut mask = vec![false; numbers.len()];
        let mut left: Vec<usize> = (0..numbers.len()).rev().collect();
        while !left.is_empty() && !self.is_enough(limit) {
            let needed = limit.map_or(left.len(), |limit| limit - self.count).min(left.len());
            let round = left.split_off(left.len() - needed);
            let wanted: BTreeSet<usize> = round.iter().flat_map(|row| numbers[*row].iter().copied()).collect();
            self.ask(work, wanted).await?;
            for row in round.into_iter().rev() {
                if numbers[row].iter().all(|number| self.free[number]) {
                    mask[row] = true;
                    self.count += 1;
                }
            }
        }
        let rows = filter_record_batch(&batch, &BooleanArray::from(mask));
        self.rows.push(rows.map_err(|e| Error::internal(format!("choosing rows: {e}")))?);
        Ok(())
    }

    /// Locks keys that were not asked for before, as far as they are free.
    async fn ask(&mut self, work: &Work<'_>, wanted: BTreeSet<usize>) -> Result<()> {
        let unknown: Vec<usize> = wanted.into_iter().filter(|number| !self.free.contains_key(number)).collect();
        let (requests, asked) = self.keys.requests(&unknown)?;
        let replies = work.send(requests, Wait::Skip).await?;
        for (tables, reply) in asked.iter().zip(replies) {
            if tables.len() != reply.left_out.len() {
                return Err(Error::protocol("a shard did not tell of each table which rows it left out"));
            }
            for (numbers, left_out) in tables.iter().zip(reply.left_out) {
                if !left_out.changed.is_empty() && work.transaction.isolation() == Isolation::RepeatableRead {
                    return Err(Error::changed("could not serialize access due to concurrent update"));
                }
                let left_out = left_out.keys.iter().chain(&left_out.changed);
                let left_out: BTreeSet<usize> = left_out.map(|key| *key as usize).collect();
                let free = numbers.iter().enumerate().map(|(at, number)| (*number, !left_out.contains(&at)));
                self.free.extend(free);
            }
        }
        Ok(())
    }

    /// Without the first rows.
    fn after(self, mut offset: usize) -> Vec<RecordBatch> {
        let rows = self.rows.into_iter().map(|batch| {
            let skipped = offset.min(batch.num_rows());
            offset -= skipped;
            batch.slice(skipped, batch.num_rows() - skipped)
        });
        rows.filter(|batch| batch.num_rows() > 0).collect()
    }
}

/// What LIMIT, OFFSET and FETCH say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    /// Rows to lock, those that OFFSET passes over among them.
    limit: Option<usize>,
    offset: usize,
}

impl Bounds {
    fn of(query: &Query, params: &[ScalarValue]) -> Result<Self> {
        if let SetExpr::Query(inner) = query.body.as_ref()
            && (inner.limit_clause.is_some() || inner.fetch.is_some())
        {
            return Err(unsupported("SKIP LOCKED behind a limit in parentheses"));
        }
        let (mut limit, mut offset) = (None, None);
        match &query.limit_clause {
            None => {}
            Some(LimitClause::LimitOffset {
                limit: rows,
                offset: passed,
                limit_by,
            }) if limit_by.is_empty() => {
                limit = rows.as_ref();
                offset = passed.as_ref().map(|passed| &passed.value);
            }
            Some(_) => return Err(unsupported("such a LIMIT with SKIP LOCKED")),
        }
        let one = Expr::value(Value::Number("1".into(), false));
        if let Some(fetch) = &query.fetch {
            limit = Some(fetch.quantity.as_ref().unwrap_or(&one));
        }
        let limit = limit.map(|limit| number(limit, params, ("2201W", "LIMIT"))).transpose()?.flatten();
        let offset = offset.map(|offset| number(offset, params, ("2201X", "OFFSET"))).transpose()?.flatten();
        let offset = offset.unwrap_or(0);
        Ok(Self {
            limit: limit.map(|limit| if limit == 0 { 0 } else { limit.saturating_add(offset) }),
            offset,
        })
    }

    /// The query for at most so many of its first rows.
    fn apply(self, query: &Query, rows: Option<usize>) -> Query {
        let mut query = query.clone();
        query.fetch = None;
        let rows = if self.limit == Some(0) { Some(0) } else { rows };
        query.limit_clause = rows.map(|rows| LimitClause::LimitOffset {
            limit: Some(Expr::value(Value::Number(rows.min(i64::MAX as usize).to_string(), false))),
            offset: None,
            limit_by: vec![],
        });
        query
    }
}

fn unsupported(what: &str) -> Error {
    Error::unsupported(
        format!("{what} is not supported"),
        "write LIMIT and OFFSET as numbers or parameters behind the whole query",
    )
}

/// A number or a parameter; NULL and ALL are no limit.
fn number(expr: &Expr, params: &[ScalarValue], (code, name): (&str, &str)) -> Result<Option<usize>> {
    let negative = || Error::new(code, format!("{name} must not be negative"));
    let value = match expr {
        Expr::Nested(inner) => return number(inner, params, (code, name)),
        Expr::UnaryOp {
            op: UnaryOperator::Minus,
            ..
        } => return Err(negative()),
        Expr::Value(value) => &value.value,
        _ => return Err(unsupported(&format!("an expression as {name} of SKIP LOCKED"))),
    };
    let value = match value {
        Value::Null => None,
        Value::Number(digits, _) => Some(ScalarValue::Utf8(Some(digits.clone()))),
        Value::Placeholder(name) => {
            let number = name.strip_prefix('$').and_then(|n| n.parse::<usize>().ok());
            let param = number.and_then(|n| params.get(n.checked_sub(1)?));
            param.filter(|param| !param.is_null()).cloned()
        }
        _ => return Err(unsupported(&format!("such a {name} with SKIP LOCKED"))),
    };
    let Some(value) = value else { return Ok(None) };
    match value.cast_to(&datafusion::arrow::datatypes::DataType::Int64) {
        Ok(ScalarValue::Int64(Some(rows))) if rows < 0 => Err(negative()),
        Ok(ScalarValue::Int64(Some(rows))) => Ok(Some(rows as usize)),
        _ => Err(unsupported(&format!("such a {name} with SKIP LOCKED"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(sql: &str) -> Result<(Option<usize>, usize)> {
        let mut parsed = tessera_parser::parse(sql).expect("it is SQL");
        let Some(tessera_parser::Statement::Query(query)) = parsed.pop().map(|s| s.statement) else {
            panic!("{sql}: no query")
        };
        let params = [ScalarValue::Int64(Some(7)), ScalarValue::Int64(None), ScalarValue::Int64(Some(-1))];
        Bounds::of(&query, &params).map(|bounds| (bounds.limit, bounds.offset))
    }

    #[test]
    fn limits_are_read_where_they_are_known() {
        let ok = |sql: &str| bounds(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        assert_eq!(ok("SELECT a FROM t"), (None, 0));
        assert_eq!(ok("SELECT a FROM t LIMIT 3 OFFSET 2"), (Some(5), 2));
        assert_eq!(ok("SELECT a FROM t FETCH FIRST ROW ONLY"), (Some(1), 0));
        assert_eq!(ok("SELECT a FROM t LIMIT $1 OFFSET $1"), (Some(14), 7));
        assert_eq!(ok("SELECT a FROM t LIMIT $2"), (None, 0));
        assert_eq!(ok("SELECT a FROM t LIMIT ALL OFFSET (4)"), (None, 4));
        assert_eq!(ok("SELECT a FROM t LIMIT 0 OFFSET 4"), (Some(0), 4));
        let code = |sql: &str| bounds(sql).expect_err(sql).code;
        assert_eq!(code("SELECT a FROM t LIMIT -1"), "2201W");
        assert_eq!(code("SELECT a FROM t LIMIT $3"), "2201W");
        assert_eq!(code("SELECT a FROM t OFFSET $3"), "2201X");
        assert_eq!(code("SELECT a FROM t LIMIT 1 + 1"), "0A000");
        assert_eq!(code("(SELECT a FROM t LIMIT 1) LIMIT 2"), "0A000");
    }
}
