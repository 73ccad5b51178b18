//! Bodies of requests that end before their time, or are sent more than once: a server gets a whole one, or none.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::backend::Backend;

use super::frames::{
    ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, usual,
};
use super::{HOST, Scene, parse};
use crate::config::pool;

/// Reads until `is_enough`; what has come.
fn read_until(stream: &mut TcpStream, is_enough: impl Fn(&[u8]) -> bool) -> io::Result<Vec<u8>> {
    let mut received = Vec::new();
    while !is_enough(&received) {
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer)? {
            0 => break,
            n => received.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(received)
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Waits until the gateway has seen all that was sent.
fn settle(raw: &mut Raw) -> Result<()> {
    raw.frame(PING, 0, 0, &[0; 8])?;
    while raw.next()?.context("the connection has ended")?.kind != PING {}
    Ok(())
}

#[test]
fn a_stream_that_is_reset_without_an_error_is_no_whole_body() -> Result<()> {
    let copied = "[[route.rule]]\nmatch = [{ path_prefix = '/copied' }]\nbackends = ['app']\nmirror = [{ pool = 'app' }]\n";
    let scene = Scene::new("", copied)?;
    for (length, body) in [(Some("20"), ""), (Some("20"), "aaa"), (None, ""), (None, "aaa")] {
        let mut raw = Raw::new(scene.connect()?)?;
        let length = length.map(|length| ("content-length", length));
        raw.headers(1, &[usual("POST", "/copied"), length.into_iter().collect()].concat(), false)?;
        if !body.is_empty() {
            raw.data(1, body.as_bytes(), false)?;
        }
        settle(&mut raw)?;
        raw.frame(RST_STREAM, 0, 1, &[0; 4])?;
        settle(&mut raw)?;
        for _ in 0..3 {
            scene.serves_others()?;
        }
        let seen = scene.server.take().with_context(|| format!("{length:?} {body}"))?;
        assert!(seen.iter().all(|seen| seen.line == "GET /other HTTP/1.1"), "{length:?} {body}: {seen:?}");
        assert_eq!(seen.len(), 3, "{length:?} {body}: {seen:?}");
    }
    Ok(())
}

const RETRIED: &str = "[[route.rule]]\nmatch = [{ path_prefix = '/retried' }]\nbackends = ['busy']\nretry = { attempts = 1, statuses = [503] }\n";

#[test]
fn a_body_that_is_still_coming_is_sent_whole_to_the_next_server() -> Result<()> {
    let scene = Scene::with("", RETRIED, &pool("busy", &[81], ""))?;
    let (tell, told) = channel();
    let (is_first, tell) = (AtomicBool::new(true), Mutex::new(tell));
    // The first connection refuses before all has come, and reads on; the next one takes all.
    let _busy = Backend::start(&scene.world.net.server, 81, move |mut stream| {
        let tell = tell.lock().expect("no thread panics").clone();
        let begun = read_until(&mut stream, |received| has(received, b"aaaaa"))?;
        if is_first.swap(false, Relaxed) {
            stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")?;
            io::copy(&mut stream, &mut io::sink())?;
            return Ok(());
        }
        let _ = tell.send(Vec::new());
        let is_whole = |rest: &[u8]| !matches!(parse(&[&begun, rest].concat()), Ok(None));
        let rest = read_until(&mut stream, is_whole)?;
        let body = match parse(&[&begun[..], &rest].concat()) {
            Ok(Some((seen, _))) => seen.body,
            other => format!("{other:?}").into_bytes(),
        };
        let _ = tell.send(body);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    })?;
    is_sent_whole(&scene, &told)
}

#[test]
fn what_a_server_may_have_done_is_tried_again_only_where_that_does_no_harm() -> Result<()> {
    let scene = Scene::with("", RETRIED, &pool("busy", &[81], ""))?;
    let lines = Arc::new(Mutex::new(Vec::new()));
    let told = lines.clone();
    // Takes a request whole, and ends without a word.
    let _busy = Backend::start(&scene.world.net.server, 81, move |mut stream| {
        let received = read_until(&mut stream, |received| !matches!(parse(received), Ok(None)))?;
        told.lock().expect("no thread panics").push(received.escape_ascii().to_string());
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
    })?;
    for (method, body, expected) in [("POST", "aaa", 1), ("PATCH", "", 1), ("PUT", "aaa", 2), ("GET", "", 2)]
    {
        let length = body.len();
        let request =
            format!("{method} /retried HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n{body}");
        let answer = scene.exchange(request.as_bytes())?;
        ensure!(answer.starts_with(b"HTTP/1.1 502 "), "{}", answer.escape_ascii());
        let seen = std::mem::take(&mut *lines.lock().expect("no thread panics"));
        assert_eq!(seen.len(), expected, "{method}: {seen:?}");
    }
    Ok(())
}

#[test]
fn what_a_server_of_http2_has_not_begun_with_is_tried_again() -> Result<()> {
    const REFUSED_STREAM: u32 = 7;
    let scene = Scene::with("", RETRIED, &pool("busy", &[81], "http2 = true"))?;
    let _busy = Backend::start(&scene.world.net.server, 81, |stream| {
        let (mut raw, mut is_first) = (Raw::accept(stream, &[])?, true);
        while let Some(frame) = raw.next().map_err(io::Error::other)? {
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => raw.frame(SETTINGS, ACK, 0, &[])?,
                HEADERS if std::mem::take(&mut is_first) => {
                    raw.frame(RST_STREAM, 0, frame.stream, &REFUSED_STREAM.to_be_bytes())?;
                }
                HEADERS => raw.headers(frame.stream, &[(":status", "200")], true)?,
                _ => {}
            }
        }
        Ok(())
    })?;
    let answer = scene.exchange(
        format!("POST /retried HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\n\r\naaa").as_bytes(),
    )?;
    ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", answer.escape_ascii());
    Ok(())
}

/// Sends a body piece by piece, the rest once the beginning is sent for the second time. `told`: an empty piece when that is so, and
/// then what the server that has answered well got.
fn is_sent_whole(scene: &Scene, told: &Receiver<Vec<u8>>) -> Result<()> {
    let mut client = scene.connect()?;
    let head = format!("POST /retried HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.write_all(format!("{head}5\r\naaaaa\r\n5\r\nbbbbb\r\n").as_bytes())?;
    let patience = Duration::from_secs(20);
    told.recv_timeout(patience).context("nothing is sent again")?;
    let mut expected = b"aaaaabbbbb".to_vec();
    // More than is kept, so that nobody can get twice what comes from here on.
    for part in (0..100u32).map(|part| part.to_be_bytes().repeat(256)) {
        write!(client, "400\r\n")?;
        client.write_all(&part)?;
        client.write_all(b"\r\n")?;
        expected.extend(part);
        std::thread::sleep(Duration::from_millis(2));
    }
    client.write_all(b"0\r\n\r\n")?;
    let body = told.recv_timeout(patience).context("the body has no end")?;
    assert!(body == expected, "{} of {} bytes", body.len(), expected.len());
    let answer = read_until(&mut client, |answer| has(answer, b"\r\n\r\n"))?;
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", answer.escape_ascii());
    Ok(())
}

#[test]
fn a_body_that_is_still_coming_is_sent_whole_by_the_next_stream() -> Result<()> {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let scene = Scene::with("", RETRIED, &pool("busy", &[81], "http2 = true"))?;
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    // The first stream is refused before all has come, and is still taken; the next one takes all. Only the first piece may be sent
    // at once: so whoever sends has the second one in hand when its stream is refused, and looks for a third when it may send that.
    let _busy = Backend::start(&scene.world.net.server, 81, move |stream| {
        let tell = tell.lock().expect("no thread panics").clone();
        let mut raw = Raw::accept(stream, &[(INITIAL_WINDOW_SIZE, 5)])?;
        let (mut refused, mut body) = (None, Vec::new());
        while let Some(frame) = raw.next().map_err(io::Error::other)? {
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => raw.frame(SETTINGS, ACK, 0, &[])?,
                DATA if refused.is_none() => {
                    refused = Some(frame.stream);
                    raw.headers(frame.stream, &[(":status", "503")], true)?;
                }
                DATA if refused != Some(frame.stream) => {
                    if body.is_empty() {
                        let _ = tell.send(Vec::new());
                    }
                    body.extend(frame.payload);
                    // Also whoever still sends on the stream that was refused is asked for more.
                    for stream in [0, frame.stream].into_iter().chain(refused) {
                        raw.frame(WINDOW_UPDATE, 0, stream, &1024u32.to_be_bytes())?;
                    }
                    if frame.flags & END_STREAM != 0 {
                        let _ = tell.send(body.clone());
                        raw.headers(frame.stream, &[(":status", "200")], true)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    })?;
    is_sent_whole(&scene, &told)
}

#[test]
fn a_body_without_a_length_reaches_the_server_whatever_the_method() -> Result<()> {
    let scene = Scene::new("", "")?;
    for method in ["GET", "HEAD", "POST", "DELETE"] {
        let head = format!("{method} /x HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n");
        scene.exchange(format!("{head}5\r\naaaaa\r\n0\r\n\r\n").as_bytes())?;
        let mut raw = Raw::new(scene.connect()?)?;
        raw.request(1, method, "/x", false)?;
        raw.data(1, b"aaaaa", true)?;
        raw.until_answered(1)?;
        let seen = scene.server.take().with_context(|| method)?;
        let bodies: Vec<_> = seen.iter().map(|seen| seen.body.escape_ascii().to_string()).collect();
        assert_eq!(bodies, ["aaaaa", "aaaaa"], "{method}: {seen:?}");
    }
    Ok(())
}

#[test]
fn a_body_without_a_length_reaches_a_server_that_has_answered_in_http_1_0() -> Result<()> {
    let old = "[[route.rule]]\nmatch = [{ path_prefix = '/old' }]\nbackends = ['old']\n";
    let scene = Scene::with("", old, &pool("old", &[81], ""))?;
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    // It would keep its connections.
    let _old = Backend::start(&scene.world.net.server, 81, move |mut stream| {
        let tell = tell.lock().expect("no thread panics").clone();
        loop {
            let received = read_until(&mut stream, |received| !matches!(parse(received), Ok(None)))?;
            let Ok(Some((seen, _))) = parse(&received) else {
                let _ = tell.send(received);
                return Ok(());
            };
            let _ = tell.send(seen.body);
            stream.write_all(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")?;
        }
    })?;
    let patience = Duration::from_secs(20);
    for is_http2 in [false, true] {
        scene.exchange(format!("GET /old HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
        told.recv_timeout(patience).context("the first request does not come")?;
        if is_http2 {
            let mut raw = Raw::new(scene.connect()?)?;
            raw.request(1, "POST", "/old", false)?;
            raw.data(1, b"aaaaa", true)?;
            raw.until_answered(1)?;
        } else {
            let head = format!("POST /old HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n");
            scene.exchange(format!("{head}5\r\naaaaa\r\n0\r\n\r\n").as_bytes())?;
        }
        let seen = std::iter::from_fn(|| told.recv_timeout(patience).ok()).find(|seen| !seen.is_empty());
        assert_eq!(seen.context("no body comes")?.escape_ascii().to_string(), "aaaaa", "{is_http2}");
    }
    Ok(())
}

#[test]
fn trailers_of_a_request_say_nothing_for_the_gateway() -> Result<()> {
    let two = "[[route.rule]]\nmatch = [{ path_prefix = '/two' }]\nbackends = ['two']\n";
    let scene = Scene::with("", two, &pool("two", &[81], "http2 = true"))?;
    let _two = Backend::start(&scene.world.net.server, 81, move |stream| {
        let mut raw = Raw::accept(stream, &[])?;
        while let Some(frame) = raw.next().map_err(io::Error::other)? {
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => raw.frame(SETTINGS, ACK, 0, &[])?,
                PING if frame.flags & ACK == 0 => raw.frame(PING, ACK, 0, &frame.payload)?,
                HEADERS | DATA if frame.flags & END_STREAM != 0 => {
                    raw.frame(HEADERS, END_HEADERS | END_STREAM, frame.stream, &[0x88])?;
                }
                _ => {}
            }
        }
        Ok(())
    })?;
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let one = "[[route.rule]]\nmatch = [{ path_prefix = '/one' }]\nbackends = ['one']\n";
    let scene_of_one = Scene::with("", one, &pool("one", &[81], ""))?;
    let _one = Backend::start(&scene_of_one.world.net.server, 81, move |mut stream| {
        let received =
            read_until(&mut stream, |received| has(received, b"0\r\n") && received.ends_with(b"\r\n\r\n"))?;
        let _ = tell.lock().expect("no thread panics").send(received);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    })?;
    let trailers = "Connection: x\r\nKeep-Alive: 1\r\nX-Forwarded-For: 192.0.2.9\r\nX-Real-IP: 192.0.2.9\r\nX-Sum: 5\r\n";
    for (scene, path) in [(&scene, "/two"), (&scene_of_one, "/one")] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nTrailer: X-Forwarded-For, X-Real-IP, X-Sum\r\n\r\n"
        );
        let answer = scene.exchange(format!("{head}5\r\naaaaa\r\n0\r\n{trailers}\r\n").as_bytes())?;
        ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{path}: {}", answer.escape_ascii());
    }
    let seen = told.recv_timeout(Duration::from_secs(20))?.to_ascii_lowercase();
    let end = seen.windows(5).position(|window| window == b"aaaaa").context("no body")?;
    let end = seen[end..].escape_ascii().to_string();
    ensure!(end.contains("x-sum: 5") && !end.contains("192.0.2.9"), "{end}");
    Ok(())
}

#[test]
fn an_upload_behind_its_answer_still_takes_its_place() -> Result<()> {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    let shared = "[[route.rule]]\nmatch = [{ path_prefix = '/shared' }]\nbackends = ['one']\n";
    let scene = Scene::with("", shared, &pool("one", &[81], "http2 = true"))?;
    // It answers at once, and leaves the stream open for the body.
    let _one = Backend::start(&scene.world.net.server, 81, move |stream| {
        let mut raw = Raw::accept(stream, &[(MAX_CONCURRENT_STREAMS, 1)])?;
        while let Some(frame) = raw.next().map_err(io::Error::other)? {
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => raw.frame(SETTINGS, ACK, 0, &[])?,
                PING if frame.flags & ACK == 0 => raw.frame(PING, ACK, 0, &frame.payload)?,
                HEADERS => raw.frame(HEADERS, END_HEADERS | END_STREAM, frame.stream, &[0x88])?,
                _ => {}
            }
        }
        Ok(())
    })?;
    let mut upload = Raw::new(scene.connect()?)?;
    upload.request(1, "POST", "/shared", false)?;
    upload.data(1, b"aaaaa", false)?;
    upload.until_answered(1)?;
    let answer = scene.exchange(format!("GET /shared HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
    ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", answer.escape_ascii());
    drop(upload);
    Ok(())
}

#[test]
fn the_rest_of_a_body_whose_answer_is_there_is_no_head() -> Result<()> {
    let early = "[[route.rule]]\nmatch = [{ path_prefix = '/early' }]\nbackends = ['early']\n";
    let scene = Scene::with("hello_timeout = '1s'", early, &pool("early", &[81], ""))?;
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    // It answers before the body has come, and takes all of it.
    let _early = Backend::start(&scene.world.net.server, 81, move |mut stream| {
        let tell = tell.lock().expect("no thread panics").clone();
        loop {
            let begun = read_until(&mut stream, |received| has(received, b"\r\n\r\n"))?;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly")?;
            let rest = match parse(&begun) {
                Ok(None) if !begun.is_empty() => {
                    read_until(&mut stream, |rest| !matches!(parse(&[&begun, rest].concat()), Ok(None)))?
                }
                _ => Vec::new(),
            };
            let Ok(Some((seen, _))) = parse(&[begun, rest].concat()) else { return Ok(()) };
            let _ = tell.send(seen.body);
        }
    })?;
    let is_answered = |client: &mut TcpStream| -> Result<()> {
        let answer = read_until(client, |answer| answer.ends_with(b"early"))?;
        ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", answer.escape_ascii());
        Ok(())
    };
    // The connection then rests for longer than a head may take; or that takes longer itself.
    for parts in [1, 30] {
        let mut client = scene.connect()?;
        let length = 1 + parts;
        write!(client, "POST /early HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\na")?;
        is_answered(&mut client)?;
        for _ in 0..parts {
            client.write_all(b"b")?;
            std::thread::sleep(Duration::from_millis(100));
        }
        let body = told.recv_timeout(Duration::from_secs(20)).context("the body has no end")?;
        assert_eq!(body, [b"a", &b"b".repeat(parts)[..]].concat());
        std::thread::sleep(Duration::from_secs(3));
        write!(client, "GET /early HTTP/1.1\r\nHost: {HOST}\r\n\r\n")?;
        is_answered(&mut client).with_context(|| format!("{parts} parts"))?;
        told.recv_timeout(Duration::from_secs(20)).context("the next request does not come")?;
    }
    scene.serves_others()
}

#[test]
fn a_server_that_allows_one_stream_gets_the_next_on_another_connection() -> Result<()> {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    let shared = "[[route.rule]]\nmatch = [{ path_prefix = '/shared' }]\nbackends = ['one']\n";
    let scene = Scene::with("", shared, &pool("one", &[81], "http2 = true"))?;
    let (tell, told) = channel();
    let (release, released) = channel();
    let (tell, release, released) = (Mutex::new(tell), Mutex::new(release), Mutex::new(released));
    let requests = AtomicUsize::new(0);
    let patience = Duration::from_secs(20);
    // The second request is answered when the third is there.
    let _one = Backend::start(&scene.world.net.server, 81, move |stream| {
        let mut raw = Raw::accept(stream, &[(MAX_CONCURRENT_STREAMS, 1)])?;
        while let Some(frame) = raw.next().map_err(io::Error::other)? {
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => raw.frame(SETTINGS, ACK, 0, &[])?,
                PING if frame.flags & ACK == 0 => raw.frame(PING, ACK, 0, &frame.payload)?,
                HEADERS => {
                    match requests.fetch_add(1, Relaxed) {
                        0 => {}
                        1 => {
                            let _ = tell.lock().expect("no thread panics").send(());
                            let released = released.lock().expect("no thread panics");
                            released.recv_timeout(patience).map_err(io::Error::other)?;
                        }
                        _ => _ = release.lock().expect("no thread panics").send(()),
                    }
                    // `:status: 200` of the static table (RFC 7541, appendix A).
                    raw.frame(HEADERS, END_HEADERS | END_STREAM, frame.stream, &[0x88])?;
                }
                _ => {}
            }
        }
        Ok(())
    })?;
    let ask = || -> Result<()> {
        let answer = scene.exchange(format!("GET /shared HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
        ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", answer.escape_ascii());
        Ok(())
    };
    ask()?;
    std::thread::scope(|scope| {
        let second = scope.spawn(ask);
        told.recv_timeout(patience).context("the second request does not come")?;
        ask()?;
        second.join().expect("no thread panics")
    })
}

#[test]
fn requests_wait_for_a_server_that_says_how_many_it_takes_and_not_for_ever() -> Result<()> {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    const TOGETHER: usize = 4;
    let shared = "[[route.rule]]\nmatch = [{ path_prefix = '/late' }]\nbackends = ['late']\n\
                  [[route.rule]]\nmatch = [{ path_prefix = '/mute' }]\nbackends = ['mute']\n";
    let pools =
        pool("late", &[81], "http2 = true") + &pool("mute", &[82], "http2 = true\nconnect_timeout = '1s'");
    let scene = Scene::with("", shared, &pools)?;
    let requests = AtomicUsize::new(0);
    // It says late that it takes one at a time, and answers when all are there.
    let _late = Backend::start(&scene.world.net.server, 81, move |mut stream| {
        stream.read_exact(&mut [0; 24])?;
        std::thread::sleep(Duration::from_millis(300));
        let mut raw = Raw::started(stream, &[(MAX_CONCURRENT_STREAMS, 1)])?;
        while let Some(frame) = raw.next().map_err(io::Error::other)? {
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => raw.frame(SETTINGS, ACK, 0, &[])?,
                PING if frame.flags & ACK == 0 => raw.frame(PING, ACK, 0, &frame.payload)?,
                HEADERS => {
                    requests.fetch_add(1, Relaxed);
                    for _ in 0..100 {
                        if requests.load(Relaxed) == TOGETHER {
                            // `:status: 200` of the static table (RFC 7541, appendix A).
                            raw.frame(HEADERS, END_HEADERS | END_STREAM, frame.stream, &[0x88])?;
                            break;
                        }
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    })?;
    // It takes connections, and says nothing.
    let _mute = Backend::start(&scene.world.net.server, 82, |mut stream| {
        io::copy(&mut stream, &mut io::sink()).map(drop)
    })?;
    let ask = |path: &str, status: &str| -> Result<()> {
        let answer = scene.exchange(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
        ensure!(answer.starts_with(format!("HTTP/1.1 {status} ").as_bytes()), "{}", answer.escape_ascii());
        Ok(())
    };
    std::thread::scope(|scope| {
        let asked: Vec<_> = [("/late", "200"), ("/mute", "502")]
            .iter()
            .flat_map(|way| [way; TOGETHER])
            .map(|(path, status)| scope.spawn(|| ask(path, status)))
            .collect();
        asked.into_iter().try_for_each(|asked| asked.join().expect("no thread panics"))
    })
}
