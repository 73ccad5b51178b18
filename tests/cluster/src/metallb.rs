//! MetalLB in the cluster: the real one, in its layer-2 mode, which answers ARP and neighbour discovery for the addresses of
//! Services on one node.

use anyhow::Result;

use crate::{Cluster, programs};

/// The class of the Services that it takes.
pub const CLASS: &str = "metallb.io/metallb";
/// The addresses that it gives out: of the nodes' segment.
pub const ADDRESSES: [&str; 2] = ["10.10.0.100-10.10.0.119", "fd10::100-fd10::119"];

/// Runs it on every node, with its addresses; waits until it is ready.
pub fn install(cluster: &Cluster) -> Result<()> {
    let definitions = programs::path("metallb-crds.yaml")?;
    cluster.kubectl(&format!("apply --server-side -f {}", definitions.display()))?;
    cluster.kubectl("wait crd --all --for=condition=Established --timeout=60s")?;
    cluster.apply(include_str!("../manifests/metallb.yaml"))?;
    cluster.apply(&format!(
        "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {{name: segment, namespace: metallb-system}}\n\
         spec: {{addresses: [\"{}\", \"{}\"]}}\n---\n\
         apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {{name: segment, namespace: metallb-system}}\n\
         spec: {{ipAddressPools: [segment]}}\n",
        ADDRESSES[0], ADDRESSES[1]
    ))?;
    cluster.kubectl("rollout status --namespace metallb-system deployment/controller --timeout=60s")?;
    cluster.kubectl("rollout status --namespace metallb-system daemonset/speaker --timeout=60s")?;
    Ok(())
}
