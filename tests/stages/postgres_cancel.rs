//! PostgreSQL's CancelRequest: a connection of its own, which knows nothing of its session but a key.

use std::io::{Read, Write};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use rustls::ALL_VERSIONS;
use snisplice_tests::process::Process;
use snisplice_tests::pump::Duplex;
use snisplice_tests::skip::has_program;
use snisplice_tests::tls::Client;
use snisplice_tests::{Gateway, Leaf, Postgres, eventually, require};

use crate::config::{pool, route, server};
use crate::world::World;

const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const CANCEL_CODE: [u8; 4] = [0x04, 0xd2, 0x16, 0x2e];
const SLEEP: &str = "select pg_sleep(1000)";
const HOST: &str = "db.example.com";

/// Three servers in one pool, behind one route.
struct Scene {
    gateways: Vec<Gateway>,
    servers: Vec<Postgres>,
    world: World,
}

impl Scene {
    /// Gateways that end TLS on these ports, each with more of a configuration; servers with TLS if the pool has some.
    fn new(ports: &[u16], gateway: impl Fn(u16) -> String, of_pool: &str) -> Result<Self> {
        Self::with(ports, gateway, of_pool, |leaf| {
            format!("tls = 'terminate'\ncertificate = {}", leaf.toml())
        })
    }

    fn with(
        ports: &[u16],
        gateway: impl Fn(u16) -> String,
        of_pool: &str,
        of_route: impl Fn(&Leaf) -> String,
    ) -> Result<Self> {
        let world = World::new()?;
        let leaf = world.authority.leaf(&[HOST])?;
        let of_route = of_route(&leaf);
        let with_tls = (of_pool.contains("tls") || of_route.contains("passthrough")).then_some(&leaf);
        let servers = (0..3u16).map(|number| {
            Postgres::start(&world.net.server, 5431 + number, &format!("db{number}"), with_tls)
        });
        let servers = servers.collect::<Result<_>>()?;
        let of_pool = of_pool.replace("AUTHORITY", &world.authority.path.display().to_string());
        let gateways = ports.iter().map(|&port| {
            world.gateway(
                &(gateway(port)
                    + &format!(
                        "[[listener]]\nname = 'databases'\nbind = ['0.0.0.0:{port}']\nprotocol = 'postgres'\n"
                    )
                    + &route("db", HOST, &of_route)
                    + &pool("db", &[5431, 5432, 5433], &of_pool)),
            )
        });
        Ok(Self { gateways: gateways.collect::<Result<_>>()?, servers, world })
    }

    /// TLS with a gateway, as PostgreSQL asks for it.
    fn tls(&self, port: u16) -> Result<Duplex> {
        let mut socket = self.world.connect(port)?;
        socket.write_all(SSL_REQUEST)?;
        let mut answer = [0];
        socket.read_exact(&mut answer)?;
        assert_eq!(answer, *b"S");
        Client::new(&self.world.authority.path, ALL_VERSIONS, None)?.connect(socket, HOST)
    }

    fn session(&self, port: u16) -> Result<Session> {
        let mut session = Session { tls: self.tls(port)?, key: Vec::new() };
        let parameters = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
        session
            .tls
            .writer
            .write_all(&[&(parameters.len() as u32 + 4).to_be_bytes()[..], parameters].concat())?;
        session.key = session.until(b'K')?;
        session.until(b'Z')?;
        Ok(session)
    }

    /// Waits until so many sessions do what is to be cancelled: a request that comes too early cancels nothing.
    fn wait_asleep(&self, sessions: u32) -> Result<()> {
        let asleep =
            format!("select count(*) from pg_stat_activity where query = '{SLEEP}' and state = 'active'");
        eventually("the sessions to sleep", || {
            let counts = self.servers.iter().map(|server| server.sql(&self.world.net.server, &asleep));
            let counts = counts.map(|count| count.ok()?.trim().parse::<u32>().ok());
            (counts.sum::<Option<u32>>()? == sessions).then_some(())
        })
    }

    fn cancel(&self, port: u16, key: &[u8], encrypted: bool) -> Result<()> {
        let request = [&(key.len() as u32 + 8).to_be_bytes()[..], &CANCEL_CODE, key].concat();
        let mut rest = Vec::new();
        if encrypted {
            let mut tls = self.tls(port)?;
            // In two pieces: it is not known for what it is before it is whole.
            tls.writer.write_all(&request[..9])?;
            tls.writer.write_all(&request[9..])?;
            let _ = tls.reader.read_to_end(&mut rest);
        } else {
            let mut socket = self.world.connect(port)?;
            socket.write_all(&request)?;
            let _ = socket.read_to_end(&mut rest);
        }
        assert!(rest.is_empty(), "{}", rest.escape_ascii());
        Ok(())
    }
}

struct Session {
    tls: Duplex,
    key: Vec<u8>,
}

impl Session {
    /// The content of the next message of this kind.
    fn until(&mut self, kind: u8) -> Result<Vec<u8>> {
        loop {
            let mut header = [0; 5];
            self.tls.reader.read_exact(&mut header)?;
            let length = u32::from_be_bytes(header[1..].try_into()?) as usize - 4;
            let mut content = vec![0; length];
            self.tls.reader.read_exact(&mut content)?;
            if header[0] == kind {
                return Ok(content);
            }
        }
    }

    fn ask(&mut self, query: &str) -> Result<()> {
        let query = [b"Q", &(query.len() as u32 + 5).to_be_bytes()[..], query.as_bytes(), b"\0"].concat();
        Ok(self.tls.writer.write_all(&query)?)
    }

    /// One value.
    fn value(&mut self, query: &str) -> Result<String> {
        self.ask(query)?;
        let row = self.until(b'D')?;
        self.until(b'Z')?;
        Ok(String::from_utf8(row[6..].to_vec())?)
    }

    /// A query that is cancelled ends with an error, and the session goes on.
    fn is_cancelled(&mut self) -> Result<()> {
        let error = self.until(b'E')?;
        let error = String::from_utf8_lossy(&error).into_owned();
        assert!(
            error.contains("57014") && error.contains("canceling statement due to user request"),
            "{error}"
        );
        self.until(b'Z')?;
        assert_eq!(self.value("select 'still here'")?, "still here");
        Ok(())
    }
}

/// Cancels six sessions of a gateway in turn by requests to another, or the same.
fn cancel_all(scene: &Scene, port: u16, by: u16) -> Result<()> {
    let mut sessions = (0..6).map(|_| scene.session(port)).collect::<Result<Vec<_>>>()?;
    let mut names = sessions.iter_mut().map(|session| session.value("show cluster_name"));
    let mut names = names.by_ref().collect::<Result<Vec<_>>>()?;
    names.sort();
    names.dedup();
    assert_eq!(names, ["db0", "db1", "db2"], "the pool's servers take turns");
    for session in &mut sessions {
        session.ask(SLEEP)?;
    }
    scene.wait_asleep(6)?;
    for (number, session) in sessions.iter_mut().enumerate() {
        scene.cancel(by, &session.key, number % 2 == 1)?;
        session.is_cancelled()?;
    }
    // A session that is over cannot be cancelled any more: its key is forgotten.
    let key = sessions.remove(0).key;
    scene.gateways[0].wait_status("it to be over", |status| status.route("db", "active") == 5)?;
    scene.cancel(by, &key, false)
}

#[test]
fn every_cancel_finds_its_session_among_several_servers() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    let scene = Scene::new(&[5432], |_| String::new(), "")?;
    cancel_all(&scene, 5432, 5432)?;
    let gateway = &scene.gateways[0];
    let refused = gateway.status()?.rejects("databases", "postgres_cancel_cleartext");
    assert_eq!(refused, 1, "that of the session that was over");
    scene.cancel(5432, &[7; 8], true)?;
    let log = eventually("the lines of the cancels", || {
        let log = gateway.access_log().ok()?;
        log.iter().any(|line| line["close_reason"] == "cancel_unknown").then_some(log)
    })?;
    let cancels: Vec<_> = log.iter().filter(|line| line["close_reason"] == "cancel_request").collect();
    assert_eq!(cancels.len(), 6, "{log:?}");
    for line in &cancels {
        assert!(line["route"] == "db" && line["server"].is_string(), "{line}");
    }
    assert!(cancels.iter().any(|line| line["server"] == server(5433)), "{cancels:?}");
    Ok(())
}

#[test]
fn a_cancel_reaches_a_server_that_is_spoken_tls_to_and_told_the_client() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    let tls = format!("tls = {{ ca = 'AUTHORITY', server_name = '{HOST}' }}");
    let scene = Scene::new(&[5432], |_| String::new(), &tls)?;
    cancel_all(&scene, 5432, 5432)
}

#[test]
fn a_cancel_that_comes_to_another_gateway_is_passed_on() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    // Each has a number of its own, and knows the other; a third knows nobody.
    let peers = |port: u16| match port {
        5001 => "[gateway]\npeer_id = 1\npeers = [{ id = 2, address = '127.0.0.1:5002' }]\n".to_owned(),
        5002 => "[gateway]\npeer_id = 2\npeers = [{ id = 1, address = '127.0.0.1:5001' }]\n".to_owned(),
        _ => "[gateway]\npeer_id = 3\n".to_owned(),
    };
    let scene = Scene::new(&[5001, 5002, 5003], peers, "")?;
    cancel_all(&scene, 5001, 5002)?;
    let forwarded = scene.gateways[1].status()?.rejects("databases", "postgres_cancel_forwarded");
    // Of six, three in clear text; and one for a session that is over, which its gateway does not know.
    assert_eq!(forwarded, 4);
    assert_eq!(scene.gateways[0].status()?.rejects("databases", "postgres_cancel_cleartext"), 1);
    let mut session = scene.session(5001)?;
    assert_eq!(session.key[..2], [0, 1], "the number of its gateway");
    session.ask(SLEEP)?;
    scene.wait_asleep(1)?;
    scene.cancel(5003, &session.key, false)?;
    scene.gateways[2].wait_status("it to be refused", |status| {
        status.rejects("databases", "postgres_cancel_cleartext") == 1
    })?;
    scene.cancel(5001, &session.key, false)?;
    session.is_cancelled()
}

#[test]
fn ctrl_c_in_psql_cancels_its_query() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    let scene = Scene::new(&[5432], |_| String::new(), "")?;
    let mut psqls = Vec::new();
    for _ in 0..3 {
        let mut psql = scene.world.net.client.command("psql");
        let authority = scene.world.authority.path.display();
        psql.args(["-X", "-Atc", SLEEP]).arg(format!(
            "host={HOST} hostaddr=10.0.1.1 user=postgres dbname=postgres sslmode=verify-full sslrootcert={authority}"
        ));
        psqls.push(Process::spawn("psql", psql)?);
    }
    scene.wait_asleep(3)?;
    for mut psql in psqls {
        psql.signal(Signal::SIGINT)?;
        psql.wait(snisplice_tests::wait::patience()).context("Ctrl-C did nothing")?;
        let said = psql.stderr();
        assert!(said.contains("canceling statement due to user request"), "{said}");
    }
    Ok(())
}

#[test]
fn a_cancel_that_is_passed_through_finds_its_server_by_the_clients_address() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    let passthrough = |_: &Leaf| "tls = 'passthrough'".to_owned();
    let scene = Scene::with(&[5432], |_| String::new(), "balance = 'source-hash'", passthrough)?;
    let mut sessions = (0..3).map(|_| scene.session(5432)).collect::<Result<Vec<_>>>()?;
    for session in &mut sessions {
        session.ask(SLEEP)?;
    }
    scene.wait_asleep(3)?;
    for session in &mut sessions {
        scene.cancel(5432, &session.key, true)?;
        session.is_cancelled()?;
    }
    Ok(())
}

#[test]
fn a_cancel_goes_on_through_pgbouncer() -> Result<()> {
    require!(has_program("postgres") && has_program("pgbouncer"), "postgresql or pgbouncer is not installed");
    let scene = Scene::new(&[5432], |_| String::new(), "")?;
    let gateway = &scene.gateways[0];
    // The same servers, each behind a PgBouncer.
    let bouncers = (0..3u16)
        .map(|number| scene.servers[usize::from(number)].bouncer(&scene.world.net.server, 6431 + number));
    let _bouncers = bouncers.collect::<Result<Vec<_>>>()?;
    let config = std::fs::read_to_string(gateway.config_file())?;
    gateway.write_config(&config.replace(":543", ":643").replace("0.0.0.0:6432", "0.0.0.0:5432"))?;
    gateway.reload()?;
    cancel_all(&scene, 5432, 5432)
}
