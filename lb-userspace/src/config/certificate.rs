//! Certificates that were read, whoever has asked for them.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;

use super::diagnostic::Problem;
use super::model::Termination;

/// A certificate that can be used.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) termination: Arc<Termination>,
    /// Not of the configuration's files.
    pub(super) is_held: bool,
    /// What is odd about the files, and does not keep them from being used.
    pub(super) warnings: Problems,
}

/// Which of a route's files a problem is with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Chain,
    Key,
    Passphrase,
    /// Of several files, this one.
    ClientCa(usize),
    ClientCrl(usize),
}

/// Problems, each with the file.
pub(super) type Problems = Vec<(Part, Problem)>;
