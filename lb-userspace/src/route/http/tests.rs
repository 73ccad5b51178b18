use super::*;
use crate::config::{Pattern, ValueMatch, compared};
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

fn begin(path: &str) -> RequestMatch {
    RequestMatch { path: Some(PathMatch::Begin(path.into())), ..RequestMatch::default() }
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
    listed(&matches.iter().map(|of| (None, of.clone())).collect::<Vec<_>>())
}

/// The same, each with its list.
fn listed(matches: &[(Option<&str>, RequestMatch)]) -> HttpRules<usize> {
    HttpRules::new(matches.iter().enumerate().map(|(what, (list, of))| Given {
        hosts: &[],
        matches: std::slice::from_ref(of),
        list: *list,
        what,
    }))
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
    assert_eq!(rank(prefix("/a")), rank(begin("/a")));
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
fn a_beginning_may_end_in_the_middle_of_a_segment() {
    let rules = rules(&[prefix("/ab"), begin("/ab"), begin("/abc/"), regex("/.*")]);
    for (path, rule) in [
        ("/ab", 0),
        ("/ab/x", 0),
        ("/abx", 1),
        ("/abc", 1),
        ("/abc/", 2),
        ("/abc/x", 2),
        ("/a", 3),
        ("/aé", 3),
    ] {
        assert_eq!(find(&rules, &format!("GET {path}"), &[]), Some(rule), "{path}");
    }
}

#[test]
fn of_a_list_the_first_counts_and_among_lists_the_narrowest() {
    let (one, two) = (Some("one"), Some("two"));
    let rules = listed(&[
        (one, header("user", "a", RequestMatch::default())),
        (one, begin("/a")),
        (one, exact("/a/x")),
        (None, exact("/a/x")),
        (None, prefix("/a/b/c")),
        (two, regex("/b.*")),
        (two, begin("/b/c")),
        // Another one of that name.
        (None, exact("/c")),
        (one, exact("/b/x")),
    ]);
    let user: &[_] = &[("user", "a")];
    for (path, lines, rule) in [
        ("/a/x", &[][..], Some(1)),
        ("/a/x", user, Some(0)),
        ("/a/b/c", &[], Some(4)),
        ("/b/c", &[], Some(5)),
        ("/b/x", user, Some(8)),
        ("/b", user, Some(5)),
        ("/d", user, Some(0)),
        ("/d", &[], None),
    ] {
        assert_eq!(find(&rules, &format!("GET {path}"), lines), rule, "{path} {lines:?}");
    }
}

#[test]
fn paths_that_servers_take_for_one_are_one() {
    let rules = rules(&[prefix("/admin"), exact("/caf%c3%a9"), begin("/a//%62"), RequestMatch::default()]);
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
    let given = |(what, of)| Given { hosts: &[], matches: of, list: None, what };
    let rules = HttpRules::new(matches.iter().map(|of| &of[..]).enumerate().map(given));
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
        3 => r"(/[ab]{1,2}){1,3}/?".prop_map(|path| Some(PathMatch::Begin(path.into()))),
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

/// The hosts of rules, whether they are a list, and the matches of each.
fn any_rules() -> impl Strategy<Value = (Vec<SniPattern>, bool, Vec<Vec<RequestMatch>>)> {
    let hosts = prop::collection::vec(r"(\*|(\*\.)?[ab](\.[ab]){0,2})".prop_map(|text| pattern(&text)), 0..3);
    (hosts, any::<bool>(), prop::collection::vec(prop::collection::vec(any_match(), 0..4), 1..4))
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
        Some(PathMatch::Begin(begin)) => request.path.starts_with(&**begin),
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
    /// The indexed lookup against the definition: of all matches that fit, the greatest rank, and of equal ones the first; but of a
    /// list that has it, the first rule that fits.
    #[test]
    fn lookup_is_the_greatest_rank(
        lists in prop::collection::vec(any_rules(), 0..6),
        host in r"([ab](\.[ab]){0,2})?",
        post in any::<bool>(),
        path in r"(/[ab]{1,2}){1,4}/?",
        query in prop::option::of(r"([pq]=[12](&[pq]=[12]){0,2})?"),
        lines in prop::collection::btree_map(prop_oneof![Just("x"), Just("y")], prop_oneof![Just("1"), Just("2")], 0..3),
    ) {
        let names = ["0", "1", "2", "3", "4", "5"];
        let mut rules = Vec::new();
        for ((hosts, is_list, all), name) in lists.iter().zip(names) {
            rules.extend(all.iter().map(|matches| (hosts, is_list.then_some(name), matches)));
        }
        let table = HttpRules::new(rules.iter().enumerate().map(|(what, (hosts, list, matches))| Given {
            hosts,
            matches,
            list: *list,
            what,
        }));
        let lines: Vec<_> = lines.into_iter().collect();
        let request = RequestParts {
            host: &host,
            method: if post { &Method::POST } else { &Method::GET },
            path: &path,
            query: query.as_deref(),
            headers: &headers(&lines),
        };
        let mut all = Vec::new();
        let fitting = |matches: &[RequestMatch]| -> Vec<RequestMatch> {
            let matches = if matches.is_empty() { vec![RequestMatch::default()] } else { matches.to_vec() };
            matches.into_iter().filter(|of| fits(of, &request)).collect()
        };
        for (place, (hosts, _, matches)) in rules.iter().enumerate() {
            let hosts = if hosts.is_empty() { vec![SniPattern::Any] } else { hosts.to_vec() };
            for host in hosts.iter().filter_map(|by| covers(&host, by)) {
                all.extend(fitting(matches).iter().map(|of| (Rank::new(host, of), Reverse(place))));
            }
        }
        let best = all.iter().max().map(|(rank, place)| (*rank, place.0));
        let first = best.map(|(_, place)| {
            let (_, list, _) = rules[place];
            let is_first = |(_, other, matches): &(_, Option<&str>, &Vec<RequestMatch>)| {
                *other == list && !fitting(matches).is_empty()
            };
            list.map_or(place, |_| rules.iter().position(is_first).unwrap())
        });
        let found = table.lookup(&request);
        prop_assert_eq!(found.map(|(place, _)| *place), first);
        if let (Some((place, of)), Some((rank, best))) = (found, best) {
            prop_assert!(*place != best || Rank::new(rank.host, of) == rank);
            prop_assert!(fits(of, &request));
        }
    }
}
