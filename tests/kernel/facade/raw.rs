//! Packets written by the gateway, as the TCP at the other end takes them.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use lb_common::packet::exit;
use lb_common::packet::inject::Way;
use snisplice::config::Interfaces;
use snisplice::kernel::Packet;
use snisplice::kernel::devices::devices;
use snisplice::kernel::raw::{Injector, Kind, Segment};
use snisplice_tests::bpffs::BpfFs;
use snisplice_tests::process::checked_output;
use snisplice_tests::skip::has_program;
use snisplice_tests::stranger::unacknowledged;
use snisplice_tests::topology::{self, Triangle};
use snisplice_tests::{Counters, NetNs, TempDir, eventually, require};

/// linux/tcp.h.
const TCP_RECV_QUEUE: libc::c_int = 1;
const TCP_SEND_QUEUE: libc::c_int = 2;

/// A connection whose end at the gateway is gone, and the peer does not know, as that of a spliced one.
struct Orphan {
    peer: TcpStream,
    local_address: SocketAddr,
    peer_address: SocketAddr,
    /// Sequence number of the next byte from here.
    snd_nxt: u32,
    /// Sequence number of the next byte from the peer.
    rcv_nxt: u32,
    /// TSval of what would be sent next.
    timestamp: u32,
}

impl Orphan {
    /// From `client` to `address`, where a listener at `gateway` is bound to `bind`.
    fn new(gateway: &NetNs, client: &NetNs, bind: IpAddr, address: IpAddr) -> Result<Self> {
        let listener = gateway.run(|| TcpListener::bind((bind, 0)))?;
        let port = listener.local_addr()?.port();
        let mut peer = client.run(|| TcpStream::connect((address, port)))?;
        let (mut local, peer_address) = listener.accept()?;
        // Away from the numbers of the handshake.
        peer.write_all(b"hello")?;
        local.read_exact(&mut [0; 5])?;
        local.write_all(b"hi")?;
        peer.read_exact(&mut [0; 2])?;
        set(&local, libc::TCP_REPAIR, 1)?;
        Ok(Self {
            peer,
            local_address: local.local_addr()?,
            peer_address,
            snd_nxt: queue_seq(&local, TCP_SEND_QUEUE)?,
            rcv_nxt: queue_seq(&local, TCP_RECV_QUEUE)?,
            timestamp: get(&local, libc::IPPROTO_TCP, libc::TCP_TIMESTAMP)?,
            // Here the local end is closed, in repair mode: nothing is sent.
        })
    }
}

fn set(socket: &TcpStream, option: libc::c_int, value: libc::c_int) -> Result<()> {
    // SAFETY: the option takes one int, which outlives the call.
    let status = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, option, (&raw const value).cast(), 4)
    };
    if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

fn get(socket: &TcpStream, level: libc::c_int, option: libc::c_int) -> Result<u32> {
    let (mut value, mut size) = (0_u32, 4);
    // SAFETY: the kernel writes at most `size` bytes, the size of `value`.
    let status = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut size)
    };
    if status == 0 { Ok(value) } else { Err(std::io::Error::last_os_error().into()) }
}

fn queue_seq(socket: &TcpStream, queue: libc::c_int) -> Result<u32> {
    set(socket, libc::TCP_REPAIR_QUEUE, queue)?;
    get(socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ)
}

const EVERY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// An injector, and the program on the loopback device that its packets take.
struct Sender {
    injector: Injector,
    /// By which the peer is reached.
    device: u32,
    _packet: Packet,
    _bpffs: BpfFs,
    _dir: TempDir,
}

impl Sender {
    fn new(gateway: &NetNs, device: &str) -> Result<Self> {
        let dir = TempDir::new()?;
        let bpffs = BpfFs::mount_in(dir.path())?;
        let packet = Packet::open(&dir.path().join(BpfFs::NAME), 64)?;
        let (injector, devices) = gateway.run(|| anyhow::Ok((Injector::open()?, devices()?)))?;
        // None but the loopback device, which is not named.
        let failures = gateway.run(|| packet.attach(&devices, &Interfaces::Named(Vec::new())));
        ensure!(failures.is_empty(), "{failures:?}");
        let device = devices.iter().find(|known| known.name == device).context("no such device")?.index;
        Ok(Self { injector, device, _packet: packet, _bpffs: bpffs, _dir: dir })
    }

    fn way(&self, kind: u8) -> Way {
        Way { ifindex: self.device, kind }
    }

    /// The peer believes no reset but one that has exactly the sequence number it expects.
    fn resets(&self, kind: u8, mut orphan: Orphan) -> Result<()> {
        let (seq, ack) = (orphan.snd_nxt, orphan.rcv_nxt);
        let reset = Segment { kind: Kind::Reset, seq, ack, window: 0, timestamps: None };
        self.injector.send(self.way(kind), orphan.local_address, orphan.peer_address, &reset)?;
        let error = orphan.peer.read(&mut [0]).expect_err("a reset connection");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        Ok(())
    }
}

#[test]
fn a_reset_ends_the_connection_at_its_other_end() -> Result<()> {
    let Triangle { client, gateway, .. } = Triangle::new()?;
    let sender = Sender::new(&gateway, "front")?;
    let (v4, v6) = (topology::GATEWAY.into(), topology::GATEWAY6.into());
    // The last is IPv4 as a listener for both families sees it.
    for (bind, address) in [(v4, v4), (v6, v6), (EVERY, v4)] {
        for kind in [exit::NEIGHBOUR, exit::PEER] {
            sender.resets(kind, Orphan::new(&gateway, &client, bind, address)?)?;
        }
    }
    Ok(())
}

#[test]
fn a_reset_reaches_a_peer_on_the_same_host() -> Result<()> {
    let ns = NetNs::new("alone")?;
    ns.address("lo", "10.9.9.9/32")?;
    let sender = Sender::new(&ns, "lo")?;
    for address in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), [10, 9, 9, 9].into()] {
        sender.resets(exit::LOCAL, Orphan::new(&ns, &ns, address, address)?)?;
    }
    Ok(())
}

/// Of connections that netfilter has never seen; and a mark is for the routing table to read, unless it is ours.
#[test]
fn a_probe_is_answered_whatever_is_filtered_and_routed_otherwise() -> Result<()> {
    require!(has_program("nft"), "no nft");
    let Triangle { client, gateway, .. } = Triangle::new()?;
    let sender = Sender::new(&gateway, "front")?;
    for (family, address) in [("-4", topology::GATEWAY.into()), ("-6", topology::GATEWAY6.into())] {
        for kind in [exit::NEIGHBOUR, exit::PEER] {
            let orphan = Orphan::new(&gateway, &client, address, address)?;
            gateway.ip(&format!("{family} rule add pref 1 fwmark 0x736e696e blackhole"))?;
            // Neighbours may be looked for.
            let rules = "table inet filter { chain output { type filter hook output priority 0; policy drop; \
                         icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; }; }";
            checked_output(gateway.command("nft").arg(rules))?;
            let before = Counters::of(&gateway)?.get("Tcp.InSegs");
            let (seq, ack) = (orphan.snd_nxt.wrapping_sub(1), orphan.rcv_nxt);
            // One that was older than the last would not be answered.
            let timestamps = Some((orphan.timestamp, 0));
            let probe = Segment { kind: Kind::Ack, seq, ack, window: 500, timestamps };
            sender.injector.send(sender.way(kind), orphan.local_address, orphan.peer_address, &probe)?;
            // No socket of the gateway has a connection that it could come for.
            eventually("an answer", || {
                (Counters::of(&gateway).ok()?.get("Tcp.InSegs") > before).then_some(())
            })?;
            checked_output(gateway.command("nft").arg("flush ruleset"))?;
            gateway.ip(&format!("{family} rule del pref 1"))?;
        }
    }
    Ok(())
}

#[test]
fn packet_too_big_lowers_the_peers_path_mtu() -> Result<()> {
    const MTU: u32 = 1300;
    let Triangle { client, gateway, .. } = Triangle::new()?;
    let sender = Sender::new(&gateway, "front")?;
    for (address, option) in [
        (topology::GATEWAY.into(), (libc::IPPROTO_IP, libc::IP_MTU)),
        (topology::GATEWAY6.into(), (libc::IPPROTO_IPV6, libc::IPV6_MTU)),
    ] {
        let mut orphan = Orphan::new(&gateway, &client, address, address)?;
        assert_eq!(get(&orphan.peer, option.0, option.1)?, 1500);
        // Only data that is not acknowledged can have been too big, and the gateway's stack would reset a connection
        // that it does not know: the data goes to somebody else.
        client.ip(&format!("neigh replace {address} lladdr 02:00:00:00:00:99 dev eth0 nud permanent"))?;
        orphan.peer.write_all(&[0; 1400])?;
        let (way, local, peer) = (sender.way(exit::NEIGHBOUR), orphan.local_address, orphan.peer_address);
        sender.injector.packet_too_big(way, local, peer, orphan.rcv_nxt, MTU)?;
        eventually("the path MTU to change", || {
            (get(&orphan.peer, option.0, option.1).ok()? == MTU).then_some(())
        })?;
    }
    Ok(())
}

#[test]
fn a_socket_is_told_what_its_peer_has_acknowledged() -> Result<()> {
    const NOBODY: &str = "lladdr 02:00:00:00:00:99 dev front nud permanent";
    let Triangle { client, gateway, .. } = Triangle::new()?;
    let injector = gateway.run(Injector::open)?;
    let v4 = (topology::GATEWAY.into(), topology::CLIENT.to_string());
    let v6 = (topology::GATEWAY6.into(), topology::CLIENT6.to_string());
    for (bind, (address, neighbour)) in [(v4.0, v4.clone()), (v6.0, v6), (EVERY, v4)] {
        for ends in [false, true] {
            let listener = gateway.run(|| TcpListener::bind((bind, 0)))?;
            let port = listener.local_addr()?.port();
            let _peer = client.run(|| TcpStream::connect((address, port)))?;
            let (mut local, peer) = listener.accept()?;
            gateway.ip(&format!("neigh replace {neighbour} {NOBODY}"))?;
            local.write_all(&[0; 1000])?;
            if ends {
                local.shutdown(Shutdown::Write)?;
            }
            assert_eq!(unacknowledged(&local)?, 1000 + i32::from(ends));
            set(&local, libc::TCP_REPAIR, 1)?;
            let [ack, seq] = [queue_seq(&local, TCP_SEND_QUEUE)?, queue_seq(&local, TCP_RECV_QUEUE)?];
            injector.acknowledge(local.local_addr()?, peer, seq, ack)?;
            eventually("the socket to hear of it", || (unacknowledged(&local).ok()? == 0).then_some(()))?;
            gateway.ip(&format!("neigh del {neighbour} dev front"))?;
        }
    }
    Ok(())
}
