//! Paths, as requests and rules are compared by them.

use std::borrow::Cow;

/// Why a path is not compared with any rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// A server may take it for a path that another rule is for.
    #[error("the path has a segment `.` or `..`")]
    DotSegment,
    /// RFC 3986, section 2.1.
    #[error("the path has a `%` without two hexadecimal digits after it")]
    Encoding,
    /// Which ends a text for some servers.
    #[error("the path has a zero byte")]
    Zero,
}

/// The path of a request as it is compared with rules, so that two notations of which servers make the same are the same:
/// a percent-encoded character that need not be encoded is decoded, and the digits of what stays encoded are upper case
/// (RFC 3986, section 6.2.2); several slashes in a row are one. `%2F` stays what it is: no slash.
///
/// Refused is what a server may resolve to a path that no rule has seen: segments `.` and `..`, also where they are encoded, stand
/// beside an encoded slash or a backslash, or have parameters (`..;`); an encoding that is none; and an encoded zero.
pub fn compared(path: &str) -> Result<Cow<'_, str>, BadPath> {
    let bytes = path.as_bytes();
    let special = |pair: &[u8]| matches!(pair, [b'/', b'/' | b'.']);
    if !bytes.iter().any(|b| matches!(b, b'%' | b'\\')) && !bytes.windows(2).any(special) {
        return Ok(Cow::Borrowed(path));
    }
    let mut made = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(special) = rest.find(['/', '%']) {
        made.push_str(&rest[..special]);
        let bytes = &rest.as_bytes()[special..];
        let length = if bytes[0] == b'/' {
            if !made.ends_with('/') {
                made.push('/');
            }
            1
        } else {
            let byte = encoded(bytes).ok_or(BadPath::Encoding)?;
            match byte {
                0 => return Err(BadPath::Zero),
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => made.push(byte.into()),
                _ => made.push_str(&rest[special..special + 3].to_ascii_uppercase()),
            }
            3
        };
        rest = &rest[special + length..];
    }
    made.push_str(rest);
    let dots = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
    match made.split(['/', '\\']).flat_map(|s| s.split("%2F")).flat_map(|s| s.split("%5C")).any(dots) {
        true => Err(BadPath::DotSegment),
        false => Ok(Cow::Owned(made)),
    }
}

/// What `%` and two digits stand for.
fn encoded(text: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*text.get(at)?).to_digit(16);
    u8::try_from(digit(1)? * 16 + digit(2)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_may_leave_a_prefix_is_refused() {
        for path in [
            "/a/../b",
            "/a/..",
            "/..",
            "/.",
            "/a/./b",
            "/a/.",
            "/a/%2e%2e/b",
            "/a/.%2E",
            "/%2e",
            "/a/..%2fb",
            "/a%2f../b",
            "/a%5c..%5cb",
            "/a\\..\\b",
            "/a/..\\b",
            "/a/..;/b",
            "/a/..;x=1/b",
            "/a//../b",
            "/a%2F%2e%2e%2Fb",
        ] {
            assert_eq!(compared(path), Err(BadPath::DotSegment), "{path}");
        }
        for path in ["/%", "/%2", "/%zz", "/a%", "/%%34%31", "/%+1"] {
            assert_eq!(compared(path), Err(BadPath::Encoding), "{path}");
        }
        assert_eq!(compared("/a%00"), Err(BadPath::Zero));
        for path in
            ["/", "*", "", "/.well-known/x", "/...", "/a..b", "/a.", "/a;..x", "/a/..b/", "/a:b@c", "/ä"]
        {
            assert_eq!(compared(path).as_deref(), Ok(path));
        }
        for (path, same) in [("/%7Eme//x", "/~me/x"), ("/%2f%3a", "/%2F%3A"), ("/a\\b", "/a\\b"), ("//", "/")]
        {
            assert_eq!(compared(path).as_deref(), Ok(same));
        }
    }

    proptest! {
        /// What is compared stays what it is when it is compared again, and nothing panics.
        #[test]
        fn comparing_changes_a_path_once(path in r"/[a.%2eEfF/\\;ä0]{0,12}") {
            if let Ok(once) = compared(&path) {
                let twice = compared(&once);
                prop_assert_eq!(twice.as_deref(), Ok(&*once));
            }
        }
    }
}
