//! Routes by rtnetlink, against what `ip` has made.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use snisplice::kernel::devices::{Watch, devices};
use snisplice::kernel::routes::{Exit, Routes, Unroutable};
use snisplice_tests::{NetNs, eventually, require};

/// A namespace with two uplinks, `up0` (10.0.0.1/24, fd00:0::1/64) and `up1` (10.0.1.1/24, fd00:1::1/64).
struct Scene {
    ns: NetNs,
    _beyond: NetNs,
    routes: Routes,
}

/// An address as the kernel writes it.
fn plain(ip: &str) -> String {
    ip.parse::<IpAddr>().unwrap().to_string()
}

impl Scene {
    fn new() -> Result<Self> {
        let (ns, beyond) = (NetNs::new("host")?, NetNs::new("beyond")?);
        for uplink in [0, 1] {
            let device = format!("up{uplink}");
            ns.link(&device, &beyond, &device)?;
            ns.address(&device, &format!("10.0.{uplink}.1/24"))?;
            ns.address(&device, &format!("fd00:{uplink}::1/64"))?;
        }
        // IPv6 puts an address into use a moment after it was given.
        eventually("the addresses to be in use", || {
            let local = ns.ip("-6 route show table local").ok()?;
            ["fd00:0::1", "fd00:1::1"].iter().all(|ip| local.contains(&plain(ip))).then_some(())
        })?;
        let routes = ns.run(Routes::open)?;
        Ok(Self { ns, _beyond: beyond, routes })
    }

    fn device(&self, name: &str) -> u32 {
        let devices = self.ns.run(|| devices().unwrap());
        devices.iter().find(|device| device.name == name).unwrap_or_else(|| panic!("no {name}")).index
    }

    /// Runs each with `ip`.
    fn ip(&self, lines: &[&str]) -> Result<()> {
        lines.iter().try_for_each(|line| self.ns.ip(line).map(drop))
    }

    /// From any port to 443, without a mark.
    fn exit(&self, local: &str, peer: &str) -> Result<Exit, Unroutable> {
        self.exit_by(local, peer, 40_000, 0)
    }

    fn exit_by(&self, local: &str, peer: &str, port: u16, mark: u32) -> Result<Exit, Unroutable> {
        let end = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
        self.routes.exit(end(local, port), end(peer, 443), mark, None)
    }

    /// Through `up0` and `up1`: whether a packet may come.
    fn admits(&self, peer: &str, local: &str) -> [bool; 2] {
        self.admits_by(peer, local, 0)
    }

    fn admits_by(&self, peer: &str, local: &str, mark: u32) -> [bool; 2] {
        ["up0", "up1"].map(|name| {
            let (peer, local) = (peer.parse().unwrap(), local.parse().unwrap());
            self.routes.admits(peer, local, mark, self.device(name)).unwrap()
        })
    }
}

#[test]
fn an_exit_is_the_device_of_the_best_route() -> Result<()> {
    let scene = Scene::new()?;
    scene.ip(&[
        "route add default via 10.0.0.9",
        "route add 192.0.2.0/24 via 10.0.1.9",
        "route add 198.51.100.0/24 via inet6 fd00:1::9 dev up1",
        "-6 route add default via fd00:0::9",
        "-6 route add 2001:db8::/64 via fd00:1::9",
    ])?;
    let [up0, up1] = ["up0", "up1"].map(|name| scene.device(name));
    for (local, peer, device) in [
        ("10.0.0.1", "10.0.0.2", up0),
        ("10.0.0.1", "203.0.113.1", up0),
        ("10.0.0.1", "192.0.2.1", up1),
        ("10.0.0.1", "198.51.100.1", up1),
        ("fd00:0::1", "fd00:0::2", up0),
        ("fd00:0::1", "2001:db8:1::1", up0),
        ("fd00:0::1", "2001:db8::1", up1),
    ] {
        let expected = Exit { device, is_local: false };
        ensure!(scene.exit(local, peer)? == expected, "to {peer}: {:?}", scene.exit(local, peer));
    }
    for (local, peer) in
        [("127.0.0.1", "127.0.0.1"), ("10.0.0.1", "10.0.1.1"), ("::1", "::1"), ("fd00:0::1", "fd00:1::1")]
    {
        let exit = scene.exit(local, peer)?;
        ensure!(exit == Exit { device: 1, is_local: true }, "to {peer}: {exit:?}");
    }
    Ok(())
}

#[test]
fn ipv4_in_ipv6_clothes_is_ipv4_and_two_families_have_no_route() -> Result<()> {
    let scene = Scene::new()?;
    ensure!(scene.exit("::ffff:10.0.0.1", "::ffff:10.0.0.2")?.device == scene.device("up0"));
    ensure!(scene.admits("::ffff:10.0.0.2", "::ffff:10.0.0.1") == [true, false]);
    for (local, peer) in [("10.0.0.1", "fd00:0::2"), ("fd00:0::1", "10.0.0.2")] {
        ensure!(matches!(scene.exit(local, peer), Err(Unroutable::Unknown(_))), "{local} {peer}");
        ensure!(scene.admits(peer, local) == [false; 2], "{local} {peer}");
    }
    Ok(())
}

#[test]
fn a_link_local_peer_is_reached_by_its_scope() -> Result<()> {
    let scene = Scene::new()?;
    for name in ["up0", "up1"] {
        let scope = scene.device(name);
        let end = |ip: &str, scope| format!("[{ip}%{scope}]:443").parse::<SocketAddr>().unwrap();
        let exit = scene.routes.exit(end("fd00:0::1", 0), end("fe80::7", scope), 0, None)?;
        ensure!(exit == Exit { device: scope, is_local: false }, "{name}: {exit:?}");
    }
    Ok(())
}

#[test]
fn rules_by_source_mark_and_ports_count() -> Result<()> {
    let scene = Scene::new()?;
    for family in ["-4", "-6"] {
        let v6 = family == "-6";
        let [via0, via1, by0, by1, peer] = match v6 {
            false => ["10.0.0.9", "10.0.1.9", "10.0.0.1", "10.0.1.1", "192.0.2.1"],
            true => ["fd00:0::9", "fd00:1::9", "fd00:0::1", "fd00:1::1", "2001:db8::1"],
        };
        for line in [
            format!("route add default via {via0}"),
            format!("route add default via {via1} table 100"),
            format!("rule add from {by1} lookup 100"),
            "rule add fwmark 7 lookup 100".to_owned(),
            "rule add ipproto tcp sport 50000 lookup 100".to_owned(),
        ] {
            scene.ns.ip(&format!("{family} {line}"))?;
        }
        let [up0, up1] = ["up0", "up1"].map(|name| scene.device(name));
        let by = |local, port, mark| scene.exit_by(local, peer, port, mark).map(|exit| exit.device);
        ensure!(by(by0, 40_000, 0)? == up0, "{family}: neither");
        ensure!(by(by1, 40_000, 0)? == up1, "{family}: by the source");
        ensure!(by(by0, 40_000, 7)? == up1, "{family}: by the mark");
        ensure!(by(by0, 50_000, 0)? == up1, "{family}: by the port");

        ensure!(scene.admits(peer, by0) == [true, false], "{family}");
        ensure!(
            scene.admits(peer, by1) == [false, true],
            "{family}: by the source: {:?}",
            scene.admits(peer, by1)
        );
        ensure!(scene.admits_by(peer, by0, 7) == [false, true], "{family}: by the mark");
    }
    Ok(())
}

#[test]
fn an_answer_is_not_used_again_after_a_change_nor_where_ports_count() -> Result<()> {
    let scene = Scene::new()?;
    let [up0, up1] = ["up0", "up1"].map(|name| scene.device(name));
    for (family, sysctls, via0, via1, local, peer) in [
        ("-4", "ipv4", "10.0.0.9", "10.0.1.9", "10.9.9.9", "192.0.2.1"),
        ("-6", "ipv6", "fd00:0::9", "fd00:1::9", "fd00:9::9", "2001:db8::1"),
    ] {
        // Of no uplink: since Linux 6.15 the path is preferred whose device has the source address.
        scene.ns.address("lo", local)?;
        let ip = |line: &str| scene.ns.ip(&format!("{family} {line}"));
        // In the namespace, as a gateway's thread is: its sysctls are those that count.
        let by = |ports: RangeInclusive<u16>| -> Result<Vec<u32>> {
            let ask = |port| Ok(scene.exit_by(local, peer, port, 0)?.device);
            scene.ns.run(|| ports.map(ask).collect())
        };
        // It has heard of the change, and from here on answers may be used again.
        let settle = || -> Result<()> {
            by(1..=1)?;
            thread::sleep(Duration::from_millis(300));
            Ok(())
        };
        ip(&format!("route add default via {via0}"))?;
        settle()?;
        ensure!(by(1..=2)? == [up0; 2], "{family}");
        ip(&format!("route replace default via {via1}"))?;
        ensure!(by(1..=2)? == [up1; 2], "{family}: another route, at once");

        ip(&format!("route add default via {via0} table 100"))?;
        ip("rule add ipproto tcp sport 2 lookup 100")?;
        settle()?;
        ensure!(by(1..=3)? == [up1, up0, up1], "{family}: a rule for a port");
        ip("rule del ipproto tcp sport 2 lookup 100")?;

        let policy = |policy| scene.ns.sysctl(&format!("net/{sysctls}/fib_multipath_hash_policy"), policy);
        ip(&format!("route replace default nexthop via {via0} nexthop via {via1}"))?;
        for (by_ports, devices) in [("1", 2), ("0", 1)] {
            policy(by_ports)?;
            settle()?;
            let devices_taken: HashSet<u32> = by(1..=64)?.into_iter().collect();
            ensure!(devices_taken.len() == devices, "{family}: policy {by_ports}: {devices_taken:?}");
        }
    }
    Ok(())
}

#[test]
fn an_answer_is_not_used_again_after_it_was_forgotten() -> Result<()> {
    let scene = Scene::new()?;
    // Of no uplink: since Linux 6.15 the path is preferred whose device has the source address.
    scene.ip(&["addr add 10.9.9.9 dev lo", "route add default nexthop via 10.0.0.9 nexthop via 10.0.1.9"])?;
    let devices_taken = || -> Result<HashSet<u32>> {
        let ask = |port| Ok(scene.exit_by("10.9.9.9", "192.0.2.1", port, 0)?.device);
        scene.ns.run(|| (1..=64).map(ask).collect())
    };
    // It has heard of the changes, and from here on answers may be used again.
    devices_taken()?;
    thread::sleep(Duration::from_millis(300));
    ensure!(devices_taken()?.len() == 1);
    // No notification tells of this change.
    scene.ns.sysctl("net/ipv4/fib_multipath_hash_policy", "1")?;
    scene.routes.forget();
    ensure!(devices_taken()?.len() == 2);
    Ok(())
}

#[test]
fn a_peer_that_no_packet_may_be_sent_to_is_refused_with_the_reason() -> Result<()> {
    let scene = Scene::new()?;
    scene.ip(&[
        "route add unreachable 192.0.2.1",
        "route add prohibit 192.0.2.2",
        "route add blackhole 192.0.2.3",
        "-6 route add unreachable 2001:db8::1",
        "-6 route add prohibit 2001:db8::2",
        "-6 route add blackhole 2001:db8::3",
    ])?;
    for (local, net) in [("10.0.0.1", "192.0.2."), ("fd00:0::1", "2001:db8::")] {
        let refusal = |host: &str| scene.exit(local, &format!("{net}{host}")).unwrap_err();
        ensure!(matches!(refusal("1"), Unroutable::Unreachable), "{net} {:?}", refusal("1"));
        ensure!(matches!(refusal("2"), Unroutable::Prohibited), "{net} {:?}", refusal("2"));
        ensure!(matches!(refusal("3"), Unroutable::Discarded), "{net} {:?}", refusal("3"));
        // No route at all.
        ensure!(matches!(refusal("4"), Unroutable::Unreachable), "{net} {:?}", refusal("4"));
        for host in ["1", "2", "3", "4"] {
            ensure!(scene.admits(&format!("{net}{host}"), local) == [false; 2], "{net}{host}");
        }
    }
    let refusal = |local, peer| scene.exit(local, peer).unwrap_err();
    ensure!(matches!(refusal("10.0.0.1", "10.0.0.255"), Unroutable::NotUnicast));
    ensure!(matches!(refusal("fd00:0::1", "ff0e::1"), Unroutable::NotUnicast));
    Ok(())
}

#[test]
fn packets_in_the_name_of_another_host_go_by_the_route_and_come_by_it() -> Result<()> {
    let scene = Scene::new()?;
    for (local, peer) in [("192.0.2.7", "10.0.0.2"), ("2001:db8::7", "fd00:0::2")] {
        ensure!(scene.exit(local, peer)?.device == scene.device("up0"), "{local}");
        ensure!(scene.admits(peer, local) == [true, false], "{local}");
        // What is sent to it is taken by this host only where a rule leads the mark to a local route.
        let [family, all] = if local.contains(':') { ["-6", "::/0"] } else { ["-4", "0.0.0.0/0"] };
        let takes = |mark| scene.routes.takes(local.parse().unwrap(), mark);
        ensure!(!takes(7), "{local}");
        scene.ns.ip(&format!("{family} route add local {all} dev lo table 77"))?;
        scene.ns.ip(&format!("{family} rule add fwmark 7 lookup 77"))?;
        ensure!(takes(7) && !takes(8), "{local}");
    }
    Ok(())
}

#[test]
fn a_route_that_encapsulates_is_no_way_for_a_redirect() -> Result<()> {
    let scene = Scene::new()?;
    let v4 = scene.ns.ip("route add 192.0.2.0/24 encap ip id 7 dst 10.0.0.9 dev up0").is_ok();
    let v6 = scene.ns.ip("-6 route add 2001:db8::/64 encap ip6 id 7 dst fd00:0::9 dev up0").is_ok();
    let seg6 =
        scene.ns.ip("-6 route add 2001:db8:1::/64 encap seg6 mode encap segs fd00:0::9 dev up0").is_ok();
    require!(v4 || v6 || seg6, "the kernel has no lightweight tunnels");
    for (made, local, peer) in [
        (v4, "10.0.0.1", "192.0.2.1"),
        (v6, "fd00:0::1", "2001:db8::1"),
        (seg6, "fd00:0::1", "2001:db8:1::1"),
    ] {
        let exit = scene.exit(local, peer);
        ensure!(!made || matches!(exit, Err(Unroutable::Encapsulated)), "{peer}: {exit:?}");
    }
    Ok(())
}

#[test]
fn a_device_is_admitted_that_has_a_route_as_specific_as_the_best() -> Result<()> {
    let scene = Scene::new()?;
    scene.ip(&[
        "route add default via 10.0.0.9 metric 100",
        "route add 192.0.2.0/24 via 10.0.1.9",
        "-6 route add default via fd00:0::9 metric 100",
        "-6 route add 2001:db8::/64 via fd00:1::9",
    ])?;
    for (local, near, specific, other) in [
        ("10.0.0.1", "10.0.0.2", "192.0.2.1", "203.0.113.1"),
        ("fd00:0::1", "fd00:0::2", "2001:db8::1", "2001:db8:1::1"),
    ] {
        ensure!(scene.admits(near, local) == [true, false], "{near}: on the link");
        // A default route by up0 does not admit whom a prefix leads elsewhere to.
        ensure!(scene.admits(specific, local) == [false, true], "{specific}: a prefix");
        ensure!(scene.admits(other, local) == [true, false], "{other}: the default route");
        // This host's own addresses come by no wire.
        ensure!(scene.admits(local, local) == [false; 2], "{local}: its own");
    }
    scene.ip(&[
        "route add default via 10.0.1.9 metric 200",
        "-6 route add default via fd00:1::9 metric 200",
    ])?;
    for (local, specific, other) in
        [("10.0.0.1", "192.0.2.1", "203.0.113.1"), ("fd00:0::1", "2001:db8::1", "2001:db8:1::1")]
    {
        ensure!(scene.admits(other, local) == [true; 2], "{other}: a second default route");
        ensure!(scene.admits(specific, local) == [false, true], "{specific}: a prefix");
    }
    Ok(())
}

#[test]
fn every_path_of_a_route_is_admitted() -> Result<()> {
    let scene = Scene::new()?;
    scene.ip(&[
        "route add 192.0.2.0/24 nexthop via 10.0.0.9 nexthop via 10.0.1.9",
        "-6 route add 2001:db8::/64 nexthop via fd00:0::9 nexthop via fd00:1::9",
        "nexthop add id 1 via 10.0.0.9 dev up0",
        "nexthop add id 2 via 10.0.1.9 dev up1",
        "nexthop add id 3 group 1/2",
        "route add 198.51.100.0/24 nhid 3",
        "nexthop add id 4 via fd00:0::9 dev up0",
        "nexthop add id 5 via fd00:1::9 dev up1",
        "nexthop add id 6 group 4/5",
        "-6 route add 2001:db8:1::/64 nhid 6",
    ])?;
    for compatible in ["1", "0"] {
        // Whether routes by next-hop objects also tell what those are.
        scene.ns.sysctl("net/ipv4/nexthop_compat_mode", compatible)?;
        for (local, peer) in [
            ("10.0.0.1", "192.0.2.1"),
            ("10.0.0.1", "198.51.100.1"),
            ("fd00:0::1", "2001:db8::1"),
            ("fd00:0::1", "2001:db8:1::1"),
        ] {
            ensure!(scene.admits(peer, local) == [true; 2], "{peer}: {:?}", scene.admits(peer, local));
            let exit = scene.exit(local, peer)?;
            ensure!(["up0", "up1"].map(|name| scene.device(name)).contains(&exit.device), "{exit:?}");
        }
    }
    Ok(())
}

#[test]
fn of_the_loopback_device_this_hosts_own_addresses_are_admitted_and_no_others() -> Result<()> {
    let scene = Scene::new()?;
    scene.ip(&["route add default via 10.0.0.9", "-6 route add default via fd00:0::9"])?;
    let admits = |peer: &str, local: &str| {
        scene.routes.admits(peer.parse().unwrap(), local.parse().unwrap(), 0, 1).unwrap()
    };
    for (peer, local) in [("127.0.0.1", "127.0.0.1"), ("10.0.1.1", "10.0.0.1"), ("fd00:1::1", "fd00:0::1")] {
        ensure!(admits(peer, local), "{peer}");
    }
    for (peer, local) in [("10.0.0.2", "10.0.0.1"), ("192.0.2.1", "10.0.0.1"), ("fd00:0::2", "fd00:0::1")] {
        ensure!(!admits(peer, local), "{peer}");
    }
    Ok(())
}

#[test]
fn of_a_device_in_a_vrf_its_routes_count() -> Result<()> {
    let scene = Scene::new()?;
    require!(scene.ns.ip("link add red type vrf table 10").is_ok(), "the kernel has no VRF");
    scene.ip(&[
        "link set red up",
        "link set up1 master red",
        "route add default via 10.0.0.9",
        "route add default via 10.0.1.9 table 10",
    ])?;
    ensure!(scene.admits("192.0.2.1", "10.0.1.1") == [true, true]);
    let [up0, up1, red] = ["up0", "up1", "red"].map(|name| scene.device(name));
    let exit = |vrf| {
        let [local, peer] = ["10.0.1.1:443", "192.0.2.1:40000"].map(|end| end.parse().unwrap());
        scene.routes.exit(local, peer, 0, vrf)
    };
    for _ in 0..2 {
        // The second time as it is remembered.
        ensure!(exit(Some(red))? == Exit { device: up1, is_local: false }, "{:?}", exit(Some(red)));
        ensure!(exit(None)?.device == up0, "{:?}", exit(None));
    }
    scene.ip(&["route del default via 10.0.1.9 table 10"])?;
    ensure!(scene.admits("192.0.2.1", "10.0.1.1") == [true, false]);
    Ok(())
}

#[test]
fn a_device_that_is_gone_admits_nobody() -> Result<()> {
    let scene = Scene::new()?;
    let up1 = scene.device("up1");
    scene.ip(&["route add default via 10.0.0.9", "link del up1"])?;
    ensure!(!scene.routes.admits("192.0.2.1".parse()?, "10.0.0.1".parse()?, 0, up1)?);
    Ok(())
}

#[test]
fn threads_that_ask_at_once_get_their_own_answers() -> Result<()> {
    let scene = Scene::new()?;
    scene.ip(&["route add 192.0.2.0/24 via 10.0.0.9", "route add 198.51.100.0/24 via 10.0.1.9"])?;
    let [up0, up1] = ["up0", "up1"].map(|name| scene.device(name));
    thread::scope(|scope| {
        for (peer, device) in [("192.0.2.1", up0), ("198.51.100.1", up1)].repeat(2) {
            let scene = &scene;
            scope.spawn(move || {
                for _ in 0..1000 {
                    assert_eq!(scene.exit("10.0.0.1", peer).unwrap().device, device);
                }
            });
        }
    });
    Ok(())
}

#[test]
fn whatever_may_move_a_route_is_announced() -> Result<()> {
    let scene = Scene::new()?;
    let watch = scene.ns.run(|| Watch::new().unwrap());
    for line in [
        "route add 192.0.2.0/24 via 10.0.0.9",
        "route change 192.0.2.0/24 via 10.0.1.9",
        "route del 192.0.2.0/24",
        "-6 route add 2001:db8::/64 via fd00:0::9",
        "rule add from 10.0.0.1 lookup 100",
        "-6 rule add fwmark 7 lookup 100",
        "addr add 10.0.5.1/24 dev up0",
        "-6 addr del fd00:1::1/64 dev up1",
        "nexthop add id 1 via 10.0.0.9 dev up0",
        "nexthop replace id 1 via 10.0.1.9 dev up1",
    ] {
        watch.changed()?;
        scene.ns.ip(line)?;
        let changes = watch.changed()?;
        ensure!(changes.routes && !changes.devices, "{line}: {changes:?}");
        ensure!(changes.rules == line.contains("rule"), "{line}: {changes:?}");
    }
    // IPv4 says nothing of the routes that go with a device.
    scene.ns.ip("link set up1 down")?;
    let changes = watch.changed()?;
    ensure!(changes.routes && changes.devices && !changes.rules, "{changes:?}");
    Ok(())
}
