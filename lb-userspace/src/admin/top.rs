//! `snisplice top`: the live connections, in the terminal.
//!
//! `Screen` has the state and draws it, without I/O and without a clock. [`run`] feeds it.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Row, Table};

use super::text::{bytes, duration, known};
use super::view::{Connection, ConnectionFilter, Status};
use super::{Client, ClientError};
use crate::state::ServerState;
use crate::words::{counted, printable};

/// The time from one request to the next, if the answer is quick.
const INTERVAL: Duration = Duration::from_secs(1);
/// After a slow answer, the pause before the next request, as a multiple of the time that it took: a gateway with very many
/// connections takes long to list them.
const PAUSE_PER_ANSWER: u32 = 10;
/// How long a key press or an answer may wait to be shown.
const TICK: Duration = Duration::from_millis(100);

/// Shows the gateway of `state_dir` until the user quits.
pub fn run(state_dir: PathBuf, filter: ConnectionFilter) -> io::Result<()> {
    let (answers, news) = mpsc::channel();
    // Requests are sent by a thread of their own, so that keys work while the gateway does not answer. It ends when nobody
    // takes its answer any more, or with the process.
    thread::spawn(move || {
        loop {
            let begin = Instant::now();
            let answer = ask(&state_dir, &filter);
            let pause = match answer {
                Ok(_) => INTERVAL.max(begin.elapsed() * PAUSE_PER_ANSWER),
                Err(_) => INTERVAL,
            };
            if answers.send((Instant::now(), answer)).is_err() {
                return;
            }
            thread::sleep(pause);
        }
    });
    let mut terminal = ratatui::try_init()?;
    let mut screen = Screen::default();
    let result = loop {
        let shown = terminal.draw(|frame| screen.draw(frame)).and_then(|_| match event::poll(TICK)? {
            true => event::read().map(Some),
            false => Ok(None),
        });
        match shown {
            Ok(Some(Event::Key(key))) if !screen.press(key) => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
        match news.try_recv() {
            Ok((when, Ok((status, connections)))) => screen.update(when, status, connections),
            Ok((_, Err(error))) => screen.trouble = Some(error.to_string()),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                break Err(io::Error::other("nobody asks the gateway any more"));
            }
        }
    };
    ratatui::try_restore()?;
    result
}

/// A new connection for each request: the gateway may have been restarted.
fn ask(state_dir: &Path, filter: &ConnectionFilter) -> Result<(Status, Vec<Connection>), ClientError> {
    let mut client = Client::connect(state_dir)?;
    Ok((client.status()?, client.connections(filter)?))
}

/// By what the connections are sorted, the largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sort {
    #[default]
    Rate,
    Bytes,
    Age,
    Idle,
}

#[derive(Debug, Default)]
struct Screen {
    status: Status,
    connections: Vec<Entry>,
    /// The time of that answer.
    listed: Option<Instant>,
    sort: Sort,
    /// How many connections are above the first one shown. Less than their number, or 0.
    skipped: usize,
    /// The height of the table when it was last drawn.
    rows: usize,
    /// Why the last request failed.
    trouble: Option<String>,
}

#[derive(Debug)]
struct Entry {
    connection: Connection,
    /// Bytes per second in both directions between the last two answers; `None`: the connection is in only one of them.
    rate: Option<f64>,
}

impl Entry {
    fn bytes(&self) -> u64 {
        self.connection.bytes_in.saturating_add(self.connection.bytes_out)
    }
}

impl Screen {
    /// Takes over an answer that came at `now`.
    fn update(&mut self, now: Instant, status: Status, connections: Vec<Connection>) {
        let seconds = self.listed.map_or(0.0, |then| now.duration_since(then).as_secs_f64());
        let before: HashMap<u64, u64> =
            self.connections.iter().map(|entry| (entry.connection.id, entry.bytes())).collect();
        self.connections.clear();
        self.connections.extend(connections.into_iter().map(|connection| {
            let mut entry = Entry { connection, rate: None };
            if let Some(before) = before.get(&entry.connection.id).filter(|_| seconds > 0.0) {
                // Counters never decrease, but a restarted gateway may use an id again.
                entry.rate = Some(entry.bytes().saturating_sub(*before) as f64 / seconds);
            }
            entry
        }));
        (self.status, self.listed, self.trouble) = (status, Some(now), None);
        self.order();
    }

    fn order(&mut self) {
        let sort = self.sort;
        let key = |entry: &Entry| match sort {
            Sort::Rate => entry.rate.unwrap_or(0.0),
            Sort::Bytes => entry.bytes() as f64,
            Sort::Age => entry.connection.age_seconds,
            Sort::Idle => entry.connection.idle_seconds,
        };
        // Equal ones are sorted by id, so that rows keep their place.
        self.connections
            .sort_by(|a, b| key(b).total_cmp(&key(a)).then(a.connection.id.cmp(&b.connection.id)));
        self.scroll(0);
    }

    fn scroll(&mut self, rows: isize) {
        let last = self.connections.len().saturating_sub(1);
        self.skipped = self.skipped.saturating_add_signed(rows).min(last);
    }

    /// Handles a key; `false`: the user quits.
    fn press(&mut self, key: KeyEvent) -> bool {
        if key.kind == KeyEventKind::Release {
            return true;
        }
        let page = self.rows.max(1) as isize;
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            // In raw mode the terminal sends no signal for Ctrl-C.
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Char('r') => self.sort_by(Sort::Rate),
            KeyCode::Char('b') => self.sort_by(Sort::Bytes),
            KeyCode::Char('a') => self.sort_by(Sort::Age),
            KeyCode::Char('i') => self.sort_by(Sort::Idle),
            KeyCode::Down | KeyCode::Char('j') => self.scroll(1),
            KeyCode::Up | KeyCode::Char('k') => self.scroll(-1),
            KeyCode::PageDown => self.scroll(page),
            KeyCode::PageUp => self.scroll(-page),
            KeyCode::Home => self.scroll(isize::MIN),
            KeyCode::End => self.scroll(isize::MAX),
            _ => {}
        }
        true
    }

    fn sort_by(&mut self, sort: Sort) {
        self.sort = sort;
        self.skipped = 0;
        self.order();
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let areas = Layout::vertical([Constraint::Length(3), Constraint::Min(1), Constraint::Length(1)]);
        let [head, body, foot] = areas.areas(frame.area());
        frame.render_widget(self.head(), head);
        // One line of the body is the table's head.
        self.rows = usize::from(body.height).saturating_sub(1);
        frame.render_widget(self.table(body), body);
        frame.render_widget(self.foot(), foot);
    }

    fn head(&self) -> Text<'static> {
        if self.listed.is_none() {
            return Text::from("asking the gateway");
        }
        let Status { version, uptime_seconds, workers, config_generation, .. } = &self.status;
        let tiers = self.status.tiers.named();
        let tiers = tiers.map(|(name, count)| format!("{name} {} ({} so far)", count.active, count.total));
        let servers = || self.status.pools.iter().flat_map(|pool| &pool.servers);
        let not_up = servers().filter(|server| server.state != ServerState::Up).count();
        Text::from(vec![
            Line::from(format!(
                "snisplice {}, up {}, {}, configuration {config_generation}, {}",
                printable(version, 40),
                duration(*uptime_seconds),
                counted(*workers, "worker"),
                counted(self.connections.len(), "connection")
            )),
            Line::from(format!(
                "{}   {not_up} of {} not up",
                tiers.join("   "),
                counted(servers().count(), "server")
            )),
        ])
    }

    fn foot(&self) -> Line<'static> {
        match &self.trouble {
            Some(trouble) => {
                Line::styled(printable(trouble, 200), Style::new().add_modifier(Modifier::REVERSED))
            }
            None => {
                Line::from("q quit   sort by: r rate  b bytes  a age  i idle   up, down, page, home, end")
            }
        }
    }

    /// In a narrow terminal the columns of names shrink first.
    fn table(&self, area: Rect) -> Table<'static> {
        const LEFT: bool = false;
        const RIGHT: bool = true;
        const COLUMNS: usize = 11;
        let columns: [_; COLUMNS] = [
            ("ID", RIGHT, Constraint::Length(10), None),
            ("CLIENT", LEFT, Constraint::Fill(3), None),
            ("SNI", LEFT, Constraint::Fill(3), None),
            ("ROUTE", LEFT, Constraint::Fill(2), None),
            ("SERVER", LEFT, Constraint::Fill(3), None),
            ("TIER", LEFT, Constraint::Length(7), None),
            ("RATE", RIGHT, Constraint::Length(12), Some(Sort::Rate)),
            ("IN", RIGHT, Constraint::Length(10), Some(Sort::Bytes)),
            ("OUT", RIGHT, Constraint::Length(10), Some(Sort::Bytes)),
            ("AGE", RIGHT, Constraint::Length(8), Some(Sort::Age)),
            ("IDLE", RIGHT, Constraint::Length(8), Some(Sort::Idle)),
        ];
        let align = |text: String, right: bool| match right {
            true => Text::from(text).right_aligned(),
            false => Text::from(text),
        };
        let widths: [Rect; COLUMNS] =
            Layout::horizontal(columns.map(|(_, _, width, _)| width)).spacing(1).areas(area);
        let widths = widths.map(|column| column.width);
        let head = columns.map(|(name, right, _, sort)| {
            let is_sorted = sort == Some(self.sort);
            let style = if is_sorted { Modifier::BOLD | Modifier::UNDERLINED } else { Modifier::BOLD };
            align(name.to_owned(), right).style(Style::new().add_modifier(style))
        });
        let shown = self.connections.iter().skip(self.skipped).take(self.rows);
        let rows = shown.map(|entry| {
            let Entry { connection: c, rate } = entry;
            let cells = [
                c.id.to_string(),
                c.client.to_string(),
                known(&c.sni).to_owned(),
                known(&c.route).to_owned(),
                known(&c.server).to_owned(),
                known(&c.tier).to_owned(),
                rate.map_or_else(|| "-".to_owned(), |rate| format!("{}/s", bytes(rate as u64))),
                bytes(c.bytes_in),
                bytes(c.bytes_out),
                duration(c.age_seconds),
                duration(c.idle_seconds),
            ];
            let columns = cells.iter().zip(widths).zip(&columns);
            Row::new(
                columns.map(|((cell, width), (_, right, ..))| align(printable(cell, width.into()), *right)),
            )
        });
        Table::new(rows, widths).column_spacing(1).header(Row::new(head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    /// What a terminal of that size shows, a line each, without the spaces at their ends.
    fn shown(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    fn press(screen: &mut Screen, key: KeyCode) -> bool {
        screen.press(KeyEvent::new(key, KeyModifiers::NONE))
    }

    /// Connections 0 to `count - 1`; the larger the id, the more bytes, the younger, and the idler.
    fn many(count: u64) -> Vec<Connection> {
        let connection = |id| Connection {
            id,
            bytes_in: id * 1000,
            bytes_out: 0,
            age_seconds: (count - id) as f64,
            idle_seconds: id as f64,
            ..fake::connections().remove(0)
        };
        (0..count).map(connection).collect()
    }

    fn ids(screen: &mut Screen, height: u16) -> Vec<u64> {
        let lines = shown(screen, 150, height);
        // Three lines above the table's head, one below its rows.
        let rows = &lines[4..lines.len() - 1];
        rows.iter().filter_map(|row| row.split_whitespace().next()?.parse().ok()).collect()
    }

    #[test]
    fn the_screen_is_this_text() {
        let mut screen = Screen::default();
        let start = Instant::now();
        screen.update(start, fake::status(), fake::connections());
        let mut later = fake::connections();
        later[1].bytes_out += 3072;
        screen.update(start + Duration::from_secs(2), fake::status(), later);
        let lines = shown(&mut screen, 150, 9);
        assert_eq!(lines, SCREEN, "{lines:#?}");
    }

    #[rustfmt::skip]
    const SCREEN: [&str; 9] = [
        "snisplice 0.1.0, up 2h 3m, 2 workers, configuration 3, 3 connections",
        "packet 0 (0 so far)   sockmap 0 (0 so far)   ktls 0 (0 so far)   copy 3 (1234 so far)   2 of 3 servers not up",
        "",
        "        ID CLIENT               SNI                   ROUTE          SERVER               TIER            RATE         IN        OUT      AGE     IDLE",
        "4294967298 [2001:db8::1]:40000  a.pg.example.com      pg             pg.internal:5432     copy       1.5 KiB/s      999 B    3.0 KiB    1m 1s    1m 1s",
        "         1 192.0.2.7:50123      app1.redis.example.c… redis-1        10.0.0.11:6379       copy           0 B/s    1.5 KiB    5.0 GiB    1d 2h    250ms",
        "         3 192.0.2.8:1024       -                     -              -                    -              0 B/s        0 B        0 B      0ms      0ms",
        "",
        "q quit   sort by: r rate  b bytes  a age  i idle   up, down, page, home, end",
    ];

    #[test]
    fn without_an_answer_it_says_so() {
        let lines = shown(&mut Screen::default(), 80, 8);
        assert_eq!(lines[0], "asking the gateway");
    }

    #[test]
    fn keys_order_the_connections() {
        let mut screen = Screen::default();
        let start = Instant::now();
        screen.update(start, fake::status(), many(4));
        let mut later = many(4);
        later[2].bytes_out = 5000;
        screen.update(start + Duration::from_secs(1), fake::status(), later);
        assert_eq!(ids(&mut screen, 20), [2, 0, 1, 3], "by rate, then by id");
        for (key, order) in
            [('b', [2, 3, 1, 0]), ('a', [0, 1, 2, 3]), ('i', [3, 2, 1, 0]), ('r', [2, 0, 1, 3])]
        {
            assert!(press(&mut screen, KeyCode::Char(key)));
            assert_eq!(ids(&mut screen, 20), order, "{key}");
        }
    }

    #[test]
    fn keys_scroll_and_stop_at_both_ends() {
        let mut screen = Screen::default();
        screen.update(Instant::now(), fake::status(), many(100));
        let mut top = |key| {
            press(&mut screen, key);
            // Ten rows.
            ids(&mut screen, 15)[0]
        };
        press_all(
            &mut top,
            &[(KeyCode::Up, 0), (KeyCode::Down, 1), (KeyCode::PageDown, 11), (KeyCode::Up, 10)],
        );
        press_all(
            &mut top,
            &[(KeyCode::End, 99), (KeyCode::PageDown, 99), (KeyCode::PageUp, 89), (KeyCode::Home, 0)],
        );
        // Connections that are gone take the place along.
        press(&mut screen, KeyCode::End);
        screen.update(Instant::now(), fake::status(), many(3));
        assert_eq!(ids(&mut screen, 15), [2]);
        screen.update(Instant::now(), fake::status(), vec![]);
        assert_eq!(ids(&mut screen, 15), [0; 0]);
    }

    fn press_all(top: &mut impl FnMut(KeyCode) -> u64, steps: &[(KeyCode, u64)]) {
        for (key, first) in steps {
            assert_eq!(top(*key), *first, "{key}");
        }
    }

    #[test]
    fn a_quitting_key_ends_it_and_no_other() {
        let mut screen = Screen::default();
        assert!(!press(&mut screen, KeyCode::Char('q')));
        assert!(!press(&mut screen, KeyCode::Esc));
        assert!(!screen.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(press(&mut screen, KeyCode::Char('c')));
        assert!(press(&mut screen, KeyCode::Enter));
    }

    #[test]
    fn trouble_is_shown_beside_the_last_answer_and_goes_with_the_next() {
        let mut screen = Screen::default();
        screen.update(Instant::now(), fake::status(), many(1));
        screen.trouble = Some("no gateway is running here\x1b[2J".into());
        let lines = shown(&mut screen, 150, 9);
        assert_eq!(lines[8], r"no gateway is running here\u{1b}[2J");
        assert_eq!(ids(&mut screen, 9), [0]);
        screen.update(Instant::now(), fake::status(), many(1));
        assert!(shown(&mut screen, 150, 9)[8].starts_with("q quit"));
    }

    #[test]
    fn a_hostile_name_stays_in_its_column() {
        let mut connections = fake::connections();
        for name in ["\x1b[2J\x1b[31mroot#", "\u{202e}moc.elgoog", &"x".repeat(10_000)] {
            connections[0].sni = Some(name.into());
            let mut screen = Screen::default();
            screen.update(Instant::now(), fake::status(), connections.clone());
            let lines = shown(&mut screen, 150, 9);
            assert!(lines[4].chars().all(|c| matches!(c, ' '..='~' | '…')), "{}", lines[4]);
            assert!(lines[4].contains(" redis-1 ") && lines[4].ends_with("250ms"), "{}", lines[4]);
        }
    }

    #[test]
    fn no_size_of_the_terminal_makes_it_panic() {
        let mut screen = Screen::default();
        screen.update(Instant::now(), fake::status(), many(5));
        for (width, height) in [(1, 1), (1, 50), (200, 1), (20, 4), (80, 24)] {
            assert_eq!(shown(&mut screen, width, height).len(), usize::from(height));
        }
    }
}
