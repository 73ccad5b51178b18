//! nginx: the `stream` block, with maps of `$ssl_preread_server_name`.

mod map;
mod server;
mod syntax;
mod upstream;

use super::auxiliary::Auxiliary;
use super::model::{ANY, Model, Note};
use super::yaml::Unreadable;
use crate::config::quote;
use map::{Map, is_name, names_of};
use server::{Listeners, ReadServer};
use std::collections::{BTreeMap, HashSet};
use syntax::Directive;
use upstream::{Pools, Upstream};

/// Directives of `stream` that every server inherits.
const MOST_DEFAULTS: usize = 200;

/// Whether a text is a configuration of nginx.
pub(super) fn is_one(text: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim();
        let opens = |name: &str| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([' ', '\t', '{']) && rest.contains('{'))
        };
        ["stream", "server", "upstream", "map", "http"].into_iter().any(opens)
    })
}

/// What the files' `stream` blocks define, for all of them: one may hold the maps and another the servers.
#[derive(Default)]
pub(super) struct Stream {
    maps: BTreeMap<String, Map>,
    upstreams: BTreeMap<String, Upstream>,
    servers: Vec<Directive>,
    /// What servers have unless they say it themselves.
    defaults: Vec<Directive>,
    notes: Vec<Note>,
}

/// Adds a file to what is known.
pub(super) fn add(
    text: &str,
    file: usize,
    auxiliary: &mut Auxiliary<'_>,
    stream: &mut Stream,
) -> Result<(), Unreadable> {
    let mut aside: Vec<Directive> = Vec::new();
    for directive in syntax::parse(text, file)? {
        match directive.name() {
            "stream" if directive.block.is_some() => {
                for inner in directive.block.unwrap_or_default() {
                    stream.add(inner, auxiliary);
                }
            }
            "map" | "upstream" | "server" if directive.block.is_some() => stream.add(directive, auxiliary),
            "http" | "mail" => {
                let text = format!("{}: only `stream` is taken over", directive.quoted());
                stream.notes.push(Note::lost(directive.at, text));
            }
            "include" | "load_module" => stream.notes.push(included(&directive)),
            _ => aside.push(directive),
        }
    }
    if let Some(first) = aside.first() {
        let mut names: Vec<_> = aside.iter().map(Directive::name).collect();
        names.dedup();
        let text = format!("{}: of nginx itself", quote(&names.join(", ")));
        stream.notes.push(Note::left_out(first.at, text));
    }
    Ok(())
}

/// Another file may be among the given ones.
fn included(directive: &Directive) -> Note {
    let text = format!("{}: give the file, too, if it has a part of `stream`", directive.quoted());
    Note::left_out(directive.at, text)
}

impl Stream {
    fn add(&mut self, directive: Directive, auxiliary: &mut Auxiliary<'_>) {
        let words: Vec<&str> = directive.words.iter().map(String::as_str).collect();
        match (words.as_slice(), &directive.block) {
            (["map", source, variable], Some(block)) => {
                let map = self.map(source, block, auxiliary);
                self.maps.insert((*variable).to_owned(), map);
            }
            (["upstream", name], Some(block)) => {
                let upstream = Upstream::read(directive.at, block);
                self.upstreams.insert((*name).to_owned(), upstream);
            }
            (["server"], Some(_)) => self.servers.push(directive),
            (["include", ..], _) => self.notes.push(included(&directive)),
            _ if directive.is_aside() => self.notes.push(directive.aside()),
            (_, None) if self.defaults.len() < MOST_DEFAULTS => self.defaults.push(directive),
            _ => self.notes.push(directive.unknown()),
        }
    }

    fn map(&mut self, source: &str, block: &[Directive], auxiliary: &mut Auxiliary<'_>) -> Map {
        let by_wildcard = block.iter().any(|directive| directive.words == ["hostnames"]);
        let mut map = Map { source: source.to_owned(), entries: Vec::new() };
        for directive in block {
            let words: Vec<&str> = directive.words.iter().map(String::as_str).collect();
            match words.as_slice() {
                ["hostnames" | "volatile"] => {}
                ["include", path] => {
                    match auxiliary.take(path).and_then(|(file, text)| syntax::parse(text, file).ok()) {
                        Some(inner) => {
                            inner.iter().for_each(|entry| self.map_entry(entry, by_wildcard, &mut map))
                        }
                        None => {
                            let text = format!("{}: give the file, too", directive.quoted());
                            self.notes.push(Note::lost(directive.at, text));
                        }
                    }
                }
                _ => self.map_entry(directive, by_wildcard, &mut map),
            }
        }
        map
    }

    fn map_entry(&mut self, directive: &Directive, by_wildcard: bool, map: &mut Map) {
        let hosts = match directive.words.as_slice() {
            [key, _] if key == "default" => Some(vec![ANY.to_owned()]),
            // A map of anything else is named where a server uses it.
            [_, _] if !is_name(&map.source) => return,
            [key, _] => names_of(key.strip_prefix('\\').unwrap_or(key), by_wildcard),
            _ => None,
        };
        match (hosts, directive.words.last()) {
            (Some(hosts), Some(value)) => map.entries.push((directive.at, hosts, value.clone())),
            _ => self.notes.push(directive.unknown()),
        }
    }

    /// Takes over all servers.
    pub(super) fn finish(mut self, model: &mut Model) {
        let mut pools = Pools::new(&self.upstreams);
        let mut named_once = HashSet::new();
        let mut listeners = Listeners::of(&self.servers);
        for server in &self.servers {
            let own = server.block.as_deref().unwrap_or_default();
            // A list of clients takes the place of the whole other one.
            let name = |directive: &Directive| match directive.name() {
                "deny" => "allow".to_owned(),
                name => name.to_owned(),
            };
            let said: HashSet<String> = own.iter().map(name).collect();
            let mut read = ReadServer::new(server.at);
            own.iter().for_each(|directive| read.directive(directive));
            for directive in self.defaults.iter().filter(|directive| !said.contains(&name(directive))) {
                // Each is named once, not for every server.
                let known = read.notes.len();
                read.directive(directive);
                if !named_once.insert(directive.at) {
                    read.notes.truncate(known);
                }
            }
            read.finish(&self.maps, &mut pools, &mut listeners, model);
            if model.is_too_large() {
                return;
            }
        }
        for (name, upstream) in &self.upstreams {
            if !pools.has(name) {
                let text = format!("upstream {}: no server that is taken over uses it", quote(name));
                model.notes.push(Note::left_out(upstream.at, text));
            }
        }
        model.notes.append(&mut self.notes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_recognised_by_its_blocks() {
        for text in ["events {}\nstream {\n", "map $a $b {\n", "upstream u { server a:1; }"] {
            assert!(is_one(text), "{text}");
        }
        for text in ["map: {a: b}", "server: {", "frontend f\n", "{\"stream\": {", "streams {"] {
            assert!(!is_one(text), "{text}");
        }
    }
}
