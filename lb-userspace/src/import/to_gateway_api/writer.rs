//! What the objects that are written so far know of each other.

use super::objects::{Grant, object_names};
use super::service::Services;
use crate::import::model::Part;
use crate::import::names::Names;
use std::collections::{BTreeSet, HashMap};

pub(super) struct Writer {
    pub(super) services: Services,
    pub(super) names: Names,
    pub(super) grants: BTreeSet<Grant>,
    /// Secrets and ConfigMaps that have to be made of files, by what they are made of.
    pub(super) secrets: HashMap<(String, String), String>,
    pub(super) gateways: Vec<Part>,
    pub(super) routes: Vec<Part>,
}

impl Writer {
    pub(super) fn new() -> Self {
        Self {
            services: Services::default(),
            names: object_names(),
            grants: BTreeSet::new(),
            secrets: HashMap::new(),
            gateways: Vec::new(),
            routes: Vec::new(),
        }
    }
}
