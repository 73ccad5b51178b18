//! Tables for a terminal: `snisplice status` and `snisplice connections`.
//!
//! Every cell goes through `printable`, so no name can move the cursor, change colours or push other columns out of
//! sight, whoever has chosen it.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::view::{Connection, MysqlGreeting, Status};
use crate::state::PacketTierState;
use crate::words::{counted, printable};

/// Characters of one cell, enough for a host name of ordinary length.
const MAX_CELL: usize = 64;

/// `snisplice status`.
pub fn status(status: &Status) -> String {
    let mut out = format!(
        "snisplice {}, up {}, {}, configuration {}\n",
        printable(&status.version, MAX_CELL),
        duration(status.uptime_seconds),
        counted(status.workers, "worker"),
        status.config_generation,
    );

    let mut table = Table::new(["TIER", ">ACTIVE", ">TOTAL"]);
    for (name, count) in status.tiers.named() {
        table.row([name, &count.active.to_string(), &count.total.to_string()]);
    }
    out += &table.section();

    out += match status.packet.as_ref().map(|packet| packet.state) {
        Some(PacketTierState::Loading) => "\nThe packet tier is loading its kernel programs.\n",
        Some(PacketTierState::Unavailable) => "\nThe packet tier has no kernel programs: the log says why.\n",
        Some(PacketTierState::Ready) | None => "",
    };

    for draining in &status.draining {
        let connections = counted(draining.connections, "connection");
        out +=
            &format!("\nProcess {}, which was taken over, still carries {connections}.\n", draining.process);
    }

    let mut table = Table::new(["TIER FALLBACK", ">CONNECTIONS"]);
    for (reason, n) in &status.tier_fallbacks {
        table.row([reason, &n.to_string()]);
    }
    out += &table.section();

    let mut table = Table::new(["PACKETS DROPPED BECAUSE", ">PACKETS"]);
    for (reason, n) in status.packet.iter().flat_map(|packets| &packets.drops) {
        table.row([reason, &n.to_string()]);
    }
    out += &table.section();

    let mut table = Table::new(["LISTENER", "BIND", ">ACTIVE", ">TOTAL"]);
    for l in &status.listeners {
        table.row([&l.name, &l.bind.join(" "), &l.active.to_string(), &l.total.to_string()]);
    }
    out += &table.section();

    let mut table = Table::new(["LISTENER", "REJECTED BECAUSE", ">CLIENTS"]);
    for l in &status.listeners {
        for (reason, n) in &l.rejects {
            table.row([&l.name, reason, &n.to_string()]);
        }
    }
    out += &table.section();

    let mut table = Table::new(["LISTENER", "SERVER NAME IS NO HOST NAME", ">CLIENTS"]);
    for l in &status.listeners {
        for (kind, n) in &l.odd_names {
            table.row([&l.name, kind, &n.to_string()]);
        }
    }
    out += &table.section();

    let mut table = Table::new(["LISTENER", "GREETS AS MYSQL", "SERVERS"]);
    for l in &status.listeners {
        if let Some(MysqlGreeting { version, mixed_families }) = &l.mysql {
            let families =
                if *mixed_families { "MySQL and MariaDB: some clients fail" } else { "of one family" };
            table.row([&l.name, version, families]);
        }
    }
    out += &table.section();

    let mut table = Table::new(["ROUTE", "LISTENER", "SNI", "POOL", ">ACTIVE", ">TOTAL", ">IN", ">OUT"]);
    for r in &status.routes {
        table.row([
            &r.name,
            &r.listener,
            &first(&r.sni),
            &first(&r.pools),
            &r.active.to_string(),
            &r.total.to_string(),
            &bytes(r.bytes_in),
            &bytes(r.bytes_out),
        ]);
    }
    out += &table.section();

    let mut table = Table::new(["POOL", "SERVER", "STATE", "BECAUSE", ">FOR", ">ACTIVE", ">TOTAL"]);
    for pool in &status.pools {
        for s in &pool.servers {
            table.row([
                &pool.name,
                &s.address,
                s.state.name(),
                known(&s.reason),
                &duration(s.state_seconds),
                &s.active.to_string(),
                &s.total.to_string(),
            ]);
        }
    }
    out += &table.section();
    let stale = status.objects_stale_since.as_deref();
    let objects = super::objects::summary(&status.objects, stale).map(|summary| format!("\n{summary}"));
    let denied = status.objects_denied.iter().map(|denied| format!("{}\n", denied.escape_debug()));
    out + &objects.unwrap_or_default() + &denied.collect::<String>()
}

/// `snisplice connections`, in the order given.
pub fn connections(connections: &[Connection]) -> String {
    if connections.is_empty() {
        return "no connections\n".into();
    }
    let mut table = Table::new([
        ">ID", "CLIENT", "LISTENER", "SNI", "ROUTE", "SERVER", "TIER", "BECAUSE", ">IN", ">OUT", ">AGE",
        ">IDLE",
    ]);
    for c in connections {
        table.row([
            &c.id.to_string(),
            &c.client.to_string(),
            &c.listener,
            known(&c.sni),
            known(&c.route),
            known(&c.server),
            known(&c.tier),
            known(&c.tier_reason),
            &bytes(c.bytes_in),
            &bytes(c.bytes_out),
            &duration(c.age_seconds),
            &duration(c.idle_seconds),
        ]);
    }
    table.text()
}

/// `1536` as `1.5 KiB`.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    // From 1023.95 on, one decimal place would round to 1024.0.
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1023.95 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `7384.5` (seconds) as `2h 3m`: the two largest units.
pub(super) fn duration(seconds: f64) -> String {
    let s = seconds as u64;
    match s {
        0 => format!("{}ms", (seconds * 1000.0) as u64),
        1..60 => format!("{s}s"),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        3600..86400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {}h", s / 86400, s % 86400 / 3600),
    }
}

/// The first of several names, and how many more there are.
fn first(names: &[String]) -> String {
    match names {
        [] => "-".into(),
        [name] => name.clone(),
        [name, more @ ..] => format!("{} +{}", printable(name, MAX_CELL - 8), more.len()),
    }
}

pub(super) fn known(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or("-")
}

/// Rows of `N` cells under a head. A head that starts with `>` marks a column of numbers, aligned to the right.
struct Table<const N: usize> {
    head: [&'static str; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    fn new(head: [&'static str; N]) -> Self {
        Self { head, rows: Vec::new() }
    }

    fn row(&mut self, cells: [&str; N]) {
        self.rows.push(cells.map(|cell| printable(cell, MAX_CELL)));
    }

    /// The table behind an empty line; nothing if it has no row.
    fn section(&self) -> String {
        if self.rows.is_empty() { String::new() } else { format!("\n{}", self.text()) }
    }

    fn text(&self) -> String {
        let head = self.head.map(|name| name.trim_start_matches('>').to_owned());
        let lines = || std::iter::once(&head).chain(&self.rows);
        let widths: [usize; N] =
            std::array::from_fn(|i| lines().map(|cells| cells[i].chars().count()).max().unwrap_or(0));
        let mut out = String::new();
        for cells in lines() {
            let mut line = String::new();
            for ((cell, width), head) in cells.iter().zip(widths).zip(self.head) {
                let gap = if line.is_empty() { "" } else { "  " };
                line += &match head.starts_with('>') {
                    true => format!("{gap}{cell:>width$}"),
                    false => format!("{gap}{cell:<width$}"),
                };
            }
            out += line.trim_end();
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake;
    use crate::admin::view;

    #[test]
    fn status_is_this_text() {
        assert_eq!(super::status(&fake::status()), STATUS);
    }

    #[test]
    fn status_says_so_while_the_packet_tier_is_not_ready() {
        for (state, said) in [
            (PacketTierState::Loading, "is loading its kernel programs.\n"),
            (PacketTierState::Unavailable, "has no kernel programs: the log says why.\n"),
        ] {
            let mut status = fake::status();
            status.packet.as_mut().unwrap().state = state;
            let (tiers, rest) = STATUS.split_once("\nTIER FALLBACK").unwrap();
            let expected = format!("{tiers}\nThe packet tier {said}\nTIER FALLBACK{rest}");
            assert_eq!(super::status(&status), expected);
        }
    }

    const STATUS: &str = "\
snisplice 0.1.0, up 2h 3m, 2 workers, configuration 3

TIER     ACTIVE  TOTAL
packet        0      0
sockmap       0      0
ktls          0      0
copy          3   1234

TIER FALLBACK       CONNECTIONS
packet_unavailable         1200
tls_terminated               34

PACKETS DROPPED BECAUSE  PACKETS
reset_outside                  7
syn_late                       1

LISTENER   BIND                  ACTIVE  TOTAL
databases  0.0.0.0:443 [::]:443       3   1241

LISTENER   REJECTED BECAUSE  CLIENTS
databases  not_tls                 2
databases  unknown_sni             5

LISTENER   SERVER NAME IS NO HOST NAME  CLIENTS
databases  ip_address                         3

ROUTE    LISTENER   SNI                     POOL     ACTIVE  TOTAL       IN      OUT
redis-1  databases  app1.redis.example.com  redis-1       2   1200  1.5 KiB  5.0 GiB
pg       databases  *.pg.example.com        pg            1     34    999 B      0 B

POOL     SERVER            STATE     BECAUSE     FOR  ACTIVE  TOTAL
redis-1  10.0.0.11:6379    up        -        1m 33s       2   1200
redis-1  10.0.0.12:6379    down      refused  1m 33s       0      0
pg       pg.internal:5432  draining  -        1m 33s       1     34
";

    #[test]
    fn connections_are_this_text() {
        assert_eq!(super::connections(&fake::connections()), CONNECTIONS);
        assert_eq!(super::connections(&[]), "no connections\n");
    }

    #[rustfmt::skip]
    const CONNECTIONS: &str = concat!(
        "        ID  CLIENT               LISTENER   SNI                     ROUTE    SERVER            TIER  BECAUSE                  IN      OUT    AGE   IDLE\n",
        "         1  192.0.2.7:50123      databases  app1.redis.example.com  redis-1  10.0.0.11:6379    copy  packet_unavailable  1.5 KiB  5.0 GiB  1d 2h  250ms\n",
        "4294967298  [2001:db8::1]:40000  databases  a.pg.example.com        pg       pg.internal:5432  copy  tls_terminated        999 B      0 B  1m 1s  1m 1s\n",
        "         3  192.0.2.8:1024       databases  -                       -        -                 -     -                       0 B      0 B    0ms    0ms\n",
    );

    #[test]
    fn empty_tables_are_left_out() {
        let text = super::status(&view::Status::default());
        assert_eq!(text.matches("\n\n").count(), 1, "only the tiers: {text}");
    }

    #[test]
    fn a_hostile_name_reaches_the_terminal_as_printable_ascii_of_bounded_length() {
        let mut connection = fake::connections().remove(0);
        let plain = super::connections(&[connection.clone()]).lines().map(str::len).max().unwrap();
        for name in [
            "\x1b[2J\x1b[31mroot#",
            "\u{9b}2J",
            "\u{202e}moc.elgoog",
            "a\r\n\t\x08\x7f\0",
            "\u{200b}\u{feff}\u{301}",
            "Ünïcödé 数据库",
            &"x".repeat(10_000),
            &"\u{1b}".repeat(10_000),
        ] {
            connection.sni = Some(name.into());
            let text = super::connections(&[connection.clone()]);
            assert!(text.chars().all(|c| matches!(c, ' '..='~' | '\n' | '…')), "{text}");
            assert_eq!(text.lines().count(), 2);
            assert!(text.lines().all(|line| line.len() <= plain + MAX_CELL + 2));
            assert!(text.lines().nth(1).unwrap().contains("  redis-1  10.0.0.11:6379  "), "{text}");
        }
    }

    #[test]
    fn an_escaped_name_is_not_ambiguous() {
        assert_eq!(printable("a\x1b[2J", 64), r"a\u{1b}[2J");
        assert_eq!(printable(r"a\u{1b}[2J", 64), r"a\\u{1b}[2J");
    }

    #[test]
    fn a_name_is_cut_only_if_it_does_not_fit() {
        assert_eq!(printable("abcd", 4), "abcd");
        assert_eq!(printable("abcde", 4), "abc…");
        assert_eq!(printable("ab\x1b", 4), "ab…");
        assert_eq!(printable("", 0), "");
    }

    #[test]
    fn several_names_share_a_cell() {
        assert_eq!(first(&[]), "-");
        assert_eq!(first(&["a".into(), "b".into(), "c".into()]), "a +2");
        let long = "x".repeat(300);
        assert!(first(&[long.clone(), long]).ends_with("… +1"));
    }

    #[test]
    fn bytes_have_one_decimal_place_from_one_kibibyte_on() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (1 << 40, "1.0 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn durations_have_two_units_and_nonsense_does_not_panic() {
        for (seconds, text) in [
            (0.0, "0ms"),
            (0.25, "250ms"),
            (59.9, "59s"),
            (61.0, "1m 1s"),
            (7384.5, "2h 3m"),
            (93784.0, "1d 2h"),
            (-1.0, "0ms"),
            (f64::NAN, "0ms"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        assert!(duration(f64::INFINITY).ends_with('h'));
    }
}
