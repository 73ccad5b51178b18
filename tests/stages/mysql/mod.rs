//! MySQL and MariaDB, whose servers speak first: routed by SNI all the same.

mod refused;
mod servers;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use anyhow::{Result, ensure};
use snisplice_tests::mysql::{Family, is_installed, mysql_cli};
use snisplice_tests::process::checked_output;
use snisplice_tests::{Gateway, Mysql, NetNs, TempDir, require, topology};

use crate::config::{pool, route};
use crate::world::World;

const MARIADB: &str = "mariadb-server is not installed";
const PYMYSQL: &str = "python3-pymysql is not installed";
const MYSQL: &str = "MySQL is not unpacked: run `cargo xtask setup`";

/// The port of the gateway.
const PORT: u16 = 3306;

/// The listener.
fn listener(extra: &str) -> String {
    format!("[[listener]]\nname = 'databases'\nbind = ['0.0.0.0:{PORT}']\nprotocol = 'mysql'\n{extra}\n")
}

/// A MariaDB, passed through as `db1`, and terminated as `db3`.
struct Scene {
    gateway: Gateway,
    server: Mysql,
    world: World,
}

impl Scene {
    fn new(options: &[&str], pool_keys: &str) -> Result<Self> {
        let world = World::new()?;
        let (server, config) = mariadb(&world, options, pool_keys)?;
        let gateway = world.gateway(&(listener("") + &config))?;
        Ok(Self { gateway, server, world })
    }
}

/// A MariaDB on port 3301, and its routes and pools.
fn mariadb(world: &World, options: &[&str], pool_keys: &str) -> Result<(Mysql, String)> {
    let leaf = world.authority.leaf(&["db1.example.com"])?;
    let server = Mysql::start(&world.net.server, Family::Mariadb, 3301, &leaf, options)?;
    Ok((server, behind(world, ["db1", "db3"], 3301, pool_keys)?))
}

/// A server's routes: the first passes through, the second terminates; and their pools.
fn behind(world: &World, [passed, ended]: [&str; 2], port: u16, pool_keys: &str) -> Result<String> {
    let names = [passed, ended].map(|name| format!("{name}.example.com"));
    let leaf = world.authority.leaf(&[&names[1]])?;
    let tls = format!("tls = {{ ca = '{}', server_name = '{}' }}", world.authority.path.display(), names[0]);
    Ok(route(passed, &names[0], "tls = 'passthrough'")
        + &route(ended, &names[1], &format!("tls = 'terminate'\ncertificate = {}", leaf.toml()))
        + &pool(passed, &[port], pool_keys)
        + &pool(ended, &[port], &format!("{pool_keys}\n{tls}")))
}

/// What a client by PyMySQL prints. `connect(NAME)` is there for the script, and `clear()` without TLS.
fn python(world: &World, script: &str) -> Result<Output> {
    const BEGIN: &str = "import pymysql, socket, ssl, sys, threading, time
def connect(name, user='app', password='secret', **more):
    context = ssl.create_default_context(cafile=sys.argv[1])
    c = pymysql.connections.Connection(host=name + '.example.com', user=user, password=password, ssl=context,
                                       defer_connect=True, **more)
    c.connect(socket.create_connection(('10.0.1.1', 3306), 60))
    return c
def clear():
    return pymysql.connect(host='10.0.1.1', user='app', password='secret', ssl_disabled=True)
def ask(c, statement):
    with c.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()
";
    let mut python = world.net.client.command("/usr/bin/python3");
    python.arg("-c").arg(format!("{BEGIN}{script}")).arg(&world.authority.path);
    Ok(python.output()?)
}

fn has_pymysql() -> bool {
    Path::new("/usr/lib/python3/dist-packages/pymysql").exists()
}

/// What MySQL's own client prints for a statement.
fn cli(world: &World, name: &str, options: &[&str], statement: &str) -> Result<Output> {
    let mut mysql = mysql_cli(&world.net.client)?;
    mysql.args([
        "-h",
        "10.0.1.1",
        "-P",
        "3306",
        "-u",
        "app",
        "-psecret",
        "--ssl-mode=VERIFY_CA",
        "-N",
        "-B",
        "-D",
        "shop",
    ]);
    mysql.arg(format!("--ssl-ca={}", world.authority.path.display()));
    mysql.arg(format!("--tls-sni-servername={name}.example.com")).args(options);
    Ok(mysql.args(["-e", statement]).output()?)
}

/// What a client that should succeed has printed.
#[track_caller]
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The last words of one that should fail.
#[track_caller]
fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// 8 MB, the same from every server.
const BIG: &str = "with recursive n as (select 1 x union all select x + 1 from n where x < 900) \
                   select repeat(sha2(x, 256), 150) from n";

/// What the client gets without the gateway.
fn direct(client: &NetNs, port: u16, statement: &str) -> Result<String> {
    let mut mysql = mysql_cli(client)?;
    mysql.args([
        "-h",
        &topology::SERVER.to_string(),
        "-P",
        &port.to_string(),
        "-u",
        "app",
        "-psecret",
        "-N",
        "-B",
        "-D",
        "shop",
    ]);
    Ok(checked_output(mysql.args(["-e", statement]))?.trim().to_owned())
}

#[test]
fn databases_of_both_families_behind_one_port_are_told_apart_by_sni() -> Result<()> {
    require!(is_installed(Family::Mariadb), MARIADB);
    require!(is_installed(Family::Mysql), MYSQL);
    let world = World::new()?;
    let (_mariadb, config) = mariadb(&world, &[], "")?;
    let leaf = world.authority.leaf(&["db2.example.com"])?;
    let _mysql = Mysql::start(&world.net.server, Family::Mysql, 3302, &leaf, &[])?;
    let gateway = world.gateway(
        &(listener("hello_timeout = '20s'") + &config + &behind(&world, ["db2", "db4"], 3302, "")?),
    )?;
    for (name, port) in [("db1", 3301), ("db2", 3302), ("db3", 3301), ("db4", 3302)] {
        let version = said(&cli(&world, name, &[], "select @@version, user()")?);
        let family = if port == 3301 { "MariaDB" } else { "9." };
        assert!(version.contains(family) && version.contains("app@gateway.test"), "{name}: {version}");
        assert_eq!(
            version.split('\t').next().map(str::to_owned),
            direct(&world.net.client, port, "select @@version").ok()
        );
        let big = said(&cli(&world, name, &[], BIG)?);
        assert!(big.len() > 8_000_000 && big == direct(&world.net.client, port, BIG)?, "{name}");
        // Compressed, its packets cannot be looked at.
        let zlib =
            said(&cli(&world, name, &["--compression-algorithms=zlib"], "show status like 'Compression'")?);
        assert_eq!(zlib, "Compression\tON", "{name}");
        let denied = complaint(&cli(&world, name, &["-pwrong"], "select 1")?);
        assert!(denied.contains("ERROR 1045 (28000): Access denied for user 'app'"), "{name}: {denied}");
    }
    let status = gateway.status()?;
    assert_eq!((status.route("db1", "total"), status.route("db4", "total")), (4, 4));
    assert!(status.route("db2", "bytes_out") > 8_000_000);
    let listener = status.0.pointer("/listeners/0/mysql").cloned().unwrap_or_default();
    assert_eq!(
        (&listener["mixed_families"], listener["version"].is_string()),
        (&true.into(), true),
        "{listener}"
    );
    assert!(gateway.process.output().contains("give each family a listener of its own"));
    let log = gateway.wait_access_log(16)?;
    assert!(
        log.iter().all(|line| line["listener"] == "databases" && line["tls_version"] == "TLSv1.3"),
        "{log:?}"
    );
    assert!(!gateway.process.output().contains("secret"));
    Ok(())
}

#[test]
fn one_connection_kills_another_by_the_number_that_the_gateway_gave_it() -> Result<()> {
    require!(is_installed(Family::Mariadb), MARIADB);
    require!(has_pymysql(), PYMYSQL);
    let scene = Scene::new(&[], "")?;
    let output = python(
        &scene.world,
        "victims = [connect('db3') for _ in range(4)]
assert all(v.thread_id() >= 0x7f000000 for v in victims), [v.thread_id() for v in victims]
killer = connect('db3')
def sleep(victim):
    try:
        said.append(ask(victim, 'select sleep(60)'))
    except Exception as error:
        said.append(error.args[0])
said = []
threads = [threading.Thread(target=sleep, args=(v,)) for v in victims[:2]]
for t in threads: t.start()
while ask(killer, \"select count(*) from information_schema.processlist where info like 'select sleep%'\")[0][0] < 2:
    time.sleep(.02)
ask(killer, 'KILL QUERY %d' % victims[0].thread_id())
killer.kill(victims[1].thread_id())
for t in threads: t.join()
print(sorted(said))
ask(killer, '/* app */ kill connection %d;' % victims[2].thread_id())
try:
    print(ask(victims[2], 'select 1'))
except pymysql.err.OperationalError as error:
    print(error.args[0])
# As the server calls it, and one that nobody has.
ask(killer, 'kill %d' % ask(victims[3], 'select connection_id()')[0][0])
try:
    ask(killer, 'kill 2147483600')
except pymysql.err.Error as error:
    print(error.args)
# What is prepared and long is not touched.
print(ask(victims[0], \"select length('\" + 'KILL 2130706432 ' * 100000 + \"')\")[0][0])
",
    )?;
    let said = said(&output);
    let lines: Vec<_> = said.lines().collect();
    // ER_QUERY_INTERRUPTED, and a connection that is gone.
    assert!(lines[0].contains("1317") || lines[0].contains("((1,),)"), "{said}");
    assert!(lines[0].contains("2013"), "{said}");
    assert!(["2013", "2006", "1927", "0"].contains(&lines[1]), "{said}");
    assert_eq!(lines[2], "(1094, 'Unknown thread id: 2147483600')", "{said}");
    assert_eq!(lines[3], "1600000", "{said}");
    Ok(())
}

/// The program of `client`; `None`: there is no Go, or no way to its modules.
fn go_client() -> Option<&'static Path> {
    static CLIENT: OnceLock<Option<(TempDir, PathBuf)>> = OnceLock::new();
    let build = || {
        let files = TempDir::new().ok()?;
        let program = files.join("client");
        let mut build = Command::new("go");
        build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("stages/mysql/client"));
        let built = build.arg("build").arg("-o").arg(&program).output().ok()?;
        if !built.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&built.stderr));
        }
        built.status.success().then_some((files, program))
    };
    CLIENT.get_or_init(build).as_ref().map(|(_, program)| &**program)
}

#[test]
fn go_python_and_mariadbs_own_clients_log_in() -> Result<()> {
    require!(is_installed(Family::Mariadb), MARIADB);
    let world = World::new()?;
    let (_server, config) = mariadb(&world, &[], "")?;
    // Clients that name nobody.
    let any = route("any", "*", "backends = ['db1']");
    let gateway = world.gateway(&(listener("version = '10.6.99-MariaDB'") + &config + &any))?;
    let mut mariadb = world.net.client.command("mariadb");
    mariadb.args(["--no-defaults", "-h", "10.0.1.1", "-u", "app", "-psecret", "--ssl", "-N", "-B", "-e"]);
    let output = mariadb.arg("select @@version, user()").output()?;
    assert!(said(&output).ends_with("app@gateway.test"), "{output:?}");
    if has_pymysql() {
        for name in ["db1", "db3"] {
            let script = format!(
                "c = connect('{name}', database='shop')
print(c.get_server_info(), ask(c, 'select database(), length(repeat(1, 5000000))'))"
            );
            let said = said(&python(&world, &script)?);
            assert_eq!(said, "10.6.99-MariaDB (('shop', 5000000),)");
        }
    } else {
        snisplice_tests::skip::skipped(PYMYSQL);
    }
    let Some(client) = go_client() else {
        snisplice_tests::skip::skipped("go-sql-driver cannot be built");
        return Ok(());
    };
    for name in ["db1", "db3"] {
        let mut go = world.net.client.command(client);
        go.args(["10.0.1.1:3306", &format!("{name}.example.com")]).arg(&world.authority.path);
        let said = checked_output(go.arg("select user() from (select 1) t"))?;
        ensure!(said == "app@gateway.test\n", "{name}: {said}");
    }
    gateway.wait_access_log(if has_pymysql() { 5 } else { 3 }).map(drop)
}
