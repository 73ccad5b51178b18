//! The beginning of a connection whose server has no key for the client's Encrypted ClientHello: bytes are carried between
//! the sockets until the server has its ClientHello, and nothing that follows is changed any more.

use crate::ech::{Refused, Split};
use crate::socket::{read_some, write_all};
use crate::traffic::{Traffic, add};
use lb_common::packet::Side;
use tokio::net::TcpStream;

/// Why the connection cannot go on.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The client's second ClientHello is refused.
    Refused(Refused),
    /// This end has reset the connection.
    Reset(Side),
}

/// Carries bytes until [`Split::is_done`], or until one end has sent its FIN, which is then still to be passed on.
/// `window`: what the client has sent, and at the end what of that the server has not got.
pub(crate) async fn carry(
    split: &mut Split,
    (client, server): (&TcpStream, &TcpStream),
    window: &mut Vec<u8>,
    traffic: &Traffic,
) -> Result<(), Failed> {
    let mut answer = Vec::new();
    loop {
        let onward = split.client(window).map_err(Failed::Refused)?;
        write_all(server, &onward).await.map_err(|_| Failed::Reset(Side::Server))?;
        add(&traffic.bytes_in, onward.len());
        if split.is_done() {
            return Ok(());
        }
        let wants_client = split.wants_client(window);
        let (side, read) = tokio::select! {
            read = read_some(client, window), if wants_client => (Side::Client, read),
            read = read_some(server, &mut answer) => (Side::Server, read),
        };
        if read.map_err(|_| Failed::Reset(side))? == 0 {
            return Ok(());
        }
        split.server(&answer);
        write_all(client, &answer).await.map_err(|_| Failed::Reset(Side::Client))?;
        add(&traffic.bytes_out, std::mem::take(&mut answer).len());
    }
}
