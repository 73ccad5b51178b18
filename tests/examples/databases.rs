//! `databases-one-address`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::{Context, Result};
use snisplice_tests::mysql::{Family, Mysql, is_installed, mysql_cli};
use snisplice_tests::process::checked_output;
use snisplice_tests::redis::tls_cli;
use snisplice_tests::skip::{has_program, python_with};
use snisplice_tests::wait::patience;
use snisplice_tests::{Postgres, Process, Redis, require};

use crate::scene::Scene;

/// A client that answers a line with a line.
struct Session {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Session {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) = (child.stdin.take().context("piped")?, child.stdout.take().context("piped")?);
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Ok(Self { child, input, lines })
    }

    fn ask(&mut self, question: &str) -> Result<String> {
        writeln!(self.input, "{question}")?;
        self.lines.recv_timeout(patience()).with_context(|| format!("no answer to {question:?}"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn one_is_switched_off_and_on_while_the_others_have_sessions() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    require!(is_installed(Family::Mysql), "MySQL is not unpacked");
    let python = python_with("pymongo");
    require!(python.is_some(), "there is no Python with pymongo");
    let python = python.context("just seen")?;

    let scene = Scene::new("databases-one-address", &[11, 12, 13, 14])?;
    let leaf = |name: &str| scene.authority.leaf(&[name]);
    let net = &scene.net;
    let _postgres = Postgres::start(&net.server, 5432, "orders", Some(&leaf("orders.db.example.com")?))?;
    let _redis =
        Redis::tls(&net.server, 6379, &leaf("sessions.db.example.com")?)?.named(&net.server, "sessions")?;
    let _shop = Mysql::start(&net.server, Family::Mysql, 3306, &leaf("shop.db.example.com")?, &[])?;
    let drivers = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mongo.py");
    let mut mongo = net.server.command(&python);
    let of_mongo = leaf("carts.db.example.com")?;
    mongo.arg(&drivers).args(["serve", "10.0.2.13:27017"]).args([&of_mongo.chain, &of_mongo.key]);
    let mut mongo = Process::spawn("mongo.py", mongo)?;
    mongo.wait_listening(&[27017])?;

    let example = scene.start()?;
    let (client, ca) = (&example.net.client, &example.authority.path);
    let open_postgres = || {
        let mut psql = client.command("psql");
        let target = format!(
            "host=orders.db.example.com hostaddr=10.0.1.1 user=postgres sslmode=verify-full sslrootcert={}",
            ca.display()
        );
        psql.args(["-XAtq", &target]);
        Session::start(psql)
    };
    let open_mongo = || {
        let mut session = client.command(&python);
        session.arg(&drivers).args(["session", "carts.db.example.com"]).arg(ca).arg("10.0.1.1");
        Session::start(session)
    };
    let mut postgres = open_postgres()?;
    let mut carts = open_mongo()?;
    let mut mysql = mysql_cli(client)?;
    mysql.args([
        "-h",
        "10.0.1.1",
        "-u",
        "app",
        "-psecret",
        "-N",
        "-B",
        "--unbuffered",
        "--ssl-mode=VERIFY_CA",
    ]);
    mysql.arg(format!("--ssl-ca={}", ca.display())).arg("--tls-sni-servername=shop.db.example.com");
    let mut shop = Session::start(mysql)?;
    let mut redis = Session::start(tls_cli(client, "10.0.1.1", 6379, "sessions.db.example.com", ca))?;
    assert_eq!(postgres.ask("show cluster_name;")?, "orders");
    assert_eq!(shop.ask("select 6 * 7;")?, "42");
    assert_eq!(carts.ask("ping")?, "pong");
    assert_eq!(redis.ask("get name")?, "sessions");

    // Off: the database of the carts has no route any more.
    let mut without: toml::Table = example.config.parse()?;
    let routes = without["route"].as_array_mut().context("routes")?;
    routes.retain(|route| route["name"].as_str() != Some("carts"));
    example.gateway.write_config(&without.to_string())?;
    example.gateway.reload()?;
    assert!(open_mongo()?.ask("ping").is_err(), "its name is refused");
    assert_eq!(postgres.ask("show cluster_name;")?, "orders");
    assert_eq!(shop.ask("select 6 * 8;")?, "48");
    assert_eq!(redis.ask("get name")?, "sessions");
    assert_eq!(carts.ask("ping")?, "pong", "what was open goes on: `on_removal` says otherwise");

    // On again.
    example.gateway.write_config(&example.config)?;
    example.gateway.reload()?;
    assert_eq!(open_mongo()?.ask("ping")?, "pong");
    assert_eq!(shop.ask("select 6 * 9;")?, "54");
    for (session, question, answer) in [
        (&mut postgres, "show cluster_name;", "orders"),
        (&mut redis, "get name", "sessions"),
        (&mut carts, "ping", "pong"),
    ] {
        assert_eq!(session.ask(question)?, answer);
    }
    let open = example.gateway.connections()?;
    assert!(open.iter().all(|connection| connection["tier"] == "packet"), "{open:?}");
    let mut verify = client.command("psql");
    verify.args([
        "-XAtqc",
        "select 1",
        "host=nobody.db.example.com hostaddr=10.0.1.1 user=postgres sslmode=require",
    ]);
    assert!(checked_output(&mut verify).is_err(), "a name without a route");
    Ok(())
}
