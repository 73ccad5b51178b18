//! Istio's own objects in a cluster: watched once their definitions are there, and never written.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use snisplice_cluster::{Cluster, deploy, programs, redis};
use snisplice_tests::redis::tls_cli;
use snisplice_tests::{Authority, Leaf, eventually, require};

/// A Redis with TLS for each version; what its dump is called tells which one answers.
fn two_versions(leaf: &Leaf) -> Result<String> {
    let mut text = redis::secret_and_service(leaf)?;
    for version in ["v1", "v2"] {
        text += &format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: redis-{version}, namespace: default, labels: {{app: redis, version: {version}}}}}
spec:
  containers:
    - name: redis
      image: redis-server
      command: [sh, -c]
      args:
        - >-
          exec redis-server --port 0 --tls-port 6379 --bind '*' '-::*' --protected-mode no --save '' --dir /
          --dbfilename {version}.rdb --tls-auth-clients no --tls-cert-file /etc/tls/tls.crt
          --tls-key-file /etc/tls/tls.key --tls-ca-cert-file /etc/tls/tls.crt
      readinessProbe: {{tcpSocket: {{port: 6379}}, periodSeconds: 1}}
      volumeMounts: [{{name: tls, mountPath: /etc/tls}}]
  volumes: [{{name: tls, secret: {{secretName: redis}}}}]
---
"#
        );
    }
    Ok(text)
}

const ISTIO: &str = r#"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: cross-network, namespace: default}
spec:
  selector: {istio: eastwestgateway}
  servers:
    - {port: {number: 15443, name: tls, protocol: TLS}, tls: {mode: AUTO_PASSTHROUGH}, hosts: ["*.local"]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: redis, namespace: default}
spec:
  host: redis
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: wrong, namespace: default}
spec: {host: redis.other.svc.cluster.local}
"#;

#[test]
fn istios_objects_are_watched_once_they_are_defined_and_subsets_follow_the_labels_of_pods() -> Result<()> {
    require!(programs::path("kube-apiserver").is_ok(), "the programs of the cluster are not built");
    require!(programs::path("helm").is_ok(), "Helm is not built");
    let authority = Authority::new("test authority")?;
    let leaf = authority.leaf(&["redis.default.svc.cluster.local"])?;
    let cluster = Cluster::start(1)?;
    cluster.install_gateway_api()?;
    // Ready without the definitions of Istio's objects.
    deploy::helm(&cluster, "install", "istio: [istio=eastwestgateway]\nautoPassthrough: true\n")?;
    cluster.apply(&two_versions(&leaf)?)?;
    cluster.install_istio()?;
    cluster.apply(ISTIO)?;

    let address: IpAddr = cluster.network.nodes[0].addresses()[0];
    let ask = |subset: &str| {
        let name = format!("outbound_.6379_.{subset}_.redis.default.svc.cluster.local");
        let mut cli = tls_cli(&cluster.network.client, &address.to_string(), 15443, &name, &authority.path);
        let output = cli.args(["config", "get", "dbfilename"]).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then(|| text.lines().nth(1).unwrap_or_default().to_owned())
    };
    for version in ["v1", "v2"] {
        eventually(&format!("an answer of {version}"), || {
            (ask(version)? == format!("{version}.rdb")).then_some(())
        })?;
    }
    // Another label, another subset.
    cluster.kubectl("label pod redis-v2 version=v1 --overwrite")?;
    eventually("the end of the second version", || ask("v2").is_none().then_some(()))?;
    eventually("the second pod in the first subset", || (ask("v1")? == "v2.rdb").then_some(()))?;
    ensure!(ask("v3").is_none() && ask("").is_some());

    // Nothing is written to Istio's objects.
    for object in ["gateways.networking.istio.io cross-network", "destinationrule redis"] {
        let text = cluster.kubectl(&format!("get {object} --show-managed-fields -o json"))?;
        let object: Value = serde_json::from_str(&text)?;
        let managers = object["metadata"]["managedFields"].as_array().context("the managers")?;
        ensure!(object["status"].is_null() && managers.len() == 1, "{object}");
    }
    // Without their definitions they are gone.
    cluster.kubectl("delete crd gateways.networking.istio.io")?;
    eventually("the end of the Gateway", || ask("v1").is_none().then_some(()))
}
