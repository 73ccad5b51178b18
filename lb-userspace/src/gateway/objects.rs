//! Objects of the Gateway API: where they come from, what they make together with the file, and what is said of them.

use super::Fault;
use super::attached::Attached;
use crate::accept::{Bind, listen};
use crate::admin::view;
use crate::config::gateway_api::{
    At, Change, Context, Index, Key, Manifests, Mode, Problem, Settings, Source, Status, Statuses, Truth,
};
use crate::config::{Checked, Config, File, Server, Sources};
use crate::kernel::pairs::own_addresses;
use crate::kubernetes::{self, ApiServer, Balancers, Freshness};
use crate::words::with_causes;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The objects of one source.
pub(crate) struct Objects {
    settings: Settings,
    origin: Origin,
    index: Index,
    context: Context,
    /// Where each object stands.
    places: HashMap<Key, At>,
    /// What is not taken.
    problems: Vec<Problem>,
    statuses: Arc<Statuses>,
    /// Ports of the file's own listeners, and whose they are.
    taken: BTreeMap<u16, Box<str>>,
    /// Ports that the system has refused, at which address, and why.
    failed: BTreeMap<u16, (SocketAddr, Box<str>)>,
    /// Ports that objects have asked for, and got.
    ports: HashSet<u16>,
    /// Modes `pool` and `service`: the addresses that are served, and the device that has them and perhaps some more.
    served: BTreeSet<IpAddr>,
    attached: Option<Attached>,
    /// Where all listeners listen.
    binds: BTreeSet<SocketAddr>,
    /// Nothing was read yet.
    is_new: bool,
}

/// Where objects come from.
enum Origin {
    Directory(PathBuf),
    Cluster(Arc<ApiServer>),
}

impl Objects {
    /// Those that a file names, none of which was read yet; `config` is what the file makes alone. `None`: it names none.
    /// `followed`: an API server that is followed already, if it is the one that the file names.
    pub(crate) fn of(file: &File, config: &Config, followed: Option<Arc<ApiServer>>) -> Option<Self> {
        let api = config.gateway_api.clone()?;
        let origin = match &api.source {
            Source::Directory(directory) => Origin::Directory(file.path_of(directory)),
            Source::Cluster { kubeconfig, keep } => {
                let (lease_namespace, identity, node) = kubernetes::Settings::names_from_environment();
                let balancers = (api.settings.mode == Mode::Service).then(|| Balancers {
                    merge: api.settings.merge,
                    class: api.settings.load_balancer_class.clone(),
                    namespace: lease_namespace.as_str().into(),
                });
                let wanted = kubernetes::Settings {
                    balancers,
                    kubeconfig: kubeconfig.as_ref().map(|path| file.path_of(path)),
                    controller: api.settings.controller.clone(),
                    namespaces: api.settings.namespaces.clone(),
                    keep: keep.then(|| kubernetes::keep_file(&config.gateway.fixed.state_dir)),
                    lease_namespace,
                    identity,
                    node,
                };
                let followed = followed.filter(|api| api.is(&wanted));
                Origin::Cluster(followed.unwrap_or_else(|| Arc::new(ApiServer::new(wanted))))
            }
        };
        let attached = Attached::of(&api.settings);
        let index = Index::new(api.settings.clone());
        let mut objects = Objects {
            settings: api.settings,
            origin,
            index,
            context: Context::default(),
            places: HashMap::new(),
            problems: Vec::new(),
            statuses: Arc::default(),
            taken: BTreeMap::new(),
            failed: BTreeMap::new(),
            ports: HashSet::new(),
            served: BTreeSet::new(),
            attached,
            binds: BTreeSet::new(),
            is_new: true,
        };
        objects.stand_back(config);
        Some(objects)
    }

    /// What the file alone has is not for objects.
    fn stand_back(&mut self, config: &Config) {
        let listeners = config.listeners.iter().flat_map(|listener| {
            let whose = format!("the listener {} of the configuration file has it", listener.name);
            listener.bind.iter().map(move |address| (address.port(), whose.clone().into()))
        });
        let admin =
            config.gateway.fixed.admin.map(|address| (address.port(), "`gateway.admin` has it".into()));
        self.taken = listeners.chain(admin).collect();
    }

    /// Reads what the source has now. What was read, and what that asks for.
    pub(crate) fn read(&mut self) -> (Sources, Change) {
        let directory = match &mut self.origin {
            Origin::Directory(directory) => directory,
            Origin::Cluster(api) => {
                let (change, is_outside) = api.take(&mut self.index, std::mem::take(&mut self.is_new));
                let differs = is_outside && self.look_outside();
                return (Sources::default(), if differs { Change::All } else { change });
            }
        };
        let mut manifests = Manifests::read(directory);
        let problems = std::mem::take(&mut manifests.problems);
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            tracing::error!("not taken: {problem}");
        }
        self.problems = problems;
        let sources = std::mem::take(&mut manifests.sources);
        let (places, change) = manifests.put_into(&mut self.index);
        self.places = places;
        (sources, change)
    }

    /// What the file and the objects make together. Ports that the system has refused are asked for again.
    pub(crate) fn assemble(&mut self, file: &File) -> Checked {
        self.failed.clear();
        self.assemble_within(file)
    }

    /// Looks at what is outside the objects and counts; whether it has changed.
    fn look_outside(&mut self) -> bool {
        let before = (self.context.own.clone(), self.context.nodes.clone(), self.context.assigned.clone());
        match own_addresses() {
            Ok(own) => self.context.own = own,
            Err(error) => tracing::error!(%error, "cannot list the addresses of this machine"),
        }
        if let Origin::Cluster(api) = &self.origin {
            // What a device has for the sake of Gateways is none of the node's own. Something else may have put it there, too.
            let attached = self.attached.as_ref().map(Attached::addresses);
            let of_node = |ip: &&IpAddr| attached.is_none_or(|attached| !attached.contains(ip));
            let own: BTreeSet<IpAddr> = self.context.own.iter().filter(of_node).copied().collect();
            if self.settings.mode != Mode::Pool {
                self.context.nodes = api.nodes(&Vec::from_iter(own.iter().copied()));
            }
            if self.settings.mode != Mode::Node {
                let own = if attached.is_some() { own } else { BTreeSet::new() };
                self.context.assigned = api.assigned(&self.settings, &own);
            }
        }
        before != (self.context.own.clone(), self.context.nodes.clone(), self.context.assigned.clone())
    }

    /// The API server that they come from.
    pub(crate) fn api_server(&self) -> Option<Arc<ApiServer>> {
        match &self.origin {
            Origin::Directory(_) => None,
            Origin::Cluster(api) => Some(api.clone()),
        }
    }

    /// Follows the API server, if that is where they come from and it is not followed yet; in the runtime that calls this.
    pub(crate) async fn connect(&mut self) -> anyhow::Result<()> {
        let Origin::Cluster(api) = &self.origin else { return Ok(()) };
        if api.is_followed() {
            return Ok(());
        }
        api.follow().await?;
        self.tell();
        Ok(())
    }

    /// Returns when the API server's objects have changed, if it is where they come from.
    pub(crate) async fn changed(&self) {
        match &self.origin {
            Origin::Directory(_) => std::future::pending().await,
            Origin::Cluster(api) => api.changed().await,
        }
    }

    /// Nothing is known of the objects yet.
    fn is_awaited(&self) -> bool {
        matches!(&self.origin, Origin::Cluster(api) if api.freshness() == Freshness::Stale(None))
    }

    /// Sees to it that the device has the addresses on which what was made is to listen.
    pub(crate) fn attach(&mut self) {
        if let Some(attached) = &mut self.attached {
            attached.add(&self.served);
        }
    }

    /// What was made is in force: the API server is told.
    pub(crate) fn in_force(&mut self) {
        if let Origin::Cluster(api) = &self.origin {
            api.listens(self.binds.clone());
        }
        self.tell();
    }

    /// Whether the device has addresses that no Gateway has, as far as Gateways are known.
    pub(crate) fn has_surplus(&self) -> bool {
        let has_surplus = |attached: &Attached| !attached.addresses().is_subset(&self.served);
        self.attached.as_ref().is_some_and(has_surplus) && !self.is_awaited()
    }

    /// Takes addresses from the device that no Gateway has, but for those that are `used`.
    pub(crate) fn release(&mut self, used: &BTreeSet<IpAddr>) {
        if let Some(attached) = &mut self.attached {
            attached.retain(&self.served.union(used).copied().collect());
        }
    }

    /// Takes all addresses from the device.
    pub(crate) fn detach(&mut self) {
        if let Some(attached) = &mut self.attached {
            attached.retain(&BTreeSet::new());
        }
    }

    /// Whether load balancers were told to send no more clients here.
    pub(crate) async fn leave(&self) -> bool {
        let Origin::Cluster(api) = &self.origin else { return false };
        api.leave().await
    }

    /// Why the gateway is not ready.
    pub(crate) fn unready(&self) -> Vec<String> {
        let is_awaited = self.is_awaited().then(|| "the API server has not been read yet".to_owned());
        let faults = self.attached.iter().flat_map(|attached| attached.faults().iter().cloned());
        is_awaited.into_iter().chain(faults).collect()
    }

    fn tell(&mut self) {
        if let Origin::Cluster(api) = &self.origin {
            api.served(&self.index, self.statuses.clone());
        }
    }

    fn assemble_within(&mut self, file: &File) -> Checked {
        self.look_outside();
        // The kernel has this file if it has IPv6.
        self.context.ipv6 = Path::new("/proc/net/if_inet6").exists();
        self.context.unavailable = self.taken.clone();
        let failed = self.failed.iter().map(|(port, (_, why))| (*port, why.clone()));
        self.context.unavailable.extend(failed);
        let mut built = self.index.build(&self.context);
        let checked = file.check(&mut built);
        self.statuses = Arc::new(built.statuses);
        if let Ok((config, _)) = &checked {
            let ports =
                config.listeners.iter().flat_map(|listener| &listener.bind).map(|address| address.port());
            self.ports = ports.filter(|port| !self.taken.contains_key(port)).collect();
            let places = self.context.assigned.values();
            let assigned: BTreeSet<IpAddr> = places.flat_map(|place| &place.addresses).copied().collect();
            self.binds = config.listeners.iter().flat_map(|listener| &listener.bind).copied().collect();
            let binds = self.binds.iter().map(SocketAddr::ip);
            self.served = binds.filter(|address| assigned.contains(address)).collect();
        }
        checked
    }

    /// What they make without a port that cannot be listened on, if it is a port of theirs.
    pub(crate) fn without(&mut self, fault: &Fault, file: &File) -> Option<Checked> {
        let Fault::Listen { address, .. } = fault else { return None };
        let port = address.port();
        if !self.ports.contains(&port) || self.failed.contains_key(&port) {
            return None;
        }
        let why = with_causes(fault);
        tracing::error!("not served: {why}");
        self.failed.insert(port, (*address, why.into()));
        Some(self.assemble_within(file))
    }

    /// Whether the system has refused a port.
    pub(crate) fn lacks_ports(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Whether one of these ports can be had by now.
    pub(crate) fn may_have_ports(&self) -> bool {
        let bind = |address: SocketAddr| Bind { address, backlog: 1, freebind: false };
        self.failed.values().any(|(address, _)| listen(bind(*address), 1).is_ok())
    }

    /// The pools that have other servers, and these.
    pub(crate) fn take_servers(&mut self) -> Vec<(String, Vec<Server>)> {
        self.index.take_servers(&self.context)
    }

    /// Everything that would be wrong with them, in words: what is not taken, and conditions that are not as they should be.
    pub(crate) fn faults(&self) -> Vec<String> {
        let problems = self.problems.iter().map(ToString::to_string);
        let conditions = self.statuses.iter().flat_map(|(key, status)| {
            let place = self.places.get(key).map(|at| format!("{at}: ")).unwrap_or_default();
            let bad = status.conditions().into_iter().filter(|(_, condition)| {
                // This one is bad if it holds; whoever has it is not accepted.
                condition.status == Truth::False && condition.kind != "Conflicted"
            });
            bad.map(move |(part, condition)| {
                let part = part.map(|part| format!("{part}: ")).unwrap_or_default();
                let (kind, reason, message) = (condition.kind, condition.reason, &condition.message);
                format!("{place}{key}: {part}{kind}=False {reason}: {message}")
            })
        });
        problems.chain(conditions).collect()
    }

    /// For operators.
    pub(crate) fn view(&self) -> Vec<view::Object> {
        let objects = self.index.keys().map(|key| view::Object {
            kind: key.kind.name().into(),
            namespace: key.name.namespace.to_string(),
            name: key.name.name.to_string(),
            place: self.places.get(key).map(ToString::to_string),
            refused: None,
            status: self.statuses.get(key).map(status_of),
        });
        let refused = self.problems.iter().map(|problem| {
            let (kind, name) = match &problem.object {
                Some(object) => object.split_once(' ').unwrap_or(("", object)),
                None => ("", ""),
            };
            let (namespace, name) = name.split_once('/').unwrap_or(("", name));
            view::Object {
                kind: kind.into(),
                namespace: namespace.into(),
                name: name.into(),
                place: Some(problem.at.to_string()),
                refused: Some(problem.reason.clone()),
                status: None,
            }
        });
        objects.chain(refused).collect()
    }
}

fn status_of(status: &Status) -> serde_json::Value {
    serde_json::to_value(status).unwrap_or_default()
}
