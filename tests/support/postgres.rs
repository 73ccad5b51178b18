//! Real PostgreSQL servers. PostgreSQL refuses to run as root, so it runs as `postgres` or `nobody`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::unistd::User;

use crate::certs::Leaf;
use crate::netns::NetNs;
use crate::process::{Process, checked_output, find_program};
use crate::tempdir::TempDir;

/// A PostgreSQL server on every address of its namespace: user `postgres`, no password unless asked otherwise.
#[derive(Debug)]
pub struct Postgres {
    /// The server's process.
    pub process: Process,
    /// The port it listens on.
    pub port: u16,
    data: TempDir,
}

/// A PgBouncer.
#[derive(Debug)]
pub struct Bouncer {
    /// Its process.
    pub process: Process,
    _files: TempDir,
}

/// Of pg_hba.conf: everybody may do everything.
const TRUST: &str = "host all all all trust\nhost replication all all trust\n";

impl Postgres {
    /// Starts a server; with a certificate it takes TLS as well as clear text. `SHOW cluster_name` gives `name`.
    pub fn start(ns: &NetNs, port: u16, name: &str, leaf: Option<&Leaf>) -> Result<Self> {
        Self::start_with(ns, port, name, leaf, "")
    }

    /// The same, with lines of pg_hba.conf that go before those that trust everybody.
    pub fn start_with(ns: &NetNs, port: u16, name: &str, leaf: Option<&Leaf>, hba: &str) -> Result<Self> {
        let user = user()?;
        let files = own_directory(&user)?;
        let data = files.join("data");
        let mut initdb = as_user(ns, &user, "initdb")?;
        initdb
            .args(["-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C", "-D"])
            .arg(&data);
        checked_output(&mut initdb)?;
        fs::write(data.join("pg_hba.conf"), format!("{hba}\n{TRUST}"))?;
        Self::serve(ns, port, name, leaf, files)
    }

    /// Starts a standby that follows this server.
    pub fn standby(&self, ns: &NetNs, port: u16, name: &str) -> Result<Self> {
        Self::standby_of(ns, port, name, &format!("host=127.0.0.1 port={} user=postgres", self.port))
    }

    /// Starts a standby that copies, and follows, the server that is reached by this connection string.
    pub fn standby_of(ns: &NetNs, port: u16, name: &str, primary: &str) -> Result<Self> {
        let user = user()?;
        let files = own_directory(&user)?;
        let mut copy = as_user(ns, &user, "pg_basebackup")?;
        copy.args(["-d", primary, "-R", "-c", "fast", "--no-sync", "-D"]).arg(files.join("data"));
        checked_output(&mut copy)?;
        Self::serve(ns, port, name, None, files)
    }

    /// Starts a PgBouncer on this port, in front of the server.
    pub fn bouncer(&self, ns: &NetNs, port: u16) -> Result<Bouncer> {
        let user = user()?;
        let files = own_directory(&user)?;
        let config = files.join("pgbouncer.ini");
        let server = format!("host=127.0.0.1 port={} user=postgres", self.port);
        fs::write(
            &config,
            format!(
                "[databases]\n* = {server}\n[pgbouncer]\nlisten_addr = *\nlisten_port = {port}\nauth_type = any\n\
                 pool_mode = transaction\nunix_socket_dir =\n"
            ),
        )?;
        let mut pgbouncer = as_user(ns, &user, "pgbouncer")?;
        pgbouncer.arg(config);
        let mut process = Process::spawn("pgbouncer", pgbouncer)?;
        process.wait_listening(&[port])?;
        Ok(Bouncer { process, _files: files })
    }

    /// What the server answers, from its own namespace, to its superuser.
    pub fn sql(&self, ns: &NetNs, query: &str) -> Result<String> {
        let mut psql = ns.command("psql");
        psql.args(["-X", "-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-Atc", query]);
        checked_output(&mut psql)
    }

    fn serve(ns: &NetNs, port: u16, name: &str, leaf: Option<&Leaf>, files: TempDir) -> Result<Self> {
        let (user, data) = (user()?, files.join("data"));
        let mut postgres = as_user(ns, &user, "postgres")?;
        postgres.arg("-D").arg(&data).args(["-p", &port.to_string(), "-h", "*"]);
        let mut set = |key: &str, value: &str| {
            postgres.arg("-c").arg(format!("{key}={value}"));
        };
        set("unix_socket_directories", "");
        set("cluster_name", name);
        set("fsync", "off");
        set("shared_buffers", "16MB");
        if let Some(leaf) = leaf {
            let leaf = leaf.copy_to(files.path())?;
            own(&leaf.key, &user)?;
            fs::set_permissions(&leaf.key, fs::Permissions::from_mode(0o600))?;
            set("ssl", "on");
            set("ssl_cert_file", &leaf.chain.display().to_string());
            set("ssl_key_file", &leaf.key.display().to_string());
        }
        let mut process = Process::spawn("postgres", postgres)?;
        process.wait_listening(&[port])?;
        Ok(Self { process, port, data: files })
    }

    /// Starts it again with the same data, after it has ended.
    pub fn start_again(self, ns: &NetNs, name: &str) -> Result<Self> {
        let Self { process, port, data } = self;
        drop(process);
        Self::serve(ns, port, name, None, data)
    }
}

/// PostgreSQL refuses to run as root.
fn user() -> Result<User> {
    User::from_name("postgres")?.or(User::from_name("nobody")?).context("an unprivileged user")
}

fn own(path: &Path, user: &User) -> Result<()> {
    Ok(chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?)
}

fn own_directory(user: &User) -> Result<TempDir> {
    let files = TempDir::new()?;
    own(files.path(), user)?;
    Ok(files)
}

/// A command inside the namespace, without root's rights.
fn as_user(ns: &NetNs, user: &User, program: &str) -> Result<Command> {
    let program = find_program(program).with_context(|| format!("{program} is not installed"))?;
    let mut command = ns.command("setpriv");
    command.args(["--reuid", &user.uid.to_string(), "--regid", &user.gid.to_string(), "--clear-groups"]);
    // Changing the user forgets the request to die with the parent; setpriv makes it again.
    command.args(["--pdeathsig", "KILL", "--no-new-privs", "--"]).arg(program).current_dir("/");
    // libpq looks for certificates there, and root's it may not see.
    command.env("HOME", "/nonexistent");
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::Authority;

    #[test]
    fn postgres_answers_over_tls() -> Result<()> {
        crate::require!(crate::skip::has_program("postgres"), "postgresql is not installed");
        let ns = NetNs::new("postgres")?;
        let authority = Authority::new("test")?;
        let leaf = authority.leaf(&["db1.example.com"])?;
        let _server = Postgres::start(&ns, 5432, "db1", Some(&leaf))?;
        let mut psql = ns.command("psql");
        psql.args(["host=127.0.0.1 user=postgres sslmode=require", "-Atc", "show cluster_name"]);
        assert_eq!(checked_output(&mut psql)?, "db1\n");
        Ok(())
    }
}
