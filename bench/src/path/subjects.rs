//! The subjects: what can stand between the client and the server.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use snisplice_tests::{Process, topology};

use super::memory;
use super::topology::{IPERF_PORT, REDIS_PORT, REDIS_TLS_PORT, SNI, Site};
use crate::machine;

/// Who forwards the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Snisplice,
    Haproxy,
    /// HAProxy with `option splice-auto`.
    HaproxySplice,
    Nginx,
    Envoy,
    /// Nobody: the gateway's kernel routes the packets. The limit, for termination too: the server then does it.
    Direct,
}

/// What the subject is asked to do; each has its own port, the same for every subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Route by SNI, leave the TLS alone.
    Passthrough,
    /// Route by SNI, end the TLS here, plain TCP to the server.
    Terminated,
    /// Forward every connection.
    Tcp,
}

/// A running subject. Dropping it ends it.
pub(crate) struct Subject {
    kind: Kind,
    process: Option<Process>,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Snisplice => crate::report::OURS,
            Kind::Haproxy => "haproxy",
            Kind::HaproxySplice => "haproxy-splice",
            Kind::Nginx => "nginx",
            Kind::Envoy => "envoy",
            Kind::Direct => "direct",
        }
    }

    /// The program it is, unless it is none.
    pub(crate) fn program(self) -> Option<&'static str> {
        match self {
            Kind::HaproxySplice => Some("haproxy"),
            Kind::Direct => None,
            Kind::Snisplice | Kind::Haproxy | Kind::Nginx | Kind::Envoy => Some(self.name()),
        }
    }

    /// Starts the subject in the gateway's namespace and waits until it listens.
    pub(crate) fn start(self, site: &Site, snisplice: Option<&Path>) -> Result<Subject> {
        let Some(command) = self.command(site, snisplice)? else {
            return Ok(Subject { kind: self, process: None });
        };
        let mut process = Process::spawn(self.name(), command)?;
        process.wait_listening(&[Mode::Passthrough.port(), Mode::Terminated.port(), Mode::Tcp.port()])?;
        Ok(Subject { kind: self, process: Some(process) })
    }

    /// The command that runs it in the foreground, its configuration written.
    fn command(self, site: &Site, snisplice: Option<&Path>) -> Result<Option<Command>> {
        let dir = site.dir().join(self.name());
        fs::create_dir_all(&dir)?;
        let config = |file: &str, template: &str, extra: &[(&str, &str)]| -> Result<PathBuf> {
            let path = dir.join(file);
            fs::write(&path, fill(template, site, &dir, extra)?)?;
            Ok(path)
        };
        let gateway = &site.triangle.gateway;
        let command = match self {
            Kind::Direct => return Ok(None),
            Kind::Snisplice => {
                let config = config("snisplice.toml", include_str!("../../peers/snisplice.toml"), &[])?;
                let mut command = gateway.command(snisplice.context("no snisplice binary")?);
                // Warnings only, as for every peer.
                command.args(["run", "-c"]).arg(config).env("RUST_LOG", "warn");
                command
            }
            Kind::Haproxy | Kind::HaproxySplice => {
                let options = if self == Kind::HaproxySplice { "option splice-auto" } else { "" };
                let template = include_str!("../../peers/haproxy.cfg");
                let config = config("haproxy.cfg", template, &[("options", options)])?;
                let mut command = gateway.command("haproxy");
                command.args(["-db", "-f"]).arg(config);
                command
            }
            Kind::Nginx => {
                let template = include_str!("../../peers/nginx.conf");
                let config = config("nginx.conf", template, &[("load_stream", &nginx_stream_module()?)])?;
                let mut command = gateway.command("nginx");
                command.args(["-e", "stderr", "-p"]).arg(&dir).arg("-c").arg(config);
                command
            }
            Kind::Envoy => {
                let config = config("envoy.yaml", include_str!("../../peers/envoy.yaml"), &[])?;
                let mut command = gateway.command("envoy");
                command.args(["--disable-hot-restart", "--log-level", "warning", "--concurrency"]);
                command.arg(machine::cores()?.to_string()).arg("-c").arg(config);
                command
            }
        };
        Ok(Some(command))
    }
}

impl Mode {
    fn port(self) -> u16 {
        match self {
            Mode::Passthrough => 7001,
            Mode::Terminated => 7002,
            Mode::Tcp => 7003,
        }
    }
}

impl Subject {
    /// The address clients use for `mode`.
    pub(crate) fn target(&self, mode: Mode) -> SocketAddr {
        match (self.kind, mode) {
            (Kind::Direct, Mode::Passthrough | Mode::Terminated) => topology::server(REDIS_TLS_PORT),
            (Kind::Direct, Mode::Tcp) => topology::server(IPERF_PORT),
            _ => topology::gateway(mode.port()),
        }
    }

    /// Bytes of memory of the process and its workers, shared pages shared out (PSS).
    pub(crate) fn memory(&self) -> Result<u64> {
        memory::of_group(self.process.as_ref().context("direct has no process")?.pid())
    }

    /// Ends it and returns what it complained about in its log.
    pub(crate) fn stop(mut self) -> Result<Vec<String>> {
        let Some(mut process) = self.process.take() else {
            return Ok(Vec::new());
        };
        let output = process.stdout() + &process.stderr();
        ensure!(process.is_running(), "{} ended by itself\n{output}", self.kind.name());
        process.stop()?;
        Ok(complaints(&output))
    }
}

impl Drop for Subject {
    /// After a failure: a killed nginx would leave its workers behind, one that is asked to end does not.
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.stop();
        }
    }
}

/// The distinct lines that look like trouble, at most a few.
fn complaints(output: &str) -> Vec<String> {
    const SIGNS: &[&str] = &["warn", "error", "alert", "crit", "emerg", "panic", "fatal"];
    let mut found: Vec<String> = Vec::new();
    // iperf3's server ends its connections with a reset.
    for line in output.lines().filter(|line| !line.contains("reset by peer")) {
        let lower = line.to_lowercase();
        if SIGNS.iter().any(|sign| lower.contains(sign)) && !found.iter().any(|known| known == line) {
            found.push(line.chars().filter(|c| !c.is_control()).take(300).collect());
        }
        if found.len() == 5 {
            break;
        }
    }
    found
}

/// The template with every `{{name}}` replaced.
fn fill(template: &str, site: &Site, dir: &Path, extra: &[(&str, &str)]) -> Result<String> {
    let path = |path: &Path| path.display().to_string();
    let server = |port| topology::server(port).to_string();
    let common = [
        ("cores", machine::cores()?.to_string()),
        ("dir", path(dir)),
        ("sni", SNI.to_owned()),
        ("server_address", topology::SERVER.to_string()),
        ("redis", server(REDIS_PORT)),
        ("redis_tls", server(REDIS_TLS_PORT)),
        ("iperf", server(IPERF_PORT)),
        ("certificate", path(&site.leaf.chain)),
        ("key", path(&site.leaf.key)),
        ("combined", path(&site.combined)),
    ];
    let common = common.iter().map(|(name, value)| (*name, value.as_str()));
    let filled = common
        .chain(extra.iter().copied())
        .fold(template.to_owned(), |text, (name, value)| text.replace(&format!("{{{{{name}}}}}"), value));
    let text: Vec<_> = filled.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    ensure!(!text.join("\n").contains("{{"), "a placeholder was left over:\n{filled}");
    Ok(filled)
}

/// The line that loads nginx's stream module where it is not built in, as on Debian.
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
    let module = Path::new(modules).join("ngx_stream_module.so");
    ensure!(module.exists(), "{} is missing: install libnginx-mod-stream", module.display());
    Ok(format!("load_module {};", module.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_the_distinct_lines_of_trouble() {
        let log = "starting\n[WARNING] limits\n[WARNING] limits\nthread panicked\n";
        assert_eq!(complaints(log), ["[WARNING] limits", "thread panicked"]);
    }
}
