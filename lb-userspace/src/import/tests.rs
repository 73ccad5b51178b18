//! Whatever the files hold, there is a result or an error.

mod faithful;

use super::*;
use proptest::prelude::*;

/// A good file of each kind, and what it needs beside it. What becomes of them as they stand is compared in the stages'
/// tests.
const GOOD: [&[(&str, &str)]; 8] = [
    &[
        ("traefik.yaml", include_str!("../../../tests/data/import/traefik.yaml")),
        ("traefik-static.yaml", include_str!("../../../tests/data/import/traefik-static.yaml")),
    ],
    &[("istio.yaml", include_str!("../../../tests/data/import/istio.yaml"))],
    &[("kong.yaml", include_str!("../../../tests/data/import/kong.yaml"))],
    &[("tcp-services.yaml", include_str!("../../../tests/data/import/tcp-services.yaml"))],
    &[
        ("haproxy.cfg", include_str!("../../../tests/data/import/haproxy.cfg")),
        ("domains.map", include_str!("../../../tests/data/import/domains.map")),
    ],
    &[
        ("nginx.conf", include_str!("../../../tests/data/import/nginx.conf")),
        ("domains.conf", include_str!("../../../tests/data/import/domains.conf")),
    ],
    &[("envoy.yaml", include_str!("../../../tests/data/import/envoy.yaml"))],
    &[("envoy.json", include_str!("../../../tests/data/import/envoy.json"))],
];

/// What the grammars are made of.
const PIECES: [&str; 40] = [
    "\n",
    " ",
    "\t",
    ":",
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ",",
    ";",
    "#",
    "\"",
    "'",
    "`",
    "\\",
    "|",
    "*",
    "&a ",
    "*a",
    "<<: *a",
    "!",
    "---\n",
    "%[",
    "é",
    "\0",
    "0",
    "-1",
    "99999",
    "443",
    "frontend f\n",
    "listen ",
    "server ",
    "map ",
    "stream {",
    "default",
    "if ",
    "HostSNI(`",
    "kind: List",
];

fn files(texts: &[(&str, &str)]) -> Vec<File> {
    texts.iter().map(|&(name, text)| File { name: name.to_owned(), text: text.to_owned() }).collect()
}

fn file(text: impl Into<String>) -> [File; 1] {
    [File { name: "file".to_owned(), text: text.into() }]
}

/// A result is well-formed, and every line of its comments is one: no text of the input leaves its comment.
fn judge(files: &[File]) -> Result<(), TestCaseError> {
    for form in [Form::GatewayApi, Form::Toml] {
        let Ok(imported) = import(files, form) else { continue };
        match form {
            Form::Toml => {
                let parsed = imported.text.parse::<toml::Table>();
                prop_assert!(parsed.is_ok(), "{:?}\n{}", parsed, imported.text);
            }
            Form::GatewayApi => {
                let parsed = yaml::documents(&imported.text);
                prop_assert!(parsed.is_ok(), "{:?}\n{}", parsed.err(), imported.text);
            }
        }
        for (_, message) in &imported.messages {
            prop_assert!(!message.contains(|c: char| c.is_control()), "{message:?}");
        }
    }
    Ok(())
}

proptest! {
    // Each case is several imports, without optimisation.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_makes_it_panic(text in "\\PC*|[a-z:{}\\[\\]\"'`;#&*| \n\t-]{0,200}") {
        judge(&file(text))?;
    }

    /// A good file with something cut out and something put in: deeper than random text gets.
    #[test]
    fn no_damage_to_a_good_file_makes_it_panic(
        kind in 0..GOOD.len(),
        of in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        cut in 0usize..40,
        pieces in prop::collection::vec(prop::sample::select(&PIECES[..]), 0..4),
    ) {
        let mut files = files(GOOD[kind]);
        let damaged = of.index(files.len());
        let chars: Vec<char> = files[damaged].text.chars().collect();
        let at = at.index(chars.len());
        let rest = &chars[(at + cut).min(chars.len())..];
        files[damaged].text = chars[..at].iter().chain(&pieces.concat().chars().collect::<Vec<_>>()).chain(rest).collect();
        judge(&files)?;
    }

    /// Lines of good files in any order, also of different kinds in one.
    #[test]
    fn no_mixture_of_good_lines_makes_it_panic(
        kind in 0..GOOD.len(),
        lines in prop::collection::vec((0usize..4, any::<prop::sample::Index>()), 0..60),
    ) {
        let text = |n: usize| GOOD[(kind + n / 3) % GOOD.len()][0].1;
        let line = |(n, index): (usize, prop::sample::Index)| {
            let all: Vec<&str> = text(n).lines().collect();
            all[index.index(all.len())]
        };
        let text: Vec<&str> = lines.into_iter().map(line).collect();
        judge(&file(text.join("\n")))?;
    }
}

#[test]
fn good_files_have_a_result_in_both_forms() {
    for texts in GOOD {
        for form in [Form::GatewayApi, Form::Toml] {
            let imported =
                import(&files(texts), form).unwrap_or_else(|errors| panic!("{}: {errors:?}", texts[0].0));
            assert!(!imported.text.is_empty());
        }
    }
}

#[test]
fn of_two_delays_the_last_counts() {
    let text = "frontend f\n mode tcp\n bind :1\n tcp-request inspect-delay 5s\n tcp-request inspect-delay 7s\n \
                use_backend b if { req.ssl_sni a.example }\nbackend b\n server s 10.0.0.1:1\n";
    let imported = import(&file(text), Form::Toml).expect("both are good");
    let delays: Vec<_> = imported.text.lines().filter(|line| line.starts_with("hello_timeout")).collect();
    assert!(matches!(delays[..], [delay] if delay.contains("7s")), "{delays:?}");
}

/// Memory is bounded by more than the size of the file.
#[test]
fn a_small_file_does_not_become_a_huge_result() {
    let names: String = (0..20_000).map(|n| format!(" n{n}.example")).collect();
    let haproxy = |rules: usize| {
        let rules: String = (0..rules).map(|n| format!(" use_backend b{n} if names\n")).collect();
        format!(
            "frontend f\n mode tcp\n bind :1\n acl names req.ssl_sni{names}\n{rules}backend b\n server s 10.0.0.1:1\n"
        )
    };
    let is_too_large = |text: String| {
        import(&file(text), Form::Toml).is_err_and(|errors| matches!(errors[..], [ImportError::TooLarge]))
    };
    assert!(is_too_large(haproxy(1000)));
    let entries: String = (0..20_000).map(|n| format!("n{n}.example 10.0.0.1:1;")).collect();
    let servers: String =
        (1..1000).map(|n| format!("server {{ listen {n}; ssl_preread on; proxy_pass $to; }}")).collect();
    assert!(is_too_large(format!(
        "stream {{\nmap $ssl_preread_server_name $to {{ {entries} }} {servers} }}"
    )));
    // The same list again and again.
    let repeated = |line: &str, rest: &str| {
        let text = format!(
            "frontend f\n mode tcp\n bind :1\n{}{rest}backend b\n server s 10.0.0.1:1\n",
            line.repeat(2000)
        );
        let list: String = (0..20_000).map(|n| format!("n{n}.example b\n")).collect();
        let files = files(&[("haproxy.cfg", &text), ("list", &list)]);
        import(&files, Form::Toml).is_err_and(|errors| matches!(errors[..], [ImportError::TooLarge]))
    };
    assert!(repeated(" use_backend %[req.ssl_sni,map(list)]\n", ""));
    assert!(repeated(" acl names req.ssl_sni -f list\n", " use_backend b if names\n"));
    let bomb: String = (1..30).map(|n| format!("a{n}: &a{n} [*a{}, *a{}]\n", n - 1, n - 1)).collect();
    let bomb = format!(
        "static_resources:\n{}",
        format!("a0: &a0 [x, x]\n{bomb}").replace("\na", "\n  a").replacen("a0", "  a0", 1)
    );
    assert!(import(&file(bomb), Form::Toml).is_err());
    let deep = format!("static_resources: {}", "[".repeat(100_000));
    assert!(import(&file(deep), Form::Toml).is_err());
}

/// What clients may do, as the lines of TOML have it.
fn made(text: &str) -> (String, String) {
    let imported = import(&file(text), Form::Toml).unwrap_or_else(|errors| panic!("{errors:?}"));
    let messages: Vec<_> = imported.messages.into_iter().map(|(_, message)| message).collect();
    (imported.text, messages.join("\n"))
}

/// Each would let in, or lead somewhere else, clients whom the original does not.
#[test]
fn nobody_gets_in_whom_the_original_refuses() {
    let nginx = |own: &str| {
        format!(
            "stream {{\n allow 10.0.0.0/8;\n deny all;\n server {{ listen 443; {own} proxy_pass 10.0.0.1:1; }}\n}}\n"
        )
    };
    assert!(made(&nginx("")).0.contains("allow = [\"10.0.0.0/8\"]"));
    // Its own list takes the place of the other one as a whole.
    assert!(made(&nginx("deny 10.0.0.1;")).0.contains("deny = [\"10.0.0.1\"]"));
    assert!(!made(&nginx("deny 10.0.0.1;")).0.contains("allow = "));
    let chain = |matched: &str, cluster: &str| {
        format!(
            "      - filter_chain_match: {{ {matched} }}\n        filters: [{{ name: envoy.filters.network.tcp_proxy, typed_config: {{ cluster: {cluster} }} }}]\n"
        )
    };
    let cluster = |name: &str| {
        format!(
            "    - {{ name: {name}, load_assignment: {{ endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 10.0.0.1, port_value: 1 }} }} }} }}] }}] }} }}\n"
        )
    };
    let envoy = format!(
        "static_resources:\n  listeners:\n    - address: {{ socket_address: {{ address: 0.0.0.0, port_value: 443 }} }}\n      filter_chains:\n{}{}  clusters:\n{}{}",
        chain("server_names: [a.example]", "named"),
        chain("transport_protocol: raw_buffer", "plain"),
        cluster("named"),
        cluster("plain")
    );
    let (text, said) = made(&envoy);
    assert!(text.contains("sni = [\"a.example\"]") && !text.contains("sni = [\"*\"]"), "{text}");
    assert!(said.contains("plain TCP and TLS on one address"), "{said}");
    // Envoy looks at the port first: on 443 there is nothing but the second chain.
    let by_port =
        envoy.replace("transport_protocol: raw_buffer", "server_names: [b.example], destination_port: 443");
    let (text, _) = made(&by_port);
    assert!(text.contains("sni = [\"b.example\"]") && !text.contains("a.example"), "{text}");
    let (text, _) = made(&by_port.replace("destination_port: 443", "destination_port: 444"));
    assert!(text.contains("sni = [\"a.example\"]") && !text.contains("b.example"), "{text}");
    let istio = |tls: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{ name: g }}\nspec: {{ servers: [{{ port: {{ number: 443, name: x, protocol: TLS }}, tls: {{ {tls} }}, hosts: [a.example] }}] }}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{ name: v }}\nspec: {{ hosts: [a.example], gateways: [g], tls: [{{ match: [{{ sniHosts: [a.example] }}], route: [{{ destination: {{ host: b, port: {{ number: 1 }} }}, weight: 1 }}, {{ destination: {{ host: c, port: {{ number: 1 }} }} }}] }}], \
             tcp: [{{ route: [{{ destination: {{ host: b, port: {{ number: 1 }} }} }}] }}] }}\n"
        )
    };
    // Without a mode TLS is passed through; of several destinations one without a weight gets nothing.
    let (text, _) = made(&istio(""));
    assert!(
        text.contains("backends = [{ pool = \"b\", weight = 1 }, { pool = \"c\", weight = 0 }]"),
        "{text}"
    );
    assert!(!text.contains("terminate"), "{text}");
    let (_, said) = made(&istio("mode: MUTUAL, credentialName: x, subjectAltNames: [spiffe://a]"));
    assert!(said.contains("subjectAltNames`: not taken over (restricts who may connect)"), "{said}");
}

/// `check` takes no address twice.
#[test]
fn an_address_has_one_listener() {
    let (text, said) = made(
        "stream {\n server { listen 443; listen 444; proxy_pass 10.0.0.1:1; }\n server { listen 444; listen 445; proxy_pass 10.0.0.1:2; }\n server { listen 443; proxy_pass 10.0.0.1:3; }\n}\n",
    );
    assert_eq!(text.matches(":443\"").count(), 1, "{text}");
    assert_eq!(text.matches(":444\"").count(), 1, "{text}");
    assert_eq!(said.matches("another listener has 0.0.0.0 port").count(), 2, "{said}");
    assert!(!text.contains("servers = [\"10.0.0.1:3\"]"), "{text}");
}

#[test]
fn what_is_of_no_kind_is_named() {
    let errors = import(&file("just some text\n"), Form::Toml).unwrap_err();
    assert!(errors[0].to_string().starts_with("`file`: of no kind that is known"), "{errors:?}");
    let errors = import(&file("kind: [\napiVersion: v1\n"), Form::Toml).unwrap_err();
    assert!(errors[0].to_string().starts_with("`file`:"), "{errors:?}");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: { name: p }\n";
    let errors = import(&file(pod), Form::Toml).unwrap_err();
    assert!(matches!(errors.last(), Some(ImportError::Nothing)), "{errors:?}");
}
