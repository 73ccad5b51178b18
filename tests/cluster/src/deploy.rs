//! The gateway in the cluster, by the manifests that users apply.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

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

/// The gateway's process on a node; the first is 0.
pub fn process(cluster: &Cluster, node: usize) -> Option<u32> {
    let inode = |path: String| fs::metadata(path).ok().map(|file| file.ino());
    let ours = inode(cluster.network.nodes[node].ns.path())?;
    let pids =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut pids = pids.filter(|pid| inode(format!("/proc/{pid}/ns/net")) == Some(ours));
    pids.find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "snisplice")
    })
}
