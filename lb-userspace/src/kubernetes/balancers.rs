//! Mode `service`: the Services of the type LoadBalancer that Gateways get, what load balancers have made of them, and the
//! EndpointSlices that tell these where connections are taken.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use serde_json::{Value, json};

use super::names;
use super::services::{self, CLASS_LABEL, LABEL, Objects, PROXY_LABEL, SERVICE_LABEL};
use crate::config::gateway_api::{Assigned, GatewayStatus, Key, Name, StatusAddress};

const PROXY: &str = "snisplice";
/// Addresses of one Service that are looked at, at most.
const MOST_ADDRESSES: usize = 16;

/// How Gateways share Services, and for whom these are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balancers {
    /// The Gateways of a class have one together.
    pub merge: bool,
    /// `spec.loadBalancerClass`.
    pub class: Option<Box<str>>,
    /// Where the Services of whole classes are.
    pub namespace: Box<str>,
    /// The addresses that Gateways may name.
    pub addresses: Vec<RangeInclusive<IpAddr>>,
}

impl Balancers {
    /// The Service of a Gateway.
    pub(super) fn service_of(&self, gateway: &Name, class: &str) -> Name {
        match self.merge {
            true => self.service_of_class(class),
            false => {
                Name::new(&gateway.namespace, &services::name_of(&format!("{}-{class}", gateway.name), "-lb"))
            }
        }
    }

    /// The Service that all Gateways of a class have together.
    pub(super) fn service_of_class(&self, class: &str) -> Name {
        Name::new(&self.namespace, &services::name_of(&format!("snisplice-{class}"), "-lb"))
    }

    /// The Service for a Gateway as the API server has it; `None`: there is no port that it could have, or it takes no address but
    /// such as it may not have.
    pub(super) fn of_gateway(&self, key: &Key, gateway: &Value, status: &GatewayStatus) -> Option<Objects> {
        let class = gateway["spec"]["gatewayClassName"].as_str().unwrap_or_default();
        let (mut labels, annotations) = services::infrastructure(gateway);
        labels.insert(LABEL.into(), json!(&*key.name.name));
        let mut wanted = self.wanted(&self.service_of(&key.name, class), class, labels, &status.ports)?;
        wanted["metadata"]["annotations"] = json!(annotations);
        wanted["metadata"]["ownerReferences"] = json!([services::owner(key, gateway)]);
        let named = gateway["spec"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut values = named.iter().map(|entry| entry["value"].as_str().unwrap_or_default());
        let may_name = |ip: &IpAddr| self.addresses.iter().any(|range| range.contains(ip));
        let mut listed = values.clone().filter_map(|value| value.parse::<IpAddr>().ok()).filter(may_name);
        match listed.next() {
            Some(address) => wanted["spec"]["loadBalancerIP"] = json!(address),
            None if named.is_empty() || values.any(str::is_empty) => {}
            None => return None,
        }
        Some(Objects::of_service(wanted))
    }

    /// The Service for all Gateways of a class.
    pub(super) fn of_class(&self, key: &Key, class: &Value, ports: &BTreeSet<u16>) -> Option<Objects> {
        let name = self.service_of_class(&key.name.name);
        let mut wanted = self.wanted(&name, &key.name.name, BTreeMap::new(), ports)?;
        wanted["metadata"]["ownerReferences"] = json!([services::owner(key, class)]);
        Some(Objects::of_service(wanted))
    }

    fn wanted(
        &self,
        name: &Name,
        class: &str,
        mut labels: BTreeMap<String, Value>,
        ports: &BTreeSet<u16>,
    ) -> Option<Value> {
        labels.insert(CLASS_LABEL.into(), json!(class));
        labels.insert(PROXY_LABEL.into(), json!(PROXY));
        let mut spec = json!({
            "type": "LoadBalancer",
            "externalTrafficPolicy": "Local",
            "ipFamilyPolicy": "PreferDualStack",
            "ports": services::ports(ports),
        });
        if let Some(class) = &self.class {
            spec["loadBalancerClass"] = json!(class);
        }
        (!ports.is_empty()).then(|| {
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": &*name.name, "namespace": &*name.namespace, "labels": labels},
                "spec": spec,
            })
        })
    }
}

/// Whether a Service, or an EndpointSlice of one, is one of those here.
pub(super) fn is_one(object: &Value) -> bool {
    object["metadata"]["labels"][PROXY_LABEL] == PROXY
}

/// The same, by its labels.
pub(super) fn is_label(labels: &BTreeMap<String, String>) -> bool {
    labels.get(PROXY_LABEL).is_some_and(|name| name == PROXY)
}

/// Whether a Service is the one of this class, and of this Gateway if it is not of the whole class.
pub(super) fn is_of(service: &Value, class: &str, gateway: Option<&str>) -> bool {
    let labels = &service["metadata"]["labels"];
    is_one(service)
        && service["spec"]["type"] == "LoadBalancer"
        && labels[CLASS_LABEL] == class
        && labels[LABEL].as_str() == gateway
}

/// Where a Gateway is, by what the load balancer says of its Service. `why_not`: why an address cannot be had here.
pub(super) fn assigned(service: &Value, why_not: impl Fn(IpAddr) -> Option<&'static str>) -> Assigned {
    let mut assigned = Assigned::default();
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    for entry in ingress.take(MOST_ADDRESSES) {
        let ip: Option<IpAddr> = entry["ip"].as_str().and_then(|ip| ip.parse().ok());
        let hostname = entry["hostname"].as_str().filter(|name| (1..=names::LONGEST).contains(&name.len()));
        match (ip, hostname) {
            // Packets come with the address of a node as their destination.
            (Some(ip), _) if entry["ipMode"] == "Proxy" => assigned.elsewhere.push(StatusAddress::Ip(ip)),
            (Some(ip), _) => match why_not(ip) {
                None => assigned.addresses.push(ip),
                Some(why) => assigned.refused = Some(format!("{ip} of its Service {why}").into()),
            },
            (None, Some(name)) => assigned.elsewhere.push(StatusAddress::Hostname(name.into())),
            (None, None) => {}
        }
    }
    assigned.addresses.sort();
    assigned.addresses.dedup();
    assigned.node_ports = ports_of(service).filter_map(|port| Some((port.port, port.node?))).collect();
    assigned
}

/// A port of a Service.
struct Port<'s> {
    name: &'s str,
    port: u16,
    node: Option<u16>,
}

fn ports_of(service: &Value) -> impl Iterator<Item = Port<'_>> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    ports.filter_map(|port| {
        let number =
            |field: &str| port[field].as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
        let name = port["name"].as_str().unwrap_or_default();
        Some(Port { name, port: number("port")?, node: number("nodePort") })
    })
}

/// A node of the cluster on which connections are taken, or not.
pub(super) struct Here<'n> {
    pub(super) node: &'n str,
    /// Its addresses.
    pub(super) addresses: &'n [IpAddr],
    /// Where sockets listen.
    pub(super) bound: &'n BTreeSet<SocketAddr>,
}

impl Here<'_> {
    /// The EndpointSlices with which this node says whether it takes connections of a Service: one for each family of addresses.
    /// An endpoint is the node itself with the node ports, so that it is true also for who looks at nothing else. MetalLB does
    /// not ask for `ready`, but for `serving`.
    pub(super) fn slices(&self, key: &Key, service: &Value) -> Vec<(String, Value)> {
        let families = service["spec"]["ipFamilies"].as_array().into_iter().flatten();
        let families = families.filter_map(Value::as_str);
        families.map(|family| self.slice(key, service, family)).collect()
    }

    fn slice(&self, key: &Key, service: &Value, family: &str) -> (String, Value) {
        let is_v4 = family == "IPv4";
        let bound: Vec<Port<'_>> =
            ports_of(service).filter(|port| self.is_bound(service, port, is_v4)).collect();
        let is_ready = !bound.is_empty();
        let ports = if is_ready { bound } else { ports_of(service).collect() };
        let ports: Vec<Value> = ports
            .iter()
            .map(|port| json!({"name": port.name, "port": port.node.unwrap_or(port.port), "protocol": "TCP"}))
            .collect();
        let address = self.addresses.iter().find(|address| address.is_ipv4() == is_v4);
        let endpoint = |address: &IpAddr| {
            let conditions = json!({"ready": is_ready, "serving": is_ready});
            json!({"addresses": [address], "nodeName": self.node, "conditions": conditions})
        };
        let name = slice_name(&key.name.name, self.node, family);
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": &*key.name.namespace,
                "labels": {
                    SERVICE_LABEL: &*key.name.name,
                    "endpointslice.kubernetes.io/managed-by": services::MANAGED_BY,
                    PROXY_LABEL: PROXY,
                },
                "ownerReferences": [services::owner(key, service)],
            },
            "addressType": family, "endpoints": address.map(endpoint).into_iter().collect::<Vec<_>>(), "ports": ports,
        });
        (name, slice)
    }

    /// Whether a port is listened on, at all addresses of this family at which it is to be.
    fn is_bound(&self, service: &Value, port: &Port<'_>, is_v4: bool) -> bool {
        let any: IpAddr = if is_v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let own = assigned(service, |_| None).addresses.into_iter().filter(|ip| ip.is_ipv4() == is_v4);
        let own = own.map(|ip| SocketAddr::new(ip, port.port));
        let mut wanted = own.chain(port.node.map(|node| SocketAddr::new(any, node))).peekable();
        wanted.peek().is_some() && wanted.all(|address| self.bound.contains(&address))
    }

    /// The port at which load balancers ask whether this node takes connections of a Service, and the answer.
    pub(super) fn health(&self, service: &Value) -> Option<(u16, bool)> {
        let port =
            service["spec"]["healthCheckNodePort"].as_u64().and_then(|port| u16::try_from(port).ok())?;
        let is_ready =
            ports_of(service).any(|port| [true, false].iter().any(|v4| self.is_bound(service, &port, *v4)));
        (port != 0).then_some((port, is_ready))
    }
}

fn slice_name(service: &str, node: &str, family: &str) -> String {
    names::with_node(&format!("{service}-"), node, &format!("-{}", family.to_ascii_lowercase()))
}

/// The name of the Service, and the node, of an EndpointSlice that [`Here::slices`] has made.
pub(super) fn service_and_node(slice: &Value) -> Option<(&str, &str)> {
    let service = slice["metadata"]["labels"][SERVICE_LABEL].as_str()?;
    let node = slice["endpoints"][0]["nodeName"].as_str()?;
    is_one(slice).then_some((service, node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::gateway_api::Kind;

    fn service(ingress: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "edge-lb", "namespace": "ns", "uid": "u"},
            "spec": {
                "type": "LoadBalancer", "ipFamilies": ["IPv4", "IPv6"], "healthCheckNodePort": 32000,
                "ports": [
                    {"name": "port-443", "port": 443, "nodePort": 30443},
                    {"name": "port-6379", "port": 6379, "nodePort": 30379},
                ],
            },
            "status": {"loadBalancer": {"ingress": ingress}},
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_of_its_own_is_bound_and_what_proxies_send_goes_to_node_ports() {
        let given = assigned(&service(&json!([{"ip": "198.51.100.1"}, {"ip": "2001:db8::1"}])), |_| None);
        assert_eq!(given.addresses, [ip("198.51.100.1"), ip("2001:db8::1")]);
        assert_eq!(given.elsewhere, []);
        assert_eq!(given.node_ports, [(443, 30_443), (6379, 30_379)].into());

        let proxied = json!([{"ip": "203.0.113.1", "ipMode": "Proxy"}, {"hostname": "lb.example.com"}]);
        let given = assigned(&service(&proxied), |_| None);
        assert_eq!(given.addresses, [] as [IpAddr; 0]);
        let elsewhere =
            [StatusAddress::Ip(ip("203.0.113.1")), StatusAddress::Hostname("lb.example.com".into())];
        assert_eq!(given.elsewhere, elsewhere);

        assert_eq!(assigned(&service(&Value::Null), |_| None).addresses, [] as [IpAddr; 0]);
        // What is not an address is none.
        let odd = json!([{"ip": "localhost"}, {"hostname": ""}, {"ip": 7}, {}]);
        assert_eq!(assigned(&service(&odd), |_| None).elsewhere, []);
    }

    #[test]
    fn an_address_that_cannot_be_had_is_left_out_and_told() {
        let ingress = json!([{"ip": "192.0.2.1"}, {"ip": "198.51.100.1"}]);
        let is_nodes = |address| (address == ip("192.0.2.1")).then_some("is a node's");
        let given = assigned(&service(&ingress), is_nodes);
        assert_eq!(given.addresses, [ip("198.51.100.1")]);
        assert_eq!(given.refused.as_deref(), Some("192.0.2.1 of its Service is a node's"));
    }

    #[test]
    fn an_endpoint_is_ready_only_where_its_ports_are_bound() {
        let service = service(&json!([{"ip": "198.51.100.1"}]));
        let key = Key::new(Kind::Service, "ns", "edge-lb");
        let addresses = [ip("10.0.0.1"), ip("fd00::1")];
        let slices = |bound: &[&str]| {
            let bound = bound.iter().map(|address| address.parse().unwrap()).collect();
            let here = Here { node: "node-1", addresses: &addresses, bound: &bound };
            let slices = here.slices(&key, &service);
            let shown = slices.into_iter().map(|(_, slice)| {
                let ready = slice["endpoints"][0]["conditions"]["ready"].as_bool().unwrap();
                let ports =
                    slice["ports"].as_array().unwrap().iter().map(|port| port["port"].as_u64().unwrap());
                (ready, ports.collect::<Vec<_>>())
            });
            (shown.collect::<Vec<_>>(), here.health(&service))
        };
        let all = vec![30_443, 30_379];
        assert_eq!(slices(&[]), (vec![(false, all.clone()), (false, all.clone())], Some((32_000, false))));
        // The address alone, or the node port alone, is not all of it.
        assert_eq!(slices(&["198.51.100.1:443"]).0[0], (false, all.clone()));
        let one = slices(&["198.51.100.1:443", "0.0.0.0:30443"]);
        assert_eq!(one, (vec![(true, vec![30_443]), (false, all)], Some((32_000, true))));
        // No address of IPv6 was given: the node port is all of it.
        assert_eq!(slices(&["[::]:30443"]).0[1], (true, vec![30_443]));
    }

    #[test]
    fn slices_say_which_node_they_are_of_and_belong_to_the_service() {
        let service = service(&json!([]));
        let bound = BTreeSet::new();
        let here = Here { node: "node-1", addresses: &[ip("10.0.0.1")], bound: &bound };
        let slices = here.slices(&Key::new(Kind::Service, "ns", "edge-lb"), &service);
        assert_eq!(slices[0].0, "edge-lb-node-1-ipv4");
        assert_eq!(service_and_node(&slices[0].1), Some(("edge-lb", "node-1")));
        assert_eq!(slices[0].1["metadata"]["ownerReferences"][0]["uid"], "u");
        // A node without an address of a family.
        assert_eq!(slices[1].1["endpoints"], json!([]));
        let long = slice_name("edge-lb", &"n".repeat(253), "IPv4");
        assert!(long.len() <= names::LONGEST && long.starts_with("edge-lb-"), "{long}");
    }

    fn balancers() -> Balancers {
        Balancers {
            merge: false,
            class: Some("metallb".into()),
            namespace: "snisplice-system".into(),
            addresses: vec![ip("198.51.100.0")..=ip("198.51.100.15")],
        }
    }

    #[test]
    fn a_load_balancer_is_asked_for_no_address_that_a_gateway_may_not_name() {
        let asked = |addresses: Value| {
            let gateway = json!({"spec": {"gatewayClassName": "edge", "addresses": addresses}});
            let status = GatewayStatus {
                addresses: vec![],
                conditions: vec![],
                listeners: vec![],
                attached_listener_sets: 0,
                ports: [443].into(),
            };
            let service = balancers().of_gateway(&Key::new(Kind::Gateway, "ns", "shop"), &gateway, &status);
            service.map(|objects| objects.service["spec"]["loadBalancerIP"].clone())
        };
        let (good, bad) = (json!({"value": "198.51.100.7"}), json!({"value": "203.0.113.7"}));
        assert_eq!(asked(json!([])), Some(Value::Null));
        assert_eq!(asked(json!([good])), Some(json!("198.51.100.7")));
        assert_eq!(asked(json!([bad])), None);
        assert_eq!(asked(json!([bad, good])), Some(json!("198.51.100.7")));
        // Any other will do.
        assert_eq!(asked(json!([bad, {"type": "IPAddress"}])), Some(Value::Null));
    }

    #[test]
    fn services_are_told_apart_by_their_labels() {
        let balancers = balancers();
        let gateway = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "metadata": {"uid": "g"},
            "spec": {
                "gatewayClassName": "edge", "addresses": [{"value": "198.51.100.7"}],
                "infrastructure": {"labels": {PROXY_LABEL: "evil", "team": "a"}, "annotations": {"x": "y"}},
            },
        });
        let key = Key::new(Kind::Gateway, "ns", "shop");
        let status = |ports: &[u16]| GatewayStatus {
            addresses: vec![],
            conditions: vec![],
            listeners: vec![],
            attached_listener_sets: 0,
            ports: ports.iter().copied().collect(),
        };
        assert_eq!(balancers.of_gateway(&key, &gateway, &status(&[])), None);
        let service = balancers.of_gateway(&key, &gateway, &status(&[443])).unwrap().service;
        assert!(is_of(&service, "edge", Some("shop")), "{service}");
        assert!(!is_of(&service, "edge", None) && !is_of(&service, "other", Some("shop")));
        assert_eq!(service["metadata"]["name"], "shop-edge-lb");
        assert_eq!(service["metadata"]["labels"]["team"], "a");
        assert_eq!(service["metadata"]["annotations"]["x"], "y");
        assert_eq!(service["spec"]["loadBalancerClass"], "metallb");
        assert_eq!(service["spec"]["loadBalancerIP"], "198.51.100.7");

        let class = json!({"apiVersion": "gateway.networking.k8s.io/v1", "metadata": {"uid": "c"}});
        let key = Key::new(Kind::GatewayClass, "", "edge");
        let shared = balancers.of_class(&key, &class, &[443].into()).unwrap().service;
        assert!(is_of(&shared, "edge", None), "{shared}");
        assert_eq!(shared["metadata"]["namespace"], "snisplice-system");
        assert_eq!(shared["metadata"]["ownerReferences"][0]["kind"], "GatewayClass");
    }
}
