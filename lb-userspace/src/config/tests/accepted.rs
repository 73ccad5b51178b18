//! What is accepted, and what becomes of it.

use super::*;

#[test]
fn what_is_left_out_has_its_default() {
    let config =
        accepted(&changed(GOOD, "name = \"databases\"\n", "").replace("\"databases\"", "\"listener-1\""));
    let fixed = FixedGateway {
        workers: 0,
        interfaces: Interfaces::Auto,
        bpffs: "/sys/fs/bpf/snisplice".into(),
        state_dir: "/run/snisplice".into(),
        admin: None,
        watch: false,
        access_log: None,
        source_ports: 10_240..=29_999,
        flow_table: 1_048_576,
    };
    let live = LiveGateway {
        tiers: vec![Tier::Packet, Tier::Copy],
        max_connections: 200_000,
        drain_timeout: Duration::from_secs(30),
        keepalive: Keepalive::default(),
        peer_id: 0,
        peers: vec![],
    };
    assert_eq!(config.gateway, Gateway { fixed, live });
    let listener = Listener {
        ech: None,
        name: "listener-1".into(),
        bind: vec!["0.0.0.0:443".parse().unwrap()],
        protocol: Protocol::Tls,
        hello_timeout: Duration::from_secs(5),
        hello_bytes: 163_840,
        proxy_protocol: false,
        trusted_proxies: vec![],
        allow: vec![],
        deny: vec![],
        max_connections: None,
        client_rate: None,
        backlog: 4096,
        keepalive: Keepalive::default(),
        freebind: false,
        version: None,
        plugin: None,
        refuse: Refuse::Alert,
        reserved: vec![],
    };
    assert_eq!(config.listeners, [listener]);
    let [route] = &config.routes[..] else { panic!("{:?}", config.routes) };
    assert_eq!(&*route.name, "app1.example.com");
    assert_eq!((route.listener, &route.sni[..]), (0, &[SniPattern::Exact("app1.example.com".into())][..]));
    assert!(route.alpn.is_empty() && matches!(route.action, Action::Pass));
    assert_eq!(route.backends, [Backend { pool: 0, weight: 1 }]);
    assert_eq!((route.idle_timeout, route.max_age, route.max_connections), (None, None, None));
    assert_eq!(route.client_rate, None);
    let address = Address { host: Host::Ip("10.0.0.11".parse().unwrap()), port: 6379 };
    let pool = Pool {
        slow_start: Duration::ZERO,
        health: None,
        eject: None,
        on_down: OnDown::Keep,
        name: "redis".into(),
        balance: Balance::RoundRobin,
        servers: vec![Server {
            origin: Origin::Address(address),
            weight: 1,
            backup: false,
            max_connections: None,
        }],
        connect_timeout: Duration::from_secs(2),
        send_proxy: None,
        source: SourceAddress::Gateway,
        keepalive: Keepalive::default(),
        http2: false,
        tls: None,
        is_closed: false,
    };
    assert_eq!(config.pools, [pool]);
}

#[test]
fn the_documented_example_is_valid() {
    let config = accepted(EXAMPLE);
    assert_eq!(config.gateway.fixed.admin, Some("127.0.0.1:9900".parse().unwrap()));
    assert_eq!(
        config.gateway.fixed.access_log,
        Some(AccessLog { target: LogTarget::Stdout, format: LogFormat::Json })
    );
    assert_eq!(config.listeners[0].bind.len(), 2);
    assert_eq!(config.listeners[0].allow, ["0.0.0.0/0".parse().unwrap()]);
    let route = &config.routes[0];
    assert_eq!(route.backends, [Backend { pool: 0, weight: 99 }, Backend { pool: 1, weight: 1 }]);
    assert_eq!((route.idle_timeout, route.max_connections), (Some(Duration::from_secs(3600)), Some(1000)));
    let Action::Terminate(termination) = &route.action else { panic!("{:?}", route.action) };
    let authorities = termination.client_auth.as_ref().map(|auth| auth.authorities.len());
    assert_eq!((termination.chain.len(), authorities), (1, Some(1)));
    assert_eq!(termination.not_after, 1_798_761_600, "2027-01-01");
    let pool = &config.pools[0];
    assert_eq!((pool.balance, pool.send_proxy), (Balance::LeastConnections, Some(ProxyVersion::V2)));
    let server_name = pool.tls.as_ref().and_then(|tls| tls.server_name.as_ref());
    assert_eq!(server_name.map(|name| name.to_str()).as_deref(), Some("redis.internal"));
    let addresses: Vec<_> =
        config.pools.iter().flat_map(|p| &p.servers).map(|s| s.origin.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.11:6379", "redis-0.eu.example.com:6379", "[2001:db8::1]:6379"]);
    assert_eq!((pool.servers[1].weight, pool.servers[1].backup), (2, true));
}

#[test]
fn every_other_key_reaches_the_configuration() {
    let config = accepted(
        r#"
        [gateway]
        workers = 0x4
        interfaces = ["eth0", "cni0"]
        tiers = ["sockmap"]
        watch = true
        access_log = { path = "/var/log/snisplice.log", format = "text" }
        drain_timeout = "0s"
        source_ports = "20000 - 20255"
        flow_table = 2

        [[listener]]
        bind = ["[::1]:5432"]
        protocol = "postgres"
        proxy_protocol = true
        trusted_proxies = ["10.0.0.7", "2001:db8::/32"]
        deny = ["192.0.2.0/24"]
        max_connections = 7
        backlog = 16
        freebind = true

        [[listener]]
        bind = ["127.0.0.1:1"]
        protocol = "tcp"

        [[route]]
        listener = "listener-1"
        sni = ["*.Example.COM.", "*"]
        alpn = ["postgresql"]
        backends = ["a", { pool = "b", weight = 0 }]
        max_age = "24h"

        [[route]]
        listener = "listener-2"
        backends = ["c"]

        [[pool]]
        name = "a"
        balance = "source-hash"
        servers = ["Redis.Internal:1"]
        connect_timeout = "250ms"
        send_proxy = "v1"

        [[pool]]
        name = "b"
        balance = "random"
        servers = ["10.0.0.1:1"]

        [[pool]]
        name = "c"
        balance = "round-robin"
        servers = ["10.0.0.1:1"]
        "#,
    );
    let gateway = &config.gateway;
    assert_eq!(
        (gateway.fixed.workers, gateway.fixed.watch, gateway.live.drain_timeout),
        (4, true, Duration::ZERO)
    );
    assert_eq!((&gateway.fixed.source_ports, gateway.fixed.flow_table), (&(20_000..=20_255), 2));
    assert_eq!(gateway.fixed.interfaces, Interfaces::Named(vec!["eth0".to_owned(), "cni0".to_owned()]));
    assert_eq!(gateway.live.tiers, [Tier::Sockmap, Tier::Copy], "copy takes the rest");
    let target = LogTarget::File("/var/log/snisplice.log".into());
    assert_eq!(gateway.fixed.access_log, Some(AccessLog { target, format: LogFormat::Text }));
    let [postgres, tcp] = &config.listeners[..] else { panic!("{:?}", config.listeners) };
    assert_eq!((postgres.protocol, tcp.protocol), (Protocol::Postgres, Protocol::Tcp));
    assert!(postgres.proxy_protocol);
    assert_eq!(postgres.trusted_proxies, ["10.0.0.7/32".parse().unwrap(), "2001:db8::/32".parse().unwrap()]);
    assert_eq!(postgres.deny, ["192.0.2.0/24".parse().unwrap()]);
    assert_eq!((postgres.max_connections, postgres.backlog, postgres.freebind), (Some(7), 16, true));
    let route = &config.routes[0];
    assert_eq!((route.max_age, config.routes[1].max_age), (Some(Duration::from_secs(86_400)), None));
    assert_eq!((&*route.name, &*config.routes[1].name), ("*.example.com", "route-2"));
    assert_eq!(*route.sni, [SniPattern::Wildcard("example.com".into()), SniPattern::Any]);
    assert_eq!(route.alpn, ["postgresql".into()]);
    assert_eq!(config.routes[1].listener, 1);
    let pool = &config.pools[0];
    assert_eq!((pool.balance, config.pools[1].balance), (Balance::SourceHash, Balance::Random));
    assert_eq!((pool.connect_timeout, pool.send_proxy), (Duration::from_millis(250), Some(ProxyVersion::V1)));
    let address = Address { host: Host::Name("redis.internal".into()), port: 1 };
    assert_eq!(pool.servers[0].origin, Origin::Address(address));
}

#[test]
fn a_default_name_gives_way_to_a_given_one() {
    let second = "[[route]]\nname = \"app1.example.com\"\nlistener = \"databases\"\nsni = [\"*\"]\nbackends = [\"redis\"]";
    let config = accepted(&format!("{GOOD}{second}"));
    let names: Vec<_> = config.routes.iter().map(|route| &*route.name).collect();
    assert_eq!(names, ["route-1", "app1.example.com"]);
}

#[test]
fn routes_of_the_same_files_share_one_termination() {
    let second = "[[route]]\nlistener = \"databases\"\nsni = [\"*\"]\ntls = \"terminate\"\n\
        certificate = { chain = \"app1.crt\", key = \"app1.key\" }\nbackends = [\"redis\"]";
    let config = accepted(&format!("{TERMINATED}{second}"));
    let [Action::Terminate(one), Action::Terminate(other)] =
        [&config.routes[0].action, &config.routes[1].action]
    else {
        panic!("{:?}", config.routes)
    };
    assert!(Arc::ptr_eq(one, other));
}

#[test]
fn the_debug_form_of_a_termination_holds_no_key() {
    let config = accepted(TERMINATED);
    let debug = format!("{:?}", config.routes[0].action);
    assert_eq!(debug, "Terminate(Termination { chain: 1, client_auth: None, not_after: 1798761600, .. })");
}

#[test]
fn the_same_pattern_may_be_shared_out_by_alpn_or_listener() {
    let second = "[[route]]\nname = \"h2\"\nlistener = \"databases\"\nsni = [\"app1.example.com\"]\nalpn = [\"h2\"]\n\
        backends = [\"redis\"]";
    accepted(&format!("{GOOD}{second}"));
    let third = "[[listener]]\nbind = [\"0.0.0.0:444\"]\n[[route]]\nlistener = \"listener-2\"\nsni = [\"app1.example.com\"]\n\
        backends = [\"redis\"]";
    accepted(&format!("{GOOD}{third}"));
}

#[test]
fn every_key_that_only_a_start_puts_in_force_is_told_apart() {
    let other = accepted(&format!(
        "[gateway]\nworkers = 1\ninterfaces = ['eth0']\nbpffs = '/b'\nstate_dir = '/s'\nadmin = '127.0.0.1:1'\n\
         watch = true\naccess_log = {{}}\nsource_ports = '20000-29999'\nflow_table = 2\nmax_connections = 7\n\
         drain_timeout = '1s'\ntiers = ['copy']\nkeepalive = {{ count = 1 }}\n{GOOD}"
    ));
    let fixed = FixedGateway::default();
    assert_eq!(fixed.differences(&fixed).count(), 0);
    let differences: Vec<_> = fixed.differences(&other.gateway.fixed).collect();
    assert_eq!(
        differences,
        [
            "workers",
            "interfaces",
            "bpffs",
            "state_dir",
            "admin",
            "watch",
            "access_log",
            "source_ports",
            "flow_table"
        ]
    );
}
