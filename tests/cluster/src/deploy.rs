//! The gateway in the cluster, by the manifests and the Helm chart that users apply.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use snisplice_tests::TempDir;
use snisplice_tests::process::checked_output;

use crate::{Cluster, feed, programs};

/// A configuration whose listeners bind on the nodes' own addresses.
pub const NODE_MODE: &str = "mode = \"node\"\n";

/// Where the gateway is in a cluster.
pub const NAMESPACE: &str = "snisplice-system";

/// deploy/kubernetes.yaml.
pub const MANIFESTS: &str = include_str!("../../../deploy/kubernetes.yaml");

/// Runs the gateway on every node, by `deploy/kubernetes.yaml`, with these lines below `[gateway_api]`; waits until it is
/// ready everywhere.
pub fn gateway(cluster: &Cluster, gateway_api: &str) -> Result<()> {
    gateway_with(cluster, "drain_timeout = \"30s\"\n", gateway_api)
}

/// The same, with these lines below `[gateway]` in place of its `drain_timeout`.
pub fn gateway_with(cluster: &Cluster, gateway: &str, gateway_api: &str) -> Result<()> {
    let mut manifests = MANIFESTS.to_owned();
    for (there, lines) in [("drain_timeout = \"30s\"", gateway), ("mode = \"node\"", gateway_api)] {
        let (before, after) =
            manifests.split_once(&format!("    {there}\n")).context("the manifests' configuration")?;
        let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
        manifests = format!("{before}{lines}{after}");
    }
    cluster.apply(&manifests)?;
    rolled_out(cluster)
}

/// Waits until every node has the gateway as it is wanted now.
pub fn rolled_out(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&format!("rollout status --namespace {NAMESPACE} daemonset/snisplice --timeout=120s"))?;
    Ok(())
}

/// `helm install` or `helm upgrade` of the chart with these values (YAML); waits until the gateway is ready everywhere. What
/// Helm tells the user.
pub fn helm(cluster: &Cluster, action: &str, values: &str) -> Result<String> {
    let told = helm_at_once(cluster, action, values)?;
    rolled_out(cluster)?;
    Ok(told)
}

/// The same without the wait.
pub fn helm_at_once(cluster: &Cluster, action: &str, values: &str) -> Result<String> {
    helm_release(cluster, action, "snisplice", values)
}

/// The same of any release.
pub fn helm_release(cluster: &Cluster, action: &str, release: &str, values: &str) -> Result<String> {
    let mut helm = cluster.control_plane.helm()?;
    helm.args([action, release]).arg(chart());
    helm.args(["--namespace", NAMESPACE, "--create-namespace", "--values", "-"]);
    feed(&mut helm, values)
}

/// What stands before the chart's own in deploy/kubernetes.yaml: Helm makes the namespace by itself.
const HEADER: &str = "\
# snisplice on every node of a cluster: what the chart in deploy/helm/snisplice makes of its default values. Change it there;
# `cargo xtask manifests` writes this file. The Gateway API's definitions come first:
#   kubectl apply --server-side -f https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.6.3/standard-install.yaml
apiVersion: v1
kind: Namespace
metadata:
  name: snisplice-system
  labels:
    # hostNetwork and hostPath.
    pod-security.kubernetes.io/enforce: privileged
";

/// What deploy/kubernetes.yaml has to be.
pub fn manifests() -> Result<String> {
    Ok(HEADER.to_owned() + &render("")?)
}

/// The manifests that the chart makes of these values (YAML); an error if it refuses them.
pub fn render(values: &str) -> Result<String> {
    let files = TempDir::new()?;
    let mut helm = local_helm(&files)?;
    helm.args(["template", "snisplice"]).arg(chart()).args(["--namespace", NAMESPACE, "--values", "-"]);
    feed(&mut helm, values)
}

/// `helm lint`, for which warnings are errors.
pub fn lint() -> Result<String> {
    let files = TempDir::new()?;
    checked_output(local_helm(&files)?.args(["lint", "--strict"]).arg(chart()))
}

/// A Helm that knows no cluster.
fn local_helm(files: &TempDir) -> Result<Command> {
    let mut helm = Command::new(programs::path("helm")?);
    // What it keeps is nobody else's.
    helm.env_clear().env("HOME", files.path());
    Ok(helm)
}

fn chart() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/helm/snisplice"))
}

/// The configuration file in rendered manifests.
pub fn configuration(manifests: &str) -> Result<String> {
    const INDENT: &str = "    ";
    let (_, after) = manifests.split_once("\n  snisplice.toml: |\n").context("the ConfigMap")?;
    let lines = after.lines().take_while(|line| line.is_empty() || line.starts_with(INDENT));
    let text: Vec<&str> = lines.map(|line| line.strip_prefix(INDENT).unwrap_or(line)).collect();
    ensure!(!text.is_empty(), "an empty ConfigMap");
    Ok(text.join("\n") + "\n")
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
