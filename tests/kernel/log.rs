//! What the programs say of packets that they do not forward, in a build with the feature `kernel-log`: from a packet on a
//! device to a line of the gateway's log.

#![cfg(feature = "kernel-log")]

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, ensure};
use lb_common::packet::track::Track;
use lb_common::packet::{Flow, Handover, PerDirection, PerLeg, Tuple, exit, flag};
use snisplice::config::Interfaces;
use snisplice::kernel::devices::devices;
use snisplice::kernel::{Packet, log};
use snisplice_tests::bpffs::BpfFs;
use snisplice_tests::{NetNs, TempDir, eventually};
use socket2::{Domain, Socket, Type};
use tracing::Level;

/// What was logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("whole").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("whole")).into_owned()
    }
}

/// The flow of packets that are to come by a device which is not there.
fn flow(flags: u8) -> Flow {
    Flow {
        id: 1,
        origin: 0,
        out: Tuple::default(),
        seq_delta: 0,
        ack_delta: 0,
        tsval_delta: 0,
        tsecr_delta: 0,
        ifindex: 1,
        from: 99,
        slot: 0,
        own_scale: 0,
        peer_scale: 0,
        promised_scale: 0,
        flags,
        exit: exit::LOCAL,
        padding: [0; 3],
    }
}

#[test]
fn a_packet_that_is_not_forwarded_is_told_of_with_its_reason_and_addresses() -> Result<()> {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(Level::TRACE).with_ansi(false);
    subscriber.with_writer(move || writer.clone()).init();

    let files = TempDir::new()?;
    let _bpffs = BpfFs::mount_in(files.path())?;
    NetNs::new("log")?.run(|| {
        let packet = Packet::open(&files.join(BpfFs::NAME).join("gateway"), 64)?;
        let failures = packet.attach(&devices()?, &Interfaces::Named(vec!["lo".to_owned()]));
        ensure!(failures.is_empty(), "{failures:?}");
        let (_readable, mut flush) = log::open(packet.program_id()?)?;
        let mut told = |text: &str| {
            eventually(text, || {
                flush();
                lines.text().contains(text).then_some(())
            })
            .with_context(|| lines.text())
        };

        let [client, listener]: [SocketAddr; 2] = ["127.0.0.1:40000".parse()?, "127.0.0.1:443".parse()?];
        let localhost = u32::from_ne_bytes([127, 0, 0, 1]);
        let tuple = Tuple::v4(localhost, localhost, client.port().to_be(), listener.port().to_be());
        let flows = PerDirection { request: flow(0), response: flow(flag::FROM_SERVER) };
        let tuples = PerLeg { client: tuple, server: tuple.reversed() };
        packet.insert(&tuples, flows, &Track::default(), &Handover::default())?;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&client.into())?;
        ensure!(socket.connect(&listener.into()).is_err(), "nobody answers it");
        told("INFO snisplice::kernel: ::ffff:127.0.0.1 port 40000 to ::ffff:127.0.0.1 port 443: dropped, wrong_device")?;

        ensure!(TcpStream::connect("[::1]:9").is_err(), "nobody listens there");
        told("port 9: passed up, no_flow")?;
        told("TRACE snisplice::kernel: ::1 port ")
    })
}
