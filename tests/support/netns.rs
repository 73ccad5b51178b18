//! Network namespaces that exist as long as a value holds them.
//!
//! A namespace is held by a file descriptor, not by a name under /run/netns: there is nothing to unmount, and a
//! killed test leaves nothing behind. Mounts are not touched, so bpffs stays visible inside (`ip netns exec`
//! hides it).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid};

use crate::process::checked_output;

/// A network namespace; it ends when this value and every process inside are gone.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    file: File,
}

impl NetNs {
    /// A new namespace with its loopback device up. The name is for messages only.
    pub fn new(name: &str) -> Result<Self> {
        let file = thread::spawn(|| -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        })
        .join()
        .expect("the thread does not panic")
        .context("a network namespace needs root (CAP_SYS_ADMIN)")?;
        let ns = Self { name: name.to_owned(), file };
        // There is no other host, and duplicate address detection would delay neighbour discovery by 2 s.
        ns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// A second value for the same namespace.
    pub fn again(&self) -> Result<Self> {
        Ok(Self { name: self.name.clone(), file: self.file.try_clone()? })
    }

    /// The name given to [`NetNs::new`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path to the namespace for `nsenter --net=PATH`, good while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs a closure on a thread inside the namespace. Threads it starts stay inside; a process it starts
    /// dies with it (see [`NetNs::command`]).
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let outcome = thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.file, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
                    work()
                })
                .join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts a thread inside the namespace, which may outlive this call.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let file = self.file.try_clone().expect("duplicating a descriptor");
        thread::spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
            work()
        })
    }

    /// A command that runs inside the namespace and is killed when the *thread* that starts it ends.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let fd = self.file.try_clone().expect("duplicating a descriptor");
        let parent = getpid();
        let mut command = Command::new(program);
        let enter = move || {
            setns(&fd, CloneFlags::CLONE_NEWNET)?;
            die_with_parent(parent)
        };
        // SAFETY: between fork and exec the closure only makes system calls: it takes no lock, allocates nothing.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs `ip ARGS` (separated by spaces) inside.
    pub fn ip(&self, args: &str) -> Result<String> {
        checked_output(self.command("ip").args(args.split_whitespace()))
    }

    /// Runs many lines of `ip ARGS` inside, by one process.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut child = self.command("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
        let written = child.stdin.take().context("it is piped")?.write_all(lines.as_bytes());
        let status = child.wait()?;
        ensure!(written.is_ok() && status.success(), "ip -batch in {}: {status}", self.name);
        Ok(())
    }

    /// Sets a sysctl by its path below /proc/sys, such as `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| std::fs::write(format!("/proc/sys/{key}"), value))
            .with_context(|| format!("sysctl {key} = {value} in {}", self.name))
    }

    /// Joins two namespaces with a veth pair, both ends up: `(device here, device there)`.
    pub fn link(&self, device: &str, peer: &NetNs, peer_device: &str) -> Result<()> {
        self.ip(&format!("link add {device} type veth peer name {peer_device} netns {}", peer.path()))?;
        self.ip(&format!("link set {device} up"))?;
        peer.ip(&format!("link set {peer_device} up"))?;
        Ok(())
    }

    /// Switches a device's offloads of the sender (segmentation, checksums) and GRO.
    pub fn offloads(&self, device: &str, on: bool) -> Result<()> {
        let state = if on { "on" } else { "off" };
        let mut command = self.command("ethtool");
        command.args(["-K", device]);
        for feature in ["tx", "sg", "tso", "gso", "gro"] {
            command.args([feature, state]);
        }
        checked_output(&mut command)?;
        Ok(())
    }

    /// Gives a device an address with its prefix length, such as `10.0.1.1/24`; IPv6 without duplicate detection.
    pub fn address(&self, device: &str, address: &str) -> Result<()> {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.ip(&format!("addr add {address} dev {device}{nodad}"))?;
        Ok(())
    }
}

/// Asks the kernel to kill this process when its parent ends; for `pre_exec`.
pub(crate) fn die_with_parent(parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have died before the request above.
    if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode_here() -> String {
        std::fs::read_link("/proc/thread-self/ns/net").unwrap().display().to_string()
    }

    #[test]
    fn a_closure_runs_inside_and_the_caller_stays_outside() {
        let outside = inode_here();
        let ns = NetNs::new("one").unwrap();
        assert_ne!(ns.run(inode_here), outside);
        assert_eq!(inode_here(), outside);
    }

    #[test]
    fn a_command_runs_in_the_same_namespace_as_a_closure() {
        let ns = NetNs::new("two").unwrap();
        let seen = checked_output(ns.command("readlink").arg("/proc/self/ns/net")).unwrap();
        assert_eq!(seen.trim(), ns.run(inode_here));
    }

    #[test]
    fn a_process_dies_with_the_thread_that_started_it() {
        let ns = NetNs::new("three").unwrap();
        let mut child = thread::scope(|scope| {
            scope.spawn(|| ns.command("sleep").arg("600").spawn().unwrap()).join().unwrap()
        });
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
    }
}
