//! Servers that DNS names: which of their addresses is dialled, and whose connections an adopted one counts among.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use snisplice_tests::backend::echo;
use snisplice_tests::process::checked_output;
use snisplice_tests::topology::{self, Triangle};
use snisplice_tests::{Backend, Gateway, Launch, NameServer, eventually, require};

use crate::PACKET;
use crate::case::Expect;
use crate::ends::SocketOptions;
use crate::strangers::no_sockets;

const PORT: u16 = 7001;

fn start(net: &Triangle, server: &str) -> Result<Gateway> {
    let config = format!(
        "[[listener]]\nname = 'l'\nbind = ['0.0.0.0:443', '[::]:443']\nprotocol = 'tcp'\n\
         [[route]]\nname = 'r'\nlistener = 'l'\nbackends = [{{ pool = 'p' }}]\n\
         [[pool]]\nname = 'p'\nservers = ['{server}']\n"
    );
    let launch =
        Launch { resolv_conf: Some(format!("nameserver {}\n", topology::SERVER)), ..Launch::default() };
    let gateway = Gateway::start_with(&net.gateway, &config, launch)?;
    resolved(&gateway)?;
    Ok(gateway)
}

fn resolved(gateway: &Gateway) -> Result<()> {
    gateway.wait_status("the name", |s| s.0["pools"][0]["servers"][0]["state"] == "up").map(drop)
}

fn connect(net: &Triangle, gateway: SocketAddr) -> Result<TcpStream> {
    let mut stream = SocketOptions::default().dial(&net.client, gateway)?;
    exchange(&mut stream)?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"ping", "{answer:?}");
    Ok(())
}

fn spliced(gateway: &Gateway, number: usize) -> Result<()> {
    eventually("all in the packet tier", || {
        let live = gateway.connections().ok()?;
        (live.len() == number && live.iter().all(|line| Expect::Packet.check(line).is_ok())).then_some(())
    })
    .with_context(|| format!("{:?}", gateway.connections()))
}

#[test]
fn a_name_with_addresses_of_both_families_and_silent_ones_is_spliced_for_clients_of_both() -> Result<()> {
    let net = Triangle::new()?;
    for address in ["10.0.2.8/24", "10.0.2.9/24", "fd00:2::8/64", "fd00:2::9/64"] {
        net.server.address("eth0", address)?;
    }
    let rules = "add table inet hole; add chain inet hole in { type filter hook input priority 0; }; \
                 add rule inet hole in ip daddr 10.0.2.8 drop; add rule inet hole in ip6 daddr fd00:2::8 drop";
    checked_output(net.server.command("nft").arg(rules))?;
    let _backends = ["10.0.2.9", "fd00:2::9"]
        .map(|address| Backend::start_on(&net.server, address.parse().expect("an address"), PORT, echo));
    let records = "db A 10.0.2.8\ndb A 10.0.2.9\ndb AAAA fd00:2::8\ndb AAAA fd00:2::9";
    let _names = NameServer::start(&net.server, topology::SERVER, records)?;
    let gateway = start(&net, &format!("db.test:{PORT}"))?;
    let mut ends = Vec::new();
    for _ in 0..5 {
        for target in [topology::gateway(443), topology::gateway6(443)] {
            ends.push(connect(&net, target)?);
        }
    }
    spliced(&gateway, ends.len())?;
    ends.iter_mut().try_for_each(exchange)
}

#[test]
fn an_adopted_connection_counts_for_the_server_of_its_service() -> Result<()> {
    require!(PACKET, "only the packet tier outlives the process");
    let net = Triangle::new()?;
    let _backend = Backend::start(&net.server, PORT, echo)?;
    let records = format!("db A {}\n_s._tcp SRV 0 1 {PORT} db", topology::SERVER);
    let _names = NameServer::start(&net.server, topology::SERVER, &records)?;
    let mut gateway = start(&net, "srv:_s._tcp.test")?;
    let mut end = connect(&net, topology::gateway(443))?;
    spliced(&gateway, 1)?;
    // Killed in the middle of its handover, the gateway would leave a connection that is reset.
    no_sockets(&net.gateway)?;
    gateway.kill_and_restart()?;
    resolved(&gateway)?;
    let server = format!("db.test:{PORT}");
    ensure!(gateway.connections()?[0]["server"] == server.as_str(), "{:?}", gateway.connections());
    gateway.wait_status("it to count", |s| s.server("p", &server)["active"] == 1)?;
    exchange(&mut end)?;
    drop(end);
    gateway.wait_status("its end", |s| s.server("p", &server)["active"] == 0)?;
    Ok(())
}
