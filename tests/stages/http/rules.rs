//! What rules do beside choosing a pool.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use snisplice_tests::eventually;

use super::{Scene, WAYS, header};
use crate::config::pool;

#[test]
fn weights_are_kept_to_a_hair() -> Result<()> {
    let rules = "[[route.rule]]\nbackends = [{ pool = 'a', weight = 1 }, { pool = 'b', weight = 99 }]\n";
    let scene = Scene::new(rules, "")?;
    let urls = vec!["http://site.example.com/status/200"; 500];
    let shown = scene.fetch(&[&["--include"], &urls[..]].concat())?;
    let mut by_server = BTreeMap::new();
    for line in
        shown.to_lowercase().lines().filter_map(|line| line.strip_prefix("x-server: ").map(str::to_owned))
    {
        *by_server.entry(line).or_insert(0) += 1;
    }
    let a = by_server.get("a").copied().unwrap_or(0);
    assert!((4..=6).contains(&a) && by_server["b"] == 500 - a, "{by_server:?}");
    Ok(())
}

#[test]
fn failures_are_tried_again_with_the_same_body() -> Result<()> {
    let rules = "[[route.rule]]\nbackends = [{ pool = 'a' }]\n\
                 retry = { attempts = 2, statuses = [503], backoff = '10ms' }\n";
    let scene = Scene::new(rules, "")?;
    for (n, (version, site)) in WAYS.into_iter().enumerate() {
        let answer = scene.fetch(&[version, "--data", "words", &format!("{site}/flaky/2/{n}")])?;
        let (tries, first) = answer.split_once(' ').unwrap_or_default();
        assert_eq!(tries, "3", "{answer}");
        let once = scene.fetch(&[version, "--data", "words", &format!("{site}/flaky/0/once{n}")])?;
        assert_eq!(once, format!("1 {first}"));
        assert_eq!(scene.status(&[version, &format!("{site}/flaky/5/more{n}")])?, "503");
    }
    Ok(())
}

#[test]
fn copies_go_to_the_mirror_and_their_answers_nowhere() -> Result<()> {
    let rules = "[[route.rule]]\nbackends = [{ pool = 'a' }]\nmirror = [{ pool = 'b' }]\n";
    let scene = Scene::new(rules, "")?;
    for (n, (version, site)) in WAYS.into_iter().enumerate() {
        let told = scene.told(&[version, "--data", "words", &format!("{site}/copy{n}")])?;
        assert_eq!(told["name"], "a");
        eventually("the copy", || {
            scene.b.stdout().contains(&format!("b \"POST /copy{n} HTTP/1.1\" 200")).then_some(())
        })?;
    }
    Ok(())
}

#[test]
fn a_client_stays_at_its_server() -> Result<()> {
    let rules = "[[route.rule]]\nbackends = [{ pool = 'a', weight = 1 }, { pool = 'b', weight = 1 }]\n\
                 session = { cookie = 'mark' }\n";
    let scene = Scene::new(rules, "")?;
    let url = "https://site.example.com/";
    let mut seen = BTreeSet::new();
    // Whose turn it is when a new client comes depends on the requests before.
    for _ in 0..20 {
        let head = scene.fetch(&["--include", "--output", "-", url])?;
        let cookie = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let pair = value.split(';').next()?;
            (name.eq_ignore_ascii_case("set-cookie") && pair.starts_with("mark=")).then(|| pair.to_owned())
        });
        let cookie = cookie.unwrap_or_else(|| panic!("{head}"));
        let name = |told: serde_json::Value| told["name"].as_str().unwrap_or_default().to_owned();
        let first = name(scene.told(&["--cookie", &cookie, url])?);
        for _ in 0..6 {
            assert_eq!(name(scene.told(&["--cookie", &cookie, url])?), first);
        }
        seen.insert(first);
        if seen.len() == 2 {
            break;
        }
    }
    assert!(seen.iter().eq(["a", "b"]), "{seen:?}");
    Ok(())
}

#[test]
fn a_server_that_has_not_answered_is_left_for_the_next_attempt() -> Result<()> {
    let rules = "[[route.rule]]\nbackends = [{ pool = 'both' }]\nretry = { attempts = 1 }\nsession = { header = 'x-mark' }\n";
    let scene = Scene::new(rules, &pool("both", &[8001, 8002], ""))?;
    let url = "http://site.example.com";
    let mark = |head: &str| {
        let line = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("x-mark: ").map(str::to_owned));
        line.unwrap_or_else(|| panic!("{head}"))
    };
    for name in ["a", "b"] {
        // Its turn comes with one of the next requests.
        let head = eventually("the server's turn", || {
            let head = scene.fetch(&["--include", url]).ok()?;
            head.contains(&format!("\"name\": \"{name}\"")).then_some(head)
        })?;
        let mark = format!("x-mark: {}", mark(&head));
        let told = scene.told(&["-H", &mark, &format!("{url}/ends/{name}")])?;
        assert_ne!(told["name"], *name);
        // It is asked all the same if there is no other.
        let told = scene.told(&["-H", &mark, &format!("{url}/well")])?;
        assert_eq!(told["name"], *name);
    }
    Ok(())
}

#[test]
fn every_request_is_in_the_log_and_in_the_metrics() -> Result<()> {
    let scene = Scene::new(super::ALL_TO_A, "")?;
    scene.told(&["--http2", "--data", "words", "https://site.example.com/a/b?secret=1"])?;
    assert_eq!(scene.status(&["-H", "Host: x.example.com", "http://site.example.com/"])?, "404");
    let lines = scene.gateway.wait_access_log(4)?;
    let line = lines.iter().find(|line| line["method"] == "POST").expect("the request's line");
    for (key, value) in [
        ("path", "/a/b"),
        ("host", "site.example.com"),
        ("route", "site"),
        ("pool", "a"),
        ("end", "complete"),
    ] {
        assert_eq!(line[key], value, "{line}");
    }
    assert_eq!((&line["status"], &line["bytes_in"]), (&200.into(), &5.into()), "{line}");
    let line = lines.iter().find(|line| line["status"] == 404).expect("the other one's");
    assert_eq!((&line["end"], &line["route"]), (&"no_route".into(), &"clear".into()), "{line}");
    let told = scene.told(&["http://site.example.com/", "-H", "X-Many: 1", "-H", "X-Many: 2"])?;
    assert_eq!(header(&told, "x-many"), ["1", "2"]);
    Ok(())
}
