//! Copies of the odd packets of spliced connections, as the programs hand them up.

use super::error::{KernelError, from_map};
use super::packet::Packet;
use aya::maps::perf::{PerfEvent, PerfEventArrayBuffer};
use aya::maps::{MapData, PerfEventArray};
use aya::util::online_cpus;
use lb_common::packet::odd::Odd;
use std::os::fd::{AsFd as _, BorrowedFd};

/// Pages of each CPU's buffer: four of the longest packets, or 170 usual ones, with pages of 4 KiB. What finds no room
/// is counted, and TCP sends it again.
const PAGES: usize = 64;

/// Reads the copies. While there is none of these, the programs drop the packets, and count them.
pub struct OddPackets {
    /// One per CPU that was there at the start.
    buffers: Vec<PerfEventArrayBuffer<MapData>>,
    /// What wraps around the end of a buffer, put together.
    joined: Vec<u8>,
}

impl OddPackets {
    /// Makes the buffers. Needs CAP_PERFMON, which may be dropped afterwards.
    pub fn open(packet: &Packet) -> Result<Self, KernelError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| KernelError::Load(error);
        let mut array: PerfEventArray<MapData> = packet.odd_buffers().map_err(from_map)?;
        let cpus = online_cpus().map_err(|(_, error)| failed(error.into()))?;
        let open = |cpu| array.open(cpu, Some(PAGES)).map_err(|error| failed(error.into()));
        let buffers = cpus.into_iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { buffers, joined: Vec::new() })
    }

    /// Readable, for poll, when there are copies.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.buffers.iter().map(PerfEventArrayBuffer::as_fd)
    }

    /// Takes the copies there are: what is known of each frame, and the frame.
    pub fn take(&mut self, mut see: impl FnMut(Odd, &[u8])) {
        let joined = &mut self.joined;
        for buffer in &mut self.buffers {
            buffer.for_each(|event| {
                // What was lost, the programs have counted.
                let PerfEvent::Sample { head, tail } = event else { return };
                let copy = if tail.is_empty() {
                    head
                } else {
                    joined.clear();
                    joined.extend_from_slice(head);
                    joined.extend_from_slice(tail);
                    &*joined
                };
                if let Some((odd, frame)) = Odd::split(copy) {
                    see(odd, frame);
                }
            });
        }
    }
}
