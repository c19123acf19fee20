//! Statements that return rows.
//!
//! ```text
//!   query.rs     SELECT: snapshot, bind, plan, run, retry before the first row
//!   point.rs     SELECT by primary key: one RPC
//!   prepare.rs   session state, parameters, what a plan reads
//!   stream.rs    from the query threads to the session, with cancel and deadline
//!   admission.rs who may run now
//!   copy_to.rs   COPY ... TO
//!   literals.rs  quoted constants     arithmetic.rs   numbers that overflow     averages.rs   of exact numbers
//!   scalars.rs   other casts, operators and functions     text.rs, to_char.rs   values as text
//!   describe.rs  types without running        show.rs  SHOW        verify.rs  VERIFY TABLE
//!   analyze.rs   ANALYZE                      vacuum.rs   VACUUM
//!   as_of.rs     AS OF SYSTEM TIME
//! ```

pub(crate) mod admission;
pub(crate) mod analyze;
mod arithmetic;
pub(crate) mod as_of;
mod averages;
pub(crate) mod copy_to;
pub(crate) mod declared;
pub(crate) mod describe;
mod literals;
pub(crate) mod point;
pub(crate) mod prepare;
pub(crate) mod query;
mod scalars;
pub(crate) mod show;
pub(crate) mod stream;
mod text;
mod to_char;
pub(crate) mod vacuum;
pub(crate) mod verify;
