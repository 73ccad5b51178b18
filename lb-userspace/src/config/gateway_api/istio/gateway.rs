//! Istio's Gateway: servers, of which each host becomes a listener.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::host::{is_label, pattern, reject_many};
use crate::config::address::dns_name;
use crate::config::diagnostic::quote;
use crate::config::gateway_api::decode::{Given, decode};
use crate::config::gateway_api::key::{Labels, NAMESPACE_LABEL};
use crate::config::gateway_api::refusal::Refusal;
use crate::config::gateway_api::specs::{
    Allowed, Clients, FromNamespaces, GatewaySpec, ListenerSpec, ListenerTls, Namespaces, Reference,
    Selector, Server,
};
use crate::config::san::San;

/// Certificates of a server at most: each of its hosts has them.
const MOST_SECRETS: usize = 8;

/// A Gateway of Istio's, as one of the Gateway API.
#[derive(Debug, PartialEq)]
pub(in crate::config::gateway_api) struct IstioGateway {
    /// Labels of the gateway that it is for; none: of every one.
    pub(in crate::config::gateway_api) selector: Labels,
    pub(in crate::config::gateway_api) gateway: GatewaySpec,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    selector: Labels,
    #[serde(default)]
    servers: Vec<ServerSpec>,
}

/// A key that is not known may restrict who may connect.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServerSpec {
    port: Port,
    #[serde(default)]
    hosts: Vec<Box<str>>,
    tls: Option<Tls>,
    bind: Option<Box<str>>,
    #[serde(default)]
    default_endpoint: Given,
    #[serde(default, rename = "name")]
    _name: Given,
}

#[derive(Deserialize)]
struct Port {
    number: NonZeroU16,
    protocol: Box<str>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Tls {
    mode: Option<Box<str>>,
    credential_name: Option<Box<str>>,
    #[serde(default)]
    credential_names: Vec<Box<str>>,
    ca_cert_credential_name: Option<Box<str>>,
    #[serde(default)]
    subject_alt_names: Vec<Box<str>>,
    min_protocol_version: Option<Box<str>>,
    max_protocol_version: Option<Box<str>>,
    #[serde(default, rename = "httpsRedirect")]
    _https_redirect: Given,
    // What is not served. Of files in a gateway's own pod there are none here.
    #[serde(default)]
    server_certificate: Given,
    #[serde(default)]
    private_key: Given,
    #[serde(default)]
    ca_certificates: Given,
    #[serde(default)]
    ca_crl: Given,
    #[serde(default)]
    tls_certificates: Given,
    #[serde(default)]
    verify_certificate_spki: Given,
    #[serde(default)]
    verify_certificate_hash: Given,
    #[serde(default)]
    cipher_suites: Given,
    #[serde(default)]
    ecdh_curves: Given,
    #[serde(default)]
    alpn_protocols: Given,
    #[serde(default)]
    insecure_skip_verify: Given,
}

impl IstioGateway {
    /// `namespace`: its own.
    pub(in crate::config::gateway_api) fn read(spec: Value, namespace: &str) -> Result<Self, Refusal> {
        let Spec { selector, servers } = decode("spec", spec)?;
        reject_many("spec.servers", servers.iter().map(|server| server.hosts.len().max(1)).sum())?;
        let mut listeners = Vec::new();
        for (number, server) in servers.into_iter().enumerate() {
            server.listeners(number, namespace, &mut listeners)?;
        }
        Ok(Self { selector, gateway: GatewaySpec { listeners, ..GatewaySpec::default() } })
    }
}

/// What becomes of a server's connections, in the words of the Gateway API.
struct Use {
    protocol: Box<str>,
    passthrough: bool,
    auto: bool,
}

impl Use {
    fn of(protocol: &str, tls: Option<&Tls>) -> Result<Self, String> {
        let plain = |protocol: &str| Ok(Self { protocol: protocol.into(), passthrough: false, auto: false });
        let upper = protocol.to_ascii_uppercase();
        let is_http = match upper.as_str() {
            "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => return plain("HTTP"),
            "HTTPS" => true,
            "TLS" | "TCP" | "MONGO" | "MYSQL" | "REDIS" => false,
            // Told as the Gateway API tells it.
            _ => return plain(protocol),
        };
        let Some(tls) = tls else {
            return match upper.as_str() {
                "HTTPS" | "TLS" => Err("`tls` is missing".to_owned()),
                _ => plain("TCP"),
            };
        };
        // Without a mode it is the first of the API's.
        let auto = match tls.mode.as_deref() {
            None | Some("PASSTHROUGH") => false,
            Some("AUTO_PASSTHROUGH") => true,
            Some("SIMPLE" | "MUTUAL" | "OPTIONAL_MUTUAL") => {
                return plain(if is_http { "HTTPS" } else { "TLS" });
            }
            Some(mode) => {
                let known = "PASSTHROUGH, AUTO_PASSTHROUGH, SIMPLE, MUTUAL and OPTIONAL_MUTUAL";
                return Err(format!("`tls.mode` {} is not served, but {known}", quote(mode)));
            }
        };
        Ok(Self { protocol: "TLS".into(), passthrough: true, auto })
    }
}

impl ServerSpec {
    fn listeners(self, number: usize, own: &str, into: &mut Vec<ListenerSpec>) -> Result<(), Refusal> {
        let path = |index: usize| format!("spec.servers[{number}].hosts[{index}]");
        // Of each host the namespaces of the VirtualServices that may be for it; none: all.
        let mut hosts: BTreeMap<&str, Option<Vec<String>>> = BTreeMap::new();
        let mut patterns = Vec::new();
        for (index, host) in self.hosts.iter().enumerate() {
            let (namespace, bare) = host.split_once('/').unwrap_or(("*", host));
            let is_namespace = matches!(namespace, "*" | "." | "~") || is_label(namespace);
            let Some(pattern) = pattern(bare).filter(|_| is_namespace) else {
                return Err(Refusal::new(path(index), format!("{} is no host", quote(host))));
            };
            patterns.push(pattern);
            let namespaces = hosts.entry(bare).or_insert_with(|| Some(Vec::new()));
            match (namespace, &mut *namespaces) {
                ("*", _) => *namespaces = None,
                ("~", _) | (_, None) => {}
                (".", Some(named)) => named.push(own.to_owned()),
                (_, Some(named)) => named.push(namespace.to_owned()),
            }
        }
        let is_for = Use::of(&self.port.protocol, self.tls.as_ref());
        let (is_for, mut fault) = match is_for {
            Ok(is_for) => (is_for, None),
            Err(why) => (Use { protocol: "TLS".into(), passthrough: true, auto: false }, Some(why)),
        };
        let ends_tls = !is_for.passthrough && matches!(&*is_for.protocol, "HTTPS" | "TLS");
        fault = fault.or_else(|| self.unserved(ends_tls));
        let clients = match &self.tls {
            Some(tls) if ends_tls => tls.clients().unwrap_or_else(|why| {
                fault.get_or_insert(why);
                None
            }),
            _ => None,
        };
        let clients = clients.map(Arc::new);
        let is_tcp = &*is_for.protocol == "TCP";
        if !is_tcp {
            patterns.clear();
        }
        let name = |index: Option<usize>| match index {
            Some(index) => format!("servers-{number}-{index}"),
            None => format!("servers-{number}"),
        };
        let mut add = |index: Option<usize>, host: Option<Box<str>>, namespaces: Option<Vec<String>>| {
            let fault = fault.clone().map(String::into_boxed_str);
            let server = Server { number, fault, clients: clients.clone(), hosts: patterns.clone() };
            into.push(ListenerSpec {
                name: name(index).into(),
                hostname: host,
                port: self.port.number,
                protocol: is_for.protocol.clone(),
                tls: self.tls.as_ref().map(|tls| tls.of_listener(&is_for)).unwrap_or_default(),
                allowed_routes: Allowed { namespaces: allowed(namespaces), kinds: None },
                istio: Some(Box::new(server)),
            });
        };
        if is_tcp || hosts.is_empty() {
            // Its clients are told apart by nothing.
            let mut named = Vec::new();
            let all = hosts.values().all(|namespaces| match namespaces {
                Some(namespaces) => {
                    named.extend(namespaces.iter().cloned());
                    true
                }
                None => false,
            });
            add(None, None, (all && !hosts.is_empty()).then_some(named));
            return Ok(());
        }
        let is_alone = hosts.len() == 1;
        for (index, (host, namespaces)) in hosts.into_iter().enumerate() {
            let host = match (host, is_for.auto) {
                ("*", _) => None,
                // What clients ask for has the Service's own name at its end.
                (exact, true) if !exact.starts_with("*.") => Some(format!("*.{exact}").into()),
                (host, _) => Some(host.into()),
            };
            add((!is_alone).then_some(index), host, namespaces);
        }
        Ok(())
    }

    /// The first thing that is asked for and not served.
    fn unserved(&self, ends_tls: bool) -> Option<String> {
        let bind = self.bind.as_deref().filter(|bind| !matches!(*bind, "" | "0.0.0.0" | "::"));
        if bind.is_some() {
            return Some("`bind` is not served: it is on every address".to_owned());
        }
        if self.default_endpoint.0 {
            return Some("`defaultEndpoint` is not served".to_owned());
        }
        let tls = self.tls.as_ref().filter(|_| ends_tls)?;
        if tls.credential_names.len() > MOST_SECRETS {
            return Some(format!("`tls.credentialNames` has more than {MOST_SECRETS}"));
        }
        let files = "is a file in a gateway's pod; name a Secret by `credentialName`";
        let given = [
            (tls.server_certificate, "serverCertificate", files),
            (tls.private_key, "privateKey", files),
            (tls.ca_certificates, "caCertificates", files),
            (tls.ca_crl, "caCrl", files),
            (tls.tls_certificates, "tlsCertificates", files),
            (tls.verify_certificate_spki, "verifyCertificateSpki", "is not served"),
            (tls.verify_certificate_hash, "verifyCertificateHash", "is not served"),
            (tls.cipher_suites, "cipherSuites", "is not served"),
            (tls.ecdh_curves, "ecdhCurves", "is not served"),
            (tls.alpn_protocols, "alpnProtocols", "is not served"),
            (tls.insecure_skip_verify, "insecureSkipVerify", "is not served"),
        ];
        if let Some((_, key, why)) = given.into_iter().find(|(given, ..)| given.0) {
            return Some(format!("`tls.{key}` {why}"));
        }
        // Older versions than 1.2 are served to nobody.
        let lowest = tls.min_protocol_version.as_deref().unwrap_or_default();
        let highest = tls.max_protocol_version.as_deref().unwrap_or_default();
        let bounds = [
            ("minProtocolVersion", lowest, &["", "TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2"][..]),
            ("maxProtocolVersion", highest, &["", "TLS_AUTO", "TLSV1_3"][..]),
        ];
        let bad = bounds.into_iter().find(|(_, value, known)| !known.contains(value))?;
        Some(format!("`tls.{}` {} is not served", bad.0, quote(bad.1)))
    }
}

impl Tls {
    fn of_listener(&self, is_for: &Use) -> ListenerTls {
        let secret =
            |name: &str| Reference { group: "".into(), kind: None, name: name.into(), namespace: None };
        let option = ("gateway.istio.io/listener-protocol".to_owned(), Value::from("auto-passthrough"));
        ListenerTls {
            mode: is_for.passthrough.then(|| "Passthrough".into()),
            certificate_refs: self
                .credential_name
                .iter()
                .chain(&self.credential_names)
                .take(MOST_SECRETS + 1)
                .map(|name| secret(name))
                .collect(),
            options: is_for.auto.then_some(option).into_iter().collect(),
        }
    }

    fn clients(&self) -> Result<Option<Clients>, String> {
        let required = match self.mode.as_deref() {
            Some("MUTUAL") => true,
            Some("OPTIONAL_MUTUAL") => false,
            _ => return Ok(None),
        };
        let secrets = match (&self.ca_cert_credential_name, &self.credential_name) {
            (Some(own), _) => vec![own.clone()],
            (None, Some(name)) => vec![format!("{name}-cacert").into(), name.clone()],
            (None, None) => Vec::new(),
        };
        let bad =
            |name: &str| format!("`tls.subjectAltNames`: {} is no name that can be compared", quote(name));
        let sans = self.subject_alt_names.iter().map(|name| san(name).ok_or_else(|| bad(name)));
        let sans = sans.collect::<Result<_, _>>()?;
        Ok(Some(Clients { secrets, required, sans }))
    }
}

/// Whose VirtualServices may be for a host.
fn allowed(namespaces: Option<Vec<String>>) -> Namespaces {
    let (from, selector) = match namespaces {
        None => (FromNamespaces::All, None),
        Some(named) => (FromNamespaces::Selector, Some(Selector::one_of(NAMESPACE_LABEL, named))),
    };
    Namespaces { from: Some(from), selector }
}

/// A name that certificates are compared with, of whichever kind it looks like.
fn san(text: &str) -> Option<San> {
    if text.contains("://") {
        return Some(San::Uri(text.into()));
    }
    if let Ok(address) = text.parse() {
        return Some(San::Ip(address));
    }
    match text.split_once('@') {
        Some((user, domain)) => (!user.is_empty() && !domain.is_empty()).then(|| San::Email(text.into())),
        None => dns_name(text).ok().map(San::Dns),
    }
}
