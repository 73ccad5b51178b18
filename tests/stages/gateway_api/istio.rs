//! Istio's own objects, with real Envoys as sidecars, and the gateways of two clusters in a row.

use std::fs;
use std::io::{Read, Write};

use anyhow::{Context, Result, ensure};
use rcgen::SanType;
use snisplice_tests::envoy::{self, Envoy};
use snisplice_tests::process::checked_output;
use snisplice_tests::redis::tls_cli;
use snisplice_tests::{Launch, Redis, eventually, require};

use super::deployments::name_at;
use super::*;
use crate::world::{World, dial};

/// The gateway is that of clusters one and two, in the place of both of Istio's.
pub(super) const ISTIO: &str =
    "istio = ['istio=eastwestgateway', 'istio=ingressgateway']\nauto_passthrough = true";

/// The two versions, and where their sidecars listen.
pub(super) const PODS: [(&str, &str); 2] = [("v1", "10.0.2.11"), ("v2", "10.0.2.12")];
const SPIFFE: &str = "spiffe://cluster.local/ns/sample/sa";

/// An endpoint that is a pod.
pub(super) fn endpoint(address: &str, pod: &str) -> String {
    format!("{{ addresses: [{address}], targetRef: {{ kind: Pod, name: {pod}, namespace: sample }} }}")
}

pub(super) fn pod(name: &str, version: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: sample, labels: {{ app: hello, version: {version} }} }}\n"
    )
}

const SERVICE: &str = "---\napiVersion: v1\nkind: Service\nmetadata: { name: hello, namespace: sample }\n\
                       spec: { selector: { app: hello }, ports: [{ name: tcp, port: 5000 }] }\n";

const RULE: &str = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: { name: hello, namespace: sample }\n\
                    spec: { host: hello, subsets: [{ name: v1, labels: { version: v1 } }, { name: v2, labels: { version: v2 } }] }\n";

fn outbound(subset: &str) -> String {
    format!("outbound_.5000_.{subset}_.hello.sample.svc.cluster.local")
}

/// The name in a certificate of the mesh.
fn in_mesh(world: &World, name: &str) -> Result<Leaf> {
    let uri = format!("{SPIFFE}/{name}");
    world.authority.leaf_as(&[name], move |params| {
        params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("it is ASCII"))];
    })
}

/// What both sides of a sidecar's TLS have in common.
fn tls(kind: &str, leaf: &Leaf, validation: &str, more: &str) -> String {
    format!(
        "{{ name: envoy.transport_sockets.tls, typed_config: {{ \
         \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}, {more}, common_tls_context: {{ \
         alpn_protocols: [istio], tls_certificates: [{{ certificate_chain: {{ filename: {} }}, private_key: {{ filename: {} }} }}], \
         validation_context: {{ trusted_ca: {{ filename: {} }}{validation} }} }} }} }}",
        leaf.chain.display(),
        leaf.key.display(),
        leaf.authority.display()
    )
}

fn address(host: &str, port: u16) -> String {
    format!("{{ socket_address: {{ address: {host}, port_value: {port} }} }}")
}

/// A cluster with one server.
fn cluster(name: &str, host: &str, port: u16, tls: &str) -> String {
    let tls = if tls.is_empty() { String::new() } else { format!(", transport_socket: {tls}") };
    format!(
        "  - {{ name: {name}, connect_timeout: 5s, load_assignment: {{ cluster_name: {name}, endpoints: [{{ lb_endpoints: [{{ endpoint: \
         {{ address: {} }} }}] }}] }}{tls} }}\n",
        address(host, port)
    )
}

/// A listener whose clients go to a cluster, or to several by their weights.
fn listener(host: &str, port: u16, to: &str, tls: &str) -> String {
    let tls = if tls.is_empty() { String::new() } else { format!(", transport_socket: {tls}") };
    format!(
        "  - {{ name: l{port}_{}, address: {}, filter_chains: [{{ filters: [{{ name: envoy.filters.network.tcp_proxy, typed_config: {{ \
         \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: s, {to} }} }}]{tls} }}] }}\n",
        host.replace('.', "_"),
        address(host, port)
    )
}

fn envoy_config(listeners: &[String], clusters: &[String]) -> String {
    format!("static_resources:\n  listeners:\n{}  clusters:\n{}", listeners.concat(), clusters.concat())
}

/// The sidecars of the servers: they ask for a certificate of the mesh, and speak plain Redis to their pods.
fn server_sidecars(world: &World, redis: &[Redis]) -> Result<Envoy> {
    let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
    for ((version, host), redis) in PODS.into_iter().zip(redis) {
        world.net.server.address("eth0", &format!("{host}/24"))?;
        let own = in_mesh(world, version)?;
        let tls = tls("DownstreamTlsContext", &own, "", "require_client_certificate: true");
        listeners.push(listener(host, 5000, &format!("cluster: {version}"), &tls));
        clusters.push(cluster(version, "127.0.0.1", redis.port, ""));
    }
    Envoy::start(&world.net.server, &envoy_config(&listeners, &clusters), &[5000])
}

/// The sidecar of a client: for each port the name that it asks for, where, and which sidecars it takes for an answer.
fn client_sidecar(world: &World, ways: &[(u16, &str, &str, u16, &[&str])], split: u16) -> Result<Envoy> {
    let app = in_mesh(world, "app")?;
    let (mut listeners, mut clusters, mut ports) = (Vec::new(), Vec::new(), vec![split]);
    for (port, sni, host, gateway, expected) in ways {
        let exact: Vec<_> = expected
            .iter()
            .map(|name| format!("{{ san_type: URI, matcher: {{ exact: \"{SPIFFE}/{name}\" }} }}"))
            .collect();
        let validation = format!(", match_typed_subject_alt_names: [{}]", exact.join(", "));
        let tls = tls("UpstreamTlsContext", &app, &validation, &format!("sni: {sni}"));
        clusters.push(cluster(&format!("c{port}"), host, *gateway, &tls));
        listeners.push(listener("127.0.0.1", *port, &format!("cluster: c{port}"), ""));
        ports.push(*port);
    }
    let weights =
        "weighted_clusters: { clusters: [{ name: c8001, weight: 90 }, { name: c8002, weight: 10 }] }";
    listeners.push(listener("127.0.0.1", split, weights, ""));
    Envoy::start(&world.net.client, &envoy_config(&listeners, &clusters), &ports)
}

/// What the Redis behind a port of the client's sidecar says its name is; empty: nobody answers.
fn name_behind(world: &World, port: u16) -> Result<String> {
    let mut stream = dial(&world.net.client, ([127, 0, 0, 1], port).into())?;
    let mut answer = Vec::new();
    // A connection that is refused behind the sidecar ends, with or without a reset.
    let _ = stream.write_all(b"GET name\r\n");
    let mut bytes = [0; 64];
    while !answer.ends_with(b"\r\nv1\r\n") && !answer.ends_with(b"\r\nv2\r\n") {
        match stream.read(&mut bytes) {
            Ok(0) | Err(_) => return Ok(String::new()),
            Ok(read) => answer.extend(&bytes[..read]),
        }
    }
    Ok(String::from_utf8_lossy(&answer[answer.len() - 4..answer.len() - 2]).into_owned())
}

/// How many of this many connections the second version has.
fn share_of_v2(world: &World, port: u16, connections: usize) -> Result<usize> {
    let mut second = 0;
    for _ in 0..connections {
        match name_behind(world, port)?.as_str() {
            "v1" => {}
            "v2" => second += 1,
            other => anyhow::bail!("{other:?} answers"),
        }
    }
    Ok(second)
}

/// A tenth of them: five standard deviations to either side.
fn is_a_tenth(count: usize, of: usize) -> bool {
    let (mean, deviation) = (of as f64 * 0.1, (of as f64 * 0.09).sqrt());
    (count as f64 - mean).abs() < 5.0 * deviation
}

/// ```text
/// redis ── sidecar ── mutual TLS, outbound_.5000_.v1_… ──► gateway of cluster one ──► gateway of cluster two ──► sidecars ── Redis
/// ```
#[test]
fn sidecars_do_mutual_tls_through_the_gateways_of_two_clusters() -> Result<()> {
    require!(envoy::is_there(), "envoy is not installed");
    let world = World::new()?;
    let redis = [7001, 7002].map(|port| Redis::plain(&world.net.server, port));
    let [v1, v2] = redis;
    let redis = [v1?.named(&world.net.server, "v1")?, v2?.named(&world.net.server, "v2")?];
    let _sidecars = server_sidecars(&world, &redis)?;
    let east_west = "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: { name: cross-network, namespace: edge-system }\n\
                     spec: { selector: { istio: eastwestgateway }, servers: [{ port: { number: 15443, name: tls, protocol: TLS }, \
                     tls: { mode: AUTO_PASSTHROUGH }, hosts: [\"*.local\"] }] }\n";

    // Cluster two has the pods, and a name of its own for whoever is no sidecar of Istio's.
    let two = Manifests::new(None)?;
    let named = "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: { name: named, namespace: edge-system }\n\
                 spec: { selector: { istio: ingressgateway }, servers: [{ port: { number: 443, name: tls, protocol: TLS }, \
                 tls: { mode: PASSTHROUGH }, hosts: [\"sample/*.example.com\"] }] }\n\
                 ---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: hello, namespace: sample }\n\
                 spec: { hosts: [hello.example.com], gateways: [edge-system/named], tls: [{ match: [{ sniHosts: [hello.example.com] }], route: [\
                 { destination: { host: hello, subset: v1 }, weight: 90 }, { destination: { host: hello, subset: v2 }, weight: 10 }] }] }\n";
    two.write("gateway.yaml", &(east_west.to_owned() + named + SERVICE + RULE))?;
    let endpoints = PODS.map(|(version, host)| endpoint(host, &format!("hello-{version}")));
    two.write("slices.yaml", &slice("sample/hello", "tcp", 5000, &endpoints))?;
    two.write("v1.yaml", &pod("hello-v1", "v1"))?;
    two.write("v2.yaml", &pod("hello-v2", "v2"))?;
    let gateway_two = two.serve_with(&world, ISTIO, Launch::default())?;

    // In cluster one the Service's pods are behind the other one's gateway.
    let one = Manifests::new(None)?;
    let behind = ["v1", "v2"].map(|version| endpoint("10.0.1.1", &format!("remote-{version}")));
    let pods = pod("remote-v1", "v1") + &pod("remote-v2", "v2");
    let slices = slice("sample/hello", "tcp", 15443, &behind);
    one.write("gateway.yaml", &(east_west.to_owned() + SERVICE + RULE + &slices + &pods))?;
    let gateway_one = Gateway::start_with(&world.net.client, &one.config(ISTIO), Launch::default())?;

    let (to_v1, to_v2, to_any, to_v3) = (outbound("v1"), outbound("v2"), outbound(""), outbound("v3"));
    let (near, far) = ("10.0.1.2", "10.0.1.1");
    let ways: [(u16, &str, &str, u16, &[&str]); 7] = [
        (8001, &to_v1, near, 15443, &["v1"]),
        (8002, &to_v2, near, 15443, &["v2"]),
        (8003, &to_any, near, 15443, &["v1", "v2"]),
        (8004, &to_v3, near, 15443, &["v1", "v2"]),
        (8005, "hello.example.com", far, 443, &["v1", "v2"]),
        (8006, &to_v1, far, 15443, &["v1"]),
        // It would not take the other version's certificate.
        (8007, &to_v1, near, 15443, &["v2"]),
    ];
    let _client = client_sidecar(&world, &ways, 8000)?;

    // Each subset by its name, through both gateways or the second alone; with the certificate of its own sidecar.
    for (port, expected) in [(8001, "v1"), (8002, "v2"), (8006, "v1"), (8007, "")] {
        for _ in 0..3 {
            assert_eq!(name_behind(&world, port)?, expected, "{port}");
        }
    }
    let mut seen: Vec<String> = (0..40).map(|_| name_behind(&world, 8003)).collect::<Result<_>>()?;
    seen.sort();
    seen.dedup();
    assert_eq!(seen, ["v1", "v2"]);
    let fingerprint = |input: &str| -> Result<String> {
        let mut shell = world.net.client.command("sh");
        shell.args(["-c", &format!("{input} | openssl x509 -noout -fingerprint -sha256")]);
        checked_output(&mut shell)
    };
    for (version, sni) in [("v1", &to_v1), ("v2", &to_v2)] {
        let seen = fingerprint(&format!(
            "openssl s_client -connect {near}:15443 -servername {sni} </dev/null 2>/dev/null"
        ))?;
        let own = world.authority.path.with_file_name(format!("{version}.crt"));
        assert_eq!(seen, fingerprint(&format!("cat {}", own.display()))?);
    }

    // A name outside of the list is refused by the first gateway, and nothing is sent on.
    let at_two = gateway_two.status()?.listener("gateway:15443", "total");
    assert_eq!(name_behind(&world, 8004)?, "");
    assert!(gateway_one.status()?.rejects("gateway:15443", "unknown_sni") > 0);
    assert_eq!(gateway_two.status()?.listener("gateway:15443", "total"), at_two);

    // Bytes arrive whole.
    let data = TempDir::new()?;
    let bytes: Vec<u8> = (0..3 << 20).map(|n: u32| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    fs::write(data.join("big"), &bytes)?;
    let mut set = world.net.client.command("sh");
    set.args(["-c", "redis-cli -p 8001 -x set big < \"$0\""]).arg(data.join("big"));
    assert_eq!(checked_output(&mut set)?, "OK\n");
    let mut get = world.net.client.command("sh");
    get.args(["-c", "redis-cli -p 8006 get big | head -c 3145728 | cmp - \"$0\""]).arg(data.join("big"));
    checked_output(&mut get)?;

    // A tenth goes to the second version: where the sidecar decides it, and where the gateway does.
    for port in [8000, 8005] {
        let second = share_of_v2(&world, port, 400)?;
        assert!(is_a_tenth(second, 400), "{second} of 400 by {port}");
    }

    // Its pod is gone: the subset is empty, and refused, also as a share; the rest goes on.
    two.remove("v2.yaml")?;
    eventually("the end of the second version", || name_behind(&world, 8002).ok()?.is_empty().then_some(()))?;
    assert_eq!(name_behind(&world, 8001)?, "v1");
    let answers: Vec<_> = (0..400).map(|_| name_behind(&world, 8005)).collect::<Result<_>>()?;
    let refused = answers.iter().filter(|answer| answer.is_empty()).count();
    assert!(is_a_tenth(refused, 400), "{refused} of 400 are refused");
    assert!(answers.iter().all(|answer| answer != "v2"));
    two.write("v2.yaml", &pod("hello-v2", "v2"))?;
    eventually("it again", || (name_behind(&world, 8002).ok()? == "v2").then_some(()))?;
    Ok(())
}

#[test]
fn between_clusters_by_istios_own_objects() -> Result<()> {
    let world = World::new()?;
    let leaf = world.authority.leaf(&["hello.sample.svc.cluster.local", "hello.example.com"])?;
    let (mut redis, mut endpoints, mut more) = (Vec::new(), Vec::new(), String::new());
    for (version, host) in PODS {
        world.net.server.address("eth0", &format!("{host}/24"))?;
        let further = ["--tls-auth-clients", "no", "--bind", host];
        redis.push(Redis::tls_with(&world.net.server, 5000, &leaf, &further)?);
        // The port is heard of by the first one already.
        eventually("the name to be set", || {
            let mut set = tls_cli(&world.net.server, host, 5000, "hello", &world.authority.path);
            checked_output(set.args(["set", "name", version])).ok()
        })?;
        endpoints.push(endpoint(host, &format!("hello-{version}")));
        more += &pod(&format!("hello-{version}"), version);
    }
    more += &slice("sample/hello", "http", 5000, &endpoints);
    more += &secret("edge-system/hello-cert", &leaf)?;
    let manifests = Manifests::new(Some("4-east-west-istio.yaml"))?;
    let service = deployed("4-east-west.yaml")?;
    let service =
        service.split("---\n").find(|document| document.contains("kind: Service")).context("a Service")?;
    manifests.write("more.yaml", &format!("{more}---\n{service}"))?;
    let gateway = manifests.serve_with(&world, ISTIO, Launch::default())?;
    for version in ["v1", "v2"] {
        for _ in 0..5 {
            assert_eq!(name_at(&world, 15443, &outbound(version))?, version);
        }
    }
    for unknown in [outbound("v3"), outbound("").replace("hello", "other"), "hello.example.com".to_owned()] {
        assert!(name_at(&world, 15443, &unknown).is_err(), "{unknown}");
    }
    // TLS ends with the Secret of the Gateway's namespace, and no rule is for this.
    let mut curl = world.net.client.command("curl");
    curl.args([
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "--resolve",
        "hello.example.com:443:10.0.1.1",
        "--cacert",
    ]);
    assert_eq!(
        checked_output(curl.arg(&world.authority.path).arg("https://hello.example.com/other"))?,
        "404"
    );
    let told = |kind: &str, name: &str| -> Result<String> {
        let output = gateway.cli(["objects"])?;
        let text = String::from_utf8(output.stdout)?;
        let start = text.find(&format!("{kind} {name}")).with_context(|| text.clone())?;
        let end = text[start..].find("\n ").map_or(start, |at| start + at);
        Ok(text[start..]
            .lines()
            .skip(1)
            .take_while(|line| line.starts_with(' '))
            .fold(text[start..end].to_owned(), |all, line| all + "\n" + line))
    };
    let rules = told("VirtualService", "sample/hello")?;
    assert!(rules.contains("Accepted       True   Accepted"), "{rules}");
    let cross = told("Gateway.networking.istio.io", "edge-system/cross-network")?;
    assert!(
        cross.contains("Listener servers-0, attached routes: 0\n    Accepted       True   Accepted"),
        "{cross}"
    );
    let rule = told("DestinationRule", "sample/hello")?;
    assert!(rule.contains("Accepted       True   Accepted"), "{rule}");

    // What one object has wrong, is told by its place; the others are served.
    manifests.write(
        "wrong.yaml",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: { name: wrong, namespace: sample }\n\
         spec: { host: hello.other.svc.cluster.local }\n",
    )?;
    eventually("what is said of it", || {
        let text = String::from_utf8(gateway.cli(["objects"]).ok()?.stdout).ok()?;
        text.contains(
            "NOT TAKEN: spec.host: `hello.other.svc.cluster.local` is no Service of the namespace sample",
        )
        .then_some(())
    })?;
    assert_eq!(name_at(&world, 15443, &outbound("v1"))?, "v1");
    let check = gateway.cli(["check"])?;
    let said = String::from_utf8_lossy(&check.stderr).into_owned() + &String::from_utf8_lossy(&check.stdout);
    ensure!(said.contains("wrong.yaml:1: DestinationRule sample/wrong: spec.host:"), "{said}");
    Ok(())
}

/// Without the keys nobody is reached, and nothing is said of what does not concern this gateway.
#[test]
fn istios_objects_are_for_whoever_runs_the_gateway_to_take() -> Result<()> {
    let world = World::new()?;
    let manifests = Manifests::new(Some("4-east-west-istio.yaml"))?;
    let gateway = manifests.serve(&world)?;
    let listed = objects(&gateway)?;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert!(dial(&world.net.client, ([10, 0, 1, 1], 15443).into()).is_err());
    Ok(())
}
