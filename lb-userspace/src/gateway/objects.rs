//! Objects of the Gateway API: where they come from, what they make together with the file, and what is said of them.

use super::Fault;
use crate::admin::view;
use crate::config::gateway_api::{
    At, Change, Context, Index, Key, Manifests, Problem, Source, Status, Statuses, Truth,
};
use crate::config::{Checked, Config, File, Server, Sources};
use crate::kernel::pairs::own_addresses;
use crate::words::with_causes;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// The objects of one source.
pub(crate) struct Objects {
    directory: PathBuf,
    index: Index,
    context: Context,
    /// Where each object stands.
    places: HashMap<Key, At>,
    /// What is not taken.
    problems: Vec<Problem>,
    statuses: Statuses,
    /// Ports of the file's own listeners, and whose they are.
    taken: BTreeMap<u16, Box<str>>,
    /// Ports that the system has refused, and why.
    failed: BTreeMap<u16, Box<str>>,
    /// Ports that objects have asked for, and got.
    ports: HashSet<u16>,
}

impl Objects {
    /// Those that a file names, none of which was read yet; `config` is what the file makes alone. `None`: it names none.
    pub(crate) fn of(file: &File, config: &Config) -> Option<Self> {
        let api = config.gateway_api.clone()?;
        let Source::Directory(directory) = &api.source;
        let directory = file.path_of(directory);
        let index = Index::new(api.settings);
        let mut objects = Objects {
            directory,
            index,
            context: Context::default(),
            places: HashMap::new(),
            problems: Vec::new(),
            statuses: Statuses::new(),
            taken: BTreeMap::new(),
            failed: BTreeMap::new(),
            ports: HashSet::new(),
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
        let mut manifests = Manifests::read(&self.directory);
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

    fn assemble_within(&mut self, file: &File) -> Checked {
        match own_addresses() {
            Ok(own) => self.context.own = own,
            Err(error) => tracing::error!(%error, "cannot list the addresses of this machine"),
        }
        // The kernel has this file if it has IPv6.
        self.context.ipv6 = Path::new("/proc/net/if_inet6").exists();
        self.context.unavailable = self.taken.clone();
        self.context.unavailable.extend(self.failed.clone());
        let mut built = self.index.build(&self.context);
        let checked = file.check(&mut built);
        self.statuses = built.statuses;
        if let Ok((config, _)) = &checked {
            let ports =
                config.listeners.iter().flat_map(|listener| &listener.bind).map(|address| address.port());
            self.ports = ports.filter(|port| !self.taken.contains_key(port)).collect();
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
        self.failed.insert(port, why.into());
        Some(self.assemble_within(file))
    }

    /// Whether the system has refused a port.
    pub(crate) fn lacks_ports(&self) -> bool {
        !self.failed.is_empty()
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
