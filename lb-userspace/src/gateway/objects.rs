//! Objects of the Gateway API: where they come from, what they make together with the file, and what is said of them.

use super::Fault;
use super::attached::{Attached, Wants, keep_quiet};
use super::shown::Shown;
use crate::accept::{Bind, listen};
use crate::clock::now_ms;
use crate::config::gateway_api::{
    At, Attach, Change, Condition, Context, Index, Key, Lacking, Manifests, Mode, Problem, Settings, Source,
    Statuses, Truth, watched,
};
use crate::config::{Checked, Config, File, Server, Sources};
use crate::kernel::pairs::own_addresses;
use crate::kubernetes::{self, ApiServer, Balancers, Freshness};
use crate::words::with_causes;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// After how long a port that the system has refused is asked for again, and objects are tried again that could not be looked at.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(10);

/// The objects of one source.
pub(crate) struct Objects {
    settings: Settings,
    origin: Origin,
    index: Index,
    context: Context,
    /// Where each object stands.
    places: Arc<HashMap<Key, At>>,
    /// What is not taken.
    problems: Arc<Vec<Problem>>,
    /// What was made last, if it is not in force.
    made: Option<Made>,
    in_force: Made,
    /// Ports of the file's own listeners, and whose they are.
    taken: BTreeMap<(u16, IpAddr), Box<str>>,
    /// Ports that the system has refused, and why.
    failed: BTreeMap<(u16, IpAddr), Box<str>>,
    /// Modes `pool` and `service`: the device that is to have the addresses.
    device: Option<Box<str>>,
    /// Why addresses on it should not be relied on.
    faults: Vec<String>,
    attached: Arc<Attached>,
    /// When the file was read.
    since_ms: u64,
    /// Nothing was read yet.
    is_new: bool,
    /// Something went wrong that had nothing to do with what they say: when they are to be tried again.
    again_at: Option<Instant>,
}

/// What objects make, besides the configuration.
#[derive(Default)]
struct Made {
    statuses: Arc<Statuses>,
    /// The listeners that get no ports from this machine.
    lacking: Lacking,
    /// Where their listeners are.
    ports: HashSet<SocketAddr>,
    /// Where all listeners are, those of the file included.
    binds: BTreeSet<SocketAddr>,
    /// How many parts of it are not those of what was made before.
    parts: usize,
    /// Modes `pool` and `service`: the addresses that Gateways have of their own.
    addresses: BTreeSet<IpAddr>,
}

/// Where objects come from.
enum Origin {
    Directory(PathBuf),
    Cluster(Arc<ApiServer>),
}

impl Objects {
    /// Those that a file names, none of which was read yet; `config` is what the file makes alone. `None`: it names none.
    /// `followed`: API servers that are followed already: the one that the file names may be among them.
    pub(crate) fn of(
        file: &File,
        config: &Config,
        followed: &[Arc<ApiServer>],
        attached: Arc<Attached>,
    ) -> Option<Self> {
        let api = config.gateway_api.clone()?;
        let origin = match &api.source {
            Source::Directory(directory) => Origin::Directory(file.path_of(directory)),
            Source::Cluster { kubeconfig, keep } => {
                let (lease_namespace, identity, node) = kubernetes::Settings::names_from_environment();
                let balancers = (api.settings.mode == Mode::Service).then(|| Balancers {
                    merge: api.settings.merge,
                    class: api.settings.load_balancer_class.clone(),
                    namespace: lease_namespace.as_str().into(),
                    addresses: api.settings.addresses.clone(),
                });
                let wanted = kubernetes::Settings {
                    balancers,
                    kubeconfig: kubeconfig.as_ref().map(|path| file.path_of(path)),
                    controller: api.settings.controller.clone(),
                    namespaces: api.settings.namespaces.clone(),
                    kinds: watched(&api.settings),
                    keep: keep.then(|| kubernetes::keep_file(&config.gateway.fixed.state_dir)),
                    lease_namespace,
                    identity,
                    node,
                };
                let followed = followed.iter().find(|api| api.is(&wanted)).cloned();
                Origin::Cluster(followed.unwrap_or_else(|| Arc::new(ApiServer::new(wanted))))
            }
        };
        let device = match &api.settings.attach {
            Attach::Device(device) if api.settings.mode != Mode::Node => Some(device.clone()),
            _ => None,
        };
        if let Some(device) = &device {
            let settings = &api.settings;
            attached.take(device, |ip| settings.addresses.is_empty() || settings.may_name(ip));
        }
        let index = Index::new(api.settings.clone());
        let mut objects = Objects {
            settings: api.settings,
            origin,
            index,
            context: Context::default(),
            places: Arc::default(),
            problems: Arc::default(),
            made: None,
            in_force: Made::default(),
            taken: BTreeMap::new(),
            failed: BTreeMap::new(),
            device,
            faults: Vec::new(),
            attached,
            since_ms: now_ms(),
            is_new: true,
            again_at: None,
        };
        objects.stand_back(config);
        Some(objects)
    }

    /// What the file alone has is not for objects.
    fn stand_back(&mut self, config: &Config) {
        let listeners = config.listeners.iter().flat_map(|listener| {
            let whose = format!("the listener {} of the configuration file has it", listener.name);
            listener.bind.iter().map(move |address| (socket(*address), whose.clone().into()))
        });
        let admin =
            config.gateway.fixed.admin.map(|address| (socket(address), "`gateway.admin` has it".into()));
        self.taken = listeners.chain(admin).collect();
    }

    /// Reads what the source has now. What was read, and what that asks for.
    pub(crate) fn read(&mut self) -> (Sources, Change) {
        let read = self.read_source();
        self.again_at = None;
        read
    }

    fn read_source(&mut self) -> (Sources, Change) {
        let directory = match &mut self.origin {
            Origin::Directory(directory) => directory,
            Origin::Cluster(api) => {
                let (change, is_outside) = api.take(&mut self.index, std::mem::take(&mut self.is_new));
                let differs = is_outside && self.look_outside();
                return (Sources::default(), if differs { Change::All } else { change });
            }
        };
        let mut manifests = Manifests::read(directory, &self.settings);
        let problems = std::mem::take(&mut manifests.problems);
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            tracing::error!("not taken: {problem}");
        }
        self.problems = Arc::new(problems);
        let sources = std::mem::take(&mut manifests.sources);
        let (places, change) = manifests.put_into(&mut self.index);
        self.places = Arc::new(places);
        (sources, change)
    }

    /// What the file and the objects make together. Ports that the system has refused are asked for again.
    pub(crate) fn assemble(&mut self, file: &File) -> Checked {
        self.failed.clear();
        self.assemble_within(file)
    }

    /// Looks at what is outside the objects and counts; whether it has changed.
    fn look_outside(&mut self) -> bool {
        let before = self.context.clone();
        match own_addresses() {
            Ok(own) => self.context.own = own,
            Err(error) => tracing::error!(%error, "cannot list the addresses of this machine"),
        }
        if let Origin::Cluster(api) = &self.origin {
            api.look_around(&mut self.context);
            if self.settings.mode != Mode::Node {
                let own = if self.device.is_some() { self.own_of_node() } else { BTreeSet::new() };
                self.context.assigned = api.assigned(&self.settings, &own);
            }
        }
        before != self.context
    }

    /// The API server that they come from.
    pub(crate) fn api_server(&self) -> Option<Arc<ApiServer>> {
        match &self.origin {
            Origin::Directory(_) => None,
            Origin::Cluster(api) => Some(api.clone()),
        }
    }

    /// Whether the API server is followed, if that is where they come from.
    pub(crate) fn is_followed(&self) -> bool {
        self.api_server().is_none_or(|api| api.is_followed())
    }

    /// Follows the API server, if that is where they come from and it is not followed yet; in the runtime that calls this.
    pub(crate) async fn follow(&mut self) -> anyhow::Result<()> {
        match &self.origin {
            Origin::Cluster(api) if !api.is_followed() => api.follow().await,
            _ => Ok(()),
        }
    }

    /// The API server is asked for what they name, as far as was made of them.
    pub(crate) fn ask(&self) {
        if let Origin::Cluster(api) = &self.origin {
            api.ask(&self.index);
        }
    }

    /// Returns when the API server's objects have changed, if it is where they come from.
    pub(crate) async fn changed(&self) {
        match &self.origin {
            Origin::Directory(_) => std::future::pending().await,
            Origin::Cluster(api) => api.changed().await,
        }
    }

    /// What is known of them is what there is.
    pub(crate) fn is_current(&self) -> bool {
        match &self.origin {
            Origin::Directory(_) => true,
            Origin::Cluster(api) => api.freshness() == Freshness::Current,
        }
    }

    /// Nothing is known of the objects yet.
    pub(crate) fn is_awaited(&self) -> bool {
        matches!(&self.origin, Origin::Cluster(api) if api.freshness() == Freshness::Stale(None))
    }

    /// Sees to it that the device has the addresses on which what was made is to listen.
    pub(crate) fn attach(&mut self) {
        if let (Some(device), Some(made)) = (&self.device, &self.made) {
            // Before the first of them is there.
            self.faults = keep_quiet(device, &made.addresses, &self.faults);
            self.attached.add(device, &made.addresses);
        }
    }

    /// Sees to it that the device still has the addresses of what is in force.
    pub(crate) fn restore(&self) {
        if let Some(device) = &self.device {
            self.attached.add(device, &self.in_force.addresses);
            self.attached.in_force();
        }
    }

    /// What was made is in force: the API server is told.
    pub(crate) fn in_force(&mut self) {
        if let Some(made) = self.made.take() {
            self.in_force = made;
            self.index.in_force();
        }
        self.attached.in_force();
        if let Origin::Cluster(api) = &self.origin {
            api.take_part();
            api.listens(&self.in_force.binds);
            api.served(
                &self.index,
                &self.in_force.statuses,
                &self.in_force.lacking,
                &self.context.own,
                &self.own_of_node(),
            );
        }
    }

    /// What was made does not come into force, and what is in force stays so.
    pub(crate) fn give_up(&mut self) {
        self.made = None;
        self.attached.remove_added();
    }

    /// Work with them has ended by half, and not because of what they say: all of them are read again, after a while.
    pub(crate) fn start_over(&mut self) {
        self.give_up();
        self.index = Index::new(self.settings.clone());
        self.is_new = true;
        self.again_at = Some(Instant::now() + ASK_AGAIN);
    }

    /// When they are to be tried again though nothing has changed.
    pub(crate) fn again_at(&self) -> Option<Instant> {
        self.again_at
    }

    /// The addresses that what is in force wants a device to have.
    pub(super) fn wants(&self) -> Wants<'_> {
        Wants {
            device: self.device.as_deref(),
            addresses: Some(&self.in_force.addresses),
            since_ms: self.since_ms,
        }
    }

    /// Whether load balancers were told to send no more clients here.
    pub(crate) async fn leave(&self) -> bool {
        let Origin::Cluster(api) = &self.origin else { return false };
        let were_told = api.leave().await;
        api.end();
        were_told
    }

    /// This machine's addresses but for those that a device has for the sake of Gateways. Something else may have put such a one
    /// there, too.
    fn own_of_node(&self) -> BTreeSet<IpAddr> {
        let attached = self.attached.addresses(self.device.as_deref());
        self.context.own.iter().filter(|ip| !attached.contains(ip)).copied().collect()
    }

    fn assemble_within(&mut self, file: &File) -> Checked {
        self.look_outside();
        // The kernel has this file if it has IPv6.
        self.context.ipv6 = Path::new("/proc/net/if_inet6").exists();
        self.context.unavailable = self.taken.clone();
        self.context.unavailable.extend(self.failed.iter().map(|(port, why)| (*port, why.clone())));
        let mut built = self.index.build(&self.context);
        let checked = file.check(&mut built);
        self.made = checked.as_ref().ok().map(|(config, _)| {
            let binds: BTreeSet<SocketAddr> =
                config.listeners.iter().flat_map(|listener| &listener.bind).copied().collect();
            let is_ours = |address: &&SocketAddr| !self.taken.contains_key(&socket(**address));
            let ports: HashSet<_> = binds.iter().filter(is_ours).copied().collect();
            let places = self.context.assigned.values();
            let assigned: BTreeSet<IpAddr> = places.flat_map(|place| &place.addresses).copied().collect();
            let addresses = ports.iter().map(SocketAddr::ip).filter(|address| assigned.contains(address));
            Made {
                addresses: addresses.collect(),
                ports,
                binds,
                parts: built.made,
                statuses: Arc::new(built.statuses),
                lacking: built.lacking,
            }
        });
        checked
    }

    /// What they make without a port that cannot be listened on, if it is a port of theirs.
    pub(crate) fn without(&mut self, fault: &Fault, file: &File) -> Option<Checked> {
        let Fault::Listen { address, .. } = fault else { return None };
        let is_ours = self.made.as_ref().is_some_and(|made| made.ports.contains(address));
        if !is_ours || self.failed.contains_key(&socket(*address)) {
            return None;
        }
        let why = with_causes(fault);
        tracing::error!("not served: {why}");
        self.failed.insert(socket(*address), why.into());
        Some(self.assemble_within(file))
    }

    /// Of how many parts something was made that was not there before.
    pub(crate) fn parts(&self) -> usize {
        self.made.as_ref().map_or(0, |made| made.parts)
    }

    /// Whether the system has refused a port.
    pub(crate) fn lacks_ports(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Whether one of these ports can be had by now.
    pub(crate) fn may_have_ports(&self) -> bool {
        let freebind = self.settings.attach == Attach::Freebind;
        let bind = |(port, ip): (u16, IpAddr)| Bind { address: (ip, port).into(), backlog: 1, freebind };
        self.failed.keys().any(|refused| listen(bind(*refused), 1).is_ok())
    }

    /// The pools that have other servers, and these.
    pub(crate) fn take_servers(&mut self) -> Vec<(String, Vec<Server>)> {
        self.index.take_servers(&self.context)
    }

    /// Everything that would be wrong with them, in words: what is not taken, and conditions that are not as they should be.
    pub(crate) fn faults(&self) -> Vec<String> {
        let problems = self.problems.iter().map(ToString::to_string);
        let statuses = &self.made.as_ref().unwrap_or(&self.in_force).statuses;
        let conditions = statuses.iter().flat_map(|(key, status)| {
            let place = self.places.get(key).map(|at| format!("{at}: ")).unwrap_or_default();
            // Whoever is in conflict is not accepted: that is said once.
            let bad = status.conditions().into_iter().filter(|(_, condition)| match condition.kind {
                "Conflicted" => false,
                "PartiallyInvalid" => condition.status == Truth::True,
                _ => condition.status == Truth::False,
            });
            bad.map(move |(part, condition)| {
                let part = part.map(|part| format!("{part}: ")).unwrap_or_default();
                let Condition { kind, status, reason, message, .. } = condition;
                format!("{place}{key}: {part}{kind}={status} {reason}: {message}")
            })
        });
        problems.chain(conditions).collect()
    }

    /// For operators.
    pub(super) fn shown(&self) -> Shown {
        let (places, problems) = (self.places.clone(), self.problems.clone());
        let (statuses, faults) = (self.in_force.statuses.clone(), self.faults.clone());
        Shown::new(&self.index, places, problems, statuses, self.api_server(), faults)
    }
}

/// As ports that cannot be had are looked up.
fn socket(address: SocketAddr) -> (u16, IpAddr) {
    (address.port(), address.ip())
}
