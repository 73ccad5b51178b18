//! The connection between the two processes: lines, some of them with descriptors (SCM_RIGHTS, unix(7)).

use super::message::{Lines, MAX_DESCRIPTORS};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A process that does not read for so long is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes read at once.
const READ: usize = 64 * 1024;

/// One end of it.
pub(in crate::gateway) struct Wire {
    stream: UnixStream,
    lines: Lines,
    /// Received and not yet taken, in their order.
    descriptors: VecDeque<OwnedFd>,
}

impl Wire {
    pub(in crate::gateway) fn new(stream: UnixStream) -> Self {
        Self { stream, lines: Lines::default(), descriptors: VecDeque::new() }
    }

    /// The process at the other end, in this process's namespace; `None`: it cannot be seen from there.
    pub(in crate::gateway) fn process(&self) -> Option<i32> {
        self.stream.peer_cred().ok()?.pid().filter(|process| *process > 0)
    }

    /// The user that it runs as.
    pub(in crate::gateway) fn user(&self) -> io::Result<u32> {
        Ok(self.stream.peer_cred()?.uid())
    }

    pub(in crate::gateway) async fn send(&self, message: &impl Serialize) -> io::Result<()> {
        self.send_with(message, &[]).await
    }

    /// Sends a message with at most [`MAX_DESCRIPTORS`] descriptors.
    pub(in crate::gateway) async fn send_with(
        &self,
        message: &impl Serialize,
        with: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        timeout(PATIENCE, self.send_line(&line, with)).await?
    }

    async fn send_line(&self, mut line: &[u8], mut with: &[BorrowedFd<'_>]) -> io::Result<()> {
        while !line.is_empty() {
            let sent = self.stream.async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !with.is_empty() && !control.push(SendAncillaryMessage::ScmRights(with)) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                Ok(sendmsg(&self.stream, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?)
            });
            line = &line[sent.await?..];
            // They go with the first byte.
            with = &[];
        }
        Ok(())
    }

    /// The next message; `None`: the other process has closed its end. May be dropped and called again.
    pub(in crate::gateway) async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some(line) = self.lines.next().map_err(io::Error::other)? {
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            let (lines, descriptors) = (&mut self.lines, &mut self.descriptors);
            let stream = &self.stream;
            let read = stream.async_io(Interest::READABLE, || {
                let mut bytes = [0; READ];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let flags = RecvFlags::CMSG_CLOEXEC;
                let read = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?.bytes;
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(received) = message {
                        descriptors.extend(received);
                    }
                }
                lines.push(&bytes[..read]);
                Ok(read)
            });
            match read.await {
                Ok(0) => return Ok(None),
                // It died with something of ours unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
    }

    /// The next of the received descriptors.
    pub(in crate::gateway) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }
}
