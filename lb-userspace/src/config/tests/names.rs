//! Names and references to them.

use super::*;

#[test]
fn two_things_of_a_kind_cannot_have_one_name() {
    let twice = "[[pool]]\nname = \"redis\"\nservers = [\"10.0.0.12:6379\"]\n\
        [[listener]]\nname = \"databases\"\nbind = [\"0.0.0.0:444\"]\n\
        [[route]]\nname = \"r\"\nlistener = \"databases\"\nsni = [\"a\"]\nbackends = [\"redis\"]\n\
        [[route]]\nname = \"r\"\nlistener = \"databases\"\nsni = [\"b\"]\nbackends = [\"redis\"]";
    assert_faults(
        &format!("{GOOD}{twice}"),
        r#"
        error: two pools are named `redis`
           at: "redis"
         help: rename one of them
        error: two listeners are named `databases`
           at: "databases"
         help: rename one of them
        error: two routes are named `r`
           at: "r"
         help: rename one of them
        "#,
    );
}

#[test]
fn a_reference_to_nothing_is_an_error() {
    let text = changed(GOOD, "listener = \"databases\"", "listener = \"database\"");
    assert_faults(
        &changed(&text, "[\"redis\"]", "[\"postgres\"]"),
        r#"
        error: no listener is named `database`
           at: "database"
         help: did you mean `databases`?
        error: no pool is named `postgres`
           at: "postgres"
         help: known are `redis`
        "#,
    );
    let poolless = &GOOD[..GOOD.find("[[pool]]").unwrap()];
    assert_faults(
        poolless,
        r#"
        error: no pool is named `redis`
           at: "redis"
         help: add a `[[pool]]` with this name
        "#,
    );
}

#[test]
fn a_reference_to_a_name_that_could_not_be_read_is_no_second_error() {
    assert_faults(
        &changed(GOOD, "name = \"redis\"", "name = 5"),
        r#"
        error: `name` must be a string, not an integer
           at: 5
         help: for example `name = "redis-1"`
        "#,
    );
}

#[test]
fn the_admin_address_is_no_listeners() {
    assert_faults(
        &format!("[gateway]\nadmin = \"0.0.0.0:443\"\n{GOOD}"),
        r#"
        error: `0.0.0.0:443` is listened on twice
           at: "0.0.0.0:443"
         help: take one of them out
        "#,
    );
}

#[test]
fn what_is_of_no_use_is_warned_of() {
    let pool = "[[pool]]\nname = \"spare\"\nservers = [\"10.0.0.12:6379\"]";
    let listener = "[[listener]]\nbind = [\"0.0.0.0:444\"]\ntrusted_proxies = [\"10.0.0.0/8\"]";
    assert_faults(
        &format!("{GOOD}{pool}\n{listener}"),
        r#"
        warning: no route uses the pool `spare`
           at: "spare"
         help: name it in the `backends` of a route
        warning: no route is on the listener `listener-2`: it turns every client away
           at: [[listener]]
         help: add a `[[route]]` with `listener = "listener-2"`
        warning: `trusted_proxies` has no effect without `proxy_protocol`
           at: ["10.0.0.0/8"]
         help: add `proxy_protocol = true`
        "#,
    );
}
