//! `[gateway_api]`.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::config::controller::{Mode, Settings};
use crate::config::draft::From;
use crate::config::toml::key::Text::{Is, Of};
use crate::config::toml::key::{Key, Table, code, integers, one_of, quoted, word};
use std::ops::RangeInclusive;

pub(in crate::config::toml) const SOURCES: [(&str, From); 2] =
    [("directory", From::Directory), ("cluster", From::Cluster)];

pub(in crate::config::toml) const MODES: [(&str, Mode); 3] =
    [("node", Mode::Node), ("pool", Mode::Pool), ("service", Mode::Service)];

pub(in crate::config::toml) const MOST_PORTS: RangeInclusive<i64> = 1..=65_535;
/// Secrets and ConfigMaps.
pub(in crate::config::toml) const MOST_WATCHES: RangeInclusive<i64> = 10..=100_000;

pub(in crate::config::toml) const GATEWAY_API: Table = Table {
    header: "[gateway_api]",
    keys: &[
        Key {
            name: "from",
            example: r#""directory""#,
            meaning: "where the objects come from: files, or the API server of a Kubernetes cluster, which also gets their \
                      statuses",
            values: Of(|| one_of(&SOURCES)),
            default: None,
        },
        Key {
            name: "directory",
            example: r#""/etc/snisplice/manifests""#,
            meaning: "the directory with the manifests: `*.yaml`, `*.yml` and `*.json`, not those of directories in it. A change \
                      takes effect within a second or two ([more](gateway-api.md))",
            values: Is("path"),
            default: Some(Is("required with `from = \"directory\"`")),
        },
        Key {
            name: "kubeconfig",
            example: r#""/etc/snisplice/kubeconfig""#,
            meaning: "with `from = \"cluster\"`: how the API server is reached, and as whom",
            values: Is("path"),
            default: Some(Is("absent: as the pod's service account")),
        },
        Key {
            name: "keep_objects",
            example: "false",
            meaning: "with `from = \"cluster\"`: keep the last good objects in `state_dir`, so that a start without the API server \
                      serves what was served before. The file, `objects.json`, holds the private keys of the Secrets that Gateways \
                      name; only its owner can read it",
            values: Is("boolean"),
            default: Some(Is("`true`")),
        },
        Key {
            name: "controller",
            example: r#""snisplice.dev/gateway""#,
            meaning: "the GatewayClasses with this `controllerName` are this gateway's, and the Gateways of these classes",
            values: Is("1 to 253 bytes, a domain and a path"),
            default: Some(Of(|| quoted(Settings::default().controller))),
        },
        Key {
            name: "mode",
            example: r#""node""#,
            meaning: "how Gateways get their addresses. `node`: they share those of this machine. `pool`, only with `from = \
                      \"cluster\"`: each gets one of each family out of `addresses`, and keeps it. `service`, only with `from = \
                      \"cluster\"`: each gets a Service of the type LoadBalancer, and the addresses that this is given \
                      ([which one when](gateway-api.md#where-packets-arrive))",
            values: Of(|| one_of(&MODES)),
            default: Some(Of(|| word(&MODES, &Settings::default().mode))),
        },
        Key {
            name: "attach",
            example: r#""eth0""#,
            meaning: "with `mode = \"pool\"` or `\"service\"`: the device that gets the addresses while they are served. `lo` where \
                      the network *routes* them to this machine, or something else answers for them, as MetalLB does; a device of \
                      the segment where this is the only gateway node, so that it answers for them; `freebind`: no device, \
                      something else sees to it that packets for them arrive",
            values: Is("name of a device, `lo` or `freebind`"),
            default: Some(Is("absent: `\"lo\"`")),
        },
        Key {
            name: "merge",
            example: "true",
            meaning: "with `mode = \"pool\"` or `\"service\"`: the Gateways of a class share their addresses, and one Service; with \
                      `node` they always do",
            values: Is("boolean"),
            default: Some(Of(|| code(Settings::default().merge))),
        },
        Key {
            name: "load_balancer_class",
            example: r#""metallb.io/metallb""#,
            meaning: "with `mode = \"service\"`: `spec.loadBalancerClass` of the Services, by which one of several load balancers is \
                      chosen. It cannot be changed later: delete the Services, they are made anew",
            values: Is("name, or domain, `/` and name"),
            default: Some(Is("absent: the cluster's default")),
        },
        Key {
            name: "addresses",
            example: r#"["198.51.100.16-198.51.100.31", "2001:db8::/120"]"#,
            meaning: "with `mode = \"pool\"`: the addresses that Gateways get. With `\"service\"`: those that are taken from the load \
                      balancer; absent: all but the nodes' own. In any mode: those that `spec.addresses` may name, with `node` only \
                      if this machine has them",
            values: Is("list of addresses, networks and ranges"),
            default: Some(Is("`[]`")),
        },
        Key {
            name: "external_names",
            example: "true",
            meaning: "follow Services of the type ExternalName. Whoever may write a Service can then reach every name that this \
                      machine resolves (CVE-2021-25740)",
            values: Is("boolean"),
            default: Some(Of(|| code(Settings::default().external_names))),
        },
        Key {
            name: "auto_passthrough",
            example: "true",
            meaning: "serve auto-passthrough listeners ([more](gateway-api.md#what-each-object-becomes)). Whoever may write a \
                      Gateway can then reach every Service of every namespace, without a ReferenceGrant",
            values: Is("boolean"),
            default: Some(Of(|| code(Settings::default().auto_passthrough))),
        },
        Key {
            name: "max_ports",
            example: "100",
            meaning: "on how many ports all Gateways together may listen, each address of a pool counted by itself. Older Gateways \
                      come first, and the listeners of younger ones that would exceed it are PortUnavailable. A port is one socket \
                      for each worker and family",
            values: Of(|| integers(&MOST_PORTS)),
            default: Some(Of(|| code(Settings::default().max_ports))),
        },
        Key {
            name: "max_watches",
            example: "5000",
            meaning: "with an API server: how many Secrets and ConfigMaps objects may name, each of which is watched by itself \
                      over a connection of its own. A tenth of them may be of one namespace. What older objects name comes first; \
                      one that is not watched is as if it were not there, and the status of who names it says so",
            values: Of(|| integers(&MOST_WATCHES)),
            default: Some(Of(|| code(Settings::default().max_watches))),
        },
        Key {
            name: "namespaces",
            example: r#"["databases", "edge-system"]"#,
            meaning: "take objects of these namespaces only",
            values: Is("list of names"),
            default: Some(Is("absent: of all")),
        },
        Key {
            name: "istio",
            example: r#"["istio=eastwestgateway", "istio=ingressgateway"]"#,
            meaning: "take Istio's own objects too ([more](gateway-api.md#istios-own-objects)): the labels of each gateway of Istio's whose \
                      place this one takes. A Gateway of `networking.istio.io` is this gateway's if one of them has all labels of its \
                      `selector`",
            values: Is("list of labels with their values, several of one gateway with commas between them"),
            default: Some(Is("`[]`: none are read")),
        },
    ],
};
