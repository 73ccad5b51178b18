//! What the programs believe of segments that a stranger has made is what the kernel at the other end believes.

use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use lb_common::packet::track::{Bounds, Half, Reset, Segment, Track, Verdict};
use lb_common::packet::{FLOWS, Flow, TRACKS, Tuple, before};
use snisplice_tests::eventually;
use snisplice_tests::pump::Duplex;
use snisplice_tests::stranger::flag::{ACK, FIN, PSH, RST, SYN};
use snisplice_tests::stranger::{Forged, Numbers, Stranger, is_closed};

use crate::ends::{Opening, Speech};
use crate::life::tuple;
use crate::scene::Scene;
use crate::strangers::{Random, settled, talk};

/// Connections at a time: each batch waits once for what its segments bring about.
const BATCH: usize = 50;

/// The largest window that the stranger names.
const WINDOW: u16 = 500;

/// Bytes that the server says in [`Scene::connection`] and [`talk`].
const SAID: u32 = 8;

/// Segments in all, about; another number comes from the environment.
fn segments() -> usize {
    let number = std::env::var("SNISPLICE_SEGMENTS").ok().and_then(|number| number.parse().ok());
    number.unwrap_or(1_000)
}

/// The maps of a running gateway, by their pins.
struct Maps {
    flows: HashMap<MapData, Tuple, Flow>,
    tracks: Array<MapData, Track>,
}

impl Maps {
    fn of(scene: &Scene) -> Result<Self> {
        let pins = scene.gateway.pins()?;
        Ok(Self {
            flows: Map::HashMap(MapData::from_pin(pins.join(FLOWS))?).try_into()?,
            tracks: Map::Array(MapData::from_pin(pins.join(TRACKS))?).try_into()?,
        })
    }

    /// The flow of a client's packets.
    fn flow(&self, client: &TcpStream) -> Result<Flow> {
        Ok(self.flows.get(&tuple(client.local_addr()?, client.peer_addr()?), 0)?)
    }
}

/// A connection, the numbers it was left with, and what was forged in its client's name.
struct Victim {
    client: Duplex,
    server: TcpStream,
    flow: Flow,
    before: Track,
    numbers: Numbers,
    forged: Vec<Segment>,
}

impl Victim {
    fn new(scene: &Scene, maps: &Maps) -> Result<Self> {
        let (mut client, mut server, _) = scene.connection()?;
        talk(&mut client, &mut server)?;
        let flow = maps.flow(&client.socket).context("its flow")?;
        let numbers = Numbers::of(&server)?;
        Ok(Self { client, server, flow, before: Track::default(), numbers, forged: Vec::new() })
    }

    /// A segment near to what the server takes.
    fn segment(&self, random: &mut Random) -> Segment {
        let mine = Numbers::of(&self.client.socket).unwrap_or(self.numbers);
        let room = self.numbers.edge.wrapping_sub(self.numbers.expected);
        let offsets = [0, 0, 0, 0, -1, 1, -100, 500];
        let edges = [-1, 0, 1, 60_000, 200_000];
        let seq = match random.next() % 8 {
            0..5 => mine.next.wrapping_add_signed(random.one_of(&offsets)),
            5 | 6 => mine.next.wrapping_add(room).wrapping_add_signed(random.one_of(&edges)),
            _ => random.next(),
        };
        let ack = match random.next() % 8 {
            7 => random.next(),
            _ => mine.expected.wrapping_add_signed(random.one_of(&[0, 0, 0, 0, 1, -1, -4, 30_000])),
        };
        let flags = random.one_of(&[
            ACK,
            ACK,
            ACK | PSH,
            ACK | PSH,
            ACK | FIN,
            RST,
            RST | ACK,
            SYN,
            SYN | ACK,
            PSH,
            0,
        ]);
        let payload = if flags & (RST | SYN) != 0 { 0 } else { random.one_of(&[0, 1, 10, 1_000]) };
        Segment { seq, ack, payload, tsval: 0, window: WINDOW, leaving_window: 0, flags, timestamps: false }
    }

    /// What the pure tracker makes of the forged segments; and whether one of them is judged otherwise by Linux, for one of
    /// the causes that are known: somewhat beyond the window; an acknowledgement that is older than any byte that was ever
    /// acknowledged; bytes behind a FIN, which Linux throws away if they came before it, and on which it gives the
    /// connection up if they come later, with a reset at whatever number they acknowledge.
    fn expected(&self) -> (Track, bool) {
        let (mut track, mut known_difference) = (self.before, false);
        let first_ack = self.before.halves.client.ack.wrapping_sub(SAID);
        for segment in &self.forged {
            let [own, peer] = track.halves.each_ref();
            let bounds = Bounds::new(&self.flow, own, peer, None);
            let new = if segment.flags & RST != 0 {
                match bounds.judge_reset(own, segment.seq) {
                    Reset::Exact => own.after_reset(peer.has_reset(), 0),
                    _ => *own,
                }
            } else if segment.flags & SYN != 0 {
                *own
            } else {
                let verdict = bounds.judge(segment);
                let end = segment.seq.wrapping_add(segment.payload);
                let is_fin = segment.flags & FIN != 0;
                known_difference |= verdict == Verdict::Near
                    || before(segment.ack, first_ack)
                    || own.has_fin() && segment.payload > 0
                    || is_fin && before(end, own.end());
                own.after(verdict, segment, peer.has_fin(), bounds.acknowledged, &self.flow, own.heard)
            };
            track.halves.client = new;
        }
        (track, known_difference)
    }

    /// What has become of it, by now.
    fn outcome(&self, maps: &Maps) -> Result<Outcome> {
        let track: Track = maps.tracks.get(&self.flow.slot, 0)?;
        let [own, peer] = track.halves.each_ref();
        let bounds = Bounds::new(&self.flow, own, peer, None);
        let died = is_closed(&self.server)?;
        let expected = if died { None } else { Some(Numbers::of(&self.server)?.expected) };
        Ok(Outcome { track, died, next: bounds.next.wrapping_add(self.flow.seq_delta), expected })
    }
}

/// What the programs and the server's kernel have made of a connection.
#[derive(Debug)]
struct Outcome {
    track: Track,
    /// The server's socket is closed.
    died: bool,
    /// What the programs say that the server expects next.
    next: u32,
    /// What it expects, while it lives.
    expected: Option<u32>,
}

impl Outcome {
    /// The programs and the kernel believe the same.
    fn agrees(&self) -> bool {
        // The server itself resets what it is sent behind a forged FIN.
        let told = self.track.halves.iter().any(Half::has_reset);
        told == self.died && self.expected.is_none_or(|expected| expected == self.next)
    }
}

#[test]
fn the_other_ends_kernel_believes_what_the_programs_believe() -> Result<()> {
    let scene = Scene::new(Opening { speech: Speech::Tcp, ..Opening::default() }, "")?;
    let maps = Maps::of(&scene)?;
    let mut random = Random(3);
    let (mut sent, mut closed, mut alive, mut excepted) = (0, 0, 0, 0);
    while sent < segments() {
        let mut victims = (0..BATCH).map(|_| Victim::new(&scene, &maps)).collect::<Result<Vec<_>>>()?;
        settled(&scene, "packet", BATCH)?;
        // Acknowledgements that are being delayed.
        thread::sleep(Duration::from_millis(100));
        for victim in &mut victims {
            victim.before = maps.tracks.get(&victim.flow.slot, 0)?;
            let stranger = Stranger::as_end(&scene.net.client, &victim.client.socket)?;
            for _ in 0..random.one_of(&[1, 1, 2, 3]) {
                let segment = victim.segment(&mut random);
                let payload = vec![b'f'; segment.payload as usize];
                stranger.send(&Forged {
                    flags: segment.flags,
                    seq: segment.seq,
                    ack: segment.ack,
                    payload: &payload,
                    ..Forged::default()
                })?;
                victim.forged.push(segment);
            }
            sent += victim.forged.len();
        }
        // Before the segments have arrived both sides agree, too.
        thread::sleep(Duration::from_millis(150));
        for victim in &victims {
            let (expected, known_difference) = victim.expected();
            // What the server acknowledges between two segments the pure tracker is not told.
            let as_expected = |outcome: &Outcome| {
                outcome.track.halves.client.has_reset() == expected.halves.client.has_reset()
                    || victim.forged.len() > 1
            };
            let mut last = None;
            eventually("the programs and the server to agree", || {
                let outcome = last.insert(victim.outcome(&maps));
                let outcome = outcome.as_ref().ok()?;
                (as_expected(outcome) && (known_difference || outcome.agrees())).then_some(())
            })
            .with_context(|| format!("{:x?}\nbefore {:x?}\nafter {last:x?}", victim.forged, victim.before))?;
            if known_difference {
                excepted += 1;
            } else if last.is_some_and(|outcome| outcome.is_ok_and(|outcome| outcome.died)) {
                closed += 1;
            } else {
                alive += 1;
            }
        }
        // What was forged and taken has put the two ends out of step: left alone, some would take minutes to give up.
        for connection in scene.gateway.connections()? {
            scene.gateway.cli(["kill", &connection["id"].to_string()])?;
        }
        scene.gateway.wait_status("all to be over", |status| status.tier("packet", "active") == 0)?;
    }
    println!("{sent} segments: {closed} connections closed, {alive} alive, {excepted} excepted");
    ensure!(closed > 0 && alive > excepted, "{closed} closed, {alive} alive, {excepted} excepted");
    Ok(())
}
