//! The maps and programs of the packet tier, pinned: they carry on when the process ends, and the next one adopts
//! them.

use super::batch::for_each_batch;
use super::devices::{Device, LinkLayer, devices, relevant};
use super::error::{KernelError, from_ebpf, from_map, from_program, pin_error};
#[cfg(feature = "kernel-log")]
use super::log;
use super::object::{OBJECT, shrink_sockmap};
use super::pins::{self, Pins, Shape};
use super::tracks::Tracks;
use crate::config::Interfaces;
use aya::maps::{
    Array, HashMap, Map, MapData, MapError, MapInfo, MapType, PerCpuArray, PerfEventArray, RingBuf,
};
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::{Link as _, LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use lb_common::packet::{
    self, CONNECTIONS, COUNTS, Count, EVENTS, Event, FLOWS, FORWARD_BARE, FORWARD_ETHERNET, Flow, HANDOVERS,
    Handover, NAMES, Name, PATHS, PORTS, Path as DevicePath, Record, SIGHTINGS, Sighting, TRACKS, Tuple,
    odd::{FRAGMENTS, Fragments, ODD},
    track::Track,
};
use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use std::{fs, io};

/// All maps, for those who adopt them.
const SHAPES: [Shape; 12] = [
    shape::<Tuple, Flow>(FLOWS, MapType::Hash),
    shape::<u32, Track>(TRACKS, MapType::Array),
    shape::<DevicePath, u32>(PATHS, MapType::Hash),
    shape::<Tuple, Sighting>(SIGHTINGS, MapType::LruHash),
    shape::<u64, Handover>(HANDOVERS, MapType::Hash),
    shape::<u64, Record>(CONNECTIONS, MapType::Hash),
    shape::<u64, Name>(NAMES, MapType::Hash),
    shape::<u32, u64>(PORTS, MapType::Array),
    shape::<u32, u64>(COUNTS, MapType::PerCpuArray),
    Shape { name: EVENTS, kind: MapType::RingBuf, key: 0, value: 0 },
    shape::<u32, u32>(ODD, MapType::PerfEventArray),
    shape::<Fragments, u32>(FRAGMENTS, MapType::LruHash),
];

const fn shape<K, V>(name: &'static str, kind: MapType) -> Shape {
    Shape { name, kind, key: size_of::<K>() as u32, value: size_of::<V>() as u32 }
}

/// The directory of the pins.
pub(super) const TIER: &str = "packet";

/// Entries read by one system call.
const BATCH: u32 = 1024;

/// Where programs are attached through netlink, on kernels without tcx: those of all gateways on the host, each by a
/// handle of its own.
const PRIORITY: u16 = 17;

/// linux/bpf.h.
const BPF_NOEXIST: u64 = 1;
/// linux/bpf.h: update an element, create none.
const BPF_EXIST: u64 = 2;

/// What the programs have counted, each with its number of packets.
pub type Counts = [(Count, u64); Count::ALL.len()];

/// The packet tier in the kernel. Shared by all workers.
pub struct Packet {
    maps: Mutex<Maps>,
    /// The flow table once more, to read from without a lock.
    flows: HashMap<MapData, Tuple, Flow>,
    sightings: HashMap<MapData, Tuple, Sighting>,
    counts: PerCpuArray<MapData, u64>,
    events: Mutex<RingBuf<MapData>>,
    programs: Mutex<Programs>,
    tracks: Tracks,
    /// Slots of connections that were not entered after all; given back with the next one.
    unused: Mutex<Vec<u32>>,
    /// The flows that were there at the start, until somebody takes them.
    found: Mutex<Vec<(Tuple, Flow)>>,
    capacity: u32,
    pins: Pins,
}

/// The kernel would allow all of them at once; aya's API takes them exclusively.
struct Maps {
    flows: HashMap<MapData, Tuple, Flow>,
    paths: HashMap<MapData, DevicePath, u32>,
    handovers: HashMap<MapData, u64, Handover>,
    connections: HashMap<MapData, u64, Record>,
    names: HashMap<MapData, u64, Name>,
    known_names: HashSet<u64>,
    ports: Array<MapData, u64>,
    /// What is in `ports`, which nobody else writes.
    sighted: Vec<u64>,
}

struct Programs {
    /// `None`: not loaded yet.
    ethernet: Option<SchedClassifier>,
    /// For devices without an Ethernet header; loaded when there is one.
    bare: Option<SchedClassifier>,
    /// Whether this build's are loaded. Until then those of an earlier build serve, if they are pinned.
    are_current: bool,
    /// By which they are attached through netlink.
    handle: TcHandle,
    /// Interface indices of the devices that have a program.
    attached: HashSet<u32>,
}

/// Why a connection's flows cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// No room in the flow table.
    #[error("the flow table is full")]
    Full,
    /// There is a flow of that tuple already.
    #[error("there is a flow of this address and port")]
    Taken,
    /// Anything else.
    #[error("the kernel refuses the flow")]
    Refused(#[source] MapError),
    /// Its track cannot be reached.
    #[error("the tracks cannot be mapped")]
    Unmapped(#[source] io::Error),
}

impl InsertError {
    fn from_map(error: MapError) -> Self {
        let code = match &error {
            MapError::SyscallError(error) => error.io_error.raw_os_error(),
            _ => None,
        };
        match code {
            Some(libc::E2BIG | libc::ENOMEM) => Self::Full,
            Some(libc::EEXIST) => Self::Taken,
            _ => Self::Refused(error),
        }
    }
}

impl Packet {
    /// Loads the programs and pins them with their maps; adopts those that are there, with the connections in them.
    /// One process at a time. `flows` is how many the table has room for, two per connection; an adopted table keeps
    /// its size.
    pub fn open(bpffs: &Path, flows: u32) -> Result<Self, KernelError> {
        let packet = Self::prepare(bpffs, flows)?;
        packet.load()?;
        Ok(packet)
    }

    /// The same without the verifier's work. The programs are those that are pinned: this build's, or those of an earlier
    /// build with the same ABI. If there are none, devices get theirs after [`load`](Self::load).
    pub fn prepare(bpffs: &Path, flows: u32) -> Result<Self, KernelError> {
        let pins = Pins::create(bpffs, TIER)?;
        if !pins.lock() {
            return Err(KernelError::InUse { path: bpffs.to_owned() });
        }
        let is_new = !pins.path(FLOWS).exists();
        let mut ethernet = adopted(&pins, FORWARD_ETHERNET);
        let are_current = ethernet.is_some();
        if !are_current {
            // With it come the maps that are not pinned yet; those that are, are checked.
            load_object(&pins, flows)?;
            ethernet = earlier(&pins, FORWARD_ETHERNET)?;
        }
        let flows = MapData::from_pin(pins.path(FLOWS)).map_err(from_map)?;
        let info = flows.info().map_err(from_map)?;
        let (capacity, handle) = (info.max_entries(), handle(&info));
        let to_read: HashMap<MapData, Tuple, Flow> = pinned(&pins, FLOWS)?;
        let mut found = Vec::new();
        // A walk through an empty table takes milliseconds.
        if !is_new {
            for_each_batch(&to_read, BATCH, |tuples, flows| {
                found.extend(tuples.iter().copied().zip(flows.iter().copied()));
            })
            .map_err(|error| KernelError::Load(error.into()))?;
        }
        let tracks = MapData::from_pin(pins.path(TRACKS)).map_err(from_map)?;
        let tracks = Tracks::new(tracks, found.iter().map(|(_, flow)| flow.slot))?;
        let ports: Array<MapData, u64> = pinned(&pins, PORTS)?;
        // Room for one more than there are, and it ends with the first call.
        let (words, mut sighted) = (2 * packet::PORT_WORDS, Vec::new());
        for_each_batch(&ports, words + 1, |_, words| sighted.extend_from_slice(words))
            .map_err(|error| KernelError::Load(error.into()))?;
        if sighted.len() != words as usize {
            let (expected, found) = (format!("{words} words"), format!("{} words", sighted.len()));
            return Err(KernelError::ForeignPin { path: pins.path(PORTS), expected, found });
        }
        let maps = Maps {
            flows: Map::HashMap(flows).try_into().map_err(from_map)?,
            paths: pinned(&pins, PATHS)?,
            handovers: pinned(&pins, HANDOVERS)?,
            connections: pinned(&pins, CONNECTIONS)?,
            names: pinned(&pins, NAMES)?,
            known_names: HashSet::new(),
            ports,
            sighted,
        };
        Ok(Self {
            flows: to_read,
            tracks,
            unused: Mutex::default(),
            found: Mutex::new(found),
            sightings: pinned(&pins, SIGHTINGS)?,
            counts: pinned(&pins, COUNTS)?,
            events: Mutex::new(pinned(&pins, EVENTS)?),
            maps: Mutex::new(maps),
            programs: Mutex::new(Programs {
                ethernet,
                bare: None,
                are_current,
                handle,
                attached: HashSet::new(),
            }),
            capacity,
            pins,
        })
    }

    /// Loads this build's programs, unless they are there; the next [`attach`](Self::attach) gives them to the devices. The
    /// verifier takes a good part of a second. An error leaves everything as it was.
    pub fn load(&self) -> Result<(), KernelError> {
        if self.is_current() {
            return Ok(());
        }
        // Not under the lock: the devices are followed meanwhile.
        let ethernet = Some(program(&self.pins, FORWARD_ETHERNET, self.capacity)?);
        let mut programs = lock(&self.programs);
        let handle = programs.handle;
        let attached = HashSet::new();
        *programs = Programs { ethernet, bare: None, are_current: true, handle, attached };
        Ok(())
    }

    /// Whether this build's programs are loaded.
    pub fn is_current(&self) -> bool {
        lock(&self.programs).are_current
    }

    /// Whether there are programs: this build's, or an earlier build's.
    pub fn has_programs(&self) -> bool {
        lock(&self.programs).ethernet.is_some()
    }

    /// Gives every relevant device its program, also those that have an earlier process's, and forgets devices that
    /// are gone. Does nothing for a device whose program is not loaded yet. Returns what went wrong, by device.
    pub fn attach(&self, devices: &[Device], interfaces: &Interfaces) -> Vec<(String, KernelError)> {
        self.attach_by(attach, devices, interfaces)
    }

    /// The same, in the way of kernels without tcx, whatever this one has.
    pub fn attach_by_netlink(
        &self,
        devices: &[Device],
        interfaces: &Interfaces,
    ) -> Vec<(String, KernelError)> {
        let attach = |programs: &mut Programs, pins: &Pins, device: &Device, flows| {
            let handle = programs.handle;
            let Some((name, program)) = programs.of(device, pins, flows)? else { return Ok(false) };
            attach_by_netlink(program, device, handle).map_err(|error| from_program(name, error))?;
            Ok(true)
        };
        self.attach_by(attach, devices, interfaces)
    }

    fn attach_by(
        &self,
        attach: impl Fn(&mut Programs, &Pins, &Device, u32) -> Result<bool, KernelError>,
        devices: &[Device],
        interfaces: &Interfaces,
    ) -> Vec<(String, KernelError)> {
        let mut programs = lock(&self.programs);
        let relevant = relevant(devices, interfaces);
        let present: HashSet<u32> = relevant.iter().map(|device| device.index).collect();
        for gone in programs.attached.extract_if(|index| !present.contains(index)) {
            let _ = self.pins.clear(&link_name(gone));
        }
        let mut failures = Vec::new();
        for device in relevant {
            if !programs.attached.contains(&device.index) {
                match attach(&mut programs, &self.pins, device, self.capacity) {
                    Ok(true) => _ = programs.attached.insert(device.index),
                    Ok(false) => {}
                    Err(error) => failures.push((device.name.clone(), error)),
                }
            }
        }
        failures
    }

    /// Whether the device has a program.
    pub fn is_attached(&self, ifindex: u32) -> bool {
        lock(&self.programs).attached.contains(&ifindex)
    }

    /// Sets the ports whose SYNs are sighted, and those whose SYN-ACKs are.
    pub fn sight(
        &self,
        listeners: impl IntoIterator<Item = u16>,
        sources: RangeInclusive<u16>,
    ) -> Result<(), MapError> {
        let mut words = vec![0_u64; 2 * packet::PORT_WORDS as usize];
        let ports = listeners.into_iter().map(usize::from);
        for bit in ports.chain(sources.map(|port| 64 * packet::PORT_WORDS as usize + usize::from(port))) {
            words[bit / 64] |= 1 << (bit % 64);
        }
        let Maps { ports, sighted, .. } = &mut *lock(&self.maps);
        for (index, (word, known)) in (0..).zip(words.into_iter().zip(sighted)) {
            // A system call each, and a reload or a restart changes few of them or none.
            if *known != word {
                ports.set(index, word, 0)?;
                *known = word;
            }
        }
        Ok(())
    }

    /// The SYN or SYN-ACK that arrived with this tuple.
    pub fn sighting(&self, tuple: &Tuple) -> Option<Sighting> {
        self.sightings.get(tuple, 0).ok()
    }

    /// Notes what the next process must know of a connection whose flows are about to be entered. It finds a connection
    /// without flows if this one dies meanwhile.
    pub fn announce(&self, id: u64, record: &Record) -> Result<(), InsertError> {
        lock(&self.maps).connections.insert(id, record, BPF_NOEXIST).map_err(InsertError::from_map)
    }

    /// Enters a connection: from here on its packets are forwarded. All or nothing. Gives its slot, which the flows name.
    pub fn insert(
        &self,
        tuples: [&Tuple; 2],
        mut flows: [Flow; 2],
        track: &Track,
        handover: &Handover,
    ) -> Result<u32, InsertError> {
        let id = flows[0].id;
        let slot = self.tracks.take().ok_or(InsertError::Full)?;
        let mut maps = lock(&self.maps);
        let mut entered = 0;
        let mut enter = || {
            self.tracks.begin(slot, track).map_err(InsertError::Unmapped)?;
            maps.handovers.insert(id, handover, 0).map_err(InsertError::from_map)?;
            for (tuple, flow) in tuples.into_iter().zip(&mut flows) {
                flow.slot = slot;
                maps.flows.insert(tuple, *flow, BPF_NOEXIST).map_err(InsertError::from_map)?;
                entered += 1;
            }
            Ok(slot)
        };
        let result = enter();
        if result.is_err() {
            for tuple in tuples.into_iter().take(entered) {
                let _ = maps.flows.remove(tuple);
            }
            let _ = maps.handovers.remove(&id);
        }
        drop(maps);
        if result.is_err() {
            // A program may have met the first flow.
            lock(&self.unused).push(slot);
        }
        result
    }

    /// Gives a slot back, when the function is called: after a grace period that has begun when the flows were gone.
    pub fn release(&self, slot: u32) -> impl FnOnce() + Send + 'static {
        let mut slots = std::mem::take(&mut *lock(&self.unused));
        slots.push(slot);
        self.tracks.release(slots)
    }

    /// What a connection's packets have told. Zeros where there is no such slot.
    pub fn track(&self, slot: u32) -> Track {
        self.tracks.load(slot).unwrap_or_else(|error| {
            tracing::error!(%error, slot, "cannot read a connection's track");
            Track::default()
        })
    }

    /// Notes what a socket has received of an end (0: the client): up to this sequence number, and then a FIN of this
    /// place ([`closing::FIN`](packet::track::closing::FIN); 0: none).
    pub fn advance(&self, slot: u32, side: usize, end: u32, fin: u8) {
        if let Err(error) = self.tracks.advance(slot, side, end, fin) {
            tracing::error!(%error, slot, "cannot write a connection's track");
        }
    }

    /// An end (0: the client) that was asked this ([`asked`](packet::track::asked)) may be asked again.
    pub fn was_asked(&self, slot: u32, side: usize, what: u8) {
        // Mapped, or it would not have been asked.
        let _ = self.tracks.was_asked(slot, side, what);
    }

    /// The flows that an earlier process has left, once.
    pub fn take_found(&self) -> Vec<(Tuple, Flow)> {
        std::mem::take(&mut lock(&self.found))
    }

    /// The flow of packets that arrive with this tuple.
    pub fn flow(&self, tuple: &Tuple) -> Option<Flow> {
        self.flows.get(tuple, 0).ok()
    }

    /// The flows of a connection, of those that packets with these tuples belong to now.
    pub fn flows_of(&self, id: u64, record: &Record) -> [Option<Flow>; 2] {
        [record.from_client, record.from_server].map(|tuple| self.flow(&tuple).filter(|flow| flow.id == id))
    }

    /// What the programs were told last of a handover that has not ended.
    pub fn handover(&self, id: u64) -> Option<Handover> {
        lock(&self.maps).handovers.get(&id, 0).ok()
    }

    /// Tells the programs what the sockets of a connection still have to do.
    pub fn set_handover(&self, id: u64, handover: &Handover) -> Result<(), MapError> {
        lock(&self.maps).handovers.insert(id, handover, 0)
    }

    /// The sockets are gone, or about to go.
    pub fn end_handover(&self, id: u64) {
        // Not there: a restarted gateway's.
        let _ = lock(&self.maps).handovers.remove(&id);
    }

    /// Ends the handovers of connections that are forgotten: their process died before they were through.
    pub fn end_old_handovers(&self) {
        let mut maps = lock(&self.maps);
        let ids: Vec<u64> = maps.handovers.keys().filter_map(Result::ok).collect();
        for id in ids {
            if maps.connections.get(&id, 0).is_err() {
                let _ = maps.handovers.remove(&id);
            }
        }
    }

    /// Forgets what the next process would have been told of a connection. Its sockets may still be at work.
    pub fn forget(&self, id: u64) {
        let _ = lock(&self.maps).connections.remove(&id);
    }

    /// Removes a flow of this connection: what arrives with this tuple goes up the stack.
    pub fn remove(&self, id: u64, tuple: &Tuple) {
        // Not there, or another's: a new connection has taken the tuple over. Under the lock no flow is inserted.
        let mut maps = lock(&self.maps);
        if self.flow(tuple).is_some_and(|flow| flow.id == id) {
            let _ = maps.flows.remove(tuple);
        }
    }

    /// Puts another flow in the place of one that is there.
    pub fn replace(&self, tuple: &Tuple, flow: &Flow) {
        let mut maps = lock(&self.maps);
        // Under the lock no flow is inserted; a program may remove it in between, and then there is none.
        if self.flow(tuple).is_some_and(|known| known.id == flow.id) {
            let _ = maps.flows.insert(tuple, flow, BPF_EXIST);
        }
    }

    /// Has the programs take packets that are expected by one device from another too, or no longer.
    pub fn set_path(&self, path: DevicePath, allowed: bool) {
        let mut maps = lock(&self.maps);
        let result = if allowed { maps.paths.insert(path, 1, 0) } else { maps.paths.remove(&path) };
        if let (Err(error), true) = (result, allowed) {
            tracing::error!(%error, ?path, "the kernel refuses a path");
        }
    }

    /// The paths there are.
    pub fn paths(&self) -> Vec<DevicePath> {
        lock(&self.maps).paths.keys().filter_map(Result::ok).collect()
    }

    /// What is known of a connection besides its flows.
    pub fn record(&self, id: u64) -> Option<Record> {
        lock(&self.maps).connections.get(&id, 0).ok()
    }

    /// Whether there are connections.
    pub fn has_connections(&self) -> bool {
        lock(&self.maps).connections.keys().next().is_some()
    }

    /// Every connection, for adoption.
    pub fn records(&self) -> Vec<(u64, Record)> {
        lock(&self.maps).connections.iter().filter_map(Result::ok).collect()
    }

    /// Notes a name and gives the key that it is found by.
    pub fn intern(&self, name: &str) -> u64 {
        let key = hash(name.as_bytes());
        let mut maps = lock(&self.maps);
        if maps.known_names.insert(key) {
            let mut text = [0; 270];
            let bytes = &name.as_bytes()[..name.floor_char_boundary(text.len())];
            text[..bytes.len()].copy_from_slice(bytes);
            // Without it the next process does not know what it is called; nothing else depends on it.
            let _ = maps.names.insert(key, Name { length: bytes.len() as u16, text }, 0);
        }
        key
    }

    /// The name of a key.
    pub fn name(&self, key: u64) -> Option<String> {
        let name = lock(&self.maps).names.get(&key, 0).ok()?;
        let bytes = name.text.get(..usize::from(name.length))?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }

    /// The events there are, at most so many.
    pub fn events(&self, most: usize) -> Vec<Event> {
        let (mut events, mut found) = (lock(&self.events), Vec::new());
        while found.len() < most
            && let Some(item) = events.next()
        {
            if item.len() >= size_of::<Event>() {
                // SAFETY: long enough; `Event` is plain numbers.
                found.push(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
            }
        }
        found
    }

    /// What is readable when there are events that the programs found urgent.
    pub fn events_fd(&self) -> io::Result<OwnedFd> {
        let events = lock(&self.events);
        // SAFETY: the ring buffer owns its descriptor and is borrowed, locked, meanwhile.
        unsafe { BorrowedFd::borrow_raw(events.as_raw_fd()) }.try_clone_to_owned()
    }

    /// Of the program for devices with an Ethernet header, as the kernel numbers it.
    #[cfg(feature = "kernel-log")]
    pub fn program_id(&self) -> Result<u32, KernelError> {
        let programs = lock(&self.programs);
        let program = programs.ethernet.as_ref().expect("loaded before it is asked for");
        let info = program.info();
        Ok(info.map_err(|error| from_program(FORWARD_ETHERNET, error))?.id())
    }

    /// Where the programs put odd packets.
    pub(super) fn odd_buffers(&self) -> Result<PerfEventArray<MapData>, MapError> {
        let map = MapData::from_pin(self.pins.path(ODD)).and_then(Map::from_map_data);
        map.and_then(PerfEventArray::try_from)
    }

    /// Packets counted by the programs, over all CPUs, since the programs were loaded: also by those of an earlier process.
    pub fn count(&self, what: Count) -> u64 {
        counted(&self.counts, what)
    }

    /// All that they have counted.
    pub fn counts(&self) -> Counts {
        Count::ALL.map(|what| (what, self.count(what)))
    }

    /// Where its pins are.
    pub fn directory(&self) -> &Path {
        self.pins.directory()
    }

    /// Flows that the table has room for.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }
}

/// `snisplice load`: pins the programs and attaches them, for a gateway to adopt. Returns what went wrong, by device.
pub fn load(
    bpffs: &Path,
    flows: u32,
    interfaces: &Interfaces,
) -> Result<Vec<(String, KernelError)>, KernelError> {
    let packet = Packet::open(bpffs, flows)?;
    let devices = devices().map_err(|error| KernelError::Load(Box::new(error)))?;
    Ok(packet.attach(&devices, interfaces))
}

/// How many connections of this version the kernel forwards.
pub fn connections(bpffs: &Path) -> Result<usize, KernelError> {
    let Some(pins) = Pins::existing(bpffs, TIER)? else { return Ok(0) };
    let Ok(map) = MapData::from_pin(pins.path(CONNECTIONS)) else { return Ok(0) };
    let records: HashMap<MapData, u64, Record> = Map::HashMap(map).try_into().map_err(from_map)?;
    Ok(records.keys().filter_map(Result::ok).count())
}

/// What the pinned programs of this version have counted, and since when; `None`: there are none. Nothing is claimed: a
/// gateway may be at work.
pub fn counts(bpffs: &Path) -> Result<Option<(SystemTime, Counts)>, KernelError> {
    let Some(pins) = Pins::existing(bpffs, TIER)? else { return Ok(None) };
    let path = pins.path(COUNTS);
    let pinned_at = match fs::metadata(&path).and_then(|metadata| metadata.modified()) {
        Ok(time) => time,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(pin_error(path, error)),
    };
    let map: PerCpuArray<MapData, u64> = pinned(&pins, COUNTS)?;
    Ok(Some((pinned_at, Count::ALL.map(|what| (what, counted(&map, what))))))
}

fn counted(map: &PerCpuArray<MapData, u64>, what: Count) -> u64 {
    map.get(&(what as u32), 0).map_or(0, |values| values.iter().sum())
}

/// The handle by which programs with this flow table are attached through netlink. As long as such a program is
/// attached, the table has its number to itself: other tables have other handles, and a next process that adopts the
/// table finds the programs again. The highest bit is set in no handle that the kernel chooses by itself.
fn handle(flows: &MapInfo) -> TcHandle {
    TcHandle::from(flows.id() | 1 << 31)
}

/// The handles of all versions that have pins in the directory.
fn handles(bpffs: &Path) -> Result<Vec<TcHandle>, KernelError> {
    let tables = pins::versions(bpffs)?.into_iter().map(|version| version.join(TIER).join(FLOWS));
    Ok(tables.filter_map(|table| MapInfo::from_pin(table).ok()).map(|info| handle(&info)).collect())
}

/// Detaches the programs of this directory that netlink has attached; those of pinned links go with their pins.
pub(super) fn detach(bpffs: &Path) -> Result<(), KernelError> {
    let handles = handles(bpffs)?;
    for device in devices().unwrap_or_default() {
        for handle in &handles {
            let ingress = TcAttachType::Ingress;
            // Not there: the rule.
            let _ = SchedClassifierLink::attached(&device.name, ingress, PRIORITY, *handle, None)
                .map(SchedClassifierLink::detach);
        }
    }
    Ok(())
}

/// FNV-1a; of what the operator or we chose, so no flooding to resist.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The pinned program of this build, with the pinned maps. Verifying it takes the kernel a good part of a second, which
/// a restarted gateway saves, as its predecessor has pinned it.
fn program(pins: &Pins, name: &'static str, flows: u32) -> Result<SchedClassifier, KernelError> {
    if let Some(adopted) = adopted(pins, name) {
        return Ok(adopted);
    }
    let path = pins.path(&current_pin(name));
    load_program(pins, name, flows, &path)?;
    for other in earlier_pins(pins, name)? {
        pins.clear(&other)?;
    }
    SchedClassifier::from_pin(&path).map_err(|error| from_program(name, error))
}

/// This build's program, if it is pinned.
fn adopted(pins: &Pins, name: &str) -> Option<SchedClassifier> {
    from_pin(pins, &current_pin(name))
}

/// An earlier build's program, if it is pinned. The maps that it uses are those of this build's: the ABI is the same.
fn earlier(pins: &Pins, name: &str) -> Result<Option<SchedClassifier>, KernelError> {
    Ok(earlier_pins(pins, name)?.iter().find_map(|pin| from_pin(pins, pin)))
}

fn earlier_pins(pins: &Pins, name: &str) -> Result<Vec<String>, KernelError> {
    let (prefix, current) = (format!("{name}-"), current_pin(name));
    let mut names = pins.names()?;
    names.retain(|pin| pin.starts_with(&prefix) && *pin != current);
    Ok(names)
}

/// Under which this build's program is pinned.
fn current_pin(name: &str) -> String {
    let build = hash(OBJECT);
    #[cfg(feature = "kernel-log")]
    let build = build ^ u64::from(log::level());
    format!("{name}-{build:016x}")
}

/// What is pinned there, if it is a program that uses the pinned maps.
fn from_pin(pins: &Pins, pin: &str) -> Option<SchedClassifier> {
    let program = SchedClassifier::from_pin(pins.path(pin)).ok()?;
    uses_pinned_maps(&program, pins).then_some(program)
}

/// Not so if a map's pin was removed by hand: then a new map has been, or will be, pinned in its place.
fn uses_pinned_maps(program: &SchedClassifier, pins: &Pins) -> bool {
    let Some(used) = program.info().ok().and_then(|info| info.map_ids().ok().flatten()) else { return false };
    SHAPES.iter().all(|shape| {
        let for_userspace_alone = [CONNECTIONS, NAMES].contains(&shape.name);
        MapInfo::from_pin(pins.path(shape.name))
            .is_ok_and(|pinned| for_userspace_alone || used.contains(&pinned.id()))
    })
}

/// Makes the maps that are not pinned yet, pins them, and checks those that are. The programs are not loaded yet.
fn load_object(pins: &Pins, flows: u32) -> Result<Ebpf, KernelError> {
    let mut loader = EbpfLoader::new();
    loader.map_max_entries(FLOWS, flows.max(2));
    loader.map_max_entries(CONNECTIONS, (flows / 2).max(1));
    loader.map_max_entries(TRACKS, (flows / 2).max(1));
    shrink_sockmap(&mut loader);
    #[cfg(feature = "kernel-log")]
    let level = log::level();
    #[cfg(feature = "kernel-log")]
    loader.override_global(aya_log::LEVEL, &level, true).map_pin_path(log::LOGS, pins.path(log::LOGS));
    for shape in &SHAPES {
        pins.check(shape)?;
        loader.map_pin_path(shape.name, pins.path(shape.name));
    }
    loader.load(OBJECT).map_err(from_ebpf)
}

fn load_program(pins: &Pins, name: &'static str, flows: u32, path: &Path) -> Result<(), KernelError> {
    let mut ebpf = load_object(pins, flows)?;
    let program = ebpf.program_mut(name).expect("the object has the program");
    let failed = |error| from_program(name, error);
    let program: &mut SchedClassifier = program.try_into().map_err(failed)?;
    program.load().map_err(failed)?;
    // One of this build, but with other maps.
    let _ = fs::remove_file(path);
    program.pin(path).map_err(|error| pin_error(path.to_owned(), io::Error::other(error)))
}

fn pinned<M>(pins: &Pins, name: &str) -> Result<M, KernelError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = MapData::from_pin(pins.path(name)).and_then(Map::from_map_data);
    map.and_then(M::try_from).map_err(from_map)
}

fn link_name(ifindex: u32) -> String {
    format!("link-{ifindex}")
}

impl Programs {
    /// The program for this kind of device, and its name; `None`: there is none, or not yet.
    fn of(
        &mut self,
        device: &Device,
        pins: &Pins,
        flows: u32,
    ) -> Result<Option<(&'static str, &mut SchedClassifier)>, KernelError> {
        let (name, known) = match device.link_layer {
            LinkLayer::Ethernet => (FORWARD_ETHERNET, &mut self.ethernet),
            LinkLayer::Bare => (FORWARD_BARE, &mut self.bare),
            LinkLayer::Unsupported => return Ok(None),
        };
        if known.is_none() {
            *known = if self.are_current { Some(program(pins, name, flows)?) } else { earlier(pins, name)? };
        }
        Ok(known.as_mut().map(|program| (name, program)))
    }
}

/// Attaches the program for this kind of device; where an earlier process has attached one, that is replaced, at once
/// and without a gap. `false`: there is no program for it, or not yet.
fn attach(programs: &mut Programs, pins: &Pins, device: &Device, flows: u32) -> Result<bool, KernelError> {
    let handle = programs.handle;
    let Some((name, program)) = programs.of(device, pins, flows)? else { return Ok(false) };
    let failed = |error| from_program(name, error);
    let pin = link_name(device.index);
    let path = pins.path(&pin);
    if let Ok(pinned) = PinnedLink::from_pin(&path) {
        let link = SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(of_link)?;
        match program.attach_to_link(link) {
            // The pin holds it.
            Ok(link) => return program.take_link(link).map(|_| true).map_err(failed),
            // Its device is gone, and another one has its index.
            Err(_) => pins.clear(&pin)?,
        }
    }
    let tcx = TcAttachOptions::TcxOrder(LinkOrder::first());
    match program.attach_with_options(&device.name, TcAttachType::Ingress, tcx) {
        Ok(link) => {
            let link: FdLink = program.take_link(link).map_err(failed)?.try_into().map_err(of_link)?;
            link.pin(&path).map_err(|error| pin_error(path, io::Error::other(error)))?;
        }
        Err(error) if is_unknown(&error) => attach_by_netlink(program, device, handle).map_err(failed)?,
        Err(error) => return Err(failed(error)),
    }
    Ok(true)
}

fn of_link(error: LinkError) -> KernelError {
    KernelError::Load(Box::new(error))
}

/// EINVAL: a kernel that does not know tcx.
fn is_unknown(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::EINVAL))
}

/// As a filter of the clsact qdisc, which stays when the process ends. Another gateway's, of another handle, stays too:
/// what one of the programs does not know goes on to the next.
fn attach_by_netlink(
    program: &mut SchedClassifier,
    device: &Device,
    handle: TcHandle,
) -> Result<(), ProgramError> {
    // There already: somebody else's is as good.
    let _ = qdisc_add_clsact(&device.name);
    let (name, ingress) = (&device.name, TcAttachType::Ingress);
    let options = NlOptions { priority: PRIORITY, handle, ..NlOptions::default() };
    let link = match program.attach_with_options(name, ingress, TcAttachOptions::Netlink(options)) {
        Ok(link) => link,
        Err(_) => program.attach_to_link(
            SchedClassifierLink::attached(name, ingress, PRIORITY, handle, None).map_err(TcError::IoError)?,
        )?,
    };
    // Dropped, it would be detached.
    std::mem::forget(program.take_link(link)?);
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half-changed by a panic: each critical section is one call into the kernel, or undone.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
