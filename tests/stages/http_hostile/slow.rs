//! Clients that take their time, and those that bring too much.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::frames::{DATA, GOAWAY, RST_STREAM, Raw, WINDOW_UPDATE};
use super::{HOST, Scene};

/// Sends a byte now and then until the gateway has ended the connection; what it has said.
fn dribble(mut stream: TcpStream, bytes: impl Iterator<Item = u8>) -> Result<Vec<u8>> {
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    for byte in bytes {
        let is_sent = stream.write_all(&[byte]).is_ok();
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(answer),
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
                    && is_sent => {}
            Err(_) => return Ok(answer),
        }
    }
    anyhow::bail!("it goes on and on")
}

#[test]
fn a_head_that_never_ends_is_given_up() -> Result<()> {
    let scene = Scene::new("hello_timeout = '1s'", "")?;
    // Hundreds of them do not stand in the way of others.
    let idle: Vec<_> = (0..200).map(|_| scene.connect()).collect::<Result<_>>()?;
    for mut stream in &idle {
        stream.write_all(b"GET / HTTP/1.1\r\n")?;
    }
    scene.serves_others()?;
    let head = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n").into_bytes();
    dribble(scene.connect()?, head.into_iter().chain(b"X-A: b\r\n".iter().copied().cycle()).take(600))?;
    // Behind a request that was answered, too.
    let mut kept = scene.connect()?;
    kept.write_all(format!("GET /first HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
    let mut buffer = [0; 4096];
    assert!(kept.read(&mut buffer)? > 0);
    dribble(kept, b"GET / HTTP/1.1\r\nX-A: b".iter().copied().chain(std::iter::repeat_n(b'b', 600)))?;
    for mut stream in idle {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    let lines: Vec<_> = scene.server.take()?.into_iter().map(|seen| seen.line).collect();
    assert_eq!(lines, ["GET /other HTTP/1.1", "GET /first HTTP/1.1"]);
    scene.serves_others()
}

#[test]
fn a_client_that_says_nothing_after_the_handshake_is_given_up() -> Result<()> {
    let scene = Scene::new("hello_timeout = '1s'", "")?;
    for begun in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
        let mut stream = scene.connect()?;
        stream.write_all(begun.as_bytes())?;
        let mut rest = Vec::new();
        // The end comes; a client that is not given up would meet the test's own bound here.
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{begun:?}");
        }
    }
    scene.serves_others()
}

#[test]
fn a_body_that_stands_still_is_given_up_after_the_idle_timeout() -> Result<()> {
    let scene = Scene::new("", "idle_timeout = '1s'")?;
    let mut stream = scene.connect()?;
    stream
        .write_all(format!("POST /x HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000\r\n\r\na").as_bytes())?;
    scene.serves_others()?;
    let mut rest = Vec::new();
    if let Err(error) = stream.read_to_end(&mut rest) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    // Of HTTP/2, the stream alone.
    let mut raw = Raw::new(scene.connect()?)?;
    raw.request(1, "POST", "/x", false)?;
    raw.data(1, b"a", false)?;
    is_reset(&mut raw, 1)?;
    raw.request(3, "GET", "/x", true)?;
    assert!(raw.until_answered(3)?.iter().any(|frame| frame.kind == DATA && frame.stream == 3));
    assert_eq!(scene.answers("idle_timeout")?, 2);
    scene.serves_others()
}

/// The stream is given up, and not the connection.
fn is_reset(raw: &mut Raw, stream: u32) -> Result<()> {
    let frames = raw.until_answered(stream)?;
    let last = frames.last().filter(|frame| (frame.kind, frame.stream) == (RST_STREAM, stream));
    ensure!(last.is_some() && frames.iter().all(|frame| frame.kind != GOAWAY), "{frames:?}");
    Ok(())
}

#[test]
fn an_answer_that_is_not_taken_is_given_up_alone() -> Result<()> {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let scene = Scene::new("", "idle_timeout = '1s'")?;
    let mut raw = Raw::with_settings(scene.connect()?, &[(INITIAL_WINDOW_SIZE, 0)])?;
    raw.request(1, "GET", "/x", true)?;
    is_reset(&mut raw, 1)?;
    raw.request(3, "GET", "/x", true)?;
    raw.frame(WINDOW_UPDATE, 0, 3, &100u32.to_be_bytes())?;
    let frames = raw.until_answered(3)?;
    assert!(frames.iter().any(|frame| frame.kind == DATA && frame.payload == b"ok"), "{frames:?}");
    assert_eq!(scene.answers("idle_timeout")?, 1);
    scene.serves_others()
}

#[test]
fn heads_that_are_too_large_are_refused_and_counted() -> Result<()> {
    let scene = Scene::new("", "")?;
    for text in [
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-A: {}\r\n\r\n", "a".repeat(1 << 20)),
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{}\r\n", "X-A: b\r\n".repeat(1000)),
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{}\r\n", "X-A: b\r\n".repeat(200_000)),
        format!("GET /{} HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "a".repeat(1 << 20)),
        format!("GET /?{} HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "a&".repeat(100_000)),
        format!("{} / HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "A".repeat(1 << 20)),
        "\r\n".repeat(1 << 20),
        "A".repeat(1 << 20),
    ] {
        let answer = scene.exchange(text.as_bytes())?;
        let text = String::from_utf8_lossy(&answer);
        let status = text.get(9..12).unwrap_or_default();
        assert!(matches!(status, "" | "400" | "414" | "431"), "{text}");
    }
    assert!(scene.server.take()?.is_empty());
    assert!(scene.answers("head_too_large")? >= 2);
    scene.serves_others()
}
