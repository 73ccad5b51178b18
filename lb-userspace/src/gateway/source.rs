//! What a configuration is made of.

use super::objects::Objects;
use crate::config::File;

/// What is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// The file, and then the objects.
    File,
    /// Nothing: the file is as it was when it was last in force, and the objects were read already.
    Objects,
}

/// The configuration file that is in force, if objects are added to it, and these.
pub(super) type Source = Option<(File, Objects)>;
