//! A kubelet small enough to read: it runs each pod as processes in a network namespace.
//!
//! What it has: startup, readiness and liveness probes, restarts with back-off, `preStop` and the grace period, volumes
//! (`configMap`, `secret`, `projected` with service-account tokens, `downwardAPI`, `emptyDir`, `hostPath`) that follow their
//! objects, capabilities, users, a read-only root, `hostNetwork`, both families, logs. What it has not: images (a program of
//! this machine stands in for each, see [`crate::programs`]), seccomp, init containers, limits of resources, `exec` and
//! `attach`.

mod container;
mod logs;
mod node;
mod place;
mod pod;
mod probe;
mod status;
mod volumes;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use snisplice_tests::{BpfFs, TempDir};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use self::node::ThisNode;
use crate::control_plane::ControlPlane;
use crate::network::Machine;
use crate::runtime;

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
                let client = runtime::client(&kubeconfig).await?;
                let hosts = RefCell::new((2..=254).collect());
                let node = Rc::new(ThisNode { machine, client, hosts, files, _bpffs: bpffs });
                node.register().await?;
                tokio::select! {
                    outcome = logs::serve(node.log_directory(), certificate) => outcome,
                    outcome = run_pods(&node) => outcome,
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

/// Follows the pods that are bound to this node.
async fn run_pods(node: &Rc<ThisNode>) -> Result<()> {
    let pods: Api<Pod> = Api::all(node.client.clone());
    let ours = watcher::Config::default().fields(&format!("spec.nodeName={}", node.machine.name()));
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
                        lives.spawn_local(pod::live(node.clone(), changed));
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
