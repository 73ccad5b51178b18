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
use tokio::time::{Instant, sleep};

use super::balancers::{self, Here};
use super::health::HealthPorts;
use super::kinds::MANAGER;
use super::lease::while_held;
use super::services::CLASS_LABEL;
use super::status::says_it;
use super::store::Store;
use crate::config::gateway_api::{Key, Kind};

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
            let (wanted, ports) = self.wanted(&bound);
            is_done = health.follow(ports);
            // Without an API server there is nobody to tell.
            if !self.store.is_complete() || !self.write(wanted).await {
                is_done = false;
                continue;
            }
            self.told.send_replace(number);
            if are_lost {
                self.remove_lost().await;
            }
        }
    }

    /// The slices that are to be there, and what is answered at which port.
    fn wanted(
        &mut self,
        bound: &BTreeSet<SocketAddr>,
    ) -> (Vec<(Key, Value)>, BTreeMap<u16, super::health::Local>) {
        let addresses = self.here.borrow_and_update().clone();
        let here = Here { node: &self.node, addresses: &addresses, bound };
        let (mut slices, mut ports) = (Vec::new(), BTreeMap::new());
        self.store.collect_balancers(Kind::Service, |key, service| -> Option<()> {
            if !service["metadata"]["labels"][CLASS_LABEL].is_string() {
                return None;
            }
            slices.extend(
                here.slices(key, service)
                    .into_iter()
                    .map(|(name, slice)| (Key::new(Kind::EndpointSlice, &key.name.namespace, &name), slice)),
            );
            if let Some((port, is_ready)) = here.health(service) {
                ports.insert(port, super::health::Local { service: key.name.clone(), is_ready });
            }
            None
        });
        (slices, ports)
    }

    /// Writes the slices that differ from what is there; whether all succeeded.
    async fn write(&self, wanted: Vec<(Key, Value)>) -> bool {
        let mut done = true;
        for (key, slice) in wanted {
            let is_there = self.store.with(&key, |there| {
                there.is_some_and(|there| {
                    ["endpoints", "ports"].iter().all(|part| says_it(&there[*part], &slice[*part]))
                })
            });
            if is_there {
                continue;
            }
            let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.name.namespace);
            let ours = PatchParams::apply(MANAGER).force();
            if let Err(error) = api.patch(&key.name.name, &ours, &Patch::Apply(&slice)).await {
                tracing::warn!(%key, %error, "is not written: load balancers do not see this node as it is");
                done = false;
            }
        }
        done
    }

    /// Removes the slices of nodes that are lost, while it is this process's turn. What does not succeed is said again.
    async fn remove_lost(&self) {
        let nodes = self.lost.borrow().clone();
        let lost = self.store.collect_balancers(Kind::EndpointSlice, |key, slice| {
            let node = balancers::node_of(slice)?;
            nodes.contains(node).then(|| (key.clone(), node.to_owned()))
        });
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
