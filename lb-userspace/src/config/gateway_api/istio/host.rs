//! How Istio's objects name hosts and Services.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::config::gateway_api::key::{Key, Kind, Name};
use crate::config::gateway_api::refusal::Refusal;
use crate::config::hostname;
use crate::config::model::SniPattern;

/// Names of hosts in an object at most: what two objects have in common takes time in proportion to both.
const MOST_HOSTS: usize = 1000;

/// What a Service is called inside its cluster, behind its own name and that of its namespace.
pub(in crate::config::gateway_api) const DOMAIN: &str = ".svc.cluster.local";

/// A host of a VirtualService, or of a server without its namespace.
pub(super) fn pattern(host: &str) -> Option<SniPattern> {
    if host == "*" { Some(SniPattern::Any) } else { hostname::read(host) }
}

/// The Service that an object of `namespace` means: one of its own namespace by its bare name, any by its whole one. Every
/// other host is that of a ServiceEntry, or of nothing.
pub(super) fn service(host: &str, namespace: &str) -> Option<Name> {
    let (name, namespace) = match host.strip_suffix(DOMAIN) {
        Some(whole) => whole.split_once('.')?,
        None => (host, namespace),
    };
    let good = is_label(name) && is_label(namespace);
    good.then(|| Name::new(namespace, name))
}

/// The Gateway that a VirtualService of `namespace` is for.
pub(super) fn gateway(name: &str, namespace: &str) -> Option<Key> {
    let (namespace, name) = name.split_once('/').unwrap_or((namespace, name));
    let is_name = !name.is_empty() && name.split('.').all(is_label);
    (is_label(namespace) && is_name).then(|| Key::new(Kind::IstioGateway, namespace, name))
}

/// A label of DNS (RFC 1123).
pub(super) fn is_label(text: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(is_allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether an object of the namespace `own` is for gateways of `namespace`.
pub(in crate::config::gateway_api) fn is_exported(
    export_to: &[Box<str>],
    own: &str,
    namespace: &str,
) -> bool {
    let takes = |to: &str| match to {
        "*" => true,
        "." => own == namespace,
        named => named == namespace,
    };
    export_to.is_empty() || export_to.iter().any(|to| takes(to))
}

pub(super) fn reject_many(path: &str, hosts: usize) -> Result<(), Refusal> {
    match hosts > MOST_HOSTS {
        true => Err(Refusal::new(path, format!("more than {MOST_HOSTS} hosts in one object"))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_by_their_names() {
        for (host, expected) in [
            ("hello", Some("sample/hello")),
            ("hello.other.svc.cluster.local", Some("other/hello")),
            // Istio knows these as hosts of ServiceEntries alone.
            ("hello.other", None),
            ("hello.other.svc", None),
            ("a.hello.other.svc.cluster.local", None),
            (".svc.cluster.local", None),
            ("hello..svc.cluster.local", None),
            ("Hello", None),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(service(host, "sample").map(|name| name.to_string()).as_deref(), expected, "{host}");
        }
    }

    #[test]
    fn who_may_see_an_object() {
        let exported = |to: &[&str], namespace: &str| {
            is_exported(&to.iter().map(|to| Box::from(*to)).collect::<Vec<_>>(), "own", namespace)
        };
        assert!(exported(&[], "edge") && exported(&["*"], "edge") && exported(&[".", "edge"], "edge"));
        assert!(exported(&["."], "own") && !exported(&["."], "edge"));
        assert!(!exported(&["~"], "own") && !exported(&["other"], "edge"));
    }
}
