//! A running snisplice with its own files.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use caps::{CapSet, Capability};
use command_fds::{CommandFdExt, FdMapping};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use serde_json::Value;
use toml::Table;

use crate::bpffs::BpfFs;
use crate::half_successor::HalfSuccessor;
use crate::hold::HeldLoads;
use crate::netns::NetNs;
use crate::process::Process;
use crate::tempdir::TempDir;
use crate::wait::{eventually, patience};

/// Names the snisplice binary under test; without it, the one beside the test's own executable is used.
pub const BIN_ENV: &str = "SNISPLICE_BIN";

/// Whether gateways find a bpf file system. Without one there is no packet tier: the tests of the stages test userspace.
pub static PACKET_TIER: AtomicBool = AtomicBool::new(true);

/// Unusual circumstances to start a gateway in.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// The limit of open files, soft and hard.
    pub open_files: Option<u64>,
    /// What the process sees as /etc/resolv.conf.
    pub resolv_conf: Option<String>,
    /// The sockets that it inherits as from a service manager (LISTEN_FDS).
    pub inherited: Arc<Vec<OwnedFd>>,
    /// The socket to which it reports its state (NOTIFY_SOCKET).
    pub notify: Option<PathBuf>,
    /// In a time namespace of its own: by how many seconds its CLOCK_MONOTONIC is ahead.
    pub monotonic_ahead: Option<i64>,
    /// The kernel programs that it loads after its start are held up until [`Gateway::let_load`].
    pub hold_loads: bool,
    /// What it logs (RUST_LOG).
    pub log: Option<&'static str>,
    /// The only authorities that its system trusts (SSL_CERT_FILE).
    pub authorities: Option<PathBuf>,
    /// Capabilities that it does not get.
    pub without: Vec<Capability>,
}

/// sd_listen_fds(3): SD_LISTEN_FDS_START.
const FIRST_INHERITED: i32 = 3;

/// A gateway process and the files it uses.
#[derive(Debug)]
pub struct Gateway {
    /// The process: signals, memory, CPU time, output.
    pub process: Process,
    ns: NetNs,
    /// The namespace in which it is started again.
    pub launch: Launch,
    held: Option<HeldLoads>,
    /// Where it listens.
    ports: Vec<u16>,
    _bpffs: BpfFs,
    files: TempDir,
}

impl Gateway {
    /// Starts a gateway with a configuration, in which `state_dir`, `bpffs` and `access_log` are filled in where
    /// they are absent, and waits until it listens and answers, and its packet tier is there.
    pub fn start(ns: &NetNs, config: &str) -> Result<Self> {
        Self::start_with(ns, config, Launch::default())
    }

    /// The same, in unusual circumstances.
    pub fn start_with(ns: &NetNs, config: &str, launch: Launch) -> Result<Self> {
        Self::start_in(TempDir::new()?, ns, config, launch)
    }

    /// The same, in a directory with what the configuration names by relative paths.
    pub fn start_in(files: TempDir, ns: &NetNs, config: &str, launch: Launch) -> Result<Self> {
        let bpffs = BpfFs::mount_in(files.path())?;
        let (text, ports) = complete(config, files.path())?;
        fs::write(files.join(CONFIG), text)?;
        let (process, held) = spawn(ns, &files, &launch, &[])?;
        let mut gateway = Self { process, ns: ns.again()?, launch, held, ports, _bpffs: bpffs, files };
        gateway.wait_serving()?;
        Ok(gateway)
    }

    /// Kills the process without a warning and starts another one, with the same files and the same pins. The new
    /// process dies with the thread that calls this.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.kill()?;
        self.start_again()
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait(patience())?;
        Ok(())
    }

    /// Asks the process to end and starts another one, with the same files and the same pins. The new process dies
    /// with the thread that calls this.
    pub fn restart(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        let status = self.process.wait(patience())?;
        ensure!(status.success(), "the gateway ended with {status}\n{}", self.process.output());
        self.start_again()
    }

    /// Starts another process with the same files and the same pins, after the first has ended. It dies with the thread
    /// that calls this.
    pub fn start_again(&mut self) -> Result<()> {
        (self.process, self.held) = spawn(&self.ns, &self.files, &self.launch, &[])?;
        self.wait_serving()
    }

    /// Another process, with the same files, takes over from this one, which then drains and is returned. The new process dies
    /// with the thread that calls this.
    pub fn take_over(&mut self) -> Result<Process> {
        let mut successor = self.successor()?;
        let serves = eventually("the other process to serve", || {
            let serves = successor.stderr().contains(" serves");
            (serves || !successor.is_running()).then_some(serves)
        });
        ensure!(serves.is_ok_and(|serves| serves), "it has not taken over\n{}", successor.output());
        let before = std::mem::replace(&mut self.process, successor);
        self.wait_ready()?;
        Ok(before)
    }

    /// Another process takes over, and this one ends before its connections.
    pub fn replace(&mut self) -> Result<()> {
        let mut before = self.take_over()?;
        let status = before.wait(patience())?;
        ensure!(status.success(), "the gateway ended with {status}\n{}", before.output());
        Ok(())
    }

    /// A process that is about to take over. It dies with the thread that calls this.
    pub fn successor(&self) -> Result<Process> {
        let launch = Launch { inherited: Arc::default(), ..self.launch.clone() };
        Ok(spawn(&self.ns, &self.files, &launch, &["--take-over"])?.0)
    }

    /// A process that takes over as far as it is told to, and vanishes when it is dropped.
    pub fn half_successor(&self) -> Result<HalfSuccessor> {
        HalfSuccessor::ask(&self.state_dir()?)
    }

    /// `state_dir`.
    pub fn state_dir(&self) -> Result<PathBuf> {
        let config: Table = fs::read_to_string(self.config_file())?.parse()?;
        Ok(config["gateway"]["state_dir"].as_str().context("`state_dir` is a path")?.into())
    }

    /// Lets it load its kernel programs, and waits until its packet tier is there.
    pub fn let_load(&mut self) -> Result<()> {
        self.held.take().context("its loads are not held up")?.pass();
        self.wait_ready()
    }

    /// As [`let_load`](Self::let_load), but the kernel rejects them.
    pub fn refuse_load(&mut self) -> Result<()> {
        self.held.take().context("its loads are not held up")?.fail();
        self.wait_ready()
    }

    fn wait_serving(&mut self) -> Result<()> {
        self.process.wait_listening(&self.ports)?;
        self.wait_ready()
    }

    /// Waits until the gateway serves, so that it answers on its admin socket, and until its kernel programs are loaded,
    /// unless that is held up.
    fn wait_ready(&mut self) -> Result<()> {
        let answers = eventually("the admin socket to answer", || {
            let status = self.status().ok();
            let answers = status.is_some_and(|s| self.held.is_some() || s.0["packet"]["state"] != "loading");
            (answers || !self.process.is_running()).then_some(answers)
        });
        ensure!(
            answers.as_ref().is_ok_and(|&answers| answers),
            "the gateway did not start (exit: {:?})\n{}",
            self.process.exit_status(),
            self.process.output()
        );
        Ok(())
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.files.join(CONFIG)
    }

    /// A path in the gateway's own directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    /// Where the packet tier has its pins.
    pub fn pins(&self) -> Result<PathBuf> {
        let config: Table = fs::read_to_string(self.config_file())?.parse()?;
        let bpffs = config["gateway"]["bpffs"].as_str().context("`bpffs` is a path")?;
        Ok(Path::new(bpffs).join(format!("v{}/packet", lb_common::ABI_VERSION)))
    }

    /// Replaces the configuration file, completed like the first one; the gateway does not know yet.
    pub fn write_config(&self, config: &str) -> Result<()> {
        fs::write(self.config_file(), complete(config, self.files.path())?.0)?;
        Ok(())
    }

    /// Replaces the configuration file by this very text.
    pub fn write_config_verbatim(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.config_file(), text)?)
    }

    /// Runs a snisplice command for this gateway, with its capabilities: `ARGS -c FILE`.
    pub fn cli<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<Output> {
        let mut command = Command::new(binary()?);
        command.args(args).arg("-c").arg(self.config_file());
        forgo(&mut command, &self.launch.without);
        command.output().context("running snisplice")
    }

    /// `snisplice status --json`.
    pub fn status(&self) -> Result<Status> {
        Ok(Status(self.json(&["status", "--json"])?))
    }

    /// `snisplice connections --json`.
    pub fn connections(&self) -> Result<Vec<Value>> {
        match self.json(&["connections", "--json"])? {
            Value::Array(connections) => Ok(connections),
            other => bail!("connections --json is not an array: {other}"),
        }
    }

    /// The access log so far, one object a line.
    pub fn access_log(&self) -> Result<Vec<Value>> {
        let text = self.access_log_text();
        let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        lines
            .map(|line| serde_json::from_str(line).with_context(|| format!("access log line {line:?}")))
            .collect()
    }

    /// The access log so far, as it is.
    pub fn access_log_text(&self) -> String {
        fs::read_to_string(self.files.join("access.log")).unwrap_or_default()
    }

    /// Waits for this many lines in the access log, and returns them.
    pub fn wait_access_log(&self, lines: usize) -> Result<Vec<Value>> {
        eventually(&format!("{lines} lines in the access log"), || {
            self.access_log().ok().filter(|l| l.len() >= lines)
        })
        .with_context(|| self.access_log_text())
    }

    /// Waits until the status has a property, and gives that status.
    pub fn wait_status(&self, what: &str, mut property: impl FnMut(&Status) -> bool) -> Result<Status> {
        let mut last = None;
        let found = eventually(what, || {
            last = self.status().ok();
            last.clone().filter(|status| property(status))
        });
        found.with_context(|| format!("the last status was {last:?}"))
    }

    /// `snisplice reload`, successful.
    pub fn reload(&self) -> Result<()> {
        let output = self.cli(["reload"])?;
        ensure!(output.status.success(), "reload: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// SIGHUP.
    pub fn sighup(&self) -> Result<()> {
        self.process.signal(Signal::SIGHUP)
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        let output = self.cli(args)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "snisplice {args:?}: {}\n{stderr}", output.status);
        serde_json::from_slice(&output.stdout).with_context(|| format!("the JSON of snisplice {args:?}"))
    }
}

/// The configuration's file name.
const CONFIG: &str = "snisplice.toml";

/// Starts the process with the files of a gateway.
fn spawn(
    ns: &NetNs,
    files: &TempDir,
    launch: &Launch,
    options: &[&str],
) -> Result<(Process, Option<HeldLoads>)> {
    let mut command = if launch.inherited.is_empty() {
        ns.command(binary()?)
    } else {
        // LISTEN_PID must be the number of the process itself.
        let mut command = ns.command("sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(binary()?);
        command.env("LISTEN_FDS", launch.inherited.len().to_string());
        let mapping = |(descriptor, nth): (&OwnedFd, i32)| {
            Ok(FdMapping { parent_fd: descriptor.try_clone()?, child_fd: FIRST_INHERITED + nth })
        };
        let mappings = launch.inherited.iter().zip(0..).map(mapping).collect::<io::Result<_>>()?;
        command.fd_mappings(mappings)?;
        command
    };
    command.arg("run").args(options).arg("-c").arg(files.join(CONFIG));
    if let Some(log) = launch.log {
        command.env("RUST_LOG", log);
    }
    if let Some(file) = &launch.authorities {
        command.env("SSL_CERT_FILE", file);
    }
    if let Some(socket) = &launch.notify {
        command.env("NOTIFY_SOCKET", socket);
    }
    if let Some(limit) = launch.open_files {
        // SAFETY: between fork and exec the closure makes one system call.
        unsafe { command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?)) };
    }
    if let Some(text) = &launch.resolv_conf {
        let file = files.join("resolv.conf");
        fs::write(&file, text)?;
        let file = CString::new(file.into_os_string().into_encoded_bytes())?;
        // SAFETY: between fork and exec the closure only makes system calls; nix allocates nothing for C strings.
        unsafe { command.pre_exec(move || bind_over_resolv_conf(&file)) };
    }
    if let Some(seconds) = launch.monotonic_ahead {
        let offset = format!("monotonic {seconds} 0\n");
        // SAFETY: between fork and exec the closure only makes system calls; rustix allocates nothing for C strings.
        unsafe { command.pre_exec(move || enter_time_namespace(offset.as_bytes())) };
    }
    forgo(&mut command, &launch.without);
    if launch.hold_loads {
        HeldLoads::prepare(&mut command);
    }
    let process = Process::spawn("snisplice", command)?;
    let held = launch.hold_loads.then(|| HeldLoads::of(process.pid())).transpose()?;
    Ok((process, held))
}

/// Makes a command run without these capabilities: at exec root gets those of the bounding set.
fn forgo(command: &mut Command, capabilities: &[Capability]) {
    for capability in capabilities.iter().copied() {
        let forgo = move || caps::drop(None, CapSet::Bounding, capability).map_err(io::Error::other);
        // SAFETY: between fork and exec the closure makes one system call.
        unsafe { command.pre_exec(forgo) };
    }
}

/// The JSON of `status --json`; a missing number reads as 0, so that only the keys that count need to be there.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

impl Status {
    /// A number anywhere, by JSON pointer.
    pub fn number(&self, pointer: &str) -> u64 {
        self.0.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
    }

    /// A number of a listener, such as `active` or `total`.
    pub fn listener(&self, name: &str, key: &str) -> u64 {
        named(&self.0["listeners"], "name", name)[key].as_u64().unwrap_or(0)
    }

    /// How many clients a listener turned away for a reason.
    pub fn rejects(&self, listener: &str, reason: &str) -> u64 {
        named(&self.0["listeners"], "name", listener)["rejects"][reason].as_u64().unwrap_or(0)
    }

    /// A number of a route.
    pub fn route(&self, name: &str, key: &str) -> u64 {
        named(&self.0["routes"], "name", name)[key].as_u64().unwrap_or(0)
    }

    /// A server of a pool.
    pub fn server(&self, pool: &str, address: &str) -> &Value {
        named(&named(&self.0["pools"], "name", pool)["servers"], "address", address)
    }

    /// A number of a tier.
    pub fn tier(&self, name: &str, key: &str) -> u64 {
        self.0["tiers"][name][key].as_u64().unwrap_or(0)
    }
}

/// The snisplice binary under test.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(BIN_ENV) {
        return Ok(path.into());
    }
    let here = std::env::current_exe()?;
    // target/debug/deps/stages-0123 or target/debug/demo
    let beside = here.ancestors().skip(1).take(2).map(|directory| directory.join("snisplice"));
    let found = beside.into_iter().find(|file| file.is_file());
    found.with_context(|| {
        format!("no snisplice beside {}: run `cargo build`, or set {BIN_ENV}", here.display())
    })
}

/// Completes the configuration with what every test gateway needs of its own. Also returns the ports on which it will
/// listen.
fn complete(config: &str, directory: &Path) -> Result<(String, Vec<u16>)> {
    let mut table: Table = config.parse().context("the test's own configuration")?;
    let gateway = table.entry("gateway").or_insert_with(|| Table::new().into());
    let gateway = gateway.as_table_mut().context("[gateway] is a table")?;
    let path = |name: &str| toml::Value::from(directory.join(name).display().to_string());
    gateway.entry("state_dir").or_insert_with(|| path("state"));
    let bpffs = if PACKET_TIER.load(Ordering::Relaxed) { path(BpfFs::NAME) } else { "/nonexistent".into() };
    gateway.entry("bpffs").or_insert(bpffs);
    let log =
        Table::from_iter([("path".to_owned(), path("access.log")), ("format".to_owned(), "json".into())]);
    gateway.entry("access_log").or_insert(log.into());

    let listeners = table.get("listener").and_then(toml::Value::as_array).into_iter().flatten();
    let binds = listeners.filter_map(|l| l.get("bind")?.as_array()).flatten().filter_map(toml::Value::as_str);
    let ports =
        binds.map(|bind| bind.rsplit(':').next().unwrap_or_default().parse()).collect::<Result<_, _>>()?;
    Ok((table.to_string(), ports))
}

/// Enters a mount namespace of its own in which a file covers /etc/resolv.conf.
fn bind_over_resolv_conf(file: &CString) -> io::Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount(Some(file.as_c_str()), c"/etc/resolv.conf", NONE, MsFlags::MS_BIND, NONE)?;
    Ok(())
}

/// Enters a time namespace of its own, as time_namespaces(7) has it: the offsets are set before anybody is inside.
fn enter_time_namespace(offset: &[u8]) -> io::Result<()> {
    let open = |path: &CStr, flags| rustix::fs::open(path, flags, Mode::empty());
    // SAFETY: the namespace is for children; nothing of this process is taken from other threads.
    unsafe { unshare_unsafe(UnshareFlags::NEWTIME)? };
    rustix::io::write(open(c"/proc/self/timens_offsets", OFlags::WRONLY)?, offset)?;
    let namespace = open(c"/proc/self/ns/time_for_children", OFlags::RDONLY)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Time))?;
    Ok(())
}

/// The object of an array in which `key` is `name`, or null.
fn named<'a>(array: &'a Value, key: &str, name: &str) -> &'a Value {
    array.as_array().and_then(|array| array.iter().find(|v| v[key] == name)).unwrap_or(&Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_completed_but_never_overruled() {
        let config = "[gateway]\nstate_dir = '/s'\n[[listener]]\nbind = ['0.0.0.0:443', '[::]:8443']\n";
        let (text, ports) = complete(config, Path::new("/d")).unwrap();
        let table: Table = text.parse().unwrap();
        assert_eq!(table["gateway"]["state_dir"].as_str(), Some("/s"));
        assert_eq!(table["gateway"]["access_log"]["path"].as_str(), Some("/d/access.log"));
        assert_eq!(ports, [443, 8443]);
    }

    #[test]
    fn a_status_is_read_by_name() {
        let status = Status(serde_json::json!({
            "listeners": [{"name": "l", "rejects": {"unknown_sni": 3}}],
            "pools": [{"name": "p", "servers": [{"address": "10.0.2.2:1", "state": "up"}]}],
        }));
        assert_eq!(status.rejects("l", "unknown_sni"), 3);
        assert_eq!(status.rejects("other", "unknown_sni"), 0);
        assert_eq!(status.server("p", "10.0.2.2:1")["state"], "up");
    }
}
