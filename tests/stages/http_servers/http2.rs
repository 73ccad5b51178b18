//! Servers of HTTP/2.

use std::io;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};

use super::odd::{Act, Odd2, WELL, good};
use super::scene::{ODD_HTTP2, Scene, VERSIONS};
use crate::http_hostile::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, Raw, SETTINGS,
    WINDOW_UPDATE, block, frame,
};
use crate::tolerance::answers;
use snisplice_tests::backend::Backend;
use snisplice_tests::eventually;
use std::net::Shutdown;

const PRIORITY: u8 = 2;
const PUSH_PROMISE: u8 = 5;
const PADDED: u8 = 8;

const PATH: &str = "/odd2/case";

/// A server that goes on as if nothing had been would be waited for no longer.
const BOUND: &str = "backend_timeout = '3s'";

/// What the server does, and what is said of it if that goes wrong.
type Case = (String, Act);

fn case(
    name: impl Into<String>,
    act: impl Fn(&mut Raw, u32) -> io::Result<()> + Send + Sync + 'static,
) -> Case {
    (name.into(), Arc::new(act))
}

/// The server does each of these instead of answering; `check` looks at what comes of it. Then it answers well.
fn each(cases: Vec<Case>, check: impl Fn(&Scene, &str) -> Result<()>) -> Result<()> {
    let scene = Scene::new("", BOUND)?;
    let odd = Odd2::start(&scene, &[])?;
    let mut wrong = Vec::new();
    for (version, (name, act)) in
        VERSIONS.into_iter().flat_map(|version| cases.iter().map(move |case| (version, case)))
    {
        odd.does(Some(act.clone()));
        let found = check(&scene, version);
        odd.does(None);
        if let Err(error) = found.and_then(|()| well(&scene, version)) {
            wrong.push(format!("{version} {name}: {error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    scene.serves_others()
}

/// The next request gets what was made for it.
fn well(scene: &Scene, version: &str) -> Result<()> {
    let got = scene.ask(version, "/odd2/next", &[])?;
    ensure!(got.status() == "200" && got.is_whole && got.body == WELL, "the next one: {got:?}");
    Ok(())
}

fn refused(cases: Vec<Case>) -> Result<()> {
    each(cases, |scene, version| scene.refused(version, PATH, &[]))
}

fn cut(cases: Vec<Case>) -> Result<()> {
    each(cases, |scene, version| scene.cut(version, PATH, b"hello"))
}

const OK: &[(&str, &str)] = &[(":status", "200")];

fn number(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

#[test]
fn what_is_no_http2() -> Result<()> {
    let scene = Scene::new("", BOUND)?;
    for text in ["HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "SSH-2.0-x\r\n", "", "\0\0\0"] {
        let _server = Backend::start(&scene.world.net.server, ODD_HTTP2, move |mut stream| {
            io::Write::write_all(&mut stream, text.as_bytes())?;
            stream.shutdown(Shutdown::Write)?;
            io::copy(&mut stream, &mut io::sink()).map(drop)
        })?;
        for version in VERSIONS {
            scene.refused(version, PATH, &[]).context(text)?;
        }
    }
    scene.serves_others()
}

#[test]
fn a_connection_that_ends_at_once() -> Result<()> {
    let goaway = |last: u32, error: u32| frame(GOAWAY, 0, 0, &[number(last), number(error)].concat());
    let end = |raw: &Raw| raw.stream().shutdown(Shutdown::Both);
    let mut cases = vec![
        case("it ends", move |raw, _| end(raw)),
        case("it is reset", |raw, _| {
            snisplice_tests::pump::reset_on_close(raw.stream())
                .map_err(io::Error::other)
                .and_then(|()| Err(io::ErrorKind::Other.into()))
        }),
        case("GOAWAY, and an end", move |raw, _| raw.write(&goaway(0, 0)).and_then(|()| end(raw))),
    ];
    for error in [0, 1, 2, 11, 13, 0xdead] {
        cases.push(case(format!("GOAWAY {error}"), move |raw, _| {
            raw.write(&goaway(0, error))?;
            raw.stream().shutdown(Shutdown::Write)
        }));
    }
    refused(cases)
}

#[test]
fn a_connection_that_is_given_up_before_any_request() -> Result<()> {
    let scene = Scene::new("", BOUND)?;
    let _server = Backend::start(&scene.world.net.server, ODD_HTTP2, move |stream| {
        let mut raw = Raw::accept(stream, &[])?;
        raw.frame(GOAWAY, 0, 0, &[0; 8])?;
        raw.until_end().map(drop).map_err(io::Error::other)
    })?;
    // It may come before the request is sent, or behind it.
    let failed =
        || -> Result<u64> { Ok(scene.failed()? + answers(&scene.world.net.gateway, "connect_failed")?) };
    for (version, n) in VERSIONS.into_iter().zip(1..) {
        let got = scene.ask(version, PATH, &[])?;
        ensure!(got.status() == "502" && got.is_whole && got.body == b"Bad Gateway", "{got:?}");
        eventually("one more failure", || failed().ok().filter(|failed| *failed == n))?;
    }
    scene.serves_others()
}

#[test]
fn streams_that_are_reset() -> Result<()> {
    let reset = |stream, error: u32| frame(RST_STREAM, 0, stream, &number(error));
    let errors = [0, 1, 2, 3, 5, 7, 8, 11, 13, 0xdead];
    refused(
        errors
            .map(|error| {
                case(format!("{error} at once"), move |raw, stream| raw.write(&reset(stream, error)))
            })
            .into(),
    )?;
    let begun = move |raw: &mut Raw, stream| {
        raw.headers(stream, OK, false)?;
        raw.data(stream, b"hello", false)
    };
    let known = move |raw: &mut Raw, stream| {
        raw.headers(stream, &[(":status", "200"), ("content-length", "10")], false)?;
        raw.data(stream, b"hello", false)
    };
    let mut cases = Vec::new();
    for error in errors {
        cases.push(case(format!("{error} in the middle"), move |raw, stream| {
            begun(raw, stream)?;
            raw.write(&reset(stream, error))
        }));
        cases.push(case(format!("{error} in the middle of a known length"), move |raw, stream| {
            known(raw, stream)?;
            raw.write(&reset(stream, error))
        }));
    }
    cases.push(case("the end of the connection", move |raw, stream| {
        begun(raw, stream)?;
        raw.stream().shutdown(Shutdown::Write)
    }));
    cases.push(case("GOAWAY and the end of the connection", move |raw, stream| {
        begun(raw, stream)?;
        raw.frame(GOAWAY, 0, 0, &[number(stream), number(0)].concat())?;
        raw.stream().shutdown(Shutdown::Write)
    }));
    cases.push(case("less than was announced", move |raw, stream| {
        known(raw, stream)?;
        raw.data(stream, b"", true)
    }));
    cases.push(case("more than was announced", move |raw, stream| {
        known(raw, stream)?;
        raw.data(stream, b" and hello again", true)
    }));
    cases.push(case("trailers with a header of HTTP/1.1", move |raw, stream| {
        begun(raw, stream)?;
        raw.headers(stream, &[("transfer-encoding", "chunked")], true)
    }));
    cases.push(case("a second head", move |raw, stream| {
        begun(raw, stream)?;
        raw.headers(stream, OK, false)
    }));
    cases.push(case("another stream's frame", move |raw, stream| {
        begun(raw, stream)?;
        raw.data(stream + 2, b"evil", true)
    }));
    cases.push(case("padding that is longer than the frame", move |raw, stream| {
        begun(raw, stream)?;
        raw.frame(DATA, PADDED, stream, &[200, 0, 0])
    }));
    cut(cases)
}

#[test]
fn heads_that_are_none() -> Result<()> {
    let heads: [&[(&str, &str)]; 21] = [
        &[],
        &[("x-a", "b")],
        &[(":status", "")],
        &[(":status", "20")],
        &[(":status", "abc")],
        &[(":status", "2000")],
        &[(":status", "099")],
        &[(":status", "-20")],
        &[(":status", "101")],
        &[(":status", "200"), (":status", "200")],
        &[("x-a", "b"), (":status", "200")],
        &[(":status", "200"), (":other", "x")],
        &[(":status", "200"), ("X-A", "b")],
        &[(":status", "200"), ("x a", "b")],
        &[(":status", "200"), ("x-a", "a\r\nb: c")],
        &[(":status", "200"), ("x-a", "a\0b")],
        &[(":status", "200"), ("connection", "close")],
        &[(":status", "200"), ("transfer-encoding", "chunked")],
        &[(":status", "200"), ("content-length", "x")],
        &[(":status", "200"), ("content-length", "5"), ("content-length", "6")],
        &[(":status", "200"), ("content-length", "5, 5")],
    ];
    let mut cases: Vec<Case> = heads
        .into_iter()
        .map(|head| {
            case(format!("{head:?}"), move |raw, stream| {
                raw.headers(stream, head, false)?;
                raw.data(stream, b"hello", true)
            })
        })
        .collect();
    cases.push(case("a body before the head", |raw, stream| raw.data(stream, b"hello", true)));
    cases.push(case("a head that is not the last", |raw, stream| {
        raw.headers(stream, &[(":status", "100")], true)
    }));
    cases.push(case("a body behind a head that is not the last", |raw, stream| {
        raw.headers(stream, &[(":status", "100")], false)?;
        raw.data(stream, b"hello", true)
    }));
    cases.push(case("a field of a table that is empty", |raw, stream| {
        raw.frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0xff, 0xff, 0xff, 0x0f])
    }));
    cases.push(case("a field that is not whole", |raw, stream| {
        raw.frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x88, 0, 10, b'a'])
    }));
    cases.push(case("no Huffman's code", |raw, stream| {
        raw.frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            stream,
            &[0x88, 0, 0x81, 0xff, 0x84, 0xff, 0xff, 0xff, 0xff],
        )
    }));
    cases.push(case("a table that is larger than allowed", |raw, stream| {
        raw.frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x3f, 0xe1, 0xff, 0x03, 0x88])
    }));
    cases.push(case("more than a head may have", |raw, stream| {
        raw.frame(HEADERS, 0, stream, &[0x88])?;
        let part = block(&[("x-a", &"a".repeat(10_000))]);
        (0..9).try_for_each(|_| raw.frame(CONTINUATION, 0, stream, &part))?;
        raw.frame(CONTINUATION, END_HEADERS, stream, &part)?;
        raw.data(stream, b"hello", true)
    }));
    refused(cases)
}

#[test]
fn frames_that_no_server_sends() -> Result<()> {
    // A frame, and whether the connection's end follows from it (RFC 9113, sections 5 and 6).
    let frames: Vec<(&str, Vec<u8>)> = vec![
        (
            "a promise",
            frame(
                PUSH_PROMISE,
                END_HEADERS,
                1,
                &[
                    &number(2)[..],
                    &block(&[
                        (":method", "GET"),
                        (":scheme", "http"),
                        (":authority", "a.example.com"),
                        (":path", "/"),
                    ]),
                ]
                .concat(),
            ),
        ),
        ("a head on a stream of the server's", frame(HEADERS, END_HEADERS | END_STREAM, 2, &[0x88])),
        (
            "a head on a stream that was not opened",
            frame(HEADERS, END_HEADERS | END_STREAM, 0x7fff_ffff, &[0x88]),
        ),
        ("a head on no stream", frame(HEADERS, END_HEADERS | END_STREAM, 0, &[0x88])),
        ("data on a stream of the server's", frame(DATA, END_STREAM, 2, b"evil")),
        ("data on a stream that was not opened", frame(DATA, END_STREAM, 0x7fff_ffff, b"evil")),
        ("data on no stream", frame(DATA, END_STREAM, 0, b"evil")),
        ("a reset of a stream that was not opened", frame(RST_STREAM, 0, 0x7fff_ffff, &[0; 4])),
        ("a reset of no stream", frame(RST_STREAM, 0, 0, &[0; 4])),
        ("a reset that is too short", frame(RST_STREAM, 0, 1, &[0; 3])),
        ("a window of a stream that was not opened", frame(WINDOW_UPDATE, 0, 0x7fff_ffff, &number(1))),
        ("a window that does not grow", frame(WINDOW_UPDATE, 0, 0, &number(0))),
        ("a window that grows too much", frame(WINDOW_UPDATE, 0, 0, &number(0x7fff_ffff))),
        ("a window that is too short", frame(WINDOW_UPDATE, 0, 0, &[0; 3])),
        ("settings of a window that is too large", frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0])),
        ("settings of frames that are too small", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1])),
        ("settings that are not whole", frame(SETTINGS, 0, 0, &[0; 5])),
        ("settings of a stream", frame(SETTINGS, 0, 1, &[])),
        ("settings that are acknowledged and more", frame(SETTINGS, ACK, 0, &[0; 6])),
        ("a PING that is too short", frame(PING, 0, 0, &[0; 7])),
        ("a PING of a stream", frame(PING, 0, 1, &[0; 8])),
        ("a GOAWAY of a stream", frame(GOAWAY, 0, 1, &[0; 8])),
        ("a GOAWAY that is too short", frame(GOAWAY, 0, 0, &[0; 7])),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &[0x88])),
        ("a priority that is too short", frame(PRIORITY, 0, 0, &[0; 5])),
        ("a frame that is too long", frame(DATA, END_STREAM, 1, &vec![b'e'; 1 << 17])),
        (
            "a head that something comes between",
            [frame(HEADERS, 0, 1, &[0x88]), frame(PING, 0, 0, &[0; 8])].concat(),
        ),
    ];
    let scene = Scene::new("", BOUND)?;
    let odd = Odd2::start(&scene, &[])?;
    let mut wrong = Vec::new();
    for (version, (name, bytes)) in
        VERSIONS.into_iter().flat_map(|version| frames.iter().map(move |frame| (version, frame)))
    {
        let bytes = bytes.clone();
        // The connection that is there has carried others: the numbers would not be those of its stream.
        odd.does(Some(Arc::new(|raw, _| raw.stream().shutdown(Shutdown::Both))));
        scene.ask(version, PATH, &[])?;
        odd.does(Some(Arc::new(move |raw, _| raw.write(&bytes))));
        let found = scene.refused(version, PATH, &[]);
        odd.does(None);
        if let Err(error) = found.and_then(|()| well(&scene, version)) {
            wrong.push(format!("{version} {name}: {error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    scene.serves_others()
}

#[test]
fn odd_frames_that_are_good() -> Result<()> {
    let cases = vec![
        case("many heads before the last", |raw, stream| {
            (0..2000)
                .try_for_each(|_| raw.headers(stream, &[(":status", "103"), ("link", "</x>")], false))?;
            good(raw, stream)
        }),
        case("frames of a kind that nobody knows", |raw, stream| {
            (0..100).try_for_each(|_| raw.frame(0xbb, 0xff, stream, b"evil"))?;
            good(raw, stream)
        }),
        case("PING and settings in between", |raw, stream| {
            raw.headers(stream, OK, false)?;
            raw.frame(PING, 0, 0, &[0; 8])?;
            raw.data(stream, &WELL[..2], false)?;
            raw.frame(SETTINGS, 0, 0, &[])?;
            raw.frame(PING, ACK, 0, &[7; 8])?;
            raw.data(stream, &WELL[2..], true)
        }),
        case("empty frames", |raw, stream| {
            raw.headers(stream, OK, false)?;
            (0..100).try_for_each(|_| raw.data(stream, b"", false))?;
            raw.data(stream, WELL, false)?;
            raw.data(stream, b"", true)
        }),
        // hyper looks at `:status` alone, and in trailers at none.
        case("more names with a colon", |raw, stream| {
            raw.headers(stream, &[(":status", "200"), (":path", "/evil")], false)?;
            raw.data(stream, WELL, false)?;
            raw.headers(stream, &[(":status", "500")], true)
        }),
        case("padding", |raw, stream| {
            raw.frame(HEADERS, END_HEADERS | PADDED, stream, &[3, 0x88, 0, 0, 0])?;
            raw.frame(DATA, END_STREAM | PADDED, stream, &[&[2][..], WELL, &[0; 2]].concat())
        }),
        case("resets of a stream that is over", |raw, stream| {
            good(raw, stream)?;
            (0..100).try_for_each(|_| raw.frame(RST_STREAM, 0, stream, &number(8)))
        }),
        case("a GOAWAY behind the answer", |raw, stream| {
            good(raw, stream)?;
            raw.frame(GOAWAY, 0, 0, &[number(stream), number(0)].concat())
        }),
    ];
    each(cases, |scene, version| {
        let got = scene.ask(version, PATH, &[])?;
        ensure!(got.status() == "200" && got.is_whole && got.body == WELL && !got.has("link"), "{got:?}");
        Ok(())
    })
}

#[test]
fn bodies_where_there_can_be_none() -> Result<()> {
    for (status, more) in [("204", &[][..]), ("304", &[]), ("200", &["--head"])] {
        let evil = move |raw: &mut Raw, stream| {
            raw.headers(stream, &[(":status", status)], false)?;
            raw.data(stream, b"evil", true)
        };
        each(vec![case(status, evil)], |scene, version| {
            let got = scene.ask(version, PATH, more)?;
            ensure!(got.body.is_empty() && ["", "502", status].contains(&got.status()), "{got:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn frames_behind_the_end_of_an_answer() -> Result<()> {
    type More = fn(&mut Raw, u32) -> io::Result<()>;
    let behind: [(&str, More); 4] = [
        ("data", |raw, stream| raw.data(stream, b"evil", false)),
        ("the end once more", |raw, stream| raw.data(stream, b"", true)),
        ("a head", |raw, stream| raw.headers(stream, OK, true)),
        ("data for the next stream", |raw, stream| raw.data(stream + 2, b"evil", true)),
    ];
    let cases = behind.map(|(name, more)| {
        case(name, move |raw: &mut Raw, stream| {
            good(raw, stream)?;
            more(raw, stream)
        })
    });
    each(cases.into(), |scene, version| {
        let got = scene.ask(version, PATH, &[])?;
        let is_own =
            got.status() == "200" && WELL.starts_with(&got.body) && (got.body == WELL || !got.is_whole);
        ensure!(is_own || got.status() == "502" && got.is_whole, "{got:?}");
        Ok(())
    })
}
