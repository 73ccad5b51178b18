//! A Kubernetes cluster on this machine, to test snisplice in: the real etcd, API server and controllers, nodes that are
//! network namespaces on one segment, and a kubelet of its own that runs pods as processes.
//!
//! Needs root, and the programs that `cargo xtask cluster --build` builds. Nothing needs cleaning up by hand.

pub mod conformance;
pub mod control_plane;
pub mod deploy;
pub mod kubelet;
pub mod metallb;
pub mod network;
pub mod programs;
mod runtime;
pub mod scheduler;

use std::io::Write as _;
use std::process::Stdio;

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
        let mut command = self.control_plane.kubectl()?;
        command.args(["apply", "--server-side", "--force-conflicts", "-f", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("it is piped")?.write_all(manifests.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "kubectl apply: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Installs the Gateway API's objects (the standard channel), and waits until the API server serves them.
    pub fn install_gateway_api(&self) -> Result<()> {
        let crds = programs::path("gateway-api-crds.yaml")?;
        self.kubectl(&format!("apply --server-side -f {}", crds.display()))?;
        self.kubectl("wait crd --all --for=condition=Established --timeout=60s")?;
        Ok(())
    }
}
