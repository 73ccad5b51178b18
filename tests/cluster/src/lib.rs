//! A Kubernetes cluster on this machine, to test snisplice in: the real etcd, API server and controllers, nodes that are
//! network namespaces on one segment, and a kubelet of its own that runs pods as processes.
//!
//! Needs root, and the programs that `cargo xtask cluster --build` builds. Nothing needs cleaning up by hand.

pub mod conformance;
pub mod control_plane;
pub mod deploy;
pub mod figures;
pub mod kubelet;
pub mod metallb;
pub mod network;
pub mod programs;
pub mod redis;
mod runtime;
pub mod scheduler;

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use snisplice_tests::eventually;
use snisplice_tests::process::checked_output;

pub use control_plane::ControlPlane;
pub use kubelet::Kubelet;
pub use network::{Machine, Network};
pub use scheduler::Scheduler;

/// A running cluster. It ends with this value, or with the thread that started it.
pub struct Cluster {
    /// A kubelet for each node; a test takes one away to lose a node.
    pub kubelets: Vec<Kubelet>,
    _scheduler: Scheduler,
    /// The control plane.
    pub control_plane: ControlPlane,
    /// The machines.
    pub network: Network,
}

impl Cluster {
    /// Starts a cluster with so many nodes, in which no pod runs yet.
    pub fn start(nodes: u8) -> Result<Self> {
        let network = Network::new(nodes)?;
        let control_plane = ControlPlane::start(&network.control_plane)?;
        let kubelets = network.nodes.iter().map(|node| Kubelet::start(node, &control_plane));
        let kubelets = kubelets.collect::<Result<_>>()?;
        let names = network.nodes.iter().map(Machine::name).collect();
        let scheduler = Scheduler::start(&network.control_plane, control_plane.kubeconfig(), names);
        let cluster = Self { kubelets, _scheduler: scheduler, control_plane, network };
        // The last that the controllers make: before, no pod can be created.
        let account = "get serviceaccount default --output name";
        eventually("the default service account", || cluster.kubectl(account).ok())?;
        Ok(cluster)
    }

    /// What `kubectl ARGS` (separated by spaces) writes.
    pub fn kubectl(&self, args: &str) -> Result<String> {
        checked_output(self.control_plane.kubectl()?.args(args.split_whitespace()))
    }

    /// Applies manifests.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        let mut kubectl = self.control_plane.kubectl()?;
        kubectl.args(["apply", "--server-side", "--force-conflicts", "-f", "-"]);
        feed(&mut kubectl, manifests).map(drop)
    }

    /// Installs the Gateway API's objects (the standard channel), and waits until the API server serves them.
    pub fn install_gateway_api(&self) -> Result<()> {
        self.install("gateway-api-crds.yaml")
    }

    /// The same of the experimental channel.
    pub fn install_experimental_gateway_api(&self) -> Result<()> {
        self.install("gateway-api-experimental-crds.yaml")
    }

    /// Installs the definitions of Istio's objects, and waits until the API server serves them.
    pub fn install_istio(&self) -> Result<()> {
        self.install("istio-crds.yaml")
    }

    fn install(&self, definitions: &str) -> Result<()> {
        let crds = programs::path(definitions)?;
        self.kubectl(&format!("apply --server-side -f {}", crds.display()))?;
        self.kubectl("wait crd --all --for=condition=Established --timeout=60s")?;
        Ok(())
    }
}

/// Runs a command with this as its standard input: its standard output, or an error with what it said.
pub fn feed(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // An error: it did not read to the end, and says why.
    let _ = child.stdin.take().context("it is piped")?.write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
