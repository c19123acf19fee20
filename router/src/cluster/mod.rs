//! The cluster as the router sees and changes it.
//!
//! ```text
//!   bootstrap.rs      identity, schema public, ids                  at the first start
//!   catalog.rs        one statement's snapshot for the planner      reads ClusterView + statistics
//!   catalog_store.rs  CREATE and DROP as one compare-and-swap       writes the meta store
//!   define.rs         parsed CREATE TABLE to TableDef               checks keys, types, defaults
//!   placement.rs      which nodes hold a new group's shards         pure
//!   reassign.rs       reference copies for nodes that join later
//!   statistics.rs     what nodes report, added up per table
//!   common_values.rs  the same of the most common values of a column
//! ```

pub mod bootstrap;
pub mod catalog;
pub mod catalog_store;
mod common_values;
pub mod define;
pub mod depends;
pub mod placement;
pub mod reassign;
pub mod statistics;
