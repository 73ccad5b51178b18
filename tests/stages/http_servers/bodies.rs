//! Bodies of answers.

use anyhow::{Result, ensure};

use super::odd::{CASE, Odd, Then};
use super::scene::{Scene, VERSIONS, each};
use crate::http_hostile::HOST;
use crate::http_hostile::frames::{DATA, RST_STREAM, Raw};

/// A length that curl takes in HTTP/1.1 only: 2^64 - 4.
const BEYOND: &[u8] = b"18446744073709551612";

/// Each of these begins well, and its client sees that it does not end well.
fn cut(cases: &[(Vec<u8>, Then)]) -> Result<()> {
    let scene = Scene::new("", "")?;
    let odd = Odd::start(&scene)?;
    each(cases, |version, (bytes, then)| {
        odd.answers(bytes, *then);
        // In HTTP/2 curl itself refuses such a length, and may leave before the server does.
        if version != VERSIONS[0] && bytes.windows(BEYOND.len()).any(|part| part == BEYOND) {
            cut_for_a_patient_client(&scene)?;
        } else {
            scene.cut(version, CASE, b"hello")?;
        }
        scene.own(version, "/odd/next")
    })?;
    let lines = scene.gateway.access_log()?;
    let of_cases: Vec<_> = lines.iter().filter(|line| line["path"] == CASE).collect();
    ensure!(of_cases.iter().all(|line| line["end"] == "server_failed"), "{of_cases:?}");
    scene.serves_others()
}

/// The same as [`Scene::cut`] in HTTP/2, for a client that stays until it is told.
fn cut_for_a_patient_client(scene: &Scene) -> Result<()> {
    let before = scene.failed()?;
    let mut raw = Raw::new(scene.connect()?)?;
    raw.request(1, "GET", CASE, true)?;
    let frames = raw.until_answered(1)?;
    ensure!(frames.last().is_some_and(|frame| frame.stream == 1 && frame.kind == RST_STREAM), "{frames:?}");
    let body = frames.iter().filter(|frame| frame.kind == DATA).flat_map(|frame| frame.payload.clone());
    ensure!(b"hello".starts_with(&body.collect::<Vec<_>>()), "{frames:?}");
    scene.counted(before)
}

fn chunked(body: &[u8]) -> Vec<u8> {
    [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", body].concat()
}

#[test]
fn a_server_that_leaves_in_the_middle() -> Result<()> {
    let known = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello".to_vec();
    let huge = b"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\nhello".to_vec();
    let beyond = [b"HTTP/1.1 200 OK\r\nContent-Length: ", BEYOND, b"\r\n\r\nhello"].concat();
    let none = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n".to_vec();
    let parts: [&[u8]; 7] = [
        b"",
        b"5",
        b"5\r\n",
        b"5\r\nhel",
        b"5\r\nhello",
        b"5\r\nhello\r\n0\r\n",
        b"5\r\nhello\r\n0\r\nX-A: b\r\n",
    ];
    let answers = [known, huge, beyond, none].into_iter().chain(parts.map(chunked));
    let mut cases: Vec<_> =
        answers.flat_map(|bytes| [Then::Ends, Then::IsReset].map(|then| (bytes.clone(), then))).collect();
    // What goes until the end of the connection is cut by a reset only.
    cases.push((b"HTTP/1.1 200 OK\r\n\r\nhello".to_vec(), Then::IsReset));
    cases.push((b"HTTP/1.0 200 OK\r\n\r\nhello".to_vec(), Then::IsReset));
    cut(&cases)
}

#[test]
fn chunks_that_are_none() -> Result<()> {
    let extension = ["5;", &"a".repeat(100_000), "\r\nhello\r\n0\r\n\r\n"].concat();
    let trailers = format!("5\r\nhello\r\n0\r\n{}\r\n", "X-A: b\r\n".repeat(10_000));
    let trailer = format!("5\r\nhello\r\n0\r\nX-A: {}\r\n\r\n", "b".repeat(100_000));
    let parts: [&[u8]; 18] = [
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b"g\r\nhello\r\n0\r\n\r\n",
        b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"5\rhello\r\n0\r\n\r\n",
        b"5;a\rhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n-0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX A: b\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX-A: a\0b\r\n\r\n",
        extension.as_bytes(),
        trailers.as_bytes(),
        trailer.as_bytes(),
    ];
    cut(&parts.map(|part| (chunked(part), Then::GoesOn)))?;
    // As long as nobody can say.
    cut(&[
        (chunked(b"ffffffffffffffff\r\nhello"), Then::Ends),
        (chunked(b"fffffffffffffff0\r\nhello"), Then::IsReset),
    ])
}

#[test]
fn chunks_with_extensions() -> Result<()> {
    let scene = Scene::new("", "")?;
    let odd = Odd::start(&scene)?;
    let parts: [&[u8]; 4] = [
        b"2;a\r\nhe\r\n3;b=c;d=\"e\"\r\nllo\r\n0;f\r\n\r\n",
        b"2 ;a\r\nhe\r\n3\t\r\nllo\r\n0\r\n\r\n",
        b"00000005\r\nhello\r\n000\r\n\r\n",
        b"1;a=5\r\nh\r\n4;\r\nello\r\n0\r\n\r\n",
    ];
    each(&parts, |version, part| {
        odd.answers(&chunked(part), Then::GoesOn);
        let got = scene.ask(version, CASE, &[])?;
        ensure!(got.status() == "200" && got.is_whole && got.body == b"hello", "{got:?}");
        scene.own(version, "/odd/next")
    })
}

#[test]
fn bodies_where_there_can_be_none() -> Result<()> {
    let scene = Scene::new("", "")?;
    let odd = Odd::start(&scene)?;
    let stolen = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen";
    let heads = ["204 No Content", "304 Not Modified", "200 OK"];
    let lengths = [
        format!("Content-Length: {}\r\n", stolen.len()),
        "Transfer-Encoding: chunked\r\n".to_owned(),
        String::new(),
    ];
    let cases = heads.iter().flat_map(|head| lengths.iter().map(move |length| (*head, length)));
    each(&cases.collect::<Vec<_>>(), |version, (head, length)| {
        odd.answers(format!("HTTP/1.1 {head}\r\n{length}\r\n{stolen}").as_bytes(), Then::GoesOn);
        let more: &[&str] = if head.starts_with("200") { &["--head"] } else { &[] };
        let got = scene.ask(version, CASE, more)?;
        ensure!(head.starts_with(got.status()) && got.is_whole && got.body.is_empty(), "{got:?}");
        // A length would make some clients wait for a body (RFC 9110, section 8.6).
        ensure!(
            got.status() != "204" || !got.has("content-length") && !got.has("transfer-encoding"),
            "{got:?}"
        );
        scene.own(version, "/odd/next")?;
        scene.own(version, "/odd/next2")
    })
}

#[test]
fn trailers_that_are_for_heads_only() -> Result<()> {
    let scene = Scene::new("", "")?;
    let odd = Odd::start(&scene)?;
    let names = [
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Keep-Alive",
        "Upgrade",
        "Host",
        "Trailer",
        "Set-Cookie",
        "Content-Type",
        "Content-Encoding",
        "Cache-Control",
        "Authorization",
        "TE",
    ];
    let lines: String = names.iter().map(|name| format!("{name}: evil\r\n")).collect();
    let head = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Good, {}\r\n\r\n",
        names.join(", ")
    );
    odd.answers(format!("{head}5\r\nhello\r\n0\r\nX-Good: fine\r\n{lines}\r\n").as_bytes(), Then::GoesOn);
    // curl tells of those in HTTP/2.
    let got = scene.ask("--http2-prior-knowledge", CASE, &["--header", "TE: trailers", "--verbose"])?;
    let said = String::from_utf8_lossy(&got.body).to_ascii_lowercase();
    ensure!(got.is_whole && got.body.starts_with(b"hello") && !said.contains("evil"), "{said} {got:?}");
    let request =
        format!("GET {CASE} HTTP/1.1\r\nHost: {HOST}\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n");
    let text = scene.raw(&request)?;
    ensure!(
        text.contains("\r\nhello\r\n0\r\n") && text.contains("x-good: fine") && !text.contains("evil"),
        "{text}"
    );
    scene.own("--http1.1", "/odd/next")
}
