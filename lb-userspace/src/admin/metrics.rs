//! `/metrics`: one [`Scrape`] of the gateway, written as OpenMetrics text.
//!
//! The encoder appends `_total` to a counter's name, and the unit to a metric that has one. The test below checks that the
//! names are those of `docs/admin.md`.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::Operations;
use super::view::{RouteRequests, RouteTier, Scrape};
use crate::histogram::{BOUNDS_US, HistogramSnapshot};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType::{self, Counter, Gauge};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use std::fmt::{self, Debug};
use std::sync::Arc;

/// The `Content-Type` of [`Metrics::text`].
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The gateway's metrics, read anew each time.
pub(super) struct Metrics(Registry);

impl Metrics {
    pub(super) fn new(gateway: Arc<dyn Operations>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Source(gateway)));
        Self(registry)
    }

    pub(super) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.0)?;
        Ok(text)
    }
}

struct Source(Arc<dyn Operations>);

impl Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

impl Collector for Source {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        write(&self.0.scrape(), encoder)
    }
}

fn write(scrape: &Scrape, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
    let encoder = &mut encoder;

    let help = "Connections given a route, by the tier that carries their bytes";
    let mut family = Family::new(encoder, "snisplice_connections", None, help, Counter)?;
    for c in &scrape.connections {
        family.sample(route_tier(c), &ConstCounter::new(c.count.total))?;
    }

    let help = "Connections that are open now";
    let mut family = Family::new(encoder, "snisplice_connections_active", None, help, Gauge)?;
    for c in &scrape.connections {
        family.sample(route_tier(c), &ConstGauge::new(c.count.active))?;
    }

    let help = "Payload bytes, open connections included; in is from clients, out is to clients";
    let mut family = Family::new(encoder, "snisplice", Some(&Unit::Bytes), help, Counter)?;
    for b in &scrape.bytes {
        family.sample([("route", &b.route), ("direction", "in")], &ConstCounter::new(b.bytes_in))?;
        family.sample([("route", &b.route), ("direction", "out")], &ConstCounter::new(b.bytes_out))?;
    }

    let help = "Clients turned away before they had a route";
    let mut family = Family::new(encoder, "snisplice_rejects", None, help, Counter)?;
    for (listener, reason, n) in &scrape.rejects {
        family.sample([("listener", listener), ("reason", reason.name())], &ConstCounter::new(*n))?;
    }

    let help = "Clients whose server name is no DNS host name, routed or turned away";
    let mut family = Family::new(encoder, "snisplice_odd_names", None, help, Counter)?;
    for (listener, kind, n) in &scrape.odd_names {
        family.sample([("listener", listener), ("kind", kind.name())], &ConstCounter::new(*n))?;
    }

    let help = "Clients that a client_rate forgot before their time, because there were too many";
    let mut family = Family::new(encoder, "snisplice_clients_forgotten", None, help, Counter)?;
    for (listener, n) in &scrape.clients_forgotten {
        family.sample([("listener", listener)], &ConstCounter::new(*n))?;
    }

    if !scrape.ech.is_empty() {
        let help = "Clients with an Encrypted ClientHello, by what became of it";
        let mut family = Family::new(encoder, "snisplice_ech", None, help, Counter)?;
        for (listener, result, n) in &scrape.ech {
            family.sample([("listener", &**listener), ("result", result.name())], &ConstCounter::new(*n))?;
        }
    }

    let help = "Connections with a route that ended";
    let mut family = Family::new(encoder, "snisplice_closes", None, help, Counter)?;
    for (route, reason, n) in &scrape.closes {
        family.sample([("route", route), ("reason", reason.name())], &ConstCounter::new(*n))?;
    }

    let help = "Connections of terminated routes in which TLS with the client failed";
    let mut family = Family::new(encoder, "snisplice_tls_errors", None, help, Counter)?;
    for (route, error, n) in &scrape.tls_errors {
        family.sample([("route", route), ("error", error.name())], &ConstCounter::new(*n))?;
    }

    if !scrape.requests.is_empty() {
        write_requests(encoder, &scrape.requests)?;
    }

    let help = "Connections that did not get an earlier tier of the configured order";
    let mut family = Family::new(encoder, "snisplice_tier_fallbacks", None, help, Counter)?;
    for (reason, n) in &scrape.fallbacks {
        family.sample([("reason", reason.name())], &ConstCounter::new(*n))?;
    }

    let help = "1 if the server takes new connections, else 0";
    let mut family = Family::new(encoder, "snisplice_server_up", None, help, Gauge)?;
    for s in &scrape.servers {
        family.sample([("pool", &s.pool), ("server", &s.server)], &ConstGauge::new(u32::from(s.up)))?;
    }

    if !scrape.waiting.is_empty() {
        let help = "Connections that wait for a place with a server: each has its max_connections";
        let mut family = Family::new(encoder, "snisplice_pool_waiting", None, help, Gauge)?;
        for (pool, waiting) in &scrape.waiting {
            family.sample([("pool", pool)], &ConstGauge::new(*waiting))?;
        }
    }

    if !scrape.objects.is_empty() {
        let help = "Objects of the Gateway API, by a condition that they have";
        let mut family = Family::new(encoder, "snisplice_objects", None, help, Gauge)?;
        for (kind, condition, n) in &scrape.objects {
            family.sample([("kind", kind), ("condition", condition)], &ConstGauge::new(*n))?;
        }
    }

    let help = "Health checks of a server";
    let mut family = Family::new(encoder, "snisplice_server_checks", None, help, Counter)?;
    for s in &scrape.servers {
        for (result, n) in &s.checks {
            let labels = [("pool", &*s.pool), ("server", &*s.server), ("result", *result)];
            family.sample(labels, &ConstCounter::new(u64::from(*n)))?;
        }
    }

    let help = "Failures of TLS with a server of a pool with tls";
    let mut family = Family::new(encoder, "snisplice_server_tls_errors", None, help, Counter)?;
    for s in &scrape.servers {
        for (error, n) in &s.tls_errors {
            let labels = [("pool", &*s.pool), ("server", &*s.server), ("error", error.name())];
            family.sample(labels, &ConstCounter::new(*n))?;
        }
    }

    let help = "From accept to a whole ClientHello";
    write_histogram(encoder, "snisplice_sniff", help, &scrape.sniff)?;
    let help = "From the first dial to a connected server";
    write_histogram(encoder, "snisplice_connect", help, &scrape.connect)?;
    let help = "From a known route, server connected meanwhile, to flows in the kernel: connections of the packet tier";
    write_histogram(encoder, "snisplice_handover", help, &scrape.handover)?;

    if let Some(packets) = &scrape.packets {
        let help = "Packets of connections in the packet tier that were dropped";
        let mut family = Family::new(encoder, "snisplice_packet_drops", None, help, Counter)?;
        for (reason, n) in &packets.drops {
            family.sample([("reason", reason)], &ConstCounter::new(*n))?;
        }
        let help = "Packets that the packet tier noticed and did not drop";
        let mut family = Family::new(encoder, "snisplice_packet_notes", None, help, Counter)?;
        for (note, n) in &packets.notes {
            family.sample([("note", note)], &ConstCounter::new(*n))?;
        }
    }
    if let Some(table) = scrape.flow_table {
        let help = "Flows in the kernel's flow table, two per connection";
        Family::new(encoder, "snisplice_flow_table_entries", None, help, Gauge)?.value(table.entries)?;
        let help = "Flows the kernel's flow table can hold";
        Family::new(encoder, "snisplice_flow_table_capacity", None, help, Gauge)?.value(table.capacity)?;
    }

    let help = "Reloads of the configuration";
    let mut family = Family::new(encoder, "snisplice_config_reloads", None, help, Counter)?;
    family.sample([("result", "success")], &ConstCounter::new(scrape.reloads_succeeded))?;
    family.sample([("result", "failure")], &ConstCounter::new(scrape.reloads_failed))?;

    let help = "When the certificate of a terminated route expires, in seconds since 1970";
    let mut family = Family::new(encoder, "snisplice_certificate_expiry", Some(&Unit::Seconds), help, Gauge)?;
    for (route, expiry) in &scrape.certificates {
        family.sample([("route", route)], &ConstGauge::new(*expiry))?;
    }

    let help = "When the first CRL of a route's client certificates expires, in seconds since 1970";
    let mut family = Family::new(encoder, "snisplice_crl_expiry", Some(&Unit::Seconds), help, Gauge)?;
    for (route, expiry) in &scrape.crls {
        family.sample([("route", route)], &ConstGauge::new(*expiry))?;
    }
    Ok(())
}

fn write_requests(encoder: &mut DescriptorEncoder<'_>, of_routes: &[RouteRequests]) -> fmt::Result {
    let help = "Requests of HTTP, by the class of the status of their answer";
    let mut family = Family::new(encoder, "snisplice_http_requests", None, help, Counter)?;
    for of in of_routes {
        for (code, n) in &of.by_code {
            family.sample([("route", &*of.route), ("code", *code)], &ConstCounter::new(*n))?;
        }
    }

    let help = "Requests of HTTP that the gateway has answered itself, or broken off";
    let mut family = Family::new(encoder, "snisplice_http_answers", None, help, Counter)?;
    for of in of_routes {
        for (reason, n) in &of.answers {
            family.sample([("route", &*of.route), ("reason", reason.name())], &ConstCounter::new(*n))?;
        }
    }

    let help = "From the head of a request of HTTP to the end of its answer";
    let (name, unit) = ("snisplice_http_request", Unit::Seconds);
    let mut family = Family::new(encoder, name, Some(&unit), help, MetricType::Histogram)?;
    for of in of_routes {
        family.histogram([("route", &*of.route)], &of.seconds)?;
    }
    Ok(())
}

fn route_tier(c: &RouteTier) -> [(&str, &str); 3] {
    [("listener", &c.listener), ("route", &c.route), ("tier", c.tier.name())]
}

fn write_histogram(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    seen: &HistogramSnapshot,
) -> fmt::Result {
    let mut family = Family::new(encoder, name, Some(&Unit::Seconds), help, MetricType::Histogram)?;
    encode_histogram(&mut family.0, seen)
}

fn encode_histogram(encoder: &mut MetricEncoder<'_>, seen: &HistogramSnapshot) -> fmt::Result {
    let bounds = BOUNDS_US.iter().map(|&us| us as f64 / 1e6).chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(seen.buckets).collect();
    encoder.encode_histogram::<NoLabelSet>(seen.sum.as_secs_f64(), seen.count(), &buckets, None)
}

/// One metric; its header is written even if no sample follows.
struct Family<'a>(MetricEncoder<'a>);

impl<'a> Family<'a> {
    fn new(
        encoder: &'a mut DescriptorEncoder<'_>,
        name: &'a str,
        unit: Option<&'a Unit>,
        help: &str,
        kind: MetricType,
    ) -> Result<Self, fmt::Error> {
        encoder.encode_descriptor(name, help, unit, kind).map(Self)
    }

    fn sample<const N: usize>(
        &mut self,
        labels: [(&str, &str); N],
        value: &impl EncodeMetric,
    ) -> fmt::Result {
        value.encode(self.0.encode_family(&labels)?)
    }

    fn histogram<const N: usize>(
        &mut self,
        labels: [(&str, &str); N],
        seen: &HistogramSnapshot,
    ) -> fmt::Result {
        encode_histogram(&mut self.0.encode_family(&labels)?, seen)
    }

    fn value(self, value: u64) -> fmt::Result {
        ConstGauge::new(value).encode(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake::Fake;
    use crate::admin::view::FlowTable;

    const SCRAPE: &str = include_str!("scrape.txt");

    #[test]
    fn a_scrape_is_this_text() {
        let text = Metrics::new(Arc::new(Fake::default())).text().unwrap();
        assert_eq!(text, SCRAPE, "\n{text}");
    }

    #[test]
    fn the_flow_table_shows_once_there_is_one() {
        let gateway =
            Fake { flow_table: Some(FlowTable { entries: 4, capacity: 1 << 19 }), ..Fake::default() };
        let text = Metrics::new(Arc::new(gateway)).text().unwrap();
        assert!(text.contains("\nsnisplice_flow_table_entries 4\n"), "{text}");
        assert!(text.contains("\nsnisplice_flow_table_capacity 524288\n"), "{text}");
    }

    #[test]
    fn packets_do_not_show_where_there_is_no_packet_tier() {
        let text = Metrics::new(Arc::new(Fake { packets: None, ..Fake::default() })).text().unwrap();
        assert!(!text.contains("snisplice_packet_"), "{text}");
    }

    #[test]
    fn a_name_with_quotes_and_newlines_stays_inside_its_label() {
        let gateway = Fake { route_name: "a\"} 1\nevil{x=\"\\".into(), ..Fake::default() };
        let text = Metrics::new(Arc::new(gateway)).text().unwrap();
        let name = r#"a\"} 1\nevil{x=\"\\"#;
        assert!(
            text.contains(&format!("snisplice_bytes_total{{route=\"{name}\",direction=\"in\"}} 1\n")),
            "{text}"
        );
        assert!(text.lines().all(|line| line.starts_with("snisplice_") || line.starts_with('#')), "{text}");
    }

    #[test]
    fn the_documentation_names_every_metric() {
        let doc = include_str!("../../../docs/admin.md");
        for line in SCRAPE.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let name =
                ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
            assert!(doc.contains(&format!("`{name}")), "{name}");
        }
        // Alerts, in blocks of their own.
        let alerts = doc.split("```").skip(1).step_by(2).flat_map(str::lines);
        let names: Vec<_> = alerts
            .flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
            .filter(|word| word.starts_with("snisplice_"))
            .collect();
        assert!(names.len() > 5);
        for name in names {
            assert!(SCRAPE.contains(&format!("\n{name}{{")), "{name}");
        }
    }
}
