//! Requests of HTTP, by objects.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

use anyhow::{Context, Result};
use snisplice_tests::NetNs;
use snisplice_tests::process::{Process, checked_output};

use super::istio::{ISTIO, PODS, endpoint, pod};
use super::*;

/// Servers of HTTP/1.1 that answer every GET with their names.
const NAMED: &str = r"
import sys, threading, http.server
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    # An answer in one piece: Nagle's algorithm would hold the second until the first is acknowledged.
    wbufsize = -1
    def do_GET(self):
        body = self.server.named.encode() + b'\n'
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments): pass
for argument in sys.argv[2:]:
    name, port = argument.split('=')
    server = http.server.ThreadingHTTPServer((sys.argv[1], int(port)), Answer)
    server.named = name
    threading.Thread(target=server.serve_forever).start()
";

fn named(ns: &NetNs, servers: &[(&str, u16)]) -> Result<Process> {
    named_at(ns, "", servers)
}

fn named_at(ns: &NetNs, host: &str, servers: &[(&str, u16)]) -> Result<Process> {
    let mut command = ns.command("python3");
    command.args(["-c", NAMED, host]).args(servers.iter().map(|(name, port)| format!("{name}={port}")));
    let mut process = Process::spawn("python3", command)?;
    process.wait_listening(&servers.iter().map(|(_, port)| *port).collect::<Vec<_>>())?;
    Ok(process)
}

/// A Service with one port, and its server.
fn service(name: &str, port: u16) -> String {
    let (namespace, bare) = name.split_once('/').unwrap_or(("default", name));
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: {bare}, namespace: {namespace} }}\nspec: {{ ports: [{{ port: {port} }}] }}\n"
    ) + &slice(&format!("{namespace}/{bare}"), "", port, &[ready(SERVER)])
}

/// The status and the text of an answer.
fn curl(world: &World, arguments: &[&str]) -> Result<(String, String)> {
    let mut curl: Command = world.net.client.command("curl");
    curl.args(["-s", "-w", "\n%{http_code}", "--cacert"]).arg(&world.authority.path);
    for name in ["books", "tools", "static"] {
        curl.args(["--resolve", &format!("{name}.shop.example.com:443:10.0.1.1")]);
    }
    let output = checked_output(curl.args(arguments))?;
    let (text, status) = output.rsplit_once('\n').context("a status")?;
    Ok((status.to_owned(), text.trim_end().to_owned()))
}

#[test]
fn a_bookshop() -> Result<()> {
    let world = World::new()?;
    let manifests = Manifests::new(Some("3-bookshop-http.yaml"))?;
    let names = ["books", "tools", "static"].map(|name| format!("{name}.shop.example.com"));
    let leaf = world.authority.leaf(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    manifests.write("cert.yaml", &secret("default/shop-cert", &leaf)?)?;
    let servers = [("details", 9080), ("frontpage", 9081), ("echo-1", 8080), ("echo-2", 8090)];
    let _servers = named(&world.net.server, &servers)?;
    let mut services = [("details", 9080), ("echo-1", 8080), ("echo-2", 8090)]
        .map(|(name, port)| service(name, port))
        .concat();
    // On the port that its routes name, though its server is on another.
    services += "---\napiVersion: v1\nkind: Service\nmetadata: { name: frontpage, namespace: default }\nspec: { ports: [{ port: 9080 }] }\n";
    services += &slice("default/frontpage", "", 9081, &[ready(SERVER)]);
    services += "---\napiVersion: v1\nkind: Service\nmetadata: { name: static-nginx, namespace: default }\nspec: { ports: [{ port: 443 }] }\n";
    services += &slice("default/static-nginx", "", 7443, &[ready(SERVER)]);
    manifests.write("services.yaml", &services)?;
    let mut openssl = world.net.server.command("openssl");
    openssl
        .args(["s_server", "-accept", "7443", "-www", "-quiet", "-cert"])
        .arg(&leaf.chain)
        .arg("-key")
        .arg(&leaf.key);
    let mut s_server = Process::spawn("openssl", openssl)?;
    s_server.wait_listening(&[7443])?;
    let gateway = manifests.serve(&world)?;

    for (arguments, status, text) in [
        (vec!["http://10.0.1.1/details"], "200", "details"),
        (vec!["http://10.0.1.1/details/x?y"], "200", "details"),
        (vec!["http://10.0.1.1/detailsx"], "404", ""),
        (vec!["-H", "magic: foo", "http://10.0.1.1/x?great=example"], "200", "frontpage"),
        (vec!["-H", "magic: foo", "http://10.0.1.1/x?great=other"], "404", ""),
        (vec!["-H", "magic: bar", "http://10.0.1.1/x?great=example"], "404", ""),
        (vec!["-X", "PUT", "-H", "magic: foo", "http://10.0.1.1/x?great=example"], "404", ""),
        (vec!["https://books.shop.example.com/details"], "200", "details"),
        (vec!["https://tools.shop.example.com/other"], "200", "frontpage"),
        (vec!["--http1.1", "https://tools.shop.example.com/other"], "200", "frontpage"),
        // A connection to one listener for the host of another, of none, and of a route whose TLS is passed through.
        (vec!["-H", "Host: tools.shop.example.com", "https://books.shop.example.com/"], "421", ""),
        (
            vec!["--http1.1", "-H", "Host: tools.shop.example.com", "https://books.shop.example.com/"],
            "421",
            "",
        ),
        (vec!["-H", "Host: static.shop.example.com", "https://books.shop.example.com/"], "421", ""),
        (vec!["-H", "Host: nobody.example.com", "https://books.shop.example.com/"], "404", ""),
    ] {
        let (found, body) = curl(&world, &arguments)?;
        assert_eq!(found, status, "{arguments:?}: {body}");
        assert!(text.is_empty() || body == text, "{arguments:?}: {body}");
    }
    let (status, page) = curl(&world, &["https://static.shop.example.com/"])?;
    assert!(status == "200" && page.contains("s_server"), "{status} {page}");
    let shop = wait_object(&gateway, "Gateway", "shop", "its status", |object| object["status"].is_object())?;
    let listeners = shop["status"]["listeners"].as_array().context("a list")?;
    let attached: Vec<_> = listeners.iter().map(|each| each["attachedRoutes"].clone()).collect();
    assert_eq!(attached, [2, 1, 1]);

    // 500 requests, each drawn by weight: within five standard deviations.
    let count = || -> Result<(usize, usize)> {
        let mut curl = world.net.client.command("curl");
        let text = checked_output(curl.args(["-s", "-S", "-f", "http://10.0.1.1/echo?[1-500]"]))?;
        let lines = |name: &str| text.lines().filter(|line| *line == name).count();
        Ok((lines("echo-1"), lines("echo-2")))
    };
    let (first, second) = count()?;
    assert_eq!(first + second, 500);
    assert!((194..=306).contains(&first), "{first} of 500");
    let split = deployed("3-bookshop-http.yaml")?;
    let moved = split
        .replace("name: echo-1, port: 8080, weight: 50", "name: echo-1, port: 8080, weight: 1")
        .replace("name: echo-2, port: 8090, weight: 50", "name: echo-2, port: 8090, weight: 99");
    assert_ne!(split, moved);
    manifests.write("3-bookshop-http.yaml", &moved)?;
    // As soon as it is in force, the first gets no more than a few.
    let (first, second) = eventually("the other weights", || {
        let (first, second) = count().ok()?;
        (first <= 17).then_some((first, second))
    })?;
    assert_eq!(first + second, 500);
    Ok(())
}

#[test]
fn two_versions_of_a_service_by_istios_objects() -> Result<()> {
    let world = World::new()?;
    let leaf = world.authority.leaf(&["hello.example.com"])?;
    let (mut servers, mut endpoints, mut more) = (Vec::new(), Vec::new(), String::new());
    for (version, host) in PODS {
        world.net.server.address("eth0", &format!("{host}/24"))?;
        servers.push(named_at(&world.net.server, host, &[(version, 5000)])?);
        endpoints.push(endpoint(host, &format!("hello-{version}")));
        more += &pod(&format!("hello-{version}"), version);
    }
    more += &slice("sample/hello", "http", 5000, &endpoints);
    more += &secret("edge-system/hello-cert", &leaf)?;
    more += "---\napiVersion: v1\nkind: Service\nmetadata: { name: hello, namespace: sample }\nspec: { ports: [{ name: http, port: 5000 }] }\n";
    let manifests = Manifests::new(Some("4-east-west-istio.yaml"))?;
    manifests.write("more.yaml", &more)?;
    let _gateway = manifests.serve_with(&world, ISTIO, Launch::default())?;
    let hello = |path: &str| {
        let mut curl = world.net.client.command("curl");
        curl.args(["-s", "-S", "-f", "--resolve", "hello.example.com:443:10.0.1.1", "--cacert"]);
        checked_output(curl.arg(&world.authority.path).arg(format!("https://hello.example.com{path}")))
    };
    // That the port is listened on was known from the first server already.
    eventually("both versions", || hello("/hello?[1-50]").ok()?.contains("v2").then_some(()))?;
    let text = hello("/hello?[1-500]")?;
    let second = text.lines().filter(|line| *line == "v2").count();
    assert_eq!(text.lines().filter(|line| *line == "v1").count() + second, 500);
    // A tenth: within five standard deviations.
    assert!((17..=83).contains(&second), "{second} of 500");
    assert!(hello("/").is_err());
    Ok(())
}

/// A connection that is kept.
struct Kept(BufReader<TcpStream>);

impl Kept {
    /// The status and the text of the answer to a request.
    fn get(&mut self, path: &str) -> Result<(u16, String)> {
        write!(self.0.get_mut(), "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line.split(' ').nth(1).context("a status line")?.parse()?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            match line.trim_end().to_ascii_lowercase().split_once(": ") {
                Some(("content-length", value)) => length = value.parse()?,
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((status, String::from_utf8_lossy(&body).trim_end().to_owned()))
    }
}

#[test]
fn what_is_not_granted_any_more_is_refused_on_open_connections_too() -> Result<()> {
    let world = World::new()?;
    let _server = named(&world.net.server, &[("other", 8080)])?;
    let manifests = Manifests::new(None)?;
    manifests.write("service.yaml", &service("other/echo", 8080))?;
    manifests.write(
        "web.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: { name: web }\n\
         spec: { gatewayClassName: edge, listeners: [{ name: web, protocol: HTTP, port: 80 }] }\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: web }\n\
         spec: { parentRefs: [{ name: web }], rules: [{ backendRefs: [{ name: echo, namespace: other, port: 8080 }] }] }\n",
    )?;
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: { name: grant, namespace: other }\n\
                 spec: { from: [{ group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default }], to: [{ group: \"\", kind: Service }] }\n";
    manifests.write("grant.yaml", grant)?;
    let _gateway = manifests.serve(&world)?;
    let mut kept = Kept(BufReader::new(world.connect(80)?));
    assert_eq!(kept.get("/")?, (200, "other".to_owned()));
    manifests.remove("grant.yaml")?;
    eventually("its end", || (kept.get("/").ok()?.0 == 500).then_some(()))?;
    manifests.write("grant.yaml", grant)?;
    eventually("it again", || (kept.get("/").ok()?.0 == 200).then_some(()))?;
    Ok(())
}
