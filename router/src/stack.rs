//! Room for deep recursion: planning walks expressions and plans by calling itself.
//!
//! ```text
//!   thread of 16 MiB (the binary's)           polled as it is
//!   thread of 2 MiB (tests, embedders)        polled on a stack of its own, for as long as the poll takes
//! ```
//!
//! DataFusion guards most of its recursion, but not all: what displays an expression is not. An overflow ends the process.

use crate::STACK_BYTES;
use std::pin::Pin;
use std::task::{Context, Poll};

/// With less than this left, a new stack is taken.
const LEFT_BYTES_MIN: usize = 6 << 20;

/// A future whose polls have at least [`LEFT_BYTES_MIN`] of stack. Boxed: those it is for are large.
pub(crate) struct OnLargeStack<F>(Pin<Box<F>>);

impl<F: Future> OnLargeStack<F> {
    /// Wraps a future.
    pub(crate) fn new(future: F) -> Self {
        Self(Box::pin(future))
    }
}

impl<F: Future> Future for OnLargeStack<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        stacker::maybe_grow(LEFT_BYTES_MIN, STACK_BYTES, || self.0.as_mut().poll(context))
    }
}
