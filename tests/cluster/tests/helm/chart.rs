//! The chart and the plain manifests, without a cluster.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use snisplice_cluster::{deploy, programs};
use snisplice_tests::process::checked_output;
use snisplice_tests::{TempDir, gateway, require};

/// The Services of classes are in the release's own namespace, which is none of those that it serves.
const SHARED: &str = "
mode: service
namespaces: [web]
gatewayApi: merge = true
";

/// Values of installations that differ in all that the chart makes.
pub(crate) const INSTALLATIONS: [&str; 6] = [
    "",
    r#"
mode: pool
addresses: [198.51.100.0/25, "2001:db8:10::/120"]
controller: example.com/second
gatewayClass: { name: second }
stateDir: /run/second
bpffs: /sys/fs/bpf/second
namespaces: [databases, web]
admin: { address: "::1", port: 9901 }
gateway: |
  workers = 2
  access_log = { path = "-" }
gatewayApi: keep_objects = false
"#,
    r#"
mode: pool
addresses: [198.51.100.0/25]
attach: eth0
drainSeconds: 0
preStopSeconds: 0
nodesAtATime: 50%
gatewayClass: { create: false }
log: snisplice=debug
istio: [istio=eastwestgateway]
autoPassthrough: true
"#,
    r#"
mode: service
loadBalancerClass: metallb.io/metallb
attach: lo
"#,
    SHARED,
    r#"
admin: { address: 0.0.0.0 }
serviceMonitor: { enabled: true, labels: { release: prometheus } }
image: { repository: registry.example.com/snisplice, tag: next, pullPolicy: Always }
imagePullSecrets: [{ name: registry }]
nodeSelector: { node-role.example.com/gateway: "" }
tolerations: []
priorityClassName: ""
resources: { limits: { memory: 1Gi } }
"#,
];

/// What a user may get wrong, and what the chart's answer must speak of.
const MISUSE: [(&str, &str); 13] = [
    ("istio: [eastwestgateway]", "istio"),
    ("mode: bgp", "mode"),
    ("mode: pool", "addresses"),
    ("addresses: ['198.51.100.1 and more']", "addresses"),
    ("hostPort: 443", "hostPort"),
    ("admin: { port: 0 }", "port"),
    ("admin: { address: localhost }", "address"),
    ("controller: snisplice", "controller"),
    ("drainSeconds: 30s", "drainSeconds"),
    ("nodesAtATime: 0", "nodesAtATime"),
    ("namespaces: [Databases]", "namespaces"),
    ("bpffs: /sys/fs/bpf", "bpffs"),
    // Prometheus would find nobody there.
    ("serviceMonitor: { enabled: true }", "admin.address"),
];

fn is_built() -> bool {
    programs::path("helm").is_ok()
}

#[test]
fn the_plain_manifests_are_what_the_chart_makes_of_its_default_values() -> Result<()> {
    require!(is_built(), "Helm is not built");
    let wanted = deploy::manifests()?;
    ensure!(wanted == deploy::MANIFESTS, "`cargo xtask manifests` writes deploy/kubernetes.yaml anew");
    Ok(())
}

#[test]
fn the_chart_says_what_is_wrong_with_a_value() -> Result<()> {
    require!(is_built(), "Helm is not built");
    deploy::lint()?;
    for (values, wrong) in MISUSE {
        let error = deploy::render(values).err().with_context(|| format!("`{values}` was taken"))?;
        ensure!(error.to_string().contains(wrong), "`{values}`: {error}");
    }
    Ok(())
}

#[test]
fn the_gateway_takes_every_configuration_that_the_chart_writes() -> Result<()> {
    require!(is_built(), "Helm is not built");
    let files = TempDir::new()?;
    for values in INSTALLATIONS {
        let file = files.join("snisplice.toml");
        fs::write(&file, deploy::configuration(&deploy::render(values)?)?)?;
        checked_output(Command::new(gateway::binary()?).args(["check", "-c"]).arg(&file))
            .with_context(|| format!("{values}\n{}", fs::read_to_string(&file).unwrap_or_default()))?;
    }
    Ok(())
}

#[test]
fn it_may_write_the_services_of_classes_though_it_serves_other_namespaces() -> Result<()> {
    require!(is_built(), "Helm is not built");
    let role = |values: &str| -> Result<String> {
        let manifests = deploy::render(values)?;
        let role = manifests.split("\n---\n").find(|manifest| manifest.contains("\nkind: Role\n"));
        Ok(role.context("the role in its own namespace")?.to_owned())
    };
    let rights = [
        "resources: [services]\n    verbs: [create, get, list, patch, watch]",
        "resources: [endpointslices]\n    verbs: [create, delete, get, list, patch, watch]",
    ];
    let (shared, other) = (role(SHARED)?, role("namespaces: [web]")?);
    for right in rights {
        ensure!(shared.contains(right), "{shared}");
        ensure!(!other.contains(right), "{other}");
    }
    Ok(())
}

#[test]
fn pods_have_no_ports_and_no_right_beyond_the_capabilities_that_are_named() -> Result<()> {
    require!(is_built(), "Helm is not built");
    for values in INSTALLATIONS {
        let manifests = deploy::render(values)?;
        let lines = manifests.lines().filter(|line| !line.trim_start().starts_with('#'));
        let lines: Vec<&str> = lines.collect();
        for unwanted in ["containerPort", "hostPort", "privileged:", "hostPID", "hostIPC", "SYS_ADMIN"] {
            ensure!(
                !lines.iter().any(|line| line.contains(unwanted)),
                "{unwanted} in the manifests of\n{values}"
            );
        }
    }
    Ok(())
}
