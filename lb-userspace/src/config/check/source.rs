//! `source` of a pool.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::names::Names;
use crate::config::address::{Host, Origin};
use crate::config::diagnostic::{Diagnostic, Report, quote};
use crate::config::draft::{Draft, PoolDraft, RouteDraft, items};
use crate::config::model::{Listener, SourceAddress};
use std::net::IpAddr;

/// Warns of what does not go with the client's address.
pub(super) fn warn(draft: &PoolDraft, report: &mut Report) {
    if draft.source.get() != Some(SourceAddress::Client) {
        return;
    }
    if let Some(header) = draft.send_proxy.given() {
        let message =
            "`send_proxy` beside `source = \"client\"`: servers are told the client's address twice";
        report.push(Diagnostic::warning(&header.place, message).help("take one of them out"));
    }
    for server in items(&draft.servers) {
        let Some(address) = server.value.address.given() else { continue };
        if ip(&address.value).is_some_and(|ip| ip.is_loopback()) {
            let message =
                "a server on the gateway itself answers clients elsewhere directly, past the gateway";
            let warning = Diagnostic::warning(&address.place, message);
            report.push(warning.help("`source = \"client\"` is for servers that answer through the gateway"));
        }
    }
}

/// A route to servers that see the client's address needs clients of the servers' families. Those of names are not known
/// here, and not those of clients whose address a proxy says.
pub(super) fn reject_other_families(
    draft: &Draft,
    route: &RouteDraft,
    listener: &Listener,
    pools: &Names,
    report: &mut Report,
) {
    if listener.proxy_protocol || listener.bind.is_empty() {
        return;
    }
    for name in route.pools() {
        let Some(pool) = pools.find(&name.value).map(|index| &draft.pools[index]) else { continue };
        let Some(source) = pool.source.given().filter(|source| source.value == SourceAddress::Client) else {
            continue;
        };
        let servers = items(&pool.servers).iter().map(|server| server.value.address.given());
        let servers: Option<Vec<IpAddr>> = servers.map(|address| ip(&address?.value)).collect();
        let Some(servers) = servers.filter(|servers| !servers.is_empty()) else { continue };
        let lacks = |ipv4| {
            listener.bind.iter().any(|bind| bind.is_ipv4() == ipv4)
                && servers.iter().all(|server| server.is_ipv4() != ipv4)
        };
        let family = match [lacks(true), lacks(false)] {
            [true, _] => "IPv4",
            [_, true] => "IPv6",
            _ => continue,
        };
        let none = listener.bind.iter().all(|bind| lacks(bind.is_ipv4()));
        let message =
            format!("{family} clients of this route can reach no server of the pool {}", quote(&name.value));
        let found = match none {
            true => Diagnostic::error(&name.place, message),
            false => Diagnostic::warning(&name.place, message),
        };
        let found = found.related(&source.place, "servers see the client's address");
        report.push(found.help(
            "an address of one family cannot be a source toward the other: take `source` out, or add servers",
        ));
    }
}

/// The server's address, if it is written as one.
fn ip(origin: &Origin) -> Option<IpAddr> {
    match origin {
        Origin::Address(address) => match address.host {
            Host::Ip(ip) => Some(ip),
            Host::Name(_) => None,
        },
        Origin::Service(_) => None,
    }
}
