// One end of a connection: a sender and a receiver as RFC 9293 has them, with what Linux makes of the details. It keeps
// all ranges that it has received and every number without wrapping, so it knows of each segment whether it takes it.
//
// Numbers are offsets in a stream of bytes, 0 being the first that follows the handshake; a FIN takes one.

use lb_common::packet::track::Segment;
use lb_common::packet::translate::tcp::{ACK, FIN, RST, SYN};

/// Numbers by chance, always the same for a seed (xorshift64*).
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn word(&mut self) -> u32 {
        (self.number() >> 32) as u32
    }

    /// 0 to one less than this.
    pub(crate) fn below(&mut self, limit: i64) -> i64 {
        (self.number() >> 1) as i64 % limit.max(1)
    }

    pub(crate) fn percent(&mut self, chance: i64) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn of<T: Copy>(&mut self, choice: &[T]) -> T {
        choice[self.below(choice.len() as i64) as usize]
    }
}

/// What decides whether an end takes a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    /// What it expects next.
    pub(crate) next: i64,
    /// What it has last said that it expects.
    pub(crate) told: i64,
    /// Where the windows end that it has granted.
    pub(crate) edge: i64,
    /// What the other end may acknowledge at least: older is taken for forged (RFC 5961, section 5.2).
    pub(crate) oldest: i64,
    /// What it has sent.
    pub(crate) sent: i64,
    /// The other end's FIN is in order: it takes a reset at that FIN's number as well.
    pub(crate) fin_taken: bool,
}

impl State {
    /// `seq`, `end` and `ack` are those of the segment, as offsets.
    pub(crate) fn takes(&self, flags: u8, seq: i64, end: i64, ack: i64) -> bool {
        if flags & RST != 0 {
            return seq == self.next || self.fin_taken && seq == self.next - 1;
        }
        flags & SYN == 0
            && flags & ACK != 0
            && end >= self.told
            && seq <= self.edge
            && ack >= self.oldest
            && ack <= self.sent
    }
}

/// How an end is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nature {
    /// The number of its first byte, in its own packets.
    pub(crate) first: u32,
    /// That of the other end's first byte, as it arrives.
    pub(crate) peer_first: u32,
    /// Scale of its windows.
    pub(crate) scale: u8,
    /// Scale of the windows that it is told.
    pub(crate) told_scale: u8,
    /// Bytes that it sends at most at once.
    pub(crate) most: i64,
    /// Room for bytes that its program has not read.
    pub(crate) room: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) nature: Nature,
    /// Bytes that it is to send, of which all may be sent.
    pub(crate) length: i64,
    /// A FIN is to follow them.
    pub(crate) finishes: bool,
    pub(crate) state: State,
    /// What the other end has acknowledged.
    pub(crate) acknowledged: i64,
    /// The end of the largest window that it was told.
    pub(crate) limit: i64,
    /// The largest window that it was told.
    largest: i64,
    /// What it has received beyond `next`, in order, without overlaps.
    ranges: Vec<(i64, i64)>,
    /// The FINs that it has received: of several, at most one is not a stranger's.
    peer_fins: Vec<i64>,
    unread: i64,
    clock: u32,
}

impl End {
    /// `window`: what it is told at the handshake.
    pub(crate) fn new(nature: Nature, window: i64) -> Self {
        let state = State { next: 0, told: 0, edge: 0, oldest: -window, sent: 0, fin_taken: false };
        let mut end = Self {
            nature,
            length: 0,
            finishes: false,
            state,
            acknowledged: 0,
            limit: window,
            largest: window,
            ranges: Vec::new(),
            peer_fins: Vec::new(),
            unread: 0,
            clock: nature.first ^ 0x5555,
        };
        // Its own, at the handshake.
        end.segment(0, 0, 0);
        end
    }

    /// The field that says what room there is. Rounded up, and never less than was granted.
    pub(crate) fn window(&self) -> u16 {
        let unit = 1 << self.nature.scale;
        let room = (self.nature.room - self.unread).max(self.state.edge - self.state.next).max(0);
        ((room + unit - 1) / unit).min(0xffff) as u16
    }

    /// A segment of its own.
    fn segment(&mut self, flags: u8, seq: i64, payload: i64) -> Segment {
        let window = self.window();
        self.state.told = self.state.next;
        self.state.edge = self.state.edge.max(self.state.next + (i64::from(window) << self.nature.scale));
        self.clock = self.clock.wrapping_add(1);
        Segment {
            seq: self.nature.first.wrapping_add(seq as u32),
            ack: self.nature.peer_first.wrapping_add(self.state.next as u32),
            payload: payload as u32,
            tsval: self.clock,
            window,
            leaving_window: 0,
            flags: ACK | flags,
            timestamps: true,
        }
    }

    /// With bytes that it has not sent yet, if it may; the last of them may bring the FIN.
    pub(crate) fn send(&mut self, random: &mut Random) -> Option<Segment> {
        let from = self.state.sent;
        let to = self.limit.min(self.length).min(from + 1 + random.below(self.nature.most));
        let size = to - from;
        let ends = self.finishes && to.max(from) == self.length && from <= self.limit;
        if ends && (size == 0 || size > 0 && random.percent(50)) && from <= self.length {
            self.state.sent = self.length + 1;
            return Some(self.segment(FIN, from, size));
        }
        if size <= 0 {
            return None;
        }
        self.state.sent = to;
        Some(self.segment(0, from, size))
    }

    /// One byte into a window that is shut, as BSD asks for a larger one.
    pub(crate) fn probe_with_a_byte(&mut self) -> Option<Segment> {
        if self.state.sent != self.limit || self.state.sent >= self.length {
            return None;
        }
        self.state.sent += 1;
        Some(self.segment(0, self.limit, 1))
    }

    /// Some of what was sent once more, cut in other places.
    pub(crate) fn send_again(&mut self, random: &mut Random, from: i64) -> Option<Segment> {
        let bytes = self.state.sent.min(self.length);
        if from >= self.state.sent {
            return None;
        }
        let to = bytes.min(from + 1 + random.below(self.nature.most));
        let fin = to == self.length && self.state.sent > self.length;
        Some(self.segment(if fin { FIN } else { 0 }, from, to - from))
    }

    /// Without bytes, at the last number that the window allows.
    pub(crate) fn acknowledge(&mut self) -> Segment {
        let seq = self.state.sent.min(self.limit.max(self.acknowledged));
        self.segment(0, seq, 0)
    }

    /// Whether the other end is still there. Old stacks send a byte with it.
    pub(crate) fn keep_alive(&mut self, with_a_byte: bool) -> Segment {
        let seq = self.acknowledged - 1;
        self.segment(0, seq, i64::from(with_a_byte))
    }

    /// Its program has read all or some of what has come.
    pub(crate) fn read(&mut self, bytes: i64) {
        self.unread -= bytes.min(self.unread);
    }

    /// Offsets of a segment that arrives: its number, its end, its acknowledgement.
    pub(crate) fn offsets(&self, segment: &Segment) -> (i64, i64, i64) {
        let near = |number: u32, first: u32, known: i64| {
            let ahead = number.wrapping_sub(first.wrapping_add(known as u32)) as i32;
            known + i64::from(ahead)
        };
        let seq = near(segment.seq, self.nature.peer_first, self.state.next);
        let end = seq + i64::from(segment.payload) + i64::from(segment.flags & FIN != 0);
        (seq, end, near(segment.ack, self.nature.first, self.state.sent))
    }

    /// A segment arrives; false: it is refused.
    pub(crate) fn receive(&mut self, segment: &Segment) -> bool {
        let (seq, end, ack) = self.offsets(segment);
        if !self.state.takes(segment.flags, seq, end, ack) {
            return false;
        }
        let window = i64::from(segment.window) << self.nature.told_scale;
        self.acknowledged = self.acknowledged.max(ack);
        self.limit = self.limit.max(ack + window);
        self.largest = self.largest.max(window);
        self.state.oldest = self.acknowledged - self.largest;

        if self.state.fin_taken {
            // Nothing follows a FIN.
            return true;
        }
        let bytes = seq + i64::from(segment.payload);
        let (from, to) = (seq.max(self.state.next), bytes.min(self.state.edge));
        if from < to {
            insert(&mut self.ranges, from, to);
        }
        if segment.flags & FIN != 0 && to == bytes {
            self.peer_fins.push(bytes);
        }
        self.advance();
        true
    }

    /// What is in order now is expected no more.
    fn advance(&mut self) {
        while let Some(&(from, to)) = self.ranges.first().filter(|(from, _)| *from <= self.state.next) {
            self.unread += (to - from.max(self.state.next)).max(0);
            self.state.next = self.state.next.max(to);
            self.ranges.remove(0);
        }
        if !self.state.fin_taken && self.peer_fins.contains(&self.state.next) {
            self.state.fin_taken = true;
            self.state.next += 1;
        }
    }

    /// It has told that it has got all up to here: if that is behind a FIN, the FIN as well.
    pub(crate) fn tell(&mut self, next: i64) {
        if next > self.state.next {
            self.state.fin_taken |= self.peer_fins.contains(&(next - 1));
            self.state.next = next;
        }
        self.advance();
        self.state.told = self.state.told.max(next);
    }

    /// All that it has to send has arrived.
    pub(crate) fn is_through(&self) -> bool {
        self.acknowledged == self.length + i64::from(self.finishes)
    }
}

/// Adds a range to some that are in order and do not overlap.
pub(crate) fn insert(ranges: &mut Vec<(i64, i64)>, mut from: i64, mut to: i64) {
    ranges.retain(|&(other_from, other_to)| {
        let apart = other_to < from || to < other_from;
        if !apart {
            (from, to) = (from.min(other_from), to.max(other_to));
        }
        apart
    });
    let place = ranges.partition_point(|range| range.0 < from);
    ranges.insert(place, (from, to));
}
