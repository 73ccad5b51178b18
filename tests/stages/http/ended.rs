//! Requests that are broken off: by the end of their server or their route, by their deadline, and for standing still.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::process::checked_output;
use snisplice_tests::{Process, TempDir, eventually};

use super::{ALL_TO_A, NAME, Scene, serve, site};
use crate::config::pool;
use crate::world::World;

/// nginx, which speaks HTTP/2 on port 9001, before the Python server on port 8003.
fn nginx(world: &World, files: &TempDir) -> Result<Process> {
    let directory = files.path().display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {directory}/{kind};\n"))
        .concat();
    fs::write(
        files.join("nginx.conf"),
        format!(
            "daemon off; master_process off; pid {directory}/pid; error_log stderr;\n\
             events {{ worker_connections 512; }}\nhttp {{ access_log off; {temporary}\n\
             server {{ listen 9001 http2; location / {{ proxy_pass http://127.0.0.1:8003; proxy_buffering off; }} }} }}\n"
        ),
    )?;
    let mut nginx = world.net.server.command("nginx");
    nginx.arg("-p").arg(files.path()).arg("-c").arg(files.join("nginx.conf"));
    let mut nginx = Process::spawn("nginx", nginx)?;
    nginx.wait_listening(&[9001])?;
    Ok(nginx)
}

/// Sends a request in HTTP/1.1, and reads until `word`.
fn ask(scene: &Scene, path: &str, more: &str, word: &str) -> Result<TcpStream> {
    let mut client = scene.world.connect(80)?;
    write!(client, "GET {path} HTTP/1.1\r\nHost: {NAME}\r\n{more}\r\n")?;
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains(word) {
        let mut part = [0; 4096];
        let read = client.read(&mut part)?;
        ensure!(read > 0, "{path}: {}", said.escape_ascii());
        said.extend_from_slice(&part[..read]);
    }
    Ok(client)
}

fn is_reset(mut client: TcpStream) -> Result<()> {
    let seen = client.read(&mut [0; 1]);
    let error = seen.err().context("it goes on, or has come to its end")?;
    ensure!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
    Ok(())
}

/// Connections from the gateway to these ports of the servers.
fn connections(world: &World, ports: &str) -> Result<String> {
    checked_output(world.net.server.command("ss").args(["-tnH", "state", "established"]).arg(ports))
}

/// The lines about requests that ended so.
fn logged(scene: &Scene, end: &str) -> Result<Vec<String>> {
    let lines = scene.gateway.access_log()?;
    let of_end = lines.iter().filter(|line| line["end"] == end);
    let mut paths: Vec<_> = of_end.map(|line| line["path"].as_str().unwrap_or_default().to_owned()).collect();
    paths.sort();
    Ok(paths)
}

#[test]
fn what_is_under_way_ends_with_its_server() -> Result<()> {
    let health = "on_down = 'kill'\nhealth = { check = 'http', path = '/health', interval = '200ms', fall = 1, port = 8003 }\n";
    for (port, more) in [(8003, ""), (9001, "http2 = true\n")] {
        let rules = "[[route.rule]]\nmatch = [{ path_prefix = '/sound' }]\nrewrite = { path_prefix = '/' }\nbackends = [{ pool = 'a' }]\n\
                     [[route.rule]]\nbackends = [{ pool = 'frail' }]\n";
        let world = World::new()?;
        let files = TempDir::new()?;
        let _frail = serve(&world, "json", "server.py", &["8003", "frail"], 8003)?;
        let _nginx = nginx(&world, &files)?;
        let [a, b] = [("8001", "a", 8001), ("8002", "b", 8002)]
            .map(|(port, name, number)| serve(&world, "json", "server.py", &[port, name], number));
        let frail = pool("frail", &[port], &(health.to_owned() + more));
        let gateway = world.gateway(&site(&world, rules, &frail)?)?;
        let scene = Scene { gateway, a: a?, b: b?, world };
        let begun = ask(&scene, "/stall/60", "", "hello")?;
        let asked = ask(&scene, "/slow/60", "", "")?;
        let upgraded = (port == 8003)
            .then(|| {
                let upgrade = "Connection: upgrade\r\nUpgrade: echo\r\n";
                let mut client = ask(&scene, "/upgrade", upgrade, "101 ")?;
                client.write_all(b"words")?;
                client.read_exact(&mut [0; 5])?;
                anyhow::Ok(client)
            })
            .transpose()?;
        // One that is kept.
        scene.status(&["http://site.example.com/status/200"])?;
        let together = std::thread::scope(|scope| -> Result<_> {
            let urls = [
                "https://site.example.com/stall/60?h2",
                "https://site.example.com/sound/drip/16",
                "https://site.example.com/slow/60?h2",
            ];
            let scene = &scene;
            let begun = files.join(format!("begun-{port}"));
            let into = begun.display().to_string();
            let together = scope.spawn(move || scene.together_into(&into, &urls));
            eventually("all to be under way", || {
                let active = scene.gateway.status().ok()?;
                let active = active.server("frail", &crate::config::server(port))["active"].as_u64()?;
                (active == 4 + u64::from(port == 8003)).then_some(())
            })?;
            eventually("one to have begun", || {
                std::fs::read(&begun).is_ok_and(|bytes| bytes == b"hello").then_some(())
            })?;
            scene.status(&["http://site.example.com/sick"])?;
            together.join().expect("no panic")
        })?;
        // An answer that has not begun is the gateway's; one that has is broken off; others go on.
        ensure!(together[0].0 == 92 && together[0].2 == 5, "{together:?}");
        ensure!(together[1] == (0, 200, 16), "{together:?}");
        ensure!(together[2].1 == 502, "{together:?}");
        is_reset(begun).context("begun")?;
        upgraded.map_or(Ok(()), is_reset).context("upgraded")?;
        let said = crate::world::answer(asked);
        ensure!(said.starts_with("HTTP/1.1 502 "), "{said}");
        ensure!(scene.answers("server_down")? == 4);
        ensure!(logged(&scene, "server_down")? == ["/slow/60", "/slow/60", "/stall/60", "/stall/60"]);
        let close = |line: &serde_json::Value| line["close_reason"] == "server_down";
        let closed = scene.gateway.access_log()?.iter().filter(|line| close(line)).count();
        ensure!(closed == 1 + usize::from(port == 8003), "{closed}");
        let filter = format!("sport = :{port}");
        eventually("kept connections to be closed", || {
            connections(&scene.world, &filter).ok().filter(String::is_empty)
        })
        .with_context(|| connections(&scene.world, &filter).unwrap_or_default())?;
    }
    Ok(())
}

#[test]
fn a_request_that_waits_for_a_server_that_goes_down_may_be_tried_at_another() -> Result<()> {
    let rules =
        "[[route.rule]]\nbackends = [{ pool = 'both' }]\nretry = { attempts = 1, statuses = [503] }\n";
    let health =
        "on_down = 'kill'\nhealth = { check = 'http', path = '/health', interval = '200ms', fall = 1 }\n";
    let both = pool("both", &[8001, 8002], health).replace("8002' }", "8002', backup = true }");
    let scene = Scene::new(rules, &both)?;
    // Eight seconds, in which the check fails also on a machine that has much else to do.
    let answer = std::thread::scope(|scope| -> Result<_> {
        let answer = scope.spawn(|| scene.fetch(&["http://site.example.com/slow/8"]));
        eventually("it to be under way", || {
            let active = scene.gateway.status().ok()?;
            (active.server("both", &crate::config::server(8001))["active"] == 1).then_some(())
        })?;
        scene.status(&["http://site.example.com/sick"])?;
        answer.join().expect("no panic")
    })?;
    ensure!(answer == "late", "{answer}");
    ensure!(scene.b.stdout().contains("GET /slow/8 "), "{}", scene.b.stdout());
    Ok(())
}

#[test]
fn a_request_that_waits_for_another_attempt_has_left_its_server() -> Result<()> {
    let rules = "[[route.rule]]\nbackends = [{ pool = 'both' }]\nretry = { attempts = 1, backoff = '3s' }\n";
    let health =
        "on_down = 'kill'\nhealth = { check = 'http', path = '/health', interval = '200ms', fall = 1 }\n";
    let both = pool("both", &[8001, 8002], health).replace("8002' }", "8002', backup = true }");
    let scene = Scene::new(rules, &both)?;
    // The server ends the connection, and is down before the next attempt.
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let told = scene.told(&[version, "http://site.example.com/falls/a"])?;
        ensure!(told["name"] == "b", "{told}");
        ensure!(scene.gateway.status()?.server("both", &crate::config::server(8001))["state"] == "down");
        scene.status(&["http://site.example.com/well/a"])?;
    }
    Ok(())
}

#[test]
fn what_is_under_way_ends_with_its_route() -> Result<()> {
    let scene = Scene::new(ALL_TO_A, "")?;
    let with = |route: &str, extra: &str| -> Result<String> {
        let more = format!(
            "[[route]]\nname = '{route}'\nlistener = 'clear'\nsni = ['gone.example.com']\nprotocol = 'http'\n{extra}\n{ALL_TO_A}"
        );
        let config = site(&scene.world, ALL_TO_A, "")?;
        let (routes, pools) = config.split_at(config.find("[[pool]]").context("there are pools")?);
        Ok(format!("{routes}{}\n{pools}", if route.is_empty() { "" } else { &more }))
    };
    scene.gateway.write_config(&with("gone", "on_removal = 'kill'")?)?;
    scene.gateway.reload()?;
    let gone = |path: &str, more: &str, word: &str| -> Result<TcpStream> {
        let mut client = scene.world.connect(80)?;
        write!(client, "GET {path} HTTP/1.1\r\nHost: gone.example.com\r\n{more}\r\n")?;
        let mut said = String::new();
        while !said.contains(word) {
            let mut part = [0; 4096];
            let read = client.read(&mut part)?;
            ensure!(read > 0, "{said}");
            said.push_str(&String::from_utf8_lossy(&part[..read]));
        }
        Ok(client)
    };
    let begun = gone("/stall/60", "", "hello")?;
    let asked = gone("/slow/60", "", "")?;
    let upgraded = gone("/upgrade", "Connection: upgrade\r\nUpgrade: echo\r\n", "101 ")?;
    let mut stays = ask(&scene, "/drip/8", "", "..")?;
    eventually("all to be under way", || {
        let status = scene.gateway.status().ok()?;
        (status.server("a", &crate::config::server(8001))["active"] == 4).then_some(())
    })?;
    scene.gateway.write_config(&with("", "")?)?;
    scene.gateway.reload()?;
    is_reset(begun).context("begun")?;
    is_reset(upgraded).context("upgraded")?;
    let said = crate::world::answer(asked);
    ensure!(said.starts_with("HTTP/1.1 503 "), "{said}");
    stays.read_exact(&mut [0; 6])?;
    ensure!(logged(&scene, "route_removed")? == ["/slow/60", "/stall/60"]);
    let close = |line: &serde_json::Value| line["close_reason"] == "route_removed";
    ensure!(scene.gateway.access_log()?.iter().filter(|line| close(line)).count() == 2);
    Ok(())
}

#[test]
fn one_stream_that_is_late_or_stands_still_is_reset_and_no_other() -> Result<()> {
    let rules = "[[route.rule]]\nmatch = [{ path_prefix = '/late' }]\nrewrite = { path_prefix = '/' }\nrequest_timeout = '1500ms'\n\
                 backends = [{ pool = 'front' }]\n\
                 [[route.rule]]\nbackends = [{ pool = 'front' }]\n";
    let world = World::new()?;
    let files = TempDir::new()?;
    let _behind = serve(&world, "json", "server.py", &["8003", "behind"], 8003)?;
    let _nginx = nginx(&world, &files)?;
    let [a, b] = [("8001", "a", 8001), ("8002", "b", 8002)]
        .map(|(port, name, number)| serve(&world, "json", "server.py", &[port, name], number));
    let config = site(&world, rules, &pool("front", &[9001], "http2 = true"))?
        .replace("name = 'site'\n", "name = 'site'\nidle_timeout = '2s'\n");
    let gateway = world.gateway(&config)?;
    let scene = Scene { gateway, a: a?, b: b?, world };
    let together = scene.together(&[
        "https://site.example.com/drip/20",
        "https://site.example.com/stall/60",
        "https://site.example.com/late/drip/40",
        "https://site.example.com/slow/60",
        "https://site.example.com/drip/16",
    ])?;
    ensure!(together[0] == (0, 200, 20) && together[4] == (0, 200, 16), "{together:?}");
    ensure!(together[1].0 == 92 && together[1].2 == 5, "{together:?}");
    ensure!(together[2].0 == 92 && (1..40).contains(&together[2].2), "{together:?}");
    ensure!(together[3].0 == 92, "{together:?}");
    ensure!(logged(&scene, "idle_timeout")? == ["/slow/60", "/stall/60"]);
    ensure!(logged(&scene, "request_timeout")? == ["/late/drip/40"]);
    ensure!(scene.answers("idle_timeout")? == 2 && scene.answers("request_timeout")? == 1);
    Ok(())
}

#[test]
fn a_deadline_holds_for_a_client_that_takes_nothing() -> Result<()> {
    let rules = "[[route.rule]]\nrequest_timeout = '1s'\nbackends = [{ pool = 'a' }]\n";
    let scene = Scene::new(rules, "")?;
    // More than all buffers on the way hold.
    let client = ask(&scene, "/big/300", "", "200 OK")?;
    eventually("it to be broken off", || {
        logged(&scene, "request_timeout").ok().filter(|paths| paths == &["/big/300"])
    })?;
    let mut client = client;
    let mut buffer = vec![0; 1 << 20];
    let error = loop {
        match client.read(&mut buffer) {
            Ok(0) => anyhow::bail!("the answer has come to an end"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    ensure!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
    ensure!(scene.gateway.access_log()?.iter().any(|line| line["close_reason"] == "request_timeout"));
    Ok(())
}
