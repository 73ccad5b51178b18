//! The keys of the configuration file.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// The keys of a table.
pub(super) struct Keys {
    /// As users write it.
    pub(super) header: &'static str,
    /// Each key, with an example of its value.
    pub(super) examples: &'static [(&'static str, &'static str)],
}

impl Keys {
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.examples.iter().map(|(key, _)| *key)
    }

    /// What a table that lacks `key`, or has something else there, might have.
    pub(super) fn example(&self, key: &str) -> String {
        match self.examples.iter().find(|(known, _)| *known == key) {
            // Not a key with a value, but a header.
            Some((_, header)) if *header == format!("[{key}]") || *header == format!("[[{key}]]") => {
                format!("write `{header}`")
            }
            Some((_, value)) => format!("for example `{key} = {value}`"),
            None => String::new(),
        }
    }
}

/// What there is, by how users write it.
pub(super) const ROOT: Keys = Keys {
    header: "the top level",
    examples: &[
        ("gateway", "[gateway]"),
        ("listener", "[[listener]]"),
        ("route", "[[route]]"),
        ("pool", "[[pool]]"),
    ],
};

pub(super) const GATEWAY: Keys = Keys {
    header: "[gateway]",
    examples: &[
        ("workers", "0"),
        ("interfaces", r#"["eth0"]"#),
        ("tiers", r#"["packet", "copy"]"#),
        ("bpffs", r#""/sys/fs/bpf/snisplice""#),
        ("state_dir", r#""/run/snisplice""#),
        ("admin", r#""127.0.0.1:9900""#),
        ("watch", "true"),
        ("access_log", r#"{ path = "-", format = "json" }"#),
        ("max_connections", "200000"),
        ("drain_timeout", r#""30s""#),
        ("source_ports", r#""10240-29999""#),
        ("flow_table", "1048576"),
        ("keepalive", KEEPALIVE_EXAMPLE),
    ],
};

pub(super) const ACCESS_LOG: Keys =
    Keys { header: "access_log", examples: &[("path", r#""-""#), ("format", r#""json""#)] };

pub(super) const KEEPALIVE_EXAMPLE: &str = r#"{ idle = "60s", interval = "15s", count = 4 }"#;

pub(super) const KEEPALIVE: Keys =
    Keys { header: "keepalive", examples: &[("idle", r#""60s""#), ("interval", r#""15s""#), ("count", "4")] };

pub(super) const LISTENER: Keys = Keys {
    header: "[[listener]]",
    examples: &[
        ("name", r#""databases""#),
        ("bind", r#"["0.0.0.0:443", "[::]:443"]"#),
        ("protocol", r#""tls""#),
        ("hello_timeout", r#""5s""#),
        ("proxy_protocol", "true"),
        ("trusted_proxies", r#"["10.0.0.0/8"]"#),
        ("allow", r#"["10.0.0.0/8"]"#),
        ("deny", r#"["10.0.0.0/8"]"#),
        ("max_connections", "100000"),
        ("backlog", "4096"),
        ("keepalive", KEEPALIVE_EXAMPLE),
        ("freebind", "true"),
    ],
};

pub(super) const ROUTE: Keys = Keys {
    header: "[[route]]",
    examples: &[
        ("name", r#""redis-1""#),
        ("listener", r#""databases""#),
        ("sni", r#"["redis-1.example.com"]"#),
        ("alpn", r#"["postgresql"]"#),
        ("tls", r#""terminate""#),
        ("certificate", r#"{ chain = "redis-1.crt", key = "redis-1.key" }"#),
        ("client_ca", r#""clients-ca.crt""#),
        ("backends", r#"["redis-1"]"#),
        ("idle_timeout", r#""1h""#),
        ("max_age", r#""24h""#),
        ("max_connections", "1000"),
    ],
};

pub(super) const CERTIFICATE: Keys = Keys {
    header: "certificate",
    examples: &[
        ("chain", r#""redis-1.crt""#),
        ("key", r#""redis-1.key""#),
        ("passphrase_file", r#""redis-1.pass""#),
    ],
};

pub(super) const BACKEND: Keys =
    Keys { header: "a backend", examples: &[("pool", r#""redis-1""#), ("weight", "1")] };

pub(super) const POOL: Keys = Keys {
    header: "[[pool]]",
    examples: &[
        ("name", r#""redis-1""#),
        ("balance", r#""round-robin""#),
        ("servers", r#"["10.0.0.11:6379"]"#),
        ("connect_timeout", r#""2s""#),
        ("send_proxy", r#""v2""#),
        ("keepalive", KEEPALIVE_EXAMPLE),
        ("health", r#"{ check = "tcp", interval = "5s", rise = 2, fall = 3 }"#),
        ("tls", r#"{ ca = "upstream-ca.crt", server_name = "redis.internal" }"#),
    ],
};

pub(super) const SERVER: Keys = Keys {
    header: "a server",
    examples: &[("address", r#""10.0.0.11:6379""#), ("weight", "1"), ("backup", "true")],
};

pub(super) const HEALTH: Keys = Keys {
    header: "health",
    examples: &[("check", r#""tcp""#), ("interval", r#""5s""#), ("rise", "2"), ("fall", "3")],
};

pub(super) const UPSTREAM_TLS: Keys = Keys {
    header: "tls of a pool",
    examples: &[("ca", r#""upstream-ca.crt""#), ("server_name", r#""redis.internal""#)],
};

/// Where a key that is unknown in one table may belong.
pub(super) const SECTIONS: [&Keys; 4] = [&GATEWAY, &LISTENER, &ROUTE, &POOL];
