//! Bodies: whole, in both directions, and no faster than they are taken.

use std::fs;
use std::io::{Read as _, Write as _};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use snisplice_tests::TempDir;

use super::{ALL_TO_A, Scene, WAYS};

/// Bytes of no pattern that is as long as a buffer.
fn bytes(length: u32) -> Vec<u8> {
    (0..length / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn large_bodies_arrive_whole() -> Result<()> {
    let scene = Scene::new(ALL_TO_A, "")?;
    let files = TempDir::new()?;
    let sent = bytes(20_000_000);
    fs::write(files.join("sent"), &sent)?;
    let file = files.join("sent").display().to_string();
    for (version, site) in WAYS {
        let url = format!("{site}/");
        let told = scene.told(&[version, "--upload-file", &file, &url])?;
        assert_eq!(
            (&told["method"], &told["digest"]),
            (&"PUT".into(), &digest(&sent).into()),
            "{version} {site}"
        );
        // Without a length.
        let told =
            scene.told(&[version, "-H", "Transfer-Encoding: chunked", "--upload-file", &file, &url])?;
        assert_eq!(told["digest"], digest(&sent), "{version} {site}");

        let got = files.join("got");
        let into = got.display().to_string();
        scene.fetch(&[version, "--output", &into, &format!("{site}/big/20")])?;
        let part: Vec<u8> = (0..=255u8).cycle().take(1 << 20).collect();
        assert!(fs::read(&got)? == part.repeat(20), "{version} {site}");
    }
    Ok(())
}

#[test]
fn a_slow_reader_holds_the_server_back() -> Result<()> {
    let scene = Scene::new(ALL_TO_A, "")?;
    for (version, site) in WAYS {
        let before = scene.gateway.process.memory_kib("VmRSS")?;
        let url = format!("{site}/big/300");
        let output =
            scene.curl(&[version, "--limit-rate", "1M", "--max-time", "4", "--output", "/dev/null", &url])?;
        assert_eq!(output.status.code(), Some(28), "{output:?}");
        let grown = scene.gateway.process.memory_kib("VmRSS")?.saturating_sub(before);
        assert!(grown < 30_000, "{version} {site}: {grown} KiB more");
    }
    Ok(())
}

#[test]
fn a_body_is_sent_when_the_server_asks_for_it() -> Result<()> {
    let scene = Scene::new(ALL_TO_A, "")?;
    let files = TempDir::new()?;
    fs::write(files.join("sent"), bytes(3_000_000))?;
    let file = files.join("sent").display().to_string();
    for site in ["http://site.example.com", "https://site.example.com"] {
        let upload = |path: &str| {
            let url = format!("{site}{path}");
            let shown = "%{http_code} %{size_upload}";
            let expect = ["-H", "Expect: 100-continue", "--expect100-timeout", "30"];
            let rest = ["--http1.1", "-o", "/dev/null", "-w", shown, "--upload-file", &file, &url];
            scene.fetch(&[&expect[..], &rest].concat())
        };
        assert_eq!(upload("/")?, "200 3000000");
        assert_eq!(upload("/refuse")?, "413 0");
    }
    Ok(())
}

#[test]
fn trailers_reach_a_client_that_takes_them() -> Result<()> {
    let scene = Scene::new(ALL_TO_A, "")?;
    let part: Vec<u8> = (0..=255u8).cycle().take(1 << 20).collect();
    for (version, site) in WAYS.into_iter().filter(|(version, _)| version.starts_with("--http2")) {
        let url = format!("{site}/big/1");
        let output =
            scene.curl(&[version, "-H", "TE: trailers", "--verbose", "--output", "/dev/null", &url])?;
        let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
        let line = said.lines().find(|line| line.contains("digest: ")).with_context(|| said.clone())?;
        assert!(line.contains(&digest(&part)), "{line}");
    }
    // curl does not show them in HTTP/1.1.
    let mut client = scene.world.connect(80)?;
    client.write_all(
        b"GET /big/1 HTTP/1.1\r\nHost: site.example.com\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n",
    )?;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer)?;
    let end = String::from_utf8_lossy(&answer[answer.len().saturating_sub(120)..]).into_owned();
    assert!(end.ends_with(&format!("\r\n0\r\ndigest: {}\r\n\r\n", digest(&part))), "{end}");
    Ok(())
}
