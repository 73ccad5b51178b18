//! Values as the inputs write them, and as TOML does.

use super::model::{ANY, At, Extra, host};
use std::net::IpAddr;
use std::time::Duration;

/// `text` as a string of TOML.
pub(super) fn toml_string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Strings as a list of TOML.
pub(super) fn toml_list<T: AsRef<str>>(texts: &[T]) -> String {
    let texts: Vec<_> = texts.iter().map(|text| toml_string(text.as_ref())).collect();
    format!("[{}]", texts.join(", "))
}

/// Parts as a table of TOML.
pub(super) fn toml_table(parts: &[String]) -> String {
    if parts.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", parts.join(", ")) }
}

/// A port's number. With a sign it is none: HAProxy adds `+1000` to the port at which the client has arrived.
pub(super) fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|&port| port > 0 && !text.starts_with('+'))
}

/// `10.0.0.1:6379`, `[::1]:6379`, `name:6379`.
pub(super) fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (name, number) = text.rsplit_once(':')?;
    Some((server_host(name)?, port(number)?))
}

/// An IP address, which may stand in brackets, or the name of a host.
pub(super) fn server_host(text: &str) -> Option<String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    match bare.parse::<IpAddr>() {
        Ok(address) => Some(address.to_string()),
        Err(_) => host(text).filter(|name| !name.starts_with(ANY)),
    }
}

/// A duration as the field writes it: numbers, which may have a fraction, each with its unit. A number alone is in `unit`.
pub(super) fn duration(text: &str, unit: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut whole = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c.is_whitespace()).unwrap_or(rest.len());
        let seconds = match if end == 0 { unit } else { &rest[..end] } {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            "w" => 7.0 * 86_400.0,
            _ => return None,
        };
        // Whole milliseconds: no input is finer, and a fraction's error is not seen.
        let millis = (number * seconds * 1e3).round() / 1e3;
        whole = whole.checked_add(Duration::try_from_secs_f64(millis).ok()?)?;
        rest = rest[end..].trim_start();
    }
    Some(whole)
}

/// A time as a key of TOML; none if the input means "for ever", or what TOML cannot say.
pub(super) fn timeout(key: &'static str, time: Duration, at: At, said: &str) -> Option<Extra> {
    const LONGEST: Duration = Duration::from_hours(24 * 365);
    let known = !time.is_zero() && time <= LONGEST;
    known.then(|| Extra::new(key, toml_string(&humantime::format_duration(time).to_string()), at, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_with_a_sign_is_none() {
        assert_eq!(host_and_port("10.0.0.1:1000"), Some(("10.0.0.1".to_owned(), 1000)));
        for text in
            ["10.0.0.1:+1000", "10.0.0.1:-1000", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:", "10.0.0.1"]
        {
            assert_eq!(host_and_port(text), None, "{text}");
        }
    }

    #[test]
    fn durations_of_all_dialects() {
        for (text, unit, millis) in [
            ("5000", "ms", 5000),
            ("5", "s", 5000),
            ("1m30s", "s", 90_000),
            ("1m 30s", "s", 90_000),
            ("0.25s", "s", 250),
            ("2w", "ms", 1_209_600_000),
        ] {
            assert_eq!(duration(text, unit), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "1y", "-1s", "1..2s", "1e9s", "99999999999999999999999999999w", "1é"] {
            assert_eq!(duration(text, "s"), None, "{text}");
        }
    }
}
