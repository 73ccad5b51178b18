//! What servers see: the client's address, checks that they do not count against the gateway, clients' certificates.

use anyhow::{Context, Result};
use snisplice_tests::mysql::{Family, is_installed};
use snisplice_tests::{Mysql, eventually, require};

use super::{MARIADB, MYSQL, PYMYSQL, Scene, has_pymysql, python, said};
use crate::config::pool;
use crate::tolerance::metrics;
use crate::world::World;

#[test]
fn a_server_that_takes_proxy_headers_knows_its_clients() -> Result<()> {
    require!(is_installed(Family::Mariadb), MARIADB);
    require!(has_pymysql(), PYMYSQL);
    for version in ["v1", "v2"] {
        let networks = "--proxy-protocol-networks=10.0.2.1";
        let scene =
            Scene::new(&[networks], &format!("send_proxy = '{version}'\nhealth = {{ check = 'mysql' }}"))?;
        for name in ["db1", "db3"] {
            let user =
                said(&python(&scene.world, &format!("print(ask(connect('{name}'), 'select user()'))"))?);
            assert_eq!(user, "(('app@client.test',),)", "{name} {version}");
        }
    }
    Ok(())
}

/// How a server counts the gateway's connections: failed in a row, and refused.
fn counted(world: &World, server: &Mysql) -> Result<(u64, u64)> {
    const QUERY: &str = "select sum_connect_errors, count_host_blocked_errors from performance_schema.host_cache \
                         where ip = '10.0.2.1'";
    let counts = server.sql(&world.net.server, QUERY)?;
    let (failed, refused) = counts.trim().split_once('\t').with_context(|| counts.clone())?;
    Ok((failed.parse()?, refused.parse()?))
}

fn checks(world: &World, result: &str) -> Result<u64> {
    let metrics = metrics(&world.net.gateway)?;
    let of_result = |line: &&str| {
        line.starts_with("snisplice_server_checks_total{") && line.contains(&format!("result=\"{result}\""))
    };
    Ok(metrics
        .lines()
        .filter(of_result)
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum())
}

fn checked(family: Family) -> Result<()> {
    let world = World::new()?;
    let leaf = world.authority.leaf(&["db1.example.com"])?;
    let options = ["--max-connect-errors=10", "--performance-schema=ON"];
    let server = Mysql::start(&world.net.server, family, 3301, &leaf, &options)?;
    let with = |health: &str| {
        let health = format!("health = {{ {health}, interval = '300ms' }}");
        let listener = "[gateway]\nadmin = '127.0.0.1:9900'\n[[listener]]\nname = 'x'\nbind = ['0.0.0.0:443']\nprotocol = 'tcp'\n";
        let route = "[[route]]\nlistener = 'x'\nbackends = ['db']\n";
        format!("{listener}{route}{}", pool("db", &[3301], &health))
    };
    let forget = match family {
        Family::Mysql => "truncate performance_schema.host_cache",
        Family::Mariadb => "flush hosts",
    };
    let ca = world.authority.path.display();
    for check in [
        "check = 'mysql'".to_owned(),
        format!("check = 'mysql', tls = {{ ca = '{ca}', server_name = 'db1.example.com' }}"),
    ] {
        // The gateway before was killed in the midst of a check, maybe.
        server.sql(&world.net.server, forget)?;
        let gateway = world.gateway(&with(&check))?;
        eventually("twenty checks", || checks(&world, "ok").ok().filter(|passed| *passed >= 20))?;
        let (failed, refused) = counted(&world, &server)?;
        // On a busy machine a check may come to its end by time, which counts.
        assert!(failed <= checks(&world, "timeout")? && refused == 0, "{check}: {failed} {refused}");
        drop(gateway);
    }
    // With the right password, and with none that is right.
    std::fs::write(world.authority.path.with_file_name("right"), "small\n")?;
    std::fs::write(world.authority.path.with_file_name("wrong"), "large\n")?;
    let login = |file: &str| {
        let file = world.authority.path.with_file_name(file);
        format!(
            "check = 'mysql', user = 'tiny', password_file = '{}', tls = {{ ca = '{ca}', server_name = 'db1.example.com' }}",
            file.display()
        )
    };
    let gateway = world.gateway(&with(&login("right")))?;
    eventually("it to log in", || checks(&world, "ok").ok().filter(|passed| *passed >= 3))?;
    drop(gateway);
    let gateway = world.gateway(&with(&login("wrong")))?;
    eventually("it to be refused", || checks(&world, "login_failed").ok().filter(|refused| *refused >= 5))?;
    assert_eq!(counted(&world, &server)?.1, 0, "it is not blocked");
    drop(gateway);
    // What the check avoids. (One of `tcp` may be reset before the server has looked at it.)
    let gateway = world.gateway(&with("check = 'tls'"))?;
    eventually("the server to refuse the gateway", || {
        counted(&world, &server).ok().filter(|(_, refused)| *refused > 0)
    })?;
    drop(gateway);
    let gateway = world.gateway(&with("check = 'mysql'"))?;
    eventually("the check to tell it", || checks(&world, "server_error").ok().filter(|failed| *failed > 0))?;
    assert!(gateway.process.output().contains("1129 Host"), "{}", gateway.process.output());
    Ok(())
}

#[test]
fn checks_of_mariadb_do_not_count_as_failed_connections() -> Result<()> {
    require!(is_installed(Family::Mariadb), MARIADB);
    checked(Family::Mariadb)
}

#[test]
fn checks_of_mysql_do_not_count_as_failed_connections() -> Result<()> {
    require!(is_installed(Family::Mysql), MYSQL);
    checked(Family::Mysql)
}
