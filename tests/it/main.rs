//! The one integration-test binary: whole clusters, through the PostgreSQL wire, as users meet them.
//!
//! ```text
//!   cluster.rs   start, stop, kill: embedded clusters in this process, or real processes
//!   slt.rs       every file of slt/ on every cluster shape
//!   tpch.rs      the 22 queries against stored answers
//!   clients.rs   what PostgreSQL clients do: types in both formats, cancel, copy
//!   flight.rs    Flight SQL: statements, parameters, metadata, ingest, tickets at every node, cancel, garbage
//!   explain.rs   what moves and what stays in queries derived from TPC-H
//!   oracle.rs    single-process DataFusion over the same rows
//!   random_queries.rs  seeded random queries on every cluster shape, against single-process DataFusion
//!   scalars.rs   casts, operators and functions, against recorded answers of PostgreSQL 15 and a living one
//!   sql_matrix.rs  every feature of SELECT over every shape of data on every cluster shape
//!   tpcds.rs     the 99 queries against single-process DataFusion
//!   shard_local.rs  every sentence of the shard-local rule, against single-process DataFusion
//!   processes.rs router and shard nodes as processes of their own; one is killed
//!   restart.rs   what was acknowledged is there after a clean stop
//!   transactions.rs  several statements at once by several clients: waits, deadlocks, totals
//!   workload.rs  writers and the book they keep: acknowledged, refused, unknown
//!   copy_to.rs   COPY TO: lines as PostgreSQL writes them, files that come back
//!   copies.rs    copies are equal after load, restart, silence, a wiped disk, SWITCH LEADER and PROMOTE
//!   power.rs     power loss and full disks, when asked for
//!   damage.rs    damaged files of one node are fetched again; of the only copy, refused
//!   kills.rs     kill -9 of the whole process and of single nodes, at random moments
//!   memory.rs    little memory: spill, sort-merge joins, many queries at once
//!   analyze.rs   EXPLAIN ANALYZE: what every node did and what moved
//!   common_values.rs  the most common values of columns in estimates and in pg_stats
//!   bad_input.rs errors a user can make, and their SQLSTATEs
//! ```

mod analyze;
mod bad_input;
mod clients;
mod cluster;
mod common_values;
mod copies;
mod copy_to;
mod damage;
mod explain;
mod flight;
mod kills;
mod memory;
mod oracle;
mod power;
mod processes;
mod random_queries;
mod restart;
mod scalars;
mod shard_local;
mod slt;
mod sql_matrix;
mod tpcds;
mod tpch;
mod transactions;
mod workload;
