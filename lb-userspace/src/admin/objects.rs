//! `snisplice objects`: what was read, and what is said of each object, as `kubectl describe` shows it.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::view::Object;
use crate::words::printable;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Characters of a name, and of a message.
const MOST: (usize, usize) = (160, 400);

/// All objects: those that are not taken first, for they need somebody; then those with a status; the others by their names.
pub fn objects(objects: &[Object]) -> String {
    if objects.is_empty() {
        return "no objects\n".into();
    }
    let mut out = String::new();
    let (refused, read): (Vec<_>, Vec<_>) = objects.iter().partition(|object| object.refused.is_some());
    for object in refused {
        let reason = printable(object.refused.as_deref().unwrap_or_default(), MOST.1);
        _ = writeln!(out, "{}\n  NOT TAKEN: {reason}", title(object));
    }
    let (told, others): (Vec<_>, Vec<_>) = read.into_iter().partition(|object| object.status.is_some());
    for object in told {
        out += &title(object);
        out.push('\n');
        describe(object.status.as_ref().unwrap_or(&Value::Null), &mut out);
    }
    for object in others {
        out += &title(object);
        out.push('\n');
    }
    out
}

/// "12 objects of the Gateway API, 1 not taken, 2 with a condition that is not as it should be": for `snisplice status`.
/// `stale_since`: since when they are not those of the API server.
pub(super) fn summary(objects: &[Object], stale_since: Option<&str>) -> Option<String> {
    let stale = stale_since.map(|since| {
        let since = since.escape_debug();
        format!("the API server does not answer: the objects are those of {since}\n")
    });
    if objects.is_empty() {
        return stale;
    }
    let refused = objects.iter().filter(|object| object.refused.is_some()).count();
    let faulty =
        objects.iter().filter_map(|object| object.status.as_ref()).filter(|status| is_faulty(status)).count();
    let (read, see) = (objects.len() - refused, "`snisplice objects` shows them");
    Some(format!(
        "{read} objects of the Gateway API, {refused} not taken, {faulty} with something amiss; {see}\n{}",
        stale.unwrap_or_default()
    ))
}

/// How many objects of each kind have a condition, by its type with `Not` before it where it does not hold; and how many are
/// `Refused`. A condition of a listener or parent counts for the object.
pub fn counted(objects: &[Object]) -> Vec<(String, String, u64)> {
    let mut counts: BTreeMap<(&str, String), u64> = BTreeMap::new();
    for object in objects {
        let mut conditions = BTreeMap::new();
        if object.refused.is_some() {
            conditions.insert("Refused", true);
        }
        for condition in object.status.iter().flat_map(all_conditions) {
            if let Some(kind @ ("Accepted" | "Programmed" | "ResolvedRefs")) = condition["type"].as_str() {
                *conditions.entry(kind).or_insert(true) &= condition["status"] == "True";
            }
        }
        for (condition, holds) in conditions {
            let condition = if holds { condition.to_owned() } else { format!("Not{condition}") };
            *counts.entry((&object.kind, condition)).or_default() += 1;
        }
    }
    counts.into_iter().map(|((kind, condition), count)| (kind.to_owned(), condition, count)).collect()
}

fn title(object: &Object) -> String {
    let name = match object.namespace.as_str() {
        "" => object.name.clone(),
        namespace => format!("{namespace}/{}", object.name),
    };
    let what = match object.kind.as_str() {
        "" => "something".to_owned(),
        kind => format!("{} {}", printable(kind, MOST.0), printable(&name, MOST.0)),
    };
    let place = object.place.as_deref().map(|place| format!("  ({})", printable(place, MOST.1)));
    what + &place.unwrap_or_default()
}

/// The conditions, with those of listeners and parents.
fn describe(status: &Value, out: &mut String) {
    let addresses = list(&status["addresses"]).iter().filter_map(|address| address["value"].as_str());
    let addresses: Vec<_> = addresses.collect();
    if !addresses.is_empty() {
        _ = writeln!(out, "  Addresses: {}", printable(&addresses.join(", "), MOST.1));
    }
    conditions(&status["conditions"], 2, out);
    for listener in list(&status["listeners"]) {
        let (name, attached) = (text(&listener["name"]), &listener["attachedRoutes"]);
        _ = writeln!(out, "  Listener {name}, attached routes: {attached}");
        conditions(&listener["conditions"], 4, out);
    }
    for parent in list(&status["parents"]) {
        let reference = &parent["parentRef"];
        let kind = reference["kind"].as_str().unwrap_or("Gateway");
        let mut line = format!("  Parent {} ", printable(kind, MOST.0));
        if let Some(namespace) = reference["namespace"].as_str() {
            line += &format!("{}/", printable(namespace, MOST.0));
        }
        line += &text(&reference["name"]);
        if let Some(section) = reference["sectionName"].as_str() {
            line += &format!(", listener {}", printable(section, MOST.0));
        }
        if let Some(port) = reference["port"].as_u64() {
            line += &format!(", port {port}");
        }
        out.push_str(&line);
        out.push('\n');
        conditions(&parent["conditions"], 4, out);
    }
}

fn conditions(conditions: &Value, indent: usize, out: &mut String) {
    for condition in list(conditions) {
        let [kind, status, reason] = ["type", "status", "reason"].map(|field| text(&condition[field]));
        let message = condition["message"].as_str().unwrap_or_default();
        let line = format!("{:indent$}{kind:<14} {status:<5}  {reason}", "");
        out.push_str(&line);
        if !message.is_empty() {
            _ = write!(out, ": {}", printable(message, MOST.1));
        }
        out.push('\n');
    }
}

/// Whether something that should hold does not.
fn is_faulty(status: &Value) -> bool {
    all_conditions(status).any(|condition| match condition["type"].as_str() {
        Some("Conflicted") => false,
        Some("PartiallyInvalid") => condition["status"] == "True",
        _ => condition["status"] == "False",
    })
}

/// Of the object, its listeners and its parents.
fn all_conditions(status: &Value) -> impl Iterator<Item = &Value> {
    let parts = [&status["listeners"], &status["parents"]].into_iter().flat_map(list);
    std::iter::once(status).chain(parts).flat_map(|part| list(&part["conditions"]))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    printable(value.as_str().unwrap_or_default(), MOST.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn example() -> Vec<Object> {
        let object = |kind: &str, namespace: &str, name: &str| Object {
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
            place: Some("manifests/a.yaml:3".into()),
            ..Object::default()
        };
        let condition = |kind: &str, status: &str, reason: &str, message: &str| json!({ "type": kind, "status": status, "reason": reason, "message": message });
        let gateway = json!({
            "addresses": [{ "type": "IPAddress", "value": "192.0.2.1" }],
            "conditions": [condition("Accepted", "True", "Accepted", "")],
            "listeners": [{ "name": "tls", "attachedRoutes": 1, "conditions": [condition("Conflicted", "False", "NoConflicts", "")] }],
        });
        let route = json!({ "parents": [{
            "parentRef": { "name": "gw", "namespace": "edge", "sectionName": "tls", "port": 443 },
            "conditions": [condition("ResolvedRefs", "False", "BackendNotFound", "there is no Service db/\u{1b}[31m")],
        }] });
        vec![
            Object { status: Some(gateway), ..object("Gateway", "edge", "gw") },
            Object { status: Some(route), ..object("TLSRoute", "db", "r") },
            object("Service", "db", "redis"),
            Object {
                refused: Some("spec.listeners[0].port: no port".into()),
                ..object("Gateway", "edge", "bad")
            },
        ]
    }

    #[test]
    fn objects_are_this_text() {
        assert_eq!(
            objects(&example()),
            "Gateway edge/bad  (manifests/a.yaml:3)\n  NOT TAKEN: spec.listeners[0].port: no port\n\
             Gateway edge/gw  (manifests/a.yaml:3)\n  Addresses: 192.0.2.1\n  Accepted       True   Accepted\n  \
             Listener tls, attached routes: 1\n    Conflicted     False  NoConflicts\n\
             TLSRoute db/r  (manifests/a.yaml:3)\n  Parent Gateway edge/gw, listener tls, port 443\n    \
             ResolvedRefs   False  BackendNotFound: there is no Service db/\\u{1b}[31m\n\
             Service db/redis  (manifests/a.yaml:3)\n"
        );
        let expected = "3 objects of the Gateway API, 1 not taken, 1 with something amiss; `snisplice objects` shows them\n";
        assert_eq!(summary(&example(), None).as_deref(), Some(expected));
        assert_eq!((objects(&[]).as_str(), summary(&[], None)), ("no objects\n", None));
        let stale = "the API server does not answer: the objects are those of 2026-11-29T08:00:00Z\n";
        let found = summary(&example(), Some("2026-11-29T08:00:00Z"));
        assert_eq!(found, Some(expected.to_owned() + stale));
        let found = counted(&example());
        let found: Vec<_> =
            found.iter().map(|(kind, condition, n)| format!("{kind} {condition} {n}")).collect();
        assert_eq!(found, ["Gateway Accepted 1", "Gateway Refused 1", "TLSRoute NotResolvedRefs 1"]);
    }
}
