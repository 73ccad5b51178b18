//! The gateway in a cluster: objects of the API server are served, and it is told what became of them.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use snisplice_cluster::{Cluster, deploy, programs, redis};
use snisplice_tests::backend::Backend;
use snisplice_tests::process::checked_output;
use snisplice_tests::redis::tls_cli;
use snisplice_tests::{Authority, Leaf, eventually, require};

const HOST: &str = "app1.redis.example.com";

/// A Redis with TLS, a Gateway that passes connections through to it, and the route.
fn redis_and_gateway(leaf: &Leaf) -> Result<String> {
    let secret_and_service = redis::secret_and_service(leaf)?;
    Ok(format!(
        r#"{secret_and_service}
apiVersion: apps/v1
kind: Deployment
metadata: {{name: redis, namespace: default}}
spec:
  selector: {{matchLabels: {{app: redis}}}}
  template:
    metadata: {{labels: {{app: redis}}}}
    spec:
      containers:
        - name: redis
          image: redis-server
          command: [sh, -c]
          args:
            - >-
              exec redis-server --port 0 --tls-port 6379 --bind '*' '-::*' --protected-mode no --save '' --dir /
              --tls-auth-clients no --tls-cert-file /etc/tls/tls.crt --tls-key-file /etc/tls/tls.key
              --tls-ca-cert-file /etc/tls/tls.crt
          readinessProbe: {{tcpSocket: {{port: 6379}}, periodSeconds: 1}}
          volumeMounts: [{{name: tls, mountPath: /etc/tls}}]
      volumes: [{{name: tls, secret: {{secretName: redis}}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, namespace: default}}
spec:
  gatewayClassName: snisplice
  listeners:
    - {{name: databases, port: 6379, protocol: TLS, tls: {{mode: Passthrough}}}}
    - {{name: ended, port: 6380, protocol: TLS, tls: {{mode: Terminate, certificateRefs: [{{name: redis}}]}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {{name: redis, namespace: default}}
spec:
  parentRefs: [{{name: edge}}]
  hostnames: [{HOST}]
  rules: [{{backendRefs: [{{name: redis, port: 6379}}]}}]
"#
    ))
}

/// Whether a client gets an answer from the Redis behind an address.
fn answers(cluster: &Cluster, authority: &Authority, address: IpAddr) -> Result<()> {
    eventually(&format!("Redis to answer at {address}"), || {
        let mut cli = tls_cli(&cluster.network.client, &address.to_string(), 6379, HOST, &authority.path);
        let output = cli.arg("ping").output().ok()?;
        (output.stdout == b"PONG\n").then_some(())
    })
}

fn json(cluster: &Cluster, object: &str) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.kubectl(&format!("get {object} -o json"))?)?)
}

/// A route of the Gateway `edge` that leads to its own Service.
fn circle() -> String {
    r#"
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: circle, namespace: default}
spec:
  parentRefs: [{name: edge}]
  hostnames: [circle.example.com]
  rules: [{backendRefs: [{name: edge-snisplice, port: 6379}]}]
"#
    .to_owned()
}

/// What a node's gateway answers on its admin address.
fn on_node(cluster: &Cluster, node: usize, path: &str) -> Result<String> {
    let mut curl = cluster.network.nodes[node].ns.command("curl");
    checked_output(curl.args(["-s", &format!("http://127.0.0.1:9900{path}")]))
}

/// `status --json` of a node's gateway.
fn served_by(cluster: &Cluster, node: usize) -> Result<Value> {
    Ok(serde_json::from_str(&on_node(cluster, node, "/status")?)?)
}

/// The addresses in the status of a Gateway.
fn shown_addresses(cluster: &Cluster, gateway: &str) -> Result<BTreeSet<IpAddr>> {
    let gateway = json(cluster, &format!("gateway {gateway}"))?;
    let shown = gateway["status"]["addresses"].as_array().into_iter().flatten();
    Ok(shown.filter_map(|entry| entry["value"].as_str()?.parse().ok()).collect())
}

/// That these stay the addresses in the status of a Gateway, which is Programmed.
fn keeps_addresses(cluster: &Cluster, gateway: &str, known: &BTreeSet<IpAddr>) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(12) {
        let (shown, after) = (shown_addresses(cluster, gateway)?, started.elapsed());
        ensure!(shown == *known, "{shown:?} instead of {known:?} after {after:?}");
        let programmed = condition(&json(cluster, &format!("gateway {gateway}"))?["status"], "Programmed");
        ensure!(programmed.as_ref().is_some_and(|found| found.0 == "True"), "{programmed:?} after {after:?}");
        std::thread::sleep(Duration::from_millis(250));
    }
    Ok(())
}

/// Kills a node's gateway; returns when the kubelet has started another one.
fn kill_and_await(cluster: &Cluster, node: usize) -> Result<()> {
    let before = deploy::process(cluster, node).context("the gateway's process")?;
    let pid = nix::unistd::Pid::from_raw(before.cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
    eventually("another process", || deploy::process(cluster, node).filter(|pid| *pid != before)).map(drop)
}

/// The Lease of a node that nobody renews.
const REMOVED: &str = "
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata:
  name: snisplice-node-removed
  namespace: snisplice-system
  labels: {snisplice.dev/lease: node}
  annotations:
    {snisplice.dev/addresses: 192.0.2.9, snisplice.dev/own-addresses: 192.0.2.9, snisplice.dev/serves: '{}'}
spec: {holderIdentity: removed, renewTime: '2026-01-01T00:00:00.000000Z'}
";

/// A condition of an object of the cluster: status, reason, message.
fn condition(object: &Value, kind: &str) -> Option<(String, String, String)> {
    let mut conditions = object["conditions"].as_array()?.iter();
    let found = conditions.find(|each| each["type"] == kind)?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

#[test]
fn statuses_are_of_all_nodes_and_of_what_cannot_be_read() -> Result<()> {
    require!(programs::path("kube-apiserver").is_ok(), "the programs of the cluster are not built");
    let cluster = Cluster::start(2)?;
    cluster.install_gateway_api()?;
    deploy::gateway(&cluster, deploy::NODE_MODE)?;
    // One node cannot give a port.
    let node = &cluster.network.nodes[1];
    let other = node.ns.run(|| std::net::TcpListener::bind("0.0.0.0:7001"))?;
    let gateway = |name: &str, port: u16| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{gatewayClassName: snisplice, listeners: [{{name: tcp, port: {port}, protocol: TCP}}]}}\n"
        )
    };
    cluster.apply(&(gateway("free", 7000) + "---\n" + &gateway("taken", 7001)))?;
    cluster.kubectl("wait --for=condition=Programmed gateway/free --timeout=60s")?;
    let listener = |of: &dyn Fn(&(String, String, String)) -> bool| {
        eventually("the status of the listener", || {
            let there = json(&cluster, "gateway taken").ok()?;
            condition(&there["status"]["listeners"][0], "Accepted").filter(|found| of(found))
        })
    };
    // For as long as who writes it knows of no other node, there is no need to say which one it is.
    let (_, reason, message) =
        listener(&|(status, _, message)| status == "False" && message.starts_with("node-2: "))?;
    ensure!(reason == "PortUnavailable", "{reason}: {message}");
    ensure!(message.contains("already in use"), "{message}");
    // The other node serves it all the same.
    let first = cluster.network.nodes[0].addresses()[0];
    cluster.network.client.run(|| std::net::TcpStream::connect((first, 7001)))?;
    drop(other);
    cluster.kubectl("wait --for=condition=Programmed gateway/taken --timeout=60s")?;

    // A third node joins, and is lost. Its Lease stays, and is all that gateways see of it which are started again.
    let known = shown_addresses(&cluster, "free")?;
    let shown =
        |of: &dyn Fn(&BTreeSet<IpAddr>) -> bool| shown_addresses(&cluster, "free").ok().filter(of).map(drop);
    cluster.apply(REMOVED)?;
    eventually("the address of the third node", || shown(&|shown| shown.len() == known.len() + 1))?;
    std::thread::sleep(Duration::from_secs(15));
    eventually("it to be lost", || shown(&|shown| *shown == known))?;
    cluster.kubectl("wait --for=condition=Programmed gateway/free --timeout=60s")?;
    for node in 0..2 {
        kill_and_await(&cluster, node)?;
    }
    keeps_addresses(&cluster, "free", &known)?;

    let supported = eventually("the versions of the definitions", || {
        condition(&json(&cluster, "gatewayclass snisplice").ok()?["status"], "SupportedVersion")
    })?;
    ensure!(supported.0 == "True", "{supported:?}");

    // A definition that lets through what this gateway cannot read, as those of another channel do.
    let patch =
        r#"[{"op": "remove", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/required"}]"#;
    let mut kubectl = cluster.control_plane.kubectl()?;
    kubectl.args(["patch", "crd", "tlsroutes.gateway.networking.k8s.io", "--type=json", "-p", patch]);
    checked_output(&mut kubectl)?;
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {name: bare, namespace: default}\n\
                 spec: {parentRefs: [{name: free}], rules: [{backendRefs: [{name: x, port: 1}]}]}\n";
    eventually("the other definition to be in force", || cluster.apply(route).ok())?;
    let (status, reason, message) = eventually("the status of the route", || {
        let there = json(&cluster, "tlsroute bare").ok()?;
        condition(&there["status"]["parents"][0], "Accepted")
    })?;
    ensure!((status.as_str(), reason.as_str()) == ("False", "UnsupportedValue"), "{status} {reason}");
    ensure!(message == "spec.hostnames: a TLSRoute of version v1 has one at least", "{message}");

    // What a node has said goes with its Node, and stays away though its gateway still runs.
    let lease = "get lease --namespace snisplice-system snisplice-node-node-2 --ignore-not-found -o name";
    ensure!(!cluster.kubectl(lease)?.is_empty(), "no Lease of the second node");
    cluster.kubectl("delete node node-2")?;
    eventually("its Lease to be gone", || cluster.kubectl(lease).ok()?.is_empty().then_some(()))?;
    std::thread::sleep(Duration::from_secs(6));
    ensure!(cluster.kubectl(lease)?.is_empty(), "the Lease of the second node is back");
    Ok(())
}

#[test]
fn every_node_serves_the_objects_also_without_an_api_server() -> Result<()> {
    require!(programs::path("kube-apiserver").is_ok(), "the programs of the cluster are not built");
    let authority = Authority::new("test authority")?;
    let leaf = authority.leaf(&[HOST])?;
    let mut cluster = Cluster::start(2)?;
    cluster.install_gateway_api()?;
    deploy::gateway(&cluster, deploy::NODE_MODE)?;
    cluster.apply(&redis_and_gateway(&leaf)?)?;

    // Another controller has an opinion of the route, too.
    let condition = r#"{"type":"Accepted","status":"True","reason":"Fine","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}"#;
    let foreign = format!(
        r#"{{"parentRef":{{"name":"other"}},"controllerName":"example.com/other","conditions":[{condition}]}}"#
    );
    let patch = format!(r#"{{"status":{{"parents":[{foreign}]}}}}"#);
    let mut kubectl = cluster.control_plane.kubectl()?;
    kubectl.args(["patch", "tlsroute", "redis", "--subresource=status", "--type=merge", "-p", &patch]);
    ensure!(kubectl.status()?.success(), "the patch");

    cluster.kubectl("wait --for=condition=Programmed gateway/edge --timeout=60s")?;
    let addresses: Vec<IpAddr> = cluster.network.nodes.iter().flat_map(|node| node.addresses()).collect();
    eventually("the Gateway to be at both nodes", || {
        let shown = shown_addresses(&cluster, "edge").ok()?;
        (shown.len() == 4 && addresses.iter().all(|address| shown.contains(address))).then_some(())
    })?;
    for address in &addresses {
        answers(&cluster, &authority, *address)?;
    }
    let parents = eventually("the status of the route", || {
        let route = json(&cluster, "tlsroute redis").ok()?;
        let parents = route["status"]["parents"].as_array()?.clone();
        parents.iter().any(|entry| entry["controllerName"] == "snisplice.dev/gateway").then_some(parents)
    })?;
    ensure!(parents.iter().any(|entry| entry["controllerName"] == "example.com/other"), "{parents:?}");

    // A name inside the cluster.
    let service = json(&cluster, "service edge-snisplice")?;
    ensure!(service["metadata"]["ownerReferences"][0]["name"] == "edge", "{service}");

    // A new certificate in the Secret.
    let renewed = authority.leaf(&[HOST, "renewed.example.com"])?;
    let text = redis_and_gateway(&renewed)?;
    cluster.apply(text.split("\n---\n").next().context("the Secret")?)?;
    let renewal = eventually("the new certificate", || {
        let mut openssl = cluster.network.client.command("openssl");
        let address = format!("{}:6380", addresses[0]);
        openssl.args(["s_client", "-connect", &address, "-servername", HOST]);
        let shown = openssl.stdin(std::process::Stdio::null()).output().ok()?;
        let mut x509 = cluster.network.client.command("openssl");
        x509.args(["x509", "-noout", "-ext", "subjectAltName"]).stdin(std::process::Stdio::piped());
        let mut x509 =
            x509.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().ok()?;
        std::io::Write::write_all(&mut x509.stdin.take()?, &shown.stdout).ok()?;
        let names = x509.wait_with_output().ok()?.stdout;
        String::from_utf8_lossy(&names).contains("renewed.example.com").then_some(())
    });
    renewal.with_context(|| cluster.kubectl("get gateway edge -o yaml").unwrap_or_default())?;

    // A route to the Service of the Gateway itself would go from node to node without an end.
    cluster.apply(&circle())?;
    eventually("the circle's status", || {
        let route = json(&cluster, "tlsroute circle").ok()?;
        let conditions = route["status"]["parents"][0]["conditions"].as_array()?.clone();
        conditions.iter().any(|each| each["type"] == "Accepted" && each["status"] == "True").then_some(())
    })?;
    let mut curl = cluster.network.client.command("curl");
    let resolve = format!("circle.example.com:6379:{}", addresses[0]);
    let curl =
        curl.args(["-sk", "--max-time", "5", "--resolve", &resolve, "https://circle.example.com:6379/"]);
    let ended = curl.output()?.status.code();
    // 28: still open after five seconds. Refused ones are closed at once.
    ensure!(ended != Some(28) && ended != Some(0), "curl ended with {ended:?}");
    let served = served_by(&cluster, 0)?;
    ensure!(served["pools"].to_string().contains("default.edge-snisplice:6379"), "{served}");
    let circle = served["pools"].as_array().into_iter().flatten();
    let circle = circle.filter(|pool| pool["name"] == "default.edge-snisplice:6379");
    ensure!(circle.clone().all(|pool| pool["servers"] == serde_json::json!([])), "{served}");

    // The last objects are kept every ten seconds.
    std::thread::sleep(Duration::from_secs(11));
    ensure!(served_by(&cluster, 0)?.get("objects_stale_since").is_none(), "the objects are stale");
    cluster.control_plane.stop_api_server()?;
    for address in &addresses {
        answers(&cluster, &authority, *address)?;
    }
    let since = eventually("the objects to be stale", || {
        served_by(&cluster, 0).ok()?["objects_stale_since"].as_str().map(str::to_owned)
    })?;
    let ready = on_node(&cluster, 0, "/readyz")?;
    ensure!(
        ready == format!("ready\nthe API server does not answer: objects are those of {since}\n"),
        "{ready}"
    );
    kill_and_await(&cluster, 0)?;
    answers(&cluster, &authority, addresses[0])?;

    cluster.control_plane.start_api_server()?;
    cluster.kubectl("delete tlsroute redis")?;
    eventually("the route to be gone", || {
        let mut cli =
            tls_cli(&cluster.network.client, &addresses[2].to_string(), 6379, HOST, &authority.path);
        (!cli.arg("ping").output().ok()?.status.success()).then_some(())
    })?;

    // It is away for longer than a Lease lasts, and nobody can renew one: no node is lost by that.
    let known = shown_addresses(&cluster, "edge")?;
    ensure!(known.len() == 4, "{known:?}");
    cluster.control_plane.stop_api_server()?;
    std::thread::sleep(Duration::from_secs(20));
    cluster.control_plane.start_api_server()?;
    keeps_addresses(&cluster, "edge", &known)
}

/// A policy that the gateway may not see could ask for TLS: then requests are answered with 500, and everybody who looks hears why.
#[test]
fn without_the_right_to_watch_policies_servers_are_not_spoken_to() -> Result<()> {
    require!(programs::path("kube-apiserver").is_ok(), "the programs of the cluster are not built");
    let cluster = Cluster::start(1)?;
    cluster.install_gateway_api()?;
    deploy::gateway(&cluster, deploy::NODE_MODE)?;
    let node = &cluster.network.nodes[0];
    let pod = node.pod("server", 250)?;
    let _server = Backend::start(&pod, 7001, |mut stream: TcpStream| {
        let mut request = [0; 1024];
        _ = stream.read(&mut request)?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
    })?;
    let server = node.pod_addresses(250)[0];
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: shop, namespace: default}}\n\
         spec: {{clusterIP: None, ports: [{{name: x, port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: shop, namespace: default, labels: {{kubernetes.io/service-name: shop}}}}\naddressType: IPv4\n\
         ports: [{{name: x, port: 7001}}]\nendpoints: [{{addresses: [\"{server}\"]}}]\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: web, namespace: default}}\n\
         spec: {{gatewayClassName: snisplice, listeners: [{{name: web, port: 8080, protocol: HTTP}}]}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: shop, namespace: default}}\n\
         spec: {{parentRefs: [{{name: web}}], rules: [{{backendRefs: [{{name: shop, port: 80}}]}}]}}\n"
    ))?;
    let url = format!("http://{}:8080/", node.addresses()[0]);
    let answered = |status: &str| {
        eventually(&format!("requests to be answered with {status}"), || {
            let mut curl = cluster.network.client.command("curl");
            let output = curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &url]).output().ok()?;
            (output.stdout == status.as_bytes()).then_some(())
        })
    };
    answered("200")?;

    // A gateway that has never seen them is told that it may not.
    let is_role = |manifest: &&str| {
        manifest.contains("kind: ClusterRole\n") && manifest.contains("name: snisplice-objects\n")
    };
    let role = deploy::MANIFESTS.split("\n---\n").find(is_role).context("the role")?;
    cluster.apply(&role.replace("      - backendtlspolicies\n", ""))?;
    let first = deploy::process(&cluster, 0).context("the gateway's process")?;
    cluster.kubectl("delete pod --namespace snisplice-system --all --grace-period=1")?;
    eventually("another process", || deploy::process(&cluster, 0).filter(|process| *process != first))?;
    answered("500")?;
    let (status, _, message) = eventually("the route's status", || {
        let route = json(&cluster, "httproute shop").ok()?;
        let found = condition(&route["status"]["parents"][0], "ResolvedRefs")?;
        (found.1 == "PoliciesUnknown").then_some(found)
    })?;
    ensure!(status == "False" && message.contains("watch BackendTLSPolicies"), "{status} {message}");
    let told = "does not let this gateway watch objects of the kind BackendTLSPolicy (403)";
    let ready = on_node(&cluster, 0, "/readyz")?;
    ensure!(ready.contains(told), "{ready}");
    let denied = served_by(&cluster, 0)?["objects_denied"].clone();
    ensure!(denied[0].as_str().is_some_and(|line| line.contains(told)), "{denied}");

    // With the right there are none, and that is known.
    cluster.apply(role)?;
    answered("200")?;
    eventually("the gateway to be ready", || {
        (!on_node(&cluster, 0, "/readyz").ok()?.contains(told)).then_some(())
    })
}
