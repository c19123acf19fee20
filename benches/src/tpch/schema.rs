//! The eight tables, as our DDL distributes them.
//!
//! ```text
//! nation, region, supplier      reference: a copy on every node
//! orders   (o_orderkey)  --+--  lineitem (l_orderkey)     colocated: their join never leaves a node
//! part     (p_partkey)   --+--  partsupp (ps_partkey)     colocated
//! customer (c_custkey)          sharded alone
//! ```
//!
//! Types are those the generator produces: keys `bigint`, money `numeric(15,2)`. Fixed strings are `varchar(n)` rather
//! than `char(n)`, so no engine pads them. Foreign keys are left out, because nothing here checks them.

use std::fmt;

/// One of the eight tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// 5 rows.
    Region,
    /// 25 rows.
    Nation,
    /// 10,000 rows per scale unit.
    Supplier,
    /// 200,000 rows per scale unit.
    Part,
    /// 800,000 rows per scale unit.
    PartSupp,
    /// 150,000 rows per scale unit.
    Customer,
    /// 1,500,000 rows per scale unit.
    Orders,
    /// About 6,000,000 rows per scale unit.
    LineItem,
}

/// Every table, in an order in which `COLOCATE WITH` finds what it names.
pub static TABLES: [Table; 8] = [
    Table::Region,
    Table::Nation,
    Table::Supplier,
    Table::Part,
    Table::PartSupp,
    Table::Customer,
    Table::Orders,
    Table::LineItem,
];

impl Table {
    /// The SQL name, lower case.
    pub fn name(self) -> &'static str {
        match self {
            Table::Region => "region",
            Table::Nation => "nation",
            Table::Supplier => "supplier",
            Table::Part => "part",
            Table::PartSupp => "partsupp",
            Table::Customer => "customer",
            Table::Orders => "orders",
            Table::LineItem => "lineitem",
        }
    }

    /// The CREATE statement; `shards` counts for tables that are neither reference nor colocated with another.
    pub fn ddl(self, shards: u32) -> String {
        let kind = if self.is_reference() {
            "REFERENCE TABLE"
        } else {
            "TABLE"
        };
        let sharding = match self {
            Table::Region | Table::Nation | Table::Supplier => String::new(),
            Table::Part => format!(" SHARD BY HASH (p_partkey) SHARDS {shards}"),
            Table::PartSupp => " SHARD BY HASH (ps_partkey) COLOCATE WITH part".to_owned(),
            Table::Customer => format!(" SHARD BY HASH (c_custkey) SHARDS {shards}"),
            Table::Orders => format!(" SHARD BY HASH (o_orderkey) SHARDS {shards}"),
            Table::LineItem => " SHARD BY HASH (l_orderkey) COLOCATE WITH orders".to_owned(),
        };
        format!("CREATE {kind} {} ({}){sharding}", self.name(), self.columns())
    }

    /// The same table in plain PostgreSQL, to run the workload against another server.
    pub fn plain_ddl(self) -> String {
        format!("CREATE TABLE {} ({})", self.name(), self.columns())
    }

    /// Whether every node holds a copy.
    pub fn is_reference(self) -> bool {
        matches!(self, Table::Region | Table::Nation | Table::Supplier)
    }

    /// Column definitions and primary key, comma separated.
    fn columns(self) -> &'static str {
        match self {
            Table::Region => {
                "r_regionkey bigint NOT NULL, r_name varchar(25) NOT NULL, r_comment varchar(152) NOT NULL, \
                 PRIMARY KEY (r_regionkey)"
            }
            Table::Nation => {
                "n_nationkey bigint NOT NULL, n_name varchar(25) NOT NULL, n_regionkey bigint NOT NULL, \
                 n_comment varchar(152) NOT NULL, PRIMARY KEY (n_nationkey)"
            }
            Table::Supplier => {
                "s_suppkey bigint NOT NULL, s_name varchar(25) NOT NULL, s_address varchar(40) NOT NULL, \
                 s_nationkey bigint NOT NULL, s_phone varchar(15) NOT NULL, s_acctbal numeric(15,2) NOT NULL, \
                 s_comment varchar(101) NOT NULL, PRIMARY KEY (s_suppkey)"
            }
            Table::Part => {
                "p_partkey bigint NOT NULL, p_name varchar(55) NOT NULL, p_mfgr varchar(25) NOT NULL, \
                 p_brand varchar(10) NOT NULL, p_type varchar(25) NOT NULL, p_size integer NOT NULL, \
                 p_container varchar(10) NOT NULL, p_retailprice numeric(15,2) NOT NULL, \
                 p_comment varchar(23) NOT NULL, PRIMARY KEY (p_partkey)"
            }
            Table::PartSupp => {
                "ps_partkey bigint NOT NULL, ps_suppkey bigint NOT NULL, ps_availqty integer NOT NULL, \
                 ps_supplycost numeric(15,2) NOT NULL, ps_comment varchar(199) NOT NULL, \
                 PRIMARY KEY (ps_partkey, ps_suppkey)"
            }
            Table::Customer => {
                "c_custkey bigint NOT NULL, c_name varchar(25) NOT NULL, c_address varchar(40) NOT NULL, \
                 c_nationkey bigint NOT NULL, c_phone varchar(15) NOT NULL, c_acctbal numeric(15,2) NOT NULL, \
                 c_mktsegment varchar(10) NOT NULL, c_comment varchar(117) NOT NULL, PRIMARY KEY (c_custkey)"
            }
            Table::Orders => {
                "o_orderkey bigint NOT NULL, o_custkey bigint NOT NULL, o_orderstatus varchar(1) NOT NULL, \
                 o_totalprice numeric(15,2) NOT NULL, o_orderdate date NOT NULL, \
                 o_orderpriority varchar(15) NOT NULL, o_clerk varchar(15) NOT NULL, \
                 o_shippriority integer NOT NULL, o_comment varchar(79) NOT NULL, PRIMARY KEY (o_orderkey)"
            }
            Table::LineItem => {
                "l_orderkey bigint NOT NULL, l_partkey bigint NOT NULL, l_suppkey bigint NOT NULL, \
                 l_linenumber integer NOT NULL, l_quantity numeric(15,2) NOT NULL, \
                 l_extendedprice numeric(15,2) NOT NULL, l_discount numeric(15,2) NOT NULL, \
                 l_tax numeric(15,2) NOT NULL, l_returnflag varchar(1) NOT NULL, \
                 l_linestatus varchar(1) NOT NULL, l_shipdate date NOT NULL, l_commitdate date NOT NULL, \
                 l_receiptdate date NOT NULL, l_shipinstruct varchar(25) NOT NULL, \
                 l_shipmode varchar(10) NOT NULL, l_comment varchar(44) NOT NULL, \
                 PRIMARY KEY (l_orderkey, l_linenumber)"
            }
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
