//! A directory of manifests: YAML and JSON files, each with any number of objects.
//!
//! The only module here that reads anything. An object that is wrong is left out by itself, with its place: a file that is not
//! YAML at one place still gives the documents before and after that.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::index::{Change, Index};
use super::key::{Key, Kind};
use super::objects::{Object, key_of};
use crate::config::controller::Settings;
use crate::config::diagnostic::quote;
use crate::config::files::{MAX_CONFIG_BYTES, Sources, digest_of, digest_of_names, names, read_bounded};

/// Files of a directory at most, and objects of all of them.
const MOST: (usize, usize) = (10_000, 200_000);

/// What a directory holds.
#[derive(Debug, Default)]
pub struct Manifests {
    /// The objects, each with its place.
    pub objects: Vec<(Object, At)>,
    /// What is not taken.
    pub problems: Vec<Problem>,
    /// What was read, so that a change of it is seen.
    pub sources: Sources,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// The file.
    pub file: PathBuf,
    /// From 1; 0: the whole.
    pub line: usize,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The name may be anybody's choice.
        let file: String = self.file.to_string_lossy().escape_debug().collect();
        match self.line {
            0 => f.write_str(&file),
            line => write!(f, "{file}:{line}"),
        }
    }
}

/// An object, a document or a file that is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands.
    pub at: At,
    /// What is meant, if that can be told: `TLSRoute dbs/orders`.
    pub object: Option<String>,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.at)?;
        self.object.iter().try_for_each(|object| write!(f, "{object}: "))?;
        f.write_str(&self.reason)
    }
}

impl Manifests {
    /// Reads all files of a directory, without kinds that do not count with these settings. Of two objects with one name the first
    /// file, by its name, has it.
    pub fn read(directory: &Path, settings: &Settings) -> Self {
        let mut manifests = Manifests::default();
        let names = match names(directory) {
            Ok(names) => names,
            Err(error) => {
                manifests.sources.insert(directory.to_owned(), None);
                manifests.problem(directory, 0, None, format!("cannot read: {error}"));
                return manifests;
            }
        };
        manifests.sources.insert(directory.to_owned(), Some(digest_of_names(&names)));
        let files: Vec<_> =
            names.iter().filter(|name| is_manifest(name)).map(|name| directory.join(name)).collect();
        for file in files.iter().take(MOST.0) {
            manifests.read_file(file, settings);
        }
        if files.len() > MOST.0 {
            manifests.problem(directory, 0, None, format!("only the first {} files are read", MOST.0));
        }
        manifests.reject_repeated();
        manifests
    }

    fn read_file(&mut self, file: &Path, settings: &Settings) {
        let content = read_bounded(file, MAX_CONFIG_BYTES).map(zeroize::Zeroizing::new);
        self.sources.insert(file.to_owned(), content.as_ref().ok().map(|content| digest_of(content)));
        let content = content.and_then(|content| match std::str::from_utf8(&content) {
            Ok(_) => Ok(content),
            Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text")),
        });
        match content {
            Ok(content) => {
                for (line, document) in documents(std::str::from_utf8(&content).unwrap_or_default()) {
                    self.read_document(file, line, document, settings);
                }
            }
            Err(error) => self.problem(file, 0, None, format!("cannot read: {error}")),
        }
    }

    /// `line`: of its first line.
    fn read_document(&mut self, file: &Path, line: usize, document: &str, settings: &Settings) {
        let value = match parse(document) {
            Ok(Some(value)) => value,
            // Nothing but comments.
            Ok(None) => return,
            Err(error) => {
                let at = error.location().map_or(0, |at| usize::try_from(at.line()).unwrap_or(1) - 1);
                let reason: String = error.without_snippet().to_string().escape_debug().take(200).collect();
                return self.problem(file, line + at, None, format!("it is not YAML: {reason}"));
            }
        };
        // The first line that is not empty, and no comment: what a person would call the object's.
        let blank = |line: &&str| line.trim().is_empty() || line.starts_with('#') || line.starts_with("---");
        let line = line + document.lines().take_while(blank).count();
        self.read_object(file, line, value, settings);
    }

    fn read_object(&mut self, file: &Path, line: usize, mut value: Value, settings: &Settings) {
        if value["kind"] == "List" && value["items"].is_array() {
            let Value::Array(items) = value["items"].take() else { return };
            return items.into_iter().for_each(|item| self.read_object(file, line, item, settings));
        }
        if self.objects.len() >= MOST.1 {
            return;
        }
        if kind_of(&value).is_some_and(|kind| !kind.is_read(settings)) {
            return;
        }
        let named = name_of(&value);
        // A policy that cannot be read is one that cannot be followed: without it, servers would be spoken to in the clear.
        let kept = (kind_of(&value) == Some(Kind::BackendTlsPolicy)).then(|| value.clone());
        let at = At { file: file.to_owned(), line };
        match Object::read(value) {
            Ok(Some(object)) => self.objects.push((object, at)),
            Ok(None) => {}
            Err(refusal) => {
                self.problem(file, line, named, refusal.to_string());
                let unread = kept.and_then(|value| Object::unread(policy_key(&value)?, &value, refusal));
                self.objects.extend(unread.map(|object| (object, at)));
            }
        }
    }

    fn problem(&mut self, file: &Path, line: usize, object: Option<String>, reason: String) {
        self.problems.push(Problem { at: At { file: file.to_owned(), line }, object, reason });
    }

    fn reject_repeated(&mut self) {
        let mut first: HashMap<Key, At> = HashMap::new();
        let (mut kept, mut problems) = (Vec::with_capacity(self.objects.len()), Vec::new());
        for (object, at) in self.objects.drain(..) {
            if let Some(first) = first.get(&object.key) {
                let reason = format!("it is already in {first}");
                problems.push(Problem { at, object: Some(object.key.to_string()), reason });
                continue;
            }
            first.insert(object.key.clone(), at.clone());
            kept.push((object, at));
        }
        self.objects = kept;
        self.problems.append(&mut problems);
    }

    /// Brings an index to what is here. The places of the objects, and what the changes ask for.
    pub fn put_into(self, index: &mut Index) -> (HashMap<Key, At>, Change) {
        let places: HashMap<Key, At> =
            self.objects.iter().map(|(object, at)| (object.key.clone(), at.clone())).collect();
        let gone: Vec<Key> = index.keys().filter(|key| !places.contains_key(key)).cloned().collect();
        let mut change = Change::Nothing;
        for key in gone {
            change = change.max(index.delete(&key));
        }
        for (object, _) in self.objects {
            change = change.max(index.apply(object));
        }
        (places, change)
    }
}

fn is_manifest(name: &OsStr) -> bool {
    let hidden = name.as_encoded_bytes().starts_with(b".");
    !hidden && matches!(Path::new(name).extension().and_then(OsStr::to_str), Some("yaml" | "yml" | "json"))
}

/// The budget, which is the default, holds against files that expand to more than they are. No text of a file is in an error, as
/// it may be a key. `on` and `n` are names; Kubernetes itself writes `true` and `false`.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! { with_snippet: false, strict_booleans: true }
}

pub(super) fn parse(document: &str) -> Result<Option<Value>, serde_saphyr::Error> {
    serde_saphyr::from_str_with_options(document, options())
}

/// The documents of a file, each with the number of its first line. A line that begins with `---` is nothing else in YAML, also
/// where something before it does not parse.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut first_line, mut at) = (0, 1, 0);
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let is_separator = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\n', '\r']));
        if is_separator && at > start {
            documents.push((first_line, &text[start..at]));
            (start, first_line) = (at, number);
        }
        at += line.len();
    }
    documents.push((first_line, &text[start..]));
    documents
}

fn kind_of(value: &Value) -> Option<Kind> {
    let version = value["apiVersion"].as_str()?;
    Kind::of(version.split_once('/').map_or("", |(group, _)| group), value["kind"].as_str()?)
}

/// What identifies the policy that a document is, if that can be told.
fn policy_key(value: &Value) -> Option<Key> {
    let metadata = &value["metadata"];
    let namespace = match &metadata["namespace"] {
        Value::Null => "",
        namespace => namespace.as_str()?,
    };
    key_of(Kind::BackendTlsPolicy, namespace, metadata["name"].as_str()?).ok()
}

/// What a document seems to be.
fn name_of(value: &Value) -> Option<String> {
    let text = |value: &Value| value.as_str().map(|text| quote(text).trim_matches('`').to_owned());
    let kind = text(&value["kind"])?;
    let name = text(&value["metadata"]["name"])?;
    Some(match text(&value["metadata"]["namespace"]) {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    })
}
