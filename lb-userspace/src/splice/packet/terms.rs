//! The terms of a handover: whether a connection can be spliced, and its two flows, computed from its two legs. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::kernel::tcp::LegState;
use crate::kernel::tuples::ends;
use crate::reason::FallbackReason;
use lb_common::packet::inject::Way;
use lb_common::packet::track::{Half, Track, closing};
use lb_common::packet::{Flow, Handover, PerDirection, PerLeg, Side, Sighting, Tuple, before, flag, sighted};
use std::time::Duration;

/// The largest prefix, in bytes and per direction.
pub(crate) const MAX_PREFIX: usize = 256 * 1024;

/// How far ahead of our sockets' clocks translated timestamps begin. A socket may send its prefix that much later than its clock
/// was read here, and its timestamps are still older than those that follow, whatever the clock of the end. After a loss the
/// end's clock has gone on, too, if it counts milliseconds.
pub(super) const LEAD: Duration = Duration::from_millis(64);

/// The smallest MSS that a listener is made to announce because of a server.
const MIN_CLAMP: u32 = 1200;

/// The MSS of an IPv4 host that sends no MSS option (RFC 9293, section 3.7.1).
const DEFAULT_MSS: u16 = 536;

/// The legs of a connection, with what the programs have seen of their handshakes.
pub(crate) struct Legs<'a> {
    pub(crate) states: PerLeg<&'a LegState>,
    pub(crate) sightings: PerLeg<&'a Sighting>,
    /// The tuple of each leg's packets as they arrive.
    pub(crate) tuples: PerLeg<Tuple>,
    /// How packets leave by a leg.
    pub(crate) ways: PerLeg<Way>,
    /// Bytes read from the client's socket and not written to the server's.
    pub(crate) held: usize,
    /// Bytes of each end that were passed on before.
    pub(crate) passed: PerLeg<u64>,
}

/// Why a connection cannot be spliced.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: FallbackReason,
    /// If the listener announces this MSS, its next connections will not be refused for that reason.
    pub(crate) clamp: Option<u16>,
}

impl From<FallbackReason> for Refusal {
    fn from(reason: FallbackReason) -> Self {
        Self { reason, clamp: None }
    }
}

/// The flows and the track, and what the programs must know until the sockets are closed.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) flows: PerDirection<Flow>,
    /// The track at the start.
    pub(crate) track: Track,
    pub(crate) handover: Handover,
    /// Sequence number after the last byte that was written to each leg's socket.
    pub(crate) written: PerLeg<u32>,
    /// Of each leg's socket: how many bytes were read from it, and the sequence number of the first.
    pub(crate) seen: PerLeg<(u64, u32)>,
}

impl Terms {
    pub(crate) fn new(id: u64, now_tick: u32, at: &Legs<'_>) -> Result<Self, Refusal> {
        let PerLeg { client, server } = at.states;
        if !client.is_established || !server.is_established {
            return Err(FallbackReason::Closing.into());
        }
        for (leg, sighting) in at.states.iter().zip(at.sightings.iter()) {
            // The sighting may be of an older connection with the same tuple.
            let first = leg.receive_next.wrapping_sub(leg.bytes_received as u32).wrapping_sub(1);
            if sighting.isn != first
                || !is_seen(leg, sighting)
                || leg.timestamps != (sighting.flags & sighted::TIMESTAMPS != 0)
            {
                return Err(FallbackReason::NoSynSeen.into());
            }
            if sighting.flags & sighted::ACCURATE_ECN != 0 && leg.ecn {
                return Err(FallbackReason::AccurateEcn.into());
            }
        }
        if client.timestamps != server.timestamps {
            return Err(FallbackReason::TimestampsMismatch.into());
        }
        if at.held + client.unread as usize > MAX_PREFIX || server.unread as usize > MAX_PREFIX {
            return Err(FallbackReason::PrefixTooLarge.into());
        }
        let [peer, _] = ends(&at.tuples.client);
        for from in Side::BOTH {
            let to = from.other();
            let takes = largest_segment(at.states.of(to), at.sightings.of(to), peer.is_ipv4());
            if at.states.of(from).advertised_mss > takes {
                let clamp = (to == Side::Server && takes >= MIN_CLAMP).then_some(takes as u16);
                return Err(Refusal { reason: FallbackReason::MssMismatch, clamp });
            }
        }
        let terms = Self::agreed(id, now_tick, at);
        // Our socket may have let an end send past the far end's window; that end's ACKs are then dropped there (RFC 9293,
        // section 3.10.7.4). One direction recovers by the other's ACKs; both at once can deadlock. A quarter of the window
        // is tolerated: the prefix takes room, and our sockets' windows grow while they wait.
        let oversent = |from: Side| {
            let (from_leg, to_leg) = (at.states.of(from), at.states.of(from.other()));
            let promised = from_leg.promised.wrapping_add(terms.flows.get(from).seq_delta);
            let window = to_leg.room.wrapping_sub(to_leg.write_seq.wrapping_sub(to_leg.unacknowledged));
            before(to_leg.room.wrapping_add(window / 4), promised)
        };
        if Side::BOTH.into_iter().all(oversent) {
            return Err(FallbackReason::WindowMismatch.into());
        }
        Ok(terms)
    }

    /// Whether both legs have timestamps.
    pub(crate) fn has_timestamps(&self) -> bool {
        self.flows.request.flags & flag::TIMESTAMPS != 0
    }

    fn agreed(id: u64, now_tick: u32, at: &Legs<'_>) -> Self {
        let PerLeg { client, server } = at.states;
        // The byte that userspace would read next from one socket is the byte that it would write next to the other, after
        // those that it holds.
        let next_read = at.states.map(|leg| leg.receive_next.wrapping_sub(leg.unread));
        let next_written =
            PerLeg { client: client.write_seq, server: server.write_seq.wrapping_add(at.held as u32) };
        let seq_delta = PerDirection {
            request: next_written.server.wrapping_sub(next_read.client),
            response: next_written.client.wrapping_sub(next_read.server),
        };
        // An end's timestamps are translated to those of our socket on the other leg, and a little ahead of them: what the
        // sockets still send must not be newer than what follows. Of the end's clock only the TSval of its handshake is
        // known; the time since then adds to the lead.
        let lead = |leg: &LegState| match leg.fine_timestamps {
            true => LEAD.as_micros() as u32,
            false => LEAD.as_millis() as u32,
        };
        let clock = at.states.map(|leg| leg.timestamp.wrapping_add(lead(leg)));
        let tsval_delta = PerDirection {
            request: clock.server.wrapping_sub(at.sightings.client.tsval),
            response: clock.client.wrapping_sub(at.sightings.server.tsval),
        };
        let mut flags = 0;
        for (bit, set) in [
            (flag::TIMESTAMPS, client.timestamps && server.timestamps),
            (flag::SACK, client.sack && server.sack),
            (flag::STRIP_ECN, client.ecn != server.ecn),
        ] {
            if set {
                flags |= bit;
            }
        }
        let first_wrap = |number: u32| 1 << 32 | u64::from(number);
        let held = PerLeg { client: at.held as u32, server: 0 };
        let flow = |from: Side| {
            let (to, leg) = (from.other(), at.states.of(from));
            Flow {
                id,
                // More than 4 GiB may have passed before, if both ends saw to it.
                origin: (first_wrap(leg.receive_next) - u64::from(held.of(from) + leg.unread))
                    .saturating_sub(at.passed.of(from)),
                out: at.tuples.of(to).reversed(),
                seq_delta: seq_delta.of(from),
                ack_delta: seq_delta.of(to).wrapping_neg(),
                tsval_delta: tsval_delta.of(from),
                tsecr_delta: tsval_delta.of(to).wrapping_neg(),
                ifindex: at.ways.of(to).ifindex,
                from: at.sightings.of(from).ifindex,
                slot: 0,
                own_scale: leg.peer_scale,
                peer_scale: at.states.of(to).peer_scale,
                promised_scale: at.states.of(to).own_scale,
                flags: flags | if from == Side::Server { flag::FROM_SERVER } else { 0 },
                exit: at.ways.of(to).kind,
                padding: [0; 3],
            }
        };
        let half = |from: Side| {
            let (other_leg, leg) = (at.states.of(from.other()), at.states.of(from));
            // The right edge of this end's window: what the end has advertised to our socket, or, if further, what our other
            // socket has advertised to the other end.
            let advertised = leg.room;
            let advertised_by_us = other_leg.promised.wrapping_add(seq_delta.of(from.other()));
            let largest = leg.largest_window.max(other_leg.own_window);
            let acknowledged = other_leg.write_seq.wrapping_sub(other_leg.unacknowledged);
            Half {
                position: first_wrap(leg.receive_next),
                gap: acknowledged.wrapping_sub(seq_delta.of(from)),
                ack: leg.write_seq.wrapping_sub(leg.unacknowledged),
                edge: if before(advertised, advertised_by_us) { advertised_by_us } else { advertised },
                heard: now_tick,
                tsval: at.sightings.of(from).tsval,
                most: u16::try_from(largest.div_ceil(1 << leg.peer_scale)).unwrap_or(u16::MAX),
                closing: closing::HANDOVER,
                asked: 0,
            }
        };
        Self {
            flows: PerDirection::from_fn(flow),
            track: Track { halves: PerLeg::from_fn(half) },
            handover: Handover {
                // After the prefix as far as it is known: what is held, and what is in the other socket's receive queue.
                await_ack: PerDirection {
                    request: next_written.client.wrapping_add(server.unread),
                    response: next_written.server.wrapping_add(client.unread),
                },
                tsecr_floor: PerDirection { request: clock.client, response: clock.server },
                promised: PerDirection { request: client.promised, response: server.promised },
            },
            written: at.states.map(|leg| leg.write_seq),
            seen: at.states.map(|leg| {
                let base = leg.receive_next.wrapping_sub(leg.bytes_received as u32);
                (leg.bytes_received.saturating_sub(leg.unread.into()), base)
            }),
        }
    }
}

/// Whether our socket's sequence numbers are those on the wire. They are not if something between the device and the socket
/// changes them: SYNPROXY, or a load balancer's hook.
fn is_seen(leg: &LegState, sighting: &Sighting) -> bool {
    /// Bytes that may be acknowledged between two system calls.
    const MEANWHILE: u64 = 1 << 16;
    let acknowledged = leg.write_seq.wrapping_sub(leg.unacknowledged);
    let since = u64::from(acknowledged.wrapping_sub(sighting.ack));
    sighting.flags & sighted::ACKNOWLEDGED != 0 && since <= leg.bytes_acked + MEANWHILE
}

/// The largest segment that a leg accepts, in bytes without TCP options.
fn largest_segment(leg: &LegState, sighting: &Sighting, is_ipv4: bool) -> u32 {
    let headers = if is_ipv4 { 40 } else { 60 };
    let announced = if sighting.mss == 0 { DEFAULT_MSS } else { sighting.mss };
    leg.path_mtu.saturating_sub(headers).min(announced.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tuples::tuple;
    use lb_common::packet::NO_WINDOW_SCALE;

    fn leg(write_seq: u32, receive_next: u32) -> LegState {
        LegState {
            is_established: true,
            write_seq,
            receive_next,
            unread: 0,
            unacknowledged: 0,
            promised: receive_next.wrapping_add(65_000),
            room: write_seq.wrapping_add(65_000),
            largest_window: 65_000,
            own_window: 65_000,
            bytes_acked: 0,
            bytes_received: 0,
            peer_scale: 7,
            own_scale: 7,
            timestamps: true,
            sack: true,
            ecn: false,
            advertised_mss: 1460,
            path_mtu: 1500,
            timestamp: 1000,
            fine_timestamps: false,
        }
    }

    fn sighting(leg: &LegState) -> Sighting {
        Sighting {
            isn: leg.receive_next.wrapping_sub(leg.bytes_received as u32).wrapping_sub(1),
            ifindex: 2,
            tsval: 500,
            mss: 1460,
            flags: sighted::TIMESTAMPS | sighted::SACK | sighted::ACKNOWLEDGED,
            window_scale: NO_WINDOW_SCALE,
            ack: leg.write_seq.wrapping_sub(leg.unacknowledged).wrapping_sub(leg.bytes_acked as u32),
        }
    }

    fn terms(client: &LegState, server: &LegState, held: usize) -> Result<Terms, Refusal> {
        let states = PerLeg { client, server };
        let sightings = states.map(sighting);
        let [a, b, c, d] =
            ["10.0.0.1:1", "10.0.0.2:443", "10.0.0.3:5", "10.0.0.4:6379"].map(|text| text.parse().unwrap());
        let tuples = PerLeg { client: tuple(a, b), server: tuple(d, c) };
        let ways = PerLeg { client: 2, server: 3 }.map(|ifindex| Way { ifindex, kind: 0 });
        let sightings = PerLeg { client: &sightings.client, server: &sightings.server };
        let passed = PerLeg { client: 7, server: 9 };
        let at = Legs { states, sightings, tuples, ways, held, passed };
        Terms::new(1, 77, &at)
    }

    #[test]
    fn the_next_byte_of_each_end_follows_the_prefix() {
        // 300 bytes read and held, 20 unread; the server has spoken 5 bytes, unread.
        let mut client = leg(u32::MAX, 100);
        (client.unread, client.bytes_received) = (20, 320);
        let mut server = leg(7000, 2);
        (server.unread, server.bytes_received) = (5, 5);
        let Terms { flows: PerDirection { request, response }, track, written, .. } =
            terms(&client, &server, 300).unwrap();
        // The client's next byte comes behind 320 bytes of prefix.
        assert_eq!(100_u32.wrapping_add(request.seq_delta), 7320);
        assert_eq!(7320_u32.wrapping_add(response.ack_delta), 100);
        // The server's next one behind its 5.
        assert_eq!(2_u32.wrapping_add(response.seq_delta), 4);
        assert_eq!(4_u32.wrapping_add(request.ack_delta), 2);
        let [of_client, of_server] = track.halves.each_ref();
        assert_eq!([of_client.end(), of_server.end()], [100, 2]);
        // And what was passed on before.
        let accounted = [of_client.position - request.origin, of_server.position - response.origin];
        assert_eq!(accounted, [320 + 7, 5 + 9]);
        assert_eq!(written, PerLeg { client: u32::MAX, server: 7000 });
        assert_eq!(request.out, tuple("10.0.0.3:5".parse().unwrap(), "10.0.0.4:6379".parse().unwrap()));
    }

    #[test]
    fn timestamps_go_on_from_our_own_clocks() {
        let (client, mut server) = (leg(1, 1), leg(1, 1));
        server.timestamp = 77_000;
        let Terms { flows: PerDirection { request, response }, handover, .. } =
            terms(&client, &server, 0).unwrap();
        assert_eq!(request.timestamps(500, 0, None).0, 77_000 + 64);
        assert_eq!(response.timestamps(500, 0, None).0, 1000 + 64);
        // What the client echoes of a translated timestamp comes back to the server as it was.
        assert_eq!(request.timestamps(0, 1000 + 64 + 3, Some(handover.tsecr_floor.request)).1, 503);
        assert_eq!(request.timestamps(0, 1000, Some(handover.tsecr_floor.request)).1, 0);
    }

    #[test]
    fn windows_are_shifted_from_what_the_sender_means_to_what_the_receiver_was_told() {
        let (mut client, mut server) = (leg(1, 1), leg(1, 1));
        (client.peer_scale, client.own_scale) = (2, 3);
        (server.peer_scale, server.own_scale) = (9, 7);
        let Terms { flows: PerDirection { request, response }, .. } = terms(&client, &server, 0).unwrap();
        assert_eq!([request.own_scale, request.peer_scale, request.promised_scale], [2, 9, 7]);
        assert_eq!([response.own_scale, response.peer_scale, response.promised_scale], [9, 2, 3]);
    }

    #[test]
    fn each_end_is_known_by_what_both_sockets_know() {
        // Of 300 bytes written to the client 100 are acknowledged, and it has room for 1000.
        let mut client = leg(5000, 700);
        (client.unacknowledged, client.bytes_acked) = (200, 100);
        (client.room, client.largest_window) = (5800, 1001);
        let mut server = leg(9000, 40);
        server.own_window = 500;
        server.promised = 540;
        let Terms { flows: PerDirection { request, response }, track, .. } =
            terms(&client, &server, 0).unwrap();
        let [of_client, of_server] = track.halves.each_ref();
        assert_eq!(of_client.position, 1 << 32 | 700);
        // Nothing is missing of what it has sent.
        assert_eq!(of_client.gap, of_server.ack.wrapping_sub(request.seq_delta));
        assert_eq!(of_client.ack, 4800);
        // The server may send to 540, by its own count; that is 5500 by the client's. The client has offered more.
        assert_eq!(540_u32.wrapping_add(response.seq_delta), 5500);
        assert_eq!(of_client.edge, 5800);
        // Rounded up, in units of 128.
        assert_eq!(of_client.most, 8);
        assert_eq!((of_client.heard, of_client.tsval), (77, 500));
        assert_eq!((of_client.closing, of_client.asked), (closing::HANDOVER, 0));
    }

    #[test]
    fn what_changes_the_gateways_numbers_on_the_way_to_the_wire_is_noticed() {
        let (client, server) = (leg(5000, 1), leg(7000, 1));
        let sightings = [sighting(&client), sighting(&server)];
        for (change, seen) in [
            (sightings[0], true),
            // Acknowledged since.
            (Sighting { ack: 4990, ..sightings[0] }, true),
            // Of numbers that the socket does not know: beyond it, and long before it.
            (Sighting { ack: 5001, ..sightings[0] }, false),
            (Sighting { ack: 0x8000_0000, ..sightings[0] }, false),
            (Sighting { flags: 0, ..sightings[0] }, false),
        ] {
            assert_eq!(is_seen(&client, &change), seen, "{change:?}");
        }
    }

    #[test]
    fn what_cannot_be_translated_is_refused() {
        type Spoil = fn(&mut LegState, &mut LegState);
        let cases: [(Spoil, FallbackReason); 4] = [
            (|client, _| client.is_established = false, FallbackReason::Closing),
            (|_, server| server.timestamps = false, FallbackReason::NoSynSeen),
            (|_, server| server.unread = MAX_PREFIX as u32 + 1, FallbackReason::PrefixTooLarge),
            (|_, server| server.advertised_mss = 1461, FallbackReason::MssMismatch),
        ];
        for (spoil, reason) in cases {
            let (mut client, mut server) = (leg(1, 1), leg(1, 1));
            spoil(&mut client, &mut server);
            assert_eq!(terms(&client, &server, 0).unwrap_err().reason, reason);
        }
    }

    #[test]
    fn windows_may_shrink_in_one_direction_and_not_in_both() {
        // Our sockets have promised 65 000 bytes each.
        for (client_room, server_room, refused) in
            [(50_000, 50_000, true), (2000, 65_000, false), (60_000, 2000, false), (40_000, 0, true)]
        {
            let (mut client, mut server) = (leg(u32::MAX, 100), leg(7000, u32::MAX - 5));
            client.room = client.write_seq.wrapping_add(client_room);
            server.room = server.write_seq.wrapping_add(server_room);
            let reason = terms(&client, &server, 0).err().map(|refusal| refusal.reason);
            assert_eq!(
                reason,
                refused.then_some(FallbackReason::WindowMismatch),
                "{client_room} {server_room}"
            );
        }
    }

    #[test]
    fn a_smaller_server_teaches_the_listener_its_mss() {
        let (client, mut server) = (leg(1, 1), leg(1, 1));
        server.path_mtu = 1400;
        let refusal = terms(&client, &server, 0).unwrap_err();
        assert_eq!(refusal, Refusal { reason: FallbackReason::MssMismatch, clamp: Some(1360) });
        server.path_mtu = 1000;
        assert_eq!(terms(&client, &server, 0).unwrap_err().clamp, None);
    }
}
