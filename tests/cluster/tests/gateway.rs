//! The gateway in a cluster: objects of the API server are served, and it is told what became of them.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use snisplice_cluster::{Cluster, deploy, programs};
use snisplice_tests::redis::tls_cli;
use snisplice_tests::{Authority, Leaf, eventually, require};

const HOST: &str = "app1.redis.example.com";

/// A Redis with TLS, a Gateway that passes connections through to it, and the route.
fn redis(leaf: &Leaf) -> Result<String> {
    let block = |path| -> Result<String> { Ok(fs::read_to_string(path)?.replace('\n', "\n    ")) };
    Ok(format!(
        r#"
apiVersion: v1
kind: Secret
metadata: {{name: redis, namespace: default}}
type: kubernetes.io/tls
stringData:
  tls.crt: |
    {}
  tls.key: |
    {}
---
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
apiVersion: v1
kind: Service
metadata: {{name: redis, namespace: default}}
spec:
  selector: {{app: redis}}
  ports: [{{name: redis, port: 6379}}]
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
"#,
        block(&leaf.chain)?,
        block(&leaf.key)?,
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

/// The gateway's process on a node.
fn process_on(cluster: &Cluster, node: usize) -> Option<u32> {
    let inode = |path: String| fs::metadata(path).ok().map(|file| file.ino());
    let ours = inode(cluster.network.nodes[node].ns.path())?;
    let pids =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut pids = pids.filter(|pid| inode(format!("/proc/{pid}/ns/net")) == Some(ours));
    pids.find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "snisplice")
    })
}

#[test]
fn every_node_serves_the_objects_also_without_an_api_server() -> Result<()> {
    require!(programs::path("kube-apiserver").is_ok(), "the programs of the cluster are not built");
    let authority = Authority::new("test authority")?;
    let leaf = authority.leaf(&[HOST])?;
    let mut cluster = Cluster::start(2)?;
    cluster.install_gateway_api()?;
    deploy::gateway(&cluster, deploy::NODE_MODE)?;
    cluster.apply(&redis(&leaf)?)?;

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
        let gateway = json(&cluster, "gateway edge").ok()?;
        let shown = gateway["status"]["addresses"].as_array()?;
        let shown: Vec<IpAddr> =
            shown.iter().filter_map(|entry| entry["value"].as_str()?.parse().ok()).collect();
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
    let text = redis(&renewed)?;
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

    // The last objects are kept every ten seconds.
    std::thread::sleep(std::time::Duration::from_secs(11));
    cluster.control_plane.stop_api_server()?;
    for address in &addresses {
        answers(&cluster, &authority, *address)?;
    }
    let before = process_on(&cluster, 0).context("the gateway's process")?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(before.cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )?;
    eventually("another process", || process_on(&cluster, 0).filter(|pid| *pid != before))?;
    answers(&cluster, &authority, addresses[0])?;

    cluster.control_plane.start_api_server()?;
    cluster.kubectl("delete tlsroute redis")?;
    eventually("the route to be gone", || {
        let mut cli =
            tls_cli(&cluster.network.client, &addresses[2].to_string(), 6379, HOST, &authority.path);
        (!cli.arg("ping").output().ok()?.status.success()).then_some(())
    })?;
    Ok(())
}
