//! What TCP does not send and paths make of it all the same: fragments, IPv4 options, IPv6 extension headers.

use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use etherparse::{IpNumber, Ipv6FragmentHeader, Ipv6Header, TcpHeader};
use snisplice_tests::pump::{Plan, exchange};
use snisplice_tests::stranger::Numbers;
use snisplice_tests::topology::{GATEWAY, Leg, Shape, Triangle};
use snisplice_tests::wire::Kind;
use snisplice_tests::{Counters, Launch};
use socket2::{Domain, Protocol, Socket, Type};

use crate::case::{Case, Expect, MIB};
use crate::ends::Opening;
use crate::scene::Scene;

fn set(socket: &TcpStream, level: libc::c_int, option: libc::c_int, value: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads as many bytes as it is told of a slice that outlives the call.
    let status = unsafe {
        let length = value.len() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), length)
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error().into()) }
}

/// A path on which packets of 1500 bytes are cut, for a client whose packets allow that.
fn cut(net: &Triangle) -> Result<()> {
    net.client.sysctl("net/ipv4/ip_no_pmtu_disc", "1")?;
    net.front.router()?.ip(&format!("route replace {GATEWAY} dev near mtu 1000")).map(drop)
}

#[test]
fn every_byte_of_packets_that_a_router_has_cut_arrives() -> Result<()> {
    let case = Case::both_ways(4 * MIB);
    let verify = |net: &Triangle, _: &[Counters; 3]| {
        let cut = Counters::of(net.front.router()?)?.get("Ip.FragCreates");
        ensure!(cut > 4 * MIB / 1460, "only {cut} fragments");
        Ok(())
    };
    Case { shape: Shape::Apart(Leg::Router, Leg::Veth), prepare: cut, verify, ..case }.run()
}

/// The kernel takes a grace period to close each, in which a gateway that is restarted does not listen.
#[test]
fn a_gateway_has_one_packet_socket_for_all_that_it_sends() -> Result<()> {
    let scene = Scene::new(Opening::default(), "")?;
    // A headline, and a line for each socket in the gateway's namespace.
    let sockets = fs::read_to_string(format!("/proc/{}/net/packet", scene.gateway.process.pid()))?;
    ensure!(sockets.lines().count() == 2, "{sockets}");
    Ok(())
}

/// A device with Ethernet headers, which leaves checksums and the cutting of segments to the next one, and one without.
const SHAPES: [Shape; 2] =
    [Shape::Apart(Leg::Veth, Leg::Veth), Shape::Apart(Leg::Wire(Kind::Ip), Leg::Wire(Kind::Ip))];

fn scene(shape: Shape, v6: bool) -> Result<Scene> {
    let opening = Opening { v6, ..Opening::default() };
    Scene::within(Triangle::shaped(shape)?, opening, "", "", |_| Ok(Launch::default()))
}

/// Exchanges in which the client, spliced, begins to send something else than plain packets.
fn with_option(v6: bool, level: libc::c_int, option: libc::c_int, value: &[u8]) -> Result<()> {
    SHAPES.into_iter().try_for_each(|shape| {
        with_option_over(shape, v6, (level, option, value)).with_context(|| format!("{shape:?}"))
    })
}

fn with_option_over(
    shape: Shape,
    v6: bool,
    (level, option, value): (libc::c_int, libc::c_int, &[u8]),
) -> Result<()> {
    let scene = scene(shape, v6)?;
    let (client, server, _) = scene.connection()?;
    scene.spliced(1)?;
    set(&client.socket, level, option, value).context("the option")?;
    let (here, there) = (Plan::both_ways(4 * MIB), Plan::both_ways(4 * MIB).mirrored());
    thread::scope(|scope| {
        let server = scope.spawn(|| exchange(server.try_into()?, &there));
        exchange(client, &here).context("the client")?;
        server.join().expect("no assertion in there").context("the server")
    })?;
    let log = scene.gateway.wait_access_log(1)?;
    Expect::Packet.check(&log[0])
}

#[test]
fn packets_with_ipv4_options_arrive() -> Result<()> {
    let record_route = [7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for options in [&[1_u8; 4][..], &record_route] {
        with_option(false, libc::IPPROTO_IP, libc::IP_OPTIONS, options)
            .with_context(|| format!("{options:?}"))?;
    }
    Ok(())
}

#[test]
fn packets_with_ipv6_extension_headers_arrive() -> Result<()> {
    // What follows is for the kernel to say; eight bytes, six of them padding.
    let padding = [0, 0, 1, 4, 0, 0, 0, 0];
    for option in [libc::IPV6_DSTOPTS, libc::IPV6_HOPOPTS] {
        with_option(true, libc::IPPROTO_IPV6, option, &padding).with_context(|| format!("{option}"))?;
    }
    Ok(())
}

/// A segment in fragments, the last of which has eight bytes. Linux cuts no segment of its own over IPv6.
fn fragments(from: SocketAddr, to: SocketAddr, segment: &TcpHeader, payload: &[u8]) -> Result<[Vec<u8>; 2]> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (from.ip(), to.ip()) else { bail!("IPv6 only") };
    let mut bytes = segment.to_bytes().to_vec();
    bytes.extend(payload);
    let at = bytes.len() - 8;
    let fragment = |offset: usize, more, part: &[u8]| -> Result<Vec<u8>> {
        let fragment = Ipv6FragmentHeader::new(IpNumber::TCP, (offset as u16 / 8).try_into()?, more, 77);
        let ip = Ipv6Header {
            payload_length: (8 + part.len()) as u16,
            next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
            hop_limit: 64,
            source: source.octets(),
            destination: destination.octets(),
            ..Ipv6Header::default()
        };
        Ok([&ip.to_bytes()[..], &fragment.to_bytes(), part].concat())
    };
    Ok([fragment(0, true, &bytes[..at])?, fragment(at, false, &bytes[at..])?])
}

#[test]
fn a_segment_in_ipv6_fragments_arrives() -> Result<()> {
    SHAPES.into_iter().try_for_each(|shape| in_fragments(shape).with_context(|| format!("{shape:?}")))
}

fn in_fragments(shape: Shape) -> Result<()> {
    let scene = scene(shape, true)?;
    let (client, mut server, _) = scene.connection()?;
    scene.spliced(1)?;
    let (here, there) = (client.socket.local_addr()?, client.socket.peer_addr()?);
    let numbers = Numbers::of(&client.socket)?;
    // With the header a multiple of eight bytes, as the first fragment must be.
    let payload = *b"in two parts, and then whole again..";
    let mut segment = TcpHeader::new(here.port(), there.port(), numbers.next, 1024);
    (segment.ack, segment.psh, segment.acknowledgment_number) = (true, true, numbers.expected);
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (here.ip(), there.ip()) else { bail!("IPv6") };
    segment.checksum = segment.calc_checksum_ipv6_raw(source.octets(), destination.octets(), &payload)?;
    let raw = scene
        .net
        .client
        .run(|| Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))))?;
    let to = SocketAddr::new(there.ip(), 0).into();
    for fragment in fragments(here, there, &segment, &payload)? {
        raw.send_to(&fragment, &to)?;
    }
    let mut got = [0; 36];
    server.read_exact(&mut got)?;
    ensure!(got == payload);
    Ok(())
}
