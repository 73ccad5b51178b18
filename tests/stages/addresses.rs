//! Addresses of Gateways on a machine: what a lost gateway leaves, and what `doctor` sees between clients and listeners.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Output;

use anyhow::{Result, ensure};
use snisplice_tests::gateway::{Gateway, Launch, binary};
use snisplice_tests::process::{checked_output, find_program};
use snisplice_tests::{NetNs, TempDir};

const CONFIG: &str = r#"
[gateway]
tiers = ["copy"]

[[listener]]
name = "databases"
bind = ["0.0.0.0:4430", "0.0.0.0:4431", "0.0.0.0:4432", "0.0.0.0:4433"]

[[route]]
listener = "databases"
sni = ["app1.example.com"]
backends = ["redis"]

[[pool]]
name = "redis"
servers = ["10.0.0.11:6379"]
"#;

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What a gateway had from an API server: a Gateway with addresses.
const OBJECTS: &str = concat!(
    r#"[{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "edge"}, "#,
    r#""spec": {"controllerName": "snisplice.dev/gateway"}},"#,
    "\n",
    r#"{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "gw", "namespace": "ns"}, "#,
    r#""spec": {"gatewayClassName": "edge", "listeners": [{"name": "tcp", "port": 7000, "protocol": "TCP"}]}, "#,
    r#""status": {"addresses": [{"value": "198.51.100.9"}, {"value": "2001:db8::9"}]}}]"#,
);

/// An API server that is not there.
const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
current-context: none
contexts: [{name: none, context: {cluster: none, user: none}}]
clusters: [{name: none, cluster: {server: 'https://127.0.0.1:1'}}]
users: [{name: none, user: {token: none}}]
";

#[test]
fn what_a_lost_gateway_has_left_is_listed_and_removed_when_none_runs() -> Result<()> {
    let ns = NetNs::new("gateway")?;
    // One of somebody else.
    ns.ip("addr add 198.51.100.10/32 dev lo")?;
    let files = TempDir::new()?;
    std::fs::create_dir(files.join("state"))?;
    std::fs::write(files.join("state/objects.json"), OBJECTS)?;
    std::fs::write(files.join("kubeconfig"), KUBECONFIG)?;
    let api = "[gateway_api]\nfrom = \"cluster\"\nkubeconfig = \"kubeconfig\"\nmode = \"pool\"\n\
               addresses = [\"198.51.100.0/28\", \"2001:db8::/120\"]\n";
    let mut gateway = Gateway::start_in(files, &ns, &format!("{CONFIG}\n{api}"), Launch::default())?;
    let config = gateway.config_file();
    let cleanup = |more: &[&str]| -> Result<Output> {
        let mut command = ns.command(binary()?);
        command.arg("cleanup").arg("-c").arg(&config).args(more);
        Ok(command.output()?)
    };
    let there = || ns.ip("addr show dev lo");
    ensure!(there()?.contains(" 198.51.100.9/32") && there()?.contains(" 2001:db8::9/128"), "{}", there()?);
    let refused = cleanup(&["--yes"])?;
    ensure!(
        refused.status.code() == Some(1) && text(&refused).contains("already runs"),
        "{}",
        text(&refused)
    );
    gateway.kill()?;
    // What a write has left that was cut off.
    std::fs::write(gateway.file("state/objects.new"), "[")?;

    // Of another gateway.
    let listener = ns.run(|| TcpListener::bind((Ipv4Addr::new(198, 51, 100, 9), 4440)))?;
    let refused = cleanup(&["--yes"])?;
    ensure!(text(&refused).contains("a socket listens on 198.51.100.9"), "{}", text(&refused));
    drop(listener);

    let listed = cleanup(&[])?;
    for line in [
        "address  198.51.100.9 on lo\n",
        "address  2001:db8::9 on lo\n",
        "objects.json\n",
        "objects.new\n",
        "attached\n",
        "nothing was removed",
    ] {
        ensure!(listed.status.success() && text(&listed).contains(line), "{line}: {}", text(&listed));
    }
    ensure!(!text(&listed).contains("198.51.100.10"), "{}", text(&listed));
    ensure!(there()?.contains(" 198.51.100.9/32"), "it is only a list");

    let removed = cleanup(&["--yes"])?;
    ensure!(removed.status.success(), "{}", text(&removed));
    let left = there()?;
    ensure!(!left.contains(" 198.51.100.9/") && left.contains(" 198.51.100.10/"), "{left}");
    ensure!(!left.contains(" 2001:db8::9/"), "{left}");
    for file in ["objects.json", "objects.new", "attached"] {
        ensure!(!gateway.file("state").join(file).exists(), "{file}");
    }
    let nothing = cleanup(&["--yes"])?;
    ensure!(text(&nothing) == "nothing is left\n", "{}", text(&nothing));
    Ok(())
}

/// The lines of `doctor` that begin with these words.
fn doctor(ns: &NetNs, config: &std::path::Path, what: &str) -> Result<String> {
    let mut command = ns.command(binary()?);
    let output = text(&command.arg("doctor").arg("-c").arg(config).output()?);
    let lines: Vec<_> = output.lines().filter(|line| line.split_whitespace().nth(1) == Some(what)).collect();
    ensure!(!lines.is_empty(), "no {what} in\n{output}");
    Ok(lines.join("\n"))
}

#[test]
fn rules_that_take_connections_from_a_listener_are_found() -> Result<()> {
    let (ns, pod, client) = (NetNs::new("gateway")?, NetNs::new("pod")?, NetNs::new("client")?);
    ns.link("pod", &pod, "eth0")?;
    ns.link("eth0", &client, "eth0")?;
    ns.address("pod", "10.42.0.1/24")?;
    pod.address("eth0", "10.42.0.8/24")?;
    ns.address("eth0", "10.10.0.11/24")?;
    client.address("eth0", "10.10.0.2/24")?;
    pod.ip("route add default via 10.42.0.1")?;
    ns.sysctl("net/ipv4/ip_forward", "1")?;
    let _traefik = pod.run(|| TcpListener::bind("0.0.0.0:8443"))?;
    let gateway = Gateway::start(&ns, CONFIG)?;
    let found = || doctor(&ns, &gateway.config_file(), "redirected");
    ensure!(found()?.starts_with("ok "), "{}", found()?);

    let pod = "10.42.0.8:8443";
    let mut rules = vec![(
        "nft",
        4430,
        format!(
            "add table ip nat; add chain ip nat output {{ type nat hook output priority -100; }}; \
             add rule ip nat output tcp dport 4430 dnat to {pod}"
        ),
    )];
    for (program, port) in [("iptables-nft", 4431), ("iptables-legacy", 4432)] {
        // Not every kernel has both.
        let is_there = find_program(program).is_some()
            && ns.command(program).args(["-t", "nat", "-S"]).output()?.status.success();
        if is_there {
            let rule = format!("-t nat -A OUTPUT -p tcp --dport {port} -j DNAT --to-destination {pod}");
            rules.push((program, port, rule));
        }
    }
    for (program, port, rule) in rules {
        checked_output(ns.command(program).args(rule.split_whitespace()))?;
        let line = found()?;
        ensure!(line.starts_with("note "), "{program}: {line}");
        ensure!(line.contains(&format!("10.10.0.11:{port} to {pod}")), "{program}: {line}");
    }

    // A rule for what comes from outside: seen when a client has come.
    let rule = format!(
        "add table ip outside; add chain ip outside prerouting {{ type nat hook prerouting priority -100; }}; \
         add rule ip outside prerouting tcp dport 4433 dnat to {pod}"
    );
    checked_output(ns.command("nft").args(rule.split_whitespace()))?;
    ensure!(!found()?.contains(":4433 to"), "{}", found()?);
    let _connection = client.run(|| TcpStream::connect("10.10.0.11:4433"))?;
    ensure!(found()?.contains(&format!("10.10.0.11:4433 to {pod}")), "{}", found()?);
    Ok(())
}

#[test]
fn an_address_that_two_nodes_answer_for_is_found() -> Result<()> {
    let switch = NetNs::new("switch")?;
    switch.ip("link add bridge type bridge")?;
    switch.ip("link set bridge up")?;
    let node = |name: &str, last: u8| -> Result<NetNs> {
        let ns = NetNs::new(name)?;
        switch.link(name, &ns, "eth0")?;
        switch.ip(&format!("link set {name} master bridge"))?;
        ns.address("eth0", &format!("10.10.0.{last}/24"))?;
        Ok(ns)
    };
    let (one, two, three) = (node("one", 11)?, node("two", 12)?, node("three", 13)?);
    one.ip("addr add 10.10.0.100/32 dev lo")?;
    let files = TempDir::new()?;
    let config = files.join("snisplice.toml");
    std::fs::write(
        &config,
        CONFIG.replace("\"0.0.0.0:4430\"", "\"10.10.0.100:4430\"")
            + "\n[gateway_api]\nfrom = \"cluster\"\nkubeconfig = \"none\"\nmode = \"service\"\n",
    )?;
    let line = doctor(&one, &config, "attach")?;
    ensure!(line.starts_with("note ") && line.contains("answers ARP"), "{line}");
    two.ip("addr add 10.10.0.100/32 dev eth0")?;
    // Beside this machine, which answers too.
    let line = doctor(&one, &config, "answered")?;
    ensure!(line.starts_with("note "), "{line}");

    one.sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
    one.sysctl("net/ipv4/conf/all/arp_announce", "2")?;
    ensure!(doctor(&one, &config, "attach")?.starts_with("ok "), "{}", doctor(&one, &config, "attach")?);
    let line = doctor(&one, &config, "answered")?;
    ensure!(line.starts_with("ok ") && line.contains("alone"), "{line}");
    three.ip("addr add 10.10.0.100/32 dev eth0")?;
    let line = doctor(&one, &config, "answered")?;
    ensure!(line.starts_with("note "), "{line}");
    Ok(())
}
