//! Reads the copies of odd packets of spliced connections that the programs put into perf buffers.

use super::error::{KernelError, from_map};
use super::packet::Packet;
use aya::maps::perf::{PerfEvent, PerfEventArrayBuffer};
use aya::maps::{MapData, PerfEventArray};
use aya::util::online_cpus;
use lb_common::packet::odd::Odd;
use std::os::fd::{AsFd as _, BorrowedFd};

/// Pages of each CPU's buffer. With 4 KiB each, four of the longest packets or 170 usual ones fit. A packet that does not
/// fit is counted and lost, and TCP retransmits it.
const PAGES: usize = 64;

/// Reads the copies. While no process does, the programs drop and count the packets.
pub struct OddPackets {
    /// One for each CPU that was online at the start.
    buffers: Vec<PerfEventArrayBuffer<MapData>>,
    /// A record that wraps around the end of its buffer, joined.
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

    /// Descriptors that are readable when there are copies.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.buffers.iter().map(PerfEventArrayBuffer::as_fd)
    }

    /// Takes all copies; calls `see` with the header and the frame of each.
    pub fn take(&mut self, mut see: impl FnMut(Odd, &[u8])) {
        let joined = &mut self.joined;
        for buffer in &mut self.buffers {
            buffer.for_each(|event| {
                // Lost records: the programs have counted them.
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
