//! SMTP, IMAP, POP3, LDAP and XMPP: clear text until a command for TLS, and routed by SNI all the same.

use std::fs;
use std::io::{Read, Write};
use std::process::{Output, Stdio};

use anyhow::{Context, Result};
use snisplice_tests::process::checked_output;
use snisplice_tests::skip::has_program;
use snisplice_tests::{Gateway, Leaf, StarttlsServer, TempDir, eventually, require};

use crate::config::{pool, route};
use crate::world::World;

const HOST: &str = "a.example.com";

/// A protocol as OpenSSL has it, and the ports of the gateway and of the server.
const PROTOCOLS: [(&str, u16, u16); 5] =
    [("smtp", 25, 2025), ("imap", 143, 2143), ("pop3", 110, 2110), ("ldap", 389, 2389), ("xmpp", 5222, 2222)];

struct Scene {
    gateway: Gateway,
    _servers: Vec<StarttlsServer>,
    world: World,
}

fn has_programs() -> bool {
    ["postfix", "dovecot", "slapd", "ldapsearch", "prosody"].into_iter().all(has_program)
}

fn servers(world: &World, leaf: Option<&Leaf>) -> Result<Vec<StarttlsServer>> {
    let ns = &world.net.server;
    Ok(vec![
        StarttlsServer::postfix(ns, 2025, leaf)?,
        StarttlsServer::dovecot(ns, 2143, 2110, leaf)?,
        StarttlsServer::slapd(ns, 2389, leaf)?,
        StarttlsServer::prosody(ns, 2222, HOST, leaf)?,
    ])
}

impl Scene {
    /// A listener of each protocol with one route; the servers have TLS where the gateway asks them for it.
    fn new(of_route: impl Fn(&Leaf) -> String, of_pool: &str, tls: bool) -> Result<Self> {
        let world = World::new()?;
        let leaf = world.authority.leaf(&[HOST])?;
        let servers = servers(&world, Some(&leaf).filter(|_| tls))?;
        let of_pool = of_pool.replace("AUTHORITY", &world.authority.path.display().to_string());
        let mut config = String::new();
        for (protocol, port, server) in PROTOCOLS {
            let route =
                route(protocol, HOST, &of_route(&leaf)).replace("'databases'", &format!("'{protocol}'"));
            config += &format!(
                "[[listener]]\nname = '{protocol}'\nbind = ['0.0.0.0:{port}']\nprotocol = '{protocol}'\n{route}{}",
                pool(protocol, &[server], &format!("connect_timeout = '20s'\n{of_pool}"))
            );
        }
        let gateway = world.gateway(&config)?;
        Ok(Self { gateway, _servers: servers, world })
    }

    /// What OpenSSL's client hears that asks for TLS, and then says this.
    fn s_client(&self, protocol: &str, port: u16, sni: &str, say: &str) -> Result<Output> {
        let mut client = self.world.net.client.command("openssl");
        client.args(["s_client", "-starttls", protocol, "-connect", &format!("10.0.1.1:{port}")]);
        client.args(["-servername", sni, "-xmpphost", sni, "-verify_return_error", "-quiet", "-CAfile"]);
        client.arg(&self.world.authority.path).args(["-verify_hostname", HOST]);
        let client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = client.spawn()?;
        child.stdin.take().context("its input")?.write_all(say.as_bytes())?;
        Ok(child.wait_with_output()?)
    }

    /// Goes through each protocol with real clients, to something that only the server can have said.
    fn everybody_is_served(&self) -> Result<()> {
        let xmpp = format!(
            "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='{HOST}' \
             version='1.0'></stream:stream>"
        );
        for (protocol, say, hears) in [
            ("smtp", "EHLO client.example\r\nQUIT\r\n", "250-PIPELINING"),
            ("imap", "a LOGIN alice secret\r\nb SELECT INBOX\r\nc LOGOUT\r\n", "b OK [READ-WRITE]"),
            ("pop3", "USER alice\r\nPASS secret\r\nSTAT\r\nQUIT\r\n", "+OK 0 0"),
            ("xmpp", &xmpp, "<mechanisms"),
        ] {
            let (_, port, _) =
                PROTOCOLS.into_iter().find(|(name, ..)| *name == protocol).context("a port")?;
            let output = self.s_client(protocol, port, HOST, say)?;
            let heard = String::from_utf8_lossy(&output.stdout).into_owned();
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(heard.contains(hears), "{protocol}: {heard}\n{why}\n{}", self.gateway.access_log_text());
        }
        // The name is found in a file of hosts that only this client sees.
        let files = TempDir::new()?;
        fs::write(files.join("hosts"), format!("10.0.1.1 {HOST}\n"))?;
        let mut ldap = self.world.net.client.command("unshare");
        ldap.args(["-m", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""])
            .arg(files.join("hosts"));
        ldap.args([
            "ldapsearch",
            "-ZZ",
            "-x",
            "-LLL",
            "-H",
            &format!("ldap://{HOST}"),
            "-b",
            "",
            "-s",
            "base",
            "+",
        ]);
        let root = checked_output(ldap.env("LDAPTLS_CACERT", &self.world.authority.path))?;
        assert!(root.contains("supportedLDAPVersion: 3"), "{root}");
        Ok(())
    }
}

#[test]
fn servers_of_each_protocol_are_passed_through() -> Result<()> {
    require!(has_programs(), "postfix, dovecot, slapd, ldapsearch or prosody is not installed");
    let scene = Scene::new(|_| "tls = 'passthrough'".into(), "", true)?;
    scene.everybody_is_served()?;
    for (protocol, port, _) in PROTOCOLS {
        let unknown = scene.s_client(protocol, port, "nobody.example.com", "")?;
        let why = String::from_utf8_lossy(&unknown.stderr).into_owned();
        assert!(why.contains("unrecognized name"), "{protocol}: {why}");
        scene
            .gateway
            .wait_status("it to be counted", |status| status.rejects(protocol, "unknown_sni") == 1)?;
    }
    Ok(())
}

#[test]
fn servers_of_each_protocol_need_no_tls_where_it_ends_at_the_gateway() -> Result<()> {
    require!(has_programs(), "postfix, dovecot, slapd, ldapsearch or prosody is not installed");
    let scene = Scene::new(|leaf| format!("tls = 'terminate'\ncertificate = {}", leaf.toml()), "", false)?;
    scene.everybody_is_served()
}

#[test]
fn servers_of_each_protocol_are_asked_for_tls_of_the_gateways_own() -> Result<()> {
    require!(has_programs(), "postfix, dovecot, slapd, ldapsearch or prosody is not installed");
    let tls = format!("tls = {{ ca = 'AUTHORITY', server_name = '{HOST}' }}");
    let scene = Scene::new(|leaf| format!("tls = 'terminate'\ncertificate = {}", leaf.toml()), &tls, true)?;
    scene.everybody_is_served()
}

#[test]
fn a_server_without_tls_is_told_from_one_that_is_down() -> Result<()> {
    require!(has_programs(), "postfix, dovecot, slapd, ldapsearch or prosody is not installed");
    let scene = Scene::new(|_| "tls = 'passthrough'".into(), "", false)?;
    for (protocol, port, _) in PROTOCOLS {
        assert!(!scene.s_client(protocol, port, HOST, "")?.status.success());
        eventually("it to be logged", || {
            let log = scene.gateway.access_log().ok()?;
            let logged = |line: &&serde_json::Value| {
                line["listener"] == protocol && line["close_reason"] == "server_preamble"
            };
            log.iter().find(logged).map(drop)
        })?;
    }
    Ok(())
}

#[test]
fn clients_that_stuff_or_leave_are_turned_away_for_their_own_reason() -> Result<()> {
    let world = World::new()?;
    let mut config = String::new();
    for (protocol, port, server) in PROTOCOLS {
        let route = route(protocol, HOST, "").replace("'databases'", &format!("'{protocol}'"));
        config += &format!(
            "[[listener]]\nname = '{protocol}'\nbind = ['0.0.0.0:{port}']\nprotocol = '{protocol}'\n{route}{}",
            pool(protocol, &[server], "")
        );
    }
    let gateway = world.gateway(&config)?;
    let starttls = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037";
    for (protocol, port, reason, say) in [
        ("smtp", 25, "starttls_stuffed", &b"STARTTLS\r\nMAIL FROM:<a@b>\r\n"[..]),
        ("imap", 143, "starttls_stuffed", b"a STARTTLS\r\nb NOOP\r\n"),
        ("pop3", 110, "starttls_stuffed", b"STLS\r\nUSER a\r\n"),
        ("ldap", 389, "starttls_stuffed", &[&starttls[..], starttls].concat()),
        ("xmpp", 5222, "starttls_stuffed", b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/><iq/>"),
        ("smtp", 25, "starttls_cleartext", b"QUIT\r\n"),
        ("xmpp", 5222, "starttls_cleartext", b"<iq/>"),
        ("ldap", 389, "starttls_malformed", b"GET / HTTP/1.1\r\n"),
        ("imap", 143, "starttls_malformed", &[b'a'; 5000]),
        ("smtp", 25, "not_tls", b"EHLO a\r\nSTARTTLS\r\n"),
    ] {
        let mut stream = world.connect(port)?;
        stream.write_all(say)?;
        if reason == "not_tls" {
            // Promised TLS, and going on without.
            let mut heard = Vec::new();
            while !heard.ends_with(b"TLS\r\n220 2.0.0 Ready to start TLS\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte)?;
                heard.push(byte[0]);
            }
            stream.write_all(b"NOOP\r\n")?;
        }
        let _ = stream.read_to_end(&mut Vec::new());
        gateway.wait_status(reason, |status| status.rejects(protocol, reason) == 1)?;
    }
    Ok(())
}
