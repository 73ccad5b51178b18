//! What the nodes' network does to the packet tier, and what to do about it.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use snisplice_cluster::{Cluster, Machine, deploy, programs};
use snisplice_tests::process::checked_output;
use snisplice_tests::redis::tls_cli;
use snisplice_tests::{Authority, eventually, require};

use crate::install::{Example, HOST};

/// The pods of all nodes.
const PODS: &str = "10.244.0.0/16";

/// A route by flannel's `host-gw` is what the nodes here have; these are flannel's rules with `--ip-masq`, for a node with these pods.
fn masquerade(node: &Machine) -> Result<()> {
    let own = format!("{}/24", node.pod_addresses(0)[0]);
    let rules = [
        "-N FLANNEL-POSTRTG".to_owned(),
        "-A POSTROUTING -j FLANNEL-POSTRTG".to_owned(),
        format!("-A FLANNEL-POSTRTG -s {own} -d {PODS} -j RETURN"),
        format!("-A FLANNEL-POSTRTG -s {PODS} -d {own} -j RETURN"),
        format!("-A FLANNEL-POSTRTG ! -s {PODS} -d {own} -j RETURN"),
        format!("-A FLANNEL-POSTRTG -s {PODS} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully"),
        format!("-A FLANNEL-POSTRTG ! -s {PODS} -d {PODS} -j MASQUERADE --random-fully"),
    ];
    rules.iter().try_for_each(|rule| {
        let mut iptables = node.ns.command("iptables");
        checked_output(iptables.args(["-t", "nat"]).args(rule.split(' '))).map(drop)
    })
}

/// The rule of docs/kubernetes.md, for these pods.
fn exempt(node: &Machine) -> Result<()> {
    let guide = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/kubernetes.md"))?;
    let rule =
        guide.lines().find_map(|line| line.strip_prefix("iptables ")).context("the rule of the guide")?;
    let rule = rule.replace("10.42.0.0/16", PODS);
    checked_output(node.ns.command("iptables").args(rule.split(' '))).map(drop)
}

#[test]
fn flannel_keeps_connections_out_of_the_packet_tier_unless_their_ports_are_exempt() -> Result<()> {
    require!(programs::path("kube-apiserver").is_ok(), "the programs of the cluster are not built");
    require!(programs::path("helm").is_ok(), "Helm is not built");
    let cluster = Cluster::start(2)?;
    cluster.install_gateway_api()?;
    deploy::helm(&cluster, "install", "")?;
    let authority = Authority::new("example authority")?;
    Example::new()?.set_up_with(&cluster, &authority.leaf(&[HOST])?)?;
    let node = cluster.kubectl("get pods -l app=redis -o jsonpath={.items[0].spec.nodeName}")?;
    let other = cluster.network.nodes.iter().find(|other| other.name() != node).context("another node")?;
    let [address, _] = other.addresses();

    let answered = |address: IpAddr| {
        eventually("Redis to answer", || {
            let address = address.to_string();
            let mut cli = tls_cli(&cluster.network.client, &address, 6379, HOST, &authority.path);
            checked_output(cli.arg("ping")).ok()
        })
    };
    // How many connections were translated so far, once there is an answer.
    let unseen = || -> Result<u64> {
        answered(address)?;
        let metrics =
            checked_output(other.ns.command("curl").args(["-sS", "http://127.0.0.1:9900/metrics"]))?;
        let mut lines = metrics.lines();
        let counted = lines.find_map(|line| {
            line.strip_prefix("snisplice_tier_fallbacks_total{reason=\"no_syn_seen\"} ")?.parse().ok()
        });
        Ok(counted.unwrap_or(0))
    };
    ensure!(unseen()? == 0, "without translation");
    masquerade(other)?;
    let translated = unseen()?;
    ensure!(translated > 0, "with translation");
    exempt(other)?;
    ensure!(unseen()? == translated, "with the rule of the guide");
    Ok(())
}
