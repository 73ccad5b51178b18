//! `snisplice import`: other programs' configurations as objects of the Gateway API, or as snisplice's TOML.
//!
//! ```text
//! files ─> a reader for each kind ─> Model: listeners, routes, pools ─> a writer for each form ─> text
//!                     └── notes: what has no equal, with its place ──────────────┘
//! ```
//! Pure: text in, text out. A reader names every part that it does not know; nothing is dropped without a word. What the
//! model cannot say as such is an extra: a key that TOML has and the Gateway API has not.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod auxiliary;
mod envoy;
mod haproxy;
mod istio;
mod kong;
mod model;
mod names;
mod nginx;
mod objects;
mod tcp_services;
#[cfg(test)]
mod tests;
mod to_gateway_api;
mod to_toml;
mod traefik;
mod values;
mod words;
mod yaml;

pub use model::Verdict;

use crate::config::quote;
use auxiliary::Auxiliary;
use model::{Model, Note};
use objects::Cluster;
use std::collections::HashSet;
use yaml::{Item, Node};

/// API groups of objects that say nothing about who reaches what.
const ASIDE: [&str; 7] =
    ["", "apps", "autoscaling", "batch", "discovery.k8s.io", "policy", "rbac.authorization.k8s.io"];

/// Bytes of one file.
pub const LARGEST_FILE: u64 = 8 << 20;

/// A configuration.
#[derive(Clone, Debug)]
pub struct File {
    /// How messages call it.
    pub name: String,
    /// UTF-8.
    pub text: String,
}

/// In what form the result is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// YAML documents.
    GatewayApi,
    /// For `snisplice run`.
    Toml,
}

/// The result.
#[derive(Clone, Debug)]
pub struct Imported {
    /// With the messages as comments.
    pub text: String,
    /// In the order of the files: what the message is about, and "FILE:LINE: message".
    pub messages: Vec<(Verdict, String)>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is of no kind that is known, or not well-formed.
    #[error("{0}")]
    Unreadable(String),
    /// Nothing in the files is a route.
    #[error("no route is found in these files")]
    Nothing,
    /// A file that uses a long list again and again.
    #[error("the result would be too large")]
    TooLarge,
}

/// Reads the files, which may be of several kinds, as one configuration.
pub fn import(files: &[File], form: Form) -> Result<Imported, Vec<ImportError>> {
    let mut errors = Vec::new();
    let mut model = read(files, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    if form == Form::Toml {
        model.for_one_process();
    }
    model.tidy();
    if model.is_too_large() {
        return Err(vec![ImportError::TooLarge]);
    }
    if model.listeners.is_empty() {
        let unread = |note: &Note| ImportError::Unreadable(format!("{}: {}", place(files, note), note.text));
        errors.extend(model.notes.iter().map(unread));
        errors.push(ImportError::Nothing);
        return Err(errors);
    }
    let mut notes = std::mem::take(&mut model.notes);
    let (parts, separator) = match form {
        Form::GatewayApi => (to_gateway_api::write(model), "---\n"),
        Form::Toml => (to_toml::write(model), "\n"),
    };
    let mut text = format!("# Made by `snisplice import` from {}.\n", names_of(files));
    notes.sort_by_key(|note| note.at);
    comments(files, &notes, &mut text);
    for part in &parts {
        if !part.text.is_empty() {
            text.push_str(separator);
        }
        comments(files, &part.notes, &mut text);
        text.push_str(&part.text);
    }
    notes.extend(parts.into_iter().flat_map(|part| part.notes));
    notes.sort_by_key(|note| note.at);
    let message = |note: &Note| {
        (note.verdict, format!("{}: {}: {}", place(files, note), note.verdict.word(), note.text))
    };
    let mut messages: Vec<_> = notes.iter().map(message).collect();
    // Pools that share what is lost say it each.
    let mut said = HashSet::new();
    messages.retain(|(_, message)| said.insert(message.clone()));
    Ok(Imported { text, messages })
}

fn names_of(files: &[File]) -> String {
    files.iter().map(|file| quote(&file.name)).collect::<Vec<_>>().join(", ")
}

fn place(files: &[File], note: &Note) -> String {
    let name = files.get(note.at.file).map_or("", |file| file.name.as_str());
    // A file's name may have any character, too.
    let name: String = name.chars().flat_map(char::escape_debug).collect();
    format!("{name}:{}", note.at.line)
}

/// In a line of their own each, so no text of the input leaves its comment.
fn comments(files: &[File], notes: &[Note], text: &mut String) {
    for note in notes {
        let word = match note.verdict {
            Verdict::LeftOut => note.verdict.word().to_owned(),
            verdict => verdict.word().to_uppercase(),
        };
        text.push_str(&format!("# {word} ({}): {}\n", place(files, note), note.text));
    }
}

fn read(files: &[File], errors: &mut Vec<ImportError>) -> Model {
    let mut model = Model::default();
    let mut auxiliary = Auxiliary::default();
    let (mut haproxy, mut nginx, mut documents): (_, _, Vec<(usize, Vec<Node>)>) =
        (Vec::new(), Vec::new(), Vec::new());
    let unreadable = |file: &File, error: yaml::Unreadable| {
        ImportError::Unreadable(format!("{}:{}: {}", quote(&file.name), error.line, error.message))
    };
    for (index, file) in files.iter().enumerate() {
        let text = &file.text;
        if haproxy::is_one(text) {
            haproxy.push(index);
        } else if nginx::is_one(text) {
            nginx.push(index);
        } else {
            match yaml::documents(text) {
                Ok(read)
                    if read
                        .iter()
                        .any(|node| Item::document(node, index).fields().is_some_and(|f| is_known(&f))) =>
                {
                    documents.push((index, read));
                }
                // It was meant to be YAML.
                Err(error) if text.contains("apiVersion") || text.contains("static_resources") => {
                    errors.push(unreadable(file, error));
                }
                _ => auxiliary.add(index, &file.name, text),
            }
        }
    }
    let mut cluster = Cluster::default();
    let mut entry_points = traefik::EntryPoints::new();
    for (index, nodes) in &documents {
        for node in nodes {
            let item = Item::document(node, *index);
            match item.fields() {
                Some(fields) if envoy::is_one(&fields) => envoy::read(&fields, &mut model),
                Some(fields) if fields.peek("entryPoints").is_some() => {
                    traefik::entry_points(&fields, &mut entry_points, &mut model.notes);
                }
                _ => cluster.add(node, *index, &mut model.notes),
            }
        }
    }
    traefik::read(&cluster, entry_points, &mut model);
    istio::read(&cluster, &mut model);
    kong::read(&cluster, &mut model);
    for object in &cluster.objects {
        if tcp_services::is_one(object) {
            tcp_services::read(&cluster, object, &mut model);
        } else if !is_read(object) {
            let text = format!("{} {}: not of a kind that is imported", quote(object.kind), object.name);
            let at = object.fields.at();
            let aside = ASIDE.contains(&object.group);
            model.notes.push(if aside { Note::left_out(at, text) } else { Note::lost(at, text) });
        }
    }
    for index in haproxy {
        haproxy::read(&files[index].text, index, &mut auxiliary, &mut model);
    }
    let mut stream = nginx::Stream::default();
    for index in nginx {
        if let Err(error) = nginx::add(&files[index].text, index, &mut auxiliary, &mut stream) {
            errors.push(unreadable(&files[index], error));
        }
    }
    stream.finish(&mut model);
    if auxiliary.is_exhausted() {
        errors.push(ImportError::TooLarge);
    }
    for left in auxiliary.left() {
        let why = if left.shares_name {
            "another file has its name, and no path says that this one is meant"
        } else {
            "of no kind that is known: Kubernetes objects (Traefik, Istio, Kong, ingress-nginx), HAProxy, nginx, Envoy"
        };
        errors.push(ImportError::Unreadable(format!("{}: {why}", quote(&files[left.file].name))));
    }
    model
}

/// Whether a document is one of those that are read.
fn is_known(fields: &yaml::Fields<'_>) -> bool {
    envoy::is_one(fields)
        || fields.peek("entryPoints").is_some()
        || (fields.peek("apiVersion").is_some() && fields.peek("kind").is_some())
}

/// Whether a reader has the object, or looks into it.
fn is_read(object: &objects::Manifest<'_>) -> bool {
    traefik::GROUPS.contains(&object.group)
        || [istio::GROUP, kong::GROUP].contains(&object.group)
        || (object.group, object.kind) == ("", "Service")
}
