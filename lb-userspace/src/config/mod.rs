//! Config: the file, read and validated as a whole before anything uses it.
//!
//! `toml` turns text into a draft: values that make sense by themselves, each with its place. `check` turns a draft into the
//! model: references, combinations, certificates. Every problem of a file is reported at once, each with its position.

mod address;
mod authorities;
mod certificate;
mod check;
mod client_auth;
mod client_rate;
mod controller;
mod diagnostic;
mod draft;
mod field;
mod files;
pub mod gateway_api;
mod health;
mod hostname;
mod http;
mod model;
mod place;
mod san;
mod sni;
#[cfg(test)]
mod tests;
mod toml;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::UnixTime;

use diagnostic::Report;
use files::{Directory, read_bounded};
use gateway_api::Built;

pub use self::toml::with_tables_of_keys;
pub(crate) use self::toml::{is_http_host, is_http_path};
pub use address::{Address, Host, Origin};
pub use authorities::Authorities;
pub use client_auth::{Allowed, ClientAuth};
pub use client_rate::{ClientRate, NewConnections};
pub(crate) use diagnostic::quote;
pub use diagnostic::{Diagnostic, Diagnostics, Severity, Warnings};
pub use files::{Digest, Files, MAX_CONFIG_BYTES, MAX_PEM_BYTES, Sources, digest};
pub use health::{Check, Eject, Health, HealthTls, Login, OnDown, Role, Secret};
pub use http::{
    BadPath, BadPattern, Carrier, Cors, Filters, Fraction, HeaderChanges, MAX_MATCHES, Mirror, PathMatch,
    PathRewrite, Pattern, Persistence, Redirect, RequestMatch, Retry, Rewrite, Rule, RuleBackend, Timeouts,
    ValueMatch, compared, covers_origin, is_changeable,
};
pub use model::{
    AccessLog, Action, Backend, Balance, Config, Ech, FixedGateway, Gateway, Interfaces, Keepalive, Listener,
    LiveGateway, LogFormat, LogTarget, MAX_WEIGHT, MinVersion, OnRemoval, Peer, Pool, Protocol, ProxyVersion,
    Refuse, Route, Rules, Server, SniPattern, SniPatterns, SourceAddress, Termination, UpstreamTls,
};
pub use place::{ObjectField, Place, Span};
pub use san::San;

/// A configuration file that was read, with the files that it names: objects that come and go are checked with what it says.
#[derive(Debug)]
pub struct File {
    name: String,
    text: String,
    directory: Directory,
}

impl File {
    /// Reads and validates the file at `path`; the files it names are looked for beside it. A change of one of the files
    /// that were read is a change of the configuration.
    pub fn open(path: &Path) -> (Result<(Self, Config, Warnings), Diagnostics>, Sources) {
        let mut directory = Directory::of(path);
        let bytes = directory.read_noting(path.to_owned(), MAX_CONFIG_BYTES);
        let (name, text) = match text(path, bytes) {
            Ok(read) => read,
            Err(errors) => return (Err(errors), directory.sources()),
        };
        if text.contains("gateway_api") {
            directory.remember();
        }
        let file = File { name, text, directory };
        let checked = file.check(&mut Built::default());
        let sources = file.directory.sources();
        (checked.map(|(config, warnings)| (file, config, warnings)), sources)
    }

    /// One that names a directory of manifests, and has nothing else.
    pub fn of_manifests(directory: &Path) -> Self {
        let quoted = ::toml::Value::from(directory.to_string_lossy().into_owned());
        let text = format!("[gateway_api]\nfrom = \"directory\"\ndirectory = {quoted}\n");
        File { name: directory.display().to_string(), text, directory: Directory::of(Path::new("")) }
    }

    /// Validates what the file and the objects say together. An object that clashes with the file, or with another object,
    /// is left out and told so in its status.
    pub fn check(&self, built: &mut Built) -> Checked {
        let mut report = Report::default();
        let mut draft = toml::read(&self.text, &mut report);
        draft.listeners.append(&mut built.listeners);
        draft.routes.append(&mut built.routes);
        draft.pools.append(&mut built.pools);
        let config = check::check(draft, &self.directory, UnixTime::now(), &mut report);
        let refusals = report.refusals();
        if !refusals.is_empty() {
            for (key, status) in &mut built.statuses {
                if let Some(message) = refusals.get(key.to_string().as_str()) {
                    Arc::make_mut(status).refuse(message);
                }
            }
        }
        conclude(config, report, &self.name, &self.text)
    }

    /// A path that the file names.
    pub fn path_of(&self, path: &Path) -> PathBuf {
        self.directory.path_of(path)
    }
}

/// Reads `[gateway]` of the file at `path`, for those who look for a gateway that runs with it: its routes may be
/// many, or have become wrong since.
pub fn load_gateway(path: &Path) -> Result<(Gateway, Warnings), Diagnostics> {
    let (name, text) = text(path, read_bounded(path, MAX_CONFIG_BYTES))?;
    check_gateway(&text, &name)
}

/// A configuration with its warnings, or everything that is wrong with it.
pub type Checked = Result<(Config, Warnings), Diagnostics>;

/// Validates `text`. `file_name` is what diagnostics call it; `now` is what certificates are dated against.
pub fn check_text(text: &str, file_name: &str, files: &dyn Files, now: UnixTime) -> Checked {
    let mut report = Report::default();
    let draft = toml::read(text, &mut report);
    let config = check::check(draft, files, now, &mut report);
    conclude(config, report, file_name, text)
}

/// Validates `[gateway]` alone; whatever else is wrong with `text`, but for its syntax, is not asked.
pub fn check_gateway(text: &str, file_name: &str) -> Result<(Gateway, Warnings), Diagnostics> {
    let mut report = Report::default();
    let gateway = check::gateway(&toml::read_gateway(text, &mut report));
    conclude(gateway, report, file_name, text)
}

/// What was read with its warnings, or, if an error was reported, everything that is wrong with it.
fn conclude<T>(read: T, report: Report, file_name: &str, text: &str) -> Result<(T, Warnings), Diagnostics> {
    let refused = report.has_errors();
    let diagnostics = report.finish(file_name, text);
    if refused { Err(diagnostics) } else { Ok((read, diagnostics)) }
}

/// What diagnostics call the configuration file, and its text.
fn text(path: &Path, bytes: io::Result<Vec<u8>>) -> Result<(String, String), Diagnostics> {
    let name = path.display().to_string();
    let bytes = bytes.map_err(|error| Diagnostics::unreadable(&name, &error))?;
    let text = String::from_utf8(bytes).map_err(|error| Diagnostics::not_utf8(&name, &error))?;
    Ok((name, text))
}
