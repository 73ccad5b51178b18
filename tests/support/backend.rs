//! Servers made of a closure, for what no real program does.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::netns::NetNs;
use anyhow::Result;

/// A listening socket and a thread for each connection; stops listening on drop.
#[derive(Debug)]
pub struct Backend {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// Serves a port on every address, of both families.
    pub fn start(
        ns: &NetNs,
        port: u16,
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::start_on(ns, Ipv6Addr::UNSPECIFIED.into(), port, serve)
    }

    /// Serves a port on one address.
    pub fn start_on(
        ns: &NetNs,
        address: IpAddr,
        port: u16,
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::serve(ns, ns.run(|| TcpListener::bind((address, port)))?, serve)
    }

    /// Serves a listening socket, by threads in this namespace.
    pub fn serve(
        ns: &NetNs,
        listener: TcpListener,
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        // The backlog of the standard library (128) is too short for a thousand clients at once.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(4096)?)?;
        let accepting = listener.try_clone()?;
        let serve = Arc::new(serve);
        let thread = ns.spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream));
            }
        });
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Wakes the thread in accept(2), which then fails.
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Answers a ClientHello (or any one TLS record) with a name and ends its direction.
pub fn naming(name: &'static str) -> impl Fn(TcpStream) -> io::Result<()> + Send + Sync {
    move |mut stream| {
        read_record(&mut stream)?;
        stream.write_all(name.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        io::copy(&mut stream, &mut io::sink())?;
        Ok(())
    }
}

/// Like [`naming`], but the connection stays open until the client ends it.
pub fn naming_and_holding(name: &'static str) -> impl Fn(TcpStream) -> io::Result<()> + Send + Sync {
    move |mut stream| {
        read_record(&mut stream)?;
        stream.write_all(name.as_bytes())?;
        io::copy(&mut stream, &mut io::sink())?;
        Ok(())
    }
}

/// Sends every byte back.
pub fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut back = stream.try_clone()?;
    io::copy(&mut stream, &mut back)?;
    back.shutdown(Shutdown::Write)
}

/// Reads one TLS record, header included.
pub fn read_record(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut record = vec![0; 5];
    stream.read_exact(&mut record)?;
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + length, 0);
    stream.read_exact(&mut record[5..])?;
    Ok(record)
}
