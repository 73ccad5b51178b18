//! What all pods of a node share.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use snisplice_tests::{BpfFs, TempDir};

use crate::network::Machine;

/// Where kubelets answer the API server.
pub(super) const PORT: u16 = 10250;

/// What all pods of a node share.
pub(super) struct ThisNode {
    pub(super) machine: Machine,
    pub(super) client: Client,
    /// The host numbers that no pod has, the one that was given back last behind: neighbours know its last pod still.
    pub(super) hosts: RefCell<VecDeque<u8>>,
    pub(super) files: TempDir,
    /// Kept mounted.
    pub(super) _bpffs: BpfFs,
}

impl ThisNode {
    pub(super) async fn register(&self) -> Result<()> {
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

    /// Where a path of the node is kept: the nodes are one machine in truth, and each has files of its own.
    pub(super) fn host_path(&self, path: &str) -> PathBuf {
        match path {
            "/sys/fs/bpf" => self.files.join(BpfFs::NAME),
            "/proc" | "/lib/modules" => path.into(),
            _ => self.files.join("host").join(path.trim_start_matches('/')),
        }
    }

    /// Where a pod has its files.
    pub(super) fn pod_directory(&self, pod: &Pod) -> PathBuf {
        self.files.join("pods").join(pod.uid().unwrap_or_default())
    }

    pub(super) fn log_directory(&self) -> PathBuf {
        self.files.join("logs")
    }
}

/// Where the log of a container is.
pub(super) fn log_file(directory: &Path, namespace: &str, pod: &str, container: &str) -> PathBuf {
    directory.join(format!("{namespace}_{pod}_{container}"))
}
