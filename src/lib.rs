//! The embedded cluster and configuration behind the `tessera` binary.
