//! Reassembly of fragmented packets. Pure, and bounded in bytes, in number and in time.
//!
//! Overlapping fragments are an attack: two hosts would reassemble two different packets (RFC 5722). They are never
//! combined. An IPv6 packet is discarded with all its fragments, also later ones. An IPv4 packet is begun anew with the
//! fragment that overlaps: identifications have only 16 bits, so the earlier fragments may be of an older packet (RFC
//! 4963).

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::ip::{Ecn, Header, IpPacket, LONGEST, Place};
use super::loss::Loss;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// How long a packet waits for its fragments (RFC 791 has 15 s, RFC 8200 at most 60).
const PATIENCE: Duration = Duration::from_secs(15);
/// The most incomplete packets; the oldest is discarded first.
const MOST: usize = 512;
/// The most bytes of all incomplete packets.
const MOST_BYTES: usize = 4 << 20;
/// The most fragments of one packet: enough for the longest packet in fragments of a bit more than 512 bytes.
const MOST_PARTS: usize = 128;

/// By what the fragments of one packet are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// The device they come by: it decides to which connections a packet may belong.
    ifindex: u32,
    is_v4: bool,
    addresses: [u8; 32],
    id: u32,
}

/// An incomplete packet.
struct Waiting {
    since: Instant,
    /// The fragments' payload, by offset. Empty once the packet is given up.
    parts: BTreeMap<usize, Vec<u8>>,
    bytes: usize,
    /// The payload's length, once the last fragment has arrived.
    end: Option<usize>,
    /// The first fragment's header, and the protocol number of the payload.
    first: Option<(Header, u8)>,
    /// Which ECN codepoints the fragments had: bit n stands for codepoint n.
    ecn: u8,
    is_given_up: bool,
}

/// All incomplete packets.
#[derive(Default)]
pub(super) struct Fragments {
    waiting: HashMap<Key, Waiting>,
    bytes: usize,
}

/// A reassembled packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) header: Header,
    pub(super) next: u8,
    pub(super) payload: Vec<u8>,
}

impl Fragments {
    /// Adds a fragment that has come by this device. Returns the packet if this was its last missing fragment. Calls `lost`
    /// for what is discarded.
    pub(super) fn add(
        &mut self,
        now: Instant,
        ifindex: u32,
        packet: &IpPacket<'_>,
        place: Place,
        lost: &mut impl FnMut(Loss),
    ) -> Option<Whole> {
        let length = packet.payload.len();
        // Offsets count units of 8 bytes, so all but the last fragment have a multiple of that (RFC 8200, section 4.5).
        if length == 0 || place.more && !length.is_multiple_of(8) || place.offset + length > LONGEST {
            lost(Loss::Malformed);
            return None;
        }
        let key = Key::new(ifindex, packet, place);
        self.make_room(&key, length, lost);
        let waiting = self.waiting.entry(key).or_insert_with(|| Waiting::new(now));
        if waiting.is_given_up {
            return None;
        }
        let before = waiting.bytes;
        if let Err(loss) = waiting.add(packet, place) {
            lost(loss);
            if key.is_v4 && loss == Loss::Overlap {
                *waiting = Waiting::new(now);
                // Alone it overlaps nothing.
                let _ = waiting.add(packet, place);
            } else {
                waiting.give_up();
            }
        }
        self.bytes = self.bytes + waiting.bytes - before;
        if !waiting.is_whole() {
            return None;
        }
        let waiting = self.remove(&key)?;
        waiting.whole().map_err(lost).ok()
    }

    /// Discards packets that have been incomplete for too long.
    pub(super) fn expire(&mut self, now: Instant, lost: &mut impl FnMut(Loss)) {
        self.waiting.retain(|_, waiting| {
            let waits = now.saturating_duration_since(waiting.since) < PATIENCE;
            if !waits {
                self.bytes -= waiting.bytes;
                if !waiting.is_given_up {
                    lost(Loss::Incomplete);
                }
            }
            waits
        });
    }

    /// Whether there is no incomplete packet.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn make_room(&mut self, key: &Key, length: usize, lost: &mut impl FnMut(Loss)) {
        while self.bytes + length > MOST_BYTES
            || self.waiting.len() >= MOST && !self.waiting.contains_key(key)
        {
            let oldest = self.waiting.iter().min_by_key(|(_, waiting)| waiting.since);
            let Some((oldest, _)) = oldest.map(|(key, waiting)| (*key, waiting)) else { return };
            if self.remove(&oldest).is_some_and(|waiting| !waiting.is_given_up) {
                lost(Loss::TooMany);
            }
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Waiting> {
        let waiting = self.waiting.remove(key)?;
        self.bytes -= waiting.bytes;
        Some(waiting)
    }
}

impl Key {
    fn new(ifindex: u32, packet: &IpPacket<'_>, place: Place) -> Self {
        let found = packet.header.addresses();
        let mut addresses = [0; 32];
        addresses[..found.len()].copy_from_slice(found);
        Self { ifindex, is_v4: matches!(packet.header, Header::V4(_)), addresses, id: place.id }
    }
}

impl Waiting {
    fn new(since: Instant) -> Self {
        Self { since, parts: BTreeMap::new(), bytes: 0, end: None, first: None, ecn: 0, is_given_up: false }
    }

    fn add(&mut self, packet: &IpPacket<'_>, place: Place) -> Result<(), Loss> {
        let (start, end) = (place.offset, place.offset + packet.payload.len());
        if self.parts.get(&start).is_some_and(|known| known == packet.payload) {
            // A duplicate.
            return Ok(());
        }
        let before = self.parts.range(..end).next_back();
        if before.is_some_and(|(known, part)| known + part.len() > start) {
            return Err(Loss::Overlap);
        }
        let furthest = self.parts.last_key_value().map_or(0, |(known, part)| known + part.len());
        let beyond = self.end.is_some_and(|known| end > known || !place.more);
        if beyond || !place.more && furthest > end {
            return Err(Loss::Overlap);
        }
        if self.parts.len() == MOST_PARTS {
            return Err(Loss::TooMany);
        }
        if !place.more {
            self.end = Some(end);
        }
        if start == 0 {
            self.first = Some((packet.header, packet.next));
        }
        self.ecn |= 1 << packet.header.ecn().bits();
        self.bytes += packet.payload.len();
        self.parts.insert(start, packet.payload.to_vec());
        Ok(())
    }

    /// Discards the payload. The packet stays in the list, so that later fragments are discarded too.
    fn give_up(&mut self) {
        self.parts.clear();
        self.bytes = 0;
        self.is_given_up = true;
    }

    fn is_whole(&self) -> bool {
        // Fragments do not overlap, so their bytes add up.
        self.end == Some(self.bytes)
    }

    fn whole(self) -> Result<Whole, Loss> {
        let (mut header, next) = self.first.ok_or(Loss::Malformed)?;
        // RFC 3168, section 5.3.
        let had = |ecn: Ecn| self.ecn & 1 << ecn.bits() != 0;
        if had(Ecn::CONGESTED) {
            if had(Ecn::NOT_CAPABLE) {
                return Err(Loss::Congestion);
            }
            header.set_ecn(Ecn::CONGESTED);
        }
        let parts: Vec<Vec<u8>> = self.parts.into_values().collect();
        Ok(Whole { header, next, payload: parts.concat() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::ip::tests::plain;
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const IFINDEX: u32 = 3;

    /// The header of a packet of this IP version, with this ECN codepoint.
    fn header(v6: bool, ecn: u8) -> Header {
        let bytes = plain(v6, b"");
        let mut header = IpPacket::parse(&bytes).unwrap().header;
        header.set_ecn(Ecn::of(ecn));
        header
    }

    /// A reassembly under test, and what it has lost.
    struct Desk {
        fragments: Fragments,
        now: Instant,
        lost: Vec<Loss>,
        v6: bool,
        ecn: u8,
        ifindex: u32,
    }

    impl Desk {
        #[expect(clippy::disallowed_methods, reason = "an Instant has no other origin")]
        fn new(v6: bool) -> Self {
            let (fragments, now) = (Fragments::default(), Instant::now());
            Self { fragments, now, lost: Vec::new(), v6, ecn: 2, ifindex: IFINDEX }
        }

        fn add(&mut self, id: u32, offset: usize, payload: &[u8], more: bool) -> Option<Vec<u8>> {
            let header = header(self.v6, self.ecn);
            let packet = IpPacket { header, next: 6, payload, place: None };
            let place = Place { id, offset, more };
            let lost = &mut |loss| self.lost.push(loss);
            let whole = self.fragments.add(self.now, self.ifindex, &packet, place, lost);
            let held: usize = self.fragments.waiting.values().map(|waiting| waiting.bytes).sum();
            assert_eq!(self.fragments.bytes, held);
            assert!(held <= MOST_BYTES && self.fragments.waiting.len() <= MOST);
            whole.map(|whole| whole.payload)
        }
    }

    proptest! {
        #[test]
        fn a_packet_is_whole_again_in_whatever_order_its_fragments_come(
            v6: bool,
            payload in vec(any::<u8>(), 1..4000),
            size in 1..64_usize,
            order in vec(any::<u32>(), 500),
            twice in vec(any::<bool>(), 500),
        ) {
            // At most MOST_PARTS fragments.
            let size = (size * 8).max(payload.len().div_ceil(MOST_PARTS).next_multiple_of(8));
            let mut parts: Vec<_> = payload.chunks(size).enumerate().collect();
            let last = parts.len() - 1;
            parts.sort_by_key(|(at, _)| order[*at % order.len()]);
            let mut desk = Desk::new(v6);
            let mut whole = None;
            for (done, (at, part)) in parts.iter().enumerate() {
                prop_assert_eq!(&whole, &None);
                if done != last && twice[done % twice.len()] {
                    prop_assert_eq!(desk.add(1, at * size, part, *at != last), None);
                }
                whole = desk.add(1, at * size, part, *at != last);
            }
            prop_assert_eq!(whole, Some(payload));
            prop_assert!(desk.fragments.is_empty() && desk.lost.is_empty());
        }

        /// For any fragments: every byte of a reassembled packet was sent at its offset, and in the end nothing is left
        /// over.
        #[test]
        fn fragments_are_never_mixed(
            v6: bool,
            parts in vec((0..3_u32, 0..12_usize, 0..5_usize, any::<bool>(), any::<u8>()), 0..60),
        ) {
            let mut desk = Desk::new(v6);
            let mut sent: Vec<(u32, usize, Vec<u8>)> = Vec::new();
            for (id, offset, length, more, byte) in parts {
                let payload = vec![byte; length * 8];
                sent.push((id, offset * 8, payload.clone()));
                if let Some(whole) = desk.add(id, offset * 8, &payload, more) {
                    for (at, byte) in whole.iter().enumerate() {
                        let known = sent.iter().any(|(of, start, part)| {
                            *of == id && at.checked_sub(*start).and_then(|at| part.get(at)) == Some(byte)
                        });
                        prop_assert!(known, "byte {} of {:?}", at, whole);
                    }
                }
            }
            desk.fragments.expire(desk.now + PATIENCE, &mut |_| {});
            prop_assert!(desk.fragments.is_empty() && desk.fragments.bytes == 0);
        }
    }

    #[test]
    fn an_ipv6_packet_whose_fragments_overlap_is_given_up_with_those_to_come() {
        for (offset, length, more) in
            [(8, 16, true), (0, 8, true), (0, 32, true), (16, 8, true), (8, 8, false)]
        {
            let mut desk = Desk::new(true);
            assert_eq!(desk.add(1, 0, &[1; 16], true), None);
            assert_eq!(desk.add(1, 16, &[1; 16], true), None);
            assert_eq!(desk.add(1, offset, &vec![2; length], more), None);
            assert_eq!(desk.lost, [Loss::Overlap], "{offset} {length}");
            assert_eq!(desk.add(1, 0, &[1; 16], true), None);
            assert_eq!(desk.add(1, 16, &[1; 8], false), None);
            // Another packet is not affected.
            assert_eq!(desk.add(2, 8, &[1; 1], false), None);
            assert!(desk.add(2, 0, &[1; 8], true).is_some());
            assert_eq!(desk.lost.len(), 1);
        }
    }

    #[test]
    fn an_ipv4_identification_that_comes_again_is_of_another_packet() {
        let mut desk = Desk::new(false);
        // The rest of this packet is lost.
        assert_eq!(desk.add(1, 0, &[1; 16], true), None);
        assert_eq!(desk.add(1, 0, &[2; 16], true), None);
        assert_eq!(desk.lost, [Loss::Overlap]);
        assert_eq!(desk.add(1, 16, &[2; 4], false), Some(vec![2; 20]));
    }

    #[test]
    fn a_packet_does_not_go_on_behind_its_last_fragment() {
        let mut desk = Desk::new(true);
        assert_eq!(desk.add(1, 8, &[1; 8], false), None);
        assert_eq!(desk.add(1, 16, &[1; 8], true), None);
        assert_eq!(desk.add(2, 16, &[1; 8], true), None);
        assert_eq!(desk.add(2, 8, &[1; 8], false), None);
        assert_eq!(desk.add(3, 8, &[1; 8], false), None);
        assert_eq!(desk.add(3, 16, &[1; 8], false), None);
        assert_eq!(desk.lost, [Loss::Overlap; 3]);
    }

    #[test]
    fn lengths_that_cannot_be_are_not_taken() {
        let mut desk = Desk::new(false);
        for (offset, length, more) in [(8, 0, true), (0, 0, false), (8, 7, true), (65_528, 8, false)] {
            assert_eq!(desk.add(1, offset, &vec![0; length], more), None);
        }
        assert_eq!(desk.lost, [Loss::Malformed; 4]);
        assert!(desk.fragments.is_empty());
    }

    #[test]
    fn what_another_device_received_is_of_another_packet() {
        let mut desk = Desk::new(true);
        assert_eq!(desk.add(1, 0, &[1; 8], true), None);
        desk.ifindex += 1;
        assert_eq!(desk.add(1, 8, &[1; 8], false), None);
        desk.ifindex -= 1;
        assert!(desk.add(1, 8, &[1; 8], false).is_some());
    }

    #[test]
    fn the_oldest_makes_room_and_nobody_waits_for_ever() {
        let mut desk = Desk::new(false);
        for id in 0..MOST as u32 {
            desk.now += Duration::from_millis(1);
            assert_eq!(desk.add(id, 0, &[1; 8], true), None);
        }
        desk.now += Duration::from_millis(1);
        assert_eq!(desk.add(9999, 0, &[1; 8], true), None);
        assert_eq!(desk.lost, [Loss::TooMany]);
        // The first is gone, the second is not.
        assert!(desk.add(1, 8, &[1; 8], false).is_some());
        assert_eq!(desk.add(0, 8, &[1; 8], false), None);
        desk.lost.clear();
        let waiting = desk.fragments.waiting.len();
        desk.fragments.expire(desk.now + PATIENCE, &mut |loss| desk.lost.push(loss));
        assert_eq!(desk.lost, vec![Loss::Incomplete; waiting]);
        assert!(desk.fragments.is_empty());
    }

    #[test]
    fn bytes_and_fragments_are_bounded() {
        let mut desk = Desk::new(true);
        for id in 0..200 {
            desk.now += Duration::from_millis(1);
            assert_eq!(desk.add(id, 0, &[1; 65_528], true), None);
        }
        assert_eq!(desk.lost.len(), 200 - MOST_BYTES / 65_528);
        let mut desk = Desk::new(true);
        for at in 0..=MOST_PARTS {
            assert_eq!(desk.add(1, at * 16, &[1; 8], true), None);
        }
        assert_eq!(desk.lost, [Loss::TooMany]);
    }

    #[test]
    fn congestion_that_a_fragment_has_met_the_packet_has_met() {
        for (first, second, whole) in
            [(2, 2, Ok(2)), (2, 3, Ok(3)), (3, 1, Ok(3)), (2, 1, Ok(2)), (0, 3, Err(()))]
        {
            let mut desk = Desk::new(true);
            let mut add = |ecn, offset, more| {
                let header = header(true, ecn);
                let packet = IpPacket { header, next: 6, payload: &[1; 8], place: None };
                let place = Place { id: 1, offset, more };
                desk.fragments.add(desk.now, IFINDEX, &packet, place, &mut |loss| desk.lost.push(loss))
            };
            assert_eq!(add(first, 0, true), None);
            let made = add(second, 8, false);
            assert_eq!(made.map(|whole| whole.header.ecn().bits()).ok_or(()), whole, "{first} {second}");
            assert_eq!(desk.lost.is_empty(), whole.is_ok());
        }
    }
}
