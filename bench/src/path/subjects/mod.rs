//! The subjects: what can stand between the client and the server.

mod bpffs;
mod kind;
mod log;
mod service;
mod size;
mod subject;

pub(crate) use bpffs::{pins, remove_leftovers};
pub(crate) use kind::Kind;
pub(crate) use service::{Endpoint, PASSTHROUGH, Service};
pub(crate) use size::Size;
pub(crate) use subject::{Stand, Subject};
