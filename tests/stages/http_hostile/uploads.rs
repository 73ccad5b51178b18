//! Bodies of requests that end before their time, or are sent more than once: a server gets a whole one, or none.

use anyhow::{Context as _, Result};

use super::Scene;
use super::frames::{PING, RST_STREAM, Raw, usual};

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
