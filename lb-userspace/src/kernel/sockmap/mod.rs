//! The maps of the sockmap tier: which sockets are in, what has flowed, and the kernel's events.

pub(super) mod programs;

pub(in crate::kernel) use lb_common::sockmap::{FLOWS, SOURCES, TARGETS, VERDICT};

use super::pins::Shape;
use super::tcp;
use crate::clock;
use aya::Ebpf;
use aya::maps::sock::SockMapFd;
use aya::maps::{HashMap, Map, MapData, MapError, MapInfo, MapType, RingBuf, SockHash};
use lb_common::sockmap::{EVENTS, Flow};
use rustix::net::sockopt;
use std::collections::HashMap as Table;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// All maps, for those who adopt them.
pub(in crate::kernel) const SHAPES: [Shape; 4] = [
    Shape { name: SOURCES, kind: MapType::SockHash, key: 8, value: 4 },
    Shape { name: TARGETS, kind: MapType::SockHash, key: 8, value: 4 },
    Shape { name: FLOWS, kind: MapType::Hash, key: 8, value: size_of::<Flow>() as u32 },
    Shape { name: EVENTS, kind: MapType::RingBuf, key: 0, value: 0 },
];

/// The sockets whose bytes the kernel moves. Shared by all workers.
pub struct Sockmap {
    maps: Mutex<Maps>,
    /// Taken by the task that serves it.
    events: Mutex<Option<RingBuf<MapData>>>,
    /// Who waits for events, by the cookie of the source.
    waiting: Mutex<Table<u64, Arc<Notify>>>,
    refresh: Notify,
    capacity: u32,
}

/// The kernel would allow all of them at once; aya's API takes them exclusively.
struct Maps {
    sources: SockHash<MapData, u64>,
    targets: SockHash<MapData, u64>,
    flows: HashMap<MapData, u64, Flow>,
}

/// Why a connection cannot use the sockmap.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// No room in a map.
    #[error("the sockmap is full")]
    Full,
    /// The kernel refuses a socket: not established any more, under TLS, in another sockmap.
    #[error("the kernel refuses the socket")]
    Refused(#[source] io::Error),
    /// Bytes were lost.
    #[error("the kernel lost bytes")]
    Broken,
}

/// The two sockets of a connection, in the maps until this is dropped. Index 0 and 1 name them.
pub(crate) struct Pair<'a> {
    sockmap: &'a Sockmap,
    cookies: [u64; 2],
    /// [`tcp::sent_exactly`] of each socket before its first redirected byte.
    sent_before: [u64; 2],
    events: [Arc<Notify>; 2],
    refusal: Option<InsertError>,
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

    /// Hands the kernel's events to the connections they are about, for ever; one task of the process must run it,
    /// or nothing bounds the bytes in flight. A second call returns at once.
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

    /// Makes every connection bring its [`Traffic`](crate::traffic::Traffic) up to date, soon: each does so when its
    /// worker next runs it.
    pub fn refresh(&self) {
        self.refresh.notify_waiters();
    }

    /// Sockets that the maps have room for.
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

    /// Puts both sockets of a connection in. From here on the kernel moves what arrives, beginning with the first
    /// byte that userspace has not read; userspace reads no more, and has written all it had read.
    ///
    /// No byte can be lost, repeated or overtaken. Both flows and both targets are there before the first source.
    /// What is queued at a source when it is inserted is announced to the verdict by `release`, in order and under
    /// the socket's lock, so it cannot be overtaken by what arrives after. And a segment of which userspace has read
    /// the head is cut by its sequence number.
    pub(crate) fn insert(&self, sockets: [BorrowedFd<'_>; 2]) -> Result<Pair<'_>, InsertError> {
        let mut pair = self.prepare(sockets)?;
        for (side, socket) in sockets.into_iter().enumerate() {
            tcp::hold(socket).map_err(InsertError::Refused)?;
            let inserted = lock(&self.maps).sources.insert(pair.cookies[side], socket.as_raw_fd(), 0);
            if let Err(error) = inserted {
                pair.refusal = Some(error.into());
                break;
            }
        }
        // The second may be refused (its FIN has just come) when the first has flowed already: a FIN is not held.
        if pair.refusal.is_some() && !pair.stop(0, sockets[0]).unwrap_or(false) {
            return Err(InsertError::Broken);
        }
        for socket in sockets {
            tcp::release(socket).map_err(|_| InsertError::Broken)?;
        }
        Ok(pair)
    }

    /// Everything but the sources.
    fn prepare(&self, sockets: [BorrowedFd<'_>; 2]) -> Result<Pair<'_>, InsertError> {
        let starts = [Start::of(sockets[0]), Start::of(sockets[1])];
        let [client, server] = starts.map(|start| start.map_err(InsertError::Refused));
        let starts = [client?, server?];
        let cookies = starts.map(|start| start.cookie);
        let sent_before = starts.map(|start| start.sent);
        let pair = Pair { sockmap: self, cookies, sent_before, events: Default::default(), refusal: None };
        for side in [0, 1] {
            lock(&self.waiting).insert(cookies[side], pair.events[side].clone());
        }
        let now_ns = clock::now_ns();
        let mut maps = lock(&self.maps);
        for side in [0, 1] {
            maps.flows.insert(
                cookies[side],
                Flow::new(cookies[1 - side], starts[side].next_seq, now_ns),
                0,
            )?;
        }
        for side in [0, 1] {
            maps.targets.insert(cookies[side], sockets[side].as_raw_fd(), 0)?;
        }
        drop(maps);
        Ok(pair)
    }
}

impl Pair<'_> {
    /// Why the verdict has none of the two sockets, if so. What it took of one before it was refused the other is
    /// on its way.
    pub(crate) fn refusal(&self) -> Option<&InsertError> {
        self.refusal.as_ref()
    }

    /// What has flowed from this socket to the other.
    pub(crate) fn flow(&self, side: usize) -> io::Result<Flow> {
        lock(&self.sockmap.maps).flows.get(&self.cookies[side], 0).map_err(io::Error::other)
    }

    /// [`tcp::sent_exactly`] of this socket before its first redirected byte.
    pub(crate) fn sent_before(&self, side: usize) -> u64 {
        self.sent_before[side]
    }

    /// Each event of this socket's flow, and each [`Pair::wake`].
    pub(crate) async fn event(&self, side: usize) {
        self.events[side].notified().await;
    }

    /// Makes [`Pair::event`] return.
    pub(crate) fn wake(&self, side: usize) {
        self.events[side].notify_one();
    }

    /// Ends the verdict's hold on this socket: what arrives stays in its receive queue, for userspace. What the
    /// kernel has queued at the other socket, and what flows the other way, goes on. `false`: bytes were lost, and
    /// the connection cannot be continued.
    ///
    /// A segment that arrives in the very moment in which the kernel takes the program away would be dropped, for
    /// the kernel does not lock the socket then. So arriving segments are held back first; and if so many come
    /// within those microseconds that the kernel does not hold them, the sequence numbers tell.
    pub(crate) fn stop(&self, side: usize, socket: BorrowedFd<'_>) -> io::Result<bool> {
        tcp::hold(socket)?;
        self.leave_sources(side);
        let next_seq = tcp::next_seq_in_sockmap(socket)?;
        let flow = self.flow(side)?;
        tcp::release(socket)?;
        Ok(!flow.is_broken() && flow.next_seq() == next_seq)
    }

    fn leave_sources(&self, side: usize) {
        // Absent: the kernel has removed it with the end of the connection.
        let _ = lock(&self.sockmap.maps).sources.remove(&self.cookies[side]);
    }
}

impl Drop for Pair<'_> {
    fn drop(&mut self) {
        let mut maps = lock(&self.sockmap.maps);
        // In this order, so that no verdict looks for something that is gone. Absent is as good as removed.
        for cookie in &self.cookies {
            let _ = maps.sources.remove(cookie);
        }
        for cookie in &self.cookies {
            let _ = maps.targets.remove(cookie);
            let _ = maps.flows.remove(cookie);
        }
        drop(maps);
        let mut waiting = lock(&self.sockmap.waiting);
        for cookie in &self.cookies {
            waiting.remove(cookie);
        }
    }
}

impl From<MapError> for InsertError {
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

/// A socket before anything is redirected.
#[derive(Clone, Copy)]
struct Start {
    cookie: u64,
    /// Of the first byte that userspace has not read.
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

/// Nothing is left half-done by a panic under one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
