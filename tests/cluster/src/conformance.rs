//! The Gateway API's conformance suite, unmodified.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use snisplice_tests::interrupt::pause_point;

use crate::{Cluster, deploy, programs};

/// What to run.
#[derive(clap::Args)]
pub struct Args {
    /// Profiles of the suite.
    #[arg(default_values_t = PROFILES.map(str::to_owned))]
    profiles: Vec<String>,
    /// With the Gateway API's definitions of the experimental channel: these have retries.
    #[arg(long)]
    experimental: bool,
    /// How many nodes have a gateway. The first gets the clients of all addresses; statuses are of all nodes.
    #[arg(long, default_value_t = 1)]
    nodes: u8,
    /// Only the test of this name; no report is written.
    #[arg(long)]
    run_test: Option<String>,
    /// Where the report goes (default: conformance/ of the target directory).
    #[arg(long)]
    report: Option<PathBuf>,
    /// Leave what failed tests have made.
    #[arg(long)]
    keep: bool,
}

/// What the gateway is for.
const PROFILES: [&str; 4] = ["GATEWAY-TLS", "GATEWAY-TCP", "GATEWAY-HTTP", "GATEWAY-GRPC"];

/// Addresses for the suite's Gateways, of which some forty exist at once. The client routes them to the first node.
const ADDRESSES: [&str; 2] = ["198.51.100.0/25", "2001:db8:10::/120"];
/// One of them, kept for the Gateway that asks for it; and one that no Gateway can have.
const USABLE: &str = "198.51.100.126";
const UNUSABLE: &str = "203.0.113.1";

/// Runs the suite in a cluster of its own; an error if a test failed.
pub fn run(args: &Args) -> Result<()> {
    println!("Starting the cluster …");
    let cluster = Cluster::start(args.nodes)?;
    match args.experimental {
        true => cluster.install_experimental_gateway_api()?,
        false => cluster.install_gateway_api()?,
    }
    for range in ADDRESSES {
        cluster.network.route(range, &cluster.network.nodes[0])?;
    }
    deploy::gateway(
        &cluster,
        &format!(
            "mode = \"pool\"\naddresses = [\"{}\", \"{}\"]\nattach = \"lo\"\n",
            ADDRESSES[0], ADDRESSES[1]
        ),
    )?;
    pause_point()?;

    let suite = programs::path("conformance.test")?;
    let version = env!("CARGO_PKG_VERSION");
    let report = match &args.report {
        Some(report) => report.clone(),
        None => {
            let target = programs::directory()?.join("../..");
            let directory = target.canonicalize()?.join("conformance");
            fs::create_dir_all(&directory)?;
            let channel = if args.experimental { "experimental" } else { "standard" };
            directory.join(format!("{channel}-{version}-default-report.yaml"))
        }
    };
    let mut command: Command = cluster.network.client.command(suite);
    command.env("KUBECONFIG", cluster.control_plane.kubeconfig());
    command.args(["-test.v", "-test.timeout=60m", "-gateway-class=snisplice"]);
    command.arg(format!("-conformance-profiles={}", args.profiles.join(",")));
    command.arg(format!("-usable-address={USABLE}"));
    command.arg(format!("-unusable-address={UNUSABLE}"));
    if args.keep {
        command.args(["-cleanup-base-resources=false", "-cleanup-test-resources=false"]);
    }
    match &args.run_test {
        Some(test) => command.arg(format!("-run-test={test}")),
        None => command.args([
            "-organization=snisplice",
            "-project=snisplice",
            "-url=https://snisplice.dev",
            "-contact=https://snisplice.dev",
            &format!("-version={version}"),
            &format!("-report-output={}", report.display()),
        ]),
    };
    let status = command.status().context("starting the suite")?;
    if args.run_test.is_none() && report.exists() {
        println!("\nthe report: {}", report.display());
    }
    ensure!(status.success(), "the suite ended with {status}");
    Ok(())
}
