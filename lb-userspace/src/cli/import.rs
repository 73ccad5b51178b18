//! `snisplice import`: other programs' configurations.

use crate::import::{self, File, Form, Imported, LARGEST_FILE};
use anyhow::{Context, anyhow, ensure};
use std::io::Read as _;
use std::path::{Path, PathBuf};

pub(super) const AFTER_HELP: &str = "\
Exit codes:
  0  nothing is lost
  1  no result: a file cannot be read, is of no known kind, or has no route
  2  usage
  3  there is a result, but something is lost

Examples:
  snisplice import /etc/haproxy/haproxy.cfg /etc/haproxy/domains.map --to toml > snisplice.toml
  kubectl get ingressroutetcp,service -A -o yaml | snisplice import /dev/stdin > routes.yaml
  snisplice import nginx.conf --to toml > snisplice.toml && snisplice check -c snisplice.toml";

#[derive(clap::Args)]
pub(super) struct Import {
    /// The configurations, as one; each at most 8 MiB.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The form of the result: objects of the Gateway API, or snisplice's own configuration.
    #[arg(long, value_enum, default_value_t = To::Yaml, value_name = "FORM")]
    to: To,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum To {
    /// Objects of the Gateway API, and the Services that they need.
    Yaml,
    /// For `snisplice run`.
    Toml,
}

impl Import {
    /// Gives the result, which the caller shows.
    pub(super) fn run(self) -> anyhow::Result<Imported> {
        let files = self.files.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
        let form = match self.to {
            To::Yaml => Form::GatewayApi,
            To::Toml => Form::Toml,
        };
        import::import(&files, form).map_err(|errors| {
            let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
            anyhow!("{}", errors.join("\nsnisplice: "))
        })
    }
}

fn read(path: &Path) -> anyhow::Result<File> {
    let name = path.display().to_string();
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {name}"))?;
    file.take(LARGEST_FILE + 1).read_to_string(&mut text).with_context(|| format!("cannot read {name}"))?;
    ensure!(text.len() as u64 <= LARGEST_FILE, "{name}: larger than {} MiB", LARGEST_FILE >> 20);
    Ok(File { name, text })
}
