//! Mode `service`: this node says whether it takes connections, in EndpointSlices of its own and to load balancers that ask.
//! Slices of nodes that are lost are removed by the process that holds the Lease.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::balancers::{self, Here};
use super::health::{HealthPorts, Local};
use super::kinds::{MANAGER, PATIENCE};
use super::lease::while_held;
use super::services::CLASS_LABEL;
use super::status::says_it;
use super::store::Store;
use crate::config::gateway_api::{Key, Kind, Name};

/// So many changes within this time are one.
const BURST: Duration = Duration::from_millis(20);
/// How often what could not be written, or listened on, is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Where sockets listen, by a number that each change makes greater; 0: this process does not serve yet, but another one of this
/// node may.
pub(super) type Bound = (u64, Arc<BTreeSet<SocketAddr>>);

/// What a node says of itself.
pub(super) struct Endpoints {
    pub(super) client: Client,
    pub(super) store: Arc<Store>,
    /// Our GatewayClasses' `controllerName`.
    pub(super) controller: Arc<str>,
    pub(super) node: String,
    pub(super) bound: watch::Receiver<Bound>,
    /// The addresses that the cluster has of this node.
    pub(super) here: watch::Receiver<Vec<IpAddr>>,
    /// The nodes that are lost and have slices; said anew each time that it was heard.
    pub(super) lost: watch::Receiver<BTreeSet<String>>,
    /// Until when this process may remove what is of others.
    pub(super) leads: watch::Receiver<Option<Instant>>,
    /// The greatest number that everything was written for.
    pub(super) told: watch::Sender<u64>,
}

impl Endpoints {
    /// Keeps them up to date, for as long as it is polled.
    pub(super) async fn keep(mut self) {
        let mut services = self.store.balancers.subscribe();
        let mut health = HealthPorts::default();
        let mut is_done = false;
        loop {
            // A node that is back writes its Lease and its slices at nearly the same time: slices are removed only when it was just
            // heard that there is no such Lease.
            let mut are_lost = false;
            tokio::select! {
                Ok(()) = self.bound.changed() => {}
                Ok(()) = self.here.changed() => {}
                Ok(()) = self.lost.changed() => are_lost = true,
                Ok(()) = services.changed() => {}
                () = sleep(TRY_AGAIN), if !is_done => {}
            }
            sleep(BURST).await;
            services.mark_unchanged();
            let (number, bound) = self.bound.borrow_and_update().clone();
            if number == 0 {
                continue;
            }
            let addresses = self.here.borrow_and_update().clone();
            let here = Here { node: &self.node, addresses: &addresses, bound: &bound };
            let (wanted, ports) = wanted(&self.store, &self.controller, &here);
            is_done = health.follow(ports);
            // Without an API server there is nobody to tell.
            if !self.store.is_complete() || !self.write(wanted, PATIENCE).await {
                is_done = false;
                continue;
            }
            self.told.send_replace(number);
            if are_lost {
                self.remove_lost().await;
            }
        }
    }

    /// Writes the slices that differ from what is there; whether all succeeded. `patience`: how long the API server may take for
    /// each.
    async fn write(&self, wanted: Vec<(Key, Value)>, patience: Duration) -> bool {
        let mut done = true;
        for (key, slice) in wanted {
            // The API server shows an empty list as null.
            let is_same = |there: &Value, wanted: &Value| {
                says_it(there, wanted) || there.is_null() && wanted.as_array().is_some_and(Vec::is_empty)
            };
            let is_there = self.store.with(&key, |there| {
                there.is_some_and(|there| {
                    ["endpoints", "ports"].iter().all(|part| is_same(&there[*part], &slice[*part]))
                })
            });
            if is_there {
                continue;
            }
            let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.name.namespace);
            let ours = PatchParams::apply(MANAGER).force();
            let patch = Patch::Apply(&slice);
            match timeout(patience, api.patch(&key.name.name, &ours, &patch)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%key, %error, "is not written: load balancers do not see this node as it is");
                    done = false;
                }
                // The others would wait as long, and what is answered at `healthCheckNodePort` with them.
                Err(_) => {
                    tracing::warn!(
                        "the API server does not answer: load balancers do not see this node as it is"
                    );
                    return false;
                }
            }
        }
        done
    }

    /// Removes the slices of nodes that are lost, while it is this process's turn. What does not succeed is said again.
    async fn remove_lost(&self) {
        let nodes = self.lost.borrow().clone();
        let mut lost = slices(&self.store, &self.controller);
        lost.retain(|(_, node)| nodes.contains(node));
        for (key, node) in lost {
            let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.name.namespace);
            let params = DeleteParams::default();
            match while_held(&self.leads, api.delete(&key.name.name, &params)).await {
                None => return,
                Some(Ok(_)) => tracing::info!(%key, node, "the node is lost, and its slice is removed"),
                Some(Err(kube::Error::Api(answer))) if answer.code == 404 => {}
                Some(Err(error)) => tracing::warn!(%key, %error, "the slice of a lost node is not removed"),
            }
        }
    }
}

/// The slices of this node that are to be there, and what is answered at which port. Services of other controllers' classes are
/// theirs, on this node too. Where a class is gone nobody listens any more: what was said of that is taken back.
fn wanted(store: &Store, controller: &str, here: &Here<'_>) -> (Vec<(Key, Value)>, BTreeMap<u16, Local>) {
    let classes = classes(store, controller);
    let (mut slices, mut ports) = (Vec::new(), BTreeMap::new());
    store.collect_balancers(Kind::Service, |key, service| -> Option<()> {
        let class = service["metadata"]["labels"][CLASS_LABEL].as_str()?;
        let is_ours = match classes.get(class) {
            Some(false) => return None,
            there => there.is_some(),
        };
        let of_service = here
            .slices(key, service)
            .into_iter()
            .map(|(name, slice)| (Key::new(Kind::EndpointSlice, &key.name.namespace, &name), slice));
        slices.extend(of_service.filter(|(slice, _)| is_ours || store.knows(slice)));
        if let Some((port, is_ready)) = here.health(service).filter(|_| is_ours) {
            ports.insert(port, Local { service: key.name.clone(), is_ready });
        }
        None
    });
    (slices, ports)
}

/// The EndpointSlices of this controller's Services, each with its node.
pub(super) fn slices(store: &Store, controller: &str) -> Vec<(Key, String)> {
    let classes = classes(store, controller);
    let is_ours = |key: &Key, service: &Value| {
        let class = service["metadata"]["labels"][CLASS_LABEL].as_str()?;
        classes.get(class)?.then(|| key.name.clone())
    };
    let services: BTreeSet<Name> = store.collect_balancers(Kind::Service, is_ours).into_iter().collect();
    store.collect_balancers(Kind::EndpointSlice, |key, slice| {
        let (service, node) = balancers::service_and_node(slice)?;
        let is_ours = services.contains(&Name::new(&key.name.namespace, service));
        is_ours.then(|| (key.clone(), node.to_owned()))
    })
}

/// The GatewayClasses there are, and whether they are this controller's.
fn classes(store: &Store, controller: &str) -> BTreeMap<String, bool> {
    let of = |key: &Key, class: &Value| {
        Some((key.name.name.to_string(), class["spec"]["controllerName"] == *controller))
    };
    store.collect(Kind::GatewayClass, of).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const US: &str = "example.com/us";

    /// A Service of a class, of that name.
    fn service(class: &str, health: u16) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": class, "namespace": "ns", "uid": class, "labels": {
                CLASS_LABEL: class, "service.kubernetes.io/service-proxy-name": "snisplice",
            }},
            "spec": {
                "type": "LoadBalancer", "ipFamilies": ["IPv4"], "healthCheckNodePort": health,
                "ports": [{"name": "port-443", "port": 443, "nodePort": 30443}],
            },
        })
    }

    /// The Services of a class of ours, of another controller's and of one that is gone, each with slices of two nodes.
    fn store() -> Store {
        let store = Store::new(vec![], None);
        let put = |object: Value| store.put(Key::of(&object).unwrap(), object);
        for (class, controller) in [("ours", US), ("theirs", "example.com/them")] {
            put(json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": class},
                "spec": {"controllerName": controller},
            }));
        }
        let addresses = ["10.0.0.1".parse().unwrap()];
        for (class, health) in [("ours", 32_001), ("theirs", 32_002), ("gone", 32_003)] {
            put(service(class, health));
            for node in ["node-1", "node-2"] {
                let here = Here { node, addresses: &addresses, bound: &BTreeSet::new() };
                let key = Key::new(Kind::Service, "ns", class);
                here.slices(&key, &service(class, health)).into_iter().for_each(|(_, slice)| put(slice));
            }
        }
        store
    }

    #[test]
    fn services_of_other_controllers_are_theirs() {
        let store = store();
        let names = |found: &[(Key, Value)]| {
            found.iter().map(|(key, _)| key.name.name.to_string()).collect::<Vec<_>>()
        };
        let bound = ["0.0.0.0:30443".parse().unwrap()].into();
        let addresses = ["10.0.0.1".parse().unwrap()];
        let wanted_on = |node: &str| {
            let here = Here { node, addresses: &addresses, bound: &bound };
            let (slices, ports) = wanted(&store, US, &here);
            (names(&slices), ports.into_keys().collect::<Vec<_>>())
        };
        assert_eq!(
            wanted_on("node-1"),
            (vec!["gone-node-1-ipv4".into(), "ours-node-1-ipv4".into()], vec![32_001])
        );
        // A node that has said nothing has nothing to take back.
        assert_eq!(wanted_on("node-3"), (vec!["ours-node-3-ipv4".into()], vec![32_001]));

        let found = slices(&store, US);
        let found: Vec<_> = found.iter().map(|(key, node)| (&*key.name.name, node.as_str())).collect();
        assert_eq!(found, [("ours-node-1-ipv4", "node-1"), ("ours-node-2-ipv4", "node-2")]);
    }

    #[tokio::test]
    async fn an_api_server_without_an_answer_is_not_waited_for() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let endpoints = Endpoints {
            client: Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap(),
            store: Arc::new(store()),
            controller: US.into(),
            node: "node-1".into(),
            bound: watch::Sender::default().subscribe(),
            here: watch::Sender::default().subscribe(),
            lost: watch::Sender::default().subscribe(),
            leads: watch::Sender::default().subscribe(),
            told: watch::Sender::default(),
        };
        let slice = |name| (Key::new(Kind::EndpointSlice, "ns", name), json!({"endpoints": [{}]}));
        let all = vec![slice("a"), slice("b")];
        assert!(!endpoints.write(all, Duration::from_millis(50)).await);
    }
}
