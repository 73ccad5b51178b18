//! The connection: watches, statuses and Leases, as tasks of the runtime that makes it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::Client;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::addresses::{Wish, assign};
use super::asked::Asked;
use super::client::client;
use super::endpoints::{Bound, Endpoints};
use super::names::Names;
use super::nodes::{Heard, Word};
use super::scope::{Scope, is_asked_for};
use super::serves::Serves;
use super::settings::Settings;
use super::store::{Denial, Freshness, Store};
use super::watch::follow;
use super::write::{Wanted, Writer};
use super::{balancers, definitions, keep, lease, nodes};
use crate::config::gateway_api::{
    self, Assigned, Change, Context, Definitions, Index, Key, Kind, Lacking, Mode, Name, Statuses,
};

/// How often the objects are kept, if they have changed.
const KEEP_EVERY: Duration = Duration::from_secs(10);
/// So many addresses that were given back last are given to nobody while there are others.
const RESTING: usize = 16;

/// So many changes within this time make one configuration.
const BURST: Duration = Duration::from_millis(100);
/// So long the end of this process waits until it is known that it takes no more connections.
const LEAVE: Duration = Duration::from_secs(3);

/// An API server and what is known of it. Everything ends with this value.
pub struct ApiServer {
    settings: Settings,
    store: Arc<Store>,
    statuses: watch::Sender<Wanted>,
    /// Until when this process may write.
    leads: watch::Sender<Option<Instant>>,
    /// What this node says of itself, and what all say.
    word: watch::Sender<Option<Word>>,
    heard: watch::Sender<Arc<Heard>>,
    hurry: Arc<Notify>,
    definitions: watch::Sender<Definitions>,
    /// Mode `service`: where sockets listen, and for which number of it that was told.
    bound: watch::Sender<Bound>,
    told: watch::Sender<u64>,
    state: Mutex<State>,
}

struct State {
    /// The tasks, once they were started.
    following: Option<Following>,
    /// When an index was last brought up to date.
    taken: Instant,
    /// When an index was last brought up to date, everything was listed that anything asked for.
    is_listed: bool,
    /// [`Wanted::is_whole`].
    is_whole: bool,
    /// What was kept of an earlier process, and nothing asks for any more, is gone.
    is_pruned: bool,
    /// When it was last looked around, it was known of each node whether it is there.
    is_settled: bool,
    /// Mode `pool`.
    assigned: BTreeMap<Name, Vec<IpAddr>>,
    /// The last addresses that were given back.
    resting: Vec<IpAddr>,
}

/// Tasks of a runtime.
struct Following {
    client: Client,
    tasks: JoinSet<()>,
    asked: Asked,
    /// [`ApiServer::take_part`].
    takes_part: bool,
}

impl ApiServer {
    /// With the objects that were kept; the API server is not asked yet.
    pub fn new(settings: Settings) -> Self {
        let (mut kept, since) = settings.keep.as_deref().map(keep::read).unwrap_or_default();
        let scopes = settings.scopes();
        // What is not watched any more would never be found to be gone. Of what is asked for by name, nobody knows yet which
        // names there are.
        kept.retain(|(key, _)| is_asked_for(key.kind) || scopes.iter().any(|scope| scope.covers(key)));
        let store = Store::new(kept, since);
        for scope in scopes {
            store.await_list(&scope);
        }
        Self {
            settings,
            store: Arc::new(store),
            statuses: watch::Sender::default(),
            leads: watch::Sender::new(None),
            word: watch::Sender::new(None),
            heard: watch::Sender::default(),
            hurry: Arc::default(),
            definitions: watch::Sender::default(),
            bound: watch::Sender::default(),
            told: watch::Sender::default(),
            state: Mutex::new(State {
                following: None,
                taken: Instant::now(),
                is_listed: false,
                is_whole: false,
                is_pruned: false,
                is_settled: false,
                assigned: BTreeMap::new(),
                resting: Vec::new(),
            }),
        }
    }

    /// Whether it is this one that is asked for.
    pub fn is(&self, settings: &Settings) -> bool {
        self.settings == *settings
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of it is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to follow it, in the runtime that calls this; it may be away. Nothing is written there before
    /// [`take_part`](Self::take_part) and [`served`](Self::served). An error: the configuration says nothing that
    /// could be asked.
    pub async fn follow(&self) -> anyhow::Result<()> {
        let settings = &self.settings;
        let client = client(settings.kubeconfig.as_deref()).await?;
        let store = &self.store;
        let mut tasks = JoinSet::new();
        for scope in settings.scopes() {
            tasks.spawn(follow(client.clone(), scope, store.clone()));
        }
        let writer = Writer {
            client: client.clone(),
            controller: settings.controller.clone(),
            balancers: settings.balancers.clone(),
            store: store.clone(),
            wanted: self.statuses.subscribe(),
            leads: self.leads.subscribe(),
            heard: self.heard.subscribe(),
            hurry: self.hurry.clone(),
        };
        tasks.spawn(writer.run());
        let (lost, here) = (watch::Sender::default(), watch::Sender::default());
        if settings.balancers.is_some() {
            let endpoints = Endpoints {
                client: client.clone(),
                store: store.clone(),
                controller: settings.controller.clone(),
                node: settings.node.clone(),
                bound: self.bound.subscribe(),
                here: here.subscribe(),
                lost: lost.subscribe(),
                leads: self.leads.subscribe(),
                told: self.told.clone(),
            };
            tasks.spawn(endpoints.keep());
        }
        let node = nodes::Node {
            leases: kube::Api::namespaced(client.clone(), &settings.lease_namespace),
            nodes: kube::Api::all(client.clone()),
            names: Names::of(&settings.controller),
            controller: settings.controller.clone(),
            name: settings.node.clone(),
            word: self.word.subscribe(),
            heard: self.heard.clone(),
            hurry: self.hurry.clone(),
            lost,
            leads: self.leads.subscribe(),
            here,
            store: store.clone(),
        };
        tasks.spawn(node.announce());
        tasks.spawn(definitions::follow(client.clone(), self.definitions.clone(), store.clone()));
        let following = Following { client, tasks, asked: Asked::default(), takes_part: false };
        self.state().following = Some(following);
        Ok(())
    }

    /// From here on, if it is followed, this process may hold the Lease, by which it writes what it makes of the objects; and they
    /// are kept. In the runtime of [`ApiServer::follow`].
    pub fn take_part(&self) {
        let (settings, store) = (&self.settings, &self.store);
        let mut state = self.state();
        let Some(Following { client, tasks, takes_part, .. }) = &mut state.following else { return };
        if std::mem::replace(takes_part, true) {
            return;
        }
        tasks.spawn(lease::stand(
            kube::Api::namespaced(client.clone(), &settings.lease_namespace),
            Names::of(&settings.controller).leader,
            settings.identity.clone(),
            self.leads.clone(),
            store.clone(),
        ));
        if let Some(path) = settings.keep.clone() {
            tasks.spawn(keep_objects(store.clone(), path));
        }
    }

    /// Returns when objects have changed, or what is outside them and counts; a burst of changes is one.
    pub async fn changed(&self) {
        self.store.is_due().await;
        let until = self.state().taken + BURST;
        sleep_until(until).await;
    }

    /// Brings an index up to date. What that asks for, and whether [`look_around`](Self::look_around) and
    /// [`assigned`](Self::assigned) may have changed.
    /// `is_new`: the index has had nothing of it yet.
    pub fn take(&self, index: &mut Index, is_new: bool) -> (Change, bool) {
        let mut state = self.state();
        // First: what is listed from here on may be taken or not.
        (state.taken, state.is_listed) = (Instant::now(), self.store.is_settled());
        drop(state);
        self.store.take(index, is_new)
    }

    /// Puts into `context` what is known of the nodes that serve the same, and of the cluster's definitions.
    pub fn look_around(&self, context: &mut Context) {
        let heard = self.heard.borrow().clone();
        self.state().is_settled = heard.is_settled;
        context.nodes.clone_from(&heard.reached);
        context.name = heard.has_others().then(|| self.settings.node.as_str().into());
        context.peers.clone_from(&heard.own);
        context.elsewhere.clone_from(&heard.lacking);
        context.definitions.clone_from(&self.definitions.borrow());
        let unseen = self.denials().into_iter().filter(|denial| denial.is_unseen);
        let unseen = unseen.map(|denial| (denial.kind, denial.namespace.unwrap_or_else(|| "".into())));
        context.unseen = unseen.collect();
    }

    /// Where each Gateway is: in mode `pool` by the addresses that are given out, in mode `service` by what load balancers say.
    /// `own`: addresses of this node that no Gateway can have.
    pub fn assigned(
        &self,
        settings: &gateway_api::Settings,
        own: &BTreeSet<IpAddr>,
    ) -> BTreeMap<Name, Assigned> {
        let classes: BTreeSet<String> = self
            .store
            .collect(Kind::GatewayClass, |key, value| {
                let is_ours = value["spec"]["controllerName"] == *self.settings.controller;
                is_ours.then(|| key.name.name.to_string())
            })
            .into_iter()
            .collect();
        let gateways = self.store.collect(Kind::Gateway, |key, value| {
            let class = value["spec"]["gatewayClassName"].as_str().unwrap_or_default();
            let wish = classes.contains(class).then(|| wish(key, value))?;
            Some((class.to_owned(), wish))
        });
        match settings.mode {
            Mode::Service => self.balanced(gateways, settings, own),
            _ => self.pooled(gateways, settings),
        }
    }

    fn balanced(
        &self,
        gateways: Vec<(String, Wish)>,
        settings: &gateway_api::Settings,
        own: &BTreeSet<IpAddr>,
    ) -> BTreeMap<Name, Assigned> {
        let Some(balancers) = &self.settings.balancers else { return BTreeMap::new() };
        let heard = self.heard.borrow().clone();
        let why_not = |ip: IpAddr| -> Option<&'static str> {
            let is_local = match ip {
                IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
                IpAddr::V6(ip) => ip.is_unicast_link_local(),
            };
            if heard.reached.contains(&ip) || own.contains(&ip) {
                return Some(
                    "is a node's own, which mode `service` takes from nobody (ServiceLB of k3s gives it)",
                );
            }
            if is_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
                return Some("is no address that clients could reach");
            }
            let is_listed = settings.addresses.is_empty() || settings.may_name(ip);
            (!is_listed).then_some("is none of `gateway_api.addresses`")
        };
        let place = |(class, wish): (String, Wish)| {
            let service = balancers.service_of(&wish.gateway, &class);
            let gateway = (!balancers.merge).then_some(&*wish.gateway.name);
            let key = Key { kind: Kind::Service, name: service };
            let assigned = self.store.with(&key, |service| {
                let service = service.filter(|service| balancers::is_of(service, &class, gateway))?;
                Some(balancers::assigned(service, why_not))
            });
            Some((wish.gateway, assigned?))
        };
        gateways.into_iter().filter_map(place).collect()
    }

    /// Whoever does not hold the Lease reads them in the statuses.
    fn pooled(
        &self,
        gateways: Vec<(String, Wish)>,
        settings: &gateway_api::Settings,
    ) -> BTreeMap<Name, Assigned> {
        let ranges = &settings.addresses;
        // With `merge` it is the classes that have addresses.
        let (mut wishes, mut owner_of) = (BTreeMap::<Name, Wish>::new(), BTreeMap::new());
        for (class, wish) in gateways {
            let owner = if settings.merge { Name::new("", &class) } else { wish.gateway.clone() };
            owner_of.insert(wish.gateway.clone(), owner.clone());
            wishes
                .entry(owner.clone())
                .and_modify(|all| all.add(&wish))
                .or_insert_with(|| Wish { gateway: owner, ..wish });
        }
        let wishes = wishes.into_values();
        let mut guard = self.state();
        let state = &mut *guard;
        let leads = self.leads.borrow().is_some_and(|until| Instant::now() < until);
        let assigned: BTreeMap<Name, Vec<IpAddr>> = match leads && self.store.is_complete() {
            true => {
                // What was assigned may not be in the statuses yet.
                let with_last = wishes.map(|wish| {
                    let last = state.assigned.get(&wish.gateway).cloned().unwrap_or_default();
                    Wish { held: [last, wish.held.clone()].concat(), ..wish }
                });
                assign(with_last.collect(), ranges, &state.resting.iter().copied().collect())
            }
            // Others may write a status too: only what this gateway gives out is ever bound.
            false => {
                let is_ours = |ip: &IpAddr| ranges.iter().any(|range| range.contains(ip));
                let held =
                    |wish: Wish| (wish.gateway, wish.held.into_iter().filter(|ip| is_ours(ip)).collect());
                wishes.map(held).collect()
            }
        };
        let before = state.assigned.values().flatten();
        let given_back = before.filter(|address| !assigned.values().flatten().any(|now| now == *address));
        state.resting.extend(given_back);
        let surplus = state.resting.len().saturating_sub(RESTING);
        state.resting.drain(..surplus);
        state.assigned.clone_from(&assigned);
        let of = |(gateway, owner): (Name, Name)| {
            let addresses = assigned.get(&owner).cloned().unwrap_or_default();
            (gateway, Assigned { addresses, ..Assigned::default() })
        };
        owner_of.into_iter().map(of).collect()
    }

    /// Mode `service`: sockets listen at these addresses, and at no others.
    pub fn listens(&self, addresses: &BTreeSet<SocketAddr>) {
        self.bound.send_if_modified(|(number, bound)| {
            let differs = *number == 0 || **bound != *addresses;
            if differs {
                (*number, *bound) = (*number + 1, Arc::new(addresses.clone()));
            }
            differs
        });
    }

    /// Mode `service`: load balancers are told to send no more clients here; returns when that was written, or could not be.
    /// Whether there was anything to tell.
    pub async fn leave(&self) -> bool {
        if self.settings.balancers.is_none() || self.bound.borrow().1.is_empty() {
            return false;
        }
        self.listens(&BTreeSet::new());
        let wanted = self.bound.borrow().0;
        let mut told = self.told.subscribe();
        if timeout(LEAVE, told.wait_for(|told| *told >= wanted)).await.is_err() {
            tracing::warn!("the API server was not told that this node takes no more connections");
        }
        true
    }

    /// Ends all that [`follow`](Self::follow) has begun: another process is to hold the Lease, and this node is not to count among
    /// those that serve, for as long as it only waits for its last connections.
    pub fn end(&self) {
        self.state().following = None;
    }

    /// What was built is served, by a node with these addresses that lacks some ports: what it says of the objects is written, and
    /// what it asks for is watched. In the runtime of [`ApiServer::follow`].
    /// `of_node`: those of its addresses that it does not have for the sake of Gateways.
    pub fn served(
        &self,
        index: &Index,
        statuses: &Arc<Statuses>,
        lacking: &Lacking,
        own: &[IpAddr],
        of_node: &BTreeSet<IpAddr>,
    ) {
        // Before, it is not what the API server has.
        if self.store.is_complete() {
            let word = Some(Word {
                own: own.to_vec(),
                of_node: of_node.iter().copied().collect(),
                serves: Serves::of(statuses, lacking),
            });
            self.word.send_if_modified(|known| {
                let differs = *known != word;
                *known = word;
                differs
            });
        }
        self.ask(index);
        let mut state = self.state();
        state.is_whole |= state.is_listed && self.store.is_settled();
        // What is known now would be too new: more may be known of the nodes than what these were made of.
        let (is_whole, is_settled) = (state.is_whole, state.is_settled);
        drop(state);
        self.statuses.send_if_modified(|known| {
            let differs = !Arc::ptr_eq(&known.statuses, statuses)
                || (known.is_whole, known.is_settled) != (is_whole, is_settled);
            *known = Wanted { statuses: statuses.clone(), is_whole, is_settled };
            differs
        });
    }

    /// What an index asks for is watched, and nothing else by name. In the runtime of [`ApiServer::follow`].
    pub fn ask(&self, index: &Index) {
        let wanted: HashSet<Scope> = index.wanted().map(Scope::from).collect();
        let mut state = self.state();
        // Nobody asked for these since the start, so that no watch of them ends.
        if state.is_listed && !std::mem::replace(&mut state.is_pruned, true) {
            self.store.retain_asked(&wanted);
        }
        let Some(Following { client, asked, .. }) = &mut state.following else { return };
        asked.set(
            wanted,
            |scope| self.store.forget(scope),
            |scope| {
                self.store.await_list(scope);
                follow(client.clone(), scope.clone(), self.store.clone())
            },
        );
    }

    /// Whether [`follow`](Self::follow) was called.
    pub fn is_followed(&self) -> bool {
        self.state().following.is_some()
    }

    /// Whether objects of this kind are looked for.
    pub fn follows(&self, kind: Kind) -> bool {
        is_asked_for(kind) || self.settings.kinds.contains(&kind)
    }

    /// The watches that the API server does not allow.
    pub fn denials(&self) -> Vec<Denial> {
        self.store.denials()
    }

    /// How old the objects are.
    pub fn freshness(&self) -> Freshness {
        self.store.freshness()
    }
}

fn wish(key: &Key, gateway: &Value) -> Wish {
    let entries = gateway["spec"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let values = entries.iter().map(|entry| entry["value"].as_str().unwrap_or_default());
    let held = gateway["status"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ip = |entry: &Value| entry["value"].as_str()?.parse().ok();
    Wish {
        gateway: key.name.clone(),
        created: gateway["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned(),
        any: entries.is_empty() || values.clone().any(str::is_empty),
        named: values.filter_map(|value| value.parse().ok()).collect(),
        held: held.iter().filter_map(ip).collect(),
    }
}

/// Keeps the objects, without their statuses, whenever they have changed and fit together.
async fn keep_objects(store: Arc<Store>, path: std::path::PathBuf) {
    let mut written = 0;
    loop {
        sleep(KEEP_EVERY).await;
        let version = store.version();
        if version == written || store.freshness() != Freshness::Current {
            continue;
        }
        let objects = store.all();
        let to = path.clone();
        match spawn_blocking(move || keep::write(&to, &objects)).await {
            Ok(Ok(())) => written = version,
            Ok(Err(error)) => tracing::warn!(path = %path.display(), %error, "the objects are not kept"),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake::TempDir;

    fn settings() -> Settings {
        Settings {
            kubeconfig: None,
            access: None,
            controller: "example.com/gateway".into(),
            namespaces: vec![],
            kinds: vec![],
            keep: None,
            balancers: None,
            lease_namespace: "system".into(),
            identity: "pod".into(),
            node: "node".into(),
        }
    }

    #[test]
    fn statuses_are_settled_that_were_made_after_the_nodes_were_known() {
        let api = ApiServer::new(settings());
        let (index, statuses) = (Index::new(gateway_api::Settings::default()), Arc::default());
        let mut written = api.statuses.subscribe();
        let mut is_settled = || {
            api.served(&index, &statuses, &Lacking::new(), &[], &BTreeSet::new());
            written.has_changed().unwrap().then(|| written.borrow_and_update().is_settled)
        };
        assert_eq!(is_settled(), Some(false));
        api.heard.send_modify(|heard| Arc::make_mut(heard).is_settled = true);
        assert_eq!(is_settled(), None, "nobody has looked since");
        api.look_around(&mut Context::default());
        // Though they are the same.
        assert_eq!(is_settled(), Some(true));
    }

    #[test]
    fn nothing_is_kept_of_namespaces_that_are_not_watched_any_more() {
        let object = |kind: &str, group: &str, namespace: &str| {
            let metadata = serde_json::json!({"name": "a", "namespace": namespace});
            serde_json::json!({"apiVersion": group, "kind": kind, "metadata": metadata}).to_string()
        };
        let gateway = |namespace| object("Gateway", "gateway.networking.k8s.io/v1", namespace);
        // Secrets may be of other namespaces.
        let kept = [gateway("one"), gateway("two"), object("Secret", "v1", "three")];
        let dir = TempDir::new();
        let file = dir.path().join("objects.json");
        std::fs::write(&file, format!("[{}]", kept.join(",\n"))).unwrap();
        let api = ApiServer::new(Settings {
            namespaces: vec!["one".into()],
            kinds: vec![Kind::Gateway],
            keep: Some(file),
            ..settings()
        });
        let knows = |kind, namespace| api.store.knows(&Key::new(kind, namespace, "a"));
        assert!(knows(Kind::Gateway, "one") && knows(Kind::Secret, "three"));
        assert!(!knows(Kind::Gateway, "two"));
    }

    #[test]
    fn secrets_that_were_kept_go_when_all_is_known_that_could_name_them() {
        let dir = TempDir::new();
        let file = dir.path().join("objects.json");
        let secret = r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"a","namespace":"db"}}"#;
        std::fs::write(&file, format!("[{secret}]")).unwrap();
        let api = ApiServer::new(Settings { kinds: vec![Kind::Gateway], keep: Some(file), ..settings() });
        let mut index = Index::new(gateway_api::Settings::default());
        let mut is_known = |is_new| {
            api.take(&mut index, is_new);
            api.ask(&index);
            api.store.knows(&Key::new(Kind::Secret, "db", "a"))
        };
        assert!(is_known(true));
        let gateways = Scope { kind: Kind::Gateway, namespace: None, name: None };
        api.store.listed(&gateways, &HashSet::new());
        assert!(!is_known(false));
    }

    #[test]
    fn statuses_are_whole_that_were_made_of_all_that_was_listed() {
        let api = ApiServer::new(Settings { kinds: vec![Kind::TlsRoute], ..settings() });
        let (mut index, statuses) = (Index::new(gateway_api::Settings::default()), Arc::default());
        let is_whole = |index: &mut Index, takes: bool| {
            if takes {
                api.take(index, false);
            }
            api.served(index, &statuses, &Lacking::new(), &[], &BTreeSet::new());
            api.statuses.borrow().is_whole
        };
        assert!(!is_whole(&mut index, true));
        api.store.listed(&Scope { kind: Kind::TlsRoute, namespace: None, name: None }, &HashSet::new());
        // It was made before.
        assert!(!is_whole(&mut index, false));
        assert!(is_whole(&mut index, true));
    }
}
