//! The cluster itself: what its kubelet promises.

use anyhow::{Context, Result, ensure};
use snisplice_cluster::{Cluster, programs};
use snisplice_tests::process::checked_output;
use snisplice_tests::{eventually, require};

/// A Deployment of the suite's echo program, with what a kubelet has to do for it.
fn echo(replicas: u8, version: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: echo, namespace: default}}
spec:
  replicas: {replicas}
  strategy: {{rollingUpdate: {{maxUnavailable: 0, maxSurge: 1}}}}
  selector: {{matchLabels: {{app: echo}}}}
  template:
    metadata: {{labels: {{app: echo, version: "{version}"}}}}
    spec:
      containers:
        - name: echo
          image: registry.k8s.io/gateway-api/echo-basic:v1
          env:
            - {{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
            - {{name: NAMESPACE, value: default}}
          readinessProbe: {{tcpSocket: {{port: 3000}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: echo, namespace: default}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{app: echo}}
  ports: [{{port: 80, targetPort: 3000}}]
"#
    )
}

#[test]
fn pods_run_on_both_nodes_are_probed_updated_in_turn_and_tell_their_logs() -> Result<()> {
    require!(programs::path("kube-apiserver").is_ok(), "the programs of the cluster are not built");
    let cluster = Cluster::start(2)?;
    cluster.apply(&echo(2, "one"))?;
    cluster.kubectl("rollout status deployment/echo --timeout=60s")?;
    let nodes = cluster.kubectl("get pods -l app=echo -o jsonpath={.items[*].spec.nodeName}")?;
    ensure!(nodes.contains("node-1") && nodes.contains("node-2"), "on {nodes}");

    let ready = eventually("endpoints of both families", || {
        let slices = cluster.kubectl("get endpointslices -l kubernetes.io/service-name=echo -o json").ok()?;
        let slices: serde_json::Value = serde_json::from_str(&slices).ok()?;
        let slices = slices["items"].as_array()?;
        let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        let ready: Vec<String> = endpoints
            .filter(|endpoint| endpoint["conditions"]["ready"] == true)
            .filter_map(|endpoint| Some(endpoint["addresses"][0].as_str()?.to_owned()))
            .collect();
        (ready.len() == 4).then_some(ready)
    })?;
    for address in ready {
        let host = if address.contains(':') { format!("[{address}]") } else { address };
        let url = format!("http://{host}:3000/");
        let answer = checked_output(cluster.network.client.command("curl").args(["-gsSf", &url]))?;
        ensure!(answer.contains("\"namespace\": \"default\""), "{url}: {answer}");
    }

    cluster.apply(&echo(2, "two"))?;
    cluster.kubectl("rollout status deployment/echo --timeout=60s")?;
    eventually("the old pods to be gone", || {
        let old = cluster.kubectl("get pods -l app=echo,version=one -o name").ok()?;
        old.is_empty().then_some(())
    })?;
    let log = cluster.kubectl("logs deployment/echo --tail=20")?;
    ensure!(log.contains("Starting server"), "the log: {log}");
    Ok(())
}

#[test]
fn a_pod_has_a_token_and_files_that_follow_their_objects() -> Result<()> {
    require!(programs::path("kube-apiserver").is_ok(), "the programs of the cluster are not built");
    let mut cluster = Cluster::start(1)?;
    let pod = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: default}
data: {word: first}
---
apiVersion: v1
kind: Pod
metadata: {name: reader, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: reader
      image: bash
      command: [bash, -c]
      args:
        - |
          at=/var/run/secrets/kubernetes.io/serviceaccount
          curl -sS --cacert $at/ca.crt -H "Authorization: Bearer $(cat $at/token)" \
            https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/apis/authentication.k8s.io/v1/selfsubjectreviews \
            -H 'Content-Type: application/json' -d '{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}'
          while sleep 0.2; do echo "the word is $(cat /etc/settings/word)"; done
      volumeMounts: [{name: settings, mountPath: /etc/settings}]
  volumes: [{name: settings, configMap: {name: settings}}]
"#;
    cluster.apply(pod)?;
    let told = |cluster: &Cluster, text: &str| {
        eventually(&format!("the pod to say {text:?}"), || {
            cluster.kubectl("logs reader").ok().filter(|log| log.contains(text)).map(drop)
        })
        .with_context(|| cluster.kubectl("logs reader --tail=40").unwrap_or_default())
    };
    told(&cluster, "the word is first")?;
    told(&cluster, "system:serviceaccount:default:default")?;

    // What runs goes on without an API server, and is known again afterwards.
    cluster.control_plane.stop_api_server()?;
    cluster.control_plane.start_api_server()?;
    cluster.apply(&pod.split_once("---").context("two objects")?.0.replace("first", "second"))?;
    told(&cluster, "the word is second")?;
    cluster.kubectl("delete pod reader --timeout=30s")?;
    Ok(())
}

#[test]
fn a_program_that_hangs_is_asked_to_end_and_started_again() -> Result<()> {
    require!(programs::path("kube-apiserver").is_ok(), "the programs of the cluster are not built");
    let cluster = Cluster::start(1)?;
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: hanging, namespace: default}
spec:
  terminationGracePeriodSeconds: 5
  containers:
    - name: hanging
      image: bash
      command: [bash, -c]
      args: ["trap 'echo asked to end; exit 0' TERM; sleep 1; touch /tmp/up; while :; do sleep 0.1; done"]
      startupProbe: {exec: {command: [test, -f, /tmp/up]}, periodSeconds: 1, failureThreshold: 60}
      livenessProbe: {exec: {command: [test, "!", -f, /tmp/up]}, periodSeconds: 1, failureThreshold: 1}
"#,
    )?;
    eventually("the program to be started again", || {
        let status = cluster.kubectl("get pod hanging -o jsonpath={.status.containerStatuses[0]}").ok()?;
        let status: serde_json::Value = serde_json::from_str(&status).ok()?;
        status["restartCount"].as_u64().filter(|count| *count > 0)
    })?;
    let log = cluster.kubectl("logs hanging")?;
    ensure!(log.contains("asked to end"), "the log: {log}");
    Ok(())
}
