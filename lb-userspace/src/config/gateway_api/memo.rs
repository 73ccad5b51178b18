//! What a build keeps for the next one: parts that are the same again as long as nothing has changed that they were made of.
//!
//! Each part is kept with everything that was read for it. The store notes what changes ([`Index::differs`]), and a part of which
//! nothing was noted is taken as it is: of very many routes, only those are looked at again that a change has to do with.
//!
//! [`Index::differs`]: super::index::Index

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use super::context::Context;
use super::kept::{Drafted, Offer, Requests, Ruled, Taken, Told, Trust};
use super::key::{Key, Kind, Labels, Name};
use super::status::Status;
use super::target::Part;
use crate::config::draft::PoolDraft;

/// A route, which of several routes of one object it is, and the number of a listener.
pub(super) type OnListener = (Key, Option<Box<str>>, usize);

/// The parts of the last build.
#[derive(Debug, Default)]
pub(super) struct Memo {
    /// What was outside the objects.
    context: Option<Context>,
    /// What routes find at their parents.
    pub(super) offers: Table<Key, Offer>,
    /// What VirtualServices find at their Gateways.
    pub(super) taken: Table<Key, Taken>,
    /// What BackendTLSPolicies say of servers.
    pub(super) trusts: Table<Key, Trust>,
    /// What is said of them.
    pub(super) policies: Table<Key, Told>,
    /// The same of DestinationRules.
    pub(super) rule_statuses: Table<Key, Status>,
    /// What the data plane has of a route on a listener.
    pub(super) drafts: Table<OnListener, Drafted>,
    /// The rules of requests of a route for a listener.
    pub(super) rules: Table<OnListener, Ruled>,
    /// What the data plane has of a listener of requests, by its number.
    pub(super) requests: Table<usize, Requests>,
    /// Pools, and the labels of their pods.
    pub(super) pools: Table<(Name, Part), (Arc<Labels>, Arc<PoolDraft>)>,
    /// How many parts have read something.
    readers: HashMap<Key, usize>,
    /// How many parts were made since the build began.
    pub(super) made: usize,
}

/// Parts of one kind.
#[derive(Debug)]
pub(super) struct Table<K, V>(HashMap<K, Kept<V>>);

#[derive(Debug)]
struct Kept<V> {
    value: Arc<V>,
    reads: Box<[Key]>,
    /// It is of the present build.
    is_used: bool,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V> Table<K, V> {
    /// A part that is the same again.
    pub(super) fn find(&mut self, key: &K, differs: [&HashSet<Key>; 2]) -> Option<Arc<V>> {
        let kept = self.0.get_mut(key)?;
        if !kept.is_used && differs.iter().any(|keys| has_any(&kept.reads, keys)) {
            return None;
        }
        kept.is_used = true;
        Some(kept.value.clone())
    }

    /// The Secrets and ConfigMaps that were read for a part.
    pub(super) fn named(&self, key: &K) -> Vec<Key> {
        let reads = self.0.get(key).into_iter().flat_map(|kept| &kept.reads);
        reads.filter(|read| matches!(read.kind, Kind::Secret | Kind::ConfigMap)).cloned().collect()
    }

    /// Keeps a part with what was read for it. What was kept in its place had read this.
    fn keep(&mut self, key: K, value: Arc<V>, reads: Box<[Key]>) -> Option<Box<[Key]>> {
        let before = self.0.insert(key, Kept { value, reads, is_used: true });
        before.map(|before| before.reads)
    }

    /// Forgets what the build has not used. What that had read.
    fn sweep(&mut self) -> Vec<Box<[Key]>> {
        let unused = self.0.extract_if(|_, kept| !std::mem::take(&mut kept.is_used));
        unused.map(|(_, kept)| kept.reads).collect()
    }
}

/// Whether one of these was read; `reads` are sorted. Of very many parts, nearly none has read the few things that differ.
fn has_any(reads: &[Key], keys: &HashSet<Key>) -> bool {
    match keys.len() < reads.len() {
        true => keys.iter().any(|key| reads.binary_search(key).is_ok()),
        false => reads.iter().any(|read| keys.contains(read)),
    }
}

impl Memo {
    /// Keeps a part in one of the tables.
    pub(super) fn keep<K: Eq + Hash, V>(
        &mut self,
        table: impl Fn(&mut Memo) -> &mut Table<K, V>,
        key: K,
        value: Arc<V>,
        mut reads: Vec<Key>,
    ) {
        reads.sort_unstable();
        reads.dedup();
        for read in &reads {
            *self.readers.entry(read.clone()).or_default() += 1;
        }
        self.made += 1;
        if let Some(before) = table(self).keep(key, value, reads.into()) {
            self.unread(&before);
        }
    }

    fn unread(&mut self, reads: &[Key]) {
        for read in reads {
            if let Some(readers) = self.readers.get_mut(read) {
                *readers -= 1;
                if *readers == 0 {
                    self.readers.remove(read);
                }
            }
        }
    }

    /// A build begins with this outside the objects. `is_same`: Gateways and all that hangs on them are as they were. If one of
    /// them is not, nothing of the last build counts.
    pub(super) fn begin(&mut self, context: &Context, is_same: bool) {
        if !is_same || self.context.as_ref() != Some(context) {
            *self = Self { context: Some(context.clone()), ..Self::default() };
        }
        self.made = 0;
    }

    /// A build has ended.
    pub(super) fn end(&mut self) {
        let unused = [
            self.offers.sweep(),
            self.taken.sweep(),
            self.trusts.sweep(),
            self.policies.sweep(),
            self.rule_statuses.sweep(),
            self.drafts.sweep(),
            self.rules.sweep(),
            self.requests.sweep(),
            self.pools.sweep(),
        ];
        unused.iter().flatten().for_each(|reads| self.unread(reads));
    }

    /// Whether a part has read this.
    pub(super) fn has_read(&self, key: &Key) -> bool {
        self.readers.contains_key(key)
    }
}
