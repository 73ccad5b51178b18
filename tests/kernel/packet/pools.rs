//! What a pool knows of connections that have no sockets any more.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use snisplice_tests::backend::{Backend, echo};
use snisplice_tests::topology::{self, Triangle};
use snisplice_tests::{Gateway, eventually};

use crate::case::Expect;
use crate::ends::{Opening, SERVER_PORT, SocketOptions};
use crate::scene::Scene;
use crate::strangers::{no_sockets, settled};

fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"word")?;
    Ok(stream.read_exact(&mut [0; 4])?)
}

#[test]
fn connections_without_sockets_count_for_a_servers_bound_also_those_of_an_earlier_process() -> Result<()> {
    let net = Triangle::new()?;
    let listener = SocketOptions::default().listen(&net.server)?;
    let _backend = Backend::serve(&net.server, listener, echo)?;
    let server = SocketAddr::new(net.server_addresses[0], SERVER_PORT);
    let config = format!(
        "[[listener]]\nname = 'l'\nbind = ['0.0.0.0:444']\nprotocol = 'tcp'\n\
         [[route]]\nname = 'r'\nlistener = 'l'\nbackends = [{{ pool = 'p' }}]\n\
         [[pool]]\nname = 'p'\nconnect_timeout = '1m'\n\
         servers = [{{ address = '{server}', max_connections = 1 }}]\n"
    );
    let mut gateway = Gateway::start(&net.gateway, &config)?;
    let dial = || SocketOptions::default().dial(&net.client, topology::gateway(444));
    let mut first = dial()?;
    exchange(&mut first)?;
    eventually("the packet tier", || {
        let live = gateway.connections().ok()?;
        (live.len() == 1 && Expect::Packet.check(&live[0]).is_ok()).then_some(())
    })?;
    no_sockets(&net.gateway)?;
    gateway.kill_and_restart()?;
    let mut second = dial()?;
    eventually("the second to wait", || {
        (gateway.status().ok()?.number("/pools/0/waiting") == 1).then_some(())
    })?;
    exchange(&mut first).context("the one that outlived its process")?;
    drop(first);
    exchange(&mut second).context("the one that waited")
}

/// The flows of the connections that had the ports before are still there.
#[test]
fn a_server_that_refuses_is_heard_on_a_port_that_was_just_given_back() -> Result<()> {
    const PORTS: usize = 256;
    for v6 in [false, true] {
        let opening = Opening { v6, ..Opening::default() };
        let mut scene = Scene::with_gateway(opening, "[gateway]\nsource_ports = '20000-20255'\n", "")?;
        let ends = (0..PORTS).map(|_| scene.connection()).collect::<Result<Vec<_>>>()?;
        settled(&scene, "packet", PORTS)?;
        for (mut client, mut server, _) in ends {
            client.writer.finish()?;
            ensure!(server.read(&mut [0])? == 0);
            drop(server);
            ensure!(client.reader.read(&mut [0])? == 0);
        }
        scene.gateway.wait_access_log(PORTS)?;
        scene.stop_listening();
        // Longer than a port rests at least.
        thread::sleep(Duration::from_millis(1_500));
        let (mut client, _) = scene.opening.open(&scene.net.client)?;
        // An alert, and the end.
        let _ = client.reader.read_to_end(&mut Vec::new());
        let log = scene.gateway.wait_access_log(PORTS + 1)?;
        let last = log.last().context("a line")?;
        ensure!(last["close_reason"] == "connect_failed", "{last}");
    }
    Ok(())
}
