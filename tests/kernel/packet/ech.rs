//! Encrypted ClientHello in the packet tier: what userspace has changed of the first bytes is an offset of sequence numbers to
//! the kernel, and the connection outlives the process as any other.

use std::io::{Read, Write};

use anyhow::{Context, Result, ensure};
use snisplice_tests::ech::{EchKey, NO_ENDS, PUBLIC, ends, server};
use snisplice_tests::tls::Client;
use snisplice_tests::topology::{self, Triangle};
use snisplice_tests::{Authority, Gateway, TempDir, require};

use crate::case::{Expect, MIB, counters, grown, no_faults};
use crate::ends::{SERVER_PORT, SNI, SocketOptions};
use crate::strangers::no_sockets;

#[test]
fn a_connection_with_ech_outlives_the_process_in_both_modes() -> Result<()> {
    require!(ends().is_some(), NO_ENDS);
    for (split, retry) in [(false, false), (true, false), (true, true)] {
        outlives(split, retry).with_context(|| format!("split: {split}, retry: {retry}"))?;
    }
    Ok(())
}

fn outlives(split: bool, retry: bool) -> Result<()> {
    let (net, files) = (Triangle::new()?, TempDir::new()?);
    let authority = Authority::new("snisplice test authority")?;
    let key = EchKey::new(&files, "key.pem")?;
    let address = topology::server(SERVER_PORT);
    let _server = server(&net.server, &authority, SNI, address, Some(&key).filter(|_| !split), retry)?;
    let mode = if split { "split" } else { "shared" };
    let config = format!(
        "[[listener]]\nname = 'databases'\nbind = ['0.0.0.0:443']\n\
         ech = {{ keys = ['{}'], mode = '{mode}' }}\n\
         [[route]]\nlistener = 'databases'\nsni = ['{SNI}', '{PUBLIC}']\ntls = 'passthrough'\n\
         backends = [{{ pool = 'app1' }}]\n\
         [[pool]]\nname = 'app1'\nservers = [{{ address = '{address}' }}]\nconnect_timeout = '20s'\n",
        key.file.display()
    );
    let mut gateway = Gateway::start(&net.gateway, &config)?;
    let before = counters(&net)?;
    let socket = SocketOptions::default().dial(&net.client, topology::gateway(443))?;
    let mut client = Client::encrypting(&authority.path, &key.config)?.connect(socket, SNI)?;
    let mut greeting = vec![0; SNI.len() + 1];
    client.reader.read_exact(&mut greeting)?;
    ensure!(greeting == format!("{SNI}\n").as_bytes());
    let mut heard = vec![0; MIB as usize];
    for round in 0..3 {
        let said: Vec<u8> = (0..heard.len()).map(|at| (at / 251 + round) as u8).collect();
        std::thread::scope(|scope| -> Result<()> {
            let writer = scope.spawn(|| client.writer.write_all(&said));
            client.reader.read_exact(&mut heard)?;
            Ok(writer.join().expect("it does not panic")?)
        })?;
        ensure!(said == heard, "round {round}");
        // Killed in the middle of its handover, the gateway would leave a connection that is reset.
        no_sockets(&net.gateway)?;
        gateway.kill_and_restart()?;
    }
    client.writer.finish()?;
    ensure!(client.reader.read(&mut [0])? == 0);
    let line = &gateway.wait_access_log(1)?[0];
    Expect::Packet.check(line)?;
    ensure!(line["ech"] == "accepted" && line["sni"] == SNI && line["sni_outer"] == PUBLIC, "{line}");
    // The server may answer the client's close_notify with its FIN before it gets the client's.
    let closed = ["client_closed", "server_closed"].map(serde_json::Value::from);
    ensure!(closed.contains(&line["close_reason"]), "{line}");
    // TLS and its handshake add to what both have said, first of all the ClientHellos.
    for counted in ["bytes_in", "bytes_out"] {
        let more = line[counted].as_u64().unwrap_or_default().saturating_sub(3 * MIB);
        ensure!((1000..100_000).contains(&more), "{line}");
    }
    no_faults(&net, &grown(&net, &before)?, &[])
}
