//! Statuses as the API server is to have them: what is there, and what we say, put together.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use serde_json::{Map, Value, json};

use crate::config::gateway_api::{Kind, Status};

/// The time of a condition that has changed, as RFC 3339 has it.
type Time<'t> = &'t str;

/// A whole status in which what has not changed keeps the time that it has in `there`.
pub(super) fn whole(status: &Status, there: &Value, now: Time<'_>) -> Value {
    let mut made = serde_json::to_value(status).unwrap_or_default();
    keep_times(&mut made, there, now);
    if let Some(listeners) = made.get_mut("listeners").and_then(Value::as_array_mut) {
        for listener in listeners {
            keep_times(listener, named(&there["listeners"], &listener["name"].clone()), now);
        }
    }
    made
}

/// A list of a status in which several controllers have entries.
#[derive(Clone, Copy)]
pub(super) struct List {
    /// Of the field.
    pub(super) name: &'static str,
    /// What tells the entries of one controller apart.
    of: &'static str,
    /// Entries that the API lets it have, of all controllers together.
    most: usize,
}

/// That of a kind; `None`: its status is written by one.
pub(super) fn list_of(kind: Kind) -> Option<List> {
    match kind {
        Kind::BackendTlsPolicy => Some(List { name: "ancestors", of: "ancestorRef", most: 16 }),
        kind => kind.is_route().then_some(List { name: "parents", of: "parentRef", most: 32 }),
    }
}

/// Whether a controller has an entry in such a list.
pub(super) fn has_entry(list: List, controller: &str, there: &Value) -> bool {
    let mut entries = there[list.name].as_array().into_iter().flatten();
    entries.any(|entry| entry["controllerName"] == *controller)
}

/// Such a list: the entries of other controllers as they are, ours replaced.
pub(super) fn entries(
    list: List,
    status: Option<&Status>,
    controller: &str,
    there: &Value,
    now: Time<'_>,
) -> Value {
    let mut ours: Vec<Value> = match status {
        Some(Status::Route(status)) => status.parents.iter().map(to_value).collect(),
        Some(Status::Policy(status)) => status.ancestors.iter().map(to_value).collect(),
        _ => Vec::new(),
    };
    let known = there[list.name].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_ours = |entry: &Value| entry["controllerName"] == *controller;
    let others = known.iter().filter(|entry| !is_ours(entry)).count();
    ours.truncate(list.most.saturating_sub(others));
    for entry in &mut ours {
        let before = known.iter().find(|known| is_ours(known) && known[list.of] == entry[list.of]);
        keep_times(entry, before.unwrap_or(&Value::Null), now);
    }
    // Entries stay where they are: an order of its own would make two controllers write in turns.
    let mut merged = Vec::with_capacity(known.len() + ours.len());
    for entry in known {
        if !is_ours(entry) {
            merged.push(entry.clone());
        } else if let Some(at) = ours.iter().position(|ours| ours[list.of] == entry[list.of]) {
            merged.push(ours.remove(at));
        }
    }
    merged.append(&mut ours);
    Value::Array(merged)
}

/// Whether everything that `wanted` says is in `there`. Of conditions and listeners the order does not count.
pub(super) fn says_it(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            says_it(there.get(key).unwrap_or(&Value::Null), wanted) || is_nothing(there.get(key), wanted)
        }),
        (Value::Array(there), Value::Array(wanted)) => {
            let key =
                ["type", "name"].into_iter().find(|key| wanted.iter().all(|entry| entry[key].is_string()));
            match key {
                Some(key) => {
                    there.len() == wanted.len()
                        && wanted.iter().all(|wanted| {
                            there.iter().any(|entry| entry[key] == wanted[key] && says_it(entry, wanted))
                        })
                }
                None => {
                    there.len() == wanted.len()
                        && there.iter().zip(wanted).all(|(there, wanted)| says_it(there, wanted))
                }
            }
        }
        _ => there == wanted,
    }
}

/// The API server leaves out what is empty.
fn is_nothing(there: Option<&Value>, wanted: &Value) -> bool {
    let is_empty = match wanted {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(_) => false,
    };
    is_empty && there.is_none()
}

/// Gives each of the conditions in `made` its time.
fn keep_times(made: &mut Value, there: &Value, now: Time<'_>) {
    let Some(conditions) = made.get_mut("conditions").and_then(Value::as_array_mut) else { return };
    for condition in conditions {
        let known = there["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let before = known.iter().find(|known| known["type"] == condition["type"]);
        let same = before.filter(|before| before["status"] == condition["status"]);
        let time = same.map_or(Value::Null, |same| same["lastTransitionTime"].clone());
        condition["lastTransitionTime"] = if time.is_string() { time } else { json!(now) };
    }
}

fn named<'v>(list: &'v Value, name: &Value) -> &'v Value {
    list.as_array().and_then(|list| list.iter().find(|entry| entry["name"] == *name)).unwrap_or(&Value::Null)
}

fn to_value(parent: &impl serde::Serialize) -> Value {
    serde_json::to_value(parent).unwrap_or_else(|_| Value::Object(Map::new()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::gateway_api::{
        ClassStatus, Condition, ParentRef, PolicyAncestorStatus, PolicyStatus, RouteParentStatus,
        RouteStatus, Truth,
    };

    const PARENTS: List = List { name: "parents", of: "parentRef", most: 32 };
    const NOW: &str = "2026-02-02T00:00:00Z";
    const THEN: &str = "2026-01-01T00:00:00Z";

    fn condition(status: Truth) -> Condition {
        Condition { kind: "Accepted", status, reason: "Why", message: "".into(), observed_generation: 2 }
    }

    fn ours(gateways: &[&str]) -> Status {
        let entry = |name: &&str| RouteParentStatus {
            parent_ref: ParentRef {
                group: None,
                kind: None,
                namespace: None,
                name: (*name).into(),
                section_name: None,
                port: None,
            },
            controller_name: "us".into(),
            conditions: vec![condition(Truth::True)],
        };
        Status::Route(RouteStatus { parents: gateways.iter().map(entry).collect() })
    }

    fn entry(controller: &str, gateway: &str, status: &str, time: &str) -> Value {
        json!({
            "parentRef": {"name": gateway},
            "controllerName": controller,
            "conditions": [{
                "type": "Accepted", "status": status, "reason": "Why", "message": "", "observedGeneration": 2,
                "lastTransitionTime": time,
            }],
        })
    }

    #[test]
    fn entries_of_other_controllers_stay_where_and_as_they_are() {
        let others = [entry("them", "x", "False", THEN), entry("others", "y", "True", THEN)];
        let there = json!({"parents": [others[0], entry("us", "old", "True", THEN), others[1]]});
        let made = entries(PARENTS, Some(&ours(&["new"])), "us", &there, NOW);
        assert_eq!(made, json!([others[0], others[1], entry("us", "new", "True", NOW)]));
        // A route that is not ours any more.
        assert_eq!(entries(PARENTS, None, "us", &there, NOW), json!([others[0], others[1]]));
    }

    #[test]
    fn of_policies_the_same_holds_for_ancestors() {
        let policy = |gateways: &[&str]| {
            let Status::Route(RouteStatus { parents }) = ours(gateways) else { unreachable!() };
            let entry = |RouteParentStatus { parent_ref, controller_name, conditions }| {
                PolicyAncestorStatus { ancestor_ref: parent_ref, controller_name, conditions }
            };
            Status::Policy(PolicyStatus { ancestors: parents.into_iter().map(entry).collect() })
        };
        let of = |mut entry: Value| {
            let Some(fields) = entry.as_object_mut() else { unreachable!() };
            let parent = fields.remove("parentRef");
            fields.insert("ancestorRef".to_owned(), parent.unwrap_or_default());
            entry
        };
        let list = list_of(Kind::BackendTlsPolicy).unwrap();
        let theirs = of(entry("them", "a", "False", THEN));
        let there = json!({"ancestors": [theirs, of(entry("us", "old", "True", THEN)), of(entry("us", "a", "True", THEN))]});
        let made = entries(list, Some(&policy(&["a", "b"])), "us", &there, NOW);
        let expected = [theirs, of(entry("us", "a", "True", THEN)), of(entry("us", "b", "True", NOW))];
        assert_eq!(made, json!(expected));
        assert!(list_of(Kind::Gateway).is_none());
    }

    #[test]
    fn all_controllers_together_have_no_more_entries_than_the_api_allows() {
        for (theirs, most) in [(0, 3), (30, 2), (32, 0), (40, 0)] {
            let others: Vec<_> = (0..theirs).map(|n| entry("them", &n.to_string(), "True", THEN)).collect();
            let made =
                entries(PARENTS, Some(&ours(&["a", "b", "c"])), "us", &json!({"parents": others}), NOW);
            assert_eq!(made.as_array().map(Vec::len), Some(theirs + most), "{theirs}");
            let is_there = |controller| has_entry(PARENTS, controller, &json!({"parents": made}));
            assert_eq!((is_there("us"), is_there("them")), (most > 0, theirs > 0), "{theirs}");
        }
    }

    #[test]
    fn what_has_not_changed_is_not_written_again() {
        let there = json!({"parents": [entry("us", "b", "True", THEN), entry("us", "a", "True", THEN)]});
        assert_eq!(entries(PARENTS, Some(&ours(&["a", "b"])), "us", &there, NOW), there["parents"]);
        // Another status has another time.
        let there = json!({"parents": [entry("us", "a", "False", THEN)]});
        assert_eq!(
            entries(PARENTS, Some(&ours(&["a"])), "us", &there, NOW),
            json!([entry("us", "a", "True", NOW)])
        );
    }

    #[test]
    fn a_whole_status_keeps_the_times_of_its_conditions() {
        let class = |status| {
            Status::Class(ClassStatus { conditions: vec![condition(status)], supported_features: Vec::new() })
        };
        let made = whole(&class(Truth::True), &json!({}), THEN);
        assert_eq!(made["conditions"][0]["lastTransitionTime"], THEN);
        assert_eq!(whole(&class(Truth::True), &made, NOW), made);
        assert_eq!(whole(&class(Truth::False), &made, NOW)["conditions"][0]["lastTransitionTime"], NOW);
    }

    #[test]
    fn of_conditions_and_listeners_the_order_does_not_count_and_what_is_empty_may_be_left_out() {
        let wanted = json!({
            "conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "False"}],
            "listeners": [{"name": "x", "attachedRoutes": 0, "supportedKinds": []}],
        });
        let mut there = json!({
            "conditions": [{"type": "B", "status": "False"}, {"type": "A", "status": "True", "message": "m"}],
            "listeners": [{"name": "x"}],
        });
        assert!(says_it(&there, &wanted));
        there["conditions"][1]["status"] = json!("False");
        assert!(!says_it(&there, &wanted));
    }
}
