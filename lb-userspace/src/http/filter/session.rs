//! The mark that keeps a client at a server, in a cookie or a header.

use std::fmt::Display;

use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest as _, Sha256};

use crate::config::{Carrier, Persistence};

/// A server of a pool, by a number that all gateways of the same configuration know it by. It does not tell the address, but for
/// someone who tries all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark(pub u64);

impl Mark {
    /// Of this server.
    pub fn of(pool: &str, server: &impl Display) -> Self {
        let digest = Sha256::digest(format!("{pool} {server}"));
        let first = digest.first_chunk().copied().unwrap_or_default();
        Mark(u64::from_be_bytes(first))
    }

    /// The one that a request carries, unless it is older than the absolute timeout. `now` is in seconds since the Unix epoch.
    pub fn in_request(by: &Persistence, headers: &HeaderMap, now: u64) -> Option<Self> {
        let text = match by.carrier {
            Carrier::Header => headers.get(HeaderName::try_from(&*by.name).ok()?)?.to_str().ok()?,
            Carrier::SessionCookie | Carrier::PermanentCookie => cookie(headers, &by.name)?,
        };
        let (mark, since) = text.split_once('.')?;
        let [mark, since] = [mark, since].map(number);
        let age = now.checked_sub(since?);
        let in_time = by.absolute_timeout.is_none_or(|most| age.is_some_and(|age| age < most.as_secs()));
        mark.filter(|_| in_time).map(Mark)
    }

    /// Puts it into an answer, for requests to come. `tls`: the client has come by TLS.
    pub fn put(self, by: &Persistence, headers: &mut HeaderMap, now: u64, tls: bool) {
        let value = format!("{:016x}.{now:x}", self.0);
        let (name, value) = match by.carrier {
            Carrier::Header => (HeaderName::try_from(&*by.name).ok(), value),
            Carrier::SessionCookie | Carrier::PermanentCookie => {
                let age = by.absolute_timeout.filter(|_| by.carrier == Carrier::PermanentCookie);
                let age = age.map(|age| format!("; Max-Age={}", age.as_secs())).unwrap_or_default();
                let secure = if tls { "; Secure" } else { "" };
                (Some(SET_COOKIE), format!("{}={value}; Path=/; HttpOnly{secure}{age}", by.name))
            }
        };
        // Names are checked where they are configured.
        let (Some(name), Ok(value)) = (name, HeaderValue::try_from(value)) else { return };
        match by.carrier {
            Carrier::Header => drop(headers.insert(name, value)),
            Carrier::SessionCookie | Carrier::PermanentCookie => drop(headers.append(name, value)),
        }
    }
}

/// A number of at most 16 hexadecimal digits.
fn number(text: &str) -> Option<u64> {
    let digits = (1..=16).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    u64::from_str_radix(text, 16).ok().filter(|_| digits)
}

/// The value of the first cookie of this name (RFC 6265, section 5.4).
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim_ascii().split_once('='));
    pairs.into_iter().find(|(given, _)| *given == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn by(carrier: Carrier, absolute_timeout: Option<u64>) -> Persistence {
        Persistence {
            name: "sticky".into(),
            carrier,
            absolute_timeout: absolute_timeout.map(Duration::from_secs),
        }
    }

    fn mark() -> Mark {
        Mark::of("web", &"192.0.2.1:80")
    }

    /// What the client sends after such an answer.
    fn repeated(by: &Persistence, at: u64) -> HeaderMap {
        let mut answer = HeaderMap::new();
        mark().put(by, &mut answer, at, true);
        let mut request = HeaderMap::new();
        match by.carrier {
            Carrier::Header => drop(request.insert("sticky", answer["sticky"].clone())),
            _ => {
                let set = answer["set-cookie"].to_str().unwrap().split(';').next().unwrap();
                let line = format!("a=b; {set}; xsticky=1");
                request.append("cookie", line.try_into().unwrap());
            }
        }
        request
    }

    #[test]
    fn a_mark_comes_back() {
        for carrier in [Carrier::SessionCookie, Carrier::PermanentCookie, Carrier::Header] {
            let by = by(carrier, Some(100));
            let request = repeated(&by, 1_000);
            assert_eq!(Mark::in_request(&by, &request, 1_000), Some(mark()));
            assert_eq!(Mark::in_request(&by, &request, 1_099), Some(mark()));
            assert_eq!(Mark::in_request(&by, &request, 1_100), None, "over");
            assert_eq!(Mark::in_request(&by, &request, 999), None, "of the future");
        }
        let unbounded = by(Carrier::SessionCookie, None);
        assert_eq!(Mark::in_request(&unbounded, &repeated(&unbounded, 1), u64::MAX), Some(mark()));
    }

    #[test]
    fn servers_and_pools_differ() {
        let other = "192.0.2.1:81";
        assert_ne!(Mark::of("web", &other), mark());
        assert_ne!(Mark::of("web2", &"192.0.2.1:80"), mark());
    }

    #[test]
    fn cookies_say_how_long_they_last_and_who_may_see_them() {
        for (carrier, tls, end) in [
            (Carrier::SessionCookie, true, "; Path=/; HttpOnly; Secure"),
            (Carrier::SessionCookie, false, "; Path=/; HttpOnly"),
            (Carrier::PermanentCookie, true, "; Path=/; HttpOnly; Secure; Max-Age=100"),
        ] {
            let mut headers = HeaderMap::new();
            headers.append("set-cookie", HeaderValue::from_static("of=the-server"));
            mark().put(&by(carrier, Some(100)), &mut headers, 16, tls);
            let lines: Vec<_> =
                headers.get_all("set-cookie").iter().map(|line| line.to_str().unwrap()).collect();
            assert_eq!(lines[0], "of=the-server");
            assert!(
                lines[1].starts_with("sticky=") && lines[1].ends_with(&format!(".10{end}")),
                "{}",
                lines[1]
            );
        }
    }

    #[test]
    fn what_a_client_makes_up_is_no_mark() {
        let by = by(Carrier::Header, None);
        for text in ["", ".", "1", "1.", ".1", "x.1", "1.x", "+1.1", "11111111111111111.1", "1.1.1", "-1.1"] {
            let mut headers = HeaderMap::new();
            headers.insert("sticky", text.try_into().unwrap());
            assert_eq!(Mark::in_request(&by, &headers, 10), None, "{text}");
        }
    }
}
