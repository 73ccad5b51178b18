//! sniff, route: by the name in an Encrypted ClientHello, between Go's and rustls' clients and Go's servers.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Result, ensure};
use rustls::SupportedProtocolVersion;
use snisplice_tests::ech::{EchKey, NO_ENDS, PUBLIC, ends, server};
use snisplice_tests::process::checked_output;
use snisplice_tests::tls::Client;
use snisplice_tests::topology;
use snisplice_tests::{Backend, Gateway, Process, TempDir, require};

use crate::config::{listener, passthrough, pool};
use crate::tolerance::metrics;
use crate::world::World;

const HIDDEN: &str = "app1.example.com";

/// Another address of the client.
const OTHER: &str = "10.0.1.3";

/// Two servers, one for a hidden name and one for the public one, and a gateway in front of them.
struct Scene {
    world: World,
    files: TempDir,
    key: EchKey,
    config: String,
    gateway: Gateway,
    _servers: Vec<Process>,
}

/// How a [`Scene`] is.
#[derive(Clone, Copy, Default)]
struct Setting {
    /// The server of the hidden name has no key.
    split: bool,
    /// It asks for another key share first.
    retry: bool,
    /// TLS ends at the gateway, for both names.
    terminate: bool,
    /// There is no server of the hidden name: the test has its own.
    absent: bool,
    /// More of the listener's `ech`.
    extra: &'static str,
}

impl Scene {
    fn new(setting: Setting) -> Result<Self> {
        let Setting { split, retry, terminate, absent, extra } = setting;
        let (world, files) = (World::new()?, TempDir::new()?);
        let key = EchKey::new(&files, "key.pem")?;
        let started = |name, port, key, retry| {
            server(&world.net.server, &world.authority, name, topology::server(port), key, retry)
        };
        let mut servers = vec![started(PUBLIC, 7002, Some(&key), false)?];
        if !absent {
            servers.push(started(HIDDEN, 7001, Some(&key).filter(|_| !split), retry)?);
        }
        let routes = [("hidden", HIDDEN), ("public", PUBLIC)].map(|(route, name)| -> Result<String> {
            if !terminate {
                return Ok(passthrough(route, name));
            }
            let leaf = world.authority.leaf(&[name])?;
            Ok(crate::config::route(
                route,
                name,
                &format!("tls = 'terminate'\ncertificate = {}", leaf.toml()),
            ))
        });
        let routes = routes.into_iter().collect::<Result<String>>()?;
        let mode = if split { "split" } else { "shared" };
        let ech = format!("ech = {{ keys = ['{}'], mode = '{mode}'{extra} }}", key.file.display());
        let config = "[gateway]\nadmin = '127.0.0.1:9900'\n".to_owned()
            + &listener(&format!("hello_timeout = '2s'\n{ech}"))
            + &routes
            + &pool("hidden", &[7001], "")
            + &pool("public", &[7002], "");
        let gateway = world.gateway(&config)?;
        Ok(Self { world, files, key, config, gateway, _servers: servers })
    }

    /// What Go's client of the hidden name prints that knows this key.
    fn ask(&self, key: &EchKey) -> Result<String> {
        let mut command = self.world.net.client.command(ends().unwrap());
        command.args(["client", "10.0.1.1:443", HIDDEN]).arg(&self.world.authority.path).arg(&key.config);
        Ok(checked_output(&mut command)?.trim().to_owned())
    }

    /// rustls' client.
    fn client(&self) -> Result<Client> {
        Client::encrypting(&self.world.authority.path, &self.key.config)
    }

    fn counted(&self, result: &str) -> Result<bool> {
        let metrics = metrics(&self.world.net.gateway)?;
        Ok(metrics.contains(&format!("snisplice_ech_total{{listener=\"databases\",result=\"{result}\"}} 1")))
    }
}

/// In both modes, with and without a HelloRetryRequest.
fn settings() -> impl Iterator<Item = Setting> {
    [(false, false), (false, true), (true, false), (true, true)].into_iter().map(|(split, retry)| Setting {
        split,
        retry,
        ..Setting::default()
    })
}

#[test]
fn the_encrypted_name_chooses_the_route_and_the_server_accepts() -> Result<()> {
    require!(ends().is_some(), NO_ENDS);
    for setting in settings() {
        let scene = Scene::new(setting)?;
        let answer = scene.ask(&scene.key)?;
        ensure!(answer == format!("{HIDDEN} true"), "{answer}; {} {}", setting.split, setting.retry);
        let line = &scene.gateway.wait_access_log(1)?[0];
        assert_eq!((&line["sni"], &line["sni_outer"]), (&HIDDEN.into(), &PUBLIC.into()));
        assert_eq!((&line["ech"], &line["route"]), (&"accepted".into(), &"hidden".into()));
        ensure!(scene.counted("accepted")?);
    }
    Ok(())
}

#[test]
fn rustls_client_is_accepted_and_its_bytes_come_back_whole() -> Result<()> {
    const BYTES: usize = 300_000;
    require!(ends().is_some(), NO_ENDS);
    for setting in settings() {
        let scene = Scene::new(setting)?;
        // It fails if ECH is not accepted.
        let mut duplex = scene.client()?.connect(scene.world.connect(443)?, HIDDEN)?;
        let mut greeting = vec![0; HIDDEN.len() + 1];
        duplex.reader.read_exact(&mut greeting)?;
        assert_eq!(greeting, format!("{HIDDEN}\n").into_bytes());
        let said: Vec<u8> = (0..BYTES).map(|at| (at / 7) as u8).collect();
        let mut heard = vec![0; BYTES];
        std::thread::scope(|scope| -> Result<()> {
            let writer = scope.spawn(|| duplex.writer.write_all(&said));
            duplex.reader.read_exact(&mut heard)?;
            Ok(writer.join().expect("it does not panic")?)
        })?;
        ensure!(said == heard, "{} {}", setting.split, setting.retry);
        drop(duplex);
        let line = &scene.gateway.wait_access_log(1)?[0];
        for counted in ["bytes_in", "bytes_out"] {
            let bytes = line[counted].as_u64().unwrap_or_default();
            ensure!((BYTES as u64..BYTES as u64 * 11 / 10).contains(&bytes), "{line}");
        }
    }
    Ok(())
}

/// A server that takes the inner ClientHello for the client's own does not confirm it in its HelloRetryRequest: the client then
/// asks for the public name, at a server that has none.
#[test]
fn a_server_that_knows_no_ech_gets_no_clienthello_that_is_not_for_it() -> Result<()> {
    require!(ends().is_some(), NO_ENDS);
    let scene = Scene::new(Setting { split: true, absent: true, ..Setting::default() })?;
    let leaf = scene.world.authority.leaf(&[HIDDEN])?;
    let mut command = scene.world.net.server.command("openssl");
    command.args(["s_server", "-accept", "7001", "-rev", "-groups", "P-384", "-cert"]).arg(&leaf.chain);
    let mut openssl = Process::spawn("s_server", {
        command.arg("-key").arg(&leaf.key);
        command
    })?;
    openssl.wait_listening(&[7001])?;
    let error = scene.ask(&scene.key).unwrap_err();
    ensure!(format!("{error:#}").contains("illegal parameter"), "{error:#}");
    let line = &scene.gateway.wait_access_log(1)?[0];
    assert_eq!((&line["ech"], &line["route"]), (&"accepted".into(), &"hidden".into()));
    assert_eq!(
        (&line["close_reason"], &line["tls_error"]),
        (&"tls_handshake_failed".into(), &"protocol_violation".into())
    );
    Ok(())
}

#[test]
fn in_split_mode_neither_end_may_keep_the_other_waiting() -> Result<()> {
    require!(ends().is_some(), NO_ENDS);
    for retry in [false, true] {
        // Without a retry: a server that says nothing.
        let scene = Scene::new(Setting { split: true, retry, absent: !retry, ..Setting::default() })?;
        let silent = |mut stream: TcpStream| stream.read_to_end(&mut Vec::new()).map(drop);
        let _server = (!retry).then(|| Backend::start(&scene.world.net.server, 7001, silent)).transpose()?;
        let mut client = scene.world.connect(443)?;
        client.write_all(&scene.client()?.hello(HIDDEN)?)?;
        // The HelloRetryRequest, if any, and then the end.
        let _ = client.read_to_end(&mut Vec::new());
        let line = &scene.gateway.wait_access_log(1)?[0];
        let reason = if retry { "tls_handshake_failed" } else { "server_tls_failed" };
        assert_eq!((&line["close_reason"], &line["tls_error"]), (&reason.into(), &"timeout".into()));
    }
    Ok(())
}

#[test]
fn one_client_address_has_so_many_opened_and_no_other_pays_for_it() -> Result<()> {
    require!(ends().is_some(), NO_ENDS);
    let scene = Scene::new(Setting { extra: ", openings = 1", ..Setting::default() })?;
    scene.world.net.client.address("eth0", &format!("{OTHER}/24"))?;
    let client = scene.client()?;
    let refused = (0..100).find_map(|_| client.connect(scene.world.connect(443).ok()?, HIDDEN).err());
    let refused = refused.map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(refused.contains("InternalError"), "{refused}");
    scene.gateway.wait_status("one is turned away", |status| status.rejects("databases", "ech_rate") == 1)?;
    // In the same moment: another client, and one of the same address without ECH.
    let other = scene.world.connect_from(OTHER.parse()?, topology::gateway(443))?;
    client.connect(other, HIDDEN)?;
    let plain: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
    Client::new(&scene.world.authority.path, plain, None)?.connect(scene.world.connect(443)?, HIDDEN)?;
    Ok(())
}

/// What Chrome sends to everyone.
#[test]
fn the_grease_of_a_browser_is_routed_by_the_name_in_the_clear() -> Result<()> {
    require!(ends().is_some(), NO_ENDS);
    let scene = Scene::new(Setting { split: true, absent: true, ..Setting::default() })?;
    scene.gateway.write_config(&scene.config.replace(HIDDEN, "app1.redis.example"))?;
    scene.gateway.reload()?;
    let hello = include_bytes!("../data/client-hellos/chromium-156.bin");
    let _server = Backend::start(&scene.world.net.server, 7001, move |mut stream| {
        let mut heard = vec![0; hello.len()];
        stream.read_exact(&mut heard)?;
        stream.write_all(if heard == hello { b"untouched" } else { b"changed" })
    })?;
    let mut client = scene.world.connect(443)?;
    client.write_all(hello)?;
    let mut answer = [0; 9];
    client.read_exact(&mut answer)?;
    assert_eq!(&answer, b"untouched");
    drop(client);
    let line = &scene.gateway.wait_access_log(1)?[0];
    assert_eq!((&line["ech"], &line["route"]), (&"outdated_or_grease".into(), &"hidden".into()));
    Ok(())
}

#[test]
fn a_client_with_an_outdated_key_gets_the_new_one_from_the_server_of_the_public_name() -> Result<()> {
    require!(ends().is_some(), NO_ENDS);
    let scene = Scene::new(Setting::default())?;
    let old = EchKey::new(&scene.files, "old.pem")?;
    assert_eq!(scene.ask(&old)?, format!("rejected, retry with {}", scene.key.config));
    let line = &scene.gateway.wait_access_log(1)?[0];
    assert_eq!((&line["sni"], &line["route"]), (&PUBLIC.into(), &"public".into()));
    assert_eq!((&line["ech"], &line["sni_outer"]), (&"outdated_or_grease".into(), &serde_json::Value::Null));
    ensure!(scene.counted("outdated_or_grease")?);
    Ok(())
}

#[test]
fn where_tls_ends_at_the_gateway_clients_are_told_to_come_without_ech() -> Result<()> {
    require!(ends().is_some(), NO_ENDS);
    let scene = Scene::new(Setting { terminate: true, ..Setting::default() })?;
    // Under the certificate of the public name, and with no other key: ECH is off (RFC 9849, section 6.1.6).
    assert_eq!(scene.ask(&scene.key)?, "rejected, retry with");
    let line = &scene.gateway.wait_access_log(1)?[0];
    assert_eq!((&line["ech"], &line["route"]), (&"terminated".into(), &"public".into()));
    Ok(())
}

#[test]
fn a_reload_takes_a_new_key_beside_the_old_one() -> Result<()> {
    require!(ends().is_some(), NO_ENDS);
    let scene = Scene::new(Setting::default())?;
    let new = EchKey::new(&scene.files, "new.pem")?;
    let both = format!("['{}', '{}']", new.file.display(), scene.key.file.display());
    let config = scene.config.replace(&format!("['{}']", scene.key.file.display()), &both);
    ensure!(config.contains(&both), "{config}");
    scene.gateway.write_config(&config)?;
    scene.gateway.reload()?;
    assert_eq!(scene.ask(&scene.key)?, format!("{HIDDEN} true"));
    // The gateway opens it and chooses the server by it. That one does not know the key yet, and has no certificate for the
    // public name.
    ensure!(scene.ask(&new).is_err());
    let lines = scene.gateway.wait_access_log(2)?;
    assert_eq!((&lines[1]["ech"], &lines[1]["route"]), (&"accepted".into(), &"hidden".into()));
    Ok(())
}
