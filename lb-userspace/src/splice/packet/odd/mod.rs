//! Odd packets of spliced connections: fragments, and packets with IPv4 options or IPv6 extension headers
//! ([`lb_common::packet::odd`]). The programs copy them to userspace, which makes them whole and plain, and lets them
//! arrive again by the device by which they have come.
//!
//! This is done in a thread of its own, so that a flood of such packets holds nothing else up.

mod fragments;
mod ip;
mod loss;

pub use loss::{Loss, Losses};

use super::thread::StoppableThread;

use crate::kernel::frames::Frames;
use crate::kernel::odd::OddPackets;
use crate::kernel::{KernelError, Packet};
use crate::privileges::drop_privileges;
use fragments::{Fragments, Whole};
use ip::Plain;
use lb_common::packet::inject::{ARRIVAL, NOBODY, Way};
use lb_common::packet::odd::Odd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time between two looks for packets that have been incomplete for too long.
const LOOK: Duration = Duration::from_secs(1);

/// The thread for odd packets; it ends when this is dropped.
pub(super) struct OddThread {
    _thread: StoppableThread,
}

impl OddThread {
    /// Starts it. `frames`: by which the packets arrive again.
    pub(super) fn start(
        kernel: &Packet,
        frames: Arc<Frames>,
        losses: Arc<Losses>,
    ) -> Result<Self, KernelError> {
        let failed = |error: io::Error| KernelError::Load(Box::new(error));
        let odd = OddPackets::open(kernel)?;
        let plainer = Plainer { frames, fragments: Fragments::default(), losses };
        let thread = StoppableThread::start("odd packets", move |over| serve(&over, odd, plainer));
        Ok(Self { _thread: thread.map_err(failed)? })
    }
}

fn serve(over: &OwnedFd, mut odd: OddPackets, mut plainer: Plainer) {
    // Privileges are per thread, and this one was started before the process dropped them.
    if let Err(error) = drop_privileges() {
        tracing::warn!(%error, "the thread for odd packets keeps its privileges");
    }
    loop {
        match wait(over, &odd, (!plainer.fragments.is_empty()).then_some(LOOK)) {
            Ok(false) => {}
            Ok(true) => return,
            Err(error) => {
                tracing::error!(%error, "waiting for odd packets");
                std::thread::sleep(LOOK);
            }
        }
        let now = Instant::now();
        odd.take(|odd, frame| plainer.take(now, odd, frame));
        plainer.expire(now);
    }
}

/// Waits for packets, at most for `bound`; whether the thread is to end.
fn wait(over: &OwnedFd, odd: &OddPackets, bound: Option<Duration>) -> io::Result<bool> {
    let bound = bound.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
    let mut fds = vec![PollFd::new(over, PollFlags::IN)];
    fds.extend(odd.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    match poll(&mut fds, bound.as_ref()) {
        Err(rustix::io::Errno::INTR) | Ok(_) => Ok(!fds[0].revents().is_empty()),
        Err(error) => Err(error.into()),
    }
}

/// Makes odd packets plain.
struct Plainer {
    frames: Arc<Frames>,
    fragments: Fragments,
    losses: Arc<Losses>,
}

impl Plainer {
    fn take(&mut self, now: Instant, odd: Odd, frame: &[u8]) {
        match self.plain(now, odd, frame) {
            Ok(Some(plain)) => {
                let way = Way { ifindex: odd.ifindex, kind: ARRIVAL };
                // The stack checks the destination address: it is that with which the packet came. A device without a link
                // layer has none.
                let to = frame.first_chunk().filter(|_| odd.link != 0).copied().unwrap_or(NOBODY);
                if let Err(error) = self.frames.send(way.addresses(to), &plain.packet, plain.unfinished) {
                    tracing::debug!(%error, "cannot send a packet that was odd");
                    self.losses.count(Loss::NotSent);
                }
            }
            Ok(None) => {}
            Err(loss) => self.losses.count(loss),
        }
    }

    /// `None`: a fragment of a packet that is still incomplete.
    fn plain(&mut self, now: Instant, odd: Odd, frame: &[u8]) -> Result<Option<Plain>, Loss> {
        let bytes = frame.get(odd.link as usize..).ok_or(Loss::Malformed)?;
        let packet = ip::IpPacket::parse(bytes)?;
        let Some(place) = packet.place else {
            let segment = u16::try_from(odd.segment).map_err(|_| Loss::Malformed)?;
            return Plain::new(packet.header, packet.next, packet.payload, segment).map(Some);
        };
        let losses = &self.losses;
        let whole = self.fragments.add(now, odd.ifindex, &packet, place, &mut |loss| losses.count(loss));
        whole.map(|Whole { header, next, payload }| Plain::new(header, next, &payload, 0)).transpose()
    }

    fn expire(&mut self, now: Instant) {
        let losses = &self.losses;
        self.fragments.expire(now, &mut |loss| losses.count(loss));
    }
}
