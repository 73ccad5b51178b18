//! A cluster for a person, and for the conformance suite.

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
    /// Run the Gateway API's conformance suite in it.
    Conformance(conformance::Args),
    /// Measure the gateway with thousands of routes.
    Figures(figures::Args),
}

fn main() -> ExitCode {
    let outcome = watch_for_interrupts().and_then(|()| match Args::parse().command {
        Command::Up { nodes, bare } => up(nodes, bare),
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
        println!("The gateway, on each node: deploy/kubernetes.yaml …");
        deploy::gateway(&cluster, deploy::NODE_MODE)?;
    }
    let client = format!("nsenter --net={}", cluster.network.client.path());
    println!("\nIt runs until you press Ctrl-C. In another terminal, as root:");
    println!("  export KUBECONFIG={}", cluster.control_plane.kubeconfig().display());
    println!("  alias client='{client}'    # a machine beside the nodes, from which all is reached");
    println!("  export PATH=$PATH:{}", snisplice_cluster::programs::directory()?.display());
    println!("  client kubectl get nodes,pods --all-namespaces -o wide");
    println!("  client kubectl describe gatewayclass snisplice");
    println!("  client kubectl logs -n snisplice-system daemonset/snisplice");
    println!("  client kubectl apply -f MANIFESTS");
    for node in &cluster.network.nodes {
        let [v4, v6] = node.addresses();
        println!("  # {} is {v4} and {v6}: nsenter --net={}", node.name(), node.ns.path());
    }
    while !interrupted() {
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("interrupted")
}
