//! `databases-one-address`.
