//! sniff, route: by the name in an Encrypted ClientHello, between Go's client and servers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use snisplice_tests::process::checked_output;
use snisplice_tests::{Gateway, Process, TempDir, gateway, require};

use crate::config::{listener, passthrough, pool};
use crate::tolerance::metrics;
use crate::world::World;

const PUBLIC: &str = "gateway.example.com";
const HIDDEN: &str = "app1.example.com";

/// The program of `ends.go`; `None`: there is no Go that knows ECH (1.24).
fn ends() -> Option<&'static Path> {
    static ENDS: OnceLock<Option<(TempDir, PathBuf)>> = OnceLock::new();
    let build = || {
        let files = TempDir::new().ok()?;
        let program = files.join("ends");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("stages/ech/ends.go");
        let built = Command::new("go").arg("build").arg("-o").arg(&program).arg(source).output().ok()?;
        if !built.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&built.stderr));
        }
        built.status.success().then_some((files, program))
    };
    ENDS.get_or_init(build).as_ref().map(|(_, program)| &**program)
}

/// A key, made by `snisplice ech-key`: its file, and what clients are told.
struct EchKey {
    file: PathBuf,
    config: String,
}

impl EchKey {
    fn new(files: &TempDir, name: &str) -> Result<Self> {
        let file = files.join(name);
        let mut command = Command::new(gateway::binary()?);
        command.args(["ech-key", "--public-name", PUBLIC, "-o"]).arg(&file);
        let said = checked_output(&mut command)?;
        let config = said.lines().find_map(|line| line.strip_prefix("ech=")).context("no `ech=`")?;
        Ok(Self { file, config: config.to_owned() })
    }
}

/// Two servers with a key, one for a hidden name and one for the public one, and a gateway in front of them.
struct Scene {
    world: World,
    files: TempDir,
    key: EchKey,
    config: String,
    gateway: Gateway,
    _servers: [Process; 2],
}

impl Scene {
    /// `retry`: the server of the hidden name asks for another key share first. `terminate`: TLS ends at the gateway, for both names.
    fn new(program: &Path, retry: bool, terminate: bool) -> Result<Self> {
        let (world, files) = (World::new()?, TempDir::new()?);
        let key = EchKey::new(&files, "key.pem")?;
        let server = |name: &str, port: u16, retry: bool| -> Result<Process> {
            let leaf = world.authority.leaf(&[name])?;
            let mut command = world.net.server.command(program);
            command
                .args(["server", &format!("10.0.2.2:{port}")])
                .args([&leaf.chain, &leaf.key])
                .arg(&key.file);
            command.args(retry.then_some("retry"));
            let mut process = Process::spawn(name, command)?;
            process.wait_listening(&[port])?;
            Ok(process)
        };
        let servers = [server(HIDDEN, 7001, retry)?, server(PUBLIC, 7002, false)?];
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
        let config = "[gateway]\nadmin = '127.0.0.1:9900'\n".to_owned()
            + &listener(&format!("ech = {{ keys = ['{}'] }}", key.file.display()))
            + &routes
            + &pool("hidden", &[7001], "")
            + &pool("public", &[7002], "");
        let gateway = world.gateway(&config)?;
        Ok(Self { world, files, key, config, gateway, _servers: servers })
    }

    /// What a client of the hidden name prints that knows this key.
    fn ask(&self, program: &Path, key: &EchKey) -> Result<String> {
        let mut command = self.world.net.client.command(program);
        command.args(["client", "10.0.1.1:443", HIDDEN]).arg(&self.world.authority.path).arg(&key.config);
        Ok(checked_output(&mut command)?.trim().to_owned())
    }

    fn counted(&self, result: &str) -> Result<bool> {
        let metrics = metrics(&self.world.net.gateway)?;
        Ok(metrics.contains(&format!("snisplice_ech_total{{listener=\"databases\",result=\"{result}\"}} 1")))
    }
}

#[test]
fn the_encrypted_name_chooses_the_route_and_the_server_accepts() -> Result<()> {
    require!(ends().is_some(), "there is no Go from 1.24 on, whose servers know ECH");
    let program = ends().context("just seen")?;
    for retry in [false, true] {
        let scene = Scene::new(program, retry, false)?;
        assert_eq!(scene.ask(program, &scene.key)?, format!("{HIDDEN} true"), "retry: {retry}");
        let line = &scene.gateway.wait_access_log(1)?[0];
        assert_eq!((&line["sni"], &line["sni_outer"]), (&HIDDEN.into(), &PUBLIC.into()));
        assert_eq!((&line["ech"], &line["route"]), (&"accepted".into(), &"hidden".into()));
        ensure!(scene.counted("accepted")?);
    }
    Ok(())
}

#[test]
fn a_client_with_an_outdated_key_gets_the_new_one_from_the_server_of_the_public_name() -> Result<()> {
    require!(ends().is_some(), "there is no Go from 1.24 on, whose servers know ECH");
    let program = ends().context("just seen")?;
    let scene = Scene::new(program, false, false)?;
    let old = EchKey::new(&scene.files, "old.pem")?;
    assert_eq!(scene.ask(program, &old)?, format!("rejected, retry with {}", scene.key.config));
    let line = &scene.gateway.wait_access_log(1)?[0];
    assert_eq!((&line["sni"], &line["route"]), (&PUBLIC.into(), &"public".into()));
    assert_eq!((&line["ech"], &line["sni_outer"]), (&"outdated_or_grease".into(), &serde_json::Value::Null));
    ensure!(scene.counted("outdated_or_grease")?);
    Ok(())
}

#[test]
fn where_tls_ends_at_the_gateway_clients_are_told_to_come_without_ech() -> Result<()> {
    require!(ends().is_some(), "there is no Go from 1.24 on, whose servers know ECH");
    let program = ends().context("just seen")?;
    let scene = Scene::new(program, false, true)?;
    // Under the certificate of the public name, and with no other key: ECH is off (RFC 9849, section 6.1.6).
    assert_eq!(scene.ask(program, &scene.key)?, "rejected, retry with");
    let line = &scene.gateway.wait_access_log(1)?[0];
    assert_eq!((&line["ech"], &line["route"]), (&"terminated".into(), &"public".into()));
    Ok(())
}

#[test]
fn a_reload_takes_a_new_key_beside_the_old_one() -> Result<()> {
    require!(ends().is_some(), "there is no Go from 1.24 on, whose servers know ECH");
    let program = ends().context("just seen")?;
    let scene = Scene::new(program, false, false)?;
    let new = EchKey::new(&scene.files, "new.pem")?;
    let both = format!("['{}', '{}']", new.file.display(), scene.key.file.display());
    let config = scene.config.replace(&format!("['{}']", scene.key.file.display()), &both);
    ensure!(config.contains(&both), "{config}");
    scene.gateway.write_config(&config)?;
    scene.gateway.reload()?;
    assert_eq!(scene.ask(program, &scene.key)?, format!("{HIDDEN} true"));
    // The gateway opens it and chooses the server by it. That one does not know the key yet, and has no certificate for the
    // public name.
    ensure!(scene.ask(program, &new).is_err());
    let lines = scene.gateway.wait_access_log(2)?;
    assert_eq!((&lines[1]["ech"], &lines[1]["route"]), (&"accepted".into(), &"hidden".into()));
    Ok(())
}
