//! The maps of the sockmap tier: the sockets, how many bytes have flowed between them, and the program's events.

pub(super) mod programs;

pub(in crate::kernel) use lb_common::sockmap::{FLOWS, SOURCES, TARGETS, VERDICT};

use super::pins::Shape;
use super::tcp;
use crate::clock;
use aya::Ebpf;
use aya::maps::sock::SockMapFd;
use aya::maps::{HashMap, Map, MapData, MapError, MapInfo, MapType, RingBuf, SockHash};
use lb_common::packet::{PerLeg, Side};
use lb_common::sockmap::{EVENTS, Flow};
use rustix::net::sockopt;
use std::collections::HashMap as Table;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// All maps, with what a pinned one must be like to be adopted.
pub(in crate::kernel) const SHAPES: [Shape; 4] = [
    Shape { name: SOURCES, kind: MapType::SockHash, key: 8, value: 4 },
    Shape { name: TARGETS, kind: MapType::SockHash, key: 8, value: 4 },
    Shape { name: FLOWS, kind: MapType::Hash, key: 8, value: size_of::<Flow>() as u32 },
    Shape { name: EVENTS, kind: MapType::RingBuf, key: 0, value: 0 },
];

/// The sockets whose bytes the kernel moves. Shared by all workers.
pub struct Sockmap {
    maps: Mutex<Maps>,
    /// `None` once [`serve_events`](Self::serve_events) has taken it.
    events: Mutex<Option<RingBuf<MapData>>>,
    /// The tasks that wait for events, by the cookie of the source socket.
    waiting: Mutex<Table<u64, Arc<Notify>>>,
    refresh: Notify,
    capacity: u32,
}

/// The kernel allows concurrent access; aya's API wants `&mut`.
struct Maps {
    sources: SockHash<MapData, u64>,
    targets: SockHash<MapData, u64>,
    flows: HashMap<MapData, u64, Flow>,
}

/// Why a connection cannot use the sockmap.
#[derive(Debug, thiserror::Error)]
pub enum PairInsertError {
    /// No room in a map.
    #[error("the sockmap is full")]
    Full,
    /// The kernel refuses a socket: not established any more, under TLS, in another sockmap.
    #[error("the kernel refuses the socket")]
    Refused(#[source] io::Error),
    /// The kernel has lost bytes.
    #[error("the kernel lost bytes")]
    Broken,
}

/// The two sockets of a connection. They are in the maps until this is dropped.
pub(crate) struct Pair<'a> {
    sockmap: &'a Sockmap,
    cookies: PerLeg<u64>,
    /// [`tcp::sent_exactly`] of each socket before its first redirected byte.
    sent_before: PerLeg<u64>,
    events: PerLeg<Arc<Notify>>,
    refusal: Option<PairInsertError>,
}

impl Sockmap {
    pub(in crate::kernel) fn new(programs: &mut Ebpf) -> Result<Self, MapError> {
        let sources = take(programs, SOURCES);
        let capacity = MapInfo::max_entries(&map_data(&sources).info()?);
        let maps = Maps {
            sources: sources.try_into()?,
            targets: take(programs, TARGETS).try_into()?,
            flows: take(programs, FLOWS).try_into()?,
        };
        let events = RingBuf::try_from(take(programs, EVENTS))?;
        Ok(Self {
            maps: Mutex::new(maps),
            events: Mutex::new(Some(events)),
            waiting: Mutex::default(),
            refresh: Notify::new(),
            capacity,
        })
    }

    /// Wakes the connections that the program's events are about, for ever. One task of the process must run it: without it
    /// nothing bounds the bytes in flight. A second call returns at once.
    pub async fn serve_events(&self) -> io::Result<()> {
        let Some(events) = lock(&self.events).take() else {
            return Ok(());
        };
        // SAFETY: the ring buffer owns its descriptor, and nothing replaces or closes it before it is dropped.
        let registered = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) };
        let mut events = registered?;
        loop {
            let mut ready = events.readable_mut().await?;
            let waiting = lock(&self.waiting);
            while let Some(event) = ready.get_inner_mut().next() {
                let cookie = <[u8; 8]>::try_from(&*event).map(u64::from_ne_bytes);
                if let Some(notify) = cookie.ok().and_then(|cookie| waiting.get(&cookie)) {
                    notify.notify_one();
                }
            }
            drop(waiting);
            ready.clear_ready();
        }
    }

    /// Asks every connection to bring its [`Traffic`](crate::traffic::Traffic) up to date. Each does so when its worker
    /// next runs it.
    pub fn refresh(&self) {
        self.refresh.notify_waiters();
    }

    /// How many sockets the maps have room for.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Sockets in the maps.
    pub fn entries(&self) -> usize {
        lock(&self.waiting).len()
    }

    pub(crate) async fn refreshed(&self) {
        self.refresh.notified().await;
    }

    /// Inserts both sockets of a connection. From here on the kernel moves what arrives, beginning with the first byte that
    /// userspace has not read. Userspace must have written all that it has read, and reads no more.
    ///
    /// No byte can be lost, repeated or overtaken. Both flows and both targets are inserted before the first source. For
    /// bytes that are queued at a source when it is inserted, `release` calls the verdict program, in order and under the
    /// socket's lock, so later bytes cannot overtake them. The program cuts a segment of which userspace has read a part,
    /// by its sequence number.
    pub(crate) fn insert(&self, sockets: PerLeg<BorrowedFd<'_>>) -> Result<Pair<'_>, PairInsertError> {
        let mut pair = self.prepare(sockets)?;
        for side in Side::BOTH {
            let socket = sockets.of(side);
            tcp::hold(socket).map_err(PairInsertError::Refused)?;
            let inserted = lock(&self.maps).sources.insert(pair.cookies.of(side), socket.as_raw_fd(), 0);
            if let Err(error) = inserted {
                pair.refusal = Some(error.into());
                break;
            }
        }
        // The server's socket may be refused (its FIN has just arrived: `hold` does not hold a FIN) when bytes of the
        // client have been moved already.
        if pair.refusal.is_some() && !pair.stop(Side::Client, sockets.client).unwrap_or(false) {
            return Err(PairInsertError::Broken);
        }
        for socket in sockets.iter() {
            tcp::release(*socket).map_err(|_| PairInsertError::Broken)?;
        }
        Ok(pair)
    }

    /// Inserts everything but the sources.
    fn prepare(&self, sockets: PerLeg<BorrowedFd<'_>>) -> Result<Pair<'_>, PairInsertError> {
        let PerLeg { client, server } =
            sockets.map(|socket| Start::of(socket).map_err(PairInsertError::Refused));
        let starts = PerLeg { client: client?, server: server? };
        let cookies = starts.map(|start| start.cookie);
        let sent_before = starts.map(|start| start.sent);
        let pair = Pair { sockmap: self, cookies, sent_before, events: PerLeg::default(), refusal: None };
        for (cookie, event) in cookies.iter().zip(pair.events.iter()) {
            lock(&self.waiting).insert(*cookie, event.clone());
        }
        let now_ns = clock::now_ns();
        let mut maps = lock(&self.maps);
        for side in Side::BOTH {
            let flow = Flow::new(cookies.of(side.other()), starts.of(side).next_seq, now_ns);
            maps.flows.insert(cookies.of(side), flow, 0)?;
        }
        for (cookie, socket) in cookies.iter().zip(sockets.iter()) {
            maps.targets.insert(cookie, socket.as_raw_fd(), 0)?;
        }
        drop(maps);
        Ok(pair)
    }
}

impl Pair<'_> {
    /// Why the program has neither socket, if it has none. Bytes that it moved before the second socket was refused are
    /// delivered all the same.
    pub(crate) fn refusal(&self) -> Option<&PairInsertError> {
        self.refusal.as_ref()
    }

    /// What has flowed from this side's socket to the other.
    pub(crate) fn flow(&self, side: Side) -> io::Result<Flow> {
        lock(&self.sockmap.maps).flows.get(self.cookies.get(side), 0).map_err(io::Error::other)
    }

    /// [`tcp::sent_exactly`] of this socket before its first redirected byte.
    pub(crate) fn sent_before(&self, side: Side) -> u64 {
        self.sent_before.of(side)
    }

    /// Returns at the next event of this socket's flow, or [`Pair::wake`].
    pub(crate) async fn event(&self, side: Side) {
        self.events.get(side).notified().await;
    }

    /// Makes [`Pair::event`] return.
    pub(crate) fn wake(&self, side: Side) {
        self.events.get(side).notify_one();
    }

    /// Takes this socket away from the program: what arrives then stays in its receive queue, for userspace. Bytes that are
    /// queued at the other socket are still delivered, and the other direction goes on. `false`: bytes were lost, and the
    /// connection cannot go on.
    ///
    /// A segment that arrives at the very moment at which the kernel detaches the program would be dropped, because the
    /// kernel does not lock the socket then. So arriving bytes are held first. If more arrive within those microseconds
    /// than the kernel holds, the sequence numbers show it.
    pub(crate) fn stop(&self, side: Side, socket: BorrowedFd<'_>) -> io::Result<bool> {
        tcp::hold(socket)?;
        self.leave_sources(side);
        let next_seq = tcp::next_seq_in_sockmap(socket)?;
        let flow = self.flow(side)?;
        tcp::release(socket)?;
        Ok(!flow.is_broken() && flow.next_seq() == next_seq)
    }

    fn leave_sources(&self, side: Side) {
        // An error: the kernel has removed it at the end of the connection.
        let _ = lock(&self.sockmap.maps).sources.remove(self.cookies.get(side));
    }
}

impl Drop for Pair<'_> {
    fn drop(&mut self) {
        let mut maps = lock(&self.sockmap.maps);
        // The sources first: the program then looks up nothing that is gone. An error: the entry is absent.
        for cookie in self.cookies.iter() {
            let _ = maps.sources.remove(cookie);
        }
        for cookie in self.cookies.iter() {
            let _ = maps.targets.remove(cookie);
            let _ = maps.flows.remove(cookie);
        }
        drop(maps);
        let mut waiting = lock(&self.sockmap.waiting);
        for cookie in self.cookies.iter() {
            waiting.remove(cookie);
        }
    }
}

impl From<MapError> for PairInsertError {
    fn from(error: MapError) -> Self {
        match error {
            MapError::SyscallError(error) => match error.io_error.raw_os_error() {
                Some(libc::E2BIG) => Self::Full,
                _ => Self::Refused(error.io_error),
            },
            error => Self::Refused(io::Error::other(error)),
        }
    }
}

/// The sources' map, for attaching the verdict program.
pub(in crate::kernel) fn sources(programs: &mut Ebpf) -> Result<SockMapFd, MapError> {
    let map = programs.map_mut(SOURCES).expect("the object has the map");
    let sources = SockHash::<_, u64>::try_from(map)?;
    Ok(sources.fd().try_clone()?)
}

/// The state of a socket before anything is redirected.
#[derive(Clone, Copy)]
struct Start {
    cookie: u64,
    /// Sequence number of the first byte that userspace has not read.
    next_seq: u32,
    /// [`tcp::sent_exactly`].
    sent: u64,
}

impl Start {
    fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        if !tcp::is_established(socket)? {
            return Err(io::ErrorKind::NotConnected.into());
        }
        sockopt::set_socket_oobinline(socket, true)?;
        tcp::select_receive_queue(socket)?;
        Ok(Self {
            cookie: sockopt::socket_cookie(socket)?,
            next_seq: tcp::next_seq(socket)?,
            sent: tcp::sent_exactly(socket)?,
        })
    }
}

fn map_data(map: &Map) -> &MapData {
    let Map::SockHash(data) = map else { unreachable!("the object says so") };
    data
}

fn take(programs: &mut Ebpf, name: &str) -> Map {
    programs.take_map(name).expect("the object has the map")
}

/// A panic leaves nothing half-changed under one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
