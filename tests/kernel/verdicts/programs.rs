//! The programs, loaded, and the maps that they know.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::perf::{PerfEvent, PerfEventArrayBuffer};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerfEventArray, RingBuf};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::util::online_cpus;
use aya::{Ebpf, EbpfLoader, Pod};
use lb_common::packet::odd::{Fragments, Odd};
use lb_common::packet::track::Track;
use lb_common::packet::{self, Count, Event, Flow, Handover, Path, Sighting, TICK_SHIFT, Tuple};
use lb_common::sockmap;
use rustix::time::{ClockId, clock_gettime};
use snisplice::kernel::OBJECT;
use snisplice_tests::NetNs;

use crate::connection::{Connection, SLOT};

/// linux/pkt_cls.h.
const TCX_NEXT: i32 = -1;
const TC_ACT_SHOT: i32 = 2;
const TC_ACT_REDIRECT: i32 = 7;

/// What becomes of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes on to the next program and up the stack, as it came.
    Passed,
    /// The same, as these bytes.
    PassedAs(Vec<u8>),
    /// It goes on as it came, and is noted as a SYN.
    Sighted,
    /// It is dropped, and that is counted.
    Dropped(Count),
    /// It is dropped, and userspace has it.
    HandedUp,
    /// It goes on as it came, and the connection that was there is no more.
    TakesOver,
    /// The same, and it is noted as a SYN.
    SightedAnew,
    /// It leaves by another way, as these bytes.
    Leaves(Vec<u8>),
    /// It does, and that is counted.
    Counted(Count, Vec<u8>),
    /// It does, being an error that an ICMP packet tells of.
    Tells(Vec<u8>),
}

impl Fate {
    /// As what the packet leaves, whatever is thought of it.
    pub(crate) fn left(&self) -> Option<&[u8]> {
        match self {
            Self::Leaves(bytes) | Self::Counted(_, bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// How a packet comes.
#[derive(Clone, Copy)]
pub(crate) struct Arrival {
    /// Which program sees it.
    pub(crate) program: &'static str,
    /// The device, of the namespace.
    pub(crate) ifindex: u32,
    /// Payload of each segment that the packet was merged from; 0: not merged.
    pub(crate) segment: u32,
    /// Its mark.
    pub(crate) mark: u32,
}

impl Arrival {
    /// By the loopback device.
    pub(crate) const PLAIN: Self =
        Self { program: packet::FORWARD_ETHERNET, ifindex: 1, segment: 0, mark: 0 };
}

pub(crate) struct Programs {
    pub(crate) ns: NetNs,
    ebpf: Ebpf,
    pub(crate) flows: HashMap<MapData, Tuple, Flow>,
    pub(crate) sightings: HashMap<MapData, Tuple, Sighting>,
    pub(crate) handovers: HashMap<MapData, u64, Handover>,
    pub(crate) paths: HashMap<MapData, Path, u32>,
    tracks: Array<MapData, Track>,
    ports: Array<MapData, u64>,
    counts: PerCpuArray<MapData, u64>,
    events: RingBuf<MapData>,
    fragments: HashMap<MapData, Fragments, u32>,
    odd: PerfEventArray<MapData>,
    /// Of each CPU, while odd packets are read.
    buffers: Vec<PerfEventArrayBuffer<MapData>>,
}

/// Runs a test in a namespace of its own, with maps as if the programs were new. They are loaded once, for the verifier
/// takes its time: one test at a time.
pub(crate) fn with_programs(test: impl FnOnce(&mut Programs) -> Result<()> + Send) -> Result<()> {
    static PROGRAMS: Mutex<Option<Programs>> = Mutex::new(None);
    let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    if programs.is_none() {
        *programs = Some(Programs::load()?);
    }
    let programs = programs.as_mut().expect("loaded");
    programs.forget()?;
    programs.ns = NetNs::new("programs")?;
    programs.ns.again()?.run(|| test(programs))
}

impl Programs {
    fn load() -> Result<Self> {
        let mut loader = EbpfLoader::new();
        let tables = [
            packet::FLOWS,
            packet::TRACKS,
            packet::SIGHTINGS,
            packet::HANDOVERS,
            packet::CONNECTIONS,
            packet::NAMES,
        ];
        for name in tables.into_iter().chain([sockmap::SOURCES, sockmap::TARGETS, sockmap::FLOWS]) {
            loader.map_max_entries(name, 64);
        }
        let mut ebpf = loader.load(OBJECT)?;
        for name in [packet::FORWARD_ETHERNET, packet::FORWARD_BARE] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load()?;
        }
        Ok(Self {
            ns: NetNs::new("programs")?,
            flows: take(&mut ebpf, packet::FLOWS)?,
            sightings: take(&mut ebpf, packet::SIGHTINGS)?,
            handovers: take(&mut ebpf, packet::HANDOVERS)?,
            paths: take(&mut ebpf, packet::PATHS)?,
            tracks: take(&mut ebpf, packet::TRACKS)?,
            ports: take(&mut ebpf, packet::PORTS)?,
            counts: take(&mut ebpf, packet::COUNTS)?,
            events: take(&mut ebpf, packet::EVENTS)?,
            fragments: take(&mut ebpf, packet::odd::FRAGMENTS)?,
            odd: take(&mut ebpf, packet::odd::ODD)?,
            buffers: Vec::new(),
            ebpf,
        })
    }

    /// Empties the maps.
    fn forget(&mut self) -> Result<()> {
        fn clear<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>) -> Result<()> {
            let keys = map.keys().collect::<Result<Vec<_>, _>>()?;
            keys.iter().try_for_each(|key| Ok(map.remove(key)?))
        }
        clear(&mut self.flows)?;
        clear(&mut self.sightings)?;
        clear(&mut self.handovers)?;
        clear(&mut self.paths)?;
        clear(&mut self.fragments)?;
        self.buffers.clear();
        for index in 0..self.ports.len() {
            self.ports.set(index, 0, 0)?;
        }
        self.events();
        Ok(())
    }

    /// Enters a connection, instead of what was there under its tuples.
    pub(crate) fn splice(&mut self, connection: &Connection) -> Result<()> {
        for (tuple, flow) in connection.tuples.iter().zip(&connection.flows) {
            self.flows.insert(tuple, flow, 0)?;
        }
        self.know(&connection.track)
    }

    /// What is known of the connection.
    pub(crate) fn track(&self) -> Result<Track> {
        Ok(self.tracks.get(&SLOT, 0)?)
    }

    /// Has something else known of it.
    pub(crate) fn know(&mut self, track: &Track) -> Result<()> {
        Ok(self.tracks.set(SLOT, track, 0)?)
    }

    /// Has SYNs to one port sighted, and SYN-ACKs to another.
    pub(crate) fn sight(&mut self, listener: u16, source: u16) -> Result<()> {
        for (bitmap, port) in [(0, listener), (packet::PORT_WORDS, source)] {
            self.ports.set(bitmap + u32::from(port) / 64, 1 << (port % 64), 0)?;
        }
        Ok(())
    }

    /// Has the programs tell what they want to, and gives it.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            assert_eq!(item.len(), size_of::<Event>());
            // SAFETY: as long as an `Event`, which is plain numbers.
            events.push(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
        }
        events
    }

    /// From here on somebody reads odd packets. What nobody has taken before is gone.
    pub(crate) fn read_odd(&mut self) -> Result<()> {
        // Long enough for what one test sends.
        const PAGES: usize = 32;
        let cpus = online_cpus().map_err(|(_, error)| error)?;
        self.buffers =
            cpus.into_iter().map(|cpu| self.odd.open(cpu, Some(PAGES))).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// The odd packets that were handed up: the device they came by, the size of the segments that they were merged
    /// from, and the frames.
    pub(crate) fn odd(&mut self) -> Vec<(u32, u32, Vec<u8>)> {
        let mut found = Vec::new();
        for buffer in &mut self.buffers {
            buffer.for_each(|event| {
                let PerfEvent::Sample { head, tail } = event else { panic!("{event:?}") };
                let copy = [head, tail].concat();
                let (odd, frame) = Odd::split(&copy).expect("a whole copy");
                found.push((odd.ifindex, odd.segment, frame.to_vec()));
            });
        }
        found
    }

    /// What becomes of an Ethernet frame.
    pub(crate) fn run(&self, packet: &[u8]) -> Result<Fate> {
        self.run_from(Arrival::PLAIN, packet)
    }

    /// What becomes of a packet that comes like this.
    pub(crate) fn run_from(&self, arrival: Arrival, packet: &[u8]) -> Result<Fate> {
        let program: &SchedClassifier =
            self.ebpf.program(arrival.program).context("a program")?.try_into()?;
        let before = self.counts()?;
        // Room for an Ethernet header that is put in front.
        let mut left = vec![0; packet.len() + 14];
        let context = context(arrival);
        let result = program.test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut left),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        })?;
        left.truncate(result.data_size_out as usize);
        let after = self.counts()?;
        let counted: Vec<Count> = Count::ALL
            .into_iter()
            .flat_map(|count| (before[count as usize]..after[count as usize]).map(move |_| count))
            .collect();

        let verdict = result.return_value.cast_signed();
        Ok(match (verdict, &counted[..]) {
            (TCX_NEXT, []) if left == packet => Fate::Passed,
            (TCX_NEXT, []) => Fate::PassedAs(left),
            (TCX_NEXT, [Count::Sighted]) if left == packet => Fate::Sighted,
            (TC_ACT_SHOT, [Count::OddTaken]) => Fate::HandedUp,
            (TC_ACT_SHOT, [count]) if count.is_drop() => Fate::Dropped(*count),
            (TCX_NEXT, [Count::TakenOver]) if left == packet => Fate::TakesOver,
            (TCX_NEXT, [Count::Sighted, Count::TakenOver]) if left == packet => Fate::SightedAnew,
            (TC_ACT_REDIRECT, []) => Fate::Leaves(left),
            (TC_ACT_REDIRECT, [Count::IcmpTranslated]) => Fate::Tells(left),
            (TC_ACT_REDIRECT, [count]) if !count.is_drop() => Fate::Counted(*count, left),
            _ => bail!("verdict {verdict}, counted {counted:?}, {left:02x?}"),
        })
    }

    /// Whether a frame leaves, without a look at what else becomes of it.
    pub(crate) fn lets_through(&self, packet: &[u8]) -> Result<bool> {
        let program: &SchedClassifier =
            self.ebpf.program(packet::FORWARD_ETHERNET).context("a program")?.try_into()?;
        let result =
            program.test_run(TestRunOptions { data_in: Some(packet), ..TestRunOptions::default() })?;
        Ok(result.return_value.cast_signed() == TC_ACT_REDIRECT)
    }

    fn counts(&self) -> Result<[u64; Count::ALL.len()]> {
        let mut counts = [0; Count::ALL.len()];
        for (count, index) in counts.iter_mut().zip(0..) {
            *count = self.counts.get(&index, 0)?.iter().sum();
        }
        Ok(counts)
    }
}

/// The clock of the programs.
pub(crate) fn tick() -> u32 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let nanoseconds = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    (nanoseconds >> TICK_SHIFT) as u32
}

fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<M> {
    Ok(ebpf.take_map(name).context("the object has the map")?.try_into()?)
}

/// A `struct __sk_buff` (linux/bpf.h) that says only how the packet came.
fn context(arrival: Arrival) -> [u8; 192] {
    const MARK: usize = 8;
    const IFINDEX: usize = 40;
    const GSO_SIZE: usize = 176;
    let mut context = [0; 192];
    for (at, value) in [(MARK, arrival.mark), (IFINDEX, arrival.ifindex), (GSO_SIZE, arrival.segment)] {
        context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    context
}

/// Checks a table of packets that leave, whatever is thought of them: what the rows are about, what comes and what
/// leaves.
pub(crate) fn check_left(
    programs: &mut Programs,
    connection: &Connection,
    rows: impl IntoIterator<Item = (&'static str, Vec<u8>, Vec<u8>)>,
) -> Result<()> {
    for (what, packet, expected) in rows {
        programs.splice(connection)?;
        let fate = programs.run(&packet).with_context(|| what.to_owned())?;
        ensure!(fate.left() == Some(&expected), "{what}: {fate:02x?}, not\n{expected:02x?}");
    }
    Ok(())
}

/// Checks a table: what the rows are about, what comes and what becomes of it.
pub(crate) fn check(
    programs: &mut Programs,
    connection: &Connection,
    rows: impl IntoIterator<Item = (&'static str, Vec<u8>, Fate)>,
) -> Result<()> {
    for (what, packet, expected) in rows {
        programs.splice(connection)?;
        let fate = programs.run(&packet).with_context(|| what.to_owned())?;
        ensure!(
            fate == expected,
            "{what}, {}:\n{packet:02x?} becomes\n{fate:02x?}, not\n{expected:02x?}",
            if connection.v6 { "IPv6" } else { "IPv4" }
        );
    }
    Ok(())
}
