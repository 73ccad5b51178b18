//! Requests in HTTP/2 that would be something else in HTTP/1.1.

use anyhow::{Result, ensure};

use super::frames::{DATA, END_HEADERS, GOAWAY, HEADERS, RST_STREAM, Raw, block, usual};
use super::{HOST, Scene};

/// Sends a head, and a body if there is one; whether it was answered by a server.
fn send(scene: &Scene, fields: &[(&str, &str)], body: Option<&str>) -> Result<bool> {
    let mut raw = Raw::new(scene.connect()?)?;
    raw.headers(1, fields, body.is_none())?;
    if let Some(body) = body {
        // It may be refused by then.
        let _ = raw.data(1, body.as_bytes(), true);
    }
    let frames = raw.until_answered(1)?;
    let is_refused = |kind| frames.iter().any(|frame| frame.kind == kind);
    let is_answered = frames.iter().any(|frame| frame.kind == HEADERS && frame.stream == 1);
    ensure!(is_answered || is_refused(RST_STREAM) || is_refused(GOAWAY), "{frames:?}");
    Ok(frames.iter().any(|frame| frame.kind == DATA && frame.payload == b"ok"))
}

#[test]
fn the_usual_one_is_served() -> Result<()> {
    let scene = Scene::new("", "")?;
    assert!(send(&scene, &usual("GET", "/x"), None)?);
    assert!(send(&scene, &usual("POST", "/x"), Some("aaaaa"))?);
    let seen = scene.server.take()?;
    assert_eq!(
        (&*seen[0].line, &*seen[1].line, &seen[1].body[..]),
        ("GET /x HTTP/1.1", "POST /x HTTP/1.1", &b"aaaaa"[..])
    );
    assert_eq!(seen[0].all("host"), [HOST]);
    Ok(())
}

#[test]
fn fields_that_would_be_lines_of_their_own() -> Result<()> {
    let scene = Scene::new("", "")?;
    let hidden = "x\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a.example.com\r\n\r\n";
    let mut heads: Vec<Vec<(&str, &str)>> = Vec::new();
    for value in [hidden, "a\nb: c", "a\rb", "a\0b", "\na", "a\r\n b"] {
        heads.push([usual("GET", "/x"), vec![("x-a", value)]].concat());
    }
    for name in
        ["x-a\r\nb", "x-a: b", "x a", "X-A", "", "x-a\0", "x-a:", "x\na", ":x", ":status", ":protocol"]
    {
        heads.push([usual("GET", "/x"), vec![(name, "b")]].concat());
    }
    for (place, value) in [
        (0, "GET / HTTP/1.1\r\nX: y\r\n\r\nGET"),
        (0, "G T"),
        (0, ""),
        (1, "http\r\nX: y"),
        (2, hidden),
        (2, "user@a.example.com"),
        (2, "a.example.com evil"),
        (2, "a.example.com/evil"),
        (2, ""),
        (3, "/x HTTP/1.1\r\nX: y\r\n\r\nGET /hidden"),
        (3, "/x y"),
        (3, "x"),
        (3, ""),
        (3, "/x\n"),
        (3, "/x\0"),
        (3, "/a/../b"),
        (3, "http://a.example.com/x"),
    ] {
        let mut head = usual("GET", "/x");
        head[place].1 = value;
        heads.push(head);
    }
    // Twice, too late, or not at all.
    for place in [0, 1, 2, 3] {
        heads.push([usual("GET", "/x"), vec![usual("GET", "/y")[place]]].concat());
        let mut late = usual("GET", "/x");
        let field = late.remove(place);
        heads.push([late.clone(), vec![("x-a", "b"), field]].concat());
        // `:authority` need not be there where a `host` is.
        heads.push(late);
    }
    // What is of a connection of HTTP/1.1.
    for field in [
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("connection", "x-a"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("upgrade", "h2c"),
        ("te", "chunked"),
        ("te", "trailers, chunked"),
        ("host", "evil"),
        ("host", "a.example.com\r\nX: y"),
    ] {
        heads.push([usual("GET", "/x"), vec![field]].concat());
    }
    heads.push([usual("GET", "/x"), vec![("host", HOST), ("host", HOST)]].concat());
    heads.push(vec![(":method", "CONNECT"), (":authority", "a.example.com:80")]);
    let mut failures = Vec::new();
    for head in heads {
        let is_served = send(&scene, &head, None)?;
        let seen = scene.server.take();
        // `te` may be taken out instead.
        let is_te = head.iter().any(|(name, _)| *name == "te");
        let is_clean = seen
            .as_ref()
            .is_ok_and(|seen| seen.is_empty() || is_te && seen.len() == 1 && seen[0].all("te").is_empty());
        if is_served && !is_te || !is_clean {
            failures.push(format!("{head:?}: {seen:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    scene.serves_others()
}

#[test]
fn a_body_is_as_long_as_it_says() -> Result<()> {
    let scene = Scene::new("", "")?;
    let hidden = "GET /hidden HTTP/1.1\r\nHost: a.example.com\r\n\r\n";
    for length in ["3", "1000", "+45", "45, 45", "", "x", "18446744073709551616"] {
        let head = [usual("POST", "/x"), vec![("content-length", length)]].concat();
        let is_served = send(&scene, &head, Some(hidden))?;
        assert!(!is_served, "{length}");
        // The head may have reached the server; a whole request has not.
        let seen = scene.server.take();
        assert!(seen.as_ref().is_ok_and(Vec::is_empty), "{length}: {seen:?}");
    }
    for lengths in [["45", "45"], ["45", "0"], ["0", "45"]] {
        let head = [usual("POST", "/x"), lengths.map(|length| ("content-length", length)).to_vec()].concat();
        let is_served = send(&scene, &head, Some(hidden))?;
        let seen = scene.server.take()?;
        let is_one = seen.len() == 1 && seen[0].body == hidden.as_bytes() && lengths[0] == lengths[1];
        assert!(seen.is_empty() && !is_served || is_one, "{lengths:?}: {seen:?}");
    }
    let head = [usual("POST", "/x"), vec![("content-length", "45")]].concat();
    assert!(send(&scene, &head, Some(hidden))?);
    assert_eq!(scene.server.take()?[0].body, hidden.as_bytes());
    // Of nothing, all has come with the head: the request may be done before something follows.
    let head = [usual("POST", "/x"), vec![("content-length", "0")]].concat();
    send(&scene, &head, Some(hidden))?;
    scene.serves_others()?;
    for seen in scene.server.take()? {
        assert!(seen.body.is_empty() && !seen.line.contains("hidden"), "{seen:?}");
    }
    Ok(())
}

#[test]
fn trailers_are_no_heads() -> Result<()> {
    let scene = Scene::new("", "")?;
    for trailer in [
        ("content-length", "100"),
        ("transfer-encoding", "chunked"),
        ("host", "evil"),
        (":path", "/hidden"),
        ("x-a", "b\r\nX: y"),
    ] {
        let mut raw = Raw::new(scene.connect()?)?;
        raw.request(1, "POST", "/x", false)?;
        raw.data(1, b"aaaaa", false)?;
        raw.frame(HEADERS, END_HEADERS | 1, 1, &block(&[trailer]))?;
        raw.until_answered(1)?;
        // Chunks with trailers would be no request for this server.
        for seen in scene.server.take()? {
            assert_eq!((&*seen.line, &seen.body[..]), ("POST /x HTTP/1.1", &b"aaaaa"[..]), "{trailer:?}");
        }
    }
    scene.serves_others()
}
