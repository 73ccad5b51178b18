//! Two gateways in one network namespace. Each knows of the other's connections only what lies in the bpf file system.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::links::PinnedLink;
use snisplice::kernel::probe::{self, Answer};
use snisplice_tests::process::checked_output;
use snisplice_tests::topology::{self, Triangle};
use snisplice_tests::{Backend, BpfFs, Gateway, TempDir, eventually, gateway};

use crate::case::Expect;
use crate::ends::{SERVER_PORT, SocketOptions};

/// Where the listeners of both are, and the directories of their pins.
const GATEWAYS: [(u16, &str); 2] = [(444, "a"), (445, "b")];

/// The ports that both take for their connections to the server.
const SOURCES: &str = "20000-20255";
const FIRST_SOURCE: u16 = 20000;

/// More than half of the ports: some are wanted by both, wherever in the range each begins.
const CROWD: usize = 120;

struct Scene {
    net: Triangle,
    gateways: Vec<Gateway>,
    _backend: Backend,
    _bpffs: BpfFs,
    files: TempDir,
}

impl Scene {
    /// A server that says everything back, and no gateway.
    fn new() -> Result<Self> {
        let files = TempDir::new()?;
        let bpffs = BpfFs::mount_in(files.path())?;
        let net = Triangle::new()?;
        let listener = SocketOptions::default().listen(&net.server)?;
        let backend = Backend::serve(&net.server, listener, |mut stream| {
            let mut word = [0; 8];
            while stream.read_exact(&mut word).is_ok() {
                stream.write_all(&word)?;
            }
            Ok(())
        })?;
        Ok(Self { net, gateways: Vec::new(), _backend: backend, _bpffs: bpffs, files })
    }

    /// One more gateway, with its pins beside those of the others.
    fn start(&mut self) -> Result<&mut Gateway> {
        let (port, directory) = GATEWAYS[self.gateways.len()];
        let bpffs = self.files.join(BpfFs::NAME).join(directory);
        let server = SocketAddr::new(self.net.server_addresses[0], SERVER_PORT);
        let config = format!(
            "[gateway]\nbpffs = '{}'\nsource_ports = '{SOURCES}'\n\
             [[listener]]\nname = 'l'\nbind = ['0.0.0.0:{port}']\nprotocol = 'tcp'\n\
             [[route]]\nname = 'r'\nlistener = 'l'\nbackends = [{{ pool = 'p' }}]\n\
             [[pool]]\nname = 'p'\nservers = [{{ address = '{server}' }}]\nconnect_timeout = '6s'\n",
            bpffs.display()
        );
        self.gateways.push(Gateway::start(&self.net.gateway, &config)?);
        Ok(self.gateways.last_mut().expect("just pushed"))
    }

    fn connect(&self, gateway: usize) -> Result<TcpStream> {
        SocketOptions::default().dial(&self.net.client, topology::gateway(GATEWAYS[gateway].0))
    }

    /// So many connections through a gateway, one after another, all of them open.
    fn crowd(&self, gateway: usize, size: usize) -> Result<Vec<TcpStream>> {
        let one = |number: usize| -> Result<TcpStream> {
            let mut stream = self.connect(gateway)?;
            echo(&mut stream, number as u64)?;
            Ok(stream)
        };
        let one = |number| one(number).with_context(|| format!("connection {number} of gateway {gateway}"));
        (0..size).map(one).collect()
    }

    /// Checks that so many connections of a gateway are live, all in the packet tier.
    fn spliced(&self, gateway: usize, size: usize) -> Result<()> {
        eventually("all in the packet tier", || {
            let live = self.gateways[gateway].connections().ok()?;
            (live.len() == size && live.iter().all(|line| Expect::Packet.check(line).is_ok())).then_some(())
        })
        .with_context(|| format!("{:?}", self.gateways[gateway].connections()))
    }
}

fn echo(stream: &mut TcpStream, word: u64) -> Result<()> {
    stream.write_all(&word.to_le_bytes())?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    ensure!(answer == word.to_le_bytes(), "{answer:?} instead of {word}");
    Ok(())
}

#[test]
fn two_gateways_with_the_same_source_ports_do_not_meet() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.start()?;
    scene.start()?;
    let crowds = thread::scope(|scope| {
        let crowds = [0, 1].map(|gateway| {
            (
                gateway,
                scope.spawn({
                    let scene = &scene;
                    move || scene.crowd(gateway, CROWD)
                }),
            )
        });
        crowds.map(|(gateway, crowd)| (gateway, crowd.join().expect("no assertion in there")))
    });
    for (gateway, crowd) in crowds {
        // None has been taken for one of the other gateway.
        let mut crowd = crowd?;
        for (number, stream) in crowd.iter_mut().enumerate() {
            echo(stream, !(number as u64))
                .with_context(|| format!("connection {number} of gateway {gateway}"))?;
        }
        scene.spliced(gateway, CROWD)?;
    }
    Ok(())
}

#[test]
fn gateways_with_the_same_source_ports_are_told_so() -> Result<()> {
    let mut scene = Scene::new()?;
    let first = scene.start()?.pins()?;
    let second = scene.start()?;
    let said = second.process.output();
    ensure!(said.contains("another gateway on this host uses source ports 20000-20255"), "{said}");
    ensure!(said.contains(&first.display().to_string()), "{said}");
    let doctor = String::from_utf8_lossy(&second.cli(["doctor"])?.stdout).into_owned();
    ensure!(doctor.contains(&format!("20000-20255 ({})", first.display())), "{doctor}");
    Ok(())
}

/// As if a gateway that we know nothing of had the first port that is tried.
#[test]
fn a_port_without_an_answer_is_left_for_another() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.start()?;
    // The set has room for one port, and forgets none.
    let rules = "add table ip theirs; add set ip theirs taken { type inet_service; size 1; flags dynamic; }; \
                 add chain ip theirs in { type filter hook input priority 0; }; \
                 add rule ip theirs in tcp flags syn add @taken { tcp sport }; \
                 add rule ip theirs in tcp sport @taken drop";
    checked_output(scene.net.server.command("nft").arg(rules))?;
    let _crowd = scene.crowd(0, 4)?;
    scene.spliced(0, 4)
}

/// Of every 64 ports, 20 in a row are those of sockets that are not ours: more than are tried for one connection. Wherever
/// it begins, the crowd comes to such a row.
#[test]
fn ports_that_others_have_taken_in_a_row_are_left_for_those_elsewhere() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.start()?;
    let _taken: Vec<TcpListener> = scene.net.gateway.run(|| {
        let taken = (0..256).filter(|number| number % 64 < 20);
        taken.map(|number| TcpListener::bind(("0.0.0.0", FIRST_SOURCE + number))).collect::<io::Result<_>>()
    })?;
    let _crowd = scene.crowd(0, 48)?;
    scene.spliced(0, 48)
}

#[test]
fn unloading_one_gateway_leaves_the_connections_of_the_other() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.start()?;
    scene.start()?;
    let [mut a, mut b] = [scene.crowd(0, 1)?, scene.crowd(1, 1)?];
    scene.spliced(0, 1)?;
    scene.spliced(1, 1)?;
    let gateway = &mut scene.gateways[0];
    gateway.kill()?;
    echo(&mut a[0], 1).context("without its gateway")?;
    // As a program that watches links does; they stay while they are open. None on a kernel without tcx.
    let pins = fs::read_dir(gateway.pins()?)?.collect::<io::Result<Vec<_>>>()?;
    let links = pins.iter().filter(|pin| pin.file_name().to_string_lossy().starts_with("link-"));
    let links: Vec<PinnedLink> =
        links.map(|link| PinnedLink::from_pin(link.path())).collect::<Result<_, _>>()?;
    ensure!(!links.is_empty() || !matches!(probe::tcx(), Answer::Yes), "no links");
    let config = gateway.config_file();
    let mut unload = scene.net.gateway.command(gateway::binary()?);
    checked_output(unload.args(["unload", "--force", "-c"]).arg(config))?;
    for word in 2..5 {
        echo(&mut b[0], word).context("of the gateway that stays")?;
    }
    scene.crowd(1, 3).context("new connections")?;
    a[0].set_read_timeout(Some(Duration::from_millis(500)))?;
    ensure!(echo(&mut a[0], 2).is_err(), "nobody forwards it");
    Ok(())
}
