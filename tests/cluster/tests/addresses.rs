//! Where Gateways are: the modes `pool` and `service` on a segment with two nodes, for clients from outside, in both families.
//! (Mode `node` has its place in `gateway.rs`.)

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use snisplice_cluster::{Cluster, Machine, deploy, metallb, programs};
use snisplice_tests::process::checked_output;
use snisplice_tests::{NetNs, eventually, require};

const PORT: u16 = 6379;

/// A Redis.
const REDIS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: redis, namespace: default}
spec:
  replicas: 2
  selector: {matchLabels: {app: redis}}
  template:
    metadata: {labels: {app: redis}}
    spec:
      containers:
        - name: redis
          image: redis-server
          command: [redis-server]
          args: [--port, '6379', --bind, '*', '-::*', --protected-mode, 'no', --save, '', --dir, /]
          readinessProbe: {tcpSocket: {port: 6379}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: redis, namespace: default}
spec:
  selector: {app: redis}
  ports: [{name: redis, port: 6379}]
";

/// A Gateway that leads to it; `more`: lines of its spec.
fn gateway(name: &str, more: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  gatewayClassName: snisplice\n  listeners: [{{name: redis, port: {PORT}, protocol: TCP}}]\n  {more}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  parentRefs: [{{name: {name}}}]\n  rules: [{{backendRefs: [{{name: redis, port: {PORT}}}]}}]\n"
    )
}

fn json(cluster: &Cluster, object: &str) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.kubectl(&format!("get {object} -o json"))?)?)
}

/// Waits until the Gateway's condition Programmed has this reason.
fn programmed(cluster: &Cluster, name: &str, reason: &str) -> Result<Value> {
    let found = eventually(&format!("Gateway {name}: {reason}"), || {
        let gateway = json(cluster, &format!("gateway {name}")).ok()?;
        let conditions = gateway["status"]["conditions"].as_array()?;
        let found = conditions.iter().any(|each| each["type"] == "Programmed" && each["reason"] == reason);
        found.then_some(gateway)
    });
    found.with_context(|| cluster.kubectl(&format!("get gateway {name} -o yaml")).unwrap_or_default())
}

fn addresses(gateway: &Value) -> Vec<IpAddr> {
    let entries = gateway["status"]["addresses"].as_array().into_iter().flatten();
    entries.filter_map(|entry| entry["value"].as_str()?.parse().ok()).collect()
}

/// Whether a new connection of a client is answered by Redis; gives the connection.
fn connect(client: &NetNs, address: SocketAddr) -> std::io::Result<TcpStream> {
    client.run(|| {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        ping(&mut stream)?;
        Ok(stream)
    })
}

fn ping(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    if answer == *b"+PONG\r\n" { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

/// Waits until real clients are answered there.
fn answers(cluster: &Cluster, address: IpAddr, port: u16) -> Result<()> {
    eventually(&format!("Redis to answer at {address} port {port}"), || {
        let mut cli = cluster.network.client.command("redis-cli");
        cli.args(["-h", &address.to_string(), "-p", &port.to_string(), "ping"]);
        (cli.output().ok()?.stdout == b"PONG\n").then_some(())
    })
}

fn mac(node: &Machine) -> Result<String> {
    let shown = node.ns.ip("-o link show eth0")?;
    let mac = shown.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    Ok(mac.context("a MAC address")?.to_owned())
}

/// Which node clients find at an address.
fn announcer(cluster: &Cluster, address: IpAddr) -> Option<usize> {
    let shown = cluster.network.client.ip(&format!("neigh show {address} dev eth0")).ok()?;
    let found = shown.split("lladdr ").nth(1)?.split(' ').next()?.to_owned();
    cluster.network.nodes.iter().position(|node| mac(node).is_ok_and(|mac| mac == found))
}

/// What a node's loopback device has beside its own addresses.
fn attached(node: &Machine) -> Result<String> {
    let shown = node.ns.ip("-o addr show dev lo")?;
    let is_own = |line: &&str| line.contains(" 127.0.0.1/") || line.contains(" ::1/");
    Ok(shown.lines().filter(|line| !is_own(line)).collect::<Vec<_>>().join("\n"))
}

/// As [`eventually`], for what takes the time of two Leases.
fn patiently<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    eventually(what, &mut probe).or_else(|_| eventually(what, probe))
}

/// Clients that connect, one after the other, until they are stopped.
struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(cluster: &Cluster, addresses: &[IpAddr]) -> Result<Self> {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count, addresses) = (stop.clone(), made.clone(), addresses.to_vec());
        let client = cluster.network.client.again()?;
        let thread = std::thread::spawn(move || {
            let mut failed = Vec::new();
            for address in addresses.iter().cycle() {
                if stopped.load(Relaxed) {
                    break;
                }
                match connect(&client, SocketAddr::new(*address, PORT)) {
                    Ok(_) => _ = count.fetch_add(1, Relaxed),
                    Err(error) => failed.push(format!("{address}: {error}")),
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            failed
        });
        Ok(Self { stop, made, thread: Some(thread) })
    }

    /// Waits for so many more connections.
    fn wait(&self, more: usize) -> Result<()> {
        let wanted = self.made.load(Relaxed) + more;
        eventually("clients to be served", || (self.made.load(Relaxed) >= wanted).then_some(()))
    }

    /// Ends it; those that failed.
    fn failed(mut self) -> Vec<String> {
        self.stop.store(true, Relaxed);
        self.thread.take().map(|thread| thread.join().expect("the clients")).unwrap_or_default()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

#[test]
fn in_mode_pool_addresses_are_where_the_network_routes_them_until_nobody_uses_them() -> Result<()> {
    require!(programs::path("kube-apiserver").is_ok(), "the programs of the cluster are not built");
    let cluster = Cluster::start(2)?;
    cluster.install_gateway_api()?;
    let ranges = ["198.51.100.0/29", "2001:db8:10::/125"];
    let [one, two] = [&cluster.network.nodes[0], &cluster.network.nodes[1]];
    for range in ranges {
        cluster.network.route(range, one)?;
    }
    let mode = format!("mode = \"pool\"\naddresses = [\"{}\", \"{}\"]\n", ranges[0], ranges[1]);
    deploy::gateway(&cluster, &mode)?;
    cluster.apply(REDIS)?;
    cluster.apply(&format!("{}---\n{}", gateway("a", ""), gateway("b", "")))?;
    let of = |name: &str| Ok::<_, anyhow::Error>(addresses(&programmed(&cluster, name, "Programmed")?));
    let (a, b) = (of("a")?, of("b")?);
    ensure!(a.len() == 2 && b.len() == 2 && a.iter().all(|address| !b.contains(address)), "{a:?} {b:?}");
    for address in a.iter().chain(&b) {
        answers(&cluster, *address, PORT)?;
    }
    for node in [one, two] {
        let shown = attached(node)?;
        ensure!(a.iter().all(|address| shown.contains(&format!(" {address}/"))), "{shown}");
        let read = |name: &str| checked_output(node.ns.command("sysctl").args(["-n", name]));
        ensure!(read("net.ipv4.conf.all.arp_ignore")?.trim() == "1", "arp_ignore");
        ensure!(read("net.ipv4.conf.all.arp_announce")?.trim() == "2", "arp_announce");
    }
    // The network routes them elsewhere.
    for range in ranges {
        cluster.network.route(range, two)?;
    }
    for address in &a {
        answers(&cluster, *address, PORT)?;
    }

    // What the mode refuses: an address that is another's, and one of the node.
    let taken = format!("addresses: [{{value: {}}}]", b[0]);
    cluster.apply(&gateway("c", &taken))?;
    programmed(&cluster, "c", "AddressNotUsable")?;
    cluster.apply(&gateway("c", &format!("addresses: [{{value: {}}}]", one.addresses()[0])))?;
    programmed(&cluster, "c", "AddressNotUsable")?;

    // An open connection keeps the address of a Gateway that is gone.
    let mut open = connect(&cluster.network.client, SocketAddr::new(a[0], PORT))?;
    cluster.kubectl("delete gateway a")?;
    eventually("no new connections", || {
        connect(&cluster.network.client, SocketAddr::new(a[0], PORT)).is_err().then_some(())
    })?;
    eventually("its addresses to be gone from the node without a connection", || {
        (!attached(one).ok()?.contains(&format!(" {}/", a[0]))).then_some(())
    })?;
    ping(&mut open)?;
    ensure!(attached(two)?.contains(&format!(" {}/", a[0])), "{}", attached(two)?);
    drop(open);
    eventually("its addresses to be gone", || {
        (!attached(two).ok()?.contains(&format!(" {}/", a[0]))).then_some(())
    })?;

    // And nothing is left when the gateway has ended.
    cluster.kubectl("delete daemonset --namespace snisplice-system snisplice")?;
    for node in [one, two] {
        eventually("no address to be left", || attached(node).ok()?.is_empty().then_some(()))?;
    }
    Ok(())
}

/// A rolling update, see [`taken_over`].
#[test]
fn a_successor_has_the_addresses_and_the_lease_of_the_gateway_that_it_takes_over_from() -> Result<()> {
    require!(programs::path("kube-apiserver").is_ok(), "the programs of the cluster are not built");
    let cluster = Cluster::start(1)?;
    cluster.install_gateway_api()?;
    let ranges = ["198.51.100.0/29", "2001:db8:10::/125"];
    let node = &cluster.network.nodes[0];
    for range in ranges {
        cluster.network.route(range, node)?;
    }
    let mode = format!("mode = \"pool\"\naddresses = [\"{}\", \"{}\"]\n", ranges[0], ranges[1]);
    // The connection that is open here is one that the process itself carries, until the kubelet ends it.
    deploy::gateway_with(&cluster, "tiers = [\"copy\"]\ndrain_timeout = \"5m\"\n", &mode)?;
    cluster.apply(REDIS)?;
    cluster.apply(&gateway("edge", ""))?;
    let given = addresses(&programmed(&cluster, "edge", "Programmed")?);
    for address in &given {
        answers(&cluster, *address, PORT)?;
    }
    taken_over(&cluster, &given, || Ok(()))
}

/// A rolling update that names another device.
#[test]
fn addresses_go_from_the_device_before_when_a_successor_has_another() -> Result<()> {
    require!(programs::path("kube-apiserver").is_ok(), "the programs of the cluster are not built");
    let cluster = Cluster::start(1)?;
    cluster.install_gateway_api()?;
    let ranges = ["198.51.100.0/29", "2001:db8:10::/125"];
    let node = &cluster.network.nodes[0];
    for range in ranges {
        cluster.network.route(range, node)?;
    }
    let mode = |device: &str| format!("mode = \"pool\"\naddresses = {ranges:?}\nattach = \"{device}\"\n");
    deploy::gateway(&cluster, &mode("lo"))?;
    cluster.apply(REDIS)?;
    cluster.apply(&gateway("edge", ""))?;
    let given = addresses(&programmed(&cluster, "edge", "Programmed")?);
    for address in &given {
        answers(&cluster, *address, PORT)?;
    }
    let load = Load::start(&cluster, &given)?;
    load.wait(20)?;
    // The manifests' pods are the same with another ConfigMap.
    deploy::gateway(&cluster, &mode("eth0"))?;
    cluster.kubectl("rollout restart --namespace snisplice-system daemonset/snisplice")?;
    deploy::rolled_out(&cluster)?;
    patiently("its addresses to be gone from lo", || attached(node).ok()?.is_empty().then_some(()))?;
    let shown = node.ns.ip("-o addr show dev eth0")?;
    ensure!(given.iter().all(|address| shown.contains(&format!(" {address}/"))), "{shown}");
    load.wait(20)?;
    let failed = load.failed();
    ensure!(failed.is_empty(), "{failed:?}");
    Ok(())
}

/// A new version comes, on a cluster of one node, while the one before still carries a connection: the device has the addresses
/// all the while, nobody is refused, and the Lease goes to the successor. `holds`: what else is true all the while.
fn taken_over(cluster: &Cluster, given: &[IpAddr], holds: impl Fn() -> Result<()>) -> Result<()> {
    let node = &cluster.network.nodes[0];
    let holder = || -> Option<String> {
        let lease = json(cluster, "lease --namespace snisplice-system snisplice-leader").ok()?;
        Some(lease["spec"]["holderIdentity"].as_str()?.to_owned())
    };
    let are_attached = || -> Result<()> {
        let shown = attached(node)?;
        ensure!(given.iter().all(|address| shown.contains(&format!(" {address}/"))), "{shown}");
        holds()
    };
    let first = eventually("a holder of the Lease", holder)?;
    let mut open = connect(&cluster.network.client, SocketAddr::new(given[0], PORT))?;
    let load = Load::start(cluster, given)?;
    load.wait(20)?;
    cluster.kubectl("rollout restart --namespace snisplice-system daemonset/snisplice")?;
    let second = patiently("the Lease to have another holder", || {
        are_attached().unwrap_or_else(|error| panic!("{error:#}"));
        holder().filter(|holder| *holder != first)
    })?;
    ping(&mut open).context("the connection that the process before carries")?;
    cluster.kubectl(&format!("get pod --namespace snisplice-system {second}"))?;
    load.wait(20)?;
    let failed = load.failed();
    ensure!(failed.is_empty(), "{failed:?}");
    are_attached()?;
    ensure!(addresses(&programmed(cluster, "edge", "Programmed")?) == given, "other addresses");
    Ok(())
}

/// The same where a load balancer gives the addresses: all the while its Service has this node for an endpoint, so that MetalLB
/// goes on announcing them there.
#[test]
fn in_mode_service_load_balancers_see_nothing_of_a_successor() -> Result<()> {
    require!(programs::path("speaker").is_ok(), "MetalLB is not built");
    let cluster = Cluster::start(1)?;
    cluster.install_gateway_api()?;
    metallb::install(&cluster)?;
    deploy::gateway_with(
        &cluster,
        "tiers = [\"copy\"]\ndrain_timeout = \"5m\"\n",
        &format!("mode = \"service\"\nload_balancer_class = \"{}\"\n", metallb::CLASS),
    )?;
    cluster.apply(REDIS)?;
    cluster.apply(&gateway("edge", ""))?;
    let given = addresses(&programmed(&cluster, "edge", "Programmed")?);
    for address in &given {
        answers(&cluster, *address, PORT)?;
    }
    let endpoints = || -> Result<usize> {
        let slices = json(&cluster, "endpointslices -l kubernetes.io/service-name=edge-snisplice-lb")?;
        let slices = slices["items"].as_array().into_iter().flatten();
        let endpoints = slices.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        Ok(endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true).count())
    };
    ensure!(endpoints()? == 2, "one of each family");
    let service = json(&cluster, "service edge-snisplice-lb")?;
    taken_over(&cluster, &given, || {
        let ready = endpoints()?;
        ensure!(ready == 2, "{ready} endpoints take connections");
        ensure!(announcer(&cluster, given[0]) == Some(0), "nobody announces {}", given[0]);
        Ok(())
    })?;
    // Who asks whether the node takes connections is answered by the successor.
    let port = service["spec"]["healthCheckNodePort"].as_u64().context("a port for health checks")?;
    let node = cluster.network.nodes[0].addresses()[0];
    eventually("the node to say that it takes connections", || {
        let mut curl = cluster.network.client.command("curl");
        let output = curl.args(["--silent", &format!("http://{node}:{port}/healthz")]).output().ok()?;
        let body: Value = serde_json::from_slice(&output.stdout).ok()?;
        (body["localEndpoints"] == 1).then_some(())
    })?;
    let uid = |service: &Value| service["metadata"]["uid"].clone();
    ensure!(uid(&json(&cluster, "service edge-snisplice-lb")?) == uid(&service), "another Service");
    Ok(())
}

#[test]
fn in_mode_service_metallb_announces_the_address_on_a_node_that_takes_connections() -> Result<()> {
    require!(programs::path("speaker").is_ok(), "MetalLB is not built");
    let mut cluster = Cluster::start(2)?;
    cluster.install_gateway_api()?;
    metallb::install(&cluster)?;
    // In the packet tier the connection that is open while an address moves would stay on its node, with the address, until a
    // gateway is there again: nobody else hears that its client has gone.
    deploy::gateway_with(
        &cluster,
        "tiers = [\"copy\"]\ndrain_timeout = \"5s\"\n",
        &format!("mode = \"service\"\nload_balancer_class = \"{}\"\n", metallb::CLASS),
    )?;
    // So that a node can be left out.
    cluster.kubectl("label nodes --all edge=yes")?;
    let selector = r#"{"spec":{"template":{"spec":{"nodeSelector":{"edge":"yes"}}}}}"#;
    let mut kubectl = cluster.control_plane.kubectl()?;
    checked_output(kubectl.args([
        "patch",
        "daemonset",
        "--namespace=snisplice-system",
        "snisplice",
        "-p",
        selector,
    ]))?;
    cluster.kubectl("rollout status --namespace snisplice-system daemonset/snisplice --timeout=60s")?;
    cluster.apply(REDIS)?;
    cluster.apply(&gateway(
        "edge",
        "infrastructure: {labels: {team: a}, annotations: {example.com/of: edge}}",
    ))?;
    let given = addresses(&programmed(&cluster, "edge", "Programmed")?);
    ensure!(given.len() == 2 && given[0].is_ipv4() && given[1].is_ipv6(), "{given:?}");
    for address in &given {
        answers(&cluster, *address, PORT)?;
    }
    let service = json(&cluster, "service edge-snisplice-lb")?;
    ensure!(service["metadata"]["ownerReferences"][0]["kind"] == "Gateway", "{service}");
    ensure!(service["metadata"]["labels"]["team"] == "a", "{service}");
    ensure!(service["metadata"]["annotations"]["example.com/of"] == "edge", "{service}");
    ensure!(service["spec"]["externalTrafficPolicy"] == "Local", "{service}");

    // Both nodes take connections, and say so to who asks.
    let port = service["spec"]["healthCheckNodePort"].as_u64().context("a port for health checks")?;
    let health = |cluster: &Cluster, node: usize, v6: usize| -> Option<(String, Value)> {
        let address = cluster.network.nodes[node].addresses()[v6];
        let url = format!("http://{}/healthz", SocketAddr::new(address, u16::try_from(port).ok()?));
        let mut curl = cluster.network.client.command("curl");
        let output = curl.args(["--silent", "--write-out", "\n%{http_code}", &url]).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let (body, code) = text.rsplit_once('\n')?;
        Some((code.to_owned(), serde_json::from_str(body).ok()?))
    };
    for (node, v6) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let (code, body) = eventually("an answer", || health(&cluster, node, v6))?;
        ensure!(code == "200" && body["localEndpoints"] == 1, "{code} {body}");
        ensure!(body["service"]["name"] == "edge-snisplice-lb", "{body}");
    }

    // One of them is left out while clients come: the address moves to the other one.
    let first = announcer(&cluster, given[0]).context("a node that announces it")?;
    let other = 1 - first;
    let load = Load::start(&cluster, &given)?;
    load.wait(50)?;
    cluster.kubectl(&format!("label node {} edge-", cluster.network.nodes[first].name()))?;
    for address in &given {
        eventually("the other node to announce it", || {
            (announcer(&cluster, *address) == Some(other)).then_some(())
        })?;
    }
    load.wait(50)?;
    // Packets of the one connection that is open while an address moves go to the other node, which does not know it.
    let failed = load.failed();
    ensure!(failed.len() <= given.len(), "{failed:?}");
    let is_lost = |cluster: &Cluster| {
        let list =
            cluster.kubectl("get endpointslices -l kubernetes.io/service-name=edge-snisplice-lb -o name");
        let lost = format!("-{}-", cluster.network.nodes[first].name());
        (!list.ok()?.contains(&lost)).then_some(())
    };
    patiently("the slices of the node without a gateway to be removed", || is_lost(&cluster))?;
    eventually("no address to be left there", || {
        attached(&cluster.network.nodes[first]).ok()?.is_empty().then_some(())
    })?;

    // It comes back; then the other node is lost, without a word.
    cluster.kubectl(&format!("label node {} edge=yes", cluster.network.nodes[first].name()))?;
    eventually("the node to take connections again", || {
        health(&cluster, first, 0).filter(|(code, _)| code == "200")
    })?;
    drop(cluster.kubelets.remove(other));
    patiently("the node that is left to announce it", || {
        given.iter().all(|address| announcer(&cluster, *address) == Some(first)).then_some(())
    })?;
    for address in &given {
        answers(&cluster, *address, PORT)?;
    }

    // No load balancer is asked for an address that a Gateway may not name.
    cluster.apply(&gateway("odd", "addresses: [{value: 203.0.113.7}]"))?;
    programmed(&cluster, "odd", "AddressNotUsable")?;
    eventually("its other Service", || json(&cluster, "service odd-snisplice").ok())?;
    ensure!(json(&cluster, "service odd-snisplice-lb").is_err(), "a Service for the load balancer");

    cluster.kubectl("delete gateway edge")?;
    eventually("its Service to be gone", || {
        json(&cluster, "service edge-snisplice-lb").is_err().then_some(())
    })?;
    eventually("its addresses to be gone", || {
        attached(&cluster.network.nodes[first]).ok()?.is_empty().then_some(())
    })?;
    Ok(())
}

/// While the API server is away for longer than a Lease lasts, nobody can renew one: the slices of both nodes stay.
#[test]
fn in_mode_service_no_node_is_lost_with_the_api_server() -> Result<()> {
    require!(programs::path("kube-apiserver").is_ok(), "the programs of the cluster are not built");
    let mut cluster = Cluster::start(2)?;
    cluster.install_gateway_api()?;
    deploy::gateway(&cluster, "mode = \"service\"\n")?;
    cluster.apply(&gateway("edge", ""))?;
    let slices = |cluster: &Cluster| -> Result<BTreeSet<String>> {
        let list = json(cluster, "endpointslices -l kubernetes.io/service-name=edge-snisplice-lb")?;
        let list = list["items"].as_array().into_iter().flatten();
        Ok(list.map(|slice| slice["metadata"]["uid"].to_string()).collect())
    };
    let before = eventually("a slice of each family for each node", || {
        slices(&cluster).ok().filter(|slices| slices.len() == 4)
    })?;
    cluster.control_plane.stop_api_server()?;
    std::thread::sleep(Duration::from_secs(20));
    cluster.control_plane.start_api_server()?;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(12) {
        let there = slices(&cluster)?;
        ensure!(there == before, "{there:?} instead of {before:?} after {:?}", started.elapsed());
        std::thread::sleep(Duration::from_millis(250));
    }
    Ok(())
}

#[test]
fn what_a_cloud_sends_to_node_ports_is_served_and_addresses_of_nodes_are_not_taken() -> Result<()> {
    require!(programs::path("kube-apiserver").is_ok(), "the programs of the cluster are not built");
    let cluster = Cluster::start(2)?;
    cluster.install_gateway_api()?;
    deploy::gateway(&cluster, "mode = \"service\"\nmerge = true\n")?;
    cluster.apply(REDIS)?;
    let second = gateway("second", "").replace("port: 6379, protocol", "port: 6380, protocol");
    cluster.apply(&format!("{}---\n{second}", gateway("first", "")))?;
    for name in ["first", "second"] {
        programmed(&cluster, name, "AddressNotAssigned")?;
    }
    // One for the whole class.
    let shared = "service --namespace snisplice-system snisplice-snisplice-lb";
    let service = eventually("its Service with both ports", || {
        let service = json(&cluster, shared).ok()?;
        (service["spec"]["ports"].as_array()?.len() == 2).then_some(service)
    })?;
    let node_port = |number: u64| -> Result<u16> {
        let ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let mut ports = ports.filter(|port| port["port"] == number);
        let port = ports.next().and_then(|port| port["nodePort"].as_u64()).context("a node port")?;
        Ok(u16::try_from(port)?)
    };
    let give = |ingress: &str| -> Result<()> {
        let patch = format!(r#"{{"status":{{"loadBalancer":{{"ingress":[{ingress}]}}}}}}"#);
        let mut kubectl = cluster.control_plane.kubectl()?;
        kubectl.arg("patch").args(shared.split(' ')).args([
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ]);
        checked_output(&mut kubectl).map(drop)
    };

    give(r#"{"hostname":"lb.example.com"}"#)?;
    for name in ["first", "second"] {
        let gateway = programmed(&cluster, name, "Programmed")?;
        let shown = &gateway["status"]["addresses"];
        ensure!(shown[0]["type"] == "Hostname" && shown[0]["value"] == "lb.example.com", "{shown}");
    }
    let nodes: Vec<IpAddr> = cluster.network.nodes.iter().flat_map(|node| node.addresses()).collect();
    for node in &nodes {
        answers(&cluster, *node, node_port(6379)?)?;
        answers(&cluster, *node, node_port(6380)?)?;
    }

    give(r#"{"ip":"203.0.113.9","ipMode":"Proxy"}"#)?;
    eventually("its address", || {
        let gateway = json(&cluster, "gateway first").ok()?;
        (gateway["status"]["addresses"][0]["value"] == "203.0.113.9").then_some(())
    })?;
    answers(&cluster, nodes[0], node_port(6379)?)?;
    for node in &cluster.network.nodes {
        ensure!(attached(node)?.is_empty(), "{}", attached(node)?);
    }

    // As ServiceLB of k3s gives it.
    give(&format!(r#"{{"ip":"{}"}}"#, nodes[0]))?;
    programmed(&cluster, "first", "AddressNotUsable")?;

    cluster.kubectl("delete gateway first second")?;
    eventually("the Service to be gone", || json(&cluster, shared).is_err().then_some(()))
}
