//! What rules may change of headers.

use http::header::{self, HeaderName, HeaderValue};
use http::uri::Authority;

/// Whether rules may change the header. Not those that say where a message ends or how a connection goes on (RFC 9110,
/// section 7.6.1), which are the gateway's; and not `Host`, which is for a rewrite.
pub fn is_changeable(name: &HeaderName) -> bool {
    const OF_THE_CONNECTION: [&str; 3] = ["http2-settings", "keep-alive", "proxy-connection"];
    let fixed = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::EXPECT,
        header::HOST,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    !fixed.contains(name) && !OF_THE_CONNECTION.contains(&name.as_str())
}

/// Of a host, which may have a port, that a rule gives to requests.
pub(in crate::config) fn host_value(name: &str) -> Option<HeaderValue> {
    Authority::try_from(name).ok().filter(|host| !host.as_str().contains('@'))?;
    HeaderValue::try_from(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        assert!(host_value("a.example").is_some() && host_value("[::1]:80").is_some());
        assert!(
            host_value("a b").is_none()
                && host_value("").is_none()
                && host_value("user@a").is_none()
                && host_value("a/b").is_none()
        );
    }
}
