//! Writes statuses: by one process at a time, only what differs, and never over what it has not seen.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::balancers::{Balancers, is_of};
use super::kinds::{MANAGER, resource};
use super::nodes::Heard;
use super::services::{self, Objects};
use super::store::Store;
use super::{lease, status};
use crate::config::gateway_api::{Key, Kind, Name, Status, Statuses};

/// Writes at once.
const AT_ONCE: usize = 8;
/// The pause after a write of an object; it doubles each time that another one is needed soon, so that two controllers that
/// contradict each other do not occupy the API server.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// For so long it is waited until all nodes serve a Gateway. After that its status says which do not: in between, an ordinary change
/// would show for a moment as something that is wrong.
const WAIT_FOR_NODES: Duration = Duration::from_secs(5);
/// How often the nodes are asked for while it is not known of each whether it is there.
const ASK_NODES: Duration = Duration::from_secs(1);
/// Nodes that a message names at most.
const MOST_NAMES: usize = 5;

/// What statuses are to be.
#[derive(Clone, Default)]
pub(super) struct Wanted {
    pub(super) statuses: Arc<Statuses>,
    /// They, or those before them, were made when everything was listed that anything asked for. What is made of nothing, or of what
    /// an earlier process has kept, would take our entries away.
    pub(super) is_whole: bool,
    /// They were made when it was known of each node whether it is there. Before, those of Gateways and ListenerSets stay as they
    /// are: with a node that is gone they would have its addresses, and wait for it; without one that is there, clients would be led
    /// away from it. A node that is there is known within seconds, when it renews its Lease, and a new cluster has no other ones.
    pub(super) is_settled: bool,
}

/// Writes what is wanted, for as long as it is polled.
pub(super) struct Writer {
    pub(super) client: Client,
    pub(super) controller: Arc<str>,
    /// Mode `service`.
    pub(super) balancers: Option<Balancers>,
    pub(super) store: Arc<Store>,
    pub(super) wanted: watch::Receiver<Wanted>,
    /// Until when this process may write.
    pub(super) leads: watch::Receiver<Option<Instant>>,
    pub(super) heard: watch::Receiver<Arc<Heard>>,
    pub(super) hurry: Arc<Notify>,
}

/// What was written, and what is to be looked at.
#[derive(Default)]
struct Memory {
    resources: HashMap<Kind, ApiResource>,
    /// Without their times.
    written: HashMap<Key, Value>,
    services: services::Written,
    /// Services that are somebody else's, which was said.
    foreign: BTreeSet<Key>,
    pauses: BTreeMap<Key, (Instant, Duration)>,
    /// Of Gateways and ListenerSets that other nodes do not serve yet the generation, and since when they are waited for.
    waiting: HashMap<Key, (i64, Instant)>,
    /// [`Refusal::OfKind`], which was said.
    refused: BTreeSet<(Kind, u16)>,
}

impl Memory {
    /// Forgets an object that is gone.
    fn forget(&mut self, key: &Key) {
        self.written.remove(key);
        self.services.forget(key);
        self.foreign.remove(key);
        self.pauses.remove(key);
        self.waiting.remove(key);
    }
}

impl Writer {
    pub(super) async fn run(mut self) {
        let memory = Mutex::new(Memory::default());
        let mut due: BTreeSet<Key> = BTreeSet::new();
        // What was wanted when it was last looked at.
        let mut looked_at = Arc::new(Statuses::new());
        // A look at everything is due: this process begins to write.
        let mut all_due = true;
        // Nothing may be written yet: whatever ends that is heard.
        let mut is_held_up = true;
        loop {
            let next = if is_held_up {
                Instant::now() + LONGEST_PAUSE
            } else {
                let memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                let soonest =
                    due.iter().filter_map(|key| memory.pauses.get(key)).map(|(until, _)| *until).min();
                soonest.unwrap_or_else(|| Instant::now() + LONGEST_PAUSE)
            };
            tokio::select! {
                Ok(()) = self.wanted.changed() => {}
                Ok(()) = self.leads.changed() => all_due = true,
                Ok(()) = self.heard.changed() => due.extend(self.of_all_nodes()),
                () = self.store.touched.notified() => {}
                () = sleep_until(next) => {}
            }
            let touched = self.store.take_touched();
            {
                let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                // Somebody may have removed it, so that it is made anew.
                due.extend(touched.iter().filter_map(|key| memory.services.owner(key)).cloned());
                let is_gone = |key: &&Key| !self.store.knows(key);
                touched.iter().filter(is_gone).for_each(|key| memory.forget(key));
            }
            due.extend(touched.into_iter().filter(|key| has_status(key.kind)));
            if self.leads.borrow_and_update().is_none() {
                // Whoever begins to write looks at everything.
                (due, all_due) = (BTreeSet::new(), true);
                continue;
            }
            let wanted = self.wanted.borrow_and_update().clone();
            is_held_up = !wanted.is_whole || !self.store.is_settled();
            if is_held_up {
                continue;
            }
            match std::mem::take(&mut all_due) {
                true => due.extend(self.everything()),
                false => {
                    let changed = differing(&looked_at, &wanted.statuses);
                    // The ports of its Service are those of its Gateways.
                    if self.balancers.as_ref().is_some_and(|balancers| balancers.merge)
                        && changed.iter().any(|key| matches!(key.kind, Kind::Gateway | Kind::ListenerSet))
                    {
                        let is_class = |key: &&Key| key.kind == Kind::GatewayClass;
                        due.extend(wanted.statuses.keys().filter(is_class).cloned());
                    }
                    due.extend(changed);
                }
            }
            looked_at = wanted.statuses.clone();
            let now = Instant::now();
            let is_ready = |key: &Key| {
                let memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                memory.pauses.get(key).is_none_or(|(until, _)| *until <= now)
            };
            let (ready, later): (BTreeSet<Key>, BTreeSet<Key>) = due.into_iter().partition(is_ready);
            due = later;
            let again = Mutex::new(BTreeSet::new());
            let (this, of, memory, unsuccessful) = (&self, &wanted, &memory, &again);
            futures_util::stream::iter(ready)
                .for_each_concurrent(AT_ONCE, |key| async move {
                    if !this.look_at(&key, of, memory).await {
                        unsuccessful.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
                    }
                })
                .await;
            due.append(&mut again.into_inner().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// What is said of with regard to all nodes.
    fn of_all_nodes(&self) -> Vec<Key> {
        let wanted = self.wanted.borrow();
        let keys = wanted.statuses.keys().filter(|key| matches!(key.kind, Kind::Gateway | Kind::ListenerSet));
        keys.cloned().collect()
    }

    /// What is to be said of an object with regard to all nodes; `None`: not yet, as some of them will say in a moment that they
    /// serve it, or that they are there.
    fn of_nodes<'s>(
        &self,
        key: &Key,
        status: &'s Status,
        is_settled: bool,
        memory: &Mutex<Memory>,
    ) -> Option<Cow<'s, Status>> {
        let generation = match status {
            Status::Gateway(_) | Status::ListenerSet(_) => status.generation().unwrap_or(0),
            Status::Class(_) | Status::Route(_) | Status::Policy(_) | Status::Rule(_) => {
                return Some(Cow::Borrowed(status));
            }
        };
        let heard = self.heard.borrow().clone();
        let lagging = heard.lagging(key, generation);
        let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_settled {
            memory.pauses.insert(key.clone(), (Instant::now() + ASK_NODES, FIRST_PAUSE));
            self.hurry.notify_one();
            return None;
        }
        if lagging.is_empty() {
            memory.waiting.remove(key);
            return Some(Cow::Borrowed(status));
        }
        let now = Instant::now();
        let (waited_for, since) = memory.waiting.entry(key.clone()).or_insert((generation, now));
        if *waited_for != generation {
            (*waited_for, *since) = (generation, now);
        }
        let waits = since.elapsed() < WAIT_FOR_NODES;
        if waits {
            memory.pauses.insert(key.clone(), (now + FIRST_PAUSE, FIRST_PAUSE));
            self.hurry.notify_one();
            return None;
        }
        let mut status = status.clone();
        let most = lagging.iter().take(MOST_NAMES).copied().collect::<Vec<_>>().join(", ");
        let more = if lagging.len() > MOST_NAMES { " and others" } else { "" };
        status.wait(&format!("not served yet by {most}{more}"));
        Some(Cow::Owned(status))
    }

    /// Every object whose status is ours to write, or has something of ours.
    fn everything(&self) -> BTreeSet<Key> {
        let wanted = self.wanted.borrow();
        let mut all: BTreeSet<Key> =
            wanted.statuses.keys().filter(|key| has_status(key.kind)).cloned().collect();
        for kind in Kind::ALL {
            if let Some(list) = status::list_of(kind) {
                let text = json!(&*self.controller).to_string();
                let is_ours = |status: &Value| status::has_entry(list, &self.controller, status);
                all.extend(self.store.with_status(kind, &text, is_ours));
            }
        }
        all
    }

    /// Writes the status of an object if it differs. `false`: it did not succeed, or something is to be written again later.
    async fn look_at(&self, key: &Key, all: &Wanted, memory: &Mutex<Memory>) -> bool {
        if !self.store.knows(key) {
            return true;
        }
        let Wanted { statuses: all, is_settled, .. } = all;
        let wanted = match all.get(key) {
            Some(wanted) => match self.of_nodes(key, wanted, *is_settled, memory) {
                Some(wanted) => Some(wanted),
                None => return false,
            },
            None => None,
        };
        let wanted = wanted.as_deref();
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string();
        let patch = self.store.with(key, |there| self.patch(key, wanted, there?, &now, memory));
        if let Some((patch, is_apply)) = patch {
            let Some(written) =
                lease::while_held(&self.leads, self.write(key, &patch, is_apply, memory)).await
            else {
                return false;
            };
            if let Err(error) = written {
                return note_failure(memory, key, &error);
            }
            note_pause(memory, key);
        }
        let mut done = true;
        for objects in self.services(key, all) {
            done &= self.offer(key, objects, memory).await;
        }
        match (wanted, &self.balancers) {
            (Some(Status::Class(_)), Some(balancers)) if balancers.merge && done => {
                self.take_back(&balancers.service_of_class(&key.name.name), key, all).await
            }
            _ => done,
        }
    }

    /// The Services that there are to be for the sake of an object: one without an address, by which a Gateway is known inside the
    /// cluster, and one of the type LoadBalancer, for each Gateway or for a class.
    fn services(&self, key: &Key, all: &Statuses) -> Vec<Objects> {
        let balancers = self.balancers.as_ref();
        match (all.get(key).map(|status| &**status), balancers) {
            (Some(Status::Gateway(status)), _) => {
                let of = |gateway: &Value| {
                    let own = balancers.filter(|balancers| !balancers.merge);
                    let own = own.and_then(|balancers| balancers.of_gateway(key, gateway, status));
                    std::iter::once(services::of(key, gateway, status)).chain(own).collect()
                };
                self.store.with(key, |gateway| gateway.map(of)).unwrap_or_default()
            }
            (Some(Status::Class(_)), Some(balancers)) if balancers.merge => {
                let ports = self.ports_of_class(key, all);
                let of = |class: &Value| balancers.of_class(key, class, &ports);
                self.store.with(key, |class| class.and_then(of)).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// The ports of all Gateways of a class.
    fn ports_of_class(&self, class: &Key, all: &Statuses) -> BTreeSet<u16> {
        let is_of = |gateway: &Key| {
            let is_it = |there: &Value| there["spec"]["gatewayClassName"] == *class.name.name;
            self.store.with(gateway, |there| there.is_some_and(is_it))
        };
        let statuses = all.iter().filter_map(|(key, status)| match &**status {
            Status::Gateway(status) if is_of(key) => Some(&status.ports),
            _ => None,
        });
        statuses.flatten().copied().collect()
    }

    /// What is to be written of an object, and whether by server-side apply; `None`: nothing.
    fn patch(
        &self,
        key: &Key,
        wanted: Option<&Status>,
        there: &Value,
        now: &str,
        memory: &Mutex<Memory>,
    ) -> Option<(Value, bool)> {
        let version = &there["metadata"]["resourceVersion"];
        if let Some(list) = status::list_of(key.kind) {
            let entries = status::entries(list, wanted, &self.controller, &there["status"], now);
            let known = &there["status"][list.name];
            let is_known =
                *known == entries || known.is_null() && entries.as_array().is_some_and(Vec::is_empty);
            return (!is_known).then(|| {
                let metadata = json!({"resourceVersion": version});
                (json!({"metadata": metadata, "status": {(list.name): entries}}), false)
            });
        }
        let status = status::whole(wanted?, &there["status"], now);
        let memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        // What is there in addition may be another manager's, or of ours from before: that is told by what we have written.
        let timeless = serde_json::to_value(wanted?).unwrap_or_default();
        if memory.written.get(key) == Some(&timeless) && status::says_it(&there["status"], &status) {
            return None;
        }
        let metadata = json!({
            "name": &*key.name.name,
            "namespace": (!key.kind.is_of_cluster()).then_some(&*key.name.namespace),
            "resourceVersion": version,
        });
        let (api_version, kind) = (&there["apiVersion"], key.kind.name());
        Some((json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "status": status}), true))
    }

    async fn write(
        &self,
        key: &Key,
        patch: &Value,
        is_apply: bool,
        memory: &Mutex<Memory>,
    ) -> Result<(), kube::Error> {
        let known = memory.lock().unwrap_or_else(PoisonError::into_inner).resources.get(&key.kind).cloned();
        let resource = match known {
            Some(resource) => resource,
            None => match resource(&self.client, key.kind).await? {
                Some(resource) => resource,
                // The kind is gone, and its objects with it.
                None => return Ok(()),
            },
        };
        let api: Api<DynamicObject> = match key.kind.is_of_cluster() {
            true => Api::all_with(self.client.clone(), &resource),
            false => Api::namespaced_with(self.client.clone(), &key.name.namespace, &resource),
        };
        let (name, params) = (&*key.name.name, PatchParams::default());
        let written = match is_apply {
            true => api.patch_status(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(patch)).await,
            false => api.patch_status(name, &params, &Patch::Merge(patch)).await,
        };
        let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        match written {
            Ok(_) => {
                memory.resources.insert(key.kind, resource);
                memory.refused.retain(|(kind, _)| *kind != key.kind);
                if is_apply {
                    memory.written.insert(key.clone(), without_times(patch["status"].clone()));
                }
                Ok(())
            }
            Err(error) => {
                // It may be there in another version by now.
                memory.resources.remove(&key.kind);
                Err(error)
            }
        }
    }

    /// Writes a Service, unless it is there or somebody else's.
    async fn offer(&self, key: &Key, objects: Objects, memory: &Mutex<Memory>) -> bool {
        let service = Key::new(Kind::Service, &objects.namespace, &objects.name);
        let is_gone = self.store.with(&service, |there| match there {
            None => Some(true),
            Some(there) => objects.is_like(there).then_some(false),
        });
        let Some(is_gone) = is_gone else {
            if memory.lock().unwrap_or_else(PoisonError::into_inner).foreign.insert(service.clone()) {
                tracing::warn!(%key, "{service} is somebody else's, and stays as it is");
            }
            return true;
        };
        if !is_gone && memory.lock().unwrap_or_else(PoisonError::into_inner).services.has(&service, &objects)
        {
            return true;
        }
        let Some(written) = lease::while_held(&self.leads, services::write(&self.client, &objects)).await
        else {
            return false;
        };
        match written {
            Ok(()) => {
                let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                memory.services.note(service, key.clone(), objects);
                true
            }
            Err(error) => {
                match &error {
                    // Not allowed, or a field that cannot change (the class of a load balancer): an operator must hear of it.
                    kube::Error::Api(answer) if matches!(answer.code, 403 | 422) => {
                        tracing::warn!(%key, %error, "{service} is not written");
                    }
                    _ => tracing::debug!(%key, %error, "{service} is not written"),
                }
                note_pause(memory, key);
                false
            }
        }
    }

    /// Removes the Service of a class that no Gateway asks for a port any more.
    async fn take_back(&self, service: &Name, class: &Key, all: &Statuses) -> bool {
        let key = Key { kind: Kind::Service, name: service.clone() };
        let is_there =
            self.store.with(&key, |there| there.is_some_and(|there| is_of(there, &class.name.name, None)));
        if !is_there || !self.ports_of_class(class, all).is_empty() {
            return true;
        }
        let services: Api<Service> = Api::namespaced(self.client.clone(), &service.namespace);
        let params = DeleteParams::default();
        match lease::while_held(&self.leads, services.delete(&service.name, &params)).await {
            None => false,
            Some(Ok(_)) => true,
            Some(Err(error)) => {
                tracing::debug!(%class, %error, "its Service is not removed");
                false
            }
        }
    }
}

/// The objects of which something else is wanted than before.
fn differing(before: &Arc<Statuses>, wanted: &Arc<Statuses>) -> Vec<Key> {
    if Arc::ptr_eq(before, wanted) {
        return Vec::new();
    }
    let mut differing = Vec::new();
    let (mut before, mut wanted) = (before.iter().peekable(), wanted.iter().peekable());
    // Both are in the order of the keys. Of very many, nearly all are the same in memory.
    loop {
        let order = match (before.peek(), wanted.peek()) {
            (Some((before, _)), Some((wanted, _))) => before.cmp(wanted),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return differing,
        };
        let before = if order.is_le() { before.next() } else { None };
        let wanted = if order.is_ge() { wanted.next() } else { None };
        if before != wanted {
            differing.extend(before.or(wanted).map(|(key, _)| key.clone()));
        }
    }
}

/// Why a status is not written that would not be the next time either.
#[derive(Debug, PartialEq)]
enum Refusal {
    /// The object is not there any more.
    Gone,
    /// Nor would others of the kind be: the right is missing, or there is no such status. The code of the answer.
    OfKind(u16),
}

/// `None`: it may be otherwise next time.
fn refusal(error: &kube::Error, key: &Key) -> Option<Refusal> {
    let kube::Error::Api(answer) = error else { return None };
    let named = answer.details.as_ref().map_or("", |details| &details.name);
    match answer.code {
        404 if *named == *key.name.name => Some(Refusal::Gone),
        code @ (403 | 404) => Some(Refusal::OfKind(code)),
        _ => None,
    }
}

/// Notes that a status is not written; whether there is none to be written any more.
fn note_failure(memory: &Mutex<Memory>, key: &Key, error: &kube::Error) -> bool {
    let refusal = refusal(error, key);
    if refusal == Some(Refusal::Gone) {
        return true;
    }
    note_pause(memory, key);
    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    match refusal {
        Some(Refusal::OfKind(code)) if memory.refused.insert((key.kind, code)) => {
            tracing::warn!(%key, code, %error, "the status is not written, as that of any other object of its kind");
        }
        // 409: it has changed since, which the watch tells.
        _ => tracing::debug!(%key, %error, "the status is not written"),
    }
    false
}

fn note_pause(memory: &Mutex<Memory>, key: &Key) {
    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    let before = memory.pauses.get(key).copied();
    let pause = match before {
        Some((until, pause)) if now < until + pause * 2 => (pause * 2).min(LONGEST_PAUSE),
        _ => FIRST_PAUSE,
    };
    memory.pauses.insert(key.clone(), (now + pause, pause));
}

/// Whether it has a status of the Gateway API; what became of Istio's objects is shown, and not written.
fn has_status(kind: Kind) -> bool {
    status::list_of(kind).is_some() || matches!(kind, Kind::GatewayClass | Kind::Gateway | Kind::ListenerSet)
}

fn without_times(mut status: Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.remove("lastTransitionTime");
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut status);
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::gateway_api::{GatewayStatus, RouteStatus};

    #[test]
    fn only_what_has_changed_is_looked_at_again() {
        let status = || Arc::new(Status::Route(RouteStatus { parents: vec![] }));
        let key = |name: &str| Key::new(Kind::TlsRoute, "db", name);
        let class = Status::Class(crate::config::gateway_api::ClassStatus {
            conditions: vec![],
            supported_features: vec![],
        });
        let before: Arc<Statuses> =
            Arc::new(["same", "other", "gone"].map(|name| (key(name), status())).into());
        let after = [(key("same"), status()), (key("other"), class.into()), (key("new"), status())];
        let found = differing(&before, &Arc::new(after.into()));
        assert_eq!(found, [key("gone"), key("new"), key("other")]);
        assert_eq!(differing(&before, &before), []);
    }

    #[test]
    fn what_is_gone_is_told_from_what_cannot_be_written() {
        let key = Key::new(Kind::TlsRoute, "db", "a");
        let error = |answer: Value| kube::Error::Api(Box::new(serde_json::from_value(answer).unwrap()));
        for (answer, expected) in [
            (json!({"code": 404, "details": {"name": "a", "kind": "tlsroutes"}}), Some(Refusal::Gone)),
            // Without the subresource, and not of an API server.
            (json!({"code": 404, "details": {}}), Some(Refusal::OfKind(404))),
            (json!({"code": 404}), Some(Refusal::OfKind(404))),
            (json!({"code": 403, "details": {"name": "a", "kind": "tlsroutes"}}), Some(Refusal::OfKind(403))),
            (json!({"code": 409, "details": {"name": "a"}}), None),
            (json!({"code": 503}), None),
        ] {
            assert_eq!(refusal(&error(answer.clone()), &key), expected, "{answer}");
        }
    }

    #[tokio::test]
    async fn what_gateways_say_waits_until_the_nodes_are_known() {
        let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let (_, leads) = watch::channel(None);
        let writer = Writer {
            client: Client::try_from(nowhere).unwrap(),
            controller: "example.com/gateway".into(),
            balancers: None,
            store: Arc::new(Store::new(vec![], None)),
            wanted: watch::Sender::default().subscribe(),
            leads,
            heard: watch::Sender::default().subscribe(),
            hurry: Arc::default(),
        };
        let (gateway, route) = (Key::new(Kind::Gateway, "db", "a"), Key::new(Kind::TlsRoute, "db", "a"));
        let of_gateway = Status::Gateway(GatewayStatus {
            addresses: vec![],
            conditions: vec![],
            listeners: vec![],
            attached_listener_sets: 0,
            ports: [].into(),
        });
        let of_route = Status::Route(RouteStatus { parents: vec![] });
        let memory = Mutex::new(Memory::default());
        assert!(writer.of_nodes(&gateway, &of_gateway, false, &memory).is_none());
        // Meanwhile the nodes are asked for, again and again.
        assert!(memory.lock().unwrap().pauses.contains_key(&gateway));
        tokio::time::timeout(ASK_NODES, writer.hurry.notified()).await.unwrap();
        assert!(writer.of_nodes(&route, &of_route, false, &memory).is_some(), "it is of no node");
        assert!(writer.of_nodes(&gateway, &of_gateway, true, &memory).is_some());
    }
}
