//! Requests of HTTP, with real clients and servers: curl, nginx, Python's http.server, websockets and grpcio.

mod bodies;
mod ended;
mod kept;
mod protocols;
mod rules;
mod statuses;

use std::path::PathBuf;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use snisplice_tests::process::{checked_output, find_program};
use snisplice_tests::skip::python_with;
use snisplice_tests::{Gateway, Process};

use crate::config::pool;
use crate::tolerance::answers;
use crate::world::World;

const NAME: &str = "site.example.com";

/// A site with TLS on port 443 and without on port 80, both with these rules; `a` and `b` are pools with a Python server each.
struct Scene {
    gateway: Gateway,
    a: Process,
    b: Process,
    world: World,
}

fn script(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "stages", "http", name].iter().collect()
}

/// Python with a script of this folder, in the servers' namespace.
fn serve(world: &World, module: &str, name: &str, args: &[&str], port: u16) -> Result<Process> {
    let python = python_with(module).with_context(|| format!("no Python with {module}"))?;
    let mut command = world.net.server.command(python);
    command.arg("-u").arg(script(name)).args(args);
    let mut process = Process::spawn(name, command)?;
    process.wait_listening(&[port])?;
    Ok(process)
}

/// The configuration of a site with these rules, and more.
fn site(world: &World, rules: &str, more: &str) -> Result<String> {
    let leaf = world.authority.leaf(&[NAME, "other.example.com"])?;
    let route = |name: &str, listener: &str, host: &str, extra: &str| {
        format!(
            "[[route]]\nname = '{name}'\nlistener = '{listener}'\nsni = ['{host}']\nprotocol = 'http'\n{extra}\n"
        )
    };
    let tls = format!("tls = 'terminate'\ncertificate = {}", leaf.toml());
    Ok("[gateway]\nworkers = 2\nadmin = '127.0.0.1:9900'\n".to_owned()
        + "[[listener]]\nname = 'secure'\nbind = ['0.0.0.0:443']\n"
        + "[[listener]]\nname = 'clear'\nbind = ['0.0.0.0:80']\nprotocol = 'http'\n"
        + &route("site", "secure", NAME, &tls)
        + rules
        + &route("other", "secure", "other.example.com", &tls)
        + "[[route.rule]]\nbackends = [{ pool = 'b' }]\n"
        + &route("open", "clear", NAME, "")
        + rules
        + &pool("a", &[8001], "")
        + &pool("b", &[8002], "")
        + more)
}

const ALL_TO_A: &str = "[[route.rule]]\nbackends = [{ pool = 'a' }]\n";

impl Scene {
    fn new(rules: &str, more: &str) -> Result<Self> {
        let world = World::new()?;
        let [a, b] = [("8001", "a", 8001), ("8002", "b", 8002)]
            .map(|(port, name, number)| serve(&world, "json", "server.py", &[port, name], number));
        let gateway = world.gateway(&site(&world, rules, more)?)?;
        Ok(Self { gateway, a: a?, b: b?, world })
    }

    /// What curl does with these arguments.
    fn curl(&self, args: &[&str]) -> Result<Output> {
        let mut curl = self.world.net.client.command(find_program("curl").context("no curl")?);
        curl.args(["--silent", "--show-error", "--max-time", "60", "--cacert"])
            .arg(&self.world.authority.path);
        for name in [NAME, "other.example.com"] {
            for port in [80, 443] {
                curl.args(["--resolve", &format!("{name}:{port}:10.0.1.1")]);
            }
        }
        Ok(curl.args(args).output()?)
    }

    /// Its output, of an exchange that succeeds.
    fn fetch(&self, args: &[&str]) -> Result<String> {
        let output = self.curl(args)?;
        ensure!(output.status.success(), "curl {args:?}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The status of the answer.
    fn status(&self, args: &[&str]) -> Result<String> {
        self.fetch(&[&["--output", "/dev/null", "--write-out", "%{http_code}"], args].concat())
    }

    /// Several exchanges at a time, in HTTP/2 on one connection: for each curl's exit code, the status, and how many bytes of the
    /// answer have come.
    fn together(&self, urls: &[&str]) -> Result<Vec<(u32, u32, u32)>> {
        self.together_into("/dev/null", urls)
    }

    /// The same; the first one's bytes are in this file as soon as curl has them.
    fn together_into(&self, first: &str, urls: &[&str]) -> Result<Vec<(u32, u32, u32)>> {
        let mut args = vec![
            "--no-buffer",
            "--parallel",
            "--write-out",
            "%{urlnum} %{exitcode} %{http_code} %{size_download} %{num_connects}\\n",
        ];
        let into = [first].into_iter().chain(std::iter::repeat("/dev/null"));
        urls.iter().zip(into).for_each(|(url, into)| args.extend(["--output", into, *url]));
        let output = self.curl(&args)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let numbers = text.lines().map(|line| line.split(' ').map(|part| Ok(part.parse()?)).collect());
        let mut lines: Vec<Vec<u32>> =
            numbers.collect::<Result<_>>().with_context(|| format!("{output:?}"))?;
        lines.sort();
        ensure!(lines.len() == urls.len(), "{output:?}");
        ensure!(lines.iter().map(|line| line[4]).sum::<u32>() == 1, "not one connection: {output:?}");
        Ok(lines.iter().map(|line| (line[1], line[2], line[3])).collect())
    }

    /// How many requests had this end, by the metrics.
    fn answers(&self, reason: &str) -> Result<u64> {
        answers(&self.world.net.gateway, reason)
    }

    /// What the Python server says that it has got.
    fn told(&self, args: &[&str]) -> Result<Value> {
        let text = self.fetch(args)?;
        serde_json::from_str(&text).with_context(|| text)
    }
}

/// A header of what the server says that it has got.
fn header<'t>(told: &'t Value, name: &str) -> Vec<&'t str> {
    let lines = told["headers"].as_array().into_iter().flatten();
    lines.filter(|line| line[0] == name).filter_map(|line| line[1].as_str()).collect()
}

/// All ways to speak with the site.
const WAYS: [(&str, &str); 4] = [
    ("--http1.1", "https://site.example.com"),
    ("--http2", "https://site.example.com"),
    ("--http1.1", "http://site.example.com"),
    ("--http2-prior-knowledge", "http://site.example.com"),
];

/// What a command in the clients' namespace prints.
fn ask(world: &World, module: &str, name: &str, args: &[&str]) -> Result<String> {
    let python = python_with(module).with_context(|| format!("no Python with {module}"))?;
    checked_output(world.net.client.command(python).arg(script(name)).args(args))
}
