//! Requests of HTTP, on routes that have rules for them.

pub mod filter;
