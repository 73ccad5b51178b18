//! Whole paths: a real client, a subject, a real server.

mod flows;
mod handover;
mod load;
mod memory;
pub(crate) mod scenarios;
pub(crate) mod subjects;
pub(crate) mod topology;
