//! The shard-local rule: what the nodes can run on their own shards alone becomes one leaf each.
//!
//! ```text
//!   expressions.rs  which expressions nodes may evaluate        key.rs      where the shard key is in an operator's output
//!   locality.rs     the table of cases, one operator at a time  rule.rs     maximal subtrees -> leaves
//!   partial_aggregate.rs   the part of a cut aggregate that runs below the cut
//! ```

pub mod expressions;
pub mod key;
pub mod locality;
pub mod partial_aggregate;
pub mod rule;
#[cfg(test)]
pub mod tests;
