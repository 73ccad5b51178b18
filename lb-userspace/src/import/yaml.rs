//! YAML (and JSON, which is YAML) as a tree whose every part knows its line, and which of its parts nobody has read.

use super::model::{At, Note};
use crate::config::quote;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};
use std::cell::Cell;
use std::fmt;

/// Parts of all documents of a file together, which bounds what aliases can make of it.
const MOST_NODES: usize = 500_000;

/// A part of a document.
#[derive(Debug)]
pub(super) struct Node {
    line: usize,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Nothing,
    /// Booleans and numbers, too.
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    fn count(&self) -> usize {
        1 + match &self.value {
            Value::Nothing | Value::Text(_) => 0,
            Value::List(nodes) => nodes.iter().map(Node::count).sum(),
            Value::Map(entries) => entries.iter().map(|(_, node)| node.count()).sum(),
        }
    }
}

/// Why a text is not read.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {message}")]
pub(super) struct Unreadable {
    pub(super) line: usize,
    pub(super) message: String,
}

/// The documents of a file.
pub(super) fn documents(text: &str) -> Result<Vec<Node>, Unreadable> {
    let mut options = serde_saphyr::options! { with_snippet: false };
    options.alias_limits.max_total_replayed_events = 50_000;
    let mut bytes = text.as_bytes();
    let (mut documents, mut nodes) = (Vec::new(), 0);
    for document in serde_saphyr::read_with_options::<_, Node>(&mut bytes, options) {
        let document = document.map_err(|error| Unreadable {
            line: error.location().map_or(1, |location| line(&location)),
            message: one_line(&error.without_snippet().to_string()),
        })?;
        nodes += document.count();
        if nodes > MOST_NODES {
            let message = format!("more than {MOST_NODES} parts in one file");
            return Err(Unreadable { line: document.line, message });
        }
        documents.push(document);
    }
    Ok(documents)
}

/// Messages quote the input.
fn one_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().replace(char::is_control, " ")
}

fn line(location: &Location) -> usize {
    usize::try_from(location.line()).unwrap_or(usize::MAX)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { line: line(&referenced), value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        // The place of a part with a key is that of the key.
        while let Some((key, mut node)) = entries.next_entry::<Spanned<String>, Node>()? {
            node.line = line(&key.referenced);
            map.push((key.value, node));
        }
        Ok(Value::Map(map))
    }
}

/// A node and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Item<'a> {
    node: &'a Node,
    pub(super) at: At,
    /// Its keys and indexes from the document's start.
    pub(super) path: String,
}

impl<'a> Item<'a> {
    pub(super) fn document(node: &'a Node, file: usize) -> Self {
        Self { node, at: At { file, line: node.line }, path: String::new() }
    }

    fn child(&self, node: &'a Node, path: String) -> Self {
        Self { node, at: At { file: self.at.file, line: node.line }, path }
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The keys of a map.
    pub(super) fn fields(&self) -> Option<Fields<'a>> {
        let Value::Map(entries) = &self.node.value else { return None };
        Some(Fields { item: self.clone(), entries, read: vec![Cell::new(false); entries.len()] })
    }

    fn items(&self) -> Option<Vec<Self>> {
        let Value::List(nodes) = &self.node.value else { return None };
        let child = |(index, node)| self.child(node, format!("{}[{index}]", self.path));
        Some(nodes.iter().enumerate().map(child).collect())
    }

    /// Names this part as one that is not taken over, because of this.
    pub(super) fn lost(&self, why: &str, notes: &mut Vec<Note>) {
        notes.push(Note::lost(self.at, format!("{}: {why}", self.said())));
    }

    /// How the input says it.
    pub(super) fn said(&self) -> String {
        match &self.node.value {
            Value::Text(text) => quote(&format!("{}: {text}", self.short_path())),
            _ => quote(&self.short_path()),
        }
    }

    /// Its last keys: the line says the rest.
    fn short_path(&self) -> String {
        let keys: Vec<&str> = self.path.rsplitn(4, '.').take(3).collect();
        keys.into_iter().rev().collect::<Vec<_>>().join(".")
    }
}

/// The keys of a map. What is asked for and has the expected form counts as read.
pub(super) struct Fields<'a> {
    item: Item<'a>,
    entries: &'a [(String, Node)],
    read: Vec<Cell<bool>>,
}

impl<'a> Fields<'a> {
    pub(super) fn at(&self) -> At {
        self.item.at
    }

    /// Without counting it as read.
    pub(super) fn peek(&self, key: &str) -> Option<Item<'a>> {
        let index = self.entries.iter().position(|(known, _)| known == key)?;
        Some(self.item.child(&self.entries[index].1, self.path(key)))
    }

    /// Every part below has it: it is not longer than what a message shows.
    fn path(&self, key: &str) -> String {
        const LONGEST: usize = 100;
        let key = key.chars().take(LONGEST);
        let begin = if self.item.path.len() > 4 * LONGEST { "" } else { &self.item.path };
        begin.chars().chain((!begin.is_empty()).then_some('.')).chain(key).collect()
    }

    pub(super) fn ignore(&self, keys: &[&str]) {
        for ((known, _), read) in self.entries.iter().zip(&self.read) {
            if keys.contains(&known.as_str()) {
                read.set(true);
            }
        }
    }

    fn read<T>(&self, key: &str, take: impl Fn(&Item<'a>) -> Option<T>) -> Option<T> {
        let taken = take(&self.peek(key)?)?;
        self.ignore(&[key]);
        Some(taken)
    }

    /// A text, number or boolean, and how it is said there.
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.read(key, Item::text)
    }

    pub(super) fn is_true(&self, key: &str) -> bool {
        self.text(key) == Some("true")
    }

    pub(super) fn parsed<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.read(key, |item| item.text()?.parse().ok())
    }

    pub(super) fn map(&self, key: &str) -> Option<Fields<'a>> {
        self.read(key, Item::fields)
    }

    pub(super) fn list(&self, key: &str) -> Vec<Item<'a>> {
        self.read(key, Item::items).unwrap_or_default()
    }

    /// The texts of a list.
    pub(super) fn texts(&self, key: &str) -> Vec<&'a str> {
        self.read(key, |item| item.items()?.iter().map(Item::text).collect()).unwrap_or_default()
    }

    /// Every key with its value; all count as read.
    pub(super) fn all(&self) -> Vec<(&'a str, Item<'a>)> {
        let item = |(key, node): &'a (String, Node)| (key.as_str(), self.item.child(node, self.path(key)));
        for read in &self.read {
            read.set(true);
        }
        self.entries.iter().map(item).collect()
    }

    /// Names what nobody has read.
    pub(super) fn rest(&self, notes: &mut Vec<Note>) {
        for ((key, node), read) in self.entries.iter().zip(&self.read) {
            if !read.get() && !matches!(node.value, Value::Nothing) {
                self.item.child(node, self.path(key)).lost("not taken over", notes);
            }
        }
    }
}
