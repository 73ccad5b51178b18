//! TCP keepalive of the gateway's sockets. Connections without any are the subject of `kernel/packet`.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use snisplice_tests::backend::{Backend, read_record};
use snisplice_tests::probes::Probes;
use snisplice_tests::pump::Duplex;
use snisplice_tests::skip::has_program;
use snisplice_tests::stranger::unacknowledged;
use snisplice_tests::tls::Client;
use snisplice_tests::{Gateway, eventually, require};
use socket2::Socket;

use crate::config::{listener, passthrough, pool, route};
use crate::world::World;

/// A gateway with a route of each kind, each to a server whose ends of connections the test holds.
struct Scene {
    gateway: Gateway,
    accepted: Receiver<TcpStream>,
    _backends: [Backend; 2],
    client: Client,
    world: World,
}

const KINDS: [&str; 3] = ["passthrough", "terminated", "tcp"];

impl Scene {
    /// With these keys of the gateway, of the TLS listener, and of the pools behind it.
    fn new([of_gateway, of_listener, of_pools]: [&str; 3]) -> Result<Self> {
        let world = World::new()?;
        for (name, value) in [("time", "1234"), ("intvl", "56"), ("probes", "7")] {
            world.net.gateway.sysctl(&format!("net/ipv4/tcp_keepalive_{name}"), value)?;
        }
        let (sender, accepted) = mpsc::channel();
        let sender_too = sender.clone();
        let backends = [
            Backend::start(&world.net.server, 7001, move |mut stream| {
                read_record(&mut stream)?;
                sender.send(stream).map_err(io::Error::other)
            })?,
            Backend::start(&world.net.server, 7002, move |stream| {
                sender_too.send(stream).map_err(io::Error::other)
            })?,
        ];
        let leaf = world.authority.leaf(&["terminated.example.com"])?;
        let terminate = format!("tls = 'terminate'\ncertificate = {}", leaf.toml());
        let config = format!("[gateway]\ntiers = ['copy']\n{of_gateway}\n")
            + &listener(of_listener)
            + &passthrough("passthrough", "passthrough.example.com")
            + &route("terminated", "terminated.example.com", &terminate)
            + "[[listener]]\nname = 'plain'\nbind = ['0.0.0.0:444']\nprotocol = 'tcp'\n"
            + "[[route]]\nname = 'tcp'\nlistener = 'plain'\nbackends = [{ pool = 'tcp' }]\n"
            + &pool("passthrough", &[7001], of_pools)
            + &pool("terminated", &[7002], of_pools)
            + &pool("tcp", &[7002], "");
        let gateway = world.gateway(&config)?;
        let client = Client::new(&world.authority.path, rustls::ALL_VERSIONS, None)?;
        Ok(Self { gateway, accepted, _backends: backends, client, world })
    }

    /// Both ends of a connection by the route of this name, across which a byte went each way.
    fn connection(&self, kind: &str) -> Result<(Duplex, TcpStream)> {
        let mut client = match kind {
            "passthrough" => self.world.open("passthrough.example.com")?.try_into()?,
            "terminated" => self.client.connect(self.world.connect(443)?, "terminated.example.com")?,
            _ => Duplex::try_from(self.world.connect(444)?)?,
        };
        let mut server = self.accepted.recv_timeout(Duration::from_secs(30))?;
        client.writer.write_all(b"x")?;
        server.read_exact(&mut [0])?;
        server.write_all(b"y")?;
        client.reader.read_exact(&mut [0])?;
        // Who is not heard would send it again and again, which counts as a sign of life.
        eventually("the last byte to be acknowledged", || {
            (unacknowledged(&server).ok()? == 0).then_some(())
        })?;
        Ok((client, server))
    }

    /// Idle time, interval and count of the gateway's socket that has this end as its peer; `None`: keepalive is off.
    fn keepalive(&self, end: &TcpStream) -> Result<Option<(u64, u64, u32)>> {
        let end = canonical(end.local_addr()?);
        let pid = self.gateway.process.pid();
        let process = pidfd_open(Pid::from_raw(pid.try_into()?).context("a process")?, PidfdFlags::empty())?;
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let number = entry?.file_name().to_string_lossy().parse()?;
            // Closed by now, perhaps.
            let Ok(socket) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else { continue };
            let socket = Socket::from(socket);
            if socket.peer_addr().ok().and_then(|peer| peer.as_socket()).map(canonical) == Some(end) {
                let of = (
                    socket.tcp_keepalive_time()?.as_secs(),
                    socket.tcp_keepalive_interval()?.as_secs(),
                    socket.tcp_keepalive_retries()?,
                );
                return Ok(socket.keepalive()?.then_some(of));
            }
        }
        anyhow::bail!("the gateway has no socket toward {end}")
    }
}

/// A socket that is bound to :: sees IPv4 as IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[test]
fn each_leg_has_the_nearest_keepalive_and_the_systems_where_there_is_none() -> Result<()> {
    let scene = Scene::new([
        "keepalive = { interval = '8s' }",
        "keepalive = { idle = '40s', count = 3 }",
        "keepalive = { idle = '50s', interval = '9s' }",
    ])?;
    for kind in KINDS {
        let (client, server) = scene.connection(kind)?;
        let expected = match kind {
            "tcp" => [(1234, 8, 7), (1234, 8, 7)],
            _ => [(40, 8, 3), (50, 9, 7)],
        };
        // The server may be heard before the gateway has looked after its sockets.
        for (end, expected) in [&client.socket, &server].into_iter().zip(expected) {
            eventually("the keepalive", || (scene.keepalive(end).ok()? == Some(expected)).then_some(()))
                .with_context(|| format!("{kind}: {:?} instead of {expected:?}", scene.keepalive(end)))?;
        }
    }
    Ok(())
}

#[test]
fn a_reload_changes_the_keepalive_of_new_connections() -> Result<()> {
    let scene = Scene::new(["keepalive = { idle = '100s' }", "", ""])?;
    let (client, _server) = scene.connection("tcp")?;
    let text = fs::read_to_string(scene.gateway.config_file())?;
    scene.gateway.write_config(&text.replace("\"100s\"", "\"200s\""))?;
    scene.gateway.reload()?;
    let (later, _later_server) = scene.connection("tcp")?;
    ensure!(scene.keepalive(&client.socket)? == Some((100, 56, 7)));
    ensure!(scene.keepalive(&later.socket)? == Some((200, 56, 7)));
    Ok(())
}

#[test]
fn an_end_that_is_dead_is_noticed_after_so_many_probes_and_the_other_is_reset() -> Result<()> {
    require!(has_program("nft"), "no nft");
    for kind in KINDS {
        for (dead, reason) in [(0, "client_reset"), (1, "server_reset")] {
            let scene = Scene::new(["keepalive = { idle = '1s', interval = '1s', count = 2 }", "", ""])?;
            let (client, server) = scene.connection(kind)?;
            let (probes, mut alive) = match dead {
                0 => (Probes::of_dead(&scene.world.net.client, &client.socket)?, &server),
                _ => (Probes::of_dead(&scene.world.net.server, &server)?, &client.socket),
            };
            let context = || format!("{kind}, {reason}");
            let log = scene.gateway.wait_access_log(1).with_context(context)?;
            ensure!(log[0]["close_reason"] == reason, "{kind}: {log:?}");
            ensure!(probes.seen()? == 2, "{} probes: {kind}, {reason}", probes.seen()?);
            let end = alive.read(&mut [0]).map_err(|error| error.kind());
            ensure!(end == Err(ErrorKind::ConnectionReset), "{end:?} instead of a reset: {kind}, {reason}");
        }
    }
    Ok(())
}
