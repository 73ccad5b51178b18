//! Real servers of the protocols that begin in clear text.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::User;

use crate::certs::Leaf;
use crate::netns::NetNs;
use crate::process::Process;
use crate::tempdir::TempDir;

/// A server on every IPv4 address of its namespace, with TLS after a command if it has a certificate.
#[derive(Debug)]
pub struct StarttlsServer {
    /// The server's process.
    pub process: Process,
    _files: TempDir,
}

/// Stopped, not killed: these servers have children of their own.
impl Drop for StarttlsServer {
    fn drop(&mut self) {
        let _ = self.process.stop();
    }
}

impl StarttlsServer {
    fn start(ns: &NetNs, name: &str, ports: &[u16], files: TempDir, args: &[&str]) -> Result<Self> {
        let mut command = ns.command(name);
        let process = Process::spawn(name, {
            command.args(args).current_dir(files.path());
            command
        })?;
        let mut server = Self { process, _files: files };
        server.process.wait_listening(ports)?;
        Ok(server)
    }

    /// Postfix. It takes mail for `mail.example`, and delivers none.
    pub fn postfix(ns: &NetNs, port: u16, leaf: Option<&Leaf>) -> Result<Self> {
        let files = TempDir::new()?;
        let directory = files.path();
        readable(directory)?;
        for name in ["queue", "data"] {
            fs::create_dir(directory.join(name))?;
        }
        let postfix = User::from_name("postfix")?.context("the user of Postfix")?;
        chown(directory.join("data"), Some(postfix.uid.as_raw()), Some(postfix.gid.as_raw()))?;
        let directory = directory.display();
        let tls = leaf.map_or("none".into(), |leaf| {
            let (chain, key) = (leaf.chain.display(), leaf.key.display());
            format!("may\nsmtpd_tls_cert_file = {chain}\nsmtpd_tls_key_file = {key}")
        });
        fs::write(
            files.join("main.cf"),
            format!(
                "compatibility_level = 3.6\nqueue_directory = {directory}/queue\ndata_directory = {directory}/data\n\
                 command_directory = /usr/sbin\ndaemon_directory = /usr/lib/postfix/sbin\n\
                 meta_directory = /etc/postfix\nshlib_directory = /usr/lib/postfix\nmail_owner = postfix\n\
                 setgid_group = postdrop\ninet_interfaces = all\ninet_protocols = ipv4\nmyhostname = mail.example\n\
                 mydestination = mail.example\nlocal_recipient_maps =\nsmtpd_peername_lookup = no\n\
                 maillog_file = /dev/stdout\ndefer_transports = local\nsmtpd_tls_security_level = {tls}\n"
            ),
        )?;
        fs::write(
            files.join("master.cf"),
            format!(
                "{port} inet n - n - - smtpd\npostlog unix-dgram n - n - 1 postlogd\nrewrite unix - - n - - \
                 trivial-rewrite\nanvil unix - - n - 1 anvil\ntlsmgr unix - - n 1000? 1 tlsmgr\ncleanup unix n - n - \
                 0 cleanup\nqmgr unix n - n 300 1 qmgr\nlocal unix - n n - - local\nbounce unix - - n - 0 bounce\n\
                 defer unix - - n - 0 bounce\ntrace unix - - n - 0 bounce\nproxymap unix - - n - - proxymap\n"
            ),
        )?;
        let directory = directory.to_string();
        Self::start(ns, "postfix", &[port], files, &["-c", &directory, "start-fg"])
    }

    /// Dovecot: IMAP and POP3, for whoever has the password `secret`. Without a certificate it takes that in clear text.
    pub fn dovecot(ns: &NetNs, imap: u16, pop3: u16, leaf: Option<&Leaf>) -> Result<Self> {
        let files = TempDir::new()?;
        readable(files.path())?;
        let directory = files.path().display();
        fs::create_dir(files.join("mail"))?;
        let nobody = User::from_name("nobody")?.context("nobody")?;
        chown(files.join("mail"), Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw()))?;
        let tls = leaf.map_or("ssl = no\ndisable_plaintext_auth = no".into(), |leaf| {
            format!("ssl = yes\nssl_cert = <{}\nssl_key = <{}", leaf.chain.display(), leaf.key.display())
        });
        fs::write(
            files.join("dovecot.conf"),
            format!(
                "base_dir = {directory}/run\nstate_dir = {directory}/state\nlog_path = /dev/stderr\n\
                 protocols = imap pop3\n{tls}\nmail_location = maildir:{directory}/mail\nfirst_valid_uid = 1\n\
                 passdb {{\n driver = static\n args = password=secret\n}}\n\
                 userdb {{\n driver = static\n args = uid=nobody gid=nogroup home={directory}/mail\n}}\n\
                 service imap-login {{\n inet_listener imap {{\n port = {imap}\n }}\n inet_listener imaps {{\n port = 0\n }}\n}}\n\
                 service pop3-login {{\n inet_listener pop3 {{\n port = {pop3}\n }}\n inet_listener pop3s {{\n port = 0\n }}\n}}\n"
            ),
        )?;
        Self::start(ns, "dovecot", &[imap, pop3], files, &["-F", "-c", "dovecot.conf"])
    }

    /// OpenLDAP's server, with nothing in it but its own description.
    pub fn slapd(ns: &NetNs, port: u16, leaf: Option<&Leaf>) -> Result<Self> {
        let files = TempDir::new()?;
        let tls = leaf.map_or(String::new(), |leaf| {
            let (chain, key) = (leaf.chain.display(), leaf.key.display());
            format!("TLSCertificateFile {chain}\nTLSCertificateKeyFile {key}\nTLSCACertificateFile {chain}\n")
        });
        let include = "include /etc/ldap/schema/core.schema\n";
        fs::write(files.join("slapd.conf"), format!("{include}pidfile slapd.pid\n{tls}database config\n"))?;
        let url = format!("ldap://0.0.0.0:{port}");
        Self::start(ns, "slapd", &[port], files, &["-d", "0", "-f", "slapd.conf", "-h", &url])
    }

    /// Prosody: XMPP for clients of the domain `host`. Without a certificate it wants no TLS.
    pub fn prosody(ns: &NetNs, port: u16, host: &str, leaf: Option<&Leaf>) -> Result<Self> {
        let files = TempDir::new()?;
        let tls = leaf.map_or("c2s_require_encryption = false\n".into(), |leaf| {
            let (chain, key) = (leaf.chain.display(), leaf.key.display());
            format!("ssl = {{ key = '{key}', certificate = '{chain}' }}\n")
        });
        let directory = files.path().display();
        let modules = if leaf.is_some() { "'tls', 'saslauth', 'disco'" } else { "'saslauth', 'disco'" };
        fs::write(
            files.join("prosody.cfg.lua"),
            format!(
                "run_as_root = true\npidfile = '{directory}/pid'\ndata_path = '{directory}'\n\
                 certificates = '{directory}'\ninterfaces = {{ '0.0.0.0' }}\n\
                 c2s_ports = {{ {port} }}\nmodules_enabled = {{ {modules} }}\nmodules_disabled = {{ 's2s' }}\n\
                 log = {{ info = '*console' }}\nVirtualHost '{host}'\n{tls}"
            ),
        )?;
        let config = files.join("prosody.cfg.lua").display().to_string();
        Self::start(ns, "prosody", &[port], files, &["--config", &config, "-F"])
    }
}

/// Servers with users of their own look into it.
fn readable(directory: &Path) -> Result<()> {
    Ok(fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?)
}
