//! Kubernetes objects of a file, and the Services among them.

use super::model::{Note, Object};
use super::yaml::{Fields, Item, Node};
use crate::config::quote;
use std::collections::{BTreeMap, HashMap};

/// What several kinds of objects need from all files.
#[derive(Default)]
pub(super) struct Cluster<'a> {
    pub(super) objects: Vec<Manifest<'a>>,
    pub(super) services: HashMap<Object, Service>,
}

/// One object.
pub(super) struct Manifest<'a> {
    /// Of `apiVersion`.
    pub(super) group: &'a str,
    pub(super) kind: &'a str,
    pub(super) name: Object,
    pub(super) annotations: Option<Fields<'a>>,
    pub(super) fields: Fields<'a>,
}

/// What a Service says of its ports and pods.
#[derive(Default)]
pub(super) struct Service {
    ports: Vec<Port>,
    pub(super) selector: BTreeMap<String, String>,
}

struct Port {
    name: String,
    number: u16,
    target: String,
}

impl<'a> Cluster<'a> {
    /// Adds the objects of a document, of which a List has several.
    pub(super) fn add(&mut self, document: &'a Node, file: usize, notes: &mut Vec<Note>) {
        self.add_item(&Item::document(document, file), notes);
    }

    fn add_item(&mut self, item: &Item<'a>, notes: &mut Vec<Note>) {
        let Some(fields) = item.fields() else { return item.lost("not an object", notes) };
        let (Some(version), Some(kind)) = (fields.text("apiVersion"), fields.text("kind")) else {
            return item.lost("not an object", notes);
        };
        if version == "v1" && kind == "List" {
            for item in fields.list("items") {
                self.add_item(&item, notes);
            }
            return;
        }
        let metadata = fields.map("metadata");
        let text = |key| metadata.as_ref().and_then(|metadata| metadata.text(key));
        let Some(name) = text("name").filter(|name| is_object_name(name)) else {
            let text = format!("{}: it has no name of an object", quote(kind));
            return notes.push(Note::lost(fields.at(), text));
        };
        let namespace = text("namespace").filter(|namespace| is_object_name(namespace)).unwrap_or("default");
        let object = Manifest {
            group: version.split_once('/').map_or("", |(group, _)| group),
            kind,
            name: Object::new(namespace, name),
            annotations: metadata.as_ref().and_then(|metadata| metadata.map("annotations")),
            fields,
        };
        if (object.group, object.kind) == ("", "Service") {
            self.services.insert(object.name.clone(), Service::read(&object.fields));
        }
        self.objects.push(object);
    }

    /// The number of a port that is given by number or name. A Service that is not among the files has no names.
    pub(super) fn port(&self, service: &Object, port: &str) -> Option<u16> {
        let known = self.services.get(service).into_iter().flat_map(|service| &service.ports);
        let named = || known.into_iter().find(|known| known.name == port).map(|known| known.number);
        port.parse().ok().filter(|&number| number > 0).or_else(named)
    }

    /// The port of a Service that has only one.
    pub(super) fn only_port(&self, service: &Object) -> Option<u16> {
        match self.services.get(service)?.ports.as_slice() {
            [only] => Some(only.number),
            _ => None,
        }
    }

    /// The pods' port behind a port.
    pub(super) fn target_port(&self, service: &Object, port: u16) -> Option<String> {
        let ports = &self.services.get(service)?.ports;
        Some(ports.iter().find(|known| known.number == port)?.target.clone())
    }
}

impl Service {
    fn read(fields: &Fields<'_>) -> Self {
        let Some(spec) = fields.map("spec") else { return Self::default() };
        let port = |item: &Item<'_>| {
            let fields = item.fields()?;
            let number: u16 = fields.parsed("port")?;
            let target = fields.text("targetPort").map_or_else(|| number.to_string(), str::to_owned);
            Some(Port { name: fields.text("name").unwrap_or_default().to_owned(), number, target })
        };
        Self {
            ports: spec.list("ports").iter().filter_map(port).collect(),
            selector: labels(&spec, "selector"),
        }
    }
}

/// A map of texts.
pub(super) fn labels(fields: &Fields<'_>, key: &str) -> BTreeMap<String, String> {
    let entries = fields.map(key).map(|labels| labels.all()).unwrap_or_default();
    entries.iter().filter_map(|(key, item)| Some(((*key).to_owned(), item.text()?.to_owned()))).collect()
}

/// RFC 1123, as Kubernetes has it for most objects: also without danger in a shell.
pub(super) fn is_object_name(name: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let label = |label: &str| {
        label.bytes().all(|b| alphanumeric(b) || b == b'-')
            && label.bytes().next().is_some_and(alphanumeric)
            && label.bytes().last().is_some_and(alphanumeric)
    };
    name.len() <= 253 && name.split('.').all(label)
}
