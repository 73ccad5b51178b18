//! The gateway in the cluster, by the manifests that users apply.

use anyhow::{Context, Result};

use crate::Cluster;

/// A configuration whose listeners bind on the nodes' own addresses.
pub const NODE_MODE: &str = "mode = \"node\"\n";

/// Runs the gateway on every node, by `deploy/kubernetes.yaml`, with these lines below `[gateway_api]`; waits until it is
/// ready everywhere.
pub fn gateway(cluster: &Cluster, gateway_api: &str) -> Result<()> {
    let manifests = include_str!("../../../deploy/kubernetes.yaml");
    let (before, after) =
        manifests.split_once("    mode = \"node\"\n").context("the mode of the manifests")?;
    let lines: String = gateway_api.lines().map(|line| format!("    {line}\n")).collect();
    cluster.apply(&format!("{before}{lines}{after}"))?;
    cluster.kubectl("rollout status --namespace snisplice-system daemonset/snisplice --timeout=60s")?;
    Ok(())
}
