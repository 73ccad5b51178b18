//! accept: under a service manager that holds the listening sockets and waits to be told.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use snisplice_tests::backend::{Backend, naming};
use snisplice_tests::tls::client_hello;
use snisplice_tests::{Gateway, Launch, NetNs, TempDir, topology};
use socket2::{Domain, Socket, Type};

use crate::config::{listener, passthrough, pool};
use crate::world::{World, answer, dial};

/// As systemd opens `ListenStream=ADDRESS`.
fn opened(ns: &NetNs, address: &str, only_v6: bool) -> Result<Socket> {
    let address: SocketAddr = address.parse()?;
    let socket = ns.run(|| Socket::new(Domain::for_address(address), Type::STREAM, None))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.bind(&address.into())?;
    socket.listen(128)?;
    Ok(socket)
}

fn inheriting(sockets: Vec<Socket>) -> Launch {
    Launch { inherited: Arc::new(sockets.into_iter().map(Into::into).collect()), ..Launch::default() }
}

fn config(bind: &str) -> String {
    "[gateway]\nworkers = 3\n".to_owned()
        + &listener(&format!("bind = {bind}"))
        + &passthrough("app1", "app1.example.com")
        + &pool("app1", &[7001], "")
}

fn ask(stream: &mut TcpStream) -> Result<()> {
    Ok(stream.write_all(&client_hello("app1.example.com", &[]))?)
}

#[test]
fn who_connects_while_no_gateway_runs_is_served_by_the_next_one() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming("one"))?;
    let sockets = [("0.0.0.0:443", true), ("[::]:443", true)]
        .map(|(at, only_v6)| opened(&world.net.gateway, at, only_v6));
    let launch = inheriting(sockets.into_iter().collect::<Result<_>>()?);
    // One more, which the gateway opens itself.
    let config = config("['0.0.0.0:443', '[::]:443', '0.0.0.0:444']");
    let mut gateway = Gateway::start_with(&world.net.gateway, &config, launch)?;
    let targets = [topology::gateway(443), topology::gateway6(443)];
    for end in [Signal::SIGTERM, Signal::SIGKILL] {
        assert_eq!(world.ask("app1.example.com")?, "one");
        gateway.process.signal(end)?;
        gateway.process.wait(Duration::from_secs(30))?;
        let mut waiting = Vec::new();
        for target in targets.repeat(4) {
            let mut stream = dial(&world.net.client, target)?;
            ask(&mut stream)?;
            waiting.push(stream);
        }
        assert!(world.connect(444).is_err());
        gateway.start_again()?;
        for stream in waiting {
            assert_eq!(answer(stream), "one", "{end}");
        }
    }

    // A reload lets an address go and takes it in again.
    for bind in ["['[::]:443', '0.0.0.0:444']", "['0.0.0.0:443', '[::]:443']"] {
        gateway.write_config(&self::config(bind))?;
        let reloaded = gateway.cli(["reload"])?;
        assert!(reloaded.status.success(), "{reloaded:?}");
    }
    for target in targets.repeat(4) {
        let mut stream = dial(&world.net.client, target)?;
        ask(&mut stream)?;
        assert_eq!(answer(stream), "one", "{target}");
    }
    Ok(())
}

#[test]
fn what_is_inherited_and_cannot_be_used_is_named() -> Result<()> {
    let world = World::new()?;
    let ns = &world.net.gateway;
    let idle = ns.run(|| Socket::new(Domain::IPV4, Type::STREAM, None))?;
    let datagrams = ns.run(|| Socket::new(Domain::IPV4, Type::DGRAM, None))?;
    for (socket, fault) in [
        (idle, "inherited descriptor 3 is not a listening TCP socket"),
        (datagrams, "inherited descriptor 3 is not a listening TCP socket"),
        (opened(ns, "[::]:443", false)?, "the inherited socket of [::]:443 takes IPv4 too"),
    ] {
        let started = Gateway::start_with(ns, &config("['[::]:443']"), inheriting(vec![socket]));
        let error = format!("{:#}", started.expect_err("it must not start"));
        assert!(error.contains(fault), "{error}");
    }

    let launch = inheriting(vec![opened(ns, "0.0.0.0:8443", true)?]);
    let gateway = Gateway::start_with(ns, &config("['[::]:443']"), launch)?;
    let output = gateway.process.output();
    assert!(output.contains("belongs to no listener") && output.contains("0.0.0.0:8443"), "{output}");
    Ok(())
}

#[test]
fn the_manager_is_told_of_the_start_and_of_the_end() -> Result<()> {
    let world = World::new()?;
    let files = TempDir::new()?;
    let path = files.join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let launch = Launch { notify: Some(path), ..Launch::default() };
    let mut gateway = Gateway::start_with(&world.net.gateway, &config("['0.0.0.0:443']"), launch)?;
    let told = || -> Result<String> {
        let mut message = [0; 256];
        let length = socket.recv(&mut message)?;
        Ok(String::from_utf8_lossy(&message[..length]).into_owned())
    };
    assert_eq!(told()?, "READY=1\n");
    gateway.process.signal(Signal::SIGTERM)?;
    assert_eq!(told()?, "STOPPING=1\n");
    assert!(gateway.process.wait(Duration::from_secs(30))?.success());
    Ok(())
}
