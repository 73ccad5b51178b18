//! Circles among arrows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::modules::Arrow;

/// From one node to another, and the first of the lines that make the arrow.
type Graph = BTreeMap<String, BTreeMap<String, String>>;

/// What is wrong: circles.
pub(super) fn complaints(arrows: impl Iterator<Item = Arrow>) -> Vec<String> {
    let mut all = Graph::new();
    for Arrow { from, to, because } in arrows {
        all.entry(from).or_default().entry(to).or_insert(because);
    }
    let mut circles: Vec<_> = all.keys().filter_map(|node| way(&all, node, node)).collect();
    circles.sort_by_key(Vec::len);
    let mut complaints = Vec::new();
    // Those that share no node: what is left of a knot is seen once a circle of it is gone.
    let mut shown = BTreeSet::new();
    for circle in circles {
        if circle.iter().all(|node| !shown.contains(node)) {
            complaints.push(describe(&all, &circle));
            shown.extend(circle);
        }
    }
    complaints
}

/// The nodes of the shortest way, with both ends; from a node to itself it leads over another.
fn way<'g>(graph: &'g Graph, from: &str, to: &str) -> Option<Vec<&'g str>> {
    let (from, targets) = graph.get_key_value(from)?;
    let mut before: BTreeMap<&str, &str> =
        targets.keys().map(|target| (target.as_str(), from.as_str())).collect();
    let mut queue: VecDeque<&str> = before.keys().copied().collect();
    while let Some(node) = queue.pop_front() {
        if node == to {
            let mut way = vec![node];
            while way.len() == 1 || way.last() != Some(&from.as_str()) {
                way.push(before[way[way.len() - 1]]);
            }
            way.reverse();
            return Some(way);
        }
        for next in graph.get(node).into_iter().flat_map(BTreeMap::keys) {
            if !before.contains_key(next.as_str()) {
                before.insert(next, node);
                queue.push_back(next);
            }
        }
    }
    None
}

fn describe(graph: &Graph, circle: &[&str]) -> String {
    let arrows =
        circle.windows(2).map(|pair| format!("\n  {} -> {}: {}", pair[0], pair[1], graph[pair[0]][pair[1]]));
    format!("a circle:{}", arrows.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(arrows: &[(&str, &str)]) -> Vec<String> {
        let arrow = |(from, to): &(&str, &str)| Arrow {
            from: (*from).to_owned(),
            to: (*to).to_owned(),
            because: format!("{from}.rs:7 needs {to}.rs"),
        };
        complaints(arrows.iter().map(arrow))
    }

    #[test]
    fn a_circle_is_shown_with_the_lines_that_make_it() {
        let found = found(&[("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("e", "a")]);
        assert_eq!(
            found,
            [
                "a circle:\n  a -> b: a.rs:7 needs b.rs\n  b -> c: b.rs:7 needs c.rs\n  c -> a: c.rs:7 needs a.rs"
            ]
        );
    }

    #[test]
    fn circles_apart_are_shown_each_and_the_shortest_of_a_knot() {
        let found = found(&[("a", "b"), ("b", "c"), ("c", "a"), ("b", "a"), ("x", "y"), ("y", "x")]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("a circle:\n  a -> b") && found[0].lines().count() == 3, "{found:?}");
    }

    #[test]
    fn what_leads_nowhere_back_is_no_circle() {
        assert!(found(&[("a", "b"), ("b", "c"), ("a", "c")]).is_empty());
    }
}
