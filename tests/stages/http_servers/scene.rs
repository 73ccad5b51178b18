//! The gateway, a good server, and what a client gets.

use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::Gateway;
use snisplice_tests::backend::Backend;
use snisplice_tests::eventually;
use snisplice_tests::process::find_program;

use crate::config::pool;
use crate::http_hostile::HOST;
use crate::tolerance::answers;
use crate::world::World;

use super::echo::echo;

/// The ports of the servers: a good one, one of HTTP/1.1 and one of HTTP/2 without TLS that do as they are told.
pub(super) const GOOD: u16 = 80;
pub(super) const ODD: u16 = 81;
pub(super) const ODD_HTTP2: u16 = 82;

/// How curl asks the gateway.
pub(super) const VERSIONS: [&str; 2] = ["--http1.1", "--http2-prior-knowledge"];

/// The gateway without TLS and with one worker, and a good server behind it; `/odd` and `/odd2` are for the other ones.
pub(super) struct Scene {
    pub(super) gateway: Gateway,
    _good: Backend,
    pub(super) world: World,
}

impl Scene {
    /// `of_route`, `of_rules`: more of the route, and of the rules for the odd servers.
    pub(super) fn new(of_route: &str, of_rules: &str) -> Result<Self> {
        Self::with(of_route, of_rules, &pool("odd", &[ODD], ""))
    }

    /// `odd`: the pool of the server of HTTP/1.1.
    pub(super) fn with(of_route: &str, of_rules: &str, odd: &str) -> Result<Self> {
        let world = World::new()?;
        let good = Backend::start(&world.net.server, GOOD, echo)?;
        let rule = |path: &str, pool: &str| {
            format!(
                "[[route.rule]]\nmatch = [{{ path_prefix = '/{path}' }}]\nbackends = ['{pool}']\n{of_rules}\n"
            )
        };
        let config = format!(
            "[gateway]\nworkers = 1\nadmin = '127.0.0.1:9900'\n[[listener]]\nname = 'web'\nbind = ['0.0.0.0:80']\nprotocol = 'http'\n\
             [[route]]\nname = 'app'\nlistener = 'web'\nsni = ['{HOST}']\n{of_route}\n{}{}[[route.rule]]\nbackends = ['good']\n",
            rule("odd", "odd"),
            rule("odd2", "odd2")
        ) + &pool("good", &[GOOD], "")
            + odd
            + &pool("odd2", &[ODD_HTTP2], "http2 = true");
        let gateway = world.gateway(&config)?;
        Ok(Self { gateway, _good: good, world })
    }

    pub(super) fn connect(&self) -> Result<TcpStream> {
        self.world.connect(80)
    }

    /// What curl gets.
    pub(super) fn ask(&self, version: &str, path: &str, more: &[&str]) -> Result<Got> {
        let mut curl = self.world.net.client.command(find_program("curl").context("no curl")?);
        curl.args(["--silent", "--include", "--max-time", "60", "--resolve", &format!("{HOST}:80:10.0.1.1")]);
        let output = curl.args([version]).args(more).arg(format!("http://{HOST}{path}")).output()?;
        ensure!(output.status.code() != Some(28), "there is no end: {output:?}");
        let end = output.stdout.windows(4).position(|window| window == b"\r\n\r\n");
        let (head, body) = match end {
            Some(end) => (&output.stdout[..end], &output.stdout[end + 4..]),
            None => (&output.stdout[..0], &output.stdout[..0]),
        };
        let head = String::from_utf8_lossy(head).to_ascii_lowercase();
        Ok(Got { head, body: body.to_vec(), is_whole: output.status.success() })
    }

    /// A request gets the answer that was made for it.
    pub(super) fn own(&self, version: &str, path: &str) -> Result<()> {
        let got = self.ask(version, path, &[])?;
        ensure!(got.status() == "200" && got.is_whole && got.body == path.as_bytes(), "{path}: {got:?}");
        Ok(())
    }

    pub(super) fn serves_others(&self) -> Result<()> {
        self.own(VERSIONS[0], "/other")
    }

    /// How many requests the servers have failed, as the gateway has counted them.
    pub(super) fn failed(&self) -> Result<u64> {
        answers(&self.world.net.gateway, "server_failed")
    }

    /// The request for this was refused, in the gateway's words, and counted with its reason.
    pub(super) fn refused(&self, version: &str, path: &str, more: &[&str]) -> Result<()> {
        let before = self.failed()?;
        let got = self.ask(version, path, more)?;
        let says_so = got.body == b"Bad Gateway" || more.contains(&"--head");
        ensure!(got.status() == "502" && got.is_whole && says_so, "{got:?}");
        self.counted(before)
    }

    /// The answer to this began maybe, and its client has seen that it did not come to its end; that was counted as well.
    pub(super) fn cut(&self, version: &str, path: &str, most: &[u8]) -> Result<()> {
        let before = self.failed()?;
        let got = self.ask(version, path, &[])?;
        ensure!(
            !got.is_whole && matches!(got.status(), "" | "200") && most.starts_with(&got.body),
            "{got:?}"
        );
        self.counted(before)
    }

    /// One more has failed, and none besides. The client may know before that is written down.
    pub(super) fn counted(&self, before: u64) -> Result<()> {
        eventually("one more failure", || self.failed().ok().filter(|failed| *failed > before))?;
        ensure!(self.failed()? == before + 1, "it was counted twice");
        Ok(())
    }

    /// Sends a request in HTTP/1.1; all that comes back until the end.
    pub(super) fn raw(&self, request: &str) -> Result<String> {
        let mut stream = self.connect()?;
        io_write(&mut stream, request)?;
        let mut answer = Vec::new();
        // A reset behind the answer is for others to judge.
        let _ = stream.read_to_end(&mut answer);
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

fn io_write(stream: &mut TcpStream, text: &str) -> Result<()> {
    Ok(std::io::Write::write_all(stream, text.as_bytes())?)
}

/// What has come of a request.
#[derive(Debug)]
pub(super) struct Got {
    /// Lower case; empty: there was no answer.
    pub(super) head: String,
    pub(super) body: Vec<u8>,
    /// curl has no objection.
    pub(super) is_whole: bool,
}

impl Got {
    pub(super) fn status(&self) -> &str {
        self.head.split(' ').nth(1).map_or("", |status| status.trim())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.head.lines().any(|line| line.starts_with(&format!("{name}:")))
    }
}

/// Tries each case in each version; all that went wrong, at once.
pub(super) fn each<C: std::fmt::Debug>(cases: &[C], check: impl Fn(&str, &C) -> Result<()>) -> Result<()> {
    let mut wrong = Vec::new();
    for (version, case) in
        VERSIONS.into_iter().flat_map(|version| cases.iter().map(move |case| (version, case)))
    {
        if let Err(error) = check(version, case) {
            let case: String = format!("{case:?}").chars().take(300).collect();
            wrong.push(format!("{version} {case}: {error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

/// Set when a test is over, so that the threads of its servers end.
#[derive(Clone, Default)]
pub(super) struct Over(pub(super) Arc<AtomicBool>);

impl Over {
    pub(super) fn is_over(&self) -> bool {
        self.0.load(Relaxed)
    }
}

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
