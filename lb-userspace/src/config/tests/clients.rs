//! `client_rate`, `hello_bytes` and `client_auth`: what they stand for, and what is wrong with them.

use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use std::num::NonZeroU32;

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

/// Two authorities, and CRLs of the first: one of today, one that has expired.
pub(super) fn files() -> Vec<(&'static str, String)> {
    let issuer = authority("clients");
    let crl = |from, to| {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(from, 1, 1),
            next_update: date_time_ymd(to, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&issuer).expect("a CRL").pem().expect("PEM")
    };
    vec![
        ("authority.crt", issuer.pem()),
        ("other-authority.crt", authority("others").pem()),
        ("today.crl", crl(2025, 2027)),
        ("old.crl", crl(2020, 2024)),
    ]
}

#[test]
fn a_client_rate_bounds_what_it_names() {
    let of = |value: &str| {
        let text = changed(GOOD, "bind =", &format!("client_rate = {value}\nbind ="));
        let text = changed(&text, "sni =", &format!("client_rate = {value}\nsni ="));
        let config = accepted(&text);
        assert_eq!(config.listeners[0].client_rate, config.routes[0].client_rate);
        config.listeners[0].client_rate
    };
    let new = |most, per| Some(NewConnections { most: NonZeroU32::new(most).unwrap(), per });
    let second = Duration::from_secs(1);
    assert_eq!(
        of("{ connections = 50, per = \"10s\", open = 500 }"),
        Some(ClientRate { new: new(50, 10 * second), open: Some(500) })
    );
    assert_eq!(of("{ connections = 50 }"), Some(ClientRate { new: new(50, second), open: None }));
    assert_eq!(of("{ open = 1 }"), Some(ClientRate { new: None, open: Some(1) }));
}

#[test]
fn a_client_rate_must_bound_something() {
    let with = |value: &str| changed(GOOD, "bind =", &format!("client_rate = {value}\nbind ="));
    assert_faults(
        &with("{}"),
        r#"
        error: this `client_rate` limits nothing
           at: {}
         help: for example `client_rate = { connections = 50, per = "1s", open = 500 }`
        "#,
    );
    assert_faults(
        &with("{ per = \"1m\", open = 5 }"),
        r#"
        error: `per` of a `client_rate` without `connections`
           at: "1m"
         help: say how many in that time: `connections = 50`
        "#,
    );
    assert_faults(
        &with("{ connections = 0, per = \"0s\", burst = 5 }"),
        r#"
        error: `connections` must be from 1 to 1000000000
           at: 0
         help: for example `connections = 50`
        error: `per` must not be zero
           at: "0s"
         help: for example `per = "1s"`
        error: unknown key `burst` in client_rate
           at: burst
         help: known are `connections`, `per`, `open`
        "#,
    );
}

#[test]
fn a_client_that_may_have_everything_is_warned_of() {
    let text = changed(GOOD, "bind =", "client_rate = { open = 100 }\nmax_connections = 100\nbind =");
    assert_faults(
        &changed(&text, "sni =", "client_rate = { open = 200_000 }\nsni ="),
        r#"
        warning: one client may have all 100 connections that `max_connections` allows
           at: 100
         help: a smaller `open`
        warning: one client may have all 200000 connections that `max_connections` allows
           at: 200_000
         help: a smaller `open`
        "#,
    );
    accepted(&changed(&text, "open = 100", "open = 99"));
}

#[test]
fn a_hello_has_bounds() {
    let with = |bytes: u32| changed(GOOD, "bind =", &format!("hello_bytes = {bytes}\nbind ="));
    assert_eq!(accepted(&with(16384)).listeners[0].hello_bytes, 16384);
    for bytes in [511, 163_841] {
        assert_faults(
            &with(bytes),
            &format!(
                "error: `hello_bytes` must be from 512 to 163840\nat: {bytes}\nhelp: for example `hello_bytes = 16384`"
            ),
        );
    }
}

/// A terminated route with this `client_auth`.
fn with_auth(value: &str) -> String {
    changed(TERMINATED, "tls =", &format!("client_auth = {value}\ntls ="))
}

#[test]
fn client_ca_is_short_for_client_auth() {
    let of = |text: &str| match &accepted(text).routes[0].action {
        Action::Terminate(termination) => format!("{:?}", termination.client_auth),
        Action::Pass => panic!("it terminates"),
    };
    let short = of(&changed(TERMINATED, "tls =", "client_ca = \"authority.crt\"\ntls ="));
    assert_eq!(short, of(&with_auth("{ ca = [\"authority.crt\"] }")));
    let all = with_auth(
        r#"{ ca = ["authority.crt", "app1.crt"], crl = ["today.crl"], mode = "optional", subjects = ["CN=a"],
             sans = ["URI:spiffe://a/b"] }"#,
    )
    .replace(",\n", ",");
    assert_eq!(
        of(&all),
        "Some(ClientAuth { authorities: 2, crls: 1, required: false, allowed: Allowed { subjects: [\"CN=a\"], \
         sans: [Uri(\"spiffe://a/b\")] } })"
    );
    assert_faults(
        &changed(&with_auth("{ ca = [\"authority.crt\"] }"), "tls =", "client_ca = \"app1.crt\"\ntls ="),
        r#"
        error: a route has `client_ca` or `client_auth`, not both
           at: "app1.crt"
         help: add its file to the `ca` of `client_auth`
        "#,
    );
}

#[test]
fn routes_that_ask_the_same_of_clients_share_it() {
    let text = with_auth("{ ca = [\"authority.crt\"], crl = [\"today.crl\"] }");
    let route = &text[text.find("[[route]]").unwrap()..text.find("[[pool]]").unwrap()];
    let route = route.replace("app1.example.com", "app1.redis.example.com");
    let config =
        accepted(&(text + &route.replace("app1.crt", "redis1.crt").replace("app1.key", "redis1.key")));
    let auths: Vec<_> = config
        .routes
        .iter()
        .map(|route| match &route.action {
            Action::Terminate(termination) => termination.client_auth.as_ref().unwrap(),
            Action::Pass => panic!("it terminates"),
        })
        .collect();
    assert!(Arc::ptr_eq(auths[0], auths[1]));
    assert_eq!(auths[0].crl_expiry, Some(1_798_761_600));
}

#[test]
fn what_is_wrong_with_a_client_auth() {
    assert_faults(
        &with_auth(
            "{ crl = [\"today.crl\"], mode = \"maybe\", subjects = [\"app1\"], sans = [\"app1.example.com\"] }",
        ),
        r#"
        error: client_auth without `ca`
           at: { crl = ["today.crl"], mode = "maybe", subjects = ["app1"], sans = ["app1.example.com"] }
         help: for example `ca = ["clients-ca.crt"]`
        error: `mode` cannot be `maybe`
           at: "maybe"
         help: one of `"required"`, `"optional"`
        error: `app1` is not a subject: it begins with no kind of name, such as `CN=`
           at: "app1"
         help: as `openssl x509 -in FILE -noout -subject -nameopt RFC2253` prints it, for example `"CN=app1,O=Example,C=DE"`
        error: `app1.example.com` is not an alternative name: its kind is not in front, `DNS:`, `IP:`, `URI:` or `email:`
           at: "app1.example.com"
         help: `"DNS:app1.example.com"`
        "#,
    );
    assert_faults(
        &with_auth("{ ca = [\"today.crl\", \"none.crt\"], crl = [\"authority.crt\", \"empty.pem\"] }"),
        r#"
        error: cannot use `today.crl`: it holds no certificate
           at: "today.crl"
         help: it holds a CRL: are `ca` and `crl` swapped?
        error: cannot read `none.crt`: entity not found
           at: "none.crt"
         help: a relative path starts at the directory of this file
        error: cannot use `authority.crt`: it holds no CRL
           at: "authority.crt"
         help: it holds a certificate: are `ca` and `crl` swapped?
        error: cannot use `empty.pem`: it holds no CRL
           at: "empty.pem"
         help: a PEM file with `BEGIN X509 CRL`
        "#,
    );
    assert_faults(
        &changed(
            &with_auth("{ ca = [\"authority.crt\"] }"),
            "tls = \"terminate\"\ncertificate = { chain = \"app1.crt\", key = \"app1.key\" }\n",
            "",
        ),
        r#"
        error: a route that passes TLS through has no `client_auth`
           at: { ca = ["authority.crt"] }
         help: add `tls = "terminate"`, or take it out
        "#,
    );
}

#[test]
fn crls_that_keep_everybody_out_are_warned_of() {
    assert_faults(
        &with_auth("{ ca = [\"authority.crt\"], crl = [\"old.crl\"] }"),
        r#"
        warning: this CRL expired on 2024-01-01T00:00:00Z
           at: "old.crl"
         help: all certificates of its issuer are refused until it is renewed
        "#,
    );
    assert_faults(
        &with_auth("{ ca = [\"app1.crt\", \"other-authority.crt\"], crl = [\"today.crl\"] }"),
        r#"
        warning: `crl` has none of certificate 1 in this file
           at: "other-authority.crt"
         help: all certificates that it has issued are refused: add its CRL, or take it out
        "#,
    );
}
