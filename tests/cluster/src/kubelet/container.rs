//! A container: a program in the pod's network namespace, with a root of its own that shows the machine's files, the
//! volumes, and what it has written itself.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Write as _, pipe};
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{self, EnvVar, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use snisplice_tests::NetNs;
use snisplice_tests::process::checked_output;

use crate::control_plane::API_PORT;
use crate::network::CONTROL_PLANE;
use crate::programs;

/// What the containers of a pod share.
pub(super) struct Sandbox {
    pub(super) ns: NetNs,
    pub(super) addresses: [IpAddr; 2],
    /// Of the node.
    pub(super) node_addresses: [IpAddr; 2],
    /// Where the containers' layers are.
    pub(super) directory: PathBuf,
}

/// A running program; killed on drop.
pub(super) struct Running {
    child: Child,
}

/// What Docker and containerd give a container that asks for nothing.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "chown",
    "dac_override",
    "fsetid",
    "fowner",
    "mknod",
    "net_raw",
    "setgid",
    "setuid",
    "setfcap",
    "setpcap",
    "net_bind_service",
    "sys_chroot",
    "kill",
    "audit_write",
];

impl Running {
    /// Starts a container's program; what it writes is added to `log`, each line with its time.
    pub(super) fn start(
        sandbox: &Sandbox,
        pod: &Pod,
        container: &v1::Container,
        volumes: &BTreeMap<String, PathBuf>,
        log: &Path,
    ) -> Result<Self> {
        let image = container.image.as_deref().unwrap_or_default();
        let program = programs::of_image(image)
            .with_context(|| format!("no program on this machine stands in for the image {image}"))?;
        let layer = sandbox.directory.join(&container.name);
        fs::create_dir_all(&layer)?;
        let mut script = format!(
            "set -e\nmount --make-rprivate /\ncd '{layer}'\nmount -t tmpfs tmpfs .\ncd '{layer}'\nmkdir up work root\n\
             mount -t overlay overlay -o lowerdir=/,upperdir=up,workdir=work root\n\
             mount --rbind /dev root/dev\nmount --rbind /proc root/proc\nmount -t sysfs sysfs root/sys\n",
            layer = layer.display()
        );
        // On a file system of its own it would not be seen through the overlay.
        let directory = program.parent().context("a program lies in a directory")?;
        let mut mounts = vec![(directory.to_owned(), directory.display().to_string(), true)];
        for mount in container.volume_mounts.iter().flatten() {
            let volume = volumes.get(&mount.name).with_context(|| format!("no volume {}", mount.name))?;
            let source = mount.sub_path.as_ref().map_or(volume.clone(), |path| volume.join(path));
            mounts.push((source, mount.mount_path.clone(), mount.read_only.unwrap_or(false)));
        }
        // Made inside, so that links such as /var/run lead to places inside.
        script += "at() { chroot root sh -c \"$1\" sh \"$2\"; at=root$(chroot root realpath \"$2\"); }\n";
        for (source, at, read_only) in mounts {
            let is_file = fs::metadata(&source).is_ok_and(|source| source.is_file());
            let make = match is_file {
                true => "mkdir -p \"$(dirname \"$1\")\"; touch \"$1\"",
                false => "mkdir -p \"$1\"",
            };
            script += &format!("at '{make}' '{at}'\nmount --rbind '{}' \"$at\"\n", source.display());
            if read_only {
                script += "mount -o remount,bind,ro \"$at\"\n";
            }
        }
        let security = Security::of(pod, container);
        if security.read_only_root {
            script += "mount -o remount,bind,ro root\n";
        }
        script += &format!("exec chroot root setpriv {} ", security.setpriv().join(" "));
        script += "sh -c 'cd \"$1\"; shift; exec \"$@\"' sh \"$@\"\n";

        let mut command = sandbox.ns.command("unshare");
        command.args(["--mount", "bash", "-c", &script, "bash"]);
        command.arg(container.working_dir.as_deref().unwrap_or("/"));
        match container.command.as_deref() {
            None | Some([]) => command.arg(&program),
            // An image has its program in the search path.
            Some(words) => command.args(words),
        };
        command.args(container.args.iter().flatten());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env_clear();
        command.env("PATH", format!("{}:{path}", directory.display()));
        command.env("HOSTNAME", pod.name_any());
        command.env("KUBERNETES_SERVICE_HOST", CONTROL_PLANE.to_string());
        command.env("KUBERNETES_SERVICE_PORT", API_PORT.to_string());
        for variable in container.env.iter().flatten() {
            command.env(&variable.name, value(variable, pod, sandbox));
        }
        let (output, input) = pipe()?;
        command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
        let child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
        // Else the pipe would not end with the program.
        drop(command);
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        thread::spawn(move || keep(BufReader::new(output), log));
        Ok(Self { child })
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks it to end, or makes it end.
    pub(super) fn signal(&self, signal: Signal) {
        // An error: it has ended.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    /// Runs a command inside; whether it was successful.
    pub(super) async fn exec(&self, words: &[String]) -> bool {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.child.id()));
        command.args(["--mount", "--net", "--root", "--wd"]).args(words);
        tokio::task::spawn_blocking(move || checked_output(&mut command))
            .await
            .is_ok_and(|output| output.is_ok())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The code that Kubernetes shows.
pub(super) fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Copies lines to a log, each after its time.
fn keep(mut lines: impl std::io::BufRead, mut log: File) {
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        let mut entry = format!("{} ", Timestamp::now()).into_bytes();
        entry.append(&mut line);
        if log.write_all(&entry).is_err() {
            return;
        }
    }
}

/// What a container's `securityContext` asks for, or its pod's. No seccomp: that is a container runtime's.
struct Security {
    /// For the bounding set of setpriv(1).
    capabilities: String,
    no_new_privileges: bool,
    read_only_root: bool,
    user: Option<i64>,
}

impl Security {
    fn of(pod: &Pod, container: &v1::Container) -> Self {
        let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        let own = container.security_context.clone().unwrap_or_default();
        Self {
            capabilities: match own.privileged {
                Some(true) => "+all".into(),
                _ => capabilities(own.capabilities.as_ref()),
            },
            no_new_privileges: own.allow_privilege_escalation == Some(false),
            read_only_root: own.read_only_root_filesystem == Some(true),
            user: own.run_as_user.or_else(|| of_pod?.run_as_user),
        }
    }

    /// Options of setpriv(1).
    fn setpriv(&self) -> Vec<String> {
        let mut options = vec![format!("--bounding-set={}", self.capabilities)];
        options.extend(self.no_new_privileges.then(|| "--no-new-privs".to_owned()));
        options.extend(self.user.iter().map(|user| format!("--reuid={user} --clear-groups")));
        options
    }
}

/// What Docker and containerd give by themselves, and what is asked for.
fn capabilities(asked: Option<&v1::Capabilities>) -> String {
    let drop: Vec<String> = words(asked.and_then(|asked| asked.drop.as_ref()));
    let add = words(asked.and_then(|asked| asked.add.as_ref()));
    let kept = DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned());
    let kept = kept.filter(|name| !drop.contains(name) && !drop.iter().any(|name| name == "all"));
    let all: Vec<String> = kept.chain(add).map(|name| format!("+{name}")).collect();
    ["-all".to_owned()].into_iter().chain(all).collect::<Vec<_>>().join(",")
}

fn words(names: Option<&Vec<String>>) -> Vec<String> {
    names
        .into_iter()
        .flatten()
        .map(|name| name.to_ascii_lowercase().trim_start_matches("cap_").to_owned())
        .collect()
}

fn value(variable: &EnvVar, pod: &Pod, sandbox: &Sandbox) -> String {
    let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
    match field.map(|field| field.field_path.as_str()) {
        None => variable.value.clone().unwrap_or_default(),
        Some("status.podIP") => sandbox.addresses[0].to_string(),
        Some("status.podIPs") => sandbox.addresses.map(|address| address.to_string()).join(","),
        Some("status.hostIP") => sandbox.node_addresses[0].to_string(),
        Some("status.hostIPs") => sandbox.node_addresses.map(|address| address.to_string()).join(","),
        Some(path) => pod_field(pod, path),
    }
}

/// A field of a pod for `fieldRef`.
pub(super) fn pod_field(pod: &Pod, path: &str) -> String {
    let spec = pod.spec.as_ref();
    let keyed = |prefix: &str, map: &BTreeMap<String, String>| {
        let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
        map.get(key).cloned()
    };
    match path {
        "metadata.name" => pod.metadata.name.clone(),
        "metadata.namespace" => pod.metadata.namespace.clone(),
        "metadata.uid" => pod.uid(),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
        _ => keyed("metadata.labels", pod.labels())
            .or_else(|| keyed("metadata.annotations", pod.annotations())),
    }
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Capabilities, PodSecurityContext, PodSpec, SecurityContext};

    #[test]
    fn a_container_gets_the_capabilities_it_asks_for_and_no_other() {
        let asks = |add: &[&str], drop: &[&str]| {
            let list = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
            capabilities(Some(&Capabilities { add: list(add), drop: list(drop) }))
        };
        assert_eq!(asks(&["NET_ADMIN", "BPF"], &["ALL"]), "-all,+net_admin,+bpf");
        assert!(asks(&[], &["NET_RAW"]).contains("+net_bind_service"));
        assert!(!asks(&[], &["NET_RAW"]).contains("net_raw"));
    }

    #[test]
    fn a_container_has_the_last_word_before_its_pod() {
        let security_context =
            Some(PodSecurityContext { run_as_user: Some(999), ..PodSecurityContext::default() });
        let spec = Some(PodSpec { security_context, ..PodSpec::default() });
        let pod = Pod { spec, ..Pod::default() };
        let own = SecurityContext {
            allow_privilege_escalation: Some(false),
            privileged: Some(true),
            run_as_user: Some(0),
            ..SecurityContext::default()
        };
        let own = v1::Container { security_context: Some(own), ..v1::Container::default() };
        let options = Security::of(&pod, &own).setpriv();
        assert_eq!(options, ["--bounding-set=+all", "--no-new-privs", "--reuid=0 --clear-groups"]);
        assert_eq!(Security::of(&pod, &v1::Container::default()).user, Some(999));
    }
}
