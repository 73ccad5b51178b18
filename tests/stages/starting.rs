//! accept: where somebody else listens, and addresses that the machine does not have.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Barrier, atomic::AtomicUsize, atomic::Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::backend::{Backend, echo, naming};
use snisplice_tests::process::Process;
use snisplice_tests::tls::client_hello;
use snisplice_tests::{Gateway, NetNs, TempDir, eventually, topology};

use crate::config::{listener, one_route, passthrough, pool};
use crate::world::{World, answer, dial};

/// A real HAProxy that takes connections, with its configuration.
struct HaProxy {
    process: Process,
    _files: TempDir,
}

impl HaProxy {
    fn start(ns: &NetNs, bind: &str, port: u16) -> Result<Self> {
        let files = TempDir::new()?;
        let config = files.join("haproxy.cfg");
        fs::write(
            &config,
            format!(
                "defaults\n mode tcp\n timeout client 9s\n timeout server 9s\n timeout connect 9s\n\
                 frontend taken\n bind {bind}\n tcp-request connection reject\n"
            ),
        )?;
        let mut command = ns.command("haproxy");
        command.arg("-db").arg("-f").arg(config);
        let mut process = Process::spawn("haproxy", command)?;
        process.wait_listening(&[port])?;
        Ok(Self { process, _files: files })
    }

    /// What messages call it.
    fn name(&self) -> String {
        format!("haproxy (process {})", self.process.pid())
    }
}

/// One route, on these addresses.
fn bound(bind: &str) -> String {
    listener(&format!("bind = {bind}"))
        + &passthrough("app1", "app1.example.com")
        + &pool("app1", &[7001], "")
}

/// What a gateway says that does not start.
fn refusal(world: &World, config: &str) -> Result<String> {
    match world.gateway(config) {
        Ok(_) => anyhow::bail!("it has started"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

fn ask(world: &World, target: SocketAddr) -> Result<String> {
    let mut stream = dial(&world.net.client, target)?;
    stream.write_all(&client_hello("app1.example.com", &[]))?;
    Ok(answer(stream))
}

#[test]
fn where_haproxy_listens_no_gateway_starts() -> Result<()> {
    let world = World::new()?;
    for (theirs, at, ours) in [
        ("0.0.0.0:443", "0.0.0.0:443", "['0.0.0.0:443']"),
        ("10.0.1.1:443", "10.0.1.1:443", "['0.0.0.0:443']"),
        ("0.0.0.0:443", "0.0.0.0:443", "['10.0.1.1:443']"),
        (":::443 v4v6", "[::]:443", "['0.0.0.0:443']"),
        (":::443 v6only", "[::]:443", "['0.0.0.0:443', '[::]:443']"),
        ("fd00:1::1:443", "[fd00:1::1]:443", "['[::]:443']"),
        // Where the gateway is in its own way too.
        ("10.0.1.1:443", "10.0.1.1:443", "['10.0.2.1:443', '0.0.0.0:443']"),
        ("10.0.1.1:443", "10.0.1.1:443", "['0.0.0.0:443', '10.0.2.1:443']"),
    ] {
        let haproxy = HaProxy::start(&world.net.gateway, theirs, 443)?;
        let said = refusal(&world, &bound(ours)).with_context(|| format!("{theirs} and {ours}"))?;
        let expected = format!("already in use: {} listens on {at}", haproxy.name());
        ensure!(said.contains(&expected), "{theirs} and {ours}: {said}");
    }
    let haproxy = HaProxy::start(&world.net.gateway, "0.0.0.0:9900", 9900)?;
    let said = refusal(&world, &format!("[gateway]\nadmin = '127.0.0.1:9900'\n{}", one_route()))?;
    let expected = format!(
        "cannot listen on 127.0.0.1:9900: already in use: {} listens on 0.0.0.0:9900",
        haproxy.name()
    );
    ensure!(said.contains(&expected), "{said}");
    Ok(())
}

#[test]
fn who_listens_elsewhere_is_in_nobodys_way() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming("one"))?;
    let _v6 = HaProxy::start(&world.net.gateway, ":::443 v6only", 443)?;
    let _v4 = HaProxy::start(&world.net.gateway, "10.0.2.1:444", 444)?;
    let _gateway = world.gateway(&bound("['0.0.0.0:443', '10.0.1.1:443', '10.0.1.1:444']"))?;
    for _ in 0..8 {
        for port in [443, 444] {
            assert_eq!(ask(&world, topology::gateway(port))?, "one");
        }
    }
    Ok(())
}

#[test]
fn addresses_of_the_gateway_that_include_each_other_come_and_go_with_reloads() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming("one"))?;
    let all = "['0.0.0.0:443', '10.0.1.1:443', '[::]:443', '[fd00:1::1]:443']";
    let gateway = world.gateway(&bound(all))?;
    for bind in ["['10.0.1.1:443']", "['0.0.0.0:443']", "['10.0.1.1:443']", all] {
        // Taken out and in again at once: the workers may not have closed the sockets yet.
        for bind in ["['127.0.0.1:444']", bind] {
            gateway.write_config(&bound(bind))?;
            gateway.reload()?;
        }
        assert_eq!(ask(&world, topology::gateway(443))?, "one", "{bind}");
    }
    assert_eq!(ask(&world, topology::gateway6(443))?, "one");
    Ok(())
}

#[test]
fn a_second_gateway_on_the_same_address_is_refused_and_takes_no_connection() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming("one"))?;
    let _other = Backend::start(&world.net.server, 7002, naming("two"))?;
    let first = world.gateway(&bound("['0.0.0.0:443', '10.0.1.1:443']"))?;
    for bind in ["['0.0.0.0:443']", "['10.0.1.1:443']", "['10.0.2.1:443', '0.0.0.0:443']"] {
        let said = refusal(&world, &bound(bind).replace("7001", "7002"))?;
        let expected = format!("already in use: snisplice (process {})", first.process.pid());
        ensure!(said.contains(&expected), "{bind}: {said}");
    }
    for _ in 0..16 {
        assert_eq!(world.ask("app1.example.com")?, "one");
    }
    Ok(())
}

#[test]
fn of_gateways_that_start_at_once_no_two_serve() -> Result<()> {
    const GATEWAYS: usize = 6;
    let world = World::new()?;
    for bind in ["['0.0.0.0:443']", "['0.0.0.0:443', '10.0.1.1:443']"] {
        let (together, served) = (Barrier::new(GATEWAYS), AtomicUsize::new(0));
        let config = format!("[gateway]\nworkers = 2\n{}", bound(bind));
        thread::scope(|scope| {
            for _ in 0..GATEWAYS {
                scope.spawn(|| {
                    together.wait();
                    let started = world.gateway(&config);
                    served.fetch_add(usize::from(started.is_ok()), Ordering::Relaxed);
                    // They end with this thread.
                    together.wait();
                    if let Err(error) = started {
                        let said = format!("{error:#}");
                        assert!(said.contains("in use"), "{said}");
                    }
                });
            }
        });
        assert!(served.into_inner() <= 1, "{bind}");
    }
    Ok(())
}

#[test]
fn a_reload_with_an_address_that_is_taken_changes_nothing() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming("one"))?;
    let gateway = world.gateway(&bound("['10.0.1.1:443']"))?;
    let _haproxy = HaProxy::start(&world.net.gateway, "0.0.0.0:445", 445)?;
    gateway.write_config(&bound("['10.0.1.1:444', '10.0.1.1:445']"))?;
    let output = gateway.cli(["reload"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "it has reloaded");
    // The gateway has dropped the privileges that it takes to look into HAProxy.
    let expected = "cannot listen on 10.0.1.1:445: already in use: a program of user 0, which root sees by `ss -ltnp`, \
                    listens on 0.0.0.0:445";
    ensure!(said.contains(expected), "{said}");
    assert_eq!(ask(&world, topology::gateway(443))?, "one");
    // What could be had is given back.
    let _free = world.net.gateway.run(|| TcpListener::bind("10.0.1.1:444"))?;
    assert_eq!(gateway.status()?.number("/config_generation"), 1);
    Ok(())
}

#[test]
fn the_next_gateway_starts_while_the_last_one_drains() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let config = format!("[gateway]\ndrain_timeout = '10m'\n{}", one_route());
    let last = world.gateway(&config)?;
    let hello = client_hello("app1.example.com", &[]);
    let exchange = |stream: &mut std::net::TcpStream| -> Result<()> {
        use std::io::Read;
        stream.write_all(&hello)?;
        Ok(stream.read_exact(&mut vec![0; hello.len()])?)
    };
    let mut live = world.connect(443)?;
    exchange(&mut live)?;
    last.process.signal(Signal::SIGTERM)?;
    eventually("the listener to close", || world.connect(443).is_err().then_some(()))?;
    let next = world.gateway(&config)?;
    exchange(&mut world.connect(443)?)?;
    exchange(&mut live).context("of the last gateway")?;
    assert_eq!(next.status()?.listener("databases", "total"), 1);
    Ok(())
}

#[test]
fn an_address_that_the_machine_does_not_have_is_called_that() -> Result<()> {
    let world = World::new()?;
    for (address, sysctl) in
        [("10.0.1.9:443", "net.ipv4.ip_nonlocal_bind"), ("[fd00:1::9]:443", "net.ipv6.ip_nonlocal_bind")]
    {
        let config = bound(&format!("['{address}']"));
        let said = refusal(&world, &config)?;
        for part in [address, "does not have the address", "freebind = true", sysctl] {
            ensure!(said.contains(part), "{part} in {said}");
        }
        world.net.gateway.sysctl(&sysctl.replace('.', "/"), "1")?;
        world.gateway(&config).with_context(|| format!("with {sysctl}"))?;
    }
    Ok(())
}

#[test]
fn a_standby_gateway_serves_once_it_has_the_address() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming("one"))?;
    let config = bound("['10.0.1.9:443', '[fd00:1::9]:443']\nfreebind = true");
    let mut gateway = world.gateway(&config)?;
    for target in ["10.0.1.9:443", "[fd00:1::9]:443"] {
        let target: SocketAddr = target.parse()?;
        let ns = &world.net.gateway;
        let prefix = if target.is_ipv4() { "24" } else { "64" };
        for _ in 0..2 {
            ns.address("front", &format!("{}/{prefix}", target.ip()))?;
            let mut said = String::new();
            // The neighbour may still believe that nobody has the address.
            eventually("an answer", || {
                said = ask(&world, target).ok()?;
                Some(())
            })?;
            assert_eq!(said, "one", "{target}");
            // Its FIN would find nobody, and the gateway wait for it.
            eventually("the end of the connection", || gateway.connections().ok()?.is_empty().then_some(()))?;
            ns.ip(&format!("addr del {}/{prefix} dev front", target.ip()))?;
        }
    }
    assert!(gateway.process.is_running());
    gateway.process.signal(Signal::SIGTERM)?;
    assert!(gateway.process.wait(Duration::from_secs(30))?.success());
    // A second one is refused here too.
    let first = world.gateway(&config)?;
    let said = refusal(&world, &config)?;
    ensure!(said.contains(&format!("snisplice (process {})", first.process.pid())), "{said}");
    Ok(())
}

#[test]
fn a_reload_adds_an_address_that_is_still_to_come() -> Result<()> {
    let world = World::new()?;
    let gateway: Gateway = world.gateway(&one_route())?;
    for (freebind, succeeds) in [(false, false), (true, true)] {
        let more = format!(
            "[[listener]]\nname = 'more'\nbind = ['10.0.1.9:444']\nfreebind = {freebind}\nprotocol = 'tls'\n"
        );
        gateway.write_config(&(one_route() + &more))?;
        let output = gateway.cli(["reload"])?;
        assert_eq!(output.status.success(), succeeds, "{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
