//! `tls` of pools.

use super::*;
use rustls::pki_types::ServerName;

/// [`TERMINATED`], with this `tls` of its pool.
fn with(tls: &str) -> String {
    changed(TERMINATED, "servers =", &format!("tls = {tls}\nservers ="))
}

fn tls_of(config: &Config) -> &UpstreamTls {
    config.pools[0].tls.as_ref().expect("TLS toward servers")
}

fn name(name: &'static str) -> ServerName<'static> {
    ServerName::try_from(name).expect("a name")
}

#[test]
fn every_key_reaches_the_configuration() {
    let config = accepted(&with(
        r#"{ ca = "upstream-ca.crt", server_name = "redis.internal", alpn = ["redis", "x"], min_version = "1.3",
            san = ["DNS:redis.internal", "IP:10.0.0.11", "URI:spiffe://example.org/redis"],
            certificate = { chain = "redis1.crt", key = "redis1.key" } }"#,
    ));
    let tls = tls_of(&config);
    assert_eq!((tls.authorities.certificates.len(), tls.authorities.roots.len()), (1, 1));
    assert_eq!(tls.server_name, Some(name("redis.internal")));
    let uri = San::Uri("spiffe://example.org/redis".into());
    assert_eq!(tls.san, [San::Dns("redis.internal".into()), San::Ip([10, 0, 0, 11].into()), uri]);
    assert_eq!(tls.alpn, ["redis".into(), "x".into()]);
    assert_eq!(tls.min_version, MinVersion::Tls13);
    assert_eq!(tls.certificate.as_ref().map(|certificate| certificate.chain.len()), Some(1));
}

#[test]
fn servers_with_names_need_nothing_more_and_the_systems_authorities_are_shared() {
    let config = accepted(
        &(changed(&with("{}"), "10.0.0.11:6379", "redis.example.com:6379")
            + "[[pool]]\nname = \"other\"\nservers = [\"srv:_redis._tcp.example.com\"]\ntls = {}\n")
            .replace("backends = [\"redis\"]", "backends = [\"redis\", \"other\"]"),
    );
    let tls = tls_of(&config);
    assert_eq!((&tls.server_name, tls.min_version), (&None, MinVersion::Tls12));
    let other = config.pools[1].tls.as_ref().expect("TLS");
    assert!(Arc::ptr_eq(&tls.authorities, &other.authorities));
}

#[test]
fn a_server_without_a_name_needs_one() {
    assert_faults(
        &with("{ ca = \"upstream-ca.crt\" }"),
        r#"
        error: `tls` does not know the name of the server `10.0.0.11:6379`
           at: { ca = "upstream-ca.crt" }
         help: add the name that its certificate is for: `server_name = "redis.internal"`; or, if it is for the IP address, `san = ["IP:…"]`
        "#,
    );
    accepted(&with("{ ca = \"upstream-ca.crt\", san = [\"IP:10.0.0.11\"] }"));
}

#[test]
fn tls_that_is_passed_through_is_not_wrapped_again() {
    let tls = "tls = { server_name = \"redis.internal\" }\nservers =";
    assert_faults(
        &changed(GOOD, "servers =", tls),
        r#"
        error: TLS is passed through to the pool `redis`, which has `tls`
           at: "redis"
         help: the client's own TLS goes to the servers already: take `tls` out of the pool; or end the client's here: `tls = "terminate"`
        "#,
    );
    let tcp = changed(GOOD, "bind =", "protocol = \"tcp\"\nbind =");
    accepted(&changed(&changed(&tcp, "sni = [\"app1.example.com\"]\n", ""), "servers =", tls));
}

#[test]
fn each_wrong_value_has_its_hint() {
    assert_faults(
        &with(
            r#"{ server_name = "a b", san = ["redis.internal", "DNS:a b", "IP:redis", "URI:x", "10.0.0.1", "spiffe://a/b"], min_version = "1.1", alpn = [""] }"#,
        ),
        r#"
        error: `a b` is not a server name
           at: "a b"
         help: a host name or an IP address
        error: `redis.internal` is not an alternative name: its kind is not in front, `DNS:`, `IP:`, `URI:` or `email:`
           at: "redis.internal"
         help: `"DNS:redis.internal"`
        error: `DNS:a b` is not an alternative name: labels are made of letters, digits and `-`
           at: "DNS:a b"
         help: for example `"DNS:app1.example.com"`
        error: `IP:redis` is not an alternative name: it is no IP address
           at: "IP:redis"
         help: for example `"IP:10.0.0.11"`
        error: `URI:x` is not an alternative name: it is not a URI
           at: "URI:x"
         help: for example `"URI:spiffe://example.org/app1"`, or `"URI:spiffe://example.org/*"` for all below
        error: `10.0.0.1` is not an alternative name: its kind is not in front, `DNS:`, `IP:`, `URI:` or `email:`
           at: "10.0.0.1"
         help: `"IP:10.0.0.1"`
        error: `spiffe://a/b` is not an alternative name: its kind is not in front, `DNS:`, `IP:`, `URI:` or `email:`
           at: "spiffe://a/b"
         help: `"URI:spiffe://a/b"`
        error: `min_version` cannot be `1.1`
           at: "1.1"
         help: did you mean `1.2`?
        error: `` is not an ALPN protocol name
           at: ""
         help: 1 to 255 bytes, for example `"h2"` or `"postgresql"`
        "#,
    );
    assert_faults(
        &with(r#"{ san = ["DNS:a", "DNS:a"], ca = "upstream-ca.crt" }"#),
        r#"
        error: `DNS:a` is listed twice
           at: "DNS:a"
         help: take one of them out
        "#,
    );
}

#[test]
fn files_are_looked_at_as_those_of_routes_are() {
    assert_faults(
        &with(
            r#"{ server_name = "a", ca = "empty.pem", certificate = { chain = "app1.crt", key = "redis1.key" } }"#,
        ),
        r#"
        error: cannot use `empty.pem`: it holds no certificate
           at: "empty.pem"
         help: a PEM file with the certificates that sign those of servers
        error: this key does not belong to the certificate in `app1.crt`
           at: "redis1.key"
         help: compare `openssl pkey -pubout -in KEY` and `openssl x509 -pubkey -noout -in CHAIN`
        "#,
    );
    assert_faults(
        &with(
            r#"{ server_name = "a", ca = "none.crt", certificate = { chain = "old.crt", key = "old.key" } }"#,
        ),
        r#"
        error: cannot read `none.crt`: entity not found
           at: "none.crt"
         help: a relative path starts at the directory of this file
        warning: this certificate expired on 2024-01-01T00:00:00Z
           at: "old.crt"
         help: it will be refused: renew it
        "#,
    );
}

#[test]
fn a_system_without_authorities_says_so() {
    let text = with("{ server_name = \"redis.internal\" }");
    let files = Map(FILES
        .0
        .iter()
        .filter(|(name, _)| **name != "system-ca.crt")
        .map(|(n, t)| (*n, t.clone()))
        .collect());
    let faults = check_text(&text, "snisplice.toml", &files, UnixTime::since_unix_epoch(NOW)).unwrap_err();
    let fault = faults.iter().next().unwrap();
    assert_eq!(&*fault.message, "this system has no authorities: cannot read the directory");
    assert_eq!(fault.help.as_deref(), Some("install `ca-certificates`, or name a file: `ca = \"FILE\"`"));
}
