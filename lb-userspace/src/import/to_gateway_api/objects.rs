//! Parts of the objects, and of what is said of them.

use crate::import::model::{Extra, Note, Part};
use crate::import::names::Names;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub(super) const GROUP: &str = "gateway.networking.k8s.io";
pub(super) const API: &str = "gateway.networking.k8s.io/v1";
pub(super) const CLASS: &str = "snisplice";
pub(super) const CONTROLLER: &str = "snisplice.dev/gateway";

/// The API's limits.
pub(super) const MOST_LISTENERS: usize = 64;
pub(super) const MOST_BACKENDS: usize = 16;

/// Keys are written in the order of the alphabet, so that the text is the same whether or not serde_json keeps the order.
pub(super) fn part(notes: Vec<Note>, object: &Value) -> Part {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    let text = serde_saphyr::to_string_with_options(object, options);
    // Maps, lists and strings can all be written.
    Part { notes, text: text.unwrap_or_default() }
}

/// With its keys in the order of the alphabet.
pub(super) fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<String, Value> = map.into_iter().collect();
            sorted.into_iter().collect()
        }
        other => other,
    }
}

/// Names of objects, and of listeners: those that are labels, too.
pub(super) fn object_names() -> Names {
    Names::new(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-', 63)
}

/// What the Gateway API has no words for; what the input has only by default is not missed.
pub(super) fn lost(extra: &Extra) -> Option<Note> {
    let restricts = if extra.restricts { " (restricts who may connect)" } else { "" };
    let text = format!("{}: the Gateway API has no equal{restricts}", extra.said);
    (!extra.said.is_empty()).then(|| Note::lost(extra.at, text))
}

/// Something in one namespace that may be named from another.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Grant {
    /// Namespace and kind of what names it.
    pub(super) from: (String, &'static str),
    /// Namespace and kind of what is named.
    pub(super) to: (String, &'static str),
}

impl Grant {
    pub(super) fn object(&self, name: &str) -> Value {
        json!({
            "apiVersion": API,
            "kind": "ReferenceGrant",
            "metadata": { "name": name, "namespace": self.to.0 },
            "spec": {
                "from": [{ "group": GROUP, "kind": self.from.1, "namespace": self.from.0 }],
                "to": [{ "group": "", "kind": self.to.1 }],
            },
        })
    }
}

/// One listener of a Gateway, on one port.
pub(super) struct Section {
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) hostname: Option<String>,
    pub(super) protocol: &'static str,
    pub(super) tls: Option<Value>,
}

/// Which sections a route is attached to: those with one of its names, or one for all names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tls,
    Tcp,
}

impl Section {
    pub(super) fn again(&self) -> Self {
        Self {
            name: self.name.clone(),
            port: self.port,
            hostname: self.hostname.clone(),
            protocol: self.protocol,
            tls: self.tls.clone(),
        }
    }
}
