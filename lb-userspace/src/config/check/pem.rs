//! What files of certificates, keys and passphrases have in common.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rustls::pki_types::pem;
use zeroize::Zeroizing;

use crate::config::diagnostic::{Problem, quote};

/// The content of a file as text that a PEM reader understands, whatever editor has written it.
pub(super) fn text(path: &Path, content: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, Problem> {
    match **content {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            Err(unusable(path, "it is UTF-16").help("save it as ASCII or UTF-8"))
        }
        _ => Ok(without_marks(content)),
    }
}

/// Takes out what Windows' editors put in front of a text (byte order marks, in UTF-8) and `cat` carries into the
/// middle of a file: a PEM section behind one would not be seen.
fn without_marks(content: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    const MARK: &[u8] = b"\xef\xbb\xbf";
    let mut rest = &content[..];
    let mut clean = Zeroizing::new(Vec::with_capacity(rest.len()));
    while let Some(at) = rest.windows(MARK.len()).position(|window| window == MARK) {
        clean.extend_from_slice(&rest[..at]);
        rest = &rest[at + MARK.len()..];
    }
    clean.extend_from_slice(rest);
    clean
}

pub(super) fn unusable(path: &Path, why: &str) -> Problem {
    Problem::new(format!("cannot use {}: {why}", quote(&path.to_string_lossy())))
}

/// Says nothing of the content: it may be a private key's.
pub(super) fn pem_error(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a PEM section in it does not end",
        pem::Error::IllegalSectionStart { .. } => "a PEM section in it starts with a broken line",
        pem::Error::Base64Decode(_) => "a PEM section in it is not base64",
        _ => "it is not PEM",
    }
}

/// Seconds since the Unix epoch, to be read.
pub(super) fn date(seconds: u64) -> impl fmt::Display {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds))
}
