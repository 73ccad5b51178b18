//! Much of what costs little to send: each ends with its connection, or is held back, and others are served meanwhile.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use snisplice_tests::Gateway;

use super::frames::{
    ACK, CONTINUATION, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, Raw, SETTINGS,
    WINDOW_UPDATE, block, frame, remembered, usual,
};
use super::{HOST, Scene};

/// Most by which the gateway may grow, in KiB: for all floods of a test together, in a build without optimization.
const MOST_GROWTH: u64 = 24 * 1024;

/// Does it on some connections at once, while another client is served again and again; looks at what it has cost.
fn flood(scene: &Scene, attack: impl Fn(Raw) -> Result<()> + Sync) -> Result<()> {
    bounded(&scene.gateway, || scene.serves_others(), 4, || attack(Raw::new(scene.connect()?)?))
}

/// Does it in so many threads, while somebody else is served again and again; looks at what it has cost.
pub(crate) fn bounded(
    gateway: &Gateway,
    serves_others: impl Fn() -> Result<()> + Sync,
    threads: usize,
    attack: impl Fn() -> Result<()> + Sync,
) -> Result<()> {
    serves_others()?;
    let before = gateway.process.memory_kib("VmRSS")?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let attackers: Vec<_> = (0..threads).map(|_| scope.spawn(&attack)).collect();
        let others = scope.spawn(|| -> Result<()> {
            serves_others()?;
            while !is_over.load(Ordering::Relaxed) {
                serves_others()?;
            }
            Ok(())
        });
        let outcomes: Vec<_> =
            attackers.into_iter().map(|attacker| attacker.join().expect("no panic")).collect();
        is_over.store(true, Ordering::Relaxed);
        others.join().expect("no panic")?;
        outcomes.into_iter().collect()
    })?;
    let after = gateway.process.memory_kib("VmHWM")?;
    ensure!(after <= before + MOST_GROWTH, "{before} KiB before, {after} KiB at most");
    serves_others()
}

/// Writes the bytes until the gateway ends the connection.
fn until_refused(mut raw: Raw, mut bytes: impl FnMut(u32) -> Vec<u8>) -> Result<()> {
    for turn in 0..1_000_000 {
        if raw.write(&bytes(turn)).is_err() {
            return Ok(());
        }
    }
    anyhow::bail!("all of it was taken")
}

#[test]
fn streams_that_are_reset_at_once() -> Result<()> {
    let scene = Scene::new("", "")?;
    flood(&scene, |raw| {
        let head = block(&usual("GET", "/reset"));
        until_refused(raw, |turn| {
            let stream = turn * 2 + 1;
            let open = frame(HEADERS, END_HEADERS | END_STREAM, stream, &head);
            [open, frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
        })
    })?;
    // Of all those requests few have reached the server.
    let seen = scene.server.take()?.into_iter().filter(|seen| seen.line.contains("/reset")).count();
    assert!(seen < 5_000, "{seen}");
    assert!(scene.answers("malformed")? >= 4);
    Ok(())
}

#[test]
fn streams_that_the_gateway_is_made_to_reset() -> Result<()> {
    // What is wrong with each is found only after it was opened (CVE-2025-8671).
    let scene = Scene::new("", "")?;
    flood(&scene, |raw| {
        let head = block(&usual("POST", "/reset"));
        until_refused(raw, |turn| {
            let stream = turn * 2 + 1;
            let open = frame(HEADERS, END_HEADERS, stream, &head);
            [open, frame(WINDOW_UPDATE, 0, stream, &0u32.to_be_bytes())].concat()
        })
    })?;
    let seen = scene.server.take()?.into_iter().filter(|seen| seen.line.contains("/reset")).count();
    assert!(seen < 5_000, "{seen}");
    Ok(())
}

#[test]
fn a_head_that_goes_on_and_on() -> Result<()> {
    let scene = Scene::new("", "")?;
    flood(&scene, |mut raw| {
        raw.frame(HEADERS, END_STREAM, 1, &block(&usual("GET", "/flood")))?;
        let more = block(&[("x-a", &"a".repeat(1000))]);
        until_refused(raw, |_| frame(CONTINUATION, 0, 1, &more))
    })?;
    flood(&scene, |mut raw| {
        raw.frame(HEADERS, END_STREAM, 1, &block(&usual("GET", "/flood")))?;
        // With nothing in them.
        until_refused(raw, |_| frame(CONTINUATION, 0, 1, &[]).repeat(1000))
    })?;
    assert!(scene.server.take()?.iter().all(|seen| !seen.line.contains("/flood")));
    assert!(scene.answers("malformed")? >= 8);
    Ok(())
}

#[test]
fn a_head_that_is_small_and_means_much() -> Result<()> {
    let scene = Scene::new("", "")?;
    flood(&scene, |mut raw| {
        // One field of 4000 bytes, and then its number in the table, 62, fifteen thousand times: 60 MB.
        let bomb = remembered("x-a", &"a".repeat(3900));
        let head = [block(&usual("GET", "/bomb")), bomb, vec![0x80 | 62; 15_000]].concat();
        raw.frame(HEADERS, END_HEADERS | END_STREAM, 1, &head)?;
        let frames = raw.until_answered(1)?;
        // 431, or an end.
        ensure!(frames.iter().any(|frame| matches!(frame.kind, HEADERS | RST_STREAM | GOAWAY)), "{frames:?}");
        Ok(())
    })?;
    flood(&scene, |mut raw| {
        let crumbs: Vec<(&str, &str)> = vec![("cookie", "a"); 10_000];
        let head = [block(&usual("GET", "/bomb")), block(&crumbs)].concat();
        let (first, rest) = head.split_at(16_000);
        raw.frame(HEADERS, END_STREAM, 1, first)?;
        let mut parts = rest.chunks(16_000).peekable();
        while let Some(part) = parts.next() {
            let flags = if parts.peek().is_none() { END_HEADERS } else { 0 };
            if raw.frame(CONTINUATION, flags, 1, part).is_err() {
                return Ok(());
            }
        }
        raw.until_answered(1).map(drop)
    })?;
    assert!(scene.server.take()?.iter().all(|seen| !seen.line.contains("/bomb")));
    Ok(())
}

/// Sends much without reading a byte, until the gateway takes no more; the connection may go on or not.
fn without_reading(raw: &Raw, bytes: &[u8]) -> Result<()> {
    let mut stream: &TcpStream = raw.stream();
    stream.set_write_timeout(Some(Duration::from_millis(500)))?;
    // 64 MiB, unless the gateway holds back, or has enough.
    for _ in 0..(64 << 20) / bytes.len() {
        if stream.write_all(bytes).is_err() {
            break;
        }
    }
    Ok(())
}

#[test]
fn questions_whose_answers_nobody_reads() -> Result<()> {
    let scene = Scene::new("", "")?;
    flood(&scene, |raw| without_reading(&raw, &frame(PING, 0, 0, &[0; 8]).repeat(1000)))?;
    flood(&scene, |raw| without_reading(&raw, &frame(SETTINGS, 0, 0, &[]).repeat(1000)))?;
    flood(&scene, |raw| without_reading(&raw, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]).repeat(1000)))?;
    flood(&scene, |raw| without_reading(&raw, &frame(PING, ACK, 0, &[0; 8]).repeat(1000)))?;
    // Streams that are closed, or were never open.
    flood(&scene, |raw| without_reading(&raw, &frame(2, 0, 1, &[0, 0, 0, 3, 16]).repeat(1000)))?;
    flood(&scene, |raw| {
        without_reading(&raw, &frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()).repeat(1000))
    })?;
    flood(&scene, |raw| without_reading(&raw, &frame(0xaa, 0, 0, &[0; 64]).repeat(1000)))
}

#[test]
fn more_streams_than_are_allowed() -> Result<()> {
    let scene = Scene::new("", "")?;
    flood(&scene, |mut raw| {
        // None of them ends.
        let head = block(&usual("POST", "/open"));
        for turn in 0..5_000 {
            if raw.frame(HEADERS, END_HEADERS, turn * 2 + 1, &head).is_err() {
                break;
            }
        }
        let mut refused = 0;
        // The rest may be refused one by one, or all with the connection.
        while let Some(frame) = raw.next()? {
            match frame.kind {
                RST_STREAM => refused += 1,
                GOAWAY if frame.error() != Some(0) => return Ok(()),
                _ => {}
            }
            if refused >= 1_000 {
                return Ok(());
            }
        }
        Ok(())
    })
}

#[test]
fn answers_that_nobody_takes() -> Result<()> {
    let scene = Scene::new("", "")?;
    scene.serves_others()?;
    let before = scene.gateway.process.memory_kib("VmRSS")?;
    // The client's window is 0: the server's answers cannot go on.
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut raw = Raw::with_settings(scene.connect()?, &[(4, 0)])?;
        for turn in 0..100 {
            raw.headers(
                turn * 2 + 1,
                &[usual("GET", "/held"), vec![("x-a", &"a".repeat(1000))]].concat(),
                true,
            )?;
        }
        held.push(raw);
    }
    scene.serves_others()?;
    let after = scene.gateway.process.memory_kib("VmHWM")?;
    ensure!(after <= before + 2 * MOST_GROWTH, "{before} KiB before, {after} KiB at most");
    drop(held);
    scene.serves_others()
}

#[test]
fn empty_frames() -> Result<()> {
    let scene = Scene::new("", "")?;
    flood(&scene, |mut raw| {
        raw.request(1, "POST", "/empty", false)?;
        without_reading(&raw, &frame(0, 0, 1, &[]).repeat(1000))
    })?;
    // Padding alone.
    flood(&scene, |mut raw| {
        raw.request(1, "POST", "/empty", false)?;
        let padded = [&[255][..], &[0; 255]].concat();
        without_reading(&raw, &frame(0, 8, 1, &padded).repeat(100))
    })
}

#[test]
fn many_connections_of_http2_that_do_nothing() -> Result<()> {
    let scene = Scene::new("hello_timeout = '1s'", "")?;
    let idle: Vec<_> = (0..200).map(|_| Raw::new(scene.connect()?)).collect::<Result<_>>()?;
    scene.serves_others()?;
    for mut raw in idle {
        // Each is told to go, and cut then.
        raw.until_end()?;
    }
    let answer = scene.exchange(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
    Ok(())
}
