//! Versions of HTTP on both legs, and what is spoken in place of it.

use anyhow::Result;
use snisplice_tests::Process;
use snisplice_tests::TempDir;

use super::{ALL_TO_A, NAME, Scene, WAYS, ask, header, serve};
use crate::config::pool;

#[test]
fn a_request_reaches_the_server_in_every_version() -> Result<()> {
    let scene = Scene::new(ALL_TO_A, "")?;
    for (version, site) in WAYS {
        let told = scene.told(&[version, &format!("{site}/path/to?x=%20y"), "-H", "Cookie: a=1; b=2"])?;
        assert_eq!(
            (&told["name"], &told["method"], &told["path"]),
            (&"a".into(), &"GET".into(), &"/path/to?x=%20y".into())
        );
        assert_eq!(header(&told, "host"), [NAME], "{told}");
        assert_eq!(header(&told, "cookie"), ["a=1; b=2"], "{told}");
        assert_eq!(header(&told, "x-forwarded-for"), ["10.0.1.2"], "{told}");
        let scheme = site.split(':').next().unwrap_or_default();
        assert_eq!(header(&told, "x-forwarded-proto"), [scheme], "{told}");
        assert!(header(&told, "connection").is_empty() && header(&told, "via").is_empty(), "{told}");

        for status in ["204", "304"] {
            let url = format!("{site}/status/{status}");
            assert_eq!(scene.status(&[version, &url])?, status);
        }
        let head = scene.fetch(&[version, "--head", &format!("{site}/status/200")])?;
        assert!(head.to_lowercase().contains("content-length: 8"), "{head}");
        // curl loses a connection of HTTP/2 without TLS after one request, whoever serves it.
        if version != "--http2-prior-knowledge" {
            // The first answer has ended where it should.
            let both =
                scene.fetch(&[version, &format!("{site}/status/404"), &format!("{site}/status/200")])?;
            assert_eq!(both, "as askedas asked");
        }
    }
    Ok(())
}

#[test]
fn what_is_for_one_connection_is_not_passed_on() -> Result<()> {
    let scene = Scene::new(ALL_TO_A, "")?;
    let told = scene.told(&[
        "--http1.1",
        "http://site.example.com/",
        "-H",
        "Connection: close, X-Own",
        "-H",
        "X-Own: 1",
        "-H",
        "X-Other: 2",
        "-H",
        "TE: trailers, gzip",
        "-H",
        "Keep-Alive: timeout=5",
        "-H",
        "X-Forwarded-For: 192.0.2.1",
    ])?;
    assert_eq!(header(&told, "x-other"), ["2"], "{told}");
    assert_eq!(header(&told, "te"), ["trailers"], "{told}");
    assert_eq!(header(&told, "x-forwarded-for"), ["10.0.1.2"], "{told}");
    for name in ["x-own", "connection", "keep-alive"] {
        assert!(header(&told, name).is_empty(), "{told}");
    }
    Ok(())
}

#[test]
fn servers_speak_http2_and_tls() -> Result<()> {
    let rules = "[[route.rule]]\nmatch = [{ path_prefix = '/h2c' }]\nbackends = [{ pool = 'h2c' }]\n\
                 [[route.rule]]\nmatch = [{ path_prefix = '/tls' }]\nbackends = [{ pool = 'tls' }]\n\
                 [[route.rule]]\nmatch = [{ path_prefix = '/h2' }]\nbackends = [{ pool = 'h2' }]\n\
                 [[route.rule]]\nmatch = [{ path_prefix = '/wrong' }]\nbackends = [{ pool = 'wrong' }]\n";
    let world = crate::world::World::new()?;
    let files = TempDir::new()?;
    let leaf = world.authority.leaf(&["inner.example.com"])?;
    let directory = files.path().display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {directory}/{kind};\n"))
        .concat();
    let answer = "location / { return 200 '$server_protocol $http_host $ssl_protocol'; }";
    std::fs::write(
        files.join("nginx.conf"),
        format!(
            "daemon off; master_process off; pid {directory}/pid; error_log stderr;\n\
             events {{ worker_connections 512; }}\nhttp {{ access_log off; ssl_protocols TLSv1.3; {temporary}\n\
             ssl_certificate {}; ssl_certificate_key {};\n\
             server {{ listen 9001 http2; {answer} }}\nserver {{ listen 9002 ssl; {answer} }}\n\
             server {{ listen 9003 ssl http2; {answer} }} }}\n",
            leaf.chain.display(),
            leaf.key.display()
        ),
    )?;
    let mut nginx = world.net.server.command("nginx");
    nginx.arg("-p").arg(files.path()).arg("-c").arg(files.join("nginx.conf"));
    let mut nginx = Process::spawn("nginx", nginx)?;
    nginx.wait_listening(&[9001, 9002, 9003])?;
    let tls = |name: &str| {
        format!("tls = {{ ca = '{}', server_name = '{name}' }}\n", world.authority.path.display())
    };
    let more = pool("h2c", &[9001], "http2 = true")
        + &pool("tls", &[9002], &tls("inner.example.com"))
        + &pool("h2", &[9003], &(tls("inner.example.com") + "http2 = true"))
        + &pool("wrong", &[9002], &tls("outer.example.com"));
    let servers = [("8001", "a", 8001), ("8002", "b", 8002)]
        .map(|(port, name, number)| serve(&world, "json", "server.py", &[port, name], number));
    let [a, b] = servers;
    let gateway = world.gateway(&super::site(&world, rules, &more)?)?;
    let scene = Scene { gateway, a: a?, b: b?, world };
    for (version, site) in WAYS {
        let get = |path: &str| scene.fetch(&[version, &format!("{site}{path}")]);
        // The host of a request in HTTP/2 is not in a header.
        assert_eq!(get("/h2c")?, "HTTP/2.0 site.example.com ");
        assert_eq!(get("/tls")?, "HTTP/1.1 site.example.com TLSv1.3");
        assert_eq!(get("/h2")?, "HTTP/2.0 site.example.com TLSv1.3");
        assert_eq!(scene.status(&[version, &format!("{site}/wrong")])?, "502");
    }
    Ok(())
}

#[test]
fn a_websocket_is_carried_after_the_request_for_it() -> Result<()> {
    let rules = "[[route.rule]]\nmatch = [{ path_prefix = '/chat' }]\nbackends = [{ pool = 'chat' }]\n";
    let scene = Scene::new(rules, &pool("chat", &[8003], ""))?;
    let _server = serve(&scene.world, "websockets", "websocket.py", &["server", "8003"], 8003)?;
    let authority = scene.world.authority.path.display().to_string();
    for scheme in ["ws", "wss"] {
        let url = format!("{scheme}://{NAME}/chat");
        assert_eq!(
            ask(&scene.world, "websockets", "websocket.py", &["client", &url, NAME, &authority])?.trim(),
            "words"
        );
    }
    let lines = scene.gateway.wait_access_log(4)?;
    let upgraded = lines.iter().filter(|line| line["status"] == 101).count();
    assert_eq!(upgraded, 2, "{lines:?}");
    Ok(())
}

#[test]
fn grpc_is_carried_with_its_trailers_and_streams() -> Result<()> {
    let rules = "[[route.rule]]\nmatch = [{ path_prefix = '/echo.Echo' }]\nbackends = [{ pool = 'rpc' }]\n";
    let scene = Scene::new(rules, &pool("rpc", &[8003], "http2 = true"))?;
    let _server = serve(&scene.world, "grpc", "grpc_echo.py", &["server", "8003"], 8003)?;
    let authority = scene.world.authority.path.display().to_string();
    for (target, authority) in [("10.0.1.1:80", "-"), ("10.0.1.1:443", &*authority)] {
        let said = ask(&scene.world, "grpc", "grpc_echo.py", &["client", target, authority, NAME])?;
        assert_eq!(said, "b'cba' this\nFAILED_PRECONDITION\nUNIMPLEMENTED\n");
    }
    Ok(())
}
