//! What one source file says: its modules, what they import, define and name.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr as _,
};

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// What stands between the braces of a module, or in a file.
#[derive(Debug, Default)]
pub(super) struct Module {
    /// `#[path]` of a module between braces: the directory of its files.
    pub(super) dir: Option<String>,
    /// The modules that stand in it.
    pub(super) inline: BTreeMap<String, Module>,
    /// The modules that are files of their own, with `#[path]` where it has one.
    pub(super) files: BTreeMap<String, Option<String>>,
    pub(super) imports: Vec<Import>,
    /// Names of items.
    pub(super) defined: BTreeSet<String>,
    /// Paths of two segments and more outside of `use`, and their lines.
    pub(super) paths: Vec<(Vec<String>, usize)>,
    /// Names that stand alone or first in a path outside of `use`.
    pub(super) names: BTreeSet<String>,
}

/// One name, or all of them, from a `use`.
#[derive(Debug, PartialEq)]
pub(super) struct Import {
    pub(super) path: Vec<String>,
    /// What it is called here; `None` of `*`.
    pub(super) name: Option<String>,
    /// With `pub`, of any kind.
    pub(super) is_public: bool,
    pub(super) line: usize,
}

impl Module {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let tokens = TokenStream::from_str(text).map_err(|error| anyhow!("{error}"))?;
        let mut module = Self::default();
        module.read(tokens);
        Ok(module)
    }

    fn read(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut path = None;
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at..] {
                [TokenTree::Punct(hash), TokenTree::Group(attribute), rest @ ..] if hash.as_char() == '#' => {
                    let words = attribute.stream().to_string();
                    at += 2;
                    if words.starts_with("cfg (test") || words.starts_with("cfg(test") {
                        at += length_of_item(rest);
                    } else if words.starts_with("path ") {
                        path = words.split('"').nth(1).map(str::to_owned);
                    }
                }
                [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Group(body), ..]
                    if word == "mod" && body.delimiter() == Delimiter::Brace =>
                {
                    let inline = self.inline.entry(name.to_string()).or_default();
                    inline.dir = path.take();
                    inline.read(body.stream());
                    at += 3;
                }
                [TokenTree::Ident(word), TokenTree::Ident(name), ..] if word == "mod" => {
                    self.files.insert(name.to_string(), path.take());
                    at += 2;
                }
                // Not the `use<…>` of a type.
                [TokenTree::Ident(word), next, ..] if word == "use" && !is_punct(next, '<') => {
                    let end = tokens[at..].iter().position(|token| is_punct(token, ';'));
                    let end = end.map_or(tokens.len(), |end| at + end);
                    self.import(Vec::new(), &tokens[at + 1..end], is_public(&tokens[..at]));
                    at = end;
                }
                [TokenTree::Ident(_), ..] => at = self.path(&tokens, at),
                [TokenTree::Group(group), ..] => {
                    self.read(group.stream());
                    at += 1;
                }
                _ => at += 1,
            }
        }
    }

    /// One tree of a `use`, or several with commas between them.
    fn import(&mut self, prefix: Vec<String>, tokens: &[TokenTree], is_public: bool) {
        for tree in tokens.split(|token| is_punct(token, ',')) {
            let mut path = prefix.clone();
            let mut name = None;
            let mut line = 0;
            for (at, token) in tree.iter().enumerate() {
                line = token.span().start().line;
                match token {
                    TokenTree::Group(group) => {
                        let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                        self.import(std::mem::take(&mut path), &inner, is_public);
                    }
                    TokenTree::Punct(star) if star.as_char() == '*' => {
                        self.imports.push(Import {
                            path: std::mem::take(&mut path),
                            name: None,
                            is_public,
                            line,
                        });
                    }
                    TokenTree::Ident(word) if word == "as" => {
                        name = tree.get(at + 1).map(ToString::to_string);
                        break;
                    }
                    // `a::{self}` imports `a`.
                    TokenTree::Ident(word) if word == "self" && !path.is_empty() => {}
                    TokenTree::Ident(word) => path.push(word.to_string()),
                    _ => {}
                }
            }
            if let Some(last) = path.last() {
                let name = Some(name.unwrap_or_else(|| last.clone()));
                self.imports.push(Import { path, name, is_public, line });
            }
        }
    }

    /// A path, a name or a keyword; returns where it ends.
    fn path(&mut self, tokens: &[TokenTree], start: usize) -> usize {
        let TokenTree::Ident(first) = &tokens[start] else { return start + 1 };
        if is_item(first) {
            self.defined.extend(tokens[start + 1..].iter().find_map(name_of_item));
        }
        let mut path = vec![first.to_string()];
        let mut at = start + 1;
        while let [TokenTree::Punct(one), TokenTree::Punct(two), TokenTree::Ident(next), ..] = &tokens[at..]
            && (one.as_char(), two.as_char()) == (':', ':')
        {
            path.push(next.to_string());
            at += 3;
        }
        let is_member = match &tokens[..start] {
            [.., TokenTree::Punct(dot)] if dot.as_char() == '.' => true,
            [.., TokenTree::Punct(one), TokenTree::Punct(two)] => {
                (one.as_char(), one.spacing(), two.as_char()) == (':', Spacing::Joint, ':')
            }
            _ => false,
        };
        if !is_member {
            self.names.insert(path[0].clone());
            if path.len() > 1 {
                self.paths.push((path, first.span().start().line));
            }
        }
        at
    }
}

fn is_punct(token: &TokenTree, character: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == character)
}

/// Whether what follows these tokens has `pub` or `pub(…)` before it.
fn is_public(before: &[TokenTree]) -> bool {
    match before {
        [.., TokenTree::Ident(word)] => word == "pub",
        [.., TokenTree::Ident(word), TokenTree::Group(_)] => word == "pub",
        _ => false,
    }
}

fn is_item(word: &proc_macro2::Ident) -> bool {
    ["fn", "struct", "enum", "union", "trait", "type", "const", "static", "macro_rules"]
        .iter()
        .any(|keyword| word == keyword)
}

/// The name of an item, behind its keyword.
fn name_of_item(token: &TokenTree) -> Option<String> {
    match token {
        TokenTree::Ident(word) if word != "mut" => Some(word.to_string()),
        _ => None,
    }
}

/// How many tokens an item takes that begins here: to its semicolon or body.
fn length_of_item(tokens: &[TokenTree]) -> usize {
    let is_use = tokens.iter().take(3).any(|token| matches!(token, TokenTree::Ident(word) if word == "use"));
    let end = tokens.iter().position(|token| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace && !is_use,
        token => is_punct(token, ';'),
    });
    end.map_or(tokens.len(), |end| end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports(text: &str) -> Vec<(String, Option<String>, bool)> {
        let module = Module::parse(text).unwrap();
        module.imports.into_iter().map(|it| (it.path.join("::"), it.name, it.is_public)).collect()
    }

    #[test]
    fn a_tree_of_imports_is_taken_apart() {
        let found = imports("pub(crate) use a::{self, b::{c as d, *}, e};\nuse super::f;");
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(
            found,
            [
                ("a".to_owned(), name("a"), true),
                ("a::b::c".to_owned(), name("d"), true),
                ("a::b".to_owned(), None, true),
                ("a::e".to_owned(), name("e"), true),
                ("super::f".to_owned(), name("f"), false),
            ]
        );
    }

    #[test]
    fn paths_are_found_in_macros_and_types_and_not_in_text() {
        let module = Module::parse(
            "// crate::comment::x\nfn f(x: crate::a::B) { assert!(crate::c::d(\"crate::text::x\")); x.y::<u8>(); }",
        )
        .unwrap();
        let found: Vec<_> = module.paths.iter().map(|(path, line)| (path.join("::"), *line)).collect();
        assert_eq!(found, [("crate::a::B".to_owned(), 2), ("crate::c::d".to_owned(), 2)]);
        assert!(module.defined.contains("f") && !module.names.contains("y"));
    }

    #[test]
    fn what_is_only_for_unit_tests_does_not_count() {
        let module = Module::parse(
            "#[cfg(test)] mod tests { use super::a; }\n#[cfg(test)]\npub(crate) use b::{c};\n\
             #[cfg(test)] fn d() { crate::e::f() }\n#[path = \"../x.rs\"] mod g;\nmod h { mod i; }",
        )
        .unwrap();
        assert!(module.imports.is_empty() && module.paths.is_empty(), "{module:?}");
        assert_eq!(module.files, [("g".to_owned(), Some("../x.rs".to_owned()))].into());
        assert!(module.inline["h"].files.contains_key("i"));
    }
}
