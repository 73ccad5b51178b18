//! A gateway that finds thousands of connections in the maps, more than it reads at a time, and some that are not whole.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use lb_common::packet::{CONNECTIONS, FLOWS, Flow, HANDOVERS, Handover, Record, Tuple};
use snisplice_tests::left::{Belonging, Left, LeftMaps, SENT, keys, route_to_ends};
use snisplice_tests::topology::{Triangle, server};
use snisplice_tests::{Launch, eventually, require};

use crate::PACKET;
use crate::ends::{Opening, SERVER_PORT, SNI};
use crate::scene::Scene;

const OPEN: u32 = 3000;

/// Of each other kind.
const OTHERS: u32 = 200;

/// A gateway that has been killed, and has left nothing.
fn killed(route: &str) -> Result<Scene> {
    let net = Triangle::new()?;
    route_to_ends(&net)?;
    // With two flows each the connections of this module fill more than half of it: what is closed lingers for five seconds.
    let gateway = "[gateway]\nflow_table = 8192\n";
    let mut scene = Scene::within(net, Opening::default(), gateway, route, |_| Ok(Launch::default()))?;
    scene.gateway.kill()?;
    Ok(scene)
}

fn leave(scene: &Scene, kinds: &[(Left, u32)]) -> Result<()> {
    let server = server(SERVER_PORT);
    let belonging = Belonging { listener: "databases", port: 443, route: "app1", server, sni: SNI };
    let mut maps = LeftMaps::open(&scene.gateway.pins()?, &scene.net, belonging)?;
    let mut first = 0;
    for (kind, count) in kinds {
        maps.leave(first..first + count, *kind)?;
        first += count;
    }
    Ok(())
}

/// How many flows, records and handovers there are.
fn in_maps(scene: &Scene) -> Result<[usize; 3]> {
    let pins = scene.gateway.pins()?;
    Ok([
        keys::<Tuple, Flow>(&pins, FLOWS)?.len(),
        keys::<u64, Record>(&pins, CONNECTIONS)?.len(),
        keys::<u64, Handover>(&pins, HANDOVERS)?.len(),
    ])
}

#[test]
fn of_thousands_of_connections_none_is_lost_and_nothing_is_left_behind() -> Result<()> {
    require!(PACKET, "only the packet tier outlives the process");
    let mut scene = killed("max_age = '1h'")?;
    let others = [Left::HandedOver, Left::Closed, Left::OneFlow, Left::NoFlow];
    let kinds: Vec<_> = [(Left::Open, OPEN)].into_iter().chain(others.map(|kind| (kind, OTHERS))).collect();
    leave(&scene, &kinds)?;
    ensure!(in_maps(&scene)? == [2 * OPEN + 5 * OTHERS, OPEN + 3 * OTHERS, OTHERS].map(|n| n as usize));
    scene.gateway.start_again()?;

    let live = scene.gateway.connections()?;
    ensure!(live.len() == OPEN as usize, "{} are open", live.len());
    for line in &live {
        let told = line["sni"] == SNI && line["route"] == "app1" && line["pool"] == "app1";
        ensure!(told && line["server"] == server(SERVER_PORT).to_string(), "{line}");
        ensure!(line["bytes_in"] == SENT && line["bytes_out"] == SENT && line["tier"] == "packet", "{line}");
    }
    let status = scene.gateway.status()?;
    ensure!(status.tier("packet", "active") == u64::from(OPEN), "{status:?}");
    // What was not whole is gone. What was closed stays for its last packets.
    ensure!(in_maps(&scene)?[1..] == [OPEN as usize, 0], "{:?}", in_maps(&scene)?);
    eventually("what was closed to go", || {
        (in_maps(&scene).ok()? == [2 * OPEN, OPEN, 0].map(|n| n as usize)).then_some(())
    })
    .with_context(|| format!("{:?}", in_maps(&scene)))?;

    // The next one finds that each of them has been silent for too long.
    scene.gateway.kill()?;
    scene.reconfigure(|config| config.replace(r#"max_age = "1h""#, "idle_timeout = '1s'"))?;
    scene.gateway.start_again()?;
    eventually("all to end", || (in_maps(&scene).ok()? == [0; 3]).then_some(()))
        .with_context(|| format!("{:?}", in_maps(&scene)))?;
    let mut reasons = BTreeMap::new();
    for line in scene.gateway.wait_access_log((OPEN + OTHERS) as usize)? {
        let reason = line["close_reason"].as_str().unwrap_or_default().to_owned();
        *reasons.entry(reason).or_insert(0) += 1;
    }
    let expected = BTreeMap::from([("idle_timeout".to_owned(), OPEN), ("shutdown".to_owned(), OTHERS)]);
    ensure!(reasons == expected, "{reasons:?}");
    // There is room in the table, and a slot.
    let _ends = scene.connection()?;
    scene.spliced(1).map(drop)
}

/// Nothing but a changed setting makes anything due of those that are silent.
#[test]
fn when_the_systems_keepalive_changes_silent_connections_are_judged_anew() -> Result<()> {
    require!(PACKET, "only the packet tier sends keepalive probes itself");
    let mut scene = killed("")?;
    leave(&scene, &[(Left::Open, OPEN)])?;
    scene.gateway.start_again()?;
    let open = |scene: &Scene| Ok::<_, anyhow::Error>(scene.gateway.status()?.tier("packet", "active"));
    // The first sweeps have looked at all of them.
    std::thread::sleep(std::time::Duration::from_secs(3));
    ensure!(open(&scene)? == u64::from(OPEN));
    for (name, value) in [("time", "1"), ("intvl", "1"), ("probes", "1")] {
        scene.net.gateway.sysctl(&format!("net/ipv4/tcp_keepalive_{name}"), value)?;
    }
    // Nobody answers.
    eventually("all to be given up", || (open(&scene).ok()? == 0).then_some(()))?;
    let log = scene.gateway.wait_access_log(OPEN as usize)?;
    ensure!(log.iter().all(|line| line["close_reason"].as_str().is_some_and(|why| why.ends_with("_reset"))));
    ensure!(in_maps(&scene)? == [0; 3], "{:?}", in_maps(&scene)?);
    Ok(())
}
