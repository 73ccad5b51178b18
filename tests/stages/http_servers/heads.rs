//! Heads of answers.

use anyhow::{Result, ensure};

use super::odd::{CASE, Odd, Then};
use super::scene::{GOOD, ODD, Scene, VERSIONS, each};
use crate::config::pool;
use crate::http_hostile::HOST;

/// A head with this line, and a body of five bytes.
fn with(line: &[u8]) -> Vec<u8> {
    [b"HTTP/1.1 200 OK\r\n", line, b"\r\n\r\nhello"].concat()
}

/// Each of these is a failure of the server, and nothing of it reaches anybody.
fn refused(cases: &[(Vec<u8>, Then)]) -> Result<()> {
    let scene = Scene::new("", "")?;
    let odd = Odd::start(&scene)?;
    each(cases, |version, (bytes, then)| {
        odd.answers(bytes, *then);
        scene.refused(version, CASE, &[])?;
        scene.own(version, "/odd/next")
    })?;
    scene.serves_others()
}

#[test]
fn what_is_no_http() -> Result<()> {
    let texts: [&[u8]; 22] = [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"<html>hello</html>",
        b"220 mail.example.com ESMTP\r\n",
        b"-ERR unknown command\r\n",
        b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03",
        b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x00\xff\xff",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/0.9 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.2 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 20 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 -20 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 099 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 000 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"http/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1\t200\tOK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 O\0K\r\nContent-Length: 5\r\n\r\nhello",
        b"ICY 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"RTSP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n",
    ];
    refused(&texts.map(|text| (text.to_vec(), Then::Ends)))
}

#[test]
fn heads_that_are_not_whole() -> Result<()> {
    let texts: [&[u8]; 5] =
        [b"", b"H", b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 100 Continue\r\n\r\n"];
    let ends = [Then::Ends, Then::IsReset];
    refused(&texts.iter().flat_map(|text| ends.map(|end| (text.to_vec(), end))).collect::<Vec<_>>())
}

#[test]
fn lines_that_are_no_headers() -> Result<()> {
    let lines: [&[u8]; 22] = [
        b"X A: b",
        b": b",
        b"X-A : b",
        b"X-A\t: b",
        b"X-A",
        b" X-A: b",
        b"X\0A: b",
        b"X\x7fA: b",
        b"X\rA: b",
        b"X\xe4A: b",
        b"(x): b",
        b"X-A: a\0b",
        b"X-A: a\x01b",
        b"X-A: a\x08b",
        b"X-A: a\x1bb",
        b"X-A: a\x7fb",
        b"X-A: a\rb",
        b"X-A: a\r",
        b"X-A: a\r\n b",
        b"X-A: a\r\n\tb",
        b"X-A: a\n b",
        b"\0",
    ];
    refused(&lines.map(|line| (with(&[line, b"\r\nContent-Length: 5"].concat()), Then::GoesOn)))
}

#[test]
fn it_is_in_doubt_where_the_answer_ends() -> Result<()> {
    let lines: [&[u8]; 24] = [
        b"Content-Length: -5",
        b"Content-Length: +5",
        b"Content-Length: 5 5",
        b"Content-Length: 0x5",
        b"Content-Length: 5.0",
        b"Content-Length:",
        b"Content-Length: 99999999999999999999",
        b"Content-Length: 18446744073709551615",
        b"Content-Length: 5, 6",
        b"Content-Length: 5, 5",
        b"Content-Length: 5,",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: 5\r\nContent-Length: 5",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Transfer-Encoding: chunked\r\nContent-Length: 0",
        b"Transfer-Encoding: gzip",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, gzip",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: \"chunked\"",
        b"Transfer-Encoding:",
    ];
    let old = b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec();
    refused(&lines.map(with).into_iter().chain([old]).map(|bytes| (bytes, Then::Ends)).collect::<Vec<_>>())
}

#[test]
fn lengths_of_answers_without_a_body_are_lengths_too() -> Result<()> {
    let scene = Scene::new("", "")?;
    let odd = Odd::start(&scene)?;
    let lines =
        ["Content-Length: 5, 6", "Content-Length: x", "Content-Length: 5\r\nTransfer-Encoding: chunked"];
    let heads = ["200 OK", "204 No Content", "304 Not Modified"];
    let cases = heads.iter().flat_map(|head| lines.map(|line| format!("HTTP/1.1 {head}\r\n{line}\r\n\r\n")));
    each(&cases.collect::<Vec<_>>(), |version, text| {
        odd.answers(text.as_bytes(), Then::GoesOn);
        scene.refused(version, CASE, &["--head"])?;
        scene.own(version, "/odd/next")
    })
}

#[test]
fn more_than_a_head_may_have() -> Result<()> {
    let long = |text: &str, times: usize| with(text.repeat(times).as_bytes());
    refused(&[
        (with(format!("X-A: {}", "a".repeat(1 << 20)).as_bytes()), Then::GoesOn),
        (with(format!("{}: a", "a".repeat(1 << 20)).as_bytes()), Then::GoesOn),
        (long("X-A: b\r\n", 129), Then::GoesOn),
        (long("X-A: b\r\n", 100_000), Then::GoesOn),
        (long(&format!("X-A: {}\r\n", "b".repeat(1000)), 100), Then::GoesOn),
        (format!("HTTP/1.1 200 {}\r\n\r\n", "a".repeat(1 << 20)).into_bytes(), Then::GoesOn),
        ("\r\n".repeat(1 << 20).into_bytes(), Then::GoesOn),
        (vec![b'H'; 1 << 20], Then::GoesOn),
    ])
}

#[test]
fn a_change_of_the_protocol_that_nobody_wanted() -> Result<()> {
    let scene = Scene::new("", "")?;
    let odd = Odd::start(&scene)?;
    let asks = ["--header", "Connection: Upgrade", "--header", "Upgrade: websocket"];
    let to = |protocol: &str| format!("Connection: Upgrade\r\nUpgrade: {protocol}\r\n");
    let cases = [
        (to("websocket"), &asks[..0]),
        (to("h2c"), &[]),
        (String::new(), &[]),
        (to("h2c"), &asks),
        (to("other"), &asks),
        (to("other, websocket"), &asks),
        (String::new(), &asks),
        ("Upgrade: websocket\r\n".to_owned(), &asks),
    ];
    each(&cases, |version, (lines, more)| {
        if version != VERSIONS[0] && !more.is_empty() {
            // HTTP/2 has no word for it.
            return Ok(());
        }
        odd.answers(format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\nhello").as_bytes(), Then::GoesOn);
        scene.refused(version, CASE, more)?;
        scene.own(version, "/odd/next")
    })?;
    scene.serves_others()
}

#[test]
fn many_answers_before_the_answer() -> Result<()> {
    let scene = Scene::new("", "")?;
    let odd = Odd::start(&scene)?;
    let early =
        |head: &str| format!("HTTP/1.1 {head}\r\nLink: </x>\r\nContent-Length: 5\r\n\r\n").repeat(2000);
    let cases = ["100 Continue", "102 Processing", "103 Early Hints", "199 x"].map(early);
    each(&cases, |version, text| {
        odd.answers(
            format!("{text}HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").as_bytes(),
            Then::GoesOn,
        );
        let got = scene.ask(version, CASE, &[])?;
        ensure!(got.status() == "200" && got.is_whole && got.body == b"hello" && !got.has("link"), "{got:?}");
        scene.own(version, "/odd/next")
    })?;
    scene.serves_others()
}

#[test]
fn odd_heads_that_are_good() -> Result<()> {
    let scene = Scene::new("", "")?;
    let odd = Odd::start(&scene)?;
    let texts = [
        "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 a reason of its own\r\ncontent-length:5\r\n\r\nhello",
        "\r\n\r\nHTTP/1.1 200 OK\r\nCONTENT-LENGTH: \t5 \r\n\r\nhello",
        "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        "HTTP/1.1 200 OK\r\nX-A:\r\nX-B: \u{e4}\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
        "HTTP/1.0 200 OK\r\n\r\nhello",
    ];
    each(&texts, |version, text| {
        let then = if text.contains("ength") || text.contains("hunked") { Then::GoesOn } else { Then::Ends };
        odd.answers(text.as_bytes(), then);
        let got = scene.ask(version, CASE, &[])?;
        ensure!(got.status() == "200" && got.is_whole && got.body == b"hello", "{got:?}");
        scene.own(version, "/odd/next")
    })
}

#[test]
fn a_server_that_answers_with_something_else_gets_no_more_requests() -> Result<()> {
    let both = pool("odd", &[ODD, GOOD], "eject = { failures = 3, time = '1h' }");
    let scene = Scene::with("", "", &both)?;
    let odd = Odd::start(&scene)?;
    odd.answers(b"SSH-2.0-OpenSSH_9.6\r\n", Then::Ends);
    let ask = || scene.raw(&format!("GET {CASE} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"));
    let answers: Vec<_> = (0..20).map(|_| ask()).collect::<Result<_>>()?;
    let failed = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 502 ")).count();
    let served = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 200 ")).count();
    assert_eq!((failed, served), (3, 17), "{answers:?}");
    Ok(())
}
