//! The machines of the cluster: network namespaces on one segment.
//!
//! ```text
//!   client 10.10.0.2   control plane 10.10.0.1      node-1 10.10.0.11        node-2 10.10.0.12
//!         |                    |                          |                        |
//!   ------+--------------------+--------------------------+------------------------+------  switch, fd10::/64 too
//!                                                  pods 10.244.1.0/24       pods 10.244.2.0/24
//!                                                       fd44:0:0:1::/64          fd44:0:0:2::/64
//! ```
//!
//! Each node routes the pods of the other nodes to these (what flannel calls `host-gw`). Nothing stands between the
//! client and the pods, so that a test can compare.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use snisplice_tests::NetNs;

/// The control plane's address.
pub const CONTROL_PLANE: Ipv4Addr = Ipv4Addr::new(10, 10, 0, 1);
/// The control plane's IPv6 address.
pub const CONTROL_PLANE6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 10, 0, 2);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 2);
/// The device of every machine on the segment.
pub const SEGMENT: &str = "eth0";
/// The bridge of a node's pods.
const PODS: &str = "pods0";

/// The machines.
pub struct Network {
    _switch: NetNs,
    /// Where etcd, the API server and the controllers run.
    pub control_plane: NetNs,
    /// Where clients, `kubectl` and the conformance suite run.
    pub client: NetNs,
    /// Where the pods run; node-1 is the first.
    pub nodes: Vec<Machine>,
}

/// A node's machine.
#[derive(Debug)]
pub struct Machine {
    /// 1 for node-1.
    pub number: u8,
    /// Its network namespace; pods with `hostNetwork` are in it.
    pub ns: NetNs,
}

impl Network {
    /// Makes the machines and joins them.
    pub fn new(nodes: u8) -> Result<Self> {
        let switch = NetNs::new("switch")?;
        switch.ip("link add bridge type bridge")?;
        switch.ip("link set bridge up")?;
        let control_plane = NetNs::new("control-plane")?;
        let client = NetNs::new("client")?;
        join(&switch, "control", &control_plane, CONTROL_PLANE.into(), CONTROL_PLANE6.into())?;
        join(&switch, "client", &client, CLIENT.into(), CLIENT6.into())?;
        let nodes = (1..=nodes).map(|number| Machine::new(&switch, number)).collect::<Result<Vec<_>>>()?;
        let outside = nodes.iter().map(|node| &node.ns).chain([&control_plane, &client]);
        for ns in outside {
            for node in &nodes {
                if !std::ptr::eq(&node.ns, ns) {
                    node.leads_to_its_pods(ns)?;
                }
            }
        }
        Ok(Self { _switch: switch, control_plane, client, nodes })
    }

    /// Makes the client send what is for a range of addresses to a node, as a router would.
    pub fn route(&self, range: &str, node: &Machine) -> Result<()> {
        let via = node.addresses().into_iter().find(|via| via.is_ipv6() == range.contains(':'));
        self.client.ip(&format!("route replace {range} via {}", via.expect("a node has both families")))?;
        Ok(())
    }
}

fn join(switch: &NetNs, port: &str, machine: &NetNs, v4: IpAddr, v6: IpAddr) -> Result<()> {
    switch.link(port, machine, SEGMENT)?;
    switch.ip(&format!("link set {port} master bridge"))?;
    machine.address(SEGMENT, &format!("{v4}/24"))?;
    machine.address(SEGMENT, &format!("{v6}/64"))
}

impl Machine {
    fn new(switch: &NetNs, number: u8) -> Result<Self> {
        let ns = NetNs::new(&format!("node-{number}"))?;
        let machine = Self { number, ns };
        let [v4, v6] = machine.addresses();
        join(switch, &machine.name(), &machine.ns, v4, v6)?;
        let ns = &machine.ns;
        ns.sysctl("net/ipv4/ip_forward", "1")?;
        ns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        ns.ip(&format!("link add {PODS} type bridge"))?;
        ns.ip(&format!("link set {PODS} up"))?;
        let [v4, v6] = machine.pod_addresses(1);
        ns.address(PODS, &format!("{v4}/24"))?;
        ns.address(PODS, &format!("{v6}/64"))?;
        Ok(machine)
    }

    /// Its name in the cluster.
    pub fn name(&self) -> String {
        format!("node-{}", self.number)
    }

    /// Its addresses on the segment: IPv4, IPv6.
    pub fn addresses(&self) -> [IpAddr; 2] {
        let last = 10 + self.number;
        [Ipv4Addr::new(10, 10, 0, last).into(), Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, last.into()).into()]
    }

    /// The addresses of the host with this number among the node's pods: IPv4, IPv6. 1 is the node itself.
    pub fn pod_addresses(&self, host: u8) -> [IpAddr; 2] {
        let node = self.number;
        [
            Ipv4Addr::new(10, 244, node, host).into(),
            Ipv6Addr::new(0xfd44, 0, 0, node.into(), 0, 0, 0, host.into()).into(),
        ]
    }

    fn leads_to_its_pods(&self, from: &NetNs) -> Result<()> {
        for (via, network) in self.addresses().into_iter().zip(self.pod_addresses(0)) {
            let length = if via.is_ipv4() { 24 } else { 64 };
            from.ip(&format!("route add {network}/{length} via {via}"))?;
        }
        Ok(())
    }

    /// A namespace among the node's pods, with both addresses of this host number.
    pub fn pod(&self, name: &str, host: u8) -> Result<NetNs> {
        let pod = NetNs::new(name)?;
        let port = format!("pod{host}");
        self.ns.link(&port, &pod, "eth0")?;
        self.ns.ip(&format!("link set {port} master {PODS}"))?;
        let ([v4, v6], [via4, via6]) = (self.pod_addresses(host), self.pod_addresses(1));
        pod.ip_batch(&format!(
            "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n\
             route add default via {via4}\nroute add ::/0 via {via6}\n"
        ))?;
        Ok(pod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn pods_of_different_nodes_and_the_client_reach_each_other_over_both_families() {
        let network = Network::new(2).unwrap();
        let [one, two] = [&network.nodes[0], &network.nodes[1]];
        let (here, there) = (one.pod("here", 2).unwrap(), two.pod("there", 2).unwrap());
        let listener = there.run(|| TcpListener::bind(("::", 7)).unwrap());
        for from in [&here, &network.client, &network.control_plane] {
            for address in two.pod_addresses(2) {
                from.run(|| TcpStream::connect((address, 7))).unwrap();
                listener.accept().unwrap();
            }
        }
    }
}
