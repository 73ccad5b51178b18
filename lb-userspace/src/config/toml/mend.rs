//! What a value may have been meant to be that is no address, network or server name: the hint beside the error.
//!
//! Every value suggested has been tried with the parser that refused the first, so that the hint does not lead to the next
//! error.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The port that a URL of this scheme means when it names none.
const PORTS: [(&str, u16); 12] = [
    ("redis", 6379),
    ("rediss", 6379),
    ("postgres", 5432),
    ("postgresql", 5432),
    ("mysql", 3306),
    ("mariadb", 3306),
    ("mongodb", 27017),
    ("amqp", 5672),
    ("amqps", 5671),
    ("http", 80),
    ("https", 443),
    ("ftp", 21),
];

/// Text without what people put around a host: spaces, a URL's scheme, user, path and query.
struct Bare<'t> {
    /// With its port, if it has one.
    host: &'t str,
    /// The scheme's.
    port: Option<u16>,
    is_url: bool,
}

impl<'t> Bare<'t> {
    fn of(text: &'t str) -> Self {
        let text = text.trim();
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, text),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let known = |scheme: &str| PORTS.iter().find(|(name, _)| name.eq_ignore_ascii_case(scheme));
        Self {
            host,
            port: scheme.and_then(known).map(|(_, port)| *port),
            is_url: scheme.is_some() || host.len() < text.len(),
        }
    }

    /// "without `http://` and the like: ", where something was taken away.
    fn why(&self) -> &'static str {
        if self.is_url { "not a URL, only host and port: " } else { "" }
    }
}

/// The hint for the address of a server; `is_server`: whether a text is one.
pub(super) fn server(text: &str, is_server: impl Fn(&str) -> bool) -> Option<String> {
    if is_socket(text) {
        return Some("servers are reached by TCP: for example `\"127.0.0.1:6379\"`".to_owned());
    }
    if let Some(items) = list(text, &is_server) {
        return Some(items);
    }
    let bare = Bare::of(text);
    if let Some(port) = bare.host.strip_prefix(['*', ':']) {
        let here = format!("127.0.0.1:{}", port.trim_start_matches(':'));
        return is_server(&here).then(|| format!("name the host; this one is `\"{here}\"`"));
    }
    if is_server(bare.host) {
        return Some(format!("{}`\"{}\"`", bare.why(), bare.host));
    }
    if let Some(bracketed) = bracketed(bare.host) {
        return Some(format!("`\"{bracketed}\"`"));
    }
    let host = match bare.host.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]"),
        Err(_) => bare.host.to_owned(),
    };
    // Port 1 stands for any.
    is_server(&format!("{host}:1")).then(|| match bare.port {
        Some(port) => format!("{}`\"{host}:{port}\"`", bare.why()),
        None => format!("add the port that the server listens on: `\"{host}:PORT\"`"),
    })
}

/// The hint for an address to listen on; `is_server`: whether a text is a host, maybe by name, and a port.
pub(super) fn listen(text: &str, is_server: impl Fn(&str) -> bool) -> Option<String> {
    let is_address = |text: &str| text.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0);
    if is_socket(text) {
        return Some("it listens on TCP alone: for example `\"127.0.0.1:9900\"`".to_owned());
    }
    if let Some(items) = list(text, is_address) {
        return Some(items);
    }
    let bare = Bare::of(text);
    // `443 ssl` of other configurations.
    let host = bare.host.split_whitespace().next().unwrap_or_default();
    if let Ok(port @ 1..) = host.trim_start_matches(['*', ':']).parse::<u16>()
        && (host.parse::<IpAddr>().is_err() || is_long(port))
    {
        return Some(format!("on all addresses: `\"0.0.0.0:{port}\"` and `\"[::]:{port}\"`"));
    }
    if is_address(host) {
        let why = if bare.is_url { "not a URL, only address and port: " } else { "" };
        return Some(format!("{why}`\"{host}\"`"));
    }
    if let Some(bracketed) = bracketed(host) {
        return Some(format!("`\"{bracketed}\"`"));
    }
    if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Some(match ip {
            IpAddr::V4(ip) => format!("add a port: `\"{ip}:PORT\"`"),
            IpAddr::V6(ip) => format!("add a port: `\"[{ip}]:PORT\"`"),
        });
    }
    let (name, port) = host.rsplit_once(':').unwrap_or((host, ""));
    if name.eq_ignore_ascii_case("localhost") {
        let port = if port.parse::<u16>().is_ok() { port } else { "PORT" };
        return Some(format!("`\"127.0.0.1:{port}\"` or `\"[::1]:{port}\"`"));
    }
    let is_name = is_server(&format!("{name}:1")) && name.contains(|c: char| c.is_ascii_alphabetic());
    is_name.then(|| {
        "names are not looked up here: write an address of this host, or `\"0.0.0.0:PORT\"`".to_owned()
    })
}

/// The hint for a server name of a route; `is_name`: whether a text is one.
pub(super) fn sni(text: &str, is_name: impl Fn(&str) -> bool) -> Option<String> {
    let dotted = |text: &str| text.contains('.') && is_name(text);
    if text.trim().is_empty() {
        return Some("`\"*\"` takes every name, and clients that send none".to_owned());
    }
    if let Some(items) = list(text, dotted) {
        return Some(items);
    }
    if text.starts_with(['~', '^']) || text.ends_with('$') || text.contains(['\\', '(', '|', '+']) {
        return Some(
            "no regular expressions; `\"*.example.com\"` is every name below `example.com`".to_owned(),
        );
    }
    let host = Bare::of(text).host;
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return Some(NO_ADDRESSES.to_owned());
    }
    if let Some(parent) = host.strip_prefix('.')
        && dotted(parent)
    {
        return Some(format!("`\"*.{parent}\"` for the names below it, `\"{parent}\"` for itself"));
    }
    if is_name(host) {
        return Some(format!("the name alone: `\"{host}\"`"));
    }
    // `*.*.example.com`, `*example.com`.
    let parent = host.trim_start_matches(['*', '.']);
    (host.starts_with('*') && dotted(parent))
        .then(|| format!("`\"*.{parent}\"` covers one or more labels in front of `{parent}`"))
}

/// The hint for an IP address where a server name belongs.
pub(super) const NO_ADDRESSES: &str = "`\"*\"` takes clients without a name";

/// The hint for a network.
pub(super) fn network(text: &str) -> Option<String> {
    const EVERYBODY: [&str; 5] = ["*", "all", "any", "0/0", "everyone"];
    let bare = text.trim();
    if EVERYBODY.iter().any(|word| bare.eq_ignore_ascii_case(word)) {
        return Some("everybody: `\"0.0.0.0/0\"` and `\"::/0\"`".to_owned());
    }
    if bare.eq_ignore_ascii_case("localhost") {
        return Some("`\"127.0.0.0/8\"` and `\"::1\"`".to_owned());
    }
    let is_network = |text: &str| text.parse::<IpAddr>().is_ok() || text.parse::<ipnet::IpNet>().is_ok();
    if let Some(items) = list(text, is_network) {
        return Some(items);
    }
    if is_network(bare) {
        return Some(format!("`\"{bare}\"`"));
    }
    if let Some((ip, mask)) = bare.split_once('/')
        && let (Ok(ip), Ok(mask)) = (ip.parse::<Ipv4Addr>(), mask.parse::<Ipv4Addr>())
    {
        return ipnet::Ipv4Net::with_netmask(ip, mask).ok().map(|net| format!("`\"{}\"`", net.trunc()));
    }
    let ip = match bare.parse::<SocketAddr>() {
        Ok(address) => Some(address.ip()),
        Err(_) => bare.trim_matches(['[', ']']).parse().ok(),
    };
    ip.map(|ip| format!("the address alone: `\"{ip}\"`"))
}

/// A Unix socket, as other programs name one.
fn is_socket(text: &str) -> bool {
    let text = text.trim();
    text.starts_with(['/', '@']) || text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("unix:"))
}

/// The last group of what may be an IPv6 address too: with fewer digits it is taken to be part of one.
fn is_long(port: u16) -> bool {
    port > 99
}

/// `2001:db8::1:443`, whose last group was meant as the port.
fn bracketed(text: &str) -> Option<String> {
    let (ip, port) = text.rsplit_once(':')?;
    let (ip, port) = (ip.parse::<Ipv6Addr>().ok()?, port.parse::<u16>().ok()?);
    is_long(port).then(|| format!("[{ip}]:{port}"))
}

/// Several values in one text, separated as in other configurations.
fn list(text: &str, is_item: impl Fn(&str) -> bool) -> Option<String> {
    const MOST: usize = 4;
    let items = || text.split([',', ';', ' ']).filter(|item| !item.is_empty());
    let several = (2..=MOST).contains(&items().take(MOST + 1).count());
    (several && items().all(is_item)).then(|| {
        let quoted: Vec<_> = items().map(|item| format!("`\"{item}\"`")).collect();
        format!("one item for each: {}", quoted.join(", "))
    })
}
