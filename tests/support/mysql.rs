//! Real servers of MariaDB, as Debian has it, and of MySQL, as setup has unpacked it (`xtask/src/mysql.rs`).

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::certs::Leaf;
use crate::netns::NetNs;
use crate::process::{Process, checked_output, find_program};
use crate::tempdir::TempDir;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// MySQL.
    Mysql,
    /// MariaDB.
    Mariadb,
}

/// Accounts with passwords: `app` has the server's usual plugin, and both may do everything. `tiny` may do nothing.
const ACCOUNTS: &str = "create user 'app'@'%' identified by 'secret';\n\
    grant all privileges on *.* to 'app'@'%' with grant option;\n\
    create user 'tiny'@'%' identified by 'small';\n\
    create database shop;\n";

/// What a server sees as /etc/hosts: it looks for the names of its clients, and remembers failures only of those it finds.
const HOSTS: &str = "127.0.0.1 localhost\n10.0.2.1 gateway.test\n10.0.1.2 client.test\n";

/// A server on every address of its namespace.
#[derive(Debug)]
pub struct Mysql {
    /// The server's process.
    pub process: Process,
    /// The port it listens on.
    pub port: u16,
    family: Family,
    files: TempDir,
}

/// Where setup has unpacked MySQL.
fn unpacked() -> Option<PathBuf> {
    let here = std::env::current_exe().ok()?;
    let beside = here.ancestors().skip(1).take(4).map(|directory| directory.join("mysql/root"));
    beside.into_iter().find(|root| root.join("usr/sbin/mysqld").is_file())
}

/// Whether there is a server of this family, and its client.
pub fn is_installed(family: Family) -> bool {
    match family {
        Family::Mysql => front("usr/sbin/mysqld").is_some(),
        Family::Mariadb => find_program("mariadbd").is_some() && find_program("mariadb").is_some(),
    }
}

/// A program of the unpacked MySQL: by the C library that it was unpacked with, which may be newer than this machine's.
fn front(program: &str) -> Option<Vec<OsString>> {
    let root = unpacked()?;
    let find = |directory: &Path, wanted: &dyn Fn(&str) -> bool| {
        let entries = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
        let mut found =
            entries.filter(|path| path.file_name().is_some_and(|name| wanted(&name.to_string_lossy())));
        found.next()
    };
    let linker = |name: &str| name.starts_with("ld-linux");
    let loader =
        ["usr/lib64", "usr/lib"].into_iter().find_map(|directory| find(&root.join(directory), &linker))?;
    let libraries = find(&root.join("usr/lib"), &|name| name.ends_with("-linux-gnu"))?;
    Some(vec![loader.into(), "--library-path".into(), libraries.into(), root.join(program).into()])
}

/// MySQL's own client in this namespace.
pub fn mysql_cli(ns: &NetNs) -> Result<Command> {
    let front = front("usr/bin/mysql").context("MySQL is not there")?;
    let mut command = ns.command(&front[0]);
    command.args(&front[1..]).arg("--no-defaults");
    // `mysql_native_password` is no part of the client any more.
    let plugins = unpacked().context("MySQL is not there")?.join("usr/lib/mysql/plugin");
    command.arg(format!("--plugin-dir={}", plugins.display()));
    Ok(command)
}

impl Mysql {
    /// Starts a server that takes TLS as well as clear text, with further options.
    pub fn start(ns: &NetNs, family: Family, port: u16, leaf: &Leaf, options: &[&str]) -> Result<Self> {
        let files = TempDir::new()?;
        let data = files.join("data");
        fs::create_dir(&data)?;
        // A server of MariaDB removes what another one has left in its temporary directory, or has there.
        let temporary = files.join("tmp");
        fs::create_dir(&temporary)?;
        fs::write(files.join("hosts"), HOSTS)?;
        fs::write(files.join("accounts.sql"), ACCOUNTS)?;
        let mut install = match family {
            Family::Mysql => {
                let mut install = server(ns, family, &files)?;
                install.args(["--initialize-insecure", "--innodb-redo-log-capacity=8M"]);
                install
            }
            Family::Mariadb => {
                let mut install = ns.command("mariadb-install-db");
                install.args(["--no-defaults", "--user=root", "--skip-test-db"]);
                install.arg("--auth-root-authentication-method=normal");
                install.arg(format!("--datadir={}", data.display()));
                install
            }
        };
        checked_output(install.env("TMPDIR", &temporary))?;
        let mut server = server(ns, family, &files)?;
        server.args(options).env("TMPDIR", &temporary);
        server.arg(format!("--init-file={}", files.join("accounts.sql").display()));
        server.arg(format!("--port={port}")).arg(format!("--socket={}", files.join("socket").display()));
        server.arg(format!("--pid-file={}", files.join("pid").display()));
        server.arg(format!("--ssl-cert={}", leaf.chain.display()));
        server.arg(format!("--ssl-key={}", leaf.key.display()));
        let mut process = Process::spawn("mysqld", server)?;
        process.wait_listening(&[port])?;
        Ok(Self { process, port, family, files })
    }

    /// What the server answers to root: rows of values between tabs.
    pub fn sql(&self, ns: &NetNs, query: &str) -> Result<String> {
        let mut client = match self.family {
            Family::Mysql => mysql_cli(ns)?,
            Family::Mariadb => {
                let mut client = ns.command("mariadb");
                client.arg("--no-defaults");
                client
            }
        };
        client.arg(format!("--socket={}", self.files.join("socket").display()));
        checked_output(client.args(["-u", "root", "-N", "-B", "-e", query]))
    }
}

/// The server's program, in a mount namespace of its own. It refuses to run as root unless it is asked for it.
fn server(ns: &NetNs, family: Family, files: &TempDir) -> Result<Command> {
    let program = match family {
        Family::Mysql => front("usr/sbin/mysqld").context("MySQL is not there")?,
        Family::Mariadb => vec![find_program("mariadbd").context("mariadb-server is not installed")?.into()],
    };
    let hosts = files.join("hosts");
    let mut command = ns.command("unshare");
    command.args(["-m", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]).arg(hosts);
    command.args(program).args(["--no-defaults", "--user=root"]);
    command.arg(format!("--datadir={}", files.join("data").display()));
    if family == Family::Mysql {
        let usr = unpacked().context("MySQL is not there")?.join("usr");
        command.arg(format!("--basedir={}", usr.display()));
        command.arg(format!("--lc-messages-dir={}", usr.join("share/mysql").display()));
        command.arg(format!("--character-sets-dir={}", usr.join("share/mysql/charsets").display()));
        command.arg(format!("--plugin-dir={}", usr.join("lib/mysql/plugin").display()));
        command.args(["--secure-file-priv=NULL", "--mysqlx=OFF", "--skip-log-bin"]);
    }
    Ok(command)
}
