//! Who reached what, by which tier, from the gateway's own access log.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::Value;
use snisplice_tests::Status;

/// One line for each name and way.
#[derive(Default)]
struct Row {
    connections: u64,
    bytes_in: u64,
    bytes_out: u64,
}

pub(crate) fn print(log: &[Value]) {
    let mut rows: BTreeMap<[String; 4], Row> = BTreeMap::new();
    for line in log.iter().filter(|line| line["route"].is_string()) {
        let text = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
        let row = rows.entry([text("sni"), text("server"), text("tier"), text("tier_reason")]).or_default();
        row.connections += 1;
        row.bytes_in += line["bytes_in"].as_u64().unwrap_or(0);
        row.bytes_out += line["bytes_out"].as_u64().unwrap_or(0);
    }
    println!(
        "  {:<23} {:<14} {:<9} {:>5} {:>9} {:>9}  {:<5} because",
        "asked for", "reached", "TLS ended", "conns", "bytes in", "bytes out", "tier"
    );
    for ([sni, server, tier, reason], row) in &rows {
        let tls = if reason == "tls_terminated" { "gateway" } else { "server" };
        println!(
            "  {sni:<23} {server:<14} {tls:<9} {:>5} {:>9} {:>9}  {tier:<5} {reason}",
            row.connections, row.bytes_in, row.bytes_out
        );
    }
    for line in log.iter().filter(|line| line["route"].is_null()) {
        println!(
            "  refused: {} ({})",
            line["client"].as_str().unwrap_or("-"),
            line["close_reason"].as_str().unwrap_or("-")
        );
    }
}

/// The demo worked only if the gateway's books agree with what the client did: the access log of both processes, and
/// the counters of the second one, which began with the connection it adopted.
pub(crate) fn verify(first: &[Value], log: &[Value], status: &Status) -> Result<()> {
    for (route, connections, adopted) in [("app1", 3, 1), ("app2", 1, 0), ("app3", 1, 0)] {
        let total = status.route(route, "total");
        ensure!(total == adopted, "route {route} counted {total} connections instead of {adopted}");
        let tier = if route == "app1" { "packet" } else { "copy" };
        ensure!(
            log.iter().filter(|line| line["route"] == route).all(|line| line["tier"] == tier),
            "route {route} was not in the tier {tier}"
        );
        let logged = log.iter().filter(|line| line["route"] == route).count() as u64;
        ensure!(logged == connections, "route {route} has {logged} lines in the access log");
    }
    let refused = first.iter().filter(|line| line["close_reason"] == "unknown_sni").count();
    ensure!(refused == 1, "{refused} clients were refused for their name, instead of one");
    Ok(())
}
