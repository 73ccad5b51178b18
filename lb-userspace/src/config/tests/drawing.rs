//! Diagnostics: their order, and how they are drawn.

use super::*;

const SIX_ERRORS: &str = r#"[gateway]
workers = "two"

[[listener]]
bind = ["443"]
hello_timout = "5s"

[[route]]
listener = "listener-1"
sni = ["*.*.example.com"]
backends = ["redis", { pool = "reddis" }]

[[pool]]
name = "redis"
servers = ["10.0.0.11:6379"]
connect_timeout = "0s"
"#;

#[test]
fn every_error_is_reported_at_once_in_the_order_of_the_file() {
    let diagnostics = checked(SIX_ERRORS).unwrap_err();
    let lines: Vec<_> = diagnostics.iter().map(|d| diagnostics.position(d).unwrap()).collect();
    assert_eq!(lines, [(2, 11), (5, 9), (6, 1), (10, 8), (11, 31), (16, 19)]);
    assert_eq!((diagnostics.count(Severity::Error), diagnostics.count(Severity::Warning)), (6, 0));
    assert_faults(
        SIX_ERRORS,
        r#"
        error: `workers` must be an integer, not a string
           at: "two"
         help: for example `workers = 0`
        error: `443` is not an IP address with a port
           at: "443"
         help: on all addresses: `"0.0.0.0:443"` and `"[::]:443"`
        error: unknown key `hello_timout` in [[listener]]
           at: hello_timout
         help: did you mean `hello_timeout`?
        error: `*.*.example.com` is not a server name: `*` stands only for the whole first label
           at: "*.*.example.com"
         help: `"*.example.com"` covers one or more labels in front of `example.com`
        error: no pool is named `reddis`
           at: "reddis"
         help: did you mean `redis`?
        error: `connect_timeout` must not be zero
           at: "0s"
         help: for example `connect_timeout = "2s"`
        "#,
    );
}

#[test]
fn diagnostics_are_drawn_with_position_excerpt_and_hint() {
    let second = "[[route]]\nname = \"second\"\nlistener = \"databases\"\n\
        sni = [\"app1.example.com\"]\nbackends = [\"redis\"]\n";
    let text = format!("[gateway]\ntiers = [\"copy\", \"copy\"]\n{GOOD}{second}");
    let drawn = checked(&text).unwrap_err().to_string();
    assert_eq!(
        drawn,
        r#"error: `copy` is twice in `tiers`
 --> snisplice.toml:2:18
  |
2 | tiers = ["copy", "copy"]
  |          ------  ^^^^^^
  |          |
  |          first here
  |
  = help: take one of them out

error: routes `app1.example.com` and `second` tie: both take `app1.example.com`
  --> snisplice.toml:19:8
   |
19 | sni = ["app1.example.com"]
   |        ^^^^^^^^^^^^^^^^^^
   |
  ::: snisplice.toml:10:8
   |
10 | sni = ["app1.example.com"]
   |        ------------------ also here
   |
   = help: take it out of one of them, or tell them apart by `alpn`

"#
    );
}

#[test]
fn an_endless_line_is_named_but_not_drawn() {
    let drawn = checked(&format!("x = \"{}\"", "a".repeat(5000))).unwrap_err().to_string();
    assert!(drawn.contains("--> snisplice.toml:1:1\n"), "{drawn}");
    assert!(!drawn.contains("aaaa"), "{drawn}");
}

#[test]
fn of_very_many_errors_the_first_are_drawn() {
    let text: String = (0..1003).map(|n| format!("zz{n} = 1\n")).collect();
    let diagnostics = checked(&text).unwrap_err();
    // One more says that there is no listener.
    assert_eq!(diagnostics.count(Severity::Error), 1004);
    let drawn = diagnostics.to_string();
    assert_eq!(drawn.matches("error: ").count(), 1000);
    assert!(drawn.ends_with("… and 4 more\n"), "{}", &drawn[drawn.len() - 100..]);
}

#[test]
fn colour_is_given_only_on_request() {
    let diagnostics = checked(SIX_ERRORS).unwrap_err();
    assert!(diagnostics.render(true).contains('\x1b'));
    assert!(!diagnostics.render(false).contains('\x1b'));
}

#[test]
fn control_characters_of_the_file_do_not_reach_the_terminal() {
    let text = format!("\"\\u001b[31m\" = 1\n{GOOD}");
    let drawn = checked(&text).unwrap_err().to_string();
    assert!(drawn.contains("unknown key `\\u{1b}[31m` in the top level"), "{drawn}");
    assert!(!drawn.contains('\u{1b}'), "{drawn:?}");
}
