//! How the gateway does with thousands of routes of an API server: `cluster figures`.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PostParams};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde_json::{Value, json};
use snisplice_tests::backend::{Backend, naming};
use snisplice_tests::interrupt::pause_point;
use snisplice_tests::tls::client_hello;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::{Cluster, deploy, runtime};

/// What to measure with.
#[derive(clap::Args)]
pub struct Args {
    /// TLSRoutes, each with a Service and an EndpointSlice of its own.
    #[arg(long, default_value_t = 5000)]
    routes: usize,
    /// Gateways that they are spread over.
    #[arg(long, default_value_t = 50)]
    gateways: usize,
    /// How many more routes are added, one by one.
    #[arg(long, default_value_t = 200)]
    samples: usize,
    /// How often the gateway is started, with the API server and without.
    #[arg(long, default_value_t = 5)]
    starts: usize,
    /// Seconds during which nothing changes.
    #[arg(long, default_value_t = 30)]
    rest: u64,
}

/// What the servers say that they are.
const ANSWER: &str = "served";
const PORT: u16 = 443;
const SERVER_PORT: u16 = 7001;
/// Requests to the API server at once, while everything is made.
const AT_ONCE: usize = 16;
/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(2);
/// Between two routes: the statuses of the last one are written by then.
const BETWEEN: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(300);

/// Measures, and prints a table.
pub fn run(args: &Args) -> Result<()> {
    ensure!(args.routes > 0 && args.gateways > 0 && args.samples > 0, "nothing to measure");
    println!("Load: {}. Starting the cluster …", load()?);
    let mut cluster = Cluster::start(1)?;
    cluster.install_gateway_api()?;
    deploy::gateway(&cluster, deploy::NODE_MODE)?;
    let node = &cluster.network.nodes[0];
    let servers = node.pod("servers", 250)?;
    let _server = Backend::start(&servers, SERVER_PORT, naming(ANSWER))?;
    let measured = Measured {
        kubeconfig: cluster.control_plane.kubeconfig(),
        server: node.pod_addresses(250)[0].to_string(),
        gateway: (node.addresses()[0], PORT).into(),
        gateways: args.gateways,
    };
    let client = cluster.network.client.again()?;
    let in_client = |work: &(dyn Fn() -> Result<f64> + Sync)| client.run(work);

    println!(
        "Making {} TLSRoutes, Services and EndpointSlices, and {} Gateways …",
        args.routes, args.gateways
    );
    let began = Instant::now();
    in_client(&|| runtime::block_on(measured.make(args.routes)))?;
    let made = began.elapsed();
    in_client(&|| runtime::block_on(measured.settled(args.routes)))?;
    println!("made after {made:.1?}, all statuses written after {:.1?}", began.elapsed());
    pause_point()?;

    let pid = |cluster: &Cluster| deploy::process(cluster, 0).context("the gateway's process");
    let process = pid(&cluster)?;
    let before = cpu(process)?;
    std::thread::sleep(Duration::from_secs(args.rest));
    let resting = (cpu(process)? - before) / args.rest as f64;
    let (memory, peak) = (memory(process, "VmRSS")?, memory(process, "VmHWM")?);
    pause_point()?;

    println!("Adding {} routes …", args.samples);
    let before = cpu(process)?;
    let mut added = Vec::with_capacity(args.samples);
    for sample in 0..args.samples {
        added.push(in_client(&|| runtime::block_on(measured.add(args.routes + sample)))?);
        std::thread::sleep(BETWEEN);
        pause_point()?;
    }
    let adding = (cpu(process)? - before) / args.samples as f64;

    println!("Starting the gateway again and again …");
    let last = args.routes - 1;
    let mut starts = [Vec::new(), Vec::new()];
    for _ in 0..args.starts {
        let process = pid(&cluster)?;
        // Without what it has kept, it has to ask.
        let _ = fs::remove_file(format!("/proc/{process}/root/run/snisplice/objects.json"));
        starts[0].push(started(&cluster, &measured, process, last)?);
        // It is written by then.
        std::thread::sleep(Duration::from_secs(15));
        pause_point()?;
    }
    cluster.control_plane.stop_api_server()?;
    for _ in 0..args.starts {
        starts[1].push(started(&cluster, &measured, pid(&cluster)?, last)?);
        std::thread::sleep(Duration::from_secs(1));
    }
    let [asked, kept] = starts;

    println!("\n{} TLSRoutes over {} Gateways (load {} at the end):\n", args.routes, args.gateways, load()?);
    println!("| what | figure |\n|---|---:|");
    println!(
        "| from the request for one more route until it serves, p50 / p99 / worst of {}, ms | {} |",
        args.samples,
        ms(&mut added)
    );
    println!("| CPU for one more route, statuses included, ms | {:.0} |", adding * 1000.0);
    println!("| CPU while nothing changes, % of a core | {:.2} |", resting * 100.0);
    println!("| memory (RSS), peak until then, MiB | {:.0}, {:.0} |", memory, peak);
    println!(
        "| from a start until it serves, p50 / p99 / worst of {}, ms, from the API server | {} |",
        args.starts,
        ms(&mut asked.clone())
    );
    println!("| the same without an API server, ms | {} |", ms(&mut kept.clone()));
    Ok(())
}

/// Ends the gateway's process, and waits until the next one serves: for how many seconds that was there by then.
fn started(cluster: &Cluster, measured: &Measured, process: u32, route: usize) -> Result<f64> {
    kill(Pid::from_raw(process.cast_signed()), Signal::SIGKILL)?;
    cluster.network.client.run(|| runtime::block_on(measured.serves(route)))?;
    let next = deploy::process(cluster, 0).filter(|next| *next != process).context("another process")?;
    let uptime = fs::read_to_string("/proc/uptime")?;
    let now: f64 = uptime.split(' ').next().context("the uptime")?.parse()?;
    // proc_pid_stat(5): starttime.
    Ok(now - stat(next, 22)? / ticks()?)
}

struct Measured {
    kubeconfig: std::path::PathBuf,
    server: String,
    gateway: SocketAddr,
    gateways: usize,
}

impl Measured {
    fn host(&self, route: usize) -> String {
        format!("r-{route}.gw-{}.example", route % self.gateways)
    }

    fn gateway(&self, number: usize) -> Value {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": format!("gw-{number}"), "namespace": "default"},
            "spec": {"gatewayClassName": "snisplice", "listeners": [{
                "name": "tls", "protocol": "TLS", "port": PORT, "hostname": format!("*.gw-{number}.example"),
                "tls": {"mode": "Passthrough"},
            }]},
        })
    }

    fn route(&self, route: usize, service: usize) -> Value {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "TLSRoute",
            "metadata": {"name": format!("r-{route}"), "namespace": "default"},
            "spec": {
                "parentRefs": [{"name": format!("gw-{}", route % self.gateways)}], "hostnames": [self.host(route)],
                "rules": [{"backendRefs": [{"name": format!("s-{service}"), "port": 1}]}],
            },
        })
    }

    fn service(&self, number: usize) -> [Value; 2] {
        let name = format!("s-{number}");
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
            "spec": {"clusterIP": "None", "ports": [{"name": "x", "port": 1}]},
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"name": "x", "port": SERVER_PORT}],
            "endpoints": [{"addresses": [self.server]}],
        });
        [service, slice]
    }

    async fn make(&self, routes: usize) -> Result<f64> {
        let client = runtime::client(&self.kubeconfig).await?;
        let gateways = (0..self.gateways).map(|number| self.gateway(number));
        let routes = (0..routes).flat_map(|number| {
            let [service, slice] = self.service(number);
            [service, slice, self.route(number, number)]
        });
        let requests = gateways.chain(routes).map(|object| create(&client, object));
        futures_util::stream::iter(requests)
            .buffer_unordered(AT_ONCE)
            .try_for_each(|()| async { Ok(()) })
            .await?;
        Ok(0.0)
    }

    /// Waits until all routes have their status.
    async fn settled(&self, routes: usize) -> Result<f64> {
        let client = runtime::client(&self.kubeconfig).await?;
        let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "TLSRoute");
        let api: Api<DynamicObject> = Api::all_with(client, &ApiResource::from_gvk(&kind));
        let all = async {
            loop {
                let list = api.list(&Default::default()).await?;
                let has_status = |route: &&DynamicObject| route.data["status"]["parents"][0].is_object();
                if list.items.iter().filter(has_status).count() == routes {
                    return anyhow::Ok(0.0);
                }
                sleep(Duration::from_secs(1)).await;
            }
        };
        timeout(PATIENCE, all).await.context("the statuses")?
    }

    /// Adds a route to a server that is there. After how many seconds it serves.
    async fn add(&self, route: usize) -> Result<f64> {
        let client = runtime::client(&self.kubeconfig).await?;
        let began = Instant::now();
        create(&client, self.route(route, 0)).await?;
        self.serves(route).await?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// Waits until a route serves.
    async fn serves(&self, route: usize) -> Result<f64> {
        let hello = client_hello(&self.host(route), &[]);
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if self.answers(&hello).await.is_ok_and(|answer| answer == ANSWER.as_bytes()) {
                return Ok(0.0);
            }
            sleep(PAUSE).await;
        }
        anyhow::bail!("route {route} does not serve")
    }

    async fn answers(&self, hello: &[u8]) -> Result<Vec<u8>> {
        let ask = async {
            let mut stream = TcpStream::connect(self.gateway).await?;
            stream.write_all(hello).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            anyhow::Ok(answer)
        };
        timeout(Duration::from_secs(2), ask).await?
    }
}

async fn create(client: &kube::Client, object: Value) -> Result<()> {
    let object: DynamicObject = serde_json::from_value(object)?;
    let types = object.types.clone().context("a kind")?;
    let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(&types)?);
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &resource);
    api.create(&PostParams::default(), &object).await?;
    Ok(())
}

/// p50, p99 and the worst of some seconds, in milliseconds.
fn ms(seconds: &mut [f64]) -> String {
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| seconds[((seconds.len() as f64 * share).ceil() as usize).max(1) - 1] * 1000.0;
    format!("{:.0} / {:.0} / {:.0}", at(0.5), at(0.99), at(1.0))
}

fn load() -> Result<String> {
    Ok(fs::read_to_string("/proc/loadavg")?.split(' ').take(2).collect::<Vec<_>>().join(" "))
}

fn ticks() -> Result<f64> {
    Ok(sysconf(SysconfVar::CLK_TCK)?.context("ticks")? as f64)
}

/// A field of proc_pid_stat(5), from 3 on.
fn stat(process: u32, field: usize) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("the name")?;
    Ok(fields.split_whitespace().nth(field - 3).context("a field")?.parse()?)
}

/// Seconds of CPU that a process has taken.
fn cpu(process: u32) -> Result<f64> {
    Ok((stat(process, 14)? + stat(process, 15)?) / ticks()?)
}

/// MiB of proc_pid_status(5).
fn memory(process: u32, key: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).context("the key")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
