//! `snisplice import`: what becomes of other programs' configurations, which those programs take as they stand.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result};
use base64ct::{Base64, Encoding as _};
use snisplice_tests::backend::{Backend, naming};
use snisplice_tests::process::{Process, checked_output};
use snisplice_tests::skip::has_program;
use snisplice_tests::tls::client_hello;
use snisplice_tests::{Authority, TempDir, envoy, gateway, require};

use crate::world::World;

/// A file of each kind and those that belong to it, as one import takes them.
const KINDS: [&[&str]; 8] = [
    &["traefik.yaml", "traefik-static.yaml"],
    &["istio.yaml"],
    &["kong.yaml"],
    &["tcp-services.yaml"],
    &["haproxy.cfg", "domains.map"],
    &["nginx.conf", "domains.conf"],
    &["envoy.yaml"],
    &["envoy.json"],
];

/// The result of an import has something that is lost.
const LOST: i32 = 3;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/import")
}

fn import(directory: &Path, files: &[&str], form: &str) -> Result<Output> {
    let mut command = Command::new(gateway::binary()?);
    command.current_dir(directory).arg("import").args(files).args(["--to", form]);
    command.output().context("running snisplice")
}

/// A certificate and its key in one file.
fn write_certificate(path: &Path) -> Result<()> {
    let authority = Authority::new("snisplice test authority")?;
    let leaf = authority.leaf(&["orders.example.com"])?;
    Ok(fs::write(path, fs::read_to_string(&leaf.chain)? + &fs::read_to_string(&leaf.key)?)?)
}

/// The results are those in the repository; `UPDATE_GOLDEN=1` writes them anew. What is said of the files is said on
/// standard error and in the result's comments.
#[test]
fn each_kind_becomes_what_it_should_in_both_forms() -> Result<()> {
    for files in KINDS {
        for form in ["yaml", "toml"] {
            let output = import(&data(), files, form)?;
            let (text, said) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
            let golden = data().join("expected").join(format!("{}.{form}", files[0].replace('.', "-")));
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&golden, &text)?;
            }
            let expected = fs::read_to_string(&golden).with_context(|| golden.display().to_string())?;
            assert!(
                text == expected,
                "{}: UPDATE_GOLDEN=1 shows the difference\n{text}\n{said}",
                golden.display()
            );
            let lost = said.lines().filter(|line| line.contains(": lost: ")).count();
            assert_eq!(output.status.code(), Some(if lost > 0 { LOST } else { 0 }), "{said}");
            for line in said.lines().filter(|line| !line.starts_with("snisplice: ")) {
                let message = line.splitn(3, ": ").last().unwrap_or_default();
                assert!(text.contains(message), "{message} in {text}");
            }
        }
    }
    Ok(())
}

/// What the TOML names beside itself: certificates are made here, names in a cluster are not looked up by `check`.
#[test]
fn check_takes_the_toml_of_each_kind() -> Result<()> {
    let authority = Authority::new("snisplice test authority")?;
    let leaf = authority.leaf(&["orders.example.com", "orders.db.example.com"])?;
    let (chain, key) = (fs::read_to_string(&leaf.chain)?, fs::read_to_string(&leaf.key)?);
    for files in KINDS {
        let directory = TempDir::new()?;
        for (name, text) in [
            ("orders.pem", &format!("{chain}{key}")),
            ("orders.crt", &chain),
            ("orders.key", &key),
            ("orders-cert.crt", &chain),
            ("orders-cert.key", &key),
            ("clients-ca.crt", &fs::read_to_string(&authority.path)?),
            ("orders-cert-ca.crt", &fs::read_to_string(&authority.path)?),
            ("snisplice.toml", &String::from_utf8(import(&data(), files, "toml")?.stdout)?),
        ] {
            fs::write(directory.join(name), text)?;
        }
        let check = Command::new(gateway::binary()?)
            .args(["check", "-c", "snisplice.toml"])
            .current_dir(directory.path())
            .output()?;
        assert!(check.status.success(), "{files:?}: {}", String::from_utf8_lossy(&check.stderr));
    }
    Ok(())
}

#[test]
fn haproxy_takes_the_example() -> Result<()> {
    require!(has_program("haproxy"), "haproxy is not installed");
    let directory = TempDir::new()?;
    write_certificate(&directory.join("orders.pem"))?;
    let map = data().join("domains.map");
    let text = fs::read_to_string(data().join("haproxy.cfg"))?
        .replace("/etc/haproxy/domains.map", &map.display().to_string())
        // Nobody knows the name here, and HAProxy does not start without its address.
        .replace("pg.example.com", "10.0.0.22");
    fs::write(directory.join("haproxy.cfg"), text)?;
    checked_output(Command::new("haproxy").args(["-c", "-f", "haproxy.cfg"]).current_dir(directory.path()))?;
    Ok(())
}

const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

#[test]
fn nginx_takes_the_example() -> Result<()> {
    require!(
        has_program("nginx") && Path::new(STREAM).exists(),
        "nginx or its stream module is not installed"
    );
    let directory = TempDir::new()?;
    write_certificate(&directory.join("orders.pem"))?;
    fs::copy(data().join("domains.conf"), directory.join("domains.conf"))?;
    let text = fs::read_to_string(data().join("nginx.conf"))?;
    let pid = directory.join("nginx.pid");
    let text = format!("load_module {STREAM};\npid {};\n{text}", pid.display());
    fs::write(directory.join("nginx.conf"), text)?;
    // It tries the addresses that it would listen on: those of a network of its own.
    let world = World::new()?;
    let mut nginx = world.net.gateway.command("nginx");
    checked_output(nginx.arg("-t").arg("-p").arg(directory.path()).args(["-c", "nginx.conf"]))?;
    Ok(())
}

#[test]
fn the_exit_code_says_whether_something_is_lost() -> Result<()> {
    let directory = TempDir::new()?;
    let plain = "frontend f\n mode tcp\n bind *:443\n use_backend b if { req.ssl_sni -i a.example }\n\
                 backend b\n mode tcp\n server s 10.0.0.1:1\n";
    let code = |text: &str, form| {
        fs::write(directory.join("haproxy.cfg"), text)?;
        let output = import(directory.path(), &["haproxy.cfg"], form)?;
        Ok::<_, anyhow::Error>((output.status.code(), String::from_utf8(output.stderr)?))
    };
    for form in ["yaml", "toml"] {
        assert_eq!(code(plain, form)?, (Some(0), String::new()));
        let (exit, said) = code(&format!("{plain} stick on src\n"), form)?;
        assert_eq!(exit, Some(LOST), "{said}");
        assert_eq!(said, "haproxy.cfg:8: lost: `stick on src`: not taken over\nsnisplice: 1 part lost\n");
        let (exit, said) = code("nothing\n", form)?;
        assert_eq!(exit, Some(1), "{said}");
    }
    // TOML has the key, the Gateway API has not.
    let timed = format!("{plain} timeout connect 3s\n");
    assert_eq!((code(&timed, "toml")?.0, code(&timed, "yaml")?.0), (Some(0), Some(LOST)));
    assert_eq!(import(directory.path(), &[], "toml")?.status.code(), Some(2));
    assert_eq!(import(directory.path(), &["absent.cfg"], "toml")?.status.code(), Some(1));
    Ok(())
}

/// From HAProxy's file to the right servers, by SNI.
#[test]
fn a_gateway_serves_what_haproxy_was_configured_for() -> Result<()> {
    let world = World::new()?;
    let directory = TempDir::new()?;
    let servers = [("sessions", 7001), ("tenants", 7002), ("stock", 7003), ("rest", 7004)];
    let backends: String = servers
        .iter()
        .map(|(name, port)| format!("backend {name}\n  server {name} 10.0.2.2:{port}\n"))
        .collect();
    let config = format!(
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n\
         frontend databases\n  bind 0.0.0.0:443\n  tcp-request inspect-delay 5s\n  \
         tcp-request content accept if {{ req.ssl_hello_type 1 }}\n  tcp-request content reject\n  \
         acl sessions req.ssl_sni -i sessions.example.com\n  use_backend sessions if sessions\n  \
         use_backend tenants if {{ req.ssl_sni -m end .tenants.example.com }}\n  \
         use_backend %[req.ssl_sni,lower,map(/etc/haproxy/domains.map)]\n  default_backend rest\n{backends}"
    );
    fs::write(directory.join("haproxy.cfg"), config)?;
    fs::write(directory.join("domains.map"), "stock.example.com stock\n")?;
    let output = import(directory.path(), &["haproxy.cfg", "domains.map"], "toml")?;
    let said = String::from_utf8(output.stderr)?;
    assert_eq!((output.status.code(), said.as_str()), (Some(0), ""));

    let _servers = servers
        .iter()
        .map(|&(name, port)| Backend::start(&world.net.server, port, naming(name)))
        .collect::<Result<Vec<_>>>()?;
    let _gateway = world.gateway(&String::from_utf8(output.stdout)?)?;
    for (sni, name) in [
        ("Sessions.example.com", "sessions"),
        ("a.tenants.example.com", "tenants"),
        ("stock.example.com", "stock"),
        ("tenants.example.com", "rest"),
    ] {
        assert_eq!(world.ask(sni)?, name, "{sni}");
    }
    Ok(())
}

/// An example, the servers of its port 443 and what they are called, and who answers for a name: of the original, of the TOML and of
/// the objects. The objects have no route for all other names, which the import has named as lost.
struct Compared {
    files: &'static [&'static str],
    servers: &'static [(u8, u16, &'static str)],
    names: &'static [(&'static str, &'static str, &'static str, &'static str)],
}

/// A client that sends no name.
const NONE: &str = "";
const REFUSED: &str = "refused";
/// TLS is answered where the clients arrive.
const ENDED: &str = "ended";

const HAPROXY: Compared = Compared {
    files: &["haproxy.cfg", "domains.map"],
    servers: &[(11, 6379, "sessions"), (12, 6379, "sessions"), (21, 5432, "orders"), (22, 5432, "tenants")],
    names: &[
        ("sessions.example.com", "sessions", "sessions", "sessions"),
        ("Cache.example.com", "sessions", "sessions", "sessions"),
        ("a.tenants.example.com", "tenants", "tenants", "tenants"),
        ("a.b.tenants.example.com", "tenants", "tenants", "tenants"),
        ("stock.example.com", "sessions", "sessions", "sessions"),
        ("invoices.example.com", "orders", "orders", "orders"),
        ("tenants.example.com", "orders", "orders", REFUSED),
        ("a.sessions.example.com", "orders", "orders", REFUSED),
        (NONE, "orders", "orders", REFUSED),
    ],
};

const NGINX: Compared = Compared {
    files: &["nginx.conf", "domains.conf"],
    servers: &[(11, 6379, "sessions"), (12, 6379, "sessions"), (21, 5432, "tenants"), (22, 5432, "orders")],
    names: &[
        ("sessions.example.com", "sessions", "sessions", "sessions"),
        ("cache.example.com", "sessions", "sessions", "sessions"),
        ("A.cache.example.com", "sessions", "sessions", "sessions"),
        ("a.tenants.example.com", "tenants", "tenants", "tenants"),
        ("a.b.tenants.example.com", "tenants", "tenants", "tenants"),
        ("invoices.example.com", "orders", "orders", "orders"),
        ("tenants.example.com", "orders", "orders", REFUSED),
        ("a.sessions.example.com", "orders", "orders", REFUSED),
        (NONE, "orders", "orders", REFUSED),
    ],
};

const ENVOY: Compared = Compared {
    files: &["envoy.yaml"],
    servers: &[(11, 6379, "sessions"), (12, 6379, "sessions"), (14, 6379, "sessions"), (21, 5432, "orders")],
    names: &[
        ("sessions.example.com", "sessions", "sessions", "sessions"),
        ("a.cache.example.com", "sessions", "sessions", "sessions"),
        ("A.b.cache.example.com", "sessions", "sessions", "sessions"),
        ("orders.example.com", ENDED, ENDED, ENDED),
        ("cache.example.com", REFUSED, REFUSED, REFUSED),
        ("a.sessions.example.com", REFUSED, REFUSED, REFUSED),
        // Its chain is lost: it asks for more than a name.
        ("h2.example.com", "orders", REFUSED, REFUSED),
        (NONE, REFUSED, REFUSED, REFUSED),
    ],
};

/// The original and the results of its import in turn, where its port 443 is, with the same ClientHellos.
fn compare(of: &Compared, start: impl Fn(&World, &Path) -> Result<Process>) -> Result<()> {
    let world = World::new()?;
    let directory = TempDir::new()?;
    let leaf = world.authority.leaf(&["orders.example.com"])?;
    let (chain, key) = (fs::read_to_string(&leaf.chain)?, fs::read_to_string(&leaf.key)?);
    let ca = fs::read_to_string(&world.authority.path)?;
    let pem = format!("{chain}{key}");
    for (name, text) in
        [("orders.pem", &pem), ("orders.crt", &chain), ("orders.key", &key), ("clients-ca.crt", &ca)]
    {
        fs::write(directory.join(name), text)?;
    }
    for file in of.files {
        let mut text = fs::read_to_string(data().join(file))?;
        // The servers are in the server's network, and no real ones: nothing checks them.
        for last in 11..60 {
            text = text.replace(&format!("10.0.0.{last}:"), &format!("10.0.2.{last}:"));
            text = text.replace(&format!("10.0.0.{last},"), &format!("10.0.2.{last},"));
        }
        for (from, to) in [
            ("pg.example.com", "10.0.2.22"),
            ("redis.example.com", "10.0.2.14"),
            (":6379 check", ":6379"),
            (":5432 check", ":5432"),
            (":9000 check", ":9000"),
        ] {
            text = text.replace(from, to);
        }
        fs::write(directory.join(file), text)?;
    }
    let mut servers = Vec::new();
    for (last, port, name) in of.servers {
        world.net.server.address("eth0", &format!("10.0.2.{last}/24"))?;
        servers.push(Backend::start_on(&world.net.server, [10, 0, 2, *last].into(), *port, |mut stream| {
            // A PROXY header may come first.
            let _bytes = stream.read(&mut [0; 4096])?;
            stream.write_all(name.as_bytes())?;
            stream.shutdown(std::net::Shutdown::Write)?;
            std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
        })?);
    }
    let ask = |sni: &str| -> Result<String> {
        let mut stream = world.connect(443)?;
        stream.write_all(&match sni {
            NONE => fs::read(data().with_file_name("client-hellos/openssl-3.0-no-sni.bin"))?,
            sni => client_hello(sni, &[]),
        })?;
        let mut bytes = [0; 64];
        let read = stream.read(&mut bytes).unwrap_or(0);
        Ok(match bytes[..read] {
            // An alert, and a handshake's message.
            [] | [0x15, ..] => REFUSED.to_owned(),
            [0x16, ..] => ENDED.to_owned(),
            ref name => String::from_utf8_lossy(name).into_owned(),
        })
    };
    let judge =
        |what: &str, expected: fn(&(&str, &'static str, &'static str, &'static str)) -> &'static str| {
            for row in of.names {
                assert_eq!(ask(row.0)?, expected(row), "{what}: {:?}", row.0);
            }
            Ok::<_, anyhow::Error>(())
        };
    {
        let mut original = start(&world, directory.path())?;
        original.wait_listening(&[443])?;
        judge("the original", |row| row.1)?;
        original.stop()?;
    }
    let toml = String::from_utf8(import(directory.path(), of.files, "toml")?.stdout)?;
    fs::write(directory.join("snisplice.toml"), &toml)?;
    checked_output(
        Command::new(gateway::binary()?)
            .args(["check", "-c", "snisplice.toml"])
            .current_dir(directory.path()),
    )?;
    {
        let files = TempDir::new()?;
        for name in ["orders.pem", "orders.crt", "orders.key", "clients-ca.crt"] {
            fs::copy(directory.join(name), files.join(name))?;
        }
        let launch = snisplice_tests::Launch::default();
        let _gateway = snisplice_tests::Gateway::start_in(files, &world.net.gateway, &toml, launch)?;
        judge("the TOML", |row| row.2)?;
    }
    let manifests = TempDir::new()?;
    fs::write(manifests.join("imported.yaml"), import(directory.path(), of.files, "yaml")?.stdout)?;
    let encoded = |text: &str| Base64::encode_string(text.as_bytes());
    let wanted = format!(
        "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {{ name: orders, namespace: default }}\n\
         data: {{ tls.crt: {}, tls.key: {} }}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: clients-ca, namespace: default }}\n\
         data: {{ ca.crt: {} }}\n",
        encoded(&chain),
        encoded(&key),
        serde_json::to_string(&ca)?
    );
    fs::write(manifests.join("wanted.yaml"), wanted)?;
    let config = format!(
        "[gateway]\ntiers = ['copy']\n[gateway_api]\nfrom = 'directory'\ndirectory = '{}'\n",
        manifests.path().display()
    );
    let gateway = world.gateway(&config)?;
    let text = String::from_utf8(gateway.cli(["objects"])?.stdout)?;
    assert!(!text.contains("NOT TAKEN"), "{text}");
    judge("the objects", |row| row.3)
}

#[test]
fn haproxy_and_the_results_choose_the_same_servers() -> Result<()> {
    require!(has_program("haproxy"), "haproxy is not installed");
    compare(&HAPROXY, |world, directory| {
        let config = directory.join("haproxy.cfg");
        let text = fs::read_to_string(&config)?;
        let map = directory.join("domains.map").display().to_string();
        fs::write(directory.join("original.cfg"), text.replace("/etc/haproxy/domains.map", &map))?;
        let mut haproxy = world.net.gateway.command("haproxy");
        haproxy.args(["-db", "-f", "original.cfg"]).current_dir(directory);
        Process::spawn("haproxy", haproxy)
    })
}

#[test]
fn nginx_and_the_results_choose_the_same_servers() -> Result<()> {
    require!(
        has_program("nginx") && Path::new(STREAM).exists(),
        "nginx or its stream module is not installed"
    );
    compare(&NGINX, |world, directory| {
        let text = fs::read_to_string(directory.join("nginx.conf"))?;
        let own = format!(
            "load_module {STREAM};\npid {}/nginx.pid;\ndaemon off;\nmaster_process off;\nerror_log stderr;\n{text}",
            directory.display()
        );
        fs::write(directory.join("original.conf"), own)?;
        let mut nginx = world.net.gateway.command("nginx");
        nginx.arg("-p").arg(directory).args(["-c", "original.conf"]);
        Process::spawn("nginx", nginx)
    })
}

#[test]
fn envoy_and_the_results_choose_the_same_servers() -> Result<()> {
    require!(envoy::is_there(), "envoy is not installed");
    compare(&ENVOY, |world, directory| {
        let mut envoy = world.net.gateway.command("envoy");
        envoy.args([
            "--use-dynamic-base-id",
            "--concurrency",
            "1",
            "--log-level",
            "warning",
            "-c",
            "envoy.yaml",
        ]);
        envoy.current_dir(directory);
        Process::spawn("envoy", envoy)
    })
}
