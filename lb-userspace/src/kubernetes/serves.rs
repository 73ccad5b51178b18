//! What a node says that it serves: the generation of each Gateway and ListenerSet, and the listeners whose ports it cannot give.
//! Whoever writes statuses sums this up.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::gateway_api::{Key, Kind, Lacking, Status, Statuses};

/// Bytes of what a node says at most: annotations of an object may have 256 KiB together. Some 3000 Gateways; of further ones it
/// is not known what other nodes serve, and nobody waits for them.
const MAX: usize = 200_000;
/// Characters of a reason.
const LONGEST_REASON: usize = 200;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Serves {
    /// By `Gateway NAMESPACE/NAME` and `ListenerSet NAMESPACE/NAME`.
    served: BTreeMap<String, Served>,
    /// The last of them, if there was no room for those behind it, in the order of the keys.
    until: Option<Key>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Served {
    generation: i64,
    /// Listeners whose ports it cannot give, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    lacks: BTreeMap<Box<str>, Box<str>>,
}

impl Serves {
    pub(super) fn of(statuses: &Statuses, lacking: &Lacking) -> Self {
        let first = Key::new(Kind::Gateway, "", "");
        let is_one = |(key, _): &(&Key, &Arc<Status>)| matches!(key.kind, Kind::Gateway | Kind::ListenerSet);
        let of_one = |(key, status): (&Key, &Arc<Status>)| {
            let generation = status.generation()?;
            let lacks = lacking.get(key).into_iter().flatten();
            let lacks = lacks.map(|(name, why)| (name.clone(), bounded(why))).collect();
            Some((key.to_string(), Served { generation, lacks }))
        };
        let mut serves = Self::default();
        let (mut left, mut last) = (MAX, None::<&Key>);
        for (key, status) in statuses.range(first..).take_while(is_one) {
            let Some((name, served)) = of_one((key, status)) else { continue };
            let lacks = served.lacks.iter().map(|(name, why)| name.len() + why.len() + 10);
            // Quotes, the number, its name.
            let size = name.len() + 50 + lacks.sum::<usize>();
            left = left.saturating_sub(size);
            if left == 0 {
                serves.until = last.cloned();
                break;
            }
            serves.served.insert(name, served);
            last = Some(key);
        }
        serves
    }

    /// As annotations have it: what is served, and up to where that is said.
    pub(super) fn write(&self) -> (String, Option<String>) {
        (serde_json::to_string(&self.served).unwrap_or_default(), self.until.as_ref().map(Key::to_string))
    }

    /// Of annotations; whatever cannot be read says nothing.
    pub(super) fn read(served: &str, until: &str) -> Self {
        let served = serde_json::from_str(served);
        served.map(|served| Self { served, until: key_of(until) }).unwrap_or_default()
    }

    /// Whether it says that it serves this generation, or a later one, or has no room to say so.
    pub(super) fn has(&self, key: &Key, generation: i64) -> bool {
        match self.served.get(&key.to_string()) {
            Some(served) => served.generation >= generation,
            None => self.until.as_ref().is_some_and(|until| key > until),
        }
    }

    /// Adds to `lacking` what `node` lacks of what this one serves, too.
    pub(super) fn add_lacks_of(&self, node: &str, there: &Serves, lacking: &mut Lacking) {
        for (name, served) in there.served.iter().filter(|(_, served)| !served.lacks.is_empty()) {
            let is_same = self.served.get(name).is_some_and(|own| own.generation == served.generation);
            let Some(key) = key_of(name).filter(|_| is_same) else { continue };
            for (listener, why) in &served.lacks {
                let of_listener = lacking.entry(key.clone()).or_default().entry(listener.clone());
                of_listener.or_insert_with(|| format!("{node}: {}", bounded(why)).into());
            }
        }
    }
}

fn bounded(why: &str) -> Box<str> {
    why.chars().take(LONGEST_REASON).collect::<String>().into()
}

fn key_of(text: &str) -> Option<Key> {
    let (kind, name) = text.split_once(' ')?;
    let (namespace, name) = name.split_once('/')?;
    let kind = [Kind::Gateway, Kind::ListenerSet].into_iter().find(|known| known.name() == kind)?;
    Some(Key::new(kind, namespace, name))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::gateway_api::{Condition, GatewayStatus, Truth};

    /// That of a Gateway of this generation.
    pub(in crate::kubernetes) fn status(generation: i64) -> Arc<Status> {
        let condition = Condition {
            kind: "Accepted",
            status: Truth::True,
            reason: "Accepted",
            message: "".into(),
            observed_generation: generation,
        };
        let status = GatewayStatus {
            addresses: vec![],
            conditions: vec![condition],
            listeners: vec![],
            attached_listener_sets: 0,
            ports: [].into(),
        };
        Status::Gateway(status).into()
    }

    fn gateway(name: &str) -> Key {
        Key::new(Kind::Gateway, "db", name)
    }

    #[test]
    fn what_is_written_is_read() {
        let lacking: Lacking = [(gateway("b"), [("tls".into(), "é".repeat(300).into())].into())].into();
        let statuses: Statuses = [(gateway("a"), status(3)), (gateway("b"), status(1))].into();
        let serves = Serves::of(&statuses, &lacking);
        let (text, None) = serves.write() else { panic!("there is room") };
        assert_eq!(Serves::read(&text, ""), serves);
        assert!(
            serves.has(&gateway("a"), 3) && serves.has(&gateway("a"), 2) && !serves.has(&gateway("a"), 4)
        );
        assert!(!serves.has(&gateway("c"), 0));
        for odd in ["", "null", "{\"Gateway db/a\": 7}", "[", "{\"Gateway db/a\": {\"generation\": 1e99}}"] {
            assert_eq!(Serves::read(odd, "Gateway db/a"), Serves::default(), "{odd}");
        }
    }

    #[test]
    fn what_another_node_lacks_counts_where_both_serve_the_same() {
        let statuses: Statuses = [(gateway("a"), status(3)), (gateway("b"), status(1))].into();
        let own = Serves::of(&statuses, &Lacking::new());
        let there = |name: &str, generation: i64| {
            let lacks = r#"{"tls": "in use"}"#;
            Serves::read(&format!(r#"{{"{name}": {{"generation": {generation}, "lacks": {lacks}}}}}"#), "")
        };
        let lacks = |there: &Serves| {
            let mut lacking = Lacking::new();
            own.add_lacks_of("node-2", there, &mut lacking);
            lacking
        };
        let expected: Lacking = [(gateway("a"), [("tls".into(), "node-2: in use".into())].into())].into();
        assert_eq!(lacks(&there("Gateway db/a", 3)), expected);
        for other in
            [there("Gateway db/a", 2), there("Gateway db/x", 3), there("TLSRoute db/a", 3), there("a", 3)]
        {
            assert_eq!(lacks(&other), Lacking::new());
        }
    }

    #[test]
    fn very_many_gateways_do_not_make_it_too_long_for_an_annotation() {
        let statuses: Statuses =
            (0..10_000).map(|number| (gateway(&format!("gateway-{number:05}")), status(1))).collect();
        let (text, until) = Serves::of(&statuses, &Lacking::new()).write();
        assert!((MAX / 2..MAX).contains(&text.len()), "{}", text.len());
        assert!(until.is_some_and(|until| text.contains(&until)));
    }
}
