use super::*;

fn gateway(addresses: &str) -> String {
    format!(
        "{BASE}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{ name: gw, namespace: db }}\n\
         spec: {{ gatewayClassName: edge, addresses: [{addresses}], listeners: [{{ name: tcp, protocol: TCP, port: 7000 }}] }}"
    )
}

fn made_with(settings: Settings, text: &str, context: &Context) -> (Config, GatewayStatus) {
    let mut index = Index::new(settings);
    objects(text).into_iter().for_each(|object| _ = index.apply(object));
    let (config, statuses) = made_in(&mut index, context);
    let Status::Gateway(status) = statuses[&key(Kind::Gateway, "db/gw")].clone() else { panic!() };
    (config, status)
}

fn shown(status: &GatewayStatus) -> (Vec<String>, Vec<String>) {
    let addresses = status.addresses.iter().map(|address| address.ip().unwrap().to_string()).collect();
    let conditions = status.conditions.iter().take(2);
    (addresses, conditions.map(|each| format!("{} {}", each.status, each.reason)).collect())
}

#[test]
fn on_the_node() {
    let named = ["192.0.2.1".parse().unwrap()..="192.0.2.9".parse().unwrap()];
    let settings = || Settings { addresses: named.to_vec(), ..Settings::default() };
    let everywhere = ["0.0.0.0:7000", "[::]:7000"].as_slice();
    let both = vec!["192.0.2.1", "2001:db8::1"];
    for (addresses, binds, status, accepted, programmed) in [
        ("", everywhere, both.clone(), "True Accepted", "True Programmed"),
        ("{ value: \"\" }", everywhere, both.clone(), "True Accepted", "True Programmed"),
        ("{ type: IPAddress }", everywhere, both, "True Accepted", "True Programmed"),
        ("{ value: 192.0.2.1 }", &["192.0.2.1:7000"], vec!["192.0.2.1"], "True Accepted", "True Programmed"),
        // Of another machine, or of this one but not allowed.
        ("{ value: 192.0.2.2 }", &[], vec![], "True Accepted", "False AddressNotUsable"),
        ("{ value: \"2001:db8::1\" }", &[], vec![], "True Accepted", "False AddressNotUsable"),
        ("{ value: nonsense }", &[], vec![], "True Accepted", "False AddressNotUsable"),
        (
            "{ value: 192.0.2.2 }, { value: 192.0.2.1 }",
            &["192.0.2.1:7000"],
            vec!["192.0.2.1"],
            "True Accepted",
            "False AddressNotUsable",
        ),
        ("{ type: Hostname, value: a.example }", &[], vec![], "False UnsupportedAddress", "False Invalid"),
    ] {
        let (config, found) = made_with(settings(), &gateway(addresses), &context());
        let bound: Vec<_> =
            config.listeners.iter().flat_map(|each| &each.bind).map(ToString::to_string).collect();
        assert_eq!(bound, binds, "{addresses}");
        let expected = status.into_iter().map(str::to_owned).collect();
        assert_eq!(
            shown(&found),
            (expected, vec![accepted.to_owned(), programmed.to_owned()]),
            "{addresses}"
        );
    }
}

#[test]
fn from_a_pool() {
    let settings = || Settings { mode: Mode::Pool, ..Settings::default() };
    let (config, status) = made_with(settings(), &gateway(""), &context());
    assert_eq!(config.listeners.len(), 0);
    assert_eq!(
        shown(&status),
        (vec![], vec!["True Accepted".to_owned(), "False AddressNotAssigned".to_owned()])
    );
    let assigned = ["198.51.100.7", "2001:db8::7"].map(|ip| ip.parse().unwrap()).to_vec();
    let assigned = Assigned { addresses: assigned, ..Assigned::default() };
    let context = Context { assigned: [(Name::new("db", "gw"), assigned)].into(), ..context() };
    let (config, status) = made_with(settings(), &gateway(""), &context);
    let bound: Vec<_> =
        config.listeners.iter().flat_map(|each| &each.bind).map(ToString::to_string).collect();
    assert_eq!(bound, ["198.51.100.7:7000", "[2001:db8::7]:7000"]);
    let addresses = ["198.51.100.7", "2001:db8::7"].map(str::to_owned).to_vec();
    assert_eq!(shown(&status), (addresses, vec!["True Accepted".to_owned(), "True Programmed".to_owned()]));
}

fn unavailable(address: &str) -> std::collections::BTreeMap<(u16, std::net::IpAddr), Box<str>> {
    [((7000, address.parse().unwrap()), "it is another's".into())].into()
}

#[test]
fn a_port_of_another_address_is_no_reason() {
    let settings = || Settings { mode: Mode::Pool, ..Settings::default() };
    let assigned = Assigned { addresses: vec!["198.51.100.7".parse().unwrap()], ..Assigned::default() };
    let assigned = [(Name::new("db", "gw"), assigned)];
    for (address, good) in [
        ("198.51.100.7", false),
        ("0.0.0.0", false),
        ("198.51.100.8", true),
        ("127.0.0.1", true),
        ("::", true),
    ] {
        let context =
            Context { unavailable: unavailable(address), assigned: assigned.clone().into(), ..context() };
        let (config, status) = made_with(settings(), &gateway(""), &context);
        assert_eq!(config.listeners.len(), usize::from(good), "{address}");
        let reason = if good { "Accepted" } else { "PortUnavailable" };
        assert_eq!(status.listeners[0].conditions[0].reason, reason, "{address}");
    }
    // On all addresses of the node, each of them counts.
    let context = Context { unavailable: unavailable("127.0.0.1"), ..context() };
    let (_, status) = made_with(Settings::default(), &gateway(""), &context);
    assert_eq!(status.listeners[0].conditions[0].reason, "PortUnavailable");
}

#[test]
fn from_a_load_balancer() {
    let settings = || Settings { mode: Mode::Service, ..Settings::default() };
    let placed = |assigned: Assigned| {
        let context = Context { assigned: [(Name::new("db", "gw"), assigned)].into(), ..context() };
        let (config, status) = made_with(settings(), &gateway(""), &context);
        let bound: Vec<_> =
            config.listeners.iter().flat_map(|each| &each.bind).map(ToString::to_string).collect();
        (bound, status)
    };
    let programmed = |status: &GatewayStatus| status.conditions[1].reason;

    // Its Service has no address, or none that can be had.
    let (bound, status) = placed(Assigned { node_ports: [(7000, 30_700)].into(), ..Assigned::default() });
    assert_eq!((bound.len(), programmed(&status)), (0, "AddressNotAssigned"));
    assert_eq!(status.ports, [7000].into());
    let (bound, status) = placed(Assigned { refused: Some("no".into()), ..Assigned::default() });
    assert_eq!((bound.len(), programmed(&status)), (0, "AddressNotUsable"));

    // The address, and the node port on every address of the node.
    let own = Assigned {
        addresses: vec!["198.51.100.7".parse().unwrap()],
        node_ports: [(7000, 30_700)].into(),
        ..Assigned::default()
    };
    let (bound, status) = placed(own);
    assert_eq!(bound, ["198.51.100.7:7000", "0.0.0.0:30700", "[::]:30700"]);
    assert_eq!((shown(&status).0, programmed(&status)), (vec!["198.51.100.7".to_owned()], "Programmed"));

    // What arrives is for the node ports alone.
    let name = StatusAddress::Hostname("lb.example.com".into());
    let proxied = Assigned {
        elsewhere: vec![name.clone()],
        node_ports: [(7000, 30_700)].into(),
        ..Assigned::default()
    };
    let (bound, status) = placed(proxied);
    assert_eq!(bound, ["0.0.0.0:30700", "[::]:30700"]);
    assert_eq!((&status.addresses, programmed(&status)), (&vec![name.clone()], "Programmed"));
    assert_eq!(
        serde_json::to_value(&status.addresses).unwrap(),
        serde_json::json!([{"type": "Hostname", "value": "lb.example.com"}])
    );
    // A port for which there is none yet.
    let (bound, status) = placed(Assigned { elsewhere: vec![name.clone()], ..Assigned::default() });
    assert_eq!((bound.len(), programmed(&status)), (0, "Invalid"));

    // Whoever is sent elsewhere on the same scheme stays on the Gateway's port.
    let redirect = |to: &str| {
        let route = format!(
            "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: r, namespace: db }}\n\
             spec: {{ parentRefs: [{{ name: gw }}], rules: [{{ filters: [{{ type: RequestRedirect, requestRedirect: {{ {to} }} }}] }}] }}"
        );
        let text = gateway("").replace("protocol: TCP", "protocol: HTTP") + &route;
        let assigned = Assigned {
            elsewhere: vec![name.clone()],
            node_ports: [(7000, 30_700)].into(),
            ..Assigned::default()
        };
        let context = Context { assigned: [(Name::new("db", "gw"), assigned)].into(), ..context() };
        let (config, _) = made_with(settings(), &text, &context);
        let rule = config.routes[0].rules().remove(0);
        rule.filters.redirect.unwrap().port
    };
    for (to, port) in [
        ("", Some(7000)),
        ("hostname: b.example", Some(7000)),
        ("port: 81", Some(81)),
        ("scheme: https", None),
    ] {
        assert_eq!(redirect(to), port, "{to}");
    }
}

#[test]
fn node_ports_of_two_gateways_are_not_one_listener() {
    let other = gateway("").replace("name: gw,", "name: other,");
    let (_, other) =
        other.split_once("---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n").unwrap();
    let text =
        format!("{}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n{other}", gateway(""));
    let place = |port| Assigned {
        elsewhere: vec![StatusAddress::Hostname("lb.example.com".into())],
        node_ports: [(7000, port)].into(),
        ..Assigned::default()
    };
    let places = [(Name::new("db", "gw"), place(30_700)), (Name::new("db", "other"), place(30_701))];
    let context = Context { assigned: places.into(), ..context() };
    let settings = Settings { mode: Mode::Service, ..Settings::default() };
    let (config, _) = made_with(settings, &text, &context);
    let mut names: Vec<_> = config.listeners.iter().map(|each| each.name.to_string()).collect();
    names.sort();
    assert_eq!(names, ["gateway:30700", "gateway:30701"]);
}

#[test]
fn ports_that_others_have() {
    let context = Context { unavailable: unavailable("0.0.0.0"), ..context() };
    let (config, status) = made_with(Settings::default(), &gateway(""), &context);
    assert_eq!(config.listeners.len(), 0);
    assert_eq!(shown(&status).1, ["False ListenersNotValid", "False Invalid"]);
    let accepted = &status.listeners[0].conditions[0];
    assert_eq!((accepted.reason, &*accepted.message), ("PortUnavailable", "it is another's"));
    for port in [22, 2379, 2380, 6443, 10_248, 10_249, 10_250, 10_256, 10_257, 10_259] {
        let text = gateway("").replace("port: 7000", &format!("port: {port}"));
        let (_, status) = made_with(Settings::default(), &text, &super::context());
        assert_eq!(status.listeners[0].conditions[0].reason, "PortUnavailable");
    }
}

#[test]
fn one_address_is_not_taken_from_an_older_gateway_on_all_of_them() {
    let named = ["192.0.2.1".parse().unwrap()..="192.0.2.9".parse().unwrap()];
    let settings = Settings { addresses: named.to_vec(), ..Settings::default() };
    let older = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: { name: a, namespace: db }\n\
                 spec: { gatewayClassName: edge, listeners: [{ name: tcp, protocol: TCP, port: 7000 }] }\n";
    let text = format!("{}\n{older}", gateway("{ value: 192.0.2.1 }"));
    let (config, status) = made_with(settings, &text, &context());
    assert_eq!(status.listeners[0].conditions[0].reason, "PortUnavailable");
    assert_eq!(config.listeners.len(), 1);
}
