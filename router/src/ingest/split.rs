//! Splits a batch by shard: the token of each row's shard key, and the range that holds it.
//!
//! ```text
//!   rows   a b c d e       shards 2 0 2 1 0      ──▶   0: b e    1: d    2: a c       order within a shard is kept
//! ```

use datafusion::arrow::array::{ArrayRef, AsArray, RecordBatch, UInt32Array};
use datafusion::arrow::compute::take_record_batch;
use std::sync::Arc;
use tessera_proto::table::{ColocationGroup, TableDef};
use tessera_proto::token::tokens;
use tessera_proto::{Error, Result};

/// The batch's rows by shard, only shards with rows, ascending.
///
/// # Errors
/// XX000 when the key's type cannot be hashed, which creating the table excludes.
pub(super) fn split(table: &TableDef, group: &ColocationGroup, batch: RecordBatch) -> Result<Vec<(u32, RecordBatch)>> {
    let keys: Vec<ArrayRef> = table.shard_key().iter().map(|i| batch.column(*i).clone()).collect();
    by_key(group, &keys, batch)
}

/// The same for rows of any columns, whose shard keys are `keys`.
///
/// # Errors
/// Those of [`split`].
pub(super) fn by_key(
    group: &ColocationGroup,
    keys: &[ArrayRef],
    batch: RecordBatch,
) -> Result<Vec<(u32, RecordBatch)>> {
    if batch.num_rows() == 0 {
        return Ok(vec![]);
    }
    if group.reference || group.ranges.len() == 1 {
        return Ok(vec![(0, compact(batch)?)]);
    }
    let mut rows: Vec<Vec<u32>> = vec![vec![]; group.ranges.len()];
    for (row, token) in (0..).zip(tokens(keys)?) {
        let shard = group.shard_of(token) as usize;
        let bucket = rows
            .get_mut(shard)
            .ok_or_else(|| Error::internal(format!("token {token} belongs to no shard of group {}", group.id)))?;
        bucket.push(row);
    }
    let used = (0..).zip(rows).filter(|(_, rows)| !rows.is_empty());
    let part = |(shard, rows): (u32, Vec<u32>)| {
        if rows.len() == batch.num_rows() {
            return Ok((shard, compact(batch.clone())?));
        }
        let taken = take_record_batch(&batch, &UInt32Array::from(rows))
            .map_err(|e| Error::internal(format!("splitting rows: {e}")))?;
        Ok((shard, compact(taken)?))
    };
    used.map(part).collect()
}

/// The shard of each of `rows` rows, whose shard keys are `keys`.
///
/// # Errors
/// Those of [`split`].
pub(crate) fn shards_of(group: &ColocationGroup, keys: &[ArrayRef], rows: usize) -> Result<Vec<u32>> {
    if group.reference || group.ranges.len() == 1 {
        return Ok(vec![0; rows]);
    }
    let tokens = tokens(keys)?;
    Ok(tokens.into_iter().map(|token| group.shard_of(token)).collect())
}

/// Text and bytes without what other rows left in their buffers: taken and sliced views keep all of it alive, and would
/// send it along.
fn compact(batch: RecordBatch) -> Result<RecordBatch> {
    let sparse = |held: usize, used: usize| held > 2 * used + 1_024;
    let columns = batch.columns().iter().map(|column| -> ArrayRef {
        if let Some(text) = column.as_string_view_opt() {
            let held = text.data_buffers().iter().map(|b| b.len()).sum();
            return if sparse(held, text.total_buffer_bytes_used()) {
                Arc::new(text.gc())
            } else {
                column.clone()
            };
        }
        if let Some(bytes) = column.as_binary_view_opt() {
            let held = bytes.data_buffers().iter().map(|b| b.len()).sum();
            return if sparse(held, bytes.total_buffer_bytes_used()) {
                Arc::new(bytes.gc())
            } else {
                column.clone()
            };
        }
        column.clone()
    });
    RecordBatch::try_new(batch.schema(), columns.collect()).map_err(|e| Error::internal(format!("splitting rows: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{Array, Int64Array, StringViewArray};
    use datafusion::arrow::datatypes::Int64Type;
    use tessera_proto::sql_type::{KeyClass, SqlType};
    use tessera_proto::table::{ColumnDef, Distribution};
    use tessera_proto::token::equal_ranges;
    use tessera_proto::{GroupId, TableId};

    #[test]
    fn every_row_goes_to_the_shard_of_its_token_once() {
        let column = |name: &str, sql_type| ColumnDef {
            name: name.into(),
            sql_type,
            nullable: true,
            default: None,
            hidden: false,
        };
        let table = TableDef {
            id: TableId(1),
            schema: "public".into(),
            name: "t".into(),
            columns: vec![column("v", SqlType::Text), column("k", SqlType::Int8)],
            primary_key: vec![],
            cluster_by: vec![],
            distribution: Distribution::Sharded { key: vec![1] },
            group: GroupId(2),
            version: 1,
        };
        let group = ColocationGroup {
            id: GroupId(2),
            key_classes: vec![KeyClass::Int],
            ranges: equal_ranges(7),
            reference: false,
        };
        let keys: Vec<Option<i64>> = (0..1_000).map(|i| (i % 50 != 0).then_some(i)).collect();
        let text = StringViewArray::from_iter_values((0..1_000).map(|i| format!("value number {i}")));
        let batch = RecordBatch::try_new(
            table.arrow_schema(),
            vec![Arc::new(text), Arc::new(Int64Array::from(keys))],
        )
        .unwrap();
        let parts = split(&table, &group, batch).unwrap();
        assert_eq!(parts.len(), 7, "a thousand keys reach every shard");
        let mut seen = 0;
        for (shard, part) in parts {
            seen += part.num_rows();
            let held: usize = part
                .column(0)
                .as_string_view()
                .data_buffers()
                .iter()
                .map(|b| b.len())
                .sum();
            assert!(
                held < 8_000,
                "shard {shard} keeps {held} bytes of a thousand rows' text"
            );
            for (row, token) in tokens(&[part.column(1).clone()]).unwrap().into_iter().enumerate() {
                assert_eq!(group.shard_of(token), shard);
                let key = part.column(1).as_primitive::<Int64Type>();
                if key.is_valid(row) {
                    assert_eq!(
                        part.column(0).as_string_view().value(row),
                        format!("value number {}", key.value(row))
                    );
                }
            }
        }
        assert_eq!(seen, 1_000);
    }
}
