//! Single values of the configuration: text to meaning, without position or context.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use rustls::pki_types::ServerName;

use super::mend;
use crate::config::address::{Address, MAX_HOST_NAME, Origin, SERVICE, dns_name, host_name};
use crate::config::controller::Attach;
use crate::config::diagnostic::{Problem, quote};
use crate::config::model::{LogTarget, SniPattern};

/// A span of time, at most [`MAX_DURATION`]; may be zero.
pub(super) fn duration(text: &str) -> Result<Duration, Problem> {
    let duration = humantime::parse_duration(text).map_err(|error| {
        Problem::new(format!("{} is not a duration: {error}", quote(text)))
            .help("a number and a unit: `\"500ms\"`, `\"5s\"`, `\"1h 30m\"`")
    })?;
    if duration > MAX_DURATION {
        return Err(Problem::new(format!("{} is too long", quote(text))).help("at most `\"365days\"`"));
    }
    Ok(duration)
}

/// Far below what overflows when it is added to a clock, far above any use.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A network, or one address as a network of its own. Host bits are kept.
pub(super) fn cidr(text: &str) -> Result<IpNet, Problem> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(ip));
    }
    text.parse().map_err(|_| {
        Problem::new(format!("{} is not a network in CIDR notation", quote(text)))
            .help(or(mend::network(text), "for example `\"10.0.0.0/8\"` or `\"2001:db8::/32\"`"))
    })
}

/// `198.51.100.16-198.51.100.31`, a network, or one address: both ends belong to it.
pub(super) fn address_range(text: &str) -> Result<RangeInclusive<IpAddr>, Problem> {
    let Some((first, last)) = text.split_once('-') else {
        let network = cidr(text)?;
        return Ok(network.network()..=network.broadcast());
    };
    match (first.trim().parse::<IpAddr>(), last.trim().parse::<IpAddr>()) {
        (Ok(first), Ok(last)) if first.is_ipv4() == last.is_ipv4() && first <= last => Ok(first..=last),
        _ => Err(Problem::new(format!("{} is not a range of addresses", quote(text)))
            .help("for example `\"198.51.100.16-198.51.100.31\"` or `\"2001:db8::/120\"`")),
    }
}

/// The name of a controller of the Gateway API.
pub(super) fn controller(text: &str) -> Result<Box<str>, Problem> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~/%!$&'()*+,;=:".contains(c);
    match text.split_once('/') {
        Some((domain, path))
            if !domain.is_empty()
                && !path.is_empty()
                && text.len() <= MAX_NAME
                && text.chars().all(allowed) =>
        {
            Ok(text.into())
        }
        _ => Err(Problem::new(format!("{} is not the name of a controller", quote(text)))
            .help("a domain and a path, for example `\"snisplice.dev/gateway\"`")),
    }
}

/// `spec.loadBalancerClass` of a Service: a name, perhaps with a domain before it.
pub(super) fn load_balancer_class(text: &str) -> Result<Box<str>, Problem> {
    let (domain, name) = text.split_once('/').map_or((None, text), |(domain, name)| (Some(domain), name));
    let is_name = |text: &str, most: usize, extra: &str| {
        let ends = |c: char| c.is_ascii_alphanumeric();
        let allowed = |c: char| ends(c) || extra.contains(c);
        (1..=most).contains(&text.len())
            && text.starts_with(ends)
            && text.ends_with(ends)
            && text.chars().all(allowed)
    };
    match is_name(name, 63, "-._") && domain.is_none_or(|domain| is_name(domain, 253, "-.")) {
        true => Ok(text.into()),
        false => Err(Problem::new(format!("{} is not the class of a load balancer", quote(text)))
            .help("a name, or a domain and a name, for example `\"metallb.io/metallb\"`")),
    }
}

/// The name of a namespace of Kubernetes: a label of DNS (RFC 1123).
pub(super) fn namespace(text: &str) -> Result<Box<str>, Problem> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match (1..=63).contains(&text.len()) && text.chars().all(allowed) {
        true => Ok(text.into()),
        false => Err(Problem::new(format!("{} is not the name of a namespace", quote(text)))
            .help("1 to 63 lower-case letters, digits and `-`")),
    }
}

/// `istio=ingressgateway,app=edge`: labels of Kubernetes and their values.
pub(super) fn labels(text: &str) -> Result<BTreeMap<String, String>, Problem> {
    let problem = |why: &str| {
        Problem::new(format!("{} are not labels: {why}", quote(text)))
            .help("for example `\"istio=eastwestgateway\"`, several with commas between them")
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
    let mut labels = BTreeMap::new();
    for pair in text.split(',') {
        let (label, value) = pair.split_once('=').ok_or_else(|| problem("one has no `=` and value"))?;
        if label.is_empty()
            || label.len() > 317
            || value.len() > 63
            || !pair.replace('=', "").chars().all(allowed)
        {
            return Err(problem("a name or a value is none that Kubernetes takes"));
        }
        if labels.insert(label.to_owned(), value.to_owned()).is_some() {
            return Err(problem("one stands there twice"));
        }
    }
    Ok(labels)
}

/// `10240-29999`: both ends belong to it.
pub(super) fn source_ports(text: &str) -> Result<RangeInclusive<u16>, Problem> {
    let problem = |why: &str| {
        Problem::new(format!("{} is not a range of source ports: {why}", quote(text)))
            .help("for example `\"10240-29999\"`")
    };
    let port = |text: &str| {
        let text = text.trim();
        // Not "+10240", which would parse.
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten()
    };
    let (first, last) = text.split_once('-').ok_or_else(|| problem("two ports with a `-` between them"))?;
    let (first, last): (u16, u16) =
        port(first).zip(port(last)).ok_or_else(|| problem("a port is a number up to 65535"))?;
    if first < MIN_SOURCE_PORT {
        return Err(problem("ports below 1024 belong to services"));
    }
    let range = first..=last;
    if range.len() < MIN_SOURCE_PORTS {
        return Err(problem("it must have at least 256 ports, the lower one first"));
    }
    Ok(range)
}

pub(super) const MIN_SOURCE_PORT: u16 = 1024;
/// With fewer, ports of ended connections would soon get no rest.
pub(super) const MIN_SOURCE_PORTS: usize = 256;

/// An address to listen on.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, Problem> {
    let address: SocketAddr = text.parse().map_err(|_| {
        Problem::new(format!("{} is not an IP address with a port", quote(text))).help(or(
            mend::listen(text, |text| text.parse::<Address>().is_ok()),
            "for example `\"0.0.0.0:443\"` or `\"[::]:443\"`",
        ))
    })?;
    if address.port() == 0 {
        return Err(Problem::new(format!("{} has port 0", quote(text))).help("a port from 1 to 65535"));
    }
    Ok(address)
}

/// Where a server listens: an IP address or a host name, with a port.
pub(super) fn server_address(text: &str) -> Result<Address, Problem> {
    text.parse::<Address>().map_err(|why| {
        let example =
            "for example `\"10.0.0.11:6379\"`, `\"[2001:db8::1]:6379\"` or `\"redis.example.com:6379\"`";
        Problem::new(format!("{} is not the address of a server: {why}", quote(text)))
            .help(or(mend::server(text, |text| text.parse::<Address>().is_ok()), example))
    })
}

/// What an entry of `servers` stands for: the address of a server, or `srv:` and the name of a service.
pub(super) fn server_origin(text: &str) -> Result<Origin, Problem> {
    const EXAMPLE: &str = "`\"srv:_redis._tcp.example.com\"`";
    let Some(name) = text.strip_prefix(SERVICE) else {
        let address = server_address(text).map(Origin::Address);
        return match text.starts_with('_') && !text.contains(':') {
            true => address
                .map_err(|problem| problem.help(format!("for the servers of its SRV records: {EXAMPLE}"))),
            false => address,
        };
    };
    dns_name(name).map(Origin::Service).map_err(|why| {
        let problem = Problem::new(format!("{} is not the name of a service: {why}", quote(text)));
        match name.contains(':') {
            true => problem.help(format!("ports come from its SRV records: {EXAMPLE}")),
            false => problem.help(format!("for example {EXAMPLE}")),
        }
    })
}

/// A server name of a route: exact, `*.example.com`, or `*`.
pub(super) fn sni_pattern(text: &str) -> Result<SniPattern, Problem> {
    parse_sni(text).map_err(|(why, help)| {
        let problem = Problem::new(format!("{} is not a server name: {why}", quote(text)));
        Problem {
            help: mend::sni(text, |text| parse_sni(text).is_ok()).or(help.map(str::to_owned)),
            ..problem
        }
    })
}

/// The same, or why not, and a hint.
pub(super) fn parse_sni(text: &str) -> Result<SniPattern, (&'static str, Option<&'static str>)> {
    if text == "*" {
        return Ok(SniPattern::Any);
    }
    let lower = text.to_ascii_lowercase();
    let (wildcard, host) = match lower.strip_prefix("*.") {
        Some(parent) => (true, parent),
        None => (false, &*lower),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.contains("://") {
        return Err(("it is a URL", None));
    }
    if host.contains('*') {
        let help = "`\"*.example.com\"` for one or more labels, `\"*\"` for every name";
        return Err(("`*` stands only for the whole first label", Some(help)));
    }
    if !host.is_ascii() {
        return Err(("it is not ASCII", Some("clients send the A-label form, `xn--…`: write that")));
    }
    if host.parse::<IpAddr>().is_ok() {
        return Err(("clients send no IP addresses there", Some(mend::NO_ADDRESSES)));
    }
    host_name(host).map_err(|why| (why, None))?;
    Ok(if wildcard { SniPattern::Wildcard(host.into()) } else { SniPattern::Exact(host.into()) })
}

/// The name a server's certificate must bear: a host name or an IP address.
pub(super) fn server_name(text: &str) -> Result<ServerName<'static>, Problem> {
    let name = ServerName::try_from(text).map_err(|_| {
        Problem::new(format!("{} is not a server name", quote(text))).help("a host name or an IP address")
    })?;
    Ok(name.to_owned())
}

/// A protocol name of the ALPN extension.
pub(super) fn alpn(text: &str) -> Result<Box<str>, Problem> {
    match text.len() {
        1..=255 => Ok(text.into()),
        _ => Err(Problem::new(format!("{} is not an ALPN protocol name", quote(text)))
            .help("1 to 255 bytes, for example `\"h2\"` or `\"postgresql\"`")),
    }
}

/// A name that commands and metrics use.
pub(super) fn name(text: &str) -> Result<Box<str>, Problem> {
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || c == '/';
    if text.is_empty() || text.len() > MAX_NAME || text.contains(forbidden) {
        return Err(Problem::new(format!("{} cannot be a name", quote(text)))
            .help("1 to 253 bytes without spaces, control characters and `/`"));
    }
    Ok(text.into())
}

/// A network interface, as the kernel allows it to be named (`dev_valid_name`).
pub(super) fn interface(text: &str) -> Result<String, Problem> {
    let forbidden = |c: char| c.is_ascii_whitespace() || matches!(c, '/' | ':' | '\0');
    if text.len() > MAX_INTERFACE_NAME || matches!(text, "" | "." | "..") || text.contains(forbidden) {
        return Err(Problem::new(format!("{} cannot be a network interface", quote(text)))
            .help("1 to 15 bytes, as `ip link` shows them"));
    }
    Ok(text.into())
}

/// What gets addresses: a device, or none.
pub(super) fn attach(text: &str) -> Result<Attach, Problem> {
    match text {
        "freebind" => Ok(Attach::Freebind),
        device => interface(device).map(|device| Attach::Device(device.into())),
    }
}

/// A file named by the configuration, relative to it.
pub(super) fn path(text: &str) -> Result<PathBuf, Problem> {
    match text {
        "" => Err(Problem::new("an empty path")),
        _ => Ok(PathBuf::from(text)),
    }
}

/// A place that must not depend on the directory a command is started in.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, Problem> {
    match text.starts_with('/') {
        true => Ok(PathBuf::from(text)),
        false => {
            Err(Problem::new(format!("{} is not an absolute path", quote(text))).help("start it with `/`"))
        }
    }
}

/// Where the access log goes.
pub(super) fn log_target(text: &str) -> Result<LogTarget, Problem> {
    match text {
        "-" => Ok(LogTarget::Stdout),
        _ => match absolute_path(text) {
            Ok(path) => Ok(LogTarget::File(path)),
            Err(problem) => Err(problem.help("start it with `/`, or write `\"-\"` for standard output")),
        },
    }
}

/// The directory of the admin socket.
pub(super) fn state_dir(text: &str) -> Result<PathBuf, Problem> {
    if text.len() > MAX_STATE_DIR {
        return Err(Problem::new("this path is too long for a socket in it")
            .help(format!("at most {MAX_STATE_DIR} bytes: the kernel bounds a socket's path at 107")));
    }
    absolute_path(text)
}

/// The hint that fits, or an example.
fn or(hint: Option<String>, example: &str) -> String {
    hint.unwrap_or_else(|| example.to_owned())
}

/// So that every host name can be a name.
const MAX_NAME: usize = MAX_HOST_NAME;

/// IFNAMSIZ, less its terminating zero.
const MAX_INTERFACE_NAME: usize = 15;

/// `sun_path` is 108 bytes with a terminating zero; this leaves room for a file name.
pub(super) const MAX_STATE_DIR: usize = 80;

/// Of PostgreSQL's startup message, which ends each of its words with a zero byte (NAMEDATALEN is 64), and of Redis' AUTH.
pub(in crate::config) fn word(key: &str, text: &str) -> Result<Box<str>, Problem> {
    match text.len() {
        1..=128 if !text.contains(char::is_control) => Ok(text.into()),
        _ => Err(Problem::new(format!("this is no `{key}`"))
            .help("1 to 128 bytes, none of them a control character")),
    }
}

pub(crate) fn is_http_path(text: &str) -> bool {
    text.starts_with('/') && text.len() <= 2048 && text.bytes().all(|b| b.is_ascii_graphic())
}

pub(crate) fn is_http_host(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
}

/// RFC 9112, section 3.2.1: the request's target.
pub(in crate::config) fn http_path(text: &str) -> Result<Box<str>, Problem> {
    match is_http_path(text) {
        true => Ok(text.into()),
        false => Err(Problem::new("this is no path of an HTTP request")
            .help("it begins with `/` and has no spaces: for example `path = \"/health\"`")),
    }
}

/// RFC 9110, section 7.2.
pub(in crate::config) fn http_host(text: &str) -> Result<Box<str>, Problem> {
    match is_http_host(text) {
        true => Ok(text.into()),
        false => Err(Problem::new("this is no host of an HTTP request")
            .help("a name, with a port if it is not 80: for example `host = \"db.example.com:8008\"`")),
    }
}

/// Of MySQL's greeting, where a zero byte ends it.
pub(in crate::config) fn greeting(text: &str) -> Result<Box<str>, Problem> {
    match (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(text.into()),
        false => Err(Problem::new("this is nothing to greet with")
            .help("1 to 64 letters, digits and signs, no spaces")),
    }
}
