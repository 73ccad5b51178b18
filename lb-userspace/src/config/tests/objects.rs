//! A draft of which a part is from objects: one that is wrong is left out, and nothing else is touched.

use super::*;
use crate::config::diagnostic::Report;
use crate::config::draft::{BackendDraft, Draft, Field, PoolDraft, RouteDraft, UpstreamTlsDraft};
use crate::config::place::{ObjectField, Placed};

fn place(object: &str, field: &str) -> Place {
    Place::Object(Box::new(ObjectField { object: object.into(), path: field.into() }))
}

fn given<T>(object: &str, field: &str, value: T) -> Field<T> {
    Field::Given(Placed::new(place(object, field), value))
}

/// A route that an object makes, for one name and pool.
fn route(object: &str, listener: &str, sni: &str, pool: Field<String>) -> RouteDraft {
    let sni = Placed::new(place(object, "spec.hostnames[0]"), SniPattern::Exact(sni.into()));
    let backend = BackendDraft { pool, weight: Field::Absent };
    let backend = Placed::new(place(object, "spec.rules[0].backendRefs[0]"), backend);
    RouteDraft {
        name: given(object, "metadata.name", object.replace([' ', '/'], "_").into()),
        listener: given(object, "spec.parentRefs[0]", listener.to_owned()),
        sni: given(object, "spec.hostnames", vec![sni]),
        backends: given(object, "spec.rules[0].backendRefs", vec![backend]),
        ..RouteDraft::new(place(object, ""))
    }
}

fn pool(object: &str, name: &str) -> Field<String> {
    given(object, "spec.rules[0].backendRefs[0].name", name.to_owned())
}

/// What the check makes of `text` with these routes.
fn checked_with(text: &str, routes: Vec<RouteDraft>, change: impl FnOnce(&mut Draft)) -> Checked {
    let mut report = Report::default();
    let mut draft = crate::config::toml::read(text, &mut report);
    draft.routes.extend(routes.into_iter().map(Arc::new));
    change(&mut draft);
    let config = crate::config::check::check(draft, &*FILES, UnixTime::since_unix_epoch(NOW), &mut report);
    conclude(config, report, "snisplice.toml", text)
}

#[test]
fn an_object_with_an_error_is_left_out_alone() {
    let good = "TLSRoute db/good";
    let dangling = "TLSRoute db/dangling";
    let tied = "TLSRoute db/tied";
    let routes = vec![
        route(dangling, "databases", "b.example.com", pool(dangling, "reddis")),
        route(tied, "databases", "app1.example.com", pool(tied, "redis")),
        route(good, "databases", "c.example.com", pool(good, "redis")),
    ];
    let (config, diagnostics) = checked_with(GOOD, routes, |_| {}).expect("the file is good");
    let names: Vec<_> = config.routes.iter().map(|route| &*route.name).collect();
    assert_eq!(names, ["app1.example.com", "TLSRoute_db_good"]);
    assert_eq!(
        diagnostics.to_string(),
        "error: no pool is named `reddis`\n\
         --> TLSRoute db/dangling spec.rules[0].backendRefs[0].name\n \
         = help: did you mean `redis`?\n\n\
         error: routes `app1.example.com` and `TLSRoute_db_tied` tie: both take `app1.example.com`\n \
         --> TLSRoute db/tied spec.hostnames[0]\n  \
         |\n \
         ::: snisplice.toml:8:8\n  \
         |\n\
         8 | sni = [\"app1.example.com\"]\n  \
         |        ------------------ also here\n  \
         |\n  \
         = help: take it out of one of them, or tell them apart by `alpn`\n\n"
    );
}

#[test]
fn what_hangs_on_a_refused_object_is_refused_with_the_next_look() {
    let gateway = "Gateway infra/gateway";
    let dependent = "TLSRoute db/dependent";
    let routes = vec![route(dependent, "second", "b.example.com", pool(dependent, "redis"))];
    let second = "[[listener]]\nname = \"second\"\nbind = [\"0.0.0.0:443\"]\n";
    let own = |draft: &mut Draft| {
        let listener = draft.listeners.last_mut().expect("the second");
        listener.place = place(gateway, "spec.listeners[0]");
        let Field::Given(bind) = &mut listener.bind else { panic!("{listener:?}") };
        bind.value[0].place = place(gateway, "spec.listeners[0].port");
    };
    let (config, diagnostics) =
        checked_with(&format!("{GOOD}{second}"), routes, own).expect("the file is good");
    assert_eq!((config.listeners.len(), config.routes.len()), (1, 1));
    let found: Vec<_> = diagnostics.iter().map(|fault| &*fault.message).collect();
    assert_eq!(found, ["`0.0.0.0:443` is listened on twice", "no listener is named `second`"]);
}

#[test]
fn an_error_in_the_file_refuses_the_whole_whatever_objects_say() {
    let tied = "TLSRoute db/tied";
    let routes = vec![route(tied, "databases", "app1.example.com", pool(tied, "redis"))];
    let bad = changed(GOOD, "[\"redis\"]", "[\"reddis\"]");
    let diagnostics = checked_with(&bad, routes, |_| {}).expect_err("the file is bad");
    assert_eq!(diagnostics.count(Severity::Error), 2);
}

#[test]
fn an_error_of_an_object_that_has_added_nothing_by_itself_is_not_passed_over() {
    // A pool of the file with a server from elsewhere: there is nothing that could be left out alone.
    let own = |draft: &mut Draft| {
        let Field::Given(servers) = &mut Arc::make_mut(&mut draft.pools[0]).servers else {
            panic!("{draft:?}")
        };
        let Field::Given(address) = &mut servers.value[1].value.address else { panic!() };
        address.place = place("EndpointSlice db/redis", "endpoints[0]");
    };
    let twice = changed(GOOD, "\"10.0.0.11:6379\"", "\"10.0.0.11:6379\", \"10.0.0.11:6379\"");
    assert!(checked_with(&twice, vec![], own).is_err());
}

#[test]
fn a_pool_goes_with_an_object_that_has_a_part_in_it() {
    let (policy, service) = ("BackendTLSPolicy db/p", "Service db/redis");
    let san = || Placed::new(place(policy, "spec.validation"), San::Dns("a.example".into()));
    let tls = UpstreamTlsDraft {
        ca: Field::Absent,
        server_name: Field::Absent,
        san: given(policy, "spec.validation", vec![san(), san()]),
        certificate: Field::Absent,
        alpn: Field::Absent,
        min_version: Field::Absent,
    };
    let own = |draft: &mut Draft| {
        let pool = PoolDraft {
            name: given(service, "spec.ports", "db.redis:80".into()),
            tls: given(service, "spec.ports", tls),
            ..PoolDraft::new(place(service, "spec.ports"))
        };
        draft.pools.push(pool.into());
    };
    let (config, diagnostics) = checked_with(GOOD, vec![], own).expect("the file is good");
    assert!(config.pools.iter().all(|pool| &*pool.name != "db.redis:80"));
    assert_eq!(diagnostics.count(Severity::Error), 1);
}

#[test]
fn a_refused_object_takes_no_name_from_another() {
    let (bad, good) = ("TLSRoute a/bad", "TLSRoute b/good");
    let routes = vec![
        route(bad, "databases", "b.example.com", pool(bad, "reddis")),
        route(good, "databases", "b.example.com", pool(good, "redis")),
    ];
    let (config, diagnostics) = checked_with(GOOD, routes, |_| {}).expect("the file is good");
    assert_eq!(config.routes.len(), 2);
    let found: Vec<_> = diagnostics.iter().map(|fault| &*fault.message).collect();
    assert_eq!(found, ["no pool is named `reddis`"]);
}

#[test]
fn a_chain_of_clashes_has_an_end() {
    // Each takes a name of the one before, so that every second one would be good.
    let objects: Vec<_> = (0..1000).map(|n| format!("TLSRoute a/{n}")).collect();
    let routes = objects.iter().enumerate().map(|(n, object)| {
        let mut route = route(object, "databases", &format!("{n}.example.com"), pool(object, "redis"));
        let Field::Given(sni) = &mut route.sni else { panic!() };
        let next = SniPattern::Exact(format!("{}.example.com", n + 1).into());
        sni.value.push(Placed::new(place(object, "spec.hostnames[1]"), next));
        route
    });
    let (config, diagnostics) = checked_with(GOOD, routes.collect(), |_| {}).expect("the file is good");
    let (served, refused) = (config.routes.len() - 1, diagnostics.count(Severity::Error));
    assert!(served > 1 && served + refused == 1000, "{served} and {refused}");
}
