//! Whole paths: a real client, a subject, a real server.

pub(crate) mod case;
mod clients;
mod flows;
mod handover;
mod memory;
pub(crate) mod scenarios;
pub(crate) mod subjects;
pub(crate) mod topology;
