//! The modules of a crate, and what their names stand for.

use std::{collections::BTreeMap, io, path::Path};

use anyhow::{Context as _, Result};

use super::source::{self, Import};

/// A crate's modules; the first is its root.
pub(super) struct Crate {
    modules: Vec<Module>,
}

struct Module {
    parent: Option<usize>,
    /// The file it stands in, by its path from the root of the workspace.
    file: String,
    children: BTreeMap<String, usize>,
    source: source::Module,
}

/// One file needs another: an arrow at the level at which both are in different nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Arrow {
    /// A file, or a directory with all that is in it.
    pub(super) from: String,
    pub(super) to: String,
    /// Where it says so: `file:line`, and the file that it needs.
    pub(super) because: String,
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Found {
    Module(usize),
    /// Something else that is defined in this module.
    Item(usize),
    /// Something of another crate.
    Outside,
}

/// Reads a file: none where there is no such one.
pub(super) type Reader<'r> = &'r dyn Fn(&str) -> io::Result<Option<String>>;

/// How many names may stand for one another: beyond that they stand for nothing.
const DEPTH: usize = 16;

impl Crate {
    /// Reads all files of a crate, from its root file on.
    pub(super) fn read(root: &str, reader: Reader<'_>) -> Result<Self> {
        let mut new = Self { modules: Vec::new() };
        let text = reader(root)?.with_context(|| format!("{root} is missing"))?;
        new.add_file(None, root, parent_dir(root), &text, reader)?;
        Ok(new)
    }

    /// Adds the module of a file whose children lie in `dir`.
    fn add_file(
        &mut self,
        parent: Option<usize>,
        file: &str,
        dir: String,
        text: &str,
        reader: Reader<'_>,
    ) -> Result<usize> {
        let source = source::Module::parse(text).with_context(|| format!("reading {file}"))?;
        self.add(parent, file, dir, source, reader)
    }

    fn add(
        &mut self,
        parent: Option<usize>,
        file: &str,
        dir: String,
        mut source: source::Module,
        reader: Reader<'_>,
    ) -> Result<usize> {
        let own = self.modules.len();
        let (inline, files) = (std::mem::take(&mut source.inline), std::mem::take(&mut source.files));
        self.modules.push(Module { parent, file: file.to_owned(), children: BTreeMap::new(), source });
        for (name, source) in inline {
            let dir = join(&dir, source.dir.as_ref().unwrap_or(&name));
            let child = self.add(Some(own), file, dir, source, reader)?;
            self.modules[own].children.insert(name, child);
        }
        for (name, path) in files {
            // Files, and where the files of their own children lie.
            let candidates = match path {
                Some(path) => vec![beside(join(&parent_dir(file), &path))],
                None => vec![
                    (join(&dir, &format!("{name}.rs")), join(&dir, &name)),
                    beside(join(&dir, &format!("{name}/mod.rs"))),
                ],
            };
            let mut child = None;
            for (file, dir) in candidates {
                if let Some(text) = reader(&file)? {
                    child = Some(self.add_file(Some(own), &file, dir, &text, reader)?);
                    break;
                }
            }
            let child = child.with_context(|| format!("{file} has a module {name} without a file"))?;
            self.modules[own].children.insert(name, child);
        }
        Ok(own)
    }

    /// Every arrow between files of the crate.
    pub(super) fn arrows(&self) -> impl Iterator<Item = Arrow> {
        (0..self.modules.len()).flat_map(|from| self.needs(from)).filter_map(|(from, to, line)| {
            let [from_node, to_node] = self.nodes(from, to)?;
            let [from, to] = [from, to].map(|module| &self.modules[module].file);
            Some(Arrow { from: from_node, to: to_node, because: format!("{from}:{line} needs {to}") })
        })
    }

    /// What a module needs: it, the module that defines it, and the line that says so.
    fn needs(&self, module: usize) -> Vec<(usize, usize, usize)> {
        let source = &self.modules[module].source;
        let mut found = Vec::new();
        for import in &source.imports {
            match (self.resolve(module, &import.path, 0), &import.name) {
                // To import a module is to give it a name; what is needed of it is seen where that is used.
                (Some(Found::Item(to)), _) if is_used(source, import) => {
                    found.push((module, to, import.line));
                }
                (Some(Found::Module(to)), None) if !import.is_public => found.push((module, to, import.line)),
                _ => {}
            }
        }
        for (path, line) in &source.paths {
            if let Some(Found::Item(to)) = self.resolve(module, path, 0) {
                found.push((module, to, *line));
            }
        }
        found
    }

    /// What a path leads to that stands in this module; `None` of a local name.
    fn resolve(&self, from: usize, path: &[String], depth: usize) -> Option<Found> {
        let mut at = from;
        for (index, segment) in path.iter().enumerate() {
            at = match segment.as_str() {
                "crate" => 0,
                "self" => at,
                "super" => self.modules[at].parent?,
                name => match self.member(at, name, depth) {
                    Some(Found::Module(module)) => module,
                    Some(other) => return Some(other),
                    // The first one is a crate's name, or a local one.
                    None if index == 0 => return None,
                    // A macro made it.
                    None => return Some(Found::Item(at)),
                },
            };
        }
        Some(Found::Module(at))
    }

    /// What a name stands for in a module.
    fn member(&self, module: usize, name: &str, depth: usize) -> Option<Found> {
        let Module { children, source, .. } = &self.modules[module];
        if let Some(child) = children.get(name) {
            return Some(Found::Module(*child));
        }
        if source.defined.contains(name) {
            return Some(Found::Item(module));
        }
        if depth == DEPTH {
            return Some(Found::Outside);
        }
        if let Some(import) = source.imports.iter().find(|import| import.name.as_deref() == Some(name)) {
            return self.resolve(module, &import.path, depth + 1).or(Some(Found::Outside));
        }
        source.imports.iter().filter(|import| import.name.is_none()).find_map(|glob| {
            match self.resolve(module, &glob.path, depth + 1)? {
                Found::Module(other) if other != module => self.member(other, name, depth + 1),
                _ => None,
            }
        })
    }

    /// The two nodes between which an arrow leads, at the deepest module that has both; `None` within a file.
    fn nodes(&self, from: usize, to: usize) -> Option<[String; 2]> {
        let [from, to] = [self.line_of(from), self.line_of(to)];
        let shared = from.iter().zip(&to).take_while(|(from, to)| from == to).count();
        let node = |line: &[usize]| match line.get(shared) {
            Some(child) => self.subtree(*child),
            None => self.modules[line[shared - 1]].file.clone(),
        };
        (from != to).then(|| [node(&from), node(&to)])
    }

    /// The modules that are files, from the root to the one in which this stands.
    fn line_of(&self, module: usize) -> Vec<usize> {
        let mut line = Vec::new();
        let mut at = Some(module);
        while let Some(module) = at {
            at = self.modules[module].parent;
            if at.is_none_or(|parent| self.modules[parent].file != self.modules[module].file) {
                line.push(module);
            }
        }
        line.reverse();
        line
    }

    /// The directory of a module with children in files of their own, else its file.
    fn subtree(&self, module: usize) -> String {
        let file = &self.modules[module].file;
        let is_child = |other: &Module| other.parent == Some(module) && other.file != *file;
        match self.modules.iter().any(is_child) {
            true => file.strip_suffix("/mod.rs").or(file.strip_suffix(".rs")).unwrap_or(file).to_owned(),
            false => file.clone(),
        }
    }
}

/// Whether an import is for the module itself, and not only for others.
fn is_used(source: &source::Module, import: &Import) -> bool {
    !import.is_public || import.name.as_ref().is_some_and(|name| source.names.contains(name))
}

/// A file whose children lie beside it.
fn beside(file: String) -> (String, String) {
    let dir = parent_dir(&file);
    (file, dir)
}

fn parent_dir(file: &str) -> String {
    Path::new(file).parent().and_then(Path::to_str).unwrap_or_default().to_owned()
}

/// A path below a directory, without the `..` in it.
fn join(dir: &str, path: &str) -> String {
    let mut parts: Vec<&str> = dir.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrows(files: &[(&str, &str)]) -> Vec<String> {
        let reader =
            |path: &str| Ok(files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned()));
        let mut found: Vec<_> = Crate::read(files[0].0, &reader).unwrap().arrows().collect();
        found.sort();
        found.iter().map(|arrow| format!("{} > {}, {}", arrow.from, arrow.to, arrow.because)).collect()
    }

    #[test]
    fn a_re_export_is_no_arrow_and_who_uses_it_needs_the_file_behind_it() {
        let found = arrows(&[
            ("src/lib.rs", "mod a; mod b;"),
            ("src/a.rs", "fn f() { crate::b::Thing::new() }"),
            ("src/b/mod.rs", "mod one; mod two; pub use one::*; pub(crate) use two::other;"),
            ("src/b/one.rs", "pub struct Thing;"),
            ("src/b/two.rs", "use super::Thing; pub fn other(thing: Thing) {}"),
        ]);
        assert_eq!(
            found,
            [
                "src/a.rs > src/b, src/a.rs:1 needs src/b/one.rs",
                "src/b/two.rs > src/b/one.rs, src/b/two.rs:1 needs src/b/one.rs",
            ]
        );
    }

    #[test]
    fn a_parent_that_uses_what_it_exports_needs_it() {
        let found = arrows(&[
            ("src/main.rs", "mod a;\npub use a::f;\nfn main() { f(); a::g(); std::process::exit(0) }"),
            ("src/a.rs", "pub fn f() {} pub fn g() {}"),
        ]);
        assert_eq!(
            found,
            [
                "src/main.rs > src/a.rs, src/main.rs:2 needs src/a.rs",
                "src/main.rs > src/a.rs, src/main.rs:3 needs src/a.rs",
            ]
        );
    }

    #[test]
    fn modules_by_their_names_and_modules_within_a_file() {
        let found = arrows(&[
            (
                "t/main.rs",
                "#[path = \"../x/y.rs\"] mod y; mod a; mod b { pub mod c { pub fn f() {} } }\n#[path = \"../z\"] mod w { mod v; }",
            ),
            ("t/a.rs", "use super::{b::c, y}; fn g() { c::f(); y::h::<u8>() }"),
            ("z/v.rs", "use crate::y::h;"),
            ("x/y.rs", "pub fn h<T>() {} mod z { fn i() { super::h::<T>() } }"),
        ]);
        assert_eq!(
            found,
            [
                "t/a.rs > t/main.rs, t/a.rs:1 needs t/main.rs",
                "t/a.rs > x/y.rs, t/a.rs:1 needs x/y.rs",
                "z/v.rs > x/y.rs, z/v.rs:1 needs x/y.rs",
            ]
        );
    }

    #[test]
    fn names_that_stand_for_each_other_end() {
        let found =
            arrows(&[("src/lib.rs", "mod a; use a::x; use a::*;"), ("src/a.rs", "pub use super::x;")]);
        // The import of everything.
        assert_eq!(found, ["src/lib.rs > src/a.rs, src/lib.rs:1 needs src/a.rs"]);
    }
}
