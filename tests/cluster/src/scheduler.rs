//! Binds each pod to a node: to the one that it names, or to the next in turn.

use std::path::PathBuf;
use std::thread::JoinHandle;

use anyhow::Result;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use kube::api::{Api, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Client, ResourceExt};
use serde_json::Value;
use snisplice_tests::NetNs;
use tokio::sync::oneshot;

use crate::runtime;

/// A running scheduler.
pub struct Scheduler {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Scheduler {
    /// Starts it in the control plane's namespace.
    pub fn start(ns: &NetNs, kubeconfig: PathBuf, nodes: Vec<String>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let thread = ns.spawn(move || {
            let serve = async {
                let client = runtime::client(&kubeconfig).await?;
                tokio::select! {
                    outcome = bind_pods(client, &nodes) => outcome,
                    _ = stopped => Ok(()),
                }
            };
            if let Err(error) = runtime::block_on(serve) {
                eprintln!("scheduler: {error:#}");
            }
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn bind_pods(client: Client, nodes: &[String]) -> Result<()> {
    let pods: Api<Pod> = Api::all(client.clone());
    let unbound = watcher::Config::default().fields("spec.nodeName=");
    let mut unbound = std::pin::pin!(watcher(pods, unbound).default_backoff().applied_objects());
    let mut turn = nodes.iter().cycle();
    while let Some(pod) = unbound.next().await {
        // An error: the API server is away for a while.
        let Ok(pod) = pod else { continue };
        if pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let Some(node) = wanted(&pod).or_else(|| turn.next().cloned()) else { continue };
        let target =
            ObjectReference { kind: Some("Node".into()), name: Some(node), ..ObjectReference::default() };
        let binding = Binding { metadata: pod.metadata.clone(), target };
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
        let (name, params) = (pod.name_any(), PostParams::default());
        // An error: somebody else was faster, or the pod is gone.
        let _ = api.create_subresource::<_, Value>("binding", &name, &params, &binding).await;
    }
    Ok(())
}

/// The node that a DaemonSet's pod or one with a `kubernetes.io/hostname` wants.
fn wanted(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let selected = spec.node_selector.iter().flatten().find(|label| label.0 == "kubernetes.io/hostname");
    if let Some((_, node)) = selected {
        return Some(node.clone());
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let mut fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    fields.find(|field| field.key == "metadata.name")?.values.as_ref()?.first().cloned()
}
