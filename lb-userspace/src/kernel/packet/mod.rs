//! The maps and programs of the packet tier. They are pinned: they go on without the process, and the next one adopts them.

mod attach;
mod hash;
mod links;
mod programs;
mod shapes;

pub(super) use attach::detach;
pub(super) use shapes::TIER;

use self::attach::{attach, attach_by_netlink, handle, link_name};
use self::hash::Hash;
use self::programs::{Programs, adopted, earlier, load_object, program};
use super::batch::{self, for_each_batch};
use super::devices::{Device, devices, relevant};
use super::error::{KernelError, from_map, from_program, pin_error};
use super::pins::Pins;
use super::tracks::{FinOrder, Tracks};
use crate::config::Interfaces;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerfEventArray, RingBuf};
use lb_common::packet::{
    self, CONNECTIONS, COUNTS, Count, EVENTS, Event, FLOWS, FORWARD_ETHERNET, Flow, HANDOVERS, Handover,
    NAMES, Name, PATHS, PORTS, Path as DevicePath, PerDirection, PerLeg, Record, SIGHTINGS, Side, Sighting,
    TRACKS, Tuple, odd::ODD, track::Track,
};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use std::{fmt, fs, io};

/// Entries read by one system call.
const BATCH: u32 = 1024;

/// linux/bpf.h: create an element, update none.
const BPF_NOEXIST: u64 = 1;
/// linux/bpf.h: update an element, create none.
const BPF_EXIST: u64 = 2;

/// The programs' counters, each with its number of packets.
pub type Counts = [(Count, u64); Count::ALL.len()];

/// The packet tier in the kernel. Shared by all workers.
pub struct Packet {
    maps: Maps,
    /// The flow table, for reading without the lock.
    flows: HashMap<MapData, Tuple, Flow>,
    /// The records, likewise.
    connections: HashMap<MapData, u64, Record>,
    sightings: HashMap<MapData, Tuple, Sighting>,
    counts: PerCpuArray<MapData, u64>,
    events: Mutex<RingBuf<MapData>>,
    programs: Mutex<Programs>,
    tracks: Tracks,
    /// Slots of connections whose insertion has failed; freed with the next slot.
    unused: Mutex<Vec<u32>>,
    /// This process has made the flow table.
    is_new: bool,
    /// The process before this one still has the lock too.
    is_shared: bool,
    capacity: u32,
    pins: Pins,
}

/// The kernel allows concurrent access; aya's API wants `&mut`. A lock for each map: a worker that inserts flows does not wait for
/// the sweeper that reads records.
struct Maps {
    flows: Mutex<HashMap<MapData, Tuple, Flow>>,
    paths: Mutex<HashMap<MapData, DevicePath, u32>>,
    handovers: Mutex<HashMap<MapData, u64, Handover>>,
    connections: Mutex<HashMap<MapData, u64, Record>>,
    names: Mutex<Names>,
    ports: Mutex<Ports>,
}

struct Names {
    map: HashMap<MapData, u64, Name>,
    /// The keys of the names that this process has stored.
    known: HashSet<u64>,
}

struct Ports {
    map: Array<MapData, u64>,
    /// A copy of the map, which one process at a time writes.
    sighted: Vec<u64>,
}

/// Why a connection's flows cannot be inserted.
#[derive(Debug, thiserror::Error)]
pub enum FlowInsertError {
    /// No room in the flow table.
    #[error("the flow table is full")]
    Full,
    /// The table has a flow of that tuple.
    #[error("there is a flow of this address and port")]
    Taken,
    /// Anything else.
    #[error("the kernel refuses the flow")]
    Refused(#[source] MapError),
    /// The memory of its track cannot be mapped.
    #[error("the tracks cannot be mapped")]
    Unmapped(#[source] io::Error),
}

impl FlowInsertError {
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
    /// Loads the programs and pins them with their maps, or adopts those that are pinned, with the connections in them. One
    /// process at a time. `flows`: the table's capacity, two per connection; an adopted table keeps its own.
    pub fn open(bpffs: &Path, flows: u32) -> Result<Self, KernelError> {
        let packet = Self::prepare(bpffs, flows, None)?;
        packet.load()?;
        Ok(packet)
    }

    /// As [`open`](Self::open), but loads no program, which takes the verifier long. The programs are those that are
    /// pinned: this build's, or those of an earlier build with the same ABI. If there are none, [`load`](Self::load) loads
    /// them. What is pinned does not change. `lock`: that of another process ([`share_lock`](Self::share_lock)).
    pub fn prepare(bpffs: &Path, flows: u32, lock: Option<OwnedFd>) -> Result<Self, KernelError> {
        let pins = Pins::create(bpffs, TIER)?;
        let is_shared = lock.is_some_and(|lock| pins.share(lock));
        if !pins.lock() {
            return Err(KernelError::InUse { path: bpffs.to_owned() });
        }
        let is_new = !pins.path(FLOWS).exists();
        let mut ethernet = adopted(&pins, FORWARD_ETHERNET);
        let are_current = ethernet.is_some();
        if !are_current {
            // Makes the maps that are not pinned yet, and checks those that are.
            load_object(&pins, flows)?;
            ethernet = earlier(&pins, FORWARD_ETHERNET)?;
        }
        let flows = MapData::from_pin(pins.path(FLOWS)).map_err(from_map)?;
        let info = flows.info().map_err(from_map)?;
        let (capacity, handle) = (info.max_entries(), handle(&info));
        let to_read: HashMap<MapData, Tuple, Flow> = pinned(&pins, FLOWS)?;
        let tracks = Tracks::new(MapData::from_pin(pins.path(TRACKS)).map_err(from_map)?)?;
        let ports: Array<MapData, u64> = pinned(&pins, PORTS)?;
        let sighted = sighted(&ports, &pins)?;
        let maps = Maps {
            flows: Mutex::new(Map::HashMap(flows).try_into().map_err(from_map)?),
            paths: Mutex::new(pinned(&pins, PATHS)?),
            handovers: Mutex::new(pinned(&pins, HANDOVERS)?),
            connections: Mutex::new(pinned(&pins, CONNECTIONS)?),
            names: Mutex::new(Names { map: pinned(&pins, NAMES)?, known: HashSet::new() }),
            ports: Mutex::new(Ports { map: ports, sighted }),
        };
        Ok(Self {
            flows: to_read,
            connections: pinned(&pins, CONNECTIONS)?,
            tracks,
            unused: Mutex::default(),
            is_new,
            is_shared,
            sightings: pinned(&pins, SIGHTINGS)?,
            counts: pinned(&pins, COUNTS)?,
            events: Mutex::new(pinned(&pins, EVENTS)?),
            maps,
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

    /// Loads this build's programs, unless they are loaded; the next [`attach`](Self::attach) attaches them to the devices.
    /// The verifier takes a good part of a second. After an error everything is as before.
    pub fn load(&self) -> Result<(), KernelError> {
        if self.is_current() {
            return Ok(());
        }
        // Without the lock, so that devices can be attached meanwhile.
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

    /// Attaches the program to every relevant device, in place of an earlier process's, and detaches those that are
    /// no longer relevant.
    /// Passes over a device whose program is not loaded yet. Returns the errors, by device.
    pub fn attach(&self, devices: &[Device], interfaces: &Interfaces) -> Vec<(String, KernelError)> {
        self.attach_by(attach, devices, interfaces)
    }

    /// As [`attach`](Self::attach), but always as on kernels without tcx: by tc filters.
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
            let pin = link_name(gone);
            // An error: the device is gone, and its link with it.
            let _ = links::detach(&self.pins.path(&pin));
            let _ = self.pins.clear(&pin);
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
        let Ports { map, sighted } = &mut *lock(&self.maps.ports);
        for (index, (word, known)) in (0..).zip(words.into_iter().zip(sighted)) {
            // One system call each; a reload or a restart changes few or none.
            if *known != word {
                map.set(index, word, 0)?;
                *known = word;
            }
        }
        Ok(())
    }

    /// What was sighted of the SYN or SYN-ACK that arrived with this tuple.
    pub fn sighting(&self, tuple: &Tuple) -> Option<Sighting> {
        self.sightings.get(tuple, 0).ok()
    }

    /// Writes the record of a connection whose flows are about to be inserted. If this process dies before, the next one
    /// finds a record without flows.
    pub fn announce(&self, id: u64, record: &Record) -> Result<(), FlowInsertError> {
        lock(&self.maps.connections).insert(id, record, BPF_NOEXIST).map_err(FlowInsertError::from_map)
    }

    /// Inserts a connection's flows: from here on its packets are forwarded. Inserts both or none. Returns the connection's
    /// slot, which the flows name. `tuples`: of each leg's packets as they arrive.
    pub fn insert(
        &self,
        tuples: &PerLeg<Tuple>,
        mut flows: PerDirection<Flow>,
        track: &Track,
        handover: &Handover,
    ) -> Result<u32, FlowInsertError> {
        let id = flows.request.id;
        let slot = self.tracks.take().ok_or(FlowInsertError::Full)?;
        let mut insert = || {
            self.tracks.begin(slot, track).map_err(FlowInsertError::Unmapped)?;
            self.set_handover(id, handover).map_err(FlowInsertError::from_map)?;
            let mut table = lock(&self.maps.flows);
            for (inserted, (tuple, flow)) in tuples.iter().zip(flows.each_mut()).enumerate() {
                flow.slot = slot;
                if let Err(error) = table.insert(tuple, *flow, BPF_NOEXIST) {
                    for tuple in tuples.iter().take(inserted) {
                        let _ = table.remove(tuple);
                    }
                    return Err(FlowInsertError::from_map(error));
                }
            }
            Ok(slot)
        };
        let result = insert();
        if result.is_err() {
            self.end_handover(id);
            // Not free at once: a program may have found the first flow.
            lock(&self.unused).push(slot);
        }
        result
    }

    /// Returns a function that frees the slot. It must be called after a grace period that began when the flows were
    /// removed.
    pub fn release(&self, slot: u32) -> impl FnOnce() + Send + 'static {
        let mut slots = std::mem::take(&mut *lock(&self.unused));
        slots.push(slot);
        self.tracks.release(slots)
    }

    /// A connection's track. Zeros if there is no such slot.
    pub fn track(&self, slot: u32) -> Track {
        self.tracks.load(slot).unwrap_or_else(|error| {
            tracing::error!(%error, slot, "cannot read a connection's track");
            Track::default()
        })
    }

    /// Notes what the socket of a leg has received from its end: all up to this sequence number, and then maybe a FIN.
    pub fn advance(&self, slot: u32, side: Side, end: u32, fin: Option<FinOrder>) {
        if let Err(error) = self.tracks.advance(slot, side, end, fin) {
            tracing::error!(%error, slot, "cannot write a connection's track");
        }
    }

    /// Notes the TSval, in the numbers of this end, that a leg's socket has sent last in its name.
    pub fn raise_tsval(&self, slot: u32, side: Side, tsval: u32) {
        // No error: the track was written before, so it is mapped.
        let _ = self.tracks.raise_tsval(slot, side, tsval);
    }

    /// Lets the programs ask this ([`asked`](packet::track::asked)) of the end again.
    pub fn was_asked(&self, slot: u32, side: Side, what: u8) {
        // No error: the track was read before, so it is mapped.
        let _ = self.tracks.was_asked(slot, side, what);
    }

    /// Calls `each` with the flows that an earlier process has left, whose slots are in use from here on. To be called before the
    /// first flow is inserted. `kept`: slots that are in use as well.
    pub fn adopt(
        &self,
        kept: impl IntoIterator<Item = u32>,
        mut each: impl FnMut(&Tuple, &Flow),
    ) -> Result<(), KernelError> {
        let mut used: Vec<u32> = kept.into_iter().collect();
        // Not for a new table: a walk through an empty one takes milliseconds.
        if !self.is_new {
            for_each_batch(&self.flows, BATCH, |tuples, flows| {
                used.extend(flows.iter().map(|flow| flow.slot));
                tuples.iter().zip(flows).for_each(|(tuple, flow)| each(tuple, flow));
            })
            .map_err(|error| KernelError::Load(error.into()))?;
        }
        self.tracks.adopt(used);
        Ok(())
    }

    /// The lock of the pinned maps, for a process that is to have it too.
    pub fn share_lock(&self) -> io::Result<OwnedFd> {
        self.pins.share_lock()
    }

    /// Whether the maps were another process's, which has let this one have the lock too.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Lets other processes have the lock: this one changes nothing of others' connections any more.
    pub fn unlock(&self) {
        self.pins.unlock();
    }

    /// Another process may have read events and set ports meanwhile.
    pub fn look_again(&self) -> Result<(), KernelError> {
        // A ring buffer remembers how far it was read.
        *lock(&self.events) = pinned(&self.pins, EVENTS)?;
        let mut ports = lock(&self.maps.ports);
        ports.sighted = sighted(&ports.map, &self.pins)?;
        Ok(())
    }

    /// The flow of packets that arrive with this tuple.
    pub fn flow(&self, tuple: &Tuple) -> Option<Flow> {
        self.flows.get(tuple, 0).ok()
    }

    /// The flows of a connection; `None`: one is gone, or its tuple belongs to another connection now.
    pub fn flows_of(&self, id: u64, record: &Record) -> Option<PerDirection<Flow>> {
        let flow = |tuple| self.flow(tuple).filter(|flow| flow.id == id);
        Some(PerDirection { request: flow(&record.from_client)?, response: flow(&record.from_server)? })
    }

    /// What the programs know of a handover that is under way.
    pub fn handover(&self, id: u64) -> Option<Handover> {
        lock(&self.maps.handovers).get(&id, 0).ok()
    }

    /// The connections whose handover is under way, or was when their process died.
    pub fn handovers(&self) -> HashSet<u64> {
        lock(&self.maps.handovers).keys().filter_map(Result::ok).collect()
    }

    /// Tells the programs what the sockets of a connection still have to deliver.
    pub fn set_handover(&self, id: u64, handover: &Handover) -> Result<(), MapError> {
        lock(&self.maps.handovers).insert(id, handover, 0)
    }

    /// Tells the programs that the sockets are closed, or about to be.
    pub fn end_handover(&self, id: u64) {
        // An error: there is none.
        let _ = lock(&self.maps.handovers).remove(&id);
    }

    /// Ends the handovers of connections without a record: their process died during the handover. Not those that are kept.
    pub fn end_old_handovers(&self, is_kept: impl Fn(u64) -> bool) {
        let ids: Vec<u64> = lock(&self.maps.handovers).keys().filter_map(Result::ok).collect();
        for id in ids {
            if !is_kept(id) && self.record(id).is_none() {
                self.end_handover(id);
            }
        }
    }

    /// Removes the record of a connection, so that the next process does not find it.
    pub fn forget(&self, id: u64) {
        let _ = lock(&self.maps.connections).remove(&id);
    }

    /// Removes the record of a connection and returns it.
    pub fn take_record(&self, id: u64) -> Option<Record> {
        batch::take(&lock(&self.maps.connections), &id)
    }

    /// Removes a flow of this connection: packets with this tuple then go up the stack.
    pub fn remove(&self, id: u64, tuple: &Tuple) {
        // The tuple may belong to a new connection by now. Under the lock no flow is inserted.
        let mut flows = lock(&self.maps.flows);
        if self.flow(tuple).is_some_and(|flow| flow.id == id) {
            let _ = flows.remove(tuple);
        }
    }

    /// Replaces a flow of the same connection.
    pub fn replace(&self, tuple: &Tuple, flow: &Flow) {
        let mut flows = lock(&self.maps.flows);
        // Under the lock no flow is inserted. A program may remove it in between; then nothing is replaced.
        if self.flow(tuple).is_some_and(|known| known.id == flow.id) {
            let _ = flows.insert(tuple, flow, BPF_EXIST);
        }
    }

    /// Lets the programs accept packets of a path, or no longer.
    pub fn set_path(&self, path: DevicePath, allowed: bool) {
        let mut paths = lock(&self.maps.paths);
        let result = if allowed { paths.insert(path, 1, 0) } else { paths.remove(&path) };
        if let (Err(error), true) = (result, allowed) {
            tracing::error!(%error, ?path, "the kernel refuses a path");
        }
    }

    /// All paths that are accepted.
    pub fn paths(&self) -> Vec<DevicePath> {
        lock(&self.maps.paths).keys().filter_map(Result::ok).collect()
    }

    /// The record of a connection.
    pub fn record(&self, id: u64) -> Option<Record> {
        self.connections.get(&id, 0).ok()
    }

    /// Whether there are connections, of this process or of an earlier one.
    pub fn has_connections(&self) -> bool {
        self.connections.keys().next().is_some()
    }

    /// Calls `each` with every record, and the connection's id. It may remove records.
    pub fn for_each_record(&self, mut each: impl FnMut(u64, &Record)) -> Result<(), KernelError> {
        if self.is_new {
            return Ok(());
        }
        for_each_batch(&self.connections, BATCH, |ids, records| {
            ids.iter().zip(records).for_each(|(id, record)| each(*id, record));
        })
        .map_err(|error| KernelError::Load(error.into()))
    }

    /// Stores a name for the next process, and returns its key.
    pub fn intern(&self, name: impl fmt::Display) -> u64 {
        // Connections are many and names few: the text is made only for a new one.
        let mut hash = Hash::EMPTY;
        let _ = write!(hash, "{name}");
        let key = hash.0;
        let mut names = lock(&self.maps.names);
        if names.known.insert(key) {
            let (name, mut text) = (name.to_string(), [0; 270]);
            let bytes = &name.as_bytes()[..name.floor_char_boundary(text.len())];
            text[..bytes.len()].copy_from_slice(bytes);
            // After an error the next process says "unknown"; nothing else depends on the name.
            let _ = names.map.insert(key, Name { length: bytes.len() as u16, text }, 0);
        }
        key
    }

    /// The name of a key.
    pub fn name(&self, key: u64) -> Option<String> {
        let name = lock(&self.maps.names).map.get(&key, 0).ok()?;
        let bytes = name.text.get(..usize::from(name.length))?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }

    /// Takes the events out of the ring buffer, at most `most`.
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

    /// A descriptor that becomes readable when the programs report an urgent event.
    pub fn events_fd(&self) -> io::Result<OwnedFd> {
        let events = lock(&self.events);
        // SAFETY: the ring buffer owns its descriptor and is borrowed, locked, meanwhile.
        unsafe { BorrowedFd::borrow_raw(events.as_raw_fd()) }.try_clone_to_owned()
    }

    /// The kernel's id of the program for devices with an Ethernet header.
    #[cfg(feature = "kernel-log")]
    pub fn program_id(&self) -> Result<u32, KernelError> {
        let programs = lock(&self.programs);
        let program = programs.ethernet.as_ref().expect("loaded before it is asked for");
        let info = program.info();
        Ok(info.map_err(|error| from_program(FORWARD_ETHERNET, error))?.id())
    }

    /// The perf buffers of odd packets.
    pub(super) fn odd_buffers(&self) -> Result<PerfEventArray<MapData>, MapError> {
        let map = MapData::from_pin(self.pins.path(ODD)).and_then(Map::from_map_data);
        map.and_then(PerfEventArray::try_from)
    }

    /// One of the programs' counters, over all CPUs. Counted since the map was made, also during earlier processes.
    pub fn count(&self, what: Count) -> u64 {
        counted(&self.counts, what)
    }

    /// All counters.
    pub fn counts(&self) -> Counts {
        Count::ALL.map(|what| (what, self.count(what)))
    }

    /// The directory of its pins.
    pub fn directory(&self) -> &Path {
        self.pins.directory()
    }

    /// How many flows the table has room for.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }
}

/// `snisplice load`: pins the programs and attaches them, for a gateway to adopt. Returns the errors, by device.
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

/// The counters of this version's pinned programs, and since when they count; `None`: there are none. Takes no lock: a
/// gateway may be running.
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

/// The bits of all ports.
fn sighted(ports: &Array<MapData, u64>, pins: &Pins) -> Result<Vec<u64>, KernelError> {
    // A batch larger than the array ends with the first call.
    let (words, mut sighted) = (2 * packet::PORT_WORDS, Vec::new());
    for_each_batch(ports, words + 1, |_, words| sighted.extend_from_slice(words))
        .map_err(|error| KernelError::Load(error.into()))?;
    if sighted.len() != words as usize {
        let (expected, found) = (format!("{words} words"), format!("{} words", sighted.len()));
        return Err(KernelError::ForeignPin { path: pins.path(PORTS), expected, found });
    }
    Ok(sighted)
}

fn pinned<M>(pins: &Pins, name: &str) -> Result<M, KernelError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = MapData::from_pin(pins.path(name)).and_then(Map::from_map_data);
    map.and_then(M::try_from).map_err(from_map)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic leaves nothing half-changed: each critical section is one call into the kernel, or is undone on an error.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
