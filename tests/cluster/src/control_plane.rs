//! etcd, the API server and the controllers: the real programs, with files of their own.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use snisplice_tests::process::checked_output;
use snisplice_tests::{Authority, Leaf, NetNs, Process, TempDir, eventually};

use crate::network::{CONTROL_PLANE, CONTROL_PLANE6};
use crate::programs;

/// The port of the API server.
pub const API_PORT: u16 = 6443;
/// Known to the API server as a cluster administrator's.
const TOKEN: &str = "cluster-admin";

/// The running control plane.
pub struct ControlPlane {
    ns: NetNs,
    authority: Authority,
    server: Leaf,
    service_accounts: Leaf,
    files: TempDir,
    api_server: Option<Process>,
    _controllers: Option<Process>,
    _etcd: Process,
}

impl ControlPlane {
    /// Starts it in a namespace that has [`CONTROL_PLANE`] as its address, and waits until it is ready.
    pub fn start(ns: &NetNs) -> Result<Self> {
        let files = TempDir::new()?;
        let authority = Authority::new("the cluster's authority")?;
        let (v4, v6) = (CONTROL_PLANE.to_string(), CONTROL_PLANE6.to_string());
        let server = authority.leaf(&["kubernetes.default.svc", &v4, &v6, "127.0.0.1"])?;
        let service_accounts = authority.leaf(&["service-accounts"])?;
        fs::write(files.join("tokens.csv"), format!("{TOKEN},admin,admin,\"system:masters\"\n"))?;
        let etcd = {
            let mut command = ns.command(programs::path("etcd")?);
            command.arg("--data-dir").arg(files.join("etcd")).arg("--unsafe-no-fsync");
            for (option, port) in [("client", 2379), ("peer", 2380)] {
                command.arg(format!("--listen-{option}-urls=http://127.0.0.1:{port}"));
            }
            command.arg("--advertise-client-urls=http://127.0.0.1:2379");
            Process::spawn("etcd", command)?
        };
        let mut started = Self {
            ns: ns.again()?,
            authority,
            server,
            service_accounts,
            files,
            api_server: None,
            _controllers: None,
            _etcd: etcd,
        };
        let kubeconfig = started.kubeconfig_for(TOKEN)?;
        fs::write(started.kubeconfig(), kubeconfig)?;
        started.start_api_server()?;
        started._controllers = Some(started.start_controllers()?);
        Ok(started)
    }

    /// An administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.files.join("kubeconfig")
    }

    /// The authority that signs for API server and kubelets.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A `kubectl` of an administrator.
    pub fn kubectl(&self) -> Result<Command> {
        let mut command = self.ns.command(programs::path("kubectl")?);
        command.arg("--kubeconfig").arg(self.kubeconfig());
        // What it caches about this API server is nobody else's.
        command.arg("--cache-dir").arg(self.files.join("kubectl"));
        Ok(command)
    }

    /// A `helm` of an administrator.
    pub fn helm(&self) -> Result<Command> {
        let mut command = self.ns.command(programs::path("helm")?);
        command.env_clear().env("HOME", self.files.path()).env("KUBECONFIG", self.kubeconfig());
        Ok(command)
    }

    /// Starts the API server with the data there is, and waits until it is ready.
    pub fn start_api_server(&mut self) -> Result<()> {
        let mut command = self.ns.command(programs::path("kube-apiserver")?);
        let option = |name: &str, path: PathBuf| {
            let mut option = OsString::from(format!("--{name}="));
            option.push(path);
            option
        };
        command.args([
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=::",
            &format!("--advertise-address={CONTROL_PLANE}"),
            &format!("--secure-port={API_PORT}"),
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--service-cluster-ip-range=10.96.0.0/16,fd96::/112",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--kubelet-preferred-address-types=InternalIP",
            // The nodes do not run kube-proxy, and the machine has few cores.
            "--endpoint-reconciler-type=none",
        ]);
        command.arg(option("tls-cert-file", self.server.chain.clone()));
        command.arg(option("tls-private-key-file", self.server.key.clone()));
        command.arg(option("token-auth-file", self.files.join("tokens.csv")));
        command.arg(option("kubelet-certificate-authority", self.authority.path.clone()));
        command.arg(option("service-account-key-file", self.service_accounts.chain.clone()));
        command.arg(option("service-account-signing-key-file", self.service_accounts.key.clone()));
        let mut api_server = Process::spawn("kube-apiserver", command)?;
        let ready = eventually("the API server to be ready", || {
            let answer = checked_output(self.kubectl().ok()?.args(["get", "--raw", "/readyz"]));
            (answer.is_ok() || !api_server.is_running()).then_some(())
        });
        ensure!(ready.is_ok() && api_server.is_running(), "no API server\n{}", api_server.output());
        self.api_server = Some(api_server);
        Ok(())
    }

    /// Stops the API server; what it knows stays in etcd.
    pub fn stop_api_server(&mut self) -> Result<()> {
        let mut api_server = self.api_server.take().context("the API server does not run")?;
        api_server.signal(nix::sys::signal::Signal::SIGKILL)?;
        api_server.wait(snisplice_tests::wait::patience())?;
        Ok(())
    }

    fn start_controllers(&self) -> Result<Process> {
        let mut command = self.ns.command(programs::path("kube-controller-manager")?);
        command.arg("--kubeconfig").arg(self.kubeconfig());
        command.arg("--root-ca-file").arg(&self.authority.path);
        command.arg("--service-account-private-key-file").arg(&self.service_accounts.key);
        command.args([
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            // The kubelets here write no Leases.
            "--controllers=*,-node-lifecycle-controller",
        ]);
        Process::spawn("kube-controller-manager", command)
    }

    /// A kubeconfig whose user has a token.
    fn kubeconfig_for(&self, token: &str) -> Result<String> {
        let cluster = json!({
            "server": format!("https://{CONTROL_PLANE}:{API_PORT}"),
            "certificate-authority": self.authority.path,
        });
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "cluster",
            "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": "admin"}}],
            "clusters": [{"name": "cluster", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": token}}],
        });
        Ok(serde_json::to_string_pretty(&config)?)
    }
}
