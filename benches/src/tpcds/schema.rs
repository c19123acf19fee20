//! The 24 tables, as our DDL distributes them.
//!
//! ```text
//! store_sales   (ss_item_sk)  --+-- store_returns   (sr_item_sk)
//! catalog_sales (cs_item_sk)  --+-- catalog_returns (cr_item_sk)      one colocation group
//! web_sales     (ws_item_sk)  --+-- web_returns     (wr_item_sk)
//!                               +-- inventory       (inv_item_sk)
//! the other 17                      reference: a copy on every node
//! ```
//!
//! Why the item: it is the only key that all seven fact tables share. A sale meets its return by item and ticket (or
//! order), so that join is local; so are sales of two channels (Q14, Q17, Q25, Q29, Q64, Q97), sales and inventory
//! (Q37, Q72, Q82), and whatever is grouped by item (Q23, Q44, Q51, Q78). Sharded by ticket and order, only the first kind
//! would be. What pays: joins of one order with itself (Q16, Q94, Q95) and everything per customer (Q4, Q11, Q74).
//!
//! Why dimensions are reference tables, the large ones too: every query joins facts with several of them by different
//! keys, so at most one could be colocated. They grow more slowly than the facts: 1.9 million rows of
//! customer_demographics at every scale, 100,000 customers at scale 1 and 12 million at 1,000.
//!
//! Columns and types are those the generator produces, text without a length. Primary keys are the specification's, with
//! the ticket, order or date before the item, because rows are kept in that order and so dates stay together. Foreign keys
//! are left out, because nothing here checks them. Not done: the table `dbgen_version`, which no query reads.

use datafusion::arrow::datatypes::{DataType, SchemaRef};
use tpcdsgen::config::{Session, Table as Rows};
use tpcdsgen_arrow as arrow;

use crate::workload::{self, Batches};

/// The table all sharded ones are colocated with.
const GROUP: &str = "store_sales";

/// One of the 24 tables.
pub struct Table {
    name: &'static str,
    /// Columns of the primary key, comma separated.
    primary_key: &'static str,
    /// The column it is sharded by; `None` for a reference table.
    shard_key: Option<&'static str>,
    schema: fn() -> SchemaRef,
    batches: fn(Session) -> Batches,
    /// The generator's name of it, and rows made for each that it counts: it counts orders, not their lines.
    rows: (Rows, u64),
}

macro_rules! table {
    ($name:literal, $primary_key:literal, $shard_key:expr, $arrow:ident, $rows:ident * $lines:literal) => {
        Table {
            name: $name,
            primary_key: $primary_key,
            shard_key: $shard_key,
            schema: arrow::$arrow::schema_ref,
            batches: |session| Box::new(arrow::$arrow::new(session)),
            rows: (Rows::$rows, $lines),
        }
    };
}

/// Every table, in an order in which `COLOCATE WITH` finds what it names.
#[rustfmt::skip]
pub static TABLES: [Table; 24] = [
    table!("call_center", "cc_call_center_sk", None, CallCenterArrow, CallCenter * 1),
    table!("catalog_page", "cp_catalog_page_sk", None, CatalogPageArrow, CatalogPage * 1),
    table!("customer", "c_customer_sk", None, CustomerArrow, Customer * 1),
    table!("customer_address", "ca_address_sk", None, CustomerAddressArrow, CustomerAddress * 1),
    table!("customer_demographics", "cd_demo_sk", None, CustomerDemographicsArrow, CustomerDemographics * 1),
    table!("date_dim", "d_date_sk", None, DateDimArrow, DateDim * 1),
    table!("household_demographics", "hd_demo_sk", None, HouseholdDemographicsArrow, HouseholdDemographics * 1),
    table!("income_band", "ib_income_band_sk", None, IncomeBandArrow, IncomeBand * 1),
    table!("item", "i_item_sk", None, ItemArrow, Item * 1),
    table!("promotion", "p_promo_sk", None, PromotionArrow, Promotion * 1),
    table!("reason", "r_reason_sk", None, ReasonArrow, Reason * 1),
    table!("ship_mode", "sm_ship_mode_sk", None, ShipModeArrow, ShipMode * 1),
    table!("store", "s_store_sk", None, StoreArrow, Store * 1),
    table!("time_dim", "t_time_sk", None, TimeDimArrow, TimeDim * 1),
    table!("warehouse", "w_warehouse_sk", None, WarehouseArrow, Warehouse * 1),
    table!("web_page", "wp_web_page_sk", None, WebPageArrow, WebPage * 1),
    table!("web_site", "web_site_sk", None, WebSiteArrow, WebSite * 1),
    table!("store_sales", "ss_ticket_number, ss_item_sk", Some("ss_item_sk"), StoreSalesArrow, StoreSales * 12),
    table!("store_returns", "sr_ticket_number, sr_item_sk", Some("sr_item_sk"), StoreReturnsArrow, StoreSales * 1),
    table!("catalog_sales", "cs_order_number, cs_item_sk", Some("cs_item_sk"), CatalogSalesArrow, CatalogSales * 9),
    table!("catalog_returns", "cr_order_number, cr_item_sk", Some("cr_item_sk"), CatalogReturnsArrow, CatalogSales * 1),
    table!("web_sales", "ws_order_number, ws_item_sk", Some("ws_item_sk"), WebSalesArrow, WebSales * 12),
    table!("web_returns", "wr_order_number, wr_item_sk", Some("wr_item_sk"), WebReturnsArrow, WebSales * 1),
    table!("inventory", "inv_date_sk, inv_item_sk, inv_warehouse_sk", Some("inv_item_sk"), InventoryArrow, Inventory * 1),
];

impl Table {
    /// Column definitions and primary key, comma separated.
    fn columns(&self) -> String {
        let schema = (self.schema)();
        let mut columns = String::new();
        for field in schema.fields() {
            let null = if field.is_nullable() { "" } else { " NOT NULL" };
            columns += &format!("{} {}{null}, ", field.name(), sql_type(field.data_type()));
        }
        format!("{columns}PRIMARY KEY ({})", self.primary_key)
    }
}

/// The SQL type of a generated column.
fn sql_type(arrow: &DataType) -> String {
    match arrow {
        DataType::Int32 => "integer".to_owned(),
        DataType::Int64 => "bigint".to_owned(),
        DataType::Date32 => "date".to_owned(),
        DataType::Decimal128(precision, scale) => format!("numeric({precision},{scale})"),
        // The generator makes nothing else, which a test makes sure of.
        _ => "text".to_owned(),
    }
}

impl workload::Table for Table {
    fn name(&self) -> &'static str {
        self.name
    }

    fn ddl(&self, shards: u32) -> String {
        let (name, columns) = (self.name, self.columns());
        match self.shard_key {
            None => format!("CREATE REFERENCE TABLE {name} ({columns})"),
            Some(key) if name == GROUP => {
                format!("CREATE TABLE {name} ({columns}) SHARD BY HASH ({key}) SHARDS {shards}")
            }
            Some(key) => format!("CREATE TABLE {name} ({columns}) SHARD BY HASH ({key}) COLOCATE WITH {GROUP}"),
        }
    }

    fn plain_ddl(&self) -> String {
        format!("CREATE TABLE {} ({})", self.name, self.columns())
    }

    fn batches(&self, scale: f64) -> Batches {
        (self.batches)(session(scale))
    }

    fn expected_rows(&self, scale: f64) -> u64 {
        let (rows, lines) = self.rows;
        session(scale).get_scaling().get_row_count(rows) * lines
    }
}

/// The generator's settings at a scale that [`workload::Workload::check_scale`] has passed.
fn session(scale: f64) -> Session {
    let builder = tpcdsgen::config::SessionBuilder::new().with_scale_factor(scale);
    builder.build().expect("the scale was checked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_has_a_type_of_its_own() {
        for table in &TABLES {
            for field in (table.schema)().fields() {
                let text = *field.data_type() == DataType::Utf8View;
                assert_eq!(
                    text,
                    sql_type(field.data_type()) == "text",
                    "{}.{}",
                    table.name,
                    field.name()
                );
            }
        }
    }
}
