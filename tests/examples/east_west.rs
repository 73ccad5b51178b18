//! `east-west`.

use std::fs;

use anyhow::Result;
use snisplice_tests::process::checked_output;
use snisplice_tests::{Process, TempDir};

use crate::scene::Scene;

/// The ports of the sidecar toward its own app, and the names it asks for.
const SERVICES: [(u16, &str); 4] = [(8001, "v1_"), (8002, "v2_"), (8003, "_"), (8004, "v3_")];

fn name(subset: &str) -> String {
    format!("outbound_.5000_.{subset}.hello.sample.svc.cluster.local")
}

#[test]
fn sidecars_of_another_cluster_reach_the_subset_that_they_name() -> Result<()> {
    let scene = Scene::new("east-west", &[11, 12])?;
    let files = TempDir::new()?;
    // HAProxy looks for the name that it has sent.
    let names = SERVICES.map(|(_, subset)| name(subset));
    let service = scene.authority.leaf(&names.each_ref().map(String::as_str))?;
    let client = scene.authority.leaf(&["app.sample.svc.cluster.local"])?;
    for (name, leaf) in [("service", &service), ("client", &client)] {
        fs::write(files.join(name), [fs::read(&leaf.chain)?, fs::read(&leaf.key)?].concat())?;
    }
    let (directory, ca) = (files.path().display(), scene.authority.path.display());
    let defaults = "defaults\n mode http\n timeout connect 5s\n timeout client 10s\n timeout server 10s\n";

    // The sidecars of the services: they ask for a certificate of the mesh.
    let mut config = defaults.to_owned();
    for (address, version) in [("10.0.2.11", "v1"), ("10.0.2.12", "v2")] {
        config += &format!(
            "frontend {version}\n bind {address}:5000 ssl crt {directory}/service ca-file {ca} verify required\n \
             http-request return status 200 content-type text/plain lf-string \"{version} for %[ssl_c_s_dn(cn)]\"\n"
        );
    }
    fs::write(files.join("services.cfg"), config)?;
    let mut services = scene.net.server.command("haproxy");
    services.arg("-f").arg(files.join("services.cfg"));
    let mut services = Process::spawn("services", services)?;
    services.wait_listening(&[5000])?;

    // The sidecar of the client.
    let mut config = defaults.to_owned();
    for (port, subset) in SERVICES {
        config += &format!(
            "listen to{port}\n bind 127.0.0.1:{port}\n server gateway 10.0.1.1:15443 ssl crt {directory}/client \
             ca-file {ca} verify required sni str({})\n",
            name(subset)
        );
    }
    fs::write(files.join("sidecar.cfg"), config)?;
    let mut sidecar = scene.net.client.command("haproxy");
    sidecar.arg("-f").arg(files.join("sidecar.cfg"));
    let mut sidecar = Process::spawn("sidecar", sidecar)?;
    sidecar.wait_listening(&SERVICES.map(|(port, _)| port))?;

    let example = scene.start()?;
    let ask = |port: u16| {
        let mut curl = example.net.client.command("curl");
        // One connection a request, so that the sidecar opens one too.
        curl.args(["-s", "-H", "Connection: close", &format!("http://127.0.0.1:{port}/")]);
        checked_output(&mut curl)
    };
    for _ in 0..3 {
        assert_eq!(ask(8001)?, "v1 for app.sample.svc.cluster.local");
        assert_eq!(ask(8002)?, "v2 for app.sample.svc.cluster.local");
    }
    let mut to_v2 = 0;
    for _ in 0..20 {
        to_v2 += usize::from(ask(8003)?.starts_with("v2"));
    }
    assert!(to_v2 <= 4, "{to_v2} of 20");
    // A name that is not listed is refused, and counted.
    assert!(ask(8004)?.contains("503"));
    let refused = example.gateway.status()?.rejects("cross-network", "unknown_sni");
    assert!(refused > 0, "{refused}");
    let _ = (services.stop(), sidecar.stop());
    Ok(())
}
