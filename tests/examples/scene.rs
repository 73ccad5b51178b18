//! An example, its machines and its certificates.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result};
use snisplice_tests::process::PRINT_OUTPUT;
use snisplice_tests::{Authority, Gateway, Launch, Leaf, NetNs, TempDir, Triangle};

/// The machines of an example: the servers are several addresses of one namespace.
pub(crate) struct Scene {
    pub(crate) net: Triangle,
    pub(crate) authority: Authority,
    config: String,
    /// What the gateway's directory will have.
    files: TempDir,
}

impl Scene {
    /// `servers`: the last numbers of 10.0.2.0/24 at which the example has servers.
    pub(crate) fn new(example: &str, servers: &[u8]) -> Result<Self> {
        PRINT_OUTPUT.store(true, Ordering::Relaxed);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(example);
        let config = fs::read_to_string(path.join("snisplice.toml")).with_context(|| example.to_owned())?;
        let (net, files) = (Triangle::new()?, TempDir::new()?);
        for number in servers {
            net.server.address("eth0", &format!("10.0.2.{number}/24"))?;
        }
        fs::create_dir(files.join("certs"))?;
        let authority = Authority::new("example authority")?;
        fs::copy(&authority.path, files.join("certs/ca.crt"))?;
        Ok(Self { net, authority, config, files })
    }

    /// A certificate that the example's configuration names.
    pub(crate) fn certificate(&self, name: &str) -> Result<()> {
        let leaf = self.authority.leaf(&[name])?;
        fs::copy(&leaf.chain, self.files.join(format!("certs/{name}.crt")))?;
        fs::copy(&leaf.key, self.files.join(format!("certs/{name}.key")))?;
        Ok(())
    }

    /// Where the files are that the example's configuration names.
    pub(crate) fn files(&self) -> &TempDir {
        &self.files
    }

    /// Starts the gateway, with the example's configuration.
    pub(crate) fn start(self) -> Result<Running> {
        let Self { net, authority, config, files } = self;
        let gateway = Gateway::start_in(files, &net.gateway, &config, Launch::default())?;
        Ok(Running { gateway, net, authority, config })
    }
}

/// An example at work.
pub(crate) struct Running {
    pub(crate) gateway: Gateway,
    pub(crate) net: Triangle,
    pub(crate) authority: Authority,
    /// The example's configuration.
    pub(crate) config: String,
}

impl Running {
    /// The access log's lines, once there are this many: of each the value of a key.
    pub(crate) fn logged(&self, lines: usize, key: &str) -> Result<Vec<String>> {
        let log = self.gateway.wait_access_log(lines)?;
        Ok(log.iter().map(|line| line[key].as_str().unwrap_or_default().to_owned()).collect())
    }
}

/// A server of nginx that answers every request with `text`.
pub(crate) fn nginx_config(files: &TempDir, sites: &[(&str, &Leaf, &str)]) -> String {
    let server = |(address, leaf, text): &(&str, &Leaf, &str)| {
        let (chain, key) = (leaf.chain.display(), leaf.key.display());
        format!(
            "server {{ listen {address} ssl; ssl_certificate {chain}; ssl_certificate_key {key}; return 200 '{text}'; }}\n"
        )
    };
    let servers: String = sites.iter().map(server).collect();
    let directory = files.path().display();
    format!(
        "daemon off; master_process off; pid {directory}/pid; error_log stderr;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n\
         fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;\n\
         {servers} }}\n"
    )
}

/// The command, in a mount namespace of its own where these lines are /etc/hosts.
pub(crate) fn knowing(ns: &NetNs, hosts: &Path, program: &str) -> Command {
    let mut command = ns.command("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
    command.arg(hosts).arg(program);
    command
}
