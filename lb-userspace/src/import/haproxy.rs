//! HAProxy: `frontend`, `listen` and `backend` sections in mode tcp.

mod backend;
mod bases;
mod condition;
mod frontend;
mod options;
mod section;

use super::auxiliary::Auxiliary;
use super::model::{Model, Note};
use super::words::lines;
use crate::config::quote;
use bases::Bases;
use frontend::{Frontend, Known, said_addresses};
use section::{Section, Settings, sections};
use std::collections::{BTreeMap, HashSet};

/// Whether a text is a configuration of HAProxy: a section's keyword begins a line, where no YAML or nginx has it.
pub(super) fn is_one(text: &str) -> bool {
    text.lines().any(|line| {
        let mut words = line.split_whitespace();
        let keyword = words.next().unwrap_or_default();
        let named = ["frontend", "backend", "listen", "defaults"].contains(&keyword);
        let rest = words.next();
        line.starts_with(keyword)
            && match rest {
                None => ["global", "defaults"].contains(&keyword),
                Some(rest) => {
                    named && !rest.starts_with([':', '{', '=']) && !line.trim_end().ends_with([';', '{'])
                }
            }
    })
}

/// Takes over one file.
pub(super) fn read(text: &str, file: usize, auxiliary: &mut Auxiliary<'_>, model: &mut Model) {
    let all = lines(text, file);
    let sections = sections(&all, &mut model.notes);
    let mut defaults: BTreeMap<&str, Settings> = BTreeMap::new();
    let mut current = Settings::default();
    let mut proxies = Vec::new();
    let mut bases = Bases::default();
    for section in &sections {
        match section.kind {
            "global" => global(section, &mut bases, &mut model.notes),
            "defaults" => {
                let mut settings =
                    section.from.and_then(|name| defaults.get(name)).cloned().unwrap_or_default();
                for line in &section.lines {
                    if !settings.read(line, &mut model.notes) {
                        model.notes.push(line.unknown());
                    }
                }
                defaults.insert(section.name, settings.clone());
                current = settings;
            }
            "frontend" | "backend" | "listen" => {
                let settings = section.from.and_then(|name| defaults.get(name)).unwrap_or(&current);
                proxies.push((section, settings.clone()));
            }
            kind => {
                let text = format!("section {}: not taken over", quote(&format!("{kind} {}", section.name)));
                let note = if ["resolvers", "mailers", "ring", "userlist"].contains(&kind) {
                    Note::left_out(section.at, text)
                } else {
                    Note::lost(section.at, text)
                };
                model.notes.push(note);
            }
        }
    }
    let mut backends = BTreeMap::new();
    for (section, settings) in &proxies {
        if section.kind != "frontend" {
            let pool = backend::backend(section, settings.clone(), &bases, &mut model.notes);
            if section.kind == "backend" || !pool.is_empty() {
                backends.insert(section.name, pool);
            }
        }
    }
    let said: HashSet<_> = proxies.iter().flat_map(|(section, _)| said_addresses(section)).collect();
    let mut used = HashSet::new();
    for (section, settings) in proxies {
        if section.kind != "backend" {
            let known = Known { bases: &bases, backends: &backends, said: &said };
            Frontend::new(section, settings, known, &mut used, auxiliary).read(model);
        }
    }
    for (name, backend) in &backends {
        if !used.contains(*name) {
            let text = format!("backend {}: no frontend that is taken over uses it", quote(name));
            model.notes.push(Note::left_out(backend.at, text));
        }
    }
}

fn global(section: &Section<'_>, bases: &mut Bases, notes: &mut Vec<Note>) {
    let mut words: Vec<&str> = Vec::new();
    for line in &section.lines {
        match line.words.as_slice() {
            [keyword, value] if keyword == "crt-base" => bases.certificate_directory = Some(value.clone()),
            [keyword, value] if keyword == "ca-base" => bases.authority_directory = Some(value.clone()),
            [keyword, value] if keyword == "ssl-server-verify" => bases.no_verify = value == "none",
            [keyword, ..] => words.push(keyword),
            [] => {}
        }
    }
    words.dedup();
    if !words.is_empty() {
        let text = format!("`global`: of HAProxy's own process ({})", quote(&words.join(", ")));
        notes.push(Note::left_out(section.at, text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_recognised_by_its_sections() {
        for text in ["global\n daemon\n", "frontend f\n", "# c\ndefaults\n", "defaults base from other\n"] {
            assert!(is_one(text), "{text}");
        }
        for text in
            ["global:\n  a: b\n", "kind: List\n", "a: |\n  global\n", "upstream backend {\n", "listen 443;\n"]
        {
            assert!(!is_one(text), "{text}");
        }
    }
}
