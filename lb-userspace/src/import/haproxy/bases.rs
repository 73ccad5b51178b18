//! What `global` says for all sections of HAProxy.

/// What all sections share, from `global`.
#[derive(Default)]
pub(super) struct Bases {
    /// The directories in which files are that are no whole paths.
    pub(super) certificate_directory: Option<String>,
    pub(super) authority_directory: Option<String>,
    /// Servers that do not say `verify` may show any certificate.
    pub(super) no_verify: bool,
}

impl Bases {
    pub(super) fn certificate(&self, file: &str) -> String {
        below(self.certificate_directory.as_deref(), file)
    }

    /// A file of authorities; none: the system's.
    pub(super) fn authorities(&self, file: &str) -> Option<String> {
        (file != "@system-ca").then(|| below(self.authority_directory.as_deref(), file))
    }
}

fn below(directory: Option<&str>, file: &str) -> String {
    match directory {
        Some(directory) if !file.starts_with('/') => format!("{directory}/{file}"),
        _ => file.to_owned(),
    }
}
