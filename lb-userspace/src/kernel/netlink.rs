//! Netlink: requests with one answer, requests for a list, and notifications.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// How often a list is requested if it changes while it is read.
const ATTEMPTS: usize = 10;
/// linux/netlink.h: what the kernel says of a request that it refuses.
const NLMSG_ERROR: u16 = 2;
/// linux/netlink.h: the list has changed while it was read.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Bytes of one answer, at most: as many as the kernel puts into one datagram of a list.
const ANSWER: usize = 32 * 1024;
/// linux/netlink.h `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;

/// A socket for requests in one network namespace.
pub(super) struct Netlink {
    socket: Socket,
    /// The number of the last request. Answers to earlier ones, which were given up, are ignored.
    sequence: u32,
    /// The buffer for single answers.
    answer: Vec<u8>,
}

impl Netlink {
    /// For the network namespace in which the calling thread is.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        // To the kernel: a connected socket receives from nobody else.
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, answer: Vec::with_capacity(ANSWER) })
    }

    /// As [`open`](Self::open), with strict checking (Linux 4.20): the kernel refuses a request with attributes that it
    /// does not know, instead of ignoring them.
    pub(super) fn open_strict(protocol: isize) -> io::Result<Self> {
        let netlink = Self::open(protocol)?;
        netlink.socket.set_netlink_get_strict_chk(true)?;
        Ok(netlink)
    }

    /// The one answer to a request. Does not wait: the kernel answers before it takes the next request.
    pub(super) fn ask<M>(&mut self, request: M) -> io::Result<M>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let request = self.encode(request, NLM_F_REQUEST);
        self.socket.send(&request, 0)?;
        loop {
            self.receive()?;
            for (_, answer) in self.answers::<M>(&self.answer) {
                match answer.map_err(io::Error::other)? {
                    NetlinkPayload::InnerMessage(answer) => return Ok(answer),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    /// As [`ask`](Self::ask), in bytes: a request of this type, which begins with room for its header. Returns the answer's type,
    /// and the answer without its header.
    pub(super) fn ask_in_bytes(&mut self, kind: u16, mut request: Vec<u8>) -> io::Result<(u16, &[u8])> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = request.len() as u32;
        request[..4].copy_from_slice(&length.to_ne_bytes());
        request[4..6].copy_from_slice(&kind.to_ne_bytes());
        request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        request[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        self.socket.send(&request, 0)?;
        let sequence = self.sequence;
        let is_answer = |message: &&[u8]| sequence_of(message) == sequence;
        loop {
            self.receive()?;
            if messages(&self.answer).any(|message| is_answer(&message)) {
                break;
            }
        }
        let answer = messages(&self.answer).find(is_answer).ok_or(io::ErrorKind::InvalidData)?;
        let (kind, body) = (u16::from_ne_bytes([answer[4], answer[5]]), &answer[HEADER..]);
        match (kind, body.first_chunk()) {
            (NLMSG_ERROR, Some(code)) => Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(*code))),
            _ => Ok((kind, body)),
        }
    }

    /// Receives a datagram, which is there.
    fn receive(&mut self) -> io::Result<()> {
        self.answer.clear();
        if self.socket.recv(&mut self.answer, libc::MSG_DONTWAIT | libc::MSG_TRUNC)? > ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is too long"));
        }
        Ok(())
    }

    /// A request that changes something; what the kernel says of it. Waits for that.
    pub(super) fn change<M>(&mut self, request: M, flags: u16) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let request = self.encode(request, NLM_F_REQUEST | NLM_F_ACK | flags);
        self.socket.send(&request, 0)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for (_, answer) in self.answers::<M>(&datagram) {
                if let NetlinkPayload::Error(error) = answer.map_err(io::Error::other)? {
                    return if error.code.is_none() { Ok(()) } else { Err(error.to_io()) };
                }
            }
        }
    }

    /// A consistent list: what `read` makes of each entry. `read` also gets the errors of entries that cannot be decoded.
    pub(super) fn list<M, T>(
        &mut self,
        request: M,
        mut read: impl FnMut(Result<M, DecodeError>) -> Option<T>,
    ) -> io::Result<Vec<T>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let request = self.encode(request, NLM_F_REQUEST | NLM_F_DUMP);
        for _ in 0..ATTEMPTS {
            self.socket.send(&request, 0)?;
            if let Some(list) = self.whole_list(&mut read)? {
                return Ok(list);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the kernel's list does not come to rest"))
    }

    /// `None`: the list changed while it was read.
    fn whole_list<M, T>(
        &self,
        read: &mut impl FnMut(Result<M, DecodeError>) -> Option<T>,
    ) -> io::Result<Option<Vec<T>>>
    where
        M: NetlinkDeserializable,
    {
        let (mut list, mut whole) = (Vec::new(), true);
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for (flags, answer) in self.answers::<M>(&datagram) {
                whole &= flags & NLM_F_DUMP_INTR == 0;
                match answer {
                    Ok(NetlinkPayload::Done(done)) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    Ok(NetlinkPayload::Done(_)) => return Ok(whole.then_some(list)),
                    Ok(NetlinkPayload::Error(error)) => return Err(error.to_io()),
                    Ok(NetlinkPayload::InnerMessage(entry)) => list.extend(read(Ok(entry))),
                    Ok(_) => {}
                    Err(error) => list.extend(read(Err(error))),
                }
            }
        }
    }

    fn encode<M: NetlinkSerializable>(&mut self, request: M, flags: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    /// The answers to the last request in a datagram, with their flags.
    fn answers<'a, M: NetlinkDeserializable + 'a>(
        &self,
        datagram: &'a [u8],
    ) -> impl Iterator<Item = (u16, Result<NetlinkPayload<M>, DecodeError>)> + use<'a, M> {
        let sequence = self.sequence;
        messages(datagram).filter(move |message| sequence_of(message) == sequence).map(|message| {
            let flags = u16::from_ne_bytes([message[6], message[7]]);
            (flags, NetlinkMessage::deserialize(message).map(|message| message.payload))
        })
    }
}

/// The type of a message, from its header.
pub(super) fn kind_of(message: &[u8]) -> Option<u16> {
    message.get(4..6)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn sequence_of(message: &[u8]) -> u32 {
    u32::from_ne_bytes([message[8], message[9], message[10], message[11]])
}

/// The messages of a datagram. Each begins with its length and has a whole header.
fn messages(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    pieces(datagram, HEADER, |rest| Some(u32::from_ne_bytes(*rest.first_chunk()?) as usize))
}

/// Cuts at each piece's length, which `length_of` reads from its beginning. Each has `header` bytes at least.
pub(super) fn pieces(
    bytes: &[u8],
    header: usize,
    length_of: impl Fn(&[u8]) -> Option<usize>,
) -> impl Iterator<Item = &[u8]> {
    const ALIGNMENT: usize = 4;
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = length_of(rest)?;
        let piece = rest.get(..length).filter(|_| length >= header)?;
        rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some(piece)
    })
}

/// Reads all notifications of a socket. Calls `see` with the type of each, and with `None` if the kernel has lost some.
pub(super) fn drain(socket: &Socket, mut see: impl FnMut(Option<u16>)) -> io::Result<()> {
    // Only the header is read; the rest of a message is cut off.
    let mut news = Vec::with_capacity(HEADER);
    loop {
        news.clear();
        match socket.recv(&mut news, 0) {
            Ok(_) => see(kind_of(&news)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => see(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A socket for the notifications of these multicast groups in the network namespace of the calling thread. Never blocks.
pub(super) fn listen(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.set_non_blocking(true)?;
    socket.bind_auto()?;
    for &group in groups {
        socket.add_membership(group)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_cut_into_messages_by_their_lengths() {
        let message = |length: u32, size: usize| {
            let mut bytes = vec![0; size];
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes
        };
        let lengths = |bytes: &[u8]| messages(bytes).map(<[u8]>::len).collect::<Vec<_>>();
        assert_eq!(lengths(&[message(17, 20), message(16, 16)].concat()), [17, 16]);
        assert_eq!(lengths(&[message(16, 16), message(18, 18)].concat()), [16, 18]);
        // Lengths that lie: less than a header, more than there is.
        assert_eq!(lengths(&[message(16, 16), message(0, 20)].concat()), [16]);
        assert_eq!(lengths(&[message(16, 16), message(40, 20)].concat()), [16]);
        assert_eq!(lengths(&[1, 2]), [0; 0]);
    }

    #[test]
    fn the_kind_of_a_message_is_read_from_a_whole_header_only() {
        assert_eq!(kind_of(&[16, 0, 0, 0, 7, 0]), Some(u16::from_ne_bytes([7, 0])));
        assert_eq!(kind_of(&[16, 0, 0, 0, 7]), None);
    }
}
