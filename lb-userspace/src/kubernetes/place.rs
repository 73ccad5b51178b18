//! What the cluster has of this node.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::refused;

/// By its answers so far.
#[derive(Debug, Default, PartialEq)]
pub(super) enum Place {
    /// There was none.
    #[default]
    Unknown,
    /// This is no node of the cluster, or nobody here may ask.
    Outside,
    /// It is one, and has addresses.
    Inside(Known),
    /// It was one. Its Lease goes with the Node, and is not to come back: this gateway is about to end, too.
    Removed,
}

/// Of a Node.
#[derive(Debug, PartialEq)]
pub(super) struct Known {
    uid: String,
    /// Where clients reach it.
    outer: Vec<IpAddr>,
    /// Where the cluster does.
    inner: Vec<IpAddr>,
}

impl Place {
    /// Takes an answer. One that says nothing of the Node changes nothing: all addresses of a machine, those of its bridges
    /// included, must not become a Gateway's because an API server had a bad moment.
    pub(super) fn take(&mut self, answer: &Result<Option<Node>, kube::Error>) {
        let is_new = *self == Place::Unknown;
        match answer {
            Ok(Some(node)) => {
                let [outer, inner] = [["ExternalIP", "InternalIP"], ["InternalIP", "ExternalIP"]]
                    .map(|types| addresses(node, types));
                let uid = node.metadata.uid.clone().unwrap_or_default();
                // Without addresses it is not whole yet.
                if !outer.is_empty() {
                    *self = Place::Inside(Known { uid, outer, inner });
                }
            }
            Ok(None) if is_new => *self = Place::Outside,
            Ok(None) if matches!(self, Place::Inside(_)) => *self = Place::Removed,
            Err(error) if is_new && refused::code(error).is_some() => *self = Place::Outside,
            Ok(None) | Err(_) => {}
        }
    }

    /// Where this node is reached; `None`: it has nothing to say. `own`: its addresses, if the cluster has none of it.
    pub(super) fn reached<'p>(&'p self, own: &'p [IpAddr]) -> Option<&'p [IpAddr]> {
        match self {
            Place::Inside(known) => Some(&known.outer),
            Place::Outside => Some(own).filter(|own| !own.is_empty()),
            Place::Unknown | Place::Removed => None,
        }
    }

    /// The addresses that the cluster has of it.
    pub(super) fn inner(&self) -> &[IpAddr] {
        match self {
            Place::Inside(known) => &known.inner,
            Place::Unknown | Place::Outside | Place::Removed => &[],
        }
    }

    /// The `ownerReferences` by which what the node has said goes with it.
    pub(super) fn owners(&self, node: &str) -> Value {
        match self {
            Place::Inside(Known { uid, .. }) => {
                json!([{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}])
            }
            Place::Unknown | Place::Outside | Place::Removed => json!([]),
        }
    }
}

/// Those of the first of these types of which there are any.
fn addresses(node: &Node, types: [&str; 2]) -> Vec<IpAddr> {
    let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let of = |kind: &str| {
        let some = all.clone().filter(|address| address.type_ == kind);
        some.filter_map(|address| address.address.parse().ok()).collect::<Vec<IpAddr>>()
    };
    types.into_iter().map(of).find(|found| !found.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    type Answer = Result<Option<Node>, kube::Error>;

    fn node(addresses: &[(&str, &str)]) -> Answer {
        let of = |(kind, address): &(&str, &str)| json!({"type": kind, "address": address});
        let addresses: Vec<Value> = addresses.iter().map(of).collect();
        let node = json!({"metadata": {"name": "a", "uid": "u"}, "status": {"addresses": addresses}});
        Ok(Some(serde_json::from_value(node).unwrap()))
    }

    fn failure(code: u16) -> Answer {
        Err(kube::Error::Api(Status::failure("", "").with_code(code).boxed()))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_who_is_no_node_says_all_its_addresses_and_a_node_says_what_was_known_last() {
        let own = [ip("192.0.2.1"), ip("fe80::1")];
        let both = || node(&[("Hostname", "a"), ("InternalIP", "10.0.0.1"), ("ExternalIP", "203.0.113.1")]);
        let (outer, inner) = (&[ip("203.0.113.1")][..], &[ip("10.0.0.1")][..]);
        let cases: &[(&[Answer], Option<&[IpAddr]>)] = &[
            (&[], None),
            (&[Ok(None)], Some(&own)),
            (&[failure(403)], Some(&own)),
            (&[failure(404)], Some(&own)),
            (&[failure(403), both()], Some(outer)),
            // Nobody knows.
            (&[failure(500)], None),
            (&[failure(401), failure(503)], None),
            (&[node(&[])], None),
            (&[failure(500), Ok(None)], Some(&own)),
            // A bad moment.
            (&[both(), failure(500)], Some(outer)),
            (&[both(), failure(403), failure(500)], Some(outer)),
            (&[both(), node(&[])], Some(outer)),
            // It was removed, and may be made anew.
            (&[both(), Ok(None)], None),
            (&[both(), Ok(None), failure(500), failure(403), Ok(None)], None),
            (&[both(), Ok(None), both()], Some(outer)),
        ];
        for (answers, expected) in cases {
            let mut place = Place::default();
            answers.iter().for_each(|answer| place.take(answer));
            assert_eq!(place.reached(&own), *expected, "{answers:?}");
            let is_inside = *expected == Some(outer);
            assert_eq!(place.inner(), if is_inside { inner } else { &[] }, "{answers:?}");
            let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "u"});
            let owners = if is_inside { json!([owner]) } else { json!([]) };
            assert_eq!(place.owners("a"), owners, "{answers:?}");
        }
        assert_eq!(Place::Outside.reached(&[]), None);
    }
}
