//! MySQL's sessions in the packet tier: the gateway has greeted the client and the server has greeted the gateway, so that the
//! two legs begin with different numbers of bytes in both directions.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use snisplice_tests::mysql::{Family, is_installed, mysql_cli};
use snisplice_tests::{Authority, Gateway, Mysql, Triangle, require};

use crate::PACKET;

const NAME: &str = "db1.example.com";

/// 8 MB, the same from every server of a version.
const BIG: &str = "with recursive n as (select 1 x union all select x + 1 from n where x < 900) \
                   select repeat(sha2(x, 256), 150) from n;\n";

struct Scene {
    net: Triangle,
    authority: Authority,
    _server: Mysql,
    gateway: Gateway,
}

impl Scene {
    fn new(family: Family) -> Result<Self> {
        let (net, authority) = (Triangle::new()?, Authority::new("snisplice test authority")?);
        let leaf = authority.leaf(&[NAME])?;
        let server = Mysql::start(&net.server, family, 3301, &leaf, &[])?;
        let config = format!(
            "[[listener]]\nname = 'databases'\nbind = ['0.0.0.0:3306']\nprotocol = 'mysql'\n\
             [[route]]\nname = 'db1'\nlistener = 'databases'\nsni = ['{NAME}']\nbackends = ['db1']\n\
             [[pool]]\nname = 'db1'\nservers = ['10.0.2.2:3301']\n"
        );
        let gateway = Gateway::start(&net.gateway, &config)?;
        Ok(Self { net, authority, _server: server, gateway })
    }

    /// The client, which reads statements, through the gateway or without it.
    fn client(&self, direct: bool) -> Result<Command> {
        let mut mysql = mysql_cli(&self.net.client)?;
        mysql.args(["-u", "app", "-psecret", "-N", "-B", "-n", "-D", "shop"]);
        match direct {
            true => mysql.args(["-h", "10.0.2.2", "-P", "3301"]),
            false => {
                mysql.args(["-h", "10.0.1.1", "-P", "3306", "--ssl-mode=VERIFY_CA"]);
                mysql.arg(format!("--ssl-ca={}", self.authority.path.display()));
                mysql.arg(format!("--tls-sni-servername={NAME}"))
            }
        };
        Ok(mysql)
    }
}

fn goes_on_without_the_gateway(family: Family) -> Result<()> {
    let mut scene = Scene::new(family)?;
    let expected = scene.client(true)?.args(["-e", BIG]).output()?;
    ensure!(expected.status.success() && expected.stdout.len() > 8_000_000, "{expected:?}");
    let once = scene.client(false)?.args(["-e", BIG]).output()?;
    ensure!(once.stdout == expected.stdout, "{}", String::from_utf8_lossy(&once.stderr));
    let log = scene.gateway.wait_access_log(1)?;
    let tier = if PACKET { "packet" } else { "copy" };
    ensure!(log[0]["tier"] == tier && log[0]["bytes_out"].as_u64() > Some(8_000_000), "{log:?}");

    let mut client = scene.client(false)?;
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = client.spawn()?;
    let mut asks = client.stdin.take().context("stdin")?;
    let mut hears = BufReader::new(client.stdout.take().context("stdout")?);
    asks.write_all(b"select 'before';\n")?;
    let mut line = String::new();
    hears.read_line(&mut line)?;
    ensure!(line == "before\n", "{line}");
    let live = scene.gateway.connections()?;
    ensure!(live.len() == 1 && live[0]["tier"] == tier, "{live:?}");
    if PACKET {
        // A handover that is under way need not survive: it is given its time.
        std::thread::sleep(Duration::from_millis(500));
        scene.gateway.kill()?;
    }
    asks.write_all(BIG.as_bytes())?;
    drop(asks);
    let mut heard = Vec::new();
    hears.read_to_end(&mut heard)?;
    let output = client.wait_with_output()?;
    ensure!(heard == expected.stdout, "{} bytes: {}", heard.len(), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

#[test]
fn a_session_with_mariadb_goes_on_byte_by_byte_without_the_gateway() -> Result<()> {
    require!(is_installed(Family::Mariadb), "mariadb-server is not installed");
    require!(is_installed(Family::Mysql), "MySQL is not unpacked: run `cargo xtask setup`");
    goes_on_without_the_gateway(Family::Mariadb)
}

#[test]
fn a_session_with_mysql_goes_on_byte_by_byte_without_the_gateway() -> Result<()> {
    require!(is_installed(Family::Mysql), "MySQL is not unpacked: run `cargo xtask setup`");
    goes_on_without_the_gateway(Family::Mysql)
}
