//! What the nodes say of themselves to the one that writes statuses: each has a Lease of its own, with its addresses and with what
//! it serves.

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
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::kinds::MANAGER;
use super::lease::DURATION;
use super::serves::Serves;
use super::store::Store;
use crate::config::gateway_api::{Key, Lacking};

const LABEL: (&str, &str) = ("snisplice.dev/lease", "node");
/// Where it is reached.
const ADDRESSES: &str = "snisplice.dev/addresses";
/// Every address that it has.
const OWN: &str = "snisplice.dev/own-addresses";
/// What it serves.
const SERVES: &str = "snisplice.dev/serves";
/// How often a node says that it is there, and asks for the others.
const TURN: Duration = Duration::from_secs(5);
/// The same while somebody waits for what the others say.
const HURRY: Duration = Duration::from_millis(250);
/// How long the API server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Addresses of a node that are told and heard at most.
const MOST_ADDRESSES: usize = 512;

/// What a node says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Word {
    /// Every address that it has.
    pub(super) own: Vec<IpAddr>,
    /// Those of them that it does not have for the sake of Gateways.
    pub(super) of_node: Vec<IpAddr>,
    pub(super) serves: Serves,
}

/// What all nodes say that are there.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Heard {
    /// Where they are reached, this one included.
    pub(super) reached: Vec<IpAddr>,
    /// Every address that they have.
    pub(super) own: Vec<IpAddr>,
    /// The listeners that other nodes have no ports for, though they serve the same Gateway.
    pub(super) lacking: Lacking,
    /// What other nodes serve.
    others: BTreeMap<String, Serves>,
}

impl Heard {
    pub(super) fn has_others(&self) -> bool {
        !self.others.is_empty()
    }

    /// The nodes that do not serve this generation of a Gateway or ListenerSet yet.
    pub(super) fn lagging(&self, key: &Key, generation: i64) -> Vec<&str> {
        let late = self.others.iter().filter(|(_, serves)| !serves.has(key, generation));
        late.map(|(node, _)| node.as_str()).collect()
    }
}

/// This node among the others.
pub(super) struct Node {
    pub(super) leases: Api<Lease>,
    pub(super) nodes: Api<v1::Node>,
    pub(super) name: String,
    /// What it says; `None`: it does not serve yet.
    pub(super) word: watch::Receiver<Option<Word>>,
    pub(super) heard: watch::Sender<Arc<Heard>>,
    /// Somebody waits for what the others say.
    pub(super) hurry: Arc<Notify>,
    /// The names of all that are there.
    pub(super) names: watch::Sender<BTreeSet<String>>,
    /// The addresses that the cluster has of this one.
    pub(super) here: watch::Sender<Vec<IpAddr>>,
    pub(super) store: Arc<Store>,
}

impl Node {
    /// Says what there is to be said of this node, and hears what others say, for as long as it is polled.
    pub(super) async fn announce(mut self) {
        let mut seen: HashMap<String, (Option<MicroTime>, Instant)> = HashMap::new();
        let mut said_at = None::<Instant>;
        loop {
            let is_new = self.word.has_changed().unwrap_or(false);
            if is_new || said_at.is_none_or(|at| at.elapsed() >= TURN) {
                said_at = Some(Instant::now());
                if timeout(PATIENCE, self.say()).await.is_err() {
                    tracing::debug!("the API server does not answer for the Lease of this node");
                }
            }
            match timeout(PATIENCE, self.hear(&mut seen)).await {
                Ok(Ok(heard)) => {
                    self.store.reaches(true);
                    self.take(heard);
                }
                Ok(Err(error)) => {
                    self.store.reaches(false);
                    tracing::debug!(%error, "cannot list the Leases of the nodes");
                }
                Err(_) => self.store.reaches(false),
            }
            tokio::select! {
                () = sleep(TURN) => {}
                () = async { self.hurry.notified().await; sleep(HURRY).await } => {}
                Ok(()) = self.word.changed() => self.word.mark_changed(),
            }
        }
    }

    async fn say(&mut self) {
        let word = self.word.borrow_and_update().clone();
        // An error: this is no node of the cluster.
        let there = self.nodes.get_opt(&self.name).await.ok().flatten();
        if let Some(there) = &there {
            let inside = known(there, ["InternalIP", "ExternalIP"]);
            self.here.send_if_modified(|here| {
                let differs = *here != inside;
                *here = inside;
                differs
            });
        }
        let Some(word) = word else { return };
        let known = there.map(|there| known(&there, ["ExternalIP", "InternalIP"])).unwrap_or_default();
        let reached = if known.is_empty() { &word.of_node } else { &known };
        if !reached.is_empty()
            && let Err(error) = write(&self.leases, &self.name, reached, &word).await
        {
            tracing::debug!(%error, "cannot write the Lease of this node");
        }
    }

    async fn hear(
        &self,
        seen: &mut HashMap<String, (Option<MicroTime>, Instant)>,
    ) -> Result<Heard, kube::Error> {
        let selected = ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
        let list = self.leases.list(&selected).await?;
        let (mut reached, mut own, mut names) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut heard = Heard::default();
        for lease in &list.items {
            let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
            let entry = seen.entry(lease.name_any());
            let (last, since) = entry.or_insert_with(|| (renewed.clone(), Instant::now()));
            if *last != renewed {
                (*last, *since) = (renewed, Instant::now());
            }
            if since.elapsed() >= DURATION {
                continue;
            }
            let text = |name: &str| lease.annotations().get(name).map_or("", String::as_str);
            reached.extend(addresses(text(ADDRESSES)));
            own.extend(addresses(text(OWN)));
            let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
            names.extend(holder.clone());
            if let Some(node) = holder.filter(|node| *node != self.name) {
                heard.others.insert(node, Serves::read(text(SERVES)));
            }
        }
        seen.retain(|name, _| list.items.iter().any(|lease| lease.name_any() == *name));
        self.names.send_if_modified(|known| {
            let differs = *known != names;
            *known = names;
            differs
        });
        if let Some(word) = &*self.word.borrow() {
            for (node, serves) in &heard.others {
                word.serves.add_lacks_of(node, serves, &mut heard.lacking);
            }
        }
        (heard.reached, heard.own) = (reached.into_iter().collect(), own.into_iter().collect());
        Ok(heard)
    }

    fn take(&self, heard: Heard) {
        let before = self.heard.borrow().clone();
        if *before == heard {
            return;
        }
        // What others serve is of interest only to who writes statuses.
        let counts = before.reached != heard.reached
            || before.own != heard.own
            || before.lacking != heard.lacking
            || before.has_others() != heard.has_others();
        self.heard.send_replace(Arc::new(heard));
        if counts {
            self.store.note_outside();
        }
    }
}

fn addresses(text: &str) -> impl Iterator<Item = IpAddr> + '_ {
    text.split(',').take(MOST_ADDRESSES).filter_map(|text| text.parse().ok())
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

async fn write(leases: &Api<Lease>, node: &str, reached: &[IpAddr], word: &Word) -> Result<(), kube::Error> {
    let name = format!("snisplice-node-{node}");
    let text = |addresses: &[IpAddr]| {
        let addresses: Vec<String> = addresses.iter().take(MOST_ADDRESSES).map(IpAddr::to_string).collect();
        addresses.join(",")
    };
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name,
            "labels": {LABEL.0: LABEL.1},
            "annotations": {ADDRESSES: text(reached), OWN: text(&word.own), SERVES: word.serves.write()},
        },
        "spec": {
            "holderIdentity": node,
            "leaseDurationSeconds": DURATION.as_secs(),
            "renewTime": MicroTime(Timestamp::now()),
        },
    });
    leases.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(lease)).await?;
    Ok(())
}
