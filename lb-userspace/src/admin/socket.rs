//! The admin socket: `STATE_DIR/admin.sock`, mode 0600, so that only its owner (and root) can open it.
//!
//! `STATE_DIR/admin.lock` is locked as long as the gateway lives. The lock tells whether a gateway is running, not the
//! socket file: the kernel releases it however the process ends.

use super::clients::Clients;
use super::protocol::{MAX_REQUEST, Reply, Request, TAKE_OVER_VERSION, socket_path};
use super::{Operations, made};
use rustix::fs::{Mode, fchmod};
use serde::Serialize;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Clients served at once. Commands are short.
const MAX_CLIENTS: usize = 32;

/// A client that sends no request for this long is disconnected.
const IDLE: Duration = Duration::from_secs(60);

/// A client that does not read its reply in this time is disconnected.
const WRITE: Duration = Duration::from_secs(30);

/// The bound socket. Dropping it removes the file, unless it is another process's too, and lets another gateway bind.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    lock: File,
    /// Another process has the socket and the lock too, and goes on with them.
    is_shared: Arc<AtomicBool>,
}

/// The descriptors of an admin socket, for another process.
#[derive(Debug)]
pub struct SharedSocket {
    /// The listening socket.
    pub listener: OwnedFd,
    /// The locked file.
    pub lock: OwnedFd,
    is_shared: Arc<AtomicBool>,
}

impl SharedSocket {
    /// The other process goes on with them.
    pub fn hand_over(self) {
        self.is_shared.store(true, Relaxed);
    }
}

/// Why there is no admin socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The lock is held.
    #[error(
        "a gateway{} already runs with this state_dir: {} is locked",
        pid.map_or(String::new(), |pid| format!(" (process {pid})")),
        lock.display()
    )]
    Live {
        /// What that gateway wrote into the lock file.
        pid: Option<u32>,
        /// The lock file.
        lock: PathBuf,
    },
    /// Something else has the socket's name; it may be the operator's, so it stays.
    #[error("{} exists and is not a socket; move it away", .0.display())]
    NotASocket(PathBuf),
    /// The operating system refused.
    #[error("gateway.state_dir: cannot create {}", path.display())]
    Io {
        /// The socket or the lock file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl AdminSocket {
    /// Makes `state_dir` if it is missing, replaces the socket that a dead gateway has left there, and listens.
    pub fn bind(state_dir: &Path) -> Result<Self, BindError> {
        let path = socket_path(state_dir);
        let failed = |source| BindError::Io { path: path.clone(), source };
        std::fs::create_dir_all(state_dir)
            .map_err(|source| BindError::Io { path: state_dir.into(), source })?;
        let lock = lock(&state_dir.join("admin.lock"))?;
        match std::fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket(path)),
            Ok(_) => std::fs::remove_file(&path).map_err(failed)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
        let listener = listen(&path).map_err(failed)?;
        Ok(Self { listener, path, lock, is_shared: Arc::default() })
    }

    /// That of the process before this one, which has it too until [`keep`](Self::keep).
    pub fn handed_over(state_dir: &Path, listener: OwnedFd, lock: OwnedFd) -> Self {
        let is_shared = Arc::new(AtomicBool::new(true));
        Self { listener: listener.into(), path: socket_path(state_dir), lock: lock.into(), is_shared }
    }

    /// It is this process's alone from here on.
    pub fn keep(&mut self) -> io::Result<()> {
        self.is_shared.store(false, Relaxed);
        // Who connects from here on is told that it is this process (SO_PEERCRED, unix(7)).
        rustix::net::listen(&self.listener, MAX_CLIENTS as i32)?;
        let process = format!("{}\n", std::process::id());
        self.lock.set_len(0).and_then(|()| self.lock.write_all_at(process.as_bytes(), 0))
    }

    /// Lets the runtime watch it, for [`serve`].
    pub fn watch(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }

    /// Its descriptors once more, for another process.
    pub fn share(&self) -> io::Result<SharedSocket> {
        let (listener, lock) = (self.listener.try_clone()?.into(), self.lock.try_clone()?.into());
        Ok(SharedSocket { listener, lock, is_shared: self.is_shared.clone() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if !self.is_shared.load(Relaxed) {
            // The lock is still held, so the file is ours. If it cannot be removed, the next gateway replaces it.
            _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Answers commands until it is dropped. `listener`: of [`AdminSocket::watch`].
pub async fn serve(_socket: AdminSocket, listener: tokio::net::UnixListener, gateway: Arc<dyn Operations>) {
    let mut clients = Clients::new(MAX_CLIENTS);
    loop {
        clients.room().await;
        match listener.accept().await {
            Ok((stream, _)) => clients.serve(serve_client(stream, gateway.clone())),
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the admin socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The lock of a state directory, so that no gateway starts with it, or who has it; `None`: there is no such directory.
pub fn no_gateway(state_dir: &Path) -> Result<Option<File>, BindError> {
    state_dir.is_dir().then(|| lock(&state_dir.join("admin.lock"))).transpose()
}

/// Takes the lock of a state directory, or says who has it.
fn lock(path: &Path) -> Result<File, BindError> {
    let failed = |source| BindError::Io { path: path.into(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let read = file.take(20).read_to_string(&mut pid);
            let pid = read.ok().and_then(|_| pid.trim().parse().ok());
            return Err(BindError::Live { pid, lock: path.into() });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

/// Listens at `path`, which is free. The mode is set before the name exists: the kernel gives the file the mode of
/// the socket, so there is no moment in which others could connect.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(MAX_CLIENTS as i32)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

async fn serve_client(stream: UnixStream, gateway: Arc<dyn Operations>) {
    let peer = stream.peer_cred().map(|peer| peer.uid());
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    while let Ok(Ok(Some(line))) = timeout(IDLE, read_line(&mut read)).await {
        let too_long = line.len() as u64 > MAX_REQUEST;
        let mut reply = match serde_json::from_slice(&line) {
            _ if too_long => {
                encode(&Reply::<()>::Error(format!("a request has at most {MAX_REQUEST} bytes")))
            }
            Ok(Request::TakeOver { version }) if may_take_over(&peer, version).is_ok() => {
                if let Ok(stream) = read.into_inner().reunite(write) {
                    gateway.take_over(stream);
                }
                return;
            }
            Ok(request) => answer(request, &peer, &*gateway).await,
            Err(e) => encode(&Reply::<()>::Error(format!("not a request of this version: {e}"))),
        };
        made(reply.len());
        reply.push(b'\n');
        // After a request that is too long it is unknown where the next one begins, so the connection ends.
        if !matches!(timeout(WRITE, write.write_all(&reply)).await, Ok(Ok(()))) || too_long {
            return;
        }
    }
}

/// Whether a process of this user may take over, in this version of the conversation.
fn may_take_over(user: &io::Result<u32>, version: u32) -> Result<(), String> {
    let us = rustix::process::geteuid().as_raw();
    match user {
        Ok(user) if [us, 0].contains(user) => {}
        Ok(user) => {
            return Err(format!("a process of user {user} may not take over from one of user {us}"));
        }
        Err(error) => return Err(format!("the kernel does not say whose process this is: {error}")),
    }
    if version != TAKE_OVER_VERSION {
        return Err(format!(
            "it is taken over by version {TAKE_OVER_VERSION} of the protocol, not {version}"
        ));
    }
    Ok(())
}

/// The next line, cut one byte after the allowed length; `None` at the end.
async fn read_line(read: &mut BufReader<impl AsyncRead + Unpin>) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let n = read.take(MAX_REQUEST + 1).read_until(b'\n', &mut line).await?;
    Ok((n > 0).then_some(line))
}

async fn answer(request: Request, user: &io::Result<u32>, gateway: &dyn Operations) -> Vec<u8> {
    match request {
        Request::Status {} => encode(&Reply::Ok(gateway.status())),
        Request::Objects {} => encode(&Reply::Ok(gateway.objects())),
        Request::Connections { filter } => encode(&Reply::Ok(gateway.connections(&filter))),
        Request::Reload {} => encode(&Reply::from(gateway.reload().await)),
        Request::Drain { target } => encode(&Reply::from(gateway.drain(&target, true))),
        Request::Undrain { target } => encode(&Reply::from(gateway.drain(&target, false))),
        Request::Kill { connection } => encode(&Reply::from(gateway.kill(connection))),
        Request::TakeOver { version } => encode(&Reply::from(may_take_over(user, version))),
    }
}

fn encode<T: Serialize>(reply: &Reply<T>) -> Vec<u8> {
    serde_json::to_vec(reply)
        .unwrap_or_else(|e| format!(r#"{{"error":"the reply cannot be written: {e}"}}"#).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake::{Fake, TempDir, status};
    use crate::admin::view::{ConnectionFilter, Reloaded};
    use crate::admin::{Client, ClientError};
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    /// A gateway's admin socket on a runtime of its own; stopped and joined on drop.
    struct Served {
        dir: TempDir,
        stop: Option<tokio::sync::oneshot::Sender<()>>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Served {
        fn new() -> Self {
            let dir = TempDir::new();
            let socket = AdminSocket::bind(dir.path()).unwrap();
            let (stop, stopped) = tokio::sync::oneshot::channel();
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let listener = socket.watch().unwrap();
                    tokio::select! {
                        () = serve(socket, listener, Arc::new(Fake::default())) => {}
                        _ = stopped => {}
                    }
                });
            });
            Self { dir, stop: Some(stop), thread: Some(thread) }
        }

        fn client(&self) -> Client {
            Client::connect(self.dir.path()).unwrap()
        }

        /// Sends bytes and returns every reply until the gateway closes.
        fn raw(&self, bytes: &[u8]) -> Vec<String> {
            let mut stream = UnixStream::connect(socket_path(self.dir.path())).unwrap();
            stream.write_all(bytes).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            BufReader::new(stream).lines().map_while(Result::ok).collect()
        }
    }

    impl Drop for Served {
        fn drop(&mut self) {
            drop(self.stop.take());
            let joined = self.thread.take().unwrap().join();
            assert!(joined.is_ok() || std::thread::panicking());
        }
    }

    #[test]
    fn every_command_reaches_the_gateway_over_one_connection() {
        let served = Served::new();
        let mut client = served.client();
        assert_eq!(client.status().unwrap(), status());
        assert_eq!(client.connections(&ConnectionFilter::default()).unwrap().len(), 3);
        let filter = ConnectionFilter { route: Some("redis-1".into()), sni: None };
        assert_eq!(client.connections(&filter).unwrap().len(), 1);
        let reloaded = Reloaded { config_generation: 4, listeners: 1, routes: 2, pools: 2, warnings: vec![] };
        assert_eq!(client.reload().unwrap(), reloaded);
        client.drain("redis-1/10.0.0.11:6379", true).unwrap();
        client.drain("redis-1/10.0.0.11:6379", false).unwrap();
        client.kill(1).unwrap();
    }

    #[test]
    fn what_the_gateway_refuses_is_an_error_and_the_connection_goes_on() {
        let served = Served::new();
        let mut client = served.client();
        for refused in [client.drain("nowhere/x:1", true), client.drain("x", false), client.kill(99)] {
            assert!(matches!(refused, Err(ClientError::Refused(reason)) if reason.starts_with("no ")));
        }
        client.kill(1).unwrap();
    }

    #[test]
    fn what_is_not_a_request_is_answered_with_an_error_in_its_place() {
        let served = Served::new();
        let replies =
            served.raw(b"{\"command\":\"explode\"}\n\xff\xfe\n\n{\"command\":\"kill\",\"connection\":1}");
        assert_eq!(replies.len(), 4, "{replies:?}");
        assert!(
            replies[..3].iter().all(|reply| reply.starts_with(r#"{"error":"not a request of this version"#))
        );
        assert_eq!(replies[3], r#"{"ok":null}"#);
    }

    #[test]
    fn a_request_as_long_as_allowed_is_read_and_a_longer_one_ends_the_connection() {
        let served = Served::new();
        let mut line = br#"{"command":"kill","connection":1}"#.to_vec();
        line.resize(MAX_REQUEST as usize - 1, b' ');
        line.push(b'\n');
        let next = b"{\"command\":\"kill\",\"connection\":1}\n";
        assert_eq!(served.raw(&[&line[..], next].concat()), [r#"{"ok":null}"#; 2]);

        line.insert(0, b' ');
        // The gateway may close before it has read all of this, so only the first reply is certain.
        let mut stream = UnixStream::connect(socket_path(served.dir.path())).unwrap();
        stream.write_all(&line).unwrap();
        let replies: Vec<_> = BufReader::new(stream).lines().map_while(Result::ok).collect();
        assert_eq!(replies, [r#"{"error":"a request has at most 16384 bytes"}"#]);
    }

    #[test]
    fn more_clients_than_are_served_at_once_are_all_answered() {
        let served = Served::new();
        let mut idle: Vec<_> = (0..MAX_CLIENTS).map(|_| served.client()).collect();
        for client in &mut idle {
            client.kill(1).unwrap();
        }
        // The one too many waits in the backlog, and is served once another one leaves.
        let mut late = served.client();
        idle.pop();
        late.kill(1).unwrap();
    }

    #[test]
    fn only_the_owner_may_open_the_socket() {
        let dir = TempDir::new();
        let socket = AdminSocket::bind(dir.path()).unwrap();
        assert_eq!(std::fs::metadata(socket.path()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_missing_state_directory_is_made() {
        let dir = TempDir::new();
        let socket = AdminSocket::bind(&dir.path().join("run/snisplice")).unwrap();
        assert!(socket.path().exists());
    }

    #[test]
    fn the_socket_of_a_live_gateway_is_refused_and_still_there() {
        let dir = TempDir::new();
        let first = AdminSocket::bind(dir.path()).unwrap();
        let error = AdminSocket::bind(dir.path()).unwrap_err().to_string();
        let lock = dir.path().join("admin.lock");
        let pid = std::process::id();
        assert_eq!(
            error,
            format!(
                "a gateway (process {pid}) already runs with this state_dir: {} is locked",
                lock.display()
            )
        );
        UnixStream::connect(first.path()).unwrap();
    }

    #[test]
    fn the_socket_of_a_dead_gateway_is_replaced() {
        let dir = TempDir::new();
        let path = socket_path(dir.path());
        drop(UnixListener::bind(&path).unwrap());
        assert!(UnixStream::connect(&path).is_err(), "the file stays, nobody listens");
        let socket = AdminSocket::bind(dir.path()).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
        AdminSocket::bind(dir.path()).unwrap();
    }

    #[test]
    fn a_file_that_is_not_a_socket_is_left_alone() {
        let dir = TempDir::new();
        let path = socket_path(dir.path());
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(AdminSocket::bind(dir.path()), Err(BindError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_an_error_that_names_it() {
        let dir = TempDir::new();
        let deep = dir.path().join("d".repeat(120));
        let error = AdminSocket::bind(&deep).unwrap_err().to_string();
        assert!(error.contains("admin.sock"), "{error}");
    }
}
