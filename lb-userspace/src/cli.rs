//! The command line.

mod cleanup;
mod ech_key;
mod import;
mod upgrade;

use crate::admin::{self, Client, ClientError, text, top, view::ConnectionFilter};
use crate::config::gateway_api::Built;
use crate::config::{self, Config, File, Gateway, Interfaces, SourceAddress, Sources};
use crate::gateway::attached::Attached;
use crate::gateway::objects::Objects;
use crate::import::Verdict;
use crate::kernel::{self, KernelError, needs};
use crate::memory::keep_little;
use crate::reason::Tier;
use crate::terminal::in_colour;
use crate::words::{counted, with_causes};
use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Exit codes beside 0.
const RUNTIME_FAILURE: u8 = 1;
const BAD_CONFIGURATION: u8 = 2;
/// `import`: there is a result, which does not do all that the files did.
const LOST: u8 = 3;

/// Where the configuration is unless `-c` names another.
const CONFIG: &str = "/etc/snisplice/snisplice.toml";

const AFTER_HELP: &str = "\
A first run:
  snisplice doctor                    what this machine can do
  snisplice check -c snisplice.toml   is the configuration right?
  snisplice run -c snisplice.toml     serve
  snisplice status                    what a running gateway does";

/// One address, hundreds of databases behind it, chosen by the TLS server name.
#[derive(Parser)]
#[command(name = "snisplice", version, about, after_help = AFTER_HELP, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve in the foreground.
    ///
    /// SIGHUP reloads the configuration, live connections are untouched. SIGTERM stops: no new connections, live
    /// ones may end within drain_timeout; a second SIGTERM cuts them. RUST_LOG sets what is logged to standard
    /// error (default: info).
    Run {
        #[command(flatten)]
        file: ConfigFile,
        /// Take the place of the gateway that runs with this state_dir, without refusing anybody: an upgrade.
        ///
        /// Its listening sockets, with the clients that wait in them, and its connections of the packet tier become this
        /// process's; it carries its other connections until they end, for at most its drain_timeout. If this process fails
        /// before, the running one goes on. If none runs, this is a start like any other.
        #[arg(long)]
        take_over: bool,
    },
    /// Validate a configuration, or a directory of manifests: every error at once, with its place and a hint.
    ///
    /// Exits with 0 when all of it would be served, with 2 when not: also if only one object of the Gateway API would be
    /// refused, and the rest be served.
    Check {
        #[command(flatten)]
        file: ConfigFile,
        /// A directory of manifests (*.yaml, *.json) to validate instead, by the defaults of `[gateway_api]`.
        #[arg(conflicts_with = "config")]
        directory: Option<PathBuf>,
    },
    /// Show what this kernel and this user can do, and how to get what is missing.
    Doctor {
        /// The configuration whose `source_ports`, `bpffs`, listeners, `[gateway_api]`, and pools with `source = "client"` to
        /// look at [default: /etc/snisplice/snisplice.toml if it is there, else the defaults of its keys].
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Load, attach and pin the kernel programs of the configured tiers, so that `run` adopts them.
    Load {
        #[command(flatten)]
        at: Bpffs,
        /// Only on these devices (may be given several times) [default: `interfaces` of the configuration].
        #[arg(short, long, value_name = "IFACE")]
        interface: Vec<String>,
    },
    /// Detach and unpin the kernel programs, of all versions.
    ///
    /// The connections that they forward are cut: their ends get a reset with their next packet. Asks first.
    Unload {
        #[command(flatten)]
        at: Bpffs,
        /// Ask nothing.
        #[arg(long)]
        force: bool,
    },
    /// List what a gateway has left on this machine that will not come back, or remove it.
    ///
    /// These are addresses that it has put on a device for Gateways, pinned kernel programs and maps, and its files in
    /// `state_dir`: the last objects, with private keys, and what is drained. Connections that the kernel still forwards are cut.
    /// Refuses while a gateway runs.
    Cleanup {
        /// The configuration whose `bpffs` and `state_dir` to look at [default: /etc/snisplice/snisplice.toml if it is there,
        /// else the defaults of its keys].
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Remove it.
        #[arg(long)]
        yes: bool,
    },
    /// Make the running gateway read its configuration again. A bad file changes nothing.
    Reload {
        #[command(flatten)]
        gateway: StateDir,
        /// If this program is another file than that of the running gateway (a new version was installed), start it in the
        /// background in place of that, as `run --take-over` does, and return when it serves. For a service manager.
        #[arg(long)]
        upgrade: bool,
    },
    /// Show listeners, routes, pools, servers and tiers of the running gateway.
    Status {
        #[command(flatten)]
        gateway: StateDir,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the objects of the Gateway API that the running gateway has read, with their conditions.
    ///
    /// Those that are not taken come first, with file, line and reason.
    Objects {
        #[command(flatten)]
        gateway: StateDir,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the live connections of the running gateway.
    Connections {
        #[command(flatten)]
        gateway: StateDir,
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Only those of this route.
        #[arg(long)]
        route: Option<String>,
        /// Only those that asked for this server name.
        #[arg(long)]
        sni: Option<String>,
    },
    /// Watch the live connections of the running gateway in the terminal.
    Top {
        #[command(flatten)]
        gateway: StateDir,
        /// Only those of this route.
        #[arg(long)]
        route: Option<String>,
        /// Only those that asked for this server name.
        #[arg(long)]
        sni: Option<String>,
    },
    /// Stop new connections to a server, or to all of a pool; open ones stay. Also after a restart.
    Drain {
        #[command(flatten)]
        gateway: StateDir,
        /// POOL/SERVER or POOL, as `status` shows them.
        #[arg(value_name = "POOL[/SERVER]")]
        target: String,
    },
    /// Allow new connections to a server, or to those of a pool, again.
    Undrain {
        #[command(flatten)]
        gateway: StateDir,
        /// POOL/SERVER or POOL, as `status` shows them.
        #[arg(value_name = "POOL[/SERVER]")]
        target: String,
    },
    /// Reset one connection.
    Kill {
        #[command(flatten)]
        gateway: StateDir,
        /// Its id, as `connections` shows it.
        connection: u64,
    },
    /// Make a key for Encrypted ClientHello (ECH), and the `ech=` of the HTTPS record that tells clients of it.
    EchKey(ech_key::EchKey),
    /// Turn another program's configuration into objects of the Gateway API, or into snisplice's TOML.
    ///
    /// Takes Traefik's IngressRouteTCP, Istio's Gateway, VirtualService and DestinationRule, Kong's TCPIngress, the
    /// tcp-services ConfigMap of ingress-nginx, HAProxy's frontends and backends (mode tcp), the stream block of nginx, and
    /// Envoy's static listeners and clusters. What a file is, is seen by its contents; files that belong together (Services,
    /// maps, included files) are given together.
    ///
    /// The result goes to standard output. Every part of the files that it lacks is named in a comment of the result and on
    /// standard error, with its line: "lost" changes what is served, "to do" waits for you (a certificate, a port), "left
    /// out" changes nothing.
    #[command(after_help = import::AFTER_HELP)]
    Import(import::Import),
    /// Print the completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration (TOML).
    #[arg(short, long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
}

#[derive(clap::Args)]
struct Bpffs {
    /// The configuration whose tiers, sizes and `bpffs` to use [default: /etc/snisplice/snisplice.toml if it is there, else
    /// the defaults of its keys].
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(clap::Args)]
struct StateDir {
    /// The configuration of the gateway to talk to [default: /etc/snisplice/snisplice.toml if it is there; else the gateway
    /// in /run/snisplice is meant].
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// A command's failure and its exit code.
struct Failure(u8, anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure(RUNTIME_FAILURE, error.into())
    }
}

/// Runs the command of the process's arguments.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, error)) => {
            if !error.to_string().is_empty() {
                eprintln!("snisplice: {}", with_causes(error.as_ref()));
            }
            ExitCode::from(code)
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run { file: ConfigFile { config: path }, take_over } => serve(&path, take_over, || {}),
        Command::Check { directory: Some(path), .. } => {
            let file = File::of_manifests(&path);
            let config = shown(&path, file.check(&mut Built::default()))?;
            check(&path, &file, config)
        }
        Command::Check { file: ConfigFile { config: path }, directory: None } => {
            let (file, config, _) = load(&path)?;
            check(&path, &file, config)
        }
        Command::Doctor { config } => {
            let whole = whole_of(config.as_deref());
            let report = crate::doctor::run(&gateway_of(config)?, whole.as_ref());
            report.print();
            if report.can_serve() { Ok(()) } else { Err(anyhow::anyhow!("no tier works here").into()) }
        }
        Command::Load { at, interface } => {
            let mut wanted = at.resolve()?;
            if !interface.is_empty() {
                wanted.interfaces = Interfaces::Named(interface);
            }
            let explained = |error: KernelError, tier| {
                needs::explained(error.into(), needs::of(tier).requires, &wanted.bpffs)
            };
            if wanted.tiers.contains(&Tier::Packet) {
                let failures = kernel::packet::load(&wanted.bpffs, wanted.flows, &wanted.interfaces)
                    .map_err(|error| explained(error, Tier::Packet))?;
                if !failures.is_empty() {
                    let failures: Vec<_> = failures
                        .iter()
                        .map(|(device, error)| format!("{device}: {}", with_causes(error)))
                        .collect();
                    return Err(anyhow::anyhow!("not attached to {}", failures.join("; ")).into());
                }
            }
            if wanted.tiers.contains(&Tier::Sockmap) {
                kernel::load_and_pin(&wanted.bpffs, wanted.sockets)
                    .map_err(|error| explained(error, Tier::Sockmap))?;
            }
            show(&format!("loaded and pinned below {}\n", wanted.bpffs.display()))
        }
        Command::Unload { at, force } => {
            let bpffs = at.resolve()?.bpffs;
            let connections = kernel::packet::connections(&bpffs)?;
            if connections > 0 && !force && !confirmed(connections)? {
                return Err(anyhow::anyhow!("nothing was unloaded").into());
            }
            show(match kernel::unload(&bpffs)? {
                true => "detached and unpinned\n",
                false => "nothing was pinned\n",
            })
        }
        Command::Cleanup { config, yes } => show(&cleanup::run(&gateway_of(config)?.fixed, yes)?),
        Command::Reload { gateway, upgrade } => {
            let config = gateway.config.clone();
            let mut client = gateway.client()?;
            if upgrade && upgrade::is_new(client.process()?)? {
                drop(client);
                let path = config.unwrap_or_else(|| CONFIG.into());
                return match upgrade::in_background(|serves| serve(&path, true, serves))? {
                    None => Ok(()),
                    // It has said why.
                    Some(code) => Err(Failure(code, anyhow::Error::msg(""))),
                };
            }
            let reloaded = client.reload().map_err(|error| {
                // Either the file is wrong, or what it asks for cannot be had now.
                let file = config.or_else(default_file);
                let is_bad = matches!(error, ClientError::Refused(_))
                    && file.is_some_and(|path| File::open(&path).0.is_err());
                Failure(if is_bad { BAD_CONFIGURATION } else { RUNTIME_FAILURE }, error.into())
            })?;
            for warning in &reloaded.warnings {
                eprintln!("warning: {warning}");
            }
            show(&format!(
                "reloaded: {} (generation {})\n",
                parts(reloaded.listeners, reloaded.routes, reloaded.pools),
                reloaded.config_generation
            ))
        }
        Command::Status { gateway, json } => {
            let status = gateway.client()?.status()?;
            if json { show_json(&status) } else { show(&text::status(&status)) }
        }
        Command::Objects { gateway, json } => {
            let objects = gateway.client()?.objects()?;
            if json { show_json(&objects) } else { show(&admin::objects(&objects)) }
        }
        Command::Connections { gateway, json, route, sni } => {
            let connections = gateway.client()?.connections(&ConnectionFilter { route, sni })?;
            if json { show_json(&connections) } else { show(&text::connections(&connections)) }
        }
        Command::Top { gateway, route, sni } => {
            if !std::io::stdout().is_terminal() {
                return Err(anyhow::anyhow!("`top` takes a terminal; `connections` does not").into());
            }
            let state_dir = gateway.state_dir()?;
            // Fails before the screen is cleared if there is no gateway.
            Client::connect(&state_dir)?;
            Ok(top::run(state_dir, ConnectionFilter { route, sni })?)
        }
        Command::Drain { gateway, target } => Ok(gateway.client()?.drain(&target, true)?),
        Command::Undrain { gateway, target } => Ok(gateway.client()?.drain(&target, false)?),
        Command::Kill { gateway, connection } => Ok(gateway.client()?.kill(connection)?),
        Command::EchKey(key) => show(&key.run()?),
        Command::Import(import) => {
            let imported = import.run()?;
            show(&imported.text)?;
            for (_, message) in &imported.messages {
                eprintln!("{message}");
            }
            match imported.messages.iter().filter(|(verdict, _)| *verdict == Verdict::Lost).count() {
                0 => Ok(()),
                lost => Err(Failure(LOST, anyhow::anyhow!("{} lost", counted(lost, "part")))),
            }
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "snisplice", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// Serves in the foreground.
fn serve(path: &Path, take_over: bool, serves: impl FnOnce()) -> Result<(), Failure> {
    keep_little();
    let (file, config, sources) = load(path)?;
    log_to_stderr();
    Ok(crate::gateway::run(path, file, config, sources, take_over, serves)?)
}

/// Loads a configuration; its errors and warnings are shown in full.
fn load(path: &Path) -> Result<(File, Config, Sources), Failure> {
    if path == Path::new(CONFIG) && !path.exists() {
        let message = format!("there is no {CONFIG}: name the configuration with `-c FILE`");
        return Err(Failure(BAD_CONFIGURATION, anyhow::Error::msg(message)));
    }
    let (opened, sources) = File::open(path);
    let opened = opened.map(|(file, config, warnings)| ((file, config), warnings));
    let (file, config) = shown(path, opened)?;
    Ok((file, config, sources))
}

/// Says what a configuration has, together with the objects that it names; or what is wrong with these.
fn check(path: &Path, file: &File, mut config: Config) -> Result<(), Failure> {
    if let Some(mut objects) =
        Objects::of(file, &config, &[], Arc::new(Attached::found(&config.gateway.fixed.state_dir)))
    {
        objects.read();
        config = shown(path, objects.assemble(file))?;
        let faults = objects.faults();
        if !faults.is_empty() {
            faults.iter().for_each(|fault| eprintln!("error: {fault}"));
            let faults = counted(faults.len(), "error");
            return Err(Failure(BAD_CONFIGURATION, anyhow::anyhow!("{}: {faults}", path.display())));
        }
    }
    if let Some(pool) = config.pools.iter().find(|pool| pool.source == SourceAddress::Client)
        && let Err(error) = kernel::tcp::may_be_transparent()
    {
        eprintln!(
            "warning: the pool `{}` has source = \"client\", for which `run` needs CAP_NET_ADMIN; not permitted to this user: \
             {error}",
            pool.name
        );
    }
    let parts = parts(config.listeners.len(), config.routes.len(), config.pools.len());
    show(&format!("{}: {parts}: good\n", path.display()))
}

/// As [`load`], but only the `[gateway]` table: of the file of `-c`, or of [`CONFIG`]; its defaults if there is no such file.
fn gateway_of(named: Option<PathBuf>) -> Result<Gateway, Failure> {
    match named.or_else(default_file) {
        Some(path) => shown(&path, config::load_gateway(&path)),
        None => Ok(Gateway::default()),
    }
}

/// All of that file; none if it has errors, of which those of `[gateway]` are shown by [`gateway_of`].
fn whole_of(named: Option<&Path>) -> Option<Config> {
    let path = named.map(Path::to_path_buf).or_else(default_file)?;
    match File::open(&path).0 {
        Ok((_, config, _)) => Some(config),
        Err(_) => {
            let path = path.display();
            eprintln!("snisplice: {path}: servers and listeners are not asked: `check` shows why");
            None
        }
    }
}

fn default_file() -> Option<PathBuf> {
    Some(PathBuf::from(CONFIG)).filter(|path| path.exists())
}

/// "1 listener, 2 routes, 2 pools".
fn parts(listeners: usize, routes: usize, pools: usize) -> String {
    let [listeners, routes, pools] =
        [(listeners, "listener"), (routes, "route"), (pools, "pool")].map(|(n, noun)| counted(n, noun));
    format!("{listeners}, {routes}, {pools}")
}

fn shown<T>(path: &Path, loaded: Result<(T, config::Warnings), config::Diagnostics>) -> Result<T, Failure> {
    match loaded {
        Ok((config, warnings)) => {
            eprint!("{}", warnings.render(in_colour(&std::io::stderr())));
            Ok(config)
        }
        Err(errors) => {
            eprint!("{}", errors.render(in_colour(&std::io::stderr())));
            let errors = counted(errors.count(config::Severity::Error), "error");
            Err(Failure(BAD_CONFIGURATION, anyhow::anyhow!("{}: {errors}", path.display())))
        }
    }
}

/// What the kernel programs are loaded with.
struct Wanted {
    bpffs: PathBuf,
    tiers: Vec<Tier>,
    interfaces: Interfaces,
    flows: u32,
    /// Two for each connection.
    sockets: u32,
}

impl Bpffs {
    fn resolve(self) -> Result<Wanted, Failure> {
        let Gateway { fixed, live } = gateway_of(self.config)?;
        Ok(Wanted {
            bpffs: fixed.bpffs,
            tiers: live.tiers,
            interfaces: fixed.interfaces,
            flows: fixed.flow_table,
            sockets: u32::try_from(live.max_connections * 2).unwrap_or(u32::MAX),
        })
    }
}

/// Asks on the terminal whether this many connections shall be cut.
fn confirmed(connections: usize) -> Result<bool, Failure> {
    let cut = format!("{} would be cut", counted(connections, "live connection"));
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(anyhow::anyhow!("{cut}; --force does it without asking").into());
    }
    eprint!("{cut}. Unload all the same? [y/N] ");
    let mut answer = String::new();
    stdin.read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

impl StateDir {
    fn state_dir(self) -> Result<PathBuf, Failure> {
        Ok(gateway_of(self.config)?.fixed.state_dir)
    }

    fn client(self) -> Result<Client, Failure> {
        Ok(Client::connect(&self.state_dir()?)?)
    }
}

/// Writes to standard output; a reader that has gone away (`| head`) is not a failure.
fn show(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("cannot write").into())
        }
        _ => Ok(()),
    }
}

fn show_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    show(&(serde_json::to_string_pretty(value).context("cannot write JSON")? + "\n"))
}

fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let plain = !std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(!plain).with_writer(std::io::stderr).init();
}
