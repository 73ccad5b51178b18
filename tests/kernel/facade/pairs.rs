//! The far ends of veth pairs, by rtnetlink, against what `ip` has made there.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::thread;

use anyhow::{Context, Result, ensure};
use caps::{CapSet, Capability, CapsHashSet};
use snisplice::kernel::devices::devices;
use snisplice::kernel::pairs::PairEnds;
use snisplice_tests::{NetNs, eventually};

/// A host and a pod, joined by `pod0` here and `eth0` there, which has an address of each family.
struct Scene {
    host: NetNs,
    pod: NetNs,
    ends: PairEnds,
}

const ADDRESSES: [&str; 2] = ["10.0.2.2", "fd00:2::2"];

impl Scene {
    fn new() -> Result<Self> {
        let (host, pod) = (NetNs::new("host")?, NetNs::new("pod")?);
        host.link("pod0", &pod, "eth0")?;
        pod.address("eth0", "10.0.2.2/24")?;
        pod.address("eth0", "fd00:2::2/64")?;
        let ends = host.run(PairEnds::open)?;
        let scene = Self { host, pod, ends };
        scene.becomes("pod0", [true; 2])?;
        Ok(scene)
    }

    /// Whether the far end of a device has the pod's IPv4 address, and the IPv6 one.
    fn holds(&self, name: &str) -> [bool; 2] {
        ADDRESSES.map(|address| self.holds_address(name, address))
    }

    fn holds_address(&self, name: &str, address: &str) -> bool {
        self.ends.holds(self.index(name), address.parse::<IpAddr>().unwrap())
    }

    fn index(&self, name: &str) -> u32 {
        let devices = self.host.run(|| devices().unwrap());
        devices.iter().find(|device| device.name == name).unwrap_or_else(|| panic!("no {name}")).index
    }

    /// Changes the pod, and waits until that is noticed: what was remembered before must go.
    fn change(&self, line: &str, expected: [bool; 2]) -> Result<()> {
        self.holds("pod0");
        self.pod.ip(line)?;
        self.becomes("pod0", expected).context(line.to_owned())
    }

    /// The kernel puts IPv6 addresses into use a moment after they were given.
    fn becomes(&self, name: &str, expected: [bool; 2]) -> Result<()> {
        eventually(&format!("{name} to hold {expected:?}"), || {
            self.ends.changed().ok()?;
            (self.holds(name) == expected).then_some(())
        })
        .with_context(|| format!("it holds {:?}", self.holds(name)))
    }
}

#[test]
fn a_pods_device_holds_its_addresses_and_no_others() -> Result<()> {
    let scene = Scene::new()?;
    for round in 0..2 {
        ensure!(scene.holds("pod0") == [true; 2], "round {round}");
        // As a socket that is bound to :: sees it.
        ensure!(scene.holds_address("pod0", "::ffff:10.0.2.2"), "round {round}");
        for other in ["10.0.2.3", "fd00:2::3", "0.0.0.0", "::", "fe80::1", "127.0.0.1"] {
            ensure!(!scene.holds_address("pod0", other), "{other}");
        }
    }
    // No pair: the loopback device, a bridge, and one that does not exist.
    scene.host.ip("link add br0 type bridge")?;
    ensure!(scene.holds("lo") == [false; 2] && scene.holds("br0") == [false; 2]);
    ensure!(!scene.ends.holds(9999, ADDRESSES[0].parse()?));
    Ok(())
}

#[test]
fn an_address_that_goes_or_comes_is_noticed() -> Result<()> {
    let scene = Scene::new()?;
    scene.change("addr del 10.0.2.2/24 dev eth0", [false, true])?;
    scene.change("addr del fd00:2::2/64 dev eth0", [false, false])?;
    scene.change("addr add 10.0.2.3/24 dev eth0", [false, false])?;
    scene.change("addr add 10.0.2.2/24 dev eth0", [true, false])?;
    scene.change("addr add fd00:2::2/64 dev eth0 nodad", [true, true])?;
    // An address of the pod, but of another of its devices.
    scene.change("addr del 10.0.2.2/24 dev eth0", [false, true])?;
    scene.change("addr add 10.0.2.2/32 dev lo", [false, true])?;
    Ok(())
}

#[test]
fn an_address_that_may_be_somebody_elses_is_not_held_yet() -> Result<()> {
    let scene = Scene::new()?;
    scene.change("addr del fd00:2::2/64 dev eth0", [true, false])?;
    // Asks for a second whether anybody has it.
    scene.pod.sysctl("net/ipv6/conf/eth0/accept_dad", "1")?;
    scene.pod.sysctl("net/ipv6/conf/eth0/dad_transmits", "3")?;
    scene.change("addr add fd00:2::2/64 dev eth0", [true, false])?;
    scene.becomes("pod0", [true; 2]).context("when it is certain")
}

#[test]
fn a_device_that_becomes_a_part_of_another_is_no_end() -> Result<()> {
    let scene = Scene::new()?;
    // The bridge does not have the device yet.
    scene.change("link add br0 type bridge", [true; 2])?;
    // A bridge's port, though it has the addresses.
    scene.change("link set eth0 master br0", [false; 2])?;
    scene.change("link set eth0 nomaster", [true; 2])?;
    // It is down.
    scene.change("link set eth0 down", [false; 2])?;
    Ok(())
}

#[test]
fn a_pair_within_one_namespace_has_no_far_end_until_one_moves_away() -> Result<()> {
    let scene = Scene::new()?;
    scene.host.ip("link add near0 type veth peer name near1")?;
    for device in ["near0", "near1"] {
        scene.host.ip(&format!("link set {device} up"))?;
    }
    scene.host.address("near1", "10.0.2.2/24")?;
    ensure!(scene.holds("near0") == [false; 2]);
    scene.host.ip(&format!("link set near1 netns {}", scene.pod.path()))?;
    scene.pod.ip("addr del 10.0.2.2/24 dev eth0")?;
    scene.pod.address("near1", "10.0.2.2/32")?;
    scene.pod.ip("link set near1 up")?;
    scene.becomes("near0", [true, false])?;
    scene.becomes("pod0", [false, true])
}

#[test]
fn a_pod_that_comes_back_behind_another_device_is_found_there() -> Result<()> {
    let scene = Scene::new()?;
    let next = NetNs::new("next")?;
    scene.host.ip("link del pod0")?;
    scene.host.link("pod0", &next, "eth0")?;
    scene.becomes("pod0", [false; 2]).context("a device made anew under its name, without addresses")?;
    next.address("eth0", "10.0.2.2/24")?;
    scene.becomes("pod0", [true, false])
}

/// Runs it on a thread that has only the capabilities that a gateway keeps after its start.
fn with_few_rights<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let run = || {
        caps::set(None, CapSet::Effective, &CapsHashSet::from([Capability::CAP_NET_ADMIN])).unwrap();
        work()
    };
    thread::scope(|scope| scope.spawn(run).join().unwrap())
}

#[test]
fn what_was_opened_with_all_rights_goes_on_with_those_that_are_kept() -> Result<()> {
    let scene = Scene::new()?;
    scene.ends.changed()?;
    scene.host.ip("link set pod0 mtu 1400")?;
    // Asked anew, and followed.
    let holds = |index| ADDRESSES.map(|address| scene.ends.holds(index, address.parse().unwrap()));
    let index = scene.index("pod0");
    with_few_rights(|| {
        ensure!(scene.ends.changed()? && holds(index) == [true; 2]);
        Ok(())
    })?;
    scene.pod.ip("addr del 10.0.2.2/24 dev eth0")?;
    with_few_rights(|| {
        ensure!(scene.ends.changed()? && holds(index) == [false, true]);
        Ok(())
    })
}

#[test]
fn without_the_right_to_hear_of_other_namespaces_nothing_is_told() -> Result<()> {
    let ns = NetNs::new("deaf")?;
    let opened = ns.run(|| with_few_rights(|| PairEnds::open().map(drop)));
    let error = opened.expect_err("it takes CAP_NET_BROADCAST");
    ensure!(error.kind() == ErrorKind::PermissionDenied, "{error:?}");
    Ok(())
}
