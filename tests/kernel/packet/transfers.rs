//! The matrix: what happens on the way, what the two legs have negotiated, how the ends behave, and where they are.

use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Result, ensure};
use snisplice_tests::pump::{End, Plan, Start};
use snisplice_tests::tls::client_hello;
use snisplice_tests::topology::{Leg, Shape, Triangle, has_vlans};
use snisplice_tests::wire::{Faults, Kind};
use snisplice_tests::{Counters, proxy, require};

use crate::PACKET;
use crate::case::{Case, Expect, GREETING, MIB, WIRES, no_part_in_it};
use crate::dialogues::{IMAP, LDAP, POP3, SMTP, XMPP};
use crate::ends::{Opening, PATIENCE, SNI, SocketOptions, Speech};
use crate::scene::Scene;

/// A test for each case.
macro_rules! cases {
    ($($name:ident: $case:expr;)+) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                $case.run()
            }
        )+
    };
}

// What happens on the way.
cases! {
    clean: Case::both_ways(32 * MIB);
    clean_plain_tcp: Case::both_ways(32 * MIB).speaking(Speech::Tcp);
    clean_ipv6: Case::both_ways(32 * MIB).v6();
    clean_ipv6_plain_tcp: Case::both_ways(32 * MIB).v6().speaking(Speech::Tcp);
    clean_wires: Case::both_ways(16 * MIB).faulty(Faults::NONE);
    clean_wires_ipv6: Case::both_ways(16 * MIB).faulty(Faults::NONE).v6();
    one_percent_lost: Case::both_ways(4 * MIB).faulty(LOSS);
    one_percent_lost_ipv6: Case::both_ways(4 * MIB).faulty(LOSS).v6();
    five_percent_lost_toward_the_client:
        Case { faults: [HEAVY_LOSS, Faults::NONE], ..Case::both_ways(2 * MIB).faulty(HEAVY_LOSS) };
    five_percent_lost_toward_the_server:
        Case { faults: [Faults::NONE, HEAVY_LOSS], ..Case::both_ways(2 * MIB).faulty(HEAVY_LOSS) };
    reordered: Case::both_ways(4 * MIB).faulty(REORDERING);
    repeated: Case::both_ways(4 * MIB).faulty(REPETITION);
    lost_reordered_and_repeated: Case::both_ways(2 * MIB).faulty(ALL);
    lost_reordered_and_repeated_ipv6: Case::both_ways(2 * MIB).faulty(ALL).v6();
    a_long_way:
        Case::both_ways(8 * MIB).faulty(Faults { delay: Duration::from_millis(10), ..Faults::NONE });
    merged_by_the_gateways_devices: Case {
        shape: Shape::Apart(Leg::Wire(Kind::EthernetGro), Leg::Wire(Kind::EthernetGro)),
        ..Case::both_ways(16 * MIB)
    };
    merged_by_the_gateways_devices_with_loss: Case {
        shape: Shape::Apart(Leg::Wire(Kind::EthernetGro), Leg::Wire(Kind::EthernetGro)),
        ..Case::both_ways(2 * MIB).faulty(ALL)
    };
    some_frames_have_a_priority: Case { verify: no_tags, ..Case::both_ways(4 * MIB).faulty(PRIORITIES) };
    some_frames_have_a_priority_ipv6: Case { verify: no_tags, ..Case::both_ways(4 * MIB).faulty(PRIORITIES).v6() };
    without_offloads: Case { prepare: offloads_off, ..Case::both_ways(16 * MIB) };
    without_offloads_ipv6: Case { prepare: offloads_off, ..Case::both_ways(16 * MIB).v6() };
}

const LOSS: Faults = Faults { loss: 0.01, ..Faults::NONE };
const PRIORITIES: Faults = Faults { priority: 0.5, ..Faults::NONE };
const HEAVY_LOSS: Faults = Faults { loss: 0.05, ..Faults::NONE };
const REORDERING: Faults = Faults { reorder: 0.02, ..Faults::NONE };
const REPETITION: Faults = Faults { repeat: 0.02, ..Faults::NONE };
const ALL: Faults = Faults { loss: 0.01, repeat: 0.01, reorder: 0.01, ..Faults::NONE };

/// A priority is for the link that a frame came by.
fn no_tags(net: &Triangle, _: &[Counters; 3]) -> Result<()> {
    let mut seen = net.wires().flat_map(|wire| wire.ways()).map(|way| way.seen());
    ensure!(seen.all(|seen| seen.tagged == 0), "a tag leaves the gateway");
    Ok(())
}

fn offloads_off(net: &Triangle) -> Result<()> {
    for (ns, device) in
        [(&net.client, "eth0"), (&net.gateway, "front"), (&net.gateway, "back"), (&net.server, "eth0")]
    {
        ns.offloads(device, false)?;
    }
    Ok(())
}

// How the ends behave.
cases! {
    a_gibibyte_to_the_server: Case::exchange(Plan { receive: GREETING, ..Plan::both_ways(1024 * MIB) });
    a_gibibyte_to_the_client: Case::exchange(Plan { send: GREETING, ..Plan::both_ways(1024 * MIB) });
    many_tiny_writes: Case::exchange(Plan { chunk: 3, ..Plan::both_ways(30_000) });
    the_client_ends_its_direction_first: {
        let case = Case::both_ways(2 * MIB);
        let server = Plan { greeting: GREETING, start: Start::AfterEnd, ..case.server.clone() };
        Case { server, close_reasons: &["client_closed"], ..case }
    };
    the_server_ends_its_direction_first: {
        let case = Case::both_ways(2 * MIB);
        let client = Plan { start: Start::AfterEnd, ..case.client.clone() };
        Case { client, close_reasons: &["server_closed"], ..case }
    };
    the_client_ends_its_direction_first_with_loss: {
        let case = Case::both_ways(MIB).faulty(LOSS);
        Case { server: Plan { greeting: GREETING, start: Start::AfterEnd, ..case.server.clone() }, ..case }
    };
    the_server_ends_its_direction_first_with_loss: {
        let case = Case::both_ways(MIB).faulty(LOSS);
        Case { client: Plan { start: Start::AfterEnd, ..case.client.clone() }, ..case }
    };
    both_end_their_directions_at_once: Case { rounds: 20, ..Case::both_ways(1) };
    the_client_aborts: aborted(Plan { end: End::Reset, ..Plan::both_ways(MIB) });
    the_server_aborts: aborted(Plan { end: End::MeetReset, ..Plan::both_ways(MIB) });
    the_client_stops_reading_for_five_seconds: {
        let case = Case::exchange(Plan { send: MIB, stall: STALL, ..Plan::both_ways(16 * MIB) });
        Case { receive_buffer: Some(256 * 1024), ..case }
    };
    the_server_stops_reading_for_five_seconds: {
        let case = Case::exchange(Plan { receive: MIB, ..Plan::both_ways(16 * MIB) });
        let server = Plan { stall: STALL, ..case.server.clone() };
        Case { receive_buffer: Some(256 * 1024), server, ..case }
    };
    the_client_stops_reading_for_five_seconds_with_loss: {
        let case = Case::exchange(Plan { send: GREETING, stall: STALL, ..Plan::both_ways(2 * MIB) }).faulty(LOSS);
        Case { receive_buffer: Some(64 * 1024), ..case }
    };
    windows_of_two_kibibytes: two_kibibytes(256 * 1024);
    windows_of_two_kibibytes_with_loss: two_kibibytes(64 * 1024).faulty(LOSS);
    windows_of_two_kibibytes_of_the_ends_alone:
        Case { prepare: |_| Ok(()), expect: Expect::Copy("window_mismatch"), ..two_kibibytes(64 * 1024) };
}

/// The client is a proxy, which says first whom it speaks for: the server hears nothing of that.
fn behind_a_proxy(block: u16) -> Case {
    Case { opening: Opening { proxied: Some(block), ..Opening::default() }, ..Case::both_ways(2 * MIB) }
}

/// The gateway promises no more than the ends have room for.
fn two_kibibytes(bytes: u64) -> Case {
    let prepare = |net: &Triangle| net.gateway.sysctl("net/ipv4/tcp_rmem", "4096 4096 6291456");
    Case { receive_buffer: Some(4096), prepare, ..Case::both_ways(bytes) }
}

const STALL: Option<(u64, Duration)> = Some((MIB / 2, Duration::from_secs(5)));

/// Both ends know that all has arrived before one of them resets: a reset may overtake data.
fn aborted(client: Plan) -> Case {
    let client_resets = client.end == End::Reset;
    let mut case = Case::exchange(client);
    let waits = if client_resets { &mut case.server } else { &mut case.client };
    (waits.greeting, waits.start) = (GREETING, Start::AfterBytes(waits.receive));
    Case {
        close_reasons: if client_resets { &["client_reset"] } else { &["server_reset"] },
        faulty: &["Tcp.OutRsts", "Tcp.EstabResets", "TcpExt.TCPAbortOnData", "TcpExt.TCPAbortOnClose"],
        verify: |_, [_, gateway, _]| no_part_in_it(gateway),
        ..case
    }
}

// What comes before the bytes.
cases! {
    a_hello_in_several_segments:
        Case { opening: Opening { pieces: 5, ..Opening::default() }, ..Case::both_ways(MIB) };
    a_hello_in_several_segments_with_loss:
        Case { opening: Opening { pieces: 5, ..Opening::default() }, ..Case::both_ways(MIB).faulty(LOSS) };
    a_hello_that_is_acknowledged_with_bytes_is_not_sent_again: answered_hello();
    a_hello_that_is_acknowledged_with_bytes_is_not_sent_again_ipv6: answered_hello().v6();
    data_right_behind_the_hello: early_data(4 * 1024);
    forty_kibibytes_right_behind_the_hello:
        Case { expect: Expect::Either(&["prefix_too_large", "window_mismatch"]), ..early_data(40 * 1024) };
    three_hundred_kibibytes_right_behind_the_hello:
        Case { expect: Expect::Either(&["prefix_too_large", "window_mismatch"]), ..early_data(300 * 1024) };
    three_hundred_kibibytes_right_behind_the_hello_with_loss:
        Case { expect: Expect::Either(&["prefix_too_large", "window_mismatch"]), ..early_data(300 * 1024).faulty(LOSS) };
    both_ends_send_all_at_once:
        Case { expect: Expect::Either(&["prefix_too_large", "window_mismatch"]), ..Case::impatient(Plan::both_ways(4 * MIB)) };
    both_ends_send_all_at_once_over_plain_tcp: Case {
        expect: Expect::Either(&["prefix_too_large", "window_mismatch"]),
        ..Case::impatient(Plan::both_ways(4 * MIB)).speaking(Speech::Tcp)
    };
    both_ends_say_little_and_end_at_once: Case {
        expect: Expect::Either(&["closing"]),
        rounds: 20,
        ..Case::impatient(Plan::both_ways(10)).speaking(Speech::Tcp)
    };
    behind_a_short_proxy_header: behind_a_proxy(15);
    behind_a_proxy_header_of_64_kib: behind_a_proxy(proxy::MAX_BLOCK);
    behind_a_proxy_header_of_64_kib_with_loss: behind_a_proxy(proxy::MAX_BLOCK).faulty(LOSS);
    behind_a_proxy_header_of_64_kib_plain_tcp: behind_a_proxy(proxy::MAX_BLOCK).speaking(Speech::Tcp);
    a_proxy_header_of_version_1: Case { send_proxy: Some("v1"), ..Case::both_ways(MIB) };
    a_proxy_header_of_version_2: Case { send_proxy: Some("v2"), ..Case::both_ways(MIB) };
    a_proxy_header_over_plain_tcp:
        Case { send_proxy: Some("v2"), ..Case::both_ways(MIB).speaking(Speech::Tcp) };
    a_proxy_header_over_ipv6_with_loss:
        Case { send_proxy: Some("v2"), ..Case::both_ways(MIB).v6().faulty(LOSS) };
    a_server_that_speaks_first: greeted([0, GREETING], Duration::ZERO);
    a_server_that_speaks_first_and_goes_on_after_a_while: greeted([0, GREETING], WHILE);
    a_client_that_goes_on_after_a_while: greeted([GREETING, 0], WHILE);
    both_speak_first: greeted([GREETING, GREETING], Duration::ZERO);
    both_speak_first_and_go_on_after_a_while: greeted([GREETING, GREETING], WHILE);
    both_say_much_first: greeted([5000, 5000], Duration::ZERO);
    a_server_that_speaks_first_ipv6: greeted([0, GREETING], Duration::ZERO).v6();
    a_server_that_speaks_first_with_loss: greeted([0, GREETING], Duration::ZERO).faulty(LOSS);
    both_speak_first_with_loss: greeted([GREETING, GREETING], Duration::ZERO).faulty(LOSS);
    both_say_much_first_with_everything: greeted([5000, 5000], Duration::ZERO).faulty(ALL);
    postgres: Case::both_ways(4 * MIB).speaking(Speech::Postgres);
    postgres_with_a_proxy_header:
        Case { send_proxy: Some("v2"), ..Case::both_ways(MIB).speaking(Speech::Postgres) };
    smtp: Case::both_ways(4 * MIB).speaking(Speech::Starttls(&SMTP));
    smtp_with_a_proxy_header_and_loss:
        Case { send_proxy: Some("v2"), ..Case::both_ways(MIB).speaking(Speech::Starttls(&SMTP)).faulty(LOSS) };
    imap: Case::both_ways(MIB).speaking(Speech::Starttls(&IMAP));
    pop3: Case::both_ways(MIB).speaking(Speech::Starttls(&POP3));
    ldap: Case::both_ways(MIB).speaking(Speech::Starttls(&LDAP));
    xmpp: Case::both_ways(MIB).speaking(Speech::Starttls(&XMPP));
    postgres_with_loss: Case::both_ways(MIB).speaking(Speech::Postgres).faulty(LOSS);
}

/// The gateway's socket does not see what acknowledges the ClientHello: it comes with the server's first bytes.
fn answered_hello() -> Case {
    Case {
        opening: Opening { pieces: 5, ..Opening::default() },
        rounds: 20,
        attempts: 3,
        verify: |_, [_, gateway, _]| {
            let again = gateway.get("Tcp.RetransSegs");
            // Not none: now and then the gateway's process is late.
            ensure!(again <= 10, "sent {again} segments again");
            Ok(())
        },
        ..Case::both_ways(MIB)
    }
}

const WHILE: Duration = Duration::from_millis(200);

/// Client and server say so much first over plain TCP; the rest of what the server sends takes so long to begin.
fn greeted([client, server]: [u64; 2], pause: Duration) -> Case {
    let case = Case::exchange(Plan { chunk: 10_000, ..Plan::both_ways(100_000) }).speaking(Speech::Tcp);
    Case {
        client: Plan { greeting: client, ..case.client.clone() },
        server: Plan {
            greeting: server,
            start: if pause.is_zero() { case.server.start } else { Start::Later(pause) },
            ..case.server.clone()
        },
        rounds: 5,
        ..case
    }
}

/// The client sends so many bytes in one write with the ClientHello.
fn early_data(bytes: u64) -> Case {
    let case = Case::exchange(Plan { chunk: bytes as usize, ..Plan::both_ways(MIB) });
    Case {
        opening: Opening { early_data: true, ..Opening::default() },
        client: Plan { greeting: bytes, ..case.client.clone() },
        ..case
    }
}

// What the two legs have negotiated.
cases! {
    no_timestamps: Case {
        prepare: |net| {
            net.client.sysctl(TIMESTAMPS, "0")?;
            net.server.sysctl(TIMESTAMPS, "0")
        },
        ..Case::both_ways(2 * MIB).faulty(ALL)
    };
    no_timestamps_of_the_client: Case {
        prepare: |net| net.client.sysctl(TIMESTAMPS, "0"),
        expect: Expect::Copy("timestamps_mismatch"),
        ..Case::both_ways(2 * MIB)
    };
    no_timestamps_of_the_server: Case {
        prepare: |net| net.server.sysctl(TIMESTAMPS, "0"),
        expect: Expect::Copy("timestamps_mismatch"),
        ..Case::both_ways(2 * MIB)
    };
    no_sack: Case {
        prepare: |net| {
            net.client.sysctl(SACK, "0")?;
            net.server.sysctl(SACK, "0")
        },
        ..Case::both_ways(2 * MIB).faulty(LOSS)
    };
    no_sack_of_the_client:
        Case { prepare: |net| net.client.sysctl(SACK, "0"), ..Case::both_ways(2 * MIB).faulty(LOSS) };
    no_sack_of_the_server:
        Case { prepare: |net| net.server.sysctl(SACK, "0"), ..Case::both_ways(2 * MIB).faulty(LOSS) };
    no_window_scale_of_the_client:
        Case { prepare: |net| net.client.sysctl(SCALING, "0"), ..Case::both_ways(16 * MIB) };
    no_window_scale_of_the_server:
        Case { prepare: |net| net.server.sysctl(SCALING, "0"), ..Case::both_ways(16 * MIB) };
    no_window_scale: Case {
        prepare: |net| {
            net.client.sysctl(SCALING, "0")?;
            net.server.sysctl(SCALING, "0")
        },
        ..Case::both_ways(16 * MIB)
    };
    a_smaller_window_scale_of_the_client:
        Case { prepare: |net| net.client.sysctl(RMEM, "4096 65536 131072"), ..Case::both_ways(16 * MIB) };
    a_smaller_window_scale_of_the_server:
        Case { prepare: |net| net.server.sysctl(RMEM, "4096 65536 131072"), ..Case::both_ways(16 * MIB) };
    a_smaller_window_scale_of_the_gateway:
        Case { prepare: |net| net.gateway.sysctl(RMEM, "4096 65536 131072"), ..Case::both_ways(16 * MIB) };
    a_larger_window_scale_of_the_client:
        Case { prepare: |net| net.client.sysctl(RMEM, "4096 131072 1000000000"), ..Case::both_ways(16 * MIB) };
    a_larger_window_scale_of_the_server:
        Case { prepare: |net| net.server.sysctl(RMEM, "4096 131072 1000000000"), ..Case::both_ways(16 * MIB) };
    ecn_toward_the_client: Case {
        prepare: |net| net.client.sysctl(ECN, "1"),
        verify: |net, _| ecn_on(net, [true, false]),
        ..marked()
    };
    ecn_toward_the_server: Case {
        prepare: |net| net.gateway.sysctl(ECN, "1"),
        verify: |net, _| ecn_on(net, [false, true]),
        ..marked()
    };
    ecn_on_both_legs: marked_on_both_legs();
    ecn_on_both_legs_ipv6: marked_on_both_legs().v6();
}

const TIMESTAMPS: &str = "net/ipv4/tcp_timestamps";
const SACK: &str = "net/ipv4/tcp_sack";
const SCALING: &str = "net/ipv4/tcp_window_scaling";
const RMEM: &str = "net/ipv4/tcp_rmem";
const ECN: &str = "net/ipv4/tcp_ecn";

/// Both wires mark now and then.
fn marked() -> Case {
    Case::both_ways(2 * MIB).faulty(Faults { mark: 0.02, ..Faults::NONE })
}

/// And both legs negotiate ECN.
fn marked_on_both_legs() -> Case {
    Case {
        prepare: |net| {
            net.client.sysctl(ECN, "1")?;
            net.gateway.sysctl(ECN, "1")
        },
        verify: |net, counted| {
            ecn_on(net, [true, true])?;
            congestion_is_heard_of(counted)
        },
        ..marked()
    }
}

/// On a leg that has negotiated ECN its end sends ECN-capable packets, and gets them if the other leg has, too. On any
/// other leg there is no trace of it.
fn ecn_on(net: &Triangle, legs: [bool; 2]) -> Result<()> {
    for (wire, ecn) in net.wires().zip(legs) {
        let [from_gateway, to_gateway] = wire.ways().map(|way| way.seen());
        ensure!((to_gateway.ecn_capable > 0) == ecn, "expected ECN to be {ecn}: {to_gateway:?}");
        let both = legs == [true, true];
        ensure!(!both || from_gateway.ecn_capable > 0, "expected ECN: {from_gateway:?}");
        for seen in [from_gateway, to_gateway] {
            ensure!(ecn || seen.ecn_capable + seen.ecn_echo == 0, "ECN where there should be none: {seen:?}");
        }
    }
    Ok(())
}

/// Marks reach the receiver and come back to the sender, from end to end where the packets do.
fn congestion_is_heard_of([client, gateway, server]: &[Counters; 3]) -> Result<()> {
    let ends = if PACKET { [client, server] } else { [gateway, gateway] };
    for end in ends {
        ensure!(end.get("TcpExt.TCPDeliveredCE") > 0, "{end:?}");
    }
    Ok(())
}

// How long packets may be.
cases! {
    a_smaller_mtu_toward_the_server: mtus(1500, 1400);
    a_smaller_mtu_toward_the_client: mtus(1400, 1500);
    jumbo_frames_toward_the_server: mtus(1500, 9000);
    jumbo_frames_toward_the_client: mtus(9000, 1500);
    jumbo_frames_toward_the_client_over_wires: Case { shape: WIRES, ..mtus(9000, 1500) };
    jumbo_frames_toward_the_client_ipv6: mtus(9000, 1500).v6();
    jumbo_frames: mtus(9000, 9000);
    a_router_toward_the_server_whose_link_shrinks: shrinking(Shape::Apart(Leg::Veth, Leg::Router));
    a_router_toward_the_client_whose_link_shrinks: shrinking(Shape::Apart(Leg::Router, Leg::Veth));
    a_router_toward_the_server_whose_link_shrinks_ipv6: shrinking(Shape::Apart(Leg::Veth, Leg::Router)).v6();
    a_router_toward_the_client_whose_link_shrinks_ipv6: shrinking(Shape::Apart(Leg::Router, Leg::Veth)).v6();
}

/// The gateway may have to learn of the shorter packets by a first connection.
fn mtus(front: u32, back: u32) -> Case {
    Case { mtu: [front, back], rounds: 3, ..Case::both_ways(4 * MIB) }
}

/// A link behind a router gets shorter packets in the middle of a connection; the router says so by ICMP.
fn shrinking(shape: Shape) -> Case {
    const MTU: u32 = 1300;
    let plan = Plan { pace: Duration::from_millis(4), ..Plan::both_ways(16 * MIB) };
    Case {
        shape,
        midway: Some(|net| {
            let (joint, behind) =
                if net.front.router().is_ok() { (&net.front, &net.client) } else { (&net.back, &net.server) };
            joint.router()?.ip(&format!("link set far mtu {MTU}"))?;
            behind.ip(&format!("link set eth0 mtu {MTU}"))?;
            Ok(())
        }),
        ..Case::exchange(plan)
    }
}

// Where the ends are.
cases! {
    a_bridge_toward_the_client: somewhere(Shape::Apart(Leg::Bridge, Leg::Veth));
    a_bridge_toward_the_client_ipv6: somewhere(Shape::Apart(Leg::Bridge, Leg::Veth)).v6();
    a_bridge_toward_the_server: somewhere(Shape::Apart(Leg::Veth, Leg::Bridge));
    a_bridge_toward_the_server_ipv6: somewhere(Shape::Apart(Leg::Veth, Leg::Bridge)).v6();
    a_device_without_a_link_header_toward_the_client: somewhere(Shape::Apart(TUN, Leg::Veth));
    a_device_without_a_link_header_toward_the_client_ipv6: somewhere(Shape::Apart(TUN, Leg::Veth)).v6();
    a_device_without_a_link_header_toward_the_server: somewhere(Shape::Apart(Leg::Veth, TUN));
    a_device_without_a_link_header_toward_the_server_ipv6: somewhere(Shape::Apart(Leg::Veth, TUN)).v6();
    devices_without_a_link_header: somewhere(Shape::Apart(TUN, TUN));
    one_arm: somewhere(Shape::OneArmed);
    one_arm_ipv6: somewhere(Shape::OneArmed).v6();
    a_server_on_the_loopback_address: somewhere(Shape::Local { loopback: true });
    a_server_on_the_loopback_address_ipv6: somewhere(Shape::Local { loopback: true }).v6();
    a_server_on_the_gateways_own_address: somewhere(Shape::Local { loopback: false });
    a_server_on_the_gateways_own_address_ipv6: somewhere(Shape::Local { loopback: false }).v6();
    a_server_of_the_other_family:
        Case { server_v6: true, expect: Expect::Copy("mixed_family"), ..Case::both_ways(MIB) };
}

const TUN: Leg = Leg::Wire(Kind::Ip);

fn somewhere(shape: Shape) -> Case {
    Case { shape, rounds: 2, ..Case::both_ways(8 * MIB) }
}

#[test]
fn a_vlan_on_either_leg() -> Result<()> {
    require!(has_vlans(), "this kernel has no VLAN devices (CONFIG_VLAN_8021Q)");
    for shape in [Shape::Apart(Leg::Vlan, Leg::Veth), Shape::Apart(Leg::Veth, Leg::Vlan)] {
        somewhere(shape).run()?;
        somewhere(shape).v6().run()?;
    }
    Ok(())
}

/// The kernel does not count what is behind urgent data among the unread.
#[test]
fn no_byte_behind_urgent_data_is_lost() -> Result<()> {
    let scene = Scene::new(Opening::default(), "")?;
    let mut client = SocketOptions::default().dial(&scene.net.client, scene.opening.target())?;
    // All of it before the gateway has a server: it reads the ClientHello, and no further.
    let last_is_urgent = [&client_hello(SNI, &[])[..], b"!"].concat();
    socket2::SockRef::from(&client).send_out_of_band(&last_is_urgent)?;
    client.write_all(&[7; 100])?;
    let mut server = scene.accepted(PATIENCE)?;
    let mut got = [0; 100];
    server.read_exact(&mut got)?;
    ensure!(got == [7; 100], "{got:?}");
    server.write_all(b"said")?;
    client.read_exact(&mut [0; 4])?;
    // The packet tier if the connection was there before the urgent byte.
    Expect::Either(&["urgent_data"]).check(&scene.gateway.connections()?[0])
}
