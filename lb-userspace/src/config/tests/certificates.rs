//! Certificates, keys and authorities of clients.

use super::*;

#[test]
fn terminate_needs_a_certificate() {
    let line = "certificate = { chain = \"app1.crt\", key = \"app1.key\" }\n";
    assert_faults(
        &changed(TERMINATED, line, ""),
        r#"
        error: `terminate` needs a `certificate`
           at: "terminate"
         help: `certificate = { chain = "FILE.crt", key = "FILE.key" }`
        "#,
    );
    assert_faults(
        &changed(TERMINATED, ", key = \"app1.key\"", ""),
        r#"
        error: certificate without `key`
           at: { chain = "app1.crt" }
         help: for example `key = "redis-1.key"`
        "#,
    );
}

#[test]
fn a_passthrough_route_has_no_certificate() {
    let text = changed(TERMINATED, "tls = \"terminate\"\n", "client_ca = \"clients-ca.crt\"\n");
    assert_faults(
        &text,
        r#"
        error: a route that passes TLS through has no `client_ca`
           at: "clients-ca.crt"
         help: add `tls = "terminate"`, or take it out
        error: a route that passes TLS through has no `certificate`
           at: { chain = "app1.crt", key = "app1.key" }
         help: add `tls = "terminate"`, or take it out
        "#,
    );
    assert!(checked(&changed(&text, "sni =", "tls = \"passthrough\"\nsni =")).is_err());
}

/// One route for each pair of a chain and a key.
fn terminated(pairs: &[(&str, &str)]) -> String {
    let mut text = GOOD.to_owned();
    for (index, (chain, key)) in pairs.iter().enumerate() {
        text += &format!(
            "[[route]]\nlistener = \"databases\"\nsni = [\"{index}.*\"]\ntls = \"terminate\"\nbackends = [\"redis\"]\n\
             certificate = {{ chain = \"{chain}\", key = \"{key}\" }}\n",
        );
    }
    text.replace(".*", ".example.com")
}

#[test]
fn a_certificate_file_must_be_readable_and_hold_a_certificate() {
    let text = terminated(&[
        ("none.crt", "app1.key"),
        ("empty.pem", "app1.key"),
        ("app1.key", "app1.key"),
        ("cut.pem", "app1.key"),
        ("garbage.crt", "app1.key"),
    ]);
    assert_faults(
        &text,
        r#"
        error: cannot read `none.crt`: entity not found
           at: "none.crt"
         help: a relative path starts at the directory of this file
        error: cannot use `empty.pem`: it holds no certificate
           at: "empty.pem"
         help: a PEM file with `BEGIN CERTIFICATE`, the server's own first
        error: cannot use `app1.key`: it holds no certificate
           at: "app1.key"
         help: it holds a private key: are `chain` and `key` swapped?
        error: cannot use `cut.pem`: a PEM section in it does not end
           at: "cut.pem"
         help: a PEM file with `BEGIN CERTIFICATE`, the server's own first
        error: cannot use `garbage.crt`: its first certificate is not X.509
           at: "garbage.crt"
         help: a PEM file with `BEGIN CERTIFICATE`, the server's own first
        "#,
    );
}

#[test]
fn a_key_file_must_be_readable_and_hold_a_key() {
    let text = terminated(&[
        ("app1.crt", "none.key"),
        ("app1.crt", "empty.pem"),
        ("app1.crt", "app1.crt"),
        ("app1.crt", "cut.key"),
        ("app1.crt", "garbage.key"),
        ("app1.crt", "encrypted.key"),
    ]);
    assert_faults(
        &text,
        r#"
        error: cannot read `none.key`: entity not found
           at: "none.key"
         help: a relative path starts at the directory of this file
        error: cannot use `empty.pem`: it holds no private key
           at: "empty.pem"
         help: a PEM file with `BEGIN PRIVATE KEY`
        error: cannot use `app1.crt`: it holds no private key
           at: "app1.crt"
         help: it holds a certificate: are `chain` and `key` swapped?
        error: cannot use `cut.key`: a PEM section in it does not end
           at: "cut.key"
         help: a PEM file with `BEGIN PRIVATE KEY`
        error: cannot use `garbage.key`: its private key is not one that can be used
           at: "garbage.key"
         help: RSA of 2048 to 8192 bits, ECDSA with P-256, P-384 or P-521, or Ed25519
        error: cannot use `encrypted.key`: its private key is encrypted
           at: "encrypted.key"
         help: name the file that holds the passphrase: `certificate = { …, passphrase_file = "FILE" }`; or decrypt it: `openssl pkey -in ENCRYPTED -out KEY`, and let only the gateway read that
        "#,
    );
}

#[test]
fn a_key_must_belong_to_its_certificate() {
    assert_faults(
        &terminated(&[("app1.crt", "old.key"), ("swapped.crt", "app1.key")]),
        r#"
        error: this key does not belong to the certificate in `app1.crt`
           at: "old.key"
         help: compare `openssl pkey -pubout -in KEY` and `openssl x509 -pubkey -noout -in CHAIN`
        error: this key does not belong to the certificate in `swapped.crt`
           at: "app1.key"
         help: it belongs to certificate 2 of that file: put that one first
        "#,
    );
}

#[test]
fn a_client_ca_must_hold_certificates() {
    let with = |file: &str| changed(TERMINATED, "tls =", &format!("client_ca = {file:?}\ntls ="));
    assert_faults(
        &with("empty.pem"),
        r#"
        error: cannot use `empty.pem`: it holds no certificate
           at: "empty.pem"
         help: a PEM file with the certificates that sign those of clients
        "#,
    );
    assert_faults(
        &with("garbage.crt"),
        r#"
        error: cannot use `garbage.crt`: its certificate 1 is not X.509
           at: "garbage.crt"
         help: a PEM file with the certificates that sign those of clients
        "#,
    );
}

#[test]
fn every_file_of_a_route_is_judged() {
    let text = changed(TERMINATED, "app1.crt", "none.crt").replace("app1.key", "none.key");
    assert_faults(
        &changed(&text, "tls =", "client_ca = \"none.ca\"\ntls ="),
        r#"
        error: cannot read `none.ca`: entity not found
           at: "none.ca"
         help: a relative path starts at the directory of this file
        error: cannot read `none.crt`: entity not found
           at: "none.crt"
         help: a relative path starts at the directory of this file
        error: cannot read `none.key`: entity not found
           at: "none.key"
         help: a relative path starts at the directory of this file
        "#,
    );
}

/// [`TERMINATED`] with another certificate and its key.
fn with_certificate(stem: &str) -> String {
    let text = TERMINATED.replace("app1.crt", &format!("{stem}.crt"));
    text.replace("app1.key", &format!("{stem}.key"))
}

#[test]
fn a_certificate_out_of_date_is_warned_of() {
    assert_faults(
        &with_certificate("old"),
        r#"
        warning: this certificate expired on 2024-01-01T00:00:00Z
           at: "old.crt"
         help: clients will refuse it: renew it
        "#,
    );
    assert_faults(
        &with_certificate("future"),
        r#"
        warning: this certificate is not valid before 2030-01-01T00:00:00Z
           at: "future.crt"
         help: clients will refuse it until then; is the clock right?
        "#,
    );
}

#[test]
fn a_name_its_certificate_does_not_bear_is_warned_of() {
    let names = "\"app1.example.com\", \"app2.example.com\"";
    assert_faults(
        &changed(TERMINATED, "\"app1.example.com\"", names),
        r#"
        warning: the certificate of this route is not for `app2.example.com`
           at: "app2.example.com"
         help: it is for `app1.example.com`
        "#,
    );
    assert_faults(
        &with_certificate("nameless"),
        r#"
        warning: the certificate of this route is not for `app1.example.com`
           at: "app1.example.com"
         help: it has no DNS name (subjectAltName) at all
        "#,
    );
    let wild = |names: &str| changed(&with_certificate("wild"), "\"app1.example.com\"", names);
    assert_faults(
        &wild("\"a.b.example.com\", \"*.example.org\""),
        r#"
        warning: the certificate of this route is not for `a.b.example.com`
           at: "a.b.example.com"
         help: it is for `*.example.com`
        warning: the certificate of this route is not for `*.example.org`
           at: "*.example.org"
         help: it is for `*.example.com`
        "#,
    );
    accepted(&wild("\"app1.example.com\", \"*.example.com\", \"*\""));
}

#[test]
fn http2_connections_that_would_be_reused_across_routes_are_warned_of() {
    let with = |stem: &str, alpn: &str, sni: &str| {
        let first = changed(&with_certificate(stem), "tls =", &format!("alpn = [{alpn:?}]\ntls ="));
        let second = format!("listener = \"databases\"\nsni = [{sni:?}]\nbackends = [\"redis\"]");
        format!("{first}[[route]]\nname = \"second\"\n{second}")
    };
    assert_faults(
        &with("both", "h2", "app2.example.com"),
        r#"
        warning: HTTP/2 clients of route `app1.example.com` may send requests for `app2.example.com` to it, which route `second` serves
           at: { chain = "both.crt", key = "both.key" }
         help: they reuse a connection for every name of its certificate: give each route a certificate of its own, or take `h2` out of `alpn`
        "#,
    );
    assert_faults(
        &with("both", "h2", "*.example.com"),
        r#"
        warning: HTTP/2 clients of route `app1.example.com` may send requests for `*.example.com` to it, which route `second` serves
           at: { chain = "both.crt", key = "both.key" }
         help: they reuse a connection for every name of its certificate: give each route a certificate of its own, or take `h2` out of `alpn`
        "#,
    );
    assert_faults(
        &with("wild", "h2", "app2.example.com"),
        r#"
        warning: HTTP/2 clients of route `app1.example.com` may send requests for `app2.example.com` to it, which route `second` serves
           at: { chain = "wild.crt", key = "wild.key" }
         help: they reuse a connection for every name of its certificate: give each route a certificate of its own, or take `h2` out of `alpn`
        "#,
    );
    assert_faults(
        &with("wild", "h2", "*.example.com"),
        r#"
        warning: HTTP/2 clients of route `app1.example.com` may send requests for `*.example.com` to it, which route `second` serves
           at: { chain = "wild.crt", key = "wild.key" }
         help: they reuse a connection for every name of its certificate: give each route a certificate of its own, or take `h2` out of `alpn`
        "#,
    );
    accepted(&with("both", "http/1.1", "app2.example.com"));
    accepted(&with("both", "h2", "app3.example.com"));
    accepted(&with("wild", "h2", "a.b.example.com"));
}
