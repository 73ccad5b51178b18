//! HAProxy's ACLs and conditions.

use crate::import::auxiliary::Auxiliary;
use crate::import::model::{ANY, LARGEST, Note, host};
use crate::import::words::{Line, lines};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

/// Tests of one ACL, and ACLs of one condition.
const MOST: usize = 1000;

/// What one test asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Term {
    /// The SNI is one of these.
    Names(Rc<Vec<String>>),
    /// The client's address is in one of these networks.
    Source(Rc<Vec<String>>),
    /// There is a ClientHello.
    Hello,
    /// Always true.
    True,
}

/// Named tests: any of an ACL's tests is enough. None: it has one that is not taken over.
#[derive(Default)]
pub(super) struct Acls(BTreeMap<String, Option<Rc<Vec<Term>>>>);

impl Acls {
    pub(super) fn add(
        &mut self,
        name: &str,
        words: &[&str],
        line: &Line,
        auxiliary: &mut Auxiliary<'_>,
        notes: &mut Vec<Note>,
    ) {
        let term = term(words, line, auxiliary, notes);
        if term.is_none() {
            notes.push(line.unknown());
        }
        let known = self.0.entry(name.to_owned()).or_insert_with(|| Some(Rc::default()));
        match (known.as_mut(), term) {
            (Some(known), Some(term)) if known.len() < MOST => Rc::make_mut(known).push(term),
            _ => *known = None,
        }
    }
}

/// Alternatives, of which each is a list of tests that must all be true (or, with false, not be).
pub(super) struct Condition(Vec<Vec<(bool, Rc<Vec<Term>>)>>);

impl Condition {
    /// `if A B || !C`, `unless A`, nothing. None: not taken over.
    pub(super) fn read(
        words: &[&str],
        acls: &Acls,
        line: &Line,
        auxiliary: &mut Auxiliary<'_>,
        notes: &mut Vec<Note>,
    ) -> Option<Self> {
        let (unless, words) = match words {
            [] => return Some(Self(vec![Vec::new()])),
            ["if", rest @ ..] => (false, rest),
            ["unless", rest @ ..] => (true, rest),
            _ => return None,
        };
        if words.len() > MOST {
            return None;
        }
        let mut all = vec![Vec::new()];
        let (mut positive, mut rest) = (true, words.iter());
        while let Some(word) = rest.next() {
            let name = match *word {
                "!" => {
                    positive = !positive;
                    continue;
                }
                "||" | "or" => {
                    all.push(Vec::new());
                    continue;
                }
                word => word.strip_prefix('!').inspect(|_| positive = !positive).unwrap_or(word),
            };
            let terms = if name == "{" {
                let inner: Vec<&str> = rest.by_ref().take_while(|word| **word != "}").copied().collect();
                Rc::new(vec![term(&inner, line, auxiliary, notes)?])
            } else {
                match name {
                    "TRUE" => Rc::new(vec![Term::True]),
                    name => acls.0.get(name)?.clone()?,
                }
            };
            all.last_mut()?.push((positive, terms));
            positive = true;
        }
        if unless {
            // Only of one test: that is the test the other way round.
            let [alternative] = all.as_mut_slice() else { return None };
            let [(positive, _)] = alternative.as_mut_slice() else { return None };
            *positive = !*positive;
        }
        Some(Self(all))
    }

    /// The names that it lets through; none: it asks for something else.
    pub(super) fn names(&self) -> Option<Vec<String>> {
        let mut names = Vec::new();
        for alternative in &self.0 {
            let mut of_this: Option<Vec<String>> = None;
            for (positive, terms) in alternative {
                // A client of a rule has sent its ClientHello.
                let is_any = terms.iter().any(|term| matches!(term, Term::Hello | Term::True));
                let found = terms.iter().map(|term| match term {
                    Term::Names(names) if !is_any => Some(names.to_vec()),
                    Term::Names(_) | Term::Hello | Term::True => Some(Vec::new()),
                    Term::Source(_) => None,
                });
                let found: Vec<String> = found.collect::<Option<Vec<_>>>()?.concat();
                if !positive || (!found.is_empty() && of_this.is_some()) {
                    return None;
                }
                if !found.is_empty() {
                    of_this = Some(found);
                }
            }
            names.extend(of_this.unwrap_or_else(|| vec![ANY.to_owned()]));
            if names.len() > LARGEST {
                return None;
            }
        }
        Some(names)
    }

    /// Whether it lets nobody through who sends no ClientHello.
    pub(super) fn is_of_tls(&self) -> bool {
        let asks = |(positive, terms): &(bool, Rc<Vec<Term>>)| {
            *positive && terms.iter().all(|term| matches!(term, Term::Names(_) | Term::Hello))
        };
        self.0.iter().all(|alternative| alternative.iter().any(asks))
    }

    /// Its only test.
    pub(super) fn single(&self) -> Option<(bool, Term)> {
        let [alternative] = self.0.as_slice() else { return None };
        let [(positive, terms)] = alternative.as_slice() else { return None };
        let mut sources = Vec::new();
        for term in terms.iter() {
            match term {
                Term::Source(networks) => sources.extend(networks.iter().cloned()),
                term if terms.len() == 1 => return Some((*positive, term.clone())),
                _ => return None,
            }
        }
        Some((*positive, Term::Source(Rc::new(sources))))
    }
}

pub(super) fn is_sni(fetch: &str) -> bool {
    ["req.ssl_sni", "req_ssl_sni", "ssl_fc_sni"].contains(&fetch)
}

/// How a value is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Matching {
    Exact,
    End,
    Domain,
}

/// One test: `req.ssl_sni -i -m end .example.com`, `src 10.0.0.0/8`, `req.ssl_hello_type 1`.
fn term(words: &[&str], line: &Line, auxiliary: &mut Auxiliary<'_>, notes: &mut Vec<Note>) -> Option<Term> {
    let (fetch, mut rest) = words.split_first()?;
    let fetch = fetch.strip_suffix(",lower").unwrap_or(fetch);
    let (fetch, mut matching) = match fetch.rsplit_once('_') {
        Some((bare, "end")) if is_sni(bare) => (bare, Matching::End),
        Some((bare, "dom")) if is_sni(bare) => (bare, Matching::Domain),
        _ => (fetch, Matching::Exact),
    };
    let mut values: Vec<String> = Vec::new();
    while let Some((flag, next)) = rest.split_first() {
        rest = next;
        match *flag {
            "-i" => {}
            "--" => break,
            "-m" => {
                let (method, next) = rest.split_first()?;
                rest = next;
                matching = match *method {
                    "str" => Matching::Exact,
                    "end" => Matching::End,
                    "dom" => Matching::Domain,
                    _ => return None,
                };
            }
            "-f" => {
                let (file, next) = rest.split_first()?;
                rest = next;
                let Some((index, text)) = auxiliary.take(file) else {
                    let text = format!("{}: give the file of `-f`, too", line.quoted());
                    notes.push(Note::lost(line.at, text));
                    return None;
                };
                values
                    .extend(lines(text, index).into_iter().filter_map(|line| line.words.into_iter().next()));
            }
            flag if flag.starts_with('-') => return None,
            value => values.push(value.to_owned()),
        }
    }
    values.extend(rest.iter().map(|&value| value.to_owned()));
    match fetch {
        "req.ssl_hello_type" | "req_ssl_hello_type" => (values == ["1"]).then_some(Term::Hello),
        fetch if is_sni(fetch) => {
            let (mut names, mut all_exact) = (Vec::new(), true);
            for value in &values {
                let (mut hosts, exact) = pattern(value, matching)?;
                all_exact &= exact;
                names.append(&mut hosts);
            }
            if !all_exact {
                let text = format!("{}: only as a whole domain", line.quoted());
                notes.push(Note::lost(line.at, text));
            }
            (!names.is_empty()).then(|| Term::Names(Rc::new(names)))
        }
        "src" if matching == Matching::Exact => {
            let network = |value: &String| value.parse::<IpAddr>().is_ok() || value.parse::<IpNet>().is_ok();
            (!values.is_empty() && values.iter().all(network)).then(|| Term::Source(Rc::new(values)))
        }
        _ => None,
    }
}

/// The names of a value that is compared like this, and whether it takes exactly those.
pub(super) fn pattern(value: &str, matching: Matching) -> Option<(Vec<String>, bool)> {
    let bare = value.strip_prefix('.').unwrap_or(value);
    let name = host(bare).filter(|name| !name.starts_with(ANY))?;
    let below = format!("*.{name}");
    match matching {
        Matching::Exact => (bare == value).then(|| (vec![name], true)),
        Matching::End if bare != value => Some((vec![below], true)),
        Matching::End | Matching::Domain => Some((vec![name, below], false)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::model::At;

    fn read(words: &str) -> Option<Condition> {
        let words: Vec<&str> = words.split(' ').filter(|word| !word.is_empty()).collect();
        let line = Line { at: At { file: 0, line: 1 }, words: Vec::new() };
        let (mut auxiliary, mut acls, mut notes) = (Auxiliary::default(), Acls::default(), Vec::new());
        acls.add("app", &["req.ssl_sni", "-i", "app.example"], &line, &mut auxiliary, &mut notes);
        acls.add("app", &["req.ssl_sni", "app2.example"], &line, &mut auxiliary, &mut notes);
        acls.add("any", &["req.ssl_sni", "app3.example"], &line, &mut auxiliary, &mut notes);
        acls.add("any", &["req.ssl_hello_type", "1"], &line, &mut auxiliary, &mut notes);
        acls.add("both", &["req.ssl_hello_type", "1"], &line, &mut auxiliary, &mut notes);
        acls.add("both", &["src", "10.0.0.0/8"], &line, &mut auxiliary, &mut notes);
        acls.add("odd", &["req.ssl_sni", "-m", "reg", "^a"], &line, &mut auxiliary, &mut notes);
        acls.add("inside", &["src", "10.0.0.0/8"], &line, &mut auxiliary, &mut notes);
        Condition::read(&words, &acls, &line, &mut auxiliary, &mut notes)
    }

    fn names(words: &str) -> Option<String> {
        Some(read(words)?.names()?.join(" "))
    }

    #[test]
    fn some_conditions_need_a_hello() {
        for (words, expected) in [
            ("", false),
            ("if app", true),
            ("if any", true),
            ("if { req.ssl_hello_type 1 }", true),
            ("if inside { req.ssl_hello_type 1 }", true),
            ("if app || { req.ssl_hello_type 1 }", true),
            ("if app or TRUE", false),
            ("if both", false),
            ("if !app", false),
        ] {
            assert_eq!(read(words).map(|condition| condition.is_of_tls()), Some(expected), "{words}");
        }
    }

    #[test]
    fn conditions_on_the_name_are_read_and_others_are_not() {
        for (words, expected) in [
            ("", "*"),
            ("if app", "app.example app2.example"),
            ("if any", "*"),
            ("if { req.ssl_sni -i A.example }", "a.example"),
            ("if { req.ssl_hello_type 1 } { req_ssl_sni a.example b.example }", "a.example b.example"),
            ("if app || { ssl_fc_sni -m end .c.example }", "app.example app2.example *.c.example"),
            ("if { req.ssl_sni -m end c.example }", "c.example *.c.example"),
            ("if { req_ssl_sni_end .c.example } or TRUE", "*.c.example *"),
        ] {
            assert_eq!(names(words).as_deref(), Some(expected), "{words}");
        }
        for words in [
            "if odd",
            "if nowhere",
            "if !app",
            "if app inside",
            "unless app",
            "if { req.ssl_sni -m found }",
            "if app { req.ssl_sni a.example }",
            "if { req.ssl_sni",
            "if {",
            "when app",
        ] {
            assert_eq!(names(words), None, "{words}");
        }
    }
}
