//! What the API server has, as far as it is watched.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde_json::Value;
use tokio::sync::{Notify, watch};

use super::balancers;
use super::scope::{Scope, is_asked_for};
use crate::config::gateway_api::{Change, Index, Key, Kind, Name, Object};

/// How old the objects are that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// The API server is followed.
    Current,
    /// The API server is away since then; absent: nothing was ever had from it.
    Stale(Option<SystemTime>),
}

/// The objects, and who waits for their changes.
pub(super) struct Store {
    inner: Mutex<Inner>,
    /// [`Inner::is_due`].
    changed: Notify,
    /// Something was put in for [`Store::take_touched`].
    pub(super) touched: Notify,
    /// Mode `service`: Services or EndpointSlices of Gateways have changed, or whose these are.
    pub(super) balancers: watch::Sender<()>,
}

#[derive(Default)]
struct Inner {
    objects: BTreeMap<Key, Kept>,
    /// Something was put in for [`Store::take`].
    is_due: bool,
    /// Changed since they were last taken.
    pending: BTreeSet<Key>,
    /// The same for who writes statuses.
    touched: BTreeSet<Key>,
    /// Not listed since the start.
    awaited: HashSet<Scope>,
    /// Watches that fail.
    failing: HashSet<Scope>,
    /// Those that the API server does not allow.
    denied: BTreeMap<Scope, Denial>,
    /// Listed once.
    seen: HashSet<Scope>,
    /// The API server does not answer.
    is_away: bool,
    /// When the objects were last known to be those of the API server.
    fresh_at: Option<SystemTime>,
    /// Everything that no object names was listed once: before, what there is does not fit together.
    complete: bool,
    /// Counts changes.
    version: u64,
    /// Something else has changed that counts: the addresses that Gateways have or may have.
    outside: bool,
}

/// An object, as text: as a tree it would take several times the memory, and of very many objects few are looked at again.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Kept {
    /// Without its status.
    object: Arc<str>,
    /// JSON; empty: it has none.
    status: Arc<str>,
    /// It is of a load balancer of Gateways.
    balances: bool,
}

impl Kept {
    pub(super) fn new(mut object: Value) -> Self {
        let balances = balancers::is_one(&object);
        let status = object.as_object_mut().and_then(|fields| fields.remove("status"));
        let status = status.map(|status| status.to_string()).unwrap_or_default();
        Self { object: object.to_string().into(), status: status.into(), balances }
    }

    /// As [`lasting`](Self::lasting) has it, of an object without a status.
    pub(super) fn without_status(object: &str, balances: bool) -> Self {
        Self { object: object.into(), status: "".into(), balances }
    }

    /// As the API server has it.
    pub(super) fn read(&self) -> Value {
        let mut object: Value = serde_json::from_str(&self.object).unwrap_or_default();
        if !self.status.is_empty() {
            object["status"] = serde_json::from_str(&self.status).unwrap_or_default();
        }
        object
    }

    /// What is kept over restarts of an object of this kind, in JSON: the object, and its status if that has the addresses of a
    /// Gateway.
    pub(super) fn lasting(&self, kind: Kind) -> [&str; 4] {
        let has_addresses = kind == Kind::Gateway || self.balances;
        match self.object.strip_suffix('}').filter(|_| has_addresses && !self.status.is_empty()) {
            Some(open) => [open, ",\"status\":", &self.status, "}"],
            None => [&self.object, "", "", ""],
        }
    }
}

/// A watch that the API server does not allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Of its objects.
    pub kind: Kind,
    /// Absent: all.
    pub namespace: Option<Arc<str>>,
    /// The status of its answer: 401 or 403.
    pub code: u16,
    /// Nothing is known of its objects from before.
    pub is_unseen: bool,
}

impl Inner {
    fn is_fresh(&self) -> bool {
        self.awaited.is_empty() && self.failing.is_empty() && !self.is_away && self.complete
    }

    fn note_end_of_freshness(&mut self, was_fresh: bool) {
        if was_fresh && !self.is_fresh() {
            self.fresh_at = Some(SystemTime::now());
        }
    }
}

impl Store {
    /// With the objects of an earlier process, which were good until then.
    pub(super) fn new(kept: Vec<(Key, Kept)>, fresh_at: Option<SystemTime>) -> Self {
        // Nothing is pending: every index begins with all there is.
        let inner = Inner { objects: kept.into_iter().collect(), fresh_at, ..Inner::default() };
        Self {
            inner: Mutex::new(inner),
            changed: Notify::new(),
            touched: Notify::new(),
            balancers: watch::Sender::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change of the maps is whole before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an object as the API server has it.
    pub(super) fn put(&self, key: Key, value: Value) {
        let object = Kept::new(value);
        let mut inner = self.lock();
        if inner.objects.get(&key) != Some(&object) {
            let balances = object.balances;
            let before = inner.objects.insert(key.clone(), object);
            self.note(&mut inner, key, balances || before.is_some_and(|before| before.balances));
        }
    }

    pub(super) fn remove(&self, key: Key) {
        let mut inner = self.lock();
        if let Some(before) = inner.objects.remove(&key) {
            self.note(&mut inner, key, before.balances);
        }
    }

    /// `balances`: it is of a load balancer of Gateways.
    fn note(&self, inner: &mut Inner, key: Key, balances: bool) {
        inner.version += 1;
        // Its status may have other addresses.
        inner.outside |=
            matches!(key.kind, Kind::Gateway | Kind::GatewayClass) || (balances && key.kind == Kind::Service);
        let balances = balances || key.kind == Kind::GatewayClass;
        inner.touched.insert(key.clone());
        inner.pending.insert(key);
        self.touched.notify_one();
        if balances {
            self.balancers.send_replace(());
        }
        if inner.complete {
            self.make_due(inner);
        }
    }

    fn make_due(&self, inner: &mut Inner) {
        inner.is_due = true;
        self.changed.notify_one();
    }

    /// Returns when there is something for [`take`](Self::take). Whoever stops to wait for this misses nothing.
    pub(super) async fn is_due(&self) {
        while !self.lock().is_due {
            self.changed.notified().await;
        }
    }

    /// Something outside the objects has changed.
    pub(super) fn note_outside(&self) {
        let mut inner = self.lock();
        inner.outside = true;
        self.make_due(&mut inner);
    }

    /// A watch begins, whose objects are not known yet.
    pub(super) fn await_list(&self, scope: &Scope) {
        self.lock().awaited.insert(scope.clone());
    }

    /// A watch has ended for good: its objects are of no interest any more.
    pub(super) fn forget(&self, scope: &Scope) {
        self.listed(scope, &HashSet::new());
        let mut inner = self.lock();
        inner.failing.remove(scope);
        inner.seen.remove(scope);
    }

    /// Of objects that are watched only if something asks for them, those stay that one of these watches covers.
    pub(super) fn retain_asked(&self, wanted: &HashSet<Scope>) {
        let mut inner = self.lock();
        let is_wanted = |key: &Key| {
            let Name { namespace, name } = &key.name;
            let scope = |name| Scope { kind: key.kind, namespace: Some(namespace.clone()), name };
            wanted.contains(&scope(Some(name.clone()))) || wanted.contains(&scope(None))
        };
        let unwanted = inner.objects.keys().filter(|key| is_asked_for(key.kind) && !is_wanted(key));
        for key in unwanted.cloned().collect::<Vec<_>>() {
            let before = inner.objects.remove(&key);
            self.note(&mut inner, key, before.is_some_and(|before| before.balances));
        }
    }

    /// A watch has listed all its objects.
    pub(super) fn listed(&self, scope: &Scope, there: &HashSet<Key>) {
        let mut inner = self.lock();
        let gone: Vec<Key> = scope.of(&inner.objects).filter(|key| !there.contains(*key)).cloned().collect();
        for key in gone {
            let before = inner.objects.remove(&key);
            self.note(&mut inner, key, before.is_some_and(|before| before.balances));
        }
        inner.seen.insert(scope.clone());
        inner.outside |= inner.denied.remove(scope).is_some();
        self.settle(&mut inner, scope);
    }

    /// A watch is not to be waited for: it may not look, as the API server says with this status. What is known of it stays.
    /// Whether that is news.
    pub(super) fn deny(&self, scope: &Scope, code: u16) -> bool {
        let mut inner = self.lock();
        // Who is not known at all hears nothing of what there is.
        if code == 403 {
            inner.failing.remove(scope);
        }
        let is_known = inner.seen.contains(scope) || scope.of(&inner.objects).next().is_some();
        let Scope { kind, namespace, .. } = scope.clone();
        let denial = Denial { kind, namespace, code, is_unseen: !is_known };
        let is_news = inner.denied.insert(scope.clone(), denial.clone()) != Some(denial);
        inner.outside |= is_news;
        self.settle(&mut inner, scope);
        is_news
    }

    /// The watches that are not allowed.
    pub(super) fn denials(&self) -> Vec<Denial> {
        self.lock().denied.values().cloned().collect()
    }

    fn settle(&self, inner: &mut Inner, scope: &Scope) {
        inner.awaited.remove(scope);
        inner.complete |= !inner.awaited.iter().any(|scope| !scope.is_asked_for());
        if inner.awaited.is_empty() {
            inner.fresh_at = Some(SystemTime::now());
        }
        if inner.complete {
            self.make_due(inner);
        }
        self.touched.notify_one();
        self.balancers.send_replace(());
    }

    /// Whether a watch works.
    pub(super) fn works(&self, scope: &Scope, works: bool) {
        let mut inner = self.lock();
        let was_fresh = inner.is_fresh();
        if works {
            inner.failing.remove(scope);
        } else {
            inner.failing.insert(scope.clone());
        }
        inner.note_end_of_freshness(was_fresh);
    }

    /// Whether the API server answers: a watch may not notice for long that it does not.
    pub(super) fn reaches(&self, answers: bool) {
        let mut inner = self.lock();
        let was_fresh = inner.is_fresh();
        inner.is_away = !answers;
        inner.note_end_of_freshness(was_fresh);
    }

    /// Another number after each change.
    pub(super) fn version(&self) -> u64 {
        self.lock().version
    }

    /// Whether anything of a watch's objects is known.
    pub(super) fn has(&self, scope: &Scope) -> bool {
        scope.of(&self.lock().objects).next().is_some()
    }

    /// Whether an object is there.
    pub(super) fn knows(&self, key: &Key) -> bool {
        self.lock().objects.contains_key(key)
    }

    /// Whether everything was listed that anything asks for.
    pub(super) fn is_settled(&self) -> bool {
        let inner = self.lock();
        inner.complete && inner.awaited.is_empty()
    }

    /// Whether everything was listed once that is watched whoever names it.
    pub(super) fn is_complete(&self) -> bool {
        self.lock().complete
    }

    pub(super) fn freshness(&self) -> Freshness {
        let inner = self.lock();
        match inner.is_fresh() {
            true => Freshness::Current,
            false => Freshness::Stale(inner.fresh_at),
        }
    }

    /// Brings an index up to date: a new one with all objects, another one with what has changed since this was last asked for.
    /// The objects of an earlier process are given at once, those of the API server when all are there. Also whether something
    /// outside them has changed.
    pub(super) fn take(&self, index: &mut Index, is_new: bool) -> (Change, bool) {
        let mut inner = self.lock();
        inner.is_due = false;
        let taken: Vec<(Key, Option<Kept>)> = match (is_new, inner.complete) {
            // What is pending stays so: the new index may not come into force.
            (true, _) => {
                inner.is_due = inner.complete && !inner.pending.is_empty();
                inner.objects.iter().map(|(key, there)| (key.clone(), Some(there.clone()))).collect()
            }
            (false, true) => {
                let pending = std::mem::take(&mut inner.pending);
                let there = |key| {
                    let there = inner.objects.get(&key).cloned();
                    (key, there)
                };
                pending.into_iter().map(there).collect()
            }
            (false, false) => return (Change::Nothing, false),
        };
        let outside = std::mem::take(&mut inner.outside);
        // To read them takes time, for which no watch is to wait.
        drop(inner);
        let mut change = Change::Nothing;
        for (key, there) in taken {
            let made = match there.as_ref().map(|there| Object::read(there.read())) {
                Some(Ok(Some(object))) => index.apply(object),
                Some(Err(refusal)) => {
                    tracing::warn!("{key} is not taken: {refusal}");
                    let there = there.as_ref().map(Kept::read).unwrap_or_default();
                    match Object::unread(key.clone(), &there, refusal) {
                        Some(object) => index.apply(object),
                        None => index.delete(&key),
                    }
                }
                Some(Ok(None)) | None => index.delete(&key),
            };
            change = change.max(made);
        }
        (change, outside)
    }

    /// The objects that have changed since this was last asked.
    pub(super) fn take_touched(&self) -> BTreeSet<Key> {
        std::mem::take(&mut self.lock().touched)
    }

    /// What `look` makes of an object.
    pub(super) fn with<T>(&self, key: &Key, look: impl FnOnce(Option<&Value>) -> T) -> T {
        let there = self.lock().objects.get(key).cloned();
        look(there.map(|there| there.read()).as_ref())
    }

    /// What `look` makes of those objects of a kind for which it makes something.
    pub(super) fn collect<T>(&self, kind: Kind, look: impl FnMut(&Key, &Value) -> Option<T>) -> Vec<T> {
        self.collect_if(kind, |_| true, look)
    }

    /// The same of those that are of a load balancer of Gateways.
    pub(super) fn collect_balancers<T>(
        &self,
        kind: Kind,
        look: impl FnMut(&Key, &Value) -> Option<T>,
    ) -> Vec<T> {
        self.collect_if(kind, |there| there.balances, look)
    }

    fn collect_if<T>(
        &self,
        kind: Kind,
        is_meant: impl Fn(&Kept) -> bool,
        mut look: impl FnMut(&Key, &Value) -> Option<T>,
    ) -> Vec<T> {
        let meant = self.of_kind(kind, is_meant);
        meant.iter().filter_map(|(key, there)| look(key, &there.read())).collect()
    }

    /// Those objects of a kind of which the status has this text in it and `look` says so, which is shown the status.
    pub(super) fn with_status(&self, kind: Kind, text: &str, look: impl Fn(&Value) -> bool) -> Vec<Key> {
        let mut meant = self.of_kind(kind, |there| there.status.contains(text));
        meant.retain(|(_, there)| look(&serde_json::from_str(&there.status).unwrap_or_default()));
        meant.into_iter().map(|(key, _)| key).collect()
    }

    fn of_kind(&self, kind: Kind, is_meant: impl Fn(&Kept) -> bool) -> Vec<(Key, Kept)> {
        let inner = self.lock();
        let of_kind = inner.objects.range(Key::new(kind, "", "")..).take_while(|(key, _)| key.kind == kind);
        let meant = of_kind.filter(|(_, there)| is_meant(there));
        meant.map(|(key, there)| (key.clone(), there.clone())).collect()
    }

    /// All objects, as they are to be kept over restarts.
    pub(super) fn all(&self) -> Vec<(Kind, Kept)> {
        self.lock().objects.iter().map(|(key, there)| (key.kind, there.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::gateway_api::Settings;
    use serde_json::json;
    use std::time::Duration;
    use tokio::time::timeout;

    /// One that has listed all Namespaces, of which there are none.
    fn store() -> Store {
        let store = Store::new(Vec::new(), None);
        let scope = Scope { kind: Kind::Namespace, namespace: None, name: None };
        store.await_list(&scope);
        store.listed(&scope, &HashSet::new());
        store
    }

    #[tokio::test]
    async fn a_change_is_due_until_it_is_taken_however_often_somebody_stops_to_wait_for_it() {
        let store = store();
        let mut index = Index::new(Settings::default());
        let is_due = || async { timeout(Duration::from_millis(50), store.is_due()).await.is_ok() };
        store.take(&mut index, false);
        assert!(!is_due().await);
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "db", "uid": "u"}});
        store.put(Key::of(&namespace).unwrap(), namespace.clone());
        assert!(is_due().await && is_due().await);
        // A new index may not come into force: then what is due is so for the old one.
        store.take(&mut Index::new(Settings::default()), true);
        assert!(is_due().await);
        store.take(&mut index, false);
        assert!(!is_due().await);
        store.put(Key::of(&namespace).unwrap(), namespace);
        assert!(!is_due().await, "nothing has changed");
    }

    fn object(kind: &str, name: &str) -> Value {
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": name, "namespace": "db"}, "spec": {}})
    }

    #[test]
    fn what_was_kept_is_taken_once_and_again_only_if_it_has_changed() {
        let route = |host: &str| {
            let mut route = object("TLSRoute", host);
            route["spec"]["hostnames"] = json!([host]);
            route
        };
        let all = ["a", "b", "c"].map(|host| (Key::of(&route(host)).unwrap(), Kept::new(route(host))));
        let store = Store::new(all.into(), Some(SystemTime::now()));
        let scope = Scope { kind: Kind::TlsRoute, namespace: None, name: None };
        store.await_list(&scope);
        let mut index = Index::new(Settings::default());
        store.take(&mut index, true);
        assert_eq!(index.keys().count(), 3);
        store.put(Key::of(&route("a")).unwrap(), route("a"));
        let mut other = route("b");
        other["spec"]["hostnames"] = json!(["x"]);
        let there: HashSet<Key> = [Key::of(&route("a")), Key::of(&other)].into_iter().flatten().collect();
        store.put(Key::of(&other).unwrap(), other);
        store.listed(&scope, &there);
        // One that has had nothing is shown what is taken.
        let mut changes = Index::new(Settings::default());
        store.take(&mut changes, false);
        assert_eq!(changes.keys().map(|key| &*key.name.name).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_scope_ends_where_its_kind_namespace_or_name_does() {
        let objects = ["a/x", "b/x", "b/xy", "b/y", "c/x"].map(|name| {
            let (namespace, name) = name.split_once('/').unwrap();
            [Kind::Service, Kind::Secret, Kind::ConfigMap].map(|kind| (Key::new(kind, namespace, name), ()))
        });
        let objects: BTreeMap<Key, ()> = objects.into_iter().flatten().collect();
        let of = |namespace: Option<&str>, name: Option<&str>| {
            let (namespace, name) = (namespace.map(Arc::from), name.map(Arc::from));
            let scope = Scope { kind: Kind::Secret, namespace, name };
            scope.of(&objects).map(|key| key.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of(None, None), ["a/x", "b/x", "b/xy", "b/y", "c/x"]);
        assert_eq!(of(Some("b"), None), ["b/x", "b/xy", "b/y"]);
        assert_eq!(of(Some("b"), Some("x")), ["b/x"]);
        assert_eq!(of(Some("b"), Some("w")), [] as [&str; 0]);
    }

    #[test]
    fn what_nothing_asks_for_goes() {
        let of = |kind, name: &str| Key::new(kind, "db", name);
        let (asked, unasked, pod) = (of(Kind::Secret, "a"), of(Kind::Secret, "b"), of(Kind::Pod, "a"));
        let all =
            [asked.clone(), unasked.clone(), of(Kind::ConfigMap, "a"), pod.clone(), of(Kind::Service, "a")];
        let kept = all.map(|key| (key, Kept::new(json!({}))));
        let store = Store::new(kept.into(), None);
        let scope = |kind, name| Scope { kind, namespace: Some("db".into()), name };
        store.retain_asked(&[scope(Kind::Secret, Some("a".into())), scope(Kind::Pod, None)].into());
        let left: Vec<Key> = store.lock().objects.keys().cloned().collect();
        let mut expected = vec![asked, pod, of(Kind::Service, "a")];
        expected.sort();
        assert_eq!(left, expected);
        assert!(store.take_touched().contains(&unasked), "an index hears of it");
    }

    #[test]
    fn objects_are_looked_at_while_watches_go_on() {
        let store = store();
        for name in ["a", "b"] {
            let mut route = object("TLSRoute", name);
            route["status"] = json!({"parents": [{"controllerName": format!("us/{name}")}]});
            store.put(Key::of(&route).unwrap(), route);
        }
        let is_free = || store.inner.try_lock().is_ok();
        assert_eq!(store.collect(Kind::TlsRoute, |_, _| is_free().then_some(())).len(), 2);
        let found = store.with_status(Kind::TlsRoute, "\"us/a\"", |status| {
            is_free() && status["parents"][0]["controllerName"] == "us/a"
        });
        assert_eq!(found, [Key::new(Kind::TlsRoute, "db", "a")]);
    }

    #[test]
    fn what_may_not_be_watched_is_unseen_unless_it_was_known() {
        let store = store();
        let scope = |kind| Scope { kind, namespace: None, name: None };
        let policies = scope(Kind::BackendTlsPolicy);
        let routes = scope(Kind::TlsRoute);
        for scope in [&policies, &routes] {
            store.await_list(scope);
        }
        store.put(Key::new(Kind::TlsRoute, "db", "a"), object("TLSRoute", "a"));
        store.listed(&routes, &[Key::new(Kind::TlsRoute, "db", "a")].into());
        let unseen = |store: &Store| {
            store.denials().iter().map(|denial| (denial.kind, denial.is_unseen)).collect::<Vec<_>>()
        };
        assert!(store.deny(&policies, 403) && !store.deny(&policies, 403) && store.deny(&routes, 403));
        assert_eq!(unseen(&store), [(Kind::TlsRoute, false), (Kind::BackendTlsPolicy, true)]);
        // Everything that can be known is: nothing is awaited.
        assert_eq!(store.freshness(), Freshness::Current);
        assert!(store.take(&mut Index::new(Settings::default()), false).1, "it counts for what is built");
        store.listed(&policies, &HashSet::new());
        assert!(store.take(&mut Index::new(Settings::default()), false).1);
        assert_eq!(unseen(&store), [(Kind::TlsRoute, false)]);
        store.works(&policies, false);
        assert!(store.deny(&policies, 401));
        assert!(matches!(store.freshness(), Freshness::Stale(Some(_))));
        assert_eq!(unseen(&store), [(Kind::TlsRoute, false), (Kind::BackendTlsPolicy, false)]);
    }
}
