//! Reading, writing and the two ways of closing a TCP socket, for every stage.

use crate::scratch;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Converts an IPv4-mapped address (`::ffff:192.0.2.1`), as a socket that is bound to `::` has it, to IPv4. Other addresses
/// stay as they are, with their scope.
pub(crate) fn canonical(mut address: SocketAddr) -> SocketAddr {
    if address.ip().to_canonical().is_ipv4() {
        address.set_ip(address.ip().to_canonical());
    }
    address
}

/// Reads once. A read that does not fill the buffer has emptied the socket, and tokio is told so, as its own `AsyncRead`
/// does: else the next read would be a system call in vain. A FIN after the bytes is not missed: tokio keeps that state.
pub(crate) fn read_once(socket: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
    let read = socket.try_read(into)?;
    if 0 < read && read < into.len() {
        let _ = socket.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
    Ok(read)
}

/// Waits for bytes and appends those of one read, at most 16 KiB; 0 after a FIN.
pub(crate) async fn read_some(socket: &TcpStream, into: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        socket.readable().await?;
        let read = scratch::with(|buffers| {
            let read = read_once(socket, &mut buffers.input[..16 * 1024])?;
            into.extend_from_slice(&buffers.input[..read]);
            Ok(read)
        });
        match read {
            Err(error) if io::Error::kind(&error) == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

/// Writes all of `bytes`, waiting for room.
pub(crate) async fn write_all(socket: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends a FIN. No error if the connection is closed already.
pub(crate) fn finish(socket: &TcpStream) -> io::Result<()> {
    match socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}

/// Makes closing this socket send a reset. Errors are ignored: then the connection is closed already.
pub(crate) fn reset_on_close(socket: &TcpStream) {
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}
