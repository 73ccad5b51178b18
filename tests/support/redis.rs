//! Real Redis servers and `redis-cli`.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::certs::Leaf;
use crate::netns::NetNs;
use crate::process::{Process, checked_output};
use crate::tempdir::TempDir;

/// A Redis server without persistence, on every address of its namespace.
#[derive(Debug)]
pub struct Redis {
    /// The server's process.
    pub process: Process,
    /// The port it listens on.
    pub port: u16,
    tls: bool,
    _files: TempDir,
}

impl Redis {
    /// A server in clear text.
    pub fn plain(ns: &NetNs, port: u16) -> Result<Self> {
        Self::start(ns, port, false, &["--port".into(), port.to_string()])
    }

    /// A server in clear text, with further options.
    pub fn plain_with(ns: &NetNs, port: u16, options: &[&str]) -> Result<Self> {
        let own = ["--port".to_owned(), port.to_string()];
        let options: Vec<String> =
            own.into_iter().chain(options.iter().map(|&option| option.to_owned())).collect();
        Self::start(ns, port, false, &options)
    }

    /// What it answers to a command, from the server's own namespace.
    pub fn command(&self, ns: &NetNs, command: &[&str]) -> Result<String> {
        let mut cli = ns.command("redis-cli");
        cli.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        if self.tls {
            cli.args(["--tls", "--insecure"]);
        }
        checked_output(cli.args(command))
    }

    /// A server that speaks TLS only; clients need no certificate.
    pub fn tls(ns: &NetNs, port: u16, leaf: &Leaf) -> Result<Self> {
        Self::tls_with(ns, port, leaf, &["--tls-auth-clients", "no"])
    }

    /// A server that speaks TLS only; clients need a certificate of the leaf's authority.
    pub fn mutual_tls(ns: &NetNs, port: u16, leaf: &Leaf) -> Result<Self> {
        Self::tls_with(ns, port, leaf, &["--tls-auth-clients", "yes"])
    }

    /// The same, with TLS 1.2 only.
    pub fn mutual_tls_1_2(ns: &NetNs, port: u16, leaf: &Leaf) -> Result<Self> {
        Self::tls_with(ns, port, leaf, &["--tls-auth-clients", "yes", "--tls-protocols", "TLSv1.2"])
    }

    /// A server that speaks TLS only, with further options.
    pub fn tls_with(ns: &NetNs, port: u16, leaf: &Leaf, further: &[&str]) -> Result<Self> {
        let path = |path: &Path| path.display().to_string();
        let options = [
            ["--port".into(), "0".into()],
            ["--tls-port".into(), port.to_string()],
            ["--tls-cert-file".into(), path(&leaf.chain)],
            ["--tls-key-file".into(), path(&leaf.key)],
            ["--tls-ca-cert-file".into(), path(&leaf.authority)],
        ];
        let further = further.iter().map(|&option| option.to_owned());
        let options: Vec<_> = options.into_iter().flatten().chain(further).collect();
        Self::start(ns, port, true, &options)
    }

    /// Sets the key `name`, by which clients tell servers apart, from the server's own namespace.
    pub fn named(self, ns: &NetNs, value: &str) -> Result<Self> {
        self.command(ns, &["set", "name", value])?;
        Ok(self)
    }

    fn start(ns: &NetNs, port: u16, tls: bool, options: &[String]) -> Result<Self> {
        // A replica writes what it gets from its master to a file, and every server reads that file when it starts.
        let files = TempDir::new()?;
        let mut command = ns.command("redis-server");
        command.args(["--save", "", "--appendonly", "no", "--protected-mode", "no", "--daemonize", "no"]);
        command.args(["--bind", "*", "-::*", "--maxclients", "12000", "--dir"]).arg(files.path());
        command.args(options);
        let mut process = Process::spawn("redis-server", command)?;
        process.wait_listening(&[port])?;
        Ok(Self { process, port, tls, _files: files })
    }
}

/// A `redis-cli` that speaks TLS to `host:port` with this SNI; add the Redis command as arguments.
pub fn tls_cli(ns: &NetNs, host: &str, port: u16, sni: &str, authority: &Path) -> Command {
    let mut command = ns.command("redis-cli");
    command.args(["-h", host, "-p", &port.to_string(), "--tls", "--sni", sni, "--cacert"]).arg(authority);
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::Authority;

    #[test]
    fn redis_answers_in_clear_text_and_over_tls() {
        let ns = NetNs::new("redis").unwrap();
        let authority = Authority::new("test").unwrap();
        let leaf = authority.leaf(&["app1.redis.example.com"]).unwrap();
        let _plain = Redis::plain(&ns, 6379).unwrap().named(&ns, "plain").unwrap();
        let _tls = Redis::tls(&ns, 6380, &leaf).unwrap().named(&ns, "tls").unwrap();
        let mut cli = tls_cli(&ns, "127.0.0.1", 6380, "app1.redis.example.com", &authority.path);
        assert_eq!(checked_output(cli.args(["get", "name"])).unwrap(), "tls\n");
    }
}
