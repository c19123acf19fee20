//! What the Flight services of routers and of shard nodes share.
//!
//! ```text
//!   caller.rs   who calls, from the authorization header       seal.rs    signed tokens and tickets
//!   rows.rs     one schema for every endpoint, rows to messages        status.rs  errors as clients see them
//! ```
//!
//! The services are `router/src/flight` and `shard-node/src/flight.rs`.

pub mod caller;
pub mod rows;
pub mod seal;
pub mod status;
