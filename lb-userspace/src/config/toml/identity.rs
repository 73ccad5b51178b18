//! Names of certificates, as `client_auth` and `tls` of pools list them.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::IpAddr;

use crate::config::address::dns_name;
use crate::config::diagnostic::{Problem, quote};
use crate::config::san::San;

/// A whole subject, as the access log and OpenSSL write it.
pub(super) fn subject(text: &str) -> Result<Box<str>, Problem> {
    let problem = |why| {
        Problem::new(format!("{} is not a subject: {why}", quote(text))).help(
            "as `openssl x509 -in FILE -noout -subject -nameopt RFC2253` prints it, for example \
             `\"CN=app1,O=Example,C=DE\"`",
        )
    };
    // Of a comma that belongs to a value a backslash tells.
    let has_spaces = text.contains(" = ") || text.replace("\\,", "").contains(", ");
    if text.starts_with('/') || text.starts_with("subject") || has_spaces {
        return Err(problem("it is written in another way"));
    }
    match text.split_once('=') {
        Some((kind, _))
            if !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.') =>
        {
            Ok(text.into())
        }
        _ => Err(problem("it begins with no kind of name, such as `CN=`")),
    }
}

/// An alternative name with its kind in front.
pub(super) fn san(text: &str) -> Result<San, Problem> {
    let problem = |why: &str| Problem::new(format!("{} is not an alternative name: {why}", quote(text)));
    let Some((kind, name)) = text.split_once(':').filter(|(kind, _)| KINDS.contains(kind)) else {
        let guess = match text {
            _ if text.contains("://") => format!("`\"URI:{text}\"`"),
            _ if text.contains('@') => format!("`\"email:{text}\"`"),
            _ if text.parse::<IpAddr>().is_ok() => format!("`\"IP:{text}\"`"),
            _ if dns_name(host(text).0).is_ok() => format!("`\"DNS:{text}\"`"),
            _ => "for example `\"DNS:app1.example.com\"`".to_owned(),
        };
        return Err(problem("its kind is not in front, `DNS:`, `IP:`, `URI:` or `email:`").help(guess));
    };
    match kind {
        "DNS" if name == "*" => {
            Err(problem("`*` would let every name in")
                .help("`\"DNS:*.example.com\"` for all names below one"))
        }
        "DNS" => {
            let (host, is_below) = host(name);
            match dns_name(host) {
                Ok(host) => Ok(if is_below { San::DnsBelow(host) } else { San::Dns(host) }),
                Err(why) => Err(problem(why).help("for example `\"DNS:app1.example.com\"`")),
            }
        }
        "IP" => match name.parse() {
            Ok(address) => Ok(San::Ip(address)),
            Err(_) => Err(problem("it is no IP address").help("for example `\"IP:10.0.0.11\"`")),
        },
        "URI" => {
            let example = "for example `\"URI:spiffe://example.org/app1\"`, or `\"URI:spiffe://example.org/*\"` for all below";
            let (begin, is_begin) = name.strip_suffix('*').map_or((name, false), |begin| (begin, true));
            match begin.split_once("://") {
                _ if begin.contains('*') || is_begin && !begin.ends_with('/') => {
                    Err(problem("`*` stands only for all that follows the last `/`").help(example))
                }
                Some((scheme, rest)) if !scheme.is_empty() && rest.len() > usize::from(is_begin) => {
                    Ok(if is_begin { San::UriBelow(begin.into()) } else { San::Uri(begin.into()) })
                }
                // A name that is no URL, `urn:…`.
                None if !is_begin && begin.contains(':') => Ok(San::Uri(begin.into())),
                _ => Err(problem("it is not a URI").help(example)),
            }
        }
        _ => match name.split_once('@') {
            Some((user, domain)) if !user.is_empty() && !domain.is_empty() => Ok(San::Email(name.into())),
            _ => Err(problem("it is not a mailbox").help("for example `\"email:ops@example.com\"`")),
        },
    }
}

/// A host name without its trailing dot, and whether all names below it are meant.
fn host(name: &str) -> (&str, bool) {
    let bare = name.strip_suffix('.').unwrap_or(name);
    bare.strip_prefix("*.").map_or((bare, false), |parent| (parent, true))
}

/// As OpenSSL writes them.
const KINDS: [&str; 4] = ["DNS", "IP", "URI", "email"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternative_names_have_their_kind_in_front() {
        assert_eq!(san("DNS:App.example.com."), Ok(San::Dns("app.example.com".into())));
        assert_eq!(san("DNS:*.Example.com"), Ok(San::DnsBelow("example.com".into())));
        assert_eq!(san("URI:spiffe://a/b"), Ok(San::Uri("spiffe://a/b".into())));
        assert_eq!(san("URI:spiffe://a/*"), Ok(San::UriBelow("spiffe://a/".into())));
        assert_eq!(san("URI:urn:a:b"), Ok(San::Uri("urn:a:b".into())));
        assert_eq!(san("email:a@b.example"), Ok(San::Email("a@b.example".into())));
        for text in [
            "DNS:a.example",
            "DNS:*.a.example",
            "IP:fd00::1",
            "URI:a://b",
            "URI:a://b/*",
            "email:a@b.example",
        ] {
            assert_eq!(san(text).unwrap().to_string(), text);
        }
        for (text, help) in [
            ("10.0.0.11", "`\"IP:10.0.0.11\"`"),
            ("IP:redis", "for example"),
            ("spiffe://a/b", "`\"URI:spiffe://a/b\"`"),
            ("a@b.example", "`\"email:a@b.example\"`"),
            ("app.example.com", "`\"DNS:app.example.com\"`"),
            ("dns:app.example.com", "for example"),
            ("DNS:*", "below one"),
            ("DNS:a b", "for example"),
            ("DNS:a.*.example.com", "for example"),
            ("*.example.com", "`\"DNS:*.example.com\"`"),
            ("URI:spiffe://*", "for example"),
            ("URI:spiffe://a/*/b", "for example"),
            ("URI:spiffe://a*", "for example"),
            ("URI:a", "for example"),
            ("email:a", "for example"),
            ("email:@a", "for example"),
        ] {
            let problem = san(text).unwrap_err();
            assert!(problem.help.as_ref().is_some_and(|given| given.contains(help)), "{text}: {problem:?}");
        }
    }

    #[test]
    fn subjects_are_whole_and_written_as_rfc_4514_has_it() {
        for text in ["CN=app", "CN=app,O=Example\\, Inc.,C=DE", "1.2.3=#0C0161", "CN=a b"] {
            assert_eq!(subject(text).as_deref(), Ok(text), "{text}");
        }
        for text in
            ["", "app", "=a", "/CN=app", "subject=CN = app", "CN = app, O = Example", "CN=app, O=Example"]
        {
            assert!(subject(text).is_err(), "{text}");
        }
    }
}
