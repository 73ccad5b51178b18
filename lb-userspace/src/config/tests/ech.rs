//! `ech` of a listener.

use crate::config::Ech;
use crate::ech::Mode;

use super::{GOOD, TERMINATED, accepted, assert_faults, changed, checked};

fn with(ech: &str) -> String {
    changed(GOOD, "bind =", &format!("ech = {ech}\nbind ="))
}

#[test]
fn the_keys_of_a_listener_are_read() {
    let ech = |text: &str| {
        let text = changed(&with(text), "\"app1.example.com\"", "\"app1.example.com\", \"example.com\"");
        accepted(&text).listeners[0].ech.clone().unwrap()
    };
    let plain = ech("{ keys = [\"ech.pem\"] }");
    assert_eq!(plain.keys[0].config().public_name, "example.com");
    assert_eq!((plain.mode, plain.openings), (Mode::Shared, Ech::OPENINGS));
    assert_eq!(ech("{ keys = [\"ech.pem\"], mode = \"shared\" }"), plain);
    let split = ech("{ keys = [\"ech.pem\"], mode = \"split\", openings = 7 }");
    assert_eq!((split.mode, split.openings.get()), (Mode::Split, 7));
    assert!(accepted(GOOD).listeners[0].ech.is_none());
}

#[test]
fn keys_that_cannot_be_used_are_refused() {
    assert_faults(
        &with(
            "{ keys = [\"ech.pem\", \"app1.crt\", \"none\", \"ech.pem\"], mode = \"spilt\", openings = 0 }",
        ),
        r#"
        error: cannot use `app1.crt`: it has no section `ECHCONFIG`
           at: "app1.crt"
         help: `snisplice ech-key --public-name NAME` makes one
        error: cannot read `none`: entity not found
           at: "none"
         help: a relative path starts at the directory of this file
        error: two keys have the number 231: each would cost an attempt
           at: "ech.pem"
         help: `snisplice ech-key --config-id NUMBER` makes one with another
        error: `mode` cannot be `spilt`
           at: "spilt"
         help: did you mean `split`?
        error: `openings` must be from 1 to 1000000000
           at: 0
         help: for example `openings = 100`
        "#,
    );
}

#[test]
fn a_tcp_listener_has_none() {
    let text = changed(GOOD, "sni = [\"app1.example.com\"]\n", "");
    let text = changed(&text, "bind =", "protocol = \"tcp\"\nech = { keys = [\"ech.pem\"] }\nbind =");
    assert_faults(
        &text,
        r#"
        error: a `tcp` listener has no `ech`: it reads no ClientHello
           at: { keys = ["ech.pem"] }
         help: take it out, or let the listener's `protocol` be `tls`
        "#,
    );
}

#[test]
fn what_clients_would_run_into_is_warned_of() {
    let ech = "ech = { keys = [\"ech.pem\"] }\nbind =";
    let warnings = |text: &str| -> Vec<String> {
        let (_, warnings) = checked(text).unwrap();
        warnings.iter().map(|warning| warning.message.clone()).collect()
    };
    let unknown = "no route of the listener takes `example.com`, the public name of a key";
    assert_eq!(warnings(&changed(GOOD, "bind =", ech)), [unknown]);
    for names in ["\"app1.example.com\", \"example.com\"", "\"*.com\"", "\"*\""] {
        let text = changed(&changed(GOOD, "bind =", ech), "\"app1.example.com\"", names);
        assert_eq!(warnings(&text), [""; 0], "{names}");
    }
    let terminated = "the route `app1.example.com` ends TLS, which takes no ECH yet";
    for ech in [ech, "ech = { keys = [\"ech.pem\"], mode = \"split\" }\nbind ="] {
        assert_eq!(warnings(&changed(TERMINATED, "bind =", ech)), [unknown, terminated]);
    }
}
