//! Requests in HTTP/1.1 whose end, host or head two programs may see differently. Whatever the gateway passes on is one request for
//! the server, which is strict; and nothing that a client has hidden in another request is one.

use std::io::Write as _;

use anyhow::{Result, ensure};

use super::{HOST, Scene};

/// A request that must reach no server as one of its own.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a.example.com\r\n\r\n";

/// What becomes of a text.
enum Fate {
    /// The first answer has one of these statuses, and no server hears of it.
    Refused(&'static [u16]),
    /// The server gets requests with these first lines, and nothing more.
    Passed(&'static [&'static str]),
    /// One of both: the first answer has one of these statuses, or the server gets requests with these lines.
    Either(&'static [u16], &'static [&'static str]),
}

use Fate::{Either, Passed, Refused};

const POST: &[&str] = &["POST /x HTTP/1.1"];
const GET: &[&str] = &["GET /x HTTP/1.1"];
const BAD: &[u16] = &[400];
const BAD_CODING: &[u16] = &[400, 501];

/// Sends it, and looks at what the server has got and what the client.
fn check(scene: &Scene, text: &str, fate: &Fate) -> Result<()> {
    let answer = scene.exchange(text.as_bytes())?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let said = format!("{}\nanswered: {}", text.escape_debug(), answer.escape_debug());
    let seen = scene.server.take().map_err(|error| error.context(said.clone()))?;
    let status: Option<u16> = answer.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
    let lines: Vec<_> = seen.iter().map(|seen| seen.line.as_str()).collect();
    let said = format!("{said}\nthe server got: {seen:?}");
    let refused =
        |statuses: &[u16]| lines.is_empty() && status.is_some_and(|status| statuses.contains(&status));
    // One answer for each request, and no other from a server.
    let passed =
        |expected: &[&str]| lines == expected && answer.matches("HTTP/1.1 200 ").count() == expected.len();
    match fate {
        Refused(statuses) => ensure!(refused(statuses), "{said}"),
        Passed(expected) => ensure!(passed(expected), "{said}"),
        Either(statuses, expected) => ensure!(refused(statuses) || passed(expected), "{said}"),
    }
    // What comes behind a request that is refused for its framing is not looked at.
    if lines.is_empty() && !text.is_empty() {
        ensure!(answer.matches("HTTP/1.1 ").count() <= 1, "{said}");
    }
    Ok(())
}

fn check_all(cases: &[(String, Fate)]) -> Result<()> {
    let scene = Scene::new("", "")?;
    let mut failures = Vec::new();
    for (text, fate) in cases {
        failures.extend(check(&scene, text, fate).err().map(|error| format!("{error:#}")));
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
    scene.serves_others()
}

/// `POST` with these headers and this body, and a hidden request behind it.
fn post(headers: &str, body: &str) -> String {
    format!("POST /x HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n{body}")
}

fn get(lines: &str) -> String {
    format!("GET /x HTTP/1.1\r\n{lines}\r\n")
}

#[test]
fn a_request_of_grpc_that_is_none_is_the_last_of_its_connection() -> Result<()> {
    let scene = Scene::new("", "")?;
    let grpc = "Content-Type: application/grpc\r\n";
    for lines in [
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Host: b.example.com\r\n",
    ] {
        let text = post(&format!("{grpc}{lines}"), "0\r\n\r\n") + HIDDEN;
        let answer = String::from_utf8_lossy(&scene.exchange(text.as_bytes())?).to_ascii_lowercase();
        let seen = scene.server.take()?;
        ensure!(seen.is_empty() && answer.matches("http/1.1 ").count() == 1, "{lines}: {answer} {seen:?}");
        ensure!(
            answer.contains("grpc-status: 1") && answer.contains("connection: close"),
            "{lines}: {answer}"
        );
    }
    // To its client, a status of 200 would be a tunnel.
    let connect = format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n{grpc}\r\n");
    let answer = String::from_utf8_lossy(&scene.exchange(connect.as_bytes())?).into_owned();
    ensure!(answer.starts_with("HTTP/1.1 501 "), "{answer}");
    Ok(())
}

#[test]
fn two_ways_to_say_where_a_body_ends() -> Result<()> {
    let chunked = format!("0\r\n\r\n{HIDDEN}");
    let mut cases = vec![
        // CL.TE and TE.CL.
        (post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", &chunked), Refused(BAD)),
        (post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", &chunked), Refused(BAD)),
        (
            post(&format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", chunked.len()), &chunked),
            Refused(BAD),
        ),
        (post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", &chunked), Refused(BAD)),
        // Of HTTP/1.0, which has no chunks.
        (
            format!("POST /x HTTP/1.0\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"),
            Refused(BAD_CODING),
        ),
        // CL.CL.
        (post("Content-Length: 0\r\nContent-Length: 5\r\n", "aaaaa"), Refused(BAD)),
        (post("Content-Length: 5\r\nContent-Length: 0\r\n", "aaaaa"), Refused(BAD)),
        (post("Content-Length: 5, 0\r\n", "aaaaa"), Refused(BAD)),
        (post("Content-Length: 5\r\nContent-Length: 5\r\n", "aaaaa"), Either(BAD, POST)),
        (post("Content-Length: 5, 5\r\n", "aaaaa"), Either(BAD, POST)),
        // What the connection says of it is between the two ends of it.
        (post("Connection: Content-Length\r\nContent-Length: 5\r\n", "aaaaa"), Either(BAD, POST)),
        (
            post("Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            Either(BAD, POST),
        ),
    ];
    for length in [
        "+5",
        "-5",
        "5 5",
        "0x5",
        "5e0",
        "5.0",
        "5;",
        "",
        " ",
        "５",
        "18446744073709551616",
        "99999999999999999999999",
    ] {
        cases.push((post(&format!("Content-Length: {length}\r\n"), "aaaaa"), Refused(BAD)));
    }
    // TE.TE: codings that one program takes for `chunked` and another does not.
    for coding in [
        "xchunked",
        "chunkedx",
        "chunked;",
        "\"chunked\"",
        "'chunked'",
        "chunked, identity",
        "identity, chunked",
        "chunked, chunked",
        "gzip, chunked",
        "identity",
        "cow",
        "",
        "chunk\u{212a}d",
        "\u{b}chunked",
        "chunked\u{b}",
        "x-chunked",
        "chunked chunked",
        "chunked,",
        ",chunked",
        "chunked, cow",
    ] {
        let header = format!("Transfer-Encoding: {coding}\r\n");
        cases.push((post(&header, &chunked), Refused(BAD_CODING)));
        cases.push((post(&format!("{header}Transfer-Encoding: chunked\r\n"), &chunked), Refused(BAD_CODING)));
        cases.push((post(&format!("Transfer-Encoding: chunked\r\n{header}"), &chunked), Refused(BAD_CODING)));
    }
    for header in [
        "Transfer-Encoding : chunked",
        " Transfer-Encoding: chunked",
        "\tTransfer-Encoding: chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer\u{2010}Encoding: chunked",
        "Transfer-Encoding\0: chunked",
        "Transfer-Encoding:\0chunked",
        "Transfer-Encoding:\n chunked",
        "X: y\rTransfer-Encoding: chunked",
        "Foo: bar\r\n Transfer-Encoding: chunked",
    ] {
        cases.push((post(&format!("{header}\r\nContent-Length: 5\r\n"), &chunked), Refused(BAD)));
    }
    // Another header, and only that, whatever it is like.
    for header in [
        "Transfer_Encoding: chunked",
        "Transfer-Encoding-: chunked",
        "XTransfer-Encoding: chunked",
        "Content_Length: 0",
    ] {
        cases.push((post(&format!("{header}\r\nContent-Length: 5\r\n"), "aaaaa"), Either(BAD, POST)));
    }
    check_all(&cases)
}

#[test]
fn chunks_that_are_none() -> Result<()> {
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    let mut cases = vec![
        (chunked("5\r\naaaaa\r\n0\r\n\r\n"), Passed(POST)),
        (chunked("005\r\naaaaa\r\n000\r\n\r\n"), Passed(POST)),
        // Extensions end here.
        (chunked("5;a=b\r\naaaaa\r\n0;c\r\n\r\n"), Either(BAD, POST)),
        // Space behind a size is what comes before an extension.
        (
            chunked(&format!("5 ;\r\naaaaa\r\n0\r\n\r\n{HIDDEN}")),
            Either(BAD, &["POST /x HTTP/1.1", "GET /hidden HTTP/1.1"]),
        ),
        (
            chunked(&format!("5\t\r\naaaaa\r\n0\r\n\r\n{HIDDEN}")),
            Either(BAD, &["POST /x HTTP/1.1", "GET /hidden HTTP/1.1"]),
        ),
        (chunked("5;a=\"\r\n\"\r\naaaaa\r\n0\r\n\r\n"), Either(BAD, &[])),
        // Trailers are no headers.
        (chunked("5\r\naaaaa\r\n0\r\nContent-Length: 100\r\nHost: evil\r\n\r\n"), Either(BAD, POST)),
        (
            chunked(&format!("5\r\naaaaa\r\n0\r\nX: y\r\n\r\n{HIDDEN}").replace("/hidden", "/x")),
            Passed(&["POST /x HTTP/1.1", "GET /x HTTP/1.1"]),
        ),
    ];
    for size in [
        "0x5",
        "-5",
        "+5",
        "g",
        "",
        " 5",
        "ffffffffffffffff",
        "fffffffffffffffff0",
        "5\0",
        "５",
        "5,0",
        "5.0",
    ] {
        cases.push((chunked(&format!("{size}\r\naaaaa\r\n0\r\n\r\n{HIDDEN}")), Fate::Either(BAD, &[])));
    }
    for body in [
        "5\r\naaaaaaa\r\n0\r\n\r\n",
        "5\r\naaaaa0\r\n\r\n",
        "5\naaaaa\r\n0\r\n\r\n",
        "5\r\naaaaa\n0\r\n\r\n",
        "5\r\naaa\r\n0\r\n\r\n",
        "5\raaaaa\r\n0\r\n\r\n",
    ] {
        cases.push((chunked(&format!("{body}{HIDDEN}")), Fate::Either(BAD, &[])));
    }
    let extension = "x".repeat(64 * 1024);
    cases.push((chunked(&format!("5;{extension}\r\naaaaa\r\n0\r\n\r\n")), Fate::Either(BAD, &[])));
    let scene = Scene::new("", "")?;
    let mut failures = Vec::new();
    for (text, fate) in &cases {
        // The head of one with a bad body may have reached the server: the body ends nowhere, and there is no second request.
        let outcome = match fate {
            Either(_, []) => {
                let answer = scene.exchange(text.as_bytes())?;
                let seen = scene.server.take();
                let is_good = seen.as_ref().is_ok_and(Vec::is_empty) && !answer.starts_with(b"HTTP/1.1 200");
                is_good
                    .then_some(())
                    .ok_or_else(|| format!("{} {seen:?} {}", text.escape_debug(), answer.escape_ascii()))
            }
            fate => check(&scene, text, fate).map_err(|error| format!("{error:#}")),
        };
        failures.extend(outcome.err());
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
    scene.serves_others()
}

#[test]
fn heads_that_are_none() -> Result<()> {
    let host = format!("Host: {HOST}\r\n");
    let mut cases = Vec::new();
    for header in [
        "A : b",
        "A\t: b",
        " A: b",
        "A",
        ": b",
        "A b: c",
        "A\0: b",
        "A: b\0",
        "A: b\rC: d",
        "A: b\r\r\nC: d",
        "A: b\r\n c",
        "A: b\r\n\tc",
        "A(: b",
        "Ä: b",
        "A: \u{7f}",
        "A: b\u{1}",
        "[A]: b",
        "A\r: b",
        "A: \r",
    ] {
        cases.push((get(&format!("{host}{header}\r\n")), Refused(BAD)));
    }
    // A folded line before the first header.
    cases.push((format!("GET /x HTTP/1.1\r\n Host: evil\r\n{host}\r\n"), Refused(BAD)));
    for line in [
        "GET  /x HTTP/1.1",
        "GET /x  HTTP/1.1",
        "GET /x HTTP/1.1 ",
        " GET /x HTTP/1.1",
        "GET\t/x\tHTTP/1.1",
        "GET /x\tHTTP/1.1",
        "GET /x y HTTP/1.1",
        "GET /x",
        "GET /x HTTP/1.2",
        "GET /x HTTP/2.0",
        "GET /x HTTP/0.9",
        "GET /x http/1.1",
        "GET /x HTTP/1.1x",
        "GET /x HTTP/11",
        "GET /x HTTP/1.",
        "GET /x HTTP/ 1.1",
        "GET /x\0 HTTP/1.1",
        "GET /x\r HTTP/1.1",
        "GET x HTTP/1.1",
        "GET HTTP/1.1",
        "G(T /x HTTP/1.1",
        "/x HTTP/1.1",
        "GET /x\u{1} HTTP/1.1",
        "GET /x HTTP/1.1\rX: y",
        "GET /x\u{7f} HTTP/1.1",
        "GET \\x HTTP/1.1",
    ] {
        cases.push((format!("{line}\r\n{host}\r\n"), Refused(&[400, 404, 505])));
    }
    check_all(&cases)
}

#[test]
fn lines_that_end_with_less() -> Result<()> {
    // The server gets whole ends of lines, or nothing.
    let cases = [
        (format!("GET /x HTTP/1.1\nHost: {HOST}\n\n"), Either(BAD, GET)),
        (format!("\r\n\r\nGET /x HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), Either(BAD, GET)),
        (format!("GET /x HTTP/1.1\r\nHost: {HOST}\nA: b\r\n\r\n"), Either(BAD, GET)),
        (format!("GET /x HTTP/1.1\r\nHost: {HOST}\n\r\n"), Either(BAD, GET)),
        (format!("GET /x HTTP/1.1\rHost: {HOST}\r\r"), Refused(BAD)),
        (format!("GET /x HTTP/1.1\n\rHost: {HOST}\n\r\n\r"), Refused(BAD)),
        (format!("GET /x HTTP/1.1\r\nHost: {HOST}\r\nA: b\n\rGET /hidden HTTP/1.1\r\n\r\n"), Refused(BAD)),
    ];
    check_all(&cases)
}

#[test]
fn hosts() -> Result<()> {
    let mut cases = Vec::new();
    for hosts in [
        "",
        "Host: a.example.com\r\nHost: a.example.com\r\n",
        "Host: a.example.com\r\nHost: evil\r\n",
        "Host: evil\r\nHost: a.example.com\r\n",
        "Host:\r\n",
        "Host: a.example.com/evil\r\n",
        "Host: user@a.example.com\r\n",
        "Host: a.example.com evil\r\n",
        "Host: a.example.com, evil\r\n",
        "Host: a.example.com:80:80\r\n",
        "Host: a.example.com:port\r\n",
        "Host: a.example.com#\r\n",
        "Host: a.example.com?x\r\n",
        "Host: a.example.com%2eevil\r\n",
        "Host: a.example.com\\\r\n",
        "Host : a.example.com\r\n",
        "Host: a.example.com\r\n Host: evil\r\n",
    ] {
        cases.push((get(hosts), Refused(&[400, 404])));
    }
    cases.push((get("Host: b.example.com\r\n"), Refused(&[404])));
    for host in ["A.EXAMPLE.COM", "a.example.com.", "a.example.com:80", "a.example.com:8080"] {
        cases.push((get(&format!("Host: {host}\r\n")), Passed(GET)));
    }
    // The target and the header must not differ.
    for target in [
        "http://evil/x",
        "http://a.example.com:81/x",
        "http://user@a.example.com/x",
        "http:///x",
        "http:/x",
        "//evil/x",
        "ftp://a.example.com/x",
    ] {
        cases.push((
            format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
            // A server may have its own mind about the path, and gets no other host.
            if target.starts_with("//") {
                Either(BAD, &["GET //evil/x HTTP/1.1"])
            } else {
                Either(&[400, 404], GET)
            },
        ));
    }
    cases.push((format!("GET http://{HOST}/x HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), Passed(GET)));
    cases.push((format!("GET http://{HOST}/x HTTP/1.1\r\nHost: evil\r\n\r\n"), Refused(BAD)));
    cases.push((
        format!("CONNECT {HOST}:80 HTTP/1.1\r\nHost: {HOST}:80\r\n\r\n{HIDDEN}"),
        Refused(&[400, 404, 405, 501]),
    ));
    cases.push((format!("OPTIONS * HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), Either(BAD, &["OPTIONS * HTTP/1.1"])));
    check_all(&cases)
}

#[test]
fn paths() -> Result<()> {
    let mut cases = Vec::new();
    for path in [
        "/..",
        "/a/../b",
        "/a/%2e%2E/b",
        "/a/.",
        "/a%2f..%2fb",
        "/a/..;/b",
        "/a\\..\\b",
        "/a%5c..",
        "/a%00",
        "/a%",
        "/a%zz",
    ] {
        cases.push((format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), Refused(BAD)));
    }
    check_all(&cases)?;
    let scene = Scene::new("", "")?;
    for path in ["//a//b", "/%61", "/a%2Fb?x=/../y", "/a;x?#", "/a|b\"{}"] {
        let answer = scene.exchange(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
        let path = path.split('#').next().unwrap_or_default();
        let seen = scene.server.take()?;
        assert!(
            answer.starts_with(b"HTTP/1.1 400 ") && seen.is_empty()
                || seen[0].line == format!("GET {path} HTTP/1.1"),
            "{path}: {seen:?} {}",
            answer.escape_ascii()
        );
    }
    Ok(())
}

#[test]
fn what_is_of_the_connection_stays_there() -> Result<()> {
    let scene = Scene::new("", "")?;
    let lines = "Connection: close, X-Forwarded-For, X-Forwarded-Proto, Forwarded, Host, Content-Length, X-A, Upgrade, HTTP2-Settings\r\n\
                 X-A: 1\r\nX-B: 2\r\nX-Forwarded-For: 203.0.113.9\r\nX_Forwarded_For: 203.0.113.9\r\nForwarded: for=203.0.113.9\r\n\
                 X-Real-IP: 203.0.113.9\r\nKeep-Alive: timeout=100\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nTrailer: X-B\r\nUpgrade: h2c\r\n\
                 HTTP2-Settings: AAMAAABkAAQAAP__\r\nProxy-Authorization: Basic eA==\r\nContent-Length: 5\r\n";
    let answer = scene.exchange(post(lines, "aaaaa").as_bytes())?;
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", answer.escape_ascii());
    let seen = scene.server.take()?;
    let [seen] = &seen[..] else { panic!("{seen:?}") };
    for name in [
        "x-a",
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "upgrade",
        "http2-settings",
        "proxy-authorization",
        "x-real-ip",
        "x_forwarded_for",
    ] {
        assert!(seen.all(name).is_empty(), "{name}: {seen:?}");
    }
    assert_eq!((seen.all("x-b"), seen.all("host"), &seen.body[..]), (vec!["2"], vec![HOST], &b"aaaaa"[..]));
    assert_eq!(
        (seen.all("x-forwarded-for"), seen.all("x-forwarded-proto")),
        (vec!["10.0.1.2"], vec!["http"])
    );
    assert_eq!(seen.all("forwarded"), ["for=10.0.1.2;proto=http;host=\"a.example.com\""]);
    Ok(())
}

#[test]
fn requests_behind_one_another_stay_apart() -> Result<()> {
    let scene = Scene::new("", "")?;
    let body = HIDDEN;
    let text = format!(
        "GET /1 HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n{body}POST /2 HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n\
         {:x}\r\n{body}\r\n0\r\n\r\nGET /3 HTTP/1.1\r\nHost: {HOST}\r\n\r\n",
        body.len(),
        body.len()
    );
    let answer = scene.exchange(text.as_bytes())?;
    let seen = scene.server.take()?;
    let lines: Vec<_> = seen.iter().map(|seen| seen.line.as_str()).collect();
    assert_eq!(
        lines,
        ["GET /1 HTTP/1.1", "POST /2 HTTP/1.1", "GET /3 HTTP/1.1"],
        "{}",
        answer.escape_ascii()
    );
    assert!(seen[..2].iter().all(|seen| seen.body == body.as_bytes()));
    assert_eq!(String::from_utf8_lossy(&answer).matches("HTTP/1.1 200 ").count(), 3);
    Ok(())
}

#[test]
fn two_ways_to_say_where_a_body_ends_behind_other_requests() -> Result<()> {
    let scene = Scene::new("", "")?;
    let both = format!(
        "POST /both HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"
    );
    let reversed = both.replace(
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
    );
    for before in [
        get(&format!("Host: {HOST}\r\n")),
        format!("{}\r\n", get(&format!("Host: {HOST}\r\n"))),
        post("Content-Length: 5\r\n", "aaaaa"),
        post("Content-Length: 43\r\n", &"\r\n\r\na".repeat(9)[..43]),
        post("Transfer-Encoding: chunked\r\n", "5;a=b\r\na\r\n\r\n\r\n0\r\nX: y\r\n\r\n"),
        get(&format!("Host: {HOST}\r\n")) + &post("Content-Length: 5\r\n", "aaaaa"),
    ] {
        for both in [&both, &reversed] {
            let text = format!("{before}{both}");
            // At once, and cut within names.
            for piece in [text.len(), 30, 1] {
                let mut stream = scene.connect()?;
                stream.set_nodelay(true)?;
                for part in text.as_bytes().chunks(piece) {
                    // It may be refused before all is sent.
                    if stream.write_all(part).is_err() {
                        break;
                    }
                }
                let answer = crate::world::answer(stream);
                let seen = scene.server.take()?;
                let count = before.matches(" HTTP/1.1").count();
                let lines: Vec<_> = seen.iter().map(|seen| seen.line.as_str()).collect();
                ensure!(
                    lines.len() == count && lines.iter().all(|line| line.contains(" /x ")),
                    "{} {piece}: {seen:?}",
                    text.escape_debug()
                );
                let statuses: Vec<_> = answer.matches("HTTP/1.1 ").collect();
                ensure!(
                    answer.matches("HTTP/1.1 200 ").count() == count
                        && answer.contains("HTTP/1.1 400 ")
                        && statuses.len() == count + 1,
                    "{} {piece}: {answer}",
                    text.escape_debug()
                );
            }
        }
    }
    scene.serves_others()
}
