//! Generated rows as Arrow batches.
//!
//! The generator is deterministic: one scale factor means one data set, on every machine, equal to dbgen's. `parts`
//! cuts a table into that many consecutive pieces without changing its rows.

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatchReader;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow, RegionArrow, SupplierArrow,
};

use super::schema::Table;
use crate::workload::Batches;

/// Largest scale factor accepted: above it a key no longer fits the generator's tested range.
pub const SCALE_MAX: f64 = 1000.0;

/// The rows of `table`, in key order.
pub fn batches(table: Table, scale: f64) -> Batches {
    part_batches(table, scale, 1, 1)
}

/// Part `part` (from 1) of `parts` of `table`. Region and nation do not split: their rows are all in part 1.
pub fn part_batches(table: Table, scale: f64, part: i32, parts: i32) -> Batches {
    match table {
        // A batch size of 25 and more yields these whole; other parts are asked for no rows at all.
        Table::Region => Box::new(OnlyFirst {
            inner: RegionArrow::new(RegionGenerator::new(scale, 1, 1)),
            part,
        }),
        Table::Nation => Box::new(OnlyFirst {
            inner: NationArrow::new(NationGenerator::new(scale, 1, 1)),
            part,
        }),
        Table::Supplier => Box::new(SupplierArrow::new(SupplierGenerator::new(scale, part, parts))),
        Table::Part => Box::new(PartArrow::new(PartGenerator::new(scale, part, parts))),
        Table::PartSupp => Box::new(PartSuppArrow::new(PartSuppGenerator::new(scale, part, parts))),
        Table::Customer => Box::new(CustomerArrow::new(CustomerGenerator::new(scale, part, parts))),
        Table::Orders => Box::new(OrderArrow::new(OrderGenerator::new(scale, part, parts))),
        Table::LineItem => Box::new(LineItemArrow::new(LineItemGenerator::new(scale, part, parts))),
    }
}

/// Rows to expect: exact but for lineitem, which is within 0.1 % from scale 0.1 on. For progress only.
pub fn expected_rows(table: Table, scale: f64) -> u64 {
    let rows = match table {
        Table::Region => return 5,
        Table::Nation => return 25,
        Table::Supplier => SupplierGenerator::calculate_row_count(scale, 1, 1),
        Table::Part => PartGenerator::calculate_row_count(scale, 1, 1),
        Table::PartSupp => PartGenerator::calculate_row_count(scale, 1, 1).saturating_mul(4),
        Table::Customer => CustomerGenerator::calculate_row_count(scale, 1, 1),
        Table::Orders => OrderGenerator::calculate_row_count(scale, 1, 1),
        // Every order has 1 to 7 lines, evenly distributed.
        Table::LineItem => OrderGenerator::calculate_row_count(scale, 1, 1).saturating_mul(4),
    };
    u64::try_from(rows).unwrap_or(0)
}

/// A reader that is empty unless it was asked for part 1.
struct OnlyFirst<R> {
    inner: R,
    part: i32,
}

impl<R: RecordBatchReader> Iterator for OnlyFirst<R> {
    type Item = R::Item;

    fn next(&mut self) -> Option<Self::Item> {
        if self.part == 1 { self.inner.next() } else { None }
    }
}

impl<R: RecordBatchReader> RecordBatchReader for OnlyFirst<R> {
    fn schema(&self) -> SchemaRef {
        self.inner.schema()
    }
}
