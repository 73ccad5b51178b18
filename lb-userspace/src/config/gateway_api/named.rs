//! Secrets and ConfigMaps that objects name. Each is watched by itself, so there may not be any number of them.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::key::Key;

/// Those that a build asks for, in its order: that of older objects comes first.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// How many there may be.
    most: usize,
    keys: BTreeSet<Key>,
    of_namespace: HashMap<Arc<str>, usize>,
    /// How often one was not to be had.
    pub(super) refusals: usize,
}

impl Named {
    /// `most`: all together. Those of one namespace may be a tenth of that, so that nobody takes them from others.
    pub(super) fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    /// Asks for one; an error says why it is not watched.
    pub(super) fn ask(&mut self, key: Key) -> Result<(), String> {
        if self.keys.contains(&key) {
            return Ok(());
        }
        let namespace = &key.name.namespace;
        let own = self.of_namespace.get(namespace).copied().unwrap_or_default();
        let most_of_one = (self.most / 10).max(1);
        let refusal = if own >= most_of_one {
            format!(
                "{key} is not watched: objects name more than {most_of_one} Secrets and ConfigMaps of {namespace}, a tenth of `max_watches`"
            )
        } else if self.keys.len() >= self.most {
            format!(
                "{key} is not watched: objects name more than {} Secrets and ConfigMaps (`max_watches`)",
                self.most
            )
        } else {
            self.of_namespace.insert(namespace.clone(), own + 1);
            self.keys.insert(key);
            return Ok(());
        };
        self.refusals += 1;
        Err(refusal)
    }

    /// All that were asked for, and are to be had if they are there.
    pub(super) fn keys(self) -> BTreeSet<Key> {
        self.keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::gateway_api::key::Kind;

    #[test]
    fn a_namespace_takes_a_tenth_and_all_take_what_there_is() {
        let mut named = Named::new(30);
        let mut ask = |namespace: usize, name: usize| {
            let key = Key::new(Kind::ConfigMap, &format!("n{namespace}"), &name.to_string());
            named.ask(key).err().unwrap_or_default()
        };
        for namespace in 0..10 {
            for name in 0..3 {
                assert_eq!(ask(namespace, name), "");
            }
            assert!(ask(namespace, 3).contains("more than 3 Secrets and ConfigMaps of n"), "{namespace}");
            assert_eq!(ask(namespace, 2), "");
        }
        assert!(ask(10, 0).contains("more than 30 Secrets and ConfigMaps (`max_watches`)"));
        assert_eq!((named.refusals, named.keys().len()), (11, 30));
    }
}
