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
//!   array_literal.rs  arrays in quotes  sorted_input.rs  array_agg over a sorted subquery     unnested.rs
//!   json.rs      values as JSON        type_names.rs     pg_typeof
//!   to_char_number.rs  numbers and intervals by number_format.rs's patterns
//!   scalars.rs   other casts, operators and functions     text.rs, to_char.rs   values as text
//!   describe.rs  types without running        show.rs  SHOW        verify.rs  VERIFY TABLE
//!   analyze.rs   ANALYZE
//! ```

pub(crate) mod admission;
pub(crate) mod analyze;
mod arithmetic;
mod array_literal;
mod averages;
pub(crate) mod copy_to;
pub(crate) mod declared;
pub(crate) mod describe;
mod json;
mod literals;
mod number_format;
pub(crate) mod point;
pub(crate) mod prepare;
pub(crate) mod query;
mod scalars;
pub(crate) mod show;
mod sorted_input;
pub(crate) mod stream;
mod text;
mod to_char;
mod to_char_number;
mod type_names;
mod unnested;
pub(crate) mod verify;

/// Functions that queries may name and that binding replaces: what stands for them knows the session.
pub(crate) fn functions() -> Vec<datafusion::logical_expr::ScalarUDF> {
    let mut all = json::functions();
    all.extend(type_names::functions());
    all
}
