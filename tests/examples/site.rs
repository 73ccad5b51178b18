//! `https-site`.

use std::fs;

use anyhow::Result;
use snisplice_tests::process::checked_output;
use snisplice_tests::{Process, TempDir, eventually};

use crate::scene::{Running, Scene};

const SITE: &str = "https://shop.example.com";

/// What curl shows of these pages, fetched one after another on as few connections as it can.
fn fetch(example: &Running, args: &[&str], urls: &[String]) -> Result<String> {
    let ca = example.authority.path.display().to_string();
    let mut curl = example.net.client.command("curl");
    curl.args(["-s", "--cacert", &ca, "--resolve", "shop.example.com:443:10.0.1.1"]);
    curl.args(["--resolve", "shop.example.com:80:10.0.1.1"]).args(args).args(urls);
    checked_output(&mut curl)
}

/// A server of nginx for each address, without TLS, which answers with a text in which nginx puts its variables.
fn nginx_config(files: &TempDir, sites: &[(&str, &str)]) -> String {
    let server =
        |(address, text): &(&str, &str)| format!("server {{ listen {address}; return 200 '{text}\\n'; }}\n");
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

#[test]
fn requests_go_by_path_and_weight_and_those_without_tls_are_sent_to_it() -> Result<()> {
    let scene = Scene::new("https-site", &[11, 12, 21, 31])?;
    scene.certificate("shop.example.com")?;
    let files = TempDir::new()?;
    let client = "$http_host $http_x_forwarded_for $http_x_forwarded_proto";
    let api = format!("api $request_uri {client}");
    let sites = [
        ("10.0.2.11:80", "stable"),
        ("10.0.2.12:80", "stable"),
        ("10.0.2.21:80", "new"),
        ("10.0.2.31:80", &api),
    ];
    fs::write(files.join("nginx.conf"), nginx_config(&files, &sites))?;
    let mut nginx = scene.net.server.command("nginx");
    nginx.arg("-p").arg(files.path()).arg("-c").arg(files.join("nginx.conf"));
    let mut nginx = Process::spawn("nginx", nginx)?;
    nginx.wait_listening(&[80])?;

    let example = scene.start()?;
    for (pool, address) in [
        ("stable", "10.0.2.11:80"),
        ("stable", "10.0.2.12:80"),
        ("new", "10.0.2.21:80"),
        ("api", "10.0.2.31:80"),
    ] {
        eventually("a server to be up", || {
            (example.gateway.status().ok()?.server(pool, address)["state"] == "up").then_some(())
        })?;
    }
    for version in ["--http1.1", "--http2"] {
        let api =
            fetch(&example, &[version, "-w", "%{http_version}"], &[format!("{SITE}/api/orders?open=1")])?;
        let expected = if version == "--http2" { "2" } else { "1.1" };
        assert_eq!(api, format!("api /orders?open=1 shop.example.com 10.0.1.2 https\n{expected}"));
        // Turns are spread evenly, from some turn on: of any two hundred the new version has two, give or take one.
        let pages: Vec<_> = (0..200).map(|number| format!("{SITE}/{number}")).collect();
        let found = fetch(&example, &[version], &pages)?;
        let of = |page: &str| found.lines().filter(|line| *line == page).count();
        let (stable, new) = (of("stable"), of("new"));
        assert!(stable + new == 200 && (1..=3).contains(&new), "{stable} + {new} of 200 pages");
        let headers = fetch(&example, &[version, "-I"], &[format!("{SITE}/")])?;
        assert!(headers.contains("strict-transport-security: max-age=31536000"), "{headers}");
    }
    let moved = fetch(
        &example,
        &["-w", "%{http_code} %{redirect_url}"],
        &["http://shop.example.com/a?b=c".to_owned()],
    )?;
    assert_eq!(moved, format!("301 {SITE}/a?b=c"));
    let _ = nginx.stop();
    Ok(())
}
