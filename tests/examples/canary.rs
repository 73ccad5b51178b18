//! `https-canary`.

use std::fs;

use anyhow::Result;
use snisplice_tests::process::checked_output;
use snisplice_tests::{Process, TempDir, eventually};

use crate::scene::{Running, Scene, nginx_config};

/// How many of so many connections reached the new version.
fn canaries(example: &Running, connections: usize) -> Result<usize> {
    let ca = example.authority.path.display().to_string();
    let url = "https://shop.example.com/";
    let mut found = 0;
    for _ in 0..connections {
        let mut curl = example.net.client.command("curl");
        curl.args(["-s", "--resolve", "shop.example.com:443:10.0.1.1", "--cacert", &ca, url]);
        found += usize::from(checked_output(&mut curl)? == "new");
    }
    Ok(found)
}

#[test]
fn one_connection_of_a_hundred_reaches_the_canary_until_the_weights_change() -> Result<()> {
    let scene = Scene::new("https-canary", &[11, 12, 21])?;
    let (files, leaf) = (TempDir::new()?, scene.authority.leaf(&["shop.example.com"])?);
    let sites = [
        ("10.0.2.11:443", &leaf, "stable"),
        ("10.0.2.12:443", &leaf, "stable"),
        ("10.0.2.21:443", &leaf, "new"),
    ];
    fs::write(files.join("nginx.conf"), nginx_config(&files, &sites))?;
    let mut nginx = scene.net.server.command("nginx");
    nginx.arg("-p").arg(files.path()).arg("-c").arg(files.join("nginx.conf"));
    let mut nginx = Process::spawn("nginx", nginx)?;
    nginx.wait_listening(&[443])?;

    let example = scene.start()?;
    let up = |pool: &str, address: &str| {
        eventually("a server to be up", || {
            (example.gateway.status().ok()?.server(pool, address)["state"] == "up").then_some(())
        })
    };
    up("stable", "10.0.2.11:443")?;
    up("stable", "10.0.2.12:443")?;
    up("canary", "10.0.2.21:443")?;
    // A round of the weights is a hundred turns, so two hundred connections have exactly two.
    assert_eq!(canaries(&example, 200)?, 2);

    let half = example.config.replace("weight = 99", "weight = 1");
    example.gateway.write_config(&half)?;
    example.gateway.reload()?;
    assert_eq!(canaries(&example, 20)?, 10);
    let _ = nginx.stop();
    Ok(())
}
