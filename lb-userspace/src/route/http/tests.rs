use super::*;
use crate::config::{ValueMatch, compared};
use http::header::{HeaderName, HeaderValue};
use proptest::prelude::*;

fn pattern(text: &str) -> SniPattern {
    match text.strip_prefix("*.") {
        Some(suffix) => SniPattern::Wildcard(suffix.into()),
        None if text == "*" => SniPattern::Any,
        None => SniPattern::Exact(text.into()),
    }
}

fn exact(path: &str) -> RequestMatch {
    RequestMatch { path: Some(PathMatch::Exact(path.into())), ..RequestMatch::default() }
}

fn prefix(path: &str) -> RequestMatch {
    RequestMatch { path: Some(PathMatch::Prefix(path.into())), ..RequestMatch::default() }
}

fn regex(expression: &str) -> RequestMatch {
    RequestMatch {
        path: Some(PathMatch::Regex(Pattern::new(expression).unwrap())),
        ..RequestMatch::default()
    }
}

fn method(name: &str, of: RequestMatch) -> RequestMatch {
    RequestMatch { method: Some(name.parse().unwrap()), ..of }
}

fn header(name: &'static str, value: &str, mut of: RequestMatch) -> RequestMatch {
    of.headers.push((HeaderName::from_static(name), ValueMatch::Exact(value.into())));
    of
}

fn param(name: &str, value: &str, mut of: RequestMatch) -> RequestMatch {
    of.query.push((name.into(), ValueMatch::Exact(value.into())));
    of
}

/// Rules without hosts, each called by its place.
fn rules(matches: &[RequestMatch]) -> HttpRules<usize> {
    HttpRules::new(matches.iter().enumerate().map(|(place, of)| (&[][..], std::slice::from_ref(of), place)))
}

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    lines
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect()
}

/// The place of the rule for `METHOD target`.
fn find(rules: &HttpRules<usize>, request: &str, lines: &[(&'static str, &'static str)]) -> Option<usize> {
    let (method, target) = request.split_once(' ').unwrap();
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let request = RequestParts {
        host: "a.example.com",
        method: &method.parse().unwrap(),
        path: &compared(path).unwrap(),
        query,
        headers: &headers(lines),
    };
    rules.lookup(&request).map(|(place, _)| *place)
}

#[test]
fn precedence_is_the_derived_order() {
    let rank = |of| Rank::new(SniMatch::Any, &of);
    let order = [
        header("a", "1", header("b", "1", method("GET", exact("/a")))),
        method("GET", exact("/a")),
        exact("/a"),
        method("GET", prefix("/aa")),
        header("a", "1", prefix("/aa")),
        param("a", "1", param("b", "1", prefix("/aa"))),
        param("a", "1", prefix("/aa")),
        prefix("/aa"),
        header("a", "1", prefix("/a")),
        regex("/a.*"),
        regex(".*"),
        method("GET", prefix("/")),
        header("a", "1", RequestMatch::default()),
        RequestMatch::default(),
    ];
    for pair in order.windows(2) {
        assert!(rank(pair[0].clone()) > rank(pair[1].clone()), "{pair:?}");
    }
    assert_eq!(rank(prefix("/")), rank(RequestMatch::default()));
    let of_host = |host| Rank::new(host, &RequestMatch::default());
    assert!(of_host(SniMatch::Exact) > Rank::new(SniMatch::Wildcard(100), &exact("/a")));
    assert!(of_host(SniMatch::Wildcard(2)) > Rank::new(SniMatch::Any, &exact("/a")));
}

#[test]
fn a_prefix_covers_whole_segments() {
    let rules = rules(&[prefix("/abc"), prefix("/abc/def/"), exact("/abc/exact")]);
    for (path, rule) in [
        ("/abc", Some(0)),
        ("/abc/", Some(0)),
        ("/abc/d", Some(0)),
        ("/abc/exact", Some(2)),
        ("/abc/exact/", Some(0)),
        ("/abc/def", Some(1)),
        ("/abc/def/", Some(1)),
        ("/abc/defg", Some(0)),
        ("/abcd", None),
        ("/ab", None),
        ("/", None),
        ("/ABC", None),
        ("/x/abc", None),
    ] {
        assert_eq!(find(&rules, &format!("GET {path}"), &[]), rule, "{path}");
    }
}

#[test]
fn paths_that_servers_take_for_one_are_one() {
    let rules = rules(&[prefix("/admin"), exact("/caf%c3%a9"), prefix("/a//%62"), RequestMatch::default()]);
    for (path, rule) in [
        ("//admin", 0),
        ("/%61dmin/x", 0),
        ("/admin//x", 0),
        ("/admin%2Fx", 3),
        ("/caf%C3%A9", 1),
        ("/caf%c3%a9", 1),
        ("/a/b/c", 2),
        ("*", 3),
    ] {
        assert_eq!(find(&rules, &format!("GET {path}"), &[]), Some(rule), "{path}");
    }
}

#[test]
fn the_longest_prefix_that_fits_in_all_counts_then_expressions_then_the_rest() {
    let rules = rules(&[
        RequestMatch::default(),
        regex("/a/[0-9]+"),
        regex("/a/[0-9]+/."),
        method("POST", prefix("/a/1")),
        regex("/b.*"),
    ]);
    assert_eq!(find(&rules, "POST /a/1", &[]), Some(3));
    assert_eq!(find(&rules, "GET /a/1", &[]), Some(1));
    assert_eq!(find(&rules, "GET /a/1/x", &[]), Some(2));
    assert_eq!(find(&rules, "GET /a/1/xy", &[]), Some(0));
    assert_eq!(find(&rules, "GET /bcd", &[]), Some(4));
}

#[test]
fn values_of_headers() {
    let version = HeaderName::from_static("version");
    let one = RequestMatch {
        headers: vec![(version, ValueMatch::Regex(Pattern::new("one(, two)*").unwrap()))],
        ..RequestMatch::default()
    };
    let rules = rules(&[
        header("version", "a, b", RequestMatch::default()),
        one,
        header("cookie", "a=1; b=2", exact("/c")),
    ]);
    assert_eq!(find(&rules, "GET /", &[("version", "a, b")]), Some(0));
    assert_eq!(find(&rules, "GET /", &[("version", "a"), ("version", "b")]), Some(0));
    assert_eq!(find(&rules, "GET /", &[("version", "a"), ("version", "b"), ("version", "c")]), None);
    assert_eq!(find(&rules, "GET /", &[("version", "a")]), None);
    assert_eq!(find(&rules, "GET /", &[("version", "one")]), Some(1));
    assert_eq!(find(&rules, "GET /", &[("version", "one"), ("version", "two")]), Some(1));
    assert_eq!(find(&rules, "GET /", &[("version", "two"), ("version", "one")]), None);
    assert_eq!(find(&rules, "GET /", &[]), None);
    assert_eq!(find(&rules, "GET /c", &[("cookie", "a=1"), ("cookie", "b=2")]), Some(2));
}

#[test]
fn values_of_the_query() {
    let rules = rules(&[param("animal", "blue whale", RequestMatch::default()), param("x", "", exact("/x"))]);
    for (target, rule) in [
        ("/?animal=blue%20whale", Some(0)),
        ("/?a=1&animal=blue+whale&animal=cat", Some(0)),
        ("/?animal=cat&animal=blue+whale", None),
        ("/?%61nimal=blue+whale", Some(0)),
        ("/?Animal=blue+whale", None),
        ("/?animal", None),
        ("/", None),
        ("/x?x", Some(1)),
        ("/x?x=", Some(1)),
        ("/x?", None),
    ] {
        assert_eq!(find(&rules, &format!("GET {target}"), &[]), rule, "{target}");
    }
}

#[test]
fn of_equal_matches_the_first_counts_and_a_rule_may_fit_by_any_of_its_own() {
    let matches = [[exact("/a"), exact("/b")], [exact("/b"), exact("/c")]];
    let rules = HttpRules::new(matches.iter().enumerate().map(|(place, of)| (&[][..], &of[..], place)));
    assert_eq!(find(&rules, "GET /b", &[]), Some(0));
    assert_eq!(find(&rules, "GET /c", &[]), Some(1));
    assert_eq!(find(&rules, "GET /d", &[]), None);
}

#[test]
fn the_match_that_fits_is_handed_out_as_paths_are_compared() {
    let rules = rules(&[prefix("/a//%62/")]);
    let (method, headers) = (Method::GET, HeaderMap::new());
    let request = RequestParts { host: "", method: &method, path: "/a/b/c", query: None, headers: &headers };
    let (_, of) = rules.lookup(&request).unwrap();
    assert!(matches!(&of.path, Some(PathMatch::Prefix(prefix)) if **prefix == *"/a/b"));
}

fn any_match() -> impl Strategy<Value = RequestMatch> {
    let segments = r"(/[ab]{1,2}){1,3}";
    let path = prop_oneof![
        2 => Just(None),
        1 => Just(Some(PathMatch::Prefix("/".into()))),
        4 => segments.prop_map(|path| Some(PathMatch::Exact(path.into()))),
        6 => segments.prop_map(|path| Some(PathMatch::Prefix(path.into()))),
        3 => r"(/[ab.]{1,2}){1,2}(\.\*)?".prop_map(|text| Some(PathMatch::Regex(Pattern::new(&text).unwrap()))),
    ];
    let method = prop_oneof![3 => Just(None), 1 => Just(Some(Method::GET)), 1 => Just(Some(Method::POST))];
    let value = || "[12]".prop_map(|text| ValueMatch::Exact(text.into()));
    let headers =
        prop::collection::btree_map(prop_oneof![Just("x"), Just("y")], value(), 0..3).prop_map(|all| {
            all.into_iter().map(|(name, value)| (HeaderName::from_static(name), value)).collect()
        });
    let query = prop::collection::btree_map("[pq]", value(), 0..3)
        .prop_map(|all| all.into_iter().map(|(name, value)| (name.into(), value)).collect());
    (path, method, headers, query).prop_map(|(path, method, headers, query)| RequestMatch {
        path,
        method,
        headers,
        query,
    })
}

fn any_rule() -> impl Strategy<Value = (Vec<SniPattern>, Vec<RequestMatch>)> {
    let hosts = prop::collection::vec(r"(\*|(\*\.)?[ab](\.[ab]){0,2})".prop_map(|text| pattern(&text)), 0..3);
    (hosts, prop::collection::vec(any_match(), 0..4))
}

/// The definition: whether the pattern covers the host, and how well.
fn covers(host: &str, by: &SniPattern) -> Option<SniMatch> {
    match by {
        SniPattern::Any => Some(SniMatch::Any),
        SniPattern::Exact(name) => (**name == *host).then_some(SniMatch::Exact),
        SniPattern::Wildcard(suffix) => {
            let head = host.strip_suffix(&**suffix)?;
            (head.len() > 1 && head.ends_with('.')).then_some(SniMatch::Wildcard(suffix.len()))
        }
    }
}

/// The definition: whether the match fits.
fn fits(of: &RequestMatch, request: &RequestParts<'_>) -> bool {
    let path = match &of.path {
        None => true,
        Some(PathMatch::Exact(path)) => **path == *request.path,
        Some(PathMatch::Prefix(prefix)) => {
            let segments = |path: &str| -> Vec<String> {
                path.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect()
            };
            segments(request.path).starts_with(&segments(prefix))
        }
        Some(PathMatch::Regex(pattern)) => pattern.is_match(request.path),
    };
    let is = |wanted: &ValueMatch, text: &str| match wanted {
        ValueMatch::Exact(exact) => **exact == *text,
        ValueMatch::Regex(pattern) => pattern.is_match(text),
    };
    let query: Vec<(&str, &str)> =
        request.query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')).collect();
    path && of.method.as_ref().is_none_or(|method| method == request.method)
        && of.headers.iter().all(|(name, wanted)| {
            request.headers.get(name).is_some_and(|value| is(wanted, value.to_str().unwrap()))
        })
        && of.query.iter().all(|(name, wanted)| {
            query.iter().find(|(given, _)| *given == &**name).is_some_and(|(_, value)| is(wanted, value))
        })
}

proptest! {
    /// The indexed lookup against the definition: of all matches that fit, the greatest rank, and of equal ones the first.
    #[test]
    fn lookup_is_the_greatest_rank(
        rules in prop::collection::vec(any_rule(), 0..12),
        host in r"([ab](\.[ab]){0,2})?",
        post in any::<bool>(),
        path in r"(/[ab]{1,2}){1,4}/?",
        query in prop::option::of(r"([pq]=[12](&[pq]=[12]){0,2})?"),
        lines in prop::collection::btree_map(prop_oneof![Just("x"), Just("y")], prop_oneof![Just("1"), Just("2")], 0..3),
    ) {
        let table = HttpRules::new(rules.iter().enumerate().map(|(place, (hosts, matches))| (&hosts[..], &matches[..], place)));
        let lines: Vec<_> = lines.into_iter().collect();
        let request = RequestParts {
            host: &host,
            method: if post { &Method::POST } else { &Method::GET },
            path: &path,
            query: query.as_deref(),
            headers: &headers(&lines),
        };
        let mut all = Vec::new();
        for (place, (hosts, matches)) in rules.iter().enumerate() {
            let hosts = if hosts.is_empty() { vec![SniPattern::Any] } else { hosts.clone() };
            let matches = if matches.is_empty() { vec![RequestMatch::default()] } else { matches.clone() };
            for host in hosts.iter().filter_map(|by| covers(&host, by)) {
                let fitting = matches.iter().filter(|of| fits(of, &request));
                all.extend(fitting.map(|of| (Rank::new(host, of), Reverse(place))));
            }
        }
        let best = all.iter().max();
        let found = table.lookup(&request);
        prop_assert_eq!(found.map(|(place, _)| *place), best.map(|(_, place)| place.0));
        if let (Some((_, of)), Some((rank, _))) = (found, best) {
            prop_assert_eq!(Rank::new(rank.host, of), *rank);
            prop_assert!(fits(of, &request));
        }
    }
}
