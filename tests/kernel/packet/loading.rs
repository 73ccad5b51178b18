//! A gateway that serves while the kernel still verifies its programs.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use caps::Capability;
use nix::sys::signal::Signal;
use serde_json::Value;
use snisplice_tests::process::checked_output;
use snisplice_tests::pump::Duplex;
use snisplice_tests::tls::client_hello;
use snisplice_tests::{Gateway, Launch, TempDir, eventually, require};

use crate::PACKET;
use crate::case::Expect;
use crate::ends::{Opening, PATIENCE, SNI};
use crate::scene::Scene;
use crate::strangers::no_sockets;

/// A gateway that has started and may not load its programs yet.
fn held() -> Result<Scene> {
    Scene::launched(Opening::default(), "", "", |_| Ok(Launch { hold_loads: true, ..Launch::default() }))
}

fn state(gateway: &Gateway) -> Result<Value> {
    Ok(gateway.status()?.0["packet"]["state"].clone())
}

/// What `connections` has of a client, once its bytes flow.
fn line_of(scene: &Scene, client: &Duplex) -> Result<Value> {
    let address = client.socket.local_addr()?.to_string();
    eventually("the connection to be in a tier", || {
        let live = scene.gateway.connections().ok()?;
        live.into_iter().find(|line| line["client"] == address && line["tier"].is_string())
    })
}

/// Which programs for devices with an Ethernet header are pinned.
fn programs(gateway: &Gateway) -> Result<Vec<String>> {
    let names =
        fs::read_dir(gateway.pins()?)?.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
    let mut names = names.collect::<Result<Vec<_>>>()?;
    names.retain(|name| name.starts_with("packet_ethernet-"));
    Ok(names)
}

/// The names of a process's threads, each with its permitted capabilities.
fn privileges(gateway: &Gateway) -> Result<Vec<(String, u64)>> {
    let threads = fs::read_dir(format!("/proc/{}/task", gateway.process.pid()))?;
    let of_thread = |text: String| {
        let value = |key| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let capabilities = u64::from_str_radix(value("CapPrm:")?, 16).ok()?;
        Some((value("Name:")?.to_owned(), capabilities))
    };
    // One may have ended meanwhile.
    let texts = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    texts.map(|text| of_thread(text).context("a thread's status")).collect()
}

#[test]
fn who_comes_before_the_programs_are_verified_is_served_and_who_comes_after_is_in_this_tier() -> Result<()> {
    require!(PACKET, "only the packet tier's programs take time");
    let files = TempDir::new()?;
    let manager = UnixDatagram::bind(files.join("notify"))?;
    manager.set_read_timeout(Some(PATIENCE))?;
    let launch = Launch { hold_loads: true, notify: Some(files.join("notify")), ..Launch::default() };
    let admin = "[gateway]\nadmin = '127.0.0.1:9900'\n";
    let mut scene = Scene::launched(Opening::default(), admin, "", |_| Ok(launch))?;
    let mut told = [0; 64];
    let length = manager.recv(&mut told)?;
    ensure!(&told[..length] == b"READY=1\n", "the service manager was told {told:?}");
    ensure!(state(&scene.gateway)? == "loading");
    let text = String::from_utf8(scene.gateway.cli(["status"])?.stdout)?;
    ensure!(text.contains("The packet tier is loading its kernel programs."), "{text}");
    let ready = || {
        let mut curl = scene.net.gateway.command("curl");
        checked_output(curl.args(["--fail", "--silent", "http://127.0.0.1:9900/readyz"]))
    };
    let told = "the packet tier is loading: until it is there, connections use the next tier";
    ensure!(ready()? == format!("ready\n{told}\n"));

    let (mut early, mut early_server, _) = scene.connection()?;
    Expect::Copy("packet_loading").check(&line_of(&scene, &early)?)?;
    // Has shaken hands, and says later what it wants.
    let config = fs::read_to_string(scene.gateway.config_file())?;
    let patient = config.replace("protocol = ", "hello_timeout = '1m'\nprotocol = ");
    scene.gateway.write_config_verbatim(&patient)?;
    scene.gateway.reload()?;
    let mut slow = scene.opening.socket.dial(&scene.net.client, scene.opening.target())?;
    eventually("the gateway to have accepted both", || {
        (scene.gateway.status().ok()?.listener("databases", "total") == 2).then_some(())
    })?;
    scene.gateway.let_load()?;
    ensure!(state(&scene.gateway)? == "ready");
    ensure!(ready()? == "ready\n");

    let (late, _late_server, _) = scene.connection()?;
    Expect::Packet.check(&line_of(&scene, &late)?)?;
    let hello = client_hello(SNI, &[]);
    slow.write_all(&hello)?;
    let (slow, _slow_server, _) = scene.connected(slow.try_into()?, hello.len() as u64)?;
    Expect::Copy("packet_loading").check(&line_of(&scene, &slow)?)?;
    early.writer.write_all(b"still")?;
    early_server.read_exact(&mut [0; 5])?;
    let status = scene.gateway.status()?;
    ensure!(status.number("/tier_fallbacks/packet_loading") == 2, "{status:?}");
    Ok(())
}

#[test]
fn while_programs_are_loaded_only_that_thread_may_do_so_and_afterwards_nobody() -> Result<()> {
    require!(PACKET, "only the packet tier loads programs beside the start");
    let of = |capabilities: &[Capability]| capabilities.iter().map(Capability::bitmask).sum::<u64>();
    let kept = of(&[Capability::CAP_NET_BIND_SERVICE, Capability::CAP_NET_ADMIN, Capability::CAP_BPF]);
    let loading = kept | of(&[Capability::CAP_PERFMON]);
    let mut scene = held()?;
    eventually("the loading thread to have no more than it needs", || {
        let threads = privileges(&scene.gateway).ok()?;
        let (loaders, others): (Vec<_>, Vec<_>) = threads.into_iter().partition(|(name, _)| name == "loader");
        let all = |threads: &[(String, u64)], mask: u64| threads.iter().all(|(_, has)| has & !mask == 0);
        (loaders.len() == 1 && all(&loaders, loading) && all(&others, kept)).then_some(())
    })
    .with_context(|| format!("{:x?}", privileges(&scene.gateway)))?;
    scene.gateway.let_load()?;
    eventually("the loading thread to end", || {
        privileges(&scene.gateway).ok()?.iter().all(|(_, has)| has & !kept == 0).then_some(())
    })
    .with_context(|| format!("{:x?}", privileges(&scene.gateway)))
}

#[test]
fn programs_that_the_kernel_does_not_take_leave_a_gateway_without_this_tier() -> Result<()> {
    require!(PACKET, "only the packet tier loads programs beside the start");
    let mut scene = held()?;
    scene.gateway.refuse_load()?;
    ensure!(state(&scene.gateway)? == "unavailable");
    let (client, _server, _) = scene.connection()?;
    Expect::Copy("packet_unavailable").check(&line_of(&scene, &client)?)?;
    let said = scene.gateway.process.output();
    ensure!(said.contains("no packet tier: the kernel's verifier rejects the program"), "{said}");
    ensure!(said.contains("it requires tc (not in this kernel): a kernel with CONFIG_BPF_SYSCALL"), "{said}");
    Ok(())
}

#[test]
fn a_gateway_that_may_not_have_this_tier_says_what_it_lacks_as_doctor_does() -> Result<()> {
    require!(PACKET, "only the packet tier requires this");
    for (without, lack) in [
        (
            vec![Capability::CAP_NET_RAW],
            "raw sockets (not permitted): run as root, or with CAP_NET_RAW, CAP_NET_ADMIN",
        ),
        (
            // The kernel takes the second for the first.
            vec![Capability::CAP_PERFMON, Capability::CAP_SYS_ADMIN],
            "packet pointers (not permitted): run as root, or with CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON",
        ),
    ] {
        let launch = Launch { without, ..Launch::default() };
        let scene = Scene::launched(Opening::default(), "", "", |_| Ok(launch))?;
        let (client, _server, _) = scene.connection()?;
        Expect::Copy("packet_unavailable").check(&line_of(&scene, &client)?)?;
        let said = scene.gateway.process.output();
        ensure!(
            said.contains("no packet tier: ") && said.contains(&format!("; it requires {lack}")),
            "{said}"
        );

        let doctor = String::from_utf8(scene.gateway.cli(["doctor"])?.stdout)?;
        let verdict = format!("requires {lack}");
        let is_verdict = |line: &str| line.starts_with("missing  packet ") && line.ends_with(&verdict);
        ensure!(doctor.lines().any(is_verdict), "{doctor}");
    }
    Ok(())
}

#[test]
fn a_listener_that_a_reload_adds_while_programs_are_loaded_has_this_tier_afterwards() -> Result<()> {
    let mut scene = held()?;
    let config = fs::read_to_string(scene.gateway.config_file())?;
    let port = scene.opening.target().port();
    let config = config.replace(&format!("0.0.0.0:{port}"), "0.0.0.0:8443");
    scene.gateway.write_config_verbatim(&config)?;
    scene.gateway.reload()?;
    scene.gateway.let_load()?;
    let mut target = scene.opening.target();
    target.set_port(8443);
    let mut client = scene.opening.socket.dial(&scene.net.client, target)?;
    let hello = client_hello(SNI, &[]);
    client.write_all(&hello)?;
    let (client, _server, _) = scene.connected(client.try_into()?, hello.len() as u64)?;
    Expect::Packet.check(&line_of(&scene, &client)?)
}

#[test]
fn a_gateway_that_ends_while_its_programs_are_loaded_ends_at_once_and_the_next_one_loads_them() -> Result<()>
{
    for end in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut scene = held()?;
        scene.gateway.process.signal(end)?;
        let status = scene.gateway.process.wait(PATIENCE)?;
        ensure!(end == Signal::SIGKILL || status.success(), "{end}: {status}");
        scene.gateway.launch.hold_loads = false;
        scene.gateway.start_again()?;
        let (client, _server, _) = scene.connection()?;
        Expect::Packet.check(&line_of(&scene, &client)?).with_context(|| end.to_string())?;
    }
    Ok(())
}

/// They would sweep each other's flows.
#[test]
fn a_gateway_does_not_start_with_the_pins_of_one_that_still_loads() -> Result<()> {
    require!(PACKET, "only the packet tier has pins");
    let scene = held()?;
    let config: toml::Table = fs::read_to_string(scene.gateway.config_file())?.parse()?;
    let bpffs = &config["gateway"]["bpffs"];
    let other = format!(
        "[gateway]\nbpffs = {bpffs}\n[[listener]]\nname = 'l'\nbind = ['0.0.0.0:8443']\nprotocol = 'tcp'\n\
         [[route]]\nlistener = 'l'\nbackends = ['p']\n[[pool]]\nname = 'p'\nservers = ['192.0.2.1:1']\n"
    );
    let error = Gateway::start(&scene.net.gateway, &other).err().context("it has started")?;
    ensure!(format!("{error:#}").contains("another gateway uses the kernel programs"), "{error:#}");
    Ok(())
}

/// An upgrade: until the new programs are verified, the old ones serve, and nobody waits.
#[test]
fn programs_of_an_earlier_build_serve_until_this_one_has_its_own() -> Result<()> {
    require!(PACKET, "only the packet tier has programs");
    let mut scene = Scene::new(Opening::default(), "")?;
    let (mut old, mut old_server, _) = scene.connection()?;
    scene.spliced(1)?;
    // Killed in the middle of its handover, the gateway would leave a connection that is reset.
    no_sockets(&scene.net.gateway)?;
    scene.gateway.kill()?;
    let [current] =
        <[String; 1]>::try_from(programs(&scene.gateway)?).map_err(|names| anyhow::anyhow!("{names:?}"))?;
    let earlier = "packet_ethernet-0000000000000000";
    let pins = scene.gateway.pins()?;
    fs::rename(pins.join(&current), pins.join(earlier))?;

    scene.gateway.launch.hold_loads = true;
    scene.gateway.start_again()?;
    let (mut new, mut new_server, _) = scene.connection()?;
    scene.spliced(2)?;
    ensure!(programs(&scene.gateway)? == [earlier]);
    scene.gateway.let_load()?;
    eventually("the programs of this build", || {
        (programs(&scene.gateway).ok()? == [current.as_str()]).then_some(())
    })?;
    let replaced = "the kernel programs of an earlier version are replaced";
    eventually(replaced, || scene.gateway.process.stderr().contains(replaced).then_some(()))?;
    let (mut newest, mut newest_server, _) = scene.connection()?;
    scene.spliced(3)?;
    for (client, server) in
        [(&mut old, &mut old_server), (&mut new, &mut new_server), (&mut newest, &mut newest_server)]
    {
        client.writer.write_all(b"on")?;
        server.read_exact(&mut [0; 2])?;
    }
    Ok(())
}

/// Somebody has removed the pins of the programs: without any, nobody looks after the connections.
#[test]
fn connections_without_programs_are_looked_after_before_anybody_is_served() -> Result<()> {
    require!(PACKET, "only the packet tier has programs");
    let mut scene = Scene::new(Opening::default(), "")?;
    let (mut old, mut old_server, _) = scene.connection()?;
    scene.spliced(1)?;
    // Killed in the middle of its handover, the gateway would leave a connection that is reset.
    no_sockets(&scene.net.gateway)?;
    scene.gateway.kill()?;
    for program in programs(&scene.gateway)? {
        fs::remove_file(scene.gateway.pins()?.join(program))?;
    }
    scene.gateway.launch.hold_loads = true;
    scene.gateway.start_again()?;
    let (_new, _new_server, _) = scene.connection()?;
    scene.spliced(2)?;
    old.writer.write_all(b"on")?;
    old_server.set_read_timeout(Some(Duration::from_secs(30)))?;
    old_server.read_exact(&mut [0; 2])?;
    Ok(())
}
