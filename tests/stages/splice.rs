//! splice: bytes arrive whole and in order, ends and resets are passed on, and nobody pays for somebody else's
//! slowness. Every property holds for passthrough, plain TCP and terminated connections in the copy tier and for
//! passthrough in the sockmap tier alike.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use snisplice::kernel::version::{KernelVersion, sockmap_sound};
use snisplice_tests::pump::{Duplex, Plan, Start, exchange, reset_on_close};
use snisplice_tests::skip::skipped;
use snisplice_tests::tls::{Client, client_hello};
use snisplice_tests::{Gateway, eventually, require};

use crate::config::{listener, passthrough, pool, route};
use crate::world::World;
use snisplice_tests::backend::{Backend, echo, read_record};

const MIB: u64 = 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Passthrough,
    Terminated,
    Tcp,
    /// Passthrough in the sockmap tier.
    Sockmap,
}
use Mode::{Passthrough, Sockmap, Tcp, Terminated};

/// Those that one gateway serves at the same time.
const COPIED: [Mode; 3] = [Passthrough, Terminated, Tcp];

/// All that this kernel can do.
fn modes() -> Vec<Mode> {
    let mut modes = COPIED.to_vec();
    match sockmap_sound(&KernelVersion::running().expect("the kernel has a version")) {
        Ok(()) => modes.push(Sockmap),
        Err(fault) => skipped(&format!("not in the sockmap tier: this kernel {fault}")),
    }
    modes
}

impl Mode {
    fn route(self) -> &'static str {
        match self {
            Passthrough | Sockmap => "passthrough",
            Terminated => "terminated",
            Tcp => "tcp",
        }
    }

    /// What the gateway is configured to try first.
    fn first_tier(self) -> &'static str {
        if self == Sockmap { "sockmap" } else { "packet" }
    }

    fn tier(self) -> &'static str {
        if self == Sockmap { "sockmap" } else { "copy" }
    }
}

/// A gateway with a route of each mode and one kind of backend behind all of them.
struct Scene {
    gateway: Gateway,
    _backends: [Backend; 2],
    client: Client,
    world: World,
}

impl Scene {
    /// `serve` gets each connection where the bytes of the exchange begin: behind the ClientHello of a
    /// passed-through connection.
    fn new(mode: Mode, serve: impl Fn(Duplex) -> Result<()> + Send + Sync + 'static) -> Result<Self> {
        let world = World::new()?;
        let serve = Arc::new(serve);
        let serve_too = Arc::clone(&serve);
        let backends = [
            Backend::start(&world.net.server, 7001, move |mut stream| {
                read_record(&mut stream)?;
                serve(stream.try_into()?).map_err(io::Error::other)
            })?,
            Backend::start(&world.net.server, 7002, move |stream| {
                serve_too(stream.try_into()?).map_err(io::Error::other)
            })?,
        ];
        let leaf = world.authority.leaf(&["terminated.example.com"])?;
        let terminate = format!("tls = 'terminate'\ncertificate = {}", leaf.toml());
        let config =
            format!("[gateway]\ntiers = ['{}', 'copy']\nmax_connections = 4000\n", mode.first_tier())
                + &listener("")
                + &passthrough("passthrough", "passthrough.example.com")
                + &route("terminated", "terminated.example.com", &terminate)
                + "[[listener]]\nname = 'plain'\nbind = ['0.0.0.0:444']\nprotocol = 'tcp'\n"
                + "[[route]]\nname = 'tcp'\nlistener = 'plain'\nbackends = [{ pool = 'tcp' }]\n"
                + &pool("passthrough", &[7001], "")
                + &pool("terminated", &[7002], "")
                + &pool("tcp", &[7002], "");
        let gateway = world.gateway(&config)?;
        let client = Client::new(&world.authority.path, rustls::ALL_VERSIONS, None)?;
        Ok(Self { gateway, _backends: backends, client, world })
    }

    fn open(&self, mode: Mode) -> Result<Duplex> {
        match mode {
            Passthrough | Sockmap => Ok(self.world.open("passthrough.example.com")?.try_into()?),
            Terminated => self.client.connect(self.world.connect(443)?, "terminated.example.com"),
            Tcp => Ok(self.world.connect(444)?.try_into()?),
        }
    }

    /// What the access log says about the only connection of a route.
    fn logged(&self, mode: Mode, key: &str) -> Result<serde_json::Value> {
        let line = eventually("the connection's line in the access log", || {
            self.gateway.access_log().ok()?.into_iter().find(|line| line["route"] == mode.route())
        })?;
        Ok(line[key].clone())
    }
}

/// A scene in which the backend carries out a plan on each connection, and the outcomes.
fn scene_with_plan(mode: Mode, plan: Plan) -> Result<(Scene, mpsc::Receiver<Result<()>>)> {
    let (sender, outcomes) = mpsc::channel();
    let scene = Scene::new(mode, move |duplex| {
        let _ = sender.send(exchange(duplex, &plan));
        Ok(())
    })?;
    Ok((scene, outcomes))
}

fn exchange_through(mode: Mode, client: &Plan, server: Plan) -> Result<()> {
    let (scene, outcomes) = scene_with_plan(mode, server)?;
    let exchanged = exchange(scene.open(mode)?, client).context("the client's end");
    outcomes.recv_timeout(Duration::from_secs(30))?.context("the server's end")?;
    exchanged?;
    // Whoever does not keep up is sent back to the copy tier, which may happen to anybody on a busy machine.
    let demoted = mode == Sockmap && scene.logged(mode, "tier_reason")? == "sockmap_backpressure";
    assert!(demoted || scene.logged(mode, "tier")? == mode.tier());
    let status = scene.gateway.status()?;
    assert_eq!((status.route(mode.route(), "active"), status.route(mode.route(), "total")), (0, 1));
    assert!(status.route(mode.route(), "bytes_in") >= client.send);
    assert!(status.route(mode.route(), "bytes_out") >= client.receive);
    Ok(())
}

#[test]
fn sixty_four_mebibytes_each_way_at_once_pass_through_unchanged() -> Result<()> {
    let plan = Plan::both_ways(64 * MIB);
    exchange_through(Passthrough, &plan, plan.mirrored())
}

#[test]
fn sixty_four_mebibytes_each_way_at_once_are_terminated_unchanged() -> Result<()> {
    let plan = Plan::both_ways(64 * MIB);
    exchange_through(Terminated, &plan, plan.mirrored())
}

#[test]
fn sixty_four_mebibytes_each_way_at_once_cross_a_tcp_listener_unchanged() -> Result<()> {
    let plan = Plan::both_ways(64 * MIB);
    exchange_through(Tcp, &plan, plan.mirrored())
}

#[test]
fn sixty_four_mebibytes_each_way_at_once_cross_the_sockmap_unchanged() -> Result<()> {
    require!(modes().contains(&Sockmap), "this kernel's sockmap is unsound");
    let plan = Plan::both_ways(64 * MIB);
    exchange_through(Sockmap, &plan, plan.mirrored())
}

#[test]
fn many_tiny_writes_arrive_unchanged() -> Result<()> {
    for mode in modes() {
        let plan = Plan { chunk: 3, ..Plan::both_ways(30_000) };
        exchange_through(mode, &plan, plan.mirrored()).with_context(|| format!("{mode:?}"))?;
    }
    Ok(())
}

#[test]
fn a_server_answers_after_the_client_has_ended_its_direction() -> Result<()> {
    for mode in modes() {
        let plan = Plan::both_ways(2 * MIB);
        let answer = Plan { start: Start::AfterEnd, ..plan.mirrored() };
        exchange_through(mode, &plan, answer).with_context(|| format!("{mode:?}"))?;
    }
    Ok(())
}

#[test]
fn a_client_goes_on_after_the_server_has_ended_its_direction() -> Result<()> {
    for mode in modes() {
        let plan = Plan { start: Start::AfterEnd, ..Plan::both_ways(2 * MIB) };
        exchange_through(mode, &plan, plan.mirrored()).with_context(|| format!("{mode:?}"))?;
    }
    Ok(())
}

#[test]
fn the_side_that_ended_first_is_the_reason_of_the_close() -> Result<()> {
    for mode in modes() {
        let (scene, outcomes) =
            scene_with_plan(mode, Plan { start: Start::AfterEnd, ..Plan::both_ways(10).mirrored() })?;
        exchange(scene.open(mode)?, &Plan::both_ways(10))?;
        outcomes.recv()??;
        assert_eq!(scene.logged(mode, "close_reason")?, "client_closed", "{mode:?}");

        let (scene, outcomes) = scene_with_plan(mode, Plan::both_ways(10).mirrored())?;
        exchange(scene.open(mode)?, &Plan { start: Start::AfterEnd, ..Plan::both_ways(10) })?;
        outcomes.recv()??;
        assert_eq!(scene.logged(mode, "close_reason")?, "server_closed", "{mode:?}");
    }
    Ok(())
}

#[test]
fn a_clients_reset_reaches_the_server_as_a_reset() -> Result<()> {
    for mode in modes() {
        let (sender, ends) = mpsc::channel();
        let scene = Scene::new(mode, move |mut duplex| {
            let mut byte = [0];
            duplex.reader.read_exact(&mut byte)?;
            duplex.writer.write_all(&byte)?;
            sender.send(duplex.reader.read(&mut byte).map_err(|e| e.kind()))?;
            Ok(())
        })?;
        let mut duplex = scene.open(mode)?;
        duplex.writer.write_all(b"x")?;
        duplex.reader.read_exact(&mut [0])?;
        reset_on_close(&duplex.socket)?;
        drop(duplex);
        let end = ends.recv_timeout(Duration::from_secs(20)).with_context(|| format!("{mode:?}"))?;
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "{mode:?}");
        assert_eq!(scene.logged(mode, "close_reason")?, "client_reset", "{mode:?}");
    }
    Ok(())
}

#[test]
fn a_servers_reset_reaches_the_client_as_a_reset() -> Result<()> {
    for mode in modes() {
        let scene = Scene::new(mode, |mut duplex| {
            duplex.reader.read_exact(&mut [0])?;
            reset_on_close(&duplex.socket)
        })?;
        let mut duplex = scene.open(mode)?;
        duplex.writer.write_all(b"x")?;
        let end = duplex.reader.read(&mut [0]).map_err(|e| e.kind());
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "{mode:?}");
        assert_eq!(scene.logged(mode, "close_reason")?, "server_reset", "{mode:?}");
    }
    Ok(())
}

/// What a stalled connection may cost the gateway at most. Buffers of a connection are some hundred KiB;
/// without back-pressure it would be the whole stream.
const STALL_KIB: u64 = 16 * 1024;

const STALL: Option<(u64, Duration)> = Some((MIB, Duration::from_secs(3)));

#[test]
fn a_client_that_stops_reading_stops_the_server_and_not_the_gateways_memory() -> Result<()> {
    let client = Plan { send: 0, stall: STALL, ..Plan::both_ways(48 * MIB) };
    in_every_mode_with_bounded_memory(&client, &client.mirrored())
}

#[test]
fn a_server_that_stops_reading_stops_the_client_and_not_the_gateways_memory() -> Result<()> {
    let client = Plan { receive: 0, ..Plan::both_ways(48 * MIB) };
    in_every_mode_with_bounded_memory(&client, &Plan { stall: STALL, ..client.mirrored() })
}

/// All modes at once: most of the time they stand still.
fn in_every_mode_with_bounded_memory(client: &Plan, server: &Plan) -> Result<()> {
    let run = |mode: Mode| -> Result<()> {
        let (scene, outcomes) = scene_with_plan(mode, server.clone())?;
        let before = scene.gateway.process.memory_kib("VmHWM")?;
        exchange(scene.open(mode)?, client)?;
        outcomes.recv_timeout(Duration::from_secs(30))??;
        let grown = scene.gateway.process.memory_kib("VmHWM")? - before;
        assert!(grown < STALL_KIB, "{mode:?}: {grown} KiB more");
        Ok(())
    };
    thread::scope(|scope| {
        let runs: Vec<_> = modes().into_iter().map(|mode| (mode, scope.spawn(move || run(mode)))).collect();
        runs.into_iter().try_for_each(|(mode, run)| {
            run.join().expect("no assertion fails").with_context(|| format!("{mode:?}"))
        })
    })
}

#[test]
fn a_thousand_connections_at_once_pass_through_each_with_its_own_bytes() -> Result<()> {
    crowd(Passthrough, 1000)
}

#[test]
fn a_thousand_connections_at_once_cross_the_sockmap_each_with_its_own_bytes() -> Result<()> {
    require!(modes().contains(&Sockmap), "this kernel's sockmap is unsound");
    crowd(Sockmap, 1000)
}

#[test]
fn a_thousand_connections_at_once_are_terminated_each_with_its_own_bytes() -> Result<()> {
    crowd(Terminated, 1000)
}

fn crowd(mode: Mode, size: usize) -> Result<()> {
    let scene = Scene::new(mode, |duplex| Ok(echo(duplex.socket)?))?;
    let mut connections = (0..size).map(|_| scene.open(mode)).collect::<Result<Vec<_>>>()?;
    scene.gateway.wait_status("all to be active", |s| s.route(mode.route(), "active") == size as u64)?;

    let message = |i: usize| format!("connection {i} of {size}\n").repeat(20).into_bytes();
    for (i, connection) in connections.iter_mut().enumerate() {
        connection.writer.write_all(&message(i))?;
    }
    for (i, connection) in connections.iter_mut().enumerate() {
        let mut seen = vec![0; message(i).len()];
        connection.reader.read_exact(&mut seen).with_context(|| format!("connection {i}"))?;
        assert_eq!(seen, message(i), "connection {i}");
    }
    drop(connections);
    let status = scene.gateway.wait_status("all to end", |s| s.route(mode.route(), "active") == 0)?;
    assert_eq!(status.route(mode.route(), "total"), size as u64);
    assert_eq!(scene.gateway.wait_access_log(size)?.len(), size);
    Ok(())
}

#[test]
fn idle_half_closed_and_stalled_connections_cost_no_cpu_time() -> Result<()> {
    for modes in [&COPIED[..], modes().get(COPIED.len()..).unwrap_or_default()] {
        if let Some(first) = modes.first() {
            costs_no_cpu_time(*first, modes)?;
        }
    }
    Ok(())
}

/// Connections of several modes at one gateway, which is that of the first.
fn costs_no_cpu_time(first: Mode, modes: &[Mode]) -> Result<()> {
    // What the backend does depends on the first byte: wait, or send without end.
    let scene = Scene::new(first, |mut duplex| {
        let mut order = [0];
        duplex.reader.read_exact(&mut order)?;
        if order == *b"s" {
            io::copy(&mut io::repeat(7), &mut duplex.writer)?;
        }
        // Not even the end of the client's direction ends this one.
        io::copy(&mut duplex.reader, &mut io::sink())?;
        loop {
            thread::park();
        }
    })?;
    let open = |mode, order: &[u8]| -> Result<Duplex> {
        let mut duplex = scene.open(mode)?;
        duplex.writer.write_all(order)?;
        Ok(duplex)
    };
    let mut held = Vec::new();
    for &mode in modes {
        for _ in 0..40 {
            held.push(open(mode, b"w")?);
        }
        let mut half_closed = open(mode, b"w")?;
        half_closed.writer.finish()?;
        held.push(half_closed);
        held.push(open(mode, b"s")?);
    }
    scene.gateway.wait_status("all to be active", |s| {
        modes.iter().all(|mode| s.route(mode.route(), "active") == 42)
    })?;

    // Until the buffers between the endless server and the client that does not read are full.
    let mut last = 0;
    eventually("the stalled connections to stand still", || {
        thread::sleep(Duration::from_millis(300));
        let now = scene.gateway.process.cpu_ticks().ok()?;
        let still = now.saturating_sub(last) <= 1;
        last = now;
        still.then_some(())
    })?;
    let before = scene.gateway.process.cpu_ticks()?;
    thread::sleep(Duration::from_secs(2));
    let used = scene.gateway.process.cpu_ticks()? - before;
    assert!(used <= 4, "{used} of 200 ticks with nothing to do");
    drop(held);
    Ok(())
}

#[test]
fn data_right_behind_the_hello_is_not_lost() -> Result<()> {
    let scene = Scene::new(Passthrough, |duplex| Ok(echo(duplex.socket)?))?;
    let data: Vec<u8> = (0..100_000u32).flat_map(u32::to_be_bytes).collect();
    let mut stream: TcpStream = scene.world.connect(443)?;
    let mut reading = stream.try_clone()?;
    let reader = thread::spawn({
        let length = data.len();
        move || {
            let mut seen = vec![0; length];
            reading.read_exact(&mut seen).map(|()| seen)
        }
    });
    stream.write_all(&[client_hello("passthrough.example.com", &[]), data.clone()].concat())?;
    assert!(reader.join().expect("the reader does not panic")? == data);
    Ok(())
}

#[test]
fn an_idle_connection_ends_after_the_idle_timeout() -> Result<()> {
    let world = World::new()?;
    let ended = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&ended);
    let _backend = Backend::start(&world.net.server, 7001, move |mut stream| {
        // However the end looks, it comes.
        let _ = io::copy(&mut stream, &mut io::sink());
        *counter.lock().expect("no panic while locked") += 1;
        Ok(())
    })?;
    let config = listener("")
        + &route("app1", "app1.example.com", "tls = 'passthrough'\nidle_timeout = '300ms'")
        + &pool("app1", &[7001], "");
    let gateway = world.gateway(&config)?;
    let mut stream = world.open("app1.example.com")?;
    // The end, or a reset: not the patience of the reading side.
    let end = stream.read(&mut [0]).map_err(|e| e.kind());
    assert!(matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)), "{end:?}");
    assert_eq!(gateway.wait_access_log(1)?[0]["close_reason"], "idle_timeout");
    eventually("the server's side to end", || (*ended.lock().ok()? == 1).then_some(()))
}

/// Bytes move all the time.
#[test]
fn a_connection_ends_at_its_max_age_whatever_it_does() -> Result<()> {
    let world = World::new()?;
    let (ended, server_ended) = mpsc::channel();
    let _backend = Backend::start(&world.net.server, 7001, move |stream| {
        let end = echo(stream).map_err(|error| error.kind());
        ended.send(end).map_err(io::Error::other)
    })?;
    let config = listener("")
        + &route("app1", "app1.example.com", "tls = 'passthrough'\nmax_age = '700ms'")
        + &pool("app1", &[7001], "");
    let gateway = world.gateway(&config)?;
    let mut stream = world.open("app1.example.com")?;
    let mut bytes = [0; 4096];
    let mut echoed = 0;
    let end = loop {
        match stream.read(&mut bytes).and_then(|n| stream.write_all(&bytes[..n]).map(|()| n)) {
            Ok(0) => break None,
            Ok(n) => echoed += n,
            Err(error) => break Some(error.kind()),
        }
    };
    let is_reset = |end| matches!(end, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
    assert!(end.is_some_and(is_reset), "{end:?}");
    assert!(server_ended.recv()?.is_err_and(is_reset));
    let log = gateway.wait_access_log(1)?;
    assert_eq!(log[0]["close_reason"], "max_age");
    assert!(echoed > 2 * client_hello("app1.example.com", &[]).len(), "only {echoed} bytes came back");
    Ok(())
}
