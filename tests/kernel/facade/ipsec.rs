//! IPsec policies by XFRM netlink, against those that `ip xfrm` has made.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use snisplice::kernel::ipsec::Policies;
use snisplice_tests::{NetNs, require};

const LOCAL: [&str; 2] = ["10.0.2.1:40000", "[fd00:2::1]:40000"];
const PEER: [&str; 2] = ["10.0.2.2:6379", "[fd00:2::2]:6379"];

/// Whether a policy concerns the connection, by IPv4 and by IPv6.
fn concern(policies: &Policies) -> [bool; 2] {
    [0, 1].map(|family| concerns(policies, LOCAL[family], PEER[family]))
}

fn concerns(policies: &Policies, local: &str, peer: &str) -> bool {
    let end = |address: &str| address.parse::<SocketAddr>().unwrap();
    policies.concern(end(local), end(peer))
}

/// A namespace in which policies can be made, and those it has.
fn scene() -> Result<Option<(NetNs, Policies)>> {
    let ns = NetNs::new("ipsec")?;
    let Some(policies) = ns.run(Policies::open)? else { return Ok(None) };
    Ok(Some((ns, policies)))
}

const TEMPLATE: &str = "tmpl src 10.0.2.1 dst 10.0.2.2 proto esp mode tunnel";

#[test]
fn what_a_policy_would_encrypt_or_refuse_is_concerned_and_nothing_else() -> Result<()> {
    let scene = scene()?;
    require!(scene.is_some(), "the kernel has no IPsec");
    let (ns, policies) = scene.context("checked above")?;
    ensure!(concern(&policies) == [false; 2], "without a policy");
    for (selector, action, expected) in [
        ("src 10.0.2.0/24 dst 10.0.2.2/32 dir out", TEMPLATE, [true, false]),
        ("src 10.0.2.2/32 dst 10.0.2.1/32 dir in", TEMPLATE, [true, false]),
        ("src ::/0 dst fd00:2::/64 proto tcp dport 6379 dir out", "action block", [false, true]),
        ("src 10.0.2.1/32 dst 0.0.0.0/0 proto tcp sport 40000 dir out", "action block", [true, false]),
        // Other ends, ports, protocols and directions.
        ("src 10.0.2.0/24 dst 10.0.3.0/24 dir out", TEMPLATE, [false; 2]),
        ("src 10.0.2.2/32 dst 10.0.2.1/32 dir out", TEMPLATE, [false; 2]),
        ("src 0.0.0.0/0 dst 0.0.0.0/0 proto tcp dport 6380 dir out", "action block", [false; 2]),
        ("src 0.0.0.0/0 dst 0.0.0.0/0 proto udp dir out", "action block", [false; 2]),
        ("src 0.0.0.0/0 dst 0.0.0.0/0 dir fwd", TEMPLATE, [false; 2]),
        // One that changes nothing.
        ("src 0.0.0.0/0 dst 0.0.0.0/0 dir out", "action allow", [false; 2]),
    ] {
        ns.ip(&format!("xfrm policy add {selector} {action}"))?;
        ensure!(policies.changed()?, "{selector}: not announced");
        ensure!(concern(&policies) == expected, "{selector}: {:?}", concern(&policies));
        ns.ip(&format!("xfrm policy delete {selector}"))?;
        ensure!(policies.changed()?, "{selector}: its end not announced");
        ensure!(concern(&policies) == [false; 2], "{selector}: outlived");
    }
    ensure!(!policies.changed()?);
    Ok(())
}

#[test]
fn policies_that_were_there_before_are_known_and_those_flushed_are_not() -> Result<()> {
    let scene = scene()?;
    require!(scene.is_some(), "the kernel has no IPsec");
    let (ns, _) = scene.context("checked above")?;
    // More than one datagram of the kernel's list.
    for host in 0..200 {
        ns.ip(&format!("xfrm policy add src 10.0.2.1/32 dst 10.0.4.{host}/32 dir out {TEMPLATE}"))?;
    }
    let policies = ns.run(Policies::open)?.context("there was IPsec a moment ago")?;
    for host in [0, 77, 199] {
        ensure!(concerns(&policies, LOCAL[0], &format!("10.0.4.{host}:6379")), "{host}");
        // As a socket that is bound to :: sees it.
        ensure!(concerns(&policies, "[::ffff:10.0.2.1]:1", &format!("[::ffff:10.0.4.{host}]:2")), "{host}");
    }
    ensure!(!concerns(&policies, LOCAL[0], "10.0.4.200:6379"));
    ns.ip("xfrm policy flush")?;
    ensure!(policies.changed()?);
    ensure!(!concerns(&policies, LOCAL[0], "10.0.4.77:6379"));
    Ok(())
}

#[test]
fn where_what_no_policy_allows_is_refused_everything_is_concerned() -> Result<()> {
    let scene = scene()?;
    require!(scene.is_some(), "the kernel has no IPsec");
    let (ns, policies) = scene.context("checked above")?;
    require!(ns.ip("xfrm policy setdefault fwd block").is_ok(), "the kernel has no default policies");
    policies.changed()?;
    ensure!(concern(&policies) == [false; 2], "what is only passed on is not ours");
    for direction in ["in", "out"] {
        ns.ip(&format!("xfrm policy setdefault {direction} block"))?;
        ensure!(policies.changed()? && concern(&policies) == [true; 2], "{direction}");
        ns.ip(&format!("xfrm policy setdefault {direction} accept"))?;
        ensure!(policies.changed()? && concern(&policies) == [false; 2], "{direction}");
    }
    Ok(())
}

#[test]
fn policies_of_an_interface_are_left_to_it() -> Result<()> {
    let scene = scene()?;
    require!(scene.is_some(), "the kernel has no IPsec");
    let (ns, policies) = scene.context("checked above")?;
    ns.ip(&format!("xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir out if_id 7 {TEMPLATE}"))?;
    ensure!(policies.changed()? && concern(&policies) == [false; 2]);
    Ok(())
}

#[test]
fn with_more_policies_than_are_compared_everything_is_concerned() -> Result<()> {
    let scene = scene()?;
    require!(scene.is_some(), "the kernel has no IPsec");
    let (ns, policies) = scene.context("checked above")?;
    let lines = (0..4097).map(|i| {
        let host = format!("10.7.{}.{}", i / 256, i % 256);
        format!("xfrm policy add src 10.0.2.1/32 dst {host}/32 dir out {TEMPLATE}\n")
    });
    ns.ip_batch(&lines.collect::<String>())?;
    ensure!(policies.changed()? && concern(&policies) == [true; 2]);
    ns.ip("xfrm policy delete src 10.0.2.1/32 dst 10.7.0.0/32 dir out")?;
    ensure!(policies.changed()? && concern(&policies) == [false; 2]);
    Ok(())
}
