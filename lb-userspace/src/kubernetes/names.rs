//! The names of Leases. Releases may share a namespace, each with a controller of its own, and each has Leases of its own.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::config::gateway_api::Settings;

/// Bytes of an object's name at most, which is one of DNS.
pub(super) const LONGEST: usize = 253;

/// Those of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    /// Of the Lease whose holder writes statuses.
    pub(super) leader: String,
    /// What the Leases of nodes have as their label.
    pub(super) label: String,
    /// What the name of such a Lease begins with.
    node: String,
}

impl Names {
    /// By the controller's name, which may be longer than a name or a label, and have other characters: a hash stands for it. The
    /// default one is left out.
    pub(super) fn of(controller: &str) -> Self {
        if controller == &*Settings::default().controller {
            return Self {
                leader: "snisplice-leader".into(),
                label: "node".into(),
                node: "snisplice-node-".into(),
            };
        }
        let hash = hash(controller);
        Self {
            leader: format!("snisplice-{hash}-leader"),
            label: format!("node-{hash}"),
            node: format!("snisplice-{hash}-node-"),
        }
    }

    /// Of the Lease of a node.
    pub(super) fn of_node(&self, node: &str) -> String {
        with_node(&self.node, node, "")
    }
}

/// A name with that of a node in it, or with a hash of it where it would be too long.
pub(super) fn with_node(before: &str, node: &str, after: &str) -> String {
    let readable = format!("{before}{node}{after}");
    if readable.len() <= LONGEST { readable } else { format!("{before}{}{after}", hash(node)) }
}

fn hash(text: &str) -> String {
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(text);
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_different_controllers_share_no_name() {
        let default = Names::of("snisplice.dev/gateway");
        assert_eq!(default.leader, "snisplice-leader");
        assert_eq!((default.of_node("a").as_str(), default.label.as_str()), ("snisplice-node-a", "node"));
        let long = format!("example.com/{}", "x".repeat(241));
        let controllers = ["snisplice.dev/gateway", "example.com/Second~%!", "example.com/second", &long];
        let all = controllers.map(Names::of);
        for (at, names) in all.iter().enumerate() {
            for other in &all[..at] {
                assert!(names.leader != other.leader && names.label != other.label, "{names:?} {other:?}");
                assert_ne!(names.of_node("a"), other.of_node("a"));
            }
            let is_dns = |name: &str| {
                name.len() <= LONGEST
                    && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            };
            assert!(is_dns(&names.leader) && is_dns(&names.of_node("a")), "{names:?}");
            assert!(is_dns(&names.of_node(&"n".repeat(LONGEST))), "{names:?}");
            // A label's value.
            assert!(is_dns(&names.label) && names.label.len() <= 63, "{names:?}");
        }
        // They are those of the next version, too.
        assert_eq!(Names::of("example.com/second").leader, "snisplice-8f5cc6d1bcda6177-leader");
    }
}
