//! What the nodes say of themselves to the one that writes statuses: each has a Lease of its own, with its addresses.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::kinds::MANAGER;
use super::lease::DURATION;
use super::store::Store;

const LABEL: (&str, &str) = ("snisplice.dev/lease", "node");
const ADDRESSES: &str = "snisplice.dev/addresses";
/// How often a node says that it is there, and asks for the others.
const TURN: Duration = Duration::from_secs(5);

/// This node among the others.
pub(super) struct Node {
    pub(super) leases: Api<Lease>,
    pub(super) nodes: Api<v1::Node>,
    pub(super) name: String,
    /// Where it is reached, if the cluster does not know it; empty: it does not serve yet.
    pub(super) own: watch::Receiver<Vec<IpAddr>>,
    /// Where all are reached that are there.
    pub(super) all: watch::Sender<Vec<IpAddr>>,
    /// Their names.
    pub(super) names: watch::Sender<BTreeSet<String>>,
    /// The addresses that the cluster has of this one.
    pub(super) here: watch::Sender<Vec<IpAddr>>,
    pub(super) store: Arc<Store>,
}

impl Node {
    /// Says where this node is reached, and hears what others say, for as long as it is polled.
    pub(super) async fn announce(self) {
        let Self { leases, nodes, name: node, mut own, all, names, here, store } = self;
        let name = format!("snisplice-node-{node}");
        let mut seen: HashMap<String, (Option<MicroTime>, Instant)> = HashMap::new();
        loop {
            let mut addresses = own.borrow_and_update().clone();
            // An error: this is no node of the cluster.
            if let Ok(Some(there)) = nodes.get_opt(&node).await {
                let inside = known(&there, ["InternalIP", "ExternalIP"]);
                here.send_if_modified(|here| {
                    let differs = *here != inside;
                    *here = inside;
                    differs
                });
                let known = known(&there, ["ExternalIP", "InternalIP"]);
                if !addresses.is_empty() && !known.is_empty() {
                    addresses = known;
                }
            }
            if !addresses.is_empty()
                && let Err(error) = say(&leases, &name, &node, &addresses).await
            {
                tracing::debug!(%error, "cannot write the Lease {name}");
            }
            let selected = ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
            match leases.list(&selected).await {
                Ok(list) => {
                    let (mut found, mut there) = (BTreeMap::new(), BTreeSet::new());
                    for lease in &list.items {
                        let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
                        let entry = seen.entry(lease.name_any());
                        let (last, since) = entry.or_insert_with(|| (renewed.clone(), Instant::now()));
                        if *last != renewed {
                            (*last, *since) = (renewed, Instant::now());
                        }
                        if since.elapsed() < DURATION {
                            there.extend(lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()));
                            let texts =
                                lease.annotations().get(ADDRESSES).map_or("", String::as_str).split(',');
                            found.extend(
                                texts.filter_map(|text| text.parse::<IpAddr>().ok()).map(|ip| (ip, ())),
                            );
                        }
                    }
                    seen.retain(|name, _| list.items.iter().any(|lease| lease.name_any() == *name));
                    names.send_if_modified(|names| {
                        let differs = *names != there;
                        *names = there;
                        differs
                    });
                    let found: Vec<IpAddr> = found.into_keys().collect();
                    if *all.borrow() != found {
                        all.send_replace(found);
                        store.note_outside();
                    }
                }
                Err(error) => tracing::debug!(%error, "cannot list the Leases of the nodes"),
            }
            tokio::select! {
                () = sleep(TURN) => {}
                Ok(()) = own.changed() => {}
            }
        }
    }
}

/// The addresses that the cluster has of a node: those of the first of these types of which there are any.
fn known(node: &v1::Node, types: [&str; 2]) -> Vec<IpAddr> {
    let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let of = |kind: &str| {
        let some = all.clone().filter(|address| address.type_ == kind);
        some.filter_map(|address| address.address.parse().ok()).collect::<Vec<IpAddr>>()
    };
    types.into_iter().map(of).find(|found| !found.is_empty()).unwrap_or_default()
}

async fn say(leases: &Api<Lease>, name: &str, node: &str, addresses: &[IpAddr]) -> Result<(), kube::Error> {
    let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name,
            "labels": {LABEL.0: LABEL.1},
            "annotations": {ADDRESSES: addresses.join(",")},
        },
        "spec": {
            "holderIdentity": node,
            "leaseDurationSeconds": DURATION.as_secs(),
            "renewTime": MicroTime(Timestamp::now()),
        },
    });
    leases.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(lease)).await?;
    Ok(())
}
