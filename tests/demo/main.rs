//! The gateway at work, told step by step: real Redis servers behind one address, told apart by SNI.
//!
//! Three network namespaces stand for three machines. Nothing outside them is touched, and nothing is left
//! behind, also on Ctrl-C.

mod narrate;
mod summary;

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use snisplice_tests::interrupt::{interrupted, pause_point, watch_for_interrupts};
use snisplice_tests::redis::tls_cli;
use snisplice_tests::{Authority, Gateway, Leaf, NetNs, Redis, Triangle, eventually, gateway};

use narrate::{note, step};

/// What the client connects to, whatever the database.
const SERVER_ADDRESS: &str = "10.0.2.2";
const ADDRESS: &str = "10.0.1.1";
const PORT: u16 = 443;
const APP1: &str = "app1.redis.example.com";
const APP2: &str = "app2.redis.example.com";
const APP3: &str = "app3.redis.example.com";

fn main() -> ExitCode {
    let keep = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [option] if option == "--keep" => true,
        _ => {
            eprintln!(
                "usage: demo [--keep]\n\n  --keep   leave everything running and print commands to try"
            );
            return ExitCode::from(2);
        }
    };
    match watch_for_interrupts().and_then(|()| run(keep)) {
        Ok(()) => {
            println!("\nEverything is cleaned up. What to try next:");
            println!("  cargo xtask demo --keep    the same, left running, with commands to type");
            println!("  snisplice doctor           what this machine's kernel can do for the gateway");
            println!("  snisplice check -c FILE    every mistake in a configuration at once");
            println!("  README.md                  a first configuration of your own");
            ExitCode::SUCCESS
        }
        Err(_) if interrupted() => {
            println!("\nInterrupted; everything is cleaned up.");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("\nThe demo did not work: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(keep: bool) -> Result<()> {
    step("Three machines: a client, the gateway, a server (network namespaces joined by virtual cables)")?;
    let net = Triangle::new()?;
    note("client 10.0.1.2  ──  10.0.1.1 gateway 10.0.2.1  ──  10.0.2.2 server");

    step("Two Redis servers, started for real")?;
    let authority = Authority::new("snisplice demo")?;
    let app1 = authority.leaf(&[APP1])?;
    let app2 = authority.leaf(&[APP2])?;
    let _redis1 = Redis::tls(&net.server, 6379, &app1)?.named(&net.server, "the first database")?;
    let _redis2 = Redis::plain(&net.server, 6380)?.named(&net.server, "the second database")?;
    note("10.0.2.2:6379 speaks TLS itself and has its own certificate");
    note("10.0.2.2:6380 speaks clear text only");

    step("The gateway, with this configuration")?;
    let config = configuration(&app2);
    narrate::quote(&config);
    let mut gateway = Gateway::start(&net.gateway, &config)?;
    note(&format!("snisplice run -c snisplice.toml    (process {})", gateway.process.pid()));

    step("The client talks to both databases at one address and port; only the name differs")?;
    let client = Client { ns: &net.client, authority: &authority };
    client.expect(APP1, "the first database")?;
    note("passed through: the gateway read the name in the ClientHello, Redis did the TLS");
    client.expect(APP2, "the second database")?;
    note("terminated: the gateway did the TLS, Redis saw clear text");

    step("A name that no route covers is refused, with the alert that TLS has for it")?;
    note(&format!("OpenSSL says: {}", client.refused("nobody.redis.example.com")?));

    step("A client opens a connection and keeps it, while a third database is added")?;
    let mut subscriber = Subscriber::start(&client)?;
    note(&format!("a client subscribed to the channel `news` at {APP1}"));
    let _redis3 = Redis::plain(&net.server, 6381)?.named(&net.server, "the third database")?;
    let app3 = authority.leaf(&[APP3])?;
    gateway.write_config(&(config.clone() + &third_route(&app3)))?;
    gateway.reload()?;
    note(&format!("snisplice reload: {APP3} now leads to 10.0.2.2:6381"));
    client.expect(APP3, "the third database")?;
    client.publish("still here after the reload")?;
    subscriber.expect("still here after the reload")?;
    note("the subscriber, connected before the reload, received what was published after it");

    step("What the gateway says about the connection that is still open: snisplice connections")?;
    // redis-cli may end its connections by resets, which have to stand for half a second; and what the log has not
    // written yet goes with the process.
    let so_far = eventually("the access log to tell of the other connections", || routed(&gateway, 4))?;
    narrate::quote(&String::from_utf8_lossy(&gateway.cli(["connections"])?.stdout));

    step("The gateway's process is killed (kill -9) in the middle of that connection")?;
    gateway.kill()?;
    note("no snisplice runs now; Redis itself is asked to publish");
    publish_at_the_server(&net.server, &authority, "nobody stands between us")?;
    subscriber.expect("nobody stands between us")?;
    note("the subscriber has it: the kernel forwards each packet of that connection by itself");
    gateway.start_again()?;
    note(&format!("snisplice run -c snisplice.toml    (process {})", gateway.process.pid()));
    note("the new process adopts the connection, with its route, name, age and bytes: snisplice connections");
    narrate::quote(&String::from_utf8_lossy(&gateway.cli(["connections"])?.stdout));

    if keep {
        keep_running(&net, &gateway, &authority)?;
    }

    step("The client hangs up; the gateway's books")?;
    drop(subscriber);
    let log = eventually("the access log to tell all of it", || routed(&gateway, 5))?;
    let status = gateway.wait_status("all connections to end", |s| s.listener("databases", "active") == 0)?;
    summary::print(&log);
    summary::verify(&so_far, &log, &status)?;
    Ok(())
}

/// The access log, once it tells of so many connections that had a route.
fn routed(gateway: &Gateway, connections: usize) -> Option<Vec<Value>> {
    let log = gateway.access_log().ok()?;
    (log.iter().filter(|line| line["route"].is_string()).count() >= connections).then_some(log)
}

/// Without a gateway: from the server's machine to its own Redis.
fn publish_at_the_server(server: &NetNs, authority: &Authority, message: &str) -> Result<()> {
    let mut command = tls_cli(server, SERVER_ADDRESS, 6379, APP1, &authority.path);
    let status = command.args(["publish", "news", message]).output()?.status;
    ensure!(status.success(), "publishing failed");
    Ok(())
}

fn configuration(app2: &Leaf) -> String {
    format!(
        r#"[[listener]]
name = "databases"
bind = ["0.0.0.0:{PORT}"]

[[route]]                       # passed through: TLS ends at Redis
name     = "app1"
listener = "databases"
sni      = ["{APP1}"]
tls      = "passthrough"
backends = [{{ pool = "redis-1" }}]

[[route]]                       # terminated: TLS ends at the gateway
name     = "app2"
listener = "databases"
sni      = ["{APP2}"]
tls      = "terminate"
certificate = {}
backends = [{{ pool = "redis-2" }}]

[[pool]]
name    = "redis-1"
servers = [{{ address = "10.0.2.2:6379" }}]

[[pool]]
name    = "redis-2"
servers = [{{ address = "10.0.2.2:6380" }}]
"#,
        app2.toml()
    )
}

fn third_route(app3: &Leaf) -> String {
    format!(
        r#"
[[route]]
name     = "app3"
listener = "databases"
sni      = ["{APP3}"]
tls      = "terminate"
certificate = {}
backends = [{{ pool = "redis-3" }}]

[[pool]]
name    = "redis-3"
servers = [{{ address = "10.0.2.2:6381" }}]
"#,
        app3.toml()
    )
}

/// The machine from which `redis-cli` and `openssl` are used.
struct Client<'a> {
    ns: &'a NetNs,
    authority: &'a Authority,
}

impl Client<'_> {
    fn redis_cli(&self, sni: &str) -> Command {
        tls_cli(self.ns, ADDRESS, PORT, sni, &self.authority.path)
    }

    /// Asks the database behind a name who it is.
    fn expect(&self, sni: &str, name: &str) -> Result<()> {
        println!("  $ redis-cli -h {ADDRESS} -p {PORT} --tls --cacert ca.crt --sni {sni} get name");
        let output = self.redis_cli(sni).args(["get", "name"]).output()?;
        let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        println!("  \"{answer}\"");
        ensure!(answer == name, "expected {name:?}; {}", String::from_utf8_lossy(&output.stderr));
        pause_point()
    }

    fn publish(&self, message: &str) -> Result<()> {
        let status = self.redis_cli(APP1).args(["publish", "news", message]).output()?.status;
        ensure!(status.success(), "publishing failed");
        Ok(())
    }

    /// The line with the alert that OpenSSL prints for a name.
    fn refused(&self, sni: &str) -> Result<String> {
        println!("  $ openssl s_client -connect {ADDRESS}:{PORT} -servername {sni}");
        let mut openssl = self.ns.command("openssl");
        openssl.args(["s_client", "-connect", &format!("{ADDRESS}:{PORT}"), "-servername", sni]);
        let output = openssl.stdin(std::process::Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let alert = text.split(':').find(|part| part.contains("unrecognized name"));
        Ok(alert.with_context(|| format!("no such alert: {text}"))?.to_owned())
    }
}

/// A `redis-cli` that waits for messages.
struct Subscriber(snisplice_tests::Process);

impl Subscriber {
    fn start(client: &Client) -> Result<Self> {
        let mut command = client.redis_cli(APP1);
        command.args(["subscribe", "news"]);
        let mut subscriber = Self(snisplice_tests::Process::spawn("redis-cli", command)?);
        subscriber.expect("subscribe")?;
        Ok(subscriber)
    }

    fn expect(&mut self, text: &str) -> Result<()> {
        eventually(&format!("the subscriber to receive {text:?}"), || {
            (interrupted() || self.0.stdout().contains(text)).then_some(())
        })?;
        ensure!(self.0.is_running(), "the subscriber's connection was cut\n{}", self.0.stderr());
        pause_point()
    }
}

fn keep_running(net: &Triangle, gateway: &Gateway, authority: &Authority) -> Result<()> {
    step("Everything stays up until you press Ctrl-C. In another terminal, as root:")?;
    let enter = |ns: &NetNs| format!("nsenter --net={}", ns.path());
    let binary = gateway::binary()?;
    let (snisplice, config) = (binary.display(), gateway.config_file());
    let (config, ca) = (config.display(), authority.path.display());
    for sni in [APP1, APP2, APP3] {
        println!(
            "  {} redis-cli -h {ADDRESS} -p {PORT} --tls --cacert {ca} --sni {sni} get name",
            enter(&net.client)
        );
    }
    println!("  {snisplice} status -c {config}");
    println!("  {snisplice} connections -c {config}");
    println!("  $EDITOR {config} && {snisplice} reload -c {config}");
    println!("  tail -f {}", gateway.file("access.log").display());
    println!("  {} tcpdump -ni back", enter(&net.gateway));
    while !interrupted() {
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("interrupted")
}
