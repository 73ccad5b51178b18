//! A gateway that starts before it has its address, as the standby of a pair with VRRP does.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use snisplice_tests::backend::{Backend, echo};
use snisplice_tests::topology::Triangle;
use snisplice_tests::{Gateway, eventually};

use crate::case::Expect;
use crate::ends::{SERVER_PORT, SocketOptions};

#[test]
fn connections_to_an_address_that_came_later_are_spliced() -> Result<()> {
    spliced_on_arrival("10.0.1.9".parse()?, 24)
}

#[test]
fn connections_to_an_address_that_came_later_are_spliced_ipv6() -> Result<()> {
    spliced_on_arrival("fd00:1::9".parse()?, 64)
}

/// `address`: of the client's network, and nobody's yet.
fn spliced_on_arrival(address: IpAddr, prefix: u8) -> Result<()> {
    let net = Triangle::new()?;
    let _backend = Backend::start(&net.server, SERVER_PORT, echo)?;
    let bind = SocketAddr::new(address, 444);
    let server = SocketAddr::new(net.server_addresses[usize::from(address.is_ipv6())], SERVER_PORT);
    let config = format!(
        "[[listener]]\nname = 'l'\nbind = ['{bind}']\nprotocol = 'tcp'\nfreebind = true\n\
         [[route]]\nname = 'r'\nlistener = 'l'\nbackends = ['p']\n\
         [[pool]]\nname = 'p'\nservers = ['{server}']\n"
    );
    let gateway = Gateway::start(&net.gateway, &config)?;
    // Twice, as if it went to the other node and came back.
    for turn in 0..2 {
        net.gateway.address("front", &format!("{address}/{prefix}"))?;
        let mut stream =
            eventually("a connection", || SocketOptions::default().dial(&net.client, bind).ok())?;
        for word in 0..8_u64 {
            stream.write_all(&word.to_le_bytes())?;
            let mut answer = [0; 8];
            stream.read_exact(&mut answer)?;
            ensure!(answer == word.to_le_bytes(), "{answer:?} instead of {word}");
        }
        eventually("the packet tier", || {
            let live = gateway.connections().ok()?;
            (live.len() == 1 && Expect::Packet.check(&live[0]).is_ok()).then_some(())
        })
        .with_context(|| format!("turn {turn}: {:?}", gateway.connections()))?;
        drop(stream);
        eventually("its end", || gateway.connections().ok()?.is_empty().then_some(()))?;
        net.gateway.ip(&format!("addr del {address}/{prefix} dev front"))?;
    }
    Ok(())
}
