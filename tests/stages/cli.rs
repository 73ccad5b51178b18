//! The commands, as somebody at a terminal meets them.

use std::fs;
use std::process::{Command, Output};

use anyhow::{Context, Result};
use snisplice_tests::{TempDir, gateway};

use crate::config::{listener, one_route, passthrough, pool};
use crate::world::World;

fn snisplice(args: &[&str]) -> Result<Output> {
    Command::new(gateway::binary()?).args(args).output().context("running snisplice")
}

/// `snisplice check` of a text: exit code and everything it said.
fn check(text: &str) -> Result<(Option<i32>, String)> {
    let files = TempDir::new()?;
    let file = files.join("snisplice.toml");
    fs::write(&file, text)?;
    let output = snisplice(&["check", "-c", file.to_str().context("UTF-8")?])?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok((output.status.code(), said))
}

#[test]
fn check_accepts_a_good_file() -> Result<()> {
    let (code, said) = check(&one_route())?;
    assert_eq!(code, Some(0), "{said}");
    Ok(())
}

#[test]
fn check_reports_every_error_at_once_with_its_place() -> Result<()> {
    let text = "[[listener]]\nname = 'databases'\nbind = ['0.0.0.0:443']\nhello_timeout = 'soon'\n\
                [[route]]\nlistener = 'databses'\nsni = ['app1.example.com']\nbackends = [{ pool = 'nowhere' }]\n\
                [[pool]]\nname = 'p'\nservers = [{ address = '10.0.2.2:99999' }]\nspeed = 'fast'\n";
    let (code, said) = check(text)?;
    assert_eq!(code, Some(2), "{said}");
    for part in ["soon", "databses", "nowhere", "99999", "speed"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    for place in [":4:", ":6:", ":8:", ":11:", ":12:"] {
        assert!(said.contains(&format!("snisplice.toml{place}")), "{place} in {said}");
    }
    Ok(())
}

#[test]
fn check_refuses_two_routes_that_tie() -> Result<()> {
    let text = listener("")
        + &passthrough("one", "app1.example.com")
        + &passthrough("two", "APP1.example.com.")
        + &pool("one", &[1], "")
        + &pool("two", &[2], "");
    let (code, said) = check(&text)?;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.to_lowercase().contains("app1.example.com"), "{said}");
    Ok(())
}

#[test]
fn run_refuses_a_bad_file_with_the_same_words_as_check() -> Result<()> {
    let files = TempDir::new()?;
    let file = files.join("snisplice.toml");
    fs::write(&file, "[[listener]]\nbind = ['everywhere']\n")?;
    let file = file.to_str().context("UTF-8")?;
    let run = snisplice(&["run", "-c", file])?;
    let check = snisplice(&["check", "-c", file])?;
    assert_eq!((run.status.code(), check.status.code()), (Some(2), Some(2)));
    let said = |output: &Output| {
        String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
    };
    assert!(said(&run).contains("everywhere") && said(&check).contains("everywhere"), "{}", said(&run));
    Ok(())
}

/// Runs a script in which `snisplice` is the program and /etc/snisplice/snisplice.toml holds this, if anything.
fn with_default_file(text: Option<&str>, script: &str) -> Result<Output> {
    let files = TempDir::new()?;
    if let Some(text) = text {
        fs::create_dir(files.join("snisplice"))?;
        fs::write(files.join("snisplice/snisplice.toml"), text)?;
    }
    let script = format!("mount --bind {} /etc && {script}", files.path().display());
    let mut command = Command::new("timeout");
    command
        .args(["60", "unshare", "--mount", "--net", "sh", "-c", &script])
        .env("snisplice", gateway::binary()?);
    command.output().context("running the script")
}

#[test]
fn without_a_name_the_configuration_is_the_one_in_etc() -> Result<()> {
    let said = |output: &Output| {
        String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
    };
    let good = with_default_file(Some(&one_route()), "$snisplice check")?;
    assert_eq!(said(&good), "/etc/snisplice/snisplice.toml: 1 listener, 1 route, 1 pool: good\n");

    let files = TempDir::new()?;
    let state = files.join("state");
    let text = format!("[gateway]\nstate_dir = {state:?}\ntiers = ['copy']\nworkers = 1\n{}", one_route());
    let script = "ip link set lo up; $snisplice run & gateway=$!; until $snisplice status; do sleep 0.1; done; \
                  kill $gateway; wait $gateway";
    let served = with_default_file(Some(&text), script)?;
    assert!(
        served.status.success() && said(&served).contains(" 1 worker, configuration 1\n"),
        "{}",
        said(&served)
    );

    for command in ["run", "check"] {
        let absent = with_default_file(None, &format!("$snisplice {command}"))?;
        assert_eq!(absent.status.code(), Some(2));
        let expected =
            "snisplice: there is no /etc/snisplice/snisplice.toml: name the configuration with `-c FILE`\n";
        assert_eq!(said(&absent), expected);
    }
    // As it was: the defaults, with which nobody serves here.
    let absent = with_default_file(None, "mount -t tmpfs none /run && $snisplice status")?;
    assert_eq!(absent.status.code(), Some(1));
    assert!(said(&absent).contains("cannot connect to /run/snisplice/admin.sock"), "{}", said(&absent));
    Ok(())
}

#[test]
fn a_directory_that_cannot_be_written_is_named_once_and_with_its_key() -> Result<()> {
    let text =
        |key: &str, path: &str| format!("[gateway]\n{key} = {path}\ntiers = ['copy']\n{}", one_route());
    for (key, path, what) in [
        ("state_dir", "'/mnt/state'", "cannot create /mnt/state"),
        ("access_log", "{ path = '/mnt/access.log' }", "cannot open /mnt/access.log"),
    ] {
        let script = "mount -t tmpfs -o ro none /mnt && mount -t tmpfs none /run && $snisplice run";
        let output = with_default_file(Some(&text(key, path)), script)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = said.lines().last().unwrap_or_default();
        assert_eq!(
            last,
            format!("snisplice: gateway.{key}: {what}: Read-only file system (os error 30)"),
            "{said}"
        );
    }
    Ok(())
}

#[test]
fn run_says_which_address_is_taken() -> Result<()> {
    let world = World::new()?;
    let _taken = world.net.gateway.run(|| std::net::TcpListener::bind("0.0.0.0:443"))?;
    let error = world.gateway(&one_route()).expect_err("the port is taken");
    assert!(format!("{error:#}").contains("0.0.0.0:443"), "{error:#}");
    assert!(format!("{error:#}").contains("in use"), "{error:#}");
    Ok(())
}

#[test]
fn commands_say_so_when_no_gateway_runs() -> Result<()> {
    let files = TempDir::new()?;
    let file = files.join("snisplice.toml");
    fs::write(&file, format!("[gateway]\nstate_dir = {:?}\n{}", files.join("state"), one_route()))?;
    for command in ["status", "connections", "reload"] {
        let output = snisplice(&[command, "-c", file.to_str().context("UTF-8")?])?;
        assert_eq!(output.status.code(), Some(1), "{command}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("running"), "{command}: {stderr}");
    }
    Ok(())
}

#[test]
fn a_second_gateway_with_the_same_state_directory_is_refused() -> Result<()> {
    let world = World::new()?;
    let gateway = world.gateway(&one_route())?;
    let file = gateway.config_file();
    let output = world.net.server.command(gateway::binary()?).arg("run").arg("-c").arg(&file).output()?;
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(gateway.status()?.listener("databases", "active"), 0);
    Ok(())
}

#[test]
fn doctor_names_what_each_tier_needs() -> Result<()> {
    let output = snisplice(&["doctor"])?;
    let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
    for part in ["btf", "tcx", "source ports", "raw sockets", "packet", "sockmap", "ktls", "bpffs", "copy"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    Ok(())
}

#[test]
fn usage_errors_and_help_keep_to_convention() -> Result<()> {
    assert_eq!(snisplice(&["fly"])?.status.code(), Some(2));
    assert_eq!(snisplice(&["run", "-c", "/nonexistent/snisplice.toml"])?.status.code(), Some(2));
    let help = snisplice(&["--help"])?;
    assert!(help.status.success());
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for command in
        ["run", "check", "doctor", "load", "unload", "reload", "status", "connections", "top", "completions"]
    {
        assert!(help.contains(command), "{command} in {help}");
    }
    assert!(String::from_utf8_lossy(&snisplice(&["--version"])?.stdout).starts_with("snisplice "));
    for shell in ["bash", "zsh", "fish"] {
        let script = snisplice(&["completions", shell])?;
        assert!(String::from_utf8_lossy(&script.stdout).contains("connections"), "{shell}");
    }
    Ok(())
}
