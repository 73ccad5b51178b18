//! A cluster for a person, and for the conformance suite.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use snisplice_cluster::{Cluster, conformance, deploy, figures};
use snisplice_tests::interrupt::{interrupted, watch_for_interrupts};

/// A Kubernetes cluster on this machine: a real control plane, nodes that are network namespaces.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run it until Ctrl-C.
    Up {
        /// How many nodes it has.
        #[arg(long, default_value_t = 2)]
        nodes: u8,
        /// Leave the gateway out.
        #[arg(long)]
        bare: bool,
    },
    /// Print what deploy/kubernetes.yaml has to be.
    Manifests,
    /// Run the Gateway API's conformance suite in it.
    Conformance(conformance::Args),
    /// Measure the gateway with thousands of routes.
    Figures(figures::Args),
}

fn main() -> ExitCode {
    let outcome = watch_for_interrupts().and_then(|()| match Args::parse().command {
        Command::Up { nodes, bare } => up(nodes, bare),
        Command::Manifests => deploy::manifests().map(|manifests| print!("{manifests}")),
        Command::Conformance(args) => conformance::run(&args),
        Command::Figures(args) => figures::run(&args),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if interrupted() => ExitCode::from(130),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn up(nodes: u8, bare: bool) -> Result<()> {
    println!("Starting etcd, the API server, the controllers and {nodes} nodes …");
    let cluster = Cluster::start(nodes)?;
    cluster.install_gateway_api()?;
    if !bare {
        println!("The gateway, on each node: helm install …");
        deploy::helm(&cluster, "install", "")?;
    }
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/kubernetes/redis.yaml");
    let example = Path::new(example).canonicalize()?;
    println!("\nIt runs until you press Ctrl-C. In another terminal, as root:\n");
    println!("  export KUBECONFIG={}", cluster.control_plane.kubeconfig().display());
    println!("  export PATH=$PATH:{}", snisplice_cluster::programs::directory()?.canonicalize()?.display());
    println!("  # a machine beside the nodes, from which all is reached");
    println!("  alias client='nsenter --net={}'", cluster.network.client.path());
    println!("  client kubectl get nodes,pods --all-namespaces -o wide");
    if !bare {
        let [node, _] = cluster.network.nodes[0].addresses();
        println!("  client helm status --namespace {} snisplice", deploy::NAMESPACE);
        println!("  client kubectl logs --namespace {} daemonset/snisplice", deploy::NAMESPACE);
        println!("\n  # a Redis, and a client of it");
        println!("  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 30 \\");
        println!("    -subj /CN=redis.example.com -addext subjectAltName=DNS:redis.example.com \\");
        println!("    -keyout /tmp/redis.key -out /tmp/redis.crt");
        println!("  client kubectl create secret tls redis --cert /tmp/redis.crt --key /tmp/redis.key");
        println!("  client kubectl apply -f {}", example.display());
        println!("  client kubectl wait --for=condition=Programmed gateway/databases");
        println!("  client redis-cli --tls --cacert /tmp/redis.crt --sni redis.example.com -h {node} ping");
        println!("  client kubectl describe gateway databases");
    }
    println!();
    for node in &cluster.network.nodes {
        let [v4, v6] = node.addresses();
        println!("  # {} is {v4} and {v6}: nsenter --net={}", node.name(), node.ns.path());
    }
    while !interrupted() {
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("interrupted")
}
