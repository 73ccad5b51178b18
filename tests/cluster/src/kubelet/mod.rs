//! A kubelet small enough to read: it runs each pod as processes in a network namespace.
//!
//! What it has: readiness and liveness probes, restarts with back-off, `preStop` and the grace period, volumes
//! (`configMap`, `secret`, `projected` with service-account tokens, `downwardAPI`, `emptyDir`, `hostPath`) that follow their
//! objects, capabilities, `hostNetwork`, both families, logs. What it has not: images (a program of this machine stands in
//! for each, see [`crate::programs`]), init containers, limits of resources, `exec` and `attach`.

mod container;
mod logs;
mod pod;
mod probe;
mod status;
mod volumes;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;
use snisplice_tests::{BpfFs, TempDir};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::control_plane::ControlPlane;
use crate::network::Machine;
use crate::runtime;

/// Where kubelets answer the API server.
const PORT: u16 = 10250;

/// A running kubelet. Its pods end with it.
pub struct Kubelet {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Kubelet {
    /// Starts the kubelet of a node, in the node's namespace.
    pub fn start(machine: &Machine, control_plane: &ControlPlane) -> Result<Self> {
        let [v4, v6] = machine.addresses().map(|address| address.to_string());
        let certificate = control_plane.authority().leaf(&[&machine.name(), &v4, &v6])?;
        let kubeconfig = control_plane.kubeconfig();
        let files = TempDir::new()?;
        let bpffs = BpfFs::mount_in(files.path())?;
        let machine = Machine { number: machine.number, ns: machine.ns.again()? };
        let (stop, stopped) = oneshot::channel();
        let thread = machine.ns.again()?.spawn(move || {
            let serve = async {
                let client = crate::client(&kubeconfig).await?;
                let hosts = RefCell::new((2..=254).collect());
                let node = Rc::new(ThisNode { machine, client, hosts, files, _bpffs: bpffs });
                node.register().await?;
                tokio::select! {
                    outcome = logs::serve(node.log_directory(), certificate) => outcome,
                    outcome = node.run_pods() => outcome,
                    _ = stopped => Ok(()),
                }
            };
            if let Err(error) = runtime::block_on(serve) {
                eprintln!("kubelet: {error:#}");
            }
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What all pods of a node share.
struct ThisNode {
    machine: Machine,
    client: Client,
    /// The host numbers that no pod has, the one that was given back last behind: neighbours know its last pod still.
    hosts: RefCell<VecDeque<u8>>,
    files: TempDir,
    _bpffs: BpfFs,
}

impl ThisNode {
    async fn register(&self) -> Result<()> {
        let name = self.machine.name();
        let nodes: Api<Node> = Api::all(self.client.clone());
        let ours = PatchParams::apply("kubelet").force();
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        });
        nodes.patch(&name, &ours, &Patch::Apply(node)).await.context("registering the node")?;
        let addresses = self.machine.addresses();
        let addresses =
            addresses.map(|address| json!({"type": "InternalIP", "address": address.to_string()}));
        let now = Timestamp::now().to_string();
        let resources = json!({"cpu": "64", "memory": "64Gi", "pods": "250"});
        let status = json!({
            "status": {
                "addresses": addresses,
                "conditions": [{
                    "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                    "lastHeartbeatTime": now, "lastTransitionTime": now,
                }],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": PORT}},
                "capacity": resources,
                "allocatable": resources,
            },
        });
        // Server-side apply does not take two addresses of one type.
        nodes
            .patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .context("the node's status")?;
        Ok(())
    }

    /// Follows the pods that are bound to this node.
    async fn run_pods(self: &Rc<Self>) -> Result<()> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let ours = watcher::Config::default().fields(&format!("spec.nodeName={}", self.machine.name()));
        let mut events = std::pin::pin!(watcher(pods, ours).default_backoff());
        let mut known: HashMap<String, watch::Sender<Pod>> = HashMap::new();
        let mut listed: BTreeSet<String> = BTreeSet::new();
        let mut lives = JoinSet::new();
        while let Some(event) = events.next().await {
            while lives.try_join_next().is_some() {}
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(pod)) | Ok(Event::Apply(pod)) => {
                    let uid = pod.uid().context("a pod has a UID")?;
                    listed.insert(uid.clone());
                    match known.get(&uid) {
                        // An error: the pod has ended.
                        Some(changes) => drop(changes.send(pod)),
                        None => {
                            let (changes, changed) = watch::channel(pod);
                            known.insert(uid, changes);
                            lives.spawn_local(pod::live(self.clone(), changed));
                        }
                    }
                }
                Ok(Event::InitDone) => known.retain(|uid, _| listed.contains(uid)),
                Ok(Event::Delete(pod)) => drop(known.remove(&pod.uid().unwrap_or_default())),
                // The API server may be down for a while.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Where a path of the node is kept: the nodes are one machine in truth, and each has files of its own.
    fn host_path(&self, path: &str) -> PathBuf {
        match path {
            "/sys/fs/bpf" => self.files.join(BpfFs::NAME),
            "/proc" | "/lib/modules" => path.into(),
            _ => self.files.join("host").join(path.trim_start_matches('/')),
        }
    }

    /// Where a pod has its files.
    fn pod_directory(&self, pod: &Pod) -> PathBuf {
        self.files.join("pods").join(pod.uid().unwrap_or_default())
    }

    fn log_directory(&self) -> PathBuf {
        self.files.join("logs")
    }
}

/// Where the log of a container is.
fn log_file(directory: &Path, namespace: &str, pod: &str, container: &str) -> PathBuf {
    directory.join(format!("{namespace}_{pod}_{container}"))
}
