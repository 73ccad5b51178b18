//! What a pool knows of connections that have no sockets any more.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result};
use snisplice_tests::backend::{Backend, echo};
use snisplice_tests::topology::{self, Triangle};
use snisplice_tests::{Gateway, eventually};

use crate::case::Expect;
use crate::ends::{SERVER_PORT, SocketOptions};
use crate::strangers::no_sockets;

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
