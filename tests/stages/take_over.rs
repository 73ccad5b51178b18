//! accept: one process takes over from another, and nobody is refused.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Error, ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, prlimit};
use serde_json::Value;
use snisplice::kernel::version::{KernelVersion, sockmap_sound};
use snisplice_tests::backend::{Backend, echo, naming};
use snisplice_tests::gateway::binary;
use snisplice_tests::process::{Process, checked_output};
use snisplice_tests::pump::{Plan, exchange};
use snisplice_tests::redis::tls_cli;
use snisplice_tests::tls::{Client, client_hello};
use snisplice_tests::{Gateway, Launch, Redis, TempDir, eventually, require, topology};
use socket2::{Domain, Socket, Type};

use crate::config::{listener, one_route, passthrough, pool, route, server};
use crate::world::{World, answer, dial};

const PATIENCE: Duration = Duration::from_secs(60);

/// A connection through `app1`, whose server echoes.
fn open(world: &World) -> Result<TcpStream> {
    let mut stream = world.connect(443)?;
    says(&mut stream)?;
    Ok(stream)
}

fn says(stream: &mut TcpStream) -> Result<()> {
    let hello = client_hello("app1.example.com", &[]);
    stream.write_all(&hello)?;
    Ok(stream.read_exact(&mut vec![0; hello.len()])?)
}

/// Waits until a process that drains has ended.
fn ends(process: &mut Process) -> Result<()> {
    let status = process.wait(PATIENCE)?;
    ensure!(status.success(), "{status}\n{}", process.output());
    Ok(())
}

/// Whether a connection is accepted and refused by a limit.
fn is_turned_away(world: &World) -> Result<bool> {
    match world.connect(443) {
        Ok(mut stream) => Ok(says(&mut stream).is_err()),
        // The reset may be faster than this thread.
        Err(error) => match error.downcast_ref::<Error>().map(Error::kind) {
            Some(ErrorKind::ConnectionReset) => Ok(true),
            _ => Err(error),
        },
    }
}

/// The process that the lock file names.
fn locked_by(gateway: &Gateway) -> Result<u32> {
    Ok(fs::read_to_string(gateway.state_dir()?.join("admin.lock"))?.trim().parse()?)
}

/// Real clients that connect anew for each question, over both families, passed through and terminated, while the process is
/// replaced three times in a row; and a connection that is carried all the while, of which each byte is checked.
#[test]
fn under_load_nobody_is_refused_and_nobody_is_cut() -> Result<()> {
    let world = World::new()?;
    let leaf = world.authority.leaf(&["app1.example.com", "app2.example.com", "app3.example.com"])?;
    let _passed = Redis::tls(&world.net.server, 7001, &leaf)?;
    let _ended = Redis::plain(&world.net.server, 7002)?;
    let plan = Plan { chunk: 32 << 10, pace: Duration::from_millis(10), ..Plan::both_ways(20 << 20) };
    let mirrored = plan.mirrored();
    let _carried = Backend::start(&world.net.server, 7003, move |stream| {
        exchange(stream.try_into()?, &mirrored).map_err(std::io::Error::other)
    })?;
    let terminate = format!("tls = 'terminate'\ncertificate = {}", leaf.toml());
    let config = "[gateway]\nworkers = 2\ndrain_timeout = '10m'\n".to_owned()
        + &listener("bind = ['0.0.0.0:443', '[::]:443']")
        + &passthrough("app1", "app1.example.com")
        + &route("app2", "app2.example.com", &terminate)
        + &route("app3", "app3.example.com", &terminate)
        + &pool("app1", &[7001], "")
        + &pool("app2", &[7002], "")
        + &pool("app3", &[7003], "");
    let mut gateway = world.gateway(&config)?;
    let client = Client::new(&world.authority.path, rustls::ALL_VERSIONS, None)?;
    let carried = client.connect(world.connect(443)?, "app3.example.com")?;
    let carried = thread::spawn(move || exchange(carried, &plan));

    let hosts = [topology::GATEWAY.to_string(), topology::GATEWAY6.to_string()];
    let mut loads = Vec::new();
    for host in &hosts {
        for sni in ["app1.example.com", "app2.example.com"] {
            let mut benchmark = world.net.client.command("redis-benchmark");
            benchmark.args(["-h", host, "-p", "443", "--tls", "--sni", sni, "--cacert"]);
            benchmark.arg(&world.authority.path).args([
                "-k",
                "0",
                "-c",
                "4",
                "-n",
                "2000",
                "-t",
                "ping_mbulk",
            ]);
            loads.push(Process::spawn("redis-benchmark", benchmark)?);
        }
    }
    let mut draining = Vec::new();
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(300));
        draining.push(gateway.take_over()?);
        let mut cli = tls_cli(&world.net.client, &hosts[0], 443, "app2.example.com", &world.authority.path);
        ensure!(checked_output(cli.arg("ping"))? == "PONG\n");
    }
    ensure!(loads.iter_mut().all(Process::is_running), "the load was over before the last take-over");
    ensure!(!carried.is_finished(), "the transfer was over before the last take-over");
    ensure!(draining[0].is_running(), "it carries the transfer");
    let status = gateway.status()?;
    ensure!(status.0["draining"][0]["process"] == draining[0].pid(), "{status:?}");
    for load in &mut loads {
        let status = load.wait(Duration::from_secs(300))?;
        ensure!(status.success() && !load.output().contains("rror"), "{status}: {}", load.output());
    }
    carried.join().expect("no assertion in there")?;
    for process in &mut draining {
        ends(process)?;
    }
    eventually("nobody to drain any more", || gateway.status().ok()?.0["draining"].is_null().then_some(()))?;
    // A connection of each request, three of redis-cli, and the transfer. The kernel's own are told when they are swept.
    let log = eventually("a line of every connection", || {
        gateway.access_log().ok().filter(|log| log.len() >= 4 * 2000 + 4)
    })?;
    // The benchmark hangs up on those that are still open when it has all its answers.
    let odd: Vec<_> = log.iter().filter(|line| line["close_reason"] != "client_closed").collect();
    let hung_up = |line: &Value| {
        ["client_reset", "server_closed"].iter().any(|reason| line["close_reason"] == *reason)
            || ["reset", "closed"].iter().any(|error| line["tls_error"] == *error)
    };
    ensure!(odd.len() <= 17 && odd.iter().all(|line| hung_up(line)), "{odd:?}");
    Ok(())
}

#[test]
fn what_the_process_before_carries_counts_under_every_limit() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let limits: [(&str, &str, &str, &str); 5] = [
        ("max_connections = 2", "", "", ""),
        ("", "max_connections = 2", "", ""),
        ("", "client_rate = { open = 2 }", "", ""),
        ("", "", "max_connections = 2", ""),
        ("", "", "", "max_connections = 2"),
    ];
    for (of_gateway, of_listener, of_route, of_server) in limits {
        let server = match of_server {
            "" => String::new(),
            limit => format!(", {limit}"),
        };
        let config = format!("[gateway]\ndrain_timeout = '10m'\n{of_gateway}\n")
            + &listener(of_listener)
            + &route("app1", "app1.example.com", of_route)
            + &format!(
                "[[pool]]\nname = 'app1'\nconnect_timeout = '300ms'\n\
                 servers = [{{ address = '{}'{server} }}]\n",
                crate::config::server(7001)
            );
        let of = || format!("{of_gateway}{of_listener}{of_route}{of_server}");
        let mut gateway = world.gateway(&config)?;
        let mut first = open(&world).with_context(of)?;
        let mut before = gateway.take_over()?;
        let mut second = open(&world).with_context(of)?;
        ensure!(is_turned_away(&world)?, "{}: a third connection", of());
        // The same two, carried by two processes before.
        let mut between = gateway.take_over()?;
        says(&mut first).with_context(of)?;
        says(&mut second).with_context(of)?;
        ensure!(is_turned_away(&world)?, "{}: a third connection, twice removed", of());
        let status = gateway.status()?;
        ensure!(status.0["draining"].as_array().map(Vec::len) == Some(2), "{status:?}");
        ensure!(status.route("app1", "active") == 2, "{status:?}");
        drop(first);
        ends(&mut before)?;
        let mut third = eventually("its place to be free", || open(&world).ok()).with_context(of)?;
        ensure!(is_turned_away(&world)?, "{}: a fourth connection", of());
        drop(second);
        ends(&mut between)?;
        eventually("both to be gone", || gateway.status().ok()?.0["draining"].is_null().then_some(()))?;
        says(&mut third)?;
        // Nothing is left of them.
        let _fourth = eventually("its place to be free", || open(&world).ok()).with_context(of)?;
        ensure!(is_turned_away(&world)?, "{}: a fifth connection", of());
    }
    Ok(())
}

#[test]
fn a_process_before_that_dies_takes_its_own_connections_with_it_alone() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let config = format!("[gateway]\ndrain_timeout = '10m'\nmax_connections = 2\n{}", one_route());
    let mut gateway = world.gateway(&config)?;
    let mut first = open(&world)?;
    let mut before = gateway.take_over()?;
    let mut second = open(&world)?;
    before.signal(Signal::SIGKILL)?;
    before.wait(PATIENCE)?;
    ensure!(says(&mut first).is_err(), "its socket was the process's");
    says(&mut second)?;
    let _third = eventually("its place to be free", || open(&world).ok())?;
    ensure!(gateway.status()?.0["draining"].is_null());
    // It may be taken over in its turn.
    drop(second);
    let mut before = gateway.take_over()?;
    says(&mut eventually("a place", || open(&world).ok())?)?;
    before.signal(Signal::SIGTERM)?;
    eventually("the signal to be noticed", || before.stderr().contains("told to stop").then_some(()))?;
    ensure!(before.is_running(), "it drains already, as the signal asks");
    before.signal(Signal::SIGTERM)?;
    ends(&mut before)
}

/// The sockmap and its programs are each process's own: the kernel moves the bytes of a connection until the process ends that
/// put it there.
#[test]
fn connections_in_the_sockmap_go_on_and_new_ones_come_into_that_of_the_successor() -> Result<()> {
    let sound = sockmap_sound(&KernelVersion::running().context("the kernel has a version")?);
    require!(sound.is_ok(), "this kernel's sockmap is unsound");
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let config = "[gateway]\ntiers = ['sockmap', 'copy']\ndrain_timeout = '10m'\n".to_owned() + &one_route();
    let mut gateway = world.gateway(&config)?;
    let in_sockmap = |gateway: &Gateway| gateway.status().ok()?.0["tiers"]["sockmap"]["active"].as_u64();
    let mut first = open(&world)?;
    eventually("it to be in the sockmap", || (in_sockmap(&gateway) == Some(1)).then_some(()))?;
    let mut before = gateway.take_over()?;
    says(&mut first)?;
    let mut second = open(&world)?;
    eventually("the next one to be in that of the successor", || {
        (in_sockmap(&gateway) == Some(1)).then_some(())
    })?;
    let status = gateway.status()?;
    ensure!(status.0["draining"][0]["connections"] == 1, "{status:?}");
    ensure!(status.route("app1", "active") == 2, "{status:?}");
    // In turns: neither takes the other's bytes.
    for _ in 0..50 {
        says(&mut first)?;
        says(&mut second)?;
    }
    drop(first);
    ends(&mut before)?;
    says(&mut second)?;
    drop(second);
    let log = eventually("a line of each", || gateway.access_log().ok().filter(|log| log.len() == 2))?;
    ensure!(log.iter().all(|line| line["tier"] == "sockmap"), "{log:?}");
    Ok(())
}

#[test]
fn a_successor_that_fails_changes_nothing() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let config = format!("[gateway]\nadmin = '127.0.0.1:9900'\n{}", one_route());
    let gateway = world.gateway(&config)?;
    let mut live = open(&world)?;
    let process = locked_by(&gateway)?;
    let goes_on = |live: &mut TcpStream, after: &str| -> Result<()> {
        says(live).context(after.to_owned())?;
        open(&world).context(after.to_owned())?;
        ensure!(locked_by(&gateway)? == process, "{after}");
        // It can reload, and has its admin address.
        gateway.reload().context(after.to_owned())?;
        let _admin = dial(&world.net.gateway, "127.0.0.1:9900".parse()?)?;
        Ok(())
    };

    // Its configuration is no good, or cannot be had.
    for (broken, code, fault) in [
        ("nonsense = 1\n".to_owned(), 2, "unknown key"),
        (config.replace("'0.0.0.0:443'", "'192.0.2.1:443'"), 1, "does not have the address"),
    ] {
        gateway.write_config(&broken)?;
        let mut successor = gateway.successor()?;
        let status = successor.wait(PATIENCE)?;
        ensure!(status.code() == Some(code) && successor.stderr().contains(fault), "{}", successor.output());
        gateway.write_config(&config)?;
        goes_on(&mut live, fault)?;
    }

    // It is killed before the other process has answered, and when it has.
    gateway.process.signal(Signal::SIGSTOP)?;
    let mut successor = gateway.successor()?;
    thread::sleep(Duration::from_millis(300));
    successor.signal(Signal::SIGKILL)?;
    successor.wait(PATIENCE)?;
    gateway.process.signal(Signal::SIGCONT)?;
    goes_on(&mut live, "killed while it asked")?;
    drop(gateway.half_successor()?);
    goes_on(&mut live, "killed with the sockets")?;
    let mut half = gateway.half_successor()?;
    let busy = gateway.half_successor().map(drop).map_err(|error| format!("{error:#}"));
    ensure!(busy.is_err_and(|error| error.contains("another process is taking over")));
    half.freeze()?;
    // Who comes now waits.
    let mut waiting = world.connect(443)?;
    let hello = client_hello("app1.example.com", &[]);
    waiting.write_all(&hello)?;
    drop(half);
    waiting.read_exact(&mut vec![0; hello.len()])?;
    goes_on(&mut live, "killed before it served")?;
    // One that lives is told, and does not take this process for dead.
    let mut half = gateway.half_successor()?;
    let refused = half.say("{\"serve\":{}}", "{\"over\"").map_err(|error| format!("{error:#}"));
    ensure!(refused.as_ref().is_err_and(|error| error.contains("it left out a step")), "{refused:?}");
    goes_on(&mut live, "refused")?;
    // When it is to accept again, there are no descriptors for a while.
    let mut half = gateway.half_successor()?;
    half.freeze()?;
    open_files(gateway.process.pid(), 1)?;
    drop(half);
    eventually("it to lack descriptors", || {
        gateway.process.stderr().contains("waiting for a resource").then_some(())
    })?;
    open_files(gateway.process.pid(), ENOUGH)?;
    goes_on(&mut live, "without descriptors")?;

    // It says nothing more: it is killed, so that it does not go on some day.
    let mut command = Command::new("python3");
    command.args(["-c", SILENT_SUCCESSOR]).arg(gateway.state_dir()?.join("admin.sock"));
    let mut silent = Process::spawn("python3", command)?;
    eventually("the other process to be frozen", || silent.stdout().contains("frozen").then_some(()))?;
    says(&mut world.connect(443)?)?;
    let status = silent.wait(PATIENCE)?;
    ensure!(status.signal() == Some(9), "{status}");
    goes_on(&mut live, "silent")
}

/// Bounds the descriptors that a process may open from now on.
fn open_files(process: u32, limit: u64) -> Result<()> {
    let process = rustix::process::Pid::from_raw(process.cast_signed());
    let limit = Rlimit { current: Some(limit), maximum: Some(ENOUGH) };
    prlimit(process, Resource::Nofile, limit)?;
    Ok(())
}

/// More descriptors than any process here has.
const ENOUGH: u64 = 4096;

/// A process that says what a successor says until it is to adopt, and then nothing.
const SILENT_SUCCESSOR: &str = r#"
import socket, sys, time
gateway = socket.socket(socket.AF_UNIX)
gateway.connect(sys.argv[1])
lines = gateway.makefile("r")
for line, answer in (('{"command":"take_over","version":1}', '{"offered"'), ('{"freeze":{}}', '{"frozen"')):
    gateway.sendall((line + "\n").encode())
    while not lines.readline().startswith(answer):
        pass
print("frozen", flush=True)
time.sleep(600)
"#;

/// The kernel tells the gateway who asks, whatever the mode of the socket.
#[test]
fn only_its_own_user_and_root_may_take_over() -> Result<()> {
    let world = World::new()?;
    let gateway = world.gateway(&one_route())?;
    let state_dir = gateway.state_dir()?;
    let socket = state_dir.join("admin.sock");
    for path in state_dir.ancestors().take(2).chain([&*socket]) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
    }
    let answer = thread::spawn(move || -> Result<String> {
        let nobody = rustix::process::Uid::from_raw(65_534);
        // Of this thread alone.
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody)?;
        let mut stream = BufReader::new(UnixStream::connect(socket)?);
        stream.get_mut().write_all(b"{\"command\":\"take_over\",\"version\":1}\n")?;
        let mut answer = String::new();
        stream.read_line(&mut answer)?;
        Ok(answer)
    });
    let answer = answer.join().expect("no assertion in there")?;
    ensure!(answer.contains("a process of user 65534 may not take over from one of user 0"), "{answer}");

    let mut stream = BufReader::new(UnixStream::connect(state_dir.join("admin.sock"))?);
    stream.get_mut().write_all(b"{\"command\":\"take_over\",\"version\":9}\n")?;
    let mut answer = String::new();
    stream.read_line(&mut answer)?;
    ensure!(answer.contains("version 1 of the protocol, not 9"), "{answer}");
    Ok(())
}

/// Each worker had a socket of its own, in whose backlog clients wait.
#[test]
fn listeners_and_workers_may_be_others_than_before() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming("one"))?;
    let config = |workers: usize, bind: &str| {
        format!("[gateway]\nworkers = {workers}\n")
            + &listener(&format!("bind = {bind}"))
            + &passthrough("app1", "app1.example.com")
            + &pool("app1", &[7001], "")
    };
    let ask = |target: SocketAddr| -> Result<String> {
        let mut stream = dial(&world.net.client, target)?;
        stream.write_all(&client_hello("app1.example.com", &[]))?;
        Ok(answer(stream))
    };
    let mut gateway = world.gateway(&config(4, "['0.0.0.0:443', '0.0.0.0:444']"))?;
    for (workers, bind, ports, gone) in [
        (1, "['0.0.0.0:443', '0.0.0.0:445']", [443, 445], 444),
        (3, "['10.0.1.1:443', '0.0.0.0:445']", [443, 445], 444),
        (2, "['0.0.0.0:443', '[::]:443', '0.0.0.0:444']", [443, 444], 445),
    ] {
        gateway.write_config(&config(workers, bind))?;
        gateway.replace()?;
        for _ in 0..16 {
            for port in ports {
                ensure!(ask(topology::gateway(port))? == "one", "{workers} {bind}");
            }
        }
        ensure!(world.connect(gone).is_err(), "{workers} {bind}");
    }
    ensure!(ask(topology::gateway6(443))? == "one");
    Ok(())
}

#[test]
fn where_no_gateway_runs_it_is_a_start_like_any_other() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let mut gateway = world.gateway(&one_route())?;
    for end in [Signal::SIGTERM, Signal::SIGKILL] {
        gateway.process.signal(end)?;
        gateway.process.wait(PATIENCE)?;
        let _ended = gateway.take_over()?;
        open(&world)?;
        ensure!(locked_by(&gateway)? == gateway.process.pid());
    }
    Ok(())
}

/// As kubelet does it with a DaemonSet of `maxSurge: 1`, if the new pod is believed to be ready too early.
#[test]
fn a_process_that_is_to_stop_is_still_taken_over() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let mut gateway = world.gateway(&format!("[gateway]\ndrain_timeout = '10m'\n{}", one_route()))?;
    let mut live = open(&world)?;
    // A successor has the sockets.
    let half = gateway.half_successor()?;
    gateway.process.signal(Signal::SIGTERM)?;
    eventually("the signal to be noticed", || {
        gateway.process.stderr().contains("stopping when the other process has taken over").then_some(())
    })?;
    open(&world).context("before it has taken over")?;
    drop(half);
    eventually("the listener to close", || world.connect(443).is_err().then_some(()))?;
    // It drains. One that comes now has its socket and its locks.
    let mut before = gateway.take_over()?;
    open(&world)?;
    says(&mut live)?;
    ensure!(gateway.status()?.0["draining"][0]["connections"] == 1);
    drop(live);
    ends(&mut before)
}

/// A process that was told to stop has no connections any more, or no time for them, when another one prepares.
#[test]
fn a_process_that_drains_waits_for_who_is_about_to_take_over() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    for (drain_timeout, is_open, signals) in [("10m", false, 1), ("300ms", true, 1), ("10m", true, 2)] {
        let of = || format!("{drain_timeout}, open: {is_open}, signals: {signals}");
        let config = format!("[gateway]\ndrain_timeout = '{drain_timeout}'\n{}", one_route());
        let mut gateway = world.gateway(&config)?;
        let live = open(&world)?;
        let socket = gateway.state_dir()?.join("admin.sock");
        gateway.process.signal(Signal::SIGTERM)?;
        eventually("the listener to close", || world.connect(443).is_err().then_some(()))?;
        let mut half = gateway.half_successor().with_context(of)?;
        if signals == 2 {
            gateway.process.signal(Signal::SIGTERM)?;
            ends(&mut gateway.process)?;
            ensure!(socket.exists(), "{}: the successor listens there", of());
            continue;
        }
        let _live = is_open.then_some(live);
        // Far longer than it takes to notice.
        thread::sleep(Duration::from_millis(600));
        half.freeze().with_context(of)?;
        half.say("{\"serve\":{}}", "{\"over\"").with_context(of)?;
        ends(&mut gateway.process)?;
        ensure!(socket.exists(), "{}: it is the successor's", of());
    }
    Ok(())
}

/// One that waits for the first check of a server which says nothing.
#[test]
fn a_successor_hears_signals_while_it_prepares() -> Result<()> {
    let world = World::new()?;
    let silent = |mut stream: TcpStream| std::io::copy(&mut stream, &mut std::io::sink()).map(drop);
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let _silent = Backend::start(&world.net.server, 7002, silent)?;
    let check = "health = { check = 'redis', interval = '20s', timeout = '20s' }";
    let gateway = world.gateway(&(one_route() + &pool("silent", &[7002], check)))?;
    let mut live = open(&world)?;
    let mut successor = gateway.successor()?;
    eventually("it to prepare", || {
        (successor.stderr().contains("taking over from") || !successor.is_running()).then_some(())
    })?;
    successor.signal(Signal::SIGHUP)?;
    thread::sleep(Duration::from_millis(300));
    ensure!(successor.is_running(), "{}", successor.output());
    successor.signal(Signal::SIGTERM)?;
    ends(&mut successor)?;
    let said = successor.stderr();
    ensure!(said.contains("told to stop before it has served") && !said.contains(" serves"), "{said}");
    says(&mut live)?;
    open(&world)?;
    ensure!(locked_by(&gateway)? == gateway.process.pid());
    gateway.reload()
}

/// systemd: the listening sockets are its own, and the successor becomes the main process.
#[test]
fn the_manager_keeps_its_sockets_and_is_told_of_the_new_process() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming("one"))?;
    let files = TempDir::new()?;
    let path = files.join("notify");
    let told = UnixDatagram::bind(&path)?;
    told.set_read_timeout(Some(Duration::from_secs(30)))?;
    let told = || -> Result<String> {
        let mut message = [0; 256];
        let length = told.recv(&mut message)?;
        Ok(String::from_utf8_lossy(&message[..length]).into_owned())
    };
    let socket = world.net.gateway.run(|| -> Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&"0.0.0.0:443".parse::<SocketAddr>()?.into())?;
        socket.listen(128)?;
        Ok(socket)
    })?;
    let launch = Launch { inherited: Arc::new(vec![socket.into()]), notify: Some(path), ..Launch::default() };
    let config = format!("[gateway]\nworkers = 3\n{}", one_route());
    let mut gateway = Gateway::start_with(&world.net.gateway, &config, launch)?;
    ensure!(told()? == "READY=1\n");
    for _ in 0..2 {
        gateway.replace()?;
        let mut heard = [told()?, told()?];
        heard.sort();
        ensure!(heard == [format!("MAINPID={}\n", gateway.process.pid()), "READY=1\n".into()], "{heard:?}");
        for _ in 0..8 {
            ensure!(world.ask("app1.example.com")? == "one");
        }
    }
    gateway.process.signal(Signal::SIGTERM)?;
    ensure!(told()? == "STOPPING=1\n");
    ensure!(gateway.process.wait(PATIENCE)?.success());
    // Its clients wait for the next one.
    let waiting = world.open("app1.example.com")?;
    gateway.start_again()?;
    ensure!(answer(waiting) == "one");
    Ok(())
}

/// `ExecReload=`: a reload as long as the program is the same, the start of another one if not.
#[test]
fn a_reload_starts_a_program_that_was_replaced() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let mut gateway = world.gateway(&one_route())?;
    let process = gateway.process.pid();
    let reloaded = gateway.cli(["reload", "--upgrade"])?;
    ensure!(reloaded.status.success() && locked_by(&gateway)? == process, "{reloaded:?}");
    ensure!(gateway.status()?.number("/config_generation") == 2);

    let files = TempDir::new()?;
    let program = files.join("snisplice");
    // Another process writes it: a test beside this one that starts a program would have the open file for a moment, too, and a
    // file that somebody may write cannot be run.
    checked_output(Command::new("cp").arg(binary()?).arg(&program))?;
    let upgrade = || -> Result<(bool, String)> {
        let output = files.join("output");
        let mut command = world.net.gateway.command(&program);
        command.args(["reload", "--upgrade", "-c"]).arg(gateway.config_file());
        // No pipes, which the new process would keep open.
        command.stdout(File::create(&output)?).stderr(File::create(&output)?);
        let status = command.status()?;
        Ok((status.success(), fs::read_to_string(output)?))
    };
    gateway.write_config("nonsense = 1\n")?;
    let (done, said) = upgrade()?;
    ensure!(!done && said.contains("unknown key"), "{said}");
    ensure!(locked_by(&gateway)? == process);
    gateway.write_config(&one_route())?;
    let (done, said) = upgrade()?;
    ensure!(done, "{said}");
    let next = locked_by(&gateway)?;
    ensure!(next != process, "{said}");
    let served = open(&world).map(drop);
    // Of the same program, so that this is a reload.
    let again = upgrade();
    let still = locked_by(&gateway)?;
    kill(Pid::from_raw(next.cast_signed()), Signal::SIGTERM)?;
    served?;
    ensure!(again?.0 && still == next);
    ends(&mut gateway.process)
}

/// What an older version says to a question that it does not know.
#[test]
fn a_process_that_cannot_be_taken_over_is_named() -> Result<()> {
    let world = World::new()?;
    let mut gateway = world.gateway(&one_route())?;
    let state_dir = gateway.state_dir()?;
    gateway.process.stop()?;
    let socket = UnixListener::bind(state_dir.join("admin.sock"))?;
    let old = thread::spawn(move || -> Result<()> {
        let (stream, _) = socket.accept()?;
        let mut stream = BufReader::new(stream);
        stream.read_line(&mut String::new())?;
        stream.get_mut().write_all(b"{\"error\":\"not a request of this version: unknown variant\"}\n")?;
        Ok(())
    });
    let mut successor = gateway.successor()?;
    let status = successor.wait(PATIENCE)?;
    old.join().expect("no assertion in there")?;
    ensure!(status.code() == Some(1), "{status}");
    let said = successor.stderr();
    ensure!(said.contains("cannot be taken over, only restarted: not a request of this version"), "{said}");
    Ok(())
}

/// In place of this gateway, a process that is taken over. `at_last`: what happens when its successor has nothing left to do but to
/// serve.
fn predecessor(
    gateway: &mut Gateway,
    at_last: impl FnOnce(&UnixStream) -> Result<()> + Send + 'static,
) -> Result<thread::JoinHandle<Result<UnixStream>>> {
    let state_dir = gateway.state_dir()?;
    gateway.process.stop()?;
    let socket = UnixListener::bind(state_dir.join("admin.sock"))?;
    let lock = File::create(state_dir.join("admin.lock"))?;
    Ok(thread::spawn(move || -> Result<UnixStream> {
        let (stream, _) = socket.accept()?;
        socket.set_nonblocking(true)?;
        let mut heard = BufReader::new(stream.try_clone()?).lines();
        let mut hear = |word: &str| -> Result<()> {
            let line = heard.next().context("it has closed the connection")??;
            ensure!(line.contains(word), "{line}");
            Ok(())
        };
        let say = |line: &str| (&stream).write_all(format!("{line}\n").as_bytes());
        hear("take_over")?;
        say(r#"{"ok":{"program":"0","process":1,"started_ms":1}}"#)?;
        let descriptors = [socket.as_raw_fd(), lock.as_raw_fd()];
        let line = IoSlice::new(b"{\"descriptors\":[\"admin_socket\",\"admin_lock\"]}\n");
        let with = ControlMessage::ScmRights(&descriptors);
        sendmsg::<()>(stream.as_raw_fd(), &[line], &[with], MsgFlags::empty(), None)?;
        say(r#"{"offered":{}}"#)?;
        hear("freeze")?;
        say(r#"{"frozen":{"kept":[]}}"#)?;
        hear("serve")?;
        at_last(&stream)?;
        say(r#"{"over":{}}"#)?;
        Ok(stream)
    }))
}

/// An operator drains a pool.
#[test]
fn what_is_drained_at_the_last_moment_stays_drained() -> Result<()> {
    let world = World::new()?;
    let mut gateway = world.gateway(&one_route())?;
    let drained = gateway.state_dir()?.join("drained");
    let before = predecessor(&mut gateway, move |_| Ok(fs::write(drained, "app1\n")?))?;
    gateway.take_over()?;
    let _stream = before.join().expect("no assertion in there")?;
    let status = gateway.status()?;
    let state = &status.server("app1", &server(7001))["state"];
    ensure!(state == "draining", "{status:?}");
    Ok(())
}

/// From that moment on nobody else serves.
#[test]
fn a_successor_serves_also_when_it_gets_no_more_descriptors() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let mut gateway = world.gateway(&format!("[gateway]\nadmin = '127.0.0.1:9900'\n{}", one_route()))?;
    let before = predecessor(&mut gateway, |stream| {
        let process = getsockopt(stream, PeerCredentials)?.pid();
        open_files(process.cast_unsigned(), 1)
    })?;
    let mut successor = gateway.successor()?;
    eventually("it to serve", || {
        (successor.stderr().contains(" serves") || !successor.is_running()).then_some(())
    })?;
    ensure!(successor.is_running(), "{}", successor.output());
    let _stream = before.join().expect("no assertion in there")?;
    open_files(successor.pid(), ENOUGH)?;
    gateway.process = successor;
    open(&world)?;
    gateway.reload()?;
    let _admin = dial(&world.net.gateway, "127.0.0.1:9900".parse()?)?;
    Ok(())
}
