//! What a gateway reads of an API server of Kubernetes: lists of the objects of a test, and watches on which nothing comes. What is
//! written is noted, and not to be read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::netns::NetNs;

/// An object, and the plural of its kind, as it stands in paths.
pub type Object = (&'static str, Value);

/// It has the kinds of the Gateway API that its objects are of, and takes nothing that is written before
/// [`take_writes`](ApiServer::take_writes).
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    rules: Arc<Rules>,
    traffic: Arc<Mutex<Traffic>>,
    _backend: Backend,
}

/// How it answers who asks for a namespace's objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Not for now.
    Nothing,
    /// With status 403.
    Forbidden,
}

/// What it does not list the objects of: namespaces, or kinds in them.
#[derive(Debug, Default)]
struct Rules {
    all: Mutex<BTreeMap<String, Answer>>,
    changed: Condvar,
}

impl Rules {
    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Answer>)) {
        change(&mut self.all.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits until there is an answer. Whether it is one with the objects.
    fn allows(&self, of: &str) -> bool {
        let rules = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let is_held = |rules: &mut BTreeMap<_, _>| rules.get(of) == Some(&Answer::Nothing);
        let rules = self.changed.wait_while(rules, is_held).unwrap_or_else(PoisonError::into_inner);
        !rules.contains_key(of)
    }
}

/// What goes on.
#[derive(Debug, Default)]
struct Traffic {
    /// Watches, by what is watched.
    watches: Vec<(String, TcpStream)>,
    /// So many watches are not to begin.
    refuses: usize,
    /// What was to be watched then.
    refused: Vec<String>,
    takes_writes: bool,
    written: Vec<(String, Value)>,
}

/// What is seen by all connections.
struct Seen {
    objects: Vec<Object>,
    rules: Arc<Rules>,
    traffic: Arc<Mutex<Traffic>>,
}

fn locked(traffic: &Mutex<Traffic>) -> MutexGuard<'_, Traffic> {
    traffic.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ApiServer {
    /// One with these objects.
    pub fn start(ns: &NetNs, objects: Vec<Object>) -> Result<Self> {
        let listener = ns.run(|| TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let (rules, traffic) = (Arc::<Rules>::default(), Arc::<Mutex<Traffic>>::default());
        let seen = Seen { objects, rules: rules.clone(), traffic: traffic.clone() };
        let backend = Backend::serve(ns, listener, move |stream| serve(stream, &seen))?;
        Ok(Self { address, rules, traffic, _backend: backend })
    }

    /// For `gateway_api.kubeconfig`.
    pub fn kubeconfig(&self) -> String {
        let server = format!("http://{}", self.address);
        let named = |what: &str, value: Value| json!([{"name": "a", what: value}]);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "contexts": named("context", json!({"cluster": "a", "user": "a"})),
            "clusters": named("cluster", json!({"server": server})),
            "users": named("user", json!({})),
        });
        config.to_string()
    }

    /// How it answers from now on who asks for a namespace's objects, or for those of a kind: `NAMESPACE/secrets`. `None`: with
    /// these.
    pub fn answer(&self, of: &str, answer: Option<Answer>) {
        self.rules.change(|rules| {
            rules.remove(of);
            rules.extend(answer.map(|answer| (of.to_owned(), answer)));
        });
    }
}

impl ApiServer {
    /// Takes everything that is written from now on.
    pub fn take_writes(&self) {
        locked(&self.traffic).takes_writes = true;
    }

    /// The paths to which something was written, and what.
    pub fn written(&self) -> Vec<(String, Value)> {
        locked(&self.traffic).written.clone()
    }

    /// Breaks all watches, and the connections of those that begin next.
    pub fn break_watches(&self, and_next: usize) {
        let mut traffic = locked(&self.traffic);
        (traffic.refuses, traffic.refused) = (and_next, Vec::new());
        for (_, stream) in std::mem::take(&mut traffic.watches) {
            // It may have been closed by the gateway.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether as many watches were broken as were to be, and have begun again since.
    pub fn are_watched_again(&self) -> bool {
        let traffic = locked(&self.traffic);
        let is_watched = |of: &String| traffic.watches.iter().any(|(watched, _)| watched == of);
        traffic.refuses == 0 && traffic.refused.iter().all(is_watched)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // Nobody waits for ever.
        self.rules.change(BTreeMap::clear);
    }
}

fn serve(stream: TcpStream, seen: &Seen) -> io::Result<()> {
    let mut answers = stream.try_clone()?;
    let mut requests = BufReader::new(stream);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if requests.read_line(&mut first)? == 0 {
            return Ok(());
        }
        loop {
            let mut header = String::new();
            requests.read_line(&mut header)?;
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            if header.trim().is_empty() {
                break;
            }
        }
        let mut body = Vec::new();
        (&mut requests).take(length).read_to_end(&mut body)?;
        let mut words = first.split_whitespace();
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if query.contains("watch=true") {
            let mut traffic = locked(&seen.traffic);
            if traffic.refuses > 0 {
                traffic.refuses -= 1;
                traffic.refused.push(path.to_owned());
                return Ok(());
            }
            traffic.watches.push((path.to_owned(), answers.try_clone()?));
            drop(traffic);
            answers.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
            )?;
            // Until the gateway has enough of it.
            return requests.read_to_end(&mut Vec::new()).map(drop);
        }
        let (code, body) = match method {
            "GET" => look(path, &seen.objects, &seen.rules),
            _ if locked(&seen.traffic).takes_writes => {
                let body: Value = serde_json::from_slice(&body)?;
                locked(&seen.traffic).written.push((path.to_owned(), body.clone()));
                (200, body)
            }
            _ => failure(404),
        };
        let body = body.to_string();
        let length = body.len();
        write!(
            answers,
            "HTTP/1.1 {code} -\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
    }
}

fn failure(code: u16) -> (u16, Value) {
    let reason = if code == 404 { "NotFound" } else { "Forbidden" };
    (code, json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}))
}

/// The groups of the objects.
fn groups(objects: &[Object]) -> Value {
    let mut groups = BTreeMap::from([("apps", BTreeSet::from(["v1"]))]);
    let versions = objects.iter().filter_map(|(_, object)| object["apiVersion"].as_str()?.split_once('/'));
    versions.for_each(|(group, version)| _ = groups.entry(group).or_default().insert(version));
    let group = |(name, versions): (&str, BTreeSet<&str>)| {
        let version = |version| json!({"version": version, "groupVersion": format!("{name}/{version}")});
        json!({"name": name, "versions": versions.into_iter().map(version).collect::<Vec<_>>()})
    };
    let groups: Vec<Value> = groups.into_iter().map(group).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// What there is at a path: kinds of a group, or objects of a kind.
fn look(path: &str, objects: &[Object], rules: &Rules) -> (u16, Value) {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let (group, rest) = match &parts[..] {
        ["apis"] => return (200, groups(objects)),
        ["api", version, rest @ ..] => ((*version).to_owned(), rest),
        ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
        _ => return failure(404),
    };
    let of_group = objects.iter().filter(|(_, object)| object["apiVersion"] == *group);
    let (namespace, plural) = match rest {
        [] => {
            let kinds: BTreeMap<_, _> = of_group.map(|(plural, object)| (plural, &object["kind"])).collect();
            let kind = |(name, kind)| json!({"name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": []});
            let resources: Vec<Value> = kinds.into_iter().map(kind).collect();
            let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources});
            return if resources.is_empty() { failure(404) } else { (200, list) };
        }
        [plural] => (None, *plural),
        ["namespaces", namespace, plural] => (Some(*namespace), *plural),
        _ => return failure(404),
    };
    let is_allowed = |of: &str| rules.allows(of) && rules.allows(&format!("{of}/{plural}"));
    if namespace.is_some_and(|namespace| !is_allowed(namespace)) {
        return failure(403);
    }
    let is_meant = |(kind, object): &&Object| {
        *kind == plural && namespace.is_none_or(|namespace| object["metadata"]["namespace"] == *namespace)
    };
    let items: Vec<&Value> = of_group.filter(is_meant).map(|(_, object)| object).collect();
    (200, json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}))
}
