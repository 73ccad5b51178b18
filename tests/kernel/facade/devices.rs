//! Network devices by rtnetlink, against what `ip` has made.

use anyhow::Result;
use snisplice::config::Interfaces;
use snisplice::kernel::devices::{Changes, Device, LinkLayer, Watch, devices, relevant};
use snisplice_tests::NetNs;

fn list(ns: &NetNs) -> Vec<Device> {
    ns.run(|| devices().unwrap())
}

fn find(ns: &NetNs, name: &str) -> Device {
    list(ns).into_iter().find(|device| device.name == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn a_device_is_described_as_ip_made_it() -> Result<()> {
    let (ns, other) = (NetNs::new("here")?, NetNs::new("there")?);
    ns.link("far0", &other, "far1")?;
    ns.ip("link add near0 type veth peer name near1")?;
    ns.ip("link add br0 type bridge")?;
    ns.ip("link set near1 master br0")?;
    ns.ip("tuntap add tun0 mode tun")?;

    let lo = find(&ns, "lo");
    assert_eq!((lo.index, lo.link_layer, lo.is_up, lo.kind), (1, LinkLayer::Ethernet, true, None));
    let far = find(&ns, "far0");
    assert_eq!((far.kind.as_deref(), far.is_up), (Some("veth"), true));
    let near = find(&ns, "near0");
    assert_eq!((near.is_up, near.master), (false, None));
    assert_eq!(find(&ns, "near1").master, Some(find(&ns, "br0").index));
    assert_eq!(find(&ns, "tun0").link_layer, LinkLayer::Bare);

    let all = list(&ns);
    let mut names: Vec<_> =
        relevant(&all, &Interfaces::Auto).into_iter().map(|device| device.name.as_str()).collect();
    // A kernel may put tunnel devices of its own into every namespace.
    names.retain(|name| ["lo", "far0", "near0", "near1", "br0", "tun0"].contains(name));
    names.sort_unstable();
    assert_eq!(names, ["br0", "far0", "lo", "near0", "tun0"]);
    Ok(())
}

#[test]
fn a_tunnel_in_external_mode_is_told_from_one_with_an_other_end() -> Result<()> {
    let ns = NetNs::new("tunnels")?;
    for (name, options) in [
        ("vx", "type vxlan id 7 remote 10.0.0.1 dstport 4789"),
        ("vxe", "type vxlan external dstport 4790"),
        ("ge", "type geneve id 7 remote 10.0.0.1 dstport 6081"),
        ("gee", "type geneve external dstport 6082"),
    ] {
        // Not every kernel has every driver.
        if ns.ip(&format!("link add {name} {options}")).is_ok() {
            assert_eq!(find(&ns, name).is_external, name.len() == 3, "{name}");
        }
    }
    assert!(!find(&ns, "lo").is_external);
    Ok(())
}

#[test]
fn a_list_longer_than_one_datagram_is_whole() -> Result<()> {
    let ns = NetNs::new("many")?;
    let before = list(&ns).len();
    for i in 0..60 {
        ns.ip(&format!("link add v{i} type veth peer name w{i}"))?;
    }
    assert_eq!(list(&ns).len(), before + 120);
    Ok(())
}

#[test]
fn a_change_is_announced_once() -> Result<()> {
    let ns = NetNs::new("watched")?;
    let watch = ns.run(|| Watch::new().unwrap());
    assert_eq!(watch.changed()?, Changes::default());
    // The kernel tells before it answers who asked for the change.
    ns.ip("link add br0 type bridge")?;
    assert!(watch.changed()?.devices);
    assert_eq!(watch.changed()?, Changes::default());
    ns.ip("link set br0 up")?;
    assert!(watch.changed()?.devices);
    // More than the socket's buffer holds.
    for _ in 0..150 {
        ns.ip("link set br0 down")?;
        ns.ip("link set br0 up")?;
    }
    assert!(watch.changed()?.devices);
    assert_eq!(watch.changed()?, Changes::default());
    Ok(())
}
