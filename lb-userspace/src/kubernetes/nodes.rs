//! What the nodes say of themselves to the one that writes statuses: each has a Lease of its own, with its addresses and with what
//! it serves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::endpoints;
use super::kinds::{MANAGER, PATIENCE};
use super::lease::DURATION;
use super::liveness::{Liveness, Presence, TURN};
use super::names::Names;
use super::place::Place;
use super::refused::Refused;
use super::serves::Serves;
use super::store::Store;
use crate::config::gateway_api::{Key, Lacking};

/// With [`Names::label`].
const LABEL: &str = "snisplice.dev/lease";
/// Where it is reached.
const ADDRESSES: &str = "snisplice.dev/addresses";
/// Every address that it has.
const OWN: &str = "snisplice.dev/own-addresses";
/// What it serves.
const SERVES: &str = "snisplice.dev/serves";
/// The last of that, if there is more than could be said.
const UNTIL: &str = "snisplice.dev/serves-until";
/// How soon the others are asked for while somebody waits for what they say.
const HURRY: Duration = Duration::from_millis(250);
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

/// What all nodes say that are not lost: those of which it is not known yet whether they are there are among them. To take such a
/// one for an endpoint would be worse than not to take it; statuses wait until it is known (`is_settled`).
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Heard {
    /// It is known of each node whether it is there.
    pub(super) is_settled: bool,
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
    pub(super) names: Names,
    /// Our GatewayClasses' `controllerName`.
    pub(super) controller: Arc<str>,
    pub(super) name: String,
    /// What it says; `None`: it does not serve yet.
    pub(super) word: watch::Receiver<Option<Word>>,
    pub(super) heard: watch::Sender<Arc<Heard>>,
    /// Somebody waits for what the others say.
    pub(super) hurry: Arc<Notify>,
    /// Those that are lost and have EndpointSlices; said anew each time that it was heard.
    pub(super) lost: watch::Sender<BTreeSet<String>>,
    /// Until when this process may write.
    pub(super) leads: watch::Receiver<Option<Instant>>,
    /// The addresses that the cluster has of this one.
    pub(super) here: watch::Sender<Vec<IpAddr>>,
    pub(super) store: Arc<Store>,
}

/// What the API server has answered.
#[derive(Default)]
struct Answers {
    place: Place,
    reading: Refused,
    writing: Refused,
    listing: Refused,
}

impl Node {
    /// Says what there is to be said of this node, and hears what others say, for as long as it is polled.
    pub(super) async fn announce(mut self) {
        let (mut liveness, mut answers) = (Liveness::new(&self.name), Answers::default());
        // A turn that an API server without an answer has made longer is followed by the next one at once: this node is to renew its
        // Lease as soon as it can.
        let mut say_at = Instant::now();
        loop {
            let is_new = self.word.has_changed().unwrap_or(false);
            if is_new || Instant::now() >= say_at {
                say_at = Instant::now() + TURN;
                if timeout(PATIENCE, self.say(&mut answers)).await.is_err() {
                    tracing::debug!("the API server does not answer for the Lease of this node");
                }
            }
            match timeout(PATIENCE, self.hear(&mut liveness)).await {
                Ok(heard) => {
                    let is_refused = answers.listing.tell(&heard, "cannot list the Leases of the nodes");
                    self.store.reaches(heard.is_ok() || is_refused);
                    heard.into_iter().for_each(|heard| self.take(heard));
                }
                Err(_) => self.store.reaches(false),
            }
            tokio::select! {
                () = sleep_until(say_at) => {}
                () = async { self.hurry.notified().await; sleep(HURRY).await } => {}
                Ok(()) = self.word.changed() => self.word.mark_changed(),
            }
        }
    }

    async fn say(&mut self, answers: &mut Answers) {
        let word = self.word.borrow_and_update().clone();
        let there = self.nodes.get_opt(&self.name).await;
        answers.reading.tell(&there, "cannot read the Node of this node");
        answers.place.take(&there);
        self.here.send_if_modified(|here| {
            let inner = answers.place.inner();
            let differs = here != inner;
            *here = inner.to_vec();
            differs
        });
        let Some(word) = word else { return };
        let Some(reached) = answers.place.reached(&word.of_node) else { return };
        let lease = lease(&self.names, &self.name, &answers.place.owners(&self.name), reached, &word);
        let (name, ours) = (self.names.of_node(&self.name), PatchParams::apply(MANAGER).force());
        let written = self.leases.patch(&name, &ours, &Patch::Apply(lease)).await;
        answers.writing.tell(&written, "cannot write the Lease of this node");
    }

    async fn hear(&self, liveness: &mut Liveness) -> Result<Heard, kube::Error> {
        let selected = ListParams::default().labels(&format!("{LABEL}={}", self.names.label));
        let leases = self.leases.list(&selected).await?.items;
        let with_slices = self.with_slices();
        liveness.hear(Instant::now(), &renewals(&leases, &with_slices));
        let lost = lost(with_slices, liveness);
        self.lost.send_if_modified(|known| {
            let is_news = *known != lost || !lost.is_empty();
            *known = lost;
            is_news
        });
        Ok(sum(&leases, liveness, &self.name, self.word.borrow().as_ref()))
    }

    /// The nodes that have EndpointSlices, if it is up to this process to remove these.
    fn with_slices(&self) -> BTreeSet<String> {
        if self.leads.borrow().is_none() {
            return BTreeSet::new();
        }
        endpoints::slices(&self.store, &self.controller).into_iter().map(|(_, node)| node).collect()
    }

    fn take(&self, heard: Heard) {
        let before = self.heard.borrow().clone();
        if *before == heard {
            return;
        }
        // What others serve is of interest only to who writes statuses.
        let counts = before.is_settled != heard.is_settled
            || before.reached != heard.reached
            || before.own != heard.own
            || before.lacking != heard.lacking
            || before.has_others() != heard.has_others();
        self.heard.send_replace(Arc::new(heard));
        if counts {
            self.store.note_outside();
        }
    }
}

/// Whose Lease it is.
fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}

/// When each node has renewed its Lease, also of nodes that have something else.
fn renewals(leases: &[Lease], others: &BTreeSet<String>) -> BTreeMap<String, Option<MicroTime>> {
    let mut renewals: BTreeMap<String, Option<MicroTime>> =
        others.iter().map(|node| (node.clone(), None)).collect();
    for lease in leases {
        let Some(node) = holder(lease) else { continue };
        renewals.insert(node.to_owned(), lease.spec.as_ref().and_then(|spec| spec.renew_time.clone()));
    }
    renewals
}

fn lost(nodes: BTreeSet<String>, liveness: &Liveness) -> BTreeSet<String> {
    nodes.into_iter().filter(|node| liveness.of(node) == Presence::Lost).collect()
}

/// What all Leases say together to the node `own`, which says `word`.
fn sum(leases: &[Lease], liveness: &Liveness, own: &str, word: Option<&Word>) -> Heard {
    let (mut reached, mut addressed) = (BTreeSet::new(), BTreeSet::new());
    let mut heard = Heard { is_settled: liveness.is_settled(), ..Heard::default() };
    for lease in leases {
        let Some(node) = holder(lease).filter(|node| liveness.of(node) != Presence::Lost) else { continue };
        let text = |name: &str| lease.annotations().get(name).map_or("", String::as_str);
        reached.extend(addresses(text(ADDRESSES)));
        addressed.extend(addresses(text(OWN)));
        if node != own {
            heard.others.insert(node.to_owned(), Serves::read(text(SERVES), text(UNTIL)));
        }
    }
    if let Some(word) = word {
        for (node, serves) in &heard.others {
            word.serves.add_lacks_of(node, serves, &mut heard.lacking);
        }
    }
    (heard.reached, heard.own) = (reached.into_iter().collect(), addressed.into_iter().collect());
    heard
}

fn addresses(text: &str) -> impl Iterator<Item = IpAddr> + '_ {
    text.split(',').take(MOST_ADDRESSES).filter_map(|text| text.parse().ok())
}

/// The Lease of a node that is reached at some of its addresses. `owners`: what it goes with.
fn lease(names: &Names, node: &str, owners: &Value, reached: &[IpAddr], word: &Word) -> Value {
    let text = |addresses: &[IpAddr]| {
        let addresses: Vec<String> = addresses.iter().take(MOST_ADDRESSES).map(IpAddr::to_string).collect();
        addresses.join(",")
    };
    let (serves, until) = word.serves.write();
    let mut annotations = json!({ADDRESSES: text(reached), OWN: text(&word.own), SERVES: serves});
    if let Some(until) = until {
        annotations[UNTIL] = json!(until);
    }
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": names.of_node(node),
            "labels": {LABEL: names.label},
            "annotations": annotations,
            "ownerReferences": owners,
        },
        "spec": {
            "holderIdentity": node,
            "leaseDurationSeconds": DURATION.as_secs(),
            "renewTime": MicroTime(Timestamp::now()),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::gateway_api::{Kind, Statuses};
    use crate::kubernetes::serves::tests::status;

    /// What the node says that it serves.
    fn says(node: &str, address: &str, renewal: i64, statuses: &Statuses) -> Lease {
        let own = vec![address.parse().unwrap()];
        let serves = Serves::of(statuses, &Lacking::new());
        let word = Word { own: own.clone(), of_node: vec![], serves };
        let mut made = lease(&Names::of("example.com/us"), node, &json!([]), &own, &word);
        made["spec"]["renewTime"] = json!(MicroTime(Timestamp::from_second(renewal).unwrap()));
        serde_json::from_value(made).unwrap()
    }

    #[test]
    fn a_node_counts_until_it_is_lost_and_statuses_wait_until_that_is_known() {
        let (start, mut liveness) = (Instant::now(), Liveness::new("us"));
        let gateway = Key::new(Kind::Gateway, "db", "a");
        let statuses = [(gateway.clone(), status(1))].into();
        let mut hear = |at: u64| {
            // The third was removed long ago.
            let renewal = i64::try_from(at).unwrap();
            let leases = [
                says("us", "192.0.2.1", renewal, &statuses),
                says("alive", "192.0.2.2", renewal, &statuses),
                says("removed", "192.0.2.3", -9, &statuses),
            ];
            let with_slices: BTreeSet<String> = ["us", "alive", "no-lease"].map(str::to_owned).into();
            liveness.hear(start + Duration::from_secs(at), &renewals(&leases, &with_slices));
            (sum(&leases, &liveness, "us", None), lost(with_slices, &liveness))
        };
        let reached = |last: u8| (1..=last).map(|end| IpAddr::from([192, 0, 2, end])).collect::<Vec<_>>();
        for at in [0, 5, 10] {
            let (heard, lost) = hear(at);
            assert!(!heard.is_settled, "{at}");
            assert_eq!((&heard.reached, &heard.own), (&reached(3), &reached(3)), "{at}");
            assert_eq!(heard.lagging(&gateway, 2), ["alive", "removed"], "{at}");
            assert!(lost.is_empty(), "{at}: {lost:?}");
        }
        let (heard, lost) = hear(15);
        assert!(heard.is_settled);
        assert_eq!((&heard.reached, &heard.own), (&reached(2), &reached(2)));
        assert_eq!(heard.lagging(&gateway, 2), ["alive"]);
        assert_eq!(lost, ["no-lease".to_owned()].into());
    }

    #[test]
    fn nobody_waits_for_what_a_node_has_no_room_to_say() {
        let key = |number: usize| Key::new(Kind::Gateway, "db", &format!("gateway-{number:05}"));
        // The second is not served there.
        let served: Statuses =
            (0..5000).filter(|number| *number != 1).map(|number| (key(number), status(1))).collect();
        let mut liveness = Liveness::new("us");
        let leases = [says("other", "192.0.2.2", 1, &served)];
        liveness.hear(Instant::now(), &renewals(&leases, &BTreeSet::new()));
        let heard = sum(&leases, &liveness, "us", None);
        let lagging = |generation| -> Vec<usize> {
            let all = (0..5000).filter(|number| !heard.lagging(&key(*number), generation).is_empty());
            all.collect()
        };
        assert_eq!(lagging(1), [1]);
        // The first of them are told, and one is not there.
        let told = lagging(2);
        assert!((2000..5000).contains(&told.len()) && told.last() == Some(&(told.len() - 1)), "{told:?}");
    }

    #[test]
    fn a_lease_goes_with_its_node() {
        let (names, word) = (Names::of("example.com/us"), Word::default());
        let owners = json!([{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "u"}]);
        let made = lease(&names, "a", &owners, &[], &word);
        assert_eq!(made["metadata"]["ownerReferences"], owners);
        assert_eq!(made["metadata"]["name"], names.of_node("a"));
        assert_eq!(made["metadata"]["labels"], json!({LABEL: names.label}));
        assert!(made["metadata"]["annotations"][UNTIL].is_null(), "{made}");
    }
}
