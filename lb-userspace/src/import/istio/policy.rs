//! Istio's trafficPolicy, as keys of a pool.

use crate::config::quote;
use crate::import::model::{Extra, Note, Pool};
use crate::import::values::{duration, timeout, toml_string, toml_table};
use crate::import::yaml::Fields;

/// A trafficPolicy as keys of a pool; what a subset says replaces what is there.
pub(super) fn policy_of(policy: &Fields<'_>, pool: &mut Pool) {
    let mut extras = Vec::new();
    if let Some(balancer) = policy.map("loadBalancer") {
        let said = |text: &str| format!("loadBalancer.simple: {text}");
        let at = balancer.at();
        if let Some(simple) = balancer.text("simple") {
            match simple {
                "ROUND_ROBIN" | "UNSPECIFIED" => {
                    extras.push(Extra::new("balance", "\"round-robin\"", at, &said(simple)));
                }
                "LEAST_REQUEST" | "LEAST_CONN" => {
                    extras.push(Extra::new("balance", "\"least-connections\"", at, &said(simple)));
                }
                "RANDOM" => extras.push(Extra::new("balance", "\"random\"", at, &said(simple))),
                _ => pool.notes.push(Note::lost(at, quote(&said(simple)))),
            }
        }
        if let Some(hash) = balancer.map("consistentHash") {
            if hash.is_true("useSourceIp") {
                extras.push(Extra::new(
                    "balance",
                    "\"source-hash\"",
                    hash.at(),
                    "consistentHash.useSourceIp",
                ));
            }
            hash.rest(&mut pool.notes);
        }
        balancer.rest(&mut pool.notes);
    }
    if let Some(connections) = policy.map("connectionPool") {
        if let Some(tcp) = connections.map("tcp") {
            if let Some(text) = tcp.text("connectTimeout") {
                let said = format!("connectTimeout: {text}");
                let time = duration(text, "s");
                extras.extend(time.and_then(|time| timeout("connect_timeout", time, tcp.at(), &said)));
            }
            if let Some(keepalive) = tcp.map("tcpKeepalive") {
                let mut keys = Vec::new();
                keys.extend(keepalive.parsed::<u8>("probes").map(|count| format!("count = {count}")));
                for (key, name) in [("time", "idle"), ("interval", "interval")] {
                    let time = keepalive.text(key).and_then(|text| duration(text, "s"));
                    keys.extend(time.map(|time| format!("{name} = \"{}s\"", time.as_secs().max(1))));
                }
                if !keys.is_empty() {
                    extras.push(Extra::new("keepalive", toml_table(&keys), keepalive.at(), "tcpKeepalive"));
                }
                keepalive.rest(&mut pool.notes);
            }
            tcp.rest(&mut pool.notes);
        }
        connections.rest(&mut pool.notes);
    }
    if let Some(outliers) = policy.map("outlierDetection") {
        let keys = ["consecutive5xxErrors", "consecutiveGatewayErrors", "consecutiveLocalOriginFailures"];
        let failures = keys.iter().filter_map(|key| outliers.parsed::<u32>(key)).max();
        let time = duration(outliers.text("baseEjectionTime").unwrap_or("30s"), "s");
        let mut keys = vec![format!("failures = {}", failures.unwrap_or(5).clamp(1, 1000))];
        let time = time.and_then(|time| timeout("time", time, outliers.at(), ""));
        keys.extend(time.map(|time| format!("time = {}", time.value)));
        extras.push(Extra::new("eject", toml_table(&keys), outliers.at(), "outlierDetection"));
        outliers.rest(&mut pool.notes);
    }
    if let Some(tls) = policy.map("tls") {
        match tls.text("mode").unwrap_or("DISABLE") {
            "DISABLE" => {}
            "SIMPLE" => {
                let mut keys = Vec::new();
                for (key, name) in [("caCertificates", "ca"), ("sni", "server_name")] {
                    keys.extend(tls.text(key).map(|text| format!("{name} = {}", toml_string(text))));
                }
                extras.push(Extra::new("tls", toml_table(&keys), tls.at(), "tls.mode: SIMPLE"));
            }
            mode => {
                pool.notes.push(Note::lost(tls.at(), format!("tls.mode {}: not taken over", quote(mode))))
            }
        }
        tls.rest(&mut pool.notes);
    }
    if let Some(proxy) = policy.map("proxyProtocol") {
        let version = if proxy.text("version") == Some("V2") { "\"v2\"" } else { "\"v1\"" };
        extras.push(Extra::new("send_proxy", version, proxy.at(), "proxyProtocol"));
    }
    policy.rest(&mut pool.notes);
    for extra in extras {
        pool.extras.retain(|known| known.key != extra.key);
        pool.extras.push(extra);
    }
}
