//! Istio's VirtualService: which clients of a Gateway go where.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::destination::{Weighted, all_shares};
use super::host::{gateway, pattern, reject_many};
use super::http::{HttpSpec, MatchSpec};
use crate::config::diagnostic::quote;
use crate::config::gateway_api::decode::{Given, decode};
use crate::config::gateway_api::key::{Key, Name};
use crate::config::gateway_api::refusal::Refusal;
use crate::config::gateway_api::requests::Expressions;
use crate::config::gateway_api::route::RequestRule;
use crate::config::gateway_api::specs::BackendRef;
use crate::config::hostname::intersection;
use crate::config::model::SniPattern;

/// Destinations of a rule at most, and matches of an object.
const MOST: usize = 100;

/// A VirtualService, as far as it is for gateways.
#[derive(Debug, PartialEq)]
pub(in crate::config::gateway_api) struct VirtualService {
    pub(in crate::config::gateway_api) hosts: Vec<SniPattern>,
    /// Not empty; without `mesh`, which are the sidecars.
    pub(in crate::config::gateway_api) gateways: Vec<Key>,
    pub(in crate::config::gateway_api) export_to: Vec<Box<str>>,
    /// In the order in which they count.
    pub(in crate::config::gateway_api) rules: Vec<Rule>,
    /// What is asked for and not served.
    pub(in crate::config::gateway_api) unserved: Vec<String>,
}

/// A match of a rule.
#[derive(Debug, PartialEq)]
pub(in crate::config::gateway_api) struct Rule {
    /// As in names of routes: `tls-0`.
    pub(in crate::config::gateway_api) name: String,
    /// `spec.tls[0]`.
    pub(in crate::config::gateway_api) path: String,
    /// It is for clients whose TLS is passed through.
    pub(in crate::config::gateway_api) is_tls: bool,
    pub(in crate::config::gateway_api) hosts: Vec<SniPattern>,
    /// Of the server; absent: of every one.
    pub(in crate::config::gateway_api) port: Option<u16>,
    /// Absent: those of the VirtualService.
    pub(in crate::config::gateway_api) gateways: Option<Vec<Key>>,
    /// Empty: its clients are refused.
    pub(in crate::config::gateway_api) backends: Arc<[BackendRef]>,
    /// It is for requests of HTTP.
    pub(in crate::config::gateway_api) request: Option<RequestRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    hosts: Vec<Box<str>>,
    #[serde(default)]
    gateways: Vec<Box<str>>,
    #[serde(default)]
    http: Vec<HttpSpec>,
    #[serde(default)]
    tls: Vec<RuleSpec>,
    #[serde(default)]
    tcp: Vec<RuleSpec>,
    #[serde(default)]
    export_to: Vec<Box<str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleSpec {
    #[serde(default, rename = "match")]
    matches: Vec<Match>,
    #[serde(default)]
    route: Vec<Weighted>,
}

/// A key that is not known may narrow who is meant.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Match {
    #[serde(default)]
    sni_hosts: Vec<Box<str>>,
    port: Option<u16>,
    #[serde(default)]
    gateways: Vec<Box<str>>,
    #[serde(default)]
    destination_subnets: Given,
    #[serde(default)]
    source_subnet: Given,
    #[serde(default)]
    source_labels: Given,
    #[serde(default)]
    source_namespace: Given,
}

impl VirtualService {
    pub(in crate::config::gateway_api) fn read(spec: Value, key: &Key) -> Result<Self, Refusal> {
        let namespace = &*key.name.namespace;
        let Spec { hosts, gateways, http, tls, tcp, export_to } = decode("spec", spec)?;
        let of_matches = |rules: &[RuleSpec]| {
            rules.iter().flat_map(|rule| &rule.matches).map(|each| each.sni_hosts.len().max(1)).sum::<usize>()
        };
        let of_http: usize = http.iter().map(|rule| rule.matches.len().max(1)).sum();
        if of_http > MOST {
            return Err(Refusal::new("spec.http", format!("more than {MOST} matches")));
        }
        reject_many("spec", hosts.len() + of_matches(&tls) + of_matches(&tcp))?;
        let hosts = patterns("spec.hosts", &hosts)?;
        let gateways = gateways_of("spec.gateways", &gateways, namespace)?;
        let mut made = Self { hosts, gateways, export_to, rules: Vec::new(), unserved: Vec::new() };
        made.add_http(http, &key.name)?;
        for (kind, rules) in [("tls", tls), ("tcp", tcp)] {
            for (number, rule) in rules.into_iter().enumerate() {
                made.add(kind, number, rule, namespace)?;
            }
        }
        Ok(made)
    }

    fn add(&mut self, kind: &str, number: usize, rule: RuleSpec, namespace: &str) -> Result<(), Refusal> {
        let path = format!("spec.{kind}[{number}]");
        let is_tls = kind == "tls";
        let RuleSpec { mut matches, route } = rule;
        if is_tls && (matches.is_empty() || matches.iter().any(|each| each.sni_hosts.is_empty())) {
            return Err(Refusal::new(format!("{path}.match"), "`sniHosts` are missing"));
        }
        if route.len() > MOST || self.rules.len() + matches.len() > MOST {
            return Err(Refusal::new(path, format!("more than {MOST} destinations or matches")));
        }
        if matches.is_empty() {
            matches.push(Match::default());
        }
        let backends: Arc<[BackendRef]> =
            all_shares(route, namespace, is_tls).map(|(backend, _)| backend).collect();
        let several = matches.len() > 1;
        let (mut served, mut refused) = (Vec::new(), Vec::new());
        for (index, each) in matches.into_iter().enumerate() {
            let at = format!("{path}.match[{index}]");
            let own = gateways_of(&format!("{at}.gateways"), &each.gateways, namespace)?;
            if !each.gateways.is_empty() && own.is_empty() {
                // For sidecars.
                continue;
            }
            let hosts = match is_tls {
                true => patterns(&format!("{at}.sniHosts"), &each.sni_hosts)?,
                false => self.hosts.clone(),
            };
            if let Some(index) = hosts.iter().position(|host| !self.has(host)) {
                let message = format!("{} is not among `spec.hosts`", quote(&hosts[index].to_string()));
                return Err(Refusal::new(format!("{at}.sniHosts[{index}]"), message));
            }
            let name = format!("{kind}-{number}");
            let unserved = each.unserved();
            let rule = Rule {
                name: if several { format!("{name}-{index}") } else { name },
                path: path.clone(),
                is_tls,
                hosts,
                port: each.port,
                gateways: (!own.is_empty()).then_some(own),
                backends: if unserved.is_some() { Arc::from([]) } else { backends.clone() },
                request: None,
            };
            match unserved {
                Some(key) => {
                    self.unserved
                        .push(format!("{at}.{key} is not looked at: the clients of this match are refused"));
                    refused.push(rule);
                }
                None => served.push(rule),
            }
        }
        // Who has both goes there anyway.
        self.rules.append(&mut served);
        self.rules.append(&mut refused);
        Ok(())
    }

    /// Each match of the rules of requests, as a rule of its own.
    fn add_http(&mut self, rules: Vec<HttpSpec>, own: &Name) -> Result<(), Refusal> {
        let namespace = &*own.namespace;
        let shown = format!("VirtualService.{namespace}.{}", own.name);
        let list: Arc<str> = shown.as_str().into();
        let mut expressions = Expressions::default();
        for (number, HttpSpec { mut matches, action }) in rules.into_iter().enumerate() {
            let path = format!("spec.http[{number}]");
            let several = matches.len() > 1;
            if matches.is_empty() {
                matches.push(MatchSpec::default());
            }
            // Who has both goes to what is served anyway.
            let mut matches: Vec<_> = matches.into_iter().enumerate().collect();
            matches.sort_by_key(|(_, each)| each.unserved().is_some());
            for (index, each) in matches {
                let at = format!("{path}.match[{index}].gateways");
                let gateways = gateways_of(&at, &each.gateways, namespace)?;
                if !each.gateways.is_empty() && gateways.is_empty() {
                    // For sidecars.
                    continue;
                }
                let name = if several { format!("http-{number}-{index}") } else { format!("http-{number}") };
                let port = each.port;
                let of_log = format!("{shown}.{name}").into();
                let mut request =
                    each.rule(action.clone(), of_log, path.clone(), namespace, &mut expressions);
                if let Some(rule) = &mut request.rule {
                    rule.list = Some(list.clone());
                }
                self.unserved.extend(request.told());
                self.rules.push(Rule {
                    name,
                    path: path.clone(),
                    is_tls: false,
                    hosts: self.hosts.clone(),
                    port,
                    gateways: (!gateways.is_empty()).then_some(gateways),
                    backends: Arc::from([]),
                    request: Some(request),
                });
            }
        }
        Ok(())
    }

    /// Whether one of its hosts covers this one.
    fn has(&self, host: &SniPattern) -> bool {
        self.hosts.iter().any(|own| intersection(own, host).as_ref() == Some(host))
    }
}

impl Match {
    /// The first thing that narrows it and is not looked at.
    fn unserved(&self) -> Option<&'static str> {
        let given = [
            (self.destination_subnets, "destinationSubnets"),
            (self.source_subnet, "sourceSubnet"),
            (self.source_labels, "sourceLabels"),
            (self.source_namespace, "sourceNamespace"),
        ];
        given.into_iter().find_map(|(given, key)| given.0.then_some(key))
    }
}

fn patterns(path: &str, hosts: &[Box<str>]) -> Result<Vec<SniPattern>, Refusal> {
    let read = |(index, host): (usize, &str)| {
        let no_host = || Refusal::new(format!("{path}[{index}]"), format!("{} is no host", quote(host)));
        pattern(host).ok_or_else(no_host)
    };
    hosts.iter().map(|host| &**host).enumerate().map(read).collect()
}

/// Those of the gateways that are no sidecars.
fn gateways_of(path: &str, names: &[Box<str>], namespace: &str) -> Result<Vec<Key>, Refusal> {
    let named = names.iter().map(|name| &**name).enumerate().filter(|(_, name)| *name != "mesh");
    let read = |(index, name): (usize, &str)| {
        let no_name = || Refusal::new(format!("{path}[{index}]"), format!("{} is no Gateway", quote(name)));
        gateway(name, namespace).ok_or_else(no_name)
    };
    let mut found: Vec<Key> = named.map(read).collect::<Result<_, _>>()?;
    found.sort();
    found.dedup();
    Ok(found)
}
