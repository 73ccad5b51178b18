//! What the gateway answers by itself.

use std::io::{Read, Write};
use std::net::Shutdown;

use anyhow::Result;

use super::{ALL_TO_A, Scene, WAYS};
use crate::config::pool;
use crate::world::answer;

#[test]
fn each_failure_has_its_status() -> Result<()> {
    let rule =
        |path: &str, rest: &str| format!("[[route.rule]]\nmatch = [{{ path_prefix = '{path}' }}]\n{rest}\n");
    let rules = rule("/slow", "backends = [{ pool = 'a' }]\nrequest_timeout = '300ms'")
        + &rule("/stall", "backends = [{ pool = 'a' }]\nrequest_timeout = '300ms'")
        + &rule("/nowhere", "backends = [{ pool = 'nowhere' }]")
        + &rule("/empty", "backends = [{ pool = 'empty' }]")
        + &rule("/close", "backends = [{ pool = 'a' }]")
        + &rule("/die", "backends = [{ pool = 'a' }]");
    let more = pool("nowhere", &[8099], "") + "[[pool]]\nname = 'empty'\nservers = ['none.invalid:80']\n";
    let scene = Scene::new(&rules, &more)?;
    for (version, site) in WAYS {
        for (path, status) in [
            ("/other", "404"),
            ("/nowhere", "502"),
            ("/empty", "503"),
            ("/close", "502"),
            ("/slow/5", "504"),
            ("/slow/../other", "400"),
        ] {
            let url = format!("{site}{path}");
            assert_eq!(scene.status(&["--path-as-is", version, &url])?, status, "{version} {url}");
        }
        // An answer that has begun is not made whole.
        for path in ["/stall/5", "/die"] {
            let output = scene.curl(&[version, &format!("{site}{path}")])?;
            assert!(
                !output.status.success() && b"hello".starts_with(&output.stdout),
                "{version} {path}: {output:?}"
            );
        }
        assert_eq!(
            scene.status(&[version, "-H", "Host: unknown.example.com", &format!("{site}/close")])?,
            "404"
        );
    }
    assert_eq!(scene.status(&["--http1.1", "-X", "CONNECT", "http://site.example.com/close"])?, "501");
    for version in ["--http1.1", "--http2"] {
        let elsewhere = ["-H", "Host: other.example.com", "https://site.example.com/close"];
        assert_eq!(scene.status(&[&[version], &elsewhere[..]].concat())?, "421");
    }
    Ok(())
}

#[test]
fn what_servers_could_take_for_another_request_is_refused() -> Result<()> {
    let scene = Scene::new(ALL_TO_A, "")?;
    let post = "POST / HTTP/1.1\r\nHost: site.example.com\r\n";
    for (request, status) in [
        (format!("{post}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), "400"),
        (format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"), "400"),
        (format!("{post}Content-Length: 3, 3\r\n\r\nabc"), "400"),
        (format!("{post}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"), "400"),
        (format!("{post}Content-Length: +3\r\n\r\nabc"), "400"),
        (format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), "501"),
        (format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), "400"),
        (format!("{post}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"), "400"),
        (format!("{post}X: a\r\n b\r\n\r\n"), "400"),
        (format!("{post}X: a\rb\r\n\r\n"), "400"),
        (format!("{post}Host: site.example.com\r\n\r\n"), "400"),
        ("GET http://other.example.com/ HTTP/1.1\r\nHost: site.example.com\r\n\r\n".into(), "400"),
        ("GET / HTTP/1.1\r\n\r\n".into(), "400"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(), "400"),
        (format!("GET / HTTP/1.1\r\nHost: site.example.com\r\nX: {}\r\n\r\n", "x".repeat(100_000)), "431"),
    ] {
        let mut client = scene.world.connect(80)?;
        client.write_all(request.as_bytes())?;
        client.shutdown(Shutdown::Write)?;
        let said = answer(client);
        let shown = request.chars().take(160).collect::<String>();
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?}: {said:?}");
    }
    assert!(!scene.a.stdout().contains("\"POST"), "{}", scene.a.stdout());
    Ok(())
}

#[test]
fn a_client_that_ends_its_side_is_answered() -> Result<()> {
    let scene = Scene::new(ALL_TO_A, "")?;
    let mut client = scene.world.connect(80)?;
    client.write_all(b"GET /slow/0.5 HTTP/1.0\r\nHost: site.example.com\r\n\r\n")?;
    client.shutdown(Shutdown::Write)?;
    let mut said = String::new();
    client.read_to_string(&mut said)?;
    assert!(said.starts_with("HTTP/1.0 200 OK\r\n") && said.ends_with("\r\n\r\nlate"), "{said:?}");
    Ok(())
}
