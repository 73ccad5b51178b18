//! Servers that do not stop: what they send is bounded, and others are served meanwhile.

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use snisplice_tests::backend::Backend;
use std::io::{BufReader, Read as _};

use super::echo::next_request;
use super::odd::Odd2;
use super::scene::{ODD, Over, Scene};
use crate::http_hostile::HOST;
use crate::http_hostile::floods::bounded;
use crate::http_hostile::frames::{
    CONTINUATION, DATA, END_HEADERS, HEADERS, PING, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, block, frame,
    remembered,
};

/// Bounds the attempts at the servers that do not come to an end.
const BOUND: &str = "backend_timeout = '2s'";

/// Some clients ask; each gets an end, and nothing of what was sent is taken for an answer.
fn flooded(scene: &Scene, path: &str) -> Result<()> {
    bounded(
        &scene.gateway,
        || scene.serves_others(),
        4,
        || {
            let got = scene.ask("--http1.1", path, &[])?;
            ensure!(matches!(got.status(), "502" | "504") || !got.is_whole, "{got:?}");
            Ok(())
        },
    )
}

/// A server of HTTP/1.1 that begins with this, and goes on with that without an end.
fn endless(begins: &'static str, goes_on: String) -> Result<()> {
    let scene = Scene::new("", BOUND)?;
    let over = Over::default();
    let is_over = over.0.clone();
    let _server = Backend::start(&scene.world.net.server, ODD, move |mut stream: TcpStream| {
        while next_request(&mut BufReader::new(stream.try_clone()?))?.is_some() {
            stream.write_all(begins.as_bytes())?;
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                stream.write_all(goes_on.as_bytes())?;
            }
        }
        Ok(())
    })?;
    flooded(&scene, "/odd/flood")?;
    ensure!(!over.is_over());
    Ok(())
}

#[test]
fn a_head_without_an_end() -> Result<()> {
    endless("HTTP/1.1 200 OK\r\nX-A: ", "a".repeat(4096))?;
    endless("HTTP/1.1 200 OK\r\n", "X-A: b\r\n".repeat(512))?;
    endless("HTTP/1.1 200 ", "a".repeat(4096))?;
    endless("", "\r\n".repeat(2048))
}

#[test]
fn answers_before_the_answer_without_an_end() -> Result<()> {
    endless("", "HTTP/1.1 100 Continue\r\n\r\n".repeat(100))?;
    endless("", format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "a".repeat(4000)))
}

#[test]
fn parts_of_a_body_that_are_none_without_an_end() -> Result<()> {
    let begins = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    endless(begins, "0".repeat(4096))?;
    endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", "a".repeat(4096))?;
    endless(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "X-A: b\r\n".repeat(512),
    )?;
    endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-A: ", "a".repeat(4096))
}

/// A server of HTTP/2 that begins an answer with what `begins` makes for the stream, and goes on with `goes_on`.
fn endless2(
    begins: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static,
    goes_on: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static,
) -> Result<()> {
    let scene = Scene::new("", BOUND)?;
    let odd = Odd2::start(&scene, &[])?;
    let over = Over::default();
    let is_over = over.0.clone();
    odd.does(Some(Arc::new(move |raw, stream| {
        raw.write(&begins(stream))?;
        let more = goes_on(stream);
        while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
            raw.write(&more)?;
        }
        Err(io::ErrorKind::Interrupted.into())
    })));
    flooded(&scene, "/odd2/flood")
}

fn nothing(_: u32) -> Vec<u8> {
    Vec::new()
}

#[test]
fn questions_of_http2_without_an_end() -> Result<()> {
    endless2(nothing, |_| frame(PING, 0, 0, &[0; 8]).repeat(1000))?;
    endless2(nothing, |_| frame(SETTINGS, 0, 0, &[]).repeat(1000))?;
    endless2(nothing, |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]).repeat(1000))?;
    endless2(nothing, |_| frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()).repeat(1000))?;
    endless2(nothing, |_| frame(0xbb, 0, 0, &[0; 64]).repeat(1000))
}

#[test]
fn resets_of_http2_without_an_end() -> Result<()> {
    endless2(
        |stream| frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()),
        |stream| frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()).repeat(1000),
    )?;
    endless2(nothing, |stream| frame(RST_STREAM, 0, stream + 2, &8u32.to_be_bytes()).repeat(1000))
}

#[test]
fn heads_of_http2_without_an_end() -> Result<()> {
    let begins = |stream| frame(HEADERS, 0, stream, &[0x88]);
    endless2(begins, |stream| frame(CONTINUATION, 0, stream, &block(&[("x-a", &"a".repeat(1000))])))?;
    endless2(begins, |stream| frame(CONTINUATION, 0, stream, &[]).repeat(1000))?;
    // Heads before the last one.
    endless2(nothing, |stream| {
        frame(HEADERS, END_HEADERS, stream, &block(&[(":status", "103")])).repeat(1000)
    })?;
    endless2(nothing, |stream| {
        frame(HEADERS, END_HEADERS, stream, &block(&[(":status", "103"), ("link", &"a".repeat(4000))]))
            .repeat(10)
    })
}

#[test]
fn heads_of_http2_that_are_small_and_mean_much() -> Result<()> {
    endless2(
        |stream| {
            let bomb = remembered("x-a", &"a".repeat(3900));
            frame(HEADERS, END_HEADERS, stream, &[vec![0x88], bomb, vec![0x80 | 62; 12_000]].concat())
        },
        |stream| frame(HEADERS, END_HEADERS, stream, &[vec![0x88], vec![0x80 | 62; 12_000]].concat()),
    )
}

#[test]
fn frames_of_http2_with_nothing_in_them() -> Result<()> {
    let begins = |stream| frame(HEADERS, END_HEADERS, stream, &[0x88]);
    endless2(begins, |stream| frame(DATA, 0, stream, &[]).repeat(1000))?;
    endless2(begins, |stream| frame(DATA, 8, stream, &[&[255][..], &[0; 255]].concat()).repeat(100))
}

#[test]
fn more_than_the_window_allows() -> Result<()> {
    let scene = Scene::new("", "")?;
    let odd = Odd2::start(&scene, &[])?;
    odd.does(Some(Arc::new(|raw: &mut Raw, stream| {
        raw.headers(stream, &[(":status", "200")], false)?;
        let data = frame(DATA, 0, stream, &[b'x'; 16_384]);
        // 256 MiB.
        (0..16_384).try_for_each(|_| raw.write(&data))
    })));
    bounded(
        &scene.gateway,
        || scene.serves_others(),
        4,
        || {
            let mut client = scene.connect()?;
            write!(client, "GET /odd2/much HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")?;
            // It does not read until the server has sent all that it can.
            std::thread::sleep(Duration::from_secs(2));
            let mut answer = Vec::new();
            let ended = client.read_to_end(&mut answer);
            ensure!(!answer.ends_with(b"0\r\n\r\n"), "it is whole: {ended:?}");
            ensure!(answer.len() < 64 << 20, "{}", answer.len());
            Ok(())
        },
    )
}

#[test]
fn windows_that_never_open() -> Result<()> {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let scene = Scene::new("", BOUND)?;
    let odd = Odd2::start(&scene, &[(INITIAL_WINDOW_SIZE, 0)])?;
    odd.does(Some(Arc::new(|_, _| Ok(()))));
    bounded(
        &scene.gateway,
        || scene.serves_others(),
        20,
        || {
            let mut client = scene.connect()?;
            write!(
                client,
                "POST /odd2/x HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                8 << 20
            )?;
            client.set_write_timeout(Some(Duration::from_secs(1)))?;
            // What the gateway does not take, stays here.
            let _ = client.write_all(&vec![b'x'; 8 << 20]);
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer);
            ensure!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 504 "), "{}", answer.escape_ascii());
            Ok(())
        },
    )
}
