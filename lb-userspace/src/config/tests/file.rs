//! The file as a whole: reading it, its syntax, the files it names.

use super::*;

#[test]
fn a_syntax_error_is_shown_where_it_is() {
    assert_faults(
        &changed(GOOD, "\"databases\"\nbind", "databases\nbind"),
        r#"
        error: string values must be quoted, expected literal string
           at: databases
         help: text, also an address or a duration, stands in quotes
        "#,
    );
}

#[test]
fn an_array_that_is_not_closed_is_one_error() {
    assert_faults(
        &changed(GOOD, "[\"0.0.0.0:443\"]", "[\"0.0.0.0:443\""),
        r#"
        error: missing comma between array elements, expected `,`
           at:
         help: if the list ends before this, close it with `]`
        "#,
    );
}

#[test]
fn a_header_that_is_not_closed_is_one_error() {
    assert_faults(
        &changed(GOOD, "[[listener]]", "[[listener]"),
        r#"
        error: unclosed array table, expected `]`
           at:
         help:
        "#,
    );
}

#[test]
fn a_key_given_twice_is_an_error() {
    assert_faults(
        &changed(GOOD, "bind =", "name = \"again\"\nbind ="),
        r#"
        error: duplicate key
           at: name
         help: take one of them out
        "#,
    );
}

#[test]
fn errors_are_found_on_both_sides_of_a_syntax_error() {
    assert_faults(
        "[gateway]\nworkers = 5000\nadmin = 127.0.0.1:9900\nwatch = 1\n",
        r#"
        error: `workers` must be from 0 to 1024
           at: 5000
         help: for example `workers = 0`
        error: invalid float, expected nothing
           at: .0.1:9900
         help: text, also an address or a duration, stands in quotes
        error: `watch` must be `true` or `false`, not an integer
           at: 1
         help: for example `watch = true`
        "#,
    );
}

#[test]
fn an_empty_file_is_an_error() {
    assert_faults(
        "",
        r#"
        error: no listener: there is nothing to do
           at:
         help: add a `[[listener]]`, a `[[route]]` and a `[[pool]]`
        "#,
    );
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    let error = File::open(Path::new("/nonexistent/snisplice.toml")).0.unwrap_err();
    let message = "error: cannot read `/nonexistent/snisplice.toml`: No such file or directory (os error 2)";
    assert_eq!(error.to_string().trim_end(), message);
}

/// A directory of this test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("snisplice-{}-{name}", std::process::id()));
        std::fs::create_dir(&directory).expect("a directory of this name is not there");
        Self(directory)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).expect("written");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing to be done if it cannot be removed, least of all in a panic.
        _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn relative_paths_start_at_the_directory_of_the_file() {
    let scratch = Scratch::new("relative");
    scratch.write("app1.crt", &FILES.0["app1.crt"]);
    scratch.write("app1.key", &FILES.0["app1.key"]);
    let path = scratch.write("snisplice.toml", TERMINATED);
    let (checked, sources) = File::open(&path);
    let checked = checked.map(|(_, config, warnings)| (config, warnings));
    assert!(matches!(checked.unwrap().0.routes[0].action, Action::Terminate(_)));
    let beside = |name: &str| path.with_file_name(name);
    for read in [path.clone(), beside("app1.crt"), beside("app1.key")] {
        assert_eq!(sources[&read], digest(&read));
    }
    assert_eq!(sources.len(), 3);
}

#[test]
fn the_files_of_a_configuration_with_errors_are_known_too() {
    let scratch = Scratch::new("sources");
    scratch.write("app1.crt", &FILES.0["app1.crt"]);
    let path = scratch.write("snisplice.toml", TERMINATED);
    let (checked, sources) = File::open(&path);
    let checked = checked.map(|(_, config, warnings)| (config, warnings));
    assert!(checked.is_err());
    assert_eq!(sources[&path.with_file_name("app1.key")], None);
    assert!(sources[&path.with_file_name("app1.crt")].is_some());
}

#[test]
fn a_file_may_be_as_large_as_its_bound_and_no_larger() {
    let scratch = Scratch::new("bound");
    let path = scratch.write("file", "12345");
    assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
    assert_eq!(read_bounded(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
}

#[test]
fn looking_for_similar_names_has_an_end() {
    let mut report = diagnostic::Report::default();
    let names: Vec<String> = (0..1000).map(|n| format!("pool-{n}")).collect();
    let mut similar = || report.similar("pool-1000x", names.iter().map(String::as_str));
    let found = (0..1000).filter(|_| similar().is_some()).count();
    assert_eq!(found, 100, "100 000 comparisons in all");
}

#[test]
fn text_that_is_not_utf8_is_shown_where_it_is() {
    let error = String::from_utf8(b"[gateway]\nadmin = \"\xff\"".to_vec()).unwrap_err();
    let diagnostics = Diagnostics::not_utf8("snisplice.toml", &error);
    let only = diagnostics.iter().next().unwrap();
    assert_eq!(only.message, "not UTF-8 text");
    assert_eq!(diagnostics.position(only), Some((2, 10)));
}
