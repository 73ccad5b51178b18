//! A subject that runs.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use snisplice_tests::process::checked_output;
use snisplice_tests::{Process, eventually, topology};

use super::bpffs::{bpffs, remove};
use super::kind::Kind;
use super::log::complaints;
use super::service::{Endpoint, PASSTHROUGH, RELAY_BULK, RELAY_SECOND, Service, TCP_IPERF, TCP_REDIS};
use super::size::Size;
use crate::machine;
use crate::path::memory;
use crate::path::topology::{
    BULK_PORT, BULK_TLS_PORT, DOMAIN, HTTP_PORT, IPERF_PORT, REDIS_PORT, REDIS_TLS_PORT, SECOND_TLS_PORT,
    Site,
};

/// Of bench/peers/snisplice.toml, in the gateway's namespace.
const ADMIN: &str = "127.0.0.1:9900";

/// What the subjects are built from.
pub(crate) struct Stand {
    pub(crate) site: Site,
    /// The gateway's program, if it takes part.
    pub(crate) snisplice: Option<PathBuf>,
    /// This program, which has the tools of ours.
    pub(crate) own: PathBuf,
}

/// A running subject. Dropping it ends it.
pub(crate) struct Subject<'s> {
    pub(crate) kind: Kind,
    stand: &'s Stand,
    processes: Vec<Process>,
    size: Size,
}

impl<'s> Subject<'s> {
    /// Starts the subject in the gateway's namespace and waits until it is ready: how long that took, once its configuration
    /// was written.
    pub(crate) fn start(kind: Kind, stand: &'s Stand, size: Size) -> Result<(Self, Duration)> {
        let mut subject = Subject { kind, stand, processes: Vec::new(), size };
        fs::create_dir_all(subject.dir())?;
        subject.configure()?;
        let start = Instant::now();
        subject.launch()?;
        Ok((subject, start.elapsed()))
    }

    /// Where clients of a service connect to.
    pub(crate) fn endpoint(&self, service: Service) -> Endpoint {
        let address = match (self.kind, service) {
            (Kind::Bare, _) => service.direct(),
            (Kind::Splice2, Service::BulkTls) => topology::gateway(RELAY_BULK),
            (Kind::Splice2, Service::SecondTls) => topology::gateway(RELAY_SECOND),
            _ => topology::gateway(service.port()),
        };
        Endpoint { address, sni: format!("{}.{DOMAIN}", service.name()) }
    }

    /// Bytes of memory of its processes and their workers, shared pages shared out (PSS); 0 of the bare route.
    pub(crate) fn memory(&self) -> Result<u64> {
        self.processes.iter().map(|process| memory::of_group(process.pid())).sum()
    }

    /// Makes it read its configuration again, with one more route than before. Returns at once.
    pub(crate) fn reload(&mut self) -> Result<()> {
        self.size.routes += 1;
        self.configure()?;
        let signal = match self.kind {
            // The master starts new workers; the old ones end with their connections.
            Kind::Haproxy | Kind::HaproxySplice => Signal::SIGUSR2,
            // It watches the file of its listeners.
            Kind::Envoy => return Ok(()),
            _ => Signal::SIGHUP,
        };
        self.processes.iter().try_for_each(|process| process.signal(signal))
    }

    /// Makes the gateway read its configuration again, with one more route than before; how long it takes until the new
    /// one is in force.
    pub(crate) fn reload_and_wait(&mut self) -> Result<Duration> {
        self.size.routes += 1;
        self.configure()?;
        let mut command = self.command("reload")?;
        let start = Instant::now();
        checked_output(&mut command)?;
        Ok(start.elapsed())
    }

    /// Seconds of CPU that its processes have used.
    pub(crate) fn cpu(&self) -> Result<f64> {
        self.processes.iter().map(|process| memory::cpu_of_group(process.pid())).sum()
    }

    /// Whether it sends new connections of this pool to the second Redis, by its own account.
    pub(crate) fn uses_second(&self, pool: &str) -> Result<bool> {
        let server = topology::server(SECOND_TLS_PORT);
        if self.kind.is_ours() {
            let line = format!("snisplice_server_up{{pool=\"{pool}\",server=\"{server}\"}} ");
            let metrics = self.admin("/metrics")?;
            let (_, rest) = metrics.split_once(&line).with_context(|| format!("no {line} in\n{metrics}"))?;
            return Ok(rest.starts_with('1'));
        }
        let mut socket = UnixStream::connect(self.dir().join("admin.sock"))?;
        writeln!(socket, "show servers state {pool}")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        // The fields are named in the second line; the fourth is the server's name, the sixth its state: 2 is "running".
        let mut lines = answer.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let state =
            lines.find_map(|fields| (*fields.get(3)? == "second").then(|| fields.get(5) == Some(&"2")));
        state.with_context(|| format!("no server \"second\" in\n{answer}"))
    }

    /// Ends it as a service manager (SIGTERM) or an accident (SIGKILL, to all of its processes) would, and starts it
    /// again at once.
    pub(crate) fn restart(&mut self, signal: Signal) -> Result<()> {
        self.end(signal)?;
        self.start_again()
    }

    /// Starts it again after [`end`](Self::end), and waits until it serves.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        self.launch()
    }

    /// Ends it as [`restart`](Self::restart) does.
    pub(crate) fn end(&mut self, signal: Signal) -> Result<()> {
        for process in &mut self.processes {
            let mut group = vec![process.pid()];
            if signal == Signal::SIGKILL {
                group.extend(memory::children(process.pid())?);
            }
            for pid in &group {
                kill(Pid::from_raw(pid.cast_signed()), signal).or_else(|error| {
                    // A worker that ended with its master.
                    if error == nix::Error::ESRCH { Ok(()) } else { Err(error) }
                })?;
            }
            process.wait(Duration::from_secs(10))?;
            eventually("the workers to end", || {
                group.iter().all(|pid| !Path::new(&format!("/proc/{pid}/exe")).exists()).then_some(())
            })?;
        }
        self.processes.clear();
        Ok(())
    }

    /// Makes sure that connections took the tier that is to be measured.
    pub(crate) fn check_tier(&self) -> Result<Vec<String>> {
        let Some(tier) = self.kind.tier().filter(|tier| *tier != "copy") else {
            return Ok(Vec::new());
        };
        let status = self.status()?;
        let fallbacks: Vec<String> = status["tier_fallbacks"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, count)| count.as_u64().is_some_and(|count| count > 0))
            .map(|(reason, count)| format!("{count} with {reason}"))
            .collect();
        let taken = status["tiers"][tier]["total"].as_u64().unwrap_or(0);
        ensure!(taken > 0, "no connection took the {tier} tier: {}", fallbacks.join(", "));
        Ok(fallbacks.iter().map(|reason| format!("connections in another tier: {reason}")).collect())
    }

    /// Ends it and returns what it complained about in its log.
    pub(crate) fn stop(mut self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for mut process in std::mem::take(&mut self.processes) {
            let output = process.stdout() + &process.stderr();
            ensure!(process.is_running(), "{} ended by itself\n{output}", self.kind.name());
            process.stop()?;
            found.extend(complaints(&output));
        }
        self.unload()?;
        found.dedup();
        Ok(found)
    }

    /// Takes the kernel programs away: they would serve on, and slow down the next subject.
    fn unload(&self) -> Result<()> {
        let pins = bpffs();
        if self.kind.is_ours() && pins.exists() {
            let mut command = self.stand.site.triangle.gateway.command(self.snisplice()?);
            command.args(["unload", "--force", "-c"]).arg(self.dir().join("snisplice.toml"));
            checked_output(&mut command)?;
            remove(&pins)?;
        }
        Ok(())
    }

    fn dir(&self) -> PathBuf {
        self.stand.site.dir().join(self.kind.name())
    }

    fn snisplice(&self) -> Result<&Path> {
        self.stand.snisplice.as_deref().context("no snisplice binary")
    }

    /// Writes the configuration. Each file appears complete, by a rename: Envoy reads it as soon as it changes.
    fn configure(&self) -> Result<()> {
        let (routes, pools) = self.size.text(self.kind);
        let rules = self.size.rules(self.kind);
        for (file, template) in self.kind.templates() {
            let path = self.dir().join(file);
            let new = path.with_extension("new");
            let filled = self.fill(template)?;
            let filled = filled.replace("{{routes}}", &routes).replace("{{rules}}", &rules);
            fs::write(&new, filled.replace("{{pools}}", &pools))?;
            fs::rename(new, path)?;
        }
        Ok(())
    }

    /// The template with every `{{name}}` replaced but those of many lines.
    fn fill(&self, template: &str) -> Result<String> {
        let site = &self.stand.site;
        let path = |path: &Path| path.display().to_string();
        let server = |port| topology::server(port).to_string();
        let open_files = machine::open_files()?;
        // HAProxy reserves a descriptor for each server that it checks.
        let checks = if self.size.checked { self.size.pools * self.size.servers } else { 0 };
        let max_connections = self.kind.capacity(open_files.saturating_sub(checks.into()));
        let options = if self.kind == Kind::HaproxySplice { "option splice-auto" } else { "" };
        let values = [
            ("cores", machine::cores()?.to_string()),
            ("open_files", open_files.to_string()),
            ("max_connections", max_connections.min(200_000).to_string()),
            ("flow_table", self.size.flow_table().to_string()),
            ("dir", path(&self.dir())),
            ("bpffs", path(&bpffs())),
            ("domain", DOMAIN.to_owned()),
            ("tier", self.kind.tier().unwrap_or_default().to_owned()),
            ("options", options.to_owned()),
            ("load_stream", if self.kind == Kind::Nginx { nginx_stream_module()? } else { String::new() }),
            ("server_address", topology::SERVER.to_string()),
            ("redis", server(REDIS_PORT)),
            ("redis_tls", server(REDIS_TLS_PORT)),
            ("second_tls", server(SECOND_TLS_PORT)),
            ("bulk", server(BULK_PORT)),
            ("bulk_tls", server(BULK_TLS_PORT)),
            ("iperf", server(IPERF_PORT)),
            ("http", server(HTTP_PORT)),
            ("certificate", path(&site.leaf.chain)),
            ("key", path(&site.leaf.key)),
            ("combined", path(&site.combined)),
        ];
        let text = values
            .iter()
            .fold(template.to_owned(), |text, (name, value)| text.replace(&format!("{{{{{name}}}}}"), value));
        let left = text.lines().find(|line| {
            !line.trim_start().starts_with('#')
                && !["{{routes}}", "{{rules}}", "{{pools}}"].contains(&line.trim())
                && line.contains("{{")
        });
        ensure!(left.is_none(), "a placeholder was left over: {left:?}");
        Ok(text)
    }

    /// Starts its processes.
    fn launch(&mut self) -> Result<()> {
        for command in self.commands()? {
            self.processes.push(Process::spawn(self.kind.name(), command)?);
        }
        let ports = self.kind.ports();
        // A large configuration takes its time to read; a process that ends is noticed at once.
        let patience = if self.size.routes.max(self.size.pools) >= 10_000 { 6 } else { 1 };
        for process in &mut self.processes {
            let mut outcome = Ok(());
            for _ in 0..patience {
                outcome = process.wait_listening(ports);
                if outcome.is_ok() || !process.is_running() {
                    break;
                }
            }
            outcome?;
        }
        if self.kind.is_ours() {
            // It listens before its workers accept, and accepts before the packet tier is there.
            let mut said = String::new();
            eventually("the gateway and its tier", || {
                // Not by the status, which shows every route.
                said = self.admin("/readyz").ok()?;
                (said.contains(" 200 ") && !said.contains("loading")).then_some(())
            })
            .with_context(|| said.clone())?;
        }
        Ok(())
    }

    /// What a page of the gateway's admin address says.
    pub(crate) fn admin(&self, page: &str) -> Result<String> {
        self.stand.site.triangle.gateway.run(|| {
            let mut stream = TcpStream::connect(ADMIN)?;
            write!(stream, "GET {page} HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
    }

    /// How many connections the gateway has open in its tier, by its own account.
    pub(crate) fn open(&self) -> Result<u64> {
        let tier = self.kind.tier().context("it has no tiers")?;
        self.status()?["tiers"][tier]["active"].as_u64().context("no number of connections")
    }

    /// `snisplice status --json`.
    fn status(&self) -> Result<Value> {
        let mut command = self.command("status")?;
        Ok(serde_json::from_str(&checked_output(command.arg("--json"))?)?)
    }

    /// A command to the running gateway.
    fn command(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(self.snisplice()?);
        command.args([name, "-c"]).arg(self.dir().join("snisplice.toml"));
        Ok(command)
    }

    /// The commands that run it in the foreground.
    fn commands(&self) -> Result<Vec<Command>> {
        let dir = self.dir();
        let cores = machine::cores()?;
        let gateway = &self.stand.site.triangle.gateway;
        let command = match self.kind {
            Kind::Bare => return Ok(Vec::new()),
            Kind::SnisplicePacket | Kind::SnispliceSockmap | Kind::SnispliceCopy => {
                let mut command = gateway.command(self.snisplice()?);
                // Warnings only, as for every peer.
                command.args(["run", "-c"]).arg(dir.join("snisplice.toml")).env("RUST_LOG", "warn");
                command
            }
            Kind::Splice2 => {
                let mut command = gateway.command(&self.stand.own);
                command.args(["tool", "relay", "--threads", &cores.to_string()]);
                for (port, target) in [
                    (PASSTHROUGH, REDIS_TLS_PORT),
                    (TCP_IPERF, IPERF_PORT),
                    (TCP_REDIS, REDIS_PORT),
                    (RELAY_BULK, BULK_TLS_PORT),
                    (RELAY_SECOND, SECOND_TLS_PORT),
                ] {
                    command.args(["--forward", &format!("0.0.0.0:{port}={}", topology::server(target))]);
                }
                command
            }
            Kind::Haproxy | Kind::HaproxySplice => {
                let mut command = gateway.command("haproxy");
                command.args(["-W", "-db", "-f"]).arg(dir.join("haproxy.cfg"));
                command
            }
            Kind::Nginx => {
                let mut command = gateway.command("nginx");
                command.args(["-e", "stderr", "-p"]).arg(&dir).arg("-c").arg(dir.join("nginx.conf"));
                command
            }
            Kind::Envoy => {
                let mut command = gateway.command("envoy");
                command.args(["--disable-hot-restart", "--log-level", "warning"]);
                command.args(["--concurrency", &cores.to_string(), "-c"]).arg(dir.join("envoy.yaml"));
                command
            }
        };
        Ok(vec![command])
    }
}

impl Drop for Subject<'_> {
    /// After a failure: a killed nginx would leave its workers behind, one that is asked to end does not.
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.stop();
        }
        if let Err(error) = self.unload() {
            eprintln!("warning: kernel programs may be left behind: {error:#}");
        }
    }
}

/// The line that loads nginx's stream module where it is not built in, as on Debian. The path is nginx's own: it may run in
/// another root directory.
fn nginx_stream_module() -> Result<String> {
    let output = Command::new("nginx").arg("-V").output().context("nginx is missing")?;
    let options = String::from_utf8_lossy(&output.stderr).into_owned();
    if !options.contains("--with-stream=dynamic") {
        return Ok(String::new());
    }
    let modules = options
        .split_ascii_whitespace()
        .find_map(|option| option.strip_prefix("--modules-path="))
        .context("nginx -V names no --modules-path")?;
    Ok(format!("load_module {modules}/ngx_stream_module.so;"))
}
