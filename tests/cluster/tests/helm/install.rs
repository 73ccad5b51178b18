//! A cluster with the chart installed: what Helm, `kubectl` and clients see.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use snisplice_cluster::{Cluster, deploy, feed, programs};
use snisplice_tests::process::checked_output;
use snisplice_tests::redis::tls_cli;
use snisplice_tests::{Authority, Leaf, TempDir, eventually, require};

use crate::chart::INSTALLATIONS;
use crate::load::Load;

/// The name that the example's clients ask for.
pub(crate) const HOST: &str = "redis.example.com";
/// Short pauses: nobody has to hear of an end.
const QUICK: &str = "preStopSeconds: 1\ndrainSeconds: 2\n";

fn is_built() -> bool {
    programs::path("kube-apiserver").is_ok() && programs::path("helm").is_ok()
}

fn json_of(cluster: &Cluster, args: &str) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.kubectl(&format!("get {args} -o json"))?)?)
}

/// The commands of the example, as its README has them.
pub(crate) struct Example {
    files: TempDir,
    commands: Vec<String>,
}

impl Example {
    pub(crate) fn new() -> Result<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/kubernetes");
        let readme = fs::read_to_string(directory.join("README.md"))?;
        let (_, block) = readme.split_once("```sh\n").context("the commands")?;
        let (block, _) = block.split_once("```").context("their end")?;
        let commands = block.replace("\\\n", " ").lines().map(str::to_owned).collect();
        let files = TempDir::new()?;
        fs::copy(directory.join("redis.yaml"), files.join("redis.yaml"))?;
        Ok(Self { files, commands })
    }

    /// Runs all but the last, which is the client.
    fn set_up(&self, cluster: &Cluster) -> Result<()> {
        let (_, commands) = self.commands.split_last().context("the client's command")?;
        commands.iter().try_for_each(|command| self.run(cluster, command).map(drop))
    }

    /// The same, but for the first, which makes a certificate: here it is this one.
    pub(crate) fn set_up_with(mut self, cluster: &Cluster, certificate: &Leaf) -> Result<()> {
        fs::copy(&certificate.chain, self.certificate())?;
        fs::copy(&certificate.key, self.files.join("redis.key"))?;
        self.commands.remove(0);
        self.set_up(cluster)
    }

    /// Runs the client until it is answered at each address.
    fn is_answered(&self, cluster: &Cluster) -> Result<()> {
        let client = self.commands.last().context("the client's command")?;
        for node in cluster.network.nodes.iter().flat_map(|node| node.addresses()) {
            let client = client.replace("NODE", &node.to_string());
            eventually(&format!("Redis to answer to `{client}`"), || {
                self.run(cluster, &client).ok().filter(|answer| answer == "PONG\n")
            })?;
        }
        Ok(())
    }

    fn run(&self, cluster: &Cluster, command: &str) -> Result<String> {
        let mut shell = cluster.network.client.command("sh");
        shell.args(["-ec", command]).current_dir(self.files.path());
        let path = std::env::var("PATH").unwrap_or_default();
        shell.env("PATH", format!("{}:{path}", programs::directory()?.display()));
        shell.env("HOME", self.files.path()).env("KUBECONFIG", cluster.control_plane.kubeconfig());
        checked_output(&mut shell)
    }

    fn certificate(&self) -> PathBuf {
        self.files.join("redis.crt")
    }
}

#[test]
fn helm_installs_it_limits_it_and_removes_it() -> Result<()> {
    require!(is_built(), "the programs of the cluster are not built");
    let cluster = Cluster::start(2)?;
    cluster.install_gateway_api()?;
    let told = deploy::helm(&cluster, "install", QUICK)?;
    ensure!(told.contains("gatewayClassName: snisplice"), "what Helm tells: {told}");

    // With ports, the API server would have made hostPorts of them, and no second pod would fit beside the first.
    let daemon_set = json_of(&cluster, "--namespace snisplice-system daemonset snisplice")?.to_string();
    ensure!(!daemon_set.contains("hostPort"), "{daemon_set}");

    let example = Example::new()?;
    example.set_up(&cluster)?;
    example.is_answered(&cluster)?;
    let described = cluster.kubectl("describe gateway databases")?;
    ensure!(described.contains("Programmed") && described.contains("10.10.0.11"), "{described}");
    let log = cluster.kubectl("logs --namespace snisplice-system daemonset/snisplice")?;
    ensure!(log.contains("snisplice") && !log.contains("ERROR"), "the log: {log}");

    // With rights in some namespaces only. The update before it is under way still.
    deploy::helm_at_once(&cluster, "upgrade", &format!("{QUICK}log: snisplice=debug\n"))?;
    eventually("the first node to be updated", || {
        let updated = "get --namespace snisplice-system daemonset snisplice -o jsonpath={.status.updatedNumberScheduled}";
        cluster.kubectl(updated).is_ok_and(|updated| updated == "1").then_some(())
    })?;
    deploy::helm(&cluster, "upgrade", &format!("{QUICK}namespaces: [default]\n"))?;
    example.is_answered(&cluster)?;
    let may = |what: &str| {
        let account = "--as system:serviceaccount:snisplice-system:snisplice";
        // An error: it answered "no".
        cluster.kubectl(&format!("auth can-i {what} {account}")).is_ok_and(|answer| answer == "yes\n")
    };
    ensure!(may("list secrets --namespace default") && !may("list secrets --namespace kube-system"));
    ensure!(!may("patch tlsroutes --namespace default") && !may("delete services --namespace default"));

    let mut helm = cluster.control_plane.helm()?;
    checked_output(helm.args(["uninstall", "snisplice", "--namespace", deploy::NAMESPACE, "--wait"]))?;
    let left =
        "get clusterroles,clusterrolebindings,gatewayclasses -l app.kubernetes.io/name=snisplice -o name";
    ensure!(cluster.kubectl(left)?.is_empty(), "{}", cluster.kubectl(left)?);
    eventually("the listeners to be closed", || {
        let [address, _] = cluster.network.nodes[0].addresses();
        let mut cli =
            tls_cli(&cluster.network.client, &address.to_string(), 6379, HOST, &example.certificate());
        (!cli.arg("ping").output().ok()?.status.success()).then_some(())
    })
}

#[test]
fn the_api_server_takes_whatever_the_chart_makes() -> Result<()> {
    require!(is_built(), "the programs of the cluster are not built");
    let cluster = Cluster::start(0)?;
    cluster.install_gateway_api()?;
    let crd = programs::path("servicemonitor-crd.yaml")?;
    cluster.kubectl(&format!("apply --server-side -f {}", crd.display()))?;
    cluster.kubectl("wait crd --all --for=condition=Established --timeout=60s")?;
    for namespace in [deploy::NAMESPACE, "databases", "web"] {
        cluster.kubectl(&format!("create namespace {namespace}"))?;
    }
    let strictly = |manifests: &str| {
        let mut kubectl = cluster.control_plane.kubectl()?;
        kubectl.args(["apply", "--dry-run=server", "--validate=strict", "-f", "-"]);
        feed(&mut kubectl, manifests)
    };
    for values in INSTALLATIONS {
        strictly(&deploy::render(values)?).with_context(|| format!("the manifests of\n{values}"))?;
    }
    strictly(deploy::MANIFESTS)?;
    let misspelt = deploy::MANIFESTS.replace("readinessProbe", "readynessProbe");
    ensure!(strictly(&misspelt).is_err(), "a field that does not exist was taken");
    Ok(())
}

/// Each has Leases of its own, and leaves what the other one writes alone.
#[test]
fn two_releases_share_nodes_and_a_namespace() -> Result<()> {
    require!(is_built(), "the programs of the cluster are not built");
    let cluster = Cluster::start(2)?;
    cluster.install_gateway_api()?;
    let mode = format!("{QUICK}mode: service\n");
    deploy::helm(&cluster, "install", &mode)?;
    let second = "controller: example.com/second\ngatewayClass: { name: second }\nstateDir: /run/second\n\
                  bpffs: /sys/fs/bpf/second\nadmin: { port: 9901 }\n";
    deploy::helm_release(&cluster, "install", "second", &format!("{mode}{second}"))?;
    cluster.kubectl(&format!(
        "rollout status --namespace {} daemonset/second --timeout=120s",
        deploy::NAMESPACE
    ))?;
    for (class, port) in [("snisplice", 7001), ("second", 7002)] {
        cluster.apply(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge-{port}, namespace: default}}\n\
             spec: {{gatewayClassName: {class}, listeners: [{{name: tcp, port: {port}, protocol: TCP}}]}}\n"
        ))?;
    }
    // Those of nodes, by their names, and which version of each this is.
    let slices = || -> Result<BTreeSet<(String, String)>> {
        let list = json_of(&cluster, "endpointslices -l service.kubernetes.io/service-proxy-name=snisplice")?;
        let list = list["items"].as_array().into_iter().flatten();
        let of_nodes = list.filter(|slice| slice["endpoints"][0]["nodeName"].is_string());
        let text =
            |slice: &Value, field: &str| slice["metadata"][field].as_str().unwrap_or_default().to_owned();
        Ok(of_nodes.map(|slice| (text(slice, "name"), text(slice, "resourceVersion"))).collect())
    };
    let known = eventually("two Services to be at both nodes in both families", || {
        slices().ok().filter(|slices| slices.len() == 8)
    })?;
    // For longer than a node has to renew its Lease.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(25) {
        let (there, after) = (slices()?, started.elapsed());
        ensure!(there == known, "{there:?} instead of {known:?} after {after:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    let leases = json_of(&cluster, &format!("--namespace {} leases", deploy::NAMESPACE))?;
    let leases = leases["items"].as_array().context("Leases")?;
    let holders = leases.iter().filter(|lease| {
        let name = lease["metadata"]["name"].as_str();
        name.is_some_and(|name| name.ends_with("-leader"))
    });
    let holders: BTreeSet<&str> =
        holders.filter_map(|lease| lease["spec"]["holderIdentity"].as_str()?.split('-').next()).collect();
    ensure!(holders == ["second", "snisplice"].into() && leases.len() == 6, "{leases:#?}");
    Ok(())
}

#[test]
fn its_pods_lack_nothing_and_have_no_capability_that_nothing_needs() -> Result<()> {
    require!(is_built(), "the programs of the cluster are not built");
    let cluster = Cluster::start(1)?;
    cluster.install_gateway_api()?;
    deploy::helm(&cluster, "install", QUICK)?;
    let daemon_set = json_of(&cluster, "--namespace snisplice-system daemonset snisplice")?;
    let mut spec = daemon_set["spec"]["template"]["spec"].clone();
    spec["restartPolicy"] = "Never".into();
    let container = &mut spec["containers"][0];
    container["args"] = json!(["doctor"]);
    for key in ["livenessProbe", "readinessProbe", "lifecycle"] {
        container.as_object_mut().context("a container")?.remove(key);
    }
    let capabilities: Vec<String> =
        serde_json::from_value(container["securityContext"]["capabilities"]["add"].clone())?;

    // Which lines of `doctor` in such a pod are not "ok", but for those that only name the capabilities.
    let lacks = |name: &str, capabilities: &[&String]| -> Result<BTreeSet<String>> {
        let mut spec = spec.clone();
        spec["containers"][0]["securityContext"]["capabilities"]["add"] = json!(capabilities);
        let metadata = json!({"name": name, "namespace": deploy::NAMESPACE});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        cluster.apply(&pod.to_string())?;
        let pod = format!("--namespace {} {name}", deploy::NAMESPACE);
        eventually("doctor to be done", || {
            let phase = cluster.kubectl(&format!("get pod {pod} -o jsonpath={{.status.phase}}")).ok()?;
            matches!(phase.as_str(), "Succeeded" | "Failed").then_some(())
        })?;
        let report = cluster.kubectl(&format!("logs {pod}"))?;
        ensure!(report.contains("\ntiers\n"), "doctor says: {report}");
        let bad = report.lines().filter(|line| line.starts_with("missing") || line.starts_with("note"));
        Ok(bad.filter(|line| !line.contains("cap_")).map(str::to_owned).collect())
    };
    let all = lacks("all", &capabilities.iter().collect::<Vec<_>>())?;
    ensure!(!all.iter().any(|line| line.contains("packet ") && line.starts_with("missing")), "{all:#?}");
    for without in capabilities.iter().filter(|name| *name != "NET_BIND_SERVICE") {
        let others: Vec<&String> = capabilities.iter().filter(|name| *name != without).collect();
        let name = format!("without-{}", without.to_lowercase().replace('_', "-"));
        let lacks = lacks(&name, &others)?;
        ensure!(lacks.difference(&all).next().is_some(), "nothing needs {without}: {lacks:#?}");
    }
    Ok(())
}

#[test]
fn a_new_version_refuses_nobody_and_cuts_nothing() -> Result<()> {
    require!(is_built(), "the programs of the cluster are not built");
    let cluster = Cluster::start(2)?;
    cluster.install_gateway_api()?;
    deploy::helm(&cluster, "install", "")?;
    // What `openssl req -x509` makes is an authority's certificate, which rustls does not take from a server.
    let authority = Authority::new("example authority")?;
    Example::new()?.set_up_with(&cluster, &authority.leaf(&[HOST])?)?;

    // Of the family of the Redis: the others are not in the packet tier, and have until `drainSeconds` only.
    let addresses = cluster.network.nodes.iter().map(|node| node.addresses()[0]);
    let addresses: Vec<SocketAddr> = addresses.map(|address| (address, 6379).into()).collect();
    for address in &addresses {
        let ip = address.ip().to_string();
        eventually(&format!("Redis to answer at {ip}"), || {
            let mut cli = tls_cli(&cluster.network.client, &ip, 6379, HOST, &authority.path);
            checked_output(cli.arg("ping")).ok()
        })?;
    }
    let load = Load::start(&cluster.network.client, &addresses, HOST, &authority.path, 100)?;
    updated(&cluster, "next")?;
    let answered = load.end()?;
    ensure!(answered > 1000, "only {answered} commands were answered meanwhile");
    // Without clients a program that was taken over has nothing left to do. If it ended, it would be started again, and take
    // over in turn.
    updated(&cluster, "after")
}

/// A rolling update to this tag, in which no program is started twice.
fn updated(cluster: &Cluster, tag: &str) -> Result<()> {
    deploy::helm(cluster, "upgrade", &format!("image: {{ tag: {tag} }}\nlog: snisplice=debug\n"))?;
    let pods = || json_of(cluster, "--namespace snisplice-system pods");
    let pods = eventually("the old pods to be gone", || {
        let pods = pods().ok()?["items"].as_array()?.clone();
        (pods.len() == cluster.network.nodes.len()).then_some(pods)
    })?;
    for pod in pods {
        let container = &pod["status"]["containerStatuses"][0];
        let image = container["image"].as_str().context("an image")?;
        ensure!(image.ends_with(&format!(":{tag}")), "{image}");
        ensure!(container["restartCount"] == 0, "{container}");
    }
    Ok(())
}
